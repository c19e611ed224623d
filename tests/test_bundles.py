"""Runs that go from one store to another: all of them arrives, once; and nothing of a bundle that isn't sound."""

import json
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import mlflow
import numpy as np
import pytest
from conftest import ROOT, Store, register_foreign, tracked_in
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelInput, Metric, RunTag

from fmnist import bundle
from fmnist.errors import FmnistError
from fmnist.tracking import bundles, exports
from fmnist.tracking.runs import open_store as open_store  # which switches MLflow's bars off

NAME = "garments"
NUM_POINTS = 2500


@pytest.fixture(scope="module")
def source(new_store):
    """A store with a run that trained a registered model, one under it with a long history, one that judged."""
    store = new_store()
    register_foreign(store, NAME, noise=1)
    client = store.client
    (trained,) = client.search_runs([store.experiment])
    trained_id = trained.info.run_id
    (model,) = client.search_logged_models([store.experiment])
    client.log_batch(
        trained_id,
        metrics=[
            Metric("test/accuracy", 0.875, 1_700_000_000_123, 0, model_id=model.model_id),
            *(Metric("val/loss", value, 1_700_000_000_000, step) for step, value in enumerate(STRANGE)),
        ],
    )
    client.log_inputs(
        trained_id,
        [DatasetInput(Dataset("synthetic", "abc", "code", "{}"), [InputTag("mlflow.data.context", "training")])],
    )
    page = f"[run](#/experiments/{store.experiment}/runs/{trained_id}) of http://elsewhere/#/runs/{trained_id}"
    client.set_tag(trained_id, "mlflow.note.content", page)
    client.log_text(trained_id, "kept", "deep/er/text.txt")
    client.set_logged_model_tags(model.model_id, {"serving": "pyfunc"})
    client.update_registered_model(NAME, "What garments are.")
    client.update_model_version(NAME, "1", f"Made by {trained_id}.")
    client.set_registered_model_alias(NAME, "champion", "1")

    child = client.create_run(
        store.experiment, 1_700_000_000_000, {"mlflow.parentRunId": trained_id}, "child"
    ).info
    points = [Metric("train/loss", 1 / step, 1_700_000_000_000 + step, step) for step in range(1, NUM_POINTS + 1)]
    for start in range(0, NUM_POINTS, 1000):
        client.log_batch(child.run_id, metrics=points[start : start + 1000])
    for start in range(0, 250, 50):
        client.log_batch(
            child.run_id, params=[mlflow.entities.Param(f"p{each}", "1") for each in range(start, start + 50)]
        )
        client.log_batch(child.run_id, tags=[RunTag(f"t{each}", "1") for each in range(start, start + 50)])
    client.set_tag(child.run_id, "resumed_from", trained_id)
    client.set_terminated(child.run_id, "KILLED", 1_700_000_009_999)

    judged = client.create_run(store.experiment, run_name="judged").info.run_id
    client.log_inputs(judged, models=[LoggedModelInput(model.model_id)])
    client.set_tag(judged, "model_uri", f"models:/{model.model_id}")
    client.log_metric(judged, "robustness", 0.5, model_id=model.model_id)
    client.set_terminated(judged)
    return store


STRANGE = [0.1, 1e-300, float("nan"), float("inf"), float("-inf"), 0.1 + 0.2]


@pytest.fixture(scope="module")
def made(source, tmp_path_factory) -> Path:
    """All of it in a zip."""
    to = tmp_path_factory.mktemp("bundle") / "bundle.zip"
    exports.export(exports.find(["all"], source.client), to, source.client, small=False)
    return to


