"""Cases of the proposer: what it proposes for an efficiency that is high, low, missing, uncertain, old, and well.

What is due is worked out here from the installation's numbers, by the rule as it is written down, and for the numbers
of the contract from its worked examples. Source: the project's rules, section 5.
"""

from __future__ import annotations

from dataclasses import dataclass

from quantum_alloc.core import ProposalParams
from quantum_alloc.services import inject
from quantum_alloc.services.options import ProposerOptions
from quantum_alloc.services.proof import Result
from quantum_alloc.services.proof_bench import Bench, Lane
from quantum_alloc.services.proof_judging import NEAR, differences, judged, lives
from quantum_alloc.services.proof_settings import A

GROUP = "proposer"
BASE_USD = 1_000.0
WORKED = {0.0: 0.5, 0.2: 0.7, 0.5: 1.0, 0.6: 1.1, 0.9: 1.4, 1.0: 1.5}
"""Score to multiplier, by the contract's numbers."""
COPIED = (
    "symbol", "base_target", "proposed_target", "multiplier", "eff_score", "eff_confidence", "eff_stale", "reason",
)  # fmt: skip
"""What stands in the hash and in the stream alike."""


@dataclass(frozen=True, slots=True)
class Given:
    """An efficiency.

    Attributes:
        score: 0..1.
        confidence: 0..1.
        age_s: its age.
    """

    score: float
    confidence: float
    age_s: float = 0.0


def reason_of(given: Given | None, min_conf: float, stale_s: int) -> str:
    """Whether an efficiency counts, by the rule.

    Args:
        given: the efficiency; None for none.
        min_conf: smallest confidence that counts.
        stale_s: greatest age that counts.
    """
    if given is None:
        return "missing_eff"
    if given.age_s > stale_s:
        return "stale_eff"
    return "low_conf" if given.confidence < min_conf else "ok"


def multiplier_of(score: float, p: ProposalParams) -> float:
    """The multiplier of a score that counts, by the rule.

    Args:
        score: 0..1.
        p: the installation's numbers.
    """
    by_rule = p.base + p.scale * (score - 0.5)
    return p.min_mult if by_rule < p.min_mult else p.max_mult if by_rule > p.max_mult else by_rule


def put(lane: Lane, given: Given | None) -> None:
    """A base target and an efficiency, as P2.9 and P3.1 write them.

    Args:
        lane: where.
        given: the efficiency; None for none.
    """
    lane.target(A, BASE_USD)
    if given is not None:
        lane.put(inject.efficiency(lane.aged(given.age_s), A, given.score, given.confidence))


def due_of(given: Given | None, p: ProposalParams) -> dict[str, object]:
    """What the proposal is to say.

    Args:
        given: the efficiency; None for none.
        p: the installation's numbers.
    """
    reason = reason_of(given, p.min_conf, p.stale_s)
    multiplier = multiplier_of(given.score, p) if given is not None and reason == "ok" else 1.0
    return {
        "symbol": A,
        "reason": reason,
        "multiplier": f"{multiplier:.4f}",
        "base_target": BASE_USD,
        "proposed_target": BASE_USD * multiplier,
        "eff_stale": "1" if reason == "stale_eff" else "0",
        "eff_score": "" if given is None else given.score,
        "eff_confidence": "" if given is None else given.confidence,
        "mode": "shadow",
    }


def _of_contract(p: ProposalParams) -> bool:
    return (p.base, p.scale, p.min_mult, p.max_mult) == (1.0, 1.0, 0.5, 1.5)


def _case(bench: Bench, check: str, given: Given | None, reason: str) -> list[Result]:
    lane, options = bench.lane(check), bench.settings.of(ProposerOptions)
    p = options.params()
    put(lane, given)
    lane.once("proposer")
    found, due = lane.hash(lane.keys.proposed(A)), due_of(given, p)
    wrong = differences(due, found)
    if due["reason"] == "ok" and given is not None and _of_contract(p) and given.score in WORKED:
        wrong += differences({"multiplier": WORKED[given.score]}, found)
    wrong += [] if due["reason"] == reason or p.min_conf == 0.0 else [f"the case gives {due['reason']}, due {reason}"]
    what = f"{given.score:g} at confidence {given.confidence:g}, {given.age_s:g} s old" if given else "none"
    at = (GROUP, check, f"efficiency {what}")
    fine = f"multiplier {found.get('multiplier')}, reason {found.get('reason')}"
    return [judged(at, wrong, fine), *_written(lane, check, found, options)]


def _written(lane: Lane, check: str, found: dict[str, str], options: ProposerOptions) -> list[Result]:
    """Hash and stream agree, the hash has its expiry, and the target that stands is as it was."""
    told = lane.entries(lane.settings.of(ProposerOptions).propose_stream)
    wrong = [] if len(told) == 1 else [f"the stream has {len(told)} entries, due 1"]
    for entry in told[:1]:
        wrong += differences({name: entry.get(name) for name in (*COPIED, "ts_epoch", "mode")}, found)
    wrong += differences({"last_update_ts_epoch": str(int(lane.now)), "ts": str(int(lane.now))}, found)
    wrong += lives(lane.life_s(lane.keys.proposed(A)), options.propose_ttl_s)
    stands = lane.hash(lane.keys.target(A))
    wrong += differences({"target_usd": BASE_USD, "mode": "enforce"}, stands)
    return [judged((GROUP, check, "what is written"), wrong, "hash and stream agree, the target stands untouched")]


def _sure(p: ProposalParams) -> float:
    """A confidence that counts."""
    return max(0.8, p.min_conf)


def _params(bench: Bench) -> ProposalParams:
    return bench.settings.of(ProposerOptions).params()


def high(bench: Bench) -> list[Result]:
    """Score 0.9."""
    return _case(bench, "proposer-high", Given(0.9, _sure(_params(bench))), "ok")


def low(bench: Bench) -> list[Result]:
    """Score 0.2."""
    return _case(bench, "proposer-low", Given(0.2, _sure(_params(bench))), "ok")


def absent(bench: Bench) -> list[Result]:
    """No efficiency."""
    return _case(bench, "proposer-missing", None, "missing_eff")


def unsure(bench: Bench) -> list[Result]:
    """A confidence just below what counts."""
    p = _params(bench)
    return _case(bench, "proposer-low-confidence", Given(0.9, max(0.0, p.min_conf - 0.01)), "low_conf")


def stale(bench: Bench) -> list[Result]:
    """A second older than what counts."""
    p = _params(bench)
    return _case(bench, "proposer-stale", Given(0.9, _sure(p), p.stale_s + 1.0), "stale_eff")


def healthy(bench: Bench) -> list[Result]:
    """An ordinary efficiency, at the greatest age and the smallest confidence that count."""
    p = _params(bench)
    return _case(bench, "proposer-healthy", Given(0.6, max(p.min_conf, NEAR), float(p.stale_s)), "ok")
