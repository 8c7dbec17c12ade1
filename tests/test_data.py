"""Reading images and splitting them: every format that a user has, and every way in which it can be broken."""

import functools
import http.server
import io
import json
import os
import shutil
import tarfile
import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from labelsmooth._errors import DataError
from labelsmooth.training import cifar10, images, load
from labelsmooth.training.data import Progress


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "png")
    return buffer.getvalue()


def write(path, blobs, labels, names=None, column="img"):
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [blob if isinstance(blob, dict) or blob is None else {"bytes": blob, "path": None} for blob in blobs]
    table = pa.table({column: pa.array(rows, kind), "label": pa.array(labels)})
    if names:
        features = {
            "info": {"features": {column: {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}}
        }
        table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    pq.write_table(table, path, row_group_size=7)
    return path


def pictures(n, seed=0, size=9, channels=3):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, size, size, channels), np.uint8).squeeze()


@pytest.fixture
def folder(tmp_path):
    """20 training and 10 test images of two named classes."""
    for name, n in (("train", 20), ("test", 10)):
        write(
            tmp_path / f"{name}.parquet",
            [png(x) for x in pictures(n, seed=n)],
            [i % 2 for i in range(n)],
            ["cat", "dog"],
        )
    return tmp_path


def test_digits():
    data = load("digits")
    assert (len(data.train), len(data.val), len(data.test)) == (1293, 144, 360)
    assert data.image_shape == (8, 8, 1)
    assert data.classes == tuple("0123456789")
    assert data.train.images.dtype == np.uint8
    assert data.train.images.max() == 255
    for counts in data.describe()["class_counts"].values():
        assert max(counts) - min(counts) <= max(4, 0.06 * sum(counts))  # stratified


def test_splits_share_nothing_and_the_test_set_is_the_same_for_every_seed():
    first, again, other = load("digits", seed=1), load("digits", seed=1), load("digits", seed=2)
    everything = np.concatenate([first.train.index, first.val.index])
    assert len(np.unique(everything)) == len(everything)
    assert np.array_equal(first.val.images, again.val.images)
    assert not np.array_equal(first.val.images, other.val.images)
    assert np.array_equal(first.test.images, other.test.images)
    rows = [{x.tobytes() for x in split.images} for split in (first.train, first.val, first.test)]
    assert not rows[0] & rows[1]
    assert not (rows[0] | rows[1]) & rows[2]
    assert len(load("digits", val_split=0).val) == 0


def test_a_folder_of_parquet_files(folder):
    data = load(folder)
    assert data.classes == ("cat", "dog")
    assert (len(data.train), len(data.val), len(data.test)) == (18, 2, 10)
    assert np.array_equal(data.test.images, pictures(10, seed=10))
    assert np.array_equal(data.test.labels, [i % 2 for i in range(10)])
    order = np.argsort(np.concatenate([data.train.index, data.val.index]))
    assert np.array_equal(np.concatenate([data.train.images, data.val.images])[order], pictures(20, seed=20))


def test_tables_in_parts(tmp_path):
    """As Hugging Face's `datasets` writes them."""
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    blobs, labels = [png(picture) for picture in pictures(30)], [i % 2 for i in range(30)]
    write(tmp_path / "whole/train.parquet", blobs[:20], labels[:20])
    write(tmp_path / "whole/test.parquet", blobs[20:], labels[20:])
    for split, number, rows in (
        ("train", "00000-of-00002", slice(12)), ("train", "00001-of-00002", slice(12, 20)),
        ("test", "00000-of-00001", slice(20, 30)),
    ):  # fmt: skip
        write(tmp_path / f"parts/{split}-{number}.parquet", blobs[rows], labels[rows])
    whole, parts = load(tmp_path / "whole"), load(tmp_path / "parts")
    assert whole.own_splits == parts.own_splits == ("train", "test")
    for split in ("train", "val", "test"):
        assert np.array_equal(whole.splits[split].images, parts.splits[split].images)
        assert np.array_equal(whole.splits[split].labels, parts.splits[split].labels)
    part = tmp_path / "parts/train-00000-of-00002.parquet"
    shutil.copy(part, tmp_path / "parts/train.parquet")
    with pytest.raises(
        DataError, match="holds train.parquet, train-00000-of-00002.parquet, train-00001.*: not all parts of"
    ):
        load(tmp_path / "parts")
    (tmp_path / "parts/train.parquet").unlink()
    part.unlink()
    with pytest.raises(DataError, match="holds train-00001-of-00002.parquet: not all parts of one train.parquet"):
        load(tmp_path / "parts")


