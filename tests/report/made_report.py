"""Records of a report, made by hand."""

import numpy as np

from fmnist.report.records import Answers, Gathered, Run, Training

OWN_MLP = {
    **{
        "recipe.optimizer": "sgd",
        "recipe.learning_rate": "0.01",
        "recipe.batch_size": "32",
        "recipe.epochs": "30",
    },
    **{"recipe.augment": "none", "recipe.patience": "0", "hyper.dense": "300,100", "hyper.activation": "relu"},
}


def made_training(accuracy: float, *, model: str = "mlp", seed: int = 0, **changes: object) -> Training:
    """A training that was right on the first of 1,000 test images."""
    hits = np.arange(1000) < round(1000 * accuracy)
    label = (np.arange(1000) % 10).astype(np.uint8)
    predicted = np.where(hits, label, (label + 1) % 10).astype(np.uint8)
    return Training(
        run=Run(
            run_id=f"{model}{seed}{accuracy}",
            name=str(changes.get("name", f"{model} · cpu · seed {seed}")),
            experiment="train",
            started=str(changes.get("started", "2026-01-01 00:00:00")),
            params={**OWN_MLP, "recipe.seed": str(seed), "recipe.augment": str(changes.get("augment", "none"))},
            tags={
                **{"model": model, "device": str(changes.get("device", "cpu")), "device.name": "A CPU"},
                **{"device.threads": "2", "version.keras": "3.15.1", "commit": "0123456789abcdef+1"},
                **{"dataset.name": "fashion-mnist", "dataset.digest": str(changes.get("digest", "d" * 32))},
            },
            metrics={"test/accuracy": accuracy, "num_parameters": 100.0, "data/num_test": 1000.0},
            command=f"mlflow run . -e train -P model={model}",
        ),
        curves={
            "perf/epoch_seconds": list(enumerate(changes.get("seconds", (9.0, 1.0, 2.0)), start=1)),
            "train/accuracy": [(1, 0.5), (2, 0.9)],
            "val/accuracy": [(1, 0.6), (2, 0.8)],
        },
        confusion=np.diag([100] * 10),
        class_names=tuple("0123456789"),
        answers=None if changes.get("forgot") else Answers(label, predicted, np.full(1000, 0.5, np.float32)),
    )


def made_gathered(*trainings: Training, **changes: object) -> Gathered:
    """A store with some trainings and nothing else."""
    return Gathered(trainings, changes.get("benchmarks", ()), changes.get("searches", ()), ("train",), 0)
