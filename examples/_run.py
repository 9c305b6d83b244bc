"""What a command or a region of code costs: joules per rail, GPU seconds, peaks. `stat.py run` and perfmon stand on it.

    from _run import measure
    with measure(device) as m:          # device: of LibraryOpen or LibraryInitDeviceByIndex; None opens this Mac
        train()
    print(m.report.joules["gpu"], "+-", m.report.uncertainty_joules["gpu"])

Joules are differences of the hardware's own counters (SnapshotDelta), so they do not depend on how often anything was
sampled. A rail that published nothing between the two ends is None: not measured, which is not 0.
"""
from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any, Callable, NamedTuple, Sequence

from _common import ag, sentence, tell

PARTS = ("gpu", "memory", "power", "clocks", "temperature", "bandwidth", "processes")
SETTLE_S = 2.5          # the longest gap of a healthy rail (2.23 s) and a little
FORWARDED = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2")
                  if hasattr(signal, name))


class Report(NamedTuple):
    """Everything None that was not measured; `reasons` says why."""
    seconds: float                              # wall clock
    joules: dict[str, float | None]             # per rail
    uncertainty_joules: dict[str, float | None]
    average_power_mw: dict[str, float | None]   # joules / the seconds that they cover
    peak_power_mw: dict[str, float | None]      # highest sampled: gpu cpu ane dram package system
    average_system_power_mw: float | None       # mean of the samples of the SMC's figure
    gpu_active_s: float | None                  # the GPU was busy for anybody
    peak_memory_used_bytes: int | None          # GPU memory in use, of all processes
    memory_rise_bytes: int | None               # that, above what was in use at the start
    peak_gpu_temperature_celsius: float | None
    gpu_seconds: float | None                   # of the processes followed
    gpu_seconds_covered: float | None           # share of the run in which they were sampled, 0-1
    peak_footprint_bytes: int | None            # of the processes followed, together
    read_bytes: float | None
    write_bytes: float | None
    samples: int
    slept: bool
    reasons: dict[str, str]


_RAIL_FIELDS = {"gpu": "gpu_power_mw", "cpu": "cpu_power_mw", "ane": "ane_power_mw", "dram": "memory_power_mw",
                "package": "package_power_mw", "system": "system_power_mw"}


class Meter:
    """Begin, sample now and then, end. `pids` names the processes whose GPU time is followed (None: none)."""

    def __init__(self, device: ag.Device, pids: Callable[[ag.Snapshot], set[int] | None] | None = None,
                 on_sample: Callable[[ag.Snapshot, float], None] | None = None,
                 parts: Sequence[str] = PARTS) -> None:
        self.device, self.parts = device, tuple(parts)
        self._pids, self._on_sample = pids, on_sample
        self._peaks: dict[str, float] = {}
        self._system: list[float] = [0.0, 0]    # sum, count
        self._gpu_s, self._covered, self._followed = 0.0, 0.0, False
        self._samples, self._slept = 0, False
        self._lock = threading.Lock()

    def begin(self) -> None:
        self._clock = time.monotonic()
        self.first = self._last = ag.DeviceGetSnapshot(self.device, self.parts, timeout=0)
        self._last_clock = self._clock

    def sample(self) -> ag.Snapshot:
        with self._lock:
            now = time.monotonic()
            snapshot = ag.DeviceGetSnapshot(self.device, self.parts, timeout=0)
            self._note(snapshot)
            self._follow(snapshot, now)
            self._last, self._last_clock = snapshot, now
        if self._on_sample is not None:
            self._on_sample(snapshot, now - self._clock)
        return snapshot

    def _note(self, snapshot: ag.Snapshot) -> None:
        self._samples += 1
        self._slept = self._slept or ag.REASON_SLEPT in snapshot.reasons.values()
        for name, field in _RAIL_FIELDS.items():
            self._peak(name, getattr(snapshot, field))
        self._peak("memory", snapshot.memory_used_bytes)
        self._peak("temperature", snapshot.gpu_temperature_max_celsius)
        if snapshot.system_power_mw is not None:
            self._system[0] += snapshot.system_power_mw
            self._system[1] += 1

    def _peak(self, name: str, value: float | None) -> None:
        if value is not None:
            self._peaks[name] = max(value, self._peaks.get(name, value))

    def _follow(self, snapshot: ag.Snapshot, now: float) -> None:
        """Add the GPU time of the processes followed since the sample before: a process that ended takes its own with it."""
        pids = self._pids(snapshot) if self._pids is not None else None
        if pids is None or snapshot.time_mono_s <= self._last.time_mono_s:
            return
        spent = ag.SnapshotDelta(self._last, snapshot)
        if "gpu_time_s" in spent.reasons:
            return
        self._followed = True
        self._gpu_s += sum(spent.gpu_time_s.get(pid, 0.0) for pid in pids)
        self._covered += now - self._last_clock
        sizes = [p.footprint_bytes for p in snapshot.processes or () if p.pid in pids]
        if sizes and None not in sizes:
            self._peak("footprint", sum(s for s in sizes if s is not None))

    def _published_after(self, last: ag.Snapshot) -> ag.Snapshot | None:
        """A later snapshot in which every live rail has published once more, so that its count at the end is known; most
        rails publish every second or two, and who has not by then stays with its last count."""
        later, give_up = None, time.monotonic() + SETTLE_S
        while time.monotonic() < give_up:
            behind = [t for t in (later or last).published.values() if last.time_mono_s - 10 < t < last.time_mono_s]
            if not behind:
                break
            time.sleep(0.1)
            later = ag.DeviceGetSnapshot(self.device, ["power"], timeout=0)
        return later

    def end(self) -> Report:
        """The closing sample and what it all comes to."""
        last, span = self.sample(), time.monotonic() - self._clock
        if last.time_mono_s > self.first.time_mono_s:
            delta = ag.SnapshotDelta(self.first, last, self._published_after(last))
        else:       # a recording moves in steps of its own: nothing lies between two readings of one step
            delta = ag.Delta(0.0, dict.fromkeys(ag.RAILS), dict.fromkeys(ag.RAILS), None, {}, None, None,
                             {name: ag.REASON_FIRST for name in ag.RAILS + ("gpu_active_s", "read_bytes", "write_bytes")},
                             dict.fromkeys(ag.RAILS))
        reasons = dict(delta.reasons)
        if not self._followed:
            reasons["gpu_seconds"] = (ag.REASON_NOT_ASKED if self._pids is None else
                                      ag.REASON_FIRST if last.source == "live" else ag.REASON_RECORDING)
        used = [s.memory_used_bytes for s in (self.first,) if s.memory_used_bytes is not None]
        peak = self._peaks.get("memory")
        return Report(
            span, delta.joules, delta.uncertainty_joules,
            {rail: None if j is None else 1000 * j / (delta.spans_s[rail] or delta.seconds) for rail, j in delta.joules.items()},
            {name: self._peaks.get(name) for name in _RAIL_FIELDS},
            self._system[0] / self._system[1] if self._system[1] else None,
            delta.gpu_active_s, None if peak is None else int(peak),
            int(peak - used[0]) if used and peak is not None else None, self._peaks.get("temperature"),
            self._gpu_s if self._followed else None, min(1.0, self._covered / span) if self._followed and span > 0 else None,
            int(self._peaks["footprint"]) if "footprint" in self._peaks else None,
            delta.read_bytes, delta.write_bytes, self._samples, self._slept, reasons)


