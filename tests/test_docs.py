"""The documentation: it builds without a warning, asks nothing of a network, and what it says is so."""

import ast
import doctest
import importlib
import itertools
import json
import math
import os
import re
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest

import labelsmooth as ls
from labelsmooth.targets import explanation
from tests import chromium

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)

needs_chromium = pytest.mark.skipif(chromium.find() is None, reason="no Chromium on this machine")


def blocks(page, *languages):
    return [text for language, text in FENCE.findall(page.read_text(encoding="utf-8")) if language in languages]


def keras_names():
    """The public names of labelsmooth.keras, read: to import it would choose this process's backend."""
    source = (ROOT / "src" / "labelsmooth" / "keras" / "__init__.py").read_text(encoding="utf-8")
    return ast.literal_eval(re.search(r"__all__ = (\[.*?\])", source, re.DOTALL)[1])


# The site


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built documentation."""
    folder = tmp_path_factory.mktemp("site")
    result = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return folder


def test_every_page_and_every_public_name_is_there(site):
    for page in (ROOT / "docs").rglob("*.md"):
        assert (site / page.relative_to(ROOT / "docs")).with_suffix(".html").is_file()
    text = "".join(page.read_text(encoding="utf-8") for page in (site / "api").glob("*.html"))
    anchors = set(re.findall(r'id="(labelsmooth[^"]*)"', text))
    for module in ("", ".torch", ".jax", ".training", ".comparison", ".evaluation"):
        for name in importlib.import_module(f"labelsmooth{module}").__all__:
            if name not in ("losses", "priors", "schedules"):  # modules
                assert f"labelsmooth{module}.{name}" in anchors, (
                    f"labelsmooth{module}.{name} is not in the API reference"
                )
    for module in (ls.losses, ls.priors, ls.schedules):
        for name, value in vars(module).items():
            if getattr(value, "__module__", "") == module.__name__ and not name.startswith("_"):
                assert f"{module.__name__}.{name}" in anchors, f"{module.__name__}.{name} is not in the API reference"
    for name in keras_names():
        assert f"labelsmooth.keras.{name}" in anchors, f"labelsmooth.keras.{name} is not in the API reference"
    assert not list(site.rglob("*.py"))


def test_examples_of_docstrings_are_code(site):
    assert "<blockquote>" not in "".join(page.read_text(encoding="utf-8") for page in (site / "api").glob("*.html"))


def test_nothing_is_fetched_from_elsewhere(site):
    for page in site.rglob("*.html"):
        fetched = re.findall(r'(?:src|href)="((?:https?:)?//[^"]*)"', page.read_text(encoding="utf-8"))
        assert fetched == [], page.name


@needs_chromium
def test_pages_in_a_browser(site, tmp_path):
    with chromium.Browser(tmp_path) as browser:
        for name, (width, height) in itertools.product(
            ("index", "why", "conventions", "scale", "api/torch"), ((1280, 900), (360, 740))
        ):
            browser.tab(width, height)
            browser.open(site / f"{name}.html")
            assert browser.evaluate("document.documentElement.scrollWidth") <= width, f"{name} scrolls at {width}"
            asked = [
                e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"
            ]
            assert asked
            assert all(url.startswith(("file:", "data:", "blob:")) for url in asked), asked


# What the pages say


@pytest.mark.parametrize("name", NAMES)
def test_prompts_give_what_stands_below_them(name):
    text = "\n".join(blocks(ROOT / name, "pycon"))
    parser, runner = doctest.DocTestParser(), doctest.DocTestRunner(verbose=False)
    report: list[str] = []
    runner.run(parser.get_doctest(text, {}, name, name, 0), out=report.append)
    assert runner.failures == 0, "".join(report)


@pytest.mark.parametrize("name", NAMES)
def test_python_blocks_are_python_and_import_what_there_is(name):
    for text in blocks(ROOT / name, "python", "pycon"):
        if ">>>" in text:
            text = "\n".join(line[4:] for line in text.splitlines() if line.startswith((">>> ", "... ", ">>>", "...")))
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("labelsmooth"):
                for alias in node.names:
                    exists(node.module, alias.name)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "ls":
                exists("labelsmooth", node.attr)


def exists(module, name):
    if module == "labelsmooth.keras":
        assert name in keras_names(), f"{module}.{name}"
    else:
        assert hasattr(importlib.import_module(module), name), f"{module}.{name}"


@pytest.mark.parametrize("name", NAMES)
def test_imports_in_the_text_exist(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    for module, names in re.findall(r"from (labelsmooth[\w.]*) import ([\w, ]+)", text):
        for each in names.split(","):
            exists(module, each.split()[0])
    for path in re.findall(r"`(labelsmooth(?:\.\w+)+)", text):
        module, _, last = path.rpartition(".")
        source = ROOT / "src" / path.replace(".", "/")
        if not (source.is_dir() or source.with_suffix(".py").is_file()):
            exists(module, last)
    for last in re.findall(r"`ls\.(\w+)", text):
        exists("labelsmooth", last)
    for path in re.findall(r"`((?:examples|benchmarks|tests|docs)/[\w./]+)`", text):
        assert (ROOT / path).exists(), path


def options():
    """Each command's options, as the command line itself knows them."""
    from labelsmooth.cli.app import build

    app = build()
    return {
        name: {flag for argument in app[name].assemble_argument_collection() for flag in argument.names}
        for name in app
        if not name.startswith("-")
    }


