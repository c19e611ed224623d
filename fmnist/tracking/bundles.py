"""Runs out of a store into a bundle, and into any store: SQLite, PostgreSQL, a server.

What a bundle is, `fmnist.bundle` says.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlflow
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModelInput,
    LoggedModelOutput,
    Metric,
    Param,
    RunTag,
)

from fmnist.bundle import Record, finite, read
from fmnist.errors import FmnistError
from fmnist.tracking import template

NUM_METRICS, NUM_PARAMS, NUM_TAGS = 1000, 100, 100  # that MLflow takes in a batch
SERVERS_OWN = {"mlflow.runName", "mlflow.modelVersions", "mlflow.parentRunId"}
"""Tags that follow from what else is brought."""
JOURNEY = {"bundle.run", "bundle.model", "bundle.version", "bundle.made", "bundle.from", "bundle.sha256"}
"""Tags that tell of this bundle. The first three hold the first id of all, in the store where it was made."""
REFERENCE = re.compile(
    r"https?://\S+|experiments/\w+/(runs|models)/((?:m-)?[0-9a-f]{32})\b|(?<![0-9a-f])((?:m-)?[0-9a-f]{32})(?![0-9a-f])"
)
"""An address of some server, which is left alone; a run's page in any; an id of a run or a model."""


@dataclass
class Tally:
    """What a bundle came to in a store."""

    added: Counter[str] = field(default_factory=Counter)
    there: Counter[str] = field(default_factory=Counter)
    """By kind: runs, models, versions, files."""
    versions: dict[str, str] = field(default_factory=dict)
    """`NAME/NUMBER` in the bundle: `NAME/NUMBER` in the store."""
    kept_aliases: list[str] = field(default_factory=list)
    """`NAME@ALIAS` that another version has in the store."""

    def count(self, kind: str, *, is_there: bool) -> None:
        """Counts one of a kind."""
        (self.there if is_there else self.added)[kind] += 1


def bring(folder: Path, client: mlflow.MlflowClient, tally: Tally | None = None) -> dict[str, str]:
    """Adds to a store what it has not of a bundle; gives the id there of each run and model of the bundle.

    A run goes on where it was begun if the store has it under its very id, or brought it before; else it is made.
    Tags of a run that has ended there, and its status, stay as they are. Ids within texts become those of the
    store.

    Args:
        folder: The bundle as a folder.
        client: Of the store, the one that MLflow is pointed at.
        tally: Where to count.

    Raises:
        FmnistError: If the bundle isn't sound (before anything is added), or belongs to a deleted experiment.
        mlflow.MlflowException: If the store doesn't answer. To bring the bundle again adds what is missing.
    """
    record = read(folder)
    bringing = _Bringing(folder, record, client, tally or Tally())
    for run in record["runs"]:
        bringing.make_run(run)
    for model in record["models"]:
        bringing.make_model(model)
    for run in record["runs"]:
        bringing.fill_run(run)
    for model in record["models"]:
        bringing.log_model_metrics(model)
    for version in record["versions"]:
        bringing.register(version)
    for run in record["runs"]:
        bringing.end_run(run)
    return bringing.ids


