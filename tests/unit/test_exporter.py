"""The exporter's HTTP interface over samples that are known."""

from __future__ import annotations

import time
from contextlib import ExitStack
from urllib.parse import urlencode

import msgspec
import pytest
from aiohttp import web
from made_exporter import GPU, OTHER, MadeSampler, get, info, response, sample, served, steady

from loadgen.power.exporter import add_routes, application
from loadgen.power.sampler import SamplerStatistics
from loadgen.power.wire import PAGE_SAMPLES, ClockReading, Gpus, SamplePage, Windows

S = 1_000_000_000
LARGEST = "the largest number is 18446744073709551615, 64 bits"
ONE = (info(),)


class Exporter:
    """A served exporter, asked with typed answers."""

    def __init__(self, url):
        self.url = url

    def ask(self, path, kind, **query):
        status, body = self.get(path, **query)
        assert status == 200, body
        return msgspec.json.decode(body, type=kind)

    def get(self, path, **query):
        return get(f"{self.url}{path}?{urlencode(query)}")


@pytest.fixture
def serve():
    """`serve(sampler, infos, source)` -> Exporter."""
    with ExitStack() as open_until_the_end:
        yield lambda sampler, infos=ONE, source="nvml": Exporter(
            open_until_the_end.enter_context(served(application(sampler, infos, source)))
        )


def test_the_clock_is_this_machines(serve):
    exporter = serve(MadeSampler())
    before_ns, unix_ns = time.monotonic_ns(), time.time_ns()
    clock = exporter.ask("/clock", ClockReading)
    assert before_ns <= clock.monotonic_ns <= time.monotonic_ns()
    assert abs(clock.unix_ns - unix_ns) < 10 * S


def test_gpus_are_named_with_their_source(serve):
    gpus = serve(MadeSampler(), [info(GPU, 0), info(OTHER, 1)]).ask("/gpus", Gpus)
    assert (gpus.source, gpus.simulated) == ("nvml", False)
    assert [gpu.uuid for gpu in gpus.gpus] == [GPU, OTHER]
    assert gpus.calibration == {GPU: None, OTHER: None}


def test_a_simulated_source_says_so(serve):
    exporter = serve(MadeSampler(), [info(simulated=True)], "simulated")
    assert exporter.ask("/gpus", Gpus).simulated
    assert "loadgen_simulated 1.0" in exporter.get("/metrics")[1].decode().splitlines()


def test_sensors_are_characterised_by_the_last_samples(serve):
    now_ns = time.monotonic_ns()
    calibration = serve(MadeSampler(steady(now_ns - 20 * S, now_ns, watts=200.0))).ask("/gpus", Gpus).calibration[GPU]
    assert calibration is not None
    assert calibration.counter_period_s == pytest.approx(0.1)
    assert calibration.power_w_mean == pytest.approx(200.0)


class TestSamples:
    def test_continue_where_the_last_answer_ended(self, serve):
        sampler = MadeSampler(sample(t) for t in range(5))
        exporter = serve(sampler)
        first = exporter.ask("/samples", SamplePage, since=2)
        assert ([s.t_ns for s in first.samples], first.next, first.lost) == ([2, 3, 4], 5, 0)
        sampler.samples.append(sample(5))
        assert [s.t_ns for s in exporter.ask("/samples", SamplePage, since=first.next).samples] == [5]

    def test_without_a_number_nothing_comes_but_where_to_begin(self, serve):
        page = serve(MadeSampler([sample(t) for t in range(5)])).ask("/samples", SamplePage)
        assert (page.samples, page.next, page.lost) == ((), 5, 0)

    def test_what_was_forgotten_is_counted(self, serve):
        page = serve(MadeSampler([sample(t) for t in range(5)], forgotten=100)).ask("/samples", SamplePage, since=90)
        assert (page.lost, len(page.samples), page.next) == (10, 5, 105)

    def test_come_in_pages(self, serve):
        exporter = serve(MadeSampler([sample(t) for t in range(PAGE_SAMPLES + 7)], forgotten=3))
        first = exporter.ask("/samples", SamplePage, since=0)
        assert (len(first.samples), first.more, first.next, first.lost) == (PAGE_SAMPLES, True, PAGE_SAMPLES + 3, 3)
        second = exporter.ask("/samples", SamplePage, since=first.next)
        assert (len(second.samples), second.more, second.lost) == (7, False, 0)
        assert second.samples[0].t_ns == PAGE_SAMPLES

    def test_of_one_gpu_only(self, serve):
        exporter = serve(MadeSampler([sample(1, GPU), sample(2, OTHER)]), [info(GPU, 0), info(OTHER, 1)])
        page = exporter.ask("/samples", SamplePage, since=0, gpu=OTHER)
        assert ([s.gpu for s in page.samples], page.next) == ([OTHER], 2)

    def test_lose_no_field_on_the_way(self, serve):
        full = sample(
            9, counter_j=0.001, power_instant_w=1.5, power_average_w=2.5, temperature_c=30.0, sm_clock_hz=1e9,
            memory_clock_hz=2e9, throttle_reasons=4, power_limit_w=300.0, memory_used_bytes=1 << 40,
            utilization=0.5, errors=("a: B",),
        )  # fmt: skip
        assert serve(MadeSampler([full])).ask("/samples", SamplePage, since=0).samples == (full,)


