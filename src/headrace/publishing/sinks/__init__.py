"""Copies of versions in systems that know nothing of headrace: Redis, and folders of Parquet files."""
