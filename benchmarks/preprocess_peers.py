"""One way to encode, in a process of its own; see preprocess.py. Prints {"documents", "seconds"}.

python benchmarks/preprocess_peers.py WAY TOKENIZER WORKERS OUTPUT INPUT...
"""

import json
import multiprocessing
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_state: dict[str, Any] = {}


def ours(tokenizer: Path, workers: int, output: Path, inputs: list[Path]) -> tuple[int, float]:
    """`megatron-ko data preprocess`: everything from the check of the inputs to the named files."""
    from megatron_ko.data.tokens.preprocess import PreprocessOptions, preprocess

    start = time.perf_counter()
    (written,) = preprocess(PreprocessOptions(tuple(inputs), tokenizer, output, workers))
    return written.manifest.documents, time.perf_counter() - start


def megatron(tokenizer: Path, workers: int, output: Path, inputs: list[Path]) -> tuple[int, float]:
    """A pool that encodes line by line, and one writer that adds document by document."""
    import torch
    from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder
    from megatron.core.tokenizers import MegatronTokenizer

    assert MegatronTokenizer  # imported before the clock starts; the workers of the pool inherit it
    start = time.perf_counter()
    documents = 0
    with multiprocessing.get_context("fork").Pool(workers, _load, (str(tokenizer / "tokenizer.model"),)) as pool:
        builder = IndexedDatasetBuilder(f"{output}.bin", dtype=DType.optimal_dtype(_vocabulary(tokenizer)))
        for ids in pool.imap(_encode_line, _lines(inputs), 32):
            builder.add_document(torch.IntTensor(ids), [len(ids)])
            documents += 1
        builder.finalize(f"{output}.idx")
    return documents, time.perf_counter() - start


def _vocabulary(tokenizer: Path) -> int:
    import sentencepiece

    size: int = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer / "tokenizer.model")).get_piece_size()
    return size


def _lines(inputs: list[Path]) -> Iterator[str]:
    for path in inputs:
        with path.open(encoding="utf-8") as stream:
            yield from stream


def _load(model: str) -> None:
    from megatron.core.tokenizers import MegatronTokenizer

    _state["tokenizer"] = MegatronTokenizer.from_pretrained(
        tokenizer_path=model, metadata_path={"library": "sentencepiece"}
    )


def _encode_line(line: str) -> list[int]:
    tokenizer = _state["tokenizer"]
    ids: list[int] = tokenizer.tokenize(json.loads(line)["text"])
    ids.append(tokenizer.eod)
    return ids


def ceiling(tokenizer: Path, workers: int, output: Path, inputs: list[Path]) -> tuple[int, float]:
    """SentencePiece's own encode of lists of texts."""
    return _in_memory("lists", tokenizer, workers, inputs)


def arrays(tokenizer: Path, workers: int, output: Path, inputs: list[Path]) -> tuple[int, float]:
    """Our tokenizer's encode of many documents into one array."""
    return _in_memory("arrays", tokenizer, workers, inputs)


def _in_memory(way: str, tokenizer: Path, workers: int, inputs: list[Path]) -> tuple[int, float]:
    lines = list(_lines(inputs))
    size = -(-len(lines) // workers)
    shares = [lines[start : start + size] for start in range(0, len(lines), size)]
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(workers)
    with context.Pool(workers, _hold, (ready,)) as pool:
        times = pool.starmap(_encode_share, [(way, tokenizer, share) for share in shares], 1)
    return len(lines), max(end for _, end in times) - min(start for start, _ in times)


def _hold(ready: Any) -> None:
    _state["ready"] = ready


def _encode_share(way: str, tokenizer: Path, lines: list[str]) -> tuple[float, float]:
    from megatron_ko.data.tokenizer import load_tokenizer

    texts = [json.loads(line)["text"] for line in lines]
    batches = [texts[start : start + 10_000] for start in range(0, len(texts), 10_000)]
    loaded = load_tokenizer(tokenizer)
    _state["ready"].wait()
    start = time.monotonic()
    for batch in batches:
        if way == "lists":
            loaded.encode_batch(batch)
        else:
            loaded.encode_documents(batch, append_eod=True)
    return start, time.monotonic()


if __name__ == "__main__":
    way, tokenizer, workers, output, *inputs = sys.argv[1:]
    documents, seconds = globals()[way](Path(tokenizer), int(workers), Path(output), [Path(path) for path in inputs])
    print(json.dumps({"documents": documents, "seconds": seconds}))
