"""`labelsmooth smooth`: the values of `smooth_labels` in every format, and what a user does wrong."""

import csv
import errno
import io
import itertools
import json
import os
import pty
import signal
import subprocess
import sys
import time
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.csv as pcsv
import pyarrow.parquet as pq
import pytest

import labelsmooth as ls
from labelsmooth._errors import DataError
from labelsmooth.cli import main
from labelsmooth.files import smooth, smooth_file, source

K = 7
LABELS = np.random.default_rng(0).integers(0, K, 1000)
SOFT = np.random.default_rng(1).dirichlet(np.ones(K), 1000)
PRIOR = np.arange(1, K + 1) / np.arange(1, K + 1).sum()
COMMAND = [sys.executable, "-m", "labelsmooth"]


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Runs the command in this process, in an empty folder; returns (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def small_batches(monkeypatch):
    """Batches of 64 rows, so that a thousand rows are many of them, and the last is incomplete."""
    monkeypatch.setattr(smooth, "_ROWS", 64)


def write_labels(path, labels=LABELS):
    """Class ids, beside other columns where there are columns."""
    if path.suffix == ".npy":
        np.save(path, labels)
    elif path.suffix == ".npz":
        np.savez_compressed(path, weights=np.ones(3), labels=labels)
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            rows = [[f'{n}, "quoted"', label, "two\nlines"] for n, label in enumerate(labels)]
            csv.writer(file).writerows([["name", "label", "note"], *rows])
    else:
        table = {
            "name": [f"é{n}" for n in range(len(labels))],
            "label": labels,
            "image": [{"bytes": b"\xff"}] * len(labels),
        }
        pq.write_table(pa.table(table), path, row_group_size=300)
    return path


def read_targets(path, dtype="float32"):
    if path.suffix == ".npy":
        return np.load(path)
    if path.suffix == ".npz":
        file = np.load(path)
        assert file.files == ["targets"]
        return file["targets"]
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as file:
            header, *rows = csv.reader(file)
        first = header.index("target_0")
        assert header[first:] == [f"target_{k}" for k in range(len(header) - first)]
        return np.array([row[first:] for row in rows]).astype(dtype)
    column = pq.read_table(path)["targets"].combine_chunks()
    assert pa.types.is_fixed_size_list(column.type)
    return column.values.to_numpy().reshape(-1, column.type.list_size)


def exactly(got, expected):
    assert got.dtype == expected.dtype
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(("kind", "to"), list(itertools.product(smooth.SUFFIXES, smooth.SUFFIXES)))
def test_every_format_to_every_other(kind, to, tmp_path, small_batches):
    path, out = write_labels(tmp_path / f"y{kind}"), tmp_path / f"out{to}"
    if (kind, to) == (".parquet", ".csv"):
        pq.write_table(pq.read_table(path).drop_columns("image"), path)
    for dtype in ("float16", "float32", "float64"):
        done = smooth_file(path, 0.1, num_classes=K, prior=PRIOR, dtype=dtype, out=out, overwrite=True)
        exactly(read_targets(out, dtype), ls.smooth_labels(LABELS, 0.1, num_classes=K, prior=PRIOR, dtype=dtype))
    assert done.as_dict() == {
        "out": str(out), "rows": 1000, "num_classes": K, "smoothing": 0.1, "prior": "given", "dtype": "float64",
    }  # fmt: skip
    assert sorted(item.name for item in tmp_path.iterdir()) == sorted([path.name, out.name])  # nothing else stays
    assert out.stat().st_mode & 0o777 == path.stat().st_mode & 0o777


def test_a_table_keeps_its_columns(tmp_path, small_batches):
    table = pq.read_table(write_labels(tmp_path / "y.parquet"))
    table = table.replace_schema_metadata({"huggingface": "{}"})
    pq.write_table(table, tmp_path / "y.parquet")
    smooth_file(tmp_path / "y.parquet", num_classes=K, out=tmp_path / "out.parquet")
    kept = pq.read_table(tmp_path / "out.parquet")
    assert kept.column_names == ["name", "label", "image", "targets"]
    assert kept.drop_columns("targets").equals(table)
    assert kept.schema.metadata[b"huggingface"] == b"{}"

    write_labels(tmp_path / "y.csv")
    for out in ("out.csv", "csv.parquet"):
        smooth_file(tmp_path / "y.csv", num_classes=K, out=tmp_path / out)
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["name"], row["label"], row["note"]) for row in rows] == [
        (f'{n}, "quoted"', str(label), "two\nlines") for n, label in enumerate(LABELS)
    ]
    table = pq.read_table(tmp_path / "csv.parquet")
    assert table.schema.field("name").type == pa.string()
    assert table["label"].to_pylist() == LABELS.tolist()

    np.save(tmp_path / "y.npy", LABELS)
    smooth_file(tmp_path / "y.npy", num_classes=K, out=tmp_path / "npy.parquet")
    assert pq.read_table(tmp_path / "npy.parquet", columns=["label"])["label"].to_pylist() == LABELS.tolist()
    np.save(tmp_path / "q.npy", SOFT)
    smooth_file(tmp_path / "q.npy", out=tmp_path / "soft.parquet")
    assert pq.read_schema(tmp_path / "soft.parquet").names == ["targets"]


