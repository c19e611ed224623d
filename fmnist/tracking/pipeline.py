"""Steps of a pipeline, each a run under the pipeline's; what was done with the same inputs is not done again.

A step's inputs are its settings, the data, the versions of the libraries and the code of this package. A step that
came to its end has their digest as a tag of its run, and its result as an artifact.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import mlflow

from fmnist import cache, machine, markdown, options
from fmnist.errors import FmnistError
from fmnist.tracking import runs, versions

INPUTS_TAG, DONE_TAG = "step.inputs", "step.done_in"
RESULT = "step/result.json"
Settings = TypeVar("Settings")


def step(
    record: Settings,
    job: Callable[[Settings], dict[str, Any]],
    inputs: Mapping[str, Any],
    *,
    is_there: Callable[[dict[str, Any]], bool] = lambda result: True,
    stands: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The result of a step: of this run, or of an earlier one with the same inputs.

    Args:
        record: The step's settings; their class names it.
        job: Does it; gives a result with the `run_id` of the run in which it was done.
        inputs: What it depends on beside its settings, of JSON's types.
        is_there: Whether what came of an earlier step is still so.
        stands: A result that is there already, however it came about.
    """
    name = type(record).__name__.lower()
    digest = cache.digest(
        {
            "step": name,
            "settings": options.texts(record),
            "code": machine.code_digest(),
            "versions": machine.versions(),
            **inputs,
        }
    )
    earlier = stands or _earlier(digest)
    if earlier and (stands or is_there(earlier)):
        with runs.nested_run(name, name):
            why = stands["reason"] if stands else "the same settings, data, versions and code have been through it"
            text = f"Not done again: {why}, in run {earlier['run_id']}."
            mlflow.set_tags({INPUTS_TAG: digest, DONE_TAG: earlier["run_id"], "mlflow.note.content": text})
        return earlier | {"done_now": False}
    with failing(name):
        result = job(record)
    mlflow.log_dict(result, RESULT, run_id=result["run_id"])
    mlflow.MlflowClient().set_tag(result["run_id"], INPUTS_TAG, digest)  # last: then it is complete
    return result | {"done_now": True}


def log_result(version: str, steps: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Logs what a pipeline came to, to the active run; gives it as a result."""
    figures = {name: value for name, value in steps["evaluate"].items() if "/" in name}
    mlflow.log_metrics(figures)
    promoted, reason = steps["promote"]["promoted"], steps["promote"]["reason"]
    rows = [(name, each["run_id"], "yes" if each["done_now"] else "earlier") for name, each in steps.items()]
    lines = [
        f"**{version}**: test accuracy **{figures['test/accuracy']:.2%}**; "
        f"{'promoted' if promoted else 'not promoted'}: {reason}.",
        "",
        *markdown.table(("step", "run", "done now"), rows),
    ]
    mlflow.set_tags(
        {
            "model_version": version,
            "decision": "promoted" if promoted else "refused",
            "mlflow.note.content": "\n".join(lines),
        }
    )
    return {
        "registered": version,
        "test_accuracy": figures["test/accuracy"],
        "promoted": promoted,
        "reason": reason,
        "steps": {name: {"run_id": run_id, "done_now": done == "yes"} for name, run_id, done in rows},
    }


def is_registered(result: Mapping[str, Any]) -> bool:
    """Whether the version that a training registered is still there."""
    name, number = result["registered"].split("/")
    try:
        mlflow.MlflowClient().get_model_version(name, number)
    except mlflow.MlflowException as error:
        versions.check_missing(error)
        return False
    return True


def _earlier(digest: str) -> dict[str, Any] | None:
    """The result of the latest step that has come to its end with such inputs."""
    experiment = mlflow.active_run().info.experiment_id
    query = f"tags.`{INPUTS_TAG}` = '{digest}'"
    for run in mlflow.search_runs([experiment], query, output_format="list"):
        if DONE_TAG not in run.data.tags:
            try:
                result: dict[str, Any] = mlflow.artifacts.load_dict(f"runs:/{run.info.run_id}/{RESULT}")
            except mlflow.MlflowException as error:
                versions.check_missing(error)
                continue  # its files were deleted
            return result
    return None


@contextmanager
def failing(name: str) -> Iterator[None]:
    """Says on the active run which step fails, and why."""
    parent = mlflow.active_run().info.run_id
    try:
        yield
    except Exception as error:
        reason = f"{name}: {error or type(error).__name__}"
        client = mlflow.MlflowClient()
        client.set_tag(parent, "failed_step", name)
        client.set_tag(parent, "mlflow.note.content", f"**Failed** in step {reason}")
        if isinstance(error, FmnistError):
            raise FmnistError(f"step {reason}") from error
        raise
