"""How many threads kernels run on, and whose they are."""

import sys

from . import _core


def thread_runtime(use: str | None = None) -> str:
    """Whose threads all CPU models of this process run on: "own", or the path of the OpenMP runtime that they are borrowed from.

    use: "auto", as it is at first, borrows the runtime that the process has loaded, usually torch's, and else takes a small pool of
    our own; "own" never borrows; None only asks. Results are the same, bit for bit.
    """
    if use is not None:
        _core.use_threads(use)
    return _core.thread_runtime()


def thread_count(threads: int | None = None) -> int:
    """The caller's own number; else as many as this process may use by its affinity mask and the quotas of its control groups, but
    no more than torch.get_num_threads() where torch is loaded."""
    if threads:
        return threads
    get_num_threads = getattr(sys.modules.get("torch"), "get_num_threads", None)
    allowed = _core.default_threads()
    return min(allowed, get_num_threads()) if get_num_threads else allowed