@pytest.mark.parametrize("prior", [None, "frequency", PRIOR])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("kind", [".npy", ".npz", ".parquet", "lists.parquet"])
def test_one_hot_and_soft_targets(kind, order, prior, tmp_path, small_batches):
    hot = np.eye(K)[LABELS]
    given = (SOFT, SOFT.astype(np.float16), SOFT.astype(">f4"), hot.astype(np.uint8), hot.astype(bool))
    for number, values in enumerate(given):
        path, values = tmp_path / f"{number}{kind}", np.asarray(values, order=order)
        if kind == ".npy":
            np.save(path, values)
        elif kind == ".npz":
            np.savez(path, values)
        else:
            flat = pa.array(values.astype(values.dtype.newbyteorder("=")).reshape(-1))
            fixed = pa.FixedSizeListArray.from_arrays(flat, K)
            pq.write_table(pa.table({"y": fixed if kind == ".parquet" else fixed.cast(pa.list_(flat.type))}), path)
        done = smooth_file(path, 0.2, prior=prior, out=tmp_path / f"{number}.out.npy")
        u = ls.priors.class_frequency(values) if isinstance(prior, str) else prior
        expected = ls.smooth_labels(values, 0.2, prior=u)
        got = np.load(done.out)
        assert got.dtype == expected.dtype
        # Sums of targets in another order differ in their last bits; all else is exact.
        rtol = 1e-12 if isinstance(prior, str) and values.dtype.kind == "f" else 0
        tolerance = max(rtol, float(np.finfo(got.dtype).eps) if rtol else 0)
        np.testing.assert_allclose(got, expected, rtol=tolerance, atol=0)


def test_labels_of_many_kinds(tmp_path, small_batches):
    expected = ls.smooth_labels(LABELS, 0.1, num_classes=K)
    for values in (
        LABELS.astype(np.uint8), LABELS.astype(">i4"), LABELS.astype(np.uint64), LABELS.astype(np.float32), LABELS[:, None],
    ):  # fmt: skip
        np.save(tmp_path / "y.npy", values)
        exactly(np.load(smooth_file(tmp_path / "y.npy", num_classes=K, overwrite=True).out), expected)
    np.save(tmp_path / "y.npy", LABELS > 3)
    got = np.load(smooth_file(tmp_path / "y.npy", num_classes=2, overwrite=True).out)
    exactly(got, ls.smooth_labels(LABELS > 3, 0.1, num_classes=2))
    text = pa.array(list(map(str, LABELS)))
    for column in (
        text,
        text.dictionary_encode(),
        pa.array(LABELS, pa.float64()),
        pa.array(LABELS).dictionary_encode(),
    ):
        pq.write_table(pa.table({"LABEL": column}), tmp_path / "y.parquet")
        done = smooth_file(tmp_path / "y.parquet", num_classes=K, out=tmp_path / "out.npy", overwrite=True)
        exactly(np.load(done.out), expected)


