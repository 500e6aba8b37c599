"""How a proof says what is wrong, and what to do: another type, a renamed field, a halt, nobody there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from quantum_alloc.adapters import codec
from quantum_alloc.adapters.registry import Record, violations
from quantum_alloc.adapters.registry_keys import regex_of
from quantum_alloc.adapters.wire import TIME_ALIASES
from quantum_alloc.services.options import ServiceOptions, port_variables
from quantum_alloc.services.proof_pages import ELSEWHERE, NOBODY, Page

KILL_OFF = "`quantum-alloc kill off`"
REARM = "`quantum-alloc rearm --by NAME --why TEXT`"
ANEW: Mapping[str, str] = {"kill": f"`quantum-alloc kill halt` or {KILL_OFF} sets it anew"}
"""Keys that are not to be deleted: what to do in place of that."""
MISSING = " is missing"


def is_a(kind: str, due: str) -> str:
    """That a key is of another type than it should be.

    Args:
        kind: its type.
        due: that it should be of.
    """
    return f"is a {kind}, not a {due}"


def other_kind(name: str, kind: str, due: str) -> str:
    """The same with the way out.

    Args:
        name: of its row.
        kind: its type.
        due: that it should be of.

    >>> other_kind("peak", "string", "hash")
    'is a string, not a hash: delete it, its writer makes it anew'
    """
    return f"{is_a(kind, due)}: {ANEW.get(name, 'delete it, its writer makes it anew')}"


def wrong_in(of: Record, fields: Mapping[str, bytes]) -> list[str]:
    """What is wrong with a record, a clause each; one field gone and a strange one there may be one renamed.

    Args:
        of: its row.
        fields: that it has.

    >>> from quantum_alloc.adapters.registry import RECORDS
    >>> wrong_in(RECORDS["peak"], {"peak_usd": b"1", "ts": b"1769577492"})
    ['peak_equity_usd is missing', 'peak_usd is no field of it: renamed from peak_equity_usd?']
    """
    told = violations(of, fields)
    known = {f.name for f in of.all_fields}
    gone = [t.removesuffix(MISSING) for t in told if t.endswith(MISSING)]
    if of.instead in fields or len(gone) != 1 or gone[0] not in known:
        return told
    varying = [regex_of(f.name) for f in of.all_fields if f.varies]
    strange = [
        n for n in fields if n not in known and n not in TIME_ALIASES and not any(r.fullmatch(n) for r in varying)
    ]
    if len(strange) != 1:
        return told
    name = codec.printable(strange[0], 80)
    pair = [f"{gone[0]}{MISSING}", f"{name} is no field of it"]
    return [pair[0], f"{pair[1]}: renamed from {gone[0]}?", *(t for t in told if t not in pair)]


def halted(state: str, *, is_latched: bool) -> str:
    """What the kill switch says, and how to go on.

    Args:
        state: of the key.
        is_latched: whether a halt is latched.

    >>> halted("OFF", is_latched=False)
    'it says OFF'
    >>> halted("OFF", is_latched=True)
    'the key is off, but a halt is latched: when the reason is gone `quantum-alloc rearm --by NAME --why TEXT`'
    """
    if state == "OFF":
        told, ways = ("the key is off, but a halt is latched", [REARM]) if is_latched else ("it says OFF", [])
    else:
        told = f"it says {state}" + (", and a halt is latched" if is_latched else "")
        ways = [KILL_OFF, REARM] if is_latched or state == "HALT" else [KILL_OFF]
    return f"{told}: when the reason is gone {', then '.join(ways)}" if ways else told


def moved_by(options: ServiceOptions) -> str:
    """The variables that move the port on which a service is asked.

    Args:
        options: its settings.
    """
    own = next((name for name, port in port_variables(options).items() if port == options.port), "METRICS_PORT")
    return f"{own}, QA_PORT_OFFSET"


def _at(why: str, pages: Sequence[Page]) -> str:
    ports = f"on port{'s' if len(pages) > 1 else ''} {', '.join(str(p.port) for p in pages)}"
    return f"what is {ports} {why}" if why == ELSEWHERE else f"{why} {ports}"


def nobody(first: Sequence[Page], second: Sequence[Page]) -> str:
    """That no service answers at all, and what that makes of the rest; empty where one does.

    Args:
        first: pages of the first look.
        second: pages of the second.
    """
    if any(p.is_here for p in (*first, *second)):
        return ""
    why: dict[str, list[Page]] = {}
    for page in second:
        why.setdefault(page.why or NOBODY, []).append(page)
    told = "; ".join(_at(text, pages) for text, pages in why.items())
    return f"no service answers: {told}, so ages are judged by this machine's clock and most checks below fail for that"
