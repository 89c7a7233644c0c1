"""DeepFM and DCN-v2 of torch-rechub, with its trainer at its defaults.

Models, dimension 16 and features are those of the library's example for Criteo: numbers scaled to 0..1 and bucketed as
well; towers of 256 and 128 with a dropout of 0.2, three cross layers. Batches have 256 rows, as in its README, or 16,
the default of its loader, which is better on short logs and too slow for long ones. Adam with a rate of 0.001 is the
trainer's default. Lists are averaged, and share the table of the column that holds the same ids. The library needs the
ids and the range of every number beforehand, so it is told those of the whole log. Each batch is predicted, then
trained on, once.
"""

from __future__ import annotations

import os
from typing import Any

os.environ["TQDM_DISABLE"] = "1"  # its trainer shows a bar for every call

import numpy as np
import numpy.typing as npt
import torch
from torch_rechub.basic.features import DenseFeature, SequenceFeature, SparseFeature
from torch_rechub.models.ranking import DCNv2, DeepFM
from torch_rechub.trainers import CTRTrainer

from quality.columns import Columns
from quality.scores import to_logits

__all__ = ["predict_then_learn"]

EMBEDDING_DIM = 16
TOWER = {"dims": [256, 128], "dropout": 0.2, "activation": "relu"}
CROSS_LAYERS = 3


def predict_then_learn(columns: Columns, seed: int, model: str, batch_size: int = 256) -> npt.NDArray[np.float64]:
    """Log-odds [N], of each batch before it was learned."""
    torch.manual_seed(seed)
    dense, sparse, inputs = _features(columns)
    if model == "DeepFM":
        network = DeepFM(deep_features=dense + sparse, fm_features=sparse, mlp_params=TOWER)
    else:
        network = DCNv2(features=dense + sparse, n_cross_layers=CROSS_LAYERS, mlp_params=TOWER)
    trainer = CTRTrainer(network)
    labels = torch.from_numpy(columns.labels)
    probabilities: list[float] = []
    borders = list(range(0, len(labels), batch_size))
    if len(labels) - borders[-1] < 2 and len(borders) > 1:
        borders.pop()  # its layers refuse a batch of one row
    for start, stop in zip(borders, [*borders[1:], len(labels)], strict=True):
        batch = [({name: values[start:stop] for name, values in inputs.items()}, labels[start:stop])]
        probabilities += trainer.predict(trainer.model, batch)
        trainer.train_one_epoch(batch)
    return to_logits(np.array(probabilities))


def _features(columns: Columns) -> tuple[list[Any], list[Any], dict[str, torch.Tensor]]:
    dense, sparse, inputs = [], [], {}
    for name, numbers in columns.dense.items():
        filled = np.nan_to_num(numbers, nan=0.0)
        spread = max(float(np.ptp(filled)), 1e-12)
        inputs[name] = torch.from_numpy(((filled - filled.min()) / spread).astype(np.float32))
        dense.append(DenseFeature(name))
        names, buckets = np.unique(_buckets(numbers), return_inverse=True)
        inputs[f"{name}_cat"] = torch.from_numpy(buckets)
        sparse.append(SparseFeature(f"{name}_cat", vocab_size=len(names), embed_dim=EMBEDDING_DIM))
    for name, numbers in columns.ids.items():
        inputs[name] = torch.from_numpy(numbers)
        size, shared = columns.sizes[name], columns.shared.get(name)
        sparse.append(SparseFeature(name, vocab_size=size, embed_dim=EMBEDDING_DIM, shared_with=shared))
    for name, lists in columns.lists.items():
        inputs[name] = torch.from_numpy(lists.padded())
        size, shared = columns.sizes[name], columns.shared.get(name)
        more = {"pooling": "mean", "shared_with": shared, "padding_idx": 0}
        sparse.append(SequenceFeature(name, vocab_size=size, embed_dim=EMBEDDING_DIM, **more))
    return dense, sparse, inputs


def _buckets(numbers: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The buckets of the library's example for Criteo; null is one of its own."""
    whole = np.trunc(numbers)
    large = np.floor(np.log(np.maximum(whole, 1)) ** 2)
    return np.where(np.isnan(numbers), -1e9, np.where(whole > 2, large, whole - 2))
