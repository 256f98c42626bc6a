"""Laws of the data pipeline: round trips, counters instead of state, and real archives in small."""

import gzip
import io
import math
import os
import signal
import socket
import struct
import subprocess
import sys
import tarfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from data import batches as module
from data import datasets
from data.batches import TrainingBatches
from data.datasets import ImageData, load
from data.preparation import prepare
from data.scaling import ImageScaler, Quantizer

CIFAR_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
CLASSES = "airplane automobile bird cat deer dog frog horse ship truck"


@pytest.fixture(autouse=True)
def _sandbox(tmp_path, monkeypatch):
    """No test reaches the network or the user's home: names do not resolve, the home is empty."""

    def refuse(host, *args, **kwargs):
        raise socket.gaierror(socket.EAI_NONAME, f"no network in tests: {host}")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)


def random_images(count, size=4, channels=3, seed=0):
    shape = (count, size, size, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def batches(images, **changes):
    settings = {"batch_size": 8, "seed": 3, "random_flip": True, "dequantize": True}
    return TrainingBatches(images=images, **{**settings, **changes})


def one_line(error):
    return "\n" not in str(error.value)


# Value ranges.


@pytest.mark.parametrize("levels", [2, 3, 17, 100, 200, 255, 256])
def test_quantizer_inverts_both_of_its_maps_exactly(levels):
    quantizer = Quantizer(gray_levels=levels)
    stored = np.arange(levels, dtype=np.uint8)
    np.testing.assert_array_equal(quantizer.quantize(quantizer.normalize(stored)), stored)
    for noise in (0.0, 2**-16, 0.5, 1 - 2**-16):
        x = quantizer.dequantize(stored, np.full(levels, noise, np.float32))
        assert x.dtype == np.float32
        assert x.min() >= 0
        assert x.max() < 1
        np.testing.assert_array_equal(quantizer.quantize(x, dequantized=True), stored)


def test_quantize_takes_the_nearest_level_and_clips():
    x = jnp.array([-0.3, 0.4 / 16, 0.6 / 16, 1.0, 7.0])
    np.testing.assert_array_equal(Quantizer(gray_levels=17).quantize(x), [0, 0, 1, 16, 16])
    with pytest.raises(ValueError, match="1 of 2 are NaN"):
        Quantizer().quantize(np.array([0.0, np.nan]))


def test_pictures_span_black_to_white():
    stored = np.arange(17, dtype=np.uint8)
    picture = Quantizer(gray_levels=17).to_uint8(stored)
    np.testing.assert_allclose(picture / 255, stored / 16, atol=0.5 / 255)
    np.testing.assert_array_equal(Quantizer().to_uint8(np.arange(256, dtype=np.uint8)), range(256))


def test_quantizer_log_det_is_the_slope_of_dequantization():
    quantizer = Quantizer(gray_levels=17)
    noise = np.full(5, 0.25, np.float32)
    low, high = (quantizer.dequantize(np.full(5, k, np.uint8), noise) for k in (4, 5))
    assert quantizer.log_det(5) == pytest.approx(np.log(high - low).sum(), rel=1e-5)


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (0.0, 1.0), (-0.5, 3.0)])
def test_scaler_log_det_is_its_jacobian_and_inverse_undoes_it(low, high):
    scaler = ImageScaler(low=low, high=high)
    x = np.linspace(0, 1, 6, dtype=np.float32)
    jacobian = jax.jacobian(scaler.forward)(jnp.asarray(x))
    assert scaler.log_det(6) == pytest.approx(float(jnp.linalg.slogdet(jacobian)[1]), abs=1e-5)
    y = scaler.forward(x)
    assert isinstance(y, np.ndarray)
    assert isinstance(scaler.inverse(jnp.asarray(y)), jax.Array)
    np.testing.assert_allclose([y.min(), y.max()], [low, high])
    np.testing.assert_allclose(scaler.inverse(y), x, atol=1e-6)
    np.testing.assert_array_equal(x, np.linspace(0, 1, 6, dtype=np.float32))  # not in place


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Quantizer(gray_levels=1), r"levels=1: .*2\.\.256"),
        (lambda: Quantizer(gray_levels=257), r"levels=257: .*2\.\.256"),
        (lambda: ImageScaler(low=1.0, high=1.0), "low < high"),
        (lambda: ImageScaler(high=math.inf), "finite"),
        (lambda: batches(random_images(0)), "empty"),
        (lambda: batches(random_images(3), batch_size=0), r"config\.training\.batch_size=0"),
        (lambda: batches(random_images(3), seed=-1), r"config\.seed=-1"),
        (lambda: batches(random_images(3)).at(-1), "step=-1"),
        (lambda: batches(random_images(3)).at(0, slice(0, 8, 2)), "stride of 1"),
        (lambda: ImageData(name="x", train=random_images(3), test=random_images(0)), "alike"),
        (
            lambda: ImageData(
                name="x",
                train=random_images(3),
                test=random_images(2),
                quantizer=Quantizer(gray_levels=9),
            ),
            r"levels should be 0\.\.8",
        ),
    ],
)
def test_nonsense_is_refused(build, message):
    with pytest.raises(ValueError, match=message) as error:
        build()
    assert one_line(error)