def everything(client: MlflowClient) -> list:
    """All that a store holds, but for where files lie, by the names of runs."""
    found: list = []
    experiments = [each.experiment_id for each in client.search_experiments()]
    for each in client.search_runs(experiments):
        run = client.get_run(each.info.run_id)
        histories = {
            key: sorted(
                (each.step, each.timestamp, repr(each.value))
                for each in client.get_metric_history(run.info.run_id, key)
            )
            for key in run.data.metrics
        }
        files = sorted(bundles.files(lambda path, run=run: client.list_artifacts(run.info.run_id, path)))
        inputs, outputs = run.inputs.to_dictionary(), run.outputs.to_dictionary()
        inputs["model_inputs"] = [each.model_id for each in run.inputs.model_inputs]
        found.append(
            [
                {**dict(run.info), "artifact_uri": ""},
                dict(run.data.params),
                dict(run.data.tags),
                histories,
                files,
                inputs,
                outputs,
            ]
        )
    for model in client.search_logged_models(experiments):
        full = client.get_logged_model(model.model_id)
        files = sorted(
            bundles.files(lambda path, model=model: client.list_logged_model_artifacts(model.model_id, path))
        )
        metrics = sorted(
            (each.key, each.value, each.step, each.timestamp, each.run_id) for each in full.metrics or []
        )
        found.append([{**full.to_dictionary(), "metrics": metrics}, files])
    for registered in client.search_registered_models():
        found.append([registered.name, registered.description, registered.tags, registered.aliases])
    for version in client.search_model_versions():
        found.append(dict(client.get_model_version(version.name, str(version.version))))
    return found


def bring(path: Path, store: Store) -> tuple[dict[str, str], bundles.Tally]:
    tally = bundles.Tally()
    with bundle.unpacked(path) as folder, tracked_in(store):
        return bundles.bring(folder, store.client, tally), tally


@pytest.fixture(scope="module")
def target(new_store) -> Store:
    return new_store()


@pytest.fixture(scope="module")
def brought(made, target):
    return bring(made, target)


def test_every_run_arrives_with_its_history_its_time_and_its_status(source, target, brought):
    ids, tally = brought
    assert (tally.added["runs"], tally.added["models"], tally.added["versions"]) == (3, 1, 1)
    for run in source.client.search_runs([source.experiment]):
        there = target.client.get_run(ids[run.info.run_id])
        for name in ("run_name", "status", "start_time", "end_time"):
            assert getattr(there.info, name) == getattr(run.info, name)
        assert there.data.params == run.data.params
        for key in run.data.metrics:
            one, other = (
                [(each.step, each.timestamp, repr(each.value)) for each in client.get_metric_history(run_id, key)]
                for client, run_id in ((source.client, run.info.run_id), (target.client, ids[run.info.run_id]))
            )
            assert sorted(one) == sorted(other)
            assert len(one) == (NUM_POINTS if key == "train/loss" else len(STRANGE) if key == "val/loss" else 1)
        assert [each.to_dictionary() for each in there.inputs.dataset_inputs] == [
            each.to_dictionary() for each in run.inputs.dataset_inputs
        ]
        assert dict(there.data.metrics) == pytest.approx(dict(run.data.metrics), nan_ok=True)


def test_references_between_runs_and_models_hold_in_the_new_store(source, target, brought):
    ids, _ = brought
    by_name = {run.info.run_name: run for run in target.client.search_runs([target.experiment])}
    (old,) = (run for run in source.client.search_runs([source.experiment]) if run.outputs.model_outputs)
    trained_id = ids[old.info.run_id]
    child, judged = (target.client.get_run(by_name[name].info.run_id) for name in ("child", "judged"))
    assert child.data.tags["mlflow.parentRunId"] == child.data.tags["resumed_from"] == trained_id
    trained = target.client.get_run(trained_id)
    (output,) = trained.outputs.model_outputs
    assert judged.data.tags["model_uri"] == f"models:/{output.model_id}"
    assert [each.model_id for each in judged.inputs.model_inputs] == [output.model_id]
    assert trained.data.tags["mlflow.note.content"] == (
        f"[run](#/experiments/{target.experiment}/runs/{trained_id}) of http://elsewhere/#/runs/{old.info.run_id}"
    )
    model = target.client.get_logged_model(output.model_id)
    assert model.source_run_id == trained_id
    assert {(each.key, each.value, each.run_id) for each in model.metrics} == {
        ("test/accuracy", 0.875, trained_id),
        ("robustness", 0.5, judged.info.run_id),
    }
    version = target.client.get_model_version_by_alias(NAME, "champion")
    assert (version.description, version.run_id) == (f"Made by {trained_id}.", trained_id)
    assert target.client.get_registered_model(NAME).description == "What garments are."