class _Bringing:
    """A bundle on its way into a store."""

    def __init__(self, folder: Path, record: Record, client: mlflow.MlflowClient, tally: Tally) -> None:
        self.folder, self.record, self.client, self.tally = folder, record, client, tally
        self.ids: dict[str, str] = {}
        made = record["made"]
        self.provenance = {
            "bundle.made": str(made.get("when", "unknown")),
            "bundle.from": str(made.get("from", "unknown")),
            "bundle.sha256": record["sha256"],
        }
        self.experiments: dict[str, str] = {}
        for name in sorted({each["experiment"] for each in record["runs"] + record["models"]}):
            found = client.get_experiment_by_name(name)
            if found and found.lifecycle_stage != "active":
                raise FmnistError(
                    f"experiment {name} is deleted in this store; type mlflow experiments restore "
                    f"-x {found.experiment_id}, and import again"
                )
            self.experiments[name] = found.experiment_id if found else ""
        self.searched = [each.experiment_id for each in pages(client.search_experiments)]
        self.experiment_of: dict[str, str] = {}  # by an id in the store

    def make_run(self, run: Record) -> None:
        """Finds a run, or makes it."""
        first = run["tags"].get("bundle.run", run["id"])
        found = self._run(run["id"]) or self._run(first)
        self.tally.count("runs", is_there=found is not None)
        if found is None:
            tags = {key: value for key, value in run["tags"].items() if key == "mlflow.user"}
            if run.get("command"):
                tags["bundle.command"] = run["command"]
            found = self.client.create_run(
                self._experiment(run["experiment"]),
                start_time=run["start_time"],
                tags=tags | {"bundle.run": first} | self.provenance,
                run_name=run["name"],
            )
        self._know(run["id"], found)

    def make_model(self, model: Record) -> None:
        """Finds a logged model, or makes it, with its files."""
        first = model["tags"].get("bundle.model", model["id"])
        found = self._model(model["id"]) or self._model(first)
        self.tally.count("models", is_there=found is not None)
        if found is None:
            found = self.client.create_logged_model(
                self._experiment(model["experiment"]),
                name=model["name"],
                source_run_id=self.ids.get(model["run"]),
                tags={"bundle.model": first} | self.provenance,
                params=self._texts(model["params"]),
                model_type=model["type"],
            )
        self.ids[model["id"]] = found.model_id
        self.experiment_of[found.model_id] = found.experiment_id
        missing = self._texts(model["tags"], but=SERVERS_OWN | JOURNEY | found.tags.keys())
        if missing:
            self.client.set_logged_model_tags(found.model_id, missing)
        self._send_files(
            f"models/{model['id']}/",
            lambda path: self.client.list_logged_model_artifacts(found.model_id, path),
            lambda file, path: self.client.log_model_artifact(found.model_id, file, path),
        )
        if model["status"] == "READY" and found.status.value != "READY":
            self.client.finalize_logged_model(found.model_id, "READY")

    def fill_run(self, run: Record) -> None:
        """Adds to a run what it has not."""
        run_id = self.ids[run["id"]]
        there = self.client.get_run(run_id)
        data, ended = there.data, there.info.status != "RUNNING"
        tags = self._texts(run["tags"], but=SERVERS_OWN | JOURNEY)
        if run["parent"] and run["parent"] not in self.ids and (parent := self._run(run["parent"])):
            self._know(run["parent"], parent)  # of another bundle
        if run["parent"] in self.ids:
            tags["mlflow.parentRunId"] = self.ids[run["parent"]]
        tags = {
            key: value
            for key, value in tags.items()
            if not (key in data.tags if ended else data.tags.get(key) == value)
        }
        for batch in _batches([RunTag(*each) for each in tags.items()], NUM_TAGS):
            self.client.log_batch(run_id, tags=batch)
        params = {key: value for key, value in self._texts(run["params"]).items() if key not in data.params}
        for batch in _batches([Param(*each) for each in params.items()], NUM_PARAMS):
            self.client.log_batch(run_id, params=batch)
        points = []
        for key, history in run["metrics"].items():
            known = self.client.get_metric_history(run_id, key) if key in data.metrics else []
            seen = {_point(each.step, each.timestamp, each.value) for each in known}
            points += [
                Metric(key, float(value), when, step)
                for step, when, value in history
                if _point(step, when, value) not in seen
            ]
        for batch in _batches(points, NUM_METRICS):
            self.client.log_batch(run_id, metrics=batch)
        self._log_inputs(run, there)
        known = {each.model_id for each in there.outputs.model_outputs}
        outputs = [
            LoggedModelOutput(self.ids[each["model"]], each["step"])
            for each in run["outputs"]
            if self.ids.get(each["model"]) not in {None, *known}
        ]
        if outputs:
            self.client.log_outputs(run_id, outputs)
        self._send_files(
            f"runs/{run['id']}/artifacts/",
            lambda path: self.client.list_artifacts(run_id, path),
            lambda file, path: self.client.log_artifact(run_id, file, path),
        )

    def log_model_metrics(self, model: Record) -> None:
        """Adds a logged model's figures, each with the run that measured it."""
        model_id = self.ids[model["id"]]
        known = self.client.get_logged_model(model_id).metrics or []
        seen = {(each.key, each.step, each.timestamp, each.run_id) for each in known}
        missing: dict[str, list[Metric]] = {}
        for key, step, when, value, run, dataset, digest in model["metrics"]:
            run_id = self.ids.get(run)
            if run_id and (key, step, when, run_id) not in seen:
                about = {"model_id": model_id, "run_id": run_id, "dataset_name": dataset, "dataset_digest": digest}
                missing.setdefault(run_id, []).append(Metric(key, float(value), when, step, **about))
        for run_id, metrics in missing.items():
            for batch in _batches(metrics, NUM_METRICS):
                self.client.log_batch(run_id, metrics=batch)

    def register(self, version: Record) -> None:
        """Registers a logged model under its name, if it isn't yet; it has the next number there."""
        name, model_id = version["name"], self.ids.get(version["model"])
        if model_id is None:
            return
        told = f"{name}/{version['version']}"
        first = version["tags"].get("bundle.version", told)
        found = self._version(name, model_id, {told, first})
        self.tally.count("versions", is_there=found is not None)
        if found is None:
            found = self.client.create_model_version(
                name,
                f"models:/{model_id}",
                run_id=self.ids.get(version["run"]),
                tags=self._texts(version["tags"]) | {"bundle.version": first} | self.provenance,
                model_id=model_id,
            )
        if version["description"] and not found.description:
            text = re.sub(
                rf"models:/{re.escape(told)}\b", f"models:/{name}/{found.version}", version["description"]
            )
            self.client.update_model_version(name, str(found.version), self._text(text))
        self.tally.versions[told] = f"{name}/{found.version}"
        aliases = self.client.get_registered_model(name).aliases
        for alias in version["aliases"]:
            if alias not in aliases:
                self.client.set_registered_model_alias(name, alias, str(found.version))
            elif str(aliases[alias]) != str(found.version):
                self.tally.kept_aliases.append(f"{name}@{alias}")

    def end_run(self, run: Record) -> None:
        """Ends a run as it ended, if it has."""
        run_id = self.ids[run["id"]]
        if run["status"] != "RUNNING" and self.client.get_run(run_id).info.status == "RUNNING":
            self.client.set_terminated(run_id, run["status"], run["end_time"])

    def _know(self, run_id: str, found: Any) -> None:
        self.ids[run_id] = found.info.run_id
        self.experiment_of[found.info.run_id] = found.info.experiment_id

    def _experiment(self, name: str) -> str:
        if not self.experiments[name]:
            template.fill(self.client, name)
            self.experiments[name] = self.client.get_experiment_by_name(name).experiment_id
        return self.experiments[name]

    def _run(self, run_id: str) -> Any:
        """A run of that very id that isn't deleted, or one that was brought as that; else None."""
        try:
            found = self.client.get_run(run_id)
            if found.info.lifecycle_stage == "active":
                return found
        except mlflow.MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
        brought = self.client.search_runs(self.searched, f"tags.`bundle.run` = '{run_id}'", max_results=1)
        return brought[0] if brought else None

    def _model(self, model_id: str) -> Any:
        try:
            return self.client.get_logged_model(model_id)
        except mlflow.MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
        brought = self.client.search_logged_models(
            self.searched, f"tags.`bundle.model` = '{model_id}'", max_results=1
        )
        return brought[0] if brought else None

    def _version(self, name: str, model_id: str, known: set[str]) -> Any:
        """A version that is a logged model; it makes the registered model, if there is none of that name."""
        try:
            self.client.get_registered_model(name)
        except mlflow.MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            about = self.record["registered"].get(name, {})
            self.client.create_registered_model(
                name,
                tags=self._texts(about.get("tags", {})),
                description=self._text(about.get("description") or ""),
            )
            return None
        quote = '"' if "'" in name else "'"
        for each in pages(self.client.search_model_versions, f"name = {quote}{name}{quote}"):
            first = each.tags.get("bundle.version", f"{name}/{each.version}")
            if each.source == f"models:/{model_id}" and first in known:
                return each
        return None

    def _log_inputs(self, run: Record, there: Any) -> None:
        datasets = {(each.dataset.name, each.dataset.digest) for each in there.inputs.dataset_inputs}
        models = {each.model_id for each in there.inputs.model_inputs}
        new_datasets = [
            DatasetInput(Dataset(**each["dataset"]), [InputTag(*tag) for tag in each["tags"].items()])
            for each in run["inputs"]
            if "dataset" in each and (each["dataset"]["name"], each["dataset"]["digest"]) not in datasets
        ]
        known = (self.ids.get(each["model"]) for each in run["inputs"] if "model" in each)
        new_models = [LoggedModelInput(each) for each in known if each is not None and each not in models]
        if new_datasets or new_models:
            self.client.log_inputs(self.ids[run["id"]], new_datasets, new_models or None)

    def _send_files(
        self, prefix: str, listed: Callable[[str | None], Iterable[Any]], send: Callable[[str, str | None], object]
    ) -> None:
        """Sends the files under a prefix that aren't there, or are there in another length, as if broken off."""
        names = [name for name in self.record["files"] if name.startswith(prefix)]
        sizes = dict(files(listed)) if names else {}
        for name in names:
            path, file = name.removeprefix(prefix), self.folder / name
            is_there = sizes.get(path) == file.stat().st_size
            self.tally.count("files", is_there=is_there)
            if is_there:
                continue
            parent = path.rpartition("/")[0] or None
            if prefix.startswith("models/") and path == "MLmodel":
                with TemporaryDirectory() as own:  # which names the model and its run
                    mapped = Path(own) / path
                    mapped.write_text(self._text(file.read_text(encoding="utf-8")), encoding="utf-8")
                    send(str(mapped), parent)
            else:
                send(str(file), parent)

    def _texts(self, texts: dict[str, str], *, but: Iterable[str] = ()) -> dict[str, str]:
        return {key: self._text(value) for key, value in texts.items() if key not in but}

    def _text(self, text: str) -> str:
        """A text with ids and pages of runs as they are in the store."""

        def here(found: re.Match[str]) -> str:
            kind, page, name = found.groups()
            if page in self.ids:
                return f"experiments/{self.experiment_of[self.ids[page]]}/{kind}/{self.ids[page]}"
            return self.ids.get(name, found.group())

        return REFERENCE.sub(here, text)


def files(listed: Callable[[str | None], Iterable[Any]], path: str | None = None) -> Iterable[tuple[str, int]]:
    """Path and length of every file in and under a folder of artifacts."""
    for each in listed(path):
        if each.is_dir:
            yield from files(listed, each.path)
        else:
            yield each.path, each.file_size


def _point(step: int, timestamp: int, value: float | str) -> tuple[int, int, str]:
    return step, timestamp, repr(finite(value))  # as text: NaN equals itself


def _batches(items: Sequence[Any], size: int) -> Iterable[Sequence[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def pages(search: Callable[..., Any], *arguments: Any, **options: Any) -> Iterable[Any]:
    """All that a search finds, page after page."""
    found = search(*arguments, **options)
    yield from found
    while found.token:
        found = search(*arguments, **options, page_token=found.token)
        yield from found
