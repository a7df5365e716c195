"""`megatron-ko generate`: continues prompts with the model of a run."""

import json
import secrets
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from megatron_ko.artifacts.native import expect_model
from megatron_ko.cli.which_checkpoint import Best, Step, chosen_step
from megatron_ko.errors import DataError
from megatron_ko.machine.threads import wait_without_spinning

if TYPE_CHECKING:
    from megatron_ko.eval.generate import Completion


def generate(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Run directory, or a native model.")],
    prompt: Annotated[list[str], typer.Option(help="Beginning of a text, or with --chat a question; repeatable.")],
    chat: Annotated[bool, typer.Option("--chat", help="Answer prompts, by the tokenizer's chat template.")] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Maximum number of new tokens.")] = 128,
    temperature: Annotated[float, typer.Option(min=0, help="0: always the most likely token.")] = 0.8,
    top_p: Annotated[float, typer.Option(min=0.001, max=1, help="Sample from the top share of probability.")] = 0.9,
    top_k: Annotated[int, typer.Option(min=0, help="Sample from the top K tokens; 0: all.")] = 0,
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**62, help="Random seed; default: a new one, which is printed.")
    ] = None,
    step: Step = None,
    best: Best = False,
    tokenizer: Annotated[Path | None, typer.Option(help="Tokenizer folder, if it has moved.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Continue prompts with the newest valid checkpoint of a run, on one GPU or on the CPU.

    The checkpoint may come from any parallel layout. With a single prompt, text is printed as it is generated.

    Example: megatron-ko generate runs/demo --prompt "한국의 수도는" --temperature 0
    """
    _check(prompt)
    expect_model(directory)
    wait_without_spinning()
    from megatron_ko.eval.generate import chat_prompt, document_prompt
    from megatron_ko.eval.generate import generate as continue_prompts
    from megatron_ko.eval.load import load_run
    from megatron_ko.eval.sampling import Sampling

    sampling = Sampling(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        seed=secrets.randbelow(2**31) if seed is None else seed,
    )
    loaded = load_run(directory, chosen_step(directory, step, best), tokenizer)
    prompts = [
        chat_prompt(loaded, [{"role": "user", "content": text}]) if chat else document_prompt(loaded, text)
        for text in prompt
    ]
    streamed = len(prompt) == 1 and not as_json
    start = time.perf_counter()
    shown = _after("" if chat else prompt[0]) if streamed else None
    completions = continue_prompts(loaded, prompts, sampling, shown)
    rate = sum(len(c.tokens) for c in completions) / (time.perf_counter() - start)
    if as_json:
        typer.echo(_as_json(completions, loaded.step, sampling.seed, rate))
        return
    if streamed:
        _write("\n")
    else:
        typer.echo("\n\n".join(f"{c.prompt}\n{c.text}" if chat else c.prompt + c.text for c in completions))
    chosen = f", seed {sampling.seed}" if temperature else ", greedy"
    typer.echo(f"step {loaded.step}{chosen}, {rate:.1f} tokens/s", err=True)


def _check(prompts: list[str]) -> None:
    for text in prompts:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            shown = text.encode("utf-8", errors="backslashreplace").decode("utf-8")
            raise DataError("a prompt is not valid UTF-8", got=shown, expected="text in UTF-8") from error


def _after(prompt: str) -> Callable[[str], None]:
    """Returns a function that prints text, with the prompt before the first piece, once it has been accepted."""
    waiting = [prompt]

    def write(text: str) -> None:
        _write((waiting.pop() if waiting else "") + text)

    return write


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _as_json(completions: "list[Completion]", step: int, seed: int, rate: float) -> str:
    listed = [{"prompt": c.prompt, "text": c.text, "tokens": c.tokens, "stop": c.stop} for c in completions]
    figures = {"step": step, "seed": seed, "tokens_per_s": round(rate, 2), "completions": listed}
    return json.dumps(figures, ensure_ascii=False)
