"""Trains several seeds of one plan: with JAX at once, in one compiled call an epoch; else one by one.

Each seed comes to what `fmnist.training.fit` makes of it alone, to rounding.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import accumulate
from time import perf_counter
from typing import TYPE_CHECKING, TypeVar

from fmnist import models, training
from fmnist.checkpoint import Checkpoint
from fmnist.data import Splits
from fmnist.evaluation import evaluate
from fmnist.training import Clock, Course, Epoch, Fitted, Plan, fresh, judged

if TYPE_CHECKING:
    import keras

    from fmnist.engine.together import SeedsEngine

Item = TypeVar("Item")
SHARE = 0.8
"""Of the memory that is free; the rest is for what allocations leave unusable between them."""


def possible(plan: Plan) -> bool:
    """Whether seeds of a plan can be trained at once."""
    return (plan.backend, plan.trainer) == ("jax", "compiled")


def which(plans: Sequence[Plan]) -> str:
    """The seeds of plans that follow one another, for people."""
    first, last = plans[0].seed, plans[-1].seed
    return f"seed {first}" if first == last else f"seeds {first}-{last}"


def groups(plan: Plan, splits: Splits, seeds: Sequence[Item]) -> list[Sequence[Item]]:
    """The seeds of a plan in groups that `fit` takes: as many at once as fit into the memory of the device.

    Args:
        plan: Settled; where seeds can be trained at once, it is compiled to see what one takes.
        splits: What it is trained on.
        seeds: What stands for them.
    """
    sizes = [1] * len(seeds)
    if len(seeds) > 1 and possible(plan):
        from fmnist.engine import together

        engine = _engine(plan, fresh(plan, splits), splits)
        sizes = group_sizes(len(seeds), engine.bytes_each(), together.free_bytes())
    return [seeds[end - size : end] for end, size in zip(accumulate(sizes), sizes, strict=True)]


def group_sizes(count: int, bytes_each: int, free: int) -> list[int]:
    """Sizes of the fewest groups of so many seeds that fit into what is free, as alike as can be."""
    most = min(max(int(SHARE * free) // bytes_each, 1), count)
    num_groups = -(-count // most)
    return [count // num_groups + (index < count % num_groups) for index in range(num_groups)]


def fit(
    plans: Sequence[Plan],
    splits: Splits,
    on_epoch: Callable[[int, Epoch], None],
    *,
    starts: Sequence[Checkpoint | None] = (),
    on_checkpoint: Callable[[int, Checkpoint], None] | None = None,
    clock: Clock | None = None,
) -> list[Fitted]:
    """As `fmnist.training.fit` for each of one or several plans, which differ in their seeds alone.

    The epochs of each take as long as those of all. A seed that has lost its patience keeps its best weights while
    the others go on.

    Args:
        plans: What to train, settled; one of `groups`.
        splits: What to train on.
        on_epoch: Is told of every epoch, with the place of its plan; what it raises ends the training.
        starts: From where each goes on, all after as many epochs; none begins at the beginning.
        on_checkpoint: Is given the state after every epoch, with the place of its plan.
        clock: Is told what the training of all takes.
    """
    if len(plans) == 1:
        start, told = next(iter(starts), None), partial(on_epoch, 0)
        kept = on_checkpoint and partial(on_checkpoint, 0)
        return [training.fit(plans[0], splits, told, start=start, on_checkpoint=kept, clock=clock)]
    from fmnist import engine as engines

    began = perf_counter()
    weighted = [fresh(plan, splits) for plan in plans]
    engine = _engine(plans[0], weighted[0], splits)
    begun = list(zip(plans, weighted, starts or [None] * len(plans), strict=True))
    courses = [Course(plan, model, start, compiled=clock is not None) for plan, model, start in begun]
    states = [start.state if start else engine.fresh_state(model) for _, model, start in begun]
    begin = partial(engine.begin, [plan.seed for plan in plans], states)
    begin()
    if clock:
        engines.wait(plans[0].backend)
        clock.prepare_seconds = perf_counter() - began
    patience, num_weights = plans[0].patience, len(weighted[0].weights)
    background = ThreadPoolExecutor(max_workers=1)
    try:
        if clock:
            warm_up = background.submit(engines.warm_up, engine.train_epochs, begin, plans[0].recipe)
            warm_up_seconds = warm_up.result()
        for index, course in enumerate(courses):
            for epoch in course.history:
                on_epoch(index, epoch)
        while going := [index for index, course in enumerate(courses) if not course.ended]:
            epochs = background.submit(_epochs, engine, courses, going, splits, clock).result()
            states = engine.states() if on_checkpoint or patience else []
            for index, epoch in zip(going, epochs, strict=True):
                if courses[index].add(epoch):
                    courses[index].best = states[index][:num_weights]
                if on_checkpoint:
                    on_checkpoint(index, courses[index].checkpoint(states[index]))
            for index, epoch in zip(going, epochs, strict=True):
                on_epoch(index, epoch)
    finally:
        background.shutdown(wait=False)
    if clock:
        clock.note_compilation(warm_up_seconds, courses[0].history, plans[0].recipe)
    for model, course, state in zip(weighted, courses, engine.states(), strict=True):
        model.set_weights(course.best if patience else state[:num_weights])
    views, found = plans[0].recipe.views, weighted
    predicts = one_view = engine.predictors(engine.model, weighted)
    if views != "none":
        found = [models.looking(model, views) for model in weighted]
        predicts = engine.predictors(found[0], weighted)
    fitted = []
    for model, predict, course, plain in zip(found, predicts, courses, one_view, strict=True):
        viewed = None
        if views != "none":
            viewed = evaluate(predict(splits.validation.images), splits.validation.labels)
        history = tuple(course.history)
        fitted.append(Fitted(model, predict, history, course.kept_epoch, engine.xla, plain, viewed))
    return fitted


def _engine(plan: Plan, model: "keras.Model", splits: Splits) -> "SeedsEngine":
    from fmnist import engine as engines

    train = splits.train
    return engines.load_together(
        model, recipe=plan.recipe, augment=plan.augment, images=train.images, labels=train.labels
    )


def _epochs(
    engine: "SeedsEngine", courses: Sequence[Course], going: Sequence[int], splits: Splits, clock: Clock | None
) -> list[Epoch]:
    """The next epoch of those courses that are going on."""
    add_energy = clock.meter() if clock else None
    trained = engine.train_epochs(len(courses[going[0]].history) + 1)
    if add_energy:
        add_energy(trained[0].seconds)
    probabilities = engine.predict_all(splits.validation.images)
    return [
        judged(courses[index], trained[index], probabilities[index], splits, seeds_at_once=len(courses))
        for index in going
    ]
