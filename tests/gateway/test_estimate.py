"""Token estimates learned from what providers reported."""

from __future__ import annotations

from gateway.estimate import MODELS_MAX, Ratios


def test_an_unknown_model_counts_four_bytes_a_token_rounded_up() -> None:
    assert Ratios().tokens("m", output=True, text_bytes=9) == 3
    assert Ratios().tokens("m", output=True, text_bytes=0) == 0


def test_reported_usage_moves_the_estimate_of_that_model_and_direction_only() -> None:
    ratios = Ratios()
    for _ in range(50):
        ratios.learn("m", output=True, text_bytes=800, tokens=100)
    assert ratios.tokens("m", output=True, text_bytes=800) == 100
    assert ratios.tokens("m", output=False, text_bytes=800) == 200
    assert ratios.tokens("n", output=True, text_bytes=800) == 200


def test_absurd_pairs_are_ignored() -> None:
    ratios = Ratios()
    for text_bytes, tokens in ((10, 1), (1000, 0), (1000, -5), (100_000, 1), (100, 10_000)):
        ratios.learn("m", output=True, text_bytes=text_bytes, tokens=tokens)
    assert ratios.tokens("m", output=True, text_bytes=400) == 100


def test_the_memory_is_bounded() -> None:
    ratios = Ratios()
    for n in range(MODELS_MAX + 5):
        ratios.learn(f"m{n}", output=True, text_bytes=100, tokens=50)
    assert len(ratios._ratios) == MODELS_MAX
