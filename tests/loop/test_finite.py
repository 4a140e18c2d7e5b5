"""NaN is found with its origin, once per frame."""

import pytest
import torch

from lightning_t2drl.errors import NonFiniteError
from lightning_t2drl.loop.finite import FiniteWatch


def test_the_first_origin_is_named_whatever_came_of_it():
    watch = FiniteWatch()
    nan = torch.tensor([1.0, float("nan")])
    for allocation, loss in ((torch.ones(2), torch.ones(())), (torch.ones(2), nan), (nan, nan)):
        watch.add("the allocation", allocation)
        watch.add("the loss", loss)
    with pytest.raises(NonFiniteError, match="frame 7: the loss is NaN or infinite"):
        watch.check("frame 7")
    watch.check("frame 8")  # starts anew
    watch.add("the loss", torch.tensor(float("inf")))
    with pytest.raises(NonFiniteError):
        watch.check("frame 9")
