"""Tensors in and out of Python without a copy: torch, NumPy, and producers of every age of the DLPack protocol."""

import ctypes
import gc
import os
import sys
import threading
import types

import numpy as np
import pytest
from dlpack_structs import DELETER, Tensor, Versioned, capsule

from dllm_fast._core import from_numpy, to_numpy

torch = pytest.importorskip("torch")

DTYPES = {
    torch.float32: np.float32,
    torch.float64: np.float64,
    torch.float16: np.float16,
    torch.bfloat16: np.uint16,
    torch.int8: np.int8,
    torch.int16: np.int16,
    torch.int32: np.int32,
    torch.int64: np.int64,
    torch.uint8: np.uint8,
    torch.bool: np.bool_,
}


class Method:
    """A producer with nothing but __dlpack__, of the versioned kind."""

    def __init__(self, tensor):
        self.tensor = tensor

    def __dlpack__(self, *, max_version=None):
        return self.tensor.__dlpack__(max_version=max_version)


class OldMethod:
    """A producer from before DLPack 1.0: no max_version, an unversioned capsule."""

    def __init__(self, tensor):
        self.tensor = tensor

    def __dlpack__(self, stream=None):
        return self.tensor.__dlpack__()


WRAPPERS = [lambda tensor: tensor, Method, OldMethod]


# ---- in ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", WRAPPERS, ids=["exchange", "method", "old"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_torch_in_shares_memory(dtype, wrap):
    tensor = torch.arange(24).reshape(4, 6).to(dtype)
    array = to_numpy(wrap(tensor))
    assert array.ctypes.data == tensor.data_ptr()
    assert array.dtype == DTYPES[dtype] and array.shape == (4, 6) and array.flags.writeable
    tensor[1, 2] = 1
    same = tensor.view(torch.int16).numpy().view(np.uint16) if dtype is torch.bfloat16 else tensor.numpy()
    assert np.array_equal(array, same)


@pytest.mark.parametrize("wrap", WRAPPERS, ids=["exchange", "method", "old"])
def test_strides_and_offsets(wrap):
    base = torch.arange(60, dtype=torch.float32).reshape(3, 4, 5)
    for tensor in (base[1:, ::2, 1:4], base.permute(2, 0, 1), base[0, 0, 0], base[:1].expand(3, 4, 5), base.flatten()[7:]):
        array = to_numpy(wrap(tensor))
        assert array.ctypes.data == tensor.data_ptr()
        assert np.array_equal(array, tensor.numpy()) and array.strides == tensor.numpy().strides


@pytest.mark.parametrize("wrap", WRAPPERS, ids=["exchange", "method", "old"])
def test_empty_tensors(wrap):
    array = to_numpy(wrap(torch.empty(3, 0, 5, dtype=torch.bfloat16)))
    assert array.shape == (3, 0, 5) and array.dtype == np.uint16


def test_the_array_keeps_the_tensor_alive():
    tensor = torch.arange(1000, dtype=torch.int64)
    array = to_numpy(tensor)
    before = sys.getrefcount(array)
    del tensor
    gc.collect()
    torch.full((1000,), -1)  # would take the memory if it were free
    assert array[999] == 999 and sys.getrefcount(array) == before


def test_numpy_arrays_come_back_as_they_are():
    for array in (np.arange(3.0), np.zeros((2, 0)), np.arange(12).reshape(3, 4)[:, ::-2], np.array(5)):
        assert to_numpy(array) is array


def test_lists_and_numbers():
    assert np.array_equal(to_numpy([[1, 2], [3, 4]]), [[1, 2], [3, 4]])
    assert to_numpy((1.5, 2)).dtype == np.float64
    assert to_numpy(range(4)).tolist() == [0, 1, 2, 3]
    assert to_numpy(7) == 7 and to_numpy([]).shape == (0,)


@pytest.mark.parametrize("wrap", [lambda tensor: tensor, torch.nn.Parameter], ids=["tensor", "parameter"])
def test_tensors_of_a_graph_are_refused(wrap):
    tensor = wrap(torch.randn(3, requires_grad=True))
    with pytest.raises(ValueError, match=r"requires grad; pass its \.detach\(\)"):
        to_numpy(tensor)
    assert to_numpy(tensor.detach()).ctypes.data == tensor.data_ptr()


