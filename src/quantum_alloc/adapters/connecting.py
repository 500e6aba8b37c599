"""How a connection to a server is made, and what its troubles are called: for the store, and for who locates it.

Time-outs are of connecting, sending and receiving, each; nothing is tried again in here. RESP2 is fixed: its replies
are flat lists of bytes. Messages hold no secret.
"""

from __future__ import annotations

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

TIMEOUT_S = 0.2

CONFIGURATION_CODES = frozenset({"NOAUTH", "WRONGPASS", "NOPERM"})
STORE_CODES = CONFIGURATION_CODES | {
    "OOM", "READONLY", "MASTERDOWN", "LOADING", "NOREPLICAS", "MISCONF", "BUSY", "CLUSTERDOWN", "TRYAGAIN", "MOVED",
    "ASK", "CROSSSLOT", "EXECABORT",
}  # fmt: skip
"""Refusals that concern the server or our account, not one key."""
CODES = STORE_CODES | {"unreachable", "timeout", "closed", "conflict", "journal", "tls", "evicting", "other"}
"""Every code a ``StoreError`` can carry: a closed set, safe as a metric label."""
ADDRESS_HINT = "is it running, and is it what REDIS_URL, or REDIS_HOST and REDIS_PORT, name?"


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
    error: Exception, where: str, *, opening: bool = False, tls: bool = False, hint: str = ADDRESS_HINT
) -> StoreError:
    """What a client's error is called.

    Args:
        error: as it was raised.
        where: the server, as it may be shown.
        opening: whether the connection was being made.
        tls: whether it is one with TLS.
        hint: what to look at where nothing listens.
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
    elif not isinstance(error, (RedisConnectionError, OSError)):
        found = "other", f"{where}: {type(error).__name__}"
    elif "onnecting to" in str(error) or "onnection refused" in str(error):
        found = "unreachable", f"{where} cannot be reached: {hint}"
    elif opening and not tls:
        why = "where it wants TLS, use rediss:// or REDIS_CA_FILE"
        found = "closed", f"{where} closes a new connection before it answers: {why}"
    else:
        found = "closed", f"{where}: {error}"
    return StoreError(*found)


def _tls_trouble(error: BaseException | None) -> str:
    """Why TLS was not agreed upon; empty where that was not it."""
    for _ in range(5):
        if isinstance(error, ssl.SSLCertVerificationError):
            why = error.verify_message.rstrip(".")
            if "not valid for" in why:
                return f"its TLS certificate is for another name: {why}: name the server as the certificate does"
            return f"its TLS certificate is not trusted: {why}: is REDIS_CA_FILE the authority that signed it?"
        if isinstance(error, ssl.SSLError) and error.reason:
            return f"TLS is not agreed upon ({error.reason}): does this port speak TLS, and want no client certificate?"
        if error is None:
            return ""
        error = error.__cause__ or error.__context__
    return ""


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
