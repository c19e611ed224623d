"""Runs that always end, in a store that is made once; and the plots and tables that go to them."""

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "5")  # the default, 10 s, misses short runs
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

import mlflow
from matplotlib.figure import Figure
from mlflow.utils.name_utils import _GENERATOR_NOUNS, _GENERATOR_PREDICATES

from fmnist import cache, options
from fmnist.errors import FmnistError
from fmnist.tracking import outbox, template

LAUNCHER_SECONDS = 15
INTERRUPTED_SECONDS = 5.0  # for which somebody who has typed Ctrl-C waits for a server
_delivering = 0  # how many `delivered` are open, in whatever threads
_counting = threading.Lock()


def open_store(*, keeps: bool = False) -> str:
    """Opens the store that MLflow is pointed at, and makes it if it is a SQLite file to be; gives its URI.

    All that use MLflow come through here: processes that make the tables of one file at once break it. A new
    file gets its name when it is complete, with all that `mlruns_template/` says a store starts with.

    Args:
        keeps: Whether what a server doesn't take, once it has begun to, is kept until `delivered` ends.

    Raises:
        FmnistError: If the store doesn't answer.
    """
    logging.getLogger("mlflow").setLevel(logging.WARNING)  # not that tables are made, or what is sampled
    uri = str(mlflow.get_tracking_uri())
    name = uri.removeprefix("sqlite:///")
    try:
        if name == uri:
            if keeps and uri.startswith(("http://", "https://")):
                outbox.enter(uri)
            mlflow.MlflowClient().search_experiments(max_results=1)
            return uri
        file = Path(name).resolve()
        with cache.lock(file.with_name(f"{file.name}.lock")):
            if not file.exists():
                new = file.with_name(f"{file.name}.new")
                new.unlink(missing_ok=True)  # of a process that was killed
                with _unsynced(new):
                    template.apply(mlflow.MlflowClient(f"sqlite:///{new}"))
                new.replace(file)
            client = mlflow.MlflowClient()
            client.search_experiments(max_results=1)
            experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME")
            if experiment and not client.get_experiment_by_name(experiment):
                template.fill(client, experiment)
    except (mlflow.MlflowException, OSError, cache.LockError) as error:
        if not _delivering:
            outbox.leave()
        raise FmnistError(f"MLflow at {uri} doesn't answer: {error}. Check MLFLOW_TRACKING_URI") from None
    return f"sqlite:///{file}"


@contextmanager
def _unsynced(file: Path) -> Iterator[None]:
    """SQLite does not wait for the disk within it; the file, which nobody knows yet, is synced at the end.

    Making MLflow's tables takes a third of the time.
    """
    from sqlalchemy import Engine, event

    def relax(connection: Any, _: Any) -> None:
        connection.execute("PRAGMA synchronous = OFF")

    event.listen(Engine, "connect", relax)
    try:
        yield
    finally:
        event.remove(Engine, "connect", relax)
    with file.open("rb+") as written:
        os.fsync(written.fileno())


@contextmanager
def run(record: Any, name: str) -> Iterator[str]:
    """An MLflow run, the launcher's or a new one, with the settings logged; gives its id.

    Within another run it is nested under that. It ends as FINISHED, as KILLED after Ctrl-C or SIGTERM, as FAILED
    after any other exception.

    Args:
        record: The settings; their class is the run's entry point.
        name: Of the run, unless a person has named the launcher's.
    """
    open_store(keeps=True)
    nested = mlflow.active_run() is not None
    with delivered(), ended():
        try:
            launched = not nested and "MLFLOW_RUN_ID" in os.environ
            run_name = None if launched else name
            active = mlflow.start_run(nested=nested, run_name=run_name, log_system_metrics=True)
            if launched and _is_generated(active.info.run_name):
                mlflow.MlflowClient().update_run(active.info.run_id, name=name)
        except mlflow.MlflowException as error:
            where = mlflow.get_tracking_uri()
            raise FmnistError(f"MLflow at {where} takes no run: {error}. Check MLFLOW_TRACKING_URI") from None
        mlflow.set_tag("entry_point", type(record).__name__.lower())
        texts = options.texts(record)
        mlflow.log_params({name: text for name, text in texts.items() if name not in active.data.params})
        yield active.info.run_id


@contextmanager
def delivered() -> Iterator[None]:
    """What is logged within is sent to a server, or left as a bundle, as soon as no other such is open."""
    global _delivering
    with _counting:
        _delivering += 1
    seconds = None
    try:
        yield
    except KeyboardInterrupt:
        seconds = INTERRUPTED_SECONDS
        raise
    finally:
        with _counting:
            _delivering -= 1
            if not _delivering:
                outbox.leave(seconds)


@contextmanager
def nested_run(name: str, entry_point: str, *, parent: str | None = None) -> Iterator[str]:
    """A run under the active one, or under another one that is open; gives its id. It ends as `run` does."""
    with ended():
        run_id: str = mlflow.start_run(run_name=name, nested=True, tags={"entry_point": entry_point}).info.run_id
        if parent:  # `start_run` takes the active run alone
            mlflow.set_tag("mlflow.parentRunId", parent)
        yield run_id


def _is_generated(name: str) -> bool:
    """Whether MLflow made up the name of a run, for want of one."""
    predicate, _, rest = name.partition("-")
    noun, _, number = rest.partition("-")
    return predicate in _GENERATOR_PREDICATES and noun in _GENERATOR_NOUNS and number.isdigit()


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


def describe_launched(record: Any, name: str, text: str) -> None:
    """Names and describes the launcher's run, if there is one, of a command whose work is no run of its own."""
    run_id = os.environ.get("MLFLOW_RUN_ID")
    if not run_id:
        return
    client = mlflow.MlflowClient()
    if _is_generated(client.get_run(run_id).info.run_name):
        client.update_run(run_id, name=name)
    client.set_tag(run_id, "entry_point", type(record).__name__.lower())
    client.set_tag(run_id, "mlflow.note.content", text)


def lock_file(purpose: str) -> Path:
    """The file that processes of this host lock which do one thing to the store that MLflow is pointed at."""
    uri = str(mlflow.get_tracking_uri())
    name = uri.removeprefix("sqlite:///")
    if name != uri:
        file = Path(name).resolve()
        return file.with_name(f"{file.name}.{purpose}.lock")
    return cache.folder() / "stores" / f"{cache.digest([uri, purpose])}.lock"


def end_launched_run(run_id: str, status: str) -> None:
    """Ends the launcher's run as KILLED or FINISHED, now and once more after the launcher has had its say.

    MLflow's launcher compares a run's status with numbers though it is text, so it takes no run for ended
    and writes FAILED over any status as soon as the script has exited with another code than 0.
    """
    give_up = time.monotonic() + outbox.DELIVERY_SECONDS
    while True:
        try:
            open_store()
            break
        except FmnistError:  # a server may come back; nobody waits for this
            if time.monotonic() > give_up:
                raise
            time.sleep(1)
    client = mlflow.MlflowClient()
    client.set_terminated(run_id, status)
    give_up = time.monotonic() + LAUNCHER_SECONDS
    while client.get_run(run_id).info.status == status and time.monotonic() < give_up:
        time.sleep(0.2)
    client.set_terminated(run_id, status)


def log_figure(figure: Figure, path: str, *, run_id: str | None = None) -> None:
    """Logs a plot to a run, the active one if none is named."""
    run_id = run_id or mlflow.active_run().info.run_id
    mlflow.MlflowClient().log_figure(run_id, figure, path, save_kwargs={"dpi": 110})
