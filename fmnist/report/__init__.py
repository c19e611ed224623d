"""One page of what a store holds: records go in, HTML comes out; knows neither MLflow nor a network.

`page.page` puts the sections in order. To add one, write a function that gives an element, and name it there.
"""
