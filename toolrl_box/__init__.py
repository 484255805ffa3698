"""toolrl-box: collapse diagnostics and supervision mixing for multi-turn tool-use RL."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from toolrl_box.callback import CollapseGuard

__all__ = ["CollapseGuard", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """The guard needs torch and transformers: seconds of imports, made when it is asked for."""
    if name == "CollapseGuard":
        from toolrl_box.callback import CollapseGuard

        return CollapseGuard
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
