# SPDX-License-Identifier: Apache-2.0
"""What `--data` can name, and how each of it is read. SOURCES is the one list: option help, errors, the usage
line and a test of the docs derive from it. A new source is a reader here and an entry there."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tokenize
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..errors import UserError, need
from ..files import DIGITS, HF
from .decode import (
    MODES,
    Array,
    DecodedImages,
    ReadRequest,
    check_memory,
    from_array,
    from_images,
    unreadable_reason,
)
from .kept import place_beside
from .labels import Labels, from_folders, from_json, from_values
from .names import IMAGE_ERRORS, SUFFIXES, Parts, by_parts, listed, suffix_of, why_not_image
from .packed import PackedPixels, is_packed
from .streamed import Files, decode_or_stream

LABELS_FILE = "dataset.json"
ENCRYPTED = 1
"""A flag of a zip's entry."""
ARRAY_NAMES = ("images", "arr_0")
LABEL_NAMES = ("labels", "y", "label")
LABEL_COLUMNS = ("label", "labels")
ARRAY_ERRORS = (*IMAGE_ERRORS, OverflowError, AttributeError, RecursionError, tokenize.TokenError)
"""What numpy raises for files that are not its own, or whose headers are impossible."""


@dataclass
class ReadResult(DecodedImages):
    """What a source holds: the images, their labels, and by name the other files that are left out, with the
    reason."""

    labels: Labels = field(default_factory=Labels)
    others: dict[str, str] = field(default_factory=dict)

    def remarks(self) -> Iterator[str]:
        """One sentence for each kind of file that was left out or read in part: its count and a few names."""
        count = len(self.pixels) + len(self.unreadable)
        if self.unreadable:
            text = f"{len(self.unreadable)} of {count} images cannot be read and are left out"
            yield f"warning: {text}: {listed(self.unreadable)}"
        if self.animated:
            text = f"{len(self.animated)} of {len(self.pixels)} images have several frames or pages"
            yield f"note: {text}; the first is taken: {listed(self.animated)}"
        if self.others:
            files = "1 other file is" if len(self.others) == 1 else f"{len(self.others)} other files are"
            yield f"note: {files} left out: {listed(self.others)}"


def _with_labels(images: DecodedImages, labels: Labels, others: dict[str, str] | None = None) -> ReadResult:
    """The images that could be read, with those of the labels that are theirs."""
    return ReadResult(**vars(images), labels=labels.take(images.kept), others=others or {})


def _raise(error: OSError) -> None:
    raise error


def read_folder(source: str, request: ReadRequest) -> ReadResult:
    """Every image under a folder, in the order of their paths. Links to folders are not followed."""
    folder = Path(source)
    source = str(folder)  # without a slash at its end
    names: list[tuple[str, str]] = []
    try:
        for where, folders, inside in os.walk(folder, onerror=_raise):
            above = os.path.relpath(where, folder)
            links = [name for name in folders if os.path.islink(os.path.join(where, name))]
            names += [(f"{above}/{name}", os.path.join(where, name)) for name in (*inside, *links)]
        paths, others = by_parts(names)
        text = Path(paths.pop((LABELS_FILE,))).read_bytes() if (LABELS_FILE,) in paths else None
    except OSError as error:
        raise UserError(f"{error.filename or folder}: {error.strerror or error}") from error
    images: list[Parts] = []
    for parts, path in sorted(paths.items()):
        if why := _why_not_image_file(parts, path):
            others["/".join(parts)] = why
        else:
            images.append(parts)
    labels = _folder_labels(source, images, text)

    def stamp(i: int) -> tuple[int, int]:
        try:
            stat = os.stat(paths[images[i]])
        except OSError:  # a broken link is left out as an image that cannot be read
            return -1, -1
        return stat.st_size, stat.st_mtime_ns

    files = Files(
        _names(source, images, request), lambda i: Path(paths[images[i]]), stamp, place_beside(folder)
    )
    return _decode_files(source, files, labels, others, request)


def _why_not_image_file(parts: Parts, path: str) -> str:
    """As `why_not_image`. A broken link with an image's name is an image that cannot be read."""
    if not os.path.isfile(path) and os.path.exists(path):
        # Opening a pipe would never end.
        return "a link to a folder" if os.path.isdir(path) else "not a regular file"
    return why_not_image(parts, lambda: open(path, "rb"))


def zip_entries(archive: zipfile.ZipFile) -> tuple[dict[Parts, zipfile.ZipInfo], dict[str, str]]:
    """An archive's files that are not hidden, by the parts of their names; and those left out, by name."""
    return by_parts((e.filename, e) for e in archive.infolist() if not e.filename.endswith(("/", "\\")))


