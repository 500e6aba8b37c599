"""Rows of the registry: account, positions, market, budgets, clusters, regimes.

Source: the project's contract, section 3. What a field's name alone tells is not told again. The contract's numbers and
words stand here as they stand there, not as the writers' code has them: else a change of that would go unseen.
"""

from __future__ import annotations

from quantum_alloc.adapters.registry_common import (
    HASH,
    IN_MODE,
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
)
from quantum_alloc.adapters.registry_json import Json, Quoted
from quantum_alloc.adapters.registry_record import Field, Kind, Record
from quantum_alloc.adapters.registry_types import (
    Choice,
    Number,
    Symbol,
    Time,
    Whole,
    Word,
)

PRICE, BAR_S = Number(0.0, positive=True), Number(0.0, 1e8, positive=True)
PORTFOLIO = (
    Field("equity_usd", SIGNED, "balance and what is not realised", "USD"),
    Field("balance_usd", SIGNED, "the wallet", "USD"),
    Field("unrealized_pnl_usd", SIGNED, "of all positions", "USD"),
    Field("positions_notional_usd", USD, "of all positions", "USD"),
    Field("positions_count", Whole(0, 10**9), "positions that are not 0"),
    Field("peak_equity_usd", USD, "greatest equity so far; absent where it is not known", "USD", optional=True),
    Field("drawdown", NEAR, "fraction of the peak, readers take the absolute value; absent with it", optional=True),
    Field("source", Word(), "positions; partial where some were left out"),
    Field("timestamp", Time(), "when it was written"),
    Field("ts_utc", Time(), "the same time again"),
    TS,
    ours("held_over", Whole(), "positions counted by old values"),
    ours("left_out", Whole(), "positions not counted at all"),
)
ROWS: tuple[Record, ...] = (
    Record("portfolio", Kind.HASH, "Equity, peak and drawdown.", (*PORTFOLIO,), "timestamp",
        ttl_s=120, is_open=True),
    Record("portfolio_states", Kind.STREAM, "Equity, peak and drawdown, one entry a cycle.", PORTFOLIO, "timestamp"),
    Record("peak", Kind.HASH, "The greatest equity so far; reset only by command.", (
        Field("peak_equity_usd", USD, "greatest equity", "USD"), Field("ts", Time(), "when it was written"),
    ), "ts"),
    Record("balance", Kind.HASH, "What the account holds, by whoever holds it.", (
        Field("balance", SIGNED, "the wallet", "USD"), *WRITTEN,
    ), "timestamp", is_open=True, note="Unusable when older than 120 s."),
    Record("position", Kind.HASH, "A position.", (
        Field("position_amt", SIGNED, "signed quantity; 0 is flat"),
        Field("entry_price", USD, "average", "USD"),
        Field("mark_price", USD, "newest", "USD"),
        Field("unrealized_pnl", SIGNED, "at the mark", "USD"),
        Field("leverage", USD, "of the account"),
        Field("ts_epoch", Time(), "when it was written"),
        TS,
        ours("opened_ts", MOMENT, "when it left zero", "s", optional=True),
        ours("next_open_ts", MOMENT, "before when no open is filled", "s", optional=True),
    ), "ts_epoch", is_open=True),
    Record("market", Kind.HASH, "The newest price.", (
        Field("price", PRICE, "newest close", "USD"),
        Field("sigma", Number(0.0, 1e6), "of log returns, scaled to an hour; absent until 60 are known", optional=True),
        Field("bar_s", BAR_S, "length of a bar; absent until one has closed", "s", optional=True),
        *WRITTEN,
    ), "timestamp", is_open=True),
    Record("bars", Kind.STREAM, "One entry a closed bar.", (
        Field("ts", Time(), "close time"),
        Field("close", PRICE, "close", "USD"),
        Field("volume", USD, "of the bar"),
        Field("bar_s", BAR_S, "length", "s"),
    ), "ts", is_open=True, note="About 1,500 are kept."),
    Record("budget", Kind.HASH, "Base budget of a symbol, in both modes.", (
        SYMBOL,
        Field("budget_usd", USD, "what it may hold at most", "USD"),
        Field("stress_factor", SHARE, "what heat, cluster and volatility took"),
        Field("equity_usd", SIGNED, "as read", "USD"),
        Field("portfolio_heat", USD, "notional by equity"),
        Field("cluster_stress", SHARE, "of its cluster"),
        Field("vol_regime", SHARE, "of its volatility"),
        IN_MODE,
        Field("base_risk_pct", USD, "share of equity that it begins with"),
        *WRITTEN,
        ours("rules", Choice(("p28_v1",)), "version of the rules"),
        ours("params", Json(), "all parameters"),
        ours("params_hash", HASH, "of all parameters"),
    ), "timestamp", ttl_s=300, is_open=True),
    Record("violations", Kind.STREAM, "A position above its budget; one field `json`, an object of these.", (
        Field("event_type", Choice(("budget.violation",)), "what it is"),
        SYMBOL,
        Field("position_notional", USD, "held", "USD"),
        Field("budget_usd", USD, "allowed", "USD"),
        Field("over_budget", USD, "the difference", "USD"),
        IN_MODE,
        WRITTEN[0],
    ), "timestamp", twin=False, is_open=True, instead="json"),
    Record("regimes", Kind.STREAM, "The market's regime; the newest entry counts.", (
        Field("regime", Word(), "TREND, MEAN_REVERSION, CHOP, NEUTRAL or another word"),
        Field("confidence", SHARE, "of it"),
        *WRITTEN,
        ours("z", SIGNED, "of the variance ratio"),
        ours("bars", Whole(), "that were looked at"),
        ours("variance_ratio", USD, "of the window"),
        ours("volatility_ratio", USD, "realised volatility over its median of the last day"),
        ours("gaps", Whole(), "returns left out"),
        ours("newest_ts", MOMENT, "of the newest bar", "s"),
        ours("symbols", Whole(), "with bars"),
        *head("regime_v1"),
        ORIGIN,
    ), "timestamp", is_open=True),
    Record("clusters", Kind.HASH, "Cluster to its symbols; replaced whole in one step.", (
        Field("{cid}", Json(list, Quoted(Symbol())), "its symbols"),
    ), is_open=True),
    Record("stress", Kind.HASH, "Strain of a cluster.", (
        Field("stress", SHARE, "weight x concentration x correlation"),
        Field("alpha", NEAR, "mean alpha of its members"),
        *WRITTEN,
        ours("weight", USD, "share of the portfolio's notional"),
        ours("concentration", SHARE, "1 where all point one way"),
        ours("correlation", NEAR, "mean over its pairs"),
        ours("members", Whole(1), "how many"),
        ours("rules", Choice(("p27_v1",)), "version of the rules"),
    ), "timestamp", ttl_s=180, is_open=True),
    Record("universe", Kind.SET, "Symbols that our services write for.", (Field("", Symbol(), "a symbol"),)),
)  # fmt: skip
"""What targets are made from."""
