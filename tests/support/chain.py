"""The whole chain through the command line, on whatever server the environment names: every service once, a close that
is permitted and filled, and every command that reads or writes Redis.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from quantum_alloc.services.app import SERVICES
from quantum_alloc.services.cli import main
from tests.support.running import ALONE
from tests.support.worlds import Client

SYMBOL = "BTCUSDT"
MODES = {
    "P28_MODE": "enforce", "P29_MODE": "enforce", "P30_MODE": "enforce", "P31_MODE": "enforce",
    "APPLY_MODE": "production", "SHADOW_LANE": "1", "GOV_CONSUMER": "chain", "PAPER_BOOK": "1", "LOG_LEVEL": "ERROR",
    "P27_LOOKBACK": "50",
}  # fmt: skip


def environment(directory: Path, **more: str) -> dict[str, str]:
    """What the chain runs with.

    Args:
        directory: for its state.
        more: where Redis is, and the tag.
    """
    return {**MODES, "STATE_DIRECTORY": str(directory), **more}


def done(environ: Mapping[str, str], *words: str) -> None:
    """A command that must do what it is asked; no service runs for good, which ``status`` tells."""
    assert main(words, {**environ, **ALONE}) == (words[0] == "status"), words


def run_chain(environ: Mapping[str, str], capsys: pytest.CaptureFixture[str]) -> str:
    """Every service, in both modes, then the commands; what they printed."""
    shadow = {k: "shadow" if v == "enforce" else v for k, v in environ.items()}
    for mode in (environ, shadow):
        done(mode, "run", *SERVICES, "--once")
    done(environ, "inject", "execution", SYMBOL, "--pnl", "3")
    done(environ, "inject", "regime", "TREND")
    done(environ, "inject", "attribution", SYMBOL, "--lane", "shadow")
    done(environ, "inject", "plan", SYMBOL, "--plan-id", "mine", "--action", "PARTIAL_25")
    for names in (("attribution", "efficiency"), ("governor",), ("apply",), ("apply",)):
        done(environ, "run", *names, "--once")
    capsys.readouterr()
    done(environ, "explain", "mine", "--plan")
    assert "PERMIT" in capsys.readouterr().out
    done(environ, "explain", SYMBOL)
    done(environ, "status", "--format", "json")
    done(environ, "diff-lanes", SYMBOL)
    done(environ, "kill", "halt", "--by", "me", "--why", "a test")
    done(environ, "run", "governor", "--once")
    done(environ, "inject", "plan", SYMBOL, "--plan-id", "stopped", "--action", "PARTIAL_25")
    done(environ, "run", "governor", "--once")
    done(environ, "explain", "stopped", "--plan")
    done(environ, "kill", "off", "--by", "me", "--why", "a test")
    done(environ, "rearm", "--by", "me", "--why", "a test")
    done(environ, "ledger", "verify")
    told = capsys.readouterr().out
    assert "kill_switch_active" in told
    assert SYMBOL in told
    return told


def names_of(client: Client) -> set[str]:
    """Every key of a server."""
    return set(client.scan_iter("*", count=1000))


def untagged(names: set[str], tag: str) -> set[str]:
    """Names without this tag: there must be none."""
    return {name for name in names if not name.startswith(f"{{{tag}}}quantum:")}


def plain(names: set[str], tag: str) -> set[str]:
    """Names without their tag."""
    return {name.removeprefix(f"{{{tag}}}") for name in names}
