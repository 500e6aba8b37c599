"""One cycle of the apply layer to keys and arguments of its script, and the script's answer back.

Arguments are written here in the order in which ``consume.lua`` takes them. Every key that the script touches is named
in KEYS. Source: the project's governor, section 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from quantum_alloc.adapters.effects import (
    Command,
    Effect,
    HashReplace,
    HashSet,
    Reply,
    SetAdd,
    SetRemove,
    StreamAdd,
)
from quantum_alloc.adapters.keys import LIVE, Keys
from quantum_alloc.adapters.store import Script, StoreError

CONSUME = Script(files("quantum_alloc.adapters").joinpath("consume.lua").read_text(encoding="utf-8"))
SNAPSHOT_AGE_MAX_US = 800_000
FIELDS_AT_ONCE = 1_000
"""Arguments of one command inside the script; Lua's stack holds about 8,000."""
REFUSALS = ("kill", "latch", "state", "old", "permit")


@dataclass(frozen=True, slots=True)
class Basis:
    """What was decided on, as the script compares it.

    Attributes:
        kill: the kill key's bytes behind a +, ``-`` where absent, ``!`` for another type.
        latch: state and time of the latch behind a +, ``-`` where absent, ``!`` for another type.
        revision: of the state; empty where there is none.
        snapshot_us: the clock in the snapshot.
        connection: the store's number of connections then.
        simulated_us: the clock that stands for the server's; None for the server's own.
    """

    kill: str | bytes
    latch: str | bytes
    revision: str
    snapshot_us: int
    connection: int
    simulated_us: int | None = None


@dataclass(frozen=True, slots=True)
class Taken:
    """A permit that is used up.

    Attributes:
        plan_id: of its plan.
        raw: as its key held it.
        until_us: when it expires.
        is_open: whether the book holds it.
    """

    plan_id: str
    raw: bytes
    until_us: int
    is_open: bool


_KINDS: Sequence[tuple[type[Effect], ...]] = ((HashSet, HashReplace), (StreamAdd,), (SetAdd, SetRemove), ())


def call(
    taken: Sequence[Taken], effects: Sequence[Effect], basis: Basis, keys: Keys = LIVE
) -> tuple[list[str], list[str | bytes | int]]:
    """Keys and arguments of the script.

    Args:
        taken: permits that are used up.
        effects: everything else that is written.
        basis: what was decided on.
        keys: the names.
    """
    numbers = {name: i for i, name in enumerate((keys.kill, keys.latch, keys.apply_state, keys.book), 1)}

    def number_of(name: str) -> int:
        return numbers.setdefault(name, len(numbers) + 1)

    simulated = "" if basis.simulated_us is None else basis.simulated_us
    args: list[str | bytes | int] = [basis.kill, basis.latch, basis.revision]
    args += [basis.snapshot_us, SNAPSHOT_AGE_MAX_US, simulated, len(taken)]
    for one in taken:
        args += [number_of(keys.permit(one.plan_id)), one.raw, one.until_us]
    opens = [one.plan_id for one in taken if one.is_open]
    args += [len(opens), *opens]
    for kinds in _KINDS:
        of_kind = sorted({number_of(e.key) for e in effects if kinds and isinstance(e, kinds)})
        args += [len(of_kind), *of_kind]
    commands = [part for effect in effects for command in effect.commands() for part in _parts(command)]
    args.append(len(commands))
    for name, key, *rest in commands:
        args += [len(rest) + 2, name, number_of(str(key)), *rest]
    return list(numbers), args


def _parts(command: Command) -> list[Command]:
    """A long command on fields or members as several."""
    name, key, *rest = command
    if name not in ("HSET", "HDEL", "SADD", "SREM") or len(rest) <= FIELDS_AT_ONCE:
        return [command]
    return [(name, key, *rest[i : i + FIELDS_AT_ONCE]) for i in range(0, len(rest), FIELDS_AT_ONCE)]


def answered(reply: Reply, shown: str) -> tuple[str, str]:
    """Empty where everything was written, else why nothing was; and the key that holds another type, if that is why.

    Args:
        reply: of the script.
        shown: the server, for messages.

    Raises:
        StoreError: the answer is none.
    """
    words = [w.decode("utf-8", "replace") for w in reply if isinstance(w, bytes)] if isinstance(reply, list) else []
    if words[:1] == ["ok"]:
        return "", ""
    if words[:1] == ["type"] and len(words) > 1:
        return words[0], words[1]
    if words[:1] and words[0] in REFUSALS:
        return words[0], ""
    raise StoreError("other", f"{shown}: the script of the apply layer answered something else")
