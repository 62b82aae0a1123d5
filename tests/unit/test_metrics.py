"""Metrics: the libraries' own values, normalisers, the registry, pass@k, votes and intervals."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np
import pytest

from rl_onoff.errors import ConfigurationError, InvalidField
from rl_onoff.metrics import corpus, find, majority_vote, metric, names, pass_at_k, registry
from rl_onoff.metrics.bootstrap import bootstrap, mean_of
from rl_onoff.metrics.math_process import MathProcess

# sacrebleu's own example (its README), one reference each.
SYSTEM = ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him."]
REFERENCES = ["The dog bit the man.", "It was not unexpected.", "The man bit him first."]


def test_bleu_is_sacrebleus() -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    bleu = find("bleu")
    for text, reference in zip(SYSTEM, REFERENCES, strict=True):
        assert bleu.score(text, reference) == sacrebleu.sentence_bleu(text, [reference]).score
    found = corpus(bleu, [[text] for text in SYSTEM], list(REFERENCES))
    assert found.value == pytest.approx(sacrebleu.corpus_bleu(SYSTEM, [REFERENCES]).score, abs=1e-9)
    assert found.low <= found.value <= found.high
    assert find("chrf").score(SYSTEM[2], REFERENCES[2]) == sacrebleu.sentence_chrf(SYSTEM[2], [REFERENCES[2]]).score


def test_rouge_is_rouge_scores() -> None:
    """The example of rouge-score's README."""
    rouge = pytest.importorskip("rouge_score.rouge_scorer")
    target, text = "The quick brown fox jumps over the lazy dog", "The quick brown dog jumps on the log."
    expected = rouge.RougeScorer(["rouge1", "rougeL"], use_stemmer=True).score(target, text)
    assert find("rouge1:stem").score(text, target) == expected["rouge1"].fmeasure
    assert find("rougeL:stem").score(text, target) == expected["rougeL"].fmeasure


@pytest.mark.slow
def test_math_is_math_verifys() -> None:
    """The example of math-verify's README, and what people write."""
    pytest.importorskip("math_verify")
    equal = find("math").score
    assert equal("${1,2,3,4}$", "${1,3} \\cup {2,4}$") == 1.0
    assert equal("so it is $\\boxed{\\frac{1}{2}}$", "0.5") == 1.0
    assert equal("$x^2+2x+1$", "(x+1)^2") == 1.0
    assert equal("$x+1$", "x+2") == 0.0
    assert equal("no idea", "7") == 0.0


@pytest.mark.slow
def test_an_expression_that_explodes_is_not_equal_and_the_next_one_is_judged() -> None:
    pytest.importorskip("math_verify")
    judge = MathProcess(answer_seconds=1.0)
    try:
        assert not judge.equal("3", "$9^{9^{9^{9}}}$")
        judge = MathProcess()
        assert judge.equal("3", "3")
    finally:
        judge.close()


@pytest.mark.parametrize(
    ("name", "text", "reference", "score"),
    [
        ("exact_match", " 42\n", "42", 1.0),
        ("exact_match", "42.", "42", 0.0),
        ("exact_match:words", "The Cat, sat!", "cat sat", 1.0),
        ("exact_match:number", "so 3+4 = 1,007.50 in all", "#### 1007.5", 1.0),
        ("exact_match:number", "none", "7", 0.0),
        ("exact_match:number", "-3", "3", 0.0),
        ("exact_match:boxed", r"\boxed{1} or \boxed{\frac{1}{2}}.", r"\frac{1}{2}", 1.0),
        ("exact_match:boxed", r"\boxed{1", "1", 0.0),
        ("exact_match:after=A:", "A: 1\nA: 88\n", "88", 1.0),
        ("exact_match:after=A:", "88", "88", 0.0),
        ("length", "abc", None, 3.0),
        ("repetition", "a b c d e", None, 0.0),
        ("repetition:1", "a a a a", None, 0.75),
        ("repetition", "", None, 0.0),
    ],
)
def test_scores(name: str, text: str, reference: str | None, score: float) -> None:
    assert find(name).score(text, reference) == score
    assert find(name).name == name


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("blue", "Did you mean 'bleu'?"),
        ("exact_match:upper", "the normaliser is one of"),
        ("length:3", "takes no parameter"),
        ("repetition:x", "needs an n"),
        ("", "there is no such metric"),
        ("perplexity", "does not apply here: it is of what one model wrote"),
        ("exact_match:", "the parameter after the colon is empty"),
    ],
)
def test_metrics_that_do_not_exist(name: str, words: str) -> None:
    with pytest.raises(InvalidField) as raised:
        find(name)
    assert words in str(raised.value)


