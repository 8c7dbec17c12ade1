"""From the scores of all trials to effects, verdicts, and one sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from labelsmooth._errors import DataError
from labelsmooth.comparison import statistics
from labelsmooth.comparison.arms import Arm
from labelsmooth.comparison.scores import BINS, METRICS, PRIMARY, Scores

Trials = Mapping[tuple[Arm, int], Scores]


@dataclass(frozen=True)
class Effect:
    """What an arm does to a metric of the baseline, on new test examples and new seeds.

    Attributes:
        arm, metric, label, unit, better, primary: what it is about; `better` is ``"higher"`` or ``"lower"``.
        baseline_mean, arm_mean: over seeds.
        estimate: their difference.
        low, high, level: the interval that decides, and its level.
        standard_error, dof, p, p_holm: of the t test; `p_holm` is adjusted over arms.
        permutation_p: of the sign-flip test, from 8 seeds on.
        margin: of equivalence.
        verdict: ``"helps"``, ``"hurts"``, ``"equivalent"`` or ``"inconclusive"``.
        seeds_needed: for a verdict, where there is none; None where no number would do.
        seeds_note: that in words; empty where there is a verdict.
    """

    arm: str
    metric: str
    label: str
    unit: str
    better: str
    primary: bool
    baseline_mean: float
    arm_mean: float
    estimate: float
    low: float
    high: float
    level: float
    standard_error: float
    dof: float
    p: float
    p_holm: float
    permutation_p: float | None
    margin: float
    verdict: str
    seeds_needed: int | None
    seeds_note: str

    def size(self) -> str:
        """The estimate and its interval, in words."""
        return f"{_signed(self.estimate, self.unit)} ({_interval(self)})"


@dataclass(frozen=True)
class ArmSummary:
    """An arm's figures: means over its seeds, and their standard deviation."""

    arm: Arm
    seeds: tuple[int, ...]
    val_accuracy: float
    val_nll: float
    temperature: float
    expected_ece: float
    expected_ece_scaled: float
    metrics: Mapping[str, tuple[float, float]]

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.arm.name,
            "label": self.arm.label,
            "options": self.arm.as_dict(),
            "seeds": list(self.seeds),
            "val_accuracy": self.val_accuracy,
            "val_nll": self.val_nll,
            "temperature": self.temperature,
            "expected_ece": self.expected_ece,
            "expected_ece_scaled": self.expected_ece_scaled,
            "metrics": {name: {"mean": mean, "sd": sd} for name, (mean, sd) in self.metrics.items()},
        }


@dataclass(frozen=True)
class Analysis:
    """The answer.

    Attributes:
        answer: one sentence.
        notes: what else is to be known, a sentence each.
        baseline: the arm that all are compared with.
        chosen: the arm with the best validation accuracy, ties by NLL.
        arms: a summary for each.
        effects: for each arm but the baseline and each metric; empty with fewer than 2 seeds.
        seeds: those that every arm has.
        examples: of the test set.
    """

    answer: str
    notes: tuple[str, ...]
    baseline: Arm
    chosen: Arm
    arms: tuple[ArmSummary, ...]
    effects: tuple[Effect, ...]
    seeds: tuple[int, ...]
    examples: int

    def effect(self, arm: Arm, metric: str = PRIMARY) -> Effect:
        """Raises:
        KeyError: there is none.
        """
        for effect in self.effects:
            if (effect.arm, effect.metric) == (arm.name, metric):
                return effect
        raise KeyError(f"{arm.name}, {metric}")

    def as_dict(self) -> dict[str, Any]:
        """JSON's view of it."""
        return {
            "answer": self.answer,
            "notes": list(self.notes),
            "primary": PRIMARY,
            "baseline": self.baseline.name,
            "chosen": self.chosen.name,
            "complete_seeds": len(self.seeds),
            "examples": self.examples,
            "bins": BINS,
            "arms": [arm.as_dict() for arm in self.arms],
            "effects": [asdict(effect) for effect in self.effects],
        }

    def table(self) -> str:
        """A line per arm: validation and test accuracy, NLL, ECE and what is to be expected of it, and the verdict."""
        rows = [("arm", "val acc", "test acc", "NLL", f"ECE ({BINS} bins)", "T", "accuracy against the baseline", "")]
        for summary in self.arms:
            figure = summary.metrics
            size = verdict = ""
            if summary.arm == self.baseline:
                size = "baseline"
            elif self.effects:
                effect = self.effect(summary.arm)
                size, verdict = effect.size(), effect.verdict
            rows.append((
                summary.arm.label + (" *" if summary.arm == self.chosen else ""), f"{summary.val_accuracy:.4f}",
                f"{figure['accuracy'][0]:.4f}", f"{figure['nll'][0]:.4f}",
                f"{figure['ece'][0]:.4f} ({summary.expected_ece:.4f})", f"{summary.temperature:.2f}", size, verdict,
            ))  # fmt: skip
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        legend = "* chosen on validation; means over seeds; (ECE under perfect calibration, which is never 0)"
        return "\n".join([*lines, legend])


