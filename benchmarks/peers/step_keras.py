"""The training step in TensorFlow: Keras layers and Adagrad, one `tf.function` per step, one table for all features.

Most public code has one `tf.Variable` per feature; a single table, in which ids are offset by feature, is faster here.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from peers.step_work import DENSE_ADAGRAD, RawBatch, Shape, StepCode

__all__ = ["make"]

LR = 0.01


def make(shape: Shape, *, bf16: bool, jit: bool = False) -> StepCode:
    """Create the model and its optimizers; features must have one id per row."""
    import keras
    import tensorflow as tf

    use_threads(shape.threads)
    keras.utils.set_random_seed(shape.seed)
    keras.config.set_dtype_policy("mixed_bfloat16" if bf16 else "float32")
    num_rows = sum(shape.table_rows)
    scales = np.repeat(np.array(shape.table_rows) ** -0.5, shape.table_rows).astype(np.float32)[:, None]
    rows = tf.Variable(tf.random.uniform((num_rows, shape.embedding_dim), -1, 1) * scales)
    accumulators = tf.Variable(tf.zeros((num_rows,)))
    first = tf.Variable(tf.zeros((num_rows, 1))) if shape.model in ("deepfm", "wide_deep") else None
    first_sums = tf.Variable(tf.zeros((num_rows,)))
    model = build(keras, shape)
    optimizer = keras.optimizers.Adagrad(
        DENSE_ADAGRAD["lr"], initial_accumulator_value=DENSE_ADAGRAD["initial_accumulator_value"], epsilon=1e-10
    )
    optimizer.build(model.trainable_variables)
    tables = [(rows, accumulators)] + ([] if first is None else [(first, first_sums)])

    @tf.function(jit_compile=False)
    def update(table: Any, sums: Any, ids: Any, grads: Any) -> None:
        """Update the rows that occurred with row-wise Adagrad, after merging duplicates."""
        unique, place = tf.unique(ids)
        merged = tf.math.unsorted_segment_sum(grads, place, tf.size(unique))
        total = tf.gather(sums, unique) + tf.reduce_mean(tf.square(merged), 1)
        sums.scatter_update(tf.IndexedSlices(total, unique))
        table.scatter_sub(tf.IndexedSlices(LR * merged / (tf.sqrt(total)[:, None] + 1e-10), unique))

    @tf.function(jit_compile=jit)
    def dense_part(dense: Any, parts: Any, labels: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(parts)
            logits = tf.cast(model([dense, *parts]), tf.float32)
            loss = tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(labels=labels, logits=logits))
        weights = model.trainable_variables
        grads = tape.gradient(loss, [*weights, *parts])
        optimizer.apply_gradients(zip(grads[: len(weights)], weights, strict=True))
        return loss, grads[len(weights) :]

    @tf.function
    def train(dense: Any, ids: Any, labels: Any) -> Any:
        parts = [tf.reshape(tf.gather(table, ids), (-1, shape.num_tables, table.shape[1])) for table, _ in tables]
        loss, grads = dense_part(dense, parts, labels)
        for (table, sums), grad in zip(tables, grads, strict=True):
            update(table, sums, ids, tf.cast(tf.reshape(grad, (-1, table.shape[1])), tf.float32))
        return loss

    def prepare(raw: RawBatch) -> Any:
        ids = (raw.ids.reshape(shape.num_tables, -1).T + shape.first_rows).reshape(-1)
        return tuple(map(tf.constant, (raw.dense, ids.astype(np.int32), raw.labels[:, None])))

    def save(path: str) -> None:
        sparse = {"rows": rows, "accumulators": accumulators} | ({} if first is None else {"first": first})
        tf.train.Checkpoint(model=model, optimizer=optimizer, **sparse).write(path)

    return StepCode(prepare, lambda batch: float(train(*batch)), save)


@lru_cache
def use_threads(num_threads: int) -> None:
    """Set the number of threads, once: TensorFlow cannot change it after its first operation."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(num_threads)
    tf.config.threading.set_inter_op_parallelism_threads(num_threads)


def linear(keras: Any, width: int, activation: str | None = None) -> Any:
    """Create a linear layer with the initial values of the DLRM code, so that all arms learn alike."""
    begin = keras.initializers.RandomNormal(stddev=width**-0.5)
    return keras.layers.Dense(width, activation, kernel_initializer="glorot_normal", bias_initializer=begin)


def build(keras: Any, shape: Shape) -> Any:
    """Build the Keras model that maps dense features and embeddings to logits."""
    layers, ops = keras.layers, keras.ops
    dense = layers.Input((shape.num_dense,))
    emb = layers.Input((shape.num_tables, shape.embedding_dim))

    def mlp(x: Any, widths: tuple[int, ...]) -> Any:
        for width in widths:
            x = linear(keras, width, "relu")(x)
        return x

    if shape.model == "dlrm":
        x = mlp(dense, (*shape.bottom, shape.embedding_dim))
        vectors = layers.Concatenate(1)([layers.Reshape((1, shape.embedding_dim))(x), emb])
        count = shape.num_tables + 1
        pairs = np.flatnonzero(np.tril(np.ones((count, count)), -1))
        dots = ops.take(ops.reshape(ops.matmul(vectors, ops.transpose(vectors, (0, 2, 1))), (-1, count**2)), pairs, 1)
        return keras.Model([dense, emb], linear(keras, 1)(mlp(layers.Concatenate()([x, dots]), shape.top)))
    flat = layers.Concatenate()([dense, layers.Flatten()(emb)])
    if shape.model == "dcnv2":
        x = flat
        for _ in range(3):
            x = flat * linear(keras, flat.shape[1])(x) + x
        return keras.Model([dense, emb], linear(keras, 1)(layers.Concatenate()([x, mlp(flat, shape.top)])))
    first = layers.Input((shape.num_tables, 1))
    logits = linear(keras, 1)(mlp(flat, shape.top)) + linear(keras, 1)(dense) + ops.sum(first, 1)
    if shape.model == "deepfm":
        numbers = layers.Reshape((shape.num_dense, 1))(dense)
        vectors = layers.EinsumDense("bnx,nd->bnd", (shape.num_dense, shape.embedding_dim))
        fields = layers.Concatenate(1)([vectors(numbers), emb])
        squares = ops.square(ops.sum(fields, 1)) - ops.sum(ops.square(fields), 1)
        logits = logits + 0.5 * ops.sum(squares, 1, keepdims=True)
    return keras.Model([dense, emb, first], logits)
