"""The page: head, first screen, sections.

Where the numbers come from, in short; docs/metrics.md has every formula.

What was run, on what: servers, and the manifest as an excerpt and whole.

The first screen: what was measured, what came out of it, and how sure that is.
"""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.resources import files
from itertools import groupby
from pathlib import Path
from typing import Any

from loadgen._version import __version__
from loadgen.analysis.run import Run
from loadgen.folder import Folder
from loadgen.load.openloop import CLOSED
from loadgen.power.sample import GpuInfo
from loadgen.record.manifest import Manifest
from loadgen.reports.figures import Figure, draw_figures
from loadgen.reports.figures.sheet import looks_of
from loadgen.reports.grid import NOT_KNOWN, WHY_NOT_KNOWN, interval
from loadgen.reports.html.markup import Html, element, facts, gallery, join, stamp, table
from loadgen.reports.html.sections import (
    accuracy,
    claims,
    client,
    crossovers,
    doubts,
    indices,
    models,
    result,
    traffic,
    validity,
)
from loadgen.reports.rows import traffic_sentences
from loadgen.reports.terminal import subject, terms
from loadgen.reports.words import STAMP

_SOURCES = (
    ("running", "the running batch, the x axis: tokens per engine step within the window, from the server's own "
     "counters, or its gauge of running requests (cells.csv: running_source). Not verified: the server tells neither, "
     "and requests in flight stand for it."),
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
    "everything that is said here. Formulas and units of all columns: docs/metrics.md of loadgen."
)


def sources() -> Html:
    """A definition per figure, then where the rest stands."""
    entries = [part for name, text in _SOURCES for part in (element("dt", name), element("dd", text))]
    return join((element("dl", *entries), element("p", _FILES)))


HEADLINES = ("energy_per_query_j", "tokens_per_s")
"""The crossover of the first of them that was measured is the headline."""
_GLANCE = ("target", "B", "tok/s × ref", "95% CI", "J/query × ref", "95% CI", "accuracy, pp", "95% CI", "n", "SI",
           "95% CI")  # fmt: skip
_TRAP = {"trap": "yes", "no trap": "no", "cannot tell": "cannot tell"}


def conditions(manifest: Manifest) -> str:
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
        started(manifest),
    ]
    return " · ".join(part for part in parts if part)


def started(manifest: Manifest) -> str:
    """When the run began, in UTC; empty where the manifest does not say."""
    if not manifest.clock_anchors:
        return ""
    return f"{datetime.fromtimestamp(manifest.clock_anchors[0].unix_ns / 1e9, UTC):%Y-%m-%d %H:%M} UTC"


def verdicts(run: Run) -> Html:
    """A sentence and a row of verdicts per target, then the figures behind both, B by B."""
    analysis = run.analysis_json
    if run.arrival is not None:
        return join([_traffic(run, target, told) for target, told in traffic_sentences(run).items()])
    targets = list(dict.fromkeys(entry["target"] for entry in analysis["crossovers"]))
    parts = [_target(run, target) for target in targets]
    if not parts:
        parts = [element("p", f"Only {analysis['reference']} was measured: there is nothing to compare.", class_="big")]
    words = terms(analysis)
    return join((element("p", words, class_="small") if words else "", *parts, _glance(analysis)))


def _target(run: Run, target: str) -> Html:
    analysis = run.analysis_json
    simulated = analysis["simulated"]
    heading = element("h3", f"{target} against {analysis['reference']} ", stamp(simulated=simulated))
    traps = [entry["sentence"] for entry in analysis.get("traps", ()) if entry["target"] == target]
    parts = [
        heading,
        element("p", _headline(analysis, target), class_="big"),
        _strip([entry for entry in analysis["indices"] if entry["target"] == target]),
        *(element("p", _sentence(text), class_="small") for text in traps),
        *(element("p", text, class_="small") for text in _accuracy(run, target)),
    ]
    return element("article", *parts, class_="target")


def _traffic(run: Run, target: str, told: str) -> Html:
    """What an open loop says of one target; which precision pays off by B is a closed loop's to say."""
    heading = element("h3", f"{target} at {run.arrival} ", stamp(simulated=run.analysis_json["simulated"]))
    smaller = (element("p", text, class_="small") for text in _accuracy(run, target))
    return element("article", heading, element("p", _sentence(told), class_="big"), *smaller, class_="target")


def _headline(analysis: Entry, target: str) -> str:
    found = {entry["metric"]: entry for entry in analysis["crossovers"] if entry["target"] == target}
    there = [found[metric] for metric in HEADLINES if metric in found]
    measured = [entry for entry in there if entry["refusal"] is None]
    return _sentence((measured or there)[0]["sentence"])


