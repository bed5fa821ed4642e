"""Tropical layers under torch's own data parallelism: the steps of two ranks are those of one process."""

import pytest

RANK = """
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import init_device_mesh
from torch.nn.parallel import DistributedDataParallel
from tropigrad.nn import LinearMinMax, MaxPlusConv2d, MaxPlusLinear, MinPlusConv2d, MinPlusLinear


class Layers(nn.Sequential):
    def __init__(self):
        convolutions = MaxPlusConv2d(2, 3, 3), MinPlusConv2d(3, 2, 2)
        products = MaxPlusLinear(8, 7), MinPlusLinear(7, 6)
        super().__init__(*convolutions, nn.Flatten(), *products, LinearMinMax(6, 9, 4, train_a=True))


def eighths(*shape):  # of which sums, and halves of sums, are exact
    return torch.randint(-16, 17, shape) / 8


def started():
    torch.manual_seed(0)
    model = Layers().double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(eighths(*p.shape))
    return model


def whole(x):
    return x.full_tensor() if hasattr(x, "full_tensor") else x


def trained(model, xs, share):
    optimizer, outputs = torch.optim.SGD(model.parameters(), lr=0.5), []
    for x in xs:
        optimizer.zero_grad()
        y = model(x[share])
        (y * y.detach().sign()).mean(0).sum().backward()
        optimizer.step()
    return [whole(p.detach()) for p in model.parameters()], [whole(p.grad) for p in model.parameters()]


torch.manual_seed(1)
xs = [eighths(8, 2, 5, 5).double() for _ in range(3)]
share = slice(rank * 8 // ranks, (rank + 1) * 8 // ranks)
alone = trained(started(), xs, slice(None))


def is_alone(model):
    pairs = zip(trained(model, xs, share), alone, strict=True)
    return all(torch.equal(x, y) for some, others in pairs for x, y in zip(some, others, strict=True))


said["ddp"] = is_alone(DistributedDataParallel(started()))
said["ddp, static graph"] = is_alone(DistributedDataParallel(started(), static_graph=True))
said["ddp, buckets as gradients"] = is_alone(DistributedDataParallel(started(), gradient_as_bucket_view=True))
model = started()
mesh = init_device_mesh("cpu", (ranks,))
for layer in model:
    if any(True for _ in layer.parameters()):
        fully_shard(layer, mesh=mesh)
said["fsdp"] = is_alone(fully_shard(model, mesh=mesh))
said["its parameters are shared out"] = all(len(p.to_local()) < len(p) for p in model.parameters())
said["they moved"] = not torch.equal(alone[0][0], started()[0].weight)
"""


@pytest.fixture(scope="module")
def said(run_ranks):
    return run_ranks(2, RANK)


@pytest.mark.parametrize("wrapper", ["ddp", "ddp, static graph", "ddp, buckets as gradients", "fsdp"])
def test_two_ranks_take_the_steps_of_one_process_bit_for_bit(said, wrapper):
    assert [of_rank[wrapper] for of_rank in said] == [True, True]


def test_the_steps_are_of_something(said):
    assert all(of_rank["they moved"] and of_rank["its parameters are shared out"] for of_rank in said)
