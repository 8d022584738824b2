"""report.html in a real browser: quiet, drawn, readable at every width, in the dark and on paper, and hostile text
stays text."""

from __future__ import annotations

import csv
import io
import re
import shutil
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium import DEADLINE_S, Page, chromium, open_chromium
from programs import program

sys.path.append(str(Path(__file__).parents[1] / "unit"))
from made_run import answer, cell, ended, make_run, write_cell

import loadgen
from loadgen.analysis.analyse import analyse
from loadgen.reports.html import write_report

HOSTILE = "</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    with open_chromium(chromium() or program("chromium")) as page:
        yield page


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a simulated run with one invalid cell, and with text from outside that would like to be run."""
    server = {"name": HOSTILE, "repeat": 1, "version": HOSTILE, "url": HOSTILE, "kernels": [HOSTILE], "model": HOSTILE}
    known = [{"name": "fp16", "repeat": repeat, "version": None, "model": HOSTILE, "workers": 2} for repeat in (1, 2)]
    run_dir = make_run(
        tmp_path_factory.mktemp("chromium") / "run", concurrency=(1, 2, 4), model=HOSTILE, simulated=True,
        servers=[server, *known], failures=[{"repeat": 1, "target": HOSTILE, "error": HOSTILE}],
    )  # fmt: skip
    write_cell(run_dir, cell(index=90), [answer(900, end=1100, status="http", error=HOSTILE)], [], ended(),
               simulated=True)  # fmt: skip
    analyse(run_dir)
    return write_report(loadgen.load_run(run_dir))


@pytest.fixture
def page(browser: Page, report: Path) -> Page:
    """The report, freshly opened: 1280 x 900, light."""
    browser.resize(1280, 900)
    browser.prefer("light")
    browser.open(report)
    return browser


def unfold(page: Page) -> None:
    """Opens everything."""
    page.evaluate("document.querySelectorAll('details').forEach(fold => fold.open = true)")


def click(page: Page, selector: str) -> None:
    """With the mouse, in the middle of the first such element."""
    at = page.evaluate(
        f"(() => {{ const e = document.querySelector({selector!r}); e.scrollIntoView({{block: 'center'}});"
        "const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2] })()"
    )
    for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
        page.call("Input.dispatchMouseEvent", type=kind, x=at[0], y=at[1], button="left", clickCount=1)


def style(page: Page, selector: str, name: str) -> Any:
    return page.evaluate(f"getComputedStyle(document.querySelector({selector!r}))[{name!r}]")


def lightness(colour: str) -> float:
    """Mean of red, green and blue, 0 to 255."""
    return sum(float(part) for part in re.findall(r"[\d.]+", colour)[:3]) / 3


def test_it_opens_without_a_word_on_the_console_and_asks_for_nothing_but_itself(page: Page, report: Path) -> None:
    page.evaluate("new Promise(done => setTimeout(done, 200))")
    assert [event["request"]["url"] for event in page.of("Network.requestWillBeSent")] == [report.as_uri()]
    for kind in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"):
        assert page.of(kind) == []


def test_hostile_text_is_text(page: Page) -> None:
    assert page.of("Page.javascriptDialogOpening") == []
    assert page.evaluate("[document.images.length, document.scripts.length]") == [0, 1]
    assert HOSTILE in page.evaluate("document.querySelector('h1').textContent")
    assert HOSTILE in page.evaluate("document.querySelector('#servers').textContent")
    assert page.evaluate("document.body.textContent").count(HOSTILE) >= 7


def test_the_policy_stops_what_escaping_might_let_through(page: Page) -> None:
    page.evaluate(
        "window.ran = 0; document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"ran = 1\">');"
        "const s = document.createElement('script'); s.textContent = 'ran = 2'; document.body.append(s);"
        "new Promise(done => setTimeout(done, 100))"
    )
    assert page.evaluate("ran") == 0
    assert [event["blockedReason"] for event in page.of("Network.loadingFailed")] == ["csp"]


def test_every_figure_is_drawn_with_its_points(page: Page, report: Path) -> None:
    unfold(page)
    drawn = page.evaluate(
        "[...document.querySelectorAll('figure svg')].map(svg => { const r = svg.getBoundingClientRect();"
        "return [r.width, r.height, svg.querySelectorAll('path, use').length, svg.querySelectorAll('.point').length,"
        "[...svg.querySelectorAll('.point')].filter(p => p.getClientRects().length > 0).length] })"
    )
    assert len(drawn) == len(list((report.parent / "figures").glob("*.svg"))) >= 5
    for width, height, lines, points, seen in drawn:
        assert width > 250
        assert height > 100
        assert lines > 10
        assert seen == points
    assert sum(points for *_, points, _ in drawn) >= 6


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_makes_the_page_scroll_sideways(page: Page, width: int) -> None:
    page.resize(width, 800)
    unfold(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("innerWidth") == width
    assert page.evaluate("parseFloat(getComputedStyle(document.querySelector('.scroll td')).fontSize)") >= 12


@pytest.mark.parametrize(("width", "height"), [(390, 844), (1280, 900)])
def test_the_answer_and_its_figure_are_on_the_first_screen_and_the_rest_is_folded(
    page: Page, width: int, height: int
) -> None:
    page.resize(width, height)
    first = "document.querySelector('{}').getBoundingClientRect().bottom"
    assert page.evaluate(first.format(".target .big")) < height
    assert page.evaluate(first.format(".lead svg")) < height
    tall = "document.documentElement.scrollHeight"
    closed = page.evaluate(tall)
    unfold(page)
    assert closed < page.evaluate(tall) / 3


def test_a_link_opens_the_section_that_it_leads_into(page: Page) -> None:
    assert page.evaluate("document.querySelector('#doubts').closest('details').open") is False
    click(page, "a[href='#doubts']")
    page.evaluate("new Promise(done => setTimeout(done, 100))")
    assert page.evaluate("document.querySelector('#doubts').closest('details').open") is True
    top, banner = page.evaluate(
        "[document.querySelector('#doubts').previousElementSibling.getBoundingClientRect().top,"
        "document.querySelector('.simulated').getBoundingClientRect().bottom]"
    )
    assert banner <= top < 600, "its heading is in view, below the banner"
    assert page.evaluate("document.querySelectorAll('.fold[open]').length") == 1
    click(page, ".all")
    assert page.evaluate("document.querySelectorAll('.fold:not([open])').length") == 0


def test_what_is_copied_from_a_simulated_run_says_so(page: Page) -> None:
    page.evaluate("getSelection().selectAllChildren(document.querySelector('.target'))")
    copied = page.evaluate(
        "(() => { const clipboardData = new DataTransfer();"
        "document.body.dispatchEvent(new ClipboardEvent('copy', {clipboardData, bubbles: true, cancelable: true}));"
        "return [clipboardData.getData('text/plain'), clipboardData.getData('text/html')] })()"
    )
    for text in copied:
        assert "SIMULATED: figures of a cost model" in re.sub("<[^>]*>", "", text)
        assert "awq" in text


def test_the_stamp_is_on_every_screen(page: Page) -> None:
    page.resize(360, 740)
    page.evaluate("scrollTo(0, document.documentElement.scrollHeight)")
    assert page.evaluate("document.querySelector('.simulated').getBoundingClientRect().top") == 0


def test_it_follows_the_systems_theme_and_the_button_turns_it(page: Page) -> None:
    assert lightness(style(page, "body", "backgroundColor")) == 255
    page.prefer("dark")
    assert lightness(style(page, "body", "backgroundColor")) < 40
    for selector in ("body", "figure svg", ".small", "tbody td"):
        assert lightness(style(page, selector, "color")) > 150, selector
    click(page, "#theme")
    assert lightness(style(page, "body", "backgroundColor")) == 255
    assert lightness(style(page, "figure svg", "color")) < 60
    click(page, "#theme")
    assert lightness(style(page, "body", "backgroundColor")) < 40


def test_a_point_tells_its_figures_under_the_pointer_and_by_keyboard(page: Page) -> None:
    unfold(page)
    click(page, ".point[data-series=awq]")
    said = page.evaluate("document.querySelector('.point[data-series=awq]').getAttribute('aria-label')")
    assert "SIMULATED" in said
    assert page.evaluate("document.querySelector('#tip').hidden") is False
    shown = page.evaluate("document.querySelector('#tip').textContent").splitlines()
    assert said in shown
    assert said.replace("awq", "fp16") in shown, "fp16's point is at the same place"
    page.evaluate("document.querySelector('.point').focus()")
    page.call("Input.dispatchKeyEvent", type="keyDown", key="ArrowRight")
    first, second = page.evaluate("[...document.querySelectorAll('.point')].slice(0, 2).map(p => p.ariaLabel)")
    assert page.evaluate("document.querySelector('#tip').textContent") == second != first
    page.call("Input.dispatchKeyEvent", type="keyDown", key="Escape")
    assert page.evaluate("document.querySelector('#tip').hidden") is True


def test_a_button_hides_its_target_in_every_figure(page: Page) -> None:
    unfold(page)
    seen = "[...document.querySelectorAll('figure [data-series={}]')].filter(e => e.getClientRects().length).length"
    awq, fp16 = (page.evaluate(seen.format(target)) for target in ("awq", "fp16"))
    assert min(awq, fp16) > 0
    click(page, ".inside .series [data-button=awq]")
    assert (page.evaluate(seen.format("awq")), page.evaluate(seen.format("fp16"))) == (0, fp16)
    click(page, ".inside .series [data-button=awq]")
    assert page.evaluate(seen.format("awq")) == awq


def test_every_heading_sorts_its_table_and_the_third_click_restores_it(page: Page) -> None:
    unfold(page)
    column = "[...document.querySelectorAll('#result tbody tr')].map(row => row.cells[1].textContent.split(' ')[0])"
    assert page.evaluate(column) == ["fp16", "awq"] * 3
    sorts = "document.querySelector('#result th:nth-child(2)').ariaSort"
    for expected, direction in ((["awq"] * 3 + ["fp16"] * 3, "ascending"), (["fp16"] * 3 + ["awq"] * 3, "descending")):
        click(page, "#result th:nth-child(2) button")
        assert (page.evaluate(column), page.evaluate(sorts)) == (expected, direction)
    page.evaluate("document.querySelector('#result th:nth-child(2) button').focus()")
    for kind in ("keyDown", "keyUp"):
        page.call("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", text="\r", windowsVirtualKeyCode=13)
    assert (page.evaluate(column), page.evaluate(sorts)) == (["fp16", "awq"] * 3, None)
    heads = "[...document.querySelectorAll('.scroll > table thead th')].filter(th => th.textContent)"
    assert page.evaluate(f"{heads}.every(th => th.querySelector('button'))") is True


def test_figures_sort_as_numbers_words_behind_them_and_empty_cells_last(page: Page) -> None:
    """2/8 is a quarter and 6/17 is 35%, as are the percentages that they stand among."""
    texts = ["", "1,273 tok/s", "−0.58 to −0.53", "7B", "600M", "2/8", "6/17", "38.6%", "≤ 16", "1.2e−05", "B = 16",
             "B = 4", "4.1–52", "× 2.38"]  # fmt: skip
    ordered = "texts.toSorted((a, b) => inOrder(sortKey(a), sortKey(b), {}))"
    rising = ["−0.58 to −0.53", "1.2e−05", "× 2.38", "4.1–52", "≤ 16", "2/8", "6/17", "38.6%", "1,273 tok/s", "600M",
              "7B"]  # fmt: skip
    found = page.evaluate(f"(() => {{ const texts = {texts}; return [{ordered.format(1)}, {ordered.format(-1)}] }})()")
    assert found == [[*rising, "B = 4", "B = 16", ""], [*rising[::-1], "B = 16", "B = 4", ""]]


def test_a_table_is_copied_and_saved_as_it_is_sorted_and_each_row_says_simulated(page: Page, tmp_path: Path) -> None:
    """100 and 110 tokens in 1 s, by B of 1, 2 and 4."""
    unfold(page)
    page.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    page.evaluate("navigator.clipboard.writeText = async (text) => { window.copied = text }")
    click(page, "#result th:nth-child(2) button")
    click(page, "#result .tools button:nth-child(1)")
    click(page, "#result .tools button:nth-child(2)")
    saved = tmp_path / "SIMULATED-result.csv"
    deadline_s = time.monotonic() + DEADLINE_S
    while not saved.exists() or not saved.stat().st_size:
        assert time.monotonic() < deadline_s, [*tmp_path.iterdir()]
        time.sleep(0.02)
    rows = list(csv.DictReader(io.StringIO(saved.read_text())))
    assert [row["target"] for row in rows] == ["awq"] * 3 + ["fp16"] * 3
    assert {row["origin"] for row in rows} == {"SIMULATED"}
    assert {row["tok/s"] for row in rows} == {"105"}
    assert all(float(row["tok/s lower"]) < 105 < float(row["tok/s upper"]) for row in rows)
    pasted = list(csv.DictReader(io.StringIO(page.evaluate("copied")), delimiter="\t"))
    assert pasted == rows
    assert page.evaluate("document.querySelector('#result .tools button').textContent") == "Copied"
    assert page.evaluate("asCsv([['=cmd', '-0.5', '−', 'a,\"b\"']])") == '\'=cmd,-0.5,−,"a,""b"""\r\n'


