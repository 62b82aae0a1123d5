"""Which rows the plugin takes from a pass, with passes as SGLang describes them; the real ones: make test-sglang."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from workers.backends.sglang import plugin
from workers.backends.sglang.memory import RowFile, RowFiles
from workers.backends.sglang.orders import Order, order_of
from workers.backends.sglang.plugin import Hooks
from workers.sampling import choose
from workers.wire import SamplingParams

V, COLUMNS = 5, 8


@dataclass
class Mode:
    extend: bool = True

    def is_extend(self) -> bool:
        return self.extend


@dataclass
class Batch:
    """The fields of SGLang's `ForwardBatch` that the hooks read."""

    rids: list[str]
    extend_prefix_lens_cpu: list[int]
    extend_seq_lens_cpu: list[int]
    extend_logprob_start_lens_cpu: list[int]
    return_logprob: bool = True
    forward_mode: Mode = field(default_factory=Mode)

    @property
    def seq_lens(self) -> torch.Tensor:
        return torch.tensor(self.extend_prefix_lens_cpu) + torch.tensor(self.extend_seq_lens_cpu)


@dataclass
class Output:
    next_token_logits: torch.Tensor


@pytest.fixture(autouse=True)
def rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin, "_writes", lambda: True)


@pytest.fixture
def hooks() -> Hooks:
    return Hooks(plugin.RowFiles(os.getpid()), V)


def ordered(file: RowFile, kind: Any, first: int, rows: int, serial: int = 0, **more: Any) -> tuple[str, torch.Tensor]:
    order = Order(serial, kind, file.number, file.descriptor, first, rows, **more)
    assert order_of(order.request_id()) == order
    return order.request_id(), file.rows(rows, V)


def run(hooks: Hooks, batch: Batch, chunks: list[torch.Tensor]) -> None:
    """A pass whose logits come in `chunks`."""
    remaining = iter(chunks)

    def original(processor: Any, *args: Any) -> None:
        for _ in chunks:
            hooks.get_logits(lambda *_: next(remaining), processor)

    hooks.forward(original, None, None, None, None, batch)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_rows_go_to_their_requests_whatever_the_chunks(hooks: Hooks, size: int) -> None:
    files = RowFiles()
    one, two = files.take(), files.take()
    a, rows_a = ordered(one, "logprobs", 9, 3)  # 11 tokens, the first 8 cached
    b, rows_b = ordered(two, "logits", 1, 2, serial=1)  # 2 tokens, none cached
    batch = Batch([a, "a stranger's", b], [8, 4, 0], [3, 6, 2], [0, 4, 0])
    logits = torch.randn(7, COLUMNS)  # 3 + 2 + 2
    run(hooks, batch, list(logits.split(size)))
    assert torch.equal(rows_a, logits[:3, :V].log_softmax(-1))
    assert torch.equal(rows_b, logits[5:, :V])
    files.close()


def test_a_prompt_in_parts_fills_its_rows_part_by_part(hooks: Hooks) -> None:
    files = RowFiles()
    rid, rows = ordered(files.take(), "logits", 6, 5)  # 10 tokens in parts of 4, rows 6..10
    logits = torch.randn(11, COLUMNS)[:, :]
    for prefix, length, start in ((0, 4, 4), (4, 4, 1), (8, 2, 0)):
        count = max(length - start, 1)
        last = prefix + length
        run(hooks, Batch([rid], [prefix], [length], [start]), [logits[last - count + 1 : last + 1]])
    assert torch.equal(rows, logits[6:11, :V])
    files.close()


def test_a_file_that_grew_and_a_number_given_anew_are_mapped_again(hooks: Hooks) -> None:
    for _ in range(2):  # the second time the system gives the same descriptors
        files = RowFiles()
        file = files.take()
        for count in (1, 2000):
            rid, rows = ordered(file, "logits", 1, count)
            logits = torch.randn(count, COLUMNS)
            run(hooks, Batch([rid], [0], [count], [0]), [logits])
            assert torch.equal(rows, logits[:, :V])
        files.close()


def test_drafts_are_drawn_from_exact_rows_and_strangers_left_alone(hooks: Hooks) -> None:
    files = RowFiles()
    params = SamplingParams(seed=3)
    rid, rows = ordered(files.take(), "draft", 6, 4, sampling=params)
    logits = torch.randn(2, COLUMNS)
    kept = logits.clone()

    def original(runner: Any, output: Output, batch: Any) -> torch.Tensor:
        output.next_token_logits.zero_()  # as samplers do
        return torch.tensor([7, 7])

    batch = Batch(["a stranger's", rid], [0, 0], [3, 8], [0, 0])  # two tokens drafted so far
    ids = hooks.sample(original, None, Output(logits), batch)
    want = kept[1:, :V].log_softmax(-1)
    assert ids.tolist() == [7, *choose(want, params, [8])]
    assert torch.equal(rows[2:3], want)
    assert rows[[0, 1, 3]].isnan().all()
    files.close()


def test_what_cannot_be_written_stays_nan_and_ends_nothing(hooks: Hooks, caplog: pytest.LogCaptureFixture) -> None:
    files = RowFiles()
    file = files.take()
    order = Order(0, "logits", file.number, 10**6, 1, 1)
    rows = file.rows(1, V)
    run(hooks, Batch([order.request_id()], [0], [1], [0]), [torch.randn(1, COLUMNS)])
    assert rows.isnan().all()
    assert "rows could not be written" in caplog.text
    files.close()
