"""What the report of a comparison says and shows, from the files in its folder."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from labelsmooth.evaluation import Predictions
from labelsmooth.evaluation.calibration import reliability
from labelsmooth.evaluation.metrics import MOST_CONFUSED
from labelsmooth.evaluation.rows import Rows, rows
from labelsmooth.evaluation.selective import risk_coverage
from labelsmooth.report import arms, plots
from labelsmooth.report.content import Content, class_count, class_names, mistake_pictures, projected
from labelsmooth.report.panels import Panel
from labelsmooth.report.run import CURVES
from labelsmooth.report.sources import MAYBE, Source, clean, reason

_COVERAGE = np.linspace(0.02, 1, 99)
_TEST = "reliability, confidence, risk and coverage, and confusion"

# What the files are read for, as `sources.misfit` takes it.
_MANIFEST = {
    "trials": ({...: {"status": str}}, None), "arms": ([object], None), "seeds": (int, None), "function": (str, None),
}  # fmt: skip
_MEAN = {"mean": MAYBE, "sd": MAYBE}
_ARM = {
    "name": str, "label": str, "seeds": [int], "val_accuracy": MAYBE, "val_nll": MAYBE, "temperature": MAYBE,
    "expected_ece": MAYBE, "expected_ece_scaled": MAYBE, "metrics": {...: _MEAN},
}  # fmt: skip
_EFFECT = {
    "arm": str, "metric": str, "label": str, "unit": str, "better": str, "primary": bool, "verdict": str,
    "estimate": MAYBE, "low": MAYBE, "high": MAYBE, "level": MAYBE, "margin": MAYBE,
}  # fmt: skip
_STATS = {
    "answer": str, "arms": ([_ARM], None), "effects": ([_EFFECT], None), "notes": ([str], None),
    "baseline": (str, None), "chosen": (str, None), "classes": ([str], None), "bins": (int, None),
    "examples": (int, None), "complete_seeds": (int, None), "seeds": (int, None),
    "failed": ([{"arm": str, "seed": int, "error": (str, None)}], None),
}  # fmt: skip
# Of a comparison's settings: the data, which have a place of their own, and what was found out.
_NOT_TOLD = ("data", "sha256", "noise_sha256", "resolved")


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
    manifest = source.mapping("manifest.json", "what was asked", _MANIFEST)
    trials = list((manifest.get("trials") or {}).values())
    done = sum(trial["status"] == "done" for trial in trials)
    planned = len(manifest.get("arms") or ()) * (manifest.get("seeds") or 0)
    ended = source.has("stats.json")
    if not ended:
        source.why = f"because the comparison has not ended: {done} of {planned} trials are done"
    stats = source.mapping("stats.json", "verdicts and figures", _STATS)
    if stats.get("arms") and stats.get("baseline") not in [arm["name"] for arm in stats["arms"]]:
        source.lacks("stats.json", "verdicts and figures", "holds something else (see baseline)")
        stats = {}
    config = source.mapping("config.yaml", "the settings")
    known: list[dict[str, Any]] = stats.get("arms") or _begun(manifest)
    effects: list[dict[str, Any]] = stats.get("effects") or []
    labels = {arm["name"]: arm["label"] for arm in known}
    content = Content("comparison.html.j2", source)
    if effects:
        content.panels["effects"] = source.attempt("the effects", lambda: _effects(effects, labels), [])
    content.panels["curves"] = source.attempt("the curves", lambda: _curves(source, known), [])
    shown = _shown(stats, known)
    tested = _tested_arms(source, shown)
    plane = ""
    if tested:
        names = class_names(source, tested[0].first, stats.get("classes"), "stats.json")
        content.panels |= _figures(source, tested, stats)
        if len(names) > MOST_CONFUSED:
            source.lacks("the data set", "the confusion matrices and the projection", f"has {len(names)} classes")
        else:
            content.panels["confusion"] = source.attempt(
                "the confusion matrices",
                lambda: [plots.confusion_panel(_counts(each, len(names)), names, each.label) for each in tested],
                [],
            )
            content.panels["projection"], plane = source.attempt(
                "the projection", lambda: _projection(source, tested, names), ([], "")
            )
        content.mistakes = source.attempt("the worst mistakes", lambda: _mistakes(source, shown[-1], names), [])
    content.variables = {
        "name": clean(folder.resolve().name),
        "folder": clean(shlex.quote(str(folder))),
        "manifest": manifest, "command": source.attempt("the command", lambda: _command(manifest), None),
        "config": config, "stats": stats, "labels": labels, "effects": effects,
        "primary": {effect["arm"]: effect for effect in effects if effect["primary"]},
        "shown": shown, "plane": plane,
        "verdict": next((effect["verdict"] for effect in effects if effect["primary"] and shown
                         and effect["arm"] == shown[-1]["name"]), None),
        "ended": ended, "done": done, "planned": planned,
    }  # fmt: skip
    return content


def _command(manifest: Mapping[str, Any]) -> str | None:
    """What compares this once more; None of a comparison of somebody's own function."""
    from labelsmooth.comparison.scores import METRICS  # which imports the report

    told = manifest.get("settings") or {}
    if "data" not in told:
        return None
    words = ["labelsmooth", "compare", _word(told["data"]), "--smoothing", *map(_word, manifest["smoothing"])]
    words += ["--seeds", _word(manifest["seeds"])]
    for name, value in told.items():
        if name not in _NOT_TOLD:
            words += [f"--{name.replace('_', '-')}", _word(value)]
    for name, values in manifest["options"].items():
        several = [f"--{name}", *map(_word, values)]
        words += several if name in ("method", "prior") else ["--vary", f"{name}={json.dumps(values)}"]
    margins = [f"{m}={_word(v)}" for m, v in manifest["margins"].items() if m in METRICS and v != METRICS[m].margin]
    words += ["--margin", *margins] if margins else []
    return shlex.join(words)


