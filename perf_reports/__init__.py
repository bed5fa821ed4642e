"""Measurements, rooflines and reports; `studies` holds one experiment per system."""
