"""What must make each alert fire, and what must not: a table for ``promtool test rules``.

Series are written a sample every 15 s, in steps of (value, minutes); what is asked is asked at their end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from quantum_alloc.services.alert_classes import CLASSES
from quantum_alloc.services.alert_services import OFTEN, REQUIRED

EVERY_S = 15
Steps = tuple[tuple[float | str, float], ...]
HERE = "127.0.0.1:1"


@dataclass(frozen=True, slots=True)
class Case:
    """One situation of one alert.

    Attributes:
        alert: its name without the prefix.
        what: what is tried.
        series: steps by series.
        fires: labels of what must fire, severity apart; None for nothing.
        is_edge: quiet for nothing but a threshold that is just not passed.
    """

    alert: str
    what: str
    series: Mapping[str, Steps]
    fires: Mapping[str, str] | None = None
    is_edge: bool = False

    @property
    def minutes(self) -> float:
        """When it is asked."""
        return max(sum(minutes for _, minutes in steps) for steps in self.series.values())


def series(metric: str, job: str = "", **labels: str) -> str:
    """A series as promtool writes it."""
    told = {**({"job": job, "instance": HERE} if job else {}), **labels}
    return f"{metric}{{{','.join(f'{k}={chr(34)}{v}{chr(34)}' for k, v in told.items())}}}"


def labels(job: str, **more: str) -> dict[str, str]:
    """Labels of an alert."""
    return {"job": job, "instance": HERE, **more}


def values(steps: Steps) -> str:
    """Steps in promtool's notation; the last one has a sample at its end too. ``_`` is no sample, ``+n`` grows."""
    found = []
    for i, (value, minutes) in enumerate(steps):
        n = int(minutes * 60 / EVERY_S) + (i == len(steps) - 1)
        if value == "_":
            found.append(" ".join("_" * n))
        elif isinstance(value, str):
            found.append(f"{value}x{n - 1}")
        else:
            found.append(f"{value}+0x{n - 1}")
    return " ".join(found)


def counter(
    alert: str,
    job: str,
    metric: str,
    than: int = 0,
    by: tuple[str, ...] = (),
    only_counted: bool = False,
    **told: str,
) -> Iterator[Case]:
    """A counter that must grow by more than a number; what it stood at before a restart is no growth."""
    name = series(metric, job, **told)
    shown = labels(job, **{k: told[k] for k in by})
    yield Case(alert, "counted", {name: ((0, 5), (than + 1, 1))}, shown)
    if only_counted:
        return
    if than:
        yield Case(alert, "as often as is usual", {name: ((0, 5), (than, 3))}, is_edge=True)
    yield Case(alert, "a restart", {name: ((than + 7, 5), (0, 3))})


def lasting(
    alert: str, job: str, metric: str, by: tuple[str, ...], *, only_counted: bool = False, **told: str
) -> Iterator[Case]:
    """A counter that must not go on growing for 5 minutes; what is counted once is no matter."""
    name = series(metric, job, **told)
    yield Case(alert, "going on", {name: ((0, 5), ("0+1", 7))}, labels(job, **{k: told[k] for k in by}))
    if not only_counted:
        yield Case(alert, "once", {name: ((0, 5), (9, 6))})
        yield Case(alert, "a restart", {name: ((8, 5), (0, 9))})
        yield Case(alert, "too short", {name: ((0, 5), ("0+1", 4))})


def gauge(
    alert: str, job: str, metric: str, bad: float = 1, good: float = 0, wait_min: float = 0, **told: str
) -> Iterator[Case]:
    """A gauge that must not be what is bad for long."""
    name = series(metric, job, **told)
    yield Case(alert, "bad", {name: ((good, 2), (bad, wait_min + 1))}, labels(job, **told))
    yield Case(alert, "good", {name: ((good, wait_min + 3),)}, is_edge=True)
    if wait_min:
        yield Case(alert, "too short", {name: ((good, 2), (bad, wait_min - 0.5))})


