"""The benchmark: real cells in real processes, and what is made of their figures."""

import csv
import dataclasses
import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from fmnist import data, machine, models
from fmnist.benchmark import cell as measuring
from fmnist.benchmark import grid as grids
from fmnist.benchmark import ratios, verdict
from fmnist.errors import FmnistError
from fmnist.settings import Benchmark, Validation, parse

HAS_GPU = any(Path(file).exists() for file in machine.DRIVER_FILES)
SMALL = {
    "models": "mlp",
    "dataset": "synthetic",
    "images": "2000",
    "devices": "cpu,gpu",
    "epochs": "2",
    "rounds": "1",
}


# One `mlflow run . -e benchmark`, after one that was broken off, read back from many sides:


@pytest.fixture(scope="module")
def store(new_store):
    return new_store()


@pytest.fixture(scope="module")
def broken_off(store):
    """The nested run of the one cell that was measured before SIGTERM."""
    arguments = [text for name, value in SMALL.items() for text in (f"--{name}", value)]
    command = [sys.executable, "-m", "entry_points.benchmark", *arguments]
    with subprocess.Popen(
        command, cwd=store.folder, env=store.environment, stderr=subprocess.PIPE, text=True
    ) as process:
        for line in process.stderr:
            if "measurement 1/" in line:
                os.kill(process.pid, signal.SIGTERM)
                break
        process.stderr.read()
    runs = store.client.search_runs([store.experiment])
    assert {run.info.status for run in runs} == {"KILLED", "FINISHED"}
    (measured,) = [run for run in runs if run.info.status == "FINISHED"]
    return measured


@pytest.fixture(scope="module")
def result(store, broken_off):
    done = store.mlflow_run("benchmark", **SMALL)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def cells(store, result):
    """The nested runs of the cells, by what they measured."""
    found = store.client.search_runs(
        [store.experiment], filter_string=f"tags.mlflow.parentRunId = '{result['run_id']}'"
    )
    return {
        (run.data.params["model"], run.data.params["device"], run.data.params["trainer"]): run for run in found
    }


@pytest.fixture(scope="module")
def report(store, result):
    return store.folder / "artifacts" / result["run_id"] / "artifacts"


def test_every_cell_is_a_nested_run_with_the_same_names_of_parameters_and_metrics(cells):
    assert set(cells) == {
        *(("op", device, "none") for device in ("cpu", "gpu")),
        *(("mlp", device, trainer) for device in ("cpu", "gpu") for trainer in ("compiled", "fit")),
    }
    assert len({tuple(sorted(run.data.params)) for run in cells.values()}) == 1
    compiled, fit = (cells["mlp", "cpu", trainer].data for trainer in ("compiled", "fit"))
    assert set(fit.metrics) - set(compiled.metrics) == {"input_wait_seconds"}  # compiled waits for nothing
    assert {"epoch_seconds", "latency_seconds_median", "images_per_second", "startup_seconds"} <= set(fit.metrics)


def test_the_same_command_goes_on_where_it_was_broken_off(store, broken_off, cells):
    again = cells["op", "cpu", "none"].data.metrics
    assert again["matmul_seconds_median"] == broken_off.data.metrics["matmul_seconds_median"]


@pytest.mark.skipif(HAS_GPU, reason="this machine has a GPU's driver")
def test_a_device_that_is_not_there_is_a_cell_marked_skipped_and_nothing_else(cells, result):
    run = cells["mlp", "gpu", "compiled"]
    assert (run.data.tags["status"], run.info.status, run.data.metrics) == ("skipped", "FINISHED", {})
    assert "no GPU is visible" in run.data.tags["reason"]
    assert (result["measured"], result["skipped"], result["failed"]) == (3, 3, 0)


def test_every_epoch_is_logged_and_the_median_is_theirs(store, cells):
    run = cells["mlp", "cpu", "compiled"]
    history = store.client.get_metric_history(run.info.run_id, "epoch_seconds")
    assert len(history) == int(SMALL["epochs"])
    median = np.median([metric.value for metric in history])
    assert run.data.metrics["epoch_seconds_median"] == pytest.approx(median)
    assert run.data.metrics["images_per_second"] == pytest.approx(2000 / median)


def test_what_is_not_known_is_unknown_and_never_nought(cells, report):
    run = cells["mlp", "cpu", "compiled"]
    assert run.data.tags["unknown.device_memory_bytes"] == "unknown"
    assert "device_memory_bytes" not in run.data.metrics
    rows = list(csv.DictReader(io.StringIO((report / "benchmark.csv").read_text())))
    assert {row["device_memory_bytes"] for row in rows if row["device"] == "cpu"} == {"unknown"}
    assert run.data.tags["machine.cpu"] == machine.cpu_name()
    assert run.data.tags["commit"] == machine.commit()


def test_the_parent_has_table_plots_and_verdict(store, result, report):
    expected = {"benchmark.csv", "benchmark.json", "verdict.md", "plots/epoch_times.png", "plots/speedups.png"}
    assert expected <= store.artifacts(result["run_id"])
    (ratio,) = result["times_as_fast"]
    text = (report / "verdict.md").read_text()
    assert f"**{ratio['ratio']:.2f}x**" in text
    assert machine.cpu_name() in text
    assert store.client.get_run(result["run_id"]).data.tags["mlflow.note.content"] == text


