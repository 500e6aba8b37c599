"""Where Redis is, who logs in, and how a password stays out of everything that is printed.

REDIS_URL                      wins over host, port, database and TLS
REDIS_HOST REDIS_PORT REDIS_DB otherwise; TLS where REDIS_CA_FILE is set
REDIS_USERNAME                 where the URL names none
password                       of the URL, else of REDIS_PASSWORD_FILE, else of the credential redis-password
REDIS_SENTINELS                they tell where the primary is; of a URL its login, database and TLS count, which
                               sentinels are asked with too, and not its place
REDIS_CLUSTER                  the address is that of any node; QA_HASH_TAG puts all keys into one slot
"""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from quantum_alloc.adapters.keys import is_tag
from quantum_alloc.services.redis_address import (
    URL_OPTIONS,
    database_of,
    is_host,
    is_sentinels,
    is_url,
    login_of,
    mask_places,
    mask_url,
    option_of,
    parts,
    sentinels_of,
)
from quantum_alloc.services.settings import SettingsError, var

__all__ = ["CREDENTIAL", "SENTINEL_CREDENTIAL", "URL_OPTIONS", "RedisOptions", "is_host", "is_url", "mask_url"]

CREDENTIAL = "redis-password"
SENTINEL_CREDENTIAL = "redis-sentinel-password"
_PASSWORD_LIMIT_BYTES = 4096
_USER = re.compile(r"[^\s:@/?#]{1,100}")
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,100}")


def _is_user(text: str) -> bool:
    return text.isascii() and _USER.fullmatch(text) is not None


def _is_name(text: str) -> bool:
    return _NAME.fullmatch(text) is not None


def _user_var(env: str, help: str) -> str | None:
    made: str | None = var(
        env, None, accepts=_is_user, expects="1 to 100 plain characters, none of : @ / ? #", example="qa-governor",
        help=help,
    )  # fmt: skip
    return made


