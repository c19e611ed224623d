"""A training done again: equal bit for bit, within the spread of seeds, or found out not to be."""

import json
import re
import sqlite3
import subprocess
import sys

import pytest
from conftest import Store, tracked_in

from entry_points.reproduce import reproduce
from fmnist import settings
from fmnist.errors import FmnistError
from fmnist.reproduction import DIFFERS, FIGURES, SEEDS, Record, compare, note
from fmnist.settings import Reproduce

STEPS = {"dataset": "synthetic", "model": "mlp", "hyper": "dense=16", "epochs": 2, "registered_model": "none"}
SPLIT = "stratified:5000"


def command(entry_point: str, **parameters: object) -> list[str]:
    pairs = [f"--{name}={value}" for name, value in parameters.items()]
    return [sys.executable, "-m", f"entry_points.{entry_point}", *pairs]


def result_of(done: subprocess.CompletedProcess[str], code: int = 0) -> dict:
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def store(new_store) -> Store:
    return new_store()


@pytest.fixture(scope="module")
def first(store) -> str:
    return result_of(store.run(command("train", **STEPS, validation=SPLIT)))["run_id"]


@pytest.fixture(scope="module")
def trained_here(store) -> str:
    """A run of the same in this process, whose threads are others: equal bit for bit to what is trained here."""
    return result_of(store.here("train", **STEPS, validation=SPLIT))["run_id"]


@pytest.fixture(scope="module")
def again(store, first) -> dict:
    return result_of(store.mlflow_run("reproduce", run=first))


def copy_of(store: Store, run_id: str, *, status: str = "FINISHED", **tags: str) -> str:
    """A run with the same record but for some tags, as one that was imported from elsewhere."""
    run = store.client.get_run(run_id)
    new = store.client.create_run(store.experiment, tags=run.data.tags | tags).info.run_id
    for name, value in run.data.params.items():
        store.client.log_param(new, name, value)
    for name in run.data.metrics:
        for each in store.client.get_metric_history(run_id, name):
            store.client.log_metric(new, name, each.value, step=each.step)
    store.client.set_terminated(new, status)
    return new


def tamper(store: Store, run_id: str, metric: str, change: float) -> None:
    """Changes the last value of a metric in the store's own tables."""
    with sqlite3.connect(store.folder / "mlflow.db") as tables:
        for table in ("metrics", "latest_metrics"):
            where = "run_uuid = ? AND key = ?"
            tables.execute(f"UPDATE {table} SET value = value + ? WHERE {where}", (change, run_id, metric))
    tables.close()


def test_the_same_command_on_the_same_machine_is_equal_bit_for_bit(store, first, again):
    assert (again["verdict"], again["reproduces"], again["apart"]) == ("equal, bit for bit", first, {})
    (seed,) = again["seeds"]
    weights = store.client.get_run(first).data.tags["weights.sha256"]
    assert seed["weights"] == {"then": weights, "now": weights}
    assert seed["num_compared"] == 2 * 4 + 8  # two epochs with four figures each, and those of the kept model
    assert seed["differing"] == []


def test_the_run_points_at_the_first_and_its_name_says_so(store, first, again):
    run, original = store.client.get_run(again["run_id"]), store.client.get_run(first)
    assert (run.data.tags["reproduces"], run.data.tags["reproduction"]) == (first, "equal, bit for bit")
    assert original.info.run_name in run.info.run_name
    assert run.data.tags["mlflow.note.content"].startswith("**Equal, bit for bit**")
    assert f"(#/experiments/{store.experiment}/runs/{first})" in run.data.tags["mlflow.note.content"]
    assert {"reproduction.json", "reproduction.md"} <= store.artifacts(again["run_id"])
    assert run.data.params["recipe.epochs"] == original.data.params["recipe.epochs"] == "2"


def test_nothing_is_registered(store, again):
    assert store.client.search_registered_models() == []


def test_a_record_that_was_changed_is_found_out_and_what_is_apart_is_named(store, trained_here):
    other = copy_of(store, trained_here, commit="0" * 40, **{"version.keras": "3.0.0", "device.threads": "64"})
    tamper(store, other, "test/accuracy", 0.0005)
    done = store.here("reproduce", run=other)
    found = result_of(done, 3)
    assert found["verdict"] == "differs"
    assert done.stderr.splitlines()[-1].startswith(f"refused: run {other} isn't reproduced: the weights are equal")
    (figure,) = found["seeds"][0]["differing"]
    assert (figure["name"], figure["difference"]) == ("test/accuracy", pytest.approx(-0.0005))
    assert set(found["apart"]) == {"commit", "version.keras", "device.threads"}
    assert found["apart"]["version.keras"][0] == "3.0.0"
    assert re.search(r"\| test/accuracy \| 0\.\d+ \| 0\.\d+ \| -0\.0005 \|", done.stderr)
    assert store.client.get_run(found["run_id"]).info.status == "FINISHED"


