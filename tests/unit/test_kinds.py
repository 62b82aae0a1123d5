"""Policies by their kind: the schema, unknown kinds, and policies from outside."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import ValidationError

from rl_onoff import kinds
from rl_onoff.errors import ConfigurationError, InvalidField
from rl_onoff.kinds import parse_policy, register
from rl_onoff.policy import Lead, Policy, PolicyState, Signals, ThresholdPolicy
from rl_onoff.schemas import DivergenceRequest, Receipt, Sampling, SwitchRequest

THIRDS = '''
from typing import Literal
from rl_onoff.policy import BudgetedPolicy

class Thirds(BudgetedPolicy):
    """B leads every `every`th token."""
    kind: Literal["thirds"] = "thirds"
    every: int = 3

    def wants(self, state, signals):
        return "b" if state.emitted % self.every == 0 else "a"

class Builtin(Thirds):
    kind: Literal["divergence"] = "divergence"
'''


@pytest.fixture(autouse=True)
def nothing_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kinds, "_registered", {})


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A distribution with entry points, as pip would leave it."""
    points = "thirds = thirds_policy:Thirds\nother = thirds_policy:Thirds\nbroken = thirds_policy:Nothing\n"
    folder = tmp_path / "thirds-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: thirds\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text(f"[{kinds.ENTRY_POINTS}]\n{points}divergence = thirds_policy:Builtin\n")
    (tmp_path / "thirds_policy.py").write_text(THIRDS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "thirds_policy", raising=False)
    return tmp_path


def request(**policy: Any) -> SwitchRequest:
    return SwitchRequest.model_validate({"prompt": "p", "policy": policy})


def message(error: ValidationError) -> str:
    (found,) = error.errors()
    assert found["loc"] == ("policy",)
    return found["msg"]


@pytest.mark.parametrize(
    ("kind", "meant"), [("entropi", "entropy"), ("delta-logp", "delta_logp"), ("topprob", "top_prob")]
)
def test_an_unknown_kind_is_told_what_was_meant(kind: str, meant: str) -> None:
    with pytest.raises(ValidationError) as refused:
        request(kind=kind)
    assert message(refused.value).endswith(f"'always_a', 'always_b'. Did you mean '{meant}'?")
    with pytest.raises(InvalidField, match=f"policy: kind must be one of 'divergence'.*Did you mean '{meant}'"):
        parse_policy({"kind": kind})


def test_a_message_holds_nothing_of_the_request() -> None:
    with pytest.raises(ValidationError) as refused:
        request(kind="canary" * 1000)
    assert "canary" not in message(refused.value)
    assert "Did you mean" not in message(refused.value)


@pytest.mark.parametrize("policy", [None, 5, [], "entropy", {}, {"kind": None}, {"kind": 3}, {"kind": ["entropy"]}])
def test_what_is_no_policy_is_refused(policy: Any) -> None:
    with pytest.raises(ValidationError):
        SwitchRequest.model_validate({"prompt": "p", "policy": policy})


def test_a_registered_policy_is_a_policy() -> None:
    @register
    class Agreement(ThresholdPolicy):
        b_below = True
        kind: Literal["agreement"] = "agreement"
        on: float = 0.5

        @property
        def watched(self) -> str:
            return "topk_overlap:10"

        def beyond(self, threshold: float, values: Mapping[str, float]) -> bool:
            return values["topk_overlap:10"] < threshold

    assert register(Agreement) is Agreement
    policy = request(kind="agreement", on=0.25, max_b_fraction=0.5).policy
    assert policy == Agreement(on=0.25, max_b_fraction=0.5)
    assert parse_policy(policy.model_dump(mode="json")) == policy
    with pytest.raises(ValidationError) as refused:
        request(kind="agreement", on=0.5, off=0.25)
    assert "off must not be below on" in refused.value.errors()[0]["msg"]
    with pytest.raises(ValidationError) as refused:
        request(kind="agreemint")
    assert "Did you mean 'agreement'" in message(refused.value)

    receipt = {"version": "1", "a_fingerprint": "", "b_fingerprint": "", "prompt_ids": [1], "sampling": Sampling()}
    text = Receipt.model_validate({**receipt, "policy": policy}).model_dump_json()
    assert Receipt.model_validate_json(text).policy == policy
    sent = SwitchRequest(prompt="p", policy=policy).model_dump(mode="json", exclude_unset=True)
    assert sent["policy"] == {"on": 0.25, "max_b_fraction": 0.5, "kind": "agreement"}


def test_a_kind_belongs_to_one_policy() -> None:
    class One(Policy):
        kind: Literal["one"] = "one"

        def wants(self, state: PolicyState, signals: Signals) -> Lead:
            return "a"

    class Two(One):
        pass

    class Entropy(One):
        kind: Literal["entropy"] = "entropy"  # type: ignore[assignment]

    class Nameless(One):
        kind: str = "nameless"  # type: ignore[assignment]

    register(One)
    for other in (Two, Entropy):
        with pytest.raises(ValueError, match="already"):
            register(other)
    with pytest.raises(TypeError, match="Literal of one name"):
        register(Nameless)