@pytest.mark.parametrize(
    "text",
    ["label\n1\n0\n2\n", "\ufeffid;label\na;1\nb;0\n\nc;2", "label\tx\r\n1\t\r\n0\t\r\n2\t\r\n",
     'x,label\n"a\nb", 1\n,+0\n,2.0\n', 'label,x\n"1",a\n 0 ,b\n2.,c\n'],
)  # fmt: skip
def test_csv_as_people_write_it(text, tmp_path):
    (tmp_path / "y.csv").write_text(text, encoding="utf-8", newline="")
    done = smooth_file(tmp_path / "y.csv", num_classes=3, out=tmp_path / "out.npy")
    exactly(np.load(done.out), ls.smooth_labels([1, 0, 2], 0.1, num_classes=3))


def test_csv_numbers_are_short_and_exact(tmp_path):
    np.save(tmp_path / "y.npy", [1, 0])
    for dtype in ("float16", "float32", "float64"):
        smooth_file(tmp_path / "y.npy", num_classes=100, dtype=dtype, out=tmp_path / "y.csv", overwrite=True)
        line = (tmp_path / "y.csv").read_text().splitlines()[1]
        assert line.startswith("1,0.001,0.901,0.001,0.001,")
    every = np.arange(0x3C01, dtype=np.uint16).view(np.float16)  # 0 to 1
    np.save(tmp_path / "all.npy", np.stack([every, 1 - every], 1))
    smooth_file(tmp_path / "all.npy", 0.0, out=tmp_path / "all.csv")
    exactly(read_targets(tmp_path / "all.csv", "float16"), np.load(tmp_path / "all.npy"))


def test_columns_and_arrays_by_name(run, tmp_path):
    (tmp_path / "y.csv").write_text("fine,label,coarse\n2,0,1\n0,1,1\n")
    assert run("smooth", "y.csv", "--classes", "3", "--out", "a.npy")[0] == 0
    exactly(np.load(tmp_path / "a.npy"), ls.smooth_labels([0, 1], 0.1, num_classes=3))
    assert run("smooth", "y.csv", "--classes", "3", "--column", "fine", "--out", "b.npy")[0] == 0
    exactly(np.load(tmp_path / "b.npy"), ls.smooth_labels([2, 0], 0.1, num_classes=3))
    np.savez(tmp_path / "y.npz", fine=[2, 0], coarse=[1, 1])
    assert run("smooth", "y.npz", "--classes", "3", "--column", "fine")[0] == 0
    exactly(np.load(tmp_path / "y-targets.npz")["targets"], ls.smooth_labels([2, 0], 0.1, num_classes=3))


def test_priors(run, tmp_path):
    np.save(tmp_path / "y.npy", LABELS)
    np.save(tmp_path / "u.npy", PRIOR)
    np.savez(tmp_path / "u.npz", PRIOR)
    (tmp_path / "u.txt").write_text("".join(f"{share!r}\n" for share in PRIOR.tolist()))
    (tmp_path / "u.csv").write_text(", ".join(map(repr, PRIOR.tolist())))
    frequency = ls.priors.class_frequency(LABELS, K)
    for prior, u in (
        ("uniform", None), ("frequency", frequency), ("u.npy", PRIOR), ("u.npz", PRIOR), ("u.txt", PRIOR), ("u.csv", PRIOR),
    ):  # fmt: skip
        code, out, err = run("smooth", "y.npy", "--classes", K, "-s", ".3", "--prior", prior, "--force", "--json")
        assert (code, err) == (0, "")
        assert json.loads(out)["prior"] == prior
        exactly(np.load(tmp_path / "y-targets.npy"), ls.smooth_labels(LABELS, 0.3, num_classes=K, prior=u))


def test_what_is_printed(run, tmp_path):
    np.save(tmp_path / "y.npy", LABELS)
    code, out, err = run("smooth", "y.npy", "--classes", K, "--dtype", "float16", "--out", "q.parquet")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "labels     y.npy: 1,000 of 7 classes"
    assert lines[1] == "smoothing  0.1, prior uniform"
    assert lines[2].startswith("targets    q.parquet: float16 [1000, 7], 0.0 MB, ")
    code, out, _ = run("smooth", "y.npy", "--classes", K, "--json")
    told = json.loads(out)
    assert (code, told["out"], told["rows"]) == (0, "y-targets.npy", 1000)
    assert told["bytes"] == (tmp_path / "y-targets.npy").stat().st_size


