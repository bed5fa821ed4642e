"""Ops on DTensors: whatever the shards, the values, winners and gradients are those of one process, bit for bit."""

import pytest

RANK = """
import itertools, math
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor, init_device_mesh
from tropigrad.kernels import tropical_conv2d, tropical_matmul, tropical_matvec
from tropigrad.nn import MaxPlusLinear

mesh, plane = init_device_mesh("cpu", (ranks,)), init_device_mesh("cpu", (2, ranks // 2))
places = {"whole": Replicate(), "batch": Shard(0), "rows": Shard(1), "columns": Shard(2), "third": Shard(3)}
torch.manual_seed(0)


def eighths(*shape):  # few of them, so that there are ties; their sums are exact
    return torch.randint(-4, 5, shape) / 8


def equal(x, y):
    return torch.equal(torch.nan_to_num(x, 77), torch.nan_to_num(y, 77))


def alike(op, arguments, placed, over=mesh, **options):
    \"""Whether values, winners and gradients are those of one process, and gradients lie where their arguments do.\"""
    alone = [x.clone().requires_grad_(x.is_floating_point()) for x in arguments]
    shared = [distribute_tensor(x, over, p) for x, p in zip(arguments, placed)]
    shared = [x.requires_grad_(x.is_floating_point()) for x in shared]
    expected = op(*alone, return_indices=True, **options)
    got = op(*shared, return_indices=True, **options)
    only = op(*shared, **options)
    whole = [x.full_tensor() for x in (got.values, got.indices, only)]
    same = [equal(x, y) for x, y in zip(whole, (*expected, expected.values), strict=True)]
    if expected.values.is_floating_point():
        upstream = eighths(*expected.values.shape)
        expected.values.backward(upstream)
        got.values.backward(distribute_tensor(upstream, over, got.values.placements))
        for x, y in zip(shared, alone):
            same += [equal(x.grad.full_tensor(), y.grad), x.grad.placements == x.placements]
    return all(same)


for semiring in ("max_plus", "min_plus", "max_times"):
    a, b = eighths(2, 5, 7), eighths(2, 7, 6)
    pairs = itertools.product(("whole", "batch", "rows", "columns"), repeat=2)
    for p, q in pairs if semiring == "max_plus" else [("columns", "rows"), ("batch", "columns")]:
        said[f"{semiring}, a {p}, b {q}"] = alike(
            tropical_matmul, (a, b), ([places[p]], [places[q]]), semiring=semiring)
    both = [Shard(2), Shard(2)], [Shard(1), Shard(1)]  # on two ranks a plane of 2 and 1
    said[f"{semiring}, K over a plane"] = alike(tropical_matmul, (a, b), both, plane, semiring=semiring)
    mixed = [Shard(2), Shard(1)], [Shard(1), Replicate()]
    said[f"{semiring}, K and rows of a plane"] = alike(tropical_matmul, (a, b), mixed, plane, semiring=semiring)
    said[f"{semiring}, one b for the batch"] = alike(
        tropical_matmul, (a, b[0]), ([Shard(0)], [Replicate()]), semiring=semiring)
    said[f"{semiring}, batches broadcast"] = alike(
        tropical_matmul, (a, b[:1]), ([Shard(0)], [Shard(0)]), semiring=semiring)
    said[f"{semiring}, shards of K that are empty"] = alike(
        tropical_matmul, (-a[..., :1].abs() - 1, b[:, :1].abs() + 1), ([Shard(2)], [Shard(1)]), semiring=semiring)
    said[f"{semiring}, K = 0"] = alike(
        tropical_matmul, (a[..., :0], b[:, :0]), ([Shard(2)], [Shard(1)]), semiring=semiring)
    said[f"{semiring}, no output"] = alike(
        tropical_matmul, (a[:, :0], b), ([Shard(2)], [Shard(1)]), semiring=semiring)
    dtypes = torch.float64, torch.float16, torch.bfloat16, torch.int32, torch.int8
    for dtype in dtypes if semiring == "max_plus" else dtypes[-1:]:
        x, y = ((8 * z).to(dtype) for z in (a, b))
        said[f"{semiring}, {dtype}"] = alike(tropical_matmul, (x, y), ([Shard(2)], [Shard(1)]), semiring=semiring)
    holes = a.clone()
    holes[:, 1, 2], holes[:, 2, 5], holes[:, 3], holes[:, 4] = math.nan, math.nan, math.nan, -math.inf
    for nan in ("propagate", "ignore"):
        said[f"{semiring}, NaN {nan}"] = alike(
            tropical_matmul, (holes, b), ([Shard(2)], [Shard(1)]), semiring=semiring, nan=nan)
    x = eighths(3, 7)
    for p, q in ((Shard(0), Replicate()), (Shard(1), Shard(1)), (Replicate(), Shard(0))):
        said[f"{semiring}, matvec {p} {q}"] = alike(tropical_matvec, (a[0], x), ([p], [q]), semiring=semiring)

a, b = eighths(5, 7), eighths(7, 6)
shared = distribute_tensor(a, mesh, [Shard(1)]), distribute_tensor(b, mesh, [Shard(0)])
said["log"] = torch.allclose(tropical_matmul(*shared, semiring="log").full_tensor(),
                             tropical_matmul(a, b, semiring="log"))
winners = tropical_matmul(*shared, return_indices=True).indices
said["the output of shards of K is whole"] = winners.placements == (Replicate(),) and winners.dtype == torch.int64

image, filters = eighths(3, 4, 6, 6), eighths(6, 4, 3, 3)
for p, q in itertools.product(("whole", "batch", "third"), ("whole", "batch", "rows")):
    said[f"images {p}, filters {q}"] = alike(tropical_conv2d, (image, filters), ([places[p]], [places[q]]), padding=1)
said["groups"] = alike(tropical_conv2d, (image, filters[:, :2]), ([Shard(0)], [Shard(0)]), groups=2)
said["one image"] = alike(tropical_conv2d, (image[0], filters), ([Shard(0)], [Shard(0)]))

layer = MaxPlusLinear(7, 6)
rows = eighths(5, 7)
expected = layer(rows)
layer.weight = torch.nn.Parameter(distribute_tensor(layer.weight.detach(), mesh, [Shard(1)]))
said["a layer whose inputs are shared out"] = torch.equal(
    layer(distribute_tensor(rows, mesh, [Shard(1)])).full_tensor(), expected)

def message(call):
    try:
        return f"none: {call()}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"

said = {"alike": said}
said["beside a tensor"] = message(lambda: tropical_matmul(shared[0], b))
said["of another mesh"] = message(lambda: tropical_matmul(shared[0], distribute_tensor(b, plane, [Shard(0), Shard(1)])))
said["sizes"] = message(lambda: tropical_matmul(shared[0], shared[0]))
x, y = (z.detach().requires_grad_() for z in shared)
(dx,) = torch.autograd.grad(tropical_matmul(x, y).square().sum(), x, create_graph=True)
said["twice"] = message(lambda: dx.sum().backward())
"""


@pytest.fixture(scope="module")
def two(run_ranks):
    return run_ranks(2, RANK)


def test_every_shard_gives_the_bits_of_one_process(two):
    for said in two:
        assert len(said["alike"]) > 60
        assert [case for case, same in said["alike"].items() if not same] == []


@pytest.mark.slow
def test_so_it_is_on_four_ranks(run_ranks):
    """Shards of a plane are then shared out twice, and those of 5 rows are of 2, 2, 1 and none."""
    for said in run_ranks(4, RANK):
        assert [case for case, same in said["alike"].items() if not same] == []


def test_errors_say_what_was_expected(two):
    for said in two:
        assert said["beside a tensor"].startswith(
            "TypeError: tropical_matmul: b is a Tensor beside a DTensor; expected"
        )
        assert said["of another mesh"].startswith("ValueError: tropical_matmul: b lies on DeviceMesh")
        assert "b has shape (5, 7); expected [..., 7, N], to follow a's (5, 7)" in said["sizes"]
        assert "once_differentiable" in said["twice"]
