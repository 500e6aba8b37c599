"""The cases of a proof can fail: for each a fault in the services' code, and the check that tells of it."""

from __future__ import annotations

import importlib
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from quantum_alloc.adapters import flow_writes, governor_read, governor_wire, governor_writes, state, wire, writes
from quantum_alloc.adapters.effects import HashSet
from quantum_alloc.adapters.embedded import EmbeddedServer
from quantum_alloc.adapters.governor_scripts import COMMIT
from quantum_alloc.adapters.metrics import Metrics
from quantum_alloc.adapters.store import Script
from quantum_alloc.core import allocation as allocating
from quantum_alloc.core import attribution as attributing
from quantum_alloc.core import efficiency as measuring
from quantum_alloc.core import gates, proposal
from quantum_alloc.core import governor as governing
from quantum_alloc.core.governor_params import GATES
from quantum_alloc.core.proposal import ProposalReason
from quantum_alloc.core.reading import Fresh, Unusable
from quantum_alloc.services import (
    allocation,
    app,
    attribution,
    budget,
    efficiency,
    governor,
    http,
    proof_lane,
    proposer,
)
from quantum_alloc.services.loop import Loop
from quantum_alloc.services.options import GROUPS, load
from quantum_alloc.services.proof import GROUPS as CHECKED
from quantum_alloc.services.proof import Result
from quantum_alloc.services.proof_judging import apart, differences, lives
from quantum_alloc.services.proof_lane import CASES, run_cases
from tests.support.worlds import Client

Patch = pytest.MonkeyPatch
downsize = importlib.import_module("quantum_alloc.core.downsize")  # its package has a function of that name
Fault = Callable[[Patch], None]


def wrapped(patch: Patch, place: Any, name: str, change: Callable[..., Any]) -> None:
    """Replace a function by one that is given the plain one first."""
    plain = getattr(place, name)
    patch.setattr(place, name, lambda *args, **more: change(plain, *args, **more))


def shadow_writes_live(patch: Patch) -> None:
    """A service in shadow writes what others act on."""
    patch.setattr(writes.Target, "hash_keys", property(lambda self: self.keys))


def shadow_lane_unasked(patch: Patch) -> None:
    """The shadow lane is written where it is off."""
    patch.setattr(writes.Target, "hash_keys", property(lambda self: self.keys.shadow))


def no_expiry(*names: str) -> Fault:
    """Some hashes live for ever."""

    def fault(patch: Patch) -> None:
        def commands(plain: Any, self: HashSet) -> Any:
            lasting = any(f":{name}:" in self.key for name in names)
            return [c for c in plain(self) if not (lasting and c[0] == "EXPIRE")]

        wrapped(patch, HashSet, "commands", commands)

    return fault


def random_id(place: Any, name: str) -> Fault:
    """A record holds something that no input gives."""

    def change(plain: Any, *args: Any, **more: Any) -> dict[str, str]:
        return {**plain(*args, **more), "id": uuid.uuid4().hex}

    return lambda patch: wrapped(patch, place, name, change)


def counts_cycles(place: Any) -> Fault:
    """A service writes how many cycles its process has run, which a restart forgets."""

    def build(plain: Any, *args: Any, **more: Any) -> Any:
        made, n = plain(*args, **more), [0]
        inner = made.effects

        def effects(seen: Any, decided: Any) -> Any:
            n[0] += 1
            groups = inner(seen, decided)
            told = [replace(e, fields={**e.fields, "n": str(n[0])}) if hasattr(e, "maxlen") else e for e in groups[0]]
            return (tuple(told), *groups[1:])

        return replace(made, effects=effects)

    return lambda patch: wrapped(patch, place, "build", build)


def budget_in_enforce_alone(patch: Patch) -> None:
    """P2.8 takes shadow for silence."""

    def change(plain: Any, cycle: Any, params: Any, to: Any, known: Any) -> Any:
        return plain(cycle, params, to, known) if to.mode == "enforce" else ()

    wrapped(patch, budget, "budget_effects", change)


