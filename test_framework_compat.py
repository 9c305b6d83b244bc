"""Programs written for NVIDIA's NVML, run against pyapplegpu over recorded Macs.

    python test_framework_compat.py [pytest arguments]

Three parts: the names and shapes themselves (compared with nvidia-ml-py where that is installed), the call sequences
of hosts that vendor or alias the bindings (sglang, vLLM, torch, accelerate, pymtml's own sglang script) as tables, and
real programs, unmodified, in subprocesses that find a pynvml.py which puts this module in its own place. A program that
is not installed is skipped with a reason; `pip install '.[test,compat]'` brings them.
"""
from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import inspect
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
import types

import pytest

import pyapplegpu as nv

ROOT = os.path.dirname(os.path.abspath(nv.__file__))
HERE = os.path.dirname(os.path.abspath(__file__))
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:       # a job in the background of a script: its children would ignore Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)
RECORDINGS = os.path.join(HERE, "examples", "recordings")
ALIAS = os.path.join(HERE, "examples", "nvml_alias")
MACS = ("m1-macos11", "m1ultra-macos27", "m4pro", "m5max-macos27")
ON_A_MAC = sys.platform == "darwin"


def recording(mac):
    path = os.path.join(RECORDINGS, mac + ".json")
    if not os.path.exists(path):
        pytest.skip("no recording %s" % mac)
    return path


@pytest.fixture
def mac(monkeypatch):
    """The M4 Pro, initialised the way an NVML program does it."""
    monkeypatch.setenv("PYAPPLEGPU_RECORDING", recording("m4pro"))
    nv.nvmlInit()
    yield nv.nvmlDeviceGetHandleByIndex(0)
    nv.nvmlShutdown()


# ---- what a recording holds, read without the library where that is possible

class Figures:
    """The recording's own figures: raw ones from the file, rates as the range over all of its intervals."""

    def __init__(self, mac):
        path = recording(mac)
        with open(path, encoding="utf-8") as f:
            self.raw = json.load(f)
        self.name = next(e["properties"]["model"][1] for e in self.raw["registry"] if "model" in e["properties"])
        self.used = {v[1]["In use system memory"][1] for v in self._statistics()}
        self.total = self._total()
        self.os = self.raw["macos"]
        self.pids = self._pids()
        self.utilization, self.power, self.temperature, self.clock = [], [], [], []
        device = nv.LibraryOpen(path, speed=0)
        for _ in self.raw["time"]["ticks"]:
            for values, function in ((self.utilization, nv.DeviceGetUtilization), (self.power, nv.DeviceGetPowerUsage),
                                     (self.temperature, nv.DeviceGetTemperature), (self.clock, nv.DeviceGetClock)):
                reading = nv.Try(function, device)
                values += [] if reading.value is None else [reading.value]
        self.cap = nv.Try(nv.DeviceGetPowerLimit, device).value
        self.fan = nv.Try(nv.DeviceGetFanSpeed, device, 0).value
        self.cores = nv.Try(nv.DeviceCountGpuCores, device).value
        nv.LibraryClose(device)

    def _statistics(self):
        for entry in self.raw["registry"]:
            series = entry.get("series", {}).get("PerformanceStatistics")
            if series:
                return [value for _, value in series]
            if "PerformanceStatistics" in entry["properties"]:
                return [entry["properties"]["PerformanceStatistics"]]
        raise AssertionError("the recording has no PerformanceStatistics")

    def _total(self):
        wired = self.raw["sysctl"].get("iogpu.wired_limit_mb")
        wired = int.from_bytes(bytes.fromhex(wired[0][1]), "little") if wired else 0
        metal = self.raw["metal"]["devices"][self.raw["metal"]["default"]]
        return wired << 20 or metal["recommendedMaxWorkingSetSize"]

    def _pids(self):
        creators = [e["properties"]["IOUserClientCreator"][1] for e in self.raw["registry"]
                    if "IOUserClientCreator" in e["properties"] and "AppUsage" in str(e)]
        return {int(re.match(r"pid (\d+)", text).group(1)) for text in creators}

    def one_of(self, value, values, slack):
        """Whether a client's figure is one that some interval of the recording gives."""
        return any(abs(value - v) <= slack for v in values)

    def near(self, value, values, slack):
        """Whether it lies in the range the recording gives: a mean, or the first reading after a longer pause."""
        return bool(values) and min(values) - slack <= value <= max(values) + slack


_figures = {}


def figures(mac):
    if mac not in _figures:
        _figures[mac] = Figures(mac)
    return _figures[mac]


# ---- running programs

def needs(*modules):
    missing = [m for m in modules if importlib.util.find_spec(m) is None]
    if missing:
        pytest.skip("%s not installed: pip install '.[compat]'" % ", ".join(missing))


