"""Clients that come back: the events they lack, each once, and the text they would have had."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from rl_onoff import AsyncClient, Client
from rl_onoff.schemas import Switch, SwitchToken
from tests.e2e.running_service import RunningService, events, running, table_pair
from tests.web.proxy import proxied

Events = list[tuple[str, str | None, dict[str, Any]]]

POLICY = {"kind": "divergence", "measure": "tv", "on": 0.5}
BODY: dict[str, Any] = {
    "prompt": "b",
    "policy": POLICY,
    "sampling": {"max_tokens": 40, "seed": 3, "stop": "ccccc"},
    "stream": True,
}
SEEDLESS = {**BODY, "sampling": {"max_tokens": 40, "stop": "ccccc"}}
#: What differs between two runs of one request.
VOLATILE = {"id", "usage"}
KEPT_SECONDS = 3.0


def start(folder: Path, **settings: Any) -> Any:
    pair = table_pair(folder, endless=True, delay=0.005, max_len=100_000)
    return running(folder, {"pairs": [pair], "reconnect_seconds": KEPT_SECONDS, "stop_seconds": 1, **settings})


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    with start(tmp_path_factory.mktemp("reconnect")) as started:
        yield started


@pytest.fixture(scope="module")
def http(service: RunningService) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.url, timeout=20) as client:
        yield client


def read(http: httpx.Client, body: dict[str, Any], most: int | None = None, **headers: str) -> tuple[Events, str]:
    """The first `most` events of a stream, all by default, and its request id."""
    with http.stream("POST", "/switch-generate", json=body, headers=headers) as response:
        assert response.status_code == 200, response.read()
        found = []
        for event in events(response):
            found.append(event)
            if most is not None and len(found) >= most:
                break
        return found, response.headers["x-request-id"]


def told(found: Events) -> Events:
    def kept(name: str, data: dict[str, Any]) -> dict[str, Any]:
        return {k: v for k, v in data.items() if k not in VOLATILE} if name == "done" else data

    return [(name, id_, kept(name, data)) for name, id_, data in found]


@pytest.fixture(scope="module")
def whole(http: httpx.Client) -> Events:
    found, _ = read(http, BODY)
    assert {name for name, _, _ in found} == {"token", "switch", "done"}
    assert len({id_ for _, id_, _ in found}) == len(found)
    return told(found)


def test_whoever_comes_back_gets_what_follows(http: httpx.Client, whole: Events) -> None:
    """After every event; nothing is kept of this text: as in a service that was started anew."""
    for position, (_, last, _) in enumerate(whole[:-1]):
        assert last is not None
        found, _ = read(http, BODY, **{"Last-Event-ID": last, "X-Request-Id": f"anew-{position}"})
        assert told(found) == whole[position + 1 :], last


@pytest.mark.parametrize("by_id", [True, False])
def test_a_stream_that_breaks_off_again_and_again(http: httpx.Client, whole: Events, by_id: bool) -> None:
    found: Events = []
    headers: dict[str, str] = {}
    while not found or found[-1][0] != "done":
        more, request_id = read(http, BODY, 3, **headers)
        found += more
        headers = {"Last-Event-ID": found[-1][1] or ""} | ({"X-Request-Id": request_id} if by_id else {})
    assert told(found) == whole


def test_a_text_whose_seed_nobody_gave_goes_on_by_its_request_id(http: httpx.Client) -> None:
    found, request_id = read(http, SEEDLESS, 2, **{"X-Request-Id": "seedless"})
    assert request_id == "seedless"
    while found[-1][0] != "done":
        more, again = read(http, SEEDLESS, 5, **{"Last-Event-ID": found[-1][1] or "", "X-Request-Id": request_id})
        assert again == request_id
        found += more
    done = found[-1][2]
    assert [data["id"] for name, _, data in found if name == "token"] == done["token_ids"]
    assert "".join(data["text"] for name, _, data in found if name == "token") == done["text"]
    assert [data for name, _, data in found if name == "switch"] == done["switches"]
    assert done["usage"]["completion_tokens"] == len(done["token_ids"])
    seeded = {**BODY, "sampling": {**BODY["sampling"], "seed": done["seed"]}, "stream": False}
    assert http.post("/switch-generate", json=seeded).json()["token_ids"] == done["token_ids"]
    # The end may be what was lost, too.
    *_, (_, last, _), _ = found
    (end,), _ = read(http, SEEDLESS, **{"Last-Event-ID": last or "", "X-Request-Id": request_id})
    assert told([end]) == told(found[-1:])


def refused(http: httpx.Client, body: dict[str, Any], **headers: str) -> tuple[int, str]:
    answer = http.post("/switch-generate", json=body, headers=headers)
    return answer.status_code, answer.json()["type"].rpartition(":")[2]


def test_nobody_goes_on_with_what_is_not_his_or_too_old(http: httpx.Client) -> None:
    _, request_id = read(http, SEEDLESS, 2)
    mine = {"Last-Event-ID": "0", "X-Request-Id": request_id}
    unknown = (404, "unknown-stream")
    assert refused(http, SEEDLESS, **{**mine, "X-Request-Id": "another"}) == unknown
    assert refused(http, {**SEEDLESS, "prompt": "c"}, **mine) == unknown
    assert refused(http, SEEDLESS, **mine, Authorization="Bearer somebody-elses-key") == unknown
    time.sleep(KEPT_SECONDS + 0.2)
    assert refused(http, SEEDLESS, **mine) == unknown


@pytest.mark.parametrize("last", ["x", "-1", "switch-", "1.5", "9999999999"])
def test_what_is_no_id_is_refused(http: httpx.Client, last: str) -> None:
    answer = http.post("/switch-generate", json=BODY, headers={"Last-Event-ID": last})
    assert answer.status_code == 422
    assert "last-event-id" in answer.json()["errors"][0]["field"].lower()


def test_an_id_beyond_the_end_is_refused(http: httpx.Client, whole: Events) -> None:
    (only,) = [id_ for _, id_, _ in whole[-2:-1]]
    beyond = str(int(only or "") + 1)
    for last in (beyond, f"switch-{beyond}"):
        assert refused(http, BODY, **{"Last-Event-ID": last}) == (422, "invalid-field")


def test_a_connection_that_broke_without_a_word_gives_way(service: RunningService, http: httpx.Client) -> None:
    body = {**SEEDLESS, "sampling": {"max_tokens": 800}}
    with httpx.Client(base_url=service.url, timeout=20) as other:
        request = other.build_request("POST", "/switch-generate", json=body)
        old = other.send(request, stream=True)  # open, and never read further
        received = events(old)
        first = [next(received) for _ in range(3)]
        headers = {"Last-Event-ID": first[-1][1] or "", "X-Request-Id": old.headers["x-request-id"]}
        begun = time.monotonic()
        rest, _ = read(http, body, **headers)
        assert time.monotonic() - begun < 60
        with pytest.raises(httpx.RemoteProtocolError):
            list(received)
    found = [*first, *rest]
    assert [data["index"] for name, _, data in found if name == "token"] == list(range(800))
    assert [data["id"] for name, _, data in found if name == "token"] == found[-1][2]["token_ids"]


def test_a_worker_that_died_meanwhile(service: RunningService, http: httpx.Client) -> None:
    body = {**SEEDLESS, "sampling": {"max_tokens": 200}}
    found, request_id = read(http, body, 5)
    os.kill(service.workers[0], signal.SIGKILL)
    service.wait_for(lambda: http.get("/ready").status_code == 503)
    service.wait_for(lambda: http.get("/ready").status_code == 200)
    headers = {"Last-Event-ID": found[-1][1] or "", "X-Request-Id": request_id}
    with http.stream("POST", "/switch-generate", json=body, headers=headers) as response:
        lines = list(response.iter_lines())
    assert ": the worker is gone; its successor goes on from here" in lines
    rest = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
    tokens = [data for _, _, data in found if "index" in data] + [data for data in rest if "index" in data]
    assert [token["index"] for token in tokens] == list(range(200))
    seeded = {**body, "sampling": {"max_tokens": 200, "seed": rest[-1]["seed"]}, "stream": False}
    undisturbed = http.post("/switch-generate", json=seeded).json()
    assert [token["id"] for token in tokens] == undisturbed["token_ids"] == rest[-1]["token_ids"]
    assert rest[-1]["switches"] == undisturbed["switches"]


async def test_the_sdk_goes_on_by_itself(service: RunningService, whole: Events) -> None:
    """Through a line that breaks after every second event or so."""
    fields: Any = {"policy": POLICY, "sampling": BODY["sampling"]}
    wanted = whole[-1][2]
    with proxied(service.url) as line:
        with Client(line.url) as client:
            line.cut_after = 4
            stream = client.switch_generate("b", stream=True, **fields)
            seen: list[Any] = []
            for event in stream:
                seen.append(event)
                line.cut_after = 9 if len(seen) == 6 else line.cut_after
        async with AsyncClient(line.url) as aclient:
            line.cut_after = 7
            astream = await aclient.switch_generate("b", stream=True, **fields)
            aseen = [event async for event in astream]
        assert line.streams == 5
    for found, result in ((seen, stream.result), (aseen, astream.result)):
        tokens = [event for event in found if isinstance(event, SwitchToken)]
        assert [token.index for token in tokens] == list(range(len(wanted["token_ids"])))
        assert [token.id for token in tokens] == result.token_ids == wanted["token_ids"]
        assert [event for event in found if isinstance(event, Switch)] == result.switches
        assert result.text == wanted["text"]


def test_the_sdk_goes_on_after_a_restart_of_the_service(tmp_path: Path, free_port: int) -> None:
    with start(tmp_path, port=free_port) as service, Client(url := service.url) as client:
        fields: Any = {"policy": POLICY, "max_tokens": 200}
        stream = client.switch_generate("b", stream=True, **fields)  # the SDK has chosen a seed
        received = iter(stream)
        seen = [next(received) for _ in range(20)]
        service.process.kill()
        service.process.wait()
        with start(tmp_path, port=free_port) as again:
            assert again.url == url
            seen += received
            plain = client.switch_generate("b", seed=stream.result.seed, **fields)
    tokens = [event for event in seen if isinstance(event, SwitchToken)]
    assert [token.index for token in tokens] == list(range(200))
    assert [token.id for token in tokens] == plain.token_ids
    assert stream.result.text == plain.text


def test_a_name_that_two_had_at_once_is_one_streams_again(http: httpx.Client) -> None:
    """Of the two nobody can tell which one is meant; whoever has it afterwards is found."""
    name = {"X-Request-Id": "twice"}
    with ThreadPoolExecutor(2) as both:
        for one in [both.submit(read, http, SEEDLESS, **name) for _ in range(2)]:
            one.result()
    found, _ = read(http, SEEDLESS, 5, **name)
    rest, _ = read(http, SEEDLESS, **name, **{"Last-Event-ID": str(found[-1][1])})
    assert rest[-1][0] == "done"
