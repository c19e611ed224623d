"""The whole way: the docs' walk-through as printed, a pipeline that does nothing twice, and one that fails."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import ROOT, Store, tracked_in

from fmnist.errors import FmnistError
from fmnist.options import parse
from fmnist.settings import Main, Validation

NAME = "fashion-mnist"


def printed_commands() -> list[str]:
    """The commands of the walk-through, as printed."""
    section = (
        (ROOT / "docs" / "serve-a-model.md").read_text().split("## From run to served model")[1].split("\n## ")[0]
    )
    return [line for block in re.findall(r"```sh\n(.*?)```", section, re.DOTALL) for line in block.splitlines()]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@dataclass
class Walk:
    """What came of the printed commands, each under its own text."""

    store: Store
    outputs: dict[str, str]
    server: str
    """Where `mlflow ui` answers."""

    def output(self, part: str) -> str:
        (found,) = [text for command, text in self.outputs.items() if part in command]
        return found

    def result(self, part: str) -> dict:
        return json.loads(self.output(part).splitlines()[-1])


@pytest.fixture(scope="module")
def walk(new_store: Callable[[], Store]) -> Iterator[Walk]:
    """The walk-through, with free ports in place of those that are printed."""
    store = new_store()
    for name in ("MLproject", "conda.yaml", "fmnist", "entry_points"):
        (store.folder / name).symlink_to(ROOT / name)
    ports = {"5000": str(free_port()), "5001": str(free_port())}
    outputs: dict[str, str] = {}
    servers: list[subprocess.Popen[bytes]] = []
    try:
        for printed in printed_commands():
            command = re.sub("|".join(ports), lambda found: ports[found[0]], printed)
            if not command.startswith(("mlflow ui", "mlflow models serve")):
                done = store.run(["bash", "-c", command])
                assert done.returncode == 0, done.stderr
                outputs[printed] = done.stdout
                continue
            with (store.folder / f"{len(servers)}.log").open("wb") as log:
                server = subprocess.Popen(
                    ["bash", "-c", f"exec {command}"],
                    cwd=store.folder,
                    env=store.environment,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            servers.append(server)
            outputs[printed] = wait_for(command, server, Path(log.name))
        yield Walk(store, outputs, f"http://127.0.0.1:{ports['5000']}")
    finally:
        for server in servers:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def wait_for(command: str, server: subprocess.Popen[bytes], log: Path) -> str:
    """The page of a server's root or its health, once it answers."""
    path = "ping" if "serve" in command else ""
    address = f"http://127.0.0.1:{command.split('--port ')[1]}/{path}"
    while server.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=5) as answer:
                return answer.read().decode()
        except OSError:
            time.sleep(0.1)
    raise AssertionError(log.read_text())


def test_the_walk_through_serves_the_better_of_two_models(walk):
    client = walk.store.client
    assert walk.result("-P model=mlp")["registered"] == f"{NAME}/1"
    assert walk.result("-P model=lenet")["registered"] == f"{NAME}/2"
    assert walk.result("-P candidate=")["reason"].startswith(f"better than {NAME}/1: +")
    (answer,) = json.loads(walk.output("curl"))["predictions"]
    probabilities = answer["probabilities"] if isinstance(answer, dict) else answer
    assert sum(probabilities) == pytest.approx(1, abs=1e-4)
    assert "<!doctype html>" in walk.output("mlflow ui").lower()
    assert walk.result("rollback")["champion"] == f"{NAME}/1"
    aliases = client.get_registered_model(NAME).aliases
    assert (str(aliases["champion"]), str(aliases["previous"])) == ("1", "2")


def children(store: Store, run_id: str) -> dict:
    found = store.client.search_runs([store.experiment], f"tags.mlflow.parentRunId = '{run_id}'")
    return {run.data.tags["entry_point"]: run for run in found}


def test_the_pipeline_is_one_run_with_a_run_for_each_step(walk):
    result = walk.result("-P model=mlp")
    parent = walk.store.client.get_run(result["run_id"])
    steps = children(walk.store, result["run_id"])
    assert list(result["steps"]) == ["preprocess", "train", "evaluate", "promote"]
    assert {name: run.info.run_id for name, run in steps.items()} == {
        name: step["run_id"] for name, step in result["steps"].items()
    }
    assert {run.info.status for run in (parent, *steps.values())} == {"FINISHED"}
    assert parent.data.metrics["test/accuracy"] == steps["evaluate"].data.metrics["test/accuracy"]
    assert steps["train"].data.metrics["test/accuracy"] == pytest.approx(
        parent.data.metrics["test/accuracy"], abs=2e-3
    )
    assert (result["promoted"], result["champion"], parent.data.tags["decision"]) == (True, "1", "promoted")


