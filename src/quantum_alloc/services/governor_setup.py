"""Builds a governor from its parts: the state directory, the consumer's name, the signing keys.

Everything that an operator can get wrong here is one sentence with the way out.
"""

from __future__ import annotations

import re
import socket
from pathlib import Path

from quantum_alloc.adapters.clock import Clock
from quantum_alloc.adapters.governor_files import KnownFile
from quantum_alloc.adapters.governor_read import Reader
from quantum_alloc.adapters.intake import Intake, Tries
from quantum_alloc.adapters.journal import InUse, Journal, state_file
from quantum_alloc.adapters.keys import LIVE, Keys, ShadowKeys
from quantum_alloc.adapters.metrics import Metrics
from quantum_alloc.adapters.permits import KEY_LIMIT_BYTES, SigningKey, read_keys
from quantum_alloc.adapters.store import Store
from quantum_alloc.core.governor_params import GovernorParams
from quantum_alloc.services.governor import Governor, Set
from quantum_alloc.services.governor_keeper import Keeper, Where
from quantum_alloc.services.settings import SettingsError

UNIT = "quantum-governor"
CREDENTIAL = "governor-signing-key"
_UNIT = re.compile(r"/(quantum-[A-Za-z0-9._@-]+)\.service(?:/|$)")


def consumer_name() -> str:
    """Host and unit: the same after a restart."""
    try:
        found = _UNIT.search(Path("/proc/self/cgroup").read_text(encoding="utf-8"))
    except OSError:
        found = None
    host = re.sub(r"[^A-Za-z0-9.-]", "-", socket.gethostname())
    return f"{host}-{found[1] if found else UNIT}"[:100]


def signing_keys(file: Path | None, credentials: Path | None) -> tuple[SigningKey, ...]:
    """The keys that sign permits; none where none are configured.

    Args:
        file: that holds them, None for none.
        credentials: systemd's directory, which may hold them.

    Raises:
        SettingsError: they are named and cannot be used; the sentence does not show what is in the file.
    """
    name, path = ("GOV_SIGNING_KEY_FILE", file) if file is not None else (f"credential {CREDENTIAL}", None)
    if file is None and credentials is not None:
        path = credentials / CREDENTIAL
    if path is None or (file is None and not path.exists()):
        return ()
    try:
        with path.open("rb") as handle:
            raw = handle.read(KEY_LIMIT_BYTES + 1)
        if file is None and not raw.strip():  # what the unit sets where there is no file
            return ()
        if len(raw) > KEY_LIMIT_BYTES:
            raise ValueError("it is too large")
        return read_keys(raw.decode("utf-8"))
    except OSError as error:
        raise SettingsError([f"{name}={str(path)!r}: cannot be read: {error.strerror}"]) from None
    except UnicodeDecodeError:
        raise SettingsError([f"{name}={str(path)!r}: it is no text"]) from None
    except ValueError as error:
        raise SettingsError([f"{name}={str(path)!r}: {error}"]) from None


def keeper(
    store: Store,
    directory: Path,
    consumer: str,
    params: GovernorParams,
    events: str,
    maxlen: int,
    *,
    journalled: bool,
    simulated: Clock | None = None,
    keys: Keys = LIVE,
) -> Keeper:
    """What keeps epoch, latch and journal.

    Args:
        store: the governor's connection.
        directory: the state directory.
        consumer: the governor's name.
        params: the numbers of the governor.
        events: stream of events.
        maxlen: about how many entries it keeps.
        journalled: whether there is a journal.
        simulated: a clock in the place of the server's.
        keys: the names.

    Raises:
        SettingsError: the directory cannot be used, or another governor has the name.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        known = KnownFile(directory / state_file(consumer, "known"))
        journal = Journal(directory, consumer, keeps=journalled)
    except InUse as error:
        raise SettingsError([str(error)]) from None
    except OSError as error:
        text = f"STATE_DIRECTORY={str(directory)!r}: the governor cannot keep its state there ({error.strerror})"
        raise SettingsError([f"{text}: name a directory that it may write to"]) from None
    return Keeper(store, Where(keys, events, maxlen, directory, consumer), params, journal, known, simulated)


def governor(
    store: Store,
    metrics: Metrics,
    settings: Set,
    keeper: Keeper,
    consumer: str,
    *,
    shadow: ShadowKeys | None,
    once: bool,
) -> Governor:
    """A governor.

    Args:
        store: its connection.
        metrics: where it counts.
        settings: what it is set to.
        keeper: of epoch, latch and journal.
        consumer: its name.
        shadow: names of the shadow lane where the hint reads it.
        once: never wait for a plan.
    """
    tries = Tries(keeper.where.directory / state_file(consumer, "tries"))
    max_age_s = settings.params.plan_max_age_s
    intake = Intake(store, settings.plans, settings.group, consumer, max_age_s, tries, once=once)
    reader = Reader(store, settings.params, keeper.where.keys, shadow)
    return Governor(store, metrics, settings, keeper.where, keeper, intake, reader)
