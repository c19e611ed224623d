"""Runs of a store as a bundle: with the runs under them, their files, their models, and these models' versions."""

import dataclasses
import re
import shlex
import tempfile
import warnings
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import mlflow
import requests
from mlflow.entities import ViewType

import fmnist
from fmnist import bundle, machine, options, settings
from fmnist.bundle import Record
from fmnist.errors import FmnistError
from fmnist.tracking.bundles import files, pages

SMALL_BYTES = 36 * 1024
"""Of a file as it lies in the zip."""
NUM_COLOURS = 64
OF_THE_PLACE = re.compile(r"mlflow\.(user|source\.name|source\.git\.(repoURL|branch)|project\..*)")
"""Tags that tell who ran it, in which folder."""
LOADERS_NOTE = "registered_model_meta"
"""What MLflow writes beside a model that it loads: its name and number in this store."""


def find(wanted: Sequence[str], client: mlflow.MlflowClient, *, but: str = "") -> list[Any]:
    """Runs by their ids or their experiments' names, or `all`, each with all runs under it, the oldest first.

    Args:
        wanted: Ids, names of experiments, or `all`.
        client: Of the store.
        but: Id of a run that is left out.

    Raises:
        FmnistError: If something is neither, or there is no run.
    """
    experiments = {each.name: each.experiment_id for each in pages(client.search_experiments)}
    every = list(experiments.values())
    found: dict[str, Any] = {}
    for each in wanted:
        if each == "all" or each in experiments:
            among = every if each == "all" else [experiments[each]]
            runs = list(pages(client.search_runs, among))
        else:
            runs = [_run(each, client, experiments)]
        while runs:
            found |= {run.info.run_id: run for run in runs}
            children = [
                child
                for run in runs
                for child in pages(client.search_runs, every, f"tags.mlflow.parentRunId = '{run.info.run_id}'")
            ]
            runs = [child for child in children if child.info.run_id not in found]
    found.pop(but, None)
    if not found:
        raise FmnistError(f"runs: expected runs to export, found none in {', '.join(wanted)}")
    return sorted(found.values(), key=lambda run: (run.info.start_time, run.info.run_id))


def export_runs(wanted: Sequence[str], to: Path, *, small: bool, but: str) -> dict[str, Any]:
    """Writes runs of the store that MLflow is pointed at to a zip; gives what went into it.

    Args:
        wanted: As `find` takes it.
        to: The zip.
        small: As `export` takes it.
        but: Id of a run that is left out.

    Raises:
        FmnistError: If there is no such run, or the store doesn't answer any more.
    """
    client = mlflow.MlflowClient()
    try:
        found = find(wanted, client, but=but)
        for run in found:
            if run.info.status == "RUNNING":
                name = f"{run.info.run_name} ({run.info.run_id})"
                warnings.warn(f"run {name} hasn't ended; it is exported as it stands", stacklevel=2)
        record = export(found, to, client, small=small)
    except (mlflow.MlflowException, requests.RequestException, OSError) as error:
        reason = " ".join(str(error).split())  # a proxy's is a page
        raise FmnistError(
            f"runs of MLflow at {mlflow.get_tracking_uri()} can't be written to {to}: {reason}. Type it again"
        ) from None
    counts = {kind: len(record[kind]) for kind in ("runs", "models", "versions", "files")}
    return {"to": str(to), "size_bytes": to.stat().st_size, **counts}


def export(runs: Sequence[Any], to: Path, client: mlflow.MlflowClient, *, small: bool) -> Record:
    """Writes runs to a zip, whose bytes are the same for the same runs; gives the bundle's record.

    Args:
        runs: As `find` gives them.
        to: The zip.
        client: Of the store.
        small: Leaves out models, large artifacts, many colours, and what tells of the place.
    """
    experiments = {
        each.experiment_id: each.name for each in pages(client.search_experiments, view_type=ViewType.ALL)
    }
    with tempfile.TemporaryDirectory(prefix="fmnist-bundle-") as name:
        folder = Path(name)
        runs = [client.get_run(run.info.run_id) for run in runs]  # a search tells nothing of models that came in
        records = [_run_record(run, experiments, folder, client, small=small) for run in runs]
        model_ids = {each.model_id: None for run in runs if not small for each in run.outputs.model_outputs}
        models = [_model_record(model_id, experiments, folder, client) for model_id in model_ids]
        versions = [
            _version_record(client.get_model_version(each.name, str(each.version)))
            for each in sorted(
                pages(client.search_model_versions) if models else [],  # in the order of their last changes
                key=lambda each: (each.name, int(each.version)),
            )
            if each.source.removeprefix("models:/") in model_ids
        ]
        registered = {each["name"]: client.get_registered_model(each["name"]) for each in versions}
        made = {
            # not the time of the export: the same runs are the same bundle
            "when": max(time for run in runs for time in (run.info.start_time, run.info.end_time or 0)),
            "from": _place(client.tracking_uri),
            "fmnist": fmnist.__version__,
            "mlflow": mlflow.__version__,
            "commit": machine.commit(),
        }
        record = bundle.write(
            folder,
            runs=records,
            models=models,
            versions=versions,
            registered={
                name: {"tags": each.tags, "description": each.description} for name, each in registered.items()
            },
            made=made,
        )
        bundle.pack(folder, to)
    return record