def grown(alert: str, metric: str) -> Iterator[Case]:
    """A running total: what is new is told for an hour, what is old is not, not even after a restart."""
    name = series(metric, "apply")
    yield Case(alert, "the first", {name: ((0, 130), (1, 2))}, labels("apply"))
    yield Case(alert, "one more", {name: ((3, 130), (4, 50))}, labels("apply"))
    yield Case(alert, "told when Prometheus is new", {name: ((2, 3),)}, labels("apply"))
    yield Case(alert, "none", {name: ((0, 130),)}, is_edge=True)
    yield Case(alert, "a restart", {name: ((3, 130), ("_", 1), (0, 0.5), (3, 5))})
    yield Case(alert, "over after two hours", {name: ((3, 130), (4, 125))})


CYCLES = "quantum_alloc_cycle_duration_seconds"
OUTCOMES = "quantum_alloc_gate_outcomes_total"
STORE = "quantum_alloc_store_errors_total"
INPUTS = "quantum_alloc_inputs_total"


def cycles(slow: float) -> dict[str, Steps]:
    """A histogram in which ``slow`` cycles of the last minutes took longer than 2 s."""
    return {
        series(f"{CYCLES}_count", "budget"): (("3+1", 10), (44 + slow, 2)),
        series(f"{CYCLES}_bucket", "budget", le="2.0"): (("3+1", 10), (44, 2)),
        series(f"{CYCLES}_bucket", "budget", le="1.0"): (("1+1", 10), (42, 2)),
    }


def fallbacks(a_minute: float, looks: str) -> dict[str, Steps]:
    """Stale fallbacks of two sources, and what P2.9 looked at."""
    return {
        series("p29_stale_fallback_total", "allocation", data_source="regime"): ((f"0+{a_minute / 8}", 16),),
        series("p29_stale_fallback_total", "allocation", data_source="budget"): ((f"0+{a_minute / 8}", 16),),
        series(INPUTS, "allocation", input="budget", reason="ok"): ((looks, 16),),
        series(INPUTS, "governor", input="budget", reason="ok"): (("0+9", 16),),
    }


def outcomes(open_: str, passed: str, armed: str = "0.5") -> dict[str, Steps]:
    """What gate 0.5 said of opens; closes do not concern it."""
    return {
        series(OUTCOMES, "governor", gate="0.5", outcome="fail_open", reason="stale"): ((open_, 45),),
        series(OUTCOMES, "governor", gate="0.5", outcome="pass", reason=""): ((passed, 45),),
        series(OUTCOMES, "governor", gate="0.5", outcome="not_applicable", reason=""): (("0+9", 45),),
        series("quantum_alloc_armed_but_blind", "governor", kind="gate", name=armed): ((0, 45),),
    }


def proposals(neutral: str, ok: str) -> dict[str, Steps]:
    """Proposals by reason."""
    return {
        series("p29_shadow_proposed_total", "proposer", reason="low_conf"): ((neutral, 65),),
        series("p29_shadow_proposed_total", "proposer", reason="ok"): ((ok, 65),),
    }


def builds(*found: tuple[str, str, str]) -> dict[str, Steps]:
    """Services with version and configuration, for 12 minutes."""
    return {
        f'quantum_alloc_build_info{{job="{job}",instance="{i}",version="{version}",config="{config}"}}': ((1, 12),)
        for i, (job, version, config) in enumerate(found)
    }


def scraped(*absent: str) -> dict[str, Steps]:
    """Every service that an installation must have, but for some."""
    return {series("up", name): ((1, 8),) for name in REQUIRED if name not in absent}


def minutes(found: Mapping[str, Steps], of: float) -> dict[str, Steps]:
    """The same for another time, where each series has one step."""
    return {name: ((steps[0][0], of),) for name, steps in found.items()}


def _too_short() -> Iterator[Case]:
    """What is bad, for less than an alert waits."""
    used = series("quantum_alloc_limit_used_ratio", "governor", gate="5", symbol="BTCUSDT")
    for alert, found, of in (
        ("ServiceNotScraped", scraped("regime"), 4.5),
        ("TwoBuilds", builds(("feed", "1.0", "a"), ("budget", "1.1", "b")), 9.5),
        ("TwoConfigurations", builds(("feed", "1", "a"), ("feed", "1", "b")), 9.5),
        ("StaleFallbackShare", fallbacks(8, "0+9"), 4.5),
        ("GateFailsOpen", outcomes("0+1", "0+0"), 4.5),
        ("ProposalsNeutral", proposals("0+1", "0+0"), 29.5),
        ("LimitNearlyUsed", {used: ((1, 1),)}, 0.5),
    ):
        yield Case(alert, "too short", minutes(found, of))
    yield Case("TargetsShrunk", "too short", {series("quantum_alloc_targets", "allocation"): ((11, 9), (5, 0.5))})


