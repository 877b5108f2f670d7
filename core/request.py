"""What a person asks for: how to sample, and one sequence as the scheduler receives it."""
from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import numpy as np

from ..errors import RequestError, suggest
from .kv.salt import Salt
from .structured import Guide, StructuredOutputs

MAX_TOKEN_ID = 2**31 - 1


def _wrong(name: str, rule: str, found: object, remedy: str) -> RequestError:
    return RequestError(f"{name} must be {rule}; found {found!r}. {remedy}")


def _integer(name: str, value: object, low: int, high: int | None, remedy: str) -> int:
    rule = f"an integer of at least {low}" if high is None else f"an integer from {low} to {high}"
    if isinstance(value, (bool, np.bool_, str, float)):
        raise _wrong(name, rule, value, remedy)
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise _wrong(name, rule, value, remedy) from None
    if number < low or (high is not None and number > high):
        raise _wrong(name, rule, value, remedy)
    return number


def _real(name: str, value: object, low: float, high: float, remedy: str, *, open_low: bool = False) -> float:
    bounds = f"{'above' if open_low else 'at least'} {low}" + (f" and at most {high}" if high < math.inf else "")
    rule = "a finite number" + (f" {bounds}" if low > -math.inf else "")
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise _wrong(name, rule, value, remedy)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number) or number < low or number > high or (open_low and number == low):
        raise _wrong(name, rule, value, remedy)
    return number


def _ids(name: str, values: object) -> tuple[int, ...]:
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
        raise _wrong(name, "a list of token ids", values, "Pass for instance [2, 32007].")
    return tuple(_integer(f"{name}[{i}]", v, 0, MAX_TOKEN_ID, "Pass token ids.") for i, v in enumerate(values))


def _strings(name: str, values: object) -> tuple[str, ...]:
    values = (values,) if isinstance(values, str) else values
    if isinstance(values, (bytes, Mapping)) or not isinstance(values, Iterable):
        raise _wrong(name, "a string or a list of strings", values, "Leave it out to stop nowhere.")
    strings = tuple(values)
    for i, text in enumerate(strings):
        if not isinstance(text, str) or not text:
            raise _wrong(f"{name}[{i}]", "a string of at least one character", text, "Leave it out to stop nowhere.")
    return strings


def _biases(name: str, values: object) -> tuple[tuple[int, float], ...]:
    pairs = tuple(values.items()) if isinstance(values, Mapping) else values
    if not isinstance(pairs, tuple) or not all(isinstance(pair, tuple) and len(pair) == 2 for pair in pairs):
        raise _wrong(name, "a mapping from token id to bias", values, "Pass for instance {42: -5.0}.")
    checked = {
        _integer(f"a token id of {name}", token, 0, MAX_TOKEN_ID, "Pass token ids."):
        _real(f"{name}[{token!r}]", bias, -math.inf, math.inf, "Pass -100 to forbid a token in practice.")
        for token, bias in pairs
    }
    return tuple(sorted(checked.items()))


