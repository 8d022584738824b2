"""The feed of an exporter's samples, against a real one over made samples."""

from __future__ import annotations

import socket
import time

import msgspec
import pytest
from aiohttp import web
from made_exporter import GPU, OTHER, MadeSampler, info, sample, served, wait_for

from loadgen.errors import UsageError
from loadgen.power.exporter import add_routes, application
from loadgen.power.feed import PowerFeed
from loadgen.power.wire import PAGE_SAMPLES, REACH_NS, ClockReading

BOTH = (info(GPU, 0), info(OTHER, 1))


@pytest.fixture
def sampler():
    return MadeSampler([sample(t) for t in range(10)])


@pytest.fixture
def url(sampler):
    with served(application(sampler, BOTH, "nvml")) as url:
        yield url


@pytest.fixture
def feed(url):
    feed = PowerFeed(url, [GPU])
    yield feed
    feed.stop()


def taken(feed, count):
    samples = []
    wait_for(lambda: samples.extend(feed.take()) or len(samples) >= count, f"taking {count} samples")
    return [s.t_ns for s in samples]


def test_connect_tells_who_is_there(url):
    facts = PowerFeed(url).connect()
    assert (facts.source, facts.simulated) == ("nvml", False)
    assert facts.gpus == BOTH
    assert facts.calibration == {GPU: None, OTHER: None}


def test_one_machine_needs_no_offset(url):
    clock = PowerFeed(url).connect().clock
    assert (clock.offset_ns, clock.bound_ns, clock.same_machine) == (0, 0, True)


def test_only_the_gpus_asked_for_are_told_and_fed(sampler, feed):
    assert [gpu.uuid for gpu in feed.connect().gpus] == [GPU]
    feed.start()
    sampler.samples += [sample(100, OTHER), sample(101, GPU)]
    assert taken(feed, 1) == [101]


def test_samples_count_from_connect_on(sampler, feed):
    feed.connect()
    sampler.samples += [sample(10), sample(11)]
    feed.start()
    assert taken(feed, 2) == [10, 11]
    assert feed.take() == []


def test_a_long_backlog_comes_whole_and_in_order(sampler, feed):
    feed.connect()
    count = 2 * PAGE_SAMPLES + 3
    sampler.samples += [sample(10 + i) for i in range(count)]
    feed.start()
    assert taken(feed, count) == list(range(10, 10 + count))


def test_stop_fetches_what_is_there(sampler, feed):
    feed.connect()
    feed.start()
    sampler.samples.append(sample(10))
    feed.stop()
    assert [s.t_ns for s in feed.take()] == [10]


def test_what_the_exporter_forgot_is_counted(sampler, feed):
    feed.connect()
    sampler.forgotten, sampler.samples = 40, [sample(50)]
    feed.start()
    assert taken(feed, 1) == [50]
    assert feed.lost == 30


class TestDrainUntil:
    def test_waits_for_samples_beyond_the_instant(self, sampler, feed):
        feed.connect()
        feed.start()
        t_ns = time.monotonic_ns()
        sampler.samples.append(sample(t_ns + REACH_NS))
        assert not feed.drain_until(t_ns, timeout_s=0.3)
        sampler.samples.append(sample(t_ns + REACH_NS + 1))
        assert feed.drain_until(t_ns, timeout_s=10.0)
        assert [s.t_ns for s in feed.take()] == [t_ns + REACH_NS, t_ns + REACH_NS + 1]

    def test_waits_for_every_gpu(self, sampler, url):
        feed = PowerFeed(url)
        feed.connect()
        feed.start()
        t_ns = time.monotonic_ns()
        sampler.samples.append(sample(t_ns + 2 * REACH_NS, GPU))
        assert not feed.drain_until(t_ns, timeout_s=0.3)
        sampler.samples.append(sample(t_ns + 2 * REACH_NS, OTHER))
        assert feed.drain_until(t_ns, timeout_s=10.0)
        feed.stop()


