"""What a worker does with a block: parse, encode, and hand back arrays. Imports neither torch nor transformers."""

import ctypes
import os
import signal
import sys
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from megatron_ko.data.blocks import Block
from megatron_ko.data.documents import Rejected, parse_block
from megatron_ko.data.indexed import token_dtype
from megatron_ko.data.tokenizer.tokenizer import Tokenizer, load_tokenizer
from megatron_ko.errors import DataError

_PR_SET_PDEATHSIG = 1
# Blocks in work or waiting for their turn, per worker: enough to keep all busy, few enough to bound the memory.
_BLOCKS_PER_WORKER = 3


@dataclass(frozen=True)
class EncodeOptions:
    """How a worker turns records into tokens."""

    tokenizer: Path
    key: str
    append_eod: bool


@dataclass(frozen=True)
class EncodedBlock:
    """The result for one block.

    Attributes:
        source: path of the block.
        ids: [t] tokens in the dtype of the output.
        lengths: [n] int32 tokens of each document.
        text_bytes: UTF-8 bytes of the documents.
        rejected: records that were no documents.
        read: as in the block, for progress.
    """

    source: str
    ids: np.ndarray
    lengths: np.ndarray
    text_bytes: int
    rejected: list[Rejected]
    read: int


class BlockEncoder:
    """Parses and encodes blocks with one loaded tokenizer."""

    def __init__(self, options: EncodeOptions) -> None:
        self._options = options
        self._tokenizer: Tokenizer = load_tokenizer(options.tokenizer)
        self._dtype = token_dtype(self._tokenizer.vocab_size)

    def __call__(self, block: Block) -> EncodedBlock:
        parsed = parse_block(block, self._options.key)
        encoded = self._tokenizer.encode_documents(parsed.texts, append_eod=self._options.append_eod)
        return EncodedBlock(
            source=block.source,
            ids=encoded.ids.astype(self._dtype),
            lengths=encoded.lengths.astype(np.int32),
            text_bytes=len("".join(parsed.texts).encode("utf-8")),
            rejected=parsed.rejected,
            read=block.read,
        )


def encode_blocks(blocks: Iterable[Block], options: EncodeOptions, workers: int) -> Generator[EncodedBlock, None, None]:
    """Encode blocks on ``workers`` processes; the results come in the order of the blocks, whatever ``workers`` is.

    Raises:
        DataError: a worker died.
        TokenizerError: the tokenizer cannot be loaded.
    """
    if workers == 1:
        yield from map(BlockEncoder(options), blocks)
        return
    pool = ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=_start_worker, initargs=(options, os.getpid())
    )
    waiting: deque[Future[EncodedBlock]] = deque()
    try:
        for block in blocks:
            waiting.append(pool.submit(_encode, block))
            if len(waiting) >= workers * _BLOCKS_PER_WORKER:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise DataError(
            "a worker process died",
            got=str(error),
            expected="all workers alive to the end",
            remedy="most often the machine ran out of memory: use fewer --workers; nothing was written",
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_encoder: BlockEncoder | None = None


def _start_worker(options: EncodeOptions, parent: int) -> None:
    global _encoder
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("the parent process is gone")
    _encoder = BlockEncoder(options)


def _encode(block: Block) -> EncodedBlock:
    assert _encoder is not None
    return _encoder(block)
