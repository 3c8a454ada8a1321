"""Files are whole under their final name: errors, full disks, several writers, kills; stamps; fairseq's checkpoint copies."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from fairseq.file_io import PathManager

import emohubert.tasks  # noqa: F401 (applies the patches)
from emohubert.core import files
from emohubert.core.errors import InputError
from emohubert.training import fairseq_patches

USER_DIR = Path(__file__).resolve().parents[1] / "user_dir"


def listing(folder):
    return sorted(p.name for p in folder.iterdir())


def run_python(code, *arguments, **options):
    """Run code that uses `files` without the rest of the package (fast to start)."""
    start = f"import sys; sys.path.insert(0, {str(USER_DIR)!r})\n"
    command = [sys.executable, "-c", start + code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


# ---------------------------------------------------------------------------------------------------------- atomic


def test_text_is_utf8_with_unix_line_ends(tmp_path):
    with files.atomic(tmp_path / "a.txt") as f:
        f.write("Zürich\n東京\n")
    assert (tmp_path / "a.txt").read_bytes() == "Zürich\n東京\n".encode()
    assert listing(tmp_path) == ["a.txt"]


def test_nothing_is_there_before_the_end(tmp_path):
    (tmp_path / "a").write_bytes(b"old")
    with files.atomic(tmp_path / "a", "wb") as f:
        f.write(b"new" * 100_000)
        f.flush()
        assert (tmp_path / "a").read_bytes() == b"old"
    assert (tmp_path / "a").read_bytes() == b"new" * 100_000


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, InputError, MemoryError])
@pytest.mark.parametrize("old", [None, "old"])
def test_an_error_inside_leaves_what_was_there(tmp_path, error, old):
    if old:
        (tmp_path / "a").write_text(old)
    with pytest.raises(error), files.atomic(tmp_path / "a") as f:
        f.write("half")
        f.flush()
        raise error
    assert listing(tmp_path) == (["a"] if old else [])
    assert not old or (tmp_path / "a").read_text() == old


def test_an_error_of_another_file_is_not_ours(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"other\.npy"), files.atomic(tmp_path / "a", "wb"):
        np.load(tmp_path / "other.npy")
    assert listing(tmp_path) == []


def test_what_killed_programs_left_is_removed(tmp_path):
    """Not what another one is writing, nor files of other programs."""
    for name in (".a.0123abcd.tmp", ".a.tmp", "a.0123abcd.tmp"):
        (tmp_path / name).write_text("half")
        os.utime(tmp_path / name, (0, 0))
    with files.atomic(tmp_path / "b") as f:
        os.utime(f.name, (0, 0))
        assert files.make_folder(tmp_path) == tmp_path
        assert listing(tmp_path) == sorted([os.path.basename(f.name), ".a.tmp", "a.0123abcd.tmp"])
    assert (tmp_path / "b").is_file()


@pytest.mark.parametrize("place", ["missing/a", "file/a", "folder"])
def test_places_that_cannot_be_written(tmp_path, place):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="cannot be written") as caught, files.atomic(tmp_path / place) as f:
        f.write("x")
    assert str(tmp_path / place) in str(caught.value)
    assert listing(tmp_path) == ["file", "folder"]


@pytest.mark.skipif(sys.platform != "linux", reason="uses RLIMIT_FSIZE")
def test_a_full_disk(tmp_path):
    """A limit on the size of files stands in for it: the write fails in the middle, with the operating system's message."""
    code = """
import resource, signal, sys
from pathlib import Path
from emohubert.core.errors import InputError
from emohubert.core.files import atomic, write_lines
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
for attempt in (lambda p: write_lines(p, ["x" * 99] * 2000), lambda p: save(p)):
    def save(p):
        import numpy as np
        with atomic(p, "wb") as f:
            np.savez(f, a=np.zeros(100_000))
    try:
        attempt(Path(sys.argv[1]))
    except InputError as error:
        print(error)
"""
    (tmp_path / "a").write_text("old")
    process = run_python(code, tmp_path / "a")
    out, err = process.communicate(timeout=60)
    assert err == ""
    assert out.count("cannot be written (") == 2
    assert "None" not in out
    assert listing(tmp_path) == ["a"]
    assert (tmp_path / "a").read_text() == "old"


