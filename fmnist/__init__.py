"""Fashion-MNIST experiments that MLflow tracks, and whose numbers can be believed."""

__version__ = "0.1.0"
