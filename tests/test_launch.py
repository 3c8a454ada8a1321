"""Starting a training: settings, quoting for Hydra, progress, failures; and fairseq without what imports scikit-learn."""

import json
import logging
import re
import subprocess
import sys

import pytest
import training
from corpus import make_corpus, make_labels
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from scripts import ROOT, run

from emohubert.core.errors import InputError
from emohubert.training import launch

ODD = "a=b, c's (é) [x] {y} #1 & 新"


def parsed(override):
    """What Hydra's own parser takes for the value."""
    (found,) = OverridesParser.create().parse_overrides([override])
    return found.value()


@given(st.text(st.characters(blacklist_categories=("Cs", "Cc"), blacklist_characters="$"), max_size=20))
def test_a_path_means_itself(name):
    path = f"/data/{name}"
    assert parsed(launch.quoted(f"task.data={path}")) == path


@pytest.mark.parametrize(
    "name", ["a(1).pt", "a,b", "é.pt", "新", "a=b", "#1", "[x]y", "{x}/y", "[x]/y", "'x/y", "$x/y", "it's", "a&b", "a~b>c"]
)
def test_a_name_without_a_folder_means_itself(name):
    assert parsed(launch.quoted(f"model.init_from={name}")) == name


@pytest.mark.parametrize(
    "value", ["[0.003]", "null", "'[(16,10,5)] + [(16,3,2)] * 4'", "[L1/km5,mfcc/km9]", "1e-3", "true", "${common.user_dir}/x", ""]
)
def test_other_values_are_hydras(value):
    assert launch.quoted(f"a.b={value}") == f"a.b={value}"


@pytest.mark.parametrize("name", [r"back\slash/x", r"ends/with\\", r"it\'s/x"])
def test_backslashes_before_quotes(name):
    assert parsed(launch.quoted(f"a={name}")) == name


class Pretend:
    """In place of a process: writes a log, and calls a function of the training's folder."""

    def __init__(self, printed="", status=0, leaving=lambda folder: None):
        self.printed, self.status, self.leaving, self.calls = printed, status, leaving, []

    def __call__(self, command, log, environment, progress):
        self.calls.append((command, environment))
        with open(log, "a") as f:
            f.write(self.printed)
        progress.update(self.printed.split("\n"))
        self.leaving(log.parent)
        return self.status


def start(monkeypatch, folder, pretend, *overrides, **options):
    monkeypatch.setattr(launch, "execute", pretend)
    launch.Training("papt_tiny", folder, tuple(overrides)).run(**options)


LOG = """[t][emohubert.training.processes][INFO] - training from update 10 to 50
[t][train_inner][INFO] - {"epoch": 1, "update": 0.5, "loss": "4.5", "accuracy_masked_0": "0.25", "wps": "320000", "num_updates": "20"}
[t][train_inner][INFO] - {"epoch": 1, "update": 0.5, "loss": "4.0", "num_updates": "50", "wall": "1"}
[t][valid][INFO] - {"epoch": 1, "valid_loss": "3.9", "valid_num_updates": "50", "valid_ua": "0.5"}
"""


def test_progress_is_lines_in_a_log(monkeypatch, caplog):
    caplog.set_level("INFO", "emohubert")
    clock = iter(range(0, 10_000, 61))
    monkeypatch.setattr(launch.time, "monotonic", lambda: next(clock))
    progress = launch._Progress("x", bar=False)
    for line in LOG.splitlines():
        progress.update([line])
    progress.update(["[t][train_inner][INFO] - {half a li"])
    progress.end()
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == "x: update 20 of 50 (9 min left), loss 4.5, masked accuracy 0.25, 20 s of audio/s"
    assert lines[1].startswith("x: update 50 of 50 (0 min left), loss 4.0")
    assert lines[-1].startswith("x: 50 updates in ") and lines[-1].endswith("; validation: loss 3.9, UA 0.5")


def test_a_training_of_few_updates_has_validation_scores_alone():
    progress = launch._Progress("x", bar=False)
    progress.update([LOG.splitlines()[-1]])
    assert progress.scores() == "validation: loss 3.9, UA 0.5"


def test_progress_is_a_bar_on_a_terminal(capsys):
    progress = launch._Progress(ROOT, bar=True)
    for line in LOG.splitlines():
        progress.update([line])
    progress.end()
    assert "50/50" in capsys.readouterr().err and "loss 4.0" in progress.bar.postfix


def test_fairseqs_own_program_has_the_bar(capsys, monkeypatch):
    """On a terminal the log's scores become a bar, and fairseq's chatter stays in the file."""
    console, root = logging.StreamHandler(sys.stdout), logging.getLogger()
    monkeypatch.setattr(root, "handlers", [console])
    root.addHandler(bar := launch.TerminalBar(ROOT))
    for line in LOG.splitlines():
        name, message = re.fullmatch(r"\[t\]\[([\w.]+)\]\[INFO\] - (.*)", line).groups()
        monkeypatch.setattr(logging.getLogger(name), "level", logging.INFO)
        logging.getLogger(name).info(message)
    logging.getLogger("fairseq.trainer").warning("a warning")
    bar.close()
    out, err = capsys.readouterr()
    assert "50/50" in err and "loss 4.0" in err and "train_inner" not in out and "{" not in out and "a warning" in out


