"""Bytes of a log on disk by layout: the effects of row order, encodings, and storing values once.

All arms have the same rows with the same compressor (zstd, level 1) in row groups of 8192 rows:

- time order: as an ordinary writer stores it, with Parquet's default encodings
- time order, encodings: each column with its best encoding
- clustered, default encodings: only with the rows of a session adjacent
- clustered and nested: as `headrace cluster` writes them

The limit is the entropy of the ids in a nested file, drawn uniformly from five million: a lower bound for any encoding
without knowledge of the generator.

    .venv/bin/python benchmarks/dedup_storage.py --log logs/       # a log of yours instead of the generated ones
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import harness
import pyarrow as pa
import pyarrow.parquet as pq

from headrace.logs import Schema, list_files
from headrace.logs.clustering import ClusterConfig, cluster_log
from headrace.logs.encodings import choose_encodings, writer_options
from headrace.logs.footers import iter_plain, open_parquet, read_footer
from headrace.logs.generate import PRESETS, GenerateConfig, generate_logs

GROUP_ROWS = 8192
METRIC = "bytes per row"
PLAIN = "time order"


def main() -> None:
    """Measure generated logs, or a user's log."""
    options = harness.options("dedup_storage", __doc__, log="", rows=100_000)
    report = harness.Report("dedup_storage")
    rows = 20_000 if options.quick else options.rows
    with tempfile.TemporaryDirectory() as scratch:
        if options.log:
            measure(report, Path(options.log).name, Path(options.log), Path(scratch))
        else:
            for name in ("rm1", "mixed", "control"):
                for zipf in (0.0, 1.05):
                    case = f"{name}, ids {'Zipf 1.05' if zipf else 'uniform'}"
                    folder = Path(scratch) / f"{name}-{zipf}"
                    values = {**PRESETS[name], "rows": rows, "zipf": zipf}
                    generate_logs(GenerateConfig.from_dict(values, where=name), folder / "log")
                    measure(report, case, folder / "log", folder, uniform_ids=None if zipf else values["items"])
    report.finish(options)


def measure(report: harness.Report, case: str, log: Path, scratch: Path, *, uniform_ids: int | None = None) -> None:
    """Write a log in all layouts, and add the sizes."""
    schema = Schema.from_yaml(log / "schema.yaml")
    folders = {}
    for layout in ("clustered", "nested"):
        folders[layout] = scratch / layout
        cluster_log(log, folders[layout], schema, ClusterConfig(layout=layout, rows_per_group=GROUP_ROWS))
    sizes = {
        PLAIN: rewrite(log, scratch / "a.parquet", encodings=False),
        "time order, encodings": rewrite(log, scratch / "a.parquet", encodings=True),
        "clustered, default encodings": rewrite(folders["clustered"], scratch / "a.parquet", encodings=False),
        "clustered": num_bytes(folders["clustered"]),
        "nested": num_bytes(folders["nested"]),
    }
    footers = [read_footer(file) for file in list_files(folders["nested"])]
    num_rows = sum(footer.num_rows for footer in footers)
    for arm, size in sizes.items():
        report.add(case, arm, METRIC, "B", [size / num_rows])
    for arm in list(sizes)[1:]:
        report.compare(case, arm, METRIC, against=[PLAIN], lower_is_better=True)
    if uniform_ids is not None:
        elements = sum(
            footer.metadata.row_group(group).column(leaf).num_values
            for footer in footers
            for group in range(footer.metadata.num_row_groups)
            for leaf in range(footer.metadata.num_columns)
            if "list_" in (path := footer.metadata.schema.column(leaf).path) or path.startswith("history")
            if path.endswith(".list.element")
        )
        bits = elements * math.log2(uniform_ids)
        report.limit(case, "entropy of the ids in lists", bits / 8 / num_rows, "B", reached=sizes["nested"] / num_rows)


def num_bytes(folder: Path) -> int:
    """Return the total size of the Parquet files of a log."""
    return sum(file.size_bytes for file in list_files(folder))


def rewrite(log: Path, path: Path, *, encodings: bool) -> int:
    """Write a log's rows in the same order to one file, with default or chosen encodings, and return its size."""
    writer: pq.ParquetWriter | None = None
    held: list[pa.RecordBatch] = []
    for file in list_files(log):
        footer = read_footer(file)
        with open_parquet(footer) as parquet:
            for group in range(footer.metadata.num_row_groups):
                for batch in iter_plain(footer, parquet, group, footer.schema.names, GROUP_ROWS):
                    held.append(batch)
                    if sum(part.num_rows for part in held) >= GROUP_ROWS:
                        writer, held = _write(writer, path, held, encodings)
    if held:
        writer, held = _write(writer, path, held, encodings, last=True)
    assert writer is not None
    writer.close()
    return path.stat().st_size


def _write(
    writer: pq.ParquetWriter | None, path: Path, held: list[pa.RecordBatch], encodings: bool, *, last: bool = False
) -> tuple[pq.ParquetWriter, list[pa.RecordBatch]]:
    rows = pa.concat_batches(held)
    count = rows.num_rows if last else GROUP_ROWS
    group = rows.slice(0, count)
    if writer is None:
        chosen = writer_options(choose_encodings(group)) if encodings else {"compression": "zstd"}
        writer = pq.ParquetWriter(path, group.schema, **chosen)
    writer.write_batch(group, row_group_size=GROUP_ROWS)
    return writer, [rows.slice(count)] if count < rows.num_rows else []


if __name__ == "__main__":
    main()
