"""The contract of an op: declared once (spec.py), and upheld by conformance, tuning and qualification."""
