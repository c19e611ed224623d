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
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import mlflow
import pytest
from conftest import Store, _is_free, tracked_in
from mlflow.entities import LoggedModelOutput

import fmnist.data
import fmnist.models  # noqa: F401  # the names that settings may have
from fmnist import bundle
from fmnist.settings import Train
from fmnist.tracking import bundles, outbox, runs

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
        own = {name: text for name, text in os.environ.items() if not name.startswith("MLFLOW_")}
        environment = own | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # four processes more, for judges
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
        if self._process.poll() is None:
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


class Faulty(BaseHTTPRequestHandler):
    """Hands requests on to the server, but for those of a list: they fail, or are done and get no answer."""

    port: int
    faults: dict[
        str, list[str]
    ]  # by a part of the address: what becomes of the next ones; then they are handed on
    met: Counter[str]

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        part = next((each for each in self.faults if each in self.path and self.command != "GET"), "")
        fault = self.faults[part].pop(0) if part and self.faults[part] else "pass"
        self.met[fault] += 1
        if fault == "fail":
            self.send_response(500)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        with closing(http.client.HTTPConnection("127.0.0.1", self.port)) as there:
            there.request(self.command, self.path, body, dict(self.headers) | {"Host": f"127.0.0.1:{self.port}"})
            answer = there.getresponse()
            content = answer.read()
        if fault == "drop":
            self.close_connection = True
            return
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def faulty(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Faulty]]:
    """MLflow in this process on the server, by a way on which requests are lost; each call tries to deliver."""
    methods = {f"do_{name}": Faulty.answer for name in ("GET", "POST", "PUT", "PATCH", "DELETE")}
    handler = type("Handler", (Faulty,), {"port": server.port, "faults": {}, "met": Counter(), **methods})
    between = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=between.serve_forever, daemon=True).start()
    monkeypatch.setattr(outbox, "RETRY_SECONDS", 0.0)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", server.experiment())
    mlflow.set_tracking_uri(f"http://127.0.0.1:{between.server_port}")
    try:
        yield handler
    finally:
        mlflow.set_tracking_uri(None)
        between.shutdown()
        between.server_close()
        for name in (*outbox.DEFAULTS, outbox.FOLDER_VARIABLE):
            os.environ.pop(name, None)


@pytest.mark.filterwarnings("ignore::fmnist.tracking.outbox.ServerAwayWarning")
def test_what_gets_no_answer_or_fails_for_a_while_is_there_once(server, faulty, tmp_path):
    weights = tmp_path / "weights.bin"
    weights.write_bytes(b"0123456789")
    with runs.run(Train(), "parent") as parent:
        faulty.faults |= {
            "runs/create": ["drop", "fail", "drop"],
            "runs/log-batch": ["drop", "fail"],
            "runs/set-tag": ["drop", "pass", "fail"],
            "runs/update": ["drop", "fail"],
            "runs/outputs": ["drop"],
            "mlflow-artifacts/artifacts": ["drop", "fail"],
            "logged-models": ["drop", "drop", "fail"],
            "registered-models/create": ["drop"],
            "model-versions/create": ["drop", "fail"],
        }
        for number in (1, 2):
            with runs.nested_run(f"child {number}", "train") as child:
                for step in range(2):
                    mlflow.log_metrics({"loss": 1 / (step + 1), "accuracy": step / 10}, step=step)
                    mlflow.log_text(f"step {step}", f"texts/{step}.txt")
                mlflow.log_param("number", number)
                mlflow.set_tag("colour", "green")
                mlflow.log_table({"a": [number]}, "table.json")
                client = mlflow.MlflowClient()
                model = client.create_logged_model(
                    os.environ["MLFLOW_EXPERIMENT_ID"], name="model", source_run_id=child
                )
                client.log_model_artifact(model.model_id, str(weights))
                client.finalize_logged_model(model.model_id, "READY")
                mlflow.log_outputs(models=[LoggedModelOutput(model.model_id, 0)])
                mlflow.register_model(f"models:/{model.model_id}", "faulty")
    told = outbox.told({"run_id": parent, "child": child})
    assert not any(faulty.faults.values())  # all of them have happened
    assert told["tracking"] == "delivered late"
    there = server.client.search_runs([os.environ["MLFLOW_EXPERIMENT_ID"]])
    assert sorted(run.info.run_name for run in there) == ["child 1", "child 2", "parent"]
    assert {run.info.status for run in there} == {"FINISHED"}
    assert told["run_id"] in {run.info.run_id for run in there}
    assert told["child"] in {run.info.run_id for run in there}
    for run in (run for run in there if run.info.run_name != "parent"):
        for key in ("loss", "accuracy"):
            points = server.client.get_metric_history(run.info.run_id, key)
            assert [point.step for point in points] == [0, 1]
        assert run.data.params["number"] == run.info.run_name[-1]
        assert run.data.tags["mlflow.parentRunId"] == told["run_id"]
        assert run.data.tags["colour"] == "green"
        assert server.files(run.info.artifact_uri) == ["table.json", *(f"texts/{n}.txt" for n in range(2))]
        (output,) = run.outputs.model_outputs
        model = server.client.get_logged_model(output.model_id)
        assert (model.source_run_id, model.status.value) == (run.info.run_id, "READY")
        assert server.files(model.artifact_location) == ["weights.bin"]
    assert len(server.client.search_logged_models([os.environ["MLFLOW_EXPERIMENT_ID"]])) == 2
    versions = server.client.search_model_versions("name = 'faulty'")
    assert len({version.source for version in versions}) == len(versions) == 2


