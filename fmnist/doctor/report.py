"""What was found, for people and for programs; and what can be found out of a folder."""

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OK, NOTE, MENDED, WRONG = "ok", "note", "mended", "wrong"
LITTLE_BYTES, TOO_LITTLE_BYTES = 2 * 2**30, 2**28


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    state: str
    """`ok`; `note`: worth knowing, a plain training works all the same; `mended`; `wrong`: it doesn't."""
    found: str
    type: str = ""
    """What to type."""


def is_healthy(checks: Sequence[Check]) -> bool:
    """Whether a plain training has all that it needs."""
    return all(each.state != WRONG for each in checks)


def as_result(checks: Sequence[Check]) -> dict[str, Any]:
    """All that was found, of JSON's types."""
    return {"healthy": is_healthy(checks), "checks": [vars(each) for each in checks]}


def text(checks: Sequence[Check]) -> str:
    """A table for people, what is wrong in capitals, and last the verdict."""
    width = max(len(each.name) for each in checks)
    lines = []
    for each in checks:
        state = each.state.upper() if each.state == WRONG else each.state
        lines.append(f"{state:<6}  {each.name:<{width}}  {each.found}")
        if each.type:
            lines.append(f"{'':<6}  {'':<{width}}  type: {each.type}")
    wrong = [each.name for each in checks if each.state == WRONG]
    lines.append(f"\nWrong: {', '.join(wrong)}." if wrong else "\nAll is there that a training needs.")
    return "\n".join(lines)


def command(entry_point: str, *, pairs: str = "") -> str:
    """How a user types an entry point: with `./run` if that started this process, else with MLflow's launcher."""
    run = os.environ.get("FMNIST_RUN", "")
    if run or entry_point == "doctor":  # which works where MLflow's launcher doesn't
        return " ".join(
            filter(None, (f"{run}{entry_point}" if run else f"python -m entry_points.{entry_point}", pairs))
        )
    return " ".join(filter(None, (f"mlflow run . -e {entry_point}", pairs, "--env-manager local")))


def unwritable(folder: Path) -> str | None:
    """Why nothing can be put into a folder, which is made if it isn't there; None if something can."""
    try:
        with tempfile.TemporaryFile(dir=_existing(folder)):
            return None
    except OSError as error:
        return f"{folder} can't be written: {error.strerror or error}"


def space(name: str, folder: Path) -> Check:
    """What is left on the disk of a folder."""
    free = shutil.disk_usage(_existing(folder)).free
    found = f"{size(free)} free in {folder}"
    if free < TOO_LITTLE_BYTES:
        return Check(
            name, WRONG, f"{found}; a training needs {size(TOO_LITTLE_BYTES)}", f"df -h {_existing(folder)}"
        )
    return Check(name, NOTE if free < LITTLE_BYTES else OK, found)


def size(num_bytes: float) -> str:
    """Bytes as people read them."""
    for unit in ("bytes", "KiB", "MiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} GiB"


def _existing(folder: Path) -> Path:
    folder = folder.absolute()
    return next(each for each in (folder, *folder.parents) if each.exists())
