"""What is measured, each in a file: times, peak memory, the machine's ceilings, the start."""
