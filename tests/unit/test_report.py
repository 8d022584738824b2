"""report.html and the derived files: self-contained, stamped, escaped, and the same bytes every time."""

from __future__ import annotations

import csv
import hashlib
import re
import shutil
from base64 import b64decode
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest
from made_run import answer, cell, ended, make_run, scrape, write_cell
from msgspec.structs import replace

import loadgen
from loadgen.analysis.analyse import analyse
from loadgen.analysis.crossover.crossing import Crossing
from loadgen.analysis.models.study import ModelStudy
from loadgen.analysis.run import Run
from loadgen.errors import UsageError
from loadgen.power.sample import GpuInfo
from loadgen.reports.glossary import GLOSSARY, first_used
from loadgen.reports.html import write_report
from loadgen.reports.html.page import page

DERIVED = ("requests.parquet", "server.parquet", "cells.csv", "summary.csv", "analysis.json", "report.html")
HOSTILE = "</script><img src=x onerror=alert(1)>\"'&[bold]"
SCRIPT_LIMIT_BYTES = 29_000


class Outline(HTMLParser):
    """Tags with their attributes, and headings with their depth, in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.depths: list[int] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if re.fullmatch("h[1-6]", tag):
            self.depths.append(int(tag[1]))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def analysed(run_dir: Path) -> Run:
    analyse(run_dir)
    return loadgen.load_run(run_dir)


def words(run_dir: Path) -> tuple[Run, str]:
    """The run and its page, figures left out."""
    run = analysed(run_dir)
    return run, page(run, [])


def body(text: str) -> str:
    """The page without style and script."""
    return text[text.index("<body") :]


def hashes(run_dir: Path) -> dict[str, str]:
    paths = [run_dir / name for name in DERIVED] + sorted((run_dir / "figures").iterdir())
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A simulated run with its report written."""
    run = analysed(make_run(tmp_path_factory.mktemp("simulated") / "run", simulated=True))
    write_report(run)
    return run


@pytest.fixture(scope="module")
def written(simulated: Run) -> str:
    return (simulated.path / "report.html").read_text(encoding="utf-8")


def test_the_page_loads_nothing_from_anywhere(written: str) -> None:
    loaded = re.findall(r"""(?:\b(?:src|href|action|data|poster)\s*=\s*|url\(|@import\s*)["']?([^"')\s>]*)""", written)
    assert [address for address in loaded if not address.startswith("#")] == []
    assert not re.search(r"<(?:link|iframe|img|object|embed|base|form)\b", written)
    (policy,) = [meta["content"] for meta in Outline(written).all("meta") if meta.get("http-equiv")]
    assert policy is not None
    assert policy.startswith("default-src 'none'; ")


def test_the_only_script_is_the_one_that_the_policy_names_and_it_is_small(written: str) -> None:
    (script,) = re.findall(r"<script>(.*?)</script>", written, re.DOTALL)
    assert len(script.encode()) < SCRIPT_LIMIT_BYTES
    digest = hashlib.sha256(script.encode()).digest().hex()
    (named,) = re.findall(r"script-src 'sha256-([^']+)'", re.sub("&#x27;", "'", written))
    assert b64decode(named).hex() == digest


def test_every_reference_has_its_target_and_every_id_stands_once(written: str) -> None:
    ids = re.findall(r'\bid="([^"]+)"', body(written))
    assert len(ids) == len(set(ids)), "two figures share an id"
    referenced = re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', body(written))
    assert {a or b for a, b in referenced} <= set(ids)


def test_a_simulated_run_says_so_once_in_view_and_in_every_table_and_figure_that_may_be_copied(
    simulated: Run, written: str
) -> None:
    assert re.search(r"<title>SIMULATED\b", written)
    (banner,) = re.findall(r'<p class="simulated"[^>]*>(.*?)</p>', written)
    assert banner.startswith("<strong>SIMULATED</strong>")
    tables = [table for table in re.findall(r"<table.*?</table>", written) if '<td class="figure"' in table]
    assert len(tables) > 2, "the trust tables are there too"
    assert all('<caption class="unseen">SIMULATED: ' in table for table in tables)
    assert not any("SIMULATED" in row for table in tables for row in re.findall(r"<tr.*?</tr>", table))
    assert not any("SIMULATED" in heading for heading in re.findall(r"<h[23].*?</h[23]>", written))
    figures = re.findall(r"<figure.*?</figure>", written, re.DOTALL)
    assert len(figures) >= 5
    assert all(">SIMULATED</text>" in figure for figure in figures)
    assert not any("SIMULATED" in figure.split("<figcaption>")[1] for figure in figures)
    assert simulated.analysis.simulated is True
    for frame in (simulated.summary, simulated.cells, simulated.requests, simulated.server):
        assert frame["simulated"].all()


