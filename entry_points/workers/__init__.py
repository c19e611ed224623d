"""The processes that entry points start: a cell of a benchmark, a worker of a search."""
