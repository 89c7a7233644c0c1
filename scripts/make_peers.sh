#!/bin/sh
# Makes .peers, the environment of the benchmarks: headrace itself and the libraries it is compared with.
# A peer that cannot be installed is named, and the benchmarks skip its arms.
set -eu
cd "$(dirname "$0")/.."

test -x .peers/bin/python || "${PYTHON:-python3}" -m venv .peers
pip() { .peers/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt "$@"; }

# torch first and pinned, so that no peer brings a build of it with CUDA.
pip -e '.[lake,serve]'
# Ray Data imports aiohttp to read several files, but does not ask for it.
for peer in tensorflow-cpu "ray[data]" aiohttp datasets polars torchdata lightgbm torch-rechub rocksdict lmdb redis nats-py zstandard litserve bentoml "ray[serve]" fastapi mosec libcachesim; do
    pip "$peer" || echo "not installed: $peer" >&2
done
# The newest torchrec and the fbgemm with CUDA ask for another torch; these two work with the one above.
for peer in torchrec==1.8.0 fbgemm-gpu-cpu==1.8.0; do
    pip --no-deps "$peer" || echo "not installed: $peer" >&2
done
for peer in tensordict pyre-extensions torchmetrics iopath; do
    pip "$peer" || echo "not installed: $peer" >&2
done
.peers/bin/python -m pip list --disable-pip-version-check 2>/dev/null |
    grep -E -i '^(torch|numpy|pyarrow|numba|tensorflow[-_]cpu|ray|datasets|polars|torchdata|torchrec|fbgemm[-_]gpu[-_]cpu|lightgbm|torch[-_]rechub|rocksdict|lmdb|redis|nats[-_]py|zstandard|litserve|bentoml|fastapi|mosec) '
