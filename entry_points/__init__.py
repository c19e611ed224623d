"""The doors of the project: one module for each entry point of MLproject."""
