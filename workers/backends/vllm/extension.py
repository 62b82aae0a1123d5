"""What runs inside vLLM's workers: whole rows of prompts and of drawn tokens, drawn with our noise.

vLLM mixes the class into its Worker (`worker_extension_cls`); `onoff_install`, called once on every rank, then takes
over two methods of the V1 model runner: the one that draws, and the one that is shown the hidden states of prompts. A
request says in `extra_args` what it wants (`Wish`); the rows wait here until they are taken. Every rank draws, alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
import torch

from workers.logprobs import described
from workers.sampling import draw_each
from workers.wire import SamplingParams

#: The entry of `extra_args`.
KEY = "onoff"
#: Rows computed from hidden states at a time: what the logits of a long prompt take comes on top of their rows.
_AT_ONCE = 256
NAN: Final = "the model gave NaN instead of probabilities: its numbers overflow in this dtype"


class Switch(msgspec.Struct, frozen=True):
    """Switched generation after the request's prompt and one token more, `last`, as `SwitchGenerate` describes it."""

    last: int
    max_tokens: int
    sampling: SamplingParams
    policy: dict[str, Any]
    measures: list[str]
    eos: list[int]
    most: int | None  # tokens judged in a round
    swapped: bool
    state: dict[str, Any]
    logprobs: int | None
    noise: dict[str, float]


class SwitchRound(msgspec.Struct, frozen=True):
    """What a pass emitted of switched generation; `Tokens` says what the lists are. Passes count from the request's
    beginning."""

    ids: list[int]
    leads: str
    values: dict[str, list[float]]
    logprobs: list[float]
    top_ids: list[list[int]]
    top_logprobs: list[list[float]]
    drafted: int
    survived: bool
    doubtful: int
    a_passes: int
    b_passes: int


class Latest(msgspec.Struct, frozen=True):
    """What the last pass brought of a request: its tokens' descriptions or rounds, or what went wrong.

    `cut`: it can go no further as it is, and has to be sent anew with what it has emitted.
    """

    described: list[tuple[float, list[int], list[float]]]
    rounds: list[SwitchRound]
    error: str | None
    cut: bool


class Wish(msgspec.Struct, frozen=True):
    """What a request asks for: rows `start`.. of its prompt, or tokens drawn by `sampling`.

    Of an engine that holds the pair (`drafting`), rows of the target model unless `drafter`, or to `switch`.

    The drawn tokens' rows are kept too, unless they go out one by one (`news`): then no more of each row than its
    `describe` most likely.
    """

    start: int | None = None
    logits: bool = False
    sampling: SamplingParams | None = None
    news: bool = False
    describe: int | None = None
    drafter: bool = False
    switch: Switch | None = None


@dataclass(slots=True)
class Kept:
    wish: Wish
    passes: int = 0
    prompt: torch.Tensor | None = None  # [len(prompt) - start + 1, V]
    filled: int = 0  # rows of `prompt` computed so far
    drawn: list[torch.Tensor] = field(default_factory=list)
    described: list[tuple[float, list[int], list[float]]] = field(default_factory=list)
    rounds: list[SwitchRound] = field(default_factory=list)
    error: str | None = None
    cut: bool = False


class Taken(msgspec.Struct, frozen=True):
    """Rows `[n, V]` float32 of a finished request, or what went wrong, and the passes it took part in."""

    rows: Any
    passes: int
    error: str | None


