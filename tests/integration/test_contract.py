"""Writer to reader, for every key: what is really written is what the registry says, and every reader can use it.

Nothing here is picked by hand: records come from the real chain and the real commands, mutations from the rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from quantum_alloc.adapters import codec, executions, registry
from quantum_alloc.adapters.registry_readers import READERS, Reader, by_schema
from quantum_alloc.adapters.registry_record import Field
from quantum_alloc.adapters.registry_types import AnyTime, Choice, Iso, Number, Text, Time, Whole
from quantum_alloc.adapters.rights import USERS
from quantum_alloc.adapters.wire import TIME_ALIASES
from quantum_alloc.services import desk
from tests.support import contract
from tests.support.contract import Found, World

EVERY_READER = (
    *READERS,
    by_schema("position", "desk", desk.POSITION, "mark_price opened_ts next_open_ts"),
    Reader("desk_state", ("desk",), ("{S}",), (), lambda raw, _: [desk.last_plan(v) for v in raw.values()]),
)
LOOKED_AT = {
    # only asked whether it is there
    ("feed", "apply_state"), ("desk", "tombstone"), ("apply", "position"),
    # nothing of it is read while it is `P29_USE_PROPOSED` in shadow that decides: see lanes
    ("allocation", "shadow_proposed"),
}  # fmt: skip
"""Rights to read of which no reader makes a value."""
SHOWN = {"latch": {"by", "why"}, "book": {":pos"}}
"""Fields that a service asks for beside what it decides on: to tell of them, or to begin where it stood."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Everything that was written in the three worlds."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        made = World()
        contract.enforced(made, monkeypatch)
        contract.watched(made, monkeypatch)
        contract.by_hand(made, monkeypatch, tmp_path_factory.mktemp("by-hand"))
        yield made


def clock_of(one: Found) -> float:
    """A reader's clock at which a record is young."""
    fields = executions.nested(one.fields.get(one.record.instead, b"")) or one.fields
    return next((codec.unix_seconds(fields[a]) or 0.0 for a in (one.record.time, *TIME_ALIASES) if a in fields), 2e9)


def read(reader: Reader, fields: Mapping[str, bytes], now: float) -> object | None:
    """What a service makes of a record."""
    return reader.read(fields, now)


def readers_of(one: Found) -> list[Reader]:
    """Who reads a record."""
    return [r for r in EVERY_READER if r.record == one.record.name and r.of(one.fields)]


def test_every_key_is_what_its_row_says(world: World) -> None:
    """Each key falls under one row, has its type and expiry, and nothing in it is wrong."""
    assert world.troubles == []
    wrong = {
        (one.record.name, trouble)
        for one in world.all()
        for trouble in registry.violations(one.record, one.fields, ours=True if one.ours else None)
    }
    assert wrong == {
        ("plans", "plan_id is malformed: 'p:4'"), ("plans", "kill_score is malformed: 'high'"),
        ("executions", "symbol is malformed: 'btc'"), ("executions", "timestamp is missing"),
        ("executions", "payload is no JSON object of at most 64 fields"),
    }, "what was put there by hand, and nothing else"  # fmt: skip


def test_every_row_and_variant_is_seen(world: World) -> None:
    """No row, and no kind of event, that these worlds do not write: else it would be untested."""
    assert registry.RECORDS.keys() - world.found.keys() == set()
    for name, rows in world.found.items():
        wanted = {" ".join(v for _, v in variant.when) for variant in registry.record(name).variants}
        assert wanted - {one.variant for one in rows} == set(), name


def test_every_field_is_seen(world: World) -> None:
    """No field of a row that nobody ever writes, but those that only other programs have."""
    others = {
        "executions": {"realized_pnl", "pnl"}, "plans": {"close_qty", "notional_usd"}, "events": {"entry"},
    }  # fmt: skip
    for name, rows in world.found.items():
        of = registry.record(name)
        seen = {f for one in rows for f in one.fields}
        if of.instead:
            inside = [executions.nested(one.fields[of.instead]) or {} for one in rows if of.instead in one.fields]
            seen |= {f for one in inside for f in one}
        unseen = {f.name for f in of.all_fields if not f.varies} - seen
        assert unseen == others.get(name, set()), name