def test_concurrent_writers_and_readers(tmp_path):
    """Threads and processes write one path over and over: every read is one writer's whole file, nothing is left over."""
    path = tmp_path / "a.txt"
    files.write_lines(path, ["first"])
    code = """
import sys
from emohubert.core.files import write_lines
for i in range(60):
    write_lines(sys.argv[1], [f"{sys.argv[2]}-{i}"] * 3000)
"""
    processes = [run_python(code, path, name) for name in ("p", "q")]
    failed = []

    def write(name):
        try:
            for i in range(60):
                files.write_lines(path, [f"{name}-{i}"] * 3000)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    seen = set()
    while any(t.is_alive() for t in threads) or any(p.poll() is None for p in processes):
        lines = path.read_text().splitlines()
        assert lines == [lines[0]] * (1 if lines[0] == "first" else 3000)
        seen.add(lines[0].split("-")[0])
    for process in processes:
        out, err = process.communicate()
        assert (process.returncode, out, err) == (0, "", "")
    assert not failed
    assert len(seen) > 1
    assert listing(tmp_path) == ["a.txt"]


def test_a_killed_writer_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    files.write_lines(path, ["old"] * 1000)
    code = """
import sys, time
from emohubert.core.files import atomic
with atomic(sys.argv[1]) as f:
    f.write("half a line"); f.flush(); print("ready", flush=True); time.sleep(60)
"""
    process = run_python(code, path)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert path.read_text() == "old\n" * 1000
    files.write_lines(path, ["new"])
    assert path.read_text() == "new\n"


def test_permissions_follow_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        files.write_lines(tmp_path / "a", ["x"])
    finally:
        os.umask(old)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


# ------------------------------------------------------------------------------------------------------- folders, JSON


def test_make_folder(tmp_path):
    assert files.make_folder(str(tmp_path / "a" / "b")) == tmp_path / "a" / "b"
    assert listing(files.make_folder(tmp_path / "a" / "b")) == []
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "c"):
        with pytest.raises(InputError, match=f"{path}: cannot create"):
            files.make_folder(path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_make_folder_in_a_folder_that_cannot_be_written(tmp_path):
    tmp_path.chmod(0o500)
    try:
        for path in (tmp_path, tmp_path / "a"):
            with pytest.raises(InputError, match="Permission denied"):
                files.make_folder(path)
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs /proc, where not even root can make a file")
def test_make_folder_where_nobody_can_write():
    for path in ("/proc/self", "/proc/self/a"):
        with pytest.raises(InputError, match=f"{path}: "):
            files.make_folder(path)


def test_json(tmp_path):
    value = {
        "a": [1, 2.5, None, True, "é"],
        3: {"nan": float("nan"), "inf": [float("inf")]},
        "numpy": np.float64("nan"),
        "M\udcfcller": "\udcfc",
    }
    files.write_json(tmp_path / "a.json", value)
    expected = {"a": [1, 2.5, None, True, "é"], "3": {"nan": None, "inf": [None]}, "numpy": None, "M\\udcfcller": "\\udcfc"}
    assert files.read_json(tmp_path / "a.json") == expected
    with pytest.raises(TypeError):
        files.write_json(tmp_path / "a.json", {"a": object()})
    assert files.read_json(tmp_path / "a.json") == expected
    assert listing(tmp_path) == ["a.json"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [(None, "no such file"), (b"{", "not a JSON file"), (b"", "not a JSON file"), (b"\xff\xfe", "not a UTF-8 text file")],
)
def test_json_that_cannot_be_read(tmp_path, content, expected):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=expected):
        files.read_json(path)
    with pytest.raises(InputError, match="cannot be read"):
        files.read_json(tmp_path)


