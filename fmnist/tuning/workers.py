"""Starts the processes that work on a study: on this machine, or as tasks of a Ray cluster."""

import os
import subprocess
from collections.abc import Callable
from importlib.util import find_spec
from tempfile import TemporaryFile
from typing import Any, Protocol

from fmnist import machine, processes
from fmnist.errors import FmnistError
from fmnist.options import AUTO
from fmnist.settings import Tune

STOP_SECONDS = 5
# What a worker on another machine must have as this process has it.
ENVIRONMENT = ("FMNIST_DATA_DIR", "FMNIST_CACHE_DIR", "MLFLOW_TRACKING_URI", "PGPASSWORD", "PGPASSFILE")


class Worker(Protocol):
    """A process that was started."""

    def error(self) -> str | None:
        """What it ended with, empty if all went well; None while it runs."""

    def stop(self) -> None:
        """Ends it at once."""


class Local:
    """A process of this machine, that runs `python -m MODULE REQUEST`; its last words on stderr are its error."""

    def __init__(self, module: str, request: str) -> None:
        self._ended: str | None = None
        self._messages = TemporaryFile("w+")  # noqa: SIM115  # read, and closed, when it has ended
        # a session of its own: Ctrl-C on a terminal is for the process that leads
        self._process = processes.start(
            module, request, stdout=subprocess.DEVNULL, stderr=self._messages, start_new_session=True
        )

    def error(self) -> str | None:
        code = self._process.poll()
        if code is not None and self._ended is None:
            with self._messages as messages:
                messages.seek(0)
                self._ended = processes.ending(code, messages.read()) if code else ""
        return self._ended

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self.error()


class OnRay:
    """A task of a Ray cluster, that calls a function of one text."""

    def __init__(self, work: Callable[[str], None], request: str, *, num_cpus: int, num_gpus: int) -> None:
        import ray

        environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
        needs = ray.remote(
            num_cpus=num_cpus, num_gpus=num_gpus, max_retries=0, runtime_env={"env_vars": environment}
        )
        self._task = needs(work).remote(request)

    def error(self) -> str | None:
        import ray

        if not ray.wait([self._task], timeout=0)[0]:
            return None
        try:
            ray.get(self._task)
        except ray.exceptions.RayError as error:
            return str(error).strip().splitlines()[-1]
        return ""

    def stop(self) -> None:
        import ray

        ray.cancel(self._task, force=True)
        ray.wait([self._task], timeout=STOP_SECONDS)


def check(settings: Tune) -> None:
    """Checks that a launcher is installed.

    Raises:
        FmnistError: If it isn't.
    """
    if settings.launcher == "ray" and find_spec("ray") is None:
        raise FmnistError("launcher=ray: Ray isn't installed; type: pip install '.[ray]'")


def connect(settings: Tune) -> None:
    """Joins the Ray cluster that is to run the workers, if there is to be one.

    Raises:
        FmnistError: If there is none at the address, or its machines share no storage.
    """
    if settings.launcher != "ray":
        return
    import ray

    packages: list[Any] = [str(processes.ROOT / name) for name in ("fmnist", "entry_points")]
    try:
        ray.init(
            address=settings.ray_address,
            runtime_env={"py_modules": packages},
            log_to_driver=False,
            logging_level="ERROR",
        )
    except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
        raise FmnistError(
            f"ray_address: no Ray cluster answers at {settings.ray_address}: {error}. Type: ray start --head"
        ) from None
    if settings.device == "gpu" and not ray.cluster_resources().get("GPU"):
        raise FmnistError("device=gpu: no node of the Ray cluster has a GPU; type -P device=cpu")
    hosts = {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    if len(hosts) > 1 and settings.storage == AUTO:
        raise FmnistError(
            f"storage=auto is a file of this machine, and the cluster has {len(hosts)}; "
            "type -P storage=postgresql://user@host/database"
        )


def start(settings: Tune, num_threads: int, work: Callable[[str], None], request: str) -> Worker:
    """Starts a worker that does what the entry point `work` does with a request."""
    if settings.launcher == "ray":
        return OnRay(work, request, num_cpus=num_threads, num_gpus=int(settings.device == "gpu"))
    return Local(work.__module__, request)


def num_threads(settings: Tune) -> int:
    """Threads of the CPU for each worker: its share of this machine, or of the smallest node of the cluster."""
    if settings.launcher == "local":
        return max(machine.num_threads() // settings.workers, 1)
    import ray

    nodes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    return max(min(sum(nodes) // settings.workers, min(filter(None, nodes))), 1)
