"""A fit in one file, without pickle: a zip archive of JSON and .npy arrays that comes back bit for
bit.

    fit.json             what the fit's fields are; arrays stand in it by the name of their entry
    arrays/0.npy ...     numbers only (`allow_pickle=False`)

Reading runs no code from the file: a class is rebuilt only when it is a family of
`tightbound.families` or one of the few records below. The target is not in the file (it is the
user's code): `load_parts` is given it, and compares the names.
"""

import contextlib
import dataclasses
import enum
import importlib
import io
import json
import os
import shutil
import uuid
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np

from ._types import Estimate
from .certify.finding import Certificate, Finding, Verdict
from .loop import Trace
from .results import Result

_FORMAT = 1  # raise it when a file of the old kind can no longer be read
_ENTRY = "fit.json"
_FAMILIES = "tightbound.families"
# of the networks inside amortised families: plain records of arrays and numbers
_LAYERS = "equinox.nn."
_RECORDS: dict[str, Any] = {
    c.__name__: c for c in (Certificate, Finding, Trace, Estimate, Result, Verdict)
}
# the key that marks an encoded object; user's dicts are stored as lists of pairs, so it cannot
# clash
_TAG = "is"


def save(fit: Any, path: Any) -> Path:
    """Write every field of `fit` but its target to `path`; returns the path.

    The certificate is stored where it was computed already. The file appears whole or not at all.

    Raises:
        OSError: the file cannot be written; the message names the path and the way out.
        ValueError: q is of a class that is not in tightbound.families, which a file without code
            cannot bring back.
    """
    writer = _Encoder()
    fields = {
        field.name: getattr(fit, field.name)
        for field in dataclasses.fields(fit)
        if field.name != "target"
    }
    if fields.get("checked", "absent") is None:
        fields["checked"] = vars(fit).get("certificate")
    about = {
        "format": _FORMAT,
        "target": {
            "class": type(fit.target).__name__,
            "coordinates": list(fit.target.coordinate_names),
        },
        "fields": {name: writer.encode(value, name) for name, value in fields.items()},
    }
    return write_whole(path, writer.archive(about), "fit")


def load_parts(path: Any, target: Any) -> dict[str, Any]:
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
        reason = f"cannot be read: {_reason(error)}"
        raise type(error)(
            f"The fit {str(path)!r} {reason}. Pass the path that fit.save(path) wrote."
        ) from None
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            about = json.loads(archive.read(_ENTRY))
            _check_about(about, path, target)
            decoder = _Decoder(archive)
            parts = {name: decoder.decode(value) for name, value in about["fields"].items()}
    except (zipfile.BadZipFile, zlib.error, EOFError, json.JSONDecodeError, OSError) as error:
        raise ValueError(_damaged(path, content, error)) from None
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{str(path)!r} {_NOT_OURS}") from error
    return {**parts, "target": target}


_NOT_OURS = (
    "is not a fit that tightbound wrote. Pass the path that fit.save(path) wrote; its target is"
    " given beside it."
)


def _damaged(path: Path, content: bytes, error: Exception) -> str:
    """Why an archive cannot be read.

    Another kind of file, or ours with its end (where a zip has its index) missing.
    """
    ours = content[:4] == b"PK\x03\x04" and _ENTRY.encode() in content[:64]
    if not ours:
        return f"{str(path)!r} {_NOT_OURS}"
    return (
        f"The fit {str(path)!r} is truncated or damaged ({len(content):,} bytes; {error}). Copy it"
        " again from where it was saved; if it is lost, fit again with the same `key`, which gives"
        " the same numbers."
    )