def says_nothing(*places: Any) -> Fault:
    """Services that end their cycles and write nothing."""

    def fault(patch: Patch) -> None:
        for place in places:
            wrapped(patch, place, "build", lambda plain, *a, **more: replace(plain(*a, **more), effects=lambda *_: ()))

    return fault


def enforce_says_more(place: Any, name: str) -> Fault:
    """Enforce writes a field that shadow does not."""

    def change(plain: Any, *args: Any, **more: Any) -> dict[str, str]:
        told = plain(*args, **more)
        return {**told, "extra": "1"} if told["mode"] == "enforce" else told

    return lambda patch: wrapped(patch, place, name, change)


def target_off(patch: Patch) -> None:
    """The regime counts a thousandth too much."""
    wrapped(patch, allocating, "regime_factor", lambda plain, *args: plain(*args) * 1.001)


def alpha_off(patch: Patch) -> None:
    """An execution counts a thousandth too much."""
    wrapped(patch, attributing, "alpha", lambda plain, *args: plain(*args) * 1.001)


def losses_forgotten(patch: Patch) -> None:
    """Losses do not lower a score."""
    wrapped(patch, measuring, "score_efficiency", lambda plain, pf, vol_n, _dd, *more: plain(pf, vol_n, 0.0, *more))


def enforce_decides_otherwise(place: Any, name: str, of: str) -> Fault:
    """A decision hangs on the mode."""

    def change(plain: Any, *args: Any, **more: Any) -> dict[str, str]:
        told = plain(*args, **more)
        return {**told, of: "0.123"} if told["mode"] == "enforce" else told

    return lambda patch: wrapped(patch, place, name, change)


def forgets_the_position(patch: Patch) -> None:
    """Every cycle reads the stream of executions from its beginning."""
    wrapped(patch, state, "decode", lambda plain, *args: replace(plain(*args), pos="0-0", read=None))


def saves_no_position(place: Any) -> Fault:
    """A service saves the position where it began."""

    def change(plain: Any, key: Any, stream: Any, saved: Any, texts: Any, pos: Any, read: Any) -> Any:
        return plain(key, stream, saved, texts, saved.pos, saved.read)

    return lambda patch: wrapped(patch, place, "saving", change)


def multiplier_off(patch: Patch) -> None:
    """The multiplier is a thousandth too great."""
    wrapped(patch, proposal, "multiplier", lambda plain, *args: plain(*args) + 1e-3)


def never_lowers(patch: Patch) -> None:
    """A low efficiency does not lower a proposal."""
    wrapped(patch, proposal, "multiplier", lambda plain, *args: max(1.0, plain(*args)))


def reason_of(place: Any, wrong: Callable[[Any, float], ProposalReason | None]) -> Fault:
    """Some efficiencies get another reason."""

    def change(plain: Any, given: Any, min_conf: float) -> ProposalReason:
        return wrong(given, min_conf) or plain(given, min_conf)

    return lambda patch: wrapped(patch, place, "efficiency_reason", change)


def missing_as_low(given: Any, _: float) -> ProposalReason | None:
    """Nothing is taken for something uncertain."""
    return ProposalReason.LOW_CONFIDENCE if isinstance(given, Unusable) and given.state == "missing" else None


def any_confidence(given: Any, _: float) -> ProposalReason | None:
    """Confidence is not looked at."""
    return ProposalReason.OK if isinstance(given, Fresh) else None


def age_limit(change: Callable[[float], float]) -> Fault:
    """Efficiencies are graded by another age."""

    def decode(plain: Any, schema: Any, reply: Any, now: float, limit_s: float) -> Any:
        return plain(schema, reply, now, change(limit_s) if schema is wire.EFFICIENCY else limit_s)

    return lambda patch: wrapped(patch, wire, "decode", decode)


