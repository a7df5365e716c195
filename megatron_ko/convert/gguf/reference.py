"""What transformers makes of a Hugging Face folder in fp32: logits and continuations to compare llama.cpp with."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jinja2 import TemplateError

from megatron_ko.convert.engines import peer_engine, peer_logits
from megatron_ko.convert.passages import PASSAGES
from megatron_ko.convert.texts import CHATS, LENGTHS
from megatron_ko.convert.tokenizer_class import load_oracle
from megatron_ko.errors import ConvertError

Kind = Literal["text", "conversation", "random"]
_WINDOW, _WINDOWS = 256, 8
_LONGEST = max(LENGTHS)  # of a conversation: its last tokens
_NEW_TOKENS = 64
# Conversations that are compared; a template may refuse the system message.
CONVERSATIONS = (*CHATS, [{"role": "system", "content": "짧게 대답한다."}, {"role": "user", "content": "2 + 3은?"}])
# What a template raises to refuse a conversation, or because it does not expect such a one.
_REFUSALS = (TemplateError, TypeError, LookupError)


@dataclass(frozen=True)
class LogitSample:
    """Token ids [s], transformers' logits [s, v], and what the ids are; only the perplexity of text means something."""

    tokens: list[int]
    logits: np.ndarray
    kind: Kind


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

    samples: list[LogitSample]
    greedy: list[Greedy]


@torch.no_grad()
def compute_reference(folder: Path, context: int, rows: int, text: str | None) -> Reference:
    """Load a folder, compute in fp32, and free it.

    Args:
        folder: Hugging Face's.
        context: the longest text of the model.
        rows: token ids of the tokenizer; logits beyond them are padding.
        text: held-out text; None: a few passages of ours.

    Raises:
        ConvertError: transformers does not find the tensors that it needs.
    """
    tokenizer = load_oracle(folder)
    peer = peer_engine(folder, ours=False)
    network = peer.network
    if peer.wrong:
        raise ConvertError("transformers does not find the tensors that it needs", got=f"{folder}: {peer.wrong}")
    texts = [text] if text is not None else [*PASSAGES]
    encoded = [_encode(tokenizer, part) for part in texts]
    stream = [token for part in encoded for token in part]
    width = min(_WINDOW, context)
    windows = [stream[start : start + width] for start in range(0, min(len(stream), _WINDOWS * width), width)]
    windows = [window for window in windows if len(window) > 1]
    if not windows:
        got = f"{len(stream)} tokens, a context of {context}"
        raise ConvertError("the text is too short to compare on", got=got, expected="two tokens or more")
    said = [] if tokenizer.chat_template is None else rendered(tokenizer)
    chats = [_encode(tokenizer, part)[-min(_LONGEST, context) :] for part in said]
    draw = torch.Generator().manual_seed(0)
    lengths = sorted({min(length, context) for length in LENGTHS})
    random = [torch.randint(rows, (length,), generator=draw).tolist() for length in lengths]
    groups: dict[Kind, list[list[int]]]
    groups = {"text": windows, "conversation": chats, "random": random}
    samples = [
        LogitSample(tokens, peer_logits(network, torch.tensor([tokens]))[0, :, :rows].numpy(), kind)
        for kind, group in groups.items()
        for tokens in group
    ]
    new = min(_NEW_TOKENS, context // 2)
    prompts = [prompt[-(context - new) :] for prompt in [*(window[:16] for window in windows[:2]), *chats[:1]]]
    return Reference(samples, [_greedy(network, prompt, new, rows) for prompt in prompts])


def rendered(tokenizer: Any) -> list[str]:
    """The conversations as transformers writes them, up to where the answer begins, but for those that it refuses.

    Raises:
        ConvertError: the chat template refuses them all.
    """
    found = [text for messages in CONVERSATIONS if (text := render(tokenizer, messages)) is not None]
    if not found:
        raise ConvertError(
            "the chat template writes no conversation",
            got=_complaint(tokenizer),
            expected="one that transformers renders",
        )
    return found


def render(tokenizer: Any, messages: Sequence[dict[str, str]], **given: Any) -> str | None:
    """One conversation, up to where the answer begins; None where the template refuses it.

    Args:
        tokenizer: transformers', with a chat template.
        messages: the conversation.
        given: more that the template may ask for.
    """
    try:
        text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **given)
    except _REFUSALS:
        return None
    return text


def _complaint(tokenizer: Any) -> str:
    try:
        tokenizer.apply_chat_template(CONVERSATIONS[0], tokenize=False)
    except _REFUSALS as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def _encode(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _greedy(network: Any, prompt: list[int], number: int, rows: int) -> Greedy:
    tokens: list[int] = []
    logits = []
    new, cache = prompt, None
    for _ in range(number):
        output = network(input_ids=torch.tensor([new], device=network.device), past_key_values=cache, use_cache=True)
        logits.append(output.logits[0, -1, :rows].float().cpu().numpy())
        tokens.append(int(logits[-1].argmax()))
        new, cache = tokens[-1:], output.past_key_values
    return Greedy(prompt, tokens, np.stack(logits))
