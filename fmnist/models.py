"""The models: each one decorated function that gives its hidden layers, with recipe and search space beside it.

The function's keyword arguments are the model's hyperparameters (`-P hyper=`); their annotations say what
they may be. Every model is framed alike: raw pixels 0-255 go in as `(batch, 28, 28)`, are scaled inside,
and a probability for each class comes out. To add a model, write one function here; every command and test sees
it. Keras is imported only when a model is built.
"""

import inspect
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

from fmnist import arguments
from fmnist.arguments import Fraction, Range
from fmnist.classes import named
from fmnist.errors import FmnistError
from fmnist.recipe import GRADIENT_DESCENT, RECIPE_SPACE, Recipe
from fmnist.registry import MODELS
from fmnist.space import Choice, Point, Space, Span

if TYPE_CHECKING:
    import keras

NUM_CLASSES = 10
SIDE = 28
ONE_VIEW = "one_view"  # the model within one that looks at several

Widths = Annotated[tuple[int, ...], Range(1, 16384)]
Activation = Annotated[str, ("relu", "tanh", "sigmoid", "elu", "gelu", "silu")]
Layers = list["keras.Layer | Residual"]

# Three dimensions make a list of widths: the first one, how many there are, and each one's ratio to the one
# before. Without a number the list keeps the shape of the default.
SHAPED = {"dense": ("width", "layers", "taper"), "filters": ("filters", "blocks", "growth")}
DENSE_SPACE: Space = {"width": Span(64, 1024, log=True), "layers": Span(1, 3), "taper": Choice((0.25, 0.5, 1.0))}
ACTIVATIONS = Choice(("relu", "tanh", "elu", "gelu"))


@dataclass(frozen=True)
class Residual:
    """Layers whose result is added to what they were given, among the layers of a model.

    Source: He et al. 2016, https://arxiv.org/abs/1603.05027
    """

    branch: Layers
    before: Layers = field(default_factory=list)
    """What both ways begin with."""
    shortcut: Layers = field(default_factory=list)
    """What the other way goes through, where the branch changes the shape."""

    @property
    def layers(self) -> Layers:
        return [*self.before, *self.branch, *self.shortcut]

    def __call__(self, inputs: Any) -> Any:
        import keras

        begun = _through(self.before, inputs)
        skipped = _through(self.shortcut, begun) if self.shortcut else inputs
        return keras.layers.Add()([_through(self.branch, begun), skipped])


def _through(layers: Layers, inputs: Any) -> Any:
    for layer in layers:
        inputs = layer(inputs)
    return inputs