def test_an_axis_is_turned_to_linear_and_back(page: Page) -> None:
    """Batches of 1, 2 and 4 are one step apart on the logarithmic axis, and one and two on the linear one."""
    unfold(page)
    figure = "[...document.querySelectorAll('figure')].find(f => f.querySelector('[id^=throughput-]'))"
    places = f"[...{figure}.querySelectorAll('.point[data-series=awq] use')].map(use => +use.getAttribute('x'))"
    drawn = f"[...{figure}.querySelectorAll('path')].map(path => path.getAttribute('d')).join()"
    press = f"{figure}.querySelector('.tools button').click()"
    shown = f"[...{figure}.querySelectorAll('[id*=xtick_], .turned')].filter(t => t.style.display !== 'none')"
    ticks = f"{shown}.map(tick => tick.textContent.trim()).filter(Boolean)"
    at_first, paths = page.evaluate(places), page.evaluate(drawn)
    one, two, four = at_first
    assert four - two == pytest.approx(two - one, rel=0.01)
    page.evaluate(press)
    one, two, four = page.evaluate(places)
    assert four - two == pytest.approx(2 * (two - one), rel=0.01)
    assert page.evaluate(ticks)[:3] == ["0", "1", "2"]
    assert page.evaluate(f"{figure}.querySelector('.tools button').textContent") == "x: linear"
    page.evaluate(press)
    assert (page.evaluate(places), page.evaluate(drawn)) == (at_first, paths)
    assert page.evaluate(ticks) == ["1", "2", "4"]


