"""What this process does on Metal: kernels, command buffers, queues, buffers' memory, and the CPU/GPU timeline.

`MetalActivity.attach()` puts itself round pyapplegpu's own functions (MetalBegin, MetalEncodeDispatch, MetalCommit, MetalWait,
MetalBuffer, MetalRelease), so that a program need not be changed; `detach()` takes it away again. Work that never goes
through them is told by hand: begin_kernel / end_kernel round any call (host clock), record_kernel with a time of one's own.
"""
from __future__ import annotations

import collections
import json
import operator
import os
import threading
import time
import weakref
from statistics import median
from typing import Any, Callable, Iterable, NamedTuple, Sequence

from _common import ag, clean

FLIGHT, FEW = 1000, 16  # committed works followed until somebody waits for them; above a few, done ones are let go
BEGUN = 256             # works begun and not committed: to follow them is to keep their buffers
SAMPLES = 2000          # times per kernel, and buffers, that a document holds
TRACED = 20_000         # slices in a trace


class KernelRun(NamedTuple):
    """One dispatch. seconds: GPU time, None where nothing could tell; `method` says how it was had."""
    name: str
    seconds: float | None
    method: str                                 # counters, command buffer, host clock, given, or why there is none
    start_s: float | None = None                # on Metal's clock; None when only a duration is known
    threads: tuple[int, ...] | None = None      # of the grid
    group: tuple[int, ...] | None = None        # threads per threadgroup
    threadgroup_memory_bytes: int | None = None
    simd_width: int | None = None
    max_threads: int | None = None
    overhead_s: float | None = None             # its share of commit-to-return that was not GPU time
    flops: float | None = None
    bytes: float | None = None
    queue: str = ""


class BufferRun(NamedTuple):
    """One command buffer; stamps in seconds on Metal's clock, None where Metal gave none."""
    label: str
    queue: str
    dispatches: int
    encode_s: float | None                      # host time spent in MetalCommit before the commit: encoding
    commit_s: float
    kernel_start_s: float | None
    kernel_end_s: float | None
    gpu_start_s: float | None
    gpu_end_s: float | None
    done_s: float | None                        # return of MetalWait; None when nobody waited

    @property
    def end_s(self) -> float | None:
        return self.done_s if self.done_s is not None else self.gpu_end_s

    def parts(self) -> dict[str, float | None]:
        """Submission to completion, in its parts."""
        return {"encode": self.encode_s, "scheduling": span(self.commit_s, self.kernel_start_s),
                "driver": span(self.kernel_start_s, self.kernel_end_s),
                "queued": span(self.kernel_end_s, self.gpu_start_s),
                "gpu": span(self.gpu_start_s, self.gpu_end_s), "notice": span(self.gpu_end_s, self.done_s),
                "total": span(self.commit_s, self.done_s)}


def span(start: float | None, end: float | None) -> float | None:
    return end - start if start and end and end >= start else None


# ---- allocations

class MemoryStatistics(NamedTuple):
    total_allocated_bytes: int                  # everything ever allocated
    current_allocated_bytes: int
    peak_allocated_bytes: int
    shared_bytes: int                           # of the current ones
    private_bytes: int
    live: int
    allocations: int
    deallocations: int
    unknown_frees: int                          # deallocations of what was never tracked


class _Block(NamedTuple):
    name: str
    size: int
    mode: str
    born_s: float


