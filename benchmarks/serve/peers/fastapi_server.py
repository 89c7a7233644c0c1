"""FastAPI on uvicorn with uvloop and httptools, orjson, and batches put together by a task of the same event loop.

The model runs in the event loop: on one core, a thread beside it only adds switches.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
import uvicorn
from fastapi import FastAPI, Request, Response

from serve.peers import Settings
from serve.torch_dlrm import TorchScorer

_settings = Settings.from_environment()
_scorer = TorchScorer(_settings.weights)


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    app.state.waiting = asyncio.Queue()
    task = asyncio.create_task(_run_batches(app.state.waiting))
    yield
    task.cancel()


app = FastAPI(lifespan=_lifespan)


@app.post("/score")
async def score(request: Request) -> Response:
    """Score the records of a request."""
    records = orjson.loads(await request.body())["records"]
    answer: asyncio.Future[list[float]] = asyncio.get_running_loop().create_future()
    app.state.waiting.put_nowait((records, answer))
    return Response(orjson.dumps({"probabilities": await answer}), media_type="application/json")


async def _run_batches(waiting: asyncio.Queue[Any]) -> None:
    loop = asyncio.get_running_loop()
    while True:
        batch = [await waiting.get()]
        until = loop.time() + _settings.max_wait_ms / 1000
        while len(batch) < _settings.max_requests:
            if not waiting.empty():
                batch.append(waiting.get_nowait())
                continue
            try:
                batch.append(await asyncio.wait_for(waiting.get(), until - loop.time()))
            except TimeoutError:
                break
        for (_, answer), found in zip(batch, _scorer.many([records for records, _ in batch]), strict=True):
            if not answer.done():
                answer.set_result(found)


if __name__ == "__main__":
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=_settings.port,
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="warning",
        backlog=4096,
    )