def test_every_right_to_read_has_a_reader() -> None:
    """Who may read a key has a reader in the table, and the table has none for a service without the right."""
    rights = {
        (user, right.key)
        for user, of in USERS.items()
        if user not in ("operator", "watch")
        for right in of.rights
        if right.reads
    }
    table = {(user, reader.record) for reader in EVERY_READER for user in reader.users}
    assert table - rights == set()
    assert rights - table - LOOKED_AT == set()


def test_services_ask_for_what_the_table_says(world: World) -> None:
    """What the services really asked the server for is what their readers are told to ask for, field by field."""
    times = set(TIME_ALIASES)
    for (user, name), asked in sorted(world.asked.items()):
        if user in ("operator", "watch"):
            continue
        told = [set(r.asked) - times for r in EVERY_READER if r.record == name and user in r.users]
        assert told or (user, name) in LOOKED_AT, f"{user} reads {name}"
        for one in (set(fields) - times for fields in asked if fields and name != "desk_state"):
            beside = SHOWN.get(name, set())
            assert one in told or one - beside in told or one <= beside, f"{user} asks for {sorted(one)} of {name}"


@pytest.mark.parametrize("reader", EVERY_READER, ids=lambda r: f"{r.record}-{'-'.join(r.users)}"[:60])
def test_what_is_asked_is_what_is_written(reader: Reader) -> None:
    """A reader asks for fields of the row, and what the row requires it may rely on."""
    of = registry.record(reader.record)
    names = {f.name for f in of.all_fields} | ({of.instead} if of.instead else set())
    assert set(reader.asked) - names == set()
    assert set(reader.mild) - set(reader.asked) == set()
    needed = set(reader.asked) - set(reader.mild)
    optional = {f.name for f in of.all_fields if f.optional}
    assert needed & optional <= {"proposed_factor", "plan_id", "drawdown"}


def numbers_in(value: object) -> set[float]:
    """Every number in a value."""
    if isinstance(value, bool) or value is None:
        return set()
    if isinstance(value, int | float):
        return {float(value)}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return set().union(*(numbers_in(getattr(value, f.name)) for f in dataclasses.fields(value)))
    return set()


def test_every_reader_can_use_what_is_written(world: World) -> None:
    """Every record that our services write is usable to each of its readers, and the numbers that are read are those
    that stand there."""
    read_once = set()
    for one in world.all():
        if not one.ours and one.record.is_open:
            continue
        for reader in readers_of(one):
            if any(name not in one.fields for name in set(reader.asked) - set(reader.mild) if "{" not in name):
                assert one.record.name in ("target", "shadow_target"), (one.record.name, reader.asked)
                continue
            made = read(reader, one.fields, clock_of(one))
            assert made is not None, (reader.record, reader.users, one.fields)
            read_once.add(reader)
            wanted = {
                abs(float(one.fields[f.name]))
                for f in one.record.all_fields
                if f.name in reader.asked and isinstance(f.type, Number) and one.fields.get(f.name)
            }
            if dataclasses.is_dataclass(made) and reader.record not in ("events", "executions", "apply_state"):
                assert wanted <= {abs(n) for n in numbers_in(made)}, (reader.record, reader.users)
    assert {r.record for r in EVERY_READER} == {r.record for r in read_once}


def test_what_is_not_asked_is_not_looked_at(world: World) -> None:
    """A field that a reader does not name can be taken away, and it reads the same: so no field is read in secret."""
    tried = 0
    for one in filter(flat, world.samples()):
        for reader in readers_of(one):
            before = read(reader, one.fields, clock_of(one))
            asked = {*reader.asked, *TIME_ALIASES, one.record.time}
            for name in [f.name for f in fields_of(one) if f.name not in asked]:
                without = {n: v for n, v in one.fields.items() if n != name}
                assert read(reader, without, clock_of(one)) == before, (one.record.name, name, reader.users)
                tried += 1
    assert tried > 300


