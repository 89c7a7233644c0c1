"""`headrace demo`: runs a complete job on generated logs in about a minute."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

JOB = """\
# Trains on clustered/, window by window. Try: headrace train {job}
run: run
data: {{path: clustered}}
pipeline: {{shuffle: {{num_rows: 50000, seed: 7, by: session}}}}
embeddings:
  default: {{kind: collisionless, num_embeddings: 4096, optimizer: {{kind: rowwise_adagrad, lr: 0.05}}}}
  tables:
    items: {{feature_names: [item, history], pooling: {{history: mean}}, init_scale: 0.05}}
model: {{kind: dlrm, embedding_dim: 16, bottom: [64, 32], top: [128, 64]}}
training: {{batch_size: 512, dense_optimizer: {{kind: adam, lr: 0.001}}}}
"""


def demo(
    out: Annotated[Path, typer.Option(help="Output folder; existing logs in it are reused.")] = Path("demo-run"),
    rows: Annotated[int, typer.Option(min=1000, help="Rows to generate.")] = 300_000,
) -> None:
    """Generate session logs, cluster them by session, train three windows one after the other, and write a report.

    Example: headrace demo --out demo-run
    """
    from headrace.cli.tables import window_table
    from headrace.files import write_text, writing
    from headrace.logs import Schema
    from headrace.logs.clustering import ClusterConfig, cluster_log
    from headrace.logs.generate import GenerateConfig, generate_logs
    from headrace.observe.progress import Progress
    from headrace.observe.report import write_report
    from headrace.paths import local_path
    from headrace.training import JobConfig, Trainer

    out = local_path(out, where="--out")
    logs, clustered, job = out / "logs", out / "clustered", out / "job.yaml"
    if not (logs / "teacher.json").exists():
        shutil.rmtree(logs, ignore_errors=True)
        shutil.rmtree(clustered, ignore_errors=True)
        config = GenerateConfig(rows=rows, windows=3)
        with Progress("generate", total=rows) as progress:
            generate_logs(config, logs, on_rows=progress.advance)
        typer.echo(f"generated {rows:,} rows of sessions in 3 windows: {logs}")
    with Progress("cluster", total=2 * rows) as progress:  # counted when clustered and when verified
        schema = Schema.from_yaml(logs / "schema.yaml")
        done = cluster_log(str(logs), clustered, schema, ClusterConfig(), on_rows=progress.advance)
    with writing(clustered):
        shutil.copy(logs / "teacher.json", clustered)  # best NE does not depend on the order of rows
    if done.windows:
        before, after = (sum(getattr(w, name) for w in done.windows) for name in ("bytes_read", "bytes_written"))
        typer.echo(f"clustered by session: {clustered}, {before / after:.2f}x smaller")
    write_text(job, JOB.format(job=job))
    shutil.rmtree(out / "run", ignore_errors=True)
    trainer = Trainer(JobConfig.from_file(job), on_message=typer.echo)
    result = trainer.run()
    typer.echo(
        "\nEach row was predicted before it was trained on. NE is log loss over the entropy of the label rate;\n"
        "best NE is the score of a model that knows the generator's probabilities.\n"
    )
    typer.echo(window_table(result.windows))
    savings = trainer.components.plan.savings
    typer.echo(
        f"\nduplication factor: each computed feature value serves {savings.values_factor:.2f} rows, "
        f"each id {savings.ids_factor:.2f}"
    )
    typer.echo(f"\njob: {job}\nreport: {write_report(trainer.run_folder.path)}")
