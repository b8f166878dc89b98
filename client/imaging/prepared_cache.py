"""Prepared cases on the hospital's disk, so that each is prepared once.

An entry is found by what goes into it: the SHA-256 of the files (of a DICOM series, of all its
files), their channels, the meaning of the mask's values and the preprocessing digest. Change any of
them and it is another entry. An entry holds voxels and geometry, no path and no patient's name;
nothing in it is trusted before its own SHA-256 was checked, and a damaged one is made again.
Several processes may share a folder, and keep it within a limit (``cache_eviction``).

To know an image's SHA-256 without reading it again, the cache remembers it by paths, sizes, times
and inodes, under the hash of the paths; the digest of its voxels (``voxel_digest``) it remembers by
that SHA-256. ``retain`` removes what is of no use any more. Entries of
other options lie in folders of their own and may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from client.imaging import cache_eviction
from client.imaging.case import Case, Image
from client.imaging.image_reading import read_image
from client.imaging.limits import MOST_NIFTI_BYTES
from client.imaging.nifti import Volume
from client.imaging.preprocessing import Prepared, digest, prepare
from client.imaging.voxel_digest import voxel_sha256
from common.errors import CaseError, StateError
from common.records.atomic_files import replacing, sweep, unwritable, write_bytes
from common.records.regular_files import open_regular
from common.regions import MODALITIES
from common.study.protocol import PreprocessingOptions

_LOG = logging.getLogger(__name__)

_MAGIC: Final = b"gliofed prepared case 1\n"
_ALIGN: Final = 64
_NOTED: Final = re.compile(r"([0-9a-f]{64})?\n")
_MOST_HEADER: Final = 2**20
_SETTLED_NS: Final = 2 * 10**9
"""A file younger than this may change again without a new time stamp; it is not remembered."""


class PreparedCache:
    """Prepared cases in ``folder`` for one set of options."""

    def __init__(
        self, folder: Path, options: PreprocessingOptions, *, limit_bytes: int = 0
    ) -> None:
        """Open or create the cache; raise StateError when the folder cannot be written.

        With ``limit_bytes`` all that is prepared in ``folder``, with whatever options, is kept
        within it: what was unused for longest gives way.
        """
        self._folder = folder
        self._limit = limit_bytes
        self._began_ns = time.time_ns()
        self._options = options
        self._digest = digest(options)
        self._entries = folder / self._digest[:16]
        self._index = folder / "index"
        self._checked: dict[Path, tuple[int, ...]] = {}
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            sweep(folder)
        except OSError as error:
            raise unwritable(folder, error) from error

    def get(self, case: Case) -> Prepared:
        """Return the prepared ``case``; its arrays are mapped from disk, writes stay in memory.

        An entry for which the limit leaves no room is not kept. Raises CaseError when the case
        cannot be prepared, StateError when the entry cannot be written.
        """
        path = self.place(case)
        found = self._load(path)
        if found is not None:
            return found
        volumes = {name: read_image(image) for name, image in case.images.items()}
        notes = {name: self._voxels(image) for name, image in case.images.items()}
        prepared = prepare(case, self._options, read=volumes)
        if self.place(case) != path:
            raise CaseError(
                f"The files of {case.name} changed while they were read.",
                do="Try again when nothing writes to them.",
                code="case-changed",
            )
        for name, volume in volumes.items():
            self._note_voxels(notes[name], volume)
        self._keep(path, prepared)
        loaded = self._load(path)
        return prepared if loaded is None else loaded

    def scans(self, case: Case, *, read: bool = True) -> frozenset[str]:
        """Return the digest of the voxels of each sequence, but of one that is all of one value.

        What is not remembered is read, or left out unless ``read``. Raises CaseError.
        """
        found = set()
        for image in case.images.values():
            note = self._voxels(image)
            known = _read_voxels(note)
            if known is None and read:
                known = self._note_voxels(note, read_image(image))
            found.add(known or "")
        return frozenset(found - {""})

    def _note_voxels(self, note: Path, volume: Volume) -> str:
        digest = voxel_sha256(volume)
        try:
            write_bytes(note, digest.encode() + b"\n", mode=0o600, durable=False)
        except OSError as error:
            raise unwritable(self._folder, error) from error
        return digest

    def _voxels(self, image: Image) -> Path:
        """Return where the digest of an image's voxels is noted; raise CaseError."""
        name = f"{self._sha256(image)} {image.index}"
        return self._folder / "voxels" / hashlib.sha256(name.encode()).hexdigest()

    def _keep(self, path: Path, prepared: Prepared) -> None:
        """Write an entry, within the limit if there is one; raise StateError."""
        if not self._limit:
            _put(path, prepared)
            return
        size = _size(prepared)
        limit = f"{self._folder} keeps to cache_gb = {self._limit / 1e9:g}"
        try:
            with cache_eviction.alone(self._folder):
                over = cache_eviction.used_bytes(self._folder) + size - self._limit
                if size > self._limit or (over > 0 and self._make_room(over, limit) < over):
                    _LOG.warning(
                        "%s: a prepared case of %.2f GB is not kept, since nothing else can go.",
                        limit,
                        size / 1e9,
                    )
                    return
                try:
                    _put(path, prepared)
                except StateError as error:
                    full = f"The disk of {self._folder} is full"
                    if error.code != "disk-full" or not self._make_room(size, full):
                        raise
                    _put(path, prepared)
        except OSError as error:
            raise unwritable(self._folder, error) from error

    def _make_room(self, needed: int, why: str) -> int:
        return cache_eviction.make_room(self._folder, needed, why=why, began_ns=self._began_ns)

    def place(self, case: Case) -> Path:
        """Return where the entry of ``case`` is or would be; raise CaseError for unread files."""
        return self._entries / f"{self._key(case)}.prepared"

    def _key(self, case: Case) -> str:
        images = [case.images.get(name) for name in MODALITIES]
        facts = {
            "images": [image and [self._sha256(image), image.index] for image in images],
            "label": case.label
            and [
                self._sha256(Image(case.label)),
                sorted(case.label_map.items()),
                *([] if case.label_settled else ["unsettled"]),
            ],
            "preprocessing": self._digest,
        }
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def _sha256(self, image: Image) -> str:
        """Return the SHA-256 of an image's raw files, from memory when they were not touched."""
        try:
            identity = [number for path in image.files for number in _identity(path)]
            note = self._index / _note_name(image)
            remembered = _read_note(note)
            if remembered.get("identity") == identity:
                return str(remembered["sha256"])
            sha256 = content_sha256(image)
            settled = time.time_ns() - max(identity[2::4]) > _SETTLED_NS
        except OSError as error:
            raise CaseError(
                f"{error.filename or image.path} cannot be read: {error.strerror or error}.",
                do="Check that the file is there and that this user may read it.",
                code="case-file",
            ) from error
        if settled:
            text = json.dumps({"identity": identity, "sha256": sha256}).encode()
            write_bytes(note, text, mode=0o600, durable=False)
        return sha256

    def _load(self, path: Path) -> Prepared | None:
        """Map an entry; None when there is none or when it is damaged."""
        try:
            with path.open("rb") as file:
                cache_eviction.use(file.fileno())
                identity = _identity(path)[:3]  # to be used changes the fourth
                prepared = _read(file, check=self._checked.get(path) != identity)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError):  # damaged: made again, then replaced
            return None
        self._checked[path] = identity
        return prepared


