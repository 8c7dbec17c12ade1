"""What the report of a comparison says and shows, from the files in its folder."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from labelsmooth.evaluation import Predictions
from labelsmooth.evaluation.calibration import reliability
from labelsmooth.evaluation.rows import Rows, rows
from labelsmooth.evaluation.selective import risk_coverage
from labelsmooth.report import arms, plots
from labelsmooth.report.content import Content, class_names, mistake_pictures, projected
from labelsmooth.report.panels import Panel
from labelsmooth.report.run import CURVES
from labelsmooth.report.sources import Source, clean

_COVERAGE = np.linspace(0.02, 1, 99)
_TEST = "reliability, confidence, risk and coverage, and confusion"


@dataclass(frozen=True)
class _Trial:
    """What an arm says about the test set under one seed; `scaled` is after temperature scaling."""

    rows: Rows
    scaled: Rows | None
    labels: np.ndarray


@dataclass
class _Tested:
    """An arm's trials; the folder and the predictions of the first one."""

    arm: Mapping[str, Any]
    trials: list[_Trial] = field(default_factory=list)
    folder: Path = field(init=False)
    first: Predictions = field(init=False)

    @property
    def label(self) -> str:
        return self.arm["label"]


def gather(folder: Path) -> Content:
    """All that can be said of a comparison, finished or not."""
    source = Source(folder)
    manifest = source.mapping("manifest.json", "what was asked")
    if not source.has("stats.json"):
        source.why = "because no seed is finished in every arm yet"
    stats = source.mapping("stats.json", "verdicts and figures")
    config = source.mapping("config.yaml", "the settings")
    known: list[dict[str, Any]] = stats.get("arms") or _begun(manifest)
    effects: list[dict[str, Any]] = stats.get("effects") or []
    labels = {arm["name"]: arm["label"] for arm in known}
    content = Content("comparison.html.j2", source)
    if effects:
        metrics = dict.fromkeys(effect["metric"] for effect in effects)
        content.panels["effects"] = [
            arms.effect_panel([effect for effect in effects if effect["metric"] == metric], labels)
            for metric in metrics
        ]
    content.panels["curves"] = _curves(source, known)
    shown = _shown(stats, known)
    if shown:
        content.panels |= _figures(source, shown, stats)
        content.mistakes = _mistakes(source, shown[-1], stats)
    trials = list((manifest.get("trials") or {}).values())
    content.variables = {
        "name": clean(folder.resolve().name),
        "folder": clean(shlex.quote(str(folder))),
        "manifest": manifest, "config": config, "stats": stats, "labels": labels, "arms": known, "effects": effects,
        "primary": {effect["arm"]: effect for effect in effects if effect["primary"]},
        "shown": shown,
        "verdict": next((effect["verdict"] for effect in effects if effect["primary"] and shown
                         and effect["arm"] == shown[-1]["name"]), None),
        "done": sum(trial.get("status") == "done" for trial in trials),
        "planned": len(manifest.get("arms") or ()) * int(manifest.get("seeds") or 0),
    }  # fmt: skip
    return content


