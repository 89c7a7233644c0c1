"""TensorFlow as a peer: a DLRM on Criteo's format with `ParameterServerStrategy`, one worker, one server and `tf.data`.

    python -m schedule.peer_tensorflow ps|worker|chief CLUSTER_JSON CORE WORKLOAD

The chief also drives the steps. Ids are deduplicated before rows are requested, so each row is transferred once. A
process pins itself to its core only after its thread pools have been created: on a single core, TensorFlow creates
pools of one thread, and the first step deadlocks.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
import time
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import tensorflow as tf

from schedule.workloads import Workload, make_workload

MAX_ROWS = 1_000_000


def main() -> None:
    """Serve, or as the chief train as requested until the input ends."""
    role, cluster = sys.argv[1], tf.train.ClusterSpec(json.loads(sys.argv[2]))
    tf.config.threading.set_inter_op_parallelism_threads(8)
    tf.config.threading.set_intra_op_parallelism_threads(1)
    if role != "chief":
        tf.distribute.Server(cluster, job_name=role, task_index=0, protocol="grpc")
        pin(int(sys.argv[3]))
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        sys.stdin.read()
        os._exit(0)  # the server cannot be stopped in another way
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(cluster, rpc_layer="grpc")
    strategy = tf.distribute.experimental.ParameterServerStrategy(resolver)
    coordinator = tf.distribute.coordinator.ClusterCoordinator(strategy)
    step, data = build(strategy, make_workload(sys.argv[4]))
    rows = iter(coordinator.create_per_worker_dataset(data))
    for line in sys.stdin:
        steps = json.loads(line)["steps"]
        for _ in range(5):
            coordinator.schedule(step, args=(rows,))
        coordinator.join()
        pin(int(sys.argv[3]))
        start = time.perf_counter()
        for _ in range(steps):  # synchronous: a step starts when the gradients of the previous one are applied
            coordinator.schedule(step, args=(rows,))
            coordinator.join()
        sys.stdout.write(json.dumps({"step_s": (time.perf_counter() - start) / steps}) + "\n")
        sys.stdout.flush()
    os._exit(0)


def pin(core: int) -> None:
    """Pin all threads of this process, and those they start later, to one core."""
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(int(thread), {core})


def build(strategy: Any, work: Workload) -> tuple[Any, Any]:
    """Return the training step, and the function that creates the dataset."""
    dense_names = [name for name in work.schema["dense"] if name.startswith("i")]
    id_names = work.schema["ids"]
    borders = work.borders
    bucket_names = dense_names if borders else []
    columns = {name: work.table.column(name).to_numpy() for name in ("label", *dense_names, *id_names)}
    sizes = [min(MAX_ROWS, int(columns[name].max()) + 1) for name in id_names] + [len(borders) + 1] * len(bucket_names)
    dim = work.embedding_dim

    def features(row: Any) -> Any:
        dense = [tf.math.log1p(tf.cast(row[name], tf.float32)) for name in dense_names]
        ids = [tf.math.floormod(row[name], sizes[at]) for at, name in enumerate(id_names)]
        ids += [
            tf.cast(tf.raw_ops.Bucketize(input=tf.cast(row[name], tf.float32), boundaries=borders), tf.int64)
            for name in bucket_names
        ]
        return tf.stack(dense, 1), tf.stack(ids, 0), tf.cast(row["label"], tf.float32)

    def data() -> Any:
        rows = tf.data.Dataset.from_tensor_slices(columns).batch(work.batch_size, drop_remainder=True).cache().repeat()
        return rows.map(features, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)

    with strategy.scope():
        tables = [tf.Variable(tf.random.uniform([size, dim], -0.01, 0.01)) for size in sizes]
        accumulators = [tf.Variable(tf.fill([size, dim], 0.1)) for size in sizes]
        pairs = (len(sizes) + 1) * len(sizes) // 2
        bottom = _mlp([len(dense_names), *work.model["bottom"], dim])
        top = _mlp([pairs + dim, *work.model["top"], 1])
    weights = [*bottom, *top]
    lower = [(i, j) for i in range(len(sizes) + 1) for j in range(i)]
    flat = tf.constant([i * (len(sizes) + 1) + j for i, j in lower])

    @tf.function
    def step(rows: Any) -> Any:
        dense, ids, labels = next(rows)
        unique = [tf.unique(column) for column in tf.unstack(ids, num=len(sizes))]
        pulled = [tf.gather(table, keys) for table, (keys, _) in zip(tables, unique, strict=True)]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([*pulled, *weights])
            vectors = [tf.gather(part, place) for part, (_, place) in zip(pulled, unique, strict=True)]
            x = _apply(bottom, dense, last=True)
            stacked = tf.stack([x, *vectors], 1)
            dots = tf.matmul(stacked, stacked, transpose_b=True)
            dots = tf.gather(tf.reshape(dots, [tf.shape(dots)[0], -1]), flat, axis=1)
            logits = _apply(top, tf.concat([x, dots], 1), last=False)[:, 0]
            loss = tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(labels, logits))
        row_grads, grads = tape.gradient(loss, (pulled, weights))
        for table, accumulator, (keys, _), grad in zip(tables, accumulators, unique, row_grads, strict=True):
            tf.raw_ops.ResourceSparseApplyAdagradV2(
                var=table.handle, accum=accumulator.handle, lr=0.01, epsilon=1e-8, grad=grad, indices=keys
            )
        for weight, grad in zip(weights, grads, strict=True):
            weight.assign_sub(0.01 * grad)
        return loss

    return step, data


def _mlp(widths: list[int]) -> list[Any]:
    made = []
    for before, after in itertools.pairwise(widths):
        made += [tf.Variable(tf.random.normal([before, after], stddev=0.05)), tf.Variable(tf.zeros([after]))]
    return made


def _apply(weights: list[Any], x: Any, *, last: bool) -> Any:
    for at in range(0, len(weights), 2):
        x = tf.matmul(x, weights[at]) + weights[at + 1]
        if last or at < len(weights) - 2:
            x = tf.nn.relu(x)
    return x


if __name__ == "__main__":
    main()
