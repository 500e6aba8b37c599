"""The systemd units: one table of what differs from service to service, and the texts that are made from it.

    UNITS                       a row a service that an operator runs; the demo's alone has none
    unit_text  target_text  sysusers_text       the same text for the same row, on every machine

The order of a start follows what feeds what, and a stop goes the other way round. Nothing is required: a service starts
and waits without its inputs and without Redis. ``deploy/`` holds copies, made by ``make deploy``.
Source: the project's wire, section 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from quantum_alloc.services.env_file import CREDENTIAL as SETTINGS
from quantum_alloc.services.governor_setup import CREDENTIAL as SIGNING_KEY
from quantum_alloc.services.loop import LATE_AT_LEAST_S, LATE_INTERVALS
from quantum_alloc.services.options import GROUPS, load, port_variables
from quantum_alloc.services.redis_options import CREDENTIAL as PASSWORD
from quantum_alloc.services.redis_options import SENTINEL_CREDENTIAL as SENTINEL_PASSWORD
from quantum_alloc.services.seal import seal
from quantum_alloc.services.settings_docs import ENV_FILES

PREFIX = PurePosixPath("/opt/quantum-alloc")
ETC = PurePosixPath("/etc/quantum")
SECRETS = ETC / "secrets"
STATE = PurePosixPath("/var/lib/quantum-alloc")
TARGET = "quantum-alloc.target"
SYSUSERS = "quantum-alloc.conf"
REDIS = ("redis-server.service", "valkey-server.service")
"""What Redis' own unit may be called; one that is not there is passed over."""


@dataclass(frozen=True, slots=True)
class Unit:
    """One service as systemd runs it.

    Attributes:
        service: its name on the command line.
        name: of its unit, without the suffix.
        fed_by: services whose output it reads; never in a circle.
        memory_mb: it is ended above this.
        cpu_pct: share of one core.
        paper: it writes simulated prices or fills: only where it is asked for.
        signing: it needs the governor's signing key.
    """

    service: str
    name: str
    fed_by: tuple[str, ...]
    memory_mb: int = 256
    cpu_pct: int = 100
    paper: bool = False
    signing: bool = False

    @property
    def file(self) -> str:
        """Name of its unit."""
        return f"{self.name}.service"

    @property
    def user(self) -> str:
        """Its user, in Linux and in Redis."""
        return f"qa-{self.service}"

    @property
    def env_file(self) -> str:
        """Name of its file in /etc/quantum."""
        return f"{ENV_FILES.get(self.service, self.service)}.env"

    @property
    def interval_s(self) -> float:
        """Seconds from cycle to cycle, unless an operator sets another."""
        return load([self.service], {}).services[self.service].interval_s

    @property
    def ports(self) -> tuple[int, ...]:
        """Where it answers, unless an operator says otherwise."""
        return tuple(port_variables(load([self.service], {}).services[self.service]).values())

    @property
    def watchdog_s(self) -> int:
        """Seconds without a finished cycle after which it is started anew: a third above the loop's own lateness."""
        return math.ceil(max(LATE_AT_LEAST_S, LATE_INTERVALS * self.interval_s) * 4 / 3)

    @property
    def about(self) -> str:
        """What it does, in a few words."""
        return (GROUPS[self.service].__doc__ or "").splitlines()[0].rstrip(".")


UNITS: Mapping[str, Unit] = {
    row.service: row
    for row in (
        Unit("feed", "quantum-market-feed", (), memory_mb=512, paper=True),
        Unit("portfolio", "quantum-portfolio-state-publisher", ("feed",)),
        Unit("regime", "quantum-regime-detector", ("feed",), memory_mb=512),
        Unit("attribution", "quantum-performance-attribution", ()),
        Unit("clusters", "quantum-portfolio-clusters", ("feed", "attribution"), memory_mb=1024),
        Unit("budget", "quantum-portfolio-risk-governor", ("portfolio", "clusters")),
        Unit(
            "allocation", "quantum-capital-allocation", ("portfolio", "regime", "clusters", "budget", "attribution")
        ),
        Unit("efficiency", "quantum-capital-efficiency", ("attribution", "allocation")),
        Unit("proposer", "quantum-allocation-target", ("allocation", "efficiency")),
        Unit(
            "governor", "quantum-governor", ("portfolio", "budget", "allocation", "efficiency"), memory_mb=512,
            signing=True,
        ),
        Unit("apply", "quantum-apply-layer", ("feed", "governor"), paper=True, signing=True),
    )
}  # fmt: skip
"""The unit of each service, by its name on the command line; what feeds a service stands above it."""


