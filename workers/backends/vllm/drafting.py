"""What runs inside the workers of an engine that holds the pair, A as its draft model and B as its target.

A pass of such an engine runs B over what was drafted and A over what was kept of it, then A token by token over the
next draft. Here the rule that accepts is the policy's: a draft is judged and walked as `workers.lookahead` does it, on
rows that never leave the worker.

vLLM accepts before A has seen the last token, so of a prompt's first token there is no row of A yet. Hence a request is
sent without the last token of its prompt, which the first pass then "draws"; nobody reads it.
"""

from __future__ import annotations

from typing import Any

import torch

from rl_onoff.kinds import parse_policy
from rl_onoff.policy import Policy, PolicyState
from workers.backends.vllm.extension import NAN, Kept, RowsExtension, Switch, SwitchRound, Wish, drawn_together
from workers.drafts import walk_draft
from workers.judge import judge
from workers.logprobs import Logprobs, of_leaders
from workers.noise import NoiseFloor
from workers.wire import SamplingParams


class _Running:
    """A switched generation between two passes."""

    def __init__(self, switch: Switch) -> None:
        self.policy: Policy = parse_policy(switch.policy)
        self.state = PolicyState(**switch.state)
        self.left = switch.max_tokens
        self.length = 0  # tokens of the sequence, once the draft begins
        self.a_passes = 0
        self.draft: torch.Tensor | None = None  # A's rows `[n, V]` for positions `length`..


