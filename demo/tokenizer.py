"""The tokenizer of the demo pair: byte-level BPE, so that every text comes back from its ids exactly.

Digits, newlines and signs are single tokens; the words of the task (with the space before them) are single tokens;
everything else falls back to bytes.
"""

from __future__ import annotations

import json
from pathlib import Path

from task import OPENERS
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

PAD, EOS = "<pad>", "<eos>"

WORDS = (*(f" {opener}" for opener in OPENERS), " work", " it", " out", " guess", " skip")

PIECES = r"\d| ?[A-Za-z]+|[^A-Za-z0-9]"
"""Text is cut here before any merge, and no cut joins a prompt to its solution: they tokenise alike apart or joined."""

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] == 'user' -%}
{{ 'Q: ' + message['content'] | trim + '=' }}
{%- elif message['role'] == 'assistant' -%}
{{ '\\n' + message['content'] | trim + eos_token }}
{%- else -%}
{{ raise_exception('the demo pair knows the roles user and assistant only') }}
{%- endif -%}
{%- endfor -%}
"""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer, built from nothing: two special tokens, 256 bytes, and the merges that spell the words."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {piece: index for index, piece in enumerate([PAD, EOS, *alphabet])}
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        letters = word.replace(" ", "Ġ")
        left = letters[0]
        for letter in letters[1:]:
            if left + letter not in vocab:
                vocab[left + letter] = len(vocab)
                merges.append((left, letter))
            left += letter
    core = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(PAD, special=True), AddedToken(EOS, special=True)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=EOS,
        clean_up_tokenization_spaces=False,
        model_max_length=512,
        padding_side="left",
        chat_template=CHAT_TEMPLATE,
    )


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Save the tokenizer under the class name that transformers 4 (and the engines that pin it) knows as well as 5."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
