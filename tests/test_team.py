"""What compose.yaml starts for a team, started without Docker: PostgreSQL, MLflow's server on it, workers."""

import http.client
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mlflow
import numpy as np
import optuna
import pytest
import yaml
from conftest import ROOT, Postgres, register_foreign
from mlflow import MlflowClient
from test_bundles import everything
from test_main import free_port, wait_for

from fmnist import bundle
from fmnist.tracking import bundles, exports

SERVICES = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
PAGE = (ROOT / "docs" / "from-laptop-to-cluster.md").read_text()
TYPED = dict(re.findall(r"^docker compose run --rm worker ((\w+) .*)$", PAGE, re.MULTILINE))
QUICK = "-P dataset=synthetic -P epochs=1 -P device=cpu"


@dataclass
class Team:
    """The services of compose.yaml on loopback."""

    server: str
    replaced: dict[str, str]
    """Places in the containers, and where they are here."""
    folder: Path

    def here(self, text: str) -> str:
        """A text of compose.yaml, or of the page, as it is here."""
        text = re.sub(r"\$\{\w+(?::-(.*?)|:\?.*?)?\}", r"\1", text).replace("$$", "$")
        return re.sub("|".join(map(re.escape, self.replaced)), lambda found: self.replaced[found[0]], text)

    def environment(self, service: str) -> dict[str, str]:
        own = {name: self.here(text) for name, text in SERVICES[service].get("environment", {}).items()}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)} | own

    def worker(self, typed: str) -> dict:
        """The result of what `docker compose run --rm worker` would run."""
        command = [self.here(word) for word in SERVICES["worker"]["entrypoint"]]
        done = subprocess.run(
            [*command, *shlex.split(self.here(typed))],
            cwd=self.folder,
            env=self.environment("worker"),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def team(postgres: Postgres, tmp_path_factory) -> Iterator[Team]:
    import psycopg

    folder, port = tmp_path_factory.mktemp("team"), free_port()
    config = yaml.safe_load((ROOT / "compose.yaml").read_text())["configs"]["databases"]["content"]
    with psycopg.connect(postgres.storage, autocommit=True) as connection:
        for statement in (config, f"CREATE DATABASE {SERVICES['postgres']['environment']['POSTGRES_DB']}"):
            connection.execute(statement)
    address = postgres.storage.removeprefix("postgresql://fmnist@").removesuffix("/postgres")
    replaced = {
        **{"@postgres:5432/": f"@{address}/", "@postgres/": f"@{address}/"},
        **{"http://mlflow:5000": f"http://127.0.0.1:{port}", "--host=0.0.0.0": "--host=127.0.0.1"},
        **{
            "--port=5000": f"--port={port}",
            "=/artifacts": f"={folder / 'artifacts'}",
            "/cache": str(folder / "cache"),
        },
    }
    made = Team(f"http://127.0.0.1:{port}", replaced, folder)
    log = folder / "server.log"
    with log.open("wb") as file:
        server = subprocess.Popen(
            [made.here(word) for word in SERVICES["mlflow"]["command"]],
            cwd=folder,
            env=made.environment("mlflow"),
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    try:
        wait_for(f"--port {port}", server, log)
        yield made
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@pytest.fixture(scope="module")
def client(team) -> Iterator[MlflowClient]:
    mlflow.set_tracking_uri(team.server)
    yield MlflowClient(team.server)
    mlflow.set_tracking_uri(None)


@pytest.fixture(scope="module")
def trained(team) -> dict:
    return team.worker(f"{next(typed for typed in TYPED if typed.startswith('train'))} {QUICK}")


@pytest.mark.parametrize(
    ("host", "code"), [("mlflow:5000", 200), ("localhost:5000", 200), ("evil.example:5000", 403), ("mlflow", 403)]
)
def test_the_server_answers_only_those_who_call_it_by_its_names(team, host, code):
    connection = http.client.HTTPConnection(team.server.removeprefix("http://"))
    connection.request("GET", "/api/2.0/mlflow/experiments/get?experiment_id=0", headers={"Host": host})
    assert connection.getresponse().status == code
    connection.close()


def test_a_worker_trains_and_the_server_keeps_the_files(team, client, trained):
    run = client.get_run(trained["run_id"])
    assert (run.info.status, client.get_experiment(run.info.experiment_id).name) == ("FINISHED", "train")
    assert run.info.artifact_uri.startswith("mlflow-artifacts:/")
    assert any(
        path == "model_summary.txt"
        for path, _ in bundles.files(lambda path: client.list_artifacts(run.info.run_id, path))
    )
    assert list((team.folder / "artifacts").rglob("model.tflite"))


def test_two_workers_search_together(team, client, trained):
    typed = next(typed for typed in TYPED if typed.startswith("tune"))
    quick = "-P trials=2 -P best=1 -P repeats=1 -P registered_model=none"
    quick += " -P 'space=layers=1, width=64..128, batch_size=256'"
    result = team.worker(f"{typed} {QUICK} {quick}")
    parent = client.get_run(result["run_id"])
    assert client.get_experiment(parent.info.experiment_id).name == "tune"
    runs = client.search_runs([parent.info.experiment_id], "tags.entry_point = 'trial'")
    assert (len(runs) >= 2, parent.data.params["workers"]) == (True, "2")
    study = optuna.load_study(study_name="team", storage=team.here("postgresql+psycopg://fmnist@postgres/studies"))
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 2


def test_the_registered_model_is_served_from_the_server(team, client, trained):
    (line,) = re.findall(r"^mlflow models serve .*$", PAGE, re.MULTILINE)
    port, log = free_port(), team.folder / "serve.log"
    line = line.replace("5001", str(port))
    assert trained["registered"] == "fashion-mnist/1"
    environment = team.environment("worker")
    with log.open("wb") as file:
        process = subprocess.Popen(
            shlex.split(line), cwd=team.folder, env=environment, stdout=file, stderr=file, start_new_session=True
        )
    try:
        wait_for(line, process, log)
        body = json.dumps({"inputs": np.zeros((1, 28, 28)).tolist()}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as answer:
            (found,) = json.load(answer)["predictions"]
        assert sum(found["probabilities"]) == pytest.approx(1, abs=1e-4)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_runs_and_models_go_from_a_laptop_to_the_server_and_back(new_store, team, client, tmp_path):
    laptop, home = new_store(), new_store()
    register_foreign(laptop, "garments", noise=1)
    (old,) = laptop.client.search_runs([laptop.experiment])
    exports.export([old], tmp_path / "there.zip", laptop.client, small=False)
    images = np.random.default_rng(0).uniform(0, 255, (3, 28, 28)).astype(np.float32)
    answers = []

    def bring(name: str, to: MlflowClient) -> dict[str, str]:
        mlflow.set_tracking_uri(to.tracking_uri)
        with bundle.unpacked(tmp_path / name) as folder:
            ids = bundles.bring(folder, to)
            before = everything(to)
            assert bundles.bring(folder, to) == ids
            assert everything(to) == before
        answers.append(mlflow.pyfunc.load_model("models:/garments/1").predict(images))
        return ids

    try:
        there = bring("there.zip", client)
        exports.export([client.get_run(there[old.info.run_id])], tmp_path / "back.zip", client, small=False)
        back = bring("back.zip", home.client)
        before = everything(laptop.client)
        mlflow.set_tracking_uri(laptop.uri)
        with bundle.unpacked(tmp_path / "back.zip") as folder:
            returned = bundles.bring(folder, laptop.client)
        assert everything(laptop.client) == before
    finally:
        mlflow.set_tracking_uri(team.server)
    assert returned[there[old.info.run_id]] == old.info.run_id
    np.testing.assert_array_equal(*answers)
    found = home.client.get_run(back[there[old.info.run_id]])
    assert found.data.params == old.data.params
    assert found.data.tags["bundle.from"] == team.server