def test_a_validation_file_is_used_as_it_is(folder):
    write(folder / "validation.parquet", [png(x) for x in pictures(4, seed=4)], [0, 1, 0, 1], ["cat", "dog"])
    data = load(folder, val_split=0.5)
    assert (len(data.train), len(data.val)) == (20, 4)


def test_a_single_file_loses_a_test_set(tmp_path):
    path = write(tmp_path / "all.parquet", [png(x) for x in pictures(50)], [f"class {i % 2}" for i in range(50)])
    data = load(path)
    assert data.name == "all"
    assert data.classes == ("class 0", "class 1")
    assert (len(data.train), len(data.val), len(data.test)) == (36, 4, 10)


def test_kinds_of_images(tmp_path):
    grey, colour = pictures(1, size=8, channels=1), pictures(1, size=8)
    Image.fromarray(colour).save(tmp_path / "colour.png")
    rotated = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.fromarray(colour).save(rotated, "png", exif=exif)
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    buffer = io.BytesIO()
    deep.save(buffer, "png")
    clear = np.dstack([colour, np.zeros((8, 8), np.uint8)])
    sources = [png(grey), png(colour), tmp_path / "colour.png", rotated.getvalue(), buffer.getvalue(), png(clear)]
    file = io.BytesIO()
    items = images.Items(6, lambda: sources, lambda number: f"image {number}")
    shape, rest = images.decode_all(items, None, file, lambda done, count: None)
    assert shape == (8, 8, 3)
    assert rest.kept.tolist() == list(range(6))
    decoded = np.frombuffer(file.getbuffer(), np.uint8).reshape(6, *shape)
    as_rgb = np.repeat(grey[..., None], 3, axis=-1)
    expected = [as_rgb, colour, colour, np.rot90(colour, -1), as_rgb, np.full_like(colour, 255)]
    for i, image in enumerate(expected):
        assert np.array_equal(decoded[i], image), i
    assert images.decode(png(grey), "an image").shape == (8, 8, 1)
    assert images.decode(png(grey), "an image", channels=3).shape == (8, 8, 3)
    assert images.decode(png(colour), "an image", channels=1).shape == (8, 8, 1)


def test_a_label_that_is_an_image_is_named_in_short(tmp_path):
    blobs = [png(x) for x in pictures(4, size=60)]
    write(tmp_path / "all.parquet", blobs, blobs)
    with pytest.raises(DataError, match=r"has the label b'\\x89PNG.*\.\.\., which is no class id and no name") as error:
        load(tmp_path / "all.parquet")
    assert len(str(error.value)) < 400


def test_paths_and_plain_bytes_as_columns(tmp_path):
    for i, x in enumerate(pictures(20)):
        Image.fromarray(x).save(tmp_path / f"{i}.png")
    paths = pa.table(
        {"file_name": [f"{i}.png" for i in range(20)], "class": [i % 2 for i in range(20)], "note": ["x"] * 20}
    )
    pq.write_table(paths, tmp_path / "paths.parquet")
    blobs = pa.table({"data": [png(x) for x in pictures(20)], "y": pa.array(["b", "a"] * 10).dictionary_encode()})
    pq.write_table(blobs, tmp_path / "blobs.parquet")
    one, other = load(tmp_path / "paths.parquet"), load(tmp_path / "blobs.parquet")
    everything = [np.concatenate([d.train.images, d.val.images, d.test.images]).astype(int).sum() for d in (one, other)]
    assert everything[0] == everything[1] == pictures(20).astype(int).sum()
    assert other.classes == ("a", "b")


def test_image_size(folder):
    blobs = [png(pictures(1, size=8 + i)) for i in range(20)]
    write(folder / "train.parquet", blobs, [i % 2 for i in range(20)])
    notes = []
    assert load(folder, progress=Progress(note=notes.append)).image_shape == (
        12,
        12,
        3,
    )  # the median, the test images counted
    assert notes == ["images of 8x8 to 27x27 are resized to 12x12 (--image-size chooses another)"]
    data = load(folder, image_size=12)
    assert data.image_shape == (12, 12, 3)
    assert np.array_equal(load(folder, image_size=12).train.images, data.train.images)
    assert load("digits", image_size=16).image_shape == (16, 16, 1)
    write(folder / "test.parquet", [png(x) for x in pictures(4, size=7)], [0, 1, 0, 1])
    write(folder / "train.parquet", [png(x) for x in pictures(20, size=6)], [i % 2 for i in range(20)])
    assert load(folder).image_shape == (8, 8, 3)  # no smaller than any recipe takes
    for name, sides in (("train", [200] * 20), ("test", [200] * 4)):
        write(folder / f"{name}.parquet", [png(pictures(1, size=n)) for n in sides], [i % 2 for i in range(len(sides))])
    assert load(folder).image_shape == (64, 64, 3)


