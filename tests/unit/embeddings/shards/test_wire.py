"""Keys that arrive from the network have the array types of keys of this process, so each kernel is compiled once."""

import numba
import numpy as np
import pytest

from headrace.embeddings import Keys
from headrace.embeddings.shards.wire import pack_ids, read_keys


@pytest.mark.parametrize("with_counts", [True, False])
def test_arrays_of_received_keys_have_the_types_of_local_ones(with_counts: bool) -> None:
    sent = Keys(np.array([0, 1, 1], np.int32), np.array([7, 2, 5]), np.array([1, 1, 1], np.int32))
    received = read_keys(pack_ids(sent, with_counts=with_counts), [1, 2], 2)
    for name in ("tables", "ids", "counts"):
        given, found = getattr(sent, name), getattr(received, name)
        np.testing.assert_array_equal(found, given, err_msg=name)
        assert numba.typeof(found) == numba.typeof(given), name