def test_what_was_brought_says_where_it_is_from(source, target, brought):
    for old, new in brought[0].items():
        if old.startswith("m-"):
            tags, key = target.client.get_logged_model(new).tags, "bundle.model"
        else:
            tags, key = target.client.get_run(new).data.tags, "bundle.run"
        assert tags[key] == old
        assert tags["bundle.from"] == "sqlite:mlflow.db"
        assert len(tags["bundle.sha256"]) == 64


def test_a_brought_model_answers_as_it_did(source, target, brought):
    images = np.random.default_rng(0).uniform(0, 255, (3, 28, 28)).astype(np.float32)
    answers = []
    for store in (source, target):
        with tracked_in(store):
            answers.append(mlflow.pyfunc.load_model(f"models:/{NAME}@champion").predict(images))
            info = mlflow.models.get_model_info(f"models:/{NAME}/1")
    np.testing.assert_array_equal(*answers)
    assert info.run_id in brought[0].values()
    assert info.model_id in brought[0].values()


def test_a_bundle_brought_twice_adds_nothing(made, target, brought):
    before = everything(target.client)
    ids, tally = bring(made, target)
    assert ids == brought[0]
    assert not tally.added
    assert everything(target.client) == before


def test_a_store_takes_nothing_of_a_bundle_of_its_own(made, source):
    before = everything(source.client)
    ids, tally = bring(made, source)
    assert not tally.added
    assert all(old == new for old, new in ids.items())
    assert everything(source.client) == before


def test_an_import_that_was_broken_off_is_completed_by_the_next(made, new_store, monkeypatch):
    store, calls = new_store(), iter(range(100))
    log_batch = MlflowClient.log_batch

    def breaks(*arguments, **options):
        if next(calls) == 7:
            raise KeyboardInterrupt
        return log_batch(*arguments, **options)

    monkeypatch.setattr(MlflowClient, "log_batch", breaks)
    with pytest.raises(KeyboardInterrupt):
        bring(made, store)
    tally = bring(made, store)[1]
    assert tally.there["runs"] == 3
    complete = list(store.client.search_runs([store.experiment]))
    assert {run.info.status for run in complete} == {"FINISHED", "KILLED"}
    child = next(run for run in complete if run.info.run_name == "child")
    assert len(store.client.get_metric_history(child.info.run_id, "train/loss")) == NUM_POINTS
    before = everything(store.client)
    bring(made, store)
    assert everything(store.client) == before


def test_a_run_that_went_on_where_it_could_not_be_sent_is_completed_under_its_own_id(new_store, tmp_path):
    store = new_store()
    run_id = store.client.create_run(store.experiment, run_name="cut off").info.run_id
    store.client.log_metric(run_id, "loss", 0.5, timestamp=1000, step=1)
    store.client.set_tag(run_id, "mlflow.note.content", "at work")
    (tmp_path / "runs" / run_id / "artifacts").mkdir(parents=True)
    (tmp_path / "runs" / run_id / "artifacts" / "result.txt").write_text("done")
    run = {
        **{"id": run_id, "parent": None, "experiment": "tests", "name": "cut off", "status": "FINISHED"},
        **{"start_time": 1, "end_time": 5000, "params": {"epochs": "2"}, "inputs": [], "outputs": []},
        **{"tags": {"mlflow.note.content": "done"}, "metrics": {"loss": [[1, 1000, 0.5], [2, 2000, 0.25]]}},
    }
    bundle.write(tmp_path, runs=[run], made={"when": 5000, "from": "here"})
    assert bundles.bring(tmp_path, store.client) == {run_id: run_id}
    found = store.client.get_run(run_id)
    assert (found.info.status, found.info.end_time) == ("FINISHED", 5000)
    assert found.data.params == {"epochs": "2"}
    assert found.data.tags["mlflow.note.content"] == "done"
    assert [each.step for each in store.client.get_metric_history(run_id, "loss")] == [1, 2]
    assert store.artifacts(run_id) == {"result.txt"}