def _check_about(about: Any, path: Path, target: Any) -> None:
    if about["format"] > _FORMAT:
        raise ValueError(
            f"{str(path)!r} was written by a newer tightbound (file format {about['format']}, this"
            f" version reads up to {_FORMAT}). Upgrade tightbound, or save the fit again with this"
            " version."
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


class _Encoder:
    """Python values as JSON, with arrays put aside as entries of the archive."""

    def __init__(self):
        self.arrays: list[np.ndarray] = []

    def encode(self, value: Any, where: str) -> Any:
        """JSON of `value`; `where` is what it is called in an error."""
        if value is None or type(value) in (bool, str):
            return value
        if (
            isinstance(value, (np.ndarray, jax.Array, np.generic))
            and np.asarray(value).dtype != object
        ):
            self.arrays.append(np.asarray(value))
            return {
                _TAG: "array",
                "entry": len(self.arrays) - 1,
                "scalar": isinstance(value, np.generic),
            }
        if isinstance(value, enum.Enum) and type(value).__name__ in _RECORDS:
            return {_TAG: type(value).__name__, "member": value.name}
        if isinstance(value, (int, float)):
            return value
        if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
            items = [self.encode(item, f"{where}[{i}]") for i, item in enumerate(value)]
            return items if type(value) is list else {_TAG: "tuple", "items": items}
        if isinstance(value, Mapping) and not dataclasses.is_dataclass(value):
            pairs = [
                [self.encode(k, where), self.encode(v, f"{where}[{k!r}]")] for k, v in value.items()
            ]
            return {_TAG: "dict", "pairs": pairs}
        return self._record(value, where)

    def _record(self, value: Any, where: str) -> dict[str, Any]:
        """An instance of one of our own classes, by the names of its fields."""
        cls = type(value)
        if cls.__module__.startswith(_FAMILIES + ".") and isinstance(value, eqx.Module):
            name = f"{cls.__module__.removeprefix(_FAMILIES + '.')}.{cls.__qualname__}"
        elif getattr(eqx.nn, cls.__name__, None) is cls:
            name = _LAYERS + cls.__name__
        elif _RECORDS.get(cls.__name__) is cls:
            name = cls.__name__
        else:
            raise ValueError(
                f"save: {where!r} is a {cls.__qualname__} from the module {cls.__module__!r}, and a"
                " file without code can bring back only the families of tightbound.families,"
                " arrays and numbers. Keep q's leaves with equinox.tree_serialise_leaves(path,"
                " fit.q), which needs a q of the same structure to read them."
            )
        return {
            _TAG: name,
            "fields": {
                f: self.encode(getattr(value, f), f"{where}.{f}") for f in _field_names(cls)
            },
        }

    def archive(self, about: dict[str, Any]) -> bytes:
        """The file's content. Entries carry no time, so that equal fits are equal files."""
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(_entry(_ENTRY), json.dumps(about))
            for index, array in enumerate(self.arrays):
                content = io.BytesIO()
                np.lib.format.write_array(content, np.asarray(array), allow_pickle=False)
                archive.writestr(_entry(f"arrays/{index}.npy"), content.getvalue())
        return buffer.getvalue()


class _Decoder:
    """The inverse of `_Encoder`."""

    def __init__(self, archive: zipfile.ZipFile):
        self.archive = archive

    def decode(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self.decode(item) for item in value]
        if not isinstance(value, dict):
            return value
        kind = value[_TAG]
        if kind == "array":
            content = io.BytesIO(self.archive.read(f"arrays/{value['entry']}.npy"))
            array = np.lib.format.read_array(content, allow_pickle=False)
            return array[()] if value["scalar"] else array
        if kind == "dict":
            return {self.decode(k): self.decode(v) for k, v in value["pairs"]}
        if kind == "tuple":
            return tuple(self.decode(item) for item in value["items"])
        if "member" in value:
            return _RECORDS[kind][value["member"]]
        fields = {name: self.decode(field) for name, field in value["fields"].items()}
        return _RECORDS[kind](**fields) if kind in _RECORDS else _rebuilt(_family(kind), fields)


def _family(name: str) -> type:
    """A class by its name below tightbound.families.

    Nothing else is ever imported or called for a file.
    """
    module, _, cls = name.rpartition(".")
    if (
        name.startswith(_LAYERS)
        and isinstance(layer := getattr(eqx.nn, cls, None), type)
        and issubclass(layer, eqx.Module)
    ):
        return layer
    try:
        found = getattr(importlib.import_module(f"{_FAMILIES}.{module}"), cls, None)
    except ImportError:
        found = None
    if not (
        isinstance(found, type)
        and issubclass(found, eqx.Module)
        and found.__module__ == f"{_FAMILIES}.{module}"
    ):
        raise ValueError(
            f"The file holds a {cls!r} from {_FAMILIES}.{module}, which this version of tightbound"
            " does not have. Read it with the version that wrote it."
        )
    return found


def _rebuilt(cls: type, fields: dict[str, Any]) -> Any:
    """An instance with exactly these fields, as unflattening a pytree makes one.

    No converter may touch the bits.
    """
    if set(fields) != set(_field_names(cls)):
        raise ValueError(
            f"The file holds a {cls.__name__} with the fields {', '.join(sorted(fields))}, but this"
            f" version's has {', '.join(sorted(_field_names(cls)))}. Read it with the version that"
            " wrote it."
        )
    instance = object.__new__(cls)
    for name, value in fields.items():
        object.__setattr__(instance, name, value)
    return instance


def _field_names(cls: Any) -> tuple[str, ...]:
    return getattr(cls, "_fields", None) or tuple(field.name for field in dataclasses.fields(cls))


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)
    entry.compress_type = zipfile.ZIP_DEFLATED
    return entry


def write_whole(path: Any, content: bytes, what: str) -> Path:
    """Write `content` to `path` so that the file is there whole or not at all: beside it first,
    then renamed onto it.

    Raises:
        OSError: (of the kind that the system raised) naming the path, the reason and the way out;
            `what` was to be written.
    """
    path = Path(path)
    place = Path(os.path.realpath(path))  # a link stays a link
    if place.exists() and not (place.is_file() or place.is_dir()):
        place.write_bytes(content)  # a pipe or a terminal: renaming would replace it
        return path
    beside = place.with_name(f".{place.name[:40]}.{uuid.uuid4().hex[:8]}.tmp")
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
        way_out = f"{_reason(error)}. Pass the path of a file in a folder that you may write to."
    return (
        f"The {what} cannot be written to {str(path)!r}. {way_out} Nothing is lost: the fit is"
        " still in memory."
    )


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).capitalize()


__all__ = ["load_parts", "save", "write_whole"]
