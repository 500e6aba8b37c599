"""How parameters refuse contradictions, and how a set of them is named by a hash."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Hashable
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def check(*claims: tuple[bool, str]) -> None:
    """Raise one ``ValueError`` that names every claim that does not hold.

    Args:
        claims: pairs of truth and what to say when it is false.

    >>> check((1 < 2, "never said"), (2 < 1, "lo is above hi"))
    Traceback (most recent call last):
    ...
    ValueError: lo is above hi
    """
    wrong = [text for holds, text in claims if not holds]
    if wrong:
        raise ValueError("; ".join(wrong))


def unit_interval(name: str, value: float) -> tuple[bool, str]:
    """The claim that a fraction lies in (0, 1].

    Args:
        name: the parameter.
        value: its value.
    """
    return 0.0 < value <= 1.0, f"{name} must be above 0 and at most 1"


def positive(name: str, value: float) -> tuple[bool, str]:
    """The claim that a value is above 0.

    Args:
        name: the parameter.
        value: its value.
    """
    return value > 0.0, f"{name} must be above 0"


def to_json(params: DataclassInstance) -> str:
    """Parameters as canonical JSON: sorted names, no spaces, floats that read back bit for bit.

    Args:
        params: a frozen dataclass of numbers and words.
    """
    return json.dumps(dataclasses.asdict(params), sort_keys=True, separators=(",", ":"), allow_nan=False)


def config_hash(params: DataclassInstance) -> str:
    """Twelve hexadecimal digits that name a set of parameters.

    Args:
        params: a frozen dataclass of numbers and words.
    """
    return hashlib.sha256(to_json(params).encode()).hexdigest()[:12]


def changed_json(params: DataclassInstance) -> str:
    """Those parameters that differ from their defaults, as canonical JSON: what a record of every cycle can carry.

    Args:
        params: a frozen dataclass of numbers and words, each with a default.
    """
    values = {f.name: getattr(params, f.name) for f in dataclasses.fields(params)}
    changed = {f.name: values[f.name] for f in dataclasses.fields(params) if values[f.name] != f.default}
    return json.dumps(changed, sort_keys=True, separators=(",", ":"), allow_nan=False)


def restored(cls: type[Any], text: str, digest: str) -> Any:
    """Parameters from what ``changed_json`` wrote, checked against their hash.

    Args:
        cls: the dataclass.
        text: its JSON.
        digest: its ``config_hash``.

    Raises:
        ValueError: not these parameters, or defaults that are not those of today.
    """
    params, named = _named(cast(Hashable, cls), text)
    if named != digest:
        raise ValueError(f"the defaults of {cls.__name__} are not those that this record was made with")
    return params


@lru_cache(maxsize=256)
def _named(cls: Hashable, text: str) -> tuple[Any, str]:
    """The parameters of a text and their hash, worked out once for all records that were made with them."""
    params = from_json(cast(type[Any], cls), text)
    return params, config_hash(params)


def from_json(cls: type[Any], text: str) -> Any:
    """Read back what ``to_json`` wrote.

    Args:
        cls: the dataclass.
        text: its JSON.

    Raises:
        ValueError: not JSON, unknown names, or a contradiction.
    """
    data = json.loads(text)
    names = {f.name for f in dataclasses.fields(cls)}
    if not isinstance(data, dict) or not names >= set(data):
        raise ValueError(f"not the parameters of {cls.__name__}")
    try:
        return cls(**data)
    except TypeError as error:
        raise ValueError(f"not the parameters of {cls.__name__}") from error
