"""Pages: the text of a study, section by section, and its file; it computes only ratios and differences."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from textwrap import indent

import pandas as pd

from bench.gpu.markdown import items, number, paragraph, spread, table
from bench.gpu.pieces import MIB, SUFFIX, unpack
from bench.gpu.simulator import ANCHOR_HEAD, ERROR_HEAD, anchors, pairs, rows_of
from bench.gpu.study import FIGURES, MOST_MIB, Study, collect, draw, figures_of
from loadgen.analysis.crossover.crossing import Crossing
from loadgen.analysis.crossover.crossover import Crossover
from loadgen.analysis.run import Run
from loadgen.analysis.validity import invalid_sentences
from loadgen.errors import UsageError
from loadgen.reports.rows import cells_valid
from loadgen.serving.recipe import load_recipes
from loadgen.serving.simulated.cost import load_presets
from loadgen.words import STAMP, too_wide

METRICS = {
    "tokens_per_s": "faster",
    "energy_per_token_j": "less energy per token",
    "energy_hli_per_query_j": "less energy by the HLI bound",
}
ANSWER_HEAD = ("model", "format", *METRICS.values())
HLI_HEAD = ("target", "B", "HLI J/query", "meter J/query", "meter / HLI")


def answer_rows(runs: Iterable[tuple[str, Run]]) -> list[list[str]]:
    """A row per model and format that was compared; `runs` are pairs of a model's name and its run."""
    found = []
    for model, run in runs:
        by_target: dict[str, dict[str, Crossover]] = {}
        for finding in run.analysis.crossovers:
            by_target.setdefault(finding.target, {})[finding.metric] = finding
        for target, findings in by_target.items():
            ours = run.summary[run.summary["target"] == target]
            known = [metric for metric in METRICS if metric in findings and ours[metric].notna().any()]
            found.append([model, target, *(answer_words(findings[m]) if m in known else "" for m in METRICS)])
    return found


def answer_words(finding: Crossover) -> str:
    """Where a format wins, in a few words, of a figure that was measured."""
    if not finding.points:
        return "too few valid B"
    if finding.status == "crosses":
        return ", ".join(_crossing(crossing) for crossing in finding.crossings)
    suspected = [f"the means cross at {number(crossing.b, '.3g')}" for crossing in finding.suspected]
    known = {"better": "at every B measured", "worse": "at no B measured"}
    return known.get(finding.status) or ", ".join(["not decided", *suspected])


def _crossing(crossing: Crossing) -> str:
    side = "below" if crossing.direction == "wins_below" else "above"
    low, high = crossing.lo, crossing.hi
    if too_wide(low, high):
        return f"{side} a B* between {crossing.bracket[0]} and {crossing.bracket[1]}"
    interval = "" if low is None or high is None else f" ({number(low, '.3g')}–{number(high, '.3g')})"
    return f"{side} B* = {number(crossing.b, '.3g')}{interval}"


_ALTS = {"throughput": "output tokens per second", "energy-token": "joules per output token", "cor": "COR"}
_METRICS = ("tokens_per_s", "energy_per_token_j", "energy_hli_per_query_j")


def text(study: Study, beside: Path) -> str:
    """The whole page; figures are looked for in `beside`."""
    before, after = (_title, _short, _steps, _sensors), (_hli, _anchors, _published, _claims, _sizes)
    last = (_selftest, _simulator, _invalid, _limits, _again)
    runs = [_run(study, step, run, beside) for step, run in study.runs.items()]
    sections = [*(part(study) for part in before), *runs, *(part(study) for part in (*after, *last))]
    return "\n\n".join(section for section in sections if section) + "\n"


def _title(study: Study) -> str:
    recipes = load_recipes()
    served = (t.precision for run in study.runs.values() for t in run.manifest.config.targets)
    precisions = [recipes[name].label for name in dict.fromkeys(served)]
    cells = pd.concat([run.cells for run in study.runs.values()])
    versions = sorted({s.version for run in study.runs.values() for s in run.manifest.servers if s.version})
    notes = sorted({s.note for run in study.runs.values() for s in run.manifest.servers if s.note})
    intro = (
        f"{', '.join(precisions)} on {study.gpu}{_driver(study)}, {study.day}, vLLM "
        f"{', '.join(versions) or 'not known'}: {cells_valid(cells)}."
    )
    if study.simulated:
        intro = (
            f"**{STAMP}: nothing on this page was measured.** The same plan as on hardware, answered by loadgen's "
            f"simulated servers with the preset of {study.gpu.replace(STAMP, '').strip()}. {intro}"
        )
    elif study.gpu.startswith("CPU "):
        intro = f"**No GPU: a rehearsal of the kit on a CPU, which says nothing of how a GPU behaves.** {intro}"
    if notes:
        intro += f" Checkpoints: **{'; '.join(notes)}**."
    return "\n\n".join(
        [
            f"# Quantization's batch sizes on {study.gpu.replace(STAMP, '').strip()}{study.stamp}",
            paragraph(intro),
            f"Written by `python -m bench.gpu study docs/studies/{study.name}/results`; not to be edited.",
        ]
    )


