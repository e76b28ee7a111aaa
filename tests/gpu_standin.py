"""A framework whose tensors lie on a simulated GPU: what torch does with CUDA, as far as DLPack shows it. Its work goes through a
stream of its own and, on strict GPUs, happens no sooner than somebody waits for it: whoever reads too soon shows.

Tensor has __dlpack__, Old is from before DLPack 1.0, Exchanged has the C exchange API: its allocator, its current stream."""

import contextlib
import ctypes
import functools
from types import SimpleNamespace

import numpy as np
import simulator
from dlpack_structs import ALLOCATE, CONVERT, DELETER, STREAM, Exchange, Managed, Versioned, capsule, taken
from dlpack_structs import Tensor as Struct

CUDA = 2
KINDS = {"float32": (2, 32), "float16": (2, 16), "bfloat16": (4, 16), "int64": (0, 64), "int32": (0, 32)}


class Held(ctypes.Structure):
    """What everybody has taken of all simulated GPUs and not given back."""

    _fields_ = [
        ("device", ctypes.c_size_t),
        ("shared", ctypes.c_size_t),
        ("streams", ctypes.c_int),
        ("events", ctypes.c_int),
        ("graphs", ctypes.c_int),
    ]

    def __eq__(self, other):
        return bytes(self) == bytes(other)

    def __repr__(self):
        return f"{self.device} and {self.shared} bytes, {self.streams} streams, {self.events} events, {self.graphs} graphs"


@functools.cache
def library():
    lib = ctypes.CDLL(simulator.path())
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    for name, result, arguments in (
        ("held", None, [ctypes.POINTER(Held)]),
        ("refuse", None, [ctypes.c_long]),
        ("until_refusal", ctypes.c_long, []),
        ("alloc", pointer, [ctypes.c_int, size]),
        ("free", None, [pointer]),
        ("stream", pointer, [ctypes.c_int]),
        ("copy", None, [pointer, pointer, size, pointer]),
        ("order", None, [ctypes.c_int, pointer, pointer]),
        ("sync", None, [pointer]),
        ("current", ctypes.c_int, []),
    ):
        function = getattr(lib, f"dllm_sim_{name}")
        function.restype, function.argtypes = result, arguments
    return lib


def held():
    out = Held()
    library().dllm_sim_held(out)
    return out


@functools.cache
def stream(gpu):
    """The framework's own; it stays open."""
    return library().dllm_sim_stream(gpu)


def number(device):
    """Of "cuda-sim:3"."""
    return int(device.partition(":")[2])


class Memory:
    """A piece of a GPU's memory that will hold what the array holds. Freed in the order of the framework's stream."""

    def __init__(self, gpu, array):
        self.gpu, self.source = gpu, np.ascontiguousarray(array)
        self.address = library().dllm_sim_alloc(gpu, self.source.nbytes)
        if not self.address:
            raise MemoryError(f"{self.source.nbytes} bytes of GPU {gpu}")
        library().dllm_sim_copy(self.address, self.source.ctypes.data, self.source.nbytes, stream(gpu))

    def __del__(self):
        if self.address:
            library().dllm_sim_sync(stream(self.gpu))
            library().dllm_sim_free(self.address)


