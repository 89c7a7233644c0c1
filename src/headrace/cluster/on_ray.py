"""`train_on_ray`: the trainers and shards of a job as Ray actors, by the same entry point as everywhere."""

from __future__ import annotations

import importlib
import os
import secrets
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headrace.cluster.training import SHARDS_VARIABLE, train_job
from headrace.embeddings.shards.security import TOKEN_VARIABLE, ServerSecurity
from headrace.embeddings.shards.service import ShardServer
from headrace.embeddings.shards.shard import Shard
from headrace.errors import ConfigError, MissingExtra
from headrace.training import JobConfig, RunFolder

__all__ = ["check_fits", "train_on_ray"]

LOOPBACK = "127.0.0.1"


class ShardActor:
    """One shard, for as long as the actor lives."""

    def __init__(self, checkpoints: str, listens_beyond: bool, security: ServerSecurity) -> None:
        host = _address() if listens_beyond else LOOPBACK
        server = ShardServer(Shard(checkpoints=Path(checkpoints)), f"{host}:0", security=security)
        self._server = server
        self._address = f"{host}:{server.port}"

    def address(self) -> str:
        """Where it serves."""
        return self._address


class TrainerActor:
    """One trainer."""

    def meeting_place(self, listens_beyond: bool) -> tuple[str, int]:
        """Address and a free port of this actor's machine, where trainers may meet."""
        host = _address() if listens_beyond else LOOPBACK
        with socket.socket() as probe:
            probe.bind((host, 0))
            return host, int(probe.getsockname()[1])

    def train(self, job: str, environment: dict[str, str], windows: int | None) -> tuple[list[str], int]:
        """Train; returns the names of the windows finished, and the step."""
        os.environ.update(environment)
        _, result = train_job(JobConfig.from_file(job), windows=windows, on_message=print)
        return [window.name for window in result.windows], result.step


def train_on_ray(
    job: Path,
    *,
    trainers: int,
    shards: int,
    windows: int | None = None,
    security: ServerSecurity | None = None,
    trainer_cpus: float = 1.0,
    shard_cpus: float = 1.0,
) -> tuple[list[str], int]:
    """Train a job with Ray actors, on the cluster Ray is connected to (or `RAY_ADDRESS` names), else on this machine.

    All machines must see the job file, the logs and the run's folder under the same paths. On several machines shards
    need a token and TLS, and the job's `cluster` section names the trainers' side of both. A lost actor ends the run;
    started again, it goes on from the newest checkpoint.

    Args:
        job: Job file.
        trainers: Trainer actors.
        shards: Shard actors.
        windows: At most so many; None for all.
        security: Of the shards.
        trainer_cpus: What Ray reserves for a trainer.
        shard_cpus: What Ray reserves for a shard.

    Returns:
        Names of the windows finished, and optimizer steps made by the run so far.

    Raises:
        MissingExtra: Ray is not installed.
        ConfigError: Several trainers without a shard; or several machines without token and TLS; or the actors do not
            fit the CPUs of the cluster that are free.
    """
    ray = _ray()
    if trainers > 1 and shards == 0:
        raise ConfigError(f"shards: given 0 with {trainers} trainers, expected at least one, to hold the embeddings")
    ray.init(ignore_reinit_error=True, log_to_driver=True)
    free = {name: amounts.get("CPU", 0.0) for name, amounts in _free_resources().items()}
    actors = {"shard": (shards, shard_cpus), "trainer": (trainers, trainer_cpus)}
    check_fits(actors, free, float(ray.cluster_resources().get("CPU", 0.0)))
    listens_beyond = sum(bool(node["Alive"]) for node in ray.nodes()) > 1
    environment = {}
    if security is None and not listens_beyond:
        environment[TOKEN_VARIABLE] = secrets.token_urlsafe(32)
        security = ServerSecurity(environment[TOKEN_VARIABLE])
    security = security or ServerSecurity()
    if listens_beyond:
        security.check(_address())
    checkpoints = str(RunFolder(JobConfig.from_file(job).run).checkpoints)
    holder, trainer = ray.remote(num_cpus=shard_cpus)(ShardActor), ray.remote(num_cpus=trainer_cpus)(TrainerActor)
    holders = [holder.remote(checkpoints, listens_beyond, security) for _ in range(shards)]
    workers = [trainer.remote() for _ in range(trainers)]
    try:
        addresses = ray.get([each.address.remote() for each in holders])
        host, port = ray.get(workers[0].meeting_place.remote(listens_beyond))
        shared = environment | {"WORLD_SIZE": str(trainers), "MASTER_ADDR": host, "MASTER_PORT": str(port)}
        if addresses:
            shared[SHARDS_VARIABLE] = ",".join(addresses)
        runs: list[Any] = [
            worker.train.remote(str(job.resolve()), shared | {"RANK": str(rank)}, windows)
            for rank, worker in enumerate(workers)
        ]
        names, step = ray.get(runs)[0]
        return list(names), int(step)
    finally:
        for actor in [*workers, *holders]:
            ray.kill(actor)


def check_fits(actors: Mapping[str, tuple[int, float]], free_cpus: Mapping[str, float], total_cpus: float) -> None:
    """Refuse actors for which Ray would wait without end.

    An actor runs on one machine, so its CPUs must be free there. Largest first, each is put where most CPUs are free.

    Args:
        actors: Their number and the CPUs that each reserves, by kind.
        free_cpus: Of each machine, by any name.
        total_cpus: Of the cluster, free or not.

    Raises:
        ConfigError: They do not fit.
    """
    left = [round(cpus, 4) for cpus in free_cpus.values()] or [0.0]
    each = sorted((cpus for number, cpus in actors.values() for _ in range(number)), reverse=True)
    for cpus in each:
        roomiest = left.index(max(left))
        if left[roomiest] < cpus:
            kinds = ", ".join(f"{number} {kind}{'s' * (number != 1)} of {c:g}" for kind, (number, c) in actors.items())
            machines = f" on {len(free_cpus)} machines" if len(free_cpus) > 1 else ""
            raise ConfigError(
                f"train_on_ray: needs {sum(each):g} CPUs ({kinds}), but the cluster has {sum(free_cpus.values()):g} "
                f"free of {total_cpus:g}{machines}; use fewer actors, or lower trainer_cpus and shard_cpus"
            )
        left[roomiest] = round(left[roomiest] - cpus, 4)


def _free_resources() -> Mapping[str, Mapping[str, float]]:
    """Of each machine that is alive, by its id."""
    state = importlib.import_module("ray._private.state")
    found: Mapping[str, Mapping[str, float]] = state.available_resources_per_node()
    return found


def _ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise MissingExtra("ray", "cluster") from error


def _address() -> str:
    """Of this machine, as Ray knows it."""
    return str(_ray().util.get_node_ip_address())