KILLED = """
import os, signal, mlflow, fmnist.data, fmnist.models
from fmnist.settings import Train
from fmnist.tracking import runs
with runs.run(Train(), "killed"):
    mlflow.log_metric("loss", 1.0, step=1)
    print("begun", flush=True)
    input()
    mlflow.log_metric("loss", 0.5, step=2)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_command_kept_is_sent_by_the_next_one(server, faulty, monkeypatch):
    environment = server.environment | {name: os.environ[name] for name in ("MLFLOW_EXPERIMENT_ID",)}
    environment["MLFLOW_TRACKING_URI"] = mlflow.get_tracking_uri()
    with subprocess.Popen(
        [sys.executable, "-c", KILLED], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as command:
        assert command.stdout.readline() == "begun\n"
        faulty.faults["/"] = ["fail"] * 1000
        command.communicate("\n")
    assert command.returncode == -signal.SIGKILL
    faulty.faults["/"] = []
    (run,) = server.client.search_runs([os.environ["MLFLOW_EXPERIMENT_ID"]])
    assert len(server.client.get_metric_history(run.info.run_id, "loss")) == 1
    monkeypatch.setattr(outbox, "NEW_SECONDS", -1)
    with pytest.warns(outbox.ServerAwayWarning, match="is back: what was kept has been sent"):
        outbox.enter(mlflow.get_tracking_uri())
    outbox.leave()
    points = server.client.get_metric_history(run.info.run_id, "loss")
    assert [(point.step, point.value) for point in points] == [(1, 1.0), (2, 0.5)]
    assert len(server.client.search_runs([os.environ["MLFLOW_EXPERIMENT_ID"]])) == 1


@pytest.mark.filterwarnings("ignore::fmnist.tracking.outbox.ServerAwayWarning")
def test_a_run_of_another_command_waits_for_the_server_and_a_deleted_one_holds_up_nothing(
    server, faulty, monkeypatch, tmp_path
):
    gone, other = (server.client.create_run(os.environ["MLFLOW_EXPERIMENT_ID"]).info.run_id for _ in range(2))
    monkeypatch.setenv(outbox.SECONDS_VARIABLE, "0")
    monkeypatch.chdir(tmp_path)
    with runs.run(Train(), "away"):
        faulty.faults["/"] = ["fail"] * 1000
        mlflow.log_metric("loss", 1.0)
        client = mlflow.MlflowClient()
        with pytest.raises(outbox.ServerAwayError):
            client.get_metric_history(other, "loss")
        for run_id in (gone, other):
            client.set_tag(run_id, "colour", "green")
    assert len(list(tmp_path.glob("kept-*.zip"))) == 1
    server.client.delete_run(gone)
    faulty.faults["/"] = []
    monkeypatch.setattr(outbox, "NEW_SECONDS", -1)
    with pytest.warns(UserWarning, match="refuses, for good, a set_tag that was kept"):
        outbox.enter(mlflow.get_tracking_uri())
    outbox.leave()
    assert server.client.get_run(other).data.tags["colour"] == "green"


def test_a_server_that_never_comes_back_leaves_a_bundle_that_holds_the_whole_training(server, new_store):
    experiment = server.experiment()
    seconds = {"FMNIST_DELIVERY_SECONDS": "1"}
    done = train(server, experiment, server.kill, seconds, registered_model="kept")
    (line,) = [line for line in done.stderr.splitlines() if "mlflow run . -e import" in line]
    (path,) = server.store.folder.glob("kept-*.zip")
    assert line.endswith(f"-P bundle={path}")
    assert "Traceback" not in done.stderr
    assert done.result["tracking"] == f"kept: {path}"
    assert done.result["registered"] is None
    store = new_store()
    with tracked_in(store), bundle.unpacked(path) as folder:
        ids = bundles.bring(folder, store.client)
    name = server.client.get_experiment(experiment).name
    here = store.client.get_experiment_by_name(name).experiment_id
    (command,) = check_complete(store.client, here, num_seeds=1)
    assert ids[done.result["run_id"]] == command.info.run_id
    (version,) = store.client.search_model_versions("name = 'kept'")
    assert version.tags["dataset"] == "synthetic"


def test_a_command_that_cannot_begin_is_refused_in_one_line(server, tmp_path):
    away = server.environment | {
        "MLFLOW_TRACKING_URI": "http://127.0.0.1:9",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    }
    command = [sys.executable, "-m", "entry_points.preprocess", "--dataset", "synthetic"]
    done = subprocess.run(command, cwd=tmp_path, env=away, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "MLflow at http://127.0.0.1:9 doesn't answer" in done.stderr
