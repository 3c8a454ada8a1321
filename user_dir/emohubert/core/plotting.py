"""The look of all figures: colours, sizes, and how a figure is made and written without a display."""

import contextlib

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .files import atomic

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#F0E442")
"""Okabe and Ito's eight; the yellow, pale on white, comes last, and markers have a thin dark edge for it."""
MARKERS = "os^DvP*X"
GREY = "#9A9A9A"
STYLE = {
    "font.size": 10, "font.family": "DejaVu Sans", "legend.frameon": False, "legend.fontsize": 9, "figure.facecolor": "white",
    "axes.titlesize": 11, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
}  # fmt: skip
WIDTH = 5.4  # inches
DPI = 150
MOST_LABELLED = 40  # more bars than this get no names: they are sorted, and the lowest and highest are named


def short(text, most=14):
    """Text for a label: never read as mathematics, cut in the middle when too long."""
    text = str(text)
    text = text if len(text) <= most else f"{text[: most // 2]}…{text[len(text) - most + most // 2 + 1 :]}"
    return text.replace("$", r"\$")


@contextlib.contextmanager
def new_figure(width, height, *shape, **options):
    """(figure, axes) of so many inches, laid out and drawn without a display; `shape` and options of the axes are of `Figure.subplots`."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
        figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
        FigureCanvasAgg(figure)
        yield figure, figure.subplots(*shape, **options)


def save_figure(figure, path, square=False):
    """Write the PNG; a figure with square axes is trimmed to what is drawn, which costs a second rendering."""
    trim = {"bbox_inches": "tight", "pad_inches": 0.1} if square else {}
    with atomic(path, "wb") as f:
        figure.savefig(f, format="png", metadata={"Software": None}, **trim)
    return path
