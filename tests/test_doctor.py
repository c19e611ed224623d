"""The doctor's table: what is there, what is wrong, what to type; and what it mends."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from conftest import ROOT, Store

from fmnist import checkpoint, data
from fmnist.data import datasets
from fmnist.doctor import examination, probes, report
from fmnist.settings import Validation


def seen(checks) -> dict[str, report.Check]:
    return {each.name: each for each in checks}


def store_check(uri: str, *, fix: bool = False) -> report.Check:
    """What is said of a store."""
    import mlflow

    from fmnist.tracking import health

    mlflow.set_tracking_uri(uri)
    try:
        return seen(health.examine(fix=fix))["store"]
    finally:
        mlflow.set_tracking_uri(None)


def old_store(file: Path) -> str:
    """A store with the tables of an older MLflow, made by MLflow's own migrations, with an experiment in it."""
    from alembic import command
    from alembic.script import ScriptDirectory
    from mlflow.store.db import utils
    from mlflow.store.tracking.dbmodels.initial_models import Base
    from sqlalchemy import create_engine

    uri = f"sqlite:///{file}"
    config = utils._get_alembic_config(uri)
    engine = create_engine(uri)
    Base.metadata.create_all(engine)
    revisions = [each.revision for each in ScriptDirectory.from_config(config).walk_revisions()]
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revisions[3])
    engine.dispose()
    with closing(sqlite3.connect(file)) as tables:
        place = file.parent / "artifacts"
        values = "(7, 'kept', ?, 'active', 1, 1)"
        columns = "(experiment_id, name, artifact_location, lifecycle_stage, creation_time, last_update_time)"
        tables.execute(f"INSERT INTO experiments {columns} VALUES {values}", (str(place),))
        tables.commit()
    return uri


# One `mlflow run . -e doctor`, of a machine with all that there should be but the data:


@pytest.fixture(scope="module")
def store(new_store) -> Store:
    return new_store()


@pytest.fixture(scope="module")
def done(store, tmp_path_factory) -> subprocess.CompletedProcess[str]:
    files = tmp_path_factory.mktemp("files")
    for file in datasets.official("fashion-mnist")[0]:
        (files / file).write_bytes(b"truncated")
    store.environment |= {"FMNIST_DATA_DIR": str(files), "http_proxy": "http://127.0.0.1:9"}
    store.environment |= {"https_proxy": "http://127.0.0.1:9", "no_proxy": "127.0.0.1,localhost"}
    return store.mlflow_run("doctor")


def test_what_a_training_lacks_is_wrong_with_what_to_type_and_exit_code_1(done):
    assert done.returncode == 1
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("{")]
    result = json.loads(line)
    assert result["healthy"] is False
    checks = seen(report.Check(**each) for each in result["checks"])
    assert checks["data"].state == "wrong"
    assert "train-images-idx3-ubyte.gz is harmed" in checks["data"].found
    assert "-P dataset=synthetic" in checks["data"].type
    assert [each.name for each in checks.values() if each.state == "wrong"] == ["data"]
    assert "WRONG   data" in done.stderr
    assert "Wrong: data." in done.stderr


def test_what_is_there_is_named_with_its_version_and_place(done, store, cache):
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("{")]
    checks = seen(report.Check(**each) for each in json.loads(line)["checks"])
    assert {"Python", "packages", "extras", "libraries", "LiteRT", "GPU for tensorflow"} <= set(checks)
    assert "computes on" in checks["tensorflow"].found
    assert str(store.folder / "mlflow.db") in checks["store"].found
    assert str(cache) in checks["cache"].found
    assert "free in" in checks["disk (store)"].found


def test_the_run_of_the_launcher_tells_it_too(done, store):
    (run,) = store.client.search_runs([store.experiment])
    assert run.data.tags["entry_point"] == "doctor"
    assert "WRONG   data" in run.data.tags["mlflow.note.content"]


# The store:


