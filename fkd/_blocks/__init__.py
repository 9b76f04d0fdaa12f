"""Blocks of a model that compute the same, compiled once: compile time does not grow with depth.

A block (a layer of a transformer) is a function of its inputs and its parameters. While the step
is traced, each is traced alone, forward only, on tensors without values; those whose graphs are
the same operation by operation share one region: a forward and a backward graph, which Inductor
compiles once. The graph of the step calls them as operations that it does not look into. So
nothing is assumed about classes or names, and a block that is another function (a tap inside, a
number of its own in its arithmetic) is another region.
"""
