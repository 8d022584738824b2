"""Writes this study's README.md, report.html and pictures from its raw run, run.tar.xz.

python docs/studies/cpu/write.py                 # every number of the text anew
python docs/studies/cpu/write.py --pack RUN      # take over a newly measured run first
"""

from __future__ import annotations

import argparse
import io
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from statistics import geometric_mean
from textwrap import fill

import loadgen
from loadgen.analysis.analyse import analyse
from loadgen.analysis.estimate import rate_interval
from loadgen.analysis.run import Run
from loadgen.analysis.validity import invalid_sentences
from loadgen.reports.html import write_report
from loadgen.reports.rows import cells_valid
from loadgen.words import NOT_KNOWN, WHY_NOT_KNOWN, too_wide

HERE = Path(__file__).parent
ARCHIVE = HERE / "run.tar.xz"
RAW = ("manifest.json", "items.json", "journal")
NAMES = {"bf16": "BF16", "bnb-nf4": "bitsandbytes NF4", "int8": "INT8 W8A8", "fp8": "FP8 W8A8"}


def pack(run_dir: Path) -> None:
    """Keeps what was measured; folders of the machine it was measured on become MODELS, ENV and RUN."""
    run = loadgen.load_run(run_dir)
    model = Path(run.manifest.config.model or "")
    vllm = Path((run.manifest.servers[0].argv or ("",))[0])
    folders = {model.parent: "MODELS", vllm.parents[2]: "ENV", run_dir.absolute(): "RUN", HERE.resolve(): "STUDY"}
    with tarfile.open(ARCHIVE, "w:xz", preset=9) as archive:
        for path in sorted(_files(run_dir)):
            text = path.read_text(encoding="utf-8")
            for folder, name in folders.items():
                text = text.replace(str(folder), name)
            entry = tarfile.TarInfo(f"run/{path.relative_to(run_dir)}")
            content = text.encode()
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def _files(run_dir: Path) -> Iterator[Path]:
    for name in RAW:
        path = run_dir / name
        yield from (p for p in ([path] if path.is_file() else path.rglob("*")) if p.is_file())


def write() -> None:
    """README.md, report.html and the figures named in it."""
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(ARCHIVE) as archive:
            archive.extractall(folder, filter="data")
        run_dir = Path(folder) / "run"
        analyse(run_dir)
        run = loadgen.load_run(run_dir)
        shutil.copy(write_report(run), HERE / "report.html")
        for name in ("throughput", "cor"):
            shutil.copy(run.path / "figures" / f"{name}.png", HERE / f"{name}.png")
        (HERE / "README.md").write_text(_text(run), encoding="utf-8")


def _text(run: Run) -> str:
    manifest, config = run.manifest, run.manifest.config
    cells, host = run.cells, manifest.host
    vectors = f" ({', '.join(host.cpu_vectors)})" if host.cpu_vectors else ""
    batches = ", ".join(map(str, config.concurrency))
    said = []
    for target in [t.name for t in config.targets if t.name != config.reference]:
        found = run.crossover(target, "tokens_per_s")
        said.append(f"- {found.sentence}." + (f" ({found.refusal})" if found.refusal else ""))
    parts = [
        "# A batch size from which quantization pays, on two CPU cores?",
        _wrapped(
            f"Real vLLM {manifest.servers[0].version} on {host.cpus} cores of an {host.cpu}{vectors}, a "
            "Llama of "
            f"104 million random weights (make_model.py), {', '.join(NAMES.values())}, B = {batches}, "
            f"{config.repeats} repeats interleaved, answers of exactly {config.fixed_length} tokens, windows of "
            f"{config.duration_s:g} s. {cells_valid(cells)}. No energy: this "
            "machine has no power sensor. The answers are noise, so there is no accuracy either: this study is about "
            "speed, and about whether loadgen finds what is there."
        ),
        "Written by `python docs/studies/cpu/write.py` from run.tar.xz; not to be edited.",
        "## Answer",
        "\n".join(said),
        "## Output tokens per second",
        _rates(run),
        _wrapped(
            "Means over valid repeats, 95% intervals by Student's t on logarithms (summary.csv: tokens_per_s). "
            f"Empty: no valid cell. {WHY_NOT_KNOWN}"
        ),
        "![tokens per second over the running batch](throughput.png)",
        "## COR over B",
        _cor(run),
        _wrapped(
            "COR = tok/s of BF16 / tok/s of the other - 1 at equal B: above 0 the quantized model is the slower one, "
            "above 1 it takes more than twice the time (analysis.json: cor_curves)."
        ),
        "![COR over the running batch](cor.png)",
        "## Theorem 4.5 (1)",
        _theorem(run),
        "## Cost models",
        _models(run),
        "## Cells that are not valid",
        _invalid(run),
        "## Limits",
        _wrapped(
            "One small model with random weights; one machine, shared with other work at the lowest priority during "
            "the run; CPU kernels, none of them a GPU's: NF4 is unpacked by bitsandbytes for every step, FP8 is "
            "computed by torch without hardware support. Nothing here says how a GPU behaves."
        ),
        "## Again",
        "    loadgen cpu-env\n"
        "    ENV/venv/bin/python docs/studies/cpu/make_model.py --out MODELS\n"
        "    sh docs/studies/cpu/measure.sh MODELS RUN\n"
        "    python docs/studies/cpu/write.py --pack RUN",
        "The whole [report](report.html).",
    ]
    return "\n\n".join(parts) + "\n"


