"""A sweep that is stopped: Ctrl-C finishes what is in flight, twice gives it up, a kill loses no more than that."""

import json
import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest

from loadgen.load.exchange import Exchange
from loadgen.record.journal import CellEnd, cell_files, read_records

DERIVED = ("requests.parquet", "server.parquet", "cells.csv", "summary.csv", "analysis.json", "report.html")
DEADLINE_S = 180.0


def hear_interrupts():
    """CI may run this as a background job, whose children would ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def sweep(run_dir, *options):
    argv = [sys.executable, "-m", "loadgen", "sweep", "--dataset", "sample", "--repeats", "1", "--out", str(run_dir)]
    return subprocess.Popen(
        [*argv, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "CI": ""},
        preexec_fn=hear_interrupts,
    )


def report(run_dir):
    return subprocess.run(
        [sys.executable, "-m", "loadgen", "report", str(run_dir)], capture_output=True, text=True, timeout=DEADLINE_S
    )


def wait_for_requests(process, run_dir, cells, requests=1):
    """Until `cells` cells have begun and the last of them has `requests` ended requests in its journal."""
    deadline_s = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline_s:
        assert process.poll() is None, process.communicate()
        files = cell_files(run_dir)
        if len(files) >= cells and sum(isinstance(r, Exchange) for r in read_records(files[cells - 1])) >= requests:
            return
        time.sleep(0.02)
    raise TimeoutError("the sweep did not get so far")


def stopped(process, number):
    process.send_signal(number)
    out, err = process.communicate(timeout=DEADLINE_S)
    return process.returncode, out, err


def planned_cells(run_dir):
    config = json.loads((run_dir / "manifest.json").read_bytes())["config"]
    return len(config["targets"]) * len(config["concurrency"])


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("interrupt") / "run"
    process = sweep(run_dir, "--concurrency", "2,4", "--duration", "1", "--quiet")
    wait_for_requests(process, run_dir, cells=2, requests=4)
    return run_dir, *stopped(process, signal.SIGINT)


class TestCtrlC:
    def test_exit_status_130_and_one_sentence(self, interrupted):
        run_dir, code, _, err = interrupted
        assert code == 130, err
        assert "Traceback" not in err
        assert f"Interrupted: what was measured is kept in {run_dir}" in err

    def test_every_derived_file_is_there(self, interrupted):
        run_dir = interrupted[0]
        assert [name for name in DERIVED if not (run_dir / name).is_file()] == []

    def test_it_says_at_once_what_it_waits_for(self, interrupted):
        first = interrupted[3].splitlines()[0]
        assert first == "Interrupted: finishing 4 requests in flight; Ctrl-C again stops at once"

    def test_the_finished_cell_is_measured_and_the_interrupted_one_says_so(self, interrupted):
        cells = pd.read_csv(interrupted[0] / "cells.csv")
        assert list(cells.concurrency) == [2, 4]
        assert cells.window_s[0] >= 1
        assert "interrupted" not in str(cells.reasons[0]), "a busy machine may be another reason"
        assert not cells.valid[1]
        assert "interrupted" in cells.reasons[1]

    def test_what_was_in_flight_is_finished_and_no_slot_sends_again(self, interrupted):
        *_, last = cell_files(interrupted[0])
        records = list(read_records(last))
        assert isinstance(records[-1], CellEnd)
        assert records[-1].aborted == "interrupted"
        rows = [r for r in records if isinstance(r, Exchange)]
        assert {row.status for row in rows} == {"ok"}
        stopped_ns = min(max(row.t_end_ns for row in rows if row.slot == slot) for slot in range(4))
        assert max(row.t_send_ns for row in rows) < stopped_ns

    def test_no_server_is_left(self, interrupted):
        servers = json.loads((interrupted[0] / "manifest.json").read_bytes())["servers"]
        assert servers
        for server in servers:
            pid = (server.get("facts") or server)["pid"]
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)

    def test_report_works_on_what_is_left(self, interrupted):
        run_dir = interrupted[0]
        for name in DERIVED:
            (run_dir / name).unlink()
        done = report(run_dir)
        assert done.returncode == 0, done.stderr
        assert [name for name in DERIVED if not (run_dir / name).is_file()] == []


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("kill") / "run"
    process = sweep(run_dir, "--concurrency", "2,4", "--duration", "1", "--quiet")
    wait_for_requests(process, run_dir, cells=2, requests=4)
    stopped(process, signal.SIGKILL)
    return run_dir, report(run_dir)


@pytest.mark.slow
class TestKill:
    def test_report_rebuilds_every_derived_file(self, killed):
        run_dir, done = killed
        assert done.returncode == 0, done.stderr
        assert [name for name in DERIVED if not (run_dir / name).is_file()] == []

    def test_the_finished_cell_is_whole(self, killed):
        cells = pd.read_csv(killed[0] / "cells.csv")
        assert list(cells.concurrency) == [2, 4]
        assert cells.valid[0], cells.reasons[0]

    def test_it_says_what_is_missing(self, killed):
        run_dir, done = killed
        cells = pd.read_csv(run_dir / "cells.csv")
        assert not cells.valid[1]
        assert "interrupted" in cells.reasons[1]
        warnings = json.loads((run_dir / "analysis.json").read_bytes())["warnings"]
        assert any("B = 4" in warning and "interrupted" in warning for warning in warnings)
        missing = planned_cells(run_dir) - len(cells)
        assert missing == 6
        assert any(f"{missing} of {planned_cells(run_dir)}" in warning for warning in warnings), warnings
        assert "interrupted" in done.stdout

    def test_a_torn_last_line_is_left_out(self, killed):
        run_dir, _ = killed
        last = cell_files(run_dir)[-1]
        before = len(pd.read_parquet(run_dir / "requests.parquet"))
        with last.open("ab") as file:
            file.write(b'{"type":"exchange","slot":0,"pha')
        assert report(run_dir).returncode == 0
        assert len(pd.read_parquet(run_dir / "requests.parquet")) == before


@pytest.mark.parametrize("transport", ["raw", pytest.param("openai", marks=pytest.mark.slow)])
@pytest.mark.parametrize("how", ["Ctrl-C twice", "SIGTERM"])
def test_at_once_requests_in_flight_end_as_rows_whatever_the_transport(known, tmp_path, transport, how):
    if transport == "openai":
        pytest.importorskip("openai")
    run_dir = tmp_path / "run"
    process = sweep(
        run_dir, "--target", f"fp16={known.url}", "--concurrency", "3", "--duration", "60", "--max-tokens",
        str(known.tokens), "--transport", transport, "--quiet",
    )  # fmt: skip
    wait_for_requests(process, run_dir, cells=1, requests=4)
    if how == "SIGTERM":
        code, _, err = stopped(process, signal.SIGTERM)
    else:
        process.send_signal(signal.SIGINT)
        assert "finishing 3 requests in flight" in process.stderr.readline()
        code, _, err = stopped(process, signal.SIGINT)
    assert code == 130, err
    assert f"Interrupted: what was measured is kept in {run_dir}" in err
    [journal] = cell_files(run_dir)
    *records, end = read_records(journal)
    assert isinstance(end, CellEnd)
    assert end.aborted == "interrupted"
    rows = [record for record in records if isinstance(record, Exchange)]
    given_up = [row for row in rows if row.status == "broken"]
    assert sorted(row.slot for row in given_up) == [0, 1, 2]
    assert {row.error for row in given_up} == {"given up: the run was stopped"}
    assert {row.status for row in rows} == {"ok", "broken"}
    assert not (run_dir / "report.html").exists(), "at once: the report is left to `loadgen report`"
    assert report(run_dir).returncode == 0
