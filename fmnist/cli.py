"""The terminal's side: options from settings, one-line errors, progress on stderr, the result on stdout.

Exit codes: 0 done; 2 something that the user can mend; 3 decided against what was asked for; 128 + signal
interrupted; 1 a defect of ours.
"""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, NoReturn, Self, TypeVar

import click

from fmnist.errors import FmnistError, Refused
from fmnist.settings import default_text, parse

Settings = TypeVar("Settings")


def main(settings: type[Settings], job: Callable[[Settings], dict[str, Any]]) -> None:
    """Runs a job with the settings that the command line spells, and prints its result as one JSON line."""
    launched_run = os.environ.get("MLFLOW_RUN_ID", "")  # before MLflow takes it away
    received: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if len(received) == 1:  # mlflow run sends SIGTERM after a terminal's SIGINT: one is enough
            raise KeyboardInterrupt

    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, interrupt)
    warnings.showwarning = lambda message, category, *_: print(f"{category.__name__}: {message}", file=sys.stderr)
    command = _command(settings)
    try:
        with command.make_context(command.name, sys.argv[1:]) as context:
            given = {name: text for name, text in context.params.items() if text is not None}
            result = job(parse(settings, given))
    except click.exceptions.Exit as done:  # --help
        sys.exit(done.exit_code)
    except click.ClickException as error:
        _fail(error.format_message())
    except FmnistError as error:
        _fail(str(error))
    except Refused as decision:
        _end_launched_run(launched_run, "FINISHED")  # its work is done; the launcher knows exit code 0 alone
        print(json.dumps(decision.result), flush=True)
        print(f"refused: {decision}", file=sys.stderr)
        sys.exit(3)
    except KeyboardInterrupt:
        _end_launched_run(launched_run, "KILLED")
        print("interrupted", file=sys.stderr)
        sys.stderr.flush()
        os._exit(128 + received[0])  # an epoch may still be computing in a thread that can't be stopped
    print(json.dumps(result), flush=True)


def _command(settings: type[Any]) -> click.Command:
    options: list[click.Parameter] = []
    for field in dataclasses.fields(settings):
        choices = field.metadata["choices"]
        text = f"{field.metadata['help']}{': ' + ', '.join(choices) if choices else ''}"
        text += f"  [default: {default_text(field) or 'empty'}]"
        options.append(click.Option([f"--{field.name}"], default=None, help=text, metavar="TEXT"))
    name = settings.__name__.lower()
    return click.Command(name, params=options, help=settings.__doc__)


def _end_launched_run(run_id: str, status: str) -> None:
    """Ends the launcher's run, if there is one, even if the job had not come to it yet.

    In a process of its own: here a library may be half imported, and the launcher waits for this process to end.
    """
    if run_id:
        code = f"from fmnist.tracking import runs; runs.end_launched_run({run_id!r}, {status!r})"
        subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )


def _fail(message: str) -> NoReturn:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


class Progress:
    """A bar where a person watches, a line a step elsewhere; on stderr."""

    def __init__(self, label: str, num_steps: int, *, unit: str = "epoch") -> None:
        from tqdm import tqdm

        self._lines = not sys.stderr.isatty()
        self._bar = tqdm(total=num_steps, desc=label, unit=unit, disable=self._lines)
        self._prefix, self._num_steps, self._done = f"{label} {unit}", num_steps, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def step(self, text: str) -> None:
        """Shows that a step is done, and what came of it."""
        self._done += 1
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.update()
        if self._lines:
            print(f"{self._prefix} {self._done}/{self._num_steps}  {text}", file=sys.stderr, flush=True)
