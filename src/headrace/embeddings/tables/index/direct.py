"""Direct: an id is the number of its row already; it is checked, never trusted."""

from headrace.compiling import kernel

__all__ = ["is_row"]


@kernel()
def is_row(key: int, size: int) -> bool:
    """Whether an id may be used as a row of a table of `size` rows."""
    return 0 <= key < size
