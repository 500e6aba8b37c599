"""How a connection to a server is made, and what its troubles are called: for the store, and for who locates it.

Time-outs are of connecting, sending and receiving, each; nothing is tried again in here. RESP2 is fixed: its replies
are flat lists of bytes. Messages hold no secret.
"""

from __future__ import annotations

import re
import ssl
from pathlib import Path
from typing import Any, cast

import redis
from redis.backoff import NoBackoff
from redis.connection import parse_url
from redis.exceptions import AuthenticationError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from quantum_alloc.adapters.codec import printable

TIMEOUT_S = 0.2

CONFIGURATION_CODES = frozenset({"NOAUTH", "WRONGPASS", "NOPERM"})
STORE_CODES = CONFIGURATION_CODES | {
    "OOM", "READONLY", "MASTERDOWN", "LOADING", "NOREPLICAS", "MISCONF", "BUSY", "CLUSTERDOWN", "TRYAGAIN", "MOVED",
    "ASK", "CROSSSLOT", "EXECABORT",
}  # fmt: skip
"""Refusals that concern the server or our account, not one key."""
CODES = STORE_CODES | {"unreachable", "timeout", "closed", "conflict", "journal", "tls", "evicting", "other"}
"""Every code a ``StoreError`` can carry: a closed set, safe as a metric label."""
TLS_CLOSED = (ssl.SSLEOFError, ssl.SSLZeroReturnError)
"""How TLS says that the other side has gone: full, restarted, or cut off; tried again, it may be there."""
ADDRESS_HINT = "is it running, and is it what REDIS_URL, or REDIS_HOST and REDIS_PORT, name?"
_QUOTED = re.compile(r"""['"`]|with args""")


class StoreError(Exception):
    """The store did not do what it was asked, as a whole.

    Attributes:
        code: one of ``CODES``.
        detail: for logs; holds no secret.
    """

    def __init__(self, code: str, detail: str = "") -> None:
        """Keep the code and the detail."""
        super().__init__(f"{code}: {detail}" if detail else code)
        self.code = code if code in CODES else "other"
        self.detail = detail

    @property
    def is_configuration(self) -> bool:
        """True for a wrong or missing password, right, certificate or policy: waiting alone will not help."""
        return self.code in CONFIGURATION_CODES or self.code in ("tls", "evicting")


def code_of(error: RedisError) -> str:
    """The first word of a server's refusal.

    Args:
        error: as the client raised it.
    """
    known = getattr(error, "status_code", None)
    text = str(error)
    if known is not None:
        return str(known)
    if isinstance(error, AuthenticationError):
        return "WRONGPASS"
    return text.split(" ", 1)[0] if text else "ERR"


def store_error(
    error: Exception,
    where: str,
    *,
    opening: bool = False,
    tls: bool = False,
    hint: str = ADDRESS_HINT,
    secret: str | None = None,
) -> StoreError:
    """What a client's error is called.

    Args:
        error: as it was raised.
        where: the server, as it may be shown.
        opening: whether the connection was being made.
        tls: whether it is one with TLS.
        hint: what to look at where nothing listens.
        secret: what the server was told, and may say again.
    """
    if isinstance(error, StoreError):
        return error
    untrusted, code = _tls_trouble(error), code_of(error) if isinstance(error, RedisError) else ""
    if untrusted:
        found = "tls", f"{where}: {untrusted}"
    elif isinstance(error, RedisTimeoutError):
        more = "; it is spoken to with TLS: is this its TLS port?" if opening and tls else ""
        found = "timeout", f"no answer from {where} within {TIMEOUT_S * 1e3:.0f} ms{more}"
    elif isinstance(error, AuthenticationError) and code == "ERR":  # a password that nobody asked for
        way = "give it users, or take the password away"
        found = "WRONGPASS", f"{where} has no password set up for the default user and is given one: {way}"
    elif code in STORE_CODES:
        found = code, f"{where} answered {code}"
    elif isinstance(error, ValueError):
        found = "unreachable", f"{where} cannot be reached: there is no such name: {hint}"
    elif not isinstance(error, (RedisConnectionError, OSError)):
        found = "other", f"{where}: {_words(error, secret)}"
    elif _is_refused(error):
        found = "unreachable", f"{where} cannot be reached: {hint}"
    else:
        found = "closed", f"{where} {_why_closed(error, code, tls, secret)}" if opening else f"{where}: {error}"
    return StoreError(*found)


