"""Small batches and reference modules for tests of embeddings."""

from collections.abc import Iterator

import numba
import pytest


@pytest.fixture
def restore_threads() -> Iterator[None]:
    """Gives Numba its threads back after a test that changes their number."""
    before = numba.get_num_threads()
    yield
    numba.set_num_threads(before)
