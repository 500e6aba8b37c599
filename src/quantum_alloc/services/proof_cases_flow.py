"""Cases of what a mode changes: allocation, budget, attribution and efficiency, each in shadow and in enforce.

Shadow leaves exactly the keys that the contract allows it, and none that others act on; enforce decides the same to the
letter, but for the word, and writes the hash with its expiry. What a service may write is read off the table of rights.
"""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase

from quantum_alloc.adapters.effects import HashReplace, HashSet
from quantum_alloc.adapters.key_patterns import Names
from quantum_alloc.adapters.keys import HashKeys
from quantum_alloc.adapters.rights import USERS, Rules
from quantum_alloc.adapters.writes import BUDGET_TTL_S, stamp
from quantum_alloc.services import inject
from quantum_alloc.services.options import AllocationOptions, AttributionOptions, EfficiencyOptions
from quantum_alloc.services.proof import Result
from quantum_alloc.services.proof_bench import EQUITY_USD, PRICE_USD, Bench, Lane
from quantum_alloc.services.proof_judging import differences, judged, lives, same
from quantum_alloc.services.proof_settings import A, B
from quantum_alloc.services.settings import Mode

SYMBOLS = (A, B)
BUDGETS_USD = {A: 1_000.0, B: 2_000.0}
STRESS, CLUSTER = 0.3, "c1"
PNLS_USD = (12.0, -5.0, 30.0)
PERFORMANCE, SURE, TARGET_USD = 0.7, 0.9, 800.0


def flow_inputs(lane: Lane) -> None:
    """What feeds a target: portfolio, regime, clusters and their stress, budgets, attributions.

    Args:
        lane: where.
    """
    where = lane.aged()
    lane.put(
        inject.portfolio(where, EQUITY_USD, 0.0, 0),
        HashReplace(lane.keys.clusters, {CLUSTER: f'["{A}","{B}"]'}),
        HashSet(lane.keys.stress(CLUSTER), {"stress": str(STRESS), "alpha": "0.0", **stamp(lane.now)}, 180),
        *(inject.attribution(where, s, 0.5, 1.0) for s in SYMBOLS),
        *(inject.market(where, s, PRICE_USD) for s in SYMBOLS),
        *(inject.position(where, s, 1.0, PRICE_USD) for s in SYMBOLS),
    )
    regime = {"regime": "TREND", "confidence": "0.8", **stamp(lane.now)}
    lane.add(lane.keys.stream("regime.state"), regime)
    for symbol, usd in BUDGETS_USD.items():
        lane.budget(symbol, usd)


def executions(lane: Lane) -> int:
    """Executions of both symbols, with a PnL and without, and one entry that is none.

    Args:
        lane: where.

    Returns:
        How many carry a PnL.
    """
    stream = lane.settings.of(EfficiencyOptions).execution_stream
    for pnl in PNLS_USD:
        for symbol in SYMBOLS:
            lane.add(stream, {"symbol": symbol, "pnl_usd": str(pnl), "filled_qty": "1", **stamp(lane.now)})
    lane.add(stream, {"symbol": A, "filled_qty": "1", **stamp(lane.now)})
    lane.add(stream, {"symbol": "no symbol", "pnl_usd": "many"})
    return len(PNLS_USD) * len(SYMBOLS)


def feed(lane: Lane, service: str) -> None:
    """All inputs of a service.

    Args:
        lane: where.
        service: its name.
    """
    if service in ("attribution", "efficiency"):
        executions(lane)
    if service in ("allocation", "budget"):
        flow_inputs(lane)
    if service == "efficiency":
        lane.put(*(inject.attribution(lane.aged(), s, PERFORMANCE, SURE) for s in SYMBOLS))
        for symbol in SYMBOLS:
            lane.target(symbol, TARGET_USD)


# ---- what a mode may write


def _allowed(lane: Lane, service: str, *, enforces: bool) -> Callable[[str], bool]:
    """Whether the table of rights lets a service write a key."""
    rules = Rules(Names(lane.keys, lane.settings.streams), enforces)
    writes = [key for key, (_, w) in rules.access(USERS[service]).items() if w]
    patterns = [p.replace("\\", "") for key in writes for p in rules.names.patterns(key)]
    return lambda name: any(fnmatchcase(name, pattern) for pattern in patterns)


def made(lane: Lane, service: str) -> set[str]:
    """The keys that a cycle of a service makes.

    Args:
        lane: where; it holds nothing yet.
        service: its name.
    """
    feed(lane, service)
    before = set(lane.names)
    lane.once(service)
    return set(lane.names) - before


OWN: dict[str, tuple[str, Callable[[HashKeys, str], str], Callable[[Lane], list[str]]]] = {
    "allocation": (
        "allocation",
        lambda keys, s: keys.target(s),
        lambda lane: [lane.keys.stream("allocation.decision"), lane.keys.stream("allocation.cycle")],
    ),
    "attribution": (
        "efficiency",
        lambda keys, s: keys.attribution(s),
        lambda lane: [
            lane.keys.stream("alpha.attribution"), lane.keys.stream("execution.deadletter"),
            lane.keys.attribution_state,
        ],
    ),
    "efficiency": (
        "efficiency",
        lambda keys, s: keys.efficiency(s),
        lambda lane: [
            lane.settings.of(EfficiencyOptions).efficiency_stream, lane.keys.stream("execution.deadletter"),
            lane.keys.efficiency_state,
        ],
    ),
}  # fmt: skip
"""Of each service with a mode: its cases' group, the hash that others act on, and what it writes in both modes."""


def _records(lane: Lane, service: str) -> list[dict[str, str]]:
    return lane.entries(OWN[service][2](lane)[0])


