"""Policies: whatever can write messages and score tokens, one file each.

Nothing is imported here, so that reading a log does not load torch.
"""
