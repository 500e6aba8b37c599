"""Settings: every error at once, each with its variable, its raw text and what is expected; defaults of the rules."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from quantum_alloc.core import AllocationParams, BudgetParams
from quantum_alloc.services import config_cli
from quantum_alloc.services.options import (
    GROUPS,
    KNOWN,
    AllocationOptions,
    BudgetOptions,
    CommonOptions,
    EfficiencyOptions,
    FeedOptions,
    PortfolioOptions,
    RedisOptions,
    Settings,
    load,
    port_variables,
)
from quantum_alloc.services.redis_options import mask_url
from quantum_alloc.services.settings import ApplyMode, Mode, SettingsError, read, var, variables
from quantum_alloc.services.variables import CONTRACT_VARIABLES, OWN_PREFIXES, RETIRED

ALL = list(GROUPS)
CANARY = "pa55-canary-9f3"


def load_all(environ: Mapping[str, str]) -> Settings:
    """Every service, each by itself."""
    return load(ALL, environ, together=False)


def errors_of(environ: Mapping[str, str], names: list[str] | None = None, together: bool = False) -> tuple[str, ...]:
    """What is wrong with an environment."""
    with pytest.raises(SettingsError) as caught:
        load(names or ALL, environ, together=together)
    assert str(caught.value) == "\n".join(caught.value.errors)
    return caught.value.errors


def outcome(environ: Mapping[str, str]) -> Settings | SettingsError:
    """What load_all gives or raises."""
    try:
        return load_all(environ)
    except SettingsError as error:
        return error


BAD: list[tuple[str, str]] = [
    # numbers that are none
    ("P29_INTERVAL_SEC", "5s"),
    ("P29_INTERVAL_SEC", "five"),
    ("P29_INTERVAL_SEC", "nan"),
    ("P29_INTERVAL_SEC", "inf"),
    ("P29_INTERVAL_SEC", "-Infinity"),
    ("P29_INTERVAL_SEC", "1e999"),
    ("P29_INTERVAL_SEC", "1_000"),
    ("P29_INTERVAL_SEC", "1 000"),
    ("P29_INTERVAL_SEC", "1,5"),
    ("P29_INTERVAL_SEC", "0x10"),
    ("P29_INTERVAL_SEC", "٥"),
    ("P29_INTERVAL_SEC", "５"),
    ("P29_INTERVAL_SEC", "5\u00a0"),
    ("P29_INTERVAL_SEC", "--5"),
    ("P29_INTERVAL_SEC", "."),
    ("P29_INTERVAL_SEC", "e5"),
    ("P29_INTERVAL_SEC", "$INTERVAL"),
    ("MAX_SYMBOL_PCT", "40%"),
    ("MAX_SYMBOL_PCT", "9" * 5000),
    ("MAX_SYMBOL_PCT", "'0.4'"),
    # out of range
    ("P29_INTERVAL_SEC", "0"),
    ("P29_INTERVAL_SEC", "-5"),
    ("P29_INTERVAL_SEC", "3601"),
    ("P25_INTERVAL_SEC", "61"),
    ("P28_INTERVAL_SEC", "200"),
    ("TARGET_TTL_SEC", "0"),
    ("TARGET_TTL_SEC", "300.0"),
    ("TARGET_TTL_SEC", "3e2"),
    ("TARGET_TTL_SEC", "9" * 5000),
    ("MAX_SYMBOL_PCT", "0"),
    ("MAX_SYMBOL_PCT", "40"),
    ("MAX_CLUSTER_PCT", "1.0000001"),
    ("BASE_RISK_PCT", "2"),
    ("BASE_RISK_PCT", "0"),
    ("ALPHA_HEAT", "-0.1"),
    ("MIN_BUDGET_K", "-1"),
    ("STALE_SEC", "0"),
    ("STALE_DATA_SEC", "-60"),
    ("P28_STALE_DATA_SEC", "60.5"),
    ("REGIME_FACTOR_TREND", "12"),
    ("REGIME_FACTOR_CHOP", "-0.6"),
    ("CLUSTER_STRESS_MAX", "1.1"),
    ("DD_HIGH_THRESHOLD", "15"),
    ("DD_FACTOR_LOW", "1.5"),
    ("PERF_FACTOR_MIN", "1.5"),
    ("PERF_FACTOR_MAX", "0.9"),
    ("P29_METRICS_PORT", "0"),
    ("METRICS_PORT", "65536"),
    ("METRICS_MAX_SYMBOLS", "-1"),
    ("MAX_SYMBOLS", "0"),
    ("STREAM_MAXLEN", "10"),
    ("QA_FEED_SPEED", "0"),
    ("QA_FEED_SEED", "-7"),
    ("QA_FEED_REWRITE_SEC", "600"),
    ("QA_PAPER_EXPOSURE_PCT", "20"),
    ("QA_PAPER_EQUITY_USD", "0"),
    ("QA_BALANCE_STALE_SEC", "2 min"),
    ("QA_POSITION_STALE_SEC", "0"),
    # words
    ("LOG_LEVEL", "verbose"),
    ("LOG_FORMAT", "xml"),
    ("UNMAPPED_CLUSTER_POLICY", "none"),
    ("PAPER_BOOK", "maybe"),
    ("PAPER_BOOK", "2"),
    ("QA_FEED_STRICT", "y"),
    # names and places
    ("QA_SYMBOLS", "btcusdt"),
    ("QA_SYMBOLS", "BTCUSDT,,ETHUSDT"),
    ("QA_SYMBOLS", "BTCUSDT;ETHUSDT"),
    ("QA_SYMBOLS", "BTC/USDT"),
    ("QA_SYMBOLS", "A" * 31),
    ("QA_FEED_CANDLES", "/a.csv::/b.csv"),
    ("STATE_DIRECTORY", "/var/lib/\x1bquantum"),
    ("REDIS_PASSWORD_FILE", "/etc/\x00"),
    ("REDIS_HOST", "redis://cache"),
    ("REDIS_HOST", "two hosts"),
    ("REDIS_PORT", "tcp://10.0.0.1:6379"),
    ("REDIS_DB", "-1"),
    ("REDIS_URL", "localhost:6379"),
    ("REDIS_URL", "http://localhost"),
    ("REDIS_URL", "redis://localhost:99999"),
    ("REDIS_URL", "unix://relative/path"),
    ("QA_METRICS_HOST", "http://127.0.0.1"),
    # inline comments
    ("P29_INTERVAL_SEC", "5 # seconds"),
    ("MAX_SYMBOL_PCT", "0.65 # x"),
    ("MAX_SYMBOL_PCT", "0.65# x"),
    ("LOG_LEVEL", "DEBUG # for now"),
    ("QA_SYMBOLS", "BTCUSDT # only this"),
    ("STATE_DIRECTORY", "/var/lib/quantum # state"),
    ("REDIS_HOST", "# none"),
    ("PAPER_BOOK", "1\t# demo"),
]


@pytest.mark.parametrize(("name", "text"), BAD, ids=[f"{n}={t[:20]!a}" for n, t in BAD])
def test_a_bad_value_is_one_error_with_its_name_its_raw_text_and_what_is_expected(name: str, text: str) -> None:
    """One bad variable is one error: NAME=repr(raw): expected ..., with an example."""
    (error,) = errors_of({name: text})
    assert error.startswith(f"{name}=")
    assert ": expected " in error
    if len(repr(text)) <= 120 and name != "REDIS_URL":
        assert error.startswith(f"{name}={text!r}: expected ")
    assert len(error) < 500
    assert error.isprintable()


@pytest.mark.parametrize(("name", "text"), [(n, t) for n, t in BAD if "#" in t])
def test_an_inline_comment_is_named_as_such(name: str, text: str) -> None:
    """systemd keeps an inline comment in the value; the error says so and what to do."""
    (error,) = errors_of({name: text})
    assert "systemd keeps inline comments in the value: put the comment on a line of its own" in error


def test_the_table_of_bad_values_is_long_enough() -> None:
    """At least sixty bad environments are known, over nearly every variable."""
    assert len(BAD) >= 60
    assert len({name for name, _ in BAD}) >= 40


def test_every_error_is_told_at_once() -> None:
    """All bad variables, contradictions and unknown names of an environment come in one exception."""
    bad = dict(BAD) | {"P29_MOD": "enforce", "GOV_NONSENSE": "1"}
    errors = errors_of(bad)
    assert {e.partition("=")[0].partition(":")[0] for e in errors} == set(bad)
    assert len(errors) == len(bad)


def test_a_range_and_a_unit_and_an_example_are_in_the_error() -> None:
    """What is expected says range, unit and a good value."""
    assert errors_of({"P29_INTERVAL_SEC": "5s"}) == (
        "P29_INTERVAL_SEC='5s': expected a number, 0.1 to 3600 (seconds), for example P29_INTERVAL_SEC=5",
    )


CONTRADICTIONS: list[tuple[dict[str, str], set[str]]] = [
    ({"MIN_BUDGET_K": "20000"}, {"MIN_BUDGET_K", "MAX_BUDGET_K"}),
    ({"MAX_BUDGET_K": "100"}, {"MIN_BUDGET_K", "MAX_BUDGET_K"}),
    ({"CLUSTER_STRESS_MIN": "0.9", "CLUSTER_STRESS_MAX": "0.5"}, {"CLUSTER_STRESS_MIN", "CLUSTER_STRESS_MAX"}),
    ({"DD_LOW_THRESHOLD": "0.2"}, {"DD_LOW_THRESHOLD", "DD_HIGH_THRESHOLD"}),
    ({"DD_FACTOR_MID": "0.3"}, {"DD_FACTOR_LOW", "DD_FACTOR_MID", "DD_FACTOR_HIGH"}),
    ({"DD_FACTOR_HIGH": "0.8"}, {"DD_FACTOR_LOW", "DD_FACTOR_MID", "DD_FACTOR_HIGH"}),
    ({"P29_INTERVAL_SEC": "300"}, {"TARGET_TTL_SEC", "P29_INTERVAL_SEC"}),
    ({"TARGET_TTL_SEC": "5"}, {"TARGET_TTL_SEC", "P29_INTERVAL_SEC"}),
]


@pytest.mark.parametrize(("environ", "names"), CONTRADICTIONS)
def test_a_contradiction_names_its_variables_and_what_was_set(environ: dict[str, str], names: set[str]) -> None:
    """Values that contradict each other are an error in the environment's names, never in the core's."""
    (error,) = errors_of(environ)
    assert set(re.findall(r"\b[A-Z][A-Z0-9]*_[A-Z0-9_]+\b", error)) == names
    assert not re.search(r"\b[a-z]+_[a-z_]+\b", error)
    for name, text in environ.items():
        assert f"{name}={text!r}" in error
    for name in names - set(environ):
        assert f"{name}=" in error
        assert "(default)" in error


def test_a_contradiction_that_follows_from_an_unreadable_value_is_not_told() -> None:
    """MIN above the default MAX is not said while MAX itself cannot be read; others still are."""
    errors = errors_of({"MIN_BUDGET_K": "20000", "MAX_BUDGET_K": "many", "DD_LOW_THRESHOLD": "0.2"})
    assert [e.partition("=")[0] for e in errors] == ["MAX_BUDGET_K", "DD_LOW_THRESHOLD"]


def test_all_contradictions_of_a_group_are_told() -> None:
    """One group's contradictions come together."""
    errors = errors_of({"DD_LOW_THRESHOLD": "0.2", "DD_FACTOR_MID": "0.3", "TARGET_TTL_SEC": "5"})
    assert len(errors) == 3


def test_defaults_of_the_groups_are_the_cores() -> None:
    """Without an environment every parameter has the core's default, field by field."""
    found = load_all({})
    for made, core in (
        (found.of(BudgetOptions).params(), BudgetParams()),
        (found.of(AllocationOptions).params(), AllocationParams()),
    ):
        for field in dataclasses.fields(core):
            assert getattr(made, field.name) == getattr(core, field.name), field.name
            assert type(getattr(made, field.name)) is type(getattr(core, field.name)), field.name
    assert found.given == frozenset()
    assert found.warnings == ()
    assert found.unrecognised_modes == ()


RULES = """
REDIS_HOST localhost REDIS_PORT 6379 REDIS_DB 0 METRICS_MAX_SYMBOLS 500 MAX_SYMBOLS 10000 STREAM_MAXLEN 200000
PAPER_BOOK 0 P25_INTERVAL_SEC 5 QA_BALANCE_STALE_SEC 120 QA_POSITION_STALE_SEC 60 P28_MODE shadow P28_INTERVAL_SEC 10
ALPHA_HEAT 0.4 BETA_CLUSTER 0.4 GAMMA_VOL 0.2 BASE_RISK_PCT 0.02 MIN_BUDGET_K 500 MAX_BUDGET_K 10000 STALE_SEC 30
P28_STALE_DATA_SEC 60 P29_MODE shadow P29_INTERVAL_SEC 5 P29_METRICS_PORT 8059 TARGET_TTL_SEC 300
REGIME_FACTOR_TREND 1.2 REGIME_FACTOR_MR 1.0 REGIME_FACTOR_CHOP 0.6 CLUSTER_STRESS_MIN 0.3 CLUSTER_STRESS_MAX 1.0
DD_LOW_THRESHOLD 0.05 DD_HIGH_THRESHOLD 0.15 DD_FACTOR_LOW 1.0 DD_FACTOR_MID 0.7 DD_FACTOR_HIGH 0.4 PERF_FACTOR_MIN 0.5
PERF_FACTOR_MAX 1.5 STALE_DATA_SEC 60 MAX_SYMBOL_PCT 0.40 MAX_CLUSTER_PCT 0.60 UNMAPPED_CLUSTER_POLICY shared
"""


def test_writing_the_documented_defaults_out_changes_nothing() -> None:
    """The defaults that the contract and the rules give are those that are in force."""
    words = RULES.split()
    environ = dict(zip(words[::2], words[1::2], strict=True))
    written, silent = load_all(environ), load_all({})
    assert (written.redis, written.common, written.services) == (silent.redis, silent.common, silent.services)
    assert written.given == frozenset(environ)


def test_ports_and_cadences_are_those_of_the_contract() -> None:
    """Each service has its own port and cadence without any setting."""
    found = load_all({}).services
    assert {n: (s.port, s.interval_s) for n, s in found.items()} == {
        "feed": (8045, 10.0),
        "portfolio": (8046, 5.0),
        "budget": (8049, 10.0),
        "allocation": (8059, 5.0),
        "attribution": (8061, 5.0),
        "efficiency": (8062, 5.0),
        "proposer": (8065, 10.0),
        "regime": (8047, 30.0),
        "clusters": (8048, 15.0),
        "governor": (8044, 1.0),
        "apply": (8043, 5.0),
        "desk": (8042, 60.0),
    }
    assert load(["efficiency"], {}).of(EfficiencyOptions).health_port == 8063
    assert all((n, s.port) == (s.SERVICE, s.DEFAULT_PORT) for n, s in found.items())


def test_two_services_of_a_process_cannot_share_a_port() -> None:
    """A port given twice is told with both variables; alone, or in processes of their own, it is fine."""
    clash = {"P31_PORT": "8065"}
    (error,) = errors_of(clash, ["efficiency", "proposer"], together=True)
    assert error == "METRICS_PORT=8065: efficiency listens there too (P31_PORT): choose another port for one of them"
    (error,) = errors_of({"P31_HEALTH_PORT": "8059"}, ["allocation", "efficiency"], together=True)
    assert error.startswith("P31_HEALTH_PORT=8059: allocation listens there too (P29_METRICS_PORT)")
    assert load(["efficiency"], clash).warnings == ()
    assert load(["efficiency", "proposer"], clash, together=False).warnings == ()


def test_an_offset_moves_every_port() -> None:
    """QA_PORT_OFFSET is added to each port, its own variable or not; beyond the last port it is refused."""
    moved = load_all({"QA_PORT_OFFSET": "4000", "P29_METRICS_PORT": "9100"}).services
    for name, options in load_all({"P29_METRICS_PORT": "9100"}).services.items():
        for variable, port in port_variables(options).items():
            assert port_variables(moved[name])[variable] == port + 4000
    out = io.StringIO()
    config_cli.show(Namespace(names=["portfolio"], format="json"), {"QA_PORT_OFFSET": "4000"}, out)
    (row,) = [row for row in json.loads(out.getvalue()) if row["variable"] == "METRICS_PORT"]
    assert (row["value"], row["source"]) == (moved["portfolio"].port, "environment")
    told = errors_of({"QA_PORT_OFFSET": "57000", "P31_PORT": "8536", "P31_HEALTH_PORT": "9000"}, ["efficiency", "desk"])
    assert told == (
        "QA_PORT_OFFSET=57000: P31_PORT=8536 would become 65536: a port is at most 65535",
        "QA_PORT_OFFSET=57000: P31_HEALTH_PORT=9000 would become 66000: a port is at most 65535",
    )


@pytest.mark.parametrize(("slip", "meant"), [("SHADOWLANE", "SHADOW_LANE"), ("PAPERBOOK", "PAPER_BOOK")])
def test_an_underscore_too_few_or_too_many_is_a_slip(slip: str, meant: str) -> None:
    """A known name but for its underscores is an error that names it."""
    (error,) = errors_of({slip: "1"}, ["allocation"])
    assert error == f"{slip}: no service knows this variable; did you mean {meant}?"
    assert load(["allocation"], {"LOGLEVEL": "1", "METRICSPORT": "1", "REDISHOST": "x"}).warnings == ()


@pytest.mark.parametrize(
    ("name", "service", "text", "good"),
    [
        ("EXECUTION_STREAM", "efficiency", "quantum:stream:execution.result", True),
        ("EXECUTION_STREAM", "attribution", "fills", True),
        ("EXECUTION_STREAM", "attribution", "quantum:stream:fills", True),
        ("EXECUTION_STREAM", "attribution", "quantum:stream:execution.deadletter", False),
        ("EXECUTION_STREAM", "feed", "quantum:kill", False),
        ("EXECUTION_STREAM", "feed", "quantum:stream:market.bars:BTCUSDT", False),
        ("EFFICIENCY_STREAM", "efficiency", "quantum:stream:execution.result", False),
        ("EFFICIENCY_STREAM", "efficiency", "quantum:stream:apply.plan", False),
        ("PROPOSE_STREAM_NAME", "proposer", "quantum:stream:execution.result", False),
        ("PROPOSE_STREAM_NAME", "proposer", "two words", False),
        ("PROPOSE_STREAM_NAME", "proposer", "quantum:stream:allocation.target.proposed", True),
        ("STREAM_PLANS", "feed", "quantum:universe", False),
    ],
)
def test_a_stream_setting_names_no_key_of_another(name: str, service: str, text: str, good: bool) -> None:
    """A mistyped stream reaches no key of ours that is no stream, and no stream of another service."""
    if good:
        assert load([service], {name: text}).warnings == ()
    else:
        (error,) = errors_of({name: text}, [service])
        assert error.startswith(f"{name}='{text}': expected the name of a stream")


def test_metrics_port_is_the_port_of_a_service_without_a_variable_of_its_own() -> None:
    """METRICS_PORT moves portfolio and leaves allocation, which has P29_METRICS_PORT."""
    assert load(["portfolio"], {"METRICS_PORT": "9100"}).services["portfolio"].port == 9100
    assert load(["allocation"], {"METRICS_PORT": "9100"}).services["allocation"].port == 8059
    assert load(["allocation"], {"P29_METRICS_PORT": "9100"}).services["allocation"].port == 9100


def test_metrics_port_is_refused_when_several_services_run_in_one_process() -> None:
    """One port has no room for two services; twice the same name is one service."""
    (error,) = errors_of({"METRICS_PORT": "9100"}, ["feed", "portfolio"], together=True)
    assert error.startswith("METRICS_PORT='9100': expected nothing when several services run in one process")
    assert load(["feed", "feed"], {"METRICS_PORT": "9100"}).services["feed"].port == 9100
    assert load(["feed", "portfolio"], {"METRICS_PORT": ""}).services["feed"].port == 8045


