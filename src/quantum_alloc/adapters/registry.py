"""Every key and stream, one typed row each: what it holds, for how long, and what is wrong with one that is there.

    RECORDS                         by the names of ``key_patterns``; the shadow lane's too
    records_of(key, names)          the rows that a key of the server falls under: exactly one for a key of ours
    fields_in(record, raw)          a string's value as fields
    violations(record, fields)      what is wrong, a sentence each
    expiry_trouble(record, ttl)     whether a key may stay as long as it does
    access(name)                    who writes and who reads it, from ``rights``

The reference page is made of these rows, and the contract tests hold every writer and reader against them. A record
that other programs may write is judged more mildly: they need not write our additions, may add fields of their own, and
write times as readers take them. Source: the project's contract, sections 2 and 3.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from quantum_alloc.adapters import codec, executions
from quantum_alloc.adapters.key_patterns import IN_SHADOW, KNOWN, Names
from quantum_alloc.adapters.registry_account import ROWS as ACCOUNT
from quantum_alloc.adapters.registry_flow import ROWS as FLOW
from quantum_alloc.adapters.registry_governor import ROWS as GOVERNOR
from quantum_alloc.adapters.registry_json import Json, json_fields
from quantum_alloc.adapters.registry_keys import key_of, key_regex, regex_of
from quantum_alloc.adapters.registry_market import ROWS as MARKET
from quantum_alloc.adapters.registry_record import Field, Kind, Record
from quantum_alloc.adapters.registry_types import AnyTime, Time, Type
from quantum_alloc.adapters.rights import USERS, When
from quantum_alloc.adapters.wire import ENTRY_FIELDS_LIMIT, MAP_FIELDS_LIMIT, TIME_ALIASES

__all__ = [
    "RECORDS", "Access", "Field", "Kind", "Record", "access", "expiry_trouble", "fields_in", "key_of", "record",
    "records_of", "violations",
]  # fmt: skip

_ANY_TIME = AnyTime()


def _in_shadow(name: str) -> Record:
    live = _BY_NAME[name]
    told = live.meaning[0].lower() + live.meaning[1:]
    return replace(live, name=f"shadow_{name}", meaning=f"Shadow lane: {told}", note="With `SHADOW_LANE=1` alone.")


_BY_NAME: Mapping[str, Record] = {row.name: row for row in (*MARKET, *FLOW, *GOVERNOR, *ACCOUNT)}
RECORDS: Mapping[str, Record] = {
    **_BY_NAME,
    **{f"shadow_{name}": _in_shadow(name) for name in IN_SHADOW},
}
"""Every row, by its name."""


def record(name: str) -> Record:
    """A row.

    Args:
        name: of ``key_patterns.KNOWN``.
    """
    return RECORDS[name]


def records_of(key: str, names: Names | None = None) -> tuple[Record, ...]:
    """The rows that a key falls under: one for a key of ours, none for a stranger's.

    Args:
        key: its name.
        names: of the installation; None for the contract's.

    >>> [row.name for row in records_of("quantum:allocation:target:proposed:BTCUSDT")]
    ['proposed']
    """
    of = names or Names()
    streams = tuple(sorted(of.streams.items()))
    return tuple(RECORDS[name] for name in KNOWN if key_regex(name, of.keys, streams).fullmatch(key))


def fields_in(of: Record, raw: bytes) -> dict[str, bytes]:
    """The value of a string, or a member of a set, as fields.

    Args:
        of: the row.
        raw: the value; JSON where the row says so.
    """
    found = json_fields(raw) if of.is_json else None
    return {"": raw} if found is None else found


def violations(of: Record, fields: Mapping[str, bytes], *, ours: bool | None = None) -> list[str]:
    """What is wrong with a record that is there; nothing where all is well. Total: any bytes are answered.

    Args:
        of: its row.
        fields: of a hash, or of an entry of a stream; of a string or a member of a set, what ``fields_in`` makes of it.
        ours: whether one of our own services wrote it; None: whether nobody else may.

    >>> violations(record("peak"), {"peak_equity_usd": b"NaN", "timestamp": b"1769577492"})[:2]
    ['the time stands under timestamp, not under ts', "peak_equity_usd is malformed: 'NaN'"]
    """
    strict = not of.is_open if ours is None else ours
    if of.instead and of.instead in fields:
        return _nested(of, fields, strict)
    if of.instead == "json":  # it is the one form
        return ["json is missing"]
    if of.is_json and fields.keys() == {""}:
        return ["the value is no JSON object"]
    most = _fields_max(of)
    if most is not None and len(fields) > most:
        return [f"it has {len(fields)} fields, at most {most} are read"]
    return _judged(of, fields, strict)


def _fields_max(of: Record) -> int | None:
    """How many fields readers take; None for what only its own writer reads."""
    if any(f.varies for f in of.fields):
        return MAP_FIELDS_LIMIT if of.is_open else None
    return ENTRY_FIELDS_LIMIT


def _nested(of: Record, fields: Mapping[str, bytes], strict: bool) -> list[str]:
    """A record in one field, as its readers take it: a time inside counts before one beside it."""
    raw = fields[of.instead]
    if len(raw) > codec.VALUE_LIMIT_BYTES:
        return [f"{of.instead} is longer than {codec.VALUE_LIMIT_BYTES} bytes"]
    inside = executions.nested(raw)
    if inside is None:
        return [f"{of.instead} is no JSON object of at most {ENTRY_FIELDS_LIMIT} fields"]
    if of.times and not any(name in inside for name in TIME_ALIASES):
        inside |= {name: fields[name] for name in TIME_ALIASES if name in fields}
    return _judged(of, inside, strict)


def _judged(of: Record, fields: Mapping[str, bytes], strict: bool) -> list[str]:
    variant = next((v for v in of.variants if v.is_of(fields)), None)
    known = (*of.fields, *(() if variant is None else variant.fields))
    moved = _moved(of, fields)
    found = [f"the time stands under {moved}, not under {of.time}"] if moved else []
    found += _missing(of, known, fields, strict, moved)
    found += _malformed(of, known, fields, strict)
    if of.variants and variant is None:
        found.append("nothing is known of an entry of its kind")
    if strict and of.time and of.twin and not found and of.time != "ts":
        found += _twins(of, fields)
    return found


def _moved(of: Record, fields: Mapping[str, bytes]) -> str:
    """The alias under which the time stands; empty where it is where it belongs, or nowhere."""
    if not of.time or of.time in fields or of.times:
        return ""
    named = {f.name for f in of.all_fields}
    others = (a for a in TIME_ALIASES if a != of.time and a in fields)
    return min(others, key=lambda alias: alias in named, default="")


def _is_needed(of: Record, field: Field, strict: bool) -> bool:
    if field.optional or field.varies:
        return False
    if field.name == "ts" and of.time != "ts":
        return strict  # our writers write it
    return strict or not field.ours


def _missing(
    of: Record, known: Sequence[Field], fields: Mapping[str, bytes], strict: bool, moved: str
) -> Iterator[str]:
    elsewhere = bool(moved) or (of.times and not strict and any(name in fields for name in TIME_ALIASES))
    for field in known:
        if field.name not in fields and _is_needed(of, field, strict) and not (elsewhere and field.name == of.time):
            yield f"{field.name or 'the value'} is missing"


def _type(of: Record, field: Field, strict: bool) -> Type:
    """Other programs write times as readers take them."""
    return _ANY_TIME if not strict and isinstance(field.type, Time) and of.is_open else field.type


def _malformed(of: Record, known: Sequence[Field], fields: Mapping[str, bytes], strict: bool) -> Iterator[str]:
    by_name = {f.name: f for f in known if not f.varies}
    varying = [(f, regex_of(f.name)) for f in known if f.varies]
    for name, raw in fields.items():
        field = by_name.get(name) or next((f for f, regex in varying if regex.fullmatch(name)), None)
        shown = codec.printable(name, 80) or "the value"
        if field is None:
            if strict:
                yield f"{shown} is no field of it"
            elif of.times and name in TIME_ALIASES and _ANY_TIME.wrong(raw):
                yield f"{shown} {_ANY_TIME.wrong(raw)}"
            continue
        trouble = "" if field.empty and not raw else _wrong(_type(of, field, strict), raw)
        if trouble:
            yield f"{shown} {trouble}"


def _wrong(of: Type, raw: bytes) -> str:
    """JSON has a limit of its own."""
    is_long = len(raw) > codec.VALUE_LIMIT_BYTES and not isinstance(of, Json)
    return f"is longer than {codec.VALUE_LIMIT_BYTES} bytes" if is_long else of.wrong(raw)


def _twins(of: Record, fields: Mapping[str, bytes]) -> Iterator[str]:
    """Times that must agree and do not; parts of a second are left out of ``ts``."""
    whole = fields[of.time].partition(b".")[0]
    for alias in TIME_ALIASES:
        if alias != of.time and alias in fields and fields[alias] != whole:
            yield f"{alias} is {codec.printable(fields[alias])}, {of.time} is {codec.printable(fields[of.time])}"


def expiry_trouble(of: Record, ttl_s: float) -> str:
    """What is wrong with a key's expiry, empty where nothing is.

    Args:
        of: its row.
        ttl_s: seconds that it has left; below 0 where it has no expiry.
    """
    if of.ttl_s is None:
        return "" if ttl_s < 0 else f"expires in {ttl_s:g} s and must stay"
    if ttl_s < 0:
        return "has no expiry"
    return "" if ttl_s <= of.ttl_s or of.ttl_grows else f"expires in {ttl_s:g} s, more than {of.ttl_s} s"


@dataclass(frozen=True, slots=True)
class Access:
    """Who has to do with a key.

    Attributes:
        writers: users that write it, and in which installations.
        readers: users that read it; the operator and those who only look read everything, and are left out.
    """

    writers: tuple[tuple[str, When], ...]
    readers: tuple[str, ...]


def access(name: str) -> Access:
    """Who writes and who reads a key.

    Args:
        name: of ``key_patterns.KNOWN``.

    >>> access("cycles").writers, access("peak").readers
    ((('allocation', <When.ALWAYS: 'always'>),), ('portfolio',))
    """
    rights = [(user, right) for user, of in USERS.items() for right in of.rights if right.key == name]
    return Access(
        tuple((user, right.when) for user, right in rights if right.writes),
        tuple(dict.fromkeys(user for user, right in rights if right.reads)),
    )