def test_a_measured_run_says_so_nowhere(tmp_path: Path) -> None:
    run, text = words(make_run(tmp_path / "run"))
    assert "SIMULATED" not in text
    assert run.analysis.simulated is False
    for frame in (run.summary, run.cells, run.requests, run.server):
        assert not frame["simulated"].any()


def test_words_of_others_are_shown_and_never_run(tmp_path: Path) -> None:
    server = {"name": HOSTILE, "repeat": 1, "version": HOSTILE, "url": HOSTILE, "kernels": [HOSTILE], "model": HOSTILE}
    failure = {"repeat": 1, "target": HOSTILE, "error": HOSTILE}
    run_dir = make_run(tmp_path / "run", model=HOSTILE, servers=[server], failures=[failure])
    write_cell(run_dir, cell(index=90), [answer(900, end=1100, status="http", error=HOSTILE)], [], ended())
    _, text = words(run_dir)
    outline = Outline(text)
    assert outline.all("img") == []
    assert len(outline.all("script")) == 1
    assert not any(name.startswith("on") for _, attributes in outline.tags for name in attributes)
    assert text.count("&lt;img src=x") >= 7


def test_every_section_behind_the_first_screen_is_folded_and_a_link_to_it_leads_inside(written: str) -> None:
    first, rest = written[written.index("<main") :].split('<div class="folds">')
    sections = re.findall(r"<section>(.*?)</section>", rest, re.DOTALL)
    assert len(sections) >= 10
    for section in sections:
        assert re.match(r'<details class="fold"><summary><h2>.*?</summary><div id="[a-z]+" class="inside">', section)
    assert "<details open" not in written
    linked = set(re.findall(r'href="#([a-z]+)"', first))
    assert linked == {"answer", *re.findall(r'<div id="([a-z]+)" class="inside">', rest)}


def test_one_figure_is_on_the_first_screen_and_no_figure_comes_twice(simulated: Run, written: str) -> None:
    first = written.split('<section id="answer">')[1].split("</section>")[0]
    assert re.findall("<strong>([^<]+)[.]</strong>", first) == ["Output tokens per second"]
    assert "Energy was not measured" in first
    assert len(re.findall("<figure", written)) == len(list((simulated.path / "figures").glob("*.svg")))


def test_a_term_is_explained_where_it_comes_first_and_only_there(tmp_path: Path) -> None:
    _, text = words(make_run(tmp_path / "run"))
    blocks = re.findall(r'<p class="terms">.*?</p>', text)
    terms = [term for block in blocks for term in re.findall("<dfn>(.*?)</dfn>", block)]
    assert len(terms) == len(set(terms)) > 10
    assert {"B", "accuracy"} <= set(re.findall("<dfn>(.*?)</dfn>", blocks[0])), "on the first screen"
    sections = re.split('<div id="', text[text.index("<main") :])
    for name in ("TTFT", "TPOT", "COR", "SI", "p99"):
        (explained,) = [k for k, section in enumerate(sections) if f"<dfn>{name}</dfn>" in section]
        used = [k for k, section in enumerate(sections) if re.search(rf"[> ]{name}\b", section)]
        assert used[0] == explained, name
    listed = re.findall("<dt>(.*?)</dt>", text)
    assert listed == [term.name for term in GLOSSARY]


def test_a_term_is_found_as_a_word_and_brings_those_that_explain_it() -> None:
    names = [term.name for term in first_used("T_SI of awq", ())]
    assert names == ["SI", "T_SI, E_SI, S_SI", "accuracy"]
    assert [term.name for term in first_used("if a B* exists", ())] == ["B*", "running"]
    assert first_used("the basis", ()) == []


def test_headings_go_down_one_step_at_a_time_and_head_cells_say_what_they_head(written: str) -> None:
    outline = Outline(written)
    assert outline.depths[0] == 1
    assert outline.depths.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(outline.depths, outline.depths[1:], strict=False))
    assert {head.get("scope") for head in outline.all("th")} == {"col", "row"}
    figures = outline.all("figure")
    drawn = [svg for svg in outline.all("svg") if svg.get("role") == "img" and svg.get("aria-label")]
    assert len(drawn) == len(figures) > 0


