# SPDX-License-Identifier: Apache-2.0
"""The caches: tables and compiled kernels that are kept between calls, within one bound in bytes.

One store holds all of them, for every backend and device, and drops the least recently used first. The
compiled CPU kernels keep their own tables, under the same bound. Values are built outside the lock, so that
threads that need the same value at once may each build it; the first to finish is kept.
"""

from __future__ import annotations

import operator
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

DEFAULT_LIMIT = 128 << 20
VARIABLE = "SOFTDIFF_CACHE_MB"
# Counted for each entry beside its value: the key, the entry and the Python objects around the value.
_OVERHEAD = 1024


class Entry:
    """A value that is kept. `value` becomes None when it is dropped: read it once, and hold what was read."""

    __slots__ = ("cache", "gpu", "key", "pinned", "size", "streams", "used", "value")

    def __init__(self, cache: Cache, key: tuple[Any, ...], value: Any, size: int) -> None:
        self.cache, self.key, self.value, self.size = cache, key, value, size
        self.pinned = False
        self.used = False  # since it took its place in the order: what is called most often sets only this
        place = key[-1]
        self.gpu = place.index if isinstance(place, torch.device) and place.type == "cuda" else None
        self.streams: set[int] = set()  # of that GPU, those that read the value


@dataclass(frozen=True)
class CacheInfo:
    """What is kept between calls, in bytes.

    Attributes:
        limit: The bound.
        held: Bytes kept under the bound, by cache. The `cpu kernels` have the bound for themselves; all other
            caches share it.
        pinned: Bytes beyond the bound, which CUDA graphs read.

    Examples:
        >>> isinstance(sk.cache_info(), sk.CacheInfo)
        True
    """

    limit: int
    held: dict[str, int]
    pinned: int


_caches: list[Cache] = []
_order: OrderedDict[Entry, None] = OrderedDict()  # all that may be dropped, least recently used first
_pinned: list[Entry] = []
_held = 0  # bytes of what is in _order
_limit: int | None = None
_native: Any = None

# Guards the writes to all of the above. Reentrant: a garbage collection inside may end in a call of an op.
_lock = threading.RLock()
if hasattr(os, "register_at_fork"):
    # A child of a fork has a lock that nobody holds, and a consistent store.
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


def limit() -> int:
    """The bound in bytes: by `set_cache_limit`, else by SOFTDIFF_CACHE_MB, else 128 MiB."""
    global _limit
    if _limit is None:
        text = os.environ.get(VARIABLE, "").strip()
        if text and not re.fullmatch("[0-9]{1,12}", text):
            raise ValueError(f"{VARIABLE}: expected a whole number of MiB, 0 or more, got {text[:40]!r}")
        _limit = int(text) << 20 if text else DEFAULT_LIMIT
    return _limit


def set_cache_limit(bytes: int) -> None:
    """Sets how many bytes are kept between calls, and drops at once what exceeds them.

    The bound holds for the sum of what Python keeps on all devices, and once more for the tables of the
    compiled CPU kernels.

    Args:
        bytes: The bound, in [0, 2^63). 0 keeps nothing.

    Raises:
        TypeError: If bytes is not a whole number.
        ValueError: If it is out of range.

    Examples:
        >>> before = sk.cache_info().limit
        >>> sk.set_cache_limit(64 << 20)  # 64 MiB
        >>> sk.cache_info().limit
        67108864
        >>> sk.set_cache_limit(before)
    """
    global _limit
    try:
        wanted: int | None = operator.index(bytes)
    except TypeError:
        wanted = None
    if wanted is None or isinstance(bytes, bool):
        raise TypeError(
            f"set_cache_limit: expected bytes as a whole number, got a value of type {type(bytes).__name__}"
        )
    if not 0 <= wanted < 2**63:
        raise ValueError("set_cache_limit: expected bytes in [0, 2^63), got a number outside")
    with _lock:
        _limit = wanted
        gone = _drop_down_to(wanted)
    del gone  # outside the lock: a device may take its time to free memory
    if _native is not None:
        _native.set_cache_limit(wanted)


def clear_caches() -> None:
    """Drops everything that is kept, except what CUDA graphs read; the next calls build it again.

    Examples:
        >>> y = sk.blur(torch.zeros(1, 1, 64, 64), 2.0)
        >>> sk.clear_caches()
        >>> sum(sk.cache_info().held.values())
        0
    """
    with _lock:
        gone = _drop_down_to(0)
    del gone
    if _native is not None:
        _native.clear_cache()


