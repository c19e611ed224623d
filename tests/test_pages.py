"""MLflow's pages as a person sees them, in a browser: views, tables, charts and links of a store of this project.

The store is made by the entry points, the pages by `./run ui`'s program.
"""

import json
import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, run_here
from mlflow import MlflowClient
from mlflow.entities import Run

from fmnist.models import MODELS
from fmnist.tracking import colors, pages, template

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ARGUMENTS = ("no-sandbox", "disable-gpu", "disable-sync", "disable-background-networking", "no-first-run")
SMALL = {"dataset": "synthetic", "epochs": 2, "device": "cpu"}
COMMANDS = {
    "mlp": ("train", SMALL | {"model": "mlp", "repeats": 2}),
    "lenet": ("train", SMALL | {"model": "lenet"}),
    "tune": ("tune", SMALL | {"model": "mlp", "trials": 2, "epochs": 1, "best": 1, "repeats": 1}),
    "benchmark": (
        "benchmark",
        {"models": "mlp", "dataset": "synthetic", "images": 2000, "epochs": 2, "warmup": 1, "rounds": 1}
        | {"level": "epoch", "trainers": "compiled", "batch_sizes": 128, "devices": "cpu"},
    ),
}

RECORDED = ("90", "93-missed")


@dataclass(frozen=True)
class Made:
    """A store that commands have made, and what they came to."""

    folder: Path
    uri: str
    environment: dict[str, str]
    results: dict[str, dict[str, Any]]
    said: dict[str, list[str]]
    """The last lines of each on stderr."""

    def experiment(self, name: str) -> Any:
        return MlflowClient(self.uri).get_experiment_by_name(name)

    def runs(self, experiment: str, query: str) -> list[Run]:
        client = MlflowClient(self.uri)
        return list(client.search_runs([self.experiment(experiment).experiment_id], query))


@pytest.fixture(scope="module")
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def made(tmp_path_factory, port) -> Made:
    folder = tmp_path_factory.mktemp("pages")
    uri = f"sqlite:///{folder}/mlflow.db"
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "MLFLOW_TRACKING_URI": uri,
        "MLFLOW_PORT": str(port),
        "FMNIST_RUN": "./run ",
    }
    results, said = {}, {}
    for key, (name, parameters) in COMMANDS.items():
        done = run_here(folder, name, parameters, environment | {"MLFLOW_EXPERIMENT_NAME": name})
        assert done.returncode == 0, done.stderr
        results[key] = json.loads(done.stdout.splitlines()[-1])
        said[key] = done.stderr.splitlines()[-3:]
    for target in RECORDED:
        bundle = ROOT / "mlruns_template" / "reference_runs" / f"speedrun-{target}-cpu.zip"
        assert run_here(folder, "import", {"bundle": bundle}, environment).returncode == 0
    return Made(folder, uri, environment, results, said)


@pytest.fixture(scope="module")
def opened(made, port) -> Iterator[str]:
    """The address that `./run ui` opens in the browser of a person at a terminal; its pages are there too."""
    note = made.folder / "opened"
    browser = made.folder / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {note}.part\nmv {note}.part {note}\n')
    browser.chmod(0o755)
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "fmnist.tracking.ui", "--port", str(port)],
        cwd=made.folder,
        env=made.environment | {"BROWSER": str(browser)},
        stdout=subprocess.DEVNULL,
        stderr=follower,
        start_new_session=True,
    )
    try:
        give_up = time.monotonic() + 120
        while not note.exists():
            assert process.poll() is None
            assert time.monotonic() < give_up
            time.sleep(0.1)
        yield note.read_text().strip()
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=30)
        os.close(leader)
        os.close(follower)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright isn't installed")
    if not CHROMIUM:
        pytest.skip("there is no Chromium")
    with playwright.sync_playwright() as running:
        chromium = running.chromium.launch(executable_path=CHROMIUM, args=[f"--{name}" for name in ARGUMENTS])
        context = chromium.new_context(viewport={"width": 1600, "height": 2000})
        context.set_default_timeout(60_000)
        context.add_init_script(
            # MLflow's own assistant, which opens by itself at the first visit and takes a quarter of the page
            "localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')"
        )
        yield context
        chromium.close()


@pytest.fixture
def look(browser, opened, port) -> Iterator[Callable[[str], Any]]:
    """Opens a path of the pages; gives what has the page's texts."""
    page = browser.new_page()

    def go(path: str) -> Any:
        page.goto(f"http://127.0.0.1:{port}/{path}")
        return page

    yield go
    page.close()


def view_path(made: Made, experiment: str, key: str, *, charts: bool = True) -> str:
    return pages.experiment_path(made.experiment(experiment).experiment_id, view=key, charts=charts)


def sees(page: Any, *texts: str) -> None:
    for text in texts:
        page.get_by_text(text, exact=True).first.wait_for()


def two_digits(run: Run, metric: str) -> str:
    return f"{run.data.metrics[metric]:.2f}"


# What a command says, and what `./run ui` opens:


