"""The `shoal` command: its group of commands, and what happens to an error that reaches the top.

Role: entry point. A command's module is imported when the command is used, so that `shoal --help` is quick.
Owner: the main thread.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import NoReturn

import click

#: Name, where it is, and its line in the help: known without importing it.
COMMANDS = {
    "map": ("shoal.cli.map_command:map_command", "Run a function over many inputs, on every core."),
}


class Commands(click.Group):
    """A group whose commands are imported on use."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(module), name)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            ctx.fail(f"no such command: {args[0]}{_hint(args[0])}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's signature
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


def _hint(word: str) -> str:
    import difflib

    if ":" in word:
        return f"\nhint: did you mean  shoal map {word} … ?"
    near = difflib.get_close_matches(word, COMMANDS, n=1)
    return f"\nhint: did you mean  shoal {near[0]} ?" if near else ""


def _print_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:  # noqa: ARG001 - click's signature
    if value and not ctx.resilient_parsing:
        from importlib.metadata import version

        click.echo(f"shoal {version('shoal')}")
        ctx.exit()


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, callback=_print_version, expose_value=False, is_eager=True, help="Show the version."
)
def commands() -> None:
    """Multi-process computing on one machine: nothing hangs, only the culprit fails, and you are told why."""


def main() -> NoReturn:
    """Run the command line and end the program with its exit code."""
    try:
        code = commands.main(prog_name="shoal", standalone_mode=False)
    except click.UsageError as error:
        code = _usage(error)
    except click.ClickException as error:
        click.echo(f"error: {error.format_message()}", err=True)
        code = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        code = 130
    except BrokenPipeError:
        # Whoever read our output has gone; the interpreter would complain when it flushes what is left.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = 141
    sys.exit(code if isinstance(code, int) else 0)


def _usage(error: click.UsageError) -> int:
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        click.echo(error.format_message(), err=True)
        return error.exit_code
    click.echo(f"error: {error.format_message()}", err=True)
    if error.ctx is not None and "hint:" not in error.format_message():
        click.echo(f"hint: {error.ctx.command_path} --help", err=True)
    return error.exit_code
