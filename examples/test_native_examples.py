"""The examples around NVML and inference hosts: as_pynvml, nvml_alias, sglang_platform, mlx_capacity, training_hook."""
from __future__ import annotations

import json
import os
import subprocess
import sys
import types

import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
EXAMPLES = HERE
sys.path[:0] = [os.path.dirname(HERE), EXAMPLES]

import mlx_capacity             # noqa: E402
import pyapplegpu as ag         # noqa: E402
import sglang_platform          # noqa: E402
import training_hook            # noqa: E402

GIB = 2 ** 30


def recording(name):
    return os.path.join(EXAMPLES, "recordings", name + ".json")


def raw(name):
    with open(recording(name), encoding="utf-8") as f:
        return json.load(f)


def run(*arguments, code=0, **environment):
    env = {k: v for k, v in os.environ.items() if k != "PYAPPLEGPU_RECORDING"}
    env["PYTHONPATH"] = os.path.dirname(os.path.abspath(ag.__file__))
    env.update(environment)
    done = subprocess.run([sys.executable, *arguments], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout, done.stderr


@pytest.fixture
def gpu():
    device = ag.LibraryOpen(recording("m4pro"), speed=0)
    yield device
    ag.LibraryClose(device)


# ---- sglang_platform

def test_platform_answers_with_the_recordings_figures(monkeypatch):
    monkeypatch.setenv("PYAPPLEGPU_RECORDING", recording("m4pro"))
    platform = sglang_platform.AppleGpuPlatform
    limit = raw("m4pro")["metal"]["devices"][0]["recommendedMaxWorkingSetSize"]
    assert sglang_platform.is_available()
    assert platform.get_device_name() == "Apple M4 Pro" and platform.get_device_total_memory() == limit
    assert len(platform.get_device_uuid()) == 36 and platform.get_device_uuid() == platform.get_device_uuid()
    assert 0 < platform.get_current_memory_usage() < limit
    assert 0 < platform.get_available_gpu_memory() <= (limit - platform.get_current_memory_usage()) / GIB
    assert platform.is_fully_connected([0])
    # as sglang calls it
    assert 0 < platform.get_available_gpu_memory(None, distributed=False, empty_cache=True) <= limit / GIB
    assert type(platform.get_current_memory_usage("mps:0")) is float
    with pytest.raises(ag.AppleGPUError_Uninitialized):     # every query has ended what it began
        ag.LibraryCountDevice()


@pytest.mark.skipif(sys.platform == "darwin", reason="a Mac has a GPU")
def test_platform_is_absent_without_a_gpu(monkeypatch):
    monkeypatch.delenv("PYAPPLEGPU_RECORDING", raising=False)
    assert sglang_platform.is_available() is False


def test_platform_says_what_a_guest_does_not_know():
    out, _ = run(os.path.join(EXAMPLES, "sglang_platform.py"), recording("vm-macos15"))
    assert "virtual machine" in out and "total      5010800640 bytes" in out
    _, err = run(os.path.join(EXAMPLES, "sglang_platform.py"), "no-such-file.json", code=1)
    assert "no-such-file.json" in err and "Traceback" not in err


# ---- mlx_capacity

def test_capacity_compares_with_the_headroom(gpu):
    room = ag.MemoryGetHeadroom(gpu)
    fits = mlx_capacity.capacity(gpu, room.headroom_bytes // 2)
    assert fits.fits and fits.why == "fits" and fits.budget_bytes == int(room.headroom_bytes * 0.95)
    assert not mlx_capacity.capacity(gpu, room.headroom_bytes).fits
    assert mlx_capacity.capacity(gpu, room.headroom_bytes, fraction=1.0).fits
    assert "iogpu.wired_limit_mb" in mlx_capacity.capacity(gpu, room.limit_bytes + 1).why
    assert mlx_capacity.cache_bytes(gpu, GIB) == fits.budget_bytes - GIB
    assert mlx_capacity.cache_bytes(gpu, room.limit_bytes) == 0


@pytest.mark.parametrize("text,size", [("12GiB", 12 * GIB), ("4.5 GB", 4_500_000_000), ("512MiB", 2 ** 29), ("7", 7)])
def test_sizes(text, size):
    assert mlx_capacity.parse_size(text) == size


@pytest.mark.parametrize("arguments", [["inf"], ["nan"], ["GiB"], ["1XB"], ["1GiB", "--cache=-4GiB"], ["1GiB", "--fraction", "2"],
                                       ["1GiB", "--fraction", "0"], ["1GiB", "--fraction", "nan"]], ids=" ".join)
def test_what_is_no_size(arguments):
    _, err = run(os.path.join(EXAMPLES, "mlx_capacity.py"), *arguments, code=2)
    assert "error: argument" in err and "Traceback" not in err


def test_size_of_files(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 10)
    (tmp_path / "b").write_bytes(b"x" * 5)
    assert mlx_capacity.parse_size(str(tmp_path / "a")) == 10 and mlx_capacity.parse_size(str(tmp_path)) == 15


@pytest.mark.parametrize("name,size,code,says", [
    ("m4pro", "4GiB", 0, "Apple M4 Pro: fits"),
    ("m1-macos11", "12GiB", 3, "larger than the GPU may use"),
    ("m4pro", "30GiB", 3, "other programs hold the RAM"),
])
def test_capacity_command(name, size, code, says):
    out, _ = run(os.path.join(EXAMPLES, "mlx_capacity.py"), size, "--recording", recording(name), code=code)
    assert says in out


def test_capacity_command_where_it_cannot_be_told():
    _, err = run(os.path.join(EXAMPLES, "mlx_capacity.py"), "1GiB", "--recording", recording("vm-macos15"), code=1)
    assert "virtual machine" in err and "Traceback" not in err


# ---- training_hook

def test_meter_reports_and_sums_up(monkeypatch):
    device = ag.LibraryOpen(recording("m3max-macos27"), speed=0, window=1.0)
    now = [100.0]
    monkeypatch.setattr(training_hook, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    reports = []
    with training_hook.Meter(device, every=1.0) as meter:
        for _ in range(12):
            now[0] += 0.5
            reports.append(meter.step(samples=4))
    assert [r is None for r in reports] == [True, False] * 6 and meter.samples == 48
    last = reports[-1]
    assert last["gpu/utilization_percent"] == 65 and last["gpu/power_w"] == pytest.approx(21.5, rel=1e-3)
    assert last["gpu/memory_used_gib"] == pytest.approx(8.5, rel=1e-3)
    total = meter.summary()
    assert total["gpu/energy_j"] == pytest.approx(21.5 * total["seconds"], rel=0.3)
    assert total["gpu/energy_j_per_sample"] == total["gpu/energy_j"] / 48
    assert total["gpu/power_w_mean"] == pytest.approx(21.5, rel=1e-3)


def test_meter_leaves_out_what_a_guest_does_not_have():
    device = ag.LibraryOpen(recording("vm-macos15"), speed=0)
    with training_hook.Meter(device, every=0.0) as meter:
        assert meter.step() == {}
    assert set(meter.summary()) == {"seconds"}


def test_meter_of_its_own_ends_what_it_began(monkeypatch):
    monkeypatch.setenv("PYAPPLEGPU_RECORDING", recording("m4pro"))
    with training_hook.Meter() as meter:
        meter.step()
    assert "gpu/energy_j" not in meter.summary()        # no time has passed, so there is no energy: absent, not 0
    with pytest.raises(ag.AppleGPUError_Uninitialized):
        ag.LibraryCountDevice()


def test_training_command():
    out, err = run(os.path.join(EXAMPLES, "training_hook.py"), recording("m4pro"))
    assert "gpu/utilization_percent" in out and "gpu/energy_j_per_sample" in out and err == ""


# ---- as_pynvml, nvml_alias

PROGRAM = """
import sys
import pynvml
from pynvml import nvmlDeviceGetName, _nvmlGetFunctionPointer
pynvml.nvmlInit()
print(nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(0)), sys.argv[1:])
"""


def test_as_pynvml_runs_a_script_and_a_module(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    alias = os.path.join(EXAMPLES, "as_pynvml.py")
    out, _ = run(alias, "--recording", recording("m4pro"), str(tmp_path / "program.py"), "--json")
    assert out == "Apple M4 Pro ['--json']\n"
    out, _ = run(alias, "--recording", recording("m4pro"), "program", "x",
                 PYTHONPATH=os.pathsep.join((str(tmp_path), os.path.dirname(os.path.abspath(ag.__file__)))))
    assert out == "Apple M4 Pro ['x']\n"
    (tmp_path / "here" / "program").mkdir(parents=True)     # a folder of that name where the command is given
    done = subprocess.run([sys.executable, alias, "--recording", recording("m4pro"), "program"], cwd=str(tmp_path / "here"),
                          env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, timeout=120)
    assert done.stdout == "Apple M4 Pro []\n", done.stderr
    out, _ = run(alias, code=2)
    assert "my_monitor.py" in out
    for missing in ("no_such_program", "./no_such_program.py", "no.such.module"):
        _, error = run(alias, missing, code=1)
        assert error == "as_pynvml.py: %s is neither a file nor a module that is installed\n" % missing


def test_nvml_alias_folder_reaches_child_processes(tmp_path):
    (tmp_path / "parent.py").write_text(
        "import subprocess, sys\nsubprocess.run([sys.executable, %r], check=True)\n" % str(tmp_path / "program.py"))
    (tmp_path / "program.py").write_text(PROGRAM)
    alias, root = os.path.join(EXAMPLES, "nvml_alias"), os.path.dirname(os.path.abspath(ag.__file__))
    for path in (alias, os.pathsep.join((alias, root))):        # the folder alone finds the file of its checkout
        out, _ = run(str(tmp_path / "parent.py"), PYAPPLEGPU_RECORDING=recording("m4pro"), PYTHONPATH=path)
        assert out == "Apple M4 Pro []\n"
    smi = subprocess.run([os.path.join(alias, "nvidia-smi"), "-L"], cwd=str(tmp_path), capture_output=True, text=True, timeout=120,
                         env={**os.environ, "PYTHON": sys.executable, "PYAPPLEGPU_RECORDING": recording("m4pro")})
    assert smi.stdout.startswith("GPU 0: Apple M4 Pro (UUID: GPU-"), smi.stderr


if __name__ == "__main__":
    sys.exit(pytest.main([os.path.abspath(__file__), *sys.argv[1:]]))
