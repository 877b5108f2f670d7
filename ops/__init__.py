"""What an accelerator must be able to do: one file per op family, each with its spec, validation, reference and tolerance."""
from .attention import QKV_ROPE_WRITE, Attention, QkvRopeWrite, WriteKV
from .batch import Batch, BatchShape, GroupRows, Packed, empty, unpack
from .derive import Derive
from .elementwise import GATED_ACTIVATION, Activation, Add, GatedActivation, Multiply, Scale
from .embedding import Embedding, TakeRows
from .head_linear import HeadLinear
from .kernel import Default, Kernel, KernelPack, Support, always
from .linear import GATED_LINEAR, GatedLinear, Linear
from .moe import Moe, Router
from .norm import ADD_RMS_NORM, AddRmsNorm, LayerNorm, RmsNorm
from .parts import Concat, Split
from .quantize import Quantized, Scheme, Uncoded
from .rope import Rope
from .sample import Sample, Sampled, Sampling
from .spec import DTYPES, FLOATS, Abstract, Dim, Spec
from .state import StateArray, StateGroup
from .weights import Scope, Tensor, View, Weight, WeightTable

DEFAULTS: dict[str, Default] = {default.op: default for default in (ADD_RMS_NORM, GATED_ACTIVATION, GATED_LINEAR, QKV_ROPE_WRITE)}
"""The optional ops: a platform that brings no kernel for one gets this composition."""

__all__ = [
    "ADD_RMS_NORM", "DEFAULTS", "DTYPES", "FLOATS", "GATED_ACTIVATION", "GATED_LINEAR", "QKV_ROPE_WRITE",
    "Abstract", "Activation", "Add", "AddRmsNorm", "Attention", "Batch", "BatchShape", "Concat", "Default", "Derive", "Dim",
    "Embedding", "GatedActivation", "GatedLinear", "GroupRows", "HeadLinear", "Kernel", "KernelPack", "LayerNorm", "Linear", "Moe",
    "Multiply", "Packed", "QkvRopeWrite", "Quantized", "RmsNorm", "Rope", "Router", "Sample", "Sampled", "Sampling", "Scale", "Scheme",
    "Scope", "Spec", "Split", "StateArray", "StateGroup", "Support", "TakeRows", "Tensor", "Uncoded", "View", "Weight", "WeightTable",
    "WriteKV",
    "always", "empty", "unpack",
]
