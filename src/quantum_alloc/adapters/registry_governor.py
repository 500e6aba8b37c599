"""Rows of the registry: plans, permits, blocks, events, and what the governor remembers.

Source: the project's contract, section 3, and governor. What a field's name alone tells is not told again.
"""

from __future__ import annotations

from quantum_alloc.adapters.codec import USD_LIMIT
from quantum_alloc.adapters.commit import BLOCK_TOMBSTONE_S
from quantum_alloc.adapters.governor_wire import AMOUNT_MAX
from quantum_alloc.adapters.registry_account import BY, NAME, SIDE, TRUTH
from quantum_alloc.adapters.registry_common import (
    FLAG,
    HASH,
    ID,
    LANE,
    LETTER,
    MOMENT,
    ORIGIN,
    SIGNED,
    SYMBOL,
    TS,
    USD,
    WRITTEN,
    head,
    ours,
)
from quantum_alloc.adapters.registry_json import Json, Nullable, Quoted
from quantum_alloc.adapters.registry_record import Field, Kind, Record, Variant
from quantum_alloc.adapters.registry_types import (
    Choice,
    EntryId,
    Number,
    Pattern,
    Symbol,
    Text,
    Time,
    Whole,
    Word,
)
from quantum_alloc.core.governor_inputs import Kill
from quantum_alloc.core.governor_params import BLOCK_REASONS, GATES
from quantum_alloc.core.limits import DAY_S
from quantum_alloc.core.plan import Movement

GIVEN_UP = "decision_failed"
REASONS = Choice((*BLOCK_REASONS, GIVEN_UP))
GATE = Choice(tuple(dict.fromkeys(gate.number for gate in GATES)))
VERDICT = Choice(("PERMIT", "BLOCK"))
HINTS = Choice(("NONE", "DOWNSIZE"))
MODES = Choice(("dry_run", "testnet", "production"))
AMOUNT = Number(0.0, AMOUNT_MAX)
FACTOR = Number(0.0, 1.0, 4)
CENTS = Number(0.0, USD_LIMIT, 2)
_US, _AMOUNT = r"[0-9]{1,18}", r"[0-9][0-9.e+-]*"

