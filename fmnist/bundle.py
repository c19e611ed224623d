"""A bundle: runs with all that belongs to them, as a folder or as a zip of it; written, and checked as it is read.

`bundle.json` holds `format`, `made`, `runs`, `models`, `versions`, `registered` and `files` (the SHA-256 of every
other file by its path), and `sha256`, the digest of all that. Beside it lie `runs/ID/artifacts/...` and
`models/ID/...`. `fmnist.tracking.bundles` fills one from a store, and brings one into a store.
"""

import hashlib
import json
import re
import stat
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

from fmnist import cache
from fmnist.errors import FmnistError

FORMAT = 1
RECORD_FILE = "bundle.json"
MAX_FILES = 200_000
MAX_BYTES = 20 * 2**30
MAX_RATIO = 200
"""How many times its own size a zip may unpack to: pictures, tables and weights shrink far less."""
SLACK_BYTES = 2**20
"""Of a zip so small that its ratio says nothing."""

Record = dict[str, Any]
RUN = {
    *("id", "parent", "experiment", "name", "status", "start_time", "end_time"),
    *("params", "tags", "metrics", "inputs", "outputs"),
}
MODEL = {"id", "run", "experiment", "name", "type", "status", "params", "tags", "metrics"}
VERSION = {"name", "version", "model", "run", "tags", "aliases", "description"}


def write(
    folder: Path,
    *,
    runs: Sequence[Record],
    models: Sequence[Record] = (),
    versions: Sequence[Record] = (),
    registered: Mapping[str, Record] | None = None,
    made: Mapping[str, Any],
) -> Record:
    """Makes a folder, in which the files lie already, a bundle; gives its record.

    Args:
        folder: With `runs/ID/artifacts/...` and `models/ID/...`.
        runs: Each with `id`, `parent` (or None), `experiment` (its name), `name`, `status`, `start_time`,
            `end_time` (or None), `params`, `tags`, `metrics` ({key: [[step, timestamp_ms, value], ...]}), `inputs`
            ([{"dataset": {...}, "tags": {...}} or {"model": id}]) and `outputs` ([{"model": id, "step": step}]).
        models: Each with `id`, `run`, `experiment`, `name`, `type`, `status`, `params`, `tags` and `metrics`
            ([[key, step, timestamp_ms, value, run, dataset's name, dataset's digest], ...]).
        versions: Each with `name`, `version`, `model`, `run`, `tags`, `aliases`, `description`.
        registered: By name: `tags` and `description`.
        made: `when`, `from`, and with what.
    """
    files = {
        path.relative_to(folder).as_posix(): cache.sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / RECORD_FILE
    }
    for name in files:
        _check_name(folder, name)
    record = {
        "format": FORMAT,
        "made": dict(made),
        "runs": list(runs),
        "models": list(models),
        "versions": list(versions),
        "registered": dict(registered or {}),
        "files": files,
    }
    record = dict(json.loads(json.dumps(_plain(record))))
    text = json.dumps(record | {"sha256": _digest(record)}, indent=1, sort_keys=True, allow_nan=False)
    (folder / RECORD_FILE).write_text(text + "\n", encoding="utf-8")
    return record