@pytest.mark.parametrize(
    ("key", "experiment", "view"),
    [
        ("mlp", "train", "compare-models"),
        ("lenet", "train", "compare-models"),
        ("tune", "tune", "search"),
        ("benchmark", "benchmark", "cpu-and-gpu"),
    ],
)
def test_a_command_ends_with_its_run_and_the_view_to_compare_it_in(made, port, key, experiment, view):
    number = made.experiment(experiment).experiment_id
    host = f"http://127.0.0.1:{port}/#/experiments/{number}/runs"
    assert made.said[key] == [
        "Type ./run ui, then look at",
        f"Run:     {host}/{made.results[key]['run_id']}?workflowType=machine_learning",
        f"Compare: {host}?workflowType=machine_learning&viewStateShareKey={view}&compareRunsMode=CHART",
    ]


def test_run_ui_opens_the_view_that_compares_models(made, opened, port):
    assert opened == f"http://127.0.0.1:{port}/{view_path(made, 'train', 'compare-models')}"


def test_a_command_does_not_ask_for_pages_that_are_there(made, opened, port, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", made.uri)
    monkeypatch.setenv("MLFLOW_PORT", str(port))
    first, _ = pages.after(made.results["lenet"]["run_id"])
    assert first.startswith(f"Run:     http://127.0.0.1:{port}/#/experiments/")


@pytest.mark.parametrize(
    ("folder", "store", "start"),
    [
        (".", "sqlite:///mlflow.db", "mlflow ui"),
        ("..", "sqlite:///{folder}/mlflow.db", "mlflow ui --backend-store-uri sqlite:///{folder}/mlflow.db"),
    ],
)
def test_without_the_run_script_a_command_says_how_mlflow_starts_the_pages(
    made, monkeypatch, folder, store, start
):
    monkeypatch.chdir(made.folder / folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.format(folder=made.folder))
    monkeypatch.setenv("MLFLOW_PORT", "1")  # where nothing answers
    monkeypatch.delenv("FMNIST_RUN", raising=False)
    first, *_ = pages.after(made.results["lenet"]["run_id"])
    assert first == f"Type {start.format(folder=made.folder)}, then look at"


def test_nothing_is_said_of_a_run_that_is_not_there(made, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", made.uri)
    assert pages.after(32 * "0") == pages.after("(by hand)") == []


def test_addresses_name_the_tracking_server_without_its_password(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://someone:secret@mlflow.example:8443/team/")
    assert pages.server() == "https://mlflow.example:8443/team"


# Saved views:


def test_the_models_are_compared_in_charts(made, look):
    page = look(view_path(made, "train", "compare-models"))
    sees(page, "What accuracy costs", "Side by side", "How they learned")
    sees(page, "perf/epoch_seconds_median vs. test/accuracy", "num_parameters vs. test/accuracy", "val/accuracy")
    runs = made.runs("train", "metrics.`test/accuracy` > 0")
    assert len(runs) == 3
    for run in runs:
        sees(
            page, run.info.run_name, two_digits(run, "test/accuracy"), f"{run.data.metrics['num_parameters']:.2f}"
        )
    text = page.inner_text("body")
    assert "system/" not in text
    assert "registered_model" not in text


def test_the_models_are_compared_in_a_table(made, look):
    page = look(view_path(made, "train", "compare-models", charts=False))
    sees(page, "model", "recipe", "test/accuracy", "perf/epoch_seconds_median", "num_parameters", "device", "seed")
    runs = made.runs("train", "metrics.`test/accuracy` > 0")
    for run in runs:
        sees(page, run.info.run_name, run.data.tags["recipe"], f"{run.data.metrics['num_parameters']:.0f}")
        sees(page, f"{run.data.metrics['test/accuracy']:.6g}")
    best, *_ = sorted(runs, key=lambda run: -run.data.metrics["test/accuracy"])
    names = page.locator("[col-id='attributes.`Run Name`'] a").all_inner_texts()
    assert names[0] == best.info.run_name


def test_the_seeds_of_a_model_are_one_group(made, look):
    page = look(view_path(made, "train", "seeds"))
    sees(page, "Means of the seeds", "From the worst seed to the best")
    page.get_by_text(re.compile("model: mlp, recipe: .*, device: cpu")).first.wait_for()
    seeds = made.runs("train", "tags.model = 'mlp' and metrics.`test/accuracy` > 0")
    assert len(seeds) == 2
    sees(page, f"{sum(run.data.metrics['test/accuracy'] for run in seeds) / 2:.2f}")


def test_a_search_shows_what_leads_to_accuracy(made, look):
    page = look(view_path(made, "tune", "search"))
    sees(page, "Parallel Coordinates", "recipe.optimizer", "recipe.learning_rate", "recipe.batch_size")
    sees(page, "val/final_accuracy", "num_parameters vs. val/final_accuracy")
    trials = made.runs("tune", "tags.entry_point = 'trial'")
    assert len(trials) >= 2
    for trial in trials:
        sees(page, trial.info.run_name, two_digits(trial, "val/final_accuracy"))


def test_a_benchmark_is_compared_by_cell(made, look):
    page = look(view_path(made, "benchmark", "cpu-and-gpu"))
    (cell,) = made.runs("benchmark", "params.model = 'mlp' and tags.entry_point = 'cell'")
    sees(page, "Training", "epoch_seconds_median", "images_per_second", cell.info.run_name)
    sees(page, two_digits(cell, "epoch_seconds_median"), two_digits(cell, "images_per_second"))


def test_records_are_compared_by_target_also_those_that_missed(made, look):
    runs = made.runs("speedrun", "tags.entry_point = 'speedrun'")
    assert {run.data.params["target"] for run in runs} == {"90", "93"}
    page = look(view_path(made, "speedrun", "records", charts=False))
    sees(page, "target", "speed.verdict", "test_accuracy/mean", "seconds/mean", "reached", "missed")
    sees(page, *(run.info.run_name for run in runs))


def test_an_experiment_begins_with_links_to_its_views(made, look):
    experiment = made.experiment("train")
    page = look(f"#/experiments/{experiment.experiment_id}/runs")  # in the mode that MLflow chooses
    link = page.get_by_role("link", name="Compare models").first
    link.wait_for()
    assert link.get_attribute("href") == view_path(made, "train", "compare-models")


# The other pages:


def test_the_models_page_compares_the_trained_models(made, look):
    number = made.experiment("train").experiment_id
    page = look(f"#/experiments/{number}/models?workflowType=machine_learning&viewMode=CHART")
    sees(page, "lenet", "mlp")
    page.get_by_placeholder("Search metric charts").fill("test/accuracy")
    sees(page, *(two_digits(run, "test/accuracy") for run in made.runs("train", "metrics.`test/accuracy` > 0")))


def test_a_run_has_its_pictures_and_tables_among_its_artifacts(made, look):
    run_id, number = made.results["lenet"]["run_id"], made.experiment("train").experiment_id
    page = look(
        f"#/experiments/{number}/runs/{run_id}/artifacts/learning_curves.png?workflowType=machine_learning"
    )
    sees(page, "learning_curves.png", "model_summary.txt")
    page.wait_for_function("[...document.images].some(image => image.naturalWidth > 400)")


def test_the_registered_model_is_described(made, look):
    page = look("#/models/fashion-mnist?workflowType=machine_learning")
    page.get_by_text("Says which of ten garments").first.wait_for()
    sees(page, "Version 1")


# What makes the views:


@pytest.fixture
def store(made, tmp_path) -> MlflowClient:
    shutil.copy(made.folder / "mlflow.db", tmp_path)
    return MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")


def everything(store: MlflowClient) -> dict[str, Any]:
    experiments = {each.name: each.tags for each in store.search_experiments()}
    return experiments | {
        model.name: (model.description, model.tags) for model in store.search_registered_models()
    }


def test_a_store_has_all_experiments_each_with_its_views(store):
    described = template._template()["experiments"]
    found = {each.name: each.tags for each in store.search_experiments()}
    assert set(found) == set(described)
    for name, tags in found.items():
        assert [f"{pages.VIEW_TAG}{key}" in tags for key in described[name]["views"]].count(False) == 0
        assert all(len(value) < 5000 for value in tags.values())  # MLflow's bound


def test_what_is_there_is_not_written_again(store, monkeypatch):
    before = everything(store)
    monkeypatch.setattr(MlflowClient, "set_experiment_tag", None)
    template.apply(store)
    assert everything(store) == before


def test_what_a_person_changed_or_deleted_stays_and_the_rest_follows_the_file(store, monkeypatch):
    train = store.get_experiment_by_name("train").experiment_id
    store.set_experiment_tag(train, template.NOTE, "mine")
    store.delete_experiment_tag(train, f"{pages.VIEW_TAG}seeds")
    store.update_registered_model("fashion-mnist", "also mine")
    changed = json.loads(json.dumps(template._template()))
    changed["views"]["compare-models"]["name"] = "Another name"
    monkeypatch.setattr(template, "_template", lambda: changed)
    template.apply(store)
    tags = store.get_experiment_by_name("train").tags
    assert tags[template.NOTE] == "mine"
    assert f"{pages.VIEW_TAG}seeds" not in tags
    assert json.loads(tags[f"{pages.VIEW_TAG}compare-models"])["name"] == "Another name"
    assert store.get_registered_model("fashion-mnist").description == "also mine"
    assert "[Another name](#/" in store.get_experiment_by_name("tune").tags[template.NOTE]


def test_an_experiment_of_another_name_gets_all_views(store):
    template.fill(store, "mine")
    tags = store.get_experiment_by_name("mine").tags
    assert {f"{pages.VIEW_TAG}{key}" for key in template._template()["views"]} <= set(tags)


def test_models_have_different_colours_and_seeds_different_shades():
    found = [colors.tag(model, shade)[colors.TAG] for model in MODELS for shade in range(4)]
    assert len(set(found)) == len(found)
    assert all(re.fullmatch("#[0-9a-f]{6}", color) for color in found)
