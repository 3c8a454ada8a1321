"""The model card of an exported emotion model: what the checkpoint and the records beside it say, and no more."""

from pathlib import Path

from ..core.files import atomic
from ..corpus.audio import SAMPLE_RATE
from ..provenance import records
from ..provenance.trail import MEANING


def write_card(source, folder):
    """Write the README.md of an emotion model into a folder, from `card.md.j2`, unless one is there."""
    import jinja2

    path, model = Path(folder) / "README.md", source.model
    if path.exists():
        return
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    template = environment.from_string(Path(__file__).with_name("card.md.j2").read_text(encoding="utf-8"))
    shown = {name: getattr(source, name) for name in ("task", "model", "pretrained", "outputs", "temperature", "speaker_id")}
    names = {"name": path.resolve().parent.name, "init_from": Path(str(model.cfg.init_from)).name}
    with atomic(path) as f:
        f.write(template.render(**shown, **names, records=_records_beside(source.path)))


def _records_beside(path):
    """What each record beside a checkpoint lists, in words."""
    lines = []
    for record in map(records.read, sorted(path.parent.glob(f"*{records.SUFFIX}"))):
        u = record.utterances
        if record.role in MEANING and len(u):
            hours, corpus = sum(u.n_samples) / SAMPLE_RATE / 3600, record.facts.get("corpus") or "a corpus without a name"
            lines.append(f"{MEANING[record.role]}: {corpus}, {len(u)} recordings, {hours:.2f} hours, {len(set(u.speakers))} speakers")
    return lines
