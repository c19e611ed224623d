"""The models: each one decorated function that gives its hidden layers, with recipe and search space beside it.

The function's keyword arguments are the model's hyperparameters (`-P hyper=`); their annotations say what
they may be. Every model is framed alike: raw pixels 0-255 go in as `(batch, 28, 28)`, are scaled inside,
and a probability for each class comes out. To add a model, write one function here; every command and test sees
it. Keras is imported only when a model is built.
"""

import dataclasses
import inspect
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin

from fmnist.classes import named
from fmnist.errors import FmnistError
from fmnist.registry import MODELS, unknown
from fmnist.space import Choice, Point, Space, Span

if TYPE_CHECKING:
    import keras

NUM_CLASSES = 10
SIDE = 28


@dataclass(frozen=True)
class Recipe:
    """How a model is trained unless the user says otherwise."""

    optimizer: str
    learning_rate: float
    batch_size: int
    epochs: int


@dataclass(frozen=True)
class Range:
    """The numbers that a hyperparameter (or each number of its list) may be."""

    low: float
    high: float


Widths = Annotated[tuple[int, ...], Range(1, 16384)]
Fraction = Annotated[float, Range(0, 0.95)]
Activation = Annotated[str, ("relu", "tanh", "sigmoid", "elu", "gelu", "silu")]
Layers = list["keras.Layer"]

# Three dimensions make a list of widths: the first one, how many there are, and each one's ratio to the one
# before. Without a number the list keeps the shape of the default.
SHAPED = {"dense": ("width", "layers", "taper"), "filters": ("filters", "blocks", "growth")}
# What every search may vary beside the model itself.
RECIPE_SPACE: Space = {
    "optimizer": Choice(("adam", "adamw", "rmsprop", "momentum")),
    "learning_rate": Span(1e-4, 1e-2, log=True),
    "batch_size": Choice((32, 64, 128, 256)),
    "augment": Choice(("none", "flip_horizontal", "shift", "flip_horizontal+shift")),
}
DENSE_SPACE: Space = {"width": Span(64, 1024, log=True), "layers": Span(1, 3), "taper": Choice((0.25, 0.5, 1.0))}
ACTIVATIONS = Choice(("relu", "tanh", "elu", "gelu"))


@dataclass(frozen=True)
class Model:
    """A registered model: its builder of hidden layers, its recipe, and what a search may vary."""

    name: str
    builder: Callable[..., Layers]
    recipe: Recipe
    space: Space

    def hyperparameters(self, text: str) -> dict[str, Any]:
        """All hyperparameters: the builder's defaults, overridden by a text such as `dense=120,84;dropout=0.3`.

        Raises:
            FmnistError: If a name isn't an argument of the builder, or a value isn't what it may be.
        """
        arguments = self._arguments()
        values = {name: argument.default for name, argument in arguments.items()}
        for part in filter(None, (part.strip() for part in text.split(";"))):
            name, _, value = (piece.strip() for piece in part.partition("="))
            if name not in arguments:
                raise unknown(f"hyperparameter of {self.name}", name, arguments)
            values[name] = _parse(name, value, arguments[name].annotation)
        return values

    def _arguments(self) -> Mapping[str, inspect.Parameter]:
        """The builder's arguments.

        Raises:
            FmnistError: If one doesn't say what it may be.
        """
        arguments = inspect.signature(self.builder).parameters
        for name, argument in arguments.items():
            if len(get_args(argument.annotation)) != 2 or argument.default is argument.empty:
                raise FmnistError(
                    f"model {self.name}: expected of its argument {name} a default and an annotation that "
                    f"bounds it, found {argument}; write for example {name}: Annotated[int, Range(1, 64)] = 8"
                )
        return arguments

    def scaled(self, width: float) -> dict[str, Any]:
        """The default hyperparameters with every list of widths multiplied by a factor."""
        arguments = self._arguments()
        return {
            name: tuple(max(round(width * each), 1) for each in argument.default)
            if get_origin(get_args(argument.annotation)[0]) is tuple
            else argument.default
            for name, argument in arguments.items()
        }

    def at(self, point: Point) -> dict[str, Any]:
        """The hyperparameters at a point of the search space."""
        values = self.hyperparameters("")
        for name, (first, count, ratio) in SHAPED.items():
            if count in point:
                widths = [point[first] * point[ratio] ** index for index in range(point[count])]
                values[name] = tuple(max(round(width), 1) for width in widths)
            elif first in point:
                default = values[name]
                values[name] = tuple(max(round(point[first] * width / default[0]), 1) for width in default)
        return values | {name: point[name] for name in values if name in point and name not in SHAPED}

    def looks_across_batch(self, hyperparameters: dict[str, Any]) -> bool:
        """Whether a layer uses, or may use, more of a batch than one image: then it isn't worked on in parts."""
        import keras

        with keras.StatelessScope(initialize_variables=False):  # an array would fix the threads of the device
            layers = self.builder(**hyperparameters)
        while layers:
            layer = layers.pop()
            own = type(layer).__module__.partition(".")[0] != "keras"  # which may do what it likes
            if own or isinstance(layer, keras.layers.BatchNormalization):
                return True
            layers += getattr(layer, "layers", [])
        return False

    def build(
        self, hyperparameters: dict[str, Any], *, precision: str, seed: int, num_classes: int = NUM_CLASSES
    ) -> "keras.Model":
        """A Keras model with fresh weights, drawn from the seed.

        Takes raw pixels `(batch, 28, 28)`, float32, 0-255; gives probabilities `(batch, classes)`, float32.
        """
        import keras

        # Keras draws the seeds of its initializers from Python's generator. keras.utils.set_random_seed
        # does no more for them, but imports TensorFlow under any backend.
        random.seed(seed)
        keras.config.set_dtype_policy("mixed_bfloat16" if precision == "bfloat16" else "float32")
        pixels = keras.Input((SIDE, SIDE), name="pixels")
        outputs = keras.layers.Rescaling(1 / 255, name="scale")(pixels)
        outputs = keras.layers.Reshape((SIDE, SIDE, 1), name="channel")(outputs)
        for layer in self.builder(**hyperparameters):
            outputs = layer(outputs)
        # The last sums and the softmax stay in float32: bfloat16 has too few digits for probabilities.
        logits = keras.layers.Dense(num_classes, dtype="float32", name="logits")(outputs)
        probabilities = keras.layers.Softmax(dtype="float32", name="probabilities")(logits)
        return keras.Model(pixels, probabilities, name=self.name)


