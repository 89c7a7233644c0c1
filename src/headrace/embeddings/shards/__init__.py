"""Sharded embedding tables: shard servers, their clients, and the protocol."""
