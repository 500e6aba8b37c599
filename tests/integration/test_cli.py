"""The command line, as an operator uses it."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from threading import Thread

import pytest

from quantum_alloc.adapters.embedded import EmbeddedServer, ServerError, find_server
from quantum_alloc.services import logs, status
from quantum_alloc.services.cli import main
from quantum_alloc.services.show import table
from tests.support.running import ALONE, Service, seed, until
from tests.support.worlds import Client


def quiet(url: str, **more: str) -> dict[str, str]:
    """An environment for a command in this process."""
    return {"REDIS_URL": url, "LOG_LEVEL": "ERROR", **more}


@pytest.mark.parametrize(
    ("argv", "environ", "code", "says"),
    [
        (["run", "nonsense"], {}, 2, "is not a service"),
        (["run", "allocation", "--now", "5"], {}, 2, "--once"),
        (["run", "allocation", "--once", "--candles", "x"], {}, 2, "feed"),
        (["run", "allocation", "--once"], {"MAX_SYMBOL_PCT": "lots"}, 78, "MAX_SYMBOL_PCT"),
        (["run", "allocation", "--once"], {"REDIS_PORT": "1"}, 69, "did not end"),
        (["run", "feed", "--once"], {"QA_FEED_CANDLES": "/nowhere.csv"}, 65, "/nowhere.csv"),
        (["run", "portfolio", "budget", "--once"], {"METRICS_PORT": "9000"}, 78, "METRICS_PORT"),
        (["status"], {"REDIS_PORT": "1"}, 69, "cannot be reached"),
    ],
)
def test_mistakes_get_a_sentence_and_a_code(
    argv: list[str], environ: dict[str, str], code: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A mistake of the user's: a sentence that names it, a meaningful exit code, no traceback."""
    assert main(argv, {"LOG_LEVEL": "ERROR", **environ}) == code
    err = capsys.readouterr().err
    assert says in err
    assert "Traceback" not in err


