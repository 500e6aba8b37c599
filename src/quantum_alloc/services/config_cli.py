"""``quantum-alloc config``: check, show, document and exemplify the settings.

    check [SERVICE...] [--env-file FILE]     every error and warning; exit 78 where there are errors
    show [SERVICE...] [--format table|json]  every setting as it counts, with where it comes from; secrets masked
    docs settings|metrics|logs|keys|alerts   the reference pages, as Markdown
    example SERVICE                          an env file with every variable at its default, commented out
    deploy DIR                               units, users, env files, rights and what watches them, at the defaults;
                                             Prometheus' jobs on the ports of the settings
    acl, redis                               the rights and the settings that the server needs; see ``acl_cli``

Named services are checked as ``run`` with the same names would; without names, each by itself.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from quantum_alloc.services import acl_cli, logs
from quantum_alloc.services import show as view
from quantum_alloc.services.env_file import parse_bytes
from quantum_alloc.services.options import GROUPS, Settings, load, port_variables
from quantum_alloc.services.settings import SettingsError, variables
from quantum_alloc.services.settings_docs import example_file, settings_page
from quantum_alloc.services.values import render

DONE, NOT_WRITTEN, USAGE, BAD_SETTINGS = 0, 1, 2, 78


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``config``; the parsed arguments carry ``handler(args, environ) -> exit code``.

    Args:
        subparsers: of the command line.
    """
    config = subparsers.add_parser("config", help="check, show or document the settings")
    commands = config.add_subparsers(dest="config_command", required=True, metavar="COMMAND")
    names = ", ".join(GROUPS)

    one = commands.add_parser("check", help="list every mistake in the environment or in an env file")
    one.add_argument("names", nargs="*", metavar="SERVICE", help=f"{names}; none: all of them")
    one.add_argument("--env-file", metavar="FILE", help="check this file, as systemd reads it, and not the environment")
    one.set_defaults(handler=check)

    two = commands.add_parser("show", help="every setting as it counts, and where it comes from")
    two.add_argument("names", nargs="*", metavar="SERVICE", help=f"{names}; none: all of them")
    two.add_argument("--format", choices=("table", "json"), default="table")
    two.set_defaults(handler=show)

    three = commands.add_parser("docs", help="print a reference page")
    three.add_argument("page", choices=("settings", "metrics", "logs", "keys", "alerts"))
    three.set_defaults(handler=docs)

    four = commands.add_parser("example", help="print an env file with every variable at its default")
    four.add_argument("name", metavar="SERVICE", help=names)
    four.set_defaults(handler=example)

    five = commands.add_parser(
        "deploy",
        help="write units, env files, rights, alerts and dashboard into a directory",
        description="Write units, env files, rights, alerts and dashboard into a directory, at the defaults. The jobs"
        " of prometheus.yml have the ports of the settings: quantum-alloc --env-file FILE config deploy DIR.",
    )
    five.add_argument("directory", type=Path, metavar="DIR")
    five.set_defaults(handler=deploy)

    acl_cli.add_parsers(commands)


def _mistaken(names: Sequence[str], err: TextIO | None) -> bool:
    strange = [name for name in names if name not in GROUPS]
    if strange:
        told = f"quantum-alloc: {strange[0]!r} is not a service: there are {', '.join(GROUPS)}"
        print(told, file=err or sys.stderr)
    return bool(strange)


def _load(names: Sequence[str], environ: Mapping[str, str]) -> Settings:
    return load(names or list(GROUPS), environ, together=bool(names))


def check(
    args: argparse.Namespace, environ: Mapping[str, str], out: TextIO | None = None, err: TextIO | None = None
) -> int:
    """Print every error and warning.

    Args:
        args: ``names`` and ``env_file``.
        environ: the environment.
        out: where the findings go; None for standard output.
        err: where a mistake in the command goes; None for standard error.

    Returns:
        0, 78 where there are errors, 2 for a name that is no service's.
    """
    if _mistaken(args.names, err):
        return USAGE
    errors: list[str] = []
    if args.env_file is not None:
        try:
            raw = Path(args.env_file).read_bytes()
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or "not a path"
            print(f"quantum-alloc: {args.env_file!r} cannot be read: {why}", file=err or sys.stderr)
            return BAD_SETTINGS
        environ, errors = parse_bytes(raw)
    settings: Settings | None = None
    warnings: Sequence[str] = ()
    try:
        settings = _load(args.names, environ)
        warnings = settings.warnings
    except SettingsError as error:
        errors += error.errors
        warnings = error.warnings
    for text in errors:
        print(f"error: {text}", file=out)
    for text in warnings:
        print(f"warning: {text}", file=out)
    if errors or settings is None:
        print(f"{len(errors)} error{'s' if len(errors) != 1 else ''}: nothing would start.", file=out)
        return BAD_SETTINGS
    print(f"The settings of {', '.join(settings.services)} can be used; {len(settings.given)} are set.", file=out)
    return DONE


