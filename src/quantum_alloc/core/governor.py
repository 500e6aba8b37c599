"""The governor (step 2): one answer for every plan, with the whole gate vector behind it.

    decide_batch(plans, snapshot) -> decisions      a fold in stream order, pure

Every gate is evaluated for every plan; the verdict is the first that blocks and is enforced, in the order of
``governor_params.GATES``. A permit enters the ledger and the book before the next plan is decided, a burst of opens
sets the kill switch to REDUCE_ONLY for those after it, and a second copy of an id gets the first one's answer. A block
uses nothing up. The first answer to an id is final: the same content gets it again, other content is a conflict.

Source: the project's governor, sections 1 and 2.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial

from quantum_alloc.core.downsize import downsize
from quantum_alloc.core.gates import NOT_APPLICABLE, ROWS, Checked, Facts, Outcome, facts
from quantum_alloc.core.governor_inputs import NOTHING_READ, Answer, Holding, Inputs, Kill, Snapshot, Totals
from quantum_alloc.core.governor_params import DEFAULTS, GATES, GovernorParams, Scope
from quantum_alloc.core.isolate import Attempt, plainly
from quantum_alloc.core.limits import (
    US,
    Booked,
    Issued,
    Outstanding,
    Usage,
    is_released,
    usage,
)
from quantum_alloc.core.plan import Movement, Plan
from quantum_alloc.core.reading import Fresh, Reading, Reason, Unusable
from quantum_alloc.core.verdicts import Block, Conflict, Decision, Permit, Replay, Undecided

BURST = "burst_limit_exceeded"


_BLOCK = Outcome.BLOCK
_TROUBLED, _OPENING, _CLOSING = (
    tuple((gate, check if i < 2 or gate.scope in scopes else None) for i, (gate, check) in enumerate(ROWS))
    for scopes in ((), (Scope.ALL, Scope.OPENS), (Scope.ALL, Scope.CLOSES))
)


def check_all(inputs: Inputs, params: GovernorParams) -> tuple[tuple[Checked, ...], Facts | None]:
    """What every gate says, in order, before modes: the whole vector, and what it was made from.

    Args:
        inputs: of one plan.
        params: the numbers of the governor.
    """
    if inputs.plan.flaw:
        kill = NOT_APPLICABLE
        if inputs.kill is not Kill.OFF:
            kill = Checked(Outcome.BLOCK, "kill_switch_active" if inputs.kill is Kill.HALT else "reduce_only")
        bad = Checked(Outcome.BLOCK, "bad_plan")
        return (kill, bad, *[NOT_APPLICABLE] * (len(GATES) - 2)), None
    f = facts(inputs, params)
    checks = []
    for gate, check in _TROUBLED if f.order.trouble else _CLOSING if f.order.reduces else _OPENING:
        if check is None:
            checks.append(NOT_APPLICABLE)
            continue
        made = check(f, params)
        if made.outcome is _BLOCK and not params.enforces(gate):
            made = made._replace(outcome=Outcome.WOULD_BLOCK)
        checks.append(made)
    return tuple(checks), f


def _decision_id(inputs: Inputs, verdict: str, reason: str) -> str:
    parts = (inputs.plan.plan_id, inputs.plan.content, str(inputs.now_us), verdict, reason)
    return hashlib.sha256("\x1f".join(parts).encode("utf-8", "backslashreplace")).hexdigest()[:16]


def _detail(inputs: Inputs, f: Facts | None) -> str:
    return (
        inputs.plan.flaw or (f.order.detail if f is not None else "") or "timestamp: it is ahead of the server's clock"
    )


def evaluate(inputs: Inputs, params: GovernorParams | None = None) -> Permit | Block:
    """One plan's verdict from everything that it hangs on.

    Args:
        inputs: of the plan.
        params: the numbers of the governor.

    >>> from quantum_alloc.core.plan import Side
    >>> plan = Plan("p1", "BTCUSDT", "ENTRY", 0.0, Side.BUY, qty=0.001, price_usd=90_000.0, kill_score=0.1)
    >>> evaluate(Inputs(plan, now_us=1)).reason
    'position_unknown'
    """
    p = params or DEFAULTS
    checks, f = check_all(inputs, p)
    blocking = [(gate, check) for gate, check in zip(GATES, checks, strict=True) if check.outcome is _BLOCK]
    if blocking or f is None:
        gate, first = blocking[0]
        retries = [check.retry_us for _, check in blocking]
        known = [r for r in retries if r is not None]
        retry_s = (max(known) - inputs.now_us) / US if len(known) == len(retries) else None
        is_burst = first.reason == BURST and f is not None and f.is_open
        return Block(
            inputs,
            checks,
            gate.number,
            first.reason,
            first.observed,
            first.limit,
            retry_s,
            p.disarm_on_burst and is_burst,
            _decision_id(inputs, "BLOCK", first.reason),
            _detail(inputs, f) if first.reason == "bad_plan" else "",
        )
    return Permit(
        inputs,
        checks,
        f.order.movement,
        f.order.side,
        f.order.qty,
        f.notional_usd if f.notional_usd is not None else 0.0,
        f.notional_usd is not None,
        downsize(inputs.efficiency, p.hint),
        _decision_id(inputs, "PERMIT", "ok"),
    )


def released(snapshot: Snapshot) -> tuple[str, ...]:
    """Plan ids of the outstanding opens that no longer count.

    Args:
        snapshot: what was read.
    """
    return tuple(one.plan_id for one in snapshot.book or () if not _counts(one, snapshot))


def _counts(one: Outstanding, snapshot: Snapshot) -> bool:
    position = snapshot.symbols.get(one.symbol, NOTHING_READ).position
    return not is_released(one, snapshot.now_us, position, snapshot.totals)


def known_position(position: Reading[Holding], totals: Reading[Totals]) -> Reading[Holding]:
    """A position as the gates see it: one that is not there while the portfolio is fresh is flat.

    Args:
        position: as read.
        totals: of all positions.

    >>> known_position(Unusable(Reason.MISSING), Fresh(Totals(0.0, 0), 5.0, 1)).value
    Holding(qty=0.0, mark_usd=None)
    """
    absent = isinstance(position, Unusable) and position.reason is Reason.MISSING
    if absent and isinstance(totals, Fresh):
        return Fresh(Holding(0.0), totals.ts, totals.age_s)
    return position


@dataclass(slots=True)
class _Fold:
    """What changes from plan to plan of a batch."""

    snapshot: Snapshot
    params: GovernorParams
    kill: Kill
    booked: Booked | None
    answers: dict[str, Answer]
    usage: dict[str, Usage | None] = field(default_factory=dict)
    issued: dict[str, list[Issued]] = field(default_factory=dict)
    waiting: set[str] = field(default_factory=set)

    def inputs(self, plan: Plan) -> Inputs:
        """Everything that one plan's verdict is made from, as it stands now."""
        s = self.snapshot
        of = s.symbols.get(plan.symbol, NOTHING_READ)
        if plan.symbol not in self.usage:
            self.issued[plan.symbol] = [] if of.ledger is None else list(of.ledger.issued.values())
            self.usage[plan.symbol] = None if of.ledger is None else usage(self.issued[plan.symbol], s.now_us)
        return Inputs(
            plan,
            s.now_us,
            self.kill,
            s.hold,
            s.hold_until_us,
            known_position(of.position, s.totals),
            of.market_usd,
            of.target,
            of.budget,
            of.violation_usd,
            self.usage[plan.symbol],
            s.totals,
            None if self.booked is None else self.booked.use(plan.symbol),
            of.efficiency,
            of.eff_lane,
        )

    def step(self, plan: Plan) -> Decision:
        """One plan; its answer counts for those after it."""
        if plan.plan_id in self.snapshot.taken:
            return Conflict(plan, "permit_exists", self.snapshot.now_us)
        first = self.answers.get(plan.plan_id)
        if first is not None:
            if not first.verdict:
                return Conflict(plan, "answer_unreadable", self.snapshot.now_us)
            if first.content != plan.content:
                return Conflict(plan, "other_content", self.snapshot.now_us)
            return Replay(plan, first, self.snapshot.now_us)
        made = evaluate(self.inputs(plan), self.params)
        self.answers[plan.plan_id] = made.answer
        if isinstance(made, Permit):
            self._enter(made)
        elif made.disarms:
            self.kill = Kill.REDUCE_ONLY
        return made

    def _enter(self, made: Permit) -> None:
        symbol, now_us = made.plan.symbol, self.snapshot.now_us
        self.issued[symbol].append(made.issued)
        self.usage[symbol] = usage(self.issued[symbol], now_us)
        if made.movement is Movement.OPEN and self.booked is not None:
            until = now_us + self.params.permit_ttl_s * US
            self.booked.add(Outstanding(made.plan.plan_id, symbol, made.computed_notional_usd, now_us, until))