def cache_info() -> CacheInfo:
    """What is kept at the moment, in bytes, and the bound.

    Examples:
        >>> info = sk.cache_info()
        >>> sum(info.held.values()) <= 2 * info.limit
        True
    """
    bound = limit()
    with _lock:
        held = {cache.name: sum(e.size for e in cache._entries.values() if not e.pinned) for cache in _caches}
        pinned = sum(entry.size for entry in _pinned)
    if _native is not None:
        held["cpu kernels"] = _native.cache_bytes()
    return CacheInfo(bound, held, pinned)


def attach(module: Any) -> None:
    """Puts the tables of the compiled CPU kernels under the bound, if the module has a cache."""
    global _native
    bound = limit()
    if hasattr(module, "set_cache_limit"):
        module.set_cache_limit(bound)
        _native = module


def _drop_down_to(most: int) -> list[Any]:
    """Drops the least recently used until `most` bytes are left. Called under the lock; returns the dropped
    values, to be freed outside of it.
    """
    gone = []
    while _held > most:
        entry, _ = _order.popitem(last=False)  # one step: `touch` reorders without the lock
        if entry.used:
            entry.used = False
            _order[entry] = None
        else:
            gone.append(_drop(entry))
    return gone


def _drop(entry: Entry) -> Any:
    """The value of an entry that has left `_order`, and is now dropped."""
    global _held
    _held -= entry.size
    del entry.cache._entries[entry.key]
    value, entry.value = entry.value, None
    return value


def touch(entry: Entry) -> None:
    """Notes a use."""
    try:  # noqa: SIM105 (contextlib.suppress takes four times as long)
        _order.move_to_end(entry)  # one step of the interpreter, hence without the lock
    except KeyError:  # it was dropped, or is pinned
        pass


def pin(entry: Entry, value: Any) -> None:
    """Keeps the value for good: a CUDA graph that is being captured reads it at every replay, and there is no
    way to know when the graph is gone. It no longer counts as held.
    """
    global _held
    with _lock:
        if entry.pinned:
            return
        entry.pinned = True
        if entry in _order:
            del _order[entry]
            _held -= entry.size
        entry.value = value
        entry.cache._entries.setdefault(entry.key, entry)
        _pinned.append(entry)


class Cache:
    """Values by key, in the store that all caches share.

    name: for `cache_info`. build(*key) makes a value; size(value) is what it takes, in bytes.
    """

    def __init__(self, name: str, build: Callable[..., Any], size: Callable[[Any], int]) -> None:
        self.name, self._build, self._size = name, build, size
        self._entries: dict[Hashable, Entry] = {}
        _caches.append(self)

    def find(self, *key: Any) -> tuple[Entry, Any]:
        """The value for a key, built if it is not there, and its entry. A value that is larger than the bound
        is not kept; its entry holds nothing.
        """
        entry = self._entries.get(key)
        if entry is not None:
            value = entry.value
            if value is not None:
                touch(entry)
                return entry, value
        return self.keep(key, self._build(*key))

    def __call__(self, *key: Any) -> Any:
        return self.find(*key)[1]

    def find_for_graph(self, *key: Any) -> tuple[Entry, Any]:
        """As `find`, while a CUDA graph is captured, for which the value is kept for good."""
        entry = self._entries.get(key)
        value = None if entry is None else entry.value
        if entry is None or value is None:
            value = self._build(*key)
            entry = Entry(self, key, value, self._size(value) + _OVERHEAD)
        pin(entry, value)
        return entry, value

    def clear(self) -> None:
        """Drops what this cache holds, except what is pinned."""
        with _lock:
            mine = [entry for entry in self._entries.values() if not entry.pinned]
            for entry in mine:
                del _order[entry]
            gone = [_drop(entry) for entry in mine]
        del gone

    def holds(self, key: tuple[Any, ...]) -> bool:
        """Whether the value for a key is there. It counts as no use."""
        entry = self._entries.get(key)
        return entry is not None and entry.value is not None

    def keep(self, key: tuple[Any, ...], value: Any) -> tuple[Entry, Any]:
        """Keeps a value that was built elsewhere: as `find`, which builds it."""
        global _held
        entry = Entry(self, key, value, self._size(value) + _OVERHEAD)
        with _lock:
            there = self._entries.get(key)
            if there is not None:  # another thread was faster
                return there, there.value
            if entry.size > limit():
                entry.value = None
                return entry, value
            gone = _drop_down_to(limit() - entry.size)
            self._entries[key] = entry
            _order[entry] = None
            _held += entry.size
        del gone
        return entry, value


