"""Explains a run from its logs alone, whoever wrote them.

files -> readers -> records -> (dialects, probe.states) -> aggregate -> verdict -> outputs

Nothing here needs a model, a GPU or the trainer of this package.
"""
