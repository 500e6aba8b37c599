"""Permit and block as other programs read them, and the permit's signature."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import quantum_alloc.core as qa
from quantum_alloc.adapters.permits import SigningKey, block_json, permit_json, read_keys, verified
from quantum_alloc.core.plan import FULL_CLOSE

NOW_US = 1_769_577_495_123_456
NOW = NOW_US / 1_000_000
S = "BTCUSDT"
PARAMS = qa.GovernorParams(apply_mode="production")
NEW, OLD = SigningKey("2026b", b"0123456789abcdef0123"), SigningKey("2026a", b"fedcba9876543210fedc")
PLAN = qa.Plan("p1", S, "ENTRY", NOW, qa.Side.BUY, 1.5, 100.0, 0.1)
INPUTS = qa.Inputs(
    PLAN,
    NOW_US,
    position=qa.fresh(qa.Holding(0.0, 100.0), NOW),
    totals=qa.fresh(qa.Totals(0.0, 0), NOW),
    efficiency=qa.fresh(qa.Efficiency(0.2, 0.9), NOW),
)


def permit(inputs: qa.Inputs = INPUTS, params: qa.GovernorParams = PARAMS) -> qa.Permit:
    """A permit of some inputs."""
    made = qa.evaluate(inputs, params)
    assert isinstance(made, qa.Permit)
    return made


CONTRACT = {
    "granted": True, "symbol": S, "decision": "EXECUTE", "computed_qty": 1.5, "computed_notional": 150.0,
    "created_at": NOW, "consumed": False, "eff_score": "0.2000", "eff_confidence": "0.900", "eff_stale": "0",
    "eff_factor": "0.4444", "eff_action": "DOWNSIZE", "eff_reason": "ok", "downsize_factor": "0.4444",
    "extra_cooldown_sec": "96",
}  # fmt: skip


def test_a_permit_has_the_fields_of_the_contract() -> None:
    """Those of the contract first and in its order, each of its type and format; then our own, the signature last."""
    made = permit()
    told = json.loads(permit_json(made, PARAMS, [NEW, OLD]))
    assert list(told)[: len(CONTRACT)] == list(CONTRACT)
    assert {n: told[n] for n in CONTRACT} == CONTRACT
    assert {n: type(told[n]) for n in CONTRACT} == {n: type(v) for n, v in CONTRACT.items()}
    own = {n: v for n, v in told.items() if n not in CONTRACT}
    assert list(own)[-3:] == ["limits", "kid", "sig"]
    assert own == {
        "plan_id": "p1", "movement": "open", "reduce_only": False, "side": "BUY", "eff_lane": "live",
        "apply_mode": "production", "dry_run": False, "decision_id": made.decision_id,
        "config_hash": qa.config_hash(PARAMS), "limits": [60, 2, 3], "kid": "2026b", "sig": own["sig"],
    }  # fmt: skip
    assert len(own["sig"]) == 64
    bare = json.loads(permit_json(made, PARAMS))
    assert (bare["kid"], bare["sig"]) == ("", "")


def test_a_permit_carries_the_limits_of_opens() -> None:
    """Cooldown, opens in five minutes and in an hour, as the governor has them: fills are held against them too."""
    params = replace(PARAMS, symbol_cooldown_s=7, max_exec_per_5min=5, max_exec_per_hour=11)
    assert json.loads(permit_json(permit(params=params), params))["limits"] == [7, 5, 11]


def test_a_permit_of_a_dry_run_says_so() -> None:
    """The apply layer refuses a mode that is not its own, and fills no dry run."""
    for mode in qa.ApplyMode:
        params = qa.GovernorParams(apply_mode=mode.value)
        told = json.loads(permit_json(permit(params=params), params))
        assert (told["apply_mode"], told["dry_run"]) == (mode.value, mode is qa.ApplyMode.DRY_RUN)


def test_a_permit_of_a_close_is_reduce_only() -> None:
    """Its side from the position, or none where neither tells; its notional 0 where no price is known."""
    close = qa.Plan("p1", S, FULL_CLOSE, NOW, qty=0.01)
    known = replace(INPUTS, plan=close, position=qa.fresh(qa.Holding(-2.0, 100.0), NOW))
    told = json.loads(permit_json(permit(known), PARAMS))
    wanted = ("movement", "reduce_only", "side", "computed_qty", "computed_notional")
    assert [told[n] for n in wanted] == ["close", True, "BUY", 2.0, 200.0]
    unknown: qa.Inputs = replace(INPUTS, plan=close, position=qa.missing())
    told = json.loads(permit_json(permit(unknown), PARAMS))
    assert [told[n] for n in wanted] == ["close", True, "", 0.01, 0.0]


STALE = qa.grade(qa.Efficiency(0.12345, 0.98765), NOW - 601, NOW, 600)
HINTS: dict[str, tuple[qa.Reading[qa.Efficiency], tuple[str, ...]]] = {
    "missing": (qa.missing(), ("", "", "0", "1.0000", "NONE", "missing_eff", "1.0000", "0")),
    "malformed": (
        qa.Unusable(qa.Reason.MALFORMED), ("", "", "0", "1.0000", "NONE", "redis_error", "1.0000", "0"),
    ),
    "unreadable": (qa.Unusable(qa.Reason.STORE), ("", "", "0", "1.0000", "NONE", "redis_error", "1.0000", "0")),
    "stale": (STALE, ("0.1235", "0.988", "1", "1.0000", "NONE", "stale_eff", "1.0000", "0")),
    "of the future": (
        qa.grade(qa.Efficiency(0.5, 0.75), NOW + 6, NOW, 600),
        ("0.5000", "0.750", "1", "1.0000", "NONE", "stale_eff", "1.0000", "0"),
    ),
    "unsure": (
        qa.fresh(qa.Efficiency(0.2, 0.3), NOW), ("0.2000", "0.300", "0", "1.0000", "NONE", "low_conf", "1.0000", "0"),
    ),
    "good": (qa.fresh(qa.Efficiency(0.8, 0.9), NOW), ("0.8000", "0.900", "0", "1.0000", "NONE", "ok", "1.0000", "0")),
    "nearly": (
        qa.fresh(qa.Efficiency(0.4499, 0.9), NOW),
        ("0.4499", "0.900", "0", "0.9998", "DOWNSIZE", "ok", "0.9998", "66"),
    ),
    "worst": (
        qa.fresh(qa.Efficiency(0.0, 1.0), NOW),
        ("0.0000", "1.000", "0", "0.2500", "DOWNSIZE", "ok", "0.2500", "120"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", HINTS)
def test_the_hint_in_a_permit(kind: str) -> None:
    """Score and confidence are empty only when missing or unreadable; stale is told; texts in their formats."""
    efficiency, wanted = HINTS[kind]
    told = json.loads(permit_json(permit(replace(INPUTS, efficiency=efficiency)), PARAMS))
    names = (
        "eff_score", "eff_confidence", "eff_stale", "eff_factor", "eff_action", "eff_reason", "downsize_factor",
        "extra_cooldown_sec",
    )  # fmt: skip
    assert tuple(told[n] for n in names) == wanted


def test_a_block_has_the_fields_of_the_contract() -> None:
    """Reason, symbol, whole seconds under both names, gate, observed, limit, retry."""
    made = qa.evaluate(replace(INPUTS, target=qa.fresh(qa.Limit(149.5, "enforce"), NOW)), PARAMS)
    assert isinstance(made, qa.Block)
    assert json.loads(block_json(made)) == {
        "reason": "p29_allocation_cap", "symbol": S, "timestamp": 1769577495, "ts": 1769577495, "gate": "0.5",
        "observed": 150.0, "limit": 149.5, "retry_after_s": None, "detail": "", "decision_id": made.decision_id,
    }  # fmt: skip
    use = qa.Usage((NOW_US - 10_000_000,), (), NOW_US - 10_000_000)
    cooling = qa.evaluate(replace(INPUTS, usage=use), PARAMS)
    assert isinstance(cooling, qa.Block)
    told = json.loads(block_json(cooling))
    assert (told["reason"], told["gate"], told["observed"], told["retry_after_s"]) == (
        "symbol_cooldown",
        "4",
        10.0,
        50.0,
    )


# --- signatures ------------------------------------------------------------------------------------------------------

SIGNED = permit_json(permit(), PARAMS, [NEW, OLD]).encode()
BY_OLD = permit_json(permit(), PARAMS, [OLD]).encode()
UNSIGNED = permit_json(permit(), PARAMS).encode()


def test_no_bit_of_a_permit_can_be_changed() -> None:
    """(36) Every single bit of the text, of fields and signature alike."""
    assert verified(SIGNED, [NEW, OLD]) == json.loads(SIGNED)
    for bit in range(8 * len(SIGNED)):
        changed = bytearray(SIGNED)
        changed[bit // 8] ^= 1 << bit % 8
        assert verified(bytes(changed), [NEW, OLD]) is None, bit


@given(st.integers(0, len(SIGNED)), st.integers(0, len(SIGNED)), st.binary(max_size=8))
def test_nothing_can_be_put_in_or_taken_out(start: int, end: int, more: bytes) -> None:
    """(36) Any piece of it replaced by any bytes."""
    changed = SIGNED[:start] + more + SIGNED[max(start, end) :]
    assert (verified(changed, [NEW, OLD]) is not None) == (changed == SIGNED)


@given(
    st.one_of(st.floats(1e-6, 1e3), st.just(1.0)),
    st.floats(0.0, 1.0),
    st.floats(0.65, 1.0),
    st.text("abAB.-_", min_size=1),
)
def test_every_permit_verifies_by_its_own_key_and_no_other(
    qty: float, score: float, confidence: float, plan_id: str
) -> None:
    """(36) Whatever its numbers; not under another key's name or secret."""
    made = permit(
        replace(
            INPUTS,
            plan=replace(PLAN, plan_id=plan_id, qty=qty, content=""),
            efficiency=qa.fresh(qa.Efficiency(score, confidence), NOW),
        ),
        LOOSE,
    )
    raw = permit_json(made, LOOSE, [NEW]).encode()
    told = verified(raw, [NEW])
    assert told == json.loads(raw)
    assert told is not None
    assert (told["computed_qty"], told["computed_notional"]) == (made.computed_qty, made.computed_notional_usd)
    assert verified(raw, [OLD]) is None
    assert verified(raw, [SigningKey(NEW.kid, OLD.secret)]) is None
    assert verified(raw, [SigningKey(OLD.kid, NEW.secret)]) is None


