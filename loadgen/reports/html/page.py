"""The page: head, first screen, sections, sources, servers and manifest."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.resources import files
from itertools import groupby
from pathlib import Path

from loadgen import __version__
from loadgen.analysis.analyse import Analysis
from loadgen.analysis.estimate import Estimate
from loadgen.analysis.indices.study import TargetIndices
from loadgen.analysis.run import Run
from loadgen.analysis.trust.accuracy import AccuracyComparison
from loadgen.folder import Folder
from loadgen.load.openloop import CLOSED
from loadgen.power.sample import GpuInfo
from loadgen.record.manifest import Manifest, ServerRecord
from loadgen.reports import rows
from loadgen.reports.figures import Figure, draw_figures
from loadgen.reports.html import sections
from loadgen.reports.html.markup import Html, element, facts, gallery, join, stamp, table
from loadgen.reports.rows import INTERVAL, NAME, SHORT, TEXT, Column, Table, table_of
from loadgen.reports.terminal import subject, terms
from loadgen.words import NOT_KNOWN, STAMP, WHY_NOT_KNOWN, number, percent, percents, span

_SOURCES = (
    ("running", "the running batch, the x axis: tokens per engine step within the window, from the server's own "
     "counters, or its gauge of running requests (cells.csv: running_source). Not verified: the server reports "
     "neither, and requests in flight are shown instead."),
    ("B*", "the running batch at which the better side changes; target and reference are compared repeat by repeat on "
     "the logarithm of their ratio. Only crossings proven on both sides are reported."),
    ("SI, trap", "SI weighs accuracy (T), efficiency (E: speed and memory) and energy (S) against the reference, whose "
     "SI is 1. Trap: yes where the whole interval lies below 1, no where it lies above, else cannot tell."),
    ("tok/s", "output tokens that arrived within the window / its length, averaged over the repeats with a valid load; "
     "interval: Student's t over repeats, on logarithms."),
    ("TTFT, TPOT, E2E", "send to first token; (last - first token) / (tokens - 1); send to last byte. Quantiles of "
     "each cell, averaged over the repeats with valid latencies."),
    ("W, J/token, J/query", "energy of the window by the GPU's own counter (checked against the integral of its "
     "instantaneous power) over the window's length; over its tokens; energy per token times the mean tokens of an "
     "answer. cells.csv has both ways, the power at rest, and TDP times time as an upper bound (HLI)."),
    ("accuracy", "share of answers whose final number equals the published one, per item, then averaged over items; "
     "Wilson's interval over items. Truncated and unparsed answers count as not correct."),
    ("n, cut off, unparsed, guessed, stopped", "questions that the accuracy rests on; shares of their answers that the "
     "token limit cut off, that named no answer, that were read from the last number or letter without a mark, and "
     "that a stop string ended."),
    ("T_SI, lost, won, tokens, verdict", "accuracy over the reference's on the items that both answered, with a paired "
     "bootstrap over items; items that only the reference, or only the target, got right; mean output tokens of an "
     "answer, target : reference; exact McNemar and equivalence tests (within 2 percentage points) with Holm's "
     "correction over all comparisons of the run."),
)  # fmt: skip
_FILES = (
    "cells.csv has every cell's own figures, requests.parquet single requests with their time stamps, analysis.json "
    "everything on this page. Formulas and units of all columns: docs/metrics.md of loadgen."
)


def _sources() -> Html:
    """A definition per figure, then where the rest is."""
    entries = [part for name, text in _SOURCES for part in (element("dt", name), element("dd", text))]
    return join((element("dl", *entries), element("p", _FILES)))


HEADLINES = ("energy_per_query_j", "tokens_per_s")
"""The crossover of the first of them that was measured is the headline."""
_TRAP = {"trap": "yes", "no trap": "no", "cannot tell": "cannot tell"}


def _conditions(manifest: Manifest) -> str:
    """Dataset, protocol, batches, windows, repeats and date in one line."""
    dataset, protocol, config = manifest.dataset, manifest.protocol, manifest.config
    window = f"{config.duration_s:g} s" if config.duration_s else f"{config.requests} requests"
    b = ", ".join(map(str, config.concurrency))
    parts = [
        f"{dataset.name}, {dataset.items} items",
        f"protocol {protocol.name}, {protocol.api}, at most {protocol.max_tokens} tokens",
        f"B {b}" if config.arrival == CLOSED else f"{config.arrival}, at most {b} in flight",
        f"windows of {window}",
        f"{config.repeats} repeats",
        _started(manifest),
    ]
    return " · ".join(part for part in parts if part)


def _started(manifest: Manifest) -> str:
    """When the run began, in UTC; empty where the manifest does not say."""
    anchors = manifest.clock_anchors
    return f"{datetime.fromtimestamp(anchors[0].unix_ns / 1e9, UTC):%Y-%m-%d %H:%M} UTC" if anchors else ""


def _answer(run: Run) -> Html:
    """A sentence and the trap verdicts per target, then the figures behind both, B by B."""
    analysis = run.analysis
    if run.arrival is not None:
        return join([_traffic(run, target, told) for target, told in rows.traffic_sentences(run).items()])
    parts = [_target(run, target) for target in dict.fromkeys(entry.target for entry in analysis.crossovers)]
    if not parts:
        parts = [element("p", f"Only {analysis.reference} was measured: there is nothing to compare.", class_="big")]
    words = terms(analysis)
    return join((element("p", words, class_="small") if words else "", *parts, _comparison(run)))


def _target(run: Run, target: str) -> Html:
    analysis = run.analysis
    heading = f"{target} against {analysis.reference} "
    traps = [f"Quantization trap: {entry.sentence}" for entry in analysis.traps if entry.target == target]
    parts = [
        element("h3", heading, stamp(simulated=run.manifest.simulated)),
        element("p", _headline(analysis, target) + ".", class_="big"),
        _traps([entry for entry in analysis.indices if entry.target == target]),
        *(element("p", text + ".", class_="small") for text in (*traps, *_accuracy(run, target))),
    ]
    return element("article", *parts, class_="target")


def _traffic(run: Run, target: str, sentences: Mapping[float, str]) -> Html:
    """What an open loop says of one target; only a closed loop can say which precision pays off by B."""
    heading = element("h3", f"{target} at {run.arrival} ", stamp(simulated=run.manifest.simulated))
    smaller = (element("p", text + ".", class_="small") for text in _accuracy(run, target))
    several = len(sentences) > 1
    told = (f"{run.level(b)}: {sentence}." if several else f"{sentence}." for b, sentence in sentences.items())
    return element("article", heading, *(element("p", text, class_="big") for text in told), *smaller, class_="target")


def _headline(analysis: Analysis, target: str) -> str:
    found = {entry.metric: entry for entry in analysis.crossovers if entry.target == target}
    of_headlines = [found[metric] for metric in HEADLINES if metric in found]
    measured = [entry for entry in of_headlines if entry.refusal is None]
    shown = (measured or of_headlines)[0]
    return _capital(shown.sentence) if shown.status == "unresolved" else shown.sentence


def _traps(indices: Sequence[TargetIndices]) -> Html:
    """Trap: yes, no or cannot tell, over B; neighbours with the same verdict together."""
    spans = [(trap, [e.concurrency for e in alike]) for trap, alike in groupby(indices, lambda entry: entry.trap)]
    cells = [
        element("li", element("b", _TRAP[trap]), f" B = {span(b[0], b[-1])}", class_=trap.replace(" ", "-"))
        for trap, b in spans
    ]
    return element("div", element("span", "Trap?"), element("ul", *cells), class_="verdicts") if cells else Html("")


def _accuracy(run: Run, target: str) -> list[str]:
    """The verdict at the batch at which both answered most questions."""
    tests = [test for test in run.analysis.trust if test.target == target and test.items]
    if not tests:
        return []
    test = max(tests, key=lambda test: test.items or 0)
    where = f"Accuracy over the {test.items} questions that both answered at {run.level(test.held)}"
    return [f"{where}: {test.sentence}"]


Pair = tuple[TargetIndices, AccuracyComparison | None]
"""The indices, and the comparison of the answers at the same B."""
_COMPARISON = (
    Column[Pair]("target", lambda pair: pair[0].target, NAME),
    Column[Pair]("B", lambda pair: str(pair[0].concurrency)),
    Column[Pair]("tok/s × {}", lambda pair: rows.value(pair[0].e_si.eta, 2)),
    Column[Pair]("95% CI", lambda pair: rows.ends(pair[0].e_si.eta, 2), INTERVAL),
    Column[Pair]("J/query × {}", lambda pair: rows.value(_energy(pair[0]), 2)),
    Column[Pair]("95% CI", lambda pair: rows.ends(_energy(pair[0]), 2), INTERVAL),
    Column[Pair]("accuracy, pp", lambda pair: percent(pair[1].difference if pair[1] else None, 1, unit="", sign=True)),
    Column[Pair]("95% CI", lambda pair: _points(pair[1]), INTERVAL),
    Column[Pair]("n", lambda pair: str(pair[1].items) if pair[1] else ""),
    Column[Pair]("SI", lambda pair: rows.value(pair[0].si, 2)),
    Column[Pair]("95% CI", lambda pair: rows.ends(pair[0].si, 2), INTERVAL),
)


def _comparison(run: Run) -> Html:
    reference = run.analysis.reference
    compared = {(test.target, test.concurrency): test.comparison for test in run.analysis.trust}
    pairs = [(e, compared.get((e.target, e.concurrency))) for e in run.analysis.indices]
    made = table_of(_COMPARISON, pairs)
    made = Table(
        tuple(heading.format(reference) for heading in made.headings), made.kinds,
        [row for row in made.rows if any(row[2:])],
    ).filled  # fmt: skip
    label = f"Every target against {reference}, B by B"
    shown = table(made, label=label, simulated=run.manifest.simulated, grouped_by=("B",))
    note = element("p", WHY_NOT_KNOWN, class_="small") if any(NOT_KNOWN in row for row in made.rows) else ""
    return join((element("h3", label), shown, note)) if made.rows else Html("")


def _energy(entry: TargetIndices) -> Estimate | None:
    return entry.energy.ratio if entry.energy and entry.energy.source == "measured" else None


def _points(compared: AccuracyComparison | None) -> str:
    return percents(compared.difference_lo, compared.difference_hi, unit="", sign=True) if compared else ""


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


_GRAPHS = {True: "no (eager)", False: "yes", None: "not known"}
_SERVERS = (
    Column[ServerRecord]("server", lambda server: server.name, NAME),
    Column[ServerRecord]("repeat", lambda server: str(server.repeat)),
    Column[ServerRecord]("vLLM", lambda server: server.version or "not known", SHORT),
    Column[ServerRecord]("weights", lambda server: server.quantization or "not known", TEXT),
    Column[ServerRecord]("KV cache", lambda server: server.kv_cache_dtype or "not known", TEXT),
    Column[ServerRecord]("CUDA graphs", lambda server: _GRAPHS[server.eager], TEXT),
    Column[ServerRecord]("kernel", lambda server: ", ".join(server.kernels or ()) or "not known", TEXT),
    Column[ServerRecord]("command or URL", lambda s: " ".join(s.argv or ()) or s.url or "not known", TEXT),
)


def _manifest(run: Run) -> Html:
    """The facts that a reader looks for, then manifest.json whole."""
    manifest = run.manifest
    config, dataset, protocol, host = manifest.config, manifest.dataset, manifest.protocol, manifest.host
    models = dict.fromkeys(server.model for server in manifest.servers if server.model)
    published = "published file" if dataset.published else "another file than the published one"
    if protocol.answer == "none":
        published = "without answers to grade"
    shown = [
        ("simulated", f"yes, {STAMP}: a cost model answered, not a GPU" if manifest.simulated else "no"),
        ("started", _started(manifest)),
        ("model", config.model or ", ".join(models)),
        ("GPU", "; ".join(map(_gpu, manifest.gpu or ()))),
        ("power", ": ".join(filter(None, (manifest.power.kind, manifest.power.reason)))),
        ("dataset", f"{dataset.name}, {dataset.items} items, {published}, sha256 {dataset.sha256}"),
        ("protocol", f"{protocol.name}, sha256 {protocol.sha256}"),
        ("temperature", _shown(protocol.temperature)),
        ("seed", _shown(config.seed)),
        ("reference", config.reference),
        ("targets", ", ".join(target.name for target in config.targets)),
        ("client", f"loadgen {manifest.client.loadgen}"),
        ("host", ", ".join((f"{host.cpu}, {host.cpus} CPUs", *host.cpu_vectors))),
    ]
    whole = Folder(run.path).read("manifest.json").decode("utf-8", "replace")
    folded = element("details", element("summary", "manifest.json"), element("pre", whole))
    return join((facts(shown, label="Manifest, excerpt"), folded))


def _shown(value: float | None) -> str:
    return "" if value is None else str(value)


def _gpu(gpu: GpuInfo) -> str:
    parts = [
        gpu.name,
        f"{number(gpu.memory_total_bytes / 1e9, 0)} GB" if gpu.memory_total_bytes else "",
        f"{number(gpu.power_limit_enforced_w, 0)} W" if gpu.power_limit_enforced_w else "",
        f"driver {gpu.driver}" if gpu.driver else "",
    ]
    return ", ".join(filter(None, parts))


_ON_PAPER = Html(f'@page {{ @top-right {{ content: "{STAMP}"; font: 600 8pt sans-serif; color: #b00020 }} }}\n')
"""The stamp on every printed page."""
_BANNER = "every figure on this page comes from a cost model, none from a GPU."


def write_report(run: Run) -> Path:
    """Writes figures/ and report.html; returns the report's path."""
    text = page(run, draw_figures(run))
    path = run.path / "report.html"
    Folder(run.path).write(path.name, text.encode())
    return path


