"""A server's own figures of its batch: its `/metrics`, sampled during the load."""

from __future__ import annotations

import contextlib
import math
import random
import threading
from collections.abc import Mapping, Sequence
from time import monotonic, monotonic_ns
from urllib.parse import urlencode, urlsplit

import msgspec

from loadgen.bounds import MOST_AMOUNT, MOST_METRICS_BYTES
from loadgen.httpget import FAILURES, REDIRECTS, Connection, ResponseTooLong
from loadgen.secret import error_text
from loadgen.serving.exposition import EngineReading, Key, ServerSample, Vocabulary, vocabulary_of
from loadgen.serving.facts import Target

UNVERIFIED = "batch not verified"
"""The mark of figures for which requests in flight stand in for the running batch."""
SHORTEST_PERIOD_S = 0.1
LONGEST_PERIOD_S = 0.5
COST_FACTOR = 20
"""A scrape that takes t (the least of the last nine) is followed by the next after 20 t: 5% of the server's time."""


Values = Mapping[str, Mapping[Key, float]]
"""Field -> engine -> value."""


class MetricsSource(msgspec.Struct, frozen=True, kw_only=True):
    """The pages of a target's figures."""

    target_url: str
    """Scheme, host and port of the target, whose own `/metrics` is read if there are no `urls`."""
    urls: tuple[str, ...] = ()
    """Pages elsewhere; several are engines of one server."""
    api_key: str | None = None
    """Sent only to the target's own scheme, host and port."""
    model: str | None = None
    """The model whose series count, where a page has several."""


def metrics_of(target: Target, api_key: str | None) -> MetricsSource:
    """The pages of a target's figures; `api_key`: as its requests carry it."""
    return MetricsSource(target_url=target.url, urls=target.metrics_urls, api_key=api_key, model=target.model)


def read_metrics(text: bytes, *, t_ns: int, scrape_ns: int, model: str | None = None) -> ServerSample:
    """The sample in a `/metrics` page."""
    vocabulary = vocabulary_of(text)
    values = {} if vocabulary is None else vocabulary.read(text, model)
    return sample_of([values], t_ns=t_ns, scrape_ns=scrape_ns)


def sample_of(pages: Sequence[Values], *, t_ns: int, scrape_ns: int) -> ServerSample:
    """The sample of a server whose engines are on one page or on several."""
    found: dict[str, dict[tuple[int, Key], float]] = {}
    for place, values in enumerate(pages):
        for field, by_engine in values.items():
            engines = found.setdefault(field.partition("/")[0], {})
            for key, value in by_engine.items():
                total = engines.get((place, key), 0.0) + value
                if abs(total) <= MOST_AMOUNT:
                    engines[place, key] = total
    totals = {
        field: max(engines.values()) if field == "kv_usage" else math.fsum(engines.values())
        for field, engines in found.items()
        if engines
    }
    known = {field: value for field, value in totals.items() if abs(value) <= MOST_AMOUNT}
    return ServerSample(t_ns=t_ns, scrape_ns=scrape_ns, engines=_engines(found), **known)


def _engines(found: Mapping[str, Mapping[tuple[int, Key], float]]) -> tuple[EngineReading, ...]:
    """The engines that count steps, if there are several."""
    fields = EngineReading.__struct_fields__[1:]
    keys = sorted(found.get("iterations", ()))
    if len(keys) < 2:
        return ()
    shared = set.intersection(*(set(labels) for _, labels in keys))
    several = len({place for place, _ in keys}) > 1
    return tuple(
        EngineReading(
            ",".join([str(place)] * several + [value for label, value in labels if (label, value) not in shared]),
            *(found.get(field, {}).get((place, labels)) for field in fields),
        )
        for place, labels in keys
    )


