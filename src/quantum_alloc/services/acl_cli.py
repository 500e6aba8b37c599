"""``quantum-alloc config acl`` and ``config redis``: the rights of each user, and the settings that the server needs.

    config acl [SERVICE...] [--shadow] [--format file|commands] [--passwords DIR]
    config acl --to FILE [--shadow] [--passwords DIR]    the file of users: replaced as a whole, or left as it is
    config redis                                    what to put into redis.conf

The rights come from one table; the settings say how keys are called and whether the feed holds the paper book. Without
names the whole file of users is printed, with the default user off and users for the server's own care. A password is
never printed: its SHA-256 is. A user without a password file cannot log in until somebody sets a password.

A server that loads an empty file of users lets everybody in. The shell has emptied the file that its output goes to
before the command begins, so that one that fails prints the default user, off.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, TextIO

from quantum_alloc.adapters.key_patterns import Names
from quantum_alloc.adapters.rights import USERS, Rules, user_of
from quantum_alloc.services.disk import put_secret
from quantum_alloc.services.options import (
    GROUPS,
    FeedOptions,
    RedisOptions,
    Settings,
    load,
)
from quantum_alloc.services.redis_address import database_of
from quantum_alloc.services.redis_options import CREDENTIAL
from quantum_alloc.services.settings import SettingsError

DONE, NOT_WRITTEN, USAGE, BAD_SETTINGS = 0, 1, 2, 78
NOBODY = "resetpass"
"""In the place of a password: a user without one, and without ``nopass``, cannot log in."""
DEFAULT_OFF = "off resetpass ~* &* +@all"
"""Nobody can log in; yet Redis 7.0 loads its append-only file as this user, and loses transactions without rights."""
SERVER_USERS: Mapping[str, str] = {
    "qa-admin": "allchannels sanitize-payload +@all ~*",
    "qa-replica": "resetchannels sanitize-payload -@all +ping +psync +replconf",
    "qa-sentinel": "allchannels sanitize-payload -@all +client|kill +client|setname +config|rewrite +exec +info +multi "
    "+ping +publish +role +script|kill +slaveof +subscribe",
}
"""Not of ours, but of the server's own: its administrator, its replicas, its sentinels."""
REDIS_CONF = """\
# What quantum-alloc needs of its Redis server (7.0 or later, or Valkey). Made by `quantum-alloc config redis`.
# Include it at the end of redis.conf:   include /etc/redis/quantum-alloc.conf

# Users and rights: this file holds all of them, and turns the default user off.
aclfile /etc/redis/users.acl

# Nothing is ever thrown away to make room. A permit, a tombstone or a target that vanished would be decided on anew.
# Services that are set to enforce refuse to run on any other policy, whatever maxmemory says.
maxmemory-policy noeviction

# Every write is kept on disk. everysec: a crash of the machine loses a second at most, of which the governor's journal
# puts the permits back, and a write does not wait for the disk. With always each permit would.
# A server that holds data: CONFIG SET appendonly yes while it runs, and restart it when INFO persistence says
# aof_rewrite_in_progress:0. One that starts with this line and no append-only file starts EMPTY.
appendonly yes
appendfsync everysec

# Where there is a replica, and only there, take away the marks before the next two lines: a primary that was cut off
# then stops to take writes after 10 s, which a failover would lose. Without a replica it would take none.
# min-replicas-to-write 1
# min-replicas-max-lag 10
"""


def add_parsers(commands: Any) -> None:
    """Add both commands.

    Args:
        commands: the subparsers of ``quantum-alloc config``.
    """
    about = "print what each user may do in Redis, as a file of users or as commands"
    acl = commands.add_parser("acl", help=about, description=f"{about}. Settings that rename keys count.")
    acl.add_argument("names", nargs="*", metavar="SERVICE", help=f"{', '.join(USERS)}; none: the whole file")
    acl.add_argument("--shadow", action="store_true", help="for services in shadow: they cannot write live targets")
    acl.add_argument("--format", choices=("file", "commands"), default="file", help="lines of the file (file)")
    acl.add_argument(
        "--passwords", type=Path, metavar="DIR", help=f"where the passwords are, in files qa-SERVICE.{CREDENTIAL}"
    )
    acl.add_argument(
        "--to", type=Path, metavar="FILE", help="replace this file, for its owner alone; left as it is on a failure"
    )
    acl.set_defaults(handler=acl_file)

    about = "print what to put into redis.conf"
    conf = commands.add_parser("redis", help=about, description=f"{about}.")
    conf.set_defaults(handler=redis_conf)


def rules_of(settings: Settings, *, enforces: bool = True) -> Rules:
    """What an installation is, as far as rights depend on it.

    Args:
        settings: of all services.
        enforces: whether services may be set to enforce.
    """
    return Rules(
        Names(settings.keys, settings.streams),
        enforces,
        settings.of(FeedOptions).paper_book,
        _connecting(settings.redis),
    )


def _connecting(redis: RedisOptions) -> tuple[str, ...]:
    """What a connection sends beside the commands of its service."""
    found = ["select"] if (database_of(redis.url) if redis.url else redis.db) else []
    found += ["cluster|slots"] if redis.cluster else []
    return tuple(found)


