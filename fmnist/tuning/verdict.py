"""What a search came to: as a record, and for people in Markdown."""

import dataclasses
import os
import shlex
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.trial import TrialState

from fmnist import arguments, machine
from fmnist.evaluation import Evaluation
from fmnist.markdown import mean_percent
from fmnist.options import texts
from fmnist.recipe import NAMES
from fmnist.settings import Train, Tune, augment_text
from fmnist.statistics import Spread, spread
from fmnist.tuning import studies
from fmnist.tuning.candidates import Candidate
from fmnist.tuning.trials import Settled


def result(
    study: optuna.Study, settings: Tune, found: list[Candidate], tests: Mapping[int, list[Evaluation]]
) -> dict[str, Any]:
    """What the search came to, as a record.

    Args:
        study: The search.
        settings: What was asked for.
        found: Of `candidates`.
        tests: Of those that were tested, the evaluations of their models.
    """
    states = [trial.state for trial in studies.counted(study)]
    gained = gain(found, tests)
    return {
        "verdict": sentence(found, tests),
        "study": study.study_name,
        **{f"num_{state.name.lower()}": states.count(state) for state in TrialState if state.is_finished()},
        "gain": gained and dataclasses.asdict(gained),
        "candidates": [
            {
                "candidate": str(each),
                "hyperparameters": each.plan.hyperparameters,
                **dataclasses.asdict(each.plan.recipe),
                "augment": augment_text(each.plan.augment),
                "search_accuracy": each.search_score,
                "validation_accuracy": each.validation and dataclasses.asdict(each.validation),
                "drop": each.drop,
                "test_accuracy": _tested(tests.get(each.trial)),
                "command": command(each, settings),
            }
            for each in found
        ],
    }


def markdown(
    study: optuna.Study, settings: Tune, found: list[Candidate], tests: Mapping[int, list[Evaluation]]
) -> str:
    """The same for people: what was found beside the model's own recipe, and how much of it was luck."""
    winner = found[0]
    lines = [
        f"Study **{study.study_name}**: {len(studies.counted(study))} trials of {winner.plan.model.name}, "
        f"{winner.plan.recipe.epochs} epochs each. The search saw the training and the validation split. Its best "
        "were then trained on fresh seeds, and the model's own recipe beside them, to compare with; the winner is "
        "the best of what was found, by the mean of its validation accuracies. Only what is shown with a test "
        "accuracy was tested.",
        "",
        "| | search | validation on fresh seeds: mean (95 % interval, n) | drop | test: mean (min-max, n) |",
        "| --- | --- | --- | --- | --- |",
    ]
    for each in found:
        test = spread([one.accuracy for one in tests[each.trial]]) if tests.get(each.trial) else None
        texts = (
            f"**{each}**" if each is winner else str(each),
            "" if each.search_score is None else f"{each.search_score:.2%}",
            mean_percent(each.validation, none="failed"),
            "" if each.drop is None else f"{100 * each.drop:+.2f} points",
            f"{test.mean:.2%} ({test.min:.2%}-{test.max:.2%}, {test.n})" if test else "not tested",
        )
        lines.append(f"| {' | '.join(texts)} |")
    lines += ["", f"{sentence(found, tests)} The validation figures chose the winner: they flatter it."]
    lines += ["", "Train them again with:", "", *(f"- {each}: `{command(each, settings)}`" for each in found)]
    return "\n".join(lines) + "\n"


def sentence(found: list[Candidate], tests: Mapping[int, list[Evaluation]]) -> str:
    """Whether the search found something better than the model's own recipe, for people."""
    winner, default, gained = found[0].validation, found[-1].validation, gain(found, tests)
    told = ""
    if winner and default and default.mean > winner.mean:
        told = (
            f"On fresh seeds the default recipe has the higher mean validation accuracy: {default.mean:.2%} "
            f"(n={default.n}), the winner {winner.mean:.2%} (n={winner.n}). "
        )
    if gained is None:
        return f"{told}No seed has both the winner and the default recipe to compare."
    points, low, high = f"{100 * gained.mean:+.2f} points", gained.ci95_low, gained.ci95_high
    if low is None or high is None:
        return (
            f"{told}On the test split the winner has {points} against the default recipe, on one seed: no "
            "verdict; type -P repeats=3."
        )
    verb = "beats" if low > 0 else "is worse than" if high < 0 else "is not shown to beat"
    return (
        f"{told}On the test split the winner {verb} the default recipe: {points} (95 % interval "
        f"{100 * low:+.2f} to {100 * high:+.2f}, {gained.n} seeds in pairs)."
    )


def gain(found: list[Candidate], tests: Mapping[int, list[Evaluation]]) -> Spread | None:
    """How much more test accuracy the winner has than the model's own recipe, seed by seed.

    Not of validation accuracies: the winner was chosen by them.
    """
    pair = [
        {
            each.user_attrs["seed"]: test.accuracy
            for each, test in zip(one.trainings, tests[one.trial], strict=True)
        }
        for one in (found[0], found[-1])
    ]
    seeds = pair[0].keys() & pair[1].keys()
    return spread([pair[0][seed] - pair[1][seed] for seed in sorted(seeds)]) if seeds else None


def command(candidate: Candidate, settings: Tune) -> str:
    """The command that trains a candidate again as its best training on a fresh seed was; on a CPU bit for bit.

    One that was trained beside other seeds comes to the same but for rounding.

    How many threads share an operation decides in what order a convolution sums: where the training had fewer than
    there are here, as beside other workers, the command begins with what keeps it to as many.
    """
    plan, validation = candidate.plan, settings.validation
    record = Train(
        model=plan.model.name,
        hyper=arguments.text(plan.hyperparameters),
        **dict(zip(NAMES[:4], dataclasses.astuple(plan.recipe)[:4], strict=True)),
        recipe=arguments.text(plan.recipe.beside(plan.model.recipe)),
        augment=plan.augment,
        precision=plan.precision,
        backend=plan.backend,
        trainer=plan.trainer,
        patience=plan.patience,
        seed=plan.seed,
        dataset=settings.dataset,
        data_dir=settings.data_dir,
        validation=validation
        if validation.seed is not None
        else dataclasses.replace(validation, seed=settings.seed),
        device=settings.device,
        registered_model=settings.registered_model,
    )
    words = ["mlflow", "run", ".", "-e", "train"]
    if candidate.trainings:
        training = candidate.best_training
        settled = Settled(**training.user_attrs["settled"])
        record = dataclasses.replace(
            record,
            precision=settled.precision,
            batch_parts=settled.batch_parts,
            device=settled.device,
            seed=training.user_attrs["seed"],
        )
        fewer = settled.device == "cpu" and settled.num_threads < machine.num_threads()
        if fewer and hasattr(os, "sched_getaffinity"):
            threads = sorted(os.sched_getaffinity(0))[: settled.num_threads]
            words = ["taskset", "-c", ",".join(map(str, threads)), *words]
    usual = texts(Train())
    pairs = [f"{name}={text}" for name, text in texts(record).items() if text != usual[name]]
    return shlex.join([*words, *(word for pair in pairs for word in ("-P", pair))])


def _tested(evaluations: list[Evaluation] | None) -> dict[str, float] | None:
    return dataclasses.asdict(spread([each.accuracy for each in evaluations])) if evaluations else None
