"""`inferplane generate`: answers prompts from the command line or a pipe, and writes text as it comes."""
from __future__ import annotations

import argparse
import json
import sys
import time
from typing import TYPE_CHECKING, Any

from . import settings

if TYPE_CHECKING:
    from ..core.llm import LLM
    from ..core.output import RequestOutput

EXAMPLES = """\
examples:
  inferplane generate "The code for lamp is 4711. What is the code for lamp?"
  inferplane generate --model ./Llama-3.2-1B-Instruct --platform cpu --temperature 0 --stats "Hello"
  inferplane generate --raw --max-tokens 32 "Once upon a time"
  echo "Hello" | inferplane generate --json
"""


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "generate", help="answer prompts", epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Answer each PROMPT, or standard input. One answer is written as it comes; several are computed together.",
    )
    parser.add_argument("prompt", nargs="*", metavar="PROMPT")
    parser.add_argument("--system", metavar="TEXT", help="a system message before each prompt")
    parser.add_argument("--raw", action="store_true", help="continue the prompt as it is, without the chat template")
    parser.add_argument("--stats", action="store_true",
                        help="tell tokens per second, time to the first token and cache hits on stderr")
    parser.add_argument("--json", action="store_true", help="print one JSON object for each prompt")
    settings.add_sampling(parser)
    settings.add_engine(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from ..errors import ConfigError

    if args.raw and args.system is not None:
        raise ConfigError("--system needs the chat template, and --raw leaves it out. Give one of the two.")
    prompts = args.prompt or [_piped()]
    started = time.perf_counter()
    with settings.start(args) as llm:
        loaded = time.perf_counter() - started
        ids = [_prompt(llm, args, text) for text in prompts]
        params = settings.sampling(args, llm, max(len(one) for one in ids))
        if len(ids) == 1 and not args.json:
            outputs = [_stream(llm, ids[0], params)]
        else:
            outputs = llm.generate([{"prompt_token_ids": one} for one in ids], params, use_tqdm=sys.stderr.isatty())
            for text, output in zip(prompts, outputs, strict=True):
                _show(text, output, args.json, alone=len(ids) == 1)
        if args.stats:
            _tell(outputs, llm.loaded.platform.name, loaded)
    return 0


def _piped() -> str:
    from ..errors import ConfigError

    text = "" if sys.stdin.isatty() else sys.stdin.read().rstrip("\n")
    if not text:
        raise ConfigError('no prompt was given. Write it after the command, inferplane generate "Hello", or pipe it in.')
    return text


def _prompt(llm: LLM, args: argparse.Namespace, text: str) -> list[int]:
    from ..errors import RequestError

    if llm.tokenizer is None:
        raise RequestError("this model has no tokenizer. Name one with --tokenizer.")
    if args.raw:
        return llm.tokenizer.encode(text)
    template = llm.started.chat_template
    if template is None or not template.templates:
        raise RequestError("this model has no chat template. Add --raw to continue the prompt as it is.")
    system = [{"role": "system", "content": args.system}] if args.system is not None else []
    ids: list[int] = llm.chat_prompt([*system, {"role": "user", "content": text}])["prompt_token_ids"]
    return ids


def _stream(llm: LLM, ids: list[int], params: Any) -> RequestOutput:
    for output in llm.stream({"prompt_token_ids": ids}, params):
        sys.stdout.write(output.outputs[0].delta)
        sys.stdout.flush()
    sys.stdout.write("\n")
    return output


def _show(text: str, output: RequestOutput, as_json: bool, alone: bool) -> None:
    answer = output.outputs[0]
    if as_json:
        print(json.dumps({
            "prompt": text, "text": answer.text, "token_ids": answer.token_ids, "finish_reason": answer.finish_reason,
            "stop_reason": answer.stop_reason, **_figures(output),
        }, ensure_ascii=False))
    else:
        print(answer.text if alone else f"> {text}\n{answer.text}\n")


def _figures(output: RequestOutput) -> dict[str, Any]:
    """Counts, and seconds since the request arrived."""
    metrics = output.metrics
    return {
        "prompt_tokens": len(output.prompt_token_ids),
        "cached_tokens": metrics.kv.hit_tokens if metrics.kv else 0,
        "output_tokens": sum(len(one.token_ids) for one in output.outputs),
        "first_token_seconds": None if metrics.first_token is None else round(metrics.first_token - metrics.arrival, 6),
        "seconds": None if metrics.finished is None else round(metrics.finished - metrics.arrival, 6),
    }


def _tell(outputs: list[RequestOutput], platform: str, loaded_seconds: float) -> None:
    figures = [_figures(output) for output in outputs]
    total = {name: sum(one[name] for one in figures) for name in ("prompt_tokens", "cached_tokens", "output_tokens")}
    seconds = max(one["seconds"] or 0.0 for one in figures)
    first = min(one["first_token_seconds"] or 0.0 for one in figures)
    print(
        f"{total['output_tokens']} tokens in {seconds:.3f} s, {total['output_tokens'] / max(seconds, 1e-9):.1f} tokens/s; "
        f"first token after {first:.3f} s; {total['prompt_tokens']} prompt tokens, {total['cached_tokens']} of them from the "
        f"prefix cache; platform {platform}, started in {loaded_seconds:.2f} s",
        file=sys.stderr,
    )
