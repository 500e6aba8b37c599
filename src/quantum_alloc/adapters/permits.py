"""The permit and the block as other programs read them: JSON texts, and the permit's signature.

A permit's last field is its signature, HMAC-SHA256 in hexadecimal over the bytes of the text without it, so that a
change of any bit is seen. ``kid`` names the key. Two keys are known while one takes the place of the other: the first
signs, both verify. Source: the project's contract, "Permit", and governor, 2.10.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from quantum_alloc.core.fields import compact
from quantum_alloc.core.governor_params import GovernorParams
from quantum_alloc.core.limits import US
from quantum_alloc.core.proposal import ProposalReason
from quantum_alloc.core.reading import shown
from quantum_alloc.core.record_governor import named
from quantum_alloc.core.verdicts import Block, Permit

_SIGNED = re.compile(rb'(?P<body>\{.*),"sig":"(?P<sig>[0-9a-f]{64}|)"\}', re.DOTALL)
KEY_LIMIT_BYTES = 4096
SECRET_MIN_CHARACTERS = 16


@dataclass(frozen=True, slots=True)
class SigningKey:
    """One key.

    Attributes:
        kid: its name.
        secret: never shown.
    """

    kid: str
    secret: bytes = field(repr=False)


def read_keys(text: str) -> tuple[SigningKey, ...]:
    """The keys of a key file: one or two lines ``NAME SECRET``, the first one signs.

    Args:
        text: of the file.

    Raises:
        ValueError: what is wrong with it, without showing it.

    >>> [key.kid for key in read_keys("2026b 0123456789abcdef0123\\n2026a fedcba9876543210fedc\\n")]
    ['2026b', '2026a']
    """
    keys = []
    for line in filter(None, (line.strip() for line in text.splitlines())):
        name, _, secret = line.partition(" ")
        if not re.fullmatch(r"[A-Za-z0-9_.-]{1,32}", name) or len(secret.strip()) < SECRET_MIN_CHARACTERS:
            raise ValueError(f"each line is NAME SECRET, the secret of {SECRET_MIN_CHARACTERS} characters at least")
        keys.append(SigningKey(name, secret.strip().encode()))
    if not 1 <= len(keys) <= 2 or len({key.kid for key in keys}) != len(keys):
        raise ValueError("there must be one key, or two with different names")
    return tuple(keys)


def _sign(body: bytes, key: SigningKey) -> str:
    return hmac.new(key.secret, body, hashlib.sha256).hexdigest()


def permit_json(made: Permit, params: GovernorParams, keys: Sequence[SigningKey] = ()) -> str:
    """A permit as its key holds it.

    Args:
        made: the verdict.
        params: the numbers of the governor.
        keys: the first one signs; none leaves ``sig`` and ``kid`` empty.
    """
    seen, hint = shown(made.inputs.efficiency), made.hint
    fields: dict[str, Any] = {
        "granted": True,
        "symbol": made.plan.symbol,
        "decision": "EXECUTE",
        "computed_qty": made.computed_qty,
        "computed_notional": made.computed_notional_usd,
        "created_at": made.inputs.now_us / US,
        "consumed": False,
        "eff_score": "" if seen is None else f"{seen.score:.4f}",
        "eff_confidence": "" if seen is None else f"{seen.confidence:.3f}",
        "eff_stale": "1" if hint.reason is ProposalReason.STALE else "0",
        "eff_factor": f"{hint.factor:.4f}",
        "eff_action": hint.action.value,
        "eff_reason": hint.reason.value,
        "downsize_factor": f"{hint.factor:.4f}",
        "extra_cooldown_sec": str(hint.extra_cooldown_sec),
        "plan_id": made.plan.plan_id,
        "movement": made.movement.value,
        "reduce_only": made.movement.value == "close",
        "side": "" if made.side is None else made.side.value,
        "eff_lane": made.inputs.eff_lane.value,
        "apply_mode": params.apply_mode,
        "dry_run": params.apply_mode == "dry_run",
        "decision_id": made.decision_id,
        "config_hash": named(params)[1],
        "limits": [params.symbol_cooldown_s, params.max_exec_per_5min, params.max_exec_per_hour],
        "kid": keys[0].kid if keys else "",
    }
    body = compact(fields)[:-1]
    return f'{body},"sig":"{_sign(body.encode(), keys[0]) if keys else ""}"}}'


def verified(raw: bytes, keys: Sequence[SigningKey]) -> dict[str, Any] | None:
    """A permit whose signature is that of one of the keys; None for any other.

    Args:
        raw: as its key holds it.
        keys: those that are known; none accepts a permit without a signature.
    """
    found = _SIGNED.fullmatch(raw)
    if found is None:
        return None
    try:
        told = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    body, sig = found["body"], found["sig"].decode("ascii")
    if not keys:
        return told if told.get("granted") is True else None
    key = next((k for k in keys if k.kid == told.get("kid")), None)
    return told if key is not None and hmac.compare_digest(_sign(body, key), sig) else None


def block_json(made: Block) -> str:
    """A block as its key holds it.

    Args:
        made: the verdict.
    """
    return compact(
        {
            "reason": made.reason,
            "symbol": made.plan.symbol,
            "timestamp": made.inputs.now_us // US,
            "ts": made.inputs.now_us // US,
            "gate": made.gate,
            "observed": made.observed,
            "limit": made.limit,
            "retry_after_s": made.retry_after_s,
            "detail": made.detail,
            "decision_id": made.decision_id,
        }
    )
