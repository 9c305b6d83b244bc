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
import weakref
from _operator import itemgetter
from _thread import RLock, _local, allocate_lock, get_ident
from array import array

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from typing import Any, NamedTuple, NoReturn

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
        self.value = type(self).value if value is None else value
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
    27: "Not Ready", 28: "No GPU was found", 29: "Invalid state", 999: "Unknown Error",
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
    class _Fields(type):
        """Makes NamedTuple below: typing and collections would cost more start-up than the rest of this file."""

        def __new__(meta, name, bases, body):
            body.setdefault("__slots__", ())
            cls = type.__new__(meta, name, bases, body)
            cls._fields = tuple(cls.__annotations__) if bases != (tuple,) else ()
            cls._field_defaults = {f: body[f] for f in cls._fields if f in body}
            for i, field in enumerate(cls._fields):
                setattr(cls, field, property(itemgetter(i)))
            return cls

    class NamedTuple(tuple, metaclass=_Fields):
        def __new__(cls, *args, **named):
            if named or len(args) != len(cls._fields):
                args = cls._fill(args, named)
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
            return type(self)(**dict(self._asdict(), **named))

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
    key: str
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
    path: str | None
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
    uncertainty_joules: dict[str, float | None]     # at most this much may belong to the time before or after
    gpu_active_s: float | None
    gpu_time_s: dict[int, float]                # per pid
    read_bytes: float | None
    write_bytes: float | None
    reasons: dict[str, str]


# ======================================================================================================================
# prototypes
# ======================================================================================================================

# From macOS 11 on these files exist only in the dyld shared cache: dlopen finds them, os.path.exists does not.
_LIBRARIES = {
    "System": "/usr/lib/libSystem.B.dylib",
    "CoreFoundation": "/System/Library/Frameworks/CoreFoundation.framework/CoreFoundation",
    "CoreGraphics": "/System/Library/Frameworks/CoreGraphics.framework/CoreGraphics",
    "IOKit": "/System/Library/Frameworks/IOKit.framework/IOKit",
    "IOReport": "/usr/lib/libIOReport.dylib",
    "Metal": "/System/Library/Frameworks/Metal.framework/Metal",
    "objc": "/usr/lib/libobjc.A.dylib",
}

# Every C function in use: symbol -> (library, result, arguments, first macOS).
# A library marked ! is called with the GIL held. Those calls take well under a microsecond, and a sample makes hundreds
# of them: giving the GIL away at each would make a sample of a threaded program wait for its other threads as often.
# Letters: v nothing, p pointer (an int, or byref), s char*, B Boolean, i int32, I uint32 and ports, q int64, Q uint64,
# d double. Who owns: a result C (CoreFoundation), O (Objective-C) or E (registry entry or iterator) is ours to release; p is
# borrowed, or kept for the life of the process. An argument M is a CoreFoundation object of ours that the callee releases.
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
    "IORegistryEntryCreateCFProperty": ("IOKit", "C", "IppI", 10),
    "IORegistryEntryGetChildIterator": ("IOKit", "i", "Isp", 10),
    "IOServiceOpen": ("IOKit", "i", "IIIp", 10),
    "IOConnectCallStructMethod": ("IOKit", "i", "IIpQpp", 10),
    "IOHIDEventSystemClientCreate": ("IOKit", "p", "p", 10),            # kept
    "IOHIDEventSystemClientSetMatching": ("IOKit", "v", "pp", 10),
    "IOHIDEventSystemClientCopyServices": ("IOKit", "C", "p", 10),
    "IOHIDServiceClientCopyProperty": ("IOKit", "C", "pp", 10),
    "IOHIDServiceClientCopyEvent": ("IOKit", "C", "pqiq", 10),
    "IOHIDEventGetFloatValue": ("IOKit", "d", "pi", 10),
    "IOPSCopyPowerSourcesInfo": ("IOKit", "C", "", 10),
    "IOPSGetProvidingPowerSourceType": ("IOKit", "p", "p", 10),

    "IOReportCopyChannelsInGroup": ("IOReport", "C", "ppQQQ", 11),
    "IOReportCreateSubscription": ("IOReport", "p", "pppQp", 11),       # kept; releasing one has crashed
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

    "MTLCreateSystemDefaultDevice": ("Metal", "O", "", 10),
    "MTLCopyAllDevices": ("Metal", "O", "", 10),
    "objc_release": ("objc", "v", "p", 10),
    "objc_autoreleasePoolPush": ("objc", "p", "", 10),
    "objc_autoreleasePoolPop": ("objc", "v", "p", 10),
    "sel_registerName": ("objc", "p", "s", 10),
}

# What owns an owned result: class name -> (ctypes type, the function that releases it), and its result letter.
_OWNERS = {
    "CFObject": (ctypes.c_void_p, "CFRelease"),
    "ObjCObject": (ctypes.c_void_p, "objc_release"),
    "IOObject": (ctypes.c_uint32, "IOObjectRelease"),
}
_OWNED = {"C": "CFObject", "O": "ObjCObject", "E": "IOObject"}


class _Given:
    """Argument letter M: the pointer leaves its owner before the call; an interruption may leak it, never free it twice."""

    @staticmethod
    def from_param(owner: Any) -> ctypes.c_void_p:
        pointer = ctypes.c_void_p(owner.value)
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

    return type("Owned", (base,), {"__slots__": (), "__del__": __del__, "armed": True})


class _Native:
    """The C functions of _PROTOTYPES as attributes, each bound at its first use, and the owner classes of _OWNERS.

    A missing library or symbol raises NotSupported at that use only. `forked` starts anew and disarms every owner.
    """

    CFObject: Any
    ObjCObject: Any
    IOObject: Any

    def __init__(self) -> None:
        self.libraries: dict[str, Any] = {}
        self.sends: dict[str, Any] = {}         # objc_msgSend, one function object per signature
        self.strings: dict[str, Any] = {}       # CFStrings of keys: few, and needed again and again
        self.converters: dict[int, Any] = {}    # CFTypeID -> function
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
                        "%s is missing (it came with macOS %d)" % (name, since)) from None

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


def _cf_string(text: str) -> Any:
    """An owned CFString."""
    made = _c.CFStringCreateWithCString(None, text.encode(), _UTF8)
    if not made:
        raise _broken("CoreFoundation", "no CFString for %r" % text)
    return made


def _cf_key(text: str) -> Any:
    """A CFString made once per process; for names that come from this file, not from outside."""
    made = _c.strings.get(text)
    if made is None:
        made = _c.strings.setdefault(text, _cf_string(text))
    return made


def _cf_number(value: int) -> Any:
    """An owned CFNumber."""
    made = _c.CFNumberCreate(None, _SINT64, ctypes.byref(ctypes.c_int64(value)))
    if not made:
        raise _broken("CoreFoundation", "no CFNumber for %d" % value)
    return made


def _cf_dictionary(values: Mapping[str, Any]) -> Any:
    """An owned mutable CFDictionary of str, int or already made CF objects; it retains what it holds."""
    made = _c.CFDictionaryCreateMutable(None, 0, _c.address("CoreFoundation", "kCFTypeDictionaryKeyCallBacks"),
                                        _c.address("CoreFoundation", "kCFTypeDictionaryValueCallBacks"))
    if not made:
        raise _broken("CoreFoundation", "no CFDictionary")
    for key, value in values.items():
        if isinstance(value, int):
            value = _cf_number(value)
        elif isinstance(value, str):
            value = _cf_string(value)
        _c.CFDictionarySetValue(made, _cf_string(key), value)
    return made


def _cf_array() -> Any:
    """An owned, empty, mutable CFArray that retains what it holds."""
    made = _c.CFArrayCreateMutable(None, 0, _c.address("CoreFoundation", "kCFTypeArrayCallBacks"))
    if not made:
        raise _broken("CoreFoundation", "no CFArray")
    return made


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


def _cf_to_bool(ref: Any) -> bool:
    return bool(_c.CFBooleanGetValue(ref))


def _cf_to_bytes(ref: Any) -> bytes:
    length = _c.CFDataGetLength(ref)
    start = _c.CFDataGetBytePtr(ref) if length > 0 else None
    return ctypes.string_at(start, length) if start else b""


def _cf_to_list(ref: Any) -> list[Any]:
    return [_cf_value(item) for item in _cf_items(ref)]


def _cf_to_dict(ref: Any) -> dict[Any, Any]:
    count = _c.CFDictionaryGetCount(ref)
    keys, values = (ctypes.c_void_p * count)(), (ctypes.c_void_p * count)()
    _c.CFDictionaryGetKeysAndValues(ref, keys, values)
    return {_cf_text(key): _cf_value(value) for key, value in zip(keys, values)}


def _cf_value(ref: Any) -> Any:
    """str, int, float, bool, bytes, list or dict of a CF object; None of NULL and of any other type (a date, a set)."""
    if not ref:
        return None
    if not _c.converters:
        _c.converters = {_c.CFStringGetTypeID(): _cf_to_str, _c.CFNumberGetTypeID(): _cf_to_number,
                         _c.CFBooleanGetTypeID(): _cf_to_bool, _c.CFDataGetTypeID(): _cf_to_bytes,
                         _c.CFArrayGetTypeID(): _cf_to_list, _c.CFDictionaryGetTypeID(): _cf_to_dict}
    convert = _c.converters.get(_c.CFGetTypeID(ref))
    return convert(ref) if convert else None


def _cf_text(ref: Any) -> str | None:
    """The text of a CFString, None of anything else."""
    return _cf_to_str(ref) if _cf_is("String", ref) else None


# ======================================================================================================================
# sources
# ======================================================================================================================

# Each class answers from the system itself; the player in the next section answers the same methods from a file.
# Methods return plain data or raise an AppleGPUError; None means that the system said "there is no such thing". One lock
# per source stands around native calls; an RLock, as a signal handler or a finaliser of the host may call in between.

_NOT_PRIVILEGED, _NOT_PERMITTED, _UNSUPPORTED = 0xE00002C1, 0xE00002E2, 0xE00002C7      # IOReturn
_INVALID_DEST, _NOT_OPEN = 0x10000003, 0xE00002CD                                       # the other side is gone
_EPERM, _ENOENT, _ESRCH, _ENOMEM, _EINVAL = 1, 2, 3, 12, 22


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


def _io_check(source: str, call: str, code: int) -> None:
    if code:
        raise _io_error(source, call, code)


def _host_reason() -> str:
    """Why a service that every Mac has is missing here: a guest has none of them."""
    return REASON_VIRTUAL_MACHINE if _Sysctl().number("kern.hv_vmm_present") else REASON_MACOS


class _Sysctl:
    """sysctlbyname."""

    def __init__(self) -> None:
        self.lock = RLock()

    forked = __init__

    def raw(self, name: str) -> bytes | None:
        """The bytes of a name, None where this macOS does not know it."""
        with self.lock:
            for _ in range(4):      # a value may grow between the two calls
                size = ctypes.c_uint64(0)
                if self._failed(name, _c.sysctlbyname(name.encode(), None, ctypes.byref(size), None, 0)):
                    return None
                room = size.value + 64
                data, size = ctypes.create_string_buffer(room), ctypes.c_uint64(room)
                if not self._failed(name, _c.sysctlbyname(name.encode(), data, ctypes.byref(size), None, 0)):
                    return data.raw[:min(size.value, room)]
        return None

    @staticmethod
    def _failed(name: str, result: int) -> bool:
        """True: not there, or (ENOMEM) to be asked again; another failure raises."""
        code = ctypes.get_errno() if result else 0
        if code == _EPERM:
            raise _fail(ERROR_NO_PERMISSION, REASON_SANDBOX, "sysctl", "%s is not readable" % name)
        if result and code not in (_ENOENT, _ENOMEM):
            raise _broken("sysctl", "%s: errno %d" % (name, code))
        return bool(result)

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