PLAN = (
    Field("plan_id", Word(), "of the plan"),
    SYMBOL,
    Field("action", Word(), "what is to be done"),
    Field("decision", Word(), "only EXECUTE is governed"),
    Field("side", Choice(("BUY", "LONG", "SELL", "SHORT")), "required for opens", optional=True),
    Field("qty", USD, "quantity; for opens this or close_qty is required", optional=True),
    Field("close_qty", USD, "the same, for a close", optional=True),
    Field("kill_score", USD, "required for opens", optional=True),
    Field("price", USD, "of the plan", "USD", optional=True),
    Field("notional_usd", USD, "looked at by nobody", "USD", optional=True),
    Field("reduceOnly", Pattern("(?i:1|true|0|false)", "1, true, 0, false"), "a close", optional=True),
    *WRITTEN,
    ours("source", Word(), "who proposed it", optional=True),
    ours("desk", Json(), "what makes the desk's decision again", optional=True),
    ORIGIN,
)
PERMIT = (
    Field("granted", Choice(("true",)), "always"),
    Field("symbol", Quoted(Symbol()), "its symbol"),
    Field("decision", Quoted(Choice(("EXECUTE",))), "always"),
    Field("computed_qty", Number(0.0, positive=True), "what may be filled at most"),
    Field("computed_notional", AMOUNT, "of it", "USD"),
    Field("created_at", MOMENT, "when it was decided"),
    Field("consumed", Choice(("false",)), "always: one that is used up is deleted"),
    Field("eff_score", Quoted(Number(0.0, 1.0, 4), empty=True), "empty where missing or unreadable"),
    Field("eff_confidence", Quoted(Number(0.0, 1.0, 3), empty=True), "empty where missing or unreadable"),
    Field("eff_stale", Quoted(FLAG), "1 only where it was stale"),
    Field("eff_factor", Quoted(FACTOR), "of the quantity"),
    Field("eff_action", Quoted(HINTS), "what the hint says"),
    Field("eff_reason", Quoted(Word()), "why"),
    Field("downsize_factor", Quoted(FACTOR), "as eff_factor"),
    Field("extra_cooldown_sec", Quoted(Whole(0, 86_400)), "before when no open may follow", "s"),
    ours("plan_id", Quoted(Word()), "of the plan"),
    ours("movement", Quoted(Choice(tuple(Movement))), "what it does to the position"),
    ours("reduce_only", TRUTH, "whether it only closes"),
    ours("side", Quoted(Choice(("", *SIDE.words))), "empty where the position says it"),
    ours("eff_lane", Quoted(LANE), "where the efficiency came from"),
    ours("apply_mode", Quoted(MODES), "of the governor"),
    ours("dry_run", TRUTH, "whether nothing may be filled"),
    ours("decision_id", Quoted(ID), "of the decision"),
    ours("config_hash", Quoted(HASH), "of the governor's parameters"),
    ours("limits", Json(list, Whole()), "cooldown in seconds, fills in five minutes, in an hour"),
    ours("kid", Quoted(Text(32), empty=True), "the key that signed; empty without one"),
    ours("sig", Quoted(Pattern("[0-9a-f]{64}", "64 hexadecimal digits"), empty=True), "signature of all before it"),
)
BLOCK = (
    Field("reason", Quoted(REASONS), "of the first gate that blocks"),
    Field("symbol", Quoted(Text(), empty=True), "as the plan has it"),
    Field("timestamp", Time(), "when it was decided"),
    TS,
    Field("gate", Quoted(GATE), "which"),
    Field("observed", Nullable(SIGNED), "what it saw"),
    Field("limit", Nullable(SIGNED), "what it allows"),
    Field("retry_after_s", Nullable(USD), "where time alone mends it", "s"),
    ours("detail", Quoted(Text(), empty=True), "which field of a bad plan", optional=True),
    ours("decision_id", Quoted(ID), "of the decision", optional=True),
)
RECORD = (
    ours("action", Text(), "of the plan", empty=True),
    ours("apply_mode", MODES, "of the governor"),
    ours("decision_id", ID, "of the decision"),
    ours("gates", Json(list), "gate, outcome, reason, observed, limit, margin of each"),
    ours("inputs", Json(), "the plan and every reading as state, time, value"),
    *head("p32_v1"),
)
REFUSED = (
    ours("gate", GATE, "which blocks"),
    ours("observed", SIGNED, "what it saw", empty=True),
    ours("limit", SIGNED, "what it allows", empty=True),
    ours("retry_after_s", USD, "where time alone mends it", "s", empty=True),
    ours("detail", Text(), "which field of a bad plan", empty=True),
)
EVENT = (
    Field("event", Choice((
        "PERMIT", "BLOCK", "WOULD_BLOCK", "REPLAY", "CONFLICT", "AUTO_DISARM", "KILL", "REARM", "STORE_EPOCH_CHANGE",
        "P29_ALLOCATION_CAP_BLOCK",
    )), "what happened"),
    Field("plan_id", Text(), "of the plan, escaped where it is none; empty where none is concerned", empty=True),
    Field("symbol", Text(), "as the plan has it", empty=True),
    Field("reason", Word(), "a code"),
    *WRITTEN,
)  # fmt: skip


def _maybe(fields: tuple[Field, ...]) -> tuple[Field, ...]:
    """The same fields, each of which may be absent."""
    return tuple(Field(f.name, f.type, f.meaning, f.unit, True, f.empty, f.ours) for f in fields)


def _on(event: str, *fields: Field, reason: str = "") -> Variant:
    return Variant((("event", event), *((("reason", reason),) if reason else ())), fields)