def test_the_same_runs_are_the_same_bytes(source, made, tmp_path):
    time.sleep(2.1)  # a zip counts in steps of two seconds
    again = tmp_path / "again.zip"
    exports.export(exports.find(["tests"], source.client), again, source.client, small=False)
    assert again.read_bytes() == made.read_bytes()


def test_a_small_bundle_holds_no_models_and_nothing_of_the_place(source, tmp_path):
    to = tmp_path / "small.zip"
    record = exports.export(exports.find(["all"], source.client), to, source.client, small=True)
    assert record["models"] == record["versions"] == []
    assert len(record["runs"]) == 3
    tags = {key for run in record["runs"] for key in run["tags"]}
    assert not tags & {"mlflow.user", "mlflow.source.name", "mlflow.source.git.repoURL"}
    assert any(name.endswith("deep/er/text.txt") for name in record["files"])


# What isn't sound:


@pytest.fixture
def folder(made, tmp_path) -> Path:
    with bundle.unpacked(made) as unpacked:
        return Path(shutil.copytree(unpacked, tmp_path / "bundle"))


def changed_byte(folder: Path) -> None:
    (file,) = folder.glob("runs/*/artifacts/deep/er/text.txt")
    file.write_text("Kept")


def missing_file(folder: Path) -> None:
    (file,) = folder.glob("runs/*/artifacts/deep/er/text.txt")
    file.unlink()


def link(folder: Path) -> None:
    (file,) = folder.glob("runs/*/artifacts/deep")
    shutil.move(file, folder / "elsewhere")
    file.symlink_to(folder / "elsewhere")


def other_figure(folder: Path) -> None:
    file = folder / "bundle.json"
    file.write_text(file.read_text().replace("0.875", "0.975"))


def cut_record(folder: Path) -> None:
    file = folder / "bundle.json"
    file.write_text(file.read_text()[:-100])


def later_format(folder: Path) -> None:
    file = folder / "bundle.json"
    file.write_text(file.read_text().replace('"format": 1', '"format": 2'))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (changed_byte, "deep/er/text.txt is not what was written"),
        (missing_file, "deep/er/text.txt is missing"),
        (link, "deep/er/text.txt is a link"),
        (other_figure, "bundle.json is not what was written"),
        (cut_record, "expected a bundle with a readable bundle.json"),
        (later_format, "expected a bundle, format 1, received 2"),
    ],
)
def test_a_bundle_that_is_not_as_it_was_made_is_refused_whole(folder, harm, message, new_store):
    harm(folder)
    store = new_store()
    with pytest.raises(FmnistError, match=message):
        bundles.bring(folder, store.client)
    assert store.client.search_runs([store.experiment]) == []
    assert store.client.search_registered_models() == []


def zipped(path: Path, name: str, content: bytes = b"x", *, mode: int = 0o100644) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        entry = zipfile.ZipInfo(name)
        entry.external_attr, entry.compress_type = mode << 16, zipfile.ZIP_DEFLATED
        made.writestr(entry, content)
    return path


@pytest.mark.parametrize("name", ["../out.txt", "/out.txt", "a/../../out.txt", "C:/out.txt", "..\\out.txt"])
def test_an_entry_that_would_lie_outside_is_refused(name, tmp_path):
    path = zipped(tmp_path / "evil.zip", name)
    with pytest.raises(FmnistError, match="would be written outside"), bundle.unpacked(path):
        pass
    assert not list(tmp_path.rglob("out.txt"))


def test_a_link_and_a_bomb_in_a_zip_are_refused(tmp_path):
    path = zipped(tmp_path / "link.zip", "runs/link", b"/etc/passwd", mode=0o120777)
    with pytest.raises(FmnistError, match="is a link"), bundle.unpacked(path):
        pass
    path = zipped(tmp_path / "bomb.zip", "runs/bomb", bytes(50 * 2**20))
    with pytest.raises(FmnistError, match="would unpack to 52,428,800 bytes"), bundle.unpacked(path):
        pass