@dataclass(frozen=True)
class Start:
    """The weights of an earlier model, to begin with."""

    version: str
    """Its address."""
    file: Path
    """As Keras saves a model."""
    class_names: tuple[str, ...]

    def give(self, model: "keras.Model", class_names: Sequence[str]) -> None:
        """Gives a model of the same architecture these weights.

        In the last layer a class gets the weights of the class of its name, or the mean of those that its name
        stands for; one that is new keeps its fresh ones.
        """
        import keras

        earlier = keras.saving.load_model(self.file, compile=False, safe_mode=True)
        fresh = model.get_layer("logits").get_weights()
        for layer, other in zip(model.layers, earlier.layers, strict=True):
            if layer.name != "logits":
                layer.set_weights(other.get_weights())
        known = earlier.get_layer("logits").get_weights()
        for label, name in enumerate(class_names):
            if same := list(named(name, self.class_names)):
                for mine, theirs in zip(fresh, known, strict=True):  # kernel (features, classes), bias (classes)
                    mine[..., label] = theirs[..., same].mean(axis=-1)
        model.get_layer("logits").set_weights(fresh)


def model(name: str, recipe: Recipe, space: Space) -> Callable[[Callable[..., Layers]], Callable[..., Layers]]:
    """Registers a function that gives the hidden layers of a model.

    `space` holds what a search may vary beside `RECIPE_SPACE`: arguments of the function, and the names that
    `SHAPED` has for its lists of widths.
    """

    def register(builder: Callable[..., Layers]) -> Callable[..., Layers]:
        MODELS.add(name, Model(name, builder, recipe, {**space, **RECIPE_SPACE}))
        return builder

    return register


def _parse(name: str, text: str, annotation: Any) -> Any:
    """The value that a text spells, checked against the annotation of the builder's argument."""
    kind, allowed = get_args(annotation)
    many = get_origin(kind) is tuple
    number = get_args(kind)[0] if many else kind
    if isinstance(allowed, tuple):
        if text not in allowed:
            raise unknown(name, text, allowed)
        return text
    expected = f"{'whole ' if number is int else ''}number{'s joined by commas,' if many else ''}"
    try:
        values = [number(piece) for piece in text.split(",")]
    except ValueError:
        values = []
    if (
        len(values) < 1
        or (len(values) > 1 and not many)
        or not all(allowed.low <= v <= allowed.high for v in values)
    ):
        raise FmnistError(
            f"hyper: {name}: expected {expected} from {allowed.low} to {allowed.high}; received {text!r}"
        )
    return tuple(values) if many else values[0]


def resolve(recipe: Recipe, **given: Any) -> Recipe:
    """The recipe with what the user gave in place of its own values; None means not given."""
    return dataclasses.replace(recipe, **{name: value for name, value in given.items() if value is not None})


@model(
    "mlp",
    Recipe("sgd", learning_rate=0.01, batch_size=32, epochs=30),
    {**DENSE_SPACE, "activation": ACTIVATIONS},
)
def mlp(*, dense: Widths = (300, 100), activation: Activation = "relu") -> Layers:
    """A multilayer perceptron, 784-300-100-10.

    Source: Géron, Hands-On Machine Learning, chapter 10 (layers and recipe).
    """
    from keras import layers

    return [layers.Flatten(), *(layers.Dense(width, activation) for width in dense)]