def _special() -> Iterator[Case]:
    up = series("up", "governor")
    desk = series("up", "desk")
    yield Case("ServiceDown", "gone", {up: ((1, 5), (0, 1.5))}, labels("governor"))
    yield Case("ServiceDown", "too short", {up: ((1, 5), (0, 0.5))})
    yield Case("ServiceDown", "an optional one that was there", {desk: ((1, 5), (0, 2))}, labels("desk"))
    yield Case("ServiceDown", "an optional one that never was", {desk: ((0, 10),)})
    yield Case("ServiceNotScraped", "no job", scraped("regime"), {"job": "regime"})
    yield Case("ServiceNotScraped", "all jobs", scraped(), is_edge=True)
    yield Case("CycleAbove2s", "one slow cycle", cycles(1), labels("budget"))
    yield Case("CycleAbove2s", "none", cycles(0))
    started = series("quantum_alloc_start_timestamp_seconds", "feed")
    yield Case("Restarts", "four", {started: tuple((t, 8) for t in (1, 2, 3, 4, 5))}, labels("feed"))
    yield Case("Restarts", "three", {started: tuple((t, 8) for t in (1, 2, 3, 4))}, is_edge=True)
    yield Case("Restarts", "four in more than an hour", {started: tuple((t, 20) for t in (1, 2, 3, 4, 5))})
    ok, nothing = (series("quantum_alloc_cycles_total", "regime", outcome=o) for o in ("ok", "nothing"))
    yield Case("NothingWritten", "nothing", {ok: ((9, 20),), nothing: (("0+1", 20),)}, labels("regime"))
    yield Case("NothingWritten", "now and then something", {ok: ((9, 10), (10, 10)), nothing: (("0+1", 20),)})
    yield Case("NothingWritten", "no cycles at all", {ok: ((9, 20),), nothing: ((3, 20),)})
    yield Case("NothingWritten", "too short", {ok: ((0, 1),), nothing: ((0, 0.5), (1, 0.5))})
    yield Case("NothingWritten", "without targets", {nothing.replace("regime", "proposer"): (("0+1", 20),)})
    last = series("quantum_alloc_last_log_line_timestamp_seconds", "apply", level="ERROR")
    yield Case("LogErrors", "an error", {last: ((300, 14),)}, labels("apply", level="ERROR"))
    yield Case("LogErrors", "ten minutes ago", {last: ((300, 15),)}, is_edge=True)
    warned = last.replace("ERROR", "WARNING")
    yield Case("LogErrors", "a warning", {warned: ((300, 6),)})
    yield Case("TwoBuilds", "two", builds(("feed", "1.0", "a"), ("budget", "1.1", "b")), {})
    yield Case("TwoBuilds", "one", builds(("feed", "1.0", "a"), ("budget", "1.0", "b")), is_edge=True)
    yield Case("TwoConfigurations", "two", builds(("feed", "1", "a"), ("feed", "1", "b")), {"job": "feed"})
    one = builds(("feed", "1", "a"), ("feed", "1", "a"), ("budget", "1", "b"))
    yield Case("TwoConfigurations", "each its own", one, is_edge=True)
    yield Case("StaleFallbacks", "eleven a minute", fallbacks(11, "0+999"), labels("allocation"))
    yield Case("StaleFallbacks", "nearly ten a minute", fallbacks(9.9, "0+999"), is_edge=True)
    yield Case("StaleFallbackShare", "above 1 %", fallbacks(4, "0+99"), labels("allocation"))
    yield Case("StaleFallbackShare", "1 %", fallbacks(4, "0+100"), is_edge=True)
    yield Case("StaleFallbackShare", "nothing looked at", fallbacks(0, "0+0"))
    targets, at = series("p29_targets_computed_total", "allocation", symbol="BTCUSDT"), series("up", "allocation")
    yield Case("NoTargets", "none any more", {targets: (("0+1", 9), (35, 7)), at: ((1, 16),)}, labels("allocation"))
    yield Case("NoTargets", "never one", {at: ((1, 6),)}, labels("allocation"))
    yield Case("NoTargets", "cannot be reached", {targets: (("0+1", 5), ("_", 8)), at: ((1, 5), (0, 8))},
               labels("allocation"))  # fmt: skip
    yield Case("NoTargets", "too short", {targets: (("0+1", 9), (35, 4)), at: ((1, 13),)})
    yield Case("NoTargets", "a slow cadence", {targets: tuple((n, 2) for n in range(9)), at: ((1, 18),)})
    count = series("quantum_alloc_targets", "allocation")
    yield Case("TargetsShrunk", "half", {count: ((11, 9), (5, 2))}, labels("allocation"))
    yield Case("TargetsShrunk", "more than half", {count: ((11, 9), (6, 2))}, is_edge=True)
    yield Case("TargetsShrunk", "never any", {count: ((0, 9),)})
    yield Case("TargetsShrunk", "so for half an hour", {count: ((11, 9), (5, 40))})
    yield Case("GateFailsOpen", "a quarter", outcomes("0+1", "0+3"), labels("governor", gate="0.5"))
    yield Case("GateFailsOpen", "a fifth", outcomes("0+1", "0+4"), is_edge=True)
    yield Case("GateFailsOpen", "not armed", outcomes("0+1", "0+0", armed="0"))
    yield Case("GateFailsOpen", "no plans", outcomes("4+0", "4+0"))
    still = series("quantum_alloc_input_constant_seconds", "allocation", input="budget")
    yield Case("InputConstant", "an hour", {still: ((3600, 2),)}, labels("allocation", input="budget"))
    yield Case("InputConstant", "nearly", {still: ((3599, 2),)}, is_edge=True)
    yield Case("InputConstant", "one that may", {still.replace("budget", "clusters"): ((9999, 2),)})
    held, filled = (
        series("quantum_alloc_positions", "portfolio"),
        series("quantum_alloc_execution_entries_total", "attribution", result="applied"),
    )
    for name, moved in (("portfolio", {held: ((2, 70),)}), ("performance", {filled: (("0+1", 70),)})):
        mine = {still.replace("budget", name): ((3600, 70),)}
        yield Case("InputConstant", f"{name} with what moves it", {**mine, **moved}, labels("allocation", input=name))
        yield Case("InputConstant", f"{name} without", {**mine, held: ((0, 70),), filled: ((7, 70),)})
    yield Case("ProposalsNeutral", "two thirds", proposals("0+2", "0+1"), labels("proposer"))
    yield Case("ProposalsNeutral", "half", proposals("0+1", "0+1"), is_edge=True)
    yield Case("ProposalsNeutral", "none at all", proposals("3+0", "3+0"))
    used = "quantum_alloc_limit_used_ratio"
    yield Case("LimitNearlyUsed", "80 %", {series(used, "governor", gate="5", symbol="BTCUSDT"): ((0.8, 3),)},
               {"job": "governor", "gate": "5", "symbol": "BTCUSDT"})  # fmt: skip
    yield Case("LimitNearlyUsed", "79 %", {series(used, "governor", gate="5", symbol="BTCUSDT"): ((0.79, 3),)},
               is_edge=True)  # fmt: skip
    for gate in ("4.cooldown", "4.trade", "3", "plan", "4.total"):
        yield Case("LimitNearlyUsed", "used by one", {series(used, "governor", gate=gate, symbol="A"): ((1, 3),)})
    book = {series(used, "governor", gate="4.total", symbol=symbol): ((0.8, 3),) for symbol in "AB"}
    yield Case("BookNearlyFull", "80 %, told once", book, {"job": "governor", "gate": "4.total"})
    yield Case("BookNearlyFull", "too short", minutes(book, 0.5))
    yield Case("BookNearlyFull", "a symbol's own", {series(used, "governor", gate="5", symbol="A"): ((1, 3),)})
    full = series(used, "governor", gate="4.positions", symbol="A")
    yield Case("BookNearlyFull", "79 %", {full: ((0.79, 3),)}, is_edge=True)