class Allocations:
    """Who holds how much, since when. Things are known by their Metal address, else by identity."""

    def __init__(self, history: int = 10_000, clock: Callable[[], float] | None = None) -> None:
        from .engine import uptime_s
        self._clock = clock or uptime_s
        self._live: dict[int, _Block] = {}
        self._ended: collections.deque[tuple[_Block, float]] = collections.deque(maxlen=history)
        self.timeline: collections.deque[tuple[float, int, int]] = collections.deque(maxlen=history)
        self.total = self.current = self.peak = self.count = self.freed = self.unknown = 0
        self._by_mode: dict[str, int] = collections.defaultdict(int)
        self._sizes: dict[int, int] = collections.defaultdict(int)        # power of two -> allocations
        self._names: dict[str, list[int]] = {}                            # name -> count, total, live, live bytes, peak bytes
        self._lock = threading.RLock()          # a finaliser may run inside any of this

    @staticmethod
    def _key(thing: Any) -> int:
        return thing if isinstance(thing, int) else getattr(thing, "_pointer", None) or id(thing)

    def born(self, thing: Any, size: int, mode: str = "shared", name: str = "") -> None:
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise ValueError("a size is a number of bytes, not %r" % (size,))
        with self._lock:
            key, now, name = self._key(thing), self._clock(), clean(name) or "(no name)"
            if key in self._live:
                self.died(key)                  # an address is used again: the free was missed, or the object moved on
            self._live[key] = _Block(name, size, mode, now)
            self.total += size
            self.current += size
            self.count += 1
            self.peak = max(self.peak, self.current)
            self._by_mode[mode] += size
            self._sizes[max(0, size - 1).bit_length()] += 1
            row = self._names.setdefault(name, [0, 0, 0, 0, 0])
            row[0] += 1
            row[1] += size
            row[2] += 1
            row[3] += size
            row[4] = max(row[4], row[3])
            self.timeline.append((now, self.current, len(self._live)))

    def died(self, thing: Any) -> bool:
        """False for what was never tracked, or is gone already."""
        with self._lock:
            block = self._live.pop(self._key(thing), None)
            if block is None:
                self.unknown += 1
                return False
            now = self._clock()
            self.current -= block.size
            self.freed += 1
            self._by_mode[block.mode] -= block.size
            row = self._names[block.name]
            row[2] -= 1
            row[3] -= block.size
            self._ended.append((block, now))
            self.timeline.append((now, self.current, len(self._live)))
            return True

    def statistics(self) -> MemoryStatistics:
        with self._lock:
            return MemoryStatistics(self.total, self.current, self.peak,
                                    self._by_mode["shared"] + self._by_mode["managed"],
                                    self._by_mode["private"], len(self._live), self.count, self.freed, self.unknown)

    def leaks(self) -> list[dict[str, Any]]:
        """What is still there, by name; `growing`: three or more, none of that name was ever freed, and they came one after
        the other over most of the time that was watched."""
        with self._lock:
            now = self._clock()
            first = min([b.born_s for b in self._live.values()] + [b.born_s for b, _ in self._ended], default=now)
            rows = []
            for name, (count, _, live, held, _) in self._names.items():
                if not live:
                    continue
                born = sorted(b.born_s for b in self._live.values() if b.name == name)
                spread = (born[-1] - born[0]) / (now - first) if now > first else 0.0
                rows.append({"name": name, "live": live, "bytes": held, "oldest_s": now - born[0],
                             "growing": live >= 3 and live == count and spread >= 0.5})
            return sorted(rows, key=lambda r: (-r["bytes"], r["name"]))

    def document(self, zero_s: float, watched_s: float) -> dict[str, Any] | None:
        with self._lock:
            if not self.count and not self.unknown:
                return None
            return {"processes": 1, "statistics": self.statistics()._asdict(),
                    "rate_per_s": self.count / watched_s if watched_s > 0 else None,
                    "rate_bytes_per_s": self.total / watched_s if watched_s > 0 else None,
                    "names": [dict(zip(("name", "count", "total_bytes", "live", "live_bytes", "peak_bytes"),
                                       (name, *row)))
                              for name, row in sorted(self._names.items(), key=lambda p: -p[1][4])[:200]],
                    "sizes": [{"up_to_bytes": 1 << power, "count": n} for power, n in sorted(self._sizes.items())],
                    "lifetime_s": _lifetimes(self.lives()),
                    "still_allocated": self.leaks()[:200],
                    "timeline": [[t - zero_s, current, live]
                                 for t, current, live in _thinned(list(self.timeline), SAMPLES)]}

    def lives(self) -> list[float]:
        """How long each of those lived that are gone."""
        with self._lock:
            return [end - block.born_s for block, end in self._ended]


def _lifetimes(lives: Sequence[float]) -> dict[str, float] | None:
    return {"n": len(lives), "median": median(lives), "min": min(lives), "max": max(lives)} if lives else None


class _Elsewhere(NamedTuple):
    """The allocations of another process, on this one's clock."""
    pid: int
    begin_s: float
    end_s: float
    over: bool                      # it has ended, and what it held went with it
    lives: list[float]
    held: dict[str, Any]            # as Allocations.document


