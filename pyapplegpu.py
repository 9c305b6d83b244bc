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


# ======================================================================================================================
# bridge
# ======================================================================================================================


# ======================================================================================================================
# sources
# ======================================================================================================================


# ======================================================================================================================
# recording
# ======================================================================================================================


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