def read_zip(source: str, request: ReadRequest) -> ReadResult:
    """Every image in a .zip file, in the order of their paths. Labels are looked for inside the one folder
    that holds everything, if there is one. UserError, one sentence, for a file that is truncated or
    encrypted; damaged entries are left out and reported."""
    try:
        with ExitStack() as stack:
            archive = stack.enter_context(zipfile.ZipFile(source))
            entries, others = zip_entries(archive)
            locked = {parts for parts, entry in entries.items() if entry.flag_bits & ENCRYPTED}
            if any(parts[-1] == LABELS_FILE or suffix_of(parts) in SUFFIXES for parts in locked):
                raise UserError(
                    f"{source}: expected a zip without a password, got encrypted images or labels"
                )
            images: list[Parts] = []
            for parts, entry in sorted(entries.items()):
                encrypted = "encrypted" if parts in locked else ""
                if why := encrypted or why_not_image(parts, partial(archive.open, entry)):
                    others["/".join(parts)] = why
                else:
                    images.append(parts)
            tops = {parts[:1] if len(parts) > 1 else () for parts in images}
            root = tops.pop() if len(tops) == 1 and (LABELS_FILE,) not in entries else ()
            labels_entry = entries.get((*root, LABELS_FILE))
            text = None if labels_entry is None else archive.read(labels_entry)
            others.pop("/".join((*root, LABELS_FILE)), None)
            labels = _folder_labels(source, [parts[len(root) :] for parts in images], text)

            def open_image(i: int) -> io.BytesIO:
                return io.BytesIO(archive.read(entries[images[i]]))

            def stamp(i: int) -> tuple[int, int]:  # reading an entry compares it with its checksum
                return entries[images[i]].CRC, entries[images[i]].header_offset

            files = Files(_names(source, images, request), open_image, stamp, place_beside(Path(source)))
            result = _decode_files(source, files, labels, others, request)
            if not isinstance(result.pixels, np.ndarray):
                stack.pop_all()  # the archive stays open for as long as its images are used
            return result
    except UserError:
        raise
    except (OSError, EOFError, ValueError, RuntimeError, zlib.error, zipfile.BadZipFile) as error:
        raise UserError(f"{source}: not a readable .zip file ({error})") from error


def _names(where: str, images: list[Parts], request: ReadRequest) -> list[str]:
    """The names of the images that are to be read, as messages give them."""
    return [f"{where}/{'/'.join(parts)}" for parts in images[: request.limit]]


def _decode_files(
    where: str, files: Files, labels: Labels, others: dict[str, str], request: ReadRequest
) -> ReadResult:
    if not files.names:
        among = f" among {len(others)} files: {listed(others)}" if others else ""
        raise UserError(f"{where}: expected images, found none{among}")
    return _with_labels(decode_or_stream(files, request, where), labels, others)


def _folder_labels(where: str, images: list[Parts], text: bytes | None) -> Labels:
    return from_folders(images) if text is None else from_json(text, images, f"{where}/{LABELS_FILE}")


def read_npz(source: str, request: ReadRequest) -> ReadResult:
    """The arrays `images` (or `arr_0`), uint8 [N, H, W] or [N, H, W, C], and `labels` (or `y`, `label`),
    whole numbers [N], with their names in `classes`."""
    try:
        opened: Any = np.load(source, allow_pickle=False, mmap_mode="r")
        if isinstance(opened, np.ndarray):
            raise UserError(
                f"{source}: expected an .npz file, got one array alone, as in an .npy file: rename it"
            )
        with opened as archive:
            name = _first(ARRAY_NAMES, archive)
            if name is None:
                got = ", ".join(archive.files) or "nothing"
                raise UserError(f"{source}: expected an array named images or arr_0, found {got}")
            size = sum(e.file_size for e in archive.zip.infolist() if e.filename in (name, f"{name}.npy"))
            check_memory(size, f"the images in {source}")
            array = archive[name]
            labels = _array_labels(archive, source, array)
    except UserError:
        raise
    except ARRAY_ERRORS as error:
        raise UserError(f"{source}: not a readable .npz file ({_array_damage(error)})") from error
    return _from_images(array, labels, f"{source}: expected {name}", request)


