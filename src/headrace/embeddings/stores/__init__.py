"""Where rows live, behind one contract: in this process or in shards."""
