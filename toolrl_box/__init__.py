"""toolrl-box: collapse diagnostics and supervision mixing for multi-turn tool-use RL."""

__version__ = "0.1.0"
