"""`python -m entry_points.workers.trial TASK`: a worker of a hyperparameter search, as `tune` starts it."""

import dataclasses
import json
import sys

from fmnist import data, device, processes, training
from fmnist.errors import FmnistError
from fmnist.options import parse
from fmnist.settings import Tune
from fmnist.tuning import trials


def work(request: str) -> None:
    task = trials.Task(**json.loads(request))
    settings = parse(Tune, task.settings)
    quiet = processes.Quiet(wanted="latency" in settings.objective)
    with processes.pinned(task.num_threads), quiet:
        search = trials.plan(settings)
        splits = data.load(
            settings.dataset, data_dir=settings.data_dir, validation=settings.validation, seed=settings.seed
        )
        used = device.select(settings.device, settings.backend)
        search = dataclasses.replace(search, base=training.settle(search.base, used))
        from fmnist.tracking import search as tracking

        trials.work(task, search, splits.without_test(), used, tracking, quiet)


if __name__ == "__main__":
    try:
        work(sys.argv[1])
    except FmnistError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
