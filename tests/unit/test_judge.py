"""The signals of a position against their definitions, and the lead they give on tables of two models."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rl_onoff import divergence
from rl_onoff.errors import InvalidField
from rl_onoff.kinds import BUILT_IN, parse_policy
from rl_onoff.policy import TOKEN_SIGNALS, Lead, Signals, initial_state
from workers import noise
from workers.backends import load_pair
from workers.host import answer
from workers.judge import judge
from workers.wire import Done, ModelSpec, SamplingParams, SwitchGenerate, Tokens, WorkerSpec

PLAIN = [name for name in divergence.MEASURES if name != "delta_logp"]
ALL = frozenset({*PLAIN, "renyi:0.5", "topk_overlap:3", "delta_logp", *TOKEN_SIGNALS})


def rows(seed: int, count: int = 6, vocab_size: int = 300) -> np.ndarray[Any, Any]:
    logits = np.random.default_rng(seed).normal(size=(count, vocab_size)) * 3
    logits[:, ::7] = -math.inf
    return (logits - np.log(np.exp(logits).sum(-1, keepdims=True))).astype(np.float32)


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_signals(library: str, dtype: str, temperature: float) -> None:
    a, b = rows(1).astype(dtype), rows(2).astype(dtype)
    given = (torch.from_numpy(a), torch.from_numpy(b)) if library == "torch" else (a, b)
    verdict = judge(*given, range(10, 16), SamplingParams(temperature=temperature, seed=5), ALL)
    assert verdict.values.keys() == ALL - {"delta_logp"}
    for name, want in divergence.compute(a, b, ALL - {"delta_logp", *TOKEN_SIGNALS}).items():
        assert verdict.values[name] == pytest.approx(want.tolist(), rel=1e-5, abs=1e-7)
    here = np.arange(6)
    with np.errstate(invalid="ignore"):
        gap = b.astype(np.float64) - a
    assert verdict.values["delta_logp_a"] == gap[here, verdict.tokens_a].tolist()
    assert verdict.values["delta_logp_b"] == gap[here, verdict.tokens_b].tolist()
    assert verdict.values["prob_of_a_in_b"] == pytest.approx(np.exp(b[here, verdict.tokens_a].astype(np.float64)))
    for i in range(6):
        leads: tuple[Lead, ...] = ("a", "b")
        for lead in leads:
            recorded = verdict.recorded(i, lead)
            assert recorded["delta_logp"] == gap[i, verdict.token(i, lead)]
            assert recorded["js"] == verdict.values["js"][i]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("processors", [1, 3, 64])
def test_what_was_drawn_is_not_drawn_again_and_parts_are_judged_as_the_whole(
    monkeypatch: pytest.MonkeyPatch, temperature: float, processors: int
) -> None:
    a, b = rows(1, 7), rows(2, 7)
    params, positions = SamplingParams(temperature=temperature, seed=5), range(10, 17)
    whole = judge(a, b, positions, params, ALL)
    monkeypatch.setattr("workers.threads.WORTH", 1)
    monkeypatch.setattr("workers.threads.processors", lambda: processors)
    for given in ((a, b), (torch.from_numpy(a), torch.from_numpy(b))):
        assert judge(*given, positions, params, ALL) == whole
    mine = ([1, 2, 3, 4, 5, 6, 7], [0.1] * 7)
    judged = judge(a, b, positions, params, frozenset({"prob_of_a_in_b"}), mine)
    assert (judged.tokens_a, judged.gaps_a) == mine
    assert judged.tokens_b == whole.tokens_b
    want = np.exp(b[np.arange(7), mine[0]].astype(np.float64))
    assert judged.values["prob_of_a_in_b"] == pytest.approx(want)
    assert judge(a, b, positions, params, frozenset(), None, mine).tokens_b == mine[0]


def test_only_what_is_asked_for_is_computed() -> None:
    verdict = judge(rows(1), rows(2), range(6), SamplingParams(), frozenset({"js", "delta_logp_b"}))
    assert verdict.values.keys() == {"js", "delta_logp_b"}
    assert verdict.recorded(0, "a").keys() == {"js", "delta_logp_b"}


def test_tokens_the_other_model_excludes() -> None:
    with np.errstate(divide="ignore"):
        a, b = np.log(np.array([[[1, 0]], [[0, 1]]], dtype=np.float32))
    verdict = judge(a, b, [0], SamplingParams(temperature=0), frozenset(TOKEN_SIGNALS))
    assert verdict.values == {"delta_logp_a": [-math.inf], "delta_logp_b": [math.inf], "prob_of_a_in_b": [0.0]}


@pytest.mark.parametrize("count", [1, 400])
def test_bs_best_token_is_its_best_to_the_last_bit(count: int) -> None:
    """However many rows there are, of whatever library: `target_floor` compares the two."""
    random = np.random.default_rng(3)
    drawn = (random.normal(size=(400, 900)) * 3).astype(np.float32)
    drawn -= np.log(np.exp(drawn).sum(-1, keepdims=True))
    for given in (drawn, torch.from_numpy(drawn)):
        for begin in range(0, 400, count):
            part = given[begin : begin + count]
            greedy = SamplingParams(temperature=0)
            values = judge(part, part, range(count), greedy, frozenset({"prob_of_a_in_b", "top_prob_b"})).values
            assert values["prob_of_a_in_b"] == values["top_prob_b"]


@pytest.mark.parametrize("measure", ["js", "renyi:0.7", "renyi_ba:3"])
def test_noise_may_turn_whatever_is_watched(measure: str) -> None:
    first, second = (rows(seed, 40) for seed in (4, 5))
    floors = noise.measured((first, first + np.float32(1e-5)), (second, second))
    floor = noise.NoiseFloor(floors)
    policy = parse_policy({"kind": "divergence", "measure": measure, "on": 0.3})
    state = initial_state(policy)
    size = floors.get(measure, floors[measure.partition(":")[0]])
    assert 0 < size < 1e-2
    assert floor.may_turn(policy, state, Signals(3, 0, {measure: 0.3 + 0.5 * size}))
    assert not floor.may_turn(policy, state, Signals(3, 0, {measure: 0.6}))


@pytest.mark.parametrize("first", [0.4499995, 0.4500005])
def test_a_token_that_only_the_policy_looks_at_may_be_another(first: float) -> None:
    """B leads: A's best two are as good as equal, and B thinks little of one of them alone."""
    floor = noise.NoiseFloor({"logprob": 1e-5, "prob_of_a_in_b": 1e-9, "top_prob_b": 1e-9})
    policy = parse_policy({"kind": "target_floor", "on": 0.01})
    state = initial_state(policy)
    a, b = np.log(np.array([[[first, 0.45, 0.1 - first + 0.45]], [[0.001, 0.4, 0.599]]], dtype=np.float32))
    verdict = judge(a, b, [5], SamplingParams(temperature=0), policy.signals)
    signals = Signals(5, 0, {name: column[0] for name, column in verdict.values.items()})
    lead = policy.wants(state, signals)
    assert lead == ("b" if first > 0.45 else "a")
    assert floor.doubtful(policy, state, signals, verdict.gaps(0), lead)
    assert not floor.doubtful(policy, state, signals, {"a": 1.0, "b": 1.0}, lead)


