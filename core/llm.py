"""LLM: prompts in, answers out, from Python. Blocking, and safe to use from several threads."""
from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

from ..errors import InferplaneError, RequestError
from .config import EngineConfig
from .engine import CheckedPrompt, Engine, EngineStats
from .env import Environment
from .kv.salt import Salt
from .loader import Loaded, Progress, Source
from .output import RequestOutput
from .progress import bar
from .prompt import Prompt, parse_prompt, parse_prompts
from .request import SamplingParams
from .start import Started, start
from .tokenizer import Tokenizer

Message = Mapping[str, Any]
"""{"role": "user", "content": "..."}"""


class LLM:
    """A model on a platform.

    >>> llm = LLM()                                     # the embedded model, on the best platform here
    >>> llm.generate("Hello", SamplingParams(max_tokens=8))[0].outputs[0].text

    model: a folder or a hub name. platform: "cpu", "reference", ... or "auto"; without it INFERPLANE_PLATFORM decides.
    Everything else by the names in `core.config`: dtype, max_model_len, max_num_seqs, max_num_batched_tokens,
    enable_prefix_caching, ... Raises `ConfigError` for an unknown name, with the nearest one.
    """

    def __init__(self, model: str | None = None, *, source: Source | None = None, show_progress: bool = False, **settings: Any) -> None:
        config = EngineConfig.resolve({"model": model, **settings}, Environment.read())
        with bar(show_progress) as progress:
            self._started = start(config, source=source, progress=progress)
        self.config = config
        weakref.finalize(self, self._started.engine.forget)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = False,
        priority: Sequence[int] | None = None,
    ) -> list[RequestOutput]:
        """Answer all prompts; results in the order of the prompts. use_tqdm: show a progress bar.

        Raises `RequestError` before anything runs if one of them can never run, and the first error of a request that
        failed after the others have ended. An interrupt aborts them all.
        """
        parsed = parse_prompts(prompts)
        params = self._params(sampling_params, len(parsed))
        if priority is not None and len(priority) != len(parsed):
            raise RequestError(f"{len(priority)} priorities were given for {len(parsed)} prompts; give one each")
        checked = [self.engine.check(prompt.content, one) for prompt, one in zip(parsed, params, strict=True)]
        with bar(use_tqdm) as progress:
            return _wait(self.engine, checked, [prompt.salt for prompt in parsed], priority, progress)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        use_tqdm: bool = False,
    ) -> list[RequestOutput]:
        """Answer one conversation, or several: lists of {"role": ..., "content": ...}."""
        several = bool(messages) and not isinstance(messages[0], Mapping)
        conversations: Any = messages if several else [messages]
        return self.generate([self.chat_prompt(one, tools=tools) for one in conversations], sampling_params, use_tqdm=use_tqdm)

    def chat_prompt(self, messages: Sequence[Message], *, tools: Sequence[Mapping[str, Any]] | None = None) -> dict[str, Any]:
        """The prompt that the model's chat template makes of a conversation, as token ids."""
        return {"prompt_token_ids": self.started.chat_prompt(messages, tools)}

    def stream(self, prompt: Prompt, sampling_params: SamplingParams | None = None) -> Iterator[RequestOutput]:
        """One prompt's output as it grows; `outputs[i].delta` is what is new. Leaving the loop early aborts the request."""
        parsed, [params] = parse_prompt(prompt), self._params(sampling_params, 1)
        answers: queue.SimpleQueue[RequestOutput | InferplaneError] = queue.SimpleQueue()
        name = self.engine.submit(self.engine.check(parsed.content, params), answers.put, stream=True, salt=parsed.salt)
        ended = False
        try:
            while not ended:
                answer = _raised(answers.get())
                ended = answer.finished
                yield answer
        finally:
            if not ended:
                self.engine.abort(name)

    def default_params(self, **changes: Any) -> SamplingParams:
        """The checkpoint's recommended sampling, with changes."""
        return SamplingParams.from_kwargs(**{**self._started.defaults, **changes})

    def _params(self, given: SamplingParams | Sequence[SamplingParams] | None, count: int) -> list[SamplingParams]:
        if given is None or isinstance(given, SamplingParams):
            return [given or self.default_params()] * count
        if len(given) != count:
            raise RequestError(f"{len(given)} sampling parameters were given for {count} prompts; give one, or one each")
        return list(given)

    @property
    def engine(self) -> Engine:
        return self._started.engine

    @property
    def started(self) -> Started:
        return self._started

    @property
    def loaded(self) -> Loaded:
        return self._started.loaded

    @property
    def tokenizer(self) -> Tokenizer | None:
        return self._started.engine.tokenizer

    def stats(self) -> EngineStats:
        return self.engine.stats()

    def close(self) -> None:
        """Abort what runs and release the memory. Also happens at exit, and when the object is forgotten."""
        self.engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _raised(answer: RequestOutput | InferplaneError) -> RequestOutput:
    if isinstance(answer, InferplaneError):
        raise answer
    return answer


def _wait(
    engine: Engine, prompts: Sequence[CheckedPrompt], salts: Sequence[Salt | None],
    priority: Sequence[int] | None, progress: Progress | None,
) -> list[RequestOutput]:
    """Submit all, wait for all, raise the first error only then."""
    answers: list[RequestOutput | InferplaneError | None] = [None] * len(prompts)
    ended = threading.Semaphore(0)

    def sink(place: int) -> Any:
        def take(answer: RequestOutput | InferplaneError) -> None:
            answers[place] = answer
            ended.release()
        return take

    with _abort_on_error(engine) as names:
        for place, (prompt, salt) in enumerate(zip(prompts, salts, strict=True)):
            names.append(engine.submit(prompt, sink(place), salt=salt, priority=priority[place] if priority else 0))
        for done in range(len(prompts)):
            ended.acquire()
            if progress:
                progress("generating", done + 1, len(prompts))
    return [_raised(answer) for answer in answers if answer is not None]


@contextmanager
def _abort_on_error(engine: Engine) -> Iterator[list[str]]:
    names: list[str] = []
    try:
        yield names
    except BaseException:
        for name in names:
            engine.abort(name)
        raise
