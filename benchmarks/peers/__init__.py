"""Loaders that are compared: the work they all do, the logs they read, and how they run in processes of their own."""