def test_a_store_of_an_older_mlflow_is_migrated_after_a_backup(tmp_path, monkeypatch):
    monkeypatch.delenv("FMNIST_RUN", raising=False)  # which changes how a command is told of
    file = tmp_path / "mlflow.db"
    uri = old_store(file)
    before = store_check(uri)
    assert before.state == "wrong"
    assert "was made by an older MLflow" in before.found
    assert before.type == "python -m entry_points.doctor -P fix=true"
    after = store_check(uri, fix=True)
    assert after.state == "mended"
    (backup,) = tmp_path.glob("mlflow.db.backup-*")
    assert str(backup) in after.found
    assert store_check(uri).state == "ok"
    revisions = []
    for each in (backup, file):
        with closing(sqlite3.connect(each)) as tables:
            assert tables.execute("SELECT name FROM experiments WHERE experiment_id = 7").fetchone() == ("kept",)
            revisions += tables.execute("SELECT version_num FROM alembic_version").fetchone()
    assert len(set(revisions)) == 2


def test_a_store_that_can_not_be_used_is_wrong(tmp_path, monkeypatch, migrated_store):
    broken = tmp_path / "broken.db"
    broken.write_bytes(b"no database at all, whatever its name says" * 100)
    newer = shutil.copy(migrated_store, tmp_path / "newer.db")
    foreign = tmp_path / "foreign.db"
    with closing(sqlite3.connect(newer)) as tables, closing(sqlite3.connect(foreign)) as others:
        tables.execute("UPDATE alembic_version SET version_num = 'fromthefuture'")
        tables.commit()
        others.execute("CREATE TABLE mine (number INTEGER)")
    busy = shutil.copy(migrated_store, tmp_path / "busy.db")
    said = {
        f"sqlite:///{broken}": "is broken: file is not a database",
        f"sqlite:///{newer}": "was made by another MLflow than",
        f"sqlite:///{foreign}": "holds tables, but none of MLflow's",
        f"sqlite:///{busy}": "can't be read and written: database is locked",
        "sqlite:////proc/none/mlflow.db": "/proc/none can't be written",
        "http://127.0.0.1:9": "doesn't answer: [Errno 111] Connection refused",
        "postgresql+psycopg://me:secret@127.0.0.1:9/runs": "postgresql+psycopg://…@127.0.0.1:9/runs can't be read",
    }
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with closing(sqlite3.connect(busy, isolation_level=None)) as writer:
        writer.execute("BEGIN EXCLUSIVE")
        for uri, text in said.items():
            check = store_check(uri)
            assert (check.state, text in check.found, check.type != "") == ("wrong", True, True), check
            assert "secret" not in check.found
    assert broken.exists()


def test_an_experiment_whose_files_have_no_place_is_named(new_store):
    store = new_store()
    store.client.create_experiment("moved", artifact_location="/proc/gone/artifacts")
    check = store_check(store.uri)
    assert check.state == "note"
    assert "experiment moved have no place: /proc/gone/artifacts can't be written" in check.found


# The cache and the data:


