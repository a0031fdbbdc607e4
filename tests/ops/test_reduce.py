"""Reductions over processes: identity for one, sums with gradients for two."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed

import matchlib
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


def _run_two_processes(folder: Path) -> list[Any]:
    """Run this file as a script in two processes and return what each saved."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(matchlib.__file__).parents[1]),
        "OMP_NUM_THREADS": "1",
    }
    commands = [[sys.executable, __file__, str(rank), str(folder)] for rank in range(2)]
    workers = [subprocess.Popen(c, env=environment, stderr=subprocess.PIPE, text=True) for c in commands]
    for worker in workers:
        _, errors = worker.communicate(timeout=100)
        assert worker.returncode == 0, errors
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def test_two_processes_give_values_and_gradients_of_one(tmp_path: Path):
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.save(x, tmp_path / "x.pt")
    parts = _run_two_processes(tmp_path)
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
