"""A search for hyperparameters: its studies, their workers and trials, and what the best of them are worth."""
