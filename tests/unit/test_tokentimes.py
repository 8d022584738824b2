"""A journal's token times are the same, and the same lines count, whether compiled code or Python takes them out."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from programs import compiler

from loadgen.analysis import tokentimes
from loadgen.analysis.tokentimes import CutLines, TokenTimes, cut_lines
from loadgen.load.exchange import Exchange
from loadgen.record import journal
from loadgen.record.journal import read_lines, sealed

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="what is compiled is for Linux")
T_NS = 1_208_389_412_602


def line(*events: tuple[int, int], text: str = "So 4.") -> bytes:
    exchange = Exchange(
        slot=0,
        phase="measured",
        item_id="a",
        prompt_sha="b",
        t_send_ns=T_NS,
        t_end_ns=T_NS,
        token_times=events,
        text=text,
    )
    return sealed(msgspec.json.encode(exchange))


def steps(count: int, tokens: int = 1) -> list[tuple[int, int]]:
    return [(T_NS + 7_000_000 * k, tokens) for k in range(count)]


def elsewhere(text: bytes) -> bytes:
    """A line whose token times are the last of its fields."""
    return sealed(b'{"type":"exchange","text":"%b","token_times":[[5,1],[6,1]]}' % text)


OTHER = sealed(b'{"type":"server","t_ns":1,"scrape_ns":2}')
EARLIER = line((T_NS, 1))[:-10] + b"\n"
JOURNALS = {
    "answers": [line(*steps(200)), line(*steps(3)), line(), line((T_NS, 1))],
    "other records between": [OTHER, line(*steps(20)), OTHER, OTHER, line(*steps(4))],
    "times of other lengths": [line((9, 1), (10, 1), (100, 2)), line((10**17, 3))],
    "a time of nineteen digits": [line((10**18, 1))],
    "a time that 64 bits do not hold": [line((10**19 - 1, 1))],
    "a number that JSON does not allow": [
        line(*steps(2)),
        sealed(line((15, 1), (6, 1))[:-10].replace(b"[15,", b"[05,")),
    ],
    "several tokens at a time": [line(*steps(9, tokens=9)), line(*steps(9, tokens=12)), line((T_NS, 0))],
    "words of the journal in a text": [line(*steps(5), text=',"token_times":[[1,1]],"'), line(text='],"\n[1,2]\té')],
    "token times elsewhere": [line(*steps(5)), elsewhere(b"a"), line(*steps(2))],
    "a torn last line": [line(*steps(5)), line(*steps(5))[:-30]],
    "a damaged line": [line(*steps(5)), line(*steps(5)).replace(b"a", b"c"), line(*steps(6))],
    "a damaged checksum": [line(*steps(5))[:-2] + b"\n", line(*steps(5))[:-4] + b"XYZ\n", line(*steps(2))],
    "of a version without checksums": [EARLIER, EARLIER, b"no JSON\n"],
    "a line without a checksum behind others": [line(*steps(5)), EARLIER],
    "empty lines": [line(*steps(5)), b"\n", b"short\n", line(*steps(5))],
    "nothing": [],
    "more than is read at once": [line(*steps(200)), OTHER] * 200,
    "many tokens at a time, and later one": [line(*steps(200, tokens=12))] * 100 + [line(*steps(200))] * 200,
    "a line without a checksum far behind others": [*[line(*steps(200))] * 200, EARLIER, line(*steps(2))],
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "001-fp16-b1-r1.jsonl"


def compiled_and_python(path: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What both take apart, with how many lines were damaged; or what is wrong."""
    compiler()
    found: list[object] = []
    for functions in (tokentimes._functions(), "not wanted"):
        with monkeypatch.context() as patch:
            patch.setattr(tokentimes, "_functions", lambda functions=functions: functions)
            lines = read_lines(path)
            times = TokenTimes()
            try:
                parts = list(cut_lines(lines, times))  # all, before one is looked at whole
            except (ValueError, OverflowError) as error:
                found.append(str(error))
            else:
                found.append(
                    ([content(part) for part in parts], times.t_ns.tolist(), times.tokens.tolist(), lines.damaged)
                )
    return found


def content(part: CutLines) -> tuple[object, ...]:
    return part.rests, part.whole(), part.of_exchange.tolist()


@pytest.mark.parametrize("at_once", [2, journal._BLOCK_BYTES], ids=["line by line", "many lines at once"])
@pytest.mark.parametrize("lines", JOURNALS.values(), ids=JOURNALS)
def test_both_take_the_same_apart(
    lines: list[bytes], at_once: int, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "_BLOCK_BYTES", at_once)
    path.write_bytes(b"".join(lines))
    ours, python = compiled_and_python(path, monkeypatch)
    assert ours == python


def test_compiled_code_reads_what_this_version_writes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_bytes(b"".join([line(*steps(200)), OTHER, line(), line((T_NS, 2), (T_NS + 5, 1))]))
    compiler()
    monkeypatch.setattr(tokentimes, "events_of", None)
    times = TokenTimes()
    [part] = cut_lines(read_lines(path), times)
    assert part.of_exchange.tolist() == [200, 0, 2]
    assert times.t_ns.tolist() == [*(t_ns for t_ns, _ in steps(200)), T_NS, T_NS + 5]
    assert times.tokens.tolist() == [1] * 200 + [2, 1]
    assert times.tokens.dtype == np.uint8
    assert part.rests.count(b'"token_times":[],"') == 3
    assert part.rests.count(b"\n") == 4


@pytest.mark.parametrize("seed", range(20))
def test_both_take_the_same_apart_where_bytes_are_changed(
    seed: int, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes of a line, which then has its right checksum again, or not."""
    chance = random.Random(seed)
    for _ in range(60):
        whole = bytearray(line(*steps(chance.randrange(6), tokens=chance.choice([1, 1, 1, 0, 11]))))
        for _ in range(chance.randrange(3)):
            place = chance.randrange(len(whole) - 10)
            whole[place] = chance.choice(b'[],"0123456789x\n\t')
        path.write_bytes(sealed(bytes(whole[:-10])) if chance.random() < 0.8 else bytes(whole))
        ours, python = compiled_and_python(path, monkeypatch)
        assert ours == python, whole


def test_compiled_code_agrees_with_the_checksum_of_a_line_of_any_length(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [sealed(b'{"a":"%b"}' % (b"7" * length)) for length in range(400)]
    lines += [line(*steps(2), text="é" * length) for length in range(130)]
    path.write_bytes(b"".join(lines))
    compiler()
    monkeypatch.setattr(tokentimes, "events_of", None)
    assert sum(part.rests.count(b"\n") for part in cut_lines(read_lines(path), TokenTimes())) == len(lines)