def test_every_signal_a_policy_reads_may_move() -> None:
    floor = noise.NoiseFloor({"prob_of_a_in_b": 1e-3, "top_prob_b": 1e-3})
    policy = parse_policy({"kind": "target_floor", "on": 1.0})
    for values, turns in (((0.4, 0.4015), True), ((0.4008, 0.4007), True), ((0.4, 0.403), False)):
        signals = Signals(5, 0, dict(zip(("prob_of_a_in_b", "top_prob_b"), values, strict=True)))
        assert floor.may_turn(policy, initial_state(policy), signals) is turns


# ------------------------------------------------------------------------------------------- on tables

TOKENS = ["t", "u", "v", "w", "x", "<eos>"]


def random_table(rng: random.Random) -> dict[str, Any]:
    def row() -> dict[str, float]:
        weights = [rng.choice([0, 1, 1, 5, 20]) * rng.random() for _ in TOKENS]
        weights[-1] *= 0.02
        weights[rng.randrange(5)] += 0.5
        total = sum(weights)
        return {token: weight / total for token, weight in zip(TOKENS, weights, strict=True)}

    contexts = ["", *TOKENS[:5], *(f"{left} {right}" for left in TOKENS[:5] for right in TOKENS[:5])]
    return {"tokens": TOKENS, "eos": "<eos>", "rows": {context: row() for context in contexts}}


