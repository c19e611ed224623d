"""How long seeds take that are trained at once, compared with one after the other; with JAX, on this device.

    python tests/seeds_speed.py --seeds 16 --model lenet --device gpu

Each round times an epoch of all seeds at once and one of a single seed, in turns, after one that compiles.
"""

import argparse
import dataclasses
import json
import statistics
from time import perf_counter

from fmnist import data, device, engine, together, training
from fmnist.options import parse
from fmnist.settings import Train, Validation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--model", default="lenet")
    parser.add_argument("--hyper", default="")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dataset", default="synthetic")
    parser.add_argument("--images", type=int, default=0, help="of the training split; 0: all")
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()

    used = device.select(asked.device, "jax")
    splits = data.load(asked.dataset, data_dir="", validation=Validation(1000), seed=0)
    count = asked.images or len(splits.train)
    train = data.Split(splits.train.images[:count], splits.train.labels[:count])
    splits = dataclasses.replace(splits, train=train)
    settings = parse(Train, {"model": asked.model, "hyper": asked.hyper, "backend": "jax"})
    plan = training.settle(training.plan(settings), used)
    groups = [len(each) for each in together.groups(plan, splits, range(asked.seeds))]
    models = [training.fresh(dataclasses.replace(plan, seed=seed), splits) for seed in range(asked.seeds)]
    parts = {"recipe": plan.recipe, "augment": plan.augment, "images": train.images, "labels": train.labels}
    at_once = engine.load_together(models[0], **parts)
    at_once.begin(range(asked.seeds), [at_once.fresh_state(model) for model in models])
    alone = engine.load("compiled", "jax", training.fresh(plan, splits), **parts, batch_parts=1)

    start = perf_counter()
    at_once.train_epochs(1)
    compiling = {"at_once": perf_counter() - start}
    start = perf_counter()
    alone.train_epoch(0, 1)
    compiling["one"] = perf_counter() - start
    ratios, all_seconds, one_seconds = [], [], []
    for epoch in range(2, asked.rounds + 2):
        all_seconds.append(at_once.train_epochs(epoch)[0].seconds)
        one_seconds.append(alone.train_epoch(0, epoch).seconds)  # seeds differ in values alone, not in work
        ratios.append(all_seconds[-1] / one_seconds[-1])
    result = {
        "model": asked.model,
        "device": f"{used.kind}: {used.name}, {used.num_threads} threads",
        "versions": used.versions,
        "seeds": asked.seeds,
        "images": count,
        "rounds": asked.rounds,
        "groups_that_fit": groups,
        "first_epoch_seconds": compiling,
        "epoch_of_all_seconds": statistics.median(all_seconds),
        "epoch_of_one_seconds": statistics.median(one_seconds),
        "all_to_one": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
    }
    times = result["all_to_one"]
    print(
        f"{asked.model} on {result['device']}, {asked.seeds} seeds, {count} images, {asked.rounds} epochs of each"
    )
    print(
        "an epoch of all at once {epoch_of_all_seconds:.3f} s, of one {epoch_of_one_seconds:.3f} s".format(
            **result
        )
    )
    print(
        "{} seeds at once take {median:.2f} times as long as one ({min:.2f}-{max:.2f}); one after the other, {} "
        "times".format(asked.seeds, asked.seeds, **times)
    )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
