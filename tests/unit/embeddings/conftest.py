"""Tests of embeddings run on one thread, except those that compare thread counts."""

from collections.abc import Iterator

import numba
import pytest


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """One Numba thread: batches here are tiny, and waiting for a second thread is most of their time.

    A test may set another number; what was before comes back.
    """
    before = numba.get_num_threads()
    numba.set_num_threads(1)
    yield
    numba.set_num_threads(before)
