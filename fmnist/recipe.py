"""How a model is trained: the fields of a recipe, what each may be, and what of it a search may vary.

Beside optimizer, step, batch and epochs, a recipe has what records are made of, all of it off by default;
`-P recipe="schedule=one_cycle;label_smoothing=0.1"` turns it on. `fmnist.engine` does it, on both backends.
"""

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any, get_type_hints

from fmnist import arguments
from fmnist.arguments import Fraction, Range
from fmnist.errors import FmnistError
from fmnist.space import Choice, Space, Span

Schedule = Annotated[str, ("constant", "one_cycle", "cosine")]
Averaging = Annotated[str, ("none", "ema", "lookahead")]
Flip = Annotated[str, ("none", "random", "alternating")]
Views = Annotated[str, ("none", "flip", "flip_shift")]
Rate = Annotated[float, Range(0, 1000)]
GRADIENT_DESCENT = ("sgd", "momentum")
# Which optimizers alone can have a field.
ONLY = {"bias_rate": GRADIENT_DESCENT, "norm_rate": GRADIENT_DESCENT, "muon": ("momentum",)}
# Which say more of another field, and nothing where that is at its default.
REFINES = {
    **{"warmup": "schedule", "final_rate": "schedule", "small_epochs": "small_side"},
    **{"average_decay": "averaging", "average_every": "averaging"},
}


@dataclass(frozen=True)
class Recipe:
    """How a model is trained unless the user says otherwise."""

    optimizer: str
    learning_rate: float
    batch_size: int
    epochs: int
    schedule: Schedule = "constant"
    """What becomes of the step: `one_cycle` rises and falls along straight lines (Smith 2018,
    https://arxiv.org/abs/1803.09820), `cosine` falls along half a wave (Loshchilov, Hutter 2017,
    https://arxiv.org/abs/1608.03983)."""
    warmup: Fraction = 0.0
    """The share of all updates in which the step rises from 0, with `one_cycle` or `cosine`."""
    final_rate: Annotated[float, Range(0, 1)] = 0.0
    """The share of the step that is left at the end, with `one_cycle` or `cosine`."""
    momentum: Annotated[float, Range(0, 0.999)] = 0.9
    """Of the optimizer of that name, which is Nesterov's."""
    weight_decay: Annotated[float, Range(0, 1)] = 0.0
    """An update takes this share of a kernel, times the step (Loshchilov, Hutter 2019,
    https://arxiv.org/abs/1711.05101); biases and norms are left alone. Where it is 0, `adamw` has Keras's own,
    of all weights."""
    bias_rate: Rate = 1.0
    """The step of biases, as a multiple; with `sgd` and `momentum`."""
    norm_rate: Rate = 1.0
    """The step of what a normalization learns, as a multiple; with `sgd` and `momentum`."""
    muon: Annotated[float, Range(0, 1)] = 0.0
    """The step of kernels of convolutions, which are then of one size and go along the orthogonalized momentum
    (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/); the schedule is that of the other step.
    0: they go as all others do."""
    norm_parts: Annotated[int, Range(1, 16)] = 1
    """In so many parts of a batch, each by itself, normalizations take mean and variance (Hoffer et al. 2017,
    https://arxiv.org/abs/1705.08741). On a CPU, the parts are worked on side by side."""
    label_smoothing: Fraction = 0.0
    """The share of a label that is given to all classes alike (Szegedy et al. 2016, https://arxiv.org/abs/1512.00567)."""
    averaging: Averaging = "none"
    """Which mean of the weights (and of the statistics of norms) the model has after each epoch: `ema`, an
    exponential one; `lookahead`, one from which training goes on each time (Zhang et al. 2019,
    https://arxiv.org/abs/1907.08610), to which the new weights give less and less as in airbench."""
    average_decay: Annotated[float, Range(0, 0.99999)] = 0.95
    """The share of the mean that an update leaves in it; with `lookahead` it grows to that from 0."""
    average_every: Annotated[int, Range(1, 1000)] = 1
    """After so many updates the mean is taken."""
    flip: Flip = "none"
    """Mirrored images: by chance, or each image in every second epoch (Jordan 2024, https://arxiv.org/abs/2404.00498)."""
    crop: Annotated[int, Range(0, 8)] = 0
    """Images are moved by up to so many pixels each way, black coming in."""
    erase: Annotated[float, Range(0, 1)] = 0.0
    """The share of images that lose a rectangle of 2 % to 33 % of their area (Zhong et al. 2020,
    https://arxiv.org/abs/1708.04896)."""
    mixup: Annotated[float, Range(0, 10)] = 0.0
    """Two images are mixed with shares of Beta(a, a) for this a (Zhang et al. 2018, https://arxiv.org/abs/1710.09412)."""
    cutmix: Annotated[float, Range(0, 10)] = 0.0
    """A rectangle of one image is put into another, areas of Beta(a, a) for this a (Yun et al. 2019,
    https://arxiv.org/abs/1905.04899); where mixup is on too, each has half of the images."""
    small_side: Annotated[int, Range(0, 27)] = 0
    """The side of the images in the first epochs; 0: they are never smaller."""
    small_epochs: Fraction = 0.5
    """The share of epochs with smaller images."""
    views: Views = "none"
    """What a trained model looks at, its logits' mean taken: an image; that and its mirror image; these and both
    moved by a pixel. It is part of the model that is kept."""

    @property
    def extras(self) -> dict[str, Any]:
        """The fields beside the first four that aren't at their default."""
        return {name: getattr(self, name) for name in EXTRAS if getattr(self, name) != EXTRAS[name].default}

    @property
    def plain(self) -> "Recipe":
        """The first four fields, and the momentum: what stock Keras does too."""
        return Recipe(self.optimizer, self.learning_rate, self.batch_size, self.epochs, momentum=self.momentum)

    def beside(self, own: "Recipe") -> dict[str, Any]:
        """All that a text must say of it where `own` is what stands beside the model."""
        names = self.extras.keys() | own.extras.keys()
        return {name: getattr(self, name) for name in EXTRAS if name in names}

    @property
    def knows_its_end(self) -> bool:
        """Whether what an epoch does depends on how many there are to be."""
        return self.schedule != "constant" or self.averaging == "lookahead" or bool(self.small_side)

    @property
    def num_small_epochs(self) -> int:
        """In how many epochs images are smaller, the first ones."""
        return round(self.small_epochs * self.epochs) if self.small_side else 0


