"""Every figure of a report, recomputed from the run's tables: what is drawn is what they say, by the same rule."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
from drawn import Panel, Point, centre, invalid, is_bar, panels_of
from made_study import BATCHES, ITL_MS, REPEATS, made_study

from loadgen.analysis.analyse import analyse
from loadgen.analysis.crossover.curve import METRICS
from loadgen.analysis.run import Run
from loadgen.reports.figures import Figure, draw_figures
from loadgen.reports.rows import RESULT, summary_rows, table_of

REFERENCE, *OTHERS = ITL_MS
KEYS = [(target, b) for target in ITL_MS for b in BATCHES]
AGAINST = [(target, b) for target, b in KEYS if target != REFERENCE]
CLOSE_PT = 0.35
"""Points of the page: coordinates have two decimals, and scales are read from ticks with as many."""
Key = tuple[str, int]
Value = tuple[float, float | None, float | None]
"""With its interval."""


class Expected(NamedTuple):
    """What a panel must show: `points` by target and B, `dots` and `invalid` by target, `stars` as B*, lo, hi."""

    points: Mapping[Key, tuple[float, Value]]
    """x and value; x is 0 where the batch is none."""
    bands: bool = False
    """Intervals are along the line, else across each point."""
    dots: Sequence[tuple[str, Point]] = ()
    invalid: Sequence[tuple[str, Point]] = ()
    stars: Sequence[tuple[str, float, float | None, float | None]] = ()


class Tables:
    """The run's files, read as anybody would."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cells = pd.read_csv(path / "cells.csv")
        self.summary = pd.read_csv(path / "summary.csv").set_index(["target", "concurrency"])
        self.requests = pd.read_parquet(path / "requests.parquet")
        self.analysis = json.loads((path / "analysis.json").read_text())
        asked = self.requests[(self.requests["phase"] == "measured") & (self.requests["status"] == "ok")]
        self.answered = asked.merge(
            self.cells[["target", "concurrency", "repeat", "valid", "latency_valid", "window_open_ns",
                        "window_close_ns"]],
            on=["target", "concurrency", "repeat"],
        )  # fmt: skip
        self._by_item = {
            (column, load_valid): rows.groupby(["target", "concurrency", "item_id"])[column].mean()
            for column in ("correct", "output_tokens")
            for load_valid, rows in ((False, self.answered), (True, self.answered[self.answered["valid"]]))
        }

    def repeats(self, key: Key, column: str) -> dict[int, float]:
        """The cells in which it is valid."""
        rows = self.cells[(self.cells["target"] == key[0]) & (self.cells["concurrency"] == key[1])]
        rows = rows[rows[verdict(column)] == True]  # noqa: E712
        return dict(zip(rows["repeat"], rows[column], strict=True))

    def mean(self, key: Key, column: str) -> float:
        return float(np.mean(list(self.repeats(key, column).values())))

    def batch(self, key: Key) -> float:
        return self.mean(key, "running_mean")

    def by_item(self, key: Key, column: str, *, load_valid: bool = False) -> dict[str, float]:
        return {str(item): float(value) for item, value in self._by_item[column, load_valid].loc[key].items()}

    def accuracy(self, key: Key) -> float:
        return float(np.mean(list(self.by_item(key, "correct").values())))

    def shared(self, key: Key, column: str, *, load_valid: bool = False) -> float:
        """The ratio to the reference of means over the items of both."""
        ours, theirs = (self.by_item(k, column, load_valid=load_valid) for k in (key, (REFERENCE, key[1])))
        items = sorted(ours.keys() & theirs.keys())
        return sum(ours[item] for item in items) / sum(theirs[item] for item in items)

    def ratio(self, key: Key, column: str, *, over: str | None = None, logs: bool = False) -> float:
        """To the reference, over the repeats in which both are valid; `over`: each cell's figure over another one."""

        def figures(of: Key) -> dict[int, float]:
            found = self.repeats(of, column)
            return found if over is None else {r: value / self.repeats(of, over)[r] for r, value in found.items()}

        ours, theirs = figures(key), figures((REFERENCE, key[1]))
        both = sorted(ours.keys() & theirs.keys())
        if logs:
            return math.exp(np.mean([math.log(ours[r] / theirs[r]) for r in both]))
        return float(np.mean([ours[r] for r in both]) / np.mean([theirs[r] for r in both]))

    def joules(self, key: Key, column: str = "energy_per_query_j", *, logs: bool = False) -> float:
        """Joules per query over the reference's: per token, times the lengths of the items that both completed."""
        tokens = self.shared(key, "output_tokens", load_valid=True)
        return self.ratio(key, column, over="output_tokens_mean", logs=logs) * tokens

    def pillars(self, key: Key) -> tuple[float, float, float]:
        settings = self.analysis["index_settings"]
        speed, memory = self.ratio(key, "tokens_per_s"), 1 / self.ratio(key, "memory_peak_bytes")
        e = 1 / (settings["alpha"] / speed + (1 - settings["alpha"]) / memory)
        return self.shared(key, "correct"), e, min(1 / self.joules(key), 1.0)

    def si(self, key: Key) -> float:
        return float(np.dot(self.analysis["index_settings"]["weights"], self.pillars(key)))

    def stars(self, metric: str) -> list[tuple[str, float, float | None, float | None]]:
        return [
            (found["target"], crossing["b"], crossing["lo"], crossing["hi"])
            for found in self.analysis["crossovers"]
            if found["metric"] == metric
            for crossing in found["crossings"]
        ]


