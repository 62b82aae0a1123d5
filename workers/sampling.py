"""How a token is drawn from a row: one implementation for every backend, numpy and torch alike.

A token is the argmax over the filtered, temperature-scaled row plus Gumbel noise, which draws it with exactly the
filtered probabilities (Gumbel 1954; Maddison, Tarlow, Minka, "A* Sampling", NeurIPS 2014, section 2). The noise is a
pure function of (seed, position, token id), so a request replays from its seed, resumes at any position, does not
depend on what else is in the batch, and is the same for A and B: their samples agree wherever their rows allow it.

Filters apply in the order temperature, top_k, top_p, min_p, each to what the one before left, renormalised. Equal
scores go to the lowest id. Everything after the row itself is float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import array_api_compat
import numpy as np

from rl_onoff.philox import STREAM_TOKENS, philox4x32
from workers import device, kernels
from workers.wire import SamplingParams

Array = Any  # a numpy array or torch tensor


def gumbel(seed: int, positions: Sequence[int], vocab_size: int, like: Array) -> Array:
    """Standard Gumbel noise `[len(positions), vocab_size]` in float64, in the library and on the device of `like`.

    Token v at position t takes word v % 4 of Philox(counter = (v // 4, t, STREAM_TOKENS, 0), key = seed), as a
    uniform (w + 1/2) / 2**32.
    """
    xp = array_api_compat.array_namespace(like)
    device = array_api_compat.device(like)
    blocks = xp.arange(-(-vocab_size // 4), dtype=xp.int64, device=device)[None, :]
    places = xp.asarray(list(positions), dtype=xp.int64, device=device)[:, None]
    words = philox4x32(blocks, places, STREAM_TOKENS, 0, seed)
    stacked = xp.stack(xp.broadcast_arrays(*words), axis=-1)
    flat = xp.reshape(stacked, (len(positions), -1))[:, :vocab_size]
    uniform = (xp.astype(flat, xp.float64) + 0.5) * 2.0**-32
    return -xp.log(-xp.log(uniform))


def scores(rows: Array, params: SamplingParams) -> Array:
    """Filtered float64 scores of rows, `[n, V]`: log-probabilities up to a constant, -inf where filtered out.

    Each row's best token scores 0, so no temperature, however small, overflows.
    """
    xp = array_api_compat.array_namespace(rows)
    wide = xp.astype(rows, xp.float64)
    scaled = (wide - xp.max(wide, axis=-1, keepdims=True)) / (params.temperature or 1.0)
    vocab_size = scaled.shape[-1]
    keep = scaled >= (math.log(params.min_p) if params.min_p > 0 else -math.inf)
    if 0 < params.top_k < vocab_size or params.top_p < 1:
        order = xp.argsort(scaled, axis=-1, descending=True, stable=True)
        rank = xp.argsort(order, axis=-1)
        best_first = xp.exp(xp.take_along_axis(scaled, order, axis=-1))
        count = params.top_k if 0 < params.top_k < vocab_size else vocab_size
        if params.top_p < 1:
            mass = xp.cumulative_sum(best_first[:, :count], axis=-1)
            # A token is kept while the mass before it is below top_p: the one that crosses it is the last.
            before = (mass - best_first[:, :count]) / mass[:, -1:]
            kept = xp.sum(
                xp.astype(before < params.top_p, xp.int64), axis=-1, keepdims=True
            )  # the first has 0 before it
            keep = keep & (rank < kept)
        else:
            keep = keep & (rank < count)
    return xp.where(keep, scaled, xp.full_like(scaled, -math.inf))


def filters(params: SamplingParams, vocab_size: int) -> bool:
    """Whether any token may be filtered out."""
    return 0 < params.top_k < vocab_size or params.top_p < 1 or params.min_p > 0


def choose(rows: Array, params: SamplingParams, positions: Sequence[int]) -> list[int]:
    """The token drawn from each row `[n, V]`, for the tokens at `positions`; the best token at temperature 0."""
    return draw(rows, params, positions)[0]


def draw(rows: Array, params: SamplingParams, positions: Sequence[int]) -> tuple[list[int], list[float]]:
    """`choose`, and by how much each token won: what the log-probabilities would have to move, in nats.

    inf where nothing else could be drawn. A change of what the filters keep is not considered.
    """
    if device.reaches(rows):
        return draw_each(rows, [params] * len(positions), positions)
    return _draw(rows, params, positions)


def draw_each(rows: Array, params: Sequence[SamplingParams], positions: Sequence[int]) -> tuple[list[int], list[float]]:
    """`draw` from rows `[n, V]` of different requests, each with its own parameters: on a GPU together."""
    if not device.reaches(rows):
        drawn = [_draw(rows[i : i + 1], one, [positions[i]]) for i, one in enumerate(params)]
        return [token for (token,), _ in drawn], [gap for _, (gap,) in drawn]
    xp = array_api_compat.array_namespace(rows)
    tokens, gaps = [-1] * len(params), [math.inf] * len(params)
    kinds = ["greedy" if p.temperature == 0 else "filtered" if filters(p, rows.shape[-1]) else "plain" for p in params]
    for kind in dict.fromkeys(kinds):
        mine = [i for i, other in enumerate(kinds) if other == kind]
        own = rows if len(mine) == len(kinds) else rows[mine]
        temperatures = [params[i].temperature for i in mine]
        if kind == "greedy":
            found = _best(own)
        else:
            if kind == "filtered":
                own = xp.concat([scores(own[j : j + 1], params[i]) for j, i in enumerate(mine)])
            scales = [1.0] * len(mine) if kind == "filtered" else temperatures
            found = device.draw(own, scales, [params[i].seed for i in mine], [positions[i] for i in mine])
        for i, token, gap in zip(mine, *found, strict=True):
            tokens[i], gaps[i] = token, gap * params[i].temperature if kind == "filtered" else gap
    return tokens, gaps


def _best(rows: Array) -> tuple[list[int], list[float]]:
    """The best token of each row, and its lead."""
    xp = array_api_compat.array_namespace(rows)
    tokens = xp.argmax(rows, axis=-1)
    others = xp.where(
        xp.arange(rows.shape[-1], device=array_api_compat.device(rows))[None] == tokens[:, None], -math.inf, rows
    )
    gaps = xp.max(rows, axis=-1) - xp.max(others, axis=-1)
    return tokens.tolist(), gaps.tolist()


def _draw(rows: Array, params: SamplingParams, positions: Sequence[int]) -> tuple[list[int], list[float]]:
    host = on_host(rows)
    if host is None or params.temperature == 0:
        return draw_by_arrays(rows if host is None else host, params, positions)
    places = np.asarray(list(positions), dtype=np.int64)
    if filters(params, rows.shape[-1]):
        tokens, gaps = kernels.draw_rows(scores(host, params), 1.0, params.seed, places)
    else:
        tokens, gaps = kernels.draw_rows(host, params.temperature, params.seed, places)
    return tokens.tolist(), (gaps * params.temperature).tolist()


def draw_by_arrays(rows: Array, params: SamplingParams, positions: Sequence[int]) -> tuple[list[int], list[float]]:
    """What `draw` means, in array operations: on devices, and to check the kernel by."""
    if params.temperature == 0:
        return _best(rows)
    tokens, gaps = _best(scores(rows, params) + gumbel(params.seed, positions, rows.shape[-1], rows))
    return tokens, [gap * params.temperature for gap in gaps]


def on_host(rows: Array) -> np.ndarray[Any, np.dtype[Any]] | None:
    """The same memory as a contiguous numpy array, where the processor can reach it."""
    if array_api_compat.is_torch_array(rows):
        if rows.device.type != "cpu":
            return None
        rows = rows.detach().numpy()
    return np.ascontiguousarray(rows)


def log_softmax(values: Array) -> Array:
    """Normalised log-probabilities of `[n, V]` logits or scaled rows, in the dtype of `values`."""
    xp = array_api_compat.array_namespace(values)
    shifted = values - xp.max(values, axis=-1, keepdims=True)
    return shifted - xp.log(xp.sum(xp.exp(shifted), axis=-1, keepdims=True))


def at_temperature(rows: Array, temperature: float) -> Array:
    """Rows `[n, V]` of log-probabilities, tempered and normalised again."""
    if temperature == 1:
        return rows
    xp = array_api_compat.array_namespace(rows)
    return log_softmax((rows - xp.max(rows, axis=-1, keepdims=True)) / temperature)


def top(rows: Array, k: int) -> tuple[Array, Array]:
    """The k largest entries of each row, best first: values `[n, k]` and ids `[n, k]`. Of equal ones the lowest ids."""
    of_torch = array_api_compat.is_torch_array(rows)
    xp = array_api_compat.array_namespace(rows)
    more = min(k + 1, rows.shape[-1])  # whether the last one has equals that are left out
    ids = rows.topk(more, dim=-1)[1] if of_torch else np.argpartition(-rows, more - 1, axis=-1)[:, :more]
    ids, values = _best_first(rows, ids)
    if more > k:
        for i in np.flatnonzero(to_numpy(values[:, k - 1] == values[:, k])):
            equal = xp.nonzero(rows[i] == values[i, k])[0]
            above = int(xp.sum(xp.astype(values[i, :k] > values[i, k], xp.int64)))
            ids[i, above:k] = equal[: k - above]
    return values[:, :k], ids[:, :k]


def _best_first(rows: Array, ids: Array) -> tuple[Array, Array]:
    """Ids `[n, m]` by the rows' values, equal ones by themselves, and these values."""
    xp = array_api_compat.array_namespace(rows)
    ids = xp.sort(ids, axis=-1)
    order = xp.argsort(xp.take_along_axis(rows, ids, axis=-1), axis=-1, descending=True, stable=True)
    ids = xp.take_along_axis(ids, order, axis=-1)
    return ids, xp.take_along_axis(rows, ids, axis=-1)


def to_numpy(array: Array) -> np.ndarray[Any, np.dtype[Any]]:
    """A numpy array of the same values on the host."""
    if array_api_compat.is_torch_array(array):
        array = array.detach().cpu().numpy()
    return np.asarray(array)
