"""TLS by rediss:// and REDIS_CA_FILE, against Debian's redis-server: what is trusted works, what is not is one line.

Certificates are made in the test's directory. The server's is for ``localhost`` alone: 127.0.0.1 is another name.
"""

from __future__ import annotations

import shutil
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from quantum_alloc.adapters.cluster import Nodes
from quantum_alloc.adapters.connecting import TIMEOUT_S, options_of, store_error
from quantum_alloc.adapters.embedded import EmbeddedServer, free_port
from quantum_alloc.adapters.store import Store, StoreError
from quantum_alloc.services import app
from quantum_alloc.services.cli import main
from quantum_alloc.services.options import load
from quantum_alloc.services.settings import SettingsError
from tests.conftest import absent
from tests.support.nodes import DATA, HOST, NAME, Group, Node
from tests.support.running import ALONE, Service, until

PASSWORD = "canary-5ecret"
KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


def _openssl(*words: str, directory: Path) -> None:
    subprocess.run(["openssl", *words], cwd=directory, check=True, capture_output=True)


def _authority(directory: Path, name: str) -> Path:
    words = (
        "req",
        "-x509",
        *KEY,
        "-keyout",
        f"{name}.key",
        "-out",
        f"{name}.pem",
        "-days",
        "2",
        "-subj",
        f"/CN={name}",
    )
    _openssl(*words, directory=directory)
    return directory / f"{name}.pem"


def _certificate(directory: Path, name: str, authority: str, names: str) -> None:
    _openssl("req", *KEY, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}", directory=directory)
    (directory / f"{name}.ext").write_text(f"subjectAltName={names}\n", encoding="utf-8")
    signed = ("x509", "-req", "-in", f"{name}.csr", "-CA", f"{authority}.pem", "-CAkey", f"{authority}.key")
    more = ("-CAcreateserial", "-days", "2", "-extfile", f"{name}.ext", "-out", f"{name}.pem")
    _openssl(*signed, *more, directory=directory)


@dataclass(frozen=True)
class Secured:
    """A server with a port for TLS and a plain one, and the certificates around it.

    Attributes:
        tls: port that speaks TLS.
        plain: port that does not.
        ca: the authority that signed its certificate.
        other: an authority that did not.
        password: a file with the password.
        directory: of all files.
    """

    tls: int
    plain: int
    ca: Path
    other: Path
    password: Path
    directory: Path

    def environ(self, **more: str) -> dict[str, str]:
        """Settings that work, and changes to them; an empty text takes one away."""
        own = {
            "REDIS_HOST": "localhost",
            "REDIS_PORT": str(self.tls),
            "REDIS_CA_FILE": str(self.ca),
            "REDIS_PASSWORD_FILE": str(self.password),
        }
        return {name: text for name, text in {**own, **more}.items() if text}


def _program() -> Path:
    found = shutil.which("redis-server")
    if found is None:
        absent("redis-server")
    if shutil.which("openssl") is None:
        absent("openssl")
    told = subprocess.run([str(found), "--tls-port", "0", "--port", "x"], capture_output=True, text=True, check=False)
    if "Bad directive" in told.stdout + told.stderr and "tls-port" in told.stdout + told.stderr:
        absent("a redis-server with TLS")
    return Path(str(found))


