"""Environment files as systemd reads them, so that a file can be checked before a unit starts with it.

    NAME=value          spaces around the name and around an unquoted value are dropped; the last assignment counts
    # ; at the start    a comment line; after a value there are no comments
    NAME="a b" 'a b'    one pair of quotes around the whole value; inside double quotes \\\\ \\" \\` \\$ are escapes
    NAME=a\\b            without quotes a backslash is eaten and the next character kept; at the end of a line it joins
                        the next line
    $                   literal

Where systemd would go on silently, this is an error with a line number: a line without ``=``, a name that it would
ignore (``export`` among them), a quote that is not closed on its line, text behind a closing quote, a comment that ends
in a backslash (systemd takes the next line for a part of it), a byte order mark, a NUL, what is not UTF-8. A unit hands
its file over as the credential ``settings``, so that a service finds these too. No value is ever shown.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from quantum_alloc.services.settings import INLINE_COMMENT, SettingsError
from quantum_alloc.services.values import SPACE

CREDENTIAL = "settings"
_MARK = "\ufeff"
_NO_TEXT = re.compile("[\0\udc80-\udcff]")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LIKE_A_NAME = re.compile(r"[A-Z0-9_.-]{1,40}")
_LINE_END = re.compile(r"\r\n|\r|\n")
_EATEN = re.compile(r"\\(.?)", re.DOTALL)
_ESCAPE = re.compile(r'\\([\\"`$])')
_DOUBLE = re.compile(r'"((?:[^"\\]|\\.)*)"')
_SINGLE = re.compile(r"'([^']*)'")


def parse(text: str) -> tuple[dict[str, str], list[str]]:
    """Assignments and errors of an environment file.

    Args:
        text: the file.

    Returns:
        Values by name, and one sentence for each line that cannot be read.

    >>> parse("TARGET_TTL_SEC = 300\\nLOG_FORMAT=\\"json\\"\\nP29_MODE\\n")
    ({'TARGET_TTL_SEC': '300', 'LOG_FORMAT': 'json'}, ["line 3: no '=': write NAME=value"])
    """
    found: dict[str, str] = {}
    errors: list[str] = []
    for number, line in _joined(_LINE_END.split(text)):
        stripped = line.strip(SPACE)
        if not stripped:
            continue
        if stripped[0] in "#;":
            if stripped.endswith("\\"):
                errors.append(
                    f"line {number}: a comment must not end in a backslash: systemd joins the next line to it"
                )
            continue
        name, equals, rest = stripped.partition("=")
        name, text = name.rstrip(SPACE), rest.strip(SPACE)
        trouble = _trouble(name, equals)
        value = None if trouble else _value(text)
        if value is None:
            hint = f"; {INLINE_COMMENT}" if "#" in text else ""
            errors.append(f"line {number}: {trouble or f'{name}: one pair of quotes around the whole value{hint}'}")
        else:
            found[name] = value
    return found, errors


def parse_bytes(raw: bytes) -> tuple[dict[str, str], list[str]]:
    """Assignments and errors of an environment file as it is on the disk.

    Args:
        raw: the file.

    >>> parse_bytes(b"A=1\\nB=\\xe4\\n")[1]
    ['line 2: it is not UTF-8: save the file as UTF-8']
    """
    text = raw.decode("utf-8", "surrogateescape")
    errors = ["line 1: it begins with a byte order mark: save the file as UTF-8 without one"] * text.startswith(_MARK)
    lines = _LINE_END.split(text.removeprefix(_MARK))
    for number, line in enumerate(lines, 1):
        if _NO_TEXT.search(line):
            what = "it holds a NUL byte: take it out" if "\0" in line else "it is not UTF-8: save the file as UTF-8"
            errors.append(f"line {number}: {what}")
            lines[number - 1] = ""
    found, others = parse("\n".join(lines))
    return found, [*errors, *others]


def handed_over(environ: Mapping[str, str], name: object) -> list[str]:
    """What is wrong with the file that a unit hands over as a credential; nothing where there is none.

    Args:
        environ: the environment, with ``CREDENTIALS_DIRECTORY``.
        name: of the file, for the messages.
    """
    directory = environ.get("CREDENTIALS_DIRECTORY", "")
    try:
        raw = Path(directory, CREDENTIAL).read_bytes() if directory else b""
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        return [f"credential {CREDENTIAL}: cannot be read: {getattr(error, 'strerror', None) or 'not a path'}"]
    return [f"{name}: {error}" for error in parse_bytes(raw)[1]]


def beneath(environ: Mapping[str, str], path: Path) -> dict[str, str]:
    """An environment with a file's settings for what it does not set itself.

    Args:
        environ: the environment.
        path: of the file.

    Raises:
        SettingsError: the file cannot be read.
    """
    try:
        found, errors = parse_bytes(path.read_bytes())
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "not a path"
        raise SettingsError([f"--env-file {str(path)!r} cannot be read: {why}"]) from None
    if errors:
        raise SettingsError([f"{path}: {error}" for error in errors])
    return {**found, **environ}


def _joined(lines: list[str]) -> list[tuple[int, str]]:
    out: list[tuple[int, str]] = []
    start, held = 0, ""
    for number, line in enumerate(lines, 1):
        start = start or number
        comment = not held and line.lstrip(SPACE)[:1] in ("#", ";")
        odd = (len(line) - len(line.rstrip("\\"))) % 2 == 1
        if odd and not comment and number < len(lines):
            held += line[:-1]
            continue
        out.append((start, held + line))
        start, held = 0, ""
    return out


def _trouble(name: str, equals: str) -> str:
    if name.startswith("export "):
        return "systemd knows no 'export': write NAME=value"
    if not equals:  # what is there is not shown: it may be half of a secret
        return "no '=': write NAME=value"
    if _NAME.fullmatch(name):
        return ""
    word = name.split(maxsplit=1)[0] if name else ""
    shown = f"{word} is" if _LIKE_A_NAME.fullmatch(word) else "before '=' there is"  # it may be half of a secret
    return f"{shown} no variable's name: systemd would ignore the line"


def _value(text: str) -> str | None:
    if text.startswith('"'):
        found = _DOUBLE.fullmatch(text)
        return None if found is None else _ESCAPE.sub(r"\1", found[1])
    if text.startswith("'"):
        found = _SINGLE.fullmatch(text)
        return None if found is None else found[1]
    return _EATEN.sub(r"\1", text)
