"""The optimizer whose steps for convolutions are orthogonal matrices."""

from typing import Any

import keras
from keras import ops

# A polynomial that, done over and over, brings each singular value from 0 to 1 near to 1, the fastest.
POLYNOMIAL = (3.4445, -4.7750, 2.0315)
NUM_ROUNDS = 3


class Muon(keras.optimizers.SGD):  # type: ignore[misc]  # Keras ships no types
    """Momentum descent, but for kernels of convolutions.

    Each of those has a norm that is held at the root of the number of its filters, and takes steps along the
    orthogonalized momentum, all of whose directions are then as long.

    Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/ (the polynomial, too); the held norm:
    airbench, https://github.com/KellerJordan/cifar10-airbench

    Args:
        learning_rate: A step, or a schedule of steps.
        kernel_rate: The step of these kernels, as a multiple of it.
        dtype: In which orthogonalization computes, `float32` or `bfloat16`.
        more: As `SGD` takes it.
    """

    def __init__(self, learning_rate: Any, *, kernel_rate: float, dtype: str, **more: Any) -> None:
        super().__init__(learning_rate, nesterov=True, **more)
        self.kernel_rate, self.dtype = kernel_rate, dtype

    def update_step(self, gradient: Any, variable: keras.Variable, learning_rate: Any) -> None:
        if len(variable.shape) != 4:
            super().update_step(gradient, variable, learning_rate)
            return
        momentum = self.momentums[self._get_variable_index(variable)]
        velocity = self.momentum * momentum + gradient
        self.assign(momentum, velocity)
        num_filters = variable.shape[-1]
        matrix = ops.reshape(gradient + self.momentum * velocity, (-1, num_filters))
        step = ops.reshape(orthogonal(ops.cast(matrix, self.dtype)), variable.shape)
        kernel = ops.convert_to_tensor(variable)
        held = kernel * (num_filters**0.5 / ops.norm(ops.reshape(kernel, (-1,))))
        rate = self.kernel_rate * ops.cast(learning_rate, variable.dtype)
        self.assign(variable, held - rate * ops.cast(step, variable.dtype))


def orthogonal(matrix: Any) -> Any:
    """Near the matrix with the same singular vectors whose singular values are 1; in the matrix's dtype."""
    rows, columns = matrix.shape
    wide = ops.transpose(matrix) if rows > columns else matrix
    length = ops.norm(ops.cast(ops.reshape(wide, (-1,)), "float32"))
    wide = wide / ops.cast(length + 1e-7, wide.dtype)
    first, third, fifth = POLYNOMIAL
    for _ in range(NUM_ROUNDS):
        square = ops.matmul(wide, ops.transpose(wide))
        wide = first * wide + ops.matmul(third * square + fifth * ops.matmul(square, square), wide)
    return ops.transpose(wide) if rows > columns else wide
