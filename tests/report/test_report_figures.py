"""What a report says of its records: groups, ranks, the front, claims; and that it escapes whatever it shows."""

import runpy
from dataclasses import replace

import numpy as np
import pytest
from conftest import ROOT
from made_report import made_gathered, made_training

import fmnist.models  # noqa: F401  # fills the registry
from fmnist import statistics
from fmnist.report.claims import Claim, claims
from fmnist.report.groups import comparisons, groups, pareto, ranks
from fmnist.report.page import page
from fmnist.report.records import Benchmark, Training

made_row = runpy.run_path(str(ROOT / "tests" / "benchmark" / "made.py"))["made_row"]


def ranked(*trainings: Training) -> dict[str, int]:
    found = groups(trainings)
    return dict(zip((each.name for each in found), ranks(found, comparisons(found)), strict=True))


def test_seeds_of_the_same_training_are_one_group_and_a_seed_counts_once():
    old = made_training(0.5, seed=1, started="2025-01-01 00:00:00")
    (group,) = groups([made_training(0.8, seed=0), old, made_training(0.9, seed=1)])
    assert [each.accuracy for each in group.members] == [0.8, 0.9]
    assert list(group.again) == [old]
    assert group.accuracy.n == 2


@pytest.mark.parametrize(
    "other", [{"device": "gpu"}, {"digest": "e" * 32}, {"augment": "shift"}, {"model": "lenet"}]
)
def test_another_device_data_recipe_or_model_is_another_group(other):
    found = groups([made_training(0.8), made_training(0.8, **other)])
    assert len(found) == 2
    assert len({each.name for each in found}) == 2


def test_models_that_one_seed_does_not_tell_apart_share_a_rank():
    assert ranked(made_training(0.800), made_training(0.801, model="lenet")) == {"mlp": 1, "lenet": 1}


def test_a_model_that_the_answers_show_to_be_better_stands_alone():
    assert ranked(made_training(0.80), made_training(0.82, model="lenet")) == {"mlp": 2, "lenet": 1}


def test_without_the_answers_one_seed_shows_nothing():
    assert ranked(made_training(0.5, forgot=True), made_training(0.9, model="lenet")) == {"mlp": 1, "lenet": 1}


def test_the_headline_is_of_the_most_accurate_also_where_it_was_trained_on_other_images_of_the_dataset():
    usual = [made_training(0.8), made_training(0.7, model="lenet"), made_training(0.6, model="alexnet")]
    other = [
        made_training(value, model="cnn64", seed=seed, digest="e" * 32) for seed, value in enumerate((0.9, 0.9))
    ]
    assert "cnn64 gets 90.00 % of fashion\N{NON-BREAKING HYPHEN}mnist right" in page(
        made_gathered(*usual, *other), {}, ""
    )


def test_two_seeds_each_are_compared_over_seeds():
    near = [made_training(value, seed=seed) for seed, value in enumerate((0.70, 0.90))]
    far = [made_training(value, seed=seed, model="lenet") for seed, value in enumerate((0.80, 0.94))]
    (pair,) = comparisons(groups([*near, *far]))
    assert (pair.test, pair.is_shown) == ("Welch's t over 2 and 2 seeds", False)
    near = [made_training(value, seed=seed) for seed, value in enumerate((0.901, 0.902, 0.903))]
    far = [made_training(value, seed=seed, model="lenet") for seed, value in enumerate((0.951, 0.952, 0.953))]
    assert ranked(*near, *far) == {"lenet": 1, "mlp": 2}


def test_a_model_of_which_little_is_known_is_not_before_one_with_a_higher_mean():
    best = [made_training(value, seed=seed, model="lenet") for seed, value in enumerate((0.951, 0.952, 0.953))]
    next_best = [
        made_training(value, seed=seed, model="cnn64") for seed, value in enumerate((0.901, 0.902, 0.903))
    ]
    unsure = [made_training(value, seed=seed) for seed, value in enumerate((0.60, 0.95, 0.90))]
    assert ranked(*unsure, *best, *next_best) == {"lenet": 1, "cnn64": 2, "mlp": 2}


def test_a_name_has_no_more_than_what_tells_a_model_from_the_others():
    def made(**recipe: str) -> Training:
        one = made_training(0.8)
        named = {f"recipe.{name}": value for name, value in recipe.items()}
        return replace(one, run=replace(one.run, params={**one.run.params, **named}))

    found = groups([made_training(0.8), *(made(epochs=epochs, learning_rate="0.5") for epochs in ("3", "4"))])
    assert {each.name for each in found} == {"mlp · epochs 30", "mlp · epochs 3", "mlp · epochs 4"}
    found = groups([made_training(0.8), made_training(0.8, augment="shift")])
    assert {each.name for each in found} == {"mlp", "mlp · shift"}


def test_models_of_different_data_are_not_compared():
    text = page(made_gathered(made_training(0.5), made_training(0.9, digest="e" * 32)), {}, "")
    assert text.count("nothing to compare with") == 2


