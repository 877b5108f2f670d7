"""Trains the tiny model's tokenizer and writes its files, chat template included.

A word has the same tokens wherever it stands: spaces and digits are tokens of their own, so copying never changes a word's tokens.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from .text import END_OF_TEXT, TURN_END, TURN_START

VOCABULARY_TOKENS = 1024
CONTEXT_TOKENS = 2048
SPECIAL_TOKENS = (END_OF_TEXT, TURN_START, TURN_END)
MARKUP_TOKENS = ("<tools>", "</tools>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")

CHAT_TEMPLATE = """
{%- set offered = tools if tools is defined and tools else [] %}
{%- set system = messages[0].content if messages and messages[0].role == "system" else "" %}
{%- if offered or system %}
{{- "<|im_start|>system\\n" + system }}
{%- if offered %}
{{- ("\\n\\n" if system else "") + "You may call these tools:\\n<tools>\\n" }}
{%- for tool in offered %}
{%- set function = tool.function if tool.function is defined else tool %}
{{- '{"name": "' + function.name + '", "parameters": {' }}
{%- for name, parameter in function.parameters.properties.items() %}
{{- '"' + name + '": "' + (parameter.type if parameter.type is defined else "string") + '"' + ("" if loop.last else ", ") }}
{%- endfor %}
{{- "}}\\n" }}
{%- endfor %}
{{- "</tools>" }}
{%- endif %}
{{- "<|im_end|>\\n" }}
{%- endif %}
{%- for message in messages %}
{%- set content = message.content if message.content is string else "" %}
{%- if message.role == "tool" %}
{{- "<|im_start|>user\\n<tool_response>\\n" + content + "\\n</tool_response><|im_end|>\\n" }}
{%- elif message.role != "system" %}
{{- "<|im_start|>" + message.role + "\\n" + content }}
{%- for call in (message.tool_calls if message.tool_calls is defined and message.tool_calls else []) %}
{%- set function = call.function if call.function is defined else call %}
{{- ("\\n" if content or not loop.first else "") + '<tool_call>\\n{"name": "' + function.name + '", "arguments": ' }}
{{- (function.arguments if function.arguments is string else function.arguments | tojson) + "}\\n</tool_call>" }}
{%- endfor %}
{{- "<|im_end|>\\n" }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- "<|im_start|>assistant\\n" }}
{%- endif %}
""".strip()


def train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    words = pre_tokenizers.Split(Regex(r"\p{L}+|[^\s\p{L}\p{N}]+|\s"), "isolated")
    digits = pre_tokenizers.Digits(individual_digits=True)
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, words, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    markup = [AddedToken(token, special=False, normalized=False) for token in MARKUP_TOKENS]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_TOKENS - len(markup), special_tokens=list(SPECIAL_TOKENS), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens(markup)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": TURN_END,
        "pad_token": END_OF_TEXT,
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": CONTEXT_TOKENS,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
