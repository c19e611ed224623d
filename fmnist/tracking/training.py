"""What a training logs: as it begins, after each epoch, and when it ends; and what several seeds come to.

The module is what `fmnist.seeds.Tracking` asks for.
"""

import dataclasses
import hashlib
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
from numpy.typing import NDArray

from fmnist import data, machine, training
from fmnist.data import SPLITS, Splits
from fmnist.device import Device, conditions
from fmnist.errors import FmnistError
from fmnist.models import Start
from fmnist.plots import data as data_plots
from fmnist.plots import training as plots
from fmnist.serving import loader
from fmnist.statistics import spread
from fmnist.tracking import colors, versions
from fmnist.tracking.cards import repeats_card, run_card
from fmnist.tracking.models import is_logged as is_logged
from fmnist.tracking.models import log_model, logged_model_id, parameters
from fmnist.tracking.runs import log_figure, open_store
from fmnist.tracking.runs import nested_run as nested_run

if TYPE_CHECKING:
    from fmnist.evaluation import Evaluation
    from fmnist.training import Epoch, Plan, Trained

NUM_SHOWN = 25
REPEATED_FIGURES = (
    *("test_accuracy", "test_loss", "validation_accuracy", "validation_loss"),
    *("kept_epoch", "epoch_seconds_median"),
)


def begin_with(plan: "Plan", model_uri: str) -> "Plan":
    """The plan with a version's weights to begin with; the same plan where no version is named.

    Raises:
        FmnistError: If there is no such version, or its model has another architecture.
    """
    if not model_uri:
        return plan
    open_store()
    version = versions.find(model_uri)
    folder = Path(mlflow.artifacts.download_artifacts(version.uri))
    file = folder / "data" / loader.KERAS_FILE
    if version.model_id is None or not file.is_file():
        raise FmnistError(f"start_from: {version} has no weights that Keras saved; name a version that train made")
    known, wanted = mlflow.get_logged_model(version.model_id).params, parameters(plan)
    names = [name for name in wanted if name == "recipe.model" or name.startswith("hyper.")]
    if any(known.get(name) != wanted[name] for name in names):
        hyper = ";".join(f"{name[6:]}={value}" for name, value in known.items() if name.startswith("hyper."))
        raise FmnistError(
            f"start_from: {version} is another model than what is to be trained; type -P model="
            f"{known.get('recipe.model')} -P 'hyper={hyper}'"
        )
    return dataclasses.replace(plan, start=Start(version.uri, file, version.class_names))


def refuse_seen(model_uri: str, splits: Splits) -> None:
    """Raises `FmnistError` if a version was trained on images that are now to validate or to test.

    Nothing is known of a version that names no data, or data that isn't prepared here.
    """
    version = versions.find(model_uri)
    digest = version.tags.get("dataset.digest")
    if not digest or digest == splits.manifest["digest"]:
        return
    known = data.prepared(digest)
    if known is None:
        return
    seen = {image.tobytes() for image in known.train.images}
    for name in ("test", "validation"):
        count = sum(image.tobytes() in seen for image in getattr(splits, name).images)
        if count:
            raise FmnistError(
                f"start_from: {version} was trained on {count} images of the {name} split; type the dataset, "
                "validation and seed that it was trained with, or begin with another version"
            )


def log_begin(
    plan: "Plan", splits: Splits, device: Device, *, resumed_from: str | None = None, seeds_at_once: int = 1
) -> None:
    """Logs what a training begins with to the active run: the data, the plan, the device."""
    log_dataset(splits)
    log_plan(plan, device)
    mlflow.set_tags({**colors.tag(plan.model.name, plan.seed), "seeds_at_once": seeds_at_once})
    if resumed_from:
        _log_resumed(resumed_from)


def log_end(
    trained: "Trained", plan: "Plan", splits: Splits, device: Device, *, tensorboard: bool
) -> dict[str, Any]:
    """Logs what a training came to: figures, plots, model, description; gives it as a result."""
    found = conditions(device, plan.backend, batch_parts=plan.batch_parts, xla=trained.xla)
    mlflow.set_tags({f"device.{name}": value for name, value in dataclasses.asdict(found).items()})
    weights = hashlib.sha256()
    for values in trained.model.get_weights():
        weights.update(f"{values.dtype} {values.shape} ".encode() + values.tobytes())
    mlflow.set_tag("weights.sha256", weights.hexdigest())
    run_id, model_uri = mlflow.active_run().info.run_id, log_model(trained, splits, plan)
    steady = [epoch.seconds for epoch in trained.history if not epoch.compiles]
    figures = {"perf/epoch_seconds_median": spread(steady).median} if steady else {}
    figures |= {
        "val/final_accuracy": trained.kept.validation_accuracy,
        "val/final_loss": trained.kept.validation_loss,
        "kept_epoch": trained.kept.number,
        **({"val/views_accuracy": trained.viewed.accuracy} if trained.viewed else {}),
        **({"test/one_view_accuracy": trained.one_view.accuracy} if trained.one_view else {}),
        "num_parameters": trained.model.count_params(),
    }
    mlflow.log_metrics(figures, model_id=logged_model_id(model_uri))
    log_tested(run_id, model_uri, trained.test)
    log_test_pictures(run_id, trained.test, trained.test_probabilities, splits)
    _log_training(trained)
    if tensorboard:
        _log_tensorboard(trained)
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
    """Logs the resolved recipe and hyperparameters, the device that is really used, the machine and the code."""
    mlflow.log_params(parameters(plan) | {"recipe.device": device.kind})
    mlflow.set_tags(circumstances(plan, device) | {"seed": plan.seed})


