"""Notation: times, shares, lists, ranges, names and URLs mean the same on the command line, in YAML and in Python."""

from __future__ import annotations

import pytest

from loadgen.errors import UsageError
from loadgen.measure.config import configure
from loadgen.notation import did_you_mean, entries, number, numerals, server_url, spelled, without_endpoint
from loadgen.options import RunOptions, declared
from loadgen.power.simulated import Fault, parse_faults

URL = "http://localhost:8000"


@pytest.mark.parametrize(
    ("text", "unit", "value"),
    [
        ("60", "s", 60.0), ("60s", "s", 60.0), ("60 S", "s", 60.0), ("2m", "s", 120.0), ("1h", "s", 3600.0),
        ("1h30m", "s", 5400.0), ("1m 30s", "s", 90.0), ("500ms", "s", 0.5), ("35ms", "s", 0.035), ("90sec", "s", 90.0),
        ("2 minutes", "s", 120.0), ("20", "ms", 20.0), ("20ms", "ms", 20.0), ("0.02s", "ms", 20.0), ("90s", "min", 1.5),
        ("1e3", "s", 1000.0),
        ("0.1", "share", 0.1), ("10%", "share", 0.1), ("3.72 %", "share", 0.0372), ("3.72pp", "share", 0.0372),
        ("350W", "W", 350.0), ("350", "W", 350.0), ("80GiB", "GiB", 80.0), ("-5", "s", -5.0),
    ],
)  # fmt: skip
def test_a_number_is_in_the_unit_of_its_option(text: str, unit: str, value: float) -> None:
    assert number(text, unit) == value


@pytest.mark.parametrize(
    ("text", "unit"),
    [("", "s"), ("soon", "s"), ("10 parsecs", "s"), ("1m30", "s"), ("h", "s"), ("10%", "s"), ("10s", "share"),
     ("nan", "s"), ("inf", ""), ("1,5", ""), ("1_000", ""), ("10s", "W"), ("80GB", "GiB")],
)  # fmt: skip
def test_what_is_not_a_number_of_that_unit_is_refused(text: str, unit: str) -> None:
    with pytest.raises(ValueError):
        number(text, unit)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("1, 16, 64,", "1 16 64"), ("1 16 64", "1 16 64"), ("1-4", "1 2 3 4"), ("1..4,16", "1 2 3 4 16"),
        ("1..128x2", "1 2 4 8 16 32 64 128"), ("1-100x2", "1 2 4 8 16 32 64"), ("3..50*4", "3 12 48"),
        ("16..64+16", "16 32 48 64"), ("1..10+4", "1 5 9"), ("5-5", "5"), ("0.5,2", "0.5 2"),
    ],
)  # fmt: skip
def test_a_list_of_numbers_may_have_spaces_a_last_comma_and_ranges(text: str, numbers: str) -> None:
    assert numerals(text, "--concurrency") == numbers.split()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("4-1", "--concurrency: 4-1 has the larger number first; write 1-4"),
        ("1..9x1", "1..9x1 never grows"),
        ("0..9x2", "0..9x2 never grows"),
        ("1..9+0", "1..9+0 has too many numbers"),
        ("1-999999999", "1-999999999 has too many numbers; write 1..128x2 to double"),
    ],
)
def test_a_range_without_end_is_refused(text: str, said: str) -> None:
    with pytest.raises(UsageError) as error:
        numerals(text, "--concurrency")
    assert said in str(error.value)


def test_an_entry_that_is_missing_within_a_list_stays_visible() -> None:
    assert entries("fp16, awq,") == ["fp16", "awq"]
    assert entries("fp16,,awq") == ["fp16", "", "awq"]


def test_a_name_has_any_letter_case_and_any_separator_if_that_is_clear() -> None:
    known = ("fp16", "bnb-nf4", "gsm8k_cot")
    names = [spelled(name, known) for name in ("FP16", " fp-16 ", "BNB_NF4", "gsm8k-COT", "nf4")]
    assert names == ["fp16", "fp16", "bnb-nf4", "gsm8k_cot", "nf4"]
    assert spelled("a-b", ("ab", "a_b")) == "a-b", "two names that differ in nothing else"
    assert spelled("ab", ("ab", "a_b")) == "ab"
    assert did_you_mean("FP61", known) == "did you mean fp16? "