def read_packed(source: str, request: ReadRequest) -> ReadResult:
    """A file or folder that `softdiff dataset` packed: images [N, C, H, W], and their labels. It is read from
    the disk if the request allows it, whether memory has room for it or not."""
    packed = PackedPixels(Path(source))
    count, channels, height, width = packed.shape
    labels = packed.labels
    result = ReadResult(
        packed, sizes=Counter({(width, height): count}), modes=Counter({MODES[channels]: count})
    )
    same = request.size in (None, (height, width)) and request.channels in (None, channels)
    if request.stream and request.into is None and request.limit is None:
        if not same:
            raise UserError(
                f"{source}: was packed as {channels} x {height} x {width} (channels, height, width); pack "
                "the images again with another --image-size or --channels"
            )
        return replace(result, labels=labels)
    if request.into is None:
        check_memory(packed.shape.numel(), f"the images in {source}")
    numbers = range(count)[: request.limit]
    images = (packed[i : i + 1].numpy()[0].transpose(1, 2, 0) for i in numbers)
    pixels = from_images(images, (len(numbers), height, width, channels), request)
    return replace(result, pixels=pixels, labels=labels.take(slice(len(numbers))))


def read_npy(source: str, request: ReadRequest) -> ReadResult:
    """An array of images as in an .npz file, without labels."""
    try:
        array = np.load(source, allow_pickle=False, mmap_mode="r")
        if not isinstance(array, np.ndarray):
            array.close()
            raise UserError(f"{source}: expected an .npy file, got an .npz file: rename it")
        labels = Labels(absent="an .npy file holds only images")
        if request.into is None:
            check_memory(array.nbytes, f"the images in {source}")
            array = np.array(array)
        return _from_images(array, labels, f"{source}: expected an array", request)
    except UserError:
        raise
    except ARRAY_ERRORS as error:
        raise UserError(f"{source}: not a readable .npy file ({_array_damage(error)})") from error


def _array_damage(error: Exception) -> str:
    text = unreadable_reason(error)
    # For every file that is not its own, numpy says that it is pickled, and how to run what is in it.
    pickled = "allow_pickle" in text or "Python objects" in text
    return "it holds Python objects, which are not read, or is another kind of file" if pickled else text


def _from_images(array: Array, labels: Labels, expected: str, request: ReadRequest) -> ReadResult:
    expected = f"{expected} as uint8 [N, H, W] or [N, H, W, C] with C of 1 to 4"
    shape_fits = array.ndim == 3 or (array.ndim == 4 and 1 <= array.shape[3] <= 4)
    if array.dtype != np.uint8 or not shape_fits:
        raise UserError(f"{expected}, got {array.dtype} {list(array.shape)}")
    if 0 in array.shape:
        raise UserError(f"{expected} and at least one image, got {list(array.shape)}")
    if array.ndim == 3 and array.shape[2] in (3, 4) and array.shape[2] < min(array.shape[:2]):
        count, height, width = array.shape
        raise UserError(
            f"{expected}, got {list(array.shape)}, which can be one image in colour or {count} grey ones: "
            f"make it {[1, count, height, width]} or {[count, height, width, 1]}"
        )
    if array.ndim == 3:
        array = array[..., None]
    pixels = from_array(array, request)
    count = len(pixels)
    sizes = Counter({(array.shape[2], array.shape[1]): count})
    modes = Counter({MODES[array.shape[3]]: count})
    return ReadResult(pixels, sizes=sizes, modes=modes, labels=labels.take(slice(count)))


def _first(names: Sequence[str], archive: np.lib.npyio.NpzFile) -> str | None:
    return next((name for name in names if name in archive.files), None)


def _array_labels(archive: np.lib.npyio.NpzFile, source: str, images: Array) -> Labels:
    name = _first(LABEL_NAMES, archive)
    if name is None or images.ndim == 0:
        return Labels()
    try:
        values = archive[name]
        classes = archive["classes"] if "classes" in archive.files else np.empty(0, str)
    except ValueError:  # an array of objects, which would have to be unpickled
        why = "they hold Python objects"
        return Labels(error=f"{source}: its arrays {name} and classes cannot be read: {why}")
    if classes.ndim != 1 or classes.dtype.kind not in "USiu":
        got = f"{classes.dtype} {list(classes.shape)}"
        return Labels(error=f"{source}, array classes: expected a list of names, got {got}")
    try:
        values, classes = (
            np.char.decode(a, "utf-8") if a.dtype.kind == "S" else a for a in (values, classes)
        )
    except UnicodeDecodeError as error:
        return Labels(error=f"{source}: names of classes are not UTF-8 ({error})")
    names = [str(c) for c in classes.tolist()]
    return from_values(values, len(images), f"{source}, array {name}", names)


