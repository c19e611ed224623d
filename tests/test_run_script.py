"""`./run`, and what a person at a terminal is told."""

import os
import pty
import shutil
import subprocess
import sys

import yaml
from conftest import ROOT


def test_alone_it_says_what_there_is():
    environment = os.environ | {"PYTHON": sys.executable}
    done = subprocess.run([ROOT / "run"], env=environment, capture_output=True, text=True, check=True)
    entry_points = yaml.safe_load((ROOT / "MLproject").read_text())["entry_points"]
    for word in (*entry_points, "./run ui", "./run test", "./run train -P model=lenet"):
        assert word in done.stdout


def test_another_python_than_it_can_use_is_refused_in_one_line():
    done = subprocess.run(
        [ROOT / "run", "train"], env=os.environ | {"PYTHON": "false"}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "type PYTHON=python3.11 ./run" in done.stderr


def test_an_environment_that_is_not_its_own_is_left_alone(tmp_path):
    for name in ("run", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    mine = tmp_path / ".venv" / "mine"
    mine.mkdir(parents=True)
    environment = os.environ | {"PYTHON": sys.executable}
    done = subprocess.run(
        [tmp_path / "run", "train"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: .venv is there and isn't of ./run's making")
    assert mine.exists()
    assert not (tmp_path / ".venv.lock").exists()


def test_a_command_ends_with_the_addresses_of_its_run_and_of_what_to_compare_it_with(new_store):
    store = new_store()
    leader, follower = pty.openpty()
    environment = store.environment | {"FMNIST_RUN": "./run ", "MLFLOW_PORT": "1"}  # where nothing answers
    command = [sys.executable, "-m", "entry_points.preprocess", "-P", "dataset=synthetic"]
    with subprocess.Popen(
        command, cwd=store.folder, env=environment, stdout=subprocess.PIPE, stderr=follower, text=True
    ) as process:
        os.close(follower)
        result = process.stdout.read()
        said = b""
        while chunk := read(leader):
            said += chunk
    run_id = store.client.search_runs([store.experiment])[0].info.run_id
    assert run_id in result
    path = f"experiments/{store.experiment}/runs"
    assert said.decode().splitlines()[-3:] == [
        "Type ./run ui, then look at",
        f"Run:     http://127.0.0.1:1/#/{path}/{run_id}?workflowType=machine_learning",
        f"Compare: http://127.0.0.1:1/#/{path}?workflowType=machine_learning",
    ]


def read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # all that wrote to it have ended
        return b""
