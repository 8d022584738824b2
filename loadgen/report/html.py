"""report.html: one self-contained file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from loadgen._version import __version__
from loadgen.analysis.run import Run
from loadgen.report.answer import CLAIMS, answer_sentences, claim_rows
from loadgen.report.figures import draw_figures
from loadgen.report.table import HEADINGS, shown_columns, table_rows
from loadgen.report.trust import AGAINST, BY_DEPTH, OVER_B, against_rows, depth_rows, depth_sentences, over_b_rows

_ID = re.compile(r'\bid="|url\(#|xlink:href="#')
"""SVG ids are global to a page: every figure's get the figure's name in front."""

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 78rem; padding: 0 1rem; color: #1c1c1c }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums } .scroll { overflow-x: auto }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #e2e2e2; white-space: nowrap }
th { border-bottom: 2px solid #888 } td.text, th.text { text-align: left } tr.first td { border-top: 2px solid #bbb }
.simulated { background: #b00020; color: #fff; padding: .6rem 1rem; font-weight: 600 }
.figures { display: flex; flex-wrap: wrap; gap: 1rem } .figures svg { max-width: 38rem; height: auto }
figure { margin: 0 } code { font-size: .85em; overflow-wrap: anywhere } .warn { color: #8a4b00 }
"""
_SOURCES = """
<dl>
<dt>running</dt><dd>the running batch, the x axis: tokens per engine step within the window, from the server's own
counters (its gauge num_requests_running where those are missing).</dd>
<dt>tok/s</dt><dd>output tokens that arrived within the window / its length, averaged over valid repeats;
interval: Student's t over repeats, on logarithms.</dd>
<dt>TTFT, TPOT, E2E</dt><dd>send to first token; (last - first token) / (tokens - 1); send to last byte. Quantiles of
each cell, averaged over valid repeats.</dd>
<dt>W, J/token, J/query</dt><dd>energy of the window by the GPU's own counter (checked against the integral of its
instantaneous power) over the window's length; over its tokens; energy per token times the mean tokens of an answer.
cells.csv has both ways, the power at rest, and TDP times time as an upper bound (HLI).</dd>
<dt>accuracy</dt><dd>share of answers whose final number equals the published one, per item, then averaged over items;
Wilson's interval over items. Truncated and unparsed answers count as not correct.</dd>
<dt>T_SI, lost, won, tokens, verdict</dt><dd>accuracy over the reference's on the items that both answered, with a
paired bootstrap over items; items that only the reference, or only the target, got right; mean output tokens of an
answer, target : reference; exact McNemar and equivalence tests (within 2 percentage points) with Holm's correction over
all comparisons of the run.</dd>
</dl>
<p>A cell's own figures stand in cells.csv, single requests with their time stamps in requests.parquet.</p>
"""


def write_report(run: Run) -> Path:
    """Writes figures/ and report.html; returns the report's path."""
    summary = run.summary
    figures = draw_figures(run.path, summary)
    path = run.path / "report.html"
    partial = path.with_suffix(".partial")
    partial.write_text(_page(run, summary, figures), encoding="utf-8")
    partial.replace(path)
    return path


