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

# What NVIDIA programs call: names, shapes and numbers of nvidia-ml-py, every figure from the functions above, and
# NVMLError_NotSupported for what Apple silicon has not. Opt in per process: `import pyapplegpu as pynvml`, or
# `sys.modules["pynvml"] = pyapplegpu` before the client is imported. Shapes that cannot hold a gap: utilization's
# `.memory` is 0 (Apple has no such counter) and memory v2's `.reserved` is 0.

NVML_SUCCESS = 0
NVML_ERROR_UNINITIALIZED = 1
NVML_ERROR_INVALID_ARGUMENT = 2
NVML_ERROR_NOT_SUPPORTED = 3
NVML_ERROR_NO_PERMISSION = 4
NVML_ERROR_ALREADY_INITIALIZED = 5
NVML_ERROR_NOT_FOUND = 6
NVML_ERROR_INSUFFICIENT_SIZE = 7
NVML_ERROR_INSUFFICIENT_POWER = 8
NVML_ERROR_DRIVER_NOT_LOADED = 9
NVML_ERROR_TIMEOUT = 10
NVML_ERROR_IRQ_ISSUE = 11
NVML_ERROR_LIBRARY_NOT_FOUND = 12
NVML_ERROR_FUNCTION_NOT_FOUND = 13
NVML_ERROR_CORRUPTED_INFOROM = 14
NVML_ERROR_GPU_IS_LOST = 15
NVML_ERROR_RESET_REQUIRED = 16
NVML_ERROR_OPERATING_SYSTEM = 17
NVML_ERROR_LIB_RM_VERSION_MISMATCH = 18
NVML_ERROR_MEMORY = 20
NVML_ERROR_NO_DATA = 21
NVML_ERROR_ARGUMENT_VERSION_MISMATCH = 25
NVML_ERROR_NOT_READY = 27
NVML_ERROR_UNKNOWN = 999
NVML_BRAND_UNKNOWN = 0
NVML_BRAND_NVIDIA_RTX = 13
NVML_DEVICE_ARCH_VOLTA = 5
NVML_DEVICE_ARCH_UNKNOWN = 0xFFFFFFFF
NVML_TEMPERATURE_GPU = 0
NVML_CLOCK_GRAPHICS = 0
NVML_CLOCK_SM = 1
NVML_CLOCK_MEM = 2
NVML_CLOCK_VIDEO = 3
NVML_CLOCK_ID_CURRENT = 0
NVML_FEATURE_DISABLED = 0
NVML_FEATURE_ENABLED = 1
NVML_DEVICE_MIG_DISABLE = 0
NVML_DEVICE_MIG_ENABLE = 1
NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION = 83
NVML_FI_DEV_NVLINK_LINK_COUNT = 91
NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX = 138
NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX = 139
NVML_FI_DEV_NVLINK_THROUGHPUT_RAW_TX = 140
NVML_FI_DEV_NVLINK_THROUGHPUT_RAW_RX = 141
NVML_FI_DEV_POWER_AVERAGE = 185
NVML_FI_DEV_POWER_INSTANT = 186
NVML_POWER_SCOPE_GPU = 0
NVML_POWER_SCOPE_MODULE = 1
NVML_POWER_SCOPE_MEMORY = 2
NVML_POWER_SOURCE_AC = 0
NVML_POWER_SOURCE_BATTERY = 1
NVML_DRIVER_WDDM = 0
NVML_DRIVER_WDM = 1
NVML_MEMORY_ERROR_TYPE_UNCORRECTED = 1
NVML_VOLATILE_ECC = 0
NVML_COMPUTEMODE_DEFAULT = 0
NVML_COMPUTEMODE_EXCLUSIVE_THREAD = 1
NVML_COMPUTEMODE_PROHIBITED = 2
NVML_COMPUTEMODE_EXCLUSIVE_PROCESS = 3
NVML_PCIE_UTIL_TX_BYTES = 0
NVML_PCIE_UTIL_RX_BYTES = 1
NVML_NVLINK_MAX_LINKS = 36
NVML_VALUE_TYPE_UNSIGNED_INT = 1
NVML_VALUE_TYPE_UNSIGNED_LONG_LONG = 3
NVML_VALUE_NOT_AVAILABLE_uint = ctypes.c_uint(-1)
NVML_VALUE_NOT_AVAILABLE_ulonglong = ctypes.c_ulonglong(-1)
NVML_P2P_CAPS_INDEX_READ = 0
NVML_P2P_CAPS_INDEX_WRITE = 1
NVML_P2P_CAPS_INDEX_NVLINK = 2
NVML_P2P_STATUS_OK = 0
NVML_TOPOLOGY_INTERNAL = 0
NVML_TOPOLOGY_SINGLE = 10
NVML_TOPOLOGY_MULTIPLE = 20
NVML_TOPOLOGY_HOSTBRIDGE = 30
NVML_TOPOLOGY_NODE = 40
NVML_TOPOLOGY_SYSTEM = 50
nvmlMemory_v2 = 0x02000028
nvmlTemperature_v1 = 0x0100000C

