"""What log lines may tell: events, states and fields, each a closed set with its meaning; and the page about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypedDict

TEXT_LIMIT, TRACEBACK_LIMIT, VALUE_LIMIT, ITEMS_LIMIT = 2_000, 8_000, 300, 10
NAMED = 5
"""So many symbols are named in a line; the rest is counted."""

Event = Literal[
    "cycle", "decision", "state", "fault", "account", "kill_switch", "store", "settings", "process", "message"
]
EVENTS: Mapping[str, str] = {
    "cycle": "a cycle has finished; of governor, apply and feed only one that did something",
    "decision": "the governor's answer to one plan (DEBUG)",
    "state": "something has begun or ended: `state`, `from` and `to`",
    "fault": "something happened that an operator should look at, once",
    "account": "the paper account: opened, paid into, a permit refused",
    "kill_switch": "an auto-disarm, a latch, a rearm",
    "store": "what the governor found of the server at a new connection",
    "settings": "a warning of the settings or of the candle files, at the start",
    "process": "ports opened, ended",
    "message": "anything else",
}
STATES: Mapping[str, str] = {
    "store": "whether cycles end: `ok`, or the code of the trouble with Redis",
    "cycle": "whether cycles end: `ok`, or the kind of a programming error",
    "output": "whether anything is written: `ok`, or why not",
    "pace": "`ok`, or `late`: cycles take longer than their interval, or than 2 s",
    "loop": "a service (`reason`) beside others in a process: `ok`, or `hangs`",
    "key": "one key: `ok`, or `refused` because it holds another type",
    "symbol": "one symbol: `ok`, or `failed`, left out of the cycle",
    "kill_switch": "OFF, REDUCE_ONLY, HALT",
    "hold": "whether opens are held back: `ok`, `recovery_hold`, `clock_unstable`",
    "latch": "whether a halt is latched: `off`, `latched`",
    "paper_book": "whether the feed's book trades: `trades`, `rests` while the apply layer holds the account",
    "balance": "`ok`, or `negative`",
    "vacuity": "a gate or an input (`what`) that counts: `ok`, or `blind`, without real data for 10 minutes",
    "headroom": "the limit of a gate (`gate`): `ok`, or `short`, used up to 80 % or more",
}


class Case(TypedDict, total=False):
    """One answer to a plan, or one end of a permit."""

    plan_id: str
    symbol: str
    gate: str
    reason: str


Fields = TypedDict(
    "Fields",
    {
        "state": str, "from": str, "to": str, "key": str, "symbol": str, "plan_id": str, "gate": str, "reason": str,
        "mode": str, "ms": float, "cycles": int, "symbols": int, "targets": int, "positions": int, "violations": int,
        "executions": int, "set_aside": int, "clusters": int, "unmapped": int, "bars": int, "gaps": int, "ok": int,
        "plans": int, "permit": int, "block": int, "replay": int, "conflict": int, "bad_id": int, "not_governed": int,
        "dead_letter": int, "moved": int, "fills": int, "ended": int, "waiting": int, "count": int, "port": int,
        "what": str, "used": float,
        "equity": "float | None", "drawdown": "float | None", "regime": str, "z": float, "usd": float,
        "permitted": Sequence[str], "blocked": Sequence[Case], "filled": Sequence[str],
        "unfilled": Sequence[Case],
    },
    total=False,
)  # fmt: skip
"""What a line may carry beside its text."""

COMMON: Mapping[str, str] = {
    "ts": "unix seconds",
    "level": "DEBUG, INFO, WARNING, ERROR",
    "service": "its CLI name; `quantum_alloc` for the process",
    "event": "what kind of thing the line tells",
    "message": "the text of the plain line",
    "traceback": "of a programming error",
}
FIELDS: Mapping[str, str] = {
    "state": "which state has changed",
    "from": "what it was",
    "to": "what it is",
    "key": "a Redis key",
    "symbol": "a symbol",
    "plan_id": "a plan's id",
    "gate": "the gate that blocks, or whose limit is nearly used up; of gate 0.5 `P2.9 allocation`",
    "reason": "a code from a closed set",
    "mode": "shadow, enforce; dry_run, testnet, production",
    "ms": "how long the cycle took, milliseconds",
    "cycles": "how many cycles were given up",
    "symbols": "symbols of the cycle",
    "targets": "targets decided",
    "positions": "open positions",
    "violations": "symbols above their budget",
    "executions": "executions read",
    "set_aside": "executions put to the dead letters",
    "clusters": "clusters",
    "unmapped": "symbols without a cluster",
    "bars": "bars read or written",
    "gaps": "gaps between bars",
    "ok": "proposals whose reason is ok",
    "plans": "plans answered, or proposed by the desk",
    "permit": "permits",
    "block": "blocks",
    "replay": "repeated plans that got their first answer again",
    "conflict": "other plans under a known id",
    "bad_id": "plans without a valid id",
    "not_governed": "plans whose decision is not EXECUTE",
    "dead_letter": "plans given up",
    "moved": "answers that are decided again, because something moved before they were written",
    "fills": "permits filled",
    "ended": "permits that came to an end",
    "waiting": "permits that wait",
    "count": "how many of what the message names",
    "port": "a port",
    "what": "a gate or an input",
    "used": "share of a limit that is used",
    "equity": "equity, USD",
    "drawdown": "fraction of the peak",
    "regime": "the regime",
    "z": "the regime's z",
    "usd": "an amount, USD",
    "permitted": f"symbols permitted, the first {NAMED} and how many more",
    "blocked": f"plan_id, symbol, gate and reason of blocks, the first {NAMED}; `block` counts them all",
    "filled": f"symbols filled, the first {NAMED} and how many more",
    "unfilled": f"plan_id, symbol and reason of permits that ended without a fill, the first {NAMED}",
}


def reference_page() -> str:
    """The reference of log lines, as Markdown."""
    lines = [_INTRODUCTION, "", "## Events", "", "| event | when |", "|---|---|"]
    lines += [f"| `{name}` | {when[0].upper()}{when[1:]}. |" for name, when in EVENTS.items()]
    lines += ["", "## States", "", "| state | what it can be |", "|---|---|"]
    lines += [f"| `{name}` | {what[0].upper()}{what[1:]}. |" for name, what in STATES.items()]
    lines += ["", "## Fields", "", "In every line:", "", "| field | meaning |", "|---|---|"]
    lines += [f"| `{name}` | {what[0].upper()}{what[1:]}. |" for name, what in COMMON.items() if name != "traceback"]
    lines += ["", "Where they are told:", "", "| field | meaning |", "|---|---|"]
    told = {"traceback": COMMON["traceback"], **FIELDS}
    lines += [f"| `{name}` | {what[0].upper()}{what[1:]}. |" for name, what in told.items()]
    return "\n".join(lines)


_INTRODUCTION = f"""\
# Log lines

Made by `quantum-alloc config docs logs`. Services log to standard error, from `LOG_LEVEL` (INFO) on, as plain text or,
with `LOG_FORMAT=json`, as one JSON object a line with the fields below and no others.

- One INFO line a cycle; governor, apply and feed work by event and are silent while there is nothing to do.
- A state is told once when it begins and once when it ends, never each cycle.
- One line a decision only at DEBUG.
- Control characters are escaped; a message has at most {TEXT_LIMIT:,} characters, a value {VALUE_LIMIT}, a list
  {ITEMS_LIMIT} items, a traceback its last {TRACEBACK_LIMIT:,}.
- Under systemd each line begins with its priority, which the journal takes off: `journalctl -p warning -u
  quantum-governor`; plain lines then carry no time of their own."""
