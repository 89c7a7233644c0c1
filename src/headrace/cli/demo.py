"""`headrace demo`: runs a complete job on generated logs in about a minute."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from headrace.training import Trainer

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
training:
  batch_size: 512
  dense_optimizer: {{kind: adam, lr: 0.001}}
  publish: {{every_s: 1}}
"""


NUM_CHECKED = 1_000
"""Ids whose rows the replica is asked for."""


def demo(
    out: Annotated[Path, typer.Option(help="Output folder; existing logs in it are reused.")] = Path("demo-run"),
    rows: Annotated[int, typer.Option(min=1000, help="Rows to generate.")] = 300_000,
) -> None:
    """Generate session logs, cluster them by session, and train three windows one after the other; then have a replica
    follow the versions of the model that were published meanwhile, serve the newest one, and write a report.

    Example: headrace demo --out demo-run
    """
    from headrace.cli.demo_serving import serve_once
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
    typer.echo(f"\n{_replicate(trainer, out / 'replica')}")
    typer.echo(f"\n{serve_once(job, logs / 'window=002', out)}")
    typer.echo(f"\njob: {job}\nreport: {write_report(trainer.run_folder.path)}")


def _replicate(trainer: Trainer, folder: Path) -> str:
    """Follow the published versions over a socket, as a replica does; returns a line about what it has."""
    import numpy as np

    from headrace.embeddings import embedding_bags
    from headrace.embeddings.keys import Keys
    from headrace.errors import PublishingError
    from headrace.publishing.client import PublicationClient
    from headrace.publishing.publications import PublicationFolder
    from headrace.publishing.replica import Replica
    from headrace.publishing.server import PublicationServer
    from headrace.training.commits import table_group_name

    shutil.rmtree(folder, ignore_errors=True)
    with PublicationServer(PublicationFolder(trainer.run_folder.publications), "127.0.0.1:0") as server:
        source = PublicationClient(f"127.0.0.1:{server.port}")
        newest = source.wait(0, timeout_s=0.0).newest
        replica = Replica(PublicationFolder(folder), [source], address="demo", on_message=typer.echo)
        replica.note(source.address, newest)
        while replica.tables.served != newest:
            if replica.step() is None and replica.tables.served != newest:
                raise PublishingError(f"replica: serves {replica.tables.served}, expected version {newest}")
        replica.close()
    ids = np.arange(NUM_CHECKED)
    num_equal = 0
    for module, bags in embedding_bags(trainer.components.model).items():
        keys = Keys(np.zeros(len(ids), dtype=np.int32), ids, np.zeros(len(ids), dtype=np.int32))
        assert bags.table_group is not None
        found = replica.tables.read(table_group_name(module), keys)
        num_equal += int((bags.table_group.read(keys) == found).all(axis=1).sum())
    view, num_bytes = replica.tables.view, sum(replica.download.num_bytes.values())
    return (
        f"replica: version {newest} of step {view.about.step:,}, from {num_bytes / 1e6:.1f} MB; "
        f"{num_equal:,} of {len(ids):,} ids read the same bits as in the trainer"
    )
