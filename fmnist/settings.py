"""What each entry point can be told: the only home of defaults, choices and help.

One flat frozen dataclass for each entry point. MLproject repeats names and defaults (a test compares
them); `fmnist.cli` makes the command line from the fields, and `fmnist.options` turns texts into records.
"""

import dataclasses
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmnist.errors import FmnistError
from fmnist.images import parse_images
from fmnist.options import AUTO, Settings, check, limit, option
from fmnist.records import TARGETS
from fmnist.registry import DATASETS, MODELS, unknown

SPLITS = ("train", "validation", "test")
AUGMENTATIONS = ("flip_horizontal", "flip_vertical", "rotate", "shift", "erase", "photo")
BACKENDS = ("tensorflow", "jax")
TRAINERS = ("compiled", "fit")
PEERS = ("torch", "torch_compile")  # trainers for a benchmark alone
DEVICES = ("cpu", "gpu")
LEVELS = ("epoch", "inference", "op")
PRECISIONS = ("float32", "bfloat16")
OBJECTIVES = ("accuracy", "latency", "parameters")
SAMPLERS = ("tpe", "random", "cmaes", "grid")
PRUNERS = ("hyperband", "median", "none")
LAUNCHERS = ("local", "ray")
OPTIMIZERS = ("sgd", "momentum", "adam", "adamw", "rmsprop")


@dataclass(frozen=True)
class Validation:
    """Which training images make the validation split."""

    count: int
    stratified: bool = False
    """Drawn evenly from all classes by a seed, instead of the last ones."""
    seed: int | None = None
    """Of the draw; None for the seed of what is done with it."""

    def __str__(self) -> str:
        parts = ("stratified" if self.stratified else None, self.count, self.seed if self.stratified else None)
        return ":".join(str(part) for part in parts if part is not None)


def parse_validation(text: str) -> Validation:
    """The validation split that `N`, `stratified:N` or `stratified:N:SEED` names.

    Raises:
        FmnistError: If the text is neither.
    """
    found = re.fullmatch(r"(stratified:)?(0*[1-9][0-9]*)(?(1)(?::([0-9]+))?)", text)
    if not found:
        raise FmnistError(
            "validation: expected a number of images of at least 1, stratified:N or stratified:N:SEED; "
            f"received {text!r}. Type for example -P validation=5000"
        )
    method, count, seed = found.groups()
    return Validation(int(count), bool(method), int(seed) if seed else None)


def parse_augment(text: str) -> tuple[str, ...]:
    """The augmentations that `flip_horizontal+shift` names; `none` gives none.

    Raises:
        FmnistError: If a name is unknown or stands twice.
    """
    names = () if text == "none" else tuple(text.split("+"))
    for name in names:
        if name not in AUGMENTATIONS:
            raise unknown("augmentation", name, ("none", *AUGMENTATIONS))
    if len(set(names)) < len(names):
        raise FmnistError(f"augment: expected each name once, received {text!r}")
    return names


def augment_text(names: tuple[str, ...]) -> str:
    """Augmentations as a user would type them."""
    return "+".join(names) or "none"


