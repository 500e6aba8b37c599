"""What an installation asks of the system: users, paper services, rights of secrets, and that systemd reads anew."""

from __future__ import annotations

import pwd
from contextlib import suppress
from functools import partial

from quantum_alloc.services import secret_files, units
from quantum_alloc.services.disk import within
from quantum_alloc.services.install_files import SYSTEMD
from quantum_alloc.services.install_steps import Steps, Undo, has_systemd, systemctl
from quantum_alloc.services.programs import InstallError, run


def _has_user(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def users(steps: Steps) -> None:
    """Make the users that are missing.

    Args:
        steps: where it is told.
    """
    missing = [u.user for u in units.UNITS.values() if not _has_user(u.user)]
    if not missing:
        steps.tell("unchanged", "the users of the services")
        return

    def forget() -> None:
        for user in filter(_has_user, missing):
            run(["userdel", user], f"userdel {user}", to_the_end=True)

    def add() -> None:
        steps.later(forget)
        run(["systemd-sysusers", f"/etc/sysusers.d/{units.SYSUSERS}"], "systemd-sysusers")

    steps.do("run", f"systemd-sysusers ({', '.join(missing)})", add)


def paper(steps: Steps, wanted_too: bool) -> None:
    """Let the target start the services that write simulated prices and fills, where that is asked for.

    Args:
        steps: where it is told.
        wanted_too: whether it is.
    """
    names = [u.file for u in units.UNITS.values() if u.paper]
    wants = within(steps.root, SYSTEMD / f"{units.TARGET}.wants")
    enabled = [name for name in names if (wants / name).is_symlink()]
    if not wanted_too and enabled:
        off = f"systemctl disable --now {' '.join(enabled)}"
        steps.tell("keep", f"{' '.join(enabled)} enabled: simulated prices and fills are written; to end it: {off}")
    if not wanted_too or enabled == names:
        return
    missing = [name for name in names if name not in enabled]

    def disable() -> None:
        run(["systemctl", "--quiet", "disable", *missing], "systemctl disable", to_the_end=True)

    def enable() -> None:
        steps.later(disable)
        run(["systemctl", "--quiet", "enable", *names], "systemctl enable")

    steps.do("run", f"systemctl enable {' '.join(names)}", enable)


def secrets(steps: Steps) -> None:
    """Shut the directory of the secrets to everybody but root, and tell of files that others may read.

    Args:
        steps: where it is told.
    """
    directory = within(steps.root, units.SECRETS)
    try:
        rights = directory.stat().st_mode & 0o777
        opened = secret_files.opened(directory)
    except FileNotFoundError:
        return
    except PermissionError:
        steps.tell("unseen", f"{units.SECRETS}/ (only root may look)")
        return

    def shut() -> Undo:
        directory.chmod(0o700)
        return partial(directory.chmod, rights)

    if rights != 0o700:
        steps.do("shut", f"{units.SECRETS}/ (its rights were {rights:04o}, and are 0700)", shut)
    for sentence in opened:
        steps.tell("warn", sentence)


def reload_later(steps: Steps) -> None:
    """Let systemd read its units again once everything is taken back, if it is.

    Args:
        steps: that may be taken back.
    """
    if has_systemd(steps):
        steps.later(lambda: run(["systemctl", "--quiet", "daemon-reload"], "systemctl daemon-reload", to_the_end=True))


def reload(steps: Steps, changed: bool) -> None:
    """Let systemd read its units again, where it does not know them as they are.

    Args:
        steps: where it is told.
        changed: whether a unit was written.
    """
    if not changed and has_systemd(steps):
        with suppress(InstallError):  # an installation that changes nothing needs no systemd
            words = ["systemctl", "show", "--property=NeedDaemonReload", *units.systemd_files()]
            changed = "NeedDaemonReload=yes" in run(words, "systemctl show")
    if changed:
        systemctl(steps, "daemon-reload")