def _page(run: Run, summary: pd.DataFrame, figures: dict[str, Path]) -> str:
    manifest = run.manifest
    title = f"loadgen: {manifest['config']['model'] or run.path.name}"
    simulated = manifest["simulated"]
    banner = (
        '<p class="simulated">SIMULATED: every figure on this page comes from a cost model, none from a GPU.</p>'
        if simulated
        else ""
    )
    if simulated:
        title = f"SIMULATED · {title}"
    cells = run.cells
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style></head><body>
{banner}<h1>{escape(title)}</h1>
<p>{escape(_facts(manifest))} · {int(cells["valid"].sum())} of {len(cells)} cells valid</p>
{_answer(run.analysis)}
<h2>Result</h2><div class="scroll">{_table(summary, manifest["config"]["reference"])}</div>
{_trust(run.analysis)}
{_warnings(run.analysis["warnings"])}
<h2>Curves</h2><div class="figures">{"".join(_inline(path) for path in figures.values())}</div>
<h2>Where the numbers come from</h2>{_SOURCES}
<h2>Servers</h2>{_servers(manifest["servers"])}
<p>loadgen {escape(__version__)}; measured by loadgen {escape(manifest["client"]["loadgen"])} on
{escape(str(manifest["host"]["cpu"]))}, {manifest["host"]["cpus"]} CPUs. Everything else: manifest.json.</p>
</body></html>
"""


def _facts(manifest: dict[str, Any]) -> str:
    dataset, protocol, config = manifest["dataset"], manifest["protocol"], manifest["config"]
    window = f"{config['duration_s']:g} s" if config["duration_s"] else f"{config['requests']} requests"
    return (
        f"{dataset['name']}, {dataset['items']} items · protocol {protocol['name']}, {protocol['api']}, at most "
        f"{protocol['max_tokens']} tokens · B {', '.join(map(str, config['concurrency']))} · windows of {window} · "
        f"{config['repeats']} repeats"
    )


def _table(summary: pd.DataFrame, reference: str) -> str:
    rows = table_rows(summary, reference)
    columns = shown_columns(rows)
    heads = "".join(f"<th{_text_class(place)}>{escape(HEADINGS[place])}</th>" for place in columns)
    body = []
    last = ""
    for row in rows:
        first = ' class="first"' if row[0] != last else ""
        last = row[0]
        cells = "".join(f"<td{_text_class(place)}>{escape(row[place])}</td>" for place in columns)
        body.append(f"<tr{first}>{cells}</tr>")
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def _answer(analysis: dict[str, Any]) -> str:
    """The crossovers and the trap verdict in words, target by target."""
    stamp = " (SIMULATED)" if analysis["simulated"] else ""
    parts = [
        f"<h3>{escape(target)} against {escape(analysis['reference'])}{stamp}</h3>"
        f"<ul>{''.join(f'<li>{escape(sentence)}</li>' for sentence in sentences)}</ul>"
        for target, sentences in answer_sentences(analysis).items()
    ]
    return f"<h2>The answer</h2>{''.join(parts)}" if parts else ""


def _trust(analysis: dict[str, Any]) -> str:
    """Accuracy against the reference, over B and by depth; empty where nothing was graded."""
    parts, simulated = [], analysis["simulated"]
    if analysis["trust"]:
        reference = escape(analysis["trust"][0]["reference"])
        sentences = "".join(
            f"<li>{escape(test['target'])}, B = {test['concurrency']}: {escape(test['sentence'])}</li>"
            for test in analysis["trust"]
        )
        parts.append(f"<h2>Accuracy against {reference}, question by question</h2>")
        parts.append(_rows(AGAINST, against_rows(analysis["trust"], simulated=simulated)) + f"<ul>{sentences}</ul>")
    if analysis["trust_invariance"]:
        parts.append("<h2>Accuracy over the batch size</h2>")
        parts.append(_rows(OVER_B, over_b_rows(analysis["trust_invariance"], simulated=simulated)))
    if rows := depth_rows(analysis["depth"], simulated=simulated):
        told = "".join(f"<li>{escape(sentence)}</li>" for sentence in depth_sentences(analysis["depth"]))
        parts.append(f"<h2>Loss by reasoning steps</h2>{_rows(BY_DEPTH, rows)}<ul>{told}</ul>")
    if claims := analysis["claims"]:
        parts.append("<h2>The claims of arXiv 2602.13595, held against this run</h2>")
        parts.append(_rows(CLAIMS, claim_rows(claims, simulated=simulated)))
    return "".join(parts)


def _rows(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    heads = "".join(f'<th class="text">{escape(heading)}</th>' for heading in headings)
    body = "".join(f"<tr>{''.join(f'<td>{escape(value)}</td>' for value in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>'


def _text_class(place: int) -> str:
    return ' class="text"' if HEADINGS[place] == "target" else ""


def _warnings(warnings: list[str]) -> str:
    if not warnings:
        return ""
    entries = "".join(f"<li>{escape(warning)}</li>" for warning in warnings)
    return f'<h2>Warnings</h2><ul class="warn">{entries}</ul>'


def _servers(servers: list[dict[str, Any]]) -> str:
    entries = []
    for server in servers:
        command = " ".join(server.get("argv", [])) or server["url"]
        kernels = ", ".join(server.get("kernels", [])) or "not known"
        entries.append(
            f"<li>{escape(server['name'])}, repeat {server['repeat']}: vLLM {escape(str(server['version']))}, "
            f"kernel {escape(kernels)}<br><code>{escape(command)}</code></li>"
        )
    return f"<ul>{''.join(entries)}</ul>"


def _inline(path: Path) -> str:
    svg = path.read_text(encoding="utf-8")
    svg = _ID.sub(rf"\g<0>{path.stem}-", svg[svg.index("<svg") :])
    return f"<figure>{svg}</figure>"
