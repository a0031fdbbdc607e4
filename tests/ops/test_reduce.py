"""Reductions over processes: identity for one, sums with gradients for two."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed

from matchlib.ops.reduce import all_reduce_max, all_reduce_sum, is_distributed


def test_one_process_needs_no_reduction():
    x = torch.rand(3, requires_grad=True)
    assert not is_distributed()
    assert all_reduce_sum(x) is x
    assert torch.equal(all_reduce_max(x), x) and not all_reduce_max(x).requires_grad


def _batch_norm(x: torch.Tensor) -> torch.Tensor:
    count = all_reduce_sum(torch.tensor(float(len(x))))
    mean = all_reduce_sum(x.sum(0)) / count
    return (x - mean) * torch.rsqrt(all_reduce_sum((x - mean).square().sum(0)) / count)


def _worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    x = torch.load(f"{folder}/x.pt")[3 * rank : 3 * rank + 3].requires_grad_()
    y = _batch_norm(x)
    (y**3).sum().backward()
    result = {
        "y": y.detach(),
        "grad": x.grad,
        "max": all_reduce_max(x.amax(0)),
        "sum": all_reduce_sum(x.detach()),
    }
    torch.save(result, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_give_values_and_gradients_of_one(tmp_path: Path, two_processes):
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.save(x, tmp_path / "x.pt")
    parts = two_processes(__file__, tmp_path)
    whole = x.clone().requires_grad_()
    expected = _batch_norm(whole)
    (expected**3).sum().backward()
    torch.testing.assert_close(torch.cat([p["y"] for p in parts]), expected.detach())
    torch.testing.assert_close(torch.cat([p["grad"] for p in parts]), whole.grad)
    for part in parts:
        torch.testing.assert_close(part["max"], x.amax(0))
        torch.testing.assert_close(part["sum"], x[:3] + x[3:])


if __name__ == "__main__":
    _worker(int(sys.argv[1]), sys.argv[2])
