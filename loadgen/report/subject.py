"""What a run is about."""

from __future__ import annotations

from pathlib import Path

from loadgen.analysis.run import Run


def subject(run: Run) -> str:
    """Model (of a local one its folder's name) and device, as in "some/model on 2 × NVIDIA L4"."""
    manifest = run.manifest
    model = manifest["config"]["model"] or next((s["model"] for s in manifest["servers"] if s.get("model")), None)
    model = str(model or run.path.name)
    model = Path(model).name if model.startswith("/") else model
    names = [str(gpu["name"]) for gpu in manifest.get("gpu") or ()]
    devices = [f"{count} × {name}" if (count := names.count(name)) > 1 else name for name in dict.fromkeys(names)]
    if not devices and manifest["config"].get("device") == "cpu":
        devices = [str(manifest["host"]["cpu"])]
    return " on ".join((model, *([", ".join(devices)] if devices else [])))
