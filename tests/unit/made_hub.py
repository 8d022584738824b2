"""A hub on the loopback address that knows the config.json files that a test gives it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

AWQ = {"quantization_config": {"quant_method": "awq", "bits": 4}}
GPTQ = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
GPTQ_8 = {"quantization_config": {"quant_method": "gptq", "bits": 8}}


def packed(weights: str, bits: int, *, activations: bool, entry: str = "quantization_config") -> dict[str, Any]:
    """A compressed-tensors config.json."""
    side = {"type": weights, "num_bits": bits}
    group = {"weights": side, "input_activations": side if activations else None}
    return {entry: {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}}}


def derivative(id: str, downloads: int, *tags: str, gated: bool | str = False) -> dict[str, Any]:
    """A model as the hub's list has it."""
    return {"id": id, "downloads": downloads, "gated": gated, "tags": list(tags)}


class MadeHub:
    """What the hub holds, and what it was asked."""

    def __init__(self, url: str, configs: Mapping[str, dict[str, Any]]) -> None:
        self.url = url
        self.configs = dict(configs)
        self.beside: dict[str, dict[str, Any]] = {}
        """Id -> its hf_quant_config.json."""
        self.gated: set[str] = set()
        self.derivatives: dict[str, list[dict[str, Any]]] = {}
        """Id -> the models that name it as what they were quantized from."""
        self.listings = 0
        """How often a list of models was asked for."""
        self.moved: dict[str, str] = {}
        """Id -> the hub that it is redirected to."""
        self.asked: list[tuple[str, str | None]] = []
        """Id and Authorization header."""


@contextmanager
def made_hub(configs: Mapping[str, dict[str, Any]]) -> Iterator[MadeHub]:
    """A hub that answers GET /ORGANISATION/NAME/resolve/main/FILE of both files; `asked` counts config.json."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = urlsplit(self.path)
            if url.path == "/api/models":
                hub.listings += 1
                self._list(parse_qs(url.query))
                return
            name, _, file = self.path.strip("/").partition("/resolve/main/")
            held = hub.beside if file == "hf_quant_config.json" else hub.configs
            if file == "config.json":
                hub.asked.append((name, self.headers.get("Authorization")))
            if name in hub.moved:
                self.send_response(307)
                self.send_header("Location", f"{hub.moved[name]}{self.path}")
                self.end_headers()
            elif name in hub.gated and not self.headers.get("Authorization"):
                self.send_response(401)
                self.send_header("X-Error-Code", "GatedRepo")
                self.end_headers()
            elif name not in held:
                self.send_error(404)
            else:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(json.dumps(held[name]).encode())

        def _list(self, asked: dict[str, list[str]]) -> None:
            """As the hub: models with all tags, by what is asked, with those properties that are asked for."""
            (tag,) = asked["filter"]
            found = hub.derivatives.get(tag.removeprefix("base_model:quantized:"), [])
            found = sorted(found, key=lambda one: -one.get(asked["sort"][0], 0))[: int(asked["limit"][0])]
            body = [{"_id": "0", "id": one["id"]} | {key: one.get(key) for key in asked["expand"]} for one in found]
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub = MadeHub(f"http://127.0.0.1:{server.server_address[1]}", configs)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def put_in_cache(cache: Path, checkpoint: str, config: dict[str, Any], *, weights: bool = True) -> None:
    """Lays a checkpoint into a hub cache as huggingface_hub does: refs/main names the snapshot's folder."""
    folder = cache / f"models--{checkpoint.replace('/', '--')}"
    snapshot = folder / "snapshots" / "c0ffee"
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("c0ffee")
    (snapshot / "config.json").write_text(json.dumps(config))
    if weights:
        (snapshot / "model.safetensors").write_bytes(b"")


def put_in_folder(folder: Path, config: dict[str, Any]) -> Path:
    """A checkpoint's folder that holds a config.json."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder
