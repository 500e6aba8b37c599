"""``quantum-alloc``: run services, the demo, status, configuration.

Exit codes: 0 done; 1 a service that is not well in ``status``, red in ``status --inputs``, or a check that failed; 2 a
mistake in the command; 65 candles that cannot be used; 69 Redis does not answer; 70 a check of the demo failed; 78 a
mistake in the settings, or a port that is taken.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

from quantum_alloc import __version__
from quantum_alloc.adapters.candles import CandleError
from quantum_alloc.adapters.clock import Clock, SetClock, WallClock
from quantum_alloc.adapters.codec import symbol as valid_symbol
from quantum_alloc.adapters.embedded import EmbeddedServer, ServerError
from quantum_alloc.adapters.keys import Keys
from quantum_alloc.adapters.store import Store, StoreError
from quantum_alloc.services import (
    acl_cli,
    app,
    clear_cli,
    config_cli,
    demo,
    demo_keep,
    demo_view,
    drill,
    env_file,
    governor_status,
    install,
    ledger_cli,
    logs,
    ops_cli,
    pages_cli,
    plot,
    prove_cli,
    secret_files,
    show,
    status,
    status_inputs,
    trial_cli,
    units,
)
from quantum_alloc.services.clusters import MapError
from quantum_alloc.services.http import PortTaken
from quantum_alloc.services.options import EfficiencyOptions, Settings, load
from quantum_alloc.services.settings import SettingsError

RED = 1
DONE, USAGE, BAD_CANDLES, NO_REDIS, BROKEN, BAD_SETTINGS = 0, 2, 65, 69, 70, 78


MORE_RIGHTS = ": give this command as a user with more rights, such as qa-operator, with REDIS_USERNAME"
NO_PERMITS = "No permit is on record."
HEADROOM_MOST = 20
NO_ACCOUNT = "There is no paper account: the service apply opens one."


class Mistake(Exception):
    """A mistake in the command; the text is one sentence with the way out."""


def _symbols(text: str) -> tuple[str, ...]:
    names = tuple(sorted({n for n in text.split(",") if n}))
    bad = [n for n in names if valid_symbol(n.encode("utf-8", "replace")) is None]
    if bad or not names:
        raise argparse.ArgumentTypeError(f"{text!r}: symbols are 2 to 30 capital letters or digits, joined by commas")
    return names


def _at_least_one(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) <= 10**9):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to 1,000,000,000")
    return int(text)


def _seed(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) <= 4_294_967_295):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to 4,294,967,295")
    return int(text)


def _speed(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.001 <= value <= 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0.001 to 1,000,000")
    return value


def _candle_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--candles", metavar="FILE", nargs="+", default=[], help="candle files (.csv, .csv.gz); none: simulated"
    )
    parser.add_argument("--symbols", type=_symbols, default=(), metavar="A,B", help="only these symbols")
    parser.add_argument("--seed", type=_seed, default=None, metavar="N", help="seed of the simulator (7)")
    parser.add_argument("--speed", type=_speed, default=None, metavar="X", help="pace, times real time")
    parser.add_argument("--strict", action="store_true", help="stop at the first malformed candle")


def command_line() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="quantum-alloc",
        description="Capital allocation and pre-trade governor: decides, every few seconds and explainably, how much "
        "each symbol may hold.",
    )
    parser.add_argument("--version", action="version", version=f"quantum-alloc {__version__}")
    parser.add_argument(
        "--env-file", dest="beneath", type=Path, metavar="FILE", help="settings for what the environment does not set"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="run one or several services in this process")
    run.add_argument("names", nargs="+", metavar="NAME", help=", ".join(app.SERVICES))
    run.add_argument("--once", action="store_true", help="one cycle, no port, then exit")
    run.add_argument(
        "--now", type=trial_cli.epoch, metavar="EPOCH", help="with --once: the clock, unix seconds or ISO-8601"
    )
    _candle_flags(run)
    run.set_defaults(handler=_run)

    show_demo = commands.add_parser("demo", help="the whole chain on simulated time, on a server of its own")
    _candle_flags(show_demo)
    length = show_demo.add_mutually_exclusive_group()
    length.add_argument("--bars", type=_at_least_one, default=1000, metavar="N", help="how many bars (1000)")
    length.add_argument("--forever", action="store_true", help="until Ctrl-C; a bar a second unless --speed is given")
    show_demo.add_argument(
        "--keep",
        nargs="?",
        const="all",
        choices=("all", "server"),
        help="leave it all running and say how to reach it; server: the server alone, its records standing still",
    )
    show_demo.add_argument(
        "--drill", action="store_true", help="add a burst with its disarm, a kill and a rearm, and a balance shock"
    )
    show_demo.add_argument("--report", type=Path, metavar="FILE.html", help="write a page about the run")
    show_demo.add_argument("--format", choices=("table", "json"), default="table")
    show_demo.set_defaults(handler=_demo)

    state = commands.add_parser(
        "status",
        help="services, modes, ages of inputs, gates and windows, last cycle",
        description="Services, modes, ages of inputs, gates and windows, last cycle. Exit code 1 where a service that "
        "the installation needs (those of quantum-alloc.target) is not reached or not ready, where feed, apply or desk "
        "answers and is not ready, or where a service works on another Redis; 69 where Redis does not answer.",
    )
    state.add_argument("--wide", action="store_true", help="tables as wide as they are, one line a row")
    state.add_argument(
        "--inputs",
        action="store_true",
        help="which inputs and gates decide on real data; exit code 1 also where one that counts is BLIND or off "
        "contract",
    )
    state.add_argument("--format", choices=("table", "json"), default="table")
    state.set_defaults(handler=_status)

    trial_cli.add_parsers(commands)
    prove_cli.add_parser(commands)
    ops_cli.add_parsers(commands)
    clear_cli.add_parser(commands)
    ledger_cli.add_parsers(commands)
    install.add_parsers(commands)
    config_cli.add_parser(commands)
    pages_cli.add_parsers(commands)
    return parser


def _with_candle_flags(args: argparse.Namespace, environ: Mapping[str, str]) -> dict[str, str]:
    own = dict(environ)
    given = {
        "QA_FEED_CANDLES": ":".join(args.candles),
        "QA_SYMBOLS": ",".join(args.symbols),
        "QA_FEED_SEED": "" if args.seed is None else str(args.seed),
        "QA_FEED_SPEED": "" if args.speed is None else str(args.speed),
        "QA_FEED_STRICT": "1" if args.strict else "",
    }
    own.update({k: v for k, v in given.items() if v})
    return own


def _settings(args: argparse.Namespace, environ: Mapping[str, str]) -> Settings:
    """The settings of a run, refused together with what systemd dropped from the unit's file."""
    file = units.ETC / units.UNITS[args.names[0]].env_file if args.names[0] in units.UNITS else "the settings"
    dropped = env_file.handed_over(environ, file)
    try:
        settings = load(args.names, _with_candle_flags(args, environ))
    except SettingsError as error:
        raise SettingsError([*dropped, *error.errors], error.warnings) from None
    if dropped:
        raise SettingsError(dropped, settings.warnings)
    return settings


