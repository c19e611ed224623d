"""`./run ui`: MLflow's pages on the store, and a browser on the view that compares models.

The options of `mlflow ui` go through to it.
"""

import os
import sys
import time
import webbrowser
from threading import Thread

import mlflow
from mlflow.cli import cli

from fmnist.tracking import pages, runs

GIVE_UP_SECONDS = 60
FIRST, VIEW = "train", "compare-models"


def main(arguments: list[str]) -> None:
    """Starts MLflow's pages and stays with them; where they are there already, opens those."""
    # One worker and no queue of jobs, which only MLflow's side for language models uses: it answers sooner.
    for name, value in {"MLFLOW_WORKERS": "1", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}.items():
        os.environ.setdefault(name, value)
    command = cli.commands["server"]
    given = command.make_context("ui", list(arguments), resilient_parsing=True).params
    if given["backend_store_uri"]:
        mlflow.set_tracking_uri(given["backend_store_uri"])
    store = runs.open_store()
    os.environ["MLFLOW_PORT"] = str(given["port"])
    server = pages.server()
    client = mlflow.MlflowClient()
    first = client.get_experiment_by_name(FIRST) or client.search_experiments(max_results=1)[0]
    view = VIEW if f"{pages.VIEW_TAG}{VIEW}" in first.tags else None
    address = f"{server}/{pages.experiment_path(first.experiment_id, view=view)}"
    probe = f"{server}/api/2.0/mlflow/experiments/get?experiment_id={first.experiment_id}"
    if store.startswith("http") or pages.answers(probe):
        return _show(address)
    os.environ["MLFLOW_BACKEND_STORE_URI"] = store
    Thread(target=_show_when, args=(probe, address), daemon=True).start()
    command.main(arguments, prog_name="mlflow ui")
    return None


def _show_when(probe: str, address: str) -> None:
    """Shows a page as soon as the server answers."""
    give_up = time.monotonic() + GIVE_UP_SECONDS
    while time.monotonic() < give_up:
        if pages.answers(probe):
            return _show(address)
        time.sleep(0.2)
    return None


def _show(address: str) -> None:
    """Prints an address, and opens it where a person sits before a screen."""
    print(f"Pages: {address}", file=sys.stderr)
    has_screen = sys.platform in ("darwin", "win32") or any(
        os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")
    )
    if has_screen and sys.stderr.isatty():
        webbrowser.open(address)


if __name__ == "__main__":
    main(sys.argv[1:])
