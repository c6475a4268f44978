"""Whatever happens while a file is written, the old file or the whole new one is there."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys

import pytest

from tersor.bitstream.atomic import atomic_write
from tersor.bitstream.container import TensorRecord, write
from tersor.decoder import load
from tersor.errors import FormatError

OLD = b"the old file"


def run(code: str, path: os.PathLike[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, os.fspath(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_write_is_readable_and_counts_its_bytes(tmp_path):
    path = tmp_path / "x.tersor"
    size = write(path, [TensorRecord("w", "U8", (3,), 0)], [(0, b"\0abc")], parameters=3)
    assert path.stat().st_size == size
    assert load(path)["w"].tolist() == [97, 98, 99]
    assert os.listdir(tmp_path) == ["x.tersor"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX signals")
@pytest.mark.parametrize("moment", ["os.fsync", "os.replace"])
@pytest.mark.parametrize("existing", [True, False])
def test_killed_process_leaves_the_old_file_or_none(tmp_path, moment, existing):
    path = tmp_path / "x.tersor"
    if existing:
        path.write_bytes(OLD)
    done = run(f"import os, signal, sys\n"
               f"{moment} = lambda *a: os.kill(os.getpid(), signal.SIGKILL)\n"
               f"from tersor.bitstream.atomic import atomic_write\n"
               f"with atomic_write(sys.argv[1]) as file: file.write(bytes(100_000))\n", path)
    assert done.returncode == -9
    assert (path.read_bytes() if path.exists() else None) == (OLD if existing else None)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX resource limits")
def test_full_disk(tmp_path):
    """A file-size limit fails in `write` as a full disk does."""
    path = tmp_path / "x.tersor"
    path.write_bytes(OLD)
    done = run("import resource, sys\n"
               "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
               "from tersor.bitstream.container import TensorRecord, write\n"
               "record = TensorRecord('w', 'U8', (99_999,), 0)\n"
               "write(sys.argv[1], [record], [(0, bytes(100_000))], parameters=1)\n", path)
    assert done.returncode == 1
    assert "OSError" in done.stderr
    assert path.read_bytes() == OLD
    assert os.listdir(tmp_path) == ["x.tersor"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt(), ValueError()])
def test_exceptions_remove_the_temporary_file(tmp_path, error):
    path = tmp_path / "x"
    path.write_bytes(OLD)
    with pytest.raises(type(error)), atomic_write(path) as file:
        file.write(b"new")
        raise error
    assert path.read_bytes() == OLD
    assert os.listdir(tmp_path) == ["x"]


def test_failing_replace_removes_the_temporary_file(tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise PermissionError("no")
    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(PermissionError), atomic_write(tmp_path / "x") as file:
        file.write(b"new")
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX signals")
@pytest.mark.parametrize("existing", [True, False])
def test_killed_in_the_middle_of_a_file(tmp_path, existing):
    """Of a model that is being saved: what was there is there still, and a leftover is not taken for a model."""
    path = tmp_path / "x.tersor"
    if existing:
        path.write_bytes(OLD)
    child = subprocess.Popen([sys.executable, "-c", "import sys, time\n"
                              "from tersor.bitstream.container import TensorRecord, to_bytes\n"
                              "from tersor.bitstream.atomic import atomic_write\n"
                              "data = to_bytes([TensorRecord('w', 'U8', (99_999,), 0)], [(0, bytes(100_000))],"
                              " parameters=1)\n"
                              "with atomic_write(sys.argv[1]) as file:\n"
                              "    file.write(data[:70_000])\n    file.flush()\n"
                              "    print('half', flush=True)\n    time.sleep(60)\n", path], stdout=subprocess.PIPE)
    assert child.stdout is not None and child.stdout.readline() == b"half\n"
    child.kill()
    child.wait(timeout=60)
    child.stdout.close()
    assert (path.read_bytes() if path.exists() else None) == (OLD if existing else None)
    (leftover,) = set(os.listdir(tmp_path)) - {"x.tersor"}
    assert leftover.startswith(".x.tersor.") and leftover.endswith(".tmp")
    with pytest.raises(FormatError, match="truncated"):
        load(tmp_path / leftover)
    write(path, [TensorRecord("w", "U8", (3,), 0)], [(0, b"\0abc")], parameters=3)  # the next one is not in its way
    assert load(path)["w"].tolist() == [97, 98, 99]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX resource limits")
def test_full_disk_while_a_model_is_saved(tmp_path):
    """`Packed.save` and the command line leave the old file, and nothing else."""
    path = tmp_path / "x.tersor"
    path.write_bytes(OLD)
    done = run("import os, resource, sys\n"
               "import numpy\n"
               "from tersor.bitstream.container import TensorRecord, to_bytes\n"
               "from tersor.packed import Packed\n"
               "data = to_bytes([TensorRecord('w', 'U8', (99_999,), 0)], [(0, bytes(100_000))], parameters=1)\n"
               "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
               "try:\n    Packed(data, 1, 1.0).save(sys.argv[1])\n"
               "except OSError as error:\n    print(error.errno)\n"
               "open(sys.argv[1] + '.in', 'wb').write(data[:40_000])\n", path)
    assert done.stdout.strip() == str(errno.EFBIG), done.stderr
    assert path.read_bytes() == OLD
    assert sorted(os.listdir(tmp_path)) == ["x.tersor", "x.tersor.in"]


@pytest.mark.skipif(not hasattr(os, "setuid") or os.geteuid() != 0, reason="needs root, who can become somebody else")
def test_read_only_folder_of_another_user(tmp_path):
    """As root, to whom permissions mean nothing, the attempt is made by a user to whom they do."""
    folder = tmp_path / "readonly"
    folder.mkdir()
    path = folder / "x.tersor"
    path.write_bytes(OLD)
    code = ("import os, sys\n"
            "from tersor.bitstream.atomic import atomic_write\n"
            "os.chdir(os.path.dirname(sys.argv[1]))\nos.setgid(65534)\nos.setuid(65534)\n"
            "try:\n    with atomic_write('x.tersor') as file:\n        file.write(b'new')\n"
            "except PermissionError:\n    print('refused')\n")
    for parent in (folder, *folder.parents):
        if parent.stat().st_uid == 0 and not parent.stat().st_mode & 0o001 and parent.is_relative_to(tmp_path.parent):
            parent.chmod(parent.stat().st_mode | 0o011)
    done = run(code, path)
    assert done.stdout.strip() == "refused", done.stderr
    assert path.read_bytes() == OLD
    assert os.listdir(folder) == ["x.tersor"]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="permissions do not bind this user")
def test_read_only_folder(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(PermissionError), atomic_write(tmp_path / "x"):
            pass
    finally:
        tmp_path.chmod(0o700)
    assert os.listdir(tmp_path) == []


def test_absent_folder(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "no" / "x"):
        pass


def test_overwrite_must_be_allowed(tmp_path):
    path = tmp_path / "x"
    with atomic_write(path, overwrite=False) as file:
        file.write(OLD)
    with pytest.raises(FileExistsError, match="overwriting"), atomic_write(path, overwrite=False) as file:
        pytest.fail("the block must not be entered")
    with atomic_write(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("links", [True, False])
def test_somebody_else_was_faster(tmp_path, monkeypatch, links):
    path = tmp_path / "x"
    if not links:
        def refuse(*_: object) -> None:
            raise OSError(errno.EPERM, "no hard links here")
        monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(FileExistsError), atomic_write(path, overwrite=False) as file:
        file.write(b"new")
        path.write_bytes(OLD)
    assert path.read_bytes() == OLD
    assert os.listdir(tmp_path) == ["x"]


def test_folders_and_devices_are_refused(tmp_path):
    with pytest.raises(FileExistsError, match="regular"), atomic_write(tmp_path):
        pass
    if os.path.exists("/dev/null"):
        with pytest.raises(FileExistsError, match="regular"), atomic_write("/dev/null"):
            pass
        assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


@pytest.mark.skipif(os.name != "posix", reason="POSIX modes and links")
def test_permissions_and_links_are_kept(tmp_path):
    path, link = tmp_path / "x", tmp_path / "link"
    path.write_bytes(OLD)
    path.chmod(0o640)
    link.symlink_to(path)
    with atomic_write(link) as file:
        file.write(b"new")
    assert link.is_symlink()
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    umask = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "fresh") as file:
            file.write(b"new")
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "fresh").stat().st_mode) == 0o640
