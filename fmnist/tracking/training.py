"""What a training logs: as it begins, after each epoch, and when it ends; and what several seeds come to.

The module is what `fmnist.seeds.Tracking` asks for.
"""

import dataclasses
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np

from fmnist.data import SPLITS, Splits
from fmnist.device import Device, conditions
from fmnist.plots import data as data_plots
from fmnist.plots import training as plots
from fmnist.settings import augment_text
from fmnist.statistics import spread
from fmnist.tracking.models import is_logged as is_logged
from fmnist.tracking.models import log_model
from fmnist.tracking.runs import log_figure, value_text
from fmnist.tracking.runs import nested_run as nested_run

if TYPE_CHECKING:
    from fmnist.evaluation import Evaluation
    from fmnist.training import Epoch, Plan, Trained

NUM_SHOWN = 25
REPEATED_FIGURES = (
    *("test_accuracy", "test_loss", "validation_accuracy", "validation_loss"),
    *("kept_epoch", "epoch_seconds_median"),
)


def log_begin(plan: "Plan", splits: Splits, device: Device, *, resumed_from: str | None = None) -> None:
    """Logs what a training begins with to the active run: the data, the plan, the device."""
    log_dataset(splits)
    log_plan(plan, device)
    if resumed_from:
        _log_resumed(resumed_from)


def log_end(
    trained: "Trained", plan: "Plan", splits: Splits, device: Device, *, tensorboard: bool
) -> dict[str, Any]:
    """Logs what a training came to: figures, plots, model, description; gives it as a result."""
    found = conditions(device, plan.backend, batch_parts=plan.batch_parts, xla=trained.xla)
    mlflow.set_tags({f"device.{name}": value for name, value in dataclasses.asdict(found).items()})
    _log_figures(trained, splits)
    if tensorboard:
        _log_tensorboard(trained)
    model_uri = log_model(trained, splits, plan)
    run_id = mlflow.active_run().info.run_id
    return {"run_id": run_id, "model_uri": model_uri, **_log_summary(trained, plan, splits, device)}


def log_finished_elsewhere(run_id: str) -> None:
    """Notes on the active run that another holds the whole training, and ends that if it was killed."""
    _log_resumed(run_id, status="FINISHED")
    text = f"Run {run_id} holds this training, which was complete; what was missing was done here."
    mlflow.set_tag("mlflow.note.content", text)


def adopt(run_id: str) -> None:
    """Puts a run that was nested under another under the active one."""
    parent = mlflow.active_run().info.run_id
    client = mlflow.MlflowClient()
    client.set_tag(run_id, "mlflow.parentRunId", parent)
    if client.get_run(run_id).info.status != "FINISHED":
        client.set_terminated(run_id, "FINISHED")


def _log_resumed(run_id: str, *, status: str = "KILLED") -> None:
    """Notes on the active run that it goes on from another, which, if it was killed outright, ends here."""
    active = mlflow.active_run().info.run_id
    mlflow.set_tag("resumed_from", run_id)
    client = mlflow.MlflowClient()
    with suppress(mlflow.MlflowException):  # it may be in another store, or deleted
        client.set_tag(run_id, "resumed_by", active)
        if client.get_run(run_id).info.status == "RUNNING":
            client.set_terminated(run_id, status)


def log_dataset(splits: Splits) -> None:
    """Logs what the data is: an input with a digest over all its bytes, counts, and the manifest."""
    manifest = splits.manifest
    source = mlflow.data.code_dataset_source.CodeDatasetSource(
        tags={"split": manifest["split"], **manifest["source"]}
    )
    dataset = mlflow.data.from_numpy(
        {name: getattr(splits, name).images for name in SPLITS},
        source,
        targets={name: getattr(splits, name).labels for name in SPLITS},
        name=manifest["dataset"],
        digest=manifest["digest"],
    )
    mlflow.log_input(dataset, context="training")
    mlflow.log_metrics({f"data/num_{name}": count for name, count in manifest["counts"].items()})
    mlflow.log_metrics({f"data/duplicates_{pair}": count for pair, count in manifest["duplicates"].items()})
    mlflow.set_tags({"dataset.name": manifest["dataset"], "dataset.digest": manifest["digest"]})
    if "fallback" in manifest:
        mlflow.set_tag("dataset.fallback", manifest["fallback"])
    mlflow.log_dict(manifest, "data/manifest.json")


