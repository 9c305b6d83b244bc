"""pyapplegpu: what pynvml is to NVIDIA, for Apple silicon. One file, standard library only, no sudo, no subprocess.

    import pyapplegpu as ag

    ag.LibraryInit()                                  # or LibraryInit(recording="mac.json"), on any OS
    gpu = ag.LibraryInitDeviceByIndex(0)
    print(ag.DeviceGetName(gpu))                      # Apple M4 Max
    print(ag.DeviceGetUtilization(gpu))               # 63        percent of the last second
    print(ag.MemoryGetUsed(gpu), ag.MemoryGetTotal(gpu))    # bytes in use by every process, bytes the GPU may use
    print(ag.DeviceGetPowerUsage(gpu), ag.AneGetPower(gpu)) # milliwatts
    print(ag.Try(ag.DeviceGetTemperature, gpu))       # Reading(value=None, reason='gpu_asleep', ...) instead of an error
    print(ag.DeviceGetSnapshot(gpu).to_dict())        # everything at once, a value or a reason for each figure

Promise: a function returns what the Mac measured, or raises a typed error that says what is missing and why. Nothing is
guessed, nothing missing is 0; an estimate says that it is one. Importing this file loads no framework and works everywhere.

Units: percent int 0-100, ratio float 0-1, power int mW, energy int mJ, clock int MHz, temperature float degrees Celsius,
memory int bytes, bandwidth float bytes/s, time float s. Fields of results carry their unit in their name.

Errors: AppleGPUError is the base (NVMLError is the same object), one subclass per NVML code; `.reason` is a REASON_*
constant, `.source` names the interface, `.detail` what happened. NotSupported: this Mac, macOS or part has no such figure.
NotReady: a second sample is needed, or the driver's counter stands still. NoData: the part is off. NoPermission: another
user's process, or a sandbox.

Run as a program it is to a Mac what nvidia-smi is to an NVIDIA machine: python3 pyapplegpu.py --help.

Contents, each section using only the ones above it:
    constants   errors   values   prototypes   bridge   sources   recording   decoders   chips   engine
    API (Library* Device* Memory* Ane* Cpu* Vpu* Process* System*)   Metal   NVML names   main
"""
from __future__ import annotations

import ctypes
import os
import struct
import sys
import time
from _operator import index as _index
from _operator import itemgetter, mul, sub
from _thread import RLock, _local, allocate_lock, get_ident  # noqa: F401
from _weakref import ref as _weak       # what weakref would give, without the 0.5 ms of the rest of it
from _weakrefset import WeakSet

TYPE_CHECKING = False
if TYPE_CHECKING:
    from array import array
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from functools import partial
    from typing import Any, NamedTuple, NoReturn, TypeVar

    _Pure = TypeVar("_Pure", bound=Callable[..., Any])
    _Shape = Callable[[Any], Any]       # of an untrusted value; reads it, or raises what is wrong with it
    _Field = tuple[str, str, str, str]  # a row of _query_table: heading, source, unit, what it is

if not TYPE_CHECKING:
    def array(code, values):
        """array.array, imported at its first use: it brings collections along, a fifth of what importing this file costs."""
        global array
        from array import array
        return array(code, values)

    def partial(function, *limits):
        """functools.partial, likewise."""
        global partial
        from _functools import partial
        return partial(function, *limits)

__version__ = "0.1.0"


# ======================================================================================================================
# constants
# ======================================================================================================================

# Error codes have NVML's numbers, so that one exception tree serves both sets of names.
ERROR_UNINITIALIZED = 1
ERROR_INVALID_ARGUMENT = 2
ERROR_NOT_SUPPORTED = 3
ERROR_NO_PERMISSION = 4
ERROR_NOT_FOUND = 6
ERROR_INSUFFICIENT_SIZE = 7
ERROR_TIMEOUT = 10
ERROR_LIBRARY_NOT_FOUND = 12
ERROR_FUNCTION_NOT_FOUND = 13
ERROR_GPU_IS_LOST = 15
ERROR_OPERATING_SYSTEM = 17
ERROR_MEMORY = 20
ERROR_NO_DATA = 21
ERROR_NOT_READY = 27
ERROR_UNKNOWN = 999

# Why a figure is missing: `AppleGPUError.reason`, `Snapshot.reasons[field]`, `Reading.reason`.
REASON_CHIP = "chip"                        # this chip has no such counter, sensor or table
REASON_MACOS = "macos"                      # this macOS does not offer it, or refuses it to everybody
REASON_PERMISSION = "permission"            # another user's process
REASON_SANDBOX = "sandbox"                  # the App Sandbox hides it
REASON_VIRTUAL_MACHINE = "virtual_machine"  # a guest sees no power, clock or sensor
REASON_NO_SUCH_PART = "no_such_part"        # no fan, no battery, no such cluster or engine
REASON_GPU_ASLEEP = "gpu_asleep"            # off for the whole interval: it has no clock, and often no temperature
REASON_CPU_ASLEEP = "cpu_asleep"            # the cluster was off for the whole interval
REASON_FIRST = "first"                      # a rate needs a second sample
REASON_SLEPT = "slept"                      # the Mac slept; a new interval has begun
REASON_RESET = "reset"                      # a counter fell or jumped; a new interval has begun
REASON_SLOW = "slow"                        # the driver publishes, but too rarely for this window
REASON_STALE = "stale"                      # the driver has published nothing for too long
REASON_FROZEN = "frozen"                    # the driver publishes a zero that cannot be
REASON_ABSENT = "absent"                    # no data in this sample
REASON_SOURCE_FAILED = "source_failed"      # the system call failed
REASON_FORKED_CHILD = "forked_child"        # Objective-C cannot be used after fork; use spawn
REASON_RECORDING = "recording"              # the recording ended, or does not hold it
REASON_NO_LIMIT = "no_limit"                # no cap is set
REASON_NOT_ASKED = "not_asked"              # a snapshot part that was not asked for

PARTS = ("gpu", "memory", "power", "clocks", "temperature", "bandwidth", "ane", "cpu", "media", "processes", "system")
RAILS = ("gpu", "gpu_sram", "cpu", "ane", "dram", "encode", "decode")      # energy counters, each the sum of its dies
AGENTS = ("gpu", "cpu", "ane", "media", "display", "io")                   # who moves bytes to and from DRAM
ENGINES = ("encode", "decode", "prores")                                   # video engines

ANE_METHOD_FLOOR = "soc_floor"          # share of time the ANE held a fabric floor (PMP, SOC Floor, ANE-AF-BW)
ANE_METHOD_IOP = "iop_state"            # share of time its controller was Running (group ANE)
ANE_METHOD_POWER_STATE = "power_state"  # its driver's power state now, 0 or 100 (H11ANEIn)
ANE_METHOD_POWER = "power"              # its power of an assumed 8 W a die

THERMAL_PRESSURE = ("nominal", "moderate", "heavy", "trapping", "sleeping")     # OSThermalPressureLevel on macOS
MEMORY_PRESSURE = {1: "normal", 2: "warning", 4: "critical"}                    # kern.memorystatus_vm_pressure_level

TOPOLOGY_INTERNAL = 0       # DeviceGetTopologyLevel: the same chip (dies of an Ultra are one device)
TOPOLOGY_SYSTEM = 50        # different devices of one machine
P2P_STATUS_OK = 0
P2P_STATUS_NOT_SUPPORTED = 5

INT64_MIN = -(1 << 63)      # IOReport's "no data"


# ======================================================================================================================
# errors
# ======================================================================================================================

_ADVICE = {     # said when the raiser has nothing more exact to say
    REASON_CHIP: "this chip does not publish it",
    REASON_MACOS: "this macOS does not offer it",
    REASON_PERMISSION: "it belongs to another user's process",
    REASON_SANDBOX: "the App Sandbox hides it; run unsandboxed",
    REASON_VIRTUAL_MACHINE: "a virtual machine does not see it",
    REASON_NO_SUCH_PART: "this Mac has no such part",
    REASON_GPU_ASLEEP: "the GPU was off for the whole interval",
    REASON_CPU_ASLEEP: "the cluster was off for the whole interval",
    REASON_FIRST: "a rate needs a second sample; call again, or give a timeout",
    REASON_SLEPT: "the Mac slept; call again in a moment",
    REASON_RESET: "the counter started again; call again in a moment",
    REASON_SLOW: "the driver publishes too rarely for this window; pass a longer window",
    REASON_STALE: "the driver has published nothing new",
    REASON_FROZEN: "the driver publishes a zero that cannot be true",
    REASON_ABSENT: "the driver gave no data this time",
    REASON_SOURCE_FAILED: "the system call failed",
    REASON_FORKED_CHILD: "Objective-C does not work in a forked child; start processes with spawn",
    REASON_RECORDING: "the recording does not hold it",
    REASON_NO_LIMIT: "no limit is set",
    REASON_NOT_ASKED: "the snapshot was not asked for it",
}


class AppleGPUError(Exception):
    """Base of every error here; `NVMLError` is the same object.

    `AppleGPUError(code)` gives the subclass of that code. Attributes: `value` and `code` (NVML's number), `reason` (a
    REASON_* constant or None), `source` (for example "ioreport:Energy Model", or None), `detail` (what happened, or None).
    """

    value = ERROR_UNKNOWN
    _valClassMapping: dict[int, type[AppleGPUError]] = {}
    _errcode_to_string: dict[int, str] = {}

    def __new__(cls, value: int | None = None, reason: str | None = None, source: str | None = None,
                detail: str | None = None) -> AppleGPUError:
        if cls is AppleGPUError and value is not None:
            cls = cls._valClassMapping.get(value, cls)
        return Exception.__new__(cls)

    def __init__(self, value: int | None = None, reason: str | None = None, source: str | None = None,
                 detail: str | None = None) -> None:
        Exception.__init__(self)
        # a class of one code keeps it, whatever a client gives its constructor
        self.value = value if isinstance(value, int) and type(self).value == ERROR_UNKNOWN else type(self).value
        self.reason = reason
        self.source = source
        self.detail = detail

    @property
    def code(self) -> int:
        """NVML's number of this error; the same as `value`."""
        return self.value

    def __str__(self) -> str:
        text = self._errcode_to_string.get(self.value, "NVML Error with code %d" % self.value)
        why = self.detail or _ADVICE.get(self.reason or "", "")
        where = " [%s]" % self.source if self.source else ""
        return text + (": " + why if why else "") + where

    def __repr__(self) -> str:
        return "%s(%r)" % (type(self).__name__, str(self))

    def _key(self) -> tuple[Any, ...]:
        return (type(self).__name__, self.value, self.reason, self.source, self.detail)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AppleGPUError) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.value, self.reason, self.source, self.detail)


NVMLError = AppleGPUError


# Named NVMLError_* in their __name__ too: some hosts look for "nvml" in the class name of what they caught.
class NVMLError_Uninitialized(AppleGPUError): value = 1                  # noqa: E701
class NVMLError_InvalidArgument(AppleGPUError): value = 2                # noqa: E701
class NVMLError_NotSupported(AppleGPUError): value = 3                   # noqa: E701
class NVMLError_NoPermission(AppleGPUError): value = 4                   # noqa: E701
class NVMLError_AlreadyInitialized(AppleGPUError): value = 5             # noqa: E701
class NVMLError_NotFound(AppleGPUError): value = 6                       # noqa: E701
class NVMLError_InsufficientSize(AppleGPUError): value = 7               # noqa: E701
class NVMLError_InsufficientPower(AppleGPUError): value = 8              # noqa: E701
class NVMLError_DriverNotLoaded(AppleGPUError): value = 9                # noqa: E701
class NVMLError_Timeout(AppleGPUError): value = 10                       # noqa: E701
class NVMLError_IrqIssue(AppleGPUError): value = 11                      # noqa: E701
class NVMLError_LibraryNotFound(AppleGPUError): value = 12               # noqa: E701
class NVMLError_FunctionNotFound(AppleGPUError): value = 13              # noqa: E701
class NVMLError_CorruptedInforom(AppleGPUError): value = 14              # noqa: E701
class NVMLError_GpuIsLost(AppleGPUError): value = 15                     # noqa: E701
class NVMLError_ResetRequired(AppleGPUError): value = 16                 # noqa: E701
class NVMLError_OperatingSystem(AppleGPUError): value = 17               # noqa: E701
class NVMLError_LibRmVersionMismatch(AppleGPUError): value = 18          # noqa: E701
class NVMLError_InUse(AppleGPUError): value = 19                         # noqa: E701
class NVMLError_Memory(AppleGPUError): value = 20                        # noqa: E701
class NVMLError_NoData(AppleGPUError): value = 21                        # noqa: E701
class NVMLError_VgpuEccNotSupported(AppleGPUError): value = 22           # noqa: E701
class NVMLError_InsufficientResources(AppleGPUError): value = 23         # noqa: E701
class NVMLError_FreqNotSupported(AppleGPUError): value = 24              # noqa: E701
class NVMLError_ArgumentVersionMismatch(AppleGPUError): value = 25       # noqa: E701
class NVMLError_Deprecated(AppleGPUError): value = 26                    # noqa: E701
class NVMLError_NotReady(AppleGPUError): value = 27                      # noqa: E701
class NVMLError_GpuNotFound(AppleGPUError): value = 28                   # noqa: E701
class NVMLError_InvalidState(AppleGPUError): value = 29                  # noqa: E701
class NVMLError_ResetTypeNotSupported(AppleGPUError): value = 30         # noqa: E701
class NVMLError_Unknown(AppleGPUError): value = 999                      # noqa: E701


AppleGPUError_Uninitialized = NVMLError_Uninitialized
AppleGPUError_InvalidArgument = NVMLError_InvalidArgument
AppleGPUError_NotSupported = NVMLError_NotSupported
AppleGPUError_NoPermission = NVMLError_NoPermission
AppleGPUError_NotFound = NVMLError_NotFound
AppleGPUError_InsufficientSize = NVMLError_InsufficientSize
AppleGPUError_Timeout = NVMLError_Timeout
AppleGPUError_LibraryNotFound = NVMLError_LibraryNotFound
AppleGPUError_FunctionNotFound = NVMLError_FunctionNotFound
AppleGPUError_GpuIsLost = NVMLError_GpuIsLost
AppleGPUError_OperatingSystem = NVMLError_OperatingSystem
AppleGPUError_Memory = NVMLError_Memory
AppleGPUError_NoData = NVMLError_NoData
AppleGPUError_NotReady = NVMLError_NotReady
AppleGPUError_Unknown = NVMLError_Unknown

AppleGPUError._valClassMapping = {c.value: c for c in AppleGPUError.__subclasses__()}
AppleGPUError._errcode_to_string = {
    1: "Uninitialized", 2: "Invalid Argument", 3: "Not Supported", 4: "Insufficient Permissions", 5: "Already Initialized",
    6: "Not Found", 7: "Insufficient Size", 8: "Insufficient External Power", 9: "Driver Not Loaded", 10: "Timeout",
    11: "Interrupt Request Issue", 12: "Apple GPU Not Found", 13: "Function Not Found", 14: "Corrupted infoROM",
    15: "GPU is lost", 16: "GPU requires restart", 17: "The operating system refused the call",
    18: "Version mismatch", 19: "In Use", 20: "Insufficient Memory", 21: "No data", 22: "Not Supported on a virtual GPU",
    23: "Insufficient Resources", 24: "Frequency Not Supported", 25: "Argument version mismatch", 26: "Deprecated",
    27: "Not Ready", 28: "No GPU was found", 29: "Invalid state",
    30: "Reset Type Not Supported", 999: "Unknown Error",
}


def _fail(code: int, reason: str | None = None, source: str | None = None, detail: str | None = None) -> AppleGPUError:
    """The error of `code`, ready to raise."""
    return AppleGPUError(code, reason, source, detail)


def _bad(detail: str) -> AppleGPUError:
    """The error for a wrong argument, ready to raise."""
    return AppleGPUError(ERROR_INVALID_ARGUMENT, detail=detail)


# ======================================================================================================================
# values
# ======================================================================================================================

if not TYPE_CHECKING:
    try:        # what collections.namedtuple uses: smaller and faster than a property
        from _collections import _tuplegetter
    except ImportError:
        def _tuplegetter(index, doc):
            return property(itemgetter(index), doc=doc)

    class _Fields(type):
        """Makes NamedTuple below: typing and collections would cost more start-up than the rest of this file."""

        def __new__(meta, name, bases, body):
            body.setdefault("__slots__", ())
            cls = type.__new__(meta, name, bases, body)
            cls._fields = tuple(cls.__annotations__) if bases != (tuple,) else ()
            cls._field_defaults = {f: body[f] for f in cls._fields if f in body}
            cls._ends = {len(cls._fields) - n: tuple(cls._field_defaults.values())[-n:] for n in range(1, len(cls._field_defaults) + 1)}
            for i, field in enumerate(cls._fields):
                setattr(cls, field, _tuplegetter(i, None))
            return cls

    class NamedTuple(tuple, metaclass=_Fields):
        def __new__(cls, *args, **named):
            if named or len(args) != len(cls._fields):
                end = None if named else cls._ends.get(len(args))       # the usual case: the last fields have defaults
                args = cls._fill(args, named) if end is None else args + end
            return tuple.__new__(cls, args)

        @classmethod
        def _fill(cls, args, named):
            values = dict(cls._field_defaults)
            values.update(zip(cls._fields, args))
            values.update(named)
            if len(args) > len(cls._fields) or set(values) != set(cls._fields):
                raise TypeError("%s takes the fields %s" % (cls.__name__, ", ".join(cls._fields)))
            return [values[f] for f in cls._fields]

        def _asdict(self):
            return dict(zip(self._fields, self))

        def _replace(self, **named):
            values = [named.pop(f, v) for f, v in zip(self._fields, self)]
            if named:
                raise TypeError("%s has no field %s" % (type(self).__name__, ", ".join(named)))
            return tuple.__new__(type(self), values)

        def __getnewargs__(self):
            return tuple(self)

        def __repr__(self):
            return "%s(%s)" % (type(self).__name__, ", ".join("%s=%r" % pair for pair in zip(self._fields, self)))


class Reading(NamedTuple):
    """What Try returns: a value, or the reason why there is none."""
    value: Any
    reason: str | None              # a REASON_* constant when value is None
    age_s: float | None             # how old the newest thing measured is
    interval_s: float | None        # the span a rate was measured over
    message: str | None = None      # the sentence of the error


class EngineUtilization(NamedTuple):
    """The driver's own instantaneous percentages (IOAccelerator PerformanceStatistics)."""
    device_percent: int
    renderer_percent: int
    tiler_percent: int


class StateResidency(NamedTuple):
    """Share of the interval spent in one DVFS state; mhz is None for an idle state or one beyond the table."""
    name: str
    mhz: int | None
    ratio: float


class TemperatureSensor(NamedTuple):
    key: str                        # of the SMC ("Tg05"), or the product name of a HID sensor
    celsius: float


class ThrottleState(NamedTuple):
    """What holds the GPU back; a part this chip does not publish is None."""
    cltm_ratio: float | None        # share of time closed-loop thermal management limited the clock (GPU_CLTM)
    ppm_percent: float | None       # power budget granted, of the GPU's maximum (GPU_PPM)
    thermal_pressure: int | None    # index into THERMAL_PRESSURE


class GpuProcess(NamedTuple):
    """One process that uses the GPU. gpu_percent is None before a second sample and may exceed 100."""
    pid: int
    name: str                       # the driver cuts it to 16 characters
    gpu_time_ns: int
    gpu_percent: float | None
    footprint_bytes: int | None     # None for another user's process: macOS tells nobody but root
    is_self: bool


class Headroom(NamedTuple):
    """What the GPU may still take: max(0, min(available RAM, limit - in use)), with its terms."""
    headroom_bytes: int
    available_bytes: int
    limit_bytes: int
    in_use_bytes: int


class Bandwidth(NamedTuple):
    bytes_per_s: float
    estimated: bool                 # from histograms, not from byte counters
    saturated: bool                 # over 1 % of the time in the highest bucket: the truth is higher


class AneUtilization(NamedTuple):
    """An estimate by nature: Apple publishes no ANE utilisation. `method` is an ANE_METHOD_* constant."""
    percent: int
    method: str


class VpuUtilization(NamedTuple):
    """An estimate by nature: Apple publishes no utilisation of its video engines."""
    percent: int
    method: str                     # "bandwidth" (of an assumed 7 GB/s) or "histogram" (time above the lowest bucket)


class AneState(NamedTuple):
    """The driver's power state, the highest of all ANEs (H11ANEIn IOPowerManagement)."""
    power_state: int
    max_power_state: int
    engines: int                    # 2 on an Ultra


class Footprint(NamedTuple):
    """Memory of a process as Activity Monitor counts it; GPU and MLX buffers are in it."""
    now_bytes: int
    peak_bytes: int
    ane_bytes: int | None           # None before macOS 13


class ProcessInfo(NamedTuple):
    pid: int
    name: str
    path: str | None                # None where macOS does not tell it
    parent_pid: int
    uid: int


class Fan(NamedTuple):
    rpm: int
    min_rpm: int | None
    max_rpm: int | None
    percent: int | None             # of the fan's own maximum


class CpuCluster(NamedTuple):
    """One CPU cluster in a snapshot; a missing figure is None and its reason stands in `reasons`."""
    name: str                       # ECPU, PCPU, PCPU1, MCPU0, DIE_1_PCPU ...
    core_type: str                  # Efficiency, Performance, Super
    cores: int | None
    clock_mhz: int | None
    max_clock_mhz: int | None
    active_ratio: float | None      # residency outside idle states
    utilization_percent: int | None     # scheduler ticks, as Activity Monitor
    power_mw: int | None
    reasons: dict[str, str]


class PowerSource(NamedTuple):
    source: str                     # "AC Power" or "Battery Power"
    battery_percent: int | None     # the rest is None where there is no battery
    charging: bool | None
    battery_power_mw: int | None    # positive into the battery
    cycle_count: int | None
    battery_celsius: float | None


class SwapInfo(NamedTuple):
    total_bytes: int
    used_bytes: int
    free_bytes: int


class MemoryPressure(NamedTuple):
    level: str                      # normal, warning, critical: the kernel's own judgement
    available_percent: int          # kern.memorystatus_level


class MemoryInfo(NamedTuple):
    """Main memory. used = app + wired + compressed, as Activity Monitor; available = total - used."""
    total_bytes: int
    used_bytes: int
    available_bytes: int
    available_psutil_bytes: int     # inactive + free, psutil's figure
    app_bytes: int
    wired_bytes: int
    active_bytes: int
    inactive_bytes: int
    compressed_bytes: int
    cached_bytes: int
    free_bytes: int


class SourceReport(NamedTuple):
    """One line of LibraryDiagnose."""
    source: str
    ok: bool
    reason: str | None
    detail: str
    seconds: float


class Delta(NamedTuple):
    """What happened between two snapshots of one device; a figure that cannot be had is None, its reason in `reasons`."""
    seconds: float
    joules: dict[str, float | None]             # per rail of RAILS
    uncertainty_joules: dict[str, float | None]     # mean power x time from the ends to their nearest publications
    gpu_active_s: float | None
    gpu_time_s: dict[int, float]                # per pid
    read_bytes: float | None
    write_bytes: float | None
    reasons: dict[str, str]
    spans_s: dict[str, float | None] = {}       # per rail: what its joules cover; joules / span is its mean power


# ======================================================================================================================
# prototypes
# ======================================================================================================================

# From macOS 11 on these files exist only in the dyld shared cache: dlopen finds them, os.path.exists does not.
_LIBRARIES = {
    "System": "/usr/lib/libSystem.B.dylib",
    "CoreFoundation": "/System/Library/Frameworks/CoreFoundation.framework/CoreFoundation",
    "CoreGraphics": "/System/Library/Frameworks/CoreGraphics.framework/CoreGraphics",
    "Foundation": "/System/Library/Frameworks/Foundation.framework/Foundation",
    "IOKit": "/System/Library/Frameworks/IOKit.framework/IOKit",
    "IOReport": "/usr/lib/libIOReport.dylib",
    "Metal": "/System/Library/Frameworks/Metal.framework/Metal",
    "objc": "/usr/lib/libobjc.A.dylib",
}

# Every C function in use: symbol -> (library, result, arguments, first macOS).
# A library marked ! is called with the GIL held. Those calls take well under a microsecond, and a sample makes hundreds
# of them: giving the GIL away at each would make a sample of a threaded program wait for its other threads as often.
# Letters: v nothing, p pointer (an int, or byref), s char*, B Boolean, i int32, I uint32 and ports, q int64, Q uint64,
# d double. Who owns: a result C (CoreFoundation), O (Objective-C) or E (registry entry or iterator) is ours to release;
# p is borrowed, or kept for the life of the process. An argument M is a CoreFoundation object that the callee releases.
_PROTOTYPES: dict[str, tuple[str, str, str, int]] = {
    "CFRelease": ("CoreFoundation", "v", "p", 10),
    "CFGetTypeID": ("CoreFoundation!", "Q", "p", 10),
    "CFStringGetTypeID": ("CoreFoundation!", "Q", "", 10),
    "CFStringCreateWithCString": ("CoreFoundation!", "C", "psI", 10),
    "CFStringGetLength": ("CoreFoundation!", "q", "p", 10),
    "CFStringGetMaximumSizeForEncoding": ("CoreFoundation!", "q", "qI", 10),
    "CFStringGetCString": ("CoreFoundation!", "B", "ppqI", 10),
    "CFNumberGetTypeID": ("CoreFoundation!", "Q", "", 10),
    "CFNumberCreate": ("CoreFoundation!", "C", "pqp", 10),
    "CFNumberIsFloatType": ("CoreFoundation!", "B", "p", 10),
    "CFNumberGetValue": ("CoreFoundation!", "B", "pqp", 10),
    "CFBooleanGetTypeID": ("CoreFoundation!", "Q", "", 10),
    "CFBooleanGetValue": ("CoreFoundation!", "B", "p", 10),
    "CFDataGetTypeID": ("CoreFoundation!", "Q", "", 10),
    "CFDataGetLength": ("CoreFoundation!", "q", "p", 10),
    "CFDataGetBytePtr": ("CoreFoundation!", "p", "p", 10),
    "CFArrayGetTypeID": ("CoreFoundation!", "Q", "", 10),
    "CFArrayGetCount": ("CoreFoundation!", "q", "p", 10),
    "CFArrayGetValueAtIndex": ("CoreFoundation!", "p", "pq", 10),
    "CFArrayCreateMutable": ("CoreFoundation!", "C", "pqp", 10),
    "CFArrayAppendValue": ("CoreFoundation!", "v", "pp", 10),
    "CFDictionaryGetTypeID": ("CoreFoundation!", "Q", "", 10),
    "CFDictionaryGetCount": ("CoreFoundation!", "q", "p", 10),
    "CFDictionaryGetValue": ("CoreFoundation!", "p", "pp", 10),
    "CFDictionaryGetKeysAndValues": ("CoreFoundation!", "v", "ppp", 10),
    "CFDictionaryCreateMutable": ("CoreFoundation!", "C", "pqpp", 10),
    "CFPropertyListCreateData": ("CoreFoundation!", "C", "ppqQp", 10),
    "CFDictionarySetValue": ("CoreFoundation!", "v", "ppp", 10),

    "IOObjectRelease": ("IOKit", "i", "I", 10),
    "IOObjectGetClass": ("IOKit", "i", "Ip", 10),
    "IOServiceMatching": ("IOKit", "C", "s", 10),
    "IOServiceNameMatching": ("IOKit", "C", "s", 10),
    "IOServiceGetMatchingServices": ("IOKit", "i", "IMp", 10),
    "IOIteratorNext": ("IOKit", "E", "I", 10),
    "IOIteratorIsValid": ("IOKit", "i", "I", 10),
    "IOIteratorReset": ("IOKit", "v", "I", 10),
    "IORegistryEntryGetRegistryEntryID": ("IOKit", "i", "Ip", 10),
    "IORegistryEntryInPlane": ("IOKit", "i", "Is", 10),
    "IORegistryEntryCreateCFProperty": ("IOKit", "C", "IppI", 10),
    "IORegistryEntryGetChildIterator": ("IOKit", "i", "Isp", 10),
    "IOServiceClose": ("IOKit", "i", "I", 10),
    "IOServiceOpen": ("IOKit", "i", "IIIp", 10),
    "IOConnectCallStructMethod": ("IOKit", "i", "IIpQpp", 10),
    "IOHIDEventSystemClientCreate": ("IOKit", "C", "p", 10),            # kept in _c.kept
    "IOHIDEventSystemClientSetMatching": ("IOKit", "v", "pp", 10),
    "IOHIDEventSystemClientCopyServices": ("IOKit", "C", "p", 10),
    "IOHIDServiceClientCopyProperty": ("IOKit", "C", "pp", 10),
    "IOHIDServiceClientCopyEvent": ("IOKit", "C", "pqiq", 10),
    "IOHIDEventGetFloatValue": ("IOKit", "d", "pi", 10),
    "IOPSCopyPowerSourcesInfo": ("IOKit", "C", "", 10),
    "IOPSGetProvidingPowerSourceType": ("IOKit", "p", "p", 10),

    "IOReportCopyChannelsInGroup": ("IOReport", "C", "ppQQQ", 11),
    "IOReportCreateSubscription": ("IOReport", "C", "pppQp", 11),       # kept in _c.kept: releasing one has crashed
    "IOReportCreateSamples": ("IOReport", "C", "ppp", 11),
    "IOReportChannelGetGroup": ("IOReport!", "p", "p", 11),
    "IOReportChannelGetSubGroup": ("IOReport!", "p", "p", 11),
    "IOReportChannelGetChannelName": ("IOReport!", "p", "p", 11),
    "IOReportChannelGetUnitLabel": ("IOReport!", "p", "p", 11),
    "IOReportChannelGetFormat": ("IOReport!", "B", "p", 11),
    "IOReportChannelGetChannelID": ("IOReport!", "Q", "p", 11),
    "IOReportSimpleGetIntegerValue": ("IOReport!", "q", "pp", 11),
    "IOReportStateGetCount": ("IOReport!", "i", "p", 11),
    "IOReportStateGetNameForIndex": ("IOReport!", "p", "pi", 11),
    "IOReportStateGetResidency": ("IOReport!", "q", "pi", 11),
    "IOReportHistogramGetBucketCount": ("IOReport!", "i", "p", 11),
    "IOReportHistogramGetBucketHits": ("IOReport!", "q", "pi", 11),

    "mach_host_self": ("System", "I", "", 10),
    "mach_timebase_info": ("System", "i", "p", 10),
    "host_page_size": ("System", "i", "Ip", 10),
    "host_statistics64": ("System", "i", "Iipp", 10),
    "host_processor_info": ("System", "i", "Iippp", 10),
    "vm_deallocate": ("System", "i", "IQQ", 10),
    "sysctlbyname": ("System", "i", "spppQ", 10),
    "proc_listallpids": ("System", "i", "pi", 10),
    "proc_pidinfo": ("System", "i", "iiQpi", 10),
    "proc_pidpath": ("System", "i", "ipI", 10),
    "proc_pid_rusage": ("System", "i", "iip", 10),
    "notify_register_check": ("System", "I", "sp", 10),
    "notify_get_state": ("System", "I", "ip", 10),
    "notify_cancel": ("System", "I", "i", 10),

    "MTLCreateSystemDefaultDevice": ("Metal", "O", "", 10),
    "MTLCopyAllDevices": ("Metal", "O", "", 10),
    "objc_release": ("objc", "v", "p", 10),
    "objc_autoreleasePoolPush": ("objc!", "p", "", 10),
    "objc_autoreleasePoolPop": ("objc", "v", "p", 10),
    "sel_registerName": ("objc", "p", "s", 10),
    "sel_getName": ("objc", "s", "p", 10),
    "object_getClass": ("objc!", "p", "p", 10),
    "objc_retain": ("objc!", "p", "p", 10),                             # borrowed: the count is kept by the bridge
    "objc_getClass": ("objc", "p", "s", 10),
    "objc_getProtocol": ("objc", "p", "s", 10),
    "class_getName": ("objc", "s", "p", 10),
    "class_getSuperclass": ("objc", "p", "p", 10),
    "class_isMetaClass": ("objc", "B", "p", 10),
    "class_getInstanceMethod": ("objc", "p", "pp", 10),
    "class_copyMethodList": ("objc", "p", "pp", 10),
    "class_copyProtocolList": ("objc", "p", "pp", 10),
    "method_getName": ("objc", "p", "p", 10),
    "method_getTypeEncoding": ("objc", "s", "p", 10),
    "_protocol_getMethodTypeEncoding": ("objc", "s", "ppBB", 10),
    "free": ("System", "v", "p", 10),
    "_Block_copy": ("System", "p", "p", 10),
    "_Block_release": ("System", "v", "p", 10),
}

# What owns an owned result: class name -> (ctypes type, the function that releases it), and its result letter.
_OWNERS = {
    "CFObject": (ctypes.c_void_p, "CFRelease"),
    "ObjCObject": (ctypes.c_void_p, "objc_release"),
    "IOObject": (ctypes.c_uint32, "IOObjectRelease"),
    "IOConnection": (ctypes.c_uint32, "IOServiceClose"),
}
_OWNED = {"C": "CFObject", "O": "ObjCObject", "E": "IOObject"}


class _Given(ctypes.c_void_p):
    """Argument letter M: the pointer leaves its owner before the call, so an interruption never frees it twice."""

    @classmethod
    def from_param(cls, owner: Any) -> _Given:
        pointer = cls(owner.value)
        owner.value = None
        return pointer


_LETTERS: dict[str, Any] = {
    "v": None, "p": ctypes.c_void_p, "s": ctypes.c_char_p, "B": ctypes.c_uint8, "i": ctypes.c_int32,
    "I": ctypes.c_uint32, "q": ctypes.c_int64, "Q": ctypes.c_uint64, "d": ctypes.c_double, "M": _Given,
}


def _owner(base: Any, release: Callable[[Any], object]) -> Any:
    """A subclass of `base` that releases what it holds when it goes; not at interpreter exit, nor in a forked child."""
    def __del__(self: Any, exiting: Callable[[], bool] = sys.is_finalizing, getpid: Callable[[], int] = os.getpid,
                born: int = os.getpid()) -> None:
        if self and not exiting() and self.armed and getpid() == born:
            release(self)

    return type("Owned", (base,), {"__slots__": (), "__del__": __del__, "__hash__": object.__hash__, "armed": True})


class _Native:
    """The C functions of _PROTOTYPES as attributes, each bound at its first use, and the owner classes of _OWNERS.

    A missing library or symbol raises NotSupported at that use only. `forked` starts anew and disarms every owner.
    """

    CFObject: Any
    ObjCObject: Any
    IOObject: Any
    IOConnection: Any

    def __init__(self) -> None:
        self.libraries: dict[str, Any] = {}
        self.sends: dict[str, Any] = {}         # objc_msgSend, one function object per signature
        self.strings: dict[str, Any] = {}       # CFStrings of keys: few, and needed again and again
        self.converters: dict[int, Any] = {}    # CFTypeID -> function
        self.lists: dict[bytes, Any] = {}       # property lists as last read: most clients of a GPU are idle
        self.kept: dict[str, Any] = {}          # for the life of the process, one of each, whoever asks
        self.subscriptions: list[Any] = []
        self.owners: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        if name in _OWNERS:
            base, release = _OWNERS[name]
            return self.__dict__.setdefault(name, self.owned(base, getattr(self, release)))
        if name in _PROTOTYPES:
            library, result, arguments, since = _PROTOTYPES[name]
            return self.__dict__.setdefault(name, self._typed(self.symbol(library, name, since), result, arguments))
        raise AttributeError(name)

    def owned(self, base: Any, release: Callable[[Any], object]) -> Any:
        cls = _owner(base, release)
        self.owners.append(cls)
        return cls

    def library(self, name: str) -> Any:
        found = self.libraries.get(name)
        if found is None:
            opener = ctypes.PyDLL if name.endswith("!") else ctypes.CDLL
            path = _LIBRARIES[name.rstrip("!")]
            try:
                found = self.libraries[name] = opener(path, use_errno=True)
            except OSError as error:
                raise _fail(ERROR_NOT_SUPPORTED, REASON_MACOS, name.rstrip("!"), str(error)) from None
        return found

    def symbol(self, library: str, name: str, since: int = 10) -> Any:
        """A function object of our own: `lib["f"]` makes one, where `lib.f` is shared with everybody in the process."""
        opened = self.library(library)
        try:
            return opened[name]
        except AttributeError:
            raise _fail(ERROR_NOT_SUPPORTED, REASON_MACOS, library.rstrip("!"),
                        "%s is missing%s" % (name, " (it came with macOS %d)" % since if since > 10 else "")) from None

    def address(self, library: str, name: str) -> int:
        """Where a data symbol stands."""
        return ctypes.cast(self.symbol(library, name), ctypes.c_void_p).value or 0

    def send(self, result: str, arguments: str = "") -> Any:
        """objc_msgSend for one signature: complete, never variadic (arm64 passes variadic arguments on the stack)."""
        key = result + arguments
        found = self.sends.get(key)
        if found is None:
            found = self.sends[key] = self._typed(self.symbol("objc", "objc_msgSend"), result, "pp" + arguments)
        return found

    def _typed(self, function: Any, result: str, arguments: str) -> Any:
        function.restype = getattr(self, _OWNED[result]) if result in _OWNED else _LETTERS[result]
        function.argtypes = tuple(_LETTERS[letter] for letter in arguments)
        return function

    def forked(self) -> None:
        for cls in self.owners:
            cls.armed = False
        self.__dict__.clear()
        self.__init__()     # type: ignore[misc]


_c = _Native()


# ======================================================================================================================
# bridge
# ======================================================================================================================

def _broken(source: str, detail: str) -> AppleGPUError:
    """The error for a system call that failed, ready to raise."""
    return _fail(ERROR_OPERATING_SYSTEM, REASON_SOURCE_FAILED, source, detail)


_UTF8 = 0x08000100          # kCFStringEncodingUTF8
_SINT64, _FLOAT64 = 4, 6    # CFNumberType


def _cf_made(made: Any, what: str) -> Any:
    if not made:
        raise _broken("CoreFoundation", "no " + what)
    return made


def _cf_string(text: str) -> Any:
    """An owned CFString."""
    return _cf_made(_c.CFStringCreateWithCString(None, text.encode(), _UTF8), "CFString for %r" % text)


def _cf_key(text: str) -> Any:
    """A CFString made once per process; for names that come from this file, not from outside."""
    made = _c.strings.get(text)
    if made is None:
        made = _c.strings.setdefault(text, _cf_string(text))
    return made


def _cf_dictionary(values: Mapping[str, Any]) -> Any:
    """An owned mutable CFDictionary of str, int or already made CF objects; it retains what it holds."""
    callbacks = [_c.address("CoreFoundation", "kCFTypeDictionary%sCallBacks" % part) for part in ("Key", "Value")]
    made = _cf_made(_c.CFDictionaryCreateMutable(None, 0, *callbacks), "CFDictionary")
    for key, value in values.items():
        if isinstance(value, int):
            number = ctypes.byref(ctypes.c_int64(value))
            value = _cf_made(_c.CFNumberCreate(None, _SINT64, number), "CFNumber for %d" % value)
        elif isinstance(value, str):
            value = _cf_string(value)
        _c.CFDictionarySetValue(made, _cf_string(key), value)
    return made


def _cf_array() -> Any:
    """An owned, empty, mutable CFArray that retains what it holds."""
    callbacks = _c.address("CoreFoundation", "kCFTypeArrayCallBacks")
    return _cf_made(_c.CFArrayCreateMutable(None, 0, callbacks), "CFArray")


def _cf_is(kind: str, ref: Any) -> bool:
    """Whether `ref` is a CF<kind>; type numbers differ between releases, so the functions are asked."""
    return bool(ref) and _c.CFGetTypeID(ref) == getattr(_c, "CF%sGetTypeID" % kind)()


def _cf_get(dictionary: Any, key: str, kind: str) -> int | None:
    """The value of `key` if it is a CF<kind>; borrowed, so the dictionary must outlive it."""
    if not _cf_is("Dictionary", dictionary):
        return None
    value: int | None = _c.CFDictionaryGetValue(dictionary, _cf_key(key))
    return value if _cf_is(kind, value) else None


def _cf_items(array: Any) -> list[int]:
    """The elements of a CFArray, borrowed; of anything else none."""
    if not _cf_is("Array", array):
        return []
    return [_c.CFArrayGetValueAtIndex(array, i) for i in range(_c.CFArrayGetCount(array))]


def _cf_to_str(ref: Any) -> str | None:
    """None where the text has no UTF-8 form (a lone surrogate)."""
    size = _c.CFStringGetMaximumSizeForEncoding(_c.CFStringGetLength(ref), _UTF8) + 1
    if not 0 < size <= 1 << 24:
        return None
    text = ctypes.create_string_buffer(size)
    if not _c.CFStringGetCString(ref, text, size, _UTF8):
        return None
    return text.value.decode("utf-8", "replace")


def _cf_to_number(ref: Any) -> int | float | None:
    number: Any = ctypes.c_double() if _c.CFNumberIsFloatType(ref) else ctypes.c_int64()
    kind = _FLOAT64 if isinstance(number, ctypes.c_double) else _SINT64
    return number.value if _c.CFNumberGetValue(ref, kind, ctypes.byref(number)) else None


def _cf_to_bytes(ref: Any) -> bytes:
    length = _c.CFDataGetLength(ref)
    start = _c.CFDataGetBytePtr(ref) if length > 0 else None
    return ctypes.string_at(start, length) if start else b""


def _cf_to_dict(ref: Any) -> dict[Any, Any]:
    count = _c.CFDictionaryGetCount(ref)
    if count <= 0:
        return {}
    keys, values = (ctypes.c_void_p * count)(), (ctypes.c_void_p * count)()
    _c.CFDictionaryGetKeysAndValues(ref, keys, values)
    return {_cf_text(key): _cf_value(value) for key, value in zip(keys, values)}


def _cf_value(ref: Any) -> Any:
    """str, int, float, bool, bytes, list or dict of a CF object; None of NULL and of any other type (a date, a set)."""
    if not ref:
        return None
    if not _c.converters:
        _c.converters = {_c.CFStringGetTypeID(): _cf_to_str, _c.CFNumberGetTypeID(): _cf_to_number,
                         _c.CFBooleanGetTypeID(): lambda one: bool(_c.CFBooleanGetValue(one)),
                         _c.CFDataGetTypeID(): _cf_to_bytes, _c.CFDictionaryGetTypeID(): _cf_to_dict,
                         _c.CFArrayGetTypeID(): lambda one: [_cf_value(item) for item in _cf_items(one)]}
    convert = _c.converters.get(_c.CFGetTypeID(ref))
    return convert(ref) if convert else None


def _cf_read(ref: Any) -> Any:
    """The same as _cf_value in 4 native calls whatever the size, types checked by CoreFoundation: AppUsage or
    PerformanceStatistics would take a hundred, at every reading. Not to be changed: equal readings share one."""
    try:
        data = _c.CFPropertyListCreateData(None, ref, _BINARY, 0, None)
    except NVMLError_NotSupported:
        data = None
    if not data:
        return _cf_value(ref)       # it holds a set, or another odd type
    raw = _cf_to_bytes(data)
    found = _c.lists.get(raw)       # one look: another thread may clear them
    if found is None:
        if len(_c.lists) >= _MOST_LISTS:
            _c.lists.clear()
        found = _c.lists[raw] = _plist(raw)
    return found


_BINARY = 200       # kCFPropertyListBinaryFormat_v1_0
_MOST_LISTS = 64    # as many clients as use a GPU at once, about


def _plist(data: bytes) -> Any:
    """The value of a binary property list; plistlib would cost more to import than this whole file."""
    try:
        if data[:8] != b"bplist00":
            raise ValueError("no binary property list")
        width, size, count, top, table = struct.unpack_from(">6xBBQQQ", data, max(8, len(data) - 32))
        if count > len(data):
            raise ValueError("too many objects")
        places = [int.from_bytes(data[at:at + width], "big") for at in range(table, table + count * width, width)]
        return _plist_object(data, size, places, top, {})
    except (IndexError, ValueError, TypeError, OverflowError, RecursionError, struct.error) as error:
        raise _broken("CoreFoundation", "unreadable property list: %s" % error) from None


def _plist_object(data: bytes, size: int, places: list[int], index: int, known: dict[int, Any]) -> Any:
    """Object `index`; each is decoded once, several may refer to it."""
    if index not in known:
        known[index] = None     # a circle ends here
        at = places[index]
        kind, low = data[at] >> 4, data[at] & 15
        at += 1
        if kind >= 4 and low == 15:     # a count of 15 and more stands in an integer of its own
            width = 1 << (data[at] & 15)
            at, low = at + 1 + width, min(int.from_bytes(data[at + 1:at + 1 + width], "big"), len(data))
        if kind == 5:           # first, as every key is one
            known[index] = data[at:at + low].decode("ascii", "replace")
        elif kind in (10, 13):
            known[index] = _plist_items(data, size, places, kind, at, low, known)
        else:
            known[index] = _plist_scalar(data, kind, at, low)
    return known[index]


def _plist_scalar(data: bytes, kind: int, at: int, low: int) -> Any:
    if kind == 0:
        return {8: False, 9: True}.get(low)
    if kind == 1:       # 8 bytes and more are signed
        return int.from_bytes(data[at:at + (1 << low)], "big", signed=low >= 3)
    if kind == 2:
        return struct.unpack_from(">f" if low == 2 else ">d", data, at)[0]
    if kind == 4:
        return data[at:at + low]
    return data[at:at + 2 * low].decode("utf-16-be", "replace") if kind == 6 else None


def _plist_items(data: bytes, size: int, places: list[int], kind: int, at: int, low: int, known: dict[int, Any]) -> Any:
    if size < 1 or at + low * size > len(data):
        raise ValueError("a container is longer than the list")
    count = low * 2 if kind == 13 else low
    items = [_plist_object(data, size, places, int.from_bytes(data[k:k + size], "big"), known)
             for k in range(at, at + count * size, size)]
    return dict(zip(items[:low], items[low:])) if kind == 13 else items


def _cf_is_other(ref: Any) -> bool:
    """Whether `ref` is an object of a framework's own type, not plain data."""
    return bool(ref) and _cf_value(ref) is None


def _cf_text(ref: Any) -> str | None:
    """The text of a CFString, None of anything else."""
    return _cf_to_str(ref) if _cf_is("String", ref) else None


# ---- Objective-C -----------------------------------------------------------------------------------------------------
# Every method can be called because the runtime itself says what it takes: its type encoding becomes a ctypes prototype
# once, and a Python function that checks and converts arguments is compiled for it at the first use. A selector that
# nothing describes is never sent: an unknown selector, a wrong class or a wrong count would end the process.

_QUALIFIERS = "rnNoORVA"
_KINDS: dict[str, Any] = {
    "v": None, "B": ctypes.c_bool, "c": ctypes.c_byte, "C": ctypes.c_ubyte, "s": ctypes.c_short, "S": ctypes.c_ushort,
    "i": ctypes.c_int, "I": ctypes.c_uint, "l": ctypes.c_int, "L": ctypes.c_uint, "q": ctypes.c_int64,
    "Q": ctypes.c_uint64, "f": ctypes.c_float, "d": ctypes.c_double,
    **dict.fromkeys(("@", "@?", "#", ":", "^", "*"), ctypes.c_void_p)}

# Structs passed by value: layout and field names, which encodings do not hold. The first of a layout serves "{?=...}".
_STRUCTS = {
    "MTLSize": "QQQ width height depth", "MTLOrigin": "QQQ x y z", "MTLRegion": "{QQQ}{QQQ} origin size",
    "MTLSizeAndAlign": "QQ size align", "NSRange": "QQ location length", "MTLScissorRect": "QQQQ x y width height",
    "MTLClearColor": "dddd red green blue alpha", "MTLViewport": "dddddd originX originY width height znear zfar",
    "MTLCoordinate2D": "ff x y", "MTLSamplePosition": "ff x y", "MTLResourceID": "Q _impl", "CGSize": "dd width height",
    "MTLTextureSwizzleChannels": "CCCC red green blue alpha", "MTL4BufferRange": "QQ bufferAddress length",
    "NSOperatingSystemVersion": "qqq majorVersion minorVersion patchVersion",
    "MTLAccelerationStructureSizes": "QQQ accelerationStructureSize buildScratchBufferSize refitScratchBufferSize",
    "MTLVertexAmplificationViewMapping": "II viewportArrayIndexOffset renderTargetArrayIndexOffset"}
_STRUCT_RESULTS = {"accelerationStructureSizesWithDescriptor:": "MTLAccelerationStructureSizes"}

# Signatures of the blocks that Metal takes, for when the protocol's extended encoding cannot be had.
_BLOCKS = {
    "v@?@@": "newLibraryWithSource:options:completionHandler: newLibraryWithStitchedDescriptor:completionHandler: "
             "newLibraryWithDescriptor:completionHandler: newDynamicLibrary:completionHandler: "
             "newDynamicLibraryWithURL:completionHandler: newComputePipelineStateWithFunction:completionHandler: "
             "newComputePipelineStateWithDescriptor:compilerTaskOptions:completionHandler: "
             "newComputePipelineStateWithDescriptor:dynamicLinkingDescriptor:compilerTaskOptions:completionHandler: "
             "newRenderPipelineStateWithDescriptor:completionHandler: "
             "newRenderPipelineStateWithDescriptor:compilerTaskOptions:completionHandler: "
             "newRenderPipelineStateWithDescriptor:dynamicLinkingDescriptor:compilerTaskOptions:completionHandler: "
             "newRenderPipelineStateBySpecializationWithDescriptor:pipeline:completionHandler: "
             "newBinaryFunctionWithDescriptor:compilerTaskOptions:completionHandler: "
             "newMachineLearningPipelineStateWithDescriptor:completionHandler: "
             "newFunctionWithName:constantValues:completionHandler: newFunctionWithDescriptor:completionHandler: "
             "newIntersectionFunctionWithDescriptor:completionHandler:",
    "v@?@@@": "newRenderPipelineStateWithDescriptor:options:completionHandler: "
              "newRenderPipelineStateWithTileDescriptor:options:completionHandler: "
              "newRenderPipelineStateWithMeshDescriptor:options:completionHandler: "
              "newComputePipelineStateWithFunction:options:completionHandler: "
              "newComputePipelineStateWithDescriptor:options:completionHandler:",
    "v@?@": "addScheduledHandler: addCompletedHandler: addPresentedHandler: addFeedbackHandler:",
    "v@?@Q": "notifyListener:atValue:block:",
    "v@?^vQ": "newBufferWithBytesNoCopy:length:options:deallocator:",
    "v@?@@q@": "addLogHandler:",
}

_OWNERSHIP = ("retain", "release", "autorelease", "dealloc")
_VARIADIC = ("WithFormat:", "AppendingFormat:", "appendFormat:", "raise:format:")
_VARIADIC_ENDS = ("WithObjects:", "ObjectsAndKeys:", "keysAndValues:")

# Encoder setters return at once, run no block and wait for nothing: keeping the GIL saves the 5 ms another thread may
# take with each release (measured: 260 times in a program with one busy thread). Never commit, wait, new..., present.
_KEEP_GIL = frozenset((
    "setComputePipelineState:", "setBuffer:offset:atIndex:", "setBufferOffset:atIndex:", "setBytes:length:atIndex:",
    "setTexture:atIndex:", "setSamplerState:atIndex:", "setThreadgroupMemoryLength:atIndex:", "length", "contents",
    "dispatchThreads:threadsPerThreadgroup:", "dispatchThreadgroups:threadsPerThreadgroup:",
    "maxTotalThreadsPerThreadgroup", "threadExecutionWidth", "staticThreadgroupMemoryLength"))


class MetalError(AppleGPUError):
    """An NSError from Metal: `domain`, `code` (the domain's own number), `text`; `value` is ERROR_UNKNOWN."""

    def __init__(self, domain: str = "", code: int = 0, text: str = "") -> None:
        AppleGPUError.__init__(self, ERROR_UNKNOWN, None, domain, text)
        self.domain, self.text, self._code = domain, text, code

    @property
    def code(self) -> int:
        """The error's number within its domain (MTLLibraryError..., MTLCommandBufferError...)."""
        return self._code

    def __str__(self) -> str:
        return "%s [%s %d]" % (self.text, self.domain, self._code) if self.domain else self.text

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.domain, self._code, self.text)


# -- encodings

class _Type(NamedTuple):
    """One type of an encoding, and the ctypes type that carries it."""
    code: str
    kind: Any = None            # None: void
    const: bool = False
    name: str = ""              # the class or protocols of an object, a block's signature, a struct's tag, a target

    @property
    def size(self) -> int:
        return ctypes.sizeof(self.kind) if self.kind else 0

    def layout(self) -> str:
        """A struct's members without names, for example "{QQ}{QQ}" without the outer braces."""
        return getattr(self.kind, "_code", "")


_RECEIVER = _Type("@", ctypes.c_void_p), _Type(":", ctypes.c_void_p)


def _match(text: str, i: int) -> int:
    """Index after the bracket that closes the one at i."""
    depth, quoted = 0, False
    for j in range(i, len(text)):
        c = text[j]
        quoted ^= c == '"'
        if not quoted:
            depth += (c in "{([<") - (c in "})]>")
            if not depth:
                return j + 1
    raise ValueError("unclosed bracket")


def _end(text: str, i: int, named: bool = False) -> int:
    """Index after the type at i; clang writes nothing at all for a vector, so there may be none. `named`: inside a
    struct whose fields have names, where quotes after an object can be its class or the next field."""
    while text[i:i + 1] and text[i] in _QUALIFIERS + "^":
        i += 1
    if text.startswith(("{", "(", "["), i):
        return _match(text, i)
    if text.startswith("@?", i):
        return _match(text, i + 2) if text.startswith("<", i + 2) else i + 2
    if text.startswith('@"', i):
        end = text.index('"', i + 2) + 1
        return end if not named or text.startswith(('"', "}"), end) else i + 1
    return i + (i < len(text) and not text[i].isdigit())


def _split(text: str, named: bool = False) -> Iterator[tuple[str, str]]:
    """The types of an encoding one after the other, each with the number behind it; names of fields are left out."""
    i = 0
    while i < len(text):
        if named and text[i] == '"':
            i = text.index('"', i + 1) + 1
        start, i = i, _end(text, i, named)
        end, i = i, i + text.startswith("-", i)
        while text[i:i + 1].isdigit():
            i += 1
        yield text[start:end], text[end:i]


def _parse_type(text: str) -> _Type:
    """The type that `text` is; ValueError for what ctypes cannot pass faithfully (never a guess)."""
    bare = text.lstrip(_QUALIFIERS)
    qualifiers = text[:len(text) - len(bare)]
    code = "@?" if bare[:2] == "@?" else bare[:1]
    rest, const = bare[len(code):], "r" in qualifiers
    if code == "{" and "A" not in qualifiers:
        return _parse_struct(bare, const)
    if code not in _KINDS or rest and code != "^" and (code, rest[0]) not in (("@", '"'), ("@?", "<")):
        raise ValueError("type %r is not supported" % text[:12])
    return _Type(code, _KINDS[code], const, rest if code == "^" else rest[1:-1])


def _parse_struct(text: str, const: bool) -> _Type:
    tag, equals, body = text[1:-1].partition("=")
    if not equals or "<" in tag or "::" in tag:
        raise ValueError("struct %s cannot be passed by value" % (tag or "?"))
    layout = ""
    for one, digits in _split(body, body[:1] == '"'):
        count = 1
        if one[:1] == "[":
            inner = one[1:-1].lstrip("0123456789")
            count, one = int(one[1:-1 - len(inner)] or 0), inner
        if digits:
            raise ValueError("struct %s has a bit field" % (tag or "?"))
        part = _parse_type(one)
        layout += ("{%s}" % part.layout() if part.code == "{" else part.code[0].replace("^", "*")) * count
    if not layout or "v" in layout:
        raise ValueError("struct %s is incomplete" % (tag or "?"))
    return _Type("{", _layout(layout), const, tag)


def _parse_signature(text: str) -> tuple[_Type, ...]:
    """Result and arguments of a method or block encoding. Frame offsets must agree with the sizes: that finds vectors
    (clang writes nothing at all for one), packed structs and foreign long doubles."""
    types, offsets = [], []
    for one, digits in _split(text):
        types.append(_parse_type(one))
        offsets.append(digits)
    if not types or any(t.code == "v" for t in types[1:]):
        raise ValueError("%r has no types, or a void argument" % text)
    if offsets[0]:          # the size of the frame stands after the result
        for kind, here, after in zip(types[1:], offsets[1:], offsets[2:] + offsets[:1]):
            size = kind.size if kind.code == "{" else max(kind.size, 4)
            if int(after) - int(here) != size:
                raise ValueError("frame offsets of %r do not agree with its types" % text)
    return tuple(types)


def _parse_method(text: str) -> tuple[_Type, ...]:
    """Result and arguments of a method, without the receiver and the selector."""
    types = _parse_signature(text)
    if len(types) < 3 or types[1].code not in "@#" or types[2].code != ":":
        raise ValueError("%r is no method" % text)
    return types[:1] + types[3:]


def _mangle(selector: str) -> str:
    """Python's name of a selector, as in pyobjc: setBuffer:offset:atIndex: is setBuffer_offset_atIndex_."""
    return selector.replace(":", "_")


def _demangle(name: str) -> str:
    bare = name.lstrip("_")
    return name[:len(name) - len(bare)] + bare.replace("_", ":")


def _owns(selector: str) -> bool:
    """Whether the caller owns the result: families alloc, new, copy, mutableCopy, init (clang's rule)."""
    word = selector.lstrip("_")
    return any(word.startswith(family) and not word[len(family):len(family) + 1].islower()
               for family in ("alloc", "new", "copy", "mutableCopy", "init"))


# -- structs

class _Struct(ctypes.Structure):
    """What structs passed by value can do here: they iterate, equal tuples and show their fields."""
    _code = ""              # the layout
    _names: Any = ()

    def __iter__(self) -> Iterator[Any]:
        return (getattr(self, name) for name in self._names)

    def __eq__(self, other: Any) -> Any:
        return tuple(self) == tuple(other) if isinstance(other, (tuple, _Struct)) else NotImplemented

    def __repr__(self) -> str:
        return "%s(%s)" % (type(self).__name__, ", ".join("%s=%r" % (n, getattr(self, n)) for n in self._names))


_structs: dict[str, Any] = {}       # by layout and by name


def _layout(layout: str) -> Any:
    """The ctypes structure of a layout such as "QQQ" or "{QQQ}{QQQ}"; named structs derive from it."""
    if layout not in _structs:
        fields = [("f%d" % n, _layout(part[1:-1]) if part[0] == "{" else _KINDS[part])
                  for n, (part, _) in enumerate(_split(layout))]
        _structs.setdefault(layout, type("Struct", (_Struct,), {
            "_fields_": fields, "_code": layout, "_names": [name for name, _ in fields]}))
    return _structs[layout]


def _struct(name: str) -> Any:
    """A struct of Metal by name (MTLSize, MTLRegion, NSRange, ...), derived from the plain one of its layout."""
    kind = _structs.get(name)
    if kind is None:
        layout, *names = _STRUCTS[name].split(" ")
        base = _layout(layout)
        body: dict[str, Any] = {n: getattr(base, "f%d" % i) for i, n in enumerate(names)}
        if name == "MTLRegion":
            body["origin"] = property(lambda self: _struct("MTLOrigin").from_buffer(self))
            body["size"] = property(lambda self: _struct("MTLSize").from_buffer(self, 24))
        kind = _structs.setdefault(name, type(name, (base,), dict(body, _names=names, _fields_=[])))
    return kind


def _struct_result(one: _Type, selector: str) -> Any:
    """The named struct of a result, else the plain one."""
    layout, tag = one.layout(), one.name.lstrip("_")
    alike = [name for name, row in _STRUCTS.items() if row.split(" ")[0] == layout]
    name = _STRUCT_RESULTS.get(selector) or (tag if tag in _STRUCTS else alike[0] if alike else "")
    return _struct(name) if name else one.kind


# -- the runtime

class _Thread(_local):
    pools: Any = ()         # tokens of the pools open on this thread, outermost first


class _Reference(_weak):      # type: ignore[type-arg]
    """Holds an object's one retain count. Its callback releases: unlike __del__ it runs when nobody can get the object
    from the cache any more."""
    __slots__ = ("pointer",)
    pointer: int            # 0 when the count was given back


class _Runtime:
    """What has been learnt about this program's classes and objects. Made at the first use."""

    def __init__(self) -> None:
        for name in ("Foundation", "CoreGraphics", "Metal"):       # without CoreGraphics there is no device
            _c.library(name)
        # release and pop give the GIL away, because they can run any dealloc; the others take no lock that another
        # thread could hold while it wants the GIL
        self.class_of, self.retain, self.release = _c.object_getClass, _c.objc_retain, _c.objc_release
        self.push, self.pop = _c.objc_autoreleasePoolPush, _c.objc_autoreleasePoolPop
        self.thread = _Thread()
        self.lock: Any = RLock()
        self.exiting = False
        self.cache: dict[int, _Reference] = {}          # pointer -> the weak reference to its one Python object
        self.sweep_at = 1024
        self.classes: dict[int, type[MetalObject]] = {}
        self.prototypes: dict[Any, Any] = {}
        self.methods: dict[Any, Any] = {}
        self.sends: dict[str, Any] = {}                 # of _learn: prepared raw sends by selectors
        self.makers: dict[str, tuple[Any, ...]] = {}    # class name -> the class, and how alloc is sent to it
        self.blocks: dict[int, list[Any]] = {}          # key -> [callable, heap block]
        self.thunks: dict[str, tuple[Any, Any]] = {}    # signature -> (invoke, descriptor)
        self.next_block = 0
        self.conforming: dict[tuple[type, str], bool] = {}
        self.device: Any = None                         # the default one, once asked for
        self.dead_counters = False                      # counter samples that were zeros: do not ask again
        self.harmless = _c.address("System", "getpid")
        self.send = _c.address("objc", "objc_msgSend")
        try:        # only on x86_64: results over 16 bytes go through it, and BOOL is a signed char there
            self.stret = _c.address("objc", "objc_msgSend_stret")
        except AppleGPUError:
            self.stret = 0
        self.described = self._description_of()

    def _description_of(self) -> Callable[[int, int, bool, bool], bytes | None]:
        """protocol method -> its encoding. The first choice alone names classes and block signatures; it is in no
        public header (exported since 10.8)."""
        try:
            extended: Callable[[int, int, bool, bool], bytes | None] = _c._protocol_getMethodTypeEncoding
            return extended
        except AppleGPUError:
            pair = type("Description", (ctypes.Structure,), {"_fields_": [("name", ctypes.c_void_p),
                                                                          ("types", ctypes.c_char_p)]})
            plain = _c.symbol("objc", "protocol_getMethodDescription")
            plain.restype, plain.argtypes = pair, (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_bool, ctypes.c_bool)
            return lambda *which: plain(*which).types


_runtime: _Runtime | None = None
_runtime_lock = allocate_lock()
_forked = False


def _objc() -> _Runtime:
    """The runtime, started at the first use; in a forked child NotReady, because Objective-C does not survive fork."""
    global _runtime
    if _runtime is None:
        if _forked:
            raise _fail(ERROR_NOT_READY, REASON_FORKED_CHILD, "objc")
        if sys.platform != "darwin":
            raise _fail(ERROR_LIBRARY_NOT_FOUND, None, "objc", "Metal is part of macOS; this is %s" % sys.platform)
        with _runtime_lock:
            if _runtime is None:
                import atexit
                runtime = _Runtime()
                if hasattr(os, "register_at_fork"):
                    os.register_at_fork(after_in_child=_objc_forked)
                atexit.register(_disarm)
                _runtime = runtime
    return _runtime


def _objc_forked() -> None:
    """The child forgets every object, releasing none; whoever still holds one gets an error instead of a crash."""
    global _runtime, _forked, _runtime_lock
    runtime, _runtime, _forked, _runtime_lock = _runtime, None, True, allocate_lock()
    if runtime is not None:
        runtime.exiting = True
        for reference in list(runtime.cache.values()):
            one = reference()
            if one is not None:
                one.__class__ = _Released


def _disarm() -> None:
    """At interpreter exit: blocks that fire later return without touching Python; nothing is released or waited for."""
    runtime = _runtime
    if runtime is None:
        return
    runtime.exiting = True
    for _, descriptor in list(runtime.thunks.values()):
        descriptor[2] = descriptor[3] = runtime.harmless
    for entry in list(runtime.blocks.values()):
        if entry[1]:
            ctypes.c_uint64.from_address(entry[1] + 16).value = runtime.harmless    # with the GIL: none is freed now
    runtime.cache.clear()


def _release(pointer: int) -> None:
    """Give a count back, in a pool: a dealloc may autorelease, and without one that stays until the thread ends."""
    runtime = _runtime
    if runtime is None or runtime.exiting:
        return
    if runtime.thread.pools:
        runtime.release(pointer)
        return
    token = runtime.push()
    try:
        runtime.release(pointer)
    finally:
        runtime.pop(token)


# -- objects

class MetalObject:
    """An Objective-C object. It holds one retain count, given back when the last Python reference goes (or by
    MetalRelease); one pointer is one Python object. Its class mirrors the Objective-C class, so that methods, dir() and
    help() come from the running system: device.newBufferWithLength_options_(4096, 0)."""
    __slots__ = ("_pointer", "_facts", "__weakref__")
    _pointer: int
    _facts: Any                 # what the flat functions asked it once: limits, lengths, a device's own queue
    _objc_text = False          # instances are NSStrings

    def __repr__(self) -> str:
        return "<%s at 0x%x>" % (type(self).__name__, self._pointer)

    def __getitem__(self, index: Any) -> Any:
        return self.objectAtIndexedSubscript_(index)

    def __setitem__(self, index: int, value: Any) -> None:
        self.setObject_atIndexedSubscript_(value, index)

    __iter__: Any = None        # else the interpreter would try object[0], object[1], ...

    def __reduce__(self) -> Any:
        raise TypeError("an Objective-C object cannot be pickled or copied")

    if TYPE_CHECKING:
        def __getattr__(self, name: str) -> Any: ...


class _Released(MetalObject):
    """What an object becomes when it is released early, or in a forked child: every use is an error, not a crash."""
    __slots__ = ()

    def __getattribute__(self, name: str) -> Any:
        raise _fail(ERROR_NOT_READY, REASON_FORKED_CHILD, "objc") if _forked else _bad("this Metal object was released")

    def _syntax(self, *arguments: Any) -> Any:
        return self.released        # no name is there: this raises

    __len__ = __iter__ = __contains__ = __bytes__ = _syntax     # which Python looks up past __getattribute__

    def __repr__(self) -> str:
        return "<released Metal object>"


def _item(self: Any, index: int) -> Any:
    count = len(self)
    if not -count <= index < count:
        raise IndexError("array index out of range")
    return self.objectAtIndex_(index + count if index < 0 else index)


def _value_of(self: Any, key: Any) -> Any:
    value = self.objectForKey_(key)
    if value is None:
        raise KeyError(key)
    return value


# What Python's own syntax does with instances of a class.
_SYNTAX: dict[str, dict[str, Any]] = {
    "NSString": {"_objc_text": True},
    "NSArray": {"__len__": lambda self: self.count(), "__getitem__": _item,
                "__iter__": lambda self: (self[i] for i in range(len(self)))},
    "NSDictionary": {"__len__": lambda self: self.count(), "__getitem__": _value_of,
                     "__iter__": lambda self: iter(self.allKeys())},
    "NSData": {"__len__": lambda self: self.length(),
               "__bytes__": lambda self: ctypes.string_at(self.bytes(), len(self)) if len(self) else b""}}


class _Temporary(ctypes.c_void_p):
    """Owns a string, number or array made for one argument, from the moment the call that made it returns. Not in the
    cache, so nothing can find it while it goes."""
    __slots__ = ()
    _pointer: Any = ctypes.c_void_p.value       # type: ignore[misc]

    def __del__(self) -> None:
        if self and _runtime is not None and not _runtime.exiting:
            _runtime.release(self)


def _wrap(pointer: int | None, owned: bool = False, text: bool = True) -> Any:
    """The Python object of a result, inside a pool: None, a str for an NSString, else a MetalObject that holds one
    count: a +0 result is retained; an owned one that is already wrapped gives its extra count back. text=False for what
    alloc gives: a placeholder is a kind of NSString."""
    runtime = _runtime or _objc()
    if not pointer:
        return None
    known = runtime.cache.get(pointer)
    if known is not None:
        one = known()
        if one is not None:
            if owned:
                _release(pointer)
            return one
    class_ = runtime.class_of(pointer)
    kind = runtime.classes.get(class_) or _mirror(class_)
    if text and kind._objc_text:
        holder = _Temporary(pointer) if owned else None      # noqa: F841
        return _string_of(pointer)
    if not owned:
        runtime.retain(pointer)
    made: MetalObject = object.__new__(kind)
    made._pointer, made._facts = pointer, None
    reference = _Reference(made, _dropped)
    reference.pointer = pointer
    cache = runtime.cache
    if cache.setdefault(pointer, reference) is not reference:
        return _replace(runtime, made, reference)
    if len(cache) > runtime.sweep_at:
        _sweep(runtime)
    return made


def _replace(runtime: _Runtime, made: MetalObject, reference: _Reference) -> MetalObject:
    """The cache has an entry: a dead one makes room; when another thread was first, its object serves and our count
    goes back."""
    with runtime.lock:
        old = runtime.cache.get(reference.pointer)
        other: MetalObject | None = None if old is None else old()
        if other is None:
            runtime.cache[reference.pointer] = reference
            return made
    _dropped(reference)
    return other


def _dropped(reference: _Reference, release: Callable[[int], None] = _release) -> None:
    pointer, reference.pointer = reference.pointer, 0
    if pointer:
        release(pointer)        # bound here: at exit the module's names go one by one


def _sweep(runtime: _Runtime) -> None:
    """Take dead entries out of the cache; it holds at most twice the objects alive at once."""
    with runtime.lock:
        for pointer, reference in list(runtime.cache.items()):
            if not reference.pointer and runtime.cache.get(pointer) is reference:
                del runtime.cache[pointer]
        runtime.sweep_at = max(1024, 2 * len(runtime.cache))


def _string_of(pointer: int) -> str:
    """A str of an NSString, inside a pool; "" for one with no UTF-8 form (a lone surrogate)."""
    read, key, measure, length_key = (_runtime or _objc()).sends.get(_TEXT) or _learn(pointer, _TEXT)
    data: bytes = read(pointer, key) or b""
    length = measure(pointer, length_key, 4)
    if length != len(data):         # a NUL inside
        data = ctypes.string_at(_prepare(pointer, "UTF8String", ctypes.c_void_p)[0](pointer, key), length)
    return data.decode("utf-8", "replace")


_TEXT = "UTF8String lengthOfBytesUsingEncoding:"


def _mirror(pointer: int) -> type[MetalObject]:
    """The Python class of an Objective-C class or metaclass, with one stub per method it implements itself."""
    classes = _objc().classes
    kind = classes.get(pointer)
    if kind is not None:
        return kind
    parent, meta = _c.class_getSuperclass(pointer), _c.class_isMetaClass(pointer)
    base = _mirror(parent) if parent else MetalObject
    name = _c.class_getName(pointer).decode()
    body = {"__slots__": (), "__module__": __name__, **_stubs(pointer), **({} if meta else _SYNTAX.get(name, {}))}
    if _forwards(pointer, parent):
        body["__getattr__"] = _forwarded
    return classes.setdefault(pointer, type(name, (base,), body))


def _stubs(pointer: int) -> dict[str, _Stub]:
    """By Python's name, a stub for each method that a class itself implements now."""
    selectors = [_c.sel_getName(_c.method_getName(one)).decode() for one in _copied(_c.class_copyMethodList, pointer)]
    return {_mangle(one): _Stub(pointer, one) for one in reversed(selectors) if not hasattr(MetalObject, _mangle(one))}


def _see_categories() -> None:
    """Give the classes that Python knows the methods that a framework loaded since has added to them."""
    for pointer, kind in list(_objc().classes.items()):
        for name, stub in _stubs(pointer).items():
            if name not in vars(kind):
                setattr(kind, name, stub)


def _copied(function: Any, pointer: int) -> list[int]:
    """The pointers of a malloc'ed list that libobjc returns."""
    count = ctypes.c_uint()
    items = function(pointer, ctypes.byref(count))
    if not items:
        return []
    try:
        return list((ctypes.c_void_p * count.value).from_address(items))
    finally:
        _c.free(items)


def _forwards(kind: int, parent: int | None) -> bool:
    """Whether instances may answer selectors that their class does not show (proxies, capture wrappers)."""
    root = _c.objc_getClass(b"NSObject")
    meta = _c.object_getClass(root)
    if not parent or kind == meta:
        return not parent and bool(kind != root)
    pairs = [(kind, root, name) for name in (b"forwardingTargetForSelector:", b"methodSignatureForSelector:",
                                             b"forwardInvocation:", b"respondsToSelector:")]
    pairs.append((kind if _c.class_isMetaClass(kind) else _c.object_getClass(kind), meta, b"resolveInstanceMethod:"))
    return any(_method_of(one, name) != _method_of(other, name) for one, other, name in pairs)


def _selector_of(name: bytes) -> int:
    selector: int | None = _c.sel_registerName(name)
    if not selector:
        raise _broken("objc", "no selector %s" % name.decode("utf-8", "replace"))
    return selector


def _method_of(kind: int | None, name: bytes) -> int | None:
    """The method of a class, 0 or None when it has none."""
    method: int | None = _c.class_getInstanceMethod(kind, _selector_of(name)) if kind else None
    return method


class _Stub:
    """Stands for a method until it is first used; then the compiled function takes its place."""
    __slots__ = ("home", "selector")

    def __init__(self, home: int, selector: str) -> None:
        self.home, self.selector = home, selector       # the Objective-C class that implements it

    def __get__(self, one: MetalObject | None, owner: type[MetalObject]) -> Any:
        function = _method(self.home, self.selector, one)
        setattr(_objc().classes[self.home], _mangle(self.selector), function)
        return function if one is None else function.__get__(one, owner)


def _forwarded(self: MetalObject, name: str) -> Any:
    """__getattr__ of classes that forward; never kept on the class: two proxies of it may have different targets."""
    if name.startswith("__"):
        raise AttributeError(name)
    return _method(_c.object_getClass(self._pointer), _demangle(name), self).__get__(self)


# -- what a method takes

def _describe_method(kind: int, selector: str, pointer: int | None) -> tuple[_Type, ...]:
    """Types of a method, from the first encoding that can be parsed; AttributeError when nothing describes it."""
    why = ""
    for text in _encodings(kind, _selector_of(selector.encode()), pointer):
        try:
            return _parse_method(text.decode())
        except ValueError as error:
            why = why or str(error)
    raise AttributeError("%s: %s cannot be called: %s" % (_c.class_getName(kind).decode(), selector,
                                                          why or "there is no such method, or nothing describes it"))


def _encodings(kind: int, key: int, pointer: int | None) -> Iterator[bytes]:
    """What the class says of a method; else (proxies, private C++ types) the forwarding target, the class's protocols
    and methodSignatureForSelector:, unless the object does not answer it."""
    method = _c.class_getInstanceMethod(kind, key)
    if method:
        yield _c.method_getTypeEncoding(method)
    elif not pointer or _method_of(kind, b"respondsToSelector:") and not _ask(pointer, "respondsToSelector:", key):
        return          # a proxy root class has no respondsToSelector: methodSignatureForSelector: will tell
    if pointer and _method_of(kind, b"forwardingTargetForSelector:"):
        target = _ask(pointer, "forwardingTargetForSelector:", key)
        if target and target != pointer:
            yield from _encodings(_c.object_getClass(target), key, target)
    yield from _protocol_encodings(kind, key)
    method, proxy = _method_of(kind, b"methodSignatureForSelector:"), _c.objc_getClass(b"NSProxy")
    if pointer and method and method != _method_of(proxy, b"methodSignatureForSelector:"):      # NSProxy's own raises
        signature = _ask(pointer, "methodSignatureForSelector:", key)
        if signature:
            yield _ask(signature, "methodReturnType") + b"".join(
                _ask(signature, "getArgumentTypeAtIndex:", i) for i in range(_ask(signature, "numberOfArguments")))


def _protocol_encodings(kind: int, key: int) -> Iterator[bytes]:
    """What the protocols of a class and its superclasses say of a method."""
    described, instance = _objc().described, not _c.class_isMetaClass(kind)
    up: int | None = kind if instance else _c.objc_getClass(_c.class_getName(kind))
    while up:
        for protocol in _copied(_c.class_copyProtocolList, up):
            yield from filter(None, [described(protocol, key, required, instance) for required in (True, False)])
        up = _c.class_getSuperclass(up)


def _extend(kind: int, selector: str, types: tuple[_Type, ...]) -> tuple[_Type, ...]:
    """The same types with class names and block signatures, where a protocol of the class tells them."""
    if any(t.code[0] == "@" for t in types[1:]):
        for text in _protocol_encodings(kind, _selector_of(selector.encode())):
            try:
                found = _parse_method(text.decode())
            except ValueError:
                continue
            if [t.code for t in found] == [t.code for t in types]:
                return found
    return types


# -- prototypes and raw sends

def _prototype(types: tuple[_Type, ...], selector: str = "", owner: Any = None) -> Any:
    """The ctypes function that sends with these types. 64-bit words are all one kind, so a hundred or so do."""
    runtime, result = _objc(), types[0]
    kinds = [owner or (_struct_result(result, selector) if result.code == "{" else
                       ctypes.c_char_p if result.code == "*" else result.kind)]
    kinds += [ctypes.c_void_p if one.size == 8 and one.code not in "{d" else one.kind for one in _RECEIVER + types[1:]]
    key = selector in _KEEP_GIL, *kinds
    function = runtime.prototypes.get(key)
    if function is None:
        maker = ctypes.PYFUNCTYPE if selector in _KEEP_GIL else ctypes.CFUNCTYPE
        stret = runtime.stret and result.code == "{" and result.size > 16
        function = runtime.prototypes.setdefault(key, maker(*kinds)(runtime.stret if stret else runtime.send))
    return function


def _prepare(pointer: int, selector: str, owner: Any = None) -> tuple[Any, int]:
    """(function, selector) of a raw send, as this object's class describes it: function(pointer, selector, ...) takes
    and gives plain pointers and numbers. `owner`: the type that ctypes makes of the result, where that must be ours
    as the call returns, whatever interrupts."""
    with MetalPool():
        types = _describe_method(_objc().class_of(pointer), selector, pointer)
    return _prototype(types, selector, owner), _selector_of(selector.encode())


def _learn(pointer: Any, selectors: str) -> Any:
    """function, selector, function, selector, ... for raw sends of one or more selectors (spaced) that mean
    the same in every class; _Runtime.sends keeps them. What an initialiser gives is an owner."""
    found = _objc().sends[selectors] = [part for one in selectors.split(" ") for part in _prepare(
        pointer, one, _Temporary if one.startswith("init") else None)]
    return found


def _ask(pointer: Any, selector: str, *arguments: Any) -> Any:
    """A raw send of a selector that means the same in every class it is sent to."""
    function, key = (_runtime or _objc()).sends.get(selector) or _learn(pointer, selector)
    return function(pointer, key, *arguments)


# -- arguments

def _range_error(bits: int, value: Any) -> None:
    raise OverflowError("%r does not fit %d bits" % (value, bits))


def _truth(value: Any) -> bool:
    if value in (0, 1) and not isinstance(value, (float, str)):
        return bool(value)
    raise TypeError("a BOOL takes True or False, not %r" % (value,))


def _real(value: Any) -> float:
    return float(value + 0.0)       # float alone would take a str


def _made(name: str, selector: str, *arguments: Any) -> _Temporary:
    """[[Class alloc] init...] as a temporary argument."""
    runtime = _objc()
    maker = runtime.makers.get(name)
    if maker is None:
        kind = _c.objc_getClass(name.encode())
        maker = runtime.makers[name] = (kind, *_prepare(kind, "alloc"))
    kind, alloc, key = maker
    token = None if runtime.thread.pools else runtime.push()
    try:
        made: _Temporary = _ask(alloc(kind, key), selector, *arguments)     # asks the placeholder of a class cluster
    finally:
        if token is not None:
            runtime.pop(token)
    if not made:
        raise _fail(ERROR_MEMORY, None, "objc", "%s could not be made" % name)
    return made


def _sized(data: bytes, *more: Any) -> tuple[Any, ...]:
    return data, len(data), *more


# Python's type: the Foundation class made of a value, how, and with which arguments.
_FOUNDATION: dict[type, tuple[str, str, Callable[[Any], tuple[Any, ...]]]] = {
    str: ("NSString", "initWithBytes:length:encoding:", lambda text: _sized(text.encode("utf-8", "replace"), 4)),
    bool: ("NSNumber", "initWithBool:", lambda truth: (truth,)),
    int: ("NSNumber", "initWithLongLong:", lambda number: (_integer(number, ctypes.c_int64),)),
    float: ("NSNumber", "initWithDouble:", lambda number: (number,)),
    list: ("NSArray", "initWithObjects:count:", lambda items: (_pointers(items), len(items))),
    dict: ("NSDictionary", "initWithObjects:forKeys:count:",
           lambda items: (_pointers(list(items.values())), _pointers(list(items)), len(items))),
    bytes: ("NSData", "initWithBytes:length:", lambda data: _sized(bytes(data)))}
_FOUNDATION.update({tuple: _FOUNDATION[list], bytearray: _FOUNDATION[bytes], memoryview: _FOUNDATION[bytes]})


def _make_object(value: Any, family: str = "") -> _Temporary | None:
    """A Foundation object of a Python value, of one class or of any; None when there is no such thing."""
    row = _FOUNDATION.get(type(value))
    if row is None:         # a type of the caller's own, derived from one of these
        row = next((row for kind, row in _FOUNDATION.items() if isinstance(value, kind)), None)
    return _made(row[0], row[1], *row[2](value)) if row is not None and family in ("", row[0]) else None


def _pointers(values: Sequence[Any], nil: bool = False) -> Any:
    """A C array of the pointers of objects, which it keeps alive (strings and numbers may be made for it)."""
    items = [v if isinstance(v, MetalObject) or nil and v is None else _make_object(v) or v for v in values]
    if not all(isinstance(item, (MetalObject, _Temporary)) or nil and item is None for item in items):
        raise TypeError("an array of objects takes objects, strings and numbers only")
    pointers: Any = (ctypes.c_void_p * len(items))(*[getattr(item, "_pointer", None) for item in items])
    pointers.keep = items
    return pointers


def _object_converter(one: _Type, accepted: dict[Any, Any]) -> Callable[[Any], Any]:
    """Checks an object argument against what the protocol declares, once per Python class: a wrong one would crash."""
    family, _, rest = one.name.partition("<")
    protocols = [p for p in rest.rstrip(">").split("><") if p and not p.startswith("OS_")]
    wanted = "a class" if one.code == "#" else one.name or "an object or None"

    def convert(value: Any) -> Any:
        made = None
        if isinstance(value, MetalObject):
            with MetalPool():
                if (_c.class_isMetaClass(_c.object_getClass(value._pointer)) if one.code == "#"
                        else _is_kind(value._pointer, family, protocols)):
                    accepted[type(value)] = True
                    return value
        elif one.code == "@" and (family or not one.name):
            made = _make_object(value, family)
        if made is None:
            raise TypeError("%s is wanted here, not %r" % (wanted, value))
        return made
    return convert


def _is_kind(pointer: int, family: str, protocols: Sequence[str]) -> bool:
    """Asked with messages, which wrappers forward; class_conformsToProtocol would look at the wrapper's class."""
    asked = [("conformsToProtocol:", _c.objc_getProtocol(name.encode())) for name in protocols]
    if family not in ("", "NSObject"):
        asked.append(("isKindOfClass:", _c.objc_getClass(family.encode())))
    for selector, wanted in asked:
        if wanted:          # else this macOS has no such thing
            function, key = _prepare(pointer, selector)     # described anew: not every root class has it
            if not function(pointer, key, wanted):
                return False
    return True


_POINTERS: Any = (ctypes.c_void_p, ctypes.c_char_p, ctypes._Pointer, ctypes._CFuncPtr,   # type: ignore[attr-defined]
                  type(ctypes.byref(ctypes.c_int())))


def _buffer(value: Any, const: bool) -> Any:
    """What ctypes passes as a pointer for bytes, ctypes objects and contiguous buffers (kept alive by the caller)."""
    if value is None or isinstance(value, _POINTERS) or const and isinstance(value, bytes):
        return value
    try:
        view = memoryview(value)
    except TypeError:
        address = value.__index__() if hasattr(value, "__index__") else -1
        if address >> 64:
            raise TypeError("a pointer takes bytes, a buffer, an address or None, not %r" % (value,)) from None
        return address
    if not view.c_contiguous:
        raise TypeError("the buffer is not contiguous")
    if view.readonly and not const:
        raise TypeError("the method may write here: a %s is read-only" % type(value).__name__)
    return bytes(view) if view.readonly else ctypes.byref((ctypes.c_char * 0).from_buffer(value))


def _pointer_converter(one: _Type) -> Callable[[Any], Any]:
    """Lists become C arrays where the method only reads what the pointer points to."""
    target, const = one.name.lstrip(_QUALIFIERS), one.const or one.name[:1] == "r"
    try:
        element: Any = _parse_type(target).kind if const and target[:1] in tuple("QqfdIi{") else None
    except ValueError:
        element = None
    converted: Any = _value_converter(element) if element else None

    def convert(value: Any) -> Any:
        if isinstance(value, (list, tuple)) and const and target[:1] == "@":
            return _pointers(value, nil=True)
        if isinstance(value, (list, tuple)) and element:
            return (element * len(value))(*map(converted, value))
        return _buffer(value, const)
    return convert


def _value_converter(kind: Any, memory: dict[Any, Any] | None = None) -> Callable[[Any], Any]:
    """Checks a value for a field, an array or by value: ctypes would cut integers and fill short tuples with zeros.
    Structs are taken as instances of the layout or sequences of the exact length; tuples seen before are kept."""
    if not issubclass(kind, ctypes.Structure):
        return _real if kind in (ctypes.c_float, ctypes.c_double) else lambda value: _integer(value, kind)
    parts: list[Callable[[Any], Any]] = [_value_converter(field[1]) for field in kind._fields_]

    def convert(value: Any) -> Any:
        if isinstance(value, kind):
            return value
        if not isinstance(value, (tuple, list)) or len(value) != len(parts):
            raise TypeError("a struct of %d values is wanted here, not %r" % (len(parts), value))
        made = kind(*[part(v) for part, v in zip(parts, value)])
        if memory is not None and len(memory) < 256:
            try:
                memory[value] = made
            except TypeError:       # a list in it: can change
                pass
        return made
    return convert


def _integer(value: Any, kind: Any) -> int:
    number = _index(value)
    if (kind(number).value or 0) != number:
        _range_error(8 * ctypes.sizeof(kind), value)
    return number


class MetalOut:
    """Receives an object that a method returns through a pointer argument: `value` after the call, or None."""
    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: Any = None


def _out(value: Any) -> Any:
    if value is None:
        return None
    if not isinstance(value, MetalOut):
        raise TypeError("a MetalOut() or None is wanted here, not %r" % (value,))
    return ctypes.c_void_p()


def _selector_argument(value: Any) -> int:
    if not isinstance(value, str):
        raise TypeError("a selector's name is wanted here, not %r" % (value,))
    return _selector_of(value.encode())


# -- blocks

class MetalBlock:
    """A Python callable as a block of the given signature, for example MetalBlock(f, "v@?@q")."""
    __slots__ = ("function", "signature")

    def __init__(self, function: Callable[..., Any], signature: str) -> None:
        self.function, self.signature = function, signature


def _thunk(signature: str) -> tuple[Any, Any]:
    """(invoke, descriptor) of a signature: made once, never freed, so no closure goes while it runs."""
    runtime = _objc()
    found = runtime.thunks.get(signature)
    if found is None:
        types = _parse_signature(signature)
        if types[0].code in ("{", "@") or [t.code for t in types[1:2]] != ["@?"]:
            raise TypeError("a block of signature %r cannot be made" % signature)
        convert = [_wrap if t.code == "@" else None for t in types[2:]]

        def invoke(block: int, *values: Any) -> Any:
            entry = runtime.blocks.get(ctypes.c_uint64.from_address(block + 32).value)
            if entry is None or runtime.exiting:
                return 0
            with MetalPool():
                return entry[0](*[v if c is None else c(v) for v, c in zip(values, convert)])

        def dispose(block: int) -> None:
            runtime.blocks.pop(ctypes.c_uint64.from_address(block + 32).value, None)

        call = ctypes.CFUNCTYPE(*[t.kind for t in types])(invoke)
        end = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(dispose)
        text = ctypes.create_string_buffer(signature.encode())
        # reserved, size of the literal, copy, dispose, signature, layout
        descriptor = (ctypes.c_uint64 * 6)(0, 40, runtime.harmless, _code_of(end), ctypes.addressof(text), 0)
        keep = ctypes.pythonapi["Py_IncRef"]
        keep.restype, keep.argtypes = None, (ctypes.py_object,)
        for immortal in (call, end, text, descriptor):
            keep(immortal)
        with runtime.lock:
            found = runtime.thunks.setdefault(signature, (call, descriptor))
    return found


def _code_of(callback: Any) -> int:
    return ctypes.cast(callback, ctypes.c_void_p).value or 0


def _block(function: Callable[..., Any], signature: str) -> int:
    """A heap block that calls `function`; whoever gets it releases it (_Block_release)."""
    runtime = _objc()
    if runtime.harmless >> 47:      # only a Mac can confirm: in an arm64e process a function's address is signed
        raise _fail(ERROR_NOT_SUPPORTED, REASON_SOURCE_FAILED, "objc", "this Python is arm64e, where blocks made by it "
                    "would crash; use an arm64 one")
    call, descriptor = _thunk(signature)
    with runtime.lock:
        runtime.next_block += 1
        key = runtime.next_block
    entry = runtime.blocks[key] = [function, 0]
    # isa, flags (HAS_COPY_DISPOSE, HAS_SIGNATURE) and reserved, invoke, descriptor; then what it captures: the key
    literal = (ctypes.c_uint64 * 5)(_c.address("System", "_NSConcreteStackBlock"), 1 << 25 | 1 << 30, _code_of(call),
                                    ctypes.addressof(descriptor), key)
    entry[1] = _c._Block_copy(ctypes.byref(literal))
    return int(entry[1])


def _block_converter(one: _Type, selector: str) -> Callable[[Any], int | None]:
    signature = one.name or next((s for s, names in _BLOCKS.items() if selector in names.split()), "")

    def convert(value: Any) -> int | None:
        if value is None:
            return None
        if callable(value):
            value = MetalBlock(value, signature)
        if not isinstance(value, MetalBlock):
            raise TypeError("a function or None is wanted here, not %r" % (value,))
        if not value.signature:
            raise TypeError("nothing tells this block's signature: pass MetalBlock(function, \"v@?...\")")
        return _block(value.function, value.signature)
    return convert


# -- pools

class MetalPool:
    """An autorelease pool for a `with` block: many sends in one pool cost about half of each opening its own."""
    __slots__ = ("token",)

    def __enter__(self) -> MetalPool:
        runtime = _objc()
        self.token = (runtime.push(),)
        pools = runtime.thread.pools
        if not pools:
            pools = runtime.thread.pools = []
        pools.append(self.token)
        return self

    def __exit__(self, *error: Any) -> None:
        runtime = _objc()
        pools = runtime.thread.pools
        for i in range(len(pools) - 1, -1, -1):
            if pools[i] is self.token:      # an outer exit takes the inner ones along; another thread's is left alone
                token = self.token[0]
                del pools[i:]
                runtime.pop(token)
                return

    def __del__(self) -> None:
        # Ctrl-C between opening and the with statement's body: the pool must not stay open for the rest of the thread
        if _runtime is not None and not _runtime.exiting and hasattr(self, "token"):
            self.__exit__()


# -- compiled methods

def _integer_check(code: str) -> str:
    bits = 8 * ctypes.sizeof(_KINDS[code])
    moved = "a{n}" if code.isupper() else "a{n} + %d" % (1 << bits - 1)
    return "if a{n}.__class__ is not int: a{n} = index(a{n})\nif %s >> %d: too_big(%d, a{n})" % (moved, bits, bits)


_CALL = "p{n} = k{n}(a{n})"

# How an argument is checked, by letter: source for argument {n}, after which a{n} goes to C, or p{n} where that is set;
# and what makes the k{n} that it calls, from type, selector and m{n}, where k{n} notes what needs no check again.
_ARGUMENTS: dict[str, tuple[str, Any]] = {
    **{code: (_integer_check(code), None) for code in "csilqCSILQ"},
    "B": ("if a{n} is not True and a{n} is not False: a{n} = truth(a{n})", None),
    "d": ("if a{n}.__class__ is not float: a{n} = real(a{n})", None),
    "@": ("if a{n} is None: p{n} = None\nelse:\n    if a{n}.__class__ not in m{n}: a{n} = k{n}(a{n})\n"
          "    p{n} = a{n}._pointer", lambda one, selector, known: _object_converter(one, known)),
    "{": ("if a{n}.__class__ is tuple:\n    try: a{n} = m{n}.get(a{n}, a{n})\n    except TypeError: pass\n"
          "if a{n}.__class__ is not s{n}: a{n} = k{n}(a{n})",
          lambda one, selector, known: _value_converter(one.kind, known)),
    "^": (_CALL, lambda one, selector, known: _pointer_converter(one)),
    ":": (_CALL, lambda one, selector, known: _selector_argument),
    "u": (_CALL, lambda one, selector, known: _out),                # an object returned through a pointer
    "k": (_CALL, lambda one, selector, known: _block_converter(one, selector))}


_RESULTS = {
    "v": "return None", "x": "return r", "t": "return r != 0", "#": "return wrap(r)", "+": "return wrap(r, True)",
    "alloc": "return wrap(r, True, False)", "init": "return wrap(r, True)", ":": "return name_of(r)",
    "@": "one = cached(r, nothing)()\nreturn wrap(r) if one is None else one"}


def _send_source(passed: list[str], outs: list[int], result: str, error: bool) -> str:
    """Source that sends and converts what comes back, inside a pool."""
    lines = ["retain(p)"] if result == "init" else []       # init consumes its receiver, which stays ours
    lines += ["e = cell()"] if error else []
    lines += ["r = send(%s)" % ", ".join(["p", "sel", *passed] + ["byref(e)"] * error)]
    lines += ["if not r: raise failure(e.value, sel)"] if error else []
    lines += ["if p%d is not None: a%d.value = wrap(p%d.value)" % (n, n, n) for n in outs]
    return "\n".join([*lines, _RESULTS[result]])


def _source(codes: str, result: str, error: bool) -> str:
    """Source of the function for a shape of signature. The send is written twice, for an open pool and for one of its
    own: that is quicker than any way of sharing it. Blocks are made last: what fails before leaves none behind."""
    checks = [_ARGUMENTS[code][0].format(n=n) for n, code in enumerate(codes)]
    passed = [("None if p{n} is None else byref(p{n})" if code == "u" else
               "p{n}" if "p{n} =" in _ARGUMENTS[code][0] else "a{n}").format(n=n) for n, code in enumerate(codes)]
    send = _indented(_send_source(passed, [n for n, code in enumerate(codes) if code == "u"], result, error))
    body = "if thread.pools:\n%s\nt = push()\ntry:\n%s\nfinally:\n    pop(t)" % (send, send)
    blocks = [n for n, code in enumerate(codes) if code == "k"]
    if blocks:
        made = "\n".join([checks[n] for n in blocks] + [body])
        drop = "\n".join("    if p%d: unblock(p%d)" % (n, n) for n in blocks)
        body = "%sNone\ntry:\n%s\nfinally:\n%s" % ("".join("p%d = " % n for n in blocks), _indented(made), drop)
    lines = ["p = self._pointer", *[check for check, code in zip(checks, codes) if code != "k"], body]
    return "def method(%s):\n%s\n" % (", ".join(["self"] + ["a%d" % n for n in range(len(codes))]),
                                      _indented("\n".join(lines)))


def _indented(source: str) -> str:
    return "    " + source.replace("\n", "\n    ")


_shapes: dict[tuple[str, str, bool], Any] = {}


def _shape(codes: str, result: str, error: bool) -> Any:
    code = _shapes.get((codes, result, error))
    if code is None:
        space: dict[str, Any] = {}
        exec(compile(_source(codes, result, error), "<Objective-C method>", "exec"), space)
        code = _shapes[codes, result, error] = space["method"].__code__
    return code


def _argument_code(one: _Type) -> str:
    """A key of _ARGUMENTS."""
    code = one.code
    if code == "c" and _objc().stret:
        return "B"              # BOOL on Intel
    if code == "^" and one.name.lstrip(_QUALIFIERS)[:1] == "@" and not one.const and one.name[:1] != "r":
        return "u"
    return {"#": "@", "@?": "k", "f": "d", "*": "^"}.get(code, code)


def _result_code(one: _Type, selector: str) -> str:
    """A key of _RESULTS."""
    if one.code == "@" and _owns(selector):
        word = selector.lstrip("_")
        return "alloc" if word.startswith("alloc") else "init" if word.startswith("init") else "+"
    if one.code == "c" and _objc().stret:
        return "t"
    return one.code if one.code in ("v", "@", "#", ":") else "x"


def _refuse(selector: str) -> None:
    if selector in _OWNERSHIP:
        raise AttributeError("%s: the bridge counts references; MetalRelease(object) releases early" % selector)
    if (selector.startswith("performSelector") or selector.endswith(_VARIADIC_ENDS)
            or any(part in selector for part in _VARIADIC)):
        raise AttributeError("%s cannot be sent: its encoding does not tell all of its arguments" % selector)


def _method(kind: int, selector: str, one: MetalObject | None = None) -> Any:
    """The Python function of a method: checks, converts, sends, converts back."""
    _refuse(selector)
    methods, pointer = _objc().methods, None if one is None else one._pointer
    with MetalPool():
        types = _extend(kind, selector, _describe_method(kind, selector, pointer))
    function = methods.get((selector, types))
    if function is None:
        function = methods.setdefault((selector, types), _build(selector, types))
    return function


def _build(selector: str, types: tuple[_Type, ...]) -> Any:
    if len(types) - 1 != selector.count(":"):
        raise AttributeError("%s: its encoding has %d arguments" % (selector, len(types) - 1))
    runtime = _objc()
    error = selector.endswith("rror:") and _argument_code(types[-1]) == "u"       # then the bridge passes it
    arguments = types[1:-1] if error else types[1:]
    codes = "".join(map(_argument_code, arguments))
    space: dict[str, Any] = {
        "__builtins__": {"int": int, "float": float, "tuple": tuple, "TypeError": TypeError},
        "sel": _selector_of(selector.encode()), "send": _prototype(types, selector),
        "thread": runtime.thread, "push": runtime.push, "pop": runtime.pop,
        "retain": runtime.retain, "cached": runtime.cache.get, "nothing": type(None), "wrap": _wrap, "index": _index,
        "too_big": _range_error, "truth": _truth, "real": _real, "unblock": _c._Block_release, "cell": ctypes.c_void_p,
        "byref": ctypes.byref, "failure": _failure, "name_of": _selector_text}
    for n, (code, one) in enumerate(zip(codes, arguments)):
        make, known = _ARGUMENTS[code][1], {}       # type: tuple[Any, dict[Any, Any]]
        space.update({"m%d" % n: known, "s%d" % n: one.kind, "k%d" % n: make and make(one, selector, known)})
    make_function: Any = type(_build)
    function = make_function(_shape(codes, _result_code(types[0], selector), error), space, _mangle(selector))
    function.__doc__ = "-[%s] takes %s, returns %s" % (selector, [t.name or t.code for t in arguments], types[0].code)
    return function


def _selector_text(pointer: int | None) -> str | None:
    return _c.sel_getName(pointer).decode() if pointer else None


def _failure(pointer: int | None, selector: int) -> MetalError:
    """The exception of an NSError; some failures come without one (MTLBinaryArchive before macOS 15)."""
    if not pointer:
        return MetalError("", 0, "%s failed without saying why" % _selector_text(selector))
    domain, text = [_wrap(_ask(pointer, name)) or "" for name in ("domain", "localizedDescription")]
    return MetalError(domain, _ask(pointer, "code"), text)


# ======================================================================================================================
# sources
# ======================================================================================================================

def _raw_clock(name: str) -> int:
    """Nanoseconds of a clock of macOS, by a name that checkers on another system do not know."""
    return time.clock_gettime_ns(getattr(time, name))


# Each class answers from the system itself; the player in the next section answers the same methods from a file.
# Methods return plain data or raise an AppleGPUError; None means that the system said "there is no such thing".

_NOT_PRIVILEGED, _NOT_PERMITTED, _UNSUPPORTED = 0xE00002C1, 0xE00002E2, 0xE00002C7      # IOReturn
_INVALID_DEST, _NOT_OPEN = 0x10000003, 0xE00002CD                                       # the other side is gone
_EPERM, _ENOENT, _ESRCH, _ENOMEM, _EACCES, _EINVAL = 1, 2, 3, 12, 13, 22


def _io_error(source: str, call: str, code: int) -> AppleGPUError:
    """The error for a kern_return_t or IOReturn that is not 0."""
    code &= 0xFFFFFFFF
    detail = "%s gave 0x%08X" % (call, code)
    if code == _NOT_PRIVILEGED:
        return _fail(ERROR_NO_PERMISSION, REASON_PERMISSION, source, detail)
    if code == _NOT_PERMITTED:
        return _fail(ERROR_NO_PERMISSION, REASON_SANDBOX, source, detail)
    if code == _UNSUPPORTED:
        return _fail(ERROR_NOT_SUPPORTED, _host_reason(), source, detail)
    return _broken(source, detail)


def _done(source: str, call: str, *arguments: Any) -> None:
    """Calls a function that returns kern_return_t or IOReturn."""
    code = getattr(_c, call)(*arguments)
    if code:
        raise _io_error(source, call, code)


def _host_reason() -> str:
    """Why a service that every Mac has is missing here: a guest has none of them."""
    return REASON_VIRTUAL_MACHINE if _Sysctl().number("kern.hv_vmm_present") else REASON_MACOS


class _Source:
    """One lock stands around native calls: an RLock, as a signal handler of the host may call in between."""

    def __init__(self) -> None:
        self.lock = RLock()

    def forked(self) -> None:
        """In a forked child: begins anew, with a lock that nobody holds."""
        type(self).__init__(self)


class _Sysctl(_Source):
    """sysctlbyname."""

    def raw(self, name: str) -> bytes | None:
        """The bytes of a name, None where this macOS does not know it."""
        room = 256      # most values fit: one call; a longer one is asked for its size, and may have grown meanwhile
        with self.lock:
            for _ in range(4):
                data, size = ctypes.create_string_buffer(room), ctypes.c_uint64(room)
                code = self._ask(name, data, size)
                if code != _ENOMEM:
                    return None if code else data.raw[:min(size.value, room)]
                if self._ask(name, None, size):
                    return None
                room = size.value + 64
        raise _broken("sysctl", "%s grows faster than it can be read" % name)

    @staticmethod
    def _ask(name: str, data: Any, size: ctypes.c_uint64) -> int:
        """0, ENOENT or ENOMEM; another failure raises."""
        if not _c.sysctlbyname(name.encode(), data, ctypes.byref(size), None, 0):
            return 0
        code = ctypes.get_errno()
        if code in (_EPERM, _EACCES):
            raise _fail(ERROR_NO_PERMISSION, REASON_SANDBOX, "sysctl", "%s is not readable" % name)
        if code not in (_ENOENT, _ENOMEM):
            raise _broken("sysctl", "%s: errno %d" % (name, code))
        return code

    def text(self, name: str) -> str | None:
        data = self.raw(name)
        return None if data is None else data.split(b"\0")[0].decode("utf-8", "replace")

    def number(self, name: str) -> int | None:
        data = self.raw(name)
        if data is None:
            return None
        if len(data) not in (4, 8):
            raise _broken("sysctl", "%s has %d bytes" % (name, len(data)))
        return int.from_bytes(data, "little")


class _Registry(_Source):
    """The IO registry. An entry is an owned port: keep it as long as it is needed, drop it to release it."""

    def services(self, class_name: str) -> list[Any]:
        """Registered services of a class and of those that conform to it."""
        with self.lock:
            return self._matching(_c.IOServiceMatching(class_name.encode()))

    def named(self, name: str) -> list[Any]:
        """Services of a device tree name: pmgr, sgx, cpu0."""
        with self.lock:
            return self._matching(_c.IOServiceNameMatching(name.encode()))

    def children(self, entry: Any) -> list[Any]:
        """Children in the service plane; user clients are found only so, matching does not list them."""
        with self.lock:
            found = _c.IOObject()
            _done("registry", "IORegistryEntryGetChildIterator", self._port(entry), b"IOService", ctypes.byref(found))
            return self._walk(found)

    def _matching(self, matching: Any) -> list[Any]:
        if not matching:
            raise _broken("registry", "no matching dictionary")
        found = _c.IOObject()
        _done("registry", "IOServiceGetMatchingServices", 0, matching, ctypes.byref(found))
        return self._walk(found)

    def _walk(self, iterator: Any) -> list[Any]:
        """Every entry; once more when the registry changed meanwhile, which ends an iterator early."""
        for _ in range(4):
            entries = []
            while iterator:
                entry = _c.IOIteratorNext(iterator)
                if not entry:
                    break
                entries.append(entry)
            if not iterator or _c.IOIteratorIsValid(iterator):
                return entries
            _c.IOIteratorReset(iterator)
        return entries

    def identity(self, entry: Any) -> int:
        """The registry entry id, never reused while the Mac runs."""
        number = ctypes.c_uint64()
        with self.lock:
            _done("registry", "IORegistryEntryGetRegistryEntryID", self._port(entry), ctypes.byref(number))
        return number.value

    def class_name(self, entry: Any) -> str:
        name = ctypes.create_string_buffer(128)
        with self.lock:
            _done("registry", "IOObjectGetClass", self._port(entry), name)
        return name.value.decode("utf-8", "replace")

    def get(self, entry: Any, key: str) -> Any:
        """One property as Python data, None where the entry has none: 0.02 ms, against 2 ms for the whole AGX node."""
        with self.lock:
            value = _c.IORegistryEntryCreateCFProperty(self._port(entry), _cf_key(key), None, 0)
            return _cf_read(value) if value else None

    def alive(self, entry: Any) -> bool:
        """False for a service that ended: it goes on answering its id and last properties, but hangs in no plane (xnu
        IOUserClient.cpp, IOService.cpp; no Mac has shown it)."""
        try:
            with self.lock:
                return entry.armed and bool(_c.IORegistryEntryInPlane(entry, b"IOService"))
        except NVMLError_NotSupported:
            return True

    @staticmethod
    def _port(entry: Any) -> Any:
        if not entry.armed:     # a parent's port: its number may name something else here
            raise _fail(ERROR_NOT_READY, REASON_FORKED_CHILD, "registry", "this entry belongs to the parent process")
        return entry


class _Channel(NamedTuple):
    """One IOReport channel, known by driver and channel id: names may repeat (an M1 Ultra lists 130 of them twice)."""
    driver: int
    channel: int
    group: str
    subgroup: str
    name: str
    format: int                     # 1 simple, 2 state, 3 histogram
    unit: str                       # mJ, nJ, 24Mticks, B, events, or nothing
    states: tuple[str, ...]
    type_word: int = 0              # IOReport's own, where the source is a recording
    unit_word: int = 0

    @property
    def names(self) -> tuple[str, str, str]:
        return self.group, self.subgroup, self.name


_SIMPLE, _STATE, _HISTOGRAM = 1, 2, 3
_RECORD = 64        # IOReportElement (xnu IOReportTypes.h): provider @0, channel @8, type @16, stamp @24, 4 values @32


def _channel_name(channel: int) -> str:
    """The name of a channel that has none: the characters of its id (GPUPH and ECPU0 on M1, macOS 11)."""
    return channel.to_bytes(8, "big").replace(b"\0", b"").decode("ascii", "replace")


def _record_layout(format: int, count: int) -> struct.Struct:
    """Reads a channel's records into (driver, channel, stamp, one value per record).

    The value comes first in a simple record and in a histogram's (hits); in a state's it is the third (residency).
    """
    before = 16 if format == _STATE else 0
    value = "%dxq%dx" % (before, 24 - before)
    return struct.Struct("<QQ8xq" + value + ("32x" + value) * (count - 1))


def _layout_of(channel: _Channel, size: int) -> struct.Struct | None:
    """The layout of records of `size` bytes, None if they cannot be the whole channel: one for each state or bucket."""
    count = size // _RECORD
    states = len(channel.states) or count if channel.format == _STATE else count
    fits = count == (1 if channel.format == _SIMPLE else states)
    return _record_layout(channel.format, count) if count and size % _RECORD == 0 and fits else None


class _Place:
    """Where one wanted channel stands in a sample, and how its records are read."""

    __slots__ = ("identity", "position", "layout", "known", "checked")

    def __init__(self, identity: tuple[int, int]) -> None:
        self.identity = identity
        self.position: int | None = None
        self.layout: struct.Struct | None = None
        self.known = False      # a sample held it, so its identity is the driver's own and not the listing's
        self.checked = False    # its records have been compared with the accessors


class _Subscription:
    """Chosen channels of IOReport. `channels` is final once subscribe() returned it, but for ids and names that come with
    the first sample of a channel; `sample()` is aligned with it.

    A sample costs 3 native calls and 4 for each channel, and no string: records carry who they are, so a channel that
    moved in the list is noticed and looked for again. Channels of a group that is refused are None in every sample.
    """

    def __init__(self, lock: Any, handle: Any, listed: Any, channels: list[_Channel]) -> None:
        self.lock = lock
        self.handle = handle
        self.listed = listed                # the dictionary that IOReportCreateSamples wants
        self.channels = channels
        self.notes: dict[int, str] = {}     # what LibraryDiagnose should say of a channel
        self.places = [_Place((c.driver, c.channel)) for c in channels]
        self.count = -1                     # channels in the previous sample; -1: search the next one
        self.unclear = False
        self.accessors = False              # IOReport's own functions instead of the records

    @property
    def note(self) -> str:
        return (list(self.notes.values()) or [""])[0]       # list: all at once, as another thread may sample

    def sample(self) -> list[tuple[int, tuple[int, ...]] | None]:
        """(stamp in ticks, values) for each channel, None for one that this sample does not hold."""
        with self.lock:
            if not self.listed.armed:
                raise _fail(ERROR_NOT_READY, REASON_FORKED_CHILD, "ioreport", "subscribed by the parent process")
            taken = _c.IOReportCreateSamples(self.handle, self.listed, None)
            if not taken:
                raise _broken("ioreport", "IOReportCreateSamples gave nothing")
            array = _cf_get(taken, "IOReportChannels", "Array")
            count = _c.CFArrayGetCount(array) if array else 0
            rows = self._rows(array, count)
            if rows is None:
                self._search(array, count)
                rows = self._rows(array, count) or [None] * len(self.places)
            if self.unclear:
                self.count = -1     # a channel without records may be one that was not found: search again
            return rows

    def _rows(self, array: Any, count: int) -> list[tuple[int, tuple[int, ...]] | None] | None:
        """A row per channel; None when the list is not the one of the last sample, so that it must be searched."""
        if count != self.count:
            return None
        rows: list[tuple[int, tuple[int, ...]] | None] = [None] * len(self.places)
        key = _cf_key("RawElements")
        for i, place in enumerate(self.places):
            if place.position is None:
                continue
            item, records = self._records(array, place.position, key)
            if not records and place.identity[0]:
                continue                    # in its place, without data
            if place.checked and place.layout is not None and place.layout.size == len(records) and not self.accessors:
                read = place.layout.unpack(records)         # the usual case, in one step
                if read[:2] != place.identity:
                    return None
                rows[i] = read[2], read[3:]
            elif self._identity(item, records) != place.identity:
                return None
            else:
                rows[i] = self._row(i, place, item, records)
        return rows

    def _row(self, i: int, place: _Place, item: Any, records: bytes) -> tuple[int, tuple[int, ...]] | None:
        if place.layout is None or place.layout.size != len(records):
            place.layout = _layout_of(self.channels[i], len(records))
        read = place.layout.unpack(records) if place.layout is not None else None
        if place.checked and not self.accessors:
            return None if read is None else (read[2], read[3:])
        values = self._accessor_values(i, item) if self.accessors else self._checked(i, place, item, read and read[3:])
        if values is None:
            return None
        return struct.unpack_from("<q", records, 24)[0] if records else 0, values   # the stamp is judged by its movement

    def _checked(self, i: int, place: _Place, item: Any, read: tuple[int, ...] | None) -> tuple[int, ...] | None:
        """Once for each channel: do its records say what IOReport's own functions say? Where not, those serve."""
        try:
            said = self._accessor_values(i, item)
        except NVMLError_NotSupported as error:
            self.notes[i], place.checked = "raw records are used unchecked: %s" % error.detail, True
            return read
        self.notes.pop(i, None)
        if said != read:
            self.notes[i] = "IOReport accessors are used: raw records of %s differ from them" % self.channels[i].name
            self.accessors = len(read or ()) == len(said or ())     # an odd number of records may be this sample's only
        else:
            place.checked = read is not None
        return said

    @staticmethod
    def _records(array: Any, position: int, key: Any) -> tuple[Any, bytes]:
        """A channel of a sample (borrowed) and its raw records."""
        item = _c.CFArrayGetValueAtIndex(array, position)
        data = _c.CFDictionaryGetValue(item, key) if item else None
        length = _c.CFDataGetLength(data) if data else 0
        start = _c.CFDataGetBytePtr(data) if length >= _RECORD else None
        return item, ctypes.string_at(start, length) if start else b""

    @staticmethod
    def _identity(item: Any, records: bytes) -> tuple[int, int]:
        if records:
            return struct.unpack_from("<QQ", records)
        return 0, _c.IOReportChannelGetChannelID(item) if item else 0

    # ---- the first sample, and one whose list changed

    def _search(self, array: Any, count: int) -> None:
        """Known channels are found by identity, those of one identity in their order; new ones also by their names."""
        self._check_types(array)
        listed = [self._records(array, position, _cf_key("RawElements")) for position in range(count)]
        identities = [self._identity(*one) for one in listed]
        free: dict[tuple[int, int], list[int]] = {}
        for position, identity in enumerate(identities):
            free.setdefault(identity, []).append(position)
        for place in sorted(self.places, key=lambda place: place.position or 0):
            left = free.get(place.identity) if place.known else None
            place.position = left.pop(0) if left else None
        if not all(place.known for place in self.places):
            self._introduce({p: (identities[p], _channel_of(listed[p][0])) for left in free.values() for p in left})
        missing = any(place.position is None for place in self.places)
        self.count, self.unclear = count, missing and not all(records for _, records in listed)

    def _check_types(self, array: Any) -> None:
        """Once per list: the later calls trust that channels and their records keep their types."""
        for item in _cf_items(array):
            data = _c.CFDictionaryGetValue(item, _cf_key("RawElements")) if _cf_is("Dictionary", item) else None
            if not _cf_is("Dictionary", item) or data and not _cf_is("Data", data):
                raise _broken("ioreport", "a channel is not what it was")

    def _introduce(self, listed: Mapping[int, tuple[tuple[int, int], _Channel]]) -> None:
        """Positions by identity and name, then identity alone, then names alone: the listing may lack the driver's id,
        and one driver may use an id for two channels (CPU DVD of an M1)."""
        new = [(i, (place.identity, self.channels[i].names)) for i, place in enumerate(self.places) if not place.known]
        known = {position: (identity, channel.names) for position, (identity, channel) in listed.items()}
        for part in (slice(2), 0, 1):
            positions: dict[Any, list[int]] = {}
            for position in sorted(known, reverse=True):
                positions.setdefault(known[position][part], []).append(position)
            for i, pair in new:
                if not self.places[i].known and positions.get(pair[part]):
                    position = positions[pair[part]].pop()
                    del known[position]
                    self._learn(i, position, *listed[position])

    def _learn(self, i: int, position: int, identity: tuple[int, int], seen: _Channel) -> None:
        place, known = self.places[i], self.channels[i]
        place.identity, place.position, place.known = identity, position, bool(identity[0])     # no driver: no records
        states = known.states or seen.states
        if len(states) == len(seen.states):     # a name may have been missing in the listing
            states = tuple(one or other for one, other in zip(states, seen.states))
        driver, channel = identity if place.known else (known.driver, known.channel)
        self.channels[i] = known._replace(driver=driver, channel=channel, unit=known.unit or seen.unit, states=states)

    # ---- accessors

    def _accessor_values(self, i: int, item: Any) -> tuple[int, ...] | None:
        format = self.channels[i].format
        if format == _SIMPLE:
            return (_c.IOReportSimpleGetIntegerValue(item, None),)
        if format == _STATE:
            count, value = _c.IOReportStateGetCount(item), _c.IOReportStateGetResidency
        else:
            count, value = _c.IOReportHistogramGetBucketCount(item), _c.IOReportHistogramGetBucketHits
        return tuple(value(item, k) for k in range(count)) if 0 < count <= 4096 else None


def _names_of(item: Any) -> tuple[str, str, str, str]:
    """(group, subgroup, name, unit) of a channel dictionary, of a listing or of a sample."""
    group, subgroup, name, unit = (_cf_text(ask(item)) or "" for ask in (
        _c.IOReportChannelGetGroup, _c.IOReportChannelGetSubGroup, _c.IOReportChannelGetChannelName,
        _c.IOReportChannelGetUnitLabel))
    return group, subgroup, name or _channel_name(_c.IOReportChannelGetChannelID(item)), unit.strip()


def _channel_of(item: Any) -> _Channel:
    """All of a channel dictionary."""
    group, subgroup, name, unit = _names_of(item)
    format = _c.IOReportChannelGetFormat(item)
    driver = _cf_value(_cf_get(item, "DriverID", "Number"))
    count = _c.IOReportStateGetCount(item) if format == _STATE else 0
    states = [_cf_text(_c.IOReportStateGetNameForIndex(item, k)) for k in range(min(count, 4096))]
    return _Channel((driver or 0) & 0xFFFFFFFFFFFFFFFF, _c.IOReportChannelGetChannelID(item), group, subgroup, name, format,
                    unit, tuple(state or "" for state in states) if any(states) else ())


class _IOReport(_Source):
    """libIOReport: counters of drivers. No block is needed: a sample is a dictionary that holds a list of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[Any, _Subscription] = {}        # one for the same question, whoever asks again

    def subscribe(self, groups: Iterable[tuple[str, str | None]], want: Callable[[str, str, str, str], bool],
                  keep: Callable[[Sequence[Any]], Sequence[int]] | None = None) -> _Subscription | None:
        """Subscribes to the channels that `want(group, subgroup, name, unit)` picks, and among them to those whose
        positions `keep(channels)` gives; None if there are none."""
        groups = tuple(groups)
        with self.lock:
            made = self.made.get((groups, want)) or self._subscribe(groups, want, keep)
            if made is not None:
                self.made[groups, want] = made
                if any(c.format == _STATE and not (c.states and all(c.states)) for c in made.channels):
                    made.sample()       # a listing without state names: the sample has them
            return made

    def _subscribe(self, groups: Iterable[tuple[str, str | None]], want: Callable[[str, str, str, str], bool],
                   keep: Callable[[Sequence[Any]], Sequence[int]] | None) -> _Subscription | None:
        subgroups: dict[str, set[str | None]] = {}
        for group, subgroup in groups:
            subgroups.setdefault(group, set()).add(subgroup)
        listings = [self._list(group, of) for group, of in subgroups.items()]       # kept: they own the items
        found = [pair for listing, of in zip(listings, subgroups.values()) for pair in self._wanted(listing, of, want)]
        if keep is not None:
            found = [found[i] for i in keep([channel for _, channel in found])]
        return self._open(found) if found else None

    @staticmethod
    def _list(group: str, subgroups: Iterable[str | None]) -> Any:
        """The listing of a group; NULL when this Mac has none. One call for all of its subgroups: it has taken 2.5 s
        on an M5 Max (all-smi 374)."""
        subgroup, *more = subgroups
        return _c.IOReportCopyChannelsInGroup(_cf_key(group), _cf_key(subgroup) if subgroup and not more else None, 0, 0, 0)

    @staticmethod
    def _wanted(listing: Any, subgroups: Iterable[str | None],
                want: Callable[[str, str, str, str], bool]) -> Iterator[tuple[int, _Channel]]:
        """(borrowed item, channel) of each wanted channel of a listing."""
        for item in _cf_items(_cf_get(listing, "IOReportChannels", "Array")):
            if not _cf_is("Dictionary", item):
                continue
            if None not in subgroups and (_cf_text(_c.IOReportChannelGetSubGroup(item)) or "") not in subgroups:
                continue                    # of 540 channels of PMP most
            if want(*_names_of(item)):
                channel = _channel_of(item)
                if channel.format in (_SIMPLE, _STATE, _HISTOGRAM):
                    yield item, channel

    def _open(self, found: Sequence[tuple[int, _Channel]]) -> _Subscription:
        """All of them, else all but one group's: a group may be listed and refuse (PMP on an M5 Max, where PMP0 is alive)."""
        groups = list(dict.fromkeys(channel.group for _, channel in found))
        for without in [None, None] + (groups if len(groups) > 1 else []):      # twice: one NULL is no refusal
            made = self._opened([pair for pair in found if pair[1].group != without])
            if made is not None:
                if without is not None:
                    made.notes[-1] = "%s is listed, but refused" % without
                return made
        raise _fail(ERROR_NOT_SUPPORTED, REASON_MACOS, "ioreport:" + groups[0], "refused")

    def _opened(self, found: Sequence[tuple[int, _Channel]]) -> _Subscription | None:
        """A dictionary of our own with the chosen channels only is a valid argument, and keeps a sample small."""
        chosen = _cf_array()
        for item, _ in found:
            _c.CFArrayAppendValue(chosen, item)
        wanted, listed = _cf_dictionary({"IOReportChannels": chosen}), _c.CFObject()
        handle = _c.IOReportCreateSubscription(None, wanted, ctypes.byref(listed), 0, None)
        if not handle:
            return None
        _c.subscriptions.append(handle)
        return _Subscription(self.lock, handle, listed if listed else wanted, [channel for _, channel in found])


# SMCKeyData: key @0, size @28, type @32, result @40, command @42, index @44, bytes @48.
_SMC_CALL = struct.Struct("=I24xII4xBxBxI32s")
_SMC_READ, _SMC_KEY_AT, _SMC_INFO = 5, 8, 9
_SMC_NO_SUCH_KEY = 132


def _smc_request(command: int, key: str = "", size: int = 0, index: int = 0) -> bytes:
    """The 80 bytes of a question; a key is four characters packed big-endian into a native word."""
    word = int.from_bytes(key.encode("latin-1"), "big") if key else 0
    return _SMC_CALL.pack(word, size, 0, 0, command, index, b"")


def _smc_answer(data: bytes) -> tuple[str, int, str, int, bytes]:
    """(key, size, type, result, bytes) of an answer."""
    key, size, kind, result, _, _, value = _SMC_CALL.unpack(data)
    return key.to_bytes(4, "big").decode("latin-1"), size, kind.to_bytes(4, "big").decode("latin-1"), result, value


class _SMC(_Source):
    """The system management controller. Its connection is kept; reading needs no root."""

    def __init__(self) -> None:
        super().__init__()
        self.infos: dict[str, tuple[int, str] | None] = {}

    def count(self) -> int:
        """How many keys there are."""
        value = self.read("#KEY")
        if value is None or len(value) != 4:
            raise _broken("smc", "#KEY cannot be read")
        return int.from_bytes(value, "big")

    def key_at(self, index: int) -> str | None:
        answer = self._ask(_smc_request(_SMC_KEY_AT, index=index), "key %d" % index)
        return None if answer is None else _smc_answer(answer)[0]

    def info(self, key: str) -> tuple[int, str] | None:
        """(size, type) of a key, asked once."""
        if key not in self.infos:
            if len(key) != 4 or max(key) > "\xff":
                return None
            answer = self._ask(_smc_request(_SMC_INFO, key), key)
            self.infos[key] = None if answer is None else _smc_answer(answer)[1:3]
        return self.infos[key]

    def read(self, key: str) -> bytes | None:
        info = self.info(key)
        if info is None:
            return None
        if not 0 < info[0] <= 32:
            raise _broken("smc", "%s has %d bytes" % (key, info[0]))
        answer = self._ask(_smc_request(_SMC_READ, key, info[0]), key)
        return None if answer is None else answer[48:48 + info[0]]

    def _ask(self, request: bytes, what: str) -> bytes | None:
        """The 80 bytes of the answer, None for result 132 (no such key)."""
        answer, size = ctypes.create_string_buffer(80), ctypes.c_uint64(80)
        with self.lock:
            code = _c.IOConnectCallStructMethod(self._connected(), 2, request, 80, answer, ctypes.byref(size))
            if code & 0xFFFFFFFF in (_INVALID_DEST, _NOT_OPEN):
                _c.kept.pop("smc", None)    # gone: opened again by the next call
        if code:
            raise _io_error("smc", "reading %s" % what, code)
        if size.value != 80:
            raise _broken("smc", "%s: an answer of %d bytes" % (what, size.value))
        read = answer.raw
        if read[40] not in (0, _SMC_NO_SUCH_KEY):
            raise _broken("smc", "%s: result %d" % (what, read[40]))
        return None if read[40] else read

    def _connected(self) -> Any:
        if "smc" not in _c.kept:
            connection = _c.IOConnection()
            _done("smc", "IOServiceOpen", self._service(), _task_self(), 0, ctypes.byref(connection))
            if not connection:
                raise _broken("smc", "IOServiceOpen gave no connection")
            _c.kept["smc"] = connection
        return _c.kept["smc"]

    @staticmethod
    def _service() -> Any:
        """AppleSMCKeysEndpoint is the class that serves keys; an M1 on macOS 11 has AppleSMC only."""
        registry = _Registry()
        found = registry.services("AppleSMCKeysEndpoint") or registry.services("AppleSMC")
        if not found:
            raise _fail(ERROR_NOT_SUPPORTED, _host_reason(), "smc", "there is no SMC")
        return found[0]


def _task_self() -> int:
    """mach_task_self() is a macro: it reads this variable."""
    return ctypes.c_uint32.from_address(_c.address("System", "mach_task_self_")).value


class _HID(_Source):
    """Temperature sensors of the HID event system. One client, kept: making it repeatedly has crashed (sysinfo 1279)."""

    _PAGE, _USAGE = 0xFF00, 5               # kHIDPage_AppleVendor, temperature sensor
    _EVENT, _FIELD = 15, 15 << 16
    _REFRESH = 5_000_000_000                # ns between two looks at which services there are

    def __init__(self) -> None:
        super().__init__()
        self.services: Any = None
        self.known: list[tuple[int, str, int]] = []
        self.looked = 0

    def temperatures(self) -> list[tuple[str, int, float | None]]:
        """(product, location, degrees) of every sensor; names repeat, and a sensor may have no value."""
        with self.lock:
            return [(product, location, self._value(service)) for service, product, location in self._services()]

    def _value(self, service: int) -> float | None:
        event = _c.IOHIDServiceClientCopyEvent(service, self._EVENT, 0, 0)
        return _c.IOHIDEventGetFloatValue(event, self._FIELD) if event else None

    def _services(self) -> list[tuple[int, str, int]]:
        now = _raw_clock("CLOCK_UPTIME_RAW")
        if self.services is None or not 0 <= now - self.looked < self._REFRESH:
            listed = _c.IOHIDEventSystemClientCopyServices(self._connected())
            self.known = [self._known(service) for service in _cf_items(listed) if _cf_is_other(service)]
            self.services, self.looked = listed, now
        return self.known

    @staticmethod
    def _known(service: int) -> tuple[int, str, int]:
        """The service (borrowed from the list, which is kept), its name and place."""
        product = _cf_value(_c.IOHIDServiceClientCopyProperty(service, _cf_key("Product")))
        location = _cf_value(_c.IOHIDServiceClientCopyProperty(service, _cf_key("LocationID")))
        return service, product if isinstance(product, str) else "", location if isinstance(location, int) else 0

    def _connected(self) -> Any:
        if "hid" not in _c.kept:
            matching = _cf_dictionary({"PrimaryUsagePage": self._PAGE, "PrimaryUsage": self._USAGE})
            client = _c.IOHIDEventSystemClientCreate(None)
            if not client:
                raise _broken("hid", "there is no HID event system client")
            _c.kept["hid"] = client, matching       # the client reads the dictionary later, from a queue of its own
            _c.IOHIDEventSystemClientSetMatching(client, matching)
        return _c.kept["hid"][0]


class _Words(ctypes.Structure):
    """An array that the kernel maps into our process (host_processor_info)."""
    _fields_ = [("start", ctypes.c_void_p), ("count", ctypes.c_uint32)]

    def __bool__(self) -> bool:
        return bool(self.start)


class _Mach(_Source):
    """Memory and CPU counters of the kernel."""

    _VM_INFO64, _CPU_LOAD = 4, 2            # flavors
    _ROOM, _LEAST = 256, 38                 # ints; macOS 27 refuses a buffer of exactly 38, the size until macOS 15

    def __init__(self) -> None:
        super().__init__()
        self.words: Any = None

    @staticmethod
    def _host() -> int:
        """Asked once: mach_host_self adds a send right at each call. It is called and kept in one step of C, so that Ctrl-C
        finds no bytecode in between and never makes it two."""
        if not _c.kept.get("host"):
            _c.kept.update(zip(("host",), iter(_c.mach_host_self, None)))
        port: int = _c.kept["host"]
        if not port:
            raise _broken("mach", "mach_host_self gave no port")
        return port

    def vm_statistics(self) -> bytes:
        """vm_statistics64, 152 bytes or more. The kernel gives fresh numbers only a few times a second."""
        data, count = (ctypes.c_int32 * self._ROOM)(), ctypes.c_uint32(self._ROOM)
        with self.lock:
            _done("mach", "host_statistics64", self._host(), self._VM_INFO64, data, ctypes.byref(count))
        if not self._LEAST <= count.value <= self._ROOM:
            raise _broken("mach", "host_statistics64 gave %d words" % count.value)
        return bytes(data)[:count.value * 4]

    def cpu_ticks(self) -> bytes:
        """Four u32 for each CPU: user, system, idle, nice; they wrap."""
        cpus = ctypes.c_uint32()
        with self.lock:
            words = self._words()()
            _done("mach", "host_processor_info", self._host(), self._CPU_LOAD, ctypes.byref(cpus), ctypes.byref(words),
                  ctypes.byref(words, _Words.count.offset))
            if not words or not 0 < words.count == cpus.value * 4:
                raise _broken("mach",
                            "host_processor_info gave %d words for %d CPUs" % (words.count, cpus.value))
            return ctypes.string_at(words.start, words.count * 4)

    def _words(self) -> Any:
        if self.words is None:
            task, deallocate = _task_self(), _c.vm_deallocate
            self.words = _c.owned(_Words, lambda words: deallocate(task, words.start, words.count * 4))
        return self.words

    def page_size(self) -> int:
        size = ctypes.c_uint64()
        with self.lock:
            _done("mach", "host_page_size", self._host(), ctypes.byref(size))
        return size.value

    def timebase(self) -> tuple[int, int]:
        """Nanoseconds per mach tick as a fraction: 125/3 natively, 1/1 under Rosetta."""
        pair = (ctypes.c_uint32 * 2)()
        with self.lock:
            _done("mach", "mach_timebase_info", pair)
        return pair[0], pair[1]


class _Libproc(_Source):
    """Processes. For another user's, everything but short_info and path raises NoPermission (xnu proc_info.c)."""

    _TASK_INFO, _SHORT_INFO = (4, 96), (13, 64)     # flavor and size

    def __init__(self) -> None:
        super().__init__()
        self.flavor = 6                             # of rusage_info; before macOS 13 it is 4

    def pids(self) -> list[int]:
        """Every process id. proc_listallpids answers with a count of ids, not of bytes."""
        with self.lock:
            room = 0
            for _ in range(4):      # processes may start between the two calls
                room = max(room, _c.proc_listallpids(None, 0)) + 64
                ids = (ctypes.c_int32 * room)()
                ctypes.set_errno(0)
                count, code = _c.proc_listallpids(ids, ctypes.sizeof(ids)), ctypes.get_errno()
                if count <= 0 and code == _EPERM:
                    raise _fail(ERROR_NO_PERMISSION, REASON_SANDBOX, "libproc",
                                "the App Sandbox hides the list of processes")
                if count <= 0:
                    raise _broken("libproc", "proc_listallpids: errno %d" % code)
                if count < room:
                    break
        return list(ids[:count])

    @staticmethod
    def _error(pid: int, call: str, code: int) -> AppleGPUError:
        if code == _ESRCH:
            return _fail(ERROR_NOT_FOUND, REASON_ABSENT, "libproc", "there is no process %d" % pid)
        if code == _EPERM:
            return _fail(ERROR_NO_PERMISSION, REASON_PERMISSION, "libproc", "process %d belongs to another user" % pid)
        return _broken("libproc", "%s of %d: errno %d" % (call, pid, code))

    def _info(self, pid: int, flavor: int, size: int) -> bytes:
        data = ctypes.create_string_buffer(size)
        with self.lock:
            ctypes.set_errno(0)
            got, code = _c.proc_pidinfo(pid, flavor, 0, data, size), ctypes.get_errno()
        if got != size:
            raise self._error(pid, "proc_pidinfo (%d of %d bytes)" % (got, size), code)
        return data.raw

    def short_info(self, pid: int) -> bytes | None:
        """proc_bsdshortinfo, readable for every process; None when there is none."""
        try:
            return self._info(pid, *self._SHORT_INFO)
        except NVMLError_NotFound:
            return None

    def task_info(self, pid: int) -> bytes:
        """proc_taskinfo: CPU time in mach ticks."""
        return self._info(pid, *self._TASK_INFO)

    def rusage(self, pid: int) -> bytes:
        """rusage_info_v6, or v4 where the kernel does not know it."""
        code, data = self._rusage(pid, self.flavor)
        if code == _EINVAL and self.flavor == 6:
            code, data = self._rusage(pid, 4)
            if not code:
                self.flavor = 4
        if code:
            raise self._error(pid, "proc_pid_rusage", code)
        return data

    def _rusage(self, pid: int, flavor: int) -> tuple[int, bytes]:
        data = ctypes.create_string_buffer(1024)        # the buffer itself, though the header says rusage_info_t *
        with self.lock:
            ctypes.set_errno(0)
            failed, code = _c.proc_pid_rusage(pid, flavor, data), ctypes.get_errno()
        return (code or -1, b"") if failed else (0, data.raw[:464 if flavor == 6 else 296])

    def path(self, pid: int) -> str | None:
        text = ctypes.create_string_buffer(4096)        # PROC_PIDPATHINFO_MAXSIZE
        with self.lock:
            length = _c.proc_pidpath(pid, text, 4096)
        return text.raw[:length].decode("utf-8", "replace") if 0 < length <= 4096 else None

    def own_pid(self) -> int:
        return os.getpid()


class _Notify(_Source):
    """notify(3) states; no run loop needed, unlike NSProcessInfo's, which grow stale without one."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens: dict[str, int] = {}

    def state(self, name: str) -> int:
        value = ctypes.c_uint64()
        with self.lock:
            status = _c.notify_get_state(self._token(name), ctypes.byref(value))
            if status:      # notifyd started anew: a new token next time
                _c.notify_cancel(self.tokens.pop(name))
                raise _broken("notify", "%s: status %d" % (name, status))
        return value.value

    def _token(self, name: str) -> int:
        if name not in self.tokens:
            token = ctypes.c_int32()
            status = _c.notify_register_check(name.encode(), ctypes.byref(token))
            if status:
                raise _broken("notify", "%s: status %d" % (name, status))
            self.tokens[name] = token.value
        return self.tokens[name]


class _Power(_Source):
    """What the Mac runs on."""

    def providing(self) -> str | None:
        """"AC Power", "Battery Power", or None where macOS names no source."""
        with self.lock:
            info = _c.IOPSCopyPowerSourcesInfo()
            if not info:
                raise _fail(ERROR_OPERATING_SYSTEM, REASON_SOURCE_FAILED, "power", "IOPSCopyPowerSourcesInfo gave nothing")
            return _cf_text(_c.IOPSGetProvidingPowerSourceType(info))


class _MetalDevice(_Source):
    """The few figures that only Metal has. A device is made, asked and released in one call; never a command queue."""

    _FAMILIES = tuple(range(1001, 1016)) + (2002, 3001, 3002, 3003, 5001, 5002, 5003)
    _WORDS = ("registryID", "recommendedMaxWorkingSetSize", "maxBufferLength", "maxThreadgroupMemoryLength")

    child = False

    def forked(self) -> None:
        super().forked()
        self.child = True

    def device(self, registry_id: int | None = None) -> dict[str, Any]:
        """What the device of this registry id says of itself; the only one there is, where none has it."""
        if self.child:
            raise _fail(ERROR_NOT_READY, REASON_FORKED_CHILD, "metal")
        with self.lock:
            _c.library("CoreGraphics")      # without it there is no default device (Apple's documentation)
            pop, pool = _c.objc_autoreleasePoolPop, _c.objc_autoreleasePoolPush()
            try:
                return self._chosen(registry_id)
            finally:
                pop(pool)

    def _chosen(self, registry_id: int | None) -> dict[str, Any]:
        """All devices are empty in some sandboxes, the default is nil over ssh and in daemons: each is asked."""
        devices = _c.MTLCopyAllDevices()
        count = _message(devices, "count", "Q") if devices else 0
        found = [_message(devices, "objectAtIndex:", "p", "Q", i) for i in range(min(count, 64))]
        for device in found:
            if len(found) == 1 or registry_id is None or _message(device, "registryID", "Q") == registry_id:
                return self._described(device)
        default = _c.MTLCreateSystemDefaultDevice()
        if not default:
            raise _fail(ERROR_NOT_READY, REASON_SOURCE_FAILED, "metal", "Metal gives no device to this process")
        return self._described(default)

    def _described(self, device: Any) -> dict[str, Any]:
        said: dict[str, Any] = {name: _message(device, name, "Q") for name in self._WORDS}
        said["name"] = _message_text(_message(device, "name", "p"))
        said["hasUnifiedMemory"] = bool(_message(device, "hasUnifiedMemory", "B"))
        said["families"] = tuple(f for f in self._FAMILIES if _message(device, "supportsFamily:", "B", "q", f))
        said["architecture"] = None
        if _message(device, "respondsToSelector:", "B", "p", _selector_of(b"architecture")):       # macOS 14
            architecture = _message(device, "architecture", "p")
            said["architecture"] = _message_text(_message(architecture, "name", "p")) if architecture else None
        return said


def _message(receiver: Any, selector: str, result: str, arguments: str = "", *values: Any) -> Any:
    """One Objective-C message of known signature; BOOL is read as a byte (C bool on arm64, signed char on x86_64)."""
    return _c.send(result, arguments)(receiver, _selector_of(selector.encode()), *values)


def _message_text(string: Any) -> str | None:
    """The text of an NSString."""
    text = _message(string, "UTF8String", "s") if string else None
    return None if text is None else text.decode("utf-8", "replace")


class _Clock(_Source):
    """Time. CLOCK_UPTIME_RAW is mach_absolute_time, the clock of the drivers' stamps; it stands still in sleep."""

    ticks = 0

    def now(self) -> tuple[int, int]:
        """(uptime, uptime with sleep) in ns; their difference grows by what the Mac slept."""
        return _raw_clock("CLOCK_UPTIME_RAW"), _raw_clock("CLOCK_MONOTONIC_RAW")

    def unix(self) -> float:
        return time.time()

    def ticks_per_second(self) -> int:
        """Of the stamps; mach_timebase_info lies under Rosetta, this sysctl does not."""
        if not self.ticks:
            self.ticks = _Sysctl().number("hw.tbfrequency") or 0
            if not self.ticks:
                raise _fail(ERROR_NOT_SUPPORTED, REASON_MACOS, "sysctl", "hw.tbfrequency is missing")
        return self.ticks

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def step(self) -> None:
        """A call begins; only a recording cares."""


class _LiveMachine:
    """This Mac. Nothing is opened before it is asked; what is opened stays for the life of the process."""

    name = "live"

    def __init__(self) -> None:
        self.registry = _Registry()
        self.ioreport = _IOReport()
        self.smc = _SMC()
        self.hid = _HID()
        self.sysctl = _Sysctl()
        self.mach = _Mach()
        self.libproc = _Libproc()
        self.notify = _Notify()
        self.power = _Power()
        self.metal = _MetalDevice()
        self.clock = _Clock()

    def forked(self) -> None:
        """In a forked child: forget, never release, and begin anew with new locks."""
        _c.forked()
        for source in list(vars(self).values()):
            if isinstance(source, _Source):
                source.forked()


# ======================================================================================================================
# recording
# ======================================================================================================================

_RECORDING_FORMAT = 1
_RECORDING_LARGEST = 16 << 20
_RECORDING_PARTS = ("registry", "ioreport", "smc", "hid", "sysctl", "mach", "libproc", "notify", "power", "metal",
                    "time")
_PLATFORM_CLASS = "IOPlatformExpertDevice"


# ---- counters go on when a recording starts again: carried forward by what they gained in the whole of it ----

def _grown_structure(offsets: tuple[int, ...], now: bytes, first: bytes, last: bytes, rounds: int) -> bytes:
    """A C structure, its 64-bit counters at `offsets` carried forward; they never fall."""
    out = bytearray(now)
    for at in offsets:
        if at + 8 <= min(len(now), len(first), len(last)):
            value, a, b = (int.from_bytes(raw[at:at + 8], "little") for raw in (now, first, last))
            out[at:at + 8] = ((value + rounds * max(0, b - a)) % (1 << 64)).to_bytes(8, "little")
    return bytes(out)


# Where the counters are (facts: xnu proc_info.h, resource.h).
_TASK_COUNTERS = (16, 24)                                       # proc_taskinfo: total_user, total_system
_RUSAGE_COUNTERS = (16, 24, 248, 256, 264, 272, 288,            # rusage_info_v4: times, instructions, cycles, energy
                    304, 312, 320, 328, 336, 344)               # v6: P-core times, instructions, cycles, energy_nj


def _grown_words(now: bytes, first: bytes, last: bytes, rounds: int) -> bytes:
    """32-bit counters that wrap."""
    words = struct.Struct("<%dI" % (len(now) // 4))
    counters = zip(words.unpack(now), words.unpack(first), words.unpack(last))
    return words.pack(*((value + rounds * (b - a)) % (1 << 32) for value, a, b in counters))


def _usage_times(tagged: Any) -> list[int | None]:
    pairs = [item[1].get("accumulatedGPUTime") if item[0] == "d" else None for item in tagged[1]]
    return [pair[1] if pair and pair[0] == "i64" else None for pair in pairs]


def _grown_usage(now: Any, first: Any, last: Any, rounds: int) -> Any:
    """AppUsage, its accumulatedGPUTime carried forward where an entry is there from the first instant to the last;
    other properties are gauges."""
    if not now[0] == first[0] == last[0] == "a":
        return now
    items = list(now[1])
    for i, (used, a, b) in enumerate(zip(_usage_times(now), _usage_times(first), _usage_times(last))):
        if used is not None and a is not None and b is not None and b > a:
            items[i] = ["d", dict(items[i][1], accumulatedGPUTime=["i64", _signed(used + rounds * (b - a))])]
    return ["a", items]


def _signed(value: int, bits: int = 64) -> int:
    half = 1 << (bits - 1)
    return (value + half) % (2 * half) - half


def _span_gain(rows: Sequence[Sequence[int]], span: int, gain: int) -> int:
    """What an energy counter gains in one round, by its stamps: they may lie closer together than the round is long, or
    further apart. Then the mean power fills up, or what lies beyond the round is left out. `gain` where rows do not rise."""
    if not rows or any(b[0] < a[0] or b[1] < a[1] for a, b in zip(rows, rows[1:])) or rows[0][0] == rows[-1][0]:
        return gain
    first, last = rows[0], rows[-1]
    begin = max(first[0], last[0] - span)
    a, b = next((a, b) for a, b in zip(rows, rows[1:]) if b[0] > begin)
    return (last[1] - a[1] - (b[1] - a[1]) * (begin - a[0]) // (b[0] - a[0])) * span // (last[0] - begin)


# ---- a recording is untrusted: it is read once, by one table of shapes and limits, and not looked at again ----

class _Wrong(Exception):
    """What is wrong with a value; then its place, innermost first: each container on the way out adds one key."""


def _need(fine: bool, what: str) -> None:
    if not fine:
        raise _Wrong(what)


def _read_all(items: Iterable[tuple[Any, _Shape, Any]]) -> dict[Any, Any]:
    """The values of a container, given as (key, shape, value). A shape is one of the functions below, told its limits:
    it returns what the player uses, or says what is wrong."""
    out: dict[Any, Any] = {}
    key = None
    try:
        for key, shape, value in items:
            out[key] = shape(value)
    except _Wrong as wrong:
        wrong.args += (str(key)[:64],)
        raise
    return out


def _read_number(low: float, high: float, value: Any) -> Any:
    if type(value) is not int or not low <= value <= high:
        raise _Wrong("is not a whole number from %d to %d" % (low, high))
    return value


def _read_real(low: float, high: float, value: Any) -> float:
    if type(value) not in (int, float) or not low <= value <= high:
        raise _Wrong("is not a number from %g to %g" % (low, high))
    return float(value)


def _read_text(most: int, value: Any) -> str:
    if type(value) is not str or len(value) > most:
        raise _Wrong("is not text of at most %d characters" % most)
    if not value.isprintable() and any(c < " " or "\x7f" <= c < "\xa0" or "\ud800" <= c < "\ue000" for c in value):
        raise _Wrong("holds control characters")     # it will be printed on somebody's terminal
    return value


def _read_name_or_null(value: Any) -> str | None:
    return None if value is None else _read_text(256, value)


def _read_choice(allowed: tuple[Any, ...], value: Any) -> Any:
    _need(type(value) is type(allowed[0]) and value in allowed, "is not one of " + ", ".join(map(repr, allowed)))
    return value


def _read_hex(least: int, most: int, multiple: int, value: Any) -> bytes:
    try:
        data = bytes.fromhex(value) if type(value) is str else None
    except ValueError:
        data = None
    if data is None or not least <= len(data) <= most or 2 * len(data) != len(value) or len(data) % multiple:
        raise _Wrong("is not the hex of %d to %d bytes" % (least, most))        # fromhex skips spaces
    return data


def _read_word(value: Any) -> int:
    digits = value[2:] if type(value) is str and value[:2] == "0x" else ""
    if not 1 <= len(digits) <= 16 or digits.strip("0123456789abcdefABCDEF"):
        raise _Wrong("is not a 64-bit number written as 0x...")
    return int(digits, 16)


def _read_list(shape: _Shape, least: int, most: int, value: Any) -> list[Any]:
    _need(type(value) is list and least <= len(value) <= most, "is not a list of %d to %d" % (least, most))
    return list(_read_all([(i, shape, item) for i, item in enumerate(value)]).values())


def _read_numbers(instants: int, value: Any) -> Any:
    """One row of 64-bit numbers or null per instant. They are most of a recording: looked at all together, one by one
    only to say which is wrong."""
    from itertools import chain
    _need(type(value) is list and len(value) <= instants, "is not a list of 0 to %d" % instants)
    rows: list[Any] = [row for row in value if row is not None]
    sizes = list(map(len, rows)) if set(map(type, rows)) <= {list} else [0]
    flat: list[Any] = list(chain.from_iterable(rows)) if {2 <= size <= 1025 for size in sizes} <= {True} else [""]
    if set(map(type, flat)) - {int} or not INT64_MIN <= min(flat, default=0) <= max(flat, default=0) < -INT64_MIN:
        one_row = partial(_read_list, partial(_read_number, INT64_MIN, -INT64_MIN - 1), 2, 1025)
        _read_all((i, one_row, row) for i, row in enumerate(value) if row is not None)
    return value


def _read_table(shape: _Shape, most: int, value: Any) -> dict[str, Any]:
    _need(type(value) is dict and len(value) <= most, "is not an object of at most %d" % most)
    for key in value:
        _read_text(256, key)
    return _read_all([(key, shape, item) for key, item in value.items()])


def _object(fields: dict[str, _Shape]) -> _Shape:
    """An object with these fields. Those spelt with a ? may be missing or null: then a list or table is empty and all
    else None. Other fields are not looked at."""
    empty: dict[Any, Any] = {_read_list: (), _read_table: {}}
    absent = {key[:-1]: empty.get(getattr(shape, "func", None)) for key, shape in fields.items() if key[-1] == "?"}
    return partial(_read_object, {key.rstrip("?"): shape for key, shape in fields.items()}, absent)


def _read_object(shapes: dict[str, _Shape], absent: dict[str, Any], value: Any) -> dict[str, Any]:
    _need(type(value) is dict, "is not an object")
    for key in sorted(shapes.keys() - absent.keys() - value.keys()):
        raise _Wrong("has no %r" % key)
    here = [(key, shapes[key], item) for key, item in value.items()
            if key in shapes and (item is not None or key not in absent)]
    return {**absent, **_read_all(here)}


class _Changes(NamedTuple):
    """What is said at some instants, each until the next; `grown` carries counters in it forward."""
    instants: list[int]
    values: list[Any]
    grown: Callable[..., Any] | None        # of the value now, the first, the last, how many rounds

    def at(self, instant: int, rounds: int) -> Any:
        from bisect import bisect_right
        value = self.values[bisect_right(self.instants, instant) - 1]
        return self.grown(value, self.values[0], self.values[-1], rounds) if rounds and self.grown else value


def _read_series(instants: int, shape: _Shape, grown: Callable[..., Any] | None, value: Any) -> _Changes:
    if type(value) is not list or not 1 <= len(value) <= instants:
        raise _Wrong("is not a list of 1 to %d [instant, value] pairs" % instants)
    before = -1
    for i, pair in enumerate(value):
        if type(pair) is not list or len(pair) != 2 or type(pair[0]) is not int:
            raise _Wrong("holds something else than [instant, value] pairs")
        if not before < pair[0] < instants or (i == 0 and pair[0]):
            raise _Wrong("must name instants from 0 to %d in ascending order, the first 0" % (instants - 1))
        before = pair[0]
    said = _read_all([(instant, shape, item) for instant, item in value])
    return _Changes(list(said), list(said.values()), grown)


def _read_cf(depth: int, value: Any) -> list[Any]:
    """A Core Foundation value in tagged form: ["s", text], ["i64", number], ["x", hex], ["a", [...]] ..."""
    if type(value) is not list or len(value) != 2 or type(value[0]) is not str or depth > 16:
        raise _Wrong("is not a [type, value] pair")
    kind, inner = value
    if kind == "a":
        return [kind, _read_list(partial(_read_cf, depth + 1), 0, 65536, inner)]
    if kind == "d":
        return [kind, _read_table(partial(_read_cf, depth + 1), 4096, inner)]
    _need(kind in _CF_LEAVES, "has the unknown type %.16r" % kind)
    read, *limits = _CF_LEAVES[kind]
    inner = read(*limits, inner)
    if kind == "f32":
        inner = struct.unpack("<f", struct.pack("<f", inner))[0]
    return [kind, _signed(inner, _CF_WIDTHS[kind]) if kind in _CF_WIDTHS else inner]


_CF_WIDTHS = {"i8": 8, "i16": 16, "i32": 32, "i64": 64}
_CF_LEAVES: dict[str, tuple[Any, ...]] = {       # how each is read, and its limits
    "s": (_read_text, 4096), "b": (_read_choice, (True, False)), "x": (_read_hex, 0, 1 << 20, 1),
    "f32": (_read_real, -3.4e38, 3.4e38), "f64": (_read_real, -1e300, 1e300),
    **{kind: (_read_number, -(1 << bits - 1), (1 << bits) - 1) for kind, bits in _CF_WIDTHS.items()}}


def _plain(tagged: list[Any]) -> Any:
    """Python's form of a tagged Core Foundation value, as the native registry answers it."""
    kind, value = tagged
    if kind == "a":
        return [_plain(item) for item in value]
    return {key: _plain(item) for key, item in value.items()} if kind == "d" else value


def _read_smc_key(value: Any) -> list[Any]:
    _need(type(value) is list and [type(v) for v in value] == [str, str, int] and len(value[0]) == len(value[1]) == 4
          and 0 <= value[2] <= 128, "is not an SMC key: [four characters, four characters, size]")
    _read_text(8, value[0] + value[1])
    return list(value)


class _Rows:
    """(stamp, values) of an IOReport channel at an instant; None when it is absent from that sample."""

    __slots__ = ("rows", "quantity", "published", "ticks", "span", "gains")

    def __init__(self, rows: list[list[int] | None], quantity: int, simple: bool, ticks: list[int]) -> None:
        self.rows, self.quantity, self.ticks, self.span = rows, quantity, ticks, ticks[-1] - ticks[0]
        self.published = quantity == 3 and simple       # an energy counter: its stamp is some time before the sample
        self.gains: list[int] = []      # what one round adds: to the stamp, to each value

    def at(self, instant: int, rounds: int) -> tuple[int, tuple[int, ...]] | None:
        row = self.rows[min(instant, len(self.rows) - 1)] if self.rows else None
        if row is not None and rounds:
            row, last = self._carried(row, rounds), self.rows[-1]
            if last is not None and self.published and self.gains[0]:
                held = self._carried(last, rounds - 1)
                # Until there is a newer publication, and one that the round's last instants would not have shown.
                if row[0] <= max(held[0], self.ticks[-2] + (rounds - 1) * self.span):
                    row = held
        return None if row is None else (row[0], tuple(row[1:]))

    def _carried(self, row: list[int], rounds: int) -> list[int]:
        self.gains = self.gains or self._gained([row for row in self.rows if row is not None])
        return [v if v == INT64_MIN else _signed(v + rounds * gain) for v, gain in zip(row, self.gains)]

    def _gained(self, rows: list[list[int]]) -> list[int]:
        """A stamp that stood all the time stands, so that what its driver never published does not look new; with one
        instant everything stands."""
        columns = [[v for v in column if v != INT64_MIN] or [0] for column in zip(*rows)]
        stamp, *gains = [max(0, column[-1] - column[0]) for column in columns]
        if self.quantity in (2, 10):        # power, temperature: gauges
            gains = [0] * len(gains)
        elif stamp and self.published:
            gains = [_span_gain([row for row in rows if row[1] != INT64_MIN], self.span, gains[0])]
        return [self.span if stamp else 0, *gains]


def _read_node(fields: _Shape, value: Any) -> dict[str, Any]:
    node: dict[str, Any] = fields(value)
    return dict(node, properties={**node["properties"], **node.pop("series")})


def _read_channel(fields: _Shape, ticks: list[int], value: Any) -> dict[str, Any]:
    said: dict[str, Any] = fields(value)
    number, kind, unit, states, rows = said["channel"], said["type"], said["unit"], said["states"], said["rows"]
    format = kind & 0xFF
    _need(format in (_SIMPLE, _HISTOGRAM) or (format == _STATE and states),
          "is of no known format, or a state channel without states")
    sizes = {len(row) for row in rows if row is not None}
    size = 1 if format == _SIMPLE else len(states)
    _need(len(sizes) < 2 and (not size or sizes <= {1 + size}), "has rows of the wrong length")
    about = _Channel(said["driver"], number, said["group"], said["subgroup"],
                     _channel_name(number) if said["name"] is None else said["name"], format, _unit_text(unit),
                     tuple(states) if format == _STATE else (), kind, unit)
    return {"about": about, "name": said["name"], "states": states, "rows": _Rows(rows, unit >> 56, not states, ticks)}


def _unit_text(word: int) -> str:
    """IOReport's label of a unit word: quantity, powers of ten and two, constant (facts: xnu IOReportTypes.h)."""
    quantity, two, ten, number = word >> 56, word >> 40 & 0xFF, word >> 32 & 0xFF, word & 0x7FFFFFFF
    if quantity == 100:
        return "events"
    if quantity == 9:       # counted in bits: 2^3 is a byte
        return {130: "B", 140: "KiB", 150: "MiB", 160: "GiB"}.get(two, "")
    if quantity == 1 and word >> 31 & 1:
        return "%dMticks" % number if ten == 121 else ""
    prefix = {0: "", 118: "n", 121: "u", 124: "m", 127: "", 130: "k"}.get(ten)
    return "" if prefix is None or quantity not in (1, 2, 3) else prefix + " sWJ"[quantity]


def _list_of(shape: _Shape, most: int = 20000, least: int = 0) -> _Shape:
    return partial(_read_list, shape, least, most)


def _table_of(shape: _Shape, most: int = 4096) -> _Shape:
    return partial(_read_table, shape, most)


def _metal_device(name: _Shape, word: _Shape) -> _Shape:
    size = partial(_read_number, 0, (1 << 63) - 1)
    return _object({
        "name": name, "registryID": word, "recommendedMaxWorkingSetSize?": size, "maxBufferLength?": size,
        "hasUnifiedMemory?": partial(_read_choice, (True, False)), "maxThreadgroupMemoryLength?": size,
        "architecture?": name, "supportsFamily:?": _list_of(partial(_read_number, 0, 99999), 256)})


def _recording_shape(ticks: list[int]) -> _Shape:
    """What a recording with these instants must look like."""
    def series(shape: _Shape, grown: Callable[..., Any] | None = None) -> _Shape:
        return partial(_read_series, len(ticks), shape, grown)

    def structure(least: int, most: int, grown: Callable[..., Any] | None = None, multiple: int = 1) -> _Shape:
        return series(partial(_read_hex, least, most, multiple), grown)
    name, word, tagged = partial(_read_text, 256), partial(_read_number, 0, (1 << 64) - 1), partial(_read_cf, 0)
    node = _object({
        "id": word, "class": name, "name?": name, "conforms?": _list_of(name, 64), "parent?": word,
        "properties?": _table_of(tagged), "series?": _table_of(series(tagged, _grown_usage))})
    channel = _object({
        "driver": _read_word, "channel": _read_word, "group": name, "subgroup": name, "name?": name, "type": _read_word,
        "unit": _read_word, "rows": partial(_read_numbers, len(ticks)), "states?": _list_of(name, 1024, 1)})
    sensor = _object({"properties": _table_of(tagged), "value?": series(partial(_read_real, -1e9, 1e9))})
    process = _object({
        "pid": partial(_read_number, -1, (1 << 31) - 1), "name?": name, "path?": partial(_read_text, 1024),
        "short_info?": structure(64, 256), "task_info?": structure(96, 256, partial(_grown_structure, _TASK_COUNTERS)),
        "rusage?": structure(296, 1024, partial(_grown_structure, _RUSAGE_COUNTERS))})
    return _object({
        "registry": _list_of(partial(_read_node, node)),
        "ioreport": _object({"groups": _table_of(partial(_read_choice, ("ok", "refuses"))),
                             "channels": _list_of(partial(_read_channel, channel, ticks))}),
        "smc?": _object({"keys": _list_of(_read_smc_key), "values?": _table_of(structure(0, 128), 20000)}),
        "hid": _object({"services": _list_of(sensor, 4096)}),
        "sysctl?": _table_of(structure(0, 4096)),
        "mach?": _object({"page_size": partial(_read_number, 1, 1 << 30),
                          "vm_statistics64": structure(152, 4096, None, 4),
                          "cpu_load": structure(16, 65536, _grown_words, 16)}),
        "libproc": _object({"processes": _list_of(process)}),
        "notify?": _table_of(series(word)),
        "power": _object({"providing?": series(_read_name_or_null)}),
        "metal": _object({"devices": _list_of(_metal_device(name, word), 64),
                          "default?": partial(_read_number, 0, 63)}),
        "title?": name, "macos?": name, "chip?": name,
    })


# What a recording without such a part says.
_NOTHING_SAID = {"registry": [], "ioreport": {"groups": {}, "channels": []}, "hid": {"services": []},
                 "libproc": {"processes": []}, "power": {}, "metal": {"devices": []}}


def _read_time(value: Any) -> dict[str, Any]:
    """Before everything else: it says how many instants there are."""
    moments = _list_of(partial(_read_number, 0, 1 << 56), 100000, 1)
    clock: dict[str, Any] = _object({
        "timebase": _list_of(partial(_read_number, 1, 1 << 31), 2, 2), "ticks": moments, "slept?": moments,
        "unix?": partial(_read_real, 0, 1e11)})(value)
    ticks, slept = clock["ticks"], clock["slept"]
    _need(ticks == sorted(set(ticks)), "must have ascending ticks")
    _need(not slept or (len(slept) == len(ticks) and slept == sorted(slept)),
          "must have one ascending slept for each of the ticks")
    return dict(clock, slept=slept or [0] * len(ticks), unix=clock["unix"] or 0.0)


def _check_links(said: dict[str, Any]) -> None:
    """What one part says about another, or twice."""
    ioreport, smc, metal, mach = (said[part] or {} for part in ("ioreport", "smc", "metal", "mach"))
    for what, key, items in (("registry id", "id", said["registry"]), ("pid", "pid", said["libproc"]["processes"])):
        _need(len({item[key] for item in items}) == len(items), "has the same %s twice" % what)
    for group in {channel["about"].group for channel in ioreport["channels"]} - set(ioreport["groups"]):
        raise _Wrong("has channels of the group %.64r that ioreport.groups does not name" % group)
    sizes = {key: size for key, _, size in smc.get("keys", ())}
    for key, series in smc.get("values", {}).items():
        _need({len(value) for value in series.values} == {sizes.get(key)},
              "has a value of the SMC key %.16r that does not fit its entry in smc.keys" % key)
    _need((metal["default"] or 0) < max(1, len(metal["devices"])), "has a metal.default that is not in metal.devices")
    _need(not mach or len({len(value) for value in mach["cpu_load"].values}) == 1,
          "has a mach.cpu_load whose length changes")


def _read_recording(data: Any) -> dict[str, Any]:
    """Everything that a recording says, by part."""
    _need(type(data) is dict and type(data.get("format")) is int, "is not a recording: it has no \"format\"")
    _need(data["format"] == _RECORDING_FORMAT, "has format %d; this version reads format %d%s" % (
        data["format"], _RECORDING_FORMAT, ", get a newer pyapplegpu" * (data["format"] > _RECORDING_FORMAT)))
    clock: dict[str, Any] = _object({"time": _read_time})(data)
    parts = {**_NOTHING_SAID, **{key: part for key, part in data.items() if part is not None}}
    said: dict[str, Any] = _recording_shape(clock["time"]["ticks"])(parts)
    _check_links(said)
    _add_platform(said["registry"], _content_uuid(data))
    return {**said, **clock}


def _content_uuid(data: dict[str, Any]) -> str:
    """Stands for IOPlatformUUID, which no recording holds: made of what the file says of the Mac, which leaves out what
    the file expects of this library."""
    import hashlib
    import json
    try:
        content = json.dumps({part: data.get(part) for part in _RECORDING_PARTS}, sort_keys=True).encode("ascii")
    except RecursionError:
        raise _Wrong("is nested too deeply") from None
    text = hashlib.sha256(content).hexdigest()[:32].upper()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def _add_platform(nodes: list[dict[str, Any]], uuid: str) -> None:
    """One IOPlatformExpertDevice in any case, with this UUID."""
    if not any(node["class"] == _PLATFORM_CLASS for node in nodes):
        taken = {node["id"] for node in nodes}
        nodes.append({"id": next(n for n in range(1 << 32, 1 << 33) if n not in taken), "class": _PLATFORM_CLASS,
                      "name": _PLATFORM_CLASS, "conforms": (), "parent": None, "properties": {}})
    for node in nodes:
        if node["class"] == _PLATFORM_CLASS:
            node["properties"] = dict(node["properties"], IOPlatformUUID=["s", uuid])


def _few_digits(text: str) -> int:
    if len(text) > 21:
        raise ValueError("a number of %d digits" % len(text))
    return int(text)


def _no_constant(text: str) -> NoReturn:
    raise ValueError("%s is not a number" % text)


def _read_json(path: str) -> Any:
    import json
    limited = getattr(sys, "get_int_max_str_digits", int)()     # else int() of a million digits takes minutes
    try:
        with open(path, "rb") as file:
            raw = file.read(_RECORDING_LARGEST + 1)
        if len(raw) > _RECORDING_LARGEST:
            raise ValueError("it is larger than %d MiB" % (_RECORDING_LARGEST >> 20))
        return json.loads(raw.decode("utf-8"), parse_int=None if limited else _few_digits, parse_constant=_no_constant)
    except OSError as error:
        raise _bad("cannot read the recording %s: %s" % (path, error.strerror or error)) from None
    except (ValueError, RecursionError) as error:       # also JSONDecodeError and UnicodeDecodeError
        raise _bad("%s is not a recording: %s" % (path, error)) from None


def _path_text(path: Any) -> str:
    try:
        return os.fsdecode(path)
    except TypeError:
        raise _bad("a recording is named by its path, not by %.64r" % (path,)) from None


class _Recording:
    """A recording that has been read, and what it says at step 0, 1, 2 ...

    Step s is instant s of the file. With loop it goes on from the first instant, time and counters carried forward, so
    that the last instant of a round is the first of the next; without, past the last instant, NoData `recording`.
    """

    def __init__(self, data: Any, path: str = "recording", loop: bool = True) -> None:
        self.path, self.loop = path, loop
        try:
            self.said = _read_recording(data)       # by part; None where this Mac has no such thing
        except _Wrong as wrong:
            raise _bad("%s: %s %s" % (path, ".".join(wrong.args[:0:-1]) or "it", wrong.args[0])) from None
        self._ticks: list[int] = self.said["time"]["ticks"]
        self._slept: list[int] = self.said["time"]["slept"]
        self.instants = len(self._ticks)
        self.ticks_per_second = self._tick_rate(*self.said["time"]["timebase"])
        self.span = self._ticks[-1] - self._ticks[0] or self.ticks_per_second

    def not_held(self, source: str, what: str) -> AppleGPUError:
        return _fail(ERROR_NO_DATA, REASON_RECORDING, source, "the recording does not hold %s" % what)

    # -- time --

    def _tick_rate(self, numer: int, denom: int) -> int:
        """hw.tbfrequency; the timebase only where that is missing: it lies under Rosetta."""
        known = self.said["sysctl"].get("hw.tbfrequency")
        rate = int.from_bytes(known.values[0][:8] if known else b"", "little") or 1000000000 * denom // numer
        if not 1000000 <= rate <= 1000000000:
            raise _bad("%s: the clock makes %d ticks per second, not 1 to 1000 million" % (self.path, rate))
        return rate

    def place(self, step: int) -> tuple[int, int]:
        """Instant and round of a step."""
        if self.loop:
            rounds, instant = divmod(step, max(1, self.instants - 1))
            return instant, rounds
        if step >= self.instants:
            raise _fail(ERROR_NO_DATA, REASON_RECORDING, "recording", "the recording has ended")
        return step, 0

    def ticks(self, step: int) -> int:
        instant, rounds = self.place(step)
        return self._ticks[instant] + rounds * self.span

    def slept(self, step: int) -> int:
        """Nanoseconds asleep."""
        instant, rounds = self.place(step)
        return self._slept[instant] + rounds * (self._slept[-1] - self._slept[0])

    def steps_for(self, ticks: int) -> int:
        """The last step that is not later than this many ticks after the start. The last instant lasts as long as the
        one before it; without loop one step more means the end."""
        from bisect import bisect_right
        rounds, rest = divmod(max(0, ticks), self.span)
        if self.instants == 1:
            return rounds
        if rounds and not self.loop:
            return self.instants - (ticks < self.span + self._ticks[-1] - self._ticks[-2])
        return rounds * (self.instants - 1) + bisect_right(self._ticks, rest + self._ticks[0]) - 1

    def at(self, said: Any, step: int) -> Any:
        """What is said at a step: of a part that may change, at the instant of that step."""
        return said.at(*self.place(step)) if isinstance(said, _Changes) else said


# ---- the sources, answered from a recording ----

def _replay_speed(speed: float) -> float:
    if type(speed) not in (int, float) or not (speed == 0 or 0.001 <= speed <= 1e6):
        raise _bad("speed must be 0, or from 0.001 to 1000000, not %r" % (speed,))
    return speed


class _ReplayClock:
    """Recorded time: with speed > 0 real time moves it, with speed 0 sleep() and step() do; always at an instant."""

    def __init__(self, recording: _Recording, speed: float, monotonic: Callable[[], float] | None,
                 sleep: Callable[[float], None] | None) -> None:
        self._recording, self._speed = recording, _replay_speed(speed)
        self._monotonic, self._real_sleep = monotonic, sleep
        self._origin: float | None = None       # recorded time begins to run when it is first asked for
        self._moved, self._begun = 0, False
        self.forked()

    def forked(self) -> None:
        self._lock = RLock()

    def ticks_per_second(self) -> int:
        return self._recording.ticks_per_second

    def _elapsed(self) -> float:
        """Recorded ticks since the start."""
        now = (self._monotonic or time.monotonic)()
        with self._lock:
            if self._origin is None:
                self._origin = now
            return max(0.0, now - self._origin) * self._speed * self.ticks_per_second()

    def current(self) -> int:
        """The step that answers now."""
        return self._recording.steps_for(int(self._elapsed())) if self._speed else self._moved

    def now(self) -> tuple[int, int]:
        step = self.current()
        up = self._recording.ticks(step) * 1000000000 // self.ticks_per_second()
        return up, up + self._recording.slept(step)

    def unix(self) -> float:
        r, step = self._recording, self.current()
        ran, slept = r.ticks(step) - r.ticks(0), r.slept(step) - r.slept(0)
        return float(r.said["time"]["unix"]) + ran / r.ticks_per_second + slept / 1e9

    def step(self) -> None:
        """A rate call or snapshot begins."""
        if not self._speed:
            with self._lock:
                self._moved += self._begun
                self._begun = True

    def sleep(self, seconds: float) -> None:
        """Nothing is new before the next instant: then it is long enough."""
        if not self._speed:
            with self._lock:
                self._moved += 1
            return
        elapsed, r = self._elapsed(), self._recording
        ahead = r.steps_for(int(elapsed)) + 1
        if r.loop or ahead < r.instants:
            seconds = min(seconds, (r.ticks(ahead) - r.ticks(0) + 1 - elapsed) / r.ticks_per_second)
        (self._real_sleep or time.sleep)(max(0.0, seconds) / self._speed)


class _ReplayedSubscription:
    note = ""

    def __init__(self, recording: _Recording, clock: _ReplayClock, found: list[dict[str, Any]]) -> None:
        self._recording, self._clock, self._rows = recording, clock, [channel["rows"] for channel in found]
        self.channels: list[_Channel] = [channel["about"] for channel in found]

    def sample(self) -> list[tuple[int, tuple[int, ...]] | None]:
        instant, rounds = self._recording.place(self._clock.current())
        return [rows.at(instant, rounds) for rows in self._rows]


class _Replayed(_Sysctl):
    """Every source of a Mac, answered from a recording: no two have a method of one name, so one object serves as each.
    Text and numbers of a sysctl are made of raw() as natively."""

    def __init__(self, recording: _Recording, clock: _ReplayClock) -> None:
        self._recording, self._clock, self._said = recording, clock, recording.said
        self._keys = {key: (size, kind) for key, kind, size in (self._said["smc"] or {}).get("keys", ())}
        self._nodes = {node["id"]: node for node in self._said["registry"]}     # an entry is its id
        self._processes = {p["pid"]: p for p in self._said["libproc"]["processes"]}

    def _at(self, said: Any) -> Any:
        return self._recording.at(said, self._clock.current())

    # -- registry --

    def services(self, class_name: str) -> list[int]:
        # User clients are not registered: matching never finds them (metrics.md 3.12).
        return [e for e, node in self._nodes.items() if not node["class"].endswith("UserClient")
                and (node["class"] == class_name or class_name in node["conforms"])]

    def named(self, name: str) -> list[int]:
        return [e for e, node in self._nodes.items() if node["name"] == name]

    def children(self, entry: int) -> list[int]:
        return [e for e, node in self._nodes.items() if node["parent"] == entry]

    def identity(self, entry: int) -> int:
        return entry

    def class_name(self, entry: int) -> str:
        return str(self._nodes[entry]["class"])

    def get(self, entry: int, key: str) -> Any:
        value = self._at(self._nodes[entry]["properties"].get(key))
        return None if value is None else _plain(value)

    def alive(self, entry: int) -> bool:
        return True

    # -- IOReport --

    def subscribe(self, groups: Iterable[tuple[str, str | None]], want: Callable[[str, str, str, str], bool],
                  keep: Callable[[Sequence[Any]], Sequence[int]] | None = None) -> _ReplayedSubscription | None:
        part, refused = self._said["ioreport"], ""
        channels: list[_Channel] = [channel["about"] for channel in part["channels"]]
        chosen: dict[int, None] = {}        # positions, in the order they are wanted in
        for group, subgroup in groups:
            found = [i for i, c in enumerate(channels) if c.group == group and subgroup in (None, c.subgroup)]
            wanted = [i for i in found if want(group, channels[i].subgroup, channels[i].name, channels[i].unit)]
            if part["groups"].get(group) == "ok":
                chosen.update(dict.fromkeys(wanted))
            elif group in part["groups"] and (wanted or not found):     # a group that does not exist is skipped
                refused = refused or group
        if refused and not chosen:      # one that refuses leaves the others
            raise _fail(ERROR_NOT_SUPPORTED, REASON_MACOS, "ioreport:" + refused, "refused")
        places = list(chosen)
        if keep is not None:
            places = [places[i] for i in keep([channels[i] for i in places])]
        raw = [part["channels"][i] for i in places]
        return _ReplayedSubscription(self._recording, self._clock, raw) if raw else None

    # -- SMC, HID --

    def _smc(self) -> Any:
        part = self._said["smc"]
        if part is None:
            said = self._said["sysctl"].get("kern.hv_vmm_present")      # also after the end
            guest = said is not None and said.values[0][:1] == b"\x01"
            raise _fail(ERROR_NOT_SUPPORTED, REASON_VIRTUAL_MACHINE if guest else REASON_NO_SUCH_PART, "smc")
        return part

    def count(self) -> int:
        return len(self._smc()["keys"])

    def key_at(self, index: int) -> str | None:
        return str(self._smc()["keys"][index][0]) if 0 <= index < self.count() else None

    def info(self, key: str) -> tuple[int, str] | None:
        self._smc()
        return self._keys.get(key)

    def read(self, key: str) -> bytes | None:
        changes = self._smc()["values"].get(key)
        if changes is None and key == "#KEY":
            return self.count().to_bytes(4, "big")
        if changes is None and key in self._keys:
            raise self._recording.not_held("smc", "the value of the key " + key)
        value: bytes | None = self._at(changes)
        return value

    def temperatures(self) -> list[tuple[str, int, float | None]]:
        out = []
        for service in self._said["hid"]["services"]:
            p = {key: _plain(value) for key, value in service["properties"].items()}
            if (p.get("PrimaryUsagePage", 0xFF00), p.get("PrimaryUsage", 5)) == (0xFF00, 5):
                place, value = p.get("LocationID"), self._at(service["value"])
                out.append((str(p.get("Product") or ""), place if type(place) is int else 0,
                            None if value is None else float(value)))
        return out

    # -- sysctl, mach --

    def raw(self, name: str) -> bytes | None:
        value: bytes | None = self._at(self._said["sysctl"].get(name))
        return value

    def _mach(self, field: str) -> Any:
        if self._said["mach"] is None:
            raise self._recording.not_held("mach", "it")
        return self._said["mach"][field]

    def vm_statistics(self) -> bytes:
        return bytes(self._at(self._mach("vm_statistics64")))

    def cpu_ticks(self) -> bytes:
        return bytes(self._at(self._mach("cpu_load")))

    def page_size(self) -> int:
        return int(self._mach("page_size"))

    def timebase(self) -> tuple[int, int]:
        numer, denom = self._said["time"]["timebase"]
        return numer, denom

    # -- processes --

    def pids(self) -> list[int]:
        return list(self._processes)

    def own_pid(self) -> int:
        return -1       # this process is not one of the recorded ones

    def path(self, pid: int) -> str | None:
        path: str | None = self._processes.get(pid, {}).get("path")
        return path

    def short_info(self, pid: int) -> bytes | None:
        value: bytes | None = self._at(self._processes.get(pid, {}).get("short_info"))
        return value

    def task_info(self, pid: int) -> bytes:
        return self._structure(pid, "task_info")

    def rusage(self, pid: int) -> bytes:
        return self._structure(pid, "rusage")

    def _structure(self, pid: int, key: str) -> bytes:
        if pid not in self._processes:
            raise _fail(ERROR_NOT_FOUND, REASON_ABSENT, "libproc", "there is no process %d" % pid)
        changes = self._processes[pid][key]
        if changes is None:
            raise _fail(ERROR_NO_PERMISSION, REASON_PERMISSION, "libproc")
        return bytes(self._at(changes))

    # -- the rest --

    def state(self, name: str) -> int:
        if name not in self._said["notify"]:
            raise self._recording.not_held("notify", name)
        return int(self._at(self._said["notify"][name]))

    def providing(self) -> str | None:
        text: str | None = self._at(self._said["power"]["providing"])
        return text

    def device(self, registry_id: int | None = None) -> dict[str, Any]:
        devices, default = self._said["metal"]["devices"], self._said["metal"]["default"]
        found = [d for d in devices if len(devices) == 1 or registry_id in (None, d["registryID"])]
        if not found and (not devices or default is None):
            raise _fail(ERROR_NOT_READY, REASON_SOURCE_FAILED, "metal", "Metal gives no device to this process")
        device = (found or devices[default:])[0]
        said = {key: device[key] for key in _METAL_ANSWERS}
        return dict(said, families=tuple(device["supportsFamily:"]))


_METAL_ANSWERS = ("name", "registryID", "recommendedMaxWorkingSetSize", "maxBufferLength", "hasUnifiedMemory",
                  "maxThreadgroupMemoryLength", "architecture")


class _RecordedMachine:
    """A Mac answered from a recording: the same sources, the same plain results and errors as the live one."""

    def __init__(self, path: Any, speed: float = 1.0, loop: bool = True, monotonic: Callable[[], float] | None = None,
                 sleep: Callable[[float], None] | None = None) -> None:
        if not isinstance(path, _Recording):
            path = _path_text(path)
            path = _Recording(_read_json(path), path, bool(loop))
        self.recording: _Recording = path
        self.name = self.recording.path
        self.clock = _ReplayClock(self.recording, speed, monotonic, sleep)
        self.registry = self.ioreport = self.smc = self.hid = self.sysctl = self.mach = self.libproc = self.notify \
            = self.power = self.metal = _Replayed(self.recording, self.clock)

    def forked(self) -> None:
        """In a forked child: a lock that nobody holds."""
        self.clock.forked()


# ---- the recorder: from any machine to a file; a list of permitted things, never a whole node ----

_RECORDING_AIM = 1 << 20
_RECORDED_NUMBERS = (       # AppleSmartBattery
    "Voltage", "Amperage", "InstantAmperage", "CurrentCapacity", "MaxCapacity", "DesignCapacity", "CycleCount",
    "AppleRawCurrentCapacity", "AppleRawMaxCapacity", "NominalChargeCapacity", "Temperature", "ExternalConnected",
    "IsCharging", "FullyCharged", "BatteryInstalled")
_RECORDED_PROPERTIES = {    # what may be written, by class or device tree name
    "IOAccelerator": ("model", "gpu-core-count", "PerformanceStatistics", "GPUConfigurationVariable", "IOClass",
                      "MetalPluginName", "IONameMatched", "FilteredGPUPower", "MaxGPUAbsolutePower"),
    "UserClient": ("IOUserClientCreator", "AppUsage", "API"),
    "H11ANEIn": ("IOPowerManagement",),
    "AppleSmartBattery": _RECORDED_NUMBERS,
    "pmgr": ("acc-clusters",) + tuple("voltage-states%d%s" % (n, s) for n in range(48) for s in ("", "-sram")),
    "sgx": ("perf-states", "perf-state-count", "perf-state-table-count", "gpu-power-zone-target-0"),
    "cpu": ("cluster-type", "cpu-id", "logical-cpu-id", "logical-cluster-id", "cluster-id", "die-id"),
}
_RECORDED_GROUPS = ("Energy Model", "GPU Stats", "CPU Stats", "AMC Stats", "PMP", "PMP0", "PMP1", "H11ANE", "ANE")
_RECORDED_SYSCTLS = (
    "hw.model", "hw.memsize", "hw.ncpu", "hw.physicalcpu", "hw.logicalcpu", "hw.pagesize", "hw.tbfrequency",
    "hw.cputype", "hw.cpufamily", "hw.packages", "hw.optional.arm64", "hw.nperflevels", "machdep.cpu.brand_string",
    "kern.osproductversion", "kern.osversion", "kern.osrelease", "kern.hv_vmm_present",
    "kern.memorystatus_level", "kern.memorystatus_vm_pressure_level", "vm.memory_pressure", "vm.swapusage",
    "sysctl.proc_translated", "iogpu.wired_limit_mb", "debug.iogpu.wired_limit",
) + tuple("hw.perflevel%d.%s" % (n, s) for n in range(4) for s in (
    "name", "physicalcpu", "physicalcpu_max", "logicalcpu", "logicalcpu_max", "cpusperl2"))
_RECORDED_SMC_TYPES = ("flt ", "ui8 ", "ui16", "ui32", "si8 ", "si16", "si32", "ioft", "fp1f", "sp78", "fpe2", "flag")
_RECORDED_SMC_KEYS = ("T", "F", "P", "B0")
_THERMAL_NOTIFICATION = "com.apple.system.thermalpressurelevel"

# A process is named only when everybody has it.
_SYSTEM_FOLDERS = ("/System/", "/usr/bin/", "/usr/sbin/", "/usr/libexec/", "/usr/lib/", "/Library/Apple/")
_SYSTEM_PROGRAMS = ("WindowServer", "kernel_task", "launchd", "Dock", "Finder", "loginwindow", "SystemUIServer",
                    "ControlCenter", "NotificationCente", "Spotlight", "WallpaperAgent", "Safari", "Terminal")

_UNIT_WORDS = {"mJ": 0x0300007C00000000, "uJ": 0x0300007900000000, "nJ": 0x0300007600000000, "B": 0x0900820000000000,
               "24Mticks": 0x0100007980000018, "us": 0x0100007900000000, "events": 0x6400000000000000}


def _asked(function: Callable[..., Any], *args: Any) -> Any:
    """An answer, or None where there is none."""
    try:
        return function(*args)
    except AppleGPUError:
        return None


def _printable(text: str) -> str:
    """Text that a reader accepts."""
    return "".join(c if c.isprintable() else "?" for c in text[:256])


def _as_cf(value: Any) -> Any:
    """Tagged form; None for what is not written. Widths are those of Python's answer: 64 bits."""
    if isinstance(value, list):
        return ["a", [item for item in map(_as_cf, value) if item is not None]]
    if isinstance(value, dict):
        pairs = [(_printable(str(key)), _as_cf(item)) for key, item in value.items()]
        return ["d", {key: item for key, item in pairs if item is not None}]
    if isinstance(value, (bytes, str)):
        return ["x", value] if isinstance(value, bytes) else ["s", _printable(value)]
    if isinstance(value, int):
        return ["b", value] if isinstance(value, bool) else ["i64", _signed(value)]
    return ["f64", value] if isinstance(value, float) and abs(value) <= 1e300 else None


def _permitted(key: str, value: Any) -> Any:
    """What may be written of a property: text is an opening for somebody's name, so are keys of inner dictionaries."""
    numbers, letters = (int, float), {"GPUConfigurationVariable": 2, "AppUsage": 4096}.get(key, 0)

    def inside(value: Any) -> Any:
        if isinstance(value, list):
            return [v for v in value if isinstance(v, numbers)]
        return value if isinstance(value, numbers) or isinstance(value, str) and len(value) <= letters else None
    if key == "AppUsage":
        shown = ("API", "lastSubmittedTime", "accumulatedGPUTime")
        items = [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
        return [{k: v for k, v in item.items() if k in shown and isinstance(v, (int, str))} for item in items]
    if isinstance(value, dict):
        kept = ((k, inside(v)) for k, v in value.items() if letters or not isinstance(v, list))
        return {k: v for k, v in kept if v is not None}
    return value if isinstance(value, numbers + (bytes,)) or isinstance(value, str) and len(value) <= 64 else None


def _creator(text: Any) -> tuple[int, str] | None:
    """("pid 357, WindowServer") -> (357, "WindowServer")."""
    number, comma, name = text[4:].partition(", ") if isinstance(text, str) and text[:4] == "pid " else ("", "", "")
    return (int(number), name) if comma and number.isdigit() and len(number) < 10 else None


def _is_system_program(name: str, path: str | None) -> bool:
    if path is None:
        return name in _SYSTEM_PROGRAMS or name.startswith("com.apple.")
    return path.startswith(_SYSTEM_FOLDERS) and bool(name) and os.path.basename(path).startswith(name)


def _kept_subscriptions(machine: Any) -> dict[str, Any]:
    """The recorder's own, by group, kept with the machine: releasing one has crashed (metrics.md 2.3)."""
    owner, kept = getattr(machine, "recorder", (0, {}))
    if owner != os.getpid():        # none yet, or a parent's
        kept = {}
        machine.recorder = os.getpid(), kept
    return kept


class _Recorder:
    """Takes frames, each everything that is permitted at one instant, under its place in the file; then writes down for
    each place when it changed."""

    def __init__(self, machine: Any, names: bool) -> None:
        self.machine, self.names = machine, names
        self.frames: list[dict[Any, Any]] = []
        self.nodes: dict[int, tuple[Any, str, dict[str, Any]]] = {}     # by id: entry, kind, what the file says
        self.clients: dict[int, tuple[int, str]] = {}                   # by registry id: pid, name
        self.paths: dict[int, str | None] = {}                          # by pid
        self.groups: dict[str, str] = {}
        self.subscriptions: list[Any] = []
        for kind in ("IOAccelerator", "H11ANEIn", "AppleSmartBattery"):
            self._add_entries(_asked(machine.registry.services, kind), kind)
        for name in ("pmgr", "sgx", *("cpu%d" % n for n in range(64))):
            self._add_entries(_asked(machine.registry.named, name), name.rstrip("0123456789"), name)
        for group in _RECORDED_GROUPS:
            self._subscribe(group)
        keys = [_asked(machine.smc.key_at, i) for i in range(min(_asked(machine.smc.count) or 0, 20000))]
        infos = [(key, _asked(machine.smc.info, key) or (-1, "")) for key in keys if key]
        self.smc_keys = [[key, kind, size] for key, (size, kind) in infos
                         if len(key) == len(kind) == 4 and (key + kind).isprintable() and 0 <= size <= 128]

    def _add_entries(self, entries: list[Any] | None, kind: str, name: str | None = None,
                     parent: int | None = None) -> None:
        registry = self.machine.registry
        for entry in entries or ():
            number, class_name = _asked(registry.identity, entry), _asked(registry.class_name, entry)
            if number is not None and class_name is not None and number not in self.nodes:
                conforms = [kind] if name is None and parent is None and kind != class_name else []
                self.nodes[number] = entry, kind, {"id": number, "class": _printable(class_name), "parent": parent,
                                                   "name": name or _printable(class_name), "conforms": conforms}

    def _subscribe(self, group: str) -> None:
        kept = _kept_subscriptions(self.machine)
        try:
            made = kept.get(group) or self.machine.ioreport.subscribe([(group, None)], lambda *about: True)
        except AppleGPUError as error:
            if error.value == ERROR_NOT_SUPPORTED:
                self.groups[group] = "refuses"
            return
        if made is not None:
            self.groups[group] = "ok"
            kept[group] = made
            self.subscriptions.append(made)

    # -- one instant --

    def run(self, seconds: float, interval: float) -> None:
        """A recording that ends while it is being recorded ends this one too."""
        clock = self.machine.clock
        first = clock.now()[0]
        while True:
            try:
                frame = self._frame()
            except AppleGPUError as error:
                if error.reason != REASON_RECORDING or not self.frames:
                    raise
                return
            if not self.frames or frame["ticks"] > self.frames[-1]["ticks"]:
                self.frames.append(frame)
            if frame["up"] - first >= seconds * 1e9:
                return
            clock.sleep(interval)

    def _frame(self) -> dict[Any, Any]:
        frame: dict[Any, Any] = {}
        machine, clock = self.machine, self.machine.clock
        for i, subscription in enumerate(self.subscriptions):
            rows = _asked(subscription.sample) or [None] * len(subscription.channels)
            frame.update((("row", i, k), row and [row[0], *row[1]]) for k, row in enumerate(rows))
        up, awake = clock.now()     # after the counters, whose stamps are not later
        frame["up"], frame["unix"], frame["slept"] = up, clock.unix(), (awake - up) // 1000000 * 1000000
        frame["ticks"] = -(-up * clock.ticks_per_second() // 1000000000)
        self._registry(frame)
        for key, kind, _ in self.smc_keys:
            if key.startswith(_RECORDED_SMC_KEYS) and kind in _RECORDED_SMC_TYPES:
                frame["smc", key] = _asked(machine.smc.read, key)
        for name in _RECORDED_SYSCTLS:
            frame["sysctl", name] = _asked(machine.sysctl.raw, name)
        frame["mach", "vm_statistics64"] = _asked(machine.mach.vm_statistics)
        frame["mach", "cpu_load"] = _asked(machine.mach.cpu_ticks)
        frame["notify", _THERMAL_NOTIFICATION] = _asked(machine.notify.state, _THERMAL_NOTIFICATION)
        frame["power", "providing"] = _asked(machine.power.providing)
        for product, location, celsius in _asked(machine.hid.temperatures) or ():
            same = 0
            while ("hid", product, location, same) in frame:        # names may repeat
                same += 1
            frame["hid", product, location, same] = celsius if celsius is not None and abs(celsius) <= 1e9 else None
        return frame

    def _registry(self, frame: dict[Any, Any]) -> None:
        registry = self.machine.registry
        for number, (entry, kind, _) in list(self.nodes.items()):
            children = kind == "IOAccelerator" and _asked(registry.children, entry) or ()
            clients = [child for child in children if _asked(registry.get, child, "IOUserClientCreator")]
            self._add_entries(clients, "UserClient", None, number)
        for number, (entry, kind, _) in self.nodes.items():
            for key in _RECORDED_PROPERTIES[kind] if kind != "pmgr" or not self.frames else ():    # tables never change
                value = _asked(registry.get, entry, key)
                value = self._client(number, value) if key == "IOUserClientCreator" else _permitted(key, value)
                frame["registry", number, key] = _as_cf(value)
        for pid in self._busy(frame):
            self._process(frame, pid)

    # -- processes: only those that use the GPU --

    def _client(self, number: int, text: Any) -> str | None:
        creator = _creator(text)
        if creator is None:
            return None
        pid, name = self.clients[number] = creator
        if pid not in self.paths:
            self.paths[pid] = _asked(self.machine.libproc.path, pid)
        return "pid %d, %s" % (pid, self._shown(pid, name))

    def _busy(self, frame: dict[Any, Any]) -> list[int]:
        """Everybody at first, then those whose GPU time moved: a process takes a kilobyte each time."""
        before: dict[Any, Any] = self.frames[-1] if self.frames else {}
        used = [(("registry", number, "AppUsage"), pid) for number, (pid, _) in self.clients.items()]
        return list(dict.fromkeys(pid for key, pid in used if not before or frame.get(key) != before.get(key)))

    def _shown(self, pid: int, name: str) -> str:
        public = self.names or _is_system_program(name, self.paths.get(pid))
        return _printable(name) if public else "app%d" % pid

    def _process(self, frame: dict[Any, Any], pid: int) -> None:
        libproc = self.machine.libproc
        short, usage = _asked(libproc.short_info, pid), _asked(libproc.rusage, pid)
        if short is not None and len(short) >= 32:      # proc_bsdshortinfo: name @16, 16 bytes
            name = self._shown(pid, short[16:32].split(b"\0")[0].decode("utf-8", "replace"))
            short = short[:16] + name.encode("utf-8", "replace")[:15].ljust(16, b"\0") + short[32:]
        frame["libproc", pid, "short_info"], frame["libproc", pid, "task_info"] = short, _asked(libproc.task_info, pid)
        frame["libproc", pid, "rusage"] = usage and bytes(16) + usage[16:]      # ri_uuid @0

    # -- the file --

    def text(self) -> str:
        """Every second frame goes until it is small enough."""
        import json
        while True:
            text = json.dumps(self._file(), separators=(",", ":"), allow_nan=False, default=bytes.hex)
            if len(text) <= _RECORDING_AIM or len(self.frames) < 3:
                return text
            self.frames = self.frames[::2]

    def _series(self, *key: Any) -> list[list[Any]] | None:
        """[instant, value] where the value changed; None when there never was one. What is missing meanwhile holds."""
        out: list[list[Any]] = []
        for i, frame in enumerate(self.frames):
            value = frame.get(key)
            if value is not None and (not out or out[-1][1] != value):
                out.append([i if out else 0, value])
        return out or None

    def _table(self, part: str) -> dict[str, Any]:
        keys = dict.fromkeys(key for frame in self.frames for key in frame if key[0] == part)
        return {key[1]: series for key, series in ((key, self._series(*key)) for key in keys) if series}

    def _file(self) -> dict[str, Any]:
        machine, frames = self.machine, self.frames
        brand, version = (_printable(_asked(machine.sysctl.text, name) or "unknown")
                          for name in ("machdep.cpu.brand_string", "kern.osproductversion"))
        mach, power, page = self._table("mach"), self._table("power"), _asked(machine.mach.page_size)
        origin = {"kind": "observed" if machine.name == "live" else "composed",
                  "from": "the recorder of pyapplegpu" + ", replaying another recording" * (machine.name != "live")}
        return {
            "format": _RECORDING_FORMAT, "title": "%s, macOS %s" % (brand, version), "macos": version, "chip": brand,
            "provenance": {part: origin for part in _RECORDING_PARTS},
            "time": {"timebase": list(_asked(machine.mach.timebase) or (125, 3)), "unix": round(frames[0]["unix"], 3),
                     "ticks": [frame["ticks"] for frame in frames],
                     "slept": [max(f["slept"] for f in frames[:i + 1]) for i in range(len(frames))]},
            "registry": [self._node(number) for number in self.nodes],
            "ioreport": {"groups": self.groups, "channels": self._channels()},
            "smc": {"keys": self.smc_keys, "values": self._table("smc")} if self.smc_keys else None,
            "hid": self._sensors(), "sysctl": self._table("sysctl"),
            "mach": dict(mach, page_size=page) if page and len(mach) == 2 else None,
            "libproc": {"processes": [self._listed(pid) for pid in self.paths]},
            "notify": self._table("notify"), "power": power or None, "metal": self._metal(), "expected": [],
        }

    def _node(self, number: int) -> dict[str, Any]:
        _, kind, said = self.nodes[number]
        found = [(key, self._series("registry", number, key) or ()) for key in _RECORDED_PROPERTIES[kind]]
        return dict(said, properties={k: s[0][1] for k, s in found if len(s) == 1},
                    series={k: s for k, s in found if len(s) > 1})

    def _channels(self) -> list[dict[str, Any]]:
        return [self._channel(channel, [frame["row", i, k] for frame in self.frames])
                for i, subscription in enumerate(self.subscriptions) for k, channel in enumerate(subscription.channels)]

    @staticmethod
    def _channel(channel: _Channel, rows: list[Any]) -> dict[str, Any]:
        """Where a source does not tell the type and unit words they are made of what it tells."""
        while len(rows) > 1 and rows[-1] == rows[-2]:       # the last row goes on
            rows.pop()
        elements = max([len(row) - 1 for row in rows if row] or [1])
        kind = channel.type_word or (elements << 32 | 2 << 16 | channel.format)
        unit = channel.unit_word or _UNIT_WORDS.get(channel.unit, 0)
        out = {"driver": "0x%x" % channel.driver, "channel": "0x%x" % channel.channel,
               "group": _printable(channel.group), "subgroup": _printable(channel.subgroup),
               "name": _printable(channel.name), "type": "0x%x" % kind, "unit": "0x%x" % unit, "rows": rows}
        return dict(out, states=[_printable(state) for state in channel.states]) if channel.states else out

    def _sensors(self) -> dict[str, Any] | None:
        keys = dict.fromkeys(key for frame in self.frames for key in frame if key[0] == "hid")
        services = [{"properties": {"Product": ["s", _printable(key[1])], "LocationID": ["i64", _signed(key[2])],
                                    "PrimaryUsagePage": ["i64", 0xFF00], "PrimaryUsage": ["i64", 5]},
                     "value": self._series(*key)} for key in keys]
        return {"services": services} if services else None

    def _listed(self, pid: int) -> dict[str, Any]:
        path, short = self.paths[pid], self._series("libproc", pid, "short_info")
        out = {"pid": pid, "path": path if path and path.startswith(_SYSTEM_FOLDERS) else None,
               "task_info": self._series("libproc", pid, "task_info"), "rusage": self._series("libproc", pid, "rusage")}
        return dict(out, short_info=short) if short else out

    def _metal(self) -> dict[str, Any] | None:
        said = _asked(self.machine.metal.device)
        if not said:
            return None
        device = {key: said.get(key) for key in _METAL_ANSWERS}
        device["supportsFamily:"] = list(said.get("families", ()))
        return {"devices": [device], "default": 0}


def _write_whole(path: str, text: str | None) -> None:
    """All of it or nothing: a temporary file beside it, then its name. A device or a pipe is written to, never replaced
    by a file; a folder refuses. None for the text only tries whether that can be."""
    try:
        if not os.path.exists(path) or os.path.isfile(path):
            _write_beside(os.path.realpath(path), text)     # a link stays a link
        elif text is not None or os.path.isdir(path):
            with open(path, "wb") as file:
                file.write((text or "").encode("ascii") + b"\n")
    except (OSError, ValueError) as error:      # ValueError: a NUL in the path
        raise _fail(ERROR_OPERATING_SYSTEM, REASON_SOURCE_FAILED, "recording",
                    "cannot write %s: %s" % (path, getattr(error, "strerror", None) or error)) from None


def _write_beside(target: str, text: str | None) -> None:
    temporary = "%s.%d.tmp" % (target, os.getpid())
    try:
        with open(temporary, "xb") as file:
            if text is None:
                return
            file.write(text.encode("ascii") + b"\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


def _write_recording(machine: Any, path: Any, seconds: float = 3.0, interval: float = 0.25,
                     names: bool = False) -> None:
    """Writes what a machine, live or recorded, says during `seconds` to a file that can be replayed."""
    import json
    if type(seconds) not in (int, float) or not 0 < seconds <= 3600:
        raise _bad("seconds must be above 0 and at most 3600, not %r" % (seconds,))
    if type(interval) not in (int, float) or not 0.05 <= interval <= 60:
        raise _bad("interval must be 0.05 to 60 seconds, not %r" % (interval,))
    if seconds > 2000 * interval:
        raise _bad("a recording of more than 2000 samples is too long; pass a longer interval")
    where, recorder = _path_text(path), _Recorder(machine, names)
    _write_whole(where, None)       # a path that cannot be written is told now, not after an hour
    recorder.run(seconds, interval)
    text = recorder.text()
    _Recording(json.loads(text), where)     # what cannot be read back is not written
    _write_whole(where, text)


# ======================================================================================================================
# decoders
# ======================================================================================================================

# Pure functions: bytes or plain data in, values out. They know Apple's names and units, and nothing of how data is read.

# ---- numbers and units

_ENERGY_UNITS = {   # unit text -> (numerator, denominator) to millijoules; zeus has met more prefixes than Macs have shown
    "nJ": (1, 1000000), "uJ": (1, 1000), "\u00b5J": (1, 1000), "\u03bcJ": (1, 1000), "mJ": (1, 1), "cJ": (10, 1), "dJ": (100, 1),
    "J": (1000, 1), "kJ": (1000000, 1),
}
_BYTE_UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def _little(data: bytes) -> int:
    """An unsigned little-endian integer of any length."""
    return int.from_bytes(data, "little")


# type -> (size or None, decode). Integers of the SMC proper are big-endian on Apple silicon, floats and ioft little-endian
# (metrics.md 2.4); battery integers B0* are little-endian, which the caller says (recordings.md 7: B0CT 7b 00 = 123).
_SMC_TYPES: dict[str, tuple[int | None, Callable[[bytes], float]]] = {
    "flt ": (4, lambda d: float(struct.unpack("<f", d)[0])),
    "ioft": (8, lambda d: int.from_bytes(d, "little", signed=True) / 65536),
    "sp78": (2, lambda d: int.from_bytes(d, "big", signed=True) / 256),
    "fpe2": (2, lambda d: int.from_bytes(d, "big") / 4),
    "fp1f": (2, lambda d: int.from_bytes(d, "big") / 32768),
    "flag": (1, lambda d: d[0]),
}


def _smc_number(key: str, kind: str, data: bytes) -> float | None:
    """The number in an SMC value; None for a type that holds none, or bytes of the wrong length."""
    if kind in _SMC_TYPES:
        size, decode = _SMC_TYPES[kind]
        value = decode(data) if len(data) == size else None
        return value if value is not None and abs(value) < 1e38 else None      # a gated sensor may hold NaN or infinity
    if kind[:2] in ("ui", "si") and kind[2:].strip().isdigit() and len(data) == int(kind[2:]) // 8:
        return int.from_bytes(data, "little" if key.startswith("B0") else "big", signed=kind[0] == "s")
    return None


def _plausible_celsius(value: float | None) -> bool:
    """True for a temperature a running Mac can have.

    Gated sensors read 0, -8.8, 5 or up to 8.4 degrees; no genuine reading between 8.4 and 21 was seen from M1 to M5
    (recordings.md 7), and raw sp78 shows as more than 130 (iSMC). NaN fails both comparisons.
    """
    return value is not None and 15.0 <= value <= 130.0


# ---- DVFS tables and states

def _pairs(data: bytes) -> list[tuple[int, int]]:
    """The (word, millivolts) pairs of a voltage-states or perf-states property."""
    usable = len(data) - len(data) % 8
    return list(struct.iter_unpack("<II", data[:usable]))


def _mhz(hertz: int) -> int:
    return (hertz + 500000) // 1000000


def _gpu_clocks(voltage_states: bytes) -> tuple[int, ...]:
    """MHz per P-state, position n = Pn, 0 = off. Hz on every chip; not sorted and with duplicates on M3, M4 and A18."""
    return tuple(_mhz(word) for word, _ in _pairs(voltage_states))


def _sgx_clocks(perf_states: bytes, count: int, tables: int) -> tuple[int, ...]:
    """The first of the tables in sgx perf-states; () when its length is not count x tables (M2 Max: 9 x 4)."""
    if count <= 0 or tables <= 0 or len(perf_states) != count * tables * 8:
        return ()
    return _gpu_clocks(perf_states[:count * 8])


def _period_clocks(voltage_states: bytes) -> tuple[int, ...]:
    """MHz from a plain CPU table, which holds periods: 65,536,000 / word (exact on M1, M4 Pro, A18 Pro, M5 Max)."""
    words = [word for word, _ in _pairs(voltage_states)]
    return tuple((65536000 + word // 2) // word for word in words) if words and min(words) > 1 else ()


def _cpu_clocks(sram: bytes | None, plain: bytes | None = None) -> tuple[int, ...]:
    """MHz per V-state of a CPU table. The unit belongs to the table: Hz up to M3 and on A18, kHz on M4 Pro and M5.

    Largest word under 10,000,000: kHz. Without the -sram table the plain one, in periods, gives the same clocks.
    """
    words = [word for word, _ in _pairs(sram or b"")]
    if not words or max(words) < 1000:
        return _period_clocks(plain or b"")
    scale = 1000 if max(words) < 10000000 else 1
    return tuple(_mhz(word * scale) for word in words)


def _acc_clusters(data: bytes) -> tuple[int, ...]:
    """Table number of each cluster, in cluster order (M5 and later; M5 Max: 22, 23, 5)."""
    records = [data[i:i + 8] for i in range(0, len(data) - 7, 8)]
    return tuple(r[0] for r in sorted(records, key=lambda r: r[1]))


_MOST_REMEMBERED = 4096     # a Mac lists 1,500 channels at most so far; replaying many Macs in one process must not pile up


def _remembered(function: _Pure) -> _Pure:
    """A pure function of a few texts that is asked the same thing at every sample (else parsing names is a third of a snapshot)."""
    known: dict[Any, Any] = {}

    def asked(*args: Any) -> Any:
        try:
            return known[args]
        except KeyError:
            if len(known) >= _MOST_REMEMBERED:
                known.clear()
            known[args] = answer = function(*args)
            return answer
    asked.__doc__, asked.__name__ = function.__doc__, function.__name__
    return asked        # type: ignore[return-value]


_IDLE_STATES = ("OFF", "IDLE", "DOWN", "SLEEP")


@_remembered
def _is_idle(state: str) -> bool:
    return state.strip().upper() in _IDLE_STATES


@_remembered
def _state_number(state: str) -> int | None:
    """n of a state named Pn or Vn...; None for a name without."""
    digits = ""
    for c in state.strip()[1:]:
        if not c.isdigit():
            break
        digits += c
    return int(digits) if digits and state.strip()[0] in "PV" else None


@_remembered
def _state_clocks(states: tuple[str, ...], clocks: tuple[int, ...]) -> tuple[int, ...]:
    """MHz of each state by the number in its name, 0 where it has none: M1 Pro and M2 Ultra declare 16 states over fewer
    clocks."""
    numbers = [None if _is_idle(state) else _state_number(state) for state in states]
    return tuple(0 if number is None or number >= len(clocks) else clocks[number] for number in numbers)


@_remembered
def _awake(states: tuple[str, ...]) -> tuple[bool, ...]:
    return tuple(not _is_idle(state) for state in states)


def _ratios(old: Sequence[int], new: Sequence[int], span_ns: int, tick_ns: float) -> list[float]:
    """Share of each state between two rows of residencies; raises ValueError(reason) when they are no interval.

    Divides by the sum of residencies, not by time. A lane without data is absent, a fallen one a reset, and more than
    1.25 x the span + 0.1 s of residency cannot be.
    """
    if INT64_MIN in new:
        raise ValueError(REASON_ABSENT)
    gone = list(map(sub, new, old))         # map: these rows are most of what a sample holds
    if INT64_MIN in old or min(gone, default=0) < 0:
        raise ValueError(REASON_RESET)
    total = sum(gone)
    if total == 0:
        raise ValueError(REASON_STALE)
    if total * tick_ns > 1.25 * span_ns + 1e8:
        raise ValueError(REASON_RESET)
    return list(map(total.__rtruediv__, gone))


def _active(states: Sequence[str], ratios: Sequence[float]) -> float:
    return float(min(1.0, sum(map(mul, _awake(tuple(states)), ratios))))


def _mean_clock(states: Sequence[str], ratios: Sequence[float], clocks: Sequence[int]) -> float | None:
    """MHz weighted by residency over the active states that have a clock, as powermetrics; None when never active."""
    table = _state_clocks(tuple(states), tuple(clocks))
    weight = sum(map(mul, map(bool, table), ratios))
    return float(sum(map(mul, table, ratios)) / weight) if weight else None


def _beyond(states: Sequence[str], ratios: Sequence[float], clocks: Sequence[int]) -> bool:
    """True when more than a hundredth of the active time was spent in states that the table has no clock for."""
    active = list(map(mul, _awake(tuple(states)), ratios))
    known = sum(map(mul, map(bool, _state_clocks(tuple(states), tuple(clocks))), active))
    return bool(sum(active) - known > 0.01 * sum(active))


def _scaled(states: Sequence[str], ratios: Sequence[float], clocks: Sequence[int]) -> float | None:
    """Active share weighted by clock / top clock: 0.5 at half speed all the time. None without a table."""
    top = max(clocks, default=0)
    if not top:
        return None
    return float(min(1.0, sum(map(mul, _state_clocks(tuple(states), tuple(clocks)), ratios)) / top))


# ---- which channel is what: exact names and anchored patterns, never substrings (all-smi 412: 106.68 W for a true 36.17 W)

def _strip_die(name: str) -> tuple[str, str]:
    """(die prefix, rest): "DIE_0_CPU Energy" -> ("DIE_0_", "CPU Energy"), "DIE0 DCS RD", "PRIM GFX RD"."""
    if name.startswith("PRIM "):
        return "PRIM ", name[5:]
    if name.startswith("DIE"):
        digits = name[3:].lstrip("_")
        rest = digits.lstrip("0123456789")
        if rest != digits and rest[:1] in ("_", " "):
            return name[:len(name) - len(rest) + 1], rest[1:]
    return "", name


def _is_indexed(name: str, stem: str) -> bool:
    """True for stem, stem0, stem0_1: one unit, numbered by kind and die."""
    rest = name[len(stem):].split("_", 1)
    return name.startswith(stem) and all(not p or p.isdigit() for p in rest) and not name.endswith("_")


_RAIL_STEMS = {"gpu_sram": ("GPU SRAM",), "ane": ("ANE",), "dram": ("DRAM",), "encode": ("AVE",), "decode": ("AVD", "VDEC")}


@_remembered
def _rail_of(group: str, subgroup: str, name: str) -> tuple[str, int] | None:
    """(rail, preference) of an energy channel, None for one that belongs to none. Lower preference wins.

    GPU0 and GPU Energy are the same energy twice (M5 Max, M1 Ultra), so they are two preferences of one rail. Base M1
    on macOS 11 has the ANE, DRAM and media rails in PMP / Energy Counters only; Energy Model wins where both have it.
    """
    die, rest = _strip_die(name)
    if group == "Energy Model":
        later = 0
    elif group == "Energy Counters" or (group.startswith("PMP") and subgroup == "Energy Counters"):
        later = 2
    else:
        return None
    if rest == "CPU Energy":
        return "cpu", later
    if rest == "GPU Energy":
        return "gpu", later
    if _is_indexed(rest, "GPU"):
        return "gpu", later + 1
    for rail, stems in _RAIL_STEMS.items():
        if any(_is_indexed(rest, stem) for stem in stems):
            return rail, later
    return None


@_remembered
def _cluster_energy(name: str) -> tuple[str, str, str] | None:
    """(die, letter, index) of a cluster's energy channel: ECPU, PCPU, MCPU0, EACC_CPU, DIE_0_PACC1_CPU; else None."""
    die, rest = _strip_die(name)
    if rest[:1] not in ("E", "P", "M", "S") or die == "PRIM ":
        return None
    letter, tail = rest[0], rest[1:]
    if tail.startswith("CPU") and (tail[3:].isdigit() or not tail[3:]):
        return die, letter, tail[3:]
    if tail.startswith("ACC") and tail.endswith("_CPU") and (tail[3:-4].isdigit() or not tail[3:-4]):
        return die, letter, tail[3:-4]
    return None


@_remembered
def _cluster_state(name: str) -> tuple[str, str, str] | None:
    """(die, letter, index) of a cluster in CPU Complex Performance States; ECPM, PCPM and *_IDLE are the fabric."""
    die, rest = _strip_die(name)
    ok = len(rest) >= 4 and rest[0] in "EPMS" and rest[1:4] == "CPU" and (not rest[4:] or rest[4:].isdigit())
    return (die, rest[0], rest[4:]) if ok else None


_AGENT_STEMS = {
    "gpu": ("GFX", "AGX", "GPU"),
    "cpu": ("PCPU", "ECPU", "MCPU", "PACC", "EACC", "MACC"),
    "ane": ("ANE",),
    "media": ("VENC", "VDEC", "AVE", "AVD", "PRORES", "SCODEC", "STRM CODEC", "JPG", "JPEG", "MSR", "ISP"),
    "display": ("DISP", "DISPEXT", "DISPINT", "DISPX", "DISPDFR", "DFR"),
    "io": ("ANS", "PCIE", "ATC", "SBR", "APCIE"),
    "encode": ("VENC", "AVE"), "decode": ("VDEC", "AVD"), "prores": ("PRORES",),
}
_STREAMS = ("RT", "NRT", "NON-RT")


@_remembered
def _agent_matches(unit: str, stems: Sequence[str]) -> bool:
    """True when unit is one of the stems, numbered or with a link suffix: GFX1, PCPU0, ANE L0, DISPEXT2, ANS2."""
    for stem in stems:
        rest = unit[len(stem):]
        if unit.startswith(stem) and (not rest or rest.isdigit() or (rest[:2] == " L" and rest[2:].isdigit())):
            return True
    return False


@_remembered
def _traffic(name: str) -> tuple[str, str, bool] | None:
    """(unit, direction, DRAM side) of a bandwidth channel: "GFX DCS RD" -> ("GFX", "RD", True); None for others.

    Direction is RD, WR or RD+WR. Structural counters (DCS CAS, SR CYCLES) have no direction. "DCS RD" itself has unit "".
    AMC Stats splits displays and camera into real-time and other streams, which both count ("NRT DISP RD" on M1).
    """
    words = [word for word in _strip_die(name)[1].split(" ") if word not in _STREAMS]
    if not words or words[-1] not in ("RD", "WR", "RD+WR"):
        return None
    dram = len(words) >= 2 and words[-2] == "DCS"
    return " ".join(words[:-2] if dram else words[:-1]), words[-1], dram


def _needed_flows(channels: Sequence[Any]) -> list[int]:
    """Positions of the channels of PMP without the fabric's (AF BW) for whom the DRAM side (DCS BW) lists the same."""
    dram = [_traffic(c.name) for c in channels if c.subgroup == "DCS BW"]

    def told(flow: tuple[str, str, bool] | None) -> bool:
        units = [d[0] for d in dram if d is not None and flow is not None and d[1] == flow[1]]
        asked = [stems for stems in _AGENT_STEMS.values() if flow is not None and _agent_matches(flow[0], stems)]
        return bool(units) and all(any(_agent_matches(unit, stems) for unit in units) for stems in asked)
    return [i for i, c in enumerate(channels) if c.subgroup != "AF BW" or not told(_traffic(c.name))]


@_remembered
def _bucket_gb(state: str) -> float | None:
    """GB/s of a bandwidth histogram's state name: "   1GB/s" -> 1.0; None for another name."""
    text = state.strip()
    number = text[:-4].strip() if text.endswith("GB/s") else ""
    try:
        value = float(number)
    except ValueError:
        return None
    return value if 0 <= value < 1e6 else None


def _histogram(buckets: Sequence[float | None], ratios: Sequence[float]) -> tuple[float, bool, bool]:
    """(bytes per second, saturated, above the floor) of a bandwidth histogram whose buckets are in GB/s."""
    rates: Any = [gb for gb in buckets if gb is not None] if None in buckets else buckets
    if len(rates) < len(buckets):
        ratios = [r for gb, r in zip(buckets, ratios) if gb is not None]
    weight = sum(ratios)
    if not rates or not weight:
        raise ValueError(REASON_ABSENT)
    mean, top = sum(map(mul, rates, ratios)) / weight, max(rates)     # map: 64 buckets x 56 channels a sample
    return mean * 1e9, sum(map(mul, map(top.__eq__, rates), ratios)) / weight > 0.01, mean > min(rates)


def _floor_share(buckets: Sequence[float | None], ratios: Sequence[float]) -> float:
    """Share of time in the lowest bucket of a bandwidth histogram, where idle engines stay."""
    pairs = [(gb, r) for gb, r in zip(buckets, ratios) if gb is not None]
    low, weight = min(pairs, default=(0.0,))[0], sum([r for _, r in pairs])
    return sum([r for gb, r in pairs if gb == low]) / weight if weight else 1.0


# ---- memory

def _memory_info(vm: bytes, page: int, total: int) -> MemoryInfo:
    """Main memory from vm_statistics64. used = (internal - purgeable) + wired + compressor pages: Activity Monitor's."""
    free, active, inactive, wire = struct.unpack_from("<4I", vm, 0)
    purgeable, speculative = struct.unpack_from("<2I", vm, 88)
    compressor, _throttled, external, internal = struct.unpack_from("<4I", vm, 128)
    app = max(0, internal - purgeable) * page
    used = min(total, app + (wire + compressor) * page)
    return MemoryInfo(total, used, total - used, (inactive + free) * page, app, wire * page, active * page,
                      inactive * page, compressor * page, (external + purgeable) * page, (free - min(free, speculative)) * page)


def _swap_info(data: bytes) -> SwapInfo | None:
    if len(data) < 24:
        return None
    total, available, used = struct.unpack_from("<3Q", data, 0)
    return SwapInfo(total, used, available)


# ---- processes

def _client_pid(creator: object) -> tuple[int, str] | None:
    """(pid, name) of IOUserClientCreator "pid 357, WindowServer"; the driver cuts the name to 16 characters."""
    if not isinstance(creator, str) or not creator.startswith("pid "):
        return None
    number, comma, name = creator[4:].partition(", ")
    return (int(number), name) if comma and number.isdigit() else None


def _client_gpu_ns(usage: object) -> int:
    """GPU nanoseconds of one AGXDeviceUserClient: the sum over its AppUsage entries."""
    entries = usage if isinstance(usage, list) else []
    times = [e.get("accumulatedGPUTime") for e in entries if isinstance(e, dict)]
    return sum(t for t in times if isinstance(t, int) and t > 0)


def _process_info(pid: int, short: bytes, path: str | None) -> ProcessInfo:
    """From proc_bsdshortinfo: pid, ppid, pgid, status (u32 each), comm[16], flags, uid."""
    parent = struct.unpack_from("<I", short, 4)[0]
    uid = struct.unpack_from("<I", short, 36)[0]
    command = short[16:32].split(b"\0", 1)[0].decode("utf-8", "replace")
    return ProcessInfo(pid, path.rsplit("/", 1)[-1] if path else command, path, parent, uid)


_RUSAGE_V6 = 464        # bytes of rusage_info_v6 (xnu sys/resource.h)


def _footprint(rusage: bytes) -> Footprint:
    """ri_phys_footprint @72, ri_lifetime_max_phys_footprint @240 (v4), ri_neural_footprint @368 (v6)."""
    now, = struct.unpack_from("<Q", rusage, 72)
    peak, = struct.unpack_from("<Q", rusage, 240)
    neural = struct.unpack_from("<Q", rusage, 368)[0] if len(rusage) >= _RUSAGE_V6 else None
    return Footprint(now, max(now, peak), neural)


# ---- identity

def _uuid_of(platform_uuid: str) -> str:
    """GPU- and the first 16 bytes of a SHA-256, so that IOPlatformUUID itself never leaves the machine in a metric."""
    import hashlib
    h = hashlib.sha256(b"pyapplegpu " + platform_uuid.encode("utf-8", "replace")).hexdigest()
    return "GPU-%s-%s-%s-%s-%s" % (h[:8], h[8:12], h[12:16], h[16:20], h[20:32])


def _architecture(ioclass: str) -> str | None:
    """G13G of AGXAcceleratorG13G_B0; None for a class that is no AGX accelerator."""
    prefix = "AGXAccelerator"
    return ioclass[len(prefix):].split("_", 1)[0] if ioclass.startswith(prefix) and len(ioclass) > len(prefix) else None


def _peak_flops(cores: int, mhz: int) -> float:
    """FP32 operations per second: 128 lanes a core, a fused multiply-add counts two (M1 8 cores 1278 MHz: 2.617e12)."""
    return cores * mhz * 1e6 * 256


def _limit_figure(name: str, states: Sequence[str], ratios: Sequence[float]) -> float | None:
    """GPU_CLTM: share of time outside NO_CLTM and idle. GPU_PPM: mean of the percentages its states name. None: not told."""
    if name == "GPU_CLTM":
        if not any(s.strip() == "NO_CLTM" for s in states):
            return None
        return sum(r for s, r in zip(states, ratios) if s.strip() != "NO_CLTM" and not _is_idle(s))
    percents = [s.strip().partition("%")[0].strip() for s in states]        # the names begin with it (darwin-perf)
    if not all(p.isdigit() and int(p) <= 100 for p in percents):
        return None
    return sum(int(p) * r for p, r in zip(percents, ratios))


def _busy_percent(old: bytes, new: bytes, cpus: Sequence[int] | None) -> int | None:
    """Percent of ticks that were not idle; counters are u32 and wrap. None when the tables do not fit or nothing moved."""
    count = len(new) // 16
    if len(old) != len(new) or not count or any(not 0 <= c < count for c in cpus or ()):
        return None
    layout = struct.Struct("<%dI" % (4 * count))
    before, after = layout.unpack_from(old), layout.unpack_from(new)
    idle = total = 0
    for cpu in (cpus if cpus is not None else range(count)):
        part = slice(4 * cpu, 4 * cpu + 4)
        gone = [change & 0xFFFFFFFF for change in map(sub, after[part], before[part])]
        idle, total = idle + gone[2], total + sum(gone)
    return int(100 * (total - idle) / total + 0.5) if total else None


def _client_totals(clients: Mapping[int, tuple[int, str, int]]) -> dict[int, tuple[str, int]]:
    """pid -> (name, GPU nanoseconds) over all of its clients."""
    totals: dict[int, tuple[str, int]] = {}
    for pid, name, ns in clients.values():
        totals[pid] = (name, totals.get(pid, ("", 0))[1] + ns)
    return totals


def _client_shares(old: Mapping[int, tuple[int, str, int]], new: Mapping[int, tuple[int, str, int]],
                   span_ns: int) -> dict[int, float]:
    """pid -> percent of the interval its clients used the GPU; a client that is new counts at most the interval."""
    used: dict[int, int] = {}
    for client, (pid, _, ns) in new.items():
        before = old.get(client)
        gone = max(0, ns - before[2]) if before is not None else min(ns, span_ns)
        used[pid] = used.get(pid, 0) + gone
    return {pid: 100.0 * ns / span_ns for pid, ns in used.items()}


_BATTERY_KEYS = ("CurrentCapacity", "MaxCapacity", "IsCharging", "Voltage", "InstantAmperage", "Amperage", "CycleCount",
                 "Temperature")


def _power_source(source: str, battery: Mapping[str, Any]) -> PowerSource:
    """From AppleSmartBattery: mV, mA (signed, may come as u64 two's complement), centi-degrees."""
    def whole(key: str) -> int | None:
        value = battery.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    now, most, volt = whole("CurrentCapacity"), whole("MaxCapacity"), whole("Voltage")
    amps = whole("InstantAmperage") if whole("InstantAmperage") is not None else whole("Amperage")
    if amps is not None and amps >= 1 << 63:
        amps -= 1 << 64
    centi, charging = whole("Temperature"), battery.get("IsCharging")
    return PowerSource(source, 100 * now // most if now is not None and most else None,
                       charging if isinstance(charging, bool) else None,
                       round(volt * amps / 1000) if volt is not None and amps is not None else None, whole("CycleCount"),
                       centi / 100 if centi is not None else None)


# ======================================================================================================================
# chips
# ======================================================================================================================

# The few facts that no source on the machine gives, by Apple's chip name; no other figure depends on them.
# Bandwidth in GB/s as Apple sells it (metrics.md 3.3), ANE cores (hollance/neural-engine, Apple). No recording holds bus width
# and DRAM: they are as the press has them (macg.co 140451 for M1 to M3, techboards.net 4917 for M4 and M5), and each row agrees
# with its bandwidth: bits / 8 x 4266 (LPDDR4X), 6400 (LPDDR5), 7500, 8533 or 9600 (LPDDR5X) transfers/us.
# Where one name has two memory systems the GPU core count tells them apart: {most cores of this row: row}.
_CHIPS: dict[str, dict[int, tuple[float, int, str]]] = {
    "M1": {8: (68.25, 128, "LPDDR4X")}, "M1 Pro": {16: (200, 256, "LPDDR5")}, "M1 Max": {32: (400, 512, "LPDDR5")},
    "M1 Ultra": {64: (800, 1024, "LPDDR5")},
    "M2": {10: (100, 128, "LPDDR5")}, "M2 Pro": {19: (200, 256, "LPDDR5")}, "M2 Max": {38: (400, 512, "LPDDR5")},
    "M2 Ultra": {76: (800, 1024, "LPDDR5")},
    "M3": {10: (100, 128, "LPDDR5")}, "M3 Pro": {18: (150, 192, "LPDDR5")},
    "M3 Max": {30: (300, 384, "LPDDR5"), 40: (400, 512, "LPDDR5")}, "M3 Ultra": {80: (819, 1024, "LPDDR5")},
    "M4": {10: (120, 128, "LPDDR5X")}, "M4 Pro": {20: (273, 256, "LPDDR5X")},
    "M4 Max": {32: (410, 384, "LPDDR5X"), 40: (546, 512, "LPDDR5X")},
    "M5": {10: (153, 128, "LPDDR5X")}, "M5 Pro": {20: (307, 256, "LPDDR5X")},
    "M5 Max": {32: (460, 384, "LPDDR5X"), 40: (614, 512, "LPDDR5X")},
    "A18 Pro": {5: (60, 64, "LPDDR5X")},
}
_ANE_WATTS = 8.0        # assumed full power of one ANE (asitop, metop); 5.66 W (M1) and about 7 W (M1 Max) were seen
_VPU_FULL = 7e9         # bytes/s taken as a busy video engine (NeoAsitop); an estimate, said in the result


def _chip_name(brand: str) -> str:
    """M1 Max of "Apple M1 Max", also of a guest's "Apple M1 Max (Virtual)"."""
    return brand.replace("Apple ", "", 1).replace(" (Virtual)", "").strip()


def _memory_system(brand: str, gpu_cores: int) -> tuple[float, int, str] | None:
    """(GB/s, bus bits, DRAM type) of a chip, None for one that this file does not know."""
    rows = _CHIPS.get(_chip_name(brand), {})
    fitting = [most for most in rows if gpu_cores <= most]
    return rows[min(fitting)] if fitting else None


def _ane_cores(brand: str) -> int | None:
    """16 on every M chip sold so far and on A18 Pro, 32 on an Ultra; None for a chip not in the table."""
    name = _chip_name(brand)
    return (32 if name.endswith("Ultra") else 16) if name in _CHIPS else None


# ======================================================================================================================
# engine
# ======================================================================================================================

# Sampling: raw absolute counters with their times go into histories here, readings are differences of two of them.
# All times are integer nanoseconds of CLOCK_UPTIME_RAW, which stands in sleep and is the clock of the driver's stamps.

_NS = 1000000000
_WINDOW = _NS                   # default window of a rate
_SHORTEST = 50 * _NS // 1000    # the shortest span that is a reading: longest tail seen 29 ms, shortest real span 0.3 s
_HOLD = 10 * _NS                # an older publication is not "now"; 4.5 x the longest gap of a healthy rail (2.23 s)
_LONGEST = 120 * _NS            # an older baseline is not "since the last poll"; twice a poll per minute
_TIMEOUT = 5 * _NS // 2         # a call waits this long after a baseline: longest gap + two steps
_STEP = _NS // 10               # one wait
_LEAD = _NS                     # a stamp further than this ahead of its sample is not on our clock
_SURE = _NS                     # a doubtful zero over at least this span is a frozen counter
_BUSY = 0.20                    # GPU active ratio that rules out 0 W
_MAX_WATTS = 1000               # no Mac's supply gives a rail more
_COARSE = 10 * _NS              # window of a batched counter without usable stamps: one batch is at most +-28 % of it
_COARSE_SHORTEST = 8 * _NS
_GRAINS = 16                    # a point nearer than a window / 16 to the one before it goes when the next one comes
_SLEPT = _NS // 2               # growth of continuous time over uptime between two samples that is a sleep
_MOST_POINTS = 19
_TICKS_SHORTEST = _NS // 5      # CPU ticks are 10 ms
_SENSOR_AGE = 2 * _NS           # SMC values are read at most this often
_RETRY = 5 * _NS                # a failure that may pass is tried again after this; what seems lacking, ever more rarely


class _Figure(NamedTuple):
    """A value with how it was come by."""
    value: Any
    age_s: float | None = None
    interval_s: float | None = None
    source: str | None = None
    estimated: bool = False

    def of(self, value: Any, estimated: bool = False) -> _Figure:
        """Another value that was come by in the same way, or is an estimate from this one."""
        return _Figure(value, self.age_s, self.interval_s, self.source, self.estimated or estimated)


class _Refusal:
    """What could not be had (error None: a fact that is not there, or of which a part is not), and when to ask again.

    A driver may come late, and a NULL does not say why. So nothing is given up for good: what seems lacking is asked for
    again after 5 s, and then each time after twice as long, as listing a group may take seconds.
    """

    __slots__ = ("error", "until", "value", "wait")

    def __init__(self, error: AppleGPUError | None, now: int, before: object, value: Any = None) -> None:
        self.error = error and _twin(error)
        self.value = value
        self.wait = _RETRY
        if isinstance(before, _Refusal) and (error is None or error.reason != REASON_SOURCE_FAILED):
            self.wait = 2 * before.wait
        self.until = now + self.wait


def _twin(error: AppleGPUError) -> AppleGPUError:
    """The same error, without the frames it passed through and what they hold."""
    return _fail(error.value, error.reason, error.source, error.detail)


def _not_ready(reason: str, source: str, detail: str, began: int, lapse: int = 0) -> AppleGPUError:
    """NotReady that knows since when its baseline stands, so that a caller may wait (`_Engine.settle`)."""
    error = _fail(ERROR_NOT_READY, reason, source, detail)
    error._began = began        # type: ignore[attr-defined]
    error._lapse = lapse        # type: ignore[attr-defined]
    return error


_WAITABLE = (REASON_FIRST, REASON_SLEPT, REASON_RESET, REASON_STALE, REASON_SLOW)


def _hope(error: AppleGPUError, entered: int, timeout: int) -> int:
    """Until when a call that began at `entered` may wait for what this error lacks; 0 where waiting gives nothing."""
    if error.reason not in _WAITABLE:
        return 0
    until: int = getattr(error, "_began", -timeout) + timeout
    if error.reason == REASON_STALE and getattr(error, "_lapse", 0) > _HOLD:
        until = max(until, entered + _STEP)     # nobody looked for so long that it may publish with this look
    return min(until, entered + 2 * timeout)    # not at all without a timeout; not for ever where every sample is a new baseline


# ---- histories

def _baseline(points: Sequence[Any], window: int, shortest: int, first: int = 0) -> tuple[int | None, bool]:
    """(index of the baseline of the newest point, True when all that is missing is a point young enough).

    Of the points from `first` on that are at least half a window old the one nearest to a window; the oldest where none
    is that old. What only another caller's longer window has kept is not "since the last poll".
    """
    i = len(points) - 2
    if i < first:
        return None, False
    newest, enough = points[-1][0], max(window, shortest)
    while i > first and newest - points[i][0] < enough:
        i -= 1
    age, younger = newest - points[i][0], newest - points[i + 1][0]
    if age > max(_LONGEST, 2 * window) + window:
        return (i + 1 if younger >= shortest else None), not younger
    if younger >= max(shortest, window // 2) and window - younger < age - window:
        return i + 1, False
    return (i if age >= shortest else None), False


def _prune(points: list[Any], window: int) -> None:
    """Drop what no baseline can be any more: points older than the newest one that is a whole window old. Where windows
    of several lengths leave too many, those that stand closest for their age."""
    for i in range(len(points) - 1, 0, -1):
        if points[-1][0] - points[i][0] >= window:
            del points[:i]
            break
    while len(points) > _MOST_POINTS:
        clocks = [point[0] for point in points]
        del points[min(range(1, len(clocks) - 1), key=lambda i: (clocks[i + 1] - clocks[i - 1]) / (clocks[-1] - clocks[i] or 1))]


def _append(points: list[Any], point: Any, window: int, finest: int | None = None) -> None:
    """Add a point; a newest one nearer than a grain of the shortest window to the one before it makes room first (a tail
    joins its batch)."""
    if len(points) >= 2 and points[-1][0] - points[-2][0] < (finest or window) // _GRAINS:
        points.pop()
    points.append(point)
    _prune(points, window)


class _Energy:
    """One energy counter on its own clock: the driver's publication stamps while they can be trusted, else the sample's.

    `look` takes what one sample shows; `change` gives the last reading, `total` the count that never falls.
    """

    __slots__ = ("scale", "batched", "points", "usable", "offset", "stamp", "value", "time", "stood", "gap", "silent",
                 "began", "reason", "barrier", "lapse", "told")

    def __init__(self, scale: tuple[int, int], batched: bool) -> None:
        self.scale = scale                  # to millijoules
        self.batched = batched              # published by PMGR every second or two, not when sampled
        self.points: list[tuple[int, int, int]] = []    # (clock, value, the driver's silence before it)
        self.usable = True                  # the stamps are on our clock
        self.offset = 0                     # what earlier lives of the counter held
        self.stamp: int | None = None
        self.value: int | None = None
        self.time = 0                       # of the last sample
        self.stood = 0                      # how long the stamp has not moved
        self.gap = 0                        # distance of the last two publications, when it was too long
        self.silent = False                 # a point of the history came after a silence that is too long for somebody
        self.began = 0                      # since when a baseline is waited with
        self.reason = REASON_FIRST
        self.barrier = 0                    # older publications are no baseline: the Mac slept since
        self.lapse = 0                      # between the last two samples
        self.told: dict[int, tuple[int, int] | str] = {}    # changes per window, as of the last sample

    def drop(self, t: int, reason: str) -> None:
        """Forget the history: the next publication is a new baseline."""
        self.told.clear()
        self.points, self.reason, self.began, self.stood, self.gap, self.silent = [], reason, t, 0, 0, False
        self.barrier = t - _SHORTEST if reason == REASON_SLEPT else min(self.barrier, t)
        if t < self.time:
            self.time = 0           # the clock went back: nothing is early or late against the last sample

    def look(self, t: int, stamp: int | None, value: int | None, window: int, finest: int | None = None) -> None:
        """Take the counter as the sample at `t` shows it. `window` is the longest asked for, `finest` the shortest."""
        self.lapse = t - self.time if self.time else 0
        if value is None or value < 0:
            self.drop(t, REASON_ABSENT)
        else:
            if self.usable and self._off_clock(t, stamp, value):
                self.usable, self.stood = False, 0
                self.points = [(self.time, self.value, 0)] if self.points and self.value is not None else []
            self._take(t, stamp if self.usable and stamp else t, value, window, finest or window)
            self.stamp, self.value = stamp, value
        self.time = t
        self.told.clear()       # last: a signal handler may ask in between

    def _off_clock(self, t: int, stamp: int | None, value: int) -> bool:
        if stamp is None or stamp <= 0 or stamp > t + _LEAD:
            return True
        if self.value is None:
            return False
        if stamp == self.stamp:
            return value != self.value
        return stamp < self.time - _LEAD and value >= self.value

    def _take(self, t: int, clock: int, value: int, window: int, finest: int) -> None:
        if self.value is not None and value < self.value:
            self._restart(t, clock, value, value - self.value)
        elif not self.points:
            self._first_point(t, clock, value)
        elif clock == self.points[-1][0]:
            self.stood += self.lapse if self.lapse <= _HOLD else 0
        else:
            self._publish(t, clock, value, self.span(window), self.span(finest))

    def _too_much(self, change: int, span: int) -> bool:
        """True for more than any supply gives: millijoules x 10^6 against watts x nanoseconds."""
        return change * self.scale[0] * 1000000 > span * _MAX_WATTS * self.scale[1]

    def span(self, window: int) -> int:
        """The window this counter can serve."""
        return max(_COARSE, window) if self.batched and not self.usable else window

    def shortest(self) -> int:
        """The shortest span that is a reading."""
        return _COARSE_SHORTEST if self.batched and not self.usable else _SHORTEST

    def _first_point(self, t: int, clock: int, value: int) -> None:
        if clock < self.barrier:
            self.reason = REASON_SLEPT
            return
        if self.reason == REASON_ABSENT:
            self.reason = REASON_FIRST
        self.points, self.stood, self.began = [(clock, value, 0)], max(0, t - clock), t

    def _restart(self, t: int, clock: int, value: int, lost: int = 0) -> None:
        """A new baseline; a step that is `lost`, because it fell or jumped, is no energy."""
        self.drop(t, REASON_RESET)
        self.offset -= lost
        self.points, self.stood = [(clock, value, 0)], max(0, t - clock)

    def _publish(self, t: int, clock: int, value: int, window: int, finest: int) -> None:
        step, distance = value - self.points[-1][1], clock - self.points[-1][0]
        if self._too_much(step, max(_COARSE if self.batched and not self.usable else _SHORTEST, distance)):
            self._restart(t, clock, value, step)
        elif distance < 0:
            self._restart(t, clock, value)
        else:
            silence = max(self.stood, distance // 2 if distance > _LONGEST else 0)
            _append(self.points, (clock, value, silence), window, finest)
            slow = silence > max(_HOLD, finest)
            self.gap, self.stood = (distance, max(0, t - clock)) if slow else (0, 0)
            self.silent = self.silent or slow

    def age(self) -> int:
        """Nanoseconds from the newest publication to the last sample."""
        if self.usable and self.stamp:
            return max(0, self.time - self.stamp)
        return 0

    def change(self, window: int) -> tuple[int, int] | str:
        """(change of the raw value, span) of the last reading, or the reason why there is none."""
        if window not in self.told:
            self.told[window] = self._change(window)
        return self.told[window]

    def _change(self, window: int) -> tuple[int, int] | str:
        window = self.span(window)
        if self.reason == REASON_ABSENT:
            return REASON_ABSENT
        if self.points and self.age() > max(_HOLD, window):
            return REASON_SLOW if self.gap and self.age() <= 2 * self.gap else REASON_STALE
        since = self._since(window) if self.silent else 0
        base, late = _baseline(self.points, window, self.shortest(), since)
        if base is None:
            self.began = self.time if late else self.began
            return REASON_FIRST if late else REASON_SLOW if since else self.reason
        change, span = self.points[-1][1] - self.points[base][1], self.points[-1][0] - self.points[base][0]
        return REASON_RESET if self._too_much(change, span) else (change, span)

    def _since(self, window: int) -> int:
        """Index of the first point that counts for a window: what the driver's silence is longer than is not "now"."""
        return max((i for i, point in enumerate(self.points) if point[2] > max(_HOLD, window)), default=0)

    def total(self) -> tuple[int, int] | str:
        """(count, clock of its publication), or the reason why it cannot be told; the count never falls."""
        if self.reason == REASON_ABSENT or self.value is None:
            return REASON_ABSENT
        if self.age() > max(_HOLD, 2 * self.gap):
            return REASON_STALE
        return self.offset + self.value, (self.stamp if self.usable and self.stamp else self.time)

    def published(self) -> list[tuple[int, float]]:
        """(clock, mJ) of the publications in the history, the newest last; [] when the count cannot be told."""
        newest = self.total()
        if isinstance(newest, str):
            return []
        kept = [(clock, self.offset + value) for clock, value, _ in self.points if clock < newest[1]]
        return [(clock, count * self.scale[0] / self.scale[1]) for clock, count in kept + [(newest[1], newest[0])]]


_BADNESS = (REASON_ABSENT, REASON_FROZEN, REASON_STALE, REASON_SLOW, REASON_RESET, REASON_SLEPT, REASON_FIRST)


# ---- feeds: one source sampled into histories

class _Feed:
    """A source that is sampled as a whole: (t, payload) points on the sample's own clock. `read` makes a payload."""

    def __init__(self, engine: _Engine, source: str, read: Callable[[], Any], shortest: int = _SHORTEST) -> None:
        self.engine = engine
        self.source = source
        self.read = read
        self.shortest = shortest            # span that is a reading
        self.lock: Any = RLock()            # held around the native call, never while waiting
        self.window = self.finest = engine.window       # the longest and the shortest that was asked for
        self.points: list[tuple[int, Any]] = []
        self.told: dict[tuple[Any, ...], Any] = {}      # what has been worked out of the newest point
        self.reason = REASON_FIRST
        self.began = 0                      # since when a baseline is waited with
        self.lapse = 0                      # between the last two points
        self.time: int | None = None        # of the last sample
        self.asleep = 0

    def refresh(self, window: int | None = None) -> None:
        """Sample, unless the last sample is so young that every caller of one poll should share it; nor in a signal handler
        of the host that came while its own thread samples."""
        if self._is_fresh(window) or self.lock._is_owned():
            return
        with self.lock:
            if window is not None:
                self.window, self.finest = max(self.window, window), min(self.finest, window)
            if self._is_fresh(window):      # another thread's sample
                return
            payload = self.read()
            t, continuous = self.engine.machine.clock.now()
            with self.engine.lock:
                self._events(t, continuous)
                self.keep(t, payload)
                self.time = t

    def _is_fresh(self, window: int | None) -> bool:
        return (self.time is not None and 0 <= self.engine.machine.clock.now()[0] - self.time < _SHORTEST
                and (window is None or self.finest <= window <= self.window))

    def _events(self, t: int, continuous: int) -> None:
        asleep, before = continuous - t, self.asleep
        self.asleep = asleep
        if self.time is None:
            self.drop(t, REASON_FIRST)
        elif t < self.time:
            self.drop(t, REASON_RESET)
        elif asleep - before > _SLEPT:
            self.drop(t, REASON_SLEPT)
        elif t - self.time > max(_LONGEST, 2 * self.window):
            self.drop(t, REASON_FIRST)

    def keep(self, t: int, payload: Any) -> None:
        self.lapse = t - self.points[-1][0] if self.points else 0
        _append(self.points, (t, payload), self.window, self.finest)
        self.told.clear()

    def drop(self, t: int, reason: str) -> None:
        """Forget the history: the next sample is a new baseline."""
        self.points, self.reason, self.began = [], reason, t
        self.told.clear()

    def interval(self, window: int, since: int = 0) -> tuple[Any, Any, int] | None:
        """(old payload, new payload, span) of the window, None without a baseline; `since`: older points are none."""
        got = self.told.get((window, since, "interval"), 0)
        if got == 0:
            first = sum(point[0] <= since for point in self.points) if since else 0
            base, late = _baseline(self.points, window, self.shortest, first)
            self.began = self.points[-1][0] if late else self.began
            got = self.told[window, since, "interval"] = None if base is None else (
                self.points[base][1], self.points[-1][1], self.points[-1][0] - self.points[base][0])
        return got      # type: ignore[no-any-return]

    def rated(self, window: int, since: int = 0) -> tuple[Any, Any, int]:
        """The interval; NotReady without a baseline."""
        got = self.interval(window, since)
        if got is None:
            raise self.missing(REASON_RESET if since > self.began else self.reason, began=max(since, self.began))
        return got

    def newest(self) -> Any:
        """The last payload; NotReady when another thread has dropped it since (a GPU restart)."""
        if not self.points:
            raise self.missing(self.reason)
        return self.points[-1][1]

    def missing(self, reason: str, what: str = "", began: int | None = None) -> AppleGPUError:
        """NotReady for this feed."""
        return _not_ready(reason, self.source, (what + ": " if what else "") + _ADVICE[reason],
                          self.began if began is None else began, self.lapse)


class _ReportFeed(_Feed):
    """One IOReport subscription, made at the first need: energy channels each on its own clock, the rest as whole rows."""

    def __init__(self, engine: _Engine, groups: Sequence[tuple[str, str | None]],
                 needed: Callable[[Sequence[Any]], Sequence[int]] | None = None) -> None:
        source = "ioreport:" + "+".join(dict.fromkeys(group for group, _ in groups))
        _Feed.__init__(self, engine, source, lambda: self.subscription.sample())
        self.groups = groups
        self.needed = needed                        # of the wanted channels
        self.subscription: Any = None
        self.channels: tuple[Any, ...] = ()
        self.sizes: tuple[int, ...] = ()            # how many values each channel has in a row
        self.starts: tuple[int, ...] = ()           # where they begin
        self.energies: dict[int, _Energy] = {}
        self.restarted = 0                          # when the GPU's lanes began anew, and the others did not
        self.opening = RLock()
        self.plans: dict[Any, Any] = {}             # what follows from the channels alone

    def open(self) -> None:
        """Subscribe, once for the life of the process; a refusal is believed for a while."""
        if self.subscription is None:
            with self.opening:
                self.engine.once(self.source, self._subscribe, AppleGPUError)

    def _subscribe(self) -> Any:
        subscription = self.engine.machine.ioreport.subscribe(self.groups, _wanted, self.needed)
        if subscription is None:
            # Sandboxed apps have this variable, and see no IOReport group (NULL) without an exception for IOReportHub.
            if self.engine.machine.name == "live" and os.environ.get("APP_SANDBOX_CONTAINER_ID"):
                raise _fail(ERROR_NO_PERMISSION, REASON_SANDBOX, self.source, "the App Sandbox hides IOReport")
            raise self.engine.lacking(self.source, "no such channels")
        if self.subscription is None:       # else a signal handler subscribed meanwhile, and sampled
            self.channels, self.plans = tuple(subscription.channels), {}
            self.sizes = tuple([max(1, len(channel.states)) for channel in self.channels])
            self.starts = tuple([sum(self.sizes[:i]) for i in range(len(self.sizes))])
            self.energies = {i: _Energy(_ENERGY_UNITS[c.unit], c.unit != "nJ") for i, c in enumerate(self.channels)
                             if c.unit in _ENERGY_UNITS and c.format == 1}
            self.subscription = subscription
        return self.subscription

    def refresh(self, window: int | None = None) -> None:
        if self.subscription is None:
            self.open()
        _Feed.refresh(self, window)

    def drop(self, t: int, reason: str) -> None:
        _Feed.drop(self, t, reason)
        self.restarted = 0
        for energy in self.energies.values():
            energy.drop(t, reason)

    def drop_gpu(self, t: int) -> None:
        """The GPU started anew: its counters have no baseline, the other ones went on."""
        self.restarted = t
        self.told.clear()
        for i, energy in self.energies.items():
            if "GPU" in self.channels[i].name:
                energy.drop(t, REASON_RESET)

    def keep(self, t: int, payload: Any) -> None:
        row: list[int] = []
        for got, size in zip(payload, self.sizes):
            row += got[1] if got is not None and len(got[1]) == size else (INT64_MIN,) * size
        hz = self.engine.machine.clock.ticks_per_second()
        for i, energy in self.energies.items():
            stamp = payload[i][0] if payload[i] is not None else None
            energy.look(t, None if stamp is None else stamp * _NS // hz, row[self.starts[i]], self.window, self.finest)
        _Feed.keep(self, t, array("q", row))

    def silent(self) -> bool:
        """True when no channel has a value in the newest sample (AMC Stats of an M3 Max on macOS 27 betas)."""
        with self.engine.lock:
            return bool(self.points) and all(value == INT64_MIN for value in self.points[-1][1])

    def named(self, i: int) -> str:
        """The source of channel i, for people: its group."""
        return "ioreport:" + str(self.channels[i].group)

    def lane(self, row: array[int], i: int) -> array[int]:
        """The values of channel i in a row."""
        return row[self.starts[i]:self.starts[i] + self.sizes[i]]

    def planned(self, key: Any, work: Callable[[], Any]) -> Any:
        """What follows from the channels alone, worked out once."""
        if key not in self.plans:
            self.plans[key] = work()
        return self.plans[key]

    def state_lanes(self, name: str) -> list[int]:
        """The lanes of the state channels of a name: one for each die; NotSupported when there are none."""
        self.open()
        lanes: list[int] = self.planned("state " + name, lambda: [
            i for i, c in enumerate(self.channels) if c.name == name and c.format == _STATE])
        if not lanes:
            raise self.engine.lacking(self.source, "no %s channel" % name)
        return lanes

    def buckets(self, i: int) -> tuple[float | None, ...]:
        """GB/s of each state of a bandwidth histogram."""
        got: tuple[float | None, ...] = self.planned(i, lambda: tuple(map(_bucket_gb, self.channels[i].states)))
        return got

    def flows(self, direction: str) -> list[tuple[str, bool, int]]:
        """(unit, DRAM side, lane) of the bandwidth channels of a direction."""
        parsed = [(_traffic(c.name), i) for i, c in enumerate(self.channels)]
        return [(flow[0], flow[2], i) for flow, i in parsed if flow is not None and flow[1] == direction]

    def rail_lanes(self, rail: str) -> list[int]:
        """Lanes of a rail: its preferred channels, one for each die."""
        def work() -> list[int]:
            named = [(_rail_of(self.channels[i].group, self.channels[i].subgroup, self.channels[i].name), i) for i in self.energies]
            ranked = [(got[1], i) for got, i in named if got is not None and got[0] == rail]
            return [i for rank, i in ranked if rank == min(ranked)[0]]
        lanes: list[int] = self.planned("rail " + rail, work)
        return lanes

    def ratios(self, i: int, window: int) -> tuple[list[float], int]:
        """(share of each state, span) of a state or histogram channel; worked out once of each sample."""
        got = self.told.get((i, window))
        if got is None:
            channel = self.channels[i]
            old, new, span = self.rated(window, self.restarted if channel.group == "GPU Stats" else 0)
            try:
                ratios = _ratios(self.lane(old, i), self.lane(new, i), span, _TICK_NS.get(channel.unit, 0))
            except ValueError as error:
                raise self.missing(str(error), channel.name) from None
            got = self.told[i, window] = ratios, span
        return got

    def histogram(self, i: int, window: int) -> tuple[float, bool, bool, int]:
        """(bytes per second, saturated, above the floor, span) of a bandwidth histogram."""
        ratios, span = self.ratios(i, window)
        try:
            return (*_histogram(self.buckets(i), ratios), span)
        except ValueError:      # no state of it names a bandwidth
            raise self.missing(REASON_ABSENT, self.channels[i].name) from None

    def values(self, i: int) -> array[int]:
        """The values of channel i as last sampled."""
        values = self.lane(self.newest(), i)
        if INT64_MIN in values:
            raise self.missing(REASON_ABSENT, self.channels[i].name)
        return values

    def counted(self, i: int, window: int) -> int:
        """The change of a plain counter."""
        old, new, _ = self.rated(window)
        before, after = old[self.starts[i]], new[self.starts[i]]
        if after == INT64_MIN:
            raise self.missing(REASON_ABSENT, self.channels[i].name)
        if before == INT64_MIN or after < before:
            raise self.missing(REASON_RESET, self.channels[i].name)
        return int(after - before)


_TICK_NS = {"24Mticks": 1000 / 24, "ns": 1, "us": 1000, "ms": 1000000}      # of a residency


class _ClientsFeed(_Feed):
    """GPU time of every user client of the accelerator, by registry entry id (never reused, so a reused pid does no harm)."""

    def __init__(self, engine: _Engine) -> None:
        _Feed.__init__(self, engine, "registry", self._walk)
        self.creators: dict[int, tuple[int, str]] = {}      # by entry id: (pid, name), which stay

    def _walk(self) -> dict[int, tuple[int, str, int]]:
        registry = self.engine.machine.registry
        clients, before, self.creators = {}, self.creators, {}
        for entry in registry.children(self.engine.accelerator()):
            number = registry.identity(entry)
            who = before.get(number) or _client_pid(registry.get(entry, "IOUserClientCreator"))
            if who is not None:
                self.creators[number] = who
                usage = registry.get(entry, "AppUsage")
                if isinstance(usage, list):     # an empty one is 0 ns; none at all says nothing
                    clients[number] = (who[0], who[1], _client_gpu_ns(usage))
        if self.creators and not clients:
            raise _fail(ERROR_NO_DATA, REASON_ABSENT, "registry", "no client of the GPU says how long it used it")
        return clients


_MAIN_GROUPS = (("Energy Model", None), ("GPU Stats", None), ("CPU Stats", "CPU Complex Performance States"))
_STATES = {     # state channels by group or subgroup
    "GPU Stats": ("GPUPH", "GPU_CLTM", "GPU_PPM"), "ANE": ("status",), "SOC Floor": ("ANE-AF-BW",)}
_PMP_GROUPS = tuple((group, sub) for group in ("PMP", "PMP0", "PMP1") for sub in (
    "Energy Counters", "SOC Floor", "DCS BW", "AF BW", "DRAM BW", "DRAM Bandwidth")) + (("Energy Counters", None),)


def _wanted(group: str, subgroup: str, name: str, unit: str) -> bool:
    """True for a channel that a figure comes from."""
    if group in ("Energy Model", "Energy Counters") or subgroup == "Energy Counters":
        return unit in _ENERGY_UNITS and (_rail_of(group, subgroup, name) is not None
                                          or group == "Energy Model" and _cluster_energy(name) is not None)
    if group == "CPU Stats":
        return _cluster_state(name) is not None
    if group in _STATES or subgroup in _STATES:
        return name in _STATES.get(group, ()) or name in _STATES.get(subgroup, ())
    flow = _traffic(name)
    if flow is None or group == "AMC Stats":
        return flow is not None and unit in _BYTE_UNITS
    # RD+WR is both again, and here RD and WR hold their real-time share, which is listed once more (SiliconScope 30).
    return flow[1] != "RD+WR" and not any(word in _STREAMS for word in name.split(" "))


# ---- sensors

class _Sensors:
    """SMC keys found per prefix by binary search in the sorted key table; values read at most every 2 s."""

    def __init__(self, engine: _Engine) -> None:
        self.engine = engine
        self.machine = engine.machine
        self.count: int | None = None
        self.names: dict[int, str] = {}             # index -> key, as far as looked up
        self.walked = False                         # the table is not sorted: every key was looked up
        self.spans: dict[str, list[str]] = {}
        self.floats: dict[tuple[str, ...], list[str]] = {}      # temperature keys under prefixes

    def keys(self, prefix: str) -> list[str]:
        """The keys that start with prefix."""
        if prefix not in self.spans:
            if self.count is None:
                self.count = self.machine.smc.count()
            found = None if self.walked else self._search(prefix, self.count)
            if found is None:
                self.walked = True
                found = [key for key in map(self._key, range(self.count)) if key.startswith(prefix)]
            self.spans[prefix] = found
        return self.spans[prefix]

    def _key(self, index: int) -> str:
        if index not in self.names:
            self.names[index] = self.machine.smc.key_at(index) or ""
        return self.names[index]

    def _search(self, prefix: str, count: int) -> list[str] | None:
        """Binary search and a short scan; None where the keys met are not in order: no Apple document promises it."""
        low, high = 0, count
        if count:
            self._key(0), self._key(count - 1)
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if self._key(middle) < prefix else (low, middle)
        while high < count and self._key(high).startswith(prefix):
            high += 1
        met = [self.names[i] for i in sorted(self.names)]
        return [self._key(i) for i in range(low, high)] if met == sorted(met) else None

    def number(self, key: str) -> tuple[int, Any]:
        """(when, value) of a key; None when the Mac has no such key or it holds no number."""
        def read() -> float | None:
            info = self.machine.smc.info(key)
            data = self.machine.smc.read(key) if info is not None else None
            return _smc_number(key, info[1], data) if data is not None else None
        return self.engine.kept("smc " + key, read, _SENSOR_AGE)

    def temperatures(self, prefixes: tuple[str, ...]) -> tuple[int, list[TemperatureSensor], int]:
        """(when, plausible sensors of type flt, how many keys there are) under the prefixes."""
        if prefixes not in self.floats:
            keys = [key for prefix in prefixes for key in self.keys(prefix)]
            self.floats[prefixes] = [key for key in keys if (self.machine.smc.info(key) or (0, ""))[1] == "flt "]

        def read() -> list[TemperatureSensor]:
            smc = self.machine.smc
            values = [(key, _smc_number(key, "flt ", smc.read(key) or b"")) for key in self.floats[prefixes]]
            return [TemperatureSensor(key, value) for key, value in values if value and _plausible_celsius(value)]
        return (*self.engine.kept("smc " + " ".join(prefixes), read, _SENSOR_AGE), len(self.floats[prefixes]))


class _Cluster(NamedTuple):
    """One CPU cluster: where its figures come from."""
    name: str
    core_type: str
    lane: int                       # of its residencies in the main feed, -1 where there are none
    clocks: tuple[int, ...]
    energies: tuple[int, ...]       # lanes of its energy
    cores: int | None
    cpus: tuple[int, ...]           # indices in host_processor_info; () when they cannot be told


_CORE_TYPES = {"E": "Efficiency", "P": "Performance", "M": "Performance", "S": "Super"}
_SPEED = "SPME"     # fastest letter first; on M5 Pro and Max P is Super and M Performance


# ---- the engine

_LACKING = (NVMLError_NotSupported, NVMLError_NoPermission, NVMLError_OperatingSystem)
_DIE_SENSORS = {        # part: (SMC prefixes, HID names, why they may all be silent)
    "GPU": (("Tg",), ("GPU MTR Temp Sensor",), REASON_GPU_ASLEEP),
    "CPU": (("Tp", "Te"), ("pACC MTR Temp Sensor", "eACC MTR Temp Sensor"), REASON_CPU_ASLEEP)}


def _is_late(error: AppleGPUError) -> bool:
    """True for a figure that is only not ready yet: another source would not be better."""
    return error.value == ERROR_NOT_READY and error.reason != REASON_ABSENT


def _now_from(source: str, read: Callable[..., Any]) -> Callable[..., _Figure]:
    """A figure method for something as it is now: `read` takes the engine and the figure's own arguments."""
    def figure(self: _Engine, window: int = 0, *args: Any) -> _Figure:
        return _Figure(read(self, *args), None, None, source, False)
    return figure


class _Rail(NamedTuple):
    """The energy of a rail or of a CPU cluster: the sum of its channels, one for each die."""
    name: str
    feed: _ReportFeed
    lanes: Sequence[int]

    def energies(self) -> list[_Energy]:
        return [self.feed.energies[i] for i in self.lanes]

    def is_never_zero(self) -> bool:
        return self.name in ("cpu", "dram")


class _Engine:
    """Everything known of one GPU of one machine: sources, histories, and one method per figure.

    Figure methods take the window in nanoseconds first, never wait, and return a _Figure or raise AppleGPUError.
    """

    def __init__(self, machine: Any, window: float = _WINDOW / _NS, timeout: float = _TIMEOUT / _NS) -> None:
        self.machine = machine
        self.set_times(window, timeout)
        self._begin()

    def set_times(self, window: float, timeout: float) -> None:
        self.window = _window_ns(window)
        self.timeout = _timeout_ns(timeout)

    def _begin(self) -> None:
        self.lock = RLock()                     # histories; like every lock here one that a signal handler may take again
        self.facts: dict[str, Any] = {}         # what does not change, or a _Refusal
        self.gauges: dict[str, tuple[int, Any]] = {}    # (when, what was read)
        self.main = _ReportFeed(self, _MAIN_GROUPS)
        self.amc = _ReportFeed(self, (("AMC Stats", "Perf Counters"),))
        self.pmp = _ReportFeed(self, _PMP_GROUPS, _needed_flows)
        self.ane = _ReportFeed(self, (("ANE", "IOP State"),))
        self.ticks = _Feed(self, "mach", lambda: self.machine.mach.cpu_ticks(), _TICKS_SHORTEST)
        self.clients = _ClientsFeed(self)
        self.sensors = _Sensors(self)
        self.recoveries: int | None = None
        self.looked = 0                         # when the accelerator was last seen among the services

    def forked(self) -> None:
        """In a forked child: forget, without releasing, what the parent opened."""
        self.machine.forked()
        self._begin()

    def feeds(self) -> tuple[_ReportFeed, ...]:
        return self.main, self.amc, self.pmp, self.ane

    def settle(self, figure: Callable[[int], _Figure], window: int, timeout: int) -> _Figure:
        """The figure; waits for it as long as a baseline younger than the timeout gives hope."""
        clock = self.machine.clock
        entered: int | None = None
        while True:
            try:
                return figure(window)
            except NVMLError_NotReady as error:
                now = clock.now()[0]
                entered = now if entered is None else entered
                if now >= _hope(error, entered, timeout):
                    raise
            clock.sleep(_STEP / _NS)

    def kept(self, name: str, read: Callable[[], Any], age: int = _SHORTEST) -> tuple[int, Any]:
        """(when, what was read) of something as it is now, not read twice within 50 ms: the getters of one poll tell of one
        moment."""
        now = self.machine.clock.now()[0]
        kept = self.gauges.get(name)
        if kept is None or not 0 <= now - kept[0] < age:
            kept = self.gauges[name] = now, read()
        return kept

    def once(self, name: str, work: Callable[[], Any], believed: type[AppleGPUError] = NVMLError_NotSupported,
             whole: Callable[[Any], bool] = lambda value: value is not None) -> Any:
        """A fact that does not change. That it is not there (None, or an error of a class) or not `whole` is believed for
        a while."""
        got = self.facts.get(name)
        if got is not None and not isinstance(got, _Refusal):
            return got
        now = self.machine.clock.now()[0]
        if got is not None and now < got.until:
            if got.error is None:
                return got.value
            raise _twin(got.error)
        try:
            value = work()
        except believed as error:
            self.facts[name] = _Refusal(error, now, got)
            raise
        self.facts[name] = value if whole(value) else _Refusal(None, now, got, value)
        return value

    def refusal(self, name: str) -> AppleGPUError | None:
        """Why `once` has no fact, while that is believed."""
        got = self.facts.get(name)
        return got.error if isinstance(got, _Refusal) and self.machine.clock.now()[0] < got.until else None

    def lacking(self, source: str, detail: str, reason: str = REASON_CHIP) -> AppleGPUError:
        """NotSupported for something that this Mac lacks; in a guest that is the reason."""
        if self.is_virtual():
            return _fail(ERROR_NOT_SUPPORTED, REASON_VIRTUAL_MACHINE, source, "a virtual machine does not see it (%s)" % detail)
        return _fail(ERROR_NOT_SUPPORTED, reason, source, detail)

    def need(self, value: Any, source: str, detail: str) -> Any:
        """The value; NotSupported when there is none."""
        if value is None:
            raise self.lacking(source, detail)
        return value

    @staticmethod
    def or_none(figure: Callable[..., _Figure], *args: Any) -> Any:
        """The value of a figure, None when it cannot be had now."""
        try:
            return figure(*args).value
        except AppleGPUError:
            return None

    def sysctl(self, name: str, read: Callable[[str], Any]) -> Any:
        """A sysctl by name; NotSupported when it is not there, or says nothing."""
        value = read(name)
        if not value:
            raise _fail(ERROR_NOT_SUPPORTED, REASON_MACOS, "sysctl", "sysctl %s is not there" % name)
        return value

    # ---- who this is

    def is_virtual(self) -> bool:
        def work() -> bool:
            sysctl = self.machine.sysctl
            return sysctl.number("kern.hv_vmm_present") == 1 or (sysctl.text("hw.model") or "").startswith("VirtualMac")
        return bool(self.once("virtual", work))

    def accelerators(self) -> list[Any]:
        """The GPUs among the IOAccelerator services: AGX, or the paravirtual one of a guest."""
        def is_gpu(entry: Any) -> bool:
            # An M1 also has an IOServiceCompatibility node of that name, with PerformanceStatistics {vramFreeBytes}.
            registry = self.machine.registry
            if registry.class_name(entry).startswith(("AGXAccelerator", "AppleParavirtGPU")):
                return True
            statistics = registry.get(entry, "PerformanceStatistics")
            return isinstance(statistics, dict) and "Device Utilization %" in statistics
        found = self.facts.get("accelerators")      # one look: another thread may forget them after a GPU restart
        if not found:
            self.looked = self.machine.clock.now()[0]
            found = self.facts["accelerators"] = [e for e in self.machine.registry.services("IOAccelerator") if is_gpu(e)]
        return list(found)

    def accelerator(self, doubted: bool = False) -> Any:
        """The GPU's service. One that went away with a GPU restart is matched again: noticed every 10 s, or when in doubt."""
        found, now = self.accelerators(), self.machine.clock.now()[0]
        if found and (doubted or not 0 <= now - self.looked < _HOLD):
            self.looked = now
            if not self.machine.registry.alive(found[0]):
                self.facts.pop("accelerators", None)
                self._gpu_restarted()
                found = self.accelerators()
        if not found:
            raise _fail(ERROR_GPU_IS_LOST, REASON_SOURCE_FAILED, "registry", "the accelerator service does not answer")
        return found[0]

    def gpu_property(self, key: str) -> Any:
        """A property of the accelerator; None may mean that the service is gone."""
        entry = self.accelerator()
        value = self.machine.registry.get(entry, key)
        again = self.accelerator(doubted=True) if value is None else entry
        return value if again is entry else self.machine.registry.get(again, key)

    def _gpu_restarted(self) -> None:
        now = self.machine.clock.now()[0]
        with self.lock:
            self.clients.drop(now, REASON_RESET)
            self.main.drop_gpu(now)

    def statistics(self) -> dict[str, Any]:
        """PerformanceStatistics of the accelerator; a changed recoveryCount starts the GPU's histories anew."""
        got = self.kept("PerformanceStatistics", lambda: self.gpu_property("PerformanceStatistics"))[1]
        if not isinstance(got, dict):
            raise self.lacking("registry", "the accelerator has no PerformanceStatistics")
        count = got.get("recoveryCount")
        if isinstance(count, int):
            before, self.recoveries = self.recoveries, count
            if before is not None and before != count:
                self._gpu_restarted()
        return got

    def _statistic(self, key: str) -> int:
        value = self.statistics().get(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise self.lacking("registry", "PerformanceStatistics has no %s" % key)
        return value

    def _text(self, name: str) -> str:
        return str(self.sysctl(name, lambda key: self.once(key, lambda: self.machine.sysctl.text(key))))

    def brand(self) -> str:
        """Apple M1 Max: the CPU brand string, which a VM marks with (Virtual)."""
        text = self._text("machdep.cpu.brand_string")
        # What Rosetta tells an Intel program (PCSX2 13100).
        return self._gpu_text("model") or text if text.startswith("VirtualApple") else text

    def _gpu_text(self, key: str) -> str:
        """A text that the accelerator has, "" when there is none: no model in a guest."""
        text = self.once(key, lambda: self.gpu_property(key))
        text = text.split(b"\0", 1)[0].decode("utf-8", "replace") if isinstance(text, bytes) else text
        return text if isinstance(text, str) else ""

    def name(self, window: int) -> _Figure:
        """The accelerator's own model; in a guest Metal's name for it; else the chip's."""
        model = self._gpu_text("model")
        if model:
            return _Figure(model, source="registry")
        name = self.or_none(self._metal_name) if self.is_virtual() else None    # may have no device (llama.cpp 6628)
        return _Figure(name, source="metal") if name else self.chip(window)

    def uuid(self, window: int = 0) -> _Figure:
        def work() -> str:
            for entry in self.machine.registry.services("IOPlatformExpertDevice"):
                value = self.machine.registry.get(entry, "IOPlatformUUID")
                if isinstance(value, str) and value:
                    return _uuid_of(value)
            raise _fail(ERROR_NOT_SUPPORTED, REASON_MACOS, "registry", "IOPlatformUUID cannot be read")
        return _Figure(self.once("uuid", work), source="registry")

    def _cores(self) -> int:
        """gpu-core-count; GPUConfigurationVariable counts the 80 cores of an M3 Ultra's design where 60 are enabled."""
        cores = self.once("cores", lambda: self.gpu_property("gpu-core-count"))
        cores = _little(cores[:8]) if isinstance(cores, bytes) else cores
        if not isinstance(cores, int) or cores <= 0:
            raise self.lacking("registry", "the accelerator has no gpu-core-count")
        return cores

    def dies(self, window: int = 0) -> _Figure:
        """1, or 2 on an Ultra, by the die prefixes of the energy channels, else by the chip's name."""
        try:
            self.main.open()
        except (NVMLError_NotSupported, NVMLError_NoPermission):
            return _Figure(2 if _chip_name(self.brand()).endswith("Ultra") else 1, source="sysctl")
        found = {_strip_die(c.name)[0] for c in self.main.channels if _strip_die(c.name)[1] == "CPU Energy"} - {"", "PRIM "}
        return _Figure(max(1, len(found)), source=self.main.source)

    def metal(self) -> dict[str, Any]:
        """What Metal says of the device: made and released once per process, the numbers kept."""
        def work() -> Any:
            return self.machine.metal.device(self.machine.registry.identity(self.accelerator()))
        return dict(self.once("metal", work))

    def _metal_family(self) -> str:
        """The highest Apple GPU family, "Apple7" on M1; in a guest the highest common one."""
        families = self.metal()["families"]
        for name, first in (("Apple", 1000), ("Common", 3000)):
            found = [f - first for f in families if first < f < first + 1000]
            if found:
                return "%s%d" % (name, max(found))
        raise self.lacking("metal", "Metal names no GPU family")

    chip = _now_from("sysctl", brand)
    text_fact = _now_from("sysctl", _text)
    driver_version = _now_from("registry", lambda self: self.need(
        self._gpu_text("IOSourceVersion") or None, "registry", "the accelerator has no IOSourceVersion"))
    gpu_cores = _now_from("registry", _cores)
    metal_family = _now_from("metal", _metal_family)
    _metal_name = _now_from("metal", lambda self: self.metal()["name"])
    registry_id = _now_from("registry", lambda self: self.machine.registry.identity(self.accelerator()))
    architecture = _now_from("registry", lambda self: self.need(
        _architecture(self.machine.registry.class_name(self.accelerator())), "registry", "the accelerator is no AGX"))

    # ---- GPU use and clocks

    def _engines(self) -> EngineUtilization:
        got = self.statistics()
        names = ("Device Utilization %", "Renderer Utilization %", "Tiler Utilization %")
        values = [got[name] for name in names if isinstance(got.get(name), int)]
        if len(values) < 3:
            raise self.lacking("registry", "PerformanceStatistics has no utilisation")
        return EngineUtilization(*values)

    def shares(self, feed: _ReportFeed, lane: int, window: int) -> tuple[tuple[str, ...], list[float], _Figure]:
        """(state names, share of each, a figure that carries span and source) of a state channel."""
        feed.refresh(window)
        with self.lock:
            ratios, span = feed.ratios(lane, window)
        return feed.channels[lane].states, ratios, _Figure(None, 0.0, span / _NS, feed.named(lane), False)

    def gpu_shares(self, window: int) -> tuple[tuple[str, ...], list[float], _Figure]:
        return self.shares(self.main, self.main.state_lanes("GPUPH")[0], window)

    def gpu_active(self, window: int) -> _Figure:
        states, ratios, figure = self.gpu_shares(window)
        return figure.of(_active(states, ratios))

    def gpu_active_time(self, window: int) -> _Figure:
        """Seconds active since the driver began to count; not told while it counts nothing at all."""
        lane = self.main.state_lanes("GPUPH")[0]
        channel = self.main.channels[lane]
        tick = self.need(_TICK_NS.get(channel.unit), self.main.named(lane), "GPUPH counts in an unknown unit")
        try:
            self.shares(self.main, lane, window)
        except NVMLError_NotReady as error:
            if error.reason == REASON_STALE:
                raise
        with self.lock:
            values = self.main.values(lane)
        return _Figure(sum(map(mul, _awake(channel.states), values)) * tick / _NS, 0.0, None, self.main.named(lane))

    def gpu_utilization(self, window: int) -> _Figure:
        """GPUPH active residency, as powermetrics; the driver's own figure where that cannot be had."""
        try:
            active = self.gpu_active(window)
        except (*_LACKING, NVMLError_NotReady) as error:
            if _is_late(error):
                raise
            engines = self.gpu_engines(window)
            return engines.of(engines.value.device_percent)
        return active.of(int(active.value * 100 + 0.5))

    def _known(self, states: Sequence[str], ratios: Sequence[float], clocks: Sequence[int]) -> None:
        """NotSupported when it was active in states beyond the table: an unknown clock is not 0."""
        if _beyond(states, ratios, clocks):
            raise self.lacking("registry", "it ran in states that the clock table does not hold")

    def gpu_scaled(self, window: int) -> _Figure:
        states, ratios, figure = self.gpu_shares(window)
        clocks = self.gpu_clocks()
        self._known(states, ratios, clocks)
        return figure.of(_scaled(states, ratios, clocks))

    def gpu_residency(self, window: int) -> _Figure:
        states, ratios, figure = self.gpu_shares(window)
        try:
            clocks = self.gpu_clocks()
        except NVMLError_NotSupported:
            clocks = ()
        rows = zip(states, _state_clocks(states, clocks), ratios)
        return figure.of(tuple([StateResidency(state, mhz or None, ratio) for state, mhz, ratio in rows]))

    def _bytes(self, node: str, key: str) -> bytes:
        """A property of a device-tree node, b"" when there is none."""
        entry = self.once("node " + node, lambda: (self.machine.registry.named(node) or [None])[0])
        value = self.machine.registry.get(entry, key) if entry is not None else None
        return value if isinstance(value, bytes) else b""

    def gpu_clocks(self) -> tuple[int, ...]:
        """MHz per P-state. pmgr voltage-states9, else the sgx table, else voltage-states14 (M2 Max on macOS 13.6)."""
        def work() -> tuple[int, ...]:
            count, tables = (_little(self._bytes("sgx", key)) for key in ("perf-state-count", "perf-state-table-count"))
            sgx = _sgx_clocks(self._bytes("sgx", "perf-states"), count, tables or 1)
            first, last = (_gpu_clocks(self._bytes("pmgr", key)) for key in ("voltage-states9", "voltage-states14"))
            for clocks in (first, sgx, last):
                if max(clocks, default=0) > 0:
                    return clocks
            raise self.lacking("registry", "no GPU clock table in pmgr or sgx")
        return tuple(self.once("gpu clocks", work))

    def _mean_clock(self, shares: tuple[tuple[str, ...], list[float], _Figure], clocks: Sequence[int], reason: str,
                    detail: str | None = None) -> _Figure:
        """Mean requested clock while active; the hardware may run lower when it is throttled (macmon 78)."""
        states, ratios, figure = shares
        self._known(states, ratios, clocks)
        mean = _mean_clock(states, ratios, clocks)
        if mean is None:
            raise _fail(ERROR_NO_DATA, reason, figure.source, detail)
        return figure.of(int(mean + 0.5))

    def gpu_clock(self, window: int) -> _Figure:
        clocks = self.gpu_clocks()
        return self._mean_clock(self.gpu_shares(window), clocks, REASON_GPU_ASLEEP)

    gpu_engines = _now_from("registry", _engines)
    gpu_max_clock = _now_from("registry", lambda self: max(self.gpu_clocks()))
    gpu_supported_clocks = _now_from("registry", lambda self: tuple(sorted({mhz for mhz in self.gpu_clocks() if mhz})))
    gpu_flops = _now_from("registry", lambda self: _peak_flops(self._cores(), max(self.gpu_clocks())))
    gpu_recoveries = _now_from("registry", lambda self: self._statistic("recoveryCount"))

    def throttle(self, window: int) -> _Figure:
        """CLTM, PPM and thermal pressure; at least one of them is known."""
        cltm, ppm = self._limit("GPU_CLTM", window), self._limit("GPU_PPM", window)
        pressure = self.or_none(self.thermal_pressure, window)
        if cltm.value is None and ppm.value is None and pressure is None:
            raise self.lacking("ioreport:GPU Stats", "neither CLTM, PPM nor thermal pressure can be read")
        return cltm.of(ThrottleState(cltm.value, ppm.value, pressure))

    def _limit(self, name: str, window: int) -> _Figure:
        """GPU_CLTM or GPU_PPM: share not in NO_CLTM, or the mean of percent states; None where it is not told."""
        try:
            states, ratios, figure = self.shares(self.main, self.main.state_lanes(name)[0], window)
        except (NVMLError_NotSupported, NVMLError_NoPermission, NVMLError_NotReady) as error:
            if _is_late(error):
                raise
            return _Figure(None)
        return figure.of(_limit_figure(name, states, ratios))

    # ---- energy and power

    def rail(self, name: str | int) -> _Rail:
        """The energy channels of a rail of RAILS, decided once, or of the CPU cluster of a number."""
        if isinstance(name, int):
            cluster = self.cluster(name)
            return _Rail(cluster.name, self.main, self.need(
                cluster.energies or None, "ioreport:Energy Model", "no energy channel for %s" % cluster.name))
        rail: _Rail = self.once("rail " + name, lambda: self._find_rail(name))
        return rail

    def _find_rail(self, name: str) -> _Rail:
        for feed in (self.main, self.pmp) if name in RAILS else ():     # no chip has a channel of its own for ProRes
            try:
                feed.open()
            except NVMLError_NotSupported:
                continue
            if feed.rail_lanes(name):
                return _Rail(name, feed, feed.rail_lanes(name))
        self.main.open()        # says why where that is the reason
        raise self.lacking("ioreport:Energy Model", "there is no energy channel for %s" % name)

    def rail_power(self, window: int, name: str | int) -> _Figure:
        """Mean power in mW: the sum of the dies, each over its own publications."""
        rail = self.rail(name)
        rail.feed.refresh(window)
        stands = rail.name == "gpu" and self._stands(rail, window)
        busy = stands and (self.or_none(self.gpu_active, window) or 0.0) >= _BUSY
        with self.lock:
            energies = rail.energies()
            changes = self._all_told(rail, [self._lane_change(rail, e, window, busy) for e in energies])
            mw = sum(change * e.scale[0] / e.scale[1] / span for e, (change, span) in zip(energies, changes)) * _NS
            return _Figure(int(mw + 0.5), max(e.age() for e in energies) / _NS, max(span for _, span in changes) / _NS,
                           rail.feed.named(rail.lanes[0]), any(e.batched and not e.usable for e in energies))

    def rail_energy(self, window: int, name: str | int) -> _Figure:
        """The published count in mJ; never extrapolated, never falling."""
        rail = self.rail(name)
        rail.feed.refresh()
        with self.lock:
            energies = rail.energies()
            dead = [REASON_FROZEN for e in energies if self._is_dead(rail, e)]
            totals = self._all_told(rail, [*[e.total() for e in energies], *dead])
            millijoules = sum(total * e.scale[0] // e.scale[1] for e, (total, _) in zip(energies, totals))
            return _Figure(millijoules, max(e.age() for e in energies) / _NS, None, rail.feed.named(rail.lanes[0]))

    def _stands(self, rail: _Rail, window: int) -> bool:
        with self.lock:
            return any([e.change(window)[0] == 0 for e in rail.energies()])     # a reason begins with a letter

    def _witnesses(self, feed: _ReportFeed) -> list[_Energy]:
        """The channels of this feed's rail that is never zero: CPU, or DRAM in PMP."""
        return [feed.energies[i] for i in feed.rail_lanes("cpu" if feed is self.main else "dram")]

    def _is_dead(self, rail: _Rail, energy: _Energy) -> bool:
        """True for a zero since boot that cannot be: on a rail that is never zero, or with no energy at a witness."""
        return energy.value == 0 and (rail.is_never_zero() or energy.batched and not any(
            e.value for e in self._witnesses(rail.feed)))

    def _lane_change(self, rail: _Rail, energy: _Energy, window: int, busy: bool) -> tuple[int, int] | str:
        """The change of a channel, or why there is none. A zero is one where it can be: not on a rail that is never zero,
        nor in a group whose such rail shows nothing, nor on a `busy` GPU."""
        if self._is_dead(rail, energy):
            return REASON_FROZEN
        change = energy.change(window)
        if isinstance(change, str) or change[0] > 0:
            return change
        if rail.is_never_zero() or busy or energy.batched and not self._group_alive(rail.feed, window):
            return REASON_FIRST if change[1] < _SURE else REASON_FROZEN
        return change

    def _group_alive(self, feed: _ReportFeed, window: int) -> bool:
        changes = [e.change(window) for e in self._witnesses(feed)]
        return bool(changes) and all(not isinstance(c, str) and c[0] > 0 for c in changes)

    def _all_told(self, rail: _Rail, parts: Sequence[tuple[int, int] | str]) -> list[tuple[int, int]]:
        """The parts of a rail, or NotReady with their worst reason: never a partial sum."""
        told = [part for part in parts if not isinstance(part, str)]
        if len(told) == len(parts):
            return told
        reasons, energies = [part for part in parts if isinstance(part, str)], rail.energies()
        reason, age = min(reasons, key=_BADNESS.index), max(e.age() for e in energies) / _NS
        detail = "%s: %s; its last publication is %.1f s old" % (rail.name, _ADVICE[reason], age)
        apart = max((e.points[-1][0] - e.points[-2][0] for e in energies if len(e.points) > 1), default=0) / _NS
        if apart:
            detail += ", the one before came %.1f s earlier" % apart
        raise _not_ready(reason, rail.feed.named(rail.lanes[0]), detail,
                         max(e.began for e in energies), max(e.lapse for e in energies))

    def rail_points(self, name: str) -> list[list[tuple[int, float]]]:
        """(clock, mJ) of the publications kept of each channel, oldest first; [] when one of them tells nothing."""
        energies = self.rail(name).energies()
        with self.lock:
            points = [e.published() for e in energies]
        return points if all(points) else []        # never one die beside another

    def gpu_power(self, window: int) -> _Figure:
        """GPU Energy over the window; FilteredGPUPower, the driver's own average, when that counter is missing or dead."""
        try:
            return self.rail_power(window, "gpu")
        except AppleGPUError as error:
            if error.reason in (REASON_FIRST, REASON_SLEPT, REASON_RESET, REASON_SLOW):
                raise
            _, value = self.kept("FilteredGPUPower", lambda: self.gpu_property("FilteredGPUPower"))
            if not isinstance(value, int) or value < 0:
                raise
            return _Figure(value, 0.0, None, "registry:FilteredGPUPower")

    def _power_cap(self) -> int:
        value = self.gpu_property("MaxGPUAbsolutePower")
        if not isinstance(value, int):
            raise self.lacking("registry", "the accelerator has no MaxGPUAbsolutePower")
        if value < 0:
            raise _fail(ERROR_NO_DATA, REASON_NO_LIMIT, "registry", "no GPU power cap is set")
        return value

    gpu_power_limit = _now_from("registry", _power_cap)

    def ane_power(self, window: int) -> _Figure:
        """ANE rail; 0 beside visible activity is a dead counter (M5 and macOS 27 betas, mactop)."""
        figure = self.rail_power(window, "ane")
        if figure.value == 0 and self._ane_seen(window):
            raise _not_ready(REASON_FROZEN, figure.source or "", "ane: active, but its energy counter does not move",
                             self.machine.clock.now()[0])
        return figure

    def _ane_seen(self, window: int) -> bool:
        """Activity by a way other than power, without opening a subscription for it."""
        ways = [way for way, feed in ((self._ane_floor, self.pmp), (self._ane_iop, self.ane)) if feed.subscription]
        for way in (*ways, self._ane_on):
            use = self.or_none(way, window)
            if use is not None:
                return bool(use.percent > 0)
        return False

    def package_power(self, window: int) -> _Figure:
        """CPU + GPU + ANE, all three or none: the sum of means over different spans."""
        for feed in dict.fromkeys(self.rail(rail).feed for rail in ("cpu", "ane")):
            feed.refresh(window)        # both baselines before one of them is waited for
        parts = [self.rail_power(window, "cpu"), self.gpu_power(window), self.ane_power(window)]
        return _Figure(sum(p.value for p in parts), max(p.age_s or 0.0 for p in parts),
                       max(p.interval_s or 0.0 for p in parts), "ioreport:Energy Model", any(p.estimated for p in parts))

    def system_power(self, window: int) -> _Figure:
        """Whole machine: SMC PSTR as it is."""
        when, watts = self.sensors.number("PSTR")
        self.need(watts, "smc", "there is no SMC key PSTR for whole-machine power")
        return _Figure(int(watts * 1000 + 0.5), self._since(when), None, "smc")

    def _since(self, when: int) -> float:
        return float(self.machine.clock.now()[0] - when) / _NS

    # ---- heat

    def sensors_of(self, window: int, part: str) -> _Figure:
        """Plausible sensors of the GPU's or the CPU's dies: SMC by prefix, else HID services by name."""
        prefixes, names, asleep = _DIE_SENSORS[part]
        if part == "CPU" and _chip_name(self.brand()).startswith("M5"):
            prefixes += ("Ts",)     # the Super cores; on M1 to M4 it is the SSD and the palm rest (metrics.md 3.8)
        refused: AppleGPUError | None = None
        source, keys = "smc", 0
        try:
            when, sensors, keys = self.sensors.temperatures(prefixes)
        except _LACKING as error:
            when, sensors, refused = 0, [], _twin(error)
        if not sensors:
            (when, sensors), source = self._hid_sensors(names), "hid"
        if sensors:
            return _Figure(tuple(sensors), self._since(when), None, source, False)
        if keys:
            raise _fail(ERROR_NO_DATA, asleep, "smc",
                        "none of the %d %s sensors gives a plausible value: its power is gated" % (keys, part))
        raise _twin(refused) if refused else self.lacking("smc", "no %s temperature sensor is known here" % part)

    def _hid_sensors(self, names: tuple[str, ...]) -> tuple[int, list[TemperatureSensor]]:
        try:
            when, got = self.kept("hid", self.machine.hid.temperatures, _SENSOR_AGE)      # some hundred calls
        except _LACKING:
            return 0, []
        return when, [TemperatureSensor(product, celsius) for product, _, celsius in got
                      if celsius is not None and product and product.startswith(names) and _plausible_celsius(celsius)]

    def temperature(self, window: int, part: str) -> _Figure:
        """The mean of the sensors."""
        figure = self.sensors_of(window, part)
        return figure.of(sum(map(itemgetter(1), figure.value)) / len(figure.value))

    def temperature_max(self, window: int, part: str) -> _Figure:
        figure = self.sensors_of(window, part)
        return figure.of(max(map(itemgetter(1), figure.value)))

    def _fan_count(self) -> int:
        """FNum; a fanless Mac has none (A18 Pro, M4 Air: absent, not 0)."""
        return int(self.sensors.number("FNum")[1] or 0)

    def _fan(self, index: int) -> Fan:
        count = self._fan_count()
        if index >= count:
            raise _fail(ERROR_NOT_SUPPORTED if not count else ERROR_INVALID_ARGUMENT, REASON_NO_SUCH_PART, "smc",
                        "this Mac has %s" % ("no fan" if not count else "%d fan(s), numbered from 0" % count))
        rpm, low, high = (self.sensors.number("F%d%s" % (index, key))[1] for key in ("Ac", "Mn", "Mx"))
        self.need(rpm, "smc", "there is no SMC key F%dAc" % index)
        return Fan(int(rpm + 0.5), _rounded(low), _rounded(high), int(100 * rpm / high + 0.5) if high else None)

    thermal_pressure = _now_from(
        "notify", lambda self: self.machine.notify.state("com.apple.system.thermalpressurelevel"))
    fan_count = _now_from("smc", _fan_count)
    fan = _now_from("smc", _fan)
    fan_speed = _now_from(
        "smc", lambda self, index: self.need(self._fan(index).percent, "smc", "fan %d tells no maximum" % index))
    fans = _now_from("smc", lambda self: tuple(map(self._fan, range(self._fan_count()))))

    # ---- memory

    def _wired(self) -> int:
        """The limit in bytes; NoData when it is 0, the default. Until macOS 13 it had another name, and counted bytes."""
        for name, unit in (("iogpu.wired_limit_mb", 1 << 20), ("debug.iogpu.wired_limit", 1)):
            value = self.machine.sysctl.number(name)
            if value is not None:
                if value <= 0:
                    raise _fail(ERROR_NO_DATA, REASON_NO_LIMIT, "sysctl", "%s is 0: the driver's default holds" % name)
                return int(value * unit)
        raise self.lacking("sysctl", "iogpu.wired_limit_mb is not there", REASON_MACOS)

    def _working_set(self) -> int:
        def work() -> Any:
            value = self.metal()["recommendedMaxWorkingSetSize"]
            if not value:
                self.facts.pop("metal", None)       # a device that names none is asked once more when this is
            return self.need(value or None, "metal", "Metal names no recommendedMaxWorkingSetSize")
        return int(self.once("metal limit", work))

    memory_wired = _now_from("sysctl", _wired)
    memory_limit = _now_from("metal", _working_set)

    def memory_total(self, window: int = 0) -> _Figure:
        """What the GPU may use: the wired limit when one is set, else Metal's; never a share of RAM."""
        try:
            return self.memory_wired(window)
        except (NVMLError_NoData, NVMLError_NotSupported):
            return self.memory_limit(window)

    def _total_and_used(self) -> tuple[int, int]:
        return self.memory_total().value, self._statistic("In use system memory")

    def _free(self) -> int:
        total, used = self._total_and_used()
        return max(0, total - used)

    def _percent_used(self) -> int:
        total, used = self._total_and_used()
        return min(100, (100 * used + total // 2) // total)

    def _headroom(self) -> Headroom:
        available, (limit, used) = self._memory().available_bytes, self._total_and_used()
        return Headroom(max(0, min(available, limit - used)), available, limit, used)

    def _memory(self) -> MemoryInfo:
        """The kernel refreshes it at most a few times a second for everybody (xnu host.c)."""
        total = self.sysctl("hw.memsize", lambda name: self.once(name, lambda: self.machine.sysctl.number(name)))
        mach = self.machine.mach
        info: MemoryInfo = self.kept("memory", lambda: _memory_info(mach.vm_statistics(), mach.page_size(), total))[1]
        return info

    def _pressure(self) -> MemoryPressure:
        level = self.machine.sysctl.number("kern.memorystatus_vm_pressure_level")
        available = self.machine.sysctl.number("kern.memorystatus_level")
        if level not in MEMORY_PRESSURE or available is None:
            raise _fail(ERROR_NOT_SUPPORTED, REASON_MACOS, "sysctl", "kern.memorystatus_vm_pressure_level is not there")
        return MemoryPressure(MEMORY_PRESSURE[level], available)

    def _memory_system(self) -> tuple[float, int, str]:
        row: tuple[float, int, str] = self.need(
            _memory_system(self.brand(), self._cores()), "chips", "the memory system of %s is not known" % self.brand())
        return row

    memory_used = _now_from("registry", lambda self: self._statistic("In use system memory"))
    memory_allocated = _now_from("registry", lambda self: self._statistic("Alloc system memory"))
    memory_free = _now_from("registry", _free)
    memory_utilization = _now_from("registry", _percent_used)
    memory_headroom = _now_from("registry", _headroom)
    memory_info = _now_from("mach", _memory)
    memory_pressure = _now_from("sysctl", _pressure)
    swap = _now_from("sysctl", lambda self: self.sysctl(
        "vm.swapusage", lambda name: _swap_info(self.machine.sysctl.raw(name) or b"")))
    memory_max_bandwidth = _now_from("chips", lambda self: self._memory_system()[0] * 1e9)
    memory_bus_width = _now_from("chips", lambda self: self._memory_system()[1])
    memory_type = _now_from("chips", lambda self: self._memory_system()[2])

    # ---- bandwidth

    def traffic(self, window: int, direction: str, agent: str | None = None) -> _Figure:
        """Bytes per second in a direction, of all or of an agent: AMC Stats' byte counters, else what PMP tells."""
        stems = _AGENT_STEMS[agent] if agent else ()
        refused = self.refusal("amc")
        if refused is None:
            try:
                self.once("amc", self._amc_answers)
            except NVMLError_NotSupported as error:
                refused = _twin(error)
        if refused is None:
            return self._amc_traffic(window, direction, stems)
        return self._pmp_traffic(window, direction, stems, refused)

    def _amc_traffic(self, window: int, direction: str, stems: Sequence[str]) -> _Figure:
        try:
            return self._counted(self.amc, window, self._byte_lanes(direction, stems), not stems)
        except NVMLError_NotReady as error:
            if error.reason == REASON_ABSENT and self.amc.silent():
                self.facts.pop("amc", None)         # PMP may answer the next time
            raise

    def _amc_answers(self) -> bool:
        self.amc.refresh()
        if self.amc.silent():
            raise self.lacking(self.amc.source, "its counters hold no values", REASON_MACOS)
        return True

    def _counted(self, feed: _ReportFeed, window: int, lanes: Sequence[int], whole: bool) -> _Figure:
        """Bytes per second of byte counters; a whole that stands is a dead counter."""
        feed.refresh(window)
        with self.lock:
            span = feed.rated(window)[2]
            moved = sum([feed.counted(i, window) * _BYTE_UNITS[feed.channels[i].unit] for i in lanes])
            if not moved and whole and span >= _SURE:
                raise feed.missing(REASON_FROZEN, "DRAM traffic")
        return _Figure(Bandwidth(moved * _NS / span, False, False), 0.0, span / _NS, feed.named(lanes[0]), False)

    def traffic_total(self, window: int, direction: str) -> _Figure:
        """Bytes in a direction since the driver began to count, where AMC Stats counts bytes; a flat total is not told."""
        if "amc" in self.facts:         # else nobody has asked yet whether PMP stands in for it
            self.once("amc", self._amc_answers)
        self.amc.open()
        lanes = self._byte_lanes(direction, ())
        try:
            self._counted(self.amc, window, lanes, True)
        except NVMLError_NotReady as error:
            if error.reason == REASON_FROZEN:
                raise
        with self.lock:
            total = sum(self.amc.values(i)[0] * _BYTE_UNITS[self.amc.channels[i].unit] for i in lanes)
        return _Figure(total, 0.0, None, self.amc.named(lanes[0]))

    def _byte_lanes(self, direction: str, stems: Sequence[str]) -> list[int]:
        """AMC Stats' counters of a total (stems empty) or of an agent: on the DRAM side, else on the fabric side."""
        def work() -> list[int]:
            mine = [(dram, i) for unit, dram, i in self.amc.flows(direction)
                    if (_agent_matches(unit, stems) if stems else not unit)]
            return [i for dram, i in mine if dram] or [i for _, i in mine]
        lanes: list[int] = self.amc.planned((direction, *stems), work)
        if not lanes:
            raise self.lacking(self.amc.source, "no byte counter for this")
        return lanes

    def _pmp_traffic(self, window: int, direction: str, stems: Sequence[str], refused: AppleGPUError) -> _Figure:
        """From PMP: byte counters of the whole, else residency histograms. `refused` is why AMC Stats is not in use."""
        try:
            self.pmp.open()
        except NVMLError_NotSupported:
            raise _twin(refused) from None
        simple, whole, agents = self.pmp.planned((direction, *stems), lambda: self._pmp_lanes(direction, stems))
        if simple:
            return self._counted(self.pmp, window, simple, True)
        if whole or agents:
            return self._histograms(window, whole, agents)
        listed = any(_traffic(c.name) and not _agent_matches(c.name.split(" ")[0], ("AMCC",)) for c in self.pmp.channels)
        raise self.lacking("ioreport:AMC Stats", "AMC Stats gives no byte counters here, and PMP has no histogram for this",
                           REASON_MACOS if refused.reason == REASON_MACOS and not listed else REASON_CHIP)

    def _pmp_lanes(self, direction: str, stems: Sequence[str]) -> tuple[list[int], list[int], list[int]]:
        """(byte counters of the whole, histograms of the whole controller, of the agents), the DRAM side if it is there."""
        simple = [i for i, c in enumerate(self.pmp.channels) if c.subgroup in ("DRAM BW", "DRAM Bandwidth")
                  and not stems and c.unit in _BYTE_UNITS and c.name.endswith(" " + direction)]
        for subgroup in ("DCS BW", "AF BW"):
            named = [(unit, i) for unit, _, i in self.pmp.flows(direction)
                     if self.pmp.channels[i].subgroup == subgroup and self.pmp.channels[i].states]
            whole = [i for unit, i in named if _agent_matches(unit, ("AMCC",))]
            agents = [i for unit, i in named if i not in whole and (not stems or _agent_matches(unit, stems))]
            if agents or (whole and not stems):
                return simple, ([] if stems else whole), agents
        return simple, [], []

    def _histograms(self, window: int, whole: Sequence[int], agents: Sequence[int]) -> _Figure:
        """AMCC when above its lowest bucket, else the sum of the agents."""
        self.pmp.refresh(window)
        with self.lock:
            lanes, read = whole, [self.pmp.histogram(i, window) for i in whole]
            if agents and not any(one[2] for one in read):
                try:
                    lanes, read = agents, [self.pmp.histogram(i, window) for i in agents]
                except NVMLError_NotReady:      # an agent is silent: the controller's lowest bucket is what is known
                    if not whole:
                        raise
        value = Bandwidth(sum(one[0] for one in read), True, any(one[1] for one in read))
        return _Figure(value, 0.0, max(one[3] for one in read) / _NS, self.pmp.named(lanes[0]), True)

    def both_ways(self, window: int, agent: str) -> _Figure:
        read, write = self.traffic(window, "RD", agent), self.traffic(window, "WR", agent)
        a, b = read.value, write.value
        return read.of(Bandwidth(a.bytes_per_s + b.bytes_per_s, a.estimated or b.estimated, a.saturated or b.saturated))

    # ---- Neural Engine and video engines

    def ane_utilization(self, window: int) -> _Figure:
        """The first way that this Mac offers: fabric floor, controller state, power state, power of an assumed 8 W."""
        for way in (self._ane_floor, self._ane_iop, self._ane_on, self._ane_watts):
            try:
                return way(window)
            except (NVMLError_NotSupported, NVMLError_NoPermission, NVMLError_NotReady) as error:
                if _is_late(error) or error.value == ERROR_NOT_READY and way == self._ane_watts:
                    raise
        raise self.lacking("ioreport", "nothing tells of the ANE's activity")

    def _ane_share(self, feed: _ReportFeed, channel: str, idle: Callable[[str], bool], method: str, window: int) -> _Figure:
        """Share of time outside idle states, of the busiest die."""
        read = [self.shares(feed, i, window) for i in feed.state_lanes(channel)]
        active = max(sum(r for s, r in zip(states, ratios) if not idle(s.strip())) for states, ratios, _ in read)
        return read[0][2].of(AneUtilization(min(100, int(100 * active + 0.5)), method), True)

    def _ane_floor(self, window: int) -> _Figure:
        return self._ane_share(self.pmp, "ANE-AF-BW", "VMIN".__eq__, ANE_METHOD_FLOOR, window)

    def _ane_iop(self, window: int) -> _Figure:
        return self._ane_share(self.ane, "status", "Running".__ne__, ANE_METHOD_IOP, window)

    def _ane_on(self, window: int) -> _Figure:
        percent = 100 if self._ane_power_state().power_state > 0 else 0
        return _Figure(AneUtilization(percent, ANE_METHOD_POWER_STATE), None, None, "registry", True)

    def _ane_watts(self, window: int) -> _Figure:
        power = self.rail_power(window, "ane")
        percent = int(power.value / 10 / (_ANE_WATTS * self.dies().value) + 0.5)
        return power.of(AneUtilization(min(100, percent), ANE_METHOD_POWER), True)

    def _ane_power_state(self) -> AneState:
        """IOPowerManagement of the H11ANE drivers (two on an Ultra)."""
        def work() -> list[Any] | None:
            return [e for name in ("H11ANEIn", "H11ANE") for e in self.machine.registry.services(name)] or None
        drivers = self.need(self.once("ane drivers", work), "registry", "there is no H11ANE driver")
        states = [self.machine.registry.get(e, "IOPowerManagement") for e in drivers]
        known = [s for s in states if isinstance(s, dict) and isinstance(s.get("CurrentPowerState"), int)]
        if not known:
            raise self.lacking("registry", "the ANE driver tells no power state")
        top = max(known, key=lambda s: s["CurrentPowerState"])
        return AneState(top["CurrentPowerState"], top.get("MaxPowerState", 1), len(known))

    ane_state = _now_from("registry", _ane_power_state)
    ane_cores = _now_from("chips", lambda self: self.need(
        None if self.is_virtual() else _ane_cores(self.brand()), "chips", "the ANE of %s is not known" % self.brand()))

    def engine_utilization(self, window: int, engine: str) -> _Figure:
        """Share of time above the lowest bucket, or traffic of an assumed full 7 GB/s: tells idle from busy, no more."""
        figure = self.both_ways(window, engine)
        if figure.value.estimated:
            busy, method = self._above_floor(window, _AGENT_STEMS[engine]), "histogram"
        else:
            busy, method = figure.value.bytes_per_s / _VPU_FULL, "bandwidth"
        return figure.of(VpuUtilization(min(100, int(busy * 100 + 0.5)), method), True)

    def _above_floor(self, window: int, stems: Sequence[str]) -> float:
        """The larger share of time that reads or writes of an agent stood above their lowest bucket."""
        lanes = [lane for way in ("RD", "WR") for lane in self._pmp_lanes(way, stems)[2]]
        with self.lock:
            return max(1.0 - _floor_share(self.pmp.buckets(i), self.pmp.ratios(i, window)[0]) for i in lanes)

    # ---- CPU

    def clusters(self) -> tuple[_Cluster, ...]:
        """The CPU clusters in the order of CPU Complex Performance States."""
        try:
            self.main.open()
        except NVMLError_NotSupported:
            return tuple(self.once("levels", self._clusters_by_level))
        return tuple(self.once("clusters", self._find_clusters, whole=lambda found: all(c.clocks and c.cpus for c in found)))

    def _find_clusters(self) -> tuple[_Cluster, ...]:
        named = [(_cluster_state(c.name), i) for i, c in enumerate(self.main.channels) if c.group == "CPU Stats"]
        lanes = [i for who, i in named if who is not None]
        who = [found for found, _ in named if found is not None]
        if not who:
            raise self.lacking("ioreport:CPU Stats", "no cluster channels")
        kinds, energies = self._kinds([letter for _, letter, _ in who]), self._cluster_energies()
        return tuple(
            _Cluster(self.main.channels[lane].name, kinds[one[1]][0], lane, clocks, energies.get(_numbered(one), ()),
                     len(cpus) or kinds[one[1]][1], cpus)
            for one, lane, clocks, cpus in zip(who, lanes, self._cpu_tables(who), self._cpus_by_cluster(who)))

    def _clusters_by_level(self) -> tuple[_Cluster, ...]:
        """Where there is no CPU Stats (a guest): one for each performance level, without clock, residency or energy."""
        levels = self._levels()
        if not levels:
            raise self.lacking("ioreport:CPU Stats", "no cluster channels")
        every = tuple(range(self._cpus())) if len(levels) == 1 else ()
        return tuple(_Cluster(name, name, -1, (), (), count, every) for name, count in levels)

    def _cpus(self) -> int:
        return len(self.machine.mach.cpu_ticks()) // 16

    def _levels(self) -> list[tuple[str, int]]:
        """(name, physical CPUs) per performance level, fastest first; [] on macOS 11."""
        number, text = self.machine.sysctl.number, self.machine.sysctl.text
        levels = [(text("hw.perflevel%d.name" % n) or "", number("hw.perflevel%d.physicalcpu" % n) or 0)
                  for n in range(number("hw.nperflevels") or 0)]
        return levels if all(count for _, count in levels) else []

    def _kinds(self, letters: Sequence[str]) -> dict[str, tuple[str, int | None]]:
        """(core type, cores where clusters share those of their level evenly) of each letter of the clusters."""
        fastest, levels = sorted(set(letters), key=_SPEED.index), self._levels()
        if len(levels) != len(fastest):
            levels = [("", 0)] * len(fastest)
        types = dict(_CORE_TYPES, P="Super") if "M" in fastest else _CORE_TYPES
        named, kinds = all(name for name, _ in levels), {}      # no names on macOS 11 and under Rosetta
        for letter, (name, count) in zip(fastest, levels):
            each, rest = divmod(count, letters.count(letter))
            kinds[letter] = name if named else types[letter], each if each and not rest else None
        return kinds

    def _cpus_by_cluster(self, who: Sequence[tuple[str, str, str]]) -> list[tuple[int, ...]]:
        """CPU indices per cluster from the cpuN nodes of the device tree, clusters of one letter in the order of their
        ids; () for each when the nodes do not fit the channels."""
        registry = self.machine.registry
        groups: dict[tuple[str, int], list[int]] = {}
        for n in range(self._cpus()):
            for entry in registry.named("cpu%d" % n)[:1]:
                cpu, kind = registry.get(entry, "logical-cpu-id"), registry.get(entry, "cluster-type")
                cluster = registry.get(entry, "logical-cluster-id")
                if isinstance(cpu, int) and isinstance(kind, bytes) and kind[:1] and isinstance(cluster, int):
                    groups.setdefault((kind[:1].decode("latin-1"), cluster), []).append(cpu)
        letters = [letter for _, letter, _ in who]
        cpus: dict[str, list[tuple[int, ...]]] = {letter: [] for letter in letters}
        for kind, cluster in sorted(groups):
            cpus.setdefault(kind, []).append(tuple(sorted(groups[kind, cluster])))
        if any(len(cpus[letter]) != letters.count(letter) for letter in letters):
            return [()] * len(who)
        return [cpus[letter].pop(0) for letter in letters]

    def _cpu_tables(self, who: Sequence[tuple[str, str, str]]) -> list[tuple[int, ...]]:
        """Clocks per cluster: by acc-clusters where there is one (M5), else 1 for E, 5 and then 13 for P."""
        acc = _acc_clusters(self._bytes("pmgr", "acc-clusters"))
        numbers: list[int | None] = [None] * len(who)
        if acc and len(who) % len(acc) == 0:        # in the order of cluster ids, slow ones first as the CPUs are numbered
            order = sorted(range(len(who)), key=lambda n: (who[n][0], -_SPEED.index(who[n][1]), int(who[n][2] or 0)))
            for place, n in enumerate(order):
                numbers[n] = acc[place % len(acc)]
        else:
            for n, (_, letter, index) in enumerate(who):
                second = letter == "P" and index not in ("", "0") and self._bytes("pmgr", "voltage-states13-sram")
                numbers[n] = {"E": 1, "P": 13 if second else 5}.get(letter)
        keys = ["voltage-states%s" % number for number in numbers]      # no node has a voltage-statesNone
        return [_cpu_clocks(self._bytes("pmgr", key + "-sram"), self._bytes("pmgr", key)) for key in keys]

    def _cluster_energies(self) -> dict[tuple[str, str, str], tuple[int, ...]]:
        """Lanes per (die, letter, index). M1 names its cores ECPU0...: where a plain ECPU exists, numbered ones are cores."""
        named = [(_cluster_energy(c.name), i) for i, c in enumerate(self.main.channels)
                 if c.group == "Energy Model" and i in self.main.energies]
        found = [(who, i) for who, i in named if who is not None]
        plain = {(die, letter) for (die, letter, index), _ in found if not index}
        totals: dict[tuple[str, str, str], tuple[int, ...]] = {}
        for (die, letter, index), i in found:
            if "ACC" in self.main.channels[i].name or not index or (die, letter) not in plain:
                key = _numbered((die, letter, index))
                totals[key] = totals.get(key, ()) + (i,)
        return totals

    def cluster(self, number: int) -> _Cluster:
        found = self.clusters()
        if not 0 <= number < len(found):
            raise _bad("cluster %d: this Mac has %d, numbered from 0" % (number, len(found)))
        return found[number]

    def _core_count(self, number: int | None) -> int:
        if number is None:
            return int(self.sysctl("hw.physicalcpu", self.machine.sysctl.number))
        return int(self.need(self.cluster(number).cores, "registry", "neither cpu nodes nor levels tell its cores"))

    def _top_clock(self, number: int | None) -> int:
        clusters = self.clusters() if number is None else (self.cluster(number),)
        top = max((mhz for cluster in clusters for mhz in cluster.clocks), default=0)
        return int(self.need(top or None, "registry", "no clock table for this cluster"))

    cluster_count = _now_from("ioreport:CPU Stats", lambda self: len(self.clusters()))
    cluster_name = _now_from("ioreport:CPU Stats", lambda self, number: self.need(
        self.cluster(number).name or None, "sysctl", "hw.perflevel%d.name is not there" % number))
    cpu_cores = _now_from("registry", _core_count)
    cpu_max_clock = _now_from("registry", _top_clock)

    def cpu_shares(self, cluster: _Cluster, window: int) -> tuple[tuple[str, ...], list[float], _Figure]:
        self.main.open()        # says why where that is the reason
        self.need(None if cluster.lane < 0 else cluster, "ioreport:CPU Stats", "no residencies for %s" % cluster.name)
        return self.shares(self.main, cluster.lane, window)

    def cpu_clock(self, window: int, number: int | None) -> _Figure:
        """Mean requested clock while active; without a cluster the fastest cluster that was awake."""
        if number is None:
            return self._fastest_clock(window)
        cluster = self.cluster(number)
        shares = self.cpu_shares(cluster, window)
        clocks = self.need(cluster.clocks or None, "registry", "no clock table for %s" % cluster.name)
        return self._mean_clock(shares, clocks, REASON_CPU_ASLEEP, "%s was idle for the whole interval" % cluster.name)

    def _fastest_clock(self, window: int) -> _Figure:
        figures = []
        for n in range(len(self.clusters())):
            try:
                figures.append(self.cpu_clock(window, n))
            except NVMLError_NoData:
                continue
        if not figures:
            raise _fail(ERROR_NO_DATA, REASON_CPU_ASLEEP, "ioreport:CPU Stats")
        return max(figures, key=lambda f: f.value)

    def cpu_active(self, window: int, number: int) -> _Figure:
        states, ratios, figure = self.cpu_shares(self.cluster(number), window)
        return figure.of(_active(states, ratios))

    def cpu_utilization(self, window: int, number: int | None) -> _Figure:
        """Scheduler ticks that were not idle, in percent of the cluster's, or of all CPUs."""
        cpus = self.cluster(number).cpus if number is not None else None
        if cpus == ():
            raise self.lacking("registry", "the device tree does not tell which CPUs belong to this cluster")
        self.ticks.refresh(window)
        with self.lock:
            old, new, span = self.ticks.rated(window)
        busy = _busy_percent(old, new, cpus)
        if busy is None:
            raise self.ticks.missing(REASON_RESET)
        return _Figure(busy, 0.0, span / _NS, "mach", False)

    def cpu_clusters(self, window: int) -> _Figure:
        """Every cluster with what is known of it."""
        return _Figure(tuple(self._cluster_row(window, n, c) for n, c in enumerate(self.clusters())),
                       source="ioreport:CPU Stats")

    def _cluster_row(self, window: int, number: int, cluster: _Cluster) -> CpuCluster:
        figures: dict[str, Any] = {}
        reasons: dict[str, str] = {}
        for field, figure in (
                ("cores", self.cpu_cores), ("clock_mhz", self.cpu_clock), ("max_clock_mhz", self.cpu_max_clock),
                ("active_ratio", self.cpu_active), ("utilization_percent", self.cpu_utilization),
                ("power_mw", self.rail_power)):
            figures[field] = None
            try:
                figures[field] = figure(window, number).value
            except AppleGPUError as error:
                reasons[field] = error.reason or REASON_SOURCE_FAILED
        return CpuCluster(cluster.name, cluster.core_type, **figures, reasons=reasons)

    # ---- processes

    def processes(self, window: int) -> _Figure:
        """Processes with GPU clients, busiest first; percentages once there is a baseline."""
        self.clients.refresh(window)
        with self.lock:
            newest, got = self.clients.newest(), self.clients.interval(window)
        shares = _client_shares(*got) if got else {}
        mine, rows = self.machine.libproc.own_pid(), []
        for pid, (name, ns) in _client_totals(newest).items():
            memory, share = self.or_none(self.process_footprint, 0, pid), shares.get(pid, 0.0) if got else None
            rows.append(GpuProcess(pid, name, ns, share, memory and memory.now_bytes, pid == mine))
        rows.sort(key=lambda p: (-(p.gpu_percent or 0.0), -p.gpu_time_ns, p.pid))
        return _Figure(tuple(rows), 0.0, got[2] / _NS if got else None, "registry")

    def processes_rated(self, window: int) -> _Figure:
        """The same, or NotReady while there is no baseline for the percentages."""
        figure = self.processes(window)
        if figure.interval_s is None:
            raise self.clients.missing(self.clients.reason)
        return figure

    def process_gpu_time(self, window: int, pid: int) -> _Figure:
        self.clients.refresh()
        with self.lock:
            totals = _client_totals(self.clients.newest())
        if pid not in totals:
            self._short_info(pid)
            raise _fail(ERROR_NO_DATA, REASON_ABSENT, "registry", "process %d does not use the GPU" % pid)
        return _Figure(totals[pid][1], source="registry")

    def process_utilization(self, window: int, pid: int) -> _Figure:
        self.process_gpu_time(window, pid)
        self.clients.refresh(window)
        with self.lock:
            old, new, span = self.clients.rated(window)
        return _Figure(_client_shares(old, new, span).get(pid, 0.0), 0.0, span / _NS, "registry")

    def _short_info(self, pid: int) -> bytes:
        """NotFound when there is no such process."""
        short = self.machine.libproc.short_info(pid)
        if short is None:
            raise _fail(ERROR_NOT_FOUND, REASON_ABSENT, "libproc", "there is no process %d" % pid)
        return bytes(short)

    def _process_seconds(self, pid: int) -> float:
        """User + system seconds from proc_taskinfo: ticks of the hardware's clock, also under Rosetta (htop 765, psutil 2728)."""
        user, system = struct.unpack_from("<2Q", self.machine.libproc.task_info(pid), 16)
        return float((user + system) / self.machine.clock.ticks_per_second())

    def _process_energy(self, pid: int) -> int:
        rusage = self.machine.libproc.rusage(pid)
        if len(rusage) < _RUSAGE_V6:
            raise _fail(ERROR_NOT_SUPPORTED, REASON_MACOS, "libproc", "rusage_info_v6 comes with macOS 13")
        return int(struct.unpack_from("<Q", rusage, 336)[0] // 1000000)

    process_cpu_time = _now_from("libproc", _process_seconds)
    process_energy = _now_from("libproc", _process_energy)
    process_footprint = _now_from("libproc", lambda self, pid: _footprint(self.machine.libproc.rusage(pid)))
    process_info = _now_from("libproc", lambda self, pid: _process_info(
        pid, self._short_info(pid), self.machine.libproc.path(pid)))

    # ---- system

    def power_source(self, window: int) -> _Figure:
        source = self.need(self.machine.power.providing(), "power", "IOPowerSources names no source")
        batteries = self.machine.registry.services("AppleSmartBattery")
        if not batteries:
            return _Figure(PowerSource(source, None, None, None, None, None), source="power")
        get = self.machine.registry.get
        return _Figure(_power_source(source, {key: get(batteries[0], key) for key in _BATTERY_KEYS}), source="registry")


def _numbered(who: tuple[str, str, str]) -> tuple[str, str, str]:
    """PCPU and PACC0_CPU are the same cluster: no number is 0."""
    return who[0], who[1], who[2] or "0"


def _seconds_ns(value: float | None, what: str, least: float, most: float) -> int:
    """A span of time of an argument in ns."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        raise _bad("%s must be %s to %s seconds, not %r" % (what, least, most, value))
    return int(value * _NS)


def _window_ns(window: float | None) -> int:
    return _seconds_ns(window, "window", 0.05, 3600)


def _timeout_ns(timeout: float | None) -> int:
    return _seconds_ns(timeout, "timeout", 0, 86400)


def _rounded(value: float | None) -> int | None:
    return int(value + 0.5) if value is not None else None


# ======================================================================================================================
# API
# ======================================================================================================================

# ---- the engine behind the functions

class _Library:
    """The default engine and how often it was initialised. Handles outlive LibraryShutDown: only permission ends."""

    def __init__(self) -> None:
        self.lock = RLock()
        self.count = 0
        self.engine: _Engine | None = None
        self.opened: tuple[Any, ...] | None = None      # what the engine was made from
        self.engines: WeakSet[_Engine] = WeakSet()
        self.hooked = False
        self.live: _LiveMachine | None = None
        self.last = _local()                            # .figure of this thread, for Try


_library = _Library()


def _after_fork() -> None:
    _library.lock = RLock()
    for engine in list(_library.engines):
        engine.forked()


def _machine(recording: str | None, speed: float, loop: bool) -> Any:
    if recording is not None:
        return _RecordedMachine(recording, speed=speed, loop=loop)
    if sys.platform != "darwin":
        raise _fail(ERROR_LIBRARY_NOT_FOUND, None, None, "this is not macOS on Apple silicon; to replay a Mac: "
                    "recording=FILE, --recording FILE or PYAPPLEGPU_RECORDING")
    if _library.live is None:       # one for every engine: a Mac has one set of subscriptions, one HID client
        _library.live = _LiveMachine()
    return _library.live


def _new_engine(recording: str | None, window: float, timeout: float, speed: float, loop: bool) -> _Engine:
    """An engine on a machine that has a GPU of ours, else LibraryNotFound."""
    _window_ns(window), _timeout_ns(timeout), _replay_speed(speed)
    engine = _Engine(_machine(recording, speed, loop), window, timeout)
    if not engine.accelerators():
        raise _fail(ERROR_LIBRARY_NOT_FOUND, None, "registry", "there is no Apple GPU here (no IOAccelerator service of AGX)")
    _library.engines.add(engine)
    if not _library.hooked and hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_after_fork)
        _library.hooked = True
    return engine


def _recording_path(recording: Any) -> str | None:
    if recording is None:
        recording = os.environ.get("PYAPPLEGPU_RECORDING") or None
    return None if recording is None else _path_text(recording)


def LibraryInit(recording: str | os.PathLike[str] | None = None, *, window: float = _WINDOW / _NS,
                timeout: float = _TIMEOUT / _NS, speed: float = 1.0, loop: bool = True) -> None:
    """Make the functions of this module usable; call LibraryShutDown as often as this. Samples nothing.

    recording: a file of `--record` to replay instead of this Mac (default: the environment's PYAPPLEGPU_RECORDING).
    window: seconds over which rates are measured, 0.05 to 3600. timeout: seconds a rate waits for its second sample.
    speed, loop: of the replay; speed 0 moves one recorded sample per rate call. A nested call for another recording or
    replay is InvalidArgument; window and timeout stay those of the first. Raises LibraryNotFound without an Apple GPU and without a recording.
    """
    path = _recording_path(recording)
    opened = (path, speed, loop)
    _window_ns(window), _timeout_ns(timeout)
    with _library.lock:
        if _library.count and _library.opened != opened:
            raise _bad("the library is initialised with %s; LibraryShutDown first, or use LibraryOpen" % (
                _library.opened and (_library.opened[0] or "this Mac"),))
        if _library.engine is None or _library.opened != opened:
            _library.engine = _new_engine(path, window, timeout, speed, loop)
            _library.opened = opened
        if not _library.count:      # a nested call (a library that came along) leaves the first one's times
            _library.engine.set_times(window, timeout)
        _library.count += 1


def LibraryShutDown() -> None:
    """Undo one LibraryInit. Raises Uninitialized when there was none."""
    with _library.lock:
        if not _library.count:
            raise _fail(ERROR_UNINITIALIZED, detail="call LibraryInit first")
        _library.count -= 1


class Device:
    """A GPU. Made by LibraryInitDeviceByIndex, LibraryInitDeviceByUuid or LibraryOpen; equal and hashable by its UUID."""

    __slots__ = ("_engine", "_index", "_private", "_id", "__weakref__")

    def __init__(self, engine: _Engine, index: int, private: bool) -> None:
        self._engine: _Engine | None = engine
        self._index = index
        self._private = private
        try:
            self._id = engine.uuid().value
        except AppleGPUError:       # unreadable (sandbox): one machine has one GPU, so its name and number will do
            self._id = "%s %d" % (engine.machine.name, index)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device) and self._id == other._id

    def __hash__(self) -> int:
        return hash(self._id)

    def __repr__(self) -> str:
        return "<Device %d %s>" % (self._index, self._id)


def _default() -> _Engine:
    if not _library.count or _library.engine is None:
        raise _fail(ERROR_UNINITIALIZED, detail="call LibraryInit first")
    return _library.engine


def _of(device: Device) -> _Engine:
    """The engine of a device, while it may be used."""
    if not isinstance(device, Device):
        raise _bad("expected a Device (from LibraryInitDeviceByIndex), not %r" % (device,))
    if device._private:
        if device._engine is None:
            raise _fail(ERROR_UNINITIALIZED, detail="this device was closed with LibraryClose")
        return device._engine
    engine = _default()
    if engine is not device._engine and engine.uuid().value != device._id:
        raise _fail(ERROR_NOT_FOUND, detail="this device belongs to another machine than the one initialised now")
    return engine


def _read(engine: _Engine, figure: Callable[..., _Figure], *args: Any, window: float | None = None,
          timeout: float | None = 0.0) -> Any:
    """The value of a figure, waiting for it where it is a rate (timeout=None: as given to LibraryInit)."""
    span = engine.window if window is None else _window_ns(window)
    wait = engine.timeout if timeout is None else _timeout_ns(timeout)
    got = engine.settle(lambda w: figure(engine, w, *args), span, wait)
    _library.last.figure = got
    return got.value


def _rate(device: Device, figure: Callable[..., _Figure], window: float | None, timeout: float | None, *args: Any) -> Any:
    engine = _of(device)
    engine.machine.clock.step()
    return _read(engine, figure, *args, window=window, timeout=timeout)


def _now(device: Device, figure: Callable[..., _Figure], *args: Any) -> Any:
    return _read(_of(device), figure, *args)


def _choice(value: Any, allowed: Sequence[str], what: str) -> str:
    if value not in allowed:
        raise _bad("%s must be one of %s, not %r" % (what, ", ".join(allowed), value))
    return str(value)


def _from_zero(value: Any, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 31:
        raise _bad("%s must be a whole number from 0, not %r" % (what, value))
    return value


# ---- Library

def LibraryOpen(recording: str | os.PathLike[str] | None = None, *, window: float = _WINDOW / _NS,
                timeout: float = _TIMEOUT / _NS, speed: float = 1.0, loop: bool = True) -> Device:
    """A device with an engine of its own, apart from LibraryInit: several recordings can be read side by side.

    Arguments and errors as LibraryInit. Close it with LibraryClose.
    """
    return Device(_new_engine(_recording_path(recording), window, timeout, speed, loop), 0, True)


def LibraryClose(device: Device) -> None:
    """End a device of LibraryOpen: later calls with it raise Uninitialized. Raises InvalidArgument for other devices."""
    if not isinstance(device, Device) or not device._private:
        raise _bad("LibraryClose takes a device of LibraryOpen, not %r" % (device,))
    device._engine = None


def LibraryGetSource() -> str:
    """"live", or the path of the recording that is replayed."""
    return str(_default().machine.name)


def LibraryGetVersion() -> str:
    """The version of this file."""
    return __version__


def ErrorString(code: int) -> str:
    """The text of an error code; never raises for an unknown one."""
    return AppleGPUError._errcode_to_string.get(code, "NVML Error with code %s" % (code,))


def LibraryCountDevice() -> int:
    """Number of Apple GPUs: 1 on every Mac so far, the dies of an Ultra are one. From the IOAccelerator services."""
    return len(_default().accelerators())


def LibraryInitDeviceByIndex(index: int) -> Device:
    """The device of an index from 0. Raises InvalidArgument when there is none."""
    engine, count = _default(), LibraryCountDevice()
    if _from_zero(index, "index") >= count:
        raise _bad("index %d: there are %d device(s)" % (index, count))
    return Device(engine, index, False)


def LibraryInitDeviceByUuid(uuid: str | bytes) -> Device:
    """The device of a UUID as DeviceGetUUID gives it. Raises NotFound."""
    wanted = uuid.decode("ascii", "replace") if isinstance(uuid, bytes) else uuid
    if not isinstance(wanted, str):
        raise _bad("uuid must be a string, not %r" % (uuid,))
    device = LibraryInitDeviceByIndex(0)
    if _of(device).uuid().value.lower() != wanted.lower():
        raise _fail(ERROR_NOT_FOUND, detail="no device has the UUID %s" % wanted)
    return device


def LibraryDiagnose() -> tuple[SourceReport, ...]:
    """Each source of this machine: whether it answers, why not, and how long it took. Subscribes to every group."""
    engine = _default()
    return tuple(_diagnose(engine, name, work) for name, work in _diagnosed(engine))


def _diagnosed(engine: _Engine) -> list[tuple[str, Callable[[], str]]]:
    machine = engine.machine

    def feed(one: _ReportFeed) -> Callable[[], str]:
        def work() -> str:
            one.open()
            note = getattr(one.subscription, "note", "")
            return "%d channels" % len(one.channels) + (", " + note if note else "")
        return work

    def smc() -> str:
        keys = len(engine.sensors.keys("Tg"))
        walked = "" if not engine.sensors.walked else "; the key table is not sorted, all keys were walked"
        return "%d keys, %d of the GPU's temperature%s" % (machine.smc.count(), keys, walked)
    return [
        ("registry", lambda: machine.registry.class_name(engine.accelerator()))] + [
        (f.source, feed(f)) for f in engine.feeds()] + [
        ("smc", smc),
        ("hid", lambda: "%d services" % len(machine.hid.temperatures())),
        ("sysctl", lambda: engine.brand()),
        ("mach", lambda: "%d CPUs, pages of %d bytes" % (len(machine.mach.cpu_ticks()) // 16, machine.mach.page_size())),
        ("libproc", lambda: "%d processes" % len(machine.libproc.pids())),
        ("notify", lambda: THERMAL_PRESSURE[min(4, engine.thermal_pressure(0).value)]),
        ("power", lambda: machine.power.providing() or "no source"),
        ("metal", lambda: "%s, %s" % (engine.metal()["name"], engine.metal_family(0).value)),
    ]


def _diagnose(engine: _Engine, name: str, work: Callable[[], str]) -> SourceReport:
    began = time.perf_counter()
    try:
        ok, reason, detail = True, None, work()
    except AppleGPUError as error:
        ok, reason, detail = False, error.reason, str(error)
    return SourceReport(name, ok, reason, detail, time.perf_counter() - began)


def LibraryRecord(path: str | os.PathLike[str], seconds: float = 3.0, interval: float = 0.25, names: bool = False) -> None:
    """Write what this Mac answers for some seconds to a file that LibraryInit(recording=...) replays anywhere.

    It holds no serial number and no UUID; names of processes that are not Apple's only with names=True. Takes `seconds`,
    above 0 to 3600; a sample each `interval` seconds, 0.05 to 60.
    """
    _write_recording(_default().machine, path, seconds, interval, bool(names))


def Try(function: Callable[..., Any], *args: Any, **named: Any) -> Reading:
    """Call a function of this module; a missing figure becomes its reason. Wrong arguments still raise."""
    _library.last.figure = None
    try:
        value = function(*args, **named)
    except (NVMLError_InvalidArgument, NVMLError_Uninitialized):
        raise
    except AppleGPUError as error:
        return Reading(None, error.reason or REASON_SOURCE_FAILED, None, None, str(error))
    figure = _library.last.figure
    return Reading(value, None, figure.age_s if figure else None, figure.interval_s if figure else None)


# ---- Device

def DeviceGetIndex(device: Device) -> int:
    """Its index, from 0."""
    _of(device)
    return device._index


def DeviceGetName(device: Device) -> str:
    """"Apple M4": the accelerator's `model` property; in a guest Metal's name."""
    return str(_now(device, _Engine.name))


def DeviceGetUUID(device: Device) -> str:
    """GPU-xxxxxxxx-xxxx-...: stable per Mac, a hash of IOPlatformUUID. NotSupported where that cannot be read."""
    return str(_now(device, _Engine.uuid))


def DeviceGetBrand(device: Device) -> str:
    """"Apple"."""
    _of(device)
    return "Apple"


def DeviceGetArchitecture(device: Device) -> str:
    """"G16G": the design, from the accelerator's class name. NotSupported in a guest."""
    return str(_now(device, _Engine.architecture))


def DeviceGetMetalFamily(device: Device) -> str:
    """"Apple9": the highest Metal GPU family (Apple7 M1, 8 M2, 9 M3 and M4, 10 M5). Asks Metal once per process."""
    return str(_now(device, _Engine.metal_family))


def DeviceGetRegistryId(device: Device) -> int:
    """IORegistry entry id of the accelerator: MTLDevice.registryID."""
    return int(_now(device, _Engine.registry_id))


def DeviceCountGpuCores(device: Device) -> int:
    """GPU cores that are enabled: gpu-core-count."""
    return int(_now(device, _Engine.gpu_cores))


def DeviceCountDie(device: Device) -> int:
    """Dies: 2 on an Ultra, else 1."""
    return int(_now(device, _Engine.dies))


def DeviceGetPeakFlops(device: Device) -> float:
    """FP32 operations per second at the top clock: cores x MHz x 256e6. Computed; FP16 is not taken to be faster."""
    return float(_now(device, _Engine.gpu_flops))


def DeviceGetUtilization(device: Device, window: float | None = None, timeout: float | None = None) -> int:
    """Percent of the window the GPU was active: GPUPH residency, what powermetrics prints.

    Where IOReport has no GPUPH, the driver's own instantaneous figure (Snapshot.sources names the source).
    """
    return int(_rate(device, _Engine.gpu_utilization, window, timeout))


def DeviceGetEngineUtilization(device: Device) -> EngineUtilization:
    """The driver's instantaneous percentages of device, renderer and tiler; registry only, no waiting.

    May stick at 0 or 100 on M4 Pro and Max with macOS 15 (stats 2525): DeviceGetUtilization is the better figure.
    """
    return _now(device, _Engine.gpu_engines)  # type: ignore[no-any-return]


def DeviceGetActiveRatio(device: Device, window: float | None = None, timeout: float | None = None) -> float:
    """Share of the window outside idle states, 0-1 (GPUPH)."""
    return float(_rate(device, _Engine.gpu_active, window, timeout))


def DeviceGetScaledRatio(device: Device, window: float | None = None, timeout: float | None = None) -> float:
    """The active share weighted by clock / top clock, 0-1: how much of the full-speed GPU was used."""
    return float(_rate(device, _Engine.gpu_scaled, window, timeout))


def DeviceGetStateResidency(device: Device, window: float | None = None,
                            timeout: float | None = None) -> tuple[StateResidency, ...]:
    """Share of the window in each DVFS state, in the driver's order (GPUPH)."""
    return _rate(device, _Engine.gpu_residency, window, timeout)  # type: ignore[no-any-return]


def DeviceGetClock(device: Device, window: float | None = None, timeout: float | None = None) -> int:
    """Mean requested GPU clock in MHz while it was active. NoData gpu_asleep when it never was."""
    return int(_rate(device, _Engine.gpu_clock, window, timeout))


def DeviceGetMaxClock(device: Device) -> int:
    """Top GPU clock in MHz, from the DVFS table of the device tree."""
    return int(_now(device, _Engine.gpu_max_clock))


def DeviceGetSupportedClocks(device: Device) -> tuple[int, ...]:
    """GPU clocks in MHz, ascending, each once."""
    return _now(device, _Engine.gpu_supported_clocks)  # type: ignore[no-any-return]


def DeviceGetPowerUsage(device: Device, window: float | None = None, timeout: float | None = None) -> int:
    """Mean GPU power in mW (Energy Model, GPU Energy); FilteredGPUPower where that counter is missing or frozen."""
    return int(_rate(device, _Engine.gpu_power, window, timeout))


def DeviceGetEnergy(device: Device) -> int:
    """GPU energy in mJ since the driver's start: the hardware counter's last published count. Never falls."""
    return int(_now(device, _Engine.rail_energy, "gpu"))


def DeviceGetPowerLimit(device: Device) -> int:
    """GPU power cap in mW (MaxGPUAbsolutePower). NoData no_limit when none is set, as by default."""
    return int(_now(device, _Engine.gpu_power_limit))


def DeviceGetTemperature(device: Device) -> float:
    """Mean of the GPU die sensors in degrees Celsius (SMC Tg*, else HID). NoData gpu_asleep when all are gated."""
    return float(_now(device, _Engine.temperature, "GPU"))


def DeviceGetMaxTemperature(device: Device) -> float:
    """The hottest GPU die sensor now, in degrees Celsius."""
    return float(_now(device, _Engine.temperature_max, "GPU"))


def DeviceGetTemperatureSensors(device: Device) -> tuple[TemperatureSensor, ...]:
    """Every GPU die sensor that gives a plausible value (15 to 130 degrees)."""
    return _now(device, _Engine.sensors_of, "GPU")  # type: ignore[no-any-return]


def DeviceGetThrottleState(device: Device, window: float | None = None, timeout: float | None = None) -> ThrottleState:
    """What holds the GPU back: CLTM, power budget, thermal pressure; parts this chip does not publish are None."""
    return _rate(device, _Engine.throttle, window, timeout)  # type: ignore[no-any-return]


def DeviceGetRecoveryCount(device: Device) -> int:
    """GPU restarts since boot (recoveryCount): it rises when a kernel hung or faulted."""
    return int(_now(device, _Engine.gpu_recoveries))


def DeviceCountFan(device: Device) -> int:
    """Fans of the Mac; 0 on a fanless one (SMC FNum)."""
    return int(_now(device, _Engine.fan_count))


def DeviceGetFanRpm(device: Device, fan: int) -> int:
    """Speed of a fan in turns per minute (SMC F0Ac). 0 is a fan that stands."""
    return int(_now(device, _Engine.fan, _from_zero(fan, "fan")).rpm)


def DeviceGetFanSpeed(device: Device, fan: int) -> int:
    """Speed of a fan in percent of its own maximum (F0Ac / F0Mx)."""
    return int(_now(device, _Engine.fan_speed, _from_zero(fan, "fan")))


def DeviceGetProcesses(device: Device, window: float | None = None, timeout: float | None = None) -> tuple[GpuProcess, ...]:
    """Processes with GPU clients, busiest first, of every user, without root (AGX user clients, accumulatedGPUTime).

    Waits for a second sample; with timeout=0, or when none came, gpu_percent is None.
    """
    try:
        return _rate(device, _Engine.processes_rated, window, timeout)  # type: ignore[no-any-return]
    except NVMLError_NotReady:
        return _now(device, _Engine.processes)  # type: ignore[no-any-return]


def DeviceGetTopologyLevel(a: Device, b: Device) -> int:
    """TOPOLOGY_INTERNAL for one device and itself, TOPOLOGY_SYSTEM for two of one machine."""
    _of(a), _of(b)
    return TOPOLOGY_INTERNAL if a == b else TOPOLOGY_SYSTEM


def DeviceGetP2PStatus(a: Device, b: Device, caps: int) -> int:
    """P2P_STATUS_OK between a device and itself, else P2P_STATUS_NOT_SUPPORTED: Macs have no links between GPUs."""
    _of(a), _of(b), _from_zero(caps, "caps")
    return P2P_STATUS_OK if a == b else P2P_STATUS_NOT_SUPPORTED


# ---- Memory

def MemoryGetTotal(device: Device) -> int:
    """Bytes the GPU may use: the wired limit when one is set, else Metal's recommendedMaxWorkingSetSize. Never all of RAM."""
    return int(_now(device, _Engine.memory_total))


def MemoryGetUsed(device: Device) -> int:
    """Bytes of system memory the GPU driver has in use for all processes ("In use system memory")."""
    return int(_now(device, _Engine.memory_used))


def MemoryGetFree(device: Device) -> int:
    """max(0, total - used) in bytes. For what can really be allocated see MemoryGetHeadroom."""
    return int(_now(device, _Engine.memory_free))


def MemoryGetAllocated(device: Device) -> int:
    """Bytes ever handed out and not returned ("Alloc system memory"); far above what is in use, not a usage figure."""
    return int(_now(device, _Engine.memory_allocated))


def MemoryGetLimit(device: Device) -> int:
    """Metal's recommendedMaxWorkingSetSize in bytes; read once per process, the device released at once."""
    return int(_now(device, _Engine.memory_limit))


def MemoryGetWiredLimit(device: Device) -> int:
    """The limit set by sysctl iogpu.wired_limit_mb, in bytes. NoData no_limit when it is 0, the driver's default."""
    return int(_now(device, _Engine.memory_wired))


def MemoryGetHeadroom(device: Device) -> Headroom:
    """What the GPU may still take: max(0, min(available RAM, limit - in use)), with each term."""
    return _now(device, _Engine.memory_headroom)  # type: ignore[no-any-return]


def MemoryGetUtilization(device: Device) -> int:
    """Percent of MemoryGetTotal in use. (NVML's memory utilisation is another thing: Apple has no such counter.)"""
    return int(_now(device, _Engine.memory_utilization))


def MemoryGetPower(device: Device, window: float | None = None, timeout: float | None = None) -> int:
    """Mean DRAM power in mW (Energy Model DRAM; PMP on base M1)."""
    return int(_rate(device, _Engine.rail_power, window, timeout, "dram"))


def MemoryGetEnergy(device: Device) -> int:
    """DRAM energy in mJ since the driver's start, as last published."""
    return int(_now(device, _Engine.rail_energy, "dram"))


def MemoryGetMaxBandwidth(device: Device) -> float:
    """Bytes per second that Apple sells the chip with, from a table by chip name. NotSupported for a chip not in it."""
    return float(_now(device, _Engine.memory_max_bandwidth))


def MemoryGetBusWidth(device: Device) -> int:
    """Width of the memory bus in bits, from a table by chip name: nothing on the Mac says it."""
    return int(_now(device, _Engine.memory_bus_width))


def MemoryGetType(device: Device) -> str:
    """"LPDDR5X", from a table by chip name: nothing on the Mac says it."""
    return str(_now(device, _Engine.memory_type))


def _agent(agent: str | None) -> str | None:
    return None if agent is None else _choice(agent, AGENTS, "agent")


def MemoryGetReadBandwidth(device: Device, agent: str | None = None, window: float | None = None,
                           timeout: float | None = None) -> Bandwidth:
    """Bytes per second read from DRAM by everybody, or by one of AGENTS (AMC Stats; estimated from PMP where refused)."""
    return _rate(device, _Engine.traffic, window, timeout, "RD", _agent(agent))  # type: ignore[no-any-return]


def MemoryGetWriteBandwidth(device: Device, agent: str | None = None, window: float | None = None,
                            timeout: float | None = None) -> Bandwidth:
    """Bytes per second written to DRAM by everybody, or by one of AGENTS."""
    return _rate(device, _Engine.traffic, window, timeout, "WR", _agent(agent))  # type: ignore[no-any-return]


# ---- Neural Engine

def AneGetPower(device: Device, window: float | None = None, timeout: float | None = None) -> int:
    """Mean power of the Neural Engine in mW. NotReady frozen when it works while its counter stands."""
    return int(_rate(device, _Engine.ane_power, window, timeout))


def AneGetEnergy(device: Device) -> int:
    """Energy of the Neural Engine in mJ since the driver's start, as last published."""
    return int(_now(device, _Engine.rail_energy, "ane"))


def AneGetUtilization(device: Device, window: float | None = None, timeout: float | None = None) -> AneUtilization:
    """An estimate of ANE use in percent, with the method: Apple publishes no utilisation."""
    return _rate(device, _Engine.ane_utilization, window, timeout)  # type: ignore[no-any-return]


def AneGetState(device: Device) -> AneState:
    """Power state of the ANE driver now (H11ANE)."""
    return _now(device, _Engine.ane_state)  # type: ignore[no-any-return]


def AneCountCores(device: Device) -> int:
    """ANE cores: 16, or 32 on an Ultra, from a table by chip name."""
    return int(_now(device, _Engine.ane_cores))


def AneGetBandwidth(device: Device, window: float | None = None, timeout: float | None = None) -> Bandwidth:
    """Bytes per second the ANE reads and writes."""
    return _rate(device, _Engine.both_ways, window, timeout, "ane")  # type: ignore[no-any-return]


# ---- CPU

def _cluster_or_none(cluster: int | None) -> int | None:
    return None if cluster is None else _from_zero(cluster, "cluster")


def _cpu_rail(cluster: int | None) -> str | int:
    return "cpu" if cluster is None else _from_zero(cluster, "cluster")


def CpuCountClusters(device: Device) -> int:
    """CPU clusters (CPU Complex Performance States)."""
    return int(_now(device, _Engine.cluster_count))


def CpuGetClusterName(device: Device, cluster: int) -> str:
    """Apple's name: ECPU, PCPU, PCPU1, MCPU0, DIE_1_PCPU ..."""
    return str(_now(device, _Engine.cluster_name, _from_zero(cluster, "cluster")))


def CpuCountCores(device: Device, cluster: int | None = None) -> int:
    """Cores of a cluster, or of the whole Mac."""
    return int(_now(device, _Engine.cpu_cores, _cluster_or_none(cluster)))


def CpuGetMaxClock(device: Device, cluster: int | None = None) -> int:
    """Top clock in MHz of a cluster, or of the fastest one (device tree)."""
    return int(_now(device, _Engine.cpu_max_clock, _cluster_or_none(cluster)))


def CpuGetClock(device: Device, cluster: int | None = None, window: float | None = None,
                timeout: float | None = None) -> int:
    """Mean requested clock in MHz of a cluster while active; without a cluster the highest of them. NoData when idle."""
    return int(_rate(device, _Engine.cpu_clock, window, timeout, _cluster_or_none(cluster)))


def CpuGetUtilization(device: Device, cluster: int | None = None, window: float | None = None,
                      timeout: float | None = None) -> int:
    """Percent of scheduler ticks not idle, of a cluster or of all CPUs: Activity Monitor's figure / number of CPUs."""
    return int(_rate(device, _Engine.cpu_utilization, window, timeout, _cluster_or_none(cluster)))


def CpuGetPower(device: Device, cluster: int | None = None, window: float | None = None,
                timeout: float | None = None) -> int:
    """Mean power in mW of a cluster, or of all (CPU Energy, the sum of the dies)."""
    return int(_rate(device, _Engine.rail_power, window, timeout, _cpu_rail(cluster)))


def CpuGetEnergy(device: Device, cluster: int | None = None) -> int:
    """Energy in mJ of a cluster, or of all, since the driver's start, as last published."""
    return int(_now(device, _Engine.rail_energy, _cpu_rail(cluster)))


def CpuGetTemperature(device: Device) -> float:
    """Mean of the CPU die sensors in degrees Celsius (SMC Tp, Te; Ts on M5; else HID)."""
    return float(_now(device, _Engine.temperature, "CPU"))


# ---- video engines

def VpuGetPower(device: Device, engine: str, window: float | None = None, timeout: float | None = None) -> int:
    """Mean power in mW of a video engine, one of ENGINES (Energy Model AVE, AVD or VDEC)."""
    return int(_rate(device, _Engine.rail_power, window, timeout, _choice(engine, ENGINES, "engine")))


def VpuGetBandwidth(device: Device, engine: str, window: float | None = None, timeout: float | None = None) -> Bandwidth:
    """Bytes per second a video engine reads and writes."""
    return _rate(device, _Engine.both_ways, window, timeout, _choice(engine, ENGINES, "engine"))  # type: ignore[no-any-return]


def VpuGetUtilization(device: Device, engine: str, window: float | None = None,
                      timeout: float | None = None) -> VpuUtilization:
    """An estimate in percent, with the method. Tells idle from busy, no more: Apple publishes no figure.

    By bandwidth it is the share of 7 GB/s, an assumption that nobody has measured (NeoAsitop's); by histogram the share of
    time above the lowest bucket.
    """
    return _rate(device, _Engine.engine_utilization, window, timeout, _choice(engine, ENGINES, "engine"))  # type: ignore[no-any-return]


# ---- processes

def ProcessGetGpuTime(device: Device, pid: int) -> int:
    """GPU nanoseconds of a process, of any user, since its clients were made. NoData when it does not use the GPU."""
    return int(_now(device, _Engine.process_gpu_time, _from_zero(pid, "pid")))


def ProcessGetUtilization(device: Device, pid: int, window: float | None = None, timeout: float | None = None) -> float:
    """Percent of the window a process used the GPU; may exceed 100."""
    return float(_rate(device, _Engine.process_utilization, window, timeout, _from_zero(pid, "pid")))


def ProcessGetCpuTime(device: Device, pid: int) -> float:
    """User + system seconds of a process of yours. NoPermission for another user's."""
    return float(_now(device, _Engine.process_cpu_time, _from_zero(pid, "pid")))


def ProcessGetEnergy(device: Device, pid: int) -> int:
    """CPU energy in mJ of a process of yours (ri_energy_nj, macOS 13); no GPU energy is in it."""
    return int(_now(device, _Engine.process_energy, _from_zero(pid, "pid")))


def ProcessGetInfo(device: Device, pid: int) -> ProcessInfo:
    """Name, path, parent and user of a process, of any user. NotFound when there is none."""
    return _now(device, _Engine.process_info, _from_zero(pid, "pid"))  # type: ignore[no-any-return]


def ProcessGetFootprint(device: Device, pid: int) -> Footprint:
    """Memory of a process of yours as Activity Monitor counts it, GPU buffers included (ri_phys_footprint)."""
    return _now(device, _Engine.process_footprint, _from_zero(pid, "pid"))  # type: ignore[no-any-return]


# ---- System: of the machine that LibraryInit opened

def _system(figure: Callable[..., _Figure], *args: Any) -> Any:
    return _read(_default(), figure, *args)


def SystemGetModel() -> str:
    """"Mac16,12" (hw.model)."""
    return str(_system(_Engine.text_fact, "hw.model"))


def SystemGetChipName() -> str:
    """"Apple M4" (machdep.cpu.brand_string)."""
    return str(_system(_Engine.chip))


def SystemGetOsVersion() -> str:
    """"15.5" (kern.osproductversion)."""
    return str(_system(_Engine.text_fact, "kern.osproductversion"))


def SystemGetDriverVersion() -> str:
    """Version of the GPU driver, "360.34.5" (IOSourceVersion of the accelerator)."""
    return str(_system(_Engine.driver_version))


def SystemGetThermalPressure() -> int:
    """Thermal pressure, an index into THERMAL_PRESSURE (notify com.apple.system.thermalpressurelevel)."""
    return int(_system(_Engine.thermal_pressure))


def SystemGetPowerUsage() -> int:
    """Power of the whole machine in mW, as the SMC measures it (PSTR)."""
    return int(_system(_Engine.system_power))


def SystemGetPackagePower() -> int:
    """CPU + GPU + ANE in mW, all three or none; a sum of means over each rail's own span (up to a few seconds)."""
    engine = _default()
    engine.machine.clock.step()
    return int(_read(engine, _Engine.package_power, timeout=None))


def SystemGetPowerSource() -> PowerSource:
    """Mains or battery, and the battery's state (IOPS, AppleSmartBattery)."""
    return _system(_Engine.power_source)  # type: ignore[no-any-return]


def SystemGetSwapInfo() -> SwapInfo:
    """Swap in bytes (vm.swapusage)."""
    return _system(_Engine.swap)  # type: ignore[no-any-return]


def SystemGetMemoryPressure() -> MemoryPressure:
    """The kernel's own judgement and the percentage it calls available."""
    return _system(_Engine.memory_pressure)  # type: ignore[no-any-return]


def SystemGetMemoryInfo() -> MemoryInfo:
    """Main memory in bytes (vm_statistics64); refreshed by the kernel at most a few times a second."""
    return _system(_Engine.memory_info)  # type: ignore[no-any-return]


# ---- snapshots

def _field(parts: str, figure: Callable[..., _Figure], *args: Any, of: str | None = None) -> Any:
    """A field of Snapshot as a row: its parts, its figure with the arguments, and which field of the value it is."""
    return tuple(parts.split()), figure, args, of


class Snapshot:
    """Everything at one moment. Each field below is a value, or None with its reason in `reasons[field]`.

    `ages[field]` seconds since the newest thing measured, `intervals[field]` the span of a rate, `sources[field]` the
    interface, `messages[field]` the error's sentence, `estimated` the fields that are estimates. `published[rail]` is the
    time up to which the driver has published a rail's energy.
    """

    time_unix_s: float
    time_mono_s: float              # CLOCK_UPTIME_RAW: stands while the Mac sleeps
    interval_s: float | None        # the span of the GPU's rates
    source: str                     # "live" or the recording's path
    parts: tuple[str, ...]
    reasons: dict[str, str]
    messages: dict[str, str]
    ages: dict[str, float]
    intervals: dict[str, float]
    sources: dict[str, str]
    estimated: tuple[str, ...]
    published: dict[str, float]     # per rail, up to which time_mono_s its energy is published
    gpu_name: str | None = _field("gpu", _Engine.name)
    gpu_core_count: int | None = _field("gpu", _Engine.gpu_cores)
    gpu_utilization_percent: int | None = _field("gpu", _Engine.gpu_utilization)
    gpu_device_percent: int | None = _field("gpu", _Engine.gpu_engines, of="device_percent")
    gpu_renderer_percent: int | None = _field("gpu", _Engine.gpu_engines, of="renderer_percent")
    gpu_tiler_percent: int | None = _field("gpu", _Engine.gpu_engines, of="tiler_percent")
    gpu_active_ratio: float | None = _field("gpu", _Engine.gpu_active)
    gpu_scaled_ratio: float | None = _field("gpu clocks", _Engine.gpu_scaled)
    # A counter, as the energies are and the bytes in total: only differences mean something.
    gpu_active_total_s: float | None = _field("gpu", _Engine.gpu_active_time)
    gpu_recovery_count: int | None = _field("gpu", _Engine.gpu_recoveries)
    gpu_clock_mhz: int | None = _field("clocks", _Engine.gpu_clock)
    gpu_max_clock_mhz: int | None = _field("clocks", _Engine.gpu_max_clock)
    gpu_states: tuple[StateResidency, ...] | None = _field("clocks", _Engine.gpu_residency)
    memory_total_bytes: int | None = _field("memory", _Engine.memory_total)
    memory_used_bytes: int | None = _field("memory", _Engine.memory_used)
    memory_free_bytes: int | None = _field("memory", _Engine.memory_free)
    memory_allocated_bytes: int | None = _field("memory", _Engine.memory_allocated)
    memory_wired_limit_bytes: int | None = _field("memory", _Engine.memory_wired)
    memory_headroom_bytes: int | None = _field("memory", _Engine.memory_headroom, of="headroom_bytes")
    memory_utilization_percent: int | None = _field("memory", _Engine.memory_utilization)
    gpu_power_mw: int | None = _field("power", _Engine.gpu_power)
    gpu_energy_mj: int | None = _field("power", _Engine.rail_energy, "gpu")
    gpu_power_limit_mw: int | None = _field("power", _Engine.gpu_power_limit)
    gpu_sram_power_mw: int | None = _field("power", _Engine.rail_power, "gpu_sram")
    cpu_power_mw: int | None = _field("power", _Engine.rail_power, "cpu")
    cpu_energy_mj: int | None = _field("power", _Engine.rail_energy, "cpu")
    ane_power_mw: int | None = _field("power ane", _Engine.ane_power)
    ane_energy_mj: int | None = _field("power ane", _Engine.rail_energy, "ane")
    memory_power_mw: int | None = _field("power", _Engine.rail_power, "dram")
    memory_energy_mj: int | None = _field("power", _Engine.rail_energy, "dram")
    package_power_mw: int | None = _field("power", _Engine.package_power)
    system_power_mw: int | None = _field("power system", _Engine.system_power)
    gpu_temperature_celsius: float | None = _field("temperature", _Engine.temperature, "GPU")
    gpu_temperature_max_celsius: float | None = _field("temperature", _Engine.temperature_max, "GPU")
    cpu_temperature_celsius: float | None = _field("temperature", _Engine.temperature, "CPU")
    gpu_throttle: ThrottleState | None = _field("temperature", _Engine.throttle)
    thermal_pressure_level: int | None = _field("temperature system", _Engine.thermal_pressure)
    fans: tuple[Fan, ...] | None = _field("temperature", _Engine.fans)
    memory_read: Bandwidth | None = _field("bandwidth", _Engine.traffic, "RD")
    memory_write: Bandwidth | None = _field("bandwidth", _Engine.traffic, "WR")
    memory_gpu_read: Bandwidth | None = _field("bandwidth", _Engine.traffic, "RD", "gpu")
    memory_gpu_write: Bandwidth | None = _field("bandwidth", _Engine.traffic, "WR", "gpu")
    memory_cpu_read: Bandwidth | None = _field("bandwidth", _Engine.traffic, "RD", "cpu")
    memory_cpu_write: Bandwidth | None = _field("bandwidth", _Engine.traffic, "WR", "cpu")
    memory_ane_read: Bandwidth | None = _field("bandwidth", _Engine.traffic, "RD", "ane")
    memory_ane_write: Bandwidth | None = _field("bandwidth", _Engine.traffic, "WR", "ane")
    memory_media_read: Bandwidth | None = _field("bandwidth", _Engine.traffic, "RD", "media")
    memory_media_write: Bandwidth | None = _field("bandwidth", _Engine.traffic, "WR", "media")
    memory_display_read: Bandwidth | None = _field("bandwidth", _Engine.traffic, "RD", "display")
    memory_display_write: Bandwidth | None = _field("bandwidth", _Engine.traffic, "WR", "display")
    memory_io_read: Bandwidth | None = _field("bandwidth", _Engine.traffic, "RD", "io")
    memory_io_write: Bandwidth | None = _field("bandwidth", _Engine.traffic, "WR", "io")
    memory_read_total_bytes: int | None = _field("bandwidth", _Engine.traffic_total, "RD")
    memory_write_total_bytes: int | None = _field("bandwidth", _Engine.traffic_total, "WR")
    memory_max_bytes_per_s: float | None = _field("bandwidth", _Engine.memory_max_bandwidth)
    ane_utilization_percent: int | None = _field("ane", _Engine.ane_utilization, of="percent")
    ane_utilization_method: str | None = _field("ane", _Engine.ane_utilization, of="method")
    ane_power_state: int | None = _field("ane", _Engine.ane_state, of="power_state")
    cpu_utilization_percent: int | None = _field("cpu", _Engine.cpu_utilization, None)
    cpu_clusters: tuple[CpuCluster, ...] | None = _field("cpu clocks", _Engine.cpu_clusters)
    encode_power_mw: int | None = _field("media", _Engine.rail_power, "encode")
    decode_power_mw: int | None = _field("media", _Engine.rail_power, "decode")
    encode_bandwidth: Bandwidth | None = _field("media", _Engine.both_ways, "encode")
    decode_bandwidth: Bandwidth | None = _field("media", _Engine.both_ways, "decode")
    prores_bandwidth: Bandwidth | None = _field("media", _Engine.both_ways, "prores")
    processes: tuple[GpuProcess, ...] | None = _field("processes", _Engine.processes)
    system_model: str | None = _field("system", _Engine.text_fact, "hw.model")
    system_chip_name: str | None = _field("system", _Engine.chip)
    system_os_version: str | None = _field("system", _Engine.text_fact, "kern.osproductversion")
    system_driver_version: str | None = _field("system", _Engine.driver_version)
    system_memory: MemoryInfo | None = _field("system memory", _Engine.memory_info)
    system_swap: SwapInfo | None = _field("system memory", _Engine.swap)
    system_memory_pressure: MemoryPressure | None = _field("system memory", _Engine.memory_pressure)
    system_power_source: PowerSource | None = _field("system", _Engine.power_source)

    def __init__(self, engine: _Engine, parts: tuple[str, ...]) -> None:
        self._begin(engine)
        self.interval_s = None
        self.source = engine.machine.name
        self.parts = parts
        self.published = {}
        self._points: dict[str, list[list[tuple[int, float]]]] = {}     # per rail and channel, for SnapshotDelta
        self._clients: dict[int, tuple[int, str, int]] | None = None

    def _begin(self, engine: _Engine) -> None:
        """Nothing is known yet, and it is now."""
        self.reasons, self.messages, self.ages, self.intervals, self.sources = {}, {}, {}, {}, {}
        self.estimated = ()
        self.time_unix_s, self.time_mono_s = engine.machine.clock.unix(), engine.machine.clock.now()[0] / _NS

    def _take(self, row: tuple[Any, ...], figure: _Figure) -> None:
        value, age, interval, source, estimated = figure
        for field, attribute in row[3]:
            setattr(self, field, value if attribute is None else getattr(value, attribute))
            if age is not None:
                self.ages[field] = age
            if interval is not None:
                self.intervals[field] = interval
            if source:
                self.sources[field] = source
            if estimated:
                self.estimated += (field,)

    def _miss(self, row: tuple[Any, ...], reason: str, message: str) -> None:
        for field, _ in row[3]:
            setattr(self, field, None)
            self.reasons[field], self.messages[field] = reason, message

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, numbers and strings; keys are stable and only ever added to."""
        fields = {field: _as_plain(getattr(self, field)) for row in _SNAPSHOT for field, _ in row[3]}
        head = {"schema": 1, "time_unix_s": self.time_unix_s, "time_mono_s": self.time_mono_s, "interval_s": self.interval_s,
                "source": self.source, "parts": list(self.parts)}
        tail = {"reasons": dict(self.reasons), "messages": dict(self.messages), "ages": dict(self.ages),
                "intervals": dict(self.intervals), "sources": dict(self.sources), "estimated": sorted(self.estimated)}
        return {**head, **fields, **tail}

    def __repr__(self) -> str:
        return "<Snapshot %s, %d figures, %d missing>" % (
            self.source, sum(len(row[3]) for row in _SNAPSHOT) - len(self.reasons), len(self.reasons))


def _snapshot_rows() -> tuple[tuple[Any, ...], ...]:
    """(parts, figure, arguments, ((field, field of the value or None), ...)): one figure may fill several fields."""
    rows: dict[Any, list[tuple[str, str | None]]] = {}
    for field in [name for name in Snapshot.__annotations__ if name in vars(Snapshot)]:
        row = vars(Snapshot)[field]
        rows.setdefault(row[:3], []).append((field, row[3]))
        delattr(Snapshot, field)        # an instance has the value
    return tuple((*key, tuple(fields)) for key, fields in rows.items())


_SNAPSHOT = _snapshot_rows()


def _as_plain(value: Any) -> Any:
    if hasattr(value, "_asdict"):
        return {key: _as_plain(v) for key, v in value._asdict().items()}
    if isinstance(value, dict):
        return {str(key): _as_plain(v) for key, v in value.items()}
    return [_as_plain(v) for v in value] if isinstance(value, (tuple, list)) else value


def _wanted_parts(parts: Sequence[str] | None) -> tuple[str, ...]:
    if parts is None:
        return PARTS
    try:
        parts = (parts,) if isinstance(parts, str) else tuple(parts)
    except TypeError:
        raise _bad("parts must be a sequence of names, not %r" % (parts,)) from None
    for part in parts:
        _choice(part, PARTS, "part")
    return tuple(part for part in PARTS if part in parts)


def DeviceGetSnapshot(device: Device, parts: Sequence[str] | None = None, timeout: float = 0.1) -> Snapshot:
    """Every figure at once, from one sample of each source: a value or a reason for each field.

    parts: any of PARTS (default: all); a part not asked for costs no native call and has the reason not_asked.
    timeout: seconds to wait at most, all in all, for rates that lack their second sample.
    """
    engine, wanted, wait = _of(device), _wanted_parts(parts), _timeout_ns(timeout)
    engine.machine.clock.step()
    snapshot = Snapshot(engine, wanted)
    began = engine.machine.clock.now()[0]
    while any([_collect(engine, snapshot, row, began, wait) for row in _SNAPSHOT]):
        if engine.machine.clock.now()[0] - began >= wait:
            break
        engine.machine.clock.sleep(_STEP / _NS)
        snapshot._begin(engine)     # all rows anew: a snapshot is of one moment
    _finish_snapshot(engine, snapshot)
    return snapshot


def _collect(engine: _Engine, snapshot: Snapshot, row: tuple[Any, ...], began: int, wait: int) -> bool:
    """Fill the fields of a row; True when waiting might still give what is missing."""
    if set(snapshot.parts).isdisjoint(row[0]):
        snapshot._miss(row, REASON_NOT_ASKED, _ADVICE[REASON_NOT_ASKED])
        return False
    try:
        figure = row[1](engine, engine.window, *row[2])
    except AppleGPUError as error:
        snapshot._miss(row, error.reason or REASON_SOURCE_FAILED, str(error))
        return bool(_hope(error, began, wait) > engine.machine.clock.now()[0])
    snapshot._take(row, figure)
    return bool(wait and figure.interval_s is None and row[1] is _Engine.processes)


def _finish_snapshot(engine: _Engine, snapshot: Snapshot) -> None:
    """What SnapshotDelta needs, from the samples that were taken anyway."""
    snapshot.interval_s = snapshot.intervals.get("gpu_utilization_percent")
    if "power" in snapshot.parts or "ane" in snapshot.parts or "media" in snapshot.parts:
        for rail in RAILS:
            if isinstance(engine.facts.get("rail " + rail), tuple):
                snapshot._points[rail] = engine.rail_points(rail)
                if snapshot._points[rail]:
                    snapshot.published[rail] = min(lane[-1][0] for lane in snapshot._points[rail]) / _NS
    if snapshot.processes is not None:
        points = engine.clients.points[-1:]
        snapshot._clients = points[0][1] if points else None


def SnapshotDelta(a: Snapshot, b: Snapshot, after: Snapshot | None = None) -> Delta:
    """What happened between two snapshots of one device: exact counters, whoever else calls meanwhile.

    Most rails publish their energy only every second or two. The count at `a` is interpolated between the publications on
    both sides of it; the count at `b` likewise when `after` is a later snapshot that has seen the next publication (see
    Snapshot.published), else it is the last one before `b`. uncertainty_joules is what the mean power gives for the time
    from either end to its nearest publication; spans_s what the joules cover: less than `seconds` where the last publication
    came before `b` (of several dies the longest). A rail that published nothing meanwhile is None. Raises InvalidArgument
    for snapshots of two devices.
    """
    snapshots = [a, b] + ([after] if after is not None else [])
    if not all(isinstance(s, Snapshot) for s in snapshots) or len({s.source for s in snapshots}) != 1:
        raise _bad("SnapshotDelta takes two snapshots of one device, and a later one at most")
    seconds = b.time_mono_s - a.time_mono_s
    if seconds <= 0 or (after is not None and after.time_mono_s < b.time_mono_s):
        raise _bad("the second snapshot must be later than the first, and the third than both")
    reasons: dict[str, str] = {}
    joules, unsure, spans = {}, {}, {}
    for rail in RAILS:
        joules[rail], unsure[rail], spans[rail] = _rail_delta(snapshots, rail, reasons)
    active, read, written = (_counter_delta(a, b, field, name, reasons) for field, name in (
        ("gpu_active_total_s", "gpu_active_s"), ("memory_read_total_bytes", "read_bytes"), ("memory_write_total_bytes", "write_bytes")))
    return Delta(seconds, joules, unsure, active, _time_delta(a, b, reasons), read, written, reasons, spans)


def _rail_delta(snapshots: Sequence[Snapshot], rail: str, reasons: dict[str, str]) -> tuple[float | None, ...]:
    """(joules, their uncertainty, the seconds they cover) of a rail between the first two of the snapshots."""
    seen = [s._points.get(rail) or [] for s in snapshots]
    if len({len(points) for points in seen}) != 1 or not seen[0]:
        reasons[rail] = REASON_ABSENT
        return None, None, None
    begin, end = (int(s.time_mono_s * _NS) for s in snapshots[:2])
    joules = doubt = span = 0.0
    for lanes in zip(*seen):
        counts = sorted({lanes[0][-1]} | {point for lane in lanes[1:] for point in lane if point[0] > lanes[0][-1][0]})
        if len(counts) < 2:
            reasons[rail] = REASON_STALE
            return None, None, None
        (before, low), (after, high) = _count_at(counts, begin), _count_at(counts, end)
        joules, doubt = joules + (after - before) / 1000, doubt + (low + high) / 1000
        span = max(span, (min(end, counts[-1][0]) - max(begin, counts[0][0])) / _NS)
    return joules, doubt, span


def _count_at(counts: Sequence[tuple[int, float]], moment: int) -> tuple[float, float]:
    """(mJ at a moment, its doubt): interpolated between publications, past the last one the last count. The doubt is what
    the mean power gives for the time to the nearest publication."""
    (t0, e0), (t1, e1) = counts[0], counts[-1]
    if moment >= t1:
        return e1, (e1 - e0) * (moment - t1) / (t1 - t0)
    if moment <= t0:
        return e0, 0.0
    later = next(n for n, (t, _) in enumerate(counts) if t > moment)
    (t0, e0), (t1, e1) = counts[later - 1], counts[later]
    power = (e1 - e0) / (t1 - t0)
    return e0 + power * (moment - t0), power * min(moment - t0, t1 - moment)


def _counter_delta(a: Snapshot, b: Snapshot, field: str, name: str, reasons: dict[str, str]) -> float | None:
    before, after = getattr(a, field), getattr(b, field)
    if before is not None and after is not None and after >= before:
        return float(after - before)
    missing = a.reasons.get(field) or b.reasons.get(field)
    reasons[name] = missing or REASON_RESET
    return None


def _time_delta(a: Snapshot, b: Snapshot, reasons: dict[str, str]) -> dict[int, float]:
    """GPU seconds per pid."""
    if a._clients is None or b._clients is None:
        reasons["gpu_time_s"] = REASON_ABSENT
        return {}
    span = int((b.time_mono_s - a.time_mono_s) * _NS)
    return {pid: percent * span / 100 / _NS for pid, percent in _client_shares(a._clients, b._clients, span).items()}


# ======================================================================================================================
# Metal
# ======================================================================================================================

# ---- values

class MetalDetails(NamedTuple):
    """What Metal says of a device; None where this macOS has no such property."""
    name: str
    registry_id: int                        # of the accelerator in the I/O registry, as DeviceGetRegistryId gives it
    architecture: str | None                # "applegpu_g16g" (macOS 14)
    families: tuple[str, ...]               # "Apple7" ... "Metal3", those supportsFamily: says yes to
    unified_memory: bool
    working_set_bytes: int                  # recommendedMaxWorkingSetSize
    max_buffer_bytes: int
    max_threadgroup_memory_bytes: int
    max_threads_per_threadgroup: tuple[int, int, int]
    allocated_bytes: int                    # by this process, now (currentAllocatedSize)
    raytracing: bool | None                 # (macOS 11)
    low_power: bool
    removable: bool
    headless: bool


class MetalPipelineLimits(NamedTuple):
    """What one compiled kernel allows."""
    max_threads: int                        # per threadgroup, for this kernel's registers
    simd_width: int                         # threads that run in step; threadgroups should be a multiple of it
    threadgroup_memory_bytes: int           # declared inside the kernel


class MetalTiming(NamedTuple):
    """One finished command buffer, seconds. Metal's stamps are host time, as time.CLOCK_UPTIME_RAW; None: no stamp."""
    gpu_s: float | None                     # GPUStartTime to GPUEndTime
    kernel_s: float | None                  # the driver's CPU work to schedule it (kernelStartTime to kernelEndTime)
    scheduling_s: float | None              # commit call to kernelStartTime
    queue_s: float | None                   # kernelEndTime to GPUStartTime
    notice_s: float | None                  # GPUEndTime to the return of MetalWait
    total_s: float | None                   # commit call to the return of MetalWait, host clock alone


class MetalDispatchTime(NamedTuple):
    """GPU time of one dispatch of a profiled work; `seconds` is None when nothing could tell, `method` says why."""
    label: str
    seconds: float | None
    method: str                             # "counters", "command buffer", or why there is no figure


class MetalComparison(NamedTuple):
    """Two ways of doing the same, run in turn. Times are GPU seconds where Metal gives them, else host seconds."""
    n: int
    a_median_s: float
    b_median_s: float
    a_spread_s: float                       # distance between the quartiles
    b_spread_s: float
    ratio: float                            # median of b / a, run by run: above 1 a is quicker
    ratio_low: float                        # 95 % confidence interval of that median (order statistics, no normal law)
    ratio_high: float
    confidence: float                       # what the interval really covers; less than 0.95 when n is small
    clock: str                              # "gpu" or "host"
    verdict: str                            # "a is quicker", "b is quicker" or "no difference shown"


class MetalMemoryInfo(NamedTuple):
    """Metal memory of this process."""
    allocated_bytes: int                    # the device's currentAllocatedSize
    working_set_bytes: int                  # what it may use without paging
    tracked_bytes: int                      # allocatedSize of the resources Python holds
    objects: int                            # Objective-C objects Python holds, of every kind


class MetalFormat(NamedTuple):
    """How a pixel format lies in memory. A block is one pixel, unless the format is compressed."""
    name: str
    value: int                              # MTLPixelFormat...
    block_bytes: int
    block_width: int
    block_height: int
    depth: bool
    stencil: bool


class MetalImage(NamedTuple):
    """A decoded picture: 8 bits each of red, green, blue, alpha; rows from the top without gaps."""
    width: int
    height: int
    pixels: bytes


# ---- devices

def MetalDevices() -> tuple[MetalObject, ...]:
    """The Metal devices, the default one first. Asks for all and for the default: under ssh the one fails, in a sandbox
    the other. LibraryNotFound off macOS, NotSupported when there is no device (a build server without a GPU)."""
    _objc()
    with MetalPool():
        owners = _c.MTLCreateSystemDefaultDevice(), _c.MTLCopyAllDevices()     # they hold the counts until we have ours
        default, every = [_wrap(owner.value) for owner in owners]
        found = [default] if default is not None else []
        found += [one for one in every or () if one is not default]
    if not found:
        raise _fail(ERROR_NOT_SUPPORTED, REASON_SOURCE_FAILED, "Metal", "Metal gives no device to this process")
    return tuple(found)


def MetalDevice(registry_id: int | None = None) -> MetalObject:
    """The default Metal device, or the one of a registry id (DeviceGetRegistryId). NotFound for an unknown id."""
    runtime = _objc()
    if registry_id is None:
        if _gone(runtime.device):
            runtime.device = MetalDevices()[0]
        device: MetalObject = runtime.device
        return device
    for device in MetalDevices():
        if device.registryID() == registry_id:
            return device
    raise _fail(ERROR_NOT_FOUND, None, "Metal", "no Metal device has the registry id %r" % (registry_id,))


def MetalFamilies(device: MetalObject | None = None) -> tuple[str, ...]:
    """The GPU families a device supports ("Apple9", "Metal3", ...), asked one by one with supportsFamily:."""
    device = _device(device)
    return tuple(name for value, name in _enumeration("MTLGPUFamily").items() if device.supportsFamily_(value))


def MetalDeviceInfo(device: MetalObject | None = None) -> MetalDetails:
    """Name, limits and families of a Metal device; bytes and counts as Metal gives them."""
    device = _device(device)
    with MetalPool():
        architecture = _maybe(device, "architecture")
        return MetalDetails(
            device.name(), device.registryID(), architecture.name() if architecture is not None else None,
            MetalFamilies(device), device.hasUnifiedMemory(), device.recommendedMaxWorkingSetSize(),
            device.maxBufferLength(), device.maxThreadgroupMemoryLength(), tuple(device.maxThreadsPerThreadgroup()),
            device.currentAllocatedSize(), _maybe(device, "supportsRaytracing"), device.isLowPower(),
            device.isRemovable(), device.isHeadless())


def _device(device: MetalObject | None) -> MetalObject:
    return MetalDevice() if device is None else _expect(device, "MTLDevice")


def MetalQueue(device: MetalObject | None = None, label: str | None = None) -> MetalObject:
    """A new command queue. Functions that are given none use one queue per device, made at the first use."""
    return _given(_device(device).newCommandQueue(), "command queue", label)


def _queue(device: MetalObject) -> MetalObject:
    if _gone(device._facts):
        device._facts = MetalQueue(device)
    queue: MetalObject = device._facts
    return queue


# ---- code

def MetalCompile(source: str, device: MetalObject | None = None, *, version: str | int | None = None,
                 math: str | None = None, macros: Mapping[str, Any] | None = None) -> MetalObject:
    """A library compiled from Metal Shading Language source.

    version: "3.1" or an MTLLanguageVersion constant (default: the newest this macOS has). math: "safe", "relaxed" or
    "fast" (relaxed needs macOS 15). macros: names to numbers or strings. MetalError with the compiler's text on
    failure; a warning beside a good library is no failure.
    """
    if not isinstance(source, str):
        raise _bad("the source is a str, not %r" % type(source).__name__)
    device = _device(device)
    with MetalPool():
        options = _compile_options(version, math, macros) if version is not None or math is not None or macros else None
        return _given(device.newLibraryWithSource_options_error_(source, options), "library")


def _compile_options(version: str | int | None, math: str | None, macros: Mapping[str, Any] | None) -> MetalObject:
    mode = None if math is None else _constant_of("MTLMathMode", math)
    options = _new("MTLCompileOptions", LanguageVersion=None if version is None else _language(version),
                   PreprocessorMacros=dict(macros) if macros else None)
    if hasattr(options, "setMathMode_"):
        return _set(options, MathMode=mode)
    if mode == 1:       # MTLMathModeRelaxed
        raise _fail(ERROR_NOT_SUPPORTED, REASON_MACOS, "Metal", "relaxed math came with macOS 15")
    return _set(options, FastMathEnabled=None if mode is None else mode == 2)


def _language(version: str | int) -> int:
    if isinstance(version, int) and version >= 0:
        return version
    major, _, minor = str(version).partition(".")
    if not isinstance(version, str) or not major.isdigit() or not (minor or "0").isdigit():
        raise _bad("a language version looks like \"3.1\", not %r" % (version,))
    return int(major) << 16 | int(minor or 0)


def MetalLoad(path: str, device: MetalObject | None = None) -> MetalObject:
    """A library from a .metallib file. NotFound without the file, MetalError when Metal cannot use it."""
    with MetalPool():
        return _given(_device(device).newLibraryWithURL_error_(_file_url(_existing(path))), "library")


def _existing(path: str) -> str:
    if not os.path.isfile(os.fspath(path)):
        raise _fail(ERROR_NOT_FOUND, None, "Metal", "no such file: %s" % os.fspath(path))
    return os.fspath(path)


def _file_url(path: str) -> Any:
    return MetalClass("NSURL").fileURLWithPath_(os.path.abspath(os.fspath(path)))


def MetalFunctions(library: MetalObject) -> tuple[str, ...]:
    """Names of a library's functions."""
    _expect(library, "MTLLibrary")
    with MetalPool():
        return tuple(library.functionNames())


# What a function constant can be: MSL's name, which is MTLDataType's too, and struct's letter
_SCALARS = {"bool": "?", "int": "i", "uint": "I", "float": "f", "half": "e", "short": "h", "ushort": "H", "char": "b",
            "uchar": "B"}


def MetalFunction(library: MetalObject, name: str, constants: Mapping[int | str, Any] | None = None) -> MetalObject:
    """A function of a library, specialised when constants are given: {0: True, "tile": (16, "ushort")}. A bare bool,
    int or float is MSL's bool, int or float. NotFound for an unknown name, MetalError when specialising fails."""
    _expect(library, "MTLLibrary")
    with MetalPool():
        if name not in library.functionNames():
            raise _fail(ERROR_NOT_FOUND, None, "Metal", "the library has no function %r; it has %s"
                        % (name, ", ".join(library.functionNames()) or "none"))
        if not constants:
            return _given(library.newFunctionWithName_(name), "function")
        if not hasattr(constants, "items"):
            raise _bad("constants are {index or name: value}, not %.80r" % (constants,))
        values = _new("MTLFunctionConstantValues")
        for key, value in constants.items():
            by, key = ("withName:", key) if isinstance(key, str) else ("atIndex:", _whole(key, 0, 65535, "an index"))
            MetalSend(values, "setConstantValue:type:" + by, *_constant(value), key)
        return _given(library.newFunctionWithName_constantValues_error_(name, values), "function")


def _constant(value: Any) -> tuple[bytes, int]:
    kind = "bool" if isinstance(value, bool) else "int" if isinstance(value, int) else "float"
    if isinstance(value, tuple) and len(value) == 2:
        value, kind = value
    if kind not in _SCALARS:
        raise _bad("a constant's type is one of %s, not %r" % (", ".join(_SCALARS), kind))
    try:
        return struct.pack("=" + _SCALARS[kind], value), _constant_of("MTLDataType", kind)
    except (struct.error, OverflowError):
        raise _bad("%r is no %s" % (value, kind)) from None


def _expect_function(function: MetalObject, kind: str) -> MetalObject:
    if _expect(function, "MTLFunction").functionType() != _constant_of("MTLFunctionType", kind):
        raise _bad("%s is no %s function" % (function.name(), kind))
    return function


def MetalPipeline(function: MetalObject, *, label: str | None = None, max_threads: int | None = None,
                  indirect: bool = False) -> MetalObject:
    """A compute pipeline of a kernel function. max_threads: the largest threadgroup you will use (more registers for
    each thread when small); indirect: usable from indirect command buffers. MetalError with Metal's text on failure."""
    device = _expect_function(function, "kernel").device()
    with MetalPool():
        if label is None and max_threads is None and not indirect:
            return _given(device.newComputePipelineStateWithFunction_error_(function), "pipeline")
        most = device.maxThreadsPerThreadgroup().width
        descriptor = _new("MTLComputePipelineDescriptor", ComputeFunction=function, Label=label,
                          SupportIndirectCommandBuffers=indirect or None, MaxTotalThreadsPerThreadgroup=None
                          if max_threads is None else _whole(max_threads, 1, most, "max_threads"))
        return _given(device.newComputePipelineStateWithDescriptor_options_reflection_error_(descriptor, 0, None),
                     "pipeline")


def MetalKernel(source: str, name: str, device: MetalObject | None = None, *,
                constants: Mapping[int | str, Any] | None = None, **options: Any) -> MetalObject:
    """MetalCompile, MetalFunction and MetalPipeline in one: the pipeline of kernel `name` in `source`."""
    return MetalPipeline(MetalFunction(MetalCompile(source, device, **options), name, constants))


def MetalPipelineInfo(pipeline: MetalObject) -> MetalPipelineLimits:
    """Limits of a compute pipeline; asked once per pipeline."""
    _expect(pipeline, "MTLComputePipelineState")
    if pipeline._facts is None:
        pipeline._facts = MetalPipelineLimits(*[_ask(pipeline._pointer, name) for name in (
            "maxTotalThreadsPerThreadgroup", "threadExecutionWidth", "staticThreadgroupMemoryLength")])
    limits: MetalPipelineLimits = pipeline._facts
    return limits


# ---- buffers

_PAGE = 16384               # of Apple silicon; a multiple of Intel's


def MetalBuffer(data: Any, device: MetalObject | None = None, *, mode: str = "shared", copy: bool = True,
                label: str | None = None) -> MetalObject:
    """A buffer of `data` bytes (an int), or with the content of bytes, bytearray, memoryview, array or NumPy array.

    copy=False uses the caller's memory itself: it must be writable, start on a page and fill whole pages (MetalPages
    makes such memory), and is kept alive until Metal is done. mode: "shared"; "private", the GPU's alone: fill it with
    MetalEncodeCopy; "managed", of GPUs with memory of their own. InvalidArgument for a length of 0, one over
    maxBufferLength, or memory that does not fit copy=False; Memory when Metal has no room.
    """
    device, options = _device(device), _storage(mode, 2) << 4
    with MetalPool():
        if hasattr(data, "__index__") and not isinstance(data, bool) and not getattr(data, "shape", ()):
            buffer = device.newBufferWithLength_options_(_checked_length(device, data), options)
        elif not copy:
            buffer = _borrow(device, data, options)
        elif options == 32:
            raise _bad("a private buffer takes no data: the CPU cannot reach it; fill it with MetalEncodeCopy")
        else:
            view = _bytes_of(data)
            buffer = device.newBufferWithBytes_length_options_(view, _checked_length(device, len(view)), options)
        return _given(buffer, "buffer of this size", label)


def _storage(mode: str | int, most: int) -> int:
    """An MTLStorageMode (0 shared, 1 managed, 2 private, 3 memoryless, up to `most`), or the resource option of one."""
    code = 0 if mode == "shared" else _constant_of("MTLStorageMode", mode)
    code = code >> 4 if code in (16, 32, 48) else code
    if code > most:
        raise _bad("%r is no mode here; only a texture can be memoryless" % (mode,))
    return code


def _checked_length(device: MetalObject, length: Any) -> int:
    return _whole(length, 1, device.maxBufferLength(), "the length of a buffer")


def _bytes_of(data: Any) -> Any:
    """A contiguous buffer of bytes of what has the buffer protocol."""
    try:
        view = memoryview(data)
    except (TypeError, ValueError):     # ValueError: NumPy, of a type that has no C type
        raise _bad("%s has no buffer of bytes: give bytes, an array.array or a NumPy array of numbers"
                   % type(data).__name__) from None
    if not view.c_contiguous:
        raise _bad("the data is not contiguous: copy it first (bytes(data), numpy.ascontiguousarray(data))")
    kinds = "".join(view.format.split(":")[::2])        # of a struct without the names of its members
    if "O" in kinds or ">" in kinds:
        raise _bad("the data holds %s: convert it first" % ("Python objects" if "O" in kinds else "big-endian numbers"))
    return view.cast("B") if view.nbytes else b""


def _borrow(device: MetalObject, data: Any, options: int) -> Any:
    """A buffer over the caller's own memory. A deallocator block holds the memory until Metal lets go of the buffer."""
    view = _bytes_of(data)
    if options or isinstance(view, bytes) or view.readonly:
        raise _bad("copy=False is for writable memory and mode shared")
    hold = (ctypes.c_ubyte * len(view)).from_buffer(view)
    address = ctypes.addressof(hold)
    if address % _PAGE or len(view) % _PAGE:
        raise _bad("copy=False needs memory that starts on a page and fills whole pages of %d bytes, not %d bytes that "
                   "start %d past a page; MetalPages makes it" % (_PAGE, len(view), address % _PAGE))
    _checked_length(device, len(view))
    keep: list[Any] = [hold]
    buffer = device.newBufferWithBytesNoCopy_length_options_deallocator_(
        address, len(view), 0, lambda pointer, length: keep.clear())
    if buffer is not None and buffer.length() != len(view):     # seen in virtual machines (actions/runner-images 10663)
        raise _fail(ERROR_NOT_SUPPORTED, REASON_VIRTUAL_MACHINE, "Metal", "this device cannot borrow memory")
    return buffer


def MetalPages(length: int) -> memoryview:
    """Zeroed memory for MetalBuffer(copy=False): whole pages, `length` rounded up; NumPy can view it."""
    import mmap
    size = -(-_whole(length, 1, 1 << 48, "a length") // _PAGE) * _PAGE
    area = mmap.mmap(-1, size + _PAGE)
    start = -ctypes.addressof(ctypes.c_char.from_buffer(area)) % _PAGE
    return memoryview(area)[start:start + size]


def _span(buffer: MetalObject) -> tuple[int, int]:
    """(length, address for the CPU or 0) of a buffer; asked once."""
    _expect(buffer, "MTLBuffer")        # other classes keep other facts
    facts = buffer._facts
    if facts is None:
        facts = buffer._facts = (_ask(buffer._pointer, "length"), _ask(buffer._pointer, "contents") or 0)
    span: tuple[int, int] = facts
    return span


def MetalContents(buffer: MetalObject, format: str = "B") -> memoryview:
    """The buffer's memory itself, writable, as a memoryview of a struct format ("B" bytes, "f" float, "I" uint, ...);
    it keeps the buffer alive, and np.frombuffer(view, dtype) shares it. InvalidArgument for a private buffer."""
    length, address = _span(buffer)
    if not address:
        raise _bad("a private buffer is not in the CPU's reach: copy it to a shared one with MetalEncodeCopy")
    memory: Any = (ctypes.c_ubyte * length).from_address(address)
    memory.buffer = buffer
    view: Any = memoryview(memory).cast("B")
    try:
        size = struct.calcsize(format)
        return view if format == "B" else view[:length // size * size].cast(format)     # type: ignore[no-any-return]
    except (struct.error, TypeError, ValueError, ZeroDivisionError):
        raise _bad("a format is one letter of struct's that memoryview knows (\"f\" float, \"I\" uint, \"h\" short), "
                   "not %.80r" % (format,)) from None


def MetalRead(buffer: MetalObject, offset: int = 0, length: int | None = None) -> bytes:
    """A copy of bytes of a shared buffer; InvalidArgument outside of it."""
    view = MetalContents(buffer)
    start, length = _in_buffer(len(view), offset, length)
    return bytes(view[start:start + length])


def MetalWrite(buffer: MetalObject, data: Any, offset: int = 0) -> None:
    """Copy bytes into a shared buffer; InvalidArgument outside of it."""
    view, source = MetalContents(buffer), _bytes_of(data)
    start, length = _in_buffer(len(view), offset, len(source))
    view[start:start + length] = source


def _in_buffer(size: int, offset: Any, length: Any) -> tuple[int, int]:
    """(offset, length) of a piece that lies in a buffer, as ints that a raw send takes; None is the rest of it."""
    try:
        start = offset.__index__()
        piece = size - start if length is None else length.__index__()
        if 0 <= start <= start + piece <= size:
            return start, piece
    except (AttributeError, TypeError):
        pass
    what = "the bytes" if length is None else "%.80r bytes" % (length,)
    raise _bad("%s at %.80r do not lie in a buffer of %d" % (what, offset, size))


# ---- work: recorded, checked at once, and sent to Metal in one go by MetalCommit

def MetalDispatch(pipeline: MetalObject, threads: int | Sequence[int] | None, *arguments: Any,
                  queue: MetalObject | None = None, timeout: float | None = None, **options: Any) -> MetalWork:
    """Run a kernel once and wait for it: MetalBegin, MetalEncodeDispatch, MetalCommit and MetalWait in one. The
    arguments and errors are those of MetalEncodeDispatch and MetalWait."""
    work = MetalBegin(_queue(_expect(pipeline, "MTLComputePipelineState").device()) if queue is None else queue)
    MetalEncodeDispatch(work, pipeline, threads, *arguments, **options)
    return MetalWait(MetalCommit(work), timeout)


class MetalWork:
    """Commands for one command buffer. Nothing reaches Metal before MetalCommit, so a work that is dropped costs
    nothing and leaves no open encoder (which Metal aborts on)."""
    __slots__ = ("queue", "label", "profile", "operations", "command_buffers", "committed_ns", "finished_ns", "samples",
                 "labels")

    def __init__(self, queue: MetalObject, label: str | None, profile: bool) -> None:
        self.queue, self.label, self.profile = queue, label, profile
        self.operations: list[tuple[Any, ...]] = []
        self.command_buffers: list[MetalObject] = []
        self.committed_ns = self.finished_ns = 0
        self.samples: Any = None            # (counter sample buffer, calibration before)
        self.labels: list[str] = []


def MetalBegin(queue: MetalObject | None = None, *, label: str | None = None, profile: bool = False) -> MetalWork:
    """A new work for a queue (default: the default device's own queue). profile: each dispatch gets an encoder of its
    own and is timed (MetalDispatchTimes)."""
    queue = _queue(MetalDevice()) if queue is None else _expect(queue, "MTLCommandQueue")
    return MetalWork(queue, _named(label), profile)


def _named(label: str | None) -> str | None:
    if label is not None and not isinstance(label, str):
        raise _bad("a label is a str, not %.80r" % (label,))
    return label


def _work(work: Any) -> MetalWork:
    if not isinstance(work, MetalWork):
        raise _bad("a work of MetalBegin is wanted, not %r" % (work,))
    return work


def _add_to(work: MetalWork, *operation: Any) -> None:
    if _work(work).committed_ns:
        raise _bad("this work was committed: begin a new one")
    work.operations.append(operation)


def MetalEncodeDispatch(work: MetalWork, pipeline: MetalObject, threads: int | Sequence[int] | None, *arguments: Any,
                        group: int | Sequence[int] | None = None, groups: int | Sequence[int] | None = None,
                        memory: Sequence[int] = (), textures: Sequence[MetalObject] = (),
                        uses: Sequence[MetalObject] = (), wait: Sequence[MetalObject] = (),
                        update: MetalObject | None = None, label: str | None = None) -> None:
    """Record one run of a kernel.

    threads: the grid in threads, one to three numbers; or None with `groups`, the grid in threadgroups. group: threads
    per threadgroup; by default up to 256 in the shape of the grid. arguments: for [[buffer(0)]] and up: a buffer,
    (buffer, offset), None to leave one out, or a value, which only travels to the GPU: int (32 bits), float (32 bits),
    bool, or up to 4,096 bytes. memory: bytes of [[threadgroup(i)]] arguments. uses: resources reached through argument
    buffers. wait, update: fences. InvalidArgument for whatever Metal would abort on: an empty grid, a threadgroup over
    the pipeline's limit, more memory than a threadgroup has, an offset outside a buffer, more than 31 arguments.
    """
    limits = MetalPipelineInfo(pipeline)
    by_threads = groups is None
    grid = _size(threads if by_threads else groups, "grid")
    if not by_threads and threads is not None:
        raise _bad("give the grid in threads or in groups, not both: threads is None beside groups=")
    block = _group(grid, limits, by_threads) if group is None else _size(group, "threadgroup")
    if block[0] * block[1] * block[2] > limits.max_threads:
        raise _bad("a threadgroup of %d x %d x %d has more than the %d threads this pipeline allows"
                   % (*block, limits.max_threads))
    if update is not None:
        _expect(update, "MTLFence")
    lengths = _check_memory(_work(work), limits, memory)
    size = _struct("MTLSize")
    _add_to(work, "dispatch", pipeline, _bindings(arguments), size(*grid), size(*block), by_threads, lengths,
            _expect_all(textures, "MTLTexture", 128), _expect_all(uses, "MTLResource"), _expect_all(wait, "MTLFence"),
            update, _named(label))


def _size(value: Any, what: str) -> tuple[int, int, int]:
    """A grid or threadgroup as three numbers of at least 1."""
    try:
        parts = [part.__index__() for part in (value if isinstance(value, (tuple, list)) else (value,))]
    except (AttributeError, TypeError):
        parts = []
    if not 1 <= len(parts) <= 3 or min(parts) < 1 or max(parts) >= 1 << 32:
        raise _bad("a %s is one to three whole numbers greater than 0, not %.80r" % (what, value))
    width, height, depth = (*parts, 1, 1)[:3]
    return width, height, depth


def _group(grid: tuple[int, int, int], limits: MetalPipelineLimits, by_threads: bool) -> tuple[int, int, int]:
    """A threadgroup for a grid: whole SIMD groups, 256 threads where the pipeline allows them."""
    most = min(256, limits.max_threads)
    if not by_threads:
        raise _bad("a grid in groups needs the size of a group (group=)")
    if grid[1] == grid[2] == 1:
        return min(most, grid[0]), 1, 1
    width = min(limits.simd_width, grid[0], most)
    height = min(max(most // width, 1), grid[1])
    return width, height, min(max(most // (width * height), 1), grid[2])


def _check_memory(work: MetalWork, limits: MetalPipelineLimits, memory: Sequence[int]) -> tuple[int, ...]:
    """The same as ints that a raw send takes."""
    if memory.__class__ is tuple and not memory:
        return ()
    try:
        lengths = tuple([length.__index__() for length in memory])
    except (AttributeError, TypeError):
        lengths = (0,)
    if not all(length > 0 and length % 16 == 0 for length in lengths):
        raise _bad("threadgroup memory is a list of bytes, each a multiple of 16, not %.80r" % (memory,))
    wanted, most = limits.threadgroup_memory_bytes + sum(lengths), work.queue.device().maxThreadgroupMemoryLength()
    if wanted > most:
        raise _bad("%d bytes of threadgroup memory, %d are there" % (wanted, most))
    return lengths


def _bindings(values: Sequence[Any]) -> list[tuple[Any, ...]]:
    if not isinstance(values, (list, tuple)) or len(values) > 31:
        raise _bad("a function takes a list of at most 31 buffers and values, not %.80r" % (values,))
    return [_argument(n, value) for n, value in enumerate(values) if value is not None]


def _argument(index: int, value: Any) -> tuple[Any, ...]:
    """(index, object, pointer, offset) for a buffer, (index, bytes) for a value; an error says which argument it is."""
    offset: Any = 0
    try:
        if type(value) is tuple and len(value) == 2 and isinstance(value[0], MetalObject):
            value, offset = value
        if isinstance(value, MetalObject):
            length, start = _span(value)[0], offset.__index__() if hasattr(offset, "__index__") else -1
            if not 0 <= start < length:
                raise _bad("the offset %r is not inside a buffer of %d bytes" % (offset, length))
            return index, value, value._pointer, start
        if isinstance(value, (int, float)):
            letter = "?" if isinstance(value, bool) else "f" if isinstance(value, float) else "i" if value < 0 else "I"
            return index, struct.pack("=" + letter, value)
        data = bytes(_bytes_of(value))
        if not 0 < len(data) <= 4096:
            raise _bad("1 to 4096 bytes go by value, not %d; make a MetalBuffer" % len(data))
        return index, data
    except (struct.error, OverflowError):
        raise _bad("argument %d: %r does not fit 32 bits; pass the bytes of the type that the kernel declares"
                   % (index, value)) from None
    except NVMLError_InvalidArgument as error:
        hint = "; textures= takes textures" if not _gone(value) and _conforms(value, "MTLTexture") else ""
        raise _bad("argument %d: %s%s" % (index, error.detail, hint)) from None


def MetalEncodeCopy(work: MetalWork, source: MetalObject, target: MetalObject, length: int | None = None, *,
                    source_offset: int = 0, target_offset: int = 0) -> None:
    """Record a copy between buffers on the GPU, private ones too; offsets and length in bytes, multiples of 4.
    InvalidArgument outside of either buffer."""
    source_offset, length = _in_buffer(_span(source)[0], source_offset, length)
    target_offset, length = _in_buffer(_span(target)[0], target_offset, length)
    if (source_offset | target_offset | length) % 4 or not length:     # macOS aborts on others
        raise _bad("a GPU copy has offsets and a length that are multiples of 4, and is not empty")
    _add_to(work, "blit", "copyFromBuffer:sourceOffset:toBuffer:destinationOffset:size:", source, source_offset, target,
            target_offset, length)


def MetalEncodeFill(work: MetalWork, buffer: MetalObject, value: int, offset: int = 0,
                    length: int | None = None) -> None:
    """Record filling bytes of a buffer with one byte value; offset and length are multiples of 4."""
    offset, length = _in_buffer(_span(buffer)[0], offset, length)
    value = _whole(value, 0, 255, "a fill's value")
    if (offset | length) % 4 or not length:
        raise _bad("a fill has an offset and a length that are multiples of 4, and is not empty")
    _add_to(work, "blit", "fillBuffer:range:value:", buffer, _struct("NSRange")(offset, length), value)


_ENCODER_KINDS = {"compute": "computeCommandEncoder", "blit": "blitCommandEncoder",
                  "render": "renderCommandEncoderWithDescriptor:",
                  "parallel": "parallelRenderCommandEncoderWithDescriptor:",
                  "acceleration": "accelerationStructureCommandEncoder",
                  "resource state": "resourceStateCommandEncoder"}


def MetalEncode(work: MetalWork, kind: str, function: Callable[[MetalObject], object],
                target: MetalObject | None = None) -> None:
    """Record anything else: MetalCommit calls `function` with an encoder ("compute", "blit", "acceleration",
    "resource state"; "render" or "parallel" with `target`, a render pass; "none": the command buffer) and ends the
    encoder whatever happens. MetalEncode(work, "blit", lambda e: e.generateMipmapsForTexture_(texture))."""
    if kind not in _ENCODER_KINDS and kind != "none" or not callable(function):
        raise _bad("kind is one of %s, none, and a function is wanted" % ", ".join(_ENCODER_KINDS))
    if (target is not None) != (kind in ("render", "parallel")):
        raise _bad("a render pass goes with kind \"render\" and \"parallel\"")
    arguments = (_expect(target, "MTLRenderPassDescriptor"),) if target is not None else ()
    _add_to(work, _encode_with, _ENCODER_KINDS.get(kind), arguments, function)


def _encode_with(buffer: int, selector: str | None, arguments: Sequence[Any],
                 function: Callable[[Any], object]) -> None:
    if selector is None:
        function(_wrap(buffer))
        return
    encoder: Any = None
    try:        # as in _encode: no Ctrl-C leaves it open
        create, key = _opener(buffer, selector)
        encoder = create(buffer, key, *[one._pointer for one in arguments])
        if not encoder.value:
            raise _fail(ERROR_MEMORY, None, "Metal", "Metal makes no encoder")
        function(_wrap(encoder.value))
    finally:
        try:
            if encoder is not None and encoder.value:
                (end, key), pointer, encoder.value = encoder.end, encoder.value, None
                end(pointer, key)
        finally:
            encoder = None


def MetalEncodeSignal(work: MetalWork, event: MetalObject, value: int) -> None:
    """Record: when the work so far is done, set an event to `value` (64 bits)."""
    value = _whole(value, 0, _U64, "an event's 64-bit value")
    _add_to(work, "", "encodeSignalEvent:value:", _expect(event, "MTLEvent"), value)


def MetalEncodeWait(work: MetalWork, event: MetalObject, value: int) -> None:
    """Record: what follows starts when an event has reached `value`."""
    value = _whole(value, 0, _U64, "an event's 64-bit value")
    _add_to(work, "", "encodeWaitForEvent:value:", _expect(event, "MTLEvent"), value)


def MetalCommit(work: MetalWork, then: Callable[[MetalObject], object] | None = None) -> MetalWork:
    """Encode the recorded commands and commit them; returns at once. `then` is called with the MTLCommandBuffer when it
    is done, on a thread of Metal's; what it raises goes to sys.unraisablehook. Returns the work, for MetalWait."""
    if not isinstance(work, MetalWork) or work.committed_ns:
        _work(work)         # raises when it is none
        raise _bad("this work was committed already")
    runtime = _runtime or _objc()
    token = runtime.push()
    try:
        parts, samples = _plan(work) if work.profile else ([work.operations], None)
        for operations in parts:
            queue = work.queue._pointer
            function, key = runtime.sends.get("commandBuffer") or _learn(queue, "commandBuffer")
            pointer = function(queue, key)
            if not pointer:
                raise _fail(ERROR_MEMORY, None, "Metal", "Metal makes no further command buffer")
            buffer = _wrap(pointer)
            if work.label is not None:
                buffer.setLabel_(work.label)
            _encode(pointer, operations, samples)
            if then is not None and operations is parts[-1]:
                buffer.addCompletedHandler_(then)
            function, key = runtime.sends.get("commit") or _learn(pointer, "commit")
            work.committed_ns = work.committed_ns or _host_ns()
            function(pointer, key)          # at once: a queue has 64, and waits for ever when none of them is committed
            work.command_buffers.append(buffer)
        work.operations = []
    finally:
        runtime.pop(token)
    return work


def _host_ns() -> int:
    """Mach time in nanoseconds, the clock of Metal's own stamps."""
    return time.clock_gettime_ns(getattr(time, "CLOCK_UPTIME_RAW"))


def _plan(work: MetalWork) -> tuple[list[list[tuple[Any, ...]]], Any]:
    """How a profiled work becomes command buffers: one; or, without usable counters, one per dispatch."""
    dispatches = [op for op in work.operations if op[0] == "dispatch"]
    if not dispatches:
        return [work.operations], None
    work.labels = [op[-1] or op[1].label() or "dispatch %d" % n for n, op in enumerate(dispatches)]
    work.samples = _samples(work.queue.device(), 2 * len(dispatches))
    if work.samples is not None:
        return [work.operations], work.samples[0]
    parts: list[list[tuple[Any, ...]]] = [[]]
    for op in work.operations:
        if op[0] == "dispatch" and any(other[0] == "dispatch" for other in parts[-1]):
            parts.append([])
        parts[-1].append(op)
    return parts, None


_ENCODERS = {"dispatch": "computeCommandEncoder", "blit": "blitCommandEncoder"}


def _encode(buffer: int, operations: list[tuple[Any, ...]], samples: Any) -> None:
    """Send recorded commands to a command buffer, with plain pointers. Dispatches in a row share an encoder, which runs
    them in order; profiled ones each have their own."""
    sends, encoder = (_runtime or _objc()).sends, None
    opened, count, memory, pointer = None, 0, (), 0
    try:
        for op in operations:
            wanted = _ENCODERS.get(op[0])
            if encoder is not None and (wanted != opened or samples is not None or op[0] == "dispatch" and (
                    op[9] or op[10] or memory not in ((), op[6]))):     # fences; memory that the encoder would keep
                (end, key), encoder.value = encoder.end, None       # nothing can interrupt between this and the call
                end(pointer, key)
                encoder = None
            if wanted is not None and encoder is None:
                if samples is not None and op[0] == "dispatch":
                    encoder = _open_timed(buffer, samples, count)
                else:
                    create, key = sends.get(wanted) or _opener(buffer, wanted)
                    encoder = create(buffer, key)
                pointer = encoder.value
                if not pointer:
                    raise _fail(ERROR_MEMORY, None, "Metal", "Metal makes no encoder")
            opened = wanted
            if op[0] == "dispatch":
                _encode_dispatch(pointer, op)
                count, memory = count + 1, op[6]
            elif callable(op[0]):
                op[0](buffer, *op[1:])
            else:
                _ask(pointer if wanted else buffer, op[1],
                      *[one._pointer if isinstance(one, MetalObject) else one for one in op[2:]])
    finally:
        try:
            if encoder is not None and encoder.value:
                (end, key), pointer, encoder.value = encoder.end, encoder.value, None
                end(pointer, key)
        finally:        # when Ctrl-C comes in the lines above, its owner ends the encoding here, before the pool goes;
            encoder = None      # in line, as a function's frame would live on in the traceback and hold the owner


def _open_timed(buffer: int, samples: Any, count: int) -> Any:
    """The owner of an encoder with timestamps around dispatch number `count`."""
    descriptor = MetalClass("MTLComputePassDescriptor").computePassDescriptor()
    _set(descriptor.sampleBufferAttachments()[0], SampleBuffer=samples, StartOfEncoderSampleIndex=2 * count,
         EndOfEncoderSampleIndex=2 * count + 1)
    create, key = _opener(buffer, "computeCommandEncoderWithDescriptor:")
    return create(buffer, key, descriptor._pointer)


def _opener(buffer: int, selector: str) -> Any:
    """The send that opens an encoder. Its result (of 0, when Metal makes none) is an owner made by ctypes itself, which
    ends the encoding when it is dropped: Metal aborts the process over an encoder let go while open, and Ctrl-C can
    come as the call returns."""
    sends = _objc().sends
    if selector not in sends:
        end, key = _prototype((_Type("v"),)), _selector_of(b"endEncoding")
        owner = _c.owned(ctypes.c_void_p, lambda encoder: end(encoder.value, key))
        owner.end = end, key
        sends[selector] = _prepare(buffer, selector, owner)
    return sends[selector]


_HOT = ("setComputePipelineState: setBuffer:offset:atIndex: setBytes:length:atIndex: "
        "dispatchThreads:threadsPerThreadgroup: dispatchThreadgroups:threadsPerThreadgroup:")


def _encode_dispatch(encoder: int, op: tuple[Any, ...]) -> None:
    _, pipeline, bound, grid, block, by_threads, *rest = op
    (set_pipeline, pipeline_key, set_buffer, buffer_key, set_bytes, bytes_key, by_threads_send, threads_key,
     by_groups_send, groups_key) = (_runtime or _objc()).sends.get(_HOT) or _learn(encoder, _HOT)
    plain = rest == _PLAIN
    if not plain:
        _encode_before(encoder, *rest)
    set_pipeline(encoder, pipeline_key, pipeline._pointer)
    for one in bound:
        if len(one) == 4:
            number, buffer, _, offset = one
            set_buffer(encoder, buffer_key, buffer._pointer, offset, number)        # raises if released
        else:
            set_bytes(encoder, bytes_key, one[1], len(one[1]), one[0])
    if by_threads:
        by_threads_send(encoder, threads_key, grid, block)
    else:
        by_groups_send(encoder, groups_key, grid, block)
    if not plain:
        _encode_after(encoder, *rest[-2:])


_PLAIN = [(), (), (), (), None, None]       # most dispatches have none of memory, textures, uses, wait, update, label


def _encode_before(encoder: int, memory: Any, textures: Any, uses: Any, wait: Any, _: Any, label: str | None) -> None:
    for fence in wait:
        _ask(encoder, "waitForFence:", fence._pointer)      # raises if released, as all below
    if label is not None:
        text: Any = _make_object(label)
        _ask(encoder, "pushDebugGroup:", text._pointer)
    for index, length in enumerate(memory):
        _ask(encoder, "setThreadgroupMemoryLength:atIndex:", length, index)
    for index, texture in enumerate(textures):
        _ask(encoder, "setTexture:atIndex:", texture._pointer, index)
    for resource in uses:
        _ask(encoder, "useResource:usage:", resource._pointer, 3)      # MTLResourceUsageRead | MTLResourceUsageWrite


def _encode_after(encoder: int, update: Any, label: str | None) -> None:
    if label is not None:
        _ask(encoder, "popDebugGroup")
    if update is not None:
        _ask(encoder, "updateFence:", update._pointer)


def MetalWait(work: MetalWork, timeout: float | None = None) -> MetalWork:
    """Wait until a committed work is done. MetalError with Metal's text when the GPU failed, Timeout after `timeout`
    seconds (the work goes on). Other threads run meanwhile."""
    if not _work(work).committed_ns:
        raise _bad("this work was not committed: MetalCommit it first")
    end = None if timeout is None else time.monotonic() + timeout
    for buffer in work.command_buffers:
        if end is None:
            buffer.waitUntilCompleted()
        pause = 0.0002
        while end is not None and buffer.status() < 4:      # MTLCommandBufferStatusCompleted
            if time.monotonic() >= end:
                raise _fail(ERROR_TIMEOUT, None, "Metal", "the GPU is not done yet")
            time.sleep(pause)
            pause = min(2 * pause, 0.01)
    work.finished_ns = work.finished_ns or _host_ns()
    for buffer in work.command_buffers:
        if buffer.status() == 5:        # MTLCommandBufferStatusError
            with MetalPool():
                raise _failure(_ask(buffer._pointer, "error"), _selector_of(b"commit"))
    return work


# ---- events, fences, argument buffers, residency

def MetalEvent(device: MetalObject | None = None, *, shared: bool = True) -> MetalObject:
    """An event for MetalEncodeSignal and MetalEncodeWait; a shared one can be set and waited for by the CPU as well."""
    device = _device(device)
    return _given(device.newSharedEvent() if shared else device.newEvent(), "event")


def MetalEventSet(event: MetalObject, value: int) -> None:
    """Set a shared event from the CPU; a value below the present one is ignored by Metal."""
    _expect(event, "MTLSharedEvent")
    event.setSignaledValue_(_whole(value, 0, _U64, "an event's 64-bit value"))


def MetalEventWait(event: MetalObject, value: int, timeout: float | None = 60.0) -> None:
    """Wait on the CPU until a shared event has reached `value`; Timeout after `timeout` seconds, never when None."""
    _expect(event, "MTLSharedEvent")
    value = _whole(value, 0, _U64, "an event's 64-bit value")
    end = float("inf") if timeout is None else time.monotonic() + timeout
    wait = getattr(event, "waitUntilSignaledValue_timeoutMS_", None)        # macOS 12
    while event.signaledValue() < value:
        left = end - time.monotonic()
        if left <= 0:
            raise _fail(ERROR_TIMEOUT, None, "Metal", "the event has not reached %d" % value)
        if wait is not None:
            wait(value, max(int(min(left, 0.1) * 1000), 1))     # in slices: Ctrl-C is seen between them
        else:
            time.sleep(min(left, 0.002))


def MetalFence(device: MetalObject | None = None) -> MetalObject:
    """A fence: `update=fence` of one dispatch, `wait=[fence]` of a later one. Needed only for resources whose hazards
    Metal does not track (heaps, argument buffers, MTLHazardTrackingModeUntracked)."""
    return _given(_device(device).newFence(), "fence")


def MetalArgumentBuffer(function: MetalObject, index: int, values: Mapping[int, Any]) -> MetalObject:
    """A buffer for a struct argument `constant Arguments &a [[buffer(index)]]`: member [[id(n)]] -> a buffer, (buffer,
    offset), a texture, a sampler (made with argument=True), or a value as in MetalEncodeDispatch. Name its buffers and
    textures in `uses` of the dispatch. What a member is Metal does not tell: a wrong kind is not found here."""
    _expect(function, "MTLFunction")
    _whole(index, 0, 30, "an argument index")
    if not hasattr(values, "items"):
        raise _bad("the members are {id: value}, not %.80r" % (values,))
    with MetalPool():
        encoder = function.newArgumentEncoderWithBufferIndex_(index)
        if encoder is None:
            raise _bad("argument %d of %s is no struct of arguments" % (index, function.name()))
        buffer = MetalBuffer(encoder.encodedLength(), function.device())
        encoder.setArgumentBuffer_offset_(buffer, 0)
        for number, value in values.items():
            _whole(number, 0, (1 << 32) - 1, "a member's number")
            if _conforms(value, "MTLTexture"):
                encoder.setTexture_atIndex_(value, number)
            elif _conforms(value, "MTLSamplerState"):
                encoder.setSamplerState_atIndex_(value, number)
            else:
                _, what, *where = _argument(number, value)
                if where:
                    encoder.setBuffer_offset_atIndex_(what, where[1], number)
                    continue
                at = (encoder.constantDataAtIndex_(number) or 0) - _span(buffer)[1]
                if not 0 <= at <= _span(buffer)[0] - len(what):     # it would write over other memory
                    raise _bad("member %d has no room for %d bytes in a struct of %d"
                               % (number, len(what), _span(buffer)[0]))
                MetalWrite(buffer, what, at)
    return buffer


def MetalResidencySet(objects: Sequence[MetalObject], device: MetalObject | None = None, *, label: str | None = None,
                      queue: MetalObject | None = None) -> MetalObject:
    """A residency set of buffers, textures or heaps, made resident now and, with `queue`, for all of a queue's work.
    NotSupported before macOS 15."""
    device = _device(device)
    if not hasattr(device, "newResidencySetWithDescriptor_error_"):
        raise _fail(ERROR_NOT_SUPPORTED, REASON_MACOS, "Metal", "residency sets came with macOS 15")
    with MetalPool():
        made = device.newResidencySetWithDescriptor_error_(_new("MTLResidencySetDescriptor", Label=label))
        for one in _expect_all(objects, "MTLAllocation"):
            made.addAllocation_(one)
        made.commit()
        made.requestResidency()
        if queue is not None:
            _expect(queue, "MTLCommandQueue").addResidencySet_(made)
    return _given(made, "residency set")


# ---- timing

def MetalTimes(work: MetalWork) -> MetalTiming:
    """Where the time of a finished work went, in seconds. NotReady before MetalWait has returned."""
    if not _work(work).finished_ns:
        raise _fail(ERROR_NOT_READY, REASON_FIRST, "Metal", "wait for the work first (MetalWait)")
    first, last = work.command_buffers[0], work.command_buffers[-1]
    with MetalPool():
        kernel_start, gpu_start = first.kernelStartTime(), first.GPUStartTime()
        kernel_end, gpu_end = first.kernelEndTime(), last.GPUEndTime()
    commit, done = work.committed_ns * 1e-9, work.finished_ns * 1e-9
    return MetalTiming(_between(gpu_start, gpu_end), _between(kernel_start, kernel_end), _between(commit, kernel_start),
                       _between(kernel_end, gpu_start), _between(gpu_end, done), _between(commit, done))


def _between(start: float, end: float) -> float | None:
    """Seconds from one stamp to the next; None when one is missing (0.0) or the clocks do not agree."""
    return end - start if start and end and end >= start else None


def _samples(device: MetalObject, count: int) -> Any:
    """(counter sample buffer, (cpu, gpu) stamps) for `count` stage-boundary timestamps, or None where that cannot be
    had: no such point or set, too many, all 32 of the process in use, or counters that gave nothing before."""
    if _objc().dead_counters or 8 * count > 32768 or not hasattr(device, "supportsCounterSampling_"):
        return None
    if not device.supportsCounterSampling_(0):      # MTLCounterSamplingPointAtStageBoundary, the one Apple GPUs have
        return None
    for one in device.counterSets() or ():
        if one.name() == "timestamp":
            wanted = _new("MTLCounterSampleBufferDescriptor", CounterSet=one, SampleCount=count, StorageMode=0)
            try:
                return device.newCounterSampleBufferWithDescriptor_error_(wanted), _stamps(device)
            except MetalError:
                return None
    return None


def _stamps(device: MetalObject) -> tuple[int, int]:
    cpu, gpu = ctypes.c_uint64(), ctypes.c_uint64()
    device.sampleTimestamps_gpuTimestamp_(cpu, gpu)
    return cpu.value, gpu.value


def MetalDispatchTimes(work: MetalWork) -> tuple[MetalDispatchTime, ...]:
    """GPU time of each dispatch of a work begun with profile=True and waited for.

    From timestamp counters at the edges of each dispatch's encoder. A counter of 0 or 2^64-1 is no sample (macOS 26
    gives only zeros on some Macs): then the figure is None, and later works are timed with a command buffer per
    dispatch, as on devices without counters.
    """
    if not _work(work).profile or not work.finished_ns:
        raise _bad("begin the work with profile=True, and wait for it (MetalWait)")
    count = len(work.labels)
    with MetalPool():
        if work.samples is None:
            return tuple(map(_buffer_time, work.labels, work.command_buffers))
        data = bytes(work.samples[0].resolveCounterRange_((0, 2 * count)) or b"")
        period = _period(work.samples[1], _stamps(work.queue.device()))
    stamps = [*struct.unpack("=%dQ" % (len(data) // 8), data), *[0] * 2 * count]
    times = [MetalDispatchTime(name, (end - start) * period * 1e-9, "counters") if 0 < start <= end < _U64
             else MetalDispatchTime(name, None, "the counters gave no sample; profile again")
             for name, start, end in zip(work.labels, stamps[::2], stamps[1::2])]
    if any(one.seconds is None for one in times):
        _objc().dead_counters = True
        return tuple(map(_buffer_time, work.labels, work.command_buffers)) if count == 1 else tuple(times)
    return tuple(times)


def _buffer_time(name: str, buffer: MetalObject) -> MetalDispatchTime:
    seconds = _between(buffer.GPUStartTime(), buffer.GPUEndTime())
    return MetalDispatchTime(name, seconds, "Metal gave no GPU times" if seconds is None else "command buffer")


def _period(before: tuple[int, int], after: tuple[int, int]) -> float:
    """Nanoseconds per GPU tick. 1 on Apple GPUs; elsewhere (83.333 on Intel) two pairs of stamps tell."""
    cpu, gpu = after[0] - before[0], after[1] - before[1]
    rate = cpu / gpu if cpu > 0 and gpu > 0 else 1.0
    return 1.0 if 0.9 < rate < 1.1 else rate


def MetalCompare(a: Callable[[], MetalWork], b: Callable[[], MetalWork], n: int = 30,
                 warmup: int = 3) -> MetalComparison:
    """Time two pieces of work against each other: each is a function that returns a new work (committed or not). They
    run in turn, `warmup` times unmeasured and n (6 or more) times measured; the verdict is by the confidence interval
    of the ratio, and is "no difference shown" when that contains 1."""
    _whole(n, 6, 1 << 20, "n (fewer than 6 runs give no confidence interval)")
    _whole(warmup, 0, 1 << 20, "warmup")
    if not callable(a) or not callable(b):
        raise _bad("a and b are functions that return a new work, not %.80r and %.80r" % (a, b))
    times: tuple[list[MetalTiming], list[MetalTiming]] = [], []
    last: list[Any] = [None, None]
    for turn in range(warmup + n):
        for side in (0, 1) if turn % 2 else (1, 0):
            work = (a, b)[side]()
            if not isinstance(work, MetalWork) or work is last[side]:
                raise _bad("the function must return a work of MetalBegin, and a new work each time, not %r" % (work,))
            last[side] = MetalWait(work if work.committed_ns else MetalCommit(work))
            if turn >= warmup:
                times[side].append(MetalTimes(work))
    clock = "gpu" if all(t.gpu_s for t in times[0] + times[1]) else "host"
    mine, other = ([(t.gpu_s if clock == "gpu" else t.total_s) or 0.0 for t in one] for one in times)
    return _compare(mine, other, clock)


def _compare(a: Sequence[float], b: Sequence[float], clock: str) -> MetalComparison:
    """The statistics of paired times. Order statistics of the ratios: the median lies between the k-th smallest and the
    k-th largest with a probability that only counts, whatever the distribution."""
    from statistics import quantiles
    ratios, n = sorted(y / x if x else float("inf") for x, y in zip(a, b)), len(a)
    k, confidence = _rank(n)
    low, high = ratios[k - 1], ratios[n - k]
    verdict = "a is quicker" if low > 1 else "b is quicker" if high < 1 else "no difference shown"
    (a1, a2, a3), (b1, b2, b3), (_, ratio, _) = (quantiles(one, method="inclusive") for one in (a, b, ratios))
    return MetalComparison(n, a2, b2, a3 - a1, b3 - b1, ratio, low, high, confidence, clock, verdict)


def _rank(n: int) -> tuple[int, float]:
    """(k, coverage): the largest k with P(k-th smallest < median < k-th largest) of 95 % or more, for n values."""
    below, term, k = 0, 1, 0        # of 2 ** n ways: whole numbers, since 0.5 ** 1100 is 0.0
    while 40 * (below + term) <= 1 << n or not k:
        below, k = below + term, k + 1
        term = term * (n - k + 1) // k
    return k, 1 - 2 * below / (1 << n)


# ---- textures
# An option that is one of Apple's constants is its name without the prefix ("lessEqual", "RGBA8Unorm") or the constant.
# What has no function here is a send away, inside MetalEncode where it needs an encoder.

# Start of the name: bytes, width and height of a block. What is not here has its channels and their bits in its name.
_BLOCKS_OF = (
    "B5G6R5 2 1 1;A1BGR5 2 1 1;ABGR4 2 1 1;BGR5A1 2 1 1;RGB10A2 4 1 1;RG11B10 4 1 1;RGB9E5 4 1 1;BGR10 4 1 1;"
    "BGRA10_XR 8 1 1;BC1_ 8 4 4;BC4_ 8 4 4;BC 16 4 4;PVRTC_RGB_2 8 8 4;PVRTC_RGBA_2 8 8 4;PVRTC 8 4 4;EAC_R11 8 4 4;"
    "EAC 16 4 4;ETC2 8 4 4;GBGR422 4 2 1;BGRG422 4 2 1;Depth16 2 1 1;Depth32Float_S 8 1 1;Depth 4 1 1;Stencil8 1 1 1;"
    "X32 8 1 1;X24 4 1 1")


_formats: dict[int, MetalFormat] = {}


def MetalFormatInfo(format: str | int) -> MetalFormat:
    """Name, size and kind of a pixel format: MetalFormatInfo("RGBA8Unorm").block_bytes is 4."""
    value = _constant_of("MTLPixelFormat", format)
    if value not in _formats:
        name = _enumeration("MTLPixelFormat").get(value, "")
        if name in ("", "Invalid", "Unspecialized"):
            raise _bad("%r is no pixel format" % (format,))
        _formats[value] = MetalFormat(name, value, *_block_of(name), name.startswith("Depth"), "tencil8" in name)
    return _formats[value]


def _block_of(name: str) -> tuple[int, int, int]:
    if name.startswith("ASTC_"):
        width, height = name.split("_")[1].split("x")
        return 16, int(width), int(height)
    for row in _BLOCKS_OF.split(";"):
        start, size, width, height = row.split(" ")
        if name.startswith(start):
            return int(size), int(width), int(height)
    channels = len(name) - len(name.lstrip("RGBA"))
    bits = name[channels:channels + 2]
    return channels * int(bits if bits.isdigit() else bits[0]) // 8, 1, 1


_USAGES = {"read": 1, "write": 2, "target": 4, "view": 16, "atomic": 32}


def MetalTexture(width: int, height: int = 1, data: Any = None, device: MetalObject | None = None, *,
                 format: str | int = "RGBA8Unorm", kind: str | int | None = None, depth: int = 1, layers: int = 1,
                 mipmaps: int | bool = 1, samples: int = 1, mode: str | None = None, usage: str = "read target",
                 heap: MetalObject | None = None, offset: int | None = None, label: str | None = None) -> MetalObject:
    """A texture, with the pixels of `data` (level 0 of every slice, rows without gaps) if given.

    kind: "2D", "1D", "3D", "cube", "2DArray", ...; by default what depth, layers and samples say. mipmaps: how many
    levels, True for all. mode: "shared", "private", "managed", "memoryless"; by default shared, and private for depth,
    stencil and multisampling. usage: words of "read write target view atomic". heap: make it there, in the heap's mode,
    at `offset` in a placement heap. InvalidArgument for what Metal would abort on, Memory when there is no room.
    """
    info = MetalFormatInfo(format)
    device = _device(device if heap is None else _expect(heap, "MTLHeap").device())
    if heap is None and offset is not None:
        raise _bad("an offset is one in a placement heap (heap=)")
    with MetalPool():
        if kind is None:
            kind = "2DMultisample" if samples != 1 else "3D" if depth != 1 else "2DArray" if layers != 1 else "2D"
        code, size = _constant_of("MTLTextureType", kind), (width, height, depth)
        _check_texture(device, info, code, size, layers, samples)
        most = 1 if code < 2 or samples > 1 or info.block_width == 2 else _index(max(size)).bit_length()
        levels = most if mipmaps is True else mipmaps
        if levels not in range(1, most + 1):
            raise _bad("a texture of %d x %d x %d has 1 to %d levels, not %r" % (*size, most, mipmaps))
        descriptor = _new("MTLTextureDescriptor", TextureType=code, PixelFormat=info.value, Width=width, Height=height,
                          Depth=depth, ArrayLength=layers, MipmapLevelCount=levels, SampleCount=samples,
                          **_texture_use(device, info, samples, mode, usage))
        if heap is None:
            texture = _given(device.newTextureWithDescriptor_(descriptor), "texture", label)
        else:
            _set(descriptor, StorageMode=heap.storageMode(), CpuCacheMode=heap.cpuCacheMode(),
                 HazardTrackingMode=heap.hazardTrackingMode())
            texture = _in_heap(heap, "newTextureWithDescriptor", (descriptor,), offset,
                               device.heapTextureSizeAndAlignWithDescriptor_(descriptor), label)
        if data is not None:
            _fill_texture(texture, data)
    return texture


# MTLTextureType 0 to 8, 1D to 2DMultisampleArray: what can be more than 1 in it, height, depth, layers or samples.
_TEXTURE_KINDS = ("", "l", "h", "hl", "hs", "h", "hl", "hd", "hls")


def _check_texture(device: MetalObject, info: MetalFormat, code: int, size: tuple[int, int, int], layers: int,
                   samples: int) -> None:
    """Metal's validation of a texture descriptor, as macOS has it: it ends the process."""
    if code > 8:
        raise _bad("a texture buffer is made from a buffer: newTextureWithDescriptor_offset_bytesPerRow_")
    # Metal's feature set tables; 32768 is what an M5 Max's validation says (family Apple10, unverified on a Mac here)
    side = 2048 if code == 7 else 32768 if device.supportsFamily_(1010) else 16384
    for name, number in zip(("width", "height", "depth", "layers"), (*size, layers)):
        _whole(number, 1, side if name != "layers" else 341 if code == 6 else 2048, "a texture's " + name)
    has = _TEXTURE_KINDS[code]
    for name, number in (("height", size[1]), ("depth", size[2]), ("layers", layers), ("samples", samples)):
        if number != 1 and name[0] not in has:
            raise _bad("a texture of this kind has no %s: %r" % (name, number))
    if "s" in has and (samples not in range(2, 65) or not device.supportsTextureSampleCount_(samples)):
        raise _bad("this device has no textures of %r samples per pixel" % (samples,))
    if code in (5, 6) and size[0] != size[1]:
        raise _bad("the faces of a cube are square, not %d x %d" % size[:2])
    compressed, many = info.block_width > 1, info.depth or info.stencil
    if ((compressed or many) and (code < 2 or code == 7 and not info.name.startswith(("BC", "ASTC")))
            or compressed and "s" in has or info.block_width == 2 and (code != 2 or size[0] % 2)
            or info.name.startswith("PVRTC") and (size[0] != size[1] or size[0] & size[0] - 1)):
        raise _bad("there is no %s texture of this kind and size" % info.name)
    if info.value == 255 and not device.isDepth24Stencil8PixelFormatSupported():
        raise _fail(ERROR_NOT_SUPPORTED, REASON_CHIP, "Metal", "this GPU has Depth32Float_Stencil8, not %s" % info.name)


def _texture_use(device: MetalObject, info: MetalFormat, samples: int, mode: str | None, usage: str) -> dict[str, int]:
    """The descriptor's StorageMode and Usage."""
    if mode is None:
        mode = ("private" if samples > 1 or info.depth or info.stencil else
                "shared" if device.hasUnifiedMemory() else "managed")
    words = usage.split() if isinstance(usage, str) else [""]
    if not all(word in _USAGES for word in words):
        raise _bad("usage is words of \"%s\", not %.80r" % (" ".join(_USAGES), usage))
    if "atomic" in words and info.name not in ("R32Uint", "R32Sint", "RG32Uint"):
        raise _bad("there is no %s texture for atomics" % info.name)
    if "atomic" in words and not hasattr(device, "architecture"):       # of the same macOS; before, the bit aborts
        raise _fail(ERROR_NOT_SUPPORTED, REASON_MACOS, "Metal", "textures for atomics came with macOS 14")
    bits = sum(_USAGES[word] for word in set(words))
    return {"StorageMode": _storage(mode, 3), "Usage": bits & ~6 if info.block_width > 1 else bits}  # blocks: only read


class _Texture(NamedTuple):
    """What a texture is, which never changes; asked once."""
    kind: int
    format: MetalFormat
    size: tuple[int, int, int]
    levels: int
    slices: int
    samples: int
    mode: int
    usage: int


def _texture(texture: MetalObject) -> _Texture:
    _expect(texture, "MTLTexture")
    if texture._facts is None:
        kind = texture.textureType()
        texture._facts = _Texture(
            kind, MetalFormatInfo(texture.pixelFormat()), (texture.width(), texture.height(), texture.depth()),
            texture.mipmapLevelCount(), texture.arrayLength() * (6 if kind in (5, 6) else 1), texture.sampleCount(),
            texture.storageMode(), texture.usage())
    facts: _Texture = texture._facts
    return facts


def _pitch(info: MetalFormat, size: Sequence[int], part: str = "") -> tuple[int, int, int]:
    """(bytes of a row of blocks, of a whole plane, MTLBlitOption) of a format, or of one part of it."""
    if (info.depth and info.stencil) != bool(part) or part not in ("", "depth", "stencil"):
        if part:
            raise _bad("%r is no part of %s" % (part, info.name))
        raise _bad("%s holds two things: say part=\"depth\" or part=\"stencil\"" % info.name)
    if part:
        row = size[0] * (4 if part == "depth" else 1)
        return row, row * size[1], 1 if part == "depth" else 2
    row = -(-size[0] // info.block_width) * info.block_bytes
    return row, row * -(-size[1] // info.block_height), 0


def _fill_texture(texture: MetalObject, data: Any) -> None:
    view, facts = _bytes_of(data), _texture(texture)
    each = _pitch(facts.format, facts.size)[1] * facts.size[2]
    if len(view) != each * facts.slices:
        raise _bad("this texture holds %d bytes, not %d" % (each * facts.slices, len(view)))
    for n in range(facts.slices):
        MetalTextureWrite(texture, view[n * each:(n + 1) * each], slice=n)


def _place(texture: MetalObject, region: Any, level: int, slice: int, part: str = "") -> tuple[Any, ...]:
    """(facts, origin, size) of a region that lies in the texture, and its _pitch."""
    facts = _texture(texture)
    level = _whole(level, 0, facts.levels - 1, "a level of this texture")
    whole, info = [max(n >> level, 1) for n in facts.size], facts.format
    if facts.samples > 1:
        raise _bad("a multisampled texture is resolved to another one before it is read")
    if facts.mode == 3:
        raise _bad("a memoryless texture has no pixels outside of a pass")
    _whole(slice, 0, facts.slices - 1, "a slice of this texture")
    parts = (0, 0, 0, *whole) if region is None else _listed(region, "four or six numbers, the region,")
    if len(parts) == 4:
        parts = (parts[0], parts[1], 0, parts[2], parts[3], 1)
    if len(parts) != 6 or not all(hasattr(n, "__index__") and n >= 0 for n in parts):
        raise _bad("a region is (x, y, width, height) or (x, y, z, width, height, depth), not %r" % (region,))
    for at, n, most, step in zip(parts[:3], parts[3:], whole, (info.block_width, info.block_height, 1)):
        if not n or at + n > most or at % step or n % step and at + n != most:
            raise _bad("the region %r is not in a level of %d x %d x %d, or cuts a block" % (region, *whole))
    return facts, parts[:3], parts[3:], *_pitch(info, parts[3:], part)


def MetalTextureWrite(texture: MetalObject, data: Any, region: Sequence[int] | None = None, level: int = 0,
                      slice: int = 0, *, part: str = "") -> None:
    """Put pixels (rows without gaps) into a texture; waits for nothing when it is shared, for a copy on the GPU when it
    is private. region: (x, y, width, height) or (x, y, z, width, height, depth), default the whole level. part: "depth"
    (4 bytes each) or "stencil" (1 byte) of a format that has both."""
    with MetalPool():
        facts, origin, size, row, plane, option = _place(texture, region, level, slice, part)
        view = _bytes_of(data)
        if len(view) != plane * size[2]:
            raise _bad("%d x %d x %d pixels of this format are %d bytes, not %d" % (*size, plane * size[2], len(view)))
        if facts.mode < 2 and not option:
            texture.replaceRegion_mipmapLevel_slice_withBytes_bytesPerRow_bytesPerImage_(
                (origin, size), level, slice, view, row, plane if facts.kind == 7 else 0)
            return
        staging = MetalBuffer(view, texture.device())
        _blit(texture, "copyFromBuffer:sourceOffset:sourceBytesPerRow:sourceBytesPerImage:sourceSize:toTexture:"
              "destinationSlice:destinationLevel:destinationOrigin:options:",
              staging, 0, row, plane, size, texture, slice, level, origin, option)


def MetalTextureRead(texture: MetalObject, region: Sequence[int] | None = None, level: int = 0, slice: int = 0, *,
                     part: str = "") -> bytes:
    """Pixels of a texture, rows without gaps, once the work that draws them is done (MetalWait). A private or managed
    texture is copied by the GPU first. region, part: as in MetalTextureWrite."""
    with MetalPool():
        facts, origin, size, row, plane, option = _place(texture, region, level, slice, part)
        if facts.mode == 0 and not option:
            out = bytearray(plane * size[2])
            texture.getBytes_bytesPerRow_bytesPerImage_fromRegion_mipmapLevel_slice_(
                out, row, plane if facts.kind == 7 else 0, (origin, size), level, slice)
            return bytes(out)
        staging = MetalBuffer(plane * size[2], texture.device())
        _blit(texture, "copyFromTexture:sourceSlice:sourceLevel:sourceOrigin:sourceSize:toBuffer:destinationOffset:"
              "destinationBytesPerRow:destinationBytesPerImage:options:",
              texture, slice, level, origin, size, staging, 0, row, plane, option)
        return MetalRead(staging)


def _blit(texture: MetalObject, selector: str, *arguments: Any) -> None:
    work = MetalBegin(_queue(texture.device()))
    MetalEncode(work, "blit", lambda encoder: MetalSend(encoder, selector, *arguments))
    MetalWait(MetalCommit(work))


# ---- pictures

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_BITS = {0: (1, (1, 2, 4, 8, 16)), 2: (3, (8, 16)), 3: (1, (1, 2, 4, 8)), 4: (2, (8, 16)), 6: (4, (8, 16))}
_PNG_KINDS = {"R8": (0, 1, 8), "RG8": (4, 2, 8), "RGBA8": (6, 4, 8), "BGRA8": (6, 4, 8), "R16": (0, 1, 16),
              "RG16": (4, 2, 16), "RGBA16": (6, 4, 16)}


def MetalPng(width: int, height: int, pixels: Any, format: str | int = "RGBA8Unorm") -> bytes:
    """A PNG file of pixels whose format has 8 or 16 bits per channel (R, RG as grey and alpha, RGBA, BGRA; Unorm)."""
    import zlib
    name = MetalFormatInfo(format).name
    stem = name.partition("Unorm")[0]
    if "Unorm" not in name or stem not in _PNG_KINDS:
        raise _bad("a PNG holds R, RG, RGBA or BGRA of 8 or 16 bits per channel, Unorm, not %s" % name)
    kind, channels, bits = _PNG_KINDS[stem]
    row = _whole(width, 1, 1 << 28, "a picture's width") * channels * bits // 8
    data = bytearray(_bytes_of(pixels))
    if len(data) != row * _whole(height, 1, 1 << 28, "a picture's height"):
        raise _bad("%d x %d pixels of %s are %d bytes, not %d" % (width, height, name, row * height, len(data)))
    if stem == "BGRA8":
        data[0::4], data[2::4] = data[2::4], data[0::4]
    elif bits == 16:
        data[0::2], data[1::2] = data[1::2], data[0::2]
    lines = b"".join(b"\0" + data[y * row:y * row + row] for y in range(height))

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return (_PNG + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0))
            + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b""))


def MetalPngRead(data: bytes) -> MetalImage:
    """The picture in a PNG file's bytes: every kind but interlaced ones; 16 bits are cut to 8, and a single colour that
    is meant to be transparent stays opaque."""
    import zlib
    try:
        return _png_read(bytes(_bytes_of(data)))
    except (zlib.error, struct.error, IndexError, KeyError):
        raise _bad("this PNG file is damaged") from None


def _png_read(data: bytes) -> MetalImage:
    import zlib
    if data[:8] != _PNG:
        raise _bad("this is no PNG file")
    at, packed = 8, list[bytes]()
    chunks: dict[bytes, bytes] = {}
    while at + 8 <= len(data):
        length, kind = struct.unpack(">I4s", data[at:at + 8])
        body = data[at + 8:at + 8 + length]
        packed += [body] if kind == b"IDAT" else []
        chunks[kind] = body
        at += 12 + length
    width, height, bits, kind, _, _, interlaced = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    channels, depths = _PNG_BITS[kind]
    if interlaced or bits not in depths or not 0 < width * height <= 1 << 28:
        raise _bad("an interlaced, odd or huge PNG file is not read here")
    row, step = (width * channels * bits + 7) // 8, max(channels * bits // 8, 1)
    raw = zlib.decompressobj().decompress(b"".join(packed), (row + 1) * height)
    if len(raw) < (row + 1) * height:
        raise _bad("this PNG file is cut off")
    above, out = bytearray(row), bytearray()
    for y in range(height):
        line = bytearray(raw[y * (row + 1) + 1:(y + 1) * (row + 1)])
        above = _png_line(raw[y * (row + 1)], line, above, step)
        out += _png_rgba(above, width, bits, kind, chunks)
    return MetalImage(width, height, bytes(out))


def _png_line(how: int, line: bytearray, above: bytearray, step: int) -> bytearray:
    """Undo a row's filter: none, left, above, their mean, or Paeth's choice."""
    from itertools import accumulate
    if how > 4:
        raise _bad("this PNG file is damaged")
    if how == 2:
        return bytearray([a + b & 255 for a, b in zip(line, above)])
    for start in range(step if how else 0):         # a channel at a time: each byte builds on the one before it
        values, out, left, corner = line[start::step], bytearray(), 0, 0
        if how == 1:
            line[start::step] = bytes([n & 255 for n in accumulate(values)])
            continue
        for value, up in zip(values, above[start::step]):
            if how == 4:        # the nearest to left + up - corner
                p, q = up - corner, left - corner
                r, p, q = abs(p + q), abs(p), abs(q)
                left, corner = value + (left if p <= q and p <= r else up if q <= r else corner) & 255, up
            else:
                left = value + (left + up >> 1) & 255
            out.append(left)
        line[start::step] = out
    return line


def _png_rgba(line: bytearray, width: int, bits: int, kind: int, chunks: dict[bytes, bytes]) -> bytearray:
    """A row as 8 bits of red, green, blue and alpha."""
    if bits == 16:
        line = line[::2]
    elif bits < 8:
        most = (1 << bits) - 1
        scale = 1 if kind == 3 else 255 // most
        line = bytearray((line[i * bits // 8] >> 8 - bits - i * bits % 8 & most) * scale for i in range(width))
    out = bytearray(b"\xff" * 4 * width)
    if kind == 3:
        palette, alpha = chunks[b"PLTE"], chunks.get(b"tRNS", b"")
        if 3 * max(line) + 3 > len(palette):
            raise _bad("this PNG file is damaged")
        for channel, table in enumerate((palette[::3], palette[1::3], palette[2::3], alpha)):
            out[channel::4] = line.translate(table[:256].ljust(256, b"\xff"))
        return out
    step = _PNG_BITS[kind][0]
    for channel in range(3):
        out[channel::4] = line[channel if step > 2 else 0::step]
    if kind > 3:
        out[3::4] = line[step - 1::step]
    return out


def MetalTextureLoad(path: str, device: MetalObject | None = None, **options: Any) -> MetalObject:
    """A texture of the picture in a PNG file; options as of MetalTexture."""
    with open(_existing(path), "rb") as file:
        image = MetalPngRead(file.read())
    return MetalTexture(image.width, image.height, image.pixels, device, **options)


def MetalTextureSave(texture: MetalObject, path: str, level: int = 0, slice: int = 0) -> None:
    """Write a level of a texture into a PNG file; formats as of MetalPng."""
    width, height, _ = _place(texture, None, level, slice)[2]
    pixels = MetalTextureRead(texture, (0, 0, width, height), level, slice)
    data = MetalPng(width, height, pixels, texture.pixelFormat())
    with open(os.fspath(path), "wb") as file:
        file.write(data)


# ---- states of drawing

def MetalSampler(device: MetalObject | None = None, *, filter: str | int = "linear", mip: str | int = "notMipmapped",
                 address: str | int = "clampToEdge", anisotropy: int = 1, compare: str | int | None = None,
                 border: str | int | None = None, normalized: bool = True, argument: bool = False,
                 label: str | None = None) -> MetalObject:
    """How a shader reads a texture. filter, mip, address (of all axes), compare, border: an MTLSamplerMinMagFilter,
    -MipFilter, -AddressMode, MTLCompareFunction, MTLSamplerBorderColor. normalized: coordinates are 0 to 1, not pixels.
    argument: usable in argument buffers. anisotropy: 1 to 16."""
    device, wrap = _device(device), _constant_of("MTLSamplerAddressMode", address)
    how = _constant_of("MTLSamplerMinMagFilter", filter)
    with MetalPool():
        descriptor = _new(
            "MTLSamplerDescriptor", MinFilter=how, MagFilter=how, MipFilter=_constant_of("MTLSamplerMipFilter", mip),
            SAddressMode=wrap, TAddressMode=wrap, RAddressMode=wrap, NormalizedCoordinates=normalized,
            MaxAnisotropy=_whole(anisotropy, 1, 16, "anisotropy"), SupportArgumentBuffers=argument, Label=label,
            CompareFunction=None if compare is None else _constant_of("MTLCompareFunction", compare),
            BorderColor=None if border is None else _constant_of("MTLSamplerBorderColor", border))
        return _given(device.newSamplerStateWithDescriptor_(descriptor), "sampler")


def MetalVertexLayout(buffers: Mapping[int, Sequence[str]], instanced: Sequence[int] = ()) -> MetalObject:
    """A vertex descriptor: buffer index -> formats of the attributes in it, in memory one after another:
    {0: ("float3", "float2"), 1: ("float4",)} are [[attribute(0)]] to (2). `instanced` buffers step per instance."""
    if (not hasattr(buffers, "values") or not hasattr(instanced, "__contains__")
            or any(isinstance(one, str) for one in (*buffers.values(), instanced))):
        raise _bad("a layout is {buffer index: (format, ...)}, a list of indices, not %.80r" % ((buffers, instanced),))
    count = sum(len(formats) for formats in buffers.values())
    if not 0 < count <= 31:
        raise _bad("a vertex has 1 to 31 attributes, not %d" % count)
    with MetalPool():
        descriptor, number = _new("MTLVertexDescriptor"), 0
        for buffer, formats in buffers.items():
            _whole(buffer, 0, 30, "a buffer index")
            stride = 0
            for format in formats:
                code = _constant_of("MTLVertexFormat", format)
                _set(descriptor.attributes()[number], Format=code, Offset=stride, BufferIndex=buffer)
                stride += -(-_vertex_bytes(code) // 4) * 4
                number += 1
            if not stride:
                raise _bad("a buffer of vertices holds at least one attribute")
            _set(descriptor.layouts()[buffer], Stride=stride, StepFunction=2 if buffer in instanced else 1)
        return descriptor


def _vertex_bytes(code: int) -> int:
    name = _enumeration("MTLVertexFormat").get(code, "")
    if name in ("", "Invalid"):
        raise _bad("%d is no vertex format" % code)
    stem = name.replace("Normalized", "").replace("_BGRA", "")
    if stem[-2:] in ("02", "10", "E5"):     # Int1010102, FloatRG11B10, FloatRGB9E5
        return 4
    size = next(n for start, n in (("Char", 1), ("Short", 2), ("Half", 2), ("Int", 4), ("Float", 4)) if start in stem)
    return size * (int(stem[-1]) if stem[-1].isdigit() else 1)


_BLENDS = {"alpha": ("sourceAlpha", "oneMinusSourceAlpha", "one", "oneMinusSourceAlpha"),
           "premultiplied": ("one", "oneMinusSourceAlpha", "one", "oneMinusSourceAlpha"),
           "add": ("one", "one", "one", "one"), "multiply": ("destinationColor", "zero", "destinationAlpha", "zero")}


def MetalRenderPipeline(vertex: MetalObject, fragment: MetalObject | None = None, *,
                        formats: Sequence[str | int] = ("RGBA8Unorm",), depth: str | int | None = None,
                        stencil: str | int | None = None, samples: int = 1, blend: str | Sequence[str] | None = None,
                        mask: int = 15, vertices: MetalObject | None = None, indirect: bool = False,
                        archive: MetalObject | None = None, label: str | None = None) -> MetalObject:
    """A render pipeline of a vertex and a fragment function (MetalFunction) for textures of these formats.

    formats, depth, stencil, samples: those of the pass it draws into. blend: "alpha", "premultiplied", "add",
    "multiply", or four factors (colour from source and target, alpha from source and target), and two operations after
    them if you like. mask: the MTLColorWriteMask of every colour. vertices: a MetalVertexLayout. indirect: usable from
    indirect command buffers. archive: look there first (MetalArchive). MetalError with Metal's text on failure.
    """
    with MetalPool():
        descriptor = _pipeline_descriptor(vertex, fragment, formats, depth, stencil, samples, blend, mask)
        _set(descriptor, SupportIndirectCommandBuffers=indirect or None, Label=label,
             VertexDescriptor=None if vertices is None else _expect(vertices, "MTLVertexDescriptor"),
             BinaryArchives=None if archive is None else [_expect(archive, "MTLBinaryArchive")])
        made = _given(vertex.device().newRenderPipelineStateWithDescriptor_error_(descriptor), "pipeline")
        made._facts = ([MetalFormatInfo(one).value for one in formats], descriptor.depthAttachmentPixelFormat(),
                       descriptor.stencilAttachmentPixelFormat(), samples)
        return made


def _pipeline_descriptor(vertex: MetalObject, fragment: MetalObject | None, formats: Sequence[Any], depth: Any,
                         stencil: Any, samples: int, blend: Any, mask: int) -> MetalObject:
    _expect_function(vertex, "vertex")
    if fragment is not None:
        _expect_function(fragment, "fragment")
    if len(formats) > 8 or isinstance(formats, str):
        raise _bad("formats is a sequence of up to 8 pixel formats, one per colour texture")
    if samples != 1 and (samples not in range(2, 65) or not vertex.device().supportsTextureSampleCount_(samples)):
        raise _bad("this device has no textures of %r samples per pixel" % (samples,))
    descriptor = _new("MTLRenderPipelineDescriptor", VertexFunction=vertex, FragmentFunction=fragment,
                      DepthAttachmentPixelFormat=None if depth is None else _target_format(depth, "depth"),
                      StencilAttachmentPixelFormat=None if stencil is None else _target_format(stencil, "stencil"),
                      RasterSampleCount=samples)
    blending = {} if blend is None else _blending(blend)
    for n, format in enumerate(formats):
        _set(descriptor.colorAttachments()[n], PixelFormat=_target_format(format, "colour"),
             WriteMask=_whole(mask, 0, 15, "mask"), **blending)
    return descriptor


def _target_format(format: str | int | MetalFormat, what: str) -> int:
    """The value of a format that colour, depth or stencil can be drawn into."""
    info = format if isinstance(format, MetalFormat) else MetalFormatInfo(format)
    colour = not info.depth and not info.stencil and info.block_width == 1
    if not {"colour": colour, "depth": info.depth, "stencil": info.stencil}[what]:
        raise _bad("%s is no format to draw into: no %s" % (info.name, what))
    return info.value


def _blending(blend: Any) -> dict[str, int]:
    """A colour attachment's properties."""
    parts = _BLENDS.get(blend, ()) if isinstance(blend, str) else blend
    if not isinstance(parts, (list, tuple)) or len(parts) not in (4, 6):
        raise _bad("blend is one of %s, or four factors (and two operations), not %r" % (", ".join(_BLENDS), blend))
    names = ("SourceRGBBlendFactor", "DestinationRGBBlendFactor", "SourceAlphaBlendFactor",
             "DestinationAlphaBlendFactor", "RgbBlendOperation", "AlphaBlendOperation")
    return {"BlendingEnabled": True, **{
        name: _constant_of("MTLBlendFactor" if "Factor" in name else "MTLBlendOperation", value)
        for name, value in zip(names, parts)}}


def MetalDepthStencil(device: MetalObject | None = None, *, compare: str | int = "less", write: bool = True,
                      front: Mapping[str, Any] | None = None, back: Mapping[str, Any] | None = None,
                      label: str | None = None) -> MetalObject:
    """What a pixel's depth and stencil must be to be drawn: `compare` (an MTLCompareFunction) with the depth that is
    there, which it replaces if `write`. front, back: {"compare": "equal", "fail": "keep", "depth_fail": "keep", "pass":
    "incrementClamp", "read_mask": 255, "write_mask": 255} for the stencil, each optional."""
    device = _device(device)
    with MetalPool():
        test = _constant_of("MTLCompareFunction", compare)
        descriptor = _new("MTLDepthStencilDescriptor", DepthWriteEnabled=write, Label=label, DepthCompareFunction=test,
                          FrontFaceStencil=None if front is None else _stencil(front),
                          BackFaceStencil=None if back is None else _stencil(back))
        made = _given(device.newDepthStencilStateWithDescriptor_(descriptor), "depth and stencil state")
        made._facts = write or test != 7, not front is back is None         # what it needs; MTLCompareFunctionAlways
        return made


_STENCIL = {"compare": "StencilCompareFunction", "fail": "StencilFailureOperation",
            "depth_fail": "DepthFailureOperation", "pass": "DepthStencilPassOperation",
            "read_mask": "ReadMask", "write_mask": "WriteMask"}


def _stencil(wanted: Mapping[str, Any]) -> MetalObject:
    if not hasattr(wanted, "keys") or not wanted.keys() <= _STENCIL.keys():
        raise _bad("a stencil has %s, not %.80r" % (", ".join(_STENCIL), wanted))
    return _new("MTLStencilDescriptor", **{
        _STENCIL[key]: _whole(value, 0, (1 << 32) - 1, key) if "mask" in key else
        _constant_of("MTLCompareFunction" if key == "compare" else "MTLStencilOperation", value)
        for key, value in wanted.items()})


# ---- drawing

def MetalRenderPass(colors: MetalObject | Sequence[MetalObject], depth: MetalObject | None = None,
                    stencil: MetalObject | None = None, *, clear: Sequence[float] | None = (0.0, 0.0, 0.0, 1.0),
                    clear_depth: float | None = 1.0, clear_stencil: int | None = 0,
                    resolve: MetalObject | Sequence[MetalObject] | None = None) -> MetalObject:
    """The textures that MetalEncodeDraw draws into. clear: red, green, blue, alpha to begin with; clear_depth,
    clear_stencil: likewise; None to keep what is there. resolve: the textures that multisampled `colors` are averaged
    into."""
    targets = _expect_all([colors] if isinstance(colors, MetalObject) else colors, "MTLTexture")
    resolves = _expect_all([resolve] if isinstance(resolve, MetalObject) else resolve or (), "MTLTexture")
    if clear is not None:
        clear = _numbers(clear, _real, 4, "clear is None or (red, green, blue, alpha)")
    if len(targets) > 8 or resolves and len(resolves) != len(targets) or not targets and depth is stencil is None:
        raise _bad("a pass has up to 8 colour textures, or depth or stencil; to resolve, a texture for each")
    with MetalPool():
        made = _new("MTLRenderPassDescriptor")
        for n, texture in enumerate(targets):
            _attach(made.colorAttachments()[n], texture, "colour", ClearColor=clear)
        for n, texture in enumerate(resolves):
            source, facts = _texture(targets[n]), _target(texture, "colour")
            if source.samples < 2 or facts.samples > 1 or source.format != facts.format:
                raise _bad("a multisampled texture is resolved into a plain one of the same format")
            _set(made.colorAttachments()[n], ResolveTexture=texture, StoreAction=2)     # ...MultisampleResolve
        if depth is not None:
            _attach(made.depthAttachment(), depth, "depth", ClearDepth=clear_depth)
        if stencil is not None:
            _attach(made.stencilAttachment(), stencil, "stencil", ClearStencil=clear_stencil)
        every = [_texture(t) for t in (*targets, depth, stencil) if t is not None]
        if len({one.samples for one in every}) > 1:
            raise _bad("the textures of a pass have the same number of samples")
        values = [one.format.value for one in every[:len(targets)]]
        made._facts = (min(one.size[0] for one in every), min(one.size[1] for one in every), values,
                       _texture(depth).format.value if depth is not None else 0,
                       _texture(stencil).format.value if stencil is not None else 0, every[0].samples)
        return made


def _target(texture: MetalObject, what: str) -> _Texture:
    facts = _texture(texture)
    _target_format(facts.format, what)
    if facts.usage and not facts.usage & 4:         # 0 is MTLTextureUsageUnknown: any
        raise _bad("a texture that is drawn into needs \"target\" in its usage")
    return facts


def _attach(attachment: MetalObject, texture: MetalObject, what: str, **clear: Any) -> None:
    facts, keep = _target(texture, what), None in clear.values()
    if keep and facts.mode == 3:
        raise _bad("a memoryless texture keeps nothing: it has to be cleared")
    _set(attachment, Texture=texture, LoadAction=1 if keep else 2, StoreAction=0 if facts.mode == 3 else 1, **clear)


def MetalEncodeDraw(work: MetalWork, target: MetalObject, pipeline: MetalObject, count: int, *arguments: Any,
                    fragment: Sequence[Any] = (), textures: Sequence[MetalObject] = (),
                    samplers: Sequence[MetalObject] = (), vertex_textures: Sequence[MetalObject] = (),
                    primitive: str | int = "triangle", first: int = 0, instances: int = 1,
                    indices: MetalObject | None = None, index_type: str | int = "UInt16", index_offset: int = 0,
                    depth: MetalObject | None = None, stencil_reference: int = 0, cull: str | int = "none",
                    winding: str | int = "clockwise", fill: str | int = "fill",
                    viewport: Sequence[float] | None = None, scissor: Sequence[int] | None = None,
                    wait: Sequence[MetalObject] = (), update: MetalObject | None = None,
                    label: str | None = None) -> None:
    """Record a draw into a MetalRenderPass; draws in a row into the same pass share an encoder. After anything else,
    and with wait=, a new one begins, which clears again what the pass clears: go on with a pass of clear=None.

    count: vertices (from `first` on), or indices of `indices` (a buffer). arguments, fragment: buffers and values of
    the vertex and the fragment function, as in MetalEncodeDispatch; textures, samplers: the fragment function's. depth:
    a MetalDepthStencil. viewport: (x, y, width, height, near, far); scissor: (x, y, width, height) inside the target.
    wait, update: fences, before vertices and after fragments. InvalidArgument for what Metal would abort on.
    """
    _expect(target, "MTLRenderPassDescriptor")
    _expect(pipeline, "MTLRenderPipelineState")
    for n, least in ((count, 1), (instances, 1), (first, 0), (index_offset, 0)):
        if not hasattr(n, "__index__") or not least <= n < 1 << 32:
            raise _bad("a draw has at least one vertex and one instance, and no offset below 0: %r" % (n,))
    count, instances, first, index_offset = map(_index, (count, instances, first, index_offset))
    if target._facts and pipeline._facts and target._facts[2:] != pipeline._facts:
        theirs, ours = _targets(*pipeline._facts), _targets(*target._facts[2:])
        raise _bad("the pipeline is for %s; the pass has %s" % (theirs, ours))
    _check_depth(target, depth, stencil_reference)
    states = {"setRenderPipelineState:": pipeline, "setDepthStencilState:": depth,
              "setStencilReferenceValue:": _whole(stencil_reference, 0, (1 << 32) - 1, "a stencil reference"),
              "setCullMode:": _constant_of("MTLCullMode", cull),
              "setFrontFacingWinding:": _constant_of("MTLWinding", winding),
              "setTriangleFillMode:": _constant_of("MTLTriangleFillMode", fill), **_window(target, viewport, scissor)}
    sends = [*_stage("Vertex", arguments, vertex_textures, ()), *_stage("Fragment", fragment, textures, samplers),
             _draw(_constant_of("MTLPrimitiveType", primitive), count, first, instances, indices,
                   _constant_of("MTLIndexType", index_type), index_offset)]
    before = [("waitForFence:beforeStages:", fence, 1) for fence in _expect_all(wait, "MTLFence")]
    after = [("updateFence:afterStages:", update, 2)] if update is not None and _expect(update, "MTLFence") else []
    _record_draw(work, target, states, before, sends, after, _named(label))


def _targets(colors: Sequence[int], depth: int, stencil: int, samples: int) -> str:
    names = _enumeration("MTLPixelFormat")
    return "colour %s, depth %s, stencil %s, %d samples" % (
        " and ".join(names[one] for one in colors) or "none", names[depth] if depth else "none",
        names[stencil] if stencil else "none", samples)


def _numbers(values: Any, number: Callable[[Any], Any], count: int, what: str) -> tuple[Any, ...]:
    """A tuple of numbers (_real or _index makes each), of NumPy's and of one of Metal's structs too."""
    try:
        numbers = tuple([number(one) for one in values])
    except (TypeError, ValueError, OverflowError):
        numbers = ()
    if len(numbers) != count:
        raise _bad("%s, not %.80r" % (what, values))
    return numbers


def _check_depth(target: MetalObject, depth: MetalObject | None, stencil_reference: int) -> None:
    """Metal ends the process over a state that looks at depth or stencil in a pass without them."""
    if depth is None:
        if stencil_reference:
            raise _bad("a stencil reference needs a depth and stencil state (depth=)")
        return
    _expect(depth, "MTLDepthStencilState")
    if depth._facts and target._facts and any(
            needs and not has for needs, has in zip(depth._facts, target._facts[3:5])):
        raise _bad("this state looks at depth or stencil, and the pass has no such texture")


# What a new encoder has; a draw sends only what differs from what the encoder has by then.
_DRAW_STATES = {"setRenderPipelineState:": None, "setDepthStencilState:": None, "setStencilReferenceValue:": 0,
                "setCullMode:": 0, "setFrontFacingWinding:": 0, "setTriangleFillMode:": 0}


def _record_draw(work: MetalWork, target: MetalObject, states: dict[str, Any], before: list[Any], sends: list[Any],
                 after: list[Any], label: str | None) -> None:
    last = work.operations[-1] if _work(work).operations and not work.committed_ns else ()
    shared = bool(last) and not before and last[0] is _encode_draws and last[1] is target
    now = last[3] if shared else dict(_DRAW_STATES, **_window(target, None, None))
    changes = [(selector, value) for selector, value in states.items() if now[selector] != value]
    if any(value is None and selector in ("setViewport:", "setScissorRect:") for selector, value in changes):
        raise _bad("this pass does not tell its size: give the viewport and scissor of each draw, or of none")
    if not shared:
        _add_to(work, _encode_draws, target, [], now)
    if label is not None:
        changes, sends = [("pushDebugGroup:", label), *changes], [*sends, ("popDebugGroup",)]
    work.operations[-1][2].extend([*before, *changes, *sends, *after])
    now.update(states)


def _encode_draws(buffer: int, target: MetalObject, sends: list[tuple[Any, ...]], _: Any) -> None:
    def send_all(encoder: MetalObject) -> None:
        for selector, *arguments in sends:
            MetalSend(encoder, selector, *arguments)
    _encode_with(buffer, _ENCODER_KINDS["render"], (target,), send_all)


def _window(target: MetalObject, viewport: Any, scissor: Any) -> dict[str, Any]:
    """Viewport and scissor of a draw; by default the whole target, or None for a pass that was made by sends."""
    width, height = target._facts[:2] if target._facts else (1 << 15, 1 << 15)
    view = (0.0, 0.0, float(width), float(height), 0.0, 1.0) if viewport is None else _numbers(
        viewport, _real, 6, "a viewport is (x, y, width, height, near, far)")
    cut = (0, 0, width, height) if scissor is None else _numbers(
        scissor, _index, 4, "a scissor is (x, y, width, height), whole numbers")
    if min(cut) < 0 or cut[0] + cut[2] > width or cut[1] + cut[3] > height:
        raise _bad("the scissor %r is not inside %d x %d" % (cut, width, height))
    return {"setViewport:": view if viewport is not None or target._facts else None,
            "setScissorRect:": cut if scissor is not None or target._facts else None}


def _stage(name: str, values: Sequence[Any], textures: Sequence[MetalObject],
           samplers: Sequence[MetalObject]) -> list[tuple[Any, ...]]:
    sends: list[tuple[Any, ...]] = []
    for bound in _bindings(values):
        if len(bound) == 4:
            sends.append(("set%sBuffer:offset:atIndex:" % name, bound[1], bound[3], bound[0]))
        else:
            sends.append(("set%sBytes:length:atIndex:" % name, bound[1], len(bound[1]), bound[0]))
    for kind, most, objects in (("Texture", 128, textures), ("SamplerState", 16, samplers)):
        for n, one in enumerate(_expect_all(objects, "MTL" + kind, most)):
            sends.append(("set%s%s:atIndex:" % (name, kind), one, n))
    return sends


def _draw(primitive: int, count: int, first: int, instances: int, indices: MetalObject | None, kind: int,
          offset: int) -> tuple[Any, ...]:
    if indices is None:
        return "drawPrimitives:vertexStart:vertexCount:instanceCount:", primitive, first, count, instances
    size = 4 if kind == 1 else 2
    if offset % size or first:
        raise _bad("an index offset is a multiple of %d, not %d; `first` is for draws without indices" % (size, offset))
    _in_buffer(_span(indices)[0], offset, count * size)
    return ("drawIndexedPrimitives:indexCount:indexType:indexBuffer:indexBufferOffset:instanceCount:", primitive, count,
            kind, indices, offset, instances)


# ---- heaps, indirect commands, archives, capture

def MetalHeap(size: int, device: MetalObject | None = None, *, mode: str = "shared", placement: bool = False,
              tracked: bool = False, label: str | None = None) -> MetalObject:
    """Memory that buffers and textures are made in (MetalHeapBuffer, MetalTexture(heap=)). placement: you say where,
    and what overlaps shares memory. Without `tracked`, order its users with fences."""
    device, storage = _device(device), _storage(mode, 2)
    if storage == 1:
        raise _bad("a heap's mode is shared or private, not %r" % (mode,))
    with MetalPool():
        descriptor = _new("MTLHeapDescriptor", Size=_whole(size, 1, _U64, "a heap's size"), StorageMode=storage,
                          Type=1 if placement else 0, HazardTrackingMode=2 if tracked else 1)
        return _given(device.newHeapWithDescriptor_(descriptor), "heap of this size", label)


def MetalHeapPlan(lengths: Sequence[int], device: MetalObject | None = None, *,
                  mode: str = "shared") -> tuple[int, list[int]]:
    """(size of a heap, offsets in it) for buffers of these lengths, as Metal wants them aligned."""
    device, at, offsets = _device(device), 0, []
    for length in _listed(lengths, "lengths"):
        need = device.heapBufferSizeAndAlignWithLength_options_(_checked_length(device, length), _storage(mode, 2) << 4)
        at = -(-at // need.align) * need.align
        offsets.append(at)
        at += need.size
    return at, offsets


def MetalHeapBuffer(heap: MetalObject, length: int, offset: int | None = None, *,
                    label: str | None = None) -> MetalObject:
    """A buffer in a heap, at `offset` when it is a placement heap (MetalHeapPlan). Memory when it has no room."""
    device = _expect(heap, "MTLHeap").device()
    with MetalPool():
        length = _checked_length(device, length)
        options = heap.cpuCacheMode() | heap.storageMode() << 4 | heap.hazardTrackingMode() << 8
        need = device.heapBufferSizeAndAlignWithLength_options_(length, options)
        return _in_heap(heap, "newBufferWithLength:options", (length, options), offset, need, label)


def _in_heap(heap: MetalObject, selector: str, arguments: tuple[Any, ...], offset: int | None, need: Any,
             label: str | None) -> MetalObject:
    if (heap.type() == 1) != (offset is not None):
        raise _bad("a placement heap needs an offset, another heap takes none")
    if offset is not None:
        size = heap.size()
        if not hasattr(offset, "__index__") or offset < 0 or offset % need.align or offset + need.size > size:
            raise _bad("%d bytes at %r, a multiple of %d, are not inside a heap of %d"
                       % (need.size, offset, need.align, size))
        selector, arguments = selector + ":offset", (*arguments, offset)
    return _given(MetalSend(heap, selector + ":", *arguments), "resource in this heap", label)


def _not_a_guest(device: MetalObject, what: str) -> MetalObject:
    """What a virtual machine's Metal asserts on although it has the methods: indirect commands (tinygrad 10182:
    "resource != nil"), archives from files (macOS 26: "Target device architecture is nil")."""
    if "virtual" in device.name().lower():
        raise _fail(ERROR_NOT_SUPPORTED, REASON_VIRTUAL_MACHINE, "Metal", "no %s %s" % (device.name(), what))
    return device


class MetalIndirectCommands:
    """Dispatches encoded once (MetalIndirect), run as often as you like (MetalEncodeIndirect); keeps what they use."""
    __slots__ = ("buffer", "count", "pipelines", "resources")

    def __init__(self, buffer: MetalObject, count: int, pipelines: list[MetalObject],
                 resources: list[MetalObject]) -> None:
        self.buffer, self.count, self.pipelines, self.resources = buffer, count, pipelines, resources


def MetalIndirect(commands: Sequence[Sequence[Any]], device: MetalObject | None = None, *, ordered: bool = True,
                  label: str | None = None) -> MetalIndirectCommands:
    """Encode dispatches into an indirect command buffer: (pipeline, threads, argument, ...) each, arguments as in
    MetalEncodeDispatch (values are put into a buffer). The pipelines are made with indirect=True. ordered: each waits
    for the one before it. NotSupported in a virtual machine, whose Metal ends the process over them."""
    commands = _listed(commands, "commands")
    if not 0 < len(commands) <= 16384:
        raise _bad("an indirect command buffer holds 1 to 16384 commands, not %d" % len(commands))
    if not all(isinstance(command, (list, tuple)) for command in commands):
        raise _bad("each command is (pipeline, threads, argument, ...)")
    device = _not_a_guest(_device(device), "runs indirect commands")
    with MetalPool():
        plans = [_indirect_plan(*command) for command in commands]
        room = sum(-(-len(one[1]) // 256) * 256 for plan in plans for one in plan[3] if len(one) == 2)
        values = MetalBuffer(room or 16, device)
        descriptor = _new(
            "MTLIndirectCommandBufferDescriptor", CommandTypes=64,      # ...TypeConcurrentDispatchThreads
            InheritBuffers=False, InheritPipelineState=False,
            MaxKernelBufferBindCount=max(one[0] + 1 for plan in plans for one in plan[3] or [(0,)]))
        buffer = _given(device.newIndirectCommandBufferWithDescriptor_maxCommandCount_options_(
            descriptor, len(plans), 0), "indirect command buffer", label)
        pipelines, resources, at = {}, {values._pointer: values}, 0
        for n, (pipeline, grid, block, bound) in enumerate(plans):
            command = buffer.indirectComputeCommandAtIndex_(n)
            command.setComputePipelineState_(pipeline)
            pipelines[pipeline._pointer] = pipeline
            for one in bound:
                resource, offset = (one[1], one[3]) if len(one) == 4 else (values, at)
                if len(one) == 2:
                    MetalWrite(values, one[1], at)
                    at += -(-len(one[1]) // 256) * 256
                resources[resource._pointer] = resource
                command.setKernelBuffer_offset_atIndex_(resource, offset, one[0])
            command.concurrentDispatchThreads_threadsPerThreadgroup_(grid, block)
            if ordered:
                command.setBarrier()
    return MetalIndirectCommands(buffer, len(plans), list(pipelines.values()), list(resources.values()))


def _indirect_plan(pipeline: Any = None, threads: Any = None, *arguments: Any) -> tuple[Any, ...]:
    limits, grid = MetalPipelineInfo(pipeline), _size(threads, "grid")
    if not pipeline.supportIndirectCommandBuffers():
        raise _bad("make this pipeline with MetalPipeline(..., indirect=True)")
    bound = _bindings(arguments)
    if any(len(one) == 4 and one[3] >= 1 << 32 for one in bound):      # the GPU keeps 32 bits of it (tinygrad)
        raise _bad("an indirect command reaches only the first 4 GiB of a buffer")
    return pipeline, grid, _group(grid, limits, True), bound


def MetalEncodeIndirect(work: MetalWork, commands: MetalIndirectCommands, first: int = 0,
                        count: int | None = None) -> None:
    """Record a run of indirect commands, all or `count` from `first`. On Apple7 and Apple8 (M1, M2) the GPU faults
    unless the encoder has seen each pipeline, so an empty dispatch of each goes before (as tinygrad does); resources
    are named with useResource."""
    if not isinstance(commands, MetalIndirectCommands):
        raise _bad("the commands of MetalIndirect are wanted, not %r" % (commands,))
    first, count = _in_buffer(commands.count, first, count)
    if not count:
        raise _bad("no command to run")

    def encode(encoder: MetalObject) -> None:
        if not encoder.device().supportsFamily_(1009):      # MTLGPUFamilyApple9
            for pipeline in commands.pipelines:
                encoder.setComputePipelineState_(pipeline)
                encoder.dispatchThreadgroups_threadsPerThreadgroup_((0, 0, 0), (0, 0, 0))
        for resource in commands.resources:
            encoder.useResource_usage_(resource, 3)
        encoder.executeCommandsInBuffer_withRange_(commands.buffer, (first, count))
    MetalEncode(work, "compute", encode)
    # An indirect command buffer holds none of its pipelines: the handler does, until the GPU is done.
    MetalEncode(work, "none", lambda command: command.addCompletedHandler_(lambda _, keep=commands: None))


def MetalArchive(path: str | None = None, device: MetalObject | None = None, *,
                 label: str | None = None) -> MetalObject:
    """An archive of compiled pipelines: an empty one, or that of a file. NotFound without the file, MetalError when
    this GPU or macOS cannot use it (then compile again), NotSupported for a file in a virtual machine."""
    device = _device(device)
    if path is not None:
        _not_a_guest(device, "loads archives")
    with MetalPool():
        descriptor = _new("MTLBinaryArchiveDescriptor", Url=None if path is None else _file_url(_existing(path)))
        return _given(device.newBinaryArchiveWithDescriptor_error_(descriptor), "archive", label)


def MetalArchiveAdd(archive: MetalObject, *what: MetalObject) -> None:
    """Compile kernels (functions), or compute and render pipeline descriptors, into an archive."""
    _expect(archive, "MTLBinaryArchive")
    with MetalPool():
        for one in what:
            if _conforms(one, "MTLRenderPipelineDescriptor"):
                archive.addRenderPipelineFunctionsWithDescriptor_error_(one)
                continue
            if not _conforms(one, "MTLComputePipelineDescriptor"):
                one = _new("MTLComputePipelineDescriptor", ComputeFunction=_expect_function(one, "kernel"))
            archive.addComputePipelineFunctionsWithDescriptor_error_(one)


def MetalArchiveSave(archive: MetalObject, path: str) -> None:
    """Write an archive into a file. MetalError when Metal cannot (an empty archive)."""
    _expect(archive, "MTLBinaryArchive")
    with MetalPool():
        archive.serializeToURL_error_(_file_url(path))


def MetalArchivePipeline(archive: MetalObject, function: MetalObject) -> MetalObject:
    """The compute pipeline of a kernel from an archive, without compiling. MetalError when it is not in there."""
    with MetalPool():
        descriptor = _new("MTLComputePipelineDescriptor", ComputeFunction=_expect_function(function, "kernel"),
                          BinaryArchives=[_expect(archive, "MTLBinaryArchive")])
        return _given(function.device().newComputePipelineStateWithDescriptor_options_reflection_error_(
            descriptor, 4, None), "pipeline")       # MTLPipelineOptionFailOnBinaryArchiveMiss


class MetalCapture:
    """with MetalCapture("frame.gputrace"): ... writes what a device, queue or scope does into a file for Xcode.
    NotSupported unless the program was started with MTL_CAPTURE_ENABLED=1; MetalError when the file exists."""
    __slots__ = ("path", "what", "manager")

    def __init__(self, path: str, what: MetalObject | None = None) -> None:
        self.path, self.what = os.fspath(path), what
        self.manager: Any = None

    def __enter__(self) -> MetalCapture:
        with MetalPool():
            what = MetalDevice() if self.what is None else self.what
            if not isinstance(what, MetalObject):
                raise _bad("a device, a queue or a capture scope is wanted, not %.80r" % (what,))
            manager = MetalClass("MTLCaptureManager").sharedCaptureManager()
            if not manager.supportsDestination_(2):     # MTLCaptureDestinationGPUTraceDocument
                raise _fail(ERROR_NOT_SUPPORTED, None, "Metal", "start the program with MTL_CAPTURE_ENABLED=1")
            manager.startCaptureWithDescriptor_error_(_new("MTLCaptureDescriptor", CaptureObject=what, Destination=2,
                                                           OutputURL=_file_url(self.path)))
            self.manager = manager
        return self

    def __exit__(self, *_: object) -> None:
        manager, self.manager = self.manager, None
        if manager is not None:
            manager.stopCapture()


# ---- any object, any method

def MetalClass(name: str) -> MetalObject:
    """The Objective-C class `name` (of Foundation, Metal or a framework loaded with MetalFramework), for its class
    methods: MetalClass("MTLTextureDescriptor").new(). NotFound when there is no such class on this macOS."""
    _objc()
    pointer = _c.objc_getClass(name.encode())
    if not pointer:
        raise _fail(ERROR_NOT_FOUND, None, "objc", "there is no class %s here" % name)
    one: MetalObject = _wrap(pointer)
    return one


def MetalSend(receiver: MetalObject, selector: str, *arguments: Any) -> Any:
    """Send any selector by its Objective-C name: MetalSend(device, "newBufferWithLength:options:", 4096, 0). Types,
    counts and liveness are checked; values are not: what Metal's validation layer aborts on aborts here too."""
    if not isinstance(receiver, MetalObject):
        raise _bad("a Metal object is wanted, not %r" % (receiver,))
    name = _mangle(selector)
    method = None if "_" in selector or hasattr(MetalObject, name) else getattr(receiver, name, None)
    if method is not None:          # compiled once per class; what Python's own names hide is looked up each time
        return method(*arguments)
    return _method(_objc().class_of(receiver._pointer), selector, receiver)(receiver, *arguments)


def MetalFramework(name: str) -> None:
    """Load a system framework ("MetalPerformanceShaders", "QuartzCore", "MetalFX"), so that MetalClass finds its
    classes, and objects of other classes have the methods it adds to them. NotSupported when this macOS has none of
    that name."""
    _objc()
    if not isinstance(name, str):
        raise _bad("a framework's name is a str, not %r" % (name,))
    if name not in _c.libraries:
        _LIBRARIES.setdefault(name, "/System/Library/Frameworks/%s.framework/%s" % (name, name))
        _c.library(name)
        _see_categories()


def MetalString(symbol: str, framework: str = "Metal") -> str:
    """The text of an exported NSString constant, for example MetalString("MTLCommonCounterSetTimestamp"); NotSupported
    without the framework."""
    MetalFramework(framework)
    with MetalPool():
        text = _wrap(ctypes.c_void_p.from_address(_c.address(framework, symbol)).value)
    return text if isinstance(text, str) else ""


def MetalAddress(one: MetalObject) -> int:
    """The object's address, to hand it to other code; it stays valid while `one` lives."""
    return one._pointer


def MetalWrap(address: int, owned: bool = False) -> Any:
    """The Python object of an Objective-C object from elsewhere; `owned` gives its retain count to us."""
    with MetalPool():
        return _wrap(None if address is None else _whole(address, 0, _U64, "an address"), owned)


def MetalRelease(*objects: MetalObject) -> None:
    """Give objects back now instead of when Python lets go of them. Every later use of one raises InvalidArgument; a
    view that MetalContents gave of a buffer must not be read any more."""
    runtime = _objc()
    for one in objects:
        if not isinstance(one, MetalObject):
            raise _bad("a Metal object is wanted, not %.80r" % (one,))
        pointer = one._pointer
        with runtime.lock:
            reference = runtime.cache.get(pointer)
            ours = reference is not None and reference() is one and reference.pointer
            if ours and reference is not None:
                reference.pointer = 0
                del runtime.cache[pointer]
                one._facts = None
                one.__class__ = _Released
        if ours:
            _release(pointer)


def MetalObjects() -> tuple[MetalObject, ...]:
    """The Objective-C objects that Python holds now: what is left over after a piece of work is a leak of yours."""
    if _runtime is None:
        return ()
    alive = (reference() for reference in list(_runtime.cache.values()))
    return tuple(one for one in alive if one is not None)


def MetalMemory(device: MetalObject | None = None) -> MetalMemoryInfo:
    """Metal memory of this process, bytes; for all processes see MemoryGetUsed."""
    device, objects = _device(device), MetalObjects()
    with MetalPool():
        tracked = sum(_maybe(one, "allocatedSize") or 0 for one in objects if _conforms(one, "MTLResource"))
        return MetalMemoryInfo(device.currentAllocatedSize(), device.recommendedMaxWorkingSetSize(), tracked,
                               len(objects))


# ---- checks, and objects made from descriptors

_U64 = (1 << 64) - 1


def _gone(kept: Any) -> bool:
    """Whether an object that is kept for later has to be made: never yet, or given back with MetalRelease."""
    return kept is None or type(kept) is _Released


def _conforms(one: Any, name: str) -> bool:
    """Whether it is an object of a protocol, or of a descriptor's class; asked once per Python class."""
    if not isinstance(one, MetalObject):
        return False
    key = (type(one), name)
    known = _objc().conforming.get(key)
    if known is None:
        family, protocols = (name, []) if name.endswith("Descriptor") else ("", [name])
        known = _objc().conforming[key] = _is_kind(one._pointer, family, protocols)
    return known


# Who makes an object of a protocol or class: Metal... for MTL...State and MTL...Descriptor, and these.
_MAKERS = {"MTLLibrary": "MetalCompile", "MTLComputePipelineState": "MetalKernel or MetalPipeline",
           "MTLCommandQueue": "MetalQueue", "MTLSharedEvent": "MetalEvent", "MTLVertexDescriptor": "MetalVertexLayout",
           "MTLResource": "MetalBuffer or MetalTexture", "MTLAllocation": "MetalBuffer or MetalTexture",
           "MTLBinaryArchive": "MetalArchive"}


def _expect(one: Any, name: str) -> MetalObject:
    """An object of a protocol or a descriptor's class; a wrong one is an error here, where Metal would crash."""
    if not _conforms(one, name):
        maker = _MAKERS.get(name, "Metal" + name[3:].replace("State", "").replace("Descriptor", ""))
        raise _bad("an %s is wanted (%s makes one), not %.80r" % (name, maker, one))
    checked: MetalObject = one
    return checked


def _expect_all(values: Any, name: str, most: int = _U64) -> tuple[MetalObject, ...]:
    """Objects of a protocol, from a list, a set, whatever gives one after the other."""
    if values.__class__ is tuple and not values:
        return ()
    objects = _listed(values, "%s objects" % name)
    if len(objects) > most:
        raise _bad("at most %d %s objects can be given, not %d" % (most, name, len(objects)))
    return tuple([_expect(one, name) for one in objects])


def _listed(values: Any, what: str) -> tuple[Any, ...]:
    if getattr(values, "__iter__", None) is None:
        raise _bad("a list of %s is wanted, not %.80r" % (what, values))
    return tuple(values)


def _given(one: Any, what: str, label: str | None = None) -> MetalObject:
    """What Metal was asked for, labelled; it gives nil when there is no room or no more of that kind."""
    if one is None:
        raise _fail(ERROR_MEMORY, None, "Metal", "Metal makes no further %s" % what)
    given: MetalObject = one
    return given if label is None else _set(given, Label=label)


def _whole(value: Any, least: int, most: int, what: str) -> int:
    """A whole number of a range, NumPy's too; `what` names it in the error."""
    try:
        number: int = value.__index__()
        if least <= number <= most and not isinstance(value, bool):
            return number
    except (AttributeError, TypeError):
        pass
    raise _bad("%s is %d to %d, not %.80r" % (what, least, most, value))


def _set(one: MetalObject, **properties: Any) -> MetalObject:
    """Send set...: for each property by Objective-C's name (Label=, Width=); None leaves it alone, errors name it."""
    for name, value in properties.items():
        if value is not None:
            try:
                MetalSend(one, "set%s:" % name, value)
            except (TypeError, OverflowError) as error:
                raise _bad("%s of %s: %s" % (name, type(one).__name__, error)) from None
    return one


def _new(name: str, **properties: Any) -> MetalObject:
    """A new object of a class, a descriptor, with properties set."""
    return _set(MetalClass(name).new(), **properties)


def _maybe(one: MetalObject, name: str) -> Any:
    """A property that an older macOS does not have, or None."""
    method = getattr(one, name, None)
    return method() if method is not None else None


# ---- constants: Apple's names, in one table, opened at the first use
# What names of an enumeration begin with, and their ends, spelled short as _spelled says; "=n" where a value does not
# follow the one before.
# macOS 14.2 SDK, and the macOS 26 ones of objc2-generated and pyobjc where both agree.

_ENUMS = """
MTL4AlphaToCoverageState,MTL4AlphaToOneState,MTL4IndirectCommandBufferSupportState Disabled Enabled;
MTL4BinaryFunctionOption None PipelineIndependent=2; MTL4BlendState Disabled Enabled Unspecialized;
MTL4CommandQueueError None Timeout NotPermitted OutOfMemory DeviceRemoved AccessRevoked Internal; MTL4CompilerTaskStatus
None Scheduled Compiling Finished; MTL4CounterHeapType Invalid Timestamp;
MTL4LogicalToPhysicalColorAttachmentMappingState Identity Inherited; MTL4PipelineDataSetSerializerConfiguration
CaptureDescriptors=1 CaptureBinaries; MTL4RenderEncoderOption None Suspending Resuming; MTL4ShaderReflection None
BindingInfo BufferTypeInfo; MTL4TimestampGranularity Relaxed Precise; MTL4VisibilityOption None Device ResourceAlias;
MTLAccelerationStructureInstanceDescriptorType Default UserID Motion Indirect IndirectMotion;
MTLAccelerationStructureInstanceOption None DisableTriangleCulling TriangleFrontFacingWindingCounterClockwise Opaque=4
NonOpaque=8; MTLAccelerationStructureRefitOption VertexData=1 PerPrimitiveData; MTLAccelerationStructureUsage None Refit
PreferFastBuild ExtendedLimits=4 PreferFastIntersection=16 MinimizeMemory=32; MTLArgumentBuffersTier 1 2;
MTLArgumentType,MTLBindingType Buffer ThreadgroupMemory Texture Sampler ImageblockData=16 Imageblock
VisibleFunctionTable=24 PrimitiveAccelerationStructure InstanceAccelerationStructure IntersectionFunctionTable;
MTLAttributeFormat,MTLVertexFormat Invalid [UChar,Char][2:4] [UChar,Char][2:4]Normalized [UShort,Short][2:4]
[UShort,Short][2:4]Normalized Half[2:4] [Float,Int,UInt][,2,3,4] Int1010102Normalized UInt1010102Normalized
UChar4Normalized_BGRA [UChar,Char]=45 [UChar,Char]Normalized [UShort,Short] [UShort,Short]Normalized Half FloatRG11B10
FloatRGB9E5; MTLBarrierScope Buffers=1 Textures RenderTargets=4; MTLBinaryArchiveError None InvalidFile
UnexpectedElement CompilationFailure InternalError; MTLBindingAccess,MTLArgumentAccess ReadOnly ReadWrite WriteOnly;
MTLBindingType ObjectPayload=34 Tensor=37; MTLBlendFactor Zero One [,OneMinus]SourceColor [,OneMinus]SourceAlpha
[,OneMinus]DestinationColor [,OneMinus]DestinationAlpha SourceAlphaSaturated [,OneMinus]BlendColor [,OneMinus]BlendAlpha
[,OneMinus]Source1Color [,OneMinus]Source1Alpha Unspecialized; MTLBlendOperation Add Subtract ReverseSubtract Min Max
Unspecialized; MTLBlitOption None DepthFromDepthStencil StencilFromDepthStencil RowLinearPVRTC=4; MTLBufferSparseTier
None 1; MTLCPUCacheMode,MTLResourceCPUCacheMode DefaultCache WriteCombined; MTLCaptureDestination DeveloperTools=1
GPUTraceDocument; MTLCaptureError NotSupported=1 AlreadyCapturing InvalidDescriptor; MTLColorWriteMask None Red=8
Green=4 Blue=2 Alpha=1 All=15 Unspecialized; MTLCommandBufferError None Internal Timeout PageFault Blacklisted
AccessRevoked=4 NotPermitted=7 OutOfMemory InvalidResource Memoryless DeviceRemoved StackOverflow;
MTLCommandBufferErrorOption None EncoderExecutionStatus; MTLCommandBufferStatus NotEnqueued Enqueued Committed Scheduled
Completed Error; MTLCommandEncoderErrorState Unknown Completed Affected Pending Faulted; MTLCompareFunction Never Less
Equal LessEqual Greater NotEqual GreaterEqual Always; MTLCompileSymbolVisibility Default Hidden;
MTLCounterSampleBufferError OutOfMemory Invalid Internal; MTLCounterSamplingPoint AtStageBoundary AtDrawBoundary
AtDispatchBoundary AtTileDispatchBoundary AtBlitBoundary; MTLCullMode None Front Back; MTLCurveBasis BSpline CatmullRom
Linear Bezier; MTLCurveEndCaps None Disk Sphere; MTLCurveType Round Flat; MTLDataType None Struct Array Float[,2,3,4]
Float[2:4]x[2:4] Half[,2,3,4] Half[2:4]x[2:4] [Int,UInt,Short,UShort,Char,UChar,Bool][,2,3,4] Texture=58 Sampler Pointer
[R8,R16,RG8,RG16][Unorm,Snorm]=62 RGBA8Unorm RGBA8Unorm_sRGB RGBA8Snorm RGBA16Unorm RGBA16Snorm RGB10A2Unorm
RG11B10Float RGB9E5Float RenderPipeline ComputePipeline IndirectCommandBuffer [Long,ULong][,2,3,4]
VisibleFunctionTable=115 IntersectionFunctionTable PrimitiveAccelerationStructure InstanceAccelerationStructure
BFloat[,2,3,4]=121 DepthStencilState=139 Tensor; MTLDepthClipMode Clip Clamp; MTLDeviceError None NotSupported;
MTLDeviceLocation BuiltIn Slot External Unspecified=0xffffffffffffffff; MTLDispatchType Serial Concurrent;
MTLDynamicLibraryError None InvalidFile CompilationFailure UnresolvedInstallName DependencyLoadFailure Unsupported;
MTLFeatureSet _iOS_GPUFamily[1:2]_v1 _iOS_GPUFamily[1:2]_v2 _iOS_GPUFamily3_v1 _iOS_GPUFamily1_v3 _iOS_GPUFamily2_v3
_iOS_GPUFamily3_v2 _iOS_GPUFamily1_v4 _iOS_GPUFamily2_v4 _iOS_GPUFamily3_v3 _iOS_GPUFamily4_v1 _iOS_GPUFamily1_v5
_iOS_GPUFamily2_v5 _iOS_GPUFamily3_v4 _iOS_GPUFamily4_v2 _iOS_GPUFamily5_v1 _macOS_GPUFamily1_v1=10000
_OSX_GPUFamily1_v1=10000 _macOS_GPUFamily1_v2 _OSX_GPUFamily1_v2=10001 _macOS_ReadWriteTextureTier2
_OSX_ReadWriteTextureTier2=10002 _macOS_GPUFamily1_v3 _macOS_GPUFamily1_v4 _macOS_GPUFamily2_v1
_tvOS_GPUFamily1_v1=30000 _TVOS_GPUFamily1_v1=30000 _tvOS_GPUFamily1_v2 _tvOS_GPUFamily1_v3 _tvOS_GPUFamily2_v1
_tvOS_GPUFamily1_v4 _tvOS_GPUFamily2_v2; MTLFunctionLogType Validation; MTLFunctionOption None CompileToBinary
StoreFunctionInMetalScript StoreFunctionInMetalPipelinesScript=2 FailOnBinaryArchiveMiss=4 PipelineIndependent=8;
MTLFunctionType Vertex=1 Fragment Kernel Visible=5 Intersection Mesh Object; MTLGPUFamily Apple[1:9]=1001 Mac[1:2]=2001
Common[1:3]=3001 MacCatalyst[1:2]=4001 Metal3=5001 Apple10=1010 Metal4=5002; MTLHazardTrackingMode Default Untracked
Tracked; MTLHeapType Automatic Placement Sparse; MTLIOCommandQueueType Concurrent Serial; MTLIOCompressionMethod Zlib
LZFSE LZ4 LZMA LZBitmap; MTLIOCompressionStatus Complete Error; MTLIOError URLInvalid=1 Internal; MTLIOPriority High
Normal Low; MTLIOStatus Pending Cancelled Error Complete; MTLIndexType UInt16 UInt32; MTLIndirectCommandType Draw=1
DrawIndexed DrawPatches=4 DrawIndexedPatches=8 ConcurrentDispatch=32 ConcurrentDispatchThreads=64
DrawMeshThreadgroups=128 DrawMeshThreads=256; MTLIntersectionFunctionSignature None Instancing TriangleData
WorldSpaceData=4 InstanceMotion=8 PrimitiveMotion=16 ExtendedLimits=32 MaxLevels=64 CurveData=128
IntersectionFunctionBuffer=256 UserData=512; MTLLanguageVersion 1_[0:2]=65536 2_[0:4]=131072 3_[0:2]=196608 4_0=262144;
MTLLibraryError Unsupported=1 Internal CompileFailure CompileWarning FunctionNotFound FileNotFound;
MTLLibraryOptimizationLevel Default Size; MTLLibraryType Executable Dynamic; MTLLoadAction DontCare Load Clear;
MTLLogLevel Undefined Debug Info Notice Error Fault; MTLLogStateError InvalidSize=1 Invalid;
MTLMathFloatingPointFunctions Fast Precise; MTLMathMode Safe Relaxed Fast; MTLMatrixLayout ColumnMajor RowMajor;
MTLMotionBorderMode Clamp Vanish; MTLMultisampleDepthResolveFilter Sample0 Min Max; MTLMultisampleStencilResolveFilter
Sample0 DepthResolvedSample; MTLMutability Default Mutable Immutable; MTLPatchType None Triangle Quad; MTLPipelineOption
None ArgumentInfo BufferTypeInfo FailOnBinaryArchiveMiss=4 BindingInfo=1; MTLPixelFormat Invalid A8Unorm
R8[Unorm,Unorm_sRGB,Snorm,Uint,Sint]=10 R16Unorm=20 R16[Snorm,Uint,Sint,Float]=22
RG8[Unorm,Unorm_sRGB,Snorm,Uint,Sint]=30 B5G6R5Unorm=40 A1BGR5Unorm ABGR4Unorm BGR5A1Unorm R32[Uint,Sint,Float]=53
RG16Unorm=60 RG16[Snorm,Uint,Sint,Float]=62 RGBA8[Unorm,Unorm_sRGB,Snorm,Uint,Sint]=70 BGRA8Unorm[,_sRGB]=80
RGB10A2Unorm=90 RGB10A2Uint RG11B10Float RGB9E5Float BGR10A2Unorm BGR10_XR[,_sRGB]=554 RG32[Uint,Sint,Float]=103
RGBA16Unorm=110 RGBA16[Snorm,Uint,Sint,Float]=112 BGRA10_XR[,_sRGB]=552 RGBA32[Uint,Sint,Float]=123
BC[1:3]_RGBA[,_sRGB]=130 [BC4_R,BC5_RG][Unorm,Snorm]=140 BC6H_RGB[Float,Ufloat]=150 BC7_RGBAUnorm[,_sRGB]
PVRTC_[RGB,RGBA]_[2,4]BPP[,_sRGB]=160 EAC_R11Unorm=170 EAC_R11Snorm=172 EAC_RG11Unorm=174 EAC_RG11Snorm=176
[EAC_RGBA8,ETC2_RGB8,ETC2_RGB8A1][,_sRGB]=178 ASTC_[4x4,5x4,5x5,6x5,6x6]_sRGB=186
ASTC_[8x5,8x6,8x8,10x5,10x6,10x8,10x10,12x10,12x12]_sRGB=192 ASTC_[4x4,5x4,5x5,6x5,6x6]_LDR=204
ASTC_[8x5,8x6,8x8,10x5,10x6,10x8,10x10,12x10,12x12]_LDR=210 ASTC_[4x4,5x4,5x5,6x5,6x6]_HDR=222
ASTC_[8x5,8x6,8x8,10x5,10x6,10x8,10x10,12x10,12x12]_HDR=228 GBGR422=240 BGRG422 Depth16Unorm=250 Depth32Float=252
Stencil8 Depth24Unorm_Stencil8=255 Depth32Float_Stencil8=260 X32_Stencil8 X24_Stencil8 Unspecialized;
MTLPrimitiveTopologyClass Unspecified Point Line Triangle; MTLPrimitiveType Point Line LineStrip Triangle TriangleStrip;
MTLPurgeableState KeepCurrent=1 NonVolatile Volatile Empty; MTLReadWriteTextureTier,MTLTextureSparseTier None 1 2;
MTLRenderStage Vertex=1 Fragment Tile=4 Object=8 Mesh=16; MTLResourceStorageMode Shared Managed=16 Private=32
Memoryless=48; MTLResourceHazardTrackingMode Default Untracked=256 Tracked=512; MTLResourceOptionCPUCacheMode Default
WriteCombined; MTLResourceUsage Read=1 Write Sample=4; MTLSamplerAddressMode ClampToEdge MirrorClampToEdge Repeat
MirrorRepeat ClampToZero ClampToBorderColor; MTLSamplerBorderColor TransparentBlack OpaqueBlack OpaqueWhite;
MTLSamplerMinMagFilter Nearest Linear; MTLSamplerMipFilter NotMipmapped Nearest Linear; MTLSamplerReductionMode
WeightedAverage Minimum Maximum; MTLShaderValidation Default Enabled Disabled; MTLSparsePageSize 16=101 64 256;
MTLSparseTextureMappingMode Map Unmap; MTLSparseTextureRegionAlignmentMode Outward Inward; MTLStage Vertex=1 Fragment
Tile=4 Object=8 Mesh=16 ResourceState=0x4000000 Dispatch=0x8000000 Blit=0x10000000 AccelerationStructure=0x20000000
MachineLearning=0x40000000 All=0x7fffffffffffffff; MTLStencilOperation Keep Zero Replace IncrementClamp DecrementClamp
Invert IncrementWrap DecrementWrap; MTLStepFunction Constant PerVertex PerInstance PerPatch PerPatchControlPoint
ThreadPositionInGridX ThreadPositionInGridY ThreadPositionInGridXIndexed ThreadPositionInGridYIndexed;
MTLStitchedLibraryOption None FailOnBinaryArchiveMiss StoreLibraryInMetalPipelinesScript; MTLStorageMode Shared Managed
Private Memoryless; MTLStoreAction DontCare Store MultisampleResolve StoreAndMultisampleResolve Unknown
CustomSampleDepthStore; MTLStoreActionOption None CustomSamplePositions; MTLTensorDataType None Float32=3 Float16=16
BFloat16=121 Int8=45 UInt8=49 Int16=37 UInt16=41 Int32=29 UInt32=33 Int4=143 UInt4; MTLTensorError None InternalError
InvalidDescriptor; MTLTensorUsage Compute=1 Render MachineLearning=4; MTLTessellationControlPointIndexType None UInt16
UInt32; MTLTessellationFactorFormat Half; MTLTessellationFactorStepFunction Constant PerPatch PerInstance
PerPatchAndPerInstance; MTLTessellationPartitionMode Pow2 Integer FractionalOdd FractionalEven;
MTLTextureCompressionType Lossless Lossy; MTLTextureSwizzle Zero One Red Green Blue Alpha; MTLTextureType 1D 1DArray 2D
2DArray 2DMultisample Cube CubeArray 3D 2DMultisampleArray TextureBuffer; MTLTextureUsage Unknown ShaderRead ShaderWrite
RenderTarget=4 PixelFormatView=16 ShaderAtomic=32; MTLTransformType PackedFloat4x3 Component; MTLTriangleFillMode Fill
Lines; MTLVertexStepFunction Constant PerVertex PerInstance PerPatch PerPatchControlPoint; MTLVisibilityResultMode
Disabled Boolean Counting; MTLVisibilityResultType Reset Accumulate; MTLWinding Clockwise CounterClockwise"""
_constants: dict[str, int] = {}
_enumerations: dict[str, dict[int, str]] = {}       # prefix -> value -> the first name that has it


def _open_constants() -> dict[str, int]:
    if not _constants:
        _constants.update(_unpacked(_ENUMS))        # at once: another thread must not see half of them
    return _constants


def _unpacked(rows: str) -> dict[str, int]:
    """The constants of a table as _ENUMS; names may be spelled short as _spelled says."""
    found = {}
    for row in rows.split(";"):
        prefixes, *names = row.split()
        value = -1
        for one in names:
            name, _, number = one.partition("=")
            value = int(number, 0) - 1 if number else value
            for end in _spelled(name):
                value += 1
                for prefix in prefixes.split(","):
                    found[prefix + end] = value
    return found


def _spelled(name: str) -> list[str]:
    """The names that L[0:1]_[R,T]X stands for: L0_RX, L0_TX, L1_RX, L1_TX."""
    start, bracket, rest = name.partition("[")
    if not bracket:
        return [name]
    inside, _, end = rest.partition("]")
    first, colon, last = inside.partition(":")
    choices = map(str, range(int(first), int(last) + 1)) if colon else inside.split(",")
    return [start + choice + more for choice in choices for more in _spelled(end)]


def _enumeration(prefix: str) -> dict[int, str]:
    """The names of an enumeration's constants, without its own; the first where several have one value."""
    names = _enumerations.get(prefix)
    if names is None:
        names = {}
        for name, value in _open_constants().items():
            if name.startswith(prefix):
                names.setdefault(value, name[len(prefix):])
        _enumerations[prefix] = names
    return names


def _constant_of(prefix: str, value: Any) -> int:
    """A constant of an enumeration by its name, in any case, or its number."""
    if not isinstance(value, str):
        return _whole(value, 0, _U64, prefix)
    number = _open_constants().get(prefix + value[:1].upper() + value[1:])
    if number is not None:
        return number
    known = _enumeration(prefix)
    for number, name in known.items():
        if name.lower() == value.lower():
            return number
    names = list(known.values())
    if len(names) > 20:
        from difflib import get_close_matches
        names = get_close_matches(value, names, 9, 0.4) or names[1:10]
    raise _bad("%.80r is no %s; there is %s" % (value, prefix, ", ".join(names)))


def __getattr__(name: str) -> Any:
    """Metal's constants (MTLPixelFormatRGBA8Unorm) and structs (MTLSize); nothing else, never kept in the module."""
    if name.startswith(("MTL", "CG", "NS")):
        value = _open_constants().get(name)
        if value is not None:
            return value
        if name in _STRUCTS:
            _objc()
            return _struct(name)
    raise AttributeError("module %r has no attribute %r" % (__name__, name))


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_open_constants()) | set(_STRUCTS))


# ======================================================================================================================
# NVML names
# ======================================================================================================================

# What NVIDIA programs call: names, shapes and numbers of nvidia-ml-py, every figure from the functions above, and
# NVMLError_NotSupported for what Apple silicon has not. Opt in per process: `import pyapplegpu as pynvml`, or
# `sys.modules["pynvml"] = pyapplegpu` before the client is imported. Shapes that cannot hold a gap: utilization's
# `.memory` is 0 (Apple has no such counter) and memory v2's `.reserved` is 0.

NVML_SUCCESS = NVML_BRAND_UNKNOWN = NVML_TEMPERATURE_GPU = NVML_FEATURE_DISABLED = NVML_COMPUTEMODE_DEFAULT = 0
NVML_CLOCK_GRAPHICS, NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_CLOCK_VIDEO = range(4)
NVML_CLOCK_ID_CURRENT = NVML_POWER_SOURCE_AC = NVML_POWER_SCOPE_GPU = 0
NVML_POWER_SOURCE_BATTERY = NVML_VALUE_TYPE_UNSIGNED_INT = 1
NVML_POWER_SCOPE_MEMORY, NVML_VALUE_TYPE_UNSIGNED_LONG_LONG = 2, 3
NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION, NVML_FI_DEV_POWER_AVERAGE, NVML_FI_DEV_POWER_INSTANT = 83, 185, 186
NVML_DEVICE_ARCH_UNKNOWN = 0xFFFFFFFF
NVML_ERROR_ARGUMENT_VERSION_MISMATCH = 25
nvmlMemory_v2, nvmlTemperature_v1 = 0x02000028, 0x0100000C
NVML_VALUE_NOT_AVAILABLE_uint = ctypes.c_uint(-1)
NVML_VALUE_NOT_AVAILABLE_ulonglong = ctypes.c_ulonglong(-1)
NVML_DEVICE_PCI_BUS_ID_LEGACY_FMT, NVML_DEVICE_PCI_BUS_ID_FMT = "%04X:%02X:%02X.0", "%08X:%02X:%02X.0"

# All other numbers of nvidia-ml-py 13.615, as in _ENUMS.
_NVML_CONSTANTS = (
    "NVML_ SINGLE_BIT_ECC TOTAL_POWER_SAMPLES=0 VOLATILE_ECC=0 AGGREGATE_ECC DEV_CAP_EGM=1 DOUBLE_BIT_ECC=1 "
    "FEATURE_ENABLED=1 GPM_METRICS_GET_VERSION=1 GPM_SUPPORT_VERSION=1 ECC_COUNTER_TYPE_COUNT ECC_ERROR_TYPE_COUNT=2 "
    "ENC_UTILIZATION_SAMPLES SUPPORTED_VGPU_SCHEDULER_POLICY_COUNT=3 DEC_UTILIZATION_SAMPLES PROCESSOR_CLK_SAMPLES "
    "MODULE_POWER_SAMPLES=7 JPG_UTILIZATION_SAMPLES OFA_UTILIZATION_SAMPLES SAMPLINGTYPE_COUNT "
    "GSP_FIRMWARE_VERSION_BUF_SIZE=64 FI_DEV_MEMORY_TEMP=82 FI_DEV_PCIE_REPLAY_COUNTER=94 "
    "FI_DEV_PCIE_REPLAY_ROLLOVER_COUNTER FI_DEV_NVSWITCH_CONNECTED_LINK_COUNT=147 "
    "FI_DEV_PCIE_L0_TO_RECOVERY_COUNTER=169 FI_DEV_IS_RESETLESS_MIG_SUPPORTED=184 FI_DEV_ENERGY=191 "
    "FI_DEV_IS_MIG_MODE_INDEPENDENT_MIG_QUERY_CAPABLE=199 SCHEDULER_SW_MAX_LOG_ENTRIES FI_DEV_RESET_STATUS=226 "
    "FI_DEV_DRAIN_AND_RESET_STATUS FI_DEV_PCIE_OUTBOUND_ATOMICS_MASK FI_DEV_PCIE_INBOUND_ATOMICS_MASK "
    "FI_DEV_GET_GPU_RECOVERY_ACTION WORKLOAD_POWER_MAX_PROFILES=255 FI_DEV_EDPP_MULTIPLIER=274 "
    "FI_DEV_MMA_STALL_PERCENT=297 FI_DEV_MCLK_SWITCH_TYPE FI_DEV_MCLK_MIN_SWITCH_INTERVAL_MILLISECONDS "
    "FI_DEV_ACTIVE_BANK_REMAPPINGS=303 FI_DEV_INACTIVE_BANK_REMAPPINGS FI_DEV_PENDING_BANK_REMAPPING=307 "
    "FI_MAX;NVML_ADAPTIVE_CLOCKING_INFO_STATUS_ DISABLED ENABLED;NVML_AFFINITY_SCOPE_ NODE SOCKET;NVML_BRAND_ QUADRO=1 "
    "TESLA NVS GRID GEFORCE TITAN QUADRO_RTX=12 NVIDIA=14 GEFORCE_RTX TITAN_RTX COUNT=20;NVML_BRAND_NVIDIA_ VAPPS=7 "
    "VPC VCS VWS CLOUD_GAMING VGAMING=11 RTX=13 DLA=17 VGAMEDEV NPU;NVML_BRIDGE_CHIP_ PLX BRO4;NVML_BUS_TYPE_ UNKNOWN "
    "PCI PCIE FPCI AGP;NVML_C2C_POWER_STATE_ FULL_POWER LOW_POWER;NVML_CC_ACCEPTING_CLIENT_REQUESTS_ FALSE "
    "TRUE;NVML_CC_CEC_ATTESTATION_REPORT_ NOT_PRESENT PRESENT;NVML_CC_GPU_ CEC_NONCE_SIZE=32 "
    "CEC_ATTESTATION_REPORT_SIZE=4096 ATTESTATION_REPORT_SIZE=8192;NVML_CC_KEY_ROTATION_THRESH_ATTACKER_ADVANTAGE_ "
    "MIN=50 MAX=65;NVML_CC_SYSTEM_ FEATURE_DISABLED GPUS_CC_NOT_CAPABLE=0 FEATURE_ENABLED "
    "GPUS_CC_CAPABLE=1;NVML_CC_SYSTEM_CPU_CAPS_ NONE AMD_SEV INTEL_TDX AMD_SEV_SNP "
    "AMD_SNP_VTOM;NVML_CC_SYSTEM_DEVTOOLS_MODE_ OFF ON;NVML_CC_SYSTEM_ENVIRONMENT_ UNAVAILABLE SIM "
    "PROD;NVML_CC_SYSTEM_MULTIGPU_ NONE PROTECTED_PCIE NVLE;NVML_CLOCK_ ID_APP_CLOCK_TARGET=1 ID_APP_CLOCK_DEFAULT "
    "ID_CUSTOMER_BOOST_MAX COUNT ID_COUNT=4;NVML_CLOCK_LIMIT_ID_ RANGE_START=4294967040 TDP "
    "UNLIMITED;NVML_COMPUTEMODE_ EXCLUSIVE_THREAD=1 PROHIBITED EXCLUSIVE_PROCESS COUNT;NVML_COMPUTE_INSTANCE_ "
    "ENGINE_PROFILE_SHARED ENGINE_PROFILE_COUNT ID_ANY=4294967295;NVML_COMPUTE_INSTANCE_PROFILE_ [1:4]_SLICE 7_SLICE "
    "8_SLICE 6_SLICE 1_SLICE_REV1 7_SLICE_NVL COUNT;NVML_CPER_ CURSOR_HANDLE_INIT ACCESS_TYPE_GPU;NVML_DETACH_GPU_ "
    "KEEP REMOVE;NVML_DEVICE_ MIG_DISABLE MIG_ENABLE INFOROM_VERSION_BUFFER_SIZE=16 GPU_FRU_PART_NUMBER_BUFFER_SIZE=20 "
    "SERIAL_BUFFER_SIZE=30 VBIOS_VERSION_BUFFER_SIZE=32 HOSTNAME_BUFFER_SIZE=64 NAME_BUFFER_SIZE=64 "
    "GPU_PART_NUMBER_BUFFER_SIZE=80 PART_NUMBER_BUFFER_SIZE=80 NAME_V2_BUFFER_SIZE=96 "
    "MEMORY_LIMIT_MAX=0xffffffffffffffff;NVML_DEVICE_ADDRESSING_MODE_ NONE HMM ATS;NVML_DEVICE_ARCH_ KEPLER=2 MAXWELL "
    "PASCAL VOLTA TURING AMPERE ADA HOPPER BLACKWELL DLA DLA2 RUBIN NPU3=15;NVML_DEVICE_PCI_BUS_ID_BUFFER_ V2_SIZE=16 "
    "SIZE=32;NVML_DEVICE_UUID_ BINARY_LEN=16 ASCII_LEN=41 BUFFER_SIZE=80 V2_BUFFER_SIZE=96;NVML_DEVICE_VGPU_CAP_ "
    "FRACTIONAL_MULTI_VGPU HETEROGENEOUS_TIMESLICE_PROFILES HETEROGENEOUS_TIMESLICE_SIZES READ_DEVICE_BUFFER_BW "
    "WRITE_DEVICE_BUFFER_BW DEVICE_STREAMING MINI_QUARTER_GPU COMPUTE_MEDIA_ENGINE_GPU WARM_UPDATE "
    "HOMOGENEOUS_PLACEMENTS MIG_TIMESLICING_SUPPORTED MIG_TIMESLICING_ENABLED COUNT;NVML_DRIVER_ WDDM WDM "
    "MCDM;NVML_ENCODER_QUERY_ H264 HEVC AV1 UNKNOWN=255;NVML_ERROR_ UNINITIALIZED=1 INVALID_ARGUMENT NOT_SUPPORTED "
    "NO_PERMISSION ALREADY_INITIALIZED NOT_FOUND DRIVER_NOT_LOADED=9 TIMEOUT IRQ_ISSUE LIBRARY_NOT_FOUND "
    "FUNCTION_NOT_FOUND CORRUPTED_INFOROM GPU_IS_LOST RESET_REQUIRED OPERATING_SYSTEM LIB_RM_VERSION_MISMATCH IN_USE "
    "MEMORY NO_DATA VGPU_ECC_NOT_SUPPORTED FREQ_NOT_SUPPORTED=24 DEPRECATED=26 NOT_READY GPU_NOT_FOUND INVALID_STATE "
    "RESET_TYPE_NOT_SUPPORTED UNKNOWN=999;NVML_ERROR_INSUFFICIENT_ SIZE=7 POWER RESOURCES=23;NVML_EVENT_DATA_TYPE_ "
    "NVML_EVENT GPU_OPERATIONAL_EVENT;NVML_FAN_ NORMAL FAILED;NVML_FAN_POLICY_ TEMPERATURE_CONTINOUS_SW "
    "MANUAL;NVML_FBC_SESSION_TYPE_ UNKNOWN TOSYS CUDA VID HWENC;NVML_FI_DEV_BANK_REMAPPER_HISTOGRAM_ MAX=305 "
    "NONE;NVML_FI_DEV_C2C_LINK_ COUNT=170 GET_STATUS GET_MAX_BW ERROR_INTR=231 ERROR_REPLAY ERROR_REPLAY_B2B "
    "POWER_STATE;NVML_FI_DEV_CLOCKS_EVENT_REASON_ SW_POWER_CAP=74 SYNC_BOOST=76 SW_THERM_SLOWDOWN=269 "
    "HW_THERM_SLOWDOWN HW_POWER_BRAKE_SLOWDOWN;NVML_FI_DEV_ECC_ CURRENT=1 PENDING SBE_VOL_TOTAL DBE_VOL_TOTAL "
    "SBE_AGG_TOTAL DBE_AGG_TOTAL SBE_VOL_L1 DBE_VOL_L1 SBE_VOL_L2 DBE_VOL_L2 SBE_VOL_DEV DBE_VOL_DEV SBE_VOL_REG "
    "DBE_VOL_REG SBE_VOL_TEX DBE_VOL_TEX DBE_VOL_CBU SBE_AGG_L1 DBE_AGG_L1 SBE_AGG_L2 DBE_AGG_L2 SBE_AGG_DEV "
    "DBE_AGG_DEV SBE_AGG_REG DBE_AGG_REG SBE_AGG_TEX DBE_AGG_TEX DBE_AGG_CBU;NVML_FI_DEV_NVLINK_ SPEED_MBPS_L[0:5]=84 "
    "SPEED_MBPS_COMMON LINK_COUNT SPEED_MBPS_L[6:11]=132 REMOTE_NVLINK_ID=146 ECC_DATA_ERROR_COUNT_L[0:11]=148 "
    "ECC_DATA_ERROR_COUNT_TOTAL ERROR_DL_REPLAY ERROR_DL_RECOVERY ERROR_DL_CRC GET_SPEED GET_STATE GET_VERSION "
    "PLR_XMIT_BLOCKS=294 PLR_XMIT_RETRY_BLOCKS GET_DATA_RATE;NVML_FI_DEV_NVLINK_BANDWIDTH_ C0_L[0:5]=60 C0_TOTAL "
    "C1_L[0:5] C1_TOTAL C0_L[6:11]=120 C1_L[6:11];NVML_FI_DEV_NVLINK_COUNT_ XMIT_PACKETS=201 XMIT_BYTES RCV_PACKETS "
    "RCV_BYTES VL15_DROPPED MALFORMED_PACKET_ERRORS BUFFER_OVERRUN_ERRORS RCV_ERRORS RCV_REMOTE_ERRORS "
    "RCV_GENERAL_ERRORS LOCAL_LINK_INTEGRITY_ERRORS XMIT_DISCARDS LINK_RECOVERY_SUCCESSFUL_EVENTS "
    "LINK_RECOVERY_FAILED_EVENTS LINK_RECOVERY_EVENTS RAW_BER_LANE0 RAW_BER_LANE1 RAW_BER EFFECTIVE_ERRORS "
    "EFFECTIVE_BER SYMBOL_ERRORS SYMBOL_BER FEC_HISTORY_[0:15]=235 RAW_ERRORS_LANE0=289 RAW_ERRORS_LANE1 "
    "RAW_BER_LANE0_V2 RAW_BER_LANE1_V2 RAW_BER_V2;NVML_FI_DEV_NVLINK_CRC_DATA_ERROR_COUNT_ L[0:5]=39 TOTAL "
    "L[6:11]=102;NVML_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_ L[0:5]=32 TOTAL L[6:11]=96;NVML_FI_DEV_NVLINK_GET_POWER_ "
    "STATE=167 THRESHOLD THRESHOLD_MAX=200 THRESHOLD_MIN=223 THRESHOLD_UNITS "
    "THRESHOLD_SUPPORTED;NVML_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_ L[0:5]=53 TOTAL "
    "L[6:11]=114;NVML_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_ L[0:5]=46 TOTAL L[6:11]=108;NVML_FI_DEV_NVLINK_THROUGHPUT_ "
    "DATA_TX=138 DATA_RX RAW_TX RAW_RX;NVML_FI_DEV_PCIE_COUNT_ CORRECTABLE_ERRORS=173 NAKS_RECEIVED RECEIVER_ERROR "
    "BAD_TLP NAKS_SENT BAD_DLLP NON_FATAL_ERROR FATAL_ERROR UNSUPPORTED_REQ LCRC_ERROR LANE_ERROR TX_BYTES=197 "
    "RX_BYTES;NVML_FI_DEV_PERF_POLICY_ POWER=74 THERMAL SYNC_BOOST BOARD_LIMIT LOW_UTILIZATION RELIABILITY "
    "TOTAL_APP_CLOCKS TOTAL_BASE_CLOCKS;NVML_FI_DEV_POWER_ MIN_LIMIT=187 MAX_LIMIT DEFAULT_LIMIT CURRENT_LIMIT "
    "REQUESTED_LIMIT=192 SYNC_BALANCING_FREQ=272 SYNC_BALANCING_AF;NVML_FI_DEV_REMAPPED_ COR=142 UNC PENDING FAILURE "
    "ROWS_COR_INACTIVE=301 ROWS_UNC_INACTIVE;NVML_FI_DEV_RETIRED_ SBE=29 DBE PENDING PENDING_SBE=92 "
    "PENDING_DBE;NVML_FI_DEV_TEMPERATURE_ SHUTDOWN_TLIMIT=193 SLOWDOWN_TLIMIT MEM_MAX_TLIMIT "
    "GPU_MAX_TLIMIT;NVML_FI_PWR_SMOOTHING_ ENABLED=251 PRIV_LVL IMM_RAMP_DOWN_ENABLED APPLIED_TMP_CEIL "
    "APPLIED_TMP_FLOOR MAX_PERCENT_TMP_FLOOR_SETTING MIN_PERCENT_TMP_FLOOR_SETTING "
    "HW_CIRCUITRY_PERCENT_LIFETIME_REMAINING MAX_NUM_PRESET_PROFILES ACTIVE_PRESET_PROFILE=264 PRIMARY_POWER_FLOOR=275 "
    "SECONDARY_POWER_FLOOR MIN_PRIMARY_FLOOR_ACT_OFFSET MIN_PRIMARY_FLOOR_ACT_POINT WINDOW_MULTIPLIER "
    "DELAYED_PWR_SMOOTHING_SUPPORTED SOC_POWER_SMOOTHING_ENABLED=300;NVML_FI_PWR_SMOOTHING_ADMIN_OVERRIDE_ "
    "PERCENT_TMP_FLOOR=265 RAMP_UP_RATE RAMP_DOWN_RATE RAMP_DOWN_HYST_VAL SECONDARY_POWER_FLOOR=285 "
    "PRIMARY_FLOOR_ACT_WIN_MULT PRIMARY_FLOOR_TAR_WIN_MULT PRIMARY_FLOOR_ACT_OFFSET;NVML_FI_PWR_SMOOTHING_PROFILE_ "
    "PERCENT_TMP_FLOOR=260 RAMP_UP_RATE RAMP_DOWN_RATE RAMP_DOWN_HYST_VAL SECONDARY_POWER_FLOOR=281 "
    "PRIMARY_FLOOR_ACT_WIN_MULT PRIMARY_FLOOR_TAR_WIN_MULT PRIMARY_FLOOR_ACT_OFFSET;NVML_GOM_ ALL_ON COMPUTE "
    "LOW_DP;NVML_GPM_METRIC_ GRAPHICS_UTIL=1 SM_UTIL SM_OCCUPANCY INTEGER_UTIL ANY_TENSOR_UTIL DFMA_TENSOR_UTIL "
    "HMMA_TENSOR_UTIL DMMA_TENSOR_UTIL IMMA_TENSOR_UTIL DRAM_BW_UTIL FP64_UTIL FP32_UTIL FP16_UTIL PCIE_TX_PER_SEC=20 "
    "PCIE_RX_PER_SEC NVDEC_[0:7]_UTIL=30 NVJPG_[0:7]_UTIL=40 NVOFA_0_UTIL=50 NVOFA_1_UTIL C2C_TOTAL_TX_PER_SEC=100 "
    "C2C_TOTAL_RX_PER_SEC C2C_DATA_TX_PER_SEC C2C_DATA_RX_PER_SEC "
    "C2C_LINK[0:13]_[TOTAL_T,TOTAL_R,DATA_T,DATA_R]X_PER_SEC HOSTMEM_CACHE_HIT HOSTMEM_CACHE_MISS PEERMEM_CACHE_HIT "
    "PEERMEM_CACHE_MISS DRAM_CACHE_HIT DRAM_CACHE_MISS NVENC_[0:3]_UTIL "
    "GR[0:7]_CTXSW_[CYCLES_ELAPSED,CYCLES_ACTIVE,REQUESTS,CYCLES_PER_REQ,ACTIVE_PCT] SM_CYCLES_ELAPSED=248 "
    "SM_CYCLES_ACTIVE MMA_CYCLES_ACTIVE DMMA_CYCLES_ACTIVE HMMA_CYCLES_ACTIVE IMMA_CYCLES_ACTIVE DFMA_CYCLES_ACTIVE "
    "PCIE_TX PCIE_RX INTEGER_CYCLES_ACTIVE FP64_CYCLES_ACTIVE FP32_CYCLES_ACTIVE FP16_CYCLES_ACTIVE "
    "MAX=477;NVML_GPM_METRIC_NVLINK_ TOTAL_RX_PER_SEC=60 TOTAL_TX_PER_SEC L[0:17]_[R,T]X_PER_SEC "
    "L[18:35]_[R,T]X_PER_SEC=212 L[0:71]_[R,T]X=261 L[36:71]_[R,T]X_PER_SEC;NVML_GPU_ FABRIC_UUID_LEN=16 "
    "CERT_CHAIN_SIZE=4096 ATTESTATION_CERT_CHAIN_SIZE=5120 INSTANCE_ID_ANY=4294967295;NVML_GPU_FABRIC_CLIQUE_ "
    "TYPE_UNICAST_POINTER TYPE_MULTICAST_POINTER TYPE_UNICAST_LOGICAL_ENDPOINT TYPE_MULTICAST_LOGICAL_ENDPOINT "
    "MAX=64;NVML_GPU_FABRIC_HEALTH_MASK_ GFM_STATE_NOT_SUPPORTED SHIFT_DEGRADED_BW=0 GFM_STATE_CONNECTED "
    "GFM_STATE_DISCONNECTED SHIFT_ROUTE_RECOVERY=2 WIDTH_ACCESS_TIMEOUT_RECOVERY WIDTH_DEGRADED_BW=3 WIDTH_GFM_STATE=3 "
    "WIDTH_PARTITION_ASSIGNED=3 WIDTH_ROUTE_RECOVERY=3 WIDTH_ROUTE_UNHEALTHY=3 SHIFT_ROUTE_UNHEALTHY "
    "SHIFT_ACCESS_TIMEOUT_RECOVERY=6 INCORRECT_CONFIURATION_INVALID_LOCATION SHIFT_INCORRECT_CONFIGURATION "
    "SHIFT_PARTITION_ASSIGNED=12 SHIFT_GFM_STATE=14 "
    "WIDTH_INCORRECT_CONFIGURATION;NVML_GPU_FABRIC_HEALTH_MASK_ACCESS_TIMEOUT_RECOVERY_,NVML_GPU_FABRIC_HEALTH_MASK_DEGRADED_BW_,NVML_GPU_FABRIC_HEALTH_MASK_PARTITION_ASSIGNED_ "
    "NOT_SUPPORTED TRUE FALSE;NVML_GPU_FABRIC_HEALTH_MASK_INCORRECT_CONFIGURATION_ NOT_SUPPORTED NONE "
    "INCORRECT_SYSGUID INCORRECT_CHASSIS_SN NO_PARTITION INSUFFICIENT_NVLINKS INCOMPATIBLE_GPU_FW INVALID_LOCATION "
    "GPU_STATE_INVALID;NVML_GPU_FABRIC_HEALTH_MASK_ROUTE_ RECOVERY_NOT_SUPPORTED UNHEALTHY_NOT_SUPPORTED=0 "
    "RECOVERY_TRUE UNHEALTHY_TRUE=1 RECOVERY_FALSE UNHEALTHY_FALSE=2;NVML_GPU_FABRIC_HEALTH_SUMMARY_ NOT_SUPPORTED "
    "HEALTHY UNHEALTHY LIMITED_CAPACITY;NVML_GPU_FABRIC_STATE_ NOT_SUPPORTED NOT_STARTED IN_PROGRESS "
    "COMPLETED;NVML_GPU_INSTANCE_PROFILE_ [1:4]_SLICE 7_SLICE 8_SLICE 6_SLICE 1_SLICE_REV1 2_SLICE_REV1 1_SLICE_REV2 "
    "1_SLICE_GFX 2_SLICE_GFX 4_SLICE_GFX 1_SLICE_NO_ME 2_SLICE_NO_ME 1_SLICE_ALL_ME 2_SLICE_ALL_ME 3_SLICE_GFX "
    "COUNT;NVML_GPU_NVLINK_BW_MODE_ FULL OFF MIN HALF 3QUARTER COUNT;NVML_GPU_OPERATIONAL_EVENT_CONTEXT_TYPE_ UNKNOWN "
    "LEGACY_XID;NVML_GPU_OPERATIONAL_EVENT_LOG_LEVEL_ ALL TELEMETRY=10 DIAG=20 NOTICE=30 WARNING=40 "
    "ERROR=50;NVML_GPU_RECOVERY_ACTION_ NONE GPU_RESET NODE_REBOOT DRAIN_P2P DRAIN_AND_RESET RECOVER_IMEX_DOMAIN "
    "BUS_RESET SYSTEM_REBOOT;NVML_GPU_UTILIZATION_ DOMAIN_GPU DOMAIN_FB SAMPLES=1 DOMAIN_VID "
    "DOMAIN_BUS;NVML_GPU_VIRTUALIZATION_MODE_ NONE PASSTHROUGH VGPU HOST_VGPU HOST_VSGA;NVML_GRID_LICENSE_ "
    "FEATURE_MAX_COUNT=3 BUFFER_SIZE=128;NVML_GRID_LICENSE_EXPIRY_ NOT_AVAILABLE INVALID VALID NOT_APPLICABLE "
    "PERMANENT;NVML_GRID_LICENSE_FEATURE_CODE_ UNKNOWN VGPU NVIDIA_RTX VWORKSTATION=2 GAMING COMPUTE "
    "VGAMEDEV;NVML_GRID_LICENSE_STATE_ UNKNOWN UNINITIALIZED UNLICENSED_UNRESTRICTED UNLICENSED_RESTRICTED UNLICENSED "
    "LICENSED;NVML_HOST_VGPU_MODE_ NON_SRIOV SRIOV;NVML_INFOROM_ OEM ECC POWER DEN COUNT;NVML_INIT_FLAG_ NO_GPUS=1 "
    "NO_ATTACH FORCE_INIT=4;NVML_LED_COLOR_ GREEN AMBER;NVML_MAX_ THERMAL_SENSORS_PER_GPU=3 GPU_UTILIZATIONS=8 "
    "GPU_PERF_PSTATES=16 GPC_COUNT=32 PHYSICAL_BRIDGE=128;NVML_MCLK_SWITCH_TYPE_ NOT_SUPPORTED DEFERRED "
    "RUNTIME;NVML_MEMORY_ UTILIZATION_SAMPLES=2 CLK_SAMPLES=6;NVML_MEMORY_ERROR_TYPE_ CORRECTED UNCORRECTED "
    "COUNT;NVML_MEMORY_LOCATION_ L1_CACHE L2_CACHE DEVICE_MEMORY DRAM=2 REGISTER_FILE TEXTURE_MEMORY TEXTURE_SHM CBU "
    "SRAM COUNT;NVML_NVLINK_ POWER_STATE_HIGH_SPEED POWER_STATE_LOW TOTAL_SUPPORTED_BW_MODES=23 MAX_LANES=36 "
    "MAX_LINKS=36 FIRMWARE_VERSION_LENGTH=100;NVML_NVLINK_CAP_ P2P_SUPPORTED SYSMEM_ACCESS P2P_ATOMICS SYSMEM_ATOMICS "
    "SLI_BRIDGE VALID COUNT;NVML_NVLINK_COUNTER_PKTFILTER_ NOP=1 READ WRITE=4 RATOM=8 NRATOM=16 FLUSH=32 RESPDATA=64 "
    "RESPNODATA=128 ALL=255;NVML_NVLINK_COUNTER_UNIT_ CYCLES PACKETS BYTES RESERVED COUNT;NVML_NVLINK_DEVICE_TYPE_ GPU "
    "IBMNPU SWITCH UNKNOWN=255;NVML_NVLINK_ERROR_ DL_ECC_LANE[0:3] DL_ECC_DATA COUNT "
    "DL_ECC_COUNT=5;NVML_NVLINK_ERROR_DL_ REPLAY RECOVERY CRC_FLIT CRC_DATA;NVML_NVLINK_FIRMWARE_UCODE_TYPE_ MSE=1 "
    "NETIR NETIR_UPHY NETIR_CLN NETIR_DLN;NVML_NVLINK_LOW_POWER_THRESHOLD_ UNIT_100US MIN UNIT_50US=1 MAX=8191 "
    "DEFAULT=4294967295 RESET=4294967295;NVML_NVLINK_STATE_ INACTIVE ACTIVE SLEEP "
    "ACTIVE_TRAFFIC_DISABLED;NVML_NVLINK_TELEMETRY_SAMPLE_TYPE_ THROUGHPUT_RAW_TX THROUGHPUT_RAW_RX "
    "COUNT;NVML_NVLINK_VERSION_ INVALID 1_0 2_0 2_2 3_0 3_1 [4:6]_0;NVML_OPERATIONAL_EVENT_ATTR_ UNCONTAINED=1 LATENT "
    "PROPAGATED=4 COMPONENT_RESET=8 THRESHOLD_EXCEEDED=16 PRIMARY=32 OVERFLOW=64;NVML_OPERATIONAL_EVENT_GROUP_ATTR_ "
    "RECOVERED=1 PREVERR SIMULATED=4;NVML_OPERATIONAL_EVENT_SEVERITY_ ALL INFORMATIONAL=10 CORRECTED=20 RECOVERABLE=30 "
    "FATAL=40;NVML_P2P_CAPS_INDEX_ READ WRITE NVLINK ATOMICS PCI PROP=4 UNKNOWN;NVML_P2P_STATUS_ OK "
    "CHIPSET_NOT_SUPPORED CHIPSET_NOT_SUPPORTED=1 GPU_NOT_SUPPORTED IOH_TOPOLOGY_NOT_SUPPORTED DISABLED_BY_REGKEY "
    "NOT_SUPPORTED UNKNOWN;NVML_PAGE_RETIREMENT_CAUSE_ MULTIPLE_SINGLE_BIT_ECC_ERRORS DOUBLE_BIT_ECC_ERROR "
    "COUNT;NVML_PCIE_ LINK_KEEP LINK_SHUT_DOWN ATOMICS_OPS_MAX=7;NVML_PCIE_ATOMICS_CAP_ FETCHADD32=1 FETCHADD64 "
    "SWAP32=4 SWAP64=8 CAS32=16 CAS64=32 CAS128=64;NVML_PCIE_LINK_MAX_SPEED_ INVALID 2500MBPS 5000MBPS 8000MBPS "
    "16000MBPS 32000MBPS 64000MBPS;NVML_PCIE_UTIL_ TX_BYTES RX_BYTES COUNT;NVML_PERF_ "
    "METRICS_NNE_DESC_INFERENCE_LOOPS_MAX=8 METRICS_SAMPLE_COUNT=13 CF_PM_SENSOR_MAX_SIGNALS=1024 "
    "MODES_BUFFER_SIZE=2048;NVML_PERF_METRICS_CONTROLLER_ TYPE_DLPPC_2X TYPE_PFPP_1X STATUS_DLPPC_2X_DRAMCLK_NUM=3 "
    "DLPPC_2X_PWR_POLICY_RELATIONSHIP_SET_LIMITS_MAX SAMPLE_CONTROLLER_MAX_NUM=4;NVML_PERF_METRICS_PWR_MODEL_ "
    "SCALE_METRICS_PFPP_1X_GPCCLK_IDX DLPPM_1X_MAX_CORE_RAILS=2 METRICS_DLPPM_1X_OBESRVED_INTIAL_DRAMCLK_ESTIMATES_MAX "
    "SCALE_METRICS_INPUT_MAX=16 SCALE_LOOPS_MAX_PFPP_1X=32;NVML_PERF_POLICY_ POWER THERMAL SYNC_BOOST BOARD_LIMIT "
    "LOW_UTILIZATION RELIABILITY TOTAL_APP_CLOCKS=10 TOTAL_BASE_CLOCKS COUNT;NVML_POWER_ SCOPE_MODULE=1 "
    "SOURCE_UNDERSIZED SCOPE_GPU_BASE SCOPE_COUNT;NVML_POWER_MIZER_MODE_ ADAPTIVE PREFER_MAXIMUM_PERFORMANCE AUTO "
    "PREFER_CONSISTENT_PERFORMANCE;NVML_POWER_PROFILE_ MAX_P MAX_Q COMPUTE MEMORY_BOUND NETWORK BALANCED LLM_INFERENCE "
    "LLM_TRAINING RBM DCPCIE HMMA_SPARSE HMMA_DENSE SYNC_BALANCED HPC MIG MAX_Q_1 NETWORK_BOUND "
    "HIGH_THROUGHPUT_INFERENCE MEDIUM_THROUGHPUT_INFERENCE LOW_LATENCY_INFERENCE TRAINING INFERENCE MAX_Q_2 MAX_Q_3 "
    "LOW_PRIORITY_BACKGROUND MAX;NVML_POWER_PROFILE_OPERATION_ CLEAR SET SET_AND_OVERWRITE MAX;NVML_POWER_SMOOTHING_ "
    "MAX_NUM_PROFILES=5 NUM_PROFILE_PARAMS=8 ADMIN_OVERRIDE_NOT_SET=4294967295;NVML_POWER_SMOOTHING_PROFILE_PARAM_ "
    "PERCENT_TMP_FLOOR RAMP_UP_RATE RAMP_DOWN_RATE RAMP_DOWN_HYSTERESIS SECONDARY_POWER_FLOOR "
    "PRIMARY_FLOOR_ACT_WIN_MULT PRIMARY_FLOOR_TAR_WIN_MULT PRIMARY_FLOOR_ACT_OFFSET;NVML_PRM_ COUNTER_ID_NONE "
    "DATA_MAX_SIZE=496 COUNTER_ID_PPRM_OPER_RECOVERY=1001;NVML_PRM_COUNTER_ID_PPCNT_ "
    "PHYSICAL_LAYER_CTRS_LINK_DOWN_EVENTS=1 PHYSICAL_LAYER_CTRS_SUCCESSFUL_RECOVERY_EVENTS "
    "PORTCOUNTERS_PORT_XMIT_WAIT=201 PLR_RCV_CODES=301 PLR_RCV_CODE_ERR PLR_RCV_UNCORRECTABLE_CODE PLR_XMIT_CODES "
    "PLR_XMIT_RETRY_CODES PLR_XMIT_RETRY_EVENTS PLR_SYNC_EVENTS;NVML_PRM_COUNTER_ID_PPCNT_RECOVERY_CTRS_ "
    "TOTAL_SUCCESSFUL_RECOVERY_EVENTS=101 TIME_SINCE_LAST_RECOVERY TIME_BETWEEN_LAST_TWO_RECOVERIES "
    "TIME_IN_LAST_HOST_SERDES_FEQ_RECOVERY TOTAL_TIME_IN_HOST_SERDES_FEQ_RECOVERY TOTAL_HOST_SERDES_FEQ_RECOVERY_COUNT "
    "TOTAL_HOST_SERDES_FEQ_SUCCESSFUL_RECOVERY_COUNT LAST_HOST_SERDES_FEQ_ATTEMPTS_COUNT "
    "LAST_SUCCESSFUL_RECOVERY_STEP_ATTEMPTS LAST_SUCCESSFUL_RECOVERY_TIME "
    "TOTAL_SUCCESSFUL_RECOVERY_TIME;NVML_PROCESS_MODE_ COMPUTE GRAPHICS MPS ALL MAX;NVML_PSTATE_ [0:15] "
    "UNKNOWN=32;NVML_RESTRICTED_API_ SET_APPLICATION_CLOCKS SET_AUTO_BOOSTED_CLOCKS COUNT;NVML_RUSD_POLL_ NONE CLOCK "
    "PERF MEMORY=4 POWER=8 THERMAL=16 PCI=32 FAN=64 PROC_UTIL=128 ALL=0xffffffffffffffff;NVML_SYSTEM_ "
    "DRIVER_VERSION_BUFFER_SIZE=80 NVML_VERSION_BUFFER_SIZE=80;NVML_TEMPERATURE_ GPU_MAX=1 "
    "COUNT;NVML_TEMPERATURE_THRESHOLD_ SHUTDOWN SLOWDOWN MEM_MAX GPU_MAX ACOUSTIC_MIN ACOUSTIC_CURR ACOUSTIC_MAX "
    "GPS_CURR COUNT;NVML_THERMAL_CONTROLLER_ UNKNOWN=-1 NONE GPU_INTERNAL ADM1032 ADT7461 MAX6649 MAX1617 LM99 LM89 "
    "LM64 G781 ADT7473 SBMAX6649 VBIOSEVT OS NVSYSCON_CANOAS NVSYSCON_E551 MAX6649R "
    "ADT7473S;NVML_THERMAL_COOLER_SIGNAL_ NONE TOGGLE VARIABLE COUNT;NVML_THERMAL_COOLER_TARGET_ NONE=1 GPU MEMORY=4 "
    "POWER_SUPPLY=8 GPU_RELATED=14;NVML_THERMAL_TARGET_ UNKNOWN=-1 NONE GPU MEMORY POWER_SUPPLY=4 BOARD=8 VCD_BOARD "
    "VCD_INLET VCD_OUTLET ALL=15;NVML_TOPOLOGY_ INTERNAL SINGLE=10 MULTIPLE=20 HOSTBRIDGE=30 CPU=40 NODE=40 "
    "SYSTEM=50;NVML_UUID_TYPE_ NONE ASCII BINARY;NVML_VALUE_TYPE_ DOUBLE UNSIGNED_LONG=2 SIGNED_LONG_LONG=4 SIGNED_INT "
    "UNSIGNED_SHORT COUNT;NVML_VGPU_ VM_ID_DOMAIN_ID VM_ID_UUID NAME_BUFFER_SIZE=64 "
    "METADATA_OPAQUE_DATA_SIZE=260;NVML_VGPU_CAP_ NVLINK_P2P GPUDIRECT MULTI_VGPU_EXCLUSIVE EXCLUSIVE_TYPE "
    "EXCLUSIVE_SIZE COUNT;NVML_VGPU_COMPATIBILITY_LIMIT_ NONE HOST_DRIVER GUEST_DRIVER GPU=4 "
    "OTHER=2147483648;NVML_VGPU_DRIVER_CAP_ HETEROGENEOUS_MULTI_VGPU WARM_UPDATE "
    "COUNT;NVML_VGPU_INSTANCE_GUEST_INFO_STATE_ UNINITIALIZED INITIALIZED;NVML_VGPU_PGPU_ HETEROGENEOUS_MODE "
    "HOMOGENEOUS_MODE METADATA_OPAQUE_DATA_SIZE=256;NVML_VGPU_SCHEDULER_ARR_ DEFAULT DISABLE "
    "ENABLE;NVML_VGPU_SCHEDULER_ENGINE_TYPE_ GRAPHICS=1 NVENC1 NVENC0;NVML_VGPU_SCHEDULER_POLICY_ UNKNOWN BEST_EFFORT "
    "EQUAL_SHARE FIXED_SHARE;NVML_VGPU_VM_COMPATIBILITY_ NONE COLD HIBERNATE SLEEP=4 LIVE=8;nvml FlagDefault FlagForce "
    "EventMigConfigChange=256 C2cModeInfo_v1=16777224 DramEncryptionInfo_v1=16777224 MarginTemperature_v1=16777224 "
    "UnrepairableMemory_v1=16777224 FanSpeedInfo_v1=16777228 RepairStatus_v1=16777228 "
    "ActiveVgpuInstanceInfo_v1=16777232 CoolerInfo_v1=16777232 Pdi_v1=16777232 RusdSettings_v1=16777232 "
    "ClockOffset_v1=16777240 ProcessDetailList_v1=16777240 UUID_v1=16777268 PciInfoExt_v1=16777280 "
    "PerfMetricsSamples_v1=16819240 ComputeInstanceProfileInfo_v2=33554568 "
    "GpuInstanceProfileInfo_v2=33554584;nvmlClocksEventReason,nvmlClocksThrottleReason None GpuIdle "
    "ApplicationsClocksSetting UserDefinedClocks=2 SwPowerCap=4 HwSlowdown=8 SyncBoost=16 SwThermalSlowdown=32 "
    "HwThermalSlowdown=64 HwPowerBrakeSlowdown=128 DisplayClockSetting=256;nvmlClocksEventReason "
    "All=511;nvmlClocksThrottleReason BoardLimit=512 Reliability=1024 All=2047;nvmlDevice AddressingMode_v1=16777224 "
    "Capabilities_v1=16777224 CurrentClockFreqs_v1=16779268 PerfModes_v1=16779268;nvmlEccSram "
    "UniqueUncorrectedErrorCounts_v1=16777232 ErrorStatus_v1=16777320;nvmlEventType None SingleBitEccError "
    "DoubleBitEccError PState=4 XidCriticalError=8 Clock=16 PowerSourceChange=128 SingleBitEccErrorStorm=512 "
    "DramRetirementEvent=1024 DramRetirementFailure=2048 NonFatalPoisonError=4096 FatalPoisonError=8192 "
    "GpuUnavailableError=16384 GpuRecoveryAction=32768 All=65439;nvmlGpuFabricInfo_ v2=33554468 "
    "v3=50331688;nvmlNvLinkInfo_ v1=16777224 v2=33556044;nvmlNvlink GetBwMode_v1=16777228 SetBwMode_v1=16777228 "
    "SupportedBwModes_v1=16777244;nvmlPlatformInfo_ v1=16777260 v2=33554476;nvmlPower SmoothingState_v1=16777224 "
    "SmoothingProfile_v1=16777240 Value_v2=33554444;nvmlSystem ConfComputeSettings_v1=16777236 "
    "RegisterEventRequest_v1=16777240;nvmlSystemEvent TypeGpuDriverUnbind=1 TypeCount TypeGpuDriverBind=2 "
    "SetCreateRequest_v1=16777232 SetFreeRequest_v1=16777232 SetWaitRequest_v1=16777248;nvmlVgpu "
    "TypeMaxInstance_v1=16777228 TypeIdInfo_v1=16777232 CreatablePlacementInfo_v1=16777248;nvmlVgpuScheduler "
    "StateInfo_v1=16777240 State_v1=16777240 LogInfo_v1=16786848;nvmlWorkloadPowerProfile "
    "RequestedProfiles_v1=16777252 UpdateProfiles_v1=16777252 Info_v1=16777260 CurrentProfiles_v1=16777316 "
    "ProfilesInfo_v1=16788472")

# Functions of nvidia-ml-py 13.615 that only raise NotSupported: prefix, names behind it.
_NVML_UNSUPPORTED = (
    "nvml SetVgpuVersion UnitSetLedState VgpuInstanceClearAccountingPids VgpuInstanceSetEncoderCapacity;"
    "nvmlComputeInstance Destroy GetInfo GetInfo_v2;nvmlDevice CreateGpuInstance CreateGpuInstanceWithPlacement "
    "DiscoverGpus FreezeNvLinkUtilizationCounter IsMigDeviceHandle ModifyDrainState OnSameBoard "
    "PerfMetricsGetSamples_v1 QueryDrainState ReadPRMCounters_v1 ReadWritePRM_v1 RegisterEvents RemoveGpu "
    "ValidateInforom VgpuForceGspUnload;nvmlDeviceClear AccountingPids CpuAffinity EccErrorCounts FieldValues;"
    "nvmlDeviceGet APIRestriction ActiveVgpus AdaptiveClockInfoStatus AdaptiveTgpModeInfo_v1 AddressingMode "
    "ApplicationsClock Attributes Attributes_v2 AutoBoostedClocksEnabled BAR1MemoryInfo BBXTimeData_v1 "
    "BankRemapperStatus_v1 BoardId BoardPartNumber BridgeChipInfo BusType C2cModeInfoV C2cModeInfoV1 Capabilities "
    "ClkMonStatus ClockOffsets ComputeInstanceId CoolerInfo CpuAffinity CpuAffinityWithinScope CreatableVgpus "
    "CudaComputeCapability CurrPcieLinkGeneration CurrPcieLinkWidth DecoderUtilization DefaultApplicationsClock "
    "DefaultEccMode DetailedEccErrors DeviceHandleFromMigDeviceHandle DisplayActive DisplayMode DramEncryptionMode "
    "DriverModel DriverModel_v1 DriverModel_v2 DynamicPstatesInfo EccMode FBCSessions FBCStats FanControlPolicy_v2 "
    "GpcClkMinMaxVfOffset GpcClkVfOffset GridLicensableFeatures GridLicensableFeatures_v4 GspFirmwareMode "
    "GspFirmwareVersion HandleByPciBusId HandleBySerial HandleByUUIDV HostVgpuMode Hostname_v1 "
    "InforomConfigurationChecksum InforomImageVersion InforomVersion IrqNum JpgUtilization LastBBXFlushTime "
    "MarginTemperature MaxCustomerBoostClock MaxMigDeviceCount MaxPcieLinkGeneration MaxPcieLinkWidth "
    "MemClkMinMaxVfOffset MemClkVfOffset MemoryAffinity MemoryErrorCounter MemoryLimits_v1 MigDeviceHandleByIndex "
    "MigMode MinMaxClockOfPState MinMaxFanSpeed ModuleId MultiGpuBoard NumaNodeId NvlinkBwMode NvlinkSupportedBwModes "
    "OfaUtilization PciInfo PciInfoExt PciInfo_v3 PcieLinkMaxSpeed PcieReplayCounter PcieSpeed PcieThroughput Pdi "
    "PerformanceModes PerformanceState PersistenceMode PgpuMetadataString PlatformInfo PowerMizerMode_v1 PowerState "
    "ProcessUtilization ProcessesUtilizationInfo RemappedRows RemappedRows_v2 RepairStatus RetiredPages "
    "RetiredPagesPendingStatus RetiredPages_v2 RowRemapperHistogram RunningProcessDetailList Samples Serial "
    "SramEccErrorStatus SramUniqueUncorrectedEccErrorCounts TargetFanSpeed TemperatureThreshold ThermalSettings "
    "TotalEccErrors UnrepairableMemoryFlag_v1 VbiosVersion ViolationStatus VirtualizationMode;nvmlDeviceGetAccounting "
    "BufferSize Pids Stats Stats_v2;nvmlDeviceGetConfCompute GpuAttestationReport GpuCertificate MemSizeInfo "
    "ProtectedMemoryUsage;nvmlDeviceGetCurrent ClockFreqs ClocksEventReasons ClocksThrottleReasons DramEncryptionMode "
    "DriverModel EccMode GpuOperationMode;nvmlDeviceGetEncoder Capacity Sessions Stats Utilization;nvmlDeviceGetGpu "
    "FabricInfo FabricInfoV FabricInfo_v4 Instances MaxPcieLinkGeneration OperationMode;nvmlDeviceGetGpuInstance ById "
    "Id PossiblePlacements ProfileInfo ProfileInfoById ProfileInfoByIdV ProfileInfoV RemainingCapacity;"
    "nvmlDeviceGetNvLink Capability ErrorCounter Info RemoteDeviceType RemotePciInfo State TelemetrySamples_v1 "
    "UtilizationControl UtilizationCounter Version;nvmlDeviceGetPending DramEncryptionMode DriverModel EccMode "
    "GpuOperationMode;nvmlDeviceGetPowerManagement DefaultLimit LimitConstraints Mode;nvmlDeviceGetSupported "
    "ClocksEventReasons ClocksThrottleReasons EventTypes MemoryClocks PerformanceStates Vgpus;nvmlDeviceGetVgpu "
    "Capabilities HeterogeneousMode InstancesUtilizationInfo Metadata ProcessUtilization ProcessesUtilizationInfo "
    "TypeCreatablePlacements TypeSupportedPlacements Utilization;nvmlDeviceGetVgpuScheduler Capabilities Log Log_v2 "
    "State State_v2;nvmlDevicePowerSmoothing ActivatePresetProfile SetState UpdatePresetProfileParam;nvmlDeviceReset "
    "ApplicationsClocks GpuLockedClocks MemoryLockedClocks NvLinkErrorCounters NvLinkUtilizationCounter;nvmlDeviceSet "
    "APIRestriction AccountingMode AdaptiveTgpMode_v1 ApplicationsClocks AutoBoostedClocksEnabled ClockOffsets "
    "ComputeMode ConfComputeUnprotectedMemSize CpuAffinity DefaultAutoBoostedClocksEnabled DefaultFanSpeed_v2 "
    "DramEncryptionMode DriverModel EccMode FanControlPolicy FanSpeed_v2 GpcClkVfOffset GpuLockedClocks "
    "GpuOperationMode Hostname_v1 MemClkVfOffset MemoryLimits_v1 MemoryLockedClocks MigMode "
    "NvLinkDeviceLowPowerThreshold NvLinkUtilizationControl NvlinkBwMode NvlinkBwModeAsync_v1 PersistenceMode "
    "PowerManagementLimit PowerManagementLimit_v2 PowerMizerMode_v1 RusdSettings_v1 TemperatureThreshold "
    "VgpuCapabilities VgpuHeterogeneousMode VgpuSchedulerState VgpuSchedulerState_v2 VirtualizationMode;"
    "nvmlDeviceWorkloadPowerProfile ClearRequestedProfiles GetCurrentProfiles GetProfilesInfo SetRequestedProfiles "
    "UpdateProfiles_v1;nvmlEventSet Create Free GetContextCount_v1 GetContextData_v1 GetContextInfo_v1 "
    "GetGpuOperationalEventContextLegacyXid_v1 RegisterGpuOperationalEvents_v1 Wait Wait_v2 Wait_v3;nvmlGet "
    "ExcludedDeviceCount ExcludedDeviceInfoByIndex VgpuCompatibility VgpuDriverCapabilities VgpuVersion;nvmlGpm "
    "MetricsGet MigSampleGet QueryDeviceSupport QueryIfStreamingEnabled SetStreamingEnabled;nvmlGpmSample Alloc Free "
    "Get;nvmlGpuInstance CreateComputeInstance CreateComputeInstanceWithPlacement Destroy GetActiveVgpus "
    "GetComputeInstances GetCreatableVgpus GetInfo GetVgpuHeterogeneousMode GetVgpuTypeCreatablePlacements "
    "SetVgpuHeterogeneousMode SetVgpuSchedulerState SetVgpuSchedulerState_v2;nvmlGpuInstanceGetComputeInstance ById "
    "PossiblePlacements ProfileInfo ProfileInfoV RemainingCapacity;nvmlGpuInstanceGetVgpuScheduler Log Log_v2 State "
    "State_v2;nvmlSystem EventSetCreate EventSetFree EventSetWait RegisterEvents SetConfComputeGpusReadyState "
    "SetConfComputeKeyRotationThresholdInfo SetNvlinkBwMode;nvmlSystemGet CPER_v1 CudaDriverVersion "
    "CudaDriverVersion_v2 DriverBranch HicVersion NvlinkBwMode TopologyGpuSet;nvmlSystemGetConfCompute Capabilities "
    "GpusReadyState KeyRotationThresholdInfo Settings State;nvmlUnitGet Count DeviceCount Devices FanSpeedInfo "
    "HandleByIndex LedState PsuInfo Temperature UnitInfo;nvmlVgpuInstanceGet AccountingMode AccountingPids "
    "AccountingStats EccMode EncoderCapacity EncoderSessions EncoderStats FBCSessions FBCStats FbUsage FrameRateLimit "
    "GpuInstanceId GpuPciId LicenseInfo LicenseInfo_v2 LicenseStatus MdevUUID Metadata PlacementId RuntimeStateSize "
    "Type UUID VmDriverVersion VmID;nvmlVgpuTypeGet BAR1Info Capabilities Class DeviceID FbReservation FrameRateLimit "
    "FramebufferSize GpuInstanceProfileId GspHeapSize License MaxInstances MaxInstancesPerGpuInstance "
    "MaxInstancesPerVm Name NumDisplayHeads Resolution")

# Structures of nvidia-ml-py 13.615 that nothing here fills: prefix, names behind it.
_NVML_OPAQUE = (
    "c_nvml ActiveVgpuInstanceInfo_v1_t AdaptiveTgpModeInfo_v1_t BAR1Memory_t BBXTimeData_v1_t BridgeChipHierarchy_t "
    "BridgeChipInfo_t C2cModeInfo_v1_t CPERCursor_v1_t ClockOffset_t ComputeInstance_t CoolerInfo_t CoreRailMetrics_t "
    "DramEncryptionInfo_t EncoderSession_t ExcludedDeviceInfo_t FBCSession_t FBCStats_t FanSpeedInfo_t GetCPER_v1_t "
    "GetMemoryLimits_v1_t GridLicenseExpiry_t Hostname_v1_t HwbcEntry_t LedState_t MarginTemperature_v1_t Mask255_t "
    "NvLinkInfo_v1_t NvLinkInfo_v2_t NvLinkPowerThres_t ObservedMetrics_t PRMCounter_v1_t PRMTLV_v1_t PSUInfo_t Pdi_t "
    "PerfMetricControllerSampleData_t PerfMetricControllerSample_t PmgrPwrTuple_t ProcessesUtilizationInfo_v1_t "
    "PwrModelOperatingPointPfpp1x_t RailMetrics_t RemappedRowsInfo_v2_t RepairStatus_t RowRemapperHistogramValues "
    "RusdSettings_v1_t Sample_t SetMemoryLimits_v1_t UUIDValue_t UUID_t Unit_t UnrepairableMemory_v1_t ViolationTime_t;"
    "c_nvmlAccounting Stats_t Stats_v2_t;c_nvmlComputeInstance Info_t Placement_t ProfileInfo_t ProfileInfo_v2_t;"
    "c_nvmlConfCompute GetKeyRotationThresholdInfo_t GpuAttestationReport_t GpuCertificate_t MemSizeInfo_t "
    "SetKeyRotationThresholdInfo_t SystemCaps_t SystemState_t;c_nvmlDevice AddressingMode_t Attributes "
    "Capabilities_v1_t CurrentClockFreqs_v1_t PerfModes_v1_t PowerMizerModes_v1_t;c_nvmlEcc BankRemapperHistogram_v1_t "
    "BankRemapperStatus_v1_t ErrorCounts_t SramErrorStatus_v1_t SramUniqueUncorrectedErrorCounts_v1_t "
    "SramUniqueUncorrectedErrorEntry_v1_t;c_nvmlEvent Data_t SetGetContextCount_v1_t SetGetContextData_v1_t "
    "SetGetContextInfo_v1_t SetGetGpuOperationalEventContextLegacyXid_v1_t SetWait_v3_t Set_t;c_nvmlGpm Metric_t "
    "MetricsGet_t Sample_t Support_t;c_nvmlGpu DynamicPstatesInfo_t DynamicPstatesUtilization_t Instance_t "
    "OperationalEventConfig_v1_t ThermalSensor_t ThermalSettings_t;c_nvmlGpuFabric Clique_v1_t InfoV_t Info_t "
    "Info_v2_t Info_v3_t Info_v4_t;c_nvmlGpuInstance Info_t Placement_t ProfileInfo_t ProfileInfo_v2_t;"
    "c_nvmlGridLicensableFeature_ t v2_t v3_t v4_t;c_nvmlGridLicensableFeatures_ t v2_t v3_t v4_t;c_nvmlNvlink "
    "FirmwareInfo_t FirmwareVersion_t GetBwMode_v1_t SetBwModeAsync_v1_t SetBwMode_v1_t SupportedBwModes_v1_t "
    "TelemetrySample_v1_t TelemetrySamples_v1_t;c_nvmlPRMCounter Input_v1_t List_v1_t Value_v1_t;c_nvmlPerfMetrics "
    "Dlppc2xSample_t Pfpp1xSample_t Sample_t Samples_v1_t;c_nvmlPlatform Info_v1_t Info_v2_t;c_nvmlPower "
    "SmoothingProfile_v1_t SmoothingState_v1_t Value_v2_t;c_nvmlProcess DetailList_t DetailList_v1_t Detail_v1_t "
    "UtilizationInfo_v1_t UtilizationSample_t;c_nvmlPwrModelMetrics Dlppm1xDramclkEstimates_t Dlppm1xPerf_t Dlppm1x_t "
    "Pfpp1x_t SamplePfpp1x_t;c_nvmlSystem ConfComputeSettings_v1_t DriverBranchInfo_v1_t RegisterEventRequest_v1_t;"
    "c_nvmlSystemEvent Data_v1_t SetCreateRequest_v1_t SetFreeRequest_v1_t SetWaitRequest_v1_t Set_t;c_nvmlUnit "
    "FanInfo_t FanSpeeds_t Info_t;c_nvmlVgpu CreatablePlacementInfo_v1_t HeterogeneousMode_v1_t "
    "InstanceUtilizationInfo_v1_t InstanceUtilizationSample_t InstancesUtilizationInfo_v1_t LicenseExpiry_t "
    "LicenseInfo_t Metadata_t PgpuCompatibility_t PgpuMetadata_t ProcessUtilizationInfo_v1_t "
    "ProcessUtilizationSample_t ProcessesUtilizationInfo_v1_t TypeBar1Info_v1_t TypeIdInfo_v1_t TypeMaxInstance_v1_t "
    "Version_t;c_nvmlVgpuPlacement Id_v1_t List_v1_t List_v2_t;c_nvmlVgpuSched DataWithARR_t Data_t SetDataWithARR_t "
    "SetData_t;c_nvmlVgpuScheduler Capabilities_t GetState_t LogEntry_t LogEntry_v2_t LogInfo_v1_t LogInfo_v2_t Log_t "
    "Params_t SetParams_t SetState_t StateInfo_v1_t StateInfo_v2_t State_v1_t State_v2_t;c_nvmlWorkloadPowerProfile "
    "CurrentProfiles_v1_t Info_v1_t ProfilesInfo_v1_t RequestedProfiles_v1_t UpdateProfiles_v1_t;nvml "
    "ClkMonFaultInfo_t ClkMonStatus_t NvLinkUtilizationControl_t VgpuRuntimeState_v1_t;nvmlPci InfoExt_v1_t Info_t "
    "Info_v2_t;struct_c_nvml ComputeInstance_t Device_t EventSet_t GpmSample_t GpuInstance_t SystemEventSet_t Unit_t")


def _nvml_refusal(name: str) -> Callable[..., Any]:
    """A plain function (clients copy functions, not callables) that raises NotSupported."""
    def unsupported(*args: Any, **named: Any) -> Any:
        """Raises NotSupported: Apple silicon has no such thing."""
        LibraryGetSource()          # Uninitialized comes first, as in NVML
        raise _fail(ERROR_NOT_SUPPORTED, REASON_CHIP, None, name + " has no counterpart on Apple silicon")
    unsupported.__name__ = unsupported.__qualname__ = name
    return unsupported


def _nvml_open() -> dict[str, Any]:
    """This module's names, with all of the tables above: made when one is asked for, which most programs never do."""
    names = globals()
    if "NVML_FI_MAX" not in names:
        made: dict[str, Any] = {name: _nvml_refusal(name) for name in _unpacked(_NVML_UNSUPPORTED)}
        made.update(_unpacked(_NVML_CONSTANTS), **_nvml_structures())
        last = made.pop("NVML_FI_MAX")      # not seen before the others are there, and no lock that a fork could take along
        for name, value in made.items():
            names.setdefault(name, value)
        names["NVML_FI_MAX"] = last
    return names


# ---- structures and other types

class _PrintableStructure(ctypes.Structure):
    """Prints its fields; text comes out as str. Clients derive their own structures from it."""
    _fmt_: dict[str, str] = {}

    def __str__(self) -> str:
        texts = []
        for field in self._fields_:
            form = self._fmt_.get(field[0], self._fmt_.get("<default>", "%s"))
            texts.append("%s: %s" % (field[0], form % getattr(self, field[0])))
        return "%s(%s)" % (type(self).__name__, ", ".join(texts))

    def __getattribute__(self, name: str) -> Any:
        value = ctypes.Structure.__getattribute__(self, name)
        return value.decode("utf-8", "replace") if isinstance(value, bytes) else value

    def __setattr__(self, name: str, value: Any) -> None:
        ctypes.Structure.__setattr__(self, name, value.encode() if isinstance(value, str) else value)


# Structures that something here fills: names, how a field prints, "name:type" of each, a type of ctypes or one above.
# c_nvmlMemory_t is signed: clients write -1 for unknown. c_nvmlOpaque_t is all of _NVML_OPAQUE: a client may set any field.
_NVML_LAYOUTS = """\
c_nvmlMemory_t;%d B;total:c_longlong free:c_longlong used:c_longlong
c_nvmlMemory_v2_t;%d B;version:c_uint total:c_ulonglong reserved:c_ulonglong free:c_ulonglong used:c_ulonglong
c_nvmlUtilization_t;%d %%;gpu:c_uint memory:c_uint
c_nvmlTemperature_v1_t;%s;version:c_uint sensorType:c_uint temperature:c_int
c_nvmlProcessInfo_v2_t c_nvmlProcessInfo_v3_t c_nvmlProcessInfo_t;%s;\
pid:c_uint usedGpuMemory:c_ulonglong gpuInstanceId:c_uint computeInstanceId:c_uint
c_nvmlValue_t;%s;\
dVal:c_double uiVal:c_uint ulVal:c_ulong ullVal:c_ulonglong sllVal:c_longlong siVal:c_int usVal:c_ushort
c_nvmlFieldValue_t;%s;fieldId:c_uint scopeId:c_uint timestamp:c_int64 latencyUsec:c_int64 valueType:c_uint \
nvmlReturn:c_uint value:c_nvmlValue_t
c_nvmlOpaque_t;%s;"""
c_nvmlDevice_t = Device


def _nvml_structures() -> dict[str, Any]:
    """The structure types by name."""
    made: dict[str, Any] = {}
    for line in _NVML_LAYOUTS.splitlines():
        names, form, fields = line.split(";")
        pairs = [(field, getattr(ctypes, kind, None) or made[kind]) for field, _, kind in (
            one.partition(":") for one in fields.split())]
        base = ctypes.Union if names == "c_nvmlValue_t" else _PrintableStructure
        body = {"_fields_": pairs, "_fmt_": {"<default>": form}, "__module__": __name__}
        made.update(dict.fromkeys(names.split(), type(names.split()[0], (base,), body)))
    return {**dict.fromkeys(_unpacked(_NVML_OPAQUE), made["c_nvmlOpaque_t"]), **made}


class NVMLLibraryMismatchError(Exception):
    """Never raised; clients name it behind `except`."""


class nvmlFriendlyObject:
    """Plain attributes; what the process lists hold."""

    def __init__(self, dictionary: Mapping[str, Any]) -> None:
        self.__dict__.update(dictionary)

    def __str__(self) -> str:
        return str(self.__dict__)

    def __repr__(self) -> str:
        return "nvmlFriendlyObject(%r)" % self.__dict__


def nvmlStructToFriendlyObject(struct: Any) -> nvmlFriendlyObject:
    """A plain object with a structure's fields."""
    values = ((field[0], getattr(struct, field[0])) for field in struct._fields_)
    return nvmlFriendlyObject({name: value.decode() if isinstance(value, bytes) else value for name, value in values})


def nvmlFriendlyObjectToStruct(obj: Any, model: Any) -> Any:
    """Copies the object's attributes into the structure `model` and returns it."""
    for field in model._fields_:
        value = getattr(obj, field[0])
        setattr(model, field[0], value.encode() if isinstance(value, str) else value)
    return model


# ---- functions that NVIDIA only calls by another name

def _nvml_as(name: str, function: _Pure) -> _Pure:
    """The same function, called by NVIDIA's name in help and logs too."""
    make: Any = type(function)
    same: Any = make(function.__code__, globals(), name, function.__defaults__)
    same.__qualname__, same.__doc__, same.__annotations__ = name, function.__doc__, function.__annotations__
    return same     # type: ignore[no-any-return]


nvmlShutdown = _nvml_as("nvmlShutdown", LibraryShutDown)
nvmlSystemGetDriverVersion = _nvml_as("nvmlSystemGetDriverVersion", SystemGetOsVersion)     # the GPU driver is a part of it
nvmlSystemGetNVMLVersion = _nvml_as("nvmlSystemGetNVMLVersion", LibraryGetVersion)
nvmlDeviceGetCount = _nvml_as("nvmlDeviceGetCount", LibraryCountDevice)
nvmlDeviceGetHandleByIndex = _nvml_as("nvmlDeviceGetHandleByIndex", LibraryInitDeviceByIndex)
nvmlDeviceGetHandleByUUID = _nvml_as("nvmlDeviceGetHandleByUUID", LibraryInitDeviceByUuid)
nvmlDeviceGetNumGpuCores = _nvml_as("nvmlDeviceGetNumGpuCores", DeviceCountGpuCores)
nvmlDeviceGetMemoryBusWidth = _nvml_as("nvmlDeviceGetMemoryBusWidth", MemoryGetBusWidth)
nvmlDeviceGetNumFans = _nvml_as("nvmlDeviceGetNumFans", DeviceCountFan)


# ---- library

def nvmlInit() -> None:
    """Begins, as often as wanted (counted); raises NVMLError_LibraryNotFound where there is no Apple GPU.

    In a program that called LibraryInit itself it joins in, whatever recording and window were given there.
    """
    with _library.lock:
        if _library.count:
            _library.count += 1
            return
    LibraryInit()


def nvmlInitWithFlags(flags: int) -> None:
    """As nvmlInit; there is nothing to flag."""
    nvmlInit()


def nvmlErrorString(result: int) -> str:
    """The text of an error code."""
    return ErrorString(result)


def nvmlExceptionClass(nvmlErrorCode: int) -> type[NVMLError]:
    """The class of an error code; ValueError for an unknown one."""
    try:
        return NVMLError._valClassMapping[nvmlErrorCode]
    except KeyError:
        raise ValueError("nvmlErrorCode %s is not valid" % nvmlErrorCode) from None


def _nvmlCheckReturn(ret: int) -> int:
    """Raises the error of a code that is not NVML_SUCCESS."""
    if ret != NVML_SUCCESS:
        raise NVMLError(ret)
    return ret


def nvmlSystemGetProcessName(pid: int) -> str:
    """Path of a process, or its name where macOS does not tell the path."""
    info = ProcessGetInfo(LibraryInitDeviceByIndex(0), pid)
    return info.path or info.name


# ---- devices

def nvmlDeviceGetIndex(handle: Device) -> int:
    """Its index, from 0."""
    return DeviceGetIndex(handle)


def nvmlDeviceGetName(handle: Device) -> str:
    """For example "Apple M4 Max"."""
    return DeviceGetName(handle)


def nvmlDeviceGetUUID(handle: Device) -> str:
    """GPU- and 8-4-4-4-12 hex digits; the same at every boot of one Mac."""
    return DeviceGetUUID(handle)


def nvmlDeviceGetBrand(handle: Device) -> int:
    """NVML_BRAND_UNKNOWN: none of NVIDIA's."""
    DeviceGetIndex(handle)
    return NVML_BRAND_UNKNOWN


def nvmlDeviceGetArchitecture(device: Device) -> int:
    """NVML_DEVICE_ARCH_UNKNOWN: none of NVIDIA's; it is above VOLTA, where clients look for the energy counter."""
    DeviceGetIndex(device)
    return NVML_DEVICE_ARCH_UNKNOWN


def nvmlDeviceGetComputeMode(handle: Device) -> int:
    """NVML_COMPUTEMODE_DEFAULT: any number of processes may use the GPU."""
    DeviceGetIndex(handle)
    return NVML_COMPUTEMODE_DEFAULT


def nvmlDeviceGetAccountingMode(handle: Device) -> int:
    """NVML_FEATURE_DISABLED: ended processes are not remembered."""
    DeviceGetIndex(handle)
    return NVML_FEATURE_DISABLED


def nvmlDeviceGetPowerSource(device: Device) -> int:
    """NVML_POWER_SOURCE_AC or NVML_POWER_SOURCE_BATTERY."""
    DeviceGetIndex(device)
    return NVML_POWER_SOURCE_BATTERY if SystemGetPowerSource().source == "Battery Power" else NVML_POWER_SOURCE_AC


def nvmlDeviceGetP2PStatus(device1: Device, device2: Device, p2pIndex: int) -> int:
    """NVML_P2P_STATUS_OK between a GPU and itself."""
    return DeviceGetP2PStatus(device1, device2, p2pIndex)


def nvmlDeviceGetTopologyCommonAncestor(device1: Device, device2: Device) -> int:
    """NVML_TOPOLOGY_INTERNAL within one GPU."""
    return DeviceGetTopologyLevel(device1, device2)


def nvmlDeviceGetTopologyNearestGpus(device: Device, level: int) -> list[Device]:
    """The other GPUs whose common ancestor is at `level`."""
    others = [LibraryInitDeviceByIndex(i) for i in range(LibraryCountDevice())]
    return [d for d in others if d != device and DeviceGetTopologyLevel(device, d) == level]


# ---- figures

def nvmlDeviceGetMemoryInfo(handle: Device, version: int | None = None) -> Any:
    """total = what the GPU may use, used = in use by every process, free = the rest and never negative; bytes."""
    if version not in (None, nvmlMemory_v2):
        raise _fail(NVML_ERROR_ARGUMENT_VERSION_MISMATCH, detail="memory info has version None and nvmlMemory_v2")
    total, used = MemoryGetTotal(handle), MemoryGetUsed(handle)
    free = max(0, total - used)
    if version:
        return _nvml_open()["c_nvmlMemory_v2_t"](version, total, 0, free, used)
    return _nvml_open()["c_nvmlMemory_t"](total, free, used)


def nvmlDeviceGetUtilizationRates(handle: Device) -> Any:
    """`.gpu` as DeviceGetUtilization; `.memory` (share of time it was busy) is always 0: Apple has no such counter."""
    return _nvml_open()["c_nvmlUtilization_t"](min(100, DeviceGetUtilization(handle)), 0)


def nvmlDeviceGetTemperature(handle: Device, sensor: int) -> int:
    """Mean of the GPU's sensors, rounded."""
    if sensor != NVML_TEMPERATURE_GPU:
        raise _bad("the only sensor is NVML_TEMPERATURE_GPU")
    return round(DeviceGetTemperature(handle))


def nvmlDeviceGetTemperatureV(handle: Device, sensor: int, version: int = nvmlTemperature_v1) -> int:
    """As nvmlDeviceGetTemperature."""
    if version != nvmlTemperature_v1:
        raise _fail(NVML_ERROR_ARGUMENT_VERSION_MISMATCH, detail="temperature has version nvmlTemperature_v1")
    return nvmlDeviceGetTemperature(handle, sensor)


def nvmlDeviceGetPowerUsage(handle: Device) -> int:
    """mW of the GPU alone, not of the package."""
    return DeviceGetPowerUsage(handle)


def nvmlDeviceGetTotalEnergyConsumption(handle: Device) -> int:
    """mJ of the GPU since the driver began to count."""
    return DeviceGetEnergy(handle)


def nvmlDeviceGetEnforcedPowerLimit(handle: Device) -> int:
    """mW, when a cap is set; NotSupported otherwise: Apple publishes no limit."""
    try:
        return DeviceGetPowerLimit(handle)
    except NVMLError_NoData as e:
        raise _fail(ERROR_NOT_SUPPORTED, e.reason, e.source, e.detail) from None


def _nvml_gpu_clock(clock_type: int) -> None:
    """Refuses the clocks that Apple does not publish."""
    if clock_type in (NVML_CLOCK_MEM, NVML_CLOCK_VIDEO):
        raise _fail(ERROR_NOT_SUPPORTED, REASON_CHIP, None, "memory and video clocks are not published")
    if clock_type not in (NVML_CLOCK_GRAPHICS, NVML_CLOCK_SM):
        raise _bad("no such clock: %r" % (clock_type,))


def nvmlDeviceGetClockInfo(handle: Device, type: int) -> int:
    """MHz of NVML_CLOCK_GRAPHICS or NVML_CLOCK_SM, the same clock; asleep: NoData."""
    _nvml_gpu_clock(type)
    return DeviceGetClock(handle)


def nvmlDeviceGetMaxClockInfo(handle: Device, type: int) -> int:
    """Highest MHz of NVML_CLOCK_GRAPHICS or NVML_CLOCK_SM."""
    _nvml_gpu_clock(type)
    return DeviceGetMaxClock(handle)


def nvmlDeviceGetClock(handle: Device, type: int, id: int) -> int:
    """As nvmlDeviceGetClockInfo for NVML_CLOCK_ID_CURRENT, the only one there is."""
    if id != NVML_CLOCK_ID_CURRENT:
        raise _fail(ERROR_NOT_SUPPORTED, REASON_CHIP, None, "only the current clock is published")
    return nvmlDeviceGetClockInfo(handle, type)


def nvmlDeviceGetSupportedGraphicsClocks(handle: Device, memoryClockMHz: int) -> list[int]:
    """MHz of the GPU's states, highest first, whatever the memory clock."""
    return sorted(DeviceGetSupportedClocks(handle), reverse=True)


def nvmlDeviceGetFanSpeed_v2(handle: Device, fan: int) -> int:
    """Percent of that fan's own maximum."""
    return DeviceGetFanSpeed(handle, fan)


def nvmlDeviceGetFanSpeed(handle: Device) -> int:
    """Percent of fan 0's own maximum; NotSupported on a Mac without fan."""
    return _nvml_first_fan(DeviceGetFanSpeed, handle)


def nvmlDeviceGetFanSpeedRPM(handle: Device) -> int:
    """Turns per minute of fan 0; NotSupported on a Mac without fan."""
    return _nvml_first_fan(DeviceGetFanRpm, handle)


def _nvml_first_fan(getter: Callable[[Device, int], int], handle: Device) -> int:
    if not DeviceCountFan(handle):
        raise _fail(ERROR_NOT_SUPPORTED, REASON_NO_SUCH_PART, "smc", "this Mac has no fan")
    return getter(handle, 0)


def nvmlDeviceGetComputeRunningProcesses(handle: Device) -> list[nvmlFriendlyObject]:
    """Every process that uses the GPU, busiest first; `usedGpuMemory` is None: macOS tells no share."""
    nowhere = {"usedGpuMemory": None, "gpuInstanceId": 0xFFFFFFFF, "computeInstanceId": 0xFFFFFFFF}
    return [nvmlFriendlyObject({"pid": p.pid, **nowhere}) for p in DeviceGetProcesses(handle, timeout=0)]


def nvmlDeviceGetGraphicsRunningProcesses(handle: Device) -> list[nvmlFriendlyObject]:
    """Empty: macOS does not tell drawing from computing, and the other list has them all."""
    DeviceGetIndex(handle)
    return []


def nvmlDeviceGetMPSComputeRunningProcesses(handle: Device) -> list[nvmlFriendlyObject]:
    """Empty: NVIDIA's multi-process service does not exist here."""
    DeviceGetIndex(handle)
    return []


nvmlDeviceGetMinorNumber = _nvml_as("nvmlDeviceGetMinorNumber", nvmlDeviceGetIndex)       # there is no device node
nvmlDeviceGetTemperatureV1 = _nvml_as("nvmlDeviceGetTemperatureV1", nvmlDeviceGetTemperature)
nvmlDeviceGetPowerManagementLimit = _nvml_as("nvmlDeviceGetPowerManagementLimit", nvmlDeviceGetEnforcedPowerLimit)
nvmlDeviceGetComputeRunningProcesses_v2 = nvmlDeviceGetComputeRunningProcesses_v3 = nvmlDeviceGetComputeRunningProcesses
nvmlDeviceGetGraphicsRunningProcesses_v2 = nvmlDeviceGetGraphicsRunningProcesses
nvmlDeviceGetGraphicsRunningProcesses_v3 = nvmlDeviceGetGraphicsRunningProcesses
nvmlDeviceGetMPSComputeRunningProcesses_v2 = nvmlDeviceGetMPSComputeRunningProcesses
nvmlDeviceGetMPSComputeRunningProcesses_v3 = nvmlDeviceGetMPSComputeRunningProcesses


def _nvml_field(handle: Device, field: int, scope: int) -> tuple[int, int]:
    """(value type, value) of one field."""
    if field == NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION:
        return NVML_VALUE_TYPE_UNSIGNED_LONG_LONG, DeviceGetEnergy(handle)
    getter = {NVML_POWER_SCOPE_GPU: DeviceGetPowerUsage, NVML_POWER_SCOPE_MEMORY: MemoryGetPower}.get(scope)
    if field not in (NVML_FI_DEV_POWER_AVERAGE, NVML_FI_DEV_POWER_INSTANT) or getter is None:
        raise _fail(ERROR_NOT_SUPPORTED)
    return NVML_VALUE_TYPE_UNSIGNED_INT, getter(handle)


def _nvml_fill_field(handle: Device, item: Any) -> None:
    """Answers one c_nvmlFieldValue_t in place; a missing figure becomes its nvmlReturn."""
    item.timestamp = int(time.time() * 1e6)
    try:
        item.valueType, value = _nvml_field(handle, item.fieldId, item.scopeId)
    except NVMLError as e:
        item.nvmlReturn = e.value
        return
    item.value.ullVal = value
    item.nvmlReturn = NVML_SUCCESS


def nvmlDeviceGetFieldValues(handle: Device, fieldIds: Sequence[int | tuple[int, int]]) -> Any:
    """Array of c_nvmlFieldValue_t for ids or (id, scope) pairs: GPU and DRAM power, GPU energy; others NotSupported."""
    DeviceGetIndex(handle)
    values = (_nvml_open()["c_nvmlFieldValue_t"] * len(fieldIds))()
    for item, wanted in zip(values, fieldIds):
        item.fieldId, item.scopeId = wanted if isinstance(wanted, tuple) else (wanted, 0)
        _nvml_fill_field(handle, item)
    return values


# ---- C calling shape, for clients that call NVML past its Python functions

def _nvml_target(argument: Any) -> Any:
    """The object behind byref(x), pointer(x) or x itself."""
    if hasattr(argument, "_obj"):
        return argument._obj
    return getattr(argument, "contents", argument)


def _nvml_store(value: Any, out: Sequence[Any]) -> None:
    """What a function gave, into the last arguments of its C shape: a number; text and its room; a structure, whose
    fields go by name; processes as count and array, where a short or no array gets the count needed."""
    target: Any = _nvml_target(out[0]) if out else None
    if isinstance(value, int):
        target.value = value
    elif isinstance(value, str):
        if len(value.encode()) >= getattr(out[1], "value", out[1]):
            raise _fail(ERROR_INSUFFICIENT_SIZE)
        target.value = value.encode()
    elif isinstance(value, list):
        room, target.value = target.value if out[1] is not None else 0, len(value)
        if len(value) > room:
            raise _fail(ERROR_INSUFFICIENT_SIZE)
        for process, item in zip(value, getattr(out[1], "_obj", out[1]) if value else ()):
            item.pid, item.usedGpuMemory = process.pid, NVML_VALUE_NOT_AVAILABLE_ulonglong.value
            item.gpuInstanceId, item.computeInstanceId = process.gpuInstanceId, process.computeInstanceId
    elif value is not None:
        for field, _ in value._fields_:
            setattr(target, field, getattr(value, field))


def _nvml_c_temperature(handle: Device, reference: Any) -> None:
    target = _nvml_target(reference)
    target.temperature = nvmlDeviceGetTemperature(handle, target.sensorType)


def _nvml_c_fields(handle: Device, count: int, array: Any) -> None:
    DeviceGetIndex(handle)
    for i in range(count):
        _nvml_fill_field(handle, getattr(array, "_obj", array)[i])


_nvml_memory_info = nvmlDeviceGetMemoryInfo     # gpustat puts another function in its place
_nvmlGetFunctionPointer_cache: dict[str, Callable[..., int]] = {}
_NVML_C_CALLS: dict[str, tuple[Callable[..., Any], int]] = {        # the function, and how many arguments take what it gives
    "nvmlInit_v2": (nvmlInit, 0), "nvmlInitWithFlags": (nvmlInitWithFlags, 0), "nvmlShutdown": (nvmlShutdown, 0),
    "nvmlDeviceGetCount_v2": (nvmlDeviceGetCount, 1),
    "nvmlDeviceGetMemoryInfo_v2": (lambda handle: _nvml_memory_info(handle, nvmlMemory_v2), 1),
    "nvmlDeviceGetTemperatureV": (_nvml_c_temperature, 0), "nvmlDeviceGetFieldValues": (_nvml_c_fields, 0),
    "nvmlDeviceGetDriverModel": (_nvml_refusal("nvmlDeviceGetDriverModel"), 0),
    "nvmlDeviceGetDriverModel_v2": (_nvml_refusal("nvmlDeviceGetDriverModel_v2"), 0),
}
for _name in _unpacked("nvmlDeviceGet Index MinorNumber NumGpuCores NumFans FanSpeed FanSpeed_v2 Temperature PowerUsage "
                       "EnforcedPowerLimit PowerManagementLimit TotalEnergyConsumption ClockInfo MaxClockInfo "
                       "MemoryInfo UtilizationRates"):
    _NVML_C_CALLS[_name] = globals()[_name], 1
for _name in _unpacked("nvmlSystemGet DriverVersion NVMLVersion;nvmlDeviceGet Name UUID "
                       "[Compute,Graphics,MPSCompute]RunningProcesses_[v2,v3]"):
    _NVML_C_CALLS[_name] = globals()[_name], 2
del _name


def _nvml_c_function(function: Callable[..., Any], outs: int) -> Callable[..., int]:
    def call(*args: Any) -> int:
        at = len(args) - outs
        try:
            _nvml_store(function(*(getattr(one, "value", one) for one in args[:at])), args[at:])
        except NVMLError as e:
            return e.value
        return NVML_SUCCESS
    return call


def _nvmlGetFunctionPointer(name: str) -> Callable[..., int]:
    """A Python callable in the shape of the C function, returning its code; FunctionNotFound for most names."""
    if name not in _nvmlGetFunctionPointer_cache:
        if name not in _NVML_C_CALLS:
            raise _fail(ERROR_FUNCTION_NOT_FOUND, detail=name + " has no C shape here; use the Python function")
        _nvmlGetFunctionPointer_cache[name] = _nvml_c_function(*_NVML_C_CALLS[name])
    return _nvmlGetFunctionPointer_cache[name]


# ---- what a star import brings: functions, errors, value types, every NVML name; Apple's Metal constants are not in it

_metal_attribute = __getattr__


def _attribute(name: str) -> Any:
    """The module's __getattr__: what an import need not pay for, what clients of NVML expect of ctypes' star import in
    pynvml (`pynvml.byref`), and `pynvml.nvml`, the layout of its older packages; else Metal's."""
    if name == "__all__":
        return _all()
    if name == "nvml":
        return sys.modules[__name__]
    if "nvml" in name.lower() and name in _nvml_open():
        return globals()[name]
    return getattr(ctypes, name) if name[0] != "_" and hasattr(ctypes, name) else _metal_attribute(name)


def _all() -> list[str]:
    """__all__, made when a star import asks for it."""
    hidden = {"annotations", "ctypes", "os", "struct", "sys", "time", "WeakSet", "itemgetter", "mul", "sub", "RLock",
              "allocate_lock", "get_ident", "array", "partial", "TYPE_CHECKING", "NamedTuple", "main"}
    found = {one for one in list(_nvml_open()) if one[0] != "_" and one not in hidden}
    # gpustat, nvitop and zeus look for these; with them even a pynvml.py of one star import will do
    found |= {"__version__", "_nvmlGetFunctionPointer", "_nvmlGetFunctionPointer_cache", "_nvmlCheckReturn",
              "_PrintableStructure"}
    names = globals()["__all__"] = sorted(found)
    return names


globals().update(__getattr__=_attribute)


class _Module(type(sys)):       # type: ignore[misc]
    """This module, whose `__dict__` shows every NVML name: clients copy functions and constants out of vars(pynvml)."""
    __dict__ = property(lambda self: _nvml_open())


if getattr(sys.modules.get(__name__), "__dict__", None) is globals():
    sys.modules[__name__].__class__ = _Module
else:
    _nvml_open()        # run in a way that leaves no module to ask


# ======================================================================================================================
# main
# ======================================================================================================================

# The command line, in nvidia-smi's spirit. Nothing above needs it; what only it needs is imported in its functions.

_DESCRIPTION = """\
The GPU, Neural Engine, memory, power and heat of an Apple silicon Mac, without sudo. Without options: one view;
dmon and pmon: a line for the GPU, or for each process, every second. A figure that cannot be had is N/A, never 0;
-v says why. On another OS: --recording FILE replays a Mac."""
_EPILOG = """\
exit codes: 0 done; 1 cannot write, or --selftest found a fault; 2 wrong arguments, or not a recording;
3 what nvidia-smi can do and a Mac cannot; 6 no such GPU; 12 no Apple GPU here; 17 the system refused
(--record cannot write); 130 Ctrl-C; 141 closed pipe."""
_CANNOT = frozenset("""
    -pm --persistence-mode -e --ecc-config -p --reset-ecc-errors --compute-mode -dm --driver-model -fdm --force-driver-model
    -gom --gom -lgc --lock-gpu-clocks -rgc --reset-gpu-clocks -lmc --lock-memory-clocks -rmc --reset-memory-clocks
    -lmcd --lock-memory-clocks-deferred -rmcd --reset-memory-clocks-deferred -ac --applications-clocks
    -rac --reset-applications-clocks -acp --applications-clocks-permission -pl --power-limit -cc --cuda-clocks
    -am --accounting-mode -caa --clear-accounted-apps --auto-boost-default --auto-boost-permission -mig
    --multi-instance-gpu -gtt --gpu-target-temp -vm --virt-mode -r --gpu-reset -t --toggle-led -B --list-excluded-gpus
    -u --unit --query-accounted-apps --query-retired-pages --query-remapped-rows
    topo nvlink c2c clocks vgpu mig drain daemon replay stats encodersessions fbcsessions compute-policy boost-slider
    power-hint base-clocks conf-compute power-smoothing""".split())
_LOOPING = (None, "query", "json", "jsonl")


class _Usage(Exception):
    """A command line that is wrong, in nvidia-smi's words, and its exit code."""

    def __init__(self, text: str, code: int = 2) -> None:
        super().__init__(text)
        self.code = code


def _wrong(text: str) -> NoReturn:
    raise _Usage("ERROR: %s. Please run 'pyapplegpu -h'." % text)


def _parser() -> Any:
    import argparse
    parser = argparse.ArgumentParser("pyapplegpu", "pyapplegpu [dmon | pmon] [options]", description=_DESCRIPTION,
                                     epilog=_EPILOG, allow_abbrev=False, add_help=False)
    parser.error = _wrong      # type: ignore[method-assign, assignment]
    one_of = parser.add_mutually_exclusive_group().add_argument

    def mode(*options: str, help: str) -> None:
        one_of(*options, action="store_const", dest="mode", const=options[-1][2:].replace("-", "_"), help=help)
    mode("-L", "--list-gpus", help="the GPU and its UUID")
    mode("-q", "-a", "--query", help="every figure, grouped")
    one_of("--query-gpu", metavar="FIELDS", help="CSV of these fields; nvidia-smi's names, apple.* for the rest")
    one_of("--query-compute-apps", metavar="FIELDS", help="CSV of the processes that use the GPU, likewise")
    one_of("--query-supported-clocks", metavar="FIELDS", help="CSV of the GPU's clocks, likewise")
    for option in ("query-gpu", "query-compute-apps", "query-supported-clocks"):
        mode("--help-" + option, help="the fields of --" + option)
    mode("--json", help="one snapshot: stable keys, a value or a reason for each")
    mode("--jsonl", help="the same on one line; with -l one line each time")
    mode("--doctor", help="what each source of this Mac answers, to paste into a bug report")
    mode("--selftest", help="call every function once: its value or the reason")
    one_of("--record", metavar="FILE", help="write a recording of this Mac, for a bug report or another OS")
    mode("--version", help="the version of this file")
    mode("-h", "--help", help="this text")
    add = parser.add_argument
    add("-v", "--verbose", action="store_true", help="say why a figure is N/A; show every process")
    add("-i", "--id", metavar="ID", help="index or UUID of the GPU, or several with commas")
    add("-l", "--loop", metavar="SECONDS", nargs="?", const="5", help="again every so many seconds (5)")
    add("-lms", "--loop-ms", metavar="MS", help="again every so many milliseconds")
    add("-f", "--filename", metavar="FILE", help="write there instead of to stdout")
    add("--format", metavar="csv[,noheader][,nounits]", help="of --query-gpu and its like")
    add("-x", "--xml-format", action="store_true", help="-q as nvidia-smi's XML")
    add("-d", "--display", "--delay", metavar="WHAT", help="-q: nvidia-smi's sections, as MEMORY,POWER; dmon, pmon: seconds (1)")
    add("-s", "--select", metavar="LETTERS", help="columns of dmon (pucvmet, without it puc) and pmon (um, without it u)")
    add("-c", "--count", metavar="N", help="lines of dmon and pmon; without it until Ctrl-C")
    add("-o", "--options", metavar="DT", help="date and time before each line of dmon and pmon")
    add("--recording", metavar="FILE", help="replay this file instead of reading this Mac (or PYAPPLEGPU_RECORDING)")
    add("--speed", metavar="X", default="1", help="of the replay; 0: one recorded instant for each reading")
    add("--seconds", metavar="N", help="length of --record (3)")
    add("--names", action="store_true", help="--record with names of processes that are not Apple's")
    return parser


def _bounded(option: str, text: str | None, low: float, high: float) -> float | None:
    """The number of an option, in bounds, or a usage error."""
    if text is None:
        return None
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not low <= number <= high:
        _wrong("%s takes a number from %.10g to %.10g, not %r" % (option, low, high, text))
    return number


def _known(words: Iterable[str]) -> None:
    for name in (word.split("=")[0] for word in words):
        if name in _CANNOT:
            raise _Usage("%s is not supported for this GPU: macOS offers no such thing." % name, 3)


def _arguments(argv: Sequence[str] | None) -> Any:
    """The parsed and checked command line: `mode` is what to do, `every` the seconds of -l, -lms and dmon's -d or None."""
    words = list(sys.argv[1:] if argv is None else argv)
    _known(word for word in words if word[:1] == "-")
    args, rest = _parser().parse_known_args(words)
    chosen = [name for name in (*_QUERIES, "record") if getattr(args, name) is not None]
    chosen += [args.mode] if args.mode else []
    chosen += [rest.pop(0)] if rest[:1] in (["dmon"], ["pmon"]) else []
    _known(rest)
    if rest:
        _wrong("Option %s is not recognized" % _clean(rest[0]))
    args.mode = chosen[0] if chosen else None
    args.scroll = args.mode in ("dmon", "pmon")
    args.sections = (args.display or "").upper().replace(" ", "").split(",")
    sections = sorted({(line + "|||").split("|")[3] for line in _LOG.splitlines()} - {""})
    for wrong, why in (
            (len(chosen) > 1, "Invalid combination of input arguments"),
            (args.loop is not None and args.loop_ms is not None, "-l and -lms do not go together"),
            ((args.loop or args.loop_ms) is not None and args.mode not in (*_LOOPING, *_QUERIES),
             "-l goes with the view, -q, the queries, --json and --jsonl"),
            (args.mode != "record" and (args.seconds is not None or args.names), "--seconds and --names go with --record"),
            (args.xml_format and (args.mode != "query" or args.display is not None), "-x goes with -q, without -d"),
            (args.display is not None and args.mode != "query" and not args.scroll, "-d goes with -q, dmon and pmon"),
            (args.display is not None and not args.scroll and not set(args.sections) <= set(sections),
             "-d takes, with commas, " + ", ".join(sections)),
            (not args.scroll and (args.select or args.count or args.options), "-s, -c and -o go with dmon and pmon"),
            (args.format is not None and args.mode not in _QUERIES, "--format goes with --query-gpu and its like")):
        if wrong:
            _wrong(why)
    args.every = _bounded("-l", args.loop, 0.01, 86400)
    if args.loop_ms is not None:
        args.every = (_bounded("-lms", args.loop_ms, 10, 86400000) or 0) / 1000
    args.speed = _bounded("--speed", args.speed, 0, 1000)
    args.seconds = _bounded("--seconds", args.seconds or "3", 0.1, 3600)
    args.count = int(_bounded("-c", args.count, 1, 1e9) or 0)
    if args.scroll:
        _scroll(args)
    args.fields = [column[3] for column in args.columns if column[3]] if args.scroll else _fields(args)
    return args


def _fields(args: Any) -> list[_Field]:
    """The rows of _query_table that are asked for; `noheader` and `nounits` are set on `args`."""
    asked = getattr(args, args.mode) if args.mode in _QUERIES else None
    words = [w.strip() for w in args.format.split(",")] if args.format is not None else ["csv"]
    if "csv" not in words or not set(words) <= {"csv", "noheader", "nounits"}:
        _wrong("--format is csv, and with commas noheader and nounits; not %r" % args.format)
    args.noheader, args.nounits = "noheader" in words, "nounits" in words
    table = _query_table(args.mode) if asked is not None else {}
    names = [name.strip() for name in asked.split(",")] if asked is not None else []
    for name in names:
        if name not in table:
            raise _Usage('Field "%s" is not a valid field to query.' % _clean(name))
    return [table[name] for name in names]


# ---- text that may go to a terminal

def _clean(text: str) -> str:
    """Without control characters: a process may be named by anybody, and a terminal obeys escape sequences."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


def _width(text: str) -> int:
    """Columns of a text on a terminal: East Asian wide characters take two, combining ones none."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width
    return sum(0 if combining(c) else 2 if east_asian_width(c) in "WF" else 1 for c in text)


def _fit(text: str, width: int, right: bool = False) -> str:
    """Exactly `width` columns: clipped, or filled with spaces."""
    if _width(text) > width:
        while _width(text) > max(0, width - 1):
            text = text[:-1]
        text += "~"[:width]
    space = " " * (width - _width(text))
    return space + text if right else text + space


def _write(text: str) -> None:
    """To stdout and at once, with ? for what its encoding has not."""
    out = sys.stdout
    if out is None:
        return
    encoding = getattr(out, "encoding", None) or "utf-8"
    out.write(text.encode(encoding, "replace").decode(encoding, "replace"))
    out.flush()


def _coloured() -> bool:
    """Whether to colour: NO_COLOR, FORCE_COLOR and TERM=dumb are asked in the order that Python itself asks them."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    terminal = sys.stdout is not None and sys.stdout.isatty()
    return terminal and os.environ.get("TERM") != "dumb" and os.name != "nt"


def _paint(line: str) -> str:
    """A line of the view, its bars green, yellow or red, what is missing dim. Titles are bold already."""
    import re

    def bar(match: Any) -> str:
        share = len(match.group(1)) / max(1, len(match.group(0)) - 2)
        colour = 31 if share > 0.8 else 33 if share > 0.5 else 32
        return "[\033[%dm%s\033[0m%s]" % (colour, match.group(1), match.group(2))
    return re.sub(r"\bN/A\b", "\033[2mN/A\033[0m", re.sub(r"\[(#*)(\.*)\]", bar, line))


# ---- figures as text

def _show(form: str, value: Any, scale: float = 1) -> str:
    return "N/A" if value is None else form % (value if scale == 1 else value / scale)


def _size_text(count: int | None) -> str:
    """"411.0 MiB"; binary units, as memory is sold and Activity Monitor counts."""
    if count is None:
        return "N/A"
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= factor:
            return "%.1f %s" % (count / factor, unit)
    return "%d B" % count


def _watts(milliwatts: int | None) -> str:
    """A little power stays visible: 1 mW is not 0.00 W."""
    return _show("%.2f W", milliwatts, 1000) if milliwatts is None or milliwatts >= 1000 else "%d mW" % milliwatts


def _bar(percent: float | None, width: int) -> str:
    if percent is None:
        return "N/A"
    full = min(width, int(width * percent / 100 + 0.5))
    return "%3d %% [%s%s]" % (percent, "#" * full, "." * (width - full))


def _rate_text(got: Bandwidth | None) -> str:
    """GB/s; ~ is an estimate, > one that was too low because its histogram was full."""
    if got is None:
        return "N/A"
    return (">" if got.saturated else "~" if got.estimated else "") + "%.2f" % (got.bytes_per_s / 1e9)


# ---- the view: panels of (label, text), two or three beside each other, then the processes

def _panel_gpu(s: Snapshot, clocks: Sequence[int] | None, width: int) -> list[tuple[str, str]]:
    span = " (%d to %d)" % (clocks[0], clocks[-1]) if clocks else ""
    clock = "asleep" if s.reasons.get("gpu_clock_mhz") == REASON_GPU_ASLEEP else _show("%d MHz", s.gpu_clock_mhz)
    cap = ", no cap" if s.reasons.get("gpu_power_limit_mw") == REASON_NO_LIMIT else \
        ", cap " + _watts(s.gpu_power_limit_mw)
    hottest = _show(", hottest %.1f C", s.gpu_temperature_max_celsius) if s.gpu_temperature_max_celsius else ""
    return [("Use", _bar(s.gpu_utilization_percent, width - 20)),
            ("Work done", _show("%.1f %% of full speed", s.gpu_scaled_ratio, 0.01)),
            ("Clock", clock + span),
            ("Power", _watts(s.gpu_power_mw) + cap),
            ("Temp", _show("%.1f C", s.gpu_temperature_celsius) + hottest),
            ("Throttle", _throttle_text(s.gpu_throttle)),
            ("Restarts", _show("%d", s.gpu_recovery_count))]


def _throttle_text(state: ThrottleState | None) -> str:
    if state is None or (state.cltm_ratio is None and state.ppm_percent is None):
        return "N/A"
    heat = ["heat %.0f %% of the time" % (100 * state.cltm_ratio)] if state.cltm_ratio else []
    granted = 100.0 if state.ppm_percent is None else state.ppm_percent
    budget = ["power budget %.0f %%" % granted] if granted < 100 else []
    return ", ".join(heat + budget) or "none"


def _panel_memory(s: Snapshot) -> list[tuple[str, str]]:
    ram, swap = s.system_memory, s.system_swap
    rows = [("In use", s.memory_used_bytes), ("Limit", s.memory_total_bytes), ("Headroom", s.memory_headroom_bytes),
            ("Allocated", s.memory_allocated_bytes), ("RAM used", ram and ram.used_bytes),
            ("RAM total", ram and ram.total_bytes), ("Swap used", swap and swap.used_bytes)]
    return [(label, "%15s %10s" % ("{:,}".format(n), _size_text(n)) if n is not None else "N/A") for label, n in rows]


def _panel_power(s: Snapshot) -> list[tuple[str, str]]:
    rails = [(label, "%10s %12s" % (_watts(getattr(s, rail + "_power_mw")), _show("%.0f J", getattr(s, rail + "_energy_mj"), 1000)))
             for label, rail in (("GPU", "gpu"), ("CPU", "cpu"), ("ANE", "ane"), ("DRAM", "memory"))]
    return rails + [("Package", _watts(s.package_power_mw).rjust(10)), ("System", _watts(s.system_power_mw).rjust(10)),
                    ("Source", _source_text(s.system_power_source))]


def _source_text(source: PowerSource | None) -> str:
    if source is None:
        return "N/A"
    charge = _show(" %d %%", source.battery_percent) if source.battery_percent is not None else ""
    return _clean(source.source) + charge + (", charging" if source.charging else "")


def _panel_bandwidth(s: Snapshot) -> list[tuple[str, str]]:
    return [(label, "%10s %10s" % (_rate_text(getattr(s, "memory_%sread" % who)), _rate_text(getattr(s, "memory_%swrite" % who))))
            for label, who in (("All", ""), ("GPU", "gpu_"), ("CPU", "cpu_"), ("ANE", "ane_"), ("Media", "media_"),
                               ("Display", "display_"), ("I/O", "io_"))]


def _panel_cpu(s: Snapshot, width: int) -> list[tuple[str, str]]:
    rows = [("Use", _bar(s.cpu_utilization_percent, width - 20)), ("Temp", _show("%.1f C", s.cpu_temperature_celsius))]
    for c in s.cpu_clusters or ():
        clock = "asleep" if c.reasons.get("clock_mhz") == REASON_CPU_ASLEEP else _show("%d", c.clock_mhz)
        rows.append((_clean(c.name) or "CPU", "%2s %9s %4s %7s" % (
            _show("%d", c.cores), clock + "/" + _show("%d", c.max_clock_mhz) if c.max_clock_mhz else clock,
            _show("%d%%", c.utilization_percent), _watts(c.power_mw))))
    return rows


def _panel_rest(s: Snapshot) -> list[tuple[str, str]]:
    method = ", by " + s.ane_utilization_method if s.ane_utilization_method else ""
    level, pressure, fans = s.thermal_pressure_level, s.system_memory_pressure, s.fans

    def engine(power: int | None, moved: Bandwidth | None) -> str:
        return "%7s %9s%s" % (_watts(power), _rate_text(moved), " GB/s" if moved else "")
    return [("ANE", "%7s" % _watts(s.ane_power_mw)), ("ANE use", _show("%d %%", s.ane_utilization_percent) + method),
            ("Encode", engine(s.encode_power_mw, s.encode_bandwidth)),
            ("Decode", engine(s.decode_power_mw, s.decode_bandwidth)),
            ("Thermal", "N/A" if level is None else THERMAL_PRESSURE[min(4, level)] + " pressure"),
            ("Memory", "N/A" if pressure is None else "%s pressure" % pressure.level),
            ("Fans", "N/A" if fans is None else _fans_text(fans))]


def _fans_text(fans: Sequence[Fan]) -> str:
    shares = ", ".join(_show("%d", fan.percent) for fan in fans)
    return "%s rpm (%s %%)" % (", ".join("%d" % fan.rpm for fan in fans), shares) if fans else "none"


def _panels(s: Snapshot, clocks: Sequence[int] | None, width: int) -> list[tuple[str, list[tuple[str, str]]]]:
    sold = "GB/s of %d" % (s.memory_max_bytes_per_s / 1e9) if s.memory_max_bytes_per_s else "GB/s"
    return [("GPU", _panel_gpu(s, clocks, width)), ("GPU memory, bytes", _panel_memory(s)),
            ("Power, energy", _panel_power(s)),
            ("%-12s%8s %10s" % (sold, "read", "write"), _panel_bandwidth(s)),
            ("CPU: cores, MHz, use, power", _panel_cpu(s, width)), ("Neural Engine, video, heat", _panel_rest(s))]


def _panel_lines(title: str, rows: list[tuple[str, str]], width: int, height: int, colour: bool) -> list[str]:
    title = _fit(title, width)
    lines = [_fit(_fit(label, 11 if _width(label) > 9 else 9) + " " + text, width) for label, text in rows]
    return ["\033[1m%s\033[0m" % title if colour else title] + lines + [" " * width] * (height - len(lines))


def _frame(widths: Sequence[int], dash: str = "-") -> str:
    return "+" + "+".join(dash * (w + 2) for w in widths) + "+"


def _box(lines: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(row) + " |" for row in lines]


def _view(device: Device, s: Snapshot, verbose: bool, width: int, colour: bool) -> str:
    """The default view, `width` columns wide."""
    inner = width - 4
    columns = 3 if width >= 120 else 2 if width >= 80 else 1
    share, more = divmod(inner - 3 * (columns - 1), columns)
    widths = [share + (n < more) for n in range(columns)]
    lines = _view_head(device, s, width)
    panels = _panels(s, Try(DeviceGetSupportedClocks, device).value, share)
    for at in range(0, len(panels), columns):
        group = panels[at:at + columns]
        height = max(len(rows) for _, rows in group)
        lines.append(_frame(widths, "=" if at == 0 else "-"))
        lines += _box(list(zip(*[_panel_lines(*p, w, height, colour) for p, w in zip(group, widths)])))
    lines.append(_frame(widths))
    lines += _view_processes(s, inner, verbose, colour) + [_frame([inner])]
    lines = [_paint(line) for line in lines] if colour else lines
    return "\n".join(lines + (_why(s, width) if verbose else [])) + "\n"


def _moment(s: Snapshot) -> str:
    return time.strftime("%a %b %d %H:%M:%S %Y", time.localtime(s.time_unix_s))


def _origin(s: Snapshot) -> str:
    return "live" if s.source == "live" else "recording " + _clean(os.path.basename(s.source))


def _two_ends(left: str, right: str, width: int) -> list[str]:
    """One line with a text at each end, or as many lines as they need."""
    room = width - _width(left) - _width(right)
    if right and room < 2:
        import textwrap
        parts = [text.replace(" ", "\0").replace("\0\0\0", "   ") for text in (left, right)]    # broken between parts only
        return [_fit(line.replace("\0", " "), width) for part in parts for line in textwrap.wrap(part, width)]
    return [(left + " " * room + right).rstrip()] if room >= 0 else [_fit(left, width)]


def _view_head(device: Device, s: Snapshot, width: int) -> list[str]:
    """When and what is replayed; then the Mac and its GPU."""
    when = _moment(s) + ("   rates over %.1f s" % s.interval_s if s.interval_s else "")
    machine = "%s   macOS %s   driver %s" % (s.system_model or "N/A", s.system_os_version or "N/A",
                                             s.system_driver_version or "N/A")
    gpu = "GPU %d  %s" % (DeviceGetIndex(device), _clean(s.gpu_name or "N/A"))
    gpu += ", %d cores" % s.gpu_core_count if s.gpu_core_count else ""
    shares = s.gpu_device_percent, s.gpu_renderer_percent, s.gpu_tiler_percent
    slash = " / " if width >= 60 else "/"
    engines = "N/A" if shares == (None, None, None) else slash.join(_show("%d", share) for share in shares) + " %"
    rows = _two_ends("pyapplegpu " + __version__, _clean(machine), width - 4)
    rows += _two_ends(gpu, slash.join(("device", "renderer", "tiler")) + "  " + engines, width - 4)
    return _two_ends(when, "" if s.source == "live" else _origin(s), width) + [_frame([width - 4])] + _box(
        [[_fit(row, width - 4)] for row in rows])


def _view_processes(s: Snapshot, inner: int, verbose: bool, colour: bool) -> list[str]:
    def line(*cells: str) -> str:
        """PID, name, then GPU share, GPU time and, where there is room, footprint."""
        widths = (8, 11) if inner < 56 else (9, 14) if inner < 60 else (9, 14, 13)
        ends = "".join(_fit(cell, width, True) for cell, width in zip(cells[2:], widths))
        return _fit(cells[0], 7, True) + "  " + _fit(cells[1], inner - 9 - len(ends)) + ends
    title = line("PID", "Process", "GPU", "GPU time", "Footprint")
    found = s.processes or ()
    shown = found if verbose else found[:8]
    lines = ["\033[1m%s\033[0m" % title if colour else title] + [
        line(str(p.pid), _clean(p.name), _show("%.1f %%", p.gpu_percent), "%.2f s" % (p.gpu_time_ns / 1e9),
             _size_text(p.footprint_bytes)) for p in shown]
    if len(shown) < len(found):
        lines.append(_fit("%9s%d more with -v" % ("", len(found) - len(shown)), inner))
    if not found:
        lines.append(_fit("%9s%s" % ("", "N/A" if s.processes is None else "no process uses the GPU"), inner))
    return _box([[text] for text in lines])


def _why(s: Snapshot, width: int) -> list[str]:
    """Why figures are missing: those of one cause together."""
    import textwrap
    causes: dict[tuple[str, str], list[str]] = {}
    for field in s.reasons:
        causes.setdefault((s.reasons[field], s.messages[field]), []).append(field)
    for c in s.cpu_clusters or ():
        for field, reason in c.reasons.items():
            causes.setdefault((reason, _ADVICE.get(reason, "")), []).append("%s %s" % (c.name or "CPU", field))
    lines = ["Not available:"] if causes else []
    for (reason, message), fields in causes.items():
        text = _clean("%s: %s (%s)" % (", ".join(fields), message, reason))
        lines += textwrap.wrap(text, width, initial_indent="  ", subsequent_indent="    ")
    return lines + ["~ estimated; > at least"]


# ---- -q

_SUFFIXES: tuple[tuple[str, Callable[[Any], str]], ...] = (
    ("_percent", lambda v: "%g %%" % v), ("_mw", lambda v: "%.3f W" % (v / 1000)),
    ("_mj", lambda v: "%.3f J" % (v / 1000)),
    ("_bytes_per_s", lambda v: "%.2f GB/s" % (v / 1e9)), ("_bytes", lambda v: "{:,} ({})".format(v, _size_text(v))),
    ("_mhz", lambda v: "%d MHz" % v), ("_celsius", lambda v: "%.1f C" % v), ("_ratio", lambda v: "%.4f" % v),
    ("_ns", lambda v: "%.3f s" % (v / 1e9)), ("_s", lambda v: "%.3f s" % v), ("_flops", lambda v: "%.2f TFLOPS" % (v / 1e12)),
    ("_pressure_level", lambda v: THERMAL_PRESSURE[min(4, v)]), ("_thermal_pressure", lambda v: THERMAL_PRESSURE[min(4, v)]),
)
_FACTS: dict[str, tuple[tuple[str, Callable[..., Any]], ...]] = {      # functions whose answer is in no snapshot
    "gpu": (("UUID", DeviceGetUUID), ("architecture", DeviceGetArchitecture), ("Metal_family", DeviceGetMetalFamily),
            ("registry_ID", DeviceGetRegistryId), ("dies", DeviceCountDie), ("peak_FP32_flops", DeviceGetPeakFlops),
            ("supported_clocks", DeviceGetSupportedClocks), ("sensors", DeviceGetTemperatureSensors)),
    "memory": (("type", MemoryGetType), ("bus_width", MemoryGetBusWidth)), "ane": (("cores", AneCountCores),),
    "cpu": (("cores", CpuCountCores), ("max_clock_mhz", CpuGetMaxClock)),
}
_ACRONYMS = {word.lower(): word for word in "GPU CPU ANE I/O OS SRAM CLTM PPM RPM PID RAM".split()}


def _label(words: str) -> str:
    return " ".join(_ACRONYMS.get(w, w[:1].upper() + w[1:]) for w in words.replace("io_", "i/o_").split("_"))


def _tell(name: str, value: Any, indent: str, why: str | None = None) -> list[str]:
    """A figure of any kind as indented lines."""
    unit = next((u for u in _SUFFIXES if ("_" + name).endswith(u[0])), None)
    words = name[:-len(unit[0])] if unit and "_pressure" not in unit[0] else name
    noun = {"_celsius": "temperature", "_bytes_per_s": "bandwidth"}.get(unit[0] if unit else "", "")
    words += "" if noun in words else "_" + noun
    head = "%s%-*s: " % (indent, 44 - len(indent), _clean(_label(words or name)))
    if value is None:
        return [head + "N/A" + (" (%s)" % _clean(why) if why else "")]
    if isinstance(value, Bandwidth):
        return [head + _rate_text(value).lstrip("~>") + " GB/s" +
                (", estimated" if value.estimated else "") + (", saturated" if value.saturated else "")]
    if isinstance(value, StateResidency):
        return [head + "%6.2f %%%s" % (100 * value.ratio, _show("  %d MHz", value.mhz) if value.mhz else "")]
    if isinstance(value, TemperatureSensor):
        return [head + "%.1f C" % value.celsius]
    if hasattr(value, "_asdict"):
        return [head.rstrip(" :")] + [line for k, v in value._asdict().items() if k != "reasons" for line in _tell(
            k, v, indent + "    ", why and value._asdict().get("reasons", {}).get(k))]
    if isinstance(value, tuple) and value and isinstance(value[0], tuple):
        return [head.rstrip(" :")] + [
            line for n, v in enumerate(value) for line in _tell(_item_name(n, v), v, indent + "    ")]
    text = ", ".join(map(str, value)) or "none" if isinstance(value, tuple) else unit[1](value) if unit else str(value)
    return [head + _clean(text)]


def _item_name(number: int, item: Any) -> str:
    """What to call one of several."""
    if isinstance(item, GpuProcess):
        return "process %d" % item.pid
    return str(getattr(item, "name", "") or getattr(item, "key", "") or number)


def _query_all(device: Device, s: Snapshot, verbose: bool) -> str:
    head = [("Timestamp", _moment(s)), ("Source", _origin(s)), ("Library Version", __version__),
            ("Driver Version", s.system_driver_version or "N/A"), ("Rates Over", _show("%.3f s", s.interval_s)),
            ("GPU", "%d" % DeviceGetIndex(device))]
    lines = ["=" * 18 + " pyapplegpu " + "=" * 18, ""] + ["%-44s: %s" % (k, _clean(v)) for k, v in head]
    fields = [field for row in _SNAPSHOT for field, _ in row[3]]
    for group in dict.fromkeys(field.split("_")[0] for field in fields):
        lines.append("    " + {"gpu": "GPU", "ane": "Neural Engine", "cpu": "CPU"}.get(group, group.capitalize()))
        for name, function in _FACTS.get(group, ()):
            got = Try(function, device)
            lines += _tell(name, got.value, " " * 8, got.message if verbose else None)
        for field in fields:
            if field.split("_")[0] == group:
                told = _tell(field[len(group) + 1:] or field, getattr(s, field), " " * 8,
                             s.messages.get(field) if verbose else None)
                lines += [line[4:] for line in told[1:]] if field == group and len(told) > 1 else told
    return "\n".join(lines) + "\n"


# ---- --query-gpu and its like

# names ; where it comes from ; unit ; what it is. Each name, of those that _spelled makes of it, is a column; behind | stand
# other names of a column, headed with the first. Sources: a function, a field of Snapshot, of the process or clock of the
# line, =constant, !special, and none for what a Mac has not: [N/A] here; drivers of 535 to 590 list these.
_QUERY = """\
timestamp;!%Y/%m/%d %H:%M:%S.ms;;when it was measured, YYYY/MM/DD HH:MM:SS.msec
driver_version;SystemGetOsVersion;;version of macOS, which the driver is a part of
count;LibraryCountDevice;;number of GPUs
name|gpu_name;gpu_name;;name of the chip
uuid|gpu_uuid;DeviceGetUUID;;GPU- and 32 digits, the same for this Mac always
index;DeviceGetIndex;;number of the GPU, from 0
hostname;!host;;name of this Mac
accounting.mode;=Disabled;;processes that ended are not remembered
compute_mode;=Default;;any process may use the GPU
fan.speed;fans.0.percent;%;speed of the first fan, of its own maximum
clocks_[event,throttle]_reasons.sw_power_cap;gpu_throttle.ppm_percent;active<;Active: power budget below 100 %
clocks_[event,throttle]_reasons.hw_thermal_slowdown;gpu_throttle.cltm_ratio;active>;Active: held back by heat
memory.total;memory_total_bytes;MiB;what the GPU may use: wired limit, or Metal's working set
memory.used;memory_used_bytes;MiB;in use by every process
memory.free;memory_free_bytes;MiB;total - used; for what can really be had see apple.memory.headroom
utilization.gpu;gpu_utilization_percent;%;share of the last second the GPU was active
temperature.gpu;gpu_temperature_celsius;C;mean of the GPU's sensors
power.draw power.draw.[average,instant];gpu_power_mw;W;the GPU alone, mean of the last second
power.limit enforced.power.limit;gpu_power_limit_mw;W;the cap, when one is set
clocks.current.graphics|clocks.gr clocks.current.sm|clocks.sm;gpu_clock_mhz;MHz;mean clock while active
clocks.max.graphics|clocks.max.gr clocks.max.sm;gpu_max_clock_mhz;MHz;top clock
apple.brand;DeviceGetBrand;;Apple
apple.chip;system_chip_name;;chip, as sysctl names it
apple.model;system_model;;model of the Mac
apple.driver_version;system_driver_version;;version of the GPU driver
apple.architecture;DeviceGetArchitecture;;GPU design
apple.metal_family;DeviceGetMetalFamily;;highest Metal family
apple.gpu_cores;gpu_core_count;;GPU cores
apple.restarts;gpu_recovery_count;;GPU restarts since boot
apple.thermal_pressure;thermal_pressure_level;pressure;nominal, moderate, heavy, trapping or sleeping
apple.utilization.device;gpu_device_percent;%;the driver's own figure of this moment
apple.utilization.renderer;gpu_renderer_percent;%;its renderer
apple.utilization.tiler;gpu_tiler_percent;%;its tiler
apple.utilization.scaled;gpu_scaled_ratio;ratio %;active share weighted by clock / top clock
apple.utilization.memory;memory_utilization_percent;%;memory.used of memory.total
apple.utilization.ane;ane_utilization_percent;%;Neural Engine, an estimate
apple.utilization.cpu;cpu_utilization_percent;%;all CPUs
apple.memory.allocated;memory_allocated_bytes;MiB;handed out by the driver, used or not
apple.memory.headroom;memory_headroom_bytes;MiB;what the GPU may still take: RAM and limit
apple.memory.wired_limit;memory_wired_limit_bytes;MiB;iogpu.wired_limit_mb, when set
apple.ram.total;system_memory.total_bytes;MiB;main memory
apple.ram.used;system_memory.used_bytes;MiB;app + wired + compressed, as Activity Monitor
apple.ram.available;system_memory.available_bytes;MiB;total - used
apple.swap.used;system_swap.used_bytes;MiB;swap
apple.temperature.max;gpu_temperature_max_celsius;C;hottest GPU sensor
apple.temperature.cpu;cpu_temperature_celsius;C;mean of the CPU's sensors
apple.fan.rpm;fans.0.rpm;RPM;first fan
apple.power.cpu;cpu_power_mw;W;CPU
apple.power.ane;ane_power_mw;W;Neural Engine
apple.power.dram;memory_power_mw;W;DRAM
apple.power.gpu_sram;gpu_sram_power_mw;W;GPU SRAM
apple.power.package;package_power_mw;W;CPU + GPU + ANE
apple.power.system;system_power_mw;W;the whole Mac
apple.energy.gpu;gpu_energy_mj;J;GPU since the driver's start
apple.energy.cpu;cpu_energy_mj;J;CPU
apple.energy.ane;ane_energy_mj;J;Neural Engine
apple.energy.dram;memory_energy_mj;J;DRAM
apple.bandwidth.max;memory_max_bytes_per_s;GB/s;what the chip is sold with
apple.bandwidth.read;memory_read.bytes_per_s;GB/s;from DRAM
apple.bandwidth.write;memory_write.bytes_per_s;GB/s;to DRAM
apple.bandwidth.gpu_read;memory_gpu_read.bytes_per_s;GB/s;by the GPU
apple.bandwidth.gpu_write;memory_gpu_write.bytes_per_s;GB/s;by the GPU
apple.bandwidth.ane_read;memory_ane_read.bytes_per_s;GB/s;by the Neural Engine
apple.bandwidth.ane_write;memory_ane_write.bytes_per_s;GB/s;by the Neural Engine
apple.bandwidth.encode;encode_bandwidth.bytes_per_s;GB/s;video encoder, read and written
apple.bandwidth.decode;decode_bandwidth.bytes_per_s;GB/s;video decoder, read and written
serial|gpu_serial display_[mode,attached,active] persistence_mode addressing_mode vbios_version pstate gpu_recovery_action \
compute_cap c2c.mode kmd_version accounting.buffer_size gpu.base.uuid pci.bus_id|gpu_bus_id \
pci.[domain,bus,device,baseClass,subClass,device_id,sub_device_id] \
pcie.link.gen.[current,gpucurrent,max,gpumax,hostmax] pcie.link.width.[current,max] \
inforom.img|inforom.image inforom.pwr|inforom.power inforom.[oem,ecc,checksum_validation] \
gom.[current,pending]|gpu_operation_mode.[current,pending] gsp.mode.[current,default] \
[driver_model,dramEncryption.mode,ecc.mode,mig.mode].[current,pending] \
reset_status.[reset_required,drain_and_reset_recommended] vgpu_driver_capability.heterogenous_multivGPU \
vgpu_device_capability.[fractional_multiVgpu,heterogeneous_timeSlice_profile,heterogeneous_timeSlice_sizes] \
clocks_[event,throttle]_reasons.[supported,active,gpu_idle,applications_clocks_setting,hw_slowdown] \
clocks_[event,throttle]_reasons.[hw_power_brake_slowdown,sw_thermal_slowdown,sync_boost] \
encoder.stats.[sessionCount,averageFps,averageLatency] \
ecc.errors.[corrected,uncorrected].[volatile,aggregate].[device_memory,dram,register_file,l1_cache,l2_cache] \
ecc.errors.[corrected,uncorrected].[volatile,aggregate].[texture_memory,cbu,sram,total] \
ecc.errors.uncorrected.[volatile,aggregate].sram.[parity,secded] \
ecc.errors.uncorrected.aggregate.sram.[thresholdExceeded,l2,sm,mcu,pcie,other] \
retired_pages.single_bit_ecc.count|retired_pages.sbe retired_pages.double_bit.count|retired_pages.dbe retired_pages.pending \
remapped_rows.[correctable,uncorrectable,correctable_inactive,uncorrectable_inactive,pending,failure] \
remapped_rows.histogram.[max,high,partial,low,none] temperature.gpu.tlimit temperature.memory power.management \
fabric.[state,status,cliqueId,clusterUuid] \
platform.[chassis_serial_number,slot_number,tray_index,host_id,peer_type,module_id,gpu_fabric_guid];;;
utilization.[memory,encoder,decoder,jpeg,ofa] edpp_multiplier;;%;
memory.reserved protected_memory.[total,used,free];;MiB;
[power,module.power].[default_limit,min_limit,max_limit] module.power.[draw.average,draw.instant,limit] \
module.enforced.power.limit;;W;
clocks.current.[memory,video]|clocks.[mem,video] clocks.max.memory|clocks.max.mem \
clocks.[applications,default_applications].[graphics,memory]|clocks.[applications,default_applications].[gr,mem];;MHz;
clocks_event_reasons_counters.[sw_power_cap,sync_boost,sw_thermal_slowdown,hw_thermal_slowdown,hw_power_brake_slowdown];;us;"""
_QUERY_APPS = """\
timestamp;!%Y/%m/%d %H:%M:%S.ms;;when it was measured
gpu_name;gpu_name;;name of the chip
gpu_bus_id gpu_serial;;;
gpu_uuid;DeviceGetUUID;;UUID of the GPU
pid;process.pid;;number of the process
process_name|name;process.name;;its name, of at most 16 characters
used_gpu_memory|used_memory;;MiB;its GPU memory: macOS tells no share
apple.gpu_percent;process.gpu_percent;share %;share of the last second it used the GPU
apple.gpu_time;process.gpu_time_ns;s;GPU seconds since it began
apple.footprint;process.footprint_bytes;MiB;all its memory, GPU buffers included; another user's is [N/A]"""
_QUERY_CLOCKS = """\
timestamp;!%Y/%m/%d %H:%M:%S.ms;;when it was asked
gpu_name;DeviceGetName;;name of the chip
gpu_bus_id gpu_serial;;;
gpu_uuid;DeviceGetUUID;;UUID of the GPU
memory|mem;;MHz;
graphics|gr;clock;MHz;a clock of the GPU, the highest first"""
_QUERIES = {"query_gpu": _QUERY, "query_compute_apps": _QUERY_APPS, "query_supported_clocks": _QUERY_CLOCKS}


def _query_table(*modes: str) -> dict[str, _Field]:
    """name -> (heading without unit, source, unit, what it is), of these queries, without any of --query-gpu."""
    table = {}
    for line in "\n".join(_QUERIES[mode] for mode in modes or ("query_gpu",)).splitlines():
        names, source, unit, what = line.split(";", 3)
        for column in names.split():
            for spellings in zip(*map(_spelled, column.split("|"))):
                table.update(dict.fromkeys(spellings, (spellings[0], source, unit, what)))
    return table


def _help_query(mode: str) -> str:
    """In nvidia-smi's form: programs read the names out of it. Names of one figure stand on one line."""
    entries: dict[str, list[str]] = {}
    table = _query_table(mode)
    for name, row in table.items():
        entries.setdefault(row[0], []).append(name)
    lines = ['Fields of "--%s": nvidia-smi\'s names, and apple.* for the rest.' % mode.replace("_", "-")]
    for names in entries.values():
        _, _, kind, what = table[names[0]]
        lines += ["", _headed(" or ".join('"%s"' % name for name in names), kind),
                  "    " + (what or "always [N/A]: a Mac has no such thing")]
    return "\n".join(lines) + "\n"


def _unit(kind: str) -> str:
    """The unit that is printed."""
    return {"C": "", "ratio %": "%", "share %": "%", "pressure": "", "active<": "", "active>": ""}.get(kind, kind)


def _field_text(value: Any, kind: str) -> str | None:
    """A figure in nvidia-smi's way, without its unit; None where it is missing."""
    if value is None:
        return None
    if kind.startswith("active"):
        return "Active" if (value > 0 if kind == "active>" else value < 100) else "Not Active"
    if kind == "MiB":
        return "%d" % (value >> 20)
    if kind == "pressure":
        return THERMAL_PRESSURE[min(4, value)]
    form = {"W": ("%.2f", 1e3), "J": ("%.3f", 1e3), "GB/s": ("%.3f", 1e9), "ratio %": ("%.0f", 0.01), "C": ("%.0f", 1),
            "share %": ("%.1f", 1), "s": ("%.3f", 1e9)}.get(kind)
    return form[0] % (value / form[1]) if form else _clean(str(value))


def _fetch(device: Device, s: Snapshot, item: Any, source: str) -> Any:
    """What a source of the query tables gives now; `item` is the process or clock of the line."""
    if source in ("", "!host"):
        return os.uname().nodename if source and s.source == "live" else None
    if source[0] == "!":
        return time.strftime(source[1:], time.localtime(s.time_unix_s)).replace("ms", "%03d" % (s.time_unix_s % 1 * 1000))
    if source[0] == "=":
        return source[1:]
    if source[0].isupper():
        function = globals()[source]
        return Try(function, *([] if source.startswith(("System", "Library")) else [device])).value
    start, *path = source.split(".")
    value = item if start in ("process", "clock") else getattr(s, start)
    for step in path:
        if value is None or (step.isdigit() and int(step) >= len(value)):
            return None
        value = value[int(step)] if step.isdigit() else getattr(value, step)
    return value


def _parts_of(sources: Iterable[str]) -> tuple[str, ...]:
    """The parts of a snapshot that hold these sources."""
    part = {field: row[0][0] for row in _SNAPSHOT for field, _ in row[3]}
    part["process"] = "processes"
    return tuple(dict.fromkeys(part[s.split(".")[0]] for s in sources if s.split(".")[0] in part))


def _csv(rows: Iterable[Sequence[str]]) -> str:
    """Lines as nvidia-smi's: ", " between; quoted as CSV where a value holds a comma or a quote."""
    def cell(text: str) -> str:
        return '"%s"' % text.replace('"', '""') if "," in text or '"' in text else text
    return "".join(", ".join(map(cell, row)) + "\n" for row in rows)


def _cell(device: Device, s: Snapshot, item: Any, row: _Field, units: bool = True) -> str | None:
    """A figure as text, None where it is missing."""
    text, unit = _field_text(_fetch(device, s, item, row[1]), row[2]), _unit(row[2])
    return text + " " + unit if text is not None and unit and units else text


def _query_items(mode: str, device: Device, s: Snapshot) -> Sequence[Any]:
    """What a query has a line for: the GPU, or each of its processes or clocks."""
    if mode == "query_supported_clocks":
        return (Try(DeviceGetSupportedClocks, device).value or ())[::-1]
    return s.processes or () if mode in ("query_compute_apps", "pmon") else (None,)


def _headed(heading: str, kind: str) -> str:
    return heading + (" [%s]" % _unit(kind) if _unit(kind) else "")


# ---- nvidia-smi's other forms: -q -d and -q -x, dmon and pmon

# element of -q -x|label of -q -d|field of --query-gpu|what -d calls it; without a field a group, its members indented.
_LOG = """\
product_name|Product Name|name
product_brand|Product Brand|apple.brand
product_architecture|Product Architecture|apple.architecture
display_active|Display Active|display_active
persistence_mode|Persistence Mode|persistence_mode
accounting_mode|Accounting Mode|accounting.mode|ACCOUNTING
serial|Serial Number|serial
uuid|GPU UUID|uuid
minor_number|Minor Number|index
vbios_version|VBIOS Version|vbios_version
gsp_firmware_version|GSP Firmware Version|gsp.mode.current|GSP_FIRMWARE_VERSION
gpu_reset_status|GPU Reset Status|reset_status.reset_required|RESET_STATUS
fan_speed|Fan Speed|fan.speed
performance_state|Performance State|pstate|PERFORMANCE
clocks_event_reasons|Clocks Event Reasons||PERFORMANCE
 clocks_event_reason_sw_power_cap|SW Power Cap|clocks_event_reasons.sw_power_cap
 clocks_event_reason_hw_thermal_slowdown|HW Thermal Slowdown|clocks_event_reasons.hw_thermal_slowdown
fb_memory_usage|FB Memory Usage||MEMORY
 total|Total|memory.total
 reserved|Reserved|memory.reserved
 used|Used|memory.used
 free|Free|memory.free
compute_mode|Compute Mode|compute_mode|COMPUTE
utilization|Utilization||UTILIZATION
 gpu_util|GPU|utilization.gpu
 memory_util|Memory|utilization.memory
 encoder_util|Encoder|utilization.encoder
 decoder_util|Decoder|utilization.decoder
encoder_stats|Encoder Stats|encoder.stats.sessionCount|ENCODER_STATS
ecc_mode|ECC Mode|ecc.mode.current|ECC
retired_pages|Retired Pages|retired_pages.pending|PAGE_RETIREMENT
remapped_rows|Remapped Rows|remapped_rows.pending|ROW_REMAPPER
temperature|Temperature||TEMPERATURE
 gpu_temp|GPU Current Temp|temperature.gpu
 memory_temp|Memory Current Temp|temperature.memory
gpu_power_readings|GPU Power Readings||POWER
 power_draw|Power Draw|power.draw
 average_power_draw|Average Power Draw|power.draw.average
 instant_power_draw|Instantaneous Power Draw|power.draw.instant
 current_power_limit|Current Power Limit|power.limit
clocks|Clocks||CLOCK
 graphics_clock|Graphics|clocks.gr
 sm_clock|SM|clocks.sm
 mem_clock|Memory|clocks.mem
 video_clock|Video|clocks.video
max_clocks|Max Clocks||CLOCK
 graphics_clock|Graphics|clocks.max.gr
 sm_clock|SM|clocks.max.sm
 mem_clock|Memory|clocks.max.mem
supported_clocks|Supported Clocks||SUPPORTED_CLOCKS
processes|Processes||PIDS"""
_LOG_PROCESS = (("gpu_instance_id", "GPU instance ID", ""), ("compute_instance_id", "Compute instance ID", ""),
                ("pid", "Process ID", "pid"), ("type", "    Type", ""), ("process_name", "    Name", "process_name"),
                ("used_memory", "    Used GPU Memory", "used_memory"))


def _log_items(device: Device, s: Snapshot, sections: Iterable[str] | None) -> Iterator[tuple[int, str, str, str | None]]:
    """(depth, element, label, value or None for a group) of the sections, of all for None."""
    table, asked = _query_table("query_compute_apps", "query_gpu"), False

    def value(field: str, process: GpuProcess | None = None) -> str:
        row = table.get(field, ("", "", "", ""))
        text = _cell(device, s, process, row)
        return "N/A" if text is None else text + " C" if row[2] == "C" else text
    for line in _LOG.splitlines():
        name, label, field, section = (line + "|").split("|")[:4]
        asked = asked if name[0] == " " else sections is None or section in sections
        if asked:
            yield (1 if name[0] == " " else 0), name.strip(), label, value(field) if field else None
            for mhz in _query_items("query_" + name, device, s) if name == "supported_clocks" else ():
                yield 1, "supported_graphics_clock", "Graphics", "%d MHz" % mhz
            for process in s.processes or () if name == "processes" else ():
                yield 1, "process_info", "", None
                for part, label, field in _LOG_PROCESS:
                    yield 2, part, label, value(field, process)


def _log_text(args: Any, device: Device, s: Snapshot) -> str:
    """-q -d: sections as nvidia-smi prints them."""
    lines = ["", "=" * 14 + "NVSMI LOG" + "=" * 14, "", "%-42s: %s" % ("Timestamp", _moment(s)),
             "%-42s: %s" % ("Driver Version", s.system_os_version or "N/A"), "",
             "%-42s: %d" % ("Attached GPUs", LibraryCountDevice()), "GPU %d" % DeviceGetIndex(device)]
    for depth, _, label, value in _log_items(device, s, args.sections):
        label = " " * (4, 8, 8)[depth] + label
        lines += [] if not label.strip() else [label] if value is None else ["%-42s: %s" % (label, value)]
    return "\n".join(lines) + "\n\n"


def _log_xml(device: Device, s: Snapshot) -> str:
    """-q -x: the elements that programs read, and no others."""
    rows: list[tuple[int, str, str | None]] = [
        (0, "nvidia_smi_log", None), (1, "timestamp", _moment(s)), (1, "driver_version", s.system_os_version or "N/A"),
        (1, "attached_gpus", str(LibraryCountDevice())),
        (1, 'gpu id="%s"' % (Try(DeviceGetUUID, device).value or DeviceGetIndex(device)), None)]
    rows += [(depth + 2, name, value) for depth, name, _, value in _log_items(device, s, None)]
    lines, inside = ['<?xml version="1.0" ?>', '<!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v12.dtd">'], list[str]()
    for depth, name, value in rows + [(0, "", "")]:
        while len(inside) > depth:
            end = inside.pop()
            lines.append("\t" * len(inside) + "</%s>" % end.split()[0])
        text = "" if value is None else value.replace("&", "&amp;").replace("<", "&lt;") + "</%s>" % name
        lines.append("\t" * depth + "<%s>%s" % (name, text))
        inside += [name] if value is None else []
    return "\n".join(lines[:-1]) + "\n"


# letter of -s -> columns: title, unit, field or - where a Mac has no such thing
_SCROLL = {
    "dmon": {"p": "pwr W power.draw,gtemp C temperature.gpu,mtemp C -",
             "u": "sm % utilization.gpu,mem % -,enc % -,dec % -,jpg % -,ofa % -", "c": "mclk MHz -,pclk MHz clocks.gr",
             "v": "pviol % -,tviol bool -", "m": "fb MB memory.used,bar1 MB -,ccpm MB -",
             "e": "sbecc errs -,dbecc errs -,pci errs -", "t": "rxpci MB/s -,txpci MB/s -"},
    "pmon": {"u": "sm % apple.gpu_percent,mem % -,enc % -,dec % -,jpg % -,ofa % -", "m": "fb MB -,ccpm MB -"}}
_SCROLL_FORMS = {"Date": "%-11s", "Time": "%-11s", "gpu": "%4s", "pid": "%12s", "command": "    %-15.15s"}     # else "%7s"


def _scroll(args: Any) -> None:
    """`every` of dmon and pmon, and `columns`: form, title, unit, field or None."""
    args.every = _bounded("-d", args.display or "1", 0.01, 86400)
    process, groups = args.mode == "pmon", _SCROLL[args.mode]
    select, stamps = args.select or ("u" if process else "puc"), (args.options or "").upper()
    for option, letters, known in (("-s", select, "".join(groups)), ("-o", stamps, "DT")):
        if not set(letters) <= set(known):
            _wrong("%s takes letters of %s, not %s" % (option, known, _clean(letters)))
    table = _query_table("query_compute_apps", "query_gpu")
    table.update(date=("", "!%Y%m%d", "", ""), time=("", "!%H:%M:%S", "", ""))
    words = ["Date YYYYMMDD date"] * ("D" in stamps) + ["Time HH:MM:SS time"] * ("T" in stamps) + ["gpu Idx index"]
    words += ["pid # pid", "type C/G -"] * process + ",".join(groups[letter] for letter in select).split(",")
    words += ["command name process_name"] * process
    args.columns = [(_SCROLL_FORMS.get(title, "%7s"), title, unit, table.get(field))
                    for title, unit, field in map(str.split, words)]


def _scroll_line(args: Any, mark: str, cells: Iterable[str | None]) -> str:
    return mark + "".join(column[0] % ("-" if cell is None else cell) for column, cell in zip(args.columns, cells)) + "\n"


def _scroll_rows(args: Any, device: Device, s: Snapshot) -> str:
    def text(item: Any, form: str, row: _Field | None) -> str | None:
        cell = _cell(device, s, item, row, False) if row else None
        return "%.0f" % float(cell) if cell and form == "%7s" else cell
    return "".join(_scroll_line(args, " ", [text(item, form, row) for form, _, _, row in args.columns])
                   for item in _query_items(args.mode, device, s) or (None,))


# ---- --doctor, --selftest, --record

def _count_native_calls() -> list[int]:
    """Counts calls of C functions from now on; of those that nobody has used before."""
    count, typed = [0], _c._typed

    def counted(function: Any, result: str, arguments: str) -> Any:
        bound = typed(function, result, arguments)

        def call(*args: Any) -> Any:
            count[0] += 1
            return bound(*args)
        return call
    _c._typed = counted     # type: ignore[method-assign]
    return count


def _doctor(args: Any) -> str:
    count = _count_native_calls()
    try:
        return "```\n" + "\n".join(_clean(line) for line in _report(args, count)) + "\n```\n"
    finally:
        _c.__dict__.pop("_typed", None)


def _report(args: Any, count: list[int]) -> list[str]:
    _open(args)
    engine = _default()
    rows = [("source", "status", "ms", "calls", "detail")]
    for name, work in _diagnosed(engine):
        before = count[0]
        report = _diagnose(engine, name, work)
        calls = "%d" % (count[0] - before) if engine.machine.name == "live" else "-"
        status = "ok" if report.ok else report.reason or "failed"
        rows.append((name, status, "%.1f" % (report.seconds * 1000), calls, report.detail))
    began, before = time.perf_counter(), count[0]
    s = DeviceGetSnapshot(LibraryInitDeviceByIndex(0), timeout=2.5)
    took = time.perf_counter() - began
    machine = os.uname().machine if hasattr(os, "uname") else sys.platform
    lines = ["pyapplegpu %s, Python %s, %s" % (__version__, sys.version.split()[0], machine)]
    lines += ["%s, %s, macOS %s, driver %s" % tuple(fact or "N/A" for fact in (
        s.system_model, s.system_chip_name, s.system_os_version, s.system_driver_version))]
    lines += [_origin(s), ""]
    wide = max(len(row[0]) for row in rows)
    lines += ["%-*s  %-10s %7s %6s  %s" % ((wide,) + row) for row in rows]
    lines += ["", "subscriptions"] + ["  " + line for feed in engine.feeds() for line in _feed_text(feed)]
    found = sum(len(row[3]) for row in _SNAPSHOT) - len(s.reasons)
    lines += ["", "snapshot: %d figures, %d missing, %.0f ms, %s calls" % (
        found, len(s.reasons), took * 1000, count[0] - before if s.source == "live" else "-")]
    return lines + _why(s, 116)[1:-1]


def _feed_text(feed: _ReportFeed) -> list[str]:
    """One IOReport subscription: its groups with how many channels are read, or those that refused."""
    def name(group: str, subgroup: str | None) -> str:
        return "%s / %s" % (group, subgroup) if subgroup else group
    if feed.subscription is None:
        refusal = feed.engine.facts.get(feed.source)
        groups = ", ".join(dict.fromkeys(group for group, _ in feed.groups))
        return ["%s: %s" % (groups, refusal.error if refusal else "not asked for")]
    count: dict[str, int] = {}
    for c in feed.channels:
        count[name(c.group, c.subgroup)] = count.get(name(c.group, c.subgroup), 0) + 1
    return ["%s: %d channel%s" % (who, n, "" if n == 1 else "s") for who, n in count.items()]


def _selftest_calls(device: Device) -> Iterator[tuple[str, Callable[..., Any], tuple[Any, ...]]]:
    """(text, function, arguments) of every flat function that only reads."""
    import inspect
    import re
    busiest = Try(DeviceGetProcesses, device).value
    given: dict[str, list[Any]] = {
        "device": [device], "a": [device], "b": [device], "cluster": [0], "fan": [0], "caps": [0], "code": [3],
        "engine": list(ENGINES), "pid": [busiest[0].pid if busiest else os.getpid()]}
    first = DeviceGetSnapshot(device)
    for name, function in sorted(globals().items()):
        if not inspect.isfunction(function) or not re.match(
                r"(Library(Get|Count|Diag)|(Device|Memory|Ane|Cpu|Vpu|Process|System)(Get|Count)|ErrorString)", name):
            continue
        wanted = [p.name for p in inspect.signature(function).parameters.values() if p.default is p.empty]
        for n in range(max([len(given[p]) for p in wanted] or [1])):
            values = tuple(given[p][min(n, len(given[p]) - 1)] for p in wanted)
            yield name + "".join(" %s" % v for v in values if not isinstance(v, Device)), function, values
    yield "SnapshotDelta", SnapshotDelta, (first, DeviceGetSnapshot(device))


def _selftest(args: Any) -> int:
    """Every function once: its value, or the reason why there is none. 1 when one failed in another way."""
    device = _open(args)[0]
    counts = {"value": 0, "reason": 0, "FAILED": 0}
    for name, function, values in _selftest_calls(device):
        try:
            got = Try(function, *values)
            kind = "value" if got.reason is None else "reason"
            text = repr(got.value) if got.reason is None else "%s: %s" % (got.reason, got.message)
        except AppleGPUError as error:
            kind, text = "reason", str(error)
        except (ArithmeticError, AttributeError, LookupError, OSError, TypeError, ValueError) as error:
            kind, text = "FAILED", repr(error)
        counts[kind] += 1
        _write("%-7s %-36s %s\n" % (kind, name, _fit(_clean(text), 400).rstrip()))
    _write("%d functions: %d values, %d reasons, %d failed\n" % (sum(counts.values()), *counts.values()))
    return 1 if counts["FAILED"] else 0


def _record_file(args: Any) -> None:
    _open(args)
    sys.stderr.write("recording for %g s ...\n" % args.seconds)
    LibraryRecord(args.record, args.seconds, max(0.25, args.seconds / 2000), args.names)
    named = "with names of all processes" if args.names else "process names of macOS's own programs only"
    say = _write if os.path.isfile(args.record) else sys.stderr.write      # it may be /dev/stdout that was written
    say("%s: %s, no serial number, no UUID, %s\n" % (_clean(args.record), _size_text(os.path.getsize(args.record)), named))


# ---- main

def _open(args: Any) -> list[Device]:
    """The devices that -i names, all without it."""
    LibraryInit(args.recording, speed=args.speed)
    if args.id is None:
        return [LibraryInitDeviceByIndex(i) for i in range(LibraryCountDevice())]
    return [_named_device(name.strip()) for name in args.id.split(",")]


def _named_device(name: str) -> Device:
    try:
        return LibraryInitDeviceByIndex(int(name)) if name.isdecimal() else LibraryInitDeviceByUuid(name)
    except (NVMLError_InvalidArgument, NVMLError_NotFound):
        raise _fail(ERROR_NOT_FOUND, detail="No devices were found (-i %s)" % _clean(name)) from None


def _render(args: Any, device: Device, s: Snapshot) -> str:
    """What the chosen mode prints of a snapshot."""
    if args.mode in ("json", "jsonl"):
        import json
        return json.dumps(s.to_dict(), indent=2 if args.mode == "json" else None).replace("\x7f", "\\u007f") + "\n"
    if args.mode == "query":
        return _log_xml(device, s) if args.xml_format else _log_text(args, device, s) if args.display is not None else \
            _query_all(device, s, args.verbose)
    if args.mode in _QUERIES:
        return _csv([_cell(device, s, item, row, not args.nounits) or "[N/A]" for row in args.fields]
                    for item in _query_items(args.mode, device, s))
    if args.scroll:
        return _scroll_rows(args, device, s)
    import shutil
    width = max(40, min(shutil.get_terminal_size((80, 24)).columns, 160))
    return _view(device, s, args.verbose, width, _coloured())


def _run(args: Any) -> None:
    """Print once, so many times, or for ever, on a schedule that does not drift."""
    devices, left = _open(args), args.count
    asked = args.mode in _QUERIES or args.scroll
    each = ["process"] * (args.mode in ("query_compute_apps", "pmon"))
    parts = _parts_of([row[1] for row in args.fields] + each) if asked else None
    if args.scroll:
        _write("".join(_scroll_line(args, "#", [column[n] for column in args.columns]) for n in (1, 2)))
    elif asked and not args.noheader:
        _write(_csv([[_headed(row[0], row[2]) for row in args.fields]]))
    start, timeout = time.monotonic(), _default().timeout / _NS
    while True:
        _write("".join(_render(args, d, DeviceGetSnapshot(d, parts, timeout)) for d in devices))
        left -= 1
        if args.every is None or left == 0:
            return
        timeout = 0.0
        _sleep_until(start, args.every)


def _sleep_until(start: float, every: float) -> None:
    """To the next whole multiple of `every` since `start`; those missed, as in a sleep, are left out."""
    now = time.monotonic()
    time.sleep(max(0.0, start + (int((now - start) / every) + 1) * every - now))


def _list_gpus(args: Any) -> None:
    for device in _open(args):
        _write("GPU %d: %s (UUID: %s)\n" % (DeviceGetIndex(device), _clean(Try(DeviceGetName, device).value or "N/A"),
                                           Try(DeviceGetUUID, device).value or "N/A"))


def _act(args: Any) -> int:
    jobs: dict[str | None, Callable[[], int | None]] = {
        "help": lambda: _write(_parser().format_help()), "version": lambda: _write("pyapplegpu %s\n" % __version__),
        "doctor": lambda: _write(_doctor(args)), "list_gpus": lambda: _list_gpus(args), "selftest": lambda: _selftest(args),
        "record": lambda: _record_file(args)}
    if args.mode and args.mode.startswith("help_"):
        jobs[args.mode] = lambda: _write(_help_query(args.mode[len("help_"):]))
    return jobs.get(args.mode, lambda: _run(args))() or 0


def _dispatch(args: Any) -> int:
    if args.filename is None:
        return _act(args)
    import contextlib
    with open(args.filename, "w", encoding="utf-8") as file, contextlib.redirect_stdout(file):
        return _act(args)


def _pipe_closed() -> int:
    """The reader went away: nothing more is said, not even by the interpreter when it flushes at exit."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (AttributeError, OSError, ValueError):
        pass
    return 141


def _say(text: str, code: int, who: str = "pyapplegpu: ") -> int:
    if sys.stderr is not None:
        sys.stderr.write(who + _clean(text) + "\n")
    return code


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code: 0, 1, 2, an NVML number, 130 after Ctrl-C, 141 when the pipe closed."""
    opened = _library.count
    try:
        return _dispatch(_arguments(argv))
    except _Usage as error:
        return _say(str(error), error.code, "")
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return _pipe_closed()
    except AppleGPUError as error:
        return _say(str(error), error.value if error.value < 125 else 1)
    except OSError as error:
        return _say(str(error), 1)
    finally:
        while _library.count > opened:
            LibraryShutDown()


if __name__ == "__main__":
    sys.exit(main())