@dataclass(frozen=True)
class SamplingParams:
    """How the tokens of one request are drawn; names and defaults are vLLM's.

    max_tokens None: up to the context. top_k <= 0: off. temperature 0: greedy. logprobs -1: the whole vocabulary.
    prompt_logprobs: the best of so many for each token of the prompt, which then shares no blocks with other requests.
    `stop` and `stop_token_ids` are kept as tuples, `logit_bias` as sorted pairs, so that parameters are hashable.
    Raises RequestError for any value that cannot be meant.
    """

    n: int = 1
    max_tokens: int | None = 16
    min_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | tuple[tuple[int, float], ...] | None = None
    seed: int | None = None
    stop: str | Sequence[str] | None = None
    stop_token_ids: Sequence[int] | None = None
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool = True
    structured_outputs: StructuredOutputs | None = None

    def __post_init__(self) -> None:
        def put(name: str, value: object) -> None:
            object.__setattr__(self, name, value)

        put("n", _integer("n", self.n, 1, None, "Use 1 for a single answer."))
        if self.max_tokens is not None:
            put("max_tokens", _integer("max_tokens", self.max_tokens, 1, None, "Use None for as many as fit."))
        put("min_tokens", _integer("min_tokens", self.min_tokens, 0, None, "Use 0 for no minimum."))
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise _wrong("min_tokens", f"at most max_tokens, {self.max_tokens}", self.min_tokens, "Lower it or raise max_tokens.")
        put("temperature", _real("temperature", self.temperature, 0.0, math.inf, "Use 0 for greedy."))
        put("top_k", max(0, _integer("top_k", self.top_k, -1, MAX_TOKEN_ID, "Use 0 or -1 to turn it off.")))
        put("top_p", _real("top_p", self.top_p, 0.0, 1.0, "Use 1.0 to turn it off.", open_low=True))
        put("min_p", _real("min_p", self.min_p, 0.0, 1.0, "Use 0.0 to turn it off."))
        put("repetition_penalty", _real("repetition_penalty", self.repetition_penalty, 0.0, math.inf,
                                        "Use 1.0 to turn it off.", open_low=True))
        for name in ("presence_penalty", "frequency_penalty"):
            put(name, _real(name, getattr(self, name), -2.0, 2.0, "Use 0.0 to turn it off."))
        put("logit_bias", _biases("logit_bias", self.logit_bias or ()) or None)
        if self.seed is not None:
            put("seed", _integer("seed", self.seed, -2**63, 2**64 - 1, "Leave it out for a fresh one."))
        put("stop", () if self.stop is None else _strings("stop", self.stop))
        put("stop_token_ids", () if self.stop_token_ids is None else _ids("stop_token_ids", self.stop_token_ids))
        for name in ("ignore_eos", "include_stop_str_in_output", "skip_special_tokens"):
            if not isinstance(getattr(self, name), bool):
                raise _wrong(name, "True or False", getattr(self, name), "Pass a bool.")
        if self.logprobs is not None:
            put("logprobs", _integer("logprobs", self.logprobs, -1, None, "Use None for none, -1 for the whole vocabulary."))
        if self.prompt_logprobs is not None:
            put("prompt_logprobs", _integer("prompt_logprobs", self.prompt_logprobs, 0, None, "Use None for none."))
        if self.structured_outputs is not None:
            if not isinstance(self.structured_outputs, StructuredOutputs):
                raise _wrong("structured_outputs", "a StructuredOutputs", self.structured_outputs, "Pass StructuredOutputs(json=...).")
            if self.ignore_eos:
                raise _wrong("ignore_eos", "False with structured outputs", True, "A grammar's end is the answer's.")

    @classmethod
    def from_kwargs(cls, **kwargs: Any) -> SamplingParams:
        """As the constructor, but an unknown name raises RequestError and suggests the nearest."""
        known = [f.name for f in fields(cls)]
        for name in kwargs:
            if name not in known:
                raise RequestError(f"sampling parameter {name!r} is unknown. {suggest(name, known)}")
        return cls(**kwargs)

    @property
    def greedy(self) -> bool:
        """The most likely token is taken; no random number is drawn."""
        return self.temperature == 0.0

    @property
    def needs_host(self) -> bool:
        """The next draw depends on tokens that the host must see first, so no step is planned ahead."""
        return self.penalized or self.structured_outputs is not None

    @property
    def penalized(self) -> bool:
        """Some penalty counts the tokens drawn so far."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0


class Key(NamedTuple):
    """The name of one sequence: a request, and which of its `n` samples."""

    request_id: str
    sample_index: int = 0


def _prompt(tokens: object) -> np.ndarray:
    """The prompt as a read-only array of its own; raises RequestError."""
    try:
        array = np.asarray(tokens)
    except ValueError:
        array = np.empty((0, 0))
    if array.ndim != 1 or array.size == 0 or array.dtype.kind not in "iu":
        raise RequestError(f"a prompt is a list of at least one integer token id; found shape {list(array.shape)} of "
                           f"{array.dtype}. Tokenize the text first, and start an empty one with the bos token.")
    if int(array.min()) < 0 or int(array.max()) > MAX_TOKEN_ID:
        raise RequestError(f"token ids lie between 0 and {MAX_TOKEN_ID}; found {int(array.min())} to {int(array.max())}. "
                           "Check the tokenizer.")
    if array.flags.writeable or array.dtype != np.dtype("<i4"):
        array = array.astype("<i4")
        array.setflags(write=False)
    return array


@dataclass(frozen=True, eq=False)
class Request:
    """One sequence to compute. A request with n > 1 is n of these, which share their prompt's blocks.

    prompt [tokens] int32, read-only. max_tokens is resolved, stop_ids include the model's eos unless it is ignored.
    priority: lower is earlier. tenant: whose share of the machine it uses. arrival: seconds, on the caller's clock.
    seed: 64 bits that key its random numbers. guide: what its grammar allows.
    """

    request_id: str
    prompt: np.ndarray
    params: SamplingParams
    max_tokens: int
    sample_index: int = 0
    stop_ids: frozenset[int] = frozenset()
    priority: int = 0
    tenant: str = ""
    salt: Salt = field(default_factory=Salt)
    arrival: float = 0.0
    seed: int = 0
    guide: Guide | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompt", _prompt(self.prompt))
        _integer("max_tokens", self.max_tokens, 1, None, "It is the resolved number of tokens to draw.")
        _integer("priority", self.priority, -2**31, 2**31 - 1, "Lower is earlier; 0 is usual.")
        if not isinstance(self.request_id, str) or not self.request_id:
            raise _wrong("request_id", "a string of at least one character", self.request_id, "Give each request a name.")

    @property
    def key(self) -> Key:
        return Key(self.request_id, self.sample_index)


def expand(request_id: str, prompt: Sequence[int] | np.ndarray, params: SamplingParams, *, eos_ids: Iterable[int],
           max_model_len: int, priority: int = 0, tenant: str = "", salt: Salt | None = None,
           arrival: float = 0.0, seed: int = 0, guide: Guide | None = None) -> tuple[Request, ...]:
    """The `n` sequences that `params` asks for; `seed` serves where it names none. `Scheduler.check` refuses what is too long.

    guide: at its grammar's start; each sequence gets a copy.
    """
    tokens = _prompt(prompt)
    limit = params.max_tokens if params.max_tokens is not None else max(1, max_model_len - len(tokens))
    stop_ids = frozenset(params.stop_token_ids or ()) | (frozenset() if params.ignore_eos else frozenset(eos_ids))
    return tuple(
        Request(request_id, tokens, params, limit, index, stop_ids, priority, tenant, salt or Salt(), arrival,
                params.seed if params.seed is not None else seed, guide.copy() if guide else None)
        for index in range(params.n)
    )
