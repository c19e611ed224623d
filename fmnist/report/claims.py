"""What five earlier projects reported, beside what the store's runs measured.

A claim is measured by runs of the model's own recipe on Fashion-MNIST; other epochs or another optimizer are
another training.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from fmnist.benchmark.cell import OP
from fmnist.benchmark.ratios import ratios
from fmnist.benchmark.verdict import CLAIM_CPU_MINUTES, CLAIM_GPU_MINUTES, CLAIM_MODEL, name_of
from fmnist.markdown import mean_percent, median
from fmnist.recipe import EXTRAS
from fmnist.registry import MODELS
from fmnist.report.groups import Group
from fmnist.report.records import Benchmark
from fmnist.statistics import spread

DATASET = "fashion-mnist"
NUM_IMAGES = 60_000  # of an epoch of its whole training data; fewer take less time
AUGMENTED = "flip_horizontal+rotate+shift"


@dataclass(frozen=True)
class Claim:
    """A figure or a comparison that was reported."""

    what: str
    claimed: str
    measured: Sequence[str]
    """A line for each figure, with its spread, n and device; empty if no run tells."""
    commands: Sequence[str]
    """They measure what is missing."""


def claims(groups: Sequence[Group], benchmarks: Sequence[Benchmark]) -> list[Claim]:
    """All claims, whether measured or not."""
    return [
        _accuracies(groups),
        _minutes(benchmarks),
        _growing(benchmarks),
        *(_augmented(groups, model) for model in ("lenet", "alexnet")),
        _convolution(benchmarks),
        _mlp(groups),
    ]


# What a run doesn't say of its recipe where it is off, as in the model's own.
OFF = {name: str(field.default) for name, field in EXTRAS.items()}


def by_recipe(groups: Sequence[Group], model: str, *, augment: str = "none") -> list[Group]:
    """The groups of a model with its own recipe on Fashion-MNIST."""
    own = {name: str(value) for name, value in asdict(MODELS[model].recipe).items()} | {"augment": augment}
    own |= {
        name: ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        for name, value in MODELS[model].hyperparameters("").items()
    }
    return [
        each
        for each in groups
        if each.first.model == model
        and each.first.dataset == DATASET
        and {name: (OFF | each.first.recipe).get(name) for name in own} == own
        and each.first.recipe.get("patience", "0") == "0"
    ]


def _train(model: str, *more: str) -> str:
    return " ".join([f"mlflow run . -e train -P model={model}", *(f"-P {each}" for each in more), "-P repeats=3"])


def _of(group: Group, text: str) -> str:
    many = "s" if len(group.members) > 1 else ""
    return f"{text}; seed{many} {group.seeds}; {group.devices}"


def _accuracies(groups: Sequence[Group]) -> Claim:
    lines = []
    for each in by_recipe(groups, "mlp_dropout"):
        last = [curve[-1][1] for member in each.members if (curve := member.curves.get("train/accuracy"))]
        train = f"train {mean_percent(spread(last))} in the last epoch, with dropout on; " if last else ""
        lines.append(_of(each, f"{train}test {mean_percent(each.accuracy)}"))
    return Claim(
        "MLP with dropout, Adam: accuracy",
        "about 94 % train, 91 % test",
        lines,
        [] if lines else [_train("mlp_dropout")],
    )


def _minutes(benchmarks: Sequence[Benchmark]) -> Claim:
    epochs, lines, devices = MODELS[CLAIM_MODEL].recipe.epochs, [], set()
    for each in benchmarks:
        for row in each.rows:
            if (row["model"], row["width"], row["images"]) == (CLAIM_MODEL, 1, NUM_IMAGES) and row[
                "epoch_seconds_median"
            ]:
                seconds = epochs * row["epoch_seconds_median"] + (row["startup_seconds"] or 0)
                devices.add(row["device"])
                lines.append(
                    f"{seconds / 60:.1f} min for {epochs} epochs of {row['images']:,} images with start-up, from "
                    f"the median of {row['epoch_seconds_n']} epochs; {name_of(row)}; {hardware(row)}"
                )
    missing = {"cpu", "gpu"} - devices
    command = f"mlflow run . -e benchmark -P models={CLAIM_MODEL} -P level=epoch -P devices=cpu,gpu"
    return Claim(
        f"First CNN ({CLAIM_MODEL}): training time",
        f"{CLAIM_CPU_MINUTES} min on a CPU, {CLAIM_GPU_MINUTES} min on a GPU; epochs and batch not given",
        lines,
        [command] if missing else [],
    )


def _growing(benchmarks: Sequence[Benchmark]) -> Claim:
    lines, models = [], set()
    for each in benchmarks:
        own = [row for row in each.rows if row["width"] == 1]
        found = [ratio for ratio in ratios(own) if ratio.label == "CPU" and ratio.row["device"] == "gpu"]
        for ratio in sorted(found, key=lambda ratio: ratio.row["training_flops_per_image"] or 0):
            models.add(ratio.row["model"])
            lines.append(
                f"{median(ratio.times_as_fast)} times as fast (median, min-max, rounds): {name_of(ratio.row)}, "
                f"{ratio.row['images']:,} images an epoch; "
                f"{hardware(ratio.row)}"
            )
    command = "mlflow run . -e benchmark -P models=mlp,lenet,cnn64,cnn128,cnn256 -P level=epoch -P devices=cpu,gpu"
    return Claim(
        "Epoch time of models of growing complexity",
        "the GPU gains more, the more complex the model is",
        lines,
        [] if len(models) > 1 else [command],
    )


def _augmented(groups: Sequence[Group], model: str) -> Claim:
    lines, commands = [], []
    for words, augment in (("without", "none"), ("with", AUGMENTED)):
        found = by_recipe(groups, model, augment=augment)
        lines += [_of(each, f"{words}: test {mean_percent(each.accuracy)}") for each in found]
        if not found:
            commands.append(_train(model, *([f"augment={augment}"] if augment != "none" else [])))
    return Claim(
        f"{model} with and without flips, rotation and shift",
        "both were trained; no figure is handed down",
        lines,
        commands,
    )


def _convolution(benchmarks: Sequence[Benchmark]) -> Claim:
    rows = [row for each in benchmarks for row in each.rows if row["model"] == OP and row["convolution_seconds_n"]]
    lines = [
        f"{1e3 * row['convolution_seconds_median']:.3g} ms ({1e3 * row['convolution_seconds_min']:.3g}-"
        f"{1e3 * row['convolution_seconds_max']:.3g}, {row['convolution_seconds_n']}); {name_of(row)}; "
        f"{hardware(row)}"
        for row in rows
    ]
    missing = {"cpu", "gpu"} - {row["device"] for row in rows}
    command = "mlflow run . -e benchmark -P level=op -P devices=cpu,gpu"
    return Claim(
        "One convolution, on CPU and GPU",
        "the GPU is faster; no figure is handed down",
        lines,
        [command] if missing else [],
    )


def _mlp(groups: Sequence[Group]) -> Claim:
    lines = [
        _of(each, f"test {mean_percent(each.accuracy)} after {each.first.recipe['epochs']} epochs")
        for each in by_recipe(groups, "mlp")
    ]
    return Claim(
        "MLP 300-100, SGD, 30 epochs",
        "trained, with curves; no figure is handed down",
        lines,
        [] if lines else [_train("mlp")],
    )


def hardware(row: dict[str, object]) -> str:
    """The machine of a benchmark's row, in words."""
    environment = row["environment"]
    facts = environment["machine"] if isinstance(environment, dict) else {}
    gpu = f", GPU {facts['gpu']}" if row["device"] == "gpu" else ""
    return f"{facts['cpu']}, {facts['threads']} threads{gpu}"
