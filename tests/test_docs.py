"""What README, docs/ and CONTRIBUTING say is true: files and links exist, programs have the options, examples run."""

import argparse
import importlib.util
import json
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import yaml
from scripts import ROOT, run

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
NOTEBOOK = ROOT / "docs" / "notebooks" / "quickstart.ipynb"
PACKAGE = ROOT / "user_dir" / "emohubert"
ROOMS = sorted(path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file())
PROGRAM = re.compile(r"(?:\S*/)?((?:tools|manifests)/\w+\.py|recipes/(?:slurm/)?\w+\.sh)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def cells(kind):
    return ["".join(cell["source"]) for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == kind]


def texts():
    """{name: text} of all pages and of the notebook's prose."""
    return {str(p.relative_to(ROOT)): p.read_text(encoding="utf-8") for p in PAGES} | {"quickstart.ipynb": "\n".join(cells("markdown"))}


def commands():
    """Words of every command line in a block of shell code."""
    blocks = [block for text in texts().values() for kind, block in FENCE.findall(text) if kind == "bash"]
    blocks += [cell for cell in cells("code") if cell.startswith("%%bash")]
    for line in "\n".join(blocks).replace("\\\n", " ").splitlines():
        yield shlex.split(line, comments=True)


def inline_options():
    """(program, option) of code within a sentence, such as `tools/x.py --option`."""
    for text in texts().values():
        for code in re.findall(r"`([^`\n]+)`", FENCE.sub("", text)):
            words = code.split()
            found = PROGRAM.fullmatch(words[0]) if words else None
            yield from ((found[1], word.split("=")[0]) for word in words if found and word.startswith("--"))


def options():
    """{program: options that are given to it on any page}."""
    found = {}
    for words in commands():
        program = None
        for word in words:
            if match := PROGRAM.fullmatch(word):
                program = match[1]
                found.setdefault(program, set())
            elif program and word.startswith("--"):
                found[program].add(word.split("=")[0])
    for program, option in inline_options():
        found.setdefault(program, set()).add(option)
    for name in ("manifests/savee.py",):  # the example of CONTRIBUTING
        found.pop(name, None)
    return found


def test_the_pages_name_programs():
    assert {"tools/evaluate.py", "manifests/emodb.py", "recipes/demo.sh", "recipes/slurm/submit.sh"} <= set(options())


@pytest.mark.parametrize("program", sorted(options()))
def test_programs_have_the_options_that_pages_give_them(program, capsys):
    assert (ROOT / program).is_file()
    wanted = options()[program]
    if not wanted:
        return
    if program.endswith(".sh"):
        shown = subprocess.run(["bash", ROOT / program, "--help"], capture_output=True, text=True, check=True).stdout
        if program == "recipes/slurm/submit.sh":  # takes the options of the recipe as well
            shown += "".join((ROOT / "recipes" / f"{name}.sh").read_text() for name in ("paper", "labels", "pretrain"))
    else:
        assert run(program, "--help") == 0
        shown = capsys.readouterr().out
    assert sorted(option for option in wanted if not re.search(rf"(?<![\w-]){option}(?![\w-])", shown)) == []


def test_configurations_and_their_keys_exist():
    named = {words[words.index("--config-name") + 1] for words in commands() if "--config-name" in words} - {"…"}
    assert named and all((ROOT / "config" / f"{name}.yaml").is_file() for name in named)
    known = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "config").glob("*.yaml"))
    keys = {
        key for text in texts().values() for key in re.findall(r"\b(?:task|model|criterion|dataset|optimization)\.([a-z_]+[a-z])", text)
    }
    assert len(keys) > 20
    assert sorted(key for key in keys if not re.search(rf"\b{key}\b", known)) == []


@pytest.mark.parametrize("name", sorted(texts()))
def test_links_and_file_names_exist(name):
    text = texts()[name]
    folder = NOTEBOOK.parent if name == "quickstart.ipynb" else (ROOT / name).parent
    site = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}  # docs/hooks.py makes these pages
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith(("http", "#")):
            path = (folder / target.partition("#")[0]).resolve()
            assert path.exists() or path == ROOT / "docs" / path.name and (ROOT / site[path.name]).exists(), target
    tops = "|".join(("tools", "manifests", "recipes", "config", "docs", "tests", "user_dir", *ROOMS))
    for file in re.findall(rf"`((?:{tops})/[\w./-]+\.(?:py|sh|yaml|md|conf|tsv|svg|ipynb))\b[^`]*`", text):
        if file != "manifests/savee.py" and not re.search(r"/NAME\.|simple_kmeans", file):
            assert (ROOT / file).is_file() or (PACKAGE / file).is_file(), file


