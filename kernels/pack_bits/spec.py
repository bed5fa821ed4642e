"""Signs as bits and back, as data: shapes, costs, rivals, samples and misuses, for conformance, reports and tuning."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..contract.misuses import misuse_of
from ..contract.registry import register
from ..contract.samples import SPECIAL, Numbers, sampled, short
from ..contract.spec import Contender, Extra, Misuse, Scaling, Sizes, Spec, Workload
from ..contract.workloads import called, compiled
from ..runtime.arguments import FLOATS
from . import PACKS, UNPACKS, by_cpp, by_triton, pack_bits, pack_bits_ref, unpack_bits, unpack_bits_ref
from .definition import DTYPES, SIGNED, UNPACKED, byte_count

# K first: torch.compile compiles once more where a row has more than one byte, as 9 elements have
_SHAPES = {"layer": {"K": 16_384, "M": 64}, "large": {"K": 262_144, "M": 64}, "ragged": {"K": 785, "M": 16_384}}
_SMALL = ({"K": 1, "M": 1}, {"K": 71, "M": 5}, {"K": 1500, "M": 3}, {"K": 64, "M": 17})
_NO_GRADIENT = "a bit has no gradient"
_TRACED = "its op is made of the public one: tests/kernels/test_pack_bits.py traces that"

# ------------------------------------------------------------------------------------------------ packing


def inputs(shape: Sizes, dtype: torch.dtype, device: torch.device, seed: int) -> tuple[Tensor]:
    """x [M, K], standard normal; integers from −2 to 2, cast."""
    numbers, size = Numbers(seed), (shape["M"], shape["K"])
    return ((numbers.normal if dtype.is_floating_point else numbers.small)(*size).to(dtype).to(device),)


def _numpy_packs(x: Tensor):
    array = x.numpy()
    return lambda: (torch.from_numpy(np.packbits(array > 0, axis=-1, bitorder="little")),)


PACKING = Workload(
    "pack bits",
    (
        Contender("tropigrad", "ours", called(pack_bits)),
        Contender("eager", "dense", called(pack_bits_ref)),
        Contender("torch.compile", "compiled", compiled(pack_bits_ref, called)),
        Contender("numpy.packbits", "peer", _numpy_packs),
    ),
    operations=lambda shape: shape["M"] * shape["K"],
    bytes=lambda shape, itemsize: shape["M"] * (shape["K"] * itemsize + byte_count(shape["K"])),
    mix="add_max",
)


@sampled
def samples(add, numbers: Numbers) -> None:
    """Special values, every dtype, ranks, ends of rows, and empty sizes."""
    special = torch.tensor([*SPECIAL, 2.0, -0.5, 1e-30])
    for dtype in DTYPES:
        x = (
            special
            if dtype.is_floating_point
            else numbers.small(70).abs()
            if not dtype.is_signed
            else numbers.small(70)
        )
        add(f"special-{short(dtype)}", x.to(dtype))
        add(f"rows-{short(dtype)}", numbers.small(4, 77).abs().to(dtype))
    for dtype in SIGNED:
        add(f"ends-{short(dtype)}", numbers.bounded(dtype, 3, 200) if dtype != torch.int64 else _ends_of(dtype))
    for dtype in (torch.uint8, torch.uint16, torch.uint32, torch.uint64):
        add(f"ends-{short(dtype)}", _ends_of(dtype))
    add("subnormal", torch.tensor([1e-40, -1e-40, 1e-45]))
    add("subnormal-float16", torch.tensor([2**-24, -(2**-24)], dtype=torch.float16))
    for K in (7, 8, 9, 63, 64, 65, 128):
        add(f"columns-{K}", numbers.normal(3, K))
    add("vector", numbers.normal(1003))
    add("four-dimensions", numbers.normal(2, 3, 4, 5))
    for M, K in ((0, 3), (3, 0), (0, 0)):
        add(f"empty-{M}x{K}", torch.ones(M, K))


def _ends_of(dtype: torch.dtype) -> Tensor:
    bounds = torch.iinfo(dtype)
    return torch.tensor([bounds.min, 0, 1, bounds.max // 2 + 1, bounds.max], dtype=dtype)


def misuses(device: torch.device) -> list[Misuse]:
    x, bad = torch.ones(2, 3, device=device), misuse_of(pack_bits)
    return [
        bad("complex", TypeError, "x is torch.complex64; expected one of float64", x.to(torch.complex64)),
        bad("scalar", ValueError, r"x has shape \(\); expected \[..., K\]", x[0, 0]),
    ]


SPEC = register(
    Spec(
        name="pack_bits",
        op=pack_bits,
        oracle=pack_bits_ref,
        inputs=inputs,
        shapes=_SHAPES,
        workloads=(PACKING,),
        variants={"": {}},
        dtypes=(*FLOATS, *SIGNED, torch.uint8),
        small_shapes=_SMALL,
        samples=samples,
        particular_misuses=misuses,
        implementations=PACKS,
        no_gradient=_NO_GRADIENT,
        middle={"K": 30_001, "M": 9},
        tuned={"cpp": (by_cpp.PACK,), "triton": (by_triton.PACK,)},
        scalings=lambda kwargs: (Scaling((1,), 0),),
        extra=Extra(inputs_at=lambda problem, dtype, device: inputs(_sizes(problem), dtype, device, 0)),
    )
)

# ------------------------------------------------------------------------------------------------ unpacking


def unpacked(bits: Tensor, like: Tensor, *, kind: str = "sign", spare: int = 0) -> Tensor:
    """unpack_bits to the dtype of `like`, without the last `spare` elements of a row."""
    return unpack_bits(bits, 8 * bits.shape[-1] - spare, kind=kind, dtype=like.dtype)


def unpacked_ref(bits: Tensor, like: Tensor, *, kind: str = "sign", spare: int = 0) -> Tensor:
    """The definition of the same."""
    return unpack_bits_ref(bits, 8 * bits.shape[-1] - spare, kind=kind, dtype=like.dtype)


def packed_inputs(shape: Sizes, dtype: torch.dtype, device: torch.device, seed: int) -> tuple[Tensor, Tensor]:
    """bits [M, ⌈K/8⌉] at random, and an element of the dtype to unpack to."""
    generator = torch.Generator().manual_seed(seed)
    bits = torch.randint(256, (shape["M"], byte_count(shape["K"])), generator=generator, dtype=torch.uint8)
    return bits.to(device), torch.ones((1, 1), dtype=dtype, device=device)


def _numpy_unpacks(bits: Tensor, like: Tensor):
    packed, dtype = bits.numpy(), like.numpy().dtype

    def call() -> tuple[Tensor]:
        signs = np.unpackbits(packed, axis=-1, bitorder="little").astype(dtype)
        signs *= 2
        signs -= 1
        return (torch.from_numpy(signs),)

    return call


UNPACKING = Workload(
    "unpack bits",
    (
        Contender("tropigrad", "ours", called(unpacked)),
        Contender("eager", "dense", called(unpacked_ref)),
        Contender("torch.compile", "compiled", compiled(unpacked_ref, called)),
        Contender("numpy.unpackbits", "peer", _numpy_unpacks),
    ),
    operations=lambda shape: shape["M"] * shape["K"],
    bytes=lambda shape, itemsize: shape["M"] * (shape["K"] * itemsize + byte_count(shape["K"])),
    mix="add_max",
)


@sampled
def packed_samples(add, numbers: Numbers) -> None:
    """Every byte in every dtype and kind, all numbers of spare bits, ranks and empty sizes."""
    every = torch.arange(256).to(torch.uint8)
    for dtype in UNPACKED:
        like = torch.ones((1, 1), dtype=dtype)
        for kind in ("sign", "step") if dtype.is_signed else ("step",):
            add(f"every-byte-{kind}-{short(dtype)}", every, like, kind=kind)
            add(f"ragged-{kind}-{short(dtype)}", every.view(16, 16), like, kind=kind, spare=5)
    one = torch.ones(1, 1)
    for spare in range(8):
        add(f"spare-{spare}", every.view(64, 4), one, spare=spare)
    add("four-dimensions", every.view(2, 4, 4, 8), one)
    for M, count in ((0, 3), (3, 0), (0, 0)):
        add(f"empty-{M}x{count}", torch.ones(M, count, dtype=torch.uint8), one)


def packed_misuses(device: torch.device) -> list[Misuse]:
    bits, bad = torch.zeros(2, 3, dtype=torch.uint8, device=device), misuse_of(unpack_bits)
    return [
        bad("list", TypeError, "bits is a list; expected a torch.Tensor", [1], 8),
        bad("sparse", TypeError, "bits has layout torch.sparse_coo", bits.to_sparse(), 24),
        bad("dtype", TypeError, "bits is torch.int8; expected uint8", bits.to(torch.int8), 24),
        bad("size", ValueError, r"bits has shape \(2, 3\) and size is 25; expected \[..., 4\]", bits, 25),
        bad("short", ValueError, r"bits has shape \(2, 3\) and size is 16; expected \[..., 2\]", bits, 16),
        bad("scalar", ValueError, r"bits has shape \(\) and size is 8; expected \[..., 1\]", bits[0, 0], 8),
        bad("negative", ValueError, "size is -1; expected an integer of at least 0", bits, -1),
        bad("float", ValueError, "size is 24.0; expected an integer", bits, 24.0),
        bad("kind", ValueError, "kind is 'both'; expected 'sign' .* or 'step'", bits, 24, kind="both"),
        bad("complex", TypeError, "dtype is torch.complex64; expected one of float64", bits, 24, dtype=torch.complex64),
        bad("no-minus", ValueError, "dtype is torch.uint8, which holds no −1; expected kind='step'", bits, 24,
            dtype=torch.uint8),
    ]  # fmt: skip


def _sizes(problem) -> Sizes:
    return {letter: int(problem[letter]) for letter in ("M", "K")}


UNPACK_SPEC = register(
    Spec(
        name="unpack_bits",
        op=unpacked,
        oracle=unpacked_ref,
        inputs=packed_inputs,
        shapes=_SHAPES,
        workloads=(UNPACKING,),
        variants={"sign": {}, "ragged-step": {"kind": "step", "spare": 3}},
        dtypes=(*FLOATS, *SIGNED),
        small_shapes=_SMALL,
        samples=packed_samples,
        particular_misuses=packed_misuses,
        is_wrapped=True,
        implementations=UNPACKS,
        no_gradient=_NO_GRADIENT,
        middle={"K": 30_001, "M": 9},
        left_out=dict.fromkeys(
            ("jit_trace", "fx_trace"), "its size is a shape's: tests/kernels/test_pack_bits.py traces it"
        ),
        tuned={"cpp": (by_cpp.UNPACK,), "triton": (by_triton.UNPACK,)},
    )
)
