"""A release: this very version in a virtual environment of its own, built beside the one that runs.

    interpreter     Python 3.11 to 3.13 that the units can see: they see no home directory and no /tmp
    source          the checkout that is running, or the wheel it was installed from: never a name in a package index
    constraints     the versions of its dependencies that run here
    build           PREFIX/releases/NAME, with the wheel that it was made of; nothing else is touched

A virtual environment cannot be renamed, for its scripts name it: PREFIX/venv is a link that is moved to the new one.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from urllib.parse import unquote, urlsplit

import quantum_alloc
from quantum_alloc import __version__
from quantum_alloc.services.programs import InstallError, run

NAME = "quantum-alloc"
HIDDEN = tuple(map(Path, ("/home", "/root", "/run/user", "/tmp", "/var/tmp")))  # noqa: S108 - to be kept out of
"""Directories that a unit does not see: ProtectHome=, PrivateTmp=."""
OLDEST, TOO_NEW = (3, 11), (3, 14)
COMPLETE, CONSTRAINTS = ".complete", "constraints.txt"
_DIRECTORIES = "/usr/local/bin:/usr/bin:/bin"
_EXTRAS = ("clusters", "hiredis")
_PROBE = (
    "import sys, importlib.util as u, json; print(json.dumps([sys.version_info[:2], sys.base_prefix, "
    "bool(u.find_spec('venv') and u.find_spec('ensurepip'))]))"
)


@dataclass(frozen=True, slots=True)
class Source:
    """Where the package comes from.

    Attributes:
        asked: what pip is asked for, without extras.
        key: changes with what is in it.
    """

    asked: str
    key: str


def is_hidden(path: Path) -> bool:
    """Whether a unit cannot see a path.

    Args:
        path: absolute.

    >>> is_hidden(Path("/home/me/.pyenv/bin/python3")), is_hidden(Path("/homely/python3"))
    (True, False)
    """
    return any(place in (p, *p.parents) for p in {path, Path(os.path.realpath(path))} for place in HIDDEN)


def _trouble(python: Path) -> str:
    try:
        version, base, has_venv = json.loads(run([python, "-I", "-c", _PROBE], "a look at the interpreter"))
    except (InstallError, ValueError):
        return "it is no Python that runs"
    if not OLDEST <= tuple(version) < TOO_NEW:
        return f"it is Python {version[0]}.{version[1]}: 3.11 to 3.13 is needed"
    if is_hidden(python) or is_hidden(Path(base)):
        return "it lies in a home or temporary directory, which the units cannot see"
    return "" if has_venv else "its venv module is missing: on Debian and Ubuntu, apt-get install python3-venv"


def interpreter(given: Path | None, path: str = _DIRECTORIES) -> Path:
    """The interpreter of a release: the one that was named, else one as the running one, else the newest.

    Args:
        given: named by the operator; None for none.
        path: directories to look in.

    Raises:
        InstallError: there is none that can be used.
    """
    if given is not None:
        trouble = _trouble(given)
        if trouble:
            raise InstallError(f"--python {given}: {trouble}")
        return given
    minors = dict.fromkeys([sys.version_info[1], *range(TOO_NEW[1] - 1, OLDEST[1] - 1, -1)])
    named = [shutil.which(f"python3.{minor}", path=path) for minor in minors] + [shutil.which("python3", path=path)]
    found = [Path(sys.base_prefix, "bin", f"python3.{sys.version_info[1]}"), *(Path(n) for n in named if n)]
    seen = {python: _trouble(python) for python in dict.fromkeys(found) if python.exists()}
    fit = next((python for python, trouble in seen.items() if not trouble), None)
    if fit is None:
        looked = "; ".join(f"{python}: {trouble}" for python, trouble in seen.items()) or "none was found"
        way = "install Python 3.11 to 3.13 with its venv module (python3-venv), or name one with --python"
        raise InstallError(f"no interpreter can be used ({looked}): {way}")
    return fit


def _hash(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()


def _of_file(path: Path) -> Source:
    return Source(str(path), _hash([path.read_bytes()]))


def _of_checkout(path: Path) -> Source:
    files = sorted(p for p in (path / "src").rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    named = (
        part for p in (path / "pyproject.toml", *files) for part in (str(p.relative_to(path)).encode(), p.read_bytes())
    )
    return Source(str(path), _hash(named))


def source(given: Path | None) -> Source:
    """Where this very version comes from.

    Args:
        given: a wheel or a checkout; None for what is running.

    Raises:
        InstallError: the given one cannot be used, or none is known: whoever holds our name in an index is not us.
    """
    if given is not None:
        path = given.absolute()
        if path.suffix == ".whl" and path.is_file():
            return _of_file(path)
        if (path / "pyproject.toml").is_file():
            return _of_checkout(path)
        raise InstallError(f"--source {given} is neither a wheel nor a directory with a pyproject.toml: name one")
    checkout = Path(quantum_alloc.__file__).resolve().parents[2]
    if (checkout / "pyproject.toml").is_file() and (checkout / "src" / "quantum_alloc").is_dir():
        return _of_checkout(checkout)
    wheel = _wheel()
    if wheel is None:
        raise InstallError(
            f"neither a checkout nor a wheel of quantum-alloc {__version__} is known: name it with --source"
        )
    return _of_file(wheel)


def _wheel() -> Path | None:
    """The wheel that the running distribution was installed from, while it is there."""
    try:
        told = json.loads(distribution(NAME).read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, ValueError):
        return None
    url = urlsplit(told.get("url", ""))
    path = Path(unquote(url.path))
    return path if url.scheme == "file" and path.suffix == ".whl" and path.is_file() else None


def constraints() -> list[str]:
    """The versions of the dependencies that run here, as pip's constraints; in a release, those it was made with."""
    own = Path(sys.prefix)
    if (own / COMPLETE).is_file() and (own / CONSTRAINTS).is_file():
        return (own / CONSTRAINTS).read_text().split()
    found: dict[str, str] = {}
    todo = [NAME]
    while todo:
        name = re.sub(r"[-_.]+", "-", todo.pop()).lower()
        if name in found:
            continue
        try:
            held = distribution(name)
        except PackageNotFoundError:
            continue
        found[name] = held.version
        for line in held.requires or ():
            extra = re.search(r"""extra\s*==\s*["']([^"']+)""", line)
            if extra is None or extra[1] in _EXTRAS:
                todo.append(re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0])
    return sorted(f"{name}=={version}" for name, version in found.items() if name != NAME)


