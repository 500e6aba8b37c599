"""The reference page of keys and streams, made of the registry."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from quantum_alloc.adapters.key_patterns import IN_SHADOW
from quantum_alloc.adapters.registry import RECORDS, Access, access, key_of
from quantum_alloc.adapters.registry_record import Field, Kind, Record
from quantum_alloc.adapters.rights import When

TITLE = """# Keys and streams

Made by `quantum-alloc config docs keys`. One section a key: what it is, how long it stays, who writes and reads it, and
its fields. `{S}` is a symbol, `{plan}` a plan id, `{cid}` a cluster id, `{name}` a governor or its ledger. A hash tag
(`QA_HASH_TAG`) stands before every name. How records decide again is told in [records](records.md).

- Values are text of at most 4 kB (JSON 256 kB), and a record has at most 64 fields where nothing varies in their names.
  A number is a finite decimal; a symbol is 2 to 30 capital letters or digits; a word is 1 to 64 letters, digits or
  `_.-`. A range stands behind the type; without one it is -1e15 to 1e15.
- **optional** may be absent, **or empty** may hold no text. **ours** is what our services add to the contract's fields:
  another program that writes the key need not.
- Times are whole unix seconds. Our services write each under the field named first, and again as `ts`. Readers look for
  it under its name, then under `ts`, `timestamp`, `ts_utc`, `ts_epoch`, `updated_ts`.
- The users `operator` (commands that change something) and `watch` (commands that look) read everything.
- Streams keep about `STREAM_MAXLEN` entries.
- What begins with `quantum:proof:` is of a [proof](../how-to/prove.md) and no key of the installation: the next
  `quantum-alloc prove` deletes it."""
_KINDS = {Kind.HASH: "Hash", Kind.STRING: "String", Kind.SET: "Set", Kind.STREAM: "Stream"}
_WHEN = {When.ALWAYS: "", When.ENFORCE: " (in enforce alone)", When.PAPER_BOOK: " (with `PAPER_BOOK=1`)"}


def _holds(of: Field) -> str:
    return f"{of.type.told}{', or empty' if of.empty else ''}"


def _row(of: Field) -> str:
    marks = ", ".join(word for word, told in (("optional", of.optional), ("ours", of.ours)) if told)
    name = f"`{of.name}`" if of.name else "(the value)"
    return f"| {name} | {_holds(of)} | {of.unit} | {of.meaning}{f' ({marks})' if marks else ''} |"


def _table(fields: Sequence[Field]) -> Iterator[str]:
    yield "| field | holds | unit | meaning |"
    yield "|---|---|---|---|"
    yield from map(_row, fields)


def _people(of: Access) -> str:
    writers = ", ".join(f"{user}{_WHEN[when]}" for user, when in of.writers) or "other programs"
    readers = ", ".join(user for user in of.readers if user not in ("operator", "watch"))
    return f"Written by {writers}." + (f" Read by {readers}." if readers else "")


def _expiry(of: Record) -> str:
    if of.kind is Kind.STREAM:
        return ""
    if of.ttl_s is None:
        return ", stays"
    by = f", set by `{of.ttl_from}`" if of.ttl_from else ""
    return f", expires after {'' if of.ttl_grows else 'at most '}{of.ttl_s:,} s{' or more' if of.ttl_grows else ''}{by}"


def _section(of: Record) -> Iterator[str]:
    yield f"### `{key_of(of.name)}`"
    yield ""
    form = " of JSON" if of.is_json else ""
    time = f" Its time is `{of.time}`." if of.time else ""
    note = f" {of.note}" if of.note else ""
    yield f"{of.meaning} {_KINDS[of.kind]}{form}{_expiry(of)}.{time}{note} {_people(access(of.name))}"
    if of.is_open:
        yield "Other programs may write it too."
    yield ""
    yield from _table(of.fields)
    for variant in of.variants:
        yield ""
        yield f"With {' and '.join(f'`{name}` = {value}' for name, value in variant.when)} also:"
        yield ""
        yield from _table(variant.fields)
    yield ""


def _shadow() -> Iterator[str]:
    yield "The shadow lane has the fields of the live one, and is there with `SHADOW_LANE=1` alone."
    yield ""
    yield "| key | who |"
    yield "|---|---|"
    for name in IN_SHADOW:
        yield f"| `{key_of(f'shadow_{name}')}` | {_people(access(f'shadow_{name}'))} |"


def reference_page() -> str:
    """The page as Markdown, without a newline at its end."""
    live = [row for name, row in RECORDS.items() if not name.startswith("shadow_")]
    lines = [TITLE, ""]
    for title, kinds in (("Keys", (Kind.HASH, Kind.STRING, Kind.SET)), ("Streams", (Kind.STREAM,))):
        lines += [f"## {title}", ""]
        for row in sorted((r for r in live if r.kind in kinds), key=lambda r: key_of(r.name)):
            lines += _section(row)
    lines += ["## Shadow lane", "", *_shadow()]
    return "\n".join(lines)
