"""What the governor answers: a permit or a block with every gate behind it, or that the id has its answer already."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from quantum_alloc.core.downsize import Hint
from quantum_alloc.core.gates import Checked
from quantum_alloc.core.governor_inputs import Answer, Inputs
from quantum_alloc.core.limits import Issued
from quantum_alloc.core.plan import Movement, Plan, Side
from quantum_alloc.core.table import Explained


@dataclass(frozen=True, slots=True)
class Permit(Explained):
    """An order may go out.

    Attributes:
        inputs: what it was made from.
        checks: what each gate said, in the order of ``GATES``.
        movement: which limits count it.
        side: of the order; None where it is not known.
        computed_qty: quantity.
        computed_notional_usd: USD; 0 where no price is known.
        is_priced: False where no price is known.
        hint: for the apply layer.
        decision_id: made of its content.
    """

    inputs: Inputs
    checks: tuple[Checked, ...]
    movement: Movement
    side: Side | None
    computed_qty: float
    computed_notional_usd: float
    is_priced: bool
    hint: Hint
    decision_id: str

    @property
    def plan(self) -> Plan:
        """The plan that it answers."""
        return self.inputs.plan

    @property
    def answer(self) -> Answer:
        """What its tombstone keeps."""
        return Answer("PERMIT", "ok", self.plan.content, self.decision_id)

    @property
    def issued(self) -> Issued:
        """What it adds to the ledger, at the decision's clock."""
        closed = 0.0 if self.is_priced or self.movement is Movement.OPEN else self.computed_qty
        return Issued(self.inputs.now_us, self.movement, self.computed_notional_usd, closed)


@dataclass(frozen=True, slots=True)
class Block(Explained):
    """An order may not go out.

    Attributes:
        inputs: what it was made from.
        checks: what each gate said, in the order of ``GATES``.
        gate: number of the first gate that blocks.
        reason: of that gate.
        observed: what it looked at.
        limit: what that was held against.
        retry_after_s: seconds after which time alone would lift it; None where it would not.
        disarms: True where it sets the kill switch to reduce.
        decision_id: made of its content.
        detail: what is wrong with a bad plan, for people.
    """

    inputs: Inputs
    checks: tuple[Checked, ...]
    gate: str
    reason: str
    observed: float | None
    limit: float | None
    retry_after_s: float | None
    disarms: bool
    decision_id: str
    detail: str = ""

    @property
    def plan(self) -> Plan:
        """The plan that it answers."""
        return self.inputs.plan

    @property
    def answer(self) -> Answer:
        """What its tombstone keeps."""
        return Answer("BLOCK", self.reason, self.plan.content, self.decision_id)


@dataclass(frozen=True, slots=True)
class Replay(Explained):
    """The plan has its answer already.

    Attributes:
        plan: the plan.
        answer: the first one.
        now_us: the decision's clock, microseconds.
    """

    plan: Plan
    answer: Answer
    now_us: int

    @property
    def reason(self) -> str:
        """That of the first answer."""
        return self.answer.reason


@dataclass(frozen=True, slots=True)
class Conflict(Explained):
    """The id was given to something else: there is no permit.

    Attributes:
        plan: the plan.
        reason: other_content, answer_unreadable, permit_exists.
        now_us: the decision's clock, microseconds.
    """

    plan: Plan
    reason: str
    now_us: int


@dataclass(frozen=True, slots=True)
class Undecided(Explained):
    """A step that failed, or one that must wait for it.

    Attributes:
        plan: the plan.
        failed: True where its own step did.
    """

    plan: Plan
    failed: bool


Decision: TypeAlias = Permit | Block | Replay | Conflict | Undecided
