"""A store of MLflow's own, on disk, that stands in for a tracking server that doesn't answer.

What a server was told before is told to it under the ids that the server gave. What is begun while the server is
away has ids of its own, and versions of models have numbers that no server has come to.
"""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Metric, Param, RunStatus, RunTag
from mlflow.store.model_registry.dbmodels.models import SqlModelVersion
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore as RegistryStore
from mlflow.store.tracking.dbmodels.models import SqlExperiment, SqlLoggedModel, SqlRun
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore as TrackingStore
from sqlalchemy import event

from fmnist import cache
from fmnist.tracking.outbox_stores import FIRST_VERSION

_MADE = {
    "create_run": (SqlRun, "run_uuid", "artifact_uri"),
    "create_logged_model": (SqlLoggedModel, "model_id", "artifact_location"),
    "create_model_version": (SqlModelVersion, "version", None),
}


class StandIn:
    """The store in a folder; it is made if it isn't there."""

    def __init__(self, folder: Path) -> None:
        database = folder / "stand-in.db"
        self.uri, self._files = f"sqlite:///{database}", folder / "files"
        if not database.exists():
            made = folder.parent / f"mlflow-{mlflow.__version__}.db"  # to make the tables takes seconds
            with cache.lock(made.with_suffix(".lock")):
                if not made.exists():
                    new = made.with_suffix(".new")
                    new.unlink(missing_ok=True)
                    TrackingStore(f"sqlite:///{new}", str(self._files))
                    new.replace(made)
            shutil.copy(made, database)
        self._tracking = TrackingStore(self.uri, str(self._files))
        self._stores: dict[str, Any] = {"tracking": self._tracking, "registry": RegistryStore(self.uri)}

    def call(self, kind: str, name: str, arguments: dict[str, Any], *, given_id: str = "") -> Any:
        """What a store answers; what it makes has the id, or a version the number, that it was given elsewhere."""
        if name == "create_model_version" and not given_id:
            there = self._stores[kind].search_model_versions(f"name = '{arguments['name']}'", max_results=10_000)
            given_id = str(max([FIRST_VERSION, *(int(each.version) + 1 for each in there)]))
        with _named(*_MADE[name], given_id) if given_id else contextlib.nullcontext():
            return getattr(self._stores[kind], name)(**arguments)

    def know_experiment(self, experiment: Any) -> None:
        """Has an experiment under the id that it has on the server."""
        with self._tracking.ManagedSessionMaker(read_only=False) as session:
            session.merge(
                SqlExperiment(
                    experiment_id=int(experiment.experiment_id),
                    name=experiment.name,
                    artifact_location=str(self._files),
                    lifecycle_stage=experiment.lifecycle_stage,
                    creation_time=experiment.creation_time,
                    last_update_time=experiment.last_update_time,
                )
            )

    def know_run(self, run: Any) -> None:
        """Has a run of the server as it is now, unless it has it already."""
        with contextlib.suppress(mlflow.MlflowException):
            self._tracking.get_run(run.info.run_id)
            return
        info, data = run.info, run.data
        tags = [RunTag(*each) for each in data.tags.items()]
        arguments = {"experiment_id": info.experiment_id, "user_id": info.user_id, "start_time": info.start_time}
        arguments |= {"tags": tags, "run_name": info.run_name}
        self.call("tracking", "create_run", arguments, given_id=info.run_id)
        params = [Param(*each) for each in data.params.items()]
        metrics = [Metric(each.key, each.value, each.timestamp, each.step) for each in data._metric_objs]
        self._tracking.log_batch(info.run_id, metrics, params, [])
        if info.status != "RUNNING":
            self._tracking.update_run_info(
                info.run_id, RunStatus.from_string(info.status), info.end_time, info.run_name
            )


@contextlib.contextmanager
def _named(table: Any, column: str, place: str | None, given_id: str) -> Iterator[None]:
    """The row of a table that is made within has a given id, and its artifacts lie under that."""

    def name(_: Any, __: Any, values: dict[str, Any]) -> None:
        if place:
            values[place] = values[place].replace(values[column], given_id)
        values[column] = given_id if place else int(given_id.rpartition("/")[2])

    event.listen(table, "init", name)
    try:
        yield
    finally:
        event.remove(table, "init", name)
