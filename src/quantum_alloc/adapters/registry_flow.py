"""Rows of the registry: targets, executions, attribution, efficiency, proposals.

Source: the project's contract, section 3. What a field's name alone tells is not told again.
"""

from __future__ import annotations

from quantum_alloc.adapters.codec import USD_LIMIT
from quantum_alloc.adapters.registry_common import (
    FLAG,
    HASH,
    ID,
    IN_MODE,
    LANE,
    LETTER,
    MOMENT,
    NEAR,
    ORIGIN,
    SHARE,
    SIGNED,
    SYMBOL,
    TS,
    USD,
    WRITTEN,
    head,
    ours,
    reading,
)
from quantum_alloc.adapters.registry_json import Json, Quoted
from quantum_alloc.adapters.registry_record import Field, Kind, Record
from quantum_alloc.adapters.registry_types import (
    Choice,
    EntryId,
    Number,
    Pattern,
    Text,
    Time,
    Whole,
    Word,
)
from quantum_alloc.adapters.wire import FLOAT_MAX, MULTIPLIER_MAX
from quantum_alloc.core.allocation import Bound, PerformanceSource

ISSUES = "P30_MISSING|P30_STALE|P30_ERROR|P29_MISSING|P29_STALE|P29_ERROR"
TARGET = (
    Field("target_usd", USD, "what the symbol may hold", "USD"),
    Field("weight", Number(0.0, USD_LIMIT), "the same as a fraction of equity"),
    Field("cluster_id", Word(), "its group"),
    Field("regime", Word(), "the market's regime"),
    Field("drawdown_zone", Choice(("LOW", "MID", "HIGH", "UNKNOWN")), "of the portfolio"),
    Field("confidence", SHARE, "of the inputs"),
    *WRITTEN,
    IN_MODE,
)
CYCLE_ID = Field("cycle_id", ID, "of its cycle")
FACTOR = ours("proposed_factor", Number(0.0, MULTIPLIER_MAX), "as applied, with `P29_USE_PROPOSED`", optional=True)
DECISION = (
    *TARGET,
    CYCLE_ID,
    SYMBOL,
    Field("base_usd", USD, "the budget as read", "USD"),
    Field("regime_factor", USD, "as applied"),
    Field("cluster_factor", USD, "as applied"),
    Field("drawdown_factor", USD, "as applied"),
    Field("performance_factor", USD, "as applied"),
    Field("performance_source", Choice(tuple(PerformanceSource)), "where it came from"),
    Field("symbol_cap_usd", USD, "the cap of one symbol", "USD"),
    Field("cluster_ratio", SHARE, "what the cluster's cap left of it, 1.0 where it did not bind"),
    ours("uncapped_usd", USD, "before the caps", "USD"),
    ours("bound", Choice(tuple(Bound)), "which cap bound"),
    *reading("budget", "the budget"),
    ours("stress", SHARE, "of its cluster", empty=True),
    *reading("stress", "the stress"),
    ours("attribution_factor", Number(-FLOAT_MAX, FLOAT_MAX), "performance as read", empty=True),
    ours("attribution_confidence", SHARE, "its confidence", empty=True),
    *reading("attribution", "the attribution"),
    ours("attribution_lane", LANE, "where it was read"),
    FACTOR,
    ours("proposal_multiplier", Number(0.0, MULTIPLIER_MAX), "as read", optional=True, empty=True),
    ours("proposal_reason", Word(), "as read", optional=True, empty=True),
    *reading("proposal", "the proposal", optional=True),
    ours("proposal_lane", LANE, "of what it was made from", optional=True),
    ours("proposal_prior", Number(0.0, MULTIPLIER_MAX), "the factor of the cycle before", optional=True),
)
CYCLE = (
    Field("cycle_id", ID, "made from the content"),
    ours("rules", Choice(("p29_v1",)), "version of the rules"),
    ours("now", MOMENT, "the decision's clock", "s"),
    ours("equity_usd", SIGNED, "as read", "USD", empty=True),
    ours("drawdown", SHARE, "as read", empty=True),
    *reading("portfolio", "the portfolio"),
    ours("regime", Word(), "as read", empty=True),
    ours("regime_confidence", SHARE, "as read", empty=True),
    *reading("regime", "the regime"),
    ours("clusters_readable", FLAG, "0 where a map is there that cannot be read as a whole"),
    ours("group_sums_usd", Json(dict, USD), "group to the sum of its targets before the cluster's cap", "USD"),
    ours("params", Json(), "all parameters"),
    ours("params_hash", HASH, "of all parameters"),
    ours("symbols", Whole(), "looked at"),
    ours("targets", Whole(), "with a target"),
    ours("skipped", Json(dict, Quoted(Word())), "symbol without a target to the reason"),
    IN_MODE,
    *WRITTEN,
)
ATTRIBUTION = (
    Field("performance_factor", SHARE, "0.5 is neutral"),
    Field("alpha_score", NEAR, "average over the window"),
    Field("confidence", SHARE, "by executions that count, and their age"),
    Field("window", Whole(), "executions that count"),
    Field("source", Choice(("live", "LKG")), "live, or LKG: the last that is known"),
    Field("lkg_age_s", Whole(), "since the last execution with a PnL", "s"),
    Field("last_exec_ts", MOMENT, "its time", "s"),
    *(
        Field(f"{name}_contrib", Json(dict, SIGNED), f"{of} to its share of the absolute PnL")
        for name, of in (("regime", "regime"), ("cluster", "cluster"), ("signal", "signal"), ("time", "hours"))
    ),
    IN_MODE,
    Field("ts_utc", Time(), "when it was written"),
    TS,
)
BEFORE = (
    ours("before", Json(), "the state before the cycle's last executions"),
    ours("fills", Json(), "these", empty=True),
)
EFFICIENCY = (
    Field("efficiency_score", SHARE, "of this cycle"),
    Field("efficiency_raw", SIGNED, "before it is clamped"),
    Field("efficiency_ewma", SIGNED, "average"),
    Field("capital_pressure", Choice(("INCREASE", "HOLD", "DECREASE")), "what it says of the symbol's capital"),
    Field("reallocation_weight", NEAR, "how much"),
    Field("confidence", SHARE, "of both inputs"),
    Field("inputs_ok", FLAG, "1 where both inputs were read"),
    Field("stale_flags", Pattern(f"({ISSUES})(,({ISSUES}))*", "flags joined by commas"), "what ailed", empty=True),
    Field("p30_perf", SHARE, "performance that was used"),
    Field("p30_conf", SHARE, "its confidence"),
    Field("p29_target_usd", USD, "target that was used", "USD", empty=True),
    Field("volatility_ewma", USD, "of the absolute PnL", "USD"),
    Field("dd_proxy", USD, "of the losses", "USD"),
    Field("hold_time_penalty", SHARE, "grows with the time since the last execution"),
    TS,
    IN_MODE,
    ours("lane", LANE, "shadow where an input that was used came from there"),
)
TRACE = r"p30_conf=[0-9]\.[0-9]{2},p29_tgt=[0-9]+,inputs_ok=[01]"
MADE = (
    SYMBOL,
    Field("trace", Pattern(TRACE, "`p30_conf=0.30,p29_tgt=349,inputs_ok=1`"), "a summary"),
    ours("p29_conf", SHARE, "confidence of the target that was used", empty=True),
    *head("p31_v1"),
    ours("attribution_factor", Number(-FLOAT_MAX, FLOAT_MAX), "performance as read", empty=True),
    ours("attribution_confidence", SHARE, "its confidence", empty=True),
    *reading("attribution", "the attribution"),
    ours("attribution_lane", LANE, "where it was read"),
    ours("target_usd", USD, "target as read", "USD", empty=True),
    ours("target_confidence", SHARE, "its confidence", empty=True),
    *reading("target", "the target"),
    ours("target_lane", LANE, "where it was read"),
    *BEFORE,
)
REASONS = Choice(("ok", "missing_eff", "stale_eff", "low_conf", "redis_error"))
PROPOSAL = (
    Field("ts_epoch", Time(), "when it was written"),
    TS,
    SYMBOL,
    Field("base_target", USD, "the target as read", "USD"),
    Field("proposed_target", USD, "what it would be", "USD"),
    Field("multiplier", Number(0.0, MULTIPLIER_MAX, 4), "of the target"),
    Field("eff_score", SHARE, "efficiency as read; empty where missing or unreadable", empty=True),
    Field("eff_confidence", SHARE, "its confidence; empty where missing or unreadable", empty=True),
    Field("eff_stale", FLAG, "1 where it was stale"),
    Field("reason", REASONS, "why the multiplier is what it is"),
    Field("mode", Choice(("shadow",)), "always shadow"),
    ours("eff_lane", LANE, "where the efficiency came from"),
    ours("base_lane", LANE, "where the target was read"),
)
EXECUTION = (
    SYMBOL,
    Field("timestamp", Time(), "of the fill; others may tell it under any alias"),
    ours("ts", Time(), "the same time again"),
    Field("pnl_usd", SIGNED, "realised, before the fee; absent for an open", "USD", optional=True),
    Field("realized_pnl", SIGNED, "read where pnl_usd is absent", "USD", optional=True),
    Field("pnl", SIGNED, "read where both are absent", "USD", optional=True),
    Field("filled_qty", USD, "without a sign"),
    Field("plan_id", Word(), "whose permit was used up", optional=True),
    Field("regime", Word(), "at the time", optional=True),
    Field("cluster", Word(), "of the symbol", optional=True),
    Field("signal", Word(), "the plan's action", optional=True),
    ours("side", Choice(("BUY", "SELL")), "of the fill", optional=True),
    ours("price", USD, "of the fill", "USD", optional=True),
    ours("fee_usd", USD, "of the fill", "USD", optional=True),
    ORIGIN,
)
FLAWS = ("entry", "payload", "symbol", "pnl", "time", "future_ts")
SYMBOL_STATE = (
    Field("{S}", Json(), "state of a symbol"),
    Field("_pos", EntryId(), "of the last execution that is in it"),
    Field("_stream", Text(), "of which stream"),
    Field("_read", Whole(), "entries that the stream had ever had", optional=True),
    Field("_cycle", Whole(), "number of the cycle that wrote it"),
    Field("_version", Choice(("1",)), "of this layout"),
)
ROWS: tuple[Record, ...] = (
    Record("attribution", Kind.HASH, "Performance of a symbol.", ATTRIBUTION, "ts_utc",
        ttl_s=300, ttl_from="ATTRIBUTION_TTL_SEC"),
    Record("attributions", Kind.STREAM, "Attributions and what makes them again, one entry a symbol and cycle.", (
        *ATTRIBUTION, SYMBOL, *head("p30_v1"), *BEFORE,
    ), "ts_utc"),
    Record("attribution_state", Kind.HASH, "What attribution remembers.", SYMBOL_STATE),
    Record("target", Kind.HASH, "What a symbol may hold; the gates look at it.", (
        *TARGET, ours(CYCLE_ID.name, CYCLE_ID.type, CYCLE_ID.meaning), FACTOR,
    ), "timestamp", ttl_s=300, ttl_from="TARGET_TTL_SEC"),
    Record("decisions", Kind.STREAM, "Targets and why, one entry a symbol and cycle.", DECISION, "timestamp"),
    Record("cycles", Kind.STREAM, "What all symbols of a cycle share.", CYCLE, "timestamp"),
    Record("executions", Kind.STREAM, "One entry a fill.", EXECUTION, "timestamp", is_open=True, times=True,
        instead="payload", note="Flat, or one field `payload`, a JSON object of these."),
    Record("dead_executions", Kind.STREAM, "Executions that were set aside.", (
        *LETTER, Field("reason", Choice(FLAWS), "why"),
    ), "timestamp"),
    Record("efficiency", Kind.HASH, "Efficiency of a symbol.", (
        *EFFICIENCY, Field("version", Choice(("p31_v1",)), "of the rules"),
    ), "ts", ttl_s=600, ttl_from="P31_KEY_TTL_SEC"),
    Record("efficiencies", Kind.STREAM, "Efficiencies and what makes them again, one entry a symbol and cycle.", (
        *EFFICIENCY, *MADE,
    ), "ts"),
    Record("efficiency_state", Kind.HASH, "What efficiency remembers.", SYMBOL_STATE),
    Record("proposed", Kind.HASH, "What a target would be with efficiency.", (
        *PROPOSAL, Field("last_update_ts_epoch", Time(), "the same time again"),
    ), "ts_epoch", ttl_s=600, ttl_from="PROPOSE_KEY_TTL"),
    Record("proposals", Kind.STREAM, "Proposals and what makes them again, one entry a symbol and cycle.", (
        *PROPOSAL, *head("p29_shadow_v1"), *reading("eff", "the efficiency"), *reading("base", "the target"),
    ), "ts_epoch"),
)  # fmt: skip
"""What is made of them."""
