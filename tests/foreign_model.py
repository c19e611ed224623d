"""A model that this project didn't make: the nearest of ten mean images. MLflow loads this file as it is."""

import mlflow
import numpy as np


class NearestMean(mlflow.pyfunc.PythonModel):
    def load_context(self, context):
        self.means = np.load(context.artifacts["means"])

    def predict(self, context, model_input, params=None):
        distances = ((model_input[:, None] - self.means) ** 2).mean(axis=(2, 3)) / 400
        scores = np.exp(distances.min(axis=1, keepdims=True) - distances)
        return (scores / scores.sum(axis=1, keepdims=True)).astype(np.float32)


mlflow.models.set_model(NearestMean())
