"""Forked processes share work; its results come in order."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from loadgen.processgroup import forked, spare_processes


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_results_come_in_the_order_of_the_tasks(processes: int) -> None:
    assert list(forked([partial(pow, n, 2) for n in range(20)], processes)) == [n * n for n in range(20)]


def test_one_process_is_this_one_and_two_are_not() -> None:
    assert list(forked([os.getpid] * 3, 1)) == [os.getpid()] * 3
    assert os.getpid() not in list(forked([os.getpid] * 3, 2))


def arrays(size: int) -> tuple[NDArray[np.float64], pa.Table, str]:
    return np.arange(size) / 3, pa.table({"text": ["é" * k for k in range(size)], "k": range(size)}), "and more"


def test_arrays_and_tables_come_as_they_were() -> None:
    """Arrays of any size, none included; they stay when later results come and the processes are gone."""
    sizes = [0, 1, 1000, 0]
    found = list(forked([partial(arrays, size) for size in sizes], 2))
    for (array, table, text), size in zip(found, sizes, strict=True):
        expected = arrays(size)
        assert (array.tolist(), table, text) == (expected[0].tolist(), *expected[1:])


def test_a_result_that_is_kept_stays_while_others_come_and_go() -> None:
    """Smaller and larger ones after it, of which each is let go before the next; an array taken out of it, too."""
    sizes = [50, 7, 400, 0, 50, 3] * 4
    results = forked([partial(arrays, size) for size in sizes], 2)
    kept, table, _ = next(results)
    part = kept[10:20]
    for (array, other, _), size in zip(results, sizes[1:], strict=True):
        assert (array.tolist(), other) == (arrays(size)[0].tolist(), arrays(size)[1])
    del kept
    assert part.tolist() == arrays(50)[0][10:20].tolist()
    assert table == arrays(50)[1]


def test_results_that_are_let_go_take_no_more_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for array, table, _ in forked([partial(arrays, 1000)] * 40, 2):
        assert (len(array), len(table)) == (1000, 1000)
        del array, table
        assert len([path for path in tmp_path.rglob("*") if path.is_file()]) <= 8
    assert not [*tmp_path.iterdir()]


def test_what_a_task_raises_is_raised_in_its_place() -> None:
    results = forked([partial(int, "1"), partial(int, "one"), partial(int, "3")], 2)
    assert next(results) == 1
    with pytest.raises(ValueError, match="one"):
        next(results)


def test_they_end_with_their_parent_also_when_it_is_killed() -> None:
    """Its pipe is at its end only when nobody can write to it any more."""
    program = (
        "import os, time\n"
        "from loadgen.processgroup import forked\n"
        "def task():\n    os.write(1, b'begun\\n')\n    time.sleep(600)\n"
        "list(forked([task] * 4, 2))"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    with parent.stdout as said:
        assert [said.readline(), said.readline()] == [b"begun\n"] * 2
        parent.kill()
        parent.wait()
        assert said.read() == b""


def test_beside_other_threads_no_process_is_spare() -> None:
    done = threading.Event()
    other = threading.Thread(target=done.wait)
    other.start()
    assert spare_processes() == 1
    done.set()
    other.join()
