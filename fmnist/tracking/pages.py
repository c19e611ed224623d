"""Addresses of MLflow's pages: what stands under `mlruns_template/` links to, and what a command ends with."""

import os
from http import HTTPStatus
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlencode, urlsplit, urlunsplit
from urllib.request import ProxyHandler, build_opener

import mlflow

VIEW_TAG = "mlflow.sharedViewState."
MODE = {"workflowType": "machine_learning"}  # else MLflow's pages open in the mode for language models
PATIENCE_SECONDS = 2
VIEWS = {  # by what a run is
    **dict.fromkeys(("train", "main", "reproduce"), "compare-models"),
    **dict.fromkeys(("tune", "trial"), "search"),
    **dict.fromkeys(("benchmark", "cell"), "cpu-and-gpu"),
    **dict.fromkeys(("evaluate", "promote"), "evaluations"),
    "predict": "photographs",
    "speedrun": "records",
}


def server() -> str:
    """Where MLflow's pages are: the tracking server, without user and password; this machine for other stores."""
    parts = urlsplit(str(mlflow.get_tracking_uri()))
    if parts.scheme in ("http", "https"):
        return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])).rstrip("/")
    return f"http://127.0.0.1:{os.environ.get('MLFLOW_PORT') or 5000}"


def experiment_path(experiment_id: str, *, view: str | None = None, charts: bool = True) -> str:
    """The path of an experiment's runs: in a saved view, as charts or as a table, or as the browser has it."""
    state = {"viewStateShareKey": view, "compareRunsMode": "CHART" if charts else "TABLE"} if view else {}
    return f"#/experiments/{experiment_id}/runs?{urlencode(MODE | state)}"


def run_path(experiment_id: str, run_id: str) -> str:
    """The path of a run."""
    return f"#/experiments/{experiment_id}/runs/{run_id}?{urlencode(MODE)}"


def after(run_id: str) -> list[str]:
    """Lines that tell where a run is to be seen and compared, and how to start the pages where none answer."""
    client, host = mlflow.MlflowClient(), server()
    try:
        run = client.get_run(run_id)
        experiment = client.get_experiment(run.info.experiment_id)
    except mlflow.MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return []  # deleted, or what was found is the work of a person and of no run
        return [f"Run {run_id} can't be shown now: {error}"]
    key = VIEWS.get(run.data.tags.get("entry_point", ""))
    view = key if f"{VIEW_TAG}{key}" in experiment.tags else None
    lines = [
        f"Run:     {host}/{run_path(experiment.experiment_id, run_id)}",
        f"Compare: {host}/{experiment_path(experiment.experiment_id, view=view)}",
    ]
    if host.startswith("http://127.0.0.1:") and not answers(f"{host}/api/2.0/mlflow/runs/get?run_id={run_id}"):
        return [f"Type {_start()}, then look at", *lines]
    return lines


def _start() -> str:
    """What starts the pages of a store that no server has."""
    uri = str(mlflow.get_tracking_uri())
    file = Path(uri.removeprefix("sqlite:///")).resolve()
    if os.environ.get("FMNIST_RUN"):
        return "./run ui"
    if file == Path("mlflow.db").resolve():
        return "mlflow ui"
    store = (
        f"sqlite:///{file}" if uri.startswith("sqlite:") else '"$MLFLOW_TRACKING_URI"'
    )  # it may hold a password
    return f"mlflow ui --backend-store-uri {store}"


def answers(address: str) -> bool:
    """Whether a server of this machine answers an address, and has what is there."""
    try:
        with build_opener(ProxyHandler({})).open(address, timeout=PATIENCE_SECONDS) as answer:
            return bool(answer.status == HTTPStatus.OK)
    except (URLError, OSError, ValueError):  # ValueError: it speaks another language than HTTP
        return False