@pytest.mark.parametrize("argv", [["run", "allocation", "--once", "--now", "soon"], [], ["run"], ["nonsense"]])
def test_words_that_are_no_command(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Words that make no command: usage and exit code 2."""
    with pytest.raises(SystemExit) as caught:
        main(argv, {})
    assert caught.value.code == 2
    assert "usage" in capsys.readouterr().err


def test_a_port_that_is_taken(one_server: EmbeddedServer) -> None:
    """One clear line and exit code 78."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with Service("allocation", one_server.url) as service:
            pass
        service = Service("allocation", one_server.url, P29_METRICS_PORT=str(taken.getsockname()[1]))
        with service:
            assert service.wait() == 78
    assert service.output.count("cannot open 127.0.0.1") == 1
    assert "Traceback" not in service.output


def test_a_service_from_start_to_sigterm(one_server: EmbeddedServer, one_client: Client) -> None:
    """Ready, healthy, its pages, one INFO line a cycle in the contract's words, SIGTERM within 2 s with exit code 0."""
    seed(one_client, time.time(), {"BTCUSDT": 1000.0, "ETHUSDT": 2000.0})
    with Service("allocation", one_server.url, P29_INTERVAL_SEC="0.2", P29_MODE="sometimes") as service:
        until(service.ready, 10, "ready")
        health = service.health()
        assert (health["status"], health["mode"], health["service"]) == ("ok", "shadow", "allocation")
        until(lambda: service.metric("p29_shadow_pass_total") >= 4, 5, "two cycles")
        assert service.metric('p29_target_usd{symbol="BTCUSDT"}') == 1000.0
        assert service.metric('p29_targets_computed_total{symbol="ETHUSDT"}') >= 2
        assert service.metric("quantum_alloc_mode_unrecognised") == 1.0
        assert service.metric('p29_loop_duration_seconds_bucket{le="+Inf"}') >= 2
        assert service.get("/nonsense")[0] == 404
        code, took = service.terminate()
    assert code == 0
    assert took < 2.0
    assert "Allocation cycle complete symbols=2 targets=2 mode=shadow ms=" in service.output
    assert service.output.count("P29_MODE") == 1
    assert "Traceback" not in service.output


def test_several_services_in_one_process(tmp_path: Path) -> None:
    """Four services in one process, from candles to targets by the wall clock, each with its pages."""
    with EmbeddedServer() as server:
        feed = Service(
            "feed", server.url, "portfolio", "budget", "allocation", "--speed", "600",
            PAPER_BOOK="1", P29_MODE="enforce", P25_INTERVAL_SEC="0.2", P28_INTERVAL_SEC="0.2", P29_INTERVAL_SEC="0.2",
            LOG_FORMAT="json",
        )  # fmt: skip
        del feed.environ["METRICS_PORT"]
        feed.environ["P29_METRICS_PORT"] = str(feed.port)
        with feed:
            until(lambda: feed.metric("quantum_alloc_targets") == 11, 20, "eleven targets")
            assert json.loads(feed.get("/health")[1])["mode"] == "enforce"
            code, took = feed.terminate()
    assert (code, took < 2.0) == (0, True), feed.output
    entries = [json.loads(line) for line in feed.output.splitlines()]
    assert {"feed", "portfolio", "budget", "allocation"} <= {e["service"] for e in entries}


def test_run_feed_stamps_with_the_wall_clock_and_writes_again(one_server: EmbeddedServer, one_client: Client) -> None:
    """run feed: market, position and balance carry the wall clock and are written again between bars, bars once."""
    environ = {"PAPER_BOOK": "1", "QA_FEED_REWRITE_SEC": "0.2"}
    with Service("feed", one_server.url, "--symbols", "BTCUSDT", **environ) as service:
        until(lambda: one_client.exists("quantum:state:positions:BTCUSDT"), 10, "a position")
        first = one_client.hgetall("quantum:state:market:BTCUSDT")
        assert abs(float(first["timestamp"]) - time.time()) < 5
        assert "sigma" not in first
        until(lambda: one_client.hget("quantum:state:market:BTCUSDT", "timestamp") > first["timestamp"], 5, "again")
        assert one_client.xlen("quantum:stream:market.bars:BTCUSDT") == 1
        assert float(one_client.hget("quantum:account:balance", "balance")) == 100_000
        position = one_client.hgetall("quantum:state:positions:BTCUSDT")
        assert float(position["position_amt"]) * float(position["entry_price"]) == pytest.approx(20_000)
        assert service.terminate()[0] == 0


def test_feed_without_a_paper_book_holds_nothing(one_server: EmbeddedServer, one_client: Client) -> None:
    """PAPER_BOOK is off by default: no position and no balance is written."""
    assert main(["run", "feed", "--once", "--symbols", "BTCUSDT"], quiet(one_server.url)) == 0
    assert one_client.exists("quantum:state:market:BTCUSDT") == 1
    assert one_client.exists("quantum:state:positions:BTCUSDT", "quantum:account:balance") == 0


def test_status(one_server: EmbeddedServer, one_client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    """status shows services, ages of inputs and the last cycle, as a table and as JSON; it writes nothing."""
    seed(one_client, time.time(), {"BTCUSDT": 1000.0})
    assert main(["run", "allocation", "--once"], quiet(one_server.url)) == 0
    before = sorted(one_client.keys())
    environ = quiet(one_server.url, **ALONE)
    assert main(["status"], environ) == 1
    shown, told = capsys.readouterr()
    assert "not well: portfolio not reached, regime not reached" in told
    for word in ("allocation", "not reached", "portfolio", "fresh", "1 of 1", "missing", "cycle_id"):
        assert word in shown
    assert main(["status", "--format", "json"], environ) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["last_cycle"]["targets"] == "1"
    assert {row["input"]: row["state"] for row in found["inputs"]}["budget"] == "fresh"
    assert sorted(one_client.keys()) == before


def test_no_server_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any server program: one sentence with the install line; so with one that does not come up."""
    monkeypatch.setattr("importlib.metadata.files", lambda _: None)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ServerError, match="pip install"):
        find_server()
    with pytest.raises(ServerError, match="did not come up"):
        EmbeddedServer(Path("/bin/false")).start()


def test_log_lines_cannot_be_forged() -> None:
    """Control characters are escaped in log lines; tables align and show what is absent as a dash."""
    assert logs.escape("a\nERROR b\x1b[0m\x85") == "a\\nERROR b\\x1b[0m\\x85"
    assert table([]) == ""
    assert table([{"a": None, "b": "x"}]).splitlines()[1] == "-  x"


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-x\r\n",
        b"HTTP/1.0 200 OK\r\n\r\n[1]",
        b'HTTP/1.0 200 OK\r\n\r\n{"service":"feed"}',
        b"HTTP/1.0 200 OK\r\nContent-Length: 99\r\n\r\n{",
    ],
)
def test_status_survives_another_program_on_a_port(answer: bytes) -> None:
    """Whatever answers on a service's port, its row says so."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            client, _ = server.accept()
            client.recv(1000)
            client.sendall(answer)
            client.close()

        thread = Thread(target=serve)
        thread.start()
        row = status._service("feed", "127.0.0.1", server.getsockname()[1])
        thread.join(5)
    assert row["state"] in ("not reached", "another program answers here", "not ready")