EVENTS = (
    _on("PERMIT", ours("decision_id", ID, "of the decision"), ours("issued_us", Whole(), "when it was issued", "us"),
        reason="restored"),
    _on("PERMIT",
        *RECORD,
        ours("movement", Choice(tuple(Movement)), "what it does to the position"),
        ours("side", SIDE, "empty where the position says it", empty=True),
        ours("computed_qty", USD, "what may be filled at most"),
        ours("computed_notional", AMOUNT, "of it", "USD"),
        ours("eff_action", HINTS, "what the hint says"),
        ours("eff_factor", Number(0.0, 1.0), "of the quantity"),
        ours("eff_reason", Word(), "why"),
        ours("issued_us", Whole(), "when it was issued", "us"),
    ),
    _on("BLOCK", REFUSED[0], ours("entry", EntryId(), "of a plan that cannot be read", optional=True), reason=GIVEN_UP),
    _on("BLOCK", REFUSED[0], *_maybe((*RECORD, *REFUSED[1:])), reason="bad_plan"),
    _on("BLOCK", *RECORD, *REFUSED),
    _on("WOULD_BLOCK", ours("gate", Choice(tuple(g.gate for g in GATES)), "which would"), *REFUSED[1:3],
        ours("decision_id", ID, "of the decision"),
        ours("issued_us", Whole(), "when a permit beside it was issued", "us", optional=True)),
    _on("P29_ALLOCATION_CAP_BLOCK",
        Field("position_notional_usd", CENTS, "held", "USD"),
        Field("exposure_after_usd", CENTS, "with the plan", "USD"),
        Field("target_usd", CENTS, "allowed", "USD"),
        Field("mode", Choice(("", "shadow", "enforce")), "of the target"),
        Field("confidence", Number(0.0, 1.0, 2), "of the target", empty=True),
    ),
    _on("REPLAY", ours("verdict", VERDICT, "the first answer"), ours("decision_id", ID, "of it", empty=True)),
    _on("CONFLICT", ours("content", Text(), "hash of the plan", empty=True)),
    _on("AUTO_DISARM", ours("context", Json(), "what led to it"), ours("action_taken", Word(), "what was done")),
    _on("KILL", ours("state", Choice(tuple(Kill)), "from now on"), *BY),
    _on("REARM", *BY),
    _on("STORE_EPOCH_CHANGE",
        ours("epoch", NAME, "of the server"), ours("epoch_before", NAME, "of the one before", empty=True),
        ours("restored", Whole(), "permits put back"), ours("held", FLAG, "1 where opens are held back"),
    ),
)  # fmt: skip
TOMBSTONE = (
    Field("verdict", Quoted(VERDICT), "the first answer, which is final"),
    Field("reason", Quoted(Word()), "of it"),
    Field("content", Quoted(ID), "hash of the plan"),
    Field("decision_id", Quoted(ID, empty=True), "of the decision"),
    Field("symbol", Quoted(Text(), empty=True), "as the plan has it", optional=True),
    Field("now_us", Whole(), "the decision's clock", "us", optional=True),
    Field("by", Quoted(NAME, empty=True), "the governor", optional=True),
    Field("stamp_us", Whole(), "when it was written", "us"),
    Field("restored", Choice(("true",)), "of one that was put back", optional=True),
)
ROWS: tuple[Record, ...] = (
    Record("plans", Kind.STREAM, "What the governor decides on.", PLAN, "timestamp", is_open=True),
    Record("permit", Kind.STRING, "Leave to fill one plan, once.", PERMIT, "created_at", twin=False, ttl_s=60,
        is_json=True),
    Record("block", Kind.STRING, "Why a plan was refused.", BLOCK, "timestamp", ttl_s=3600, is_json=True),
    Record("events", Kind.STREAM, "Everything that governor, kill switch and apply layer tell.", EVENT, "timestamp",
        variants=EVENTS),
    Record("dead_plans", Kind.STREAM, "Plans that were given up.", (
        *LETTER, Field("reason", Choice((GIVEN_UP,)), "why"),
    ), "timestamp"),
    Record("epoch", Kind.STRING, "The server's run that governors have verified.", (
        Field("", Pattern(r"[0-9a-zA-Z]{1,64}(@[0-9]{1,18})?", "run id"), "of INFO, and when it was seen to forget"),
    )),
    Record("book", Kind.HASH, "Opens that are permitted and not yet seen in a position.", (
        Field(":rev", Whole(), "raised by every change", optional=True),
        Field(":watermark", Whole(), "greatest clock ever decided at", "us", optional=True),
        Field(":pos", EntryId(), "last plan that was answered", optional=True),
        Field(":hold", Whole(), "until when no open is permitted", "us", optional=True),
        Field(":fence:{name}", Whole(), "verifications of a governor"),
        Field("{plan}", Pattern(rf"[A-Z0-9]{{2,30}} {_AMOUNT} {_US} {_US} {_US}", "five words"),
            "symbol, USD, issued, until, consumed in microseconds"),
    )),
    Record("ledger", Kind.HASH, "A symbol's permits, for the limits.", (
        Field(":rev", Whole(), "raised by every change"),
        Field("{plan}", Pattern(rf"{_US} (open|close) {_AMOUNT} {_AMOUNT}", "four words"),
            "issued in microseconds, movement, USD, quantity"),
    ), ttl_s=2 * DAY_S + 86_400),
    Record("last_exec", Kind.STRING, "When a symbol's newest permit was issued.", (
        Field("", MOMENT, "unix seconds"),
    ), ttl_s=2 * DAY_S + 86_400),
    Record("tombstone", Kind.STRING, "The first answer to a plan id.", TOMBSTONE, ttl_s=30 * DAY_S,
        ttl_from="GOV_TOMBSTONE_PERMIT_SEC", ttl_grows=True, is_json=True,
        note=f"A permit's stays that long, or as long as the oldest plan in the stream has stood there; a "
        f"block's goes after {BLOCK_TOMBSTONE_S:,} s."),
)  # fmt: skip
"""What the governor decides on, answers and remembers."""