def _together(processes: Sequence[_Elsewhere]) -> dict[str, Any] | None:
    """What several processes allocated as one document: what can be added is added, the names say whose they are."""
    if len(processes) < 2:
        return processes[0].held if processes else None
    whole = {key: sum(p.held["statistics"][key] for p in processes) for key in MemoryStatistics._fields}
    timeline = _added([p.held["timeline"] + ([[p.end_s, 0, 0]] if p.over else []) for p in processes])
    whole["peak_allocated_bytes"] = max([p.held["statistics"]["peak_allocated_bytes"] for p in processes]
                                        + [current for _, current, _ in timeline])
    span_s = max(p.end_s for p in processes) - min(p.begin_s for p in processes)
    sizes: collections.Counter[int] = collections.Counter()
    for row in (row for p in processes for row in p.held["sizes"]):
        sizes[row["up_to_bytes"]] += row["count"]

    def named(key: str, by: str) -> list[dict[str, Any]]:
        rows = [dict(row, name="%s (pid %d)" % (row["name"], p.pid)) for p in processes for row in p.held[key]]
        return sorted(rows, key=lambda row: -row[by])[:200]
    return {"processes": len(processes), "statistics": whole,
            "rate_per_s": whole["allocations"] / span_s if span_s > 0 else None,
            "rate_bytes_per_s": whole["total_allocated_bytes"] / span_s if span_s > 0 else None,
            "names": named("names", "peak_bytes"), "still_allocated": named("still_allocated", "bytes"),
            "sizes": [{"up_to_bytes": size, "count": n} for size, n in sorted(sizes.items())],
            "lifetime_s": _lifetimes([life for p in processes for life in p.lives]),
            "timeline": _thinned(timeline, SAMPLES)}


def _added(timelines: Sequence[Sequence[Sequence[float]]]) -> list[list[float]]:
    """The sum of several [time, bytes, live], each of which holds until its next."""
    latest: dict[int, Sequence[float]] = {}
    out = []
    for which, row in sorted(((n, row) for n, rows in enumerate(timelines) for row in rows), key=lambda pair: pair[1][0]):
        latest[which] = row
        out.append([row[0], sum(r[1] for r in latest.values()), sum(r[2] for r in latest.values())])
    return out


def _thinned(rows: Sequence[Any], most: int) -> list[Any]:
    """At most `most` of the rows, evenly, the last one always."""
    if len(rows) <= most:
        return list(rows)
    step = len(rows) / most
    return [rows[min(len(rows) - 1, int((n + 1) * step) - 1)] for n in range(most)]


# ---- kernels and command buffers

class _Totals:
    """Of one kernel, over its whole life (the runs kept are bounded)."""
    __slots__ = ("count", "timed", "total_s", "runs")

    def __init__(self, history: int) -> None:
        self.count = self.timed = 0
        self.total_s = 0.0
        self.runs: collections.deque[KernelRun] = collections.deque(maxlen=history)


LATENCY_BOUNDS_MS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000)


