"""What a search logs: the run of its study, a run for each trial, and what became of them.

The module is what `fmnist.tuning.leader.Tracking` and `fmnist.tuning.trials.Tracking` ask for.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import mlflow

from fmnist.arguments import value_text
from fmnist.recipe import EXTRAS
from fmnist.statistics import spread
from fmnist.tracking.models import load_model as load_model
from fmnist.tracking.models import log_model as log_model
from fmnist.tracking.models import register as register
from fmnist.tracking.runs import delivered, ended, log_figure, open_store
from fmnist.tracking.training import log_dataset as log_dataset
from fmnist.tracking.training import log_epoch as log_epoch
from fmnist.tracking.training import log_plan as log_plan
from fmnist.tracking.training import log_test_pictures as log_test_pictures
from fmnist.tracking.training import log_tested as log_tested
from fmnist.tuning import figures as study_figures


@contextmanager
def study_run(run_id: str, *, leads: bool) -> Iterator[str]:
    """The run of a study, to log to while this process leads it; gives the run that trials go under.

    A command that goes on with a study, or helps, has a run of its own, which then names the study's. If that
    isn't in this store any more, the command's own takes its place.
    """
    active = mlflow.active_run().info.run_id
    with suppress(mlflow.MlflowException):
        if run_id != active and mlflow.get_run(run_id).info.lifecycle_stage == "active":
            mlflow.set_tag("study.run", run_id)
            mlflow.set_tag("mlflow.note.content", f"Worked on the study of run {run_id}; all is to be seen there.")
            active = run_id
    if active == run_id and leads and mlflow.active_run().info.run_id != run_id:
        with ended():
            mlflow.start_run(run_id=run_id, nested=True)
            yield run_id
    else:
        yield active


@contextmanager
def trial_run(parent: str, name: str, tags: Mapping[str, Any], point: Mapping[str, Any]) -> Iterator[str]:
    """The run of a trial, under a run that another process may own; gives its id."""
    texts = {"mlflow.parentRunId": parent, "entry_point": "trial"} | {
        key: str(value) for key, value in tags.items()
    }
    with delivered():
        open_store(keeps=True)
        experiment = mlflow.get_run(parent).info.experiment_id
        with ended():
            active = mlflow.start_run(run_name=name, experiment_id=experiment, tags=texts)
            mlflow.log_params({f"space.{key}": value for key, value in point.items()})
            yield active.info.run_id


def log_trial(state: str, figures: Mapping[str, float], *, seeds_at_once: int) -> None:
    """Logs what became of a trial to the active run."""
    names = {"accuracy": "val/final_accuracy", "parameters": "num_parameters", "latency": "latency_seconds"}
    mlflow.set_tags({"trial.state": state, "seeds_at_once": seeds_at_once})
    mlflow.log_metrics({names.get(name, name): value for name, value in figures.items()})


def log_after(run_id: str, figures: Mapping[str, float]) -> None:
    """Logs figures to a run that has ended."""
    mlflow.log_metrics(dict(figures), run_id=run_id)


def log_best(figures: Mapping[str, float], step: int) -> None:
    """Logs the best of a search so far to the active run."""
    mlflow.log_metrics({f"best/{name}": value for name, value in figures.items()}, step=step)


def end_lost(run_id: str) -> None:
    """Ends the run of a trial whose process could not."""
    with suppress(mlflow.MlflowException):
        client = mlflow.MlflowClient()
        if client.get_run(run_id).info.status == "RUNNING":
            client.set_tag(run_id, "trial.state", "lost")
            client.set_terminated(run_id, "KILLED")


def log_search(study: Any, seconds: Mapping[str, float]) -> None:
    """Logs the plots and the table of a study's trials to the active run, and what the search itself took."""
    active = mlflow.active_run().info
    query = f"tags.mlflow.parentRunId = '{active.run_id}' and tags.study = '{study.study_name}'"
    runs = mlflow.search_runs([active.experiment_id], query, output_format="list", max_results=10_000)
    around = [run.data.metrics[name] for run in runs if (name := "perf/around_seconds") in run.data.metrics]
    figures = dict(seconds)
    if around:
        figures |= {"around_seconds_median": spread(around).median, "around_seconds_max": spread(around).max}
    mlflow.log_metrics({f"search/{name}": value for name, value in figures.items()})
    for name, figure in study_figures.images(study).items():
        log_figure(figure, f"study/{name}.png")
    mlflow.log_text(study_figures.page(study), "study/study.html")
    mlflow.log_text(study_figures.table(study), "study/trials.csv")


def log_tuned(result: dict[str, Any], text: str) -> None:
    """Logs what a search came to: the figures of the winner and of the model's own recipe."""
    mlflow.set_tag("mlflow.note.content", text)
    mlflow.log_text(text, "verdict.md")
    mlflow.log_dict(result, "study/result.json")
    winner, default = result["candidates"][0], result["candidates"][-1]
    figures: dict[str, float | None] = {f"gain/{key}": value for key, value in (result["gain"] or {}).items()}
    for name, each in (("winner", winner), ("default", default)):
        figures |= {f"{name}/search_accuracy": each["search_accuracy"], f"{name}/drop": each["drop"]}
        for split in ("validation", "test"):
            spreads = each[f"{split}_accuracy"] or {}
            figures |= {f"{name}/{split}_{key}": value for key, value in spreads.items()}
    mlflow.log_metrics({name: value for name, value in figures.items() if value is not None})
    best = {f"best.{name}": winner[name] for name in ("optimizer", "learning_rate", "batch_size", "augment")}
    best |= {f"best.{name}": winner[name] for name in EXTRAS if winner[name] != EXTRAS[name].default}
    best |= {f"best.hyper.{name}": value_text(value) for name, value in winner["hyperparameters"].items()}
    mlflow.set_tags(best)
    mlflow.set_tag("best.command", winner["command"])
