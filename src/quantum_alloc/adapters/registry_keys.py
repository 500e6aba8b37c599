"""How the keys of a row are called, and which row a key's name belongs to."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache

from quantum_alloc.adapters.key_patterns import BY_SYMBOL, FIXED, Names
from quantum_alloc.adapters.keys import STREAMS, Keys

_PARTS: Mapping[str, str] = {
    "{S}": r"[A-Z0-9]{2,30}",
    "{plan}": r"[A-Za-z0-9_.-]{1,64}",
    "{cid}": r"[A-Za-z0-9_.-]{1,64}",
    "{name}": r"[A-Za-z0-9_.@-]{1,120}",
}
"""What the variable parts of names stand for."""


@cache
def regex_of(name: str) -> re.Pattern[str]:
    """What a name stands for, as a regular expression.

    Args:
        name: of a key or a field; ``{S}``, ``{plan}``, ``{cid}``, ``{name}`` in it vary.

    >>> regex_of("P:{plan}").fullmatch("P:p-1") is not None, regex_of("{S}").fullmatch("btc") is not None
    (True, False)
    """
    text = re.escape(name)
    for part, stands_for in _PARTS.items():
        text = text.replace(re.escape(part), stands_for)
    return re.compile(text)


def key_of(name: str, names: Names | None = None) -> str:
    """How a key is called, ``{S}``, ``{plan}``, ``{cid}`` or ``{name}`` in the place of what varies.

    Args:
        name: of ``key_patterns.KNOWN``.
        names: of the installation; None for the contract's.

    >>> key_of("target"), key_of("shadow_target"), key_of("plans"), key_of("stress")
    ('quantum:allocation:target:{S}', 'quantum:shadow:allocation:target:{S}', 'quantum:stream:apply.plan', \
'quantum:cluster:stress:{cid}')
    """
    of = names or Names()
    keys: object = of.keys
    if name in STREAMS:
        told = of.streams.get(name)
        return of.keys.stream(STREAMS[name]) if told is None else of.keys.tagged(told)
    if name in FIXED:
        return str(getattr(keys, name))
    if name.startswith("shadow_"):
        keys, name = of.keys.shadow, name.removeprefix("shadow_")
    part = "{S}" if name in BY_SYMBOL else {"stress": "{cid}", "ops_head_of": "{name}"}.get(name, "{plan}")
    return str(getattr(keys, name)(part))


@cache
def key_regex(name: str, keys: Keys, streams: tuple[tuple[str, str], ...]) -> re.Pattern[str]:
    """What the keys of a row are called. A hash tag may look like what varies, so only what follows the root does.

    Args:
        name: of ``key_patterns.KNOWN``.
        keys: of the installation.
        streams: those that settings name otherwise.
    """
    told = key_of(name, Names(keys, dict(streams)))
    if name in STREAMS:
        return re.compile(re.escape(told))
    return re.compile(re.escape(keys.root) + regex_of(told.removeprefix(keys.root)).pattern)