@dataclass(frozen=True)
class Model:
    """A registered model: its builder of hidden layers, its recipe, and what a search may vary."""

    name: str
    builder: Callable[..., Layers]
    recipe: Recipe
    space: Space
    any_side: bool = False
    """Whether its weights are the same for images of another side."""

    def hyperparameters(self, text: str) -> dict[str, Any]:
        """All hyperparameters: the builder's defaults, overridden by a text such as `dense=120,84;dropout=0.3`.

        Raises:
            FmnistError: If a name isn't an argument of the builder, or a value isn't what it may be.
        """
        own = self._arguments()
        annotations = {name: argument.annotation for name, argument in own.items()}
        given = arguments.parse(text, annotations, where="hyper", whose=f"hyperparameter of {self.name}")
        return {name: argument.default for name, argument in own.items()} | given

    def _arguments(self) -> Mapping[str, inspect.Parameter]:
        """The builder's arguments.

        Raises:
            FmnistError: If one doesn't say what it may be.
        """
        own = inspect.signature(self.builder).parameters
        for name, argument in own.items():
            if len(get_args(argument.annotation)) != 2 or argument.default is argument.empty:
                raise FmnistError(
                    f"model {self.name}: expected of its argument {name} a default and an annotation that "
                    f"bounds it, found {argument}; write for example {name}: Annotated[int, Range(1, 64)] = 8"
                )
        return own

    def scaled(self, width: float) -> dict[str, Any]:
        """The default hyperparameters with `width` and every list of widths multiplied by a factor."""
        values = {name: argument.default for name, argument in self._arguments().items()}
        for name, argument in self._arguments().items():
            if name in SHAPED or argument.annotation == Widths:
                values[name] = tuple(max(round(width * each), 1) for each in argument.default)
            elif name == "width":
                values[name] = max(round(width * argument.default), 1)
        return values

    def at(self, point: Point) -> dict[str, Any]:
        """The hyperparameters at a point of the search space."""
        values = self.hyperparameters("")
        for name, (first, count, ratio) in SHAPED.items():
            if name not in values:
                continue
            if count in point:
                widths = [point[first] * point[ratio] ** index for index in range(point[count])]
                values[name] = tuple(max(round(width), 1) for width in widths)
            elif first in point:
                default = values[name]
                values[name] = tuple(max(round(point[first] * width / default[0]), 1) for width in default)
        return values | {name: point[name] for name in values if name in point and name not in SHAPED}

    def layers(self, hyperparameters: dict[str, Any]) -> "Iterator[keras.Layer]":
        """The hidden layers, and those within them, without weights."""
        import keras

        with keras.StatelessScope(initialize_variables=False):  # an array would fix the threads of the device
            layers = self.builder(**hyperparameters)
        while layers:
            layer = layers.pop()
            layers += getattr(layer, "layers", [])
            if not isinstance(layer, Residual):
                yield layer

    def looks_across_batch(self, hyperparameters: dict[str, Any]) -> bool:
        """Whether a layer uses, or may use, more of a batch than one image: then it isn't worked on in parts."""
        import keras

        return any(
            type(layer).__module__.partition(".")[0] != "keras"  # one's own may do what it likes
            or isinstance(layer, keras.layers.BatchNormalization)
            for layer in self.layers(hyperparameters)
        )

    def build(
        self, hyperparameters: dict[str, Any], *, precision: str, seed: int, num_classes: int = NUM_CLASSES
    ) -> "keras.Model":
        """A Keras model with fresh weights, drawn from the seed.

        Takes raw pixels `(batch, 28, 28)`, float32, 0-255; gives probabilities `(batch, classes)`, float32.

        Raises:
            FmnistError: If a layer finds less than a pixel, for example.
        """
        import keras

        # Keras draws the seeds of its initializers from Python's generator. keras.utils.set_random_seed
        # does no more for them, but imports TensorFlow under any backend.
        random.seed(seed)
        with _computing_in(precision):
            pixels = keras.Input((SIDE, SIDE), name="pixels")
            outputs = keras.layers.Rescaling(1 / 255, name="scale")(pixels)
            outputs = keras.layers.Reshape((SIDE, SIDE, 1), name="channel")(outputs)
            try:
                outputs = _through(self.builder(**hyperparameters), outputs)
            except ValueError as error:  # Keras's
                values = arguments.text(hyperparameters)
                raise FmnistError(
                    f"hyper: {self.name}'s layers don't fit together with {values}; type for example fewer filters"
                ) from error
            # The last sums and the softmax stay in float32: bfloat16 has too few digits for probabilities.
            logits = keras.layers.Dense(num_classes, dtype="float32", name="logits")(outputs)
            probabilities = keras.layers.Softmax(dtype="float32", name="probabilities")(logits)
            return keras.Model(pixels, probabilities, name=self.name)


@contextmanager
def _computing_in(precision: str) -> "Iterator[None]":
    """Has the layers that are made meanwhile compute in a precision; those made later don't."""
    import keras

    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16" if precision == "bfloat16" else "float32")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def looking(model: "keras.Model", views: str) -> "keras.Model":
    """A model of the same weights that looks at several views of each image, by a name of `fmnist.recipe.Views`.

    It gives the probabilities of the mean of their logits; images moved by a pixel count half in it.
    Nothing is taken by index: TensorFlow can't convert JAX's way to that to LiteRT.

    Source: Jordan 2024, https://arxiv.org/abs/2404.00498 (test-time augmentation)
    """
    import keras
    from keras import ops

    pixels = keras.Input((SIDE, SIDE), name="pixels")
    seen, shares = [pixels, ops.flip(pixels, axis=2)], [0.5, 0.5]
    if views == "flip_shift":
        for each in seen[:2]:
            moved = [ops.pad(each, ((0, 0), (1, 1), (1, 1)))] * 2
            for axis in (1, 2):
                moved = [ops.split(moved[0], [SIDE], axis)[0], ops.split(moved[1], [2], axis)[1]]
            seen += moved
        shares = [0.25] * 2 + [0.125] * 4
    one_view = keras.Model(model.inputs, model.get_layer("logits").output, name=ONE_VIEW)
    logits = one_view(ops.concatenate(seen, axis=0))
    by_view = ops.split(ops.reshape(logits, (len(seen), -1, logits.shape[-1])), len(seen), axis=0)
    mean = sum(share * ops.squeeze(each, axis=0) for share, each in zip(shares, by_view, strict=True))
    return keras.Model(pixels, model.get_layer("probabilities")(mean), name=model.name)


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
        *hidden, last = _with_weights(model)
        *others, others_last = _with_weights(earlier)
        for layer, other in zip(hidden, others, strict=True):
            layer.set_weights(other.get_weights())
        fresh, known = last.get_weights(), others_last.get_weights()
        for label, name in enumerate(class_names):
            if same := list(named(name, self.class_names)):
                for mine, theirs in zip(fresh, known, strict=True):  # kernel (features, classes), bias (classes)
                    mine[..., label] = theirs[..., same].mean(axis=-1)
        last.set_weights(fresh)