def hf_name_and_split(source: str) -> tuple[str, str]:
    """The name or path, and the split, of hf:NAME_OR_PATH[:SPLIT]."""
    name = source.removeprefix(HF)
    match = re.fullmatch(r"(.+?):([A-Za-z_]\w*(?:\[[^\]]*\])?)", name)
    return (name, "train") if match is None or Path(name).exists() else (match[1], match[2])


def read_hf(source: str, request: ReadRequest) -> ReadResult:
    """A Hugging Face split's first column of images, and its labels. Rows are decoded as files are."""
    datasets: Any = need("datasets", "a Hugging Face data set", "hf")
    name, split = hf_name_and_split(source)
    if not name:
        raise UserError(f"{source}: expected hf:NAME or hf:FOLDER, with or without a :SPLIT after it")
    try:
        table = _hf_table(datasets, name, split, source)
        if len(table) == 0:
            raise UserError(f"{source}: expected at least one image, found no rows")
        columns = table.features
        images = [c for c, feature in columns.items() if isinstance(feature, datasets.Image)]
        if not images:
            got = ", ".join(f"{c} ({type(feature).__name__})" for c, feature in columns.items())
            raise UserError(f"{source}: expected a column of images, found {got or 'none'}")
        labels = _hf_labels(table, columns, source)
        table = table.select_columns([images[0]]).cast_column(images[0], datasets.Image(decode=False))
        count = len(table) if request.limit is None else min(request.limit, len(table))
    except (UserError, MemoryError):
        raise
    except Exception as error:  # the package, its file systems and its network client each have their own
        text = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{source}: cannot be loaded as split {split} of a data set ({text})") from error

    def open_image(i: int) -> Path | IO[bytes]:
        cell = table[i][images[0]]
        if cell is None or (cell.get("bytes") is None and not cell.get("path")):
            raise ValueError("no image in this row")
        return Path(cell["path"]) if cell.get("bytes") is None else io.BytesIO(cell["bytes"])

    names = [f"{source} row {i}" for i in range(count)]
    mark = int.from_bytes(hashlib.blake2b(str(table._fingerprint).encode(), digest_size=7).digest(), "big")
    place = place_beside(Path(name)) if Path(name).exists() else None
    files = Files(names, open_image, lambda i: (mark, i), place)
    return _with_labels(decode_or_stream(files, request, source), labels)


