"""The table of rights: complete, in order, and nobody but its owner writes."""

from __future__ import annotations

import inspect
import re
import shlex
from collections import defaultdict
from importlib.resources import files
from pathlib import Path

import pytest

from quantum_alloc.adapters.key_patterns import (
    BY_ID,
    BY_SYMBOL,
    EVERYTHING,
    FIXED,
    IN_SHADOW,
    KNOWN,
    Names,
)
from quantum_alloc.adapters.keys import STREAMS, Keys, Lane, ShadowKeys
from quantum_alloc.adapters.rights import PROVED, USERS, Right, Rules, When, user_of
from quantum_alloc.services import acl_cli
from quantum_alloc.services.app import SERVICES
from quantum_alloc.services.options import GROUPS, load
from quantum_alloc.services.service_options import TAKEN_STREAMS

NO_KEYS = {"key", "tagged", "stream", "shadow", "root", "lane", "tag", "proof"}
"""What ``Keys`` has beside keys."""
OWNERS = {
    # written by one service alone
    "apply_state": "apply", "results": "apply",
    "attribution_state": "attribution", "attributions": "attribution",
    "bars": "feed",
    "block": "governor", "book": "apply governor", "dead_plans": "governor", "epoch": "governor",
    "last_exec": "governor", "ledger": "governor", "tombstone": "governor",
    "budget": "budget", "violations": "budget",
    "clusters": "clusters", "stress": "clusters",
    "cycles": "allocation", "decisions": "allocation", "shadow_target": "allocation",
    "desk_state": "desk",
    "efficiencies": "efficiency", "efficiency_state": "efficiency",
    "peak": "portfolio", "portfolio_states": "portfolio",
    "proposals": "proposer", "proposed": "proposer", "shadow_proposed": "proposer",
    # issued by one, used up by the other
    "permit": "apply governor",
    # set aside by whoever reads
    "dead_executions": "attribution efficiency",
    # the account: whoever holds it
    "balance": "apply feed", "position": "apply feed operator", "executions": "apply feed operator",
    # the kill switch: an operator, a governor that disarms itself; a halt is latched by whoever sees it first
    "kill": "governor operator", "latch": "apply governor operator", "rearm": "operator",
    "events": "apply governor operator",
    # what `inject` may write, or `clear-targets` delete
    "attribution": "attribution operator", "shadow_attribution": "attribution operator",
    "efficiency": "efficiency operator", "shadow_efficiency": "efficiency operator",
    "market": "feed operator", "plans": "desk governor operator", "portfolio": "operator portfolio",
    "regimes": "operator regime", "target": "allocation operator", "transfers": "operator",
    # operations are written down by an operator, and by a governor that disarms itself
    "ops_head": "governor operator", "ops_head_of": "governor operator",
    # every writer of a symbol adds it
    "universe": "allocation apply attribution budget desk efficiency feed proposer",
}  # fmt: skip
"""Who writes what, as the contract has it; told here once more by hand, so that a slip in the table is seen."""


def test_every_key_of_the_lanes_has_a_name_in_the_table() -> None:
    """A key that is added to ``Keys`` and not to the table is found here."""
    members = {n for n, _ in inspect.getmembers(Keys) if not n.startswith("_")} - NO_KEYS
    streams = {"events", "results", "transfers"}
    assert members == {*FIXED, *BY_SYMBOL, *BY_ID, *streams}
    aside = {n for n, _ in inspect.getmembers(ShadowKeys) if not n.startswith("_")} - NO_KEYS
    assert aside == set(IN_SHADOW)
    assert len(KNOWN) == len(set(KNOWN))


def test_every_stream_of_the_contract_has_a_name_in_the_table() -> None:
    """Those that settings must not take for others are those of the table."""
    assert {Keys().stream(n) for n in STREAMS.values()} == TAKEN_STREAMS


def test_every_service_has_a_user() -> None:
    """And the two for people; nobody else."""
    assert set(USERS) == {*SERVICES, "operator", "watch"}
    assert user_of("governor") == "qa-governor"


