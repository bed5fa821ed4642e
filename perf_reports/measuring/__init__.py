"""The measurements, one a file: times, peak memory, the machine's ceilings, the start."""
