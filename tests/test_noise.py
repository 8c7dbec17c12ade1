"""Label noise: which labels change, that nothing else does, where they come from, and what is refused."""

import json
import math
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq
import pytest
import yaml

from labelsmooth import losses, priors, smooth_labels
from labelsmooth._errors import DataError, Interrupted
from labelsmooth.cli import main
from labelsmooth.training import DIGITS, Reporter, load, resume, train
from labelsmooth.training.listing import Progress
from labelsmooth.training.plan import Plan, entropy_floor
from labelsmooth.training.run import RunFolder, Settings
from labelsmooth.training.signals import StopRequest
from labelsmooth.training.survey import survey
from labelsmooth.training.torch_engine import TorchEngine
from tests.test_data import pictures, png

pytestmark = pytest.mark.usefixtures("undrawn")

CLASSES = ("ant", "bee", "cow")
QUICK = {"recipe": DIGITS.changed(epochs=0.3, batch_size=128)}


def table(path, n, columns, names=None, seed=0):
    """A parquet file of n pictures with `columns`; `names` are the class names of some of them, as `datasets` writes."""
    images = pa.array([{"bytes": png(x), "path": None} for x in pictures(n, seed=seed)])
    made = pa.table({"img": images, **columns})
    features = {c: {"names": list(of)} for c, of in (names or {}).items()}
    pq.write_table(made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})}), path)


@pytest.fixture
def insects(tmp_path):
    """A folder of 60 training and 30 test images of three named classes; its labels, and others for training."""
    folder = tmp_path / "insects"
    folder.mkdir()
    labels = np.arange(60) % 3
    given = labels.copy()
    given[:7] = (given[:7] + 2) % 3
    table(folder / "train.parquet", 60, {"label": labels, "human": given}, {"label": CLASSES})
    table(folder / "test.parquet", 30, {"label": np.arange(30) % 3}, {"label": CLASSES}, seed=1)
    return folder, labels, given


def flips(seed, p, kind="symmetric"):
    """{position in the source: (label before, label after)} of the training labels of digits."""
    data = load("digits", seed=seed, noise=f"{kind}:{p}")
    return dict(zip(data.train.index.tolist(), zip(data.noise.clean.tolist(), data.train.labels.tolist(), strict=True), strict=True))  # fmt: skip


# What changes.


def test_symmetric_noise_takes_each_other_class_as_often():
    before, after = map(np.array, zip(*(pair for seed in range(12) for pair in flips(seed, 0.3).values()), strict=True))
    assert len(before) > 15_000
    changed = before != after
    assert abs(changed.mean() - 0.3) < 4 * math.sqrt(0.3 * 0.7 / len(before))
    steps = np.bincount((after - before)[changed] % 10, minlength=10)
    assert steps[0] == 0
    chi2 = ((steps[1:] - changed.sum() / 9) ** 2 / (changed.sum() / 9)).sum()
    assert chi2 < 26  # the 99.9th percentile with 8 degrees of freedom
    for k in range(10):  # whatever the class
        assert abs(changed[before == k].mean() - 0.3) < 5 * math.sqrt(0.3 * 0.7 / (before == k).sum())


def test_asymmetric_noise_takes_the_next_class():
    pairs = np.array(list(flips(0, 0.4, "asymmetric").values()))
    changed = pairs[:, 0] != pairs[:, 1]
    assert abs(changed.mean() - 0.4) < 4 * math.sqrt(0.24 / len(pairs))
    assert np.array_equal(pairs[changed, 1], (pairs[changed, 0] + 1) % 10)
    assert {9, 0} <= {label for pair in pairs[changed] for label in pair}  # the last class becomes the first


def test_noise_follows_from_the_seed_and_the_position_alone():
    first = flips(0, 0.3)
    assert flips(0, 0.3) == first
    assert flips(1, 0.3) != first
    more = flips(0, 0.6)
    assert all(more[i][1] == after for i, (before, after) in first.items() if before != after)  # a larger P adds some
    smaller = load("digits", val_split=0.4, seed=0, noise="symmetric:0.3").train  # other examples are held out
    shared = [i for i in smaller.index.tolist() if i in first]
    assert len(shared) > 700
    labels = dict(zip(smaller.index.tolist(), smaller.labels.tolist(), strict=True))
    assert all(labels[i] == first[i][1] for i in shared)


