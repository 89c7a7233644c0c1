"""Placement policies, one a file; `headrace.registry.PLACEMENT_POLICIES` lists them by name."""