def test_help_imports_nothing_heavy():
    code = """
import sys
from labelsmooth.cli import main
assert main(["smooth", "--help"]) == main(["schedule", "--help"]) == 0
print(sorted({"torch", "numpy", "pyarrow", "matplotlib", "jax"} & set(sys.modules)), file=sys.stderr)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stderr.strip() == "[]"


def test_arrays_need_numpy_alone(tmp_path):
    np.save(tmp_path / "y.npy", LABELS)
    code = """
import sys
from labelsmooth.files import smooth_file
smooth_file("y.npy", num_classes=7, out="q.npz")
print(sorted({"torch", "pyarrow", "PIL", "matplotlib"} & set(sys.modules)))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert result.stdout.strip() == "[]"


def save_objects(path):
    np.save(path, np.array([1, "a"], object), allow_pickle=True)


def bad_zip(path):
    np.savez(path, LABELS)
    data = bytearray(path.read_bytes())
    data[300] ^= 255
    path.write_bytes(data)


MISTAKES = [
    # what the file holds, the file, options, exit code, message
    (None, "gone.npy", [], 3, "there is no file gone.npy"),
    (None, ".", [], 3, "labels are in .npy, .npz, .csv, .parquet"),
    (None, "y.txt", [], 3, "y.txt is of no kind that is read here; labels are in .npy, .npz, .csv, .parquet"),
    (LABELS, "y.npy", [], 2, "num_classes must be given (--classes K) where there are class ids, as in y.npy; got None"),
    (LABELS, "y.npy", ["--classes", "0"], 2, "num_classes must be a whole number of at least 1; got 0"),
    (LABELS, "y.npy", ["--classes", "7.5"], 2, "--classes"),
    (LABELS, "y.npy", ["--classes", "9999999999"], 2, "num_classes must be at most 16777216; got 9999999999"),
    (LABELS, "y.npy", ["--clases", "7"], 2, "Did you mean --classes?"),
    (SOFT, "y.npy", ["--classes", "8"], 2, "num_classes must be left out, or be the 7 classes of the targets in y.npy; got 8"),
    (LABELS, "y.npy", ["--classes", "7", "-s", "1"], 2, "smoothing must be a number in [0, 1); got 1.0"),
    (LABELS, "y.npy", ["--classes", "7", "--dtype", "float8"], 2, 'Invalid value "float8" for --dtype'),
    (LABELS, "y.npy", ["--classes", "7", "--column", "a"], 3, "y.npy is one array, without columns; leave out --column"),
    (LABELS, "y.npy", ["--classes", "7", "--out", "q.txt"], 2, "out must end in one of .npy, .npz, .csv, .parquet; got q.txt"),
    (LABELS, "y.npy", ["--classes", "7", "--out", "no/q.npy"], 2, "out must lie in a folder that exists; got no/q.npy"),
    (LABELS, "y.npy", ["--classes", "7", "--out", "/proc/q.npy"], 2, "out must lie in a folder that can be written to; got /proc/q.npy"),
    (LABELS, "y.npy", ["--classes", "7", "--out", "y.npy", "--force"], 2, "out must be another file than the labels; got y.npy"),
    (LABELS, "y.npy", ["--classes", "7", "--prior", "freqency"], 3,
     "there is no file freqency; a prior is uniform, frequency or a file of K numbers; did you mean frequency?"),
    (LABELS, "y.npy", ["--classes", "7", "--prior", "y.npy"], 3, "y.npy: prior must have shape (7,), a share for each class; got (1000,)"),
    (np.array([0, 7, 1]), "y.npy", ["--classes", "7"], 3, "row 1 (from 0) of y.npy has the label 7; of 7 classes, the ids are 0..6"),
    (np.array([0, 1, -100]), "y.npy", ["--classes", "7"], 3, "row 2 (from 0) of y.npy has the label -100; of 7 classes"),
    (np.array([0, 2**64 - 1], np.uint64), "y.npy", ["--classes", "7"], 3, "has the label 18446744073709551615; of 7"),
    (np.array([0, 1.5]), "y.npy", ["--classes", "7"], 3, "row 1 (from 0) of y.npy has the label 1.5, which is no whole number"),
    (np.array([0, np.nan]), "y.npy", ["--classes", "7"], 3, "row 1 (from 0) of y.npy has the label nan, which is no whole number"),
    (np.array(["cat"]), "y.npy", ["--classes", "7"], 3, "y.npy holds text; class ids are the whole numbers 0..K-1"),
    (np.zeros(2, complex), "y.npy", ["--classes", "7"], 3, "y.npy holds complex128; labels are whole numbers"),
    (np.zeros((2, 2, 2)), "y.npy", [], 3, "y.npy has the shape (2, 2, 2); labels are [N] or [N, 1], one-hot rows and targets [N, K]"),
    (np.array(1), "y.npy", [], 3, "y.npy has the shape ()"),
    (np.zeros((3, 0)), "y.npy", [], 3, "y.npy has the shape (3, 0), without any class"),
    (np.zeros(0, int), "y.npy", ["--classes", "7"], 3, "y.npy is empty: there are no labels to smooth"),
    (np.full((3, 2), 0.4), "y.npy", [], 3, "row 0 (from 0) of y.npy sums to 0.8 over the classes; targets sum to 1"),
    (np.array([[0.5, 0.5], [1.5, -0.5]]), "y.npy", [], 3, "row 1 (from 0) of y.npy holds -0.5; targets are not negative"),
    (np.array([[0.5, np.nan]]), "y.npy", [], 3, "row 0 (from 0) of y.npy holds nan"),
    (np.array([[0, 1], [1, 1]]), "y.npy", [], 3, "row 1 (from 0) of y.npy is [1 1], which is no one-hot row"),
    (np.full((2, 2), 0.5, np.longdouble), "y.npy", [], 2, "dtype must be given for targets of float128; got None"),
    (save_objects, "y.npy", ["--classes", "7"], 3, "y.npy holds Python objects, which are not loaded"),
    (b"", "y.npy", ["--classes", "7"], 3, "y.npy is no readable .npy file ("),
    (b"\x93NUMPY\x01\x00v\x00{'descr", "y.npy", ["--classes", "7"], 3, "y.npy is no readable .npy file ("),
    (b"", "y.npz", ["--classes", "7"], 3, "y.npz is no readable .npz file ("),
    (bad_zip, "y.npz", ["--classes", "7"], 3, "arr_0 in y.npz cannot be read (Bad CRC-32"),
    ({"a": LABELS, "b": LABELS}, "y.npz", ["--classes", "7"], 3, "y.npz has no array called labels; it holds a, b; --column names one"),
    ({"fine": LABELS, "b": LABELS}, "y.npz", ["--classes", "7", "--column", "fin"], 3,
     "y.npz has no array 'fin', which --column names; did you mean fine?; it holds fine, b"),
    (b"", "y.csv", ["--classes", "7"], 3, "y.csv is no readable CSV file (Empty CSV file)"),
    (b"label\n", "y.csv", ["--classes", "7"], 3, "the column label of y.csv is empty: there are no labels to smooth"),
    (b"a,lable\n1,2\n", "y.csv", ["--classes", "7"], 3, "y.csv has no label column (one of label, labels, "),
    (b"a,lable\n1,2\n", "y.csv", ["--classes", "7"], 3, "its columns: a, lable; did you mean lable?; --column names another"),
    (b"2\n1\n0\n", "y.csv", ["--classes", "7"], 3, "its columns: 2; --column names another"),
    (b"fine,b\n1,2\n", "y.csv", ["--classes", "7", "--column", "fin"], 3,
     "y.csv has no column 'fin', which --column names; did you mean fine?; its columns: fine, b"),
    (b"label,label\n1,2\n", "y.csv", ["--classes", "7"], 3, "y.csv has 2 columns label; rename all but one"),
    (b"x,label\na,1\n\n\"b\nc\",cat\n", "y.csv", ["--classes", "7"], 3,
     "line 4 of y.csv has the label 'cat', which is no whole number; class ids are 0..K-1"),
    (b"x,label\n\"a\nb\",1\nc,1.5\n", "y.csv", ["--classes", "7"], 3, "line 4 of y.csv has the label '1.5', which is no whole number"),
    (b"x,label\na,1\nb,\n", "y.csv", ["--classes", "7"], 3, "line 3 of y.csv has no label"),
    (b"label\n1\n7\n", "y.csv", ["--classes", "7"], 3, "line 3 of y.csv has the label 7; of 7 classes, the ids are 0..6"),
    (b"label\n1\n99999999999999999999\n", "y.csv", ["--classes", "7"], 3, "line 3 of y.csv has the label 99999999999999999999, which is no class id"),
    (b"a,label\n1,2\n3\n", "y.csv", ["--classes", "7"], 3, "y.csv is no readable CSV file (CSV parse error"),
    (b"a,label\n\xff,2\n", "y.csv", ["--classes", "7"], 3, "y.csv is no readable CSV file ("),
    (b"label,target_2\n1,2\n", "y.csv", ["--classes", "7"], 3, "y.csv has a column target_2 already, which is what targets are called"),
    (b"no", "y.parquet", ["--classes", "7"], 3, "y.parquet is no readable parquet file ("),
    ({"a": [1]}, "y.parquet", ["--classes", "7"], 3, "y.parquet has no label column"),
    ({"label": [1, None, 3]}, "y.parquet", ["--classes", "7"], 3, "row 1 (from 0) of the column label of y.parquet has no label"),
    ({"label": [1, 2, 9]}, "y.parquet", ["--classes", "7"], 3, "row 2 (from 0) of the column label of y.parquet has the label 9; of 7"),
    ({"label": ["1", "dog"]}, "y.parquet", ["--classes", "7"], 3, "row 1 (from 0) of the column label of y.parquet has the label 'dog'"),
    ({"label": [{"a": 1}]}, "y.parquet", ["--classes", "7"], 3, "the column label of y.parquet is of struct<a: int64>; labels are whole"),
    ({"label": [[0.5, 0.5], [1.0]]}, "y.parquet", [], 3, "row 1 (from 0) of the column label of y.parquet has 1 values; the first row has one for each of 2"),
    ({"label": [[0.5, 0.5], [1.0, None]]}, "y.parquet", [], 3, "row 1 (from 0) of the column label of y.parquet lacks a value"),
    ({"label": [[0.5, 0.5], None]}, "y.parquet", [], 3, "row 1 (from 0) of the column label of y.parquet has no label"),
    ({"label": [[0.5, 0.5], [0.5, 0.6]]}, "y.parquet", [], 3, "row 1 (from 0) of the column label of y.parquet sums to 1.1"),
    ({"label": [1], "targets": [2]}, "y.parquet", ["--classes", "7"], 3, "y.parquet has a column targets already"),
    ({"label": [1], "image": [b"x"]}, "y.parquet", ["--classes", "7", "--out", "q.csv"], 2,
     "out must be no .csv file where a column is neither text nor numbers; got image of binary"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "name", "options", "code", "message"), MISTAKES)