def _run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    strange = [n for n in args.names if n not in app.SERVICES]
    if strange:
        raise Mistake(f"{strange[0]!r} is not a service: there are {', '.join(app.SERVICES)}")
    if (args.candles or args.speed is not None or args.seed is not None or args.strict) and "feed" not in args.names:
        raise Mistake(
            "--candles, --seed, --speed and --strict belong to the service feed, which is not among the names"
        )
    settings = _settings(args, environ)
    once = args.once or any(isinstance(o, EfficiencyOptions) and o.run_once for o in settings.services.values())
    timed = [n for n in ("governor", "apply", "desk") if n in args.names]
    if args.now is not None and timed:
        raise Mistake(f"the {timed[0]} takes its time from the server: leave --now out")
    if args.now is not None and not once:
        raise Mistake("--now sets the clock of one cycle: give --once too")
    logs.set_up(settings.common.log_level, settings.common.log_format)
    for warning in (*settings.warnings, *secret_files.exposed(settings)):
        logs.say(app.log, logging.WARNING, "settings", warning)
    clock: Clock = WallClock() if args.now is None else SetClock(args.now)
    if not once:
        app.run_for_good(args.names, settings, clock)
        return DONE
    trouble = app.run_once(args.names, settings, clock)
    if trouble:
        print(f"quantum-alloc: the cycle did not end: {trouble}", file=sys.stderr)
        return NO_REDIS
    return DONE


