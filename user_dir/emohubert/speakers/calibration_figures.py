"""What a calibration did to each speaker, as a figure."""

import numpy as np

from ..core.plotting import COLOURS, MOST_LABELLED, WIDTH, new_figure, save_figure, short


def before_after(path, rows, measure):
    """A PNG of each speaker's score before and after, sorted by the gain, the worse ones marked; returns its path. `rows` are those of one
    `measure` in `calibration_files.speaker_table`; speakers whose score is not defined are left out."""
    if not (scores := [(row[4] - row[3], row[0], row[3], row[4]) for row in rows if np.isfinite(row[3:5]).all()]):
        return None
    gains, speakers, before, after = zip(*sorted(scores), strict=True)
    before, after, worse, y = np.array(before), np.array(after), np.array(gains) < -1e-9, np.arange(len(gains))
    named = len(y) <= MOST_LABELLED
    with new_figure(WIDTH, 1.9 + (0.24 * max(len(y), 3) if named else 4.4)) as (figure, axes):
        for members, colour, style, label in ((~worse, COLOURS[0], "-", "better or equal"), (worse, COLOURS[3], "--", "worse")):
            if members.any():
                text = f"{label} ({int(members.sum())})"
                axes.hlines(y[members], before[members], after[members], color=colour, linestyle=style, linewidth=1.8, zorder=2, label=text)
                axes.scatter(after[members], y[members], s=26 if named else 8, color=colour, zorder=3)
        axes.scatter(before, y, s=26 if named else 8, facecolor="white", edgecolor="black", zorder=4, label="before")
        shown = y if named else y[[0, -1]]
        axes.set_yticks(shown, [short(speakers[i]) for i in shown])
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", color="#E6E6E6")
        axes.set(xlabel=short(measure, 30), ylabel="" if named else f"{len(y)} speakers, sorted by gain", ylim=(-0.7, len(y) - 0.3))
        axes.set_title(f"Before and after: {before.mean():.3f} → {after.mean():.3f} over speakers")
        figure.legend(loc="outside lower center", borderaxespad=0, ncols=3)
        return save_figure(figure, path)
