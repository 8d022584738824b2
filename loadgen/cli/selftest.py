"""`loadgen selftest`."""

from __future__ import annotations

import sys

import click

from loadgen.cli import CONTEXT


@click.command("selftest", context_settings=CONTEXT)
@click.option("--concurrency", type=int, default=128, show_default=True, metavar="B", help="Requests in flight.")
@click.option("--tokens-per-s", type=float, metavar="R", help="Of all streams together [default: B / ITL].")
@click.option("--itl-ms", type=float, metavar="MS", help="Between the tokens of one stream [default: 10].")
@click.option("--workers", type=int, default=1, show_default=True, metavar="N", help="Client processes.")
@click.option("--transport", default="raw", show_default=True, metavar="KIND", help="raw or openai (the SDK).")
@click.option("--json", "as_json", is_flag=True, help="Every figure of every trial as JSON.")
def command(
    concurrency: int, tokens_per_s: float | None, itl_ms: float | None, workers: int, transport: str, as_json: bool
) -> None:
    """Whether this machine's client measures such a traffic truly, and how much more it could take.

    Drives a server of known timing on this machine for some 15 seconds, with the client as sweeps use it. No model, no
    GPU: what is measured is the client. Exit status: 0 enough, 1 not, 2 wrong use.

    \b
    Examples:
      loadgen selftest
      loadgen selftest --concurrency 512 --tokens-per-s 25000 --workers 2
    """
    from loadgen.clienttest.selftest import selftest, selftest_json, selftest_lines

    result = selftest(
        concurrency=concurrency, tokens_per_s=tokens_per_s, itl_ms=itl_ms, workers=workers, transport=transport
    )
    click.echo(selftest_json(result) if as_json else "\n".join(selftest_lines(result)))
    sys.exit(0 if result.enough else 1)
