"""`loadgen plan`: items, power, minutes; one line for a mistake."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from loadgen.cli.plan import command
from loadgen.errors import UsageError


def said(arguments: str) -> str:
    result = CliRunner().invoke(command, arguments.split(), catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def test_it_says_how_many_items_the_papers_drop_needs() -> None:
    text = said("--accuracy-delta 0.0372 --discordance 0.12")
    assert "needed                719 items" in text
    assert "GSM8K, 1319 items     power 97%; at 80% power they show 2.73 pp or more" in text
    assert "MathQA, 2985 items    power over 99%" in text
    assert "24, 4.79, 1.2 at 1, 5, 20 answers per second" in text


def test_a_loss_may_be_written_as_a_negative_number() -> None:
    assert said("--accuracy-delta -0.0372") == said("--accuracy-delta 0.0372")


def test_the_power_asked_for_counts() -> None:
    assert "needed                943 items" in said("--accuracy-delta 0.0372 --discordance 0.12 --power 0.9")


def test_own_number_of_items_stands_first() -> None:
    lines = said("--accuracy-delta 0.0372 --discordance 0.15 --items 200").splitlines()
    assert any("200 items" in line and "7.94 pp or more" in line for line in lines)


def test_it_says_when_the_items_show_nothing() -> None:
    assert "they show no difference" in said("--accuracy-delta 0.02 --discordance 0.05 --items 20")


def test_equivalence() -> None:
    text = said("--equivalence-margin 0.01 --discordance 0.02")
    assert "needed                1901 items" in text
    assert "they show 1.22 pp" in text


def test_minutes_of_both_sides() -> None:
    """719 items at 64 in flight of 6.4 s: 71.9 s a side; at 1500 tokens/s of 150 tokens likewise."""
    for speed in ("--concurrency 64 --seconds-per-query 6.4", "--tokens-per-s 1500 --tokens-per-answer 150"):
        text = said(f"--accuracy-delta 0.0372 --discordance 0.12 {speed}")
        assert "719 items, 2.4 minutes" in text
        assert "both sides" in text


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ("", "nothing to plan: give --accuracy-delta"),
        ("--accuracy-delta 0", "--accuracy-delta 0 is not between 0 and 1"),
        ("--accuracy-delta 3.72", "--accuracy-delta 3.72 is not between 0 and 1"),
        ("--accuracy-delta nan", "--accuracy-delta nan"),
        ("--accuracy-delta 0.2 --discordance 0.1", "--discordance 0.1 is below --accuracy-delta 0.2"),
        ("--accuracy-delta 0.02 --discordance 15", "--discordance 15 is not between 0 and 1"),
        ("--accuracy-delta 0.02 --power 80", "--power 80 is not between 0 and 1"),
        ("--accuracy-delta 0.02 --power 0.04", "--power 0.04 is not above --alpha 0.05"),
        ("--accuracy-delta 0.02 --alpha 0.5", "--alpha 0.5 is not between 0 and 0.5"),
        ("--equivalence-margin 2", "--equivalence-margin 2 is not between 0 and 1"),
        ("--accuracy-delta 0.02 --items 0", "--items 0"),
        (
            "--accuracy-delta 0.02 --concurrency 0 --seconds-per-query 1",
            "--concurrency 0: give a finite number above zero",
        ),
        ("--accuracy-delta 0.02 --tokens-per-s inf --tokens-per-answer 1", "--tokens-per-s inf"),
        ("--accuracy-delta 0.02 --concurrency 8", "no time follows from --concurrency"),
        ("--accuracy-delta 0.02 --concurrency 8 --tokens-per-s 5", "no time follows from --concurrency and --tokens"),
    ],
)
def test_a_wrong_value_is_named(arguments: str, what: str) -> None:
    with pytest.raises(UsageError) as error:
        CliRunner().invoke(command, arguments.split(), catch_exceptions=False)
    assert what in str(error.value)
    assert "\n" not in str(error.value)


def test_what_a_search_takes_beside_a_grid() -> None:
    """Two sides at five batches, then six repeats of a cell and a start on each: 22 cells and 14 starts of a minute."""
    text = said("--find tokens_per_s --seconds-per-cell 60 --seconds-per-start 60")
    assert "6 repeats, 22 cells, 14 starts: 36 minutes" in text
    assert "160 cells, 20 starts: 180 minutes" in text
    assert "--noise RUN" in text


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ("--find tokens", "known: tokens_per_s"),
        ("--find tokens_per_s --range 9:3", "--range 9:3"),
        ("--find tokens_per_s --noise /nowhere", "/nowhere"),
    ],
)
def test_a_wrong_search_is_refused(arguments: str, what: str) -> None:
    with pytest.raises(UsageError, match=what):
        CliRunner().invoke(command, arguments.split(), catch_exceptions=False, standalone_mode=False)
