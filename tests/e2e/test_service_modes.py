"""Rows are about what a comparison is about: one prompt or each model's own, end tokens merged or not, provenance."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from rl_onoff import Client, divergence
from rl_onoff.schemas import Provenance
from rl_onoff.tensors import FullDistributions
from tests.e2e.running_service import running

DEMO = Path(__file__).parents[2] / "demo"
#: The end token of both, and a digit that also ends the RL model's texts here.
ENDS = [1, 20]
MESSAGES = [{"role": "user", "content": "49-8"}]
ITEMS: list[dict[str, Any]] = [
    {"messages": MESSAGES, "solution": "\n1 so guess 41\nA: 41"},
    {"messages": MESSAGES, "solution_ids": [5, 20, 30, 1]},
]
MEASURES = ["js", "kl_ab", "kl_ba", "tv", "entropy_b", "delta_logp"]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """The demo pair, but that B has a chat template and a second end token of its own."""
    folder = tmp_path_factory.mktemp("modes")
    shutil.copytree(DEMO / "rl", folder / "rl")
    (folder / "rl" / "generation_config.json").write_text(json.dumps({"eos_token_id": ENDS, "pad_token_id": 0}))
    (folder / "rl" / "chat_template.jinja").write_text("{% for m in messages %}Solve {{ m.content }}{% endfor %}")
    models = {"a": {"name": "base", "path": str(DEMO / "base")}, "b": {"name": "rl", "path": str(folder / "rl")}}
    document = {"pairs": [{"name": "demo", "backend": "hf"} | models]}
    with running(folder, document) as service, Client(service.url) as client:
        yield client


@pytest.mark.parametrize("mode", ["shared", "per_model"])
@pytest.mark.parametrize("merge", [False, True])
def test_rows_give_the_numbers_of_a_comparison(client: Client, mode: Any, merge: bool) -> None:
    settings: Any = {"temperature": 0.7, "prompt_mode": mode, "merge_eos": merge}
    want = client.divergence(ITEMS, measures=MEASURES, **settings)
    rows = [client.distributions(ITEMS, model=name, full=True, **settings) for name in ("base", "rl")]
    for index, (a, b) in enumerate(zip(*rows, strict=True)):
        ids = [ENDS[0] if merge and token in ENDS else token for token in a.token_ids.tolist()]
        got = divergence.compute(a.values, b.values, MEASURES, np.array(ids))
        for name, values in want.items[index].values.items():
            np.testing.assert_allclose(got[name], np.array(values, float), rtol=2e-5, atol=2e-6, err_msg=name)
        for side in (a, b):
            check(side, want.provenance, merge)
    assert (want.provenance.merged_ids == ENDS) == merge


def check(rows: FullDistributions, compared: Provenance, merge: bool) -> None:
    """The rows' provenance is the comparison's, and what they hold is what it says."""
    made, side = rows.metadata["provenance"], rows.metadata["provenance"]["side"]
    place = "ab".index(side)
    for name in ("version", "backend", "vocab_size", "logit_columns", "temperature", "merge_eos", "merged_ids"):
        assert made[name] == getattr(compared, name), name
    assert made["prompt_mode"] == compared.prompt_mode
    assert made["fingerprint"] == (compared.a_fingerprint, compared.b_fingerprint)[place]
    assert (made["dtype"], made["device"]) == (compared.dtypes[place], compared.devices[place])
    assert (rows.metadata["temperature"], rows.metadata["kind"]) == (0.7, "logprobs")
    assert np.isneginf(rows.values[:, ENDS[1]]).all() == merge
    assert rows.token_logprobs is not None
    assert np.isfinite(rows.token_logprobs).all()
    assert mass(rows) == pytest.approx(1, abs=1e-5)


def mass(rows: FullDistributions) -> npt.NDArray[Any]:
    total: npt.NDArray[Any] = np.exp(rows.values.astype(np.float64)).sum(-1)
    return total


def test_which_template_made_the_prompt_is_seen_in_the_rows(client: Client) -> None:
    rows = {
        (name, mode): client.distributions(ITEMS[:1], model=name, full=True, prompt_mode=mode)[0].values
        for name in ("base", "rl")
        for mode in ("shared", "per_model")
    }
    assert (rows["base", "shared"] == rows["base", "per_model"]).all()
    assert not np.allclose(rows["rl", "shared"], rows["rl", "per_model"])
    plain = {"prompt": "Q: 49-8=", "solution": ITEMS[0]["solution"]}  # what A's template makes of the message
    (same,) = client.distributions([plain], model="rl", full=True)
    np.testing.assert_allclose(rows["rl", "shared"], same.values, atol=2e-5)


def test_lists_of_merged_rows_are_not_those_of_others(client: Client) -> None:
    """Whatever the cache holds of either: the same question gives the same lists before and after the other."""
    plain, merged, again = (
        client.distributions(ITEMS, model="rl", top_k=287, merge_eos=merge) for merge in (False, True, False)
    )
    assert (plain.temperature, plain.kind) == (1.0, "logprobs")
    assert plain.provenance is not None
    assert merged.provenance is not None
    assert (plain.provenance.merged_ids, merged.provenance.merged_ids) == ([], ENDS)
    assert merged.cache.hit_rows == 0
    assert again.items == plain.items
    for one, other in zip(plain.items, merged.items, strict=True):
        for before, after in zip(one.top, other.top, strict=True):
            left = dict(zip(before.ids, before.values, strict=True))
            right = dict(zip(after.ids, after.values, strict=True))
            assert right[ENDS[1]] is None
            both = sum(np.exp(value) for token in ENDS if (value := left[token]) is not None)
            assert np.exp(right[ENDS[0]]) == pytest.approx(both, rel=1e-5)