class MetalActivity:
    """Everything about Metal in this process that a monitor keeps."""

    def __init__(self, config: Any) -> None:
        self.config = config
        size = config.history_buffer_size
        self.kernels: dict[str, _Totals] = {}
        self.buffers: collections.deque[BufferRun] = collections.deque(maxlen=size)
        self.buffer_count, self.latency_sum_s = 0, 0.0
        self.latency_counts = [0] * (len(LATENCY_BOUNDS_MS) + 1)
        self.allocations = Allocations(size)
        self.zero_s = self.stopped_s = 0.0
        self.zero_unix_s = 0.0
        self._history = size
        self._open: dict[int, tuple[str, float]] = {}               # work (or thread) -> kernel being profiled, since when
        self._flight: dict[int, tuple[Any, float | None, list[dict[str, Any]]]] = {}
        self._facts: dict[int, list[dict[str, Any]]] = {}           # works being recorded -> their dispatches
        self._works: dict[int, Any] = {}                            # keeps the ids above their own
        self._queues: dict[int, str] = {}
        self._names: dict[int, str] = {}                            # pipeline -> its function
        self._saved: dict[str, Any] = {}
        self._lock = threading.RLock()
        self._device: Any = None
        self._elsewhere: list[_Elsewhere] = []                      # allocations of other processes (absorb)

    # -- life
    def start(self, now_s: float, unix_s: float) -> None:
        self.zero_s, self.zero_unix_s, self.stopped_s = now_s, unix_s, 0.0
        if self.config.enable_kernel_profiling or self.config.enable_queue_monitoring:
            self.attach()

    def stop(self, now_s: float) -> None:
        self.detach()
        for key in list(self._flight):
            self._settle(key, 1.0)
        self.stopped_s = now_s

    def attach(self) -> None:
        """Go round pyapplegpu's functions. A second monitor goes round the first."""
        if self._saved:
            return
        for name, wrapper in (("MetalPipeline", self._pipeline), ("MetalBegin", self._begin),
                              ("MetalEncodeDispatch", self._dispatch), ("MetalCommit", self._commit),
                              ("MetalWait", self._wait), ("MetalBuffer", self._buffer),
                              ("MetalRelease", self._release)):
            self._saved[name] = getattr(ag, name)
            setattr(ag, name, _around(self._saved[name], wrapper))

    def detach(self) -> None:
        for name, original in self._saved.items():
            ours = getattr(ag, name)
            if getattr(ours, "perfmon_inner", None) is original:
                setattr(ag, name, original)
        self._saved = {}

    # -- the functions gone round
    def _pipeline(self, inner: Callable[..., Any], function: Any, *given: Any, **named: Any) -> Any:
        made = inner(function, *given, **named)
        self._names[made._pointer] = function.name()        # a pipeline without a label does not tell
        return made

    def _begin(self, inner: Callable[..., Any], *given: Any, **named: Any) -> Any:
        if self.config.enable_detailed_profiling:
            named["profile"] = True
        return inner(*given, **named)

    def _dispatch(self, inner: Callable[..., Any], work: Any, pipeline: Any, threads: Any, *given: Any,
                  **named: Any) -> Any:
        open_name = self._open.get(id(work))
        if open_name is not None:
            named["label"] = open_name[0]
        result = inner(work, pipeline, threads, *given, **named)
        limits = ag.MetalPipelineInfo(pipeline)
        group = named.get("group")
        count = _three(threads if named.get("groups") is None else named["groups"])
        if named.get("groups") is not None and group is not None:
            count = tuple(a * b for a, b in zip(count, _three(group)))
        if work.operations and work.operations[-1][0] == "dispatch" and group is None:
            size = work.operations[-1][4]                           # the library's own choice
            group = tuple(int(getattr(size, axis)) for axis in ("width", "height", "depth"))
        with self._lock:
            self._works[id(work)] = work
            facts = self._facts.setdefault(id(work), [])
            facts.append({"name": named.get("label") or pipeline.label() or self._names.get(pipeline._pointer)
                          or "dispatch %d" % len(facts), "threads": count,
                          "group": None if group is None else _three(group), "simd_width": limits.simd_width,
                          "threadgroup_memory_bytes": limits.threadgroup_memory_bytes + sum(named.get("memory", ())),
                          "max_threads": limits.max_threads})
            while len(self._works) > BEGUN:                 # works begun and dropped
                old = next(iter(self._works))
                self._works.pop(old)
                self._facts.pop(old, None)
        return result

    def _commit(self, inner: Callable[..., Any], work: Any, *given: Any, **named: Any) -> Any:
        from .engine import uptime_s
        began = uptime_s()
        result = inner(work, *given, **named)
        with self._lock:
            self._works.pop(id(work), None)
            self._flight[id(work)] = (work, span(began, work.committed_ns * 1e-9), self._facts.pop(id(work), []))
            oldest = next(iter(self._flight.values()))[0] if len(self._flight) > FEW else None
            many = len(self._flight) > FLIGHT
        # A work that nobody waits for keeps its buffers as long as it is followed.
        if oldest is not None and (many or oldest.command_buffers[-1].status() >= 4):
            self._settle(id(oldest), 0.0)
        return result

    def _wait(self, inner: Callable[..., Any], work: Any, *given: Any, **named: Any) -> Any:
        try:
            return inner(work, *given, **named)
        finally:
            if getattr(work, "finished_ns", 0):
                with self._lock:
                    entry = self._flight.pop(id(work), None)
                if entry is not None:
                    self._record(*entry, waited=True)

    def _settle(self, key: int, timeout: float) -> None:
        """A work that nobody waited for: taken if it is done by now, else let go."""
        with self._lock:
            entry = self._flight.pop(key, None)
        if entry is None:
            return
        wait = self._saved.get("MetalWait", ag.MetalWait)
        try:
            wait(entry[0], timeout)
        except ag.AppleGPUError:
            return
        self._record(*entry, waited=False)

    def _buffer(self, inner: Callable[..., Any], data: Any, *given: Any, **named: Any) -> Any:
        made = inner(data, *given, **named)
        key = made._pointer
        self.allocations.born(key, int(made.length()), named.get("mode", "shared"), named.get("label") or "MetalBuffer")
        weakref.finalize(made, self._gone, key).atexit = False      # what lives until exit counts as still allocated
        return made

    def _gone(self, key: int) -> None:
        if key in self.allocations._live:
            self.allocations.died(key)

    def _release(self, inner: Callable[..., Any], *objects: Any) -> Any:
        keys = [one._pointer for one in objects if isinstance(one, ag.MetalObject)]
        result = inner(*objects)
        for key in keys:
            self._gone(key)
        return result

    # -- by hand
    def begin_kernel(self, name: str, work: Any = None) -> None:
        """Dispatches recorded into `work` until end_kernel are called `name`. Without a work: the host's clock runs."""
        key = id(work) if work is not None else -threading.get_ident()
        if key in self._open:
            raise ValueError("%r is being profiled already; end it first" % self._open[key][0])
        self._open[key] = (name, time.perf_counter())

    def end_kernel(self, name: str, work: Any = None) -> None:
        key = id(work) if work is not None else -threading.get_ident()
        began = self._open.get(key)
        if began is None or began[0] != name:
            raise ValueError("%r was not begun%s" % (name, "; %r was" % began[0] if began else ""))
        del self._open[key]
        if work is None:
            seconds = time.perf_counter() - began[1]
            from .engine import uptime_s
            self.record_kernel(name, seconds, method="host clock", start_s=uptime_s() - seconds)

    def record_kernel(self, name: str, seconds: float | None, *, method: str = "given", **facts: Any) -> None:
        if seconds is not None and not 0 <= seconds < 1e6:
            raise ValueError("a duration in seconds, not %r" % (seconds,))
        self._keep(KernelRun(clean(name), seconds, method, **facts))

    def record_buffer(self, run: BufferRun) -> None:
        with self._lock:
            self.buffers.append(run)
            self.buffer_count += 1
            total = span(run.commit_s, run.end_s)
            if total is not None:
                self.latency_sum_s += total
                place = sum(1 for bound in LATENCY_BOUNDS_MS if total * 1000 > bound)
                self.latency_counts[place] += 1

    def _keep(self, run: KernelRun) -> None:
        with self._lock:
            row = self.kernels.get(run.name)
            if row is None:
                row = self.kernels[run.name] = _Totals(self._history)
            row.count += 1
            if run.seconds is not None:
                row.timed += 1
                row.total_s += run.seconds
            row.runs.append(run)

    def runs(self, name: str) -> list[KernelRun]:
        with self._lock:
            return list(self.kernels[name].runs) if name in self.kernels else []

    # -- a finished work
    def _record(self, work: Any, encode_s: float | None, facts: list[dict[str, Any]], waited: bool) -> None:
        queue = self._queue_name(work.queue)
        stamps = []
        with ag.MetalPool():
            for one in work.command_buffers:
                stamps.append([one.kernelStartTime(), one.kernelEndTime(), one.GPUStartTime(), one.GPUEndTime()])
        done = work.finished_ns * 1e-9 if waited else None
        commit = work.committed_ns * 1e-9
        label = work.label or ", ".join(dict.fromkeys(fact["name"] for fact in facts)) or "(no label)"
        if self.config.enable_queue_monitoring:
            for n, stamp in enumerate(stamps):
                ended = done if n == len(stamps) - 1 else None
                kernel_start, kernel_end, gpu_start, gpu_end = (s or None for s in stamp)
                self.record_buffer(BufferRun(clean(label), queue, len(facts) if len(stamps) == 1 else 1,
                                             encode_s if n == 0 else None,
                                             commit, kernel_start, kernel_end, gpu_start, gpu_end, ended))
        if self.config.enable_kernel_profiling:
            self._record_kernels(work, facts, stamps, queue, span(commit, done))

    def _record_kernels(self, work: Any, facts: list[dict[str, Any]], stamps: list[list[float]], queue: str,
                        total: float | None) -> None:
        if not facts:
            return
        whole = sum(filter(None, (span(s[2], s[3]) for s in stamps))) or None
        overhead = (total - whole) / len(facts) if total is not None and whole is not None and total >= whole else None
        times: list[tuple[float | None, str, float | None]] = []
        if work.profile:
            at = stamps[0][2]
            for n, one in enumerate(ag.MetalDispatchTimes(work)):
                if len(stamps) == len(facts):
                    at = stamps[n][2]
                times.append((one.seconds, one.method, at or None))
                at = at + one.seconds if at and one.seconds is not None else 0.0
        elif len(facts) == 1:
            times.append((whole, "command buffer" if whole is not None else "Metal gave no GPU times",
                          stamps[0][2] or None))
        else:
            times = [(None, "one of %d dispatches in a command buffer: only the sum is known" % len(facts),
                      None)] * len(facts)
        for fact, (seconds, method, start) in zip(facts, times):
            self._keep(KernelRun(clean(fact["name"]), seconds, method, start, fact["threads"], fact["group"],
                                 fact["threadgroup_memory_bytes"], fact["simd_width"], fact["max_threads"], overhead,
                                 None, None, queue))

    def _queue_name(self, queue: Any) -> str:
        key = queue._pointer
        if key not in self._queues:
            self._queues[key] = clean(queue.label() or "queue %d" % len(self._queues))
        return self._queues[key]

    def device_allocated(self) -> int | None:
        """What this process allocated in Metal. Makes no device: None until the program used one."""
        if self._device is None and (self.kernels or self.allocations.count or self._flight) and sorted(self._saved):
            self._device = ag.Try(ag.MetalDevice).value
        return None if self._device is None else int(self._device.currentAllocatedSize())

    # -- as data
    def document(self) -> dict[str, Any]:
        from .engine import uptime_s
        with self._lock:
            end = self.stopped_s or uptime_s()
            watched = end - self.zero_s if self.zero_s else 0.0
            return {"kernels": sorted((_kernel_row(name, row) for name, row in self.kernels.items()),
                                      key=lambda r: -(r["total_s"] or 0)),
                    "kernel_slices": [[r.name, (r.start_s or 0.0) - self.zero_s, r.seconds, r.queue]
                                      for r in self._placed()],
                    "buffers": [dict(run._asdict(), **{k: v - self.zero_s for k, v in run._asdict().items()
                                                       if k in _STAMPS and v is not None})
                                for run in list(self.buffers)[-SAMPLES:]],
                    "buffer_count": self.buffer_count, "latency": latency(self.buffers),
                    "queues": queues(self.buffers, watched),
                    "allocations": self.allocations.document(self.zero_s, watched) or _together(self._elsewhere),
                    "metal_watched_s": watched, "metal_zero": {"uptime_s": self.zero_s, "unix_s": self.zero_unix_s}}

    def _placed(self) -> list[KernelRun]:
        rows = [r for totals in self.kernels.values() for r in totals.runs if r.start_s is not None
                and r.seconds is not None]
        rows.sort(key=lambda r: r.start_s or 0.0)
        return rows[-SAMPLES:]

    # -- from another process
    def save(self, path: str) -> None:
        """For `absorb` in another process: everything, as one JSON file."""
        from .engine import uptime_s
        with self._lock:
            data = {"kernels": [run._asdict() for row in self.kernels.values() for run in row.runs],
                    "totals": {name: [row.count, row.timed, row.total_s] for name, row in self.kernels.items()},
                    "buffers": [run._asdict() for run in self.buffers], "zero_s": self.zero_s, "saved_s": uptime_s(),
                    "buffer_totals": [self.buffer_count, self.latency_sum_s, *self.latency_counts],
                    "allocations": self.allocations.document(self.zero_s,
                                                             max(1e-9, (self.stopped_s or uptime_s()) - self.zero_s)),
                    "lives": self.allocations.lives(), "over": bool(self.stopped_s), "pid": os.getpid()}
        with open(path + ".part", "w", encoding="utf-8") as file:
            json.dump(data, file)
        os.replace(path + ".part", path)

    def again(self) -> MetalActivity:
        """An empty one with the same start: for taking the saved files of other processes anew."""
        fresh = MetalActivity(self.config)
        fresh.zero_s, fresh.zero_unix_s, fresh.stopped_s = self.zero_s, self.zero_unix_s, self.stopped_s
        return fresh

    def absorb(self, data: dict[str, Any], after_s: float) -> None:
        """Take what another process saved, `after_s` after this one's zero by the times of files. Processes of one Mac share the
        clock of Metal's stamps; when the stamps are of another clock (a stand-in Mac) they are moved onto this one's."""
        from .engine import uptime_s
        shared = self.zero_s <= data["saved_s"] <= uptime_s()
        move = 0.0 if shared else self.zero_s + after_s - data["saved_s"]
        since = data["zero_s"] + move - self.zero_s
        totals = [self.buffer_count, self.latency_sum_s, *self.latency_counts]
        for one in data["buffers"]:
            self.record_buffer(BufferRun(**{k: v + move if k in _STAMPS and v is not None else v
                                            for k, v in one.items()}))
        # Counts and sums are those of the whole life of the other process, runs that are no longer kept included.
        self.buffer_count, self.latency_sum_s, *self.latency_counts = map(operator.add, totals, data["buffer_totals"])
        before = {name: (row.count, row.timed, row.total_s) for name, row in self.kernels.items()}
        for one in data["kernels"]:
            given = dict(one, start_s=None if one["start_s"] is None else one["start_s"] + move)
            for key in ("threads", "group"):
                given[key] = None if given[key] is None else tuple(given[key])
            self._keep(KernelRun(**given))
        for name, theirs in data["totals"].items():
            row, ours = self.kernels[name], before.get(name, (0, 0, 0.0))
            row.count, row.timed, row.total_s = ours[0] + theirs[0], ours[1] + theirs[1], ours[2] + theirs[2]
        held = data.get("allocations")
        if held is not None:
            held["timeline"] = [[t + since, current, live] for t, current, live in held["timeline"]]
            self._elsewhere.append(_Elsewhere(data["pid"], since, since + data["saved_s"] - data["zero_s"], data["over"],
                                              data["lives"], held))


