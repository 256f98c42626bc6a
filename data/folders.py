"""Folders of images as people have them: splits, classes, links, and files that are not read.

    cat/1.png  dog/2.png                       classes
    train/1.png  val/2.png                     splits
    train/cat/1.png  test/cat/2.png            both

Every image file below the folder is either read or counted in a line for the user.
"""

import os
import stat
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Int32

from data.bytes import Stamp, read_file
from data.fingerprints import fingerprint_of
from data.listing import Files, Listing, Names, as_listed, kept_listing
from data.stored import SUFFIXES, Directory, ImageFile, ImageFiles, Split, Splits

TRAIN_NAMES = ("train", "training")
# Names of a split that is held out, in any capitals. The first that is there is the test split.
HELD_OUT_NAMES = ("test", "testing", "val", "valid", "validation", "dev")

_SHOWN = 8  # names in a message


def read_folder(name: str, data_dir: Directory) -> Splits:
    """Return the images of a folder, in the order of their paths.

    Folders named as `TRAIN_NAMES` and `HELD_OUT_NAMES` are splits. Within a split the subfolder of
    an image is its class, where all images lie in one of several subfolders. The classes are those
    of the training images. They are numbered in the order of their names, as numbers where all are.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it holds no images, or could be read in several ways.
    """
    path = Path(os.path.expanduser(name))
    where = f"config.data.name={str(path)!r}"
    if not os.path.isdir(path):
        found = (
            "a file, but neither an .npz file" if os.path.exists(path) else "neither an .npz file"
        )
        raise FileNotFoundError(f"{where} is {found} nor a folder of images")
    listing = kept_listing(path, partial(_list, where, path))
    tables = {split: listing.files[split] for split in ("train", "test") if split in listing.files}
    classes = {split: _classes(files.names) for split, files in tables.items()}
    numbers = {label: number for number, label in enumerate(classes["train"])}
    splits = {}
    for split, files in tables.items():
        notes, own = list(listing.facts[f"{split} notes"]), numbers
        if split != "train" and numbers and not set(classes[split]) <= set(numbers):
            own = {}
            notes.append(f"{where}: the test images have other classes, so they have no labels")
        elif split != "train" and not classes[split]:
            own = {}
        labels = np.array([own[_first(name)] for name in files.names], np.int32) if own else None
        items = FolderItems(folder=str(path), files=files, stored_labels=labels)
        splits[split] = Split(
            items=items,
            labels=partial(_same, labels),
            fingerprint=items.fingerprint,
            notes=notes,
            class_names=tuple(classes["train"]) or None,
        )
    if beside := listing.facts["beside"]:
        splits["train"].notes.append(f"{where}: not used: {', '.join(beside)}")
    if classes["train"]:
        splits["train"].notes.append(f"{where}: classes {_table(classes['train'])}")
    return splits


def _same(labels: Int32[np.ndarray, " n"] | None) -> Int32[np.ndarray, " n"] | None:
    return labels


class _Paths(Sequence[str]):
    """The paths of files, made one by one."""

    def __init__(self, files: Files) -> None:
        self._files = files

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self._files.path(index)


@dataclass(frozen=True, kw_only=True)
class FolderItems(ImageFiles):
    """The images of a split, each read from its file when it is wanted.

    Args:
        folder: the folder of all splits, of which a list may be kept.
        files: the files, as they were listed.
        stored_labels: of the files, where there are classes.
    """

    folder: str
    files: Files
    stored_labels: Int32[np.ndarray, " n"] | None

    def __len__(self) -> int:
        return len(self.files)

    def file(self, index: int) -> ImageFile:
        """Return the file of an image."""
        path = self.files.path(index)
        label = None if self.stored_labels is None else int(self.stored_labels[index])
        with as_listed(self.folder):
            content = read_file(path, self.files.stamp(index))
        return ImageFile(content, label, path)

    def fingerprint(self) -> str:
        """Return text that identifies the files by their names, sizes and bytes."""
        with as_listed(self.folder):
            return fingerprint_of(self.files.names, self.files.sizes, _Paths(self.files))