def page(run: Run, figures: Sequence[Figure]) -> str:
    """The page's markup, with those figures."""
    shown = _sections(run, figures)
    contents = element(
        "nav", element("ol", *(element("li", element("a", title, href=f"#{name}")) for name, title, _ in shown)),
        aria_label="Contents",
    )  # fmt: skip
    conditions = element("p", _conditions(run.manifest), class_="small")
    heading = element("header", element("h1", subject(run)), conditions, sections.validity(run))
    footer = element("footer", f"Made by loadgen {__version__} from a run of loadgen {run.manifest.client.loadgen}.")
    main = element("main", heading, contents, *(section for _, _, section in shown), footer)
    return document(f"loadgen: {subject(run)}", main, banner=_BANNER if run.manifest.simulated else None)


def document(title: str, main: Html, *, banner: str | None) -> str:
    """A self-contained page. It loads nothing, and no script but its own runs, whatever its texts hold. `banner`: of a
    simulated run, what to say behind the stamp."""
    style, script = _part("report.css"), _part("report.js")
    digest = b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", f"{STAMP} · {title}" if banner else title),
        element("style", join((style, _ON_PAPER)) if banner else style),
        element("script", script),
    )
    stamped = element("p", element("strong", STAMP), f": {banner}", class_="simulated", role="note") if banner else ""
    return f'<!doctype html>\n<html lang="en">{head}{element("body", stamped, main)}</html>\n'