@dataclass(frozen=True, slots=True, repr=False)
class RedisOptions:
    """Where Redis is and how to log in.

    Attributes:
        url: wins over host, port and database.
        host: name or address.
        port: TCP port.
        db: database number.
        username: of the ACL user; the URL may name it too.
        password_file: a file that holds the password alone.
        credentials_directory: set by systemd; may hold the credentials ``redis-password`` and
            ``redis-sentinel-password``.
        ca_file: certificates of the authorities that the server's certificate must come from.
        sentinels: places of sentinels, which tell where the primary is; empty for none.
        sentinel_name: what they call the primary.
        sentinel_username: login at the sentinels.
        sentinel_password_file: a file that holds the sentinels' password alone.
        cluster: whether the server is a node of a cluster.
        hash_tag: what every name begins with, in braces; empty for none.
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
    username: str | None = _user_var("REDIS_USERNAME", "The ACL user that logs in; none: the default user.")
    password_file: Path | None = var(  # noqa: RUF009 - a field
        "REDIS_PASSWORD_FILE",
        None,
        example="/etc/quantum/redis-password",
        help="File that holds the password alone; else the systemd credential `redis-password` is read.",
    )
    credentials_directory: Path | None = var(  # noqa: RUF009 - a field
        "CREDENTIALS_DIRECTORY", None, example="/run/credentials/unit", help="Set by systemd, with LoadCredential=."
    )
    ca_file: Path | None = var(  # noqa: RUF009 - a field
        "REDIS_CA_FILE",
        None,
        example="/etc/quantum/redis-ca.pem",
        help="Certificates that the server's must come from, PEM; where there is no REDIS_URL it turns TLS on.",
    )
    sentinels: str = var(
        "REDIS_SENTINELS",
        "",
        accepts=is_sentinels,
        expects="places host:port, separated by commas",
        example="10.0.0.1:26379,10.0.0.2:26379",
        secret=mask_places,
        help="Sentinels, which tell where the primary is; of REDIS_URL then login, database and TLS alone count.",
    )
    sentinel_name: str = var(
        "REDIS_SENTINEL_NAME",
        "mymaster",
        accepts=_is_name,
        expects="1 to 100 letters, digits or . _ -",
        help="What the sentinels call the primary.",
    )
    sentinel_username: str | None = _user_var(
        "REDIS_SENTINEL_USERNAME", "The ACL user that logs in at the sentinels; none: their default user."
    )
    sentinel_password_file: Path | None = var(  # noqa: RUF009 - a field
        "REDIS_SENTINEL_PASSWORD_FILE",
        None,
        example="/etc/quantum/redis-sentinel-password",
        help="File that holds the sentinels' password; else the systemd credential `redis-sentinel-password` is read.",
    )
    cluster: bool = var("REDIS_CLUSTER", False, help="The address is that of a node of a Redis Cluster.")
    hash_tag: str = var(
        "QA_HASH_TAG",
        "",
        accepts=is_tag,
        expects="1 to 64 letters, digits or _ . - without braces",
        example="quantum",
        help="What every key and stream begins with, in braces: a cluster keeps all of them in one slot then.",
    )

    def __repr__(self) -> str:
        """The address, without a password."""
        return f"RedisOptions({self.address()!r})"

    def check(self) -> None:
        """Raise ValueError with every contradiction."""
        url = self.url or ""
        scheme = url.partition(":")[0]
        found = []
        if self.cluster and self.sentinels:
            found.append("cluster and sentinels exclude each other: set one of them")
        if self.cluster and not self.hash_tag:
            found.append("cluster needs hash_tag, because all keys must be in one slot")
        if self.cluster and not url and self.db:
            found.append("db must be 0 with cluster, which has no other database")
        if self.cluster and url and database_of(url):
            found.append("url must name database 0 with cluster, which has no other")
        located = [name for name in ("cluster", "sentinels") if getattr(self, name) and scheme == "unix"]
        found += [f"url must begin with redis:// or rediss:// with {name}" for name in located]
        if self.username is not None and login_of(url)[0] is not None:
            found.append("username and url both name a user: name it once")
        if self.ca_file is not None and url and scheme != "rediss":
            found.append("ca_file is for TLS: let url begin with rediss://")
        if self.ca_file is not None and option_of(url, "ssl_ca_certs") is not None:
            found.append("ca_file and url both name a CA file: name it once")
        if found:
            raise ValueError("; ".join(found))

    def address(self) -> str:
        """Where Redis is, as it may be printed: any password is ``***``."""
        if self.sentinels:
            db = database_of(self.url) if self.url else self.db
            return f"{self._scheme}+sentinel://{self.sentinels.replace(' ', '')}/{self.sentinel_name}/{db}"
        shown = self._plain if self.url is None else mask_url(self.url)
        return shown.replace("://", "+cluster://", 1) if self.cluster else shown

    def connect_to(self) -> str:
        """The URL to connect with; beside sentinels and in a cluster its host is not where the primary is."""
        return self.url if self.url is not None else self._plain

    def link(self) -> str:
        """The URL whose scheme and TLS options sentinels are asked with: nobody's login, and no place."""
        query = (parts(self.url) or {"query": ""})["query"] if self.url else ""
        kept = [option for option in (query or "").split("&") if unquote(option).startswith("ssl_")]
        return f"{self._scheme}://" + (f"?{'&'.join(kept)}" if kept else "")

    @property
    def _scheme(self) -> str:
        if self.url is not None:
            return self.url.partition(":")[0]
        return "rediss" if self.ca_file is not None else "redis"

    @property
    def _plain(self) -> str:
        return f"{self._scheme}://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}/{self.db}"

    def places(self) -> tuple[tuple[str, int], ...]:
        """Host and port of each sentinel."""
        return (sentinels_of(self.sentinels) or ()) if self.sentinels else ()

    def authorities(self) -> Path | None:
        """The CA file; None where the system's authorities count.

        Raises:
            SettingsError: it is named and cannot be used.
        """
        inside = option_of(self.url, "ssl_ca_certs") if self.url else None
        name, path = "REDIS_CA_FILE", self.ca_file
        if inside is not None:
            name, path = "ssl_ca_certs of REDIS_URL", Path(inside)
        if path is None:
            return None
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
        except FileNotFoundError:
            raise SettingsError([f"{name}={str(path)!r}: there is no such file"]) from None
        except ssl.SSLError:
            raise SettingsError([f"{name}={str(path)!r}: the file holds no certificates, PEM"]) from None
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else "not a path"
            raise SettingsError([f"{name}={str(path)!r}: cannot be read: {why}"]) from None
        return path

    def password(self) -> str | None:
        """The password, or None where none is configured.

        Raises:
            SettingsError: the file is named and cannot be used; the sentence does not show what is in it.
        """
        inside = login_of(self.url)[1] if self.url else None
        return inside or self._secret("REDIS_PASSWORD_FILE", self.password_file, CREDENTIAL)

    def sentinel_password(self) -> str | None:
        """The sentinels' password, or None where none is configured.

        Raises:
            SettingsError: the file is named and cannot be used; the sentence does not show what is in it.
        """
        return self._secret("REDIS_SENTINEL_PASSWORD_FILE", self.sentinel_password_file, SENTINEL_CREDENTIAL)

    def _secret(self, name: str, file: Path | None, credential: str) -> str | None:
        if file is not None:
            return _read_password(name, file)
        if self.credentials_directory is not None:
            return _read_password(f"credential {credential}", self.credentials_directory / credential, optional=True)
        return None


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
    if optional and raw in (b"", b"\n"):  # what the unit sets where there is no file
        return None
    if not text or len(raw) > _PASSWORD_LIMIT_BYTES:
        limit = _PASSWORD_LIMIT_BYTES
        raise SettingsError([f"{name}={str(path)!r}: the file must hold one password, UTF-8, at most {limit} bytes"])
    return text