@model(
    "mlp_dropout",
    Recipe("adam", learning_rate=5e-4, batch_size=128, epochs=30),
    {**DENSE_SPACE, "dropout": Span(0.0, 0.6), "activation": ACTIVATIONS},
)
def mlp_dropout(*, dense: Widths = (512, 256), dropout: Fraction = 0.3, activation: Activation = "relu") -> Layers:
    """A multilayer perceptron with dropout after each dense layer.

    Source: Srivastava et al. 2014, https://jmlr.org/papers/v15/srivastava14a.html
    """
    from keras import layers

    hidden: Layers = [layers.Flatten()]
    for width in dense:
        hidden += [layers.Dense(width, activation), layers.Dropout(dropout)]
    return hidden


@model(
    "lenet",
    Recipe("adam", learning_rate=1e-3, batch_size=128, epochs=15),
    {
        "filters": Span(4, 32, log=True),
        "blocks": Span(1, 3),
        "growth": Choice((1.0, 2.0, 3.0)),
        "kernel": Choice((3, 5)),
        "width": Span(32, 256, log=True),
        "layers": Span(1, 2),
        "taper": Choice((0.5, 0.7, 1.0)),
        "activation": ACTIVATIONS,
    },
)
def lenet(
    *,
    filters: Widths = (6, 16),
    kernel: Annotated[int, Range(1, 7)] = 5,
    dense: Widths = (120, 84),
    activation: Activation = "tanh",
) -> Layers:
    """LeNet-5: two convolutions with average pooling, two dense layers.

    As in the paper but for trained subsampling and partial connections, which nobody uses any more; 28x28
    images are padded instead of drawn as 32x32.

    Source: LeCun et al. 1998, http://yann.lecun.com/exdb/publis/pdf/lecun-01a.pdf
    """
    from keras import layers

    hidden: Layers = []
    for index, width in enumerate(filters):  # 28 -> 14 -> 5 with the default kernel
        padding = "same" if index == 0 or len(filters) > 2 else "valid"
        hidden += [layers.Conv2D(width, kernel, padding=padding, activation=activation)]
        hidden += [layers.AveragePooling2D(2, padding="same")]
    return [*hidden, layers.Flatten(), *(layers.Dense(width, activation) for width in dense)]


@model(
    "alexnet",
    Recipe("adam", learning_rate=5e-4, batch_size=128, epochs=15),
    {"filters": Span(16, 96, log=True), **DENSE_SPACE, "layers": Span(1, 2), "dropout": Span(0.0, 0.6)},
)
def alexnet(
    *,
    filters: Annotated[tuple[int, ...], Range(1, 2048)] = (64, 128, 192, 192, 128),
    dense: Widths = (512, 512),
    dropout: Fraction = 0.5,
) -> Layers:
    """AlexNet's layout at 28x28: five convolutions, pooled after the first, second and last, and a dense
    head with dropout.

    Kernels of 3 instead of 11 and 5, overlapping 3x3 pooling kept, a fifth of the widths.

    Source: Krizhevsky, Sutskever, Hinton 2012, https://doi.org/10.1145/3065386
    """
    from keras import layers

    hidden: Layers = []
    for index, width in enumerate(filters):
        hidden.append(layers.Conv2D(width, 3, padding="same", activation="relu"))
        if index in (0, 1, len(filters) - 1):  # 28 -> 14 -> 7 -> 4
            hidden.append(layers.MaxPooling2D(3, strides=2, padding="same"))
    hidden.append(layers.Flatten())
    for width in dense:
        hidden += [layers.Dense(width, "relu"), layers.Dropout(dropout)]
    return hidden


def cnn(
    *,
    filters: Annotated[tuple[int, ...], Range(1, 2048)],
    kernel: Annotated[int, Range(1, 7)] = 3,
    dense: Widths = (128,),
    dropout: Fraction = 0.4,
    activation: Activation = "relu",
) -> Layers:
    """Blocks of one convolution and one 2x2 max pooling, then dense layers with dropout."""
    from keras import layers

    hidden: Layers = []
    for width in filters:  # 28 -> 14 -> 7 -> 4
        hidden.append(layers.Conv2D(width, kernel, padding="same", activation=activation))
        hidden.append(layers.MaxPooling2D(2, padding="same"))
    hidden.append(layers.Flatten())
    for width in dense:
        hidden += [layers.Dense(width, activation), layers.Dropout(dropout)]
    return hidden


for _first in (64, 128, 256):
    model(
        f"cnn{_first}",
        Recipe("adam", learning_rate=1e-3, batch_size=128, epochs=10),
        {
            "filters": Span(_first // 4, 2 * _first, log=True),
            "blocks": Span(2, 3),
            "growth": Choice((1.0, 1.5, 2.0)),
            "kernel": Choice((3, 5)),
            "width": Span(64, 512, log=True),
            "layers": Span(1, 2),
            "taper": Choice((0.5, 1.0)),
            "dropout": Span(0.0, 0.6),
            "activation": ACTIVATIONS,
        },
    )(partial(cnn, filters=(_first, 2 * _first)))
