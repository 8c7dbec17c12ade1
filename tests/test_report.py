"""The report: what it says of whole, unfinished and damaged folders, and what a browser makes of it."""

import csv
import json
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace

import matplotlib.image
import numpy as np
import pytest
import yaml
from markupsafe import Markup, escape

from labelsmooth._errors import DataError
from labelsmooth.cli import main
from labelsmooth.evaluation import Predictions, evaluate
from labelsmooth.report import page as pages
from labelsmooth.report import panels, plots, run
from labelsmooth.report.page import finish
from tests import chromium

HOSTILE = "<img src=x onerror=alert(1)>"
NAMES = (HOSTILE, "$x^{2$ & co", 'id="b" url(#c) "d"', "\u202eevil\x07")
SIZE_LIMIT = 3_000_000
RUN_HEADINGS = ["Metrics", "Training", "Confidence", "Classes", "Projection", "Worst mistakes", "How to reproduce"]
PLOTS = {"curves", "reliability", "confidence", "risk_coverage", "confusion", "projection"}

needs_chromium = pytest.mark.skipif(chromium.find() is None, reason="no Chromium on this machine")


def predictions(generator, count, num_classes, *, names=None, features=True, first=0):
    """Logits that are right about four times in five, and features that lie around three-dimensional corners."""
    labels = np.arange(count) % num_classes
    corners = np.random.default_rng(7).normal(size=(num_classes, 8))
    near = corners[labels] + generator.normal(scale=0.9, size=(count, 8))
    logits = (near @ corners.T).astype(np.float32)
    return Predictions(
        logits,
        labels,
        near.astype(np.float32) if features else None,
        first + np.arange(count),
        None if names is None else tuple(names),
    )


def write_mistakes(folder, test, shape=(8, 8, 1)):
    predicted = test.logits.argmax(axis=1)
    wrong = np.flatnonzero(predicted != test.labels)[:30]
    images = np.random.default_rng(0).integers(0, 256, (len(wrong), *shape), np.uint8)
    confidence = np.linspace(0.99, 0.4, len(wrong))
    np.savez(
        folder / "predictions" / "mistakes.npz", images=images, labels=test.labels[wrong], predicted=predicted[wrong],
        confidence=confidence, index=wrong,
    )  # fmt: skip


def write_curves(folder, epochs, seed=0, level=0.9):
    generator = np.random.default_rng(seed)
    columns = (
        "epoch", "lr", "smoothing", "train_loss_smoothed", "train_loss_floor", "train_nll", "train_accuracy", "val_nll",
        "val_accuracy", "seconds", "images_per_second",
    )  # fmt: skip
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for epoch in range(1, epochs + 1):
            accuracy = level - 0.5 * 0.5**epoch + generator.normal(scale=0.005)
            writer.writerow(
                [epoch, 0.1, 0.1, 0.6 + 1 / epoch, 0.5, 0.3 + 1 / epoch, accuracy - 0.01, 0.4, accuracy, 1.0, 900]
            )


