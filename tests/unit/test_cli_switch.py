"""`rl-onoff switch` and `serve`: arguments, output on a terminal and off, exit codes."""

from __future__ import annotations

import io
import json
import sys
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import httpx
import pytest
from rich.console import Console
from typer.testing import CliRunner

from rl_onoff import Client
from rl_onoff.cli import app
from rl_onoff.cli.tokens import TokenPrinter, style_of
from rl_onoff.errors import ConfigurationError
from rl_onoff.schemas import Switch, SwitchToken
from tests.unit.service_double import SWITCHED, TOKENS, Body, Service, problem, switch_events

runner = CliRunner()


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Service:
    """A service that streams, or answers in one piece, as it is asked."""

    def answer(request: httpx.Request) -> httpx.Response:
        if "event-stream" in request.headers["Accept"]:
            return Body(switch_events()).response()
        return httpx.Response(200, json=SWITCHED)

    return serve(monkeypatch, Service(answer))


def serve(monkeypatch: pytest.MonkeyPatch, service: Service) -> Service:
    monkeypatch.setattr("rl_onoff.cli.switch.Client", partial(Client, transport=service.transport, max_retries=0))
    return service


def test_text_on_stdout_and_the_rest_on_stderr(service: Service) -> None:
    result = runner.invoke(app, ["switch", "Q"])
    assert result.exit_code == 0
    assert result.stdout == SWITCHED["text"] + "\n"
    assert result.stderr == "2 tokens, 1 by B (50.0%), 1 switches, finished by stop, seed 3\n"
    sent = service.sent
    assert list(sent.pop("sampling")) == ["seed"]  # of the client's choice: a broken stream can be written again
    assert sent == {
        "a": None,
        "b": None,
        "prompt": "Q",
        "policy": {"kind": "divergence"},
        "stream": True,
    }


def test_options_become_fields(service: Service) -> None:
    options = "--on 0.2 --off 0.05 --min-dwell 3 --measure kl_ba --temperature 0.5 --max-tokens 9 --seed 4 --a x --b y"
    result = runner.invoke(app, ["switch", "Q", *options.split(), "--url", "http://h:1", "--api-key", "k"])
    assert result.exit_code == 0, result.stderr
    assert service.sent == {
        "a": "x",
        "b": "y",
        "prompt": "Q",
        "policy": {"kind": "divergence", "on": 0.2, "off": 0.05, "min_dwell": 3, "measure": "kl_ba"},
        "sampling": {"temperature": 0.5, "max_tokens": 9, "seed": 4},
        "stream": True,
    }
    assert service.requests[-1].url.host == "h"
    assert service.requests[-1].headers["Authorization"] == "Bearer k"


def test_a_single_prompt_has_filters_stops_and_a_chat(service: Service) -> None:
    options = "--top-k 5 --top-p 0.9 --min-p 0.1 --stop x --stop y --seed 4 --chat --system S"
    result = runner.invoke(app, ["switch", "Q", *options.split()])
    assert result.exit_code == 0, result.stderr
    assert service.sent["sampling"] == {"top_k": 5, "top_p": 0.9, "min_p": 0.1, "stop": ["x", "y"], "seed": 4}
    assert service.sent["messages"] == [{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}]
    assert "prompt" not in service.sent


def test_what_a_single_prompt_has_no_use_for_is_named(service: Service) -> None:
    options = "--n 1 -o out --record entropy_a --metric length --template x --wait 3 --resume --limit 2 --skip-bad"
    result = runner.invoke(app, ["switch", "Q", *options.split()])
    assert result.exit_code == 2
    said = " ".join(result.stderr.replace("│", " ").split())
    names = "--metric, --n, --record, --output, --resume, --limit, --skip-bad, --template, --wait"
    assert f"only for a data set (--data), not for one prompt: {names}" in said
    assert not service.requests


def test_address_and_key_may_come_from_the_environment(service: Service) -> None:
    environment = {"RL_ONOFF_URL": "http://e:2", "RL_ONOFF_API_KEY": "from-env"}
    assert runner.invoke(app, ["switch", "Q"], env=environment).exit_code == 0
    assert service.requests[-1].url.host == "e"
    assert service.requests[-1].headers["Authorization"] == "Bearer from-env"