def test_meta_tensors_are_refused():
    with pytest.raises(ValueError, match="meta device"):
        to_numpy(torch.empty(3, device="meta"))


@pytest.mark.parametrize("thing", [None, object(), "tokens", b"ids", {"ids": [1]}, [None], np.float32, torch.Tensor], ids=repr)
def test_what_is_no_tensor_is_a_type_error(thing):
    with pytest.raises(TypeError):
        to_numpy(thing)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e4m3fn], ids=str)
def test_unsupported_dtypes_are_named(dtype):
    with pytest.raises(TypeError, match="dtype"):
        to_numpy(torch.zeros(2).to(dtype))


def test_ragged_lists_and_many_dimensions_are_refused():
    with pytest.raises(ValueError):
        to_numpy([[1, 2], [3]])
    with pytest.raises(ValueError, match="9 dimensions; at most 8"):
        to_numpy(torch.zeros((1,) * 9))


def test_exceptions_of_a_producer_come_through():
    class Broken:
        def __dlpack__(self, **keywords):
            raise LookupError("gone")

    with pytest.raises(LookupError, match="gone"):
        to_numpy(Broken())


def test_what_is_no_capsule_is_refused():
    tensor = torch.zeros(3)
    used = tensor.__dlpack__()
    torch.from_dlpack(types.SimpleNamespace(__dlpack__=lambda **_: used, __dlpack_device__=lambda: (1, 0)))
    for answer in (used, None, 3):
        with pytest.raises(TypeError, match="no unused DLPack capsule"):
            to_numpy(types.SimpleNamespace(__dlpack__=lambda answer=answer, **_: answer))


# ---- a producer made by hand, to say what no framework here says --------------------------------------------------------------


class HandMade:
    """float32 numbers 0 to 11 as a 3 by 4 tensor in a versioned capsule; fields may be overridden. Counts its deletions."""

    def __init__(self, *, major=1, flags=0, deleter=True, **fields):
        self.memory, self.shape, self.deleted = (ctypes.c_float * 12)(*range(12)), (ctypes.c_int64 * 2)(3, 4), 0
        self.deleter = DELETER(self.delete) if deleter else DELETER()
        shape = ctypes.cast(self.shape, ctypes.POINTER(ctypes.c_int64))
        fields = dict(data=ctypes.addressof(self.memory), device_type=1, ndim=2, code=2, bits=32, lanes=1, shape=shape) | fields
        self.managed = Versioned(major, 0, None, self.deleter, flags, Tensor(**fields))

    def delete(self, _):
        self.deleted += 1

    def __dlpack__(self, *, max_version=None):
        assert max_version[0] == 1
        return capsule(self.managed, b"dltensor_versioned")


def test_missing_strides_mean_row_major_and_the_deleter_runs_once():
    made = HandMade()
    array = to_numpy(made)
    assert np.array_equal(array, np.arange(12, dtype=np.float32).reshape(3, 4)) and array.flags.writeable
    view = array[1:]
    del array
    assert made.deleted == 0
    del view
    assert made.deleted == 1


def test_a_missing_deleter_is_fine():
    assert to_numpy(HandMade(deleter=False)).sum() == 66


def test_read_only_tensors_stay_so():
    array = to_numpy(HandMade(flags=1))
    with pytest.raises(ValueError, match="read-only"):
        array[0, 0] = 1


def test_byte_offsets():
    made = HandMade(byte_offset=16)
    assert to_numpy(made)[0].tolist() == [4, 5, 6, 7]


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"device_type": 2, "device_id": 3}, ValueError, r"cuda:3; pass its \.cpu\(\)"),
        ({"device_type": 10}, ValueError, "rocm:0"),
        ({"device_type": 8}, ValueError, "device type 8"),
        ({"lanes": 4}, TypeError, "4 lanes"),
        ({"code": 4, "bits": 8}, TypeError, "bfloat8"),
        ({"code": 2, "bits": 4}, TypeError, "float4"),
        ({"data": None}, ValueError, "no data"),
        ({"byte_offset": 2}, ValueError, "not aligned"),
        ({"ndim": 9}, ValueError, "9 dimensions"),
    ],
    ids=str,
)
def test_refused_tensors_are_given_back(fields, error, words):
    made = HandMade(**fields)
    with pytest.raises(error, match=words):
        to_numpy(made)
    assert made.deleted == 1