def retain(folder: Path, cases: Sequence[Case], options: Iterable[PreprocessingOptions]) -> int:
    """Remove every entry that is not of ``cases`` as they are now, prepared as ``options`` say.

    So also what was prepared from earlier files goes, whose key nobody can compute any more; an
    entry of a case that cannot be read goes too, and is made again when it can. What another
    process is writing stays. Returns how many entries were removed; raises StateError when the
    folder cannot be written.
    """
    kept: set[Path] = set()
    for one in options:
        cache = PreparedCache(folder, one)
        for case in cases:
            try:
                kept.add(cache.place(case))
                kept.update(map(cache._voxels, case.images.values()))
            except CaseError:
                continue
    images = (image for case in cases for image in _images(case))
    kept |= {folder / "index" / _note_name(image) for image in images}
    found = (path for path in folder.glob("*/*") if not path.name.startswith("."))
    gone = [path for path in found if path not in kept]
    try:
        for path in gone:
            path.unlink(missing_ok=True)  # another process may do the same
    except OSError as error:
        raise unwritable(folder, error) from error
    return sum(path.suffix == ".prepared" for path in gone)


def content_sha256(image: Image) -> str:
    """Return the SHA-256 of a file, or of the sorted SHA-256 of a series' files.

    So a series has one whatever its files are called, in a folder or in a zip file. Raises OSError
    for a file that cannot be read, CaseError for a zip file.
    """
    if not image.parts:
        with open_regular(image.path, most_bytes=MOST_NIFTI_BYTES) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    from client.imaging.dicom.files_and_zips import contents

    sums = sorted(hashlib.sha256(data).hexdigest() for _, data in contents(image.parts))
    return hashlib.sha256(" ".join(sums).encode()).hexdigest()


