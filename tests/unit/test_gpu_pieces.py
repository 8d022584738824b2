"""The GPU kit's pieces: a folder cut, carried in any order and put together, with every fault named."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest

from bench.gpu.pieces import LIST, MIB, join, read_list, receive, split
from loadgen.errors import UsageError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """2.6 MB that no compression would shrink: three pieces of at most 1 MiB."""
    source = random.Random(1)
    for name, size in (("a.whl", 1_300_000), ("b/c.whl", 1_300_000), ("empty", 0)):
        path = tmp_path / "wheels" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(source.randbytes(size))
    return tmp_path / "wheels"


@pytest.fixture
def cut(folder: Path, tmp_path: Path) -> Path:
    split(folder, tmp_path / "cut", MIB)
    return tmp_path / "cut"


def carry(cut: Path, to: Path, *names: str) -> Path:
    """Some pieces and the list, as one call would bring them."""
    to.mkdir(parents=True)
    for name in (*names, LIST):
        (to / name).write_bytes((cut / name).read_bytes())
    return to


def test_no_piece_is_larger_than_stated_and_all_are_listed_with_their_sha256(cut: Path) -> None:
    listed = read_list(cut)
    sizes = [(cut / piece.name).stat().st_size for piece in listed.pieces]
    assert sizes[:-1] == [MIB, MIB]
    assert 0 < sizes[-1] <= MIB
    for piece in listed.pieces:
        content = (cut / piece.name).read_bytes()
        assert (piece.bytes, piece.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert sorted(path.name for path in cut.iterdir()) == ["piece-000", "piece-001", "piece-002", LIST]


def test_the_same_files_give_the_same_pieces(folder: Path, cut: Path, tmp_path: Path) -> None:
    assert split(folder, tmp_path / "again", MIB) == read_list(cut)


def test_pieces_come_one_by_one_in_any_order_and_give_the_folder_back(folder: Path, cut: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    for number, name in enumerate(("piece-002", "piece-000", "piece-001")):
        found = receive(carry(cut, tmp_path / f"call-{number}", name), store)
        assert len(found.good) == number + 1
    assert found.complete
    assert join(store, tmp_path / "joined") == 3
    for path in folder.rglob("*"):
        if path.is_file():
            assert (tmp_path / "joined" / path.relative_to(folder)).read_bytes() == path.read_bytes()


def test_a_damaged_piece_is_named_and_not_kept(cut: Path, tmp_path: Path) -> None:
    call = carry(cut, tmp_path / "call", "piece-000", "piece-001")
    content = bytearray((call / "piece-001").read_bytes())
    content[12345] ^= 1
    (call / "piece-001").write_bytes(content)
    with pytest.raises(UsageError, match=r"damaged: piece-001 \(") as told:
        receive(call, tmp_path / "store")
    assert "piece-000" not in str(told.value)
    assert not (tmp_path / "store" / "piece-001").exists()


def test_what_is_missing_and_what_went_bad_on_the_way_are_named(cut: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    receive(carry(cut, tmp_path / "call", "piece-000", "piece-001"), store)
    (store / "piece-000").write_bytes((store / "piece-000").read_bytes()[:-1])
    with pytest.raises(UsageError, match="damaged: piece-000; missing: piece-002;"):
        join(store, tmp_path / "joined")
    assert not (tmp_path / "joined").exists()


def test_pieces_of_another_archive_do_not_mix(folder: Path, cut: Path, tmp_path: Path) -> None:
    receive(carry(cut, tmp_path / "call", "piece-000"), tmp_path / "store")
    (folder / "empty").write_text("no more")
    split(folder, tmp_path / "other", MIB)
    with pytest.raises(UsageError, match="pieces of another archive"):
        receive(carry(tmp_path / "other", tmp_path / "call-2", "piece-001"), tmp_path / "store")


def test_joining_is_done_once(cut: Path, tmp_path: Path) -> None:
    join(cut, tmp_path / "joined")
    for piece in cut.glob("piece-*"):
        piece.unlink()
    assert join(cut, tmp_path / "joined") == 3


def test_a_folder_that_is_not_the_kits_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no pieces.json"):
        receive(folder, tmp_path / "store")
    with pytest.raises(UsageError, match="holds no file"):
        split(tmp_path / "nowhere", tmp_path / "cut", MIB)
    with pytest.raises(UsageError, match="holds other files"):
        split(folder, folder.parent, MIB)
