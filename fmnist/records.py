"""The recipes that are recorded for a target accuracy and a kind of device: what `speedrun` runs.

All that decides a training is fixed here in advance, chosen on the validation split; how far it must be above its
target there was learnt from earlier runs, of which docs/records.md tells. To enter a better one, edit `RECORDS`:
its values are `train`'s parameters, as a user would type them. What is left out is as the model's recipe has it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

BEST = "best"
TARGETS = ("90", "92", "93", "94", "95", BEST)

# docs/records.md says how each came about.
_SHARED = {"precision": "auto", "batch_size": "128", "learning_rate": "0.55"}
_LARGE_BATCHES = {"batch_size": "256", "learning_rate": "0.8"}
_RECIPE = (
    "norm_parts=2;warmup=0.25;final_rate=0.03;averaging=lookahead;average_decay=0.58;average_every=10;"
    "label_smoothing=0.25;norm_rate=6;flip=alternating;"
)
_PATCHES = _SHARED | {"model": "resnet", "hyper": "stem=white_patch;filters=16,32,64;blocks=0,0,1"}
_AIRBENCH = _SHARED | {"model": "airbench"}

# `validation` holds back what isn't trained on; docs/records.md says on how many images each was chosen.
_BOTH = {
    "90": _PATCHES
    | {
        "epochs": "1",
        "validation": "15000",
        "recipe": _RECIPE + "views=flip;muon=0.05;momentum=0.85;weight_decay=0.002",
    },
    "92": _AIRBENCH
    | {"hyper": "activation=relu;filters=16,48,64", "epochs": "2", "validation": "1000"}
    | {"recipe": _RECIPE + "views=flip;muon=0.04;momentum=0.8;weight_decay=0.002"},
    "93": _AIRBENCH
    | {"hyper": "activation=relu;filters=16,64,128", "epochs": "3"}
    | {"recipe": _RECIPE + "views=flip;muon=0.03;momentum=0.85;weight_decay=0.002"},
    "94": _AIRBENCH
    | {"hyper": "activation=relu;filters=32,64,128", "epochs": "7"}
    | {"recipe": _RECIPE + "views=flip;muon=0.04;momentum=0.8;weight_decay=0"}
    | _LARGE_BATCHES,
}
_LONG = _AIRBENCH | {
    **_LARGE_BATCHES,
    **{"hyper": "activation=relu;filters=64,64,128;depth=3", "validation": "1000"},
    "recipe": _RECIPE + "views=flip_shift;muon=0.04;momentum=0.8;weight_decay=0;erase=0.4;crop=1",
}
_SMALL_FIRST = _LONG | {"recipe": _LONG["recipe"] + ";small_side=20;small_epochs=0.4"}

# By target and kind of device. None has ever been run on a GPU.
RECORDS: dict[tuple[str, str], dict[str, str]] = {
    **{(target, device): texts for target, texts in _BOTH.items() for device in ("cpu", "gpu")},
    ("95", "cpu"): _SMALL_FIRST | {"epochs": "30"},
    (BEST, "cpu"): _SMALL_FIRST | {"epochs": "60"},
    ("95", "gpu"): _LONG | {"epochs": "28"},
    (BEST, "gpu"): {
        **{"model": "wrn", "hyper": "depth=40;width=4", "epochs": "200", "precision": "auto"},
        "recipe": "erase=0.5;cutmix=1;averaging=ema;average_decay=0.999;views=flip",
    },
}


@dataclass(frozen=True)
class Record:
    """A recipe that is to reach a target on a kind of device."""

    target: str
    """Of `TARGETS`."""
    device: str
    """`cpu` or `gpu`."""
    texts: Mapping[str, str]
    """Parameters of `train`, as a user would type them."""

    @property
    def goal(self) -> float | None:
        """The test accuracy that the mean of the seeds must reach; None for the most accurate recipe."""
        return None if self.target == BEST else int(self.target) / 100

    @property
    def name(self) -> str:
        """For people."""
        return f"{BEST if self.goal is None else f'{self.target} %'} · {self.device}"


def find(target: str, device: str) -> Record:
    """What is recorded for a target on a kind of device."""
    return Record(target, device, RECORDS[target, device])
