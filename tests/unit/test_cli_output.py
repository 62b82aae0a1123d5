"""The command line as a process: output that cannot be written, exit codes, colours of policies."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from rl_onoff import Client
from rl_onoff.cli import app
from rl_onoff.cli.tokens import low_means_apart, style_of
from rl_onoff.kinds import BUILT_IN
from tests.unit.service_double import Body, Service, problem, switch_events

runner = CliRunner()
MAIN = [sys.executable, "-m", "rl_onoff.cli"]
# `switch` with a service made of canned answers in the same process.
SWITCH = [
    sys.executable,
    "-c",
    "import httpx\n"
    "from functools import partial\n"
    "from rl_onoff import Client\n"
    "from rl_onoff.cli import app, switch\n"
    "from tests.unit.service_double import SWITCHED, Body, Service, switch_events\n"
    "def answer(request):\n"
    "    if 'event-stream' in request.headers['Accept']: return Body(switch_events()).response()\n"
    "    return httpx.Response(200, json=SWITCHED)\n"
    "switch.Client = partial(Client, transport=Service(answer).transport)\n"
    "app()",
    "switch",
    "Q",
]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full disk to write to")
@pytest.mark.parametrize("command", [[*MAIN, "--help"], [*MAIN, "--version"], SWITCH, [*SWITCH, "--json"]])
def test_a_full_disk_is_one_line_and_74(command: list[str]) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
        assert done.returncode == 74, done.stderr
        assert done.stderr == "rl-onoff: the output cannot be written: No space left on device\n"
        assert subprocess.run(command, stdout=full, stderr=full).returncode == 74


@pytest.mark.parametrize("command", [[*MAIN, "--help"], SWITCH, [*SWITCH, "--json"]])
def test_a_reader_that_left_is_told_nothing(command: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True)
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (problem(404, "unknown-model"), 2),
        (problem(401, "unauthorized"), 2),
        (problem(413, "payload-too-large"), 2),
        (problem(422, "context-exceeded"), 2),
        (problem(400, "of-a-newer-service"), 2),
        (problem(429, "overloaded", retryable=True), 1),
        (problem(500, "internal-error"), 1),
        (httpx.ConnectError("refused"), 1),
    ],
)
def test_what_the_user_can_mend_is_2(monkeypatch: pytest.MonkeyPatch, answer: Any, code: int) -> None:
    made = partial(Client, transport=Service(answer).transport, max_retries=0)
    monkeypatch.setattr("rl_onoff.cli.switch.Client", made)
    result = runner.invoke(app, ["switch", "Q"])
    assert result.exit_code == code
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["serve", "--device", "cpu"], "--device without --a and --b"),
        (["serve", "--dtype", "float32", "--backend", "hf"], "--backend and --dtype without"),
        (["serve", "--config", __file__, "--device", "cpu"], "--device without"),
        (["serve", "--a", "x", "--b", "y", "--backend", "nosuch"], "there is no 'nosuch'; there are: hf, "),
        (["switch", "Q", "--url", "http://u:s3cret@h:port"], "is no URL"),
        (["switch", "Q", "--url", "localhost:8000"], "http://"),
        (["switch", "Q", "--api-key", "s3cret "], "API key"),
    ],
)
def test_wrong_usage_is_2(arguments: list[str], said: str) -> None:
    result = runner.invoke(app, arguments)
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.replace("│", " ").split())
    assert "cret" not in result.stderr


def test_a_low_probability_is_as_warm_as_a_high_divergence(monkeypatch: pytest.MonkeyPatch) -> None:
    assert style_of("a", 1.0, low=True) == style_of("a", 0.0) == ""
    assert style_of("b", 1.0, low=True) == style_of("b", 0.0)
    assert style_of("a", 0.0, low=True) == style_of("a", 0.6)
    assert len({style_of("a", value, low=True) for value in (0.05, 0.3, 0.6, 0.9)}) == 4
    assert style_of("b", -2.0) == style_of("b", 2.0)  # delta_logp_a
    assert {kind for kind in BUILT_IN if low_means_apart(kind)} == {"top_prob", "target_floor", "typical"}
    assert not any(map(low_means_apart, ("nonsense", None, [])))


@pytest.mark.parametrize(("policy", "warm"), [("divergence", "y"), ("top_prob", "x"), ('{"kind": "typical"}', "x")])
def test_switch_shades_by_its_policy(monkeypatch: pytest.MonkeyPatch, policy: str, warm: str) -> None:
    seen: dict[str, str] = {}
    service = Service(lambda _: Body(switch_events()).response())
    monkeypatch.setattr("rl_onoff.cli.switch.Client", partial(Client, transport=service.transport))

    def token(self: Any, event: Any) -> None:
        seen[event.text[0]] = style_of(event.lead, event.divergence, low=self._low)

    monkeypatch.setattr("rl_onoff.cli.tokens.TokenPrinter.token", token)
    assert runner.invoke(app, ["switch", "Q", "--policy", policy]).exit_code == 0
    assert [text for text, style in seen.items() if "on #" in style] == [warm]
