"""The models in TensorFlow: Keras layers, one `tf.function` a step, Keras' Adagrad; one table for all features.

`separate` tables, one `tf.Variable` a feature, are what most code has; one table with moved ids is faster here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from peers.step_work import Shape

__all__ = ["make"]

LR = 0.01


def make(shape: Shape, *, bf16: bool, jit: bool = False) -> tuple[list[Any], Callable[[Any], float]]:
    """Batches, and a step that returns the loss before it; single ids only."""
    import keras
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(shape.threads)
    tf.config.threading.set_inter_op_parallelism_threads(shape.threads)
    keras.utils.set_random_seed(shape.seed)
    keras.config.set_dtype_policy("mixed_bfloat16" if bf16 else "float32")
    num_rows, size = shape.num_tables * shape.num_embeddings, shape.batch_size
    scale = shape.num_embeddings**-0.5
    rows = tf.Variable(tf.random.uniform((num_rows, shape.embedding_dim), -scale, scale))
    accumulators = tf.Variable(tf.zeros((num_rows,)))
    first = tf.Variable(tf.zeros((num_rows, 1))) if shape.model in ("deepfm", "wide_deep") else None
    first_sums = tf.Variable(tf.zeros((num_rows,)))
    model = build(keras, shape)
    optimizer = keras.optimizers.Adagrad(LR, initial_accumulator_value=0.0, epsilon=1e-10)
    optimizer.build(model.trainable_variables)
    tables = [(rows, accumulators)] + ([] if first is None else [(first, first_sums)])

    @tf.function(jit_compile=False)
    def update(table: Any, sums: Any, ids: Any, grads: Any) -> None:
        """Row-wise Adagrad over the rows that occurred, duplicates merged."""
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
        parts = [tf.reshape(tf.gather(table, ids), (size, shape.num_tables, -1)) for table, _ in tables]
        loss, grads = dense_part(dense, parts, labels)
        for (table, sums), grad in zip(tables, grads, strict=True):
            update(table, sums, ids, tf.cast(tf.reshape(grad, (size * shape.num_tables, -1)), tf.float32))
        return loss

    first_rows = np.arange(shape.num_tables)[None] * shape.num_embeddings
    batches = []
    for raw in shape.batches():
        ids = (raw.ids.reshape(shape.num_tables, size).T + first_rows).reshape(-1)
        batches.append(tuple(map(tf.constant, (raw.dense, ids.astype(np.int32), raw.labels[:, None]))))
    return batches, lambda batch: float(train(*batch))


def build(keras: Any, shape: Shape) -> Any:
    """Dense and embedded inputs to logits."""
    layers, ops = keras.layers, keras.ops
    dense = layers.Input((shape.num_dense,))
    emb = layers.Input((shape.num_tables, shape.embedding_dim))

    def mlp(x: Any, widths: tuple[int, ...]) -> Any:
        for width in widths:
            x = layers.Dense(width, "relu")(x)
        return x

    if shape.model == "dlrm":
        x = mlp(dense, (*shape.bottom, shape.embedding_dim))
        vectors = layers.Concatenate(1)([layers.Reshape((1, shape.embedding_dim))(x), emb])
        count = shape.num_tables + 1
        pairs = np.flatnonzero(np.tril(np.ones((count, count)), -1))
        dots = ops.take(ops.reshape(ops.matmul(vectors, ops.transpose(vectors, (0, 2, 1))), (-1, count**2)), pairs, 1)
        return keras.Model([dense, emb], layers.Dense(1)(mlp(layers.Concatenate()([x, dots]), shape.top)))
    flat = layers.Concatenate()([dense, layers.Flatten()(emb)])
    if shape.model == "dcnv2":
        x = flat
        for _ in range(3):
            x = flat * layers.Dense(flat.shape[1])(x) + x
        return keras.Model([dense, emb], layers.Dense(1)(layers.Concatenate()([x, mlp(flat, shape.top)])))
    first = layers.Input((shape.num_tables, 1))
    logits = layers.Dense(1)(mlp(flat, shape.top)) + layers.Dense(1)(dense) + ops.sum(first, 1)
    if shape.model == "deepfm":
        numbers = layers.Reshape((shape.num_dense, 1))(dense)
        vectors = layers.EinsumDense("bnx,nd->bnd", (None, shape.embedding_dim))
        fields = layers.Concatenate(1)([vectors(numbers), emb])
        squares = ops.square(ops.sum(fields, 1)) - ops.sum(ops.square(fields), 1)
        logits = logits + 0.5 * ops.sum(squares, 1, keepdims=True)
    return keras.Model([dense, emb, first], logits)
