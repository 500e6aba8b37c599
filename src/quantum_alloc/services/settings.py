"""Settings: frozen dataclasses whose fields carry the variable, the unit, the range and a sentence of help.

    read(groups, environ) -> Loaded          every group filled, or
                          -> SettingsError   every error at once: variable, raw text, what is expected

One error a variable, then contradictions between values, then names that no service knows. A contradiction is told only
where each of its variables could be read by itself. Nothing reads the environment at import.
"""

from __future__ import annotations

import dataclasses
import os
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from quantum_alloc.core.governor_params import ApplyMode
from quantum_alloc.services.values import KINDS, SPACE, Kind, Mode, Var, expected, render
from quantum_alloc.services.variables import CONTRACT_VARIABLES, TEST_VARIABLES, strangers

__all__ = ["ApplyMode", "Loaded", "Mode", "SettingsError", "Variable", "read", "var", "variables"]

T = TypeVar("T")

INLINE_COMMENT = "systemd keeps inline comments in the value: put the comment on a line of its own"
_COMMENT = re.compile(r"(?:^|\s)#")
_LOGIN = re.compile(r"://\S*@")
"""A login in an address that was put into the wrong variable."""
_RAW_LIMIT = 120


class SettingsError(Exception):
    """The environment cannot be used.

    Attributes:
        errors: one sentence each.
        warnings: what there was to warn of beside them, one sentence each.
    """

    def __init__(self, errors: Sequence[str], warnings: Sequence[str] = ()) -> None:
        """Keep the sentences.

        Args:
            errors: at least one.
            warnings: any number.
        """
        super().__init__("\n".join(errors))
        self.errors = tuple(errors)
        self.warnings = tuple(warnings)


def var(
    env: str,
    default: Any,
    *,
    unit: str = "",
    lo: float | None = None,
    hi: float | None = None,
    above: float | None = None,
    choices: Sequence[str] = (),
    accepts: Callable[[str], bool] | None = None,
    expects: str = "",
    example: str = "",
    secret: Callable[[str], str] | None = None,
    single: bool = False,
    help: str = "",
) -> Any:
    """A field of a settings group; the arguments are the attributes of ``Var``.

    Args:
        env: the environment variable.
        default: the value when it is not set.
        unit: unit or meaning.
        lo: smallest value.
        hi: greatest value.
        above: what the value is greater than.
        choices: the words allowed.
        accepts: a further test of a text.
        expects: what that test wants, in words.
        example: a good text, where the default is none.
        secret: how to show a text that may hold a password.
        single: refused when several services run in one process.
        help: one sentence.
    """
    spec = Var(env, default, unit, lo, hi, above, tuple(choices), accepts, expects, example, secret, single, help)
    return dataclasses.field(default=default, metadata={"var": spec})


@dataclass(frozen=True, slots=True)
class Variable:
    """One setting of a group.

    Attributes:
        field: name of the dataclass' field.
        kind: how its text is read.
        spec: what it carries.
    """

    field: str
    kind: Kind
    spec: Var


def variables(group: type) -> tuple[Variable, ...]:
    """The settings of a group, in their order.

    Args:
        group: a dataclass made with ``var``.
    """
    hints = typing.get_type_hints(group)
    out = []
    for field in dataclasses.fields(group):
        hint = hints[field.name]
        if isinstance(hint, types.UnionType):
            (hint,) = (part for part in typing.get_args(hint) if part is not types.NoneType)
        out.append(Variable(field.name, KINDS[hint], field.metadata["var"]))
    return tuple(out)


@dataclass(frozen=True, slots=True)
class Loaded:
    """What was read.

    Attributes:
        groups: the filled group of each class.
        warnings: one sentence each; to be logged once.
        unrecognised_modes: mode variables whose text is not a mode; for a metric.
        given: variables that the environment set, empty ones left out.
    """

    groups: Mapping[type, Any]
    warnings: tuple[str, ...]
    unrecognised_modes: tuple[str, ...]
    given: frozenset[str]

    def get(self, group: type[T]) -> T:
        """The filled group of a class.

        Args:
            group: one that was asked for.
        """
        found: T = self.groups[group]
        return found


