"""What transformers makes of a Hugging Face folder in fp32: logits and continuations to compare llama.cpp with."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megatron_ko.convert.passages import PASSAGES
from megatron_ko.errors import ConvertError

LENGTHS = (1, 7, 64, 257)
_WINDOW, _WINDOWS = 256, 8
_NEW_TOKENS = 64
# Conversations that every template must render alike.
CONVERSATIONS: tuple[list[dict[str, str]], ...] = (
    [{"role": "user", "content": "안녕하세요? 오늘 날씨가 어때요?"}],
    [{"role": "system", "content": "짧게 대답한다."}, {"role": "user", "content": "What is 2 + 3?"}],
    [
        {"role": "user", "content": "한국의 수도는?"},
        {"role": "assistant", "content": "서울입니다."},
        {"role": "user", "content": "고마워요.\n인구는요?"},
    ],
)


@dataclass(frozen=True)
class Sample:
    """Token ids [s], transformers' logits [s, v], and whether the ids are text, whose perplexity means something."""

    tokens: list[int]
    logits: np.ndarray
    text: bool


@dataclass(frozen=True)
class Greedy:
    """A prompt, the tokens that transformers continues it with, and its logits before each of them."""

    prompt: list[int]
    tokens: list[int]
    logits: np.ndarray


@dataclass(frozen=True)
class Reference:
    """What was computed.

    Attributes:
        samples: logits.
        greedy: continuations.
    """

    samples: list[Sample]
    greedy: list[Greedy]


@torch.no_grad()
def compute_reference(folder: Path, context: int, rows: int, text: str | None) -> Reference:
    """Load a folder in fp32, compute, and let it go.

    Args:
        folder: Hugging Face's.
        context: the longest text of the model.
        rows: token ids of the tokenizer; logits beyond them are padding.
        text: held-out text; None: a few passages of ours.

    Raises:
        ConvertError: transformers does not find the tensors that it needs.
    """
    tokenizer, network = load_tokenizer(folder), _load(folder)
    texts = [text] if text is not None else [*PASSAGES]
    encoded = [_encode(tokenizer, part) for part in texts]
    stream = [token for part in encoded for token in part]
    width = min(_WINDOW, context)
    windows = [stream[start : start + width] for start in range(0, min(len(stream), _WINDOWS * width), width)]
    windows = [window for window in windows if len(window) > 1]
    if not windows:
        raise ConvertError("the text is too short to compare on", got=f"{len(stream)} tokens", expected="two or more")
    chats = [] if tokenizer.chat_template is None else [_encode(tokenizer, part) for part in rendered(tokenizer)]
    draw = torch.Generator().manual_seed(0)
    lengths = sorted({min(length, context) for length in LENGTHS})
    random = [torch.randint(rows, (length,), generator=draw).tolist() for length in lengths]
    samples = [
        Sample(tokens, _logits(network, tokens, rows), kind)
        for group, kind in ((windows, True), (chats, False), (random, False))
        for tokens in group
    ]
    prompts = [window[:16] for window in windows[:2]] + chats[:1]
    new = min(_NEW_TOKENS, context - max(map(len, prompts)) - 1)
    return Reference(samples, [_greedy(network, prompt, new, rows) for prompt in prompts])


def load_tokenizer(folder: Path) -> Any:
    """transformers' tokenizer of a folder."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    tokenizer.model_max_length = 1 << 40  # else it warns of every long text
    return tokenizer


def rendered(tokenizer: Any) -> list[str]:
    """The conversations as transformers writes them, up to where the answer begins."""
    return [
        tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        for messages in CONVERSATIONS
    ]


def _encode(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _load(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network, found = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True, local_files_only=True, attn_implementation="sdpa"
        )
    wrong = {name: sorted(map(str, found[name])) for name in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    if any(wrong.values()):
        raise ConvertError("transformers does not find the tensors that it needs", got=f"{folder}: {wrong}")
    return network.eval()


def _logits(network: Any, tokens: Sequence[int], rows: int) -> np.ndarray:
    found: np.ndarray = network(input_ids=torch.tensor([list(tokens)])).logits[0, :, :rows].numpy()
    return found


def _greedy(network: Any, prompt: list[int], number: int, rows: int) -> Greedy:
    tokens: list[int] = []
    logits = []
    new, cache = prompt, None
    for _ in range(number):
        output = network(input_ids=torch.tensor([new]), past_key_values=cache, use_cache=True)
        logits.append(output.logits[0, -1, :rows].numpy())
        tokens.append(int(logits[-1].argmax()))
        new, cache = tokens[-1:], output.past_key_values
    return Greedy(prompt, tokens, np.stack(logits))
