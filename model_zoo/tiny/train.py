"""Trains the tiny model from nothing: `python -m inferplane.model_zoo.tiny.train --help`."""

import argparse
import json
import random
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as functional
from tokenizers import Tokenizer
from torch import Tensor

from . import network, text
from .tokenizer import CONTEXT_TOKENS, VOCABULARY_TOKENS, save_tokenizer, train_tokenizer

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCABULARY_TOKENS,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "max_position_embeddings": CONTEXT_TOKENS,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "mlp_bias": False,
    "dtype": "float32",
    "torch_dtype": "float32",
}
SHORTEST_RECALL_TOKENS, FIRST_LIMIT_TOKENS, LAST_LIMIT_TOKENS = 60, 128, 1700
SHORT_ROW_TOKENS, SHORT_BATCHES_SORTED = 160, 8
RECALL_SHARE = 0.6
GROW_AT_ACCURACY, GROWTH = 0.95, 1.15
DECAY_SHARE = 0.3


@dataclass(frozen=True)
class Rows:
    """Right-padded rows of one length: ids [rows, tokens], and whether each token is to be learned."""

    ids: Tensor
    learned: Tensor


def encode(example: text.Chat | text.Plain, tokenizer: Tokenizer) -> tuple[list[int], list[bool]]:
    ids, learned = [], []
    for span in example.spans():
        new = tokenizer.encode(span.text).ids
        ids += new
        learned += [span.learned] * len(new)
    return ids, learned


def pad(encoded: list[tuple[list[int], list[bool]]]) -> Rows:
    longest = min(CONTEXT_TOKENS, max(len(ids) for ids, _ in encoded))
    rows = Rows(torch.zeros(len(encoded), longest, dtype=torch.long), torch.zeros(len(encoded), longest, dtype=torch.bool))
    for row, (ids, learned) in enumerate(encoded):
        rows.ids[row, : len(ids)] = torch.tensor(ids[:longest])
        rows.learned[row, : len(ids)] = torch.tensor(learned[:longest])
    return rows


