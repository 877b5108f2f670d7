"""Trains the tiny model from nothing: `python -m inferplane.model_zoo.tiny.train --help`."""

import argparse
import json
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as functional
from tokenizers import Tokenizer
from torch import Tensor

from . import network, text
from .tokenizer import CONTEXT_TOKENS, VOCABULARY_TOKENS, save_tokenizer, train_tokenizer
from .words import NOUNS

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCABULARY_TOKENS,
    "hidden_size": 192,
    "intermediate_size": 320,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 100000.0,
    "max_position_embeddings": CONTEXT_TOKENS,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "mlp_bias": False,
    "dtype": "float32",
    "torch_dtype": "float32",
}
SHORTEST_RECALL_TOKENS, FIRST_LIMIT_TOKENS, LAST_LIMIT_TOKENS = 50, 80, 1700
SHORT_TOKENS = 160
RECALL_SHARE = 0.45
GROW_AT_ACCURACY, GROWTH, GROWN_AT_PROGRESS = 0.95, 1.15, 0.65
DECAY_SHARE = 0.3
LEAST_LEARNED_TOKENS = 200
BATCHES_SORTED = 10

Encoded = tuple[list[int], list[bool]]  # a text's tokens, and whether each is to be learned


@dataclass(frozen=True)
class Rows:
    """Right-padded rows of one length: ids [rows, tokens], and whether each token is to be learned."""

    ids: Tensor
    learned: Tensor


def encode(example: text.Chat | text.Plain, tokenizer: Tokenizer) -> Encoded:
    ids, learned = [], []
    for span in example.spans():
        new = tokenizer.encode(span.text).ids
        ids += new
        learned += [span.learned] * len(new)
    return ids[:CONTEXT_TOKENS], learned[:CONTEXT_TOKENS]


def pad(encoded: list[Encoded]) -> Rows:
    longest = max(len(ids) for ids, _ in encoded)
    rows = Rows(torch.zeros(len(encoded), longest, dtype=torch.long), torch.zeros(len(encoded), longest, dtype=torch.bool))
    for row, (ids, learned) in enumerate(encoded):
        rows.ids[row, : len(ids)] = torch.tensor(ids)
        rows.learned[row, : len(ids)] = torch.tensor(learned)
    return rows


def batches(make: Callable[[], Encoded], budget_tokens: int, rng: random.Random) -> Iterator[Rows]:
    """Batches of up to `budget_tokens` without end; rows of like length stand together, so that little is padding."""
    while True:
        pool, pool_tokens = [], 0
        while pool_tokens < BATCHES_SORTED * budget_tokens:
            pool.append(make())
            pool_tokens += len(pool[-1][0])
        groups: list[list[Encoded]] = [[]]
        for encoded in sorted(pool, key=lambda encoded: len(encoded[0])):
            if groups[-1] and (len(groups[-1]) + 1) * len(encoded[0]) > budget_tokens:
                groups.append([])
            groups[-1].append(encoded)
        rng.shuffle(groups)
        yield from map(pad, groups)


