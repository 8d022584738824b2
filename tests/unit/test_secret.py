"""What is a secret, and that no text keeps one."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from loadgen.load.exchange import Exchange, concealed
from loadgen.secret import MASK, Mask, is_secret, secrets_of, without_secrets
from loadgen.serving.launch import Launch
from loadgen.serving.process import ServerProcess, free_port

CANARY = "sk-canary-0123456789"
NONE: dict[str, str] = {}


@pytest.mark.parametrize("name", ["HF_TOKEN", "OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD", "--api-key"])
def test_names_that_say_so(name: str) -> None:
    assert is_secret(name)


@pytest.mark.parametrize(
    "name",
    ["TOKENIZERS_PARALLELISM", "HF_TOKEN_PATH", "AWS_ACCESS_KEY_ID", "VLLM_HTTP_TIMEOUT_KEEP_ALIVE", "--tokenizer",
     "--max-tokens", "--max-num-batched-tokens", "--ssl-keyfile", "--api-key-env", "PATH"],
)  # fmt: skip
def test_names_that_do_not(name: str) -> None:
    assert not is_secret(name)


def test_values_are_masked_wherever_they_stand() -> None:
    mask = Mask(CANARY, None, "short", environ={"HF_TOKEN": "hf_abcdef", "HOME": "/home/hf"})
    assert mask(f"a{CANARY}b, hf_abcdef, short, /home/hf") == "a***b, ***, short, /home/hf"
    assert mask.values("nothing") == "nothing"


def test_a_secret_within_another_does_not_leave_the_longer_ones_end() -> None:
    assert Mask("abcdef", "abcdefghi", environ=NONE)("abcdefghi") == "***"


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("http://me:pass@host:1/x", "http://***@host:1/x"),
        ("http://host:1/a@b", "http://host:1/a@b"),
        ("non-default args: {'api_key': ['first'], 'port': 1}", "non-default args: {'api_key': ['***'], 'port': 1}"),
        ("api_key='first'", "api_key='***'"),
        ("?access_token=first&limit=3", "?access_token=***&limit=3"),
        ("Authorization: Bearer abcdefgh", "Authorization: Bearer ***"),
        ("eos_token='<s>', max_tokens=3, key: 5", "eos_token='<s>', max_tokens=3, key: 5"),
        ("{'api_key': ['first', 'second'], 'hf_token': None}", "{'api_key': ['***'], 'hf_token': None}"),
        ("['serve', '--api-key', 'first', 'second', '--port', '1']", "['serve', '--api-key', '***', '--port', '1']"),
        ("['--api-key=first', '--port=1']", "['--api-key=***', '--port=1']"),
        ("vllm serve m --api-key first --port 1", "vllm serve m --api-key *** --port 1"),
        ('{"api_key": "first", "n": 1}', '{"api_key": "***", "n": 1}'),
        (r'"{\"api_key\": \"first\", \"n\": 1}"', r'"{\"api_key\": \"***\", \"n\": 1}"'),
        ("VLLM_API_KEY=first HOME=/root", "VLLM_API_KEY=*** HOME=/root"),
        (
            "environ({'HUGGING_FACE_HUB_TOKEN': 'first', 'HOME': '/root'})",
            "environ({'HUGGING_FACE_HUB_TOKEN': '***', 'HOME': '/root'})",
        ),
        ("AWS_SECRET_ACCESS_KEY=first AWS_ACCESS_KEY_ID=shown", "AWS_SECRET_ACCESS_KEY=*** AWS_ACCESS_KEY_ID=shown"),
        ("password='first part]', n=1", "password='***', n=1"),
        ("authorization: first", "authorization: ***"),
        (
            "[(b'authorization', b'Token first'), (b'x-api-key', b'second'), (b'host', b'h')]",
            "[(b'authorization', b'Token ***'), (b'x-api-key', b'***'), (b'host', b'h')]",
        ),
        ("https://host/file?Policy=a&Signature=first", "https://host/file?Policy=a&Signature=***"),
        (f"hf_{'a1' * 17} is refused", "*** is refused"),
        (
            "give the key with --api-key-env VAR; 'api_key', 'model'",
            "give the key with --api-key-env VAR; 'api_key', 'model'",
        ),
    ],
)
def test_what_has_the_form_of_a_secret_is_masked(text: str, masked: str) -> None:
    assert Mask(environ=NONE)(text) == masked


def test_a_secret_is_found_in_json_in_a_literal_and_in_a_url() -> None:
    mask = Mask("a'b\\c+d/é", environ=NONE)
    for text in (r""" a'b\c+d/é """, r""" a'b\\c+d/\u00e9 """, r""" a'b\\c+d/é """, " a%27b%5Cc%2Bd%2F%C3%A9 "):
        assert mask(text) == " *** "


