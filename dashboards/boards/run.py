"""Run: the cell that is measured now, and how far the run has come."""

from __future__ import annotations

from boards.dashboard import RUN, TARGET, dashboard
from boards.panel import RATE, Json, Query, lines, stat, steps, table

OF_RUN = 'and on (instance, job) loadgen_run_info{run="$run"}'
STARTED = 'loadgen_cell_start_timestamp_seconds{run="$run", target=~"$target"}'
NAMED = "{{target}} B={{concurrency}} repeat {{repeat}}"
VERDICTS = {
    "Load valid": "valid",
    "Latency valid": "latency_valid",
    "Energy valid": "energy_valid",
    "Answers valid": "answers_valid",
}
"""Of ended cells: a table's title, and its metric after `loadgen_ended_cell_`."""
VALID = steps((None, "red"), (1, "green"))


def now(metric: str, more: str = "") -> str:
    """A gauge of the running cell, of the chosen runs and targets."""
    return f'loadgen_{metric}{{target=~"$target"{more}}} {OF_RUN}'


def ended(metric: str) -> str:
    """A figure of every ended cell of the range, whether or not its run goes on."""
    return f'last_over_time(loadgen_ended_cell_{metric}{{run="$run", target=~"$target"}}[$__range])'


def mean_s(name: str) -> str:
    """Mean of a histogram of the sweep over the last scrapes."""
    of = f'sum(rate(loadgen_{name}_seconds_%s{{target=~"$target"}}{RATE}))'
    return f"{of % 'sum'} / ({of % 'count'} > 0)"


def quantile(share: float, name: str) -> Query:
    buckets = f'sum by (le, target) (rate(loadgen_{name}_seconds_bucket{{target=~"$target"}}{RATE}))'
    return Query(f"histogram_quantile({share:g}, {buckets})", f"{{{{target}}}} p{share * 100:g}")


def run() -> Json:
    """The dashboard. One cell runs at a time: `max` over its labels keeps one series from cell to cell."""
    batch = [
        Query(f"max({now('concurrency')})", "asked"),
        Query(f"max({now('requests_in_flight')})", "in flight"),
        Query(f"max({now('server_requests_running')})", "running"),
    ]
    cell = [
        stat("Cell", "The latest of loadgen_cell_start_timestamp_seconds: target, B and repeat that began last.",
             "none", Query(f"topk(1, last_over_time({STARTED}[$__range]))", NAMED, instant=True), w=6, text="name"),
        stat("Asked / in flight / running",
             "loadgen_concurrency, loadgen_requests_in_flight and loadgen_server_requests_running (the server's own "
             "gauge): a cell counts only where the three agree.", "none", *batch, w=6),
        stat("Tokens/s", "loadgen_output_tokens_per_second: of requests that ended in the window so far.",
             "suffix: tok/s", Query(f"max({now('output_tokens_per_second')})", "tokens/s")),
        stat("Power", "loadgen_power_watts: the target's GPUs together, instantaneous.", "watt",
             Query(f"max({now('power_watts')})", "power")),
        stat("Energy per token", "loadgen_energy_per_token_joules: power now over tokens per second, a glance.",
             "joule", Query(f"max({now('energy_per_token_joules')})", "energy per token"), decimals=4),
        stat("Accuracy so far", "loadgen_accuracy_ratio: share of loadgen_graded_answers that are correct.",
             "percentunit", Query(f"max({now('accuracy_ratio')})", "accuracy")),
    ]  # fmt: skip
    course = [
        stat("TTFT", "Mean of loadgen_ttft_seconds over the last scrapes: send to first token.", "s",
             Query(mean_s("ttft"), "TTFT")),
        stat("TPOT", "Mean of loadgen_tpot_seconds over the last scrapes: time per token after the first.", "s",
             Query(mean_s("tpot"), "TPOT")),
        stat("Cells", "loadgen_run_cells: valid, partly valid (the load is; latency, energy or answers are not) and "
             "invalid as in cells.csv, and left.", "none",
             Query('loadgen_run_cells{run="$run"}', "{{state}}"), w=6),
        stat("Time left", "loadgen_run_left_seconds, by the pace of the cells so far.", "s",
             Query('loadgen_run_left_seconds{run="$run"}', "left")),
        stat("This cell", "loadgen_cell_progress_ratio: share of its window that is over.", "percentunit",
             Query(f"max({now('cell_progress_ratio')})", "over")),
        stat("Invalid cells", "loadgen_run_cells, states invalid and partly_valid: the terminal and cells.csv say why.",
             "none", Query('loadgen_run_cells{run="$run", state=~"invalid|partly_valid"}', "{{state}}"),
             thresholds=steps((None, "green"), (1, "red"))),
        stat("Failed requests", "loadgen_requests_total with a status other than ok, over the range.", "none",
             Query('sum(increase(loadgen_requests_total{target=~"$target", status!="ok"}[$__range])) or vector(0)',
                   "failed"), thresholds=steps((None, "green"), (1, "red"))),
    ]  # fmt: skip
    over_time = [
        lines("Batch", "loadgen_concurrency, loadgen_requests_in_flight, loadgen_server_requests_running.", "none",
              *batch),
        lines("Output tokens", "Rate of loadgen_output_tokens_total: of all ended requests.", "suffix: tok/s",
              Query(f'sum by (target) (rate(loadgen_output_tokens_total{{target=~"$target"}}{RATE}))', "{{target}}")),
        lines("Time to first token", "Quantiles of the histogram loadgen_ttft_seconds: in the window.", "s",
              quantile(0.5, "ttft"), quantile(0.99, "ttft")),
        lines("Time per output token", "Quantiles of the histogram loadgen_tpot_seconds: in the window.", "s",
              quantile(0.5, "tpot"), quantile(0.99, "tpot")),
        lines("Power of the target", "loadgen_power_watts: the GPUs of the running cell's target.", "watt",
              Query(f"max by (target) ({now('power_watts')})", "{{target}}")),
        lines("Energy per token", "loadgen_energy_per_token_joules: power now over tokens per second.", "joule",
              Query(f"max by (target) ({now('energy_per_token_joules')})", "{{target}}")),
        lines("Accuracy so far", "loadgen_accuracy_ratio, of loadgen_graded_answers of the cell.", "percentunit",
              Query(f"max by (target) ({now('accuracy_ratio')})", "{{target}}"), min=0, max=1),
        lines("Ended requests", "Rate of loadgen_requests_total by status.", "reqps",
              Query(f'sum by (status) (rate(loadgen_requests_total{{target=~"$target"}}{RATE}))', "{{status}}")),
    ]  # fmt: skip
    verdicts = [
        *(table(title, f"loadgen_ended_cell_{metric}: 1 valid, 0 invalid, by the rules of cells.csv; the terminal says "
                "why.", "none", Query(ended(metric), table=True), thresholds=VALID)
          for title, metric in VERDICTS.items()),
        table("Largest running batch over B", "loadgen_ended_cell_running_requests_peak over "
              "loadgen_ended_cell_concurrency: below 0.97 the server caps the batch and the cell is invalid.",
              "percentunit", Query(f"{ended('running_requests_peak')} / {ended('concurrency')}", table=True),
              decimals=1, thresholds=steps((None, "red"), (0.97, "green"))),
    ]  # fmt: skip
    return dashboard(
        "loadgen-run",
        "loadgen · Run",
        "The cell that a sweep measures now. Glances: the run directory has the final figures.",
        [("The cell now", cell), ("The run", course), ("Over time", over_time), ("Ended cells", verdicts)],
        [RUN, TARGET],
    )