def random_pair(folder: Path, rng: random.Random) -> Any:
    a, b = random_table(rng), random_table(rng)
    for context in a["rows"]:
        if rng.random() < 0.5:
            b["rows"][context] = a["rows"][context]
    for name, table in (("a", a), ("b", b)):
        (folder / name).write_text(json.dumps(table))
    return load_pair(WorkerSpec("p", "table", "", ModelSpec("a", str(folder / "a")), ModelSpec("b", str(folder / "b"))))


def random_policy(kind: str, rng: random.Random) -> dict[str, Any]:
    if kind in ("always_a", "always_b"):
        return {"kind": kind}
    policy: dict[str, Any] = {"kind": kind, "max_b_fraction": rng.choice([None, None, 0.2, 0.6])}
    if kind == "random":
        return policy | {"rate": rng.random()}
    if kind == "schedule":
        return policy | {"positions": rng.sample(range(50), 15)}
    cuts = {
        "divergence": [0.0, 0.05, 0.2, 0.5],
        "delta_logp": [-1.0, 0.0, 0.5, 2.0],
        "entropy": [0.0, 0.45, 1.0, 1.4],
        "top_prob": [0.2, 0.4, 0.6, 0.9],
        "rank": [1, 2, 3, 5],
        "target_floor": [0.01, 0.1, 0.3, 0.8],
        "typical": [0.01, 0.09, 0.3, 0.9],
    }[kind]
    on, off = rng.choice(cuts), rng.choice([*cuts, None])
    if off is not None:
        on, off = sorted((on, off), reverse=not getattr(BUILT_IN[kind], "b_below", False))
    if kind == "divergence":
        policy["measure"] = rng.choice(["js", "kl_ab", "kl_ba", "tv", "hellinger", "renyi:0.5", "renyi_ba:2"])
    if kind == "delta_logp":
        policy["of"] = rng.choice("ab")
    return policy | {"on": on, "off": off, "min_dwell": rng.choice([1, 1, 2, 5]), "start": rng.choice("aab")}


def random_sampling(rng: random.Random) -> SamplingParams:
    return SamplingParams(
        temperature=rng.choice([0.0, 0.7, 1.5]),
        top_k=rng.choice([0, 0, 2]),
        top_p=rng.choice([1.0, 1.0, 0.8]),
        min_p=rng.choice([0.0, 0.0, 0.1]),
        seed=rng.getrandbits(53),
    )


async def run(pair: Any, job: SwitchGenerate) -> tuple[list[int], str, dict[str, list[float]], str | None]:
    ids: list[int] = []
    leads, values, reason = "", {}, None
    async for frame in answer(pair, job):
        if isinstance(frame, Tokens):
            ids += frame.ids
            leads += frame.leads
            for name, column in frame.values.items():
                values.setdefault(name, []).extend(column)
        elif isinstance(frame, Done):
            reason = frame.finish_reason
    return ids, leads, values, reason


@pytest.mark.parametrize("kind", BUILT_IN)
async def test_lookahead_equals_lock_step_whatever_the_policy(kind: str, tmp_path: Path) -> None:
    rng = random.Random(kind)
    seen = ""
    for _ in range(12):
        pair, policy, params = random_pair(tmp_path, rng), random_policy(kind, rng), random_sampling(rng)
        measures = rng.choice([[], ["js"], ["delta_logp", "topk_overlap:3", "top1_agree"]])
        jobs = [
            SwitchGenerate([0], 50, params, policy, measures, lookahead=count)
            for count in (0, 1, 2, 3, 4, 5, 6, 7, 8, None)
        ]
        want, *others = [await run(pair, job) for job in jobs]
        assert [got[:2] for got in others] == [want[:2]] * 9, (policy, params)
        for got in others:
            assert got[2].keys() == want[2].keys()
            for name, column in want[2].items():
                assert got[2][name] == pytest.approx(column, rel=1e-12)
            assert got[3] == want[3]
        seen += want[1]
    assert {*seen} == ({"a"} if kind == "always_a" else {"b"} if kind == "always_b" else {"a", "b"})