def _demo(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    plan = demo.Plan(
        candles=tuple(args.candles),
        symbols=args.symbols,
        seed=args.seed if args.seed is not None else 7,
        bars=None if args.forever else args.bars,
        speed=args.speed if args.speed is not None or not args.forever else 60.0,
        strict=args.strict,
        drill=args.drill,
        report=args.report is not None,
    )
    if args.drill and (plan.bars is None or plan.bars < drill.BARS_MIN):
        raise Mistake(f"--drill needs --bars of {drill.BARS_MIN} at least: its parts lie at shares of the whole run")
    if args.report is not None:
        plot.needs_plotly()
        _writable(args.report)
    stop, reading = _stopped_by_signals()
    logs.set_up("WARNING", "plain")
    settings = demo.settings_of(plan, environ)
    for warning in settings.warnings:
        logs.say(app.log, logging.WARNING, "settings", warning)
    if args.format == "table":
        print(demo_view.profile(demo.profile_of(settings)), flush=True)
    server = EmbeddedServer(outlive=args.keep is not None)
    kept = False
    try:
        server.start()
        with demo_view.live(sys.stdout, quiet=args.format == "json") as view:
            reading.set()
            if stop.is_set():
                return DONE
            outcome = demo.drive(plan, environ, server, stop, view, begun=reading.clear)
        report = []
        if args.report is not None:
            seed = ", ".join(plan.candles) or f"simulated, seed {plan.seed}"
            report = [f"Report: {args.report}, {demo_view.write_report(args.report, outcome, seed):.1f} MB"]
        own = demo.environ_of(plan, environ, server.directory / "state")
        left = _leave(args, own, settings.keys, server, outcome, stop)
        if left is None:
            return DONE
        found, where = left
        if args.format == "json":
            print(show.as_json({**demo_view.as_dict(outcome), **found}), flush=True)
        else:
            told = demo_view.targets(outcome.progress), demo_view.summary(outcome, [*where, *report])
            print(*told, sep="\n\n", flush=True)
        if found:  # and not before somebody could read how to reach it
            server.leave()
            kept = True
    finally:
        reading.clear()
        if not kept:
            server.stop()
    return _judged(outcome)


def _judged(outcome: demo.Outcome) -> int:
    """The exit code of a demo that came to its end."""
    if not outcome.holds:
        failed = next(c for c in outcome.checks if not c.ok)
        print(f"quantum-alloc: a check failed: {failed.name}: {failed.detail}", file=sys.stderr)
        return BROKEN
    return DONE


def _leave(
    args: argparse.Namespace,
    own: Mapping[str, str],
    keys: Keys,
    server: EmbeddedServer,
    outcome: demo.Outcome,
    stop: Event,
) -> tuple[dict[str, Any], list[str]] | None:
    """Get ready what is to go on without us: what to tell of it, and None where a signal came."""
    if args.keep is None:
        return {}, ["Look further: the option --keep leaves it all running; README.md and docs/ explain each column."]
    if not outcome.progress.bars:
        return None
    if args.keep == "server":
        demo.keep(server)
        return {"url": server.url, "pid": server.pid}, demo_view.where_server(server, outcome, keys)
    stop.clear()  # what has ended the run does not end what goes on
    goes_on = demo_keep.go_on(own, server, args.speed, outcome.progress, stop)
    if goes_on is None:
        return None
    found = {"url": server.url, "pid": server.pid, "services_pid": goes_on.pid, "env_file": str(goes_on.env_file)}
    return found, demo_view.where_all(server, goes_on, outcome.symbols[0])


def _stopped_by_signals() -> tuple[Event, Event]:
    """What a signal sets, and while what is set it ends the process at once."""
    stop, reading = Event(), Event()

    def end(*_: object) -> None:
        stop.set()
        if reading.is_set():
            raise SystemExit(DONE)  # nothing has begun: long candle files may still be read

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    return stop, reading


def _writable(path: Path) -> None:
    """Refuse a report that could not be written, before the run and not after it."""
    if path.suffix not in (".html", ".htm"):
        raise Mistake(f"{path} is no page: name a file that ends in .html")
    if path.is_dir() or not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise Mistake(f"{path} cannot be written: name a file in a directory that may be written to")


def _status_inputs(args: argparse.Namespace, settings: Settings, store: Store) -> int:
    asked, _, _ = status.asked(settings, store)
    elsewhere = [row["service"] for row in asked if row["state"] == status.ELSEWHERE]
    now = status.clock_of(settings, asked).now()
    rows, trouble, strange = status_inputs.gather(settings, store, now, elsewhere)
    store.close()
    down = status.down(asked)
    if args.format == "json":
        told = {"inputs": rows, "summary": status_inputs.summary(rows), "down": down, "trouble": trouble or strange}
        print(show.as_json(told))
    else:
        below = ("not_real", "contract")
        shown: Callable[..., str] = show.table if args.wide else partial(show.fitted, below=below)
        print(shown(rows, status_inputs.COLUMNS), "", show.wrapped(status_inputs.summary(rows)), sep="\n")
    for text in (trouble, strange):
        if text:
            print(f"quantum-alloc: {text}", file=sys.stderr)
    if trouble:
        return NO_REDIS
    return RED if _tells_down(down) or strange or status_inputs.is_red(rows) else DONE


def _tells_down(down: Sequence[str]) -> bool:
    """Tell which services are not well; True where there are any."""
    if down:
        print(f"quantum-alloc: not well: {', '.join(down)}", file=sys.stderr)
    return bool(down)


def _status(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    settings = load(list(app.SERVICES), environ, together=False)
    store = app.open_store(settings)
    if args.inputs:
        return _status_inputs(args, settings, store)
    found, trouble = status.gather(settings, store)
    store.close()
    for warning in secret_files.opened(Path(units.SECRETS)) if os.geteuid() == 0 else ():
        print(f"quantum-alloc: {warning}", file=sys.stderr)
    if args.format == "json":
        print(show.as_json({**found, "trouble": trouble}))
    else:
        columns = ("service", "port", "state", "mode", "cycles", "last_cycle_s", "ms", "note")
        lines: Callable[[str], str] = str if args.wide else show.wrapped
        shown: Callable[..., str] = show.table if args.wide else partial(show.fitted, below=("note", "blocks with"))
        print(shown(found["services"], columns))
        if found["clock_offset_s"]:
            at = demo_view.moment(WallClock().now() + found["clock_offset_s"])
            print("", lines(f"Ages are judged by the services' own clock: it is {at} UTC there."), sep="\n")
        if "server" in found:
            about = {**found["server"], "lacks": " ".join(found["server"]["lacks"]) or "nothing"}
            print("", shown([about]), *map(lines, found["server"]["lacks"].values()), sep="\n")
        if "inputs" in found:
            print("", shown(found["inputs"]), sep="\n")
            if found["clusters"]:
                print("", shown(found["clusters"]), sep="\n")
            print("", shown(found["gates"]), sep="\n")
            print("", shown([found["governor"]]), sep="\n")
            print("", shown(found["windows"]) if found["windows"] else NO_PERMITS, sep="\n")
            if found["headroom"]:
                print("", shown(found["headroom"][:HEADROOM_MOST]), sep="\n")
                if note := governor_status.note(found["headroom"]):
                    print(lines(note))
            account = found["account"]
            print("", shown([account]) if account else NO_ACCOUNT, sep="\n")
            if found["permits"]:
                print("", shown([found["permits"]]), sep="\n")
            last = found["last_cycle"]
            print("", shown([last]) if last else "No allocation cycle is on record.", sep="\n")
    if trouble:
        print(f"quantum-alloc: {trouble}", file=sys.stderr)
        return NO_REDIS
    return RED if _tells_down(found["down"]) else DONE


def main(argv: Sequence[str] | None = None, environ: Mapping[str, str] | None = None) -> int:
    """Run a command.

    Args:
        argv: its words; None for the process' own.
        environ: the environment; None for the process' own.

    Returns:
        The exit code.
    """
    words = sys.argv[1:] if argv is None else argv
    try:
        args = command_line().parse_args(words)
    except SystemExit as stop:
        if stop.code:
            acl_cli.shut(words)
        raise
    handler: Callable[[argparse.Namespace, Mapping[str, str]], int] = args.handler
    try:
        own = os.environ if environ is None else environ
        return handler(args, own if args.beneath is None else env_file.beneath(own, args.beneath))
    except SettingsError as error:
        code, text = BAD_SETTINGS, f"the settings cannot be used:\n{error}"
        acl_cli.shut(words)
    except PortTaken as error:
        code, text = BAD_SETTINGS, str(error)
    except CandleError as error:
        code, text = BAD_CANDLES, str(error)
    except plot.PlotError as error:
        code, text = USAGE, str(error)
    except MapError as error:
        code, text = BAD_SETTINGS, str(error)
    except (StoreError, ServerError) as error:
        is_right = isinstance(error, StoreError) and error.code == "NOPERM"
        code, text = NO_REDIS, f"{error}{MORE_RIGHTS if is_right else ''}"
    except Mistake as error:
        code, text = USAGE, str(error)
    except BrokenPipeError:  # the reader of a pipe has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    print(f"quantum-alloc: {text}", file=sys.stderr)
    return code