@pytest.mark.parametrize("name", NAMES)
def test_commands_and_options_exist(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    known = options()
    lines = [line for block in blocks(ROOT / name, "sh", "") for line in block.splitlines()]
    lines += re.findall(r"`([^`\n]+)`", FENCE.sub("", text))
    for line in lines:
        words = line.partition("#")[0].split()
        if "labelsmooth" not in words[:1] or len(words) < 2:
            continue
        command = words[1]
        if command.startswith("-"):
            assert command in ("--help", "--version"), line
            continue
        assert command in known, f"no command {command!r}: {line}"
        for word in words[2:]:
            if word.startswith("-") and word != "-":
                assert word.partition("=")[0] in known[command] | {"--debug", "--help"}, f"no option {word}: {line}"
    anywhere = set.union(*known.values()) | {"--debug", "--help", "--version"}
    foreign = {"--smoothing", "--label-smoothing"}  # of timm and fairseq
    for option in re.findall(r"`(--[a-z][a-z-]*)", text):
        assert option in anywhere | foreign, f"no option {option}"


def test_the_table_of_best_gaps():
    rows = re.findall(
        r"^\| ([\d,]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.e-]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$",
        (ROOT / "docs" / "why.md").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    assert len(rows) == 6
    for count, epsilon, on, off, floor, gap, nll in rows:
        right = explanation(float(epsilon), int(count.replace(",", "")))
        expected = [right.true_class, right.other_classes, right.entropy_floor, right.best_logit_gap]
        for written, value in zip((on, off, floor, gap, nll), [*expected, -math.log(right.true_class)], strict=True):
            last_digit = 10.0 ** Decimal(written).as_tuple().exponent
            assert float(written) == pytest.approx(value, rel=0, abs=0.51 * last_digit)


# Conventions: the peers that are installed are run, the others stand by their published formula

N, COUNT, EPSILON = 7, 10, 0.1
CONVENTIONS = ROOT / "docs" / "conventions.md"


def batch(count=COUNT):
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(N, count)), rng.integers(2, count, N) if count > 2 else rng.integers(0, 2, N)
    return logits, labels, logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def ours(convention, count=COUNT, **options):
    logits, labels, _ = batch(count)
    epsilon = ls.convert_smoothing(EPSILON, options.pop("classes", count), from_=convention)
    return float(ls.losses.cross_entropy(logits, labels, label_smoothing=epsilon, **options))


def torch_loss():
    import torch

    logits, labels, _ = batch()
    return torch.nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(labels), label_smoothing=EPSILON).item()


def optax_loss():
    import jax.numpy as jnp
    import optax

    logits, labels, _ = batch()
    targets = optax.smooth_labels(jnp.asarray(np.eye(COUNT)[labels]), EPSILON)
    return float(optax.softmax_cross_entropy(jnp.asarray(logits), targets).mean())


def hugging_face_loss():
    import torch
    from transformers.trainer_pt_utils import LabelSmoother

    logits, labels, _ = batch()
    return LabelSmoother(epsilon=EPSILON)({"logits": torch.tensor(logits)}, torch.tensor(labels)).item()


def spread_over_others(epsilon, others):
    """ε to `others` wrong classes, the rest to the label."""
    _, labels, log_p = batch()
    picked = log_p[np.arange(N), labels]
    return -((1 - epsilon) * picked + epsilon / others * (log_p.sum(axis=1) - picked)).mean()


def timm_loss():
    _, labels, log_p = batch()
    return -((1 - EPSILON) * log_p[np.arange(N), labels] + EPSILON * log_p.mean(axis=1)).mean()


def fairseq_loss():
    """Since 791ab7c: (1 - ε - ε_i) nll + ε_i Σ(-log p), ε_i = ε/(K-1)."""
    _, labels, log_p = batch()
    each = EPSILON / (COUNT - 1)
    return -((1 - EPSILON - each) * log_p[np.arange(N), labels] + each * log_p.sum(axis=1)).mean()


