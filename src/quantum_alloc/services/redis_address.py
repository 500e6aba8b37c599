"""Addresses of Redis as settings tell them: what one may look like, what is in it, and how it may be shown.

Whatever is shown of a URL is what is known to be harmless: one that cannot be read is shown as its scheme and ``***``.
"""

from __future__ import annotations

import re
from ipaddress import IPv6Address
from urllib.parse import unquote

SENTINEL_PORT = 26379
SENTINELS_MAX = 20
URL_OPTIONS = frozenset(
    {
        "db", "username", "password", "ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs",
        "ssl_check_hostname", "ssl_min_version",
    }
)  # fmt: skip
"""What may stand behind the question mark of REDIS_URL."""
_TLS_VALUES = {
    "ssl_cert_reqs": frozenset({"none", "optional", "required"}),
    "ssl_min_version": frozenset({"769", "770", "771", "772"}),  # as TLS counts its versions: 772 is 1.3
}
# No resolver takes an empty label (two dots, or one in front), or one of more than 63 characters.
_NAME = r"(?![A-Za-z0-9_.-]{254})[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*\.?"
_HOST = re.compile(_NAME)
_ZONED = re.compile(r"[A-Za-z0-9_.:%-]{2,60}")
# There is at most one "@", and what is before it is the login: no part of a password can pass for a place.
_LOGIN = r"(?:(?P<user>[^\s:@/?#]*)(?P<password>:[^\s@/?#]*)?@)?"
_QUERY = r"(?:\?(?P<query>[^\s@#]*))?"
_TCP = re.compile(
    rf"(?P<scheme>rediss?)://{_LOGIN}"
    r"(?P<place>(?:" + _NAME + r"|\[(?P<six>[0-9A-Fa-f:.%]+)\])?(?::(?P<port>[0-9]{1,5}))?(?:/[0-9]{0,5})?)"
    rf"{_QUERY}"
)
_PLACE = re.compile(rf"(?P<host>{_NAME}|\[(?P<six>[0-9A-Fa-f:.%]{{2,60}})\])(?::(?P<port>[0-9]{{1,5}}))?")
_UNIX = re.compile(rf"(?P<scheme>unix)://{_LOGIN}(?P<place>/[^\s@?#]*)(?P<six>)(?P<port>){_QUERY}")


def parts(url: str) -> re.Match[str] | None:
    """Scheme, user, password, place, port and query of an address; None for what is none.

    Args:
        url: any text.
    """
    found = _TCP.fullmatch(url) or _UNIX.fullmatch(url)
    return found if found is not None and url.isprintable() and int(found["port"] or 0) <= 65535 else None


def is_host(text: str) -> bool:
    """Whether a text may be a host name or an address.

    Args:
        text: of a setting.

    >>> is_host("127.0.0.1"), is_host("redis://x")
    (True, False)
    """
    return _HOST.fullmatch(text) is not None or _is_ipv6(text)


def _is_ipv6(text: str) -> bool:
    try:
        IPv6Address(text)
    except ValueError:
        return False
    return _ZONED.fullmatch(text) is not None


def is_url(text: str) -> bool:
    """Whether a text is an address of Redis.

    Args:
        text: of a setting.

    >>> is_url("redis://localhost:6379/0"), is_url("unix:///run/redis.sock?db=1"), is_url("localhost:6379")
    (True, True, False)
    >>> is_url("redis://localhost?protocol=3"), is_url("redis://localhost?db=x"), is_url("redis://a..b")
    (False, False, False)
    >>> is_url("rediss://localhost?ssl_cert_reqs=none"), is_url("rediss://localhost?ssl_cert_reqs=foo")
    (True, False)
    """
    found = parts(text)
    if found is None or (found["six"] and not _is_ipv6(found["six"])):
        return False
    # the store sets its own protocol and time-outs: an address says where, and who
    options = [option.partition("=") for option in (found["query"] or "").split("&") if option]
    return all(_is_option(unquote(name), value, found["scheme"]) for name, _, value in options)


