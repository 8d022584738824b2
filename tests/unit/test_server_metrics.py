"""A server's /metrics page as one sample."""

from __future__ import annotations

from loadgen.serving.metrics import read_metrics

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


def test_engines_add_up_and_the_kv_usage_is_the_fullest_ones() -> None:
    sample = read_metrics(PAGE, t_ns=5, scrape_ns=2)
    assert (sample.t_ns, sample.scrape_ns) == (5, 2)
    assert (sample.running, sample.kv_usage, sample.generation_tokens) == (15.0, 0.75, 1.5e6)


def test_the_histogram_of_first_tokens_is_its_count_and_its_sum() -> None:
    sample = read_metrics(PAGE, t_ns=0, scrape_ns=0)
    assert (sample.ttft_count, sample.ttft_sum_s) == (10.0, 0.875)


def test_what_a_server_does_not_tell_is_none() -> None:
    sample = read_metrics(b"vllm:num_requests_running 1\n", t_ns=0, scrape_ns=0)
    assert (sample.running, sample.waiting, sample.iterations) == (1.0, None, None)
    assert (sample.ttft_count, sample.ttft_sum_s) == (None, None)
