"""The first screen: what was measured, what came out of it, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

from loadgen.analysis.run import Run
from loadgen.client.arrivals import CLOSED
from loadgen.report.answer import terms
from loadgen.report.html.markup import Html, element, join
from loadgen.report.html.tables import stamp, table
from loadgen.report.stamp import STAMP
from loadgen.report.table import NOT_KNOWN, WHY_NOT_KNOWN, interval
from loadgen.report.traffic import traffic_sentences

Entry = Mapping[str, Any]
HEADLINES = ("energy_per_query_j", "tokens_per_s")
"""The crossover of the first of them that was measured is the headline."""
_GLANCE = ("target", "B", "tok/s × ref", "95% CI", "J/query × ref", "95% CI", "accuracy, pp", "95% CI", "n", "SI",
           "95% CI")  # fmt: skip
_TRAP = {"trap": "yes", "no trap": "no", "cannot tell": "cannot tell"}


def conditions(manifest: Entry) -> str:
    """Dataset, protocol, batches, windows, repeats and date in one line."""
    dataset, protocol, config = manifest["dataset"], manifest["protocol"], manifest["config"]
    window = f"{config['duration_s']:g} s" if config["duration_s"] else f"{config['requests']} requests"
    arrival = config.get("arrival", CLOSED)
    b = ", ".join(map(str, config["concurrency"]))
    parts = [
        f"{dataset['name']}, {dataset['items']} items",
        f"protocol {protocol['name']}, {protocol['api']}, at most {protocol['max_tokens']} tokens",
        f"B {b}" if arrival == CLOSED else f"{arrival}, at most {b} in flight",
        f"windows of {window}",
        f"{config['repeats']} repeats",
        started(manifest),
    ]
    return " · ".join(part for part in parts if part)


def started(manifest: Entry) -> str:
    """When the run began, in UTC; empty where the manifest does not say."""
    anchors = manifest.get("clock_anchors") or ()
    if not anchors:
        return ""
    return f"{datetime.fromtimestamp(anchors[0]['unix_ns'] / 1e9, UTC):%Y-%m-%d %H:%M} UTC"


def verdicts(run: Run) -> Html:
    """A sentence and a row of verdicts per target, then the figures behind both, B by B."""
    analysis = run.analysis
    if run.arrival is not None:
        return join([_traffic(run, target, told) for target, told in traffic_sentences(run).items()])
    targets = list(dict.fromkeys(entry["target"] for entry in analysis["crossovers"]))
    parts = [_target(run, target) for target in targets]
    if not parts:
        parts = [element("p", f"Only {analysis['reference']} was measured: there is nothing to compare.", class_="big")]
    words = terms(analysis)
    return join((element("p", words, class_="small") if words else "", *parts, _glance(analysis)))


def _target(run: Run, target: str) -> Html:
    analysis = run.analysis
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
    heading = element("h3", f"{target} at {run.arrival} ", stamp(simulated=run.analysis["simulated"]))
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
    tests = [test for test in run.analysis["trust"] if test["target"] == target and test["items"]]
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