def test_a_zip_that_was_cut_or_changed_is_refused(made, tmp_path):
    whole = made.read_bytes()
    middle = len(whole) // 2
    for content in (
        whole[:middle],
        whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :],
        b"no zip",
    ):
        path = tmp_path / "harmed.zip"
        path.write_bytes(content)
        with pytest.raises(FmnistError, match=r"is corrupt: .*; nothing was imported"), bundle.unpacked(path):
            pass
    with (
        pytest.raises(FmnistError, match="expected a bundle: No such file"),
        bundle.unpacked(tmp_path / "none.zip"),
    ):
        pass


def test_a_deleted_experiment_is_told_of_before_anything_is_added(made, new_store):
    store = new_store()
    store.client.delete_experiment(store.experiment)
    with pytest.raises(
        FmnistError, match="experiment tests is deleted in this store; type mlflow experiments restore"
    ):
        bring(made, store)
    assert store.client.search_registered_models() == []


# The commands:


@pytest.fixture(scope="module")
def recorded(source, tmp_path_factory) -> Path:
    """A folder with a reference run of `mlp`, as the script beside the reference runs records one."""
    folder = tmp_path_factory.mktemp("references")
    source.environment |= {"DATASET": "synthetic", "EPOCHS": "2", "REPEATS": "2", "TO": str(folder)}
    done = source.run(["sh", str(ROOT / "mlruns_template" / "reference_runs" / "record.sh"), "cpu", "mlp"])
    assert done.returncode == 0, done.stderr
    return folder


def test_a_recorded_reference_run_is_small_and_says_how_it_was_made(recorded):
    (path,) = recorded.iterdir()
    assert path.name == "mlp-cpu.zip"
    assert path.stat().st_size < 150_000
    with bundle.unpacked(path) as folder:
        record = bundle.read(folder)
        text = (folder / "bundle.json").read_text()
    (parent,) = (run for run in record["runs"] if run["parent"] is None)
    assert parent["experiment"] == "train"
    assert parent["command"] == (
        "mlflow run . -e train -P model=mlp -P dataset=synthetic -P epochs=2 -P device=cpu -P precision=auto "
        "-P repeats=2"
    )
    assert str(Path.home()) not in text
    assert str(ROOT) not in text


def test_init_fills_a_store_once(recorded, new_store):
    store = new_store()
    done = store.mlflow_run("init", bundles=recorded)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["bundles"], result["runs"]) == (1, {"added": 3, "there": 0})
    experiment = store.client.get_experiment_by_name("train")
    runs = store.client.search_runs([experiment.experiment_id], "tags.entry_point = 'train'")
    assert {run.data.tags["device"] for run in runs if "device" in run.data.tags} == {"cpu"}
    (parent,) = (run for run in runs if "bundle.command" in run.data.tags)
    assert "mlflow run . -e train -P model=mlp" in parent.data.tags["bundle.command"]
    (launched,) = store.client.search_runs([store.experiment])
    assert (launched.info.run_name, launched.info.status) == ("init", "FINISHED")
    before = everything(store.client)
    again = store.here("init", bundles=recorded)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout.splitlines()[-1])["runs"] == {"added": 0, "there": 3}
    assert everything(store.client) == before


def test_two_imports_at_once_into_a_store_that_has_others_add_each_run_once(source, new_store):
    other = new_store()
    register_foreign(other, NAME, noise=2)
    exported = source.mlflow_run("export", runs="tests", to=source.folder / "all.zip")
    assert exported.returncode == 0, exported.stderr
    result = json.loads(exported.stdout.splitlines()[-1])
    assert (result["runs"], result["models"], result["versions"]) == (3, 1, 1)
    file = source.folder / "all.zip"
    lines = [
        other.command("import", bundle=file),
        [sys.executable, "-m", "entry_points.import", "--bundle", str(file)],
    ]
    own = {"cwd": ROOT, "env": other.environment, "stdout": subprocess.PIPE, "text": True}
    results = []
    for each in [subprocess.Popen(line, **own) for line in lines]:
        out = each.communicate()[0]
        assert each.returncode == 0
        results.append(json.loads(out.splitlines()[-1]))
    assert sorted(each["runs"]["added"] for each in results) == [0, 3]
    assert sorted(each["runs"]["there"] for each in results) == [0, 3]
    assert [each["registered"] for each in results] == [{f"{NAME}/1": f"{NAME}/2"}] * 2
    names = [run.info.run_name for run in other.client.search_runs([other.experiment])]
    assert (names.count("child"), names.count("judged")) == (1, 1)


