"""Draw docs/images/architecture.png from the imports of the source.

Rooms stand on the floor that the layers of tests/test_architecture.py give them; an arrow goes from
a room to each room that it imports. The picture holds in its metadata what it shows, so that
tests/test_map.py can tell whether it is of today. Usage: python docs/draw_architecture.py
"""

import importlib.util
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "images" / "architecture.png"
PAPER, INK, LINE = "#ffffff", "#1f2933", "#9fb3c8"
# What a reader looks for first has a colour of its own.
COLOURS = {"fit": "#fde68a", "plan": "#fde68a", "certify": "#c7f0d8"}
BOX = 1.9  # width of a room on the sheet, in its units


def layers_and_arrows() -> tuple[list[list[str]], set[tuple[str, str]]]:
    """The rooms by floor, lowest first, and (from, to) of every import between two rooms."""
    place = ROOT / "tests" / "test_architecture.py"
    spec = importlib.util.spec_from_file_location("architecture", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    graph = module.import_graph(module.SOURCE)
    apart = {"__init__", "testing", "experiments"}
    floors = [sorted(floor - apart) for floor in module.LAYERS if floor - apart]
    arrows = {
        (name.partition(".")[0], other.partition(".")[0])
        for name, others in graph.items()
        for other in others
    }
    return floors, {(a, b) for a, b in arrows if a != b and not {a, b} & apart}


def shown(floors: list[list[str]], arrows: set[tuple[str, str]]) -> list[tuple[str, str]]:
    """Arrows between near floors only: longer ones hide the picture and say less."""
    level = {room: i for i, rooms in enumerate(floors) for room in rooms}
    return sorted((a, b) for a, b in arrows if 0 < level[a] - level[b] <= 2)


def in_words(floors: list[list[str]], arrows: set[tuple[str, str]]) -> str:
    """What the picture shows: its floors, lowest first, and its arrows."""
    rooms = "; ".join(", ".join(floor) for floor in floors)
    return rooms + ". " + ", ".join(f"{a} -> {b}" for a, b in shown(floors, arrows))


def draw() -> None:
    """Write the picture."""
    floors, arrows = layers_and_arrows()
    figure, axes = plt.subplots(figsize=(9, 11), facecolor=PAPER)
    where = {}
    for level, rooms in enumerate(floors):
        for i, room in enumerate(rooms):
            where[room] = ((i - (len(rooms) - 1) / 2) * (BOX + 0.35), float(level))
    for a, b in shown(floors, arrows):
        (xa, ya), (xb, yb) = where[a], where[b]
        axes.annotate(
            "",
            (xb, yb + 0.22),
            (xa, ya - 0.22),
            arrowprops={"arrowstyle": "-|>", "color": LINE, "lw": 0.8},
        )
    for room, (x, y) in where.items():
        axes.text(
            x,
            y,
            room,
            ha="center",
            va="center",
            fontsize=9,
            color=INK,
            bbox={
                "boxstyle": "round,pad=0.35",
                "facecolor": COLOURS.get(room, "#eef2f6"),
                "edgecolor": LINE,
            },
        )
    widest = max(len(rooms) for rooms in floors)
    axes.set_xlim(-widest * (BOX + 0.35) / 2, widest * (BOX + 0.35) / 2)
    axes.set_ylim(-0.7, len(floors) - 0.3)
    axes.axis("off")
    drawn = {"Drawn": in_words(floors, arrows)}
    figure.savefig(PICTURE, dpi=110, bbox_inches="tight", facecolor=PAPER, metadata=drawn)


if __name__ == "__main__":
    draw()
