"""Preparation of tensorflow-datasets, once, into records that are read without TensorFlow.

The records are array_record files, which the library's own data source reads without TensorFlow.
Its stock builders read archives with TensorFlow, so preparing needs it too. The builders below
replace that step for CIFAR-10, MNIST and Fashion-MNIST, and write the same records.
"""

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

from files.copies import local_copy
from files.kinds import require_file
from files.paths import as_path, in_bucket

_PREPARE = "`python main.py --config=... --mode=prepare`"


def _data_root(data_dir: str | os.PathLike[str], name: str) -> Path:
    """Return `data_dir`, else TFDS_DATA_DIR, else ~/tensorflow_datasets.

    Of a bucket, it is the folder of a copy of the data set `name` on this machine.
    """
    chosen = _chosen(data_dir)
    if in_bucket(chosen):
        return local_copy(as_path(chosen) / _base(name)).parent
    return Path(os.path.expanduser(chosen))


def _chosen(data_dir: str | os.PathLike[str]) -> str:
    return os.fspath(data_dir) or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"


def _base(name: str) -> str:
    """Return the folder of a data set in `config.data.dir`, without configuration and version."""
    return name.split("/")[0].split(":")[0]


def _manual_dir(root: Path, builder: Any) -> Path:
    """Return the folder of archives that were put there by hand.

    Its subfolder named like the data set comes first: MNIST and Fashion-MNIST give their archives
    the same names, so one folder cannot hold both.
    """
    manual = root / "downloads/manual"
    own = manual / builder.name
    return own if own.is_dir() else manual


def registered_names() -> list[str]:
    """Return the names that tensorflow-datasets knows; none where it is not installed."""
    try:
        import tensorflow_datasets as tfds
    except ImportError:
        return []
    return tfds.list_builders(with_community_datasets=False)  # the community's need the network


def _stock_builder(name: str, root: Path) -> Any:
    """Return the tensorflow-datasets builder of a registered name.

    Raises:
        ValueError: for an unknown configuration or version of the data set, or where stored
            descriptions are damaged.
    """
    import tensorflow_datasets as tfds

    if os.path.exists(root) and not os.path.isdir(root):
        raise ValueError(f"config.data.dir={str(root)!r} is not a folder; give one")
    for info in (root / _base(name)).glob("**/dataset_info.json"):
        require_file(info, f"config.data.name={name!r}: {info}")
    try:
        return tfds.builder(name, data_dir=root)
    # Beside its own errors, those of the parser where stored descriptions are damaged.
    except Exception as error:
        raise ValueError(f"config.data.name={name!r}: {_first_line(error)}") from error


def _is_prepared(builder: Any) -> bool:
    """Return whether the directory is complete.

    Raises:
        ValueError: if only TensorFlow reads its records.
    """
    if not (builder.data_path / "dataset_info.json").exists():
        return False
    found = builder.info.file_format.value
    if found != "array_record":
        raise ValueError(
            f"{builder.data_path} holds {found} records, which only TensorFlow reads; move it "
            f"away, or set config.data.dir to a fresh directory, and run {_PREPARE}"
        )
    return True


def open_prepared(name: str, data_dir: str | os.PathLike[str]) -> Any:
    """Return the tensorflow-datasets builder of a prepared set.

    Raises:
        FileNotFoundError: if it is not prepared.
        ValueError: if its configuration is unknown, or only TensorFlow reads its records.
    """
    root = _data_root(data_dir, name)
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


def record_files(name: str, data_dir: str | os.PathLike[str], split: str) -> list[str]:
    """Return the array_record files of a prepared split, in order."""
    builder = open_prepared(name, data_dir)
    return [os.fspath(path) for path in builder.info.splits[split].filepaths]