class _Registry:
    """The IO registry. An entry is an owned port: keep it as long as it is needed, drop it to release it."""

    def __init__(self) -> None:
        self.lock = RLock()

    forked = __init__

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
            self._check("IORegistryEntryGetChildIterator",
                        _c.IORegistryEntryGetChildIterator(self._port(entry), b"IOService", ctypes.byref(found)))
            return self._walk(found)

    def _matching(self, matching: Any) -> list[Any]:
        if not matching:
            raise _broken("registry", "no matching dictionary")
        found = _c.IOObject()
        self._check("IOServiceGetMatchingServices",
                    _c.IOServiceGetMatchingServices(0, matching, ctypes.byref(found)))
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
            self._check("IORegistryEntryGetRegistryEntryID",
                        _c.IORegistryEntryGetRegistryEntryID(self._port(entry), ctypes.byref(number)))
        return number.value

    def class_name(self, entry: Any) -> str:
        name = ctypes.create_string_buffer(128)
        with self.lock:
            self._check("IOObjectGetClass", _c.IOObjectGetClass(self._port(entry), name))
        return name.value.decode("utf-8", "replace")

    def get(self, entry: Any, key: str) -> Any:
        """One property as Python data, None where the entry has none: 0.02 ms, against 2 ms for the whole AGX node."""
        with self.lock:
            return _cf_value(_c.IORegistryEntryCreateCFProperty(self._port(entry), _cf_key(key), None, 0))

    def alive(self, entry: Any) -> bool:
        number = ctypes.c_uint64()
        with self.lock:
            return entry.armed and not _c.IORegistryEntryGetRegistryEntryID(entry, ctypes.byref(number))

    @staticmethod
    def _port(entry: Any) -> Any:
        if not entry.armed:     # a parent's port: its number may name something else here
            raise _fail(ERROR_NOT_READY, REASON_FORKED_CHILD, "registry", "this entry belongs to the parent process")
        return entry

    @staticmethod
    def _check(call: str, code: int) -> None:
        _io_check("registry", call, code)


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


def _record_identity(records: bytes) -> tuple[int, int]:
    """(driver, channel) of raw records."""
    return struct.unpack_from("<QQ", records)


class _Place:
    """Where one wanted channel stands in a sample, and how its records are read."""

    __slots__ = ("identity", "position", "layout")

    def __init__(self, identity: tuple[int, int]) -> None:
        self.identity = identity
        self.position: int | None = None
        self.layout: struct.Struct | None = None


