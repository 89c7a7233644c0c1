"""Direct tables: the id is the row number, after a range check."""

from headrace.compiling import kernel

__all__ = ["is_row"]


@kernel()
def is_row(key: int, size: int) -> bool:
    """Whether an id is a valid row of a table with `size` rows."""
    return 0 <= key < size
