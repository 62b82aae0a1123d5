"""lm-evaluation-harness against the service: its scores are those computed without either.

Run by `make test-lm-eval`, which installs the harness in an environment of its own. No tokenizer is named anywhere: the
harness asks the service for it.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rl_onoff import Client
from rl_onoff.philox import derive_seed
from tests.e2e.running_service import running

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "demo"
HARNESS = os.environ.get("RL_ONOFF_LM_EVAL", str(ROOT / ".venv-lm-eval/bin/lm_eval"))
LIMIT = 12
SEED = 1234  # the harness's own, where nothing else is asked for
SWITCHED = "switch:js>0.1"
POLICY = {"kind": "divergence", "measure": "js", "on": 0.1}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running(tmp_path_factory.mktemp("demo"), {}) as service:
        yield service.url


def evaluate(url: str, folder: Path, model: str, tasks: str, *options: str, chat: bool = False) -> dict[str, Any]:
    """The harness's results by task, and under `samples` what it sent and got."""
    kind, route = ("local-chat-completions", "chat/completions") if chat else ("local-completions", "completions")
    command = [HARNESS, "run", "--model", kind, "--tasks", tasks, "--limit", str(LIMIT), *options]
    command += ["--model_args", f"model={model},base_url={url}/v1/{route},num_concurrent=8"]
    command += ["--include_path", str(DEMO / "lm_eval"), "--output_path", str(folder), "--log_samples"]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "hf")}
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **offline}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    (file,) = folder.glob("*/results_*.json")
    found: dict[str, Any] = json.loads(file.read_text())["results"]
    found["samples"] = {
        task: [json.loads(line) for line in next(folder.glob(f"*/samples_{task}_*.jsonl")).read_text().splitlines()]
        for task in tasks.split(",")
    }
    return found


def choices(result: dict[str, Any]) -> Iterator[tuple[str, str, float, bool]]:
    """(context, continuation, log-likelihood, greedy) of every choice the harness had scored."""
    for sample in result["samples"]["sums_choice"]:
        for (loglikelihood, greedy), asked in zip(sample["filtered_resps"], sample["arguments"].values(), strict=True):
            yield asked["arg_0"], asked["arg_1"], float(loglikelihood), greedy == "True"


@pytest.mark.parametrize(("model", "folder"), [("base", "base"), ("rl", "rl")])
def test_loglikelihoods_are_transformers_own(url: str, tmp_path: Path, model: str, folder: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(DEMO / folder)
    plain = AutoModelForCausalLM.from_pretrained(DEMO / folder, dtype=torch.float32)
    result = evaluate(url, tmp_path, model, "sums_choice")
    scored = list(choices(result))
    assert len(scored) == 5 * LIMIT
    for context, continuation, loglikelihood, greedy in scored:
        ids = tokenizer(context + continuation, add_special_tokens=False).input_ids
        start = len(tokenizer(context, add_special_tokens=False).input_ids)
        with torch.inference_mode():
            logits = plain(torch.tensor([ids])).logits[0, start - 1 : -1, : len(tokenizer)]
        own = torch.tensor(ids[start:])
        assert loglikelihood == pytest.approx(logits.log_softmax(-1)[range(len(own)), own].sum().item(), abs=1e-4)
        assert greedy == bool((logits.argmax(-1) == own).all())


def test_a_pairs_loglikelihoods_are_the_leaders(url: str, tmp_path: Path) -> None:
    result = evaluate(url, tmp_path, SWITCHED, "sums_choice")
    led_by_b = 0
    with Client(url) as client:
        for context, continuation, loglikelihood, _ in choices(result):
            item = {"prompt": context, "solution": continuation}
            apart = client.divergence([item], measures=["js"]).items[0].values["js"]
            a, b = (client.distributions([item], model=m, top_k=1).items[0].token_logprobs for m in ("base", "rl"))
            leads_b = [value is not None and value > 0.1 for value in apart]
            led_by_b += sum(leads_b)
            wanted = sum(y if by_b else x for x, y, by_b in zip(a, b, leads_b, strict=True))
            assert loglikelihood == pytest.approx(wanted, abs=1e-4)
    assert led_by_b > 0


@pytest.mark.parametrize("model", ["base", "rl"])
def test_greedy_generations_are_transformers_own(url: str, tmp_path: Path, model: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(DEMO / model)
    plain = AutoModelForCausalLM.from_pretrained(DEMO / model, dtype=torch.float32)
    result = evaluate(url, tmp_path, model, "sums", "--gen_kwargs", "temperature=0,do_sample=False")
    right = 0
    for sample in result["samples"]["sums"]:
        prompt = tokenizer(sample["doc"]["prompt"], add_special_tokens=False, return_tensors="pt").input_ids
        with torch.inference_mode():
            made = plain.generate(prompt, max_new_tokens=120, do_sample=False, pad_token_id=tokenizer.pad_token_id)
        text = tokenizer.decode(made[0, prompt.shape[1] :], skip_special_tokens=True)
        assert sample["resps"][0][0] == text
        right += text.rstrip().endswith(f"A: {sample['doc']['reference']}")
    assert result["sums"]["exact_match,last-line"] == pytest.approx(right / LIMIT)


@pytest.mark.parametrize("chat", [False, True])
def test_generations_are_the_native_routes(url: str, tmp_path: Path, chat: bool) -> None:
    task = "sums_chat" if chat else "sums"
    options = ["--apply_chat_template"] if chat else []
    result = evaluate(url, tmp_path, SWITCHED, task, *options, chat=chat)
    right = 0
    with Client(url) as client:
        for sample in result["samples"][task]:
            made = client.switch_generate(
                sample["doc"]["prompt"], policy=POLICY, seed=derive_seed(SEED, 0, 0), max_tokens=120, stop=["Q:"]
            )
            assert sample["resps"][0][0] == made.text
            right += f"\nA: {sample['doc']['reference']}" in made.text
    assert result[task]["exact_match,last-line"] == pytest.approx(right / LIMIT)