class _Subscription:
    """Chosen channels of IOReport. `channels` is final once subscribe() returned it, `sample()` aligned with it.

    A sample costs 3 native calls and 4 for each channel, and no string: records carry who they are, so a channel that
    moved in the list is noticed and looked for again. Channels of a group that is refused are None in every sample.
    """

    def __init__(self, lock: Any, handle: int, listed: Any, channels: list[_Channel]) -> None:
        self.lock = lock
        self.handle = handle
        self.listed = listed                # the dictionary that IOReportCreateSamples wants
        self.channels = channels
        self.note = ""
        self.places = [_Place((c.driver, c.channel)) for c in channels]
        self.count = -1                     # channels in the previous sample
        self.accessors = False              # IOReport's own functions instead of the records

    def sample(self) -> list[tuple[int, tuple[int, ...]] | None]:
        """(stamp in ticks, values) for each channel, None for one that this sample does not hold."""
        with self.lock:
            if not self.listed.armed:
                raise _fail(ERROR_NOT_READY, REASON_FORKED_CHILD, "ioreport", "subscribed by the parent process")
            taken = _c.IOReportCreateSamples(self.handle, self.listed, None)
            if not taken:
                raise _broken("ioreport", "IOReportCreateSamples gave nothing")
            array = _c.CFDictionaryGetValue(taken, _cf_key("IOReportChannels"))
            count = _c.CFArrayGetCount(array) if array else 0
            if self.count < 0:
                self._first(array, count)
            rows = self._rows(array, count)
            return self._rows(array, count, True) if rows is None else rows     # type: ignore[return-value]

    def _rows(self, array: Any, count: int, search: bool = False) -> list[tuple[int, tuple[int, ...]] | None] | None:
        """A row per channel; None when the list is not the one of the last sample, so that it must be searched."""
        if search:
            self._search(array, count)
        elif count != self.count:
            return None
        rows: list[tuple[int, tuple[int, ...]] | None] = [None] * len(self.places)
        for i, place in enumerate(self.places):
            if place.position is None:
                continue
            item, records = self._records(array, place.position)
            if self._identity(item, records) != place.identity:
                if not search:
                    return None
            elif self.accessors:
                rows[i] = self._accessor_row(i, item, records)
            elif place.layout is not None and len(records) == place.layout.size:
                read = place.layout.unpack(records)
                rows[i] = read[2], read[3:]
        return rows

    @staticmethod
    def _records(array: Any, position: int) -> tuple[Any, bytes]:
        """A channel of a sample (borrowed) and its raw records."""
        item = _c.CFArrayGetValueAtIndex(array, position)
        data = _c.CFDictionaryGetValue(item, _cf_key("RawElements")) if item else None
        length = _c.CFDataGetLength(data) if data else 0
        start = _c.CFDataGetBytePtr(data) if length >= _RECORD else None
        return item, ctypes.string_at(start, length) if start else b""

    @staticmethod
    def _identity(item: Any, records: bytes) -> tuple[int, int]:
        return _record_identity(records) if records else (0, _c.IOReportChannelGetChannelID(item) if item else 0)

    # ---- the first sample, and one whose list changed

    def _first(self, array: Any, count: int) -> None:
        """Types are checked, channels found (also by name), records compared with the accessors."""
        self._check_types(array)
        found = []
        for position in range(count):
            item, records = self._records(array, position)
            found.append((self._identity(item, records), _describe(item)))
        self._find(found)
        for i, place in enumerate(self.places):
            if place.position is not None:
                self._learn(i, place, found[place.position], *self._records(array, place.position))
        self.count = count

    def _check_types(self, array: Any) -> None:
        """Once per list: the later calls trust that a list and its records keep their types."""
        if array and not _cf_is("Array", array):
            raise _broken("ioreport", "IOReportChannels is not an array")
        for item in _cf_items(array):
            data = _c.CFDictionaryGetValue(item, _cf_key("RawElements")) if _cf_is("Dictionary", item) else None
            if not _cf_is("Dictionary", item) or data and not _cf_is("Data", data):
                raise _broken("ioreport", "a channel is not what it was")

    def _find(self, found: list[tuple[tuple[int, int], _Channel]]) -> None:
        """Positions by identity and name, then identity alone, then names alone: the listing may lack the driver's id,
        and one driver may use an id for two channels (CPU DVD of an M1)."""
        wanted = [(p.identity, (c.group, c.subgroup, c.name)) for p, c in zip(self.places, self.channels)]
        listed = [(identity, (c.group, c.subgroup, c.name)) for identity, c in found]
        free = set(range(len(listed)))
        for part in (slice(2), 0, 1):
            positions: dict[Any, list[int]] = {}
            for i in sorted(free, reverse=True):
                positions.setdefault(listed[i][part], []).append(i)
            for place, pair in zip(self.places, wanted):
                if place.position is None and positions.get(pair[part]):
                    place.position = positions[pair[part]].pop()
                    free.discard(place.position)

    def _learn(self, i: int, place: _Place, found: tuple[tuple[int, int], _Channel], item: Any, records: bytes) -> None:
        place.identity, seen = found
        known = self.channels[i]
        self.channels[i] = known._replace(driver=place.identity[0], channel=place.identity[1],
                                          unit=known.unit or seen.unit, states=known.states or seen.states)
        if records and len(records) % _RECORD == 0:
            place.layout = _record_layout(known.format, len(records) // _RECORD)
        read = place.layout.unpack(records)[3:] if place.layout else None
        try:
            if not self.accessors and read != self._accessor_values(i, item):
                self.accessors = True
                self.note = "IOReport accessors are used: raw records of %s differ from them" % known.name
        except NVMLError_NotSupported as error:
            self.note = "raw records are used unchecked: %s" % error.detail

    def _search(self, array: Any, count: int) -> None:
        """Channels that moved are found by identity; channels of one identity keep their order."""
        self._check_types(array)
        positions: dict[tuple[int, int], list[int]] = {}
        for position in range(count):
            positions.setdefault(self._identity(*self._records(array, position)), []).append(position)
        for place in sorted(self.places, key=lambda p: (p.position is None, p.position or 0)):
            left = positions.get(place.identity)
            place.position = left.pop(0) if left else None
            if place.position is not None and place.layout is None:     # was absent from the samples before
                self._late(place, self._records(array, place.position)[1])
        self.count = count

    def _late(self, place: _Place, records: bytes) -> None:
        if records and len(records) % _RECORD == 0:
            place.layout = _record_layout(self.channels[self.places.index(place)].format, len(records) // _RECORD)

    # ---- accessors

    def _accessor_row(self, i: int, item: Any, records: bytes) -> tuple[int, tuple[int, ...]] | None:
        """The stamp still comes from the record, whose head proved right (it is judged again by its movement)."""
        values = self._accessor_values(i, item)
        stamp = struct.unpack_from("<q", records, 24)[0] if records else 0
        return None if values is None else (stamp, values)

    def _accessor_values(self, i: int, item: Any) -> tuple[int, ...] | None:
        format = self.channels[i].format
        if format == _SIMPLE:
            return (_c.IOReportSimpleGetIntegerValue(item, None),)
        if format == _STATE:
            count, value = _c.IOReportStateGetCount(item), _c.IOReportStateGetResidency
        else:
            count, value = _c.IOReportHistogramGetBucketCount(item), _c.IOReportHistogramGetBucketHits
        return tuple(value(item, k) for k in range(count)) if 0 < count <= 4096 else None


def _describe(item: Any) -> _Channel:
    """A channel dictionary, of a listing or of a sample."""
    number = _c.IOReportChannelGetChannelID(item)
    format = _c.IOReportChannelGetFormat(item)
    driver = _cf_value(_cf_get(item, "DriverID", "Number"))
    count = _c.IOReportStateGetCount(item) if format == _STATE else 0
    states = [_cf_text(_c.IOReportStateGetNameForIndex(item, k)) for k in range(min(count, 4096))]
    return _Channel(
        (driver or 0) & 0xFFFFFFFFFFFFFFFF, number, _cf_text(_c.IOReportChannelGetGroup(item)) or "",
        _cf_text(_c.IOReportChannelGetSubGroup(item)) or "",
        _cf_text(_c.IOReportChannelGetChannelName(item)) or _channel_name(number), format,
        (_cf_text(_c.IOReportChannelGetUnitLabel(item)) or "").strip(),
        tuple(state or "" for state in states) if any(state for state in states) else ())


class _IOReport:
    """libIOReport: counters of drivers. No block is needed: a sample is a dictionary that holds a list of channels."""

    def __init__(self) -> None:
        self.lock = RLock()

    forked = __init__

    def subscribe(self, groups: Iterable[tuple[str, str | None]],
                  want: Callable[[str, str, str, str], bool]) -> _Subscription | None:
        """Subscribes to the channels that `want(group, subgroup, name, unit)` picks, None if there are none."""
        groups = list(groups)
        with self.lock:
            chosen, channels = _cf_array(), []
            for group, subgroup in groups:
                for item, channel in self._listed(group, subgroup):
                    if want(channel.group, channel.subgroup, channel.name, channel.unit):
                        _c.CFArrayAppendValue(chosen, item)
                        channels.append(channel)
            if not channels:
                return None
            made = self._open(chosen, channels)
            if any(c.format == _STATE and not c.states for c in made.channels):
                made.sample()       # a listing without state names: the sample has them
            return made

    @staticmethod
    def _listed(group: str, subgroup: str | None) -> Iterator[tuple[int, _Channel]]:
        """The channels of a group, borrowed until the next; none when this Mac has no such group."""
        listing = _c.IOReportCopyChannelsInGroup(_cf_key(group), _cf_key(subgroup) if subgroup else None, 0, 0, 0)
        for item in _cf_items(_cf_get(listing, "IOReportChannels", "Array")):
            if _cf_is("Dictionary", item):
                channel = _describe(item)
                if channel.format in (_SIMPLE, _STATE, _HISTOGRAM):
                    yield item, channel

    def _open(self, chosen: Any, channels: list[_Channel]) -> _Subscription:
        """A dictionary of our own with the chosen channels only is a valid argument, and keeps a sample small."""
        wanted, listed = _cf_dictionary({"IOReportChannels": chosen}), _c.CFObject()
        handle = _c.IOReportCreateSubscription(None, wanted, ctypes.byref(listed), 0, None)
        if not handle:
            raise _fail(ERROR_NOT_SUPPORTED, REASON_MACOS, "ioreport:" + channels[0].group, "refused")
        return _Subscription(self.lock, handle, listed if listed else wanted, channels)


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


class _SMC:
    """The system management controller. Its connection is kept; reading needs no root."""

    def __init__(self) -> None:
        self.lock = RLock()
        self.connection = 0
        self.infos: dict[str, tuple[int, str] | None] = {}

    forked = __init__

    def count(self) -> int:
        """How many keys there are."""
        value = self.read("#KEY")
        if value is None or len(value) != 4:
            raise _broken("smc", "#KEY cannot be read")
        return int.from_bytes(value, "big")

    def key_at(self, index: int) -> str | None:
        answer = self._ask(_smc_request(_SMC_KEY_AT, index=index), "key %d" % index)
        return None if answer is None else answer[0]

    def info(self, key: str) -> tuple[int, str] | None:
        """(size, type) of a key, asked once."""
        if not self._possible(key):
            return None
        if key not in self.infos:
            answer = self._ask(_smc_request(_SMC_INFO, key), key)
            self.infos[key] = None if answer is None else (answer[1], answer[2])
        return self.infos[key]

    def read(self, key: str) -> bytes | None:
        info = self.info(key)
        if info is None:
            return None
        if not 0 < info[0] <= 32:
            raise _broken("smc", "%s has %d bytes" % (key, info[0]))
        answer = self._ask(_smc_request(_SMC_READ, key, info[0]), key)
        return None if answer is None else answer[4][:info[0]]

    @staticmethod
    def _possible(key: str) -> bool:
        return len(key) == 4 and max(key) <= "\xff"

    def _ask(self, request: bytes, what: str) -> tuple[str, int, str, int, bytes] | None:
        """The answer, None for result 132 (no such key)."""
        answer, size = ctypes.create_string_buffer(80), ctypes.c_uint64(80)
        with self.lock:
            code = _c.IOConnectCallStructMethod(self._connected(), 2, request, 80, answer, ctypes.byref(size))
            if code & 0xFFFFFFFF in (_INVALID_DEST, _NOT_OPEN):
                self.connection = 0         # gone: opened again by the next call
        _io_check("smc", "reading %s" % what, code)
        if size.value != 80:
            raise _broken("smc", "%s: an answer of %d bytes" % (what, size.value))
        read = _smc_answer(answer.raw)
        if read[3] not in (0, _SMC_NO_SUCH_KEY):
            raise _broken("smc", "%s: result %d" % (what, read[3]))
        return None if read[3] else read

    def _connected(self) -> int:
        if not self.connection:
            connection = ctypes.c_uint32()
            _io_check("smc", "IOServiceOpen",
                      _c.IOServiceOpen(self._service(), _task_self(), 0, ctypes.byref(connection)))
            self.connection = connection.value
        return self.connection

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


class _HID:
    """Temperature sensors of the HID event system. One client, kept: making one again and again has crashed (sysinfo)."""

    _PAGE, _USAGE = 0xFF00, 5               # kHIDPage_AppleVendor, temperature sensor
    _EVENT, _FIELD = 15, 15 << 16
    _REFRESH = 5_000_000_000                # ns between two looks at which services there are

    def __init__(self) -> None:
        self.lock = RLock()
        self.client: int | None = None
        self.matching: Any = None           # must outlive the client, which reads it from a queue of its own
        self.services: Any = None
        self.known: list[tuple[int, str, int]] = []
        self.looked = 0

    forked = __init__

    def temperatures(self) -> list[tuple[str, int, float | None]]:
        """(product, location, degrees) of every sensor; names repeat, and a sensor may have no value."""
        with self.lock:
            return [(product, location, self._value(service)) for service, product, location in self._services()]

    def _value(self, service: int) -> float | None:
        event = _c.IOHIDServiceClientCopyEvent(service, self._EVENT, 0, 0)
        return _c.IOHIDEventGetFloatValue(event, self._FIELD) if event else None

    def _services(self) -> list[tuple[int, str, int]]:
        now = time.clock_gettime_ns(time.CLOCK_UPTIME_RAW)
        if self.services is None or not 0 <= now - self.looked < self._REFRESH:
            listed = _c.IOHIDEventSystemClientCopyServices(self._connected())
            self.known = [self._known(service) for service in _cf_items(listed) if service]
            self.services, self.looked = listed, now
        return self.known

    @staticmethod
    def _known(service: int) -> tuple[int, str, int]:
        """The service (borrowed from the list, which is kept), its name and place."""
        product = _cf_value(_c.IOHIDServiceClientCopyProperty(service, _cf_key("Product")))
        location = _cf_value(_c.IOHIDServiceClientCopyProperty(service, _cf_key("LocationID")))
        return service, product if isinstance(product, str) else "", location if isinstance(location, int) else 0

    def _connected(self) -> int:
        if self.client is None:
            client = _c.IOHIDEventSystemClientCreate(None)
            if not client:
                raise _broken("hid", "there is no HID event system client")
            self.matching = _cf_dictionary({"PrimaryUsagePage": self._PAGE, "PrimaryUsage": self._USAGE})
            self.client = client
            _c.IOHIDEventSystemClientSetMatching(client, self.matching)
        return self.client


class _Words(ctypes.Structure):
    """An array that the kernel maps into our process (host_processor_info)."""
    _fields_ = [("start", ctypes.c_void_p), ("count", ctypes.c_uint32)]

    def __bool__(self) -> bool:
        return bool(self.start)


class _Mach:
    """Memory and CPU counters of the kernel."""

    _VM_INFO64, _CPU_LOAD = 4, 2            # flavors
    _ROOM, _LEAST = 256, 38                 # ints; macOS 27 refuses a buffer of exactly 38, the size until macOS 15

    def __init__(self) -> None:
        self.lock = RLock()
        self.host = 0                       # mach_host_self adds a send right at each call
        self.words: Any = None

    forked = __init__

    def _host(self) -> int:
        if not self.host:
            self.host = _c.mach_host_self()
        return self.host

    def vm_statistics(self) -> bytes:
        """vm_statistics64, 152 bytes or more. The kernel gives fresh numbers only a few times a second."""
        data, count = (ctypes.c_int32 * self._ROOM)(), ctypes.c_uint32(self._ROOM)
        with self.lock:
            _io_check("mach", "host_statistics64",
                      _c.host_statistics64(self._host(), self._VM_INFO64, data, ctypes.byref(count)))
        if not self._LEAST <= count.value <= self._ROOM:
            raise _broken("mach", "host_statistics64 gave %d words" % count.value)
        return bytes(data)[:count.value * 4]

    def cpu_ticks(self) -> bytes:
        """Four u32 for each CPU: user, system, idle, nice; they wrap."""
        cpus = ctypes.c_uint32()
        with self.lock:
            words = self._words()()
            _io_check("mach", "host_processor_info",
                      _c.host_processor_info(self._host(), self._CPU_LOAD, ctypes.byref(cpus), ctypes.byref(words),
                                             ctypes.byref(words, _Words.count.offset)))
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
            _io_check("mach", "host_page_size", _c.host_page_size(self._host(), ctypes.byref(size)))
        return size.value

    def timebase(self) -> tuple[int, int]:
        """Nanoseconds per mach tick as a fraction: 125/3 natively, 1/1 under Rosetta."""
        pair = (ctypes.c_uint32 * 2)()
        with self.lock:
            _io_check("mach", "mach_timebase_info", _c.mach_timebase_info(pair))
        return pair[0], pair[1]


class _Libproc:
    """Processes. For another user's, everything but short_info and path raises NoPermission (xnu proc_info.c)."""

    _TASK_INFO, _SHORT_INFO = (4, 96), (13, 64)     # flavor and size

    def __init__(self) -> None:
        self.lock = RLock()
        self.flavor = 6                             # of rusage_info; before macOS 13 it is 4

    forked = __init__

    def pids(self) -> list[int]:
        """Every process id. proc_listallpids answers with a count of ids, not of bytes."""
        with self.lock:
            room = 0
            for _ in range(4):      # processes may start between the two calls
                ctypes.set_errno(0)
                room = max(room, _c.proc_listallpids(None, 0)) + 64
                ids = (ctypes.c_int32 * room)()
                count = _c.proc_listallpids(ids, ctypes.sizeof(ids))
                if count <= 0:
                    raise self._list_error()
                if count < room:
                    break
        return list(ids[:count])

    @staticmethod
    def _list_error() -> AppleGPUError:
        code = ctypes.get_errno()
        if code == _EPERM:
            return _fail(ERROR_NO_PERMISSION, REASON_SANDBOX, "libproc", "the App Sandbox hides the list of processes")
        return _broken("libproc", "proc_listallpids: errno %d" % code)

    @staticmethod
    def _error(pid: int, call: str, code: int) -> AppleGPUError:
        if code == _ESRCH:
            return _fail(ERROR_NOT_FOUND, None, "libproc", "no process %d" % pid)
        if code == _EPERM:
            return _fail(ERROR_NO_PERMISSION, REASON_PERMISSION, "libproc", "process %d belongs to another user" % pid)
        return _broken("libproc", "%s of %d: errno %d" % (call, pid, code))

    def _info(self, pid: int, flavor: int, size: int) -> bytes:
        data = ctypes.create_string_buffer(size)
        with self.lock:
            ctypes.set_errno(0)
            got = _c.proc_pidinfo(pid, flavor, 0, data, size)
            code = ctypes.get_errno()
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
            failed = _c.proc_pid_rusage(pid, flavor, data)
            code = ctypes.get_errno() or -1
        return (code, b"") if failed else (0, data.raw[:464 if flavor == 6 else 296])

    def path(self, pid: int) -> str | None:
        text = ctypes.create_string_buffer(4096)        # PROC_PIDPATHINFO_MAXSIZE
        with self.lock:
            length = _c.proc_pidpath(pid, text, 4096)
        return text.raw[:length].decode("utf-8", "replace") if 0 < length <= 4096 else None

    def own_pid(self) -> int:
        return os.getpid()


class _Notify:
    """notify(3) states; no run loop needed, unlike NSProcessInfo's, which grow stale without one."""

    def __init__(self) -> None:
        self.lock = RLock()
        self.tokens: dict[str, int] = {}

    forked = __init__

    def state(self, name: str) -> int:
        value = ctypes.c_uint64()
        with self.lock:
            status = _c.notify_get_state(self._token(name), ctypes.byref(value))
            if status:
                self.tokens.pop(name, None)
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


class _Power:
    """What the Mac runs on."""

    def __init__(self) -> None:
        self.lock = RLock()

    forked = __init__

    def providing(self) -> str | None:
        """"AC Power", "Battery Power", or None where macOS names no source."""
        with self.lock:
            info = _c.IOPSCopyPowerSourcesInfo()
            return _cf_text(_c.IOPSGetProvidingPowerSourceType(info)) if info else None


class _MetalDevice:
    """The few figures that only Metal has. A device is made, asked and released in one call; never a command queue."""

    _FAMILIES = tuple(range(1001, 1016)) + (2002, 3001, 3002, 3003, 5001, 5002, 5003)
    _WORDS = ("registryID", "recommendedMaxWorkingSetSize", "maxBufferLength", "maxThreadgroupMemoryLength")

    def __init__(self) -> None:
        self.lock = RLock()
        self.child = False

    def forked(self) -> None:
        self.lock, self.child = RLock(), True

    def device(self, registry_id: int | None = None) -> dict[str, Any]:
        """What the device of this registry id says of itself; the only one there is, where none has it."""
        if self.child:
            raise _fail(ERROR_NOT_READY, REASON_FORKED_CHILD, "metal")
        with self.lock:
            _c.library("CoreGraphics")      # without it there is no default device (Apple's documentation)
            pool = _c.objc_autoreleasePoolPush()
            try:
                return self._chosen(registry_id)
            finally:
                _c.objc_autoreleasePoolPop(pool)

    def _chosen(self, registry_id: int | None) -> dict[str, Any]:
        """All devices are empty in some sandboxes, the default is nil over ssh and in daemons: each is asked."""
        devices = _c.MTLCopyAllDevices()
        count = _send(devices, "count", "Q") if devices else 0
        found = [_send(devices, "objectAtIndex:", "p", "Q", i) for i in range(min(count, 64))]
        for device in found:
            if len(found) == 1 or registry_id is None or _send(device, "registryID", "Q") == registry_id:
                return self._described(device)
        default = _c.MTLCreateSystemDefaultDevice()
        if not default:
            raise _fail(ERROR_NOT_READY, REASON_SOURCE_FAILED, "metal", "Metal gives no device to this process")
        return self._described(default)

    def _described(self, device: Any) -> dict[str, Any]:
        said: dict[str, Any] = {name: _send(device, name, "Q") for name in self._WORDS}
        said["name"] = _text(_send(device, "name", "p"))
        said["hasUnifiedMemory"] = bool(_send(device, "hasUnifiedMemory", "B"))
        said["families"] = tuple(f for f in self._FAMILIES if _send(device, "supportsFamily:", "B", "q", f))
        said["architecture"] = None
        if _send(device, "respondsToSelector:", "B", "p", _c.sel_registerName(b"architecture")):       # macOS 14
            architecture = _send(device, "architecture", "p")
            said["architecture"] = _text(_send(architecture, "name", "p")) if architecture else None
        return said


def _send(receiver: Any, selector: str, result: str, arguments: str = "", *values: Any) -> Any:
    """One Objective-C message of known signature; BOOL is read as a byte (C bool on arm64, signed char on x86_64)."""
    return _c.send(result, arguments)(receiver, _c.sel_registerName(selector.encode()), *values)


def _text(string: Any) -> str | None:
    """The text of an NSString."""
    text = _send(string, "UTF8String", "s") if string else None
    return None if text is None else text.decode("utf-8", "replace")


class _Clock:
    """Time. CLOCK_UPTIME_RAW is mach_absolute_time, the clock of the drivers' stamps; it stands while the Mac sleeps."""

    def __init__(self) -> None:
        self.ticks = 0

    forked = __init__

    def now(self) -> tuple[int, int]:
        """(uptime, uptime with sleep) in ns; their difference grows by what the Mac slept."""
        return time.clock_gettime_ns(time.CLOCK_UPTIME_RAW), time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)

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
        self.calls: dict[str, int] = {}
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
        for source in (self.registry, self.ioreport, self.smc, self.hid, self.sysctl, self.mach, self.libproc,
                       self.notify, self.power, self.metal, self.clock):
            source.forked()


# ======================================================================================================================
# recording
# ======================================================================================================================

_RECORDING_FORMAT = 1
_RECORDING_LARGEST = 16 << 20
_RECORDING_PARTS = ("registry", "ioreport", "smc", "hid", "sysctl", "mach", "libproc", "notify", "power", "metal", "time")
_PLATFORM_CLASS = "IOPlatformExpertDevice"

# Fields that count up, and so are carried forward when a recording starts again (facts: xnu proc_info.h, resource.h).
_TASK_COUNTERS = (16, 24)                                       # proc_taskinfo: total_user, total_system
_RUSAGE_COUNTERS = (16, 24, 248, 256, 264, 272, 288,            # rusage_info_v4: times, instructions, cycles, energy
                    304, 312, 320, 328, 336, 344)               # v6: P-core times, instructions, cycles, energy_nj
_CF_WIDTHS = {"i8": 8, "i16": 16, "i32": 32, "i64": 64}


# ---- a recording is untrusted: every shape, size and range is checked once, when it is loaded ----

class _Wrong(Exception):
    """A fault in a recording; each container on the way out adds its own place."""

    def __init__(self, what: str) -> None:
        Exception.__init__(self, what)
        self.what = what
        self.where: list[str] = []


def _inside(key: Any, check: Callable[[Any], None], value: Any) -> None:
    try:
        check(value)
    except _Wrong as wrong:
        wrong.where.append(str(key)[:64])
        raise


def _is_number(low: float, high: float, kinds: tuple[type, ...] = (int,)) -> Callable[[Any], None]:
    def check(value: Any) -> None:
        if type(value) not in kinds or not low <= value <= high:
            raise _Wrong("is not a %snumber from %s to %s" % ("" if float in kinds else "whole ", low, high))
    return check


def _is_text(most: int) -> Callable[[Any], None]:
    def check(value: Any) -> None:
        if type(value) is not str or len(value) > most:
            raise _Wrong("is not text of at most %d characters" % most)
        if not value.isprintable() and any(c < " " or "\x7f" <= c < "\xa0" or "\ud800" <= c < "\ue000" for c in value):
            raise _Wrong("holds control characters")     # it will be printed on somebody's terminal
    return check


def _is_one_of(*allowed: Any) -> Callable[[Any], None]:
    def check(value: Any) -> None:
        if not any(type(value) is type(a) and value == a for a in allowed):
            raise _Wrong("is not one of " + ", ".join(repr(a) for a in allowed))
    return check


def _is_hex(least: int, most: int, multiple: int = 1) -> Callable[[Any], None]:
    def check(value: Any) -> None:
        size = _hex_size(value)
        if not least <= size <= most or size % multiple:
            raise _Wrong("is not the hex of %d to %d bytes" % (least, most))
    return check


def _hex_size(value: Any) -> int:
    try:
        size = len(bytes.fromhex(value)) if type(value) is str else -1
    except ValueError:
        return -1
    return size if 2 * size == len(value) else -1       # fromhex lets spaces pass


def _is_word(value: Any) -> None:
    digits = value[2:] if type(value) is str and value[:2] == "0x" else ""
    if not 1 <= len(digits) <= 16 or digits.strip("0123456789abcdefABCDEF"):
        raise _Wrong("is not a 64-bit number written as 0x...")


def _is_list(check: Callable[[Any], None], least: int, most: int) -> Callable[[Any], None]:
    def check_all(value: Any) -> None:
        if type(value) is not list or not least <= len(value) <= most:
            raise _Wrong("is not a list of %d to %d" % (least, most))
        for i, item in enumerate(value):
            _inside(i, check, item)
    return check_all


def _is_table(check: Callable[[Any], None], most: int = 4096) -> Callable[[Any], None]:
    name = _is_text(256)

    def check_all(value: Any) -> None:
        if type(value) is not dict or len(value) > most:
            raise _Wrong("is not an object of at most %d" % most)
        for key in value:
            name(key)
            _inside(key, check, value[key])
    return check_all


def _is_object(required: dict[str, Any], optional: dict[str, Any] = {}) -> Callable[[Any], None]:
    def check_all(value: Any) -> None:
        if type(value) is not dict:
            raise _Wrong("is not an object")
        for key, check in required.items():
            if key not in value:
                raise _Wrong("has no %r" % key)
            _inside(key, check, value[key])
        for key, check in optional.items():
            if key in value:
                _inside(key, check, value[key])
    return check_all


def _or_null(check: Callable[[Any], None]) -> Callable[[Any], None]:
    def check_value(value: Any) -> None:
        if value is not None:
            check(value)
    return check_value


def _is_series(check: Callable[[Any], None], instants: int) -> Callable[[Any], None]:
    def check_all(value: Any) -> None:
        if type(value) is not list or not 1 <= len(value) <= instants:
            raise _Wrong("is not a list of 1 to %d [instant, value] pairs" % instants)
        before = -1
        for i, pair in enumerate(value):
            if type(pair) is not list or len(pair) != 2 or type(pair[0]) is not int:
                raise _Wrong("holds something else than [instant, value] pairs")
            if not before < pair[0] < instants or (i == 0 and pair[0] != 0):
                raise _Wrong("must name instants from 0 to %d in ascending order, the first 0" % (instants - 1))
            before = pair[0]
            _inside(before, check, pair[1])
    return check_all


def _is_cf(value: Any, depth: int = 0) -> None:
    """A Core Foundation value in tagged form: ["s", text], ["i64", number], ["x", hex], ["a", [...]], ["d", {...}] ..."""
    if type(value) is not list or len(value) != 2 or type(value[0]) is not str or depth > 16:
        raise _Wrong("is not a [type, value] pair")
    kind, inner = value
    if kind in ("a", "d"):
        nested = (lambda v: _is_cf(v, depth + 1))
        (_is_list(nested, 0, 65536) if kind == "a" else _is_table(nested))(inner)
    elif kind in _CF_CHECKS:
        _CF_CHECKS[kind](inner)
    else:
        raise _Wrong("has the unknown type %.16r" % kind)


_CF_CHECKS: dict[str, Callable[[Any], None]] = {
    "s": _is_text(4096), "b": _is_one_of(True, False), "x": _is_hex(0, 1 << 20),
    "f32": _is_number(-3.4e38, 3.4e38, (int, float)), "f64": _is_number(-1e300, 1e300, (int, float)),
}
_CF_CHECKS.update((_kind, _is_number(-(1 << _bits - 1), (1 << _bits) - 1)) for _kind, _bits in _CF_WIDTHS.items())


def _is_channel(instants: int) -> Callable[[Any], None]:
    number, name = _is_number(INT64_MIN, -INT64_MIN - 1), _is_text(128)
    fixed = _is_object(
        {"driver": _is_word, "channel": _is_word, "group": name, "subgroup": name, "name": _or_null(name),
         "type": _is_word, "unit": _is_word, "rows": _is_list(_or_null(_is_list(number, 2, 1025)), 0, instants)},
        {"states": _is_list(name, 1, 1024)})

    def check(value: Any) -> None:
        fixed(value)
        kind, states = int(value["type"], 16) & 0xFF, value.get("states", ())
        if kind not in (1, 2, 3) or (kind == 2 and not states):
            raise _Wrong("is of no known format, or a state channel without states")
        sizes = {len(row) for row in value["rows"] if row is not None}
        size = 1 if kind == 1 else len(states)
        if len(sizes) > 1 or (size and sizes - {1 + size}):
            raise _Wrong("has rows of the wrong length")
    return check


def _recording_schema(n: int) -> dict[str, Callable[[Any], None]]:
    """What each part of a recording with n instants must look like."""
    def series(check: Callable[[Any], None]) -> Callable[[Any], None]:
        return _is_series(check, n)
    name, size = _is_text(256), _is_number(0, (1 << 63) - 1)
    hexes, pid = series(_is_hex(0, 4096)), _is_number(-1, (1 << 31) - 1)
    node = _is_object(
        {"id": _is_number(0, (1 << 64) - 1), "class": name},
        {"name": _or_null(name), "conforms": _is_list(name, 0, 64), "parent": _or_null(_is_number(0, (1 << 64) - 1)),
         "properties": _is_table(_is_cf), "series": _is_table(series(_is_cf))})
    smc_key = _is_list(lambda v: (_is_text(4) if type(v) is str else _is_number(0, 128))(v), 3, 3)
    sensor = _is_object({"properties": _is_table(_is_cf)},
                        {"value": _or_null(series(_is_number(-1e9, 1e9, (int, float))))})
    process = _is_object({"pid": pid}, {
        "name": _or_null(name), "path": _or_null(_is_text(1024)), "short_info": series(_is_hex(64, 256)),
        "task_info": _or_null(series(_is_hex(96, 256))), "rusage": _or_null(series(_is_hex(296, 1024)))})
    device = _is_object({"name": name, "registryID": _is_number(0, (1 << 64) - 1)}, {
        "recommendedMaxWorkingSetSize": _or_null(size), "maxBufferLength": _or_null(size),
        "hasUnifiedMemory": _or_null(_is_one_of(True, False)), "maxThreadgroupMemoryLength": _or_null(size),
        "architecture": _or_null(name), "supportsFamily:": _is_list(_is_number(0, 99999), 0, 256)})
    return {
        "registry": _is_list(node, 0, 20000),
        "ioreport": _is_object({"groups": _is_table(_is_one_of("ok", "refuses")),
                                "channels": _is_list(_is_channel(n), 0, 20000)}),
        "smc": _is_object({"keys": _is_list(smc_key, 0, 20000)}, {"values": _is_table(series(_is_hex(0, 128)), 20000)}),
        "hid": _is_object({"services": _is_list(sensor, 0, 4096)}),
        "sysctl": _is_table(hexes),
        "mach": _is_object({"page_size": _is_number(1, 1 << 30), "vm_statistics64": series(_is_hex(152, 4096, 4)),
                            "cpu_load": series(_is_hex(16, 65536, 16))}),
        "libproc": _is_object({"processes": _is_list(process, 0, 20000)}),
        "notify": _is_table(series(_is_number(0, (1 << 64) - 1))),
        "power": _is_object({"providing": _or_null(series(_or_null(name)))}),
        "metal": _is_object({"devices": _is_list(device, 0, 64)}, {"default": _or_null(_is_number(0, 63))}),
        "title": name, "macos": name, "chip": name,
    }


def _check_time(value: Any) -> None:
    """Before everything else: it says how many instants there are."""
    ticks = _is_list(_is_number(0, 1 << 56), 1, 100000)
    _is_object({"timebase": _is_list(_is_number(1, 1 << 31), 2, 2), "ticks": ticks},
               {"unix": _is_number(0, 1e11, (int, float)), "slept": ticks})(value)
    if any(b <= a for a, b in zip(value["ticks"], value["ticks"][1:])):
        raise _Wrong("must have ascending ticks")
    slept = value.get("slept")
    if slept is not None and (len(slept) != len(value["ticks"]) or slept != sorted(slept)):
        raise _Wrong("must have one ascending slept for each of the ticks")


def _check_links(data: dict[str, Any]) -> None:
    """What one part says about another, or twice."""
    def unique(what: str, keys: list[Any]) -> None:
        if len(set(keys)) != len(keys):
            raise _Wrong("has the same %s twice" % what)
    unique("registry id", [node["id"] for node in data.get("registry") or ()])
    unique("pid", [p["pid"] for p in (data.get("libproc") or {}).get("processes", ())])
    ioreport, smc, metal = data.get("ioreport") or {}, data.get("smc") or {}, data.get("metal") or {}
    for channel in ioreport.get("channels", ()):
        if channel["group"] not in ioreport["groups"]:
            raise _Wrong("has channels of the group %.64r that ioreport.groups does not name" % channel["group"])
    if [k for k in smc.get("keys", ()) if [type(v) for v in k] != [str, str, int] or len(k[0]) != 4 or len(k[1]) != 4]:
        raise _Wrong("has an SMC key that is not [four characters, four characters, size]")
    sizes = {key: size for key, kind, size in smc.get("keys", ())}
    for key, series in smc.get("values", {}).items():
        if any(len(value) != 2 * sizes.get(key, -1) for _, value in series):
            raise _Wrong("has a value of the SMC key %.16r that does not fit its entry in smc.keys" % key)
    if (metal.get("default") or 0) >= max(1, len(metal.get("devices", ()))):
        raise _Wrong("has a metal.default that is not in metal.devices")
    loads = (data.get("mach") or {}).get("cpu_load", ())
    if len({len(value) for _, value in loads}) > 1:
        raise _Wrong("has a mach.cpu_load whose length changes")


def _check_recording(data: Any) -> None:
    if type(data) is not dict or type(data.get("format")) is not int:
        raise _Wrong("is not a recording: it has no \"format\"")
    if data["format"] != _RECORDING_FORMAT:
        raise _Wrong("has format %d; this version reads format %d%s" % (
            data["format"], _RECORDING_FORMAT, ", get a newer pyapplegpu" if data["format"] > _RECORDING_FORMAT else ""))
    _is_object({"time": _check_time})(data)
    schema = _recording_schema(len(data["time"]["ticks"]))
    _is_object({}, {key: _or_null(check) for key, check in schema.items()})(data)
    _check_links(data)


def _few_digits(text: str) -> int:
    if len(text) > 21:      # int() of a million digits takes minutes
        raise ValueError("a number of %d digits" % len(text))
    return int(text)


def _no_constant(text: str) -> NoReturn:
    raise ValueError("%s is not a number" % text)


def _read_json(path: str) -> Any:
    import json
    try:
        with open(path, "rb") as file:
            raw = file.read(_RECORDING_LARGEST + 1)
        if len(raw) > _RECORDING_LARGEST:
            raise ValueError("it is larger than %d MiB" % (_RECORDING_LARGEST >> 20))
        return json.loads(raw.decode("utf-8"), parse_int=_few_digits, parse_constant=_no_constant)
    except OSError as error:
        raise _bad("cannot read the recording %s: %s" % (path, error.strerror or error)) from None
    except (ValueError, RecursionError) as error:       # also JSONDecodeError and UnicodeDecodeError
        raise _bad("%s is not a recording: %s" % (path, error)) from None


def _last_at(series: Sequence[Any], instant: int) -> Any:
    """The value that holds at an instant: of the last pair not after it."""
    low, high = 0, len(series)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if series[middle][0] <= instant else (low, middle)
    return series[low][1]


def _signed(value: int, bits: int = 64) -> int:
    half = 1 << (bits - 1)
    return (value + half) % (2 * half) - half


def _plain(tagged: Any) -> Any:
    """Python's form of a tagged Core Foundation value, as the native registry answers it."""
    kind, value = tagged
    if kind == "a":
        return [_plain(item) for item in value]
    if kind == "d":
        return {key: _plain(item) for key, item in value.items()}
    if kind == "x":
        return bytes.fromhex(value)
    if kind == "f32":
        return struct.unpack("<f", struct.pack("<f", value))[0]
    if kind == "f64":
        return float(value)
    return _signed(value, _CF_WIDTHS[kind]) if kind in _CF_WIDTHS else value


def _usage_times(tagged: Any) -> list[int | None]:
    items = tagged[1] if tagged[0] == "a" else ()
    numbers = [item[1].get("accumulatedGPUTime") if item[0] == "d" else None for item in items]
    return [pair[1] if pair is not None and pair[0] == "i64" else None for pair in numbers]


def _grown_usage(now: Any, first: Any, last: Any, rounds: int) -> Any:
    """AppUsage, its accumulatedGPUTime carried forward where an entry is there from the first instant to the last."""
    gains = [max(0, b - a) if a is not None and b is not None else 0
             for a, b in zip(_usage_times(first), _usage_times(last))]
    times, out = _usage_times(now), []
    for i, item in enumerate(now[1] if now[0] == "a" else ()):
        if i < len(gains) and gains[i] and times[i] is not None:
            grown = _signed(times[i] + rounds * gains[i])
            item = ["d", dict(item[1], accumulatedGPUTime=["i64", grown])]
        out.append(item)
    return ["a", out] if now[0] == "a" else now


def _grown_bytes(now: bytes, first: bytes, last: bytes, rounds: int, offsets: Iterable[int], width: int) -> bytes:
    """A C structure whose counters at `offsets` are carried forward; 32-bit ones wrap, 64-bit ones never fall."""
    out, top = bytearray(now), 1 << (8 * width)
    for at in offsets:
        if at + width > min(len(now), len(first), len(last)):
            break
        value, a, b = (int.from_bytes(raw[at:at + width], "little") for raw in (now, first, last))
        gain = (b - a) % top if width == 4 else max(0, b - a)
        out[at:at + width] = ((value + rounds * gain) % top).to_bytes(width, "little")
    return bytes(out)


class _Recording:
    """A recording that has been checked, and what it says at step 0, 1, 2 ...

    Step s is instant s of the file. With loop it goes on from the first instant, time and counters carried forward, so
    that the last instant of a round is the first of the next; without, past the last instant, NoData `recording`.
    """

    def __init__(self, data: Any, path: str = "recording", loop: bool = True) -> None:
        try:
            _check_recording(data)
        except _Wrong as wrong:
            raise _bad("%s: %s %s" % (path, ".".join(reversed(wrong.where)) or "it", wrong.what)) from None
        self.data: dict[str, Any] = data
        self.path = path
        self.loop = loop
        self.instants: int = len(data["time"]["ticks"])
        self._ticks: list[int] = data["time"]["ticks"]
        self._slept: list[int] = data["time"].get("slept") or [0] * self.instants
        self._gains: dict[int, tuple[int, ...]] = {}
        self.ticks_per_second = self._tick_rate()
        self.span = self._ticks[-1] - self._ticks[0] or self.ticks_per_second
        self.nodes = self._all_nodes()

    @classmethod
    def load(cls, path: str, loop: bool = True) -> _Recording:
        try:
            name = os.fsdecode(path)
        except TypeError:
            raise _bad("a recording is named by its path, not by %.64r" % (path,)) from None
        return cls(_read_json(name), name, loop)

    def part(self, name: str) -> Any:
        """One part of the file; None when this Mac has no such thing."""
        return self.data.get(name)

    def missing(self, source: str, detail: str | None = None) -> AppleGPUError:
        """The error of a Mac without this part, ready to raise."""
        guest = (self.sysctl("kern.hv_vmm_present", 0) or b"")[:1] == b"\x01"
        return _fail(ERROR_NOT_SUPPORTED, REASON_VIRTUAL_MACHINE if guest else REASON_NO_SUCH_PART, source, detail)

    def not_held(self, source: str, what: str) -> AppleGPUError:
        return _fail(ERROR_NO_DATA, REASON_RECORDING, source, "the recording does not hold %s" % what)

    # -- time --

    def _tick_rate(self) -> int:
        """hw.tbfrequency; the timebase only where that is missing: it lies under Rosetta."""
        rate = int.from_bytes((self.sysctl("hw.tbfrequency", 0) or b"")[:8], "little")
        numer, denom = self.data["time"]["timebase"]
        rate = rate or 1000000000 * denom // numer
        if not 1000000 <= rate <= 1000000000:
            raise _bad("%s: the clock makes %d ticks per second, not 1 to 1000 million" % (self.path, rate))
        return rate

    def _place(self, step: int) -> tuple[int, int]:
        """Instant and round of a step."""
        if not self.loop:
            if step >= self.instants:
                raise _fail(ERROR_NO_DATA, REASON_RECORDING, "recording", "the recording has ended")
            return step, 0
        return (0, step) if self.instants == 1 else (step % (self.instants - 1), step // (self.instants - 1))

    def ticks(self, step: int) -> int:
        instant, rounds = self._place(step)
        return self._ticks[instant] + rounds * self.span

    def slept(self, step: int) -> int:
        """Nanoseconds asleep."""
        instant, rounds = self._place(step)
        return self._slept[instant] + rounds * (self._slept[-1] - self._slept[0])

    def steps_for(self, ticks: int) -> int:
        """The last step that is not later than this many ticks after the start. The last instant lasts as long as the
        one before it; without loop one step more means the end."""
        rounds, rest = divmod(max(0, ticks), self.span)
        if self.instants == 1:
            return rounds
        if rounds and not self.loop:
            held = self._ticks[-1] - self._ticks[-2]
            return self.instants - (ticks < self.span + held)
        low, high = 0, self.instants
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._ticks[middle] - self._ticks[0] <= rest else (low, middle)
        return rounds * (self.instants - 1) + low

    # -- values --

    def at(self, series: Sequence[Any], step: int) -> Any:
        """A series at a step: a gauge, not carried forward."""
        return _last_at(series, self._place(step)[0])

    def carried(self, series: Sequence[Any], step: int, offsets: Iterable[int], width: int = 8) -> bytes:
        """A C structure at a step, its counters carried forward."""
        instant, rounds = self._place(step)
        now = bytes.fromhex(_last_at(series, instant))
        if not rounds or len(series) == 1:
            return now
        first, last = bytes.fromhex(series[0][1]), bytes.fromhex(series[-1][1])
        return _grown_bytes(now, first, last, rounds, offsets, width)

    def sysctl(self, name: str, step: int) -> bytes | None:
        series = (self.data.get("sysctl") or {}).get(name)
        return None if series is None else bytes.fromhex(self.at(series, step))

    def _gain(self, channel: dict[str, Any]) -> tuple[int, ...]:
        """What one round adds to a channel's row: stamp, values. A stamp that stood all the time stands, so that what
        its driver never published does not look new; with one instant everything stands."""
        known = self._gains.get(id(channel))
        if known is None:
            rows = [row for row in channel["rows"] if row is not None]
            columns = [[v for v in column if v != INT64_MIN] or [0] for column in zip(*rows)]
            gains = [max(0, column[-1] - column[0]) for column in columns] or [0]
            if int(channel["unit"], 16) >> 56 in (2, 10):       # power, temperature: gauges
                gains[1:] = [0] * (len(gains) - 1)
            gains[0] = self.span if gains[0] else 0
            known = self._gains[id(channel)] = tuple(gains)
        return known

    def row(self, channel: dict[str, Any], step: int) -> tuple[int, tuple[int, ...]] | None:
        """(stamp, values) of an IOReport channel at a step; None when it is absent from that sample."""
        instant, rounds = self._place(step)
        rows = channel["rows"]
        row = rows[min(instant, len(rows) - 1)] if rows else None
        if row is None:
            return None
        if rounds:
            row = [v if v == INT64_MIN else _signed(v + rounds * gain) for v, gain in zip(row, self._gain(channel))]
        return row[0], tuple(row[1:])

    # -- registry --

    def _all_nodes(self) -> list[dict[str, Any]]:
        """The registry entries, with one IOPlatformExpertDevice in any case."""
        nodes: list[dict[str, Any]] = list(self.data.get("registry") or ())
        if not any(node["class"] == _PLATFORM_CLASS for node in nodes):
            taken, free = {node["id"] for node in nodes}, 1 << 32
            while free in taken:
                free += 1
            nodes.append({"id": free, "class": _PLATFORM_CLASS, "name": _PLATFORM_CLASS, "parent": None})
        return nodes

    def tagged(self, node: dict[str, Any], key: str, step: int) -> Any:
        """A property in tagged form, or None."""
        if node["class"] == _PLATFORM_CLASS and key == "IOPlatformUUID":
            return ["s", self.uuid()]
        series = node.get("series", {}).get(key)
        if series is None:
            return node.get("properties", {}).get(key)
        instant, rounds = self._place(step)
        now = _last_at(series, instant)
        return _grown_usage(now, series[0][1], series[-1][1], rounds) if rounds and key == "AppUsage" else now

    def uuid(self) -> str:
        """Stands for IOPlatformUUID, which no recording holds: made of what the file says of the Mac, which leaves out
        what the file expects of this library."""
        import hashlib
        import json
        said = {part: self.data.get(part) for part in _RECORDING_PARTS}
        try:
            content = json.dumps(said, sort_keys=True).encode("ascii")
        except RecursionError:
            raise _bad("%s is nested too deeply" % self.path) from None
        text = hashlib.sha256(content).hexdigest()[:32].upper()
        return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


# ---- the sources, answered from a recording ----

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


class _ReplayedChannel(NamedTuple):
    """What Subscription.channels lists; the words are what a recorder needs."""
    driver: int
    channel: int
    group: str
    subgroup: str
    name: str
    format: int
    unit: str
    states: tuple[str, ...]
    type_word: int
    unit_word: int


def _replayed_channel(raw: dict[str, Any]) -> _ReplayedChannel:
    number, kind, unit = int(raw["channel"], 16), int(raw["type"], 16), int(raw["unit"], 16)
    name = raw["name"]
    if name is None:        # then the id spells it
        name = number.to_bytes(8, "big").replace(b"\0", b"").decode("ascii", "replace")
    states = tuple(raw["states"]) if kind & 0xFF == 2 else ()
    return _ReplayedChannel(int(raw["driver"], 16), number, raw["group"], raw["subgroup"], name, kind & 0xFF,
                            _unit_text(unit), states, kind, unit)


class _ReplayClock:
    """Recorded time: with speed > 0 real time moves it, with speed 0 sleep() and step() do; always at an instant."""

    def __init__(self, recording: _Recording, speed: float, monotonic: Callable[[], float] | None,
                 sleep: Callable[[float], None] | None) -> None:
        if type(speed) not in (int, float) or not (speed == 0 or 0.001 <= speed <= 1e6):
            raise _bad("speed must be 0, or from 0.001 to 1000000, not %r" % (speed,))
        self._recording, self._speed = recording, speed
        self._monotonic, self._real_sleep = monotonic, sleep
        self._origin: float | None = None       # recorded time begins to run when it is first asked for
        self._moved, self._begun = 0, False
        self._lock = allocate_lock()

    def forked(self) -> None:
        self._lock = allocate_lock()

    def _elapsed(self) -> float:
        """Recorded seconds since the start."""
        now = (self._monotonic or time.monotonic)()
        with self._lock:
            if self._origin is None:
                self._origin = now
            return max(0.0, now - self._origin) * self._speed

    def current(self) -> int:
        """The step that answers now."""
        if not self._speed:
            return self._moved
        return self._recording.steps_for(int(self._elapsed() * self._recording.ticks_per_second))

    def ticks_per_second(self) -> int:
        return self._recording.ticks_per_second

    def now(self) -> tuple[int, int]:
        step = self.current()
        up = self._recording.ticks(step) * 1000000000 // self._recording.ticks_per_second
        return up, up + self._recording.slept(step)

    def unix(self) -> float:
        r, step = self._recording, self.current()
        ran, slept = r.ticks(step) - r.ticks(0), r.slept(step) - r.slept(0)
        return float(r.data["time"].get("unix", 0.0)) + ran / r.ticks_per_second + slept / 1e9

    def step(self) -> None:
        """A rate call or snapshot begins."""
        if self._speed:
            return
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
        ahead = r.steps_for(int(elapsed * r.ticks_per_second)) + 1
        if r.loop or ahead < r.instants:
            seconds = min(seconds, (r.ticks(ahead) - r.ticks(0) + 1) / r.ticks_per_second - elapsed)
        (self._real_sleep or time.sleep)(max(0.0, seconds) / self._speed)


class _Replayed:
    """Base of the replayed sources."""
    source = ""

    def __init__(self, recording: _Recording, clock: _ReplayClock) -> None:
        self._recording, self._clock = recording, clock
        self._part: Any = recording.part(self.source)

    def _has(self) -> Any:
        if self._part is None:
            raise self._recording.missing(self.source)
        return self._part

    def _at(self, series: Sequence[Any]) -> Any:
        return self._recording.at(series, self._clock.current())


class _ReplayedEntry:
    """A registry entry: opaque to callers."""
    __slots__ = ("node",)

    def __init__(self, node: dict[str, Any]) -> None:
        self.node = node


class _ReplayedRegistry(_Replayed):
    source = "registry"

    def __init__(self, recording: _Recording, clock: _ReplayClock) -> None:
        _Replayed.__init__(self, recording, clock)
        self._entries = [_ReplayedEntry(node) for node in recording.nodes]

    def services(self, class_name: str) -> list[_ReplayedEntry]:
        # User clients are not registered: matching never finds them (metrics.md 3.12).
        return [e for e in self._entries if not e.node["class"].endswith("UserClient")
                and (e.node["class"] == class_name or class_name in e.node.get("conforms", ()))]

    def named(self, name: str) -> list[_ReplayedEntry]:
        return [e for e in self._entries if e.node.get("name") == name]

    def children(self, entry: _ReplayedEntry) -> list[_ReplayedEntry]:
        return [e for e in self._entries if e.node.get("parent") == entry.node["id"]]

    def identity(self, entry: _ReplayedEntry) -> int:
        return int(entry.node["id"])

    def class_name(self, entry: _ReplayedEntry) -> str:
        return str(entry.node["class"])

    def get(self, entry: _ReplayedEntry, key: str) -> Any:
        value = self._recording.tagged(entry.node, key, self._clock.current())
        return None if value is None else _plain(value)

    def alive(self, entry: _ReplayedEntry) -> bool:
        return True


class _ReplayedSubscription:
    note = ""

    def __init__(self, recording: _Recording, clock: _ReplayClock, raw: list[dict[str, Any]]) -> None:
        self._recording, self._clock, self._raw = recording, clock, raw
        self.channels = [_replayed_channel(channel) for channel in raw]

    def sample(self) -> list[tuple[int, tuple[int, ...]] | None]:
        step, row = self._clock.current(), self._recording.row
        return [row(channel, step) for channel in self._raw]


class _ReplayedIOReport(_Replayed):
    source = "ioreport"

    def subscribe(self, groups: Iterable[tuple[str, str | None]],
                  want: Callable[[str, str, str, str], bool]) -> _ReplayedSubscription | None:
        part = self._part or {"groups": {}, "channels": []}
        listed, raw, refused = part["channels"], [], ""
        for group, subgroup in groups:
            state = part["groups"].get(group)       # None: the group does not exist, and is skipped
            found = [c for c in listed if c["group"] == group and subgroup in (None, c["subgroup"])] if state else []
            wanted = [c for c in found if _wants(want, c) and not any(c is r for r in raw)]
            if state == "refuses" and (wanted or not found):
                refused = refused or group
            raw += wanted
        if refused:
            raise _fail(ERROR_NOT_SUPPORTED, REASON_MACOS, "ioreport:" + refused, "refused")
        return _ReplayedSubscription(self._recording, self._clock, raw) if raw else None


def _wants(want: Callable[[str, str, str, str], bool], raw: dict[str, Any]) -> bool:
    channel = _replayed_channel(raw)
    return want(channel.group, channel.subgroup, channel.name, channel.unit)


class _ReplayedSMC(_Replayed):
    source = "smc"

    def __init__(self, recording: _Recording, clock: _ReplayClock) -> None:
        _Replayed.__init__(self, recording, clock)
        self._info = {key: (size, kind) for key, kind, size in (self._part or {}).get("keys", ())}

    def count(self) -> int:
        return len(self._has()["keys"])

    def key_at(self, index: int) -> str | None:
        keys = self._has()["keys"]
        return str(keys[index][0]) if 0 <= index < len(keys) else None

    def info(self, key: str) -> tuple[int, str] | None:
        self._has()
        return self._info.get(key)

    def read(self, key: str) -> bytes | None:
        series = self._has().get("values", {}).get(key)
        if series is not None:
            return bytes.fromhex(self._at(series))
        if key == "#KEY":
            return self.count().to_bytes(4, "big")
        if key in self._info:
            raise self._recording.not_held("smc", "the value of the key " + key)
        return None


class _ReplayedHID(_Replayed):
    source = "hid"

    def temperatures(self) -> list[tuple[str, int, float | None]]:
        out = []
        for service in (self._part or {"services": ()})["services"]:
            p = {key: _plain(value) for key, value in service["properties"].items()}
            if (p.get("PrimaryUsagePage", 0xFF00), p.get("PrimaryUsage", 5)) == (0xFF00, 5):
                value = service.get("value")
                celsius = None if value is None else float(self._at(value))
                out.append((str(p.get("Product") or ""), _whole(p.get("LocationID")), celsius))
        return out


def _whole(value: Any) -> int:
    return value if type(value) is int else 0


class _ReplayedSysctl(_Replayed, _Sysctl):
    """Raw bytes from the file; text and numbers as natively."""
    source = "sysctl"

    def raw(self, name: str) -> bytes | None:
        return self._recording.sysctl(name, self._clock.current())


class _ReplayedMach(_Replayed):
    source = "mach"

    def _has(self) -> Any:
        if self._part is None:
            raise self._recording.not_held("mach", "it")
        return self._part

    def vm_statistics(self) -> bytes:
        return bytes.fromhex(self._at(self._has()["vm_statistics64"]))

    def cpu_ticks(self) -> bytes:
        series = self._has()["cpu_load"]
        return self._recording.carried(series, self._clock.current(), range(0, len(series[0][1]) // 2, 4), 4)

    def page_size(self) -> int:
        return int(self._has()["page_size"])

    def timebase(self) -> tuple[int, int]:
        numer, denom = self._recording.data["time"]["timebase"]
        return numer, denom


class _ReplayedLibproc(_Replayed):
    source = "libproc"

    def __init__(self, recording: _Recording, clock: _ReplayClock) -> None:
        _Replayed.__init__(self, recording, clock)
        self._processes = {p["pid"]: p for p in (self._part or {}).get("processes", ())}

    def pids(self) -> list[int]:
        return list(self._processes)

    def own_pid(self) -> int:
        return -1       # this process is not one of the recorded ones

    def path(self, pid: int) -> str | None:
        value = self._processes.get(pid, {}).get("path")
        return None if value is None else str(value)

    def short_info(self, pid: int) -> bytes | None:
        series = self._processes.get(pid, {}).get("short_info")
        return None if series is None else bytes.fromhex(self._at(series))

    def task_info(self, pid: int) -> bytes:
        return self._structure(pid, "task_info", _TASK_COUNTERS)

    def rusage(self, pid: int) -> bytes:
        return self._structure(pid, "rusage", _RUSAGE_COUNTERS)

    def _structure(self, pid: int, key: str, counters: tuple[int, ...]) -> bytes:
        if pid not in self._processes:
            raise _fail(ERROR_NOT_FOUND, None, "libproc", "no process %d" % pid)
        series = self._processes[pid].get(key)
        if series is None:
            raise _fail(ERROR_NO_PERMISSION, REASON_PERMISSION, "libproc")
        return self._recording.carried(series, self._clock.current(), counters)


class _ReplayedNotify(_Replayed):
    source = "notify"

    def state(self, name: str) -> int:
        series = (self._part or {}).get(name)
        if series is None:
            raise self._recording.not_held("notify", name)
        return int(self._at(series))


class _ReplayedPower(_Replayed):
    source = "power"

    def providing(self) -> str | None:
        series = (self._part or {}).get("providing")
        return None if series is None else self._at(series)


class _ReplayedMetal(_Replayed):
    source = "metal"

    def device(self, registry_id: int | None = None) -> dict[str, Any]:
        part = self._part or {}
        devices = part.get("devices", ())
        found = [d for d in devices if len(devices) == 1 or registry_id in (None, d["registryID"])]
        if not found and devices and part.get("default") is not None:
            found = [devices[part["default"]]]
        if not found:
            raise _fail(ERROR_NOT_READY, REASON_SOURCE_FAILED, "metal", "Metal gives no device to this process")
        out = {key: found[0].get(key) for key in _METAL_ANSWERS}
        out["families"] = tuple(found[0].get("supportsFamily:", ()))
        return out


_METAL_ANSWERS = ("name", "registryID", "recommendedMaxWorkingSetSize", "maxBufferLength", "hasUnifiedMemory",
                  "maxThreadgroupMemoryLength", "architecture")


class _RecordedMachine:
    """A Mac answered from a recording: the same sources, the same plain results and errors as the live one."""

    def __init__(self, path: Any, speed: float = 1.0, loop: bool = True, monotonic: Callable[[], float] | None = None,
                 sleep: Callable[[float], None] | None = None) -> None:
        recording = path if isinstance(path, _Recording) else _Recording.load(path, bool(loop))
        self.recording, self.name = recording, recording.path
        self.calls: dict[str, int] = {}
        self.clock = clock = _ReplayClock(recording, speed, monotonic, sleep)
        self.registry, self.ioreport = _ReplayedRegistry(recording, clock), _ReplayedIOReport(recording, clock)
        self.smc, self.hid = _ReplayedSMC(recording, clock), _ReplayedHID(recording, clock)
        self.sysctl, self.mach = _ReplayedSysctl(recording, clock), _ReplayedMach(recording, clock)
        self.libproc, self.notify = _ReplayedLibproc(recording, clock), _ReplayedNotify(recording, clock)
        self.power, self.metal = _ReplayedPower(recording, clock), _ReplayedMetal(recording, clock)

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
    "hw.model", "hw.memsize", "hw.ncpu", "hw.physicalcpu", "hw.logicalcpu", "hw.pagesize", "hw.tbfrequency", "hw.cputype",
    "hw.cpufamily", "hw.packages", "hw.optional.arm64", "hw.nperflevels", "machdep.cpu.brand_string",
    "kern.osproductversion", "kern.osversion", "kern.osrelease", "kern.hv_vmm_present", "kern.boottime",
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
    if isinstance(value, (list, tuple)):
        return ["a", [item for item in map(_as_cf, value) if item is not None]]
    if isinstance(value, dict):
        pairs = [(_printable(str(key)), _as_cf(item)) for key, item in value.items()]
        return ["d", {key: item for key, item in pairs if item is not None}]
    if isinstance(value, bytes):
        return ["x", value.hex()]
    if isinstance(value, str):
        return ["s", _printable(value)]
    if isinstance(value, bool):
        return ["b", value]
    if isinstance(value, int):
        return ["i64", _signed(value)]
    return ["f64", value] if isinstance(value, float) and abs(value) <= 1e300 else None


def _numbers(value: Any, more: tuple[type, ...] = ()) -> Any:
    """What is a number, or in a list or dictionary of numbers; text is an opening for somebody's name."""
    if isinstance(value, dict):
        return {k: v for k, v in value.items() if isinstance(v, (int, float) + more)}
    if isinstance(value, list):
        return [v for v in value if isinstance(v, (int, float))]
    return value if isinstance(value, (int, float)) else None


def _configuration(value: Any) -> Any:
    """GPUConfigurationVariable: numbers, core_mask_list, and letters like gpu_var."""
    items = _numbers(value, (list, str)) or {}
    return {k: _numbers(v) if isinstance(v, list) else v for k, v in items.items() if not isinstance(v, str) or len(v) < 3}


def _usage(value: Any) -> Any:
    keys = ("API", "lastSubmittedTime", "accumulatedGPUTime")
    items = [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
    return [{k: v for k, v in item.items() if k in keys and isinstance(v, (int, str))} for item in items]


def _short(value: Any) -> Any:
    """Numbers, tables, and names of the hardware."""
    return value if isinstance(value, (int, float, bytes)) or (isinstance(value, str) and len(value) <= 64) else None


_RECORDED_AS: dict[str, Callable[[Any], Any]] = {
    "PerformanceStatistics": _numbers, "IOPowerManagement": _numbers, "GPUConfigurationVariable": _configuration,
    "AppUsage": _usage, **dict.fromkeys(_RECORDED_NUMBERS, _numbers)}


def _creator(text: Any) -> tuple[int, str] | None:
    """("pid 357, WindowServer") -> (357, "WindowServer")."""
    number, comma, name = text[4:].partition(", ") if isinstance(text, str) and text[:4] == "pid " else ("", "", "")
    return (int(number), name) if comma and number.isdigit() and len(number) < 10 else None


def _is_system_program(name: str, path: str | None) -> bool:
    if path is None:
        return name in _SYSTEM_PROGRAMS or name.startswith("com.apple.")
    return path.startswith(_SYSTEM_FOLDERS) and bool(name) and os.path.basename(path).startswith(name)


class _Recorder:
    """Takes frames, each everything that is permitted at one instant, under keys like ("smc", "Tg05"); then writes down
    for each key when it changed."""

    def __init__(self, machine: Any, names: bool) -> None:
        self.machine, self.names = machine, names
        self.frames: list[dict[Any, Any]] = []
        self.nodes: dict[int, dict[str, Any]] = {}          # by registry id
        self.entries: list[tuple[Any, int, tuple[str, ...]]] = []
        self.clients: dict[int, tuple[int, str]] = {}       # by registry id
        self.paths: dict[int, str | None] = {}              # by pid
        self.groups: dict[str, str] = {}
        self.subscriptions: list[Any] = []
        self._find_entries()
        for group in _RECORDED_GROUPS:
            self._subscribe(group)
        count = _asked(machine.smc.count) or 0
        keys = [_asked(machine.smc.key_at, i) for i in range(min(count, 20000))]
        infos = [(key, _asked(machine.smc.info, key)) for key in keys if key and len(key) == 4 and key.isprintable()]
        self.smc_keys = [[key, info[1], info[0]] for key, info in infos
                         if info and len(info[1]) == 4 and info[1].isprintable() and 0 <= info[0] <= 128]
        self.smc_values = [key for key, kind, _ in self.smc_keys
                           if key.startswith(_RECORDED_SMC_KEYS) and kind in _RECORDED_SMC_TYPES]

    # -- what there is --

    def _find_entries(self) -> None:
        registry = self.machine.registry
        for kind in ("IOAccelerator", "H11ANEIn", "AppleSmartBattery"):
            for entry in _asked(registry.services, kind) or ():
                self._add_entry(entry, kind, None, [kind])
        for name in ("pmgr", "sgx") + tuple("cpu%d" % n for n in range(64)):
            for entry in _asked(registry.named, name) or ():
                self._add_entry(entry, "cpu" if name[:3] == "cpu" else name, name, [])

    def _add_entry(self, entry: Any, kind: str, name: str | None, conforms: list[str], parent: int | None = None) -> None:
        registry = self.machine.registry
        number, class_name = _asked(registry.identity, entry), _asked(registry.class_name, entry)
        if number is None or class_name is None or number in self.nodes:
            return
        self.nodes[number] = {"id": number, "class": _printable(class_name), "name": name or _printable(class_name),
                              "conforms": [c for c in conforms if c != class_name], "parent": parent}
        self.entries.append((entry, number, _RECORDED_PROPERTIES[kind]))

    def _subscribe(self, group: str) -> None:
        try:
            made = self.machine.ioreport.subscribe([(group, None)], lambda *channel: True)
        except NVMLError_NotSupported:
            self.groups[group] = "refuses"
            return
        except AppleGPUError:
            return
        if made is not None:
            self.groups[group] = "ok"
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
        for i, subscription in enumerate(self.subscriptions):
            rows = _asked(subscription.sample) or [None] * len(subscription.channels)
            frame.update((("row", i, k), row and [row[0], *row[1]]) for k, row in enumerate(rows))
        machine, clock = self.machine, self.machine.clock
        up, awake = clock.now()     # after the counters, whose stamps are not later
        frame["up"], frame["unix"], frame["slept"] = up, clock.unix(), (awake - up) // 1000000 * 1000000
        frame["ticks"] = -(-up * clock.ticks_per_second() // 1000000000)
        self._registry(frame)
        for key in self.smc_values:
            frame["smc", key] = _hex(_asked(machine.smc.read, key))
        for name in _RECORDED_SYSCTLS:
            frame["sysctl", name] = _hex(_asked(machine.sysctl.raw, name))
        frame["vm"], frame["cpu"] = _hex(_asked(machine.mach.vm_statistics)), _hex(_asked(machine.mach.cpu_ticks))
        frame["thermal"] = _asked(machine.notify.state, _THERMAL_NOTIFICATION)
        frame["power"] = _asked(machine.power.providing)
        seen: dict[Any, int] = {}
        for product, location, celsius in _asked(machine.hid.temperatures) or ():       # names may repeat
            seen[product, location] = seen.get((product, location), 0) + 1
            frame["hid", product, location, seen[product, location]] = celsius
        return frame

    def _registry(self, frame: dict[Any, Any]) -> None:
        registry = self.machine.registry
        for entry, number, keys in list(self.entries):
            if keys is _RECORDED_PROPERTIES["IOAccelerator"]:
                for child in _asked(registry.children, entry) or ():
                    if _asked(registry.get, child, "IOUserClientCreator"):
                        self._add_entry(child, "UserClient", None, [], number)
        for entry, number, keys in self.entries:
            if keys is _RECORDED_PROPERTIES["pmgr"] and self.frames:
                continue        # a hundred tables that do not change
            for key in keys:
                value = _asked(registry.get, entry, key)
                if key == "IOUserClientCreator":
                    value = self._client(number, value)
                value = _RECORDED_AS.get(key, _short)(value)
                frame["registry", number, key] = None if value is None else _as_cf(value)
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
        short = _asked(libproc.short_info, pid)
        if short is not None and len(short) >= 32:      # proc_bsdshortinfo: name @16, 16 bytes
            name = self._shown(pid, short[16:32].split(b"\0")[0].decode("utf-8", "replace"))
            short = short[:16] + name.encode("utf-8", "replace")[:15].ljust(16, b"\0") + short[32:]
        usage = _asked(libproc.rusage, pid)
        frame["libproc", pid, "short_info"] = _hex(short)
        frame["libproc", pid, "task_info"] = _hex(_asked(libproc.task_info, pid))
        frame["libproc", pid, "rusage"] = None if usage is None else _hex(bytes(16) + usage[16:])   # ri_uuid @0

    # -- the file --

    def text(self) -> str:
        """Every second frame goes until it is small enough."""
        import json
        while True:
            text = json.dumps(self._file(), separators=(",", ":"), allow_nan=False)
            if len(text) <= _RECORDING_AIM or len(self.frames) < 3:
                return text
            self.frames = self.frames[::2]

    def _series(self, *key: Any) -> list[list[Any]] | None:
        """[instant, value] where the value changed; None when there never was one. What is missing meanwhile holds."""
        out: list[list[Any]] = []
        for i, frame in enumerate(self.frames):
            value = frame.get(key if len(key) > 1 else key[0])
            if value is not None and (not out or out[-1][1] != value):
                out.append([i if out else 0, value])
        return out or None

    def _table(self, part: str, names: Iterable[str]) -> dict[str, Any]:
        pairs = [(name, self._series(part, name)) for name in names]
        return {name: series for name, series in pairs if series}

    def _file(self) -> dict[str, Any]:
        machine, frames = self.machine, self.frames
        first, slept = frames[0], [frame["slept"] for frame in frames]
        brand, version = (_printable(_asked(machine.sysctl.text, name) or "unknown")
                          for name in ("machdep.cpu.brand_string", "kern.osproductversion"))
        vm, cpu, page = self._series("vm"), self._series("cpu"), _asked(machine.mach.page_size)
        thermal, power = self._series("thermal"), self._series("power")
        origin = {"kind": "observed" if machine.name == "live" else "composed",
                  "from": "the recorder of pyapplegpu" + ("" if machine.name == "live" else ", replaying another recording")}
        return {
            "format": _RECORDING_FORMAT, "title": "%s, macOS %s" % (brand, version), "macos": version, "chip": brand,
            "provenance": {part: origin for part in _RECORDING_PARTS},
            "time": {"timebase": list(_asked(machine.mach.timebase) or (125, 3)), "unix": round(first["unix"], 3),
                     "ticks": [frame["ticks"] for frame in frames],
                     "slept": [max(slept[:i + 1]) for i in range(len(slept))]},
            "registry": [self._node(number) for _, number, _ in self.entries],
            "ioreport": {"groups": self.groups, "channels": self._channels()},
            "smc": {"keys": self.smc_keys, "values": self._table("smc", self.smc_values)} if self.smc_keys else None,
            "hid": self._sensors(),
            "sysctl": self._table("sysctl", _RECORDED_SYSCTLS),
            "mach": {"page_size": page, "vm_statistics64": vm, "cpu_load": cpu} if page and vm and cpu else None,
            "libproc": {"processes": [self._listed(pid) for pid in self.paths]},
            "notify": {_THERMAL_NOTIFICATION: thermal} if thermal else None,
            "power": {"providing": power} if power else None,
            "metal": self._metal(), "expected": [],
        }

    def _node(self, number: int) -> dict[str, Any]:
        keys = [keys for _, n, keys in self.entries if n == number][0]
        found = [(key, self._series("registry", number, key)) for key in keys]
        return dict(self.nodes[number], properties={k: s[0][1] for k, s in found if s and len(s) == 1},
                    series={k: s for k, s in found if s and len(s) > 1})

    def _channels(self) -> list[dict[str, Any]]:
        out = []
        for i, subscription in enumerate(self.subscriptions):
            for k, channel in enumerate(subscription.channels):
                rows = [frame["row", i, k] for frame in self.frames]
                while len(rows) > 1 and rows[-1] == rows[-2]:       # the last row goes on
                    rows.pop()
                out.append(_channel_entry(channel, rows))
        return out

    def _sensors(self) -> dict[str, Any] | None:
        keys: dict[Any, None] = {}
        for frame in self.frames:
            keys.update((key, None) for key in frame if key[0] == "hid")
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


def _hex(data: bytes | None) -> str | None:
    return None if data is None else data.hex()


def _channel_entry(channel: Any, rows: list[Any]) -> dict[str, Any]:
    """Where a source does not tell the type and unit words they are made of what it tells."""
    elements = max([len(row) - 1 for row in rows if row] or [1])
    kind = getattr(channel, "type_word", 0) or (elements << 32 | 2 << 16 | channel.format)
    unit = getattr(channel, "unit_word", 0) or _UNIT_WORDS.get(channel.unit, 0)
    out = {"driver": "0x%x" % channel.driver, "channel": "0x%x" % channel.channel, "group": _printable(channel.group),
           "subgroup": _printable(channel.subgroup), "name": _printable(channel.name), "type": "0x%x" % kind,
           "unit": "0x%x" % unit, "rows": rows}
    return dict(out, states=[_printable(state) for state in channel.states]) if channel.states else out


def _write_whole(path: str, text: str) -> None:
    """All of it or nothing: a temporary file beside it, then its name."""
    temporary = "%s.%d.tmp" % (path, os.getpid())
    try:
        try:
            with open(temporary, "xb") as file:
                file.write(text.encode("ascii") + b"\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            if os.path.exists(temporary):
                os.unlink(temporary)
    except (OSError, ValueError) as error:      # ValueError: a NUL in the path
        raise _fail(ERROR_OPERATING_SYSTEM, REASON_SOURCE_FAILED, "recording",
                    "cannot write %s: %s" % (path, getattr(error, "strerror", None) or error)) from None


def _record(machine: Any, path: Any, seconds: float = 3.0, interval: float = 0.25, names: bool = False) -> None:
    """Writes what a machine, live or recorded, says during `seconds` to a file that can be replayed."""
    import json
    for name, value, low, high in (("seconds", seconds, 0, 3600), ("interval", interval, 0.01, 3600)):
        if type(value) not in (int, float) or not low <= value <= high:
            raise _bad("%s must be from %s to %s, not %r" % (name, low, high, value))
    if seconds > 2000 * interval:
        raise _bad("a recording of more than 2000 samples is too long; pass a longer interval")
    try:
        where = os.fsdecode(path)
    except TypeError:
        raise _bad("a recording is named by its path, not by %.64r" % (path,)) from None
    recorder = _Recorder(machine, names)
    recorder.run(seconds, interval)
    text = recorder.text()
    _Recording(json.loads(text), where)     # what cannot be read back is not written
    _write_whole(where, text)


# ======================================================================================================================
# decoders
# ======================================================================================================================


# ======================================================================================================================
# chips
# ======================================================================================================================


# ======================================================================================================================
# engine
# ======================================================================================================================


# ======================================================================================================================
# API
# ======================================================================================================================


# ======================================================================================================================
# Metal
# ======================================================================================================================


# ======================================================================================================================
# NVML names
# ======================================================================================================================


# ======================================================================================================================
# main
# ======================================================================================================================
