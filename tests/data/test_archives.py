"""Files of many images: zip, array_record, parquet, .npy; in memory and streamed, whole or cut."""

import io
import json
import os
import pickle
import sys
import types
import zipfile

import numpy as np
import pytest
from fake_buckets import fake_buckets
from PIL import Image
from stored_images import assert_streamed_is, one_line, random_images

from data import kept_labels, npz
from data.bytes import stamp_of
from data.datasets import load, open_splits
from data.packing import pack
from data.readers import prepare, reader_of
from data.records import RecordItems
from errors import FileError

COUNT = 30
IMAGES = random_images(COUNT)
LABELS = np.arange(COUNT) % 3


def read(path, **options):
    return load(str(path), **{"image_size": 4, "channels": 3, "memory_gb": 0} | options)


def whole(data):
    """All images in the order in which they were stored, from the two splits of one set."""
    order = np.random.default_rng(np.random.SeedSequence(0, spawn_key=(0,))).permutation(COUNT)
    held = len(data.test)
    images = np.empty((COUNT, *data.train.shape[1:]), np.uint8)
    images[np.sort(order[held:])], images[np.sort(order[:held])] = data.train[:], data.test[:]
    return images


def encoded(image, kind="PNG"):
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind)
    return file.getvalue()


def write_zip(path, labels, method=zipfile.ZIP_STORED):
    """An archive as the tools of StyleGAN and EDM write it."""
    names = [f"{k // 10:05}/img{k:08}.png" for k in range(COUNT)]
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, image in zip(names, IMAGES, strict=True):
            archive.writestr(name, encoded(image))
        table = (
            None if labels is None else [[n, int(k)] for n, k in zip(names, labels, strict=True)]
        )
        archive.writestr("dataset.json", json.dumps({"labels": table}))
    return path


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_zip_with_labels(tmp_path, method):
    path = write_zip(tmp_path / "x.zip", LABELS, method)
    data = read(path)
    np.testing.assert_array_equal(whole(data), IMAGES)
    assert sorted([*data.train_labels, *data.test_labels]) == sorted(LABELS)
    assert_streamed_is(read(path, memory_gb=1), data)
    assert data.notes == ()


