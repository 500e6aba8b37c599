"""What ``demo --drill`` adds: a burst with its disarm, a kill with its rearm, and a balance shock.

    55 % of the bars   a burst: small opens of the symbol with the most room, one a minute and two in the first,
                       until the governor disarms itself; REDUCE_ONLY for 10 bars, an open in it, then off again
    70 %               `kill halt`, and an open; 5 bars later off, and a rearm
    80 %               8 % of the equity is paid out, which is a drawdown of the zone MID; for 3 bars an open that
                       would go beyond its symbol's new target is proposed

The drill writes plans, the kill switch and a transfer as strategies and operators do, and nothing else. It stamps with
the demo's clock, so that the same candles and seed give the same records. Source: the project's governor, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass

from quantum_alloc.adapters import codec
from quantum_alloc.adapters.effects import Reply, StreamAdd
from quantum_alloc.adapters.keys import Keys
from quantum_alloc.adapters.store import Store, StoreError
from quantum_alloc.adapters.writes import stamp
from quantum_alloc.core.fields import number
from quantum_alloc.core.limits import US
from quantum_alloc.services import kill_switch

BARS_MIN = 120
BURST_AT, KILL_AT, SHOCK_AT = 0.55, 0.70, 0.80
BURST_USD = 20.0
BURST_EVERY_S = 60.0
BURST_BARS, REDUCE_BARS, HALT_BARS, PROBE_BARS = 12, 10, 5, 3
SHOCK = 0.08
KILL_SCORE = 0.1
BY = "drill"


@dataclass(frozen=True, slots=True)
class Where:
    """Names that the drill writes to.

    Attributes:
        plans: stream of plans.
        events: the governor's stream of events.
        maxlen: about how many entries they keep.
        keys: of all else.
    """

    plans: str
    events: str
    maxlen: int
    keys: Keys


def _number(reply: Reply) -> float | None:
    return codec.number(reply) if isinstance(reply, bytes) else None


class Drill:
    """Acts at its bars.

    Attributes:
        said: what was done, a line each.
    """

    def __init__(self, store: Store, where: Where, symbols: tuple[str, ...], bars: int, bar_s: float) -> None:
        """Plan it.

        Args:
            store: where it writes.
            where: names.
            symbols: that there are.
            bars: of the whole run, at least ``BARS_MIN``.
            bar_s: length of a bar, seconds.
        """
        self._store, self._where, self._symbols = store, where, symbols
        self._burst, self._kill, self._shock = (round(bars * share) for share in (BURST_AT, KILL_AT, SHOCK_AT))
        self._every = max(1, -int(-BURST_EVERY_S // bar_s))
        self._symbol = ""
        self._off_at = 0
        self.said: list[str] = []

    def act(self, bar: int, now: float) -> None:
        """Do what is due.

        Args:
            bar: how many there were with this one.
            now: the demo's clock, unix seconds.

        Raises:
            StoreError: the server does not answer.
        """
        self._at_burst(bar, now)
        if bar == self._kill:
            self._switch("halt", now)
            self.said.append(f"bar {bar}: kill halt, and closes are blocked too")
            self._open("drill-halt", self._symbols[0], BURST_USD, now)
        if bar == self._kill + HALT_BARS:
            self._switch("off", now)
            moved = kill_switch.rearm(
                self._store, BY, "the drill is over", events=self._where.events, maxlen=self._where.maxlen,
                now_us=round(now * US), keys=self._where.keys,
            )  # fmt: skip
            self.said.append(f"bar {bar}: kill off, rearm{': ' + moved.trouble if moved.trouble else ''}")
        if bar == self._shock:
            self._pay_out(bar, now)
        if self._shock < bar <= self._shock + PROBE_BARS:
            self._probe(bar, now)

    def _at_burst(self, bar: int, now: float) -> None:
        since = bar - self._burst
        if since == 0:
            self._symbol = max(self._symbols, key=lambda s: (self._room_usd(s), s))
            self.said.append(f"bar {bar}: a burst of opens of {self._symbol}")
        kill = self._where.keys.kill
        disarmed = self._off_at == 0 and since >= 0 and self._store.read([("GET", kill)])[0] == b"reduce"
        if disarmed:
            self._off_at = bar + REDUCE_BARS
            self.said.append(f"bar {bar}: the governor has disarmed itself, only what reduces is permitted")
            self._open("drill-reduce", self._symbol, BURST_USD, now)
        if 0 <= since < BURST_BARS * self._every and since % self._every == 0 and not self._off_at:
            self._open(f"drill-burst-{since}", self._symbol, BURST_USD, now)
            if since == 0:
                self._open("drill-burst-again", self._symbol, BURST_USD, now)
        if since == BURST_BARS * self._every and not self._off_at:
            self.said.append(f"bar {bar}: no disarm: another gate blocks the burst, see the blocks by reason")
        if self._off_at and bar == self._off_at:
            self._switch("off", now)
            self.said.append(f"bar {bar}: kill off")

    def _switch(self, word: str, now: float) -> None:
        kill_switch.set_to(
            self._store, word, BY, "the drill", events=self._where.events, maxlen=self._where.maxlen,
            now_us=round(now * US), keys=self._where.keys,
        )  # fmt: skip

    def _pay_out(self, bar: int, now: float) -> None:
        equity = _number(self._store.read([("HGET", self._where.keys.portfolio, "equity_usd")])[0])
        if equity is None:
            raise StoreError("other", "the drill finds no equity to take its share of")
        usd = -SHOCK * equity
        fields = {"usd": number(usd), "by": BY, "why": "a balance shock", **stamp(now)}
        self._store.apply([(StreamAdd(self._where.keys.transfers, fields, self._where.maxlen),)])
        self.said.append(f"bar {bar}: {-usd:,.2f} USD are paid out, {SHOCK:.0%} of the equity")

    def _probe(self, bar: int, now: float) -> None:
        """An open that would go beyond its target, and not beyond its budget."""
        reach = {s: max(0.0, self._room_usd(s)) + BURST_USD for s in self._symbols if self._is_below_budget(s)}
        if reach:
            symbol = min(reach, key=lambda s: (reach[s], s))
            self._open(f"drill-probe-{bar - self._shock}", symbol, reach[symbol], now)

    def _is_below_budget(self, symbol: str) -> bool:
        k = self._where.keys
        fields = (k.target(symbol), "target_usd"), (k.budget(symbol), "budget_usd")
        target, budget = map(_number, self._store.read([("HGET", *field) for field in fields]))
        held = None if target is None else target - self._room_usd(symbol)
        return None not in (target, budget, held) and max(target or 0.0, held or 0.0) + BURST_USD < (budget or 0.0)

    def _room_usd(self, symbol: str) -> float:
        """Target less exposure, USD; 0 where either is not known."""
        k = self._where.keys
        target, qty, mark = map(_number, self._store.read(
            [
                ("HGET", k.target(symbol), "target_usd"),
                ("HGET", k.position(symbol), "position_amt"),
                ("HGET", k.position(symbol), "mark_price"),
            ]
        ))  # fmt: skip
        return 0.0 if target is None else target - abs((qty or 0.0) * (mark or 0.0))

    def _open(self, plan_id: str, symbol: str, usd: float, now: float) -> None:
        k = self._where.keys
        price, held = map(
            _number,
            self._store.read([("HGET", k.market(symbol), "price"), ("HGET", k.position(symbol), "position_amt")]),
        )
        if not price:
            return
        fields = {
            "plan_id": plan_id,
            "symbol": symbol,
            "action": "DRILL",
            "decision": "EXECUTE",
            "side": "SELL" if held is not None and held < 0.0 else "BUY",
            "qty": number(usd / price),
            "price": number(price),
            "kill_score": number(KILL_SCORE),
            "source": BY,
            **stamp(now),
        }
        self._store.apply([(StreamAdd(self._where.plans, fields, self._where.maxlen),)])
