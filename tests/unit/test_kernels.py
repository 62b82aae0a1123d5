"""The compiled measures against the reference they stand in for."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rl_onoff import divergence
from workers import kernels


def rows(seed: int, count: int, vocab_size: int, scale: float) -> np.ndarray:
    logits = np.random.default_rng(seed).normal(size=(count, vocab_size)) * scale
    return (logits - np.log(np.exp(logits).sum(-1, keepdims=True))).astype(np.float32)


@pytest.mark.parametrize("vocab_size", [2, 287, 2048, 5001])
@pytest.mark.parametrize("distance", [1e-4, 1e-2, 0.3, 3.0])
def test_js_equals_the_reference(vocab_size: int, distance: float) -> None:
    p = rows(1, 20, vocab_size, 2.0)
    q = rows(1, 20, vocab_size, 2.0) + np.float32(distance) * rows(2, 20, vocab_size, 1.0)
    q = (q - np.log(np.exp(q.astype(np.float64)).sum(-1, keepdims=True))).astype(np.float32)
    np.testing.assert_allclose(kernels.js_rows(p, q), divergence.js(p, q), rtol=2e-5, atol=1e-12)


def test_js_of_equal_rows_is_exactly_zero() -> None:
    p = rows(3, 10, 3000, 4.0)
    assert kernels.js_rows(p, p.copy()).tolist() == [0.0] * 10


def test_js_of_disjoint_supports_is_ln_2() -> None:
    with np.errstate(divide="ignore"):
        p = np.log(np.array([[0.5, 0.5, 0.0, 0.0]], dtype=np.float32))
        q = np.log(np.array([[0.0, 0.0, 1.0, 0.0]], dtype=np.float32))
    assert kernels.js_rows(p, q)[0] == pytest.approx(math.log(2), abs=1e-7)
    np.testing.assert_allclose(kernels.js_rows(p, np.roll(p, 1)), divergence.js(p, np.roll(p, 1)), atol=1e-7)


def test_a_row_does_not_depend_on_the_others() -> None:
    p, q = rows(4, 9, 4097, 2.0), rows(5, 9, 4097, 2.0)
    together = kernels.js_rows(p, q)
    assert [kernels.js_rows(p[i : i + 1], q[i : i + 1])[0] for i in range(9)] == together.tolist()


@pytest.mark.parametrize("vocab_size", [2, 287, 2048, 5001])
@pytest.mark.parametrize("scale", [0.1, 2.0, 20.0])
def test_entropy_equals_the_reference(vocab_size: int, scale: float) -> None:
    p = rows(6, 20, vocab_size, scale)
    np.testing.assert_allclose(kernels.entropy_rows(p), divergence.entropy(p), rtol=2e-5, atol=1e-7)


def test_entropy_of_a_certain_token_is_exactly_zero() -> None:
    certain = np.full((1, 300), -math.inf, dtype=np.float32)
    certain[0, 7] = 0.0
    assert kernels.entropy_rows(certain).tolist() == [0.0]


def test_ranks_equal_the_reference_ties_and_excluded_tokens_too() -> None:
    p, q = np.round(rows(7, 200, 31, 2.0), 0), rows(8, 200, 31, 2.0)
    p[::3, ::2] = -math.inf
    assert kernels.rank_rows(p, q.argmax(-1)).tolist() == divergence.rank_of_best(p, q).tolist()


def test_js_never_exceeds_ln_2_however_rows_are_rounded() -> None:
    p, q = np.full((50, 400), -np.inf, np.float32), np.full((50, 400), -np.inf, np.float32)
    p[:, :200], q[:, 200:] = rows(6, 50, 200, 3.0), rows(7, 50, 200, 3.0)
    assert kernels.js_rows(p, q).max() <= math.log(2)
    assert divergence.js(p, q).max() <= math.log(2)
