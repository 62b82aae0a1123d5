"""What every backend promises, held against plain transformers on several architectures."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from scipy.special import rel_entr

from rl_onoff.errors import InvalidField
from tests.contract.conftest import BACKEND, Case
from workers import sampling
from workers.host import answer
from workers.wire import Array, Compare, Done, Generate, Rows, SamplingParams, Score, SwitchGenerate, Tokens, Values

GREEDY = SamplingParams(temperature=0)
TOLERANCE: float = BACKEND.TOLERANCE


async def tokens(case: Case, job: Any) -> tuple[list[int], str, Done]:
    ids: list[int] = []
    leads = ""
    async for frame in answer(case.pair, job):
        if isinstance(frame, Tokens):
            ids += frame.ids
            leads += frame.leads
        elif isinstance(frame, Done):
            return ids, leads, frame
    raise AssertionError("no Done")


def gap(left: Any, right: Any) -> float:
    """The largest absolute difference, whatever holds the numbers."""
    return float(np.abs(sampling.to_numpy(left) - sampling.to_numpy(right)).max())


async def test_rows_equal_a_plain_forward_pass(case: Case) -> None:
    ids = case.prompt(60)
    for model, plain in ((case.pair.a, case.plain_a), (case.pair.b, case.plain_b)):
        want = case.plain_rows(plain, ids)
        async with model.sequence() as sequence:
            rows = await sequence.rows(ids, 1)
            assert rows.shape == (60, case.vocab_size)
            assert rows.dtype == torch.float32
            assert gap(rows, want) < TOLERANCE
            assert gap(rows.exp().sum(-1), np.ones(60)) < 1e-5


async def test_growing_and_rolling_back_never_change_a_row(case: Case) -> None:
    first, second = case.prompt(50), case.prompt(50, seed=1)
    mixed = first[:20] + second[20:]
    async with case.pair.a.sequence() as sequence:
        for ids in (first, mixed, second, first[:30]):
            want = case.plain_rows(case.plain_a, ids)
            for end in (len(ids) // 2, len(ids) // 2 + 1, len(ids) // 2 + 5, len(ids)):
                rows = await sequence.rows(ids[:end], max(1, end - 3))
                assert gap(rows, want[max(1, end - 3) - 1 : end]) < TOLERANCE


async def test_greedy_generation_equals_transformers_generate(case: Case) -> None:
    ids = case.prompt(12)
    for side, plain in (("a", case.plain_a), ("b", case.plain_b)):
        got, _, done = await tokens(case, Generate(side, ids, 40, GREEDY, ignore_eos=True))  # type: ignore[arg-type]
        assert got == case.plain_greedy(plain, ids, 40)
        assert done.finish_reason == "length"


async def test_always_a_equals_plain_generation_of_a(case: Case) -> None:
    params = SamplingParams(seed=5, temperature=0.9, top_p=0.95)
    ids = case.prompt(9)
    for side in ("a", "b"):
        alone, _, _ = await tokens(case, Generate(side, ids, 30, params, ignore_eos=True))  # type: ignore[arg-type]
        switched, leads, _ = await tokens(
            case, SwitchGenerate(ids, 30, params, {"kind": f"always_{side}"}, ignore_eos=True)
        )
        assert switched == alone
        assert leads == side * 30


async def test_switched_tokens_are_those_of_the_plain_rows(case: Case) -> None:
    """Every decision, recomputed from plain forward passes over the emitted sequence."""
    ids = case.prompt(10)
    on = await middling_threshold(case, ids)
    got, leads, _ = await tokens(
        case, SwitchGenerate(ids, 40, GREEDY, {"kind": "divergence", "on": on}, ignore_eos=True)
    )
    assert {"a", "b"} == set(leads)
    a = case.plain_rows(case.plain_a, ids + got).double().numpy()[len(ids) - 1 :]
    b = case.plain_rows(case.plain_b, ids + got).double().numpy()[len(ids) - 1 :]
    for t, token in enumerate(got):
        d = jensenshannon(np.exp(a[t]), np.exp(b[t])) ** 2
        assert abs(d - on) > 1e-6, "a decision of this test hangs on rounding"
        assert leads[t] == ("b" if d > on else "a")
        assert token == (b if d > on else a)[t].argmax()


async def middling_threshold(case: Case, ids: list[int]) -> float:
    """A threshold that half of A's own positions exceed."""
    job = SwitchGenerate(ids, 40, GREEDY, {"kind": "always_a"}, ignore_eos=True)
    values = sorted([d async for f in answer(case.pair, job) if isinstance(f, Tokens) for d in f.values["js"]])
    return (values[19] + values[20]) / 2