def _wrapped(text: str) -> str:
    return fill(text, 120, break_long_words=False, break_on_hyphens=False)


def _rates(run: Run) -> str:
    table = run.summary.set_index(["concurrency", "target"])
    rows = []
    for b in run.manifest.config.concurrency:
        figures = []
        for name in NAMES:
            row = table.loc[(b, name)]
            figures.append(_spread(row["tokens_per_s"], row["tokens_per_s_lo"], row["tokens_per_s_hi"]))
        rows.append([str(b), *figures])
    return _table(["B", *NAMES.values()], rows)


def _cor(run: Run) -> str:
    curves = {curve.target: {point.concurrency: point for point in curve.points} for curve in run.analysis.cor_curves}
    rows = []
    for b in run.manifest.config.concurrency:
        row = [str(b)]
        for target in curves:
            cor = curves[target][b].cor_tps if b in curves[target] else None
            row.append(_spread(cor.value, cor.lo, cor.hi, "+.2f", floor=-1.0) if cor is not None else "")
        rows.append(row)
    return _table(["B", *(NAMES[target] for target in curves)], rows)


def _theorem(run: Run) -> str:
    cells = run.valid_cells("tokens_per_s")
    batches = run.manifest.config.concurrency
    rows = []
    for target in NAMES:
        rates = cells[cells["target"] == target].pivot(index="repeat", columns="concurrency", values="tokens_per_s")
        row = [NAMES[target]]
        for less, more in pairwise(batches):
            known = less in rates and more in rates
            ratios = (rates[more] / rates[less]).dropna().tolist() if known else []
            low, high = rate_interval(ratios)
            row.append(_spread(geometric_mean(ratios) if ratios else None, low, high, ".2f"))
        rows.append(row)
    head = ["tok/s at the larger B / at the smaller", *(f"{a} to {b}" for a, b in pairwise(batches))]
    verdicts = "; ".join(
        f"{', '.join(NAMES[t] for t in claim.targets)}: {claim.verdict} ({claim.evidence})"
        for claim in run.analysis.claims
        if claim.source == "Theorem 4.5 (1)"
    )
    before = (
        "The theorem says that energy per query falls as the batch grows. Energy was not measured, so it is not tested "
        f"here: {verdicts or 'loadgen gives no verdict'}. What the paper's own HLI method (constant power times time) "
        "would take for energy is the time per token, which falls where this ratio is above 1 (paired by repeat, 95%):"
    )
    return f"{_wrapped(before)}\n\n{_table(head, rows)}"


def _models(run: Run) -> str:
    sentences = [study.sentence for study in run.analysis.models if study.sentence]
    return "\n".join(f"- {sentence}" for sentence in sentences) or "None was fitted."


def _invalid(run: Run) -> str:
    lines = [f"- {sentence}" for sentence in invalid_sentences(run.invalid, run.arrival)]
    return "\n".join(lines) or "None."


def _spread(
    value: float | None, low: float | None, high: float | None, form: str = ".4g", *, floor: float = 0.0
) -> str:
    if value is None or value != value:
        return ""
    if low is None or high is None or low != low:
        return f"{value:{form}}"
    if too_wide(low, high, floor=floor):
        return f"{value:{form}} ({NOT_KNOWN})"
    return f"{value:{form}} ({low:{form}} to {high:{form}})"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the CPU study anew.")
    parser.add_argument("--pack", type=Path, metavar="RUN", help="take over this run directory first")
    options = parser.parse_args()
    if options.pack:
        pack(options.pack)
    write()


if __name__ == "__main__":
    main()
