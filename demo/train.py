"""Make the demo pair from nothing: tokenizer, problem set, base, and the base after reinforcement learning.

OMP_WAIT_POLICY=PASSIVE python demo/train.py --out demo
"""

from __future__ import annotations

import argparse
import logging
import time
from pathlib import Path

import torch
from pretrain import PretrainSettings, pretrain
from rl import RLSettings, reinforce
from task import read_problems, write_problems
from tokenizer import build_tokenizer, save_tokenizer
from transformers import GenerationConfig, LlamaForCausalLM, PreTrainedTokenizerFast

PROBLEMS = 1200
PROBLEMS_SEED = 3


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Save a model with its tokenizer, as plain transformers loads them."""
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    model.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    save_tokenizer(tokenizer, folder)


def main() -> None:
    """Train and save both models and the problem set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder that gets base/, rl/ and problems.jsonl")
    parser.add_argument("--from-base", type=Path, help="a trained base, to repeat the reinforcement learning only")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (another number changes the last bits)")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(arguments.threads)

    started = time.monotonic()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer()
    write_problems(out / "problems.jsonl", PROBLEMS, PROBLEMS_SEED)
    read_problems(out / "problems.jsonl")
    if arguments.from_base:
        base = LlamaForCausalLM.from_pretrained(arguments.from_base, dtype=torch.float32, local_files_only=True)
    else:
        base = pretrain(tokenizer, PretrainSettings())
    save(base, tokenizer, out / "base")
    save(reinforce(tokenizer, base, RLSettings()), tokenizer, out / "rl")
    logging.info("done in %.0f s", time.monotonic() - started)


if __name__ == "__main__":
    main()
