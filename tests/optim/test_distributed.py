"""What optimizers ask of torch.distributed, of one process and of several."""

import subprocess
import sys

import pytest
import torch
import torch.distributed as dist

from tropigrad.kernels.runtime.ranks import check_group, of_ranks
from tropigrad.optim.distributed import check_equal, digest


def test_one_process_is_its_own_only_rank():
    assert of_ranks("mine", None) == ["mine"]


def test_a_digest_is_of_shapes_dtypes_and_bits():
    x = torch.arange(6.0)
    assert digest([x, x]) == digest([x.clone(), x.clone()])
    others = [[x], [x, x.view(2, 3)], [x, x.double()], [x, x + 1], [x, torch.where(x == 0, -0.0, x)]]
    assert len({digest([x, x]), *map(digest, others)}) == len(others) + 1


def test_what_differs_is_named_with_the_first_rank_that_differs():
    same = {"the weights": "a", "the settings": 1}
    check_equal("Here", [same, dict(same)], "alike")
    other = {"the weights": "b", "the settings": 2}
    message = "Here: ranks 0 and 1 differ in the weights, the settings; expected alike"
    with pytest.raises(ValueError, match=f"^{message}$"):
        check_equal("Here", [same, other, other], "alike")


def test_what_is_no_group_is_named():
    check_group("Here", None)
    with pytest.raises(TypeError, match=r"Here: group is a str; expected a torch\.distributed\.ProcessGroup, or None"):
        check_group("Here", "world")


RANK = """
import sys
from datetime import timedelta
import torch.distributed as dist
from tropigrad.kernels.runtime.ranks import check_group, of_ranks

folder, rank = sys.argv[1], int(sys.argv[2])
dist.init_process_group("gloo", f"file://{folder}/meeting", timedelta(seconds=90), 2, rank)
group = dist.group.WORLD
check_group("Here", group)
print(of_ranks({"rank": rank}, group))
dist.destroy_process_group()
"""


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="this torch has no gloo")
def test_every_rank_sees_all_values_in_the_order_of_the_ranks(tmp_path):
    command = [sys.executable, "-c", RANK, str(tmp_path)]
    ranks = [subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, text=True) for rank in range(2)]
    printed = [rank.communicate()[0].strip() for rank in ranks]
    assert printed == ["[{'rank': 0}, {'rank': 1}]"] * 2
