"""What ``quantum-alloc status`` shows of the paper account, and of what became of the permits."""

from __future__ import annotations

from typing import Any

from quantum_alloc.adapters import apply_wire as aw
from quantum_alloc.adapters.keys import Keys
from quantum_alloc.adapters.store import Store

ALARM = "ALARM"


def state(store: Store, keys: Keys) -> tuple[dict[str, Any], dict[str, Any]]:
    """The account, and the reconciliation of permits and fills; both empty where there is no account.

    Args:
        store: where to look.
        keys: the names.

    Raises:
        StoreError: Redis does not answer.
    """
    loaded = aw.decode_state(store.read([("HGETALL", keys.apply_state)])[0])
    if loaded.trouble:
        return {"account": "unreadable", "why": loaded.trouble}, {}
    if loaded.account is None:
        return {}, {}
    a = loaded.account
    account = {
        "balance_usd": a.balance_usd,
        "paid_in_usd": a.paid_in_usd,
        "realised_usd": a.realised_usd,
        "fees_usd": a.fees_usd,
        "positions": sum(h.qty != 0.0 for h in a.held.values()),
    }
    c = a.permits.counts
    permits = {
        "permits": c.issued,
        "consumed": c.consumed,
        "expired": c.expired,
        "outstanding": c.outstanding,
        "fills": c.fills,
        "without permit": c.without_permit,
        "above permit": c.above_permit,
        "not in account": c.elsewhere,
        "reconciled": ALARM if c.is_wrong else "ok",
    }
    return account, permits