@pytest.mark.parametrize(
    ("policy", "body"),
    [
        ("always_b", {"kind": "always_b"}),
        ("typical", {"kind": "typical"}),
        ('{"kind": "random", "rate": 0.25}', {"kind": "random", "rate": 0.25}),
    ],
)
def test_policies(service: Service, policy: str, body: dict[str, Any]) -> None:
    assert runner.invoke(app, ["switch", "Q", "--policy", policy]).exit_code == 0
    assert service.sent["policy"] == body


def test_thresholds_are_the_policys(service: Service) -> None:
    options = "--policy delta_logp --on -0.5 --off -1 --max-b-fraction 0.2"
    assert runner.invoke(app, ["switch", "Q", *options.split()]).exit_code == 0
    assert service.sent["policy"] == {"kind": "delta_logp", "on": -0.5, "off": -1.0, "max_b_fraction": 0.2}


def test_a_kind_that_does_not_exist(service: Service) -> None:
    result = runner.invoke(app, ["switch", "Q", "--policy", "entropi"])
    assert result.exit_code != 0
    assert "Did you mean 'entropy'?" in " ".join(result.stderr.split())


def test_the_prompt_from_stdin_loses_its_last_newline_only(service: Service) -> None:
    assert runner.invoke(app, ["switch", "-"], input="Q\n\n").exit_code == 0
    assert service.sent["prompt"] == "Q\n"


def test_json(service: Service) -> None:
    result = runner.invoke(app, ["switch", "Q", "--json"])
    assert result.exit_code == 0
    body = json.loads(result.stdout)
    assert body["switches"] == SWITCHED["switches"]
    assert body["text"] == SWITCHED["text"]
    assert result.stderr == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["switch"],
        ["switch", "Q", "--on", "-1"],
        ["switch", "Q", "--policy", "{"],
        ["switch", "Q", "--policy", "nonsense"],
        ["switch", "Q", "--on", "0.1", "--off", "0.2"],
        ["switch", "Q", "--policy", "always_a", "--on", "0.1"],
        ["switch", ""],
        ["switch", "Q", "--system", "S"],
        ["serve", "--a", "x"],
        ["serve", "--config", "/does/not/exist"],
        ["serve", "--port", "70000"],
        ["check-pair", "--a", "x"],
        ["nonsense"],
    ],
)
def test_wrong_usage_is_2_and_sends_nothing(service: Service, arguments: list[str]) -> None:
    result = runner.invoke(app, arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr
    assert not service.requests


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (httpx.ConnectError("Connection refused"), "Connection refused"),
        (problem(500, "internal-error"), "it is internal-error"),
        (lambda _: Body(switch_events()[:3]).response(), "the stream ended after 1 events"),
    ],
)
def test_failures_are_1_and_one_line(monkeypatch: pytest.MonkeyPatch, answer: Any, said: str) -> None:
    serve(monkeypatch, Service(answer))
    result = runner.invoke(app, ["switch", "Q"])
    assert result.exit_code == 1
    assert said in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout in ("", "x\n")


def test_version_and_help() -> None:
    assert runner.invoke(app, ["--version"]).stdout.strip()
    for command in ([], ["serve"], ["demo"], ["switch"], ["check-pair"]):
        assert runner.invoke(app, [*command, "--help"]).exit_code == 0


# ------------------------------------------------------------------------------------------- the terminal


def painted(*events: SwitchToken | Switch, **options: Any) -> str:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, color_system="truecolor", width=20, soft_wrap=True, **options)
    printer = TokenPrinter(console)
    for event in events:
        if isinstance(event, SwitchToken):
            printer.token(event)
        else:
            printer.switch(event)
    printer.end()
    return file.getvalue()


def token(text: str, lead: str = "a", divergence: float | None = 0.0) -> SwitchToken:
    return SwitchToken.model_validate({"index": 0, "id": 0, "text": text, "lead": lead, "divergence": divergence})