def _part(name: str) -> Html:
    """A file of this package."""
    return Html(files("loadgen.reports.html").joinpath(name).read_text(encoding="utf-8"))


def _sections(run: Run, figures: Sequence[Figure]) -> list[tuple[str, str, Html]]:
    """Id, title and whole section, those that have something to show."""

    def drawn(section: str) -> Html:
        return gallery(figure for figure in figures if figure.section == section)

    contents = [
        ("answer", "The answer", join((_answer(run), drawn("answer")))),
        ("result", "Result", sections.result(run)),
        ("traffic", "Arrivals and goodput" if run.arrival else "Goodput", sections.traffic(run)),
        ("crossovers", "Crossovers", sections.crossovers(run)),
        ("paper", "Figures of the paper", drawn("paper")),
        ("accuracy", "Accuracy", sections.accuracy(run)),
        ("indices", "Indices", sections.indices(run)),
        ("claims", "Claims of the paper", sections.claims(run)),
        ("models", "Cost models", sections.models(run)),
        ("latency", "Latency", _folded("Distributions over all requests", drawn("latency"))),
        ("time", "Time lines", _folded("Power, in flight and running, cell by cell", drawn("time"))),
        ("client", "The client", sections.client(run)),
        ("doubts", "Warnings", sections.doubts(run)),
        ("sources", "Where the numbers come from", _sources()),
        ("servers", "Servers", sections.run_table(run, _SERVERS, run.manifest.servers, "Servers")),
        ("manifest", "Manifest", _manifest(run)),
    ]
    mark = stamp(simulated=run.manifest.simulated)
    return [
        (name, title, element("section", element("h2", title, " ", mark), content, id=name))
        for name, title, content in contents
        if content
    ]


def _folded(summary: str, content: Html) -> Html:
    return element("details", element("summary", summary), content) if content else content