LOOSE = qa.GovernorParams(max_notional_per_trade_usd=1e12, max_total_notional_usd=1e12)


def test_keys_can_be_exchanged_while_permits_are_under_way() -> None:
    """The first signs, both verify; after the exchange the old one does not."""
    assert json.loads(SIGNED)["kid"] == "2026b"
    assert json.loads(BY_OLD)["kid"] == "2026a"
    assert verified(SIGNED, [OLD, NEW]) is not None
    assert verified(BY_OLD, [NEW, OLD]) is not None
    assert verified(BY_OLD, [NEW]) is None
    assert verified(SIGNED, [OLD]) is None


def test_without_keys_nothing_is_signed_and_with_them_nothing_unsigned_counts() -> None:
    """A governor without a key is taken at its word only where no key is known."""
    assert verified(UNSIGNED, []) == json.loads(UNSIGNED)
    assert verified(UNSIGNED, [NEW]) is None
    assert verified(UNSIGNED.replace(b'"granted":true', b'"granted":false'), []) is None
    named = UNSIGNED.replace(b'"kid":""', b'"kid":"2026b"')
    assert verified(named, [NEW]) is None


BAD_PERMITS: list[bytes] = [
    b"", b"x", b"{}", b"[]", b"null", b'{"granted":true}', b'{"granted":true,"sig":""', b'{x,"sig":""}', b'{,"sig":""}',
    b'{"granted":true,"sig":"' + b"0" * 63 + b'"}', b'{"granted":true,"sig":"' + b"G" * 64 + b'"}',
    b'{"granted":1,"sig":""}', b'{"granted":"true","sig":""}', b'{"a":' + b"[" * 100_000 + b',"sig":""}',
    b'{"\xff":true,"sig":""}',
]  # fmt: skip


