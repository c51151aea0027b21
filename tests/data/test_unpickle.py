"""The allow-list unpickler: plain data comes back as it was, anything else is refused with its name, and not run."""

from __future__ import annotations

import argparse
import collections
import contextlib
import datetime
import io
import os
import pickle
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crossmodal.data.unpickle import Refused, read_training_args, unpickle, unpickle_file
from crossmodal.errors import CheckpointError, DataError

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.complex_numbers(allow_nan=False),
    lambda inner: (
        st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text(), inner) | st.sets(st.integers())
    ),
    max_leaves=12,
)


class Calls:
    """Pickled, it is a call of `function`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments


@given(value=plain, protocol=st.sampled_from(PROTOCOLS))
def test_plain_data_comes_back_as_it_was(value: Any, protocol: int) -> None:
    found = unpickle(pickle.dumps(value, protocol))
    assert found == value and type(found) is type(value)


ARRAYS = [
    np.arange(6, dtype=np.float32).reshape(2, 3),
    np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3)),
    np.arange(4, dtype=">i2"),
    np.zeros((0, 5), np.float16),
    np.array([True, False]),
    np.array(["a", "bcd"]),
    np.array([b"a", b"bcd"]),
    np.array(7),
]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{array.dtype}{array.shape}")
def test_arrays_and_numpys_numbers_come_back_as_they_were(array: np.ndarray, protocol: int) -> None:
    content = pickle.dumps({"array": array}, protocol)
    found, expected = unpickle(content)["array"], pickle.loads(content)["array"]  # numpy may turn numbers over
    assert np.array_equal(found, array)
    assert (found.dtype, found.shape, found.flags.fnc) == (expected.dtype, expected.shape, expected.flags.fnc)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_namespaces_ordered_dicts_and_numpy_scalars(protocol: int) -> None:
    value = {
        "options": argparse.Namespace(lr=1e-5, names=["a"], inner=argparse.Namespace(x=1)),
        "order": collections.OrderedDict([("b", 1), ("a", 2)]),
        "number": np.float32(0.5),
    }
    found = unpickle(pickle.dumps(value, protocol))
    assert found == value and isinstance(found["options"], argparse.Namespace)
    assert list(found["order"]) == ["b", "a"] and isinstance(found["number"], np.float32)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("function", "name"),
    [
        (os.system, "posix.system"),
        (subprocess.Popen, "subprocess.Popen"),
        (eval, "builtins.eval"),
        (getattr, "builtins.getattr"),
        (datetime.date, "datetime.date"),
    ],
)
def test_anything_else_is_refused_by_name_and_not_run(function: Any, name: str, protocol: int, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    content = pickle.dumps([1, Calls(function, f"touch {mark}")], protocol, fix_imports=False)
    with pytest.raises(Refused, match=rf"it holds {name}, which is no data, and was not run"):
        unpickle(content)
    assert not mark.exists()


def test_arrays_of_objects_are_refused() -> None:
    with pytest.raises(Refused, match="arrays of 'O8'"):
        unpickle(pickle.dumps(np.array([1, None], dtype=object)))
    with pytest.raises(Refused, match="arrays of"):
        unpickle(pickle.dumps(np.zeros(2, np.dtype([("a", "f4"), ("b", "O")]))))


@pytest.mark.parametrize("sides", [(10**12,), (-1,), (3,), (2, 10**9)])
def test_an_array_that_announces_more_than_its_bytes_is_refused(sides: tuple[int, ...]) -> None:
    class Lying:
        def __reduce__(self) -> tuple[Any, ...]:
            reduced: Any = np.arange(2, dtype=np.float32).__reduce__()
            made, arguments, state = reduced
            return made, arguments, (state[0], sides, *state[2:])

    with pytest.raises(Refused, match="an array of shape"):
        unpickle(pickle.dumps(Lying()))


@pytest.mark.parametrize("function", [bytes, bytearray])
def test_bytes_of_a_number_are_not_allocated(function: Any) -> None:
    with pytest.raises(Refused, match="damaged"):
        unpickle(pickle.dumps(Calls(function, 1 << 40)))


def test_a_pickle_cannot_change_the_classes_that_it_names() -> None:
    state = (None, {"__init__": 1})
    content = b"\x80\x04" + b"cargparse\nNamespace\n" + pickle.dumps(state, 2)[2:-1] + b"b."
    with pytest.raises(Refused, match="it would change _Namespace"):
        unpickle(content)
    assert argparse.Namespace(a=1).a == 1


def test_cut_off_and_damaged_pickles_are_refused() -> None:
    whole = pickle.dumps({"a": [1, 2, 3], "b": np.arange(3)})
    for length in range(len(whole)):
        with pytest.raises(Refused):
            unpickle(whole[:length])


@given(content=st.binary(max_size=60))
def test_noise_is_refused_or_read(content: bytes) -> None:
    with contextlib.suppress(Refused):
        unpickle(content)


@pytest.mark.parametrize("legacy", [True, False])
def test_files_of_torch_come_back_as_they_were(legacy: bool, tmp_path: Path) -> None:
    value = {1: "one", 2: ["two", "three"]}
    torch.save(value, tmp_path / "x.pt", _use_new_zipfile_serialization=not legacy)
    assert unpickle_file(tmp_path / "x.pt") == value
    (tmp_path / "bare.pkl").write_bytes(pickle.dumps(value))
    assert unpickle_file(tmp_path / "bare.pkl") == value


@pytest.mark.parametrize("legacy", [True, False])
def test_files_of_torch_with_code_or_tensors_are_refused(legacy: bool, tmp_path: Path) -> None:
    path, mark = tmp_path / "x.pt", tmp_path / "ran"
    torch.save({1: Calls(os.system, f"touch {mark}")}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(DataError, match=r"x\.pt cannot be read \(it holds posix\.system"):
        unpickle_file(path)
    assert not mark.exists()
    torch.save({1: torch.zeros(2)}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(DataError, match=r"x\.pt cannot be read \(it holds torch\._utils\._rebuild_tensor_v2"):
        unpickle_file(path)


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.pt cannot be read"):
        unpickle_file(tmp_path / "none.pt")
    (tmp_path / "empty.pt").touch()
    with pytest.raises(DataError, match=r"empty\.pt cannot be read"):
        unpickle_file(tmp_path / "empty.pt")
    with zipfile.ZipFile(tmp_path / "other.pt", "w") as archive:
        archive.writestr("readme", "x")
    with pytest.raises(DataError, match=r"other\.pt cannot be read \(it is an archive without data\.pkl"):
        unpickle_file(tmp_path / "other.pt")
    buffer = io.BytesIO()
    torch.save({1: "x" * 1000}, buffer)
    (tmp_path / "cut.pt").write_bytes(buffer.getvalue()[:-40])
    with pytest.raises(DataError, match=r"cut\.pt cannot be read"):
        unpickle_file(tmp_path / "cut.pt")


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
def test_training_args(kind: str, tmp_path: Path) -> None:
    options = argparse.Namespace(add_od_labels=True, img_layer_norm_eps=1e-12, device=torch.device("cuda", 0))
    path = tmp_path / "training_args.bin"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(options))
    else:
        torch.save(options, path, _use_new_zipfile_serialization=kind == "zip")
    assert read_training_args(tmp_path) == {"add_od_labels": True, "img_layer_norm_eps": 1e-12, "device": "cuda:0"}


def test_training_args_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"training_args\.bin cannot be read"):
        read_training_args(tmp_path)
    path, mark = tmp_path / "training_args.bin", tmp_path / "ran"
    torch.save(argparse.Namespace(x=Calls(os.system, f"touch {mark}")), path)
    with pytest.raises(CheckpointError, match=r"it holds posix\.system, which is no data, and was not run"):
        read_training_args(tmp_path)
    assert not mark.exists()
    torch.save({"a": 1}, path)
    with pytest.raises(CheckpointError, match=r"holds dict, not the options of a run"):
        read_training_args(tmp_path)
