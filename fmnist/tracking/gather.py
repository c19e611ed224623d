"""Reads the finished runs of a store into the plain records that a report is made of."""

import csv
import io
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import requests

from fmnist.errors import FmnistError
from fmnist.registry import unknown
from fmnist.report.records import Answers, Benchmark, Claimed, Gathered, Run, Search, Training
from fmnist.tracking.exports import command
from fmnist.tracking.runs import open_store
from fmnist.tracking.speedrun import RESULT

CURVES = ("train/loss", "train/accuracy", "val/loss", "val/accuracy", "perf/epoch_seconds")


def gather(experiment: str, run_ids: Sequence[str]) -> Gathered:
    """What the finished runs of an experiment (empty: of all) tell; or of some runs and those under them.

    A run that was brought here from a bundle, beside the one that the bundle was made of, counts once.

    Raises:
        FmnistError: If there is no such experiment or run, or nothing that a report could tell of.
    """
    open_store()
    client = mlflow.MlflowClient()
    experiments = {each.experiment_id: each.name for each in client.search_experiments()}
    if experiment and experiment not in experiments.values():
        raise unknown("experiment", experiment, experiments.values())
    asked = [key for key, name in experiments.items() if experiment in ("", name)]
    found = mlflow.search_runs(asked, output_format="list", max_results=1_000_000)
    by_id = {each.info.run_id: each for each in found}
    for run_id in run_ids:
        if run_id not in by_id:
            where = f"experiment {experiment!r}" if experiment else "this store"
            raise FmnistError(
                f"runs: expected ids of runs in {where}, joined by commas; received {run_id!r}, which is none"
            )
    chosen = [each for each in found if not run_ids or set(run_ids) & _ancestry(each, by_id)]

    children: dict[str, Any] = {}
    for each in found:
        children.setdefault(each.data.tags.get("mlflow.parentRunId", ""), each)

    def tags(run: Any) -> dict[str, str]:
        """The run's own; its data, machine and versions, where it doesn't say, as a run above or under it does."""
        near = by_id.get(run.data.tags.get("mlflow.parentRunId")), children.get(run.info.run_id)
        facts = ("dataset.", "machine.", "version.", "commit")
        others = {
            name: text
            for other in near
            if other
            for name, text in other.data.tags.items()
            if name.startswith(facts) or name in ("device.name", "device.threads")
        }
        return {**others, **run.data.tags}

    finished: dict[str, Any] = {}
    for each in sorted(chosen, key=lambda each: "bundle.run" in each.data.tags):
        if each.info.status == "FINISHED":
            finished.setdefault(each.data.tags.get("bundle.run", each.info.run_id), each)
    kinds: dict[str, list[Any]] = {"training": [], "benchmark": [], "search": [], "speedrun": []}
    for each in finished.values():
        if {"recipe.seed", "test/accuracy", "model", "dataset.digest"} <= {
            *each.data.params,
            *each.data.metrics,
            *tags(each),
        }:
            kinds["training"].append(each)
        elif "num_measured" in each.data.metrics:
            kinds["benchmark"].append(each)
        elif "best.command" in each.data.tags:
            kinds["search"].append(each)
        elif "speed.verdict" in each.data.tags:
            kinds["speedrun"].append(each)
    if not any(kinds.values()):
        what = (
            f"{len(chosen)} runs, none of them a finished training, benchmark or search" if chosen else "no runs"
        )
        raise FmnistError(
            f"report: expected finished runs in {f'experiment {experiment!r}' if experiment else 'this store'}, "
            f"found "
            f"{what}. Type for example mlflow run . -e train"
        )

    def plain(run: Any) -> Run:
        started = datetime.fromtimestamp(run.info.start_time / 1e3, UTC)
        return Run(
            run_id=run.info.run_id,
            name=run.info.run_name,
            experiment=experiments[run.info.experiment_id],
            started=f"{started:%Y-%m-%d %H:%M:%S}",
            params=run.data.params,
            tags=tags(run),
            metrics=run.data.metrics,
            command=_command(run, by_id),
        )

    return Gathered(
        trainings=[_training(plain(each), client) for each in kinds["training"]],
        benchmarks=[
            Benchmark(plain(each), json.loads(_artifact(client, each, "benchmark.json"))["rows"])
            for each in kinds["benchmark"]
        ],
        searches=[
            Search(plain(each), result, _trials(each, result["study"], found))
            for each in kinds["search"]
            if (result := json.loads(_artifact(client, each, "study/result.json")))
        ],
        experiments=[
            experiments[key] for key in asked if any(e.info.experiment_id == key for e in finished.values())
        ],
        num_unfinished=sum(each.info.status != "FINISHED" for each in chosen),
        speedruns=[
            Claimed(plain(each), json.loads(_artifact(client, each, RESULT))) for each in kinds["speedrun"]
        ],
    )


def _ancestry(run: Any, by_id: Mapping[str, Any]) -> set[str]:
    """The run's id, and those of the runs that it is under."""
    found, current = {run.info.run_id}, run
    while (parent := current.data.tags.get("mlflow.parentRunId")) in by_id and parent not in found:
        found.add(parent)
        current = by_id[parent]
    return found


def _command(run: Any, by_id: Mapping[str, Any]) -> str:
    """What does the run again, by parameters as typed: its own, or of the nearest run that it is under."""
    parent = by_id.get(run.data.tags.get("mlflow.parentRunId"))
    return command(run.data.tags, run.data.params) or (_command(parent, by_id) if parent else "")


def _training(run: Run, client: Any) -> Training:
    names: tuple[str, ...] = ()
    confusion, answers = None, None
    with _reading(run.run_id), tempfile.TemporaryDirectory() as folder:
        curves = {
            name: [(each.step, each.value) for each in client.get_metric_history(run.run_id, name)]
            for name in CURVES
            if name in run.metrics
        }
        there = {each.path for each in client.list_artifacts(run.run_id, "test")}
        if "test/confusion_matrix.csv" in there:
            text = Path(client.download_artifacts(run.run_id, "test/confusion_matrix.csv", folder)).read_text()
            header, *rows = csv.reader(io.StringIO(text))
            names, confusion = tuple(header[1:]), np.array([row[1:] for row in rows], dtype=np.int64)
        if "test/predictions.npz" in there:
            with np.load(client.download_artifacts(run.run_id, "test/predictions.npz", folder)) as kept:
                answers = Answers(kept["label"], kept["predicted"], kept["probability"])
    return Training(run, curves, confusion, names, answers)


def _trials(search: Any, study: str, runs: Sequence[Any]) -> list[tuple[int, float]]:
    """Number and validation accuracy of a search's own trials; trainings on fresh seeds are of another study."""
    found = [
        (int(each.data.tags["trial"]), each.data.metrics["val/final_accuracy"])
        for each in runs
        if each.data.tags.get("mlflow.parentRunId") == search.info.run_id
        and each.data.tags.get("study") == study
        and "val/final_accuracy" in each.data.metrics
    ]
    return sorted(found)


def _artifact(client: Any, run: Any, path: str) -> str:
    with _reading(run.info.run_id), tempfile.TemporaryDirectory() as folder:
        return Path(client.download_artifacts(run.info.run_id, path, folder)).read_text()


@contextmanager
def _reading(run_id: str) -> Iterator[None]:
    """Turns what keeps a run's files from being read into an error that says which run."""
    try:
        yield
    except (mlflow.MlflowException, requests.RequestException, OSError) as error:
        reason = " ".join(str(error).split())
        raise FmnistError(
            f"run {run_id} can't be read whole: {reason}. Mend that, or report on other runs: -P runs=ID,ID"
        ) from None