class measure:
    """Context manager over a Meter: `with measure(device) as m: ...`, then `m.report`.

    interval: seconds between samples of a thread, for peaks and this process's GPU seconds; None samples at both ends only.
    """

    def __init__(self, device: ag.Device | None = None, interval: float | None = None,
                 parts: Sequence[str] = PARTS) -> None:
        self._own = device is None
        self.device = ag.LibraryOpen() if device is None else device
        own = {os.getpid()}
        self.meter = Meter(self.device, lambda snapshot: own if snapshot.source == "live" else None, None, parts)
        self.interval = interval
        self.report: Report | None = None

    def __enter__(self) -> measure:
        self._stop = threading.Event()
        self.meter.begin()
        self._thread = None
        if self.interval:
            self._thread = threading.Thread(target=self._sample, name="measure", daemon=True)
            self._thread.start()
        return self

    def _sample(self) -> None:
        try:
            while not self._stop.wait(self.interval):
                self.meter.sample()
        except (ag.AppleGPUError, OSError):     # __exit__ asks once more, and raises it where it is seen
            pass

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        try:
            self.report = self.meter.end()
        finally:
            if self._own:
                ag.LibraryClose(self.device)


# ---- a command

class Tree:
    """The processes that came from one process, as far as they use the GPU: asks only for those pids' parents."""

    def __init__(self, device: ag.Device, root: int) -> None:
        self.device, self.root = device, root
        self._known: dict[int, bool] = {root: True}

    def __call__(self, snapshot: ag.Snapshot) -> set[int] | None:
        if snapshot.source != "live":
            return None     # the pids of a recording are another machine's
        now = {p.pid for p in snapshot.processes or ()}
        self._known = {pid: mine for pid, mine in self._known.items() if pid in now or pid == self.root}   # pids are reused
        return {pid for pid in now if self._is_mine(pid)}

    def _is_mine(self, pid: int) -> bool:
        if pid not in self._known:
            parent = ag.Try(ag.ProcessGetInfo, self.device, pid).value
            up = 0 if parent is None else parent.parent_pid
            self._known[pid] = up > 1 and up != pid and self._is_mine(up)
        return self._known[pid]


