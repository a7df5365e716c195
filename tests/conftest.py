"""Fixtures for all tests: a small Korean corpus, tokenizers trained on it, and the real corpora where they are."""

import atexit
import gc
import logging
import os
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

import pytest
from hypothesis import settings

from megatron_ko.data.tokenizer import TokenizerOptions, train_tokenizer

ROOT = Path(__file__).parents[1]

# Tests compute in this process and also fork ranks from it. A fork does not take a pool of OpenMP threads along, and
# a rank that then computes with several threads waits for them forever: so no pool is ever started here.
os.environ["OMP_NUM_THREADS"] = "1"


# Examples of properties are the same in every run, and may take long on a busy machine; new ones are drawn with
# pytest --hypothesis-profile=default.
settings.register_profile("same", deadline=None, derandomize=True)
settings.load_profile("same")


# What collection makes stays: to look through it for garbage is a waste here, and in a forked rank it also copies it.
gc.disable()


def pytest_collection_finish() -> None:
    """Collect garbage from here on, of what tests make."""
    gc.freeze()
    atexit.register(gc.unfreeze)
    gc.enable()


@pytest.fixture(autouse=True)
def _no_world_stays() -> Iterator[None]:
    """A rank that inherits a process group waits for its threads forever: tests make theirs in a forked child."""
    yield
    import torch.distributed as dist  # not above: torch reads OMP_NUM_THREADS when it is imported

    world = dist.is_initialized() or any("gloo" in name for name in _threads())
    assert not world, "this test left a process group behind: use run_ranks or tests/isolated.py"


def _threads() -> Iterator[str]:
    for path in Path("/proc/self/task").glob("*/comm"):
        with suppress(OSError):  # it has ended meanwhile
            yield path.read_text()


@pytest.fixture(autouse=True)
def _messages_as_before() -> Iterator[None]:
    """A test that configures our logger leaves it as it was: it writes to a stream that has ended with the test, and
    pytest catches the messages of a logger twice that starts to propagate while it listens there."""
    logger = logging.getLogger("megatron_ko")
    handlers, propagate, level = [*logger.handlers], logger.propagate, logger.level
    yield
    logger.handlers[:], logger.propagate = handlers, propagate
    logger.setLevel(level)


_SYLLABLES = (
    "가나다라마바사아자차카타파하고노도로모보소오조호기니디리미비시이지치학교사람시간바다나무언어자료역사음악날씨"
)
_ENDINGS = ("이", "가", "을", "를", "은", "는", "에서", "으로", "에게", "의", "도", "만", "까지")
_VERBS = ("간다", "왔다", "보았다", "만들었다", "좋다", "ㅋㅋ", "배웠습니다", "읽는다", "생각했어요", "없다")
_CODE = "def f(x):\n    if x > 10:\n        return x\n    return [i for i in range(x)]\n"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real Korean corpora; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("MEGATRON_KO_SHARED_DATA", ROOT.parent / "shared/data"))
    if not folder.is_dir():
        pytest.skip(f"no real corpora at {folder}; set MEGATRON_KO_SHARED_DATA")
    return folder


@pytest.fixture(scope="session")
def korean() -> Callable[[int, int], list[str]]:
    """A seeded generator of small documents: ``korean(number, seed)``; many tests ask for the same ones."""

    @cache
    def drawn(number: int, seed: int) -> tuple[str, ...]:
        draw = random.Random(seed)
        words = random.Random(0)
        nouns = ["".join(words.choices(_SYLLABLES, k=words.randint(1, 3))) for _ in range(400)]
        documents = []
        for index in range(number):
            sentences = [
                f"{draw.choice(nouns)}{draw.choice(_ENDINGS)} {draw.choice(nouns)}{draw.choice(_ENDINGS)} "
                f"{draw.choice(_VERBS)} {draw.randrange(1000)}."
                for _ in range(draw.randint(1, 12))
            ]
            code = _CODE if index % 10 == 0 else ""
            documents.append(draw.choice([" ", "\n"]).join(sentences) + code)
        return tuple(documents)

    def generate(number: int, seed: int = 0) -> list[str]:
        return [*drawn(number, seed)]

    return generate


@pytest.fixture(scope="session")
def tokenizer_folder(
    tmp_path_factory: pytest.TempPathFactory, korean: Callable[..., list[str]]
) -> Callable[[str], Path]:
    """A trained tokenizer by algorithm, trained once a session: ``tokenizer_folder("unigram")``."""
    base = tmp_path_factory.mktemp("tokenizers")
    text = base / "text.txt"
    text.write_text("\n".join(korean(3000, 1)), encoding="utf-8")

    def folder(model: str) -> Path:
        output = base / model
        if not output.exists():
            train_tokenizer([text], output, TokenizerOptions(model=model, vocab_size=640))
        return output

    return folder
