"""Records survive kills; torn lines do not spoil the rest."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from headrace.errors import DataError
from headrace.observe.jsonl import JsonlWriter, read_jsonl


def test_what_is_written_is_read_back_before_the_file_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "metrics.jsonl"
    with JsonlWriter(path) as writer:
        writer.write({"step": 1, "seconds": {"wait": 0.5}})
        assert list(read_jsonl(path)) == [{"step": 1, "seconds": {"wait": 0.5}}]


def test_scalars_of_numpy_and_torch_become_plain_and_nan_null(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with JsonlWriter(path) as writer:
        writer.write({"a": np.float32(0.5), "b": torch.tensor(3), "c": np.arange(2), "d": math.nan, "e": (1, math.inf)})
    assert list(read_jsonl(path)) == [{"a": 0.5, "b": 3, "c": [0, 1], "d": None, "e": [1, None]}]


def test_a_last_line_still_being_written_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "lo')
    assert list(read_jsonl(path)) == [{"step": 1}]
    path.write_text('{"step": 1}\n{"step": 2')
    assert list(read_jsonl(path)) == [{"step": 1}]


def test_opening_again_cuts_a_torn_line_and_keeps_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "x": "' + "y" * 100_000)
    with JsonlWriter(path) as writer:
        writer.write({"step": 3})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"step": 1}, {"step": 3}]


def test_a_bad_line_in_the_middle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\nnot json\n{"step": 3}\n')
    with pytest.raises(DataError, match=r"metrics\.jsonl: line 2: not JSON"):
        list(read_jsonl(path))
    path.write_text("[1]\n")
    with pytest.raises(DataError, match="line 1: given list, expected an object"):
        list(read_jsonl(path))
