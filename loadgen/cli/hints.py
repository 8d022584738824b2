"""Hints: what to type instead of an option, an argument or a command that loadgen does not have."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path

from loadgen.notation import did_you_mean, entries, spelled
from loadgen.options import Option, RunOptions, declared
from loadgen.synonyms import ARGUMENTS, COMMANDS, elsewhere

_URL = re.compile(r"(?:[A-Za-z0-9._:-]+=)?(?:https?://\S+|(?:[A-Za-z0-9.-]+|\[[0-9a-f:]+\]):\d{1,5}(?:/\S*)?)")
_MODEL = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_SECRET = re.compile(r"sk-|hf_|key", re.IGNORECASE)


def values_of(args: Sequence[str], name: str) -> list[str]:
    """The values that follow an option, as `--name VALUE` and `--name=VALUE`."""
    found = []
    for place, arg in enumerate(takewhile(lambda arg: arg != "--", args)):
        if arg == name:
            found += [value for value in args[place + 1 : place + 2] if not re.match(r"-\D", value)]
        elif arg.startswith(f"{name}="):
            found.append(arg.partition("=")[2])
    return found


def for_option(command: str, name: str, args: Sequence[str], flags: Iterable[str], *, vllm: bool) -> str:
    """The sentence on an option that the command does not have; `flags` are those that it has.

    `vllm`: it gives vLLM what follows `--`.
    """
    flags = tuple(flags)
    has_none = f"loadgen {command} has no option {name}"
    values = values_of(args, name)
    known = {option.name: option for option in declared(RunOptions).values() if option.named in flags}
    ours, text = elsewhere(name.lstrip("-"), known, values[0] if values else None)
    if command == "sweep" and ours:
        return f"{has_none}; write {known[ours].named} {shlex.quote(text)}"
    if meant := did_you_mean(name, flags):
        return f"{has_none}; {meant}"[:-1]
    launches = command == "serve" or values_of(args, "--serve")
    if vllm and launches and len(name) > 2 and not _SECRET.search(" ".join(values)):
        return f"{has_none}; if it is vLLM's, write it behind `--`: -- {shlex.join([name, *values[:1]])}"
    return f"{has_none}; see loadgen {command} --help"


def for_argument(command: str, strays: Sequence[str], args: Sequence[str], options: Mapping[str, Option]) -> str:
    """The sentence on arguments that belong to no option; `options` are the declared ones by what is typed for them."""
    unexpected = f"unexpected extra argument {strays[0]!r}"
    place = len(args) - 1 - args[::-1].index(strays[0])
    name, equals, value = args[place - 1].partition("=") if place else ("", "", "")
    if not (equals and name in options) and place > 1:
        name, value = args[place - 2], args[place - 1]
    if option := options.get(name):
        values = [part for text in (value, *strays) for part in (entries(text) if option.joint == "," else [text])]
        if option.joint:
            return f"{unexpected}; write {name} {shlex.quote(option.joint.join(values))}"
        if option.repeatable:
            return f"{unexpected}; write {' '.join(f'{name} {shlex.quote(one)}' for one in values)}"
    if command != "sweep":
        form = ARGUMENTS.get(command)
        return f"{unexpected}; " + (
            f"write {form.format(shlex.quote(strays[0]))}" if form else f"see loadgen {command} --help"
        )
    if written := _sweep_of(strays):
        return f"{unexpected}; write {written}"
    return f"{unexpected}: options of vLLM go behind `--`, as in `-- --enforce-eager`"


def for_command(
    args: Sequence[str], known: Iterable[str], *, within: str = "", synonyms: Mapping[str, str] = COMMANDS
) -> str:
    """The sentence on a command that loadgen, or its command `within`, does not have."""
    name, known = args[0], tuple(known)
    program = f"loadgen {within}".rstrip()
    has_none = f"{program} has no command {name!r}"
    if (meant := synonyms.get(name.lower())) is not None:
        rest = shlex.join(args[1:]) if meant == "sweep" else ""
        return f"{has_none}; write {program} {meant} {rest}".rstrip()
    if not within and (Path(name) / "manifest.json").is_file():
        return f"{has_none}; write loadgen report {shlex.quote(name)}"
    if not within and (written := _sweep_of([arg for arg in args if not arg.startswith("-")])):
        return f"{has_none}; write loadgen sweep {written}"
    return f"{has_none}; {did_you_mean(name, known)}known: {', '.join(known)}"


def example_of(text: str | None) -> str:
    """A command's first example, as the end of a sentence; empty where its help has none."""
    found = re.search(r"^ *(loadgen .+)$", (text or "").partition("Example")[2], re.MULTILINE)
    return f"; write it, as in {found[1]}" if found else ""


def _sweep_of(words: Sequence[str]) -> str:
    """The options of a sweep that words without options mean; empty where that is not clear."""
    from loadgen.serving.recipe import recipe_names

    first, recipes = words[0], recipe_names()
    names = [spelled(part, recipes) for word in words for part in entries(word)]
    if _URL.fullmatch(first):
        pairs = [word if "=" in word else f"{name}={word}" for name, word in zip(["fp16", "awq", *recipes], words)]  # noqa: B905
        written = " ".join(f"--target {shlex.quote(pair)}" for pair in pairs)
        return written if "=" in first else f"{written} with the precision that it serves as the name"
    if set(names) <= set(recipes):
        return f"--serve {','.join(names)} --model ORG/MODEL"
    if (Path(first) / "manifest.json").is_file():
        return f"--resume {shlex.quote(first)}"
    if Path(first).suffix in (".yaml", ".yml"):
        return f"--config {shlex.quote(first)}"
    if _MODEL.fullmatch(first) or Path(first).is_dir():
        return f"--serve fp16,awq --model {shlex.quote(first)}"
    return ""