def wrong_values(of: Field) -> Iterator[bytes]:
    """Bytes that a field may not hold, made from its type."""
    kind = of.type
    yield from () if of.empty or isinstance(kind, Text) or (isinstance(kind, Choice) and "" in kind.words) else (b"",)
    if isinstance(kind, Number | Whole | Time):
        yield from (b"NaN", b"inf", b"1_000", b"0x10", b" 1", "\u0661".encode(), b"1,5")
    if isinstance(kind, Number):
        yield from (repr(kind.low - abs(kind.low) - 1.0).encode(), b"1e308" if kind.high < 1e308 else b"1e400")
    if isinstance(kind, Time):
        yield b"1769577492000"
    if not isinstance(kind, Text | AnyTime | Iso):
        yield b"\xff\xfe"
    if not isinstance(kind, Text):
        yield b"\x00"


def strict(one: Found, fields: Mapping[str, bytes]) -> list[str]:
    """What the registry says of a record of ours."""
    return registry.violations(one.record, fields, ours=True)


def flat(one: Found) -> bool:
    """Whether a sample's fields are the row's own, and nothing is wrong with it to begin with."""
    return one.record.instead not in (*one.fields, "json") and not strict(one, one.fields)


def needs(reader: Reader, name: str) -> bool:
    """Whether a reader can do nothing without a field."""
    return name in reader.asked and name not in reader.mild


def fields_of(one: Found) -> list[Field]:
    """The rows of the fields that a sample has."""
    variants = [v for v in one.record.variants if v.is_of(one.fields)][:1]
    return [f for f in (*one.record.fields, *(f for v in variants for f in v.fields)) if f.name in one.fields]


def said(found: list[str], name: str) -> bool:
    """Whether a finding names a field."""
    return any(text.startswith(f"{name or 'the value'} ") for text in found) or any(
        f"not under {name}" in text or "its kind" in text for text in found
    )


def test_a_renamed_field_is_seen(world: World) -> None:
    """Each field of each sample under another name: the registry names it, and who needs it has no reading any more."""
    tried = 0
    for one in filter(flat, world.samples()):
        for of in fields_of(one):
            if not of.name:
                continue
            changed = {(f"{n}_x" if n == of.name else n): v for n, v in one.fields.items()}
            tried += 1
            found = strict(one, changed)
            assert said(found, of.name) or said(found, f"{of.name}_x"), (one.record.name, of.name, found)
            if of.name in TIME_ALIASES:
                continue
            for reader in readers_of(one):
                if needs(reader, of.name) and read(reader, one.fields, clock_of(one)) is not None:
                    made = read(reader, changed, clock_of(one))
                    assert made is None, (one.record.name, of.name, reader.users, made)
    assert tried > 700


def test_a_value_that_is_none_is_seen(world: World) -> None:
    """Each field of each sample with bytes that its type refuses: the registry names the field; a reader that needs it
    and cannot make a number of it has no reading."""
    tried = 0
    for one in filter(flat, world.samples()):
        for of in fields_of(one):
            for raw in wrong_values(of):
                changed = {**one.fields, of.name: raw}
                tried += 1
                assert said(strict(one, changed), of.name), (one.record.name, of.name, raw, strict(one, changed))
                malformed = raw in (b"NaN", b"1_000", b"")
                for reader in readers_of(one):
                    if malformed and needs(reader, of.name) and isinstance(of.type, Number):
                        assert read(reader, changed, clock_of(one)) is None, (one.record.name, of.name, raw)
    assert tried > 4000