GOOD: list[tuple[str, str, type, str, object]] = [
    ("P29_INTERVAL_SEC", " 2.5\r", AllocationOptions, "interval_s", 2.5),
    ("P29_INTERVAL_SEC", "1e1", AllocationOptions, "interval_s", 10.0),
    ("P29_INTERVAL_SEC", "+.5", AllocationOptions, "interval_s", 0.5),
    ("P29_INTERVAL_SEC", "", AllocationOptions, "interval_s", 5.0),
    ("P29_INTERVAL_SEC", "  ", AllocationOptions, "interval_s", 5.0),
    ("TARGET_TTL_SEC", "+0600", AllocationOptions, "target_ttl_s", 600),
    ("P29_MODE", " ENFORCE ", AllocationOptions, "mode", Mode.ENFORCE),
    ("P28_MODE", "enforce", BudgetOptions, "mode", Mode.ENFORCE),
    ("UNMAPPED_CLUSTER_POLICY", "Exempt", AllocationOptions, "unmapped_cluster_policy", "exempt"),
    ("PAPER_BOOK", "YES", FeedOptions, "paper_book", True),
    ("PAPER_BOOK", "off", FeedOptions, "paper_book", False),
    ("QA_FEED_CANDLES", "/a.csv: /b c.csv.gz", FeedOptions, "candles", (Path("/a.csv"), Path("/b c.csv.gz"))),
    ("QA_FEED_SPEED", "60", FeedOptions, "speed", 60.0),
    ("QA_BALANCE_STALE_SEC", "30", PortfolioOptions, "balance_stale_s", 30),
]


@pytest.mark.parametrize(("name", "text", "group", "field", "value"), GOOD)
def test_a_good_value_is_read(name: str, text: str, group: type, field: str, value: object) -> None:
    """Whitespace around a value is dropped, empty text is not set, words are case-folded."""
    found = getattr(load_all({name: text}).of(group), field)
    assert found == value
    assert type(found) is type(value)


def test_common_settings_are_read() -> None:
    """Symbols are a tuple without repeats, levels are upper case, directories are paths."""
    environ = {"QA_SYMBOLS": "BTCUSDT, ETHUSDT,BTCUSDT", "LOG_LEVEL": "debug", "STATE_DIRECTORY": "/var/lib/quantum"}
    common = load([], environ).common
    assert common.symbols == ("BTCUSDT", "ETHUSDT")
    assert common.log_level == "DEBUG"
    assert common.state_directory == Path("/var/lib/quantum")


def test_the_state_directory_is_in_the_home_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A leading ~ is the environment's HOME; where nobody knows a home, that is said."""
    assert load([], {"HOME": "/home/q"}).common.state_directory == Path("/home/q/.local/state/quantum-alloc")
    assert load([], {"HOME": "/home/q", "STATE_DIRECTORY": "~"}).common.state_directory == Path("/home/q")
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    (error,) = errors_of({"HOME": "relative"})
    assert error.startswith("STATE_DIRECTORY=")
    assert "home" in error


MODES = ["Enforced", "enforce # go", "on", "1", "enforc", "ENFORCE!", "\u00a0enforce", "enforce enforce", "шadow"]


@pytest.mark.parametrize("text", MODES)
def test_a_mode_is_never_an_error(text: str) -> None:
    """What is not exactly enforce is shadow, with one warning and the variable's name for a metric."""
    found = load_all({"P29_MODE": text})
    assert found.of(AllocationOptions).mode is Mode.SHADOW
    assert found.unrecognised_modes == ("P29_MODE",)
    (warning,) = found.warnings
    assert warning.startswith(f"P29_MODE={text!r}: ")
    assert ("inline comment" in warning) == ("#" in text)


@pytest.mark.parametrize("text", ["", " ", "shadow", "Shadow ", "enforce"])
def test_a_recognised_mode_gives_no_warning(text: str) -> None:
    """Absent, empty, shadow and enforce are nothing to warn of."""
    found = load_all({"P28_MODE": text})
    assert found.warnings == ()
    assert found.unrecognised_modes == ()


@dataclass(frozen=True, slots=True)
class Later:
    """A group such as a later service may have."""

    mode: ApplyMode = var("APPLY_MODE", ApplyMode.DRY_RUN)  # noqa: RUF009 - a field


@pytest.mark.parametrize(
    ("text", "mode", "warned"),
    [
        ("", ApplyMode.DRY_RUN, False),
        ("Testnet", ApplyMode.TESTNET, False),
        (" production ", ApplyMode.PRODUCTION, False),
        ("dry_run", ApplyMode.DRY_RUN, False),
        ("prod", ApplyMode.DRY_RUN, True),
        ("production # now", ApplyMode.DRY_RUN, True),
    ],
)
def test_an_apply_mode_that_is_none_is_dry_run(text: str, mode: ApplyMode, warned: bool) -> None:
    """APPLY_MODE is dry_run, testnet or production; anything else is dry_run with a warning."""
    found = read([Later], {"APPLY_MODE": text})
    assert found.get(Later).mode is mode
    assert (found.unrecognised_modes == ("APPLY_MODE",)) is warned
    assert bool(found.warnings) is warned


