"""Operations of a lookup: unique keys, pooling, segment sums of gradients."""
