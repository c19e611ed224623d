"""What answers to photographs log: a run, linked to the version, which then has the figures too."""

import warnings
from typing import Any

import mlflow
import numpy as np
from mlflow.entities import LoggedModelInput

from fmnist import photos, prediction
from fmnist.errors import Incomplete
from fmnist.plots import answers as plots
from fmnist.plots.training import confusion_matrix
from fmnist.prediction import Answer, Skipped, Tally, note
from fmnist.tracking.cards import with_section
from fmnist.tracking.runs import log_figure
from fmnist.tracking.versions import Version

MAX_PAGES = 50
HEADING = "### Photographs"


class UnnamedFolderWarning(UserWarning):
    """A folder names no class, so that its images can't be judged."""


class Pages:
    """Pictures of answers, logged to the active run a page at a time."""

    def __init__(self, class_names: tuple[str, ...]) -> None:
        self._class_names = class_names
        self._waiting: list[plots.Shown] = []
        self._num_pages = 0

    def add(self, answer: Answer | Skipped) -> None:
        """Takes an answer in, unless there are `MAX_PAGES` already."""
        if isinstance(answer, Skipped) or self._num_pages == MAX_PAGES:
            return
        seen, names = answer.seen, self._class_names
        truth = " or ".join(names[label] for label in seen.truths)
        self._waiting.append(
            plots.Shown(
                title=seen.name if len(seen.name) <= 40 else f"…{seen.name[-39:]}",
                remark="; ".join(
                    [f"is {truth}"] * (answer.right is False) + [prediction.STRANGE] * answer.is_strange
                ),
                right=answer.right,
                photo=seen.photo,
                outline=seen.outline,
                image=seen.image,
                likeliest=[(names[label], float(answer.probabilities[label])) for label in answer.likeliest],
            )
        )
        if len(self._waiting) == plots.NUM_ON_PAGE:
            self.log()

    def log(self) -> None:
        """Logs what waits for a page to be full."""
        if self._waiting:
            self._num_pages += 1
            log_figure(plots.page(self._waiting), f"pictures/page-{self._num_pages:02}.png")
            self._waiting = []


def log_begin(version: Version) -> None:
    """Logs which model answers, to the active run."""
    mlflow.set_tags({"model_uri": version.uri, "model_version": str(version)})
    if version.model_id:
        mlflow.set_tag("model_id", version.model_id)
        run_id = mlflow.active_run().info.run_id
        mlflow.MlflowClient().log_inputs(run_id, models=[LoggedModelInput(version.model_id)])


def log_end(version: Version, tally: Tally) -> dict[str, Any]:
    """Logs what answers come to, to the active run, the model and its version; gives it as a result."""
    run_id = mlflow.active_run().info.run_id
    accuracy = tally.accuracy()
    result: dict[str, Any] = {
        "run_id": run_id,
        "model": str(version),
        "num_images": len(tally.records),
        "num_skipped": len(tally.skipped),
        "num_strange": sum((each["strangeness"] or 0) > 1 for each in tally.records),
        "accuracy": accuracy.value if accuracy else None,
        "cut_by": photos.cutter() if tally.num_cut else None,
    }
    mlflow.log_metrics({f"photos/{name}": result[name] for name in ("num_images", "num_skipped", "num_strange")})
    if result["cut_by"]:
        mlflow.set_tag("photos.cut_by", result["cut_by"])
    for folder in sorted(tally.unnamed):
        text = f"{folder}: names no class of {version}; its images are answered, not judged"
        warnings.warn(text, UnnamedFolderWarning, stacklevel=2)
    text = note(tally, str(version), version.tags)
    if accuracy:
        by_class = {name: share.record() for name, share in tally.by_class().items()}
        result |= {
            "accuracy_ci95": [accuracy.record()["ci95_low"], accuracy.record()["ci95_high"]],
            "test_accuracy": float(version.tags["test.accuracy"]) if "test.accuracy" in version.tags else None,
            "per_class": by_class,
        }
        _log_accuracy(version, tally, text)
    result |= {
        "skipped": [vars(each) for each in tally.skipped],
        "answers": tally.records,
    }
    mlflow.log_dict(result, "answers.json")
    mlflow.set_tag("mlflow.note.content", text)
    return result


def refuse_skipped(result: dict[str, Any]) -> dict[str, Any]:
    """The result.

    Raises:
        Incomplete: If something was skipped.
    """
    if result["skipped"]:
        first = result["skipped"][0]
        raise Incomplete(
            f"{result['num_skipped']} of {result['num_images'] + result['num_skipped']} images were skipped, the "
            f"first: {first['name']}: {first['reason']}",
            result,
        )
    return result


def _log_accuracy(version: Version, tally: Tally, text: str) -> None:
    """Logs how many photographs in labelled folders are right, to the active run, the model and its version."""
    run_id, accuracy, names = mlflow.active_run().info.run_id, tally.accuracy(), version.class_names
    if accuracy is None:
        return
    found, by_class = accuracy.record(), tally.by_class()
    figures = {
        "accuracy": accuracy.value,
        "accuracy_ci95_low": found["ci95_low"],
        "accuracy_ci95_high": found["ci95_high"],
    }
    mlflow.log_metrics({f"photos/{name}": value for name, value in figures.items()}, model_id=version.model_id)
    columns = {"class": list(by_class)} | {
        name: [share.record()[name] for share in by_class.values()] for name in found
    }
    mlflow.log_table(columns, "photos/per_class.json")
    counts = np.array([tally.labelled[truths] for truths in sorted(tally.labelled)])
    title = f"{accuracy.value:.1%} right of {accuracy.n:,} photographs"
    figure = confusion_matrix(counts, names, rows=list(by_class), title=title)
    log_figure(figure, "photos/confusion_matrix.png")
    if version.name:
        client = mlflow.MlflowClient()
        tags = {"accuracy": f"{accuracy.value:.4f}", "num_images": str(accuracy.n), "run": run_id}
        for name, value in tags.items():
            client.set_model_version_tag(version.name, version.number, f"photos.{name}", value)
        card = client.get_model_version(version.name, version.number).description or ""
        text = f"{text.rstrip()}\n\nRun {run_id}."
        client.update_model_version(version.name, version.number, with_section(card, HEADING, text))