# All other constants of nvidia-ml-py 13.615: "PREFIX: NAME NAME=5 NAME", a name without a number follows its neighbour.
_NVML_CONSTANTS = """
NVML_: BRIDGE_CHIP_PLX C2C_POWER_STATE_FULL_POWER=0 CPER_CURSOR_HANDLE_INIT=0 DETACH_GPU_KEEP=0
EVENT_DATA_TYPE_NVML_EVENT=0 HOST_VGPU_MODE_NON_SRIOV=0 LED_COLOR_GREEN=0 SINGLE_BIT_ECC=0 TOTAL_POWER_SAMPLES=0
AGGREGATE_ECC BRIDGE_CHIP_BRO4=1 C2C_POWER_STATE_LOW_POWER=1 CPER_ACCESS_TYPE_GPU=1 DETACH_GPU_REMOVE=1 DEV_CAP_EGM=1
DOUBLE_BIT_ECC=1 EVENT_DATA_TYPE_GPU_OPERATIONAL_EVENT=1 HOST_VGPU_MODE_SRIOV=1 LED_COLOR_AMBER=1 DRIVER_MCDM
ECC_COUNTER_TYPE_COUNT=2 ECC_ERROR_TYPE_COUNT=2 ENC_UTILIZATION_SAMPLES SUPPORTED_VGPU_SCHEDULER_POLICY_COUNT=3
COMPUTEMODE_COUNT DEC_UTILIZATION_SAMPLES=4 PROCESSOR_CLK_SAMPLES MODULE_POWER_SAMPLES=7 JPG_UTILIZATION_SAMPLES
OFA_UTILIZATION_SAMPLES SAMPLINGTYPE_COUNT TOPOLOGY_CPU=40 GSP_FIRMWARE_VERSION_BUF_SIZE=64
SYSTEM_DRIVER_VERSION_BUFFER_SIZE=80 SYSTEM_NVML_VERSION_BUFFER_SIZE=80 SCHEDULER_SW_MAX_LOG_ENTRIES=200
WORKLOAD_POWER_MAX_PROFILES=255 NVML_ADAPTIVE_: CLOCKING_INFO_STATUS_DISABLED CLOCKING_INFO_STATUS_ENABLED
NVML_AFFINITY_: SCOPE_NODE SCOPE_SOCKET NVML_BRAND_: QUADRO=1 TESLA NVS GRID GEFORCE TITAN QUADRO_RTX=12 NVIDIA=14
GEFORCE_RTX TITAN_RTX COUNT=20 NVML_BRAND_NVIDIA_: VAPPS=7 VPC VCS VWS CLOUD_GAMING VGAMING=11 DLA=17 VGAMEDEV NPU
NVML_BUS_TYPE_: UNKNOWN PCI PCIE FPCI AGP NVML_CC_: ACCEPTING_CLIENT_REQUESTS_FALSE CEC_ATTESTATION_REPORT_NOT_PRESENT=0
ACCEPTING_CLIENT_REQUESTS_TRUE CEC_ATTESTATION_REPORT_PRESENT=1 GPU_CEC_NONCE_SIZE=32
KEY_ROTATION_THRESH_ATTACKER_ADVANTAGE_MIN=50 KEY_ROTATION_THRESH_ATTACKER_ADVANTAGE_MAX=65
GPU_CEC_ATTESTATION_REPORT_SIZE=0x1000 GPU_ATTESTATION_REPORT_SIZE=0x2000 NVML_CC_SYSTEM_: CPU_CAPS_NONE
DEVTOOLS_MODE_OFF=0 FEATURE_DISABLED=0 GPUS_CC_NOT_CAPABLE=0 CPU_CAPS_AMD_SEV DEVTOOLS_MODE_ON=1 FEATURE_ENABLED=1
GPUS_CC_CAPABLE=1 CPU_CAPS_INTEL_TDX CPU_CAPS_AMD_SEV_SNP CPU_CAPS_AMD_SNP_VTOM NVML_CC_SYSTEM_ENVIRONMENT_: UNAVAILABLE
SIM PROD NVML_CC_SYSTEM_MULTIGPU_: NONE PROTECTED_PCIE NVLE NVML_CLOCK_: ID_APP_CLOCK_TARGET=1 ID_APP_CLOCK_DEFAULT
ID_CUSTOMER_BOOST_MAX COUNT ID_COUNT=4 LIMIT_ID_RANGE_START=0xffffff00 LIMIT_ID_TDP LIMIT_ID_UNLIMITED
NVML_COMPUTE_INSTANCE_: ENGINE_PROFILE_SHARED ENGINE_PROFILE_COUNT ID_ANY=0xffffffff NVML_COMPUTE_INSTANCE_PROFILE_:
1_SLICE 2_SLICE 3_SLICE 4_SLICE 7_SLICE 8_SLICE 6_SLICE 1_SLICE_REV1 7_SLICE_NVL COUNT NVML_DEVICE_:
INFOROM_VERSION_BUFFER_SIZE=16 PCI_BUS_ID_BUFFER_V2_SIZE=16 GPU_FRU_PART_NUMBER_BUFFER_SIZE=20 SERIAL_BUFFER_SIZE=30
PCI_BUS_ID_BUFFER_SIZE=32 VBIOS_VERSION_BUFFER_SIZE=32 HOSTNAME_BUFFER_SIZE=64 NAME_BUFFER_SIZE=64
GPU_PART_NUMBER_BUFFER_SIZE=80 PART_NUMBER_BUFFER_SIZE=80 NAME_V2_BUFFER_SIZE=96 MEMORY_LIMIT_MAX=0xffffffffffffffff
NVML_DEVICE_ADDRESSING_: MODE_NONE MODE_HMM MODE_ATS NVML_DEVICE_ARCH_: KEPLER=2 MAXWELL PASCAL TURING=6 AMPERE ADA
HOPPER BLACKWELL DLA DLA2 RUBIN NPU3=15 NVML_DEVICE_UUID_: BINARY_LEN=16 ASCII_LEN=41 BUFFER_SIZE=80 V2_BUFFER_SIZE=96
NVML_DEVICE_VGPU_CAP_: FRACTIONAL_MULTI_VGPU HETEROGENEOUS_TIMESLICE_PROFILES HETEROGENEOUS_TIMESLICE_SIZES
READ_DEVICE_BUFFER_BW WRITE_DEVICE_BUFFER_BW DEVICE_STREAMING MINI_QUARTER_GPU COMPUTE_MEDIA_ENGINE_GPU WARM_UPDATE
HOMOGENEOUS_PLACEMENTS MIG_TIMESLICING_SUPPORTED MIG_TIMESLICING_ENABLED COUNT NVML_ENCODER_QUERY_: H264 HEVC AV1
UNKNOWN=255 NVML_ERROR_: IN_USE=19 VGPU_ECC_NOT_SUPPORTED=22 INSUFFICIENT_RESOURCES FREQ_NOT_SUPPORTED DEPRECATED=26
GPU_NOT_FOUND=28 INVALID_STATE RESET_TYPE_NOT_SUPPORTED NVML_FAN_: NORMAL POLICY_TEMPERATURE_CONTINOUS_SW=0 FAILED
POLICY_MANUAL=1 NVML_FBC_SESSION_TYPE_: UNKNOWN TOSYS CUDA VID HWENC NVML_FI_: MAX=308 NVML_FI_DEV_: MEMORY_TEMP=82
NVSWITCH_CONNECTED_LINK_COUNT=147 IS_RESETLESS_MIG_SUPPORTED=184 ENERGY=191
IS_MIG_MODE_INDEPENDENT_MIG_QUERY_CAPABLE=199 RESET_STATUS=226 DRAIN_AND_RESET_STATUS GET_GPU_RECOVERY_ACTION=230
EDPP_MULTIPLIER=274 MMA_STALL_PERCENT=297 MCLK_SWITCH_TYPE MCLK_MIN_SWITCH_INTERVAL_MILLISECONDS
ACTIVE_BANK_REMAPPINGS=303 INACTIVE_BANK_REMAPPINGS BANK_REMAPPER_HISTOGRAM_MAX BANK_REMAPPER_HISTOGRAM_NONE
PENDING_BANK_REMAPPING NVML_FI_DEV_C2C_LINK_: COUNT=170 GET_STATUS GET_MAX_BW ERROR_INTR=231 ERROR_REPLAY
ERROR_REPLAY_B2B POWER_STATE NVML_FI_DEV_CLOCKS_EVENT_REASON_: SW_POWER_CAP=74 SYNC_BOOST=76 SW_THERM_SLOWDOWN=269
HW_THERM_SLOWDOWN HW_POWER_BRAKE_SLOWDOWN NVML_FI_DEV_ECC_: CURRENT=1 PENDING NVML_FI_DEV_ECC_DBE_AGG_: TOTAL=6 L1=19
L2=21 DEV=23 REG=25 TEX=27 CBU NVML_FI_DEV_ECC_DBE_VOL_: TOTAL=4 L1=8 L2=10 DEV=12 REG=14 TEX=16 CBU
NVML_FI_DEV_ECC_SBE_: VOL_TOTAL=3 AGG_TOTAL=5 VOL_L1=7 VOL_L2=9 VOL_DEV=11 VOL_REG=13 VOL_TEX=15 AGG_L1=18 AGG_L2=20
AGG_DEV=22 AGG_REG=24 AGG_TEX=26 NVML_FI_DEV_NVLINK_: REMOTE_NVLINK_ID=146 ERROR_DL_REPLAY=161 ERROR_DL_RECOVERY
ERROR_DL_CRC PLR_XMIT_BLOCKS=294 PLR_XMIT_RETRY_BLOCKS NVML_FI_DEV_NVLINK_BANDWIDTH_C0_: L0=60 L1 L2 L3 L4 L5 TOTAL
L6=120 L7 L8 L9 L10 L11 NVML_FI_DEV_NVLINK_BANDWIDTH_C1_: L0=67 L1 L2 L3 L4 L5 TOTAL L6=126 L7 L8 L9 L10 L11
NVML_FI_DEV_NVLINK_COUNT_: XMIT_PACKETS=201 XMIT_BYTES RCV_PACKETS RCV_BYTES VL15_DROPPED MALFORMED_PACKET_ERRORS
BUFFER_OVERRUN_ERRORS RCV_ERRORS RCV_REMOTE_ERRORS RCV_GENERAL_ERRORS LOCAL_LINK_INTEGRITY_ERRORS XMIT_DISCARDS
LINK_RECOVERY_SUCCESSFUL_EVENTS LINK_RECOVERY_FAILED_EVENTS LINK_RECOVERY_EVENTS EFFECTIVE_ERRORS=219 EFFECTIVE_BER
SYMBOL_ERRORS SYMBOL_BER NVML_FI_DEV_NVLINK_COUNT_FEC_HISTORY_: 0=235 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15
NVML_FI_DEV_NVLINK_COUNT_RAW_: BER_LANE0=216 BER_LANE1 BER ERRORS_LANE0=289 ERRORS_LANE1 BER_LANE0_V2 BER_LANE1_V2
BER_V2 NVML_FI_DEV_NVLINK_CRC_DATA_ERROR_COUNT_: L0=39 L1 L2 L3 L4 L5 TOTAL L6=102 L7 L8 L9 L10 L11
NVML_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_: L0=32 L1 L2 L3 L4 L5 TOTAL L6=96 L7 L8 L9 L10 L11
NVML_FI_DEV_NVLINK_ECC_DATA_ERROR_COUNT_: L0=148 L1 L2 L3 L4 L5 L6 L7 L8 L9 L10 L11 TOTAL NVML_FI_DEV_NVLINK_GET_:
SPEED=164 STATE VERSION DATA_RATE=296 NVML_FI_DEV_NVLINK_GET_POWER_: STATE=167 THRESHOLD THRESHOLD_MAX=200
THRESHOLD_MIN=223 THRESHOLD_UNITS THRESHOLD_SUPPORTED NVML_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_: L0=53 L1 L2 L3 L4 L5
TOTAL L6=114 L7 L8 L9 L10 L11 NVML_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_: L0=46 L1 L2 L3 L4 L5 TOTAL L6=108 L7 L8 L9 L10 L11
NVML_FI_DEV_NVLINK_SPEED_MBPS_: L0=84 L1 L2 L3 L4 L5 COMMON L6=132 L7 L8 L9 L10 L11 NVML_FI_DEV_PCIE_: REPLAY_COUNTER=94
REPLAY_ROLLOVER_COUNTER L0_TO_RECOVERY_COUNTER=169 OUTBOUND_ATOMICS_MASK=228 INBOUND_ATOMICS_MASK
NVML_FI_DEV_PCIE_COUNT_: CORRECTABLE_ERRORS=173 NAKS_RECEIVED RECEIVER_ERROR BAD_TLP NAKS_SENT BAD_DLLP NON_FATAL_ERROR
FATAL_ERROR UNSUPPORTED_REQ LCRC_ERROR LANE_ERROR TX_BYTES=197 RX_BYTES NVML_FI_DEV_PERF_POLICY_: POWER=74 THERMAL
SYNC_BOOST BOARD_LIMIT LOW_UTILIZATION RELIABILITY TOTAL_APP_CLOCKS TOTAL_BASE_CLOCKS NVML_FI_DEV_POWER_: MIN_LIMIT=187
MAX_LIMIT DEFAULT_LIMIT CURRENT_LIMIT REQUESTED_LIMIT=192 SYNC_BALANCING_FREQ=272 SYNC_BALANCING_AF
NVML_FI_DEV_REMAPPED_: COR=142 UNC PENDING FAILURE ROWS_COR_INACTIVE=301 ROWS_UNC_INACTIVE NVML_FI_DEV_RETIRED_: SBE=29
DBE PENDING PENDING_SBE=92 PENDING_DBE NVML_FI_DEV_TEMPERATURE_: SHUTDOWN_TLIMIT=193 SLOWDOWN_TLIMIT MEM_MAX_TLIMIT
GPU_MAX_TLIMIT NVML_FI_PWR_SMOOTHING_: ENABLED=251 PRIV_LVL IMM_RAMP_DOWN_ENABLED APPLIED_TMP_CEIL APPLIED_TMP_FLOOR
MAX_PERCENT_TMP_FLOOR_SETTING MIN_PERCENT_TMP_FLOOR_SETTING HW_CIRCUITRY_PERCENT_LIFETIME_REMAINING
MAX_NUM_PRESET_PROFILES ACTIVE_PRESET_PROFILE=264 PRIMARY_POWER_FLOOR=275 SECONDARY_POWER_FLOOR
MIN_PRIMARY_FLOOR_ACT_OFFSET MIN_PRIMARY_FLOOR_ACT_POINT WINDOW_MULTIPLIER DELAYED_PWR_SMOOTHING_SUPPORTED
SOC_POWER_SMOOTHING_ENABLED=300 NVML_FI_PWR_SMOOTHING_ADMIN_OVERRIDE_: PERCENT_TMP_FLOOR=265 RAMP_UP_RATE RAMP_DOWN_RATE
RAMP_DOWN_HYST_VAL SECONDARY_POWER_FLOOR=285 PRIMARY_FLOOR_ACT_WIN_MULT PRIMARY_FLOOR_TAR_WIN_MULT
PRIMARY_FLOOR_ACT_OFFSET NVML_FI_PWR_SMOOTHING_PROFILE_: PERCENT_TMP_FLOOR=260 RAMP_UP_RATE RAMP_DOWN_RATE
RAMP_DOWN_HYST_VAL SECONDARY_POWER_FLOOR=281 PRIMARY_FLOOR_ACT_WIN_MULT PRIMARY_FLOOR_TAR_WIN_MULT
PRIMARY_FLOOR_ACT_OFFSET NVML_GOM_: ALL_ON COMPUTE LOW_DP NVML_GPM_: METRICS_GET_VERSION=1 SUPPORT_VERSION=1
NVML_GPM_METRIC_: GRAPHICS_UTIL=1 SM_UTIL SM_OCCUPANCY INTEGER_UTIL ANY_TENSOR_UTIL DFMA_TENSOR_UTIL HMMA_TENSOR_UTIL
DMMA_TENSOR_UTIL IMMA_TENSOR_UTIL DRAM_BW_UTIL FP64_UTIL FP32_UTIL FP16_UTIL PCIE_TX_PER_SEC=20 PCIE_RX_PER_SEC
NVOFA_0_UTIL=50 NVOFA_1_UTIL HOSTMEM_CACHE_HIT=160 HOSTMEM_CACHE_MISS PEERMEM_CACHE_HIT PEERMEM_CACHE_MISS
DRAM_CACHE_HIT DRAM_CACHE_MISS NVENC_0_UTIL NVENC_1_UTIL NVENC_2_UTIL NVENC_3_UTIL SM_CYCLES_ELAPSED=248
SM_CYCLES_ACTIVE MMA_CYCLES_ACTIVE DMMA_CYCLES_ACTIVE HMMA_CYCLES_ACTIVE IMMA_CYCLES_ACTIVE DFMA_CYCLES_ACTIVE PCIE_TX
PCIE_RX INTEGER_CYCLES_ACTIVE FP64_CYCLES_ACTIVE FP32_CYCLES_ACTIVE FP16_CYCLES_ACTIVE MAX=477 NVML_GPM_METRIC_C2C_:
TOTAL_TX_PER_SEC=100 TOTAL_RX_PER_SEC DATA_TX_PER_SEC DATA_RX_PER_SEC LINK0_TOTAL_TX_PER_SEC LINK0_TOTAL_RX_PER_SEC
LINK0_DATA_TX_PER_SEC LINK0_DATA_RX_PER_SEC LINK1_TOTAL_TX_PER_SEC LINK1_TOTAL_RX_PER_SEC LINK1_DATA_TX_PER_SEC
LINK1_DATA_RX_PER_SEC LINK2_TOTAL_TX_PER_SEC LINK2_TOTAL_RX_PER_SEC LINK2_DATA_TX_PER_SEC LINK2_DATA_RX_PER_SEC
LINK3_TOTAL_TX_PER_SEC LINK3_TOTAL_RX_PER_SEC LINK3_DATA_TX_PER_SEC LINK3_DATA_RX_PER_SEC LINK4_TOTAL_TX_PER_SEC
LINK4_TOTAL_RX_PER_SEC LINK4_DATA_TX_PER_SEC LINK4_DATA_RX_PER_SEC LINK5_TOTAL_TX_PER_SEC LINK5_TOTAL_RX_PER_SEC
LINK5_DATA_TX_PER_SEC LINK5_DATA_RX_PER_SEC LINK6_TOTAL_TX_PER_SEC LINK6_TOTAL_RX_PER_SEC LINK6_DATA_TX_PER_SEC
LINK6_DATA_RX_PER_SEC LINK7_TOTAL_TX_PER_SEC LINK7_TOTAL_RX_PER_SEC LINK7_DATA_TX_PER_SEC LINK7_DATA_RX_PER_SEC
LINK8_TOTAL_TX_PER_SEC LINK8_TOTAL_RX_PER_SEC LINK8_DATA_TX_PER_SEC LINK8_DATA_RX_PER_SEC LINK9_TOTAL_TX_PER_SEC
LINK9_TOTAL_RX_PER_SEC LINK9_DATA_TX_PER_SEC LINK9_DATA_RX_PER_SEC LINK10_TOTAL_TX_PER_SEC LINK10_TOTAL_RX_PER_SEC
LINK10_DATA_TX_PER_SEC LINK10_DATA_RX_PER_SEC LINK11_TOTAL_TX_PER_SEC LINK11_TOTAL_RX_PER_SEC LINK11_DATA_TX_PER_SEC
LINK11_DATA_RX_PER_SEC LINK12_TOTAL_TX_PER_SEC LINK12_TOTAL_RX_PER_SEC LINK12_DATA_TX_PER_SEC LINK12_DATA_RX_PER_SEC
LINK13_TOTAL_TX_PER_SEC LINK13_TOTAL_RX_PER_SEC LINK13_DATA_TX_PER_SEC LINK13_DATA_RX_PER_SEC
NVML_GPM_METRIC_GR0_CTXSW_: CYCLES_ELAPSED=170 CYCLES_ACTIVE REQUESTS CYCLES_PER_REQ ACTIVE_PCT
NVML_GPM_METRIC_GR1_CTXSW_: CYCLES_ELAPSED=175 CYCLES_ACTIVE REQUESTS CYCLES_PER_REQ ACTIVE_PCT
NVML_GPM_METRIC_GR2_CTXSW_: CYCLES_ELAPSED=180 CYCLES_ACTIVE REQUESTS CYCLES_PER_REQ ACTIVE_PCT
NVML_GPM_METRIC_GR3_CTXSW_: CYCLES_ELAPSED=185 CYCLES_ACTIVE REQUESTS CYCLES_PER_REQ ACTIVE_PCT
NVML_GPM_METRIC_GR4_CTXSW_: CYCLES_ELAPSED=190 CYCLES_ACTIVE REQUESTS CYCLES_PER_REQ ACTIVE_PCT
NVML_GPM_METRIC_GR5_CTXSW_: CYCLES_ELAPSED=195 CYCLES_ACTIVE REQUESTS CYCLES_PER_REQ ACTIVE_PCT
NVML_GPM_METRIC_GR6_CTXSW_: CYCLES_ELAPSED=200 CYCLES_ACTIVE REQUESTS CYCLES_PER_REQ ACTIVE_PCT
NVML_GPM_METRIC_GR7_CTXSW_: CYCLES_ELAPSED=205 CYCLES_ACTIVE REQUESTS CYCLES_PER_REQ ACTIVE_PCT NVML_GPM_METRIC_NVDEC_:
0_UTIL=30 1_UTIL 2_UTIL 3_UTIL 4_UTIL 5_UTIL 6_UTIL 7_UTIL NVML_GPM_METRIC_NVJPG_: 0_UTIL=40 1_UTIL 2_UTIL 3_UTIL 4_UTIL
5_UTIL 6_UTIL 7_UTIL NVML_GPM_METRIC_NVLINK_: TOTAL_RX_PER_SEC=60 TOTAL_TX_PER_SEC L0_RX_PER_SEC L0_TX_PER_SEC
L1_RX_PER_SEC L1_TX_PER_SEC L2_RX_PER_SEC L2_TX_PER_SEC L3_RX_PER_SEC L3_TX_PER_SEC L4_RX_PER_SEC L4_TX_PER_SEC
L5_RX_PER_SEC L5_TX_PER_SEC L6_RX_PER_SEC L6_TX_PER_SEC L7_RX_PER_SEC L7_TX_PER_SEC L8_RX_PER_SEC L8_TX_PER_SEC
L9_RX_PER_SEC L9_TX_PER_SEC L10_RX_PER_SEC L10_TX_PER_SEC L11_RX_PER_SEC L11_TX_PER_SEC L12_RX_PER_SEC L12_TX_PER_SEC
L13_RX_PER_SEC L13_TX_PER_SEC L14_RX_PER_SEC L14_TX_PER_SEC L15_RX_PER_SEC L15_TX_PER_SEC L16_RX_PER_SEC L16_TX_PER_SEC
L17_RX_PER_SEC L17_TX_PER_SEC L18_RX_PER_SEC=212 L18_TX_PER_SEC L19_RX_PER_SEC L19_TX_PER_SEC L20_RX_PER_SEC
L20_TX_PER_SEC L21_RX_PER_SEC L21_TX_PER_SEC L22_RX_PER_SEC L22_TX_PER_SEC L23_RX_PER_SEC L23_TX_PER_SEC L24_RX_PER_SEC
L24_TX_PER_SEC L25_RX_PER_SEC L25_TX_PER_SEC L26_RX_PER_SEC L26_TX_PER_SEC L27_RX_PER_SEC L27_TX_PER_SEC L28_RX_PER_SEC
L28_TX_PER_SEC L29_RX_PER_SEC L29_TX_PER_SEC L30_RX_PER_SEC L30_TX_PER_SEC L31_RX_PER_SEC L31_TX_PER_SEC L32_RX_PER_SEC
L32_TX_PER_SEC L33_RX_PER_SEC L33_TX_PER_SEC L34_RX_PER_SEC L34_TX_PER_SEC L35_RX_PER_SEC L35_TX_PER_SEC L0_RX=261 L0_TX
L1_RX L1_TX L2_RX L2_TX L3_RX L3_TX L4_RX L4_TX L5_RX L5_TX L6_RX L6_TX L7_RX L7_TX L8_RX L8_TX L9_RX L9_TX L10_RX
L10_TX L11_RX L11_TX L12_RX L12_TX L13_RX L13_TX L14_RX L14_TX L15_RX L15_TX L16_RX L16_TX L17_RX L17_TX L18_RX L18_TX
L19_RX L19_TX L20_RX L20_TX L21_RX L21_TX L22_RX L22_TX L23_RX L23_TX L24_RX L24_TX L25_RX L25_TX L26_RX L26_TX L27_RX
L27_TX L28_RX L28_TX L29_RX L29_TX L30_RX L30_TX L31_RX L31_TX L32_RX L32_TX L33_RX L33_TX L34_RX L34_TX L35_RX L35_TX
L36_RX L36_TX L37_RX L37_TX L38_RX L38_TX L39_RX L39_TX L40_RX L40_TX L41_RX L41_TX L42_RX L42_TX L43_RX L43_TX L44_RX
L44_TX L45_RX L45_TX L46_RX L46_TX L47_RX L47_TX L48_RX L48_TX L49_RX L49_TX L50_RX L50_TX L51_RX L51_TX L52_RX L52_TX
L53_RX L53_TX L54_RX L54_TX L55_RX L55_TX L56_RX L56_TX L57_RX L57_TX L58_RX L58_TX L59_RX L59_TX L60_RX L60_TX L61_RX
L61_TX L62_RX L62_TX L63_RX L63_TX L64_RX L64_TX L65_RX L65_TX L66_RX L66_TX L67_RX L67_TX L68_RX L68_TX L69_RX L69_TX
L70_RX L70_TX L71_RX L71_TX L36_RX_PER_SEC L36_TX_PER_SEC L37_RX_PER_SEC L37_TX_PER_SEC L38_RX_PER_SEC L38_TX_PER_SEC
L39_RX_PER_SEC L39_TX_PER_SEC L40_RX_PER_SEC L40_TX_PER_SEC L41_RX_PER_SEC L41_TX_PER_SEC L42_RX_PER_SEC L42_TX_PER_SEC
L43_RX_PER_SEC L43_TX_PER_SEC L44_RX_PER_SEC L44_TX_PER_SEC L45_RX_PER_SEC L45_TX_PER_SEC L46_RX_PER_SEC L46_TX_PER_SEC
L47_RX_PER_SEC L47_TX_PER_SEC L48_RX_PER_SEC L48_TX_PER_SEC L49_RX_PER_SEC L49_TX_PER_SEC L50_RX_PER_SEC L50_TX_PER_SEC
L51_RX_PER_SEC L51_TX_PER_SEC L52_RX_PER_SEC L52_TX_PER_SEC L53_RX_PER_SEC L53_TX_PER_SEC L54_RX_PER_SEC L54_TX_PER_SEC
L55_RX_PER_SEC L55_TX_PER_SEC L56_RX_PER_SEC L56_TX_PER_SEC L57_RX_PER_SEC L57_TX_PER_SEC L58_RX_PER_SEC L58_TX_PER_SEC
L59_RX_PER_SEC L59_TX_PER_SEC L60_RX_PER_SEC L60_TX_PER_SEC L61_RX_PER_SEC L61_TX_PER_SEC L62_RX_PER_SEC L62_TX_PER_SEC
L63_RX_PER_SEC L63_TX_PER_SEC L64_RX_PER_SEC L64_TX_PER_SEC L65_RX_PER_SEC L65_TX_PER_SEC L66_RX_PER_SEC L66_TX_PER_SEC
L67_RX_PER_SEC L67_TX_PER_SEC L68_RX_PER_SEC L68_TX_PER_SEC L69_RX_PER_SEC L69_TX_PER_SEC L70_RX_PER_SEC L70_TX_PER_SEC
L71_RX_PER_SEC L71_TX_PER_SEC NVML_GPU_: CERT_CHAIN_SIZE=0x1000 ATTESTATION_CERT_CHAIN_SIZE=0x1400 NVML_GPU_FABRIC_:
STATE_NOT_SUPPORTED STATE_NOT_STARTED STATE_IN_PROGRESS STATE_COMPLETED UUID_LEN=16 NVML_GPU_FABRIC_CLIQUE_:
TYPE_UNICAST_POINTER TYPE_MULTICAST_POINTER TYPE_UNICAST_LOGICAL_ENDPOINT TYPE_MULTICAST_LOGICAL_ENDPOINT MAX=64
NVML_GPU_FABRIC_HEALTH_: SUMMARY_NOT_SUPPORTED SUMMARY_HEALTHY SUMMARY_UNHEALTHY SUMMARY_LIMITED_CAPACITY
NVML_GPU_FABRIC_HEALTH_MASK_: ACCESS_TIMEOUT_RECOVERY_NOT_SUPPORTED DEGRADED_BW_NOT_SUPPORTED=0
GFM_STATE_NOT_SUPPORTED=0 PARTITION_ASSIGNED_NOT_SUPPORTED=0 ROUTE_RECOVERY_NOT_SUPPORTED=0
ROUTE_UNHEALTHY_NOT_SUPPORTED=0 ACCESS_TIMEOUT_RECOVERY_TRUE DEGRADED_BW_TRUE=1 GFM_STATE_CONNECTED=1
PARTITION_ASSIGNED_TRUE=1 ROUTE_RECOVERY_TRUE=1 ROUTE_UNHEALTHY_TRUE=1 ACCESS_TIMEOUT_RECOVERY_FALSE DEGRADED_BW_FALSE=2
GFM_STATE_DISCONNECTED=2 PARTITION_ASSIGNED_FALSE=2 ROUTE_RECOVERY_FALSE=2 ROUTE_UNHEALTHY_FALSE=2
NVML_GPU_FABRIC_HEALTH_MASK_INCORRECT_: CONFIURATION_INVALID_LOCATION=7
NVML_GPU_FABRIC_HEALTH_MASK_INCORRECT_CONFIGURATION_: NOT_SUPPORTED NONE INCORRECT_SYSGUID INCORRECT_CHASSIS_SN
NO_PARTITION INSUFFICIENT_NVLINKS INCOMPATIBLE_GPU_FW INVALID_LOCATION GPU_STATE_INVALID
NVML_GPU_FABRIC_HEALTH_MASK_SHIFT_: DEGRADED_BW ROUTE_RECOVERY=2 ROUTE_UNHEALTHY=4 ACCESS_TIMEOUT_RECOVERY=6
INCORRECT_CONFIGURATION=8 PARTITION_ASSIGNED=12 GFM_STATE=14 NVML_GPU_FABRIC_HEALTH_MASK_WIDTH_:
ACCESS_TIMEOUT_RECOVERY=3 DEGRADED_BW=3 GFM_STATE=3 PARTITION_ASSIGNED=3 ROUTE_RECOVERY=3 ROUTE_UNHEALTHY=3
INCORRECT_CONFIGURATION=15 NVML_GPU_INSTANCE_: ID_ANY=0xffffffff NVML_GPU_INSTANCE_PROFILE_: 1_SLICE 2_SLICE 3_SLICE
4_SLICE 7_SLICE 8_SLICE 6_SLICE 1_SLICE_REV1 2_SLICE_REV1 1_SLICE_REV2 1_SLICE_GFX 2_SLICE_GFX 4_SLICE_GFX 1_SLICE_NO_ME
2_SLICE_NO_ME 1_SLICE_ALL_ME 2_SLICE_ALL_ME 3_SLICE_GFX COUNT NVML_GPU_NVLINK_BW_MODE_: FULL OFF MIN HALF 3QUARTER COUNT
NVML_GPU_OPERATIONAL_EVENT_: CONTEXT_TYPE_UNKNOWN LOG_LEVEL_ALL=0 CONTEXT_TYPE_LEGACY_XID LOG_LEVEL_TELEMETRY=10
LOG_LEVEL_DIAG=20 LOG_LEVEL_NOTICE=30 LOG_LEVEL_WARNING=40 LOG_LEVEL_ERROR=50 NVML_GPU_RECOVERY_ACTION_: NONE GPU_RESET
NODE_REBOOT DRAIN_P2P DRAIN_AND_RESET RECOVER_IMEX_DOMAIN BUS_RESET SYSTEM_REBOOT NVML_GPU_UTILIZATION_: DOMAIN_GPU
DOMAIN_FB SAMPLES=1 DOMAIN_VID DOMAIN_BUS NVML_GPU_VIRTUALIZATION_: MODE_NONE MODE_PASSTHROUGH MODE_VGPU MODE_HOST_VGPU
MODE_HOST_VSGA NVML_GRID_LICENSE_: BUFFER_SIZE=128 NVML_GRID_LICENSE_EXPIRY_: NOT_AVAILABLE INVALID VALID NOT_APPLICABLE
PERMANENT NVML_GRID_LICENSE_FEATURE_: MAX_COUNT=3 NVML_GRID_LICENSE_FEATURE_CODE_: UNKNOWN VGPU NVIDIA_RTX
VWORKSTATION=2 GAMING COMPUTE VGAMEDEV NVML_GRID_LICENSE_STATE_: UNKNOWN UNINITIALIZED UNLICENSED_UNRESTRICTED
UNLICENSED_RESTRICTED UNLICENSED LICENSED NVML_INFOROM_: OEM ECC POWER DEN COUNT NVML_INIT_: FLAG_NO_GPUS=1
FLAG_NO_ATTACH FLAG_FORCE_INIT=4 NVML_MAX_: THERMAL_SENSORS_PER_GPU=3 GPU_UTILIZATIONS=8 GPU_PERF_PSTATES=16
GPC_COUNT=32 PHYSICAL_BRIDGE=128 NVML_MCLK_SWITCH_: TYPE_NOT_SUPPORTED TYPE_DEFERRED TYPE_RUNTIME NVML_MEMORY_:
ERROR_TYPE_CORRECTED ERROR_TYPE_COUNT=2 UTILIZATION_SAMPLES=2 CLK_SAMPLES=6 NVML_MEMORY_LOCATION_: L1_CACHE L2_CACHE
DEVICE_MEMORY DRAM=2 REGISTER_FILE TEXTURE_MEMORY TEXTURE_SHM CBU SRAM COUNT NVML_NVLINK_: POWER_STATE_HIGH_SPEED
POWER_STATE_LOW TOTAL_SUPPORTED_BW_MODES=23 MAX_LANES=36 NVML_NVLINK_CAP_: P2P_SUPPORTED SYSMEM_ACCESS P2P_ATOMICS
SYSMEM_ATOMICS SLI_BRIDGE VALID COUNT NVML_NVLINK_COUNTER_: UNIT_CYCLES UNIT_PACKETS UNIT_BYTES UNIT_RESERVED UNIT_COUNT
NVML_NVLINK_COUNTER_PKTFILTER_: NOP=1 READ WRITE=4 RATOM=8 NRATOM=16 FLUSH=32 RESPDATA=64 RESPNODATA=128 ALL=255
NVML_NVLINK_DEVICE_: TYPE_GPU TYPE_IBMNPU TYPE_SWITCH TYPE_UNKNOWN=255 NVML_NVLINK_ERROR_: COUNT=5
NVML_NVLINK_ERROR_DL_: ECC_LANE0 REPLAY=0 ECC_LANE1 RECOVERY=1 CRC_FLIT ECC_LANE2=2 CRC_DATA ECC_LANE3=3 ECC_DATA
ECC_COUNT NVML_NVLINK_FIRMWARE_: VERSION_LENGTH=100 NVML_NVLINK_FIRMWARE_UCODE_: TYPE_MSE=1 TYPE_NETIR TYPE_NETIR_UPHY
TYPE_NETIR_CLN TYPE_NETIR_DLN NVML_NVLINK_LOW_POWER_THRESHOLD_: UNIT_100US MIN UNIT_50US=1 MAX=0x1fff DEFAULT=0xffffffff
RESET=0xffffffff NVML_NVLINK_STATE_: INACTIVE ACTIVE SLEEP ACTIVE_TRAFFIC_DISABLED NVML_NVLINK_TELEMETRY_:
SAMPLE_TYPE_THROUGHPUT_RAW_TX SAMPLE_TYPE_THROUGHPUT_RAW_RX SAMPLE_TYPE_COUNT NVML_NVLINK_VERSION_: INVALID 1_0 2_0 2_2
3_0 3_1 4_0 5_0 6_0 NVML_OPERATIONAL_EVENT_: GROUP_ATTR_RECOVERED=1 GROUP_ATTR_PREVERR GROUP_ATTR_SIMULATED=4
NVML_OPERATIONAL_EVENT_ATTR_: UNCONTAINED=1 LATENT PROPAGATED=4 COMPONENT_RESET=8 THRESHOLD_EXCEEDED=16 PRIMARY=32
OVERFLOW=64 NVML_OPERATIONAL_EVENT_SEVERITY_: ALL INFORMATIONAL=10 CORRECTED=20 RECOVERABLE=30 FATAL=40
NVML_P2P_CAPS_INDEX_: ATOMICS=3 PCI PROP=4 UNKNOWN NVML_P2P_STATUS_: CHIPSET_NOT_SUPPORED=1 CHIPSET_NOT_SUPPORTED=1
GPU_NOT_SUPPORTED IOH_TOPOLOGY_NOT_SUPPORTED DISABLED_BY_REGKEY NOT_SUPPORTED UNKNOWN NVML_PAGE_RETIREMENT_:
CAUSE_MULTIPLE_SINGLE_BIT_ECC_ERRORS CAUSE_DOUBLE_BIT_ECC_ERROR CAUSE_COUNT NVML_PCIE_: UTIL_COUNT=2 NVML_PCIE_ATOMICS_:
OPS_MAX=7 NVML_PCIE_ATOMICS_CAP_: FETCHADD32=1 FETCHADD64 SWAP32=4 SWAP64=8 CAS32=16 CAS64=32 CAS128=64 NVML_PCIE_LINK_:
KEEP SHUT_DOWN NVML_PCIE_LINK_MAX_SPEED_: INVALID 2500MBPS 5000MBPS 8000MBPS 16000MBPS 32000MBPS 64000MBPS NVML_PERF_:
CF_PM_SENSOR_MAX_SIGNALS=1024 MODES_BUFFER_SIZE=2048 NVML_PERF_METRICS_: PWR_MODEL_SCALE_METRICS_PFPP_1X_GPCCLK_IDX
PWR_MODEL_DLPPM_1X_MAX_CORE_RAILS=2 PWR_MODEL_METRICS_DLPPM_1X_OBESRVED_INTIAL_DRAMCLK_ESTIMATES_MAX
NNE_DESC_INFERENCE_LOOPS_MAX=8 SAMPLE_COUNT=13 PWR_MODEL_SCALE_METRICS_INPUT_MAX=16 PWR_MODEL_SCALE_LOOPS_MAX_PFPP_1X=32
NVML_PERF_METRICS_CONTROLLER_: TYPE_DLPPC_2X TYPE_PFPP_1X STATUS_DLPPC_2X_DRAMCLK_NUM=3
DLPPC_2X_PWR_POLICY_RELATIONSHIP_SET_LIMITS_MAX SAMPLE_CONTROLLER_MAX_NUM=4 NVML_PERF_POLICY_: POWER THERMAL SYNC_BOOST
BOARD_LIMIT LOW_UTILIZATION RELIABILITY TOTAL_APP_CLOCKS=10 TOTAL_BASE_CLOCKS COUNT NVML_POWER_: SOURCE_UNDERSIZED=2
SCOPE_GPU_BASE SCOPE_COUNT NVML_POWER_MIZER_: MODE_ADAPTIVE MODE_PREFER_MAXIMUM_PERFORMANCE MODE_AUTO
MODE_PREFER_CONSISTENT_PERFORMANCE NVML_POWER_PROFILE_: MAX_P MAX_Q COMPUTE MEMORY_BOUND NETWORK BALANCED LLM_INFERENCE
LLM_TRAINING RBM DCPCIE HMMA_SPARSE HMMA_DENSE SYNC_BALANCED HPC MIG MAX_Q_1 NETWORK_BOUND HIGH_THROUGHPUT_INFERENCE
MEDIUM_THROUGHPUT_INFERENCE LOW_LATENCY_INFERENCE TRAINING INFERENCE MAX_Q_2 MAX_Q_3 LOW_PRIORITY_BACKGROUND MAX
NVML_POWER_PROFILE_OPERATION_: CLEAR SET SET_AND_OVERWRITE MAX NVML_POWER_SMOOTHING_: MAX_NUM_PROFILES=5
NUM_PROFILE_PARAMS=8 ADMIN_OVERRIDE_NOT_SET=0xffffffff NVML_POWER_SMOOTHING_PROFILE_PARAM_: PERCENT_TMP_FLOOR
RAMP_UP_RATE RAMP_DOWN_RATE RAMP_DOWN_HYSTERESIS SECONDARY_POWER_FLOOR PRIMARY_FLOOR_ACT_WIN_MULT
PRIMARY_FLOOR_TAR_WIN_MULT PRIMARY_FLOOR_ACT_OFFSET NVML_PRM_: DATA_MAX_SIZE=496 NVML_PRM_COUNTER_ID_: NONE
PPRM_OPER_RECOVERY=1001 NVML_PRM_COUNTER_ID_PPCNT_: PHYSICAL_LAYER_CTRS_LINK_DOWN_EVENTS=1
PHYSICAL_LAYER_CTRS_SUCCESSFUL_RECOVERY_EVENTS PORTCOUNTERS_PORT_XMIT_WAIT=201 PLR_RCV_CODES=301 PLR_RCV_CODE_ERR
PLR_RCV_UNCORRECTABLE_CODE PLR_XMIT_CODES PLR_XMIT_RETRY_CODES PLR_XMIT_RETRY_EVENTS PLR_SYNC_EVENTS
NVML_PRM_COUNTER_ID_PPCNT_RECOVERY_CTRS_: TOTAL_SUCCESSFUL_RECOVERY_EVENTS=101 TIME_SINCE_LAST_RECOVERY
TIME_BETWEEN_LAST_TWO_RECOVERIES TIME_IN_LAST_HOST_SERDES_FEQ_RECOVERY TOTAL_TIME_IN_HOST_SERDES_FEQ_RECOVERY
TOTAL_HOST_SERDES_FEQ_RECOVERY_COUNT TOTAL_HOST_SERDES_FEQ_SUCCESSFUL_RECOVERY_COUNT LAST_HOST_SERDES_FEQ_ATTEMPTS_COUNT
LAST_SUCCESSFUL_RECOVERY_STEP_ATTEMPTS LAST_SUCCESSFUL_RECOVERY_TIME TOTAL_SUCCESSFUL_RECOVERY_TIME NVML_PROCESS_MODE_:
COMPUTE GRAPHICS MPS ALL MAX NVML_PSTATE_: 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 UNKNOWN=32 NVML_RESTRICTED_:
API_SET_APPLICATION_CLOCKS API_SET_AUTO_BOOSTED_CLOCKS API_COUNT NVML_RUSD_POLL_: NONE CLOCK PERF MEMORY=4 POWER=8
THERMAL=16 PCI=32 FAN=64 PROC_UTIL=128 ALL=0xffffffffffffffff NVML_TEMPERATURE_: GPU_MAX=1 COUNT
NVML_TEMPERATURE_THRESHOLD_: SHUTDOWN SLOWDOWN MEM_MAX GPU_MAX ACOUSTIC_MIN ACOUSTIC_CURR ACOUSTIC_MAX GPS_CURR COUNT
NVML_THERMAL_CONTROLLER_: UNKNOWN=-1 NONE GPU_INTERNAL ADM1032 ADT7461 MAX6649 MAX1617 LM99 LM89 LM64 G781 ADT7473
SBMAX6649 VBIOSEVT OS NVSYSCON_CANOAS NVSYSCON_E551 MAX6649R ADT7473S NVML_THERMAL_COOLER_: SIGNAL_NONE SIGNAL_TOGGLE
SIGNAL_VARIABLE SIGNAL_COUNT NVML_THERMAL_COOLER_TARGET_: NONE=1 GPU MEMORY=4 POWER_SUPPLY=8 GPU_RELATED=14
NVML_THERMAL_TARGET_: UNKNOWN=-1 NONE GPU MEMORY POWER_SUPPLY=4 BOARD=8 VCD_BOARD VCD_INLET VCD_OUTLET ALL=15
NVML_UUID_: TYPE_NONE TYPE_ASCII TYPE_BINARY NVML_VALUE_TYPE_: DOUBLE UNSIGNED_LONG=2 SIGNED_LONG_LONG=4 SIGNED_INT
UNSIGNED_SHORT COUNT NVML_VGPU_: INSTANCE_GUEST_INFO_STATE_UNINITIALIZED PGPU_HETEROGENEOUS_MODE=0
INSTANCE_GUEST_INFO_STATE_INITIALIZED PGPU_HOMOGENEOUS_MODE=1 NAME_BUFFER_SIZE=64 PGPU_METADATA_OPAQUE_DATA_SIZE=256
METADATA_OPAQUE_DATA_SIZE=260 NVML_VGPU_CAP_: NVLINK_P2P GPUDIRECT MULTI_VGPU_EXCLUSIVE EXCLUSIVE_TYPE EXCLUSIVE_SIZE
COUNT NVML_VGPU_COMPATIBILITY_: LIMIT_NONE LIMIT_HOST_DRIVER LIMIT_GUEST_DRIVER LIMIT_GPU=4 LIMIT_OTHER=0x80000000
NVML_VGPU_DRIVER_: CAP_HETEROGENEOUS_MULTI_VGPU CAP_WARM_UPDATE CAP_COUNT NVML_VGPU_SCHEDULER_: ARR_DEFAULT
POLICY_UNKNOWN=0 ARR_DISABLE ENGINE_TYPE_GRAPHICS=1 POLICY_BEST_EFFORT=1 ARR_ENABLE ENGINE_TYPE_NVENC1=2
POLICY_EQUAL_SHARE=2 ENGINE_TYPE_NVENC0 POLICY_FIXED_SHARE=3 NVML_VGPU_VM_: ID_DOMAIN_ID ID_UUID
NVML_VGPU_VM_COMPATIBILITY_: NONE COLD HIBERNATE SLEEP=4 LIVE=8 nvml: FlagDefault FlagForce FanSpeedInfo_v1=0x100000c
nvmlClocksEventReason: None GpuIdle ApplicationsClocksSetting UserDefinedClocks=2 SwPowerCap=4 HwSlowdown=8 SyncBoost=16
SwThermalSlowdown=32 HwThermalSlowdown=64 HwPowerBrakeSlowdown=128 DisplayClockSetting=256 All=511
nvmlClocksThrottleReason: None GpuIdle ApplicationsClocksSetting UserDefinedClocks=2 SwPowerCap=4 HwSlowdown=8
SyncBoost=16 SwThermalSlowdown=32 HwThermalSlowdown=64 HwPowerBrakeSlowdown=128 DisplayClockSetting=256 BoardLimit=512
Reliability=1024 All=2047 nvmlEvent: MigConfigChange=256 nvmlEventType: None SingleBitEccError DoubleBitEccError
PState=4 XidCriticalError=8 Clock=16 PowerSourceChange=128 SingleBitEccErrorStorm=512 DramRetirementEvent=1024
DramRetirementFailure=2048 NonFatalPoisonError=0x1000 FatalPoisonError=0x2000 GpuUnavailableError=0x4000
GpuRecoveryAction=0x8000 All=0xff9f
"""

