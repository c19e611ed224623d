"""A model that this project didn't make: the nearest of ten mean images. MLflow loads this file as it is."""

import mlflow
import numpy as np


class NearestMean(mlflow.pyfunc.PythonModel):
    def load_context(self, context):
        self.means = np.load(context.artifacts["means"])

    def predict(self, context, model_input, params=None):
        means = self.means.reshape(10, -1)
        # What all ten squared distances have in common, the image's own square, makes no difference.
        nearness = (2 * model_input.reshape(-1, 784) @ means.T - (means**2).sum(axis=1)) / 784 / 400
        scores = np.exp(nearness - nearness.max(axis=1, keepdims=True))
        return (scores / scores.sum(axis=1, keepdims=True)).astype(np.float32)


mlflow.models.set_model(NearestMean())
