"""compressed-tensors, the format of llm-compressor and vLLM: groups of modules by name or class, each with a scheme.

`pack-quantized`: weight_packed [outputs, inputs * bits / 32] int32 with codes shifted to 0 and above, weight_shape, weight_scale, and
without symmetry weight_zero_point, packed along the outputs. `int-quantized`, `float-quantized`: weight in the codes' own dtype.
"""
from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...errors import CheckpointError
from ...ops import Quantized, Scheme
from ...ops.quantize import SCALES
from .format import Array, Format, Stored, check_order, check_zero
from .packing import centred, unpacked

PACKED, PLAIN = "pack-quantized", ("int-quantized", "float-quantized", "naive-quantized")
WEIGHTS = {("int", 4): "int4", ("int", 8): "int8", ("float", 8): "float8_e4m3fn"}
ACTIVATIONS = {("int", 8): "int8", ("float", 8): "float8_e4m3fn"}
LATER = {
    "kv_cache_scheme": "set it to null in config.json; keys and values then stay in the model's dtype",
    "sparsity_config": "use a checkpoint that is not sparse",
    "transform_config": "use a checkpoint without rotations",
}
"""What else a configuration may hold that changes what is computed, and the remedy."""


@dataclass(frozen=True)
class Group:
    """Modules that are quantized alike. The scheme's scales are told by each module's own tensors."""

    targets: Sequence[str]
    scheme: Scheme
    packed: bool

    @property
    def bits(self) -> int:
        return 4 if self.scheme.weight == "int4" else 8