@pytest.mark.parametrize("raw", BAD_PERMITS, ids=lambda r: repr(r[:40]))
def test_what_is_no_permit_is_refused(raw: bytes) -> None:
    """With keys and without."""
    assert verified(raw, []) is None
    assert verified(raw, [NEW]) is None


@given(
    st.one_of(st.binary(max_size=200), st.binary(max_size=60).map(lambda b: b'{"granted":true,' + b + b',"sig":""}'))
)
def test_verifying_is_total(raw: bytes) -> None:
    """(1) Any bytes: a permit or None; with keys never one that was not signed."""
    found = verified(raw, [])
    assert found is None or found["granted"] is True
    assert verified(raw, [NEW, OLD]) is None


def test_a_key_file_has_one_key_or_two() -> None:
    """NAME SECRET a line; blank lines and spaces around do not count."""
    text = "\n 2026b   0123456789abcdef0123 \n\n2026a fedcba9876543210fedc"
    assert read_keys(text) == (NEW, OLD)
    assert read_keys("2026b 0123456789abcdef0123\n") == (NEW,)


@pytest.mark.parametrize(
    "text",
    ["", "\n", "name", "name ", "name 0123456789abcde", "na/me 0123456789abcdef", "n" * 33 + " 0123456789abcdef",
     "a 0123456789abcdef\na 0123456789abcdeg", "\n".join(f"k{i} 0123456789abcdef" for i in range(3))],
    ids=repr,
)  # fmt: skip
def test_other_key_files_are_refused_without_being_shown(text: str) -> None:
    """None, three, two of a name, a secret that is too short: ValueError, and no secret in it."""
    with pytest.raises(ValueError, match=r"NAME SECRET|one key") as told:
        read_keys(text)
    assert "0123456789" not in str(told.value)


def test_a_key_does_not_show_its_secret() -> None:
    """Nor in a traceback or a log."""
    shown: Any = repr(NEW)
    assert "2026b" in shown
    assert "0123" not in shown