def credentials(unit: Unit) -> dict[str, PurePosixPath]:
    """The credentials of a unit and the files that systemd reads them from.

    Args:
        unit: of the table.
    """
    own = {PASSWORD: SECRETS / f"{unit.user}.{PASSWORD}", SENTINEL_PASSWORD: SECRETS / SENTINEL_PASSWORD}
    return {**own, SIGNING_KEY: SECRETS / SIGNING_KEY} if unit.signing else own


_HARDENING = """\
NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
UMask=0077
LimitCORE=0
TasksMax=64
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
PrivateDevices=yes
DevicePolicy=closed
PrivateUsers=yes
PrivateIPC=yes
RemoveIPC=yes
KeyringMode=private
ProtectProc=invisible
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
SystemCallErrorNumber=EPERM
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX"""


def unit_text(unit: Unit, prefix: PurePosixPath = PREFIX) -> str:
    """The unit of a service.

    Args:
        unit: of the table.
        prefix: where the program is installed.
    """
    feeders = [UNITS[name] for name in unit.fed_by]
    wanted = [*REDIS, *(f.file for f in feeders if not f.paper)]
    secrets = credentials(unit)
    lines = [
        "# To change it: systemctl edit, which makes a drop-in that an upgrade leaves alone.",
        "[Unit]",
        f"Description=quantum-alloc {unit.service}: {unit.about}",
        f"After=network.target {' '.join([*REDIS, *(f.file for f in feeders)])}",
        f"Wants={' '.join(wanted)}",
        f"PartOf={TARGET}",
        "# A service that ends ten times in two minutes is left ended; one that hangs is started anew each time.",
        "StartLimitIntervalSec=120",
        "StartLimitBurst=10",
        "",
        "[Service]",
        "Type=notify",
        "NotifyAccess=main",
        f"ExecStart={prefix}/venv/bin/quantum-alloc run {unit.service}",
        f"EnvironmentFile=-{ETC}/{unit.env_file}",
        "Environment=OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1",
        f"SyslogIdentifier={unit.name}",
        f"User={unit.user}",
        f"Group={unit.user}",
        f"StateDirectory={STATE.name}/{unit.service}",
        "StateDirectoryMode=0700",
        "# A cycle that was given up because Redis does not answer counts as finished.",
        f"WatchdogSec={unit.watchdog_s}",
        "Restart=always",
        "RestartSec=2",
        "# 78: the settings cannot be used or the port is taken. Starting it again would change nothing.",
        "RestartPreventExitStatus=78",
        "TimeoutStartSec=180",
        "TimeoutStopSec=5",
        f"MemoryMax={unit.memory_mb}M",
        f"CPUQuota={unit.cpu_pct}%",
        "",
        "# Secrets reach the service as files that nobody else can read. A file that is not there is an empty line.",
        *(f"LoadCredential={name}:{path}" for name, path in secrets.items()),
        *(rf"SetCredential={name}:\n" for name in secrets),
        "# The settings once more, as they are: what systemd drops from them without a word, the service refuses.",
        f"LoadCredential={SETTINGS}:{ETC}/{unit.env_file}",
        rf"SetCredential={SETTINGS}:\n",
        "",
        _HARDENING,
        "# Redis on another machine: systemctl edit, with [Service] and IPAddressAllow= its address.",
        "IPAddressDeny=any",
        "IPAddressAllow=localhost",
        "",
        "[Install]",
        f"WantedBy={TARGET}",
    ]
    return seal("\n".join(lines) + "\n")


def target_text() -> str:
    """The target that starts and stops all services that write nothing simulated."""
    lines = [
        "# `systemctl enable --now quantum-market-feed quantum-apply-layer` adds the paper services.",
        "[Unit]",
        "Description=quantum-alloc: capital allocation and pre-trade governor",
        f"Wants={' '.join(u.file for u in UNITS.values() if not u.paper)}",
        "",
        "[Install]",
        "WantedBy=multi-user.target",
    ]
    return seal("\n".join(lines) + "\n")


def sysusers_text() -> str:
    """The users, for systemd-sysusers: one a service, without a home and without a shell."""
    lines = [f'u {u.user} - "quantum-alloc {u.service}" - -' for u in UNITS.values()]
    return seal("\n".join(lines) + "\n")


def systemd_files(prefix: PurePosixPath = PREFIX) -> dict[str, str]:
    """All units and the target, by file name.

    Args:
        prefix: where the program is installed.
    """
    return {**{u.file: unit_text(u, prefix) for u in UNITS.values()}, TARGET: target_text()}
