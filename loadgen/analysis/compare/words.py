"""What is known of N*, in words."""

from __future__ import annotations

from itertools import groupby

from loadgen.analysis.compare.nstar import NStar, SizeCrossing
from loadgen.analysis.intervals import too_wide


def size_words(parameters: float) -> str:
    """Parameters as they are read: 7.25B, 600M."""
    for factor, unit in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if parameters >= 0.9995 * factor:
            return f"{parameters / factor:.3g}{unit}"
    return f"{parameters:.0f}"


def n_star_sentence(found: NStar) -> str:
    """One line without a full stop; it names the stratum, and says SIMULATED where that is."""
    return f"{found.stratum}: {_finding(found)}"


def _finding(found: NStar) -> str:
    if found.refusal is not None:
        return f"no N*: {found.refusal}"
    span = f"{size_words(found.points[0].parameters)}–{size_words(found.points[-1].parameters)}"
    if found.status == "crosses":
        first, *others = found.crossings
        text = f"{_side(first, below=True)} below {_n_star(first)}"
        for crossing in others:
            text += f", {_side(crossing, below=True)} up to {_n_star(crossing)}"
        text += f", {_side(found.crossings[-1], below=False)} above it"
        away = _joined(found, "open")
        return text + (f"; not decided at {away}" if away else "") + _beyond(found, "another N*")
    if found.status in ("better", "worse"):
        word = "faster" if found.status == "better" else "slower"
        outside = _beyond(found, "an N*") or f"; if an N* exists, it is outside {span}"
        return f"{word} than the reference at every size measured ({span}){outside}"
    decided = {"wins": "faster", "loses": "slower", "open": "open"}
    said = (f"{word} at {_joined(found, sign)}" for sign, word in decided.items() if _joined(found, sign))
    text = f"not decided ({', '.join(said)})"
    if found.suspected:
        places = ", ".join(size_words(crossing.n) for crossing in found.suspected)
        text += f"; COR changes sign at {places}, which noise may have made"
    return text + _beyond(found, "an N*")


def _joined(found: NStar, sign: str) -> str:
    """The sizes with this sign, neighbours joined: "1B, 7B–70B"."""
    runs = [list(run) for same, run in groupby(found.points, key=lambda point: point.sign == sign) if same]
    ends = (dict.fromkeys(size_words(point.parameters) for point in (run[0], run[-1])) for run in runs)
    return ", ".join("\N{EN DASH}".join(end) for end in ends)


def _side(crossing: SizeCrossing, *, below: bool) -> str:
    return "faster" if (crossing.direction == "wins_below") == below else "slower"


def _n_star(crossing: SizeCrossing) -> str:
    text = f"N* = {size_words(crossing.n)}"
    if crossing.lo is None or crossing.hi is None:
        return text
    if too_wide(crossing.lo, crossing.hi):
        return f"an N* between {size_words(crossing.bracket[0])} and {size_words(crossing.bracket[1])}"
    return f"{text} (95% CI {size_words(crossing.lo)}–{size_words(crossing.hi)})"


def _beyond(found: NStar, what: str) -> str:
    sides = [f"> {size_words(found.above)}"] if found.above is not None else []
    sides += [f"< {size_words(found.below)}"] if found.below is not None else []
    return f"; if {what} exists, it is {' or '.join(sides)}" if sides else ""
