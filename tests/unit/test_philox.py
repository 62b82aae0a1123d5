"""Philox against the known answers of its reference implementation, and its arithmetic in numpy, torch and ints."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rl_onoff.philox import STREAM_POLICY, STREAM_SEEDS, STREAM_TOKENS, derive_seed, philox4x32, uniform

words = st.integers(0, 2**32 - 1)
keys = st.integers(0, 2**64 - 1)
seeds = st.integers(0, 2**63 - 1)

# Random123, examples/kat_vectors: philox4x32 10.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_known_answers(counter: tuple[int, ...], key: tuple[int, int], answer: tuple[int, ...]) -> None:
    low, high = key
    assert philox4x32(*counter, key=high << 32 | low) == answer


@given(st.lists(st.tuples(words, words, words, words), min_size=1, max_size=8), keys)
def test_numpy_torch_and_python_integers_agree(counters: list[tuple[int, int, int, int]], key: int) -> None:
    expected = [philox4x32(*counter, key=key) for counter in counters]
    columns = np.array(counters, dtype=np.int64).T
    by_numpy = philox4x32(*columns, key=key)
    by_torch = philox4x32(*torch.from_numpy(columns.copy()), key=key)
    assert list(zip(*(word.tolist() for word in by_numpy), strict=True)) == expected
    assert list(zip(*(word.tolist() for word in by_torch), strict=True)) == expected


def test_words_broadcast() -> None:
    row = np.arange(5, dtype=np.int64)
    got = philox4x32(row, row[:, None], STREAM_TOKENS, 0, key=7)
    assert [word.shape for word in got] == [(5, 5)] * 4
    assert tuple(int(word[2, 3]) for word in got) == philox4x32(3, 2, STREAM_TOKENS, 0, key=7)


@given(seeds, st.integers(0, 2**31))
def test_uniform_is_inside_the_open_interval_and_repeats(seed: int, position: int) -> None:
    value = uniform(seed, position, STREAM_POLICY)
    assert 0 < value < 1
    assert value == uniform(seed, position, STREAM_POLICY)


def test_uniform_is_uniform() -> None:
    values = np.array([uniform(11, position, STREAM_POLICY) for position in range(20_000)])
    counts, _ = np.histogram(values, bins=20, range=(0, 1))
    assert ((counts - 1000) ** 2 / 1000).sum() < 43.8  # chi-square with 19 degrees of freedom, p = 0.001
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.025


def test_streams_seeds_and_positions_have_their_own_numbers() -> None:
    drawn = {
        uniform(seed, position, stream)
        for seed in (0, 1, 2**32, 2**63 - 1)
        for position in range(50)
        for stream in (STREAM_TOKENS, STREAM_POLICY, STREAM_SEEDS)
    }
    assert len(drawn) == 4 * 50 * 3


@given(seeds)
def test_the_first_part_of_a_request_keeps_its_seed(seed: int) -> None:
    assert derive_seed(seed) == derive_seed(seed, 0) == derive_seed(seed, 0, 0) == seed


def test_derived_seeds_differ_and_survive_json() -> None:
    paths = [(prompt, sample) for prompt in range(40) for sample in range(40) if (prompt, sample) != (0, 0)]
    derived = [derive_seed(5, *path) for path in paths]
    assert len(set(derived)) == len(paths)
    assert all(0 <= seed < 2**53 for seed in derived)