async def test_concurrent_sequences_do_not_disturb_each_other(case: Case) -> None:
    on = await middling_threshold(case, case.prompt(10))
    jobs = [
        SwitchGenerate(case.prompt(5 + 3 * i, seed=i), 20 + i, SamplingParams(seed=i), {"kind": "divergence", "on": on})
        for i in range(10)
    ]
    alone = [await tokens(case, job) for job in jobs]
    together = await asyncio.gather(*(tokens(case, job) for job in jobs))
    assert [result[:2] for result in together] == [result[:2] for result in alone]


async def test_swapped_and_plain_roles_do_not_wait_for_each_other(llama: Case) -> None:
    """More jobs than places, half of them with the roles turned round: they once held one place each for ever."""
    jobs = [SwitchGenerate(llama.prompt(5, i), 6, GREEDY, {"kind": "always_a"}, swapped=bool(i % 2)) for i in range(24)]
    async with asyncio.timeout(60):
        await asyncio.gather(*(tokens(llama, job) for job in jobs))


async def test_cancelled_and_abandoned_sequences_leave_no_trace(llama: Case) -> None:
    ids = llama.prompt(10)
    want, _, _ = await tokens(llama, Generate("a", ids, 20, GREEDY, ignore_eos=True))
    for _ in range(3):
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(tokens(llama, SwitchGenerate(llama.prompt(8, i), 200, GREEDY, {"kind": "always_a"})))
                for i in range(6)
            ]
            await asyncio.sleep(0.02)
            for task in tasks:
                task.cancel()
    async with aclosing(answer(llama.pair, Generate("a", ids, 20, GREEDY))) as frames:  # type: ignore[type-var]
        await anext(frames)
    assert (await tokens(llama, Generate("a", ids, 20, GREEDY, ignore_eos=True)))[0] == want


async def score(case: Case, job: Score) -> list[Rows]:
    return [frame async for frame in answer(case.pair, job) if isinstance(frame, Rows)]


def joined(arrays: list[Array]) -> Any:
    return np.concatenate([array.numpy() for array in arrays])


async def test_scores_in_chunks_equal_a_plain_forward_pass(case: Case, monkeypatch: Any) -> None:
    monkeypatch.setattr("workers.scoring.CHUNK_BYTES", 7 * 4 * case.vocab_size)
    ids = case.prompt(60)
    want = case.plain_rows(case.plain_b, ids)[19:59].double().numpy()
    frames = await score(case, Score("b", ids, 20))
    assert len(frames) == 6
    assert gap(joined([f.values for f in frames]), want) < TOLERANCE
    picked = want[np.arange(40), ids[20:]]
    assert gap(joined([f.token_logprobs for f in frames]), picked) < TOLERANCE
    assert gap(joined([f.entropy for f in frames]), -(np.exp(want) * want).sum(-1)) < TOLERANCE

    top = await score(case, Score("b", ids, 20, top_k=3, kind="probs", temperature=0.7))
    tempered = torch.tensor(want / 0.7).softmax(-1).numpy()
    assert gap(joined([f.values for f in top]), -np.sort(-tempered, axis=-1)[:, :3]) < TOLERANCE
    assert (
        gap(np.take_along_axis(tempered, joined([f.ids for f in top if f.ids]), -1), joined([f.values for f in top]))
        < TOLERANCE
    )

    with torch.inference_mode():
        logits = case.plain_b(torch.tensor([ids])).logits[0, 19:59, : case.vocab_size]
    raw = await score(case, Score("b", ids, 20, kind="logits"))
    assert gap(joined([f.values for f in raw]), logits) < 10 * TOLERANCE


