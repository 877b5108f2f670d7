"""Which class a model_type means: entry points of the group `inferplane.models`, loaded one at a time."""
from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any

from stevedore.exception import NoMatches

from ..errors import ModelError, ModelNotFound, suggest
from ..model_zoo.base import Model
from ..platforms.registry import Driver

GROUP = "inferplane.models"


def model_types() -> list[str]:
    """Every registered model_type; nothing is imported."""
    return sorted({point.name for point in entry_points(group=GROUP)})


def model_class(model_type: str) -> type[Model]:
    """Raises `ModelNotFound` for an unknown model_type, `ModelError` for a plugin whose own code fails."""
    try:
        found = Driver(GROUP, model_type, on_load_failure_callback=_failed).driver
    except NoMatches:
        known = model_types()
        remedy = "Install a package that brings it." if known else "Install inferplane itself: pip install -e ."
        raise ModelNotFound(
            f"no model of model_type {model_type!r} is installed. "
            f"{suggest(model_type, known)} {remedy}"
        ) from None
    if not (isinstance(found, type) and issubclass(found, Model)):
        raise ModelError(
            f"the entry point {model_type!r} of {GROUP} names {found!r}, and must name a subclass of {Model.__module__}.Model. "
            "Remedy: correct or remove the package that brings it."
        )
    return found


def _failed(manager: Any, point: EntryPoint, error: BaseException) -> None:
    raise ModelError(
        f"the model {point.name!r} ({point.value}) cannot be imported: {error!r}. "
        "Remedy: update or remove the package that brings it."
    ) from error
