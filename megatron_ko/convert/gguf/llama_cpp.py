"""The little that is needed of llama.cpp: load a file, its logits, its tokenizer, its quantiser. Needs ``[gguf]``.

llama-cpp-python's own class overrides what the file says of YaRN and keeps keys and values in fp16; here everything
comes from the file and is computed as exactly as llama.cpp can.
"""

import ctypes
import os
from collections import deque
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch

from megatron_ko.errors import ConvertError

# What llama.cpp's quantiser is asked for.
QUANTISED = ("q8_0", "q5_k_m", "q4_k_m")
_BATCH = 512
_said: deque[str] = deque(maxlen=50)


def require_packages() -> None:
    """Refuse to begin without the packages that are needed.

    Raises:
        ConvertError: a package of the extra ``[gguf]`` is not installed.
    """
    packages = {"gguf": "gguf", "llama_cpp": "llama-cpp-python"}
    if missing := [package for module, package in packages.items() if find_spec(module) is None]:
        raise ConvertError(
            "a GGUF file is written with gguf and proved with llama.cpp; without them there is none",
            got=f"{', '.join(missing)} not installed",
            remedy='pip install "megatron_ko[gguf]" (llama.cpp is compiled, which takes minutes), or make install-gguf',
        )


def _library() -> Any:
    """The binding. What llama.cpp says is kept, not printed, and a failed assertion of its own starts no debugger."""
    import llama_cpp

    os.environ.setdefault("GGML_NO_BACKTRACE", "1")

    llama_cpp.llama_log_set(_KEEP, ctypes.c_void_p(0))
    return llama_cpp


@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
def _KEEP(level: int, text: bytes, _: object) -> None:
    if level >= 4:  # errors
        _said.append(text.decode("utf-8", errors="replace").strip())


