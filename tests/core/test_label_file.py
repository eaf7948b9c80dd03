"""Label files: reproducible bytes, rows read one by one, errors for damage and for files of another index."""

import fcntl
import hashlib
import multiprocessing
import pickle
import tempfile
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.label_file import LabelFile, write_label_file, write_packed
from pipeline.core.params import BadInput
from tests.core.rows import ATTRS, random_rows


def test_what_is_written_is_read_row_by_row(tmp_path):
    write_label_file(tmp_path / "a.h5", "maps", random_rows(5), ATTRS)
    rows = LabelFile(tmp_path / "a.h5", "maps", "abc")
    assert (rows["map"][3] == random_rows(5)["map"][3]).all() and (rows["number"][:] == range(5)).all()
    assert rows.attrs["parts"] == ["head", "legs"] and rows.names() == ["map", "number", "part"]
    assert (rows["part"][1:3] == random_rows(5)["part"][1:3]).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 12), st.integers(1, 5))
def test_the_content_hash_is_that_of_the_decoded_rows(count, width):
    arrays = {"a": np.arange(count * width, dtype=np.int16).reshape(count, width)}
    rows = b"".join(hashlib.sha256(row.tobytes()).digest() for row in arrays["a"])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "content.h5"
        write_label_file(path, "numbers", arrays, ATTRS)
        assert LabelFile(path).attrs["content"] == hashlib.sha256(rows).hexdigest()


def test_packed_blobs_come_back_byte_for_byte(tmp_path):
    blobs = [b"abc", b"", bytes(range(256)) * 300]
    write_packed(tmp_path / "a.h5", "images", iter(blobs), np.array([len(b) for b in blobs]), ATTRS)
    rows = LabelFile(tmp_path / "a.h5", "images")
    offset = rows["offset"][:]
    assert [rows["data"][a:b].tobytes() for a, b in pairwise(offset)] == blobs


# ------------------------------------------------------------------ bad files


def test_a_missing_file_says_how_to_get_it(tmp_path):
    with pytest.raises(BadInput, match=r"a\.h5: no such file.*dvc pull"):
        LabelFile(tmp_path / "a.h5")


def test_a_file_of_another_index_is_refused(tmp_path):
    write_label_file(tmp_path / "a.h5", "maps", random_rows(2), ATTRS)
    with pytest.raises(BadInput, match=r"made for another index.*dvc checkout"):
        LabelFile(tmp_path / "a.h5", "maps", "xyz")


def test_a_file_of_another_kind_is_refused(tmp_path):
    write_label_file(tmp_path / "a.h5", "maps", random_rows(2), ATTRS)
    with pytest.raises(BadInput, match="holds 'maps', not 'fields'"):
        LabelFile(tmp_path / "a.h5", "fields")


def test_a_file_of_another_format_is_refused(tmp_path):
    write_label_file(tmp_path / "a.h5", "maps", random_rows(2), ATTRS)
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file.attrs["format"] = 99
    with pytest.raises(BadInput, match="format 99"):
        LabelFile(tmp_path / "a.h5")


def test_a_text_file_is_no_label_file(tmp_path):
    (tmp_path / "a.h5").write_text("hello")
    with pytest.raises(BadInput, match=r"a\.h5: cannot be read"):
        LabelFile(tmp_path / "a.h5")


def test_a_file_that_another_program_has_locked_is_read(tmp_path):
    write_label_file(tmp_path / "a.h5", "maps", random_rows(5), ATTRS)
    with open(tmp_path / "a.h5", "rb+") as viewer:  # such as a notebook that opened it with h5py to write
        fcntl.flock(viewer, fcntl.LOCK_EX)
        assert (LabelFile(tmp_path / "a.h5")["number"][:] == range(5)).all()


@pytest.mark.parametrize("name", ["map", "part"])
def test_a_corrupted_chunk_is_named_with_file_and_row(tmp_path, name):
    write_label_file(tmp_path / "a.h5", "maps", random_rows(4), ATTRS)
    with h5py.File(tmp_path / "a.h5") as file:
        chunk = file[name].id.get_chunk_info(2)
    with open(tmp_path / "a.h5", "r+b") as raw:
        raw.seek(chunk.byte_offset + chunk.size // 2)
        raw.write(b"\0\1\2\3")
    rows = LabelFile(tmp_path / "a.h5")
    assert (rows[name][1] == random_rows(4)[name][1]).all()
    with pytest.raises(BadInput, match=rf"a\.h5: '{name}', row 2: .*dvc checkout"):
        rows[name][2]


def test_a_missing_dataset_is_named_with_those_there_are(tmp_path):
    write_label_file(tmp_path / "a.h5", "maps", random_rows(2), ATTRS)
    with pytest.raises(BadInput, match=r"holds no 'mask', only map, number"):
        LabelFile(tmp_path / "a.h5")["mask"]


# ------------------------------------------------------------------ processes


def first_number(rows):
    return int(rows["number"][1])


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_a_reader_works_in_other_processes(tmp_path, method):
    write_label_file(tmp_path / "a.h5", "maps", random_rows(3), ATTRS)
    rows = LabelFile(tmp_path / "a.h5")
    assert first_number(rows) == 1  # the handle is open here before the others start
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(first_number, [rows, rows]) == [1, 1]


def test_a_pickled_reader_takes_no_handle_along(tmp_path):
    write_label_file(tmp_path / "a.h5", "maps", random_rows(3), ATTRS)
    rows = LabelFile(tmp_path / "a.h5")
    first_number(rows)
    assert first_number(pickle.loads(pickle.dumps(rows))) == 1