_STAMPS = ("commit_s", "kernel_start_s", "kernel_end_s", "gpu_start_s", "gpu_end_s", "done_s")


def _around(inner: Callable[..., Any], wrapper: Callable[..., Any]) -> Callable[..., Any]:
    def call(*given: Any, **named: Any) -> Any:
        return wrapper(inner, *given, **named)
    call.perfmon_inner = inner          # type: ignore[attr-defined]
    call.__name__, call.__doc__ = inner.__name__, inner.__doc__
    return call


def _three(value: Any) -> tuple[int, ...]:
    if value is None:
        return (1, 1, 1)
    parts = [int(value)] if hasattr(value, "__index__") else [int(v) for v in value]
    return tuple(parts + [1] * (3 - len(parts)))


def percentile(ordered: Sequence[float], q: float) -> float:
    """Of sorted values, between neighbours in proportion."""
    place = q * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def summary(values: Iterable[float]) -> dict[str, float] | None:
    ordered = sorted(values)
    if not ordered:
        return None
    return {"n": len(ordered), "mean": sum(ordered) / len(ordered), "median": percentile(ordered, 0.5),
            "p95": percentile(ordered, 0.95), "min": ordered[0], "max": ordered[-1],
            "iqr": percentile(ordered, 0.75) - percentile(ordered, 0.25)}


