"""The page: head, first screen, sections, sources, servers and manifest."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path

from loadgen import __version__
from loadgen.analysis.kvcache import kv_caches
from loadgen.analysis.run import Run
from loadgen.folder import Folder
from loadgen.load.openloop import CLOSED
from loadgen.power.sample import GpuInfo
from loadgen.record.manifest import Manifest, ServerRecord
from loadgen.reports.figures import Figure, draw_figures
from loadgen.reports.glossary import GLOSSARY, Term, first_used
from loadgen.reports.html import sections
from loadgen.reports.html.advice import advice
from loadgen.reports.html.answer import answer, in_full, lead
from loadgen.reports.html.markup import Html, element, facts, gallery, join, words_of
from loadgen.reports.rows import NAME, SHORT, TEXT, Column
from loadgen.reports.terminal import subject
from loadgen.words import STAMP, count, number

_FILES = (
    "cells.csv has every cell's own figures, requests.parquet single requests with their time stamps, analysis.json "
    "everything on this page. Formulas and units of all columns: docs/metrics.md of loadgen."
)


def _sources() -> Html:
    """The glossary in full, then where the rest is."""
    entries = [
        part
        for term in GLOSSARY
        for part in (element("dt", term.name), element("dd", _capital(f"{term.short} {term.source}".rstrip())))
    ]
    return join((element("dl", *entries), element("p", _FILES)))


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _conditions(manifest: Manifest, shape: str | None) -> str:
    """Dataset, protocol, batches, windows, repeats and date in one line; `shape`: which one of several is shown."""
    dataset, protocol, config = manifest.dataset, manifest.protocol, manifest.config
    window = f"{config.duration_s:g} s" if config.duration_s else f"{config.requests} requests"
    b = ", ".join(map(str, config.concurrency))
    parts = [
        f"{dataset.name}, {dataset.items} items",
        f"protocol {protocol.name}, {protocol.api}, at most {protocol.max_tokens} tokens",
        config.load if config.find or config.arrival != CLOSED else f"B {b}",
        f"of {len(config.shapes)} shapes {shape} is shown" if shape else "",
        f"windows of {window}",
        f"{len(manifest.steps)} step{'s' * (len(manifest.steps) != 1)}" if config.find else f"{config.repeats} repeats",
        _started(manifest),
        caches.sentence if (caches := kv_caches(manifest)) is not None else "",
    ]
    return " · ".join(part for part in parts if part)


def _started(manifest: Manifest) -> str:
    """When the run began, in UTC; empty where the manifest does not say."""
    anchors = manifest.clock_anchors
    return f"{datetime.fromtimestamp(anchors[0].unix_ns / 1e9, UTC):%Y-%m-%d %H:%M} UTC" if anchors else ""


_GRAPHS = {True: "no (eager)", False: "yes", None: "not known"}
_SERVERS = (
    Column[ServerRecord]("server", lambda server: server.name, NAME),
    Column[ServerRecord]("repeat", lambda server: str(server.repeat)),
    Column[ServerRecord]("vLLM", lambda server: server.version or "not known", SHORT),
    Column[ServerRecord]("weights", lambda server: server.quantization or "not known", TEXT),
    Column[ServerRecord]("KV cache", lambda server: server.kv_cache_dtype or "not known", TEXT),
    Column[ServerRecord]("KV tokens", lambda server: count(server.kv_cache.tokens) if server.kv_cache else ""),
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
_BANNER = "figures of a cost model, not of a GPU."


def write_report(run: Run) -> Path:
    """Writes figures/ and report.html; returns the report's path."""
    text = page(run, draw_figures(run))
    path = run.path / "report.html"
    Folder(run.path).write(path.name, text.encode())
    return path