def test_a_newer_major_version_is_left_alone():
    made = HandMade(major=2)
    with pytest.raises(BufferError, match="DLPack 2"):
        to_numpy(made)
    assert made.deleted == 0


# ---- out --------------------------------------------------------------------------------------------------------------------

LIKE = torch.zeros(1)


@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES if dtype is not torch.bfloat16], ids=str)
def test_torch_out_shares_memory(dtype):
    array = np.arange(24).reshape(4, 6).astype(DTYPES[dtype])
    tensor = from_numpy(array, LIKE)
    assert type(tensor) is torch.Tensor and tensor.dtype is dtype and tensor.data_ptr() == array.ctypes.data
    assert np.array_equal(tensor.numpy(), array)
    tensor[0, 0] = 1
    assert array[0, 0] == 1


def test_the_names_of_16_bit_numbers():
    bits = torch.tensor([1.0, -2.5, 3e38]).bfloat16()
    array = to_numpy(bits)
    again = from_numpy(array, bits, "bfloat16")
    assert again.dtype is torch.bfloat16 and again.data_ptr() == bits.data_ptr() and torch.equal(again, bits)
    half = np.array([1.0, -2.5], np.float16)
    for given in (half, half.view(np.uint16)):
        assert from_numpy(given, LIKE, "float16").tolist() == [1.0, -2.5]
    assert from_numpy(np.ones(2, np.float32), LIKE, "float32").dtype is torch.float32


@pytest.mark.parametrize(
    ("array", "dtype"),
    [(np.zeros(2, np.float32), "bfloat16"), (np.zeros(2, np.uint16), "float32"), (np.zeros(2), "float64"), (np.zeros(2), "")],
    ids=str,
)
def test_arrays_that_do_not_hold_the_dtype(array, dtype):
    with pytest.raises(ValueError, match="does not hold"):
        from_numpy(array, LIKE, dtype)


def test_strided_and_empty_arrays_out():
    base = np.arange(60, dtype=np.int32).reshape(3, 4, 5)
    for array in (base[1:, ::2], base.T, base[0, 0, 0:1], base[:, :0]):
        tensor = from_numpy(array, LIKE)
        assert tensor.shape == array.shape and np.array_equal(tensor.numpy(), array)
        assert array.size == 0 or tensor.data_ptr() == array.ctypes.data


def test_what_torch_could_not_live_with_is_copied():
    frozen = np.arange(4)
    frozen.flags.writeable = False
    for array in (frozen, np.arange(4)[::-1], np.arange(4, dtype=">i8"), np.zeros(4, "i1,i8")["f1"]):
        tensor = from_numpy(array, LIKE)
        assert tensor.tolist() == array.tolist() and tensor.data_ptr() != array.ctypes.data
        tensor[0] = 9
        assert array[0] != 9


def test_no_tensor_wanted_no_tensor_given():
    array = np.arange(3)
    for like in ([1], np.zeros(2), (), None, 3):
        assert from_numpy(array, like) is array


def test_bad_arguments():
    for array in ([1, 2], None):
        with pytest.raises(TypeError):
            from_numpy(array, LIKE)
    with pytest.raises(TypeError, match="dtype <U1"):
        from_numpy(np.array(["a"]), LIKE)
    with pytest.raises(ValueError, match="9 dimensions"):
        from_numpy(np.zeros((1,) * 9), LIKE)


def test_subclasses_give_plain_tensors():
    assert type(from_numpy(np.zeros(2), torch.nn.Parameter(torch.zeros(1)))) is torch.Tensor


def foreign(importer, monkeypatch):
    """A tensor of a framework without the exchange API."""
    package = types.ModuleType("foreign_framework")
    package.from_dlpack = importer
    monkeypatch.setitem(sys.modules, "foreign_framework", package)
    return type("Array", (Method,), {"__module__": "foreign_framework.arrays"})(LIKE)


