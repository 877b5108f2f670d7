"""The torch family's random numbers and token masks where `>>` divides and rounds towards zero, as torch_xla's does."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from inferplane.ops.sample import masked
from inferplane.ops.threefry import uniforms

torch: Any = pytest.importorskip("torch")


def dividing() -> Any:
    """A mode of torch in which a right shift is torch_xla's."""
    from torch.overrides import TorchFunctionMode

    class Dividing(TorchFunctionMode):  # type: ignore[misc]
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function is torch.Tensor.__rshift__:
                word, places = args
                return torch.div(word.long(), 2 ** torch.as_tensor(places), rounding_mode="trunc").to(word.dtype)
            return function(*args, **(kwargs or {}))

    return Dividing()


def test_such_a_shift_is_not_the_usual_one() -> None:
    word = torch.tensor([-3], dtype=torch.int32)
    with dividing():
        assert (word >> 1).tolist() == [-1]
    assert (word >> 1).tolist() == [-2]


def test_random_numbers_are_the_definitions_to_the_bit() -> None:
    from inferplane.platforms.families.torch import threefry

    random = np.random.default_rng(0)
    low, high, index, position = random.integers(-(2**31), 2**31, (4, 9)).astype(np.int32)
    with dividing():
        made = threefry.uniforms(*(torch.from_numpy(one) for one in (low, high, index, position)), 257)
    np.testing.assert_array_equal(made.numpy(), uniforms(low, high, index, position, vocab=257))


def test_a_mask_lets_through_the_tokens_whose_bits_are_set() -> None:
    from inferplane.platforms.families.torch import sample

    random = np.random.default_rng(1)
    logits, mask = random.normal(size=(3, 100)).astype(np.float32), random.integers(-(2**31), 2**31, (3, 4)).astype(np.int32)
    with dividing():
        made = sample.masked(torch.from_numpy(logits), torch.from_numpy(mask))
    np.testing.assert_array_equal(made.numpy(), masked(logits, mask))
