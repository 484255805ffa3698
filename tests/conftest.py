"""Settings of every test process: one compute thread each, no network, repeatable examples."""

from __future__ import annotations

import os

# Before anything imports torch: pytest-xdist already uses all cores, and thread counts change
# the order of floating-point sums.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"

from hypothesis import settings

# Derandomised: a red build must be red on every machine. No deadline: CI machines are slow.
settings.register_profile("house", derandomize=True, deadline=None)
settings.load_profile("house")
