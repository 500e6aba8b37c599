"""``python -m quantum_alloc.services NAME...`` is ``quantum-alloc run NAME...``."""

import sys

from quantum_alloc.services.cli import main

if __name__ == "__main__":
    sys.exit(main(["run", *sys.argv[1:]]))