def test_a_slider_chooses_the_rate_of_the_advice_and_a_price_what_it_costs(page: Page) -> None:
    """Both targets are alike; the GPUs of one are not known, so that nobody knows what it costs."""
    unfold(page)
    rates = page.evaluate("JSON.parse(document.querySelector('.advice template').content.textContent).rates")
    cells = (
        "[...document.querySelectorAll('.advice tbody tr')].map(row => [...row.cells].map(cell => cell.textContent))"
    )
    set_to = (
        "(() => {{ const field = document.querySelectorAll('.advice input')[{}]; field.value = {};"
        "field.dispatchEvent(new Event('{}')) }})()"
    )
    page.evaluate(set_to.format(1, 0, "input"))
    assert [row[1:] for row in page.evaluate(cells)] == [row.split("|") for row in rates[0]["rows"]]
    first = page.evaluate("document.querySelector('.advice .said').textContent")
    page.evaluate(set_to.format(0, 1.02 * rates[-1]["rate"], "change"))
    assert page.evaluate("document.querySelectorAll('.advice input')[0].value") == str(rates[-1]["rate"])
    assert [row[1:] for row in page.evaluate(cells)] == [row.split("|") for row in rates[-1]["rows"]]
    assert "No precision can be chosen" in first, "energy was not measured here; a price chooses by the GPUs"
    page.evaluate(set_to.format(2, 2, "input"))
    said = page.evaluate("document.querySelector('.advice .said').textContent")
    assert f"{rates[-1]['rate']} requests/s: " in said
    assert page.evaluate("document.querySelector('.advice th:last-child').textContent") == "cost/1,000 queries"
    (cost, unknown), (hours, none) = [row[-1] for row in page.evaluate(cells)], rates[-1]["gpuHours"]
    assert float(cost) == pytest.approx(2 * hours, rel=6e-3)
    assert (unknown, none) == ("", None)