def page(run: Run, figures: Sequence[Figure]) -> str:
    """The page's markup, with those figures."""
    shown, conditions = lead(figures), element("p", _conditions(run.manifest, run.shape), class_="small")
    heading = element("header", element("h1", subject(run)), conditions, sections.validity(run))
    first = answer(run, shown, Html(""))
    terms, explained = _explained(join((heading, first)), ())
    folds, links = [], [element("li", element("a", "The answer", href="#answer"))]
    for name, title, hint, content in _sections(run, [figure for figure in figures if figure is not shown]):
        new, explained = ("", explained) if name == "sources" else _explained(content, explained)
        folds.append(fold(name, title, hint, join((new, content))))
        links.append(element("li", element("a", title, href=f"#{name}")))
    footer = element("footer", f"Made by loadgen {__version__} from a run of loadgen {run.manifest.client.loadgen}.")
    main = element(
        "main", heading,
        element("nav", element("ol", *links), aria_label="Contents"),
        element("section", element("h2", "The answer", class_="unseen"), answer(run, shown, terms), id="answer"),
        element("div", *folds, class_="folds"), footer,
    )  # fmt: skip
    return document(f"loadgen: {subject(run)}", main, banner=_BANNER if run.manifest.simulated else None)


def fold(name: str, title: str, hint: str, content: Html) -> Html:
    """A section, closed until it is asked for. A link to its id opens it, as browsers do for what is inside."""
    head = element("summary", element("h2", title), " ", element("span", hint, class_="hint") if hint else "")
    inside = element("div", content, id=name, class_="inside")
    return element("section", element("details", head, inside, class_="fold"))


def _explained(content: Html, known: Sequence[Term]) -> tuple[Html, tuple[Term, ...]]:
    """A line on the terms that the content is the first to use; then all that are known."""
    new = first_used(words_of(content), known)
    texts = [join((element("dfn", term.name), f": {term.short} ")) for term in new]
    return element("p", *texts, class_="terms") if new else Html(""), (*known, *new)


def document(title: str, main: Html, *, banner: str | None) -> str:
    """A self-contained page. It loads nothing, and no script but its own runs, whatever its texts hold. `banner`: of a
    simulated run, what to say behind the stamp."""
    style, script = _part("report.css"), join(map(_part, ("report.js", "tables.js", "figures.js", "advice.js")))
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


def _sections(run: Run, figures: Sequence[Figure]) -> list[tuple[str, str, str, Html]]:
    """Id, title, what is inside and the content, those that have something to show."""

    def drawn(section: str) -> Html:
        return gallery(figure for figure in figures if figure.section == section)

    compared, traffic = f"Against {run.analysis.reference}", "Arrivals and goodput" if run.arrival else "Goodput"
    contents = [
        ("search", "The search for B*", "step by step", join((sections.search(run), drawn("search")))),
        ("compared", compared, f"verdicts with their reasons{'' if run.arrival else '; ratios B by B'}", in_full(run)),
        ("advice", "Advice for your rate", "which target, how many GPUs, joules and cost", advice(run)),
        ("result", "Result", f"every figure, by target and {'rate' if run.arrival else 'B'}", sections.result(run)),
        ("curves", "Curves", f"each metric over the {'rate' if run.arrival else 'batch'}", drawn("answer")),
        ("pareto", "Speed per user", "against throughput per GPU and energy: the Pareto frontier", drawn("pareto")),
        ("traffic", traffic, "", sections.traffic(run)),
        ("crossovers", "Crossovers", "where the better side changes, by six metrics", sections.crossovers(run)),
        ("paper", "Figures of the paper", "as in arXiv 2602.13595", drawn("paper")),
        ("accuracy", "Accuracy", "question by question, over B, by reasoning steps", sections.accuracy(run)),
        ("indices", "Indices", "SI and its parts, weights, dominance", sections.indices(run)),
        ("claims", "Claims of the paper", "a verdict and the evidence for each", sections.claims(run)),
        ("tokens", "Joules by token", "prompt and output tokens apart, over the shapes", sections.token_energy(run)),
        ("models", "Cost models", "fits, and what they say", sections.models(run)),
        ("latency", "Latency", "distributions over all requests", drawn("latency")),
        ("time", "Time lines", "power, in flight and running, cell by cell", drawn("time")),
        ("client", "The client", "how close it came to its limits", sections.client(run)),
        ("doubts", "Warnings", "what is invalid and why; reservations", sections.doubts(run)),
        ("sources", "Where the numbers come from", "the glossary, and how each figure is made", _sources()),
        ("servers", "Servers", "what ran", sections.run_table(run, _SERVERS, run.manifest.servers, "Servers")),
        ("manifest", "Manifest", "the settings of the run", _manifest(run)),
    ]
    return [entry for entry in contents if entry[3]]
