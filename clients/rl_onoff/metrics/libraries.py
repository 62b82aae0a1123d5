"""Metrics by the libraries the field reports them with: sacrebleu, rouge-score, math-verify. Values are theirs."""

from __future__ import annotations

import atexit
from collections.abc import Sequence
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final

from rl_onoff.errors import MissingDependency
from rl_onoff.metrics.math_process import MathProcess
from rl_onoff.metrics.registry import Family, Metric
from rl_onoff.metrics.text import _no_parameter

# Effective order, as `sacrebleu.sentence_bleu` has it; the statistics are the same with and without.
_BLEU_ORDERS: Final = 4


def _library(module: str, package: str, metric: str) -> Any:
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise MissingDependency.of(package, "metrics", metric) from error


def _bleu(parameter: str | None) -> Metric:
    """BLEU 0-100 by sacrebleu: `sentence_bleu` of one text, `corpus_bleu` of many. Parameter: sacrebleu's tokenizer."""
    bleu = _library("sacrebleu.metrics.bleu", "sacrebleu", "bleu").BLEU
    tokenize = parameter or "13a"
    if tokenize not in bleu.TOKENIZERS:
        raise ValueError(f"bleu:{tokenize}: the tokenizer is one of {', '.join(sorted(bleu.TOKENIZERS))}")
    sentence = bleu(tokenize=tokenize, effective_order=True)

    def score(text: str, reference: str | None) -> float:
        return float(sentence.sentence_score(text, [reference or ""]).score)

    def statistics(text: str, reference: str | None) -> Sequence[float]:
        found = sentence.sentence_score(text, [reference or ""])
        return [*found.counts, *found.totals, found.sys_len, found.ref_len]

    def combine(sums: Sequence[float]) -> float:
        counts, totals = list(map(int, sums[:_BLEU_ORDERS])), list(map(int, sums[_BLEU_ORDERS : 2 * _BLEU_ORDERS]))
        lengths = {"sys_len": int(sums[-2]), "ref_len": int(sums[-1])}
        return float(bleu.compute_bleu(counts, totals, **lengths, smooth_method="exp").score)

    name = "bleu" if parameter is None else f"bleu:{parameter}"
    return Metric(name, score, statistics=statistics, combine=combine)


def _chrf(parameter: str | None) -> Metric:
    """chrF2 0-100 by sacrebleu; of many texts the mean of their scores."""
    _no_parameter("chrf", parameter)
    chrf = _library("sacrebleu.metrics.chrf", "sacrebleu", "chrf").CHRF()
    return Metric("chrf", lambda text, reference: float(chrf.sentence_score(text, [reference or ""]).score))


def _rouge(kind: str, parameter: str | None) -> Metric:
    """ROUGE F1 0-1 by rouge-score, without stemming; `rouge1:stem` stems. Of many texts the mean, as in the papers."""
    if parameter not in (None, "stem"):
        raise ValueError(f"{kind}:{parameter}: the parameter is stem, or none")
    scorer = _library("rouge_score.rouge_scorer", "rouge-score", kind).RougeScorer
    rouge = scorer([kind], use_stemmer=parameter == "stem")

    def score(text: str, reference: str | None) -> float:
        return float(rouge.score(reference or "", text)[kind].fmeasure)

    pairwise = kind in ("rougeL", "rougeLsum")
    return Metric(kind if parameter is None else f"{kind}:stem", score, pairwise=pairwise)


@cache
def _math_process() -> MathProcess:
    process = MathProcess()
    atexit.register(process.close)
    return process


def _math(parameter: str | None) -> Metric:
    """1 where math-verify finds text and reference equal: LaTeX or plain expressions, the text's last answer counts.

    It runs in a process of its own, which is ended where an expression explodes; that counts as not equal.
    """
    _no_parameter("math", parameter)
    if find_spec("math_verify") is None:
        raise MissingDependency.of("math-verify", "metrics", "math")
    return Metric(
        "math", lambda text, reference: float(_math_process().equal(reference or "", text)), binary=True, answer=None
    )


FAMILIES: Final[dict[str, Family]] = {
    "math": _math,
    "bleu": _bleu,
    "chrf": _chrf,
    **{kind: partial(_rouge, kind) for kind in ("rouge1", "rouge2", "rougeL", "rougeLsum")},
}