def test_a_policy_without_a_rule_is_none() -> None:
    class Ruleless(Policy):
        kind: Literal["ruleless"] = "ruleless"

    with pytest.raises(TypeError, match="wants"):
        Ruleless()


def test_a_policy_may_read_existing_signals_only() -> None:
    class Curious(Policy):
        kind: Literal["curious"] = "curious"
        signal: str

        @property
        def signals(self) -> frozenset[str]:
            return frozenset({self.signal})

        def wants(self, state: PolicyState, signals: Signals) -> Lead:
            return "a"

    for name in ("js", "delta_logp_b", "renyi:0.5", "rank_of_a_in_b"):
        assert Curious(signal=name).signal == name
    for name in ("jsd", "renyi", "delta_logp"):  # that of the emitted token is not known before it is chosen
        with pytest.raises(ValidationError, match="do not exist"):
            Curious(signal=name)


def test_policies_are_found_by_their_entry_points(installed: Path) -> None:
    assert "thirds_policy" not in sys.modules
    policy = request(kind="thirds", max_b_fraction=0.9).policy
    assert policy.kind == "thirds"
    assert policy.wants(PolicyState(emitted=3), Signals(3, 0, {})) == "b"
    with pytest.raises(ValidationError, match="every"):
        request(kind="thirds", every="2")
    with pytest.raises(ValidationError, match="Did you mean 'thirds'"):
        request(kind="third")
    built_in = type(request(kind="divergence").policy)
    assert built_in.__module__ == "rl_onoff.policy.thresholds"  # which no plugin replaces


@pytest.mark.parametrize(("kind", "why"), [("broken", "Nothing"), ("other", "no Policy of that kind")])
def test_an_entry_point_that_cannot_be_used_is_the_operators_error(installed: Path, kind: str, why: str) -> None:
    with pytest.raises(ConfigurationError, match=f"the policy '{kind}' of thirds_policy:.* cannot be used: .*{why}"):
        request(kind=kind)


def test_every_process_of_an_installation_finds_the_same(installed: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(installed)!r})\n"
        "from rl_onoff.kinds import parse_policy\n"
        "assert 'thirds_policy' not in sys.modules\n"
        "assert parse_policy({'kind': 'thirds', 'every': 2}).every == 2\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_schema_lists_the_kinds_that_are_built_in() -> None:
    schema = SwitchRequest.model_json_schema()["properties"]["policy"]
    assert schema["discriminator"]["propertyName"] == "kind"
    assert len(schema["oneOf"]) == len(kinds.BUILT_IN)
    assert {*schema["discriminator"]["mapping"]} == {*kinds.BUILT_IN}
    assert Receipt.model_json_schema(mode="serialization")["properties"]["policy"]["oneOf"] == schema["oneOf"]


@pytest.mark.parametrize("name", ["js", "delta_logp", "renyi:0.5", "topk_overlap:10"])
def test_measures_may_have_a_parameter(name: str) -> None:
    assert SwitchRequest(prompt="p", measures=[name]).measures == [name]
    item = {"prompt": "p", "solution": "s"}
    assert DivergenceRequest.model_validate({"items": [item], "measures": [name]}).measures == [name]


def test_token_signals_belong_to_switching() -> None:
    assert SwitchRequest(prompt="p", measures=["delta_logp_b"]).measures == ["delta_logp_b"]
    body = {"items": [{"prompt": "p", "solution": "s"}], "measures": ["delta_logp_b"]}
    with pytest.raises(ValidationError, match="should be one of js"):
        DivergenceRequest.model_validate(body)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("canary", r"should be one of js, .*renyi:ALPHA \(0.01 <= ALPHA <= 100\).*topk_overlap:K \(1 <= K <= 1000\)"),
        ("canary:1", "should be one of js, "),
        ("renyi:0", "from 0.01 to 100 in renyi:ALPHA, not 0$"),
        ("renyi:1e-2", "from 0.01 to 100 in renyi:ALPHA, not 1e-2$"),
        ("renyi", "in renyi:ALPHA$"),
        ("renyi:canary", "in renyi:ALPHA$"),
        ("topk_overlap:1001", "K must be a whole number from 1 to 1000 in topk_overlap:K, not 1001$"),
        ("topk_overlap:3.5", "K must be a whole number from 1 to 1000 in topk_overlap:K, not 3.5$"),
    ],
)
def test_wrong_measures_are_told_what_is_wrong_with_them(name: str, says: str) -> None:
    with pytest.raises(ValidationError) as refused:
        SwitchRequest(prompt="p", measures=["js", name])
    (found,) = refused.value.errors()
    assert found["loc"] == ("measures", 1)
    assert re.search(says, found["msg"])
    assert "canary" not in found["msg"]


def test_an_infinite_threshold_is_no_threshold() -> None:
    with pytest.raises(ValidationError, match="finite"):
        request(kind="delta_logp", on=math.inf)
