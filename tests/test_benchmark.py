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

from fmnist import cache, data, machine, models, processes
from fmnist.benchmark import cell as measuring
from fmnist.benchmark import grid as grids
from fmnist.benchmark import ratios, verdict
from fmnist.errors import FmnistError
from fmnist.settings import Benchmark, Validation, parse

HAS_GPU = any(Path(file).exists() for file in machine.DRIVER_FILES)
SMALL = {
    "models": "mlp",
    "dataset": "synthetic",
    "images": "500",
    "devices": "cpu,gpu",
    "batch_parts": "2",
    "epochs": "2",
    "warmup": "1",
    "rounds": "1",
}
HOUR = 3600


# One `mlflow run . -e benchmark`, after one that was broken off, read back from many sides:


@pytest.fixture(scope="module")
def store(new_store):
    """A store whose commands measure cells in processes whose clock somebody has set."""
    store = new_store()
    (store.folder / "sitecustomize.py").write_text(
        "import sys, time\n"
        "if 'entry_points.workers.cell' in sys.orig_argv:\n"
        f"    real = time.time\n    time.time = lambda: real() + {HOUR}\n"
    )
    store.environment["PYTHONPATH"] += f"{os.pathsep}{store.folder}"
    return store


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
    assert run.data.metrics["images_per_second"] == pytest.approx(500 / median)


def test_start_up_is_timed_by_a_clock_that_nobody_sets(cells):
    assert 0 < cells["mlp", "cpu", "compiled"].data.metrics["import_seconds"] < HOUR


def test_a_cell_says_what_it_was_computed_under_and_the_verdict_what_differs(cells, report):
    under = {
        trainer: [cells["mlp", "cpu", trainer].data.tags[name] for name in grids.CONDITIONS]
        for trainer in ("compiled", "fit")
    }
    pool = str(max(machine.num_threads() // 2, 1))
    assert under == {
        "compiled": ["2", pool, "2", "True", "False", "False"],
        "fit": [
            "1",
            "auto",
            "auto",
            "False",
            str(HAS_GPU),
            "False",
        ],  # where a GPU is, Keras takes XLA for CPUs too
    }
    text = (report / "verdict.md").read_text()
    assert "batch_parts: 2 / 1; " in text
    assert "deterministic: True / False" in text
    assert "TF32 is off everywhere" in text


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
    assert f"**{ratio['median']:.2f}x** ({ratio['min']:.2f}-{ratio['max']:.2f}, 1)" in text
    assert machine.cpu_name() in text
    assert store.client.get_run(result["run_id"]).data.tags["mlflow.note.content"] == text


def test_a_report_read_back_is_put_beside_with_what_differs(report):
    rows = verdict.read(str(report / "benchmark.json"))
    elsewhere = [row | {"environment": json.loads(json.dumps(row["environment"]))} for row in rows]
    for row in elsewhere:
        row["environment"]["machine"]["cpu"] = "Another CPU"
    compiled = next(row for row in rows if row["trainer"] == "compiled" and row["device"] == "cpu")
    other = next(row for row in elsewhere if row["trainer"] == "compiled" and row["device"] == "cpu")
    assert ratios.ratio(compiled, other, "elsewhere").times_as_fast.median == 1
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
        "batch_parts": "auto",
    } | {name: value for name, value in changes.items() if name in grids.CELL}))  # fmt: skip
    factor = changes.get("factor", 1.0)
    conditions = {"batch_parts": 1, "intra_op_threads": "auto", "inter_op_threads": "auto"}
    measurements = [
        {
            "epoch_seconds": epoch_seconds,
            "warmup_seconds": [3.0],
            "warmup_agreed": measuring._agree([3.0]),
            "import_seconds": 2.0,
            "build_seconds": 1.0,
            "compile_seconds": 3.0,
            "training_flops_per_image": 10,
            "conditions": conditions | {"deterministic": None, "xla": True, "tf32": changes.get("tf32", False)},
        }
        for epoch_seconds in changes.get(
            "rounds", [[factor * (first + each) for each in (1, 2, 3)] for first in (0, 1)]
        )
    ]
    return grids.sum_up(cell, measurements, made_grid())


def made_grid() -> grids.Grid:
    method = measuring.Method(("epoch",), 3, 1, 1000, "synthetic", "", 0)
    environment = {"machine": machine.facts(), "versions": {"python": "3"}, "commit": "0" * 40, "dataset": "d"}
    return grids.Grid((), method, 2, environment)


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


# What is logged, and how it ends where it can't be:


@pytest.fixture
def tracked(store, monkeypatch):
    """MLflow in this process on the store."""
    import mlflow

    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", store.experiment)
    mlflow.set_tracking_uri(store.uri)
    yield store
    mlflow.set_tracking_uri(None)


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt, "KILLED"), (RuntimeError, "FAILED")])
def test_a_cells_run_and_its_parent_end_when_logging_is_broken_off(tracked, monkeypatch, error, status):
    import mlflow

    from fmnist.tracking import benchmark as log
    from fmnist.tracking import runs

    def broken(*_):
        raise error

    monkeypatch.setattr(mlflow, "log_dict", broken)
    grid = made_grid()
    cell = measuring.Cell("mlp", 1.0, "cpu", "jax", "fit", "float32", 32, "auto")
    measured = {"epoch_seconds": [1.0], "conditions": {}}
    with pytest.raises(error), runs.run(Benchmark()) as run_id:
        log.log_cell(cell, [measured], grid, None)
    assert mlflow.active_run() is None
    nested = tracked.client.search_runs([tracked.experiment], f"tags.mlflow.parentRunId = '{run_id}'")
    assert [run.info.status for run in (tracked.client.get_run(run_id), *nested)] == [status] * 2


def test_what_was_measured_is_kept_until_it_is_logged(tracked, monkeypatch):
    from entry_points.benchmark import run_benchmark
    from fmnist.tracking import benchmark as log

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # a cell on a GPU is skipped, which is soon measured
    settings = parse(Benchmark, {"dataset": "synthetic", "level": "op", "devices": "gpu", "rounds": "1"})
    with monkeypatch.context() as patch:
        patch.setattr(log, "log_benchmark", lambda *_: (_ for _ in ()).throw(OSError("the store is away")))
        with pytest.raises(OSError, match="the store is away"):
            run_benchmark(settings)
    with monkeypatch.context() as patch:
        patch.setattr(processes, "start", lambda *_, **__: pytest.fail("measured again"))
        assert run_benchmark(settings)["skipped"] == 1
        with pytest.raises(pytest.fail.Exception, match="measured again"):
            run_benchmark(settings)  # all is logged, and so nothing is kept


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
    texts = {"models": "mlp,lenet", "batch_sizes": "auto,128", "batch_parts": "auto,2", "devices": "cpu"}
    cells = grids.grid(parse(Benchmark, texts | {"dataset": "synthetic", "images": "2000"}), splits).cells
    asked = [(cell.model, cell.trainer, cell.batch_size, cell.batch_parts) for cell in cells]
    assert len(asked) == len(set(asked)) == 1 + 2 * (2 + 1) + (2 + 1)  # lenet's own batch is 128; fit has no parts
    assert {parts for _, trainer, _, parts in asked if trainer != "compiled"} == {"auto"}
    assert dataclasses.asdict(cells[0])["model"] == measuring.OP
