"""`mlflow run . -e export`: write runs, with all that belongs to them, to a zip that any store can import."""

import os
from pathlib import Path
from typing import Any

from fmnist import cli
from fmnist.settings import Export


def export(settings: Export) -> dict[str, Any]:
    from fmnist.tracking import exports, runs

    runs.open_store()
    result = exports.export_runs(
        settings.runs, Path(settings.to), small=settings.small, but=os.environ.get("MLFLOW_RUN_ID", "")
    )
    runs.describe_launched(settings, f"export to {settings.to}", f"Wrote {result['runs']} runs to {settings.to}.")
    return result


if __name__ == "__main__":
    cli.main(Export, export)