def _with_weights(model: "keras.Model") -> "list[keras.Layer]":
    """The layers of a model, or of the one in it that looks at one view, that have weights."""
    one_view = next((layer for layer in model.layers if layer.name == ONE_VIEW), model)
    return [layer for layer in one_view.layers if layer.weights]


def model(
    name: str, recipe: Recipe, space: Space, *, any_side: bool = False
) -> Callable[[Callable[..., Layers]], Callable[..., Layers]]:
    """Registers a function that gives the hidden layers of a model.

    `space` holds what a search may vary beside `RECIPE_SPACE`, or otherwise than there: arguments of the function,
    and the names that `SHAPED` has for its lists of widths. `any_side` is as in `Model`.
    """

    def register(builder: Callable[..., Layers]) -> Callable[..., Layers]:
        MODELS.add(name, Model(name, builder, recipe, {**space, **RECIPE_SPACE, **space}, any_side))
        return builder

    return register


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


def _norm() -> "keras.Layer":
    """A batch normalization whose scale stays 1, with a memory of a few batches.

    Source: Jordan 2024, https://arxiv.org/abs/2404.00498 (airbench)
    """
    from keras import layers

    return layers.BatchNormalization(scale=False, momentum=0.6, epsilon=1e-4)


def _convolution(width: int, kernel: int = 3, **more: Any) -> "keras.Layer":
    from keras import layers

    return layers.Conv2D(width, kernel, padding="same", use_bias=False, **more)


HEAD_SCALE = 1 / 9  # of the features before the last layer, as in airbench


@model(
    "airbench",
    Recipe(
        "momentum",
        learning_rate=0.75,
        batch_size=512,
        epochs=8,
        schedule="one_cycle",
        warmup=0.2,
        momentum=0.85,
        norm_rate=64.0,
        label_smoothing=0.2,
        averaging="lookahead",
        average_every=5,
        average_decay=0.77,
        flip="alternating",
        views="flip",
    ),
    {
        "optimizer": Choice(GRADIENT_DESCENT),
        "learning_rate": Span(0.1, 3.0, log=True),
        "batch_size": Choice((128, 256, 512, 1024)),
        "filters": Span(8, 64, log=True),
        "depth": Choice((2, 3)),
        "activation": ACTIVATIONS,
    },
    any_side=True,
)
def airbench(
    *,
    filters: Widths = (16, 32, 64),
    depth: Annotated[int, Range(2, 3)] = 2,
    activation: Activation = "gelu",
) -> Layers:
    """airbench94's layout at 28x28: frozen 2x2 whitening, then groups of two convolutions each. A `depth` of 3
    gives airbench96's groups of three, the last two in a residual branch.

    Scales of norms are frozen, convolutions begin as the identity.

    Source: Jordan 2024, https://arxiv.org/abs/2404.00498
    """
    from keras import layers

    hidden: Layers = [layers.Conv2D(8, 2, use_bias=False, trainable=False, name="whiten")]  # 28 -> 27
    hidden.append(layers.Activation(activation))
    for index, width in enumerate(filters):  # 27 -> 13 -> 6 -> 3
        hidden += [_convolution(width, name=f"dirac_{index}a"), layers.MaxPooling2D(2), _norm()]
        hidden.append(layers.Activation(activation))
        others: Layers = [_convolution(width, name=f"dirac_{index}b"), _norm()]
        if depth == 3:
            others += [layers.Activation(activation), _convolution(width, name=f"dirac_{index}c"), _norm()]
            others = [Residual(others)]
        hidden += [*others, layers.Activation(activation)]
    return [*hidden, layers.GlobalMaxPooling2D(), layers.Rescaling(HEAD_SCALE)]