def analyse(
    trials: Trials,
    arms: Sequence[Arm],
    margins: Mapping[str, float],
    name: str,
    planned: int,
    *,
    added: bool = False,
    looks: Sequence[int] = (),
) -> Analysis:
    """Effects of all arms against the first one, paired by seed, and the answer.

    Args:
        trials: the scores by arm and seed; a seed counts where every arm has it.
        arms: the baseline first.
        margins: of every metric.
        name: of the data, for the answer.
        planned: how many seeds there are to be.
        added: the baseline was not asked for.
        looks: with how many seeds it was judged before.

    Raises:
        DataError: no seed is complete.
    """
    seeds = tuple(sorted(set.intersection(*({seed for arm, seed in trials if arm == each} for each in arms))))
    if not seeds:
        raise DataError("there is no seed that every arm has finished; nothing can be compared")
    examples = len(trials[arms[0], seeds[0]].hits)
    summaries = tuple(_summary(trials, arm, seeds) for arm in arms)
    chosen = max(summaries, key=lambda each: (each.val_accuracy, -each.val_nll)).arm
    effects = _effects(trials, arms, seeds, margins) if len(seeds) > 1 else ()
    analysis = Analysis("", (), arms[0], chosen, summaries, effects, seeds, examples)
    notes = _notes(analysis, trials, margins, added, [count for count in looks if count < len(seeds)])
    return replace(analysis, answer=_answer(analysis, name, planned), notes=notes)


def _summary(trials: Trials, arm: Arm, seeds: tuple[int, ...]) -> ArmSummary:
    scores = [trials[arm, seed] for seed in seeds]
    metrics = {}
    for name in METRICS:
        values = np.array([score.values[name] for score in scores])
        metrics[name] = (float(values.mean()), float(values.std(ddof=1)) if len(seeds) > 1 else 0.0)
    return ArmSummary(
        arm, seeds,
        float(np.mean([score.val_accuracy for score in scores])), float(np.mean([score.val_nll for score in scores])),
        float(np.exp(np.mean([np.log(score.temperature) for score in scores]))),
        float(np.mean([score.expected_ece for score in scores])),
        float(np.mean([score.expected_ece_scaled for score in scores])), metrics,
    )  # fmt: skip


def _difference(
    trials: Trials, arm: Arm, baseline: Arm, seeds: Sequence[int], metric: str, against: str | None = None
) -> statistics.Difference:
    """Of `metric` under an arm and `against` (the same metric if None) under the baseline, seed by seed."""
    pairs = [(trials[arm, seed], trials[baseline, seed]) for seed in seeds]
    other = against or metric
    per_seed = np.array([one.values[metric] - base.values[other] for one, base in pairs])
    pseudovalues = np.stack([one.pseudovalues(metric) - base.pseudovalues(other) for one, base in pairs])
    return statistics.difference(per_seed, pseudovalues, binary=METRICS[metric].binary)


