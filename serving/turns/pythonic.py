"""Llama 3.2 and 4: a turn that is a Python list of calls, [first(a=1), second(b="x")]."""
from __future__ import annotations

import ast
import json
import re
from collections.abc import Sequence

from .format import MOST_CALLS, Format, Mark, Offer, quoted, value
from .reader import Reader

BEGIN = re.compile(r"\[\s*[A-Za-z_][\w.\-]*\s*\(")
MAY_BEGIN = re.compile(r"\[\s*([A-Za-z_][\w.\-]*\s*)?")


class PythonicReader(Reader):
    """Calls are told whole, once the list is closed: their arguments are no JSON before that."""

    def start(self) -> bool:
        first = self.buffer.lstrip()
        if BEGIN.match(first):
            return self.go(self.inside)
        waits = not first or MAY_BEGIN.fullmatch(first)
        return self.go(self.words) if self.ended or not waits else False

    def inside(self) -> bool:
        listed = _list(self.buffer.strip())
        if listed is None:
            return self.go(self.words) if self.ended else False
        self.buffer = ""
        for name, arguments in listed:
            self.argue(self.call(name), json.dumps(arguments, ensure_ascii=False))
        return self.go(self.words)

    words = Reader.start


def _list(text: str) -> list[tuple[str, dict[str, object]]] | None:
    """(name, arguments) of each call; None: the text is not yet, or never will be, a list of calls with plain values."""
    if not text.endswith("]"):
        return None
    try:
        tree = ast.parse(text, mode="eval").body
        if not isinstance(tree, ast.List):
            return None
        return [_call(one) for one in tree.elts]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _call(tree: ast.expr) -> tuple[str, dict[str, object]]:
    if not isinstance(tree, ast.Call) or tree.args or any(one.arg is None for one in tree.keywords):
        raise ValueError("no call with named arguments")
    values = {str(one.arg): ast.literal_eval(_plain(one.value)) for one in tree.keywords}
    json.dumps(values, allow_nan=False)
    return ast.unparse(tree.func), values


def _plain(value: ast.expr) -> ast.expr:
    """Models also write true, false and null."""
    return _Constants().visit(value)


class _Constants(ast.NodeTransformer):
    NAMES = {"true": True, "false": False, "null": None}  # noqa: RUF012

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.copy_location(ast.Constant(self.NAMES[node.id]), node) if node.id in self.NAMES else node


class Pythonic(Format):
    name, marks, bracket = "pythonic", ("func_name1(params_name1=",), "["

    def reader(self) -> PythonicReader:
        return PythonicReader()

    def grammar(self, offers: Sequence[Offer], mark: Mark, *, several: bool) -> str:
        """Values are JSON, which Python reads but for true, false and null. Tools whose schema is no plain object of named
        properties cannot be demanded this way."""
        lines = ["call: " + " | ".join(f"call_{place}" for place in range(len(offers)))]
        for place, offer in enumerate(offers):
            lines += _call_rules(f"call_{place}", offer)
        more = f' (", " call){{0,{MOST_CALLS - 1}}}' if several else ""
        return "\n".join([f'calls: "[" call{more} "]"', *lines])


def _call_rules(rule: str, offer: Offer) -> list[str]:
    """Required arguments in their order, then any of the others in theirs."""
    properties, needed = dict(offer.parameters.get("properties", {})), set(offer.parameters.get("required", ()))
    ordered = [name for name in properties if name in needed] + [name for name in properties if name not in needed]
    body, lines = f"{quoted(offer.name)} {quoted('(')}", []
    for place, name in enumerate(ordered):
        written = f"{rule}_value_{place}"
        lines.append(f"{written}: {value(properties[name])}")
        comma = '", " ' if place else ""
        body += f" {comma}{quoted(name + '=')} {written}" if name in needed else ""
    if not needed:
        first = [f"{quoted(name + '=')} {rule}_value_{place}" for place, name in enumerate(ordered)]
        body += f" ({' | '.join(first)})?" if first else ""
    else:
        body += "".join(f' (", " {quoted(name + "=")} {rule}_value_{place})?' for place, name in enumerate(ordered) if name not in needed)
    return [f"{rule}: {body} {quoted(')')}", *lines]
