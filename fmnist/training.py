"""Trains a model by its recipe, stops on validation if asked, and tests once at the end."""

import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fmnist import cache, initial, machine, models
from fmnist.arguments import value_text
from fmnist.checkpoint import Checkpoint
from fmnist.data import Splits
from fmnist.device import Device, batch_parts, set_batch_parts, whole_batches_only
from fmnist.errors import FmnistError
from fmnist.evaluation import Evaluation, evaluate
from fmnist.models import Model, Start
from fmnist.recipe import Recipe, one_side_only, resolve
from fmnist.registry import MODELS
from fmnist.settings import Train

if TYPE_CHECKING:
    import keras

    from fmnist.engine import Engine
    from fmnist.engine.result import Pass


# bfloat16 pays where multiplications take the time: from convolutions of so many filters on. Shown by
# `-e benchmark -P models=lenet,alexnet,cnn64 -P trainers=compiled -P precisions=float32,bfloat16`.
NUM_FILTERS_FOR_BFLOAT16 = 32
# The files that decide what an epoch computes.
CODE = (
    *("models.py", "recipe.py", "initial.py", "training.py", "together.py", "device.py"),
    *("engine", "data"),
)


@dataclass(frozen=True)
class Plan:
    """All that decides a training run, resolved: nothing is left to a default but what `settle` does."""

    model: Model
    hyperparameters: dict[str, Any]
    recipe: Recipe
    augment: tuple[str, ...]
    backend: str
    trainer: str
    precision: str
    patience: int
    seed: int
    batch_parts: int
    """0 until settled, if nobody has said it: then batches are worked on whole."""
    start: Start | None = None
    """The weights to begin with; None for fresh ones."""

    @property
    def in_words(self) -> str:
        """The recipe, for people."""
        recipe = self.recipe
        step = f"{recipe.optimizer} {recipe.learning_rate:g}"
        passes = f"{recipe.epochs} epoch{'' if recipe.epochs == 1 else 's'}"
        more = [
            f"from {self.start.version}" if self.start else "",
            *(f"{name} {value_text(value)}" for name, value in recipe.extras.items()),
            "+".join(self.augment),
            *({self.precision, self.trainer} & {"bfloat16", "fit"}),
        ]
        return ", ".join([step, f"batch {recipe.batch_size}", passes, *filter(None, more)])


@dataclass(frozen=True)
class Epoch:
    """One pass over the training split and the validation after it."""

    number: int
    """From 1."""
    train_loss: float
    train_accuracy: float
    """Loss and accuracy as the batches were met: with dropout, augmentation and moving weights."""
    validation_loss: float
    validation_accuracy: float
    seconds: float
    """Of the training pass alone, read after the device was done."""
    images_per_second: float
    compiles: bool
    """The first of its process, also after a resumption: its seconds hold the compilation."""
    seeds_at_once: int = 1
    """How many seeds were trained in these seconds."""

    def __str__(self) -> str:
        return (
            f"{self.seconds:.2f} s  train {self.train_accuracy:.4f}  val {self.validation_accuracy:.4f}  "
            f"loss {self.train_loss:.4f}"
        )


@dataclass
class Clock:
    """What a training takes beside the seconds of its epochs; where one is asked for, all is compiled at first."""

    device: str
    """The kind, whose power is measured."""
    prepare_seconds: float = 0.0
    """Before the first epoch, but for compilation: weights, also those of images; all that goes to the device."""
    compile_seconds: float = 0.0
    """What a first epoch takes longer than a later one."""
    joules: float | None = 0.0
    """Drawn in the training passes; None if unknown."""

    def meter(self) -> Callable[[float], None]:
        """What adds the energy that is drawn from here on, to be called with the seconds of a pass at its end."""
        mean_watts = machine.power_meter(self.device)

        def add(seconds: float) -> None:
            watts = mean_watts()
            self.joules = None if self.joules is None or watts is None else self.joules + watts * seconds

        return add

    def note_compilation(self, warm_up_seconds: float, history: Sequence[Epoch], recipe: Recipe) -> None:
        """Notes how much longer the warm-up took than the same epochs later."""
        from fmnist import engine as engines

        again = sum(each.seconds for each in history if each.number in engines.kinds(recipe))
        self.compile_seconds = max(warm_up_seconds - again, 0.0)


