"""The content of a fit's file: Python values as JSON and arrays, and back.

A class is rebuilt only when it is a family of `tightbound.families` or one of the few records
below: nothing else is imported or called for a file.
"""

import dataclasses
import enum
import importlib
import io
import json
import zipfile
from collections.abc import Callable, Mapping

import equinox as eqx
import jax
import numpy as np

from .._types import Estimate
from ..account import Spent, Stage
from ..certify.certificate import Certificate
from ..certify.finding import About, Finding, FindingDetail, Verdict
from ..loop import Trace
from ..results import Result

ENTRY = "fit.json"
_FAMILIES = "tightbound.families"
# Heads and encoders are parts of families, in a room of their own. Names in a file leave the room
# out.
_PARTS = "tightbound.amortised"
_PART_NAMES = ("heads.", "encoders.")
# Of the networks inside amortised families: plain records of arrays and numbers
_LAYERS = "equinox.nn."
# What a file may hold besides families: these classes, and the details of findings that the library
# knows (`FindingDetail.kinds`), are the only ones that are ever called for it.
_RECORDS: dict[str, Callable[..., object]] = {
    c.__name__: c for c in (Certificate, Finding, Trace, Estimate, Spent, Stage)
}
_ENUMS: dict[str, type[enum.Enum]] = {c.__name__: c for c in (About, Result, Verdict)}
# The key that marks an encoded object; user's dicts are stored as lists of pairs, so it cannot
# clash
_TAG = "is"


class Encoder:
    """Python values as JSON, with arrays put aside as entries of the archive."""

    def __init__(self):
        self.arrays: list[np.ndarray] = []

    def encode(self, value: object, where: str) -> object:
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
        if isinstance(value, enum.Enum) and _ENUMS.get(type(value).__name__) is type(value):
            return {_TAG: type(value).__name__, "member": value.name}
        if isinstance(value, (int, float)):
            return value
        # A NamedTuple, and a dataclass that is a Mapping too, are records: hence the exact types.
        if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
            items = [self.encode(item, f"{where}[{i}]") for i, item in enumerate(value)]
            return items if type(value) is list else {_TAG: "tuple", "items": items}
        if isinstance(value, Mapping) and not dataclasses.is_dataclass(value):
            pairs = [
                [self.encode(k, where), self.encode(v, f"{where}[{k!r}]")] for k, v in value.items()
            ]
            return {_TAG: "dict", "pairs": pairs}
        return self._record(value, where)

    def _record(self, value: object, where: str) -> dict[str, object]:
        """An instance of one of our own classes, by the names of its fields."""
        cls = type(value)
        short = cls.__module__.removeprefix(_FAMILIES + ".").removeprefix(_PARTS + ".")
        name = f"{short}.{cls.__qualname__}"
        of_family = cls.__module__ == f"{_room_of(name)}.{short}" and isinstance(value, eqx.Module)
        if getattr(eqx.nn, cls.__name__, None) is cls:
            name = _LAYERS + cls.__name__
        elif _record_class(cls.__name__) is cls:
            name = cls.__name__
        elif not of_family:
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

    def archive(self, about: object) -> bytes:
        """The file's content. Entries carry no time, so that equal fits are equal files."""
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(_entry(ENTRY), json.dumps(about))
            for index, array in enumerate(self.arrays):
                content = io.BytesIO()
                np.lib.format.write_array(content, np.asarray(array), allow_pickle=False)
                archive.writestr(_entry(f"arrays/{index}.npy"), content.getvalue())
        return buffer.getvalue()


class Decoder:
    """The inverse of `Encoder`."""

    def __init__(self, archive: zipfile.ZipFile):
        self.archive = archive

    def decode(self, value: object) -> object:
        """The value that `Encoder.encode` made this JSON of."""
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
            return _ENUMS[kind][value["member"]]
        fields = {name: self.decode(field) for name, field in value["fields"].items()}
        record = _record_class(kind)
        return _rebuilt(_family(kind), fields) if record is None else record(**fields)


def _record_class(name: str) -> Callable[..., object] | None:
    """The record of that name, if there is one; a detail is found where its finding stands."""
    return _RECORDS.get(name) or FindingDetail.kinds.get(name)


def _room_of(name: str) -> str:
    """The package of a family, or of a head or an encoder, by the name that a file has for it."""
    return _PARTS if name.startswith(_PART_NAMES) else _FAMILIES


def _family(name: str) -> type[eqx.Module]:
    """A family, or a part of one, by its name in a file.

    Nothing else is ever imported or called for a file.
    """
    module, _, cls = name.rpartition(".")
    if (
        name.startswith(_LAYERS)
        and isinstance(layer := getattr(eqx.nn, cls, None), type)
        and issubclass(layer, eqx.Module)
    ):
        return layer
    where = f"{_room_of(name)}.{module}"
    try:
        found = getattr(importlib.import_module(where), cls, None)
    except ImportError:
        found = None
    if not (
        isinstance(found, type) and issubclass(found, eqx.Module) and found.__module__ == where
    ):
        raise ValueError(
            f"The file holds a {cls!r} from {where}, which this version of tightbound does not"
            " have. Read it with the version that wrote it."
        )
    return found


def _rebuilt(cls: type[eqx.Module], fields: dict[str, object]) -> eqx.Module:
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


def _field_names(cls: type) -> tuple[str, ...]:
    """Of a NamedTuple or a dataclass; a TypeError where it is neither."""
    return getattr(cls, "_fields", None) or tuple(field.name for field in dataclasses.fields(cls))


def _entry(name: str) -> zipfile.ZipInfo:
    """An entry of 1980, as `ZipInfo` dates it: the time of writing would change the file."""
    entry = zipfile.ZipInfo(name)
    entry.compress_type = zipfile.ZIP_DEFLATED
    return entry


__all__ = ["ENTRY", "Decoder", "Encoder"]