EXTRAS = {field.name: field for field in dataclasses.fields(Recipe)[4:]}
NAMES = tuple(field.name for field in dataclasses.fields(Recipe))

# What every search may vary beside the model itself.
RECIPE_SPACE: Space = {
    "optimizer": Choice(("adam", "adamw", "rmsprop", "momentum")),
    "learning_rate": Span(1e-4, 1e-2, log=True),
    "batch_size": Choice((32, 64, 128, 256)),
    "augment": Choice(("none", "flip_horizontal", "shift", "flip_horizontal+shift")),
}
# What it varies only where `-P space=` names it.
EXTRA_SPACE: Space = {
    "schedule": Choice(("constant", "one_cycle", "cosine")),
    "warmup": Span(0.0, 0.5),
    "final_rate": Span(0.0, 0.2),
    "momentum": Span(0.5, 0.99),
    "weight_decay": Span(1e-6, 1e-1, log=True),
    "bias_rate": Span(1.0, 128.0, log=True),
    "norm_rate": Span(1.0, 128.0, log=True),
    "muon": Span(1e-3, 0.3, log=True),
    "norm_parts": Choice((1, 2, 4)),
    "label_smoothing": Span(0.0, 0.4),
    "averaging": Choice(("none", "ema", "lookahead")),
    "average_decay": Span(0.5, 0.9999),
    "average_every": Span(1, 20),
    "flip": Choice(("none", "random", "alternating")),
    "crop": Span(0, 4),
    "erase": Span(0.0, 1.0),
    "mixup": Span(0.0, 1.0),
    "cutmix": Span(0.0, 1.0),
    "small_side": Choice((0, 14, 16, 20, 24)),
    "small_epochs": Span(0.1, 0.9),
    "views": Choice(("none", "flip", "flip_shift")),
}


def one_side_only(model: str, where: str, sides: object) -> FmnistError:
    """The error for a model that takes images of one side alone, where others are asked for."""
    return FmnistError(
        f"{where}: small_side={sides}: {model} has layers for images of one side alone; leave it out, "
        "or take a model that ends in a mean or maximum over the image, for example -P model=resnet"
    )


def resolve(recipe: Recipe, text: str = "", **given: Any) -> Recipe:
    """The recipe with what the user gave in place of its own values; None means not given.

    Args:
        recipe: What stands beside the model.
        text: More of it, such as `schedule=one_cycle;label_smoothing=0.1`.
        given: Fields by name.

    Raises:
        FmnistError: If a name of the text is unknown, a value isn't what it may be, or two don't go together.
    """
    hints = get_type_hints(Recipe, include_extras=True)
    annotations = {name: hints[name] for name in EXTRAS}
    extras = arguments.parse(text, annotations, where="recipe", whose="part of a recipe")
    named = extras | {name: value for name, value in given.items() if value is not None}
    found = dataclasses.replace(recipe, **named)
    off: dict[str, Any] = {
        name: EXTRAS[name].default for name, optimizers in ONLY.items() if found.optimizer not in optimizers
    }
    if refused := [name for name, value in off.items() if extras.get(name, value) != value]:
        raise FmnistError(
            f"recipe: {', '.join(refused)}: not with {found.optimizer}; type -P optimizer=momentum or leave it out"
        )
    for name, other in REFINES.items():
        default, without = EXTRAS[name].default, EXTRAS[other].default
        if getattr(found, other) == without:
            if extras.get(name, default) != default:
                raise FmnistError(
                    f"recipe: {name}: not with {other}={without}; name another {other} or leave it out"
                )
            off[name] = default
    return dataclasses.replace(found, **off)
