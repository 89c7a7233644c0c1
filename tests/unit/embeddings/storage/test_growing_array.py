"""Arrays that grow: what they hold, and what they refuse."""

import numpy as np
import pytest

from headrace.embeddings.storage import growing_array
from headrace.embeddings.storage.growing_array import GrowingArray


def test_elements_stay_and_new_ones_are_zeros() -> None:
    grown = GrowingArray(3, np.int64)
    grown.array[:] = 7, 8, 9
    grown.reserve(5_000)
    assert grown.array[:3].tolist() == [7, 8, 9]
    assert not grown.array[3:].any()
    assert grown.num_bytes == 8 * len(grown.array) == 8 * 5_000
    grown.reserve(5_001)
    assert len(grown.array) == 5_000 + 5_000 // 16


def test_an_array_can_start_empty() -> None:
    grown = GrowingArray(0, np.dtype([("a", np.uint16), ("b", np.int64)]))
    assert grown.num_bytes == 0
    grown.reserve(1)
    assert grown.array["b"].tolist() == [0]


def test_an_array_whose_memory_is_shared_does_not_grow() -> None:
    grown = GrowingArray(3, np.int32)
    view = grown.array[1:]
    with pytest.raises(BufferError):
        grown.reserve(4_000)
    grown.array[1] = 5
    assert view[0] == 5


def test_where_pages_cannot_be_moved_the_array_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fixed(growing_array.mmap.mmap):
        def resize(self, new_size: int) -> None:
            raise SystemError("mmap: resizing not available--no mremap()")

    monkeypatch.setattr(growing_array.mmap, "mmap", Fixed)
    grown = GrowingArray(3, np.int32)
    grown.array[:] = 1, 2, 3
    grown.reserve(4_000)
    assert grown.array[:4].tolist() == [1, 2, 3, 0]