# Functions of nvidia-ml-py 13.615 that only raise NotSupported.
_NVML_UNSUPPORTED = """
nvml: SetVgpuVersion nvmlComputeInstance: Destroy GetInfo GetInfo_v2 nvmlDevice: CreateGpuInstance
CreateGpuInstanceWithPlacement DiscoverGpus FreezeNvLinkUtilizationCounter IsMigDeviceHandle ModifyDrainState
OnSameBoard PerfMetricsGetSamples_v1 QueryDrainState ReadPRMCounters_v1 ReadWritePRM_v1 RegisterEvents RemoveGpu
ValidateInforom VgpuForceGspUnload nvmlDeviceClear: AccountingPids CpuAffinity EccErrorCounts FieldValues nvmlDeviceGet:
APIRestriction ActiveVgpus AdaptiveClockInfoStatus AdaptiveTgpModeInfo_v1 AddressingMode ApplicationsClock Attributes
Attributes_v2 AutoBoostedClocksEnabled BAR1MemoryInfo BBXTimeData_v1 BankRemapperStatus_v1 BoardId BoardPartNumber
BridgeChipInfo BusType C2cModeInfoV C2cModeInfoV1 Capabilities ClkMonStatus ClockOffsets ComputeInstanceId CoolerInfo
CpuAffinity CpuAffinityWithinScope CreatableVgpus CudaComputeCapability CurrPcieLinkGeneration CurrPcieLinkWidth
DecoderUtilization DefaultApplicationsClock DefaultEccMode DetailedEccErrors DeviceHandleFromMigDeviceHandle
DisplayActive DisplayMode DramEncryptionMode DriverModel DriverModel_v1 DriverModel_v2 DynamicPstatesInfo EccMode
FBCSessions FBCStats FanControlPolicy_v2 GpcClkMinMaxVfOffset GpcClkVfOffset GridLicensableFeatures
GridLicensableFeatures_v4 GspFirmwareMode GspFirmwareVersion HandleByPciBusId HandleBySerial HandleByUUIDV HostVgpuMode
Hostname_v1 InforomConfigurationChecksum InforomImageVersion InforomVersion IrqNum JpgUtilization LastBBXFlushTime
MarginTemperature MaxCustomerBoostClock MaxMigDeviceCount MaxPcieLinkGeneration MaxPcieLinkWidth MemClkMinMaxVfOffset
MemClkVfOffset MemoryAffinity MemoryErrorCounter MemoryLimits_v1 MigDeviceHandleByIndex MigMode MinMaxClockOfPState
MinMaxFanSpeed ModuleId MultiGpuBoard NumaNodeId NvlinkBwMode NvlinkSupportedBwModes OfaUtilization PciInfo PciInfoExt
PciInfo_v3 PcieLinkMaxSpeed PcieReplayCounter PcieSpeed PcieThroughput Pdi PerformanceModes PerformanceState
PersistenceMode PgpuMetadataString PlatformInfo ProcessUtilization ProcessesUtilizationInfo RemappedRows RemappedRows_v2
RepairStatus RetiredPages RetiredPagesPendingStatus RetiredPages_v2 RowRemapperHistogram RunningProcessDetailList
Samples Serial SramEccErrorStatus SramUniqueUncorrectedEccErrorCounts TargetFanSpeed TemperatureThreshold
ThermalSettings TotalEccErrors UnrepairableMemoryFlag_v1 VbiosVersion ViolationStatus VirtualizationMode
nvmlDeviceGetAccounting: BufferSize Pids Stats Stats_v2 nvmlDeviceGetConfCompute: GpuAttestationReport GpuCertificate
MemSizeInfo ProtectedMemoryUsage nvmlDeviceGetCurrent: ClockFreqs ClocksEventReasons ClocksThrottleReasons
DramEncryptionMode DriverModel EccMode GpuOperationMode nvmlDeviceGetEncoder: Capacity Sessions Stats Utilization
nvmlDeviceGetGpu: FabricInfo FabricInfoV FabricInfo_v4 Instances MaxPcieLinkGeneration OperationMode
nvmlDeviceGetGpuInstance: ById Id PossiblePlacements ProfileInfo ProfileInfoById ProfileInfoByIdV ProfileInfoV
RemainingCapacity nvmlDeviceGetNvLink: Capability ErrorCounter Info RemoteDeviceType RemotePciInfo State
TelemetrySamples_v1 UtilizationControl UtilizationCounter Version nvmlDeviceGetPending: DramEncryptionMode DriverModel
EccMode GpuOperationMode nvmlDeviceGetPower: ManagementDefaultLimit ManagementLimitConstraints ManagementMode
MizerMode_v1 State nvmlDeviceGetSupported: ClocksEventReasons ClocksThrottleReasons EventTypes MemoryClocks
PerformanceStates Vgpus nvmlDeviceGetVgpu: Capabilities HeterogeneousMode InstancesUtilizationInfo Metadata
ProcessUtilization ProcessesUtilizationInfo TypeCreatablePlacements TypeSupportedPlacements Utilization
nvmlDeviceGetVgpuScheduler: Capabilities Log Log_v2 State State_v2 nvmlDevicePowerSmoothing: ActivatePresetProfile
SetState UpdatePresetProfileParam nvmlDeviceReset: ApplicationsClocks GpuLockedClocks MemoryLockedClocks
NvLinkErrorCounters NvLinkUtilizationCounter nvmlDeviceSet: APIRestriction AccountingMode AdaptiveTgpMode_v1
ApplicationsClocks AutoBoostedClocksEnabled ClockOffsets ComputeMode ConfComputeUnprotectedMemSize CpuAffinity
DefaultAutoBoostedClocksEnabled DefaultFanSpeed_v2 DramEncryptionMode DriverModel EccMode FanControlPolicy FanSpeed_v2
GpcClkVfOffset GpuLockedClocks GpuOperationMode Hostname_v1 MemClkVfOffset MemoryLimits_v1 MemoryLockedClocks MigMode
NvLinkDeviceLowPowerThreshold NvLinkUtilizationControl NvlinkBwMode NvlinkBwModeAsync_v1 PersistenceMode
PowerManagementLimit PowerManagementLimit_v2 PowerMizerMode_v1 RusdSettings_v1 TemperatureThreshold VgpuCapabilities
VgpuHeterogeneousMode VgpuSchedulerState VgpuSchedulerState_v2 VirtualizationMode nvmlDeviceWorkloadPowerProfile:
ClearRequestedProfiles GetCurrentProfiles GetProfilesInfo SetRequestedProfiles UpdateProfiles_v1 nvmlEventSet: Create
Free GetContextCount_v1 GetContextData_v1 GetContextInfo_v1 GetGpuOperationalEventContextLegacyXid_v1
RegisterGpuOperationalEvents_v1 Wait Wait_v2 Wait_v3 nvmlGet: ExcludedDeviceCount ExcludedDeviceInfoByIndex
VgpuCompatibility VgpuDriverCapabilities VgpuVersion nvmlGpm: MetricsGet MigSampleGet QueryDeviceSupport
QueryIfStreamingEnabled SetStreamingEnabled nvmlGpmSample: Alloc Free Get nvmlGpuInstance: CreateComputeInstance
CreateComputeInstanceWithPlacement Destroy SetVgpuHeterogeneousMode SetVgpuSchedulerState SetVgpuSchedulerState_v2
nvmlGpuInstanceGet: ActiveVgpus CreatableVgpus Info nvmlGpuInstanceGetCompute: Instances
nvmlGpuInstanceGetComputeInstance: ById PossiblePlacements ProfileInfo ProfileInfoV RemainingCapacity
nvmlGpuInstanceGetVgpu: HeterogeneousMode TypeCreatablePlacements nvmlGpuInstanceGetVgpuScheduler: Log Log_v2 State
State_v2 nvmlSystem: EventSetCreate EventSetFree EventSetWait RegisterEvents SetConfComputeGpusReadyState
SetConfComputeKeyRotationThresholdInfo SetNvlinkBwMode nvmlSystemGet: CPER_v1 CudaDriverVersion CudaDriverVersion_v2
DriverBranch HicVersion NvlinkBwMode TopologyGpuSet nvmlSystemGetConfCompute: Capabilities GpusReadyState
KeyRotationThresholdInfo Settings State nvmlUnit: SetLedState nvmlUnitGet: Count DeviceCount Devices FanSpeedInfo
HandleByIndex LedState PsuInfo Temperature UnitInfo nvmlVgpuInstance: ClearAccountingPids SetEncoderCapacity
nvmlVgpuInstanceGet: AccountingMode AccountingPids AccountingStats EccMode EncoderCapacity EncoderSessions EncoderStats
FBCSessions FBCStats FbUsage FrameRateLimit GpuInstanceId GpuPciId LicenseInfo LicenseInfo_v2 LicenseStatus MdevUUID
Metadata PlacementId RuntimeStateSize Type UUID VmDriverVersion VmID nvmlVgpuTypeGet: BAR1Info Capabilities Class
DeviceID FbReservation FrameRateLimit FramebufferSize GpuInstanceProfileId GspHeapSize License MaxInstances
MaxInstancesPerGpuInstance MaxInstancesPerVm Name NumDisplayHeads Resolution
"""


