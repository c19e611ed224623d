"""`mlflow run . -e init`: fill the store with what there is to compare with."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from fmnist import bundle, cli
from fmnist.settings import Init


def init(settings: Init) -> dict[str, Any]:
    place = Path(settings.bundles)
    found = sorted(each for each in place.iterdir() if each.suffix == ".zip" or (each / "bundle.json").exists())
    with ExitStack() as stack:
        folders = [stack.enter_context(bundle.unpacked(each)) for each in found]
        for folder in folders:
            bundle.read(folder)
        from fmnist.tracking import imports, runs

        result = imports.import_bundles(folders, init=True)
    runs.describe_launched(settings, "init", f"Added {result['runs']['added']} runs of {place}.")
    return {"bundles": len(found), **result}


if __name__ == "__main__":
    cli.main(Init, init)
