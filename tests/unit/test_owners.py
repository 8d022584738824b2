"""Whose joules: which processes on a GPU are the server's, and what the others mean for its energy."""

from __future__ import annotations

import os
import socket

import pytest

from loadgen.errors import UsageError
from loadgen.measure.power import owners_of, server_processes, warnings_before
from loadgen.power.sample import GpuProcess, PowerSample
from loadgen.power.trace import Owners, trace_of, uses_in

S = 1_000_000_000
SERVER = GpuProcess(pid=101, name="VLLM::EngineCore", memory_bytes=70 * 2**30, lineage=(101, 100, 1))
OTHER = GpuProcess(pid=900, name="python", memory_bytes=12 * 2**30, lineage=(900, 1))
UNSEEN = GpuProcess(pid=4711, memory_bytes=2**30)
OWNERS = Owners(server=(100,), at_rest=(101,))


def uses(*lists, owners=OWNERS, scopes=None, **fields):
    """What is said of a window from 10 to 20 s with a list each second from 5 s on; the last list goes on."""
    samples = [
        PowerSample(
            t_ns=t * S, latency_ns=1, gpu="GPU-a", processes=lists[min(max(t - 10, 0), len(lists) - 1)],
            **{"utilization": 0.9, "memory_used_bytes": 70 * 2**30} | fields,
        )
        for t in range(5, 25)
    ]  # fmt: skip
    return uses_in([trace_of("GPU-a", samples)], 10 * S, 20 * S, owners, scopes or {})


def test_the_servers_own_processes_say_nothing():
    found = uses((SERVER,))
    assert (found.foreign, found.unsure) == ((), ())


def test_another_process_is_named_once_however_often_it_is_listed():
    found = uses((SERVER,), (SERVER, OTHER))
    assert found.foreign == (
        "process 900 (python, 12.0 GiB) used GPU-a and is not the server's: the energy includes its share",
    )
    assert uses((SERVER,), (SERVER, OTHER), (SERVER,)).foreign == found.foreign


def test_one_that_ended_before_the_window_is_not_in_its_energy():
    samples = [
        PowerSample(t_ns=t * S, latency_ns=1, gpu="GPU-a", processes=(SERVER, OTHER) if t < 9 else (SERVER,))
        for t in range(5, 25)
    ]
    assert uses_in([trace_of("GPU-a", samples)], 10 * S, 20 * S, OWNERS, {}).foreign == ()


def test_one_that_was_there_from_the_start_is_no_more_the_servers():
    assert uses((SERVER, OTHER), owners=Owners(server=(100,), at_rest=(101, 900))).foreign
    assert not uses((SERVER, OTHER), owners=Owners(at_rest=(101, 900))).foreign  # nobody knows the server's


def test_a_process_that_cannot_be_seen_is_the_servers_or_not():
    there = Owners(server=(100,), at_rest=(4711,))
    assert "cannot tell whether process 4711" in uses((UNSEEN,), owners=there).unsure[0]
    assert uses((UNSEEN,), owners=there).foreign == ()
    assert uses((UNSEEN,), owners=OWNERS).foreign, "it came after the server was up"
    assert uses((UNSEEN,), owners=Owners(before=(4711,), at_rest=(4711,))).foreign, "it was there before the server"


def test_an_empty_list_beside_used_memory_tells_nothing():
    (said,) = uses(()).unsure
    assert said.startswith("cannot tell who uses GPU-a: 70.0 GiB are in use and no process is listed")
    assert uses((), memory_used_bytes=2**30).unsure == ()


def test_without_a_list_nobody_can_tell():
    assert uses(None).unsure == ("cannot tell who uses GPU-a: the driver lists no processes",)
    assert uses(None, owners=None).unsure == (), "a run of an earlier version"
    assert uses(None, scopes={"GPU-a": "package"}).unsure == (), "a CPU package has no such list"


def test_other_targets_and_displays_leave_the_energy_valid_with_a_word():
    display = GpuProcess(pid=50, kind="graphics", name="Xorg", memory_bytes=2**26, lineage=(50, 1))
    mps = GpuProcess(pid=60, name="nvidia-cuda-mps-server", memory_bytes=2**25, lineage=(60, 1))
    found = uses((SERVER, OTHER, display, mps), owners=Owners(server=(100,), peers=(900,), at_rest=(101,)))
    assert found.foreign == ()
    assert [said.partition(")")[0] for said in found.unsure] == [
        "process 900 (python, 12.0 GiB", "process 50 (Xorg, 0.1 GiB"
    ]  # fmt: skip


def test_a_gpu_that_the_server_does_not_use_is_said():
    assert uses((SERVER,), utilization=0.0).foreign[0].startswith("GPU-a was idle for the whole window: the server")
    busy, idle = (
        trace_of(gpu, [PowerSample(t_ns=t * S, latency_ns=1, gpu=gpu, utilization=used) for t in range(10, 20)])
        for gpu, used in (("GPU-a", 0.5), ("GPU-b", 0.0))
    )
    found = uses_in([busy, idle], 10 * S, 20 * S, None, {})
    assert found.foreign == ()
    assert found.unsure[0].startswith("GPU-b was idle for the whole window, and the energy includes that")


def reading(*processes, utilization=0.0):
    return {"GPU-a": PowerSample(t_ns=1, latency_ns=1, gpu="GPU-a", processes=processes, utilization=utilization)}


def test_before_the_first_server_every_process_is_anothers():
    (said,) = warnings_before(reading(OTHER), (), running=False, exclusive=False)
    assert said.startswith("GPU-a is used before the first server starts by process 900 (python, 12.0 GiB)")
    with pytest.raises(UsageError, match=r"--exclusive: GPU-a is used .* by process 900 \(python, 12\.0 GiB\): stop"):
        warnings_before(reading(OTHER), (), running=False, exclusive=True)
    assert warnings_before(reading(), (), running=False, exclusive=True) == []
    (said,) = warnings_before(reading(utilization=0.4), (), running=False, exclusive=True)
    assert "is busy before the first server starts (40% utilization)" in said


def test_beside_running_servers_theirs_are_expected():
    assert warnings_before(reading(SERVER), (100,), running=True, exclusive=True) == []
    assert "process 900" in warnings_before(reading(SERVER, OTHER), (100,), running=True, exclusive=False)[0]
    with pytest.raises(UsageError, match="while the servers run by process 900"):
        warnings_before(reading(SERVER, OTHER), (100,), running=True, exclusive=True)
    for families in ((), (7,)):  # whatever listens is on no GPU
        (said,) = warnings_before(reading(OTHER), families, running=True, exclusive=True)
        assert said.endswith("taken for the servers', which cannot be told apart")
    (said,) = warnings_before(reading(SERVER, UNSEEN), (100,), running=True, exclusive=True)
    assert said.startswith("cannot tell whether process 4711")


def test_a_server_is_found_by_the_port_it_listens_on():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        assert server_processes(f"http://127.0.0.1:{port}") == (os.getpid(),)
    assert server_processes(f"http://127.0.0.1:{port}") == ()


def test_a_proxy_or_another_containers_process_ids_are_not_taken_for_the_server():
    at_rest = {"GPU-a": (SERVER,)}
    assert owners_of((7,), (), (), at_rest, certain=False).server == ()
    assert owners_of((100,), (), (), at_rest, certain=False).server == (100,)
    assert owners_of((7,), (7, 8), (5,), at_rest, certain=True) == Owners(
        server=(7,), peers=(8,), before=(5,), at_rest=(101,)
    )
