"""`mlflow run . -e import`: add what an export wrote to the store, as far as it isn't there yet."""

from pathlib import Path
from typing import Any

from fmnist import bundle, cli
from fmnist.settings import Import


def import_(settings: Import) -> dict[str, Any]:
    with bundle.unpacked(Path(settings.bundle)) as folder:
        bundle.read(folder)
        from fmnist.tracking import imports, runs

        result = imports.import_bundles([folder])
    runs.describe_launched(
        settings, f"import of {settings.bundle}", f"Added {result['runs']['added']} runs of {settings.bundle}."
    )
    return result


if __name__ == "__main__":
    cli.main(Import, import_)