def _effects(
    trials: Trials, arms: Sequence[Arm], seeds: Sequence[int], margins: Mapping[str, float]
) -> tuple[Effect, ...]:
    baseline, others, effects = arms[0], arms[1:], []
    for metric, kind in METRICS.items():
        differences = [_difference(trials, arm, baseline, seeds, metric) for arm in others]
        adjusted = statistics.holm([each.p for each in differences])
        levels = statistics.holm_levels([each.p for each in differences])
        verdicts = statistics.judge(differences, margins[metric], kind.better)
        for arm, each, p_holm, level, verdict in zip(others, differences, adjusted, levels, verdicts, strict=True):
            of_arm, of_base = (
                np.array([trials[one, seed].values[metric] for seed in seeds]) for one in (arm, baseline)
            )
            needed, note = None, ""
            if verdict.verdict == "inconclusive":
                needed = statistics.seeds_needed(each, margins[metric], level)
                note = _seeds_note(needed)
            effects.append(Effect(
                arm.name, metric, kind.label, "points" if metric == "accuracy" else "", kind.better, metric == PRIMARY,
                float(of_base.mean()), float(of_arm.mean()), each.estimate, verdict.low, verdict.high, verdict.level,
                each.standard_error, each.dof, each.p, p_holm, statistics.permutation_p(of_arm - of_base),
                margins[metric], verdict.verdict, needed, note,
            ))  # fmt: skip
    return tuple(effects)


def _seeds_note(needed: int | None) -> str:
    if needed is None:
        return "more seeds would not tell; more test examples would"
    if needed >= statistics.MOST_SEEDS:
        return f"more than {statistics.MOST_SEEDS:,} seeds would be needed to tell"
    return f"about {needed} seeds would tell, if the difference is what it seems"


def _subject(analysis: Analysis) -> Arm:
    """The arm that the answer is about: the chosen one, or where that is the baseline the best of the others."""
    if analysis.chosen != analysis.baseline:
        return analysis.chosen
    return max(analysis.arms[1:], key=lambda each: (each.val_accuracy, -each.val_nll)).arm


def _answer(analysis: Analysis, name: str, planned: int) -> str:
    seeds, examples = len(analysis.seeds), analysis.examples
    if seeds < 2:
        return (
            f"One seed cannot answer whether label smoothing helps on {name}: how much of a difference is luck cannot "
            f"be told without a second. {'Ask for 5 seeds.' if planned < 2 else 'No other is finished in every arm.'}"
        )
    basis = f"{seeds} seeds, {examples:,} test examples"
    arm = _subject(analysis)
    if analysis.chosen == analysis.baseline:
        who = f"validation prefers {analysis.baseline.label}; the next best, {arm.label},"
    else:
        who = f"{arm.label}, chosen on validation,"
    effect = analysis.effect(arm)
    size = f"{_signed(effect.estimate, effect.unit)} of test accuracy"
    against = f"({_interval(effect)}) against {analysis.baseline.label} ({basis})"
    if effect.verdict == "equivalent":
        return f"On {name}, {who} makes no difference beyond ±{_size(effect.margin, effect.unit)}: {size} {against}."
    if effect.verdict == "inconclusive":
        return f"On {name}, {who} is inconclusive: {size} {against}; {effect.seeds_note}."
    return f"On {name}, {who} {effect.verdict}: {size} {against}."


