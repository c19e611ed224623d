"""What docs/add-a-model.md shows is so: its diffs apply, and what they add is trained like all the rest."""

import re
import shutil
import subprocess
import sys

from conftest import ROOT


def test_the_model_and_the_dataset_that_the_page_adds_are_trained(new_store):
    store = new_store()
    for folder in ("fmnist", "entry_points"):
        shutil.copytree(ROOT / folder, store.folder / folder, ignore=shutil.ignore_patterns("__pycache__"))
    diffs = re.findall(
        r"^```diff\n(.*?)^```", (ROOT / "docs" / "add-a-model.md").read_text(), re.DOTALL | re.MULTILINE
    )
    assert len(diffs) == 2
    for diff in diffs:
        apply = ["git", "apply", "--recount", "-"]
        done = subprocess.run(apply, cwd=store.folder, input=diff, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    store.environment["PYTHONPATH"] = str(store.folder)
    parameters = ["--model", "patches", "--dataset", "shades", "--validation", "500", "--epochs", "3"]
    done = store.run([sys.executable, "-m", "entry_points.train", *parameters])
    assert '"model": "patches", "dataset": "shades"' in done.stdout, done.stderr
