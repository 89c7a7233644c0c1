"""Worker processes for user functions that hold the GIL: a fork server (the template), a pool, and messages."""
