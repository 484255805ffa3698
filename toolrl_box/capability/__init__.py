"""The capability-intact test: what a collapsed checkpoint could still do if its structure held.

Nothing is imported here, so that the command line stays quick.
"""
