"""The nested layout: one row a session, values that repeat stored once, lists that shift as slices of a union."""
