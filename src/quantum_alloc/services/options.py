"""All settings together: Redis', the common ones, and those of the services that a process runs.

    load(names, environ) -> Settings     .redis  .common  .services[name]  .of(Group)  .warnings

The groups of the named services are read, and Redis' and the common one always. Variables of other services may be in
the environment and are not looked at, so that one file can serve several units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from quantum_alloc.adapters.keys import Keys, tag_of
from quantum_alloc.services.apply_options import ApplyOptions
from quantum_alloc.services.desk_options import DeskOptions
from quantum_alloc.services.governor_options import GovernorOptions
from quantum_alloc.services.redis_options import RedisOptions, is_host
from quantum_alloc.services.service_options import (
    AllocationOptions,
    AttributionOptions,
    BudgetOptions,
    ClustersOptions,
    EfficiencyOptions,
    FeedOptions,
    PortfolioOptions,
    ProposerOptions,
    RegimeOptions,
    ServiceOptions,
    stream_var,
)
from quantum_alloc.services.settings import SettingsError, read, var, variables
from quantum_alloc.services.variables import CONTRACT_VARIABLES

__all__ = [
    "GROUPS",
    "KNOWN",
    "AllocationOptions",
    "ApplyOptions",
    "AttributionOptions",
    "BudgetOptions",
    "ClustersOptions",
    "CommonOptions",
    "DeskOptions",
    "EfficiencyOptions",
    "FeedOptions",
    "GovernorOptions",
    "PortfolioOptions",
    "ProposerOptions",
    "RedisOptions",
    "RegimeOptions",
    "ServiceOptions",
    "Settings",
    "load",
]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class CommonOptions:
    """What all services share."""

    log_level: str = var("LOG_LEVEL", "INFO", choices=("DEBUG", "INFO", "WARNING", "ERROR"), help="Least level logged.")
    log_format: str = var("LOG_FORMAT", "plain", choices=("plain", "json"), help="One line a record, or one object.")
    metrics_host: str = var(
        "QA_METRICS_HOST",
        "127.0.0.1",
        accepts=is_host,
        expects="a host name or address",
        help="Address that /metrics, /health and /ready listen on.",
    )
    metrics_port: int | None = var(
        "METRICS_PORT",
        None,
        lo=1,
        hi=65535,
        single=True,
        example="9100",
        help="Port of a service without a variable of its own, in place of its default; for one service a process.",
    )
    port_offset: int = var(
        "QA_PORT_OFFSET",
        0,
        lo=0,
        hi=57_000,
        help="Added to every port of our services, so that a second installation on a machine has ports of its own.",
    )
    metrics_max_symbols: int = var(
        "METRICS_MAX_SYMBOLS", 500, lo=0, hi=100_000, help="Symbols that get metrics of their own."
    )
    max_symbols: int = var("MAX_SYMBOLS", 10_000, lo=1, hi=100_000, help="Size of the universe; the rest is counted.")
    symbols: tuple[str, ...] = var("QA_SYMBOLS", (), example="BTCUSDT,ETHUSDT", help="The universe; else it is found.")
    stream_maxlen: int = var(
        "STREAM_MAXLEN", 200_000, unit="entries", lo=100, hi=1_000_000_000, help="Length of a stream, approximate."
    )
    plans_stream: str = stream_var("STREAM_PLANS", "quantum:stream:apply.plan", "plans")
    shadow_lane: bool = var(
        "SHADOW_LANE",
        False,
        help="In shadow, write hashes to quantum:shadow: too, and read there what is absent in the live lane.",
    )
    state_directory: Path = var(  # noqa: RUF009 - a field
        "STATE_DIRECTORY", Path("~/.local/state/quantum-alloc"), help="Files that a service keeps. systemd sets it."
    )


GROUPS: dict[str, type[ServiceOptions]] = {
    group.SERVICE: group
    for group in (
        FeedOptions,
        PortfolioOptions,
        RegimeOptions,
        ClustersOptions,
        BudgetOptions,
        AttributionOptions,
        AllocationOptions,
        EfficiencyOptions,
        ProposerOptions,
        DeskOptions,
        GovernorOptions,
        ApplyOptions,
    )
}
"""The group of each service, by its name on the command line."""

KNOWN: frozenset[str] = CONTRACT_VARIABLES.union(
    variable.spec.env for group in (RedisOptions, CommonOptions, *GROUPS.values()) for variable in variables(group)
)
"""Every variable that some service, or the contract, knows."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What a process runs with.

    Attributes:
        redis: where Redis is.
        common: what all services share.
        services: by name, those that were asked for.
        warnings: to be logged once.
        unrecognised_modes: mode variables whose text is not a mode.
        given: variables that the environment set.
        proof: id of a proof, whose lane stands for the live one; empty for the installation's own keys.
    """

    redis: RedisOptions
    common: CommonOptions
    services: Mapping[str, ServiceOptions]
    warnings: tuple[str, ...]
    unrecognised_modes: tuple[str, ...]
    given: frozenset[str]
    proof: str = ""

    @property
    def keys(self) -> Keys:
        """The names of the live lane, under this installation's hash tag."""
        return Keys(tag=self.redis.hash_tag, proof=self.proof)

    @property
    def streams(self) -> dict[str, str]:
        """The streams that settings of all services name, by their names in ``adapters.keys.STREAMS``."""
        return {
            "efficiencies": self.of(EfficiencyOptions).efficiency_stream,
            "events": self.of(GovernorOptions).events_stream,
            "executions": self.of(ApplyOptions).execution_stream,
            "plans": self.common.plans_stream,
            "proposals": self.of(ProposerOptions).propose_stream,
            "results": self.of(ApplyOptions).results_stream,
        }

    def of(self, group: type[T]) -> T:
        """A service's group by its class, typed.

        Args:
            group: of a service that was asked for.

        Raises:
            KeyError: it was not.
        """
        for options in self.services.values():
            if isinstance(options, group):
                return options
        raise KeyError(group.__name__)


