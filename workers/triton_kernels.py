"""The loops of `workers.device`, for a GPU: what `workers.sweeps` and `workers.kernels` are on a processor.

A program takes one part of `PART` entries of one row, however many rows there are, so that a row's results do not
depend on what is computed with it. Arithmetic is as in `workers.sweeps`: float32 within a part and float64 across
parts, d = (y - x) + (log Z_p - log Z_q), series where that is small. Draws are float64 throughout.

Only `workers.device` imports this, where Triton is installed.
"""
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

BLOCK = 1024
PART = 8 * BLOCK
#: Counters of the noise a draw takes at a time; four tokens each.
DRAWN = 256

# Columns of what `distances` writes, and bits of what `normalisers` says of a part.
(JS, KL_AB, KL_BA, TV, ENTROPY_A, ENTROPY_B, ROOTS, AHEAD_OF_B, AHEAD_OF_A, COLUMNS) = range(10)
A_LACKS, B_LACKS, WRONG = 1, 2, 4

#: Stands for -inf and for anything below, so that no arithmetic meets an infinity.
NOTHING = tl.constexpr(-1e30)
_LAST = tl.constexpr(2**31 - 1)
_COLUMNS = tl.constexpr(COLUMNS)


@triton.jit
def _times(difference, scale, rest):
    """A difference of entries at a temperature, whose inverse has two parts. Entries themselves are never scaled."""
    return tl.fma(difference, scale, difference * rest)


@triton.jit
def _online(best, place, total, x, ids, scale, rest):
    """One step of a maximum, its first place, and the sum of exponentials beyond it, lane by lane."""
    step = tl.exp(-_times(tl.abs(x - best), scale, rest))
    more = x > best
    total = tl.where(more, total * step + 1.0, total + step)
    return tl.where(more, x, best), tl.where(more, ids, place), total


@triton.jit
def _collected(best, place, total, scale, rest):
    top = tl.max(best, 0)
    first = tl.min(tl.where(best == top, place, _LAST), 0)
    return top, first, tl.sum(total * tl.exp(_times(best - top, scale, rest)), 0)


