"""The operations of a look-up: unique keys, pooling, segment sums of gradients."""