@dataclass(frozen=True)
class Fitted:
    """A model that was trained and validated, and has not seen the test split."""

    model: "keras.Model"
    predict: Callable[[NDArray[np.uint8]], NDArray[np.float32]]
    """Probabilities `(batch, classes)` of images `(batch, 28, 28)`."""
    history: tuple[Epoch, ...]
    kept: Epoch
    """The epoch whose weights the model has."""
    xla: bool
    """Whether XLA compiled a training step."""
    predict_one_view: Callable[[NDArray[np.uint8]], NDArray[np.float32]]
    """As `predict`, without the recipe's views."""
    viewed: Evaluation | None
    """On the validation split with the recipe's views, which the history's figures are without."""


@dataclass(frozen=True)
class Trained(Fitted):
    """A model that was tested too."""

    test: Evaluation
    test_probabilities: NDArray[np.float32]
    one_view: Evaluation | None
    """On the test split without the recipe's views, if it has any."""


def plan(settings: Train) -> Plan:
    """The settings with the model's own recipe in place of every `auto`; imports nothing heavy.

    Raises:
        FmnistError: If a hyperparameter isn't one of the model's, or out of its bounds, or the recipe has smaller
            images, and the model takes those of one side alone.
    """
    model: Model = MODELS[settings.model]
    recipe = resolve(
        model.recipe,
        settings.recipe,
        optimizer=settings.optimizer,
        learning_rate=settings.learning_rate,
        batch_size=settings.batch_size,
        epochs=settings.epochs,
    )
    if recipe.small_side and not model.any_side:
        raise one_side_only(model.name, "recipe", recipe.small_side)
    return Plan(
        model=model,
        hyperparameters=model.hyperparameters(settings.hyper),
        recipe=recipe,
        augment=settings.augment,
        backend=settings.backend,
        trainer=settings.trainer,
        precision=settings.precision,
        patience=settings.patience,
        seed=settings.seed,
        batch_parts=settings.batch_parts or 0,
    )


def identity(plan: Plan, splits: Splits, device: str) -> dict[str, Any]:
    """All that decides the epochs of a plan that isn't settled, but for how many there are.

    That is the plan, the data, the device that was asked for, and the machine, versions and code that are there.
    """
    recipe = dataclasses.asdict(plan.recipe)
    if not plan.recipe.knows_its_end:
        del recipe["epochs"]
    facts = machine.facts()
    return {
        **{field.name: getattr(plan, field.name) for field in dataclasses.fields(plan)},
        "model": plan.model.name,
        "recipe": recipe,
        "start": plan.start and cache.sha256(plan.start.file),
        "dataset": splits.manifest["digest"],
        "device": device,
        **{name: facts[name] for name in ("cpu", "instruction_sets", "threads", "gpu")},
        "versions": machine.versions(),
        "code": machine.code_digest(CODE),
    }


def check_fits(plan: Plan, splits: Splits) -> None:
    """Checks a plan against the data that it is for.

    Raises:
        FmnistError: If a batch is larger than the training split, or the trainer doesn't do all of the recipe.
    """
    unknown = [name for name in plan.recipe.extras if name != "momentum"]
    if plan.trainer == "fit" and unknown:
        raise FmnistError(
            f"trainer=fit: stock Keras doesn't do {', '.join(unknown)} of the recipe; type -P trainer=compiled"
        )
    if plan.recipe.batch_size > len(splits.train):
        raise FmnistError(
            f"batch_size: expected at most the {len(splits.train)} images of the training split, "
            f"received {plan.recipe.batch_size}"
        )


