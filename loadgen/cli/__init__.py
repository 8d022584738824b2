"""The `loadgen` command: one file per subcommand, no logic here."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any, NoReturn, TypeVar

import click
from click.core import ParameterSource

from loadgen import __version__
from loadgen.errors import ServerError, StorageError, UsageError, is_of_storage
from loadgen.options import Option, complete, declared
from loadgen.secret import Mask, show_only_visible, visible_message

_Options = TypeVar("_Options")
CONTEXT = {"help_option_names": ["-h", "--help"]}
COMMANDS = {
    "sweep": "Measure every target at every concurrency: the main job.",
    "data": "List, fetch and verify the published question sets.",
    "report": "Recompute tables, figures and report of a run directory.",
    "compare": "Put several runs into one table: COR over model size, N*, published figures.",
    "advise": "Which precision for your traffic, on how many GPUs, for how much.",
    "regrade": "Grade stored answers again, without GPU or server.",
    "serve": "Run one vLLM server from its recipe, in the foreground.",
    "simulate": "Run one simulated server.",
    "exporter": "Export GPU power and energy to Prometheus.",
    "plan": "How many items and minutes a claim about accuracy needs.",
    "selftest": "The client's own timing error and capacity on this machine.",
    "doctor": "Show what works on this machine, and what to do about the rest.",
    "compose": "Write out the Docker Compose project: servers, exporter, Grafana.",
    "quantize": "Make checkpoints of a model in other formats, with llm-compressor.",
    "cpu-env": "Build an environment with vLLM's CPU build and tiny models.",
}


class LazyGroup(click.Group):
    """Imports a subcommand's module when it is called, so that `--help` and `serve` need no pandas."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"loadgen.cli.{cmd_name.replace('-', '_')}")
        command = module.command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.command(cls=LazyGroup, context_settings=CONTEXT)
@click.version_option(__version__, "-V", "--version", prog_name="loadgen")
def group() -> None:
    """Which precision pays off on your GPU, under your traffic?

    \b
    Example:
      loadgen sweep --target fp16=http://127.0.0.1:8001 --target awq=http://127.0.0.1:8002
    """


def parameters(options: type) -> list[click.Parameter]:
    """The declared options as click's, in the order of their declaration."""
    return [click.Option(_names(option), **_about(option)) for option in declared(options).values()]


def given_options(options: type) -> dict[str, Any]:
    """Those of the declared options that were given, on the command line or in a file."""
    ctx = click.get_current_context()
    names = [name for name in declared(options) if ctx.get_parameter_source(name) is not ParameterSource.DEFAULT]
    return {name: ctx.params[name] for name in names if ctx.params[name] is not None}


def completed(options: type[_Options]) -> _Options:
    """The declared options with the defaults of those that were not given. Raises UsageError as `complete`."""
    return complete(options, given_options(options))


def _names(option: Option) -> list[str]:
    return [f"--{option.flag.replace('_', '-')}", option.name]


def _about(option: Option) -> dict[str, Any]:
    about: dict[str, Any] = {"metavar": option.metavar or None, "help": option.described}
    if option.kind is bool:
        return about | {"is_flag": True}
    if option.alone:
        about |= {"is_flag": False, "flag_value": option.alone}
    single = not isinstance(option.default, tuple)
    return (
        about | {"type": option.kind, "multiple": option.repeatable} | ({"default": option.default} if single else {})
    )


def main() -> None:
    """Entry point: a user's mistake ends as one sentence and exit status 2, never as a traceback; when nobody reads the
    output any more (`| head`), it ends silently with status 1, as click does."""
    _open_streams()
    show_only_visible()
    try:
        group.main(prog_name="loadgen", standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:
        discard_stdout()
        sys.exit(1)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        sys.exit(2)
    except click.exceptions.Abort:
        sys.exit(130)
    except (UsageError, ServerError) as error:
        _end(str(error))
    except StorageError as error:
        _end(str(error), 1)
    except OSError as error:
        if not is_of_storage(error):
            raise
        what = error.filename or "a file"
        _end(f"{what} cannot be written ({error.strerror}); make room, or name a folder that can be written", 1)
    except click.ClickException as error:
        _end(error.format_message())


def _open_streams() -> None:
    """Opens stdin, stdout and stderr on the null device where they are closed (`2>&-`): the next files that are opened
    would take their place."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it has the lowest free number
            setattr(sys, name, os.fdopen(number, "w" if number else "r"))


def say(sentence: str) -> None:
    """A message on stderr; it may quote a server's log, an address with a password, or whatever was typed."""
    click.echo(f"loadgen: {visible_message(Mask()(sentence))}", err=True)


def _end(sentence: str, status: int = 2) -> NoReturn:
    say(sentence)
    sys.exit(status)


def discard_stdout() -> None:
    """Discards what is still to be written to a stdout that nobody reads, also by Python as it ends."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
