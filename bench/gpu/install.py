"""Install: an environment on the offline machine that sees what is there and adds the wheels that were carried."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.gpu.pieces import sha256
from loadgen.errors import UsageError

PROJECT = Path(__file__).resolve().parents[2]
CANNOT = "cannot be imported"
STAMP = "installed.json"
_LOG = "install.log"
PROBES = (
    "torch",
    "numba",
    "vllm._C_stable_libtorch",
    "vllm._moe_C_stable_libtorch",
    "vllm.vllm_flash_attn._vllm_fa3_C",
    "vllm.v1.worker.gpu_model_runner",
    "bitsandbytes",
    "loadgen",
)
"""What a server of vLLM 0.26 on Hopper cannot do without; the model runner imports most of the rest."""


def install(wheels: Path, venv: Path, say: Callable[[str], None] = print) -> Path:
    """Makes the environment from the wheels alone (`--no-index --no-deps`) and returns its Python.

    The packages of the Python that runs this stay visible, behind the carried ones. Done once: a second call with the
    same wheels finds its stamp. Raises UsageError with pip's last words.
    """
    found = sorted(wheels.glob("*.whl"))
    if not found:
        raise UsageError(f"{wheels} holds no wheel; name the folder that join filled")
    mark = {wheel.name: sha256(wheel) for wheel in found}
    python = venv / "bin" / "python"
    stamp = venv / STAMP
    if stamp.is_file() and json.loads(stamp.read_text(encoding="utf-8")) == mark:
        say(f"{len(found)} wheels are already in {venv}")
        return python
    stamp.unlink(missing_ok=True)
    # Without pip of its own: some systems ship none for new environments, and this Python's can install into it.
    _run(venv, [sys.executable, "-m", "venv", "--clear", "--without-pip", str(venv)])
    site = Path(_run(venv, [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).strip())
    # A path file, since --system-site-packages would show a parent environment's base instead of its packages.
    there = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    (site / "machine.pth").write_text("\n".join([*there, str(PROJECT)]) + "\n", encoding="utf-8")
    say(f"installing {len(found)} wheels into {venv}")
    _run(
        venv,
        [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check", "install", "--no-index",
         "--no-deps", "--find-links", str(wheels), "--ignore-installed", "--no-compile", *map(str, found)],
    )  # fmt: skip
    stamp.write_text(json.dumps(mark, indent=1) + "\n", encoding="utf-8")
    return python


def probe(python: Path, modules: Sequence[str] = PROBES) -> dict[str, str]:
    """Module -> version or `present`, or `cannot be imported: ` and why; nothing is raised."""
    script = (
        "import importlib, sys\n"
        "try:\n"
        "    module = importlib.import_module(sys.argv[1])\n"
        "    print(getattr(module, '__version__', 'present'))\n"
        "except BaseException as error:\n"
        f"    print(f'{CANNOT}: {{type(error).__name__}}: {{error}}')\n"
    )

    def ask(name: str) -> str:
        asked = subprocess.run(
            [str(python), "-c", script, name], capture_output=True, text=True, check=False, cwd=PROJECT
        )
        lines = asked.stdout.strip().splitlines()
        return lines[-1] if lines else f"{CANNOT}: Python ended with status {asked.returncode}"

    with ThreadPoolExecutor() as pool:
        return dict(zip(modules, pool.map(ask, modules), strict=True))


def _run(venv: Path, command: list[str]) -> str:
    """Standard output; everything said goes to the log beside the environment."""
    venv.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    log = venv.with_name(f"{venv.name}-{_LOG}")
    with log.open("a", encoding="utf-8") as file:
        file.write(f"\n$ {' '.join(command)}\n{done.stdout}{done.stderr}")
    if done.returncode != 0:
        last = " ".join(done.stderr.strip().splitlines()[-1:]) or f"status {done.returncode}"
        raise UsageError(f"`{' '.join(command[:6])} ...` failed: {last}; see {log}")
    return done.stdout