def _list(where: str, path: Path) -> Listing:
    """Return what lies below a folder, by split.

    Raises:
        ValueError: if it holds no images, or could be read in several ways.
    """
    roots, unused = _find_splits(where, path)
    # The test images come first: what they link to is never a training image.
    scan = _Scan(where, [path, *path.resolve().parents, *roots.values()])
    scan.folders[str(path)] = path.stat().st_mtime_ns
    for root in unused:
        scan.mark(root)
    trees = {split: scan.read(root) for split, root in reversed(roots.items())}
    for split, tree in trees.items():
        if not tree.stamps:
            others = f"; found {_counts(tree.others)}" if tree.others else ""
            raise ValueError(
                f"{where}: no images below {roots[split]} ({' '.join(SUFFIXES)}){others}"
            )
    beside = [f"{root.name}/" for root in unused]
    if roots["train"] != path:
        loose = [entry for entry in os.listdir(path) if Path(entry).suffix.lower() in SUFFIXES]
        beside += [f"images beside the splits ({len(loose)})"] if loose else []
    facts = {f"{split} notes": tree.notes() for split, tree in trees.items()} | {"beside": beside}
    files = {split: tree.files() for split, tree in trees.items()}
    return Listing(files=files, folders=scan.folders, facts=facts)


def _find_splits(where: str, path: Path) -> tuple[dict[str, Path], list[Path]]:
    """Return the folders of the splits, and those beside them that are not used.

    Raises:
        ValueError: if several folders could be the training images, or it is unclear whether a
            folder is a split or a class.
    """
    folders = _folders(path)
    train = [folder for folder in folders if folder.name.lower() in TRAIN_NAMES]
    held_out = sorted(
        (folder for folder in folders if folder.name.lower() in HELD_OUT_NAMES),
        key=lambda folder: HELD_OUT_NAMES.index(folder.name.lower()),
    )
    others = [folder for folder in folders if folder not in train and folder not in held_out]
    if not train and not held_out:
        _refuse_inner_splits(where, path, folders)
        return {"train": path}, []
    if not train:
        raise ValueError(
            f"{where} holds {held_out[0].name}/ but no train/; put the training images into "
            "train/, or rename it if it is a class"
        )
    others = [folder for folder in others if _holds_images(folder)]
    test = held_out[:1]
    doubtful = test[0].name.lower() == held_out[1].name.lower() if held_out[1:] else False
    if len(train) > 1 or doubtful:
        twins = train if len(train) > 1 else held_out
        found = " and ".join(f"{folder.name}/" for folder in twins[:2])
        raise ValueError(f"{where} holds {found}; keep one of them")
    if others and not test:
        found = ", ".join(f"{folder.name}/" for folder in others[:_SHOWN])
        raise ValueError(
            f"{where} holds {train[0].name}/ beside {found}; if it is a class, rename it; if it is "
            "the training images, move the others away"
        )
    roots = {"train": train[0]} | ({"test": test[0]} if test else {})
    if test and os.path.samefile(train[0], test[0]):
        raise ValueError(f"{where}: {train[0].name}/ and {test[0].name}/ are the same folder")
    for root in roots.values():
        _refuse_inner_splits(where, path, [root, *_folders(root)])
    return roots, [*held_out[1:], *others]


def _folders(path: Path) -> list[Path]:
    """Return the folders in a folder in order, linked ones too, without hidden ones."""
    with os.scandir(path) as entries:
        return sorted(Path(entry.path) for entry in entries if _is_folder(entry))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    # The entry of a broken link may raise; os.path returns False.
    found = os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()
    return found and not entry.name.startswith(".")


def _holds_images(folder: Path) -> bool:
    names = (name for _, _, names in os.walk(folder) for name in names)
    return any(os.path.splitext(name)[1].lower() in SUFFIXES for name in names)


def _refuse_inner_splits(where: str, path: Path, folders: Iterable[Path]) -> None:
    """Raise ValueError if a folder has splits inside, which would be read as one."""
    for folder in folders:
        names = {inner.name.lower() for inner in _folders(folder)}
        both = names.intersection(TRAIN_NAMES) and names.intersection(HELD_OUT_NAMES)
        if both and not os.path.samefile(folder, path):  # as a link may lead back
            raise ValueError(
                f"{where}: {folder} holds training and test images; give this folder, or put the "
                "splits outside the classes, as train/CLASS and test/CLASS"
            )


def _first(name: str) -> str:
    return name.partition("/")[0]


def _classes(names: Names) -> list[str]:
    """Return the names of the classes in order; none unless every image has one."""
    firsts = {first if rest else "" for first, _, rest in (name.partition("/") for name in names)}
    if len(firsts) < 2 or "" in firsts:
        return []
    if all(first.isascii() and first.isdecimal() for first in firsts):
        return sorted(firsts, key=lambda first: (int(first), first))
    return sorted(firsts)


