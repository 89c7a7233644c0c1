"""The body of an answer, as JSON or as an Arrow IPC stream."""

from __future__ import annotations

import time

import numpy as np
import orjson
import pyarrow as pa

from headrace.serving.service import Answer

__all__ = ["ARROW", "JSON", "write_arrow", "write_json"]

JSON = b"application/json"
ARROW = b"application/vnd.apache.arrow.stream"


def write_json(answer: Answer, request: str) -> bytes:
    """`{"scores": {"LABEL": [...]}, "version": N, "age_s": S, "request": ID}`; numbers read back as the same bits."""
    columns = {
        name: np.ascontiguousarray(answer.scores[:, place]) for place, name in enumerate(answer.model.label_names)
    }
    return orjson.dumps({"scores": columns, **_about(answer), "request": request}, option=orjson.OPT_SERIALIZE_NUMPY)


def write_arrow(answer: Answer, request: str) -> bytes:
    """A record batch, float32 for each label; the metadata of its schema has `version`, `age_s` and `request`."""
    fields = [pa.field(name, pa.float32()) for name in answer.model.label_names]
    about = {name: str(value) for name, value in {**_about(answer), "request": request}.items()}
    columns = [pa.array(np.ascontiguousarray(column)) for column in answer.scores.T]
    schema = pa.schema(fields, metadata=about)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))
    body: bytes = sink.getvalue().to_pybytes()
    return body


def _about(answer: Answer) -> dict[str, float]:
    about = answer.model.about
    return {"version": about.version, "age_s": round(max(0.0, time.time() - about.cut_at), 3)}