def _driver(study: Study) -> str:
    gpus = [gpu for run in study.runs.values() for gpu in run.manifest.gpu or ()]
    if not gpus or study.simulated:
        return ""
    limit = gpus[0].power_limit_enforced_w
    return f" (driver {gpus[0].driver or 'not known'}, power limit {number(limit) or 'not known'} W)"


def _short(study: Study) -> str:
    rows = answer_rows((study.model(step), run) for step, run in study.runs.items())
    if not rows:
        return ""
    words = (
        "Each against 16 bits of the same model, on the axis of the measured running batch, with 95% intervals. Energy "
        "per token is the GPU's own counter; the HLI bound is power limit × time, so it says what throughput says."
    )
    return f"## In short{study.stamp}\n\n{paragraph(words)}\n\n{table(ANSWER_HEAD, rows)}"


def _steps(study: Study) -> str:
    rows = []
    for step in study.plan["steps"]:
        state, run = study.states.get(step["name"], {}), study.runs.get(step["name"])
        cells = cells_valid(run.cells) if run else ""
        status = state.get("status", "open") + (f": {state['reason']}" if state.get("reason") else "")
        status = "not reached" if status == "open" else status
        rows.append([step["name"], step["why"], status, cells, number(state.get("seconds"), ".0f")])
    head = ["step", "why", "how it ended", "cells", "seconds"]
    parts = [f"## What was done{study.stamp}", table(head, rows)]
    if shortened := study.plan.get("shortened"):
        parts += ["Shortened, since the machine was lent for a short time:", items(shortened)]
    return "\n\n".join(parts)


def _sensors(study: Study) -> str:
    if study.sensors is None:
        return ""
    sensors, findings = study.sensors
    there = ", ".join(name for name, has in sensors.gpu.supported.items() if has)
    lacking = ", ".join(name for name, has in sensors.gpu.supported.items() if not has) or "none"
    head = ["state", "W", "counter J", "integral J", "integral / counter", "counter updated each", "its step",
            "power_instant_w each", "power_average_w each", "reading takes (p50, p99)"]  # fmt: skip
    rows = []
    for state, found in findings.items():
        calibration = found.calibration
        rows.append(
            [
                state, number(found.power_w_mean), number(found.counter_j), number(found.integral_j),
                number(found.ratio, ".4f"), _ms(calibration.counter_period_s),
                f"{number(calibration.counter_resolution_j)} J" if calibration.counter_resolution_j else "",
                _ms(calibration.instant_period_s), _ms(calibration.average_period_s),
                f"{found.read_ms_p50:.2f} ms, {found.read_ms_p99:.2f} ms",
            ]
        )  # fmt: skip
    period = next((c.calibration.sampling_period_s for c in findings.values()), None)
    words = (
        f"Fields: {there}; not there: {lacking}. Sampled each {_ms(period)}; an update period near that is an upper "
        "bound. `loaded`: matrix products without a pause; `pulsed`: half a second of them, half a second without."
    )
    return f"## The power sensors\n\n{table(head, rows)}\n\n{paragraph(words)}"


def _run(study: Study, step: str, run: Run, beside: Path) -> str:
    config = run.manifest.config
    targets = [target.name for target in config.targets]
    known = [metric for metric in _METRICS if run.summary[metric].notna().any()]
    said = [found.sentence for metric in known for found in run.analysis.crossovers if found.metric == metric]
    kernels = {s.name: ", ".join(s.kernels or ()) for s in run.manifest.servers}
    most = int(run.cells["repeat"].max())
    repeats = "one repeat" if most == 1 else f"{most} repeats"
    if config.mode == "serve" and most > 1:
        repeats += ", each with new servers"
    facts = (
        f"Answers of exactly {config.fixed_length} tokens, windows of {number(config.duration_s)} s, "
        f"{repeats}. "
        f"Kernels named by the log: {'; '.join(f'{n}: {k}' for n, k in kernels.items() if k) or 'none'}."
    )
    parts = [
        f"## {study.model(step)}, {step}{study.stamp}",
        paragraph(f"{study.why(step)[0].upper()}{study.why(step)[1:]}. {facts}"),
        items(said),
    ]
    for column, title in (
        ("tokens_per_s", "Output tokens per second"), ("energy_per_token_j", "Joules per output token"),
        ("power_w_mean", "Watts, mean over the window"),
    ):  # fmt: skip
        if run.summary[column].notna().any():
            parts += [f"### {title}{study.stamp}", _by_batch(study, run, column, targets)]
    for figure in FIGURES:
        name = f"{step}-{figure}.png"
        if (beside / name).exists():
            parts.append(f"![{_ALTS[figure]} over the running batch{study.stamp}]({beside.name}/{name})")
    return "\n\n".join(parts)


