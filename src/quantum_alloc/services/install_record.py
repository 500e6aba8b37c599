"""Writes an installation into the OPS ledger, where Redis can be reached with an operator's settings."""

from __future__ import annotations

import getpass
from collections.abc import Mapping
from pathlib import Path

from quantum_alloc.adapters.ops_entry import LedgerError
from quantum_alloc.adapters.store import StoreError
from quantum_alloc.services import app, ledger_cli
from quantum_alloc.services.env_file import beneath
from quantum_alloc.services.install_files import OPERATOR
from quantum_alloc.services.options import load
from quantum_alloc.services.settings import SettingsError


def write_down(environ: Mapping[str, str], operation: str, summary: str) -> None:
    """Write it down, or say why not and how to do it later.

    Args:
        environ: the environment; an operator's settings stand beneath it.
        operation: deploy or uninstall.
        summary: what is different now.
    """
    by = environ.get("SUDO_USER") or getpass.getuser()
    try:
        own = beneath(environ, Path(OPERATOR)) if Path(OPERATOR).exists() else environ
        settings = load(list(app.SERVICES), own, together=False)
        store = app.open_store(settings)
        try:
            why = f"quantum-alloc {operation}"
            entry = ledger_cli.record(
                settings, store, operation, by, why, summary=summary, risk_class="FILESYSTEM_WRITE"
            )
        finally:
            store.close()
    except (LedgerError, StoreError, SettingsError, OSError) as error:
        told = str(error).splitlines()[0]
        print(f"The OPS ledger does not tell of it ({told}). When Redis answers:")
        words = f'--operation {operation} --by {by} --risk FILESYSTEM_WRITE --summary "{summary}" --objective TEXT'
        print(f"  quantum-alloc ledger append {words}")
        return
    print(f"Written down as {entry.id}.")
