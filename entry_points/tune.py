"""`mlflow run . -e tune`: search hyperparameters, re-train the best on fresh seeds, test the winner."""

import dataclasses
import json
import os
import sys
from typing import Any

from entry_points.workers.trial import work
from fmnist import cli, data, device
from fmnist.settings import Tune, texts
from fmnist.tuning import candidates, leader, studies, trials, verdict, workers


def tune(settings: Tune) -> dict[str, Any]:
    own_device = settings.device if settings.launcher == "local" else "auto"  # Ray's nodes have their own
    device.refuse_missing(own_device, settings.backend)
    search = trials.plan(settings)
    workers.check(settings)
    studies.check_storage(settings.storage)
    splits = data.load(
        settings.dataset, data_dir=settings.data_dir, validation=settings.validation, seed=settings.seed
    )
    trials.check_fits(search, splits)
    name = settings.study or leader.new_name(search)
    study = studies.find(name, settings.storage)
    if study:
        trials.check_same(study, search, splits)
    workers.connect(settings)
    from fmnist.tracking import models, runs
    from fmnist.tracking import search as log
    from fmnist.tracking import training as log_training

    os.environ["MLFLOW_TRACKING_URI"] = runs.open_store()  # for workers, wherever they run

    def start(task: trials.Task) -> workers.Worker:
        return workers.start(settings, task.num_threads, work, json.dumps(dataclasses.asdict(task)))

    def run(study: Any, total: int) -> dict[str, float]:
        searching = study is led  # or training the best again
        for lost in studies.sweep(study, settings.storage):
            log.end_lost(lost.user_attrs.get("run_id", ""))

        def on_trial(trial: Any) -> None:
            log.end_lost(trial.user_attrs.get("run_id", ""))
            if searching:
                log.log_best(leader.best_so_far(study), len(studies.ended(study)))
            progress.step(leader.progress_text(study, trial))

        task = trials.Task(
            settings=texts(settings),
            study=study.study_name,
            total=total,
            skipped=len(studies.ended(study)),
            run_id=run_id,
            num_threads=workers.num_threads(settings),
            command="-".join(map(str, studies.this_process().values())),
            leader=os.getpid() if settings.launcher == "local" else None,
        )
        with cli.Progress(study.study_name, studies.remaining(study, total), unit="trial") as progress:
            return leader.search(study, task, start, on_trial)

    with runs.run(settings) as own_run:
        attributes = {"identity": search.identity(splits), "run_id": own_run}
        study = studies.find_or_create(name, settings.storage, search.objectives, attributes)
        trials.check_same(study, search, splits)  # it may have come into being meanwhile
        watch = f"optuna-dashboard {studies.location(name, settings.storage)}"
        print(f"study {name}: watch it with {watch}; go on with it by -P study={name}", file=sys.stderr)
        with (
            studies.leading(study, settings.storage) as leads,
            log.study_run(study.user_attrs["run_id"], leads=leads) as run_id,
        ):
            led = study if leads else None
            figures = run(study, settings.trials)
            if not led:
                return {"run_id": own_run, "study": name, "leads": False}
            log_training.log_dataset(splits)
            log.log_search(study, figures)
            again = candidates.again(study, search)
            run(again, candidates.ask_again(study, again, search))
            found = candidates.candidates(study, again, search)
            device.select(own_device, settings.backend)
            tests = {
                each.trial: candidates.test(each, splits, models.load_model) for each in (found[0], found[-1])
            }
            result = verdict.result(study, settings, found, tests)
            log.log_tuned(result, verdict.markdown(study, settings, found, tests))
            best = candidates.best_model(found[0], tests[found[0].trial], splits)
            registered = models.register(best, settings.registered_model, study=name)
    return {"run_id": run_id, "registered": registered, **result}


if __name__ == "__main__":
    cli.main(Tune, tune)
