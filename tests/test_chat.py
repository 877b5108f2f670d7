"""Chat templates render as transformers renders them, refuse in words, and cannot run away."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from inferplane.core.chat import ChatTemplate
from inferplane.errors import CheckpointError, ConfigError, RequestError

CHATML = """{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content | trim + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
TOOLS = """{{ bos_token }}{% if tools %}
tools: {{ tools | tojson }} {{ tools[0] | tojson(indent=2) }}
{% endif %}
{% set ns = namespace(last=none) %}
{% for message in messages %}
    {% if message['role'] == 'system' and not loop.first %}
{{ raise_exception('system must come first') }}
    {% elif message.role == 'skip' %}
        {% continue %}
    {% endif %}
    {% generation %}
{{ loop.index0 }}/{{ loop.length }}:{{ message['content'] }}{{ eos_token if not loop.last }}
    {% endgeneration %}
    {% set ns.last = message.role %}
{% endfor %}
{{ ns.last }}{% if thinking is defined %}{{ thinking }}{% endif %}
"""
MESSAGES = [
    {"role": "system", "content": " Be <brief> & kind. "},
    {"role": "skip", "content": ""},
    {"role": "user", "content": "Grüße 🎈"},
]
TOOL = {"type": "function", "function": {"name": "wetter", "description": "<für> alle", "parameters": {"type": "object"}}}


@pytest.mark.parametrize("template", [CHATML, TOOLS], ids=["chatml", "tools"])
@pytest.mark.parametrize("tools", [None, [TOOL]], ids=["no-tools", "one-tool"])
@pytest.mark.parametrize("ask", [True, False], ids=["ask", "complete"])
def test_a_template_renders_as_in_transformers(template: str, tools: Any, ask: bool) -> None:
    pytest.importorskip("transformers")
    from transformers.utils.chat_template_utils import render_jinja_template

    special = {"bos_token": "<s>", "eos_token": "</s>"}
    told = render_jinja_template(
        [MESSAGES], tools=tools, chat_template=template, add_generation_prompt=ask, thinking=1, **special
    )
    told = told[0] if isinstance(told, tuple) else told
    ours = ChatTemplate({"default": template}, special).render(MESSAGES, tools, add_generation_prompt=ask, thinking=1)
    assert [ours] == (told if isinstance(told, list) else [told])


def test_strftime_now_tells_the_date() -> None:
    assert ChatTemplate({"default": "{{ strftime_now('%Y')|length }}"}).render([]) == "4"


def _folder(tmp_path: Path, **config: Any) -> Path:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return tmp_path


def test_a_template_is_found_in_each_of_its_places(tmp_path: Path) -> None:
    folder = _folder(tmp_path, chat_template="old {{ bos_token }}", bos_token={"content": "<s>"})
    assert ChatTemplate.load(folder).render([]) == "old <s>"
    (folder / "chat_template.jinja").write_text("new {{ bos_token }}")
    assert ChatTemplate.load(folder).render([]) == "new <s>"


def test_named_templates_are_chosen_by_name_or_by_the_presence_of_tools(tmp_path: Path) -> None:
    texts = {"default": "plain", "tool_use": "tools", "rag": "rag"}
    named = [{"name": name, "template": text} for name, text in texts.items()]
    chat = ChatTemplate.load(_folder(tmp_path, chat_template=named))
    assert (chat.render([]), chat.render([], [TOOL]), chat.render([], name="rag")) == ("plain", "tools", "rag")
    with pytest.raises(RequestError, match="'rga'.*Did you mean 'rag'"):
        chat.render([], name="rga")


def test_a_model_without_a_template_says_so_when_asked(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no chat template. Remedy: pass one"):
        ChatTemplate.load(_folder(tmp_path)).render(MESSAGES)


def test_a_template_of_the_wrong_shape_is_a_damaged_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="chat_template must be text"):
        ChatTemplate.load(_folder(tmp_path, chat_template=[{"name": "x"}]))


def test_a_persons_own_template_replaces_it_and_must_compile() -> None:
    chat = ChatTemplate({"default": "a"}, {"bos_token": "<s>"})
    assert chat.replaced("{{ bos_token }}b").render([]) == "<s>b"
    with pytest.raises(ConfigError, match="chat template is wrong"):
        chat.replaced("{% for %}")


REFUSED = {
    "raised-by-the-template": ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
    "undefined": ("{{ messages.x.y }}", "no attribute"),
    "type-error": ("{{ 'a' + 1 }}", "refused"),
    "division": ("{{ 1 / 0 }}", "division"),
    "sandbox": ("{{ ''.__class__.__mro__ }}", "unsafe"),
    "mutation": ("{{ messages.append(1) }}", "not safely callable|unsafe"),
    "endless-loops": ("{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}", "turns"),
    "endless-text": ("{% for i in range(90000) %}{{ 'x' * 100000 }}{% endfor %}", "characters"),
    "huge-text": ("{{ 'a' * 10000000000 }}", "too often"),
    "huge-power": ("{{ 9 ** 999999999 }}", "too large"),
    "endless-macro": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recurses"),
    "syntax": ("{% if %}", "refused"),
}


@pytest.mark.parametrize(("template", "message"), REFUSED.values(), ids=list(REFUSED))
def test_a_template_that_fails_or_runs_away_fails_one_request(template: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        ChatTemplate({"default": template}).render(MESSAGES)


def test_messages_must_be_plain_values() -> None:
    with pytest.raises(RequestError, match="plain JSON"):
        ChatTemplate({"default": "x"}).render([{"role": "user", "content": object()}])
