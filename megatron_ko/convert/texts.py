"""What models are compared on: random ids, Korean and English text, and conversations."""

from typing import Any

import torch
from torch import Tensor

from megatron_ko.config import ModelConfig
from megatron_ko.config.rope import DynamicScaling
from megatron_ko.data.tokenizer import Tokenizer

# Token ids [b, s] to compare models on, by what they are.
TokenSamples = dict[str, list[Tensor]]

LENGTHS = (1, 7, 64, 257)
_QUICK = 64  # tokens of each text of a quick proof
LONGEST = 4096  # of a sample that is to reach beyond a window
TEXTS = {
    "korean": (
        "가을이 되면 산길에는 낙엽이 쌓이고, 아침마다 안개가 강을 따라 천천히 흘러간다.",
        "이 함수는 목록을 정렬한 뒤 가운데 값을 돌려준다.\n\n    >>> 중앙값([3, 1, 2])\n    2\n",
    ),
    "english": (
        "The library opens at nine, and by ten every seat near the windows is taken.",
        "To sort the list, call sorted(items); it returns a new list and leaves the old one alone.\n",
    ),
}
CHATS: tuple[list[dict[str, str]], ...] = (
    [{"role": "user", "content": "김치찌개를 맛있게 끓이는 방법을 알려 줘."}],
    [
        {"role": "user", "content": "What is the capital of Korea?"},
        {"role": "assistant", "content": "The capital of Korea is Seoul (서울)."},
        {"role": "user", "content": "고마워! 인구는 얼마나 되지?"},
    ],
)


def random_samples(model: ModelConfig) -> TokenSamples:
    """Random ids [b, s] of several lengths, with the first and the last id of the vocabulary.

    One is longer than the windows and than the context that is not stretched, because those change what is computed.
    """
    draw = torch.Generator().manual_seed(0)
    longest = model.max_position_embeddings
    edges = [*(model.windows or ()), fixed_length(model)]  # of the windows, and of the context that is not stretched
    wide = max((edge for edge in edges if edge is not None and edge < longest), default=0)
    lengths = {*LENGTHS, min(wide + 16, LONGEST)} if wide else set(LENGTHS)
    samples = []
    for length in sorted({min(length, longest) for length in lengths}):
        tokens = torch.randint(model.vocab_size, (2 if length <= max(LENGTHS) else 1, length), generator=draw)
        tokens[0, -1], tokens[-1, 0] = 0, model.vocab_size - 1
        samples.append(tokens)
    return {"random ids": samples}


def fixed_length(model: ModelConfig) -> int:
    """The longest text whose rotary positions do not depend on its length."""
    scaling = model.rope.scaling
    if isinstance(scaling, DynamicScaling):
        return scaling.original_max_position_embeddings
    return model.max_position_embeddings


def text_samples(model: ModelConfig, tokenizer: Tokenizer) -> TokenSamples:
    """Text as the model reads it in training: the end of a document before it."""
    found = {
        f"{name} text": [[tokenizer.eod, *tokenizer.encode(text)] for text in texts] for name, texts in TEXTS.items()
    }
    return {name: _cut(model, rows) for name, rows in found.items()}


def in_one_batch(samples: TokenSamples) -> TokenSamples:
    """All texts as rows of one batch: one pass over the weights. Longer ones are cut, shorter ones begin again."""
    rows = [row for group in samples.values() for row in group]
    length = min(_QUICK, max(row.shape[1] for row in rows))
    repeated = [row.repeat(1, -(-length // row.shape[1]))[:, :length] for row in rows]
    return {" and ".join(samples): [torch.cat(repeated)]}


def chat_samples(model: ModelConfig, oracle: Any) -> TokenSamples:
    """Conversations as transformers' tokenizer renders them; none without a template."""
    if not oracle.chat_template:
        return {}
    return {"chat template": _cut(model, [conversation_ids(oracle, chat) for chat in CHATS])}


def conversation_ids(oracle: Any, chat: list[dict[str, str]]) -> list[int]:
    """Token ids of a conversation, up to where the model is to answer."""
    text = oracle.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    ids: list[int] = oracle(text, add_special_tokens=False)["input_ids"]
    return ids


def _cut(model: ModelConfig, rows: list[list[int]]) -> list[Tensor]:
    return [torch.tensor([row[: model.max_position_embeddings]]) for row in rows]
