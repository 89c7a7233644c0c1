"""Compiled loops of the feature operators: they read Arrow buffers and write a batch's final arrays."""