def test_mistakes(content, name, options, code, message, run, tmp_path):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, np.ndarray):
        np.save(path, content)
    elif isinstance(content, dict):
        np.savez(path, **content) if path.suffix == ".npz" else pq.write_table(pa.table(content), path)
    elif content is not None:
        content(path)
    before = {item.name: item.read_bytes() for item in tmp_path.iterdir()}
    got, out, err = run("smooth", name, *options)
    assert (got, out) == (code, "")
    assert err.startswith("labelsmooth: ")
    assert message in err
    assert "Traceback" not in err
    assert {item.name: item.read_bytes() for item in tmp_path.iterdir()} == before


def test_what_is_there_is_replaced_only_by_force(run, tmp_path):
    np.save(tmp_path / "y.npy", LABELS)
    (tmp_path / "y-targets.npy").write_text("mine")
    code, _, err = run("smooth", "y.npy", "--classes", K)
    assert code == 2
    assert "out must be a file that is not there yet (overwrite=True or --force replaces it); got y-targets.npy" in err
    assert (tmp_path / "y-targets.npy").read_text() == "mine"
    assert run("smooth", "y.npy", "--classes", K, "--force")[0] == 0
    assert np.load(tmp_path / "y-targets.npy").shape == (1000, K)
    os.link(tmp_path / "y.npy", tmp_path / "link.npy")
    assert "another file than the labels" in run("smooth", "y.npy", "--classes", K, "--out", "link.npy", "--force")[2]
    (tmp_path / "folder.npy").mkdir()
    assert "out must be a file; got folder.npy" in run("smooth", "y.npy", "--classes", K, "--out", "folder.npy")[2]
    assert "folder.npy is no file that can be read twice" in run("smooth", "folder.npy", "--classes", K)[2]