def _word(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _effects(effects: Sequence[Mapping[str, Any]], labels: Mapping[str, str]) -> list[Panel]:
    """A panel per metric, of the effects whose figures are all finite."""
    drawn: dict[str, list[Mapping[str, Any]]] = {}
    for effect in effects:
        if all(effect.get(key) is not None for key in ("estimate", "low", "high", "margin", "level")):
            drawn.setdefault(effect["metric"], []).append(effect)
    return [arms.effect_panel(each, labels) for each in drawn.values()]


def _begun(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The arms of a comparison that is not judged yet, with the seeds that are done."""
    found: dict[str, list[int]] = {}
    for name, trial in (manifest.get("trials") or {}).items():
        arm, _, seed = name.rpartition("-")
        if trial["status"] == "done" and seed.isdecimal():
            found.setdefault(arm, []).append(int(seed))
    return [{"name": arm, "label": arm, "seeds": sorted(seeds)} for arm, seeds in found.items()]


def _shown(stats: Mapping[str, Any], known: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The baseline, and the arm that the answer is about: the chosen one, or the best other where that is chosen."""
    if not stats.get("arms"):
        return []
    baseline = next(arm for arm in known if arm["name"] == stats["baseline"])
    others = [arm for arm in known if arm is not baseline]
    judged = [arm for arm in others if None not in (arm["val_accuracy"], arm["val_nll"])]
    best = max(judged, key=lambda arm: (arm["val_accuracy"], -arm["val_nll"]), default=None)
    return [arm for arm in (baseline, best) if arm is not None and arm["seeds"]]


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
        panel = arms.band_panel(lines, title, unit, percent=percent)
        panels += [] if panel is None else [panel]
    if not panels:
        source.left_out.append("The curves: no trial has a metrics.csv with validation in it.")
    return panels


def _line(table: Sequence[Mapping[str, Any]], key: str) -> dict[int, float]:
    """A column by epoch."""
    return {int(row["epoch"]): row[key] for row in table if row[key] is not None}


def _tested_arms(source: Source, shown: Sequence[Mapping[str, Any]]) -> list[_Tested]:
    """The shown arms that have trials, all of as many classes."""
    if not shown:
        return []
    results = source.table("results.csv", ("seed", "temperature"), "temperature scaling")
    temperatures = {(row.get("arm"), row["seed"]): row["temperature"] for row in results}
    found: list[_Tested] = []
    for arm in shown:
        tested = _tested(source, arm, temperatures, class_count(found[0].first) if found else None)
        if tested.trials:
            found.append(tested)
    return found


def _figures(source: Source, tested: Sequence[_Tested], stats: Mapping[str, Any]) -> dict[str, list[Panel]]:
    """What the shown arms do on test, over all complete seeds."""
    bins = stats.get("bins") or 15

    def risk() -> list[Panel]:
        lines = [
            (arms.shortened(each.label), arms.style(stats["arms"].index(each.arm))[0], *_risk(each.trials))
            for each in tested
        ]
        return [plots.risk_coverage_panel(lines)]

    makers: dict[str, Callable[[], list[Panel]]] = {
        "reliability": lambda: [panel for each in tested for panel in _reliability(each, bins)],
        "confidence": lambda: [
            plots.confidence_panel(*_pooled([t.rows for t in each.trials]), f"Confidence, {each.label}")
            for each in tested
        ],
        "risk_coverage": risk,
    }
    return {name: source.attempt(name.replace("_", " and "), make, []) for name, make in makers.items()}


def _projection(source: Source, tested: Sequence[_Tested], names: list[str]) -> tuple[list[Panel], str]:
    """The same three classes in each arm, and through what their planes go."""
    counts = np.sum([_counts(each, len(names)) for each in tested], axis=0)
    panels: list[Panel] = []
    planes: list[str] = []
    for each in tested:
        told = Source(each.folder)
        drawn, plane = projected(told, [(each.label, "test", each.first)], names, counts)
        panels += drawn
        planes += [plane] if plane and plane not in planes else []
        source.left_out += [f"{each.label}: {line}" for line in told.left_out]
    return panels, " or ".join(planes)


def _tested(
    source: Source, arm: Mapping[str, Any], temperatures: Mapping[Any, float | None], count: int | None
) -> _Tested:
    """The trials of an arm whose predictions can be used, of `count` classes if that is known; others are told of."""
    tested = _Tested(arm)
    for seed in arm["seeds"]:
        own = _trial(source, arm, seed)
        test = own.predictions("test", _TEST)
        if test is not None:
            try:
                plain = rows(test.logits, test.labels)
                temperature = temperatures.get((arm["name"], seed))
                scaled = None if temperature is None else rows(test.logits, test.labels, temperature=temperature)
                if count is not None and class_count(test) != count:
                    raise ValueError(f"it has {class_count(test)} classes, and other trials have {count}")
                count = class_count(test)
                if not tested.trials:
                    tested.folder, tested.first = own.path, test
                tested.trials.append(_Trial(plain, scaled, np.asarray(test.labels)))
            except ValueError as error:
                own.lacks("predictions/test.npz", _TEST, f"cannot be used ({reason(error)})")
        source.left_out += [f"{arm['label']}, seed {seed}: {line}" for line in own.left_out]
    return tested


def _mistakes(source: Source, arm: Mapping[str, Any], names: list[str]) -> list[dict[str, Any]]:
    """The worst ones of the arm's first seed."""
    own = _trial(source, arm, arm["seeds"][0])
    pictures = mistake_pictures(own, names)
    source.left_out += [f"{arm['label']}, seed {arm['seeds'][0]}: {line}" for line in own.left_out]
    return pictures


def _counts(tested: _Tested, count: int) -> np.ndarray:
    """The confusion matrix over all trials."""
    cells = [np.bincount(trial.labels * count + trial.rows.predicted, minlength=count**2) for trial in tested.trials]
    return np.sum(cells, axis=0).reshape(count, count)


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
            cells, mean = reliability(*_pooled(each), bins), (tested.arm["metrics"].get(key) or {}).get("mean")
            panels.append(plots.reliability_panel(cells, mean, f"{tested.label}, {title}"))
    return panels


def _risk(trials: Sequence[_Trial]) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Coverage, and the mean and standard deviation of the risk over seeds."""
    risks = np.array([np.interp(_COVERAGE, *risk_coverage(trial.rows.confidence, trial.rows.hits)) for trial in trials])
    return _COVERAGE, risks.mean(axis=0), risks.std(axis=0, ddof=1) if len(risks) > 1 else None
