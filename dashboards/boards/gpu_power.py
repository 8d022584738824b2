"""GPU power: what the exporter reads from the sensors, and whether its two energies agree."""

from __future__ import annotations

from boards.dashboard import GPU, TARGET, dashboard
from boards.panel import RATE, Json, Query, lines, stat, table

ONE = '{uuid=~"$gpu", target=~"$target"}'
NAMED = "{{target}} GPU {{gpu}}"


def of(metric: str, more: str = "") -> str:
    """A series per GPU of the chosen ones."""
    return f'loadgen_gpu_{metric}{{uuid=~"$gpu", target=~"$target"{more}}}'


def watts(counter: str, over: str = RATE) -> str:
    """Mean power over the last scrapes, by a counter of joules."""
    return f"sum by (target, gpu, uuid) (rate(loadgen_gpu_{counter}{ONE}{over}))"


def gpu_power() -> Json:
    """The dashboard."""
    integral, counter = "energy_integrated_joules_total", "energy_joules_total"
    head = [
        table("GPUs", "loadgen_gpu_info: name, driver, source, and whether it is simulated.", "none",
              Query(of("info"), table=True), w=12, h=5),
        stat("Instantaneous", "loadgen_gpu_power_watts, kind instant (NVML field 186).", "watt",
             Query(of("power_watts", ', kind="instant"'), NAMED), w=6, h=5),
        stat("Energy over the range", "Increase of loadgen_gpu_energy_joules_total; Prometheus extrapolates to the "
             "range's edges, the exact figure of a cell is in cells.csv.", "joule",
             Query(f"increase(loadgen_gpu_energy_joules_total{ONE}[$__range])", NAMED), w=6, h=5),
    ]  # fmt: skip
    power = [
        lines("Power", "loadgen_gpu_power_watts: instantaneous, average (about a second), and the enforced limit of "
              "loadgen_gpu_power_limit_watts.", "watt",
              Query(of("power_watts", ', kind="instant"'), f"{NAMED} instant"),
              Query(of("power_watts", ', kind="average"'), f"{NAMED} average"),
              Query(of("power_limit_watts", ', kind="enforced"'), f"{NAMED} limit"), w=24, min=0),
        lines("Counter and integral", "Rates of loadgen_gpu_energy_joules_total (the hardware's counter) and "
              "loadgen_gpu_energy_integrated_joules_total (trapezoid of instantaneous power).", "watt",
              Query(watts(counter), f"{NAMED} counter"), Query(watts(integral), f"{NAMED} integral"), min=0),
        lines("Integral over counter", "Rate of loadgen_gpu_energy_integrated_joules_total over that of "
              "loadgen_gpu_energy_joules_total, over a minute. Over a whole window: beyond 3% of 1 a cell is "
              "marked, beyond 10% it is invalid.", "percentunit",
              Query(f"{watts(integral, '[1m]')} / ({watts(counter, '[1m]')} > 0)", NAMED)),
        lines("Power by target", "target:gpu_energy_joules:rate15s: watts by the counter, where the scrape "
              "configuration says which target a GPU serves.", "watt",
              Query('target:gpu_energy_joules:rate15s{target=~"$target"}', "{{target}}"), min=0),
        lines("Energy per token by target", "target:joules_per_token:ratio15s: the counter's watts over the server's "
              "own tokens per second; idle power counts while it answers.", "joule",
              Query('target:joules_per_token:ratio15s{target=~"$target"}', "{{target}}"), min=0),
        lines("Tokens per joule by target", "target:tokens_per_joule:ratio15s, the same turned over.", "suffix: tok/J",
              Query('target:tokens_per_joule:ratio15s{target=~"$target"}', "{{target}}"), min=0),
    ]  # fmt: skip
    state = [
        lines("Throttling", "Rate of loadgen_gpu_throttle_seconds_total: share of time during which a reason held the "
              "clocks. SwPowerCap is the power limit; thermal and HW reasons make a cell suspect.", "percentunit",
              Query(f"rate(loadgen_gpu_throttle_seconds_total{ONE}{RATE})", f"{NAMED} {{{{reason}}}}"), min=0),
        lines("Clocks", "loadgen_gpu_clock_hertz: SM and memory.", "hertz",
              Query(of("clock_hertz"), f"{NAMED} {{{{clock}}}}")),
        lines("Temperature", "loadgen_gpu_temperature_celsius, of the die.", "celsius",
              Query(of("temperature_celsius"), NAMED)),
        lines("Memory", "loadgen_gpu_memory_used_bytes: a server reserves its KV cache at the start.", "bytes",
              Query(of("memory_used_bytes"), NAMED)),
        lines("Utilization", "loadgen_gpu_utilization_ratio: share of time in which any kernel ran, not how busy it "
              "was.", "percentunit", Query(of("utilization_ratio"), NAMED), min=0, max=1),
        lines("Sampling", "Rate of loadgen_gpu_samples_total: 40 a second by default.", "suffix: /s",
              Query(f"rate(loadgen_gpu_samples_total{ONE}{RATE})", NAMED), min=0),
        lines("Longest gaps", "99% quantile of loadgen_gpu_sample_gap_seconds; beyond 0.5 s a window is invalid.", "s",
              Query("histogram_quantile(0.99, sum by (le, target, gpu) "
                    f"(rate(loadgen_gpu_sample_gap_seconds_bucket{ONE}{RATE})))", NAMED)),
        lines("Resets and failed readings", "Increases of loadgen_gpu_energy_resets_total (a window across one is "
              "invalid) and of loadgen_gpu_nvml_errors_total.", "none",
              Query(f"increase(loadgen_gpu_energy_resets_total{ONE}{RATE})", f"{NAMED} resets"),
              Query(f"increase(loadgen_gpu_nvml_errors_total{ONE}{RATE})", f"{NAMED} {{{{field}}}} {{{{code}}}}"),
              min=0),
    ]  # fmt: skip
    return dashboard(
        "loadgen-gpu-power",
        "loadgen · GPU power",
        "The sensors as the exporter reads them.",
        [("GPUs", head), ("Power and energy", power), ("State and sampling", state)],
        [GPU, TARGET],
    )
