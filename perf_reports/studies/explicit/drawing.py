"""The pictures of the study. They need matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ....whole_files import replace

Record = dict[str, Any]
_COLORS = ("ours", "peer", "dense", "other", "compiled")


def draw(records: Sequence[Record], out: Path) -> list[Path]:
    """starts.png, growth.png and language.png, of those experiments that there are; none without matplotlib."""
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError:
        return []
    pictures = (
        ("curve", "starts", _draw_starts),
        ("race", "growth", _draw_growth),
        ("language", "language", _draw_language),
    )
    drawn = []
    for kind, name, picture in pictures:
        rows = [r for r in records if r["kind"] == kind]
        if rows:
            drawn.append(out / f"{name}.png")
            picture(rows, drawn[-1])
    return drawn


def _save(figure: Any, path: Path) -> None:
    replace(path, lambda fresh: figure.savefig(fresh, format="png", dpi=140))


def _draw_starts(rows: Sequence[Record], path: Path) -> None:
    """Training and test cross-entropy over Adam's steps: a column a data set and network, a line a start."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    from ...page.figures import COLOR, drawing

    columns = list(dict.fromkeys((r["dataset"], r["network"]) for r in rows))
    starts = list(dict.fromkeys(r["start"] for r in rows))
    shades = {name: COLOR[color] for name, color in zip(starts, (*_COLORS, "muted", "ink"), strict=False)}
    with drawing(2.9 * len(columns) + 1, 5.8, nrows=2, ncols=len(columns), squeeze=False) as (figure, panels):  # pyright: ignore
        lines = {}
        for column, (dataset, network) in enumerate(columns):
            own = [r for r in rows if (r["dataset"], r["network"]) == (dataset, network)]
            for panel, field in zip(panels[:, column], ("train_loss", "test_loss"), strict=True):
                lowest = min(r[field] for r in own)
                for start in dict.fromkeys(r["start"] for r in own):
                    line = [r for r in own if r["start"] == start]
                    (lines[start],) = panel.plot(
                        [r["steps"] for r in line], [r[field] for r in line], color=shades[start], linewidth=1.6
                    )
                panel.set_xscale("symlog", linthresh=1)
                panel.set_yscale("log")
                panel.set_ylim(max(lowest, 0.005) * 0.9, max(r[field] for r in own) * 1.1)
                panel.grid(axis="y")
                panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                panel.yaxis.set_minor_formatter(NullFormatter())
                for axis in (panel.xaxis, panel.yaxis):
                    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            panels[0, column].set_title(f"{dataset.split(',')[0]}, {network}")
            panels[1, column].set_xlabel("steps of Adam")
        panels[0, 0].set_ylabel("training CE")
        panels[1, 0].set_ylabel("test CE")
        figure.legend([lines[start] for start in starts], starts, loc="outside lower center", ncols=4)
        _save(figure, path)


def _draw_growth(rows: Sequence[Record], path: Path) -> None:
    """How many times the explicit solution's time Adam takes to its training loss, over N, D and C."""
    from matplotlib.ticker import FuncFormatter

    from ...page.figures import COLOR, drawing

    with drawing(10, 3.9, ncols=3, sharey=True) as (figure, axes):
        shades: dict[str, str] = {}
        for panel, field in zip(axes, ("N", "D", "C"), strict=True):
            others = [name for name in ("N", "D", "C") if name != field]
            groups: dict[tuple[Any, ...], list[Record]] = {}
            for r in rows:
                fixed = () if r["dataset"] == "speakers" else tuple(r[name] for name in others)
                if fixed or field == "C":  # the speakers' N follows C
                    groups.setdefault((r["dataset"], *fixed), []).append(r)
            for (dataset, *_), group in groups.items():
                line = sorted((r for r in group if r["train_ratio"] is not None), key=lambda r: r[field])
                if len(line) < 2:
                    continue
                shade = shades.setdefault(dataset, COLOR[_COLORS[len(shades)]])
                panel.plot([r[field] for r in line], [r["train_ratio"] for r in line], "o-", color=shade, label=dataset)
            panel.set(xscale="log", yscale="log", xlabel=field)
            panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            panel.axhline(1, color=COLOR["muted"], linewidth=0.8)
            panel.grid(axis="y")
            if panel.get_legend_handles_labels()[0]:
                panel.legend()
        axes[0].set_ylabel("time of Adam / time of the explicit solution")
        _save(figure, path)


def _draw_language(rows: Sequence[Record], path: Path) -> None:
    """Test cross-entropy over the tokens of a context: a panel a text, a line a family of models."""
    from matplotlib.ticker import MaxNLocator

    from ...page.figures import COLOR, drawing

    datasets = list(dict.fromkeys(r["dataset"] for r in rows))
    families = ("sum, paper", "cat, paper", "cat, weights", "suffix, weights", "Kneser–Ney")
    shades = dict(zip(families, ("other", "dense", "compiled", "ours", "peer"), strict=True))
    with drawing(10, 4.3, ncols=len(datasets), squeeze=False) as (figure, panels):
        for panel, dataset in zip(panels[0], datasets, strict=True):
            for family in families:
                line = sorted(
                    (r["context"], r["cross_entropy"]) for r in rows if r["dataset"] == dataset and _family(r) == family
                )
                if line:
                    panel.plot(*zip(*line, strict=True), "o-", color=COLOR[shades[family]], label=family)
            panel.set_title(dataset)
            panel.set_xlabel("tokens of context")
            panel.xaxis.set_major_locator(MaxNLocator(integer=True))
            panel.grid(axis="y")
        panels[0, 0].set_ylabel("test CE, nats a token")
        panels[0, 0].legend()
        _save(figure, path)


def _family(row: Record) -> str:
    if row["role"] == "peer":
        return "Kneser–Ney"
    return f"{row['method'].split(',')[0]}, {'weights' if row['role'] == 'ours' else 'paper'}"
