"""What an installation puts on a machine beside its program, and how a file is told to be ours.

    files           every file with its text; settings are the operator's as soon as they are there
    Manifest        PREFIX/manifest.json: all that was put, so that it can be taken back

A file is ours and untouched when its seal holds or its hash is the manifest's. One that was edited stays, with the new
text beside it; one that never was ours stops the installation before it begins.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath

import quantum_alloc
from quantum_alloc.services import units
from quantum_alloc.services.disk import read, sha, within
from quantum_alloc.services.programs import InstallError
from quantum_alloc.services.redis_options import CREDENTIAL as PASSWORD
from quantum_alloc.services.seal import is_sealed, seal
from quantum_alloc.services.settings_docs import example_file

SYSTEMD = PurePosixPath("/etc/systemd/system")
SYSUSERS = PurePosixPath("/etc/sysusers.d") / units.SYSUSERS
COMMAND = PurePosixPath("/usr/local/bin/quantum-alloc")
OPERATOR = units.ETC / "operator.env"
LEDGER = units.STATE / "operator"
SHARED = {
    "quantum-alloc.1": PurePosixPath("/usr/local/share/man/man1/quantum-alloc.1"),
    "quantum-alloc.bash": PurePosixPath("/usr/local/share/bash-completion/completions/quantum-alloc"),
    "_quantum-alloc": PurePosixPath("/usr/local/share/zsh/site-functions/_quantum-alloc"),
}
"""Files of the package's directory ``share`` and where a shell and man look for them."""


_SHA = re.compile(r"[0-9a-f]{64}")
_PUT = re.compile(
    "|".join(
        (
            rf"{SYSTEMD}/(quantum-[a-z-]+\.service|{re.escape(units.TARGET)})(\.new)?",
            rf"{units.ETC}/[a-z-]+\.env(\.example)?",
            *(rf"{re.escape(str(path))}(\.new)?" for path in (SYSUSERS, COMMAND, *SHARED.values())),
        )
    )
)
"""The paths that some version puts a file at."""


def _is_put(name: str) -> bool:
    return _PUT.fullmatch(name) is not None


def _is_made(name: object, prefix: PurePosixPath) -> bool:
    """Whether a directory is one that files, secrets or releases need."""
    needed = (SYSTEMD, SYSUSERS.parent, COMMAND.parent, units.SECRETS, LEDGER, prefix / "releases")
    known = {p for path in (*needed, *(s.parent for s in SHARED.values())) for p in (path, *path.parents)}
    return isinstance(name, str) and name in map(str, known)


@dataclass(frozen=True, slots=True)
class File:
    """One file.

    Attributes:
        path: where it belongs.
        text: what is in it.
        mode: its rights.
        settings: it is the operator's once it is there.
    """

    path: PurePosixPath
    text: str
    mode: int = 0o644
    settings: bool = False


@dataclass(slots=True)
class Manifest:
    """What an installation has put.

    Attributes:
        version: of the program.
        files: hash by path.
        directories: those that it made, parents first.
    """

    version: str = ""
    files: dict[str, str] = field(default_factory=dict)
    directories: list[str] = field(default_factory=list)

    @staticmethod
    def read(path: Path, prefix: PurePosixPath) -> Manifest | None:
        """The manifest of an installation; None where there is none.

        Args:
            path: of its file.
            prefix: where the installation is.

        Raises:
            InstallError: it cannot be read, or names what no version of this program puts.
        """
        try:
            found = Manifest(**json.loads(path.read_text()))
            found.check(prefix)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, AttributeError) as error:
            way = "put it back from a backup, or move it away"
            raise InstallError(f"{path} cannot be used ({error}): {way}") from None
        return found

    def check(self, prefix: PurePosixPath) -> None:
        """Raise ValueError where it is not of a kind that this program writes.

        Args:
            prefix: where the installation is.
        """
        if [type(part) for part in (self.version, self.files, self.directories)] != [str, dict, list]:
            raise ValueError("it is no manifest")
        for name, digest in self.files.items():
            if not _is_put(name) or not _SHA.fullmatch(str(digest)):
                raise ValueError(f"{name!r} is no file of an installation")
        for name in self.directories:
            if not _is_made(name, prefix):
                raise ValueError(f"{name!r} is no directory of an installation")

    def text(self) -> str:
        """The file's text."""
        return json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"


