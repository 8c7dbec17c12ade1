"""People's own data: folders of image files, CSV files and arrays, as they come, and as they go wrong."""

import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from labelsmooth import _files
from labelsmooth._errors import DataError
from labelsmooth.cli import main
from labelsmooth.evaluation import load_predictions
from labelsmooth.training import cache, folders, images, load, train
from labelsmooth.training.checkpoints import load_state
from labelsmooth.training.data import Progress
from labelsmooth.training.run import RunFolder
from labelsmooth.training.survey import survey
from tests.test_data import pictures, png

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("LABELSMOOTH_CACHE", str(folder))
    return folder


def tree(root, files):
    """Write {path: image array or bytes} below `root`."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else png(content))
    return root


def classes(prefix="", n=20, names=("cat", "dog"), seed=0, size=9):
    made = pictures(n, seed=seed, size=size)
    return {f"{prefix}{names[i % len(names)]}/{i:03d}.png": made[i] for i in range(n)}


def noted(*args, **kwargs):
    notes = []
    return load(*args, progress=Progress(note=notes.append), **kwargs), notes


# Folders.


def test_a_folder_per_class(tmp_path):
    root = tree(tmp_path / "pets", classes() | {"cat/deeper/still/x.PNG": pictures(1, seed=5)})
    data, notes = noted(root)
    assert notes == []
    assert (data.name, data.classes, data.own_splits) == ("pets", ("cat", "dog"), ("train",))
    assert (len(data.train), len(data.val), len(data.test)) == (14, 2, 5)
    everything = np.concatenate([split.images for split in data.splits.values()])
    order = np.argsort(np.concatenate([split.index for split in data.splits.values()]))
    expected = [pictures(20)[i] for i in range(0, 20, 2)] + [pictures(1, seed=5)] + list(pictures(20)[1::2])
    assert np.array_equal(everything[order], expected)  # by class, then by name, deeper ones last


@pytest.mark.parametrize("validation", ["val", "valid", "Validation"])
def test_a_folder_per_split_with_one_index_for_all(tmp_path, validation):
    names = ("ant", "bee", "cow")
    files = classes("train/", 18, names) | classes("test/", 4, names[1:], seed=1)
    files |= classes(f"{validation}/", 4, names[:2], seed=2)
    data, notes = noted(tree(tmp_path, files))
    assert notes == []
    assert data.classes == names
    assert (len(data.train), len(data.val), len(data.test)) == (18, 4, 4)
    assert set(data.test.labels) == {1, 2}  # a class may be missing in a split
    assert set(data.val.labels) == {0, 1}
    assert np.array_equal(np.sort(data.test.images.sum((1, 2, 3))), np.sort(pictures(4, seed=1).sum((1, 2, 3))))


def test_what_is_no_image_is_counted_and_left_out(tmp_path):
    files = classes() | {
        "cat/.hidden.png": pictures(1), "cat/Thumbs.db": b"x", "cat/notes.txt": b"x", "dog/more.json": b"{}",
        "dog/.git/a.png": pictures(1), "loose.png": pictures(1), "README.md": b"x",
        "cat/cut.png": png(pictures(1))[:70], "cat/empty.jpg": b"", "dog/text.jpg": b"this is text",
    }  # fmt: skip
    data, notes = noted(tree(tmp_path / "pets", files))
    assert sum(len(split) for split in data.splits.values()) == 20
    skipped = "\n".join(data.skipped)
    for line in (
        "3 hidden or junk entries: ", "3 files that are no images: ", "1 image in no class folder: ",
        "cut.png cannot be decoded: ", "empty.jpg cannot be decoded: it is empty",
        "text.jpg cannot be decoded: it is no image of a format that Pillow knows",
    ):  # fmt: skip
        assert line in skipped
    assert len(data.skipped) == 6
    assert notes[0].startswith("left out: ")
    assert notes[0].endswith("; and 3 more (all in data.json)")
    assert json.loads(json.dumps(data.describe()))["skipped"] == list(data.skipped)
    assert np.array_equal(load(tmp_path / "pets").train.images, data.train.images)  # from the cache
    assert load(tmp_path / "pets").skipped == data.skipped


def test_links_circles_and_names(tmp_path):
    root = tree(tmp_path / "pets", classes())
    (root / "cat" / "circle").symlink_to(root / "cat")
    (root / "cat" / "itself.png").symlink_to(root / "cat" / "itself.png")
    (root / "cat" / "nowhere.png").symlink_to("gone.png")
    (root / "dog" / "linked.png").symlink_to(tree(tmp_path / "elsewhere", {"a.png": pictures(1, seed=9)}) / "a.png")
    (root / "cat" / "up").symlink_to("..")  # to where other classes are
    os.mkfifo(root / "dog" / "pipe.png")
    odd = os.fsencode(root / "dog") + b"/caf\xe9\nnew\x1b[31mline.png"
    with open(odd, "wb") as file:
        file.write(png(pictures(1, seed=8)))
    with open(os.fsencode(root / "dog") + b"/bad\xff\n.png", "wb"):
        pass
    data = load(root)
    assert sum(len(split) for split in data.splits.values()) == 22
    skipped = "\n".join(data.skipped)
    assert "2 symbolic links that lead in a circle" in skipped
    assert skipped.count("leads nowhere") + skipped.count("cannot be opened") == 2
    assert "1 entry that is neither file nor folder" in skipped
    assert r"bad\xff\n.png cannot be decoded: it is empty" in skipped
    assert len(data.skipped) == len(skipped.splitlines())


def test_links_to_where_the_data_lie_bring_nothing_in(tmp_path):
    root = tree(tmp_path / "all" / "pets", classes()) / "cat"
    tree(tmp_path / "all" / "other", classes())
    (root / "above").symlink_to(tmp_path / "all")  # which has more than pets in it
    assert len(load(root.parent).train.labels) == 14
    assert folders.search(str(root)).lines() == (f"1 symbolic link that leads in a circle: {root}/above",)
    assert len(folders.search(str(root)).files) == 10


def test_data_that_may_not_be_opened(tmp_path, monkeypatch):
    def refuse(path):  # as a folder without permissions does, but not to root, as whom tests may run
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", refuse)
    with pytest.raises(DataError, match=r"^/.* cannot be opened \(Permission denied\)$"):
        load(tmp_path)


def test_a_column_is_asked_of_what_has_none(tmp_path):
    root, array = tree(tmp_path / "pets", classes()), tmp_path / "a.npz"
    np.savez(array, images=np.zeros((4, 8, 8), np.uint8), labels=[0, 1, 0, 1])
    for source in ("digits", "cifar10", root, array):
        with pytest.raises(DataError, match=r"is no table with columns, of which --label-column y would name one"):
            load(source, label_column="y")
    with pytest.raises(DataError, match=r"^digits .* --image-column x"):
        load("digits", image_column="x")
    with pytest.raises(DataError, match=r"^there is no .*gone; give digits"):
        load(tmp_path / "gone", image_column="x")


@pytest.mark.parametrize("name", ["a.npz", "a.parquet", "a.csv", "a.tar.gz"])
def test_a_file_that_must_not_be_read_is_not_called_damaged(name, tmp_path, monkeypatch):
    (tmp_path / name).write_bytes(b"PK")

    def refuse(path, *_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    for module, opener in ((Path, "open"), (pq, "read_schema"), (tarfile, "open")):
        monkeypatch.setattr(module, opener, refuse)
    with pytest.raises(DataError, match=rf"/{name} cannot be opened \(Permission denied\)$"):
        load(tmp_path / name)
    (tmp_path / "folder").mkdir()
    (tmp_path / name).rename(tmp_path / "folder" / f"train.{name[2:]}")
    if name in ("a.parquet", "a.csv"):
        with pytest.raises(DataError, match=rf"/train.{name[2:]} cannot be opened"):
            load(tmp_path / "folder")


@pytest.fixture
def refused(monkeypatch):
    """Makes Python refuse to open some files, as a system does to who may not; root may open any."""
    original = io.open

    def refuse(*paths):
        def opened(file, *arguments, **options):
            if not isinstance(file, int) and Path(os.fsdecode(file)) in paths:
                raise PermissionError(13, "Permission denied", str(file))
            return original(file, *arguments, **options)

        monkeypatch.setattr("io.open", opened)
        monkeypatch.setattr("builtins.open", opened)

    return refuse


def test_a_run_whose_files_must_not_be_read(refused, tmp_path):
    run = train("digits", epochs=1, out=tmp_path).folder
    test, best, told = (
        run / name for name in
        ("predictions/test.npz", "checkpoints/best.safetensors", "data.json")
    )  # fmt: skip
    np.save(tmp_path / "logits.npy", np.zeros((2, 2)))
    np.save(tmp_path / "labels.npy", np.zeros(2, np.int64))
    refused(test, best, told, tmp_path / "logits.npy")
    for read, path in (
        (lambda: load_predictions(test), test), (lambda: load_predictions(tmp_path), tmp_path / "logits.npy"),
        (lambda: load_state(best), best), (lambda: RunFolder(run).read_json("data.json"), told),
        (lambda: load("digits", noise=test), test),
    ):  # fmt: skip
        with pytest.raises(
            DataError, match=f"^(the checkpoint )?{re.escape(str(path))} cannot be opened .Permission denied.$"
        ):
            read()
    assert main(["evaluate", str(run)]) == 3
    assert main(["predict", str(run), str(test)]) == 3


@pytest.mark.parametrize(
    ("source", "message"),
    [("", "no data are named; give digits"), ("digit", "there is no digit; did you mean digits?; give digits, cifar10"),
     ("cifar-10", "there is no cifar-10; did you mean cifar10?; give"), ("pets", "there is no pets; give digits")],
)  # fmt: skip
def test_data_that_are_not_there(source, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tree(tmp_path, classes()))
    with pytest.raises(DataError, match=f"^{re.escape(message)}"):
        load(source)


def test_class_names_of_any_bytes(tmp_path):
    root = tree(tmp_path, classes())
    os.rename(os.fsencode(root / "dog"), os.fsencode(root) + b"/d\xf6g\n\t<b>")
    data = load(root)
    assert data.classes == ("cat", r"d\xf6g\n\t<b>")
    json.dumps(data.describe(), ensure_ascii=False).encode()


def test_folders_that_hold_no_data(tmp_path):
    for files, message in (
        ({"a.png": pictures(1)}, r"holds no images in sub-folders, one per class; its sub-folders: none \(1 image in no"),
        ({"cat/a.txt": b"x", "dog/b.txt": b""}, r"its sub-folders: cat, dog \(2 files that are no images: .*a.txt, .*b.txt\)"),
        (classes("train/") | {"test/cat/notes.txt": b"x"}, r"test holds no images in sub-folders.* its sub-folders: cat"),
        (classes("train/") | classes("val/") | classes("valid/"), r"has val and valid for the val split; keep one"),
        (classes(names=("cat",)), r"one class only \('?cat"),
        (classes(names=("cat",)) | {"cat/a.txt": b"x"}, r"one class only \(cat\).* \(left out: 1 file that is no image"),
        ({**classes(), "cow/a.png": pictures(1)}, r"class 'cow' has one example, too few to split off test"),
        (classes("train/") | classes("test/", names=("cat", "cow")), r"1 of the 3 classes .* has no training example: 'cow'"),
        (classes(names=("Cat", "cat")), r"the classes 'Cat' and 'cat' differ by letter case only; rename one"),
        (classes("train/") | classes("test/", names=("cat", "Dog")), r"'Dog' and 'dog' differ by letter case only"),
        ({f"{c}/{i}.png": b"no image" for c in "xy" for i in range(3)}, r"not one of the 6 images can be decoded; the first: "),
        (classes("train/") | {"test/cat/a.png": b"x"}, r"the test split of .* is empty: not one of its images"),
    ):  # fmt: skip
        root = tree(tmp_path / f"data-{len(list(tmp_path.iterdir()))}", files)
        with pytest.raises(DataError, match=message):
            load(root, val_split=0 if "one class" in message else 0.1)


def test_letters_may_differ_by_case(tmp_path):
    assert load(tree(tmp_path, classes(names=("a", "A")))).classes == ("A", "a")


def test_folders_beside_the_splits_are_told_of(tmp_path):
    data, notes = noted(tree(tmp_path, classes("train/") | classes("test/", seed=1) | classes("old/", seed=2)))
    assert data.classes == ("cat", "dog")
    assert "1 folder beside the splits: " in notes[0]


# Sizes and kinds of images.


def test_a_class_that_is_called_like_a_split(tmp_path):
    data, notes = noted(tree(tmp_path, classes(names=("bus", "car", "train"), n=30)))
    assert data.classes == ("bus", "car", "train")
    assert notes == [f"note: the folder train in {tmp_path} holds images, and no sub-folders: it is taken for a class"]
    assert "taken for a class" in data.describe()["notes"][0]
    shutil.rmtree(tmp_path / "train")
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match="train holds no images in sub-folders"):
        load(tmp_path)


def test_splits_without_one_for_training(tmp_path):
    for number, names in enumerate((("val/", "test/"), ("validation_set/", "test-set/"))):
        root = tree(tmp_path / str(number), {k: v for name in names for k, v in classes(name).items()})
        with pytest.raises(DataError, match=rf"the folder {root} holds .*, but no train$"):
            load(root)
    root = tree(tmp_path / "sets", classes("training_set/") | classes("Test-Set/", n=6, seed=1))
    data = load(root)
    assert (data.classes, data.own_splits, len(data.test)) == (("cat", "dog"), ("train", "test"), 6)


def test_a_folder_one_level_too_high(tmp_path):
    tree(tmp_path, classes("images/"))
    with pytest.raises(
        DataError, match=rf"has one class only \(images\); if its .* \(cat, dog\), name {tmp_path}/images$"
    ):
        load(tmp_path)


def test_class_folders_without_an_image_are_told_of(tmp_path):
    root = tree(tmp_path, classes())
    (root / "bird").mkdir()
    data, notes = noted(root)
    assert data.skipped == (f"1 class folder without an image: {root}/bird",)
    assert notes == [f"left out: {data.skipped[0]} (all in data.json)"]


def test_all_that_is_left_out_is_listed(tmp_path):
    root = tree(tmp_path, classes() | {f"cat/{name}.txt": b"" for name in "abc"})
    assert load(root).describe()["skipped"] == [
        f"3 files that are no images: {root}/cat/a.txt, {root}/cat/b.txt, {root}/cat/c.txt"
    ]


def test_why_images_were_lost_is_said_where_it_matters(tmp_path):
    root = tree(tmp_path, classes() | {"bird/1.png": b"broken", "bird/2.png": b"broken"})
    with pytest.raises(DataError, match=r"has no training example: 'bird' \(left out: .*bird/1.png cannot be decoded"):
        load(root)


def test_class_folders_that_look_alike(tmp_path):
    root = tree(tmp_path / "a", classes(names=("cat", "new\nline", r"new\nline")))
    with pytest.raises(DataError, match=r"the class folders 'new.*line' and 'new.*line' both look like new.nline"):
        load(root)
    root = tree(tmp_path / "b", classes(names=("cat", "caf\u00e9", "cafe\u0301")))
    with pytest.raises(DataError, match="are the same letters, encoded in two ways"):
        load(root)


def test_a_path_never_is_data_that_come_along(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tree(tmp_path / "digits", classes())
    assert load(Path("digits")).classes == ("cat", "dog")
    assert load("./digits").classes == ("cat", "dog")
    data, notes = noted("digits")
    assert data.num_classes == 10
    assert notes == ["note: digits are data that come along; the folder of that name is ./digits"]
    folder = train(Path("digits"), "digits", epochs=0.5, batch_size=8, out=tmp_path).folder
    assert RunFolder(folder).read_json("data.json")["classes"] == ["cat", "dog"]
    for wrong in (None, 5, np.zeros(3)):
        with pytest.raises(ValueError, match="data must be a name or a path; got"):
            load(wrong)


def test_a_table_beside_class_folders_is_told_of(tmp_path):
    root = tree(tmp_path, classes())
    csv(root / "train.csv", "path,label", [f"{'cat' if i % 2 == 0 else 'dog'}/{i:03d}.png,{i % 2}" for i in range(20)])
    assert noted(root)[1] == [
        f"note: train.csv in {root} says what the images are; the 2 folders beside it count only as far as it names files"
    ]


@pytest.mark.parametrize(("bits", "brightest"), [(8, 1), (12, 16)])
def test_images_that_are_all_but_black_are_told_of(bits, brightest, tmp_path):
    for i, image in enumerate(np.random.default_rng(0).integers(0, 2**bits, (20, 9, 9), np.uint16)):
        path = tmp_path / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(path)
    notes = [note for note in noted(tmp_path)[1] if "black" in note]
    assert len(notes) == 1
    assert notes[0].startswith(f"note: the brightest pixel of 20 images is {brightest} of 255: they are all but black.")


def test_mixed_images_come_out_right(tmp_path):
    def encoded(image, kind="png", **options):
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        return buffer.getvalue()

    colour, grey = pictures(1, size=40), np.full((40, 40), 77, np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 8
    flat = Image.new("RGB", (40, 40), (200, 100, 50))
    special = {
        "cat/grey.png": grey, "cat/deep.png": encoded(Image.fromarray(grey.astype(np.uint16) * 257)),
        "cat/turned.png": encoded(Image.fromarray(colour), exif=exif), "cat/palette.gif": encoded(flat, "gif"),
        "cat/cmyk.jpg": encoded(flat.convert("CMYK"), "jpeg", quality=100), "cat/bits.png": encoded(Image.new("1", (40, 40), 1)),
        "cat/clear.png": encoded(Image.new("RGBA", (40, 40), (9, 9, 9, 0))),
        "cat/fuzzy.png": encoded(Image.new("RGBA", (40, 40), (0, 0, 0, 51))),
        "cat/wide.png": encoded(Image.new("RGB", (80, 20), (1, 2, 3))),
        "dog/large.png": encoded(Image.new("RGB", (400, 300), (10, 20, 30))),
    }  # fmt: skip
    files = {f"train/{name}": content for name, content in special.items()}
    files |= {f"train/dog/{i}.png": colour for i in range(9)} | classes("test/", 4, size=40)
    data, notes = noted(tree(tmp_path, files), val_split=0)
    assert data.image_shape == (40, 40, 3)
    assert notes[0].startswith("images of 20x40 to 300x400 are resized to 40x40 (--image-size chooses another)") or (
        notes[0] == "images of 20x40 to 300x80 are resized"
    )
    names = sorted(name for name in special if name.startswith("cat"))
    got = {name: data.train.images[i] for i, name in enumerate(names)}
    assert (got["cat/grey.png"] == 77).all()
    assert (got["cat/deep.png"] == 77).all()
    assert np.array_equal(got["cat/turned.png"], np.rot90(colour))
    assert (got["cat/palette.gif"] == [200, 100, 50]).all()
    assert np.abs(got["cat/cmyk.jpg"].astype(int) - [200, 100, 50]).max() <= 4
    assert (got["cat/bits.png"] == 255).all()
    assert (got["cat/clear.png"] == 255).all()
    assert (got["cat/fuzzy.png"] == 204).all()
    assert (got["cat/wide.png"] == [1, 2, 3]).all()


def test_grey_images_stay_grey_until_one_is_not(tmp_path):
    made = {f"{'ab'[i % 2] * 3}/{i:03d}.png": pictures(1, seed=i, channels=1) for i in range(200)}
    data = load(tree(tmp_path, made))
    assert data.image_shape == (9, 9, 1)
    tree(tmp_path, {"bbb/zzz.png": pictures(1)})
    assert load(tmp_path).image_shape == (9, 9, 3)


def test_a_decompression_bomb_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    data = load(tree(tmp_path, classes() | {"cat/bomb.png": np.zeros((25, 30), np.uint8)}))  # where Pillow only warns
    assert "bomb.png cannot be decoded: Image size 30x25 is above 500 pixels" in data.skipped[0]


def test_a_class_whose_images_are_all_broken_is_named(tmp_path):
    with pytest.raises(DataError, match=r"1 of the 3 classes of .* has no training example: 'cow'"):
        load(tree(tmp_path, classes() | {f"cow/{i}.png": b"x" for i in range(5)}))


# The cache.


def test_a_changed_file_is_noticed_and_an_unchanged_folder_not_read(tmp_path, own_cache, monkeypatch):
    root = tree(tmp_path / "pets", classes())
    first = load(root)
    monkeypatch.setattr(images, "decode", lambda *args, **kwargs: pytest.fail("decoded again"))
    monkeypatch.setattr(cache, "_content", lambda file: pytest.fail("read again"))
    assert load(root).digest == first.digest
    monkeypatch.undo()
    monkeypatch.setenv("LABELSMOOTH_CACHE", str(own_cache))
    file = root / "cat" / "000.png"
    stat = file.stat()
    blob = bytearray(file.read_bytes())
    other = png(255 - pictures(20)[0])
    file.write_bytes(other[: len(blob)].ljust(len(blob), b"\0"))
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # the same time and nearly the same size
    changed = load(root)
    assert changed.digest != first.digest
    assert len(os.listdir(own_cache / f"decoded-v{cache.VERSION}")) == 2
    copied = load(tree(tmp_path / "copy" / "pets", classes()))
    assert copied.digest == first.digest  # by content, wherever it lies


def test_a_cache_that_may_not_be_entered_is_done_without(tmp_path, monkeypatch):
    root = tree(tmp_path / "data", classes())
    is_dir = Path.is_dir

    def refuse(path):
        if "decoded-v" in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return is_dir(path)

    monkeypatch.setattr(Path, "is_dir", refuse)
    data, notes = noted(root)
    assert len(data.train) == 14
    assert re.fullmatch(
        "the decoded images could not be cached in .* .Permission denied.; they are decoded at every start", notes[0]
    )


def test_a_cache_of_an_older_version_is_told_of(tmp_path, own_cache):
    (own_cache / "decoded-v1").mkdir()
    _, notes = noted(tree(tmp_path / "pets", classes()))
    assert "holds a cache of an older version (decoded-v1), which is not used" in notes[0]


def test_images_are_mapped_and_not_held(tmp_path):
    data = load(tree(tmp_path, classes()))
    pool = data.train.pool
    while not isinstance(pool, np.memmap):
        assert pool.base is not None
        pool = pool.base
    assert not pool.flags.writeable
    mean = data.train.images.astype(float)
    np.testing.assert_allclose(data.train.mean_image(), mean.mean(0), rtol=1e-12)
    np.testing.assert_allclose(data.train.channel_moments()[0], mean.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(data.train.channel_moments()[1], mean.std((0, 1, 2)), rtol=1e-9)


@pytest.mark.skipif(sys.platform != "linux", reason="measures memory as Linux does")
def test_a_folder_larger_than_the_memory_that_is_used(tmp_path):
    import subprocess

    code = """
