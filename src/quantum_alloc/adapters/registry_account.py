"""Rows of the registry: the apply layer and its paper account, the desk, the kill switch, operations.

Source: the project's contract, section 3, and governor. What a field's name alone tells is not told again.
"""

from __future__ import annotations

from quantum_alloc.adapters.registry_common import (
    FLAG,
    ID,
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
from quantum_alloc.adapters.registry_json import Json, Quoted
from quantum_alloc.adapters.registry_record import Field, Kind, Record
from quantum_alloc.adapters.registry_types import (
    Choice,
    EntryId,
    Iso,
    Number,
    Pattern,
    Text,
    Whole,
    Word,
)
from quantum_alloc.core.apply import ApplyReason, Fate

TRUTH = Choice(("true", "false"))
SIDE = Choice(("BUY", "SELL"))
NAME = Text(100)
BY = (Field("by", NAME, "who"), Field("why", Text(), "the reason", empty=True))
_US = r"[0-9]{1,18}"
RESULT = (
    Field("plan_id", Word(), "of the plan"),
    SYMBOL,
    Field("decision", Word(), "EXECUTE"),
    Field("executed", Pattern("(?i:true|false|1|0)", "true, false, 1, 0"), "whether it was filled"),
    Field("error", Text(), "why not", empty=True),
    *WRITTEN,
    ours("consumed", FLAG, "1 where the permit is used up"),
    ours("fate", Choice(tuple(Fate)), "of the permit"),
    ours("side", SIDE, "of the fill", empty=True),
    ours("filled_qty", USD, "of the fill", empty=True),
    ours("price", USD, "of the fill", "USD", empty=True),
    ours("fee_usd", USD, "of the fill", "USD", empty=True),
    ours("pnl_usd", SIGNED, "before the fee; empty for an open", "USD", empty=True),
    ours("factor", Number(0.0, 1.0), "of the permitted quantity", empty=True),
    ours("position_after", SIGNED, "held then"),
    ours("entry_after", USD, "its entry price", "USD"),
    ours("held_after", Json(list), "quantity, entry, opened_us, next_open_us, last_fill_us, opens_us"),
    ours("decision_id", ID, "of the decision", empty=True),
    *head("apply_v1"),
    ours("inputs", Json(), "terms, clock, kill switch, what was held, the price"),
    ours("waited_for", Choice(tuple(ApplyReason)), "why it had not been filled before", empty=True),
    ours("consumed_us", Whole(), "the clock of the fill", "us", optional=True),
)
OF_APPLY = (
    Field("_version", Choice(("1",)), "of this layout"),
    Field("_rev", Whole(), "raised by every write"),
    Field("_of", Json(list, Quoted(Text())), "the streams that are followed"),
    *(Field(f"_{name}", EntryId(), f"last entry of {name} that is in it") for name in (
        "events", "results", "fills", "transfers",
    )),
    Field("_events_seen", Whole(), "events that there had ever been", optional=True),
    *(Field(f"_{name}", SIGNED, of, "USD") for name, of in (
        ("balance", "the wallet"), ("paid_in", "at the opening and by transfers"), ("realised", "PnL before fees"),
        ("fees", "paid"),
    )),
    Field("_counts", Json(list, Whole()), "issued, consumed, expired, without a permit, above it, fills, unknown"),
    Field("S:{S}", Json(list), "quantity, entry, opened_us, next_open_us, last_fill_us, opens_us"),
    Field("P:{plan}", Json(list), "what is known of a permit"),
)  # fmt: skip
HEAD = (
    Field("count", Whole(), "entries"),
    Field("head", Pattern("[0-9a-f]{64}", "64 hexadecimal digits"), "hash of the last one"),
    Field("ts", Iso(), "when it was finished"),
)
ROWS: tuple[Record, ...] = (
    Record("results", Kind.STREAM, "What became of each permit.", RESULT, "timestamp", is_open=True),
    Record("transfers", Kind.STREAM, "Money paid into the paper account.", (
        Field("usd", SIGNED, "below 0 where it is paid out", "USD"),
        *WRITTEN,
        Field("by", NAME, "who", optional=True),
        Field("why", Text(), "the reason", optional=True, empty=True),
        ORIGIN,
    ), "timestamp", is_open=True),
    Record("kill", Kind.STRING, "The kill switch.", (
        Field("", Choice(("1", "true", "on", "halt", "reduce", "", "0", "false", "off")), "anything else is HALT"),
    ), is_open=True),
    Record("latch", Kind.HASH, "A halt that holds until somebody rearms.", (
        Field("state", Choice(("HALT",)), "always"), Field("since", MOMENT, "when it was seen"), *BY, TS,
    ), "since"),
    Record("rearm", Kind.HASH, "The newest rearm.", (
        Field("at", MOMENT, "when"), *BY, TS,
    ), "at"),
    Record("apply_state", Kind.HASH, "The paper account, and how far it has read.", OF_APPLY),
    Record("desk_state", Kind.HASH, "The desk's last plan of each symbol.", (
        Field("{S}", Pattern(rf"[0-9]+(\.[0-9]+)? {_US}", "two words"), "close time of the bar, clock in microseconds"),
    )),
    Record("ops_head", Kind.HASH, "How long the operations ledger is.", HEAD),
    Record("ops_head_of", Kind.HASH, "How long the operations ledger is that a governor began.", HEAD),
)  # fmt: skip
"""What becomes of permits, and who may stop it."""
