"""Trainings that are done again: the record of the first run, runs that show the spread of seeds, the verdict."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Run

from fmnist import arguments, options
from fmnist.data import Splits
from fmnist.errors import FmnistError
from fmnist.recipe import EXTRAS
from fmnist.registry import MODELS
from fmnist.reproduction import Comparison, Record, as_result, compare, note
from fmnist.settings import Reproduce, Train, parse_validation
from fmnist.tracking.versions import check_missing

RECIPE, HYPER, SEED = "recipe.", "hyper.", "recipe.seed"
NO_RECIPE = (SEED, "recipe.device", "recipe.model")
METRICS = ("train/", "val/", "test/", "kept_epoch", "num_parameters")
FACTS = ("machine.", "version.", "device", "commit", "code")
NO_FACTS = ("machine.threads",)  # which is device.threads


@dataclass(frozen=True)
class Original:
    """A training of which a run tells, over one seed or several."""

    run: Run
    seeds: tuple[Run, ...]
    """Its runs, one a seed; the run itself if there is one."""
    typed: Mapping[str, str]
    """What was typed for it, as far as it is known: of its own run, or of the one that it is nested under."""
    dataset: str
    digest: str

    def settings(self, asked: Reproduce) -> Train:
        """The settings that train it again."""
        first = self.seeds[0]
        params, tags = first.data.params, first.data.tags
        known = {name.removeprefix(RECIPE): value for name, value in params.items() if name.startswith(RECIPE)}
        hyper = {name.removeprefix(HYPER): value for name, value in params.items() if name.startswith(HYPER)}
        own = MODELS[tags["model"]].recipe.extras  # of now; what the record doesn't name of it was off then
        recipe = {
            name: known.get(name, field.default) for name, field in EXTRAS.items() if name in {**known, **own}
        }
        texts = {field.name: known[field.name] for field in dataclasses.fields(Train) if field.name in known}
        validation = parse_validation(self.typed.get("validation", "5000"))
        if validation.stratified and validation.seed is None:  # a nested run's own seed didn't draw the split
            validation = dataclasses.replace(validation, seed=int(self.typed["seed"]))
        device = tags["device"] if asked.device == options.AUTO else asked.device
        own_folder = self.typed.get("data_dir", "")
        return options.parse(
            Train,
            texts
            | {
                "model": tags["model"],
                "hyper": arguments.text(dict(sorted(hyper.items()))),
                "recipe": arguments.text(recipe),
                "dataset": self.dataset,
                "data_dir": asked.data_dir or (own_folder if Path(own_folder).is_dir() else ""),
                "validation": str(validation),
                "device": device,
                "batch_parts": tags.get("device.batch_parts", "auto") if device == tags["device"] else "auto",
                "repeats": str(max(len(self.seeds), asked.repeats)),
                "registered_model": "none",
            },
        )


def find(run_id: str) -> Original:
    """The training that a run tells of.

    Raises:
        FmnistError: If there is no such run, it isn't one of a training, or it hasn't come to its end.
    """
    run = _run(run_id)
    if run is None:
        raise FmnistError(f"run: no run {run_id} in {mlflow.get_tracking_uri()}; `mlflow ui` shows the ids")
    kind = run.data.tags.get("entry_point") or run.data.tags.get("mlflow.project.entryPoint") or "another kind"
    if run.info.status != "FINISHED" or run.info.lifecycle_stage != "active":
        state = run.info.status if run.info.lifecycle_stage == "active" else "deleted"
        raise FmnistError(f"run: {run_id} is {state}; expected one that has FINISHED")
    parent_id = run.data.tags.get("mlflow.parentRunId")
    parent = (_run(parent_id) if parent_id and "dataset" not in run.data.params else None) or run
    if SEED in run.data.params:
        seeds = [run]
    elif "resumed_from" in run.data.tags:
        other = run.data.tags["resumed_from"]
        raise FmnistError(f"run: {run_id} holds no training, run {other} does; type -P run={other}")
    else:
        seeds = _nested_trainings(run)
        repeats = 0 if "trials" in run.data.params else int(run.data.params.get("repeats", "0"))
        if not repeats or len(seeds) != repeats:
            steps = f"; the training within it is run {seeds[0].info.run_id}" if len(seeds) == 1 else ""
            raise FmnistError(
                f"run: {run_id} is of {kind}; expected a training: of train (with repeats, one of its seeds or "
                f"their parent), a trial of tune, or a reproduction{steps}"
            )
    tags = parent.data.tags | run.data.tags | seeds[0].data.tags
    if "dataset.digest" not in tags:
        raise FmnistError(f"run: {run_id} doesn't say what it was trained on (it has no tag dataset.digest)")
    return Original(run, tuple(seeds), parent.data.params, tags["dataset.name"], tags["dataset.digest"])


def check_data(original: Original, splits: Splits) -> None:
    """Checks that the data is what it was then.

    Raises:
        FmnistError: If it isn't.
    """
    now = splits.manifest["digest"]
    if now != original.digest:
        raise FmnistError(
            f"run: {original.run.info.run_id} was trained on {original.dataset} with digest {original.digest}, "
            f"the data now is {splits.manifest['split']} with {now}; type -P data_dir= with the files of then"
        )


def log_begin(original: Original, settings: Train) -> None:
    """Notes on the active run what it does again, and with what settings."""
    run_id = mlflow.active_run().info.run_id
    mlflow.set_tag("reproduces", original.run.info.run_id)
    there = mlflow.get_run(run_id).data.params
    mlflow.log_params({name: text for name, text in options.texts(settings).items() if name not in there})


def log_comparison(original: Original) -> tuple[dict[str, Any], str]:
    """Compares what the active run has come to with what it did again; gives it as a result, and for people."""
    run = mlflow.get_run(mlflow.active_run().info.run_id)
    seeds = [run] if SEED in run.data.params else _nested_trainings(run)
    now = {record.seed: record for record in map(_record, seeds)}
    others = _others(original)
    comparisons: list[Comparison] = []
    for then in map(_record, original.seeds):
        known = [each for each in others if each.seed != then.seed]
        comparisons.append(compare(then, now[then.seed], known, num_pairs=len(original.seeds)))
    result = {"reproduces": original.run.info.run_id, **as_result(comparisons, others)}
    text = note(comparisons)
    mlflow.log_dict(result, "reproduction.json")
    mlflow.log_text(text, "reproduction.md")
    own = run.data.tags.get("mlflow.note.content", "")
    first, (verdict, _, tables) = original.run.info, text.partition("\n")
    link = f"Does [{first.run_name}](#/experiments/{first.experiment_id}/runs/{first.run_id}) again."
    description = "\n".join([verdict, "", link, tables, "", own]).rstrip()
    mlflow.set_tags({"reproduction": result["verdict"], "mlflow.note.content": description})
    return {"run_id": run.info.run_id, **result}, text


def _run(run_id: str) -> Run | None:
    """The run of an id, its own or the one that it had where it was imported from."""
    try:
        return mlflow.get_run(run_id)
    except mlflow.MlflowException as error:
        check_missing(error)
    brought: list[Run] = mlflow.search_runs(
        filter_string=f"tags.`bundle.run` = '{run_id}'",
        search_all_experiments=True,
        output_format="list",
        max_results=1,
    )
    return brought[0] if brought else None


def _record(run: Run) -> Record:
    client, tags = mlflow.MlflowClient(), run.data.tags
    names = [name for name in run.data.metrics if name.startswith(METRICS)]
    return Record(
        run_id=run.info.run_id,
        seed=int(run.data.params[SEED]),
        metrics={
            name: {each.step: each.value for each in client.get_metric_history(run.info.run_id, name)}
            for name in names
        },
        weights=tags.get("weights.sha256"),
        facts={name: value for name, value in tags.items() if name.startswith(FACTS) and name not in NO_FACTS},
    )


def _nested_trainings(parent: Run) -> list[Run]:
    """The finished trainings right under a run, by seed."""
    query = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}' and attributes.status = 'FINISHED'"
    found = mlflow.search_runs([parent.info.experiment_id], query, output_format="list")
    trainings = [each for each in found if SEED in each.data.params]
    return sorted(trainings, key=lambda each: int(each.data.params[SEED]))


def _others(original: Original) -> list[Record]:
    """Of the same recipe and data, finished, one run for each other seed: the earliest."""
    first = original.seeds[0]
    queries = [f"tags.model = '{first.data.tags['model']}' and tags.`dataset.digest` = '{original.digest}'"]
    if parent := first.data.tags.get("mlflow.parentRunId"):  # a trial's data is its search's
        queries.append(f"tags.`mlflow.parentRunId` = '{parent}'")
    wanted, by_seed = _recipe(first), dict[str, Run]()
    for query in queries:
        for run in mlflow.search_runs(
            filter_string=f"{query} and attributes.status = 'FINISHED'",
            search_all_experiments=True,
            output_format="list",
            order_by=["attributes.start_time"],
            max_results=10_000,
        ):
            if SEED in run.data.params and _recipe(run) == wanted:
                by_seed.setdefault(run.data.params[SEED], run)
    if len(original.seeds) == 1:
        by_seed.pop(first.data.params[SEED], None)
    return sorted(map(_record, by_seed.values()), key=lambda each: each.seed)


def _recipe(run: Run) -> dict[str, str]:
    """All that is resolved but for seed and device; the model is a tag, in older runs that alone."""
    known = {name: value for name, value in run.data.params.items() if name.startswith((RECIPE, HYPER))}
    return {name: value for name, value in known.items() if name not in NO_RECIPE} | {
        "model": run.data.tags.get("model", "")
    }
