"""The benchmark: a grid of cells, each measured in a process of its own, and what the figures are worth."""
