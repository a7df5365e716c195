"""`megatron-ko chat`: a conversation with a model in the terminal."""

import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from megatron_ko.artifacts.native import expect_model
from megatron_ko.cli.which_checkpoint import Best, Step, chosen_step
from megatron_ko.machine.threads import wait_without_spinning

if TYPE_CHECKING:
    from megatron_ko.data.tokenizer.chat_template import Message


def chat(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Run directory, or a native model.")],
    system: Annotated[str | None, typer.Option(help="Text that comes before the conversation.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Maximum number of tokens of an answer.")] = 512,
    temperature: Annotated[float, typer.Option(min=0, help="0: always the most likely token.")] = 0.7,
    top_p: Annotated[float, typer.Option(min=0.001, max=1, help="Sample from the top share of probability.")] = 0.9,
    top_k: Annotated[int, typer.Option(min=0, help="Sample from the top K tokens; 0: all.")] = 0,
    seed: Annotated[int | None, typer.Option(min=0, max=2**62, help="Random seed; default: a new one.")] = None,
    step: Step = None,
    best: Best = False,
    tokenizer: Annotated[Path | None, typer.Option(help="Tokenizer folder, if it has moved.")] = None,
) -> None:
    """Talk to a model. It sees the whole conversation; an answer is printed as it is generated.

    /new begins another conversation, Ctrl-C breaks an answer off, Ctrl-D ends. Lines from a pipe are questions, too.

    Example: megatron-ko chat runs/demo-chat --temperature 0
    """
    expect_model(directory)
    wait_without_spinning()
    from dataclasses import replace

    from megatron_ko.errors import DataError
    from megatron_ko.eval.generate import chat_prompt, generate
    from megatron_ko.eval.load import load_run
    from megatron_ko.eval.sampling import Sampling

    first = secrets.randbelow(2**31) if seed is None else seed
    sampling = Sampling(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, top_k=top_k, seed=first)
    loaded = load_run(directory, chosen_step(directory, step, best), tokenizer)
    opening: list[Message] = [{"role": "system", "content": system}] if system else []
    messages = list(opening)
    chat_prompt(loaded, [*opening, {"role": "user", "content": "?"}])  # complains now, not after the first question
    while (question := _ask()) is not None:
        if question.strip() == "/new":
            messages = list(opening)
            continue
        if not question.strip():
            continue
        messages.append({"role": "user", "content": question})
        try:
            prompt = chat_prompt(loaded, messages)
            (answer,) = generate(loaded, [prompt], sampling, _write)
        except DataError as error:
            messages.pop()
            typer.echo(f"{error}\n", err=True)
            continue
        except KeyboardInterrupt:
            messages.pop()
            _write("\n")
            continue
        _write("\n\n")
        messages.append({"role": "assistant", "content": answer.text})
        sampling = replace(sampling, seed=sampling.seed + 1)


def _ask() -> str | None:
    """The next question; None at the end."""
    try:
        return input("> " if sys.stdin.isatty() else "")
    except (EOFError, KeyboardInterrupt):
        return None


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