def _by_batch(study: Study, run: Run, column: str, targets: list[str]) -> str:
    summary = run.summary.set_index(["concurrency", "target"])
    rows = []
    for b in run.manifest.config.concurrency:
        row = [str(b)]
        for target in targets:
            found = summary.loc[(b, target)] if (b, target) in summary.index else None
            values = [] if found is None else [found.get(f"{column}{end}") for end in ("", "_lo", "_hi")]
            row.append(spread(*values) if values else "")
        rows.append(row)
    return table([f"{STAMP} B" if study.simulated else "B", *targets], rows)


def _hli(study: Study) -> str:
    rows = []
    for row in study.comparison.rows:
        if row.energy_per_query_j and row.energy_hli_per_query_j:
            share = row.energy_per_query_j / row.energy_hli_per_query_j
            rows.append([row.run, row.target, str(row.concurrency), number(row.energy_hli_per_query_j),
                         number(row.energy_per_query_j), f"{share:.2f}"])  # fmt: skip
    if not rows:
        return f"## HLI against NVML{study.stamp}\n\nEnergy was not measured, so there is nothing to compare."
    differing = [warning for run in study.runs.values() for warning in run.analysis.warnings if "HLI" in warning]
    words = (
        "HLI is power limit × time, the paper's first method: a bound, and between two precisions on one GPU a ratio "
        "of times. The last column is the mean power as a share of the limit. Where it differs between two precisions "
        "at one B, HLI misses that much of their difference in energy."
    )
    parts = [
        f"## HLI against NVML{study.stamp}",
        paragraph(words),
        table([f"{STAMP} run" if study.simulated else "run", *HLI_HEAD], rows),
        items(differing) or "At no B does HLI prove the opposite of what the meter proves.",
    ]
    return "\n\n".join(parts)


def _anchors(study: Study) -> str:
    rows = anchors(study.comparison.rows)
    if not rows:
        return ""
    words = (
        "ML.ENERGY's leaderboard (BF16, LMArena chat, vLLM 0.11.1) has no model of ours; these are its models of the "
        "nearest sizes on one GPU, at the same B, where one is within a factor of two. Between the two lie another "
        "model, GPU, prompt, answer length and vLLM: a factor near that of the parameters is what to expect, not "
        "equality."
    )
    return f"## Beside ML.ENERGY's joules per token{study.stamp}\n\n{paragraph(words)}\n\n{table(ANCHOR_HEAD, rows)}"


def _published(study: Study) -> str:
    """What all rows differ in is said once."""
    rows = []
    differs = [set(match.differs) for match in study.comparison.published]
    common = set.intersection(*differs) if differs else set()
    for match in study.comparison.published:
        theirs = match.published
        ours = "; ".join(
            f"B {one.concurrency}: {number(one.value)}" + (f" (× {number(one.ratio, '.2g')})" if one.ratio else "")
            for one in match.ours
        )
        own = [words for words in match.differs if words not in common]
        caveats = "; ".join([*own, *([theirs.contradiction] if theirs.contradiction else [])])
        subject = f"{theirs.model}, {theirs.precision}, {theirs.gpu or 'GPU not stated'}"
        figure = f"{theirs.metric} {number(theirs.value)} {theirs.unit}"
        rows.append([theirs.source, subject, figure, f"{match.run} {match.target}, {match.column}: {ours}", caveats])
    if not rows:
        return ""
    head = ["source", "of what", "published", "ours (× theirs)", "why they may differ"]
    everywhere = next(iter(study.comparison.published)).differs
    said = f"In every row: {'; '.join(words for words in everywhere if words in common)}."
    parts = [f"## Beside the paper's own figures{study.stamp}", *([paragraph(said)] if common else [])]
    return "\n\n".join([*parts, table(head, rows)])