@pytest.mark.slow
def test_an_outage_is_survived_and_counted(sampler):
    with served(application(sampler, BOTH, "nvml")) as url:
        feed = PowerFeed(url)
        feed.connect()
        feed.start()
    wait_for(lambda: feed.failures > 0, "a failed pull")
    sampler.samples += [sample(10), sample(11)]
    with served(application(sampler, BOTH, "nvml"), port=int(url.rpartition(":")[2])):
        assert taken(feed, 2) == [10, 11]
        feed.stop()
    assert feed.lost == 0


@pytest.mark.slow
def test_a_restarted_exporter_is_read_from_its_beginning(sampler):
    with served(application(sampler, BOTH, "nvml")) as url:
        feed = PowerFeed(url)
        feed.connect()
        feed.start()
    again = MadeSampler([sample(70), sample(71)])
    with served(application(again, BOTH, "nvml"), port=int(url.rpartition(":")[2])):
        assert taken(feed, 2) == [70, 71]
        feed.stop()


AHEAD_NS = 3600 * 1_000_000_000


@web.middleware
async def elsewhere(request, handler):
    """A machine whose clock is an hour ahead."""
    if request.path != "/clock":
        return await handler(request)
    reading = ClockReading(monotonic_ns=time.monotonic_ns() + AHEAD_NS, unix_ns=0, boot_id="elsewhere")
    return web.Response(body=msgspec.json.encode(reading))


def test_another_machines_stamps_are_put_on_our_clock(sampler):
    app = web.Application(middlewares=[elsewhere])
    add_routes(app, sampler, BOTH, "nvml")
    with served(app) as url:
        feed = PowerFeed(url)
        clock = feed.connect().clock
        assert not clock.same_machine
        assert abs(clock.offset_ns - AHEAD_NS) <= clock.bound_ns
        feed.start()
        ours_ns = time.monotonic_ns()
        sampler.samples.append(sample(ours_ns + AHEAD_NS, temperature_c=50.0))
        taken_ns = taken(feed, 1)
        feed.stop()
    assert abs(taken_ns[0] - ours_ns) <= clock.bound_ns


def test_a_clock_that_drifts_is_compared_again(sampler, monkeypatch):
    """The other machine's clock jumps by a second; the next comparison finds it."""
    monkeypatch.setattr("loadgen.power.feed.CLOCK_EVERY_S", 0.05)
    ahead_ns = AHEAD_NS

    @web.middleware
    async def drifting(request, handler):
        if request.path != "/clock":
            return await handler(request)
        reading = ClockReading(monotonic_ns=time.monotonic_ns() + ahead_ns, unix_ns=0, boot_id="elsewhere")
        return web.Response(body=msgspec.json.encode(reading))

    app = web.Application(middlewares=[drifting])
    add_routes(app, sampler, BOTH, "nvml")
    with served(app) as url:
        feed = PowerFeed(url)
        before = feed.connect().clock
        feed.start()
        ahead_ns += 1_000_000_000
        wait_for(lambda: feed.clock.offset_ns != before.offset_ns, "a new comparison")
        wait_for(lambda: abs(feed.clock.offset_ns - ahead_ns) <= feed.clock.bound_ns, "the new offset")
        feed.stop()


class TestWrongUse:
    @pytest.mark.parametrize(
        "url", ["", "127.0.0.1:9401", "ftp://host", "http://", "http://host:port", "http://h/?a=1"]
    )
    def test_a_malformed_url(self, url):
        with pytest.raises(UsageError, match="is malformed; write http://host:port"):
            PowerFeed(url)

    def test_nobody_there(self):
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        with pytest.raises(UsageError, match=f"no power exporter answers at http://127.0.0.1:{port} .*refused"):
            PowerFeed(f"http://127.0.0.1:{port}").connect()

    def test_somebody_else_there(self):
        with served(web.Application()) as url, pytest.raises(UsageError, match=r"/clock answers 404"):
            PowerFeed(url).connect()

    def test_a_gpu_that_is_not_sampled(self, url):
        with pytest.raises(UsageError, match=f"GPU GPU-9 is not sampled by {url}; it samples {GPU}, {OTHER}"):
            PowerFeed(url, ["GPU-9"]).connect()


def test_a_path_in_the_url_is_kept(sampler):
    app = web.Application()
    add_routes(app, sampler, BOTH, "simulated", prefix="/power")
    with served(app) as url:
        assert PowerFeed(f"{url}/power/").connect().simulated
