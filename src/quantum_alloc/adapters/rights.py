"""Who may do what in Redis: one table, from which the ACL files are made and against which they are tested.

    USERS   each service, ``operator`` (the commands that change something), ``watch`` (those that only look)
    a user  what it reads, what it writes, what it writes in enforce alone, and the commands that it sends

Everything else is refused. What the names of keys stand for is in ``key_patterns``.

A script needs both rights to every key that it declares, whatever it does with it. So EVAL and EVALSHA are allowed by a
selector of their own, which opens these keys for them alone. What a script then does is tested against the rest of the
rights, command by command. Services read the server's settings with INFO: CONFIG GET would show them its passwords.
Who proves runs services' code in lanes of its own, under ``quantum:proof:``: a selector allows their commands there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from quantum_alloc.adapters.key_patterns import EVERYTHING, Names


class When(StrEnum):
    """In which installations a right exists.

    ENFORCE is left out of the files of an installation in shadow; PAPER_BOOK is there only where the feed holds the
    paper book.
    """

    ALWAYS = "always"
    ENFORCE = "enforce"
    PAPER_BOOK = "paper_book"


@dataclass(frozen=True, slots=True)
class Right:
    """What a user may do with one key or pattern.

    Attributes:
        key: a name of the table.
        reads: whether it may read it.
        writes: whether it may write it.
        when: in which installations.
    """

    key: str
    reads: bool = False
    writes: bool = False
    when: When = When.ALWAYS


@dataclass(frozen=True, slots=True)
class User:
    """One user.

    Attributes:
        job: what it is for.
        rights: at most one a key and installation, in sort order.
        commands: that it sends, in sort order; subcommands behind a bar.
        scripts: keys that its scripts declare, in sort order; none where it runs none.
        proves: whether it runs the code of services in the lanes of proofs.
    """

    job: str
    rights: tuple[Right, ...]
    commands: tuple[str, ...]
    scripts: tuple[str, ...] = ()
    proves: bool = False


def user_of(name: str) -> str:
    """The user of a service, in Redis as on the machine.

    Args:
        name: of ``USERS``.
    """
    return f"qa-{name}"


_BASE = "client|setname info ping"
_TRANSACTION = "exec multi"
_SYMBOLS = "scan scard smembers srandmember"
_FOLLOW = "hdel hgetall hlen hset unwatch watch xinfo|stream xrange"
_SCRIPT = "eval evalsha"
PROVED = ("allocation", "attribution", "budget", "efficiency", "governor", "proposer")
"""Services whose code a proof runs in lanes of its own."""


def _user(
    job: str,
    *,
    commands: str,
    reads: str = "",
    writes: str = "",
    both: str = "",
    enforce: str = "",
    paper: str = "",
    scripts: str = "",
    proves: bool = False,
) -> User:
    rights = [Right(k, reads=True) for k in reads.split()]
    rights += [Right(k, writes=True) for k in writes.split()]
    rights += [Right(k, reads=True, writes=True) for k in both.split()]
    rights += [Right(k, writes=True, when=When.ENFORCE) for k in enforce.split()]
    rights += [Right(k, writes=True, when=When.PAPER_BOOK) for k in paper.split()]
    sent = {*_BASE.split(), *commands.split()}
    return User(
        job,
        tuple(sorted(rights, key=lambda r: (r.key, r.when))),
        tuple(sorted(sent)),
        tuple(sorted(scripts.split())),
        proves,
    )


USERS: Mapping[str, User] = {
    "allocation": _user(
        "P2.9, targets",
        reads="budget clusters portfolio proposed regimes stress attribution shadow_attribution target shadow_proposed",
        writes="cycles decisions",
        both="universe shadow_target",
        enforce="target",
        commands=f"{_TRANSACTION} {_SYMBOLS} expire hgetall hlen hmget hset sadd xadd xrevrange",
    ),
    "apply": _user(
        "fills on paper",
        reads="clusters kill market rearm regimes transfers",
        both="apply_state balance book events executions latch permit position results universe",
        scripts="apply_state balance book events executions kill latch permit position rearm results universe",
        commands=f"{_TRANSACTION} {_SYMBOLS} del get hdel hget hgetall hincrby hlen hmget hset sadd time type xadd "
        "xinfo|stream xrange xread xrevrange",
    ),
    "attribution": _user(
        "P3.0, performance",
        reads="executions",
        writes="attributions dead_executions shadow_attribution",
        both="attribution_state universe",
        enforce="attribution",
        commands=f"{_TRANSACTION} {_SYMBOLS} {_FOLLOW} expire sadd srem xadd",
    ),
    "budget": _user(
        "P2.8, base budgets",
        reads="clusters market portfolio position stress",
        writes="budget violations",
        both="universe",
        commands=f"{_TRANSACTION} {_SYMBOLS} expire hgetall hlen hmget hset sadd xadd",
    ),
    "clusters": _user(
        "P2.7, map and strain",
        reads="attribution bars position universe",
        writes="stress",
        both="clusters",
        commands=f"{_TRANSACTION} {_SYMBOLS} del expire hgetall hlen hmget hset xrevrange",
    ),
    "desk": _user(
        "a strategy on paper, for the demo",
        reads="bars ledger market portfolio position target tombstone",
        writes="plans",
        both="desk_state universe",
        commands=f"{_TRANSACTION} {_SYMBOLS} exists hgetall hmget hset sadd time unwatch watch xadd xrevrange",
    ),
    "efficiency": _user(
        "P3.1, capital efficiency",
        reads="attribution executions shadow_attribution shadow_target target",
        writes="dead_executions efficiencies shadow_efficiency",
        both="efficiency_state universe",
        enforce="efficiency",
        commands=f"{_TRANSACTION} {_SYMBOLS} {_FOLLOW} expire hmget sadd srem xadd",
    ),
    "feed": _user(
        "candles in, market state and bars out",
        reads="apply_state",
        writes="market universe",
        both="bars",
        paper="balance executions position",
        commands=f"{_TRANSACTION} exists hdel hset sadd unwatch watch xadd xrevrange",
    ),
    "governor": _user(
        "P3.2, permits",
        reads="budget efficiency market portfolio position rearm shadow_efficiency target violations",
        writes="block dead_plans events last_exec permit",
        both="book epoch kill latch ledger ops_head ops_head_of plans tombstone",
        scripts="block book dead_plans epoch events kill last_exec latch ledger permit plans rearm tombstone",
        commands=f"{_TRANSACTION} del exists expire get hdel hexists hget hgetall hincrby hmget hset hsetnx set time "
        "type unwatch watch xack xadd xautoclaim xgroup|create xinfo|consumers xinfo|groups xinfo|stream xpending "
        "xrange xreadgroup xrevrange",
    ),
    "operator": _user(
        "the commands that change something: kill, rearm, clear-targets, inject, ledger, prove",
        reads=EVERYTHING,
        writes="attribution efficiency events executions kill latch market ops_head ops_head_of plans portfolio "
        "position rearm regimes shadow_attribution shadow_efficiency target transfers",
        scripts="events latch rearm",
        commands=f"{_TRANSACTION} {_SYMBOLS} del expire get hget hgetall hlen hmget hset set time ttl type "
        "unwatch watch xadd xrange xrevrange",
        proves=True,
    ),
    "portfolio": _user(
        "P2.5, equity and drawdown",
        reads="balance position universe",
        writes="portfolio portfolio_states",
        both="peak",
        commands=f"{_TRANSACTION} {_SYMBOLS} expire hdel hmget hset xadd",
    ),
    "proposer": _user(
        "step 1, proposals",
        reads="efficiency shadow_efficiency shadow_target target",
        writes="proposals proposed shadow_proposed",
        both="universe",
        commands=f"{_TRANSACTION} {_SYMBOLS} expire hmget hset sadd xadd",
    ),
    "regime": _user(
        "the market's regime",
        reads="bars universe",
        writes="regimes",
        commands=f"{_TRANSACTION} {_SYMBOLS} xadd xrevrange",
    ),
    "watch": _user(
        "the commands that only look: status, explain, diff-lanes, plot, ledger verify",
        reads=EVERYTHING,
        commands=f"{_SYMBOLS} get hget hgetall hlen hmget time ttl type xrange xread xrevrange",
    ),
}
"""Every user, by the name of its service."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What an installation is, as far as rights depend on it.

    Attributes:
        names: of its keys.
        enforces: whether services may be set to enforce; in shadow they cannot write what others act on.
        paper_book: whether the feed holds the paper book.
        commands: that every connection of it sends beside those of the table.
    """

    names: Names = field(default_factory=Names)
    enforces: bool = True
    paper_book: bool = False
    commands: tuple[str, ...] = ()

    def applies(self, right: Right) -> bool:
        """Whether a right exists in this installation.

        Args:
            right: of the table.
        """
        return {When.ALWAYS: True, When.ENFORCE: self.enforces, When.PAPER_BOOK: self.paper_book}[right.when]

    def access(self, user: User) -> dict[str, tuple[bool, bool]]:
        """Whether a user may read and write, by name of the table.

        Args:
            user: of the table.
        """
        found: dict[str, tuple[bool, bool]] = {}
        for right in filter(self.applies, user.rights):
            reads, writes = found.get(right.key, (False, False))
            found[right.key] = (reads or right.reads, writes or right.writes)
        return found

    def words(self, name: str) -> list[str]:
        """What ``ACL SETUSER`` is told of a user, without its password.

        Args:
            name: of ``USERS``.
        """
        user = USERS[name]
        prefix = {(True, True): "~", (True, False): "%R~", (False, True): "%W~"}
        of = {key: prefix[access] for key, access in self.access(user).items()}
        keys = [f"{mark}{pattern}" for key, mark in of.items() for pattern in self.names.patterns(key)]
        commands = sorted({*user.commands, *self.commands})
        words = ["resetchannels", "sanitize-payload", "-@all", *(f"+{c}" for c in commands), *sorted(keys)]
        if user.scripts:
            opened = sorted(f"~{self.names.pattern(key)}" for key in user.scripts)
            words.append(f"({' '.join([*(f'+{c}' for c in _SCRIPT.split()), *opened])})")
        if user.proves:
            sent = {*_SCRIPT.split(), "del", *(c for service in PROVED for c in USERS[service].commands)}
            words.append(f"({' '.join([*(f'+{c}' for c in sorted(sent)), f'~{self.names.proofs}'])})")
        return words
