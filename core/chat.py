"""Chat templates: a conversation as the text that a model was trained on, rendered in a sandbox with bounds."""
from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ..errors import CheckpointError, ConfigError, RequestError, suggest
from .checkpoint import read_json
from .tokenizer import special_tokens

MAX_CHARACTERS = 16_000_000
"""Of a rendered conversation."""
MAX_TURNS = 2_000_000
"""Of all loops together in one rendering."""


@dataclass(frozen=True)
class ChatTemplate:
    """A checkpoint's templates by name, and the special tokens that they may write."""

    templates: Mapping[str, str]
    special_tokens: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: str | Path) -> ChatTemplate:
        """chat_template.jinja, else tokenizer_config.json. A folder without one loads too; rendering will say so."""
        folder = Path(folder)
        config = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
        found = config.get("chat_template") or {}
        if (folder / "chat_template.jinja").is_file():
            found = (folder / "chat_template.jinja").read_text(encoding="utf-8")
        return cls(_named(found, folder), special_tokens(folder))

    def replaced(self, text: str) -> ChatTemplate:
        """The same with a person's own template. Raises `ConfigError` for one that does not compile."""
        try:
            _compile(text)
        except jinja2.TemplateError as error:
            raise ConfigError(
                f"the chat template is wrong: {error}. "
                "Remedy: correct it, or leave it out to use the checkpoint's."
            ) from None
        return ChatTemplate({"default": text}, self.special_tokens)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        add_generation_prompt: bool = True,
        name: str | None = None,
        **variables: Any,
    ) -> str:
        """The text to encode with add_special_tokens=False: a template writes its own.

        name: one of the named templates; default: `tool_use` where there are tools and such a template, else `default`.
        variables: whatever else the template reads, for instance enable_thinking.
        Raises `RequestError` for messages that the template refuses, or where there is no template.
        """
        text = self._choose(name, bool(tools))
        given = {**self.special_tokens, **variables}
        given |= {"messages": list(messages), "tools": list(tools or ()) or None, "add_generation_prompt": add_generation_prompt}
        try:
            plain = json.loads(json.dumps(given))
        except (TypeError, ValueError) as error:
            raise RequestError(
                f"messages, tools and variables must be plain JSON values: {error}. "
                "Remedy: pass str, numbers, lists and dicts."
            ) from None
        try:
            return _bounded(_compile(text).generate(_turns=_Turns(), **plain))
        except RecursionError:
            raise RequestError(
                "the chat template recurses without end on these messages. "
                "Remedy: nest them less, or use another template."
            ) from None
        except (jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise RequestError(
                f"the chat template refused the messages: {error}. "
                "Remedy: change the messages, or use another template."
            ) from None

    def _choose(self, name: str | None, tools: bool) -> str:
        if not self.templates:
            raise RequestError(
                "this model has no chat template. "
                "Remedy: pass one (chat_template), or complete plain prompts instead."
            )
        name = name or ("tool_use" if tools and "tool_use" in self.templates else "default")
        if name not in self.templates:
            raise RequestError(f"no chat template {name!r}. {suggest(name, self.templates)} Remedy: choose one of these.")
        return self.templates[name]


def _named(found: Any, folder: Path) -> dict[str, str]:
    """One template, or a list of {"name", "template"}."""
    if isinstance(found, str):
        return {"default": found}
    try:
        named = {str(item["name"]): item["template"] for item in found}
    except (TypeError, KeyError):
        named = {"": None}
    if not all(isinstance(text, str) for text in named.values()):
        raise CheckpointError(
            f"{folder}/tokenizer_config.json: chat_template must be text, or a list of named ones. "
            "Remedy: correct it."
        )
    return named


def _bounded(pieces: Iterable[str]) -> str:
    made, characters = [], 0
    for piece in pieces:
        characters += len(piece)
        if characters > MAX_CHARACTERS:
            raise jinja2.TemplateRuntimeError(f"it wrote more than {MAX_CHARACTERS} characters")
        made.append(piece)
    return "".join(made)


class _Turns:
    """Counts the turns of all loops in one rendering."""

    def __init__(self) -> None:
        self.left = MAX_TURNS

    def count(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self.left -= 1
            if self.left < 0:
                raise jinja2.TemplateRuntimeError(f"its loops took more than {MAX_TURNS} turns")
            yield item


class _Generation(Extension):
    """`{% generation %}` marks what an assistant wrote, for training; here its body is simply rendered."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 reads it from the class)

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class _Sandbox(ImmutableSandboxedEnvironment):
    """Without products and powers that would fill the memory."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        sizes = [len(side) if isinstance(side, (str, list, tuple)) else abs(side) for side in (left, right)]
        if (operator == "*" and sizes[0] * sizes[1] > 2**63) or (operator == "**" and sizes[1] > 64):
            raise jinja2.TemplateRuntimeError(f"its product with {operator} is too large")
        if any(isinstance(side, (str, list, tuple)) for side in (left, right)) and sizes[0] * sizes[1] > MAX_CHARACTERS:
            raise jinja2.TemplateRuntimeError("it repeats a text or list too often")
        return super().call_binop(context, operator, left, right)


@lru_cache(maxsize=16)
def _compile(text: str) -> jinja2.Template:
    """Raises `jinja2.TemplateSyntaxError`. Every loop goes over `_turns.count(...)`, so that none runs away."""
    tree = ENVIRONMENT.parse(text)
    for loop in list(tree.find_all(nodes.For)):
        turns = nodes.Name("_turns", "load", lineno=loop.lineno)
        loop.iter = nodes.Filter(loop.iter, "counted", [turns], [], None, None, lineno=loop.lineno)
    return jinja2.Template.from_code(ENVIRONMENT, ENVIRONMENT.compile(tree), dict(ENVIRONMENT.globals))


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Plain JSON; jinja's own filter escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


ENVIRONMENT = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
ENVIRONMENT.filters["tojson"] = _tojson
ENVIRONMENT.filters["counted"] = lambda items, turns: turns.count(items)
ENVIRONMENT.globals["raise_exception"] = _refuse
ENVIRONMENT.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
