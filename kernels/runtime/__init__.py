"""How a call reaches its kernel: operators, the choice of a backend, compiled C++, and what arguments are asked."""
