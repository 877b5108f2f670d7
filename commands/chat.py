"""`inferplane chat`: a conversation on the terminal, or over a pipe with one message a line."""
from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from . import settings

if TYPE_CHECKING:
    from ..core.llm import LLM

EXAMPLES = """\
examples:
  inferplane chat
  inferplane chat --model ./Llama-3.2-1B-Instruct --system "Answer in one sentence."
  printf 'Hello\\nAnd again\\n' | inferplane chat
"""
HELP = "/reset forgets the conversation, /exit leaves, /help shows this. Ctrl-C stops an answer; at the prompt it leaves."


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "chat", help="talk with a model", epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
        description=f"Talk with a model. {HELP}",
    )
    parser.add_argument("--system", metavar="TEXT", help="a system message before the conversation")
    settings.add_sampling(parser)
    settings.add_engine(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Exit code 1 if a piped message could not be answered; on a terminal its error is shown and the conversation goes on."""
    from ..errors import EngineError, InferplaneError

    terminal = sys.stdin.isatty()
    failed = False
    with settings.start(args) as llm:
        if terminal:
            import readline  # noqa: F401  (line editing for input())

            print(HELP, file=sys.stderr)
        history = _opening(args)
        while (line := _line(terminal)) is not None:
            if line in ("/exit", "/quit"):
                break
            if line == "/reset":
                history = _opening(args)
            elif line == "/help":
                print(HELP, file=sys.stderr)
            elif line.startswith("/"):
                print(f"{line.split()[0]} is unknown. {HELP}", file=sys.stderr)
            elif line:
                asked = [*history, {"role": "user", "content": line}]
                try:
                    answer = _answer(llm, args, asked)
                except EngineError:
                    raise
                except InferplaneError as error:
                    print(f"inferplane: {error} (/reset forgets the conversation.)", file=sys.stderr)
                    failed = True
                else:
                    history = [*asked, {"role": "assistant", "content": answer}]
    return 1 if failed and not terminal else 0


def _opening(args: argparse.Namespace) -> list[dict[str, str]]:
    return [{"role": "system", "content": args.system}] if args.system is not None else []


def _line(terminal: bool) -> str | None:
    """The next message, or None at the end."""
    try:
        return input("> " if terminal else "").strip()
    except EOFError:
        return None


def _answer(llm: LLM, args: argparse.Namespace, messages: list[dict[str, str]]) -> str:
    """Write the answer as it comes. Ctrl-C keeps what there is of it."""
    prompt = llm.chat_prompt(messages)
    params = settings.sampling(args, llm, len(prompt["prompt_token_ids"]))
    said = ""
    try:
        for output in llm.stream(prompt, params):
            sys.stdout.write(output.outputs[0].delta)
            sys.stdout.flush()
            said = output.outputs[0].text
    except KeyboardInterrupt:
        sys.stdout.write(" [stopped]")
    sys.stdout.write("\n")
    sys.stdout.flush()
    return said
