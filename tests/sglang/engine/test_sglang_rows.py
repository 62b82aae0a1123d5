"""What the contract suite cannot see: what is computed, what is refused before a server sees it, what becomes of calls
that nobody waits for any more."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from rl_onoff.errors import ConfigurationError, InternalError, InvalidField, LoadError, UnsupportedModel, WorkerLost
from tests.contract import tiny
from tests.contract.across import writes_as_transformers
from tests.contract.backends.sglang import PREFILL
from tests.contract.conftest import Case, spec
from tests.contract.test_backend import GREEDY, gap, tokens
from workers import sampling
from workers.backends.sglang.endpoint import Endpoint
from workers.backends.sglang.memory import RowFile
from workers.backends.sglang.model import SGLangModel
from workers.backends.sglang.options import arguments, options_of
from workers.backends.sglang.pair import start
from workers.backends.sglang.selfcheck import check_exact
from workers.wire import Generate, ModelInfo, SamplingParams

NEVER: frozenset[int] = frozenset()


def posts(model: SGLangModel, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths of the requests made from now on."""
    made: list[str] = []
    post = model._post

    async def counted(path: str, body: dict[str, Any]) -> dict[str, Any]:
        made.append(path)
        return await post(path, body)

    monkeypatch.setattr(model, "_post", counted)
    return made


async def test_a_prefix_is_computed_once(llama: Case) -> None:
    ids = llama.prompt(50, seed=77)
    model: SGLangModel = llama.pair.a  # type: ignore[assignment]
    computed = []
    async with model.sequence() as sequence:
        for end in range(30, 50):
            before = model.computed
            await sequence.rows(ids[:end], end)
            computed.append(model.computed - before)
    assert computed == [30] + [1] * 19
    async with model.sequence() as sequence:  # another sequence
        before = model.computed
        await sequence.rows(ids, 42)  # 9 rows: those of the tokens at 41..49
        assert model.computed - before == 9


async def test_seeds_write_what_they_write_on_transformers(folders: dict[str, tuple[Path, Path]]) -> None:
    await writes_as_transformers(folders["qwen3"])


async def test_a_prompt_is_computed_in_parts(llama: Case) -> None:
    ids = llama.prompt(3 * PREFILL + 5, seed=78)
    want = llama.plain_rows(llama.plain_a, ids)
    async with llama.pair.a.sequence() as sequence:
        assert gap(await sequence.rows(ids, 1), want) < 1e-5
        assert gap(await sequence.rows(ids[::-1], len(ids) - 2), llama.plain_rows(llama.plain_a, ids[::-1])[-3:]) < 1e-5
        draft = await sequence.draft(ids[1:], 5, SamplingParams(seed=3), NEVER)
        assert gap(await sequence.rows([*ids[1:], *draft.tokens[:-1]], len(ids) - 1), draft.rows) < 1e-5


async def test_a_context_can_be_filled_to_its_end(llama: Case) -> None:
    ids = llama.prompt(tiny.MAX_LEN, seed=79)
    async with llama.pair.a.sequence() as sequence:
        assert gap(await sequence.rows(ids, 250), llama.plain_rows(llama.plain_a, ids)[249:]) < 1e-5
        draft = await sequence.draft(ids[:-8], 8, SamplingParams(seed=3), NEVER)
        assert len(draft.tokens) == 8
        assert sequence.forwards == 9
    got, _, _ = await tokens(llama, Generate("a", ids[:250], 6, GREEDY, ignore_eos=True))
    assert got == llama.plain_greedy(llama.plain_a, ids[:250], 6)


def test_a_cache_that_holds_no_context_is_refused(folders: Any) -> None:
    with pytest.raises(LoadError, match=r"holds .* tokens, its context 256: set the pair's max_len lower"):
        start(spec(*folders["llama"], options={"server": {"max_total_tokens": 200}}))


