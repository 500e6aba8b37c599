"""REDIS_SENTINELS, REDIS_CLUSTER, QA_HASH_TAG, REDIS_CA_FILE, the logins: what is read, refused, combined and shown."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantum_alloc.services import app
from quantum_alloc.services.options import load
from quantum_alloc.services.redis_address import database_of, login_of, mask_places, sentinels_of
from quantum_alloc.services.settings import SettingsError

CANARY = "canary-5ecret"


def errors_of(environ: dict[str, str]) -> tuple[str, ...]:
    """The sentences that refuse an environment."""
    with pytest.raises(SettingsError) as caught:
        load([], environ)
    return caught.value.errors


BAD = [
    ("REDIS_USERNAME", "two users"),
    ("REDIS_USERNAME", "a:b"),
    ("REDIS_USERNAME", "é"),
    ("REDIS_SENTINELS", "redis://a:1"),
    ("REDIS_SENTINELS", "a:1,"),
    ("REDIS_SENTINELS", "a:0"),
    ("REDIS_SENTINELS", "a:99999"),
    ("REDIS_SENTINELS", "a b"),
    ("REDIS_SENTINELS", ",".join(f"h{i}" for i in range(21))),
    ("REDIS_SENTINELS", f"app:{CANARY}@a:1"),
    ("REDIS_SENTINELS", "a..b:1"),
    ("REDIS_SENTINELS", ".:1"),
    ("REDIS_SENTINELS", "a" * 64),
    ("REDIS_SENTINELS", "a." * 127),
    ("REDIS_HOST", "a..b"),
    ("REDIS_HOST", ".a"),
    ("REDIS_HOST", "a" * 64),
    ("REDIS_HOST", "a." * 127),
    ("REDIS_URL", "redis://a..b"),
    ("REDIS_URL", "rediss://.a:1/0"),
    ("REDIS_URL", "rediss://h?ssl_cert_reqs=foo"),
    ("REDIS_URL", "rediss://h?ssl_cert_reqs=none&ssl_cert_reqs=foo"),
    ("REDIS_URL", "rediss://h?ssl%5Fcert_reqs=CERT_NONE"),
    ("REDIS_URL", "redis://h?ssl_cert_reqs=none"),
    ("REDIS_URL", "unix:///s?ssl_check_hostname=false"),
    ("REDIS_URL", "rediss://h?ssl_min_version=TLSv1.2"),
    ("REDIS_URL", "rediss://h?ssl_min_version=5"),
    ("REDIS_URL", "redis://[1:2]:1"),
    ("REDIS_HOST", "cache:6379"),
    ("REDIS_HOST", "::1..2"),
    ("REDIS_HOST", "fe80::1%a b"),
    ("REDIS_HOST", "fe80::1%\n"),
    ("REDIS_SENTINELS", "[::..]:1"),
    ("REDIS_SENTINEL_NAME", "my master"),
    ("REDIS_SENTINEL_NAME", "x" * 101),
    ("REDIS_SENTINEL_USERNAME", "a/b"),
    ("REDIS_CLUSTER", "2"),
    ("REDIS_CLUSTER", "1 # yes"),
    ("QA_HASH_TAG", "{x}"),
    ("REDIS_CA_FILE", "/etc/\x00"),
]


@pytest.mark.parametrize(("name", "text"), BAD)
def test_a_bad_value_is_one_error_that_shows_no_secret(name: str, text: str) -> None:
    """The variable, what it was, what is expected; a login that strayed into a list of places is not shown."""
    (error,) = errors_of({name: text})
    assert error.startswith(f"{name}=")
    assert "expected" in error
    assert CANARY not in error


def test_names_and_addresses_of_hosts() -> None:
    """What a resolver takes is taken: a dot at the end, an address of either kind, one with a zone."""
    for host in ("localhost", "a", "a.b-c.d_e", "cache.example.", "10.0.0.1", "::1", "fe80::1%eth0", "::ffff:10.0.0.1"):
        assert load([], {"REDIS_HOST": host}).redis.host == host
    for url in ("redis://a.b.:1/0", "redis://[::1]:1", "redis://", "redis:///1", "rediss://a?ssl_min_version=772"):
        assert load([], {"REDIS_URL": url}).redis.url == url
    for text, place in (("a.b.:1", ("a.b.", 1)), ("[::1]", ("::1", 26379)), ("a" * 63, ("a" * 63, 26379))):
        assert sentinels_of(text) == (place,)


CONTRADICTIONS = [
    ({"REDIS_CLUSTER": "1"}, "REDIS_CLUSTER needs QA_HASH_TAG"),
    ({"REDIS_CLUSTER": "1", "QA_HASH_TAG": "t", "REDIS_DB": "1"}, "REDIS_DB must be 0 with REDIS_CLUSTER"),
    ({"REDIS_CLUSTER": "1", "QA_HASH_TAG": "t", "REDIS_URL": "redis://a?db=1"}, "REDIS_URL must name database 0"),
    ({"REDIS_CLUSTER": "1", "QA_HASH_TAG": "t", "REDIS_SENTINELS": "a"}, "exclude each other"),
    ({"REDIS_SENTINELS": "a", "REDIS_URL": "unix:///s"}, "REDIS_URL must begin with redis:// or rediss://"),
    ({"REDIS_USERNAME": "me", "REDIS_URL": "redis://you@a"}, "both name a user"),
    ({"REDIS_USERNAME": "me", "REDIS_URL": "redis://a?username=you"}, "both name a user"),
    ({"REDIS_CA_FILE": "/ca", "REDIS_URL": "unix:///s"}, "let REDIS_URL begin with rediss://"),
]


@pytest.mark.parametrize(("environ", "words"), CONTRADICTIONS)
def test_a_contradiction_is_one_sentence_in_the_names_of_the_environment(environ: dict[str, str], words: str) -> None:
    """What excludes each other, with what each was set to."""
    (error,) = errors_of(environ)
    assert words in error
    assert any(error.startswith((f"{name}=", f"{name}='")) or f", {name}=" in error for name in environ)


def test_every_contradiction_is_told() -> None:
    """Three at once: three sentences."""
    environ = {"REDIS_CLUSTER": "1", "REDIS_SENTINELS": "a", "REDIS_DB": "1"}
    assert len(errors_of(environ)) == 3


def test_what_goes_together() -> None:
    """Sentinels with a URL that gives login, database and TLS; a tag alone; a user beside host and port."""
    redis = load([], {"REDIS_SENTINELS": "a:1, b", "REDIS_URL": f"rediss://me:{CANARY}@unused:1/3"}).redis
    assert (redis.places(), redis.password()) == ((("a", 1), ("b", 26379)), CANARY)
    assert redis.address() == "rediss+sentinel://a:1,b/mymaster/3"
    assert redis.link() == "rediss://"
    assert load([], {"QA_HASH_TAG": "t"}).keys.kill == "{t}quantum:kill"
    assert load([], {"REDIS_USERNAME": "qa-governor"}).redis.username == "qa-governor"
    assert load([], {"REDIS_CA_FILE": "/ca"}).redis.address() == "rediss://localhost:6379/0"
    cluster = load([], {"REDIS_CLUSTER": "1", "QA_HASH_TAG": "t", "REDIS_URL": f"redis://:{CANARY}@a:1"}).redis
    assert cluster.address() == "redis+cluster://:***@a:1"


def test_the_link_to_sentinels_keeps_tls_and_no_login() -> None:
    """Of a URL its scheme and its TLS options; never a user, a password or a place."""
    url = f"rediss://me:{CANARY}@host:1/2?ssl_ca_certs=/ca&db=2&ssl_check_hostname=false&password={CANARY}"
    link = load([], {"REDIS_SENTINELS": "a", "REDIS_URL": url}).redis.link()
    assert link == "rediss://?ssl_ca_certs=/ca&ssl_check_hostname=false"


def test_the_passwords_come_from_their_files_and_credentials(tmp_path: Path) -> None:
    """Each side has its own: the server's and the sentinels', from a file, else from systemd's credential."""
    (tmp_path / "redis-sentinel-password").write_text("theirs\n")
    (tmp_path / "redis-password").write_text("ours\n")
    redis = load([], {"CREDENTIALS_DIRECTORY": str(tmp_path)}).redis
    assert (redis.password(), redis.sentinel_password()) == ("ours", "theirs")
    file = tmp_path / "mine"
    file.write_text(CANARY)
    redis = load([], {"CREDENTIALS_DIRECTORY": str(tmp_path), "REDIS_SENTINEL_PASSWORD_FILE": str(file)}).redis
    assert redis.sentinel_password() == CANARY
    assert CANARY not in repr(redis) + redis.address()
    with pytest.raises(SettingsError, match=r"REDIS_SENTINEL_PASSWORD_FILE=.*no such file"):
        load([], {"REDIS_SENTINEL_PASSWORD_FILE": str(tmp_path / "none")}).redis.sentinel_password()