def start(arguments, mac, **environment):
    """A Python that finds our pynvml.py before any other; `mac` None: no recording."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYAPPLEGPU_")}
    env.update(PYTHONPATH=os.pathsep.join((ALIAS, ROOT)), PYTHONWARNINGS="ignore", TERM="dumb", COLUMNS="200",
               PYTHONUNBUFFERED="1", **environment)
    if mac is not None:
        env["PYAPPLEGPU_RECORDING"] = recording(mac)
    return subprocess.Popen([sys.executable, *arguments], env=env, text=True, encoding="utf-8",
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


_ahead = {}


def begun(arguments, mac, environment):
    """The process; a program asked for on one of MACS is started on all of them at once, for it mostly waits."""
    if mac not in MACS:
        return start(arguments, mac, **environment)
    key = (tuple(arguments), tuple(sorted(environment)))
    if mac not in _ahead.get(key, {}):
        _ahead[key] = {m: start(arguments, m, **environment) for m in MACS}
    return _ahead[key].pop(mac)


def run(arguments, mac, code=0, **environment):
    """(stdout, stderr) of a program that must end with `code`."""
    with begun(arguments, mac, environment) as process:
        out, err = process.communicate(timeout=180)
    assert process.returncode == code, "exit %d\n%s\n%s" % (process.returncode, out, err)
    assert "Traceback" not in err, err
    return out, err


@pytest.fixture(scope="session", autouse=True)
def ended():
    """Ends what was started ahead and never asked for (a single test was picked)."""
    yield
    for processes in _ahead.values():
        for process in processes.values():
            process.kill()
            process.communicate()


def script(text, mac, **environment):
    """The JSON that a short program prints as its last line."""
    out, _ = run(["-c", textwrap.dedent(text)], mac, **environment)
    return json.loads(out.strip().splitlines()[-1])


macs = pytest.mark.parametrize("mac_name", MACS)
no_recording = pytest.mark.skipif(ON_A_MAC, reason="a Mac has a GPU")


# ======================================================================================================================
# names, shapes, errors
# ======================================================================================================================

def real_pynvml():
    """nvidia-ml-py's module under another name, or skip."""
    try:
        files = importlib.metadata.files("nvidia-ml-py") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("nvidia-ml-py is not installed")
    path = next(str(f.locate()) for f in files if f.name == "pynvml.py")
    spec = importlib.util.spec_from_file_location("real_pynvml", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["real_pynvml"] = module     # it looks itself up
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules["real_pynvml"]
    return module


NVIDIAS = re.compile(r"(struct_)?(c_)?nvml[A-Z]|NVML")      # the rest of its module is ctypes, imports and private names


def test_every_name_of_nvidia_ml_py_is_here():
    real = real_pynvml()
    if importlib.metadata.version("nvidia-ml-py") != "13.615.71":
        pytest.skip("compared with nvidia-ml-py 13.615.71 only")
    theirs = {n: v for n, v in vars(real).items() if NVIDIAS.match(n) and v is not None and "SystemEventSet" not in n
              and n != "c_nvmlSystemRegisterEvents"}       # a few of its functions have the name of a structure
    assert {n for n in theirs if not hasattr(nv, n)} == set()
    functions = {n for n, v in theirs.items() if isinstance(v, types.FunctionType)}
    assert {n for n in functions if not isinstance(vars(nv).get(n), types.FunctionType)} == set()
    numbers = {n: v for n, v in theirs.items() if type(v) in (int, str)}
    assert {n: v for n, v in numbers.items() if vars(nv).get(n) != v} == {}       # vars: nvitop copies from there
    for name, kind in theirs.items():
        ours = getattr(nv, name)
        if isinstance(kind, type):
            assert isinstance(ours, type) and issubclass(ours, Exception) == issubclass(kind, Exception), name
            assert getattr(ours, "__name__") in (name, kind.__name__, "AppleGPUError", "Device", "c_nvmlOpaque_t"), name
            assert not name.startswith("NVMLError") or issubclass(ours, nv.NVMLError), name
            if getattr(ours, "_fields_", None):
                assert [f[0] for f in ours._fields_] == [f[0] for f in kind._fields_], name
                assert ctypes.sizeof(ours) == ctypes.sizeof(kind), name
    assert nv.c_nvmlProcessInfo_t is nv.c_nvmlProcessInfo_v3_t is nv.c_nvmlProcessInfo_v2_t
    count = [sum(type(v) in kinds for n, v in vars(real).items() if n.lower().startswith("nvml"))
             for kinds in ((types.FunctionType,), (int, str))]
    with open(os.path.join(HERE, "README.md"), encoding="utf-8") as file:
        assert "{}\nfunctions, {:,} constants".format(*count) in file.read(), count


def test_parameters_have_nvidia_names_and_defaults():
    real = real_pynvml()
    for name, function in vars(real).items():
        ours = vars(nv).get(name)
        if not name.startswith("nvml") or not isinstance(function, types.FunctionType) or ours is None:
            continue
        parameters = inspect.signature(ours).parameters.values()
        if [p.name for p in parameters] != ["args", "named"]:
            assert [(p.name, p.default, p.kind) for p in parameters] == [
                (p.name, p.default, p.kind) for p in inspect.signature(function).parameters.values()], name


def test_what_clients_take_from_pynvml_besides_nvml(mac):
    """ctypes, which pynvml star-imports; structures of functions that only refuse; the layout of older packages."""
    assert nv.byref is ctypes.byref and nv.c_uint is ctypes.c_uint and nv.POINTER is ctypes.POINTER
    assert nv.nvml is nv and issubclass(nv.NVMLLibraryMismatchError, Exception)
    for name in ("nvmlNoSuch", "c_nvmlNoSuch_t", "no_such", "_Pointer"):
        assert not hasattr(nv, name), name
    settings = nv.c_nvmlSystemConfComputeSettings_v1_t()        # sglang, TensorRT-LLM
    settings.version = nv.nvmlSystemConfComputeSettings_v1
    fabric = nv.c_nvmlGpuFabricInfoV_t(version=nv.nvmlGpuFabricInfo_v2)     # flashinfer, DeepEP
    for call in (lambda: nv.nvmlSystemGetConfComputeSettings(nv.byref(settings)),
                 lambda: nv.nvmlDeviceGetGpuFabricInfoV(mac, nv.byref(fabric)),
                 lambda: nv.nvmlEventSetWait_v2(nv.c_nvmlEventSet_t(), 1000)):
        pytest.raises(nv.NVMLError_NotSupported, call)
    assert nv.c_nvmlGpuFabricInfoV_t is type(fabric) and {"c_nvmlGpuFabricInfoV_t", "c_nvmlMemory_t"} <= set(dir(nv))


FRESH = """
import json, sys, threading
import pyapplegpu as pynvml
pynvml.LibraryInit(sys.argv[1], speed=0)
pynvml.DeviceGetUtilization(pynvml.LibraryInitDeviceByIndex(0))
here = pynvml.nvmlInit.__globals__
quiet = not any(name in here for name in ("nvmlDeviceGetPciInfo", "NVML_FI_MAX", "c_nvmlMemory_t"))
seen = []
def look():
    WAYS
    seen.append(id(here["nvmlDeviceGetPciInfo"]))
threads = [threading.Thread(target=look) for _ in range(8)]
for one in threads:
    one.start()
for one in threads:
    one.join()
refusal = here["nvmlDeviceGetPciInfo"]
print(json.dumps([quiet, len(seen), len(set(seen)), here["NVML_FI_MAX"], refusal is pynvml.nvmlDeviceGetPciInfo, refusal.__module__]))
"""


@pytest.mark.parametrize("way", (
    "vars(pynvml)['nvmlDeviceGetPciInfo']", "pynvml.__dict__['NVML_PSTATE_3']", "assert 'NVML_FI_MAX' in dir(pynvml)",
    "from pyapplegpu import nvmlDeviceGetPciInfo", "assert hasattr(pynvml, 'c_nvmlSample_t')", "pynvml.NVML_BRAND_NVIDIA_RTX", "pynvml.__all__"))
def test_names_are_made_when_one_is_looked_for(way):
    """A program that asks only native functions never pays for two thousand names; one that looks anywhere finds all."""
    done = run(["-c", FRESH.replace("WAYS", way), recording("m4pro")], None)[0]
    assert json.loads(done) == [True, 8, 1, 308, True, "pyapplegpu"]


def test_names_where_the_module_cannot_be_asked():
    """Run by exec, as freezers and loaders do, without an entry in sys.modules."""
    names = {"__name__": "nowhere"}
    with open(nv.__file__, encoding="utf-8") as file:
        exec(compile(file.read(), "nowhere", "exec", dont_inherit=True), names)
    assert names["NVML_FI_MAX"] == nv.NVML_FI_MAX and isinstance(names["nvmlDeviceGetPciInfo"], types.FunctionType)


def test_p2p_and_topology_are_ints():
    for name in dir(nv):
        if name.startswith(("NVML_P2P_", "NVML_TOPOLOGY_")):
            assert type(getattr(nv, name)) is int, name


def test_functions_are_plain_functions_and_named():
    for name, value in vars(nv).items():
        if name.startswith("nvmlDeviceGet"):
            assert isinstance(value, types.FunctionType), name


ARGUMENTS = {"handle": "device", "device": "device", "device1": "device", "device2": "device", "pid": 1, "uuid": "x",
             "sensor": 0, "type": 0, "id": 0, "index": 0, "fieldIds": [83], "p2pIndex": 0, "level": 0, "fan": 0,
             "memoryClockMHz": 0, "flags": 0, "version": None}
PURE = {"nvmlErrorString", "nvmlExceptionClass", "nvmlStructToFriendlyObject", "nvmlFriendlyObjectToStruct",
        "nvmlInit", "nvmlInitWithFlags", "nvmlShutdown", "nvmlFriendlyObject", "nvmlSystemGetNVMLVersion"}


def call(name, device):
    function = getattr(nv, name)
    names = [p.name for p in inspect.signature(function).parameters.values()
             if p.default is p.empty and p.kind is not p.VAR_KEYWORD and p.kind is not p.VAR_POSITIONAL]
    return function(*(device if ARGUMENTS[n] == "device" else ARGUMENTS[n] for n in names))


def all_functions():
    return sorted(n for n, v in vars(nv).items() if n.startswith("nvml") and isinstance(v, types.FunctionType)
                  and n not in PURE)


def test_every_function_answers_or_says_why_not(mac):
    answers = []
    for name in all_functions():
        try:
            call(name, mac)
            answers.append(name)
        except nv.NVMLError as e:
            assert str(e) and isinstance(e, Exception), name
    assert {"nvmlDeviceGetMemoryInfo", "nvmlDeviceGetUtilizationRates", "nvmlDeviceGetPowerUsage", "nvmlDeviceGetName",
            "nvmlDeviceGetTotalEnergyConsumption", "nvmlDeviceGetMaxClockInfo", "nvmlDeviceGetUUID"} <= set(answers)
    assert "nvmlDeviceGetPciInfo" not in answers


def test_before_init_every_function_raises_uninitialized(mac):
    nv.nvmlShutdown()
    try:
        wrong = {}
        for name in all_functions():
            try:
                call(name, mac)
                wrong[name] = "answered"
            except nv.NVMLError_Uninitialized:
                pass
            except nv.NVMLError as e:
                wrong[name] = repr(e)
        assert wrong == {}
        with pytest.raises(nv.NVMLError_Uninitialized):
            nv.nvmlShutdown()
    finally:
        nv.nvmlInit()


def test_errors_are_one_tree_hashable_and_picklable():
    for name in [n for n in dir(nv) if n.startswith("NVML_ERROR_")]:
        code = getattr(nv, name)
        error = nv.NVMLError(code)
        kind = nv.nvmlExceptionClass(code)
        assert type(error) is kind and issubclass(kind, nv.NVMLError) and kind.__name__.startswith("NVMLError_")
        assert error.value == code and kind().value == code and str(error) == nv.nvmlErrorString(code)
        assert pickle.loads(pickle.dumps(error)) == error and hash(error) == hash(kind()) and error != None  # noqa: E711
        assert kind("as a mock makes it").value == code
    assert "NVML" in str(nv.NVMLError(12345)) and str(nv.NVMLError("as a mock makes it"))
    assert set(nv.NVMLError._errcode_to_string) <= {getattr(nv, n) for n in dir(nv) if n.startswith("NVML_ERROR_")}
    with pytest.raises(ValueError):
        nv.nvmlExceptionClass(12345)


@no_recording
def test_off_a_mac_init_raises_library_not_found(monkeypatch):
    monkeypatch.delenv("PYAPPLEGPU_RECORDING", raising=False)
    for init in (nv.nvmlInit, lambda: nv.nvmlInitWithFlags(0)):
        with pytest.raises(nv.NVMLError_LibraryNotFound):
            init()
    with pytest.raises(nv.NVMLError_Uninitialized):
        nv.nvmlDeviceGetCount()


@macs
def test_values_and_shapes(mac_name, monkeypatch):
    monkeypatch.setenv("PYAPPLEGPU_RECORDING", recording(mac_name))
    f = figures(mac_name)
    nv.nvmlInit()
    try:
        h = nv.nvmlDeviceGetHandleByIndex(0)
        assert h and hash(h) == hash(nv.nvmlDeviceGetHandleByUUID(nv.nvmlDeviceGetUUID(h).encode()))
        assert nv.nvmlDeviceGetName(h) == f.name and nv.nvmlSystemGetDriverVersion() == f.os
        assert re.match(r"GPU-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$", nv.nvmlDeviceGetUUID(h))
        memory = nv.nvmlDeviceGetMemoryInfo(h)
        assert memory.total == f.total and memory.used in f.used
        assert memory.free == memory.total - memory.used >= 0 and all(
            type(x) is int for x in (memory.total, memory.used, memory.free))
        v2 = nv.nvmlDeviceGetMemoryInfo(h, version=nv.nvmlMemory_v2)
        assert (v2.version, v2.total, v2.reserved) == (nv.nvmlMemory_v2, f.total, 0) and v2.used in f.used
        with pytest.raises(nv.NVMLError_ArgumentVersionMismatch):
            nv.nvmlDeviceGetMemoryInfo(h, 1)
        rates = nv.nvmlDeviceGetUtilizationRates(h)
        assert f.near(rates.gpu, f.utilization, 1) and rates.memory == 0
        if f.temperature:
            celsius = nv.nvmlDeviceGetTemperature(h, nv.NVML_TEMPERATURE_GPU)
            assert type(celsius) is int and f.one_of(celsius, f.temperature, 0.5)
            assert abs(nv.nvmlDeviceGetTemperatureV(h, nv.NVML_TEMPERATURE_GPU) - celsius) <= 1
        if f.power:
            assert f.near(nv.nvmlDeviceGetPowerUsage(h), f.power, 1)
        if f.cap is None:
            pytest.raises(nv.NVMLError_NotSupported, nv.nvmlDeviceGetEnforcedPowerLimit, h)
        else:
            assert nv.nvmlDeviceGetEnforcedPowerLimit(h) == nv.nvmlDeviceGetPowerManagementLimit(h) == f.cap
        if f.fan is None:
            pytest.raises(nv.NVMLError_NotSupported, nv.nvmlDeviceGetFanSpeed, h)
        else:
            assert 0 <= nv.nvmlDeviceGetFanSpeed(h) <= 100
        found = nv.nvmlDeviceGetComputeRunningProcesses(h)
        assert {p.pid for p in found} == f.pids and {p.usedGpuMemory for p in found} <= {None}
        assert nv.nvmlDeviceGetGraphicsRunningProcesses(h) == []
        assert nv.nvmlDeviceGetNumGpuCores(h) == f.cores
        assert nv.nvmlDeviceGetArchitecture(h) >= nv.NVML_DEVICE_ARCH_VOLTA
        assert (nv.nvmlDeviceGetIndex(h), nv.nvmlDeviceGetMinorNumber(h), nv.nvmlDeviceGetBrand(h)) == (0, 0, 0)
        for kind in (nv.NVML_CLOCK_MEM, nv.NVML_CLOCK_VIDEO):
            pytest.raises(nv.NVMLError_NotSupported, nv.nvmlDeviceGetMaxClockInfo, h, kind)
        clocks = nv.nvmlDeviceGetSupportedGraphicsClocks(h, 0)
        assert clocks == sorted(clocks, reverse=True) and clocks[0] == nv.nvmlDeviceGetMaxClockInfo(h, nv.NVML_CLOCK_SM)
        pytest.raises(nv.NVMLError_InvalidArgument, nv.nvmlDeviceGetHandleByIndex, 1)
        for unknown in ("GPU-00000000-0000-0000-0000-000000000000", b"\xff"):
            pytest.raises(nv.NVMLError_NotFound, nv.nvmlDeviceGetHandleByUUID, unknown)
    finally:
        nv.nvmlShutdown()


def test_field_values_never_raise(mac):
    values = nv.nvmlDeviceGetFieldValues(mac, [nv.NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION,
                                               (nv.NVML_FI_DEV_POWER_AVERAGE, nv.NVML_POWER_SCOPE_GPU),
                                               (nv.NVML_FI_DEV_POWER_INSTANT, nv.NVML_POWER_SCOPE_MEMORY),
                                               nv.NVML_FI_DEV_NVLINK_LINK_COUNT, 4095])
    assert len(values) == 5
    energy, power, dram, link, unknown = values
    assert energy.nvmlReturn == 0 and energy.valueType == nv.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG
    assert 0 < energy.value.ullVal <= nv.nvmlDeviceGetTotalEnergyConsumption(mac)
    assert power.nvmlReturn == 0 and figures("m4pro").near(power.value.uiVal, figures("m4pro").power, 1)
    assert dram.nvmlReturn in (0, nv.NVML_ERROR_NOT_SUPPORTED, nv.NVML_ERROR_NOT_READY)
    assert link.nvmlReturn == unknown.nvmlReturn == nv.NVML_ERROR_NOT_SUPPORTED
    assert abs(power.timestamp / 1e6 - time.time()) < 60


def test_c_calling_shape(mac):
    f = figures("m4pro")

    def c(name, *args):
        return nv._nvmlGetFunctionPointer(name)(mac, *args)

    memory = nv.c_nvmlMemory_v2_t(version=nv.nvmlMemory_v2)
    assert c("nvmlDeviceGetMemoryInfo_v2", ctypes.byref(memory)) == 0
    assert memory.total == f.total and memory.used in f.used and memory.free + memory.used == memory.total
    old = nv.c_nvmlMemory_t()
    assert c("nvmlDeviceGetMemoryInfo", ctypes.pointer(old)) == 0 and old.total == f.total
    number = ctypes.c_uint()
    assert c("nvmlDeviceGetMaxClockInfo", ctypes.c_uint(0), ctypes.byref(number)) == 0
    assert number.value == nv.nvmlDeviceGetMaxClockInfo(mac, 0)
    assert c("nvmlDeviceGetMaxClockInfo", ctypes.c_uint(2), ctypes.byref(number)) == nv.NVML_ERROR_NOT_SUPPORTED
    assert c("nvmlDeviceGetFanSpeed_v2", ctypes.c_uint(0), ctypes.byref(number)) == 0 and number.value <= 100      # fan scripts
    text = ctypes.create_string_buffer(96)
    assert c("nvmlDeviceGetName", text, ctypes.c_uint(96)) == 0 and text.value.decode() == f.name
    assert c("nvmlDeviceGetName", text, 3) == nv.NVML_ERROR_INSUFFICIENT_SIZE
    temperature = nv.c_nvmlTemperature_v1_t(version=nv.nvmlTemperature_v1, sensorType=0)
    assert c("nvmlDeviceGetTemperatureV", ctypes.byref(temperature)) == 0
    assert f.near(temperature.temperature, f.temperature, 1)
    assert c("nvmlDeviceGetDriverModel_v2", None, None) == nv.NVML_ERROR_NOT_SUPPORTED
    fields = (nv.c_nvmlFieldValue_t * 2)()
    fields[0].fieldId, fields[1].fieldId = nv.NVML_FI_DEV_POWER_AVERAGE, 4000
    assert c("nvmlDeviceGetFieldValues", ctypes.c_int(2), ctypes.byref(fields)) == 0
    assert (fields[0].nvmlReturn, fields[1].nvmlReturn) == (0, nv.NVML_ERROR_NOT_SUPPORTED)
    for name in ("nvmlDeviceGetConfComputeMemSizeInfo", "nvmlDeviceGetRunningProcessDetailList", "nonsense"):
        with pytest.raises(nv.NVMLError_FunctionNotFound):
            nv._nvmlGetFunctionPointer(name)


def test_c_process_list_asks_for_room(mac):
    pids = [p.pid for p in nv.nvmlDeviceGetComputeRunningProcesses(mac)]
    for suffix in ("_v2", "_v3"):
        f = nv._nvmlGetFunctionPointer("nvmlDeviceGetComputeRunningProcesses" + suffix)
        count = ctypes.c_uint(0)
        assert f(mac, ctypes.byref(count), None) == nv.NVML_ERROR_INSUFFICIENT_SIZE and count.value == len(pids)
        short = (nv.c_nvmlProcessInfo_t * 1)()
        count.value = 1
        if len(pids) > 1:
            assert f(mac, ctypes.byref(count), short) == nv.NVML_ERROR_INSUFFICIENT_SIZE and count.value == len(pids)
        count.value = len(pids) + 5
        for array in ((nv.c_nvmlProcessInfo_t * count.value)(),):
            for form in (array, ctypes.byref(array), ctypes.cast(array, ctypes.POINTER(nv.c_nvmlProcessInfo_t))):
                count.value = len(array)
                assert f(mac, ctypes.byref(count), form) == 0 and count.value == len(pids)
                assert [array[i].pid for i in range(count.value)] == pids
                assert array[0].usedGpuMemory == nv.NVML_VALUE_NOT_AVAILABLE_ulonglong.value
    for kind in ("Graphics", "MPSCompute"):
        f = nv._nvmlGetFunctionPointer("nvmlDeviceGet%sRunningProcesses_v3" % kind)
        assert f(mac, ctypes.byref(count), None) == 0
        assert count.value == 0


def test_structures_print_and_take_text(mac):
    assert str(nv.nvmlDeviceGetUtilizationRates(mac)).startswith("c_nvmlUtilization_t(gpu: ")
    assert re.match(r"c_nvmlMemory_t\(total: \d+ B, free: \d+ B, used: \d+ B\)$", str(nv.nvmlDeviceGetMemoryInfo(mac)))
    assert nv.c_nvmlMemory_t(-1, -1, -1).total == -1        # what codecarbon writes for "unknown"

    class Named(nv._PrintableStructure):
        _fields_ = [("name", ctypes.c_char * 8), ("size", ctypes.c_uint)]
        _fmt_ = {"size": "%d B"}

    named = Named()
    named.name = "abc"
    assert named.name == "abc" and str(named) == "Named(name: abc, size: 0 B)"
    friendly = nv.nvmlStructToFriendlyObject(named)
    assert (friendly.name, friendly.size) == ("abc", 0)
    friendly.size = 7
    assert nv.nvmlFriendlyObjectToStruct(friendly, Named()).size == 7
    plain = type("Plain", (ctypes.Structure,), {"_fields_": Named._fields_})(b"abc", 1)
    assert nv.nvmlStructToFriendlyObject(plain).name == "abc"
    processes = nv.nvmlDeviceGetComputeRunningProcesses(mac)
    assert len(set(processes)) == len(processes)        # clients put them in sets and dictionaries


def test_init_and_shutdown_around_every_poll(monkeypatch):
    """Rates survive: the handles and histories live as long as the process."""
    monkeypatch.setenv("PYAPPLEGPU_RECORDING", recording("m4pro"))
    seen, waits, sleep = [], [], nv._ReplayClock.sleep
    monkeypatch.setattr(nv._ReplayClock, "sleep", lambda clock, seconds: (waits.append(seconds), sleep(clock, seconds)))
    for _ in range(4):
        nv.nvmlInit()
        h = nv.nvmlDeviceGetHandleByIndex(0)
        del waits[:]
        seen.append((nv.nvmlDeviceGetUtilizationRates(h).gpu, nv.nvmlDeviceGetPowerUsage(h), bool(waits)))
        nv.nvmlShutdown()
        time.sleep(0.1)
    f = figures("m4pro")
    assert all(f.near(u, f.utilization, 1) and f.near(p, f.power, 1) for u, p, _ in seen)
    assert not seen[-1][2]       # only a first poll waits


def test_one_ioreport_sample_per_poll(monkeypatch):
    """Also when the client initialises and shuts down around each of its polls."""
    monkeypatch.setenv("PYAPPLEGPU_RECORDING", recording("m4pro"))
    samples = []
    sample = nv._ReplayedSubscription.sample
    monkeypatch.setattr(nv._ReplayedSubscription, "sample", lambda s: (samples.append(s), sample(s))[1])

    def poll():
        nv.nvmlInit()
        h = nv.nvmlDeviceGetHandleByIndex(0)
        nv.nvmlDeviceGetUtilizationRates(h)
        nv.nvmlDeviceGetPowerUsage(h)
        nv.nvmlDeviceGetTotalEnergyConsumption(h)
        nv.nvmlDeviceGetMemoryInfo(h)
        nv.nvmlDeviceGetFieldValues(h, [83, 185, 186])
        nv.nvmlDeviceGetComputeRunningProcesses(h)
        nv.nvmlShutdown()

    poll()      # the first one waits for its second sample
    counts = []
    for _ in range(5):
        time.sleep(0.5)
        del samples[:]
        poll()
        counts.append(len(samples))
    assert set(counts) == {0, 1}, counts        # 0: the replay's clock moves once a second, a young sample serves again


def test_nvml_joins_a_library_already_in_use():
    """A client in a program that opened a recording by name sees the same Mac, and window and speed stay."""
    nv.LibraryInit(recording("m4pro"), speed=0, window=3.0)
    try:
        nv.nvmlInit()
        assert nv.nvmlDeviceGetName(nv.nvmlDeviceGetHandleByIndex(0)) == figures("m4pro").name
        nv.nvmlShutdown()
        assert nv.LibraryCountDevice() == 1
    finally:
        nv.LibraryShutDown()
    with pytest.raises(nv.NVMLError_Uninitialized):
        nv.nvmlDeviceGetCount()


def test_what_is_no_handle_is_an_invalid_argument(mac):
    for wrong in (None, 0, "GPU-0", object()):
        for name in ("nvmlDeviceGetName", "nvmlDeviceGetMemoryInfo", "nvmlDeviceGetBrand", "nvmlDeviceGetComputeMode"):
            with pytest.raises(nv.NVMLError_InvalidArgument):
                getattr(nv, name)(wrong)


def test_threads_poll_together(mac):
    failures = []

    def poll():
        try:
            for _ in range(20):
                nv.nvmlInit()
                nv.nvmlDeviceGetUtilizationRates(mac)
                nv.nvmlDeviceGetMemoryInfo(mac)
                nv.nvmlDeviceGetComputeRunningProcesses(mac)
                nv.nvmlShutdown()
        except nv.NVMLError as e:
            failures.append(e)

    threads = [threading.Thread(target=poll) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert failures == []


# ======================================================================================================================
# hosts that alias or vendor the bindings: their call sequences as tables
# ======================================================================================================================

H = "handle"
UNSUPPORTED = nv.NVMLError_NotSupported

# (function, arguments after nvmlInit, what the host needs); each row runs in its own init/shutdown pair.
SGLANG_DIFFUSION = (
    ("nvmlDeviceGetCount", (), lambda v, f: v > 0),
    ("nvmlDeviceGetName", (H,), lambda v, f: str(v) == f.name),
    ("nvmlDeviceGetUUID", (H,), lambda v, f: str(v).startswith("GPU-") and len(v[4:].replace("-", "")) == 32),
    ("nvmlDeviceGetMemoryInfo", (H,), lambda v, f: int(v.total) == f.total),
    ("nvmlDeviceGetCudaComputeCapability", (H,), UNSUPPORTED),
    ("nvmlDeviceGetP2PStatus", (H, H, nv.NVML_P2P_CAPS_INDEX_NVLINK), lambda v, f: v == nv.NVML_P2P_STATUS_OK),
)
# sglang's SRT asks for memory in MiB, confidential compute (two ways) and the bus of the device.
SGLANG_SRT = (
    ("nvmlDeviceGetMemoryInfo", (H,), lambda v, f: v.total // 2 ** 20 == f.total // 2 ** 20 > 0),
    ("nvmlSystemGetConfComputeSettings", (), UNSUPPORTED),
    ("nvmlSystemGetConfComputeState", (), UNSUPPORTED),
    ("nvmlDeviceGetPciInfo", (H,), UNSUPPORTED),
    ("nvmlDeviceGetGpuFabricInfoV", (H, None), UNSUPPORTED),
    ("nvmlDeviceGetNumaNodeId", (H,), UNSUPPORTED),
    ("nvmlDeviceGetCpuAffinity", (H, 4), UNSUPPORTED),
)
VLLM = (
    ("nvmlDeviceGetCount", (), lambda v, f: v == 1),
    ("nvmlDeviceGetHandleByIndex", (0,), bool),
    ("nvmlDeviceGetName", (H,), lambda v, f: v == f.name),
    ("nvmlDeviceGetUUID", (H,), lambda v, f: type(v) is str),
    ("nvmlDeviceGetMemoryInfo", (H,), lambda v, f: int(v.total) == f.total),
    ("nvmlDeviceGetCudaComputeCapability", (H,), UNSUPPORTED),
)
TORCH_CUDA = (
    ("nvmlDeviceGetUtilizationRates", (H,), lambda v, f: f.near(v.gpu, f.utilization, 1) and type(v.memory) is int),
    ("nvmlDeviceGetTemperature", (H, 0), lambda v, f: f.one_of(v, f.temperature, 0.5)),
    ("nvmlDeviceGetPowerUsage", (H,), lambda v, f: f.near(v, f.power, 1)),
    ("nvmlDeviceGetMaxClockInfo", (H, 1), lambda v, f: v >= max(f.clock)),
    ("nvmlDeviceGetMemoryInfo", (H,), lambda v, f: v.used in f.used),
    ("nvmlDeviceGetComputeRunningProcesses", (H,), lambda v, f: {p.pid for p in v} == f.pids),
)
# pymtml's sglang script: constants, pairs, links, cores, bus width, minor number, ECC, retired pages.
PYMTML_SGLANG = (
    ("nvmlDeviceGetTopologyCommonAncestor", (H, H), lambda v, f: v == nv.NVML_TOPOLOGY_INTERNAL),
    ("nvmlDeviceGetP2PStatus", (H, H, nv.NVML_P2P_CAPS_INDEX_READ), lambda v, f: v == nv.NVML_P2P_STATUS_OK),
    ("nvmlDeviceGetP2PStatus", (H, H, nv.NVML_P2P_CAPS_INDEX_WRITE), lambda v, f: v == nv.NVML_P2P_STATUS_OK),
    ("nvmlDeviceGetTopologyNearestGpus", (H, nv.NVML_TOPOLOGY_SYSTEM), lambda v, f: v == []),
    ("nvmlDeviceGetNvLinkState", (H, 0), UNSUPPORTED),
    ("nvmlDeviceGetNvLinkRemotePciInfo", (H, 0), UNSUPPORTED),
    ("nvmlDeviceGetNumGpuCores", (H,), lambda v, f: v == f.cores),
    ("nvmlDeviceGetMemoryBusWidth", (H,), lambda v, f: v > 0 and v % 64 == 0),
    ("nvmlDeviceGetMinorNumber", (H,), lambda v, f: v == 0),
    ("nvmlDeviceGetCurrentEccMode", (H,), UNSUPPORTED),
    ("nvmlDeviceGetRetiredPagesPendingStatus", (H,), UNSUPPORTED),
)
# Exporters in the wild: star or named imports, often no try.
EXPORTERS = (
    ("nvmlDeviceGetCount", (), lambda v, f: v == 1),
    ("nvmlDeviceGetName", (H,), lambda v, f: v == f.name),
    ("nvmlDeviceGetUUID", (H,), bool),
    ("nvmlDeviceGetMinorNumber", (H,), lambda v, f: v == 0),
    ("nvmlDeviceGetMemoryInfo", (H,), lambda v, f: 100 * v.used // v.total >= 0),
    ("nvmlDeviceGetUtilizationRates", (H,), lambda v, f: 0 <= v.gpu <= 100),
    ("nvmlDeviceGetPowerUsage", (H,), lambda v, f: v / 1000 > 0 or 0 in f.power),
    ("nvmlDeviceGetTotalEnergyConsumption", (H,), lambda v, f: type(v) is int and v > 0),
    ("nvmlSystemGetDriverVersion", (), lambda v, f: v == f.os),
    ("nvmlSystemGetNVMLVersion", (), lambda v, f: v == nv.__version__),
    ("nvmlSystemGetCudaDriverVersion", (), UNSUPPORTED),
    ("nvmlDeviceGetMigMode", (H,), UNSUPPORTED),
    ("nvmlDeviceGetPerformanceState", (H,), UNSUPPORTED),
    ("nvmlDeviceGetEncoderUtilization", (H,), UNSUPPORTED),
    ("nvmlDeviceGetAccountingMode", (H,), lambda v, f: v == nv.NVML_FEATURE_DISABLED),
    ("nvmlDeviceGetComputeMode", (H,), lambda v, f: v == nv.NVML_COMPUTEMODE_DEFAULT),
)
TABLES = {"sglang-diffusion": SGLANG_DIFFUSION, "sglang-srt": SGLANG_SRT, "vllm": VLLM, "torch.cuda": TORCH_CUDA,
          "pymtml-sglang": PYMTML_SGLANG, "exporters": EXPORTERS}


@macs
@pytest.mark.parametrize("host", TABLES)
def test_call_sequence(host, mac_name, monkeypatch):
    monkeypatch.setenv("PYAPPLEGPU_RECORDING", recording(mac_name))
    f = figures(mac_name)
    for name, arguments, wanted in TABLES[host]:
        if "Temperature" in name and not f.temperature or "PowerUsage" in name and not f.power:
            continue
        nv.nvmlInit()
        try:
            handle = nv.nvmlDeviceGetHandleByIndex(0)
            given = [handle if a is H else a for a in arguments]
            if wanted is UNSUPPORTED:
                pytest.raises(UNSUPPORTED, getattr(nv, name), *given)
                continue
            value = getattr(nv, name)(*given)
            assert wanted(value) if wanted is bool else wanted(value, f), (name, value)
        finally:
            nv.nvmlShutdown()


def detects_cuda():
    """How sglang and vLLM look for a GPU: any error whose class name lacks "nvml" goes up."""
    try:
        nv.nvmlInit()
        try:
            return nv.nvmlDeviceGetCount() > 0
        finally:
            nv.nvmlShutdown()
    except Exception as e:
        if "nvml" not in e.__class__.__name__.lower():
            raise
        return False


def test_detection(monkeypatch):
    monkeypatch.setenv("PYAPPLEGPU_RECORDING", recording("m1-macos11"))
    assert detects_cuda() is True       # why a global alias misleads a host that takes NVML for CUDA
    if not ON_A_MAC:
        monkeypatch.delenv("PYAPPLEGPU_RECORDING")
        assert detects_cuda() is False


def test_accelerate_style_probing():
    """find_spec sees the alias; distribution metadata named pynvml does not exist, so accelerate reads it as absent."""
    probe = script("""
        import importlib.util, importlib.metadata, json
        before = importlib.util.find_spec("pynvml") is not None
        import pynvml
        after = importlib.util.find_spec("pynvml") is not None
        try:
            importlib.metadata.version("pynvml"); metadata = True
        except importlib.metadata.PackageNotFoundError:
            metadata = False
        from pynvml import *
        from pynvml import _nvmlGetFunctionPointer, _PrintableStructure
        print(json.dumps([before, after, metadata, pynvml.__name__, nvmlDeviceGetCount.__name__, NVML_TEMPERATURE_GPU]))
    """, None)
    assert probe[:2] == [True, True] and probe[3:] == ["pyapplegpu", "nvmlDeviceGetCount", 0]


def test_older_packages_layout():
    """`pynvml.nvml` was a module of its own once."""
    assert script("""
        import json
        import pynvml.nvml, pyapplegpu
        from pynvml.nvml import NVMLError_NotSupported, nvmlInit
        print(json.dumps([pynvml is pyapplegpu, pynvml.nvml is pyapplegpu, NVMLError_NotSupported.__name__]))
    """, None) == [True, True, "NVMLError_NotSupported"]


PROCESSES = """
import json, multiprocessing, sys
import pynvml

def work(queue, handle):
    try:
        pynvml.nvmlInit()
        own = pynvml.nvmlDeviceGetHandleByIndex(0)
        names = [pynvml.nvmlDeviceGetName(h) for h in (own, handle or own)]
        queue.put(names + [pynvml.nvmlDeviceGetMemoryInfo(own).total])
        pynvml.nvmlDeviceGetPciInfo(own)
    except pynvml.NVMLError as e:
        queue.put(e)

if __name__ == "__main__":
    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    found = []
    for way in ("spawn", "fork"):
        context = multiprocessing.get_context(way)
        queue = context.Queue()
        process = context.Process(target=work, args=(queue, handle if way == "fork" else None))
        process.start()
        found.append(queue.get(timeout=60))
        error = queue.get(timeout=60)
        process.join(60)
        found.append([type(error) is pynvml.NVMLError_NotSupported, error.value, process.exitcode])
    print(json.dumps(found))
"""


def test_child_processes(tmp_path):
    """Spawned and forked workers see the GPU; an inherited handle serves after nvmlInit; errors cross by pickle."""
    (tmp_path / "workers.py").write_text(PROCESSES)
    out, _ = run([str(tmp_path / "workers.py")], "m4pro")
    f = figures("m4pro")
    assert json.loads(out) == [[f.name, f.name, f.total], [True, 3, 0]] * 2


def test_a_vendored_copy_is_replaced_by_its_name(tmp_path):
    """As clearml, wandb and neptune keep one; the client is unmodified."""
    (tmp_path / "host").mkdir()
    (tmp_path / "host" / "__init__.py").write_text("")
    (tmp_path / "host" / "pynvml.py").write_text("raise ImportError('the copy was read')\n")
    (tmp_path / "host" / "gpu.py").write_text("from host.pynvml import *\nfrom . import pynvml\n"
                                              "nvmlInit()\nname = pynvml.nvmlDeviceGetName(nvmlDeviceGetHandleByIndex(0))\n")
    assert script("""
        import json, sys
        import pyapplegpu
        sys.path.insert(0, %r)
        sys.modules["host.pynvml"] = pyapplegpu
        import host.gpu
        print(json.dumps(host.gpu.name))
    """ % str(tmp_path), "m4pro") == figures("m4pro").name


def test_star_import_brings_every_nvml_name(tmp_path):
    """Also those with an underscore that clients look for, so a pynvml.py of one star import serves them too."""
    names = script("""
        import json
        from pyapplegpu import *
        print(json.dumps([n for n in globals()]))
    """, None)
    wanted = {n for n in dir(nv) if re.match(r"nvml[A-Z]|NVML_|NVMLError|c_nvml|_nvml[A-Z]\w*|_Printable", n)}
    assert {"c_nvmlMemory_t", "c_nvmlGpuFabricInfoV_t", "nvmlPciInfo_t"} <= wanted
    assert wanted - set(names) == set()
    needs("gpustat")
    (tmp_path / "pynvml.py").write_text("from pyapplegpu import *\n")
    code = "import sys, runpy; sys.path.insert(0, %r); sys.argv = ['gpustat', '--json']; " % str(tmp_path)
    out, _ = run(["-c", code + "runpy.run_module('gpustat', run_name='__main__')"], "m4pro")
    assert json.loads(out)["gpus"][0]["name"] == figures("m4pro").name


# ======================================================================================================================
# real programs
# ======================================================================================================================

@macs
def test_gpustat_json(mac_name):
    needs("gpustat")
    out, err = run(["-m", "gpustat", "--json"], mac_name)
    f = figures(mac_name)
    report = json.loads(out)
    gpu, = report["gpus"]
    assert report["driver_version"] == f.os and gpu["name"] == f.name and gpu["index"] == 0
    assert gpu["memory.total"] == f.total // 2 ** 20 and gpu["memory.used"] in {u // 2 ** 20 for u in f.used}
    assert f.one_of(gpu["utilization.gpu"], f.utilization, 1)
    assert f.one_of(gpu["power.draw"], [p // 1000 for p in f.power], 0.5) if f.power else gpu["power.draw"] is None
    if f.temperature:
        assert f.one_of(gpu["temperature.gpu"], f.temperature, 0.5)
    assert (gpu["fan.speed"] is None) == (f.fan is None) and (gpu["enforced.power.limit"] is None) == (f.cap is None)
    assert gpu["utilization.enc"] is None and gpu["uuid"].startswith("GPU-")


@macs
def test_gpustat_table(mac_name):
    needs("gpustat")
    out, err = run(["-m", "gpustat", "-a", "--no-color"], mac_name)
    f = figures(mac_name)
    line = next(x for x in out.splitlines() if x.startswith("[0]"))
    assert f.name in line and "%d MB" % (f.total >> 20) in line and f.os in out
    assert any(re.search(r"\b%d / *%d MB" % (u >> 20, f.total >> 20), line) for u in f.used)


def test_gpustat_watch_mode():
    needs("gpustat")
    with start(["-m", "gpustat", "-i", "0.3", "--no-color"], "m5max-macos27") as process:
        name, out, end = figures("m5max-macos27").name, "", time.monotonic() + 60
        while out.count(name) < 3 and time.monotonic() < end and process.poll() is None:
            out += os.read(process.stdout.fileno(), 65536).decode("utf-8", "replace")
        process.send_signal(signal.SIGINT)
        rest, err = process.communicate(timeout=30)
    assert process.returncode == 0 and out.count(name) >= 3, (out + rest, err)
    assert "Traceback" not in err and "Error" not in out + rest


def test_gpustats_own_tests(tmp_path):
    """gpustat's test file, against our module with its own mocks; the rest mocks NVIDIA's C layer."""
    needs("gpustat", "mockito")
    spec = importlib.util.find_spec("gpustat.test_gpustat")
    if spec is None:
        pytest.skip("this gpustat has no tests in its package")
    arguments = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), spec.origin]
    with start(arguments, None) as process:
        out, err = process.communicate(timeout=180)
    passed = re.search(r"(\d+) passed", out)
    assert passed and int(passed.group(1)) >= 10, out + err


@macs
def test_nvitop_once(mac_name):
    needs("nvitop")
    out, err = run(["-m", "nvitop", "--once", "--ascii"], mac_name)
    f = figures(mac_name)
    assert not re.search("WARNING|ERROR|corrupted", out + err), out + err
    assert f.name[:16] in out and "Driver Version: %s" % f.os in out
    mib = re.search(r"([\d.]+)([MG])iB / *([\d.]+)([MG])iB", out)
    assert mib, out
    scale = {"M": 2 ** 20, "G": 2 ** 30}
    assert abs(float(mib.group(3)) * scale[mib.group(4)] / f.total - 1) < 0.01
    used, unit = float(mib.group(1)), scale[mib.group(2)]
    assert any(abs(used * unit - u) <= 0.06 * unit + u * 0.01 for u in f.used)
    percents = [int(p) for p in re.findall(r"\| +(\d+)% +Default", out)]
    assert percents and f.one_of(percents[0], f.utilization, 1)
    if f.temperature:
        celsius = re.search(r"(\d+)C ", out)
        assert celsius and f.one_of(int(celsius.group(1)), f.temperature, 0.5)
    for pid in f.pids:
        assert re.search(r"\b%d\b" % pid, out), "process %d is missing" % pid


def test_nvitop_collector():
    needs("nvitop")
    metrics = script("""
        import json, time
        from nvitop import Device, ResourceMetricCollector
        collector = ResourceMetricCollector(Device.all(), interval=0.5)
        with collector(tag="run"):
            time.sleep(2.5)
            metrics = collector.collect()
        print(json.dumps({k: v for k, v in metrics.items() if "/gpu:0" in k and v == v}))
    """, "m4pro")
    f = figures("m4pro")
    mean = {k.split("/")[2]: v for k, v in metrics.items() if k.endswith("/mean")}
    assert f.near(mean["gpu_utilization (%)"], f.utilization, 1)
    assert abs(mean["memory_total (MiB)"] - f.total / 2 ** 20) < 0.01
    assert f.near(mean["memory_used (MiB)"], [u / 2 ** 20 for u in f.used], 0.01)
    assert f.near(mean["power_usage (W)"], [p / 1000 for p in f.power], 0.01)
    assert f.near(mean["temperature (C)"], f.temperature, 1)


GLANCES = """
    import ctypes, json
    real = ctypes.CDLL
    # glances looks for NVIDIA's shared library before it imports pynvml
    ctypes.CDLL = lambda name, *a, **k: None if "nvidia-ml" in str(name) else real(name, *a, **k)
    from glances.plugins.gpu.cards.nvidia import NvidiaGPU
    card = NvidiaGPU()
    stats = card.get_device_stats()
    card.exit()
    print(json.dumps(stats))
"""


@macs
def test_glances(mac_name):
    needs("glances")
    gpu, = script(GLANCES, mac_name)
    f = figures(mac_name)
    assert gpu["name"] == f.name and f.one_of(gpu["proc"], f.utilization, 1)
    assert any(abs(gpu["mem"] - 100 * u / f.total) <= 1 for u in f.used)
    assert (gpu["fan_speed"] is None) == (f.fan is None)
    assert f.one_of(gpu["temperature"], f.temperature, 0.5) if f.temperature else gpu["temperature"] is None


CODECARBON = """
    import json, logging, time
    from codecarbon import OfflineEmissionsTracker
    from codecarbon.core.gpu import AllGPUDevices
    tracker = OfflineEmissionsTracker(country_iso_code="FRA", measure_power_secs=1, save_to_file=False,
                                      log_level="critical", allow_multiple_runs=True, tracking_mode="machine")
    tracker.start()
    time.sleep(4)
    tracker.stop()
    data = tracker.final_emissions_data
    devices = AllGPUDevices()
    print(json.dumps({"count": data.gpu_count, "model": data.gpu_model, "kwh": data.gpu_energy, "watts": data.gpu_power,
                      "static": devices.get_gpu_static_info(), "details": devices.get_gpu_details()}))
"""


# Programs that run the command find ours; codecarbon looks for it before it asks NVML.
NVIDIA_SMI = {"PATH": ALIAS + os.pathsep + os.environ.get("PATH", os.defpath), "PYTHON": sys.executable}


@macs
def test_codecarbon(mac_name, tmp_path):
    needs("codecarbon")
    seen = script(CODECARBON, mac_name, HOME=str(tmp_path), **NVIDIA_SMI)
    f = figures(mac_name)
    assert seen["count"] == 1 and f.name in seen["model"] and seen["static"][0]["total_memory"] == f.total
    # kWh over about 5 s; an idle M1 uses a milliwatt, which may round to nothing between two readings
    assert min(f.power) / 1e6 * 2 / 3600 * (mac_name != "m1-macos11") <= seen["kwh"] <= max(f.power) / 1e6 * 10 / 3600
    details = seen["details"][0]
    assert details["used_memory"] in f.used and f.near(details["gpu_utilization"], f.utilization, 1)
    assert f.near(details["power_usage"], [p / 1000 for p in f.power], 0.001)


ZEUS = """
    import json, time, warnings
    warnings.simplefilter("ignore")
    from zeus.device import get_gpus
    from zeus.monitor import ZeusMonitor
    gpus = get_gpus()
    monitor = ZeusMonitor(gpu_indices=[0], cpu_indices=[], approx_instant_energy=False)
    first = gpus.get_average_power_usage(0)
    monitor.begin_window("w", sync_execution=False)
    time.sleep(4)
    window = monitor.end_window("w", sync_execution=False)
    print(json.dumps({"name": gpus.get_name(0), "mw": first, "now": gpus.get_instant_power_usage(0),
                      "joules": window.total_energy, "seconds": window.time,
                      "celsius": gpus.get_gpu_temperature(0),
                      "counter": gpus.supports_get_total_energy_consumption(0)}))
"""


@macs
def test_zeus(mac_name):
    needs("zeus")
    seen = script(ZEUS, mac_name)
    f = figures(mac_name)
    assert seen["name"] == f.name and seen["counter"] is True
    assert f.one_of(seen["mw"], f.power, 1) and f.near(seen["now"], f.power, 1)
    watts = [p / 1000 for p in f.power]
    # the counter moves when the driver publishes, so one publication may belong to a neighbour
    assert seen["joules"] <= max(watts) * (seen["seconds"] + 2.5) and (seen["joules"] > 0 or max(watts) < 0.01)
    assert seen["joules"] >= min(watts) * max(0, seen["seconds"] - 2.5)


MLFLOW = """
    import json, logging, time
    import pynvml
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    monitor = GPUMonitor()
    monitor.collect_metrics()
    time.sleep(0.5)
    monitor.collect_metrics()
    print(json.dumps(monitor.aggregate_metrics()))
"""


@macs
def test_mlflow(mac_name):
    needs("mlflow")
    seen = script(MLFLOW, mac_name)
    f = figures(mac_name)
    assert f.near(seen["gpu_0_utilization_percentage"], f.utilization, 1)
    assert f.near(seen["gpu_0_memory_usage_megabytes"], [u / 1e6 for u in f.used], 0.1)
    assert f.near(seen["gpu_0_memory_usage_percentage"], [100 * u / f.total for u in f.used], 0.1)
    # mlflow keeps no power without a limit
    assert ("gpu_0_power_usage_watts" in seen) == (f.cap is not None and bool(f.power))


DISTRIBUTED = """
    import json
    from distributed.diagnostics import nvml
    seen = {"count": nvml.device_get_count(), "real": nvml.real_time(), "one": nvml.one_time(),
            "mig": nvml.get_device_mig_mode(0), "context": nvml.has_cuda_context().has_context}
    by_index = nvml.get_device_index_and_uuid(0)
    seen["uuid"] = by_index.uuid if isinstance(by_index.uuid, str) else by_index.uuid.decode()
    seen["back"] = nvml.get_device_index_and_uuid(by_index.uuid).device_index
    from distributed.system_monitor import SystemMonitor
    monitor = SystemMonitor()
    seen["monitor"] = {k: v for k, v in monitor.update().items() if k.startswith("gpu")}
    print(json.dumps(seen))
"""


@macs
def test_distributed(mac_name):
    needs("distributed")
    seen = script(DISTRIBUTED, mac_name)
    f = figures(mac_name)
    assert seen["count"] == 1 and seen["one"] == {"memory-total": f.total, "name": f.name}
    assert seen["real"]["memory-used"] in f.used and f.one_of(seen["real"]["utilization"], f.utilization, 1)
    assert seen["mig"] == [0, 0] and seen["context"] is False and seen["back"] == 0 and seen["uuid"].startswith("GPU-")
    assert seen["monitor"]["gpu_memory_used"] in f.used


TORCH = """
    import json
    import pynvml
    import torch

    def ask(function):
        try:
            return function(0)
        except pynvml.NVMLError as e:       # torch lets every error through
            return e.reason
    print(json.dumps([ask(f) for f in (torch.cuda.utilization, torch.cuda.temperature, torch.cuda.power_draw,
                                       torch.cuda.clock_rate)]))
"""


@macs
def test_torch(mac_name):
    needs("torch")
    busy, celsius, milliwatts, megahertz = script(TORCH, mac_name)
    f = figures(mac_name)
    assert f.one_of(busy, f.utilization, 1) and f.one_of(celsius, f.temperature, 0.5)
    assert f.one_of(milliwatts, f.power, 1)
    assert megahertz in f.clock or megahertz == "gpu_asleep" and min(f.utilization) == 0


# Programs nobody here had in mind when the names were written: what a client of NVML touches must work for all of them.
CARBONTRACKER = """
    import json
    from carbontracker.components.gpu.nvidia import NvidiaGPU
    card = NvidiaGPU([1], False)
    seen = [card.available()]
    card.init()
    print(json.dumps(seen + [card.devices(), card.power_usage()]))
    card.shutdown()
"""
PYJOULES = """
    import json, time
    from pyJoules.device.nvidia_device import NvidiaGPUDevice
    device = NvidiaGPUDevice()
    domains = device.available_domains()
    device.configure(domains)
    first = device.get_energy()
    time.sleep(4)
    print(json.dumps([[str(d) for d in domains], first, device.get_energy()]))
"""
SCALENE = """
    import json
    from scalene.scalene_nvidia_gpu import ScaleneNVIDIAGPU
    card = ScaleneNVIDIAGPU()
    print(json.dumps([card.has_gpu(), card.get_stats()]))
"""
DLTOP = """
    import json
    from dltop.sources import nvml
    gpu, = nvml.init_nvml()
    nvml.sample_nvml(gpu)
    pids = [row["pid"] for row in nvml._collect_processes([gpu], {})]
    print(json.dumps([gpu.name, gpu.mem_total_mb, gpu.mem_used_mb, gpu.sm_overall_pct, gpu.temp_c, gpu.power_w,
                      gpu.power_limit_w, pids]))
"""
ROS2TOP = """
    import json
    from ros2top.gpu_monitor import GPUMonitor
    card = GPUMonitor()
    print(json.dumps([card.is_available(), card.get_gpu_count(), card.get_gpu_info(0)]))
"""
# Its bindings are a copy in the package: an alias reaches it by the copy's name.
PY3NVML = """
    import json, sys
    import pyapplegpu
    sys.modules["py3nvml.py3nvml"] = pyapplegpu
    from py3nvml.utils import get_free_gpus, get_num_procs
    print(json.dumps([get_free_gpus(), get_num_procs()]))
"""


@macs
def test_carbontracker(mac_name):
    needs("carbontracker")
    f = figures(mac_name)
    if not f.power:
        pytest.skip("this recording has no GPU power")
    available, names, watts = script(CARBONTRACKER, mac_name)
    assert available is True and names == [f.name] and f.one_of(watts[0], [p / 1000 for p in f.power], 0.001)


def test_pyjoules():
    needs("pyJoules")
    domains, (before,), (after,) = script(PYJOULES, "m4pro")
    assert domains == ["nvidia_gpu_0"] and 0 < after - before <= max(figures("m4pro").power) * 6.5


def test_scalene():
    needs("scalene")
    has, (busy, _) = script(SCALENE, "m5max-macos27")
    assert has is True and figures("m5max-macos27").near(busy * 100, figures("m5max-macos27").utilization, 1)


@macs
def test_dltop(mac_name):
    needs("dltop")
    name, total, used, busy, celsius, watts, limit, pids = script(DLTOP, mac_name)
    f = figures(mac_name)
    assert name == f.name and total == f.total / 1e6 and any(abs(used - u / 1e6) < 0.01 for u in f.used)
    assert f.one_of(busy, f.utilization, 1) and set(pids) == f.pids
    assert f.one_of(celsius, f.temperature, 0.5) if f.temperature else celsius == 0
    assert f.one_of(watts, [p / 1000 for p in f.power], 0.001) if f.power else watts == 0
    assert limit == (f.cap or 0) / 1000


def test_ros2top():
    needs("ros2top")
    f = figures("m5max-macos27")
    available, count, gpu = script(ROS2TOP, "m5max-macos27")
    assert (available, count, gpu["name"], gpu["memory_total_mb"]) == (True, 1, f.name, f.total >> 20)
    assert gpu["memory_used_mb"] in {u >> 20 for u in f.used} and f.one_of(gpu["utilization_gpu"], f.utilization, 1)


def test_py3nvml_by_the_name_of_its_copy():
    needs("py3nvml")
    assert script(PY3NVML, "m4pro") == [[False], [len(figures("m4pro").pids)]]


GPUTIL = """
    import json
    import GPUtil
    print(json.dumps([vars(gpu) for gpu in GPUtil.getGPUs()]))
"""
NVSMI = """
    import json
    import nvsmi
    gpu, = nvsmi.get_gpus()
    print(json.dumps([gpu.uuid, gpu.gpu_util, gpu.mem_total, gpu.mem_used, [p.pid for p in nvsmi.get_gpu_processes()]]))
"""


@macs
def test_gputil(mac_name):
    """It runs nvidia-smi and parses the answer."""
    needs("GPUtil")
    if sys.version_info >= (3, 12):
        needs("distutils")
    gpu, = script(GPUTIL, mac_name, **NVIDIA_SMI)
    f = figures(mac_name)
    assert (gpu["name"], gpu["memoryTotal"], gpu["driver"]) == (f.name, f.total >> 20, f.os)
    assert gpu["memoryUsed"] in {u >> 20 for u in f.used} and f.one_of(gpu["load"] * 100, f.utilization, 1)
    if f.temperature:
        assert f.one_of(gpu["temperature"], f.temperature, 0.5)


def test_nvsmi():
    needs("nvsmi")
    uuid, busy, total, used, pids = script(NVSMI, "m4pro", **NVIDIA_SMI)
    f = figures("m4pro")
    assert uuid.startswith("GPU-") and f.one_of(busy, f.utilization, 1) and total == f.total >> 20
    assert used in {u >> 20 for u in f.used} and set(map(int, pids)) == f.pids


def test_pynvml_utils():
    """The rest of the pynvml package: a star import, and no try around the PCI address, where its report ends."""
    needs("pynvml_utils")
    seen = script("""
        import json
        from pynvml_utils import nvidia_smi
        print(json.dumps(nvidia_smi.getInstance().DeviceQuery()))
    """, "m4pro")
    assert (seen["driver_version"], seen["count"]) == (figures("m4pro").os, 1)


def test_nvidias_own_example():
    """nvidia-ml-py's example.py lies beside the real pynvml.py, so a folder on PYTHONPATH does not reach it."""
    try:
        files = importlib.metadata.files("nvidia-ml-py") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("nvidia-ml-py is not installed")
    example = [str(f.locate()) for f in files if f.name == "example.py"]
    if not example:
        pytest.skip("this nvidia-ml-py has no example.py")
    with open(example[0], encoding="utf-8") as file:
        if "nvmlInit" not in file.read():       # mthreads-ml-py has an example.py too
            pytest.skip("another package's example.py lies over it: pip install --force-reinstall --no-deps nvidia-ml-py")
    alias = os.path.join(HERE, "examples", "as_pynvml.py")
    out, err = run([alias, "--recording", recording("m4pro"), example[0]], None)
    assert "<driver_version>%s</driver_version>" % figures("m4pro").os in out
    assert "Not Supported" in out       # it ends at the PCI address, which this GPU has not


# Without a GPU each program must say so in its own way: what it runs, its exit status, what it must print.
WITHOUT = (
    ("gpustat", ["-m", "gpustat"], 1, "Apple GPU Not Found"),
    ("nvitop", ["-m", "nvitop", "--once"], 1, "NVML"),
    ("glances", ["-c", textwrap.dedent(GLANCES)], 0, "[]"),
    ("distributed", ["-c", "from distributed.diagnostics import nvml; print(nvml.device_get_count())"], 0, "0"),
    ("mlflow", ["-c", textwrap.dedent("""
        import pynvml
        from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
        try:
            GPUMonitor()
        except RuntimeError as e:
            print(e)
        """)], 0, "Apple GPU Not Found"),
    ("zeus", ["-c", textwrap.dedent("""
        from zeus.device.gpu.nvidia import nvml_is_available
        print(nvml_is_available())
        """)], 0, "False"),
    ("ros2top", ["-c", textwrap.dedent(ROS2TOP)], 0, "[false, 0, null]"),
    ("codecarbon", ["-c", "from codecarbon.core import gpu_nvidia; print(gpu_nvidia.PYNVML_AVAILABLE)"], 0, "False"),
    ("torch", ["-c", textwrap.dedent("""
        import pynvml, torch
        try:
            torch.cuda.utilization(0)
        except pynvml.NVMLError_LibraryNotFound as e:
            print(e)
        """)], 0, "Apple GPU Not Found"),
)


@no_recording
@pytest.mark.parametrize("program,arguments,code,says", WITHOUT, ids=[w[0] for w in WITHOUT])
def test_without_a_gpu(program, arguments, code, says):
    needs(program)
    out, err = run(arguments, None, code)
    assert says in out + err


if __name__ == "__main__":
    sys.exit(pytest.main([os.path.abspath(__file__), *sys.argv[1:]]))