def log_data_plots(splits: Splits) -> None:
    """Logs the class balance and a grid of training images."""
    names = splits.class_names
    log_figure(data_plots.class_balance(splits.manifest["class_balance"], names), "data/class_balance.png")
    log_figure(data_plots.sample_grid(splits.train.images, splits.train.labels, names), "data/samples.png")


def log_plan(plan: "Plan", device: Device) -> None:
    """Logs the resolved recipe and hyperparameters, and the device that is really used."""
    recipe = dataclasses.asdict(plan.recipe) | {
        "augment": augment_text(plan.augment),
        "backend": plan.backend,
        "trainer": plan.trainer,
        "precision": plan.precision,
        "patience": plan.patience,
        "seed": plan.seed,
    }
    mlflow.log_params({f"recipe.{name}": value for name, value in recipe.items()})
    mlflow.log_params({f"hyper.{name}": value_text(value) for name, value in plan.hyperparameters.items()})
    mlflow.set_tags(
        {
            "model": plan.model.name,
            "device": device.kind,
            "device.name": device.name,
            "device.threads": device.num_threads,
            **{f"version.{package}": number for package, number in device.versions.items()},
        }
    )


def log_epoch(epoch: "Epoch") -> None:
    """Logs the metrics of one epoch, at its number as step."""
    mlflow.log_metrics(
        {
            "train/loss": epoch.train_loss,
            "train/accuracy": epoch.train_accuracy,
            "val/loss": epoch.validation_loss,
            "val/accuracy": epoch.validation_accuracy,
            "perf/epoch_seconds": epoch.seconds,
            "perf/images_per_second": epoch.images_per_second,
        },
        step=epoch.number,
    )


def _log_figures(trained: "Trained", splits: Splits) -> None:
    """Logs the test figures, their tables and plots, and the summary of the model."""
    test, names = trained.test, splits.class_names
    mlflow.log_metrics(
        {
            "test/loss": test.loss,
            "test/accuracy": test.accuracy,
            "test/macro_f1": test.macro_f1,
            "test/calibration_error": test.calibration_error,
            "val/final_accuracy": trained.kept.validation_accuracy,
            "val/final_loss": trained.kept.validation_loss,
            "kept_epoch": trained.kept.number,
            "num_parameters": trained.model.count_params(),
        }
    )
    lines: list[str] = []
    trained.model.summary(print_fn=lambda line, **_: lines.append(line), line_length=90)
    mlflow.log_text("\n".join(lines), "model_summary.txt")
    log_by_class(test, names, "test")
    log_figure(plots.confusion_matrix(test.confusion, names), "test/confusion_matrix.png")
    curves = {
        name: [getattr(epoch, name) for epoch in trained.history]
        for name in ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy")
    }
    log_figure(plots.learning_curves(curves, trained.kept.number), "learning_curves.png")
    probabilities, labels = trained.test_probabilities, splits.test.labels
    answers = {
        "label": labels,
        "predicted": probabilities.argmax(axis=1).astype(np.uint8),
        "probability": probabilities.max(axis=1),
    }
    with TemporaryDirectory() as folder:
        kept = Path(folder) / "predictions.npz"
        np.savez_compressed(kept, **answers)
        mlflow.log_artifact(str(kept), "test")
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != labels)
    surest = wrong[np.argsort(-probabilities[wrong].max(axis=1))][:NUM_SHOWN]
    for chosen, title, file in (
        (np.arange(min(NUM_SHOWN, len(labels))), "the first test images", "test/predictions.png"),
        (surest, f"the most confident of {len(wrong):,} mistakes", "test/confident_mistakes.png"),
    ):
        images = splits.test.images[chosen]
        log_figure(plots.predictions(images, labels[chosen], probabilities[chosen], names, title), file)