class _Page:
    """One page over a kept connection.

    Only the needed names are requested if the server supports that: prometheus_client's endpoint (`/metrics/`, with the
    slash) then renders 1.5 KB instead of vLLM's 64 KB.
    """

    def __init__(self, url: str, api_key: str | None, model: str | None) -> None:
        parts = urlsplit(url)
        self._path = parts.path + (f"?{parts.query}" if parts.query else "")
        self._url, self._model, self._has_key = url, model, bool(api_key)
        self._connection = Connection(url, bearer=api_key)
        self._vocabulary: Vocabulary | None = None
        self._short: str | None = None
        self.failure: str | None = None
        """Why the last reading gave nothing, or no batch."""

    @property
    def gauge(self) -> str | None:
        """The series that counts running requests."""
        return None if self._vocabulary is None else self._vocabulary.gauge

    def read(self) -> Values | None:
        """The page's figures; None when it cannot be read now."""
        page = self._get(self._short or self._path)
        if page is None:
            return None
        if self.gauge is None:
            self._vocabulary = vocabulary_of(page)
            if self.gauge is not None:
                self._short = self._shortened()
            else:
                self.failure = f"{self._url} counts no running requests under a name that loadgen knows"
        return {} if self._vocabulary is None else self._vocabulary.read(page, self._model)

    def _shortened(self) -> str | None:
        """The path of the page with only the needed names; None: the server does not support it."""
        assert self._vocabulary is not None and self._vocabulary.gauge is not None
        if "?" in self._path:
            return None
        path = f"{self._path.rstrip('/')}/?{urlencode([('name[]', name) for name in self._vocabulary.names])}"
        page = self._get(path)
        self.failure = None
        return path if page is not None and self._vocabulary.read(page).get("running") else None

    def _get(self, path: str) -> bytes | None:
        """The page, or None; a kept connection that the server has closed is opened again once."""
        self.failure = None
        for _ in range(2):
            try:
                answer = self._connection.get(path, MOST_METRICS_BYTES)
            except ResponseTooLong as error:
                self.failure = f"{self._url} cannot be read: {error}"
                return None
            except FAILURES as error:
                self.failure = f"{self._url} does not answer ({error_text(error)})"
                continue
            if answer.status == 200:
                self.failure = None
                return answer.body
            if answer.status in REDIRECTS and path == self._path and not path.endswith("/") and "?" not in path:
                self._path = path = f"{path}/"
                continue
            advice = ""
            if answer.status in (401, 403):
                without = "give the key with --api-key-env VAR (it is sent only to the target's own address)"
                advice = ": it does not accept the key of --api-key-env" if self._has_key else f": {without}"
            self.failure = f"{self._url} answers {answer.status}{advice}"
            return None
        return None

    def close(self) -> None:
        self._connection.close()


class MetricsProbe:
    """Scrapes one server, page by page; not thread-safe."""

    def __init__(self, source: MetricsSource) -> None:
        origin = _origin(source.target_url)
        urls = source.urls or (f"{source.target_url.rstrip('/')}/metrics",)
        self._pages = [_Page(url, source.api_key if _origin(url) == origin else None, source.model) for url in urls]

    @property
    def gauge(self) -> str | None:
        """The series that counts running requests, once it was read."""
        return next((page.gauge for page in self._pages if page.gauge is not None), None)

    @property
    def failure(self) -> str | None:
        """Why the last scrape gave no batch; None where it gave one."""
        return next((page.failure for page in self._pages if page.failure is not None), None)

    def scrape(self) -> ServerSample | None:
        """A sample; None when one of the pages cannot be read now."""
        before_ns = monotonic_ns()
        found = []
        for page in self._pages:
            if (values := page.read()) is None:
                return None
            found.append(values)
        after_ns = monotonic_ns()
        return sample_of(found, t_ns=(before_ns + after_ns) // 2, scrape_ns=after_ns - before_ns)

    def close(self) -> None:
        for page in self._pages:
            page.close()


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


class MetricsSampler:
    """Scrapes in a thread, about 10 times a second if that costs the server little.

    Every period is drawn from 0.75 to 1.25 times its mean: an even grid could stay in step with the answers, and then
    always, or never, see the gap between two of them.
    """

    def __init__(self, source: MetricsSource) -> None:
        self.probe = MetricsProbe(source)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="server-metrics", daemon=True)
        self._fresh: list[ServerSample] = []
        self._lock = threading.Lock()
        self.latest: ServerSample | None = None

    def start(self) -> None:
        self._thread.start()

    def take(self) -> list[ServerSample]:
        """Samples since the last call."""
        with self._lock:
            fresh, self._fresh = self._fresh, []
        return fresh

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            self.probe.close()

    def _run(self) -> None:
        costs_s: list[float] = []
        jitter = random.Random(0)
        deadline = monotonic()
        while not self._stop.is_set():
            if (sample := self.probe.scrape()) is not None:
                costs_s = [*costs_s[-8:], sample.scrape_ns / 1e9]
                self.latest = sample
                with self._lock:
                    self._fresh.append(sample)
            wanted = COST_FACTOR * min(costs_s, default=LONGEST_PERIOD_S)
            period_s = min(max(SHORTEST_PERIOD_S, wanted), LONGEST_PERIOD_S) * jitter.uniform(0.75, 1.25)
            deadline = max(deadline + period_s, monotonic())
            self._stop.wait(deadline - monotonic())