@pytest.mark.parametrize(
    "text",
    ["api_key=['" * 7000, "--api-key', '" * 5000, "--" * 9**5 + "key", "api_key" + " " * 9**5, "A_" * 9**5 + "key"],
)  # fmt: skip
def test_a_text_that_is_made_to_be_slow_is_not(text: str) -> None:
    """Quadratic time would take minutes."""
    assert len(Mask(environ=NONE)(text)) <= len(text)


def test_programs_that_need_no_secret_do_not_get_one() -> None:
    environ = {
        "PATH": "/bin", "HF_TOKEN": CANARY, "COPY": CANARY, "MINE": f"x-{CANARY}2", "http_proxy": "http://me:pass@h:1",
        "DOCKER_HOST": "ssh://me@host", "EMPTY_TOKEN": "", "NOTHING": "", "HF_TOKEN_PATH": "/run/token",
    }  # fmt: skip
    assert without_secrets(environ, f"{CANARY}2", None) == {
        "PATH": "/bin", "DOCKER_HOST": "ssh://me@host", "NOTHING": "", "HF_TOKEN_PATH": "/run/token",
    }  # fmt: skip


def test_arguments_of_secret_options_are_masked_and_no_others() -> None:
    argv = ["vllm", "serve", "m", "--api-key", "a", "b", "--port", "1", "--hf-token=c", "--hf-token", "--seed", "0"]
    hidden = [4, 5]
    shown = [MASK if at in hidden else argument for at, argument in enumerate(argv)]
    shown[8] = "--hf-token=***"
    assert Mask(environ=NONE).argv(argv) == tuple(shown)
    assert secrets_of(argv, {"HF_TOKEN": "d", "PLAIN": "e"}) == ["a", "b", "c", "d"]


def test_variables_of_secret_names_are_masked() -> None:
    env = {"VLLM_API_KEY": "s", "HF_HUB_OFFLINE": "1", "HTTP_PROXY": "http://me:pass@p:1"}
    assert Mask(environ=NONE).env(env) == {
        "VLLM_API_KEY": "***", "HF_HUB_OFFLINE": "1", "HTTP_PROXY": "http://***@p:1",
    }  # fmt: skip


def test_the_command_that_is_shown_has_no_secret() -> None:
    argv = ("vllm", "serve", "m", "--api-key", CANARY, "--download-dir", "http://me:pass@h/")
    launch = Launch(name="x", precision="x", argv=argv, env={"HF_TOKEN": CANARY, "A": "1"}, port=1)
    assert shlex.split(launch.shell) == [
        "HF_TOKEN=***", "A=1", "vllm", "serve", "m", "--api-key", "***", "--download-dir", "http://***@h/",
    ]  # fmt: skip