def _is_refused(error: Exception) -> bool:
    if isinstance(_tls_error(error), TLS_CLOSED):  # the client calls that connecting, too
        return False
    return "onnecting to" in str(error) or "onnection refused" in str(error)


def _why_closed(error: Exception, code: str, tls: bool, secret: str | None) -> str:
    """What became of a connection that was being made."""
    if code == "ERR":
        return f"refuses a new connection: {_words(error, secret)}"
    if "writing to socket" in str(error):  # what it said, if anything, was not read any more
        return "closes a new connection at once: has it room for more clients?"
    if tls:
        return "closes a new connection before it answers: is this its TLS port, and has it room for more clients?"
    return "closes a new connection before it answers: where it wants TLS, use rediss:// or REDIS_CA_FILE"


def _words(error: Exception, secret: str | None) -> str:
    """What a server said, as far as no argument of a command can be in it: those are quoted."""
    said = _QUOTED.split(str(error), maxsplit=1)[0].strip(" ,")
    return type(error).__name__ if not said or (secret and secret in said) else printable(said, 120)


def _tls_error(error: BaseException | None) -> ssl.SSLError | None:
    """What TLS itself said, at the bottom of an error."""
    for _ in range(5):
        if error is None or isinstance(error, ssl.SSLError):
            return error
        error = error.__cause__ or error.__context__
    return None


def _tls_trouble(error: Exception) -> str:
    """Why TLS was not agreed upon; empty where that was not it, or the connection was closed alone."""
    found = _tls_error(error)
    if isinstance(found, ssl.SSLCertVerificationError):
        why = found.verify_message.rstrip(".")
        if "not valid for" in why:
            return f"its TLS certificate is for another name: {why}: name the server as the certificate does"
        return f"its TLS certificate is not trusted: {why}: is REDIS_CA_FILE the authority that signed it?"
    if found is None or isinstance(found, TLS_CLOSED) or not found.reason:
        return ""
    return f"TLS is not agreed upon ({found.reason}): does this port speak TLS, and want no client certificate?"


def options_of(
    url: str, username: str | None, password: str | None, ca_file: Path | None, timeout_s: float
) -> dict[str, Any]:
    """What the client makes a connection with, its class among it.

    Args:
        url: redis://, rediss:// or unix:// address.
        username: None for none; of the address otherwise.
        password: None for none; of the address otherwise.
        ca_file: None for the system's authorities, or those of the address.
        timeout_s: of connecting, sending and receiving, each.

    Raises:
        ValueError: the address is of no known kind.
    """
    own: dict[str, Any] = {"username": username, "password": password}
    own = {name: text for name, text in own.items() if text is not None}
    told = cast(dict[str, Any], parse_url(url))  # type: ignore[no-untyped-call]  # the client types it loosely
    if ca_file is not None and told.get("connection_class") is redis.SSLConnection:
        own["ssl_ca_certs"] = str(ca_file)
    return {
        "protocol": 2,
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "retry": Retry(NoBackoff(), 0),
        "health_check_interval": 0,
        "client_name": "quantum-alloc",
        "driver_info": None,  # CLIENT SETINFO: Redis 7.0 does not know it, and no user has the right to it
        **own,
        **told,
    }


def is_tls(options: dict[str, Any]) -> bool:
    """Whether these make a connection with TLS.

    Args:
        options: of ``options_of``.
    """
    return options.get("connection_class") is redis.SSLConnection
