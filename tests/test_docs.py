"""Every command that the README and the pages show is so: what it names exists, and it runs.

What would take long, or needs what isn't here, is replaced by `SCALED`; commands that are the same after that run
once. `ELSEWHERE` says why others are not run here. A command that no rule covers fails a test.
"""

import dataclasses
import json
import os
import re
import shlex
import signal
import subprocess
from collections.abc import Iterator, Mapping

import numpy as np
import pytest
from conftest import ROOT, Store, tracked_in
from test_main import free_port, wait_for
from test_settings import ENTRY_POINTS

from fmnist import options, training
from fmnist.registry import DATASETS, MODELS
from fmnist.settings import Train, Tune
from fmnist.tuning import trials

FLAGS = re.DOTALL | re.MULTILINE
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINES = {
    line.strip(): page.name
    for page in PAGES
    for block in re.findall(r"^```sh\n(.*?)^```", page.read_text(), FLAGS)
    for line in block.replace("\\\n", " ").splitlines()
}
QUICK = {"dataset": "synthetic", "data_dir": "", "model": "mlp", "epochs": "1", "device": "cpu"}
SCALED = {  # in place of what is given or left out
    "main": QUICK | {"registered_model": "fashion-mnist"},
    "preprocess": {"dataset": "synthetic", "data_dir": "", "validation": "5000"},
    "train": {
        **QUICK,
        **{"validation": "5000", "precision": "float32", "augment": "none", "patience": "0", "hyper": ""},
        **{
            "tensorboard": "true",
            "resume": "auto",
            "repeats": "2",
            "batch_size": "256",
        },  # for all: fewer trainings
        **{"start_from": "models:/fashion-mnist@champion", "registered_model": "wardrobe"},
    },
    "benchmark": {
        **{"dataset": "synthetic", "data_dir": "", "models": "mlp", "devices": "cpu", "images": "512"},
        **{"epochs": "1", "warmup": "1", "rounds": "1", "trainers": "compiled", "precisions": "float32"},
        **{"batch_sizes": "auto", "widths": "1", "level": "epoch"},
    },
    "speedrun": {
        **{"dataset": "synthetic", "data_dir": "", "device": "cpu", "target": "90", "seeds": "1", "seed": "0"},
        **{"price_per_hour": "0.5", "registered_model": "none"},
    },
    "tune": {
        **QUICK,
        **{"trials": "1", "workers": "1", "best": "1", "repeats": "1", "study": "docs", "storage": "auto"},
        **{"seed": "0", "sampler": "tpe", "pruner": "auto", "space": "width=64..128, layers=1, batch_size=256"},
    },
    "evaluate": {},
    "predict": {"images": "test:0,1,2", "data_dir": ""},  # photos are answered in tests/test_predict.py
    "promote": {},
    "reproduce": {"repeats": "1"},
    "report": {"experiment": "", "runs": "", "to": "report.html"},
    "export": {"runs": "RUN_ID"},
    "import": {},
    "init": {"bundles": str(ROOT / "mlruns_template" / "reference_runs")},
}
IN_SHELL = ("python -c ", "curl ", "mlflow models predict ", "mlflow models generate-dockerfile ")  # in this order
SERVE = r"mlflow models serve -m models:/fashion-mnist(/1|@champion) --env-manager local( --port \d+)? *(#.*)?$"
ELSEWHERE = {  # what is not run here, and why
    r"\./run ui": "tests/test_pages.py opens MLflow's pages in a browser",
    r"mlflow ui ": "tests/test_main.py starts it, as serve-a-model.md prints it",
    r"pip install ": "it needs a package index",
    r"docker compose up ": "it needs Docker; tests/test_team.py starts what compose.yaml says without it",
    r"(export|unset) MLFLOW_TRACKING_URI": "tests/test_team.py names a team's server so",
    r"optuna-dashboard ": "tests/tuning/test_studies.py opens studies at such addresses",
    r"mlflow models serve .*--env-manager uv": "it makes an environment, from a package index",
    r"(\./run|python -m|mlflow run \. -e) (entry_points\.)?doctor": "tests/test_doctor.py runs it",
    r"(\./run|mlflow run \. -e) demo": "tests/test_demo.py opens the page in a browser",
    r"mlflow run \. -e benchmark .*torch": "tests/benchmark/test_benchmark_peers.py does, where PyTorch is",
    r"(\./run )?python tests/\w+\.py$": "it measures for minutes",
}


def entry_point(line: str) -> tuple[str, dict[str, str]] | None:
    """The entry point that a command starts, and the parameters that it gives; None if it starts none."""
    words = shlex.split(line, comments=True)
    if words[:3] == ["mlflow", "run", "."]:
        name = words[words.index("-e") + 1] if "-e" in words else "main"
    elif words[0] == "./run" and words[1] in ENTRY_POINTS:
        name = words[1]
    elif words[:2] == ["python", "-m"] and words[2].startswith("entry_points."):
        name = words[2].removeprefix("entry_points.")
    elif words[:5] == ["docker", "compose", "run", "--rm", "worker"]:
        name = words[5]
    else:
        return None
    pairs = [words[place + 1].partition("=") for place, word in enumerate(words) if word == "-P"]
    return name, {key: value for key, _, value in pairs}