@model(
    "resnet",
    Recipe(
        "momentum",
        learning_rate=0.5,
        batch_size=256,
        epochs=8,
        schedule="one_cycle",
        warmup=0.2,
        label_smoothing=0.1,
        weight_decay=1e-3,
        flip="alternating",
    ),
    {
        "optimizer": Choice(GRADIENT_DESCENT),
        "learning_rate": Span(0.05, 3.0, log=True),
        "filters": Span(16, 64, log=True),
        "stem": Choice(("patch", "white_patch", "whiten", "dense")),
        "activation": ACTIVATIONS,
    },
    any_side=True,
)
def resnet(
    *,
    stem: Annotated[str, ("patch", "white_patch", "whiten", "dense")] = "patch",
    filters: Widths = (32, 64, 128),
    blocks: Annotated[tuple[int, ...], Range(0, 8)] = (0, 0, 1),
    activation: Activation = "relu",
) -> Layers:
    """A small residual network of dense 3x3 convolutions: a stem, then for each further width a convolution that
    is pooled, and blocks of two convolutions.

    The stem is 4x4 patches of stride 2 (28 -> 14), learnt or a frozen whitening, frozen 2x2 whitening, or a 3x3
    convolution; `blocks` counts the
    residual blocks after each width, the stem's first.

    Source: Page 2018, https://github.com/davidcpage/cifar10-fast (the layout, for CIFAR-10); He et al. 2016,
    https://arxiv.org/abs/1512.03385
    """
    from keras import layers

    first, *others = filters
    hidden: Layers
    if stem == "whiten":
        hidden = [layers.Conv2D(8, 2, use_bias=False, trainable=False, name="whiten")]
        hidden += [layers.Activation(activation), _convolution(first)]
    elif stem == "white_patch":
        hidden = [layers.Conv2D(32, 4, strides=2, use_bias=False, trainable=False, name="whiten")]
        hidden += [layers.Activation(activation), _convolution(first)]
    elif stem == "patch":
        hidden = [_convolution(first, 4, strides=2)]
    else:
        hidden = [_convolution(first)]
    hidden += [_norm(), layers.Activation(activation)]
    counts = (*blocks, *(0,) * len(filters))
    for index, width in enumerate([first, *others]):
        if index:
            hidden += [_convolution(width), layers.MaxPooling2D(2), _norm(), layers.Activation(activation)]
        for _ in range(counts[index]):
            branch: Layers = []
            for _ in range(2):
                branch += [_convolution(width), _norm(), layers.Activation(activation)]
            hidden.append(Residual(branch))
    return [*hidden, layers.GlobalMaxPooling2D(), layers.Rescaling(HEAD_SCALE)]


@model(
    "wrn",
    Recipe(
        "momentum",
        learning_rate=0.1,
        batch_size=128,
        epochs=200,
        schedule="cosine",
        weight_decay=5e-3,  # 5e-4 in the paper, where momentum multiplies it by ten
        flip="random",
        crop=4,
    ),
    {
        "optimizer": Choice(GRADIENT_DESCENT),
        "learning_rate": Span(0.01, 0.5, log=True),
        "width": Span(1, 10),
        "dropout": Span(0.0, 0.5),
    },
    any_side=True,
)
def wrn(
    *,
    depth: Annotated[int, Range(10, 100)] = 16,
    width: Annotated[int, Range(1, 20)] = 4,
    dropout: Fraction = 0.0,
) -> Layers:
    """WRN-depth-width: three groups of pre-activated residual blocks of 16, 32 and 64 times the width's filters.

    Source: Zagoruyko, Komodakis 2016, https://arxiv.org/abs/1605.07146
    """
    from keras import layers

    def convolution(filters: int, kernel: int = 3, strides: int = 1) -> "keras.Layer":
        return _convolution(filters, kernel, strides=strides, kernel_initializer="he_normal")

    def activation() -> Layers:
        return [layers.BatchNormalization(momentum=0.9, epsilon=1e-5), layers.Activation("relu")]

    hidden: Layers = [convolution(16)]
    for group in range(3):  # 28 -> 28 -> 14 -> 7
        filters = 16 * width * 2**group
        for block in range(max((depth - 4) // 6, 1)):
            strides = 2 if group and not block else 1
            branch = [convolution(filters, strides=strides), *activation()]
            branch += [layers.Dropout(dropout)] if dropout else []
            branch.append(convolution(filters))
            shortcut: Layers = [] if block else [convolution(filters, 1, strides)]
            hidden.append(Residual(branch, activation(), shortcut))
    return [*hidden, *activation(), layers.GlobalAveragePooling2D()]