def test_the_table_is_sorted_and_says_everything_once() -> None:
    """Users, rights, commands, scripts."""
    assert list(USERS) == sorted(USERS)
    for name, user in USERS.items():
        assert list(user.rights) == sorted(user.rights, key=lambda r: (r.key, r.when)), name
        assert len({(r.key, r.when) for r in user.rights}) == len(user.rights), name
        assert list(user.commands) == sorted(set(user.commands)), name
        assert list(user.scripts) == sorted(set(user.scripts)), name
        assert all(r.reads or r.writes for r in user.rights), name
    for names in (
        FIXED,
        BY_SYMBOL,
        BY_ID,
        IN_SHADOW,
        tuple(STREAMS),
    ):
        assert list(names) == sorted(names)


def test_rights_and_scripts_name_keys_of_the_table() -> None:
    """Nothing is opened to a script that the user has no right to."""
    for name, user in USERS.items():
        assert {r.key for r in user.rights} <= {*KNOWN, EVERYTHING}, name
        assert set(user.scripts) <= {r.key for r in user.rights if r.when is When.ALWAYS}, name


def test_every_key_is_read_or_written_by_somebody() -> None:
    """A name that nobody uses any more is to be taken out."""
    assert {r.key for u in USERS.values() for r in u.rights} - {EVERYTHING} == set(KNOWN)


def test_nobody_but_its_owner_writes() -> None:
    """The writers of each key, over all installations."""
    found: dict[str, set[str]] = defaultdict(set)
    for name, user in USERS.items():
        for right in user.rights:
            if right.writes:
                found[right.key].add(name)
    assert {key: " ".join(sorted(names)) for key, names in found.items()} == OWNERS


def test_who_looks_writes_nothing() -> None:
    """``watch`` has no right to write, and no command that does."""
    assert USERS["watch"].rights == (Right(EVERYTHING, reads=True),)
    assert not USERS["watch"].scripts
    assert not {"set", "del", "hset", "hdel", "xadd", "sadd", "srem", "expire", "multi", "eval"} & set(
        USERS["watch"].commands
    )


def test_in_shadow_no_service_writes_what_others_act_on() -> None:
    """Exactly the three hashes that a mode keeps back; the budget is written in both modes."""
    kept_back = {(name, r.key) for name, u in USERS.items() for r in u.rights if r.when is When.ENFORCE}
    assert kept_back == {("allocation", "target"), ("attribution", "attribution"), ("efficiency", "efficiency")}
    shadow = Rules(enforces=False)
    for name, key in kept_back:
        assert not shadow.access(USERS[name]).get(key, (False, False))[1]
        assert Rules().access(USERS[name])[key][1]


def test_the_feed_writes_the_account_only_where_it_holds_it() -> None:
    """PAPER_BOOK is off unless it is set: a feed on a live system can write no position."""
    account = {"balance", "executions", "position"}
    assert not account & Rules().access(USERS["feed"]).keys()
    assert account <= Rules(paper_book=True).access(USERS["feed"]).keys()


def test_no_pattern_reaches_into_another() -> None:
    """A name of one key, made with any symbol or id, is matched by the patterns of its own name alone."""
    names = Names()
    examples = {n: re.sub(r"\[[^]]*\]\*$", "X9", names.pattern(n)) for n in KNOWN}
    assert len(set(examples.values())) == len(KNOWN)
    for one, example in examples.items():
        for other in KNOWN:
            text = names.pattern(other)
            match = re.fullmatch(re.escape(text).replace(r"\*", ".*").replace(r"\[", "[").replace(r"\]", "]")
                                 .replace(r"\-", "-"), example)  # fmt: skip
            assert (match is not None) == (one == other), (one, other)


