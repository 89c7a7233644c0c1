"""Worker processes for user functions that hold the GIL: a template that forks them, a pool, and messages."""