# The training stream.


@pytest.mark.parametrize("batch_size", [1, 7, 10, 64])
def test_every_epoch_holds_every_image_once_and_in_another_order(batch_size):
    count, epochs = 10, 14
    stream = batches(random_images(count), batch_size=batch_size)
    steps = -(-count * epochs // batch_size)
    order = np.concatenate([stream.indices(step) for step in range(steps)])
    order = order[: count * epochs].reshape(epochs, count)
    np.testing.assert_array_equal(np.sort(order, axis=1), np.tile(range(count), (epochs, 1)))
    assert len(np.unique(order, axis=0)) == epochs


def test_a_batch_depends_on_seed_and_step_alone():
    images = random_images(30)
    walked = [batches(images).at(step) for step in range(12)]
    for step in (11, 0, 5, 11):
        module._permutation.cache_clear()
        np.testing.assert_array_equal(batches(images).at(step), walked[step])
    assert not np.array_equal(batches(images, seed=4).at(5), walked[5])


@pytest.mark.parametrize("dequantize", [True, False])
def test_the_rows_of_all_hosts_are_the_whole_batch(dequantize):
    stream = batches(random_images(30, size=3), dequantize=dequantize)  # 27 numbers: a ragged word
    parts = [stream.at(4, slice(k, k + 2)) for k in range(0, 8, 2)]
    np.testing.assert_array_equal(np.concatenate(parts), stream.at(4))
    assert stream.at(4, slice(8, 8)).shape == (0, 3, 3, 3)


def test_batches_hold_the_images_flipped_half_the_time():
    images = random_images(200)
    kept = images.copy()
    stream = batches(images, batch_size=500, dequantize=False, quantizer=Quantizer())
    flips = 0
    for step in range(4):
        x = stream.at(step)
        stored = Quantizer().quantize(stream.scaler.inverse(x))
        source = images[stream.indices(step)]
        upright = (stored == source).all(axis=(1, 2, 3))
        mirrored = (stored == source[:, :, ::-1]).all(axis=(1, 2, 3))
        assert (upright ^ mirrored).all()
        flips += mirrored.sum()
    assert abs(flips / 2000 - 0.5) < 5 * 0.5 / math.sqrt(2000)  # five standard deviations
    np.testing.assert_array_equal(images, kept)
    plain = batches(images, dequantize=False, random_flip=False)
    np.testing.assert_array_equal(
        Quantizer().quantize(plain.scaler.inverse(plain.at(3))), images[plain.indices(3)]
    )


def test_dequantization_noise_is_uniform_within_the_bin_of_its_level():
    images = np.full((50, 8, 8, 3), 255, np.uint8)
    stream = batches(images, batch_size=400, scaler=ImageScaler(low=-1.0, high=1.0))
    x = stream.at(2)
    assert x.dtype == np.float32
    unit = stream.scaler.inverse(x)
    assert unit.max() < 1
    np.testing.assert_array_equal(Quantizer().quantize(unit, dequantized=True), 255)
    noise = unit * 256 - 255
    histogram = np.histogram(noise, bins=16, range=(0, 1))[0]
    expected = noise.size / 16
    assert ((histogram - expected) ** 2 / expected).sum() < 60  # chi-squared, 15 degrees: p < 1e-6
    neighbours = np.corrcoef(noise[:-1].ravel(), noise[1:].ravel())[0, 1]
    assert abs(neighbours) < 5 / math.sqrt(noise.size)
    assert not np.array_equal(x, stream.at(3))


def test_noise_of_a_test_image_does_not_depend_on_its_batch():
    images = random_images(20, size=3)
    settings = {"seed": 1, "quantizer": Quantizer(), "scaler": ImageScaler(low=0.0)}
    whole = module.test_batch(images, range(20), draw=0, **settings)
    for chosen in ([7], [19, 0, 7], []):
        part = module.test_batch(images, chosen, draw=0, **settings)
        np.testing.assert_array_equal(part, whole[chosen])
    again = module.test_batch(images, range(20), draw=1, **settings)
    assert (again != whole).mean() > 0.9
    for x in (whole, again):
        np.testing.assert_array_equal(Quantizer().quantize(x, dequantized=True), images)
    clean = module.test_batch(images, [3], draw=0, dequantize=False, **settings)
    np.testing.assert_array_equal(Quantizer().quantize(clean), images[[3]])
    with pytest.raises(IndexError, match=r"0\.\.19"):
        module.test_batch(images, [-1], draw=0, **settings)


# Sources.


def test_digits_are_the_whole_set_split_once():
    from sklearn.datasets import load_digits

    data = load("digits", image_size=8, channels=1)
    assert data.train.shape == (datasets.train_count("digits"), 8, 8, 1)
    assert data.test.shape == (297, 8, 8, 1)
    assert data.quantizer.gray_levels == 17
    source = load_digits()

    def rows(images, labels):
        return sorted(map(bytes, np.column_stack([images.reshape(len(images), -1), labels])))

    ours = np.concatenate([data.train, data.test])
    labels = np.concatenate([data.train_labels, data.test_labels])
    stored = source.images.astype(np.uint8)
    assert rows(ours, labels.astype(np.uint8)) == rows(stored, source.target.astype(np.uint8))
    np.testing.assert_array_equal(load("digits", image_size=8, channels=1).test, data.test)
    other = load("digits", image_size=8, channels=1, split_seed=1)
    assert not np.array_equal(other.test, data.test)
    with pytest.raises(ValueError, match=r"config\.data\.resize='crop'"):
        load("digits", image_size=16, channels=1, resize="crop")


def test_digits_do_not_import_tensorflow_datasets():
    code = (
        "import sys, input_pipeline as p; p.load('digits', image_size=8, channels=1);"
        "print([m for m in ('tensorflow_datasets', 'tensorflow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_npz_with_train_and_test(tmp_path):
    train, test = random_images(5), random_images(3, seed=1)
    for keys in (("train", "test"), ("train_images", "test_images")):
        path = tmp_path / f"{keys[0]}.npz"
        np.savez(path, **dict(zip(keys, (train, test), strict=True)), train_labels=np.arange(5))
        data = load(str(path), image_size=4, channels=3)
        np.testing.assert_array_equal(data.train, train)
        np.testing.assert_array_equal(data.test, test)
        np.testing.assert_array_equal(data.train_labels, range(5))
        assert data.test_labels is None


def test_npz_with_one_set_holds_out_a_tenth(tmp_path):
    images = np.arange(40, dtype=np.uint8)[:, None, None] * np.ones((4, 4), np.uint8)
    np.savez(tmp_path / "set.npz", images=images, labels=np.arange(40))
    data = load(str(tmp_path / "set.npz"), image_size=4, channels=1)
    assert len(data.test) == 4
    np.testing.assert_array_equal(data.train[:, 0, 0, 0], data.train_labels)
    np.testing.assert_array_equal(data.test[:, 0, 0, 0], data.test_labels)
    assert sorted([*data.train_labels, *data.test_labels]) == list(range(40))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": np.full((3, 4, 4, 3), np.nan)}, "float64 with NaN"),
        ({"images": np.zeros((3, 4, 4, 3), np.float32)}, "float32; store levels 0..255 as uint8"),
        ({"images": np.zeros((3, 4), np.uint8)}, "NHWC or NHW"),
        ({"images": np.zeros((0, 4, 4, 3), np.uint8)}, "NHWC or NHW"),
        ({"images": np.zeros((1, 4, 4, 3), np.uint8)}, "has 1 image"),
        ({"train": random_images(3)}, "expected train and test"),
        ({"images": random_images(3), "labels": np.zeros(2, int)}, "expected 3 integers"),
        ({"images": random_images(3, channels=1)}, r"config\.data\.channels=3.* has 1;"),
        ({"images": random_images(3, size=6)}, r"image_size=4.* 6x6 .* config\.data\.image_size=6"),
        ({"images": np.array([None, {}])}, "cannot be read"),
    ],
)
def test_unfit_arrays_are_named(tmp_path, arrays, message):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(ValueError, match=message) as error:
        load(str(tmp_path / "bad.npz"), image_size=4, channels=3)
    assert "bad.npz" in str(error.value)
    assert one_line(error)