def circumstances(plan: "Plan", device: Device) -> dict[str, Any]:
    """What a plan is trained on and with, as tags; all but the seed."""
    return {
        "model": plan.model.name,
        "recipe": plan.in_words,
        "device": device.kind,
        "device.name": device.name,
        "device.threads": device.num_threads,
        "device.batch_parts": plan.batch_parts,
        "commit": machine.commit(),
        "code": machine.code_digest(training.CODE),
        **{f"machine.{name}": value for name, value in machine.facts().items()},
        **{f"version.{package}": number for package, number in device.versions.items()},
    }


def log_epoch(epoch: "Epoch", *, run_id: str | None = None) -> None:
    """Logs the metrics of one epoch, at its number as step, to a run, the active one if none is named."""
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
        run_id=run_id,
    )


def log_tested(run_id: str, model_uri: str, test: "Evaluation") -> None:
    """Logs what a model came to on the test split, to its run and to itself."""
    figures = {
        "test/loss": test.loss,
        "test/accuracy": test.accuracy,
        "test/macro_f1": test.macro_f1,
        "test/calibration_error": test.calibration_error,
    }
    mlflow.log_metrics(figures, run_id=run_id, model_id=logged_model_id(model_uri))


def log_test_pictures(run_id: str, test: "Evaluation", probabilities: NDArray[np.float32], splits: Splits) -> None:
    """Logs the tables and plots of a model's answers to the test split.

    Args:
        run_id: Of the run that trained it.
        test: What the answers came to.
        probabilities: The answers, `(batch, classes)`.
        splits: Whose test split it is.
    """
    names, labels = splits.class_names, splits.test.labels
    log_by_class(test, names, "test", run_id=run_id)
    log_figure(plots.confusion_matrix(test.confusion, names), "test/confusion_matrix.png", run_id=run_id)
    answers = {
        "label": labels,
        "predicted": probabilities.argmax(axis=1).astype(np.uint8),
        "probability": probabilities.max(axis=1),
    }
    with TemporaryDirectory() as folder:
        kept = Path(folder) / "predictions.npz"
        np.savez_compressed(kept, **answers)
        mlflow.MlflowClient().log_artifact(run_id, str(kept), "test")
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != labels)
    surest = wrong[np.argsort(-probabilities[wrong].max(axis=1))][:NUM_SHOWN]
    taken_for = probabilities[surest].argmax(axis=1)
    card = plots.card(test.confusion, splits.test.images[surest], labels[surest], taken_for, names)
    log_figure(card, "test/card.png", run_id=run_id)
    for chosen, title, file in (
        (np.arange(min(NUM_SHOWN, len(labels))), "the first test images", "test/predictions.png"),
        (surest, f"the most confident of {len(wrong):,} mistakes", "test/confident_mistakes.png"),
    ):
        images = splits.test.images[chosen]
        picture = plots.predictions(images, labels[chosen], probabilities[chosen], names, title)
        log_figure(picture, file, run_id=run_id)


def _log_training(trained: "Trained") -> None:
    """Logs the summary of the model, and how it learnt."""
    lines: list[str] = []
    trained.model.summary(print_fn=lambda line, **_: lines.append(line), line_length=90)
    mlflow.log_text("\n".join(lines), "model_summary.txt")
    curves = {
        name: [getattr(epoch, name) for epoch in trained.history]
        for name in ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy")
    }
    log_figure(plots.learning_curves(curves, trained.kept.number), "learning_curves.png")


def _log_summary(trained: "Trained", plan: "Plan", splits: Splits, device: Device) -> dict[str, Any]:
    """Gives the result of a training, and writes it as the run's description too."""
    steady = [epoch.seconds for epoch in trained.history if not epoch.compiles]
    timing = spread(steady) if steady else None
    at_once = trained.history[-1].seeds_at_once
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
        "num_test_images": len(splits.test.labels),
        "num_parameters": trained.model.count_params(),
        "epoch_seconds_median": timing and timing.median,
        "epoch_seconds_min": timing and timing.min,
        "epoch_seconds_max": timing and timing.max,
        "num_timed_epochs": len(steady),
        "device": f"{device.kind}: {device.name}, {device.num_threads} threads"
        + (f", {at_once} seeds at once" if at_once > 1 else ""),
        "precision": plan.precision,
        "recipe": plan.in_words,
        "seed": plan.seed,
    }
    mlflow.set_tag("mlflow.note.content", run_card(result, mlflow.active_run().info.run_id))
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
    together = {"repeats": len(results), "seeds": [result["seed"] for result in results], **spreads}
    mlflow.set_tags({"model": results[0]["model"], "recipe": results[0]["recipe"]})
    mlflow.set_tag("mlflow.note.content", repeats_card(results[0], together))
    return together


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


def log_by_class(
    found: "Evaluation", class_names: tuple[str, ...], folder: str, *, run_id: str | None = None
) -> None:
    """Logs precision, recall and F1 of each class, and the confusion matrix, as tables, as `log_figure` does."""
    columns = {"precision": found.precision, "recall": found.recall, "f1": found.f1, "support": found.support}
    table = {"class": list(class_names)} | {name: values.tolist() for name, values in columns.items()}
    mlflow.log_table(table, f"{folder}/per_class.json", run_id)
    header = ",".join(["true\\predicted", *class_names])
    rows = [f"{name},{','.join(map(str, row))}" for name, row in zip(class_names, found.confusion, strict=True)]
    mlflow.log_text("\n".join([header, *rows]) + "\n", f"{folder}/confusion_matrix.csv", run_id)
