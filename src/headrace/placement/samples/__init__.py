"""Placement of samples: which trainer trains which sample of a global batch."""
