"""The grid of a benchmark, and what is made of its figures."""

import dataclasses
import json
import re

import numpy as np
import pytest
from made import made_grid, made_row

from fmnist import cache, data, models
from fmnist.benchmark import cell as measuring
from fmnist.benchmark import grid as grids
from fmnist.benchmark import ratios, verdict
from fmnist.errors import FmnistError
from fmnist.options import parse
from fmnist.settings import Benchmark, Validation


def test_the_grid_is_the_product_and_each_cell_once():
    splits = data.load("synthetic", data_dir="", validation=Validation(1), seed=0)
    texts = {"models": "mlp,lenet", "batch_sizes": "auto,128", "batch_parts": "auto,2", "devices": "cpu"}
    cells = grids.grid(parse(Benchmark, texts | {"dataset": "synthetic", "images": "2000"}), splits).cells
    asked = [(cell.model, cell.trainer, cell.batch_size, cell.batch_parts) for cell in cells]
    assert len(asked) == len(set(asked)) == 1 + 2 * (2 + 1) + (2 + 1)  # lenet's own batch is 128; fit has no parts
    assert {parts for _, trainer, _, parts in asked if trainer != "compiled"} == {"auto"}
    assert dataclasses.asdict(cells[0])["model"] == measuring.OP


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"models": "lenet,alexnett"}, "unknown model 'alexnett'. Did you mean 'alexnet'?"),
        ({"models": ""}, "models: expected one or more values joined by commas"),
        ({"models": "lenet,,mlp"}, "models: expected one or more values joined by commas"),
        ({"models": "lenet,lenet"}, "models: expected one or more values joined by commas, each once"),
        ({"devices": "tpu"}, "unknown device 'tpu'."),
        ({"epochs": "0"}, "epochs: expected at least 1"),
        ({"batch_sizes": "0"}, "batch_sizes: expected a number above 0"),
        ({"batch_parts": "0"}, "batch_parts: expected at least 1"),
        ({"batch_sizes": "many"}, "batch_sizes: expected a whole number"),
        ({"widths": "-1"}, "widths: expected a number above 0"),
        ({"level": "kernel"}, "unknown level 'kernel'."),
        ({"batch_sizes": "12001"}, "batch_sizes: expected at most the 12000 images"),
        ({"images": "12001"}, "images: expected at most the 12000 training images"),
        ({"against": "/nowhere.json"}, "against: expected the benchmark.json of another run at /nowhere.json"),
    ],
)
def test_bad_input_is_refused_in_one_line(arguments, message):
    splits = data.load("synthetic", data_dir="", validation=Validation(1), seed=0)

    def refused():
        settings = parse(Benchmark, {"dataset": "synthetic"} | arguments)
        if settings.against:
            verdict.read(settings.against)
        grids.grid(settings, splits)

    with pytest.raises(FmnistError, match=re.escape(message)) as caught:
        refused()
    assert "\n" not in str(caught.value)


def test_a_row_sums_up_all_epochs_of_all_rounds():
    row = made_row()
    assert [row[f"epoch_seconds_{key}"] for key in ("median", "min", "max", "n")] == [2.5, 1, 4, 6]
    assert (row["startup_seconds"], row["images_per_second"]) == (6, 400)
    assert row["training_flops_per_second"] == 10 * 1000 / 2.5


def test_a_rate_and_its_time_are_of_the_same_statistic():
    cell = measuring.Cell(measuring.OP, 1.0, "cpu", "jax", "none", "float32", 0, "auto")
    measured = {"matmul_flops": 6, "matmul_seconds": [1.0, 2.0, 9.0], "conditions": {}}
    row = grids.sum_up(cell, [measured], made_grid())
    assert (row["matmul_seconds_median"], row["matmul_flops_per_second"]) == (2, 3)


def test_a_ratio_says_its_range_over_rounds_and_what_differs():
    slow, fast = made_row(trainer="fit", factor=3.0, tf32=True), made_row(precision="bfloat16")
    (found,) = [each for each in ratios.ratios([slow, fast]) if each.label == "stock fit"]
    times = found.times_as_fast
    assert (times.median, times.min, times.max, times.n) == (3, 3, 3, 2)
    assert found.differences == ["precision: bfloat16 / float32", "tf32: False / True"]


