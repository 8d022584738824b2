"""What was run, on what: servers, and the manifest as an excerpt and whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loadgen.analysis.run import Run
from loadgen.folder import Folder
from loadgen.report.html.markup import Html, element, join
from loadgen.report.html.tables import facts, table
from loadgen.report.html.verdict import started
from loadgen.report.stamp import STAMP

Entry = Mapping[str, Any]
_SERVERS = ("server", "repeat", "vLLM", "weights", "KV cache", "CUDA graphs", "kernel", "command or address")
_GRAPHS = {True: "no (eager)", False: "yes", None: "not known"}


def servers(manifest: Entry) -> Html:
    """A row per server and repeat."""
    rows = [
        (
            f"{server['name']} {STAMP}" if manifest["simulated"] else server["name"],
            str(server["repeat"]),
            str(server["version"] or "not known"),
            str(server.get("quantization") or "not known"),
            str(server.get("kv_cache_dtype") or "not known"),
            _GRAPHS[server.get("eager")],
            ", ".join(server.get("kernels") or ()) or "not known",
            " ".join(server.get("argv") or ()) or str(server.get("url", "not known")),
        )
        for server in manifest["servers"]
    ]
    return table(_SERVERS, rows, label="Servers", short_columns=(0, 2))


def manifest_excerpt(run: Run) -> Html:
    """The facts that a reader looks for, then manifest.json as it stands."""
    manifest = run.manifest
    config, dataset, protocol, host = (manifest[key] for key in ("config", "dataset", "protocol", "host"))
    power = manifest.get("power") or {}
    gpus = [_gpu(gpu) for gpu in manifest.get("gpu") or ()]
    models = dict.fromkeys(str(server["model"]) for server in manifest["servers"] if server.get("model"))
    published = "published file" if dataset["published"] else "another file than the published one"
    rows = [
        ("simulated", f"yes, {STAMP}: a cost model answered, not a GPU" if manifest["simulated"] else "no"),
        ("started", started(manifest)),
        ("model", str(config["model"] or ", ".join(models))),
        ("GPU", "; ".join(gpus)),
        ("power", ": ".join(str(part) for part in (power.get("kind"), power.get("reason")) if part)),
        ("dataset", f"{dataset['name']}, {dataset['items']} items, {published}, sha256 {dataset['sha256']}"),
        ("protocol", f"{protocol['name']}, sha256 {protocol['sha256']}"),
        ("temperature", _shown(protocol.get("temperature"))),
        ("seed", _shown(config.get("seed"))),
        ("reference", str(config["reference"])),
        ("targets", ", ".join(str(target["name"]) for target in config["targets"])),
        ("client", f"loadgen {manifest['client']['loadgen']}"),
        ("host", ", ".join((f"{host['cpu']}, {host['cpus']} CPUs", *host.get("cpu_vectors", ())))),
    ]
    whole = Folder(run.path).read("manifest.json").decode("utf-8", "replace")
    return join(
        (
            facts(rows, label="Manifest, excerpt"),
            element("details", element("summary", "manifest.json"), element("pre", whole)),
        )
    )


def _gpu(gpu: Entry) -> str:
    parts = [str(gpu["name"])]
    if gpu.get("memory_total_bytes"):
        parts.append(f"{gpu['memory_total_bytes'] / 1e9:.0f} GB")
    if gpu.get("power_limit_enforced_w"):
        parts.append(f"{gpu['power_limit_enforced_w']:.0f} W")
    if gpu.get("driver"):
        parts.append(f"driver {gpu['driver']}")
    return ", ".join(parts)


def _shown(value: Any) -> str:
    return "" if value is None else str(value)