def command_text(prefix: PurePosixPath) -> str:
    """The command on an operator's PATH.

    Args:
        prefix: where the program is.
    """
    lines = [
        "#!/bin/sh",
        "# The program with an operator's settings; what the environment sets counts before them.",
        f'[ -r {OPERATOR} ] && set -- --env-file {OPERATOR} "$@"',
        f'exec {prefix}/venv/bin/quantum-alloc "$@"',
    ]
    return seal("\n".join(lines) + "\n")


def operator_text() -> str:
    """The settings of an operator's commands."""
    password = units.SECRETS / f"qa-operator.{PASSWORD}"
    lines = [
        f"# Settings of an operator's commands (status, kill, ledger ...): {OPERATOR}",
        "# Comments stand on lines of their own: behind a value, systemd takes them for a part of it.",
        "# Where Redis is, ports and limits: the same variables as in the files of the services.",
        "",
        "# The OPS ledger is kept here.",
        f"STATE_DIRECTORY={LEDGER}",
        "",
        "# The user of Redis and the file of its password, where Redis has users.",
        "#REDIS_USERNAME=qa-operator",
        f"#REDIS_PASSWORD_FILE={password}",
    ]
    return "\n".join(lines) + "\n"


def env_files() -> dict[str, str]:
    """The settings of every service at their defaults, commented out, and those of an operator; by file name."""
    rows = units.UNITS.values()
    return {**{u.env_file: f"{example_file(u.service)}\n" for u in rows}, OPERATOR.name: operator_text()}


def copies() -> dict[str, str]:
    """Units, users and settings as they are put at the usual prefix, by name in ``deploy``."""
    found = {f"systemd/{name}": text for name, text in units.systemd_files().items()}
    found[f"sysusers.d/{units.SYSUSERS}"] = units.sysusers_text()
    return {**found, **{f"env/{name}": text for name, text in env_files().items()}}


def files(prefix: PurePosixPath) -> list[File]:
    """Every file of an installation, the program apart.

    Args:
        prefix: where the program is.
    """
    made = [File(SYSTEMD / name, text) for name, text in units.systemd_files(prefix).items()]
    settings = [File(units.ETC / name, text, 0o640, settings=True) for name, text in env_files().items()]
    return [
        *settings,
        File(SYSUSERS, units.sysusers_text()),
        File(COMMAND, command_text(prefix), 0o755),
        *_shared(),
        *made,
    ]


def _shared() -> list[File]:
    folder = Path(quantum_alloc.__file__).parent / "share"
    return [File(to, (folder / name).read_text()) for name, to in SHARED.items() if (folder / name).is_file()]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be done about one file.

    Attributes:
        verb: write, replace, unchanged, keep, or unseen by somebody who may not look.
        path: of the file.
        text: what it is to hold.
        mode: its rights.
        why: for ``keep`` and ``unseen``.
    """

    verb: str
    path: PurePosixPath
    text: str
    mode: int
    why: str = ""


def wanted(file: File, root: Path, manifest: Manifest) -> list[Wanted]:
    """What is to be done about a file; for one that stays as it is, also about the one beside it.

    Args:
        file: of the installation.
        root: the machine's root directory.
        manifest: of the installation that is there.

    Raises:
        InstallError: there is a file that never was ours.
    """
    try:
        here = read(within(root, file.path))
    except PermissionError:
        return [Wanted("unseen", file.path, file.text, file.mode, "only root may look")]
    if here is None or here == file.text:
        return [Wanted("write" if here is None else "unchanged", file.path, file.text, file.mode)]
    if file.settings:
        return _beside(file, ".example", "yours; all settings of this version are beside it", root)
    known = manifest.files.get(str(file.path))
    sealed = is_sealed(here)
    if sealed or known == sha(here):
        return [Wanted("replace", file.path, file.text, file.mode)]
    if sealed is None and known is None:
        raise InstallError(f"{file.path} is there and was not made by quantum-alloc: move it away first")
    return _beside(file, ".new", "it was edited; this version's is beside it", root)


def _beside(file: File, suffix: str, why: str, root: Path) -> list[Wanted]:
    other = file.path.with_name(file.path.name + suffix)
    try:
        there = read(within(root, other))
    except PermissionError:
        return [Wanted("unseen", other, file.text, file.mode, "only root may look")]
    verb = "write" if there is None else "unchanged" if there == file.text else "replace"
    return [Wanted("keep", file.path, file.text, file.mode, why), Wanted(verb, other, file.text, file.mode)]