def test_a_servers_log_never_holds_a_secret_and_is_for_its_owner_alone(tmp_path: Path) -> None:
    log = tmp_path / "servers" / "log"
    log.parent.mkdir(mode=0o755)
    log.write_text(f"of an earlier server: {CANARY}\n")
    log.chmod(0o644)
    program = (
        "import os, sys; print('args:', sys.argv, flush=True); sys.stdout.write('end'); sys.stdout.flush(); os._exit(1)"
    )
    argv = (sys.executable, "-c", program, "--api-key", CANARY)
    with ServerProcess(Launch(name="x", precision="x", argv=argv, port=free_port()), log) as server:
        while server.poll() is None:
            time.sleep(0.02)
        assert server.log() == "args: ['-c', '--api-key', '***']\nend"
        assert (log.stat().st_mode & 0o777, log.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert log.read_text() == "of an earlier server: ***\nargs: ['-c', '--api-key', '***']\nend"


def test_a_secret_in_pieces_is_one_all_the_same(tmp_path: Path) -> None:
    """Lines come in pieces where they are longer than a pipe's, or are written so."""
    program = f"import os, time\nos.write(1, b'key {CANARY[:9]}'); time.sleep(0.3); os.write(1, b'{CANARY[9:]}\\n')"
    argv = (sys.executable, "-c", program)
    launch = Launch(name="x", precision="x", argv=argv, env={"A_KEY": CANARY}, port=free_port())
    with ServerProcess(launch, tmp_path / "log") as server:
        while server.poll() is None:
            assert CANARY[:9] not in server.log()
        assert server.log() == "key ***\n"


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_only_the_server_that_needs_it_has_the_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", CANARY)
    argv = (sys.executable, "-c", "import time; time.sleep(600)")
    for checkpoint, having in ((None, 0), ("org/name", 1)):
        launch = Launch(name="x", precision="x", argv=argv, port=free_port(), checkpoint=checkpoint)
        with ServerProcess(launch, tmp_path / "log"):
            children = [path.parent for path in Path("/proc").glob("[0-9]*/stat") if _parent(path) == os.getpid()]
            assert len(children) == 2, "the server and its guardian"
            texts = [_once_there(child / name) for child in children for name in ("environ", "cmdline")]
            assert sum(CANARY.encode() in text for text in texts) == having


def _once_there(path: Path) -> bytes:
    """Linux shows nothing while a program takes the place of the one that started it."""
    while not (text := path.read_bytes()):
        time.sleep(0.01)
    return text


def _parent(stat: Path) -> int:
    try:
        return int(stat.read_text().rpartition(")")[2].split()[1])
    except OSError:
        return -1


def test_an_answer_keeps_what_it_says_of_passwords_but_no_key_of_ours() -> None:
    exchange = Exchange(
        slot=0, phase="measured", item_id="q", prompt_sha="0", t_send_ns=0, t_end_ns=1, status="http",
        error=f"401: Incorrect key {CANARY}, password: x", text=f"password: x {CANARY}", stop_reason=CANARY,
    )  # fmt: skip
    clean = concealed(exchange, Mask(CANARY, environ=NONE))
    assert clean.error == "401: Incorrect key ***, password: ***"
    assert (clean.text, clean.stop_reason) == ("password: x ***", "***")
    assert concealed(clean, Mask(CANARY, environ=NONE)) is clean


@pytest.mark.parametrize(
    "arguments",
    [
        ["serve", "awq", "--model", "mistralai/Mistral-7B-Instruct-v0.3", "--print", "--", "--api-key", CANARY],
        ["compose"],
        ["doctor", "--mode", "simulated", "--prometheus", f"http://me:{CANARY}@127.0.0.1:9/"],
        ["doctor", "--mode", "simulated", "--grafana", f"http://me:{CANARY}@127.0.0.1:9/", "--json"],
        ["sweep", "--target", f"fp16=http://me:{CANARY}@h:1"],
        ["sweep", "--target", f"fp16=http://me:{CANARY}@h:x"],
        ["sweep", "--power", f"exporter=http://me:{CANARY}@h:1"],
        ["sweep", "--api-key-env", CANARY],
    ],
    ids=lambda arguments: " ".join(arguments[:3]).replace(CANARY, "CANARY"),
)
def test_no_command_shows_one(arguments: list[str], tmp_path: Path) -> None:
    environment = {"HF_TOKEN": CANARY, "HF_ENDPOINT": f"http://me:{CANARY}@127.0.0.1:9", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-m", "loadgen", *arguments], capture_output=True, text=True, cwd=tmp_path,
        env={**environment, "HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert "canary" not in done.stdout + done.stderr
    assert "canary" not in "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