def test_leaders_and_divergence_have_their_style() -> None:
    assert style_of("a", 0.0) == ""
    assert style_of("b", 0.0) == "bold blue"
    shades = [style_of("a", value) for value in (0.02, 0.1, 0.3, None)]
    assert len(set(shades)) == 3
    assert shades[2] == shades[3]
    assert all("bold" in style_of("b", value) for value in (0.02, 0.1, 0.3, None))


def test_a_long_line_of_tokens_is_not_broken() -> None:
    assert painted(*[token("word ")] * 20) == "word " * 20 + "\n"


def test_switches_are_marked_and_newlines_are_not_painted() -> None:
    switch = Switch.model_validate(SWITCHED["switches"][0])
    out = painted(token("x"), switch, token("y\nz", "b", 0.5))
    assert "▸" in out
    assert "\x1b[0m\n\x1b[" in out


def test_markup_and_control_characters_of_a_model_are_shown_not_obeyed() -> None:
    out = painted(token("[red]x[/] \x1b]0;title\x07 \x9b31m \x08\ttab"))
    assert "[red]x[/]" in out
    assert "\x1b" not in out
    assert "\x9b" not in out
    assert "\x07" not in out
    assert "␛]0;title␇" in out


def test_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    out = painted(token("x", "b", 0.5))
    assert "x" in out
    assert "38;" not in out
    assert "48;" not in out


def test_off_a_terminal_the_text_is_what_the_model_wrote(service: Service) -> None:
    file = io.StringIO()
    printer = TokenPrinter(Console(file=file))
    for text in ("a\tb\n", "\x1b[1m", "[bold]"):
        printer.token(token(text))
    printer.switch(Switch.model_validate(SWITCHED["switches"][0]))
    assert file.getvalue() == "a\tb\n\x1b[1m[bold]"
    assert TOKENS[1]["text"] in runner.invoke(app, ["switch", "Q"]).stdout


# -------------------------------------------------------------------------------------------------- serve


class Settings:
    def __init__(self, **values: Any) -> None:
        self.values = values

    def model_copy(self, update: dict[str, Any]) -> Settings:
        return Settings(**self.values, **update)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A service in place of the real one; what it was told to serve."""
    told: list[dict[str, Any]] = []

    def run(settings: Settings) -> int:
        told.append(settings.values)
        return 70 if settings.values.get("port") == 70 else 0

    def load(path: Path | None) -> Settings:
        if path is not None and path.suffix == ".yaml":
            raise ConfigurationError("no pairs")
        return Settings(config=path)

    main = SimpleNamespace(serve=run)
    configuration = SimpleNamespace(
        load=load,
        pair_settings=lambda a, b, **values: Settings(a=a, b=b, **values),
    )
    monkeypatch.setitem(sys.modules, "app", ModuleType("app"))
    monkeypatch.setitem(sys.modules, "app.main", main)
    monkeypatch.setitem(sys.modules, "app.config", configuration)
    return told


def test_serve(served: list[dict[str, Any]]) -> None:
    assert runner.invoke(app, ["serve", "--port", "9"]).exit_code == 0
    assert runner.invoke(app, ["serve", "--a", "x", "--b", "y", "--dtype", "float32", "--host", "h"]).exit_code == 0
    assert runner.invoke(app, ["serve", "--config", __file__]).exit_code == 0
    assert served[0] == {"config": None, "port": 9}
    assert served[1] == {"a": "x", "b": "y", "dtype": "float32", "host": "h"}
    assert str(served[2]["config"]) == __file__


def test_serve_ends_as_the_service_does(served: list[dict[str, Any]], tmp_path: Path) -> None:
    assert runner.invoke(app, ["serve", "--port", "70"]).exit_code == 70
    (tmp_path / "m.yaml").touch()
    result = runner.invoke(app, ["serve", "--config", str(tmp_path / "m.yaml")])
    assert result.exit_code == 2
    assert "no pairs" in result.stderr


def test_serve_without_the_service_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "app.config", None)
    result = runner.invoke(app, ["serve"])
    assert result.exit_code == 1
    assert "pip install -e '.[server,hf]'" in result.stderr