def prepare(name: str, data_dir: str | os.PathLike[str]) -> str:
    """Download a registered data set once, into records that are read without TensorFlow.

    An interrupted preparation leaves nothing that counts as prepared. The next call redoes it and
    deletes what a killed one left, so prepare a data set once at a time. Archives in
    <data_dir>/downloads/manual, or in its subfolder `name`, are used instead of the network.

    Args:
        name: a name of tensorflow-datasets.
        data_dir: "" for TFDS_DATA_DIR, else ~/tensorflow_datasets.

    Returns:
        One line that says where it is.

    Raises:
        ConnectionError: if an archive can neither be found nor downloaded.
        ValueError: for an unknown configuration or a damaged archive.
        RuntimeError: if TensorFlow is needed and missing.
    """
    root = _data_root(data_dir, name)
    builder = _stock_builder(name, root)
    if not _is_prepared(builder):
        if in_bucket(chosen := _chosen(data_dir)):
            raise ValueError(
                f"config.data.dir={chosen!r} does not hold {name!r} prepared; prepare it in a "
                "folder of this machine, and copy that by `gcloud storage cp --recursive "
                f"FOLDER/{_base(name)} {chosen}/`"
            )
        manual = _manual_dir(root, builder)
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
    """Delete the temporary copies of this very version that killed preparations left beside it."""
    # The names that tensorflow-datasets gives them, in newer and in older versions.
    for pattern in (f"incomplete.??????_{directory.name}", f"{directory.name}.incomplete??????"):
        for leftover in directory.parent.glob(pattern):
            shutil.rmtree(leftover)


def _download_and_prepare(builder: Any, manual: Path) -> None:
    """Let tensorflow-datasets prepare the set; its download errors become one line."""
    import requests
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

    config = tfds.download.DownloadConfig(
        manual_dir=manual,
        try_download_gcs=False,
        # Overwrite a directory without dataset_info.json, which would pass for finished.
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
    """Raise if an archive is damaged, or neither on disk nor within reach."""
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
                f"expected {info.checksum}; download it again from {url}"
            )


def _check_reachable(builder: Any, url: str, manual: Path) -> None:
    """Raise ConnectionError after one short request: tensorflow-datasets retries for minutes."""
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


def _cifar10_builder(stock: Any) -> Any:
    """Return the stock builder, with archives read without TensorFlow."""

    # The stock builder, which is known at run time alone, takes the keyword.
    class Cifar10(stock, skip_registration=True):  # pyright: ignore[reportGeneralTypeIssues, reportCallIssue]
        name = stock.name
        url_infos = stock.url_infos

        def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, Any]]]:
            layout = self._cifar_info
            files = _read_tar(Path(dl_manager.download(layout.url)), layout.prefix)
            names = files[layout.label_files[0]].decode().split()
            self.info.features["label"].names = names
            return {
                "train": self._generate_examples("train_", [files[f] for f in layout.train_files]),
                "test": self._generate_examples("test_", [files[f] for f in layout.test_files]),
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


def _mnist_builder(stock: Any) -> Any:
    """Return the stock builder, with archives read without TensorFlow."""

    # The stock builder, which is known at run time alone, takes the keyword.
    class Mnist(stock, skip_registration=True):  # pyright: ignore[reportGeneralTypeIssues, reportCallIssue]
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
    """Return the files below `prefix` in a .tar.gz, by name."""
    try:
        with tarfile.open(archive) as tar:
            return {
                member.name.removeprefix(prefix): file.read()
                for member in tar
                if member.name.startswith(prefix) and (file := tar.extractfile(member))
            }
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{archive} is damaged, download it again: {error}") from error


def _read_idx(archive: Path) -> UInt8[np.ndarray, "..."]:
    """Read a gzipped idx file: two zeros, type 8 (uint8), rank, big-endian int32 shape, data."""
    try:
        content = gzip.decompress(archive.read_bytes())
        shape = np.frombuffer(content, ">i4", count=content[3], offset=4)
        return np.frombuffer(content, np.uint8, offset=4 + 4 * content[3]).reshape(shape)
    except (OSError, EOFError, IndexError, ValueError, zlib.error) as error:
        raise ValueError(f"{archive} is damaged, download it again: {error}") from error