def read(folder: Path) -> Record:
    """The record of a bundle, after everything in it has been checked.

    Raises:
        FmnistError: If anything is missing, changed, or lies where it must not.
    """
    try:
        record = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FmnistError(f"{folder}: expected a bundle with a readable {RECORD_FILE}: {error}") from None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        found = record.get("format") if isinstance(record, dict) else type(record).__name__
        raise FmnistError(
            f"{folder}: expected a bundle, format {FORMAT}, received {found!r}; export it again, by this version"
        )
    told = record.pop("sha256", None)
    if told != _digest(record):
        raise corrupt(folder, f"{RECORD_FILE} is not what was written")
    for kind, keys in (("runs", RUN), ("models", MODEL), ("versions", VERSION)):
        for each in record[kind]:
            if not keys <= each.keys():
                raise corrupt(folder, f"one of its {kind} has no {', '.join(sorted(keys - each.keys()))}")
    for name, sha256 in record["files"].items():
        _check_name(folder, name)
        path = folder / name
        if any(part.is_symlink() for part in (path, *path.parents[: len(PurePosixPath(name).parts)])):
            raise corrupt(folder, f"{name} is a link, which may point anywhere")
        if not path.is_file():
            raise corrupt(folder, f"{name} is missing")
        if cache.sha256(path) != sha256:
            raise corrupt(folder, f"{name} is not what was written")
    return record | {"sha256": told}


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """The folder form of a bundle that may be a zip.

    Raises:
        FmnistError: If there is none, the zip is damaged, would unpack to more than its bounds allow, or holds an
            entry that isn't a file in the folder.
    """
    if path.is_dir():
        yield path
        return
    with TemporaryDirectory(prefix="fmnist-bundle-") as folder:
        try:
            with zipfile.ZipFile(path) as file:
                _check_entries(path, file.infolist())
                for entry in file.infolist():
                    file.extract(entry, folder)
        except OSError as error:
            raise FmnistError(f"{path}: expected a bundle: {error.strerror or error}") from None
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
            # the last two: an unknown compression, a password
            raise corrupt(path, str(error)) from None
        try:
            yield Path(folder)
        except FmnistError as error:  # which names the folder
            raise FmnistError(str(error).replace(folder, str(path))) from None


def pack(folder: Path, to: Path) -> None:
    """Zips a bundle; the same files give the same bytes."""

    def content(file: Any) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as made:
            names = [RECORD_FILE, *sorted(json.loads((folder / RECORD_FILE).read_text())["files"])]
            for name in names:
                entry = zipfile.ZipInfo(name)  # of 1980: when a file was written here tells nothing
                entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
                with (folder / name).open("rb") as source, made.open(entry, "w") as target:
                    while block := source.read(2**20):
                        target.write(block)

    cache.write(to, content)


def corrupt(path: Path, what: str) -> FmnistError:
    """The error for a bundle of which nothing is taken."""
    return FmnistError(f"{path} is corrupt: {what}; nothing was imported. Export it, or copy it, again")


def finite(value: float | str) -> float:
    """A metric's value as stores keep it: infinity as the greatest number there is."""
    return min(max(float(value), -1.7976931348623157e308), 1.7976931348623157e308)


def _check_entries(path: Path, entries: Iterable[zipfile.ZipInfo]) -> None:
    names: set[str] = set()
    num_bytes = 0
    for entry in entries:
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise corrupt(path, f"{entry.filename} is a link, which may point anywhere")
        _check_name(path, entry.filename.removesuffix("/"))
        if entry.filename in names:
            raise corrupt(path, f"{entry.filename} stands twice in it")
        names.add(entry.filename)
        num_bytes += entry.file_size  # Python reads no more than that of it
    limit = min(MAX_BYTES, MAX_RATIO * path.stat().st_size + SLACK_BYTES)
    if num_bytes > limit or len(names) > MAX_FILES:
        raise corrupt(
            path, f"it would unpack to {num_bytes:,} bytes in {len(names):,} files, at most {limit:,} are allowed"
        )


def _check_name(path: Path, name: str) -> None:
    """Refuses the name of a file that would lie outside the folder, here or on another system."""
    parts = PurePosixPath(name).parts
    if not parts or ".." in parts or re.search(r"^/|^[A-Za-z]:|[\\\0]", name):
        raise corrupt(path, f"{name!r} would be written outside the folder")


def _digest(record: Record) -> str:
    text = json.dumps(record, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Any) -> Any:
    """The same with numbers that JSON doesn't know as texts, which `float` takes."""
    if isinstance(value, float) and not abs(value) < float("inf"):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value