def _claims(study: Study) -> str:
    rows = [
        [claim.claim, claim.source, f"{step}: {', '.join(claim.targets)}", claim.verdict, claim.evidence]
        for step, run in study.runs.items()
        for claim in run.analysis.claims
    ]
    rows += [[c.claim, c.source, ", ".join(c.targets), c.verdict, c.evidence] for c in study.comparison.claims]
    caveats = [
        "Verdicts hold for these kernels on this machine. The paper's 4 and 8 bits are bitsandbytes in another engine; "
        "AWQ, GPTQ and FP8 are other kernels.",
        "Accuracy is no part of this study (random weights), so no claim on trust or on SI can be judged.",
        "Energy is the GPU's alone: no host, no host memory, no cooling.",
        "With one repeat a verdict that needs an interval is `cannot tell`, unless noise inside the windows decides.",
    ]
    if study.simulated:
        caveats.insert(0, f"{STAMP}: a verdict here is one on the cost model's own assumptions, not on hardware.")
    body = (
        table(["claim", "source", "of", "verdict", "evidence"], rows) if rows else "No claim could be put to the test."
    )
    return f"## The paper's claims{study.stamp}\n\n{body}\n\n{items(caveats)}"


def _sizes(study: Study) -> str:
    found = zip(study.comparison.n_stars, study.comparison.sentences, strict=True)
    said = [sentence for n_star, sentence in found if n_star.refusal is None]
    return f"## Over model size{study.stamp}\n\n{items(said)}" if said else ""


def _selftest(study: Study) -> str:
    if not study.selftest:
        return ""
    return f"## The client beside a server\n\n{indent(study.selftest.strip(), '    ')}"


def _simulator(study: Study) -> str:
    found = pairs(figures_of(study), load_presets())
    if not found:
        return ""
    kind = "This is the simulator's error against hardware."
    if study.simulated:
        kind = "Both sides come from one cost model here: this is the error of window, sensors and client."
    words = (
        "What the simulator's closed form gives for the prompts and answers of these runs, over the figures above, "
        f"less one. {kind}"
    )
    heading = f"## The simulator's closed form beside it{study.stamp}"
    return f"{heading}\n\n{paragraph(words)}\n\n{table(ERROR_HEAD, rows_of(found))}"


def _invalid(study: Study) -> str:
    lines = [
        f"{step}, {sentence}"
        for step, run in study.runs.items()
        for sentence in invalid_sentences(run.invalid, run.arrival)
    ]
    return f"## Cells that are not valid{study.stamp}\n\n{items(lines) or 'None.'}"


def _limits(study: Study) -> str:
    lines = [
        "Nothing here says anything about answers: weights are random, lengths are forced, and are this plan's only.",
        "One machine at one time; a board's power sensor is off by its own few percent, which cancels in ratios only.",
        "Random numbers draw a little more power than trained weights do.",
        "Short windows: each cell says what its edges leave open (energy_reservations in cells.csv).",
    ]
    if study.simulated:
        lines.insert(0, f"{STAMP}: no line of this page says how a GPU behaves.")
    return f"## Limits\n\n{items(lines)}"


def _again(study: Study) -> str:
    command = f"python -m bench.gpu study docs/studies/{study.name}/results"
    first = next(iter(study.runs))
    return "\n\n".join(
        [
            "## Again",
            "Every number of this page, from the raw results:",
            f"    {command}",
            "One run with its whole report (requests, latencies, time lines):",
            f"    tar xJf docs/studies/{study.name}/results/{first}.tar.xz -C FOLDER\n"
            f"    loadgen report FOLDER/runs/{first}",
            "The measurement: [bench/gpu](../../bench/gpu/README.md).",
        ]
    )


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{1e3 * seconds:.0f} ms"


def write(packed: Path, out: Path) -> Path:
    """Writes OUT/NAME.md, and beside it the folder OUT/NAME with figures, figures.json and the packed results.

    Every number comes from the results. Raises UsageError for results that are partly measured and partly simulated,
    damaged, or too large for a repository.
    """
    size = sum(path.stat().st_size for path in packed.glob(f"*{SUFFIX}")) / MIB
    if size > MOST_MIB:
        raise UsageError(f"{packed} has {size:.1f} MiB, more than {MOST_MIB:g}: take the archives of some steps out")
    with tempfile.TemporaryDirectory() as folder:
        study = collect(unpack(packed, Path(folder) / "work"))
        beside = out / study.name
        beside.mkdir(parents=True, exist_ok=True)
        for run_step, run in study.runs.items():
            for figure in draw(run):
                if figure.name in FIGURES:
                    shutil.copy(figure.png, beside / f"{run_step}-{figure.name}.png")
        content = json.dumps(figures_of(study), indent=1)
        (beside / "figures.json").write_text(content + "\n", encoding="utf-8")
        page = out / f"{study.name}.md"
        page.write_text(text(study, beside), encoding="utf-8")
    results = beside / "results"
    if results.resolve() != packed.resolve():
        shutil.rmtree(results, ignore_errors=True)
        results.mkdir()
        for archive in sorted(packed.glob(f"*{SUFFIX}")):
            shutil.copy(archive, results / archive.name)
    return page
