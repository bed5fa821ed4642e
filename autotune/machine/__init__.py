"""What machine code costs, without the machine: compiled ahead of time, and counted."""
