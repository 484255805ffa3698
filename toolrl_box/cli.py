"""The ``toolrl`` command: arguments to :mod:`toolrl_box.commands`, errors to exit codes.

Input: arguments. Output: text on stdout, ``error: …`` on stderr, and the exit code: 0 done, 2 a
mistake that the user can mend, 130 or 143 stopped by SIGINT or SIGTERM with everything saved.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer

from toolrl_box.commands import BASE_COMMANDS, COMMANDS
from toolrl_box.commands.terminal import USER_ERROR
from toolrl_box.errors import ToolRLError

app = typer.Typer(
    name="toolrl",
    help="Collapse diagnostics and supervision mixing for multi-turn tool-use RL.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
base = typer.Typer(no_args_is_help=True, help="Base models of the laboratory.")
app.add_typer(base, name="base")
for group, commands in ((app, COMMANDS), (base, BASE_COMMANDS)):
    for name, command in commands.items():
        group.command(name)(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; raises SystemExit."""
    try:
        app(args=None if arguments is None else list(arguments))
    except (ToolRLError, OSError) as error:  # OSError: a full disk or a missing permission
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        sys.exit(USER_ERROR)


if __name__ == "__main__":
    main()