VALIDATION_HELP = (
    "N: the last N training images; stratified:N: N drawn evenly from all classes by the seed; stratified:N:SEED: "
    "by another"
)


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """Fetch a dataset, check it, split it, and show it."""

    dataset: str = option("fashion-mnist", "dataset by name", choices=DATASETS)
    data_dir: str = option("", "folder with the four IDX files; also FMNIST_DATA_DIR")
    validation: Validation = option(Validation(5000), VALIDATION_HELP, parse=parse_validation)
    seed: int = option(0, "seed of a stratified split", minimum=0)

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train a model, test it once, log everything, and register the result."""

    model: str = option("lenet", "model by name", choices=MODELS)
    dataset: str = option("fashion-mnist", "dataset by name", choices=DATASETS)
    data_dir: str = option("", "folder with the four IDX files; also FMNIST_DATA_DIR")
    hyper: str = option("", "the model's own arguments, for example dense=120,84;dropout=0.3")
    epochs: int | None = option(None, "passes over the training split", minimum=1)
    batch_size: int | None = option(None, "images an update", minimum=1)
    optimizer: str | None = option(None, "optimizer by name", choices=OPTIMIZERS)
    learning_rate: float | None = option(None, "step size of the optimizer", above=0)
    recipe: str = option("", "more of the recipe, for example schedule=one_cycle;label_smoothing=0.1")
    augment: tuple[str, ...] = option(
        (), f"none, or a +-joined choice of {', '.join(AUGMENTATIONS)}", parse=parse_augment, text=augment_text
    )
    validation: Validation = option(Validation(5000), VALIDATION_HELP, parse=parse_validation)
    seed: int = option(0, "seed of weights, order, dropout, augmentation", minimum=0)
    device: str = option("auto", "where to compute", choices=(AUTO, *DEVICES))
    backend: str = option("tensorflow", "what Keras computes with", choices=BACKENDS)
    trainer: str = option("compiled", "one compiled call an epoch, or stock model.fit", choices=TRAINERS)
    precision: str = option(
        "float32",
        "arithmetic of the layers; auto takes bfloat16 where device and model gain by it",
        choices=("auto", *PRECISIONS),
    )
    batch_parts: int | None = option(
        None, "parts of a batch that are worked on side by side, each on a thread; auto: by device", minimum=1
    )
    patience: int = option(
        0,
        "stop after so many epochs without a better validation accuracy, and keep the best; 0 never stops",
        minimum=0,
    )
    repeats: int = option(1, "trainings over so many seeds, from seed on, as nested runs", minimum=1)
    start_from: str = option("", "version whose weights to begin with, for example models:/fashion-mnist@champion")
    resume: str = option("", "run id, or auto: go on from the checkpoint of an interrupted run")
    registered_model: str = option("fashion-mnist", "name in the model registry, or none")
    tensorboard: bool = option(False, "write TensorBoard events too", choices=("true", "false"))

    def __post_init__(self) -> None:
        check(self)
        if self.repeats > 1 and self.resume not in ("", AUTO):
            raise FmnistError(
                f"resume: a run's id goes on with one run, but repeats={self.repeats}; type -P resume=auto"
            )
        if (self.batch_parts or 1) > 1 and (self.trainer, self.backend) != ("compiled", "tensorflow"):
            raise FmnistError(
                f"batch_parts={self.batch_parts}: parts are for trainer=compiled, backend=tensorflow; received "
                f"trainer={self.trainer}, backend={self.backend}. Type -P batch_parts=1"
            )
        check_registered_model(self.registered_model)


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Time training and inference on the devices of this machine, each cell of a grid in a process of its own."""

    models: tuple[str, ...] = option(("lenet", "cnn64"), "models by name", choices=MODELS)
    devices: tuple[str, ...] = option((AUTO,), "devices; auto: all that there are", choices=(AUTO, *DEVICES))
    batch_sizes: tuple[int | None, ...] = option((None,), "images an update; auto: of the model's recipe", above=0)
    trainers: tuple[str, ...] = option(TRAINERS, "what trains", choices=(*TRAINERS, *PEERS))
    backends: tuple[str, ...] = option(("tensorflow",), "what Keras computes with", choices=BACKENDS)
    precisions: tuple[str, ...] = option(("float32",), "what layers compute in", choices=PRECISIONS)
    batch_parts: tuple[int | None, ...] = option(
        (None,), "parts of a batch that are worked on side by side, each on a thread; auto: by device", minimum=1
    )
    widths: tuple[float, ...] = option(
        (1.0,), "factors by which the models' widths are multiplied, for the crossover map", above=0
    )
    level: tuple[str, ...] = option(LEVELS, "what to measure", choices=LEVELS)
    epochs: int = option(5, "measured epochs a round, after the warm-up", minimum=1)
    warmup: int | None = option(None, "epochs before the clock counts; auto: until two agree", minimum=1)
    rounds: int = option(2, "times that the whole grid is gone through, there and back", minimum=1)
    images: int | None = option(None, "training images an epoch; auto: all", minimum=1)
    dataset: str = option("fashion-mnist", "dataset by name", choices=DATASETS)
    data_dir: str = option("", "folder with the four IDX files; also FMNIST_DATA_DIR")
    seed: int = option(0, "seed of weights, order, dropout", minimum=0)
    against: str = option("", "benchmark.json of another run, to put beside this one")

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True)
class Speedrun:
    """Run the recipe that is recorded for a target accuracy over several seeds, and say what it took."""

    target: str = option("94", "test accuracy in percent that the mean of the seeds is to reach", choices=TARGETS)
    seeds: int = option(5, "trainings over so many seeds, from seed on, as nested runs", minimum=1)
    seed: int = option(0, "the first seed", minimum=0)
    device: str = option(AUTO, "where to compute; it decides which record is run", choices=(AUTO, *DEVICES))
    backend: str = option(
        AUTO, "what computes; auto: as recorded; jax: all seeds at once", choices=(AUTO, *BACKENDS)
    )
    dataset: str = option("fashion-mnist", "dataset by name; records are for this one", choices=DATASETS)
    data_dir: str = option("", "folder with the four IDX files; also FMNIST_DATA_DIR")
    price_per_hour: float | None = limit(
        "price_per_hour", "of the machine, in any currency: then money is told too"
    )
    registered_model: str = option("none", "name in the model registry for the seed that validates best, or none")

    def __post_init__(self) -> None:
        check(self)
        check_registered_model(self.registered_model)


