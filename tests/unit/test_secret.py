"""What is a secret, and that no text keeps one."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from loadgen.client.concealment import concealed
from loadgen.client.exchange import Exchange
from loadgen.secret import MASK, Mask, is_secret, secrets_of
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
    ],
)
def test_what_has_the_form_of_a_secret_is_masked(text: str, masked: str) -> None:
    assert Mask(environ=NONE)(text) == masked


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


def test_a_servers_log_keeps_no_secret_once_it_has_stopped(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(f"of an earlier server: {CANARY}\n")
    argv = (sys.executable, "-c", "import sys; print('args:', sys.argv)", "--api-key", CANARY)
    launch = Launch(name="x", precision="x", argv=argv, port=free_port())
    with ServerProcess(launch, log) as server:
        server._group.leader.wait()
        assert CANARY in server.log()
        assert CANARY not in server.last_words()
    assert log.read_text() == f"of an earlier server: {CANARY}\nargs: ['-c', '--api-key', '***']\n"


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
