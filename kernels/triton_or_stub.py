"""Triton where it is installed; elsewhere a stand-in that lets modules import and fails, with the fix, at the first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import triton
    import triton.language as tl

    HAS_TRITON: bool
else:
    try:
        import triton
        import triton.language as tl

        HAS_TRITON = True
    except ImportError:
        HAS_TRITON = False

        class _Missing:
            """Every attribute is another stand-in; `@jit` leaves the function alone; a launch raises."""

            constexpr = object

            def jit(self, fn=None, **options):
                return self

            def __getattr__(self, name):
                if name.startswith("__"):
                    raise AttributeError(name)
                return self

            def __getitem__(self, grid):
                return self

            def __call__(self, *args, **kwargs):
                raise ImportError(
                    "CUDA tensors need triton: pip install triton (Linux), or move the tensors to the CPU"
                )

        triton = tl = _Missing()

__all__ = ["HAS_TRITON", "tl", "triton"]
