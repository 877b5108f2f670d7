"""What the wording of every API shares: ids, usage, and log-probabilities as OpenAI writes them."""
from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from ..core.output import CompletionOutput, Logprob, RequestOutput
from ..core.tokenizer import Tokenizer
from .turns.reader import Reader, Thinking

LOWEST_LOGPROB = -9999.0
"""JSON has no minus infinity; OpenAI's own stand-in."""
Entry = Mapping[int, Logprob]
"""One token's place in `CompletionOutput.logprobs`: the drawn one first."""


def new_id(prefix: str) -> str:
    return f"{prefix}-{secrets.token_hex(16)}"


def usage(outputs: Sequence[RequestOutput], reasoning: int | None = None) -> dict[str, Any]:
    """Each prompt counts once, whatever its n; cached tokens are known once it has ended. reasoning: tokens of thoughts; or None."""
    prompt = sum(len(output.prompt_token_ids) for output in outputs)
    drawn = sum(len(choice.token_ids) for output in outputs for choice in output.outputs)
    cached = sum(output.metrics.kv.hit_tokens for output in outputs if output.metrics.kv)
    return {
        "prompt_tokens": prompt, "completion_tokens": drawn, "total_tokens": prompt + drawn,
        "prompt_tokens_details": {"cached_tokens": cached},
        **({} if reasoning is None else {"completion_tokens_details": {"reasoning_tokens": reasoning}}),
    }


def reasoning_tokens(tokenizer: Tokenizer, reader: Reader | None, ids: Sequence[int]) -> int:
    """Of an answer: those up to the mark that ended its thoughts, with it. Where that is no token of its own, about as many."""
    if not isinstance(reader, Thinking) or not reader.thoughts:
        return 0
    end = tokenizer.added_id(reader.end)
    if end is None:
        return min(len(ids), len(tokenizer.encode(reader.thoughts, False)))
    return ids.index(end) + 1 if end in ids else len(ids)


class Told:
    """How far the answers to one prompt have been told."""

    def __init__(self, choices: int) -> None:
        self._tokens, self._ended = [0] * choices, [False] * choices

    def news(self, output: RequestOutput, *, each_token: bool) -> list[tuple[CompletionOutput, int]]:
        """The choices with something new, and the tokens of theirs that were told before.

        each_token: a token is news even while its text is held back, as half a character or what may become a stop string.
        """
        found = []
        for choice in output.outputs:
            place, count = choice.index, len(choice.token_ids)
            grew = choice.delta or (each_token and count > self._tokens[place])
            if grew or (choice.finish_reason and not self._ended[place]):
                found.append((choice, self._tokens[place]))
                self._tokens[place], self._ended[place] = count, choice.finish_reason is not None
        return found


def chat_logprobs(tokenizer: Tokenizer, entries: Sequence[Entry], top: int) -> dict[str, Any]:
    def one(token: int, logprob: Logprob) -> dict[str, Any]:
        spelled = tokenizer.token_bytes(token)
        return {"token": logprob.decoded_token, "logprob": _finite(logprob), "bytes": list(spelled)}

    content = []
    for entry in entries:
        drawn = next(iter(entry))
        content.append({**one(drawn, entry[drawn]), "top_logprobs": [one(*pair) for pair in _best(entry, top)]})
    return {"content": content, "refusal": None}


def completion_logprobs(tokenizer: Tokenizer, entries: Sequence[Entry], top: int, offset: int) -> dict[str, Any]:
    """offset: characters of the text before the first of these tokens."""
    tokens, values, best, offsets = [], [], [], []
    for entry in entries:
        drawn = next(iter(entry))
        tokens.append(_spelled(tokenizer, drawn, entry[drawn]))
        values.append(_finite(entry[drawn]))
        pairs = [*_best(entry, top), (drawn, entry[drawn])]
        best.append({_spelled(tokenizer, token, logprob): _finite(logprob) for token, logprob in pairs})
        offsets.append(offset)
        offset += characters(tokenizer, drawn)
    return {"tokens": tokens, "token_logprobs": values, "top_logprobs": best, "text_offset": offsets}


def prompt_logprobs(
    tokenizer: Tokenizer, ids: Sequence[int], entries: Sequence[Entry | None], top: int, text: str,
) -> dict[str, Any]:
    """The same of a prompt that is echoed as `text`, which may lack special tokens before it. Nothing is known of its first token."""
    first, known = tokenizer.decode(ids[:1], skip_special_tokens=False), [entry for entry in entries[1:] if entry is not None]
    told = completion_logprobs(tokenizer, known, top, characters(tokenizer, ids[0]) if text.startswith(first) else 0)
    spelled = _spelled(tokenizer, ids[0], Logprob(0.0, None, first))
    return {
        "tokens": [spelled, *told["tokens"]], "token_logprobs": [None, *told["token_logprobs"]],
        "top_logprobs": [None, *told["top_logprobs"]], "text_offset": [0, *(min(one, len(text)) for one in told["text_offset"])],
    }


def joined_logprobs(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """A prompt's and its answer's."""
    return {name: [*values, *after[name]] for name, values in before.items()}


def characters(tokenizer: Tokenizer, token: int) -> int:
    """That begin in this token: of one that is cut into several tokens, only the first counts it."""
    return sum(byte & 0xC0 != 0x80 for byte in tokenizer.token_bytes(token))


def _best(entry: Entry, top: int) -> list[tuple[int, Logprob]]:
    ranked = [(token, logprob) for token, logprob in entry.items() if logprob.rank is not None and logprob.rank <= top]
    return sorted(ranked, key=lambda pair: pair[1].rank or 0)


def _finite(logprob: Logprob) -> float:
    return max(logprob.logprob, LOWEST_LOGPROB)


def _spelled(tokenizer: Tokenizer, token: int, logprob: Logprob) -> str:
    """A piece of a character as OpenAI writes it, so that no two tokens share a spelling."""
    if "\ufffd" not in logprob.decoded_token:
        return logprob.decoded_token
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in tokenizer.token_bytes(token))
