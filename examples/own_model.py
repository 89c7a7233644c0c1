"""A model and a training loop of your own, with headrace's parts around them; stopped anywhere, it goes on there.

headrace generate logs --rows 50000
python examples/own_model.py logs run
"""

import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

import headrace as hr

EMBEDDINGS = {
    "default": {"kind": "collisionless", "num_embeddings": 4096, "optimizer": {"kind": "rowwise_adagrad", "lr": 0.05}},
    # Items of the history share rows with the candidate.
    "tables": {"item": {"feature_names": ["item", "history"], "pooling": {"history": "mean"}}},
}


class TwoTowers(nn.Module):
    """Who asks and what is shown meet in one dot product; B rows, F features, D embedding dimension."""

    def __init__(self, keys: tuple[str, ...], num_dense: int, dim: int = 16) -> None:
        super().__init__()
        self.bags = hr.EmbeddingBags(hr.EmbeddingsConfig.from_dict(EMBEDDINGS, where="EMBEDDINGS"), keys, dim, seed=7)
        self.shown = torch.tensor([key == "item" or key.startswith("category") for key in keys])
        num_shown = int(self.shown.sum())
        self.item_tower = nn.Sequential(nn.Linear(num_shown * dim, 64), nn.ReLU(), nn.Linear(64, dim))
        num_asking = (len(keys) - num_shown) * dim + num_dense
        self.user_tower = nn.Sequential(nn.Linear(num_asking, 64), nn.ReLU(), nn.Linear(64, dim))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, batch: hr.Batch) -> Tensor:
        """Logits float32 [B, 1]."""
        emb_BFD = self.bags(batch)
        item_BD = self.item_tower(emb_BFD[:, self.shown].flatten(1))
        user_BD = self.user_tower(torch.cat([emb_BFD[:, ~self.shown].flatten(1), batch.dense], dim=1))
        return (item_BD * user_BD).sum(dim=1, keepdim=True) + self.bias


def train(logs: Path, run: Path, *, stop_after: int | None = None) -> hr.Scores:
    """One pass over the logs, or what is left of it; `stop_after` ends it after so many steps, as Ctrl-C would."""
    torch.manual_seed(7)
    schema = hr.Schema.from_yaml(logs / "schema.yaml")
    plan = hr.FeaturePlan.default(schema)
    pipe = hr.read_parquet(logs, schema).shuffle(num_rows=8192, seed=7).batch(512).transform(plan).prefetch(4)
    model = TwoTowers(plan.sparse_keys, len(plan.dense_names))
    assert model.bags.table_group is not None
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    metrics = hr.BinaryMetrics()

    checkpoints = hr.CheckpointFolder(run)
    saved, refused = checkpoints.load_latest()
    for line in refused:
        print("refused a checkpoint, falling back to the previous one:", line)
    if saved is not None:
        model.load_state_dict({name: torch.from_numpy(array) for name, array in saved.arrays["dense"].items()})
        hr.load_optimizer_arrays(optimizer, saved.arrays["optimizer"])
        model.bags.table_group.load_state_dict(saved.columns["bags"])
        metrics.load_state_dict(saved.arrays["metrics"])

    with pipe.open(state=None if saved is None else saved.state["position"]) as batches:
        for step, batch in enumerate(batches, start=1):
            logits = model(batch)
            metrics.update(logits.detach().numpy()[:, 0], batch.labels.numpy()[:, 0])  # predict, then train
            optimizer.zero_grad()
            binary_cross_entropy_with_logits(logits, batch.labels).backward()
            optimizer.step()
            model.bags.apply_gradients()
            if step == stop_after:
                break
        position = batches.state_dict()

    dense = {name: value.numpy() for name, value in model.state_dict().items()}
    arrays = {"dense": dense, "optimizer": hr.optimizer_arrays(optimizer), "metrics": metrics.state_dict()}
    number = 1 if saved is None else saved.number + 1
    checkpoints.save(hr.Snapshot(number, {"position": position}, arrays, {"bags": model.bags.table_group.state_dict()}))
    return metrics.compute()


if __name__ == "__main__":
    scores = train(Path(sys.argv[1]), Path(sys.argv[2]))
    print(f"{scores.rows:,} rows, AUC {scores.auc:.4f} +- {scores.auc_error:.4f}, NE {scores.ne:.4f}")
