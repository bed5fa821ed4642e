"""Triton where it is installed; elsewhere a stand-in: modules import, and the first use fails, saying the fix."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import triton.language as tl

    triton: Any  # a kernel's signature means something else to its launcher: a type checker has nothing to say there
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
