"""What a speedrun logs: each seed as a training, with what it took; and what they come to, on the run above them.

The module is what `fmnist.speedrun.Tracking` asks for.
"""

import dataclasses
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import mlflow

from fmnist import machine, markdown, options
from fmnist.data import Splits
from fmnist.device import Device
from fmnist.markdown import three_digits
from fmnist.settings import Speedrun
from fmnist.speedrun import BOARD, Chosen, Speed, outcome, row, table
from fmnist.tracking import training
from fmnist.tracking.exports import command
from fmnist.tracking.models import logged_model_id
from fmnist.tracking.runs import nested_run as nested_run
from fmnist.tracking.training import log_begin as log_begin
from fmnist.tracking.training import log_epoch as log_epoch

if TYPE_CHECKING:
    from fmnist.training import Plan, Trained

RESULT = "speedrun.json"


def log_end(trained: "Trained", speed: Speed, plan: "Plan", splits: Splits, device: Device) -> dict[str, Any]:
    """Logs what a seed came to and what it took to the active run; gives it as a result."""
    result = training.log_end(trained, plan, splits, device, tensorboard=False)
    took = {
        name: value
        for name, value in (dataclasses.asdict(speed) | {"seconds": speed.seconds, "money": speed.money}).items()
        if name != "price_per_hour"
    }
    known = {f"speed/{name}": value for name, value in took.items() if value is not None}
    mlflow.log_metrics(known, model_id=logged_model_id(result["model_uri"]))
    mlflow.set_tag("speed.energy", machine.UNKNOWN if speed.joules is None else f"{three_digits(speed.joules)} J")
    one_view = trained.one_view.accuracy if trained.one_view else None
    return result | took | {"one_view_accuracy": one_view, "seeds_at_once": trained.kept.seeds_at_once}


def log_record(chosen: Chosen, splits: Splits, device: Device) -> str:
    """Logs to the active run what it is to show, before anything is trained; gives the day."""
    training.log_dataset(splits)
    mlflow.set_tags(training.circumstances(chosen.plan, device))
    mlflow.log_param("validation", options.texts(chosen.settings)["validation"])
    mlflow.log_dict(dict(chosen.record.texts), "record.json")
    return f"{datetime.now(UTC):%Y-%m-%d}"


def log_outcome(
    chosen: Chosen, results: list[dict[str, Any]], settings: Speedrun, device: Device, date: str
) -> dict[str, Any]:
    """Logs what all seeds come to, on the active run; gives it as a result."""
    first, (digits, plus, _) = results[0], machine.commit().partition("+")
    result = outcome(chosen.record, results)
    metrics = {
        f"{name}/{key}": float(f"{value:.12g}")  # MLflow's tables show all digits, 0.9039400000000001 else
        for name, figures in result.items()
        if isinstance(figures, dict)
        for key, value in figures.items()
        if value is not None
    }
    result |= {
        "goal": chosen.record.goal,
        **{name: first[name] for name in ("model", "recipe", "dataset", "dataset_digest", "device")},
        "versions": device.versions,
        "commit": digits[:12] + plus,
        "date": date,
        "command": command({"entry_point": "speedrun"}, options.texts(settings)),
    }
    mlflow.log_metrics(metrics)
    reached = {None: "no target", True: "reached", False: "missed"}[result["reached"]]
    tags = {
        "speed.verdict": reached,
        "speed.energy": _energy(result),
        "seeds_at_once": max(result["seeds_at_once"]),
    }
    mlflow.set_tags(tags)
    mlflow.log_dict(result | {"by_seed": results}, RESULT)
    mlflow.log_text("\n".join(markdown.table(BOARD, [row(result)])) + "\n", "record.md")
    text = [f"{result['verdict']}; {first['device']}.", "", *table(results), "", f"`{result['command']}`", ""]
    text += [f"{first['model']} on {first['dataset']}: {first['recipe']}."]
    mlflow.set_tag("mlflow.note.content", "\n".join(text))
    return result


def _energy(result: dict[str, Any]) -> str:
    return (
        machine.UNKNOWN if result["joules"] == machine.UNKNOWN else f"{three_digits(result['joules']['mean'])} J"
    )
