"""Proxies: whether the environment names one, and what it is used for."""

from __future__ import annotations

from loadgen.doctor.finding import Finding
from loadgen.secret import Mask
from loadgen.serving.proxy import proxies_named


def proxies() -> Finding:
    """Of HTTP_PROXY, HTTPS_PROXY and ALL_PROXY, upper or lower case."""
    named = proxies_named()
    if not named:
        return Finding(check="proxy", state="ok", seen="the environment names none")
    used = "for downloads only; servers, exporters and Prometheus are reached directly"
    seen = f"{', '.join(map(Mask(), named))}: {used}"
    return Finding(check="proxy", state="ok", seen=seen)