def _strip(indices: Sequence[Entry]) -> Html:
    """Trap: yes, no or cannot tell, over B; neighbours with the same verdict together."""
    spans = [(trap, list(span)) for trap, span in groupby(indices, key=lambda entry: entry["trap"])]
    cells = [
        element("li", element("b", _TRAP[trap]), f" B = {_ends(span)}", class_=str(trap).replace(" ", "-"))
        for trap, span in spans
    ]
    return element("div", element("span", "Trap?"), element("ul", *cells), class_="verdicts") if cells else Html("")


def _ends(span: Sequence[Entry]) -> str:
    first, last = span[0]["concurrency"], span[-1]["concurrency"]
    return str(first) if first == last else f"{first}–{last}"


def _accuracy(run: Run, target: str) -> list[str]:
    """Of the batch at which both answered most questions."""
    tests = [test for test in run.analysis_json["trust"] if test["target"] == target and test["items"]]
    if not tests:
        return []
    test = max(tests, key=lambda test: int(test["items"]))
    where = f"accuracy over the {test['items']:g} questions that both answered at {run.level(test['concurrency'])}"
    return [_sentence(f"{where}: {test['sentence']}")]


def _glance(analysis: Entry) -> Html:
    differences = {(test["target"], test["concurrency"]): test["comparison"] for test in analysis["trust"]}
    suffix = f" {STAMP}" if analysis["simulated"] else ""
    rows = []
    for entry in analysis["indices"]:
        energy, compared = entry["energy"] or {}, differences.get((entry["target"], entry["concurrency"])) or {}
        rows.append(
            (
                entry["target"] + suffix,
                str(entry["concurrency"]),
                *_estimate(entry["e_si"]["eta"]),
                *_estimate(energy.get("ratio") if energy.get("source") == "measured" else None),
                *_points(compared),
                *_estimate(entry["si"]),
            )
        )
    rows = [row for row in rows if any(row[2:])]
    label = f"Every target against {analysis['reference']}, B by B"
    shown = [place for place in range(len(_GLANCE)) if any(row[place] for row in rows)]
    headings = [_GLANCE[place].replace("ref", analysis["reference"]) for place in shown]
    made = table(headings, [[row[place] for place in shown] for row in rows], label=label, grouped_by=(1,))
    note = element("p", WHY_NOT_KNOWN, class_="small") if any(NOT_KNOWN in row for row in rows) else ""
    return join((element("h3", label), made, note)) if rows else Html("")


def _estimate(found: Entry | None) -> tuple[str, str]:
    if found is None:
        return "", ""
    return f"{found['value']:.2f}", interval(found["lo"], found["hi"], 2)


def _points(compared: Entry) -> tuple[str, str, str]:
    """A difference of accuracies in percentage points, and the questions that it rests on."""
    if compared.get("difference") is None:
        return "", "", ""
    low, high = compared["difference_lo"], compared["difference_hi"]
    interval = "" if low is None or high is None else f"{_signed(low)} to {_signed(high)}"
    return _signed(compared["difference"]), interval, str(compared["items"])


def _signed(share: float) -> str:
    return f"{100 * share:+.1f}".replace("-", "\N{MINUS SIGN}")


def _sentence(text: str) -> str:
    """With a capital where it does not begin with a name, and a full stop."""
    begun = text[:1].upper() + text[1:] if text.startswith(("not decided", "quantization", "accuracy")) else text
    return begun if begun.endswith(".") else f"{begun}."


Entry = Mapping[str, Any]
_SERVERS = ("server", "repeat", "vLLM", "weights", "KV cache", "CUDA graphs", "kernel", "command or address")
_GRAPHS = {True: "no (eager)", False: "yes", None: "not known"}


def servers(manifest: Manifest) -> Html:
    """A row per server and repeat."""
    rows = [
        (
            f"{server.name} {STAMP}" if manifest.simulated else server.name,
            str(server.repeat),
            server.version or "not known",
            server.quantization or "not known",
            server.kv_cache_dtype or "not known",
            _GRAPHS[server.eager],
            ", ".join(server.kernels or ()) or "not known",
            " ".join(server.argv or ()) or server.url or "not known",
        )
        for server in manifest.servers
    ]
    return table(_SERVERS, rows, label="Servers", short_columns=(0, 2))