@dataclass(frozen=True, kw_only=True)
class Tune:
    """Search a model's hyperparameters, re-train the best on fresh seeds, test the winner, and register it."""

    model: str = option("lenet", "model by name", choices=MODELS)
    trials: int = option(50, "trainings that the study is to have in all", minimum=1)
    objective: tuple[str, ...] = option(
        ("accuracy",), "what to look for; two make a Pareto front", choices=OBJECTIVES
    )
    space: str = option("", "narrows the search, for example width=64..512 log, optimizer=adam|adamw, dropout=0.3")
    epochs: int | None = option(None, "passes over the training split in each trial", minimum=1)
    sampler: str = option("tpe", "what proposes a trial", choices=SAMPLERS)
    pruner: str | None = option(None, "what ends a poor trial early", choices=PRUNERS)
    study: str = option("", "name; a study of that name is gone on with. Empty: a new one")
    storage: str = option("auto", "auto: a file in the cache; postgresql://... for several machines")
    workers: int = option(1, "processes that train at once, threads divided among them", minimum=1)
    launcher: str = option("local", "where workers run", choices=LAUNCHERS)
    ray_address: str = option(AUTO, "Ray cluster to start workers on, with launcher=ray")
    best: int = option(3, "configurations that are trained again on fresh seeds", minimum=1)
    repeats: int = option(3, "fresh seeds for each of them", minimum=1)
    dataset: str = option("fashion-mnist", "dataset by name", choices=DATASETS)
    data_dir: str = option("", "folder with the four IDX files; also FMNIST_DATA_DIR")
    validation: Validation = option(Validation(5000), VALIDATION_HELP, parse=parse_validation)
    seed: int = option(0, "seed of the sampler and of every trial's training", minimum=0)
    device: str = option("auto", "where to compute", choices=(AUTO, *DEVICES))
    backend: str = option("tensorflow", "what Keras computes with", choices=BACKENDS)
    precision: str = option("float32", "arithmetic of the layers", choices=(AUTO, *PRECISIONS))
    registered_model: str = option("fashion-mnist", "name in the model registry, or none")

    def __post_init__(self) -> None:
        check(self)
        check_registered_model(self.registered_model)
        if self.study and not re.fullmatch(r"[\w.-]{1,200}", self.study):
            raise FmnistError(f"study: expected letters, digits and any of . _ -; received {self.study!r}")
        if "accuracy" not in self.objective:
            received = ",".join(self.objective)
            raise FmnistError(f"objective: expected accuracy, alone or with others; received {received!r}")
        if len(self.objective) > 1 and (self.pruner not in (None, "none") or self.sampler == "cmaes"):
            refused = "sampler=cmaes" if self.sampler == "cmaes" else f"pruner={self.pruner}"
            raise FmnistError(f"{refused} takes one objective; type -P objective=accuracy, or leave it out")
        if self.storage != AUTO and not self.storage.startswith("postgresql"):
            raise FmnistError(
                f"storage: expected auto or postgresql://user@host/database, received {self.storage!r}"
            )


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Say what a model is worth: accuracy, calibration, speed, robustness; whoever made it."""

    model_uri: str = option("", "the model, for example models:/fashion-mnist/3")
    split: str = option("test", "the images to answer", choices=SPLITS)
    dataset: str = option("", "dataset by name; empty: the one that the model was trained on")
    data_dir: str = option("", "folder with the four IDX files; also FMNIST_DATA_DIR")

    def __post_init__(self) -> None:
        check(self)
        if not self.model_uri:
            raise FmnistError("model_uri: expected a model; type for example -P model_uri=models:/fashion-mnist/1")
        if self.dataset and self.dataset not in DATASETS:
            raise unknown("dataset", self.dataset, DATASETS)


MARGIN_HELP = "accuracy that a faster or smaller model may cost, as a share: 0.005 is half a point"
MAX_LATENCY_HELP = "milliseconds that one image may take (median)"
MAX_CALIBRATION_HELP = "expected calibration error that there may be"
MIN_ROBUSTNESS_HELP = "mean accuracy that there must be on harmed images"
MIN_PHOTOS_HELP = "accuracy that there must be on the photographs"


@dataclass(frozen=True, kw_only=True)
class Promote:
    """Make a version the champion if it is shown to be better, or as good and faster or smaller."""

    candidate: str = option("", "the version to promote, for example models:/fashion-mnist/4")
    against: str = option("champion", "alias of the champion; any version where there is none")
    margin: float = option(0.0, MARGIN_HELP, minimum=0, below=1)
    max_latency_ms: float | None = limit("max_latency_ms", MAX_LATENCY_HELP)
    max_calibration_error: float | None = limit("max_calibration_error", MAX_CALIBRATION_HELP)
    min_robustness: float | None = limit("min_robustness", MIN_ROBUSTNESS_HELP)
    photos: str = option("", "folder of photographs, in folders that are named after classes")
    min_photos: float | None = limit("min_photos", MIN_PHOTOS_HELP)
    data_dir: str = option("", "folder with the four IDX files; also FMNIST_DATA_DIR")
    rollback: bool = option(False, "make the previous champion the champion again", choices=("true", "false"))
    registered_model: str = option("fashion-mnist", "whose champion rollback=true takes back")

    def __post_init__(self) -> None:
        check(self)
        if bool(self.candidate) == self.rollback:
            raise FmnistError(
                "candidate: expected a version, or rollback=true, and not both; type for example "
                "-P candidate=models:/fashion-mnist/2"
            )
        if self.min_photos and not self.photos:
            raise FmnistError("min_photos: expected photographs to demand it of; type -P photos=FOLDER too")
        if self.candidate and not re.fullmatch(r"models:/[^/@]+(/\d+|@[^/@]+)", self.candidate):
            raise FmnistError(
                f"candidate: expected models:/NAME/VERSION or models:/NAME@ALIAS, received {self.candidate!r}"
            )


@dataclass(frozen=True, kw_only=True)
class Predict:
    """Answer photographs of clothes, or other images, with a model, and show what it saw."""

    images: str = option("test:0,1,2", "files and folders of images, and test images by number, joined by commas")
    model_uri: str = option("models:/fashion-mnist@champion", "the model, for example models:/fashion-mnist/3")
    raw: bool = option(
        False, "images are in the dataset's form already: 28x28, light on black", choices=("true", "false")
    )
    dataset: str = option("", "whose test images test:N names; empty: the one that the model was trained on")
    data_dir: str = option("", "folder with the four IDX files; also FMNIST_DATA_DIR")

    def __post_init__(self) -> None:
        check(self)
        parse_images(self.images)
        if self.dataset and self.dataset not in DATASETS:
            raise unknown("dataset", self.dataset, DATASETS)


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Serve a page on which a person shows a model photos and drawings, and sees what it sees."""

    model_uri: str = option("models:/fashion-mnist@champion", "the model, for example models:/fashion-mnist/3")
    port: int = option(7860, "where the page is", minimum=1, below=65536)
    host: str = option("127.0.0.1", "address to listen at; 0.0.0.0 shows the page to the network")

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True)
class Reproduce:
    """Do a training again, and say whether it comes to the same: bit for bit, or within the spread of seeds."""

    run: str = option("", "id of the run: a training, one of its seeds or their parent, a trial")
    data_dir: str = option("", "folder with the four IDX files; also FMNIST_DATA_DIR")
    device: str = option(AUTO, "where to compute; auto: on what the run was trained on", choices=(AUTO, *DEVICES))
    repeats: int = option(1, "seeds to train, from the run's own on, so that their spread is known", minimum=1)

    def __post_init__(self) -> None:
        check(self)
        if not re.fullmatch(r"[A-Za-z0-9][\w-]*", self.run):
            raise FmnistError(
                f"run: expected the id of a run, as `mlflow ui` shows it; received {self.run!r}. Type -P run=ID"
            )