def _kernel_row(name: str, row: _Totals) -> dict[str, Any]:
    times = [r.seconds for r in row.runs if r.seconds is not None]
    last = row.runs[-1]
    overheads = [r.overhead_s for r in row.runs if r.overhead_s is not None]
    work = [(r.flops, r.bytes, r.seconds) for r in row.runs if r.seconds]
    methods = sorted({r.method for r in row.runs})
    return {"name": name, "count": row.count, "timed": row.timed, "total_s": row.total_s if row.timed else None,
            "mean_s": row.total_s / row.timed if row.timed else None, "seconds": summary(times),
            "samples_s": times[-SAMPLES:], "methods": methods, "threads": last.threads, "group": last.group,
            "threadgroup_memory_bytes": last.threadgroup_memory_bytes, "simd_width": last.simd_width,
            "max_threads": last.max_threads, "overhead_s": summary(overheads),
            "flops_per_s": _rate([(f, s) for f, _, s in work]), "bytes_per_s": _rate([(b, s) for _, b, s in work])}


def _rate(pairs: Sequence[tuple[float | None, float]]) -> float | None:
    told = [(amount, seconds) for amount, seconds in pairs if amount is not None]
    return sum(a for a, _ in told) / sum(s for _, s in told) if told else None


def latency(buffers: Iterable[BufferRun]) -> dict[str, dict[str, float] | None]:
    """Each part of submission to completion, over the buffers that have it."""
    rows: dict[str, list[float]] = {}
    for run in buffers:
        for name, value in run.parts().items():
            rows.setdefault(name, [])
            if value is not None:
                rows[name].append(value)
    return {name: summary(values) for name, values in rows.items()}


