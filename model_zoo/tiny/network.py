"""The tiny model in plain torch: a Llama whose tensors carry Hugging Face's names, for training and for measuring.

The engine never runs this file; it reads the checkpoint like any other.
"""

import json
from pathlib import Path

import torch
import torch.nn.functional as functional
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

KeyValues = tuple[Tensor, Tensor]  # each [rows, kv_heads, positions, head_dim]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding in the convention of Hugging Face's rotate_half; x [rows, heads, tokens, head_dim]."""
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-right, left), dim=-1) * sin


class Attention(nn.Module):
    def __init__(self, config: dict):
        super().__init__()
        embed, self.head_dim = config["hidden_size"], config["head_dim"]
        heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        self.q_proj = nn.Linear(embed, heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(embed, kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(embed, kv_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(heads * self.head_dim, embed, bias=False)
        self.queries_per_kv_head = heads // kv_heads

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: "Cache | None", layer: int) -> Tensor:
        rows, tokens, _ = x.shape
        q, k, v = (p(x).view(rows, tokens, -1, self.head_dim).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        q, k, mask = rotate(q, cos, sin), rotate(k, cos, sin), None
        if cache is not None:
            k, v, mask = cache.extend(layer, k, v)
        k, v = (kv.repeat_interleave(self.queries_per_kv_head, dim=1) for kv in (k, v))
        y = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        return self.o_proj(y.transpose(1, 2).reshape(rows, tokens, -1))


class GatedMlp(nn.Module):
    def __init__(self, config: dict):
        super().__init__()
        embed, mlp = config["hidden_size"], config["intermediate_size"]
        self.gate_proj, self.up_proj = nn.Linear(embed, mlp, bias=False), nn.Linear(embed, mlp, bias=False)
        self.down_proj = nn.Linear(mlp, embed, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, config: dict):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config["hidden_size"], eps=config["rms_norm_eps"])
        self.self_attn = Attention(config)
        self.post_attention_layernorm = nn.RMSNorm(config["hidden_size"], eps=config["rms_norm_eps"])
        self.mlp = GatedMlp(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: "Cache | None", layer: int) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, cache, layer)
        return x + self.mlp(self.post_attention_layernorm(x))


class Trunk(nn.Module):
    def __init__(self, config: dict):
        super().__init__()
        self.embed_tokens = nn.Embedding(config["vocab_size"], config["hidden_size"])
        self.layers = nn.ModuleList(Layer(config) for _ in range(config["num_hidden_layers"]))
        self.norm = nn.RMSNorm(config["hidden_size"], eps=config["rms_norm_eps"])


class Llama(nn.Module):
    """LlamaForCausalLM with a tied head."""

    def __init__(self, config: dict):
        super().__init__()
        self.config, self.model = config, Trunk(config)
        frequencies = config["rope_theta"] ** -(torch.arange(0, config["head_dim"], 2) / config["head_dim"])
        angles = torch.outer(torch.arange(config["max_position_embeddings"]).float(), frequencies).repeat(1, 2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        initialize(self)

    def hidden(self, ids: Tensor, positions: Tensor | None = None, cache: "Cache | None" = None) -> Tensor:
        """ids, positions [rows, tokens] -> [rows, tokens, embed]; without positions, every row starts at 0."""
        x = self.model.embed_tokens(ids)
        cos, sin = (self.cos, self.sin) if positions is None else (self.cos[positions][:, None], self.sin[positions][:, None])
        if positions is None:
            cos, sin = cos[: ids.shape[1]], sin[: ids.shape[1]]
        if torch.is_autocast_enabled("cpu"):
            cos, sin = cos.bfloat16(), sin.bfloat16()
        for number, layer in enumerate(self.model.layers):
            x = layer(x, cos, sin, cache, number)
        return self.model.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        return functional.linear(hidden, self.model.embed_tokens.weight)


CONSTANT = 0  # the residual dimension that starts equal for all tokens, so that a head can attend by position alone
SHIFT_HEADS = {0: (1, 2, 3, 4), 1: (4, 8)}  # layer -> how far back each of its first heads looks at the start
SHIFT_FREQUENCIES, SHIFT_SHARPNESS = 6, 40.0
EMBEDDING_STD = 0.02


@torch.no_grad()
def initialize(network: Llama) -> None:
    """Random weights, but the first layers start as a short convolution, so that recall need not first discover what stood before."""
    for weight in network.parameters():
        if weight.dim() == 2:
            nn.init.normal_(weight, std=EMBEDDING_STD)
    network.model.embed_tokens.weight[:, CONSTANT] = 4 * EMBEDDING_STD
    for number, offsets in SHIFT_HEADS.items():
        x = network.model.embed_tokens.weight
        spread = x.square().mean().sqrt() * (1 + len(SHIFT_HEADS[0]) * (number > 0)) ** 0.5
        shift_heads(network.model.layers[number].self_attn, network.config, offsets, float(4 * EMBEDDING_STD / spread))


def shift_heads(attention: Attention, config: dict, offsets: tuple[int, ...], constant: float) -> None:
    """Makes the first heads copy the token `offset` back; `constant` is what the constant dimension is after the norm."""
    head_dim, half, used = config["head_dim"], config["head_dim"] // 2, SHIFT_FREQUENCIES
    frequencies = config["rope_theta"] ** -(torch.arange(half) / half)
    amplitude = (SHIFT_SHARPNESS * head_dim**0.5 / 8) ** 0.5 / constant
    for kv_head in {head // attention.queries_per_kv_head for head in range(len(offsets))}:
        rows = attention.k_proj.weight[kv_head * head_dim : (kv_head + 1) * head_dim]
        rows.zero_()
        rows[:used, CONSTANT] = amplitude
        attention.v_proj.weight[kv_head * head_dim : (kv_head + 1) * head_dim].normal_(std=config["hidden_size"] ** -0.5)
    for head, offset in enumerate(offsets):
        rows = attention.q_proj.weight[head * head_dim : (head + 1) * head_dim]
        rows.zero_()
        rows[:used, CONSTANT] = amplitude * torch.cos(frequencies[:used] * offset)
        rows[half : half + used, CONSTANT] = -amplitude * torch.sin(frequencies[:used] * offset)
        attention.o_proj.weight[:, head * head_dim : (head + 1) * head_dim].normal_(std=EMBEDDING_STD * head_dim**-0.5)
    attention.o_proj.weight[CONSTANT].zero_()


class Cache:
    """Keys and values of right-padded rows, extended by one token a row after the prompt."""

    def __init__(self, lengths: Tensor, capacity: int):
        self.lengths, self.capacity = lengths, capacity  # lengths [rows]
        self.arrays: dict[int, KeyValues] = {}

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Adds k, v [rows, kv_heads, tokens, head_dim]; returns what to attend to, and the mask unless it is the causal one."""
        if layer not in self.arrays:
            grow = (0, 0, 0, self.capacity - k.shape[2])
            self.arrays[layer] = functional.pad(k, grow), functional.pad(v, grow)
            return k, v, None
        rows = torch.arange(len(self.lengths))
        for array, new in zip(self.arrays[layer], (k, v), strict=True):
            array[rows, :, self.lengths] = new[:, :, 0]
        mask = torch.arange(self.capacity)[None, :] <= self.lengths[:, None]
        return *self.arrays[layer], mask[:, None, None, :]


@torch.inference_mode()
def generate_ids(network: Llama, prompts: list[list[int]], ends: set[int], max_new_tokens: int) -> list[list[int]]:
    """Greedy continuations of a batch of prompts, without the token that ended them."""
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    longest = int(lengths.max())
    ids = torch.tensor([prompt + [0] * (longest - len(prompt)) for prompt in prompts])
    cache = Cache(lengths, min(longest + max_new_tokens, network.config["max_position_embeddings"]))
    hidden = network.hidden(ids, cache=cache)[torch.arange(len(prompts)), lengths - 1]
    outputs: list[list[int]] = [[] for _ in prompts]
    open_rows = set(range(len(prompts)))
    for _ in range(cache.capacity - longest):
        tokens = network.logits(hidden).argmax(-1)
        open_rows = {row for row in open_rows if int(tokens[row]) not in ends}
        for row in open_rows:
            outputs[row].append(int(tokens[row]))
        if not open_rows:
            break
        hidden = network.hidden(tokens[:, None], positions=cache.lengths[:, None], cache=cache)[:, 0]
        cache.lengths = cache.lengths + 1
    return outputs


def load(folder: Path) -> Llama:
    network = Llama(json.loads((folder / "config.json").read_text()))
    network.load_state_dict({name: array.float() for name, array in load_file(folder / "model.safetensors").items()})
    return network


def save(network: Llama, folder: Path) -> None:
    """Writes the weights in bfloat16, whole or not at all."""
    weights = {name: array.detach().bfloat16().contiguous() for name, array in network.state_dict().items()}
    save_file(weights, folder / "model.safetensors.new", metadata={"format": "pt"})
    (folder / "model.safetensors.new").chmod(0o644)
    (folder / "model.safetensors.new").replace(folder / "model.safetensors")