def test_damaged_and_missing_files_are_named(tmp_path):
    np.savez_compressed(tmp_path / "cut.npz", images=random_images(50))
    whole = (tmp_path / "cut.npz").read_bytes()
    for damaged in (b"not a zip", whole[:200] + bytes(200) + whole[400:]):
        (tmp_path / "cut.npz").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"cut\.npz"):
            load(str(tmp_path / "cut.npz"), image_size=4, channels=3)
    for missing in ("no.npz", "no/folder"):
        with pytest.raises(FileNotFoundError, match=missing):
            load(str(tmp_path / missing), image_size=4, channels=3)


def save_folder(root, names, images):
    for name, image in zip(names, images, strict=True):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.squeeze()).save(root / name)


def test_folder_with_splits_and_classes(tmp_path):
    train, test = random_images(4), random_images(2, seed=1)
    save_folder(tmp_path / "train", ["dog/b.png", "cat/a.png", "cat/b.PNG", "dog/a.bmp"], train)
    save_folder(tmp_path / "test", ["cat/a.png", "dog/z.png"], test)
    (tmp_path / "train/cat/._a.png").write_bytes(b"hidden, not an image")
    data = load(str(tmp_path), image_size=4, channels=3)
    np.testing.assert_array_equal(data.train, train[[1, 2, 3, 0]])
    np.testing.assert_array_equal(data.test, test)
    np.testing.assert_array_equal(data.train_labels, [0, 0, 1, 1])
    np.testing.assert_array_equal(data.test_labels, [0, 1])