def test_a_report_read_back_is_put_beside_with_what_differs(report):
    rows = verdict.read(str(report / "benchmark.json"))
    elsewhere = [row | {"environment": json.loads(json.dumps(row["environment"]))} for row in rows]
    for row in elsewhere:
        row["environment"]["machine"]["cpu"] = "Another CPU"
    compiled = next(row for row in rows if row["trainer"] == "compiled" and row["device"] == "cpu")
    other = next(row for row in elsewhere if row["trainer"] == "compiled" and row["device"] == "cpu")
    assert ratios.ratio(compiled, other, "elsewhere").median == 1
    assert ratios.differences(compiled, other) == [f"cpu: {machine.cpu_name()} / Another CPU"]
    assert ratios.differences(compiled, compiled) == []


# What is made of figures:


def made_row(**changes: object) -> grids.Row:
    """A row of a cell whose epochs took one, two, three seconds in one round and two, three, four in the next."""
    cell = measuring.Cell(**({
        "model": "cnn64",
        "width": 1.0,
        "device": "cpu",
        "backend": "jax",
        "trainer": "compiled",
        "precision": "float32",
        "batch_size": 128,
    } | {name: value for name, value in changes.items() if name in grids.CELL}))  # fmt: skip
    factor = changes.get("factor", 1.0)
    measurements = [
        {
            "epoch_seconds": [factor * (first + each) for each in (1, 2, 3)],
            "import_seconds": 2.0,
            "build_seconds": 1.0,
            "compile_seconds": 3.0,
            "training_flops_per_image": 10,
        }
        for first in (0, 1)
    ]
    return grids.sum_up(cell, measurements, made_grid())


def made_grid() -> grids.Grid:
    method = measuring.Method(("epoch",), 3, None, 1000, "synthetic", "", 0)
    environment = {"machine": machine.facts(), "versions": {"python": "3"}, "commit": "0" * 40, "dataset": "d"}
    return grids.Grid((), method, 2, environment)


def test_a_row_sums_up_all_epochs_of_all_rounds():
    row = made_row()
    assert [row[f"epoch_seconds_{key}"] for key in ("median", "min", "max", "n")] == [2.5, 1, 4, 6]
    assert (row["startup_seconds"], row["images_per_second"]) == (6, 400)
    assert row["training_flops_per_second"] == 10 * 1000 / 2.5


def test_a_ratio_says_its_range_over_rounds_and_what_differs():
    slow, fast = made_row(trainer="fit", factor=3.0), made_row(precision="bfloat16")
    (found,) = [each for each in ratios.ratios([slow, fast]) if each.label == "stock fit"]
    assert (found.median, found.low, found.high) == (3, 3, 3)
    assert found.differences == ["precision: bfloat16 / float32"]


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


def test_a_cell_whose_process_is_killed_is_failed_with_its_error_and_the_others_go_on(tmp_path, monkeypatch):
    """As the system kills what takes all memory."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "if 'entry_points.workers.cell' in sys.orig_argv and '\"backend\": \"jax\"' in sys.orig_argv[-1]:\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    splits = data.load("synthetic", data_dir="", validation=Validation(1), seed=0)
    settings = Benchmark(
        dataset="synthetic",
        level=("op",),
        devices=("cpu",),
        backends=("jax", "tensorflow"),
        precisions=("bfloat16",),
        rounds=2,
    )
    told = []
    rows = grids.run(grids.grid(settings, splits), lambda cell, measurements: told.append(cell.backend))
    assert [(row["backend"], row["status"]) for row in rows] == [("jax", "failed"), ("tensorflow", "measured")]
    assert rows[0]["reason"].startswith("exit code -9 (often: out of memory)")
    assert told == ["jax", "tensorflow", "tensorflow"]  # what failed is not tried again


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


def test_bad_input_is_refused_before_anything_heavy_is_imported(store):
    code = (
        "import runpy, sys\n"
        "sys.argv = ['benchmark', '--dataset', 'synthetic', '--batch_sizes', '12001']\n"
        "try:\n    runpy.run_module('entry_points.benchmark', run_name='__main__')\n"
        "finally:\n    print({'tensorflow', 'keras', 'mlflow', 'matplotlib', 'pandas'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=store.environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "set()\n")
    assert len(done.stderr.splitlines()) == 1


def test_the_grid_is_the_product_and_each_cell_once():
    splits = data.load("synthetic", data_dir="", validation=Validation(1), seed=0)
    settings = parse(
        Benchmark, {"models": "mlp,lenet", "batch_sizes": "auto,128", "dataset": "synthetic", "devices": "cpu"}
    )
    cells = grids.grid(settings, splits).cells
    sizes = [(cell.model, cell.trainer, cell.batch_size) for cell in cells]
    assert len(sizes) == len(set(sizes)) == 1 + 2 * 2 + 2  # lenet's own batch is 128
    assert dataclasses.asdict(cells[0])["model"] == measuring.OP
