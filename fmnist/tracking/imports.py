"""Bundles into the store that MLflow is pointed at, by one process at a time."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlflow
import requests

from fmnist import cache
from fmnist.errors import FmnistError
from fmnist.tracking import bundles, runs, template

KINDS = ("runs", "models", "versions", "files")


def import_bundles(folders: Sequence[Path], *, init: bool = False) -> dict[str, Any]:
    """Brings bundles, as folders, into the store; gives what was added and what was there already.

    Args:
        folders: Of the bundles.
        init: Brings what `mlruns_template/experiments.yaml` says, too.

    Raises:
        FmnistError: If one isn't sound, of which nothing is taken, or the store doesn't answer.
    """
    runs.open_store()
    client, tally = mlflow.MlflowClient(), bundles.Tally()
    with cache.lock(runs.lock_file("import")):
        if init:
            template.apply(client)
        for folder in folders:
            try:
                bundles.bring(folder, client, tally)
            except (mlflow.MlflowException, requests.RequestException, OSError) as error:
                reason = " ".join(str(error).split())  # a proxy's is a page
                raise FmnistError(
                    f"MLflow at {mlflow.get_tracking_uri()} takes no more of {folder}: {reason}. Type it again: "
                    "what is there already isn't added twice"
                ) from None
    return {
        **{kind: {"added": tally.added[kind], "there": tally.there[kind]} for kind in KINDS},
        "registered": tally.versions,
        "aliases_of_others": tally.kept_aliases,
    }