def _log_summary(trained: "Trained", plan: "Plan", splits: Splits, device: Device) -> dict[str, Any]:
    """Gives the result of a training, and writes it as the run's description too."""
    steady = [epoch.seconds for epoch in trained.history if not epoch.compiles]
    timing = spread(steady) if steady else None
    result = {
        "model": plan.model.name,
        "dataset": splits.manifest["dataset"],
        "dataset_digest": splits.manifest["digest"],
        "test_accuracy": trained.test.accuracy,
        "test_loss": trained.test.loss,
        "validation_accuracy": trained.kept.validation_accuracy,
        "validation_loss": trained.kept.validation_loss,
        "kept_epoch": trained.kept.number,
        "epochs": len(trained.history),
        "num_parameters": trained.model.count_params(),
        "epoch_seconds_median": timing and timing.median,
        "epoch_seconds_min": timing and timing.min,
        "epoch_seconds_max": timing and timing.max,
        "num_timed_epochs": len(steady),
        "device": f"{device.kind}: {device.name}, {device.num_threads} threads",
        "precision": plan.precision,
        "seed": plan.seed,
    }
    text = f"{timing.median:.2f} s an epoch (median of {timing.n})" if timing else "not timed"
    mlflow.set_tag(
        "mlflow.note.content",
        f"**{plan.model.name}** on {result['dataset']}, seed {plan.seed}: test accuracy "
        f"**{trained.test.accuracy:.2%}** after {trained.kept.number} epochs, {text}, {result['device']}.",
    )
    return result


def log_repeats(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Logs how far the results of several seeds spread, on the active run; gives it as a result of its own."""
    spreads = {}
    for name in REPEATED_FIGURES:
        values = [result[name] for result in results]
        if None not in values:
            spreads[name] = {key: value for key, value in dataclasses.asdict(spread(values)).items() if key != "n"}
    mlflow.log_metrics(
        {f"{name}/{key}": value for name, figures in spreads.items() for key, value in figures.items()}
    )
    mlflow.log_table({name: [result[name] for result in results] for name in results[0]}, "repeats.json")
    test, n = spreads["test_accuracy"], len(results)
    mlflow.set_tag(
        "mlflow.note.content",
        f"**{results[0]['model']}** on {results[0]['dataset']}, {n} seeds: test accuracy **{test['mean']:.2%}**, "
        f"standard deviation {100 * test['std']:.2f} points, 95 % interval {test['ci95_low']:.2%} to "
        f"{test['ci95_high']:.2%}.",
    )
    return {"repeats": n, "seeds": [result["seed"] for result in results], **spreads}


def _log_tensorboard(trained: "Trained") -> None:
    """Logs loss and accuracy by epoch as TensorBoard events, a folder for each split."""
    from tensorboard.summary import Writer

    with TemporaryDirectory() as folder:
        for split in ("train", "validation"):
            writer = Writer(str(Path(folder) / split))
            for epoch in trained.history:
                for metric in ("loss", "accuracy"):
                    writer.add_scalar(metric, getattr(epoch, f"{split}_{metric}"), epoch.number)
            writer.close()
        mlflow.log_artifacts(folder, "tensorboard")


def log_by_class(found: "Evaluation", class_names: tuple[str, ...], folder: str) -> None:
    """Logs precision, recall and F1 of each class, and the confusion matrix, as tables."""
    columns = {"precision": found.precision, "recall": found.recall, "f1": found.f1, "support": found.support}
    table = {"class": list(class_names)} | {name: values.tolist() for name, values in columns.items()}
    mlflow.log_table(table, f"{folder}/per_class.json")
    header = ",".join(["true\\predicted", *class_names])
    rows = [f"{name},{','.join(map(str, row))}" for name, row in zip(class_names, found.confusion, strict=True)]
    mlflow.log_text("\n".join([header, *rows]) + "\n", f"{folder}/confusion_matrix.csv")