def test_images_named_by_path_are_read_again_when_they_change(tmp_path):
    def fill(folder, shade):
        folder.mkdir(exist_ok=True)
        for i in range(20):
            Image.fromarray(np.full((6, 6, 3), shade, np.uint8)).save(folder / f"{i}.png")
        table = pa.table({"image": [f"{i}.png" for i in range(20)], "label": [i % 2 for i in range(20)]})
        pq.write_table(table, folder / "train.parquet")
        return load(folder)

    first, other = fill(tmp_path / "a", 10), fill(tmp_path / "b", 200)
    assert (int(first.train.images.max()), int(other.train.images.max())) == (10, 200)
    changed = fill(tmp_path / "a", 30)
    assert int(changed.train.images.max()) == 30
    assert len({first.digest, other.digest, changed.digest}) == 3


def test_class_names_are_matched_by_name_between_splits(folder):
    blobs = [png(x) for x in pictures(10)]
    write(folder / "test.parquet", blobs, [0, 1] * 5, ["dog", "cat"])
    data = load(folder)
    assert data.classes == ("cat", "dog")
    assert data.test.labels.tolist() == [1, 0] * 5
    write(folder / "test.parquet", blobs, [0, 1] * 5, ["dog", "fish"])
    with pytest.raises(
        DataError, match=r"the test split of .* names other classes \(dog, fish\) than the others \(cat, dog\)"
    ):
        load(folder)


# The cache.


def test_images_are_decoded_once(folder, monkeypatch):
    first = load(folder)
    monkeypatch.setattr(images, "decode", lambda *args: pytest.fail("decoded again"))
    assert np.array_equal(load(folder).train.images, first.train.images)


def test_a_damaged_cache_is_made_anew_and_an_unwritable_one_done_without(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("LABELSMOOTH_CACHE", str(tmp_path / "own"))
    first, notes = load(folder), []
    for file in (tmp_path / "own").rglob("images.npy"):
        file.write_bytes(file.read_bytes()[:-10])
    again = load(folder, progress=Progress(note=notes.append))
    assert np.array_equal(again.train.images, first.train.images)
    assert len(notes) == 1
    assert "is damaged" in notes[0]
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LABELSMOOTH_CACHE", str(tmp_path / "file"))
    notes.clear()
    assert np.array_equal(load(folder, progress=Progress(note=notes.append)).train.images, first.train.images)
    assert all("could not be cached" in note for note in notes)


# What is broken.


def test_missing_and_damaged_files(folder, tmp_path):
    with pytest.raises(DataError, match=r"there is no file .*nowhere.parquet"):
        load(tmp_path / "nowhere.parquet")
    with pytest.raises(
        DataError, match=r"there is no nothing; give digits, cifar10, a folder with a sub-folder per class"
    ):
        load("nothing")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"notes.txt is no data that can be read"):
        load(tmp_path / "notes.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no images in sub-folders, one per class; its sub-folders: none"):
        load(tmp_path / "empty")
    whole = (folder / "train.parquet").read_bytes()
    for damaged in (whole[:-20], whole[:4] + b"\0" * (len(whole) - 8) + whole[-4:], b"", b"PAR1"):
        (folder / "train.parquet").write_bytes(damaged)
        with pytest.raises(DataError, match=r"train.parquet is (no readable parquet file|damaged after row \d+)"):
            load(folder)


def test_damage_in_the_middle_is_found(folder):
    blob = bytearray((folder / "train.parquet").read_bytes())
    blob[60:4000] = os.urandom(3940)
    (folder / "train.parquet").write_bytes(blob)
    with pytest.raises(DataError, match=r"train.parquet"):
        load(folder)


@pytest.mark.parametrize("broken", ["text", "cut", "empty", "none", "gone"])
def test_an_image_that_cannot_be_decoded_is_named(folder, broken):
    blobs = [png(x) for x in pictures(20)]
    blobs[13] = {
        "text": b"this is no image", "cut": blobs[13][:60], "empty": b"", "none": None,
        "gone": {"bytes": None, "path": "gone.png"},
    }[broken]  # fmt: skip
    write(folder / "train.parquet", blobs, [i % 2 for i in range(20)])
    with pytest.raises(
        DataError, match=r"row 13 of .*train.parquet( \(.*/gone.png\): there is no| cannot be decoded| has no image)"
    ):
        load(folder)