def port_variables(options: ServiceOptions) -> dict[str, int]:
    """The ports that a service opens, by the variable that moves each.

    Args:
        options: its settings.
    """
    named = {v.field: v.spec.env for v in variables(type(options))}
    return {named[f]: getattr(options, f) for f in ("port", "health_port") if f in named}


def _distinct_ports(services: Sequence[ServiceOptions]) -> None:
    taken: dict[int, tuple[str, str]] = {}
    errors = []
    for options in services:
        for name, port in port_variables(options).items():
            if port in taken:
                other, theirs = taken[port]
                errors.append(
                    f"{name}={port}: {other} listens there too ({theirs}): choose another port for one of them"
                )
            taken.setdefault(port, (options.SERVICE, name))
    if errors:
        raise SettingsError(errors)


def _moved(services: Mapping[str, ServiceOptions], offset: int) -> dict[str, ServiceOptions]:
    """Services with their ports moved.

    Raises:
        SettingsError: there are no such ports.
    """
    errors = [
        f"QA_PORT_OFFSET={offset}: {name}={port} would become {port + offset}: a port is at most 65535"
        for options in services.values()
        for name, port in port_variables(options).items()
        if port + offset > 65_535
    ]
    if errors:
        raise SettingsError(errors)
    out = {}
    for name, options in services.items():
        moved: Any = {f: getattr(options, f) + offset for f in ("port", "health_port") if hasattr(options, f)}
        group: Any = options
        out[name] = replace(group, **moved)
    return out


def _distinct_streams(groups: Sequence[object]) -> None:
    """Refuse one stream for two purposes: what is written for one reader would be read by another."""
    used: dict[str, str] = {}
    errors = []
    for group in groups:
        for v in variables(type(group)):
            name = getattr(group, v.field)
            if not v.field.endswith("_stream") or used.get(name) == v.spec.env:
                continue
            if name in used:
                errors.append(
                    f"{v.spec.env}={name!r}: {used[name]} names it too: choose another stream for one of them"
                )
            used[name] = v.spec.env
    if errors:
        raise SettingsError(errors)


def _tagged(group: T, keys: Keys) -> T:
    """A group with its streams under the hash tag."""
    named: Any = group
    streams = {v.field: getattr(group, v.field) for v in variables(type(named)) if v.field.endswith("_stream")}
    changed = {field: keys.tagged(name) for field, name in streams.items()}
    return replace(named, **changed) if changed != streams else group


def _same_tag(groups: Sequence[object], keys: Keys) -> None:
    """Refuse a stream under another tag: it would be in another slot."""
    errors = []
    for group in groups:
        for v in variables(type(group)):
            name = getattr(group, v.field)
            if keys.tag and v.field.endswith("_stream") and tag_of(name)[0] != keys.tag:
                errors.append(f"{v.spec.env}={name!r}: its tag must be {keys.tag!r}, which QA_HASH_TAG says")
    if errors:
        raise SettingsError(sorted(set(errors)))


def load(
    names: Sequence[str], environ: Mapping[str, str], *, together: bool = True, strangers_pass: bool = False
) -> Settings:
    """Read the settings of services.

    Args:
        names: services; a name given twice counts once.
        environ: names and texts, the process' environment for example.
        together: they run in one process, so that ``METRICS_PORT`` has no room for several.
        strangers_pass: names that no service knows are warned of alone.

    Raises:
        SettingsError: every error at once.
    """
    strange = [name for name in names if name not in GROUPS]
    if strange:
        raise SettingsError([f"{name!r} is not a service: there are {', '.join(GROUPS)}" for name in strange])
    groups = {name: GROUPS[name] for name in names}
    several = together and len(groups) > 1
    every = [RedisOptions, CommonOptions, *groups.values()]
    loaded = read(every, environ, known=KNOWN, several=several, strangers_pass=strangers_pass)
    redis = loaded.get(RedisOptions)
    keys = Keys(tag=redis.hash_tag)
    common = _tagged(loaded.get(CommonOptions), keys)
    services = {name: _tagged(loaded.get(group), keys) for name, group in groups.items()}
    _same_tag([common, *services.values()], keys)
    _distinct_streams([common, *services.values()])
    if together:
        _distinct_ports([loaded.get(group) for group in groups.values()])
    return Settings(
        redis,
        common,
        _moved(services, common.port_offset),
        loaded.warnings,
        loaded.unrecognised_modes,
        loaded.given,
    )
