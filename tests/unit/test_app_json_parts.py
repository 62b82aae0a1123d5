"""Long answers are the same as short ones, and are written in short pieces."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from pydantic import Field

from app.services.events import Event
from app.services.json_parts import parts, pieces
from app.services.openai.answers import ChatChoice, ChatCompletion, Completion
from app.services.openai.running import Chunk
from rl_onoff.policy import RandomPolicy
from rl_onoff.schemas import Generated, GenerateResponse, Receipt, Response, Sampling, Switch, TokenLogprobs, TopTokens
from rl_onoff.schemas import Usage as UsageOut


class Odd(Response):
    """Whatever a field may hold."""

    nothing: list[int] = Field(default=[])
    switches: list[Switch] = Field(default=[])
    values: dict[str, list[float | None]] = Field(default={})
    rows: list[dict[str, float] | None] = Field(default=[])
    texts: list[str] = Field(default=[])
    inner: Odd | None = None
    text: str = ""
    receipt: Receipt | None = None


def generated(tokens: int, k: int) -> Generated:
    top = [TopTokens(ids=list(range(k)), values=[-0.5, None, *[-1e-7] * (k - 2)]) for _ in range(tokens)]
    return Generated(
        prompt_index=0,
        index=0,
        text="é\u2028" * tokens,
        token_ids=list(range(tokens)),
        finish_reason="stop",
        seed=2**53 - 1,
        logprobs=TokenLogprobs(token_logprobs=[-0.25] * tokens, top=top),
        metrics={"bleu": None},
    )


def response(samples: int, tokens: int = 40, k: int = 200) -> GenerateResponse:
    results = [generated(tokens, k) for _ in range(samples)]
    usage = UsageOut(prompt_tokens=1, completion_tokens=2)
    return GenerateResponse(id="gen", model="m", results=results, usage=usage, metrics={}, added=[1])  # type: ignore[call-arg]


RECEIPT = Receipt(
    version="1",
    a_fingerprint="a",
    b_fingerprint="b",
    prompt_ids=list(range(9000)),
    policy=RandomPolicy(rate=0.5),
    sampling=Sampling(stop=["x"]),
)
SWITCHES = [Switch(position=index, from_="a", to="b", value=math.inf) for index in range(3000)]
MODELS: list[Any] = [
    response(0),
    response(1, 1, 3),
    response(3),
    response(1, 9000, 2),
    Odd(),
    Odd(switches=SWITCHES, text="\u2028" * 500_000, receipt=RECEIPT, inner=Odd(texts=["é" * 10_000] * 100)),
    Odd(
        values={"é": [0.5], "js": [0.5] * 9000, "kl": [None], **{str(i): [0.25] * 300 for i in range(30)}},
        rows=[None, *[{str(i): 0.5 for i in range(300)}] * 40],
        more=[[1] * 900] * 9,
    ),  # type: ignore[call-arg]
    ChatCompletion.model_construct(choices=[ChatChoice.model_construct(token_ids=[5] * 5000)], model="m"),
]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("exclude_unset", [False, True])
@pytest.mark.parametrize("ascii_only", [False, True])
async def test_pieces_are_the_whole(model: Any, exclude_unset: bool, ascii_only: bool) -> None:
    whole = model.model_dump_json(by_alias=True, exclude_unset=exclude_unset, ensure_ascii=ascii_only, warnings=False)
    own = pieces(model, exclude_unset=exclude_unset, ensure_ascii=ascii_only)
    assert b"".join([part async for part in parts(own)]).decode() == whole


def test_no_piece_takes_long() -> None:
    """A piece's time is that of its bytes: about 5 ms at most, where nothing else runs."""
    sizes = list(map(len, pieces(response(40))))
    assert len(sizes) > 200
    assert max(sizes) < 50_000


def test_dictionaries_are_cut_too() -> None:
    assert len(list(pieces(Odd(values={name: [0.5] * 9000 for name in "abc"})))) > 10


def test_a_short_answer_is_one_piece() -> None:
    assert len(list(pieces(response(1, 20, 5)))) == 1


@pytest.mark.parametrize("event", [Event("done", response(3), 7), Event("comment", "so"), Event("token", response(0))])
def test_events_in_pieces(event: Event) -> None:
    assert b"".join(event.pieces()) == event.encode()
    assert event.long == (event.name == "done")


def test_chunks_in_pieces() -> None:
    body = Completion(id="c", object="text_completion", created=1, model="é", choices=[])
    for chunk in (Chunk("token", body, long=True), Chunk("done", None)):
        assert b"".join(chunk.pieces()) == chunk.encode()
    assert json.loads(Chunk("token", body).encode()[6:])["model"] == "é"
