"""Fetches files into the cache: mirrors in order, checked by SHA-256, put in place in one step.

Two processes that fetch the same file do the work twice and harm nothing: each writes a `.part` file of
its own, and whoever is last replaces equal bytes by equal bytes.
"""

import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path

from tqdm import tqdm

from fmnist import cache
from fmnist.errors import FmnistError

TIMEOUT_SECONDS = 5.0
STALE_PART_SECONDS = 24 * 3600


class UnavailableError(FmnistError):
    """No mirror could give a file."""


def fetch(folder: Path, hashes: Mapping[str, str], mirrors: Sequence[str]) -> None:
    """Makes sure that every file of `hashes` (name to SHA-256) lies in `folder`, complete and unharmed.

    Raises:
        UnavailableError: If a file is neither there nor to be had from any mirror.
    """
    for name, expected in hashes.items():
        path = folder / name
        if path.is_file() and cache.sha256(path) == expected:
            continue
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cache.unwritable(error) from None
        for part in folder.glob(f"{name}.*.part"):  # what a killed process left
            with suppress(FileNotFoundError):  # another process has just moved it into place
                if time.time() - part.stat().st_mtime > STALE_PART_SECONDS:
                    part.unlink()
        _fetch_one(path, expected, mirrors)


def reachable(mirrors: Sequence[str], name: str) -> str | None:
    """The first mirror that says that it has a file, if one does."""
    for mirror in mirrors:
        head = urllib.request.Request(f"{mirror}/{name}", headers={"User-Agent": "fmnist"}, method="HEAD")
        with suppress(OSError, HTTPException), urllib.request.urlopen(head, timeout=TIMEOUT_SECONDS):
            return mirror
    return None


def _fetch_one(path: Path, expected: str, mirrors: Sequence[str]) -> None:
    failures = []
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    for mirror in mirrors:
        try:
            _download(f"{mirror}/{path.name}", part)
            received = cache.sha256(part)
            if received == expected:
                part.replace(path)
                return
            failures.append(f"{mirror}: SHA-256 {received[:12]}… instead of {expected[:12]}…")
        except (OSError, HTTPException) as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            failures.append(f"{mirror}: {reason}")
        finally:
            part.unlink(missing_ok=True)
    raise UnavailableError(
        f"could not download {path.name}. Three ways out: connect to the network and run again; put the four .gz "
        f"files into {path.parent} or into a folder that you name with -P data_dir=FOLDER or FMNIST_DATA_DIR; or "
        f"train on made-up images with -P dataset=synthetic. Tried: {'; '.join(failures)}"
    )


def _download(url: str, part: Path) -> None:
    request = urllib.request.Request(url, headers={"User-Agent": "fmnist"})
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response, part.open("wb") as file:
        total = int(response.headers.get("Content-Length") or 0) or None
        # disable=None: a bar where a person watches, nothing elsewhere
        with tqdm(desc=url.rpartition("/")[2], total=total, unit="B", unit_scale=True, disable=None) as bar:
            while block := response.read(1 << 16):
                file.write(block)
                bar.update(len(block))
