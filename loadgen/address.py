"""Addresses: URLs and listening sockets of a host and port, IPv6 included."""

from __future__ import annotations

import os
import socket

from loadgen.errors import UsageError


def http_url(host: str, port: int) -> str:
    """`http://host:port`, an IPv6 address in brackets."""
    return f"http://{host_port(host, port)}"


def host_port(host: str, port: int) -> str:
    """`host:port`, an IPv6 address in brackets."""
    host = _bare(host)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def listen(host: str, port: int, *, backlog: int = 128) -> socket.socket:
    """A socket that listens there; `::` is every address of the machine, of IPv4 too where the system allows it.

    Raises UsageError, one sentence, when the address cannot be taken.
    """
    host = _bare(host)
    try:
        if ":" not in host:
            return socket.create_server((host, port), backlog=backlog)
        both = host == "::" and socket.has_dualstack_ipv6()
        return socket.create_server((host, port), family=socket.AF_INET6, backlog=backlog, dualstack_ipv6=both)
    except (OSError, OverflowError) as error:
        number = getattr(error, "errno", None)
        reason = os.strerror(number) if number and number > 0 else getattr(error, "strerror", None) or str(error)
        raise UsageError(
            f"cannot listen on {host_port(host, port)} ({reason}); choose another --port or --host"
        ) from None


def _bare(host: str) -> str:
    """An IPv6 address without the brackets that it has in a URL."""
    return host.removeprefix("[").removesuffix("]")
