"""What a search may vary, and the text that narrows it."""

import re

import pytest

from fmnist import models, space, training
from fmnist.errors import FmnistError
from fmnist.settings import Train
from fmnist.space import Choice, Span
from fmnist.tuning import trials

SPACE = {
    "width": Span(32, 1024, log=True),
    "dropout": Span(0.0, 0.6),
    "layers": Span(1, 3),
    "batch_size": Choice((32, 64, 128)),
    "augment": Choice(("none", "flip_horizontal+shift")),
}


@pytest.mark.parametrize(
    ("text", "narrowed"),
    [
        ("", {}),
        ("width=64..512 log", {"width": Span(64, 512, log=True)}),
        ("width=64..512", {"width": Span(64, 512, log=True)}),
        (" dropout = 0..0.5 , layers=2..3", {"dropout": Span(0.0, 0.5), "layers": Span(2, 3)}),
        ("dropout=0.1..0.5 log", {"dropout": Span(0.1, 0.5, log=True)}),
        ("width=64|128", {"width": Choice((64, 128))}),
        ("dropout=0.3", {"dropout": Choice((0.3,))}),
        ("batch_size=64..128", {"batch_size": Choice((64, 128))}),
        ("augment=flip_horizontal+shift", {"augment": Choice(("flip_horizontal+shift",))}),
    ],
)
def test_a_text_narrows_a_space(text, narrowed):
    assert space.narrow(SPACE, text) == SPACE | narrowed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("widht=64", "unknown dimension of the space 'widht'. Did you mean 'width'?"),
        ("width=512..64", "space: width: expected a range low..high, or values joined by |, within 32..1024 log"),
        ("width=64..64", "space: width: expected"),
        ("width=1..64", "space: width: expected"),
        ("width=64..5000", "space: width: expected"),
        ("width=many", "space: width: expected"),
        ("width=64.5", "space: width: expected"),
        ("width=64..128..256", "space: width: expected"),
        ("width=64 log", "space: width: expected"),
        ("width=64..128 linear", "space: width: expected"),
        ("width=", "space: width: expected"),
        ("width=64|64", "space: width: expected"),
        ("dropout=0..0.5 log", "space: dropout: expected"),
        ("dropout=nan", "space: dropout: expected"),
        ("batch_size=48", "space: batch_size: expected"),
        ("batch_size=33..63", "space: batch_size: expected"),
        ("augment=none..shift", "space: augment: expected"),
        ("augment=none|none", "space: augment: expected"),
        ("width=64..128, width=32..64", "space: width stands twice"),
    ],
)
def test_what_does_not_narrow_it_is_refused_in_one_line(text, message):
    with pytest.raises(FmnistError, match=re.escape(message)) as caught:
        space.narrow(SPACE, text)
    assert "\n" not in str(caught.value)


def test_size_counts_points():
    assert space.size({"a": Span(1, 3), "b": Choice((1, 2))}) == 6
    assert space.size(SPACE) == float("inf")


def test_a_grid_takes_ends_and_middle_of_a_span_and_all_of_a_choice():
    found = space.grid(SPACE | {"rate": Span(1e-4, 1e-2, log=True)})
    assert (found["width"], found["layers"], found["batch_size"]) == ([32, 181, 1024], [1, 2, 3], [32, 64, 128])
    assert found["rate"] == [1e-4, pytest.approx(1e-3), 1e-2]


@pytest.mark.parametrize("name", models.MODELS)
def test_every_dimension_of_every_model_changes_what_is_trained(name):
    base = training.plan(Train(model=name))
    declared = models.MODELS[name].space
    ends = space.grid(declared)
    first = {key: values[-1] for key, values in ends.items()}  # most layers: a ratio to none would change nothing
    plans = {key: trials.plan_at(base, first | {key: values[0]}) for key, values in ends.items()}
    here = trials.plan_at(base, first)
    assert [key for key, plan in plans.items() if plan == here] == []


@pytest.mark.parametrize("name", models.MODELS)
def test_every_corner_of_every_space_is_a_model_that_can_be_built(name, cpu):
    base = training.plan(Train(model=name))
    for end in (0, -1):
        plan = trials.plan_at(base, {key: values[end] for key, values in space.grid(base.model.space).items()})
        text = ";".join(
            f"{key}={','.join(map(str, value)) if isinstance(value, tuple) else value}"
            for key, value in plan.hyperparameters.items()
        )
        assert base.model.hyperparameters(text) == plan.hyperparameters  # within the bounds of `train`
        if end == 0:
            model = base.model.build(plan.hyperparameters, precision="float32", seed=0)
            assert model.output_shape == (None, 10)
