"""Proxies of the environment: downloads use them, servers that are measured are always reached directly."""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import urlsplit
from urllib.request import getproxies_environment, proxy_bypass


def proxies_passed_by(urls: Iterable[str]) -> list[str]:
    """Addresses of proxies that the environment names for these servers on other machines, and that are not asked."""
    proxies = getproxies_environment()
    found = []
    for url in urls:
        parts = urlsplit(url)
        host = parts.hostname or ""
        proxy = proxies.get(parts.scheme) or proxies.get("all")
        if proxy and host not in ("localhost", "127.0.0.1", "::1") and not proxy_bypass(host):
            found.append(proxy)
    return list(dict.fromkeys(found))


def proxies_named() -> list[str]:
    """Every proxy that the environment names, as `http: ADDRESS`."""
    return [f"{scheme}: {address}" for scheme, address in sorted(getproxies_environment().items()) if scheme != "no"]