def name_of(python: Path, origin: Source, held: Sequence[str]) -> str:
    """The name of a release: the same for the same interpreter, package and dependencies.

    Args:
        python: its interpreter.
        origin: where the package comes from.
        held: the constraints.
    """
    parts = [os.path.realpath(python), origin.key, *held]
    return f"{__version__}-{_hash(p.encode() for p in parts)[:10]}"


def build(directory: Path, python: Path, origin: Source, held: Sequence[str]) -> None:
    """Make a release.

    Args:
        directory: of the release; what is there is what an interrupted build left.
        python: its interpreter.
        origin: where the package comes from.
        held: the constraints.

    Raises:
        InstallError: it could not be made, or holds another version than the running one.
    """
    if directory.exists():
        shutil.rmtree(directory)
    directory.mkdir(parents=True)
    run([python, "-m", "venv", directory], "the virtual environment")
    limits = directory / CONSTRAINTS
    limits.write_text("".join(f"{line}\n" for line in held))
    pip, quiet = [directory / "bin" / "python", "-m", "pip"], ["--quiet", "--no-input", "--disable-pip-version-check"]
    if origin.asked.endswith(".whl"):
        shutil.copy(origin.asked, directory)
    else:
        run([*pip, "wheel", *quiet, "--no-deps", "--wheel-dir", directory, origin.asked], f"pip wheel {origin.asked}")
    (wheel,) = directory.glob("*.whl")
    asked = f"{wheel}[clusters]"
    run([*pip, "install", *quiet, "--constraint", limits, asked], f"pip install {asked}")
    told = run([directory / "bin" / NAME, "--version"], "the new program").strip()
    if told != f"{NAME} {__version__}":
        way = "install it with its own `quantum-alloc install`"
        raise InstallError(f"{origin.asked} holds {told}, and this is {__version__}: {way}")
    (directory / COMPLETE).touch()