@pytest.mark.parametrize("noise", ["symmetric:0.5", "asymmetric:0.5"])
def test_only_training_labels_change(noise):
    clean, noisy = load("digits", seed=2), load("digits", seed=2, noise=noise)
    for name in ("train", "val", "test"):
        one, other = clean.splits[name], noisy.splits[name]
        assert np.array_equal(one.index, other.index)
        assert np.array_equal(one.images, other.images)
        assert np.array_equal(one.labels, other.labels) == (name != "train")
    assert np.array_equal(noisy.clean_train.labels, clean.train.labels)
    assert clean.clean_train is clean.train
    assert noisy.noise.changed == (clean.train.labels != noisy.train.labels).sum() > 500
    nothing = load("digits", noise="symmetric:0")
    assert nothing.noise.changed == 0
    assert np.array_equal(nothing.train.labels, load("digits").train.labels)


def test_other_options_do_not_move_the_noise(tmp_path):
    noted = {}

    class Look(Reporter):
        def begin(self, training, folder):
            noted[folder.parent.name] = training.engine.labels.numpy().copy(), training.plan.data.noise

    for name, options in {
        "loss": {"smoothing": 0.0}, "labels": {"method": "labels", "smoothing": 0.3, "prior": "class_frequency", "lr": 0.01},
    }.items():  # fmt: skip
        train("digits", out=tmp_path / name, noise="asymmetric:0.25", seed=5, reporter=Look(), **QUICK, **options)
    assert np.array_equal(noted["loss"][0], noted["labels"][0])
    assert noted["loss"][1].digest == noted["labels"][1].digest
    summary = json.loads((tmp_path / "loss/digits-001/summary.json").read_text())
    described = json.loads((tmp_path / "loss/digits-001/data.json").read_text())
    done = noted["loss"][1]
    assert summary["noise"] == described["noise"] == {
        "asked": "asymmetric:0.25", "changed": done.changed, "of": 1293, "sha256": done.digest,
    }  # fmt: skip
    assert described["class_counts"]["train"] == np.bincount(noted["loss"][0]).tolist()


