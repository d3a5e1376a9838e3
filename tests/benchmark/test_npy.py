"""NumPy's files, exchanged with NumPy itself, and files that are not what they seem."""

import io
import os
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressor import native

DTYPES = ("bool", "u1", "i1", "<u2", "<i2", "<u4", "<i4", "<u8", "<i8", "<f2", "<f4", "<f8")
SHAPES = ((), (1,), (0,), (5,), (2, 3), (2, 0, 3), (2, 1, 3, 2))


def read(path):
    return native.load().read_npy(str(path))


def write(path, array):
    native.load().write_npy(str(path), array)


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def refusal(path):
    """Why the file is refused: one line that names it first."""
    with pytest.raises(native.load().NpyError) as refused:
        read(path)
    message = str(refused.value)
    assert message.startswith(f"{path}: ")
    assert message.isprintable()
    return message.removeprefix(f"{path}: ")


def array_of(dtype, shape):
    """All bit patterns are fair, but for truths."""
    dtype = np.dtype(dtype)
    count = int(np.prod(shape, dtype=np.int64))
    numbers = np.random.default_rng(7).integers(0, 256, count * dtype.itemsize, np.uint8)
    return (numbers % 2 if dtype.kind == "b" else numbers).view(dtype).reshape(shape)


def assert_same(got, expected):
    assert got.dtype == expected.dtype
    assert got.shape == expected.shape
    assert got.tobytes() == expected.tobytes()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_numpy_wrote_is_read(dtype, shape, tmp_path):
    array = array_of(dtype, shape)
    np.save(tmp_path / "a.npy", array)
    assert_same(read(tmp_path / "a.npy"), array)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_written_numpy_reads(dtype, shape, tmp_path):
    array = array_of(dtype, shape)
    write(tmp_path / "a.npy", array)
    assert_same(np.load(tmp_path / "a.npy", allow_pickle=False), array)
    assert_same(read(tmp_path / "a.npy"), array)


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_all_versions_are_read(version, tmp_path):
    array = array_of("<f4", (3, 4))
    with (tmp_path / "a.npy").open("wb") as file:
        np.lib.format.write_array(file, array, version=version)
    assert_same(read(tmp_path / "a.npy"), array)


@pytest.mark.parametrize("axes", range(0, 65, 8))
def test_data_begins_at_a_multiple_of_64_bytes(axes, tmp_path):
    shape = (10,) * (axes // 16) + (1,) * (axes - axes // 16)
    write(tmp_path / "a.npy", array_of("u1", shape))
    with (tmp_path / "a.npy").open("rb") as file:
        assert np.lib.format.read_magic(file) == (1, 0)
        assert np.lib.format.read_array_header_1_0(file)[0] == shape
        assert file.tell() % 64 == 0


@pytest.mark.parametrize("view", [np.transpose, lambda a: a[:, ::2], lambda a: a[::-1], np.asfortranarray])
def test_arrays_that_are_not_row_major_are_written_row_major(view, tmp_path):
    array = view(array_of("<i4", (4, 6)))
    write(tmp_path / "a.npy", array)
    assert_same(read(tmp_path / "a.npy"), np.ascontiguousarray(array))


def test_a_file_is_replaced_and_not_written_over(tmp_path):
    path, old = tmp_path / "a.npy", tmp_path / "old.npy"
    write(path, np.zeros(3, np.float32))
    os.link(path, old)
    write(path, np.ones(4, np.int64))
    assert_same(read(old), np.zeros(3, np.float32))
    assert_same(read(path), np.ones(4, np.int64))
    assert names_in(tmp_path) == ["a.npy", "old.npy"]


def test_a_failed_write_leaves_nothing(tmp_path):
    (tmp_path / "folder").mkdir()
    for path, why in ((tmp_path / "folder", "directory"), (tmp_path / "none" / "a.npy", "No such file")):
        with pytest.raises(native.load().NpyError, match=f"{path}: cannot be written: .*{why}"):
            write(path, np.zeros(3, np.float32))
    assert names_in(tmp_path) == ["folder"]
    assert names_in(tmp_path / "folder") == []


def test_the_error_is_a_value_error():
    assert issubclass(native.load().NpyError, ValueError)


@pytest.mark.parametrize("dtype", [">f4", ">i8", "c8", "U3", "S3", "O", "M8[s]", "f4,i4"])
def test_types_that_are_not_exchanged(dtype, tmp_path):
    array = np.zeros(3, dtype)
    with pytest.raises(native.load().NpyError, match="expected an array of numbers"):
        write(tmp_path / "a.npy", array)
    assert not names_in(tmp_path)
    np.save(tmp_path / "a.npy", array)
    message = refusal(tmp_path / "a.npy")
    if array.dtype.names:
        assert message == "expected elements that are one number, got records of several fields"
    else:
        assert message.startswith("expected a type of |b1 |u1 |i1 <u2 ")
        assert message.endswith(f"got '{np.lib.format.dtype_to_descr(array.dtype)}'")


def test_fortran_order_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.asfortranarray(array_of("<f4", (3, 4))))
    assert "C order" in refusal(tmp_path / "a.npy")


