"""Guardrails: rules that a candidate must pass before promotion.

Knows: answers of champion and candidate on the same examples, kept weights per layer. Must never know: networks, or
what happens to a version that is withheld.

Laws:
    * A verdict passes when every rule passes; each rule that does not gives its reason in words, with its figures.
    * Notes (what a rule could not judge) are reasons too, and withhold nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from app.domain import Layer, Verdict
from app.learning.recipe import AccuracyDrop, DensityFloor
from app.learning.registry import Registry

Answers = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Evidence:
    """What is known of a candidate when it is judged.

    Attributes:
        candidate: (n,) bool: its answers on validation examples, right or wrong; n may be 0.
        champion: the champion's answers on the same examples; None without a champion.
        layers: kept weights per prunable tensor.
        notes: what a reader of the verdict must know about the evidence.
    """

    candidate: Answers
    champion: Answers | None
    layers: tuple[Layer, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Finding:
    """One rule's answer: passed or not, its figures, and what to tell a reader (empty: nothing)."""

    passed: bool
    figures: dict[str, Any]
    reason: str = ""


@dataclass(frozen=True)
class Judgement:
    """A verdict and what it rests on, rule by rule."""

    verdict: Verdict
    rules: tuple[dict[str, Any], ...]


class Rule(Protocol):
    """One guardrail; ``options`` is the recipe's value of the registered type."""

    def __call__(self, options: Any, evidence: Evidence) -> Finding:
        """Judge the evidence."""
        ...


RULES: Registry[Rule] = Registry("guardrail")


def judge(guardrails: Sequence[Any], evidence: Evidence) -> Judgement:
    """Apply every guardrail of the recipe; reasons of rules that failed come first, then the others, then the notes."""
    findings = [(options.name, RULES[options](options, evidence)) for options in guardrails]
    ordered = sorted(findings, key=lambda named: named[1].passed)
    reasons = [f"{name}: {finding.reason}" for name, finding in ordered if finding.reason]
    verdict = Verdict(all(finding.passed for _, finding in findings), (*reasons, *evidence.notes))
    return Judgement(verdict, tuple({"name": name, "passed": f.passed, **f.figures} for name, f in findings))


@RULES.register(AccuracyDrop)
def accuracy_drop(options: AccuracyDrop, evidence: Evidence) -> Finding:
    """Fails when the candidate's accuracy lies more than ``at_most`` below the champion's, and not by chance."""
    if evidence.champion is None:
        return Finding(True, {"examples": len(evidence.candidate)})
    n = len(evidence.candidate)
    if n == 0:
        return Finding(True, {"examples": 0}, "there are no validation examples, so accuracy was not compared")
    lost = int((evidence.champion & ~evidence.candidate).sum())
    won = int((evidence.candidate & ~evidence.champion).sum())
    drop, chance = (lost - won) / n, mcnemar(lost, won)
    figures = {"examples": n, "drop": drop, "only_champion_right": lost, "only_candidate_right": won, "p_value": chance}
    if drop <= options.at_most or chance > 1 - options.confidence + 1e-9:
        return Finding(True, figures)
    reason = (
        f"accuracy {evidence.candidate.mean():.4f} is {drop:.4f} below the champion's {evidence.champion.mean():.4f} "
        f"on the same {n} validation examples, more than the accepted {options.at_most:g} (p = {chance:.2g})"
    )
    return Finding(False, figures, reason)


@RULES.register(DensityFloor)
def density_floor(options: DensityFloor, evidence: Evidence) -> Finding:
    """Fails when the whole network, or any prunable tensor, keeps less than its floor."""
    whole = sum(layer.kept for layer in evidence.layers) / sum(layer.total for layer in evidence.layers)
    thinnest = min(evidence.layers, key=lambda layer: layer.density)
    figures = {"density": whole, "thinnest_layer": thinnest.name, "thinnest_density": thinnest.density}
    reasons = []
    if whole < options.whole:
        reasons.append(f"density {whole:.4g} is below the floor {options.whole:g}")
    below = [layer for layer in evidence.layers if layer.density < options.layer]
    reasons += [
        f"{layer.name} keeps {layer.kept} of {layer.total}, below the floor {options.layer:g}" for layer in below
    ]
    return Finding(not reasons, figures, "; ".join(reasons))


def mcnemar(lost: int, won: int) -> float:
    """One-sided exact McNemar test: the probability of at least ``lost`` losses among ``lost + won`` fair coin flips.

    Args:
        lost: examples that only the champion gets right.
        won: examples that only the candidate gets right.

    Returns:
        P(X >= lost), X ~ Binomial(lost + won, 1/2). Exact up to 1,000 flips, to about 1e-9 beyond.
    """
    n = lost + won
    if n <= 1000:
        return sum(math.comb(n, i) for i in range(lost, n + 1)) / (1 << n)
    if 2 * lost <= n:
        return 1 - mcnemar(n - lost + 1, lost - 1) if lost else 1.0
    total = 0.0
    for i in range(lost, n + 1):  # past the middle the terms only fall
        term = math.exp(math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) - n * math.log(2))
        total += term
        if term < total * 1e-17:
            break
    return total
