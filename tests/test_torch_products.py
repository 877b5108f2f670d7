"""Products of the torch family on a CPU: what lies in one row stays there."""
from __future__ import annotations

from collections.abc import Callable

import pytest

torch = pytest.importorskip("torch")

from inferplane.ops import Dim, HeadLinear, Linear  # noqa: E402
from inferplane.platforms.families.torch import experts, linear  # noqa: E402

CPU = torch.device("cpu")
WIDTHS = (7, 31, 33, 34, 64, 257)
"""Of a row. On AMX oneDNN read past those that are no multiples of 32 (uxlfoundation/oneDNN #5717)."""
ROWS = 33


def made(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).bfloat16()


def plain(x: torch.Tensor) -> torch.Tensor:
    width = x.shape[-1]
    return linear.run(CPU)(Linear(input=Dim(width), outputs=(Dim(16),), dtype="bfloat16"), x, (made(16, width),), None)


def by_head(x: torch.Tensor) -> torch.Tensor:
    width = x.shape[-1]
    spec = HeadLinear(heads=Dim(2, "heads"), input=width, output=16, dtype="bfloat16")
    return linear.head_linear(spec, x[:, None].expand(-1, 2, -1), (made(2, 16, width),))


def by_experts(x: torch.Tensor) -> torch.Tensor:
    width = x.shape[-1]
    return experts._linear(x[None], slice(0, 1), (made(1, 16, width),))[0]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("product", [plain, by_head, by_experts])
def test_a_row_of_nan_leaves_the_others_alone(product: Callable[[torch.Tensor], torch.Tensor], width: int) -> None:
    x = made(ROWS, width)
    expected = product(x)
    x[1::2] = torch.nan
    found = product(x)
    assert torch.equal(found[::2], expected[::2])
    assert found[1::2].isnan().all()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("product", [plain, by_head, by_experts])
def test_what_lies_between_rows_is_not_read(product: Callable[[torch.Tensor], torch.Tensor], width: int) -> None:
    x = made(ROWS, width)
    gaps = torch.full((ROWS, width + 3), torch.nan, dtype=x.dtype)
    gaps[:, :width] = x
    assert torch.equal(product(gaps[:, :width]), product(x))
