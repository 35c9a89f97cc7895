"""How a command ends when it does not work: one line on standard error, and an exit code.

0 done, 1 it did not work, 2 wrong usage or wrong configuration, 130 and 143 ended by Ctrl-C and SIGTERM.
"""

from __future__ import annotations

from typing import Final, NoReturn

import typer

from sidecar.errors import HostFailed

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_INTERRUPTED: Final = 130  # as a shell reports a program that Ctrl-C ended


def fail(message: str, code: int = EXIT_FAILED) -> NoReturn:
    """Tell one error on standard error and end."""
    typer.echo(f"transfer-sidecar: {message}", err=True)
    raise typer.Exit(code)


def fail_settings(wrong: HostFailed) -> NoReturn:
    """Tell what is wrong with the configuration, a line per problem, and end."""
    lines = wrong.message.splitlines()
    if len(lines) == 1:
        fail(f"the configuration is wrong: {lines[0]}", EXIT_USAGE)
    fail("\n  ".join([f"the configuration is wrong, {len(lines)} problems:", *lines]), EXIT_USAGE)