UNKNOWN: list[tuple[str, str]] = [
    ("P29_MOD", "P29_MODE"),
    ("P29_INTERVALL_SEC", "P29_INTERVAL_SEC"),
    ("P28_MODUS", "P28_MODE"),
    ("P31_W_VOLA", "P31_W_VOL"),
    ("GOV_MAX_EXEC_PER_HOURS", "GOV_MAX_EXEC_PER_HOUR"),
    ("QA_SYMBOL", "QA_SYMBOLS"),
    ("QA_FEED_CANDELS", "QA_FEED_CANDLES"),
    ("QA_XYZZY", ""),
    ("P32_SOMETHING", ""),
    ("GOV_", ""),
    ("TARGET_TTL_SECS", "TARGET_TTL_SEC"),
    ("REGIME_FACTOR_TRND", "REGIME_FACTOR_TREND"),
    ("CLUSTER_STRES_MIN", "CLUSTER_STRESS_MIN"),
    ("DD_LOW_TRESHOLD", "DD_LOW_THRESHOLD"),
    ("PERF_FACTOR_MX", "PERF_FACTOR_MAX"),
    ("MAX_SYMBOL_PERCENT", "MAX_SYMBOL_PCT"),
    ("MIN_BUDGET", "MIN_BUDGET_K"),
    ("STALE_DATA_SECS", "STALE_DATA_SEC"),
    ("REDIS_PASSWORD_FIEL", "REDIS_PASSWORD_FILE"),
    ("APPLY_MODUS", "APPLY_MODE"),
    ("EWMA_ALPA", "EWMA_ALPHA"),
    ("ATTRIBUTION_TTL_SECS", "ATTRIBUTION_TTL_SEC"),
    ("LOG_LEVL", "LOG_LEVEL"),
    ("METRICS_PORTS", "METRICS_PORT"),
]


@pytest.mark.parametrize(("name", "meant"), UNKNOWN)
def test_an_unknown_name_that_looks_like_ours_is_an_error_with_a_suggestion(name: str, meant: str) -> None:
    """Our own prefixes are always told; names of shared families as near misses; the value is never shown."""
    (error,) = errors_of({name: CANARY})
    assert error.startswith(f"{name}: no service knows this variable")
    assert ("did you mean" in error) == bool(meant)
    if meant:
        assert error.endswith(f"did you mean {meant}?")
    assert CANARY not in error


OTHERS = """
DD_API_KEY DD_ENV DD_SERVICE DD_VERSION DD_TRACE_ENABLED DD_AGENT_HOST DD_LOGS_INJECTION DD_SITE
REDIS_PORT_6379_TCP REDIS_PORT_6379_TCP_ADDR REDIS_PORT_6379_TCP_PORT REDIS_PORT_6379_TCP_PROTO REDIS_SERVICE_HOST
REDIS_SERVICE_PORT REDIS_VERSION REDIS_DOWNLOAD_SHA
LOG_FILE LOG_DIR LOGNAME MAX_JOBS MAX_WORKERS MIN_REPLICAS TARGET_ARCH TARGET_ENV STATE_STORE STREAM_NAME
METRICS_ENABLED FEED_URL BASE_URL ALPHA_MODE EXECUTION_ROLE CLOCK_SKEW PERF_EXEC_PATH APPLY_PATCH CLUSTER_NAME
HOME PATH LANG LC_ALL USER SHELL PWD TZ TERM PYTHONPATH HOSTNAME NOTIFY_SOCKET WATCHDOG_USEC INVOCATION_ID
JOURNAL_STREAM SYSTEMD_EXEC_PID LOGS_DIRECTORY RUNTIME_DIRECTORY CACHE_DIRECTORY QA_TEST_PROFILE p29_mode
"""


def test_names_of_other_programs_stop_nothing() -> None:
    """What a monitoring agent, a container platform, a shell and systemd set is left alone."""
    found = load_all(dict.fromkeys(OTHERS.split(), "anything # at all"))
    assert found.warnings == ()
    assert found.given == frozenset()


def test_variables_of_later_services_are_accepted_and_ignored() -> None:
    """An env file of the whole contract starts every service, whatever the values of services not here yet."""
    groups: tuple[type, ...] = (CommonOptions, *GROUPS.values())
    found = load_all(dict.fromkeys(CONTRACT_VARIABLES - {v.spec.env for g in groups for v in variables(g)}, "?"))
    assert found.warnings == ()


def test_variables_of_other_services_are_not_looked_at() -> None:
    """A bad value of a service that does not run here is that service's trouble."""
    assert load(["portfolio"], {"P29_INTERVAL_SEC": "bad", "MAX_BUDGET_K": "1"}).warnings == ()
    errors_of({"P29_INTERVAL_SEC": "bad"}, ["allocation"])


def test_retired_variables_are_warned_of_once_and_ignored() -> None:
    """Each retired variable is one warning that says what there is instead, and never shows the value."""
    found = load_all(dict.fromkeys(RETIRED, CANARY))
    assert [w.partition(":")[0] for w in found.warnings] == sorted(RETIRED)
    assert CANARY not in "".join(found.warnings)
    for name in ("GOV_TESTNET_FORCE_FLATTEN", "GOV_KILL_SCORE_OPEN_THRESHOLD", "P27_ALLOWLIST", "P28_TEST_MODE"):
        assert name in RETIRED
    assert "APPLY_CONFIG_PATH" in RETIRED


def test_a_name_is_in_one_table_only() -> None:
    """Nothing is both known and retired."""
    assert not KNOWN & set(RETIRED)


