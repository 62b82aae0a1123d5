"""Token ids to text, piece by piece, on a byte-level tokenizer whose tokens split characters."""

from __future__ import annotations

import asyncio
import random

import msgspec
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from app.services.chat import render
from app.services.detokenize import Piece, TextStream
from app.services.openai.tokens import _offsets
from app.services.text import Codec
from rl_onoff.errors import InvalidField
from workers.wire import ModelInfo, PairInfo

ALPHABET = ["a", "€", "ü", "x", "\U0001f600", " stop", "� "]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    made.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<s>"],
        show_progress=False,
    )
    made.train_from_iterator(["hello world this is a text with stop words " * 10], trainer)
    return made


def pieces(stream: TextStream, ids: list[int]) -> list[Piece]:
    found = []
    for token_id in ids:
        found += stream.push(token_id)
        if stream.stopped:
            break
    return found + stream.finish()


def cases() -> list[tuple[int, list[str]]]:
    stops = [[], ["a"], ["st", "€ü"], ["top st", "stop"], ["� "], ["xx", "x"]]
    return [(seed, stops[seed % len(stops)]) for seed in range(300)]


def test_pieces_joined_are_the_text_and_stop_before_the_stop_string(tokenizer: Tokenizer) -> None:
    size = tokenizer.get_vocab_size()
    for seed, stop in cases():
        rng = random.Random(seed)
        if seed % 2:
            ids = tokenizer.encode("".join(rng.choice(ALPHABET) for _ in range(20))).ids
        else:
            ids = [rng.randrange(size) for _ in range(30)]
        stream = TextStream(tokenizer, silent={0}, stop=stop)
        found = pieces(stream, ids)
        text = "".join(piece.text for piece in found)
        whole = tokenizer.decode(ids, skip_special_tokens=True)
        assert [piece.index for piece in found] == list(range(len(found)))
        assert [piece.id for piece in found] == ids[: len(found)]
        assert stream.stopped == any(each in whole for each in stop)
        if stream.stopped:
            assert whole.startswith(text)
            assert whole[len(text) :].startswith(tuple(stop))
            assert not any(each in text for each in stop)
            without_last = tokenizer.decode(ids[: len(found) - 1], skip_special_tokens=True)
            assert not any(each in without_last for each in stop)
        else:
            assert text == whole
            assert len(found) == len(ids)


def test_a_split_character_comes_with_its_last_token(tokenizer: Tokenizer) -> None:
    stream = TextStream(tokenizer, silent=())
    ids = tokenizer.encode("€").ids
    assert len(ids) == 3
    assert stream.push(ids[0]) == stream.push(ids[1]) == []
    assert [piece.text for piece in stream.push(ids[2])] == ["", "", "€"]