def recall_example(rng: random.Random, limit_tokens: int, count_tokens: text.CountTokens) -> text.Chat | text.Plain:
    """Up to `limit_tokens` tokens, with many questions about its context."""
    share = 1.0 if rng.random() < 0.3 else rng.random()
    tokens = int(SHORTEST_RECALL_TOKENS * (limit_tokens / SHORTEST_RECALL_TOKENS) ** share)
    if rng.random() < 0.35:
        return text.recall_stream(rng, tokens, count_tokens)
    return text.recall(rng, tokens, count_tokens, questions=rng.randint(1, 1 + tokens // 25))


def answer_loss(model: network.Llama, rows: Rows) -> tuple[Tensor, float]:
    """Mean cross entropy over the learned tokens, and the share of them that greedy decoding would get right.

    A few tokens alone weigh less than a batch of them: their mean would be mostly noise.
    """
    hidden = model.hidden(rows.ids[:, :-1])
    targets = rows.ids[:, 1:][rows.learned[:, 1:]]
    logits = model.logits(hidden[rows.learned[:, 1:]]).float()
    loss = functional.cross_entropy(logits, targets, reduction="sum") / max(len(targets), LEAST_LEARNED_TOKENS)
    return loss, float((logits.argmax(-1) == targets).float().mean())


def optimizers(model: network.Llama, learning_rate: float) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al., 2024) for the matrices between layers, AdamW for the embedding and the norms."""
    matrices = [weight for name, weight in model.named_parameters() if weight.dim() == 2 and "embed" not in name]
    others = [weight for name, weight in model.named_parameters() if weight.dim() != 2 or "embed" in name]
    muon = torch.optim.Muon(matrices, lr=learning_rate, weight_decay=0.02, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(others, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.0)]


def schedule(progress: float) -> float:
    """Share of the learning rate at a share of the training: short warm-up, plateau, linear decay."""
    return min((progress + 0.001) / 0.01, 1.0, (1.0 - progress) / DECAY_SHARE)


def least_limit_tokens(progress: float) -> float:
    """The context length that must be reached at a share of the training, however accurate the model is."""
    return FIRST_LIMIT_TOKENS * (LAST_LIMIT_TOKENS / FIRST_LIMIT_TOKENS) ** min(1.0, progress / GROWN_AT_PROGRESS)


def sample_texts(rng: random.Random) -> Iterable[str]:
    """What the tokenizer learns from, without the marks that have tokens of their own."""

    def characters(sentence: str) -> int:
        return len(sentence) // 3

    for _ in range(6000):
        for example in (text.recall(rng, 200, characters), text.conversation(rng, 200, characters)):
            yield " ".join(NOUNS) + re.sub(r"<\|?/?[a-z_]+\|?>", " ", "".join(span.text for span in example.spans()))


def write_settings(tokenizer: Tokenizer, folder: Path) -> dict:
    ends = [tokenizer.token_to_id(token) for token in (text.TURN_END, text.END_OF_TEXT)]
    config = CONFIG | {"bos_token_id": ends[1], "eos_token_id": ends, "pad_token_id": ends[1]}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    generation = {"bos_token_id": ends[1], "eos_token_id": ends, "pad_token_id": ends[1], "do_sample": False}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    save_tokenizer(tokenizer, folder)
    return config


@dataclass
class Training:
    """What training changes, and what a later run continues from."""

    model: network.Llama
    rules: list[torch.optim.Optimizer]
    step: int = 0
    seconds: float = 0.0
    limit_tokens: float = FIRST_LIMIT_TOKENS
    accuracy: float = 0.0  # of recall, averaged over some ten steps
    threads: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(2))

    def state(self) -> dict:
        counters = (self.step, self.seconds, self.limit_tokens, self.accuracy)
        return {"model": self.model.state_dict(), "rules": [rule.state_dict() for rule in self.rules], "counters": counters}

    def restore(self, state: dict) -> None:
        self.model.load_state_dict(state["model"])
        for rule, saved in zip(self.rules, state["rules"], strict=True):
            rule.load_state_dict(saved)
        self.step, self.seconds, self.limit_tokens, self.accuracy = state["counters"]

    def gradients(self, rows: Rows) -> tuple[tuple[Tensor, ...], tuple[float, float]]:
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            loss, right = answer_loss(self.model, rows)
        return torch.autograd.grad(loss, list(self.model.parameters())), (loss.item(), right)

    def take_step(self, learning_rate: float, recall: Rows, short: Rows) -> str:
        """One update from a batch of each kind; returns a line to log."""
        gradients, results = zip(*self.threads.map(self.gradients, (recall, short)), strict=True)
        for weight, *parts in zip(self.model.parameters(), *gradients, strict=True):
            weight.grad = sum(parts)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for rule in self.rules:
            rule.param_groups[0]["lr"] = learning_rate
            rule.step()
        self.step += 1
        self.accuracy += 0.1 * (results[0][1] - self.accuracy)
        if self.accuracy > GROW_AT_ACCURACY:
            self.limit_tokens, self.accuracy = min(self.limit_tokens * GROWTH, LAST_LIMIT_TOKENS), self.accuracy - 0.02
        kinds = zip((f"recall up to {int(self.limit_tokens)} tokens", "short"), results, strict=True)
        scores = "  ".join(f"{kind}: loss {loss:.3f} right {right:.3f}" for kind, (loss, right) in kinds)
        return f"step {self.step}  {self.seconds / 60:.1f} min  {scores}"


def train(folder: Path, state_path: Path, steps: int, tokens_per_step: int, learning_rate: float, seed: int) -> None:
    """Trains for `steps`, saving now and then; continues from `state_path` where it exists."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    resumed = state_path.exists()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json")) if resumed else train_tokenizer(sample_texts(rng))
    model = network.Llama(write_settings(tokenizer, folder))
    training = Training(model, optimizers(model, learning_rate))
    if resumed:
        training.restore(torch.load(state_path))
        rng = random.Random(seed + training.step)

    def count_tokens(sentence: str) -> int:
        return len(tokenizer.encode(sentence).ids)

    def save() -> None:
        network.save(model, folder)
        torch.save(training.state(), state_path)

    recall_tokens = int(RECALL_SHARE * tokens_per_step)
    recall = batches(lambda: encode(recall_example(rng, int(training.limit_tokens), count_tokens), tokenizer), recall_tokens, rng)
    short = batches(lambda: encode(text.conversation(rng, SHORT_TOKENS, count_tokens), tokenizer), tokens_per_step - recall_tokens, rng)
    last, saved_seconds = time.monotonic(), training.seconds
    while training.step < steps:
        progress = training.step / steps
        training.limit_tokens = max(training.limit_tokens, least_limit_tokens(progress))
        line = training.take_step(learning_rate * schedule(progress), next(recall), next(short))
        now = time.monotonic()
        training.seconds, last = training.seconds + now - last, now
        if training.step % 10 == 0:
            print(line, flush=True)
        if training.seconds - saved_seconds > 120:
            saved_seconds = training.seconds
            save()
    save()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent / "checkpoint", help="where the checkpoint goes")
    parser.add_argument("--state", type=Path, default=Path("tiny-training.pt"), help="where training can be continued from")
    parser.add_argument("--steps", type=int, default=3600)
    parser.add_argument("--tokens-per-step", type=int, default=4096, help="in the two batches of a step together")
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--threads", type=int, default=1, help="per batch; two batches are computed at a time")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    train(options.folder, options.state, options.steps, options.tokens_per_step, options.learning_rate, options.seed)


if __name__ == "__main__":
    main()
