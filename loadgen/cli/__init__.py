"""The `loadgen` command: one file per subcommand, no logic here."""

from __future__ import annotations

import atexit
import gc
import importlib
import os
import shlex
import sys
from collections.abc import Mapping
from typing import Any, NoReturn, TypeVar

import click
from click.core import ParameterSource

from loadgen import __version__
from loadgen.cli import hints
from loadgen.errors import ServerError, StorageError, UsageError, is_of_storage
from loadgen.notation import spelled
from loadgen.options import Option, RunOptions, complete, declared
from loadgen.secret import Mask, show_only_visible, visible_message
from loadgen.synonyms import COMMANDS as COMMAND_SYNONYMS

_Options = TypeVar("_Options")
VLLM_ARGS = "extra_args"
"""The argument of a command that takes what follows `--`."""
CONTEXT = {"help_option_names": ["-h", "--help"]}
COMMANDS = {
    "sweep": "Measure every target at every concurrency: the main job.",
    "data": "List, fetch and verify the published question sets.",
    "report": "Recompute tables, figures and report of a run directory.",
    "grid": "Measure a study, models x precisions x GPUs, on a Ray cluster.",
    "compare": "Compare runs: two as a difference, several over model size (N*).",
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


class Command(click.Command):
    """A subcommand that answers what it does not have with what to type, and drops nothing that is given twice."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if ctx.resilient_parsing:
            return super().parse_args(ctx, args)
        name = ctx.command_path.partition(" ")[2]
        flags = [flag for parameter in self.get_params(ctx) for flag in parameter.opts if flag.startswith("-")]
        vllm = any(parameter.name == VLLM_ARGS for parameter in self.params)
        try:
            values, strays, order = self.make_parser(ctx).parse_args(list(args))
        except click.BadOptionUsage as error:
            if "requires an argument" not in error.message:
                raise
            metavar = next((str(one.metavar) for one in self.params if error.option_name in one.opts), "VALUE")
            raise UsageError(f"{error.option_name} requires an argument: {error.option_name} {metavar}") from None
        except click.NoSuchOption as error:
            raise UsageError(hints.for_option(name, error.option_name, args, flags, vllm=vllm)) from None
        for parameter in order:
            single = isinstance(parameter, click.Option) and not parameter.multiple and not parameter.is_flag
            if single and order.count(parameter) > 1:
                several = " and ".join(hints.values_of(args, parameter.opts[0]))
                raise UsageError(f"{parameter.opts[0]} is given more than once ({several}); give it once")
        if vllm:
            behind = len(args) - args.index("--") - 1 if "--" in args else 0
            extra = values.get(VLLM_ARGS)
            strays = list(extra[: len(extra) - behind]) if isinstance(extra, tuple | list) else []
        if strays:
            declared_here = {one.flag: one.option for one in self.params if isinstance(one, _Declared)}
            raise UsageError(hints.for_argument(name, strays, args, declared_here))
        return super().parse_args(ctx, args)


class Group(click.Group):
    """Commands whose names may be in any letter case; an unknown one is answered with what to type."""

    synonyms: Mapping[str, str] = COMMAND_SYNONYMS

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        known = self.list_commands(ctx)
        if ctx.resilient_parsing:
            return super().resolve_command(ctx, args)
        if (name := spelled(args[0], known)) not in known:
            within = ctx.command_path.partition(" ")[2]
            raise UsageError(hints.for_command(args, known, within=within, synonyms=self.synonyms))
        return super().resolve_command(ctx, [name, *args[1:]])


class LazyGroup(Group):
    """Imports a subcommand's module when it is called, so that `--help` and `serve` need no pandas."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, list(args))
        except click.NoSuchOption as error:
            name = error.option_name
            if name in {option.named for option in declared(RunOptions).values()}:
                raise UsageError(
                    f"{name} is an option of loadgen sweep; write loadgen sweep {shlex.join(args)}"
                ) from None
            raise UsageError(
                f"loadgen has no option {name}; write a command first, as in loadgen sweep {name}"
            ) from None

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
    return [_Declared(option) for option in declared(options).values()]


class _Declared(click.Option):
    """A declared option as click's: a list may be given in several parts, which are joined."""

    def __init__(self, option: Option) -> None:
        self.option, self.flag = option, option.named
        about: dict[str, Any] = {"metavar": option.metavar or None, "help": option.described}
        if option.kind is bool:
            about["is_flag"] = True
        else:
            about |= {"type": _Read(option), "multiple": option.repeatable or bool(option.joint)}
        if option.alone:
            about |= {"is_flag": False, "flag_value": option.alone}
        if option.kind is not bool and not about["multiple"]:
            about["default"] = option.default
        super().__init__([option.named, option.name], **about)


class _Read(click.ParamType[Any]):
    """What the option makes of a text."""

    def __init__(self, option: Option) -> None:
        self.name, self._option = option.metavar, option

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return self._option.read(value)


def given_options(options: type) -> dict[str, Any]:
    """Those of the declared options that were given, on the command line or in a file."""
    ctx, known = click.get_current_context(), declared(options)
    names = [name for name in known if ctx.get_parameter_source(name) is not ParameterSource.DEFAULT]
    given = {name: ctx.params[name] for name in names if ctx.params[name] is not None}
    return {name: known[name].joint.join(value) if known[name].joint else value for name, value in given.items()}


def completed(options: type[_Options]) -> _Options:
    """The declared options with the defaults of those that were not given. Raises UsageError as `complete`."""
    return complete(options, given_options(options))


def main() -> None:
    """Entry point: a user's mistake ends as one sentence and exit status 2, never as a traceback; when nobody reads the
    output any more (`| head`), it ends silently with status 1, as click does."""
    atexit.register(gc.freeze)  # else Python looks through all objects once more: 0.3 s after a large report
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
    except click.MissingParameter as error:
        example = hints.example_of(error.ctx.command.help if error.ctx else None)
        _end(f"{error.format_message().removesuffix('.')}{example}")
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