def _nvml_names(packed: str) -> Iterator[tuple[str, int]]:
    """(name, number) for each name of a packed list."""
    prefix, number = "", -1
    for word in packed.split():
        if word[-1] == ":":
            prefix, number = word[:-1], -1
            continue
        name, _, given = word.partition("=")
        number = int(given, 0) if given else number + 1
        yield prefix + name, number


def _nvml_unsupported(name: str) -> Callable[..., Any]:
    """A plain function of that name (clients copy functions, not callables) that raises NotSupported."""
    def unsupported(*args: Any, **named: Any) -> Any:
        LibraryGetSource()          # Uninitialized comes first, as in NVML
        raise _fail(ERROR_NOT_SUPPORTED, REASON_CHIP, None, name + " has no counterpart on Apple silicon")
    unsupported.__name__ = unsupported.__qualname__ = name
    return unsupported


globals().update(_nvml_names(_NVML_CONSTANTS))
globals().update((name, _nvml_unsupported(name)) for name, _ in _nvml_names(_NVML_UNSUPPORTED))

if TYPE_CHECKING:       # the ones programs often try, for checkers; the packed lists define them
    nvmlDeviceGetCudaComputeCapability: Callable[..., tuple[int, int]]
    nvmlDeviceGetDecoderUtilization: Callable[..., list[int]]
    nvmlDeviceGetDisplayActive: Callable[..., int]
    nvmlDeviceGetDisplayMode: Callable[..., int]
    nvmlDeviceGetEncoderUtilization: Callable[..., list[int]]
    nvmlDeviceGetC2cModeInfoV: Callable[..., Any]
    nvmlDeviceGetCurrentEccMode: Callable[..., int]
    nvmlDeviceGetMaxMigDeviceCount: Callable[..., int]
    nvmlDeviceGetMaxPcieLinkGeneration: Callable[..., int]
    nvmlDeviceGetMaxPcieLinkWidth: Callable[..., int]
    nvmlDeviceGetMigMode: Callable[..., list[int]]
    nvmlDeviceGetNvLinkState: Callable[..., int]
    nvmlDeviceGetNvLinkVersion: Callable[..., int]
    nvmlDeviceGetPciInfo: Callable[..., Any]
    nvmlDeviceGetPcieThroughput: Callable[..., int]
    nvmlDeviceGetPerformanceState: Callable[..., int]
    nvmlDeviceGetPersistenceMode: Callable[..., int]
    nvmlDeviceGetPowerManagementLimitConstraints: Callable[..., list[int]]
    nvmlDeviceGetProcessUtilization: Callable[..., list[Any]]
    nvmlDeviceGetProcessesUtilizationInfo: Callable[..., list[Any]]
    nvmlDeviceGetRetiredPagesPendingStatus: Callable[..., int]
    nvmlDeviceGetSupportedMemoryClocks: Callable[..., list[int]]
    nvmlDeviceGetTotalEccErrors: Callable[..., int]
    nvmlDeviceIsMigDeviceHandle: Callable[..., int]
    nvmlDeviceSetPersistenceMode: Callable[..., None]
    nvmlSystemGetCudaDriverVersion: Callable[..., int]
    nvmlSystemGetCudaDriverVersion_v2: Callable[..., int]


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