def test_the_command_says_how_many_labels_changed(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--epochs", "0.1", "--noise", "symmetric:0.2", "--prior", "class_frequency"]) == 0
    out = capsys.readouterr().out
    changed = load("digits", noise="symmetric:0.2").noise.changed
    assert f"noise       symmetric:0.2, {changed} of 1,293 training labels changed ({changed / 12.93:.1f} %)\n" in out
    assert "smoothing   0.1, method loss (the loss smooths): prior class_frequency, from 0.0" in out
    assert yaml.safe_load((tmp_path / "runs/digits-001/config.yaml").read_text())["noise"] == "symmetric:0.2"
    assert main(["train", "--resume", "runs/digits-001", "--epochs", "1", "--noise", "symmetric:0.2"]) == 2
    assert "leave out --noise" in capsys.readouterr().err
    assert main(["train", "--config", "runs/digits-001/config.yaml"]) == 0
    one, other = ((tmp_path / f"runs/digits-00{i}/config.yaml").read_text() for i in (1, 2))
    assert one == other


def test_a_class_may_lose_all_its_labels(insects, tmp_path):
    folder, labels, _ = insects
    np.save(tmp_path / "two.npy", np.where(labels == 2, 0, labels))
    notes = []

    class Notes(Reporter):
        def data_progress(self):
            return Progress(note=notes.append)

    result = train(folder, noise=str(tmp_path / "two.npy"), prior="class_frequency", epochs=1, batch_size=16,
                   recipe=DIGITS, out=tmp_path / "runs", reporter=Notes())  # fmt: skip
    assert notes == ["warning: the noise leaves 1 of 3 classes without a training label: 'cow'"]
    assert result.test.examples == 30
    assert math.isfinite(result.summary["entropy_floor"])


# Labels from a file.


def write(path, labels):
    names = [CLASSES[k] for k in labels]
    if path.suffix == ".npy":
        np.save(path, labels[:, None] if "column" in path.stem else labels)
    elif path.suffix == ".npz":
        extra = {"worst": labels * 0} if "two" in path.stem else {}
        np.savez(path, labels=labels, **extra) if extra else np.savez(path, clean_label=np.array(names))
    elif path.stem == "table":
        rows = [f'"{i},png";"{name}"' for i, name in enumerate(names)]
        path.write_text("\r\n".join(["file;Label", *rows]), encoding="utf-8-sig")
    else:
        path.write_text("\n".join(names if path.suffix == ".csv" else map(str, labels)) + "\n\n")
    return path


@pytest.mark.parametrize(
    "name", ["a.npy", "column.npy", "one.npz", "two.npz", "names.csv", "table.csv", "ids.txt", "ids.TSV"]
)
@pytest.mark.parametrize("whole", [False, True])
def test_labels_from_a_file(insects, name, whole, tmp_path):
    folder, labels, given = insects
    path = write(tmp_path / name, np.concatenate([given, np.zeros(30, int)]) if whole else given)
    data = load(folder, noise=str(path))
    assert np.array_equal(data.train.labels, given[data.train.index])
    assert np.array_equal(data.val.labels, labels[data.val.index])
    assert np.array_equal(data.test.labels, np.arange(30) % 3)
    assert data.noise.changed == (given != labels)[data.train.index].sum() > 0
    assert data.noise.asked == str(path)


def test_numbers_are_names_where_classes_are_called_by_numbers(tmp_path):
    images = pictures(30, size=8)
    labels = np.array([str(1 + i % 3) for i in range(30)])
    np.savez(tmp_path / "d.npz", images=images, labels=labels)
    (tmp_path / "n.txt").write_text("\n".join(np.roll(labels, 1)))
    data = load(tmp_path / "d.npz", noise=str(tmp_path / "n.txt"))
    assert data.classes == ("1", "2", "3")
    assert np.array_equal(data.train.labels, (data.train.index - 1) % 3)
    (tmp_path / "n.txt").write_text("\n".join(["0", *labels[1:]]))
    with pytest.raises(
        DataError, match=r"has the label 0 at position 0 \(from 0\); it must be one of the classes 1, 2, 3"
    ):
        load(tmp_path / "d.npz", noise=str(tmp_path / "n.txt"))


def test_a_file_needs_no_labels_for_what_is_not_trained_on(insects, tmp_path):
    folder, _, given = insects
    np.save(tmp_path / "a.npy", np.concatenate([given, np.full(30, -1)]))
    assert np.array_equal(np.unique(load(folder, noise=str(tmp_path / "a.npy")).train.labels), [0, 1, 2])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.npy", np.arange(59) % 3, r"a.npy holds 59 labels; it must hold one for each of the 60 examples of the training split, or for each of all 90, in the order of the data"),
        ("a.npy", np.arange(60) % 4, r"a.npy has the label 3 at position 3 \(from 0\); it must be one of the classes ant, bee, cow, or an id in 0..2"),
        ("a.npy", np.append(np.zeros(59, int), -1), r"has the label -1 at position 59"),
        ("a.npy", np.append(np.zeros(59), np.nan), r"a.npy has float64 values that are neither class ids nor names; the first is nan, at position 59"),
        ("a.npy", np.full(60, 0.5), r"the first is 0.5, at position 0"),
        ("a.npy", np.zeros((60, 3), int), r"has the shape \(60, 3\); labels must be \[N\] or \[N, 1\]"),
        ("a.npy", np.zeros(60, complex), r"has complex128 values that are neither class ids nor names"),
        ("a.npy", np.array([None] * 60), r"is no readable file of labels \(it holds Python objects, which are not loaded\)"),
        ("a.npy", b"junk", r"is no readable file of labels \(it is damaged, or holds"),
        ("a.npy", b"", r"is no readable file of labels"),
        ("a.npz", {"a": np.zeros(60, int), "b": np.zeros(60, int)}, r"a.npz holds a, b; it must hold an array labels, or one array alone"),
        ("a.npz", {"labels": np.array([None] * 60)}, r"which are not loaded"),
        ("a.npz", b"PK\x03\x04", r"is no readable file of labels"),
        ("a.npz", {}, r"a.npz holds nothing"),
        ("a.csv", "ant\nbe\n" + "cow\n" * 58, r"a.csv has the label be at position 1 \(from 0\); it must be one of .*; did you mean bee\?"),
        ("a.csv", "file,class\n" + "1,ant\n" * 59, r"has the label file,class at position 0"),
        ("a.csv", "label\n" + "ant\n" * 61, r"holds 61 labels"),
        ("a.csv", "ant\n" * 5 + "\n" + "ant\n" * 54, r"a.csv has no label at position 5"),
        ("a.csv", "file,label\n" + "1,ant\n" * 3 + "2\n" + "3,ant\n" * 56, r"has no label at position 3"),
        ("a.csv", "", r"holds 0 labels"),
        ("a.txt", b"\xff\xfe\x00", r"is no readable file of labels"),
        ("a.txt", None, r"there is no file .*a.txt, which --noise names"),
    ],
)  # fmt: skip
def test_files_that_are_refused(insects, name, content, message, tmp_path):
    folder, _, _ = insects
    path = tmp_path / name
    if isinstance(content, np.ndarray):
        np.save(path, content, allow_pickle=True)
    elif isinstance(content, dict):
        np.savez(path, **content)
    elif isinstance(content, str):
        path.write_text(content)
    elif content is not None:
        path.write_bytes(content)
    decoded = []
    with pytest.raises(DataError, match=message):
        load(folder, noise=str(path), progress=Progress(decoded=lambda done, count: decoded.append(done)))
    assert not decoded  # it is known before that takes its time


