"""Pictures with captions in tars, as webdataset keeps them: ``000123.jpg`` and ``000123.txt`` are one sample.

Each tar is walked through once, from member to member; what was found is an index by which captions are kept and
pictures are read where they lie, in any order.
"""

from __future__ import annotations

import io
import logging
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

from PIL import Image

from crossmodal.data.caption_tables import SentenceTexts
from crossmodal.data.captions import Caption
from crossmodal.data.picture_sources import ENDINGS, PictureItem, Pictures
from crossmodal.errors import DataError

log = logging.getLogger("crossmodal")

LARGEST_PICTURE = 1 << 28
LARGEST_CAPTION = 1 << 20
"""Bytes that a member may have."""

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


@dataclass(frozen=True)
class Member:
    """Where the bytes of a file lie in a tar."""

    tar: Path
    name: str
    offset: int
    size: int

    def read(self) -> bytes:
        """Raises DataError where the tar has been cut off."""
        try:
            with self.tar.open("rb") as file:
                file.seek(self.offset)
                content = file.read(self.size)
        except OSError as error:
            raise DataError(f"{self.tar} cannot be read ({error.strerror}); copy it again") from None
        if len(content) != self.size:
            raise DataError(f"{self.tar} ends within {self.name}; copy it again")
        return content


@dataclass(frozen=True)
class Sample:
    """A picture and its caption."""

    picture: Member
    caption: str


def is_tars(path: Path) -> bool:
    """Whether it names tars: one, a numbered row of them (``{00000..00099}.tar``), or a folder of them."""
    return path.suffix == ".tar" or (path.is_dir() and next(path.glob("*.tar"), None) is not None)


class TarTexts(SentenceTexts):
    """The captions of tars; the ids of captions and images are ``<tar>/<sample>``, in the order of the tars."""

    def __init__(
        self, path: str | os.PathLike[str], max_len: int = -1, *, captions_per_image: int | None = None
    ) -> None:
        captions = [Caption(id, id, sample.caption) for id, sample in read_samples(Path(path)).items()]
        super().__init__(Path(path), captions, max_len, captions_per_image=captions_per_image)


class TarPictures(Pictures):
    """The pictures of tars, by the same ids."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(Path(path))
        self._samples = read_samples(self.path)

    @property
    def ids(self) -> Sequence[str]:
        return list(self._samples)

    def find(self, image: str) -> str | None:
        return image if image in self._samples else None

    def item(self, id: str) -> PictureItem:
        member = self._samples[id].picture
        try:
            picture = Image.open(io.BytesIO(member.read()))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise DataError(
                f"{member.name} in {member.tar} cannot be read as a picture ({error}); replace it or leave it out"
            ) from None
        picture.filename = f"{member.tar}:{member.name}"  # what an error calls it
        return PictureItem(id, picture)


def read_samples(path: Path) -> dict[str, Sample]:
    """The samples of tars by id; those without a picture or a caption are left out, counted and logged.

    Raises DataError where a tar is missing, damaged or compressed, a member is too large, or there is no sample.
    """
    tars = _tars(path)
    return _samples(path, tuple((tar, tar.stat().st_mtime_ns) for tar in tars))


@lru_cache(maxsize=8)
def _samples(path: Path, tars: tuple[tuple[Path, int], ...]) -> dict[str, Sample]:
    """Of tars with the times of their last change. Texts and pictures of a corpus share it."""
    found: dict[str, Sample] = {}
    alone = 0
    for tar, _ in tars:
        pictures: dict[str, Member] = {}
        captions: dict[str, str] = {}
        for member in _members(tar):
            key, ending = _parted(member.name)
            if ending in ENDINGS:
                pictures.setdefault(key, member)
            elif ending == ".txt":
                captions.setdefault(key, _sentence(member))
        both = pictures.keys() & captions.keys()
        alone += len(pictures.keys() ^ captions.keys())
        found |= {f"{tar.stem}/{key}": Sample(pictures[key], captions[key]) for key in pictures if key in both}
    if not found:
        raise DataError(f"{path} holds no picture with a .txt of the same name beside it; check what the tars hold")
    if alone:
        log.warning("%s: %d pictures without caption or captions without picture are left out", path, alone)
    return found


def _tars(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(path.glob("*.tar"))
    row = _RANGE.search(path.name)
    if row is None:
        tars = [path]
    else:
        first, last = row.groups()
        numbers = (str(n).zfill(len(first)) for n in range(int(first), int(last) + 1))
        tars = [path.with_name(path.name.replace(row[0], number)) for number in numbers]
    missing = [tar for tar in tars if not tar.is_file()]
    if missing or not tars:
        raise DataError(f"{len(missing)} of the {len(tars)} tars {path} are missing (first: {[*missing, path][0]})")
    return tars


def _members(tar: Path) -> Iterator[Member]:
    """The plain files of a tar in their order."""
    size = tar.stat().st_size
    try:
        with tarfile.open(tar, "r:") as archive:
            for info in archive:
                if info.isreg() and not info.issparse():
                    member = Member(tar, info.name, info.offset_data, info.size)
                    if info.offset_data + info.size > size:
                        raise DataError(f"{tar} ends within {info.name}; copy it again")
                    if info.size > LARGEST_PICTURE:
                        raise DataError(f"{info.name} in {tar} has {info.size >> 20} MiB; take it out")
                    yield member
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(
            f"{tar} cannot be read as an uncompressed tar ({error}); copy it again, or unpack what compresses it"
        ) from None


def _parted(name: str) -> tuple[str, str]:
    """The key of a member and its ending in small letters: as in webdataset, the first dot of its name parts them."""
    last = PurePosixPath(name).name
    key, dot, ending = last.partition(".")
    return name[: len(name) - len(last)] + key, (dot + ending).lower()


def _sentence(member: Member) -> str:
    if member.size > LARGEST_CAPTION:
        raise DataError(f"{member.name} in {member.tar} has {member.size} bytes, which is no caption; take it out")
    try:
        return member.read().decode().strip()
    except UnicodeDecodeError as error:
        raise DataError(f"{member.name} in {member.tar} is no UTF-8 text ({error.reason}); correct it") from None
