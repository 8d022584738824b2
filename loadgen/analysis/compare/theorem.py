"""The paper's claims over model size (arXiv 2602.13595v2, Theorem 4.6 and Corollary 4.7), held against the data."""

from __future__ import annotations

from loadgen.analysis.claims import Claim, Verdict
from loadgen.analysis.compare.nstar import NStar
from loadgen.analysis.compare.words import size_words


def size_claims(found: NStar) -> tuple[Claim, ...]:
    """Of one stratum; none where its curve was refused."""
    if found.refusal is not None:
        return ()
    return _trap_dissolves(found), _accuracy_trap_persists(found)


def _claim(found: NStar, claim: str, source: str, verdict: Verdict, evidence: str) -> Claim:
    return Claim(
        claim=claim,
        source=source,
        targets=(found.stratum.precision,),
        verdict=verdict,
        evidence=f"{evidence} ({found.stratum})",
    )


def _trap_dissolves(found: NStar) -> Claim:
    back = [crossing for crossing in found.crossings if crossing.direction == "wins_below"]
    span = f"{size_words(found.points[0].parameters)}–{size_words(found.points[-1].parameters)}"
    verdict: Verdict = "cannot tell"
    if back:
        verdict = "contradicted"
        evidence = f"COR rises above zero again at N = {size_words(back[0].n)}"
    elif found.crossings:
        verdict, evidence = "supported", f"COR falls below zero at N* = {size_words(found.crossings[0].n)}"
    elif found.status == "worse":
        evidence = f"slower at every size measured, {span}: an N* may lie above"
    elif found.status == "better":
        evidence = f"faster at every size measured, {span}: an N* may lie below"
    else:
        evidence = f"no crossing is established and not every size is decided, {span}"
    return _claim(found, "above some model size N* the trap dissolves", "Theorem 4.6 of v2", verdict, evidence)


def _accuracy_trap_persists(found: NStar) -> Claim:
    """At the largest size, where an N* lies below it."""
    largest = found.points[-1]
    size = size_words(largest.parameters)
    dissolves = any(crossing.direction == "wins_above" for crossing in found.crossings)
    judged = set(largest.accuracy_verdicts)
    verdict: Verdict = "cannot tell"
    if not dissolves:
        evidence = "no N* is established below the largest size"
    elif largest.sign != "wins":
        verdict = "contradicted" if largest.sign == "loses" else "cannot tell"
        evidence = f"above an N*, at {size}, it is {'slower again' if largest.sign == 'loses' else 'not decided'}"
    elif judged == {"worse"}:
        verdict, evidence = "supported", f"at {size} faster than the reference, and less accurate"
    elif judged <= {"better", "equivalent"}:
        verdict, evidence = "contradicted", f"at {size} faster than the reference, and accuracy {' or '.join(judged)}"
    else:
        evidence = f"at {size} faster than the reference; accuracy: {', '.join(sorted(judged))}"
    claim = "far above N* the efficiency trap vanishes and the accuracy trap persists"
    return _claim(found, claim, "Corollary 4.7 of v2", verdict, evidence)
