"""The state of a service that reads executions: one hash, one field a symbol, and where in the stream it stands.

    SYMBOL      that symbol's state, JSON
    _pos        id of the last entry that is in the state
    _stream     of which stream
    _read       how many entries the stream had ever had when it was read to its end, for counting gaps
    _cycle      number of the cycle that wrote it
    _version    of this layout

Position and states are written in one step, so that they cannot disagree. What cannot be trusted as a whole (another
type of key, an unknown version, a position that is none) stops the service: counting an execution twice is worse than
counting none. One symbol's state that cannot be read starts anew, and is counted.
Source: the project's rules, section 4, and the contract, "Efficiency".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from quantum_alloc.adapters import codec
from quantum_alloc.adapters.effects import Failed, HashSet, Reply
from quantum_alloc.adapters.executions import START, entry_id
from quantum_alloc.adapters.wire import MAP_FIELDS_LIMIT, MAP_VALUE_LIMIT_BYTES

S = TypeVar("S")

VERSION = "1"
POS, READ, CYCLE, VERSION_FIELD, STREAM = "_pos", "_read", "_cycle", "_version", "_stream"
OWN_FIELDS = (POS, READ, CYCLE, VERSION_FIELD, STREAM)
FIELDS_LIMIT = MAP_FIELDS_LIMIT + len(OWN_FIELDS)


@dataclass(frozen=True, slots=True)
class Saved(Generic[S]):
    """What a state hash held.

    Attributes:
        refused: empty, or why it cannot be trusted; then nothing may be written.
        pos: stream id of the last entry that is in it.
        read: entries that the stream had ever had by then; None when that is not known.
        cycle: number of the cycle that wrote it.
        texts: each symbol's state as it stands.
        states: the same, decoded.
        malformed: fields whose state could not be read, as they stand.
    """

    refused: str = ""
    pos: str = START
    read: int | None = None
    cycle: int = 0
    texts: Mapping[str, str] = field(default_factory=dict)
    states: Mapping[str, S] = field(default_factory=dict)
    malformed: tuple[bytes, ...] = ()


def _count(raw: bytes) -> int | None:
    return int(raw) if raw.isdigit() and len(raw) <= 18 else None


def _trouble(own: Mapping[str, bytes], stream: str) -> str:
    """Why a state cannot be trusted as a whole; empty when it can."""
    version, pos, follows = own.get(VERSION_FIELD, b""), own.get(POS, b""), own.get(STREAM, stream.encode())
    if version != VERSION.encode():
        return f"the state's _version is {codec.printable(version)!r}, not {VERSION}"
    if entry_id(pos) is None:
        return f"the state's _pos is {codec.printable(pos)!r}, not the id of a stream entry"
    if follows != stream.encode():
        there = codec.printable(follows)
        return f"the state is of stream {there!r}: to follow {stream!r}, set its _stream and its _pos (0-0: all)"
    return ""


def decode(size: Reply, reply: Reply, stream: str, of_text: Callable[[str, str], S]) -> Saved[S]:
    """A state hash.

    Args:
        size: what HLEN was answered with.
        reply: what HGETALL was answered with.
        stream: that its position must be of; a state that does not say is taken to be.
        of_text: symbol and text to a state; raises ValueError where the text is none.
    """
    for failed in (size, reply):
        if isinstance(failed, Failed):
            return Saved(f"the state cannot be read: {failed.code}")
    if not isinstance(size, int) or size > FIELDS_LIMIT or not isinstance(reply, list):
        return Saved(f"the state has more than {FIELDS_LIMIT} fields")
    raw = {n: v for n, v in zip(reply[::2], reply[1::2], strict=False) if isinstance(n, bytes) and isinstance(v, bytes)}
    if not raw:
        return Saved()
    own = {name: raw.pop(name.encode()) for name in OWN_FIELDS if name.encode() in raw}
    trouble = _trouble(own, stream)
    if trouble:
        return Saved(trouble)
    texts: dict[str, str] = {}
    states: dict[str, S] = {}
    malformed = []
    for name, value in raw.items():
        symbol = codec.symbol(name)
        try:
            if symbol is None or len(value) > MAP_VALUE_LIMIT_BYTES:
                raise ValueError("no symbol, or too large")
            text = value.decode()
            states[symbol], texts[symbol] = of_text(symbol, text), text
        except (ValueError, RecursionError):
            malformed.append(name)
    return Saved(
        "",
        own[POS].decode("ascii"),
        _count(own.get(READ, b"")),
        _count(own.get(CYCLE, b"")) or 0,
        texts,
        states,
        tuple(sorted(malformed)),
    )


def saving(key: str, stream: str, saved: Saved[S], texts: Mapping[str, str], pos: str, read: int | None) -> HashSet:
    """What makes the hash hold a new state: the symbols that changed, and the position, in one command.

    Args:
        key: the hash.
        stream: that the position is of.
        saved: what it held.
        texts: each symbol's state from now on.
        pos: stream id of the last entry that is in it.
        read: entries that the stream had ever had by then.
    """
    changed = {s: text for s, text in texts.items() if saved.texts.get(s) != text}
    own = {POS: pos, STREAM: stream, CYCLE: str(saved.cycle + 1), VERSION_FIELD: VERSION}
    if read is not None:
        own[READ] = str(read)
    gone = sorted(saved.texts.keys() - texts.keys())
    unreadable = (name for name in saved.malformed if name.decode("utf-8", "replace") not in texts)
    return HashSet(key, {**changed, **own}, delete=(*gone, *unreadable))
