"""A server's /metrics as one sample: whose names are known, which engines there are, who gets the key."""

from __future__ import annotations

import msgspec
import pytest

from loadgen.serving.exposition import ServerSample, gauge_lags
from loadgen.serving.metrics import MetricsProbe, MetricsSource, read_metrics
from tests.wild_server import Wild, serving, whole

PAGE = b"""# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 12.0
vllm:num_requests_running{engine="1",model_name="m"} 3.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.75
vllm:generation_tokens_total{engine="0",model_name="m"} 1.5e+06
vllm:generation_tokens_created{engine="0",model_name="m"} 1.76e+09
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.1",model_name="m"} 7.0
vllm:time_to_first_token_seconds_count{engine="0",model_name="m"} 8.0
vllm:time_to_first_token_seconds_count{engine="1",model_name="m"} 2.0
vllm:time_to_first_token_seconds_sum{engine="0",model_name="m"} 0.75
vllm:time_to_first_token_seconds_sum{engine="1",model_name="m"} 0.125
vllm:time_to_first_token_seconds_created{engine="0",model_name="m"} 1.76e+09
"""


def read(page: str, model: str | None = None) -> ServerSample:
    return read_metrics(page.encode(), t_ns=0, scrape_ns=0, model=model)


def test_engines_add_up_and_the_kv_usage_is_the_fullest_ones() -> None:
    sample = read_metrics(PAGE, t_ns=5, scrape_ns=2)
    assert (sample.t_ns, sample.scrape_ns) == (5, 2)
    assert (sample.running, sample.kv_usage, sample.generation_tokens) == (15.0, 0.75, 1.5e6)


def test_the_histogram_of_first_tokens_is_its_count_and_its_sum() -> None:
    sample = read_metrics(PAGE, t_ns=0, scrape_ns=0)
    assert (sample.ttft_count, sample.ttft_sum_s) == (10.0, 0.875)


def test_what_a_server_does_not_tell_is_none() -> None:
    sample = read("vllm:num_requests_running 1\n")
    assert (sample.running, sample.waiting, sample.iterations) == (1.0, None, None)
    assert (sample.ttft_count, sample.ttft_sum_s) == (None, None)


@pytest.mark.parametrize("prefix", ["vllm:", "vllm_", "ray_vllm_", "ray_vllm:", "team:gateway_vllm:", "", "nim_"])
def test_vllms_names_are_found_under_any_prefix(prefix: str) -> None:
    sample = read(
        f'{prefix}num_requests_running_by_reason{{reason="a"}} 99\n'
        f'{prefix}num_requests_running{{model_name="m",WorkerId="w, }}1",engine="0"}} 4 1764374400000\n'
        f"{prefix}generation_tokens_total 70\n{prefix}num_preemptions 2\n{prefix}kv_cache_usage_perc NaN\n"
    )
    assert (sample.running, sample.generation_tokens, sample.preemptions) == (4.0, 70.0, 2.0)
    assert sample.kv_usage is None


def test_a_counter_that_stands_there_with_and_without_total_counts_once() -> None:
    """Ray exports both."""
    page = "ray_vllm_num_requests_running 4\nray_vllm_generation_tokens 70\nray_vllm_generation_tokens_total 70\n"
    assert read(page).generation_tokens == 70.0


def test_series_that_stand_there_under_two_prefixes_count_once() -> None:
    assert read("vllm:num_requests_running 4\nray_vllm_num_requests_running 4\n").running == 4.0


@pytest.mark.parametrize(
    ("page", "running", "waiting", "tokens"),
    [
        ("sglang:num_running_reqs 4\nsglang:num_queue_reqs 1\nsglang:generation_tokens_total 70\n", 4, 1, 70),
        ("tgi_batch_current_size 4\ntgi_queue_size 1\ntgi_request_generated_tokens_sum 70\n", 4, 1, 70),
        ("llamacpp:requests_processing 4\nllamacpp:requests_deferred 1\nllamacpp:tokens_predicted_total 9\n", 4, 1, 9),
        ('lmdeploy:num_requests_running{engine="0"} 4\nlmdeploy:num_requests_waiting{engine="0"} 1\n', 4, 1, None),
        ("trtllm_num_requests_running 4\ntrtllm_num_requests_waiting 1\n", 4, 1, None),
    ],
)
def test_other_servers_have_other_names(page: str, running: int, waiting: int, tokens: int | None) -> None:
    sample = read(page)
    assert (sample.running, sample.waiting, sample.generation_tokens) == (running, waiting, tokens)
    assert sample.iterations is None


@pytest.mark.parametrize(
    ("gauge", "lags"),
    [("sglang:num_running_reqs", True), ("gateway_sglang_num_running_reqs", True), ("vllm:num_requests_running", False),
     ("tgi_batch_current_size", False), (None, False)],
)  # fmt: skip
def test_whose_gauge_is_seldom_set_is_known(gauge: str | None, lags: bool) -> None:
    assert gauge_lags(gauge) is lags


def test_a_page_of_something_else_tells_nothing() -> None:
    page = "litellm_requests_metric_total 70\nprompt_tokens_total 5\nprocess_open_fds 4\n"
    assert read(page) == ServerSample(t_ns=0, scrape_ns=0)


def test_tensor_parallel_ranks_are_one_engine_and_data_parallel_ones_are_several() -> None:
    line = 'sglang:num_running_reqs{{dp_rank="{dp}",model_name="m",tp_rank="{tp}"}} 4\n'
    assert read("".join(line.format(dp=dp, tp=tp) for dp in (0, 1) for tp in (0, 1))).running == 8.0


