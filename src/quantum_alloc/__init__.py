"""Capital allocation and pre-trade governor of a crypto trading system.

Notebooks and tests use the pure library: ``import quantum_alloc.core as qa``.
"""

__version__ = "0.1.0"