def proposer_touches_targets(patch: Patch) -> None:
    """The proposer writes its proposal over the target."""

    def change(plain: Any, cycle: Any, to: Any, *rest: Any) -> Any:
        (first, *more) = plain(cycle, to, *rest)
        over = [HashSet(to.keys.target(d.symbol), {"target_usd": "1.0"}, 300) for d in cycle.decisions]
        return ((*first, *over), *more)

    wrapped(patch, proposer, "proposal_effects", change)


def not_counted(name: str) -> Fault:
    """A counter stands still."""

    def add(plain: Any, self: Any, metric: str, *labels: str, amount: float = 1.0) -> None:
        if metric != name:
            plain(self, metric, *labels, amount=amount)

    return lambda patch: wrapped(patch, Metrics, "add", add)


def limit_of(wrong: Callable[[Any], Any]) -> Fault:
    """Gate 0.5 takes another limit."""
    return lambda patch: wrapped(patch, gates, "_limit_of", lambda plain, reading: wrong(reading) or plain(reading))


def never_blocks(patch: Patch) -> None:
    """What is above the target passes."""

    def change(plain: Any, observed: float, limit: float, reason: str, *more: Any) -> Any:
        return gates.PASS if reason == "p29_allocation_cap" else plain(observed, limit, reason, *more)

    wrapped(patch, gates, "_within", change)


def gate_over_closes(patch: Patch) -> None:
    """Gate 0.5 looks at closes too."""
    opening, at = governing._OPENING, [gate.gate for gate in GATES].index("0.5")
    rows = [*governing._CLOSING]
    rows[at] = opening[at]
    patch.setattr(governing, "_CLOSING", tuple(rows))
    wrapped(patch, gates, "_within", lambda plain, observed, limit, reason, *more: plain(
        1e9 if reason == "p29_allocation_cap" else observed, limit, reason, *more))  # fmt: skip


def forgets_answers(patch: Patch) -> None:
    """A plan that comes again is taken for a new one, and the script does not look."""
    patch.setattr(governor_wire, "answer", lambda _reply: None)


def permits_again(patch: Patch) -> None:
    """A plan that comes again gets another permit: neither the governor nor the script looks for its first answer."""
    forgets_answers(patch)
    text = COMMIT.text.replace("if redis.call('EXISTS', KEYS[key]) == 1 then return 'taken' end", "")
    text = text.replace("elseif is_answer and redis.call('EXISTS', KEYS[tomb]) == 1 then", "elseif false then")
    assert text.count("EXISTS") == COMMIT.text.count("EXISTS") - 2
    patch.setattr(governor, "COMMIT", Script(text))


def no_pending(patch: Patch) -> None:
    """What was delivered before a restart is never looked at."""
    from quantum_alloc.adapters.intake import Intake

    def recover(self: Any) -> None:
        self._in_doubt = self._is_start = False
        self._connections = self._store.connections
        self._ask(("XPENDING", self._stream, self._group))

    patch.setattr(Intake, "_recover", recover)


def late(patch: Patch) -> None:
    """A loop is told to be late."""
    patch.setattr(Loop, "is_late", lambda _self: True)


def no_metrics_page(patch: Patch) -> None:
    """The page of metrics is empty."""
    wrapped(patch, http, "routes", lambda plain, *args: {**plain(*args), "/metrics": lambda: (200, "", b"")})


def no_cap_event(patch: Patch) -> None:
    """The block of gate 0.5 has no event of its own."""
    wrapped(patch, governor_writes, "_cap_block", lambda plain, *args: {**plain(*args), "event": "BLOCK"})


def wrong_hint(change: Callable[[Any], Any]) -> Fault:
    """The hint on a permit is another one."""
    return lambda patch: wrapped(patch, governing, "downsize", lambda plain, *args: change(plain(*args)))


