"""Names: which variables are ours, which are a slip of the pen, and which are somebody else's.

    known to a service or to the contract    accepted
    retired                                  warned of once, ignored
    a known name but for its underscores     an error, with that name
    begins with a prefix that is ours alone  an error, with the nearest known name
    begins with a word that others use too   an error only as a near miss of a known name (ratio >= 0.85)
    anything else                            not looked at

The fourth line is careful because the environment is shared: ``DD_`` belongs to a well-known monitoring agent, and a
container platform sets ``REDIS_PORT_6379_TCP`` beside every program. Neither may stop a service.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from types import MappingProxyType

OWN_PREFIXES = ("P25_", "P27_", "P28_", "P29_", "P30_", "P31_", "P32_", "GOV_", "QA_")
"""Nobody else's variables begin like this."""
NEAR = 0.85
"""How alike two names are, at least, when one is taken for a slip of the other."""
_ALIKE = 0.6
_COMMON = ("LOG_", "REDIS_", "METRICS_", "STATE_", "MAX_")
"""Words that other programs write together: LOGLEVEL is theirs."""
_NAME_LIMIT = 100

CONTRACT_VARIABLES = frozenset(
    [
        "APPLY_MODE",
        "ATTRIBUTION_MAX_AGE_SEC",
        "ATTRIBUTION_TTL_SEC",
        "CLOCK",
        "EFFICIENCY_STREAM",
        "EWMA_ALPHA",
        "EXECUTION_STREAM",
        "GOV_CONSUMER",
        "GOV_DISARM_ON_BURST_BREACH",
        "GOV_DISARM_ON_ERROR_COUNT",
        "GOV_DURABILITY",
        "GOV_ENABLE_AUTO_DISARM",
        "GOV_EXPOSURE_BASIS",
        "GOV_KILL_SCORE_ABSENT",
        "GOV_KILL_SCORE_CRITICAL",
        "GOV_MAX_CLOSE_PER_5MIN",
        "GOV_MAX_CLOSE_PER_HOUR",
        "GOV_MAX_EXEC_PER_5MIN",
        "GOV_MAX_EXEC_PER_HOUR",
        "GOV_MAX_NOTIONAL_PER_TRADE_USDT",
        "GOV_MAX_OPEN_POSITIONS",
        "GOV_MAX_REDUCE_NOTIONAL_PER_DAY_USD",
        "GOV_MAX_REDUCE_QTY_PER_DAY",
        "GOV_MAX_TOTAL_NOTIONAL_USDT",
        "GOV_PLAN_MAX_AGE_SEC",
        "GOV_POSITION_MAX_AGE_SEC",
        "GOV_SYMBOL_COOLDOWN_SECONDS",
        "GOV_TESTNET_ENABLE_P29",
        "GOV_TOMBSTONE_PERMIT_SEC",
        "LOOKBACK_WINDOW",
        "LOOP_INTERVAL_SEC",
        "MAX_LKG_AGE_SEC",
        "P27_CLUSTER_CORR_MIN",
        "P27_LOOKBACK",
        "P29_USE_PROPOSED",
        "P30_INTERVAL_SEC",
        "P30_METRICS_PORT",
        "P30_MODE",
        "P31_APPLY_DOWNSIZE",
        "P31_BASE",
        "P31_DD_ALPHA",
        "P31_DOWNSIZE_THRESHOLD",
        "P31_EFF_TTL_SEC",
        "P31_HOLD_PENALTY_MAX_SEC",
        "P31_KEY_TTL_SEC",
        "P31_LOOP_SEC",
        "P31_MAX_EVENTS_PER_LOOP",
        "P31_MAX_EXTRA_COOLDOWN_SEC",
        "P31_MAX_MULT",
        "P31_MIN_CONF",
        "P31_MIN_FACTOR",
        "P31_MIN_MULT",
        "P31_MODE",
        "P31_PORT",
        "P31_RUN_ONCE",
        "P31_SCALE",
        "P31_SCORE_ALPHA",
        "P31_STALE_SEC",
        "P31_STALE_SEC_P29",
        "P31_STALE_SEC_P30",
        "P31_VOL_ALPHA",
        "P31_W_DD",
        "P31_W_HOLD",
        "P31_W_VOL",
        "PNL_SCALE_USD",
        "PROPOSE_KEY_TTL",
        "PROPOSE_STREAM_NAME",
        "REGIME_CHOP_VOL",
        "REGIME_HORIZON",
        "REGIME_WINDOW",
        "REGIME_Z",
        "SHADOW_LANE",
        "STREAM_EVENTS",
        "STREAM_PLANS",
        "STREAM_RESULTS",
    ]
)
"""Variables of the contract whose service is not in this version: accepted in the environment, and ignored."""

TEST_VARIABLES = frozenset({"QA_TEST_PROFILE"})
"""What the test suite reads; a service started by a test inherits it."""

