"""Matrix products by the fastest library of the machine, without touching PyTorch's global flags."""

from __future__ import annotations

import functools
import platform
from pathlib import Path

import torch
from torch import Tensor


def matmul_nt(a_ND: Tensor, b_MD: Tensor) -> Tensor:
    """`a @ b.T` in full precision of the dtype; (N, D) and (M, D), same dtype and device, give (N, M).

    On AMD processors PyTorch's default, MKL, reaches 80 % down to 45 % of what oneDNN does (measured on Zen 4
    and Zen 5), so float32 products go to oneDNN there. The usual switch for that,
    `set_float32_matmul_precision("medium")`, is process-wide and means bfloat16 on processors with AMX; the
    linear operator used here does neither. The library is chosen by processor, not by a stop-watch: the same
    machine always rounds in the same way. On CUDA, products are TF32 if the program switched that on. No
    gradient flows through this function.
    """
    # Under autocast a plain product would quietly become a bfloat16 one.
    with torch.no_grad(), torch.autocast(a_ND.device.type, enabled=False):
        if uses_onednn(a_ND):
            product: Tensor = torch.ops.mkldnn._linear_pointwise(a_ND, b_MD, None, "none", [], "")
            return product
        return a_ND @ b_MD.T


def uses_onednn(tensor: Tensor) -> bool:
    """Whether `matmul_nt` gives products of such tensors to oneDNN."""
    return (
        tensor.device.type == "cpu"
        and tensor.dtype == torch.float32
        and tensor.numel() > 0
        and bool(torch.backends.mkldnn.enabled)
        and _onednn_is_faster()
    )


@functools.lru_cache(maxsize=1)
def _onednn_is_faster() -> bool:
    if not torch._C._has_mkldnn or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    return _processor_vendor() == "AuthenticAMD"


def _processor_vendor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("vendor_id")), "")