class TestWindow:
    def test_energy_is_power_times_length(self, serve):
        now_ns = time.monotonic_ns()
        exporter = serve(MadeSampler(steady(now_ns - 60 * S, now_ns, watts=250.0)))
        (window,) = exporter.ask("/window", Windows, t0=now_ns - 50 * S, t1=now_ns - 10 * S).windows
        assert (window.gpu, window.verdict) == (GPU, "good")
        assert window.counter_j == pytest.approx(250.0 * 40, rel=1e-6)
        assert window.integral_j == pytest.approx(250.0 * 40, rel=1e-6)

    def test_each_gpu_has_its_own(self, serve):
        now_ns = time.monotonic_ns()
        samples = steady(now_ns - 50 * S, now_ns, 100.0) + steady(now_ns - 50 * S, now_ns, 300.0, OTHER)
        samples.sort(key=lambda s: s.t_ns)
        exporter = serve(MadeSampler(samples), [info(GPU, 0), info(OTHER, 1)])
        bounds = {"t0": now_ns - 45 * S, "t1": now_ns - 5 * S}
        joules = {w.gpu: w.energy_j for w in exporter.ask("/window", Windows, **bounds).windows}
        assert joules == {GPU: pytest.approx(4000.0), OTHER: pytest.approx(12000.0)}
        assert [w.gpu for w in exporter.ask("/window", Windows, gpu=OTHER, **bounds).windows] == [OTHER]

    def test_one_that_has_not_ended_is_refused_for_now(self, serve):
        now_ns = time.monotonic_ns()
        exporter = serve(MadeSampler(steady(now_ns - 10 * S, now_ns)))
        status, body = exporter.get("/window", t0=now_ns - 5 * S, t1=now_ns + 60 * S)
        assert status == 409
        assert body.decode().startswith(f"{GPU} is not sampled beyond t1={now_ns + 60 * S} yet")

    def test_one_whose_end_nobody_sampled_is_invalid(self, serve):
        now_ns = time.monotonic_ns()
        exporter = serve(MadeSampler(steady(now_ns - 60 * S, now_ns - 30 * S)))
        (window,) = exporter.ask("/window", Windows, t0=now_ns - 50 * S, t1=now_ns - 20 * S).windows
        assert (window.verdict, window.energy_j) == ("invalid", None)

    def test_one_from_before_the_first_sample_is_invalid(self, serve):
        now_ns = time.monotonic_ns()
        exporter = serve(MadeSampler(steady(now_ns - 10 * S, now_ns)))
        (window,) = exporter.ask("/window", Windows, t0=now_ns - 90 * S, t1=now_ns - 60 * S).windows
        assert (window.gpu, window.verdict, window.energy_j) == (GPU, "invalid", None)

    def test_of_a_gpu_that_is_shared_is_invalid(self, serve):
        now_ns = time.monotonic_ns()
        exporter = serve(MadeSampler(steady(now_ns - 60 * S, now_ns)), [info(mig=True)])
        (window,) = exporter.ask("/window", Windows, t0=now_ns - 50 * S, t1=now_ns - 10 * S).windows
        assert window.verdict == "invalid"
        assert "MIG" in window.reasons[0]


