"""A policy's walk over a given text is lock-step with its tokens given, whatever the policy and the chunks."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import msgspec
import pytest

from rl_onoff.errors import InvalidField
from rl_onoff.kinds import parse_policy
from rl_onoff.policy import Lead, PolicyState, state_after
from tests.contract.conftest import Case
from workers import scoring
from workers.backends.base import Pair
from workers.host import answer
from workers.wire import Done, SamplingParams, SwitchGenerate, SwitchScore, Tokens, Usage, Walked

POLICIES: list[dict[str, Any]] = [
    {"kind": "divergence", "on": 0.02, "off": 0.01, "min_dwell": 3, "max_b_fraction": 0.5},
    {"kind": "delta_logp", "on": 0.1},
    {"kind": "typical", "on": 0.2},
    {"kind": "entropy", "on": 3.0},
    {"kind": "random", "rate": 0.4},
    {"kind": "schedule", "positions": [0, 3, 4, 9]},
]


async def written(pair: Pair, job: SwitchGenerate) -> Tokens:
    ids: list[int] = []
    leads = ""
    values: dict[str, list[float]] = {}
    logprobs: list[float] = []
    tops: tuple[list[list[int]], list[list[float]]] = ([], [])
    async for frame in answer(pair, job):
        if isinstance(frame, Tokens):
            ids += frame.ids
            leads += frame.leads
            logprobs += frame.logprobs
            tops[0].extend(frame.top_ids)
            tops[1].extend(frame.top_logprobs)
            for name, column in frame.values.items():
                values.setdefault(name, []).extend(column)
    return Tokens(ids, Usage(), leads, values, logprobs, *tops)


async def walked(pair: Pair, job: SwitchScore) -> tuple[Walked, int]:
    """All frames as one, and how many they were."""
    frames = [frame async for frame in answer(pair, job)]
    assert isinstance(frames[-1], Done)
    parts = [frame for frame in frames if isinstance(frame, Walked)]
    assert [part.start for part in parts] == [sum(len(p.leads) for p in parts[:i]) for i in range(len(parts))]
    whole = Walked(
        0,
        "".join(part.leads for part in parts),
        {name: [value for part in parts for value in part.values[name]] for name in parts[0].values},
        [value for part in parts for value in part.logprobs],
        [row for part in parts for row in part.top_ids],
        [row for part in parts for row in part.top_logprobs],
        parts[-1].usage,
    )
    return whole, len(parts)


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy["kind"])
@pytest.mark.parametrize("swapped", [False, True])
async def test_the_walk_leads_as_the_writing_did(
    llama: Case, policy: dict[str, Any], swapped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair, prompt, params = llama.pair, llama.prompt(5), SamplingParams(temperature=0.8, seed=3)
    make = SwitchGenerate(prompt, 24, params, policy, ignore_eos=True, lookahead=0, swapped=swapped, logprobs=3)
    made = await written(pair, make)
    ahead = await written(pair, msgspec.structs.replace(make, lookahead=None))
    assert (ahead.ids, ahead.leads, ahead.top_ids) == (made.ids, made.leads, made.top_ids)
    assert ahead.logprobs == pytest.approx(made.logprobs, abs=1e-5)

    job = SwitchScore([*prompt, *made.ids], len(prompt), params, policy, logprobs=3, swapped=swapped)
    whole, count = await walked(pair, job)
    assert count == 1
    assert whole.leads == made.leads
    assert {"a", "b"} == set(made.leads)
    assert whole.values.keys() == made.values.keys()
    for name, column in whole.values.items():
        assert column == pytest.approx(made.values[name], abs=1e-4), name
    assert whole.logprobs == pytest.approx(made.logprobs, abs=1e-5)
    assert whole.top_ids == made.top_ids

    plain = [llama.plain_rows(model, job.ids[:-1]) for model in (llama.plain_a, llama.plain_b)]
    if swapped:
        plain.reverse()
    for i, (token, lead) in enumerate(zip(made.ids, made.leads, strict=True)):
        row = plain[lead == "b"][len(prompt) - 1 + i]
        assert whole.logprobs[i] == pytest.approx(float(row[token]), abs=1e-4)
        assert whole.top_logprobs[i] == pytest.approx(row.topk(3).values.tolist(), abs=1e-4)

    monkeypatch.setattr(scoring, "MAX_POSITIONS", 7)
    pieces, count = await walked(pair, job)
    assert count == 4
    assert pieces.leads == whole.leads
    assert pieces.logprobs == pytest.approx(whole.logprobs, abs=1e-5)


async def test_a_walk_is_resumed_with_the_policys_state(llama: Case) -> None:
    policy, ids, params = POLICIES[0], llama.prompt(40), SamplingParams()
    whole, _ = await walked(llama.pair, SwitchScore(ids, 1, params, policy))
    for done in (1, 7, 30):
        leads: list[Lead] = ["b" if lead == "b" else "a" for lead in whole.leads[:done]]
        state: PolicyState = state_after(parse_policy(policy), leads)
        rest, _ = await walked(llama.pair, SwitchScore(ids, 1 + done, params, policy, state=asdict(state)))
        assert rest.leads == whole.leads[done:]
        assert rest.top_ids == [[]] * (39 - done)


@pytest.mark.parametrize("change", [{"start": 0}, {"start": 4}, {"ids": [1, 10**6, 2, 3]}, {"ids": []}])
async def test_wrong_walks_are_refused(llama: Case, change: dict[str, Any]) -> None:
    job = msgspec.structs.replace(SwitchScore([1, 2, 3, 4], 1, SamplingParams(), {"kind": "always_a"}), **change)
    with pytest.raises(InvalidField):
        [frame async for frame in answer(llama.pair, job)]