def _all() -> Iterator[Case]:
    yield from _special()
    yield from _too_short()
    yield from gauge("NotReady", "feed", "quantum_alloc_ready", 0, 1, wait_min=2)
    yield from gauge("LoopLate", "feed", "quantum_alloc_loop_late")
    yield from counter("CycleErrors", "feed", "quantum_alloc_cycles_total", outcome="error")
    yield from counter("SymbolErrors", "budget", "quantum_alloc_symbol_errors_total")
    yield from counter("LogWarnings", "feed", "quantum_alloc_log_lines_total", 30, level="WARNING")
    yield from gauge("ModeNotUnderstood", "budget", "quantum_alloc_mode_unrecognised", wait_min=1)
    yield from gauge("TooManySymbols", "budget", "quantum_alloc_dropped_symbols", wait_min=1)
    yield from gauge("RefusedNames", "budget", "quantum_alloc_refused_names", wait_min=5)
    yield from counter("RedisLogin", "budget", STORE, by=("code",), code="NOPERM")
    yield from counter("RedisRefuses", "budget", STORE, OFTEN, by=("code",), code="OOM")
    yield from counter("RedisUnreachable", "budget", STORE, OFTEN, code="timeout")
    for alert, code in (("RedisRefuses", "LOADING"), ("RedisUnreachable", "closed")):
        failures = series(STORE, "governor", code=code)
        yield Case(alert, "Redis is back within ten seconds", {failures: ((0, 5), (13, 2))})
        code_shown = {"code": code} if alert == "RedisRefuses" else {}
        yield Case(alert, "half a minute", {failures: ((0, 5), (30, 2))}, labels("governor", **code_shown))
    yield from counter("RedisConflicts", "efficiency", STORE, 5, code="conflict")
    yield from counter("JournalFails", "governor", STORE, code="journal")
    yield from counter("WritesRefused", "budget", "quantum_alloc_write_refused_total", by=("code",), code="WRONGTYPE")
    for alert, what in (("ServerUnsafe", "appendonly"), ("ServerAlone", "min_replicas")):
        lacking = {series("quantum_alloc_server_lacks", job, what=what): ((1, 3),) for job in ("budget", "apply")}
        yield Case(alert, "told once", lacking, {"what": what})
        yield Case(alert, "too short", minutes(lacking, 0.5))
        yield Case(alert, "nothing", dict.fromkeys(lacking, ((0, 3),)), is_edge=True)
    yield from counter("ServerReplaced", "governor", "quantum_alloc_store_epoch_changes_total")
    skipped = "quantum_alloc_skipped_total"
    yield from lasting("SymbolsSkipped", "allocation", skipped, ("reason",), reason="budget_missing")
    yield from gauge("Drawdown", "portfolio", "quantum_alloc_drawdown_ratio", 0.15, 0.149)
    over = "quantum_alloc_budget_violations_total"
    yield from lasting("OverBudget", "budget", over, ("symbol",), symbol="BTCUSDT")
    blind = "quantum_alloc_armed_but_blind"
    yield from gauge("GateBlind", "governor", blind, kind="gate", name="0.5")
    yield from gauge("InputBlind", "allocation", blind, kind="input", name="regime")
    yield Case("GateBlind", "an input", {series(blind, "governor", kind="input", name="target"): ((1, 3),)})
    yield Case("InputBlind", "a gate", {series(blind, "governor", kind="gate", name="0"): ((1, 3),)})
    by = ("input", "reason")
    for n, reason in enumerate(("malformed", "future_ts", "redis_error")):
        told = {"reason": reason, "input": "budget"}
        yield from lasting("InputsUnreadable", "allocation", INPUTS, by, only_counted=n > 0, **told)
    yield Case("InputsUnreadable", "missing", {series(INPUTS, "budget", input="cluster", reason="missing"):
               (("0+1", 12),)})  # fmt: skip
    yield from gauge("PositionsUnusable", "portfolio", "quantum_alloc_positions_unusable", wait_min=2, how="left_out")
    bases = "quantum_alloc_not_proposed_total"
    yield from lasting("BaseTargetsUnusable", "proposer", bases, ("reason",), reason="base_stale")
    candles = "quantum_alloc_feed_candles_total"
    yield from counter("CandlesLeftOut", "feed", candles, by=("result",), result="late")
    late, began = series(candles, "feed", result="late"), series("quantum_alloc_start_timestamp_seconds", "feed")
    yield Case("CandlesLeftOut", "at its start", {late: ((3, 2),), began: ((0, 2),)}, labels("feed", result="late"))
    yield Case("CandlesLeftOut", "long ago", {late: ((3, 70),), began: ((0, 70),)})
    for alert, metric in (
        ("ExecutionsMissed", "quantum_alloc_execution_missed_total"),
        ("ExecutionStreamRestarted", "quantum_alloc_execution_stream_restarts_total"),
        ("StateMalformed", "quantum_alloc_state_malformed_total"),
    ):
        yield from counter(alert, "efficiency", metric)
    yield from gauge("ExecutionsBehind", "efficiency", "quantum_alloc_execution_behind", wait_min=5)
    yield from gauge("ExecutionsBeyond", "efficiency", "quantum_alloc_execution_beyond", wait_min=1)
    entries = "quantum_alloc_execution_entries_total"
    yield from counter("ExecutionsSetAside", "efficiency", entries, by=("result",), result="pnl")
    yield Case("ExecutionsSetAside", "applied", {series(entries, "efficiency", result="applied"): (("0+1", 9),)})
    for row in CLASSES:
        for n, reason in enumerate(row.reasons):
            yield from counter(
                f"Blocks{row.name}", "governor", "quantum_alloc_blocks_total", row.more_than, only_counted=n > 0,
                reason=reason,
            )  # fmt: skip
    for alert, metric in (
        ("PlansLost", "quantum_alloc_plans_missed_total"),
        ("PlanGroupLost", "quantum_alloc_plan_groups_made_total"),
        ("PermitsRestored", "quantum_alloc_permits_restored_total"),
    ):
        yield from counter(alert, "governor", metric)
    yield from gauge("PlansUnanswered", "governor", "quantum_alloc_plans_waiting", wait_min=1)
    for alert, result in (("PlanDeadLetters", "dead_letter"), ("PlanConflicts", "conflict"), ("PlanBadIds", "bad_id")):
        yield from counter(alert, "governor", "quantum_alloc_plans_total", result=result)
    yield from gauge("Halted", "governor", "quantum_alloc_kill_state", state="HALT")
    yield from gauge("ReduceOnly", "apply", "quantum_alloc_kill_state", state="REDUCE_ONLY")
    yield from counter("Disarmed", "governor", "quantum_govern_disarm_total", by=("reason",), reason="error_count")
    yield from gauge("OpensHeld", "governor", "quantum_alloc_hold", reason="recovery_hold")
    yield from gauge("ClockSkew", "governor", "quantum_alloc_clock_skew_seconds", -1.1, 1, wait_min=1)
    for alert, kind in (
        ("FillWithoutPermit", "without_permit"),
        ("FillAbovePermit", "above_permit"),
        ("FillElsewhere", "elsewhere"),
    ):
        yield from grown(alert, f"quantum_alloc_fills_{kind}_total")
    for alert, metric in (
        ("AccountWritesLost", "quantum_alloc_account_writes_lost_total"),
        ("PermitEventsMissed", "quantum_alloc_permit_events_missed_total"),
        ("PermitEventsOdd", "quantum_alloc_permit_events_odd_total"),
    ):
        yield from counter(alert, "apply", metric)
    ends = "quantum_alloc_apply_results_total"
    yield from counter("BadPermits", "apply", ends, fate="refused", reason="bad_permit")
    yield from counter("PermitsRefused", "apply", ends, by=("reason",), fate="refused", reason="mode_mismatch")
    yield from counter("PermitsGone", "apply", ends, fate="void", reason="permit_gone")
    yield from counter("PermitsExpire", "apply", ends, 5, by=("reason",), fate="expired", reason="permit_expired")
    yield from counter("ApplyWritesRefused", "apply", "quantum_alloc_apply_refused_total", 10, by=("reason",),
                       reason="state")  # fmt: skip
    yield from gauge("NegativeBalance", "apply", "quantum_alloc_balance_usd", -0.01, 0)


CASES: tuple[Case, ...] = tuple(_all())
"""Every situation that is tried."""
