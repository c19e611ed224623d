"""`mlflow run . -e speedrun`: run the recipe that is recorded for a target over several seeds."""

import dataclasses
from typing import Any

from fmnist import cli, device, training
from fmnist import speedrun as speedruns
from fmnist.settings import Speedrun


def speedrun(settings: Speedrun) -> dict[str, Any]:
    chosen = speedruns.choose(settings, device.expected(settings.device))
    backend = chosen.settings.backend
    device.refuse_missing(settings.device, backend)
    training.check_fits(chosen.plan, speedruns.load(chosen.settings))
    used = device.select(settings.device, backend)
    chosen = speedruns.choose(settings, used.kind, backend=backend)
    splits = speedruns.load(chosen.settings)
    training.check_fits(chosen.plan, splits)
    chosen = dataclasses.replace(chosen, plan=training.settle(chosen.plan, used))
    device.try_out()  # so that no seed's clock waits for a device that wakes up
    from fmnist.tracking import models, runs
    from fmnist.tracking import speedrun as tracking

    with runs.run(settings, f"speedrun {chosen.record.name} · {settings.seeds} seeds") as run_id:
        date = tracking.log_record(chosen, splits, used)
        command = speedruns.Command(chosen, used, settings.price_per_hour, run_id, tracking, cli.Progress)
        results = speedruns.run(command, range(settings.seed, settings.seed + settings.seeds), splits)
        result = tracking.log_outcome(chosen, results, settings, used, date)
        best = max(results, key=lambda each: each["validation_accuracy"]) | {"together": result}
        registered = models.register(best, settings.registered_model)
    return {"run_id": run_id, "registered": registered, **result}


if __name__ == "__main__":
    cli.main(Speedrun, speedrun)