def test_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")  # FIPS 180-2, appendix B.1
    assert files.sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    (tmp_path / "a").write_bytes(b"a" * 1_000_000)  # B.3
    assert files.sha256(tmp_path / "a") == "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"


# ---------------------------------------------------------------------------------------------------------- stamps


def test_fingerprints():
    assert files.fingerprint({"a": 1, "b": [2, "x"]}) == files.fingerprint({"b": [2, "x"], "a": 1})
    settings = [{}, {"a": 1}, {"a": 2}, {"a": "1"}, {"a": 1.0}, {"a": [1]}, {"a": None}, {"b": 1}, {"a": {"b": 1}}]
    assert len({files.fingerprint(s) for s in settings}) == len(settings)
    assert files.fingerprint({"path": Path("x")}) == files.fingerprint({"path": "x"})


def test_a_stamp_is_current_for_its_settings_and_files_only(tmp_path):
    made = [tmp_path / "a.km", tmp_path / "b.km"]

    def stamp(value=1, extra=()):
        return files.Stamp(tmp_path / "done.json", {"seed": value, "path": tmp_path}, [*made, *extra])

    assert not stamp().is_current()
    for path in made:
        path.write_text("x")
    assert not stamp().is_current()
    stamp().write()
    assert stamp().is_current()
    assert json.loads((tmp_path / "done.json").read_text())["settings"]["seed"] == 1
    assert not stamp(2).is_current()
    assert not stamp(extra=[tmp_path / "c.km"]).is_current()
    made[1].unlink()
    assert not stamp().is_current()
    made[1].mkdir()
    assert not stamp().is_current()
    made[1].rmdir()
    made[1].write_text("x")
    assert stamp().is_current()
    stamp().clear()
    assert not stamp().is_current()
    stamp().clear()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"3", b"\xff\xfe", b'{"fingerprint": null}', b'{"other": 1}'])
def test_a_damaged_stamp_is_not_current(tmp_path, content):
    (tmp_path / "done.json").write_bytes(content)
    assert not files.Stamp(tmp_path / "done.json", {}, []).is_current()


# ------------------------------------------------------------------------------------------- fairseq's checkpoint copies


def test_copies_are_renamed_into_place(tmp_path, monkeypatch):
    source, target = tmp_path / "checkpoint_1_10.pt", tmp_path / "checkpoint_last.pt"
    source.write_bytes(b"new" * 1000)
    target.write_bytes(b"old")

    def killed(old, new, _):
        new.write(old.read(100))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("shutil.copyfileobj", killed)
        with pytest.raises(KeyboardInterrupt):
            PathManager.copy(str(source), str(target), overwrite=True)
    assert target.read_bytes() == b"old" and listing(tmp_path) == [source.name, target.name]
    assert PathManager.copy(str(source), str(target), overwrite=True)
    assert target.read_bytes() == source.read_bytes()
    assert listing(tmp_path) == [source.name, target.name]


def test_a_reader_never_sees_half_a_copy(tmp_path):
    sources = [tmp_path / "a.pt", tmp_path / "b.pt"]
    for number, source in enumerate(sources):
        source.write_bytes(bytes([number]) * 3_000_000)
    target = str(tmp_path / "checkpoint_last.pt")
    PathManager.copy(str(sources[0]), target)
    stop = time.monotonic() + 1.5

    def copy():
        for i in range(10**6):
            if time.monotonic() > stop:
                return
            PathManager.copy(str(sources[i % 2]), target, overwrite=True)

    thread = threading.Thread(target=copy)
    thread.start()
    seen = set()
    while thread.is_alive():
        content = Path(target).read_bytes()
        assert content == content[:1] * 3_000_000
        seen.add(content[0])
    thread.join()
    assert seen == {0, 1}


def test_fixes_are_applied_once():
    fairseq_patches.apply()
    copy = PathManager.copy
    fairseq_patches.apply()
    assert PathManager.copy is copy
    assert not hasattr(copy.__wrapped__, "__wrapped__")
