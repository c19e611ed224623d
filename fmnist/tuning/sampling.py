"""Draws the trials of a search: what of the space comes next, and what ends a poor trial early."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, Trial, TrialState

from fmnist.settings import Tune
from fmnist.space import Choice, Dimension, Space, grid
from fmnist.tuning import studies

REDRAWS = 100


def suggest(trial: Trial, dimensions: Space) -> dict[str, Any]:
    """The point of a space that the study's sampler gives a trial."""
    point: dict[str, Any] = {}
    for name, dimension in dimensions.items():
        if isinstance(dimension, Choice):
            point[name] = trial.suggest_categorical(name, dimension.values)
        elif dimension.whole:
            point[name] = trial.suggest_int(name, int(dimension.low), int(dimension.high), log=dimension.log)
        else:
            point[name] = trial.suggest_float(name, dimension.low, dimension.high, log=dimension.log)
    return point


def distribution(dimension: Dimension) -> BaseDistribution:
    """A dimension as Optuna names it."""
    if isinstance(dimension, Choice):
        return CategoricalDistribution(dimension.values)
    if dimension.whole:
        return IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log)
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log)


def sampler(settings: Tune, dimensions: Space, study: optuna.Study, worker: int) -> optuna.samplers.BaseSampler:
    """The sampler of a worker, whose draws no other worker has, nor the same one before it was started anew."""
    if settings.sampler == "grid":  # all workers must shuffle alike; a grid gives each point once by itself
        return optuna.samplers.GridSampler(grid(dimensions), seed=settings.seed)
    state = np.random.SeedSequence((settings.seed, worker, len(studies.trials(study)))).generate_state(2)
    seed, seed_of_redraws = (int(word) for word in state)
    made: dict[str, Callable[[], optuna.samplers.BaseSampler]] = {
        "tpe": partial(optuna.samplers.TPESampler, seed=seed),
        "random": partial(optuna.samplers.RandomSampler, seed=seed),
        "cmaes": partial(optuna.samplers.CmaEsSampler, seed=seed, warn_independent_sampling=False),
    }
    redraws = optuna.samplers.RandomSampler(seed=seed_of_redraws)
    return _Distinct(made[settings.sampler](), redraws, study, dimensions)


class _Distinct(optuna.samplers.BaseSampler):
    """Another sampler that never gives a point twice: it is asked again, and chance after it."""

    def __init__(
        self,
        sampler: optuna.samplers.BaseSampler,
        redraws: optuna.samplers.BaseSampler,
        study: optuna.Study,
        dimensions: Space,
    ) -> None:
        self.sampler, self.redraws, self.study = sampler, redraws, study
        self.distributions = {name: distribution(dimension) for name, dimension in dimensions.items()}

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self.distributions

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        others = [each.params for each in studies.trials(self.study) if each.number != trial.number]
        point: dict[str, Any] = {}
        for sampler in (self.sampler, *(self.redraws,) * REDRAWS):
            together = sampler.infer_relative_search_space(study, trial)
            point = sampler.sample_relative(study, trial, together)
            for name, distribution in search_space.items():
                if name not in point:
                    point[name] = sampler.sample_independent(study, trial, name, distribution)
            if point not in others:
                break
        return point

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self.redraws.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self.sampler.before_trial(study, trial)

    def after_trial(self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Any) -> None:
        self.sampler.after_trial(study, trial, state, values)


def pruner(settings: Tune, epochs: int) -> optuna.pruners.BasePruner:
    """The pruner of a search whose trials have so many epochs."""
    name = settings.pruner or ("median" if len(settings.objective) == 1 else "none")
    if name == "hyperband":
        return optuna.pruners.HyperbandPruner(min_resource=1, max_resource=epochs)
    return optuna.pruners.MedianPruner(n_startup_trials=5) if name == "median" else optuna.pruners.NopPruner()
