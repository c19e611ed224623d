"""`mlflow run . -e reproduce`: do a training again, and say whether it comes to the same."""

import sys
from typing import Any

from fmnist import cli, data, device, seeds, training
from fmnist.errors import Refused
from fmnist.reproduction import DIFFERS
from fmnist.settings import Reproduce


def reproduce(settings: Reproduce) -> dict[str, Any]:
    """Raises `Refused`, after its run has ended, where it doesn't come to the same."""
    from fmnist.tracking import reproduction as log
    from fmnist.tracking import runs
    from fmnist.tracking import training as tracking

    runs.open_store()
    original = log.find(settings.run)
    again = original.settings(settings)
    device.refuse_missing(again.device, again.backend)
    plan = tracking.begin_with(training.plan(again), again.start_from)
    splits = data.load(again.dataset, data_dir=again.data_dir, validation=again.validation, seed=again.seed)
    log.check_data(original, splits)
    training.check_fits(plan, splits)
    found = seeds.find(plan, splits, again)
    used = device.select(again.device, again.backend, stock=again.trainer == "fit")
    with runs.run(settings, f"reproduce {original.run.info.run_name}") as run_id:
        log.log_begin(original, again)
        command = seeds.Command(splits, used, tracking, cli.Progress, again.tensorboard)
        with seeds.Work(found, command) as work:
            work.train(run_id)
        work.forget()
        result, text = log.log_comparison(original)
    print(text, file=sys.stderr)
    if result["verdict"] == DIFFERS:
        raise Refused(f"run {settings.run} isn't reproduced: {result['reason']}", result)
    return result


if __name__ == "__main__":
    cli.main(Reproduce, reproduce)