@dataclass
class _Tree:
    """What lies below the folder of a split: its images, and what is not read."""

    root: Path
    stamps: dict[str, Stamp] = field(default_factory=dict)  # by name relative to `root`
    others: Counter[str] = field(default_factory=Counter)
    known_links: list[Path] = field(default_factory=list)

    def add_file(self, name: str, stamp: Stamp | None) -> None:
        """Add a file, or what only has the name of one: a pipe, a device, a broken link."""
        kind = os.path.splitext(name)[1].lower() or "without a suffix"
        if stamp is not None and kind in SUFFIXES:
            self.stamps[name] = stamp
        else:
            self.others[kind if stamp is not None else f"{kind} (no file)"] += 1

    def files(self) -> Files:
        """Return the images in the order of the parts of their names."""
        names = sorted(self.stamps, key=lambda name: name.split("/"))
        sizes, times = np.array([self.stamps[name] for name in names], np.int64).T
        return Files(root=str(self.root), names=Names.of(names), sizes=sizes, times=times)

    def notes(self) -> list[str]:
        """Return a line for each kind of thing that is not read."""
        notes = []
        if self.others:
            notes.append(f"{self.root}: not read: {_counts(self.others)}")
        if self.known_links:
            notes.append(
                f"{self.root}: links to folders that are read or left out already: "
                f"{len(self.known_links)}, the first is {min(self.known_links)}"
            )
        loose = sum("/" not in name for name in self.stamps)
        if 0 < loose < len(self.stamps):
            notes.append(
                f"{self.root}: images outside the subfolders: {loose}, so the subfolders are no "
                "classes and there are no labels"
            )
        return notes


class _Scan:
    """Collects files, following links; every folder is read once, so that no loop is endless."""

    def __init__(self, where: str, known: Sequence[Path]) -> None:
        self._where = where
        self.folders: dict[str, int] = {}  # those read, with the times of their last change
        self._known = {os.path.realpath(folder) for folder in known}

    def mark(self, folder: Path) -> None:
        """Leave out a folder, wherever a link leads to it."""
        self._known.add(os.path.realpath(folder))

    def read(self, root: Path) -> _Tree:
        """Return what lies below a folder, without hidden files and folders."""
        tree = _Tree(root)
        # Links wait until all else is read: the folder itself decides on the class, not a link.
        waiting, links = [root], []
        while waiting or links:
            if not waiting:
                links.sort(reverse=True)
                waiting += self._unless_known(links.pop(), tree)
                continue
            folder = waiting.pop()
            try:
                self.folders[str(folder)] = os.stat(folder).st_mtime_ns  # before it is read
                with os.scandir(folder) as entries:
                    visible = [entry for entry in entries if not entry.name.startswith(".")]
            except OSError as error:
                reason = error.strerror or error
                raise ValueError(f"{self._where}: {folder} cannot be read ({reason})") from error
            inside = "" if folder == root else f"{folder.relative_to(root).as_posix()}/"
            for entry in visible:
                if not _is_folder(entry):
                    tree.add_file(f"{inside}{entry.name}", _stamp(entry))
                elif entry.is_symlink():
                    links.append(Path(entry.path))
                else:
                    waiting += self._unless_known(Path(entry.path), tree)
        return tree

    def _unless_known(self, folder: Path, tree: _Tree) -> list[Path]:
        """Return a folder that is read for the first time, else nothing."""
        real = os.path.realpath(folder)
        if real in self._known:
            tree.known_links.append(folder)
            return []
        self._known.add(real)
        return [folder]


def _stamp(entry: os.DirEntry[str]) -> Stamp | None:
    """Return the stamp of a regular file; None for a pipe, a device or a broken link."""
    try:
        found = entry.stat()
    except OSError:
        return None
    return Stamp(found.st_size, found.st_mtime_ns) if stat.S_ISREG(found.st_mode) else None


def _counts(others: Counter[str]) -> str:
    """Return counts by suffix, the most frequent first."""
    ordered = sorted(others.items(), key=lambda item: (-item[1], item[0]))
    shown = [f"{count} {kind}" for kind, count in ordered[:_SHOWN]]
    return ", ".join([*shown, "..."] if len(ordered) > _SHOWN else shown)


def _table(classes: Sequence[str]) -> str:
    """Return the first classes with their labels."""
    shown = [f"{number} {name}" for number, name in enumerate(classes[:_SHOWN])]
    rest = len(classes) - len(shown)
    return ", ".join([*shown, f"and {rest} more"] if rest else shown)
