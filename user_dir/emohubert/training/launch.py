"""Starting a training in a folder of its own: the one way that recipes, cross-validation and Slurm jobs do it.

settings.txt   the configuration and its key=value, a line each; a training with other settings is refused
output.log     everything that its processes printed
finished       it is complete and not started again; without it, the same command resumes from the last checkpoint
stopped        it was preempted, after so many updates (see `processes`)
"""

import contextlib
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import InputError
from ..core.files import make_folder, write_lines
from ..core.programs import folder_of
from ..corpus.audio import SAMPLE_RATE

logger = logging.getLogger("emohubert")

PREEMPTED = 75
"""Exit status (EX_TEMPFAIL) of a preempted training: it has saved a checkpoint, and the same command resumes from it."""
OVERRIDE = re.compile(r"(\+{1,2}|~)?[A-Za-z_][\w.@/]*=.*|~[A-Za-z_][\w.@/]*", re.DOTALL)
"""What is a `key=value` of Hydra on a command line, and no path or option."""
_PLAIN = re.compile(r"[\w.+:%@?*$\\ |-]*", re.ASCII)
_PROGRAM = Path(__file__).with_name("hydra_train.py")
_SECONDS = 60  # between two lines of progress in a log
_SHOWN = 30  # lines of a failed training's log that are shown


def quoted(override):
    """`key=value` as Hydra's grammar wants it: a value that holds a `/`, or what only file names hold, is quoted, unless it is quoted or a
    list already."""
    key, equals, value = override.partition("=")
    closed = {"'": "'", '"': '"', "[": "]", "{": "}"}.get(value[:1])
    if _PLAIN.fullmatch(value) or value.startswith("${") or closed and len(value) > 1 and value.endswith(closed):
        return override
    value = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + "\\'" * (found[2] == "'"), value)
    return f"{key}{equals}'{value}'"


@dataclass(frozen=True)
class Training:
    """A configuration, its `key=value`, and the folder of its checkpoints."""

    config: str
    folder: Path
    overrides: tuple = ()
    config_dir: Path = folder_of("config")

    @property
    def is_finished(self):
        """Whether it has reached its end."""
        return (self.folder / "finished").is_file()

    def check_settings(self):
        """Raise InputError if the folder holds a training with other settings."""
        path = self.folder / "settings.txt"
        if path.is_file() and path.read_text(encoding="utf-8").splitlines() != [self.config, *self.overrides]:
            raise InputError(f"{self.folder}: holds a training with other settings (see settings.txt); remove it, or choose another folder")

    def run(self, nproc=None, environment=None, bar=True):
        """Train to the end, unless that is done. SystemExit with PREEMPTED where it was preempted; InputError if the folder holds a training
        with other settings, or the training failed, with the end of its log printed.

        `nproc`: processes, started by torchrun; None: fairseq takes all GPUs. In jobs of recipes/slurm all tasks train. `environment`: by
        default this process's. `bar`: progress as a bar where standard error is a terminal, otherwise as a log line a minute.
        """
        if not (self.config_dir / f"{self.config}.yaml").is_file():
            raise InputError(f"{self.config_dir / self.config}.yaml: no such configuration; correct CONFIG or --config-dir")
        self.check_settings()
        if self.is_finished:
            logger.info("%s: trained already", self.folder)
            return
        make_folder(self.folder)
        write_lines(self.folder / "settings.txt", [self.config, *self.overrides])
        logger.info("%s: training %s (log: hydra_train.log in it)", self.folder, self.config)
        variables = {"OMP_WAIT_POLICY": "PASSIVE", "PYTHONWARNINGS": "ignore", "MPLBACKEND": "Agg"}
        variables |= {**(environment or os.environ), "EMOHUBERT_USER_DIR": str(user_dir())}
        program = [str(_PROGRAM), "--config-dir", str(self.config_dir), "--config-name", self.config]
        program += map(quoted, [f"checkpoint.save_dir={self.folder}", *self.overrides])
        log, stopped = self.folder / "output.log", self.folder / "stopped"
        stopped.unlink(missing_ok=True)
        begin = log.stat().st_size if log.exists() else 0
        progress = _Progress(self.folder, bar and sys.stderr.isatty() and os.environ.get("TERM") != "dumb")
        status = execute([*launcher(nproc, variables), *program], log, variables, progress)
        if status and stopped.is_file():
            logger.warning("%s: preempted after %s; the same command resumes from there", self.folder, stopped.read_text().strip())
            raise SystemExit(PREEMPTED)
        if status:
            print(failure(log, begin), file=sys.stderr, flush=True)
            remedy = f"the end of {log} is above, the same command resumes from the last checkpoint"
            if status in (-signal.SIGKILL, 128 + signal.SIGKILL):
                remedy = f"killed, perhaps for lack of memory: see task.max_sample_size, dataset.max_tokens, dataset.batch_size; {remedy}"
            raise InputError(f"{self.folder}: training failed (status {status}); {remedy}")
        progress.end()
        (self.folder / "finished").touch()


