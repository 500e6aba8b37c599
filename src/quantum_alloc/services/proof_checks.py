"""The checks of a running installation: one table, from facts to results.

    CHECKS                  id, groups, what it holds, and its judge: a pure function
    judged(facts, groups)   every check of some groups

A judge that has nothing to look at has not proven anything: its check fails.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quantum_alloc.services import proof_agree as agree
from quantum_alloc.services import proof_conduct as conduct
from quantum_alloc.services import proof_inputs as inputs
from quantum_alloc.services import proof_permits as permits
from quantum_alloc.services import proof_records as records
from quantum_alloc.services import proof_services as services
from quantum_alloc.services.proof import GROUPS, Result
from quantum_alloc.services.proof_seen import Facts
from quantum_alloc.services.proof_services import Judge

NOTHING = "there was nothing to look at"
EVERY = tuple(GROUPS)
WRITES = ("allocation", "efficiency")
CHAIN = ("allocation", "efficiency", "proposer")


@dataclass(frozen=True, slots=True)
class Check:
    """One check.

    Attributes:
        id: as results tell it.
        groups: that it belongs to.
        meaning: what holds where it passes.
        judge: facts and group to findings.
    """

    id: str
    groups: tuple[str, ...]
    meaning: str
    judge: Judge


CHECKS: tuple[Check, ...] = (
    Check("up", EVERY, "each service answers on its port, as itself, in two looks", services.up),
    Check("ready", EVERY, "each has reached Redis and finished a cycle", services.ready),
    Check("on-time", EVERY, "no loop is late", services.on_time),
    Check("one-version", EVERY, "all are of the version of this program", services.one_version),
    Check("one-configuration", EVERY, "all their records are of their parameters and mode", agree.one_configuration),
    Check("modes", EVERY, "each mode variable was understood, page and metric tell one mode", services.modes),
    Check("one-clock", EVERY, "services and Redis agree on the time", services.one_clock),
    Check("metrics-there", EVERY, "every metric of the docs is told of, and no other", services.metrics_there),
    Check("metrics-moving", EVERY, "each finishes cycles between two looks", services.metrics_moving),
    Check("clean-logs", EVERY, "no ERROR within an hour, none while it looks", conduct.clean_logs),
    Check("not-blind", EVERY, "nothing that is armed decides without real data", conduct.not_blind),
    Check("streams", EVERY, "the newest entries are what the registry says", records.streams),
    Check("streams-moving", CHAIN, "what has an entry a cycle has one of now", records.streams_moving),
    Check("keys", EVERY, "keys are what the registry says, in kind and fields", records.keys),
    Check("ttl", EVERY, "what expires has an expiry, what stays has none", records.ttl),
    Check("recompute", EVERY, "the newest records are made again, bit for bit", agree.recompute),
    Check("confidence", CHAIN, "confidences, scores and factors are within their ranges", records.shares),
    Check("hashes-agree", CHAIN, "hashes say what their records say", agree.hashes_agree),
    Check("inputs-fresh", EVERY, "each input that there must be is there and fresh", inputs.inputs_fresh),
    Check("shadow", WRITES, "a service in shadow writes no live hash", conduct.shadow_writes_nothing),
    Check("budgets", ("allocation",), "each symbol has a fresh budget above 0", inputs.budgets),
    Check("cycle-complete", ("allocation",), "cycles have a decision for each target", agree.cycle_complete),
    Check("caps", ("allocation",), "targets and groups are within their share of equity", agree.caps),
    Check("server", ("allocation", "governor"), "the server lacks nothing critical", permits.server),
    Check("kill-switch", ("governor",), "it is off and not latched", permits.kill_off),
    Check("plans-answered", ("governor",), "each plan to execute has its answer", permits.plans_answered),
    Check("permits", ("governor",), "permits and fills agree, each fill has a permit", permits.permits_reconcile),
    Check("ledger", ("governor",), "the OPS ledger's chain is whole", permits.ledger),
)
"""In the order in which they are shown."""


def due(groups: Sequence[str]) -> list[tuple[str, str]]:
    """Group and id of every check of some groups.

    Args:
        groups: of ``GROUPS``.
    """
    return [(group, check.id) for group in groups for check in CHECKS if group in check.groups]


def judged(facts: Facts, groups: Sequence[str]) -> list[Result]:
    """Every check of some groups.

    Args:
        facts: what was read.
        groups: of ``GROUPS``.
    """
    found = []
    for group in groups:
        for check in (c for c in CHECKS if group in c.groups):
            told = check.judge(facts, group) or [services.Finding("-", False, NOTHING)]
            found += [Result(group, check.id, t.case, t.ok, t.detail, t.needed) for t in told]
    return found