def union_s(spans: Iterable[tuple[float, float]]) -> float:
    """Time covered by at least one of the spans."""
    total, end = 0.0, float("-inf")
    for start, stop in sorted(spans):
        if stop > end:
            total += stop - max(start, end)
            end = stop
    return total


def queues(buffers: Iterable[BufferRun], watched_s: float) -> list[dict[str, Any]]:
    """Per queue: the share of wall time with a buffer in flight, and with the GPU on one."""
    by_queue: dict[str, list[BufferRun]] = {}
    for run in buffers:
        by_queue.setdefault(run.queue, []).append(run)
    rows = []
    for name, runs in by_queue.items():
        flight = [(r.commit_s, r.end_s) for r in runs if r.end_s is not None]
        busy = [(r.gpu_start_s, r.gpu_end_s) for r in runs if r.gpu_start_s and r.gpu_end_s]
        first, last = min(r.commit_s for r in runs), max((r.end_s or r.commit_s) for r in runs)
        wall = max(watched_s, last - first)
        rows.append({"name": name, "buffers": len(runs), "dispatches": sum(r.dispatches for r in runs),
                     "in_flight_ratio": min(1.0, union_s(flight) / wall) if wall > 0 else None,
                     "gpu_ratio": min(1.0, union_s(busy) / wall) if wall > 0 and busy else None,
                     "active_span_s": last - first})
    return sorted(rows, key=lambda r: -r["buffers"])