def test_a_headline_ratio_lies_inside_its_range():
    fast = made_row(rounds=[[1.0, 1.0, 1.0], [1.0, 9.0, 9.0]])
    slow = made_row(rounds=[[1.0, 1.0, 1.0], [9.0, 9.0, 9.0]], trainer="fit")
    (found,) = ratios.ratios([fast, slow])  # the medians of all epochs are 1 and 5
    assert (found.times_as_fast.median, found.times_as_fast.max) == (1, 1)
    text = verdict.markdown([fast, slow], [], made_grid())
    assert "| **1.00x** (1.00-1.00, 2) |" in text
    assert "Of two rounds (n = 2) the median is the mean" in text


def test_parts_of_a_batch_stand_beside_whole_batches():
    whole, halves = made_row(batch_parts="1", factor=3.0), made_row(batch_parts="2", factor=2.0)
    (found,) = ratios.ratios([whole, halves])
    assert (found.label, found.row, found.times_as_fast.median) == ("whole batches", halves, 1.5)
    assert [verdict.name_of(row).split(", ")[-1] for row in (whole, halves, made_row())] == [
        "batch_parts 1",
        "batch_parts 2",
        "float32",
    ]


def test_one_epoch_of_warm_up_says_nothing_of_agreement():
    row = made_row()
    assert row["warmup_agreed"] is None
    assert "still differed" not in verdict.markdown([row], [], made_grid())
    assert "still differed" in verdict.markdown([row | {"warmup_agreed": False}], [], made_grid())


def test_rows_of_the_other_run_that_nothing_is_compared_with_are_named():
    text = verdict.markdown([made_row()], [made_row(), made_row(batch_size=64)], made_grid())
    assert text.count("the other run: cnn64") == 1
    assert (
        "left out of the other run, with no times of the same training: cnn64 on cpu, jax, compiled, batch 64"
        in text
    )


def without(row, *names):
    return {name: value for name, value in row.items() if name not in names}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([without(made_row(), "epoch_seconds_by_round")], "KeyError('epoch_seconds_by_round')"),
        ([made_row(), without(made_row(), "device.xla")], "KeyError('device.xla')"),
        ([made_row() | {"environment": {}}], "KeyError('machine')"),
        ([made_row(rounds=[])], "against: expected epoch times in"),
        ([], "against: expected epoch times in"),
        (None, "TypeError("),
    ],
)
def test_an_incomplete_file_of_another_run_is_refused_when_it_is_read(tmp_path, rows, message):
    (tmp_path / "benchmark.json").write_text(json.dumps({"rows": rows}))
    with pytest.raises(FmnistError, match=re.escape(message)) as caught:
        verdict.read(str(tmp_path / "benchmark.json"))
    assert str(caught.value).startswith("against: expected")


@pytest.mark.parametrize("name", ["machine", "versions", "commit", "dataset"])
def test_kept_figures_are_of_one_machine_one_set_of_versions_and_one_content_of_code(name):
    grid = made_grid()
    changed = dataclasses.replace(grid, environment=grid.environment | {name: "another"})
    assert changed.digest() != grid.digest() == made_grid().digest()


def test_the_crossover_map_holds_cpu_over_gpu_time_with_and_without_start_up():
    rows = [
        made_row(device=device, width=width, batch_size=size, factor=factor)
        for device, width, size, factor in (
            ("cpu", 1.0, 32, 4.0), ("gpu", 1.0, 32, 2.0),
            ("cpu", 2.0, 32, 9.0), ("gpu", 2.0, 32, 3.0),
            ("cpu", 2.0, 64, 8.0),
        )
    ]  # fmt: skip
    (found,) = ratios.crossovers(rows)
    assert (found["widths"], found["batch_sizes"]) == ([1.0, 2.0], [32, 64])
    steady, started = found["maps"].values()
    np.testing.assert_allclose(steady, [[2, np.nan], [3, np.nan]])
    assert started[0, 0] == pytest.approx((10 * 10 + 6) / (10 * 5 + 6))
    assert ratios.crossovers([row for row in rows if row["device"] == "cpu"]) == []