def test_a_label_stays_beside_its_point_when_an_axis_is_turned(page: Page) -> None:
    unfold(page)
    figure = "[...document.querySelectorAll('figure')].find(f => f.querySelector('[id^=pareto-]'))"
    apart = (
        f"[...{figure}.querySelectorAll('[id*=-label-]')].map(label => ['x', 'y'].map(name => {{"
        "const point = document.getElementById(label.id.replace('-label-', '-pt-')).querySelector('use');"
        "return label.querySelector('text').getAttribute(name) - point.getAttribute(name) }))"
    )
    at_first = page.evaluate(apart)
    assert len(at_first) == 3, "of the target whose GPUs are known"
    page.evaluate(f"{figure}.querySelectorAll('.tools button').forEach(button => button.click())")
    assert page.evaluate(f"{figure}.querySelector('.tools button').textContent") == "x: linear"
    for before, now in zip(at_first, page.evaluate(apart), strict=True):
        assert now == pytest.approx(before, abs=0.01)


def test_a_line_is_read_off_under_the_pointer_and_with_the_arrow_keys(page: Page) -> None:
    unfold(page)
    page.evaluate("document.querySelector('[id^=time-] [data-read]').focus({focusVisible: true})")
    said = []
    for key in ("ArrowLeft", "ArrowRight"):
        page.call("Input.dispatchKeyEvent", type="keyDown", key=key)
        said.append(page.evaluate("document.querySelector('#tip').textContent"))
    pattern = r"SIMULATED · \S+ · B = \d, repeat \d, ([\d.]+) s: [\d.]+ in flight"
    earlier, later = (re.fullmatch(pattern, text) for text in said)
    assert earlier and later and float(earlier[1]) < float(later[1])
    click(page, "[id^=ttft-distribution-] [data-read]")
    text = page.evaluate("document.querySelector('#tip').textContent")
    assert re.search(r"requests.*; [\d.]+% of the requests: TTFT at most [\d.]+ ms$", text)


