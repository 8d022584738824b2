"""Prefix caching: no request profits from an earlier one unless asked, and hits are told."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest

from loadgen.analysis.cells import summarize_cell
from loadgen.analysis.warnings import hit_warnings, share_marks
from loadgen.errors import UsageError
from loadgen.load.body import RequestMaker, RequestSettings
from loadgen.load.load import Share
from loadgen.load.worker import Assignment
from loadgen.measure.config import configure
from loadgen.serving.metrics import read_metrics
from loadgen.serving.recipe import fair_settings
from loadgen.workload.protocol import load_protocol
from loadgen.workload.questions import sample_items, warmup_items
from tests.unit.made_run import answer, cell_data, scrape

ITEM = sample_items()[0]
OTHER = warmup_items()[0]


def maker(**options: Any) -> RequestMaker:
    protocol = load_protocol("sample")
    return RequestMaker(RequestSettings(protocol=protocol, model="m", seed=0, max_tokens=64, **options))


def salt_of(body: bytes) -> str:
    salt: str = json.loads(body)["cache_salt"]
    return salt


class TestSalts:
    def test_no_two_requests_share_one(self) -> None:
        one, other = maker(), maker()
        made = [one.measured(ITEM), one.measured(ITEM), one.warmup(OTHER), other.measured(ITEM), other.measured(ITEM)]
        assert len({salt_of(request.body) for request in made}) == len(made)
        assert all(salt_of(request.body) for request in made), "vLLM refuses an empty one"

    def test_nothing_else_differs_between_two_requests_of_an_item(self) -> None:
        ours = maker()
        first, again = (json.loads(ours.measured(ITEM).body) for _ in range(2))
        assert first | {"cache_salt": ""} == again | {"cache_salt": ""}

    def test_requests_that_share_the_cache_on_purpose_have_the_cells_salt(self) -> None:
        ours = maker(cache_salt="cell-1", prefix_cache=True)
        assert {salt_of(request.body) for request in (ours.measured(ITEM), ours.warmup(OTHER))} == {"cell-1"}

    @pytest.mark.parametrize(("prefix_cache", "salts"), [(False, 4), (True, 1)])
    def test_processes_of_a_cell_do_not_meet_in_the_cache_unless_asked(self, prefix_cache: bool, salts: int) -> None:
        found = set()
        for first in range(2):
            assignment = Assignment(
                url="http://127.0.0.1:1", model="m", api_key=None, transport="raw", timeout_s=1.0,
                protocol=load_protocol("sample"), seed=0, max_tokens=8, fixed_length=None, thinking=None,
                items=tuple(sample_items()), warmup_items=tuple(warmup_items()), concurrency=2, requests=None,
                share=Share(first, 2), cache_salt="cell-1", prefix_cache=prefix_cache,
            )  # fmt: skip
            requests = assignment.maker()
            found |= {salt_of(requests.measured(ITEM).body) for _ in range(2)}
        assert len(found) == salts


class TestHitShare:
    def test_counters_of_the_server_give_it_over_the_window(self, tmp_path) -> None:  # type: ignore[no-untyped-def]
        samples = [scrape(t, prefix_cache_queries=q, prefix_cache_hits=h)
                   for t, q, h in [(500, 100, 90), (1100, 200, 100), (1900, 600, 300), (2500, 9000, 9000)]]  # fmt: skip
        row = summarize_cell(cell_data(tmp_path, [], samples), [])
        assert row.cache_hit_share == pytest.approx(200 / 400), "what was read outside the window does not count"

    def test_a_server_whose_cache_is_off_has_none(self, tmp_path) -> None:  # type: ignore[no-untyped-def]
        samples = [scrape(t, prefix_cache_queries=0, prefix_cache_hits=0) for t in (1100, 1900)]
        assert summarize_cell(cell_data(tmp_path, [], samples), []).cache_hit_share == 0

    def test_without_counters_usage_gives_it(self, tmp_path) -> None:  # type: ignore[no-untyped-def]
        answers = [answer(1000, [(1100, 1)], prompt_tokens=50, cached_tokens=48),
                   answer(1100, [(1200, 1)], prompt_tokens=50, cached_tokens=None)]  # fmt: skip
        row = summarize_cell(cell_data(tmp_path, answers), [None, None])
        assert row.cache_hit_share == pytest.approx(0.48), "a server may leave the field out where nothing was cached"

    def test_where_nothing_tells_it_is_empty(self, tmp_path) -> None:  # type: ignore[no-untyped-def]
        row = summarize_cell(cell_data(tmp_path, [answer(1000, [(1100, 1)])], [scrape(1500, running=1)]), [None])
        assert row.cache_hit_share is None

    def test_hits_in_an_external_cache_are_hits(self) -> None:
        page = (
            b'vllm:prefix_cache_queries_total{engine="0"} 100\nvllm:prefix_cache_hits_total{engine="0"} 10\n'
            b'vllm:external_prefix_cache_queries_total{engine="0"} 90\n'
            b'vllm:external_prefix_cache_hits_total{engine="0"} 30\n'
        )
        sample = read_metrics(page, t_ns=0, scrape_ns=1)
        assert (sample.prefix_cache_queries, sample.prefix_cache_hits) == (100, 40)


@dataclass
class Cached:
    target: str
    concurrency: int
    repeat: int
    cache_hit_share: float | None

    @property
    def load(self) -> str:
        return f"B = {self.concurrency}"


class TestMarks:
    def test_arms_that_differ_by_two_points_are_comparable(self) -> None:
        cells = [Cached("fp16", 4, 1, 0.50), Cached("awq", 4, 1, 0.52)]
        assert share_marks(cells, "fp16") == {"fp16": [], "awq": []}

    def test_arms_that_differ_by_more_are_marked(self) -> None:
        cells = [Cached("fp16", 4, 1, 0.50), Cached("awq", 4, 1, 0.53), Cached("gptq", 4, 1, None)]
        marks = share_marks(cells, "fp16")
        assert marks["awq"] == ["B = 4: awq took 53.0% of its prompt tokens from the prefix cache, fp16 50.0%"]
        assert "gptq" not in marks, "nothing is known of it"

    def test_uneven_repeats_of_the_reference_mark_everybody(self) -> None:
        cells = [Cached("fp16", 4, 1, 0.0), Cached("fp16", 4, 2, 0.9),
                 Cached("awq", 4, 1, 0.45), Cached("awq", 4, 2, 0.45)]  # fmt: skip
        [mark] = share_marks(cells, "fp16")["awq"]
        assert mark == "fp16, B = 4: its repeats took 0.0 to 90.0% of their prompt tokens from the prefix cache"

    def test_hits_in_spite_of_the_salts_are_one_sentence(self) -> None:
        assert hit_warnings([Cached("fp16", 4, 1, 0.0), Cached("fp16", 4, 2, None)]) == []
        [said] = hit_warnings([Cached("fp16", 4, 1, 0.25), Cached("awq", 4, 2, 0.48)])
        assert "2 cells" in said
        assert "48.0% of the prompt tokens (awq, B = 4, repeat 2)" in said
        assert "--no-enable-prefix-caching" in said


def test_launched_servers_cache_only_when_asked() -> None:
    assert "--no-enable-prefix-caching" in fair_settings().args
    caching = fair_settings().caching_prefixes()
    assert "--enable-prefix-caching" in caching.args
    assert "--no-enable-prefix-caching" not in caching.args
    assert "enable_prefix_caching=True" in caching.expect


def test_simulated_servers_have_no_prefix_cache() -> None:
    with pytest.raises(UsageError, match="--prefix-cache needs --serve or --target"):
        configure(prefix_cache=True)