@triton.jit
def normalisers(
    a,
    b,
    tops,
    totals,
    places,
    flags,
    stride_a,
    stride_b,
    size,
    scale,
    rest,
    entries: tl.constexpr,
    block: tl.constexpr,
):
    """Largest entries, sums of exponentials beyond them and their first places, `[n, parts, 2]`; flags `[n, parts]`."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    lane = tl.arange(0, block)
    best_a = tl.full([block], NOTHING, tl.float32)
    best_b = tl.full([block], NOTHING, tl.float32)
    total_a = tl.zeros([block], tl.float32)
    total_b = tl.zeros([block], tl.float32)
    place_a = tl.full([block], _LAST, tl.int32)
    place_b = tl.full([block], _LAST, tl.int32)
    a_lacks = tl.zeros([block], tl.int32)
    b_lacks = tl.zeros([block], tl.int32)
    wrong = tl.zeros([block], tl.int32)
    for begin in range(0, entries, block):
        ids = part * entries + begin + lane
        here = ids < size
        x = tl.load(a + row * stride_a + ids, here, float("-inf")).to(tl.float32)
        y = tl.load(b + row * stride_b + ids, here, float("-inf")).to(tl.float32)
        a_lacks |= ((x <= NOTHING) & (y > NOTHING)).to(tl.int32)
        b_lacks |= ((y <= NOTHING) & (x > NOTHING)).to(tl.int32)
        # NaN is in no order.
        wrong |= tl.where((x < float("inf")) & (y < float("inf")), 0, 1)
        x = tl.where(x > NOTHING, x, NOTHING)
        y = tl.where(y > NOTHING, y, NOTHING)
        best_a, place_a, total_a = _online(best_a, place_a, total_a, x, ids, scale, rest)
        best_b, place_b, total_b = _online(best_b, place_b, total_b, y, ids, scale, rest)
    at = row * tl.num_programs(1) + part
    top, place, total = _collected(best_a, place_a, total_a, scale, rest)
    tl.store(tops + 2 * at, top)
    tl.store(places + 2 * at, place)
    tl.store(totals + 2 * at, total)
    top, place, total = _collected(best_b, place_b, total_b, scale, rest)
    tl.store(tops + 2 * at + 1, top)
    tl.store(places + 2 * at + 1, place)
    tl.store(totals + 2 * at + 1, total)
    tl.store(flags + at, tl.max(a_lacks, 0) + 2 * tl.max(b_lacks, 0) + 4 * tl.max(wrong, 0))


@triton.jit
def _log_of_share(u):
    """As `workers.vectorised.log_of_share`."""
    y = 1.041012440e-02 * u - 4.889352155e-02
    y = y * u + 1.120781079e-01
    y = y * u - 1.789629031e-01
    y = y * u + 2.449021292e-01
    y = y * u - 3.326111751e-01
    y = y * u + 4.999473996e-01
    y = y * u - 9.999984960e-01
    return y * u + 6.931471734e-01


@triton.jit
def distances(
    a,
    b,
    shifts,
    values,
    best,
    out,
    stride_a,
    stride_b,
    size,
    scale,
    rest,
    hellinger: tl.constexpr,
    entries: tl.constexpr,
    block: tl.constexpr,
):
    """Sums of each part, float32 `[n, parts, COLUMNS]`.

    `shifts` `[n, 8]` float32: largest entries, normalisers beyond these, what rounding those does to probabilities, the
    difference of whole normalisers and what that lacks. `values` and `best` `[n, 2]`: what A's row holds at B's best
    token, and B's at A's; which tokens these are (B's, A's).
    """
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    lane = tl.arange(0, block)
    of_row = shifts + 8 * row
    top_p, top_q = tl.load(of_row), tl.load(of_row + 1)
    lp, lq = tl.load(of_row + 2), tl.load(of_row + 3)
    cp, cq = tl.load(of_row + 4), tl.load(of_row + 5)
    dz, dz_rest = tl.load(of_row + 6), tl.load(of_row + 7)
    value_b, place_b = tl.load(values + 2 * row), tl.load(best + 2 * row)
    value_a, place_a = tl.load(values + 2 * row + 1), tl.load(best + 2 * row + 1)
    js = tl.zeros([block], tl.float32)
    kl_ab = tl.zeros([block], tl.float32)
    kl_ba = tl.zeros([block], tl.float32)
    tv = tl.zeros([block], tl.float32)
    entropy_a = tl.zeros([block], tl.float32)
    entropy_b = tl.zeros([block], tl.float32)
    roots = tl.zeros([block], tl.float32)
    ahead_of_b = tl.zeros([block], tl.int32)
    ahead_of_a = tl.zeros([block], tl.int32)
    for begin in range(0, entries, block):
        ids = part * entries + begin + lane
        here = ids < size
        x = tl.load(a + row * stride_a + ids, here, float("-inf")).to(tl.float32)
        y = tl.load(b + row * stride_b + ids, here, float("-inf")).to(tl.float32)
        x = tl.where(x > NOTHING, x, NOTHING)
        y = tl.where(y > NOTHING, y, NOTHING)
        la, lb = _times(x - top_p, scale, rest) - lp, _times(y - top_q, scale, rest) - lq
        d = tl.fma(y - x, scale, dz) + tl.fma(y - x, rest, dz_rest)
        apart = tl.abs(d)
        p, q = cp * tl.exp(la), cq * tl.exp(lb)
        near = apart < 0.25
        c = tl.where(near, d, 0.0)
        c2 = c * c
        even = c2 * (0.5 + c2 * (1 / 24 + c2 * (1 / 720)))
        odd = c * c2 * (1 / 6 + c2 * (1 / 120 + c2 * (1 / 5040)))
        gap = q - p
        larger = _log_of_share(tl.exp(-apart))
        closed = (p + q) * larger - tl.where(d > 0, p, q) * apart
        js += tl.where(near, (p + q) * c2 * (1 / 8 - c2 * (1 / 64 - c2 * (1 / 576 - c2 * (17 / 92160)))), closed)
        kl_ab += tl.where(near, p * (even + odd), gap - p * d)
        kl_ba += tl.where(near, q * (even - odd), q * d - gap)
        tv += tl.where(near, p * tl.abs(c + even + odd), tl.abs(gap))
        entropy_a += p * la
        entropy_b += q * lb
        if hellinger:
            h = tl.where(apart < 0.25, 0.5 * d, 0.0)
            root_p, root_q = tl.sqrt(cp) * tl.exp(0.5 * la), tl.sqrt(cq) * tl.exp(0.5 * lb)
            rise = h * (1.0 + h * (0.5 + h * (1 / 6 + h * (1 / 24 + h * (1 / 120)))))
            root_gap = tl.where(near, root_p * rise, root_q - root_p)
            roots += root_gap * root_gap
        ahead_of_b += (here & ((x > value_b) | ((x == value_b) & (ids < place_b)))).to(tl.int32)
        ahead_of_a += (here & ((y > value_a) | ((y == value_a) & (ids < place_a)))).to(tl.int32)
    at = out + (row * tl.num_programs(1) + part) * _COLUMNS
    tl.store(at, tl.sum(js, 0))
    tl.store(at + 1, tl.sum(kl_ab, 0))
    tl.store(at + 2, tl.sum(kl_ba, 0))
    tl.store(at + 3, tl.sum(tv, 0))
    tl.store(at + 4, tl.sum(entropy_a, 0))
    tl.store(at + 5, tl.sum(entropy_b, 0))
    tl.store(at + 6, tl.sum(roots, 0))
    tl.store(at + 7, tl.sum(ahead_of_b, 0).to(tl.float32))
    tl.store(at + 8, tl.sum(ahead_of_a, 0).to(tl.float32))


@triton.jit
def _round(c0, c1, c2, c3, key0, key1):
    """One round of Philox 4x32, words of 32 bits in uint64."""
    mask = 0xFFFFFFFF
    p0 = c0 * 0xD2511F53
    p1 = c2 * 0xCD9E8D57
    return ((p1 >> 32) ^ c1 ^ key0) & mask, p1 & mask, ((p0 >> 32) ^ c3 ^ key1) & mask, p0 & mask


@triton.jit
def _better(best, second, place, value, ids):
    second = tl.maximum(second, tl.minimum(best, value))
    more = value > best
    return tl.where(more, value, best), second, tl.where(more, ids, place)


@triton.jit
def draws(
    rows,
    ceilings,
    temperatures,
    seeds,
    positions,
    best,
    second,
    places,
    stride,
    size,
    stream: tl.constexpr,
    entries: tl.constexpr,
    block: tl.constexpr,
):
    """Best and second best noisy scores of each part, float64 `[n, parts]`, and the best one's token, the lowest of
    equals. Noise as `workers.sampling.gumbel`; temperatures float64, seeds and positions int64, `[n]` each."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    lane = tl.arange(0, block)
    ceiling = tl.load(ceilings + row).to(tl.float64)
    temperature = tl.load(temperatures + row)
    seed = tl.load(seeds + row).to(tl.uint64)
    position = tl.load(positions + row).to(tl.uint64)
    nothing = tl.full([block], float("-inf"), tl.float64)
    top, next_top, place = nothing, nothing, tl.full([block], _LAST, tl.int32)
    for begin in range(0, entries, 4 * block):
        first = part * entries + begin + 4 * lane
        c0 = (first // 4).to(tl.uint64)
        c1 = tl.zeros([block], tl.uint64) + position
        c2 = tl.full([block], stream, tl.uint64)
        c3 = tl.zeros([block], tl.uint64)
        key0, key1 = seed & 0xFFFFFFFF, seed >> 32
        for _ in range(10):
            c0, c1, c2, c3 = _round(c0, c1, c2, c3, key0, key1)
            key0, key1 = (key0 + 0x9E3779B9) & 0xFFFFFFFF, (key1 + 0xBB67AE85) & 0xFFFFFFFF
        for word in tl.static_range(4):
            bits = c0 if word == 0 else (c1 if word == 1 else (c2 if word == 2 else c3))
            ids = first + word
            x = tl.load(rows + row * stride + ids, ids < size, float("-inf")).to(tl.float64)
            noise = -tl.log(-tl.log((bits.to(tl.float64) + 0.5) * 2.3283064365386963e-10))
            value = (x - ceiling) / temperature + noise
            top, next_top, place = _better(top, next_top, place, value, ids)
    at = row * tl.num_programs(1) + part
    winner = tl.max(top, 0)
    token = tl.min(tl.where(top == winner, place, _LAST), 0)
    tl.store(best + at, winner)
    tl.store(places + at, token)
    tl.store(second + at, tl.max(tl.where(place == token, next_top, top), 0))
