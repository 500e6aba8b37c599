"""``quantum-alloc install`` and ``uninstall``: this very version onto this machine, and off it again.

    install [--prefix DIR] [--paper] [--python FILE] [--source WHEEL|DIR] [--dry-run]
    uninstall [--prefix DIR] [--purge] [--dry-run]

Each action is told as it is done; a dry run tells the same and does nothing. A new version is built beside the running
one, and the files follow when it stands: what fails on the way is taken back. Nothing is started or restarted.
Settings, secrets and state are the operator's: only those that are not there are written, and all of them stay without
``--purge``.

Exit codes: 0 done; 1 it failed and was taken back; 2 a mistake in the command; 77 not root.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from quantum_alloc import __version__
from quantum_alloc.services import install_record, install_system, units
from quantum_alloc.services import install_release as release
from quantum_alloc.services.disk import missing_directories, put, read, sha, within
from quantum_alloc.services.install_files import LEDGER, SYSTEMD, Manifest, Wanted, files, wanted
from quantum_alloc.services.install_steps import DONE, FAILED, MANIFEST, NOT_ROOT, Steps, Undo, remove_tree
from quantum_alloc.services.installed import others
from quantum_alloc.services.programs import InstallError, signals_noted
from quantum_alloc.services.releases import points_at, remove_old, switch
from quantum_alloc.services.uninstall import uninstall


def add_parsers(commands: Any) -> None:
    """Add the commands.

    Args:
        commands: the subparsers of ``quantum-alloc``.
    """
    about = "put program, units, users and settings in place on this machine"
    put_in = commands.add_parser("install", help=about, description=about)
    take = "take program, units and users away again; settings, secrets and state stay"
    take_out = commands.add_parser("uninstall", help=take, description=take)
    for one in (put_in, take_out):
        one.add_argument("--prefix", type=_prefix, default=units.PREFIX, metavar="DIR", help=f"({units.PREFIX})")
        one.add_argument("--dry-run", action="store_true", help="tell every action and do none")
    put_in.add_argument("--paper", action="store_true", help="let the target start feed and the paper apply layer too")
    put_in.add_argument("--python", type=Path, metavar="FILE", help="interpreter, outside of home directories")
    put_in.add_argument("--source", type=Path, metavar="WHEEL|DIR", help="where the package comes from")
    put_in.set_defaults(handler=_install)
    take_out.add_argument("--purge", action="store_true", help="settings, secrets, state and users too")
    take_out.set_defaults(handler=_uninstall)


def _prefix(text: str) -> PurePosixPath:
    path = PurePosixPath(os.path.normpath(text))
    plain = all(c.isalnum() or c in "/._-" for c in text) and text.isascii()
    if not path.is_absolute() or not plain or len(path.parts) < 3 or release.is_hidden(Path(path)):
        raise argparse.ArgumentTypeError(
            f"{text!r}: name an absolute path like {units.PREFIX}, outside of home and temporary directories"
        )
    return path


def _refused(command: str, dry: bool) -> int:
    if dry or os.geteuid() == 0:
        return DONE
    print(f"quantum-alloc: {command} needs root: run it with sudo, or look first with --dry-run", file=sys.stderr)
    return NOT_ROOT


def _install(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    if code := _refused("install", args.dry_run):
        return code
    os.umask(0o022)  # the users of the services read the program
    steps = Steps(dry=args.dry_run)
    if trouble := _tried(args, steps):
        print(f"quantum-alloc: nothing was installed: {trouble}", file=sys.stderr)
        return FAILED
    if args.dry_run:
        print("Nothing was done: this was a dry run.")
        return DONE
    if not steps.changed:
        print(f"Everything is as version {__version__} puts it.")
        return DONE
    install_record.write_down(environ, "deploy", f"quantum-alloc {__version__} installed at {args.prefix}")
    print("Look at the settings in /etc/quantum, then start: systemctl enable --now quantum-alloc.target")
    print("Services that run keep the version before until: systemctl restart quantum-alloc.target")
    return DONE


def _tried(args: argparse.Namespace, steps: Steps) -> str:
    """Install, or take everything back; why it failed, empty where it did not."""
    whole = False
    with signals_noted():
        try:
            _put_all(args, steps)
            whole = True
        except InstallError as error:
            return str(error)
        except OSError as error:
            return f"{error.filename}: {error.strerror}"
        finally:
            if not whole:
                steps.take_back()
    return ""


def _put_all(args: argparse.Namespace, steps: Steps) -> None:
    prefix: PurePosixPath = args.prefix
    at = within(steps.root, prefix)
    _only_here(steps, prefix)
    manifest = Manifest.read(at / MANIFEST, prefix) or Manifest()
    plan = [step for file in files(prefix) for step in wanted(file, steps.root, manifest)]
    _directories(steps, manifest, [prefix / "releases"])
    name = _release(args, steps, at)
    _directories(steps, manifest, [*(item.path.parent for item in plan), units.SECRETS, LEDGER])
    _manifest(steps, prefix, manifest, plan)
    changes_units = any(item.verb in ("write", "replace") and item.path.parent == SYSTEMD for item in plan)
    if changes_units:
        install_system.reload_later(steps)
    for item in plan:
        _file(steps, item)
    install_system.secrets(steps)
    install_system.users(steps)
    before = points_at(at / "venv")
    if before != name:
        steps.do("switch", f"{prefix}/venv to releases/{name}", lambda: switch(at / "venv", name))
    install_system.paper(steps, args.paper)
    install_system.reload(steps, changes_units)
    remove_old(steps, at, name, before)


def _only_here(steps: Steps, prefix: PurePosixPath) -> None:
    """Refuse a second installation: both would share units, users and settings."""
    for other in others(steps.root, prefix):
        if within(steps.root, other / MANIFEST).exists():
            way = f"name that prefix, or take it away first: quantum-alloc uninstall --prefix {other}"
            raise InstallError(f"the units of this machine run the installation at {other}: {way}")
        steps.tell("replace", f"the units of {other}, where nothing is installed any more")


def _directories(steps: Steps, manifest: Manifest, needed: Iterable[PurePosixPath]) -> None:
    for directory in missing_directories(needed, steps.root):
        _directory(steps, directory)
        manifest.directories.append(str(directory))


def _directory(steps: Steps, directory: PurePosixPath) -> None:
    path = within(steps.root, directory)

    def make() -> Undo:
        path.mkdir(0o700 if directory in (units.SECRETS, LEDGER) else 0o755)
        return path.rmdir

    steps.do("make", f"{directory}/", make)


def _release(args: argparse.Namespace, steps: Steps, at: Path) -> str:
    """Build the release, where it is not there yet; its name."""
    own = Path(sys.prefix).resolve()
    if own.parent == at / "releases" and args.source is None and args.python is None:
        steps.tell("unchanged", own)
        return own.name
    python, origin, held = release.interpreter(args.python), release.source(args.source), release.constraints()
    name = release.name_of(python, origin, held)
    directory = at / "releases" / name
    if (directory / release.COMPLETE).is_file():
        steps.tell("unchanged", directory)
        return name

    def build() -> None:
        steps.later(lambda: remove_tree(directory))
        release.build(directory, python, origin, held)

    steps.do("build", f"{directory} with {python} from {origin.asked} (about a minute)", build)
    return name


def _manifest(steps: Steps, prefix: PurePosixPath, manifest: Manifest, plan: list[Wanted]) -> None:
    """Note all that is going to be there, before it is."""
    path = within(steps.root, prefix / MANIFEST)
    before = read(path)
    manifest.files.update({str(i.path): sha(i.text) for i in plan if i.verb not in ("keep", "unseen")})
    manifest.version = __version__
    text = manifest.text()
    if before != text:
        verb = "write" if before is None else "replace"
        steps.do(verb, prefix / MANIFEST, lambda: put(path, text, 0o644))


def _file(steps: Steps, item: Wanted) -> None:
    if item.verb in ("unchanged", "keep", "unseen"):
        steps.tell(item.verb, f"{item.path} ({item.why})" if item.why else item.path)
    else:
        steps.do(item.verb, item.path, lambda: put(within(steps.root, item.path), item.text, item.mode))


def _uninstall(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    if code := _refused("uninstall", args.dry_run):
        return code
    try:
        return uninstall(args.prefix, Steps(dry=args.dry_run), environ, purge=args.purge)
    except InstallError as error:
        print(f"quantum-alloc: {error}", file=sys.stderr)
        return FAILED
    except OSError as error:
        print(f"quantum-alloc: not everything was removed: {error.filename}: {error.strerror}", file=sys.stderr)
        return FAILED
