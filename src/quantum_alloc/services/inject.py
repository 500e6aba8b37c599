"""``quantum-alloc inject``: well-formed sample entries, for trying things out.

What is written is what another program of the trading system would write; stream entries carry ``origin`` = inject
beside it. Services take it for real. Attributions and efficiencies exist in both lanes, the rest only in the live one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quantum_alloc.adapters.effects import Effect, HashSet, StreamAdd
from quantum_alloc.adapters.keys import HashKeys, Keys
from quantum_alloc.adapters.writes import PORTFOLIO_TTL_S, stamp
from quantum_alloc.core.efficiency import RULES_VERSION as EFFICIENCY_RULES
from quantum_alloc.core.efficiency import pressure, reallocation_weight
from quantum_alloc.core.fields import number
from quantum_alloc.core.plan import CLOSING_SHARE
from quantum_alloc.services.options import AttributionOptions, EfficiencyOptions, Settings

ORIGIN = {"origin": "inject"}


@dataclass(frozen=True, slots=True)
class Where:
    """How an entry is written.

    Attributes:
        settings: names of streams, lives of hashes.
        now: its time, unix seconds.
        shadow: whether it goes to the shadow lane.
    """

    settings: Settings
    now: float
    shadow: bool = False

    @property
    def live(self) -> Keys:
        """Names of the live lane."""
        return self.settings.keys

    @property
    def keys(self) -> HashKeys:
        """Names of the lane's hashes."""
        return self.live.shadow if self.shadow else self.live

    @property
    def mode(self) -> str:
        """The mode that a service writes with, there."""
        return "shadow" if self.shadow else "enforce"

    def add(self, stream: str, fields: Mapping[str, str]) -> Effect:
        """One entry of a stream."""
        return StreamAdd(stream, fields, self.settings.common.stream_maxlen)


def execution(
    where: Where, symbol: str, pnl_usd: float | None, qty: float, labels: Mapping[str, str], *, nested: bool
) -> Effect:
    """An entry of the execution stream.

    Args:
        where: how it is written.
        symbol: the symbol.
        pnl_usd: realised PnL, USD; None for an open.
        qty: filled quantity.
        labels: plan_id, regime, cluster, signal, where they are told.
        nested: as one JSON object in the field ``payload``.
    """
    pnl = {} if pnl_usd is None else {"pnl_usd": number(pnl_usd)}
    flat = {"symbol": symbol, **pnl, "filled_qty": number(qty), **labels, **stamp(where.now), **ORIGIN}
    if nested:
        typed = {**flat, **({} if pnl_usd is None else {"pnl_usd": pnl_usd}), "filled_qty": qty}
        flat = {"payload": json.dumps(typed, separators=(",", ":"))}
    return where.add(where.settings.of(EfficiencyOptions).execution_stream, flat)