FAULTS: dict[str, list[Fault]] = {
    "allocation-shadow": [shadow_writes_live, shadow_lane_unasked],
    "allocation-enforce": [
        target_off, no_expiry("target"), enforce_decides_otherwise(writes, "decision_fields", "confidence"),
        enforce_says_more(writes, "decision_fields"),
    ],
    "budget-modes": [budget_in_enforce_alone, no_expiry("budget")],
    "allocation-restart": [counts_cycles(allocation), says_nothing(allocation)],
    "allocation-twice": [random_id(writes, "cycle_fields"), says_nothing(allocation), says_nothing(budget)],
    "attribution-shadow": [shadow_writes_live],
    "attribution-enforce": [
        no_expiry("attribution"), enforce_decides_otherwise(flow_writes, "attribution_fields", "alpha_score"),
        alpha_off,
    ],
    "attribution-restart": [
        forgets_the_position, saves_no_position(attribution), counts_cycles(attribution),
        says_nothing(attribution),
    ],
    "efficiency-shadow": [shadow_writes_live],
    "efficiency-enforce": [
        no_expiry("efficiency"), enforce_decides_otherwise(flow_writes, "efficiency_fields", "efficiency_score"),
        losses_forgotten,
    ],
    "efficiency-restart": [
        forgets_the_position, saves_no_position(efficiency), counts_cycles(efficiency),
        says_nothing(efficiency),
    ],
    "efficiency-twice": [
        random_id(flow_writes, "efficiency_fields"), random_id(flow_writes, "attribution_fields"),
        says_nothing(attribution), says_nothing(efficiency),
    ],
    "proposer-high": [multiplier_off, no_expiry("proposed"), proposer_touches_targets],
    "proposer-low": [never_lowers],
    "proposer-missing": [reason_of(proposal, missing_as_low)],
    "proposer-low-confidence": [reason_of(proposal, any_confidence)],
    "proposer-stale": [age_limit(lambda s: s + 1)],
    "proposer-healthy": [age_limit(lambda s: s - 1)],
    "proposer-restart": [counts_cycles(proposer), says_nothing(proposer)],
    "proposer-twice": [random_id(flow_writes, "proposal_fields"), says_nothing(proposer)],
    "governor-low-efficiency": [
        wrong_hint(lambda hint: replace(hint, extra_cooldown_sec=hint.extra_cooldown_sec + 1)),
        wrong_hint(lambda hint: replace(hint, factor=1.0)),
    ],
    "governor-high-efficiency": [wrong_hint(lambda hint: replace(hint, action=downsize.HintAction.DOWNSIZE))],
    "governor-missing": [reason_of(downsize, missing_as_low)],
    "governor-low-confidence": [reason_of(downsize, any_confidence)],
    "governor-metrics": [not_counted("quantum_govern_allow_total"), not_counted("gov_p29_missing_total")],
    "governor-health": [late, no_metrics_page],
    "gate-shadow": [limit_of(lambda reading: (reading.value.usd, "") if isinstance(reading, Fresh) else None)],
    "gate-enforce": [
        never_blocks, no_cap_event, lambda patch: patch.setattr(governor_read, "TARGET_STALE_S", 1),
    ],
    "gate-stale": [lambda patch: patch.setattr(governor_read, "TARGET_STALE_S", 86_400)],
    "gate-missing": [limit_of(lambda reading: (0.0, "") if reading.state == "missing" else None)],
    "gate-close": [gate_over_closes],
    "governor-restart": [forgets_answers, permits_again, no_pending],
    "governor-twice": [
        lambda patch: wrapped(patch, governing, "_decision_id", lambda _plain, *_: uuid.uuid4().hex[:16]),
        never_blocks,
    ],
}  # fmt: skip
"""For each check what makes it fail."""
EACH = [(check, n) for check, faults in FAULTS.items() for n in range(len(faults))]