def _notes(
    analysis: Analysis, trials: Trials, margins: Mapping[str, float], added: bool, looks: Sequence[int]
) -> tuple[str, ...]:
    """What the sentence leaves out."""
    notes = []
    if added:
        notes.append("The baseline, ε = 0, was not asked for and has been added: all else is compared with it.")
    if not analysis.effects:
        return tuple(notes)
    arm = _subject(analysis)
    plain = dict(analysis.baseline.options)
    if any(key in plain and value != plain[key] for key, value in arm.options):
        notes.append(
            f"{arm.label} differs from {analysis.baseline.label} in more than ε: "
            "the difference is not smoothing's alone."
        )
    if looks:
        notes.append(_looked_before(analysis, trials, arm, margins["accuracy"], looks))
    found = [
        f"{effect.label} {_signed(effect.estimate, effect.unit)} ({effect.verdict})"
        for effect in analysis.effects
        if effect.arm == arm.name and not effect.primary
    ]
    notes.append(f"Secondary, for {arm.label}: {'; '.join(found)}.")
    alone = _difference(trials, arm, analysis.baseline, analysis.seeds, "ece", "ece_scaled")
    verdict = statistics.judge([alone], margins["ece"], "lower")[0]
    of_base, of_arm = (next(each for each in analysis.arms if each.arm == one) for one in (analysis.baseline, arm))
    told = {
        "helps": "temperature scaling alone does not calibrate as well",
        "hurts": "temperature scaling alone calibrates better",
        "equivalent": "temperature scaling alone gives the same calibration",
        "inconclusive": "whether temperature scaling alone calibrates as well is inconclusive",
    }[verdict.verdict]
    notes.append(
        f"Calibration: {told} (ECE, {BINS} bins, and under perfect calibration: {analysis.baseline.label} after "
        f"temperature scaling {of_base.metrics['ece_scaled'][0]:.4f}, {of_base.expected_ece_scaled:.4f}; {arm.label} "
        f"as it is {of_arm.metrics['ece'][0]:.4f}, {of_arm.expected_ece:.4f}; "
        f"difference {_signed(alone.estimate, '')}, "
        f"{100 * verdict.level:.3g} % interval {verdict.low:+.4f} to {verdict.high:+.4f})."
    )
    at_end = sum(each.val_accuracy == 1 for each in trials.values())
    if at_end:
        notes.append(
            f"In {at_end} of {len(trials)} trials every validation prediction is right, so no temperature is best: "
            "figures after temperature scaling mean little here. More validation examples would help."
        )
    permuted = analysis.effect(arm).permutation_p
    if permuted is None:
        notes.append(
            f"No permutation test: with {len(analysis.seeds)} seeds its smallest p is "
            f"{2.0 ** (1 - len(analysis.seeds)):.4g}; it is made from {statistics.LEAST_FOR_PERMUTATION} seeds on."
        )
    else:
        notes.append(
            f"Sign-flip permutation test of {arm.label} over seeds, on these test examples: p = {permuted:.4g} "
            f"(accuracy; the t test's, for new examples too, is {analysis.effect(arm).p:.4g})."
        )
    return tuple(notes)


def _looked_before(analysis: Analysis, trials: Trials, arm: Arm, margin: float, looks: Sequence[int]) -> str:
    """That seeds were added after an answer, and what those say that came after the first one."""
    before, since = " and ".join(map(str, looks)), analysis.seeds[looks[0] :]
    note = (
        f"Judged before with {before} seeds. Adding seeds after an answer gives chance another turn: where nothing "
        "differs, two looks say helps or hurts in up to 9 % of comparisons, three in 12 %, not in 5 %."
    )
    if len(since) < 2:
        return note
    alone = _difference(trials, arm, analysis.baseline, since, "accuracy")
    verdict = statistics.judge([alone], margin, "higher")[0]
    low, high = (_figure(value, "points") for value in (verdict.low, verdict.high))
    return (
        f"{note} The {len(since)} seeds added since the first, alone: {_signed(alone.estimate, 'points')} "
        f"({100 * verdict.level:.3g} % interval {low} to {high}), {verdict.verdict}."
    )


def _size(value: float, unit: str) -> str:
    return f"{value * 100:.4g} points" if unit == "points" else f"{value:.4g}"


def _signed(value: float, unit: str) -> str:
    return f"{_figure(value, unit)} points" if unit == "points" else _figure(value, unit)


def _figure(value: float, unit: str) -> str:
    value, digits = (value * 100, 2) if unit == "points" else (value, 4)
    return f"{round(value, digits) + 0.0:+.{digits}f}"  # 0.0 added: no -0.00


def _interval(effect: Effect) -> str:
    low, high = (_figure(value, effect.unit) for value in (effect.low, effect.high))
    return f"{effect.level * 100:.3g} % interval {low} to {high}"
