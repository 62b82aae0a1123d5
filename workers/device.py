"""Measures and draws of rows on a GPU, where they are: nothing of a row's size is made beside them.

What `workers.comparison` and `workers.kernels` are on a processor, to the rounding of float32; the loops are in
`workers.triton_kernels`. Where Triton is not installed or does not work (it needs a C compiler when it runs) array code
computes the same (`rl_onoff.divergence`, `workers.sampling`).
"""

from __future__ import annotations

import importlib.util
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import array_api_compat
import numpy as np

from rl_onoff import divergence
from rl_onoff.philox import STREAM_TOKENS
from workers import sweeps
from workers.comparison import Compared, Plan

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("rl_onoff.worker")

#: How an answer's provenance calls these loops.
KERNEL: Final = "streaming float32 (Triton)"
#: What no loop computes is computed in array code, of so many bytes of float64 rows at a time.
_ARRAY_BYTES: Final = 16 << 20


def reaches(rows: Any) -> bool:
    """Whether the loops take these rows `[n, V]`: torch's, on a GPU, up to float32, contiguous along V."""
    if not array_api_compat.is_torch_array(rows) or rows.device.type != "cuda":
        return False
    return rows.stride(-1) == 1 and rows.dtype.itemsize <= 4 and works(str(rows.device))


@cache
def works(device: str) -> bool:
    """Whether the loops run on this device and find what array code finds there. Tried once; why not is logged."""
    if importlib.util.find_spec("triton") is None:  # torch brings it with its builds for GPUs
        logger.warning("Triton is not installed: rows on %s are compared and drawn from in array code", device)
        return False
    import torch

    from workers.sampling import draw_by_arrays
    from workers.wire import SamplingParams

    a = (torch.arange(18_000, dtype=torch.float32, device=device).reshape(2, -1) * 0.37).sin() * 6
    b, tokens, seeds = a + 0.3 * a.roll(1), [3, 8_999], [1, 2]
    logp, logq = a.log_softmax(-1), b.log_softmax(-1)
    names = ["js", "kl_ab", "tv", "entropy_b", "rank_of_b_in_a", "delta_logp"]
    try:
        found = compare(a, b, names, tokens).measures
        drawn = draw(logp, [1.0, 0.7], seeds, tokens)[0]
    except Exception:  # whatever a compiler, a driver or another version of Triton raises
        logger.exception("Triton does not work on %s: array code does in its place", device)
        return False
    want = divergence.compute(logp, logq, names, torch.tensor(tokens, device=device))
    gap = max(
        abs(x - y) / (1 + abs(y)) for name in names for x, y in zip(found[name], want[name].tolist(), strict=True)
    )
    warm, cool = SamplingParams(temperature=1.0, seed=seeds[0]), SamplingParams(temperature=0.7, seed=seeds[1])
    expected = [*draw_by_arrays(logp[:1], warm, tokens[:1])[0], *draw_by_arrays(logp[1:], cool, tokens[1:])[0]]
    if not gap <= 1e-5 or drawn != expected:  # NaN is no small gap
        logger.error("Triton's results on %s are off by %.2g: array code does in its place", device, gap)
        return False
    return True


def compare(
    a: torch.Tensor,
    b: torch.Tensor,
    measures: Iterable[str],
    token_ids: Sequence[int] | Any,
    *,
    vocab_size: int | None = None,
    temperature: float = 1.0,
    normalised: bool = False,
) -> Compared:
    """As `comparison.compare`, of tensors `[n, columns]` on one GPU, in any floating dtype up to float32."""
    import torch

    plan = Plan.of(measures)
    size = a.shape[1] if vocab_size is None else vocab_size
    a, b = a[:, :size], b[:, :size]
    ids = torch.as_tensor(token_ids, dtype=torch.int64, device=a.device)[:, None]
    out = torch.empty((a.shape[0], sweeps.FIRST_RENYI + len(plan.orders)), dtype=torch.float64, device=a.device)

    def overlaps(k: int) -> Any:
        return _by_arrays(a, b, temperature, lambda p, q: divergence.topk_overlap(p, q, k)).cpu().numpy()

    with _on(a), torch.inference_mode():
        if a.shape[0]:
            wrong = _compare(a, b, ids, 1.0 / temperature, plan, normalised, out)
            for column, alpha in enumerate(plan.orders, start=sweeps.FIRST_RENYI):
                out[:, column] = _by_arrays(a, b, temperature, _renyi(alpha))
            out[wrong] = math.nan
        return plan.compared(out.cpu().numpy(), overlaps)


