"""Runs that always end, in a store that is made once; and the plots and tables that go to them."""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "5")  # the default, 10 s, misses short runs
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

import mlflow
from matplotlib.figure import Figure

from fmnist import cache, options
from fmnist.errors import FmnistError
from fmnist.tracking import outbox

LAUNCHER_SECONDS = 15
INTERRUPTED_SECONDS = 5.0  # for which somebody who has typed Ctrl-C waits for a server


def open_store() -> str:
    """Opens the store that MLflow is pointed at, and makes it if it is a SQLite file to be; gives its URI.

    All that use MLflow come through here: processes that make the tables of one file at once break it. A new
    file gets its name when it is complete.

    Raises:
        FmnistError: If the store doesn't answer.
    """
    logging.getLogger("mlflow").setLevel(logging.WARNING)  # not that tables are made, or what is sampled
    uri = str(mlflow.get_tracking_uri())
    name = uri.removeprefix("sqlite:///")
    try:
        if name == uri:
            if uri.startswith(("http://", "https://")):
                outbox.enter(uri)
            mlflow.MlflowClient().search_experiments(max_results=1)
            return uri
        file = Path(name).resolve()
        with cache.lock(file.with_name(f"{file.name}.lock")):
            if not file.exists():
                new = file.with_name(f"{file.name}.new")
                new.unlink(missing_ok=True)  # of a process that was killed
                mlflow.MlflowClient(f"sqlite:///{new}").search_experiments(max_results=1)
                new.replace(file)
            client = mlflow.MlflowClient()
            client.search_experiments(max_results=1)
            experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME")
            if experiment and not client.get_experiment_by_name(experiment):
                client.create_experiment(experiment)
    except (mlflow.MlflowException, OSError, cache.LockError) as error:
        raise FmnistError(f"MLflow at {uri} doesn't answer: {error}. Check MLFLOW_TRACKING_URI") from None
    return f"sqlite:///{file}"


@contextmanager
def run(record: Any) -> Iterator[str]:
    """An MLflow run, the launcher's or a new one, with the settings logged; gives its id.

    Within another run it is nested under that, and is called after the settings' class.

    It ends as FINISHED, as KILLED after Ctrl-C or SIGTERM, as FAILED after any other exception.
    """
    open_store()
    nested = mlflow.active_run() is not None
    with nullcontext() if nested else delivered(), ended():
        try:
            name = type(record).__name__.lower() if nested else None
            active = mlflow.start_run(nested=nested, run_name=name, log_system_metrics=True)
        except mlflow.MlflowException as error:
            where = mlflow.get_tracking_uri()
            raise FmnistError(f"MLflow at {where} takes no run: {error}. Check MLFLOW_TRACKING_URI") from None
        texts = options.texts(record)
        mlflow.log_params({name: text for name, text in texts.items() if name not in active.data.params})
        yield active.info.run_id


@contextmanager
def delivered() -> Iterator[None]:
    """What is logged within is sent to a server, or left as a bundle, before this ends."""
    patience = None
    try:
        yield
    except KeyboardInterrupt:
        patience = INTERRUPTED_SECONDS
        raise
    finally:
        outbox.leave(patience)


@contextmanager
def nested_run(name: str) -> Iterator[str]:
    """A run under the active one; gives its id. It ends as `run` does."""
    with ended():
        yield mlflow.start_run(run_name=name, nested=True).info.run_id


@contextmanager
def ended() -> Iterator[None]:
    """Ends the run that is begun within it, whatever happens, with the status that `run` tells of."""
    status = "FAILED"
    try:
        yield
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        mlflow.end_run(status)


def end_launched_run(run_id: str, status: str) -> None:
    """Ends the launcher's run as KILLED or FINISHED, now and once more after the launcher has had its say.

    MLflow's launcher compares a run's status with numbers though it is text, so it takes no run for ended
    and writes FAILED over any status as soon as the script has exited with another code than 0.
    """
    _open_patiently()
    client = mlflow.MlflowClient()
    client.set_terminated(run_id, status)
    give_up = time.monotonic() + LAUNCHER_SECONDS
    while client.get_run(run_id).info.status == status and time.monotonic() < give_up:
        time.sleep(0.2)
    client.set_terminated(run_id, status)


def log_figure(figure: Figure, path: str) -> None:
    """Logs a plot to the active run."""
    mlflow.log_figure(figure, path, save_kwargs={"dpi": 110})


def value_text(value: Any) -> str:
    """A resolved value as a user would type it."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