def verdict(column: str) -> str:
    """The column of cells.csv that says whether another one is valid."""
    if column.startswith(("energy_hli", "memory")):
        return "valid"
    kinds = {"energy": ("energy", "power"), "latency": ("ttft", "tpot", "e2e"), "answers": ("accuracy",)}
    return next((f"{kind}_valid" for kind, names in kinds.items() if column.startswith(names)), "valid")


def known(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value


def curve(column: str, crossover: str | None = None) -> Callable[[Tables], list[Expected]]:
    """A column of summary.csv, which is the mean over the cells in which it is valid."""

    def recomputed(tables: Tables) -> list[Expected]:
        points, bounded = {}, f"{column}_lo" in tables.summary
        for key in KEYS:
            value = tables.accuracy(key) if column == "accuracy" else (
                tables.mean(key, "energy_per_query_j") / tables.accuracy(key)
                if column == "energy_per_correct_j" else tables.mean(key, column)
            )  # fmt: skip
            row = tables.summary.loc[key]
            assert row[column] == pytest.approx(value, rel=1e-9)
            ends = [known(row[f"{column}_{end}"]) if bounded else None for end in ("lo", "hi")]
            points[key] = tables.batch(key), (value, ends[0], ends[1])
        rows = [] if column not in tables.cells else [
            (row["target"], (row["running_mean"], row[column]), row[verdict(column)])
            for row in tables.cells.to_dict("records") if known(row[column]) is not None
        ]  # fmt: skip
        return [
            Expected(
                points,
                bands=bounded,
                dots=[] if bounded else [(target, point) for target, point, valid in rows if valid],
                invalid=[(target, point) for target, point, valid in rows if not valid],
                stars=tables.stars(crossover) if crossover else [],
            )
        ]

    return recomputed


def entry(tables: Tables, key: Key, *path: str) -> tuple[float | None, float | None]:
    """The interval of a figure of analysis.json's indices."""
    found = next(e for e in tables.analysis["indices"] if (e["target"], e["concurrency"]) == key)
    for name in path:
        found = found[name]
    return found["lo"], found["hi"]


def si(tables: Tables) -> list[Expected]:
    points = {key: (tables.batch(key), (tables.si(key), *entry(tables, key, "si"))) for key in AGAINST}
    return [Expected(points, stars=tables.stars("si"))]


def cor_of(tables: Tables, key: Key) -> Value:
    return (1 / tables.ratio(key, "tokens_per_s") - 1, *entry(tables, key, "cor_tps"))


def cor(tables: Tables) -> list[Expected]:
    return [Expected({key: (tables.batch(key), cor_of(tables, key)) for key in AGAINST})]


def times_better(tables: Tables, key: Key, metric: str) -> float:
    if metric == "tokens_per_s":
        return tables.ratio(key, metric, logs=True)
    if metric == "energy_per_token_j":
        return 1 / tables.ratio(key, metric, logs=True)
    if metric == "energy_per_correct_j":
        return tables.shared(key, "correct") / tables.joules(key, logs=True)
    return tables.si(key) if metric == "si" else 1 / tables.joules(key, metric, logs=True)


def advantage(tables: Tables) -> list[Expected]:
    panels = []
    for metric in METRICS:
        points: dict[Key, tuple[float, Value]] = {}
        for found in tables.analysis["crossovers"]:
            for point in found["points"] if found["metric"] == metric else ():
                key = found["target"], point["concurrency"]
                ends = [None if point[end] is None else math.exp(point[end]) for end in ("lo", "hi")]
                points[key] = tables.batch(key), (times_better(tables, key, metric), ends[0], ends[1])
        panels.append(Expected(points, bands=True, stars=tables.stars(metric)))
    return panels


def of_summary(tables: Tables, column: str, keys: Sequence[Key] = KEYS, *, over_b: bool = True) -> Expected:
    (found,) = curve(column)(tables)
    return Expected({key: (found.points[key][0] if over_b else 0.0, found.points[key][1]) for key in keys})


def by_precision(tables: Tables) -> list[Expected]:
    columns = [of_summary(tables, name, over_b=False) for name in ("tokens_per_s", "energy_per_query_j", "accuracy")]
    return [*columns, Expected({key: (0.0, cor_of(tables, key)) for key in AGAINST})]


def pillars(tables: Tables) -> list[Expected]:
    paths = (("t_si",), ("e_si", "value"), ("s_si",))
    panels = [
        Expected({key: (0.0, (tables.pillars(key)[place], *entry(tables, key, *path))) for key in AGAINST})
        for place, path in enumerate(paths)
    ]
    return [*panels, Expected({key: (0.0, (tables.si(key), *entry(tables, key, "si"))) for key in AGAINST})]


def backends(tables: Tables) -> list[Expected]:
    speed = {key: (tables.ratio(key, "tokens_per_s"), *entry(tables, key, "e_si", "eta")) for key in AGAINST}
    joules = {key: (tables.joules(key), *entry(tables, key, "energy", "ratio")) for key in AGAINST}
    ratios = [Expected({key: (tables.batch(key), value) for key, value in of.items()}) for of in (speed, joules)]
    return [of_summary(tables, "accuracy", AGAINST), *ratios]


def depth(tables: Tables) -> list[Expected]:
    """Buckets 1-2, 3-4, 5-6, 7+ in place of B; items right at every B or at none."""
    right = tables.answered.groupby(["target", "steps", "item_id"])["correct"].mean().reset_index()
    right["bucket"] = np.minimum((right["steps"] - 1) // 2, 3)
    share = right.groupby(["target", "bucket"])["correct"].mean()
    buckets = {
        (test["target"], place): bucket
        for test in tables.analysis["depth"]
        if test["measure"] == "steps"
        for place, bucket in enumerate(test["curve"]["buckets"])
    }

    def panel(name: str, value: Callable[[str, int], float], targets: Sequence[str]) -> Expected:
        found = {}
        for target in targets:
            for place in range(4):
                prefix = "reference_" if target == REFERENCE else ""
                bucket = buckets[OTHERS[0] if prefix else target, place]
                ends = bucket[f"{prefix}{name}_lo"], bucket[f"{prefix}{name}_hi"]
                found[target, place] = 0.0, (value(target, place), *ends)
        return Expected(found)

    def gap(target: str, place: int) -> float:
        return float(share[target, place] - share[REFERENCE, place])

    return [
        panel("accuracy", lambda target, place: float(share[target, place]), list(ITL_MS)),
        panel("difference", gap, OTHERS),
        panel("relative_loss", lambda target, place: -gap(target, place) / float(share[REFERENCE, place]), OTHERS),
    ]


RECOMPUTED: dict[str, Callable[[Tables], list[Expected]]] = {
    "throughput": curve("tokens_per_s", "tokens_per_s"),
    "energy": curve("energy_per_query_j", "energy_per_query_j"),
    "energy-token": curve("energy_per_token_j", "energy_per_token_j"),
    "energy-correct": curve("energy_per_correct_j", "energy_per_correct_j"),
    "accuracy": curve("accuracy"),
    "ttft": curve("ttft_ms_p50"),
    "tpot": curve("tpot_ms_p50"),
    "e2e": curve("e2e_ms_p50"),
    "power": curve("power_w_mean"),
    "si": si,
    "cor": cor,
    "advantage": advantage,
    "by-precision": by_precision,
    "pillars": pillars,
    "backends-4-bit": backends,
    "depth": depth,
}
PARETO = {"pareto": ("tokens_per_s", 1), "pareto-energy": ("energy_per_token_j", -1)}
"""Name -> what is over the speed of a user, and whether more of it is better."""
ACROSS = ("by-precision", "pillars")
"""Values lie along x, a row per target and B."""
DISTRIBUTIONS = {"ttft-distribution": "ttft", "tpot-distribution": "tpot", "e2e-distribution": "e2e"}
TIMELINES = {f"time-{target}": target for target in ITL_MS}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    path = made_study(tmp_path_factory.mktemp("study") / "run")
    analyse(path)
    return Run(path)


@pytest.fixture(scope="module")
def tables(run: Run) -> Tables:
    return Tables(run.path)


@pytest.fixture(scope="module")
def figures(run: Run) -> dict[str, Figure]:
    return {figure.name: figure for figure in draw_figures(run)}


def test_every_figure_is_recomputed_here(figures: dict[str, Figure]) -> None:
    assert set(figures) == {*RECOMPUTED, *PARETO, *DISTRIBUTIONS, *TIMELINES}


@pytest.mark.parametrize("name", RECOMPUTED)
def test_a_figure_shows_what_the_tables_say(figures: dict[str, Figure], tables: Tables, name: str) -> None:
    figure, expected = figures[name], RECOMPUTED[name](tables)
    for panel, of in zip(panels_of(figure), expected, strict=True):
        where = f"{name}, {panel.texts}"
        same_points(panel, figure, of, where, along=0 if name in ACROSS else 1)
        if name not in (*ACROSS, "depth"):
            same_others(panel, of, where)


@pytest.mark.parametrize("name", PARETO)
def test_a_pareto_figure_shows_each_b_and_the_line_of_those_that_no_other_beats(
    figures: dict[str, Figure], tables: Tables, name: str
) -> None:
    figure, (column, more) = figures[name], PARETO[name]
    (panel,) = panels_of(figure)
    assert panel.x is not None and panel.y is not None
    users = {key: float(np.mean([1000 / ms for ms in tables.repeats(key, "tpot_ms_p50").values()])) for key in KEYS}
    values = {key: (users[key], tables.mean(key, column)) for key in KEYS}
    drawn = {named(figure.tips[mark.gid]): (mark.markers, figure.tips[mark.gid]) for mark in panel.of("pt")}
    assert drawn.keys() == values.keys()
    for key, value in values.items():
        (marker,), tip = drawn[key]
        assert near(marker, (panel.x.place(value[0]), panel.y.place(value[1]))), (key, marker)
        assert all(says(tip, part) for part in value), tip
    best = {
        key for key, (x, y) in values.items()
        if not any(a >= x and more * b >= more * y and (a, b) != (x, y) for a, b in values.values())
    }  # fmt: skip
    (line,) = next(mark for mark in panel.marks if mark.gid == "frontier").lines
    expected = sorted((panel.x.place(values[key][0]), panel.y.place(values[key][1])) for key in best)
    assert len(line) == len(expected) > 1
    assert all(near(a, b) for a, b in zip(line, expected, strict=True)), (line, expected)
    assert {key for key, (_, tip) in drawn.items() if tip.endswith("on the frontier")} == best
    assert sum(gid.startswith("label-") for gid in figure.targets) == len(KEYS), "each is labelled with its B"


def named(tip: str) -> Key:
    """Target and B of a point, or the place of its number of steps."""
    found = re.match(r"(\S+) · B = (\d+):", tip)
    if found is not None:
        return found[1], int(found[2])
    found = re.match(r"(\S+) · (\d)\S* steps", tip)
    assert found is not None, tip
    return found[1], (int(found[2]) - 1) // 2


def same_points(panel: Panel, figure: Figure, of: Expected, where: str, *, along: int) -> None:
    """A marker for each, where it belongs, with a tip that gives its figure; and a bar through it where it has an
    interval. Values lie along x (0) or y (1)."""
    scale = (panel.x, panel.y)[along]
    assert scale is not None
    bars = [line for mark in panel.of("series") for line in mark.lines if is_bar(line)]
    drawn = {
        named(figure.tips[mark.gid]): (mark.markers, figure.tips[mark.gid])
        for mark in panel.of("pt")
        if mark.markers and not invalid(mark)
    }
    assert drawn.keys() == of.points.keys(), where
    for key, (x, (value, lo, hi)) in of.points.items():
        (marker,), tip = drawn[key]
        assert marker[along] == pytest.approx(scale.place(value), abs=CLOSE_PT), (where, key, value)
        assert says(tip, value), (where, tip, value)
        if x:
            assert panel.x is not None
            assert marker[0] == pytest.approx(panel.x.place(x), abs=CLOSE_PT), (where, key)
        if lo is None or hi is None or of.bands:
            continue
        ends = sorted((scale.place(lo), scale.place(hi)))
        found = [
            line
            for line in bars
            if sorted(end[along] for end in line) == pytest.approx(ends, abs=CLOSE_PT)
            and abs(line[0][1 - along] - marker[1 - along]) < CLOSE_PT
        ]
        assert found, (where, key, ends, bars)
        bars.remove(found[0])
    assert not bars, where


def says(tip: str, value: float) -> bool:
    """The tip has the value, in its own or in hundredths, to three digits."""
    numbers = [float(n.replace(",", "")) for n in re.findall(r"-?[\d,]*\d(?:\.\d+)?", tip.replace("−", "-"))]
    return any(n == pytest.approx(k * value, rel=6e-3, abs=1e-9) for n in numbers for k in (1, 100))


def same_others(panel: Panel, of: Expected, where: str) -> None:
    """Lines through the points, bands, dots of single cells, crosses of invalid ones, and B*."""
    assert panel.x is not None
    assert panel.y is not None

    def page(x: float, y: float) -> Point:
        assert panel.x is not None
        assert panel.y is not None
        return panel.x.place(x), panel.y.place(y)

    for target in ITL_MS:
        marks = [mark for mark in panel.of("series") if re.fullmatch(rf"series-{target}(--\d+)?", mark.gid)]
        points = [(x, value) for (name, _), (x, value) in of.points.items() if name == target]
        lines = [line for mark in marks for line in mark.lines if not is_bar(line)]
        same([p for line in lines for p in line], [page(x, value[0]) for x, value in points], f"{where}: line")
        bounded = [(x, v) for x, v in points if v[1] is not None and v[2] is not None] if of.bands else []
        corners = [page(x, end) for x, (_, lo, hi) in bounded for end in (lo, hi) if end is not None]
        bands = {p for mark in marks for line in mark.outlines if len(line) > 5 for p in line}
        for corner in corners:
            assert any(near(corner, p) for p in bands), (where, target, corner, bands)
        assert all(any(near(corner, p) for corner in corners) for p in bands), (where, target)
        dots = [point for mark in marks if not invalid(mark) for point in mark.markers]
        same(dots, [page(*point) for name, point in of.dots if name == target], f"{where}: dots of {target}")
        crosses = [point for mark in marks if invalid(mark) for point in mark.markers]
        same(crosses, [page(*point) for name, point in of.invalid if name == target], f"{where}: invalid {target}")
        hollow = [mark for mark in panel.of("pt") if mark.gid.startswith(f"pt-{target}-") and invalid(mark)]
        shown = [p for mark in hollow for p in (mark.markers or [centre(line) for line in mark.outlines])]
        same(shown, crosses, f"{where}: invalid {target}")
        stars = [line[0][0] for mark in panel.of("pt") for line in mark.lines if mark.gid.startswith(f"pt-{target}-")]
        expected = [panel.x.place(b) for name, b, *_ in of.stars if name == target]
        assert sorted(stars) == pytest.approx(sorted(expected), abs=CLOSE_PT), f"{where}: B* of {target}"
        reach = [sorted({x for x, _ in line}) for mark in marks for line in mark.outlines if len(line) == 4]
        for name, _, lo, hi in of.stars:
            if name == target and lo is not None and hi is not None:
                ends = [panel.x.place(lo), panel.x.place(hi)]
                assert any([a, b] == pytest.approx(ends, abs=CLOSE_PT) for a, b in reach), (where, ends, reach)


def near(a: Point, b: Point) -> bool:
    return math.dist(a, b) < 2 * CLOSE_PT


def same(drawn: Sequence[Point], expected: Sequence[Point], where: str) -> None:
    left = list(drawn)
    for point in expected:
        found = next((p for p in left if near(p, point)), None)
        assert found is not None, (where, point, left)
        left.remove(found)
    assert not left, where


def series_of(panel: Panel, target: str) -> Iterator[Point]:
    for mark in panel.of("series"):
        if re.fullmatch(rf"series-{target}(--\d+)?", mark.gid):
            for line in mark.lines:
                yield from line


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_a_distribution_is_that_of_the_requests(figures: dict[str, Figure], tables: Tables, name: str) -> None:
    """Valid cells, each request where it happened: TTFT by its first token, the others by their end."""
    metric = DISTRIBUTIONS[name]
    rows = tables.answered[tables.answered["latency_valid"]]
    happened = rows["t_first_ns" if metric == "ttft" else "t_end_ns"]
    rows = rows[(happened > rows["window_open_ns"]) & (happened <= rows["window_close_ns"])]
    took_ns = {
        "ttft": rows["t_first_ns"] - rows["t_send_ns"],
        "tpot": (rows["t_last_ns"] - rows["t_first_ns"]) / (rows["output_tokens"] - 1),
        "e2e": rows["t_end_ns"] - rows["t_send_ns"],
    }[metric]
    panels = panels_of(figures[name])
    assert [panel.texts[-1] for panel in panels if panel.marks] == [f"B = {b}" for b in BATCHES]
    for panel, b in zip(panels, BATCHES, strict=False):
        assert panel.x is not None
        assert panel.y is not None
        for target in ITL_MS:
            values = took_ns[(rows["target"] == target) & (rows["concurrency"] == b)] / 1e6
            line = list(series_of(panel, target))
            assert len(line) >= 2
            shares = np.linspace(0, 1, 2001)
            across = np.array([panel.x.place(value) for value in np.quantile(values, shares)])
            up = np.array([panel.y.place(share) for share in shares])
            for x, y in line:
                assert np.hypot(across - x, up - y).min() < 4 * CLOSE_PT, (name, target, b)
            tips = [tip for tip in figures[name].tips.values() if tip.startswith(f"{target} · B = {b}:")]
            row = tables.summary.loc[(target, b)]
            assert len(tips) == 1
            assert f"{len(values):,} requests" in tips[0]
            assert all(says(tips[0], row[f"{metric}_ms_{which}"]) for which in ("p50", "p99"))


@pytest.mark.parametrize("name", TIMELINES)
def test_a_timeline_is_that_of_requests_server_and_power(figures: dict[str, Figure], tables: Tables, name: str) -> None:
    """Over the window its means are those of cells.csv."""
    target = TIMELINES[name]
    colours = {"inflight_mean": "#0072b2", "running_gauge_mean": "#00936b", "power_w_mean": "#d55e00"}
    panels = panels_of(figures[name])
    cells = [(b, repeat) for b in BATCHES for repeat in REPEATS]
    assert len(panels) == 2 * len(cells), "requests on the left axis, power on the right one"
    rows = tables.cells[tables.cells["target"] == target].set_index(["concurrency", "repeat"])
    for place, key in enumerate(cells):
        both, row = [panels[place], panels[len(cells) + place]], rows.loc[key]
        sent = tables.requests[
            (tables.requests["target"] == target)
            & (tables.requests["concurrency"] == key[0])
            & (tables.requests["repeat"] == key[1])
        ]["t_send_ns"].min()
        opened, closed = ((row[f"window_{edge}_ns"] - sent) / 1e9 for edge in ("open", "close"))
        scale = both[0].x
        assert scale is not None
        shaded = [mark for mark in both[0].marks if invalid(mark) and mark.outlines]
        edges = sorted({x for mark in shaded for line in mark.outlines for x, _ in line})
        assert edges == pytest.approx([scale.place(opened), scale.place(closed)], abs=CLOSE_PT)
        for column, colour in colours.items():
            (line,) = [
                (line, panel) for panel in both for mark in panel.marks if colour in mark.colour for line in mark.lines
            ]
            assert line[1].y is not None
            t = [scale(x) for x, _ in line[0]]
            values = [line[1].y(y) for _, y in line[0]]
            inside = np.linspace(opened, closed, 400)
            assert np.interp(inside, t, values).mean() == pytest.approx(row[column], rel=0.02), (name, key, column)


def test_the_tables_ratio_to_the_reference_is_that_of_the_figures(run: Run, tables: Tables) -> None:
    """At B = 8 one repeat of awq is invalid: the reference's same repeat alone is compared."""
    table = table_of(RESULT, summary_rows(run))
    column = table.headings.index("× ref")
    shown = {(row[1], int(row[0])): row[column] for row in table.rows}
    assert shown == {key: f"{tables.ratio(key, 'tokens_per_s'):.2f}" if key in AGAINST else "" for key in KEYS}
    own = tables.mean(("awq", 8), "tokens_per_s") / tables.mean(("fp16", 8), "tokens_per_s")
    assert own != pytest.approx(tables.ratio(("awq", 8), "tokens_per_s"), rel=0.01)
