"""The recipes that are recorded for a target accuracy and a kind of device: what `speedrun` runs.

All that decides a training is fixed here in advance, chosen on the validation split alone. To enter a better
one, edit `RECORDS`: its values are `train`'s parameters, as a user would type them. What is left out is as the
model's own recipe has it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

BEST = "best"
TARGETS = ("90", "92", "93", "94", "95", BEST)

# By target and kind of device.
RECORDS: dict[tuple[str, str], dict[str, str]] = {
    ("90", "cpu"): {
        **{"model": "resnet", "hyper": "filters=16,32,64;blocks=0", "recipe": "views=flip"},
        **{"epochs": "1", "batch_size": "64", "learning_rate": "0.5", "precision": "auto"},
    },
    ("92", "cpu"): {"model": "airbench", "epochs": "2", "precision": "auto"},
    ("93", "cpu"): {"model": "airbench", "epochs": "4", "precision": "auto"},
    ("94", "cpu"): {"model": "airbench", "epochs": "8", "precision": "auto"},
    ("95", "cpu"): {"model": "wrn", "recipe": "views=flip", "epochs": "30", "precision": "auto"},
    ("best", "cpu"): {"model": "wrn", "recipe": "views=flip", "epochs": "60", "precision": "auto"},
    ("90", "gpu"): {"model": "airbench", "epochs": "1", "precision": "auto"},
    ("92", "gpu"): {"model": "airbench", "epochs": "2", "precision": "auto"},
    ("93", "gpu"): {"model": "airbench", "epochs": "4", "precision": "auto"},
    ("94", "gpu"): {"model": "airbench", "hyper": "filters=64,128,128", "epochs": "8", "precision": "auto"},
    ("95", "gpu"): {"model": "wrn", "recipe": "views=flip", "epochs": "30", "precision": "auto"},
    ("best", "gpu"): {"model": "wrn", "recipe": "views=flip;cutmix=1", "epochs": "200", "precision": "auto"},
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