async def test_a_draft_is_one_request_and_equals_drawing_from_rows(
    llama: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: SGLangModel = llama.pair.a  # type: ignore[assignment]
    made = posts(model, monkeypatch)
    params = [
        SamplingParams(temperature=0),
        SamplingParams(seed=1),
        SamplingParams(temperature=0.7, top_k=5, seed=2),
        SamplingParams(temperature=1.3, top_p=0.8, min_p=0.02, seed=2**53 - 1),
    ]

    async def draft(index: int) -> None:
        ids = llama.prompt(20 + index, seed=index)
        async with model.sequence() as sequence:
            drawn = await sequence.draft(ids, 8, params[index], NEVER)
            rows = await sequence.rows([*ids, *drawn.tokens[:-1]], len(ids))
        assert drawn.rows.shape == (8, llama.vocab_size)
        assert gap(drawn.rows, rows) < 1e-5
        positions = range(len(ids), len(ids) + 8)
        assert drawn.tokens == sampling.choose(drawn.rows, params[index], positions)
        assert drawn.tokens == sampling.choose(rows, params[index], positions)

    await asyncio.gather(*map(draft, range(4)))
    assert len(made) == 8


async def test_a_draft_ends_with_the_callers_ends_and_no_others(llama: Case) -> None:
    ids = llama.prompt(20)
    async with llama.pair.a.sequence() as sequence:
        free = await sequence.draft(ids, 12, SamplingParams(seed=4), NEVER)
        end = next(token for token in free.tokens[3:] if token not in free.tokens[:3])
        short = await sequence.draft(ids, 12, SamplingParams(seed=4), frozenset({end}))
        assert short.tokens == free.tokens[: free.tokens.index(end) + 1]
        assert gap(short.rows, free.rows[: len(short.tokens)]) < 1e-5
    eos = llama.pair.info.a.eos_ids[0]
    seed = 0
    while True:  # a draft in which the model's own end comes up early
        async with llama.pair.a.sequence() as sequence:
            free = await sequence.draft(ids, 12, SamplingParams(temperature=3.0, seed=seed), NEVER)
            if eos in free.tokens[:-1]:
                other = frozenset({next(i for i in range(llama.vocab_size) if i not in free.tokens)})
                draft = await sequence.draft(ids, 12, SamplingParams(temperature=3.0, seed=seed), other)
                assert draft.tokens == free.tokens
                assert sequence.forwards == 24
                return
        seed += 1


@pytest.mark.parametrize("bad", [-1, 96, 104, 2**31])
async def test_a_wrong_id_never_reaches_the_server(llama: Case, bad: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made = posts(llama.pair.a, monkeypatch)  # type: ignore[arg-type]
    async with llama.pair.a.sequence() as sequence:
        with pytest.raises(InvalidField, match="token ids must lie in"):
            await sequence.rows([3, bad, 4], 1)
        with pytest.raises(InvalidField, match="token ids must lie in"):
            await sequence.draft([bad], 2, SamplingParams(), NEVER)
        for start, ids in ((0, [3]), (3, [3, 4]), (1, [])):
            with pytest.raises(InvalidField):
                await sequence.rows(ids, start)
        with pytest.raises(InvalidField, match="rows must lie in"):
            await sequence.draft([3] * 250, 50, SamplingParams(), NEVER)
        assert made == []
        await sequence.rows([3, 4], 1)


async def test_a_cancelled_draft_is_aborted_and_its_memory_is_nobodys_meanwhile(llama: Case) -> None:
    model: SGLangModel = llama.pair.a  # type: ignore[assignment]
    ids = llama.prompt(20)
    async with model.sequence() as sequence:
        await sequence.rows(ids, 1)
        steps, free = model.steps, len(model._files._free)
        task = asyncio.create_task(sequence.draft(ids, 200, SamplingParams(seed=1), NEVER))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(model._files._free) == free - 1
        rows = await sequence.rows(ids, 1)  # while the other ends
        assert gap(rows, llama.plain_rows(llama.plain_a, ids)) < 1e-5
    async with asyncio.timeout(10):
        while model._requests:
            await asyncio.sleep(0.01)
    assert model.steps - steps < 150, "it was drafted to its end"
    assert len(model._files._free) == len(model._files._all)


async def test_a_row_nobody_wrote_is_an_error(llama: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(RowFile):
        """The server is told of a file that is not there."""

        def __init__(self) -> None:
            super().__init__()
            self.real, self.descriptor = self.descriptor, 10**6

        def rows(self, count: int, width: int) -> torch.Tensor:
            return torch.full((count, width), math.nan)

        def close(self) -> None:
            self.descriptor = self.real
            super().close()

    model: SGLangModel = llama.pair.b  # type: ignore[assignment]
    monkeypatch.setattr(model._files, "_free", [Other()])
    async with model.sequence() as sequence:
        with pytest.raises(InternalError, match="a row is missing"):
            await sequence.rows(llama.prompt(5), 1)
        model._files._free.clear()
        await sequence.rows(llama.prompt(5), 1)


async def test_a_server_that_is_gone_is_a_retryable_error(llama: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    model: SGLangModel = llama.pair.a  # type: ignore[assignment]

    class Gone(Endpoint):
        end = "was killed by signal 9"  # type: ignore[assignment]

        async def ends_within(self, seconds: float) -> bool:
            return True

    monkeypatch.setattr(model, "server", Gone("a", "http://127.0.0.1:9", ""))
    async with model.sequence() as sequence:
        with pytest.raises(WorkerLost, match="model a was killed by signal 9") as caught:
            await sequence.rows(llama.prompt(5), 1)
    assert caught.value.retryable


def test_what_may_be_set_and_what_not(folders: Any) -> None:
    asked = {"server": {"tp_size": 2, "quantization": "fp8", "cuda_graph_bs": [1, 2]}, "server_b": {"tp-size": 4}}
    pair = spec(*folders["llama"], options=asked)
    info = ModelInfo("a", "", None, "", "bfloat16", "cpu", 96, 104, 256, [1], None, 0)
    words = " ".join(arguments(pair, "a", options_of(pair), info, folders["llama"][0]))
    for part in ("--tp-size 2", "--quantization fp8", "--cuda-graph-bs 1 2", "--enable-fp32-lm-head", "--device cpu"):
        assert part in words
    assert "--tp-size 4" in " ".join(arguments(pair, "b", options_of(pair), info, folders["llama"][1]))
    for name in ("host", "api-key", "enable_custom_logit_processor"):
        with pytest.raises(ConfigurationError, match="not for you to set"):
            options_of(spec(*folders["llama"], options={"server": {name: 1}}))
    with pytest.raises(ConfigurationError, match="unknown field `sever`"):
        options_of(spec(*folders["llama"], options={"sever": {}}))


def test_a_window_is_refused_where_it_matters(tmp_path: Path) -> None:
    """SGLang's Mistral attends to everything: its rows would be wrong from the window's end on."""
    pair = tiny.write_pair(tmp_path, "mistral")
    with pytest.raises(UnsupportedModel, match=r"a window of 16 tokens.* set max_len to 16 or less"):
        start(spec(*pair))


def test_a_model_that_is_not_run_exactly_is_refused(llama: Case, folders: Any) -> None:
    ids = llama.prompt(20)
    rows = llama.plain_rows(llama.plain_a, ids)
    check_exact(llama.pair.info.a, folders["llama"][0], ids, rows)
    with pytest.raises(UnsupportedModel, match=r"does not run model a exactly .* off by 0\.0"):
        check_exact(llama.pair.info.a, folders["llama"][0], ids, rows + 0.05)


def test_a_pair_that_does_not_start_leaves_nothing_behind(folders: Any) -> None:
    """SGLang's own words are in the error."""
    with pytest.raises(LoadError, match=r"(?s)ended with code 2.*no-such-argument"):
        start(spec(*folders["llama"], options={"server": {"no_such_argument": 1}}))