@pytest.mark.parametrize("kind", BUILT_IN)
async def test_a_run_resumes_anywhere_whatever_the_policy(kind: str, tmp_path: Path) -> None:
    rng = random.Random(kind)
    for _ in range(10):
        pair, policy, params = random_pair(tmp_path, rng), random_policy(kind, rng), random_sampling(rng)
        ids, leads, _, _ = await run(pair, SwitchGenerate([0], 30, params, policy, ignore_eos=True))
        for cut in (1, 8, 20):
            before = leads[:cut]
            length = cut - len(before.rstrip(before[-1]))
            if length == cut and policy.get("start") == before[-1] == "b":
                length += policy["min_dwell"]
            state = {"lead": before[-1], "run": length, "emitted": cut, "by_b": before.count("b")}
            job = SwitchGenerate([0, *ids[:cut]], 30 - cut, params, policy, ignore_eos=True, state=state)
            assert (await run(pair, job))[:2] == (ids[cut:], leads[cut:])


# By itself A writes x x x ..., unsure of the first alone; B wants w after x, and x after w.
NUDGED = {"": {"x": 0.36, "w": 0.33, "v": 0.31}, "x": {"x": 0.95, "w": 0.05}, "w": {"x": 0.6, "w": 0.4}}
NUDGER = {"": {"x": 1.0}, "x": {"w": 0.7, "x": 0.3}, "w": {"x": 0.995, "w": 0.005}}


@pytest.mark.parametrize(
    ("policy", "tokens", "leads", "watched"),
    [
        # After v: A is unsure (0.36 < 0.4), B says x; after x A is sure and stays.
        ({"kind": "top_prob"}, "xxx", "baa", [0.36, 0.95, 0.95]),
        ({"kind": "entropy", "on": 1.0}, "xxx", "baa", [1.0967, 0.1985, 0.1985]),
        # After x B's w is A's second: rank 2. After w B's x is A's first.
        ({"kind": "rank", "on": 1}, "xwxw", "abab", [1, 2, 1, 2]),
        ({"kind": "rank"}, "xxx", "aaa", [1, 2, 2]),
        # B prefers w after x by log(0.7 / 0.05) = 2.64 nats; after w its x by log(0.995 / 0.6) = 0.51.
        ({"kind": "delta_logp", "on": 2.0}, "xwxw", "abab", [1.0217, 2.6391, 0.5058, 2.6391]),
        ({"kind": "delta_logp", "on": 0.4}, "xwxw", "bbbb", [1.0217, 2.6391, 0.5058, 2.6391]),
        # B would avoid A's x after x by log(0.95 / 0.3) = 1.15 nats.
        ({"kind": "delta_logp", "of": "a"}, "xwxw", "abab", [1.0217, -1.1527, 0.5058, -1.1527]),
        # B gives A's x 0.3 after x, less than 0.4 and than its best, 0.7.
        ({"kind": "target_floor", "on": 0.4}, "xwxw", "abab", [1.0, 0.3, 0.995, 0.3]),
        ({"kind": "target_floor"}, "xxx", "aaa", [1.0, 0.3, 0.3]),
        # H of (0.7, 0.3) is 0.6109: the bound is min(0.4, 0.9 e^-0.6109 = 0.489).
        ({"kind": "typical", "on": 0.4, "delta": 0.9}, "xwxw", "abab", [1.0, 0.3, 0.995, 0.3]),
        ({"kind": "typical"}, "xxx", "aaa", [1.0, 0.3, 0.3]),
    ],
)
async def test_policies_on_a_table_worked_by_hand(
    policy: dict[str, Any], tokens: str, leads: str, watched: list[float], tmp_path: Path
) -> None:
    for name, table in (("a", NUDGED), ("b", NUDGER)):
        (tmp_path / name).write_text(json.dumps({"tokens": TOKENS, "eos": "<eos>", "rows": table}))
    sides = [ModelSpec(name, str(tmp_path / name)) for name in "ab"]
    pair = load_pair(WorkerSpec("p", "table", "", *sides))
    # Greedy, after v.
    job = SwitchGenerate([2], len(tokens), SamplingParams(temperature=0), policy, lookahead=0)
    ids, got, values, _ = await run(pair, job)
    assert ("".join(TOKENS[i] for i in ids), got) == (tokens, leads)
    assert values[BUILT_IN[policy["kind"]].model_validate(policy).watched] == pytest.approx(watched, abs=1e-4)


async def test_a_policy_the_worker_does_not_know_fails_with_its_reason(tmp_path: Path) -> None:
    pair = random_pair(tmp_path, random.Random(1))
    with pytest.raises(InvalidField, match="Did you mean 'rank'"):
        await run(pair, SwitchGenerate([0], 5, SamplingParams(), {"kind": "rnk"}))