def lines(
    rules: Rules, names: Sequence[str] = (), passwords: Mapping[str, str] | None = None, form: str = "file"
) -> Iterator[str]:
    """The users, one a line.

    Args:
        rules: what the installation is.
        names: services; empty for the whole file.
        passwords: by user; who is not in it cannot log in.
        form: ``file`` or ``commands``.
    """
    told = passwords or {}

    def line(user: str, rights: Sequence[str]) -> str:
        login = f"#{hashlib.sha256(told[user].encode()).hexdigest()}" if user in told else NOBODY
        if form == "file":
            return " ".join(("user", user, "on", login, *rights))
        return " ".join(map(_quoted, ("ACL", "SETUSER", user, "reset", "on", login, *rights)))

    for name in sorted(set(names) or USERS):
        yield line(user_of(name), rules.words(name))
    if names:
        return
    for user, rights in SERVER_USERS.items():
        yield line(user, rights.split())
    yield f"user default {DEFAULT_OFF}" if form == "file" else f"ACL SETUSER default {DEFAULT_OFF}"


def _quoted(word: str) -> str:
    """A word as redis-cli takes it from a line."""
    if not any(c in word for c in " \"'\\"):
        return word
    escaped = word.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def read_passwords(directory: Path, users: Sequence[str]) -> dict[str, str]:
    """The passwords that there are, by user.

    Args:
        directory: that holds a file a user.
        users: whose.

    Raises:
        SettingsError: there is none, or a file cannot be used.
    """
    files = {user: directory / f"{user}.{CREDENTIAL}" for user in users}
    try:
        there = {user: file for user, file in files.items() if file.exists()}
    except OSError as error:
        raise SettingsError([f"{directory} cannot be read: {error.strerror}"]) from None
    if not there:
        example = f"write each password into a file of its own, {next(iter(files.values()))} for example"
        raise SettingsError([f"{directory} holds no password: {example}"])
    found, errors = {}, []
    for user, file in there.items():
        try:
            found[user] = RedisOptions(password_file=file).password() or ""
        except SettingsError as error:
            errors += [text.partition("=")[2] for text in error.errors]
    if errors:
        raise SettingsError(errors)
    return found


def acl_file(
    args: argparse.Namespace, environ: Mapping[str, str], out: TextIO | None = None, err: TextIO | None = None
) -> int:
    """Print the users and their rights, or put them into a file.

    Args:
        args: ``names``, ``shadow``, ``format``, ``passwords`` and ``to``.
        environ: the environment.
        out: where they go; None for standard output.
        err: where errors go; None for standard error.

    Returns:
        0, 1 where the file cannot be written, 2 for a mistake in the command, 78 where settings or passwords cannot be
        used.
    """
    told, code = "", USAGE
    strange = [name for name in args.names if name not in USERS]
    users = [user_of(n) for n in args.names or USERS] + ([] if args.names else list(SERVER_USERS))
    passwords: dict[str, str] = {}
    text = ""
    if strange:
        told = f"{strange[0]!r} has no user: there are {', '.join(USERS)}"
    elif args.to is not None and (args.names or args.format == "commands"):
        told = "--to writes the whole file of users: leave SERVICE and --format commands out"
    else:
        try:
            rules = rules_of(load(list(GROUPS), environ, together=False), enforces=not args.shadow)
            passwords = {} if args.passwords is None else read_passwords(args.passwords, users)
            text = "".join(f"{line}\n" for line in lines(rules, args.names, passwords, args.format))
            if args.to is not None:
                put_secret(args.to, text)
        except SettingsError as error:
            told, code = f"the settings cannot be used:\n{error}", BAD_SETTINGS
        except OSError as error:
            told, code = f"{str(args.to)!r} cannot be written: {error.strerror}", NOT_WRITTEN
    if told:
        print(f"quantum-alloc: {told}", file=err or sys.stderr)
        if args.to is None and args.format == "file":
            print(f"user default {DEFAULT_OFF}", file=out)
        return code
    if args.to is None:
        print(text, end="", file=out)
    without = [user for user in users if user not in passwords]
    if without and args.passwords is not None:
        lacking = f"{', '.join(without)} cannot log in: {args.passwords} holds no password of theirs"
        print(f"quantum-alloc: {lacking}", file=err or sys.stderr)
    return DONE


def shut(words: Sequence[str], out: TextIO | None = None) -> None:
    """Print the default user, off, for a ``config acl`` that failed before it began.

    Args:
        words: of the command; those of any other are passed over.
        out: where it goes; None for standard output.
    """
    if ("config", "acl") in pairwise(words):
        print(f"user default {DEFAULT_OFF}", file=out)


def redis_conf(
    args: argparse.Namespace, environ: Mapping[str, str], out: TextIO | None = None, err: TextIO | None = None
) -> int:
    """Print what to put into redis.conf.

    Args:
        args: not looked at.
        environ: not looked at.
        out: where it goes; None for standard output.
        err: not used.

    Returns:
        0.
    """
    del args, environ, err
    print(REDIS_CONF.rstrip("\n"), file=out)
    return DONE


def files() -> dict[str, str]:
    """The files of ``deploy/redis`` by name, for an installation with the default settings."""
    settings = load(list(GROUPS), {}, together=False)
    whole, shadow = rules_of(settings), rules_of(settings, enforces=False)
    found = {f"{name}.acl": lines(whole, [name]) for name in USERS}
    found |= {"users.acl": lines(whole), "users-shadow.acl": lines(shadow)}
    return {**{name: "".join(f"{line}\n" for line in of) for name, of in found.items()}, "redis.conf": REDIS_CONF}
