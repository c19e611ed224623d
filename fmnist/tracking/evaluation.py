"""What an evaluation logs: a run of its own, linked to the version, whose model then has the figures too."""

import warnings
from typing import Any

import mlflow
from mlflow.entities import LoggedModelInput

from fmnist.data import Splits
from fmnist.evaluation.assessment import Assessment, metrics, note
from fmnist.evaluation.corruptions import KINDS, NUM_STRENGTHS, corrupt
from fmnist.plots import evaluation as plots
from fmnist.plots.training import confusion_matrix
from fmnist.tracking.runs import log_figure
from fmnist.tracking.training import log_by_class, log_dataset
from fmnist.tracking.versions import Version


class OtherDataWarning(UserWarning):
    """A model is evaluated on other data than it was trained on, or it isn't known whether it is."""


def log_begin(version: Version, splits: Splits) -> None:
    """Logs which model is evaluated on what, and warns if that isn't the dataset that it was trained on."""
    log_dataset(splits)
    own, given = version.tags.get("dataset.digest"), splits.manifest["digest"]
    if own is None:
        text = f"it isn't known what {version} was trained on: it may have seen these images"
        warnings.warn(text, OtherDataWarning, stacklevel=2)
    elif own != given:
        text = f"{version} was trained on {version.tags.get('dataset')} ({own[:12]}), this is "
        text += f"{splits.manifest['dataset']} ({given[:12]})"
        warnings.warn(text, OtherDataWarning, stacklevel=2)
    else:
        text = "the dataset that it was trained on, split as it was then"
    mlflow.set_tags({"model_uri": version.uri, "model_version": str(version), "data": text})
    if version.model_id:
        mlflow.set_tag("model_id", version.model_id)
        run_id = mlflow.active_run().info.run_id
        mlflow.MlflowClient().log_inputs(run_id, models=[LoggedModelInput(version.model_id)])


def log_assessment(version: Version, splits: Splits, found: Assessment) -> dict[str, Any]:
    """Logs what was found out to the active run, the model and its version; gives it as a result."""
    run_id, figures = mlflow.active_run().info.run_id, metrics(found)
    mlflow.log_metrics(figures, model_id=version.model_id)
    folder, names = found.split, splits.class_names
    log_by_class(found.figures, names, folder)
    log_figure(
        confusion_matrix(found.figures.confusion, names, split=found.split), f"{folder}/confusion_matrix.png"
    )
    bins = {
        f"{title}: calibration error {each.error:.2%}": (each.count, each.confidence, each.accuracy)
        for title, each in (
            ("as it is", found.reliability),
            (f"temperature {found.temperature:.2f}", found.cooled_reliability),
        )
    }
    log_figure(plots.reliability(bins), f"{folder}/reliability.png")
    selective, robust = found.selective, found.robustness
    log_figure(
        plots.selective(selective.coverage, selective.accuracy, selective.area), f"{folder}/selective_accuracy.png"
    )
    log_figure(plots.robustness(robust.accuracy, robust.clean, robust.mean), f"{folder}/robustness.png")
    image = getattr(splits, found.split).images[:1]
    rows = {
        kind: [image[0], *(corrupt(image, kind, strength)[0] for strength in range(1, NUM_STRENGTHS + 1))]
        for kind in KINDS
    }
    log_figure(plots.corruptions(rows, robust.accuracy), f"{folder}/harmed_images.png")
    by_strength = {str(n + 1): [robust.accuracy[kind][n] for kind in KINDS] for n in range(NUM_STRENGTHS)}
    table = {"kind": list(KINDS), **by_strength}
    mlflow.log_table(table, f"{folder}/robustness.json")
    text = note(found, str(version), splits.manifest["dataset"])
    mlflow.log_text(text, "evaluation.md")
    mlflow.set_tag("mlflow.note.content", text)
    if version.name:
        client = mlflow.MlflowClient()
        named = {"run": run_id} | {
            name: f"{figures[f'{found.split}/{name}']:.4f}"
            for name in ("accuracy", "calibration_error", "robustness")
        }
        for name, value in named.items():
            client.set_model_version_tag(version.name, version.number, f"evaluation.{found.split}.{name}", value)
    return {
        "model": str(version),
        "dataset": splits.manifest["dataset"],
        "dataset_digest": splits.manifest["digest"],
        "split": found.split,
        "num_images": found.num_images,
        **figures,
    }