class RowsExtension:
    """Methods of vLLM's Worker, named so as not to meet its own."""

    model_runner: Any
    rank: int

    def onoff_install(self, vocab_size: int) -> None:
        runner = self.model_runner
        self._onoff_kept: dict[str, Kept] = {}
        self._onoff_vocab_size = vocab_size
        runner._sample = self._onoff_sample
        prompt_logprobs: Callable[[Any, dict[str, int]], Any] = runner._get_prompt_logprobs_dict

        def with_rows(hidden: torch.Tensor, scheduled: dict[str, int]) -> Any:
            self._onoff_prompts(hidden, scheduled)
            return prompt_logprobs(hidden, scheduled)

        runner._get_prompt_logprobs_dict = with_rows

    def onoff_take(self, request_id: str) -> Taken | None:
        """What was kept of a finished request; None on a rank that keeps nothing."""
        kept = self._onoff_kept.pop(request_id, None)
        if kept is None:
            return None
        if kept.wish.sampling is not None:
            rows = torch.cat(kept.drawn) if kept.drawn else None
        else:
            rows = kept.prompt
            if rows is not None and kept.filled < len(rows) and kept.error is None:
                kept.error = f"only {kept.filled} of {len(rows)} rows were computed"
        if self.rank:
            rows = None
        return Taken(rows, kept.passes, kept.error)

    def onoff_news(self, request_ids: list[str]) -> list[Latest]:
        """Of each request, what the last pass brought."""
        news = []
        for request_id in request_ids:
            kept = self._onoff_kept[request_id]
            news.append(Latest(kept.described, kept.rounds, kept.error, kept.cut))
            kept.described, kept.rounds = [], []
        return news

    def onoff_drop(self, request_ids: list[str]) -> None:
        for request_id in request_ids:
            self._onoff_kept.pop(request_id, None)

    def _onoff_of(self, request_id: str) -> Kept | None:
        kept = self._onoff_kept.get(request_id)
        if kept is None:
            params = self.model_runner.requests[request_id].sampling_params
            asked = (params.extra_args or {}).get(KEY) if params is not None else None
            if asked is None:
                return None
            kept = self._onoff_kept[request_id] = Kept(msgspec.convert(asked, Wish))
        return kept

    def _onoff_rows(self, logits: torch.Tensor, raw: bool = False) -> torch.Tensor:
        cut = logits[:, : self._onoff_vocab_size].float()
        return cut if raw else cut.log_softmax(-1)

    def _onoff_sample(self, logits: torch.Tensor, _: Any) -> Any:
        """In place of vLLM's sampler. A request that only wants rows gets token 0, which nobody reads."""
        from vllm.v1.outputs import SamplerOutput

        batch = self.model_runner.input_batch
        tokens = [0] * logits.shape[0]
        asking: list[tuple[int, Kept, SamplingParams]] = []
        for i, request_id in enumerate(batch.req_ids):
            kept = self._onoff_of(request_id)
            if kept is None or kept.wish.sampling is None or self.model_runner.discard_request_mask.np[i]:
                continue
            asking.append((i, kept, kept.wish.sampling))
        rows = self._onoff_rows(logits) if asking else logits
        drawn = drawn_together(rows, [(i, params, int(batch.num_tokens_no_spec[i])) for i, _, params in asking])
        for i, kept, _ in asking:
            if i not in drawn:
                kept.error = NAN
                continue
            row, tokens[i] = rows[i : i + 1], drawn[i]
            if not kept.wish.news:
                kept.drawn.append(row)
            elif kept.wish.describe is not None:
                told = described(row, tokens[i : i + 1], kept.wish.describe)
                kept.described.append((told.tokens[0], told.top_ids[0], told.top_logprobs[0]))
        sampled = torch.tensor(tokens, dtype=torch.int32, device=logits.device).unsqueeze(-1)
        return SamplerOutput(sampled_token_ids=sampled, logprobs_tensors=None)

    def _onoff_states(self, wish: Wish, index: int, hidden: torch.Tensor) -> tuple[Any, torch.Tensor, int]:
        """The model whose rows are wished for, its hidden states of this pass, and where those of a request begin."""
        return self.model_runner.model, hidden, int(self.model_runner.query_start_loc.np[index])

    def _onoff_prompts(self, hidden: torch.Tensor, scheduled: dict[str, int]) -> None:
        runner = self.model_runner
        for request_id, count in scheduled.items():
            kept = self._onoff_of(request_id)
            if kept is None:
                continue
            kept.passes += 1
            request = runner.requests[request_id]
            begin, length = request.num_computed_tokens, request.num_prompt_tokens
            if kept.wish.start is None or begin >= length:
                continue
            # Position t of the hidden states gives row t + 1. A request that was preempted begins anew.
            first = kept.wish.start - 1
            low, high = max(first, begin), min(begin + count, length)
            if low >= high:
                continue
            if low - first > kept.filled:
                kept.error = f"rows from {kept.wish.start + kept.filled} to {low} were taken from the cache"
            model, states, at = self._onoff_states(kept.wish, runner.input_batch.req_id_to_index[request_id], hidden)
            at -= begin
            for part in range(low, high, _AT_ONCE):
                end = min(part + _AT_ONCE, high)
                rows = self._onoff_rows(_logits(model, states[at + part : at + end]), kept.wish.logits)
                if rows.amax(-1).isnan().any():
                    kept.error = NAN
                if len(rows) == length - first:  # all there are: nothing to put together
                    kept.prompt = rows
                    continue
                if kept.prompt is None:
                    kept.prompt = rows.new_empty((length - first, rows.shape[-1]))
                kept.prompt[part - first : end - first] = rows
            kept.filled = high - first


def drawn_together(rows: torch.Tensor, wanted: Sequence[tuple[int, SamplingParams, int]]) -> dict[int, int]:
    """Tokens drawn from some of the rows `[n, V]`, each named with its parameters and the token's position.

    By row; those of a row with NaN are left out. A GPU is waited for twice, however many they are.
    """
    if not wanted:
        return {}
    whole = (~rows.amax(-1).isnan()).tolist()
    valid = [one for one in wanted if whole[one[0]]]
    if not valid:
        return {}
    indices, params, positions = zip(*valid, strict=True)
    own = rows if len(valid) == len(rows) else rows[list(indices)]
    return dict(zip(indices, draw_each(own, params, positions)[0], strict=True))


def _logits(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    """Logits of any number of hidden states.

    With adapters loaded vLLM's own way maps rows to them by request, one row each; the output embedding, which an
    adapter served here never touches, is applied directly instead.
    """
    processor = getattr(model, "logits_processor", None)
    inner = getattr(processor, "base_layer", None)
    if inner is None:
        logits: torch.Tensor = model.compute_logits(hidden)
    else:
        logits = inner(getattr(model.lm_head, "base_layer", model.lm_head), hidden)
    return logits
