"""How a call reaches its kernel: operators, the choice of a backend, compiled C++, and common checks of arguments."""