@pytest.fixture
def own() -> Iterator[None]:
    registered = dict(registry._registered)
    yield
    registry._registered.clear()
    registry._registered.update(registered)


def test_a_metric_of_ones_own(own: None) -> None:
    @metric("shouting", needs_reference=False)
    def shouting(text: str, reference: str | None) -> float:
        return sum(map(str.isupper, text)) / len(text)

    assert find("shouting") is shouting
    assert "shouting" in names()
    assert shouting.checked("Ab", None) == 0.5
    with pytest.raises(ConfigurationError, match="ZeroDivisionError"):
        shouting.checked("", None)
    with pytest.raises(ValueError, match="already"):
        metric("bleu")(lambda text, reference: 0.0)


def test_a_metric_that_gives_no_number(own: None) -> None:
    found = metric("nan")(lambda text, reference: math.nan)
    with pytest.raises(ConfigurationError, match="gave nan"):
        found.checked("x", "y")


def test_pass_at_k_is_the_mean_over_all_choices() -> None:
    for n, c in [(5, 0), (5, 2), (6, 5), (4, 4)]:
        for k in range(1, n + 1):
            choices = list(itertools.combinations([True] * c + [False] * (n - c), k))
            assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, choices)) / len(choices))
    for wrong in [(3, 4, 1), (3, 1, 4), (3, 1, 0)]:
        with pytest.raises(ValueError, match="not defined"):
            pass_at_k(*wrong)


def test_votes() -> None:
    assert majority_vote(["1", "2", "2", None]) == 1
    assert majority_vote(["3", "2"]) == 0
    assert majority_vote([None, None, None, "5"]) == 3
    assert majority_vote([None]) is None


def test_an_interval_covers_what_it_should() -> None:
    """Of 200 samples of 40 coins the 95% intervals hold the truth about 95 times in 100."""
    random = np.random.default_rng(1)
    held = 0
    for _ in range(200):
        found = mean_of((random.random(40) < 0.4).astype(float).tolist())
        held += found.low <= 0.4 <= found.high
    assert 0.88 < held / 200 < 0.99


def test_an_infinite_problem_makes_the_value_infinite_without_a_word() -> None:
    found = bootstrap(np.array([[math.inf, 1.0], [1.0, 1.0]]), lambda sums: np.exp(sums[..., 0] / sums[..., 1]))
    assert found.value == math.inf


def test_intervals_of_one_study_are_paired() -> None:
    values = np.random.default_rng(0).random(30)
    assert mean_of((values + 1).tolist()).low == pytest.approx(mean_of(values.tolist()).low + 1)
    with pytest.raises(ValueError, match="no problem"):
        bootstrap(np.empty((0, 2)), lambda sums: sums[..., 0])


def test_an_interval_reaches_from_a_finite_value_to_infinity() -> None:
    """A third of the resamples leave out the one infinite problem among twenty."""
    sums = np.array([[0.5, 1.0]] * 19 + [[math.inf, 1.0]])
    found = bootstrap(sums, lambda sums: np.exp(sums[..., 0] / sums[..., 1]))
    assert found.value == found.high == math.inf
    assert found.low == pytest.approx(math.exp(0.5))