def test_a_pickle_is_never_opened(insects, tmp_path):
    class Trap:
        def __reduce__(self):
            return (shutil.rmtree, (str(tmp_path),))

    np.save(tmp_path / "a.npy", np.array([Trap()] * 60, object), allow_pickle=True)
    with pytest.raises(DataError, match="which are not loaded"):
        load(insects[0], noise=str(tmp_path / "a.npy"))
    assert tmp_path.is_dir()


# Labels from a column.


def test_labels_from_a_column_of_the_training_table(insects):
    folder, labels, given = insects  # the test table lacks it
    data = load(folder, noise="column:human")
    assert np.array_equal(data.train.labels, given[data.train.index])
    assert np.array_equal(data.val.labels, labels[data.val.index])
    with pytest.raises(
        DataError,
        match=r"train.parquet has no column 'humane', which --noise names; did you mean human\?; its columns: img .*label .*human",
    ):
        load(folder, noise="column:humane")


def test_a_column_may_name_the_classes_in_another_order(tmp_path):
    labels = np.arange(60) % 3
    given = (labels + 1) % 3
    other = ("cow", "ant", "bee")
    path = tmp_path / "t.parquet"
    renumbered = np.array([other.index(CLASSES[k]) for k in given])
    table(path, 60, {"label": labels, "human": renumbered}, {"label": CLASSES, "human": other})
    data = load(path, noise="column:human")
    assert np.array_equal(data.train.labels, given[data.train.index])
    renumbered[4] = 3
    table(path, 60, {"label": labels, "human": renumbered}, {"label": CLASSES, "human": other})
    with pytest.raises(DataError, match=r"row 4 of .* has the label 3 in the column human, which names 3 classes only"):
        load(path, noise="column:human")
    table(path, 60, {"label": labels, "human": [None, *given[1:].tolist()]}, {"label": CLASSES})
    with pytest.raises(DataError, match=r"row 0 of .*t.parquet has no label in the column human"):
        load(path, noise="column:human")


def test_a_column_of_a_csv_file_with_splits(tmp_path):
    from PIL import Image

    made = pictures(40)
    for i in range(40):
        Image.fromarray(made[i]).save(tmp_path / f"{i}.png")
    labels = [CLASSES[i % 3] for i in range(40)]
    given = [CLASSES[(i + 1) % 3] for i in range(40)]
    splits = ["test" if i % 4 == 1 else "train" for i in range(40)]
    told = [g if s == "train" else "" for g, s in zip(given, splits, strict=True)]  # nobody looked at the test images
    columns = {"path": [f"{i}.png" for i in range(40)], "label": labels, "human": told, "split": splits}
    pc.write_csv(pa.table(columns), tmp_path / "t.csv")
    data = load(tmp_path / "t.csv", noise="column:human")
    assert [CLASSES[k] for k in data.train.labels] == [given[i] for i in data.train.index]
    assert [CLASSES[k] for k in data.test.labels] == [labels[i] for i in data.test.index]
    told[8] = "cat"
    pc.write_csv(pa.table(columns | {"human": told}), tmp_path / "t.csv")
    with pytest.raises(DataError, match=r"the column human has the label cat at position 8 \(from 0\)"):
        load(tmp_path / "t.csv", noise="column:human")


