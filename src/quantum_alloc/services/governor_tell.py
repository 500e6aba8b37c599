"""The governor's metrics and its log line, read off what became of a cycle's answers."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Protocol

from quantum_alloc.adapters import plans
from quantum_alloc.adapters.commit import Basis
from quantum_alloc.adapters.intake import Intake
from quantum_alloc.adapters.metrics import OTHER, Metrics
from quantum_alloc.core.gates import Checked, Outcome
from quantum_alloc.core.governor_inputs import Kill, SymbolSnapshot
from quantum_alloc.core.governor_params import GATES, GovernorParams
from quantum_alloc.core.limits import BURST_S, HOUR_S, US
from quantum_alloc.core.stability import ClockState
from quantum_alloc.core.vacuity import is_real
from quantum_alloc.core.verdicts import Block, Conflict, Decision, Permit, Replay
from quantum_alloc.services.governor_headroom import Headroom
from quantum_alloc.services.governor_keeper import Keeper
from quantum_alloc.services.logs import NAMED, Case, Fields, changed, few, say
from quantum_alloc.services.loop import Told
from quantum_alloc.services.vacuity import GATE, Watch, values_of

log = logging.getLogger("quantum_alloc.governor")
SYMBOLS_MAX = 10_000
IDS = tuple(gate.gate for gate in GATES)
CAP = IDS.index("0.5")
NAMES = {**{gate.gate: gate.name for gate in GATES}, "4": "position caps"}
"""A block names gate 4 as a whole."""
REFUSED_OFTEN = 10
"""From so many commits in a row that wrote nothing on, it is told."""


class Governed(Protocol):
    """What the tally looks at."""

    keeper: Keeper
    intake: Intake

    @property
    def clock(self) -> ClockState:
        """What is remembered of the clocks."""
        ...

    @property
    def settled(self) -> list[Decision | plans.BadId | plans.NotGoverned | None]:
        """Answers that stand now."""
        ...

    @property
    def moved(self) -> int:
        """Answers that are decided again."""
        ...

    @property
    def refused(self) -> str:
        """Empty, or why the commit wrote nothing."""
        ...


class Tally:
    """Counts a governor's answers."""

    def __init__(self, metrics: Metrics, params: GovernorParams) -> None:
        """Start at nothing."""
        self._m, self._params = metrics, params
        self._headroom = Headroom(metrics, params, SYMBOLS_MAX)
        enforced = [gate.gate for gate in GATES if params.enforces(gate)]
        limits = {"0": "budget", "0.5": "target"}
        unused = [name for gate, name in limits.items() if gate not in enforced]
        self._watch = Watch(metrics, params.apply_mode, gates=enforced, unused=unused)
        self._permits_us: dict[str, list[int]] = {}
        self._factors: dict[str, float] = {}
        self._kill, self._hold = Kill.OFF, ""
        self._missed = self._vain = 0
        self._counted_us = 0
        self._said: Counter[tuple[str, tuple[Outcome, str]]] = Counter()

    def tell(self, basis: Basis, g: Governed) -> Told:
        """Metrics of a cycle, and its line; an idle cycle has none.

        Args:
            basis: what was decided on.
            g: the governor.
        """
        found: Counter[str] = Counter()
        permits: list[str] = []
        blocks: list[Case] = []
        for answer in g.settled:
            found[self._answer(answer)] += 1
            if isinstance(answer, Permit):
                permits.append(answer.plan.symbol)
            elif isinstance(answer, Block):
                blocks.append(_case(answer))
        self._gates(basis.snapshot.now_us / US)
        for result, n in found.items():
            self._m.add("quantum_alloc_plans_total", result, amount=n)
        self._inputs(basis, g)
        self._watch.tell(basis.snapshot.now_us / US)
        self._headroom.tell(basis.snapshot.now_us)
        self._gauges(basis, g)
        self._say(basis, g)
        self._vain = self._vain + 1 if g.refused else 0
        nothing = f"the commit is refused: {g.refused}" if self._vain >= REFUSED_OFTEN else ""
        if not g.settled and not g.moved:
            return Told("", nothing)
        fields: Fields = {"plans": len(g.settled)}
        fields.update(dict(sorted(found.items())))  # type: ignore[typeddict-item]  # results of _answer
        if g.moved:
            fields["moved"] = g.moved
        if permits:
            fields["permitted"] = few(list(dict.fromkeys(permits)))
        if blocks:
            fields["blocked"] = blocks[:NAMED]
        fields["mode"] = self._params.apply_mode
        return Told("Governor batch complete", nothing, fields)

    def _answer(self, answer: Decision | plans.BadId | plans.NotGoverned | None) -> str:
        if isinstance(answer, (Permit, Block)):
            self._verdict(answer)
            return "permit" if isinstance(answer, Permit) else "block"
        if isinstance(answer, Replay):
            return "replay"
        if isinstance(answer, Conflict):
            return "conflict"
        if isinstance(answer, plans.BadId):
            return "bad_id"
        return "not_governed" if isinstance(answer, plans.NotGoverned) else "dead_letter"

    def _verdict(self, made: Permit | Block) -> None:
        m, symbol = self._m, OTHER if made.plan.flaw else made.plan.symbol
        self._said.update(zip(IDS, [c[:2] for c in made.checks], strict=True))
        check = made.checks[CAP]
        if check.outcome is not Outcome.NOT_APPLICABLE:
            m.add("gov_p29_checked_total", symbol)
            if check.reason in ("missing", "stale"):
                m.add(f"gov_p29_{check.reason}_total", symbol)
        if isinstance(made, Permit):
            m.add("quantum_govern_allow_total", symbol)
            m.add("p32_eff_apply_total", made.hint.action.value, made.hint.reason.value)
            if symbol in self._factors or len(self._factors) < SYMBOLS_MAX:
                self._factors[symbol] = made.hint.factor
        self._count(symbol, made)
        if not made.plan.flaw:
            self._headroom.see(made)
        if isinstance(made, Permit):
            return
        m.add("quantum_govern_block_total", symbol, made.reason)
        m.add("quantum_alloc_blocks_total", made.reason)
        if made.gate == "0.5":
            m.add("gov_p29_block_total", symbol)
        if made.disarms:
            m.add("quantum_govern_disarm_total", made.reason)
            told: Fields = {"symbol": made.plan.symbol, "reason": made.reason}
            text = f"auto-disarm: a burst of opens of {made.plan.symbol} sets the kill switch to reduce"
            say(log, logging.WARNING, "kill_switch", text, told)
        if log.isEnabledFor(logging.DEBUG):
            case = _case(made)
            text = f"plan {made.plan.plan_id} of {made.plan.symbol} is blocked by {case['gate']}: {made.reason}"
            say(log, logging.DEBUG, "decision", text, case)

    def _gates(self, now: float) -> None:
        """What the gates said of the plans of a cycle, and whether they said it on real data."""
        looks: Counter[str] = Counter()
        real: Counter[str] = Counter()
        for (gate, (outcome, reason)), n in self._said.items():
            self._m.add("quantum_alloc_gate_outcomes_total", gate, outcome.value, reason, amount=n)
            is_known = is_real(Checked(outcome, reason))
            if is_known is not None:
                looks[gate] += n
                real[gate] += n * is_known
        for gate, n in looks.items():
            self._watch.look(now, GATE, gate, n, real[gate])
        self._said.clear()

    def _count(self, symbol: str, made: Permit | Block) -> None:
        """What the ledger has counted of a symbol, whoever permitted it."""
        use = made.inputs.usage
        if use is None or made.plan.flaw or not (symbol in self._permits_us or len(self._permits_us) < SYMBOLS_MAX):
            return
        times = [*use.opens_us, *use.closes_us]
        if isinstance(made, Permit):
            times.append(made.inputs.now_us)
        if times:
            self._permits_us[symbol] = times

    def _inputs(self, basis: Basis, g: Governed) -> None:
        """What was read for the plans that have their answer; of other symbols of the book only the position was."""
        s = basis.snapshot
        asked = {a.plan.symbol for a in g.settled if isinstance(a, (Permit, Block, Replay, Conflict))}
        own: dict[str, SymbolSnapshot] = {symbol: s.symbols[symbol] for symbol in sorted(asked & s.symbols.keys())}
        if not own:
            return
        looked: Counter[tuple[str, str]] = Counter({("portfolio", s.totals.state): 1})
        for one in own.values():
            looked["position", one.position.state] += 1
            looked["market", one.market_usd.state] += 1
            looked["target", one.target.state] += 1
            looked["budget", one.budget.state] += 1
            looked["violation", one.violation_usd.state] += 1
            looked["efficiency", one.efficiency.state] += 1
        values = {
            "portfolio": values_of({"": s.totals}),
            "market": values_of({symbol: one.market_usd for symbol, one in own.items()}),
            "target": values_of({symbol: one.target for symbol, one in own.items()}),
            "budget": values_of({symbol: one.budget for symbol, one in own.items()}),
            "efficiency": values_of({symbol: one.efficiency for symbol, one in own.items()}),
        }
        self._watch.inputs(s.now_us / US, looked, values)

    def _gauges(self, basis: Basis, g: Governed) -> None:
        m, s = self._m, basis.snapshot
        m.set("quantum_alloc_plans_waiting", g.intake.waiting)
        m.add("quantum_alloc_plans_moved_total", amount=g.moved)
        for state in Kill:
            m.set("quantum_alloc_kill_state", float(s.kill is state), state.value)
        m.set("quantum_alloc_kill_latched", float(g.keeper.latch.latch is not None or basis.latch != "-"))
        for reason in ("recovery_hold", "clock_unstable"):
            m.set("quantum_alloc_hold", float(s.hold == reason), reason)
        m.set("quantum_alloc_clock_skew_seconds", g.clock.skew_us / US)
        for name, total in (
            ("quantum_alloc_plans_missed_total", g.intake.missed),
            ("quantum_alloc_plan_groups_made_total", g.intake.groups_made),
            ("quantum_alloc_store_epoch_changes_total", g.keeper.changes),
            ("quantum_alloc_permits_restored_total", g.keeper.restored),
        ):
            m.add(name, amount=total - m.value(name))
        if any(isinstance(a, Permit) for a in g.settled) or abs(s.now_us - self._counted_us) >= US:
            self._counted_us = s.now_us
            self._windows(s.now_us)

    def _windows(self, now_us: int) -> None:
        """What each symbol has used of its windows; once a second is enough."""
        m = self._m
        for symbol, times in self._permits_us.items():
            self._permits_us[symbol] = [at for at in times if at > now_us - HOUR_S * US]
        for name, window_s in (("hour", HOUR_S), ("5min", BURST_S)):
            since = now_us - window_s * US
            counts = {symbol: float(sum(at > since for at in times)) for symbol, times in self._permits_us.items()}
            m.replace(f"quantum_govern_exec_count_{name}", counts)
        m.replace("p32_eff_factor", self._factors)

    def _say(self, basis: Basis, g: Governed) -> None:
        """States are logged when they change, and what is lost when it is."""
        s = basis.snapshot
        if s.kill is not self._kill:
            text = f"the kill switch is {s.kill.value}"
            changed(log, logging.WARNING, text, "kill_switch", self._kill.value, s.kill.value)
        if s.hold != self._hold:
            text = f"opens are held back: {s.hold}" if s.hold else "opens are held back no more"
            changed(log, logging.WARNING, text, "hold", self._hold or "ok", s.hold or "ok")
        self._kill, self._hold = s.kill, s.hold
        lost = g.intake.missed - self._missed
        if lost > 0:
            text = f"{lost} plans were gone from the stream before anybody answered them"
            say(log, logging.WARNING, "fault", text, {"count": lost})
        self._missed = g.intake.missed


def _case(made: Block) -> Case:
    """A block as lines tell it."""
    gate = "P2.9 allocation" if made.gate == "0.5" else f"gate {made.gate} ({NAMES[made.gate]})"
    return {"symbol": made.plan.symbol, "plan_id": made.plan.plan_id, "gate": gate, "reason": made.reason}
