"""The kill switch as an operator moves it: set, latched, rearmed, and told of in the event stream.

Source: the project's governor, section 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from quantum_alloc.adapters import governor_wire as gw
from quantum_alloc.adapters.effects import Delete, Failed, HashSet, StreamAdd, TextSet
from quantum_alloc.adapters.governor_files import microseconds, seconds
from quantum_alloc.adapters.governor_scripts import LATCH
from quantum_alloc.adapters.governor_writes import event
from quantum_alloc.adapters.keys import LIVE, Keys
from quantum_alloc.adapters.store import Store, StoreError
from quantum_alloc.core.governor_inputs import Kill
from quantum_alloc.core.limits import US

STATES: Mapping[str, Kill] = {"halt": Kill.HALT, "reduce": Kill.REDUCE_ONLY, "off": Kill.OFF}
"""What the key is set to, and what that means."""


@dataclass(frozen=True, slots=True)
class Moved:
    """What came of moving the switch.

    Attributes:
        trouble: empty, or why nothing was done.
        untold: keys that could not tell of it, and why.
        unlatched: empty, or why the latch could not be written at once.
        error: what kept it from being told of, once the key was set; None for nothing.
        is_latched: whether a halt is latched now.
    """

    trouble: str = ""
    untold: tuple[tuple[str, Failed], ...] = ()
    unlatched: str = ""
    is_latched: bool = False
    error: StoreError | None = None


def _now_us(store: Store) -> int:
    found = gw.time_us(store.read([("TIME",)])[0])
    if found is None:
        raise StoreError("other", "the server does not tell its time")
    return found


def _latch(store: Store, events: str, maxlen: int, now_us: int, by: str, why: str, keys: Keys) -> str:
    """Latch at once: nobody else may have seen the halt when the switch is off again."""
    rearm = store.read([("HMGET", keys.rearm, "at")])[0]
    seen = rearm[0] if isinstance(rearm, list) and isinstance(rearm[0], bytes) else b""
    args: list[str | bytes | int] = [seen, seconds(now_us), by, why, now_us // US, maxlen]
    try:
        store.run(LATCH, [keys.latch, keys.rearm, events], args, store.connections)
    except StoreError as error:
        return str(error)
    return ""


def set_to(
    store: Store, word: str, by: str, why: str, *, events: str, maxlen: int, now_us: int | None = None,
    keys: Keys = LIVE,
) -> Moved:  # fmt: skip
    """Set the kill switch; nothing may keep a halt from being set.

    Args:
        store: where it is.
        word: of ``STATES``.
        by: who.
        why: the reason.
        events: stream of events.
        maxlen: about how many entries it keeps.
        now_us: a clock in the place of the server's, microseconds.
        keys: the names.

    Raises:
        StoreError: the key could not be set; trouble after that is in what is returned.
    """
    store.apply([(TextSet(keys.kill, word),)])  # alone and first
    try:
        return _told(store, word, by, why, events, maxlen, now_us, keys)
    except StoreError as error:
        return Moved(error=error)


def _told(
    store: Store, word: str, by: str, why: str, events: str, maxlen: int, now_us: int | None, keys: Keys
) -> Moved:
    """The latch and the event of a switch that is set."""
    at_us = _now_us(store) if now_us is None else now_us
    state = STATES[word]
    unlatched = _latch(store, events, maxlen, at_us, by, why, keys) if state is Kill.HALT else ""
    told = event("KILL", "", "", word, at_us / US, {"state": state.value, "by": by, "why": why})
    refused = store.apply([(StreamAdd(events, told, maxlen),)])
    latch = store.read([("HMGET", keys.latch, "state", "since", "by", "why")])[0]
    return Moved("", tuple(refused), unlatched, gw.is_latched(latch))


def rearm(
    store: Store, by: str, why: str, *, events: str, maxlen: int, now_us: int | None = None, keys: Keys = LIVE
) -> Moved:
    """Take the latch of a halt away, once the key is off.

    Args:
        store: where it is.
        by: who.
        why: the reason.
        events: stream of events.
        maxlen: about how many entries it keeps.
        now_us: a clock in the place of the server's, microseconds.
        keys: the names.

    Raises:
        StoreError: the store did not answer.
    """
    _, kill, latch = store.read([("WATCH", keys.kill), ("GET", keys.kill), ("HMGET", keys.latch, "state", "since")])
    state = gw.kill_state(kill)
    if state is not Kill.OFF:
        store.read([("UNWATCH",)])
        return Moved(f"the kill switch is {state.value}: set it off first, with `quantum-alloc kill off`")
    since = latch[1] if isinstance(latch, list) and isinstance(latch[1], bytes) else None
    at_us = max(_now_us(store) if now_us is None else now_us, (microseconds(since) or 0) + 1)
    fields = {"at": seconds(at_us), "by": by, "why": why, "ts": str(at_us // US)}
    told = event("REARM", "", "", "rearm", at_us / US, {"by": by, "why": why})
    group = (Delete(keys.latch), Delete(keys.rearm), HashSet(keys.rearm, fields), StreamAdd(events, told, maxlen))
    try:
        refused = store.apply([group])
    except StoreError as error:
        if error.code != "conflict":
            raise
        return Moved("the kill switch was set in the meantime: nothing was rearmed")
    return Moved("", tuple(refused))