def _nvml_structure(name: str, fields: str, unit: str = "%s") -> Any:
    """A structure type; `fields` is "name:type" words, types are ctypes names without c_."""
    pairs = [(field, getattr(ctypes, "c_" + kind)) for field, _, kind in (f.partition(":") for f in fields.split())]
    return type(name, (_PrintableStructure,), {"_fields_": pairs, "_fmt_": {"<default>": unit}, "__module__": __name__})


# Signed, because a client that has no figure writes -1 into it.
c_nvmlMemory_t = _nvml_structure("c_nvmlMemory_t", "total:longlong free:longlong used:longlong", "%d B")
c_nvmlMemory_v2_t = _nvml_structure(
    "c_nvmlMemory_v2_t", "version:uint total:ulonglong reserved:ulonglong free:ulonglong used:ulonglong", "%d B")
c_nvmlUtilization_t = _nvml_structure("c_nvmlUtilization_t", "gpu:uint memory:uint", "%d %%")
c_nvmlTemperature_v1_t = _nvml_structure("c_nvmlTemperature_v1_t", "version:uint sensorType:uint temperature:int")
c_nvmlProcessInfo_v2_t = _nvml_structure(
    "c_nvmlProcessInfo_v2_t", "pid:uint usedGpuMemory:ulonglong gpuInstanceId:uint computeInstanceId:uint")