def test_a_name_that_is_no_service_is_said_with_the_list() -> None:
    """load() refuses names that it does not know."""
    (error,) = errors_of({}, ["alocation"])
    assert "'alocation'" in error
    assert all(name in error for name in GROUPS)


def test_groups_are_found_by_class_and_only_those_that_were_asked_for() -> None:
    """of() gives the group of a service that runs, and KeyError for another."""
    found = load(["budget"], {"ALPHA_HEAT": "0.5"})
    assert found.of(BudgetOptions).params().alpha_heat == 0.5
    with pytest.raises(KeyError):
        found.of(FeedOptions)


def test_every_variable_says_what_it_means() -> None:
    """Each setting has a sentence, a default that reads back, and a name of its own within its group."""
    for group in (RedisOptions, CommonOptions, *GROUPS.values()):
        names = [v.spec.env for v in variables(group)]
        assert len(names) == len(set(names))
        for v in variables(group):
            assert v.spec.help.endswith("."), v.spec.env
            assert {f.name: f.default for f in dataclasses.fields(group)}[v.field] == v.spec.default


names = st.one_of(
    st.text(max_size=30),
    st.sampled_from(sorted(KNOWN | set(RETIRED) | {"HOME"})),
    st.builds(str.__add__, st.sampled_from(OWN_PREFIXES), st.text(max_size=20)),
    st.builds(lambda n, x: n + x, st.sampled_from(sorted(KNOWN)), st.text(max_size=2)),
)
texts = st.one_of(
    st.text(max_size=40),
    st.text(st.characters(), max_size=8).map(lambda t: f"redis://{t}"),
    st.floats().map(repr),
    st.integers().map(str),
    st.sampled_from([text for _, text in BAD]),
)


@given(st.dictionaries(names, texts, max_size=12))
@settings(deadline=None)
@example({"REDIS_URL": "redis://\ud800@h"})
@example({"QA_\ud800": "\ud800", "HOME": "/\x00"})
def test_any_environment_is_read_or_refused(environ: dict[str, str]) -> None:
    """Whatever text the environment holds, the answer is settings or a SettingsError that can be printed."""
    found = outcome(environ)
    if isinstance(found, SettingsError):
        assert found.errors
        assert all(text.isprintable() for text in found.errors)
    else:
        found.of(BudgetOptions).params()
        found.of(AllocationOptions).params()
        assert all(text.isprintable() for text in found.warnings)
        assert repr(found)


@given(st.floats(allow_nan=False, allow_infinity=False), st.sampled_from(["P29_INTERVAL_SEC", "MAX_SYMBOL_PCT"]))
def test_a_number_that_is_accepted_is_read_bit_for_bit_and_within_its_range(value: float, name: str) -> None:
    """repr() of a float reads back as the same float, or is refused because of its range."""
    (variable,) = (v for v in variables(AllocationOptions) if v.spec.env == name)
    environ = {name: repr(value), "TARGET_TTL_SEC": "86400"}
    if variable.spec.holds(value):
        assert getattr(load(["allocation"], environ).of(AllocationOptions), variable.field) == value
    else:
        errors_of(environ, ["allocation"])


URLS: list[tuple[str, str, str | None]] = [
    ("redis://localhost:6379/0", "redis://localhost:6379/0", None),
    ("redis://", "redis://", None),
    (f"redis://:{CANARY}@cache/1", "redis://:***@cache/1", CANARY),
    (f"rediss://app:{CANARY}@cache:6380", "rediss://app:***@cache:6380", CANARY),
    ("redis://app:a%2Fb@cache", "redis://app:***@cache", "a/b"),
    (f"redis://{CANARY}@cache", "redis://***@cache", None),
    (f"redis://cache/0?password={CANARY}&db=1", "redis://cache/0?***", CANARY),
    (f"redis://cache?p%61ssword={CANARY}", "redis://cache?***", CANARY),
    (f"unix://:{CANARY}@/run/redis.sock?db=1", "unix://:***@/run/redis.sock?db=1", CANARY),
    ("unix:///run/redis.sock", "unix:///run/redis.sock", None),
    ("redis://[::1]:6379?db=2", "redis://[::1]:6379?db=2", None),
]


@pytest.mark.parametrize(("url", "shown", "password"), URLS)
def test_an_address_is_shown_without_its_password(url: str, shown: str, password: str | None) -> None:
    """REDIS_URL wins over the host; address() masks what may be a password, and password() gives it."""
    redis = load([], {"REDIS_URL": url, "REDIS_HOST": "elsewhere"}).redis
    assert redis.address() == shown
    assert redis.password() == password
    assert redis.url == url
    assert CANARY not in repr(redis)


def test_the_address_of_host_port_and_database() -> None:
    """Without a URL the address is made from host, port and database; IPv6 in brackets."""
    assert load([], {}).redis.address() == "redis://localhost:6379/0"
    environ = {"REDIS_HOST": "::1", "REDIS_PORT": "7000", "REDIS_DB": "2"}
    assert load([], environ).redis.address() == "redis://[::1]:7000/2"


