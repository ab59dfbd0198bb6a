"""Measurements on disk: rows with the commit, the versions and the day that they belong to.

A record is `{"made": {...}, "rows": [...]}` in strict JSON; scripts write them below `build/bench`,
and `figures.py` and `page.py` read nothing else.
"""

import datetime
import importlib.metadata
import json
import math
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "bench"
_LIBRARIES = ("jax", "numpy", "numpyro", "blackjax", "pymc", "pymc-extras", "pytensor")


def made() -> dict[str, Any]:
    """What the numbers depend on.

    Commit (and whether files differ from it), day, libraries, processor.
    """
    differs = bool(_git("status", "--porcelain", "--", "src", "benchmarks"))
    versions = {name: version for name in _LIBRARIES if (version := _version(name))}
    machine = {
        "cores": os.cpu_count(),
        "processor": platform.machine(),
        "python": platform.python_version(),
    }
    day = datetime.date.today().isoformat()
    return {
        "commit": _git("rev-parse", "--short", "HEAD"),
        "differs": differs,
        "day": day,
        "versions": versions,
        **machine,
    }


def write(path: Path, rows: list[dict[str, Any]], **more: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"made": _MADE | more, "rows": plain(rows)}
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read(path: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows, and how they were made. Exits with a sentence where there is no such record."""
    if not path.exists():
        sys.exit(f"{path} is not there: docs/benchmarks.md says which script writes it.")
    content = json.loads(path.read_text(encoding="utf-8"))
    return content["rows"], content["made"]


def runs(records: Path, name: str) -> list[list[dict[str, Any]]]:
    """The rows of `name/runs.json`, and of `name-1/runs.json` and so on where a long measurement
    was made in parts.
    """
    return [
        read(path)[0]
        for path in sorted(
            [*records.glob(f"{name}/runs.json"), *records.glob(f"{name}-*/runs.json")]
        )
    ]


def missing(records: Path, needs: tuple[str, ...]) -> list[str]:
    """Those of `needs` (files, or names of runs) that are not there."""
    return [need for need in needs if not (records / need).is_file() and not runs(records, need)]


def plain(value: Any) -> Any:
    """What strict JSON can hold.

    Numbers that are not finite become strings, of NumPy's scalars their Python value.
    """
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if hasattr(value, "item"):
        value = value.item()
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        )
    except OSError:  # no git: the record says no commit
        return ""
    return done.stdout.strip()


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


_MADE = made()  # when the script starts: a long run belongs to the code that it loaded
