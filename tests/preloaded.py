"""An environment whose Python starts the project's programs by forking a process that has imported fairseq: recipes start dozens of
them, each of which would take seconds for that. What they do is done in a process of its own, as ever; any other use of this Python
is the real one's.
"""

import array
import atexit
import functools
import gc
import json
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_CLIENT = """#!{python} -IS
# {bin}/python (tools/setup_env.sh looks for it)
import array, json, os, socket, sys

program, arguments = os.path.basename(sys.argv[0]), sys.argv[1:]
if program == "python":
    if not (arguments and arguments[0].endswith(".py") and arguments[0].startswith(("{root}/tools/", "{root}/manifests/"))):
        os.execv("{python}", ["{bin}/python", *arguments])
    program, *arguments = arguments
with socket.socket(socket.AF_UNIX) as s:
    s.connect("{socket}")
    s.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))])
    s.sendall(json.dumps([program, arguments, os.getcwd(), dict(os.environ)]).encode())
    s.shutdown(socket.SHUT_WR)
    status = s.recv(16)
sys.exit(int(status or b"1"))
"""


@functools.cache
def environment():
    """Folder of the environment, to be named by EMOHUBERT_ENV; the real one where it is of a kind that cannot be imitated."""
    real = Path(sys.prefix)
    if not (real / "pyvenv.cfg").is_file() or len(sys.executable) > 100 or " " in sys.executable:  # as a script's first line has it
        return real
    folder = Path(tempfile.mkdtemp(prefix="preloaded"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "bin").mkdir()
    shutil.copy(real / "pyvenv.cfg", folder)
    (folder / "lib").symlink_to(real / "lib")
    for path in (real / "bin").iterdir():
        if not path.name.startswith("python") and path.name != "fairseq-hydra-train":
            (folder / "bin" / path.name).symlink_to(path)
    client = _CLIENT.format(python=sys.executable, root=ROOT, bin=folder / "bin", socket=folder / "socket")
    for name in ("python", "fairseq-hydra-train"):
        (folder / "bin" / name).write_text(client)
        (folder / "bin" / name).chmod(0o755)
    server = subprocess.Popen([sys.executable, __file__, folder], env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True)
    atexit.register(os.killpg, server.pid, signal.SIGTERM)
    while not (folder / "socket").exists():
        assert server.poll() is None, "the process that programs are forked from has ended"
        time.sleep(0.05)
    return folder


def _serve(folder):
    """Fork a process for every program that is asked for; returns in that process only: (program, arguments)."""
    import logging

    root = logging.getLogger()
    before = root.level, root.handlers[:]
    import fairseq.models.hubert
    import fairseq.trainer  # noqa: F401

    root.setLevel(before[0])  # as emohubert does
    root.handlers[:] = before[1]
    gc.freeze()  # no collection in a child touches, and so copies, all that is here
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{folder}/starting")
        listener.listen(64)
        listener.settimeout(5)
        os.rename(f"{folder}/starting", f"{folder}/socket")
        parent = os.getppid()
        while True:
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                if os.getppid() != parent:
                    os._exit(0)  # the tests were killed
                continue
            if os.fork() == 0:
                break
            connection.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _, ancillary, _, _ = connection.recvmsg(1, socket.CMSG_SPACE(12))
    files = array.array("i", ancillary[0][2])
    request = b""
    while data := connection.recv(1 << 16):
        request += data
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        connection.sendall(str(os.waitstatus_to_exitcode(status) & 0xFF).encode())
        os._exit(0)
    connection.close()
    for number, descriptor in enumerate(files):
        os.dup2(descriptor, number)
        os.close(descriptor)
    program, arguments, cwd, variables = json.loads(request)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(variables)
    sys.executable = f"{folder}/bin/python"
    return program, arguments


def _run(program, arguments):
    sys.argv = [program, *arguments]
    if program == "fairseq-hydra-train":
        from fairseq_cli.hydra_train import cli_main

        cli_main()
    else:
        sys.path[0] = os.path.dirname(program)
        runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    wanted, status = _serve(sys.argv[1]), 0
    try:
        _run(*wanted)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        status = 1
    threading._shutdown()  # what the interpreter does at its end, but for taking everything apart, which takes a second
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
