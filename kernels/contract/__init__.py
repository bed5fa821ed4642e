"""What an op declares once (spec.py), and how it is held to it: conformance, tuning, qualification."""
