"""One training step of four models on a CPU: headrace, PyTorch, torchrec on FBGEMM and Keras, in samples per second.

Batches are ready in memory, without reading or features. Ids follow a Zipf distribution. Rows use Adagrad (row-wise if
the library has it), dense parameters Adagrad. Every arm runs in its own process, which is idle while it is not its
turn. A sample is a run of steps over the same 16 batches. The loss after the same number of steps is shown with the
rate. The machine limit is the roofline of `roofline.py`, measured in the same run.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from contextlib import ExitStack

import harness
from peers.processes import ArmFailed, Process
from peers.step_arms import DLRM_CODE, OURS, PEERS, StepArm
from peers.step_work import NUM_BATCHES, Shape
from roofline import bound_of

from headrace.models.products import has_bf16_products
from headrace.observe.progress import track_progress

METRIC = "samples per second"
LOSS = "loss after the same steps"
GOAL_PEER, GOAL_DLRM_CODE, GOAL_ROOF = 3.0, 6.0, 0.45
STANDARD = "DLRM"
MAX_BYTES_SIDE_BY_SIDE = 1 << 30

MODELS = {
    STANDARD: Shape(),
    "DCN-v2": Shape(model="dcnv2"),
    "DeepFM": Shape(model="deepfm", top=(400, 400, 400)),
    "Wide&Deep": Shape(model="wide_deep", top=(1024, 512, 256)),
}
SWEEP = {
    "batch 512": Shape(batch_size=512),
    "batch 32768": Shape(batch_size=32_768),
    "dimension 8": Shape(embedding_dim=8),
    "dimension 64": Shape(embedding_dim=64),
    "dimension 128": Shape(embedding_dim=128),
    "1 thread": Shape(threads=1),
    "bags of 20 ids on average": Shape(mean_length=20),
    "uniform ids": Shape(zipf=0.0),
    "Zipf 1.4": Shape(zipf=1.4),
    "tables of 8.3 GB": Shape(num_embeddings=5_000_000),
}
SWEEP_PEERS = ("torch, one table", "torchrec, FBGEMM", "Keras")
"""Prefixes of the peers in the sweep, measured in the precision that is faster on this processor."""


def measure(report: harness.Report, case: str, shape: Shape, arms: Sequence[StepArm], seconds: float) -> None:
    """Measure one case: all arms in turn, headrace's ratios, and the roofline."""
    bound = bound_of(shape)
    steps = max(4, min(NUM_BATCHES, NUM_BATCHES * 4096 // shape.batch_size))
    run = one_by_one if shape.table_bytes > MAX_BYTES_SIDE_BY_SIDE else side_by_side
    for name, answers in run(case, shape, arms, steps, seconds).items():
        report.add(case, name, METRIC, "1/s", [shape.batch_size / each["seconds"] for each in answers])
        report.add(case, name, LOSS, "", [answers[2]["loss"]])
    ours = OURS[0].name
    report.compare(case, ours, METRIC)
    reached = report.median(case, ours, METRIC)
    what = (
        f"roofline: {bound.gflops:.1f} GFLOP at {bound.gemm_gflop_per_s:,.0f} GFLOP/s ({bound.dtype}), "
        f"{bound.row_ns:.1f} ns a row, copy {bound.copy_gib_per_s:.1f} GiB/s"
    )
    report.limit(case, what, shape.batch_size / bound.seconds, "samples/s", reached=reached)


def side_by_side(
    case: str, shape: Shape, arms: Sequence[StepArm], steps: int, seconds: float
) -> dict[str, list[dict[str, float]]]:
    """Run all arms in turn, with all processes alive."""
    answers: dict[str, list[dict[str, float]]] = {}
    with ExitStack() as stack:
        processes: dict[str, Process] = {}
        for arm in track_progress(arms, f"{case}: first steps", unit="arms"):
            process = stack.enter_context(Process("peers.step_arms", arm.name, shape.to_json()))
            try:
                process.ask(f"time {steps}")
            except ArmFailed as error:
                print(f"skipped: {arm.name}: {error}", file=sys.stderr)
                continue
            processes[arm.name], answers[arm.name] = process, []

        def turn(name: str) -> None:
            answers[name].append(processes[name].ask(f"time {steps}"))

        turns = {name: lambda name=name: turn(name) for name in processes}
        harness.interleave(turns, rounds=40, seconds=seconds, warm_up=0, what=case)
    return answers


def one_by_one(
    case: str, shape: Shape, arms: Sequence[StepArm], steps: int, seconds: float
) -> dict[str, list[dict[str, float]]]:
    """Run one process at a time, each arm twice, for tables too large to be in memory several times."""
    answers: dict[str, list[dict[str, float]]] = {}
    for arm in track_progress([*arms, *arms], case, unit="arms"):
        try:
            with Process("peers.step_arms", arm.name, shape.to_json()) as process:
                process.ask(f"time {steps}")
                found = [process.ask(f"time {steps}") for _ in range(5)]
                answers.setdefault(arm.name, []).extend(found)
        except ArmFailed as error:
            print(f"skipped: {arm.name}: {error}", file=sys.stderr)
    return answers


def available(arms: Sequence[StepArm], shape: Shape) -> list[StepArm]:
    """Return the arms that are installed and support the shape."""
    found = []
    for arm in arms:
        if importlib.util.find_spec(arm.package) is None:
            print(f"skipped: {arm.name} is not installed", file=sys.stderr)
        elif arm.bags or shape.mean_length == 1:
            found.append(arm)
    return found


def goals(report: harness.Report) -> list[dict[str, object]]:
    """Return the goals of the standard step and whether they are met."""
    ratios = {r.against: r.value for r in report.ratios if r.case == STANDARD and not r.against.startswith("headrace")}
    share = next(limit.share for limit in report.limits if limit.case == STANDARD)
    best = min(ratios, key=lambda name: ratios[name])
    wanted = [
        (f"{STANDARD}: times the best peer ({best})", GOAL_PEER, ratios[best]),
        (f"{STANDARD}: times {DLRM_CODE}", GOAL_DLRM_CODE, ratios[DLRM_CODE]),
        (f"{STANDARD}: share of the roofline", GOAL_ROOF, share),
    ]
    return [{"what": w, "wanted": f"{g:g}", "reached": f"{v:.2f}", "met": v >= g} for w, g, v in wanted]


def main() -> None:
    """Measure all models and the sweep, and write the report."""
    options = harness.options("bench_step", __doc__, case=None)
    report = harness.Report("bench_step")
    use = harness.CpuUse()
    cases = {STANDARD: MODELS[STANDARD]} if options.quick else MODELS | SWEEP
    if options.case is not None:
        cases = {options.case: (MODELS | SWEEP)[options.case]}
    precision = "bf16" if has_bf16_products() else "fp32"
    sweep_peers = [f"{peer}, {precision}" for peer in SWEEP_PEERS]
    for case, shape in cases.items():
        peers = [
            arm for arm in PEERS if arm.name in sweep_peers or (case in MODELS and (arm.quick or not options.quick))
        ]
        if case != STANDARD:
            peers = [arm for arm in peers if not arm.settings.get("compiled")]
        ours = OURS if case in MODELS else OURS[:1]
        seconds = 15.0 if options.quick else 20.0 if case in MODELS else 5.0
        measure(report, case, shape, available((*ours, *peers), shape), seconds)
    report.notes["cpus_of_others"] = round(use.elapsed()[1], 2)
    if any(row.case == STANDARD for row in report.rows):
        report.notes["goals"] = goals(report)
    report.finish(options)


if __name__ == "__main__":
    main()