def test_more_seeds_show_whether_a_difference_is_within_their_spread(store, trained_here):
    other = copy_of(store, trained_here, **{"weights.sha256": "0" * 64})
    tamper(store, other, "test/loss", 1e-5)
    done = store.here("reproduce", run=other, repeats=4)
    found = result_of(done)
    assert found["verdict"] == "equal within the spread of seeds"
    assert found["spread"]["seeds"] == [1, 2, 3]
    assert found["spread"]["test/loss"]["n"] == 3
    assert found["seeds"][0]["allowed"]["test/loss"] > 1e-5
    children = store.client.search_runs([store.experiment], f"tags.`mlflow.parentRunId` = '{found['run_id']}'")
    assert {run.info.run_id for run in children} == {found["seeds"][0]["run_id"], *found["spread"]["runs"]}
    with tracked_in(store):
        from fmnist.tracking import reproduction

        parent = reproduction.find(found["run_id"]).settings(Reproduce(run="r"))
        assert (parent.repeats, parent.seed, parent.hyper) == (4, 0, "activation=relu;dense=16")
        child = reproduction.find(found["spread"]["runs"][1]).settings(Reproduce(run="r", device="cpu"))
        assert (child.repeats, child.seed, str(child.validation)) == (1, 2, f"{SPLIT}:0")
        assert child.registered_model == "none"


def test_a_run_that_can_not_be_done_again_is_refused_in_one_line_before_any_training(store, first):
    made = {
        "no run nobody": "nobody",
        "is RUNNING; expected one that has FINISHED": copy_of(store, first, status="RUNNING"),
        "is KILLED; expected one that has FINISHED": copy_of(store, first, status="KILLED"),
        "digest 1234, the data now": copy_of(store, first, **{"dataset.digest": "1234"}),
    }
    benchmark = store.client.create_run(store.experiment, tags={"entry_point": "benchmark"}).info.run_id
    store.client.set_terminated(benchmark)
    made["is of benchmark; expected a training"] = benchmark
    going_on = store.client.create_run(store.experiment, tags={"resumed_from": first}).info.run_id
    store.client.set_terminated(going_on)
    made[f"type -P run={first}"] = going_on
    before = len(store.client.search_runs([store.experiment]))
    for message, run_id in made.items():
        with tracked_in(store), pytest.raises(FmnistError) as caught:
            reproduce(settings.Reproduce(run=run_id))
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)
    assert len(store.client.search_runs([store.experiment])) == before
    with pytest.raises(FmnistError, match="Type -P run=ID"):
        settings.Reproduce()


def test_an_imported_run_is_found_by_its_new_id_and_by_the_one_it_had(store, first, new_store, tmp_path):
    from fmnist import bundle
    from fmnist.tracking import bundles, exports, reproduction

    exports.export(exports.find([first], store.client), tmp_path / "runs.zip", store.client, small=True)
    there = new_store()
    with bundle.unpacked(tmp_path / "runs.zip") as folder:
        ids = bundles.bring(folder, there.client)
    asked = Reproduce(run=first)
    with tracked_in(store):
        wanted, digest = reproduction.find(first).settings(asked), reproduction.find(first).digest
    with tracked_in(there):
        for run_id in (first, ids[first]):
            found = reproduction.find(run_id)
            assert (found.run.info.run_id, found.digest, found.settings(asked)) == (ids[first], digest, wanted)


def record(seed: int, accuracy: float, *, weights: str | None = "a", **facts: str) -> Record:
    metrics = {"test/accuracy": {0: accuracy}, "num_parameters": {0: 10.0}, "train/loss": {1: 2.0, 2: 1.0}}
    return Record(f"run{seed}", seed, metrics, weights, facts)


def test_what_seeds_make_of_a_figure_bounds_what_counts_as_equal():
    others = [record(seed, accuracy) for seed, accuracy in ((1, 0.90), (2, 0.91), (3, 0.92))]
    # standard deviation 0.01, t(0.975, 2) = 4.303: differences of two stay within 4.303 * 0.01 * sqrt(2)
    within = compare(record(0, 0.90), record(0, 0.96, weights="b"), others)
    assert (within.verdict, within.allowed["test/accuracy"]) == (SEEDS, pytest.approx(0.06085, abs=1e-5))
    beyond = compare(record(0, 0.90), record(0, 0.962, weights="b"), others)
    assert beyond.verdict == DIFFERS
    assert "test/accuracy by 0.062" in beyond.reason
    assert "0.0608" in note([beyond])


def test_where_the_spread_is_not_known_it_is_not_claimed():
    found = compare(record(0, 0.9), record(0, 0.9001, weights="b"), [record(1, 0.9), record(2, 0.5)])
    assert found.verdict == DIFFERS
    assert "runs of 2 other seeds, expected 3 at least; type -P repeats=5" in found.reason


def test_fewer_threads_then_are_a_reason_that_can_be_tried():
    one, many = {"device.threads": "2"}, {"device.threads": "16"}
    text = note([compare(record(0, 0.9, **one), record(0, 0.9001, weights="b", **many), [])])
    assert "| device.threads | 2 | 16 |" in text
    assert "`taskset -c 0-1`" in text
    assert "taskset" not in note([compare(record(0, 0.9, **many), record(0, 0.9001, weights="b", **one), [])])


def test_a_run_without_a_digest_of_its_weights_is_said_to_be():
    found = compare(record(0, 0.9, weights=None), record(0, 0.9, cpu="new"), [])
    assert (found.verdict, found.allowed) == (FIGURES, {})
    assert "has no SHA-256 of its weights" in found.reason
    assert "| cpu | not recorded | new |" in note([found])