def attribution(where: Where, symbol: str, performance: float, confidence: float) -> Effect:
    """A symbol's attribution.

    Args:
        where: how it is written.
        symbol: the symbol.
        performance: 0..1, 0.5 neutral.
        confidence: 0..1.
    """
    fields = {
        "performance_factor": number(performance),
        "alpha_score": number(2.0 * performance - 1.0),
        "confidence": number(confidence),
        "window": "20",
        "source": "live",
        "lkg_age_s": "0",
        "last_exec_ts": number(float(int(where.now // 1))),
        **{f"{name}_contrib": "{}" for name in ("regime", "cluster", "signal", "time")},
        "mode": where.mode,
        **stamp(where.now, "ts_utc"),
    }
    return HashSet(where.keys.attribution(symbol), fields, where.settings.of(AttributionOptions).attribution_ttl_s)


def efficiency(where: Where, symbol: str, score: float, confidence: float) -> Effect:
    """A symbol's efficiency.

    Args:
        where: how it is written.
        symbol: the symbol.
        score: 0..1.
        confidence: 0..1.
    """
    fields = {
        "efficiency_score": number(score),
        "efficiency_raw": number(score),
        "efficiency_ewma": number(score),
        "capital_pressure": pressure(score, confidence, 0.0).value,
        "reallocation_weight": number(reallocation_weight(score, confidence)),
        "confidence": number(confidence),
        "inputs_ok": "1",
        "stale_flags": "",
        "p30_perf": number(score),
        "p30_conf": number(confidence),
        "p29_target_usd": "",
        "volatility_ewma": "0.0",
        "dd_proxy": "0.0",
        "hold_time_penalty": "0.0",
        "lane": "shadow" if where.shadow else "live",
        "mode": where.mode,
        "ts": stamp(where.now)["ts"],
        "version": EFFICIENCY_RULES,
    }
    return HashSet(where.keys.efficiency(symbol), fields, where.settings.of(EfficiencyOptions).key_ttl_s)


def regime(where: Where, name: str, confidence: float) -> Effect:
    """An entry of the regime stream.

    Args:
        where: how it is written.
        name: TREND, MEAN_REVERSION, CHOP, NEUTRAL or another word.
        confidence: 0..1.
    """
    fields = {"regime": name, "confidence": number(confidence), **stamp(where.now), **ORIGIN}
    return where.add(where.live.stream("regime.state"), fields)


def market(where: Where, symbol: str, price_usd: float) -> Effect:
    """A symbol's market state.

    Args:
        where: how it is written.
        symbol: the symbol.
        price_usd: USD.
    """
    return HashSet(where.live.market(symbol), {"price": number(price_usd), **stamp(where.now)})


def position(where: Where, symbol: str, qty: float, mark_usd: float) -> Effect:
    """A symbol's position.

    Args:
        where: how it is written.
        symbol: the symbol.
        qty: signed.
        mark_usd: USD.
    """
    fields = {
        "position_amt": number(qty),
        "entry_price": number(mark_usd),
        "mark_price": number(mark_usd),
        "unrealized_pnl": "0.0",
        "leverage": "1",
    }
    return HashSet(where.live.position(symbol), {**fields, **stamp(where.now, "ts_epoch")})


def portfolio(where: Where, equity_usd: float, notional_usd: float, count: int) -> Effect:
    """The portfolio.

    Args:
        where: how it is written.
        equity_usd: USD.
        notional_usd: of all positions, USD.
        count: of positions.
    """
    fields = {
        "equity_usd": number(equity_usd),
        "balance_usd": number(equity_usd),
        "unrealized_pnl_usd": "0.0",
        "positions_notional_usd": number(notional_usd),
        "positions_count": str(count),
        "peak_equity_usd": number(equity_usd),
        "drawdown": "0.0",
        "source": "inject",
    }
    told = {**fields, **stamp(where.now), "ts_utc": stamp(where.now)["ts"]}
    return HashSet(where.live.portfolio, told, PORTFOLIO_TTL_S)


def transfer(where: Where, usd: float) -> Effect:
    """Money paid into the paper account.

    Args:
        where: how it is written.
        usd: below 0 where it is paid out.
    """
    return where.add(where.live.transfers, {"usd": number(usd), **stamp(where.now), **ORIGIN})


def plan_fields(symbol: str, now: float, told: Mapping[str, Any]) -> dict[str, str]:
    """The fields of a plan, its id made from the rest where none is told.

    Args:
        symbol: the symbol.
        now: its time, unix seconds.
        told: plan_id, action, decision, side, qty, price, kill_score, reduce_only.
    """
    price = {} if told["price"] is None else {"price": number(told["price"])}
    closes = told["reduce_only"] or told["action"] in CLOSING_SHARE
    side = {"side": told["side"] or "BUY"} if told["side"] or not closes else {}
    fields = {
        "symbol": symbol,
        "action": told["action"],
        "decision": told["decision"],
        **side,
        "qty": number(told["qty"]),
        "kill_score": number(told["kill_score"]),
        **price,
        **({"reduceOnly": "true"} if told["reduce_only"] else {}),
    }
    content = json.dumps({**fields, "now": now}, sort_keys=True).encode()
    return {"plan_id": told["plan_id"] or f"inject-{hashlib.sha256(content).hexdigest()[:16]}", **fields}


def plan(where: Where, fields: Mapping[str, str]) -> Effect:
    """An entry of the plan stream.

    Args:
        where: how it is written.
        fields: plan_id, symbol, action, decision, side, qty, kill_score and what else is told.
    """
    return where.add(where.settings.common.plans_stream, {**fields, **stamp(where.now), **ORIGIN})