def test_opening_sends_nothing_and_shows_no_secret(tmp_path: Path) -> None:
    """A store is made from any of the three kinds of installation; what it calls itself holds no password."""
    file = tmp_path / "pw"
    file.write_text(CANARY)
    for environ in ({"REDIS_SENTINELS": "a"}, {"REDIS_CLUSTER": "1", "QA_HASH_TAG": "t"}, {}):
        store = app.open_store(load([], {**environ, "REDIS_PASSWORD_FILE": str(file), "REDIS_USERNAME": "me"}))
        assert CANARY not in store.shown
        store.close()


@given(st.text(max_size=60))
def test_any_text_is_a_list_of_places_or_none(text: str) -> None:
    """Reading is total, ports are ports, and what is shown holds nothing that looks like a login."""
    found = sentinels_of(text)
    assert found is None or all(0 < port <= 65535 and host for host, port in found)
    assert "@" not in mask_places(text)


def test_logins_and_databases_of_addresses() -> None:
    """From before the place, else from the query; a text that is no address tells none."""
    assert login_of("redis://me:p%40ss@a") == ("me", "p@ss")
    assert login_of("redis://:p@a?username=me") == ("me", "p")
    assert login_of("redis://me@a?password=p") == ("me", "p")
    assert login_of("nonsense") == (None, None)
    assert database_of("redis://a/4?db=5") == 5
    assert database_of("redis://a/") == 0
