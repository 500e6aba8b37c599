"""QA_HASH_TAG: every name of an installation begins with it, and two installations on one server never meet."""

from __future__ import annotations

import ast
from pathlib import Path
from threading import Event

import pytest
import redis
from hypothesis import example, given
from hypothesis import strategies as st

import quantum_alloc
from quantum_alloc.adapters.embedded import EmbeddedServer
from quantum_alloc.adapters.keys import Keys, is_tag
from quantum_alloc.adapters.store import Store
from quantum_alloc.adapters.universe import Universe
from quantum_alloc.core.reading import Lane
from quantum_alloc.services import demo
from quantum_alloc.services.options import GROUPS, Settings, load
from quantum_alloc.services.settings import SettingsError, variables
from tests.support import chain
from tests.support.worlds import Client

TAG = "x.1"


def test_installations_on_one_server_never_meet(
    one_server: EmbeddedServer, one_client: Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole chain and every command, without a tag, then with two: each has the same names but for the tag, and no
    byte of another's changes meanwhile."""
    found: dict[str, set[str]] = {}
    before: dict[str, bytes] = {}
    for tag in ("", TAG, "y"):
        environ = chain.environment(tmp_path / (tag or "none"), REDIS_URL=one_server.url, QA_HASH_TAG=tag)
        chain.run_chain(environ, capsys)
        names = chain.names_of(one_client)
        changed = {n for n, raw in before.items() if n in names and one_client.dump(n) != raw}
        assert not changed, f"names of another installation were written: {changed}"
        own = names - before.keys()
        assert tag == "" or not chain.untagged(own, tag)
        found[tag] = chain.plain(own, tag)
        before = {n: one_client.dump(n) for n in names}
    assert found[TAG] == found[""]
    assert found["y"] == found[""]
    assert len(found[""]) > 80


def test_the_demo_is_the_same_under_a_tag(tmp_path: Path) -> None:
    """The same candles and seed come to the same records, bit for bit; every key of its server has the tag."""
    found = {}
    for tag in ("", TAG):
        with EmbeddedServer() as server:
            plan = demo.Plan(bars=12)
            made = demo.drive(plan, {"QA_HASH_TAG": tag}, server, Event(), lambda _: None)
            client = redis.Redis.from_url(server.url, protocol=2, decode_responses=True)
            names = chain.names_of(client)
            client.close()
        assert made.holds
        assert tag == "" or not chain.untagged(names, tag)
        found[tag] = (made.sha256, chain.plain(names, tag))
    assert found[TAG] == found[""]


tags = st.text(st.sampled_from("ab0-._Z"), min_size=1, max_size=8)


@given(tag=tags, other=tags)
@example(tag="a.b", other="a-b")
@example(tag="a", other="ab")
def test_a_scan_finds_the_names_of_its_tag_and_no_others(any_server: EmbeddedServer, tag: str, other: str) -> None:
    """Nothing that a tag may hold means anything to a glob pattern: on each server, a scan for one tag's targets finds
    those alone."""
    assert is_tag(tag)
    client = redis.Redis.from_url(any_server.url, protocol=2)
    client.flushall()
    mine, theirs, none = Keys(tag=tag), Keys(tag=other), Keys()
    for keys, symbol in ((mine, "AAUSDT"), (theirs, "BBUSDT"), (none, "CCUSDT")):
        client.hset(keys.target(symbol), "target_usd", "1")
        client.hset(keys.proposed("DDUSDT"), "target_usd", "1")
        client.hset(Keys(Lane.SHADOW, keys.tag).target("EEUSDT"), "target_usd", "1")
    store = Store(any_server.url, timeout_s=2.0)
    universe = Universe(mine, (mine.target(""),))
    universe.whole = True
    names = universe.find(store, store.read(universe.query), 0.0).names
    assert names == (("AAUSDT",) if tag != other else ("AAUSDT", "BBUSDT"))
    store.close()
    client.close()


@pytest.mark.parametrize("text", ["{x}", "a*", "a?", "[a]", "a b", "a\\b", "a{b", "é", "x" * 65])
def test_a_tag_that_means_something_else_is_refused(text: str) -> None:
    """Braces, glob characters, spaces, other scripts, far too long: one error that shows the text."""
    with pytest.raises(SettingsError) as caught:
        load([], {"QA_HASH_TAG": text})
    assert len(caught.value.errors) == 1
    assert caught.value.errors[0].startswith("QA_HASH_TAG=")


def streams_of(settings: Settings) -> set[str]:
    """Every stream that a setting names."""
    groups = [settings.common, *settings.services.values()]
    return {getattr(g, v.field) for g in groups for v in variables(type(g)) if v.field.endswith("_stream")}


def test_streams_of_settings_get_the_tag_unless_they_have_it() -> None:
    """The defaults, a name of one's own, and one that is written with its tag; without a tag nothing changes."""
    own = {"STREAM_PLANS": "mine:plans", "STREAM_EVENTS": "{t}quantum:stream:mine"}
    settings = load(list(GROUPS), {"QA_HASH_TAG": "t", **own}, together=False)
    assert all(name.startswith("{t}") and not name.startswith("{t}{t}") for name in streams_of(settings))
    assert settings.common.plans_stream == "{t}mine:plans"
    assert "{t}quantum:stream:mine" in streams_of(settings)
    assert "{t}quantum:stream:execution.result" in streams_of(settings)
    plain = load(list(GROUPS), {}, together=False)
    assert not any("{" in name for name in streams_of(plain))


@pytest.mark.parametrize(
    ("environ", "name"),
    [
        ({"QA_HASH_TAG": "t", "STREAM_PLANS": "{u}plans"}, "STREAM_PLANS"),
        ({"QA_HASH_TAG": "t", "STREAM_PLANS": "{t}quantum:kill"}, "STREAM_PLANS"),
        ({"QA_HASH_TAG": "t", "STREAM_PLANS": "{t}quantum:stream:apply.result"}, "STREAM_PLANS"),
        ({"STREAM_PLANS": "{t}quantum:kill"}, "STREAM_PLANS"),
        ({"QA_HASH_TAG": "t", "STREAM_EVENTS": "{t}a", "STREAM_PLANS": "a"}, "STREAM_EVENTS"),
    ],
)
def test_a_stream_under_another_tag_or_of_another_is_refused(environ: dict[str, str], name: str) -> None:
    """Another slot, a key of ours, another service's stream, the same stream written in two ways: one error."""
    with pytest.raises(SettingsError) as caught:
        load(["governor"], environ)
    (error,) = caught.value.errors
    assert error.startswith(f"{name}=")


def test_services_take_their_names_from_the_settings() -> None:
    """In services the names without a tag are the default of a parameter or of a field, and nothing else."""
    for path in sorted((Path(quantum_alloc.__file__).parent / "services").glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        allowed = set()
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.Lambda)):
                allowed |= {id(d) for d in [*node.args.defaults, *node.args.kw_defaults] if d is not None}
            if isinstance(node, ast.ClassDef):
                fields = [n.value for n in node.body if isinstance(n, ast.AnnAssign) and n.value is not None]
                allowed |= {id(inner) for field in fields for inner in ast.walk(field)}
        used = [n for n in ast.walk(tree) if isinstance(n, ast.Name) and n.id == "LIVE" and id(n) not in allowed]
        assert not used, f"{path.name}, line {used[0].lineno}: take the names from Settings.keys"