def _life_s(lane: Lane, service: str) -> int:
    if service == "allocation":
        return lane.settings.of(AllocationOptions).target_ttl_s
    if service == "attribution":
        return lane.settings.of(AttributionOptions).attribution_ttl_s
    return lane.settings.of(EfficiencyOptions).key_ttl_s


def _stand(lane: Lane, service: str) -> None:
    """What others act on, as it stood before the service was set to shadow."""
    where = lane.aged(1.0)
    for symbol in SYMBOLS:
        if service == "allocation":
            lane.target(symbol, 7.0, age_s=1.0)
        elif service == "attribution":
            lane.put(inject.attribution(where, symbol, 0.7, 0.7))
        else:
            lane.put(inject.efficiency(where, symbol, 0.7, 0.7))


def _shadow(bench: Bench, service: str) -> list[Result]:
    group, hash_of, always = OWN[service]
    check, out = f"{service}-shadow", []
    for case in ("without a shadow lane", "with the shadow lane", "over what stands"):
        lane = bench.lane(f"{check}-{case.split()[0]}", shadow_lane=case.startswith("with "))
        if case == "over what stands":
            _stand(lane, service)
        stood = [lane.hash(hash_of(lane.keys, s)) for s in SYMBOLS]
        written = made(lane, service)
        aside = {hash_of(lane.keys.shadow, s) for s in SYMBOLS}
        due = {*always(lane), lane.keys.universe, *(aside if lane.settings.common.shadow_lane else ())}
        wrong = [f"{lane.plain(n)} was written, and is not shadow's" for n in sorted(written - due)]
        wrong += [f"{lane.plain(n)} was not written" for n in sorted(due - written)]
        may = _allowed(lane, service, enforces=False)
        wrong += [f"{lane.plain(n)} is not among the rights of shadow" for n in sorted(written) if not may(n)]
        if [lane.hash(hash_of(lane.keys, s)) for s in SYMBOLS] != stood:
            wrong.append(f"{lane.plain(hash_of(lane.keys, '*'))} is not what it was")
        wrong += [f"a record of mode {r.get('mode')!r}" for r in _records(lane, service) if r.get("mode") != "shadow"]
        out.append(judged((group, check, case), wrong, f"{len(written)} keys, none that others act on"))
    return out


def enforced(bench: Bench, service: str) -> list[Result]:
    """The same cycle in both modes.

    Args:
        bench: where.
        service: its name.
    """
    group, hash_of, _always = OWN[service]
    check = f"{service}-enforce"
    aside, lane = bench.lane(f"{check}-shadow"), bench.lane(check, Mode.ENFORCE)
    made(aside, service)
    written = made(lane, service)
    may = _allowed(lane, service, enforces=True)
    wrong = [f"{lane.plain(n)} is not among the rights of enforce" for n in sorted(written) if not may(n)]
    records, shown = _records(lane, service), _records(aside, service)
    for mode, told in (("enforce", records), ("shadow", shown)):
        wrong += [] if len(told) == len(SYMBOLS) else [f"{len(told)} records in {mode}, due {len(SYMBOLS)}"]
    for mine, other in zip(records, shown, strict=False):
        wrong += same({**other, "mode": "enforce"}, mine)
        wrong += differences({"mode": "shadow"}, other)
    for record in records:
        key = hash_of(lane.keys, record.get("symbol", ""))
        stands = lane.hash(key)
        wrong += [] if stands else [f"{lane.plain(key)} was not written"]
        wrong += differences({n: record.get(n) for n in stands if n in record}, stands)
        wrong += lives(lane.life_s(key), _life_s(lane, service)) if stands else []
    fine = f"{len(records)} decisions, the same but for the mode"
    return [judged((group, check, "the same cycle in both modes"), wrong, fine)]


def allocation_shadow(bench: Bench) -> list[Result]:
    """P2.9 in shadow."""
    return _shadow(bench, "allocation")


def budget_modes(bench: Bench) -> list[Result]:
    """P2.8 writes its hash in both modes, which differ by the mode."""
    found, wrong = [], []
    for mode in (Mode.SHADOW, Mode.ENFORCE):
        lane = bench.lane(f"budget-{mode.value}", mode)
        flow_inputs(lane)
        lane.store.read([("DEL", lane.keys.budget(s)) for s in SYMBOLS])
        before = set(lane.names)
        lane.once("budget")
        due = {lane.keys.budget(s) for s in SYMBOLS} | {lane.keys.universe}
        written = set(lane.names) - before
        wrong += [f"{lane.plain(n)} in {mode.value}: one mode too many or too few" for n in sorted(written ^ due)]
        found.append({s: lane.hash(lane.keys.budget(s)) for s in SYMBOLS})
        for symbol in SYMBOLS:
            wrong += differences({"mode": mode.value, "timestamp": str(int(lane.now))}, found[-1][symbol])
            wrong += lives(lane.life_s(lane.keys.budget(symbol)), BUDGET_TTL_S)
    for symbol in SYMBOLS:
        wrong += same({**found[0][symbol], "mode": "enforce"}, found[1][symbol])
    fine = f"budgets of {', '.join(found[1][s].get('budget_usd', '') for s in SYMBOLS)} USD in both modes"
    return [judged(("allocation", "budget-modes", "the same cycle in both modes"), wrong, fine)]


def attribution_shadow(bench: Bench) -> list[Result]:
    """P3.0 in shadow."""
    return _shadow(bench, "attribution")


def efficiency_shadow(bench: Bench) -> list[Result]:
    """P3.1 in shadow."""
    return _shadow(bench, "efficiency")
