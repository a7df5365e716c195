"""Generates text with a trained model: prompts in one batch, a cache of keys and values, one token per step."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from megatron_ko.data.tokenizer.chat_template import Message, TemplateError, load_template
from megatron_ko.errors import DataError
from megatron_ko.eval.load import Loaded
from megatron_ko.eval.sampling import Sampler, Sampling
from megatron_ko.models.inference_steps import steps_of

Stop = Literal["end_of_document", "end_of_turn", "max_new_tokens", "context"]


@dataclass(frozen=True, kw_only=True)
class Completion:
    """The continuation of a prompt.

    Attributes:
        prompt: the prompt as given.
        text: the continuation.
        tokens: its token ids, without the one that ends it.
        stop: why it ended; ``context`` means that the model's context was full.
    """

    prompt: str
    text: str
    tokens: list[int]
    stop: Stop


@dataclass(frozen=True)
class Prompt:
    """Tokens to continue.

    Attributes:
        text: as given.
        ids: tokens.
        ends: tokens that end the continuation, and what each of them means.
        hidden: how many tokens at the beginning are not decoded, even together with what follows.
    """

    text: str
    ids: list[int]
    ends: Mapping[int, Stop]
    hidden: int = 0


def document_prompt(loaded: Loaded, text: str) -> Prompt:
    """The beginning of a document: behind the end of another one, as in training. An empty one gives a whole text."""
    eod = loaded.tokenizer.eod
    return Prompt(text, [eod, *loaded.tokenizer.encode(text)], {eod: "end_of_document"}, hidden=1)


def chat_prompt(loaded: Loaded, messages: Sequence[Message]) -> Prompt:
    """A conversation up to where the model answers, spelt by the tokenizer's chat template.

    Raises:
        DataError: the template refuses it, or a text spells one of its markers.
        TokenizerError: the tokenizer has no chat template.
    """
    template = load_template(loaded.tokenizer)
    for message in messages:
        if marker := template.markers.search(str(message["content"])):
            raise DataError("a message spells a marker of the chat template", got=marker[0], remedy="leave it out")
    try:
        text = template.render(messages, ask=True)
    except TemplateError as error:
        raise DataError("the chat template does not take this conversation", got=error) from error
    ids = loaded.tokenizer.encode(text, parse_special=True)
    ends: dict[int, Stop] = {loaded.tokenizer.eod: "end_of_document", template.end_id: "end_of_turn"}
    return Prompt(str(messages[-1]["content"]), ids, ends)


def generate(
    loaded: Loaded,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    on_text: Callable[[str], None] | None = None,
) -> list[Completion]:
    """Continue prompts.

    Args:
        loaded: model and tokenizer.
        prompts: what to continue.
        sampling: how tokens are chosen.
        on_text: called with every new piece of the first continuation once its characters are complete.

    Raises:
        DataError: a prompt fills the model's context.
    """
    texts = [_Text(loaded, prompt) for prompt in prompts]
    ended: dict[int, Stop] = {}
    sampler = Sampler(sampling, len(prompts))
    for chosen in continue_tokens(loaded, [prompt.ids for prompt in prompts], sampler, sampling.max_new_tokens):
        for row, token in chosen.items():
            if row in ended:
                continue
            if token in prompts[row].ends:
                ended[row] = prompts[row].ends[token]
                continue
            texts[row].add(token)
            if row == 0 and on_text:
                on_text(texts[row].news())
            if len(texts[row].tokens) == sampling.max_new_tokens:
                ended[row] = "max_new_tokens"
        if len(ended) == len(prompts):
            break
    if on_text:
        on_text(texts[0].news(final=True))
    return [
        Completion(prompt=prompt.text, text=text.so_far(), tokens=text.tokens, stop=ended.get(row, "context"))
        for row, (prompt, text) in enumerate(zip(prompts, texts, strict=True))
    ]


def continue_tokens(
    loaded: Loaded, prompts: Sequence[Sequence[int]], sampler: Sampler, max_new_tokens: int
) -> Iterator[dict[int, int]]:
    """Yield the chosen tokens of each step: row -> token.

    Rows are not padded, so no mask is needed and every token has its true position. The batch begins with as many
    tokens as the shortest prompt has; until the end of a longer prompt, its own next token is fed.

    Args:
        loaded: the model.
        prompts: token ids, at least one each.
        sampler: chooses tokens for all rows at once.
        max_new_tokens: maximum number of tokens added to a prompt.

    Raises:
        DataError: a prompt fills the model's context.
    """
    context = loaded.network.max_position_embeddings
    longest, shortest = max(map(len, prompts)), min(map(len, prompts))
    if longest >= context:
        raise DataError("a prompt fills the model's context", got=f"{longest} tokens", expected=f"fewer than {context}")
    limit = min(context, longest + max_new_tokens)
    steps = steps_of(loaded.model, len(prompts), limit)
    batch = torch.tensor([list(prompt[:shortest]) for prompt in prompts], device=loaded.device)  # [b, s]
    for length in range(shortest, limit):
        over = [row for row, prompt in enumerate(prompts) if length >= len(prompt)]
        logits = steps.logits(batch)[:, : loaded.network.vocab_size].float()  # without padding rows
        new = sampler.choose(logits, over)
        given = [new[row] if row in new else prompt[length] for row, prompt in enumerate(prompts)]
        batch = torch.tensor(given, device=loaded.device).unsqueeze(1)  # [b, 1]
        yield new


class _Text:
    """The text of one row as its tokens arrive; a character of several tokens is emitted once it is complete."""

    def __init__(self, loaded: Loaded, prompt: Prompt) -> None:
        self._decode = loaded.tokenizer.decode
        self._prompt = prompt.ids[prompt.hidden :]
        self._prefix = len(self._decode(self._prompt))
        self._told = 0
        self.tokens: list[int] = []

    def add(self, token: int) -> None:
        self.tokens.append(token)

    def so_far(self) -> str:
        # Decoded together with the prompt, because a decoder may strip the space before the first token.
        return self._decode([*self._prompt, *self.tokens])[self._prefix :]

    def news(self, final: bool = False) -> str:
        text = self.so_far()
        end = len(text) if final else len(text.rstrip("\ufffd"))
        news = text[self._told : end]
        self._told = max(self._told, end)
        return news
