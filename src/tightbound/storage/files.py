"""A file that is there whole or not at all, and the sentences that say why it cannot be."""

import contextlib
import os
import shutil
import uuid
from pathlib import Path
from typing import TypeAlias

AnyPath: TypeAlias = str | os.PathLike[str]
"""Where a file is, as text or as a pathlib.Path."""

_MOST_OF_NAME = 40  # letters of a file's name in that of its neighbour: names end at 255 bytes


def write_whole(path: AnyPath, content: bytes, what: str) -> Path:
    """Write `content` to `path`, so that the file is there whole or not at all.

    It is written beside `path` first, then renamed onto it.

    Raises:
        OSError: (of the kind that the system raised) naming the path, the reason and the way out;
            `what` was to be written.
    """
    path = Path(path)
    place = Path(os.path.realpath(path))  # a link stays a link
    if place.exists() and not (place.is_file() or place.is_dir()):
        place.write_bytes(content)  # a pipe or a terminal: renaming would replace it
        return path
    beside = place.with_name(f".{place.name[:_MOST_OF_NAME]}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        if place.is_dir():
            raise IsADirectoryError(None, "it is a folder")
        beside.write_bytes(content)
        if place.exists():
            shutil.copymode(place, beside)
        beside.replace(place)
    except OSError as error:
        raise type(error)(_unwritable(path, place, what, error)) from None
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()
    return path


def _unwritable(path: Path, place: Path, what: str, error: OSError) -> str:
    parent = place.parent
    if not parent.is_dir():
        way_out = (
            f"The folder {str(parent)!r} does not exist: create it, or pass a path in a folder that"
            " does."
        )
    else:
        way_out = f"{reason(error)}. Pass the path of a file in a folder that you may write to."
    return (
        f"The {what} cannot be written to {str(path)!r}. {way_out} Nothing is lost: the fit is"
        " still in memory."
    )


def reason(error: OSError) -> str:
    """What the system says, as the start of a sentence."""
    return (error.strerror or str(error)).capitalize()


__all__ = ["AnyPath", "reason", "write_whole"]
