"""Messages between the process of a cell and its workers, whatever the reads they come in."""

from __future__ import annotations

import pytest
from made_run import answer

from loadgen.load.exchange import Exchange
from loadgen.load.load import ProcessUse
from loadgen.load.worker import Channel, WorkerState

Report = Exchange | WorkerState | ProcessUse
SENT: list[Report] = [
    answer(1, [(2, 1), (3, 2)], text="half a « quote »"),
    WorkerState(steady=True, dry_ns=7, in_flight=3),
    ProcessUse(cpu_s=0.5, wall_s=1.0, lag_ms_p99=2.0),
    answer(4, status="broken", error="cut"),
]


class Wire:
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        self.data = b""

    def write(self, data: bytes) -> None:
        self.data += data


def channel(heard: list[Report]) -> Channel[Report]:
    return Channel(Report, heard.append, lambda: None)


@pytest.mark.parametrize("cut", [1, 3, 64, 10_000])
def test_what_goes_in_comes_out_however_it_is_cut(cut: int) -> None:
    wire, heard = Wire(), list[Report]()
    sender, receiver = channel([]), channel(heard)
    sender.connection_made(wire)  # type: ignore[arg-type]
    for message in SENT:
        sender.send(message)
    for start in range(0, len(wire.data), cut):
        receiver.data_received(wire.data[start : start + cut])
    assert heard == SENT
