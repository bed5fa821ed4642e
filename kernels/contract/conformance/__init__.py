"""What every registered op promises, as cases that a test suite or a new device's qualification runs."""

from .tables import FORMS, LAYOUTS, REPETITIONS, TABLES, Case, NotHere, cases, forced, repetitions

__all__ = ["FORMS", "LAYOUTS", "REPETITIONS", "TABLES", "Case", "NotHere", "cases", "forced", "repetitions"]