def test_a_bad_label_late_leaves_the_old_file(run, tmp_path, small_batches):
    labels = LABELS.copy()
    labels[999] = K
    for suffix in smooth.SUFFIXES:
        path = write_labels(tmp_path / f"y{suffix}", labels)
        for to in smooth.SUFFIXES:
            if (suffix, to) == (".parquet", ".csv"):
                continue
            (tmp_path / f"old{to}").write_text("old")
            with pytest.raises(DataError, match=rf"has the label {K}; of {K} classes"):
                smooth_file(path, num_classes=K, out=tmp_path / f"old{to}", overwrite=True)
            assert (tmp_path / f"old{to}").read_text() == "old"
    assert not [item for item in tmp_path.iterdir() if item.name.startswith(".")]


def test_a_file_that_is_cut_off_or_changes(tmp_path, monkeypatch, small_batches):
    np.save(tmp_path / "y.npy", LABELS)
    data = (tmp_path / "y.npy").read_bytes()
    (tmp_path / "y.npy").write_bytes(data[:-1])
    with pytest.raises(DataError, match=r"y.npy is cut off: it has 8127 bytes of 8128"):
        smooth_file(tmp_path / "y.npy", num_classes=K)
    with zipfile.ZipFile(tmp_path / "y.npz", "w") as archive:
        archive.writestr("labels.npy", data[:-8])
    with pytest.raises(DataError, match=r"labels in .*y.npz is cut off: it has 7992 bytes of 8000"):
        smooth_file(tmp_path / "y.npz", num_classes=K)
    file = io.BytesIO()
    np.save(file, np.asfortranarray(SOFT))
    with zipfile.ZipFile(tmp_path / "f.npz", "w") as archive:
        archive.writestr("y.npy", file.getvalue()[:-8])
    with pytest.raises(DataError, match=r"y in .*f.npz is cut off: it has 55992 bytes of 56000"):
        smooth_file(tmp_path / "f.npz")
    write_labels(tmp_path / "y.csv")
    passes = []

    def tell(text, done, count):
        if text == "counting" and done == 1000:
            with (tmp_path / "y.csv").open("a") as file:
                file.write("x,1,\n")
        passes.append(text)

    with pytest.raises(DataError, match=r"y.csv has changed while it was read: it had 1000 rows, and then 1001"):
        smooth_file(tmp_path / "y.csv", num_classes=K, out=tmp_path / "q.npy", progress=tell)
    assert set(passes) == {"counting", "smoothing"}
    assert not (tmp_path / "q.npy").exists()