def _images(case: Case) -> list[Image]:
    images = list(case.images.values())
    return images if case.label is None else [*images, Image(case.label)]


def _note_name(image: Image) -> str:
    parts = [f"{part.path.absolute()}\n{part.member}" for part in image.parts]
    text = "\n".join(parts) or str(image.path.absolute())
    return hashlib.sha256(text.encode()).hexdigest()


def _identity(path: Path) -> tuple[int, ...]:
    facts = path.stat()
    return facts.st_size, facts.st_ino, facts.st_mtime_ns, facts.st_ctime_ns


def _read_note(note: Path) -> dict[str, Any]:
    """Return what was remembered; a damaged note counts as none."""
    try:
        found = json.loads(note.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _read_voxels(note: Path) -> str | None:
    """Return the digest that was noted, "" where there is none to know; None without a note."""
    try:
        text = note.read_text(encoding="ascii", errors="replace")
    except FileNotFoundError:
        return None
    return text.strip() if _NOTED.fullmatch(text) else None


def _put(path: Path, prepared: Prepared) -> None:
    with replacing(path, mode=0o600) as partial, partial.open("wb") as file:
        _write(file, prepared)


def _size(prepared: Prepared) -> int:
    """Return how many bytes ``_write`` writes."""
    labels = 0 if prepared.labels is None else prepared.labels.nbytes
    head = len(_MAGIC) + 36 + len(_header(prepared))
    return head + -head % _ALIGN + 4 * prepared.image.size + labels


def _write(file: BinaryIO, prepared: Prepared) -> None:
    """Write magic, header length, header in JSON, padding to 64 bytes, image, labels."""
    image = np.ascontiguousarray(prepared.image, "<f4")
    labels = None if prepared.labels is None else np.ascontiguousarray(prepared.labels)
    sha256 = hashlib.sha256(image.data)
    if labels is not None:
        sha256.update(labels.data)
    header = _header(prepared)
    sha256.update(header)
    head = _MAGIC + sha256.digest() + len(header).to_bytes(4, "little") + header
    file.write(head + bytes(-len(head) % _ALIGN))
    file.write(image.data)
    if labels is not None:
        file.write(labels.data)


def _header(prepared: Prepared) -> bytes:
    return json.dumps(
        {
            "shape": prepared.image.shape,
            "labels": prepared.labels is not None,
            "affine": prepared.affine.tolist(),
            "native_shape": prepared.native_shape,
            "native_affine": prepared.native_affine.tolist(),
            "history": prepared.history,
        }
    ).encode()


def _read(file: BinaryIO, *, check: bool) -> Prepared:
    """Map an open entry; raise OSError, ValueError, KeyError or TypeError when it is not whole.

    A mapping keeps the file open, and so its lock, for as long as one of its arrays lives.
    """
    start = file.read(len(_MAGIC) + 36)
    length = int.from_bytes(start[-4:], "little")
    if len(start) < len(_MAGIC) + 36 or start[: len(_MAGIC)] != _MAGIC or length > _MOST_HEADER:
        raise ValueError("not an entry")
    text = file.read(length)
    header = json.loads(text)
    shape = tuple(int(n) for n in header["shape"])
    begin = len(start) + length
    begin += -begin % _ALIGN
    middle = begin + 4 * int(np.prod(shape))
    end = middle + (int(np.prod(shape[1:])) if header["labels"] else 0)
    if os.fstat(file.fileno()).st_size != end:
        raise ValueError("not of the length that its header says")
    image = _map(file, "<f4", begin, shape)
    labels = _map(file, "u1", middle, shape[1:]) if header["labels"] else None
    if check:
        sha256 = hashlib.sha256(image.data)
        if labels is not None:
            sha256.update(labels.data)
        sha256.update(text)
        if sha256.digest() != start[len(_MAGIC) : len(_MAGIC) + 32]:
            raise ValueError("not what was written")
    x, y, z = header["native_shape"]
    return Prepared(
        image=image,
        labels=labels,
        affine=np.array(header["affine"], np.float64),
        native_shape=(x, y, z),
        native_affine=np.array(header["native_affine"], np.float64),
        history=tuple(header["history"]),
    )


def _map(file: BinaryIO, dtype: str, offset: int, shape: tuple[int, ...]) -> NDArray[Any]:
    return np.asarray(np.memmap(file, dtype, mode="c", offset=offset, shape=shape))
