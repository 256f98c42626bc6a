"""Names and places of data sets, and their preparation for reading without TensorFlow.

A tensorflow-datasets name is prepared once into array_record files, which its own data source reads
without TensorFlow. Preparing needs TensorFlow too, as the stock builders read archives with it; the
builders below replace that step for CIFAR-10, MNIST and Fashion-MNIST, with the same records.
"""

import difflib
import gzip
import hashlib
import importlib.util
import os
import shutil
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

DIGITS = "digits"

_PREPARE = "`python main.py --config=... --mode=prepare`"


# Names and places.


def as_path(name: str) -> Path | None:
    """The file or folder that `name` means, or None for a tensorflow-datasets name."""
    path = Path(name).expanduser()
    if name.endswith(".npz") or path.is_dir():
        return path
    if not {"/", os.sep}.intersection(name):
        return None
    # A tensorflow-datasets name may carry a configuration: celeb_a_hq/256.
    return None if name.split("/")[0] in _registered_names() else path


def _data_root(data_dir: str | os.PathLike[str]) -> Path:
    """`data_dir`, else TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    chosen = os.fspath(data_dir) or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return Path(chosen).expanduser()


def _manual_dir(root: Path, builder: Any, manual_dir: str | os.PathLike[str] = "") -> Path:
    """Where archives are put by hand; its subfolder named like the data set comes first.

    MNIST and Fashion-MNIST give their archives the same names, so one folder cannot hold both.
    """
    manual = Path(manual_dir).expanduser() if os.fspath(manual_dir) else root / "downloads/manual"
    own = manual / builder.name
    return own if own.is_dir() else manual


def _registered_names() -> list[str]:
    """The names that tensorflow-datasets knows; none where it is not installed."""
    try:
        import tensorflow_datasets as tfds
    except ImportError:
        return []
    return tfds.list_builders(with_community_datasets=False)  # the community's need the network


def _stock_builder(name: str, root: Path) -> Any:
    """The tensorflow-datasets builder of `name`; ValueError with near matches if unknown."""
    known = _registered_names()
    base = name.split("/")[0].split(":")[0]
    if base not in known:
        near = difflib.get_close_matches(base, [DIGITS, *known], n=3)
        hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
        missing = "" if known else " (not installed: pip install tensorflow-datasets array-record)"
        raise ValueError(
            f"config.data.name={name!r} is unknown: {hint}Choose 'digits', the path of an .npz or "
            f"of a folder of images, or a name of tensorflow-datasets{missing}"
        )
    import tensorflow_datasets as tfds

    try:
        return tfds.builder(name, data_dir=root)
    except (ValueError, AssertionError) as error:  # an unknown configuration or version
        raise ValueError(f"config.data.name={name!r}: {_first_line(error)}") from error


def _is_prepared(builder: Any) -> bool:
    """Whether the directory is complete; ValueError if only TensorFlow reads its records."""
    if not (builder.data_path / "dataset_info.json").exists():
        return False
    found = builder.info.file_format.value
    if found != "array_record":
        raise ValueError(
            f"{builder.data_path} holds {found} records, which only TensorFlow reads; move it "
            f"away, or set config.data.dir to a fresh directory, and run {_PREPARE}"
        )
    return True


# Preparation.


def open_prepared(name: str, data_dir: str | os.PathLike[str]) -> Any:
    """The tensorflow-datasets builder of a prepared set.

    Raises FileNotFoundError if it is not prepared, ValueError if it is unknown or needs TensorFlow.
    """
    root = _data_root(data_dir)
    builder = _stock_builder(name, root)
    if not _is_prepared(builder):
        files = [info.filename for info in (builder.url_infos or {}).values()]
        archives = ", ".join(files) if builder.name in _TENSORFLOW_FREE else "its archives"
        raise FileNotFoundError(
            f"config.data.name={name!r} is not prepared: no {builder.data_path} (config.data.dir). "
            f"Run {_PREPARE}, which downloads it; offline, first put {archives} into "
            f"{_manual_dir(root, builder)}"
        )
    return builder


def prepare(
    name: str,
    *,
    data_dir: str | os.PathLike[str] = "",
    manual_dir: str | os.PathLike[str] = "",
) -> str:
    """Downloads a tensorflow-datasets name once, into records that are read without TensorFlow.

    Returns one line that says where it is, or that digits and paths need no preparation. Archives
    in `manual_dir` (default: <data_dir>/downloads/manual) or its subfolder `name` are used instead
    of the network. An interrupted preparation leaves nothing that counts as prepared; the next call
    redoes it and deletes what a killed one left, so prepare a data set once at a time.

    Raises ConnectionError when an archive can neither be found nor fetched, ValueError for an
    unknown name or a damaged archive, RuntimeError when TensorFlow is needed and missing.
    """
    if name == DIGITS or as_path(name) is not None:
        return f"config.data.name={name!r} needs no preparation"
    root = _data_root(data_dir)
    builder = _stock_builder(name, root)
    if not _is_prepared(builder):
        manual = _manual_dir(root, builder, manual_dir)
        if builder.name in _TENSORFLOW_FREE:
            builder = _TENSORFLOW_FREE[builder.name](type(builder))(data_dir=root)
            _check_archives(builder, root / "downloads", manual)
        elif importlib.util.find_spec("tensorflow") is None:
            raise RuntimeError(
                f"config.data.name={name!r}: preparing it needs TensorFlow once (reading never "
                "does): pip install tensorflow-cpu"
            )
        _delete_leftovers(Path(builder.data_path))
        _download_and_prepare(builder, manual)
    return f"{name} is prepared in {builder.data_path}"


def _delete_leftovers(directory: Path) -> None:
    """Deletes the temporary copies of this very version that killed preparations left beside it."""
    # The names that tensorflow-datasets gives them now, and gave them before.
    for pattern in (f"incomplete.??????_{directory.name}", f"{directory.name}.incomplete??????"):
        for leftover in directory.parent.glob(pattern):
            shutil.rmtree(leftover)


def _download_and_prepare(builder: Any, manual: Path) -> None:
    """The preparation by tensorflow-datasets, its errors of fetching in one line."""
    import requests
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

    config = tfds.download.DownloadConfig(
        manual_dir=manual,
        try_download_gcs=False,
        # Overwrites a directory without dataset_info.json, which would pass for finished.
        download_mode=tfds.download.GenerateMode.REUSE_CACHE_IF_EXISTS,
    )
    try:
        builder.download_and_prepare(download_config=config, file_format="array_record")
    except NonMatchingChecksumError as error:
        raise ValueError(
            f"config.data.name={builder.name!r}: {_first_line(error).rstrip(':')}; "
            f"run {_PREPARE} again, or put the right archive into {manual}"
        ) from error
    except (tfds.download.DownloadError, requests.RequestException) as error:
        raise ConnectionError(
            f"config.data.name={builder.name!r}: the download failed ({_first_line(error)}); "
            f"run {_PREPARE} again, or put the archives into {manual}"
        ) from error


def _check_archives(builder: Any, downloads: Path, manual: Path) -> None:
    """Fails at once where an archive is damaged, or neither here nor within reach."""
    from tensorflow_datasets.core.download.resource import get_dl_fname

    for url, info in builder.url_infos.items():
        archive = manual / info.filename
        if not archive.is_file():
            cached = get_dl_fname(url, info.checksum)
            if next(downloads.rglob(cached), None) is None:
                _check_reachable(builder, url, manual)
            continue
        with archive.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != info.checksum:
            raise ValueError(
                f"{archive} is not the {info.filename} of {builder.name}: its sha256 is {digest}, "
                f"expected {info.checksum}; fetch it again from {url}"
            )


def _check_reachable(builder: Any, url: str, manual: Path) -> None:
    """One short request: tensorflow-datasets itself retries for minutes."""
    import requests

    try:
        with requests.get(url, stream=True, timeout=5) as response:
            response.raise_for_status()
    except requests.RequestException as error:
        archives = ", ".join(info.filename for info in builder.url_infos.values())
        raise ConnectionError(
            f"config.data.name={builder.name!r}: cannot reach {url} ({type(error).__name__}); put "
            f"{archives} into {manual} and run {_PREPARE} again"
        ) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


# The stock builders, reading their archives without TensorFlow.


def _cifar10_builder(stock: type) -> type:
    class Cifar10(stock, skip_registration=True):
        name = stock.name
        url_infos = stock.url_infos

        def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, Any]]]:
            layout = self._cifar_info
            files = _read_tar(Path(dl_manager.download(layout.url)), layout.prefix)
            names = files[layout.label_files[0]].decode().split()
            self.info.features["label"].names = names
            return {
                "train": self._generate_examples("train_", map(files.get, layout.train_files)),
                "test": self._generate_examples("test_", map(files.get, layout.test_files)),
            }

        def _generate_examples(
            self, split_prefix: str, batches: Iterable[bytes]
        ) -> Iterator[tuple[int, Any]]:
            from PIL import Image

            # A record is one label and the planes R, G, B of 32x32.
            records = np.frombuffer(b"".join(batches), np.uint8).reshape(-1, 1 + 3 * 32 * 32)
            images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
            for key, (label, image) in enumerate(zip(records[:, 0], images, strict=True)):
                picture = Image.fromarray(np.ascontiguousarray(image))
                yield key, {"id": f"{split_prefix}{key:05d}", "image": picture, "label": int(label)}

    return Cifar10


def _mnist_builder(stock: type) -> type:
    class Mnist(stock, skip_registration=True):
        name = stock.name
        url_infos = stock.url_infos

        def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, Any]]]:
            archives = dl_manager.download({i.filename: url for url, i in self.url_infos.items()})
            return {
                split: self._generate_examples(
                    _read_idx(Path(archives[f"{prefix}-images-idx3-ubyte.gz"])),
                    _read_idx(Path(archives[f"{prefix}-labels-idx1-ubyte.gz"])),
                )
                for split, prefix in {"train": "train", "test": "t10k"}.items()
            }

        def _generate_examples(
            self, images: UInt8[np.ndarray, "n 28 28"], labels: UInt8[np.ndarray, " n"]
        ) -> Iterator[tuple[int, Any]]:
            from PIL import Image

            for key, (image, label) in enumerate(zip(images, labels, strict=True)):
                yield key, {"image": Image.fromarray(image), "label": int(label)}

    return Mnist


_TENSORFLOW_FREE = {
    "cifar10": _cifar10_builder,
    "mnist": _mnist_builder,
    "fashion_mnist": _mnist_builder,
}


def _read_tar(archive: Path, prefix: str) -> dict[str, bytes]:
    """The files below `prefix` of a .tar.gz, by name."""
    try:
        with tarfile.open(archive) as tar:
            members = [m for m in tar if m.isfile() and m.name.startswith(prefix)]
            return {m.name.removeprefix(prefix): tar.extractfile(m).read() for m in members}
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{archive} is damaged, fetch it again: {error}") from error


def _read_idx(archive: Path) -> UInt8[np.ndarray, "..."]:
    """An idx file (gzip): two zeros, type 8 (uint8), rank, big-endian int32 shape, the data."""
    try:
        content = gzip.decompress(archive.read_bytes())
        shape = np.frombuffer(content, ">i4", count=content[3], offset=4)
        return np.frombuffer(content, np.uint8, offset=4 + 4 * content[3]).reshape(shape)
    except (OSError, EOFError, IndexError, ValueError, zlib.error) as error:
        raise ValueError(f"{archive} is damaged, fetch it again: {error}") from error
