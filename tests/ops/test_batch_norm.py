"""Batch normalisation against PyTorch's own, and its way over processes against the plain one."""

from __future__ import annotations

import pytest
import torch

from matchlib.ops.batch_norm import BatchNorm


@pytest.mark.parametrize("affine", [True, False])
def test_agrees_with_torch(affine):
    ours = BatchNorm(3, momentum=0.01, eps=1e-3, affine=affine)
    theirs = torch.nn.BatchNorm2d(3, momentum=0.01, eps=1e-3, affine=affine)
    if affine:
        for layer in (ours, theirs):
            with torch.no_grad():
                layer.weight.copy_(torch.tensor([0.5, 1.0, 2.0]))
                layer.bias.copy_(torch.tensor([-1.0, 0.0, 1.0]))
    for seed in range(3):
        x = 2 + torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    assert len(list(ours.parameters())) == (2 if affine else 0)
    assert torch.equal(ours.eval()(x), theirs.eval()(x))


@pytest.mark.parametrize("affine", [True, False])
def test_the_way_over_processes_is_the_same_function(affine):
    x = 3 + 2 * torch.randn(2, 4, 6, 6, dtype=torch.float32, generator=torch.Generator().manual_seed(1))
    plain, summed = BatchNorm(4, momentum=0.1, affine=affine), BatchNorm(4, momentum=0.1, affine=affine)
    if affine:
        with torch.no_grad():
            for layer in (plain, summed):
                layer.weight.copy_(torch.arange(1.0, 5.0))
                layer.bias.fill_(0.5)
    torch.testing.assert_close(summed._normalise_over_processes(x), plain(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(summed.running_mean, plain.running_mean)
    torch.testing.assert_close(summed.running_var, plain.running_var)