def test_an_unfinished_character_is_the_last_tokens(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a€").ids[:3]
    assert [piece.text for piece in pieces(TextStream(tokenizer, silent=()), ids)] == ["a", "", "�"]


def test_what_may_become_a_stop_string_is_held_back(tokenizer: Tokenizer) -> None:
    a, b, x = (tokenizer.encode(letter).ids[0] for letter in "abx")
    stream = TextStream(tokenizer, silent=(), stop=["aab"])
    assert stream.push(a) == []
    assert stream.push(a) == []
    assert [piece.text for piece in stream.push(a)] == ["a"]  # two may still begin it
    assert [piece.text for piece in stream.push(x)] == ["a", "a", "x"]
    assert pieces(stream, [a, a, b])[0].text == ""
    assert stream.stopped


def test_silent_tokens_come_at_once_unless_text_is_open(tokenizer: Tokenizer) -> None:
    stream = TextStream(tokenizer, silent={0})
    assert [piece.text for piece in stream.push(0)] == [""]
    assert stream.push(tokenizer.encode("€").ids[0]) == []
    assert stream.push(0) == []
    assert [piece.text for piece in stream.finish()] == ["", "�"]


TEMPLATE = """
{%- for message in messages %}
    {%- if message.role == "tool" %}{{ raise_exception("no tools here") }}{% endif %}
    {%- if loop.index > 2 %}{% break %}{% endif %}
{{ bos_token }}[{{ message.role }}] {{ message.content | tojson }}
{% endfor %}
{%- if add_generation_prompt %}[assistant]{% generation %}:{% endgeneration %}{% endif %}"""


def test_chat_templates_render_as_in_transformers() -> None:
    transformers = pytest.importorskip("transformers.utils.chat_template_utils")
    messages = [{"role": role, "content": "<b> & 'é'"} for role in ("system", "user", "user")]
    special = {"bos_token": "<s>"}
    (expected,), _ = transformers.render_jinja_template(
        [messages], chat_template=TEMPLATE, add_generation_prompt=True, **special
    )
    assert render(TEMPLATE, messages, special, "messages") == expected


@pytest.mark.parametrize(
    ("template", "says"),
    [
        (TEMPLATE, "no tools here"),
        ("{{ messages.__class__.__mro__ }}", "unsafe"),
        ("{% for", "unexpected"),
        ("{{ messages[0].content + 1 }}", "concatenate"),
    ],
)
def test_what_a_template_refuses_is_the_requests_fault(template: str, says: str) -> None:
    with pytest.raises(InvalidField, match="messages") as caught:
        render(template, [{"role": "tool", "content": "x"}], {}, "messages")
    assert says in caught.value.detail


async def test_others_go_on_while_a_long_text_is_tokenised(tokenizer: Tokenizer) -> None:
    model = ModelInfo("m", "s", None, "f", "float32", "cpu", 320, 320, 1 << 20, [0], None, 0)
    pair = PairInfo("p", "table", "0", model, msgspec.structs.replace(model, name="n"), tokenizer.to_str(), {})
    codec = Codec(pair, max_chars=1 << 20)
    text = "hello world this is a text with stop words " * 6000
    encoding = asyncio.create_task(codec.prompt(text, "prompt"))
    turns = 0
    while not encoding.done():
        await asyncio.sleep(0.001)
        turns += 1
    assert turns > 10  # one or two where the library holds up all threads
    assert await encoding == tokenizer.encode(text).ids


def spaced() -> Tokenizer:
    """As Llama 2's and Mistral's: a space before every text, and taken off the front of what is decoded."""
    pieces = ["<s>", "\u2581the", "the", "\u2581cat", "\u2581", "s"]
    vocabulary = {piece: i for i, piece in enumerate([*pieces, *"thecas", "th", "ca", "cat"])}
    merges = [("t", "h"), ("th", "e"), ("\u2581", "the"), ("c", "a"), ("ca", "t"), ("\u2581", "cat")]
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])  # type: ignore[assignment]
    made.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])  # type: ignore[assignment]
    made.add_special_tokens(["<s>"])
    return made


def test_pieces_keep_the_spaces_that_a_decoder_strips_from_the_front() -> None:
    tokenizer = spaced()
    model = ModelInfo("m", "s", None, "f", "float32", "cpu", tokenizer.get_vocab_size(), 32, 100, [0], None, 0)
    pair = PairInfo("p", "table", "0", model, msgspec.structs.replace(model, name="n"), tokenizer.to_str(), {})
    codec = Codec(pair, max_chars=1 << 20)
    ids = tokenizer.encode("the cat the cats").ids
    assert codec.decode(ids) == "the cat the cats"
    assert codec.pieces(ids) == [" the", " cat", " the", " cat", "s"]
    assert codec.pieces([2]) == ["the"]
    assert [piece.text for piece in pieces(codec.stream(ends=(), stop=None), ids)] == codec.pieces(ids)
    offsets = _offsets(["<s>", *codec.pieces(ids)], "the cat the cats")
    assert offsets == [0, 0, 3, 7, 11, 15]
