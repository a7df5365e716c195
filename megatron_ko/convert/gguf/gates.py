"""The proof of a GGUF file: llama.cpp makes of it what transformers makes of the folder. Nothing may be skipped."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_ko.convert.gates import Gate
from megatron_ko.convert.gguf.llama_cpp import QUANTISED, LlamaModel
from megatron_ko.convert.gguf.reference import LogitSample, Reference

# Positions that are compared at once: five arrays of fp64 over the whole vocabulary are made of them.
_ROWS = 32


@dataclass(frozen=True)
class Limits:
    """How far a file may be from the folder it was made of.

    Attributes:
        difference: largest absolute difference of logits, None: no limit, because one number of a distribution may move
            far while the distribution does not.
        top1: smallest share of positions whose most probable token is the same.
        kl: largest mean Kullback-Leibler divergence, from transformers' distribution, in nats a token.
        perplexity: largest perplexity on the text, divided by transformers'.
    """

    difference: float | None
    top1: float
    kl: float
    perplexity: float


# f32: only the order of sums differs. The others: the worst that SmolLM2-135M, a small model that loses much, showed on
# English and Korean text and on the built-in passages (the table is in docs/gguf.md), times a factor: 4 for f16 and
# bf16, whose numbers are compared one by one besides, 1.5 for quantised files. There q5_k_m was worse than q4_k_m,
# because its rows of 576 take Q5_1 instead of Q5_K; a larger file that reads worse than q4_k_m is not worth writing.
_Q4_K_M = Limits(None, 0.71, 1.7e-1, 1.13)
LIMITS = {
    "f32": Limits(1e-3, 1.0, 1e-6, 1.0001),
    "f16": Limits(None, 0.988, 1.6e-5, 1.0005),
    "bf16": Limits(None, 0.95, 1e-3, 1.001),
    "q8_0": Limits(None, 0.905, 1.3e-2, 1.01),
    "q5_k_m": _Q4_K_M,
    "q4_k_m": _Q4_K_M,
}


@dataclass(frozen=True)
class Distance:
    """How far the distributions of a file are from transformers'.

    Attributes:
        positions: how many were compared.
        difference: largest absolute difference of logits.
        other_top: share of positions whose most probable token is another one.
        kl: mean Kullback-Leibler divergence from transformers' distribution, in nats a token.
        ratio: perplexity on the texts, divided by transformers'; 1 where there are none.
        error: standard error of the logarithm of that ratio, from the scatter of its terms.
    """

    positions: int
    difference: float
    other_top: float
    kl: float
    ratio: float
    error: float


def measure(model: LlamaModel, samples: Iterable[LogitSample]) -> Distance:
    """Compare the distributions of a file with transformers', on the same tokens."""
    difference, changed, divergence, positions = 0.0, 0, 0.0, 0
    rises = [np.zeros(0)]
    for sample in samples:
        found = model.logits(sample.tokens)[:, : sample.logits.shape[1]]
        positions += len(sample.tokens)
        for start in range(0, len(found), _ROWS):
            one, other = found[start : start + _ROWS], sample.logits[start : start + _ROWS]
            difference = float(np.maximum(difference, np.abs(one - other).max()))  # NaN stays
            changed += int((one.argmax(-1) != other.argmax(-1)).sum())
            ours, theirs = _log_softmax(other), _log_softmax(one)
            divergence += float((np.exp(ours) * (ours - theirs)).sum())
            if sample.kind == "text":
                following = np.array(sample.tokens[start + 1 : start + 1 + _ROWS], dtype=int)[:, None]
                rises.append(np.take_along_axis((ours - theirs)[: len(following)], following, 1)[:, 0])
    rise = np.concatenate(rises)  # of the loss, token by token
    mean, error = (float(rise.mean()), float(rise.std() / math.sqrt(len(rise)))) if len(rise) else (0.0, 0.0)
    return Distance(positions, difference, changed / positions, divergence / positions, float(np.exp(mean)), error)


def compare_logits(kind: str, model: LlamaModel, reference: Reference) -> list[Gate]:
    """Logits of one file against those of transformers, on the same tokens.

    A quantised file is judged on text and conversations: what it does to random ids says nothing of a language. But
    for f32 a perplexity is too high only by more than chance, two standard errors: it scatters by percents.
    """
    limits = LIMITS[kind]
    found = measure(model, (one for one in reference.samples if kind not in QUANTISED or one.kind != "random"))
    sure = found.ratio * math.exp(-2 * found.error if kind != "f32" else 0.0)
    measured = {
        "logits": (found.difference, limits.difference, f"differ by {found.difference:.2e}, less than {{:.0e}} wanted"),
        "top token": (found.other_top, 1 - limits.top1, f"{found.other_top:.2%} differ, at most {{:.1%}} wanted"),
        "KL divergence": (found.kl, limits.kl, f"{found.kl:.2e} nats, less than {{:.1e}} wanted"),
        "perplexity": (
            sure,
            limits.perplexity,
            f"ratio {found.ratio:.5f} ± {found.error:.5f}, less than {{:g}} wanted",
        ),
    }
    return [
        Gate(f"{kind}: {name}", found.positions, value < limit or value == 0, words.format(limit))
        for name, (value, limit, words) in measured.items()
        if limit is not None
    ]


def compare_generation(kind: str, model: LlamaModel, reference: Reference) -> Gate:
    """The most probable tokens, one by one through llama.cpp's cache; ties within rounding are allowed."""
    limit = LIMITS["f32"].difference or 0.0
    number = 0
    for greedy in reference.greedy:
        logits = model.logits(greedy.prompt)[-1]
        for step, (token, expected) in enumerate(zip(greedy.tokens, greedy.logits, strict=True)):
            chosen = int(logits[: len(expected)].argmax())
            if chosen != token and float(expected[token] - expected[chosen]) >= limit:
                found = f"token {step + 1} is {chosen}, transformers' is {token}"
                return Gate(f"{kind}: greedy generation", number + 1, False, found)
            logits = model.logits([token], len(greedy.prompt) + step)[-1]
            number += 1
    return Gate(f"{kind}: greedy generation", number, True, "the same tokens")


def compare_tensors(kind: str, path: Path, expected: dict[str, tuple[int, ...]], model: LlamaModel) -> Gate:
    """Every tensor is in the file once, in its shape, and llama.cpp counts as many parameters.

    Args:
        kind: of the file.
        path: the file.
        expected: shapes by name, Hugging Face's order of axes.
        model: the file in llama.cpp.
    """
    import gguf

    present = {tensor.name: tuple(int(n) for n in reversed(tensor.shape)) for tensor in gguf.GGUFReader(path).tensors}
    count = sum(math.prod(shape) for shape in expected.values())
    wrong = [f"{name} is missing" for name in expected if name not in present]
    wrong += [f"{name} is unexpected" for name in present if name not in expected]
    wrong += [
        f"{name} is {list(present[name])}, not {list(shape)}"
        for name, shape in expected.items()
        if present.get(name, shape) != shape
    ]
    if model.parameters != count:
        wrong.append(f"llama.cpp counts {model.parameters:,} parameters")
    found = wrong[0] if wrong else f"{count:,} parameters"
    return Gate(f"{kind}: tensors", len(expected), not wrong, found)


def compare_values(kind: str, tried: int, differing: Iterable[str]) -> Gate:
    """Every constant and, in a file of a float type, every number is the folder's, rounded to the type."""
    found = list(differing)
    return Gate(f"{kind}: values", tried, not found, f"{len(found)} differ: {'; '.join(found[:3])}" if found else "")


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    result: np.ndarray = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result
