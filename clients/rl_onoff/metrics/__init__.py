"""Scores of texts: a registry of metrics, corpus values with bootstrap intervals, pass@k and majority vote.

    from rl_onoff.metrics import find, corpus

    metric = find("exact_match:after=A:")
    metric.score("3+4=7\\nA: 7", "7")                    # 1.0
    corpus(metric, [["A: 7", "A: 8"]], ["7"])            # per problem the texts of its samples

Built in: `exact_match` (with a normaliser), `math`, `bleu`, `chrf`, `rouge1`, `rouge2`, `rougeL`, `rougeLsum`,
`length`, `repetition`. `perplexity` is the model's and comes from the service. Your own: the `metric` decorator.
"""

from rl_onoff.metrics.bootstrap import Estimate, bootstrap, corpus
from rl_onoff.metrics.groups import majority_vote, pass_at_k
from rl_onoff.metrics.registry import Metric, find, metric, names, register
from rl_onoff.metrics.text import normaliser

__all__ = [
    "Estimate",
    "Metric",
    "bootstrap",
    "corpus",
    "find",
    "majority_vote",
    "metric",
    "names",
    "normaliser",
    "pass_at_k",
    "register",
]