@pytest.mark.parametrize(
    ("path", "query", "said"),
    [
        ("/samples", {"since": "now"}, "since=now is not a whole number"),
        ("/samples", {"since": "-1"}, "since=-1 is not a whole number"),
        ("/samples", {"since": "0", "gpu": "GPU-9"}, f"gpu=GPU-9 is not sampled by this exporter; it samples {GPU}"),
        ("/window", {"t0": "5"}, "t1= is not a whole number"),
        ("/window", {"t0": "5", "t1": "5"}, "t0=5 is not before t1=5"),
        ("/window", {"t0": "1.5", "t1": "5"}, "t0=1.5 is not a whole number"),
        ("/samples", {"since": "\u0665"}, "since=\u0665 is not a whole number"),
        ("/samples", {"since": "\x1b[2J"}, "since=\\x1b[2J is not a whole number"),
        ("/samples", {"since": "7" * 400}, f"since={'7' * 60}... is too large; {LARGEST}"),
        ("/samples", {"since": "18446744073709551616"}, f"since=18446744073709551616 is too large; {LARGEST}"),
        ("/window", {"t0": "7" * 400, "t1": "5"}, f"t0={'7' * 60}... is too large; {LARGEST}"),
        ("/window", {"t0": "5", "t1": "7" * 5000}, f"t1={'7' * 60}... is too large; {LARGEST}"),
        ("/samples", {"gpu": "\x1b]0;x\x07"}, f"gpu=\\x1b]0;x\\x07 is not sampled by this exporter; it samples {GPU}"),
    ],
)
def test_bad_questions_are_answered_with_one_sentence(serve, path, query, said):
    assert serve(MadeSampler()).get(path, **query) == (400, said.encode())


def test_the_largest_numbers_are_answered(serve):
    exporter = serve(MadeSampler([sample(7)]))
    assert exporter.ask("/samples", SamplePage, since=2**64 - 1).samples == ()
    status, body = exporter.get("/window", t0=2**64 - 2, t1=2**64 - 1)
    assert (status, body.decode()) == (409, f"{GPU} is not sampled beyond t1={2**64 - 1} yet; ask again in a second")


@pytest.mark.parametrize("path", ["/metrics", "/samples?since=now", "/nowhere", "/power/gpus"])
def test_no_browser_guesses_what_an_answer_is(serve, path):
    assert response(serve(MadeSampler()).url + path).headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("path", ["/metrics", "/gpus", "/window?t0=1&t1=2"])
def test_a_web_page_that_points_its_name_to_loopback_reads_nothing(serve, path):
    refused = response(serve(MadeSampler()).url + path, Host="evil.example:9401")
    assert (refused.status, refused.read().decode()) == (
        403,
        "Host 'evil.example:9401' is refused: this server listens on loopback only; use 127.0.0.1",
    )


def test_metrics_count_every_sample_once(serve):
    sampler = MadeSampler(sample(t * S) for t in range(4))
    exporter = serve(sampler)
    counted = f'loadgen_gpu_samples_total{{gpu="0",uuid="{GPU}"}}'
    assert f"{counted} 4.0" in exporter.get("/metrics")[1].decode()
    sampler.samples.append(sample(4 * S))
    assert f"{counted} 5.0" in exporter.get("/metrics")[1].decode()


def test_the_sampler_tells_how_late_it_was(serve):
    assert serve(MadeSampler()).ask("/sampler", SamplerStatistics).lateness_ms_p99 == 0.4


def test_an_exporter_whose_sampler_has_died_is_not_healthy(serve):
    sampler = MadeSampler()
    exporter = serve(sampler)
    assert exporter.get("/health")[0] == 200
    sampler.failure = "the power sampler has stopped"
    for path in ("/health", "/metrics", "/samples"):
        assert exporter.get(path) == (503, b"the power sampler has stopped")


def test_an_exporter_without_an_energy_field_for_5_s_is_not_healthy(serve, monkeypatch):
    monkeypatch.setattr("loadgen.power.exporter.DARK_S", 0.2)
    sampler = MadeSampler([sample(time.monotonic_ns(), power_average_w=1.0)])
    exporter = serve(sampler)
    assert exporter.get("/health")[0] == 200
    time.sleep(0.25)
    sampler.samples.append(sample(time.monotonic_ns(), errors=("counter_j: NVML_ERROR_UNKNOWN",)))
    status, said = exporter.get("/health")
    assert (status, said) == (503, b"no GPU reported energy or power for 0.2 s (counter_j: NVML_ERROR_UNKNOWN)")
    sampler.samples.append(sample(time.monotonic_ns(), counter_j=1.0))
    assert exporter.get("/health")[0] == 200


def test_another_application_can_serve_it_below_a_prefix():
    app = web.Application()
    add_routes(app, MadeSampler([sample(7)]), [info(simulated=True)], "simulated", prefix="/power")
    with served(app) as url:
        assert Exporter(f"{url}/power").ask("/samples", SamplePage, since=0).samples == (sample(7),)