@pytest.mark.parametrize("to", smooth.SUFFIXES)
def test_a_full_disk_leaves_nothing(to, tmp_path):
    """Here the limit of a file's size stands for it, which the system enforces inside every writer."""
    np.save(tmp_path / "y.npy", np.random.default_rng(0).integers(0, 500, 5000))
    code = f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, 5_000))
from labelsmooth.cli import main
sys.exit(main(["smooth", "y.npy", "--classes", "500", "--out", "q{to}"]))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    assert result.stderr == f"labelsmooth: File too large; nothing of the targets is kept: q{to}\n"
    assert [item.name for item in tmp_path.iterdir()] == ["y.npy"]


def test_too_much_for_the_disk_is_known_before(tmp_path, monkeypatch):
    np.save(tmp_path / "y.npy", LABELS)
    monkeypatch.setattr(smooth.shutil, "disk_usage", lambda folder: type("usage", (), {"free": 20_000}))
    for to in (".npy", ".npz"):
        with pytest.raises(
            OSError, match=r"2.8e-05 GB of targets do not fit into the 2e-05 GB that are free there"
        ) as info:
            smooth_file(tmp_path / "y.npy", num_classes=K, out=tmp_path / f"q{to}")
        assert info.value.errno == errno.ENOSPC
    assert [item.name for item in tmp_path.iterdir()] == ["y.npy"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_leaves_nothing(number, tmp_path):
    np.lib.format.open_memmap(
        tmp_path / "y.npy", mode="w+", dtype=np.int8, shape=(200_000_000,)
    ).flush()  # sparse zeros
    process = subprocess.Popen(
        [*COMMAND, "smooth", "y.npy", "--classes", "9", "--out", "q.parquet"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "labelsmooth: interrupted\n")
    assert [item.name for item in tmp_path.iterdir()] == ["y.npy"]


def test_a_bar_on_a_terminal(tmp_path):
    """On stderr, and gone at the end; stdout holds the words alone."""
    write_labels(tmp_path / "y.csv")
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "smooth", "y.csv", "--classes", str(K), "--json"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=theirs,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "100"},
    )  # fmt: skip
    os.close(theirs)
    seen = b""
    try:
        while data := os.read(ours, 4096):
            seen += data
    except OSError:  # the other end is closed
        pass
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert json.loads(out)["rows"] == 1000
    assert b"counting: 1,000 rows" in seen
    assert b"smoothing" in seen
    assert b"1000/1000" in seen
    os.close(ours)


