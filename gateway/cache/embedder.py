"""Vectors of texts by a static model on this machine: the mean of its tokens' vectors. No network, no GPU.

The model is a folder as model2vec saves it (https://github.com/MinishLab/model2vec): `model.safetensors` with the
tensor `embeddings` (one row per token) and `tokenizer.json`. Of newer ones the tensors `weights` (one per token) and
`mapping` (the row of each token) are read as well. What is computed is what that library's `encode` computes, always at
unit length, so `config.json` with its `normalize` is not needed.

The embeddings are mapped into memory, so workers share them. Loading reads files: do it before requests are served.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from gateway.cache.semantic import numpy_module, unit_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[Any]
    Matrix = NDArray[np.float32]

TOKENS_MAX = 512  # of a text; what is behind them is not read, as in the library
HEADER_MAX = 16 * 1024 * 1024
_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I8": "i1", "I64": "<i8", "I32": "<i4"}
_NAMES = ("embeddings", "embedding.weight")  # the second where sentence-transformers saved it


class EmbedderError(Exception):
    """The folder does not hold a static model that can be read; says what is wrong."""


class _Tensor(msgspec.Struct):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


class LocalEmbedder:
    """A loaded model. `dimension` is that of its vectors, `name` tells models apart."""

    def __init__(self, folder: Path) -> None:
        """Raises `EmbedderError`."""
        tensors = _tensors(folder / "model.safetensors")
        name = next((name for name in _NAMES if name in tensors), None)
        if name is None:
            raise EmbedderError("model.safetensors holds no tensor 'embeddings'")
        self._rows: Array = tensors[name]
        if self._rows.ndim != 2 or not self._rows.size:
            raise EmbedderError("the tensor 'embeddings' is not a table")
        self.name = folder.name
        self.dimension = int(self._rows.shape[1])
        self._weights: Array | None = tensors.get("weights")
        self._mapping: Array | None = tensors.get("mapping")
        self._tokenizer = _tokenizer(folder / "tokenizer.json")
        tokens = self._tokenizer.get_vocab()
        self._check(max(tokens.values(), default=-1) + 1)
        unknown = getattr(self._tokenizer.model, "unk_token", None)
        self._unknown = tokens.get(unknown, -1) if isinstance(unknown, str) else -1
        lengths = sorted(map(len, tokens))
        # The library cuts texts by the median length of its tokens before it looks at them.
        self._characters = TOKENS_MAX * max(1, lengths[len(lengths) // 2])

    def embed(self, text: str) -> Matrix | None:
        """The vector of a text at unit length; None when the model knows none of its tokens."""
        np = numpy_module()
        known = self._tokenizer.encode(text[: self._characters], add_special_tokens=False).ids
        ids = [id for id in known if id != self._unknown][:TOKENS_MAX]
        if not ids:
            return None
        rows = self._rows[ids if self._mapping is None else self._mapping[ids]].astype("float32")
        if self._weights is not None:
            rows = rows * self._weights[ids].astype("float32")[:, None]
        mean: Matrix = np.mean(rows, axis=0)
        return unit_of(mean)

    def _check(self, tokens: int) -> None:
        """Whether every token has a row. Raises `EmbedderError`."""
        weights, mapping, rows = self._weights, self._mapping, len(self._rows)
        if weights is not None and (weights.ndim != 1 or len(weights) < tokens):
            raise EmbedderError("the tensor 'weights' does not fit the tokens")
        if mapping is None:
            if rows < tokens:
                raise EmbedderError(f"there are {tokens} tokens and vectors for {rows} of them")
            return
        if mapping.ndim != 1 or len(mapping) < tokens or mapping.dtype.kind != "i":
            raise EmbedderError("the tensor 'mapping' does not fit the tokens")
        if len(mapping) and (int(mapping.min()) < 0 or int(mapping.max()) >= rows):
            raise EmbedderError("the tensor 'mapping' names vectors that are not there")


def _tokenizer(path: Path) -> Any:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as exc:  # the library raises nothing more exact
        raise EmbedderError(f"tokenizer.json cannot be read: {str(exc)[:200]}") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _tensors(path: Path) -> dict[str, Array]:
    """The tensors of a safetensors file, over its mapped bytes.

    The format: the length of a header in 8 bytes, the header (JSON: name, type, shape and place of each tensor), and
    the numbers, little-endian (https://github.com/huggingface/safetensors). Raises `EmbedderError`.
    """
    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as exc:  # an empty file cannot be mapped
        raise EmbedderError(f"model.safetensors cannot be read: {exc}") from None
    if len(mapped) < 8:
        raise EmbedderError("model.safetensors is cut off")
    (length,) = struct.unpack("<Q", mapped[:8])
    if length > min(HEADER_MAX, len(mapped) - 8):
        raise EmbedderError("model.safetensors has no header")
    try:
        header = msgspec.json.decode(mapped[8 : 8 + length], type=dict[str, msgspec.Raw])
        header.pop("__metadata__", None)
        told = {name: msgspec.json.decode(raw, type=_Tensor) for name, raw in header.items()}
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise EmbedderError("the header of model.safetensors is not readable") from None
    return {name: _tensor(name, tensor, mapped, 8 + length) for name, tensor in told.items()}


def _tensor(name: str, tensor: _Tensor, mapped: mmap.mmap, start: int) -> Array:
    np = numpy_module()
    begin, end = tensor.data_offsets
    dtype = _DTYPES.get(tensor.dtype)
    if dtype is None:
        raise EmbedderError(f"the numbers of '{name}' are of the type {tensor.dtype[:16]}, which is not read")
    count = 1
    for size in tensor.shape:
        count *= size
    if (
        min(tensor.shape, default=0) < 0
        or not 0 <= begin <= end <= len(mapped) - start
        or end - begin != count * np.dtype(dtype).itemsize
    ):
        raise EmbedderError(f"the tensor '{name}' lies outside of its file")
    array: Array = np.frombuffer(mapped, dtype, count, start + begin).reshape(tensor.shape)
    return array