def _begun(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The arms of a comparison that is not judged yet, with the seeds that are done."""
    found: dict[str, list[int]] = {}
    for name, trial in (manifest.get("trials") or {}).items():
        arm, _, seed = name.rpartition("-")
        if trial.get("status") == "done" and seed.isdigit():
            found.setdefault(arm, []).append(int(seed))
    return [{"name": arm, "label": arm, "seeds": sorted(seeds)} for arm, seeds in found.items()]


def _shown(stats: Mapping[str, Any], known: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The baseline, and the arm that the answer is about: the chosen one, or the best other where that is chosen."""
    if not stats.get("arms"):
        return []
    baseline = next(arm for arm in known if arm["name"] == stats["baseline"])
    others = [arm for arm in known if arm is not baseline]
    best = max(others, key=lambda arm: (arm["val_accuracy"], -arm["val_nll"]))
    return [baseline, best]


def _trial(source: Source, arm: Mapping[str, Any], seed: int) -> Source:
    return Source(source.path / "runs" / f"{arm['name']}-{seed}")


def _curves(source: Source, known: Sequence[Mapping[str, Any]]) -> list[Panel]:
    """Validation by epoch, of the trials that have curves."""
    tables = {
        arm["label"]: [_trial(source, arm, seed).table("metrics.csv", CURVES, "the curves") for seed in arm["seeds"]]
        for arm in known
    }
    panels = []
    for key, title, unit, percent in (
        ("val_accuracy", "Validation accuracy", "accuracy", True), ("val_nll", "Validation NLL", "NLL, nats", False)
    ):  # fmt: skip
        lines = [(label, [line for table in found if (line := _line(table, key))]) for label, found in tables.items()]
        if any(seeds for _, seeds in lines):
            panels.append(arms.band_panel(lines, title, unit, percent=percent))
    if not panels:
        source.left_out.append("The curves: no trial has a metrics.csv with validation in it.")
    return panels


def _line(table: Sequence[Mapping[str, Any]], key: str) -> dict[int, float]:
    """A column by epoch."""
    return {int(row["epoch"]): row[key] for row in table if row[key] is not None}


def _figures(source: Source, shown: Sequence[Mapping[str, Any]], stats: Mapping[str, Any]) -> dict[str, list[Panel]]:
    """What the shown arms do on test, over all complete seeds."""
    results = source.table("results.csv", ("seed", "temperature"), "temperature scaling")
    temperatures = {(row["arm"], row["seed"]): row["temperature"] for row in results}
    tested = [each for arm in shown if (each := _tested(source, arm, temperatures)).trials]
    if not tested:
        return {}
    names = class_names(tested[0].first, stats.get("classes"))
    counts = [np.sum([_confusion(trial, len(names)) for trial in each.trials], axis=0) for each in tested]
    lines = [
        (arms.shortened(each.label), arms.style(stats["arms"].index(each.arm))[0], *_risk(each.trials))
        for each in tested
    ]
    panels = {
        "reliability": [panel for each in tested for panel in _reliability(each, int(stats["bins"]))],
        "confidence": [
            plots.confidence_panel(*_pooled([t.rows for t in each.trials]), f"Confidence, {each.label}")
            for each in tested
        ],
        "risk_coverage": [plots.risk_coverage_panel(lines)],
        "confusion": [
            plots.confusion_panel(each_counts, names, each.label)
            for each, each_counts in zip(tested, counts, strict=True)
        ],
    }
    panels["projection"] = []
    for each in tested:  # the same three classes in each
        told = Source(each.folder)
        panels["projection"] += projected(told, [(each.label, "test", each.first)], names, np.sum(counts, axis=0))
        source.left_out += [f"{each.label}: {line}" for line in told.left_out]
    return panels


def _tested(source: Source, arm: Mapping[str, Any], temperatures: Mapping[tuple[str, float], float]) -> _Tested:
    """The trials of an arm whose predictions can be used; it is told of the others."""
    tested = _Tested(arm)
    for seed in arm["seeds"]:
        own = _trial(source, arm, seed)
        test = own.predictions("test", _TEST)
        if test is not None:
            try:
                plain = rows(test.logits, test.labels)
                temperature = temperatures.get((arm["name"], seed))
                scaled = None if temperature is None else rows(test.logits, test.labels, temperature=temperature)
                if not tested.trials:
                    tested.folder, tested.first = own.path, test
                tested.trials.append(_Trial(plain, scaled, np.asarray(test.labels)))
            except ValueError as error:
                own.lacks("predictions/test.npz", _TEST, f"cannot be evaluated ({error})")
        source.left_out += [f"{arm['label']}, seed {seed}: {line}" for line in own.left_out]
    return tested


def _mistakes(source: Source, arm: Mapping[str, Any], stats: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The worst ones of the arm's first seed."""
    own = _trial(source, arm, arm["seeds"][0])
    pictures = mistake_pictures(own, stats.get("classes") or ())
    source.left_out += [f"{arm['label']}, seed {arm['seeds'][0]}: {line}" for line in own.left_out]
    return pictures


def _confusion(trial: _Trial, count: int) -> np.ndarray:
    return np.bincount(trial.labels * count + trial.rows.predicted, minlength=count * count).reshape(count, count)


def _pooled(each: Sequence[Rows]) -> tuple[np.ndarray, np.ndarray]:
    """Confidence and hits of all seeds."""
    return np.concatenate([one.confidence for one in each]), np.concatenate([one.hits for one in each])


def _reliability(tested: _Tested, bins: int) -> list[Panel]:
    """Over all seeds, as trained and after temperature scaling."""
    panels, trials = [], tested.trials
    for key, title, each in (
        ("ece", "as trained", [trial.rows for trial in trials]),
        ("ece_scaled", "temperature scaled", [trial.scaled for trial in trials if trial.scaled is not None]),
    ):
        if len(each) == len(trials):
            cells, mean = reliability(*_pooled(each), bins), tested.arm["metrics"][key]["mean"]
            panels.append(plots.reliability_panel(cells, mean, f"{tested.label}, {title}"))
    return panels


def _risk(trials: Sequence[_Trial]) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Coverage, and the mean and standard deviation of the risk over seeds."""
    risks = np.array([np.interp(_COVERAGE, *risk_coverage(trial.rows.confidence, trial.rows.hits)) for trial in trials])
    return _COVERAGE, risks.mean(axis=0), risks.std(axis=0, ddof=1) if len(risks) > 1 else None
