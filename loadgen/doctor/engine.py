"""vLLM: which one a sweep would launch, its version, and bitsandbytes beside it."""

from __future__ import annotations

import json
import re
from pathlib import Path

from loadgen.doctor.finding import Finding, Mode, absent
from loadgen.doctor.program import Ask, ask
from loadgen.errors import UsageError
from loadgen.serving.launch import find_vllm

VERSION_TIMEOUT_S = 120.0
"""`vllm --version` imports torch first: 20 s on two cores."""
LIST_TIMEOUT_S = 20.0
PLUGIN_SINCE = (0, 28)
"""From this version on bitsandbytes is served through vllm-bnb-plugin."""
_LIST = """
import importlib.metadata as m, json
found = {}
for name in ("bitsandbytes", "vllm-bnb-plugin"):
    try:
        found[name] = m.version(name)
    except m.PackageNotFoundError:
        pass
print(json.dumps(found))
"""


def examine_vllm(mode: Mode, named: str | None = None, run: Ask = ask) -> list[Finding]:
    """vLLM and bitsandbytes of the command that `find_vllm` finds; neither is imported here."""
    if mode not in ("cpu", "gpu"):
        held = "its image brings it" if mode == "docker" else "simulated servers need none"
        return [Finding(check="vLLM", state="not applicable", seen=held)]
    try:
        command = find_vllm("cpu" if mode == "cpu" else "cuda", named)
    except UsageError as error:
        seen, _, remedy = str(error).partition("; ")
        return [absent("vLLM", seen, remedy, needed=True)]
    found, version = vllm_version(mode, command, run)
    return [found] if version is None else [found, bitsandbytes(version, packages_beside(command, run))]


def vllm_version(mode: Mode, command: str, run: Ask = ask) -> tuple[Finding, str | None]:
    """What `vllm --version` says, and whether it is a build for this mode's device; the version when it says one."""
    check = "vLLM"
    answer = run([command, "--version"], VERSION_TIMEOUT_S)
    words = answer.output.split() if answer is not None and answer.status == 0 else []
    version = words[-1] if words and re.match(r"\d+\.\d+", words[-1]) else None
    if version is None:
        said = "it cannot be executed" if answer is None else answer.last_words
        advice = "mend that environment, or name another with --vllm PATH or LOADGEN_VLLM"
        return absent(check, f"`{command} --version` failed: {said}", advice, needed=True), None
    seen = f"{version}, {command}"
    if mode == "cpu" and "cpu" not in version:
        advice = "run `loadgen cpu-env`, or name a CPU build with --vllm PATH"
        return absent(check, f"{seen}: not a CPU build", advice, needed=True), version
    if mode == "gpu" and "cpu" in version:
        advice = "install vLLM for CUDA, or name it with --vllm PATH"
        return absent(check, f"{seen}: a CPU build", advice, needed=True), version
    return Finding(check=check, state="ok", seen=seen), version


def packages_beside(command: str, run: Ask = ask) -> dict[str, str] | None:
    """Versions of bitsandbytes and of vLLM's plugin for it in the environment of a `vllm` command; None: unknown."""
    python = interpreter_of(Path(command))
    answer = run([str(python), "-c", _LIST], LIST_TIMEOUT_S) if python else None
    if answer is None or answer.status != 0:
        return None
    try:
        found = json.loads(answer.output)
    except ValueError:
        return None
    return {str(name): str(version) for name, version in found.items()} if isinstance(found, dict) else None


def bitsandbytes(vllm: str, packages: dict[str, str] | None) -> Finding:
    """Whether bnb-nf4 and bnb-int8 can be served by that vLLM version."""
    check = "bitsandbytes"
    if packages is None:
        advice = "bnb-nf4 and bnb-int8 need it in vLLM's environment"
        return Finding(check=check, state="warning", seen="vLLM's Python was not found", advice=advice)
    major, minor = (int(part) for part in vllm.split(".")[:2])
    needed = ["bitsandbytes"]
    if (major, minor) >= PLUGIN_SINCE:
        needed.append("vllm-bnb-plugin")
    seen = ", ".join(f"{name} {packages[name]}" for name in needed if name in packages)
    lacking = [name for name in needed if name not in packages]
    if not lacking:
        return Finding(check=check, state="ok", seen=seen)
    advice = f"bnb-nf4 and bnb-int8 need it: `pip install {' '.join(lacking)}` in vLLM's environment"
    seen = "; ".join(part for part in (seen, f"no {' and no '.join(lacking)}") if part)
    return Finding(check=check, state="warning", seen=seen, advice=advice)


def interpreter_of(script: Path) -> Path | None:
    """The Python that a console script's first line names, else the `python` beside it; None when neither is there."""
    try:
        with script.open("rb") as opened:
            first = opened.readline(4096)
    except OSError:
        return None
    named = Path(first[2:].decode(errors="replace").strip()) if first.startswith(b"#!") else None
    for path in (named, script.with_name("python")):
        if path is not None and "python" in path.name and path.exists():
            return path
    return None
