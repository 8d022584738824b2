"""The simulated GPU's sensors on a virtual clock, and the faults that they show."""

import itertools
import statistics

import pytest

from loadgen.errors import UsageError
from loadgen.power.energy import energy_of_window
from loadgen.power.sample import SW_THERMAL_SLOWDOWN, GpuInfo, GpuLostError
from loadgen.power.simulated import KEPT_SEGMENTS, Fault, PowerCurve, Sensors, SimulatedReader, parse_faults

START_NS = 7_000_000_000_123
INFO = GpuInfo(uuid="SIMULATED-toy", index=0, name="SIMULATED toy", power_limit_enforced_w=700.0)
QUIET = Sensors(instant_noise=0.0)
HARDWARE = Sensors.of_period(0.1)


def at(seconds):
    return START_NS + round(seconds * 1e9)


def square_wave(watts=500.0, idle_w=100.0, period_s=0.04, until_s=100.0):
    """Half of each period at `watts`, half idle."""
    curve = PowerCurve(idle_w, START_NS)
    for number in range(round(until_s / period_s)):
        curve.record(at(number * period_s), at((number + 0.5) * period_s), watts)
    return curve


class Gpu:
    """A reader whose clock is set by hand."""

    def __init__(self, curve=None, *, faults=(), sensors=QUIET, seed=0):
        self.now_ns = START_NS
        self.reader = SimulatedReader(
            curve or square_wave(),
            INFO,
            sensors=sensors,
            faults=parse_faults(faults),
            memory_used_bytes=lambda: 12_345,
            seed=seed,
            clock_ns=lambda: self.now_ns,
        )

    def read(self, seconds, slow=False):
        self.now_ns = at(seconds)
        return self.reader.read(INFO.uuid, slow=slow)

    def sample(self, begin_s, end_s, period_s=0.02):
        count = round((end_s - begin_s) / period_s)
        return [self.read(begin_s + number * period_s, slow=number % 50 == 0) for number in range(count)]

    def window(self, begin_s=5.0, end_s=45.0, reach_s=2.0):
        return energy_of_window(self.sample(begin_s - reach_s, end_s + reach_s), at(begin_s), at(end_s))


class TestCurve:
    def test_energy_is_what_was_recorded_and_idle_between(self):
        curve = PowerCurve(100.0, START_NS)
        curve.record(at(1), at(2), 300.0)
        curve.record(at(2), at(3), 500.0)
        curve.record(at(5), at(6), 700.0)
        assert curve.joules(at(0)) == 0
        assert curve.joules(at(0.5)) == pytest.approx(50)
        assert curve.joules(at(1.5)) == pytest.approx(100 + 150)
        assert curve.joules(at(3)) == pytest.approx(100 + 300 + 500)
        assert curve.joules(at(5.5)) == pytest.approx(900 + 200 + 350)
        assert curve.joules(at(10)) == pytest.approx(900 + 200 + 700 + 400)

    def test_before_the_start_it_idled(self):
        assert PowerCurve(100.0, START_NS).joules(at(-2)) == pytest.approx(-200)

    def test_a_stretch_never_counts_twice(self):
        curve = PowerCurve(100.0, START_NS)
        curve.record(at(0), at(2), 300.0)
        curve.record(at(1), at(3), 500.0)
        curve.record(at(1), at(2), 900.0)
        assert curve.joules(at(3)) == pytest.approx(600 + 500)

    def test_old_stretches_are_forgotten_but_not_their_energy(self):
        curve = square_wave(period_s=0.01, until_s=0.01 * (2 * KEPT_SEGMENTS + 10))
        total_s = 0.01 * (2 * KEPT_SEGMENTS + 10)
        assert curve.joules(at(total_s)) == pytest.approx(total_s * 300)
        assert len(curve._segments) <= 2 * KEPT_SEGMENTS