def test_folders_in_a_zip_are_no_classes(tmp_path):
    data = read(write_zip(tmp_path / "x.zip", None))
    assert data.train_labels is None
    assert "its folders are not taken for classes" in data.notes[0]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[: len(content) // 2], "it is damaged or incomplete"),
        (
            lambda content: content.replace(b'"labels": [[', b'"labels": [7,'),
            "Bad magic number",
        ),
        (lambda content: content.replace(b"IDAT", b"IDAX"), "checksum differs"),
        (lambda content: b"no archive", "it is damaged or incomplete"),
    ],
)
def test_a_zip_that_is_damaged_or_cut_short_is_one_line(tmp_path, damage, message):
    path = write_zip(tmp_path / "x.zip", LABELS)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(FileError, match=rf"x\.zip.*({message})") as error:
        read(path)
    assert one_line(error)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([["00000/img00000000.png", 1]], "has no label for '00000/img00000001.png'"),
        (
            [[f"{k // 10:05}/img{k:08}.png", 0.5] for k in range(COUNT)],
            "has labels that are no integers from 0",
        ),
        (3, "is damaged"),
    ],
)
def test_labels_that_do_not_fit_are_named(tmp_path, labels, message):
    path = write_zip(tmp_path / "x.zip", None)
    with zipfile.ZipFile(path) as archive:
        members = {m: archive.read(m) for m in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in (members | {"dataset.json": json.dumps({"labels": labels})}).items():
            archive.writestr(member, content)
    with pytest.raises(ValueError, match=rf"x\.zip.*dataset\.json {message}") as error:
        read(path)
    assert one_line(error)


def test_an_archive_that_changes_while_it_is_read_is_named(tmp_path):
    path = write_zip(tmp_path / "x.zip", LABELS)
    data = read(path)
    path.write_bytes(path.read_bytes()[1:])
    with pytest.raises(FileError, match=r"x\.zip/0000.*(not where the list|damaged)") as error:
        _ = data.train[:]
    assert one_line(error)


def write_records(path, records):
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()


def example(content, label):
    from tensorflow_datasets.proto import tf_example_generated_pb2 as protos

    record = protos.Example()
    record.features.feature["image"].bytes_list.value.append(content)
    record.features.feature["label"].int64_list.value.append(int(label))
    return record.SerializeToString()


@pytest.mark.parametrize("labeled", [False, True])
def test_array_record_files_of_images_or_examples(tmp_path, labeled):
    records = [
        example(encoded(image), label) if labeled else encoded(image)
        for image, label in zip(IMAGES, LABELS, strict=True)
    ]
    for shard in range(2):
        part = records[15 * shard : 15 * shard + 15]
        write_records(tmp_path / f"x.array_record-{shard:05}-of-00002", part)
    name = tmp_path / "x.array_record-*"
    data = read(name)
    np.testing.assert_array_equal(whole(data), IMAGES)
    assert_streamed_is(read(name, memory_gb=1), data)
    if labeled:
        assert sorted([*data.train_labels, *data.test_labels]) == sorted(LABELS)
    again = pickle.loads(pickle.dumps(data.train))  # as a worker process gets it
    np.testing.assert_array_equal(again[3], data.train[3])


def test_labels_within_records_are_read_once(tmp_path, monkeypatch):
    monkeypatch.setattr(kept_labels, "_KEPT_FROM", COUNT)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    passes, real = [], RecordItems._labels_of_records
    monkeypatch.setattr(
        RecordItems, "_labels_of_records", lambda items: passes.append(1) or real(items)
    )
    path = tmp_path / "x.array_record"
    for labels, count in ((LABELS, 1), (LABELS, 1), (LABELS[::-1], 2)):
        if count > len(passes):
            write_records(path, map(example, map(encoded, IMAGES), labels))
        items = reader_of(str(path)).read(str(path), "")["train"].items
        np.testing.assert_array_equal(items.labels(), labels)
        assert len(passes) == count
    for file in (tmp_path / "cache/scoresde/labels").iterdir():
        file.write_bytes(b"PK")
    np.testing.assert_array_equal(items.labels(), LABELS[::-1])
    assert len(passes) == 3, "a damaged copy is made again"


@pytest.mark.parametrize("damage", [lambda c: c[: len(c) // 2], lambda c: b"x", lambda c: None])
def test_array_records_that_are_damaged_or_missing_are_one_line(tmp_path, damage):
    path = tmp_path / "x.array_record"
    write_records(path, map(encoded, IMAGES))
    content = damage(path.read_bytes())
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(FileError, match=r"x\.array_record.*(incomplete|no such file)") as error:
        read(path)
    assert one_line(error)


@pytest.mark.parametrize("labels", [None, LABELS])
def test_npy_is_read_row_by_row(tmp_path, monkeypatch, labels):
    monkeypatch.setattr(npz, "_AT_ONCE", 10)
    path = tmp_path / "x.npy"
    np.save(path, IMAGES)
    if labels is not None:
        np.save(tmp_path / "x_labels.npy", labels)
    data = read(path)
    np.testing.assert_array_equal(whole(data), IMAGES)
    assert_streamed_is(read(path, memory_gb=1), data)
    content, time = path.read_bytes(), path.stat().st_mtime_ns
    for changed, later in ((content[:-1], 0), (content[:-1] + b"?", 1)):
        path.write_bytes(changed)
        os.utime(path, ns=(time, time + later))
        with pytest.raises(FileError, match=r"x\.npy: the file has changed since it was listed"):
            _ = data.train[:], data.test[:]


@pytest.mark.parametrize("name", ["x.npy", "x.array_record-*"])
def test_what_belongs_to_a_file_in_a_bucket_is_copied_with_it(tmp_path, monkeypatch, name):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with fake_buckets(tmp_path / "buckets") as root:
        folder, address = root / "bucket/data", f"gs://bucket/data/{name}"
        with pytest.raises(ValueError, match=r"gs://bucket/data/x\..*no such file"):
            read(address)
        folder.mkdir()
        save_npy(folder / "x.npy")
        records = [*map(example, map(encoded, IMAGES), LABELS)]
        write_records(folder / "x.array_record-00000-of-00002", records[:15])
        write_records(folder / "x.array_record-00001-of-00002", records[15:])
        data = read(address)
        np.testing.assert_array_equal(whole(data), IMAGES)
        assert sorted([*data.train_labels, *data.test_labels]) == sorted(LABELS)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_is_read_row_by_row_where_it_is_not_packed(tmp_path, monkeypatch, save):
    monkeypatch.setattr(npz, "_AT_ONCE", 10)
    path = tmp_path / "x.npz"
    save(path, train=IMAGES, train_labels=LABELS, test=IMAGES[:7])
    data = read(path)
    np.testing.assert_array_equal(data.train[:], IMAGES)
    assert_streamed_is(read(path, memory_gb=1), data)
    assert (reader_of(str(path)).read(str(path), "")["train"].items.images is None) == (
        save is np.savez
    )


def write_parquet(path, images, labels, group=4):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    column = [{"bytes": encoded(image), "path": None} for image in images]
    table = pa.table({"img": column, "label": pa.array(labels, pa.int64())})
    names = {"info": {"features": {"label": {"names": ["a", "b", "c"], "_type": "ClassLabel"}}}}
    table = table.replace_schema_metadata({"huggingface": json.dumps(names)})
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path, row_group_size=group)


def test_parquet_of_a_folder_and_of_the_hub(tmp_path, monkeypatch):
    write_parquet(tmp_path / "data/train-00000-of-00002.parquet", IMAGES[:20], LABELS[:20])
    write_parquet(tmp_path / "data/train-00001-of-00002.parquet", IMAGES[20:], LABELS[20:])
    write_parquet(tmp_path / "data/validation-00000-of-00001.parquet", IMAGES[:5], LABELS[:5])
    data = read(tmp_path)
    np.testing.assert_array_equal(data.train[:], IMAGES)
    np.testing.assert_array_equal(data.train_labels, LABELS)
    np.testing.assert_array_equal(data.test[::-1], IMAGES[4::-1])
    assert data.class_names == ("a", "b", "c")
    assert any("--mode=prepare --target=FOLDER" in note for note in data.notes)
    held = read(tmp_path, memory_gb=1)
    assert_streamed_is(held, data)
    assert held.notes == ()

    calls = []

    def snapshot_download(name, *, local_files_only, **options):
        calls.append((name, local_files_only))
        if local_files_only and len(calls) == 1:
            raise OSError("not in the cache\nat all")
        return str(tmp_path)

    hub = types.SimpleNamespace(snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    with pytest.raises(FileNotFoundError, match=r"'hf:a/b' is not downloaded .*; run --mode=prep"):
        read("hf:a/b")
    assert prepare("hf:a/b") == f"hf:a/b is in {tmp_path}"
    assert len(read("hf:a/b").train) == COUNT
    assert calls == [("a/b", True), ("a/b", False), ("a/b", True)]
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match="pip install huggingface_hub pyarrow"):
        read("hf:a/b")


def test_parquet_that_is_cut_short_is_one_line(tmp_path):
    path = tmp_path / "train-00000-of-00001.parquet"
    write_parquet(path, IMAGES, LABELS)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(FileError, match=r"missing, damaged or incomplete") as error:
        read(tmp_path)
    assert one_line(error)


@pytest.mark.parametrize("count", [COUNT - 7, COUNT])
def test_parquet_that_is_replaced_is_one_line(tmp_path, count):
    path = tmp_path / "train-00000-of-00001.parquet"
    write_parquet(path, IMAGES, LABELS)
    data = read(tmp_path)
    before = path.stat().st_mtime_ns
    write_parquet(path, IMAGES[:count][::-1], LABELS[:count])
    os.utime(path, ns=(before, before + (count == COUNT)))
    with pytest.raises(FileError, match=r"parquet: the file has changed since it was listed; put"):
        _ = data.train[:], data.test[:]


def test_parquet_of_as_many_bytes_and_fewer_rows_is_one_line(tmp_path):
    path = tmp_path / "train-00000-of-00001.parquet"
    write_parquet(path, IMAGES, LABELS)
    items = reader_of(str(tmp_path)).read(str(tmp_path), "")["train"].items
    write_parquet(path, IMAGES[:2], LABELS[:2])
    items.stamps = (stamp_of(str(path)),)
    with pytest.raises(FileError, match=r"parquet: the file has changed since it was listed"):
        _ = items[3]


def save_npy(path):
    np.save(path, IMAGES)
    np.save(path.with_name("x_labels.npy"), LABELS)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("x.zip", lambda path: write_zip(path, LABELS)),
        ("x.npz", lambda path: np.savez(path, images=IMAGES, labels=LABELS)),
        ("x.npy", save_npy),
        (
            "x.array_record",
            lambda path: write_records(path, map(example, map(encoded, IMAGES), LABELS)),
        ),
        (".", lambda path: write_parquet(path / "train-00000-of-00001.parquet", IMAGES, LABELS)),
    ],
    ids=["zip", "npz", "npy", "array_record", "parquet"],
)
def test_a_packed_archive_holds_the_same(tmp_path, name, write):
    (tmp_path / "source").mkdir()
    source, target = tmp_path / "source" / name, tmp_path / "packed"
    write(source)
    _, splits, fit = open_splits(str(source), image_size=4, channels=3)
    pack(str(source), splits, fit, target)
    held = read(source, memory_gb=1)
    for memory_gb in (0, 1):
        data = read(target, memory_gb=memory_gb)
        for split in ("train", "test"):
            np.testing.assert_array_equal(getattr(data, split)[:], getattr(held, split))
            labels = getattr(data, f"{split}_labels")
            np.testing.assert_array_equal(labels, getattr(held, f"{split}_labels"))
            assert labels is not None
        assert data.class_names == held.class_names
