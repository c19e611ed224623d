"""Figures: each function of a module here gives a matplotlib figure.

Figures are made without pyplot: no window system is asked for, nothing is kept alive.
"""

import matplotlib

RIGHT, WRONG, NEUTRAL = "#1b7837", "#c51b3a", "#4c72b0"
TRAIN, VALIDATION = "#4c72b0", "#dd8452"
matplotlib.rcParams.update(
    {"axes.spines.top": False, "axes.spines.right": False, "axes.grid.axis": "y", "grid.color": "#e5e5e5"}
)