@pytest.mark.parametrize(
    "importer",
    [
        torch.from_dlpack,
        lambda export: torch.from_dlpack(export.__dlpack__()),
        lambda e: torch.from_dlpack(e.__dlpack__(max_version=(1, 0))),
    ],
    ids=["object", "unversioned", "versioned"],
)
def test_frameworks_without_the_exchange_api(importer, monkeypatch):
    array = np.arange(6, dtype=np.uint16)
    before = sys.getrefcount(array)
    tensor = from_numpy(array, foreign(importer, monkeypatch), "bfloat16")
    assert tensor.dtype is torch.bfloat16 and tensor.data_ptr() == array.ctypes.data
    assert sys.getrefcount(array) == before + 1
    del tensor
    assert sys.getrefcount(array) == before


def test_an_export_that_nobody_takes_is_freed(monkeypatch):
    array = np.arange(6)
    before = sys.getrefcount(array)
    for version in (None, (0, 8), (1, 3)):
        assert "dltensor" in repr(from_numpy(array, foreign(lambda e, v=version: e.__dlpack__(max_version=v), monkeypatch)))
    assert from_numpy(array, foreign(lambda e: e.__dlpack_device__(), monkeypatch)) == (1, 0)
    assert sys.getrefcount(array) == before


def test_array_namespaces_come_first():
    class Array(Method):
        def __array_namespace__(self):
            return types.SimpleNamespace(from_dlpack=torch.from_dlpack)

    assert type(from_numpy(np.zeros(2), Array(LIKE))) is torch.Tensor


def test_frameworks_that_cannot_import():
    with pytest.raises(TypeError, match="no from_dlpack"):
        from_numpy(np.zeros(2), Method(LIKE))


def test_tensors_may_die_on_other_threads():
    array = np.zeros(1 << 16)
    before = sys.getrefcount(array)
    held = [from_numpy(array, LIKE) for _ in range(100)]
    thread = threading.Thread(target=held.clear)
    thread.start()
    thread.join()
    assert sys.getrefcount(array) == before


# ---- leaks ------------------------------------------------------------------------------------------------------------------


def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def swallow(function, *arguments):
    try:
        function(*arguments)
    except (TypeError, ValueError):
        return


TENSOR, ARRAY, GRAD = torch.zeros(1 << 14), np.zeros(1 << 15, np.uint16), torch.zeros(1 << 14, requires_grad=True)
CALLS = {
    "in": lambda: to_numpy(TENSOR),
    "in, a new tensor": lambda: to_numpy(torch.empty(1 << 14)),
    "in, method": lambda: to_numpy(Method(TENSOR)),
    "in, old method": lambda: to_numpy(OldMethod(TENSOR)),
    "in, refused": lambda: swallow(to_numpy, GRAD),
    "in, not supported": lambda: swallow(to_numpy, Method(TENSOR.view(torch.complex64))),
    "out": lambda: from_numpy(ARRAY, LIKE, "bfloat16"),
    "out, a new array": lambda: from_numpy(np.empty(1 << 14), LIKE),
    "out, copied": lambda: from_numpy(ARRAY[::-1], LIKE, "bfloat16"),
    "out, refused": lambda: swallow(from_numpy, ARRAY, LIKE, "float32"),
    "out, no importer": lambda: swallow(from_numpy, ARRAY, Method(LIKE)),
}


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs /proc")
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_ten_thousand_calls_leak_nothing(call):
    for _ in range(500):
        call()
    gc.collect()
    kept = TENSOR, ARRAY, GRAD, LIKE, torch.Tensor
    references, blocks, resident = list(map(sys.getrefcount, kept)), sys.getallocatedblocks(), resident_bytes()
    for _ in range(10_000):
        call()
    gc.collect()
    assert list(map(sys.getrefcount, kept)) == references
    assert sys.getallocatedblocks() - blocks < 2000
    assert resident_bytes() - resident < 300 << 20  # of 625 MiB in 64 KiB tensors; sanitizers keep some freed memory
