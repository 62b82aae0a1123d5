"""Servers that were there before the worker: the suite's own, asked as a stranger would."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from rl_onoff.errors import ConfigurationError, InternalError, InvalidField, LoadError, WorkerUnavailable
from tests.contract.conftest import Case, spec
from tests.contract.test_backend import GREEDY, gap, tokens
from workers import sampling
from workers.backends.sglang.endpoint import Endpoint
from workers.backends.sglang.pair import SGLangPair, start
from workers.backends.sglang.remote import RemoteModel, _rows
from workers.wire import SamplingParams, Score, SwitchGenerate


@pytest.fixture
async def remote(llama: Case, folders: Any, tmp_path: Path) -> AsyncIterator[Case]:
    """The same models through addresses and keys alone."""
    options: dict[str, Any] = {"start_seconds": 10}
    for side, model in (("a", llama.pair.a), ("b", llama.pair.b)):
        endpoint: Endpoint = model.server  # type: ignore[attr-defined]
        (tmp_path / side).write_text(endpoint.key + "\n")
        options[f"remote_{side}"] = {"url": endpoint.url, "key_file": str(tmp_path / side)}
    pair = SGLangPair(*start(spec(*folders["llama"], options=options)), 4)
    yield Case(pair, llama.plain_a, llama.plain_b)
    await pair.close()
    assert llama.pair.a.server.answers()  # type: ignore[attr-defined]


async def test_rows_and_drafts_are_the_same(llama: Case, remote: Case) -> None:
    assert isinstance(remote.pair.a, RemoteModel)
    ids = llama.prompt(100, seed=80)
    params = SamplingParams(temperature=0.8, top_p=0.9, seed=6)
    async with remote.pair.a.sequence() as sequence, llama.pair.a.sequence() as other:
        assert gap(await sequence.rows(ids, 1), llama.plain_rows(llama.plain_a, ids)) < 1e-5
        before = remote.pair.a.computed
        assert gap(await sequence.rows(ids, 90), llama.plain_rows(llama.plain_a, ids)[89:]) < 1e-5
        assert remote.pair.a.computed - before == 11
        drafts = [await s.draft(ids, 6, params, frozenset()) for s in (sequence, other)]
        assert drafts[0].tokens == drafts[1].tokens == sampling.choose(drafts[0].rows, params, range(100, 106))
        assert gap(drafts[0].rows, drafts[1].rows) < 1e-5
        eos = frozenset(drafts[0].tokens[2:3])
        short = await sequence.draft(ids, 6, params, eos)
        assert short.tokens == drafts[0].tokens[: drafts[0].tokens.index(*eos) + 1]


async def test_switching_is_the_same(llama: Case, remote: Case) -> None:
    for seed, lookahead in ((1, None), (2, 4), (3, 0)):
        policy = {"kind": "divergence", "on": 0.05}
        job = SwitchGenerate(llama.prompt(10), 20, SamplingParams(seed=seed), policy, lookahead=lookahead)
        assert (await tokens(remote, job))[:2] == (await tokens(llama, job))[:2]


async def test_what_it_cannot_and_what_it_must_not(remote: Case) -> None:
    with pytest.raises(InvalidField, match="no logits"):
        await tokens(remote, Score("a", [3, 4, 5], 1, kind="logits"))
    async with remote.pair.a.sequence() as sequence:
        with pytest.raises(InvalidField, match="token ids must lie in"):
            await sequence.rows([3, 96], 1)


async def test_one_that_goes_away_is_a_retryable_error(llama: Case) -> None:
    nowhere = Endpoint("a", "http://127.0.0.1:9", "")
    pair = SGLangPair(llama.pair.info, (nowhere, nowhere), 4)
    async with pair.a.sequence() as sequence:
        with pytest.raises(WorkerUnavailable, match="of model a does not answer") as caught:
            await sequence.draft([3], 1, GREEDY, frozenset())
    assert caught.value.retryable
    await pair.disconnect()


def test_a_wrong_address_and_a_wrong_key_are_told(llama: Case, folders: Any, tmp_path: Path) -> None:
    right = llama.pair.a.server.url  # type: ignore[attr-defined]

    def loading(url: str, key_file: str | None) -> None:
        side = {"url": url, "key_file": key_file}
        start(spec(*folders["llama"], options={"remote_a": side, "remote_b": side, "start_seconds": 0.3}))

    with pytest.raises(LoadError, match=r"model a at http://127.0.0.1:9 does not answer"):
        loading("http://127.0.0.1:9", None)
    with pytest.raises(ConfigurationError, match="answers 401"):
        loading(right, None)
    with pytest.raises(ConfigurationError, match="key_file of model a: No such file"):
        loading(right, str(tmp_path / "none"))


def test_an_incomplete_answer_is_an_error() -> None:
    with pytest.raises(InternalError, match="sent 0 log-probabilities of 96"):
        _rows({}, 1, 96)