def test_the_verdict_puts_the_claim_beside_what_was_measured_and_says_that_a_gpu_is_missing():
    text = verdict.markdown([made_row()], [], made_grid())
    assert "32 min on a CPU and 9 min on a GPU (3.6x)" in text
    assert "10 epochs of 1,000 images" in text
    assert f"{(10 * 2.5 + 6) / 60:.1f} min (claimed: 32 min)" in text
    assert "GPU: not measured" in text


@pytest.mark.parametrize(
    ("seconds", "warmup", "warm"),
    [
        ([5.0], None, False),
        ([5.0, 3.0], None, False),
        ([5.0, 3.0, 3.1], None, True),
        ([5.0, 3.0, 3.2], None, False),
        ([9.0, 5.0, 3.0, 2.0, 4.0, 2.0, 4.0, 2.0, 4.0, 2.0], None, True),  # enough is enough, and it is said
        ([5.0], 1, True),
        ([5.0, 5.0], 3, False),
    ],
)
def test_the_warm_up_ends_when_two_epochs_agree_or_after_as_many_as_asked_for(seconds, warmup, warm):
    assert measuring._is_warm(seconds, warmup) is warm


def test_operations_are_counted_by_hand(cpu):
    lenet = models.MODELS["lenet"]
    model = lenet.build(lenet.scaled(1.0), precision="float32", seed=0)
    first = 2 * 28 * 28 * 25 * 6
    forward = first + 2 * (10 * 10 * 25 * 6 * 16 + 400 * 120 + 120 * 84 + 84 * 10)
    assert measuring.flops_per_image(model) == (forward, 2 * forward - first)


def test_a_width_multiplies_every_list_of_widths_and_nothing_else():
    assert models.MODELS["cnn64"].scaled(0.25) | {"filters": (16, 32), "dense": (32,)} == models.MODELS[
        "cnn64"
    ].scaled(0.25)
    assert models.MODELS["lenet"].scaled(2)["kernel"] == 5
    assert models.MODELS["wrn"].scaled(2)["width"] == 8
    for name in models.MODELS:
        assert models.MODELS[name].scaled(1.0) == models.MODELS[name].hyperparameters("")


def test_a_cell_whose_process_is_killed_is_failed_with_its_error_and_keeps_the_rounds_before(
    tmp_path, monkeypatch
):
    """As the system kills what takes all memory: here JAX at once, TensorFlow after a round that was kept."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\nif 'entry_points.workers.cell' in sys.orig_argv:\n    os.kill(os.getpid(), 9)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    splits = data.load("synthetic", data_dir="", validation=Validation(1), seed=0)
    texts = {"dataset": "synthetic", "level": "op", "devices": "cpu", "backends": "jax,tensorflow", "rounds": "2"}
    grid = grids.grid(parse(Benchmark, texts), splits)
    _, tensorflow = grid.cells
    measured = {
        "matmul_seconds": [1.0],
        "matmul_flops": 1e9,
        "convolution_seconds": [1.0],
        "convolution_flops": 1e9,
    }
    cache.write(grids._kept_file(grid, 0, tensorflow), json.dumps(measured | {"conditions": {}}))
    told = []
    rows = grids.run(grid, lambda cell, measurements: told.append(cell.backend))
    assert [(row["backend"], row["status"], row["rounds"]) for row in rows] == [
        ("jax", "failed", 0),
        ("tensorflow", "failed", 1),
    ]
    assert rows[0]["reason"].startswith("exit code -9 (often: out of memory)")
    assert rows[1]["reason"] == f"{rows[0]['reason']} (in round 2)"
    assert told == ["jax", "tensorflow", "tensorflow"]  # what failed is not tried again
    text = verdict.markdown(rows, [], grid)
    assert "| cpu, tensorflow, float32 |" in text
    assert f"- failed, {rows[1]['reason']}: op on cpu, tensorflow, float32" in text
