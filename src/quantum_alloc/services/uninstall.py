"""Takes an installation back: exactly what was put, and with ``purge`` the settings, secrets, state and users too.

Whatever speaks against it is found before the first removal. Of two installations only the one that was named goes, and
what both share stays. A link is told and kept, for what lies behind it would stay.
"""

from __future__ import annotations

import os
import pwd
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path, PurePosixPath

from quantum_alloc import __version__
from quantum_alloc.services import install_record, units
from quantum_alloc.services.disk import read, sha, within
from quantum_alloc.services.install_files import SYSTEMD, Manifest, env_files
from quantum_alloc.services.install_steps import (
    DONE,
    FAILED,
    MANIFEST,
    USAGE,
    Steps,
    has_systemd,
    is_empty,
    remove_tree,
    systemctl,
)
from quantum_alloc.services.installed import others, owners
from quantum_alloc.services.programs import run
from quantum_alloc.services.seal import is_sealed


def uninstall(prefix: PurePosixPath, steps: Steps, environ: Mapping[str, str], *, purge: bool) -> int:
    """Take an installation back.

    Args:
        prefix: where it is.
        steps: where actions are told.
        environ: the environment, for the OPS ledger.
        purge: settings, secrets, state and users too.

    Returns:
        The exit code.

    Raises:
        InstallError: a program that it needs failed, or the manifest is damaged.
        OSError: something could not be removed.
    """
    at = within(steps.root, prefix)
    manifest = Manifest.read(at / MANIFEST, prefix)
    if trouble := _refused(steps, prefix, manifest, purge):
        steps.tell("nothing", trouble)
        return USAGE
    manifest = manifest or Manifest()
    _stop(steps, prefix)
    if not purge and not steps.dry:
        install_record.write_down(environ, "uninstall", f"quantum-alloc {__version__} taken from {prefix}")
    _remove_files(steps, prefix, manifest)
    for path in (at / "venv", at / MANIFEST):
        if path.is_symlink() or path.exists():
            steps.do("remove", path, path.unlink)
    if (at / "releases").is_dir():
        steps.do("remove", f"{prefix}/releases/", partial(remove_tree, at / "releases"))
    whole = True
    if purge:
        whole = _purge(steps)
    else:
        users = ", ".join(u.user for u in units.UNITS.values())
        steps.tell("keep", f"{units.ETC}/, {units.STATE}/ and the users {users}: --purge removes these too")
    own = (units.ETC, units.STATE)
    made = {*map(PurePosixPath, manifest.directories), prefix}
    for directory in sorted(made, key=lambda p: len(p.parts), reverse=True):
        if directory not in own and not any(place in directory.parents for place in own):
            _remove_directory(steps, directory)
    _drop_ins(steps)
    if not whole:
        print("quantum-alloc: not everything was removed: see what was kept", file=sys.stderr)
        return FAILED
    print("Nothing was done: this was a dry run." if steps.dry else "Taken away.")
    return DONE


def _refused(steps: Steps, prefix: PurePosixPath, manifest: Manifest | None, purge: bool) -> str:
    """Why nothing is taken back; empty where nothing speaks against it."""
    absent = f"is installed at {prefix}: there is no {MANIFEST}"
    if manifest is None and not purge:
        return f"{absent}; name the place with --prefix"
    there, other = owners(steps.root), others(steps.root, prefix)
    if not purge or not there or (manifest is not None and not other):
        return ""
    path = next(p for p, owner in there.items() if not other or owner == other[0])
    if other:
        return f"is removed: {path} runs the program at {other[0]}, whose settings these are: --prefix {other[0]}"
    way = f"`quantum-alloc install --prefix {prefix}`, then uninstall it with --purge"
    return f"{absent}, but {path} is there: put it back with {way}"