def test_the_map_of_rooms_is_complete_and_in_order():
    tree = {}
    exec(re.search(r"^ROOMS = \[.*?^\]", (ROOT / "tests/test_structure.py").read_text(), re.DOTALL | re.MULTILINE)[0], tree)
    listed = re.findall(r"^\| `(\w+)/` \|", (ROOT / "docs/code.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert listed == tree["ROOMS"]
    assert sorted(listed) == ROOMS


def test_citation_and_changelog_are_of_this_version():
    version = re.search(r'^__version__ = "(.+)"', (PACKAGE / "__init__.py").read_text(), re.MULTILINE)[1]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(citation), "the keys that the format requires"
    assert (citation["cff-version"], str(citation["version"]), citation["license"]) == ("1.2.0", version, "MIT")
    assert citation["authors"] == [{"name": "The emohubert developers"}]
    assert all({"type", "title", "authors"} <= set(reference) for reference in citation["references"])
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## \[(.+?)\](?: - (\d{4}-\d\d-\d\d))?$", changes, flags=re.MULTILINE)
    assert headings[0] == ("Unreleased", "") and (version, str(citation["date-released"])) in headings


# --- the examples of CONTRIBUTING -------------------------------------------------------------------------------------


def example(heading):
    """The Python code below a heading of CONTRIBUTING.md."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.partition(f"\n### {heading}\n")[2].partition("\n### ")[0]
    (code,) = [block for kind, block in FENCE.findall(section) if kind == "python"]
    return code


def test_a_corpus_in_one_file(tmp_path):
    rng = np.random.default_rng(1)
    for speaker in ("DC", "JE", "JK", "KL"):
        for emotion in ("a", "sa", "n"):
            for sentence in ("01", "02"):
                path = tmp_path / "savee" / f"{speaker}_{emotion}{sentence}.wav"
                path.parent.mkdir(exist_ok=True)
                soundfile.write(path, rng.normal(0, 0.1, 8000), 16000)
    (tmp_path / "savee" / "Readme.wav").write_bytes(path.read_bytes())
    script = tmp_path / "manifests" / "savee.py"
    script.parent.mkdir()
    script.write_text(example("A corpus"), encoding="utf-8")
    (tmp_path / "user_dir").symlink_to(ROOT / "user_dir")
    assert run(script, tmp_path / "savee", tmp_path / "out") == 0
    assert (tmp_path / "out/fold1/test.spk").read_text().split() == ["DC"] * 6
    assert (tmp_path / "out/fold1/test.emo").read_text().split() == ["angry"] * 2 + ["neutral"] * 2 + ["sad"] * 2
    assert len((tmp_path / "out/fold4/train.tsv").read_text().splitlines()) == 1 + 18
    assert json.loads((tmp_path / "out/corpus.json").read_text())["corpus"] == "savee"
    assert run("tools/check_manifest.py", tmp_path / "out") == 0


def test_a_pooling_in_one_class():
    torch = pytest.importorskip("torch")
    from emohubert.models.pooling import POOLINGS

    exec(example("A pooling"), {})
    x = torch.randn(2, 5, 3)
    own = torch.tensor([[True] * 5, [True] * 2 + [False] * 3])
    expected = np.stack([x[0].numpy().max(axis=0), x[1, :2].numpy().max(axis=0)])
    np.testing.assert_array_equal(POOLINGS["maximum"](3)(x, own).numpy(), expected)


def test_a_head_in_one_class():
    torch = pytest.importorskip("torch")
    from emohubert.models.emotion import EmotionHubertConfig
    from emohubert.models.heads import HEADS

    exec(example("A head"), {})
    head = HEADS["normalised"].build(EmotionHubertConfig(head_dropout=0.1), 6, 4)
    assert head[1].p == 0.1
    x = torch.randn(3, 6)
    torch.testing.assert_close(
        head.eval()(5 * x + 2)["output"], head(x)["output"], msg="layer norm takes offset and scale out", rtol=0, atol=1e-4
    )


def test_a_speaker_position_in_one_class():
    torch = pytest.importorskip("torch")
    from training import TINY

    from emohubert.models.hubert import SpeakerHubertConfig, SpeakerHubertModel

    exec(example("A speaker position"), {})
    cfg = SpeakerHubertConfig(**TINY, speaker_position="gate")
    model = SpeakerHubertModel(cfg, argparse.Namespace(sample_rate=16_000), [range(5)], ["a", "b"]).eval()
    source = torch.randn(2, 8_000)

    def frames(*speakers):
        return model(source=source, lengths=[8_000, 8_000], speaker=torch.tensor(speakers), mask=False, features_only=True)["x"]

    torch.testing.assert_close(frames(1, 2), frames(0, 0))
    with torch.no_grad():
        model.speaker_conditioning.embedding.weight[1] = 0.5
    gate = 2 * torch.sigmoid(torch.tensor(0.5 * model.speaker_conditioning.scale))
    torch.testing.assert_close(frames(1, 2), frames(0, 0) * torch.tensor([gate, 1.0])[:, None, None])


# --- what takes longer ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_site_builds_without_a_broken_link(tmp_path):
    if importlib.util.find_spec("mkdocstrings") is None:
        pytest.skip("docs/requirements.txt is not installed")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path], cwd=ROOT, capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr[-3000:]
    assert "SpeakerConditioning" in (tmp_path / "reference/models.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    notebook = nbformat.read(NOTEBOOK, 4)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells), "it is kept without outputs"
    monkeypatch.setenv("OUT", str(tmp_path))
    resources = {"metadata": {"path": str(NOTEBOOK.parent)}}
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
    rows = json.loads((tmp_path / "results.json").read_text())
    assert "unseen speakers, PLDC" in json.dumps(rows)
    assert "Quick start" in (tmp_path / "results.md").read_text()
    assert (tmp_path / "report.html").stat().st_size > 10_000