def results_of(server: EmbeddedServer, patch: Patch, checks: list[str]) -> list[Result]:
    """What some checks come to."""
    patch.setattr(proof_lane, "CASES", {check: CASES[check] for check in checks})
    settings = load(list(GROUPS), {"REDIS_URL": server.url}, together=False)
    store = app.open_store(settings)
    try:
        return run_cases(settings, store, list(CHECKED), "t1")
    finally:
        store.close()


def test_every_check_has_a_fault_of_its_own() -> None:
    """One or more for each; groups are those that a proof knows, meanings one line."""
    assert list(FAULTS) == list(CASES)
    assert all(FAULTS.values())
    assert {case.group for case in CASES.values()} == set(CHECKED)
    for check, case in CASES.items():
        assert check.islower(), check
        assert case.meaning
        assert len(case.meaning) < 100, check
        assert "\n" not in case.meaning, check


@pytest.mark.parametrize(("check", "n"), EACH, ids=[f"{check}-{n}" for check, n in EACH])
def test_each_check_fails_when_its_fault_is_put_in(
    one_server: EmbeddedServer, one_client: Client, monkeypatch: Patch, check: str, n: int
) -> None:
    """The fault alone makes the check fail, which says what was found; no key is left."""
    FAULTS[check][n](monkeypatch)
    results = results_of(one_server, monkeypatch, [check])
    assert {r.check for r in results} == {check}
    wrong = [r.detail for r in results if not r.ok]
    assert wrong
    assert all(len(text) > 10 for text in wrong)
    assert list(one_client.scan_iter()) == []


def test_a_step_that_raises_fails_the_case(one_server: EmbeddedServer, one_client: Client, monkeypatch: Patch) -> None:
    """A programming error in a service is a FAIL with its sentence, not the end of the proof."""

    def raises(*_: Any) -> Any:
        raise RuntimeError("no such luck")

    monkeypatch.setattr(proposer, "proposal_cycle", raises)
    (result,) = results_of(one_server, monkeypatch, ["proposer-high"])
    assert not result.ok
    assert result.detail == "it could not be worked: the cycle of proposer did not end: RuntimeError: no such luck"
    assert list(one_client.scan_iter()) == []


def test_what_is_due_is_compared_to_the_letter_and_numbers_closely() -> None:
    """Texts equal, floats within 1e-9, a truth is no number; a name that is not there differs."""
    assert (
        differences({"a": 1.0, "b": "x", "c": None, "d": True}, {"a": "1.0000", "b": "x", "c": None, "d": True}) == []
    )
    assert differences({"a": 1.0}, {"a": "1.00000001"}) == ["a is '1.00000001', due 1.0"]
    assert differences({"a": 1.0}, {}) == ["a is None, due 1.0"]
    assert differences({"a": True}, {"a": 1}) == ["a is 1, due True"]
    assert differences({"a": 1.0}, {"a": "nan"}) == ["a is 'nan', due 1.0"]
    assert lives(296, 300) == lives(300, 300) == []
    assert lives(301, 300) == ["it lives 301 s, due 300"]
    assert lives(None, 300) == ["it lives None s, due 300"]


def test_two_lanes_are_compared_key_by_key() -> None:
    """A key that is there once, a field, the length of a stream, a text."""
    assert apart({"a": {"x": "1"}}, {"a": {"x": "1"}}) == []
    assert apart({"a": 1, "b": 1}, {"a": 1}) == ["b is there once only"]
    assert apart({"a": {"x": "1"}}, {"a": {"x": "2", "y": "1"}}) == ["a differs: x is '1' and '2'"]
    assert apart({"a": [{"x": "1"}]}, {"a": [{"x": "1"}, {"x": "1"}]}) == ["a differs: 1 entries and 2"]
    assert apart({"a": [{"x": "1"}]}, {"a": [{"x": "2"}]}) == ["a differs: x is '1' and '2'"]
    assert apart({"a": "1"}, {"a": "2"}) == ["a differs: '1' and '2'"]
