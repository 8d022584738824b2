"""`python -m bench.gpu COMMAND`: the kit's steps; README.md in this folder explains them in order."""

from __future__ import annotations

import argparse
import signal
import sys
import tomllib
from io import TextIOWrapper
from pathlib import Path

from bench.gpu import machine, pieces, wheels
from loadgen.errors import ServerError, UsageError

HERE = Path(__file__).parent
KIT = tomllib.loads((HERE / "kit.toml").read_text(encoding="utf-8"))


def look(_: argparse.Namespace) -> None:
    print(machine.to_json(machine.look()), end="")


def fetch_wheels(options: argparse.Namespace) -> None:
    there = machine.read_machine(options.machine)
    choice = wheels.choose(wheels.read_lock(options.lock), there, KIT["leave_out"], options.also)
    fetched = wheels.fetch(choice, there, options.out)
    other = [pin for pin in choice.there if there.packages[pin.name] not in ("", pin.version)]
    mib = sum(path.stat().st_size for path in fetched) / pieces.MIB
    print(f"{len(fetched)} wheels, {mib:.1f} MiB; {len(choice.left_out)} left out, {len(choice.there)} there already")
    if other:
        listed = ", ".join(f"{pin} (there: {there.packages[pin.name]})" for pin in other)
        print(f"the machine has other versions than the lock, which are used: {listed}")


def trim_wheels(options: argparse.Namespace) -> None:
    done = wheels.trim(options.wheels, options.out, KIT["trim"])
    for one in done:
        if one.dropped:
            print(f"{one.name}: {len(one.dropped)} members dropped")
    before, after = (sum(sizes) / pieces.MIB for sizes in zip(*((t.bytes_before, t.bytes) for t in done), strict=True))
    print(f"{len(done)} wheels, {before:.1f} MiB made {after:.1f} MiB")


def split(options: argparse.Namespace) -> None:
    listed = pieces.split(options.folder, options.out, round(options.mib * pieces.MIB))
    counts = f"{len(listed.pieces)} pieces, {listed.bytes / pieces.MIB:.1f} MiB, {len(listed.files)} files"
    print(f"{counts}; carry each with {options.out / pieces.LIST}")


def receive(options: argparse.Namespace) -> None:
    found = pieces.receive(options.source, options.store)
    print(f"{len(found.good)} pieces are whole; {found}")


def join(options: argparse.Namespace) -> None:
    print(f"{pieces.join(options.store, options.into)} files are whole in {options.into}")


def install_wheels(options: argparse.Namespace) -> None:
    python = wheels.install(options.wheels, options.venv)
    if options.probe:
        for name, said in wheels.probe(python).items():
            print(f"  {name}: {said}")
    print(python)


def visit(options: argparse.Namespace) -> int:
    from bench.gpu.visit import Visit

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stopped by its time limit: pack what there is
    how = {name: getattr(options, name) for name in ("seconds", "plan", "until", "again", "vllm")}
    return Visit(options.kit, options.out, preset=options.simulated, **how).make(options.carried, options.earlier)


def measure(options: argparse.Namespace) -> int:
    from bench.gpu import measure as steps
    from bench.gpu.plan import load_plan

    site = steps.Site(
        work=options.work,
        models=options.models or options.work / "models",
        vllm=str(options.vllm) if options.vllm else None,
        torch_python=options.torch_python,
        results=options.results,
        preset=options.simulated,
    )
    state = steps.measure(
        load_plan(options.plan), site, budget_s=options.budget, until=options.until, again=options.again
    )
    for name, step in state.steps.items():
        print(f"{name:24} {step.status:8} {step.seconds:6.0f} s  {step.reason or ''}")
    return 0 if state.is_finished(until=options.until) else 1


def pack(options: argparse.Namespace) -> None:
    from bench.gpu import pack as packing
    from bench.gpu.plan import load_plan

    models = options.models or options.work / "models"
    folders = packing.machine_folders(work=options.work, models=models, vllm=options.vllm)
    plan, how = load_plan(options.plan), {"most_mib": options.most_mib, "keep": options.keep}
    for archive in packing.pack(options.work, plan, options.out, folders=folders, **how):
        print(f"{archive.stat().st_size / pieces.MIB:6.2f} MiB  {archive}")


def study(options: argparse.Namespace) -> None:
    from bench.gpu.pages import write

    print(write(options.packed, options.out))


def adjust(options: argparse.Namespace) -> None:
    from bench.gpu import adjust as fitting

    print(fitting.report(options.figures), end="")


