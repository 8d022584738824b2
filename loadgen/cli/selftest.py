"""`loadgen selftest`."""

from __future__ import annotations

import sys
from typing import Any

import click

from loadgen.cli import CONTEXT, Command, given_options, parameters
from loadgen.options import SelftestOptions


@click.command("selftest", cls=Command, context_settings=CONTEXT, params=parameters(SelftestOptions))
@click.option("--json", "as_json", is_flag=True, help="Every figure of every trial as JSON.")
def command(as_json: bool, **_: Any) -> None:
    """Check that this machine's client measures such traffic correctly, and find how much more it could take.

    Drives a server of known timing on this machine for some 15 seconds, with the client as sweeps use it. No model, no
    GPU: what is measured is the client. Exit status: 0 enough, 1 not, 2 wrong use.

    \b
    Examples:
      loadgen selftest
      loadgen selftest --concurrency 512 --tokens-per-s 25000 --workers 2
    """
    from loadgen.clienttest.selftest import selftest, selftest_json, selftest_lines

    result = selftest(**given_options(SelftestOptions))
    click.echo(selftest_json(result) if as_json else "\n".join(selftest_lines(result)))
    sys.exit(0 if result.enough else 1)
