"""A fit in one file, without pickle: a zip archive of JSON and .npy arrays.

    fit.json             what the fit's fields are; arrays stand in it by the name of their entry
    arrays/0.npy ...     numbers only (`allow_pickle=False`), which come back bit for bit

Reading runs no code from the file: a class is rebuilt only when it is a family of
`tightbound.families` or one of the few records below. The target is not in the file (it is the
user's code): `load_parts` is given it, and compares the names.
"""

import dataclasses
import io
import json
import zipfile
import zlib
from pathlib import Path
from typing import ClassVar, Protocol, TypedDict, cast, runtime_checkable

from ..account import Spent
from ..certify.certificate import Certificate
from ..certify.fitted import Fitted
from ..families.base import AbstractFamily
from ..loop import Trace
from ..results import Result
from ..targets.base import AbstractTarget
from .encoding import ENTRY, Decoder, Encoder
from .files import AnyPath, reason, write_whole

_FORMAT = 2  # raise it when a file of the old kind can no longer be read
_ZIP_MAGIC = b"PK\x03\x04"  # the first bytes of a zip archive; the name of its first entry follows
_HEAD = 64  # bytes in which that name stands


@runtime_checkable
class Stored(Fitted, Protocol):
    """A fit that can be saved: a dataclass, every field of which but `target` is written."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[object]]]


class Parts(TypedDict):
    """The fields of a fit, as `Fit(**parts)` takes them."""

    q: AbstractFamily
    target: AbstractTarget
    result: Result
    steps: int
    trace: Trace
    spent: Spent
    key: tuple[int, ...]
    rung: str
    checked: Certificate | None


_Target = TypedDict("_Target", {"class": str, "coordinates": list[str]})


class _About(TypedDict):
    """What fit.json holds; `fields` are encoded by `Encoder`."""

    format: int
    target: _Target
    fields: dict[str, object]


def save(fit: Stored, path: AnyPath) -> Path:
    """Write every field of `fit` but its target to `path`; returns the path.

    The certificate is stored where it was computed already. The file appears whole or not at all.

    Raises:
        OSError: the file cannot be written; the message names the path and the way out.
        ValueError: q is of a class that is not in tightbound.families, which a file without code
            cannot bring back.
    """
    writer = Encoder()
    fields = {
        field.name: getattr(fit, field.name)
        for field in dataclasses.fields(fit)
        if field.name != "target"
    }
    # A certificate that was computed on demand stands beside the fields: `cached_property` puts it
    # there. Asking for the property would compute one for a file's sake.
    if fields.get("checked", "absent") is None:
        fields["checked"] = vars(fit).get("certificate")
    about: _About = {
        "format": _FORMAT,
        "target": {
            "class": type(fit.target).__name__,
            "coordinates": list(fit.target.coordinate_names),
        },
        "fields": {name: writer.encode(value, name) for name, value in fields.items()},
    }
    return write_whole(path, writer.archive(about), "fit")


def load_parts(path: AnyPath, target: AbstractTarget) -> Parts:
    """The fields of the fit in `path`, `target` among them: what `Fit(**parts)` takes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated, not a tightbound fit, of a newer version, or belongs to
            another target; the message says which, and what differs.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        problem = f"cannot be read: {reason(error)}"
        raise type(error)(
            f"The fit {str(path)!r} {problem}. Pass the path that fit.save(path) wrote."
        ) from None
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            # Whatever the file holds: another kind of content fails below, and is said to be that
            about: _About = json.loads(archive.read(ENTRY))
            _check_about(about, path, target)
            decoder = Decoder(archive)
            parts = {name: decoder.decode(value) for name, value in about["fields"].items()}
    except (zipfile.BadZipFile, zlib.error, EOFError, json.JSONDecodeError, OSError) as error:
        raise ValueError(_damaged(path, content, error)) from None
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{str(path)!r} {_NOT_OURS}") from error
    # JSON has no types: the names and types of the fields are those that `save` was given
    return cast(Parts, {**parts, "target": target})


_NOT_OURS = (
    "is not a fit that tightbound wrote. Pass the path that fit.save(path) wrote; its target is"
    " given beside it."
)


def _damaged(path: Path, content: bytes, error: Exception) -> str:
    """Why an archive cannot be read.

    Another kind of file, or ours with its end (where a zip has its index) missing.
    """
    ours = content[: len(_ZIP_MAGIC)] == _ZIP_MAGIC and ENTRY.encode() in content[:_HEAD]
    if not ours:
        return f"{str(path)!r} {_NOT_OURS}"
    return (
        f"The fit {str(path)!r} is truncated or damaged ({len(content):,} bytes; {error}). Copy it"
        " again from where it was saved; if it is lost, fit again with the same `key`, which gives"
        " the same numbers."
    )


def _check_about(about: _About, path: Path, target: AbstractTarget) -> None:
    """Raise a ValueError where the file is of a newer version, or of another target."""
    if about["format"] > _FORMAT:
        raise ValueError(
            f"{str(path)!r} was written by a newer tightbound (file format {about['format']}, this"
            f" version reads up to {_FORMAT}). Upgrade tightbound, or save the fit again with this"
            " version."
        )
    if about["format"] < _FORMAT:
        raise ValueError(
            f"{str(path)!r} was written by an older tightbound (file format {about['format']}, this"
            f" version reads {_FORMAT}). Fit again with the same `key`, and save that fit."
        )
    saved, given = about["target"]["coordinates"], list(target.coordinate_names)
    if saved == given:
        return
    way_out = "Pass the target that was fitted: the same model, with data of the same shapes."
    if len(saved) != len(given):
        raise ValueError(
            f"The fit {str(path)!r} has {len(saved)} coordinates ({_listed(saved)}), but `target`"
            f" has {len(given)} ({_listed(given)}). {way_out}"
        )
    place = next(
        i for i, names in enumerate(zip(saved, given, strict=True)) if names[0] != names[1]
    )
    raise ValueError(
        f"The fit {str(path)!r} belongs to another target: its coordinate {place} is called"
        f" {saved[place]!r}, that of `target` {given[place]!r}. {way_out}"
    )


def _listed(names: list[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


__all__ = ["AnyPath", "Parts", "Stored", "load_parts", "save", "write_whole"]
