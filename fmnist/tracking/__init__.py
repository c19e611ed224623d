"""The home of MLflow: runs that always end, and what a training logs to them.

The launcher of `mlflow run` logs every declared parameter, as text, before a script starts; what is logged
here under the same name would be refused. So settings are logged only where they aren't yet, and what
they were resolved to goes under `recipe.` and `hyper.`.
"""

import dataclasses
import importlib.util
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

os.environ.setdefault("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "5")  # the default, 10 s, misses short runs

import mlflow
import numpy as np
from matplotlib.figure import Figure

from fmnist import plots, serving
from fmnist.data import SPLITS, Splits
from fmnist.device import Device
from fmnist.errors import FmnistError
from fmnist.settings import default_text
from fmnist.spread import spread

if TYPE_CHECKING:
    from fmnist.evaluation import Evaluation
    from fmnist.training import Epoch, Fitted, Plan, Trained

NUM_SHOWN = 25
REPEATED_FIGURES = (
    *("test_accuracy", "test_loss", "validation_accuracy", "validation_loss"),
    *("kept_epoch", "epoch_seconds_median"),
)
LAUNCHER_SECONDS = 15


@contextmanager
def run(settings: Any) -> Iterator[str]:
    """An MLflow run, the launcher's or a new one, with the settings logged; gives its id.

    It ends as FINISHED, as KILLED after Ctrl-C or SIGTERM, as FAILED after any other exception.
    """
    with ended():
        try:
            active = mlflow.start_run(log_system_metrics=importlib.util.find_spec("psutil") is not None)
        except mlflow.MlflowException as error:
            where = mlflow.get_tracking_uri()
            raise FmnistError(f"MLflow at {where} takes no run: {error}. Check MLFLOW_TRACKING_URI") from None
        texts = {
            field.name: as_text(getattr(settings, field.name), default_text(field))
            for field in dataclasses.fields(settings)
        }
        mlflow.log_params({name: text for name, text in texts.items() if name not in active.data.params})
        yield active.info.run_id


@contextmanager
def nested_run(name: str) -> Iterator[str]:
    """A run under the active one; gives its id. It ends as `run` does."""
    with ended():
        yield mlflow.start_run(run_name=name, nested=True).info.run_id


@contextmanager
def ended() -> Iterator[None]:
    """Ends the run that is begun within it, whatever happens, with the status that `run` tells of."""
    status = "FAILED"
    try:
        yield
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        mlflow.end_run(status)


def end_launched_run(run_id: str) -> None:
    """Ends the launcher's run as KILLED, now and once more after the launcher has had its say.

    MLflow's launcher compares a run's status with numbers though it is text, so it takes no run for ended
    and writes FAILED over KILLED as soon as the script has exited.
    """
    client = mlflow.MlflowClient()
    client.set_terminated(run_id, "KILLED")
    give_up = time.monotonic() + LAUNCHER_SECONDS
    while client.get_run(run_id).info.status == "KILLED" and time.monotonic() < give_up:
        time.sleep(0.2)
    client.set_terminated(run_id, "KILLED")


def log_resumed(run_id: str) -> None:
    """Notes on the active run that it goes on from another, which, if it was killed outright, ends here."""
    active = mlflow.active_run().info.run_id
    mlflow.set_tag("resumed_from", run_id)
    client = mlflow.MlflowClient()
    with suppress(mlflow.MlflowException):  # it may be in another store, or deleted
        client.set_tag(run_id, "resumed_by", active)
        if client.get_run(run_id).info.status == "RUNNING":
            client.set_terminated(run_id, "KILLED")


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
    log_figure(plots.class_balance(splits.manifest["class_balance"], names), "data/class_balance.png")
    log_figure(plots.sample_grid(splits.train.images, splits.train.labels, names), "data/samples.png")


def log_plan(plan: "Plan", device: Device) -> None:
    """Logs the resolved recipe and hyperparameters, and the device that is really used."""
    recipe = dataclasses.asdict(plan.recipe) | {
        "augment": "+".join(plan.augment) or "none",
        "backend": plan.backend,
        "trainer": plan.trainer,
        "precision": plan.precision,
        "patience": plan.patience,
        "seed": plan.seed,
    }
    mlflow.log_params({f"recipe.{name}": value for name, value in recipe.items()})
    mlflow.log_params({f"hyper.{name}": as_text(value) for name, value in plan.hyperparameters.items()})
    mlflow.set_tags(
        {
            "model": plan.model.name,
            "device": device.kind,
            "device.name": device.name,
            "device.threads": device.num_threads,
            "device.batch_parts": plan.batch_parts,
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


def log_trained(trained: "Trained", splits: Splits) -> None:
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
    mlflow.log_table(_per_class(test, names), "test/per_class.json")
    header = ",".join(["true\\predicted", *names])
    rows = [f"{name},{','.join(map(str, row))}" for name, row in zip(names, test.confusion, strict=True)]
    mlflow.log_text("\n".join([header, *rows]) + "\n", "test/confusion_matrix.csv")
    log_figure(plots.confusion_matrix(test.confusion, names), "test/confusion_matrix.png")
    curves = {
        name: [getattr(epoch, name) for epoch in trained.history]
        for name in ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy")
    }
    log_figure(plots.learning_curves(curves, trained.kept.number), "learning_curves.png")
    probabilities, labels = trained.test_probabilities, splits.test.labels
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != labels)
    surest = wrong[np.argsort(-probabilities[wrong].max(axis=1))][:NUM_SHOWN]
    for chosen, title, file in (
        (np.arange(min(NUM_SHOWN, len(labels))), "the first test images", "test/predictions.png"),
        (surest, f"the most confident of {len(wrong):,} mistakes", "test/confident_mistakes.png"),
    ):
        images = splits.test.images[chosen]
        log_figure(plots.predictions(images, labels[chosen], probabilities[chosen], names, title), file)


def log_model(trained: "Fitted", splits: Splits, plan: "Plan") -> str:
    """Logs the model; gives its URI. `fmnist.serving` says what it takes and gives."""
    logged = serving.log_model(
        trained.model,
        name="model",
        class_names=splits.class_names,
        check_images=splits.train.images[: serving.flavor.NUM_CHECKED],
        metadata={"model": plan.model.name},
    )
    return logged.model_uri


def register(result: dict[str, Any], registered_model: str, **more_tags: Any) -> str | None:
    """Registers the model of a result, unless under `none`; gives `name/version`."""
    if registered_model == "none":
        return None
    named = {
        "model": "model",
        "dataset": "dataset",
        "dataset.digest": "dataset_digest",
        "test.accuracy": "test_accuracy",
        "validation.accuracy": "validation_accuracy",
        "seed": "seed",
    }
    values = {tag: result[name] for tag, name in named.items()} | more_tags
    tags = {tag: f"{value:.4f}" if isinstance(value, float) else str(value) for tag, value in values.items()}
    logged = mlflow.get_logged_model(result["model_uri"].removeprefix("models:/"))
    tags |= {tag: value for tag, value in logged.tags.items() if tag.split(".")[0] == "serving"}
    registered = mlflow.register_model(result["model_uri"], registered_model, tags=tags)
    return f"{registered.name}/{registered.version}"


def log_summary(trained: "Trained", plan: "Plan", splits: Splits, device: Device) -> dict[str, Any]:
    """Gives the result of a training, and writes it as the run's description too."""
    steady = [epoch.seconds for epoch in trained.history[1:]]  # the first epoch compiles
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


def log_tensorboard(trained: "Trained") -> None:
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


def _per_class(test: "Evaluation", class_names: tuple[str, ...]) -> dict[str, list[Any]]:
    figures = {"precision": test.precision, "recall": test.recall, "f1": test.f1, "support": test.support}
    return {"class": list(class_names)} | {name: values.tolist() for name, values in figures.items()}


def log_figure(figure: Figure, path: str) -> None:
    """Logs a plot to the active run."""
    mlflow.log_figure(figure, path, save_kwargs={"dpi": 110})


def as_text(value: Any, default: str = "") -> str:
    """A value as a user would type it."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return default if value is None else str(value).lower() if isinstance(value, bool) else str(value)
