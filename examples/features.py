"""Turn rows of a log into tensors with a feature plan, built-in operators and one of your own.

python examples/features.py
"""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import pyarrow as pa
import yaml
from numpy.typing import NDArray

from headrace.features import Column, ColumnOperator, FeaturePlan, Kind, register
from headrace.logs.schema import Schema

SCHEMA = Schema.from_dict(
    {
        "labels": ["click"],
        "dense": ["price"],
        "ids": ["user", "item", {"name": "country", "type": "string"}],
        "id_lists": ["history"],
        "timestamp": {"name": "time", "unit": "s"},
    },
    where="schema",
)

JOB = """
dense:
  price: [fill: 0, clamp: {min: 0}, log1p]
  hour: {from: time, ops: [local_hour: Europe/Berlin, cast: number]}
sparse:
  item: [hash: 1000]
  country: [hash: 50]
  recent: {from: history, ops: [first_x: 3, hash: 1000]}
  latest: {from: history, ops: [last_x: 1, hash: 1000]}
  price_bucket: {from: price, ops: [bucketize: [1, 10, 100]]}
  user_x_item: {from: [user, item], ops: [cartesian, hash: 100000]}
"""


@register
class LastX(ColumnOperator):
    """The last `count` ids of each list: an operator headrace does not bring."""

    name: ClassVar[str] = "last_x"
    shorthand: ClassVar[str | None] = "count"
    takes: ClassVar[tuple[Kind, ...]] = (Kind.IDS,)
    purpose: ClassVar[str] = "the last `count` ids of each list"

    count: int

    def returns(self, kinds: Sequence[Kind]) -> Kind:
        return Kind.IDS

    def apply(self, columns: Sequence[Column], row_ids: NDArray[np.int64]) -> Column:
        column = columns[0]
        assert column.offsets is not None
        lengths = np.minimum(np.diff(column.offsets), self.count)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        # Position of each id kept: counted from the start of its row's last ids.
        within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
        return Column(column.values[np.repeat(column.offsets[1:] - lengths, lengths) + within], offsets)


def main() -> None:
    rows = pa.record_batch(
        {
            "click": pa.array([1, 0, 0]),
            "price": pa.array([19.5, None, 250.0]),
            "user": pa.array([7, 7, 8]),
            "item": pa.array([101, 102, 103]),
            "country": pa.array(["DE", "DE", None]),
            "history": pa.array([[5, 6, 7, 8], [], [9]]),
            "time": pa.array([1_700_000_000, 1_700_003_600, 1_690_000_000]),
        }
    )
    plan = FeaturePlan.from_config(yaml.safe_load(JOB), SCHEMA)
    batch = plan.apply(rows)
    print("dense:", ", ".join(plan.dense_names))
    print(batch.dense)
    print("sparse:")
    for key, ids in batch.sparse[0].to_lists().items():
        print(f"  {key}: {ids}")
    print("labels:", batch.labels.flatten().tolist())


if __name__ == "__main__":
    main()