def test_every_engine_keeps_its_own_steps() -> None:
    page = "".join(
        f'vllm:{name}{{model_name="m",engine="{engine}"}} {value}\n'
        for name, values in (
            ("num_requests_running", (3, 2)),
            ("generation_tokens_total", (30, 20)),
            ("iteration_tokens_total_count", (10, 11)),
        )
        for engine, value in enumerate(values)
    )
    sample = read(page)
    engines = [msgspec.to_builtins(engine) for engine in sample.engines]
    assert engines == [["0", 3.0, 30.0, 10.0], ["1", 2.0, 20.0, 11.0]]
    assert (sample.running, sample.generation_tokens, sample.iterations) == (5.0, 50.0, 21.0)
    assert msgspec.json.decode(msgspec.json.encode(sample), type=ServerSample) == sample


def test_a_single_engine_is_told_by_the_totals_alone() -> None:
    page = 'vllm:iteration_tokens_total_count{engine="0"} 5\nvllm:num_requests_running{engine="0"} 1\n'
    assert read(page).engines == ()


def test_a_sample_of_a_journal_from_before_engines_were_told_apart_is_read() -> None:
    line = b'{"type":"server","t_ns":1,"scrape_ns":2,"running":4.0,"iterations":9.0}'
    assert msgspec.json.decode(line, type=ServerSample).engines == ()


def test_of_several_models_the_asked_one_counts_and_of_none_of_that_name_all() -> None:
    page = 'vllm:num_requests_running{model_name="a"} 4\nvllm:num_requests_running{model_name="b"} 3\n'
    assert read(page, "a").running == 4.0
    assert read(page, "an-adapter").running == 7.0, "vLLM counts the requests of adapters under the base model"


class Paged(Wild):
    """Serves one given page, to those with the key if there is one."""

    def __init__(self, page: str, key: str | None = None, **changes: object) -> None:
        super().__init__(**changes)
        self.page, self.key = page, key
        self.heads: list[str] = []

    def metrics(self, head: str) -> bytes:
        self.heads.append(head)
        if self.key is not None and f"authorization: bearer {self.key}" not in head.lower():
            return whole(401, {})
        return whole(200, self.page.encode())


def running(value: int) -> str:
    return f"vllm:num_requests_running {value}\nvllm:iteration_tokens_total_count {10 * value}\n"


def test_the_key_is_sent_to_the_targets_own_metrics_and_to_no_other_place() -> None:
    mine, elsewhere = Paged(running(4), "secret"), Paged(running(4))
    with serving(mine) as url, serving(elsewhere) as other:
        probe = MetricsProbe(MetricsSource(target_url=url, api_key="secret"))
        sample = probe.scrape()
        assert sample is not None
        assert (sample.running, probe.failure, probe.gauge) == (4.0, None, "vllm:num_requests_running")
        MetricsProbe(MetricsSource(target_url=url, urls=(f"{other}/metrics",), api_key="secret")).scrape()
    assert elsewhere.heads
    assert not any("authorization" in head.lower() for head in elsewhere.heads)


@pytest.mark.parametrize(
    ("api_key", "said"), [(None, "give the key with --api-key-env VAR"), ("wrong", "does not accept the key")]
)
def test_a_server_that_wants_a_key_is_said_to_want_one(api_key: str | None, said: str) -> None:
    with serving(Paged(running(4), "secret")) as url:
        probe = MetricsProbe(MetricsSource(target_url=url, api_key=api_key))
        assert probe.scrape() is None
        assert probe.failure is not None
        assert f"{url}/metrics answers 401" in probe.failure
        assert said in probe.failure


def test_a_page_without_a_batch_says_so() -> None:
    with serving(Paged("process_open_fds 4\n")) as url:
        probe = MetricsProbe(MetricsSource(target_url=url))
        sample = probe.scrape()
        assert sample is not None
        assert sample.running is None
        assert probe.failure == f"{url}/metrics counts no running requests under a name that loadgen knows"


def test_a_gauge_that_appears_with_the_first_request_is_found() -> None:
    """As TGI's."""
    server = Paged("tgi_request_count 0\n")
    with serving(server) as url:
        probe = MetricsProbe(MetricsSource(target_url=url))
        probe.scrape()
        server.page = "tgi_batch_current_size 3\n"
        sample = probe.scrape()
        assert sample is not None
        assert (sample.running, probe.failure) == (3.0, None)


def test_pages_of_several_engines_are_one_server_and_none_may_be_missing() -> None:
    one, two = Paged(running(4)), Paged(running(3))
    with serving({"one": one, "two": two}) as url:
        source = MetricsSource(target_url=url, urls=(f"{url}/one/metrics", f"{url}/two/metrics"))
        probe = MetricsProbe(source)
        sample = probe.scrape()
        assert sample is not None
        assert (sample.running, [engine.engine for engine in sample.engines]) == (7.0, ["0", "1"])
        two.key = "closed"
        assert probe.scrape() is None


def test_metrics_behind_a_slash_are_found() -> None:
    class Slashed(Paged):
        def metrics(self, head: str) -> bytes:
            if " /metrics/" in head:
                return super().metrics(head)
            return whole(307, {}, "Location: /metrics/\r\n")

    with serving(Slashed(running(4))) as url:
        sample = MetricsProbe(MetricsSource(target_url=url)).scrape()
        assert sample is not None
        assert sample.running == 4.0
