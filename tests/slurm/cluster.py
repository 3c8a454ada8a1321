"""A real Slurm of two virtual nodes on this machine, with everything it needs in one folder; every daemon is started and stopped by pid."""

import getpass
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel", "sinfo")
_PATHS = "/usr/sbin:/usr/local/sbin"
_CONF = """
ClusterName=emohubert
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SlurmdParameters=config_overrides
SchedulerParameters=bf_interval=2,sched_interval=2,batch_sched_delay=0
ReturnToService=2
MpiDefault=none
KillWait=5
JobRequeue=1
NodeName=127.0.0.[1-2] NodeHostName={host} Port=[{ports[1]}-{ports[2]}] CPUs=2 RealMemory=4000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing():
    """Names of the programs that are not installed."""
    return [name for name in PROGRAMS if not shutil.which(name, path=f"{os.environ['PATH']}:{_PATHS}")]


def logs(folder):
    """The ends of all logs in a folder."""
    return "\n".join(f"== {p.name}\n{p.read_text(errors='replace')[-3000:]}" for p in sorted(folder.glob("*.log")))


class Cluster:
    """Use it as a context manager.

    Attributes:
        folder: configuration, state and logs.
        environment: for programs that talk to this Slurm.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        self.environment = {**os.environ, "SLURM_CONF": f"{folder}/slurm.conf", "PATH": f"{os.environ['PATH']}:{_PATHS}"}
        self._daemons = []

    def __enter__(self):
        (self.folder / "state").mkdir(parents=True)
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        self.folder.chmod(0o755)
        host = socket.gethostname().partition(".")[0]
        conf = _CONF.format(host=host, user=getpass.getuser(), folder=self.folder, ports=_free_ports())
        (self.folder / "slurm.conf").write_text(conf)
        munge = [f"--{name}-file={self.folder}/munged.{name}" for name in ("log", "pid", "seed")]
        try:
            self._start("munged", "--foreground", "--force", f"--key-file={key}", f"--socket={self.folder}/munge.socket", *munge)
            self._wait("munge", lambda: (self.folder / "munge.socket").exists())
            self._start("slurmctld", "-D", "-f", self.folder / "slurm.conf")
            for node in ("127.0.0.1", "127.0.0.2"):
                self._start("slurmd", "-D", "-N", node, "-f", self.folder / "slurm.conf")
            self.wait_idle()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in reversed(self._daemons):
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def _start(self, name, *arguments):
        with open(self.folder / "daemons.log", "ab") as f:
            command = [shutil.which(name, path=self.environment["PATH"]), *map(str, arguments)]
            self._daemons.append(
                subprocess.Popen(command, env=self.environment, stdout=f, stderr=f, stdin=subprocess.DEVNULL, cwd=self.folder)
            )

    def _wait(self, what, condition, seconds=60):
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline or any(d.poll() is not None for d in self._daemons):
                raise RuntimeError(f"no {what} after {seconds} s; the logs:\n{logs(self.folder)}")
            time.sleep(0.2)

    def run(self, *command, check=True, **options):
        """Run a program that talks to this Slurm; returns subprocess's result, output as text."""
        options.setdefault("env", self.environment)
        return subprocess.run([str(c) for c in command], capture_output=True, text=True, check=check, **options)

    def states(self, jobs):
        """job (array tasks by themselves: 5_0) → state, for jobs given by number."""
        found = {}
        for job in jobs:
            for line in self.run("scontrol", "--oneliner", "show", "job", job).stdout.splitlines():
                values = dict(word.split("=", 1) for word in line.split() if "=" in word)
                task = values.get("ArrayTaskId")
                found[f"{job}_{task}" if task else job] = values["JobState"]
        return found

    def wait_idle(self):
        """Wait until both nodes are there and nothing runs or is being cleaned up on them."""
        self._wait("two idle nodes", lambda: self.run("sinfo", "--noheader", "--format=%D %t", check=False).stdout.split() == ["2", "idle"])

    def wait(self, jobs, seconds=300, wanted=("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")):
        """Wait until all tasks of some jobs have ended; returns their states."""
        deadline = time.monotonic() + seconds
        while True:
            states = self.states(jobs)
            if all(state in wanted for state in states.values()):
                return states
            if time.monotonic() > deadline:
                raise RuntimeError(f"after {seconds} s: {states}\n" + self.run("squeue", "--all").stdout)
            time.sleep(0.5)


def _free_ports(count=3):
    """Consecutive ports that nothing listens on."""
    for first in range(17_000, 19_000, count):
        sockets = []
        try:
            for port in range(first, first + count):
                sockets.append(socket.socket())
                sockets[-1].bind(("", port))
            return list(range(first, first + count))
        except OSError:
            continue
        finally:
            for s in sockets:
                s.close()
    raise RuntimeError("no free ports from 17000 to 19000")
