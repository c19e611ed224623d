"""Whether MLflow's store can be reached and written, and has the tables that this MLflow wants; its migration."""

import os
import re
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
os.environ.setdefault("PGCONNECT_TIMEOUT", "5")

import mlflow
import sqlalchemy
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from fmnist import cache
from fmnist.doctor.report import MENDED, NOTE, OK, WRONG, Check, command, size, space, unwritable

NAME = "store"
NO_RUN = "0" * 32
POINT = "export MLFLOW_TRACKING_URI=sqlite:////FOLDER/mlflow.db"


def examine(*, fix: bool) -> list[Check]:
    """What is to be said of the store that MLflow is pointed at; with `fix` it is migrated if it must be."""
    uri = str(mlflow.get_tracking_uri())
    where = re.sub(r"//[^/@]*@", "//…@", uri)  # who has logged in, and the password
    if uri.startswith("sqlite:///"):
        return _sqlite(uri, fix=fix)
    if re.match(r"(postgresql|mysql|mssql)\b", uri):
        return [_database(uri, where)]
    return [_server(where)]


def _sqlite(uri: str, *, fix: bool) -> list[Check]:
    file = Path(uri.removeprefix("sqlite:///")).resolve()
    reason = unwritable(file.parent)
    if reason:
        return [Check(NAME, WRONG, reason, POINT)]
    disk = space("disk (store)", file.parent)
    if not file.exists():
        return [Check(NAME, OK, f"the first command makes {file}"), disk]
    try:
        with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=1)) as tables:
            (state,) = tables.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.OperationalError:  # another process has it, or it may not be read: that isn't broken
        state = "ok"
    except sqlite3.DatabaseError as error:
        state = str(error)
    if state != "ok":
        broken = f"{file} is broken: {state}; put a backup of it there, or begin a new one"
        return [Check(NAME, WRONG, broken, f"mv {file} {file}.broken"), disk]
    check = _database(uri, f"{file} ({size(file.stat().st_size)})")
    if check.state == WRONG and check.type.startswith("mlflow db upgrade"):
        check = (
            _migrated(file, uri)
            if fix
            else Check(NAME, WRONG, check.found, command("doctor", pairs="-P fix=true"))
        )
    return [check, disk]


def _database(uri: str, where: str) -> Check:
    """A database: its schema's revision, whether it can be written, and where its experiments keep their files."""
    try:
        engine = sqlalchemy.create_engine(uri, connect_args={"timeout": 1} if uri.startswith("sqlite") else {})
    except ModuleNotFoundError as error:
        driver = "pip install -e '.[postgres]', and begin the address with postgresql+psycopg://"
        return Check(NAME, WRONG, f"{where}: its driver isn't installed ({error})", driver)
    try:
        with engine.connect() as connection:
            revision = MigrationContext.configure(connection).get_current_revision()
            if not sqlalchemy.inspect(connection).get_table_names():
                return Check(NAME, OK, f"{where} is empty; the first command makes its tables")
            if revision is None:
                return Check(NAME, WRONG, f"{where} holds tables, but none of MLflow's", POINT)
            script = ScriptDirectory.from_config(_alembic())
            if revision != script.get_current_head():
                if any(each.revision == revision for each in script.walk_revisions()):
                    found = f"{where} was made by an older MLflow (revision {revision}) and must be migrated"
                    return Check(NAME, WRONG, found, 'mlflow db upgrade "$MLFLOW_TRACKING_URI", after a backup')
                found = f"{where} was made by another MLflow than {mlflow.__version__} (revision {revision})"
                return Check(NAME, WRONG, found, "pip install --upgrade mlflow")
            connection.execute(sqlalchemy.text("UPDATE experiments SET name = name WHERE 1 = 0"))
            connection.rollback()
    except sqlalchemy.exc.SQLAlchemyError as error:
        reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        found = f"{where} can't be read and written: {reason}"
        if "locked" not in reason or not uri.startswith("sqlite:///"):
            return Check(NAME, WRONG, found, POINT)
        holders = f"fuser -v {uri.removeprefix('sqlite:///')}"
        return Check(NAME, WRONG, f"{found}; wait for the process that has it, or end it", holders)
    finally:
        engine.dispose()
    return _artifacts(where)


def _artifacts(where: str) -> Check:
    """Whether the files of each experiment can be put where it says; the one that runs go to first of all."""
    client = mlflow.MlflowClient()
    experiments = client.search_experiments()
    runs = f"{where}, {len(experiments)} experiments, MLflow {mlflow.__version__}"
    for each in experiments:
        place = urlsplit(each.artifact_location)
        if place.scheme in ("", "file") and (reason := unwritable(Path(unquote(place.path)))):
            used = os.environ.get("MLFLOW_EXPERIMENT_NAME", "Default")
            found = f"{runs}; but the files of experiment {each.name} have no place: {reason}"
            return Check(NAME, WRONG if each.name == used else NOTE, found, "export MLFLOW_EXPERIMENT_NAME=NEW")
    return Check(NAME, OK, runs)


def _server(where: str) -> Check:
    """A tracking server, or whatever else MLflow takes for a store."""
    client = mlflow.MlflowClient()
    try:
        client.search_experiments(max_results=1)
    except mlflow.MlflowException as error:
        reason = str(error).strip().splitlines()[0]
        if "(Caused by " in reason:  # by what was tried again and again
            reason = reason.rpartition(": ")[2].strip("\"') ")
        return Check(NAME, WRONG, f"{where} doesn't answer: {reason}", f"mlflow server, or {POINT}")
    try:
        client.set_tag(NO_RUN, "doctor", "")
    except mlflow.MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":  # else it may be written: there is no such run
            return Check(NAME, WRONG, f"{where} answers, but can't be written: {error}")
    return Check(NAME, OK, f"{where} answers and takes what is logged")


def _migrated(file: Path, uri: str) -> Check:
    """Migrates a SQLite store, after a backup, which takes its place again if that fails."""
    backup = file.with_name(f"{file.name}.backup-{time.strftime('%Y%m%d-%H%M%S')}")
    with cache.lock(file.with_name(f"{file.name}.lock")):
        with closing(sqlite3.connect(file)) as old, closing(sqlite3.connect(backup)) as copy:
            old.backup(copy)
        upgrade = [sys.executable, "-m", "mlflow", "db", "upgrade", uri]
        done = subprocess.run(upgrade, capture_output=True, text=True, check=False)
        if done.returncode:
            with closing(sqlite3.connect(backup)) as copy, closing(sqlite3.connect(file)) as old:
                copy.backup(old)
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            return Check(NAME, WRONG, f"{file} can't be migrated, and is as it was (backup: {backup}): {last}")
    check = _database(uri, str(file))
    if check.state == WRONG:
        return check
    return Check(NAME, MENDED, f"migrated {check.found}; as it was before, it is kept as {backup}")


def _alembic() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(mlflow.__file__).parent / "store" / "db_migrations"))
    return config