def simulator_error(_: argparse.Namespace) -> None:
    from bench.gpu import simulator as error

    print(error.write())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu", description="vLLM on an offline GPU machine, measured."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, does: object, words: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=words, description=words)
        command.set_defaults(does=does)
        return command

    add("look", look, "There: print what this machine has.")
    one = add("fetch", fetch_wheels, "Where there is a network: the wheels that the machine lacks.")
    one.add_argument("--machine", type=Path, required=True, help="what `look` printed there")
    one.add_argument("--out", type=Path, required=True)
    one.add_argument("--lock", type=Path, default=HERE / "wheels.txt")
    one.add_argument("--also", action="append", default=[], metavar="NAME", help="although it is there or left out")
    one = add("trim", trim_wheels, "Drop what is not needed (kit.toml) and pack more densely.")
    one.add_argument("wheels", type=Path)
    one.add_argument("--out", type=Path, required=True)
    one = add("split", split, "Cut a folder into pieces of a stated size.")
    one.add_argument("folder", type=Path)
    one.add_argument("--out", type=Path, required=True)
    one.add_argument("--mib", type=float, default=60.0, help="of a piece [60]")
    one = add("receive", receive, "There: check the pieces that were carried and keep them.")
    one.add_argument("source", type=Path)
    one.add_argument("--store", type=Path, required=True)
    one = add("join", join, "There: put the pieces together and check every file.")
    one.add_argument("store", type=Path)
    one.add_argument("--into", type=Path, required=True)
    one = add("install", install_wheels, "There: an environment of these wheels, without a network.")
    one.add_argument("wheels", type=Path)
    one.add_argument("--venv", type=Path, required=True)
    one.add_argument("--probe", action="store_true", help="say which modules can be imported")
    one = add("visit", visit, "There: receive, join, install, measure and pack, as far as what was carried allows.")
    one.add_argument("carried", type=Path, nargs="?", help="folder of a piece and pieces.json")
    one.add_argument("--earlier", type=Path, help="packed results of a machine that is gone, to go on with")
    one.add_argument("--kit", type=Path, required=True, help="folder that lasts from visit to visit")
    one.add_argument("--out", type=Path, required=True, help="folder that is brought back")
    one.add_argument("--seconds", type=float, default=570, help="for the whole visit [570]")
    one.add_argument("--vllm", type=Path, help="another vllm command than the carried one")
    _plan(one)
    _how(one)
    one = add("measure", measure, "There: go on with the plan until the time is up.")
    _work(one)
    one.add_argument("--budget", type=float, metavar="S", help="seconds of this call [the plan's]")
    one.add_argument("--results", type=Path, help="pack what there is into this folder while a server starts")
    one.add_argument("--torch-python", type=Path, help="a Python with torch [the one beside --vllm]")
    _how(one)
    one = add("pack", pack, "There: the results as small archives.")
    _work(one)
    one.add_argument("--out", type=Path, required=True)
    one.add_argument("--keep", action="store_true", help="leave archives that are newer than what they hold")
    one.add_argument("--most-mib", type=float, help="refuse an archive above this size")
    one = add("study", study, "The study's text and figures, from packed results.")
    one.add_argument("packed", type=Path)
    one.add_argument("--out", type=Path, default=HERE.parents[1] / "docs" / "studies")
    one = add("adjust", adjust, "The simulator's constants fitted to a measured study, as a --cost-file.")
    one.add_argument("figures", type=Path, help="the study's figures.json")
    add("simulator-error", simulator_error, "Rewrite docs/simulator.md's section on the error against hardware.")
    return parser


def _how(command: argparse.ArgumentParser) -> None:
    command.add_argument("--until", metavar="STEP", help="the last step of the plan to do")
    command.add_argument("--again", action="store_true", help="try steps that failed once more")
    command.add_argument("--simulated", metavar="GPU", help="a preset of the simulator instead of hardware")


def _plan(command: argparse.ArgumentParser) -> None:
    command.add_argument("--plan", default="gpu", help="plans/NAME.toml, or a file [gpu]")


def _work(command: argparse.ArgumentParser) -> None:
    command.add_argument("--work", type=Path, required=True, help="folder of state and runs")
    _plan(command)
    command.add_argument("--models", type=Path, help="folder of checkpoints, best on a RAM disk [WORK/models]")
    command.add_argument("--vllm", type=Path, help="the vllm command [LOADGEN_VLLM, or PATH's]")


def main() -> int:
    options = _parser().parse_args()
    if isinstance(sys.stdout, TextIOWrapper):
        # What was said is seen where a command is killed, too, and in order with what its children say.
        sys.stdout.reconfigure(line_buffering=True)
    try:
        return options.does(options) or 0
    except (UsageError, ServerError) as error:
        print(f"bench.gpu: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("bench.gpu: interrupted; the same command goes on where it was", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