def parse_run_ids(text: str) -> tuple[str, ...]:
    """The ids of runs that `ID,ID` names.

    Raises:
        FmnistError: If one is none, or stands twice.
    """
    ids = tuple(each.strip() for each in text.split(","))
    if not all(re.fullmatch("[0-9a-f]{32}", each) for each in ids) or len(set(ids)) < len(ids):
        raise FmnistError(
            f"runs: expected ids of runs, each of 32 characters and once, joined by commas; received {text!r}"
        )
    return ids


@dataclass(frozen=True, kw_only=True)
class Report:
    """Make one HTML page of what the runs of a store show: who is better, at what cost, and how that is known."""

    experiment: str = option("", "experiment by name; empty: all of the store")
    runs: tuple[str, ...] = option(
        (),
        "ids of runs, joined by commas: these and those under them; empty: all",
        parse=parse_run_ids,
        text=",".join,
    )
    to: str = option("report.html", "the file to write; one that is there is replaced")

    def __post_init__(self) -> None:
        check(self)
        folder = Path(self.to).expanduser().parent
        if not os.access(folder, os.W_OK) or not folder.is_dir():
            raise FmnistError(
                f"to: expected a file in a folder that is there and can be written; {folder} is none"
            )
        if Path(self.to).expanduser().is_dir():
            raise FmnistError(
                f"to: expected a file, {self.to} is a folder; type for example -P to={self.to}/report.html"
            )


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Look whether all is there that a training needs, and say what to type where it isn't."""

    fix: bool = option(False, "mend what can safely be mended", choices=("true", "false"))

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True)
class Main:
    """Preprocess, train, evaluate and promote in one go; what was done already is not done again."""

    model: str = option("lenet", "model by name", choices=MODELS)
    hyper: str = option("", "the model's own arguments, for example dense=120,84;dropout=0.3")
    recipe: str = option("", "more of the recipe, for example schedule=one_cycle;label_smoothing=0.1")
    dataset: str = option("fashion-mnist", "dataset by name", choices=DATASETS)
    data_dir: str = option("", "folder with the four IDX files; also FMNIST_DATA_DIR")
    epochs: int | None = option(None, "passes over the training split", minimum=1)
    validation: Validation = option(Validation(5000), VALIDATION_HELP, parse=parse_validation)
    seed: int = option(0, "seed of weights, order, dropout", minimum=0)
    device: str = option("auto", "where to compute", choices=(AUTO, *DEVICES))
    backend: str = option("tensorflow", "what Keras computes with", choices=BACKENDS)
    registered_model: str = option("fashion-mnist", "name in the model registry")
    margin: float = option(0.0, MARGIN_HELP, minimum=0, below=1)
    max_latency_ms: float | None = limit("max_latency_ms", MAX_LATENCY_HELP)
    max_calibration_error: float | None = limit("max_calibration_error", MAX_CALIBRATION_HELP)
    min_robustness: float | None = limit("min_robustness", MIN_ROBUSTNESS_HELP)

    def __post_init__(self) -> None:
        check(self)
        check_registered_model(self.registered_model)
        if self.registered_model == "none":
            raise FmnistError("registered_model: only a registered model can be promoted; type a name")

    def step(self, kind: type[Settings], **more: Any) -> Settings:
        """The settings of a step: those that it shares with these, and more."""
        names = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]  # any dataclass
        shared = {name: value for name, value in vars(self).items() if name in names}
        return kind(**shared | more)


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write runs, with all that belongs to them, to a zip that any store can import."""

    runs: tuple[str, ...] = option(("all",), "ids of runs, names of experiments, or all; runs under them go along")
    to: str = option("bundle.zip", "the zip to write")
    small: bool = option(
        False,
        "leave out models, artifacts over 36 KiB, many colours, and who ran it where",
        choices=("true", "false"),
    )

    def __post_init__(self) -> None:
        check(self)
        to = Path(self.to)
        if to.suffix != ".zip" or to.is_dir() or not to.parent.is_dir():
            raise FmnistError(
                f"to: expected a zip in a folder that is there, received {self.to!r}; type -P to=bundle.zip"
            )


@dataclass(frozen=True, kw_only=True)
class Import:
    """Add what an export wrote to the store, as far as it isn't there yet."""

    bundle: str = option("", "the zip, or a folder of what is in it")

    def __post_init__(self) -> None:
        check(self)
        if not self.bundle:
            raise FmnistError("bundle: expected a zip that export wrote; type for example -P bundle=bundle.zip")


@dataclass(frozen=True, kw_only=True)
class Init:
    """Fill the store with what there is to compare with: finished runs on named hardware."""

    bundles: str = option("mlruns_template/reference_runs", "folder of bundles")

    def __post_init__(self) -> None:
        check(self)
        if not Path(self.bundles).is_dir():
            raise FmnistError(
                f"bundles: expected a folder of bundles, received {self.bundles!r}; type -P bundles=FOLDER"
            )


def check_registered_model(name: str) -> None:
    """Checks a name for the model registry.

    Raises:
        FmnistError: If the registry would refuse it.
    """
    if not name.strip() or set("/:") & set(name):
        raise FmnistError(f"registered_model: expected a name without / and :, or none; received {name!r}")
