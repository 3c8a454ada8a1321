"""The report of a run: `report.html`, from `page.html.j2`. What is missing is said, what cannot be read is named."""

import base64
import tempfile
from pathlib import Path

from ..core.files import atomic, fingerprint, make_folder, natural, sha256
from ..evaluation.metrics import class_scores
from ..evaluation.results import by_scores, spread
from ..training.curves import chosen_update
from . import systems, warnings
from .collect import SYSTEMS, discover, fits
from .table_cells import cell, count, interval, number, signed

REPORT = "report.html"
TEMPLATE = Path(__file__).with_name("page.html.j2")
MOST_ILLUSTRATED = 60  # evaluations, and trainings, whose figures are in the page
FACTS = """task._name task.data task.labels task.target model._name model.init_from model.speaker_position model.pooling model.head
model.freeze criterion._name optimization.lr optimization.max_update optimization.max_epoch checkpoint.best_checkpoint_metric common.seed"""
"""Keys of a configuration that are shown unfolded."""


def write(folder, overwrite=False, explored=False):
    """Write `report.html` into a run's folder, unless it is there and made from the same files. Returns (path of the page, the RunFolder,
    whether it was written now); InputError as `discover`. `explored`: it links to the explorer, as it does where there is one."""
    run = discover(folder)
    path = run.folder / REPORT
    folders = {*(e.folder for e in run.evaluations), *((run.folder / name).parent for name in run.results)}
    pictures = sorted((str(p), sha256(p)) for folder in folders for p in _pictures(folder))
    explored = explored or (run.folder / "explore" / "index.html").is_file()
    stamp = fingerprint([run.inputs, run.unread, pictures, explored, [sha256(p) for p in sorted(TEMPLATE.parent.glob("*.*"))]])
    if not overwrite and path.is_file() and f'content="{stamp}"' in path.read_text(encoding="utf-8", errors="replace")[:4000]:
        return path, run, False
    make_folder(run.folder)
    with atomic(path) as f:
        f.write(_render(run, stamp, explored))
    return path, run, True


def _render(run, stamp, explored):
    import jinja2
    import yaml

    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.ChainableUndefined)
    environment.filters |= {f.__name__: f for f in (number, signed, interval, count, cell, spread, by_scores, fingerprint)}
    environment.filters["pick"] = lambda mapping, keys: [mapping.get(key) for key in keys]
    plain = {"Dumper": yaml.CSafeDumper, "sort_keys": False, "allow_unicode": True, "width": 120}
    environment.filters["yaml"] = lambda value: yaml.dump(value, **plain)
    environment.tests["systems"] = lambda content: fits(content, SYSTEMS)
    names = {"plots": systems.plots, "changes": warnings.changes, "chosen_update": chosen_update, "class_scores": class_scores}
    names |= {"explored": explored, "facts": FACTS, "tables": systems.compared(run)}
    names |= {"figures_of": _figures, "curves_of": _curves, "most_illustrated": MOST_ILLUSTRATED}
    groups = {}
    for warning in warnings.of_run(run):
        groups.setdefault((warning.level, warning.kind), []).append(warning)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(run=run, stamp=stamp, warnings=list(groups.values()), **names)


def _figures(folder):
    """[(base64 of the PNG, caption), …] of the figures that were drawn for a folder."""
    return [(base64.b64encode(path.read_bytes()).decode("ascii"), path.stem.replace("_", " ")) for path in _pictures(folder)]


def _curves(training):
    """The curves of a training, drawn now, as `_figures`."""
    from ..evaluation import figures

    with tempfile.TemporaryDirectory() as folder:
        figures.training(Path(folder) / "training and validation curves.png", training.curves)
        return _figures(Path(folder))


def _pictures(folder):
    return sorted([*folder.glob("*.png"), *(folder / "figures").glob("*.png")], key=lambda p: natural(p.name))