def user_dir():
    """The fairseq user-dir: that of the source tree, or the installed package."""
    package = Path(__file__).resolve().parents[1]
    return package.parent if (package.parent / "__init__.py").is_file() else package


def launcher(nproc, environment):
    """The command before the program: srun in a job of recipes/slurm that has several tasks; else torchrun, or Python."""
    if "EMOHUBERT_SRUN" in environment and int(environment.get("SLURM_NTASKS", 1)) > 1:
        return ["srun", "--kill-on-bad-exit=1", "--unbuffered", sys.executable]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1", f"--nproc-per-node={nproc}"]
    return [sys.executable, *(torchrun if nproc not in (None, 1) else [])]


def execute(command, log, environment, progress):
    """Run a command, its output appended to a file and told to `progress` line by line; returns its exit status."""
    with open(log, "ab") as f, open(log, encoding="utf-8", errors="replace") as printed:
        printed.seek(0, os.SEEK_END)
        process, begun = subprocess.Popen(command, stdout=f, stderr=f, stdin=subprocess.DEVNULL, env=environment), ""
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.5)
            *lines, begun = (begun + printed.read()).split("\n")
            progress.update(lines)
            if process.returncode is not None:
                return process.returncode


def failure(log, begin=0):
    """Why a training failed: the last `error: …` of its log from byte `begin` on, where its last start begins, or else the end of it."""
    with open(log, "rb") as f:
        f.seek(begin)
        lines = [line[:400] for line in f.read().decode("utf-8", "replace").splitlines()]
    errors = [line for line in lines if line.startswith("error: ")]
    return "\n".join(errors[-1:] or lines[-_SHOWN:])


class _Progress:
    """Update of how many, scores, speed and time left: a bar on a terminal, else a line a minute."""

    def __init__(self, folder, bar):
        self.folder, self.with_bar, self.bar = folder, bar, None
        self.first = self.done = self.total = 0
        self.values = {}  # those logged last
        self.began = self.told = time.monotonic()

    def update(self, lines):
        """Read new lines of the log, and show what changed."""
        before = self.done
        for line in lines:
            if found := re.search(r"training from update (\d+) to (\d+|the end)$", line):
                self.first = self.done = before = int(found[1])
                self.total = int(found[2]) if found[2].isdecimal() else 0
                self.began = time.monotonic()
            elif "[train_inner]" in line or "[valid]" in line:
                with contextlib.suppress(ValueError):  # where another process has printed into it
                    self.values |= json.loads(line[line.index("{") :])
                self.done = max(self.done, *(int(self.values.get(name, 0)) for name in ("num_updates", "valid_num_updates")))
        if self.done > before and self.with_bar:
            self._draw()
        elif self.done > before and time.monotonic() - self.told > _SECONDS:
            self.told = time.monotonic()
            seconds = (time.monotonic() - self.began) / (self.done - self.first) * (self.total - self.done)
            of_all = f" of {self.total} ({seconds / 60:.0f} min left)" if self.total else ""
            logger.info("%s: update %d%s, %s", self.folder, self.done, of_all, self.scores())

    def scores(self):
        """What was logged last, of training and validation: loss, masked accuracy, UA or CCC; and the speed."""
        names = {"loss": "loss", "accuracy_masked_0": "masked accuracy", "ua": "UA", "ccc": "CCC"}
        found = [f"{text} {self.values[name]}" for name, text in names.items() if name in self.values]
        valid = [f"{text} {self.values[f'valid_{name}']}" for name, text in names.items() if f"valid_{name}" in self.values]
        with contextlib.suppress(KeyError, ValueError):
            if "accuracy_masked_0" in self.values:  # a word is a sample
                found.append(f"{float(self.values['wps']) / SAMPLE_RATE:.0f} s of audio/s")
            else:
                found.append(f"{float(self.values['ups']) * float(self.values['bsz']):.0f} utterances/s")
        return "; ".join([", ".join(found)] * bool(found) + [f"validation: {', '.join(valid)}"] * bool(valid))

    def _draw(self):
        if self.bar is None:
            from tqdm import tqdm

            self.bar = tqdm(total=self.total or None, initial=self.first, desc=self.folder.name, unit=" updates", dynamic_ncols=True)
        self.bar.set_postfix_str(self.scores(), refresh=False)
        self.bar.update(self.done - self.bar.n)

    def end(self):
        """Close the bar and say what came of it."""
        if self.bar is not None:
            self.bar.close()
        logger.info("%s: %d updates in %.0f s; %s", self.folder, self.done, time.monotonic() - self.began, self.scores())


class TerminalBar(logging.Handler):
    """The same bar under `fairseq-hydra-train` itself, from the log's records. Of these the terminal still shows ours, and warnings."""

    def __init__(self, folder):
        super().__init__()
        self._progress = _Progress(folder, bar=True)
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
                handler.addFilter(lambda record: record.levelno > logging.INFO or record.name.startswith("emohubert"))

    def emit(self, record):
        """A line of the log."""
        self._progress.update([f"[{record.name}] {record.getMessage()}"])

    def close(self):
        """At the end of the program."""
        if self._progress.bar is not None:
            self._progress.bar.close()
        super().close()