_SLOTS = "slots and rotation are not decided here"
_HEAT = "the heat observer is gone: heat is part of the budget"
_KILL_SCORE = "one threshold decides, GOV_KILL_SCORE_CRITICAL"
RETIRED: Mapping[str, str] = MappingProxyType(
    {
        "GOV_TESTNET_FORCE_FLATTEN": "the governor flattens nothing",
        "GOV_TESTNET_FORCE_FLATTEN_CONFIRM": "the governor flattens nothing",
        "GOV_KILL_SCORE_OPEN_THRESHOLD": _KILL_SCORE,
        "GOV_KILL_SCORE_CLOSE_THRESHOLD": _KILL_SCORE,
        "GOV_KILL_SCORE_OPEN_QTY_SCALE_ALPHA": "a kill score scales no quantity",
        "GOV_KILL_SCORE_OPEN_MIN_SCALE": "a kill score scales no quantity",
        "GOV_ACTIVE_SLOTS_ENABLED": _SLOTS,
        "GOV_ACTIVE_SLOTS_BASE": _SLOTS,
        "GOV_ACTIVE_SLOTS_TREND_STRONG": _SLOTS,
        "GOV_ACTIVE_SLOTS_CHOP": _SLOTS,
        "GOV_ROTATION_THRESHOLD": _SLOTS,
        "GOV_ROTATION_LOCK_TTL": _SLOTS,
        "GOV_MAX_CORRELATION": "the cluster cap limits correlated positions: MAX_CLUSTER_PCT",
        "GOV_MAX_MARGIN_USAGE_PCT": "margin is not looked at; notionals are",
        "P27_ALLOWLIST": "QA_SYMBOLS names the universe",
        "P27_LOG_LEVEL": "LOG_LEVEL is for all services",
        "P27_METRICS_PORT": "METRICS_PORT is for services without a variable of their own",
        "P27_UPDATE_SEC": "the cadence is fixed",
        "P28_TEST_MODE": "there is no injection endpoint; a test writes the keys",
        "P28_HEAT_OBS_ENABLED": _HEAT,
        "P28_HEAT_OBS_STREAM": _HEAT,
        "P28_HEAT_LOOKUP_PREFIX": _HEAT,
        "P28_DEDUPE_TTL_SEC": _HEAT,
        "P28_MAX_DEBUG_CHARS": _HEAT,
        "P28_LATE_OBS_ENABLED": _HEAT,
        "P28_LATE_OBS_MAX_WAIT_MS": _HEAT,
        "P28_LATE_OBS_POLL_MS": _HEAT,
        "P28_LATE_OBS_MAX_WORKERS": _HEAT,
        "HEAT_GATE_METRICS_URL": _HEAT,
        "BUDGET_HASH_TTL_SEC": "a budget lives 300 s",
        "BUDGET_COMPUTE_INTERVAL_SEC": "P28_INTERVAL_SEC is the cadence",
        "APPLY_CONFIG_PATH": "no program's files are edited; auto-disarm sets the kill key",
        "APPLY_KILL_SWITCH": "the kill switch is the key quantum:kill",
        "REDIS_PASSWORD": "the password comes from a file: REDIS_PASSWORD_FILE",
    }
)
"""Variables of upstream programs that have no meaning here, and why: ignored, with a warning."""


def printable(name: str) -> str:
    """A name for a message, escaped and cut where it has to be.

    Args:
        name: any text.

    >>> printable("P29_MODE"), printable("P29_\\x1b")
    ('P29_MODE', "'P29_\\\\x1b'")
    """
    shown = name if name.isprintable() else repr(name)
    return shown if len(shown) <= _NAME_LIMIT else f"{shown[:_NAME_LIMIT]}..."


def strangers(names: Iterable[str], known: frozenset[str]) -> tuple[list[str], list[str]]:
    """Errors for names that look like ours and are not, warnings for retired ones.

    The value of a variable that nobody knows is never shown: it may be a secret that only its name betrays.

    Args:
        names: the environment's names.
        known: all names that some service or the contract knows.

    >>> strangers(["P29_MOD", "TARGET_TTL_SECS", "DD_TRACE_ENABLED"], frozenset({"P29_MODE", "TARGET_TTL_SEC"}))[0][1]
    'TARGET_TTL_SECS: no service knows this variable; did you mean TARGET_TTL_SEC?'
    """
    errors, warnings = [], []
    candidates = sorted(known)
    squeezed = {name.replace("_", ""): name for name in candidates if "_" in name and not name.startswith(_COMMON)}
    families = tuple({f"{name.partition('_')[0]}_" for name in known if "_" in name})
    for name in sorted(set(names) - known):
        if name in RETIRED:
            warnings.append(f"{name}: retired and ignored: {RETIRED[name]}")
            continue
        meant = squeezed.get(name.replace("_", ""))
        if meant is not None:
            errors.append(f"{printable(name)}: no service knows this variable; did you mean {meant}?")
            continue
        ours = name.startswith(OWN_PREFIXES)
        if not ours and not name.startswith(families):
            continue
        near = get_close_matches(name[:_NAME_LIMIT], candidates, 1, _ALIKE if ours else NEAR)
        if ours or near:
            hint = f"; did you mean {near[0]}?" if near else ""
            errors.append(f"{printable(name)}: no service knows this variable{hint}")
    return errors, warnings