def test_only_tables_have_columns():
    with pytest.raises(
        DataError,
        match=r"--noise column:human needs a table \(.parquet or .csv\), and digits is none; give the labels in a file",
    ):
        load("digits", noise="column:human")


# Options, and old runs.


@pytest.mark.parametrize(
    "noise", ["symmetric", "symmetric:", "symmetric:1", "symmetric:-0.1", "asymmetric:nan", "asymmetric:x", "column:", "symetric:0.2", "labels.pkl", "", 5]
)  # fmt: skip
def test_noise_that_is_none_is_refused_before_anything_is_read(noise, tmp_path):
    rule = r"noise must be symmetric:P or asymmetric:P with P in \[0, 1\), column:NAME of a table, or a file of labels \(.npy"
    with pytest.raises(ValueError, match=rule):
        train("no data at all", noise=noise, out=tmp_path / "runs")
    with pytest.raises(ValueError, match=rule):
        load("no data at all", noise=noise)
    assert not (tmp_path / "runs").exists()


class Stop(Reporter):
    def step(self, epoch, done, steps, loss):
        if epoch == 1:
            raise KeyboardInterrupt


def test_a_run_goes_on_with_the_same_noise(tmp_path, monkeypatch):
    given = np.random.default_rng(0).integers(0, 10, 1797)  # digits have no test set of their own: one for each of all
    np.save(tmp_path / "mine.npy", given)
    monkeypatch.chdir(tmp_path)
    options = QUICK | {"epochs": 1.3}
    whole = train("digits", noise="symmetric:0.3", out=tmp_path / "whole", **options)
    for noise, name in (("symmetric:0.3", "drawn"), ("mine.npy", "file")):
        with pytest.raises(Interrupted):
            train("digits", noise=noise, out=tmp_path / name, reporter=Stop(), **options)
    folder = tmp_path / "file/digits-001"
    shutil.copytree(folder, tmp_path / "file 2")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert resume(folder).summary["noise"]["asked"] == str(tmp_path / "mine.npy")
    went_on = resume(tmp_path / "drawn/digits-001")
    for figure in ("test", "noise", "entropy_floor"):
        assert went_on.summary[figure] == whole.summary[figure]
    monkeypatch.chdir(tmp_path)
    given[3] = (given[3] + 1) % 10
    np.save(tmp_path / "mine.npy", given)
    with pytest.raises(DataError, match=r"the labels of --noise .*mine.npy have changed since .*file 2 began"):
        resume(tmp_path / "file 2")
    (tmp_path / "mine.npy").unlink()
    with pytest.raises(DataError, match=r"there is no file .*mine.npy, which --noise names"):
        resume(tmp_path / "file 2")


def test_runs_from_before_there_was_noise_go_on(tmp_path):
    whole = train("digits", out=tmp_path / "whole", **QUICK | {"epochs": 1.3})
    with pytest.raises(Interrupted):
        train("digits", out=tmp_path, reporter=Stop(), **QUICK | {"epochs": 1.3})
    folder = tmp_path / "digits-001"
    values = yaml.safe_load((folder / "config.yaml").read_text())
    for name in ("noise", "track", "prior"):
        del values[name]
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    described = json.loads((folder / "data.json").read_text())
    del described["noise"]
    (folder / "data.json").write_text(json.dumps(described))
    settings = RunFolder.open(folder).read_settings()
    assert (settings.noise, settings.track, settings.recipe.prior) == (None, None, "uniform")
    assert resume(folder).summary["test"] == whole.summary["test"]