def scaled(name: str, given: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """The parameters to run with, but for those that are the default."""
    defaults = {(field.name, options.default_text(field)) for field in dataclasses.fields(ENTRY_POINTS[name])}
    return tuple(sorted(set((given | SCALED[name]).items()) - defaults))


TYPED = {line: found for line in LINES if (found := entry_point(line))}
TO_RUN = {
    (name, scaled(name, given)): line
    for line, (name, given) in TYPED.items()
    if not any(re.match(rule, line) for rule in ELSEWHERE)
}
IN_ORDER = sorted(TO_RUN, key=lambda each: list(SCALED).index(each[0]))


@pytest.fixture(autouse=True)
def models_and_datasets_that_the_pages_add(monkeypatch):
    """What tests/test_contributing.py adds and trains."""
    monkeypatch.setitem(MODELS._entries, "patches", MODELS["mlp"])
    monkeypatch.setitem(DATASETS._entries, "shades", DATASETS["synthetic"])


@pytest.mark.parametrize("line", TYPED)
def test_a_command_names_parameters_and_values_that_exist(line):
    name, given = TYPED[line]
    settings = options.parse(ENTRY_POINTS[name], given)
    if isinstance(settings, Train):
        training.plan(settings)
    elif isinstance(settings, Tune):
        trials.plan(settings)


def test_a_rule_covers_every_command():
    others = [line for line in LINES if line not in TYPED]
    rules = [*ELSEWHERE, *IN_SHELL, SERVE]
    assert [line for line in others if sum(bool(re.match(rule, line)) for rule in rules) != 1] == []


@pytest.fixture(scope="module")
def store(new_store) -> Iterator[Store]:
    """A store after `main`: with a champion, four more versions, and a previous champion to go back to."""
    made = new_store()
    with tracked_in(made):
        made.here("main", **dict(scaled("main", {})))
        first = made.client.get_model_version("fashion-mnist", "1")
        for _ in range(4):
            made.client.create_model_version("fashion-mnist", first.source, first.run_id, first.tags)
        made.client.set_registered_model_alias("fashion-mnist", "previous", "2")
        yield made


@pytest.mark.parametrize(("name", "parameters"), IN_ORDER, ids=map(TO_RUN.get, IN_ORDER))
def test_an_entry_points_command_runs(store, name, parameters):
    (trained,) = store.client.search_runs([store.experiment], "tags.entry_point = 'train'", max_results=1)
    done = store.here(name, **{key: value.replace("RUN_ID", trained.info.run_id) for key, value in parameters})
    assert done.returncode in (0, 3), done.stderr  # 3: decided against what was asked for
    assert json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def port(store) -> Iterator[str]:
    """Of a server, as the pages start it."""
    port, log = free_port(), store.folder / "server.log"
    command = f"mlflow models serve -m models:/fashion-mnist@champion --env-manager local --port {port}"
    with log.open("wb") as file:
        process = subprocess.Popen(
            shlex.split(command),
            cwd=store.folder,
            env=store.environment,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    try:
        wait_for(command, process, log)
        yield str(port)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_commands_of_the_shell_run_beside_a_server_that_the_pages_start(store, port):
    place = {line: [bool(re.match(rule, line)) for rule in IN_SHELL] for line in LINES}
    lines = sorted((line for line in LINES if any(place[line])), key=lambda line: place[line].index(True))
    for line in {re.sub(r"localhost:\d+", f"localhost:{port}", line): None for line in lines}:
        done = store.run(["bash", "-c", line])
        assert done.returncode == 0, done.stderr
        if "predict" in line or line.startswith("curl"):
            assert json.loads(done.stdout)["predictions"][0]["probabilities"]


def test_python_in_the_pages_runs(store):
    import mlflow

    blocks = [block for page in PAGES for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), FLAGS)]
    for block in blocks:
        if "spark" not in block:  # Spark isn't here
            exec(block, {"mlflow": mlflow, "images": np.zeros((2, 28, 28), np.uint8)})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\((?!http)([^)#\s]*)(#[^)]*)?\)", page.read_text()):
        file = page.parent / target if target else page
        assert file.exists(), target
        if anchor:
            heads = re.findall(r"^#+ (.*)", file.read_text(), re.MULTILINE)
            assert anchor[1:] in {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}, anchor


def test_the_readme_is_short_and_the_index_has_every_page():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
    index = (ROOT / "docs" / "README.md").read_text()
    assert [page.name for page in PAGES if f"({page.name})" not in index and page.name != "README.md"] == []