def _run(run_id: str, client: mlflow.MlflowClient, experiments: Iterable[str]) -> Any:
    try:
        found = client.get_run(run_id)
        if found.info.lifecycle_stage == "active":
            return found
    except mlflow.MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
    raise FmnistError(
        f"runs: expected a run's id, an experiment's name, or all; received {run_id!r}. Experiments here: "
        f"{', '.join(sorted(experiments))}"
    )


def _run_record(
    run: Any, experiments: dict[str, str], folder: Path, client: mlflow.MlflowClient, *, small: bool
) -> Record:
    run_id, info = run.info.run_id, run.info
    for path, _ in files(lambda path: client.list_artifacts(run_id, path)):
        file = _fetch(client, info.artifact_uri, path, folder / "runs" / run_id / "artifacts")
        if small:
            _make_small(file)
    histories = {
        key: sorted([each.step, each.timestamp, each.value] for each in client.get_metric_history(run_id, key))
        for key in sorted(run.data.metrics)
    }
    params = run.data.params | ({"data_dir": ""} if small and "data_dir" in run.data.params else {})
    datasets = [
        {"dataset": each.dataset.to_dictionary(), "tags": {tag.key: tag.value for tag in each.tags}}
        for each in run.inputs.dataset_inputs
    ]
    return {
        "id": run_id,
        "parent": run.data.tags.get("mlflow.parentRunId"),
        "experiment": experiments[info.experiment_id],
        "name": info.run_name,
        "status": info.status,
        "start_time": info.start_time,
        "end_time": info.end_time,
        "params": params,
        "command": command(run.data.tags, params),
        "tags": {
            key: value for key, value in run.data.tags.items() if not (small and OF_THE_PLACE.fullmatch(key))
        },
        "metrics": histories,
        "inputs": datasets + [{"model": each.model_id} for each in run.inputs.model_inputs],
        "outputs": [
            {"model": each.model_id, "step": each.step} for each in run.outputs.model_outputs if not small
        ],
    }


def command(tags: Mapping[str, str], params: Mapping[str, str]) -> str | None:
    """What somebody would type to have such a run, if it is one that a command makes.

    An option that the run doesn't know, since it is older, has its default.
    """
    entry_point = tags.get("entry_point", "")
    kind = getattr(settings, entry_point.capitalize(), None)
    if kind is None or "mlflow.parentRunId" in tags:
        return None
    defaults = {field.name: options.default_text(field) for field in dataclasses.fields(kind)}
    typed = {name: _unquoted(params[name]) for name in defaults if name in params}
    changed = [f"{name}={typed[name]}" for name, text in defaults.items() if typed.get(name, text) != text]
    return shlex.join(
        ["mlflow", "run", ".", "-e", entry_point, *(word for pair in changed for word in ("-P", pair))]
    )


def _unquoted(text: str) -> str:
    """A parameter as it was typed: `mlflow run` logs it as it hands it to a shell, an empty one as two quotes."""
    if len(text) > 1 and text[0] == text[-1] == "'":
        with suppress(ValueError):  # it is no text of a shell
            (word,) = shlex.split(text)
            return word
    return text


def _model_record(model_id: str, experiments: dict[str, str], folder: Path, client: mlflow.MlflowClient) -> Record:
    model = client.get_logged_model(model_id)
    for path, _ in files(lambda path: client.list_logged_model_artifacts(model_id, path)):
        if path != LOADERS_NOTE:
            _fetch(client, model.artifact_location, path, folder / "models" / model_id)
    return {
        "id": model_id,
        "run": model.source_run_id,
        "experiment": experiments[model.experiment_id],
        "name": model.name,
        "type": model.model_type,
        "status": model.status.value,
        "params": model.params,
        "tags": model.tags,
        "metrics": sorted(
            [
                *(each.key, each.step, each.timestamp, each.value),
                *(each.run_id, each.dataset_name or "", each.dataset_digest or ""),
            ]
            for each in model.metrics or []
        ),
    }


def _version_record(version: Any) -> Record:
    return {
        "name": version.name,
        "version": str(version.version),
        "model": version.source.removeprefix("models:/"),
        "run": version.run_id,
        "tags": version.tags,
        "aliases": sorted(version.aliases),
        "description": version.description,
    }


def _fetch(client: mlflow.MlflowClient, root: str, path: str, to: Path) -> Path:
    """Copies a file of artifacts, under its path, into a folder."""
    parent = path.rpartition("/")[0]
    file = mlflow.artifacts.download_artifacts(
        artifact_uri=f"{root}/{path}", dst_path=str(to / parent), tracking_uri=client.tracking_uri
    )
    return Path(file)


def _make_small(file: Path) -> None:
    """Draws a picture in few colours, which a plot does with; drops a file that is large all the same."""
    if file.suffix == ".png":
        from PIL import Image

        with Image.open(file) as picture:
            few = picture.convert("RGB").quantize(NUM_COLOURS, dither=Image.Dither.NONE)
        few.save(file, optimize=True)
    if len(zlib.compress(file.read_bytes())) > SMALL_BYTES:
        file.unlink()


def _place(uri: str) -> str:
    """A store's address without anybody's name, password or folder."""
    parts = urlsplit(uri)
    if parts.hostname:
        return f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}"
    return f"{parts.scheme}:{Path(parts.path).name}"