def settle(plan: Plan, device: Device) -> Plan:
    """The plan with what depends on the device: the precision that `auto` takes, and the parts of a batch.

    To be called once a process, after `fmnist.device.select` and before the first array.

    Raises:
        FmnistError: If parts of a batch are asked for and the model needs it whole.
    """
    if plan.precision == "auto":
        filters = (getattr(layer, "filters", 0) for layer in plan.model.layers(plan.hyperparameters))
        pays = device.has_bfloat16 and max(filters) >= NUM_FILTERS_FOR_BFLOAT16
        plan = dataclasses.replace(plan, precision="bfloat16" if pays else "float32")
    if plan.trainer == "fit":
        return dataclasses.replace(plan, batch_parts=1)
    own = plan.recipe.norm_parts
    apart = device.kind == "cpu" and plan.backend == "tensorflow" and own > 1
    parts = plan.batch_parts or (own if apart else batch_parts(device, plan.backend, plan.precision))
    if parts not in (1, own) and own > 1:
        raise FmnistError(f"batch_parts: expected 1 or {own}, as norm_parts of the recipe; received {parts}")
    if parts != own and parts > 1 and plan.model.looks_across_batch(plan.hyperparameters):
        if plan.batch_parts:
            raise whole_batches_only(plan.model.name)
        parts = 1
    set_batch_parts(parts, device, plan.backend)
    return dataclasses.replace(plan, batch_parts=parts)


def tested(fitted: Fitted, splits: Splits) -> Trained:
    """What was trained, with what it comes to on the test split, which is read once."""
    probabilities = fitted.predict(splits.test.images)
    test = evaluate(probabilities, splits.test.labels)
    one_view = None
    if fitted.viewed:
        one_view = evaluate(fitted.predict_one_view(splits.test.images), splits.test.labels)
    return Trained(**vars(fitted), test=test, test_probabilities=probabilities, one_view=one_view)


def fit(
    plan: Plan,
    splits: Splits,
    on_epoch: Callable[[Epoch], None],
    *,
    start: Checkpoint | None = None,
    on_checkpoint: Callable[[Checkpoint], None] | None = None,
    clock: Clock | None = None,
) -> Fitted:
    """Trains on the training split and chooses on the validation split.

    With patience, training stops after so many epochs without a better validation accuracy, and the
    weights of the best epoch are kept; without, those of the last.

    Args:
        plan: What to train, settled.
        splits: What to train on.
        on_epoch: Is told of every epoch, those before `start` too; what it raises ends the training.
        start: Goes on from there instead of from the beginning.
        on_checkpoint: Is given the state after every epoch.
        clock: Is told what the training takes.
    """
    from fmnist import engine as engines

    began = perf_counter()
    model, engine = prepare(plan, splits)
    if clock:
        engines.wait(plan.backend)
        clock.prepare_seconds = perf_counter() - began
    course = Course(plan, model, start, compiled=clock is not None)
    # Python answers a signal between two of its own instructions, and a compiled epoch can take minutes: waiting
    # for a thread, the main one can be interrupted at once.
    background = ThreadPoolExecutor(max_workers=1)
    try:
        if clock:
            restore = partial(_assign, engine, [variable.numpy() for variable in engine.variables])
            train_epoch = partial(engine.train_epoch, plan.seed)
            warm_up_seconds = background.submit(engines.warm_up, train_epoch, restore, plan.recipe).result()
        if start:
            _assign(engine, start.state)
        for epoch in course.history:
            on_epoch(epoch)
        while not course.ended:
            epoch = background.submit(_epoch, engine, course, splits, clock).result()
            if course.add(epoch):
                course.best = model.get_weights()
            if on_checkpoint:
                on_checkpoint(course.checkpoint([variable.numpy() for variable in engine.variables]))
            on_epoch(epoch)
    finally:
        background.shutdown(wait=False)
    if clock:
        clock.note_compilation(warm_up_seconds, course.history, plan.recipe)
    if plan.patience:
        model.set_weights(course.best)
    predict: Callable[[NDArray[np.uint8]], NDArray[np.float32]] = engine.predict
    viewed = None
    if plan.recipe.views != "none":
        model = models.looking(model, plan.recipe.views)
        predict = engine.predictor(model)
        viewed = evaluate(predict(splits.validation.images), splits.validation.labels)
    return Fitted(model, predict, tuple(course.history), course.kept_epoch, engine.xla, engine.predict, viewed)


