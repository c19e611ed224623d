"""Trials that are trained at once, each in a thread of its own."""

import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from fmnist import together
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
        calls.append(sorted(plan.seed for plan in plans))
        if 2 in calls[-1]:
            raise FmnistError("training diverged")
        return [f"model {plan.seed}" for plan in plans]

    monkeypatch.setattr(together, "groups", lambda plan, splits, seeds: [seeds[:2], seeds[2:]])
    monkeypatch.setattr(together, "fit", fit)
    return calls


def outcomes(plans, *, leaves=False):
    """What each plan comes to; when all had drawn."""
    drawn, inside = [], []
    meeting = Meeting(len(plans) + leaves, SPLITS, lambda: drawn.append(True))

    def fitted(plan):
        meeting.drawn()
        try:
            with meeting.fitted(plan) as (found, seconds):
                inside.append(plan)
                time.sleep(0.02)
                assert inside == [plan], "it is another's turn"
                assert seconds >= 0
                inside.remove(plan)
                return found
        except FmnistError as error:
            return str(error)
        finally:
            meeting.leave()

    with ThreadPoolExecutor(len(plans)) as threads:
        futures = [threads.submit(fitted, plan) for plan in plans]
        if leaves:
            meeting.leave()
        found = [future.result(timeout=30) for future in futures]
    assert drawn
    return found


def test_all_are_trained_at_once_as_many_as_fit_and_each_gets_its_own(trained):
    plans = [PLANS[0], PLANS[2], SimpleNamespace(seed=4)]
    assert outcomes(plans) == ["model 1", "model 3", "model 4"]
    assert sorted(map(len, trained)) == [1, 2]


def test_where_one_diverges_it_alone_fails(trained):
    assert outcomes(PLANS) == ["model 1", "training diverged", "model 3"]
    assert [2] in trained


def test_where_one_does_not_come_the_others_are_trained_alone(trained):
    assert outcomes([PLANS[0], PLANS[2]], leaves=True) == ["model 1", "model 3"]
    assert sorted(trained) == [[1], [3]]


def test_the_points_are_drawn_when_the_last_trial_has_drawn():
    drawn = []
    meeting = Meeting(2, SPLITS, lambda: drawn.append(True))
    meeting.drawn()
    assert not drawn
    meeting.drawn()
    assert drawn