def test_flat_folder_holds_out_a_tenth_without_labels(tmp_path):
    images = random_images(20, channels=1)
    save_folder(tmp_path, [f"{k:02}.png" for k in range(20)], images)
    data = load(str(tmp_path), image_size=4, channels=1)
    assert (len(data.train), len(data.test), data.train_labels) == (18, 2, None)
    found = {bytes(x) for x in np.concatenate([data.train, data.test])}
    assert found == {bytes(x) for x in images}


def test_folder_pictures_of_other_modes(tmp_path):
    colour = random_images(1)[0]
    Image.fromarray(np.dstack([colour, np.full((4, 4), 255, np.uint8)])).save(tmp_path / "a.png")
    Image.fromarray(colour).quantize(256).save(tmp_path / "b.png")
    data = load(str(tmp_path), image_size=4, channels=3)
    np.testing.assert_array_equal(np.concatenate([data.train, data.test]), [colour, colour])


@pytest.mark.parametrize(
    ("save", "message"),
    [
        (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n nothing"), "not a readable image"),
        (lambda path: Image.new("RGBA", (4, 4), (9, 9, 9, 9)).save(path), "transparent"),
        (lambda path: Image.new("I;16", (4, 4)).save(path), "8 bits"),
        (lambda path: Image.new("L", (4, 4)).save(path), r"config\.data\.channels=3"),
    ],
)
def test_unfit_pictures_are_named(tmp_path, save, message):
    save_folder(tmp_path, ["a.png", "b.png"], random_images(2))
    save(tmp_path / "c.png")
    with pytest.raises(ValueError, match=rf"c\.png.*{message}|{message}.*c\.png") as error:
        load(str(tmp_path), image_size=4, channels=3)
    assert one_line(error)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no images below"):
        load(str(tmp_path), image_size=4, channels=3)


def test_resizing_is_a_choice(tmp_path):
    images = random_images(4, size=5)
    np.savez(tmp_path / "x.npz", train=images, test=images)
    padded = load(str(tmp_path / "x.npz"), image_size=8, channels=3, resize="pad").train
    np.testing.assert_array_equal(padded[:, 1:6, 1:6], images)
    assert padded.sum(dtype=int) == images.sum(dtype=int)
    for remedy in ("image_size=5", "pad"):
        with pytest.raises(ValueError, match=remedy):
            load(str(tmp_path / "x.npz"), image_size=8, channels=3)
    with pytest.raises(ValueError, match="'crop'"):
        load(str(tmp_path / "x.npz"), image_size=4, channels=3, resize="pad")
    with pytest.raises(ValueError, match=r"config\.data\.image_size=0"):
        load(str(tmp_path / "x.npz"), image_size=0, channels=3)
    with pytest.raises(ValueError, match="none, pad, crop"):
        load(str(tmp_path / "x.npz"), image_size=4, channels=3, resize="stretch")

    # A wide picture of one colour a column: the crop keeps the middle and the channels apart.
    wide = np.zeros((4, 6, 10, 3), np.uint8)
    wide[:, :, 2:8] = (10, 100, 200)
    np.savez(tmp_path / "x.npz", train=wide, test=wide)
    cropped = load(str(tmp_path / "x.npz"), image_size=3, channels=3, resize="crop").train
    np.testing.assert_array_equal(cropped, np.broadcast_to([10, 100, 200], cropped.shape))


# tensorflow-datasets without TensorFlow.


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


def test_cifar10_is_prepared_from_its_archive_and_read_back(tmp_path, monkeypatch, caplog):
    manual = tmp_path / "downloads/manual"
    splits = cifar_archive(manual / "cifar-10-binary.tar.gz")
    expect_archives(monkeypatch, "cifar10", manual)
    directory = tmp_path / "cifar10/3.0.2"
    message = f"cifar10 is prepared in {directory}"
    assert prepare("cifar10", data_dir=tmp_path) == message
    data = load("cifar10", image_size=32, channels=3, data_dir=tmp_path)
    assert_same_images(data, splits)
    assert "OpenCV" not in caplog.text
    names = (directory / "label.labels.txt").read_text().split()
    assert names == CLASSES.split()
    assert "tensorflow" not in sys.modules
    (manual / "cifar-10-binary.tar.gz").unlink()
    assert prepare("cifar10", data_dir=tmp_path) == message  # prepared once


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_mnist_is_prepared_from_its_archives_and_read_back(name, tmp_path, monkeypatch):
    folder = tmp_path / "elsewhere" / name  # both sets share archive names: one subfolder each
    splits = mnist_archives(folder)
    expect_archives(monkeypatch, name, folder)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    prepare(name, manual_dir=tmp_path / "elsewhere")
    assert_same_images(load(name, image_size=28, channels=1), splits)
    padded = load(name, image_size=32, channels=1, resize="pad")
    np.testing.assert_array_equal(
        padded.test[:, 2:30, 2:30], load(name, image_size=28, channels=1).test
    )


def test_an_interrupted_preparation_is_redone(tmp_path, monkeypatch):
    manual = tmp_path / "downloads/manual"
    splits = mnist_archives(manual)
    expect_archives(monkeypatch, "mnist", manual)
    real, calls = Image.fromarray, []

    def interrupt(array):
        calls.append(array)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return real(array)

    with monkeypatch.context() as patch:
        patch.setattr(Image, "fromarray", interrupt)
        with pytest.raises(KeyboardInterrupt):
            prepare("mnist", data_dir=tmp_path)
    with pytest.raises(FileNotFoundError, match="not prepared"):
        load("mnist", image_size=28, channels=1, data_dir=tmp_path)
    (tmp_path / "mnist/3.0.1").mkdir()  # a broken-off copy
    prepare("mnist", data_dir=tmp_path)
    assert_same_images(load("mnist", image_size=28, channels=1, data_dir=tmp_path), splits)


def test_a_killed_preparation_is_redone_and_its_leftovers_deleted(tmp_path):
    manual = tmp_path / "downloads/manual"
    splits = mnist_archives(manual)
    code = (
        "import os, sys, test_input_pipeline as t, data_preparation as p; from pathlib import Path;"
        "patch = t.pytest.MonkeyPatch(); root = Path(sys.argv[1]);"
        "t.expect_archives(patch, 'mnist', root / 'downloads/manual');"
        "len(sys.argv) == 2 or patch.setattr(t.Image, 'fromarray', lambda x: os.kill(0, 9));"
        "print(p.prepare('mnist', data_dir=root))"
    )

    def run(*arguments):
        command = [sys.executable, "-c", code, tmp_path, *arguments]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, sys.path))}
        return subprocess.run(command, capture_output=True, env=environment, process_group=0)

    assert run("kill").returncode == -signal.SIGKILL
    kept = [
        tmp_path / "mnist/incomplete.ABCDEF_3.0.0",
        tmp_path / "cifar10/incomplete.ABCDEF_3.0.2",
    ]
    for other in kept:
        other.mkdir(parents=True)
    assert len(list((tmp_path / "mnist").glob("incomplete.*_3.0.1"))) == 1
    assert b"mnist is prepared in" in run().stdout
    assert_same_images(load("mnist", image_size=28, channels=1, data_dir=tmp_path), splits)
    assert sorted(tmp_path.rglob("*incomplete*")) == sorted(kept)  # other sets' and versions'


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        ("checksum", (ValueError, r"'mnist': Artifact .*wrong checksum; run .*prepare")),
        (
            "download",
            (ConnectionError, r"'mnist': the download failed \(HTTP 503\); run .*prepare"),
        ),
        ("broken", (ConnectionError, r"failed \(ChunkedEncodingError\); .*downloads/manual")),
    ],
)
def test_errors_of_fetching_are_one_line(raised, expected, tmp_path, monkeypatch):
    import requests
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

    manual = tmp_path / "downloads/manual"
    mnist_archives(manual)
    expect_archives(monkeypatch, "mnist", manual)
    errors = {
        "checksum": NonMatchingChecksumError("Artifact URL has wrong checksum:\n* Expected: A"),
        "download": tfds.download.DownloadError("HTTP 503"),
        "broken": requests.exceptions.ChunkedEncodingError(),
    }

    def fail(*args, **kwargs):
        raise errors[raised]

    monkeypatch.setattr(tfds.download.DownloadManager, "download", fail)
    kind, message = expected
    with pytest.raises(kind, match=message) as error:
        prepare("mnist", data_dir=tmp_path)
    assert one_line(error)