class PairExtension(RowsExtension):
    """`RowsExtension`, and where there is a draft model, the pair.

    vLLM takes one extension class a process; so all engines get this one.
    """

    def onoff_install(self, vocab_size: int) -> None:
        super().onoff_install(vocab_size)
        runner = self.model_runner
        self._onoff_running: dict[str, _Running] = {}
        self._onoff_states_a: torch.Tensor | None = None
        self._onoff_drafted: list[torch.Tensor] = []
        if getattr(runner, "drafter", None) is None:
            return
        # vLLM leaves the draft model out near the end of the context, where rows of it are wanted as anywhere.
        runner._input_fits_in_drafter = lambda metadata: metadata is not None
        self._onoff_propose, runner.drafter.propose = runner.drafter.propose, self._onoff_proposing
        runner.drafter._sample_draft_tokens = self._onoff_draft
        runner.drafter.model.register_forward_hook(self._onoff_first_pass)

    def onoff_take(self, request_id: str) -> Any:
        self._onoff_running.pop(request_id, None)
        return super().onoff_take(request_id)

    def onoff_drop(self, request_ids: list[str]) -> None:
        super().onoff_drop(request_ids)
        for request_id in request_ids:
            self._onoff_running.pop(request_id, None)

    # ------------------------------------------------------------------------------------------- A: rows and drafts

    def _onoff_first_pass(self, _: Any, __: Any, states: Any) -> None:
        """Keep A's hidden states of what B has just computed: the first of its passes."""
        if self._onoff_states_a is None:
            self._onoff_states_a = states

    def _onoff_states(self, wish: Wish, index: int, hidden: torch.Tensor) -> tuple[Any, torch.Tensor, int]:
        model, states, at = super()._onoff_states(wish, index, hidden)
        if not wish.drafter:
            return model, states, at
        if self._onoff_states_a is None:
            raise RuntimeError("the draft model was left out of a pass")
        # A also sees the token just drawn: one more for each request.
        return self.model_runner.drafter.model, self._onoff_states_a, at + index

    def _onoff_proposing(self, num_speculative_tokens: int, **inputs: Any) -> torch.Tensor:
        """Around A's passes: its rows are kept, and where nobody wants a draft there is one pass only."""
        request_ids = self.model_runner.input_batch.req_ids
        running = [self._onoff_running.get(request_id) for request_id in request_ids]
        self._onoff_states_a, self._onoff_drafted = None, []
        # After drafts beyond the end of a context A's row there was more than rounding off: then all draft one.
        known = self.model_runner.input_batch.num_tokens_no_spec[: len(running)].max()
        fits = known + 2 * num_speculative_tokens + 1 < self.model_runner.max_model_len
        count = num_speculative_tokens if any(running) and fits else 1
        tokens: torch.Tensor = self._onoff_propose(num_speculative_tokens=count, **inputs)
        rows = torch.stack(self._onoff_drafted, 1)
        for i, one in enumerate(running):
            if one is not None:
                one.draft = rows[i] if one.length else None
                one.a_passes += count
        if count < num_speculative_tokens:
            tokens = torch.nn.functional.pad(tokens, (0, num_speculative_tokens - count))
        return tokens

    def _onoff_draft(self, hidden: torch.Tensor, _: Any) -> tuple[torch.Tensor, None]:
        """In place of the draft model's sampler: A's next token of every request."""
        rows = self._onoff_rows(self.model_runner.drafter.model.compute_logits(hidden))
        drafting: list[tuple[int, SamplingParams, int]] = []
        for i, request_id in enumerate(self.model_runner.input_batch.req_ids):
            one, kept = self._onoff_running.get(request_id), self._onoff_kept.get(request_id)
            if one is not None and one.length and kept is not None and kept.wish.switch is not None:
                drafting.append((i, kept.wish.switch.sampling, one.length + len(self._onoff_drafted)))
        drawn = drawn_together(rows, drafting)
        tokens = [drawn.get(i, 0) for i in range(len(rows))]
        self._onoff_drafted.append(rows)
        return torch.tensor(tokens, dtype=torch.int64, device=rows.device), None

    # ------------------------------------------------------------------------------------------- the rule that accepts

    def _onoff_sample(self, logits: torch.Tensor, metadata: Any) -> Any:
        """In place of vLLM's sampler and its rejection sampler. A request for rows gets token 0, which nobody reads."""
        from vllm.v1.outputs import SamplerOutput

        runner = self.model_runner
        if getattr(runner, "drafter", None) is None:
            return super()._onoff_sample(logits, metadata)
        request_ids = runner.input_batch.req_ids
        counts = [0] * len(request_ids) if metadata is None else metadata.num_draft_tokens
        width = 1 if metadata is None else metadata.max_spec_len + 1
        drawn = torch.full((len(request_ids), width), -1, dtype=torch.int32)
        drawn[:, 0] = 0
        drafts: list[int] = [] if metadata is None else metadata.draft_token_ids.tolist()
        targets = logits[:0] if metadata is None else logits[metadata.target_logits_indices]
        at = 0
        for i, (request_id, count) in enumerate(zip(request_ids, counts, strict=True)):
            draft, target = drafts[at : at + count], targets[at : at + count]
            at += count
            kept = self._onoff_of(request_id)
            if kept is None or kept.wish.switch is None or runner.discard_request_mask.np[i]:
                continue
            tokens = self._onoff_round(request_id, kept, kept.wish.switch, i, draft, target)
            drawn[i, : len(tokens)] = torch.tensor(tokens, dtype=torch.int32)
        return SamplerOutput(sampled_token_ids=drawn.to(logits.device), logprobs_tensors=None)

    def _onoff_round(
        self, request_id: str, kept: Kept, switch: Switch, index: int, draft: list[int], target: torch.Tensor
    ) -> list[int]:
        """The tokens a pass brings a request."""
        length = int(self.model_runner.input_batch.num_tokens_no_spec[index])
        one = self._onoff_running.get(request_id)
        if length == self.model_runner.requests[request_id].num_prompt_tokens:
            one = self._onoff_running[request_id] = _Running(switch)
            one.length = length + 1
            return [switch.last]
        if one is None or one.draft is None or one.length != length or not draft or one.left == 0:
            # After it was preempted the next token has no row of A, as a prompt's first.
            kept.cut = True
            return [0]
        count = min(len(draft), len(one.draft), one.left, switch.most or len(draft))
        rows_a, rows_b = one.draft[:count], self._onoff_rows(target[:count])
        one.draft = None
        if rows_a.isnan().any() or rows_b.isnan().any():
            kept.error = NAN
            return [0]
        if switch.swapped:
            rows_a, rows_b = rows_b, rows_a
        measures = one.policy.signals | {one.policy.watched, *switch.measures}
        verdict = judge(rows_a, rows_b, range(length, length + count), switch.sampling, measures)
        walked = walk_draft(
            one.policy, one.state, draft[:count], verdict, length, switch.sampling.seed, switch.eos,
            NoiseFloor(switch.noise),
        )  # fmt: skip
        told = Logprobs([], [], [])
        if switch.logprobs is not None:
            told = of_leaders(rows_a, rows_b, walked.leads, walked.ids, switch.logprobs)
        one.state, one.left, one.length = walked.state, one.left - len(walked.ids), length + len(walked.ids)
        kept.rounds.append(
            SwitchRound(
                walked.ids,
                walked.leads,
                walked.values,
                told.tokens,
                told.top_ids,
                told.top_logprobs,
                count,
                walked.survived,
                walked.doubtful,
                one.a_passes,
                kept.passes + 1,  # this one is counted when it ends
            )
        )
        return walked.ids
