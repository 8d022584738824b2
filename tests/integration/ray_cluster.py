"""A real Ray cluster on this machine: raylets, each with a made GPU."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from loadgen.guardian import family, signal_all
from loadgen.serving.process import free_port


@contextmanager
def raylet(*options: str, within: Sequence[str] = ()) -> Iterator[int]:
    """A node with one made GPU; its process, of which everything of the node descends. Ray gives a node 30 s to start:
    one that a slow machine did not start in time is started again."""
    argv = [*within, sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-gpus=1", "--num-cpus=4",
            "--object-store-memory=100000000", "--node-ip-address=127.0.0.1", "--disable-usage-stats",
            *options]  # fmt: skip
    told = ""
    for _ in range(3):
        process = subprocess.Popen(
            argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
        try:
            assert process.stdout is not None
            for line in process.stdout:
                told += line
                if "runtime started" in line:
                    threading.Thread(target=process.stdout.read, daemon=True).start()
                    yield process.pid
                    return
        finally:
            members = family(process.pid)
            signal_all(members, signal.SIGKILL)
            process.wait()
    raise AssertionError(f"ray start ended before its node was there:\n{told}")


@contextmanager
def cluster(nodes: int, *options: str, within: Sequence[str] = ()) -> Iterator[tuple[str, list[int]]]:
    """Its address, and the processes of its nodes, the head first. `within`: a command in which the others run."""
    with (
        tempfile.TemporaryDirectory(prefix="lg", dir="/tmp", ignore_cleanup_errors=True) as folder,
        ExitStack() as stack,
    ):
        address = f"127.0.0.1:{free_port()}"
        port = address.partition(":")[2]
        head = raylet(
            "--head",
            f"--port={port}",
            "--include-dashboard=false",
            f"--temp-dir={folder}",
            *options,
        )
        pids = [stack.enter_context(head)]
        pids += [stack.enter_context(raylet(f"--address={address}", within=within)) for _ in range(nodes - 1)]
        yield address, pids