BAD_URLS = [
    f"redis://:{CANARY}",
    f"redis://app:{CANARY}",
    f"redis://:{CANARY}/x@cache",
    f"redis://:{CANARY}#x@cache",
    f"redis://:{CANARY}@cache # comment",
    f"redis:/:{CANARY}@cache",
    f"http://app:{CANARY}@cache",
    f"{CANARY}",
    f"redis://a:{CANARY}@b@cache",
    f"unix://:{CANARY}@relative",
    f"unix://:x@/{CANARY}@/run/redis.sock",
]


@pytest.mark.parametrize("url", BAD_URLS)
def test_a_bad_address_is_refused_without_showing_a_password(url: str) -> None:
    """A URL that cannot be read is shown as its scheme at most, even with the typo inside the password."""
    (error,) = errors_of({"REDIS_URL": url})
    assert error.startswith("REDIS_URL='")
    assert CANARY not in error
    assert CANARY not in repr(RedisOptions(url=url))
    assert RedisOptions(url=url).password() is None


@given(
    st.text(st.characters(codec="utf-8"), min_size=1).map(lambda t: f"canary{t}"),
    st.sampled_from(BAD_URLS + [url for url, _, _ in URLS if f"//{CANARY}" not in url]),
)
@example("canary?", f"unix://:x@/{CANARY}@/run/redis.sock")
def test_no_password_passes_the_mask(password: str, url: str) -> None:
    """Whatever a password is made of, it is not in the masked URL, well-formed or not."""
    assert "canary" not in mask_url(url.replace(CANARY, password))


def test_the_password_comes_from_a_file(tmp_path: Path) -> None:
    """The file's text without its last newline; REDIS_PASSWORD_FILE before the credential; nothing shows it."""
    file, credentials = tmp_path / "pw", tmp_path / "credentials"
    credentials.mkdir()
    environ = {"CREDENTIALS_DIRECTORY": str(credentials)}
    assert load([], environ).redis.password() is None
    (credentials / "redis-password").write_text(f"{CANARY}-2\r\n")
    assert load([], environ).redis.password() == f"{CANARY}-2"
    file.write_text(f" {CANARY}\n")
    found = load([], environ | {"REDIS_PASSWORD_FILE": str(file)})
    assert found.redis.password() == f" {CANARY}"
    assert CANARY not in repr(found) + found.redis.address()


@pytest.mark.parametrize("content", [None, b"", b"\n", b"\xff\xfe" + CANARY.encode(), CANARY.encode() * 1000], ids=str)
def test_a_password_file_that_cannot_be_used_is_one_sentence(tmp_path: Path, content: bytes | None) -> None:
    """No file, an empty one, one that is not text or far too long: a SettingsError without what is in it."""
    file = tmp_path / "pw"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SettingsError) as caught:
        load([], {"REDIS_PASSWORD_FILE": str(file)}).redis.password()
    assert len(caught.value.errors) == 1
    assert str(caught.value).startswith(f"REDIS_PASSWORD_FILE={str(file)!r}: ")
    assert CANARY not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_directory_in_place_of_a_password_file_is_one_sentence(tmp_path: Path) -> None:
    """What cannot be opened is said, by the system's own word for it."""
    for path in (tmp_path, Path("/etc/\0")):
        with pytest.raises(SettingsError, match="REDIS_PASSWORD_FILE"):
            RedisOptions(password_file=path).password()


@pytest.mark.parametrize("query", ["protocol=3", "socket_timeout=30", "db=abc", "foo=bar", "db=1&max_connections=5"])
def test_an_address_sets_no_options_of_the_store(query: str) -> None:
    """What stands behind the question mark of REDIS_URL says where and who, and nothing else."""
    (error,) = errors_of({"REDIS_URL": f"redis://localhost?{query}"}, ["allocation"])
    assert error.startswith("REDIS_URL=")


@pytest.mark.parametrize("name", ["REDIS_HOST", "REDIS_PORT", "QA_METRICS_HOST", "P29_INTERVAL_SEC"])
def test_an_address_in_the_wrong_variable_shows_no_password(name: str) -> None:
    """The login of an address is masked wherever the address was put."""
    (error,) = errors_of({name: f"redis://app:{CANARY}@cache:6379"}, ["allocation"])
    assert CANARY not in error
    assert "redis://***@cache:6379" in error


@pytest.mark.parametrize(
    ("environ", "names"),
    [
        ({"STREAM_RESULTS": "mine:a", "EXECUTION_STREAM": "mine:a"}, ["apply"]),
        ({"STREAM_EVENTS": "mine:a", "STREAM_RESULTS": "mine:a"}, ["governor", "apply"]),
        ({"STREAM_PLANS": "mine:a", "STREAM_EVENTS": "mine:a"}, ["governor"]),
        ({"PROPOSE_STREAM_NAME": "mine:a", "EXECUTION_STREAM": "mine:a"}, ["proposer", "attribution"]),
    ],
)
def test_no_stream_serves_two_purposes(environ: dict[str, str], names: list[str]) -> None:
    """A stream given twice is told with both variables; variables that groups share are one."""
    (error,) = errors_of(environ, names, together=True)
    assert all(name in error for name in environ)
    assert "'mine:a'" in error
    assert load(names, {next(iter(environ)): "mine:a"})
