"""The engine: runs a pipeline's stages ahead of the consumer, in order, within a memory budget, and resumably."""
