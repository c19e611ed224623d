"""`mlflow run . -e tune`: search hyperparameters, re-train the best on fresh seeds, test the winner."""

import dataclasses
import json
import os
from functools import partial
from typing import Any

from entry_points.workers.trial import work
from fmnist import cli, data, device
from fmnist.settings import Tune
from fmnist.tuning import leader, studies, trials, workers


def tune(settings: Tune) -> dict[str, Any]:
    own_device = settings.device if settings.launcher == "local" else "auto"  # Ray's nodes have their own
    device.refuse_missing(own_device, settings.backend)
    search = trials.plan(settings)
    workers.check(settings)
    studies.check_storage(settings.storage)
    splits = data.load(
        settings.dataset, data_dir=settings.data_dir, validation=settings.validation, seed=settings.seed
    )
    name = settings.study or leader.new_name(search)
    leader.check(search, splits, name)
    workers.connect(settings)
    from fmnist.tracking import runs
    from fmnist.tracking import search as tracking

    os.environ["MLFLOW_TRACKING_URI"] = runs.open_store()  # for workers, wherever they run

    def start(task: trials.Task) -> workers.Worker:
        return workers.start(settings, task.num_threads, work, json.dumps(dataclasses.asdict(task)))

    progress = partial(cli.Progress, unit="trial")
    with runs.run(settings, f"tune {settings.model}") as run_id:
        return leader.tune(leader.Command(search, splits, name, own_device, start, tracking, progress), run_id)


if __name__ == "__main__":
    cli.main(Tune, tune)