def _hf_table(datasets: Any, name: str, split: str, source: str) -> Any:
    folder = Path(name)
    if (folder / "dataset_dict.json").is_file():
        splits = json.loads((folder / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
        if split not in splits:
            raise UserError(f"{name}: expected one of the splits {', '.join(splits)}, got {split}")
        folder = folder / split
    elif not (folder / "state.json").is_file():
        return datasets.load_dataset(name, split=split)
    elif split != "train":
        raise UserError(f"{name}: holds only one split, so that :{split} cannot be chosen")
    if not json.loads((folder / "state.json").read_text(encoding="utf-8"))["_data_files"]:
        raise UserError(f"{source}: expected at least one image, found no rows")  # the package cannot load it
    return datasets.load_from_disk(str(folder))


def _hf_labels(table: Any, columns: Any, source: str) -> Labels:
    column = next((c for c in LABEL_COLUMNS if c in columns), None)
    if column is None:
        return Labels()
    values = table.select_columns([column])[:][column]
    if any(value is None for value in values):
        return Labels(error=f"{source}: expected a label in each row, got none in some")
    classes = getattr(columns[column], "names", None) or ()
    try:
        return from_values(values, len(table), f"{source}, column {column}", classes)
    except (ValueError, OverflowError) as error:  # lists of several lengths do not form an array
        return Labels(error=f"{source}, column {column}: expected one whole number a row ({error})")


def read_digits(source: str, request: ReadRequest) -> ReadResult:
    """scikit-learn's 1797 handwritten digits, grey, 8 x 8."""
    datasets = need("sklearn.datasets", "the digits data set")
    if request.size is not None and min(request.size) < 8:
        raise UserError(
            f"--image-size: expected 8 or more for the digits, which are 8 x 8, got {min(request.size)}"
        )
    digits = datasets.load_digits()
    grey = digits.images.astype(np.float64) * (255 / 16)
    labels = Labels(digits.target.astype(np.int64), tuple(map(str, range(10))))
    result = _from_images(np.rint(grey).astype(np.uint8)[..., None], labels, source, request)
    if Path(source).exists():
        result.others[source] = f"{source} names scikit-learn's set; write ./{source} for this one"
    return result


@dataclass(frozen=True)
class Source:
    """A kind of data set that `--data` can name.

    written: how it is written, for help texts and errors. labels: where its class labels come from, for the
    error about missing ones; empty if it always or never has them. recognises: whether a value of `--data` is
    one. read: reads it. title: its short name, for run folders.
    """

    name: str
    written: str
    recognises: Callable[[str], bool]
    read: Callable[[str, ReadRequest], ReadResult]
    labels: str = ""
    title: Callable[[str], str] = lambda source: Path(source).stem


def _is_folder(source: str) -> bool:
    return not _is_word(source) and Path(source).is_dir() and not is_packed(Path(source))


def _is_packed(source: str) -> bool:
    return not _is_word(source) and is_packed(Path(source))


def _is_word(source: str) -> bool:
    """Whether it is no path."""
    return source == DIGITS or source.startswith(HF)


def _is_file(suffix: str) -> Callable[[str], bool]:
    def recognises(source: str) -> bool:
        path = Path(source)
        return not source.startswith(HF) and path.suffix.lower() == suffix and path.is_file()

    return recognises


_FOLDER_LABELS = (
    "class sub-folders (every image in one, two or more of them), a dataset.json beside the images"
)

SOURCES: tuple[Source, ...] = (
    Source(
        "folder",
        "a folder of images",
        _is_folder,
        read_folder,
        labels=_FOLDER_LABELS,
        title=lambda source: Path(source).resolve().name,
    ),
    Source("zip", ".zip", _is_file(".zip"), read_zip, labels=_FOLDER_LABELS),
    Source("npz", ".npz", _is_file(".npz"), read_npz, labels="an array labels in an .npz file"),
    Source(
        "packed",
        "a set packed by softdiff dataset",
        _is_packed,
        read_packed,
        labels="a packed set that had labels",
    ),
    Source("npy", ".npy", lambda source: _is_file(".npy")(source) and not _is_packed(source), read_npy),
    Source(
        "hf",
        "hf:NAME_OR_PATH[:SPLIT]",
        lambda source: source.startswith(HF),
        read_hf,
        labels="a column label of a Hugging Face data set",
        title=lambda source: Path(hf_name_and_split(source)[0]).name,
    ),
    Source(
        "digits",
        "the word digits",
        lambda source: source == DIGITS,
        read_digits,
    ),
)


def _any_of(texts: Sequence[str]) -> str:
    """`a, b or c`."""
    return f"{', '.join(texts[:-1])} or {texts[-1]}"


SOURCE_LIST = _any_of([source.written for source in SOURCES])
"""For help texts and errors: `a folder of images, .zip, ... or the word digits`."""


def find_source(source: str) -> Source | None:
    """The kind of data set that a value of `--data` names; None if it names none."""
    return next((kind for kind in SOURCES if kind.recognises(source)), None)


def set_name(source: str) -> str:
    """The short name of a data set, for run folders."""
    kind = find_source(source)
    return Path(source).stem if kind is None else kind.title(source)


def read_source(
    source: str,
    *,
    size: tuple[int, int] | None = None,
    channels: int | None = None,
    **options: Any,
) -> ReadResult:
    """What a source holds, and what of it is left out. The options are those of `ReadRequest`. Raises
    UserError, one sentence, for anything that cannot be read."""
    if size is not None and min(size) < 1:
        raise UserError(f"--image-size: expected at least 1, got {min(size)}")
    kind = find_source(source)
    if kind is None:
        missing = "" if Path(source).exists() else "no such file or folder; "
        raise UserError(f"{source}: {missing}expected {SOURCE_LIST}")
    return kind.read(source, ReadRequest(size, channels, **options))


def check_labels(source: str, labels: Labels) -> None:
    """Refuses a source without usable labels, and says where labels come from."""
    if labels.values is None:
        why = f": {labels.absent}" if labels.absent else ""
        places = _any_of(list(dict.fromkeys(kind.labels for kind in SOURCES if kind.labels)))
        raise UserError(labels.error or f"{source}: has no labels{why}; labels come from {places}")


def check_sides(sides: tuple[int, ...]) -> None:
    """Refuses an --image-size that is neither a side nor a height and width."""
    if len(sides) > 2 or any(side < 1 for side in sides):
        got = " ".join(map(str, sides))
        raise UserError(f"--image-size: expected one or two whole numbers of at least 1, got {got}")


def height_and_width(sides: tuple[int, ...]) -> tuple[int, int] | None:
    """--image-size as (height, width), None if it is not given."""
    return (sides[0], sides[-1]) if sides else None