@pytest.fixture
def own_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("FMNIST_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("FMNIST_DATA_DIR", raising=False)
    return tmp_path / "cache"


def test_broken_entries_of_the_cache_are_taken_away_and_made_anew(own_cache):
    data.load("synthetic", data_dir="", validation=Validation(5000), seed=0)
    data.load("synthetic", data_dir="", validation=Validation(4000), seed=0)
    harmed, whole = sorted((own_cache / "prepared").glob("*/"))
    (harmed / "splits.npz").write_bytes(b"PK")
    truncated = own_cache / "downloads" / "mnist" / "train-labels-idx1-ubyte.gz"
    part = own_cache / "downloads" / "mnist" / "t10k.gz.12.part"
    dead = own_cache / "checkpoints" / "dead" / "epoch-000001.npz"
    for path in (truncated, part, dead):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    os.utime(part, (0, 0))
    with checkpoint.Keeper("alive", {}, 1):  # has nothing to keep yet, and is at work
        check = seen(probes.caches(fix=False))["cache entries"]
        assert (check.state, dead.exists()) == ("note", True)
        for name in (harmed.name, "train-labels-idx1-ubyte.gz", "t10k.gz.12.part", "dead"):
            assert name in check.found
        assert "alive" not in check.found
        assert whole.name not in check.found
        assert seen(probes.caches(fix=True))["cache entries"].state == "mended"
        assert not any(path.exists() for path in (harmed, truncated, part, dead.parent))
        assert whole.exists()
        assert "cache entries" not in seen(probes.caches(fix=False))
    assert len(data.load("synthetic", data_dir="", validation=Validation(5000), seed=0).validation) == 5000


def test_a_cache_that_can_not_be_written_is_wrong(monkeypatch):
    monkeypatch.setenv("FMNIST_CACHE_DIR", "/proc/none")
    (check,) = probes.caches(fix=False)
    assert (check.state, check.type) == ("wrong", "export FMNIST_CACHE_DIR=FOLDER")


def test_official_files_are_whole_or_passed_over_with_the_reason(own_cache, official_files, monkeypatch, tmp_path):
    monkeypatch.setenv("FMNIST_DATA_DIR", str(official_files))
    (check,) = probes.data()
    assert (check.state, str(official_files) in check.found) == ("ok", True)
    mine, downloads = tmp_path / "mine", own_cache / "downloads" / "fashion-mnist"
    shutil.copytree(official_files, downloads)
    shutil.copytree(official_files, mine)
    labels = mine / "t10k-labels-idx1-ubyte.gz"
    labels.write_bytes(labels.read_bytes()[:-100])
    monkeypatch.setenv("FMNIST_DATA_DIR", str(mine))
    (check,) = probes.data()
    assert check.state == "note"
    assert f"passed over: {labels} is harmed" in check.found
    monkeypatch.setenv("FMNIST_DATA_DIR", str(tmp_path / "none"))
    (check,) = probes.data()
    assert (check.state, check.type) == ("wrong", "unset FMNIST_DATA_DIR")


# What doesn't start at all:


def test_a_library_that_crashes_is_one_line_of_the_table(tmp_path, monkeypatch):
    broken = tmp_path / "tensorflow"
    broken.mkdir()
    (broken / "__init__.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGILL)\n")
    (tmp_path / "mlflow.py").write_text("raise ImportError('libssl.so.3: cannot open shared object file')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for name, text in (("tensorflow", "exit code -4"), ("store", "ImportError: libssl.so.3: cannot open")):
        (check,) = examination._probe(name, fix=False)
        assert (check.state, text in check.found) == ("wrong", True), check
        assert check.type.startswith("pip install --force-reinstall")


def test_it_answers_where_nothing_is_installed_and_makes_no_environment(tmp_path):
    for name in ("run", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("fmnist", "entry_points"):
        (tmp_path / name).symlink_to(ROOT / name)
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec "{Path(sys.executable).resolve()}" -S "$@"\n')  # without site-packages
    bare.chmod(0o755)
    (tmp_path / ".venv.lock").mkdir()
    os.utime(tmp_path / ".venv.lock", (0, 0))
    environment = {"PATH": os.environ["PATH"], "PYTHON": str(bare), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [tmp_path / "run", "doctor"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    checks = seen(report.Check(**each) for each in json.loads(done.stdout)["checks"])
    assert (checks["packages"].state, checks["store"].state) == ("wrong", "note")
    assert checks["packages"].found == "nothing is installed yet: ./run does so at first use"
    assert checks["packages"].type == "./run train"
    assert not (tmp_path / ".venv").exists()


def test_the_lock_of_a_killed_run_is_taken_away_when_it_is_old(tmp_path, monkeypatch):
    monkeypatch.setattr(examination, "ROOT", tmp_path)
    assert examination._lock(fix=True) == []
    lock = tmp_path / ".venv.lock"
    lock.mkdir()
    (check,) = examination._lock(fix=True)
    assert (check.state, lock.exists()) == ("note", True)
    os.utime(lock, (0, 0))
    (check,) = examination._lock(fix=False)
    assert (check.state, lock.exists()) == ("wrong", True)
    (check,) = examination._lock(fix=True)
    assert (check.state, lock.exists()) == ("mended", False)


def test_a_wrong_word_is_refused_in_one_line():
    command = [sys.executable, "-m", "entry_points.doctor", "-P", "fix=perhaps"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: fix: expected true or false")


def test_free_space_decides_by_what_a_training_needs(monkeypatch, tmp_path):
    for free, state in ((2**27, "wrong"), (2**30, "note"), (2**35, "ok")):
        usage = shutil._ntuple_diskusage(2**40, 2**40 - free, free)
        monkeypatch.setattr(report.shutil, "disk_usage", lambda path, usage=usage: usage)
        assert report.space("disk", tmp_path / "not" / "there").state == state
