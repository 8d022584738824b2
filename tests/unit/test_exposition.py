"""What /metrics says of samples that are known."""

from __future__ import annotations

import pytest
from made_exporter import GPU, OTHER, info, sample
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from loadgen.power.wire import STALE_S, PowerCollector

S = 1_000_000_000


class Page:
    """A scrape at `now_s` after samples were added."""

    def __init__(self, *samples, infos=None, source="nvml", now_s=None):
        now_ns = round(now_s * S) if now_s is not None else max((s.t_ns for s in samples), default=0)
        collector = PowerCollector(infos or [info()], source, now_ns=lambda: now_ns)
        collector.add(samples)
        registry = CollectorRegistry()
        registry.register(collector)
        self.families = {
            family.name: family for family in text_string_to_metric_families(generate_latest(registry).decode())
        }
        self.series = [s for family in self.families.values() for s in family.samples]

    def of(self, metric, /, **labels):
        found = [s.value for s in self.series if s.name == metric and labels.items() <= s.labels.items()]
        return found[0] if len(found) == 1 else found


def test_the_energy_counter_is_shown_raw_and_a_reset_passes_through():
    page = Page(sample(S, counter_j=100.0), sample(2 * S, counter_j=120.0), sample(3 * S, counter_j=3.5))
    assert page.of("loadgen_gpu_energy_joules_total") == 3.5
    assert page.of("loadgen_gpu_energy_resets_total") == 1
    assert page.families["loadgen_gpu_energy_joules"].type == "counter"