c_nvmlProcessInfo_v3_t = c_nvmlProcessInfo_t = c_nvmlProcessInfo_v2_t
c_nvmlDevice_t = Device


class c_nvmlValue_t(ctypes.Union):
    _fields_ = [("dVal", ctypes.c_double), ("uiVal", ctypes.c_uint), ("ulVal", ctypes.c_ulong),
                ("ullVal", ctypes.c_ulonglong), ("sllVal", ctypes.c_longlong), ("siVal", ctypes.c_int),
                ("usVal", ctypes.c_ushort)]


class c_nvmlFieldValue_t(_PrintableStructure):
    _fields_ = [("fieldId", ctypes.c_uint), ("scopeId", ctypes.c_uint), ("timestamp", ctypes.c_int64),
                ("latencyUsec", ctypes.c_int64), ("valueType", ctypes.c_uint), ("nvmlReturn", ctypes.c_uint),
                ("value", c_nvmlValue_t)]


class nvmlFriendlyObject:
    """Plain attributes; what the process lists hold."""

    def __init__(self, dictionary: Mapping[str, Any]) -> None:
        self.__dict__.update(dictionary)

    def __str__(self) -> str:
        return str(self.__dict__)

    def __repr__(self) -> str:
        return "nvmlFriendlyObject(%r)" % self.__dict__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, nvmlFriendlyObject) and self.__dict__ == other.__dict__

    __hash__ = None     # type: ignore[assignment]


