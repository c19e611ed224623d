"""Trials that are trained at once, each in a thread of its own."""

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from fmnist import together, training
from fmnist.errors import FmnistError
from fmnist.tuning.meeting import Meeting

SPLITS = object()
PLANS = [SimpleNamespace(seed=seed) for seed in (1, 2, 3)]


@pytest.fixture
def trained(monkeypatch):
    """The seeds of each training, in their order; two are what fits into the memory, and seed 2 diverges."""
    calls: list[list[int]] = []

    def fit(plans, splits, on_epoch):
        assert splits is SPLITS
        calls.append([plan.seed for plan in plans])
        for index, plan in enumerate(plans):
            on_epoch(index, plan.seed)
            if plan.seed == 2:
                raise FmnistError("training diverged")
        return [f"model {plan.seed}" for plan in plans]

    monkeypatch.setattr(together, "groups", lambda plan, splits, seeds: [seeds[:2], seeds[2:]])
    monkeypatch.setattr(together, "fit", fit)
    monkeypatch.setattr(
        training, "fit", lambda plan, splits, told: fit([plan], splits, lambda _, epoch: told(epoch))[0]
    )
    return calls


def outcomes(plans, *, cancels=False):
    """What each plan comes to, and the epochs that it is told of; whether the trials have begun to be trained."""
    begun, turns = [], []
    meeting = Meeting(len(plans) + cancels, SPLITS, lambda: begun.append(True))

    def fitted(plan):
        told = []
        try:
            with meeting.fitted(plan, told.append) as found:
                turns.append(plan.seed)
                assert turns.count(plan.seed) == 1
                return found, told
        except FmnistError as error:
            return str(error), told

    with ThreadPoolExecutor(len(plans)) as threads:
        futures = [threads.submit(fitted, plan) for plan in plans]
        if cancels:
            meeting.cancel()
        return [future.result() for future in futures], bool(begun)


def test_all_are_trained_at_once_as_many_as_fit_and_each_gets_its_own(trained):
    plans = [PLANS[0], PLANS[2], SimpleNamespace(seed=4)]
    found, begun = outcomes(plans)
    assert found == [("model 1", [1]), ("model 3", [3]), ("model 4", [4])]
    assert sorted(map(len, trained)) == [1, 2]
    assert begun


def test_where_one_diverges_it_alone_fails(trained):
    (first, second, third), _ = outcomes(PLANS)
    assert first[0] == "model 1"
    assert second[0] == "training diverged"
    assert third[0] == "model 3"


def test_where_one_does_not_come_the_others_are_trained_alone(trained):
    found, begun = outcomes([PLANS[0], PLANS[2]], cancels=True)
    assert found == [("model 1", [1]), ("model 3", [3])]
    assert sorted(trained) == [[1], [3]]
    assert begun
