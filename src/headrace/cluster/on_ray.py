"""`train_on_ray`: runs the trainers and shards of a job as Ray actors, with the usual entry point."""

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
from headrace.embeddings.storage.choose import choose_storage
from headrace.embeddings.storage.config import StorageConfig
from headrace.errors import ConfigError, MissingExtra
from headrace.training import JobConfig, RunFolder

__all__ = ["check_fits", "train_on_ray"]

LOOPBACK = "127.0.0.1"


class ShardActor:
    """A shard that lives as long as the actor."""

    def __init__(
        self, checkpoints: str, listens_beyond: bool, security: ServerSecurity, storage: StorageConfig
    ) -> None:
        host = _address() if listens_beyond else LOOPBACK
        shard = Shard(checkpoints=Path(checkpoints), make_storage=choose_storage(storage))
        server = ShardServer(shard, f"{host}:0", security=security)
        self._server = server
        self._address = f"{host}:{server.port}"

    def address(self) -> str:
        """The shard's address."""
        return self._address


class TrainerActor:
    """A trainer."""

    def meeting_place(self, listens_beyond: bool) -> tuple[str, int]:
        """Address and a free port of this actor's machine, for the trainers' rendezvous."""
        host = _address() if listens_beyond else LOOPBACK
        with socket.socket() as probe:
            probe.bind((host, 0))
            return host, int(probe.getsockname()[1])

    def train(self, job: str, environment: dict[str, str], windows: int | None) -> tuple[list[str], int]:
        """Train; returns the names of the finished windows, and the step."""
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
    """Train a job with Ray actors, on the connected Ray cluster (or the one in `RAY_ADDRESS`), else on this machine.

    The job file, the logs and the run's folder must have the same paths on all machines. On several machines shards
    need a token and TLS, and the job's `cluster` section configures both for trainers. A lost actor ends the run; start
    it again to resume from the newest checkpoint.

    Args:
        job: Job file.
        trainers: Number of trainer actors.
        shards: Number of shard actors.
        windows: Maximum number of windows; None for all.
        security: Token and TLS settings of the shards.
        trainer_cpus: CPUs that Ray reserves per trainer.
        shard_cpus: CPUs that Ray reserves per shard.

    Returns:
        Names of the finished windows, and the run's total optimizer steps.

    Raises:
        MissingExtra: Ray is not installed.
        ConfigError: There are several trainers without a shard, or several machines without token and TLS, or the
            actors do not fit on the cluster's free CPUs.
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
    config = JobConfig.from_file(job)
    checkpoints, storage = str(RunFolder(config.run).checkpoints), config.embeddings.storage
    holder, trainer = ray.remote(num_cpus=shard_cpus)(ShardActor), ray.remote(num_cpus=trainer_cpus)(TrainerActor)
    holders = [holder.remote(checkpoints, listens_beyond, security, storage) for _ in range(shards)]
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
    """Refuse actors for which Ray would wait forever.

    An actor's CPUs must be free on one machine. Actors are placed largest first, each where most CPUs are free.

    Args:
        actors: Number of actors and CPUs per actor, by kind.
        free_cpus: Free CPUs of each machine, by name.
        total_cpus: All CPUs of the cluster.

    Raises:
        ConfigError: The actors do not fit.
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
    """Free resources of each live machine, by id."""
    state = importlib.import_module("ray._private.state")
    found: Mapping[str, Mapping[str, float]] = state.available_resources_per_node()
    return found


def _ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise MissingExtra("ray", "cluster") from error


def _address() -> str:
    """Address of this machine in the Ray cluster."""
    return str(_ray().util.get_node_ip_address())