def test_what_a_row_allows_its_readers_take(world: World) -> None:
    """The least and the greatest number of each range: what the registry calls well formed no reader refuses."""
    tried = 0
    for one in filter(flat, world.samples()):
        for reader in readers_of(one):
            if read(reader, one.fields, clock_of(one)) is None:
                continue
            for of in (f for f in fields_of(one) if needs(reader, f.name)):
                bounds = (of.type.low, of.type.high) if isinstance(of.type, Number | Whole) else ()
                for raw in (repr(bound).encode() for bound in bounds):
                    if not of.type.wrong(raw):
                        made = read(reader, {**one.fields, of.name: raw}, clock_of(one))
                        assert made is not None, (one.record.name, of.name, raw, reader.users)
                        tried += 1
    assert tried > 100


def test_a_time_under_another_name_is_seen(world: World) -> None:
    """A record's time under any other alias: the registry goes red, though the readers find it there."""
    tried = 0
    for one in filter(flat, world.samples()):
        time = one.record.time
        if time not in TIME_ALIASES:
            continue
        for alias in TIME_ALIASES:
            if alias == time:
                continue
            changed = {n: v for n, v in one.fields.items() if n not in TIME_ALIASES}
            changed[alias] = one.fields[time]
            tried += 1
            found = strict(one, changed)
            assert f"the time stands under {alias}, not under {time}" in found or one.record.times, one.record.name
            assert found
            for reader in readers_of(one):
                if time in reader.asked and reader.record not in ("events", "results", "transfers"):
                    before = read(reader, one.fields, clock_of(one))
                    assert read(reader, changed, clock_of(one)) == before, (one.record.name, alias)
    assert tried > 100


def test_times_that_disagree_are_seen(world: World) -> None:
    """``ts`` dropped, another time than the named one, or milliseconds: the registry names it."""
    tried = 0
    for one in filter(flat, world.samples()):
        time = one.record.time
        if not time or not one.record.twin or time == "ts":
            continue
        without = {n: v for n, v in one.fields.items() if n != "ts"}
        assert "ts is missing" in strict(one, without), one.record.name
        other = {**one.fields, "ts": b"%d" % (int(one.fields["ts"]) + 1)}
        assert any(text.startswith("ts is ") for text in strict(one, other)), one.record.name
        millis = {**one.fields, time: one.fields[time].partition(b".")[0] + b"000"}
        assert any(text.startswith((f"{time} ", "ts ")) for text in strict(one, millis)), one.record.name
        tried += 1
    assert tried > 20


def test_every_hash_of_ours_says_its_time_twice() -> None:
    """Every hash with a time has ``ts`` beside it, with the same value; the rest is state, a map, a head."""
    timeless = {
        "attribution_state", "efficiency_state", "apply_state", "desk_state", "book", "ledger", "clusters", "ops_head",
        "ops_head_of",
    }  # fmt: skip
    for name, of in registry.RECORDS.items():
        if of.kind is registry.Kind.HASH and name not in timeless:
            assert of.time, name
            assert of.twin, name
            assert any(f.name == "ts" and not f.optional for f in of.fields), name


def test_a_key_of_another_kind_is_seen(one_server: Any, one_client: Any) -> None:
    """A key of another type, one that outlives its expiry, one that should stay and does not, a stranger: told of."""
    for name, of in registry.RECORDS.items():
        key = registry.key_of(name)
        for part, value in (("{S}", "BTCUSDT"), ("{plan}", "p1"), ("{cid}", "C1"), ("{name}", "governor-a")):
            key = key.replace(part, value)
        one_client.flushall()
        if of.kind is registry.Kind.STRING:
            one_client.hset(key, "x", "y")
        else:
            one_client.set(key, "x")
        seen = World()
        contract.look(one_server.url, seen, ours=True)
        assert seen.troubles, name
        assert registry.expiry_trouble(of, 10 if of.ttl_s is None else -1), name
        assert registry.expiry_trouble(of, -1 if of.ttl_s is None else of.ttl_s) == "", name
        assert of.ttl_s is None or of.ttl_grows or registry.expiry_trouble(of, of.ttl_s + 1), name
    one_client.flushall()
    one_client.set("quantum:allocation:target:btc", "x")
    seen = World()
    contract.look(one_server.url, seen, ours=True)
    assert seen.troubles == ["quantum:allocation:target:btc: []"]
