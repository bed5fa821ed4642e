"""Triton where it is installed; elsewhere a stand-in: modules import, and the first use fails, saying the fix."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import triton.language as tl

    class gl(Any):  # layouts are made of constants, which a type checker does not see evaluated
        constexpr = Any

    triton: Any  # a kernel's signature means something else to its launcher: a type checker has nothing to say there
    gluon: Any
    async_copy: Any
    HAS_TRITON: bool
    HAS_GLUON: bool
else:

    class _Missing:
        """Every attribute is another stand-in; `@jit` leaves the function alone; a launch raises."""

        class constexpr:
            def __init__(self, value):
                self.value = value

        def jit(self, fn=None, **options):
            return self

        def __getattr__(self, name):
            if name.startswith("__"):
                raise AttributeError(name)
            return self

        def __getitem__(self, grid):
            return self

        def __call__(self, *args, **kwargs):
            raise ImportError("CUDA tensors need triton: pip install triton (Linux), or move the tensors to the CPU")

    try:
        import triton
        import triton.language as tl

        HAS_TRITON = True
    except ImportError:
        HAS_TRITON = False
        triton = tl = _Missing()

    try:  # experimental in Triton: a version may move it
        from triton.experimental import gluon
        from triton.experimental.gluon import language as gl
        from triton.experimental.gluon.language.nvidia.ampere import async_copy

        HAS_GLUON = True
    except ImportError:
        HAS_GLUON = False
        gluon = gl = async_copy = _Missing()

__all__ = ["HAS_GLUON", "HAS_TRITON", "async_copy", "gl", "gluon", "tl", "triton"]
