"""Where Redis is, and how a password stays out of everything that is printed.

    REDIS_URL                      wins over host, port and database
    REDIS_HOST REDIS_PORT REDIS_DB otherwise
    password                       of the URL, else of REDIS_PASSWORD_FILE, else of the credential redis-password

Whatever is shown of a URL is what is known to be harmless: one that cannot be read is shown as its scheme and ``***``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from quantum_alloc.services.settings import SettingsError, var

CREDENTIAL = "redis-password"
_PASSWORD_LIMIT_BYTES = 4096
URL_OPTIONS = frozenset(
    {
        "db", "username", "password", "ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs",
        "ssl_check_hostname", "ssl_min_version",
    }
)  # fmt: skip
"""What may stand behind the question mark of REDIS_URL."""
_HOST = re.compile(r"[A-Za-z0-9_.:%-]{1,253}")
# There is at most one "@", and what is before it is the login: no part of a password can pass for a place.
_LOGIN = r"(?:(?P<user>[^\s:@/?#]*)(?P<password>:[^\s@/?#]*)?@)?"
_QUERY = r"(?:\?(?P<query>[^\s@#]*))?"
_TCP = re.compile(
    rf"(?P<scheme>rediss?)://{_LOGIN}"
    r"(?P<place>(?:[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.%]+\])?(?::(?P<port>[0-9]{1,5}))?(?:/[0-9]{0,5})?)"
    rf"{_QUERY}"
)
_UNIX = re.compile(rf"(?P<scheme>unix)://{_LOGIN}(?P<place>/[^\s@?#]*)(?P<port>){_QUERY}")


def _parts(url: str) -> re.Match[str] | None:
    found = _TCP.fullmatch(url) or _UNIX.fullmatch(url)
    return found if found is not None and url.isprintable() and int(found["port"] or 0) <= 65535 else None


def is_host(text: str) -> bool:
    """Whether a text may be a host name or an address.

    Args:
        text: of a setting.

    >>> is_host("127.0.0.1"), is_host("redis://x")
    (True, False)
    """
    return _HOST.fullmatch(text) is not None


def is_url(text: str) -> bool:
    """Whether a text is an address of Redis.

    Args:
        text: of a setting.

    >>> is_url("redis://localhost:6379/0"), is_url("unix:///run/redis.sock?db=1"), is_url("localhost:6379")
    (True, True, False)
    >>> is_url("redis://localhost?protocol=3"), is_url("redis://localhost?db=x")
    (False, False)
    """
    found = _parts(text)
    if found is None:
        return False
    # the store sets its own protocol and time-outs: an address says where, and who
    options = [option.partition("=") for option in (found["query"] or "").split("&") if option]
    return all(unquote(name) in URL_OPTIONS and (name != "db" or value.isdecimal()) for name, _, value in options)


def mask_url(text: str) -> str:
    """A URL that may be printed: no password in it, wherever it was.

    Args:
        text: a URL, well-formed or not.

    >>> mask_url("redis://app:pa55@cache:6379/0"), mask_url("unix:///s?db=1&password=pa55"), mask_url("redis://:pa55")
    ('redis://app:***@cache:6379/0', 'unix:///s?***', 'redis://***')
    """
    found = _parts(text)
    if found is None:
        scheme = re.match(r"(?:rediss?|unix)://", text)
        return f"{scheme[0] if scheme else ''}***"
    user, password, query = found["user"], found["password"], found["query"]
    # A lone user name is often a password that lost its colon.
    login = "" if user is None else "***@" if password is None else f"{user}:***@"
    # A password may stand in the query, and a raw "&" may cut it in two.
    options = "***" if query and "pass" in unquote(query).casefold() else query
    return f"{found['scheme']}://{login}{found['place']}{f'?{options}' if options else ''}"


@dataclass(frozen=True, slots=True, repr=False)
class RedisOptions:
    """Where Redis is and how to log in.

    Attributes:
        url: wins over host, port and database.
        host: name or address.
        port: TCP port.
        db: database number.
        password_file: a file that holds the password alone.
        credentials_directory: set by systemd; may hold the credential ``redis-password``.
    """

    url: str | None = var(
        "REDIS_URL",
        None,
        accepts=is_url,
        expects="a URL that begins with redis://, rediss:// or unix://",
        example="redis://localhost:6379/0",
        secret=mask_url,
        help="Address of Redis; wins over host, port and database. Passwords belong in a file.",
    )
    host: str = var("REDIS_HOST", "localhost", accepts=is_host, expects="a host name or address", help="Host of Redis.")
    port: int = var("REDIS_PORT", 6379, lo=1, hi=65535, help="Port of Redis.")
    db: int = var("REDIS_DB", 0, lo=0, hi=65535, help="Database number.")
    password_file: Path | None = var(  # noqa: RUF009 - a field
        "REDIS_PASSWORD_FILE",
        None,
        example="/etc/quantum/redis-password",
        help="File that holds the password alone; else the systemd credential `redis-password` is read.",
    )
    credentials_directory: Path | None = var(  # noqa: RUF009 - a field
        "CREDENTIALS_DIRECTORY", None, example="/run/credentials/unit", help="Set by systemd, with LoadCredential=."
    )

    def __repr__(self) -> str:
        """The address, without a password."""
        return f"RedisOptions({self.address()!r})"

    def address(self) -> str:
        """A URL that may be printed: any password is ``***``."""
        if self.url is not None:
            return mask_url(self.url)
        return f"redis://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}/{self.db}"

    def password(self) -> str | None:
        """The password, or None where none is configured.

        Raises:
            SettingsError: the file is named and cannot be used; the sentence does not show what is in it.
        """
        inside = _password_of(self.url) if self.url else None
        if inside is not None:
            return inside
        if self.password_file is not None:
            return _read_password("REDIS_PASSWORD_FILE", self.password_file)
        if self.credentials_directory is not None:
            return _read_password("credential redis-password", self.credentials_directory / CREDENTIAL, optional=True)
        return None


def _password_of(url: str) -> str | None:
    found = _parts(url)
    if found is None:
        return None
    if found["password"]:
        return unquote(found["password"][1:]) or None
    pairs = [item.partition("=") for item in (found["query"] or "").split("&")]
    return next((unquote(v) for k, _, v in pairs if unquote(k) == "password"), None) or None


def _read_password(name: str, path: Path, optional: bool = False) -> str | None:
    try:
        with path.open("rb") as file:
            raw = file.read(_PASSWORD_LIMIT_BYTES + 1)
    except FileNotFoundError:
        if optional:  # the unit has other credentials
            return None
        raise SettingsError([f"{name}={str(path)!r}: there is no such file"]) from None
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "not a path"
        raise SettingsError([f"{name}={str(path)!r}: cannot be read: {why}"]) from None
    try:
        text = raw.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        text = ""
    if not text or len(raw) > _PASSWORD_LIMIT_BYTES:
        limit = _PASSWORD_LIMIT_BYTES
        raise SettingsError([f"{name}={str(path)!r}: the file must hold one password, UTF-8, at most {limit} bytes"])
    return text
