"""The encoder against torch's own layers, and buckets of lists of similar length."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from headrace.models.histories import (
    LARGE_BUCKET,
    MAX_PADDED,
    SMALL_BUCKET,
    HistoryEncoder,
    HistoryEncoderConfig,
    length_buckets,
)
from headrace.models.layers import seeded

DIM = 8


def offsets_of(lengths: list[int]) -> Tensor:
    return torch.tensor(np.concatenate([[0], np.cumsum(lengths)]))


def torch_layer(encoder: HistoryEncoder) -> nn.TransformerEncoderLayer:
    """torch's layer with the weights of ours."""
    (ours,) = encoder.layers
    layer = nn.TransformerEncoderLayer(DIM, 2, 16, dropout=0.0, norm_first=True, batch_first=True)
    pairs = {
        "self_attn.in_proj_": ours.qkv,
        "self_attn.out_proj.": ours.out,
        "linear1.": ours.up,
        "linear2.": ours.down,
        "norm1.": ours.attention_norm,
        "norm2.": ours.feedforward_norm,
    }
    state = {f"{name}{part}": getattr(module, part) for name, module in pairs.items() for part in ("weight", "bias")}
    layer.load_state_dict(state)
    return layer


def test_every_list_is_what_torchs_encoder_layer_gives_for_it_alone() -> None:
    config = HistoryEncoderConfig(features=("a", "b"), feedforward=16, max_length=4)
    encoder = HistoryEncoder(config, DIM, seeded(0))
    layer = torch_layer(encoder)
    lengths = {"a": [3, 0, 1, 6], "b": [2, 5]}
    rows = {name: torch.randn(sum(sizes), DIM) for name, sizes in lengths.items()}
    outputs = encoder([(rows[name], offsets_of(sizes)) for name, sizes in lengths.items()])
    for number, (name, sizes) in enumerate(lengths.items()):
        for ours, part in zip(outputs[number], rows[name].split(sizes), strict=True):
            if len(part) == 0:
                assert not ours.any()
                continue
            places = encoder.places_LD[torch.arange(len(part)).clamp(max=3)]
            expected = layer((part + encoder.features_FD[number] + places)[None])[0].mean(0)
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_gradients_reach_every_id_and_every_weight() -> None:
    encoder = HistoryEncoder(HistoryEncoderConfig(features=("a",), num_layers=2, max_length=3), DIM, seeded(0))
    rows = torch.randn(9, DIM, requires_grad=True)
    (output,) = encoder([(rows, offsets_of([4, 0, 5]))])
    output.square().sum().backward()
    assert rows.grad is not None
    assert rows.grad.any(dim=1).all()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in encoder.parameters())


def test_no_lists_at_all_encode_to_nothing() -> None:
    encoder = HistoryEncoder(HistoryEncoderConfig(features=("a",)), DIM, seeded(0))
    (output,) = encoder([(torch.zeros(0, DIM), offsets_of([0, 0]))])
    assert output.shape == (2, DIM)
    assert not output.any()


@given(st.lists(st.integers(0, 300), max_size=200))
def test_buckets_hold_every_list_once_with_little_padding(sizes: list[int]) -> None:
    lengths = np.array(sizes, dtype=np.int64)
    buckets = list(length_buckets(lengths))
    taken = np.concatenate([bucket.lists for bucket in buckets]) if buckets else np.empty(0, np.int64)
    assert sorted(taken) == list(np.flatnonzero(lengths))
    for bucket in buckets:
        places = len(bucket.lists) * bucket.length
        assert bucket.length == lengths[bucket.lists].max()
        assert places <= max(MAX_PADDED * lengths[bucket.lists].sum(), SMALL_BUCKET)
        assert places <= LARGE_BUCKET


def test_a_list_longer_than_a_bucket_has_one_of_its_own() -> None:
    lengths = np.array([LARGE_BUCKET + 1, 2, LARGE_BUCKET + 5])
    assert [bucket.length for bucket in length_buckets(lengths)] == [2, LARGE_BUCKET + 1, LARGE_BUCKET + 5]


def test_lists_on_another_device_are_encoded_there() -> None:
    encoder = HistoryEncoder(HistoryEncoderConfig(features=("a",)), 8, torch.Generator().manual_seed(0)).to("meta")
    offsets = torch.tensor([0, 3, 3, 5])  # of unequal lengths, so that places are masked
    (vectors,) = encoder([(torch.empty(5, 8, device="meta"), offsets)])
    assert (vectors.shape, vectors.device.type) == ((3, 8), "meta")