def _stop(steps: Steps, prefix: PurePosixPath) -> None:
    """End what runs from this prefix: by the names of the table, and also where a file is gone."""
    there, shared = owners(steps.root), others(steps.root, prefix)
    named = {SYSTEMD / name: name for name in units.systemd_files()}
    here = [name for path, name in named.items() if path in there and _is_ours(there[path], prefix, shared)]
    if here:
        systemctl(steps, "disable", "--now", *sorted(here))
        systemctl(steps, "reset-failed", "quantum-*")
    gone = [name for path, name in named.items() if path not in there]
    if gone and has_systemd(steps):
        states = "--state=active,activating,reloading,deactivating"
        told = run(["systemctl", "list-units", "--plain", "--no-legend", states, *gone], "systemctl list-units")
        running = [line.split()[0] for line in told.splitlines() if line.strip()]
        if running:
            systemctl(steps, "stop", *running)


def _is_ours(owner: PurePosixPath | None, prefix: PurePosixPath, shared: list[PurePosixPath]) -> bool:
    """Whether a unit is this installation's; one that names no prefix is, where there is no other installation."""
    return owner == prefix or (owner is None and not shared)


def _remove_files(steps: Steps, prefix: PurePosixPath, manifest: Manifest) -> None:
    there, shared = owners(steps.root), others(steps.root, prefix)
    put = [PurePosixPath(name) for name in sorted(manifest.files)]
    for path in (p for p in put if units.ETC not in p.parents):
        text = read(within(steps.root, path))
        owner = there.get(path)
        if text is None:
            continue
        if shared and owner != prefix:
            steps.tell("keep", f"{path} (the installation at {shared[0]} needs it)")
        elif sha(text) == manifest.files[str(path)] or (owner == prefix and is_sealed(text)):
            steps.do("remove", path, within(steps.root, path).unlink)
        else:
            steps.tell("keep", f"{path} (it is not as it was put)")
    if any(path.parent == SYSTEMD for path in put):
        systemctl(steps, "daemon-reload")


def _remove_directory(steps: Steps, directory: PurePosixPath) -> None:
    path = within(steps.root, directory)
    if steps.dry and path.is_dir():
        steps.tell("remove", f"{directory}/ (where it is empty then)")
    elif path.is_symlink():
        steps.tell("keep", f"{directory} (a link)")
    elif is_empty(path):
        steps.do("remove", f"{directory}/", path.rmdir)
    elif path.is_dir():
        steps.tell("keep", f"{directory}/ (there is more in it)")


def _links(steps: Steps, path: PurePosixPath) -> list[PurePosixPath]:
    """The links at a path and in it, its directory's own too."""
    here = within(steps.root, path)
    above = [p for p in (units.ETC, path) if path.is_relative_to(p) and within(steps.root, p).is_symlink()]
    return above or [path / p.relative_to(here) for p in here.rglob("*") if p.is_symlink()]


def _purge(steps: Steps) -> bool:
    """Remove settings, secrets and state, and the users where nothing of theirs is left; whether all of it is gone."""
    settings = [units.ETC / f"{name}{suffix}" for name in sorted(env_files()) for suffix in ("", ".example")]
    kept: set[PurePosixPath] = set()
    for path in (*settings, units.SECRETS, units.STATE):
        here, links = within(steps.root, path), _links(steps, path)
        for link in (found for found in links if found not in kept):
            behind = os.readlink(within(steps.root, link))
            steps.tell("keep", f"{link} (a link to {behind}: remove both by hand)")
        kept.update(links)
        if not links and here.is_dir():
            steps.do("remove", f"{path}/", partial(remove_tree, here))
        elif not links and here.is_file():
            steps.do("remove", path, here.unlink)
    _remove_directory(steps, units.ETC)
    if kept:
        steps.tell("keep", "the users of the services (something of theirs is left)")
        return False
    for unit in units.UNITS.values():
        try:
            pwd.getpwnam(unit.user)
        except KeyError:
            continue
        steps.do("run", f"userdel {unit.user}", partial(_forget, unit.user))
    return True


def _forget(user: str) -> None:
    run(["userdel", user], f"userdel {user}")


def _drop_ins(steps: Steps) -> None:
    """Tell of drop-ins: they are the operator's."""
    for name in sorted(units.systemd_files()):
        path = within(steps.root, SYSTEMD / f"{name}.d")
        if Path(path).is_dir():
            steps.tell("keep", f"{SYSTEMD}/{name}.d/ (yours)")