class _Reader:
    """Collects values, errors and warnings over the groups of one environment."""

    def __init__(self, environ: Mapping[str, str], several: bool) -> None:
        self.environ = environ
        self.several = several
        self.errors: list[str] = []
        self.warnings: list[str] = []
        self.modes: list[str] = []
        self.bad: set[str] = set()
        self.given: set[str] = set()

    def value(self, variable: Variable) -> Any:
        """One variable's value; the default where it is not set or cannot be used."""
        spec, kind = variable.spec, variable.kind
        raw = self.environ.get(spec.env, "")
        text = raw.strip(SPACE)
        if not text:
            return self.at_home(spec, spec.default)
        told = spec.env in self.given  # a variable that groups share is told once
        self.given.add(spec.env)
        parsed = None if _COMMENT.search(text) else kind.parse(text, spec)
        if parsed is not None and spec.single and self.several:
            self.refuse(spec, raw, "nothing when several services run in one process", told)
        elif parsed is not None:
            return self.at_home(spec, parsed)
        elif kind.safe is not None:
            if not told:
                hint = f"; {INLINE_COMMENT}" if "#" in text else ""
                self.modes.append(spec.env)
                self.warnings.append(f"{spec.env}={_shown(spec, raw)}: not {kind.noun}: {kind.safe} is taken{hint}")
            return kind.safe
        elif "#" in text:
            self.refuse(spec, raw, f"{expected(kind, spec)}; {INLINE_COMMENT}", told)
        else:
            self.refuse(spec, raw, expected(kind, spec), told)
        return spec.default

    def refuse(self, spec: Var, raw: str, wanted: str, told: bool) -> None:
        """Note an error of one variable, once."""
        self.bad.add(spec.env)
        if not told:
            self.errors.append(f"{spec.env}={_shown(spec, raw)}: expected {wanted}")

    def at_home(self, spec: Var, value: Any) -> Any:
        """A path with its leading ``~`` replaced."""
        if not isinstance(value, Path) or value.parts[:1] != ("~",):
            return value
        home = self.environ.get("HOME", "")
        home = home if home.startswith("/") else os.path.expanduser("~")
        if home == "~":
            self.errors.append(f"{spec.env}={str(value)!r}: no home directory is known: set an absolute path")
        return Path(home, *value.parts[1:])

    def contradictions(self, group: Any) -> None:
        """Note what the group's ``params`` and ``check`` refuse, in the names of the environment."""
        for hook in (getattr(group, "params", None), getattr(group, "check", None)):
            try:
                if hook is not None:
                    hook()
            except ValueError as error:
                for claim in str(error).split("; "):
                    self.contradiction(type(group), claim)

    def contradiction(self, group: type, claim: str) -> None:
        """Note one contradiction, unless it follows from a value that could not be read."""
        concerned = [v.spec for v in variables(group) if re.search(rf"\b{v.field}\b", claim)]
        names = {spec.env for spec in concerned}
        if self.bad & (names or {v.spec.env for v in variables(group)}):
            return
        for v in variables(group):
            claim = re.sub(rf"\b{v.field}\b", v.spec.env, claim)
        self.errors.append(f"{', '.join(map(self.assignment, concerned)) or group.__name__}: {claim}")

    def assignment(self, spec: Var) -> str:
        """A variable and its text, or its default."""
        if spec.env in self.given:
            return f"{spec.env}={_shown(spec, self.environ[spec.env])}"
        return f"{spec.env}={render(spec.default)} (default)"


def _shown(spec: Var, raw: str) -> str:
    text = repr(spec.secret(raw.strip(SPACE)) if spec.secret else _LOGIN.sub("://***@", raw))
    return text if len(text) <= _RAW_LIMIT else f"{text[:_RAW_LIMIT]}... ({len(raw)} characters)"


def read(
    groups: Sequence[type],
    environ: Mapping[str, str],
    *,
    known: Iterable[str] = (),
    several: bool = False,
    strangers_pass: bool = False,
) -> Loaded:
    """Fill every group from an environment.

    Args:
        groups: dataclasses made with ``var``; one with ``params()`` or ``check()`` has its contradictions looked for.
        environ: names and texts.
        known: names that other groups know; they may be in the environment and are not looked at.
        several: whether more than one service runs in this process.
        strangers_pass: names that no service knows are warned of alone.

    Returns:
        The groups, and what there is to warn of.

    Raises:
        SettingsError: with every error.
    """
    reader = _Reader(environ, several)
    filled: dict[type, Any] = {}
    for group in groups:
        filled[group] = group(**{v.field: reader.value(v) for v in variables(group)})
        reader.contradictions(filled[group])
    own = {v.spec.env for group in groups for v in variables(group)}
    errors, warnings = strangers(environ, CONTRACT_VARIABLES.union(TEST_VARIABLES, known, own))
    if strangers_pass:
        errors, warnings = [], [*warnings, *errors]
    if reader.errors or errors:
        raise SettingsError([*reader.errors, *errors], [*reader.warnings, *warnings])
    return Loaded(filled, (*reader.warnings, *warnings), tuple(reader.modes), frozenset(reader.given))
