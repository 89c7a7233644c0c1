"""The engine: runs a pipeline's stages ahead of the consumer, in order, within memory; and knows where it is."""
