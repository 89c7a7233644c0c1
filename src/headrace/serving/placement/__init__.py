"""Which rows lie at which of several servers, when none can hold all of them (UGache)."""