def test_the_difference_of_two_runs_is_a_page_of_the_same_kit(browser: Page, report: Path, tmp_path: Path) -> None:
    again = shutil.copytree(report.parent, tmp_path / "again")
    loadgen.compare(report.parent, again, out=tmp_path)
    browser.resize(360, 740)
    browser.open(tmp_path / "compare.html")
    unfold(browser)
    assert browser.of("Runtime.exceptionThrown") == browser.of("Log.entryAdded") == []
    assert browser.evaluate("document.documentElement.scrollWidth") <= 360
    rows = browser.evaluate("tableTexts(document.querySelector('#difference [aria-label=Differences] table'))")
    assert rows[0][:5] == ["origin", "target", "at", "metric", report.parent.name]
    assert {(row[0], row[6]) for row in rows[1:] if row[3] == "tok/s"} == {("SIMULATED", "× 1.00")}
    points = "document.querySelectorAll('[id^=difference-] .point').length"
    assert browser.evaluate(points) == len(rows) - 1


def test_every_words_contrast_is_at_least_4_5_in_both_themes(page: Page) -> None:
    unfold(page)
    for theme in ("light", "dark"):
        page.prefer(theme)
        assert page.evaluate(CONTRASTS) == [], theme


CONTRASTS = """(() => {
  const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => parts(colour).slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, k) => sum + v * [0.2126, 0.7152, 0.0722][k], 0);
  const back = (e) => { for (; e; e = e.parentElement) {
    const colour = getComputedStyle(e).backgroundColor; if ((parts(colour)[3] ?? 1) === 1) return colour; } };
  const poor = new Set();
  for (const e of document.querySelectorAll("body *")) {
    if (e.closest("svg") || ![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())) continue;
    const [a, b] = [light(getComputedStyle(e).color), light(back(e))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) poor.add(`${e.tagName}.${e.className}`);
  }
  return [...poor];
})()"""


def test_on_paper_it_has_pages_with_words_and_no_fold_is_closed(page: Page) -> None:
    page.prefer("dark")
    paper = page.pdf()
    assert len(re.findall(rb"/Type\s*/Page\b(?!s)", paper)) > 1
    streams = [_inflated(found) for found in re.findall(rb"stream\r?\n(.*?)\r?\nendstream", paper, re.DOTALL)]
    assert sum(stream.count(b" Tj") + stream.count(b" TJ") for stream in streams) > 100
    page.call("Emulation.setEmulatedMedia", media="print")
    try:
        assert lightness(style(page, "body", "color")) < 60
        folded = "[...document.querySelectorAll('details > :not(summary, .series)')]"
        assert min(page.evaluate(f"{folded}.map(e => e.getBoundingClientRect().height)")) > 20
        boxes = "[...document.querySelectorAll('.scroll, .frame')]"
        assert set(page.evaluate(f"{boxes}.map(e => getComputedStyle(e).overflowX)")) == {"visible"}
    finally:
        page.call("Emulation.setEmulatedMedia", media="")


def _inflated(stream: bytes) -> bytes:
    try:
        return zlib.decompress(stream)
    except zlib.error:
        return stream


def test_without_scripts_nothing_is_missing(browser: Page, report: Path) -> None:
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.resize(1280, 900)
        browser.open(report)
        document = browser.call("DOM.getDocument", depth=0)["root"]["nodeId"]
        titles = browser.call("DOM.querySelectorAll", nodeId=document, selector=".point > title")["nodeIds"]
        closed = browser.call("DOM.querySelectorAll", nodeId=document, selector="[hidden], .off")["nodeIds"]
        assert len(titles) >= 6
        assert closed == []
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)
