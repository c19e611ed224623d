"""The home of MLflow: runs that always end, what is logged to them, and the models that come of them.

The launcher of `mlflow run` logs every declared parameter, as text, before a script starts; what is logged
here under the same name would be refused. So settings are logged only where they aren't yet, and what
they were resolved to goes under `recipe.` and `hyper.`.
"""