@pytest.mark.parametrize(
    ("typed", "base", "api"),
    [
        ("localhost:8000", URL, None), (f" {URL}/ ", URL, None), (f"{URL}/v1", URL, None), (f"{URL}/v1/", URL, None),
        (f"{URL}/v1/models", URL, None), (f"{URL}/v1/completions", URL, "completions"),
        ("localhost:8000/v1/chat/completions", URL, "chat"), ("[::1]:8000", "http://[::1]:8000", None),
        ("https://h/proxy/v1", "https://h/proxy", None), ("h:1/metrics", "http://h:1", None),
        ("h:1/v1/completions/", "http://h:1", "completions"),
    ],
)  # fmt: skip
def test_a_server_is_named_with_or_without_scheme_and_endpoint(typed: str, base: str, api: str | None) -> None:
    assert without_endpoint(server_url(typed, "--target")) == (base, api)


def test_the_endpoint_of_a_url_chooses_the_api_and_must_not_contradict() -> None:
    assert configure(targets={"fp16": f"{URL}/v1/chat/completions"}).api == "chat"
    assert configure(targets={"fp16": f"{URL}/v1"}).api is None
    with pytest.raises(UsageError, match="names the API chat; omit --api, or end the URL at /v1"):
        configure(targets={"fp16": f"{URL}/v1/chat/completions"}, api="completions")
    with pytest.raises(UsageError, match="name two APIs; end the URLs at /v1 and give --api"):
        configure(targets={"fp16": f"{URL}/v1/chat/completions", "awq": f"{URL}/v1/completions"})


def test_every_option_of_a_sweep_that_is_a_time_takes_units() -> None:
    times = [option for option in declared(RunOptions).values() if option.unit == "s"]
    assert {option.name for option in times} >= {
        "duration",
        "warmup",
        "drain",
        "timeout",
        "wait_ready",
        "start_timeout",
    }
    for option in times:
        assert option.read("1h") == 3600.0


def test_names_in_any_letter_case_make_the_same_config() -> None:
    config = configure(
        targets={"FP16": "localhost:1", "Mine:AWQ": "localhost:2"}, dataset="GSM8K", protocol="GSM8K-CoT", api="Chat",
        power="NVML", reference="mine", arrival="Poisson: 5, 10,", slo="TTFT: 200 ms, e2e:1m", thinking="ON",
    )  # fmt: skip
    assert [(spec.name, spec.precision, spec.url) for spec in config.targets] == [
        ("fp16", "fp16", "http://localhost:1"),
        ("Mine", "awq", "http://localhost:2"),
    ]
    assert (config.dataset, config.protocol, config.api, config.power) == ("gsm8k", "gsm8k_cot", "chat", "nvml")
    assert (config.reference, config.arrival, config.slo) == ("Mine", "poisson:5,10", "ttft:200ms,e2e:60s")
    assert config.thinking is not None
    assert config.thinking.on


def test_python_takes_one_number_texts_and_anything_that_can_be_listed() -> None:
    assert configure(concurrency=16).concurrency == (16,)
    assert configure(concurrency=range(1, 4)).concurrency == (1, 2, 3)
    assert configure(concurrency="1..8x2").concurrency == (1, 2, 4, 8)
    config = configure(duration="2m", max_error_rate="10%", start_sd="1.5%", timeout=5, thinking=None, repeats=2.0)  # type: ignore[arg-type]
    assert (config.duration_s, config.max_error_rate, config.start_sd, config.timeout_s) == (120.0, 0.1, 0.015, 5)
    assert config.repeats == 2


def test_a_fault_takes_units_too() -> None:
    assert parse_faults(["GAP@500ms:1m", "foreign@1:2s:90W"]) == (
        Fault(kind="gap", at_s=0.5, duration_s=60.0),
        Fault(kind="foreign", at_s=1.0, duration_s=2.0, watts=90.0),
    )