class Child:
    """A command run to its end, with our signals handed on. `start` returns 0, or 126 / 127 as shells do."""

    def __init__(self, command: Sequence[str]) -> None:
        self.command = list(command)
        self.process: subprocess.Popen[bytes] | None = None
        self.ended = threading.Event()
        self.error = ""
        self._before: dict[int, Any] = {}
        self._early: list[int] = []         # signals that came while the child was being made

    def start(self, **named: Any) -> int:
        # Handlers first: a signal between the start of the child and its handler would orphan it.
        for number in FORWARDED:
            self._before[number] = signal.signal(number, self._forward)
        try:
            self.process = subprocess.Popen(self.command, **named)
        except FileNotFoundError:
            self.error = "%s: command not found" % self.command[0]
            return 127
        except OSError as error:
            self.error = "%s: %s" % (self.command[0], error.strerror)
            return 126
        for number in self._early:
            self._forward(number)
        threading.Thread(target=self._wait, name="wait", daemon=True).start()
        return 0

    def _wait(self) -> None:
        assert self.process is not None
        self.process.wait()
        self.ended.set()

    def _forward(self, number: int, frame: Any = None) -> None:
        if number in (signal.SIGINT, getattr(signal, "SIGQUIT", None)) and _terminal_sends_it():
            return      # the terminal has sent it to the child already; twice would be Ctrl-C twice
        if self.process is None:
            self._early.append(number)
        elif self.process.poll() is None:
            try:
                self.process.send_signal(number)
            except ProcessLookupError:
                pass

    def restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    @property
    def code(self) -> int:
        """The child's exit code; 128 + n when signal n ended it, as shells say it."""
        assert self.process is not None
        code = self.process.returncode
        return 128 - code if code < 0 else code


def _terminal_sends_it() -> bool:
    """We are in the foreground of a terminal, so Ctrl-C reaches the child without us."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)


def run_command(device: ag.Device, command: Sequence[str], interval: float = 1.0,
                on_sample: Callable[[ag.Snapshot, float], None] | None = None, capture: str | None = None,
                parts: Sequence[str] = PARTS) -> tuple[int, Report | None]:
    """Run a command and measure meanwhile: (exit code, report). 127: not found, and no report.

    A figure that fails never ends the command. capture: a file for a copy of the child's stdout and stderr.
    """
    child = Child(command)
    tree = Tree(device, -1)
    meter = Meter(device, tree, on_sample, parts)
    meter.begin()
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} if capture else {}
    copy = open(capture, "wb", buffering=0) if capture else None        # before the command, which would go on alone
    try:
        failed = child.start(**pipes)
        if failed:
            if copy is not None:
                copy.close()
            tell(child.error)
            return failed, None
        assert child.process is not None
        tree.root = child.process.pid
        tree._known[tree.root] = True
        copiers = _copy_to(child.process, copy) if copy is not None else []
        trouble = _watch(child, meter, interval)
        for copier in copiers:
            copier.join(2.0)
        if trouble:
            tell("measuring stopped: %s" % trouble)
        try:
            return child.code, meter.end()
        except (ag.AppleGPUError, OSError) as error:
            tell("not measured: %s" % error)
            return child.code, None
    finally:
        child.restore()


def _watch(child: Child, meter: Meter, interval: float) -> Exception | None:
    """Sample until the child ends; what went wrong with the samples, if anything."""
    trouble: Exception | None = None
    due = time.monotonic() + min(0.2, interval)        # a first look early, for commands that are soon done
    while not child.ended.wait(max(0.0, due - time.monotonic())):
        due = max(due + interval, time.monotonic())
        if trouble is None:
            try:
                meter.sample()
            except (ag.AppleGPUError, OSError) as error:     # a full disk or an ended recording must not end the command
                trouble = error
    return trouble


def _copy_to(process: subprocess.Popen[bytes], copy: Any) -> list[threading.Thread]:
    """Hand on both of its outputs as they come, each to ours, and copy both into one file, line by line; then close it."""
    lock, left, failed = threading.Lock(), [2], [False]

    def keep(data: bytes) -> None:
        with lock:
            try:
                if not failed[0]:
                    copy.write(data)
            except OSError as error:    # a full disk, said once; the child must not block on a full pipe
                failed[0], error.filename = True, copy.name
                tell(sentence(error))

    def work(source: Any, sink: Any) -> None:
        shown, begun = True, b""
        with source:
            for chunk in iter(lambda: source.read1(65536), b""):
                try:
                    if shown:
                        sink.write(chunk)
                        sink.flush()
                except OSError:
                    shown = False       # nobody reads us any more: likewise
                lines, newline, begun = (begun + chunk).rpartition(b"\n")
                if len(begun) > 65536:      # a progress bar that never ends its line
                    lines, newline, begun = lines + newline + begun, b"", b""
                keep(lines + newline)
        keep(begun)
        with lock:
            left[0] -= 1
            if not left[0]:
                copy.close()
    threads = [threading.Thread(target=work, args=pair, name="copy", daemon=True)
               for pair in ((process.stdout, sys.stdout.buffer), (process.stderr, sys.stderr.buffer))]
    for thread in threads:
        thread.start()
    return threads
