"""Whole rows as a file that is sent while it is made: what arrives, and what arrives when something breaks."""

from __future__ import annotations

from pathlib import Path

import httpx
import numpy as np
import pytest
from safetensors.numpy import load_file

from rl_onoff import AsyncClient, Client
from rl_onoff.errors import InternalError, LimitExceeded, ServiceError, TransportError
from rl_onoff.tensors import float32, map_distributions
from tests.e2e.running_service import running, table_pair

ITEMS = [{"prompt": "b", "solution": "ababa"}, {"prompt": "a", "solution": "b"}, {"prompt": "b", "solution": "aba"}]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("kind", ["logprobs", "probs", "logits"])
def test_mapped_rows_are_those_read_into_memory(table_service: str, tmp_path: Path, dtype: str, kind: str) -> None:
    fields = {"model": "base", "dtype": dtype, "kind": kind}
    with Client(table_service) as client:
        read = client.distributions(ITEMS, full=True, **fields)  # type: ignore[arg-type]
        mapped = client.distributions(ITEMS, full=True, save_to=tmp_path / "rows", **fields)  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["rows"]
    for left, right in zip(mapped, read, strict=True):
        assert isinstance(left.values, np.memmap)
        assert not left.values.flags.writeable
        assert (float32(left.values) == float32(right.values)).all()
        for name in ("token_ids", "token_logprobs", "entropy"):
            assert getattr(left, name).tolist() == getattr(right, name).tolist()
        assert left.metadata["logit_columns"] == left.metadata["vocab_size"] == 7
        assert left.metadata["tokens"] == right.metadata["tokens"]


def test_the_library_reads_the_file_too(table_service: str, tmp_path: Path) -> None:
    with Client(table_service) as client:
        rows = client.distributions(ITEMS, model="tuned", full=True, dtype="float16", save_to=tmp_path / "rows")
    loaded = load_file(tmp_path / "rows")
    for index, item in enumerate(rows):
        assert (loaded[f"{index}.values"] == item.values).all()
        assert loaded[f"{index}.entropy"].tolist() == item.entropy.tolist()  # type: ignore[union-attr]
    picked = np.take_along_axis(rows[0].values, rows[0].token_ids[:, None], axis=-1)[:, 0]
    assert picked == pytest.approx(rows[0].token_logprobs, rel=1e-3)


async def test_the_asynchronous_client_saves_too(table_service: str, tmp_path: Path) -> None:
    async with AsyncClient(table_service) as client:
        (one,) = await client.distributions(ITEMS[:1], model="base", full=True, save_to=str(tmp_path / "rows"))
    assert np.exp(one.values).sum(-1) == pytest.approx(1, abs=1e-6)


def test_json_says_what_lies_outside_the_best(http: httpx.Client) -> None:
    for kind in ("logprobs", "probs", "logits"):
        answer = http.post("/distributions", json={"model": "base", "items": ITEMS[:1], "top_k": 2, "kind": kind})
        (item,) = answer.json()["items"]
        assert item["tail"] == pytest.approx([0.2, 0, 0.2, 0, 0.2], abs=1e-6)  # 0.5 + 0.3; after an a 0.7 + 0.3
        assert answer.json()["logit_columns"] == 7


def test_too_many_rows_are_refused_with_the_number_that_fits(table_service: str) -> None:
    items = [{"prompt": "b", "solution": "ab" * 45}] * 2
    with Client(table_service) as client, pytest.raises(LimitExceeded, match="100 positions would fit"):
        client.distributions(items, model="base", full=True)


def test_what_fails_on_the_way_is_no_answer(tmp_path: Path) -> None:
    """The first item can be computed and the second not: the body ends early, and no file is left."""
    document = {"pairs": [table_pair(tmp_path, max_len=100, fail_on="é")]}
    with running(tmp_path, document) as service, Client(service.url, max_retries=0) as client:
        good, bad = {"prompt": "b", "solution": "abab"}, {"prompt": "é", "solution": "a"}
        with pytest.raises(TransportError):
            client.distributions([good, bad], model="base", full=True, save_to=tmp_path / "rows")
        assert not [path.name for path in tmp_path.iterdir() if path.name.startswith("rows")]
        with pytest.raises(TransportError):
            client.distributions([good, bad], model="base", full=True)
        with pytest.raises(InternalError):  # nothing had been sent: a proper problem
            client.distributions([bad, good], model="base", full=True)
        assert len(client.distributions([good], model="base", full=True)) == 1


@pytest.mark.parametrize(
    "content",
    [b"", b"\x05", (1 << 40).to_bytes(8, "little") + b"{}", b"\x02\0\0\0\0\0\0\0[]"],
)
def test_a_file_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "rows").write_bytes(content)
    with pytest.raises(ServiceError, match="no safetensors file"):
        map_distributions(tmp_path / "rows")


def test_a_file_cut_short_is_refused(table_service: str, tmp_path: Path) -> None:
    with Client(table_service) as client:
        client.distributions(ITEMS, model="base", full=True, save_to=tmp_path / "rows")
    whole = (tmp_path / "rows").read_bytes()
    (tmp_path / "rows").write_bytes(whole[:-9])
    with pytest.raises(ServiceError, match="not all there"):
        map_distributions(tmp_path / "rows")