def _is_option(name: str, value: str, scheme: str) -> bool:
    if name.startswith("ssl_") and (scheme != "rediss" or value not in _TLS_VALUES.get(name, {value})):
        return False
    return name in URL_OPTIONS and (name != "db" or value.isdecimal())


def mask_url(text: str) -> str:
    """A URL that may be printed: no password in it, wherever it was.

    Args:
        text: a URL, well-formed or not.

    >>> mask_url("redis://app:pa55@cache:6379/0"), mask_url("unix:///s?db=1&password=pa55"), mask_url("redis://:pa55")
    ('redis://app:***@cache:6379/0', 'unix:///s?***', 'redis://***')
    """
    found = parts(text)
    if found is None:
        scheme = re.match(r"(?:rediss?|unix)://", text)
        return f"{scheme[0] if scheme else ''}***"
    user, password, query = found["user"], found["password"], found["query"]
    # A lone user name is often a password that lost its colon.
    login = "" if user is None else "***@" if password is None else f"{user}:***@"
    # A password may stand in the query, and a raw "&" may cut it in two.
    options = "***" if query and "pass" in unquote(query).casefold() else query
    return f"{found['scheme']}://{login}{found['place']}{f'?{options}' if options else ''}"


def option_of(url: str, name: str) -> str | None:
    """What stands for an option behind the question mark; None where it is not there.

    Args:
        url: an address.
        name: of the option.

    >>> option_of("redis://cache?db=1", "db"), option_of("redis://cache", "db")
    ('1', None)
    """
    found = parts(url)
    pairs = [item.partition("=") for item in ((found["query"] or "") if found else "").split("&")]
    return next((unquote(v) for k, _, v in pairs if unquote(k) == name), None)


def login_of(url: str) -> tuple[str | None, str | None]:
    """User and password of an address; None for what it does not tell.

    Args:
        url: an address.

    >>> login_of("redis://app@cache"), login_of("redis://cache?username=app")
    (('app', None), ('app', None))
    """
    found = parts(url)
    if found is None:
        return None, None
    user = unquote(found["user"]) if found["user"] else option_of(url, "username")
    if found["password"]:
        return user or None, unquote(found["password"][1:]) or None
    return user or None, option_of(url, "password") or None


def database_of(url: str) -> int:
    """The database of an address.

    Args:
        url: an address.

    >>> database_of("redis://cache:1/2"), database_of("unix:///s?db=3"), database_of("redis://cache")
    (2, 3, 0)
    """
    told = option_of(url, "db")
    found = parts(url)
    if told is None and found is not None and found["scheme"] != "unix":
        told = found["place"].partition("/")[2]
    return int(told) if told else 0


def sentinels_of(text: str) -> tuple[tuple[str, int], ...] | None:
    """Host and port of each sentinel; None for a text that is no list of them.

    Args:
        text: of the setting.

    >>> sentinels_of("a:26380, b,[::1]:5"), sentinels_of("redis://a")
    ((('a', 26380), ('b', 26379), ('::1', 5)), None)
    """
    found = []
    for item in text.split(","):
        one = _PLACE.fullmatch(item.strip(" "))
        port = int(one["port"] or SENTINEL_PORT) if one else 0
        if one is None or not 0 < port <= 65535 or (one["six"] and not _is_ipv6(one["six"])):
            return None
        found.append((one["host"].strip("[]"), port))
    return tuple(found) if len(found) <= SENTINELS_MAX else None


def is_sentinels(text: str) -> bool:
    """Whether a text is a list of sentinels.

    Args:
        text: of the setting.
    """
    return sentinels_of(text) is not None


def mask_places(text: str) -> str:
    """A list of places that may be printed: whatever looks like a login is left out.

    Args:
        text: well-formed or not.

    >>> mask_places("a:1,b:2"), mask_places("me:pa55@a:1")
    ('a:1,b:2', '***')
    """
    return "***" if "@" in text else text
