# SPDX-License-Identifier: MIT
"""safetensors as this package reads and writes them."""
import errno
import json
import os

import numpy as np
from cq import tensors
from small import DIR, path
from tap import refuses


def raw(name, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    with open(path(name), "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text + data)
    return path(name)


def test_what_is_written_is_read():
    want = {"a": np.arange(6, dtype=np.float16).reshape(2, 3), "b": np.array([7], np.int64)}
    tensors.write(path("t.st"), want, {"k": "v"})
    got, meta = tensors.read(path("t.st"))
    assert meta == {"k": "v"} and set(got) == {"a", "b"}
    assert all((got[k] == want[k]).all() and got[k].dtype == want[k].dtype for k in want)


def test_a_file_has_its_name_when_it_is_whole():
    w = tensors.Writer(path("part.st"), {"a": (np.float32, (4,))}, {})
    refuses("part.st", tensors.read, path("part.st"))
    w.tensors["a"][:] = 3
    w.close()
    assert (tensors.read(path("part.st"))[0]["a"] == 3).all()


def beside(name):
    """What lies beside a file of this run under a name that begins with its own."""
    return [f for f in os.listdir(DIR) if f.startswith(name + ".")]


def test_a_file_that_failed_leaves_nothing():
    shapes = {"a": (np.float32, (4,))}
    try:
        with tensors.Writer(path("gone.st"), shapes, {}):
            assert len(beside("gone.st")) == 1
            raise KeyError
    except KeyError:
        pass
    assert not beside("gone.st") and not os.path.exists(path("gone.st"))

    def full(fd, at, size):
        assert size > os.fstat(fd).st_size
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    kept, os.posix_fallocate = os.posix_fallocate, full
    try:
        refuses("No space left on device: '" + path("gone.st"), tensors.Writer, path("gone.st"),
                shapes, {})
    finally:
        os.posix_fallocate = kept
    assert not beside("gone.st")


def test_a_file_has_its_room_before_it_is_filled():
    shapes = {"a": (np.float32, (1 << 18,))}
    with tensors.Writer(path("room.st"), shapes, {}) as w:
        assert os.stat(w.part).st_blocks * 512 >= 1 << 20
    mask = os.umask(0)
    os.umask(mask)
    assert os.stat(path("room.st")).st_mode & 0o777 == 0o666 & ~mask and not beside("room.st")


def test_outputs_that_are_no_files_are_refused():
    os.mkfifo(path("fifo.st"))
    os.symlink(path("t.st"), path("link.st"))
    for name in (path("fifo.st"), path("link.st"), DIR, "/dev/null"):
        refuses("is not a regular file", tensors.Writer, name, {"a": (np.float32, (4,))}, {})
    refuses("none/x.st", lambda: tensors.check_output(path("none/x.st")))


def test_bfloat16_becomes_f32():
    x = np.array([1.5, -2.0], np.float32)
    data = (x.view(np.uint32) >> 16).astype("<u2").tobytes()
    name = raw("bf.st", {"x": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}, data)
    assert (tensors.read(name)[0]["x"] == x).all()


def test_malformed_files_are_refused():
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    for i, (header, data, want) in enumerate((
            (b"{", b"", "header of safetensors"), (b"[]", b"", "not an object"),
            (b"[" * 99999, b"", "header of safetensors"),
            ({"__metadata__": 5}, b"", "metadata are not"),
            ({"__metadata__": {"k": 1}}, b"", "metadata are not"),
            ({"x": dict(entry, shape=[-1])}, b"12345678", "tensor x"),
            ({"x": entry}, b"1234", "beyond the file"),
            ({"x": dict(entry, shape=[3])}, b"12345678", "tensor x"),
            ({"x": dict(entry, dtype="Q7")}, b"12345678", "tensor x"),
            ({"x": dict(entry, data_offsets=[8, 0])}, b"12345678", "beyond the file"),
            ({"x": 5}, b"", "tensor x"))):
        refuses(want, tensors.read, raw(f"bad{i}.st", header, data))
    with open(path("short.st"), "wb") as f:
        f.write((1 << 40).to_bytes(8, "little"))
    refuses("is not safetensors", tensors.read, path("short.st"))