def write_run(folder, *, names=NAMES, epochs=6, finished=True, seed=0, count=400):
    """A run's folder as `train` leaves it; of hostile names."""
    (folder / "predictions").mkdir(parents=True)
    config = {
        "data": HOSTILE,
        "recipe": "digits",
        "epochs": 6.0,
        "smoothing": 0.1,
        "method": "loss",
        "label_column": HOSTILE,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    data = {
        "name": HOSTILE,
        "source": HOSTILE,
        "sha256": "ab" * 32,
        "classes": list(names),
        "examples": {"test": count},
    }
    (folder / "data.json").write_text(json.dumps(data))
    (folder / "env.json").write_text(
        json.dumps({"labelsmooth": "0", "versions": {"numpy": "2", "<b>": "1"}, "git": None})
    )
    (folder / "log.txt").write_text(f"begin\nfailed: {HOSTILE} went nan\n")
    if epochs:
        write_curves(folder, epochs, seed)
    if not finished:
        return folder
    generator = np.random.default_rng(seed)
    test = predictions(generator, count, len(names))
    test.save(folder / "predictions" / "test.npz")
    predictions(generator, 200, len(names), first=count).save(folder / "predictions" / "val.npz")
    predictions(generator, 600, len(names)).save(folder / "predictions" / "train.npz")
    write_mistakes(folder, test)
    accuracy = float((test.logits.argmax(axis=1) == test.labels).mean())
    summary = {
        "model": "small", "data": HOSTILE, "epochs": epochs, "seed": seed, "smoothing": 0.1, "method": "loss",
        "best": {"epoch": 5, "val_accuracy": 0.9, "val_nll": 0.4}, "test": {"accuracy": accuracy, "nll": 0.5, "examples": count},
    }  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


ARMS = (
    {"name": "smoothing-0", "label": "ε = 0"},
    {"name": "smoothing-0.1_method-b", "label": f"ε = 0.1, method {HOSTILE}"},
)


def write_comparison(folder, *, seeds=3, own=True, partial=False, judged=True):
    """A comparison's folder; without `own` the trials have predictions alone, as from somebody's own function."""
    folder.mkdir()
    manifest = {
        "format": 1, "function": f"m.{HOSTILE}", "labelsmooth": "0", "seeds": seeds, "arms": [{}, {}],
        "trials": {f"{arm['name']}-{seed}": {"status": "done"} for arm in ARMS for seed in range(seeds)},
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "config.yaml").write_text(yaml.safe_dump({"smoothing": [0.0, 0.1], "data": HOSTILE}))
    for arm in ARMS:
        for seed in range(seeds):
            trial = folder / "runs" / f"{arm['name']}-{seed}"
            if own:
                write_run(trial, seed=seed)
            else:
                (trial / "predictions").mkdir(parents=True)
                predictions(np.random.default_rng(seed), 400, 4, features=False).save(
                    trial / "predictions" / "test.npz"
                )
    if not judged:
        return folder
    lines = [f"{arm['name']},{seed},0.8" for arm in ARMS for seed in range(seeds)]
    (folder / "results.csv").write_text("\n".join(["arm,seed,temperature", *lines]) + "\n")
    keys = ("accuracy", "nll", "brier", "ece", "aurc", "nll_scaled", "brier_scaled", "ece_scaled")
    arms = [
        {**arm, "options": {"smoothing": 0.1 * k}, "seeds": list(range(seeds)), "val_accuracy": 0.9 + k / 100, "val_nll": 0.3,
         "temperature": 0.8, "expected_ece": 0.01, "expected_ece_scaled": 0.02, "metrics": {key: {"mean": 0.8125, "sd": 0.01} for key in keys}}
        for k, arm in enumerate(ARMS)
    ]  # fmt: skip
    effects = [
        {"arm": ARMS[1]["name"], "metric": key, "label": key, "unit": "points" if key == "accuracy" else "",
         "better": "higher" if key == "accuracy" else "lower", "primary": key == "accuracy", "baseline_mean": 0.8125,
         "arm_mean": 0.8246, "estimate": 0.0121, "low": 0.0034, "high": 0.0208, "level": 0.95, "standard_error": 0.004,
         "dof": 7.1, "p": 0.01, "p_holm": 0.0213, "permutation_p": None, "margin": 0.005, "verdict": "helps",
         "seeds_needed": None, "seeds_note": ""}
        for key in keys
    ]  # fmt: skip
    stats = {
        "answer": f"On {HOSTILE}, smoothing helps.", "notes": ["A note."], "partial": partial, "complete_seeds": seeds,
        "seeds": seeds + partial, "primary": "accuracy", "baseline": ARMS[0]["name"], "chosen": ARMS[1]["name"],
        "examples": 400, "classes": list(NAMES) if own else None, "bins": 15, "arms": arms,
        "effects": effects if seeds > 1 else [],
        "failed": [{"arm": ARMS[1]["name"], "seed": 3, "error": HOSTILE}] if partial else [], "seconds": 1.0,
    }  # fmt: skip
    (folder / "stats.json").write_text(json.dumps(stats))
    return folder


class Page(HTMLParser):
    """A page's tags, ids, and the text that is read."""

    def __init__(self, path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags, self.words, self._style = [], [], False
        self.feed(self.source)
        self.text = re.sub(r"\s+", " ", " ".join(self.words))
        self.ids = [values["id"] for _, values in self.tags if "id" in values]

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._style = tag == "style"

    def handle_endtag(self, tag):
        self._style = False

    def handle_data(self, data):
        if not self._style:
            self.words.append(data)

    def all(self, tag):
        return [values for name, values in self.tags if name == tag]


def check_whole(page):
    """What holds for every report: small, alone, without scripts, its ids its own, its figures described."""
    assert len(page.source.encode()) < SIZE_LIMIT
    assert not page.all("script")
    assert HOSTILE not in page.source
    for tag, values in page.tags:
        assert not [name for name in values if name.startswith("on")], tag
        for name in ("src", "href", "xlink:href", "action", "data"):
            assert values.get(name, "#").startswith(("#", "data:")), (tag, values)
        assert "url(http" not in values.get("style", "")
    assert "@import" not in page.source
    assert len(page.ids) == len(set(page.ids))
    referred = re.findall(r'(?:url\(#|href="#)([^")]+)', page.source)
    referred = [name for name in referred if name != "c"]  # that is in a class's name
    assert set(referred) <= set(page.ids)
    for svg in page.all("svg"):
        assert svg["role"] == "img"
        assert len(svg["aria-label"]) > 20
    assert all(image["alt"] for image in page.all("img"))
    for values in (values for _, values in page.tags if values.get("role") == "region"):
        assert values["tabindex"] == "0"
        assert values["aria-label"]


def headings(page):
    return re.findall(r"<h2>(.*?)</h2>", page.source)


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """Whole reports, to look at; nobody changes them."""
    folder = tmp_path_factory.mktemp("reports")
    return {
        "run": finish(write_run(folder / "run")),
        "comparison": finish(write_comparison(folder / "comparison")),
        "unfinished": finish(write_run(folder / "unfinished", finished=False)),
    }


@pytest.fixture
def inline_alone(monkeypatch):
    """No PNGs beside the page: they are its figures, drawn a second time."""
    monkeypatch.setattr(pages, "together", lambda panels: None)
    monkeypatch.setattr(pages, "save", lambda figure, path: None)


@pytest.fixture
def undrawn(inline_alone, monkeypatch):
    """Figures that are described and not drawn, where the words are the point."""

    def described(panel, prefix):
        return Markup(f'<svg role="img" aria-label="{escape(panel.alt)}"></svg>')

    monkeypatch.setattr(pages, "inline", described)


def test_report_of_a_run(reports):
    folder = reports["run"].parent
    assert reports["run"] == folder / "report.html"
    page = Page(folder / "report.html")
    check_whole(page)
    assert headings(page) == RUN_HEADINGS
    test = np.load(folder / "predictions" / "test.npz")
    val = np.load(folder / "predictions" / "val.npz")
    result = evaluate(test["logits"], test["labels"], validation=(val["logits"], val["labels"]))
    assert re.search(r"<h1[^>]*>(.*?)</h1>", page.source)[1] == f"Test accuracy {100 * result.accuracy:.2f} %"
    scaled = next(metric for metric in result.scaled if metric.key == "ece")
    for number in (
        f"{result.nll:.4f}",
        f"T = {result.temperature:.3g}",
        *(f"ECE {m.value:.4f} with 15 bins; {m.expected:.4f} if perfectly" for m in (result.metric("ece"), scaled)),
        f"{scaled.value:.4f} ({scaled.expected:.4f})",
        f"Before temperature scaling: ECE {result.metric('ece').value:.4f}, 15 bins",
    ):
        assert number in page.text
    for words in (
        "labelsmooth train --config config.yaml",
        "abababab",
        f"failed: {HOSTILE} went nan",
        "labelsmooth compare",
    ):
        assert words in page.text
    for name in NAMES[:3]:
        assert name in page.text
    assert "\\u202eevil\\x07" in page.text
    assert len(page.all("svg")) == 9
    assert len(page.all("img")) == 24
    assert "true <b>" in page.source
    assert "99.00 %" in page.text
    assert {path.stem for path in (folder / "plots").iterdir()} == PLOTS
    for path in (folder / "plots").iterdir():
        picture = matplotlib.image.imread(path)
        assert min(picture.shape[:2]) > 300
        assert picture[..., :3].std() > 0.02  # something is drawn


@pytest.mark.usefixtures("inline_alone")
def test_it_is_the_same_every_time_whatever_a_matplotlibrc_says(tmp_path, reports):
    folder = write_run(tmp_path / "run")
    assert finish(folder).read_bytes() == reports["run"].read_bytes()
    with matplotlib.rc_context({"text.usetex": True, "axes.facecolor": "red", "lines.linewidth": 9}):
        assert finish(folder).read_bytes() == reports["run"].read_bytes()


@pytest.mark.usefixtures("inline_alone")
@pytest.mark.parametrize("epochs", [0, 3])
def test_a_run_that_stopped_shows_what_is_there(tmp_path, epochs):
    folder = write_run(tmp_path / "my run", epochs=epochs, finished=False)
    page = Page(finish(folder))
    check_whole(page)
    assert ("3 of 6 epochs are done" if epochs else "no epoch is done") in page.text
    assert f"labelsmooth train --resume '{folder}'" in page.text
    assert f"{HOSTILE} went nan" in page.text
    assert headings(page) == [*(["Training"] if epochs else []), "How to reproduce", "Left out"]
    assert "not finished" in page.text
    assert "predictions/test.npz is missing, because the run has not finished" in page.text
    assert len(page.all("svg")) == (2 if epochs else 0)


FIGURES_OF_TEST = PLOTS - {"curves"}
DAMAGE = {  # file: the figures that go with it, and what is said
    "predictions/val.npz": (set(), "Temperature scaling: predictions/val.npz "),
    "predictions/mistakes.npz": (set(), "The pictures of the worst mistakes: predictions/mistakes.npz "),
    "predictions/train.npz": (set(), "The projection of training examples: predictions/train.npz "),
    "metrics.csv": ({"curves"}, "The curves: metrics.csv "),
    "predictions/test.npz": (FIGURES_OF_TEST, "Everything about the test set: predictions/test.npz "),
    "data.json": (set(), "What the data are: data.json "),
    "env.json": (set(), "Versions and hardware: env.json "),
}


@pytest.mark.parametrize("damage", [None, b"\xff{[<b>"])
@pytest.mark.parametrize("name", DAMAGE)
def test_missing_and_damaged_files_cost_one_line_each(tmp_path, name, damage):
    folder = write_run(tmp_path / "run")
    (folder / name).unlink() if damage is None else (folder / name).write_bytes(damage)
    content = run.gather(folder)
    gone, words = DAMAGE[name]
    assert {figure for figure, drawn in content.panels.items() if drawn} == PLOTS - gone
    (line,) = content.source.left_out
    assert line.startswith(words + ("is missing" if damage is None else "cannot be read ("))
    assert bool(content.mistakes) == (name not in ("predictions/mistakes.npz", "predictions/test.npz"))


@pytest.mark.usefixtures("undrawn")
def test_a_page_of_damaged_files(tmp_path):
    folder = write_run(tmp_path / "run")
    for name in DAMAGE:
        (folder / name).write_bytes(b"\xff{[<b>")
    page = Page(finish(folder))
    check_whole(page)
    assert headings(page) == ["How to reproduce", "Left out"]
    assert "Test accuracy" in page.text  # as the summary has it
    assert page.source.partition('id="left-out"')[2].count("<li>") == 4  # nothing more is asked without test


@pytest.mark.usefixtures("undrawn")
def test_which_weights_were_tested(tmp_path):
    folder = write_run(tmp_path / "run")
    assert "Tested: the checkpoint of epoch 5, the best on validation." in Page(finish(folder)).text
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps(summary | {"best": None}))
    assert "Tested: the weights after the last epoch." in Page(finish(folder)).text


@pytest.mark.usefixtures("undrawn")
def test_predictions_that_cannot_be_evaluated(tmp_path):
    folder = write_run(tmp_path / "run")
    test = predictions(np.random.default_rng(0), 40, 4)
    Predictions(np.full_like(test.logits, np.nan), test.labels).save(folder / "predictions" / "test.npz")
    page = Page(finish(folder))
    assert "Everything about the test set: predictions/test.npz cannot be evaluated (logits must be finite" in page.text
    assert "Test accuracy" in page.text  # as the summary has it


@pytest.mark.usefixtures("undrawn")
def test_mistakes_that_do_not_fit(tmp_path):
    folder = write_run(tmp_path / "run")
    ids = np.array([9])
    np.savez(folder / "predictions" / "mistakes.npz", images=np.zeros((1, 8, 8, 3), np.uint8), labels=ids, predicted=ids,
             confidence=np.ones(1), index=ids)  # fmt: skip
    page = Page(finish(folder))
    assert "class ids lie outside 0..3" in page.text
    assert not page.all("img")


@pytest.mark.usefixtures("undrawn")
def test_two_classes_have_no_projection(tmp_path):
    page = Page(finish(write_run(tmp_path / "run", names=("a", "b"))))
    assert "Projection" not in headings(page)
    assert "has 2 classes, and a projection needs three" in page.text


@pytest.mark.usefixtures("inline_alone")
def test_many_classes_and_large_pictures_stay_small(tmp_path):
    folder = write_run(tmp_path / "run", names=[f"class number {k}" for k in range(300)], count=3000, epochs=300)
    test = predictions(np.random.default_rng(0), 3000, 300)
    write_mistakes(folder, test, (224, 200, 3))
    page = Page(finish(folder))
    check_whole(page)
    assert len(page.all("img")) == 24
    assert "class number 299" in page.text


def test_report_of_a_comparison(reports):
    folder = reports["comparison"].parent
    page = Page(reports["comparison"])
    check_whole(page)
    assert headings(page) == [
        "Arms",
        "Effects",
        "Curves",
        "Confidence",
        "Classes",
        "Projection",
        "Worst mistakes",
        "How to reproduce",
    ]
    assert f"On {HOSTILE}, smoothing helps." in page.text
    assert "A note." in page.text
    for words in (
        "81.25 %",
        "+1.21 points",
        "+0.34 to +2.08",
        "+0.0121",
        "ECE, 15 bins, after temperature scaling",
        "0.8125 (0.0100)",
        "0.8125 (0.0200)",
        "helps",
        "0.0213",
        f"ε = 0.1, method {HOSTILE}",
    ):
        assert words in page.text
    told = [svg["aria-label"] for svg in page.all("svg")]
    assert "95 % interval +0.34 to +2.08: helps" in " ".join(told)
    assert len(told) == 8 + 2 + 4 + 2 + 1 + 2 + 2
    assert {path.stem for path in (folder / "plots").iterdir()} == PLOTS | {"effects"}


@pytest.mark.usefixtures("undrawn")
def test_a_comparison_says_what_repeats_it(tmp_path, monkeypatch):
    folder = write_comparison(tmp_path / "comparison")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest |= {
        "settings": {"data": "my data", "epochs": 2.0, "batch_size": 32, "noise": "symmetric:0.4", "sha256": "0", "noise_sha256": None, "resolved": {"lr": 1}},
        "smoothing": [0.0, 0.1], "options": {"method": ["labels", "loss"], "schedule": ["cosine", "step:factor=.5"], "dropout": [0, 0.5]},
        "margins": {"accuracy": 0.02, "nll": 0.01},
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    found = Page(finish(folder))
    (command,) = (words.strip() for words in found.words if words.startswith("labelsmooth compare"))
    assert {"aria-label": "Command", "role": "region", "tabindex": "0"} in found.all("pre")
    assert "ε\u00a0=\u00a00.1" in found.source
    told = {}

    def instead(trials, smoothing, seeds, **kwargs):
        told.update(kwargs, smoothing=smoothing, seeds=seeds, settings=trials)
        raise KeyboardInterrupt

    monkeypatch.setattr(
        "labelsmooth.comparison.images.ImageTrials.of",
        lambda data, fixed, reporter: SimpleNamespace(name=data, fixed=fixed),
    )
    monkeypatch.setattr("labelsmooth.comparison.compare", instead)
    assert main(shlex.split(command)[1:]) == 130
    assert (told["smoothing"], told["seeds"]) == ([0.0, 0.1], 3)
    assert told["options"] == manifest["options"]
    assert told["margins"] == {"accuracy": 0.02}
    assert told["settings"].name == "my data"
    assert told["settings"].fixed == {"epochs": 2.0, "batch_size": 32, "noise": "symmetric:0.4"}


@pytest.mark.usefixtures("inline_alone")
def test_comparison_of_somebodys_own_function(tmp_path):
    page = Page(finish(write_comparison(tmp_path / "comparison", own=False)))
    check_whole(page)
    assert headings(page) == ["Arms", "Effects", "Confidence", "Classes", "How to reproduce", "Left out"]
    for words in (
        "no trial has a metrics.csv with validation in it",
        "holds no features",
        "predictions/mistakes.npz is missing",
    ):
        assert words in page.text


@pytest.mark.usefixtures("undrawn")
def test_comparison_of_one_seed_judges_nothing(tmp_path):
    page = Page(finish(write_comparison(tmp_path / "comparison", seeds=1)))
    check_whole(page)
    assert "Effects" not in headings(page)
    assert "helps" not in page.text.replace("smoothing helps", "")


@pytest.mark.usefixtures("undrawn")
def test_partial_comparison(tmp_path):
    folder = write_comparison(tmp_path / "comparison", seeds=2, partial=True)
    (folder / "runs" / "smoothing-0-1" / "predictions" / "test.npz").write_bytes(b"PK")
    page = Page(finish(folder))
    check_whole(page)
    assert "partial: 2 of 3 seeds" in page.text
    assert f"labelsmooth compare --resume {folder}" in page.text
    assert "Failed trials" in page.text
    assert "ε = 0, seed 1: " in page.text


@pytest.mark.usefixtures("undrawn")
def test_comparison_that_stopped_shows_what_is_there(tmp_path):
    folder = write_comparison(tmp_path / "comparison", seeds=2, judged=False)
    page = Page(finish(folder))
    check_whole(page)
    assert "The comparison has not ended: 4 of 4 trials are done" in page.text
    assert "no seed is finished" not in page.text
    assert headings(page) == ["Curves", "How to reproduce", "Left out"]


def test_command(tmp_path, capsys):
    folder = write_run(tmp_path / "run", finished=False)
    assert main(["report", str(folder)]) == 0
    assert capsys.readouterr().out.strip() == f"report  {folder / 'report.html'}"
    assert (folder / "plots" / "curves.png").is_file()
    assert main(["report", str(write_comparison(tmp_path / "comparison", judged=False)), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"report": str(tmp_path / "comparison" / "report.html")}
    (tmp_path / "empty").mkdir()
    for path, words in (
        (tmp_path / "none", "there is no folder"),
        (tmp_path / "empty", "neither a run's folder"),
        (folder / "config.yaml", "is a file; give a folder"),
    ):
        assert main(["report", str(path)]) == 3
        assert words in capsys.readouterr().err
    with pytest.raises(DataError, match="neither"):
        finish(tmp_path / "empty")


ODD = {  # file: what it holds instead, and what is said
    "summary.json": ('{"accuracy": 0.9}', "The summary: summary.json holds something else (see model)"),
    "data.json": ('{"classes": [1, 2, 3, 4]}', "What the data are: data.json holds something else (see classes)"),
    "data.json ": ('{"classes": 4, "sha256": 5}', "What the data are: data.json holds something else (see sha256)"),
    "data.json  ": ('{"examples": [1]}', "What the data are: data.json holds something else (see examples)"),
    "data.json   ": ('{"classes": ["a"]}', "Its class names: data.json names 1 classes, where the logits have 4"),
    "env.json": ("[" * 100_000, "Versions and hardware: env.json cannot be read (it is nested too deeply"),
    "config.yaml": ("recipe: &a [*a]", "The settings: config.yaml cannot be read (it is nested too deeply"),
}


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("name", ODD)
def test_files_that_hold_something_else_cost_one_line_each(tmp_path, name):
    folder = write_run(tmp_path / "run")
    text, words = ODD[name]
    (folder / name.strip()).write_text(text)
    page = Page(finish(folder))
    check_whole(page)
    assert words in page.text
    assert page.source.partition('id="left-out"')[2].count("<li>") == 1
    assert len(page.all("svg")) == 9


@pytest.mark.usefixtures("inline_alone")
def test_curves_with_holes(tmp_path):
    folder = write_run(tmp_path / "run")
    lines = (folder / "metrics.csv").read_text().splitlines()
    lines[2] = "," + lines[2].partition(",")[2]
    best = lines[4].split(",")
    best[7:9] = ["nan", "0.9999"]
    (folder / "metrics.csv").write_text("\n".join([*lines[:4], ",".join(best), *lines[5:]]))
    page = Page(finish(folder))
    assert "Some of the curves: metrics.csv has 1 rows without epoch" in page.text
    assert "The best validation accuracy is" in page.text
    assert "The best validation accuracy is 99.99 %" not in page.text


@pytest.mark.usefixtures("inline_alone")
def test_arrays_that_hold_something_else(tmp_path):
    folder = write_run(tmp_path / "run")
    test = predictions(np.random.default_rng(0), 400, 4)
    nan = np.full((4, 8), np.nan)
    replace(test, templates=nan).save(folder / "predictions" / "test.npz")
    with (folder / "predictions" / "mistakes.npz").open("wb") as file:
        np.save(file, np.arange(3))
    page = Page(finish(folder))
    check_whole(page)
    assert "predictions/test.npz cannot be projected (features and templates must be finite)" in page.text
    assert "predictions/mistakes.npz cannot be read (it is a single array)" in page.text
    ids = np.arange(2)
    np.savez(folder / "predictions" / "mistakes.npz", images=np.zeros((2, 8, 8, 3), np.uint8), labels=ids, predicted=ids,
             confidence=np.array(["a", "b"]), index=ids)  # fmt: skip
    assert "confidence holds something else than numbers" in Page(finish(folder)).text


@pytest.mark.usefixtures("undrawn")
def test_features_that_cannot_be_used_cost_only_what_needs_them(tmp_path):
    folder = write_run(tmp_path / "run")
    test = predictions(np.random.default_rng(0), 400, 4)
    test.features[3, 1] = np.nan
    test.save(folder / "predictions" / "test.npz")
    page = Page(finish(folder))
    assert (
        "Class separation: predictions/test.npz holds features that cannot be used (features must be finite"
        in page.text
    )
    assert "Metrics" in headings(page)
    assert "class separation" not in page.source.partition('id="left-out"')[0]


@pytest.mark.usefixtures("undrawn")
def test_validation_that_does_not_fit_is_not_used(tmp_path):
    folder = write_run(tmp_path / "run")
    for val, words in (
        (predictions(np.random.default_rng(0), 200, 3, first=400), "it has 3 classes, and test has 4"),
        (predictions(np.random.default_rng(0), 200, 4, first=399), "share no example with the tested predictions"),
    ):
        val.save(folder / "predictions" / "val.npz")
        page = Page(finish(folder))
        assert "Temperature scaling: predictions/val.npz cannot be used (" in page.text
        assert words in page.text
        assert "Metrics" in headings(page)
        assert "After temperature scaling" not in page.text


@pytest.mark.usefixtures("inline_alone")
def test_a_panel_that_cannot_be_drawn_is_left_out(tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise ZeroDivisionError("no font")

    monkeypatch.setattr(plots, "wilson", fail)
    drawn = plots.risk_coverage_panel
    monkeypatch.setattr(plots, "risk_coverage_panel", lambda *given: replace(drawn(*given), draw=fail))
    page = Page(finish(write_run(tmp_path / "run")))
    check_whole(page)
    assert "Reliability: what the files hold cannot be shown (ZeroDivisionError: no font)." in page.text
    assert "The picture Risk and coverage: what the files hold cannot be shown" in page.text
    assert len(page.all("svg")) == 9 - 3


@pytest.mark.usefixtures("undrawn")
def test_projections_have_one_plane(tmp_path):
    from labelsmooth.report.content import projected
    from labelsmooth.report.sources import Source

    generator = np.random.default_rng(0)
    train, test = predictions(generator, 600, 4), predictions(generator, 400, 4)
    splits = [("Training", "train", train), ("Test", "test", test)]
    seen = []

    def keep(shown, names, classes):
        seen.extend(shown)
        return []

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("labelsmooth.report.content.projection_panels", keep)
        _, plane = projected(Source(tmp_path), splits, list("abcd"), np.eye(4, dtype=int))
    assert plane == "mean features"
    np.testing.assert_array_equal(seen[0].corners, seen[1].corners)
    page = Page(finish(write_run(tmp_path / "run")))
    assert "in the plane through their mean features." in page.text
    assert page.text.count("outlined: its mean over the train examples, as there are no templates.") == 2
    for split, each in (("train", train), ("test", test)):
        whole = replace(each, templates=np.random.default_rng(1).normal(size=(4, 8)))
        whole.save(tmp_path / "run" / "predictions" / f"{split}.npz")
    page = Page(finish(tmp_path / "run"))
    assert "in the plane through their templates (the last layer's rows)." in page.text
    assert "outlined: its template." in page.text


def test_large_confusion_is_summed_up():
    from labelsmooth.report.svg import inline

    counts = np.random.default_rng(0).integers(0, 5, (1000, 1000))
    panel = plots.confusion_panel(counts, [str(k) for k in range(1000)])
    assert "A cell stands for 4 × 4 neighbouring classes." in panel.note
    assert len(inline(panel, "f1")) < 500_000
    np.testing.assert_array_equal(plots._summed(np.arange(9).reshape(3, 3), 2), [[8, 7], [13, 8]])


def test_bands_of_arms_without_curves():
    from labelsmooth.report.arms import band_panel

    assert band_panel([("a", []), ("b", [{1: 0.5}, {2: 0.6}])], "t", "y") is None
    panel = band_panel([("a", []), ("b", [{1: 0.5, 2: 0.7}, {2: 0.6}])], "t", "y")
    assert panel.alt.endswith("At the end: b 0.6500.")
    panels.alone(panel)


@pytest.mark.usefixtures("inline_alone")
def test_a_comparison_with_infinite_figures(tmp_path):
    folder = write_comparison(tmp_path / "comparison")
    stats = json.loads((folder / "stats.json").read_text())
    stats["arms"][1] |= {"val_nll": np.inf, "temperature": np.nan}
    stats["effects"][0] |= {"low": -np.inf, "p_holm": np.nan, "margin": np.inf}
    stats["classes"] = None
    (folder / "stats.json").write_text(json.dumps(stats))
    page = Page(finish(folder))
    check_whole(page)
    assert "– to +2.08" in page.text
    assert "class ids lie outside" not in page.text
    (folder / "stats.json").write_text('{"answer": "yes", "effects": [1]}')
    page = Page(finish(folder))
    assert "Verdicts and figures: stats.json holds something else (see effects)" in page.text


def test_reports_of_others_stay(tmp_path, capsys):
    for name, text in (("config.yaml", "theme: dark"), ("manifest.json", '{"name": "app"}')):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_text(text)
        (folder / "report.html").write_text("mine")
        assert main(["report", str(folder)]) == 3
        assert "neither a run's folder" in capsys.readouterr().err
        assert (folder / "report.html").read_text() == "mine"


def test_printable():
    from labelsmooth._text import printable

    kept = "caf\u00e9 \u00a0 \u0645\u06cc\u200c\u062e \U0001f468\u200d\U0001f469 \u65e5"
    assert printable(kept) == kept
    assert printable("a\n\x1b\x85\u2028\u202e\u2066\ud800\udce9") == r"a\n\x1b\x85\u2028\u202e\u2066\ud800\xe9"


def test_the_console_prints_text_as_it_is(capsys):
    from labelsmooth.cli import _fail
    from labelsmooth.cli.output import console

    console(False).print(":cat:\x1b[31m\nb", markup=False)
    assert _fail("a\x1b[31m\nb", 3, False) == 3
    assert capsys.readouterr() == (":cat:\\x1b[31m\nb\n", "labelsmooth: a\\x1b[31m\nb\n")


def test_no_torch():
    code = "import sys, labelsmooth.report.page, labelsmooth.report.plots; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_names_of_lines_are_apart():
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    axes.set_ylim(0, 10)
    panels.end_labels(axes, [(5.0, "a", "k"), (5.1, "b", "k"), (9.0, "c", "k")], gap=0.1)
    places = {text.get_text(): text.get_position()[1] for text in axes.texts}
    assert places == pytest.approx({"a": 0.455, "b": 0.555, "c": 0.9})


def test_projection_shows_the_classes_that_are_confused_most():
    from labelsmooth.report.content import most_confused

    counts = np.diag([50, 50, 50, 50])
    counts[1, 3], counts[3, 1], counts[0, 3] = 4, 5, 3
    assert most_confused(counts) == (1, 3, 0)


def test_wilson_interval():
    low, high = plots.wilson(np.array([0.9]), np.array([100]))
    assert (low[0], high[0]) == pytest.approx((0.8256, 0.9448), abs=1e-4)  # scipy.stats.binomtest(90, 100)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium.Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


DRAWN = """
[...document.querySelectorAll("svg, img")].map(each => {
  const box = each.getBoundingClientRect();
  if (each.tagName === "IMG") return ["img", box.width, box.height, each.complete && each.naturalWidth > 0];
  const inside = each.getBBox(), whole = each.viewBox.baseVal;
  return ["svg", box.width, box.height, inside.width > 0.7 * whole.width && inside.height > 0.7 * whole.height];
})
"""


@needs_chromium
@pytest.mark.parametrize("scripts", [True, False])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("kind", ["run", "comparison", "unfinished"])
def test_a_browser_draws_it(browser, reports, kind, width, scripts):
    browser.tab(width, scripts=scripts, dark=width == 390)
    browser.open(reports[kind])
    drawn = browser.evaluate(DRAWN)
    assert len(drawn) == {"run": 33, "comparison": 45, "unfinished": 2}[kind]
    for tag, wide, high, filled in drawn:
        assert min(wide, high) > 90, tag
        assert filled, tag
    assert browser.evaluate("document.documentElement.scrollWidth") <= width  # wide tables scroll, the page does not
    if kind != "unfinished":
        assert browser.evaluate("document.body.innerText").count(HOSTILE) > 2
    methods = {event["method"] for event in browser.events}
    assert not methods & {
        "Runtime.consoleAPICalled",
        "Runtime.exceptionThrown",
        "Log.entryAdded",
        "Page.javascriptDialogOpening",
    }
    asked = [
        event["params"]["request"]["url"] for event in browser.events if event["method"] == "Network.requestWillBeSent"
    ]
    assert [url for url in asked if not url.startswith("data:")] == [reports[kind].resolve().as_uri()]


@needs_chromium
def test_keyboard_reaches_every_link_and_scrolled_table(browser, reports):
    browser.tab()
    browser.open(reports["run"])
    reached = []
    for _ in range(40):
        for kind in ("keyDown", "keyUp"):
            browser.call("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9)
        focus = "document.activeElement.getAttribute('href') || document.activeElement.getAttribute('aria-label')"
        reached.append(
            (browser.evaluate(focus), browser.evaluate("getComputedStyle(document.activeElement).outlineStyle"))
        )
    names = [name for name, _ in reached]
    assert names[:3] == ["#content", "#metrics", "#training"]
    assert {"Metrics", "Most frequent confusions", "Classification report"} <= set(names)
    assert all(outline == "solid" for name, outline in reached if name)


@needs_chromium
def test_it_can_be_printed(browser, reports):
    browser.tab(dark=True)
    browser.open(reports["run"])
    assert browser.pdf().startswith(b"%PDF")
    browser.call("Emulation.setEmulatedMedia", media="print")
    seen = '[...document.querySelectorAll("details table, details pre")].map(each => each.checkVisibility({contentVisibilityAuto: true}))'
    assert browser.evaluate(seen) == [True] * 4  # closed ones too