def test_the_integral_is_the_trapezoid_of_instantaneous_power():
    page = Page(sample(S, power_instant_w=100.0), sample(S + S // 2, power_instant_w=200.0))
    assert page.of("loadgen_gpu_energy_integrated_joules_total", source="instant") == pytest.approx(75.0)


def test_a_pause_longer_than_a_second_adds_no_energy():
    page = Page(
        sample(S, power_instant_w=100.0),
        sample(S + S // 2, power_instant_w=100.0),
        sample(3 * S, power_instant_w=100.0),
    )
    assert page.of("loadgen_gpu_energy_integrated_joules_total") == pytest.approx(50.0)


def test_a_failed_reading_is_bridged():
    page = Page(
        sample(S, power_instant_w=100.0), sample(S + S // 4), sample(S + S // 2, power_instant_w=100.0)
    )  # fmt: skip
    assert page.of("loadgen_gpu_energy_integrated_joules_total") == pytest.approx(50.0)


def test_every_reading_has_its_name_and_unit():
    page = Page(
        sample(
            S, counter_j=7.0, power_instant_w=301.5, power_average_w=299.0, temperature_c=61.0, sm_clock_hz=1.98e9,
            memory_clock_hz=2.619e9, power_limit_w=650.0, memory_used_bytes=5 << 30, utilization=0.37,
        ),
        infos=[info(power_limit_enforced_w=700.0, power_limit_default_w=690.0, power_limit_max_w=720.0)],
    )  # fmt: skip
    assert page.of("loadgen_gpu_energy_joules_total", gpu="0", uuid=GPU, scope="gpu") == 7.0
    assert page.of("loadgen_gpu_power_watts", kind="instant") == 301.5
    assert page.of("loadgen_gpu_power_watts", kind="average") == 299.0
    assert page.of("loadgen_gpu_power_limit_watts", kind="enforced") == 650.0
    assert page.of("loadgen_gpu_power_limit_watts", kind="default") == 690.0
    assert page.of("loadgen_gpu_power_limit_watts", kind="max") == 720.0
    assert page.of("loadgen_gpu_temperature_celsius") == 61.0
    assert page.of("loadgen_gpu_clock_hertz", clock="sm") == 1.98e9
    assert page.of("loadgen_gpu_clock_hertz", clock="mem") == 2.619e9
    assert page.of("loadgen_gpu_memory_used_bytes") == 5 << 30
    assert page.of("loadgen_gpu_utilization_ratio") == 0.37
    assert page.of("loadgen_gpu_info", name="Made GPU", source="nvml", mig="false") == 1


def test_an_unsupported_field_has_no_series():
    page = Page(
        sample(S, power_instant_w=100.0),
        infos=[info(lacks=("counter_j", "power_average_w", "throttle_reasons", "temperature_c"))],
    )
    for name in ("energy_joules_total", "energy_resets_total", "throttle_seconds_total", "temperature_celsius"):
        assert page.of(f"loadgen_gpu_{name}") == []
    assert page.of("loadgen_gpu_power_watts") == 100.0
    assert page.of("loadgen_gpu_field_supported", field="counter_j") == 0
    assert page.of("loadgen_gpu_field_supported", field="power_instant_w") == 1


def test_readings_of_a_gpu_that_no_longer_answers_end_and_its_totals_stay():
    lost = (sample(S, counter_j=5.0, power_instant_w=100.0), sample(S + S // 2, power_instant_w=100.0))
    shown = Page(*lost, now_s=1 + STALE_S)
    assert shown.of("loadgen_gpu_energy_joules_total") == 5.0
    page = Page(*lost, now_s=1.6 + STALE_S)
    assert page.of("loadgen_gpu_energy_joules_total") == []
    assert page.of("loadgen_gpu_power_watts") == []
    assert page.of("loadgen_gpu_energy_integrated_joules_total") == pytest.approx(50.0)
    assert page.of("loadgen_gpu_samples_total") == 2


def test_a_throttle_reason_lasts_until_a_reading_without_it():
    page = Page(
        sample(S, throttle_reasons=0x4),
        sample(2 * S),
        sample(3 * S, throttle_reasons=0x24),
        sample(4 * S, throttle_reasons=0),
    )
    assert page.of("loadgen_gpu_throttle_seconds_total", reason="SwPowerCap") == pytest.approx(3.0)
    assert page.of("loadgen_gpu_throttle_seconds_total", reason="SwThermalSlowdown") == pytest.approx(1.0)
    assert page.of("loadgen_gpu_throttle_seconds_total", reason="HwSlowdown") == 0.0


def test_failed_readings_count_by_field_and_code():
    error = "power_instant_w: NVML_ERROR_UNKNOWN"
    page = Page(sample(S, errors=(error,)), sample(2 * S, errors=(error, "counter_j: NVML_ERROR_TIMEOUT")))
    assert page.of("loadgen_gpu_nvml_errors_total", field="power_instant_w", code="NVML_ERROR_UNKNOWN") == 2
    assert page.of("loadgen_gpu_nvml_errors_total", field="counter_j", code="NVML_ERROR_TIMEOUT") == 1


def test_gaps_between_samples_are_a_histogram():
    page = Page(sample(0), sample(25_000_000), sample(50_000_000), sample(650_000_000))
    assert page.of("loadgen_gpu_sample_gap_seconds_bucket", le="0.03") == 2
    assert page.of("loadgen_gpu_sample_gap_seconds_bucket", le="0.5") == 2
    assert page.of("loadgen_gpu_sample_gap_seconds_bucket", le="1.0") == 3
    assert page.of("loadgen_gpu_sample_gap_seconds_count") == 3
    assert page.of("loadgen_gpu_sample_gap_seconds_sum") == pytest.approx(0.65)


def test_gpus_do_not_mix():
    page = Page(
        sample(S, GPU, counter_j=10.0), sample(S, OTHER, counter_j=90.0), sample(2 * S, GPU, counter_j=20.0),
        infos=[info(GPU, 0), info(OTHER, 3)],
    )  # fmt: skip
    assert page.of("loadgen_gpu_energy_joules_total", gpu="0", uuid=GPU) == 20.0
    assert page.of("loadgen_gpu_energy_joules_total", gpu="3", uuid=OTHER) == 90.0
    assert page.of("loadgen_gpu_energy_resets_total") == [0.0, 0.0]


def test_a_counter_has_no_label_that_a_new_run_would_change():
    page = Page(sample(S, counter_j=1.0))
    (series,) = page.families["loadgen_gpu_energy_joules"].samples
    assert set(series.labels) == {"gpu", "uuid", "scope"}


def test_a_cpu_package_says_so():
    page = Page(sample(S, "rapl:package-0", counter_j=1.0), infos=[info("rapl:package-0")], source="rapl")
    assert page.of("loadgen_gpu_energy_joules_total", scope="package") == 1.0


def test_a_superchips_counter_says_that_it_is_the_modules():
    page = Page(sample(S, counter_j=1.0), infos=[info(scope="module")])
    assert page.of("loadgen_gpu_energy_joules_total", scope="module") == 1.0


@pytest.mark.parametrize(("source", "flag"), [("nvml", 0), ("rapl", 0), ("simulated", 1)])
def test_what_is_simulated_cannot_be_mistaken(source, flag):
    page = Page(sample(S, counter_j=1.0), source=source)
    assert page.of("loadgen_simulated") == flag
    assert page.of("loadgen_gpu_info", simulated="true" if flag else "false", source=source) == 1


def test_a_gpu_without_a_sample_yet_has_no_reading():
    page = Page()
    assert page.of("loadgen_gpu_power_watts") == []
    assert page.of("loadgen_gpu_energy_integrated_joules_total") == []
    assert page.of("loadgen_gpu_last_sample_timestamp_seconds") == []
    assert page.of("loadgen_gpu_samples_total") == 0
