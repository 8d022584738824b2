"""Precisions side by side: every figure over B, a curve per precision, from the cells that have ended."""

from __future__ import annotations

from boards.dashboard import RUN, TARGET, dashboard
from boards.panel import COLOURS, Json, Query, by_batch, lines, table

LOAD = "Mean over the repeats with a valid load"
LATENCY = "Mean over the repeats with valid latencies"
JOULES = "Mean over the repeats with a valid energy"
ANSWERS = "Mean over the repeats with valid answers"


def at_batch(rule: str) -> str:
    """A recorded figure by asked B, as last known in the range; its run may be over."""
    chosen = '{run="$run", precision="PRECISION", target=~"$target"}'
    return f"avg by (concurrency) (last_over_time({rule}{chosen}[$__range]))"


def proceeding(title: str, metric: str, unit: str, more: str, usable: str) -> Json:
    """The same figure cell by cell, as the sweep proceeds; `usable` is the rule that says where it is valid."""
    valid = f'loadgen_ended_cell_{metric}{{run="$run", target=~"$target"}} and {usable}'
    query = Query(f"avg by (precision, concurrency) ({valid})", "{{precision}} B={{concurrency}}")
    return lines(title, f"loadgen_ended_cell_{metric} where {usable}: {more}", unit, query, h=9)


def precisions() -> Json:
    """The dashboard."""
    curves = [
        by_batch("Energy per query over B", f"batch:energy_per_query_joules:mean. {JOULES}; the GPUs' power over "
                 "tokens per second, times tokens per answer. Where two curves cross lies B*: the report places it and "
                 "says how sure that is.", "joule", at_batch("batch:energy_per_query_joules:mean")),
        by_batch("Energy per token over B", f"batch:energy_per_token_joules:mean. {JOULES}.", "joule",
                 at_batch("batch:energy_per_token_joules:mean")),
        by_batch("Output tokens/s over B", f"batch:output_tokens_per_second:mean. {LOAD}.", "suffix: tok/s",
                 at_batch("batch:output_tokens_per_second:mean")),
        by_batch("COR over B", "batch:cor:ratio: tokens/s of FP16 (or BF16) over tokens/s, less 1, at the same B held "
                 "(arXiv 2602.13595, Eq. 9). Above 0 the precision is slower; the 16-bit one has none.", "none",
                 at_batch("batch:cor:ratio")),
        by_batch("Tokens per joule over B", f"batch:tokens_per_joule:mean. {JOULES}.", "suffix: tok/J",
                 at_batch("batch:tokens_per_joule:mean")),
        by_batch("Accuracy over B", f"batch:accuracy_ratio:mean. {ANSWERS}; no interval here, the report has it.",
                 "percentunit", at_batch("batch:accuracy_ratio:mean")),
        by_batch("Power over B", f"batch:power_watts:mean. {JOULES}.", "watt", at_batch("batch:power_watts:mean")),
        by_batch("Running over B", f"batch:running_requests:mean. {LOAD}; running_mean of cells.csv: near the "
                 "diagonal.", "none", at_batch("batch:running_requests:mean")),
        by_batch("TTFT over B", f"batch:ttft_seconds:mean. {LATENCY}.", "s", at_batch("batch:ttft_seconds:mean")),
        by_batch("TPOT over B", f"batch:tpot_seconds:mean. {LATENCY}.", "s", at_batch("batch:tpot_seconds:mean")),
    ]  # fmt: skip
    course = [
        proceeding("Energy per query as the sweep proceeds", "energy_per_query_joules", "joule",
                   "by precision and B, of cells with a valid energy.", "cell:energy_usable:bool"),
        proceeding("Output tokens/s as the sweep proceeds", "output_tokens_per_second", "suffix: tok/s",
                   "by precision and B, of cells with a valid load.", "cell:usable:bool"),
    ]  # fmt: skip
    quantised = "|".join(name for name in COLOURS if name not in ("fp16", "bf16"))
    figures = [
        table("COR", "batch:cor:ratio, by precision and B.", "none",
              Query(f'last_over_time(batch:cor:ratio{{run="$run", target=~"$target", precision=~"{quantised}"}}'
                    "[$__range])", table=True), decimals=3),
        table("Energy per query", "batch:energy_per_query_joules:mean, by precision and B.", "joule",
              Query('last_over_time(batch:energy_per_query_joules:mean{run="$run", target=~"$target"}[$__range])',
                    table=True), decimals=3),
    ]  # fmt: skip
    return dashboard(
        "loadgen-precisions",
        "loadgen · Precisions side by side",
        "Curves over B as the sweep proceeds. Means of ended cells without intervals: the report has those and B*.",
        [("Over B", curves), ("Cell by cell", course), ("Figures", figures)],
        [RUN, TARGET],
    )