def test_names_follow_the_settings() -> None:
    """A hash tag stands before every name, a renamed stream takes the place of its own."""
    settings = load(
        list(GROUPS),
        {"QA_HASH_TAG": "q1", "STREAM_PLANS": "quantum:stream:my.plans", "EXECUTION_STREAM": "fills[*]"},
        together=False,
    )
    rules = acl_cli.rules_of(settings)
    for name in USERS:
        for word in rules.words(name):
            for pattern in re.findall(r"~(\S+?)\)?(?= |$)", word):
                assert pattern.startswith("{q1}"), (name, pattern)
    text = " ".join(rules.words("governor"))
    assert "~{q1}quantum:stream:my.plans" in text
    assert "apply.plan " not in text
    assert "~{q1}fills\\[\\*\\]" in " ".join(rules.words("apply"))
    assert rules.names.patterns(EVERYTHING) == ("{q1}quantum:*", "{q1}fills\\[\\*\\]")
    assert Names(Keys(Lane.LIVE)).patterns(EVERYTHING) == ("quantum:*",)


@pytest.mark.parametrize(
    ("environ", "more"),
    [
        ({}, set()),
        ({"REDIS_DB": "3"}, {"select"}),
        ({"REDIS_URL": "redis://somewhere/2"}, {"select"}),
        ({"REDIS_SENTINELS": "a:1,b:2"}, set()),
        ({"REDIS_CLUSTER": "1", "QA_HASH_TAG": "q"}, {"cluster|slots"}),
    ],
)
def test_how_the_server_is_reached_adds_commands(environ: dict[str, str], more: set[str]) -> None:
    """A database is selected, a node is asked for its slots; a primary's role comes with HELLO."""
    rules = acl_cli.rules_of(load(list(GROUPS), environ, together=False))
    for name, user in USERS.items():
        granted = {w[1:] for w in rules.words(name) if w.startswith("+")}
        assert granted == {*user.commands, *more}


def test_no_command_is_allowed_that_nobody_sends() -> None:
    """Each stands in the code or in a script."""
    root = files("quantum_alloc")
    texts = [p.read_text() for p in Path(str(root)).rglob("*") if p.suffix in (".py", ".lua") and p.name != "rights.py"]
    sent = {w.lower() for t in texts for w in re.findall(r"[\"']([A-Z]{3,12})[\"']", t)}
    for name, user in USERS.items():
        for command in user.commands:
            assert command == "client|setname" or set(command.split("|")) <= sent, (name, command)


def test_every_script_is_allowed_to_who_runs_it() -> None:
    """EVAL and EVALSHA stand in a selector of their own, and in no other place."""
    for name, user in USERS.items():
        words = Rules().words(name)
        assert not {"+eval", "+evalsha"} & set(words)
        selectors = [w for w in words if w.startswith("(")]
        proving = [s for s in selectors if "~quantum:proof:*" in s]
        assert len(proving) == user.proves
        others = [s for s in selectors if s not in proving]
        assert len(others) == bool(user.scripts)
        assert all(shlex.split(s.strip("()"))[:2] == ["+eval", "+evalsha"] for s in others)


def test_who_proves_reaches_its_lanes_with_the_commands_of_what_it_proves() -> None:
    """The operator alone; the selector opens no key but those of proofs, and no command but those services send."""
    assert [name for name, user in USERS.items() if user.proves] == ["operator"]
    (words,) = (w.strip("()").split() for w in Rules().words("operator") if "proof" in w)
    assert [w for w in words if not w.startswith("+")] == ["~quantum:proof:*"]
    sent = {c for service in PROVED for c in USERS[service].commands}
    assert {w[1:] for w in words if w.startswith("+")} == {*sent, "del", "eval", "evalsha"}
    assert set(PROVED) < set(SERVICES)


def test_the_files_of_the_repository_are_what_the_generator_makes() -> None:
    """`make deploy` writes them."""
    directory = Path(__file__).parents[2] / "deploy" / "redis"
    assert {p.name: p.read_text() for p in directory.iterdir() if p.name != "README.md"} == acl_cli.files()
