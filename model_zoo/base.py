"""What a model is: weights, state groups, and three pieces of graph that know neither hardware nor parallelism."""
from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ..errors import CheckpointError
from ..ops import Scheme, StateGroup, WeightTable


def unquantized(module: str) -> Scheme | None:
    """The answer for every module of a model whose weights are floats."""
    return None


def as_floats(module: str) -> str | None:
    """The answer for every module of a source that keeps nothing in codes."""
    return None


@dataclass(frozen=True)
class Precision:
    """How a model keeps what it does not compute in: the scheme of a linear by its module's name in the checkpoint, and the KV's codes.

    kv_dtype: of `WriteKV` and `Attention`; None: keys and values are kept in the model's dtype.
    stored: how the checkpoint keeps a module whose codes become floats again where no kernel takes them; None: in floats, or
    its scheme is somebody's wish.
    """

    scheme: Callable[[str], Scheme | None] = unquantized
    kv_dtype: str | None = None
    stored: Callable[[str], str | None] = as_floats

    def of(self, *modules: str) -> Scheme | None:
        """The one scheme of modules that are fused into one linear. Raises `CheckpointError` where they differ."""
        schemes = {self.scheme(module) for module in modules}
        if len(schemes) > 1:
            found = ", ".join(f"{module}: {self.scheme(module)}" for module in modules)
            raise CheckpointError(f"these share their input, and run as one: {found}. Remedy: quantize all of them alike, or none.")
        return schemes.pop()

    def restored(self, *modules: str) -> str | None:
        """How the checkpoint keeps modules that are one weight of floats.

        Raises `CheckpointError` where codes are somebody's wish, or activations would have to be quantized as well.
        """
        for module in modules:
            scheme = self.scheme(module)
            if scheme is not None and (self.stored(module) is None or scheme.activation is not None):
                raise CheckpointError(
                    f"{module} is quantized ({scheme}), and is computed in floats only. "
                    "Remedy: leave the quantization out, or use the unquantized checkpoint."
                )
        return " or ".join(sorted({stored for module in modules if (stored := self.stored(module))})) or None


UNQUANTIZED = Precision()


class Model(ABC):
    """Built from a parsed config.json. Its specs are made here, once.

    `config` is the dict of config.json; `dtype` what it computes in; `block_tokens` the size of a KV block;
    `max_model_len` the longest sequence that will be served (it fixes dynamic rope scaling); `precision` what is quantized.
    """

    model_type: ClassVar[str]
    dtype: str
    vocab_size: int
    num_layers: int
    context_tokens: int
    """What the checkpoint was made for (max_position_embeddings, after scaling)."""
    weights: WeightTable
    states: Sequence[StateGroup]

    @abstractmethod
    def __init__(
        self, config: Mapping[str, Any], *, dtype: str, block_tokens: int, max_model_len: int | None = None,
        precision: Precision = UNQUANTIZED,
    ) -> None:
        """Raises `CheckpointError` for a config that does not describe this family."""

    @abstractmethod
    def embed(self, ops: Any, w: Any, batch: Any) -> Any:
        """x [tokens, embed]; `w` is the top scope."""

    @abstractmethod
    def layer(self, i: int, ops: Any, x: Any, w: Any, batch: Any, state: Any, rows: Any) -> Any:
        """x [tokens, embed] after layer i; `w` is the layer's scope, `state` its cell.

        rows [samples] int32: the tokens that are still wanted, in whose order x [samples, embed] leaves the last layer; None: all.
        """

    @abstractmethod
    def head(self, ops: Any, w: Any, rows: Any, batch: Any) -> Any:
        """rows [samples, embed] -> logits [samples, vocab] in float32."""
