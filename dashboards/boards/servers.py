"""Servers: vLLM by its own metrics, a series per target."""

from __future__ import annotations

from boards.dashboard import TARGET, dashboard
from boards.panel import RATE, Json, Query, lines, stat, steps, table, words

ONE = '{target=~"$target"}'


def gauge(metric: str) -> Query:
    return Query(f"sum by (target) (vllm:{metric}{ONE})", "{{target}}")


def rate(metric: str) -> str:
    return f"sum by (target) (rate(vllm:{metric}{ONE}{RATE}))"


def quantiles(metric: str) -> tuple[Query, ...]:
    buckets = f"sum by (le, target) (rate(vllm:{metric}_bucket{ONE}{RATE}))"
    return tuple(
        Query(f"histogram_quantile({share}, {buckets})", f"{{{{target}}}} p{name}")
        for share, name in ((0.5, "50"), (0.9, "90"), (0.99, "99"))
    )


def servers() -> Json:
    """The dashboard."""
    head = [
        stat("Up", "up: whether the last scrape of the server's /metrics came back.", "none",
             Query('up{job="servers", target=~"$target"}', "{{target}}"), w=12,
             mappings=words(_1=("up", "green"), _0=("down", "red")), thresholds=steps((None, "red"), (1, "green"))),
        stat("Running", "vllm:num_requests_running.", "none", gauge("num_requests_running"), w=4),
        stat("Waiting", "vllm:num_requests_waiting: above 0 the server does not take the batch.", "none",
             gauge("num_requests_waiting"), w=4, thresholds=steps((None, "green"), (1, "red"))),
        stat("Preemptions", "Increase of vllm:num_preemptions_total over the range: the KV cache is too small.", "none",
             Query(f"sum by (target) (increase(vllm:num_preemptions_total{ONE}[$__range]))", "{{target}}"), w=4,
             thresholds=steps((None, "green"), (1, "red"))),
    ]  # fmt: skip
    batch = [
        lines("Running and waiting", "vllm:num_requests_running and vllm:num_requests_waiting.", "none",
              Query(gauge("num_requests_running").expr, "{{target}} running"),
              Query(gauge("num_requests_waiting").expr, "{{target}} waiting")),
        lines("Sequences per step", "Rate of vllm:generation_tokens_total over that of "
              "vllm:iteration_tokens_total_count (engine steps): the batch that really ran.", "none",
              Query(f"{rate('generation_tokens_total')} / ({rate('iteration_tokens_total_count')} > 0)", "{{target}}")),
        lines("KV cache in use", "vllm:kv_cache_usage_perc, 1 is all.", "percentunit",
              Query(f"max by (target) (vllm:kv_cache_usage_perc{ONE})", "{{target}}"), min=0, max=1),
        lines("Engine steps", "Rate of vllm:iteration_tokens_total_count.", "suffix: /s",
              Query(rate("iteration_tokens_total_count"), "{{target}}")),
    ]  # fmt: skip
    work = [
        lines("Generated tokens", "Rate of vllm:generation_tokens_total.", "suffix: tok/s",
              Query(rate("generation_tokens_total"), "{{target}}")),
        lines("Prompt tokens", "Rate of vllm:prompt_tokens_total.", "suffix: tok/s",
              Query(rate("prompt_tokens_total"), "{{target}}")),
        lines("Finished requests", "Rate of vllm:request_success_total by finished_reason.", "reqps",
              Query(f"sum by (target, finished_reason) (rate(vllm:request_success_total{ONE}{RATE}))",
                    "{{target}} {{finished_reason}}")),
        lines("Time in the queue", "Mean of vllm:request_queue_time_seconds: near 0 while the server takes the batch.",
              "s", Query(f"{rate('request_queue_time_seconds_sum')} / ({rate('request_queue_time_seconds_count')} > 0)",
                         "{{target}}")),
    ]  # fmt: skip
    latency = [
        lines("Time to first token", "Quantiles of vllm:time_to_first_token_seconds, by the server's clock.", "s",
              *quantiles("time_to_first_token_seconds")),
        lines("Inter-token latency", "Quantiles of vllm:inter_token_latency_seconds.", "s",
              *quantiles("inter_token_latency_seconds")),
        lines("End-to-end latency", "Quantiles of vllm:e2e_request_latency_seconds.", "s",
              *quantiles("e2e_request_latency_seconds")),
        table("KV cache settings", "vllm:cache_config_info: must be equal for a fair comparison.", "none",
              Query(f"vllm:cache_config_info{ONE}", table=True)),
    ]  # fmt: skip
    return dashboard(
        "loadgen-servers",
        "loadgen · Servers (vLLM)",
        "Each server's own figures; several engines of one server are added up.",
        [("Now", head), ("Batch", batch), ("Work", work), ("Latency", latency)],
        [TARGET],
    )
