"""Measures the tiny model skill by skill: `python -m inferplane.model_zoo.tiny.evaluate --help`.

An engine measures itself with the same questions: `evaluate(generate, count_tokens)`, where `generate` takes prompts as text (the marks
of the chat template included) and returns what follows each, by greedy decoding, up to the end of the turn.
"""

import argparse
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from . import text

RECALL_TOKENS = (100, 250, 500, 1000, 1500)
ANSWER_TOKENS = 128

Generate = Callable[[list[str]], list[str]]
Example = text.Chat | text.Plain


@dataclass(frozen=True)
class Score:
    """How many of the questions about one skill were answered right, and the first few that were not."""

    skill: str
    asked: int
    wrong: tuple[tuple[str, str, str], ...]  # (prompt, expected, answered)

    @property
    def accuracy(self) -> float:
        return 1 - len(self.wrong) / self.asked


def skills(count_tokens: text.CountTokens) -> dict[str, Callable[[random.Random], Example]]:
    """What is measured: a maker of examples for each skill."""
    table: dict[str, Callable[[random.Random], Example]] = {}
    for tokens in RECALL_TOKENS:
        ask = partial(text.recall, tokens=tokens, count_tokens=count_tokens)
        table[f"recall, {tokens} tokens"] = partial(ask, made_up=0.0)
        table[f"recall, {tokens} tokens, a fifth of the words made up"] = ask
        table[f"recall, {tokens} tokens, nothing but facts"] = partial(ask, made_up=0.0, fact_share=1.0)
    return table | {
        "recall, 250 tokens, plain text": partial(text.recall_stream, tokens=250, count_tokens=count_tokens),
        "recall, 1000 tokens, plain text": partial(text.recall_stream, tokens=1000, count_tokens=count_tokens),
        "arithmetic": text.arithmetic,
        "arithmetic, sums not in training": partial(text.arithmetic, held_out=True),
        "arithmetic, plain text": text.arithmetic_stream,
        "copying": text.copying,
        "tool call": text.tool_call,
        "greeting": text.greeting,
    }


def is_right(expected: str, answered: str) -> bool:
    """Word for word; a tool call by its JSON value."""
    marks = "<tool_call>", "</tool_call>"
    if not expected.startswith(marks[0]):
        return expected.strip() == answered.strip()
    try:
        calls = [json.loads(answer.strip().removeprefix(marks[0]).removesuffix(marks[1])) for answer in (expected, answered)]
    except json.JSONDecodeError:
        return False
    return calls[0] == calls[1] and all(mark in answered for mark in marks)


def evaluate(generate: Generate, count_tokens: text.CountTokens, samples: int = 200, seed: int = 20_000) -> Iterator[Score]:
    """Scores each skill on `samples` fresh examples."""
    for number, (skill, make) in enumerate(skills(count_tokens).items()):
        rng = random.Random(seed + number)
        examples = [make(rng) for _ in range(samples)]
        answers = generate([example.prompt for example in examples])
        checked = ((example.prompt, example.answer, answer) for example, answer in zip(examples, answers, strict=True))
        yield Score(skill, samples, tuple(row for row in checked if not is_right(row[1], row[2])))


def torch_generate(folder: Path, batch_tokens: int = 16_384) -> tuple[Generate, text.CountTokens]:
    """A plain torch generator over a checkpoint, and its token count."""
    from tokenizers import Tokenizer

    from . import network

    model, tokenizer = network.load(folder), Tokenizer.from_file(str(folder / "tokenizer.json"))
    ends = set(model.config["eos_token_id"])

    def generate(prompts: list[str]) -> list[str]:
        ids = [tokenizer.encode(prompt).ids for prompt in prompts]
        order = sorted(range(len(ids)), key=lambda row: len(ids[row]))
        answers = [""] * len(ids)
        while order:
            size = max(1, batch_tokens // len(ids[order[-1]]))
            rows, order = order[-size:], order[:-size]
            outputs = network.generate_ids(model, [ids[row] for row in rows], ends, ANSWER_TOKENS)
            for row, output in zip(rows, outputs, strict=True):
                answers[row] = tokenizer.decode(output, skip_special_tokens=False)
        return answers

    return generate, lambda sentence: len(tokenizer.encode(sentence).ids)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent / "checkpoint", help="the checkpoint to measure")
    parser.add_argument("--samples", type=int, default=200, help="questions per skill")
    parser.add_argument("--seed", type=int, default=20_000)
    parser.add_argument("--show", type=int, default=0, help="how many wrong answers to show per skill")
    options = parser.parse_args()
    generate, count_tokens = torch_generate(options.folder)
    for score in evaluate(generate, count_tokens, options.samples, options.seed):
        print(f"{score.accuracy:7.1%}  {score.asked - len(score.wrong)}/{score.asked}  {score.skill}", flush=True)
        for prompt, expected, answered in score.wrong[: options.show]:
            print(f"         ...{prompt[-120:]!r}\n         expected {expected!r}\n         answered {answered!r}")


if __name__ == "__main__":
    main()