async def test_rows_of_merged_tokens(case: Case, monkeypatch: Any) -> None:
    """One column has the mass of all of them; in chunks, at a temperature, over merged tokens too."""
    monkeypatch.setattr("workers.scoring.CHUNK_BYTES", 7 * 4 * case.vocab_size)
    merge = [7, 1, 9]
    ids = [*case.prompt(40), 7, 9, 1, 7]
    want = (case.plain_rows(case.plain_a, ids)[19:-1].double() / 0.7).log_softmax(-1)
    want[:, 7] = want[:, merge].logsumexp(-1)
    want[:, [1, 9]] = -torch.inf
    frames = await score(case, Score("a", ids, 20, temperature=0.7, merge=merge))
    values = joined([f.values for f in frames])
    assert np.isneginf(values[:, [1, 9]]).all()
    assert gap(np.exp(values), want.exp()) < TOLERANCE
    scored = [7 if token in merge else token for token in ids[20:]]
    # Log-probabilities move by what logits do over the temperature.
    assert gap(joined([f.token_logprobs for f in frames]), want[range(24), scored]) < 3 * TOLERANCE
    assert gap(joined([f.entropy for f in frames]), torch.special.entr(want.exp()).sum(-1)) < TOLERANCE
    top = await score(case, Score("a", ids, 20, kind="probs", temperature=0.7, top_k=2, merge=merge))
    best = -np.sort(-want.exp().numpy(), axis=-1)[:, :2]
    assert gap(joined([f.values for f in top]), best) < TOLERANCE
    assert gap(joined([f.tail for f in top if f.tail]), 1 - best.sum(-1)) < TOLERANCE
    plain = await score(case, Score("a", ids, 20))  # what is merged is a copy
    assert gap(joined([f.values for f in plain]), case.plain_rows(case.plain_a, ids)[19:-1]) < TOLERANCE
    with pytest.raises(InvalidField, match="no model has a logit"):
        await score(case, Score("a", ids, 20, kind="logits", merge=merge))


async def test_divergences_equal_scipy(case: Case, monkeypatch: Any) -> None:
    monkeypatch.setattr("workers.scoring.CHUNK_BYTES", 11 * 4 * case.vocab_size)
    ids = case.prompt(60)
    names = ["js", "kl_ab", "kl_ba", "tv", "entropy_a", "delta_logp"]
    frames = [f async for f in answer(case.pair, Compare(ids, 20, ids, 20, names)) if isinstance(f, Values)]
    got = {name: joined([f.measures[name] for f in frames]) for name in names}
    a, b = (case.plain_rows(m, ids)[19:59].double().numpy() for m in (case.plain_a, case.plain_b))
    p, q = np.exp(a), np.exp(b)
    assert gap(got["js"], [jensenshannon(x, y) ** 2 for x, y in zip(p, q, strict=True)]) < TOLERANCE
    assert gap(got["kl_ab"], rel_entr(p, q).sum(-1)) < TOLERANCE
    assert gap(got["kl_ba"], rel_entr(q, p).sum(-1)) < TOLERANCE
    assert gap(got["tv"], abs(p - q).sum(-1) / 2) < TOLERANCE
    assert gap(got["entropy_a"], -(p * a).sum(-1)) < TOLERANCE
    assert gap(got["delta_logp"], (b - a)[np.arange(40), ids[20:]]) < TOLERANCE


async def test_prompts_may_differ_where_the_solution_does_not(llama: Case) -> None:
    solution = llama.prompt(20, seed=9)
    a_ids, b_ids = llama.prompt(7) + solution, llama.prompt(15, seed=3) + solution
    frames = [f async for f in answer(llama.pair, Compare(a_ids, 7, b_ids, 15, ["kl_ab"])) if isinstance(f, Values)]
    a = llama.plain_rows(llama.plain_a, a_ids)[6:26].double().numpy()
    b = llama.plain_rows(llama.plain_b, b_ids)[14:34].double().numpy()
    assert gap(joined([f.measures["kl_ab"] for f in frames]), rel_entr(np.exp(a), np.exp(b)).sum(-1)) < TOLERANCE


async def test_logprobs_of_generated_tokens_are_raw(llama: Case) -> None:
    ids = llama.prompt(10)
    params = SamplingParams(temperature=0.5, top_k=5, seed=1)
    frames = [f async for f in answer(llama.pair, Generate("a", ids, 10, params, logprobs=2)) if isinstance(f, Tokens)]
    got = [token for f in frames for token in f.ids]
    want = llama.plain_rows(llama.plain_a, ids + got)[len(ids) - 1 :].numpy()
    assert gap([value for f in frames for value in f.logprobs], want[np.arange(len(got)), got]) < TOLERANCE
    assert gap([best for f in frames for best in f.top_logprobs], -np.sort(-want[: len(got)], -1)[:, :2]) < TOLERANCE