def test_the_config_of_an_older_recipe_made_in_python_still_runs(tmp_path, capsys):
    first = train("digits", DIGITS.changed(name="mine", momentum=0.8, epochs=0.1), out=tmp_path)
    values = yaml.safe_load((first.folder / "config.yaml").read_text())
    del values["prior"], values["checkpoint"]
    (tmp_path / "old.yaml").write_text(yaml.safe_dump(values))
    assert main(["train", "--config", str(tmp_path / "old.yaml"), "--out", str(tmp_path)]) == 0
    assert (tmp_path / "digits-002/config.yaml").read_text() == (first.folder / "config.yaml").read_text()


def test_a_survey_of_data_knows_no_noise():
    assert survey("digits")["noise"] is None


# The prior.


def training(labels, **changes):
    from dataclasses import replace

    data = load("digits")
    data = replace(data, train=replace(data.train, labels=labels(data.train.labels)))
    settings = Settings("digits", DIGITS.changed(**changes), 0.1, 0, None, None, None, "cpu", False)
    return TorchEngine(Plan(settings, data), StopRequest())


@pytest.mark.parametrize("method", ["loss", "labels"])
def test_the_loss_is_the_reference_with_the_prior_of_the_training_labels(method):
    import torch

    run = training(
        lambda y: np.where(y < 4, 0, np.where(y == 9, 8, y)), method=method, prior="class_frequency", smoothing=0.3
    )
    labels = run.plan.data.train.labels
    u = np.bincount(labels, minlength=10) / len(labels)
    assert u[9] == 0 < u[0] != u[8]
    np.testing.assert_allclose(run.plan.prior, u, rtol=1e-12)
    assert np.array_equal(run.plan.prior, priors.class_frequency(labels, 10))
    logits = torch.randn(64, 10, generator=torch.Generator().manual_seed(0), requires_grad=True)
    loss = run.loss(logits, torch.arange(64), 64)
    reference = losses.cross_entropy(logits.detach().numpy(), labels[:64], label_smoothing=0.3, prior=u)
    assert float(loss.detach()) == pytest.approx(reference, rel=1e-6)
    loss.backward()
    q = smooth_labels(labels[:64], 0.3, num_classes=10, prior=u)
    expected = (torch.softmax(logits.detach().double(), 1).numpy() - q) / 64
    np.testing.assert_allclose(logits.grad.numpy(), expected, atol=1e-8)


@pytest.mark.parametrize(
    ("prior", "smoothing"), [("class_frequency", 0.2), ("class_frequency", 0.0), ("uniform", 0.2), ("uniform", 0.0)]
)
def test_the_floor_is_the_entropy_of_the_smoothed_labels(prior, smoothing):
    run = training(lambda y: np.where(y < 6, 1, y), prior=prior, smoothing=smoothing)
    labels = run.plan.data.train.labels
    u = np.bincount(labels, minlength=10) / len(labels) if prior == "class_frequency" else np.full(10, 0.1)
    q = (1 - smoothing) * np.eye(10)[labels] + smoothing * u
    entropy = -(q * np.log(np.where(q > 0, q, 1))).sum(1).mean()
    assert run.plan.floor == pytest.approx(entropy, rel=1e-12, abs=1e-15)
    assert entropy_floor(labels, smoothing, u) == run.plan.floor >= 0
    best = np.log(np.where(q > 0, q, 1e-300))  # no logits have a lower loss
    if smoothing:
        assert losses.cross_entropy(best, labels, label_smoothing=smoothing, prior=u) == pytest.approx(
            run.plan.floor, rel=1e-9
        )


def test_the_prior_comes_from_the_noisy_labels_and_is_written_down(tmp_path):
    priors_seen = []

    class Look(Reporter):
        def begin(self, training, folder):
            priors_seen.append((training.plan.prior, training.plan.data.train.labels, training.plan.floor))

    result = train("digits", noise="asymmetric:0.3", prior="class_frequency", out=tmp_path, reporter=Look(), **QUICK)
    (u, labels, floor), = priors_seen  # fmt: skip
    assert np.array_equal(u, priors.class_frequency(labels, 10))
    assert result.summary["prior"] == "class_frequency"
    assert result.summary["entropy_floor"] == floor
    assert (result.folder / "metrics.csv").read_text().splitlines()[1].split(",")[4] == repr(floor)
    with pytest.raises(ValueError, match=r"prior must be one of 'uniform', 'class_frequency'; got 'similar'"):
        train("digits", prior="similar", out=tmp_path)
