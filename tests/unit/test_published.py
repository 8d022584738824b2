"""Published files: fetched once, verified, and one sentence when that fails."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from loadgen.errors import UsageError
from loadgen.workload.published import PublishedFile, cache_dir, fetch, state_of

CONTENT = b'{"question": "q", "answer": "#### 1"}\n'


class Web:
    """A web server of one page that counts its visits."""

    def __init__(self) -> None:
        self.visits = 0
        self.content = CONTENT
        self.status = 200
        self.missing_bytes = 0
        web = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                web.visits += 1
                self.send_response(web.status)
                self.send_header("Content-Length", str(len(web.content) + web.missing_bytes))
                self.end_headers()
                self.wfile.write(web.content)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/rows.jsonl"


@pytest.fixture
def web() -> Iterator[Web]:
    web = Web()
    thread = threading.Thread(target=web.server.serve_forever)
    thread.start()
    yield web
    web.server.shutdown()
    thread.join()
    web.server.server_close()


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOADGEN_CACHE", str(tmp_path / "cache"))


def file_at(url: str) -> PublishedFile:
    return PublishedFile("rows.jsonl", url, hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))


def refused(file: PublishedFile) -> str:
    with pytest.raises(UsageError) as caught:
        fetch(file)
    assert "\n" not in str(caught.value)
    assert list(cache_dir().glob("*")) == [], "a refused download left something in the cache"
    return str(caught.value)


def test_a_file_is_downloaded_once(web: Web) -> None:
    first = fetch(file_at(web.url))
    assert first == cache_dir() / "rows.jsonl"
    assert first.read_bytes() == CONTENT
    assert fetch(file_at(web.url)) == first
    assert web.visits == 1
    assert [path.name for path in cache_dir().iterdir()] == ["rows.jsonl"]


def test_a_damaged_cached_file_is_fetched_again(web: Web) -> None:
    fetch(file_at(web.url)).write_bytes(b"cut")
    assert fetch(file_at(web.url)).read_bytes() == CONTENT
    assert web.visits == 2


def test_the_state_of_a_cached_file_is_known_without_a_download(web: Web) -> None:
    file = file_at(web.url)
    assert state_of(file) == "absent"
    path = fetch(file)
    assert state_of(file) == "cached"
    path.write_bytes(b"cut")
    assert (state_of(file), web.visits) == ("damaged", 1)


def test_a_cached_file_needs_no_network(web: Web) -> None:
    fetch(file_at(web.url))
    assert fetch(file_at("http://127.0.0.1:1/rows.jsonl")).read_bytes() == CONTENT


def test_other_bytes_than_the_pinned_ones_are_refused(web: Web) -> None:
    web.content = CONTENT + b"\n"
    assert "no longer the pinned file" in refused(file_at(web.url))


def test_without_a_network_the_way_out_is_named() -> None:
    sentence = refused(file_at("http://127.0.0.1:1/rows.jsonl"))
    assert "could not be downloaded" in sentence
    assert "--data-file" in sentence


def test_a_missing_page_and_a_broken_download_are_refused(web: Web) -> None:
    web.status = 404
    assert "404" in refused(file_at(web.url)) or "Not Found" in refused(file_at(web.url))
    web.status, web.missing_bytes = 200, 10
    assert "could not be downloaded" in refused(file_at(web.url))


def test_a_cache_that_cannot_be_written_is_one_sentence(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("LOADGEN_CACHE", str(tmp_path / "file"))
    with pytest.raises(UsageError, match=r"cannot be kept in .*LOADGEN_CACHE"):
        fetch(file_at(web.url))