def _capturing(gpu: int) -> bool:
    """Whether what is allocated now on a GPU belongs to a CUDA graph."""
    if gpu == torch._C._cuda_getDevice():
        return torch.cuda.is_current_stream_capturing()
    with torch.cuda.device(gpu):
        return torch.cuda.is_current_stream_capturing()


def _current_stream(gpu: int) -> int:
    """The current stream as CUDA's handle, in a tenth of the time of torch.cuda.current_stream."""
    return torch._C._cuda_getCurrentRawStream(gpu)


class Tables(Cache):
    """Tensors by a key whose last part is their device; build(*key) makes one there.

    copied: build copies from host memory, which no CUDA graph can capture. Otherwise a table that is built
    during a capture belongs to the graph and is not kept. share: bytes to count for each byte of a table.
    """

    def __init__(
        self, name: str, build: Callable[..., Tensor], *, copied: bool = False, share: int = 1
    ) -> None:
        super().__init__(name, self._build_plain, lambda table: share * table.untyped_storage().nbytes())
        self._table, self._copied = build, copied

    def find(self, *key: Any) -> tuple[Entry, Tensor]:
        entry = self._entries.get(key)
        table = None if entry is None else entry.value
        # Inside a mode (fake tensors, a trace) tables are of the mode's kind, of no use outside of it.
        if torch._C._len_torch_dispatch_stack():
            return Entry(self, key, None, 0), self._table(*key)
        if entry is not None and table is not None:
            gpu = entry.gpu
            if gpu is None or entry.pinned or (_current_stream(gpu) in entry.streams and not _capturing(gpu)):
                touch(entry)
                return entry, table
        return self._find(*key)

    def _find(self, *key: Any) -> tuple[Entry, Tensor]:
        """The same for a table that is not there, or is not known to be read on the current stream."""
        device = key[-1]
        if device.type != "cuda":
            return super().find(*key)
        if _capturing(device.index):
            return self.find_for_graph(*key)
        entry, table = super().find(*key)
        self._read_on(torch.cuda.current_stream(device), entry, table)
        return entry, table

    def find_for_graph(self, *key: Any) -> tuple[Entry, Tensor]:
        entry = self._entries.get(key)
        table = None if entry is None else entry.value
        if entry is not None and table is not None:
            pin(entry, table)
            return entry, table
        if self._copied:
            raise RuntimeError(
                f"a table ({self.name}) is not on {key[-1]} yet, and cannot be copied there while a CUDA "
                "graph is captured; make the same call once before the capture"
            )
        return Entry(self, key, None, 0), self._table(*key)

    def _read_on(self, stream: torch.cuda.Stream, entry: Entry, table: Tensor) -> None:
        """Once dropped, the table's memory is given away only after what the stream was given before."""
        # When it is dropped, torch records an event there. A stream of another library may be gone by then:
        # torch's own have odd numbers, and the default stream has 0.
        if stream.stream_id and stream.stream_id % 2 == 0:
            pin(entry, table)
        elif stream.cuda_stream not in entry.streams:
            table.record_stream(stream)
            entry.streams.add(stream.cuda_stream)

    def _build_plain(self, *key: Any) -> Tensor:
        """The table as it is outside of all that the caller may be in."""
        device = key[-1]
        transformed = torch._C._functorch.peek_interpreter_stack() is not None
        if device.type == "cuda" or transformed or torch.jit.is_tracing():
            return self._build_aside(key, device)
        with torch.inference_mode(False), torch.no_grad():
            return self._table(*key)

    def _build_aside(self, key: tuple[Any, ...], device: torch.device) -> Tensor:
        """Built by a thread of its own, which is in no transform and no trace, and on a GPU by a stream of
        its own: torch.compile's warm-up for CUDA graphs puts whatever the calling thread allocates into the
        graph's memory, and may give it away again. The host waits for the table, once for each key, so that
        every stream may read it.
        """
        result: list[Tensor] = []
        failed: list[BaseException] = []

        def work() -> None:
            try:
                if device.type != "cuda":
                    result.append(self._table(*key))
                    return
                stream = torch.cuda.Stream(device)
                with torch.cuda.device(device), torch.cuda.stream(stream), torch.no_grad():
                    table = self._table(*key)
                stream.synchronize()
                result.append(table)
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        if failed:
            raise failed[0]
        return result[0]