def megatron_loss():
    """On one rank: s = ε K/(K-1), (1 - s) nll - s mean(log p)."""
    _, labels, log_p = batch()
    s = EPSILON * COUNT / (COUNT - 1)
    return -((1 - s) * log_p[np.arange(N), labels] + s * log_p.mean(axis=1)).mean()


def classy_vision_loss():
    """ε/K is added everywhere, then the row is divided by its sum."""
    _, labels, log_p = batch()
    targets = np.eye(COUNT)[labels] + EPSILON / COUNT
    return -(targets / targets.sum(axis=1, keepdims=True) * log_p).sum(axis=1).mean()


def open_nmt_loss():
    """ε/(K-2) to the classes that are neither the label nor padding (class 1); H(q') is added back."""
    _, labels, log_p = batch()
    targets = np.full((N, COUNT), EPSILON / (COUNT - 2))
    targets[:, 1] = 0
    targets[np.arange(N), labels] = 1 - EPSILON
    return -(targets * log_p).sum(axis=1).mean()


WITHOUT_PADDING = np.where(np.arange(COUNT) == 1, 0, 1 / (COUNT - 1))
PEERS = {
    "PyTorch": (torch_loss, "inclusive", {}),
    "optax": (optax_loss, "inclusive", {}),
    "Hugging Face": (hugging_face_loss, "inclusive", {}),
    "timm": (timm_loss, "inclusive", {}),
    "fairseq `label_smoothed_cross_entropy`, since 0.12": (fairseq_loss, "exclusive", {}),
    "fairseq up to 0.10.2": (timm_loss, "inclusive", {}),
    "Megatron-LM": (megatron_loss, "exclusive", {}),
    "tensor2tensor": (lambda: spread_over_others(EPSILON, COUNT - 1), "exclusive", {}),
    "OpenNMT-py": (open_nmt_loss, "exclusive", dict(classes=COUNT - 1, prior=WITHOUT_PADDING)),
    "classy-vision": (classy_vision_loss, "classy_vision", {}),
}


@pytest.mark.parametrize("peer", PEERS)
def test_a_peer_and_its_conversion(peer):
    loss, convention, options = PEERS[peer]
    assert ours(convention, **options) == pytest.approx(loss(), rel=3e-7)
    assert re.search(rf"^\| {re.escape(peer)}.*`{convention}`", CONVENTIONS.read_text(encoding="utf-8"), re.MULTILINE)


