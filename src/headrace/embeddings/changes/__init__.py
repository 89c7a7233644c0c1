"""Change tracking: which rows of a table group changed since a version, and their format on the network."""
