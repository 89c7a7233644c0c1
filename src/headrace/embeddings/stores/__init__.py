"""Embedding stores: one interface to rows in this process or in shards."""