def _tls_lines(directory: Path, name: str = "server") -> tuple[str, ...]:
    return (
        f"tls-cert-file {directory}/{name}.pem",
        f"tls-key-file {directory}/{name}.key",
        f"tls-ca-cert-file {directory}/ca.pem",
        "tls-auth-clients no",
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two authorities, a certificate for localhost, and one for 127.0.0.1 too."""
    if shutil.which("openssl") is None:
        absent("openssl")
    directory = tmp_path_factory.mktemp("tls")
    _authority(directory, "ca")
    _authority(directory, "other")
    _certificate(directory, "server", "ca", "DNS:localhost")
    _certificate(directory, "node", "ca", "DNS:localhost,IP:127.0.0.1")
    (directory / "password").write_text(PASSWORD + "\n", encoding="utf-8")
    return directory


@pytest.fixture(scope="module")
def secured(files: Path) -> Iterator[Secured]:
    """Debian's server with TLS."""
    program, tls, plain = _program(), free_port(), free_port()
    config = (f"tls-port {tls}", *_tls_lines(files))
    with EmbeddedServer(program, port=plain, password=PASSWORD, config=config):
        yield Secured(tls, plain, files / "ca.pem", files / "other.pem", files / "password", files)


def test_a_service_and_the_commands_over_tls(
    secured: Secured, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the right authority services and commands do what they do without, and a process gets ready."""
    environ = {**secured.environ(), "STATE_DIRECTORY": str(tmp_path), "LOG_LEVEL": "ERROR"}
    for words in (
        ["inject", "portfolio"], ["run", "budget", "allocation", "governor", "apply", "--once"],
        ["kill", "reduce", "--by", "me"], ["status", "--format", "json"], ["ledger", "verify"],
    ):  # fmt: skip
        assert main(words, {**environ, **ALONE}) == (words[0] == "status"), words  # no service runs for good
    assert "REDUCE_ONLY" in capsys.readouterr().out
    with Service("allocation", "", **secured.environ(REDIS_URL="")) as service:
        service.environ.pop("REDIS_URL", None)
        until(service.ready, 20, "it is ready")
        assert service.health()["redis"] == f"rediss://localhost:{secured.tls}/0"
        code, _ = service.terminate()
    assert code == 0


@pytest.mark.parametrize("form", ["url", "query", "host"])
def test_the_authority_is_named_in_any_of_three_ways(secured: Secured, form: str) -> None:
    """rediss:// with REDIS_CA_FILE, with ssl_ca_certs in the URL, and REDIS_CA_FILE beside host and port."""
    url = f"rediss://localhost:{secured.tls}/0"
    own = {
        "url": {"REDIS_URL": url, "REDIS_HOST": "", "REDIS_PORT": ""},
        "query": {"REDIS_URL": f"{url}?ssl_ca_certs={secured.ca}", "REDIS_CA_FILE": ""},
        "host": {},
    }[form]
    store = app.open_store(load([], secured.environ(**own)))
    store.ping()
    store.close()


REFUSED = {
    "wrong_ca": ({"REDIS_CA_FILE": "other"}, "its TLS certificate is not trusted", "REDIS_CA_FILE"),
    "no_ca": ({"REDIS_CA_FILE": "", "REDIS_URL": "rediss"}, "its TLS certificate is not trusted", "REDIS_CA_FILE"),
    "other_name": ({"REDIS_HOST": HOST}, "its TLS certificate is for another name", "name the server as"),
    "plain_to_tls": ({"REDIS_CA_FILE": ""}, "closes a new connection before it answers", "rediss://"),
    "tls_to_plain": ({"REDIS_PORT": "plain"}, "TLS", "TLS"),
}


def _environ(secured: Secured, case: str) -> dict[str, str]:
    told = dict(REFUSED[case][0])
    if told.get("REDIS_CA_FILE") == "other":
        told["REDIS_CA_FILE"] = str(secured.other)
    if told.get("REDIS_URL") == "rediss":
        told["REDIS_URL"] = f"rediss://localhost:{secured.tls}/0"
    if told.get("REDIS_PORT") == "plain":
        told["REDIS_PORT"] = str(secured.plain)
    return secured.environ(**told)


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_trusted_is_one_line_of_a_command(
    secured: Secured, case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 69, one sentence with the way out, nothing of a traceback, no secret."""
    environ = {**_environ(secured, case), "STATE_DIRECTORY": str(tmp_path)}
    for words in (["kill", "halt", "--by", "me"], ["run", "portfolio", "--once"]):
        assert main(words, {**environ, "LOG_LEVEL": "ERROR"}) == 69
        said = capsys.readouterr().err
        last = said.strip().splitlines()[-1]
        assert all(part in last for part in REFUSED[case][1:]), last
        assert "Traceback" not in said
        assert PASSWORD not in said


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_trusted_is_one_line_of_a_service(secured: Secured, case: str) -> None:
    """/ready 503, /health 200, one ERROR line however long it lasts, and it goes on trying."""
    with Service("portfolio", "", **_environ(secured, case)) as service:
        if "REDIS_URL" not in _environ(secured, case):
            service.environ.pop("REDIS_URL", None)
        until(lambda: service.get("/health")[0] == 200, 20, "the port is open")
        until(lambda: _errors(service) >= 2.0, 20, "it has tried twice")
        assert service.get("/ready")[0] == 503
        assert service.get("/health")[0] == 200
        code, _ = service.terminate()
    assert code == 0
    errors = [line for line in service.output.splitlines() if "ERROR" in line]
    assert len(errors) == 1, service.output
    assert REFUSED[case][1] in errors[0]
    assert "Traceback" not in service.output
    assert PASSWORD not in service.output


def _errors(service: Service) -> float:
    return sum(
        service.metric(f'quantum_alloc_store_errors_total{{code="{code}"}}') for code in ("tls", "closed", "timeout")
    )


def test_a_wrong_certificate_is_a_fault_of_configuration(secured: Secured) -> None:
    """It is called tls, which waiting alone does not mend."""
    store = Store(f"rediss://localhost:{secured.tls}", PASSWORD, ca_file=secured.other)
    with pytest.raises(StoreError) as caught:
        store.ping()
    assert (caught.value.code, caught.value.is_configuration) == ("tls", True)


def test_a_server_that_closes_while_tls_is_agreed_upon_is_no_fault_of_configuration(files: Path) -> None:
    """For real, with too many clients: it is called closed, so that it is tried again soon; then it works."""
    group, port = Group(), free_port()
    lines = (f"tls-port {port}", *_tls_lines(files))
    try:
        node = group.add(Node(lines, program=_program())).start().until_up()
        store = Store(f"rediss://localhost:{port}", ca_file=files / "ca.pem", shown="it")
        node.client.config_set("maxclients", 1)
        with pytest.raises(StoreError, match="is this its TLS port, and has it room") as caught:
            store.ping()
        assert (caught.value.code, caught.value.is_configuration) == ("closed", False)
        node.client.config_set("maxclients", 100)
        store.ping()
        store.close()
    finally:
        group.__exit__(None, None, None)


CLOSES = {
    "eof": ssl.SSLEOFError(8, "EOF occurred in violation of protocol"),
    "shut": ssl.SSLZeroReturnError(6, "TLS/SSL connection has been closed (EOF)"),
}


@pytest.mark.parametrize("case", CLOSES)
def test_a_connection_with_tls_that_ends_is_closed(case: str) -> None:
    """In mid-exchange it is a connection that broke, whatever the library calls it; an alert is a fault of settings."""
    with pytest.raises(RedisConnectionError) as raised:
        raise RedisConnectionError("Error while writing to socket") from CLOSES[case]
    assert store_error(raised.value, "it").code == "closed"
    alert = ssl.SSLError(1, "[SSL: TLSV13_ALERT_CERTIFICATE_REQUIRED] tlsv13 alert certificate required")
    alert.reason = "TLSV13_ALERT_CERTIFICATE_REQUIRED"
    with pytest.raises(RedisConnectionError) as raised:
        raise RedisConnectionError("Error while reading from socket") from alert
    assert store_error(raised.value, "it").is_configuration


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"REDIS_CA_FILE": "/nowhere/ca.pem"}, ("REDIS_CA_FILE='/nowhere/ca.pem'", "no such file")),
        ({"REDIS_CA_FILE": "empty"}, ("REDIS_CA_FILE=", "holds no certificates")),
        ({"REDIS_CA_FILE": "directory"}, ("REDIS_CA_FILE=",)),
        ({"REDIS_URL": "rediss://a?ssl_ca_certs=/nowhere"}, ("ssl_ca_certs of REDIS_URL='/nowhere'", "no such file")),
        ({"REDIS_URL": "redis://a", "REDIS_CA_FILE": "/ca"}, ("REDIS_CA_FILE", "rediss://")),
        ({"REDIS_URL": "rediss://a?ssl_ca_certs=/x", "REDIS_CA_FILE": "/ca"}, ("REDIS_CA_FILE", "name it once")),
    ],
)
def test_a_ca_file_that_cannot_be_used_is_one_sentence(
    environ: dict[str, str], words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 78, and the variable is named."""
    (tmp_path / "empty").write_text("nothing", encoding="utf-8")
    places = {"empty": str(tmp_path / "empty"), "directory": str(tmp_path)}
    told = {name: places.get(text, text) for name, text in environ.items()}
    with pytest.raises(SettingsError) as caught:
        app.open_store(load([], told))
    (error,) = caught.value.errors
    assert all(word in error for word in words), error
    assert main(["ledger", "verify"], told) == 78
    assert "Traceback" not in capsys.readouterr().err


def _node(program: Path, directory: Path, lines: tuple[str, ...] = (), *, sentinel: bool = False) -> Node:
    """A server that speaks TLS and nothing else, with a login; its client speaks it too."""
    node = Node((*lines, *_tls_lines(directory, "node"), "tls-replication yes"), sentinel=sentinel, program=program)
    node.configure("port 0", f"tls-port {node.port}")
    from redis import SSLConnection

    node.client.connection_pool.connection_class = SSLConnection
    node.client.connection_pool.connection_kwargs["ssl_ca_certs"] = str(directory / "ca.pem")
    return node


def test_sentinels_and_their_primary_over_tls(files: Path) -> None:
    """The scheme of REDIS_URL, or REDIS_CA_FILE without one, is for the sentinels too; each side has its own login."""
    group, program = Group(), _program()
    (files / "guard").write_text("guarded\n", encoding="utf-8")
    try:
        data = group.add(_node(program, files, (*DATA, f"user app on >{PASSWORD} ~* &* +@all"))).start().until_up()
        lines = (f"sentinel monitor {NAME} {HOST} {data.port} 1", "user watch on >guarded ~* &* +@all")
        guard = group.add(_node(program, files, lines, sentinel=True)).start().until_up()
        environ = {
            "REDIS_SENTINELS": f"{HOST}:{guard.port}",
            "REDIS_USERNAME": "app",
            "REDIS_PASSWORD_FILE": str(files / "password"),
            "REDIS_SENTINEL_USERNAME": "watch",
            "REDIS_SENTINEL_PASSWORD_FILE": str(files / "guard"),
            "REDIS_CA_FILE": str(files / "ca.pem"),
        }
        for more in ({}, {"REDIS_URL": "rediss://unused/2"}):
            settings = load([], {**environ, **more})
            store = app.open_store(settings)
            assert store.read([("CLIENT", "INFO")]) == [_Holding(b"user=app", b"db=2" if more else b"db=0")]
            shown = settings.redis.address()
            assert shown == f"rediss+sentinel://{HOST}:{guard.port}/{NAME}/{2 if more else 0}"
            store.close()
        wrong = load([], {**environ, "REDIS_CA_FILE": str(files / "other.pem")})
        with pytest.raises(StoreError, match="not trusted"):
            app.open_store(wrong).ping()
        wrong = load([], {**environ, "REDIS_SENTINEL_PASSWORD_FILE": str(files / "password")})
        with pytest.raises(StoreError) as caught:
            app.open_store(wrong).ping()
        assert caught.value.code == "WRONGPASS"
        assert PASSWORD not in str(caught.value)
    finally:
        group.__exit__(None, None, None)


class _Holding:
    """Equal to bytes that hold all of these."""

    def __init__(self, *parts: bytes) -> None:
        """Keep them."""
        self.parts = parts

    def __eq__(self, other: object) -> bool:
        """Whether they are all in there."""
        return isinstance(other, bytes) and all(part in other for part in self.parts)

    __hash__ = None  # type: ignore[assignment]  # it is only compared


def test_a_node_of_a_cluster_over_tls(files: Path) -> None:
    """A cluster of one node with TLS alone: its slots are asked for, and served, with TLS."""
    group, program = Group(), _program()
    try:
        lines = ("cluster-enabled yes", f"cluster-port {free_port()}", "tls-cluster yes")
        node = group.add(_node(program, files, lines)).start().until_up()
        node.client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        until(lambda: "cluster_state:ok" in str(node.client.execute_command("CLUSTER", "INFO")), 20, "it serves")
        options = options_of(f"rediss://localhost:{node.port}", None, None, files / "ca.pem", TIMEOUT_S)
        store = Store("rediss://localhost", ca_file=files / "ca.pem", locator=Nodes("q", options))
        until(lambda: _reads(store), 10, "it reads")
        store.close()
    finally:
        group.__exit__(None, None, None)


def _reads(store: Store) -> bool:
    try:
        return store.read([("GET", "{q}a")]) == [None]
    except StoreError as error:
        if error.code not in ("CLUSTERDOWN", "timeout"):
            raise
        return False
