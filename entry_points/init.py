"""`mlflow run . -e init`: fill the store with what there is to compare with."""

from pathlib import Path
from typing import Any

from fmnist import cli
from fmnist.settings import Init


def init(settings: Init) -> dict[str, Any]:
    from fmnist.tracking import imports, runs

    folder = Path(settings.bundles)
    found = sorted(each for each in folder.iterdir() if each.suffix == ".zip" or (each / "bundle.json").exists())
    result = imports.import_bundles(found)
    runs.describe_launched(settings, "init", f"Added {result['runs']['added']} runs of {folder}.")
    return {"bundles": len(found), **result}


if __name__ == "__main__":
    cli.main(Init, init)