def nvmlStructToFriendlyObject(struct: Any) -> nvmlFriendlyObject:
    """A plain object with a structure's fields."""
    return nvmlFriendlyObject({field[0]: getattr(struct, field[0]) for field in struct._fields_})


def nvmlFriendlyObjectToStruct(obj: Any, model: Any) -> Any:
    """Copies the object's attributes into the structure `model` and returns it."""
    for field in model._fields_:
        value = getattr(obj, field[0])
        setattr(model, field[0], value.encode() if isinstance(value, str) else value)
    return model


# ---- library

def nvmlInit() -> None:
    """Begins, as often as wanted (counted); raises NVMLError_LibraryNotFound where there is no Apple GPU."""
    LibraryInit()


def nvmlInitWithFlags(flags: int) -> None:
    """As nvmlInit; there is nothing to flag."""
    LibraryInit()


def nvmlShutdown() -> None:
    """Ends one nvmlInit."""
    LibraryShutDown()


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
    if ret != NVML_SUCCESS:
        raise NVMLError(ret)
    return ret


def nvmlSystemGetDriverVersion() -> str:
    """The version of macOS, whose part the GPU driver is."""
    return SystemGetOsVersion()


def nvmlSystemGetNVMLVersion() -> str:
    """The version of this library."""
    return LibraryGetVersion()


def nvmlSystemGetProcessName(pid: int) -> str:
    """Path of a process, or its name where macOS does not tell the path."""
    info = ProcessGetInfo(LibraryInitDeviceByIndex(0), pid)
    return info.path or info.name


# ---- devices

def nvmlDeviceGetCount() -> int:
    """Apple GPUs: 1 on every Mac so far (an Ultra's dies are one GPU)."""
    return LibraryCountDevice()


def nvmlDeviceGetHandleByIndex(index: int) -> Device:
    """Handle of the GPU; hashable, and valid again after a new nvmlInit."""
    return LibraryInitDeviceByIndex(index)


