"""Everything that the checks of a running installation look at, read once: ports twice, Redis after the second look.

    facts(settings, store, names, ...)     pages, keys and streams: bounded, and without KEYS
    stored(settings, store, looked)        what Redis holds, beside pages that were looked at

Nothing is written. Hashes are read before the streams that tell of them, and cycles before their decisions: whatever a
service writes meanwhile, the record of a hash that was read is in its stream by then.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from quantum_alloc.adapters import apply_wire, codec, server_check, wire
from quantum_alloc.adapters import governor_wire as gw
from quantum_alloc.adapters.effects import Command, Reply
from quantum_alloc.adapters.key_patterns import BY_SYMBOL, FIXED, IN_SHADOW
from quantum_alloc.adapters.keys import STREAMS
from quantum_alloc.adapters.ops_chain import FILE
from quantum_alloc.adapters.ops_entry import LedgerError
from quantum_alloc.adapters.ops_ledger import OpsLedger
from quantum_alloc.adapters.store import Store
from quantum_alloc.adapters.universe import Universe
from quantum_alloc.core.limits import US
from quantum_alloc.services.demo_keep import ENV, LOG
from quantum_alloc.services.options import Settings
from quantum_alloc.services.proof_pages import Tell, ours, pages, waited
from quantum_alloc.services.proof_seen import Facts, Key, Tail

SYMBOLS = 200
"""So many symbols are looked at, unless told otherwise."""
TAIL = 60
"""So many entries of a stream are judged one by one."""
TAIL_MOST, PAGE = 25_000, 1_000
"""So many entries of a stream with an entry a symbol are read at most, and so many at once."""
CYCLES = 3
A_SYMBOL = ("decisions", "attributions", "efficiencies", "proposals")
"""Streams with an entry a symbol and cycle."""
ENFORCED = ("target", "attribution", "efficiency")
"""Hashes that only a service in enforce writes."""


def _fields(reply: Reply) -> dict[str, bytes]:
    flat = reply if isinstance(reply, list) else []
    pairs = zip(flat[::2], flat[1::2], strict=False)
    return {n.decode("utf-8", "replace"): v for n, v in pairs if isinstance(n, bytes) and isinstance(v, bytes)}


class Reader:
    """Reads Redis for the checks."""

    def __init__(self, settings: Settings, store: Store, most: int = SYMBOLS) -> None:
        """Find the symbols.

        Args:
            settings: with the names.
            store: where to look.
            most: symbols that are looked at.

        Raises:
            StoreError: Redis does not answer.
        """
        self._settings, self._store, self._keys = settings, store, settings.keys
        k = self._keys
        prefixes = (k.budget(""), k.position(""), k.market(""), k.target(""), k.efficiency(""))
        universe = Universe(k, prefixes, settings.common.symbols, settings.common.max_symbols)
        universe.whole = True
        names = universe.find(store, store.read(universe.query), time.time()).names
        self.universe, self.symbols = len(names), names[:most]

    def enforced(self) -> dict[str, Mapping[str, bytes]]:
        """The hashes that only enforce writes, by key; those that stand.

        Raises:
            StoreError: Redis does not answer.
        """
        keys = [str(getattr(self._keys, name)(s)) for name in ENFORCED for s in self.symbols]
        replies = self._store.read([("HGETALL", key) for key in keys])
        return {key: fields for key, reply in zip(keys, replies, strict=True) if (fields := _fields(reply))}

    def keys(self, stress_of: Sequence[str], plans: Sequence[str]) -> tuple[Key, ...]:
        """The keys that stand, of every name that has no stream.

        Args:
            stress_of: ids of clusters.
            plans: ids of plans.

        Raises:
            StoreError: Redis does not answer.
        """
        k = self._keys
        wanted = [(name, str(getattr(k, name)), "") for name in FIXED]
        wanted += [(n, str(getattr(k, n)(s)), s) for n in BY_SYMBOL if n != "bars" for s in self.symbols]
        wanted += [(f"shadow_{n}", str(getattr(k.shadow, n)(s)), s) for n in IN_SHADOW for s in self.symbols]
        wanted += [("stress", k.stress(c), c) for c in stress_of]
        wanted += [(n, str(getattr(k, n)(p)), p) for n in ("block", "permit", "tombstone") for p in plans]
        asked: list[Command] = [c for _, key, _ in wanted for c in (("TYPE", key), ("TTL", key))]
        told = self._store.read(asked)
        kinds = [t.decode() if isinstance(t, bytes) else "none" for t in told[::2]]
        there = [
            (*w, kind, ttl if isinstance(ttl, int) else -1)
            for w, kind, ttl in zip(wanted, kinds, told[1::2], strict=True)
            if kind != "none"
        ]
        read: list[Command] = [
            ("HGETALL", key) if kind == "hash" else ("GET", key) if kind == "string" else ("TYPE", key)
            for _, key, _, kind, _ in there
        ]
        replies = self._store.read(read)
        found = []
        for (name, key, of, kind, ttl), reply in zip(there, replies, strict=True):
            text = reply if kind == "string" and isinstance(reply, bytes) else b""
            found.append(Key(name, key, of, kind, ttl, _fields(reply) if kind == "hash" else {}, text))
        return tuple(found)

    def tails(self) -> dict[str, Tail]:
        """The newest entries of every stream, cycles before their decisions.

        Raises:
            StoreError: Redis does not answer.
        """
        named = self._settings.streams
        where = {n: named.get(n) or self._keys.stream(STREAMS[n]) for n in STREAMS}
        cycles = self._tail("cycles", where["cycles"], CYCLES)
        most = min(TAIL_MOST, max(TAIL, (CYCLES + 1) * max(1, self.universe)))
        found = {"cycles": cycles}
        for name, key in where.items():
            if name != "cycles":
                found[name] = self._tail(name, key, most if name in A_SYMBOL else 4 * TAIL)
        for symbol in self.symbols:
            found[f"bars:{symbol}"] = self._tail("bars", self._keys.bars(symbol), 2)
        return found

    def plans(self) -> list[str]:
        """Ids of the newest plans, those that can name a key.

        Raises:
            StoreError: Redis does not answer.
        """
        told = self._tail("plans", self._settings.common.plans_stream, TAIL).entries
        names = [codec.word(e.get("plan_id", b"")) for e in told]
        return [n for n in dict.fromkeys(names) if n is not None]

    def _tail(self, name: str, key: str, most: int) -> Tail:
        ids: list[str] = []
        entries: list[Mapping[str, bytes]] = []
        last, page, kind = "+", PAGE, "none"
        while len(ids) < most and page == PAGE:
            wanted = min(PAGE, most - len(ids))
            reply, told = self._store.read([("XREVRANGE", key, last, "-", "COUNT", wanted), ("TYPE", key)])
            kind = told.decode() if isinstance(told, bytes) else "none"
            rows = reply if isinstance(reply, list) else []
            for row in rows:
                if isinstance(row, list) and isinstance(row[0], bytes):
                    ids.append(row[0].decode())
                    entries.append(wire.entry_fields(row) or {})
            last, page = f"({ids[-1]}" if ids else "+", len(rows)
        return Tail(name, key, tuple(ids[::-1]), tuple(entries[::-1]), whole=len(ids) < most, kind=kind)

    def clusters(self) -> wire.ClusterMap:
        """The cluster map.

        Raises:
            StoreError: Redis does not answer.
        """
        return wire.decode_clusters(self._store.read([("HGETALL", self._keys.clusters)])[0])


def _ledger(settings: Settings, store: Store) -> tuple[tuple[str, ...] | None, int]:
    """What is wrong with the OPS ledger, and its length; None where this machine holds none."""
    if not (settings.common.state_directory / FILE).exists():
        return None, 0
    ledger = OpsLedger(settings.common.state_directory, store, settings.keys)
    try:
        return tuple(ledger.verify()), len(ledger.entries())
    except (LedgerError, OSError) as error:
        return (str(error),), 0


def _log(settings: Settings) -> str:
    """The file that the services of a kept demo log into; empty where the settings are not those of one."""
    directory = settings.common.state_directory.parent
    return str(directory / LOG) if (directory / ENV).is_file() and (directory / LOG).is_file() else ""


def facts(
    settings: Settings,
    store: Store,
    names: Sequence[str],
    *,
    most: int = SYMBOLS,
    wait_s: float | None = None,
    tell: Tell = lambda _: None,
) -> Facts:
    """Everything, in the order that the checks rely on.

    Args:
        settings: of all services.
        store: where to look.
        names: services that matter.
        most: symbols that are looked at.
        wait_s: for a further cycle, seconds; None for three intervals of the slowest and 5 s.
        tell: is told whom it waits for.

    Raises:
        StoreError: Redis does not answer.
    """
    store.ping()
    first = pages(settings, is_first=True)
    before = Reader(settings, store, most).enforced()
    second = waited(settings, first, names, wait_s, tell)
    return stored(settings, store, Facts(settings, 0.0, 0.0, first, second, before=before), most)


def stored(settings: Settings, store: Store, looked: Facts, most: int = SYMBOLS) -> Facts:
    """What Redis holds, beside the pages that were looked at.

    Args:
        settings: of all services.
        store: where to look.
        looked: with both looks at the pages.
        most: symbols that are looked at.

    Raises:
        StoreError: Redis does not answer.
    """
    reader = Reader(settings, store, most)
    clusters = reader.clusters()
    plans = reader.plans()
    now = time.time()
    keys = reader.keys(clusters.ids, plans)
    tails = reader.tails()
    clock, kill, latch, account = store.read(
        [
            ("TIME",),
            ("GET", settings.keys.kill),
            ("HMGET", settings.keys.latch, "state", "since", "by", "why"),
            ("HGETALL", settings.keys.apply_state),
        ]
    )
    server_now = (gw.time_us(clock) or 0) / US - (time.time() - now)
    server, at = server_check.read_facts(store), time.time()
    lacks = server_check.judge(server, guards=False).lacks
    findings, held = _ledger(settings, store)
    return replace(
        looked,
        first=ours(looked.first, server, at),
        second=ours(looked.second, server, at),
        log=_log(settings),
        now=now,
        server_now=server_now,
        symbols=reader.symbols,
        universe=reader.universe,
        keys=keys,
        tails=tails,
        clusters=clusters,
        loaded=apply_wire.decode_state(account),
        lacks={lack.value: text for lack, text in lacks.items()},
        kill=gw.kill_state(kill).value,
        latched=gw.is_latched(latch),
        ledger=findings,
        ledger_entries=held,
    )