def test_the_same_pipeline_again_does_nothing_again_and_says_so(walk):
    command = next(command for command in printed_commands() if "-P model=mlp" in command)
    first = walk.result("-P model=mlp")
    done = walk.store.here("main", **dict(re.findall(r"-P (\w+)=(\S+)", command)))
    assert done.returncode == 0, done.stderr
    again = json.loads(done.stdout.splitlines()[-1])
    assert [step["done_now"] for step in again["steps"].values()] == [False] * 4
    done_in = {name: step["run_id"] for name, step in first["steps"].items()}
    done_in["promote"] = walk.result("rollback")["run_id"]  # which made it the champion again
    for name, run in children(walk.store, again["run_id"]).items():
        assert run.data.tags["step.done_in"] == again["steps"][name]["run_id"] == done_in[name]
        assert run.data.tags["mlflow.note.content"].startswith("Not done again: ")
    assert len(walk.store.client.search_model_versions(f"name = '{NAME}'")) == 2


def test_a_promotion_that_was_taken_back_is_judged_again(walk):
    from entry_points.main import main

    command = next(command for command in printed_commands() if "-P model=mlp" in command)
    settings = parse(Main, dict(re.findall(r"-P (\w+)=(\S+)", command)))
    client = walk.store.client
    before = client.get_registered_model(NAME).aliases["champion"]
    client.delete_registered_model_alias(NAME, "champion")
    with tracked_in(walk.store):
        result = main(settings)
    assert {name: step["done_now"] for name, step in result["steps"].items()} == {
        "preprocess": False,
        "train": False,
        "evaluate": False,
        "promote": True,
    }
    assert (result["promoted"], result["champion"]) == (True, str(before)) == (True, "1")


def test_a_step_that_fails_fails_the_pipeline_with_its_reason(walk):
    from entry_points.main import main

    reason = "step preprocess: validation: expected fewer than the 12000 training images"
    with tracked_in(walk.store), pytest.raises(FmnistError, match=reason):
        main(Main(dataset="synthetic", model="mlp", validation=Validation(12000)))
    (run,) = walk.store.client.search_runs([walk.store.experiment], "attributes.status = 'FAILED'")
    assert run.data.tags["failed_step"] == "preprocess"
    assert "expected fewer than the 12000" in run.data.tags["mlflow.note.content"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"registered_model": "elsewhere"},  # whose images aren't at hand
            "the candidate was trained on synthetic, the other on fashion-mnist: .* -P registered_model=NAME",
        ),
        ({"registered_model": "first", "validation": Validation(50)}, "expected at least 100 images"),
        ({"validation": Validation(50)}, "expected at least 100 images"),
    ],
)
def test_what_could_not_be_promoted_is_refused_before_anything_is_trained(walk, settings, message):
    from entry_points.main import main

    client = walk.store.client
    with tracked_in(walk.store):
        if not client.search_registered_models("name = 'elsewhere'"):
            client.create_registered_model("elsewhere")
            source = client.get_model_version(NAME, "1").source
            client.create_model_version("elsewhere", source, tags={"dataset": "fashion-mnist"})
            client.set_registered_model_alias("elsewhere", "champion", "1")
        with pytest.raises(FmnistError, match=f"step promote: {message}"):
            main(Main(dataset="synthetic", model="mlp", **settings))
    run, *_ = client.search_runs([walk.store.experiment])
    assert (run.info.status, run.data.tags["failed_step"]) == ("FAILED", "promote")
    assert not client.search_runs([walk.store.experiment], f"tags.`mlflow.parentRunId` = '{run.info.run_id}'")


CROWN = """
from fmnist.settings import Promote
from fmnist.tracking import promotion, runs

with runs.run(Promote(candidate="models:/contended/{number}"), "promote"):
    input("ready\\n")
    told = promotion.crown("contended", "{number}", before=None)
print(told)
"""


def test_of_two_hosts_that_crown_at_once_on_a_server_one_wins_and_the_other_is_told(walk, tmp_path):
    client = walk.store.client
    client.create_registered_model("contended")
    source = client.get_model_version(NAME, "1").source
    with tracked_in(walk.store):
        numbers = [client.create_model_version("contended", source).version for _ in range(2)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    hosts = []
    for number in numbers:  # a cache of its own: they see no common lock
        environment = walk.store.environment | {
            "MLFLOW_TRACKING_URI": walk.server,
            "FMNIST_CACHE_DIR": str(tmp_path / str(number)),
        }
        command = [sys.executable, "-c", CROWN.format(number=number)]
        hosts.append(subprocess.Popen(command, cwd=tmp_path, env=environment, **pipes))
    for host in hosts:
        assert host.stdout.readline() == "ready\n"
    for host in hosts:
        host.stdin.write("\n")
        host.stdin.flush()
    told = [host.communicate()[0].splitlines()[-1] for host in hosts]
    champion = client.get_registered_model("contended").aliases["champion"]
    assert told == ["None" if number == champion else str(champion) for number in numbers]