class Tensor:
    """array: what it will hold, once its stream has come so far; or None, and owner keeps alive what lies at `address`."""

    def __init__(self, gpu, array=None, dtype=None, *, shape=None, strides=None, address=None, owner=None):
        self.gpu, self.dtype = gpu, dtype or str(array.dtype)
        if array is not None:
            gaps = not array.flags.c_contiguous
            owner = Memory(gpu, array.base if gaps else array)
            address = owner.address + (array.ctypes.data - array.base.ctypes.data if gaps else 0)
            shape, strides = array.shape, [s // array.itemsize for s in array.strides] if gaps else None
        self.shape, self.address, self.owner = tuple(shape), address, owner
        self.strides = tuple(strides or self.packed())

    # ---- as torch's tensors are ----
    @property
    def device(self):
        return Device(self.gpu)

    @property
    def itemsize(self):
        return KINDS[self.dtype][1] // 8

    def data_ptr(self):
        return self.address

    def detach(self):
        return self

    def packed(self):
        return tuple(np.cumprod((1, *self.shape[:0:-1]))[::-1].tolist())

    def __len__(self):
        return self.shape[0]

    def numpy(self):
        """What it holds when its stream has done what it was asked: a copy."""
        out = np.empty(self.shape, "uint16" if self.dtype == "bfloat16" else self.dtype)
        assert self.strides == self.packed(), "gaps are not read"
        library().dllm_sim_copy(out.ctypes.data, self.address, out.nbytes, stream(self.gpu))
        library().dllm_sim_sync(stream(self.gpu))
        return out

    cpu = numpy

    def fill(self, array):
        """In place, when its stream comes to it."""
        assert self.strides == self.packed() and array.shape == self.shape
        self.owner.source = array
        library().dllm_sim_copy(self.address, array.ctypes.data, array.nbytes, stream(self.gpu))

    def part(self, shape, first=0):
        return type(self)(self.gpu, dtype=self.dtype, shape=shape, address=self.address + first * self.itemsize, owner=self.owner)

    def reshape(self, *shape):
        assert np.prod(shape) == np.prod(self.shape)
        return self.part(shape)

    def __getitem__(self, rows):
        start, stop, _ = rows.indices(self.shape[0])
        return self.part((stop - start, *self.shape[1:]), start * self.strides[0])

    # ---- DLPack ----
    def __dlpack_device__(self):
        return CUDA, self.gpu

    def wait(self, consumer):
        assert consumer != 0, "the standard has no stream 0 on CUDA"
        library().dllm_sim_order(self.gpu, consumer, stream(self.gpu))

    def __dlpack__(self, *, stream=None, max_version=None):
        assert max_version[0] == 1
        self.wait(stream)
        return capsule(export(self), b"dltensor_versioned")


class Old(Tensor):
    def __dlpack__(self, stream=None):
        self.wait(stream)
        return capsule(export(self, Managed), b"dltensor")


class Device(SimpleNamespace):
    """A torch.device."""

    def __init__(self, gpu):
        super().__init__(type="cuda", index=gpu)

    def __str__(self):
        return f"cuda-sim:{self.index}"


# ---- out: what consumers hold ---------------------------------------------------------------------------------------------------

exported = {}  # address of a structure -> all that it points to


@DELETER
def delete(address):
    del exported[address]


def export(tensor, form=Versioned):
    numbers = ctypes.c_int64 * max(len(tensor.shape), 1)
    shape, strides = numbers(*tensor.shape), numbers(*tensor.strides)
    pointer = ctypes.POINTER(ctypes.c_int64)
    places = ctypes.cast(shape, pointer), ctypes.cast(strides, pointer)
    view = Struct(tensor.address, CUDA, tensor.gpu, len(tensor.shape), *KINDS[tensor.dtype], 1, *places, 0)
    structure = Managed(view, None, delete) if form is Managed else Versioned(1, 3, None, delete, 0, view)
    exported[ctypes.addressof(structure)] = structure, shape, strides, tensor.owner
    return structure


# ---- in: what others export -----------------------------------------------------------------------------------------------------


class Given:
    """A structure of somebody else's, given back when nobody needs it any more."""

    def __init__(self, address):
        self.structure = Versioned.from_address(address)

    def __del__(self):
        self.structure.deleter(ctypes.addressof(self.structure))


class Host:
    """A tensor in the host's memory: on its way to a GPU."""

    def __init__(self, array, kind):
        self.array, self.kind = array, kind

    def to(self, device):
        return self.kind(device.index, self.array)


def adopt(address, kind):
    owner = Given(address)
    t = owner.structure.tensor
    assert (owner.structure.major, t.lanes) == (1, 1)
    dtype = next(name for name, known in KINDS.items() if known == (t.code, t.bits))
    shape, strides = t.shape[: t.ndim], t.strides[: t.ndim] if t.strides else None
    if t.device_type != CUDA:
        raw = ctypes.string_at(t.data + t.byte_offset, int(np.prod(shape)) * t.bits // 8)
        return Host(np.frombuffer(raw, dtype).reshape(shape), kind)
    return kind(t.device_id, dtype=dtype, shape=shape, strides=strides, address=t.data + t.byte_offset, owner=owner)


def from_dlpack(other):
    """As the consumer that Tensor's users call."""
    device_type, gpu = other.__dlpack_device__()
    wanted = {"stream": stream(gpu)} if device_type == CUDA else {}
    return adopt(taken(other.__dlpack__(max_version=(1, 3), **wanted), b"dltensor_versioned"), Tensor)


# ---- the C exchange API ---------------------------------------------------------------------------------------------------------

full = False  # the allocator has nothing left


@contextlib.contextmanager
def nothing_left():
    global full
    full = True
    yield
    full = False


@ALLOCATE
def allocate(like, out, context, error):
    like = like.contents
    try:
        if full:
            raise MemoryError("nothing left here")
        dtype = next(name for name, known in KINDS.items() if known == (like.code, like.bits))
        shape = like.shape[: like.ndim]
        made = Exchanged(like.device_id, np.full(shape, 77, "uint16" if dtype == "bfloat16" else dtype), dtype)
    except MemoryError as failure:
        error(context, b"MemoryError", str(failure).encode())
        return -1
    out[0] = ctypes.addressof(export(made))
    return 0


@CONVERT
def from_object(address, out):
    out[0] = ctypes.addressof(export(ctypes.cast(address, ctypes.py_object).value))
    return 0


@CONVERT
def to_object(address, out):
    made = adopt(address, Exchanged)
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(made))
    out[0] = id(made)
    return 0


@STREAM
def current_stream(device_type, gpu, out):
    out[0] = stream(gpu)
    return 0


TABLE = Exchange(1, 3, None, allocate, from_object, to_object, None, current_stream)


class Exchanged(Tensor):
    __dlpack_c_exchange_api__ = capsule(TABLE, b"dlpack_exchange_api")

    def __dlpack__(self, **_):
        raise AssertionError("the exchange API comes first")
