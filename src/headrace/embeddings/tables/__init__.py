"""Tables: from an id to its row, when rows are given and taken, and what a saved table group holds."""
