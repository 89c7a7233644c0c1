"""A function of your own in the pipeline; rows it cannot handle are left out and accounted for.

python examples/own_function.py
"""

from urllib.parse import urlsplit

import pyarrow as pa

from headrace import FeaturePlan, Schema
from headrace.pipeline import RowStats, read_arrow

SCHEMA = Schema.from_dict({"labels": ["click"], "ids": ["user", {"name": "page", "type": "string"}]}, where="SCHEMA")
FEATURES = {"sparse": {"user": [{"hash": 1000}], "site": {"from": "page", "ops": [{"hash": 1000}]}}}
LOG = pa.table(
    {
        "click": [1, 0, 0, 1],
        "user": [7, 7, 8, 9],
        "page": ["https://a.example/1", "https://b.example/", "http://[broken", "https://a.example/2"],
    }
)


def keep_site(rows: pa.RecordBatch) -> pa.RecordBatch:
    """The site instead of the page; `urlsplit` raises on what is no URL."""
    sites = [urlsplit(page).hostname for page in rows.column("page").to_pylist()]
    return rows.set_column(rows.schema.get_field_index("page"), "page", pa.array(sites, pa.string()))


def run(log: pa.Table = LOG) -> tuple[int, RowStats]:
    """Rows that arrived, and what became of all."""
    plan = FeaturePlan.from_config(FEATURES, SCHEMA)
    # Python that works row by row holds the GIL; in a large job it gets worker processes: map(..., executor="process").
    pipe = read_arrow(log, SCHEMA).map(keep_site, bad_rows="drop").batch(2).transform(plan)
    num_rows = 0
    with pipe.open() as batches:
        for batch in batches:
            num_rows += len(batch)
            print(batch.sparse[0].to_lists())
        return num_rows, batches.take_row_stats()


if __name__ == "__main__":
    num_rows, stats = run()
    print(f"{stats.num_read} rows read, {num_rows} used, {stats.num_dropped} dropped")
