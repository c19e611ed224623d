"""What every engine gives back, and the one figure that they share."""

from typing import NamedTuple

PREDICT_BATCH = 1000


class Pass(NamedTuple):
    """One pass over the training split."""

    loss: float
    accuracy: float
    """Means over the batches as they were met: with dropout, augmentation and moving weights."""
    seconds: float
    """Read after the device was done."""
