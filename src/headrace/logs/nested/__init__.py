"""The nested layout: one row per session, repeated values stored once, shifting lists as slices of a union."""