# ---- the timeline, for chrome://tracing and ui.perfetto.dev

def trace(doc: dict[str, Any]) -> dict[str, Any]:
    """Trace Event JSON: the CPU's side and the driver's, a lane per queue on the GPU, and the Mac's figures as counters.
    Times are microseconds from the start of the monitor."""
    events: list[dict[str, Any]] = []
    lanes: dict[tuple[int, str], int] = {}

    def lane(process: int, name: str) -> int:
        if (process, name) not in lanes:
            lanes[process, name] = len(lanes) + 1
            events.append({"ph": "M", "name": "thread_name", "pid": process, "tid": lanes[process, name],
                           "args": {"name": name}})
        return lanes[process, name]
    for pid, name in ((1, "CPU"), (2, "GPU"), (3, doc["machine"].get("gpu") or "Mac")):
        events.append({"ph": "M", "name": "process_name", "pid": pid, "tid": 0, "args": {"name": name}})

    def add(process: int, track: str, name: str, start: float | None, end: float | None, **facts: Any) -> None:
        if start is not None and end is not None and end >= start:
            events.append({"ph": "X", "name": name, "cat": "metal", "pid": process, "tid": lane(process, track),
                           "ts": round(1e6 * start, 3), "dur": round(1e6 * (end - start), 3), "args": facts})
    for n, one in enumerate(doc["buffers"][-TRACED:]):
        label, queue = one["label"], one["queue"]
        if one["encode_s"] is not None:
            add(1, "encode", label, one["commit_s"] - one["encode_s"], one["commit_s"], queue=queue)
        add(1, "in flight: " + queue, label, one["commit_s"], one["done_s"] or one["gpu_end_s"],
            dispatches=one["dispatches"])
        add(1, "driver", label, one["kernel_start_s"], one["kernel_end_s"], queue=queue)
        add(2, queue, label, one["gpu_start_s"], one["gpu_end_s"], dispatches=one["dispatches"])
        if one["gpu_start_s"] is not None:
            for phase, process, track, at in (("s", 1, "in flight: " + queue, one["commit_s"]),
                                              ("f", 2, queue, one["gpu_start_s"])):
                events.append({"ph": phase, "id": n, "name": "commit", "cat": "metal", "bp": "e", "pid": process,
                               "tid": lane(process, track), "ts": round(1e6 * at, 3)})
    for name, start, seconds, queue in doc["kernel_slices"][-TRACED:]:
        add(2, "kernels: " + queue if queue else "kernels", name, start, start + seconds)
    for name, unit in (("gpu_utilization_ratio", "ratio"), ("gpu_power_mw", "mW"), ("memory_read_bytes_per_s", "B/s"),
                       ("memory_write_bytes_per_s", "B/s"), ("memory_used_bytes", "B"), ("gpu_clock_mhz", "MHz")):
        for t, value in zip(doc["samples"]["t"], doc["samples"].get(name, ())):
            if value is not None:
                events.append({"ph": "C", "name": name, "pid": 3, "tid": 0, "ts": round(1e6 * t, 3),
                               "args": {unit: value}})
    for one in doc["events"]:
        events.append({"ph": "i", "s": "g", "name": one["kind"], "pid": 3, "tid": 0, "ts": round(1e6 * one["t"], 3),
                       "args": {"text": one["text"]}})
    return {"traceEvents": events, "displayTimeUnit": "ms",
            "otherData": {"machine": doc["machine"].get("chip") or doc["machine"].get("gpu"),
                          "source": doc["machine"].get("source"),
                          "clock": "seconds since the monitor began; Metal's stamps are host time (CLOCK_UPTIME_RAW)"}}