def recall_rows(rng: random.Random, budget_tokens: int, limit_tokens: int, tokenizer: Tokenizer) -> Rows:
    """Rows of one length up to `limit_tokens`, each with many questions about its context."""
    tokens = limit_tokens if rng.random() < 0.5 else rng.randint(SHORTEST_RECALL_TOKENS, limit_tokens)
    counts = CountTokens(tokenizer)
    examples = []
    for _ in range(max(1, budget_tokens // tokens)):
        if rng.random() < 0.35:
            example = text.recall_stream(rng, tokens, counts)
        else:
            example = text.recall(rng, tokens, counts, questions=rng.randint(1, 1 + tokens // 25))
        examples.append(encode(example, tokenizer))
    return pad(examples)


def short_rows(rng: random.Random, budget_tokens: int, tokenizer: Tokenizer) -> Iterator[Rows]:
    """Rows of the short skills without end, alike in length within a batch."""
    counts, rows = CountTokens(tokenizer), budget_tokens // SHORT_ROW_TOKENS
    while True:
        examples = [encode(text.conversation(rng, SHORT_ROW_TOKENS, counts), tokenizer) for _ in range(rows * SHORT_BATCHES_SORTED)]
        examples.sort(key=lambda example: len(example[0]))
        batches = [pad(examples[start : start + rows]) for start in range(0, len(examples), rows)]
        rng.shuffle(batches)
        yield from batches


@dataclass(frozen=True)
class CountTokens:
    tokenizer: Tokenizer

    def __call__(self, sentence: str) -> int:
        return len(self.tokenizer.encode(sentence).ids)


def answer_loss(model: network.Llama, rows: Rows) -> tuple[Tensor, float]:
    """Mean cross entropy over the learned tokens, and the share of them that greedy decoding would get right."""
    hidden = model.hidden(rows.ids[:, :-1])
    targets = rows.ids[:, 1:][rows.learned[:, 1:]]
    logits = model.logits(hidden[rows.learned[:, 1:]]).float()
    return functional.cross_entropy(logits, targets), float((logits.argmax(-1) == targets).float().mean())


def optimizers(model: network.Llama, learning_rate: float) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al., 2024) for the matrices between layers, AdamW for the embedding and the norms."""
    matrices = [weight for name, weight in model.named_parameters() if weight.dim() == 2 and "embed" not in name]
    others = [weight for name, weight in model.named_parameters() if weight.dim() != 2 or "embed" in name]
    muon = torch.optim.Muon(matrices, lr=learning_rate, weight_decay=0.02, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(others, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.0)]


def schedule(progress: float) -> float:
    """Share of the learning rate at a share of the training: short warm-up, plateau, linear decay."""
    return min(progress / 0.01, 1.0, (1.0 - progress) / DECAY_SHARE)


def sample_texts(rng: random.Random) -> Iterable[str]:
    """What the tokenizer learns from, without the marks that have tokens of their own."""

    def characters(sentence: str) -> int:
        return len(sentence) // 3

    for _ in range(6000):
        for example in (text.recall(rng, 200, characters), text.conversation(rng, 200, characters)):
            yield re.sub(r"<\|?/?[a-z_]+\|?>", " ", "".join(span.text for span in example.spans()))


def write_settings(tokenizer: Tokenizer, folder: Path) -> dict:
    ends = [tokenizer.token_to_id(token) for token in (text.TURN_END, text.END_OF_TEXT)]
    config = CONFIG | {"bos_token_id": ends[1], "eos_token_id": ends, "pad_token_id": ends[1]}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    generation = {"bos_token_id": ends[1], "eos_token_id": ends, "pad_token_id": ends[1], "do_sample": False}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    save_tokenizer(tokenizer, folder)
    return config


def train(folder: Path, state_path: Path, minutes: float, tokens_per_step: int, learning_rate: float, seed: int) -> network.Llama:
    """Trains for `minutes`, saving every two of them; continues from `state_path` where it exists."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    if state_path.exists():
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    else:
        tokenizer = train_tokenizer(sample_texts(rng))
    model = network.Llama(write_settings(tokenizer, folder))
    rules = optimizers(model, learning_rate)
    step, seconds, limit, accuracy = 0, 0.0, float(FIRST_LIMIT_TOKENS), 0.0
    if state_path.exists():
        state = torch.load(state_path)
        model.load_state_dict(state["model"])
        for rule, saved in zip(rules, state["rules"], strict=True):
            rule.load_state_dict(saved)
        step, seconds, limit, accuracy = state["counters"]
        rng = random.Random(seed + step)
    recall_tokens = int(RECALL_SHARE * tokens_per_step)
    short = short_rows(rng, tokens_per_step - recall_tokens, tokenizer)
    last, saved_at = time.monotonic(), seconds
    while seconds < 60 * minutes:
        for rule in rules:
            rule.param_groups[0]["lr"] = learning_rate * schedule(seconds / (60 * minutes))
        losses, hits = [], []
        for rows in (recall_rows(rng, recall_tokens, int(limit), tokenizer), next(short)):
            with torch.autocast("cpu", torch.bfloat16):
                loss, hit = answer_loss(model, rows)
            loss.backward()
            losses.append(loss.item())
            hits.append(hit)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for rule in rules:
            rule.step()
            rule.zero_grad()
        step += 1
        accuracy += 0.1 * (hits[0] - accuracy)
        if accuracy > GROW_AT_ACCURACY:
            limit, accuracy = min(limit * GROWTH, LAST_LIMIT_TOKENS), accuracy - 0.02
        now = time.monotonic()
        seconds, last = seconds + now - last, now
        if step % 20 == 0:
            print(
                f"step {step}  {seconds / 60:.1f} min  recall up to {int(limit)} tokens: loss {losses[0]:.3f} right {hits[0]:.3f}  "
                f"short: loss {losses[1]:.3f} right {hits[1]:.3f}",
                flush=True,
            )
        if seconds - saved_at > 120:
            saved_at = seconds
            network.save(model, folder)
            counters = (step, seconds, limit, accuracy)
            torch.save({"model": model.state_dict(), "rules": [rule.state_dict() for rule in rules], "counters": counters}, state_path)
    network.save(model, folder)
    return network.load(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent / "checkpoint", help="where the checkpoint goes")
    parser.add_argument("--state", type=Path, default=Path("tiny-training.pt"), help="where training can be continued from")
    parser.add_argument("--minutes", type=float, default=60, help="how long to train")
    parser.add_argument("--tokens-per-step", type=int, default=8192)
    parser.add_argument("--learning-rate", type=float, default=4e-3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    train(options.folder, options.state, options.minutes, options.tokens_per_step, options.learning_rate, options.seed)


if __name__ == "__main__":
    main()