def test_memory_does_not_grow_with_the_file(tmp_path):
    """Six times the labels in the same memory: the peak of a process, from its start. 10,000,000: bench_smooth."""
    code = """
import sys
from pathlib import Path
from labelsmooth.files import smooth_file, tables
tables._BLOCK = 1 << 17  # so that the shorter file has many of them too
smooth_file(sys.argv[1], num_classes=20, dtype="float16", prior="frequency", out=sys.argv[2], overwrite=True)
lines = Path("/proc/self/status").read_text().splitlines()
print(next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) // 1024)
"""
    if not os.path.exists("/proc/self/status"):
        pytest.skip("no /proc here")
    peaks = {}
    for count in (200_000, 1_200_000):
        ids = np.random.default_rng(0).integers(0, 20, count)
        np.save(tmp_path / "y.npy", ids)
        np.savez_compressed(tmp_path / "y.npz", ids.astype(np.int8))
        pcsv.write_csv(pa.table({"label": ids}), tmp_path / "y.csv")
        for path, out in (("y.npy", "q.npy"), ("y.npz", "q.npz"), ("y.csv", "q.npy")):
            command = [sys.executable, "-c", code, path, out]
            result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
            peaks[path, count] = int(result.stdout)
    for path in ("y.npy", "y.npz", "y.csv"):
        assert peaks[path, 1_200_000] <= peaks[path, 200_000] + 16, peaks


def test_the_message_of_a_wide_one_hot_row_is_short():
    wide = np.zeros((1, 1000), int)
    given = source.Source.__new__(type("Some", (source.Source,), {"batches": None}))
    given.name, given.width = "y.npy", 1000
    with pytest.raises(DataError, match=r"is \[0 0 0 \.\.\. 0 0 0\], which is no one-hot row"):
        source.checked(given, wide, 0, 1000)


def test_the_library_names_what_it_is_given(tmp_path):
    np.save(tmp_path / "y.npy", LABELS)
    for options, message in (
        ({"dtype": "int8"}, "dtype must be one of 'float16', 'float32', 'float64'; got 'int8'"),
        ({"prior": [0.5, 0.5]}, r"prior must have shape \(7,\), a share for each class; got \(2,\)"),
        ({"prior": np.full(K, 0.2)}, "prior must be non-negative and sum to 1 over the classes; got a sum of 1.4"),
        ({"prior": ["a"] * K}, "prior must hold numbers; got dtype <U1"),
    ):
        with pytest.raises(ValueError, match=message):
            smooth_file(tmp_path / "y.npy", num_classes=K, **options)
    (tmp_path / "u.txt").write_text("label\n0.5\n")
    with pytest.raises(DataError, match="u.txt is no readable file of a prior .*label"):
        smooth_file(tmp_path / "y.npy", num_classes=K, prior=tmp_path / "u.txt")
    np.savez(tmp_path / "u.npz", a=PRIOR, b=PRIOR)
    with pytest.raises(DataError, match="it holds a, b; it must hold an array prior, or one alone"):
        smooth_file(tmp_path / "y.npy", num_classes=K, prior=tmp_path / "u.npz")
