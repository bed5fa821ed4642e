"""The cost of a kernel's machine code, without the machine: compiled ahead of time, its instructions counted."""
