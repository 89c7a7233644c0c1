"""Precision: what was asked for, else what was measured, and for a run what it began with."""

import pytest
import torch

from headrace.models.layers import mlp, seeded
from headrace.models.products import full_rate, has_bf16_products, is_full_rate_exact
from headrace.training.precision import choose_precision, decide_precision, layer_shapes, measure_products
from headrace.training.step import TrainingStep

MUCH = 1e9


@pytest.mark.parametrize(
    ("seconds", "flop", "precision", "reason"),
    [
        ({"fp32": 2.0, "bf16": 1.0}, MUCH, "bf16", "bf16: products are 2.0x as fast as in fp32"),
        ({"fp32": 1.2, "bf16": 1.0}, MUCH, "fp32", "fp32: bf16 products are 1.2x as fast, expected at least 1.3x"),
        ({"fp32": 1.0, "bf16": 4.0}, MUCH, "fp32", "fp32: bf16 products are 0.2x as fast, expected at least 1.3x"),
        ({}, MUCH, "fp32", "fp32: this processor has no bf16 products"),
        ({}, 3e6, "fp32", "fp32: the forward pass has only 3 MFLOP"),
    ],
)
def test_decision(seconds: dict[str, float], flop: float, precision: str, reason: str) -> None:
    choice = decide_precision(seconds, flop)
    assert (choice.precision, choice.reason) == (precision, reason)


def test_a_small_model_is_not_measured() -> None:
    choice = choose_precision(mlp(4, [8, 2], seeded(0)), num_rows=64)
    assert choice.precision == "fp32"
    assert choice.seconds == {}


def test_what_is_asked_for_is_taken() -> None:
    assert choose_precision(mlp(4, [8], seeded(0)), 64, "bf16").reason == "bf16: set by training.precision"


def test_shapes_are_those_of_layers_whose_precision_can_be_set() -> None:
    model = torch.nn.ModuleDict({"deep": mlp(4, [8, 2], seeded(0)), "other": torch.nn.Linear(3, 3)})
    assert layer_shapes(model) == [(4, 8), (8, 2)]


def test_measuring_leaves_the_threads_as_they_are() -> None:
    before = torch.get_num_threads()
    seconds = measure_products([(16, 16)], num_rows=32)
    assert set(seconds) == {"fp32", "bf16"}
    assert min(seconds.values()) > 0
    assert torch.get_num_threads() == before


def test_a_run_keeps_what_it_began_with_unless_the_job_says_otherwise() -> None:
    model = mlp(4, [8], seeded(0))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert TrainingStep(model, optimizer, precision="auto").settle_precision(64, "bf16").precision == "bf16"
    assert model.precision == "bf16"
    assert TrainingStep(model, optimizer, precision="fp32").settle_precision(64, "bf16").precision == "fp32"
    assert model.precision == "fp32"


def test_products_at_full_rate_keep_all_bits() -> None:
    a, b = (torch.randn(257, 129, generator=seeded(0)), torch.randn(129, 65, generator=seeded(1)))
    exact = a.double() @ b.double()
    with full_rate():
        product = a @ b
    assert (product - exact).abs().max() < 1e-4
    if is_full_rate_exact():
        assert torch.backends.mkldnn.matmul.fp32_precision == "none"


def test_what_a_processor_can_only_emulate_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def emulate() -> bool:
        return False

    def measure(*_: object) -> dict[str, float]:
        raise AssertionError("measured")

    monkeypatch.setattr("headrace.training.precision.has_bf16_products", emulate)
    monkeypatch.setattr("headrace.training.precision.measure_products", measure)
    choice = choose_precision(mlp(1024, [1024, 512], seeded(0)), num_rows=4096)
    assert choice.reason == "fp32: this processor has no bf16 products"


def test_x86_processors_are_asked_for_their_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: False)
    for has_instructions in (False, True):
        monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda value=has_instructions: value)
        assert has_bf16_products() is has_instructions


def test_threads_that_overlap_leave_the_switch_as_it_was() -> None:
    before = torch.backends.mkldnn.matmul.fp32_precision
    first, second = full_rate(), full_rate()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not is_full_rate_exact() or torch.backends.mkldnn.matmul.fp32_precision == "bf16"
    second.__exit__(None, None, None)
    assert torch.backends.mkldnn.matmul.fp32_precision == before