def _on(rows: torch.Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device."""
    import torch

    return torch.cuda.device(rows.device) if rows.device.type == "cuda" else nullcontext()


def _compare(
    a: torch.Tensor, b: torch.Tensor, ids: torch.Tensor, scale: float, plan: Plan, normalised: bool, out: torch.Tensor
) -> torch.Tensor:
    """All columns of `out` but Rényi's; which rows hold NaN or +inf, or nothing but -inf, `[n]`."""
    import torch

    from workers import triton_kernels as loops

    count, size = a.shape
    parts = -(-size // loops.PART)
    grid = (count, parts)

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=a.device)

    tops, totals = empty(count, parts, 2), empty(count, parts, 2)
    places, flags = empty(count, parts, 2, dtype=torch.int32), empty(count, parts, dtype=torch.int32)
    sizes = {"entries": loops.PART, "block": loops.BLOCK}
    rounded = np.float32(scale)
    factors = (float(rounded), scale - float(rounded))
    loops.normalisers[grid](a, b, tops, totals, places, flags, a.stride(0), b.stride(0), size, *factors, **sizes)
    top = tops.amax(1)
    best = torch.where(tops == top[:, None], places, size).amin(1).clamp(max=size - 1)
    wide = top.double()
    # Beyond the largest entry.
    log_z = (totals.double() * (scale * (tops.double() - wide[:, None])).exp()).sum(1).log()
    if normalised:
        log_z = -scale * wide
    a_lacks, b_lacks, odd = (((flags & bit) != 0).any(1) for bit in (loops.A_LACKS, loops.B_LACKS, loops.WRONG))

    rest = log_z - log_z.float().double()
    apart = scale * (wide[:, :1] - wide[:, 1:]) + (log_z[:, :1] - log_z[:, 1:])
    lacking = apart - apart.float().double()
    shifts = torch.cat([top, log_z.float(), (-rest).exp().float(), apart.float(), lacking.float()], 1)
    best_b_a = best[:, [1, 0]].contiguous()  # as the loop wants them: A's row is read at B's best token
    values = torch.cat([a.gather(1, best_b_a[:, :1].long()), b.gather(1, best_b_a[:, 1:].long())], 1).float()
    values = values.clamp(min=loops.NOTHING.value)
    sums = empty(count, parts, loops.COLUMNS)
    # Hellinger's sums are made for switching whether asked for or not: what is recorded must not turn a decision, and
    # another compilation of the loop may round differently.
    hellinger = normalised or plan.asks("hellinger")
    loops.distances[grid](
        a, b, shifts, values, best_b_a, sums, a.stride(0), b.stride(0), size, *factors, hellinger=hellinger, **sizes
    )
    total = sums.double().sum(1)

    out[:, sweeps.JS] = (0.5 * total[:, loops.JS]).clamp(max=math.log(2.0))
    out[:, sweeps.KL_AB] = torch.where(b_lacks, math.inf, total[:, loops.KL_AB].clamp(min=0.0))
    out[:, sweeps.KL_BA] = torch.where(a_lacks, math.inf, total[:, loops.KL_BA].clamp(min=0.0))
    out[:, sweeps.TV] = (0.5 * total[:, loops.TV]).clamp(max=1.0)
    out[:, sweeps.HELLINGER] = (0.5 * total[:, loops.ROOTS]).sqrt().clamp(max=1.0)
    entropies = rest - total[:, [loops.ENTROPY_A, loops.ENTROPY_B]]
    out[:, [sweeps.ENTROPY_A, sweeps.ENTROPY_B]] = entropies.clamp(min=0.0)
    out[:, [sweeps.TOP_A, sweeps.TOP_B]] = (-log_z).exp()
    out[:, [sweeps.BEST_A, sweeps.BEST_B]] = best.double()
    out[:, [sweeps.RANK_OF_B, sweeps.RANK_OF_A]] = 1.0 + total[:, [loops.AHEAD_OF_B, loops.AHEAD_OF_A]]
    tokens = torch.cat([a.gather(1, ids), b.gather(1, ids)], 1).double()
    logp = scale * (tokens - wide) - log_z
    possible = tokens > loops.NOTHING.value
    out[:, [sweeps.TOKEN_A, sweeps.TOKEN_B]] = torch.where(possible, logp, -math.inf)
    finite = scale * (tokens[:, 1] - tokens[:, 0]) + apart[:, 0]
    infinite = torch.where(possible[:, 0], -math.inf, math.inf)
    out[:, sweeps.DELTA] = torch.where(possible.all(1), finite, torch.where(possible.any(1), infinite, 0.0))
    wrong: torch.Tensor = odd | (top <= loops.NOTHING.value).any(1)
    return wrong


def _renyi(alpha: float) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Of (B, A) where alpha is negative."""
    if alpha < 0:
        return lambda p, q: divergence.renyi(q, p, -alpha)
    return lambda p, q: divergence.renyi(p, q, alpha)


def _by_arrays(
    a: torch.Tensor,
    b: torch.Tensor,
    temperature: float,
    function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """`function` of both rows' float64 log-probabilities, a few rows at a time: `[n]` float64."""
    import torch

    few = max(1, _ARRAY_BYTES // (8 * a.shape[1]))
    found = [
        function(*((rows.double() / temperature).log_softmax(-1) for rows in pair))
        for pair in ((a[i : i + few], b[i : i + few]) for i in range(0, a.shape[0], few))
    ]
    return torch.cat(found) if found else torch.empty(0, dtype=torch.float64, device=a.device)


def draw(
    rows: torch.Tensor, temperatures: Sequence[float], seeds: Sequence[int], positions: Sequence[int]
) -> tuple[list[int], list[float]]:
    """As `kernels.draw_rows`, each row `[n, V]` with its own temperature and seed; gaps are in nats."""
    import torch

    from workers import triton_kernels as loops

    count, size = rows.shape
    if not count:
        return [], []
    parts = -(-size // loops.PART)
    numbers = torch.tensor([list(seeds), list(positions)], dtype=torch.int64, device=rows.device)
    scale = torch.tensor(list(temperatures), dtype=torch.float64, device=rows.device)
    with _on(rows), torch.inference_mode():
        best, second = (torch.empty((count, parts), dtype=torch.float64, device=rows.device) for _ in range(2))
        places = torch.empty((count, parts), dtype=torch.int32, device=rows.device)
        loops.draws[(count, parts)](
            rows,
            rows.amax(-1),
            scale,
            *numbers,
            best,
            second,
            places,
            rows.stride(0),
            size,
            stream=STREAM_TOKENS,
            entries=loops.PART,
            block=loops.DRAWN,
        )
        top = best.amax(1, keepdim=True)
        part = (best == top).int().argmax(1, keepdim=True)  # the first of equals
        beaten = best.scatter(1, part, second.gather(1, part)).amax(1)
        chosen = places.gather(1, part)[:, 0]
        found = torch.stack([chosen.double(), (top[:, 0] - beaten) * scale]).cpu()
    return [int(token) for token in found[0]], found[1].tolist()
