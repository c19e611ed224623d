"""What tests of searches share."""

from contextlib import contextmanager

import optuna

from fmnist.tuning import studies

QUICK = {"model": "mlp", "dataset": "synthetic", "epochs": 1, "space": "width=64..128, layers=1, batch_size=256"}
AUTO = "auto"


def made_study(name, *states, storage=AUTO, **attributes):
    """A study with trials in some states, each with an accuracy by its number."""
    study = studies.find_or_create(
        name, storage, ("accuracy",), {"identity": {"objective": "accuracy"}} | attributes
    )
    for number, state in enumerate(states):
        value = 0.5 + number / 100 if state == optuna.trial.TrialState.COMPLETE else None
        trial = study.ask({"width": optuna.distributions.IntDistribution(64, 1024)})
        if state == optuna.trial.TrialState.FAIL:
            trial.set_user_attr("error", "E")
        if state.is_finished():
            study.tell(trial, value, state=state)
    return study


class Recorder:
    """Stands for MLflow."""

    def __init__(self):
        self.states, self.after, self.told = [], [], []

    @contextmanager
    def trial_run(self, parent, name, tags, point):
        yield name

    @contextmanager
    def study_run(self, run_id, *, leads):
        try:
            yield run_id
            self.told.append("finished")
        except BaseException as error:
            self.told.append(type(error).__name__)
            raise

    def log_trial(self, state, figures, *, seeds_at_once):
        self.states.append(state)

    def log_after(self, run_id, figures):
        self.after.append(figures)

    def log_model(self, trained, splits, plan):
        return "models:/none"

    def __getattr__(self, name):
        return lambda *arguments, **_: self.told.append(name)
