"""Files that are written whole or not at all."""

import contextlib
import errno
import os
import stat

import pytest

from uqbias.errors import UqbiasError
from uqbias.files import atomic_path, check_file, clear_temporaries, write_text


def test_an_error_leaves_the_earlier_content_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "first")

    def fail():
        with atomic_path(path) as temporary:
            assert temporary.suffix == ".txt"
            temporary.write_text("second")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664), (0o027, 0o640)])
def test_permissions_are_those_of_the_umask_or_of_the_file_before(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        write_text(tmp_path / "new.txt", "x")
        (tmp_path / "old.txt").touch()
        (tmp_path / "old.txt").chmod(0o604)
        write_text(tmp_path / "old.txt", "x")
        with atomic_path(tmp_path / "renamed.txt") as temporary:  # as some writers do
            temporary.with_suffix(".x").touch(0o600)
            temporary.with_suffix(".x").replace(temporary)
    finally:
        os.umask(before)
    assert (tmp_path / "new.txt").stat().st_mode & 0o777 == mode
    assert (tmp_path / "renamed.txt").stat().st_mode & 0o777 == mode
    assert (tmp_path / "old.txt").stat().st_mode & 0o777 == 0o604


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EOPNOTSUPP, errno.EIO])
def test_drive_that_syncs_no_directory(tmp_path, monkeypatch, code):
    whole = os.fsync

    def files_only(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))
        whole(descriptor)

    monkeypatch.setattr(os, "fsync", files_only)
    with pytest.raises(OSError, match="Input/output") if code == errno.EIO else contextlib.nullcontext():
        write_text(tmp_path / "a.txt", "x")
    assert (tmp_path / "a.txt").read_text() == "x"


@pytest.mark.parametrize("name", ["model.uqb", "a" * 200 + ".xyz", ".hidden", "no_suffix"])
def test_what_a_killed_write_leaves_is_cleared_and_nothing_else(tmp_path, name):
    with atomic_path(tmp_path / name) as temporary:
        pass
    (tmp_path / name).rename(temporary)  # as if killed
    others = {".label.json", ".model.tmpdir", ".tmp", "a.tmp12345678", ".model.x.uqb"}
    for other in others:
        (tmp_path / other).touch()
    clear_temporaries(tmp_path.iterdir())
    assert {path.name for path in tmp_path.iterdir()} == others


def fifo(path):
    os.mkfifo(path)


def device(path):
    path.symlink_to("/dev/null")


def directory(path):
    path.mkdir()


def circle(path):
    path.symlink_to(path.name)


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        (fifo, "it is not a regular file"),
        (device, "it is not a regular file"),
        (directory, "it is a directory"),
        (circle, ""),
    ],
)
def test_what_is_no_file_is_neither_replaced_nor_written_to(tmp_path, make, fault):
    path = tmp_path / "model.uqb"
    make(path)
    before = path.lstat()
    for write in (check_file, lambda path: write_text(path, "new")):
        with pytest.raises(UqbiasError, match=f"cannot write to {path}: {fault}"):
            write(path)
    assert path.lstat().st_mode == before.st_mode
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_one_and_its_file_is_written(tmp_path, there):
    (tmp_path / "far").mkdir()
    (tmp_path / "link.txt").symlink_to("far/file.txt")
    if there:
        (tmp_path / "far" / "file.txt").write_text("old")
    check_file(tmp_path / "link.txt")
    write_text(tmp_path / "link.txt", "new")
    assert (tmp_path / "link.txt").readlink().as_posix() == "far/file.txt"
    assert (tmp_path / "far" / "file.txt").read_text() == "new"
    assert len(list((tmp_path / "far").iterdir())) == 1


def test_a_link_to_where_nothing_can_be_written_is_told_before_the_work(tmp_path):
    (tmp_path / "link.txt").symlink_to("/proc/1/none/file.txt")
    with pytest.raises(UqbiasError, match=r"cannot write to .*link\.txt"):
        check_file(tmp_path / "link.txt")


@pytest.mark.parametrize("name", ["a" * 255, "a" * 251 + ".txt", "a." + "b" * 253, "ä" * 125 + ".h5"])
def test_every_name_that_the_check_passes_can_be_written(tmp_path, name):
    check_file(tmp_path / name)
    write_text(tmp_path / name, "x")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_name_that_is_too_long(tmp_path):
    with pytest.raises(UqbiasError, match="File name too long"):
        check_file(tmp_path / ("a" * 256))