def test_what_is_done_is_skipped_and_other_settings_are_refused(monkeypatch, tmp_path):
    pretend = Pretend(LOG)
    start(monkeypatch, tmp_path / "run", pretend, "common.seed=2", "task.data=/a b")
    command, environment = pretend.calls[0]
    assert command[-2:] == ["common.seed=2", "task.data='/a b'"] and f"checkpoint.save_dir='{tmp_path}/run'" in command
    assert environment["EMOHUBERT_USER_DIR"] == str(ROOT / "user_dir")
    assert (tmp_path / "run/settings.txt").read_text() == "papt_tiny\ncommon.seed=2\ntask.data=/a b\n"
    start(monkeypatch, tmp_path / "run", pretend, "common.seed=2", "task.data=/a b")
    assert len(pretend.calls) == 1
    with pytest.raises(InputError, match="holds a training with other settings"):
        start(monkeypatch, tmp_path / "run", pretend, "common.seed=3", "task.data=/a b")


def test_a_failure_is_shown_with_its_log(monkeypatch, tmp_path, capsys):
    with pytest.raises(InputError, match=r"training failed \(status 2\); the end of .*output.log is above"):
        start(monkeypatch, tmp_path, Pretend("x\n" * 50 + "error: no audio\nerror: none.tsv: no such file\ngoing\n", 2))
    assert capsys.readouterr().err == "error: none.tsv: no such file\n"
    with pytest.raises(InputError):
        start(monkeypatch, tmp_path, Pretend("".join(f"line {i}\n" for i in range(40)), 1))
    assert capsys.readouterr().err == "".join(f"line {i}\n" for i in range(10, 40)), "of the last start alone"


def test_a_killed_training_may_have_lacked_memory(monkeypatch, tmp_path):
    with pytest.raises(InputError, match=r"status -9\); killed, perhaps for lack of memory: see task.max_sample_size"):
        start(monkeypatch, tmp_path, Pretend("", -9))


def test_a_preempted_training_says_so_once(monkeypatch, tmp_path):
    with pytest.raises(SystemExit) as end:
        start(monkeypatch, tmp_path, Pretend("", 1, lambda folder: (folder / "stopped").write_text("7 updates\n")))
    assert end.value.code == launch.PREEMPTED
    with pytest.raises(InputError):
        start(monkeypatch, tmp_path, Pretend("", 1))


def test_launchers():
    assert launch.launcher(None, {}) == launch.launcher(1, {"SLURM_NTASKS": "4"}) == [sys.executable]
    assert "--nproc-per-node=3" in launch.launcher(3, {})
    job = {"EMOHUBERT_SRUN": "yes", "SLURM_NTASKS": "8"}
    assert launch.launcher(None, job)[0] == "srun" and launch.launcher(None, {**job, "SLURM_NTASKS": "1"}) == [sys.executable]


@pytest.mark.slow
def test_a_training_whose_paths_hold_what_hydra_reads_otherwise(tmp_path, capfd):
    folder = tmp_path / ODD
    folder.mkdir()
    make_labels(make_corpus(folder, seconds=(0.3, 0.5)), folder / "labels")
    options = [f"task.data={folder}/manifest", f"task.label_dir={folder}/labels", "optimization.max_update=3", *training.MICRO]
    assert run("tools/train.py", "hubert_tiny", folder / "run", *options) == 0
    assert (folder / "run" / "checkpoint_last.pt").exists() and ": 3 updates in " in capfd.readouterr().err
    assert "training from update 0 to 3" in (folder / "run" / "hydra_train.log").read_text()
    assert run("tools/train.py", "hubert_tiny", folder / "run", *options) == 0
    assert "trained already" in capfd.readouterr().err
    assert run("tools/train.py", "hubert_tiny", folder / "bad", *options, "task.label_dir=/nowhere") == 2
    assert "/nowhere/dict.km.txt: no such file" in capfd.readouterr().err


REGISTERED = """
import json, sys
sys.path.insert(0, {user_dir!r})
{imports}
from fairseq import criterions, models, optim, tasks
print("sklearn" in sys.modules, file=sys.stderr)
names = [criterions.CRITERION_REGISTRY, tasks.TASK_REGISTRY, models.MODEL_REGISTRY, models.ARCH_MODEL_REGISTRY, optim.OPTIMIZER_REGISTRY]
print(json.dumps([sorted(found) for found in names]))
import fairseq.criterions.sentence_prediction as whole
print(whole.SentencePredictionCriterion.__name__)
"""


@pytest.mark.slow
def test_fairseqs_registry_stays_the_same_but_for_three_modules():
    found = []
    for imports in ("import fairseq.models, fairseq.tasks", "from emohubert.core import quiet_fairseq"):
        program = REGISTERED.format(user_dir=str(ROOT / "user_dir"), imports=imports)
        finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        names, later = finished.stdout.splitlines()[-2:]
        assert later == "SentencePredictionCriterion", "whoever wants it gets it"
        found.append((finished.stderr.splitlines()[-1], json.loads(names)))
    (theirs_loaded, theirs), (ours_loaded, ours) = found
    assert (theirs_loaded, ours_loaded) == ("True", "False")
    assert set(theirs[0]) - set(ours[0]) == {"sentence_prediction", "sentence_prediction_adapters"}
    assert set(theirs[1]) - set(ours[1]) == {"audio_classification"}
    assert ours[2:] == theirs[2:] and set(ours[0]) < set(theirs[0]) and set(ours[1]) < set(theirs[1])