def test_a_run_at_work_is_exported_as_it_stands_and_completed_by_the_next_import(new_store):
    store, other = new_store(), new_store()
    run_id = store.client.create_run(store.experiment, run_name="at work").info.run_id
    store.client.log_metric(run_id, "loss", 1.0, step=1)
    to = store.folder / "bundle.zip"
    with (
        tracked_in(store),
        pytest.warns(UserWarning, match=f"{run_id}.* hasn't ended; it is exported as it stands"),
    ):
        exports.export_runs([run_id], to, small=False, but="")
    ids, _ = bring(to, other)
    assert other.client.get_run(ids[run_id]).info.status == "RUNNING"
    store.client.log_metric(run_id, "loss", 0.5, step=2)
    store.client.set_tag(run_id, "mlflow.note.content", "done")
    store.client.set_terminated(run_id, "FINISHED")
    exports.export(exports.find([run_id], store.client), to, store.client, small=False)
    assert bring(to, other)[0] == ids
    found = other.client.get_run(ids[run_id])
    assert (found.info.status, found.data.tags["mlflow.note.content"]) == ("FINISHED", "done")
    assert [each.step for each in other.client.get_metric_history(ids[run_id], "loss")] == [1, 2]


def test_what_is_neither_an_id_nor_an_experiment_is_told_with_what_there_is(source):
    with pytest.raises(
        FmnistError, match=r"expected a run's id, .* received 'tset'\. Experiments here: Default, .*tests"
    ):
        exports.find(["tset"], source.client)


@pytest.mark.parametrize(
    ("entry_point", "parameters", "message"),
    [
        ("export", {"to": "none/bundle.zip"}, "to: expected a zip in a folder that is there"),
        ("import", {}, "bundle: expected a zip that export wrote; type for example -P bundle=bundle.zip"),
        (
            "import",
            {"bundle": str(ROOT / "README.md")},
            "README.md is corrupt: File is not a zip file; nothing was",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(entry_point, parameters, message, source):
    pairs = [word for name, value in parameters.items() for word in ("-P", f"{name}={value}")]
    done = source.run([sys.executable, "-m", f"entry_points.{entry_point}", *pairs])
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert message in done.stderr


def test_there_are_reference_runs_and_each_is_sound_and_says_where_it_ran():
    found = sorted((ROOT / "mlruns_template" / "reference_runs").glob("*.zip"))
    assert found
    for path in found:
        with bundle.unpacked(path) as folder:
            record = bundle.read(folder)
        assert path.stat().st_size < 400_000
        assert {run["status"] for run in record["runs"]} == {"FINISHED"}
        assert [run["command"] for run in record["runs"] if (run["command"] or "").startswith("mlflow run . -e ")]
        assert any(run["tags"].get("device.name") for run in record["runs"])


def test_versions_keep_their_order_whichever_was_changed_last(new_store, tmp_path):
    store, other = new_store(), new_store()
    for noise in (1, 2, 3):
        register_foreign(store, NAME, noise=noise)
    for number in ("1", "2"):
        store.client.update_model_version(NAME, number, "changed")
    exports.export(exports.find(["all"], store.client), tmp_path / "all.zip", store.client, small=False)
    _, tally = bring(tmp_path / "all.zip", other)
    assert tally.versions == {f"{NAME}/{number}": f"{NAME}/{number}" for number in (1, 2, 3)}
