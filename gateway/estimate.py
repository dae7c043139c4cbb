"""Tokens from bytes, where a provider reports no usage: a bytes-per-token ratio learned per model. Pure."""

from __future__ import annotations

START_BYTES_PER_TOKEN = 4.0  # a common figure for English text under byte-level tokenizers
WEIGHT = 0.1  # of each new observation
MODELS_MAX = 4096
LEAST_BYTES = 64  # shorter texts say too little about a ratio


class Ratios:
    """Learned bytes per token, in and out, by upstream model. Bounded to MODELS_MAX models."""

    def __init__(self) -> None:
        self._ratios: dict[tuple[str, bool], float] = {}

    def learn(self, model: str, *, output: bool, text_bytes: int, tokens: int) -> None:
        """Take one reported pair into the average. Absurd pairs are ignored."""
        if text_bytes < LEAST_BYTES or tokens <= 0:
            return
        ratio = text_bytes / tokens
        if not 0.5 <= ratio <= 32:
            return
        key = (model, output)
        known = self._ratios.get(key)
        if known is None:
            if len(self._ratios) >= MODELS_MAX:
                self._ratios.pop(next(iter(self._ratios)))
            self._ratios[key] = ratio
        else:
            self._ratios[key] = known + WEIGHT * (ratio - known)

    def knows(self, model: str) -> bool:
        """Whether an output ratio was learned for the model."""
        return (model, True) in self._ratios

    def learned(self, model: str, *, output: bool) -> float | None:
        """The bytes per token learned for the model; None = nothing was."""
        return self._ratios.get((model, output))

    def tokens(self, model: str, *, output: bool, text_bytes: int) -> int:
        """Estimated tokens of a text, rounded up; 0 for none."""
        if text_bytes <= 0:
            return 0
        ratio = self._ratios.get((model, output), START_BYTES_PER_TOKEN)
        return int(-(-text_bytes // ratio))