def nvmlDeviceGetHandleByUUID(uuid: str | bytes) -> Device:
    """Handle of the GPU with that UUID."""
    return LibraryInitDeviceByUuid(uuid.decode() if isinstance(uuid, bytes) else uuid)


def nvmlDeviceGetIndex(handle: Device) -> int:
    return DeviceGetIndex(handle)


def nvmlDeviceGetMinorNumber(handle: Device) -> int:
    """The index: there is no device node."""
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


def nvmlDeviceGetArchitecture(handle: Device) -> int:
    """NVML_DEVICE_ARCH_UNKNOWN: none of NVIDIA's; it is above VOLTA, where clients look for the energy counter."""
    DeviceGetIndex(handle)
    return NVML_DEVICE_ARCH_UNKNOWN


def nvmlDeviceGetNumGpuCores(handle: Device) -> int:
    return DeviceCountGpuCores(handle)


def nvmlDeviceGetMemoryBusWidth(handle: Device) -> int:
    """Bits of the chip's memory interface."""
    return MemoryGetBusWidth(handle)


def nvmlDeviceGetComputeMode(handle: Device) -> int:
    """NVML_COMPUTEMODE_DEFAULT: any number of processes may use the GPU."""
    DeviceGetIndex(handle)
    return NVML_COMPUTEMODE_DEFAULT


def nvmlDeviceGetAccountingMode(handle: Device) -> int:
    """NVML_FEATURE_DISABLED: ended processes are not remembered."""
    DeviceGetIndex(handle)
    return NVML_FEATURE_DISABLED


def nvmlDeviceGetPowerSource(handle: Device) -> int:
    """NVML_POWER_SOURCE_AC or NVML_POWER_SOURCE_BATTERY."""
    DeviceGetIndex(handle)
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
    return c_nvmlMemory_v2_t(version, total, 0, free, used) if version else c_nvmlMemory_t(total, free, used)


def nvmlDeviceGetUtilizationRates(handle: Device) -> Any:
    """`.gpu` as DeviceGetUtilization; `.memory` (share of time memory was busy) is always 0: Apple has no such counter."""
    return c_nvmlUtilization_t(min(100, DeviceGetUtilization(handle)), 0)


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


def nvmlDeviceGetTemperatureV1(handle: Device, sensor: int) -> int:
    """As nvmlDeviceGetTemperature."""
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


def nvmlDeviceGetPowerManagementLimit(handle: Device) -> int:
    """As nvmlDeviceGetEnforcedPowerLimit."""
    return nvmlDeviceGetEnforcedPowerLimit(handle)


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


def nvmlDeviceGetNumFans(handle: Device) -> int:
    return DeviceCountFan(handle)


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


def _nvml_process(pid: int, memory: int | None) -> nvmlFriendlyObject:
    return nvmlFriendlyObject({"pid": pid, "usedGpuMemory": memory,
                               "gpuInstanceId": 0xFFFFFFFF, "computeInstanceId": 0xFFFFFFFF})


def nvmlDeviceGetComputeRunningProcesses(handle: Device) -> list[nvmlFriendlyObject]:
    """Every process that uses the GPU, busiest first; `usedGpuMemory` is None: macOS tells no share."""
    return [_nvml_process(p.pid, None) for p in DeviceGetProcesses(handle)]


def nvmlDeviceGetGraphicsRunningProcesses(handle: Device) -> list[nvmlFriendlyObject]:
    """Empty: macOS does not tell drawing from computing, and the other list has them all."""
    DeviceGetIndex(handle)
    return []


def nvmlDeviceGetMPSComputeRunningProcesses(handle: Device) -> list[nvmlFriendlyObject]:
    """Empty: NVIDIA's multi-process service does not exist here."""
    DeviceGetIndex(handle)
    return []


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
    values = (c_nvmlFieldValue_t * len(fieldIds))()
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


def _nvml_c_number(getter: Callable[..., Any]) -> Callable[..., None]:
    """f(handle, in..., byref(number)) for a function that returns a number."""
    def call(*args: Any) -> None:
        _nvml_target(args[-1]).value = getter(*(getattr(a, "value", a) for a in args[:-1]))
    return call


def _nvml_c_text(getter: Callable[..., str]) -> Callable[..., None]:
    """f(handle..., buffer, length) for a function that returns text."""
    def call(*args: Any) -> None:
        text = getter(*args[:-2]).encode()
        if len(text) >= getattr(args[-1], "value", args[-1]):
            raise _fail(ERROR_INSUFFICIENT_SIZE)
        _nvml_target(args[-2]).value = text
    return call


def _nvml_c_struct(getter: Callable[..., Any]) -> Callable[..., None]:
    """f(handle, byref(struct)) for a function that returns a structure; fields go by name."""
    def call(handle: Device, reference: Any) -> None:
        value, target = getter(handle), _nvml_target(reference)
        for field, _ in value._fields_:
            setattr(target, field, getattr(value, field))
    return call


def _nvml_c_memory_v2(handle: Device, reference: Any) -> None:
    _nvml_c_struct(lambda device: _nvml_memory_info(device, nvmlMemory_v2))(handle, reference)


def _nvml_c_temperature(handle: Device, reference: Any) -> None:
    target = _nvml_target(reference)
    target.temperature = nvmlDeviceGetTemperature(handle, target.sensorType)


def _nvml_c_processes(getter: Callable[[Device], list[Any]]) -> Callable[..., None]:
    """f(handle, byref(count), array or None); a short or absent array: the count needed and INSUFFICIENT_SIZE."""
    def call(handle: Device, count: Any, array: Any) -> None:
        found, count = getter(handle), _nvml_target(count)
        room, count.value = count.value if array is not None else 0, len(found)
        if len(found) > room:
            raise _fail(ERROR_INSUFFICIENT_SIZE)
        for process, item in zip(found, getattr(array, "_obj", array) if found else ()):
            item.pid, item.usedGpuMemory = process.pid, NVML_VALUE_NOT_AVAILABLE_ulonglong.value
            item.gpuInstanceId, item.computeInstanceId = process.gpuInstanceId, process.computeInstanceId
    return call


def _nvml_c_fields(handle: Device, count: Any, array: Any) -> None:
    DeviceGetIndex(handle)
    items = getattr(array, "_obj", array)
    for i in range(getattr(count, "value", count)):
        _nvml_fill_field(handle, items[i])


def _nvml_c_unsupported(*args: Any) -> None:
    raise _fail(ERROR_NOT_SUPPORTED)


_nvml_memory_info = nvmlDeviceGetMemoryInfo     # gpustat puts another function in its place
_nvmlGetFunctionPointer_cache: dict[str, Callable[..., int]] = {}
_NVML_C_CALLS: dict[str, Callable[..., None]] = {
    "nvmlInit_v2": nvmlInit,
    "nvmlInitWithFlags": nvmlInitWithFlags,
    "nvmlShutdown": nvmlShutdown,
    "nvmlSystemGetDriverVersion": _nvml_c_text(nvmlSystemGetDriverVersion),
    "nvmlSystemGetNVMLVersion": _nvml_c_text(nvmlSystemGetNVMLVersion),
    "nvmlDeviceGetCount_v2": _nvml_c_number(nvmlDeviceGetCount),
    "nvmlDeviceGetName": _nvml_c_text(nvmlDeviceGetName),
    "nvmlDeviceGetUUID": _nvml_c_text(nvmlDeviceGetUUID),
    "nvmlDeviceGetMemoryInfo": _nvml_c_struct(nvmlDeviceGetMemoryInfo),
    "nvmlDeviceGetMemoryInfo_v2": _nvml_c_memory_v2,
    "nvmlDeviceGetUtilizationRates": _nvml_c_struct(nvmlDeviceGetUtilizationRates),
    "nvmlDeviceGetTemperature": _nvml_c_number(nvmlDeviceGetTemperature),
    "nvmlDeviceGetTemperatureV": _nvml_c_temperature,
    "nvmlDeviceGetFanSpeed": _nvml_c_number(nvmlDeviceGetFanSpeed),
    "nvmlDeviceGetPowerUsage": _nvml_c_number(nvmlDeviceGetPowerUsage),
    "nvmlDeviceGetEnforcedPowerLimit": _nvml_c_number(nvmlDeviceGetEnforcedPowerLimit),
    "nvmlDeviceGetTotalEnergyConsumption": _nvml_c_number(nvmlDeviceGetTotalEnergyConsumption),
    "nvmlDeviceGetClockInfo": _nvml_c_number(nvmlDeviceGetClockInfo),
    "nvmlDeviceGetMaxClockInfo": _nvml_c_number(nvmlDeviceGetMaxClockInfo),
    "nvmlDeviceGetFieldValues": _nvml_c_fields,
    "nvmlDeviceGetDriverModel": _nvml_c_unsupported,
    "nvmlDeviceGetDriverModel_v2": _nvml_c_unsupported,
}
for _name in ("Compute", "Graphics", "MPSCompute"):
    _name = "nvmlDeviceGet%sRunningProcesses" % _name
    _NVML_C_CALLS[_name + "_v2"] = _NVML_C_CALLS[_name + "_v3"] = _nvml_c_processes(globals()[_name])
del _name


def _nvml_c_function(call: Callable[..., None]) -> Callable[..., int]:
    def function(*args: Any) -> int:
        try:
            call(*args)
        except NVMLError as e:
            return e.value
        return NVML_SUCCESS
    return function


def _nvmlGetFunctionPointer(name: str) -> Callable[..., int]:
    """A Python callable in the shape of the C function, returning its code; FunctionNotFound for most names."""
    if name not in _nvmlGetFunctionPointer_cache:
        if name not in _NVML_C_CALLS:
            raise _fail(ERROR_FUNCTION_NOT_FOUND, detail=name + " has no C shape here; use the Python function")
        _nvmlGetFunctionPointer_cache[name] = _nvml_c_function(_NVML_C_CALLS[name])
    return _nvmlGetFunctionPointer_cache[name]


# ======================================================================================================================
# main
# ======================================================================================================================
