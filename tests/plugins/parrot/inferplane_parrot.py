"""A model from outside: a llama under a model_type of its own."""
from __future__ import annotations

from inferplane.model_zoo.llama import Llama


class Parrot(Llama):
    """What a model author writes when a new family is an old graph."""

    model_type = "parrot"
