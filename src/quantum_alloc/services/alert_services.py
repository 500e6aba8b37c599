"""Alerts about services and about Redis."""

from __future__ import annotations

from quantum_alloc.services.alert_classes import (
    CONFLICT_CODES,
    JOURNAL_CODES,
    LOGIN_CODES,
    LOST_CODES,
    REFUSING_CODES,
)
from quantum_alloc.services.alert_kit import ONE, WHO, Alert, any_of, more
from quantum_alloc.services.units import UNITS

REQUIRED = tuple(name for name, unit in UNITS.items() if not unit.paper)
OPTIONAL = (*(name for name, unit in UNITS.items() if unit.paper), "desk")
"""Services that not every installation runs: missed only where they were there within a day."""
CYCLE = "quantum_alloc_cycle_duration_seconds"
STORE_ERRORS = "quantum_alloc_store_errors_total"
OFTEN = 15
"""A cycle that fails is tried again after a second at the most: what a restart of Redis within ten costs is less."""

SERVICES = (
    Alert(
        "Services", "ServiceDown", "critical",
        f'up{{job=~"{any_of(REQUIRED)}"}} == 0\nor\n'
        f'(up{{job=~"{any_of(OPTIONAL)}"}} == 0 and max_over_time(up{{job=~"{any_of(OPTIONAL)}"}}[1d]) == 1)',
        "1m", f"{WHO} cannot be reached",
        f"No answer on its port for a minute; {', '.join(OPTIONAL)} only where they were there within a day.",
        "`systemctl status UNIT` and the journal of it; exit code 78 is a mistake in the settings.",
    ),
    Alert(
        "Services", "ServiceNotScraped", "warning",
        "\nor ".join(f'absent(up{{job="{name}"}})' for name in REQUIRED),
        "5m", "Prometheus has no job {{ $labels.job }}",
        "A service that every installation runs is no job of this Prometheus for 5 minutes.",
        "Put the job back into prometheus.yml: every other alert about the service is silent without it.",
    ),
    Alert(
        "Services", "NotReady", "critical", "quantum_alloc_ready == 0",
        "2m", f"{WHO} is not ready", "Redis is not reached, or cycles fail, for 2 minutes.",
        "`quantum-alloc status`, and `last_error` of its `/health`.",
    ),
    Alert(
        "Services", "LoopLate", "critical", "quantum_alloc_loop_late == 1",
        "0s", f"{WHO} finishes no cycle", "No cycle has finished for three intervals and 15 s: its loop hangs.",
        "systemd starts it again by its watchdog. Keep the journal (`journalctl -u UNIT`), and look at what"
        " the host was doing.",
    ),
    Alert(
        "Services", "CycleAbove2s", "warning",
        f'increase({CYCLE}_count[5m]) - ignoring (le) increase({CYCLE}_bucket{{le="2.0"}}[5m]) > 0.5',
        "0s", f"{WHO} took more than 2 s for a cycle", "A cycle of the last 5 minutes took longer than 2 s.",
        "Look at Redis (`SLOWLOG GET`), the host's load and the number of symbols.",
    ),
    Alert(
        "Services", "Restarts", "warning", "changes(quantum_alloc_start_timestamp_seconds[1h]) > 3",
        "0s", f"{WHO} was started {{{{ $value }}}} times within an hour", "More than 3 restarts in an hour.",
        "`journalctl -u UNIT` says why it ended: out of memory, the watchdog, a programming error.",
    ),
    Alert(
        "Services", "CycleErrors", "critical",
        more('quantum_alloc_cycles_total{outcome="error"}', "10m"),
        "0s", f"{WHO} has given up cycles for a programming error",
        "Any cycle within 10 minutes ended in a programming error.",
        "The log has the error, at DEBUG with its traceback: report it. Nothing was written in these cycles.",
    ),
    Alert(
        "Services", "SymbolErrors", "warning", more("quantum_alloc_symbol_errors_total", "10m"),
        "0s", f"{WHO} leaves symbols out for a programming error",
        "Any step of a symbol failed within 10 minutes: it is left out, the others go on.",
        "The log names the symbol and has the traceback: report it.",
    ),
    Alert(
        "Services", "NothingWritten", "warning",
        f'{more("""quantum_alloc_cycles_total{job!="proposer", outcome="nothing"}""", "5m")}\n'
        f'unless sum by ({ONE}) (increase(quantum_alloc_cycles_total{{outcome="ok"}}[5m])) > 0',
        "10m", f"{WHO} has written nothing for 15 minutes",
        "Cycles end, but none of the last 15 minutes could write; a regime needs `REGIME_WINDOW` bars first. The"
        " proposer has nothing to write while P2.9 is in shadow.",
        "`nothing_written` of its `/health` says why: a missing portfolio, too few bars, a state that is not trusted.",
    ),
    Alert(
        "Services", "LogErrors", "warning",
        'time() - quantum_alloc_last_log_line_timestamp_seconds{level="ERROR"} < 600',
        "0s", f"{WHO} has logged an error", "An ERROR line within 10 minutes.",
        "`journalctl -p err -u UNIT`.",
    ),
    Alert(
        "Services", "LogWarnings", "info", more('quantum_alloc_log_lines_total{level="WARNING"}', "10m", 30),
        "0s", f"{WHO} logs many warnings", "More than 30 WARNING lines in 10 minutes: something comes and goes.",
        "`journalctl -p warning -u UNIT`.",
    ),
    Alert(
        "Services", "ModeNotUnderstood", "warning", "quantum_alloc_mode_unrecognised == 1",
        "1m", f"{WHO} does not understand its mode and runs in shadow",
        "The text of its mode variable is no mode: it runs in shadow, or in dry_run.",
        "`quantum-alloc config check` names the variable; mend it in the service's env file and restart.",
    ),
    Alert(
        "Services", "TwoBuilds", "warning", "count(count by (version) (quantum_alloc_build_info)) > 1",
        "10m", "{{ $value }} versions run side by side", "Services of more than one version for 10 minutes.",
        "Finish the installation or take it back: `quantum-alloc status` shows each service's version.",
    ),
    Alert(
        "Services", "TwoConfigurations", "warning",
        "count by (job) (count by (job, config) (quantum_alloc_build_info)) > 1",
        "10m", "{{ $value }} configurations of {{ $labels.job }} run side by side",
        "Instances of one service that decide by different numbers for 10 minutes.",
        "Compare their env files, and restart the one that was forgotten.",
    ),
    Alert(
        "Services", "TooManySymbols", "warning", "quantum_alloc_dropped_symbols > 0",
        "1m", f"{WHO} leaves {{{{ $value }}}} symbols out", "There are symbols beyond `MAX_SYMBOLS`.",
        "Clean the universe, or raise `MAX_SYMBOLS`.",
    ),
    Alert(
        "Services", "RefusedNames", "info", "quantum_alloc_refused_names > 0",
        "5m", f"{WHO} finds {{{{ $value }}}} names that are no symbols", "Names that break the pattern, for 5 minutes.",
        "Find the program that writes them; they are left out.",
    ),
)  # fmt: skip
REDIS = (
    Alert(
        "Redis", "RedisLogin", "critical", more(f'{STORE_ERRORS}{{code=~"{any_of(LOGIN_CODES)}"}}', "5m", by="code"),
        "0s", f"{WHO} is not let in: {{{{ $labels.code }}}}",
        "A wrong or missing password, right or certificate within 5 minutes.",
        "Compare user, password file and rights with `quantum-alloc config acl`; waiting does not help.",
    ),
    Alert(
        "Redis", "RedisRefuses", "critical",
        more(f'{STORE_ERRORS}{{code=~"{any_of(REFUSING_CODES)}"}}', "5m", OFTEN, by="code"),
        "0s", f"Redis refuses {WHO}: {{{{ $labels.code }}}}",
        f"More than {OFTEN} cycles in 5 minutes were refused by the server: full, read-only, loading, evicting, busy.",
        "`redis-cli INFO`: memory, persistence, replication; `evicting` wants `maxmemory-policy noeviction`.",
    ),
    Alert(
        "Redis", "RedisUnreachable", "warning",
        more(f'{STORE_ERRORS}{{code=~"{any_of(LOST_CODES)}"}}', "5m", OFTEN),
        "0s", f"{WHO} loses Redis", f"More than {OFTEN} cycles in 5 minutes without an answer of Redis.",
        "Is Redis up and fast (`redis-cli --latency`)? If it stays away, QuantumAllocNotReady follows.",
    ),
    Alert(
        "Redis", "RedisConflicts", "warning",
        more(f'{STORE_ERRORS}{{code=~"{any_of(CONFLICT_CODES)}"}}', "10m", 5),
        "0s", f"{WHO} meets another writer of its state", "More than five cycles in 10 minutes ended as a conflict.",
        "Two instances of one service run: end one of them.",
    ),
    Alert(
        "Redis", "JournalFails", "critical",
        more(f'{STORE_ERRORS}{{code=~"{any_of(JOURNAL_CODES)}"}}', "5m"),
        "0s", f"{WHO} cannot write its journal",
        "Any cycle of the last 5 minutes was given up because the journal could not be written.",
        "The disk of its state directory: full, read-only, or not the service's own.",
    ),
    Alert(
        "Redis", "WritesRefused", "warning", more("quantum_alloc_write_refused_total", "10m", by="code"),
        "0s", f"Redis refuses keys of {WHO}: {{{{ $labels.code }}}}", "Any command refused alone within 10 minutes.",
        "The log names the key: it holds another type; delete it.",
    ),
    Alert(
        "Redis", "ServerUnsafe", "warning",
        'sum by (what) (quantum_alloc_server_lacks{what=~"noeviction|appendonly|settings"}) > 0',
        "1m", "The server of {{ $value }} services lacks {{ $labels.what }}",
        "Without `noeviction` or `appendonly` permits and targets can vanish; `settings`: it does not tell.",
        "`quantum-alloc config redis` prints what to set.",
    ),
    Alert(
        "Redis", "ServerAlone", "info", 'sum by (what) (quantum_alloc_server_lacks{what="min_replicas"}) > 0',
        "1m", "The server of {{ $value }} services takes writes that no replica has",
        "`min-replicas-to-write` is 0: a failover may lose writes. Right where there is no replica.",
        "With a replica: `min-replicas-to-write 1`.",
    ),
    Alert(
        "Redis", "ServerReplaced", "warning", more("quantum_alloc_store_epoch_changes_total", "1h"),
        "0s", f"{WHO} found another run of the server", "Redis was restarted or failed over within an hour.",
        "Did it lose writes? `quantum-alloc status` shows holds and what was put back.",
    ),
)  # fmt: skip
