"""Images and archives for the tests of data/, drawn at random and in the true formats."""

import gzip
import io
import struct
import tarfile
import zlib

import numpy as np
from PIL import Image

# Left to itself, Pillow starts Ghostscript for it, whatever the file's name.
POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
CLASSES = "airplane automobile bird cat deer dog frog horse ship truck"


def random_images(count, size=4, channels=3, seed=0):
    shape = (count, size, size, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def one_line(error):
    return "\n" not in str(error.value)


def save_folder(root, names, images):
    for name, image in zip(names, images, strict=True):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.squeeze()).save(root / name)


def png(width, height, *, color_type=2, depth=8, rows=b""):
    """A PNG with any header: the rows need not be those of so large an image."""

    def chunk(kind, content):
        checked = kind + content
        size, checksum = len(content), zlib.crc32(checked)
        return struct.pack(">I", size) + checked + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0)
    chunks = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def cifar_archive(path, count=3):
    """A CIFAR-10 archive of the true structure, `count` images a file; images and labels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files = [f"data_batch_{k}.bin" for k in range(1, 6)] + ["test_batch.bin"]
    images = random_images(6 * count, size=32).reshape(6, count, 32, 32, 3)
    labels = np.arange(6 * count, dtype=np.uint8).reshape(6, count) % 10
    with tarfile.open(path, "w:gz") as tar:
        planes = images.transpose(0, 1, 4, 2, 3).reshape(6, count, -1)
        records = np.concatenate([labels[..., None], planes], axis=-1)
        contents = [record.tobytes() for record in records]
        names = "\n".join([*CLASSES.split(), "", ""]).encode()
        pairs = zip([*files, "batches.meta.txt"], [*contents, names], strict=True)
        for name, content in pairs:
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    flat = images.reshape(-1, 32, 32, 3)
    return (flat[: 5 * count], labels[:5].ravel()), (flat[5 * count :], labels[5].ravel())


def mnist_archives(folder, count=6):
    """The four idx archives of MNIST, in small; images and labels of train and test."""
    folder.mkdir(parents=True, exist_ok=True)
    splits = []
    for seed, prefix in enumerate(("train", "t10k")):
        images = random_images(count, size=28, channels=1, seed=seed)
        labels = np.arange(count, dtype=np.uint8) % 10
        for kind, array in (("images-idx3", images[..., 0]), ("labels-idx1", labels)):
            head = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
            path = folder / f"{prefix}-{kind}-ubyte.gz"
            path.write_bytes(gzip.compress(head + array.tobytes()))
        splits.append((images, labels))
    return splits


def expect_archives(monkeypatch, name, folder):
    """Registers the checksums of the archives in `folder` as those of data set `name`."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import checksums

    stock = tfds.builder_cls(name)
    found = {
        url: checksums.compute_url_info(folder / info.filename)
        for url, info in stock.url_infos.items()
    }
    monkeypatch.setattr(stock, "url_infos", found)


def assert_same_images(data, splits):
    """The records are shuffled once when they are written: compares as sets of (image, label)."""
    stored = [(data.train, data.train_labels), (data.test, data.test_labels)]
    for (images, labels), (expected, numbers) in zip(stored, splits, strict=True):
        pairs = [(bytes(x), int(k)) for x, k in zip(images, labels, strict=True)]
        expected_pairs = [(bytes(x), int(k)) for x, k in zip(expected, numbers, strict=True)]
        assert sorted(pairs) == sorted(expected_pairs)


def assert_streamed_is(held, streamed):
    """Images that are read when they are indexed, beside the same in memory."""
    for split in ("train", "test"):
        images, labels = getattr(held, split), getattr(held, f"{split}_labels")
        assert isinstance(images, np.ndarray)
        read = getattr(streamed, split)
        assert not isinstance(read, np.ndarray)
        assert (read.shape, read.dtype, read.size) == (images.shape, images.dtype, images.size)
        np.testing.assert_array_equal(read[:], images)
        if labels is None:
            assert getattr(streamed, f"{split}_labels") is None
        else:
            np.testing.assert_array_equal(getattr(streamed, f"{split}_labels"), labels)
    assert held.class_names == streamed.class_names
    assert held.fingerprint == streamed.fingerprint
    assert held.fingerprints == streamed.fingerprints