class TestSensors:
    @pytest.mark.parametrize("sensors", [QUIET, HARDWARE], ids=["20 ms", "100 ms"])
    def test_the_counter_is_a_staircase_of_true_energy_in_millijoules(self, sensors):
        gpu = Gpu(sensors=sensors)
        values = [gpu.read(1 + number / 1000).counter_j for number in range(2000)]
        steps = sum(a != b for a, b in itertools.pairwise(values))
        assert steps == pytest.approx(2 / sensors.counter_period_s, abs=1)
        assert values[-1] - values[0] == pytest.approx(2 * 300, abs=500 * sensors.counter_period_s)
        assert all(value == round(value, 3) for value in values)

    def test_instant_power_is_the_mean_of_the_stretch_before_its_update(self):
        # 20 ms windows on a wave of 40 ms: means between 100 and 500 W, 300 W over time
        values = [sample.power_instant_w for sample in Gpu(square_wave(period_s=0.0413)).sample(2, 42)]
        assert 100 <= min(values) < 120
        assert 480 < max(values) <= 500
        assert statistics.fmean(values) == pytest.approx(300, rel=0.01)

    def test_noise_is_that_of_the_sensors_and_averages_out(self):
        gpu = Gpu(PowerCurve(400.0, START_NS), sensors=Sensors(instant_noise=0.02))
        values = [sample.power_instant_w for sample in gpu.sample(0, 80)]
        assert statistics.fmean(values) == pytest.approx(400, rel=0.002)
        assert statistics.stdev(values) == pytest.approx(8, rel=0.1)

    def test_average_power_lags_by_about_a_second(self):
        curve = PowerCurve(100.0, START_NS)
        curve.record(at(5), at(20), 500.0)
        gpu = Gpu(curve)
        assert gpu.read(4.9).power_average_w == 100
        assert gpu.read(5.57).power_average_w == pytest.approx(300, abs=25)
        assert gpu.read(6.2).power_average_w == 500

    def test_same_seed_same_samples(self):
        noisy = Sensors()
        first, second, other = (Gpu(sensors=noisy, seed=seed).sample(1, 3) for seed in (1, 1, 2))
        assert first == second
        assert first != other

    def test_slow_fields_come_when_asked_for(self):
        gpu = Gpu()
        quick, slow = gpu.read(5), gpu.read(5, slow=True)
        assert (quick.temperature_c, quick.memory_used_bytes, quick.throttle_reasons) == (None, None, None)
        # 300 W of 700 W on average
        assert slow.temperature_c == pytest.approx(30 + 40 * 300 / 700, abs=1)
        assert (slow.memory_used_bytes, slow.throttle_reasons, slow.power_limit_w) == (12_345, 0, 700)

    def test_the_gpu_says_that_it_is_simulated(self):
        (info,) = Gpu().reader.gpus()
        assert info.simulated
        assert all(info.supported.values())

    @pytest.mark.parametrize("sensors", [Sensors(), HARDWARE], ids=["20 ms", "100 ms"])
    def test_a_window_of_its_samples_has_the_true_energy(self, sensors):
        window = Gpu(square_wave(period_s=0.0413), sensors=sensors).window()
        assert window.verdict == "good", window.reasons
        assert window.counter_j == pytest.approx(40 * 300, rel=0.005)
        assert window.integral_j == pytest.approx(40 * 300, rel=0.01)


class TestFaults:
    def test_a_reset_starts_the_counter_again_and_the_window_says_so(self):
        gpu = Gpu(faults=["reset@20"])
        before, after, later = (gpu.read(seconds).counter_j for seconds in (19.9, 20.03, 30.03))
        assert before > 200_000
        assert after == 0
        assert later == pytest.approx(3000, abs=20)
        window = Gpu(faults=["reset@20"]).window()
        assert window.verdict == "invalid"
        assert "reset" in window.reasons[0]

    def test_two_resets_start_it_twice(self):
        gpu = Gpu(faults=["reset@30", "reset@20"])
        assert [gpu.read(seconds).counter_j for seconds in (20.03, 30.03)] == [0, 0]

    def test_in_a_gap_every_field_fails_by_name(self):
        gpu = Gpu(faults=["gap@20:3"])
        assert gpu.read(19.99).counter_j is not None
        sample = gpu.read(20, slow=True)
        assert (sample.counter_j, sample.power_instant_w, sample.temperature_c) == (None, None, None)
        assert "counter_j: NVML_ERROR_TIMEOUT" in sample.errors
        assert gpu.read(23).counter_j is not None
        window = Gpu(faults=["gap@20:3"]).window()
        assert window.verdict == "invalid"
        assert window.max_gap_s == pytest.approx(3, abs=0.1)

    def test_a_lost_gpu_stays_lost(self):
        gpu = Gpu(faults=["lost@20"])
        gpu.read(19.99)
        for seconds in (20, 1000):
            with pytest.raises(GpuLostError, match="NVML_ERROR_GPU_IS_LOST"):
                gpu.read(seconds)

    def test_throttling_shows_its_bit_the_heat_and_lower_clocks(self):
        gpu = Gpu(faults=["throttle@20:5"])
        cool, hot, after = (gpu.read(seconds, slow=True) for seconds in (19, 22, 26))
        assert (cool.throttle_reasons, hot.throttle_reasons, after.throttle_reasons) == (
            0,
            SW_THERMAL_SLOWDOWN,
            0,
        )
        assert hot.temperature_c > cool.temperature_c
        assert hot.sm_clock_hz < cool.sm_clock_hz
        assert Gpu(faults=["throttle@20:5"]).window().verdict == "invalid"

    def test_foreign_work_adds_its_watts_to_counter_and_power(self):
        window = Gpu(faults=["foreign@15:10:200"]).window()
        assert window.counter_j == pytest.approx(40 * 300 + 10 * 200, rel=0.005)
        assert window.integral_j == pytest.approx(40 * 300 + 10 * 200, rel=0.01)

    def test_faults_are_told_apart_by_what_they_need(self):
        assert parse_faults(["reset@1", "gap@2.5:.5", "foreign@3:4:150"]) == (
            Fault(kind="reset", at_s=1),
            Fault(kind="gap", at_s=2.5, duration_s=0.5),
            Fault(kind="foreign", at_s=3, duration_s=4, watts=150),
        )

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "reset",
            "reset@",
            "reset@x",
            "reset@1:2",
            "gap@1",
            "gap@1:-2",
            "foreign@1:2",
            "melt@3",
            "gap@1:nan",
        ],
    )
    def test_any_other_form_is_refused_with_the_forms(self, text):
        with pytest.raises(UsageError, match="is not one of reset@T, lost@T, gap@T:SECONDS") as error:
            parse_faults([text])
        assert f"--fault {text} " in str(error.value)
