"""compare.html: one self-contained file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from loadgen._version import __version__
from loadgen.analysis.compare.comparison import RunComparison
from loadgen.folder import Folder
from loadgen.report.compare.figures import cor_over_size, speed_over_concurrency
from loadgen.report.compare.rows import (
    BANNER,
    CLAIMED,
    COR_MEANS,
    IMPORTED,
    PUBLISHED,
    RUNS,
    TEXT,
    Rows,
    claim_lines,
    imported_rows,
    notes,
    published_rows,
    run_rows,
    told,
)
from loadgen.report.html.markup import escaped

_STYLE = """
:root { color-scheme: light dark }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 78rem; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.2rem } .scroll { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #8884; white-space: nowrap }
td.text, th.text { text-align: left } td.long { white-space: normal; min-width: 16rem }
.simulated { background: #b00020; color: #fff; padding: .6rem 1rem; font-weight: 600 }
figure { margin: 1rem 0; background: #fff; display: inline-block } svg { max-width: 100%; height: auto }
"""


def write_page(comparison: RunComparison, out: Path) -> Path:
    """Writes compare.html, one self-contained file, into the folder `out`; returns its path."""
    path = out / "compare.html"
    Folder(out).write(path.name, _page(comparison).encode())
    return path


def _page(comparison: RunComparison) -> str:
    title = "loadgen compare: " + ", ".join(dict.fromkeys(row.run for row in comparison.rows))
    stamp = "SIMULATED · " if comparison.simulated else ""
    banner = f'<p class="simulated">{BANNER}</p>' if comparison.simulated else ""
    figures = [cor_over_size(comparison.n_stars), speed_over_concurrency(comparison.rows, comparison.imports)]
    parts = [
        _list(told(comparison)),
        *(f"<figure>{svg}</figure>" for svg in figures if svg),
        "<h2>Runs</h2>" + _html_table(RUNS, run_rows(comparison.rows)),
        _section("The paper's claims over model size", _html_table(CLAIMED, claim_lines(comparison.claims))),
        _section("Published figures beside ours", _html_table(PUBLISHED, published_rows(comparison.published))),
        _published_n_star(comparison),
        _section("Imported from other tools", _html_table(IMPORTED, imported_rows(comparison.imports))),
        _list([f"{tool}: {how}" for tool, how in comparison.differences.items()]),
        _section("Notes", _list(notes(comparison))),
    ]
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escaped(stamp + title)}</title><style>{_STYLE}</style></head><body>
{banner}<h1>{escaped(stamp + title)}</h1>
<h2>N*, the model size at which COR is zero</h2>
<p>{escaped(COR_MEANS)}</p>
{"".join(parts)}
<p>N* is the zero of COR over log N where everything else is equal. Intervals are 95%. loadgen {__version__}</p>
</body></html>
"""


def _published_n_star(comparison: RunComparison) -> str:
    if not comparison.published_n_star:
        return ""
    ends = " to ".join(f"{figure.value:g}" for figure in comparison.published_n_star)
    first = comparison.published_n_star[0]
    where = f"{first.precision}, {first.dataset}, {first.gpu}"
    return f"<p>Published N*: {ends} {escaped(first.unit)} ({escaped(where)}; {escaped(first.source)}).</p>"


def _section(title: str, content: str) -> str:
    return f"<h2>{title}</h2>{content}" if content else ""


def _list(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escaped(line)}</li>" for line in lines) + "</ul>" if lines else ""


def _html_table(headings: Sequence[str], rows: Rows) -> str:
    if not rows:
        return ""
    places = [place for place in range(len(headings)) if any(row[place] for row in rows)]
    classes: Mapping[int, str] = {place: "text" if headings[place] in TEXT else "" for place in places}
    head = "".join(f'<th class="{classes[place]}">{escaped(headings[place])}</th>' for place in places)
    body = "".join(
        "<tr>" + "".join(
            f'<td class="{classes[place]}{" long" if len(row[place]) > 60 else ""}">{escaped(row[place])}</td>'
            for place in places
        ) + "</tr>"
        for row in rows
    )  # fmt: skip
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'