def show(
    args: argparse.Namespace, environ: Mapping[str, str], out: TextIO | None = None, err: TextIO | None = None
) -> int:
    """Print every setting as it counts.

    Args:
        args: ``names`` and ``format``.
        environ: the environment.
        out: where the settings go; None for standard output.
        err: where errors go; None for standard error.

    Returns:
        0, 78 where the settings cannot be used, 2 for a name that is no service's.
    """
    if _mistaken(args.names, err):
        return USAGE
    try:
        settings = _load(args.names, environ)
    except SettingsError as error:
        print(f"quantum-alloc: the settings cannot be used:\n{error}", file=err or sys.stderr)
        return BAD_SETTINGS
    for warning in settings.warnings:
        print(f"warning: {warning}", file=err or sys.stderr)
    rows = list(_rows(settings))
    if args.format == "json":
        print(view.as_json(rows), file=out)
    else:
        print(view.table([{**row, "value": render(row["value"])} for row in rows], _COLUMNS), file=out)
    return DONE


_COLUMNS = ("group", "variable", "value", "unit", "default", "source")


def _rows(settings: Settings) -> Iterator[dict[str, Any]]:
    services: Mapping[str, Any] = settings.services
    groups: dict[str, Any] = {"redis": settings.redis, "common": settings.common, **services}
    taken = {v.spec.env for options in services.values() for v in variables(type(options))}
    for name, options in groups.items():
        ports = port_variables(options) if name in services and settings.common.port_offset else ()
        for v in variables(type(options)):
            if name == "common" and v.spec.env in taken:
                continue  # the service's own row says what counts
            value = getattr(options, v.field)
            shown = v.spec.secret(value) if v.spec.secret and value else value
            yield {
                "group": name,
                "variable": v.spec.env,
                "value": shown if isinstance(shown, int | float) or shown is None else render(shown),
                "unit": v.spec.unit,
                "default": render(v.spec.default),
                "source": "environment" if v.spec.env in settings.given or v.spec.env in ports else "default",
            }


def docs(
    args: argparse.Namespace, environ: Mapping[str, str], out: TextIO | None = None, err: TextIO | None = None
) -> int:
    """Print a reference page.

    Args:
        args: ``page``, settings, metrics, logs, keys or alerts.
        environ: not looked at.
        out: where the page goes; None for standard output.
        err: not used.
    """
    del environ, err
    if args.page == "metrics":
        from quantum_alloc.adapters.metrics import reference_page

        print(reference_page().rstrip("\n"), file=out)
    elif args.page == "logs":
        print(logs.reference_page(), file=out)
    elif args.page == "keys":
        from quantum_alloc.adapters import registry_page

        print(registry_page.reference_page(), file=out)
    elif args.page == "alerts":
        from quantum_alloc.services import alert_files

        print(alert_files.alerts_page(), file=out)
    else:
        print(settings_page(), file=out)
    return DONE


def example(
    args: argparse.Namespace, environ: Mapping[str, str], out: TextIO | None = None, err: TextIO | None = None
) -> int:
    """Print an env file with every variable commented out at its default.

    Args:
        args: ``name``, a service.
        environ: not looked at.
        out: where the file goes; None for standard output.
        err: where a mistake in the command goes; None for standard error.

    Returns:
        0, or 2 for a name that is no service's.
    """
    del environ
    if _mistaken([args.name], err):
        return USAGE
    print(example_file(args.name), file=out)
    return DONE


def deploy(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Write what ``install`` would put, rights, rules and dashboard, as files of a directory.

    Args:
        args: ``directory``.
        environ: settings, of which the ports count for Prometheus' jobs.

    Returns:
        0, or 1 where a file cannot be written.

    Raises:
        SettingsError: the settings cannot be used, or two services have one port.
    """
    settings = load(list(GROUPS), environ, strangers_pass=True)
    from quantum_alloc.services import alert_files, dashboard, install_files

    rights = {f"redis/{name}": text for name, text in acl_cli.files().items()}
    rules = {f"prometheus/{name}": text for name, text in alert_files.files(settings).items()}
    views = {f"grafana/{name}": text for name, text in dashboard.files().items()}
    for name, text in {**install_files.copies(), **rights, **rules, **views}.items():
        path = args.directory / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            print(f"quantum-alloc: {str(path)!r} cannot be written: {error.strerror}", file=sys.stderr)
            return NOT_WRITTEN
        print(path)
    return DONE