def test_figures_take_the_pages_colours_and_points_carry_their_text(simulated: Run, written: str) -> None:
    drawn = "".join(re.findall(r"<figure.*?</figure>", written, re.DOTALL))
    assert "#1c1c1c" not in drawn
    assert "#9a9a9a" not in drawn
    assert "currentColor" in drawn
    assert set(re.findall(r'data-series="([^"]+)"', drawn)) == {"fp16", "awq"}
    assert len(re.findall(r'class="point"[^>]*>\s*<title>[^<]+</title>', drawn)) >= len(simulated.summary)


def test_a_run_is_rebuilt_from_its_journal_byte_for_byte(simulated: Run, written: str, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(simulated.path, run_dir)
    before = hashes(run_dir)
    for name in DERIVED:
        (run_dir / name).unlink()
    shutil.rmtree(run_dir / "figures")
    write_report(analysed(run_dir))
    assert hashes(run_dir) == before
    assert not list(run_dir.rglob("*.partial")), "something half written is left"


def test_the_table_has_the_figures_of_the_summary(tmp_path: Path) -> None:
    """100 and 110 tokens in 1 s: mean 105; both targets alike: a ratio of 1."""
    run, text = words(make_run(tmp_path / "run"))
    assert list(run.summary["tokens_per_s"]) == [105.0] * 4
    assert list(run.summary["running_mean"]) == [1.0, 2.0, 1.0, 2.0]
    (table,) = re.findall(r'aria-label="Result".*?</table>', text)
    rows = [re.findall(r"<t[dh][^>]*>([^<]*)</t[dh]>", row) for row in re.findall(r"<tr.*?</tr>", table)]
    assert rows[0][:6] == ["B", "target", "running", "tok/s", "95% CI", "× ref"]
    assert [row[:4] for row in rows[1:]] == [
        ["1", "fp16", "1.00", "105"], ["1", "awq", "1.00", "105"],
        ["2", "fp16", "2.00", "105"], ["2", "awq", "2.00", "105"],
    ]  # fmt: skip
    assert [row[5] for row in rows[1:]] == ["", "1.00", "", "1.00"]


def test_target_names_are_text_whatever_they_look_like(tmp_path: Path) -> None:
    run, text = words(make_run(tmp_path / "run", targets=("NA", "8")))
    assert list(run.summary["target"]) == ["NA", "NA", "8", "8"]
    assert '<th scope="row">NA</th>' in text
    assert run.complete


def test_a_run_of_the_reference_alone_says_that_there_is_nothing_to_compare(tmp_path: Path) -> None:
    _, text = words(make_run(tmp_path / "run", targets=("fp16",)))
    assert "Only fp16 was measured: there is nothing to compare." in text
    assert 'id="crossovers"' not in text
    assert 'id="models"' not in text


def test_what_a_checkpoint_says_of_itself_stands_on_the_first_screen_once(tmp_path: Path) -> None:
    server = {"precision": "fp16", "version": "0.26.0", "url": "http://127.0.0.1:1", "note": "random weights"}
    servers = [{**server, "name": name, "repeat": r} for r in (1, 2) for name in ("fp16", "awq")]
    run, text = words(make_run(tmp_path / "run", servers=servers))
    assert run.analysis.warnings == ("fp16, awq: random weights",)
    assert text.count("fp16, awq: random weights") == 1
    assert "fp16, awq: random weights" in text.split('<section id="answer">')[0], "on the first screen"


def test_an_invalid_cell_is_listed_with_its_reason_and_the_run_is_not_complete(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", targets=("fp16",), concurrency=(1,), repeats=2)
    last = sorted((run_dir / "journal").iterdir())[-1]
    last.write_bytes(b"".join(last.read_bytes().splitlines(keepends=True)[:-1]))
    run, text = words(run_dir)
    assert list(run.cells["valid"]) == [True, False]
    assert run.analysis.warnings == ("fp16, B = 1, repeat 2: interrupted before the window opened",)
    assert "1 of 2 cells valid, answers valid in 2." in text
    first, rest = text.split('<section id="answer">')
    assert re.search(r'<a href="#doubts">[^<]+</a>', first), "on the first screen"
    assert "interrupted" not in first
    row = '<td class="figure">1</td><td class="figure">2</td><td>load</td><td>interrupted before the window opened</td>'
    assert f'<th scope="row">fp16</th>{row}' in rest
    assert not run.complete


def test_accuracy_of_the_summary_is_over_items(tmp_path: Path) -> None:
    """At B = 2 question q1 is right and q2 wrong in every repeat; at B = 1 only q1 was asked."""
    run = analysed(make_run(tmp_path / "run"))
    assert list(run.summary["accuracy"]) == [1.0, 0.5, 1.0, 0.5]


def test_answers_of_a_cell_that_is_invalid_for_its_batch_count_those_of_a_failing_one_do_not(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", targets=("fp16",), concurrency=(1,), repeats=1)
    wrong = answer(900, [(1500, 1)], end=2000, item_id="q2", text="#### 7")
    failed = answer(900, end=1100, status="timeout", error="late", item_id="q1")
    idle = [scrape(1100, running=0.0), scrape(1900, running=0.0)]
    write_cell(run_dir, cell(index=90, repeat=2), [wrong], idle, ended())
    write_cell(run_dir, cell(index=91, repeat=3), [wrong, failed], idle, ended())
    run = analysed(run_dir)
    assert list(run.cells["valid"]) == [True, False, False], "in two nothing ran, one fails too"
    assert list(run.cells["accuracy"]) == [1.0, 0.0, 0.0]
    assert list(run.summary["accuracy"]) == [0.5], "one answer to each of two questions"


def test_requests_are_never_dropped_and_none_of_their_fields_is_invented(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", targets=("fp16",), concurrency=(1,), repeats=1)
    failed = answer(900, end=1100, status="timeout", error="late", http_status=None, finish_reason=None)
    warm = answer(1, [(2, 1), (3, 2)], phase="warmup")
    write_cell(run_dir, cell(index=90, repeat=2), [warm, failed], [], ended())
    run = analysed(run_dir)
    rows = run.requests[run.requests["repeat"] == 2]
    assert list(rows["phase"]) == ["warmup", "measured"]
    assert list(rows["in_window"]) == [False, False]
    assert [dict(event) for event in rows["token_times"].iloc[0]] == [
        {"t_ns": 2_000_000, "tokens": 1},
        {"t_ns": 3_000_000, "tokens": 2},
    ]
    for name in ("t_first_ns", "token_source", "prompt_tokens", "output_tokens", "finish_reason", "outcome", "correct"):
        assert rows[name].isna().iloc[1], name


def test_a_missing_cell_makes_the_run_incomplete(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run")
    sorted((run_dir / "journal").iterdir())[-1].unlink()
    run = analysed(run_dir)
    assert run.cells["valid"].all()
    assert not run.complete


def test_a_run_without_a_cell_says_why(tmp_path: Path) -> None:
    failure = {"repeat": 1, "target": "fp16", "error": "fp16: the server ended with status 1"}
    run_dir = make_run(tmp_path / "run", repeats=0, failures=[failure])
    with pytest.raises(UsageError, match=r"holds no measured cell.*: fp16: the server ended with status 1"):
        analyse(run_dir)


def test_unmeasured_fields_of_cells_csv_are_empty(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", targets=("fp16",), concurrency=(1,), repeats=1)
    analysed(run_dir)
    with (run_dir / "cells.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["preemptions"] == row["server_tokens"] == row["client_cpu_share"] == ""
    assert row["errors"] == "0"


def test_a_crossover_is_an_object_of_its_own(tmp_path: Path) -> None:
    run = analysed(make_run(tmp_path / "run"))
    found = run.crossover("awq", "tokens_per_s")
    assert (found.target, found.reference, found.status) == ("awq", "fp16", "unresolved")
    with pytest.raises(UsageError, match="no crossover of 'gptq' by 'tokens_per_s'; targets: awq; metrics: tokens"):
        run.crossover("gptq", "tokens_per_s")


def test_cost_models_have_a_section_where_some_were_fitted(tmp_path: Path) -> None:
    run, _ = words(make_run(tmp_path / "run"))
    run.analysis = replace(run.analysis, models=())
    assert 'id="models"' not in page(run, [])
    study = ModelStudy(
        target="awq", reference="fp16", quantity="time_per_token_s", concurrencies=(1, 2), verdict="refused",
        sentence="M3 fits <best>", notes=("launch is not determined",), simulated=False,
    )  # fmt: skip
    run.analysis = replace(run.analysis, models=(study,))
    section = page(run, []).split('<div id="models"')[1].split("</section>")[0]
    assert "M3 fits &lt;best&gt;" in section
    assert "awq, ms/token: launch is not determined" in section


def test_the_headline_is_energy_where_it_was_measured_and_speed_where_not(tmp_path: Path) -> None:
    run, text = words(make_run(tmp_path / "run"))
    found = {entry.metric: entry for entry in run.analysis.crossovers}
    assert found["energy_per_query_j"].refusal is not None
    assert '<p class="big">Not decided: whether awq is faster than fp16' in text
    said = "awq uses less energy per query than fp16 below B* = 61 (95% CI 52–75)"
    energy = replace(found["energy_per_query_j"], sentence=said, refusal=None, status="crosses")
    run.analysis = replace(run.analysis, crossovers=(energy, found["tokens_per_s"]))
    assert f'<p class="big">{said}.</p>' in page(run, [])


def test_an_established_crossover_stands_in_its_table_with_its_interval(tmp_path: Path) -> None:
    run, _ = words(make_run(tmp_path / "run"))
    found = run.crossover("awq", "tokens_per_s")
    close = Crossing(b=4.06, lo=3.52, hi=12.4, bracket=(1, 64), direction="wins_below", probability=1.0,
                     established=True)  # fmt: skip
    crossings = (close, replace(close, b=15.0, lo=4.0, hi=41.0))
    run.analysis = replace(run.analysis, crossovers=(replace(found, crossings=crossings),))
    section = page(run, []).split('<div id="crossovers"')[1].split("</section>")[0]
    assert '<td class="interval">3.5–12</td>' in section
    shown = re.findall(r">([^<]*)</td><td class=\"interval\">", section)
    assert shown[:2] == ["4.1", "not known"], "the second is known to a factor of 10 and not closer"


def test_intervals_that_tell_nothing_are_not_known_and_their_note_says_why(tmp_path: Path) -> None:
    run, before = words(make_run(tmp_path / "run"))
    assert "the repeats differ" not in before
    run.summary["tokens_per_s_lo"], run.summary["tokens_per_s_hi"] = 2.021, 13610.0
    text = page(run, [])
    assert '<td class="interval">not known</td>' in text
    assert "Not known: the repeats differ too much" in text
    assert "13,610" not in text


def test_a_local_model_goes_by_its_folder_and_several_gpus_are_counted(tmp_path: Path) -> None:
    run, _ = words(make_run(tmp_path / "run", model="/models/cache/tiny"))
    gpus = tuple(GpuInfo(uuid=uuid, index=0, name="NVIDIA L4") for uuid in ("GPU-1", "GPU-2"))
    run.__dict__["manifest"] = msgspec.structs.replace(run.manifest, gpu=gpus)
    assert "<h1>tiny on 2 × NVIDIA L4</h1>" in page(run, [])


def test_an_analysis_reads_back_as_it_was_written_and_another_shape_is_refused(tmp_path: Path) -> None:
    written = analysed(make_run(tmp_path / "run")).path / "analysis.json"
    before = written.read_bytes()
    known = loadgen.load_run(tmp_path / "run").analysis
    assert msgspec.json.encode(known) == msgspec.json.format(before, indent=-1)
    older = "was analysed by an older version; run `loadgen report"
    for name, value, why in (
        ("indices", None, "analysis.json is damaged"),
        ("calibration", 16, "analysis.json is damaged"),
        ("trust", [{"target": "awq"}], older),
    ):
        written.write_bytes(msgspec.json.encode(msgspec.json.decode(before) | {name: value}))
        with pytest.raises(UsageError, match=why):
            _ = loadgen.load_run(tmp_path / "run").analysis
    written.write_bytes(b"{}")
    with pytest.raises(UsageError, match=older):
        _ = loadgen.load_run(tmp_path / "run").analysis


@pytest.mark.filterwarnings("error::pandas.errors.PerformanceWarning")
def test_a_table_of_a_hundred_columns_is_changed_without_a_warning_of_pandas(tmp_path: Path) -> None:
    run = analysed(make_run(tmp_path / "run", targets=("fp16",), concurrency=(1,), repeats=1))
    assert len(run.cells.columns) > 100
    assert len(run.cells.assign(batch=1)) == len(run.summary.assign(batch=1)) == 1