def test_a_missing_set_fails_at_once_and_names_the_remedy(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        load("cifar10", image_size=32, channels=3, data_dir=tmp_path)
    expected = ("config.data.name='cifar10'", "cifar10/3.0.2", "--mode=prepare", "config.data.dir")
    for part in (*expected, "cifar-10-binary.tar.gz", str(tmp_path / "downloads/manual")):
        assert part in str(error.value)
    assert one_line(error)
    assert not list(tmp_path.rglob("*.tar.gz"))


def test_an_unreachable_archive_is_one_error(tmp_path):
    with pytest.raises(ConnectionError) as error:
        prepare("cifar10", data_dir=tmp_path)
    for part in (CIFAR_URL, "cifar-10-binary.tar.gz", str(tmp_path / "downloads/manual")):
        assert part in str(error.value)
    assert one_line(error)


def test_damaged_archives_are_named(tmp_path, monkeypatch):
    manual = tmp_path / "downloads/manual"
    cifar_archive(manual / "cifar-10-binary.tar.gz")
    with pytest.raises(ValueError, match=r"cifar-10-binary\.tar\.gz .*sha256") as error:
        prepare("cifar10", data_dir=tmp_path)
    assert one_line(error)
    whole = (manual / "cifar-10-binary.tar.gz").read_bytes()
    (manual / "cifar-10-binary.tar.gz").write_bytes(whole[: len(whole) // 2])
    expect_archives(monkeypatch, "cifar10", manual)
    with pytest.raises(ValueError, match=r"cifar-10-binary\.tar\.gz is damaged"):
        prepare("cifar10", data_dir=tmp_path)
    mnist_archives(manual)
    (manual / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(b"\0\0\x08\x01\0\0\0\x09"))
    expect_archives(monkeypatch, "mnist", manual)
    with pytest.raises(ValueError, match=r"t10k-labels-idx1-ubyte\.gz is damaged"):
        prepare("mnist", data_dir=tmp_path)


def test_records_of_another_format_are_refused(tmp_path, monkeypatch):
    mnist_archives(tmp_path / "downloads/manual")
    expect_archives(monkeypatch, "mnist", tmp_path / "downloads/manual")
    prepare("mnist", data_dir=tmp_path)
    info = tmp_path / "mnist/3.0.1/dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    for verb in (prepare, lambda *a, **k: load(*a, image_size=28, channels=1, **k)):
        with pytest.raises(ValueError, match="tfrecord"):
            verb("mnist", data_dir=tmp_path)


def test_names_are_checked(tmp_path):
    with pytest.raises(ValueError, match=r"'cifra10' is unknown.*cifar10") as error:
        load("cifra10", image_size=32, channels=3, data_dir=tmp_path)
    assert one_line(error)
    with pytest.raises(ValueError, match=r"did you mean 'digits'"):
        prepare("digit", data_dir=tmp_path)
    with pytest.raises(ValueError, match="cifar10/nonsense"):
        load("cifar10/nonsense", image_size=32, channels=3, data_dir=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"celeb_a_hq/64/2"):  # a name, not a path
        load("celeb_a_hq/64", image_size=64, channels=3, data_dir=tmp_path)


def test_what_needs_no_preparation_and_what_needs_tensorflow(tmp_path, monkeypatch):
    for name in ("digits", str(tmp_path), "some/where.npz"):
        assert prepare(name) == f"config.data.name={name!r} needs no preparation"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="pip install tensorflow-cpu"):
        prepare("svhn_cropped", data_dir=tmp_path)


def test_training_counts_are_known_without_loading():
    assert datasets.train_count("cifar10") == 50_000
    assert datasets.train_count("some/folder") is None
