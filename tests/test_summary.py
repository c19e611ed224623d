"""What a command prints: a summary for a person at a terminal, one line of JSON for a pipe."""

import json
import os
import pty
import subprocess
import sys

from conftest import ROOT
from test_run_script import read

from fmnist import summary

RESULT = {
    "run_id": "abc",
    "registered": None,
    "num_parameters": 61706,
    "promoted": False,
    "reason": "**Kept**: not shown to be better",
    "served/images_per_second": 158000.4,
    "test_accuracy": {"n": 2, "mean": 0.9, "min": 0.8925, "max": 0.9075, "std": 0.01, "ci95_low": None},
    "test_loss": 0.318,
    "seeds": [0, 1],
    "counts": {"train": 7000, "test": 2000},
    "candidates": [{"candidate": "trial 0", "drop": None, "command": "mlflow run . -e train " + 60 * "x"}, {}],
    "steps": {
        "train": {"run_id": 40 * "t", "done_now": True},
        "evaluate": {"run_id": 40 * "e", "done_now": False},
    },
}


def test_a_person_reads_a_line_for_each_figure_and_the_parts_of_what_is_long_below_it():
    assert list(summary.lines(RESULT)) == [
        "run id                    abc",
        "parameters                61,706",
        "promoted                  no",
        "reason                    Kept: not shown to be better",
        "served/images per second  158,000",
        "test accuracy             90.00% (89.25% to 90.75%)",
        "test loss                 0.318",
        "seeds                     0, 1",
        "counts                    train 7,000, test 2,000",
        "candidates",
        f"  -  candidate trial 0, command mlflow run . -e train {60 * 'x'}",
        "steps",
        f"  train  run id {40 * 't'}, done now yes",
        f"  evaluate  run id {40 * 'e'}, done now no",
    ]


def test_a_terminal_gets_the_summary_and_a_pipe_the_json():
    code = f"from fmnist import cli, data, settings; cli.main(settings.Preprocess, lambda _: {RESULT!r})"
    command = [sys.executable, "-c", code]
    piped = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(piped.stdout) == RESULT
    leader, follower = pty.openpty()
    subprocess.run(command, cwd=ROOT, stdout=follower, stderr=subprocess.DEVNULL, check=True)
    os.close(follower)
    said = b""
    while chunk := read(leader):
        said += chunk
    assert said.decode().splitlines() == list(summary.lines(RESULT))