class CompressedTensors(Format):
    """A module is quantized where a group names it and `ignore` does not."""

    method = "compressed-tensors"
    ignored = (".k_scale", ".v_scale")

    def __init__(self, settings: Mapping[str, Any], files: Mapping[str, Any]) -> None:
        super().__init__(settings, files)
        for key, remedy in LATER.items():
            if settings.get(key) and settings[key] != {"format": "dense"}:
                raise self.error(f"{key!r} is {settings[key]!r}", remedy)
        self.groups = list(self._groups())
        self.left_out = settings.get("ignore") or []

    def _groups(self) -> Iterator[Group]:
        for name, said in (self.settings.get("config_groups") or {}).items():
            kind = said.get("format") or self.settings.get("format") if isinstance(said, Mapping) else None
            if kind not in (PACKED, *PLAIN):
                raise self.error(f"the format of {name!r} is {kind!r}", f"use a checkpoint in {', '.join((PACKED, *PLAIN))}")
            if said.get("output_activations"):
                raise self.error(f"{name!r} quantizes what linears give", "use a checkpoint that quantizes only what they take")
            activation, size = self._activation(name, said.get("input_activations"))
            scheme = self._scheme(name, said.get("weights") or {}, activation, size)
            if scheme.weight.startswith("float") and kind == PACKED:
                raise self.error(f"{name!r} packs floats", "use a checkpoint in float-quantized")
            yield Group(said.get("targets") or (), scheme, kind == PACKED)

    def _scheme(self, name: str, said: Mapping[str, Any], activation: str | None, activation_group: int | None) -> Scheme:
        weight = WEIGHTS.get((said.get("type", "int"), said.get("num_bits", 8)))
        size = said.get("group_size")
        default = "tensor" if size is None else "channel" if size == -1 else "group"
        shared = {
            "tensor": (None, None), "channel": (None, 1), "group": (size, 1), "block": tuple(reversed(said.get("block_structure") or ())),
        }.get(said.get("strategy") or default)
        if weight is None or not shared or (said.get("strategy") == "group" and not size) or said.get("dynamic"):
            told = {key: said.get(key) for key in ("type", "num_bits", "strategy", "group_size", "dynamic")}
            raise self.error(
                f"the weights of {name!r} are {told}", "use int of 4 or 8 bits or float of 8, by tensor, channel, group or block",
            )
        zeros = said.get("symmetric", True) is False
        return Scheme(
            weight, group=shared[0], rows=shared[1], zeros=zeros, activation=activation, activation_group=activation_group,
        )

    def _activation(self, name: str, said: Mapping[str, Any] | None) -> tuple[str | None, int | None]:
        if not said:
            return None, None
        dtype, strategy = ACTIVATIONS.get((said.get("type", "int"), said.get("num_bits", 8))), said.get("strategy")
        if dtype is None or said.get("dynamic") is not True or said.get("symmetric", True) is False or strategy not in ("token", "group"):
            told = {key: said.get(key) for key in ("type", "num_bits", "strategy", "dynamic", "symmetric")}
            raise self.error(
                f"the activations of {name!r} are {told}",
                "use a checkpoint whose activations are of 8 bits, symmetric, dynamic and by token or group (W8A8, FP8_DYNAMIC)",
            )
        return dtype, said.get("group_size") if strategy == "group" else None

    def _group(self, module: str) -> Group | None:
        if any(_matches(module, name) for name in self.left_out):
            return None
        named = [(target, group) for group in self.groups for target in group.targets]
        named.sort(key=lambda pair: (pair[0] in ("Linear", "Embedding"), pair[0].startswith("re:")))
        return next((group for target, group in named if _matches(module, target)), None)

    def scheme(self, module: str) -> Scheme | None:
        group = self._group(module)
        return None if group is None else replace(group.scheme, scales=self.scales_dtype(f"{module}.weight_scale"))

    def stored(self, module: str, shape: tuple[int, ...]) -> Mapping[str, Stored]:
        group = self._group(module)
        assert group is not None
        (outputs, inputs), scheme = shape, group.scheme
        rows, columns = scheme.scale_shape(*shape)
        whole = ((rows, columns), *(((rows,),) if columns == 1 else ()), *(((),) if rows == columns == 1 else ()))
        zeros = [(rows, columns)] + ([(-(-rows * group.bits // 32), columns)] if group.packed else [])
        found = {
            f"{module}.weight_scale": Stored(whole, tuple(SCALES)),
            f"{module}.weight_zero_point": Stored((*whole, *zeros), ("int8", "int32"), optional=not scheme.zeros),
        }
        if not group.packed:
            dtype = "int8" if scheme.weight in ("int4", "int8") else scheme.weight
            return found | {f"{module}.weight": Stored((shape,), (dtype,))}
        return found | {
            f"{module}.weight_packed": Stored(((outputs, -(-inputs * group.bits // 32)),), ("int32",)),
            f"{module}.weight_shape": Stored(((2,),), ("int64", "int32")),
            f"{module}.weight_g_idx": Stored(((inputs,),), ("int32", "int64"), optional=True),
        }

    def weight(self, module: str) -> Quantized:
        group = self._group(module)
        assert group is not None
        codes = self._codes(module, group)
        shape = group.scheme.scale_shape(*codes.shape)
        scales = self.tensor(f"{module}.weight_scale").reshape(shape)
        zeros = self._zeros(module, group, shape)
        if zeros is not None and not group.scheme.zeros:
            check_zero(f"{module}.weight_zero_point", zeros, "symmetric")
            zeros = None
        return Quantized(codes, scales, zeros)

    def _codes(self, module: str, group: Group) -> Array:
        if not group.packed:
            return self.tensor(f"{module}.weight")
        if (order := f"{module}.weight_g_idx") in self.files:
            check_order(order, self.tensor(order), group.scheme.group)
        codes = unpacked(self.tensor(f"{module}.weight_packed"), group.bits)
        inputs, most = int(self.tensor(f"{module}.weight_shape")[1]), codes.shape[1]
        if not most - 32 // group.bits < inputs <= most:
            raise CheckpointError(
                f"{module}.weight_shape tells {inputs} inputs, and weight_packed holds {most}. Remedy: fetch the checkpoint again."
            )
        return np.ascontiguousarray(centred(codes, group.bits)[:, :inputs])

    def _zeros(self, module: str, group: Group, shape: tuple[int, int]) -> Array | None:
        """Older versions left the zero points of packed weights unpacked."""
        name = f"{module}.weight_zero_point"
        if name not in self.files:
            return None
        stored = self.tensor(name)
        if stored.dtype == np.int8:
            return stored.reshape(shape)
        return np.ascontiguousarray(centred(unpacked(stored.T, group.bits), group.bits)[:, : shape[0]].T)


def _matches(module: str, target: str) -> bool:
    """By a pattern, by name, or by class: what is neither an embedding nor a norm is a Linear."""
    if target.startswith("re:"):
        return re.match(target[3:], module) is not None
    kind = "Embedding" if module.endswith("embed_tokens") else "Norm" if module.endswith("norm") else "Linear"
    return target in (module, kind)
