"""The terminal's side: options from settings, one-line errors, progress on stderr, the result on stdout (a person
at a terminal gets a summary, a pipe or a file one line of JSON).

Exit codes: 0 done; 2 something that the user can mend; 3 decided against what was asked for; 128 + signal
interrupted; 1 some of the input could not be used, or a defect of ours.
"""

import dataclasses
import gc
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

from fmnist import summary
from fmnist.errors import FmnistError, Outcome
from fmnist.options import default_text, parse

Settings = TypeVar("Settings")


# Python looks through all objects for circles after so many new ones. Importing TensorFlow, Keras and MLflow makes
# a million that stay; with Python's own 700, a quarter of the time that their import takes goes into looking.
GARBAGE_THRESHOLD = 50_000
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


def main(settings: type[Settings], job: Callable[[Settings], dict[str, Any]]) -> None:
    """Runs a job with the settings that the command line spells, and prints its result."""
    gc.set_threshold(GARBAGE_THRESHOLD)
    launched_run = os.environ.get("MLFLOW_RUN_ID", "")  # before MLflow takes it away
    received: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if len(received) == 1:  # mlflow run sends SIGTERM after a terminal's SIGINT: one is enough
            raise KeyboardInterrupt

    warnings.showwarning = lambda message, category, *_: print(f"{category.__name__}: {message}", file=sys.stderr)
    command = _command(settings)
    try:
        for each in SIGNALS:  # only here, where what they raise is met
            if signal.getsignal(each) is not signal.SIG_IGN:  # as nohup has it
                signal.signal(each, interrupt)
        with command.make_context(command.name, sys.argv[1:]) as context:
            given = {name: text for name, text in context.params.items() if text is not None}
            pairs = dict(_pair(text) for text in given.pop("pairs"))
            result = _told(job(parse(settings, given | pairs)))
    except click.exceptions.Exit as done:  # --help
        sys.exit(done.exit_code)
    except click.ClickException as error:
        _fail(error.format_message())
    except FmnistError as error:
        _fail(str(error))
    except Outcome as outcome:
        _end_launched_run(launched_run, "FINISHED")  # its work is done; the launcher knows exit code 0 alone
        told = _told(outcome.result)
        _print_result(told)
        _say_what_next(told)
        print(f"{outcome.word}: {outcome}", file=sys.stderr)
        sys.exit(outcome.code)
    except KeyboardInterrupt:
        _end_launched_run(launched_run, "KILLED")
        again = "; the same command with -P resume=auto goes on" if hasattr(settings, "resume") else ""
        print(f"interrupted{again}", file=sys.stderr)
        sys.stderr.flush()
        os._exit(128 + received[0])  # an epoch may still be computing in a thread that can't be stopped
    _print_result(result)
    _say_what_next(result)


def _told(result: dict[str, Any]) -> dict[str, Any]:
    """A result as it is after a tracking server that went away took what was kept for it, or didn't."""
    outbox = sys.modules.get("fmnist.tracking.outbox")  # nothing is imported for it
    told: dict[str, Any] = outbox.told(result) if outbox else result
    return told


def _print_result(result: dict[str, Any]) -> None:
    """For a person in a few lines, for a pipe or a file as one line of JSON."""
    print("\n".join(summary.lines(result)) if sys.stdout.isatty() else json.dumps(result), flush=True)


def _say_what_next(result: dict[str, Any]) -> None:
    """Says where a run is to be seen and compared, and to a person how to serve the model that came of it."""
    is_tracked = "mlflow" in sys.modules and not str(result.get("tracking", "")).startswith("kept")
    if "run_id" in result and is_tracked:
        from fmnist.tracking import pages

        for line in pages.after(result["run_id"]):
            print(line, file=sys.stderr)
    if result.get("registered") and sys.stderr.isatty():
        serve = f"mlflow models serve -m models:/{result['registered']} --env-manager local"
        print(f"Serve:   {os.environ.get('FMNIST_RUN', '')}{serve}", file=sys.stderr)


def _command(settings: type[Any]) -> click.Command:
    like_mlflow = click.Option(["pairs", "-P"], multiple=True, metavar="NAME=VALUE", help="as mlflow run takes it")
    options: list[click.Parameter] = [like_mlflow]
    for field in dataclasses.fields(settings):
        choices = field.metadata["choices"]
        text = f"{field.metadata['help']}{': ' + ', '.join(choices) if choices else ''}"
        text += f"  [default: {default_text(field) or 'empty'}]"
        options.append(click.Option([f"--{field.name}"], default=None, help=text, metavar="TEXT"))
    name = settings.__name__.lower()
    return click.Command(name, params=options, help=settings.__doc__)


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise FmnistError(f"-P: expected name=value, received {text!r}")
    return name, value


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

    def __init__(self, label: str, num_steps: int, *, unit: str = "epoch", keep: bool = False) -> None:
        """With `keep`, the text of each step stays above the bar."""
        from tqdm import tqdm

        self._lines, self._keep = not sys.stderr.isatty(), keep
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
        if self._lines:
            print(f"{self._prefix} {self._done}/{self._num_steps}  {text}", file=sys.stderr, flush=True)
        elif self._keep:
            self._bar.write(text, file=sys.stderr)
        else:
            self._bar.set_postfix_str(text, refresh=False)
        self._bar.update()