class Course:
    """How far a training has come, and which of its epochs is kept."""

    def __init__(
        self, plan: Plan, model: "keras.Model", start: Checkpoint | None, *, compiled: bool = False
    ) -> None:
        self.plan, self.compiled = plan, compiled
        self.history = [Epoch(**figures) for figures in start.history] if start else []
        self.num_before = len(self.history)
        self.best = model.get_weights() if plan.patience else []
        self._kept = 0
        if start:
            self._kept, self.best = start.kept_epoch, start.best

    @property
    def ended(self) -> bool:
        patience, done = self.plan.patience, len(self.history)
        return done >= self.plan.recipe.epochs or bool(patience and done - self._kept >= patience)

    @property
    def kept_epoch(self) -> Epoch:
        return self.history[self._kept - 1]

    def add(self, epoch: Epoch) -> bool:
        """Notes an epoch; gives whether its weights are to be kept as the best so far, for want of patience."""
        better = self._kept == 0 or epoch.validation_accuracy > self.kept_epoch.validation_accuracy
        self.history.append(epoch)
        if better or not self.plan.patience:
            self._kept = epoch.number
        return better and bool(self.plan.patience)

    def checkpoint(self, state: list[NDArray[Any]]) -> Checkpoint:
        return Checkpoint(state, self.best, self._kept, [dataclasses.asdict(each) for each in self.history])


def prepare(plan: Plan, splits: Splits) -> "tuple[keras.Model, Engine]":
    """The model as it begins, and what trains it."""
    from fmnist import engine as engines

    model = fresh(plan, splits)
    engine = engines.load(
        plan.trainer,
        plan.backend,
        model,
        recipe=plan.recipe,
        augment=plan.augment,
        batch_parts=plan.batch_parts or 1,
        images=splits.train.images,
        labels=splits.train.labels,
    )
    return model, engine


def fresh(plan: Plan, splits: Splits) -> "keras.Model":
    """The model as it begins."""
    model = plan.model.build(
        plan.hyperparameters, precision=plan.precision, seed=plan.seed, num_classes=len(splits.class_names)
    )
    initial.begin(model, splits.train.images)
    if plan.start:
        plan.start.give(model, splits.class_names)
    return model


def _assign(engine: "Engine", state: Sequence[NDArray[Any]]) -> None:
    """Has the next epoch begin from a state."""
    for variable, value in zip(engine.variables, state, strict=True):
        variable.assign(value)


def _epoch(engine: "Engine", course: Course, splits: Splits, clock: Clock | None) -> Epoch:
    add_energy = clock.meter() if clock else None
    trained = engine.train_epoch(course.plan.seed, len(course.history) + 1)
    if add_energy:
        add_energy(trained.seconds)
    return judged(course, trained, engine.predict(splits.validation.images), splits)


def judged(
    course: Course,
    trained: "Pass",
    probabilities: NDArray[np.float32],
    splits: Splits,
    *,
    seeds_at_once: int = 1,
) -> Epoch:
    """What an epoch came to, from its probabilities for the validation split."""
    number, (loss, accuracy, seconds) = len(course.history) + 1, trained
    if not np.isfinite(loss) or not np.isfinite(probabilities).all():
        raise FmnistError(
            f"training diverged in epoch {number} of seed {course.plan.seed} (loss {loss}). Type a smaller step, "
            f"for example -P learning_rate={course.plan.recipe.learning_rate / 10:g}"
        )
    validation = evaluate(probabilities, splits.validation.labels)
    return Epoch(
        number=number,
        train_loss=loss,
        train_accuracy=accuracy,
        validation_loss=validation.loss,
        validation_accuracy=validation.accuracy,
        seconds=seconds,
        images_per_second=len(splits.train) / seconds,
        compiles=not course.compiled and number == course.num_before + 1,
        seeds_at_once=seeds_at_once,
    )
