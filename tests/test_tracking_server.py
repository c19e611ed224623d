"""A tracking server that goes away: nothing is lost, nothing is there twice, and a person is told."""

import http.client
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import mlflow
import pytest
from conftest import ROOT, Store, _is_free

from fmnist import bundle
from fmnist.settings import Train
from fmnist.tracking import bundles, models, outbox, runs

SETTINGS = {"dataset": "synthetic", "model": "mlp", "epochs": 2, "device": "cpu", "resume": ""}


class Server:
    """A real `mlflow server`, with a SQLite store, that keeps artifacts itself."""

    def __init__(self, folder: Path, template: Path) -> None:
        self.store = Store(folder, template)
        self.port = next(port for port in random.sample(range(20_000, 30_000), 100) if _is_free(port))
        self.uri = f"http://127.0.0.1:{self.port}"
        self.client = mlflow.MlflowClient(self.store.uri)
        self.environment = self.store.environment | {"MLFLOW_TRACKING_URI": self.uri}
        self.experiments = 0

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", self.store.uri]
        command += ["--artifacts-destination", str(self.store.folder / "served"), "--workers", "1"]
        command += ["--host", "127.0.0.1", "--port", str(self.port)]
        environment = {name: text for name, text in os.environ.items() if not name.startswith("MLFLOW_")}
        self._process = subprocess.Popen(
            command,
            cwd=self.store.folder,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def wait(self) -> None:
        give_up = time.monotonic() + 60
        while _is_free(self.port):
            assert time.monotonic() < give_up
            time.sleep(0.1)

    def kill(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def experiment(self) -> str:
        """A new experiment, whose artifacts the server keeps."""
        self.experiments += 1
        return self.client.create_experiment(
            f"away {self.experiments}", artifact_location=f"mlflow-artifacts:/away-{self.experiments}"
        )

    def files(self, address: str) -> list[str]:
        """Paths of the artifacts at an address that the server gave."""
        folder = self.store.folder / "served" / address.removeprefix("mlflow-artifacts:/")
        return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def server(migrated_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"), migrated_store)
    server.start()
    server.wait()
    try:
        yield server
    finally:
        server.kill()


def train(
    server: Server,
    experiment: str,
    after_epoch: Callable[[], None],
    environment: dict[str, str] | None = None,
    **settings: object,
) -> SimpleNamespace:
    """Trains through the real command; does something when the first epoch has been told of."""
    pairs = [text for name, value in (SETTINGS | settings).items() for text in ("-P", f"{name}={value}")]
    environment = server.environment | {"MLFLOW_EXPERIMENT_ID": experiment} | (environment or {})
    with subprocess.Popen(
        [sys.executable, "-m", "entry_points.train", *pairs],
        cwd=server.store.folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as command:
        lines = []
        for line in command.stderr:
            if not any("epoch 1/" in each for each in lines) and "epoch 1/" in line:
                after_epoch()
            lines.append(line)
        text = command.stdout.read()
    assert command.returncode == 0, "".join(lines)
    return SimpleNamespace(result=json.loads(text.splitlines()[-1]), stderr="".join(lines))


def check_complete(client: mlflow.MlflowClient, experiment: str, *, num_seeds: int) -> list[mlflow.entities.Run]:
    """All that a training logs is in an experiment exactly once; gives its runs, the command's first."""
    found = client.search_runs([experiment], order_by=["attributes.start_time"])
    assert len(found) == (1 if num_seeds == 1 else 1 + num_seeds)
    trainings = found[-num_seeds:]
    for run in found:
        assert run.info.status == "FINISHED"
    for run in trainings:
        for key in ("train/loss", "val/accuracy", "perf/epoch_seconds"):
            assert [point.step for point in client.get_metric_history(run.info.run_id, key)] == [1, 2]
        assert len(client.get_metric_history(run.info.run_id, "test/accuracy")) == 1
        assert run.data.params["recipe.optimizer"] == "sgd"
        assert run.data.tags["mlflow.note.content"].startswith("**")
        assert len(run.inputs.dataset_inputs) == 1
        assert len(run.outputs.model_outputs) == 1
    logged = client.search_logged_models([experiment])
    assert Counter(each.source_run_id for each in logged) == {run.info.run_id: 1 for run in trainings}
    assert {each.status.value for each in logged} == {"READY"}
    return found


def test_a_server_that_is_killed_and_started_again_during_a_training_gets_all_of_it_once(server, tmp_path):
    def stop_and_start() -> None:
        server.kill()
        server.start()

    experiment = server.experiment()
    done = train(server, experiment, stop_and_start, repeats=2, registered_model="away")
    (command, *seeds) = check_complete(server.client, experiment, num_seeds=2)
    assert done.result["tracking"] == "delivered late"
    assert done.result["run_id"] == command.info.run_id
    assert command.data.params["repeats"] == "2"
    for run in seeds:
        assert run.data.tags["mlflow.parentRunId"] == command.info.run_id
        files = server.files(run.info.artifact_uri)
        assert {"test/confusion_matrix.png", "data/manifest.json", "learning_curves.png"} <= set(files)
    (version,) = server.client.search_model_versions("name = 'away'")
    assert done.result["registered"] == f"away/{version.version}"
    assert "MLmodel" in server.files(
        server.client.get_logged_model(version.source.split("/")[-1]).artifact_location
    )
