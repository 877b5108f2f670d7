"""Intel GPUs: torch tensors on `torch.xpu`, kernels of Intel's extension for torch and in Triton before torch's own."""
from .platform import Xpu

__all__ = ["Xpu"]