def decide_batch(
    plans: Iterable[Plan],
    snapshot: Snapshot,
    params: GovernorParams | None = None,
    attempt: Attempt = plainly,
) -> tuple[Decision, ...]:
    """The answers to some plans, in their order.

    Args:
        plans: in the order of the stream.
        snapshot: what was read for them.
        params: the numbers of the governor.
        attempt: how one plan's step is run (``core.isolate``); after one that fails nothing of its symbol or its id
            is decided.
    """
    p = params or DEFAULTS
    held = {s: isinstance(of.position, Fresh) and of.position.value.qty != 0.0 for s, of in snapshot.symbols.items()}
    book = None
    if snapshot.book is not None:
        book = Booked((one for one in snapshot.book if _counts(one, snapshot)), held)
    fold = _Fold(snapshot, p, snapshot.kill, book, dict(snapshot.answers))
    decisions: list[Decision] = []
    for plan in plans:
        if fold.waiting and fold.waiting & {f"symbol {plan.symbol}", f"id {plan.plan_id}"}:
            decisions.append(Undecided(plan, failed=False))
            continue
        made = attempt(plan.symbol, partial(fold.step, plan))
        if made is None:
            fold.waiting |= {f"symbol {plan.symbol}", f"id {plan.plan_id}"}
        decisions.append(Undecided(plan, failed=True) if made is None else made)
    return tuple(decisions)


def decide(plan: Plan, snapshot: Snapshot, params: GovernorParams | None = None) -> Decision:
    """The answer to one plan.

    Args:
        plan: the plan.
        snapshot: what was read for it.
        params: the numbers of the governor.

    >>> from quantum_alloc.core.reading import fresh
    >>> from quantum_alloc.core.plan import Side
    >>> plan = Plan("p1", "BTCUSDT", "ENTRY", 0.0, Side.BUY, qty=0.002, price_usd=90_000.0, kill_score=0.1)
    >>> made = decide(plan, Snapshot(now_us=0, totals=fresh(Totals(0.0, 0))))
    >>> made.computed_notional_usd, made.hint.reason.value
    (180.0, 'missing_eff')
    """
    return decide_batch((plan,), snapshot, params)[0]
