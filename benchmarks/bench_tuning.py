"""Tuning policies: simulated, calibrated, on emulated CPUs, on real work, and with little memory.

    python benchmarks/bench_tuning.py --quick         # all modes, with fewer and shorter runs
    python benchmarks/bench_tuning.py --simulated     # a virtual clock; see tuning_simulated.py
    python benchmarks/bench_tuning.py --calibration   # the simulator against the engine; see tuning_calibration.py
    python benchmarks/bench_tuning.py --emulated      # the real engine on virtual CPUs; see tuning_emulated.py
    python benchmarks/bench_tuning.py --real          # real work and peers; see tuning_real.py (.peers/bin/python)
    python benchmarks/bench_tuning.py --oom           # real memory in a cgroup; see tuning_oom.py

Without a mode, all modes run. Modes are never mixed in one table. Results of a mode are stored under its own name, for
instance `--emulated --json benchmarks/results/tuning_emulated.json`.
"""

from __future__ import annotations

import harness

harness.single_threaded()

from importlib import import_module  # noqa: E402

MODES = ("simulated", "calibration", "emulated", "real", "oom")


def main() -> None:
    """Run the requested modes, or all."""
    options = harness.options("bench_tuning", __doc__, **dict.fromkeys(MODES, False))
    modes = [mode for mode in MODES if getattr(options, mode)] or list(MODES)
    report = harness.Report(f"tuning_{modes[0]}" if len(modes) == 1 else "bench_tuning")
    for mode in modes:
        import_module(f"tuning_{mode}").run(report, options.quick)
    report.finish(options)


if __name__ == "__main__":
    main()