class LlamaModel:
    """A GGUF file in llama.cpp. A context manager.

    Args:
        path: the file.
        context: tokens of the longest text; 0: only the vocabulary is loaded.

    Raises:
        ConvertError: llama.cpp refuses the file, with its own words.
    """

    def __init__(self, path: Path, context: int = 0) -> None:
        self._api = _library()
        _said.clear()
        parameters = self._api.llama_model_default_params()
        parameters.vocab_only = context == 0
        parameters.n_gpu_layers = 0
        self._model = self._api.llama_model_load_from_file(os.fsencode(path), parameters)
        if not self._model:
            raise ConvertError("llama.cpp does not load the file", got=f"{path.name}: {'; '.join(_said)}"[:1000])
        self._vocabulary = self._api.llama_model_get_vocab(self._model)
        self.size: int = self._api.llama_vocab_n_tokens(self._vocabulary)
        self._context = self._open(context) if context else None

    def _open(self, context: int) -> Any:
        parameters = self._api.llama_context_default_params()
        parameters.n_ctx = context
        parameters.n_batch = parameters.n_ubatch = _BATCH
        parameters.type_k = parameters.type_v = 0  # GGML_TYPE_F32
        parameters.flash_attn_type = 0  # disabled: it computes in fp16
        parameters.n_threads = parameters.n_threads_batch = torch.get_num_threads()
        opened = self._api.llama_init_from_model(self._model, parameters)
        if not opened:
            self._api.llama_model_free(self._model)
            raise ConvertError("llama.cpp makes no context", got="; ".join(_said)[:1000])
        return opened

    def __enter__(self) -> "LlamaModel":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._context:
            self._api.llama_free(self._context)
        self._api.llama_model_free(self._model)

    @property
    def parameters(self) -> int:
        """Elements of all tensors, as llama.cpp counts them."""
        return int(self._api.llama_model_n_params(self._model))

    @property
    def template(self) -> str | None:
        """The chat template in the file."""
        found = self._api.llama_model_chat_template(self._model, None)
        return found.decode("utf-8") if found else None

    def logits(self, tokens: Sequence[int], start: int = 0) -> np.ndarray:
        """Logits [s, v] after each token.

        Args:
            tokens: ids.
            start: how many tokens the cache holds that these follow; 0 forgets them all.
        """
        assert self._context, "loaded without a context"
        assert start + len(tokens) <= self._api.llama_n_ctx(self._context), "llama.cpp aborts the process"
        if start == 0:
            self._api.llama_memory_clear(self._api.llama_get_memory(self._context), True)
        parts = []
        for first in range(0, len(tokens), _BATCH):
            parts.append(self._decode(tokens[first : first + _BATCH], start + first))
        return np.concatenate(parts)

    def _decode(self, tokens: Sequence[int], start: int) -> np.ndarray:
        batch = self._api.llama_batch_init(len(tokens), 0, 1)
        try:
            batch.n_tokens = len(tokens)
            for index, token in enumerate(tokens):
                batch.token[index], batch.pos[index] = int(token), start + index
                batch.n_seq_id[index], batch.seq_id[index][0], batch.logits[index] = 1, 0, True
            if status := self._api.llama_decode(self._context, batch):
                raise ConvertError("llama.cpp cannot compute", got=f"status {status}; {'; '.join(_said)}"[:1000])
            found = self._api.llama_get_logits(self._context)
            return np.ctypeslib.as_array(found, shape=(len(tokens), self.size)).copy()
        finally:
            self._api.llama_batch_free(batch)

    def tokenise(self, text: str, *, parse_special: bool = False, complete: bool = False) -> list[int]:
        """Ids of a text; with ``complete``, and of what llama.cpp puts before and after a prompt by default."""
        encoded = text.encode("utf-8")
        room = 3 * len(encoded) + 8  # a space may become U+2581, and that three bytes
        ids = (ctypes.c_int32 * room)()
        number = self._api.llama_tokenize(self._vocabulary, encoded, len(encoded), ids, room, complete, parse_special)
        assert number >= 0, f"{-number} tokens for {len(encoded)} bytes"
        return ids[:number]

    def piece(self, token: int) -> bytes:
        """What a token adds to a text; nothing for a special one."""
        length = -1024  # negative: the room that it takes
        while length < 0:
            room = ctypes.create_string_buffer(-length)
            length = self._api.llama_token_to_piece(self._vocabulary, token, room, len(room), 0, False)
        return room.raw[:length]

    def controls(self, token: int) -> bool:
        """Whether llama.cpp treats the token as a control token, whatever the file says."""
        return bool(self._api.llama_vocab_is_control(self._vocabulary, token))

    def ends(self, token: int) -> bool:
        """Whether llama.cpp stops at the token."""
        return bool(self._api.llama_vocab_is_eog(self._vocabulary, token))

    def generate(self, prompt: Sequence[int], limit: int) -> list[int]:
        """The most probable continuation, up to ``limit`` tokens; a token that ends it is the last."""
        tokens: list[int] = []
        new: Sequence[int] = prompt
        start = 0
        while len(tokens) < limit:
            tokens.append(int(self.logits(new, start)[-1].argmax()))
            if self.ends(tokens[-1]):
                break
            start += len(new)
            new = tokens[-1:]
        return tokens


def quantise(source: Path, target: Path, kind: str) -> None:
    """Write ``target`` with llama.cpp's own quantiser.

    Args:
        source: a file of a float type.
        target: to write.
        kind: one of ``QUANTISED``.

    Raises:
        ConvertError: llama.cpp refuses, with its own words.
    """
    api = _library()
    _said.clear()
    types = {
        "q8_0": api.LLAMA_FTYPE_MOSTLY_Q8_0,
        "q5_k_m": api.LLAMA_FTYPE_MOSTLY_Q5_K_M,
        "q4_k_m": api.LLAMA_FTYPE_MOSTLY_Q4_K_M,
    }
    parameters = api.llama_model_quantize_default_params()
    parameters.ftype = types[kind]
    status = api.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(parameters))
    if status or not target.is_file():
        raise ConvertError(
            f"llama.cpp does not quantise to {kind}",
            got=f"status {status}; {'; '.join(_said)}"[:1000],
            remedy="an iostream error is a full disk, mostly: free space, or write elsewhere",
        )
