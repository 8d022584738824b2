"""A selftest as lines of text."""

from __future__ import annotations

import msgspec

from loadgen.analysis.client import BUSY_SHARE
from loadgen.selftest.drive import FIRST_MS
from loadgen.selftest.selftest import Selftest
from loadgen.selftest.trial import IN_FLIGHT_SHARE, TTFT_MEAN_MS, TTFT_P99_MS


def selftest_lines(result: Selftest) -> list[str]:
    """What was tried, what came of it beside its limits, and the verdict."""
    t = result.trial
    processes = "one process" if t.workers == 1 else f"{t.workers} processes"
    lag = "" if t.loop_lag_ms_p90 is None else f"p90 {t.loop_lag_ms_p90:.0f} ms, p99 {t.loop_lag_ms_p99:.0f} ms"
    figures = [
        ("TTFT error", f"mean {t.ttft_error_ms_mean:+.2f} ms, p99 {t.ttft_error_ms_p99:.2f} ms",
         f"{TTFT_MEAN_MS:g} and {TTFT_P99_MS:g} ms"),
        ("ITL error", f"p99 {t.itl_error_ms_p99:.2f} ms", f"{t.itl_limit_ms:g} ms"),
        ("in flight", f"{t.inflight_share:.2%} of B, {t.served_share:.2%} by the server", f"{IN_FLIGHT_SHARE:.1%}"),
        ("CPU", f"{t.cpu_us_per_token:.1f} µs a token, {t.cpu_share:.0%} of a core", f"{BUSY_SHARE:.0%}"),
        ("event loop late", lag, ""),
    ]  # fmt: skip
    return [
        "The client of this machine against a server of known timing: no model, no GPU, no measurement of a server.",
        f"  B = {t.concurrency}, {t.tokens_per_s_asked:,.0f} tokens/s: TTFT {FIRST_MS:g} ms, a token to every stream "
        f"each {t.itl_ms:.3g} ms, {t.answer_tokens} an answer",
        f"  {processes}, transport {t.transport}, {t.window_s:g} s; {result.cores} cores, load average "
        f"{result.load_average:.1f}",
        *(f"  {name:<16}{value:<40}{f'limit {limit}' if limit else ''}".rstrip() for name, value, limit in figures),
        f"  {'its server':<16}p99 {t.server_error_ms_p99:.2f} ms off its ticks, {t.offered_share:.1%} of its tokens; "
        "not in the errors",
        result.sentence[:1].upper() + result.sentence[1:] + ".",
    ]


def selftest_json(result: Selftest) -> str:
    """Every figure of every trial, and the verdict."""
    content = {"sentence": result.sentence, "enough": result.enough, **msgspec.to_builtins(result)}
    return msgspec.json.format(msgspec.json.encode(content), indent=2).decode()
