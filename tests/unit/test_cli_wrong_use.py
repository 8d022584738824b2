"""Wrong use of the command: exit status 2, one line on stderr, no traceback, nothing created."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from loadgen.cli import main


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LOADGEN_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def refused(
    empty_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """The one line that `loadgen ARGUMENTS` says, run in this process."""

    def run(*arguments: str) -> str:
        before = sorted(empty_folder.iterdir())
        monkeypatch.setattr(sys, "argv", ["loadgen", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        captured = capsys.readouterr()
        return _one_line(end.value.code, captured.err, before, sorted(empty_folder.iterdir()))

    return run


def _one_line(status: object, stderr: str, before: list[Path], after: list[Path]) -> str:
    assert status == 2, stderr
    assert "Traceback" not in stderr
    assert stderr.startswith("loadgen: ")
    assert stderr.count("\n") == 1, stderr
    assert after == before, "wrong use left something behind"
    return stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["sweep", "--concurrency", "1,x"], "--concurrency: 'x' is not a valid batch size"),
        (["sweep", "--concurrency", "0"], "--concurrency: '0' is not a valid batch size"),
        (["sweep", "--repeats", "-3"], "--repeats -3"),
        (["sweep", "--target", "fp17=http://127.0.0.1:1"], "did you mean fp16?"),
        (["sweep", "--target", "fp16=http://h:1", "--target", "fp16=http://h:2"], "listed twice"),
        (["sweep", "--target", "fp16=http://127.0.0.1:1", "--dataset", "sample"], "127.0.0.1:1 does not answer"),
        (["sweep", "--data-file", "none.jsonl"], "--data-file none.jsonl: there is no such file"),
        (["sweep", "--serve", "fp16", "--model", "./none"], "--model ./none: there is no such folder"),
        (["sweep", "--serve", "fp61", "--model", "m"], "fp61"),
        (["sweep", "--no-such-option"], "has no option --no-such-option; see loadgen sweep --help"),
        (["swep"], "loadgen has no command 'swep'; did you mean sweep?"),
        (["report", "."], ". is not a run directory: it has no manifest.json"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_as_a_user_sees_it(empty_folder: Path, arguments: list[str], said: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "loadgen", *arguments], capture_output=True, text=True, check=False, timeout=60
    )
    assert said in _one_line(ended.returncode, ended.stderr, [], sorted(empty_folder.iterdir()))
    assert ended.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["sweep", "--limit", "abc"], "--limit abc: not a whole number; write digits only"),
        (["sweep", "--limit", "1.5"], "--limit 1.5: not a whole number"),
        (["sweep", "--duration", "long"], "--duration long: not a time; write seconds, or a number with its unit"),
        (["sweep", "--duration", "nan"], "--duration nan"),
        (["sweep", "stray"], "unexpected extra argument"),
        (["sweep", "--target"], "--target requires an argument: --target NAME=URL"),
        (["sweep", "--dataset", "mmlu"], "unknown dataset 'mmlu'; known: gsm8k, mathqa, "),
        (["sweep", "--dataset", "mathqa", "--data-file", "no.json"], "--data-file no.json: there is no such file"),
        (["sweep", "--dataset", "jsonl"], "--dataset jsonl needs --data-file"),
        (["sweep", "--dataset", "sample", "--protocol", "mathqa_gen_v1"], "asks for a letter, but answers of"),
        (["data", "fetch", "mmlu"], "'mmlu' is not a published dataset; known: gsm8k, mathqa"),
        (["data", "fetch"], "Missing argument 'NAME...'; write it, as in loadgen data fetch gsm8k"),
        (["sweep", "--dataset", "sample", "--data-file", "x"], "needs --dataset gsm8k"),
        (["sweep", "--protocol", "cot"], "unknown protocol 'cot'; known: gsm8k, gsm8k_fixed, "),
        (["sweep", "--protocol", "gsm8k", "--shots-file", "no.jsonl"], "--shots-file no.jsonl: there is no such file"),
        (["sweep", "--data-file", "."], "--data-file .: it is not a regular file"),
        (["sweep", "--target", "fp16=http://h:1", "--serve", "fp16"], "exclude each other"),
        (["sweep", "--arrival", "poisson:3/m"], "--arrival poisson:3/m: '3/m' is not a rate; give requests per second"),
        (["sweep", "--slo", "ttft:200"], "ttft is given '200'; write a time above 0 with its unit"),
        (["sweep", "--power", "nvml"], "--power nvml measures a real machine"),
        (["sweep", "--power", "watts"], "--power watts: unknown; write auto or nvml or rapl or simulated or none"),
        (
            ["sweep", "--power", "exporter=here"],
            "--power exporter: 'here' has no port; write it, as in http://here:9401",
        ),
        (["sweep", "--tdp-w", "-700"], "--tdp-w -700"),
        (["sweep", "--carbon", "nan"], "--carbon nan"),
        (["sweep", "--gpu", "GPU-1,GPU-1"], "--gpu GPU-1,GPU-1: name each GPU's UUID once"),
        (["sweep", "--resume", "x"], "x is not a run directory: it has no manifest.json"),
        (["sweep", "--api-key-env", "NO_SUCH_VARIABLE"], "NO_SUCH_VARIABLE"),
        (["sweep", "--seed", "99999999999999999999"], "--seed 99999999999999999999"),
        (["sweep", "--config", "none.yaml"], "--config none.yaml: cannot be read as YAML"),
        (["report"], "Missing argument 'RUN'; write it, as in loadgen report runs/"),
        (["report", "none"], "none is not a run directory"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_one_line_names_the_mistake(refused: Callable[..., str], arguments: list[str], said: str) -> None:
    assert said in refused(*arguments)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [1", "cannot be read as YAML"),
        ("- 1\n- 2", "write a mapping of option names to values"),
        ("concurency: 1", "'concurency' is not an option of loadgen sweep; did you mean concurrency?"),
        ("config: other.yaml", "'config' is not an option of loadgen sweep"),
        ("limit: 2.5", "--limit 2.5: not a whole number"),
        ("repeats: true", "--repeats True: not a whole number"),
        ("concurrency: [1, 1]", "1 is listed twice"),
        ("target: 5", "write NAME=URL"),
        ("target: {fp16: null}", "is not a server URL"),
    ],
)
def test_a_wrong_config_file_is_one_line(refused: Callable[..., str], empty_folder: Path, text: str, said: str) -> None:
    (empty_folder / "sweep.yaml").write_text(text)
    assert said in refused("sweep", "--config", "sweep.yaml")


def test_bytes_that_are_no_text_are_no_config(refused: Callable[..., str], empty_folder: Path) -> None:
    (empty_folder / "sweep.yaml").write_bytes(b"\xff\xfe\x00")
    assert "cannot be read as YAML" in refused("sweep", "--config", "sweep.yaml")


def test_a_data_file_of_another_kind_is_named_by_its_line(refused: Callable[..., str], empty_folder: Path) -> None:
    (empty_folder / "rows.jsonl").write_text('{"prompt": "no question"}\n')
    assert "rows.jsonl, line 1, is not a GSM8K row" in refused("sweep", "--data-file", "rows.jsonl")


def test_a_run_directory_that_is_not_empty_is_left_alone(refused: Callable[..., str], empty_folder: Path) -> None:
    (empty_folder / "old").mkdir()
    (empty_folder / "old" / "manifest.json").write_text("precious")
    assert "--out old: exists already and is not empty" in refused("sweep", "--out", "old")
    assert [path.name for path in (empty_folder / "old").iterdir()] == ["manifest.json"]


def test_a_run_directory_that_cannot_be_made_is_one_line(refused: Callable[..., str], empty_folder: Path) -> None:
    (empty_folder / "file").touch()
    assert "--out file: exists already" in refused("sweep", "--out", "file")
    assert "--out file/run: cannot be written" in refused("sweep", "--out", "file/run")


@pytest.mark.parametrize("manifest", ["{", "[]", '{"schema": 99}', "{}"])
def test_a_manifest_that_is_none_is_one_line(refused: Callable[..., str], empty_folder: Path, manifest: str) -> None:
    (empty_folder / "run").mkdir()
    (empty_folder / "run" / "manifest.json").write_text(manifest)
    assert "run/manifest.json" in refused("report", "run")


class Page(BaseHTTPRequestHandler):
    """A web server that is no model server."""

    answers: ClassVar[dict[str, tuple[int, bytes]]] = {
        "/a/v1/models": (200, b"<html>hello</html>"),
        "/b/v1/models": (200, b'{"data": []}'),
        "/c/v1/models": (200, json.dumps({"data": [{"id": "served"}]}).encode()),
        "/d/v1/models": (401, b"no"),
        "/f/v1/models": (200, b'{"data": [{"id": 5}]}'),
    }

    def do_GET(self) -> None:
        if self.path.startswith("/e/"):
            self.wfile.write(b"SSH-2.0-x\r\n")
            return
        status, body = self.answers.get(self.path, (404, b""))
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def web() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("path", "options", "said"),
    [
        ("/a", [], "/v1/models is not a model list"),
        ("/b", [], "serves no model"),
        ("/c", ["--model", "other"], "serves served, not other"),
        ("/d", [], "give the key with --api-key-env VAR"),
        ("/e", [], "does not answer"),
        ("/f", ["--model", "other"], "serves 5, not other"),
        ("/nowhere", [], "answers 404 Not Found at /v1/models"),
    ],
)
def test_a_server_of_another_kind_is_refused_before_anything_is_created(
    refused: Callable[..., str], web: str, path: str, options: list[str], said: str
) -> None:
    said_line = refused("sweep", "--target", f"fp16={web}{path}", "--dataset", "sample", *options)
    assert said in said_line
    assert "target fp16" in said_line


def test_a_dry_run_creates_nothing(empty_folder: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "loadgen", "sweep", "--dry-run", "--concurrency", "1,8", "--repeats", "2"],
        capture_output=True, text=True, check=False, timeout=60, env={**os.environ, "COLUMNS": "100"},
    )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "16 cells" in ended.stdout
    assert list(empty_folder.iterdir()) == []


def test_a_url_of_the_wrong_scheme_or_without_its_port_says_what_to_write(
    refused: Callable[..., str], web: str
) -> None:
    dataset = ("--dataset", "sample")
    tls = web.replace("http://", "https://")
    assert f"does not speak TLS; write {web}" in refused("sweep", "--target", f"fp16={tls}", *dataset)
    nobody = refused("sweep", "--target", "fp16=http://127.255.0.9", *dataset)
    assert "http://127.255.0.9 (no port in the URL; vLLM's is 8000) does not answer" in nobody