def test_welch_and_holm_give_the_known_values():
    stats = pytest.importorskip("scipy.stats")
    one, other = [1.0, 2.0, 3.0, 4.0], [2.0, 4.0, 6.0, 9.0]
    assert statistics.welch(one, other) == pytest.approx(stats.ttest_ind(one, other, equal_var=False).pvalue)
    assert (statistics.welch([1, 1], [1, 1]), statistics.welch([1, 1], [2, 2])) == (1, 0)
    assert statistics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def test_the_front_has_those_that_nothing_beats_in_both():
    assert pareto([(1, 0.8), (2, 0.9), (3, 0.85), (2, 0.7), (1, 0.8)]) == [0, 1, 4]


def test_one_seed_has_an_interval_over_images_and_more_have_one_over_seeds():
    (one,) = groups([made_training(0.8)])
    assert one.interval == statistics.wilson(800, 1000)
    (two,) = groups([made_training(0.8), made_training(0.82, seed=1)])
    assert two.interval == (two.accuracy.ci95_low, two.accuracy.ci95_high)


def test_the_first_epoch_is_no_time_of_an_epoch():
    (group,) = groups([made_training(0.8)])
    assert (group.epoch_seconds.n, group.epoch_seconds.median) == (2, 1.5)
    assert "Not timed, since" in page(made_gathered(made_training(0.8, seconds=(9.0,))), {}, "")


def test_times_of_a_group_are_of_its_first_device_alone_and_all_devices_are_named():
    other = made_training(0.9, seed=1, seconds=(9.0, 7.0, 7.0))
    other = replace(other, run=replace(other.run, tags={**other.run.tags, "device.name": "B CPU"}))
    (group,) = groups([made_training(0.8), other])
    assert (group.epoch_seconds.n, group.epoch_seconds.median) == (2, 1.5)
    assert group.devices == "cpu: A CPU, 2 threads; B CPU, 2 threads"


def claim(what: str, found: list[Claim]) -> Claim:
    (one,) = [each for each in found if what in each.what]
    return one


def test_a_claim_that_no_run_measured_says_which_command_does():
    found = claims([], [])
    assert all(each.commands and not each.measured for each in found)
    assert claim("MLP 300-100", found).commands == ["mlflow run . -e train -P model=mlp -P repeats=3"]


def test_a_claim_is_measured_by_the_models_own_recipe_alone():
    own = made_training(0.87)
    measured = claim("MLP 300-100", claims(groups([own]), []))
    assert measured.commands == []
    assert measured.measured == ["test 87.00% (1) after 30 epochs; seed 0; cpu: A CPU, 2 threads"]
    for name, value in (("epochs", "5"), ("label_smoothing", "0.1")):
        other = replace(own, run=replace(own.run, params={**own.run.params, f"recipe.{name}": value}))
        assert claim("MLP 300-100", claims(groups([other]), [])).measured == []


def test_gains_of_a_gpu_are_measured_by_rows_of_both_devices():
    rows = [
        made_row(model=model, device=device, factor=factor) | {"images": 60_000}
        for model in ("mlp", "cnn64")
        for device, factor in (("cpu", 1.0), ("gpu", 0.25))
    ]
    benchmark = Benchmark(made_training(0.5).run, rows)
    found = claims([], [benchmark])
    assert len(claim("growing complexity", found).measured) == 2
    assert claim("growing complexity", found).measured[0].startswith("4.00 (4.00-4.00, 2) times as fast")
    assert len(claim("training time", found).measured) == 2
    assert claim("training time", found).commands == []
    text = page(made_gathered(benchmarks=[benchmark]), {}, "")
    assert "CPU time over GPU time" in text
    assert "No benchmark" not in text
    fewer = claims([], [Benchmark(benchmark.run, [row | {"images": 1000} for row in rows])])
    assert claim("training time", fewer).measured == []
    half = claims([], [Benchmark(benchmark.run, [row for row in rows if row["device"] == "cpu"])])
    assert claim("training time", half).commands


def test_images_are_shown_if_they_are_at_hand_and_else_the_page_says_why():
    gathered = made_gathered(made_training(0.8), made_training(0.5, model="lenet"))
    assert "mlflow run . -e preprocess -P dataset=fashion-mnist" in page(gathered, {}, "")
    images = {"d" * 32: np.zeros((1000, 28, 28), np.uint8)}
    text = page(gathered, images, "")
    assert text.count("<img") == 24
    assert "disagree on 300 of 1,000 test images" in text
    lone = page(made_gathered(made_training(0.8), made_training(0.5, model="lenet", forgot=True)), images, "")
    assert "1 of 2 models kept their answers" in lone


def test_a_name_is_text_whatever_it_says():
    text = page(made_gathered(made_training(0.8, name="<script>alert(1)</script>")), {}, "")
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