def test_tensorflow_and_keras_and_their_conversions():
    code = """
import json, sys
import keras, numpy as np, tensorflow as tf
logits, labels, pair, bits = (np.asarray(x) for x in json.loads(sys.argv[1]))
one_hot = np.eye(logits.shape[1])[labels]
v1 = tf.compat.v1.losses
print(json.dumps({
    "Keras `Cat": float(keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=.1)(one_hot, logits)),
    "TensorFlow 1": float(v1.softmax_cross_entropy(one_hot, logits, label_smoothing=.1)),
    "Keras `Bin": float(keras.losses.BinaryCrossentropy(from_logits=True, label_smoothing=.1)(bits[:, None], pair[:, None])),
    "sigmoid": float(v1.sigmoid_cross_entropy(bits, pair, label_smoothing=.1)),
}))
"""
    logits, labels, _ = batch()
    two, bits, _ = batch(2)
    two[:, 0] = 0  # sigmoid(z) is softmax over (0, z)
    given = json.dumps([logits.tolist(), labels.tolist(), two[:, 1].tolist(), bits.tolist()])
    result = subprocess.run(
        [sys.executable, "-c", code, given],
        capture_output=True,
        text=True,
        env={**os.environ, "KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    assert result.returncode == 0, result.stderr
    values = json.loads(result.stdout.splitlines()[-1])
    epsilon = ls.convert_smoothing(EPSILON, 2, from_="keras_binary")
    binary = float(ls.losses.cross_entropy(two, bits, label_smoothing=epsilon))
    assert values["Keras `Cat"] == pytest.approx(ours("inclusive"), rel=1e-6)
    assert values["TensorFlow 1"] == pytest.approx(ours("inclusive"), rel=1e-6)
    assert values["Keras `Bin"] == pytest.approx(binary, rel=1e-6)
    assert values["sigmoid"] == pytest.approx(binary, rel=1e-6)


def test_every_row_of_the_table_is_checked():
    text = CONVENTIONS.read_text(encoding="utf-8").partition("## The targets")[2].partition("The equal ε")[0]
    rows = re.findall(r"^\| ([^|]+?) \|", text, re.MULTILINE)[1:]
    checked = (*PEERS, "labelsmooth", "Keras", "TensorFlow 1")
    assert [row for row in rows if not row.startswith(checked)] == []
    assert len(rows) == 14


def test_the_table_of_equal_smoothings():
    rows = re.findall(
        r"^\| ([\d,]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", CONVENTIONS.read_text(encoding="utf-8"), re.MULTILINE
    )
    assert len(rows) == 4
    for text, exclusive, classy, inclusive in rows:
        count = int(text.replace(",", ""))
        assert float(exclusive) == pytest.approx(
            ls.convert_smoothing(0.1, count, from_="inclusive", to="exclusive"), abs=6e-7
        )
        assert float(classy) == pytest.approx(
            ls.convert_smoothing(0.1, count, from_="inclusive", to="classy_vision"), abs=6e-7
        )
        assert float(inclusive) == pytest.approx(ls.convert_smoothing(0.1, count, from_="exclusive"), abs=6e-7)


# The replacements


def replacement(heading):
    """The names that the Python blocks below a heading of the migration page define."""
    import torch

    names = {"ls": ls, "vocabulary": COUNT, "padding": 1}
    exec("from labelsmooth.torch import CrossEntropyLoss, cross_entropy", names)
    section = (
        (ROOT / "docs" / "migration.md")
        .read_text(encoding="utf-8")
        .partition(f"\n## {heading}\n")[2]
        .partition("\n## ")[0]
    )
    logits, labels, _ = batch()
    names |= {"train_labels": np.eye(COUNT)[labels], "jax_logits": logits, "jax_labels": labels}
    names |= {"logits": torch.tensor(logits), "labels": torch.tensor(labels)}
    texts = [text for language, text in FENCE.findall(section) if language == "python"]
    assert texts
    for text in texts:
        if "labelsmooth.keras" not in text:  # examples/keras_method2.py is run instead
            exec(text, names)
    return names


def test_pytorch_s_and_a_hand_written_module():
    names = replacement("PyTorch")
    assert names["criterion"](names["logits"], names["labels"]).item() == pytest.approx(fairseq_loss(), rel=1e-9)
    plain = names["cross_entropy"](names["logits"], names["labels"], label_smoothing=EPSILON).item()
    assert plain == pytest.approx(torch_loss(), rel=1e-9)


def test_keras_labels():
    targets = replacement("Keras")["train_labels"]
    assert targets.max() == pytest.approx(0.91)
    assert targets.min() == pytest.approx(0.01)


def test_optax_s():
    names = replacement("JAX and optax")
    assert names["losses"].shape == (N,)
    assert float(names["losses"].mean()) == pytest.approx(timm_loss(), rel=1e-6)


def test_timm_s():
    names = replacement("timm")
    assert names["smoothing"](names["logits"], names["labels"]).item() == pytest.approx(timm_loss(), rel=1e-9)
    smoothed = ls.smooth_labels(names["labels"], EPSILON, num_classes=COUNT)  # as Mixup gives it
    assert names["plain"](names["logits"], smoothed).item() == pytest.approx(timm_loss(), rel=1e-6)
    with pytest.warns(
        UserWarning, match="smoothed already, by 0.1, and label_smoothing=0.1 smooths them again, to 0.19"
    ):
        both = names["smoothing"](names["logits"], smoothed).item()
    assert both == pytest.approx(float(ls.losses.cross_entropy(*batch()[:2], label_smoothing=0.19)), rel=1e-6)


def test_fairseq_s():
    import torch

    names = replacement("fairseq")
    labels = torch.cat([names["labels"], torch.tensor([1])])  # and one of padding
    logits = torch.cat([names["logits"], torch.randn(1, COUNT, dtype=torch.float64)])
    assert names["criterion"](logits, labels).item() == pytest.approx(N * fairseq_loss(), rel=1e-9)
    mean = names["cross_entropy"](logits, labels, label_smoothing=names["epsilon"], ignore_index=1, normalizer=N)
    assert mean.item() == pytest.approx(fairseq_loss(), rel=1e-9)


def test_hugging_face_s():
    import torch
    from transformers.trainer_pt_utils import LabelSmoother

    names = replacement("Hugging Face")
    outputs = type("Outputs", (), {"logits": torch.randn(2, 5, COUNT, dtype=torch.float64, requires_grad=True)})
    labels = torch.tensor([[1, 2, 3, -100, -100], [4, 5, 6, 7, 8]])
    expected = LabelSmoother(EPSILON)({"logits": outputs.logits}, labels, shift_labels=True)
    assert names["smoothed_loss"](outputs, labels).item() == pytest.approx(expected.item(), rel=1e-6)
    assert names["smoothed_loss"](outputs, labels, 12).item() == pytest.approx(expected.item() * 6 / 12, rel=1e-6)