def npy(header, data=b"", version=b"\1\0", length=None):
    header = header.encode("latin1")
    size = struct.pack("<H" if version[0] == 1 else "<I", len(header) if length is None else length)
    return b"\x93NUMPY" + version + size + header + data


def described(shape="(2,)", descr="'<f4'", order="False"):
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n"


HOSTILE = {
    "nothing": (b"", "ends in its header"),
    "half a mark": (b"\x93NUM", "ends in its header"),
    "another mark": (b"PK\3\4" + b"x" * 100, "does not begin with its mark"),
    "no length": (b"\x93NUMPY\1\0", "ends in its header"),
    "half a length": (b"\x93NUMPY\2\0\7\0", "ends in its header"),
    "version 0": (npy(described(), b"x" * 8, b"\0\0"), "got 0.0"),
    "version 4": (npy(described(), b"x" * 8, b"\4\0"), "got 4.0"),
    "version 1.1": (npy(described(), b"x" * 8, b"\1\1"), "got 1.1"),
    "a header that is cut off": (npy(described(), length=500), "expected a header of 500 bytes, got"),
    "a header of 4 GiB": (npy(described(), version=b"\2\0", length=2**32 - 1), "65536 bytes at most, got 4294967295"),
    "an empty header": (npy(""), "begins with {"),
    "no dict": (npy("[]"), r"begins with \{, got '\[\]'"),
    "an empty dict": (npy("{}"), "without one of them"),
    "no shape": (npy("{'descr': '<f4', 'fortran_order': False}"), "without one of them"),
    "another member": (npy("{'descr': '<f4', 'x': 1}"), "got 'x'"),
    "a member twice": (npy("{'descr': '<f4', 'descr': '<f8'}"), "one twice"),
    "no colon": (npy("{'descr' '<f4'}"), "expected a colon"),
    "no comma": (npy("{'descr': '<f4' 'shape': ()}"), "expected a comma"),
    "no end of a text": (npy("{'descr"), "in quotes"),
    "an escape": (npy(described(descr="'<\\x66" + "4'")), "in quotes"),
    "no brace": (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2,)", b"x" * 8), "expected a comma or }"),
    "code behind it": (npy(described().strip() + " + {}", b"x" * 8), "nothing behind"),
    "a type of no order": (npy(described(descr="'f4'"), b"x" * 8), "got 'f4'"),
    "an empty type": (npy(described(descr="''"), b"x" * 8), "expected a type"),
    "a type that is a number": (npy(described(descr="4"), b"x" * 8), "expected a type in quotes"),
    "four-byte bits": (npy(described(descr="'|f4'"), b"x" * 8), "got '|f4'"),
    "letters that do not print": (npy(described(descr="'\n\xff\x00\x1b[31m'"), b"x" * 8), r"got '\?\?\?\?\[31m'"),
    "a long type": (npy(described(descr=f"'{'x' * 9999}'")), r"got 'x{40}\.\.\.'"),
    "an order that is a number": (npy(described(order="0"), b"x" * 8), "True or False"),
    "a shape that is a number": (npy(described("2"), b"x" * 8), "shape in parentheses"),
    "a shape that is no tuple": (npy(described("(2)"), b"x" * 8), "a tuple"),
    "a shape of text": (npy(described("('2',)"), b"x" * 8), "a size of 0 or more"),
    "a negative size": (npy(described("(-2,)"), b"x" * 8), "a size of 0 or more, got '-2"),
    "two negative sizes": (npy(described("(-2, -1)"), b"x" * 8), "a size of 0 or more, got '-2"),
    "a size with a leading zero": (npy(described("(02,)"), b"x" * 8), "a size of 0 or more, got '02"),
    "an empty size": (npy(described("(,)"), b"x" * 4), "a size of 0 or more"),
    "sizes without a comma": (npy(described("(1 2)"), b"x" * 8), "a comma between"),
    "an open shape": (npy("{'shape': (1,"), "a size of 0 or more, got ''"),
    "a size of 64 bits": (npy(described(f"({2**63},)"), b"x" * 8), "can address"),
    "a size of 100 bits": (npy(described(f"({2**100},)"), b"x" * 8), "can address"),
    "sizes whose product is 0 in 64 bits": (npy(described(f"({2**32}, {2**32})"), b""), "4294967296 bytes at most"),
    "sizes whose product is 2 in 64 bits": (
        npy(described(f"({2**63 - 1}, {2**63 - 1}, 2)"), b"x" * 8),
        "4294967296 bytes at most",
    ),
    "nothing of huge sizes": (npy(described(f"(0, {2**62}, {2**62})")), "4294967296 bytes at most"),
    "one byte above the limit": (npy(described(f"({2**32 + 1},)", descr="'|u1'")), "4294967296 bytes at most"),
    "65 sizes": (npy(described(f"({'1, ' * 65})"), b"x" * 4), "64 sizes at most"),
    "a missing byte": (npy(described(), b"x" * 7), r"expected 8 bytes of data, for shape \(2,\), got 7"),
    "a byte too many": (npy(described(), b"x" * 9), r"expected 8 bytes of data, for shape \(2,\), got 9"),
    "a whole gigabyte that is not there": (npy(described(f"({2**28},)")), "expected 1073741824 bytes of data"),
    "a truth of 2": (npy(described("(3,)", descr="'|b1'"), b"\0\1\2"), "expected 0 or 1 as a bool, got 2"),
}


