"""PyTorch, to put beside the other engines: the same model, optimizer and data, in a loop of its own kind.

The network is made of the Keras model's layers and begins with its weights. A layer that isn't in `TRANSLATED` is
refused; to add one, write a function that gives its modules. Convolutions lie in memory channels last, as
Keras's do, which on a CPU is faster; images lie on the device as bytes, in batches by a permutation.
"""

from collections.abc import Callable
from time import perf_counter
from typing import Any

import keras
import numpy as np
import torch
from keras import layers
from numpy.typing import NDArray
from torch import nn

from fmnist.engine.randomness import draw_states
from fmnist.engine.result import PREDICT_BATCH, Pass
from fmnist.errors import FmnistError
from fmnist.recipe import Recipe

ACTIVATIONS: dict[str, Any] = {
    "linear": nn.Identity,
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}


class TorchEngine:
    """Implements `fmnist.engine.Engine`, but for augmentation and parts of a batch, with PyTorch's defaults.

    `compiled` hands the forward pass with its loss, and so the backward pass, to `torch.compile`.
    """

    xla = False

    def __init__(
        self,
        model: keras.Model,
        *,
        compiled: bool,
        optimizer: keras.optimizers.Optimizer,
        recipe: Recipe,
        augment: tuple[str, ...],
        batch_parts: int,
        images: NDArray[np.uint8],
        labels: NDArray[np.uint8],
    ) -> None:
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._network = Network(model).to(self._device, memory_format=torch.channels_last)
        self._optimizer = optimizer_of(optimizer, self._network)
        self._batch_size = recipe.batch_size
        self._images = torch.tensor(images, device=self._device)
        self._labels = torch.tensor(labels, device=self._device, dtype=torch.int64)
        self._losses: Callable[[Any], Any] = self._batch_losses
        self._forward: Callable[[Any], Any] = self._probabilities
        if compiled:
            torch.compiler.config.force_disable_caches = True  # else a second start would be no cold one
            self._losses, self._forward = _compiled(self._losses), _compiled(self._forward)

    def train_epoch(self, seed: int, epoch: int) -> Pass:
        start = perf_counter()
        torch.manual_seed(int(draw_states(seed, epoch, 1)[0, 0]))
        self._network.train()
        loss, correct = torch.zeros((), device=self._device), torch.zeros((), device=self._device)
        for batch in torch.randperm(len(self._images), device=self._device).split(self._batch_size):
            self._optimizer.zero_grad()
            batch_loss, batch_correct = self._losses(batch)
            batch_loss.backward()
            self._optimizer.step()
            loss += batch_loss.detach() * len(batch)
            correct += batch_correct
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        seconds = perf_counter() - start
        return Pass(float(loss) / len(self._images), float(correct) / len(self._images), seconds)

    def predict(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        self._network.eval()
        parts = [images[start : start + PREDICT_BATCH] for start in range(0, len(images), PREDICT_BATCH)]
        with torch.inference_mode():
            return np.concatenate([self._forward(torch.tensor(part).to(self._device)).cpu() for part in parts])

    def _batch_losses(self, batch: Any) -> tuple[Any, Any]:
        """The mean loss of a batch, by its indices, and the number of right answers."""
        labels = self._labels[batch]
        logits = self._network(self._images[batch])
        return nn.functional.cross_entropy(logits, labels), (logits.argmax(1) == labels).sum()

    def _probabilities(self, images: Any) -> Any:
        return self._network(images).softmax(1)


def _compiled(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The function, compiled when it is first called.

    Raises:
        FmnistError: Then, if it can't be.
    """
    compiled = torch.compile(function, dynamic=False)

    def call(batch: Any) -> Any:
        try:
            return compiled(batch)
        except torch._dynamo.exc.BackendCompilerFailed as error:
            raise FmnistError(
                f"trainers=torch_compile: {str(error).splitlines()[0]}. On a CPU it needs a C++ compiler and "
                "Python's headers; type for example: sudo apt-get install g++ python3-dev"
            ) from None

    return call


class Network(nn.Module):  # type: ignore[misc]  # PyTorch's types are not read
    """The logits of a Keras model of `fmnist.models`, from bytes `(batch, 28, 28)`."""

    def __init__(self, model: keras.Model) -> None:
        super().__init__()
        _, scale, _, *hidden, logits, _ = model.layers
        self.scale = scale.scale
        self.bfloat16 = any(layer.compute_dtype == "bfloat16" for layer in hidden)
        self.hidden = nn.Sequential(*(module for layer in hidden for module in _translated(layer)))
        self.logits = nn.Sequential(*_translated(logits))

    def forward(self, images: Any) -> Any:
        pixels = images[..., None].permute(0, 3, 1, 2).float() * self.scale
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=self.bfloat16):
            features = self.hidden(pixels)
        return self.logits(features.float())


def optimizer_of(optimizer: keras.optimizers.Optimizer, network: nn.Module) -> torch.optim.Optimizer:
    """PyTorch's optimizer of the same kind, with Keras's constants.

    Adam's epsilon is added before the correction of the second moment in Keras, and after it in PyTorch.

    Raises:
        FmnistError: If PyTorch has none that does the same.
    """
    kind, config = type(optimizer).__name__, optimizer.get_config()
    others = ("clipnorm", "global_clipnorm", "clipvalue", "use_ema", "gradient_accumulation_steps", "amsgrad")
    same: dict[str, Any] = {"lr": config["learning_rate"], "weight_decay": config["weight_decay"] or 0.0}
    if kind == "SGD":
        same |= {name: config[name] for name in ("momentum", "nesterov")}
    elif kind in ("Adam", "AdamW"):
        same |= {"betas": (config["beta_1"], config["beta_2"]), "eps": config["epsilon"]}
    else:
        raise FmnistError(f"trainers=torch: PyTorch's {kind} is another than Keras's; leave torch out of trainers")
    if any(config.get(name) for name in others) or not isinstance(same["lr"], float):
        raise FmnistError(f"trainers=torch: no translation of {kind} with {config}; leave torch out of trainers")
    return getattr(torch.optim, kind)(network.parameters(), fused=True, **same)


def _translated(layer: keras.Layer) -> list[nn.Module]:
    """The modules that do what a layer does, with its weights.

    Raises:
        FmnistError: If there are none.
    """
    translate = TRANSLATED.get(type(layer))
    modules = translate(layer) if translate else None
    activation = getattr(layer, "activation", keras.activations.linear).__name__
    if modules is None or activation not in ACTIVATIONS:
        raise FmnistError(
            f"trainers=torch: layer {layer.name} ({type(layer).__name__}, {activation}) has no translation to "
            "PyTorch; leave its model out of models, or torch out of trainers"
        )
    return [*modules, *([] if activation == "linear" else [ACTIVATIONS[activation]()])]


def _dense(layer: keras.Layer) -> list[nn.Module] | None:
    kernel, *bias = layer.get_weights()
    if len(layer.input.shape) != 2:
        return None
    return [_filled(nn.Linear(*kernel.shape, bias=bool(bias)), kernel.T, *bias)]


def _convolution(layer: keras.Layer) -> list[nn.Module]:
    kernel, *bias = layer.get_weights()
    (top, bottom), (left, right) = _padding(layer, layer.kernel_size, layer.dilation_rate)
    even = (top, left) == (bottom, right)
    made = nn.Conv2d(
        layer.input.shape[-1],
        layer.filters,
        layer.kernel_size,
        layer.strides,
        (top, left) if even else 0,
        layer.dilation_rate,
        layer.groups,
        bias=bool(bias),
    )
    return [
        *([] if even else [nn.ZeroPad2d((left, right, top, bottom))]),
        _filled(made, kernel.T.swapaxes(2, 3), *bias),
    ]


def _pooling(layer: keras.Layer) -> list[nn.Module] | None:
    """Pooling, which looks at real pixels alone: PyTorch pads evenly, or, by `ceil_mode`, at the end."""
    padding = _padding(layer, layer.pool_size, (1, 1))
    even = all(before == after for before, after in padding)
    if not even and any(
        before or after >= stride for (before, after), stride in zip(padding, layer.strides, strict=True)
    ):
        return None
    options: dict[str, Any] = {"padding": tuple(before for before, _ in padding), "ceil_mode": not even}
    if isinstance(layer, layers.MaxPooling2D):
        return [nn.MaxPool2d(layer.pool_size, layer.strides, **options)]
    return [nn.AvgPool2d(layer.pool_size, layer.strides, count_include_pad=False, **options)]


def _padding(layer: keras.Layer, window: tuple[int, int], dilation: tuple[int, int]) -> list[tuple[int, int]]:
    """Pixels that Keras puts before and after each side, height and width, as TensorFlow does."""
    padding = []
    for size, out, length, stride, step in zip(
        layer.input.shape[1:3], layer.output.shape[1:3], window, layer.strides, dilation, strict=True
    ):
        total = max((out - 1) * stride + step * (length - 1) + 1 - size, 0)
        padding.append((total // 2, total - total // 2))
    return padding


def _flatten(layer: keras.Layer) -> list[nn.Module]:
    return [ChannelsLastFlatten() if len(layer.input.shape) == 4 else nn.Flatten()]


class ChannelsLastFlatten(nn.Module):  # type: ignore[misc]  # PyTorch's types are not read
    """Flattens `(batch, channels, height, width)` in Keras's order, which is that of the memory."""

    def forward(self, images: Any) -> Any:
        return images.permute(0, 2, 3, 1).flatten(1)


def _normalization(layer: keras.Layer) -> list[nn.Module] | None:
    rank = len(layer.input.shape)
    if rank not in (2, 4) or not (layer.center and layer.scale) or layer.axis not in (-1, rank - 1):
        return None
    gamma, beta, mean, variance = layer.get_weights()
    kind = nn.BatchNorm1d if rank == 2 else nn.BatchNorm2d
    made = _filled(kind(len(gamma), layer.epsilon, 1 - layer.momentum), gamma, beta)
    made.running_mean.copy_(torch.tensor(mean))
    made.running_var.copy_(torch.tensor(variance))
    return [made]


def _filled(module: nn.Module, *weights: NDArray[np.float32]) -> nn.Module:
    """The module with these as its parameters."""
    for parameter, values in zip(module.parameters(), weights, strict=True):
        parameter.data = torch.tensor(values)
    return module


TRANSLATED: dict[type, Callable[[keras.Layer], list[nn.Module] | None]] = {
    layers.Dense: _dense,
    layers.Conv2D: _convolution,
    layers.MaxPooling2D: _pooling,
    layers.AveragePooling2D: _pooling,
    layers.Flatten: _flatten,
    layers.BatchNormalization: _normalization,
    layers.Dropout: lambda layer: [nn.Dropout(layer.rate)],
    layers.Activation: lambda layer: [],
}