import resource, sys
from labelsmooth.training import load
load("digits")  # what is imported on the way
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
data = load(sys.argv[1], image_size=128)
print(data.train.pool.nbytes // 1024, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    blob = png(pictures(1))
    root = tree(tmp_path, {f"{'ab'[i % 2] * 2}/{i:04d}.png": blob for i in range(6000)})
    result = subprocess.run([sys.executable, "-c", code, str(root)], capture_output=True, text=True, check=True)
    total, used = map(int, result.stdout.split())
    assert total > 280_000  # KiB
    assert used < total / 2


TRAINED = """
import re, sys, threading
from pathlib import Path
from labelsmooth.report import page
from labelsmooth.training import train
from labelsmooth.training.session import Training
from tests.processes import undrawn

page.finish = undrawn

def held(name):
    return int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text()).group(1))

held_then, begun, done = [], [], threading.Event()
original = Training.run
def run(training, *args):
    begun.append(held("RssAnon"))
    watcher.start()
    original(training, *args)
Training.run = run
watch = lambda: [held_then.append(held("RssAnon")) for _ in iter(lambda: done.wait(0.01), True)]
watcher = threading.Thread(target=watch)
try:
    less = {"small_share": 0.999, "small_scale": 0.125}  # to compute, not to read
    result = train(sys.argv[1], model="small", epochs=1, batch_size=50, image_size=96, out=sys.argv[2], **less)
finally:
    done.set()
print(begun[0], sorted(held_then)[len(held_then) // 2], held("RssFile"), result.summary["epochs"])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="measures memory as Linux does")
def test_a_training_holds_batches_and_not_the_images(tmp_path):
    """Beside pages of the file, which the system takes back when it wants them: as much for many images as for few."""
    blob, medians = [png(pictures(1, seed)) for seed in range(2)], []
    for count in (400, 8000):
        files = {f"train/{'ab'[i % 2] * 2}/{i:04d}.png": blob[i % 2] for i in range(count)}
        files |= {f"{split}/{'ab'[i % 2] * 2}/{i}.png": blob[i % 2] for split in ("val", "test") for i in range(20)}
        root = tree(tmp_path / str(count), files)
        command = [sys.executable, "-c", TRAINED, str(root), str(tmp_path / "runs")]
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        begun, median, mapped, epochs = map(int, result.stdout.split()[-4:])
        assert epochs == 1
        medians.append(median)
        print(f"{count} images, {count * 96 * 96 * 3 >> 20} MiB: {begun >> 10} MiB at the start, in the middle {median >> 10}, "
              f"pages of files {mapped >> 10} MiB")  # fmt: skip
    assert 8000 * 96 * 96 * 3 / 1024 > 200_000  # KiB
    assert medians[1] - medians[0] < 40_000, medians  # the largest depend on when a convolution is looked at


def test_a_file_that_cannot_be_read_now_may_be_readable_later(tmp_path, own_cache, monkeypatch):
    root = tree(tmp_path / "pets", classes())
    original = Image.open

    def broken(source, *args, **kwargs):
        if str(source).endswith("004.png"):
            raise PermissionError(13, "Permission denied")
        return original(source, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(Image, "open", broken)
        data = load(root)
        assert data.skipped == (f"{root}/cat/004.png cannot be decoded: Permission denied",)
        assert data.train.images.shape == (13, 9, 9, 3)  # from files without a name
    assert load(root).skipped == ()
    assert len(list((own_cache / f"decoded-v{cache.VERSION}").iterdir())) == 1


def test_processes_that_fill_one_cache_at_once(tmp_path, own_cache):
    root = tree(tmp_path / "pets", classes())
    with ThreadPoolExecutor(8) as pool:
        loaded = list(pool.map(lambda _: noted(root), range(8)))
    for data, notes in loaded:
        assert notes == []
        assert np.array_equal(data.train.images, loaded[0][0].train.images)
    (folder,) = (own_cache / f"decoded-v{cache.VERSION}").iterdir()
    assert folder.stat().st_mode & 0o777 == 0o777 & ~_files.umask()


def test_sigterm_while_images_are_decoded(tmp_path, own_cache):
    """As Ctrl-C: nothing half-decoded is left in the cache."""
    large = png(np.random.default_rng(0).integers(0, 255, (300, 300, 3), np.uint8))
    tree(tmp_path, {f"{'ab'[i % 2]}/{i}.png": large for i in range(1000)})
    running = subprocess.Popen(
        [sys.executable, "-m", "labelsmooth", "data", str(tmp_path)], stderr=subprocess.PIPE, text=True
    )
    while not list(own_cache.glob("decoded-v*/.new-*")):
        assert running.poll() is None, "it ended before"
        time.sleep(0.01)
    running.terminate()
    assert running.communicate(timeout=60)[1].endswith("labelsmooth: interrupted\n")
    assert running.returncode == 130
    assert not list(own_cache.glob("decoded-v*/*"))


@pytest.mark.parametrize("name", ["examples.npz", "skipped.json", "images.npy"])
def test_a_damaged_cache_is_made_anew(name, tmp_path, own_cache):
    root = tree(tmp_path / "pets", classes())
    expected = load(root).train.images
    (file,) = own_cache.rglob(name)
    file.write_bytes(file.read_bytes()[:-1])
    again, notes = noted(root)
    assert "is damaged" in notes[0]
    assert np.array_equal(again.train.images, expected)
    assert noted(root)[1] == []


def test_values_of_more_than_8_bits(tmp_path):
    whole = np.arange(81, dtype=np.uint16).reshape(9, 9) * 800
    for name, values in (("a", whole), ("b", whole.astype(np.float32) / 65535)):
        (tmp_path / name).mkdir()
        for i in range(9):
            Image.fromarray(values).save(tmp_path / name / f"{i}.tif")
    Image.fromarray(whole.astype(np.float32)).save(tmp_path / "b" / "wrong.tif")
    data = load(tmp_path)
    assert data.image_shape == (9, 9, 1)
    assert (data.train.images[..., 0] == (whole / 257).round().astype(int)).all()
    assert "wrong.tif cannot be decoded: its values lie in 0..64000; float32 must be in 0..1" in data.skipped[0]


def test_images_that_differ_by_their_orientation_only(tmp_path):
    wide = pictures(1, size=12)[:8]
    exif = Image.Exif()
    exif[0x0112] = 6
    for i in range(24):
        (tmp_path / "ab"[i % 2]).mkdir(exist_ok=True)
        Image.fromarray(wide).save(tmp_path / "ab"[i % 2] / f"{i}.png", exif=exif if i % 3 == 0 else None)
    assert load(tmp_path).image_shape == (8, 8, 3)  # 8x12 and 12x8


def test_a_table_named_through_a_link(tmp_path):
    tree(tmp_path, {f"img/{i}.png": x for i, x in enumerate(pictures(20))})
    csv(tmp_path / "img" / "blob", "path,label", [f"{i}.png,{i % 2}" for i in range(20)])
    (tmp_path / "img" / "table.csv").symlink_to(tmp_path / "img" / "blob")
    data = load(tmp_path / "img" / "table.csv")
    assert load(data.source).digest == data.digest  # as a resumed run would


# CSV files and arrays.


def csv(path, header, rows):
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def test_csv_of_paths_with_splits(tmp_path):
    tree(tmp_path, {f"img/{i}.png": x for i, x in enumerate(pictures(30))})
    rows = [
        f"img/{i}.png,{['dog', 'cat'][i % 2]},{'train' if i < 20 else 'valid' if i < 24 else 'Test'}" for i in range(30)
    ]
    data = load(csv(tmp_path / "all.csv", "path,label,split", rows))
    assert data.classes == ("cat", "dog")
    assert [len(split) for split in data.splits.values()] == [20, 4, 6]
    assert np.array_equal(data.train.images, pictures(30)[:20])
    assert data.train.labels.tolist() == [1, 0] * 10
    assert data.own_splits == ("train", "val", "test")
    semicolons = csv(tmp_path / "semi.csv", "\ufeffkind;image", [f" {i % 2 + 9} ;img/{i}.png" for i in range(30)])
    data = load(semicolons, label_column="kind")
    assert data.classes == ("9", "10")  # by number


def test_csv_of_bytes_and_a_folder_of_csv(tmp_path):
    for name, n in (("train", 20), ("test", 6)):
        coded = [base64.b64encode(png(x)).decode() for x in pictures(n, seed=n)]
        csv(tmp_path / f"{name}.csv", "label,image_bytes", [f"{i % 2},{x}" for i, x in enumerate(coded)])
    data = load(tmp_path)
    assert np.array_equal(data.test.images, pictures(6, seed=6))
    assert (len(data.train), len(data.val), len(data.test)) == (18, 2, 6)


def test_csv_columns_that_say_nothing_of_splits(tmp_path):
    tree(tmp_path, {f"{i}.png": picture for i, picture in enumerate(pictures(20))})
    for name in ("fold", "set"):
        csv(tmp_path / "a.csv", f"path,label,{name}", [f"{i}.png,{i % 2},{i % 5}" for i in range(20)])
        data, notes = noted(tmp_path / "a.csv")
        assert data.own_splits == ("train",)
        assert notes == [f"note: the column {name} of {tmp_path}/a.csv is not used: it names none of train, val, test"]
    table = {"image": [png(picture) for picture in pictures(20)], "label": [i % 2 for i in range(20)]}
    more = {"fold": [i % 5 for i in range(20)], "split": ["train" if i < 14 else "test" for i in range(20)]}
    for columns in (more, dict(reversed(more.items()))):
        pq.write_table(pa.table(table | columns), tmp_path / "a.parquet")
        data, notes = noted(tmp_path / "a.parquet", val_split=0.2)
        assert (data.own_splits, len(data.test), notes) == (("train", "test"), 6, [])
    pq.write_table(pa.table(table | {"split": [i % 2 for i in range(20)]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="row 0 of .* has the split 0; it must be one of train, val, test"):
        load(tmp_path / "a.parquet")


def test_csv_errors_name_the_line(tmp_path):
    tree(tmp_path, {f"{i}.png": picture for i, picture in enumerate(pictures(20))})
    rows = [f"{i}.png,{i % 2}," for i in range(20)]
    for lines, line in (
        ([*rows[:3], "gone.png,0,"], 5),
        (["", "", *rows[:3], "gone.png,0,"], 7),
        (['0.png,0,"a\nb\nc"', "gone.png,0,"], 5),
    ):
        for end in ("\n", ""):
            (tmp_path / "a.csv").write_text("path,label,note\n" + "\n".join(lines) + end)
            with pytest.raises(
                DataError, match=rf"^line {line} of {tmp_path}/a.csv .*gone.png.*: there is no such file"
            ):
                load(tmp_path / "a.csv")


def test_csv_of_odd_values(tmp_path):
    tree(tmp_path, {f"{i}.png": picture for i, picture in enumerate(pictures(20))})
    long = base64.b64encode(png(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))).decode()
    for header, row, message in (
        ("image,label", f"{long},0", r"a.csv holds \d+ characters where a path should be: iVBORw0KGgo.*; base64 is read from a column called image_base64"),
        ("path,path,label", "0.png,0.png,0", "has 2 columns called path; rename all but one"),
        ("path,label,label", "0.png,0,1", "has 2 columns called label"),
        ("path,label", "0\0.png,0", "line 2 of .*a.csv"),
    ):  # fmt: skip
        csv(tmp_path / "a.csv", header, [row, row])
        with pytest.raises(DataError, match=message) as caught:
            load(tmp_path / "a.csv")
        assert len(str(caught.value)) < 500


def test_csv_that_is_wrong(tmp_path):
    tree(tmp_path, {f"{i}.png": x for i, x in enumerate(pictures(20))} | {"broken.png": b""})
    good = [f"{i}.png,{i % 2}" for i in range(20)]
    for header, rows, options, message in (
        ("path,lable", good, {}, r"no label column .*its columns: path \(string\), lable \(int64\); did you mean lable\?; --label-column"),
        ("pathh,label", good, {}, r"no column of images .*did you mean pathh\?; --image-column names another"),
        ("path,label", good, {"label_column": "labl"}, r"no column 'labl', which --label-column names; did you mean label\?"),
        ("path,label", [*good[:7], "7.png,", *good[8:]], {}, r"line 9 of .* has no label"),
        ("path,label", [*good[:7], "gone.png,1", *good[8:]], {}, r"line 9 of .*a.csv \(.*/gone.png\): there is no such file"),
        ("path,label", [*good[:7], "broken.png,1", *good[8:]], {}, r"line 9 of .*a.csv \(.*/broken.png\) cannot be decoded: it is empty"),
        ("path,label", [*good[:7], ",1", *good[8:]], {}, r"line 9 of .* has no image"),
        ("path,label", good, {"image_column": "label"}, r"line 2 of .*: there is no such file"),
        ("path,label,split", [f"{row},{'train' if i else 'trian'}" for i, row in enumerate(good)], {}, r"line 2 of .* has the split 'trian'; it must be one of train, val, test"),
        ("path,label", [*good, "1.png"], {}, r"(is no readable CSV file|is damaged after row) .*"),
        ("path,label", [], {}, r"the train split of .* is empty"),
        ("path,label,split", [f"{row},test" for row in good], {"noise": "column:path"}, r"a.csv has no training example, but test only"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=message):
            load(csv(tmp_path / "a.csv", header, rows), **options)
    (tmp_path / "a.csv").write_bytes(b"\xff\xfe\x00binary")
    with pytest.raises(DataError, match=r"a.csv is no readable CSV file"):
        load(tmp_path / "a.csv")


@pytest.mark.parametrize(
    "names",
    [("images", "labels"), ("x_train", "y_train", "x_test", "y_test"), ("train_images", "train_labels", "val_images", "val_labels", "test_images", "test_labels")],
)  # fmt: skip
def test_npz(tmp_path, names):
    arrays = {}
    for i in range(0, len(names), 2):
        arrays |= {names[i]: pictures(20, seed=i), names[i + 1]: (np.arange(20) % 2)[:, None].astype(np.uint8)}
    np.savez(tmp_path / "own.npz", **arrays)
    data = load(tmp_path / "own.npz")
    assert data.name == "own"
    assert data.classes == ("0", "1")
    expected = {2: [14, 2, 4], 4: [18, 2, 20], 6: [20, 20, 20]}[len(names)]
    assert [len(split) for split in data.splits.values()] == expected
    if len(names) == 6:
        assert np.array_equal(data.val.images, pictures(20, seed=2))


def test_npz_of_other_kinds_and_wrong_ones(tmp_path):
    labels, grey = np.array(["b", "a"] * 10), pictures(20, channels=1)
    path = tmp_path / "a.npz"
    for made in (grey, grey / 255, grey.astype(np.uint16) * 257, grey.astype(np.int64)):
        np.savez(path, x=made, y=labels)
        data = load(path)
        everything = np.concatenate([split.images for split in data.splits.values()])
        assert everything.sum(dtype=int) == grey.sum(dtype=int)
        assert data.image_shape == (9, 9, 1)
        assert data.classes == ("a", "b")
    ids = np.arange(20) % 2
    for arrays, message in (
        ({"a": ids}, r"holds a; it must hold images and labels, or x_train"),
        ({"x_train": grey, "y_train": ids, "x_test": grey[:0], "y_test": ids[:0]}, r"the test split of .* is empty \(x_test\)"),
        ({"x": grey, "y": ids[:5]}, r"has 20 images in x, but 5 labels in y"),
        ({"x": grey[:, 0], "y": ids}, r"x in .* has the shape \(20, 9\); it must be \[N, H, W\]"),
        ({"x": pictures(20).transpose(0, 3, 1, 2), "y": ids}, r"move its channels to the last axis"),
        ({"x": grey * 1.0, "y": ids}, r"float64 values from 0.0 to 255.0; floats must be in 0..1"),
        ({"x": grey - 1.0, "y": ids}, r"floats must be in 0..1"),
        ({"x": np.full((20, 3, 3), np.nan), "y": ids}, r"floats must be in 0..1"),
        ({"x": grey.astype(int) + 1, "y": ids}, r"from 1 to 256; pixels must be in 0..255"),
        ({"x": grey, "y": np.eye(2)[ids]}, r"labels must be \[N\] or \[N, 1\]"),
        ({"x": grey, "y": ids + 0.5}, r"neither class ids nor names"),
        ({"x": grey, "y": np.array([None] * 20)}, r"it holds Python objects, which are not loaded"),
    ):  # fmt: skip
        np.savez(path, **arrays)
        with pytest.raises(DataError, match=message):
            load(path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=r"is no readable .npz file"):
        load(path)


# What `labelsmooth data` says.


def test_npz_with_what_has_no_partner_or_no_use(tmp_path):
    x, y = pictures(20), np.arange(20) % 2
    for arrays, message in (
        ({"x_test": x[:4]}, "has x_test, but no labels for the test split; it holds x_train, y_train, x_test"),
        ({"x_test": x[:4], "y_tset": y[:4]}, "has x_test, but no labels for the test split"),
        ({"y_val": y[:4]}, "has y_val, but no images for the val split"),
        ({"classes": np.array(["a", "a"])}, "two classes are called 'a'"),
        ({"classes": np.array(["a", ""])}, "one of the classes has no name"),
    ):  # fmt: skip
        np.savez(tmp_path / "a.npz", x_train=x, y_train=y, **arrays)
        with pytest.raises(DataError, match=message):
            load(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", x_train=x, y_train=y, split=y, classes=np.array([b"cat", b"dog"]))
    data, notes = noted(tmp_path / "a.npz")
    assert data.classes == ("cat", "dog")
    assert notes == [f"note: {tmp_path}/a.npz holds arrays that are not used: split"]
    np.save(tmp_path / "b", x)
    (tmp_path / "b.npy").rename(tmp_path / "b.npz")
    with pytest.raises(DataError, match="b.npz is a single array; it must hold images and labels"):
        load(tmp_path / "b.npz")


def test_npz_pixels_by_their_values(tmp_path):
    x, y = pictures(20), np.arange(20) % 2
    for array in (x.astype(np.uint16), x.astype(np.int32), x.astype(np.uint16) * 257):
        np.savez(tmp_path / "a.npz", images=array, labels=y)
        split = load(tmp_path / "a.npz").train
        assert np.array_equal(split.images, x[split.index])
    wide = x.astype(np.uint16) * 257
    np.savez(tmp_path / "a.npz", x_train=wide, y_train=y, x_test=np.minimum(wide, 200), y_test=y)
    assert load(tmp_path / "a.npz").test.images.max() <= 1  # the same scale for all splits
    np.savez(tmp_path / "a.npz", x_train=x.astype(np.uint16), y_train=y, x_test=x / 255, y_test=y)
    assert np.array_equal(load(tmp_path / "a.npz").test.images, x)
    np.savez(tmp_path / "a.npz", images=x > 127, labels=y)
    assert set(np.unique(load(tmp_path / "a.npz").train.images)) == {0, 255}


def test_leaks_duplicates_and_contradictions(tmp_path):
    train, test = classes("train/"), classes("test/", 6, seed=1)
    test |= {"test/cat/leak1.png": train["train/cat/000.png"], "test/dog/leak2.png": train["train/dog/001.png"]}
    train |= {
        "train/dog/contradiction.png": train["train/cat/000.png"],
        "train/cat/copy.png": train["train/cat/002.png"],
    }
    root = tree(tmp_path, train | test)
    data, notes = noted(root)
    assert notes == [
        "warning: 2 of the 8 test images are in the training set too, pixel for pixel; test figures flatter "
        "(labelsmooth data shows more)"
    ]
    assert data.describe()["test_images_in_train"] == 2
    (root / "test/dog/leak2.png").unlink()
    assert noted(root)[1][0].startswith("warning: 1 of the 7 test images is in the training set too, ")
    tree(tmp_path, {"test/dog/leak2.png": train["train/dog/001.png"]})
    found = survey(root)
    assert found["duplicates"] == {
        "train": 2, "val": 0, "test": 0, "val in train": 0, "test in train": 2, "test in val": 0,
    }  # fmt: skip
    assert found["contradictions"] == 3  # the two copies in training and the one in test
    assert found["imbalance"] == pytest.approx(1.0)
    assert found["sizes"] == {"smallest": [9, 9], "median": [9, 9], "largest": [9, 9], "different": 1}


def test_float_labels_too_large_for_ids(tmp_path):
    pixels = np.zeros((4, 5, 5), np.uint8)
    np.savez(tmp_path / "a.npz", images=pixels, labels=np.array([0.0, 1.0, 1e30, 0.0]))
    with pytest.raises(DataError, match=r"neither class ids nor names; the first is 1e\+30, at position 2"):
        load(tmp_path / "a.npz")
    images = pa.array([png(x) for x in pictures(4)])
    pq.write_table(pa.table({"image": images, "label": [0.0, 1.0, -1e30, 0.0]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"row 2 of .* has the label -1e\+30, which is no class id"):
        load(tmp_path / "a.parquet")