@pytest.mark.parametrize(("content", "why"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_files(content, why, tmp_path):
    path = tmp_path / "a.npy"
    path.write_bytes(content)
    with pytest.raises(native.load().NpyError, match=why):
        read(path)
    refusal(path)


@pytest.mark.parametrize(
    ("header", "shape", "dtype"),
    [
        ('{"descr":"<f4","fortran_order":False,"shape":(2,)}', (2,), "<f4"),
        ("{'shape': ( 2 , 1 ) ,\n\t'descr' : '<f4' , 'fortran_order' : False}   \n", (2, 1), "<f4"),
        ("{'descr': '<i1', 'fortran_order': False, 'shape': (8,)}", (8,), "i1"),
        ("{'descr': '>u1', 'fortran_order': False, 'shape': (2, 4)}", (2, 4), "u1"),
        ("{'descr': '<f8', 'fortran_order': False, 'shape': ()}", (), "<f8"),
    ],
)
def test_headers_in_other_hands(header, shape, dtype, tmp_path):
    path = tmp_path / "a.npy"
    path.write_bytes(npy(header, bytes(range(8))))
    assert_same(read(path), np.frombuffer(bytes(range(8)), dtype).reshape(shape))
    assert_same(np.load(path), read(path))


def test_a_file_beyond_the_limit_is_not_read(tmp_path):
    path = tmp_path / "a.npy"
    header = npy(described(f"({2**30 + 1},)"))
    path.write_bytes(header)
    os.truncate(path, len(header) + 2**32 + 4)  # a hole: it takes no room
    assert "expected 4294967296 bytes at most" in refusal(path)


def test_what_is_no_file(tmp_path):
    assert "cannot be read: No such file" in refusal(tmp_path / "none.npy")
    assert refusal(tmp_path) == "expected a file, got something else"
    os.mkfifo(tmp_path / "pipe")
    assert refusal(tmp_path / "pipe") == "expected a file, got something else"


@pytest.fixture(scope="module")
def mutated(tmp_path_factory):
    return tmp_path_factory.mktemp("mutated") / "a.npy"


def saved(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def spliced(content, edits, end):
    """The file with some stretches replaced, and cut off."""
    for at, removed, added in edits:
        content = content[:at] + added + content[at + removed :]
    return content[:end]


headers = st.sampled_from(
    [b"'", b"(", b")", b",", b"-1", b"0", b"9" * 19, b"True", b"}", b"{", b"\\", b"<f8", b"|O", b" "]
)
edits = st.lists(st.tuples(st.integers(0, 140), st.integers(0, 5), headers | st.binary(max_size=5)), max_size=4)


@given(st.sampled_from(DTYPES), st.sampled_from(SHAPES), edits, st.none() | st.integers(0, 200))
def test_no_change_of_a_file_is_fatal(mutated, dtype, shape, edits, end):
    """What is still accepted is what NumPy reads from the file; all else is an NpyError."""
    mutated.write_bytes(spliced(saved(array_of(dtype, shape)), edits, end))
    try:
        found = read(mutated)
    except native.load().NpyError:
        refusal(mutated)
    else:
        assert_same(found, np.load(mutated, allow_pickle=False))