def manifest_excerpt(run: Run) -> Html:
    """The facts that a reader looks for, then manifest.json as it stands."""
    manifest = run.manifest
    config, dataset, protocol, host, power = (
        manifest.config, manifest.dataset, manifest.protocol, manifest.host, manifest.power,
    )  # fmt: skip
    models = dict.fromkeys(server.model for server in manifest.servers if server.model)
    published = "published file" if dataset.published else "another file than the published one"
    rows = [
        ("simulated", f"yes, {STAMP}: a cost model answered, not a GPU" if manifest.simulated else "no"),
        ("started", started(manifest)),
        ("model", config.model or ", ".join(models)),
        ("GPU", "; ".join(map(_gpu, manifest.gpu or ()))),
        ("power", ": ".join(filter(None, (power.kind, power.reason)))),
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
    return join(
        (
            facts(rows, label="Manifest, excerpt"),
            element("details", element("summary", "manifest.json"), element("pre", whole)),
        )
    )


def _gpu(gpu: GpuInfo) -> str:
    parts = [gpu.name]
    if gpu.memory_total_bytes:
        parts.append(f"{gpu.memory_total_bytes / 1e9:.0f} GB")
    if gpu.power_limit_enforced_w:
        parts.append(f"{gpu.power_limit_enforced_w:.0f} W")
    if gpu.driver:
        parts.append(f"driver {gpu.driver}")
    return ", ".join(parts)


def _shown(value: Any) -> str:
    return "" if value is None else str(value)


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
    simulated = run.manifest.simulated
    sections = _sections(run, figures, simulated)
    contents = element(
        "nav", element("ol", *(element("li", element("a", title, href=f"#{name}")) for name, title, _ in sections)),
        aria_label="Contents",
    )  # fmt: skip
    banner = element("p", element("strong", STAMP), f": {_BANNER}", class_="simulated", role="note")
    conditions_line = element("p", conditions(run.manifest), class_="small")
    heading = element("header", element("h1", subject(run)), conditions_line, validity(run))
    body = element(
        "body",
        banner if simulated else "",
        element("main", heading, contents, *(section for _, _, section in sections), _footer(run)),
    )
    return f'<!doctype html>\n<html lang="en">{_head(run, simulated)}{body}</html>\n'


def _head(run: Run, simulated: bool) -> Html:
    """Nothing may be loaded, and no script but this one may run, whatever the run's texts hold."""
    style, script = _part("report.css"), _part("report.js")
    digest = b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'"
    title = f"loadgen: {subject(run)}"
    return element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", f"{STAMP} · {title}" if simulated else title),
        element("style", join((style, _ON_PAPER)) if simulated else style),
        element("script", script),
    )


def _sections(run: Run, figures: Sequence[Figure], simulated: bool) -> list[tuple[str, str, Html]]:
    """Id, title and whole section, those that have something to show."""
    analysis = run.analysis_json
    targets = {look.slug: look.target for look in looks_of(run.summary["target"]).values()}

    def drawn(section: str) -> Html:
        return gallery([figure for figure in figures if figure.section == section], targets)

    contents = [
        ("answer", "The answer", join((verdicts(run), drawn("answer")))),
        ("result", "Result", result(run)),
        ("traffic", "Arrivals and goodput" if run.arrival else "Goodput", traffic(run)),
        ("crossovers", "Crossovers", crossovers(analysis)),
        ("paper", "Figures of the paper", drawn("paper")),
        ("accuracy", "Accuracy", accuracy(run)),
        ("indices", "Indices", indices(analysis)),
        ("claims", "Claims of the paper", claims(analysis)),
        ("models", "Cost models", models(analysis)),
        ("latency", "Latency", _folded("Distributions over all requests", drawn("latency"))),
        ("time", "Time lines", _folded("Power, in flight and running, cell by cell", drawn("time"))),
        ("client", "The client", client(analysis)),
        ("doubts", "Warnings", doubts(run)),
        ("sources", "Where the numbers come from", sources()),
        ("servers", "Servers", servers(run.manifest)),
        ("manifest", "Manifest", manifest_excerpt(run)),
    ]
    return [
        (name, title, element("section", element("h2", title, " ", stamp(simulated=simulated)), content, id=name))
        for name, title, content in contents
        if content
    ]


def _folded(summary: str, content: Html) -> Html:
    return element("details", element("summary", summary), content) if content else content


def _footer(run: Run) -> Html:
    measured = run.manifest.client.loadgen
    return element("footer", f"Made by loadgen {__version__} from a run of loadgen {measured}.")


def _part(name: str) -> Html:
    """A file of this package."""
    return Html(files("loadgen.reports.html").joinpath(name).read_text(encoding="utf-8"))