def test_a_decompression_bomb_is_refused(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("LABELSMOOTH_CACHE", str(tmp_path / "own"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(DataError, match=r"row 0 of .* cannot be decoded: Image size"):
        load(folder)


def test_columns_and_labels_that_are_wrong(folder):
    path = folder / "train.parquet"
    blob = png(pictures(1))
    kind = pa.struct([("bytes", pa.binary())])
    for table, message in (
        ({"label": [0, 1]}, r"has no column of images .*its columns: label \(int64\)"),
        ({"img": pa.array([{"bytes": blob}] * 2, kind), "colour": [0, 1]}, r"has no label column \(one of label, .*colour \(int64\)"),
        ({"img": pa.array([{"bytes": blob}] * 2, kind), "label": [0, None]}, r"row 1 of .* has no label"),
        ({"img": pa.array([{"bytes": blob}] * 2, kind), "label": [0.0, 0.5]}, r"row 1 of .* has the label 0.5, which is no class id"),
        ({"img": pa.array([{"bytes": blob}] * 2, kind), "label": [0, -1]}, r"has the label -1; class ids begin at 0"),
        ({"img": pa.array([{"bytes": blob}] * 2, kind), "label": [0.0, float("inf")]}, r"row 1 of .* has the label inf"),
        ({"img": pa.array([{"bytes": blob}] * 2, kind), "label": pa.array([0, 2**64 - 1], pa.uint64())}, r"row 1 of .* has the label 18446744073709551615"),
        ({"img": pa.array([{"bytes": blob}] * 2, kind), "label": [0, 10**12]}, r"has the label 1000000000000, but names 2 classes only"),
        ({"img": pa.array([], kind), "label": pa.array([], pa.int64())}, r"the train split of .* is empty"),
    ):  # fmt: skip
        pq.write_table(pa.table(table), path)
        with pytest.raises(DataError, match=message):
            load(folder)


def test_classes_that_cannot_be_learned(folder):
    blobs = [png(x) for x in pictures(20)]
    write(folder / "test.parquet", blobs, [i % 2 for i in range(20)])
    for labels, names, message in (
        ([0] * 20, None, r"there is one class only \(0\)"),
        ([0] * 10 + [2] * 10, None, r"1 of the 3 classes of .* has no training example: '1'"),
        ([i % 2 for i in range(20)], ["cat", "dog", "fish"], r"1 of the 3 classes .* no training example: 'fish'"),
        ([0] * 19 + [10**12], None, r"has the label 1000000000000, but 40 examples only; class ids are 0, 1, 2, "),
        ([0] * 19 + [1], None, r"class '1' has one example, too few to split off validation"),
        ([i % 10 for i in range(20)], None, r"a validation split of 0.1 of 20 examples leaves 2 for 10 classes"),
        ([i % 3 for i in range(20)], ["cat", "dog"], r"has the label 2, but names 2 classes only"),
        ([f"c{i % 2}" for i in range(20)], None, r"have labels of different kinds"),
    ):
        write(folder / "train.parquet", blobs, labels, names)
        with pytest.raises(DataError, match=message):
            load(folder)
    write(folder / "train.parquet", blobs, ["a", "c"] * 10)
    write(folder / "test.parquet", blobs, ["a", "b"] * 10)
    with pytest.raises(DataError, match=r"1 of the 3 classes of .* has no training example: 'b'"):
        load(folder, val_split=0)
    for name in ("train", "test"):
        write(folder / f"{name}.parquet", blobs, ["a"] * 20)
    with pytest.raises(DataError, match=r"one class only \(a\)"):
        load(folder, val_split=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_split": 1.0}, r"val_split must be a number in \[0, 1\); got 1.0"),
        ({"val_split": "x"}, r"val_split must be a number in \[0, 1\); got 'x'"),
        ({"image_size": 3}, r"image_size must be a whole number from 4 to 4096; got 3"),
        ({"image_size": 100_000}, r"image_size must be a whole number from 4 to 4096; got 100000"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        load("digits", **options)


# CIFAR-10: the download is real, from a server on this machine.


def archive(n=20, seed=0, names=(*cifar10.TRAIN_FILES, cifar10.TEST_FILE)):
    rng = np.random.default_rng(seed)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name in names:
            rows = rng.integers(0, 256, (n, 3073), np.uint8)
            rows[:, 0] = np.arange(n) % 10
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = rows.size
            tar.addfile(info, io.BytesIO(rows.tobytes()))
    return buffer.getvalue()


@pytest.fixture
def server(tmp_path):
    """(address, folder) of an HTTP server on the loopback interface."""
    (tmp_path / "www").mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format, *args):
            pass

    handler = functools.partial(Quiet, directory=str(tmp_path / "www"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}", tmp_path / "www"
        running.shutdown()
        thread.join()


def test_cifar10_is_downloaded_once_checked_and_read(server, tmp_path, monkeypatch):
    import hashlib

    address, www = server
    monkeypatch.setenv("LABELSMOOTH_CACHE", str(tmp_path / "cache"))
    blob = archive()
    (www / "a.tar.gz").write_bytes(blob)
    sha256 = hashlib.sha256(blob).hexdigest()

    class Bar:
        total = shown = 0

        def update(self, size):
            self.shown += size

        def reset(self):
            self.shown = 0

        def close(self):
            pass

    bar = Bar()
    path = cifar10.fetch(bar, url=f"{address}/a.tar.gz", sha256=sha256)
    assert bar.shown == bar.total == len(blob)
    (www / "a.tar.gz").unlink()
    assert cifar10.fetch(False, url=f"{address}/a.tar.gz", sha256=sha256) == path  # the server is not asked again
    monkeypatch.setattr(cifar10, "SHA256", sha256)
    monkeypatch.setattr(cifar10.fetch, "__kwdefaults__", {"url": f"{address}/a.tar.gz", "sha256": sha256})
    data = load("cifar10")
    assert data.classes == cifar10.CLASSES
    assert (len(data.train), len(data.val), len(data.test)) == (90, 10, 20)
    with tarfile.open(path) as tar:
        test = np.frombuffer(tar.extractfile(f"cifar-10-batches-bin/{cifar10.TEST_FILE}").read(), np.uint8).reshape(
            20, 3073
        )
    assert np.array_equal(data.test.labels, test[:, 0])
    assert np.array_equal(data.test.images[3, :, :, 1], test[3, 1 + 1024 : 1 + 2048].reshape(32, 32))  # green


def test_cifar10_with_another_checksum_leaves_nothing(server, tmp_path, monkeypatch):
    address, www = server
    monkeypatch.setenv("LABELSMOOTH_CACHE", str(tmp_path / "cache"))
    (www / "a.tar.gz").write_bytes(archive())
    with pytest.raises(DataError, match=r"is not the one that it should be .*or put it at"):
        cifar10.fetch(False, url=f"{address}/a.tar.gz")
    assert list((tmp_path / "cache").iterdir()) == []


def test_cifar10_offline_says_how_to_give_a_local_copy(server, tmp_path, monkeypatch):
    address, _ = server
    monkeypatch.setenv("LABELSMOOTH_CACHE", str(tmp_path / "cache"))
    for url in (f"{address}/missing.tar.gz", "http://127.0.0.1:9/a.tar.gz"):
        with pytest.raises(
            DataError, match=r"could not be downloaded .*labelsmooth train cifar-10-binary.tar.gz\), or put it at"
        ):
            cifar10.fetch(False, url=url)


def test_cifar10_from_a_local_archive_or_folder(tmp_path):
    path = tmp_path / cifar10.ARCHIVE
    path.write_bytes(archive())
    data = load(path)
    with tarfile.open(path) as tar:
        tar.extractall(tmp_path, filter="data")
    assert load(tmp_path / "cifar-10-batches-bin").digest == data.digest
    path.write_bytes(archive(names=(*cifar10.TRAIN_FILES[:4], cifar10.TEST_FILE)))
    with pytest.raises(DataError, match=r"holds no data_batch_5.bin; is it CIFAR-10's binary version"):
        load(path)
    path.write_bytes(archive()[:-100])
    with pytest.raises(DataError, match=r"is no readable archive"):
        load(path)
    with pytest.raises(DataError, match=r"^there is no file .*missing.tar.gz$"):
        load(tmp_path / "missing.tar.gz")


def test_the_shared_copy_is_whole(cifar10_copy):
    data = load(cifar10_copy)
    assert (len(data.train), len(data.val), len(data.test)) == (45_000, 5_000, 10_000)
    assert data.classes == cifar10.CLASSES
    assert data.describe()["class_counts"]["test"] == [1000] * 10
    assert data.describe()["class_counts"]["val"] == [500] * 10
