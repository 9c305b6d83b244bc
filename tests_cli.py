"""The command line over the recordings. To be folded into test_pyapplegpu.py."""
import contextlib
import csv
import io
import json
import os
import re
import signal
import stat
import subprocess
import sys
import time

import pytest

import pyapplegpu as ag

HERE = os.path.dirname(os.path.abspath(__file__))
MODULE = os.path.join(HERE, "pyapplegpu.py")
RECORDINGS = os.path.join(HERE, "examples", "recordings")
NAMES = sorted(name[:-5] for name in os.listdir(RECORDINGS) if name.endswith(".json"))
COLOURS = ("NO_COLOR", "FORCE_COLOR", "TERM", "COLUMNS", "PYAPPLEGPU_RECORDING")


def path_of(name):
    return name if os.sep in name else os.path.join(RECORDINGS, name + ".json")


@contextlib.contextmanager
def environment(**values):
    before = {name: os.environ.pop(name, None) for name in COLOURS + tuple(values)}
    os.environ.update({name: str(value) for name, value in values.items() if value is not None})
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def cli(*argv, recording="m4-macos27", speed="0", **env):
    """(exit code, stdout, stderr) of main() in this process."""
    args = list(argv) + (["--recording", path_of(recording), "--speed", speed] if recording else [])
    out, err = io.StringIO(), io.StringIO()
    if not ag._library.count:
        ag._library.engine = ag._library.opened = None      # the replay begins anew, as in a process of its own
    with environment(**env), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = ag.main(args)
    return code, out.getvalue(), err.getvalue()


def good(*argv, **named):
    code, out, err = cli(*argv, **named)
    assert (code, err) == (0, ""), (code, err)
    return out


def process(*argv, recording="m4-macos27", **named):
    """The same as a process of its own, stdout and stderr piped."""
    env = {k: v for k, v in os.environ.items() if k not in COLOURS}
    env.update(named.pop("env", {}))
    args = [sys.executable, MODULE, *argv] + (["--recording", path_of(recording)] if recording else [])
    return subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env, cwd=HERE, **named)


def variant(tmp_path, change, base="m4-macos27"):
    """A recording with something changed."""
    with open(path_of(base), encoding="utf-8") as file:
        data = json.loads(change(file.read()))
    where = str(tmp_path / "variant.json")
    with open(where, "w", encoding="utf-8") as file:
        json.dump(data, file)
    return where


def renamed(name):
    quoted = json.dumps(name)[1:-1]
    return lambda text: text.replace('"pid 404, WindowServer"', '"pid 404, %s"' % quoted)


def columns(text):
    return ag._width(text)


# ---- the view

def test_view_of_the_m4():
    view = good()
    for text in ("recording m4-macos27.json", "Mac16,12", "macOS 27.0", "driver 360.34.5", "GPU 0  Apple M4, 10 cores",
                 "device / renderer / tiler  17 / 15 / 15 %", "Use        17 % [###.............]",
                 "In use        430,571,520  410.6 MiB", "Allocated   4,597,121,024    4.3 GiB",
                 "Limit      12,713,115,648   11.8 GiB", "Headroom    3,601,793,024    3.4 GiB",
                 "Clock     723 MHz (338 to 1578)", "Power     1.20 W, no cap", "Throttle  none", "GB/s of 120",
                 "ANE use   0 %, by soc_floor", "nominal pressure", "Fans      none", "Package       2.10 W"):
        assert text in view, text
    assert re.search(r"404  WindowServer +15\.0 % +39\.96 s +N/A", view)
    assert re.search(r"ECPU       6 1680/2892  12%  300 mW", view)


def test_view_of_the_m1():
    view = good(recording="m1-macos11")
    for text in ("Apple M1, 8 cores", "0 / 0 / 0 %", "6,373,376    6.1 MiB", "(396 to 1278)", "macOS 11.0.1",
                 "Power     1 mW, cap N/A", "16 more with -v"):
        assert text in view, text
    assert re.search(r" 357  WindowServer +0\.0 % +249\.66 s", view)
    assert "more with -v" not in good("-v", recording="m1-macos11")


def test_view_of_the_m5_max():
    view = good(recording="m5max-macos27")
    for text in ("Apple M5 Max, 40 cores", "99 / 99 / 31 %", "Use       100 % [################]", "39.99 W, cap 40.00 W",
                 "power budget 40 %", "3108, 3110 rpm (54, 54 %)", ">28.80", "MCPU0", "MCPU1", "PCPU"):
        assert text in view, text


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("width", (40, 60, 79, 80, 100, 119, 120, 200))
def test_view_fits(name, width):
    lines = good(recording=name, COLUMNS=width).splitlines()
    assert all(columns(line) <= min(width, 160) for line in lines)
    boxed = [line for line in lines if line[:1] in "+|"]
    assert {columns(line) for line in boxed} == {min(width, 160)}
    assert len(boxed) >= (23 if width >= 120 else 32)
    assert all(line.isprintable() for line in lines)


@pytest.mark.parametrize("name", NAMES)
def test_view_clips_nothing_at_80_and_120(name):
    for width in (80, 120):
        for line in good(recording=name, COLUMNS=width).splitlines():
            assert not re.search(r"\S~ *[|]", line), line       # the mark of a clipped text


def test_layout_follows_the_width():
    titles = ("| GPU  ", "| GPU memory", "| Power, energy")
    one, two, three = (good(COLUMNS=w).splitlines() for w in (79, 80, 120))
    for lines, together in ((one, 1), (two, 2), (three, 3)):
        line = next(line for line in lines if line.startswith("| GPU   "))
        assert sum(t in line for t in titles) == together


def test_missing_is_never_zero():
    view = good(recording="vm-macos15")
    for label in ("Use       N/A", "Power     N/A, cap N/A", "In use    N/A", "Temp      N/A", "Fans      N/A"):
        assert label in view, label
    assert "5,010,800,640" in view and " 0 %" not in view and "0 mW" not in view


def test_verbose_says_why():
    assert "Not available" not in good(recording="m3max-macos27")
    text = " ".join(good("-v", recording="m3max-macos27").split())
    assert "Not available:" in text
    assert "cpu_power_mw, cpu_energy_mj, package_power_mw: Not Ready: cpu: the driver publishes a zero" in text
    assert "ECPU power_mw, PCPU power_mw, PCPU1 power_mw" in text and "(frozen)" in text


def test_a_small_power_is_not_zero():
    assert ag._watts(1) == "1 mW" and ag._watts(999) == "999 mW" and ag._watts(1000) == "1.00 W" and ag._watts(None) == "N/A"


def test_throttling_is_shown():
    assert ag._throttle_text(None) == ag._throttle_text(ag.ThrottleState(None, None, 0)) == "N/A"
    assert ag._throttle_text(ag.ThrottleState(0.0, 100.0, 0)) == "none"
    assert ag._throttle_text(ag.ThrottleState(0.25, 0.0, 0)) == "heat 25 % of the time, power budget 0 %"
    assert ag._throttle_text(ag.ThrottleState(None, 60.0, 0)) == "power budget 60 %"


# ---- colours and names

def test_colours():
    assert "\033" not in good() and "\033" not in good(TERM="xterm-256color")
    assert "\033[32m###\033[0m" in good(FORCE_COLOR=1) and "\033[31m" in good(FORCE_COLOR=1, recording="m5max-macos27")
    assert "\033" not in good(FORCE_COLOR=1, NO_COLOR=1)
    for plain, painted in zip(good().splitlines(), good(FORCE_COLOR=1).splitlines()):
        assert re.sub(r"\033\[\d*m", "", painted) == plain
    for argv in (["-q"], ["-L"], ["--json"], ["--doctor"], ["--query-gpu=name,power.limit"]):
        assert "\033" not in good(*argv, FORCE_COLOR=1)


@pytest.mark.skipif(sys.platform == "win32", reason="no pty")
@pytest.mark.parametrize("env, coloured", (({"TERM": "xterm"}, True), ({"TERM": "dumb"}, False),
                                           ({"TERM": "xterm", "NO_COLOR": "1"}, False), ({"TERM": "dumb", "FORCE_COLOR": "1"}, True)))
def test_colours_on_a_terminal(env, coloured):
    import pty
    ours, theirs = pty.openpty()
    base = {k: v for k, v in os.environ.items() if k not in COLOURS}
    child = subprocess.Popen([sys.executable, MODULE, "--recording", path_of("m4-macos27"), "--speed", "0"], stdout=theirs,
                             stderr=theirs, env=dict(base, COLUMNS="80", **env))
    os.close(theirs)
    got = b""
    with contextlib.suppress(OSError):
        while True:
            part = os.read(ours, 65536)
            if not part:
                break
            got += part
    os.close(ours)
    assert child.wait() == 0 and (b"\033[" in got) == coloured and b"17 / 15 / 15 %" in got


EVIL = "\x1b]0;owned\x07\x1b[31m\x9b2J\x7f\r\n\u202e\u2028x"
MODES = ([], ["-v"], ["-q"], ["-q", "-v"], ["--json"], ["--jsonl"], ["--selftest"], ["--doctor"], ["-L"],
         ["--query-compute-apps=pid,name", "--format=csv"])


@pytest.mark.parametrize("argv", MODES, ids=" ".join)
def test_no_control_character_reaches_the_terminal(monkeypatch, argv):
    totals = ag._client_totals      # a recording may not hold such names, a Mac may
    monkeypatch.setattr(ag, "_client_totals", lambda clients: {
        pid: (EVIL if pid == 404 else name, ns) for pid, (name, ns) in totals(clients).items()})
    if "apps" in "".join(argv):
        assert "404, ?]0;owned??[31m?2J?????x" in good(*argv)
    for text in (good(*argv), re.sub("\033\\[\\d+m", "", good(*argv, FORCE_COLOR=1))):
        assert not [c for c in text if c != "\n" and not c.isprintable()]
    if "--json" in argv:
        assert json.loads(good("--json"))["processes"][0]["name"] == EVIL


def test_the_name_of_a_recording_is_cleaned_too(tmp_path):
    where = tmp_path / "a\x1b[31m.json"
    with open(path_of("m4-macos27"), "rb") as file:
        where.write_bytes(file.read())
    assert "\x1b" not in good(recording=str(where)) + good("-q", recording=str(where))
    code, out, err = cli(recording=str(tmp_path / "no\x1b.json"))
    assert code == 2 and "\x1b" not in err and out == ""


def test_wide_names_keep_the_frame(tmp_path):
    where = variant(tmp_path, renamed("\u56fe\u5f62\u670d\u52a1\u5668"))
    for width in (40, 80, 120):
        lines = good(recording=where, COLUMNS=width).splitlines()
        assert {columns(line) for line in lines if line[:1] in "+|"} == {width}
    child = process("--speed", "0", recording=where, env={"PYTHONIOENCODING": "ascii"})
    out, err = child.communicate(timeout=60)
    assert (child.returncode, err) == (0, b"") and b"?????" in out


def test_a_comma_in_a_name_stays_one_field(tmp_path):
    out = good("--query-compute-apps=pid,name,used_memory", recording=variant(tmp_path, renamed('a, "b"')))
    assert ["404", 'a, "b"', "[N/A]"] in list(csv.reader(io.StringIO(out), skipinitialspace=True))


# ---- lists and queries

def test_list_gpus():
    for name in NAMES:
        assert re.fullmatch(r"GPU 0: Apple .+ \(UUID: GPU-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\)\n", good("-L", recording=name))
    assert good("--list-gpus") == good("-L")


def test_query_all():
    text = good("-q", recording="m5max-macos27")
    for line in ("Source                                      : recording m5max-macos27.json",
                 "        UUID                                : GPU-", "        Metal Family                        : Apple10",
                 "        Peak FP32                           : 16.59 TFLOPS", "        Utilization                         : 100 %",
                 "        Power Limit                         : 40.000 W", "            P9                              :  58.33 %  1278 MHz",
                 "        GPU Read                            : 28.80 GB/s, estimated, saturated",
                 "            Tg0C                            : 27.3 C", "    Neural Engine", "        Process 4100",
                 "            Battery Temperature             : 29.9 C", "        Pressure Level                      : nominal"):
        assert line in text, line
    assert "SRAM Power                          : N/A\n" in text
    assert "SRAM Power                          : N/A (Not Supported: there is no energy channel" in good("-qv", recording="m5max-macos27")


def test_query_all_names_every_figure_of_a_snapshot():
    out = good("-q")
    labels = re.findall(r"^ {8}(\S.*?) *(?::|$)", out, re.M)
    fields = [field for row in ag._SNAPSHOT for field, _ in row[3]]
    assert len(labels) >= len(fields)


QUERY = "name,uuid,index,utilization.gpu,memory.total,memory.used,memory.free,power.draw,power.limit,temperature.gpu," \
        "clocks.gr,clocks.max.sm,fan.speed,pstate,utilization.memory,clocks_throttle_reasons.sw_power_cap,compute_mode"


def test_query_gpu():
    head, row = good("--query-gpu=" + QUERY, "--format=csv", recording="m5max-macos27").splitlines()
    assert head == ("name, uuid, index, utilization.gpu [%], memory.total [MiB], memory.used [MiB], memory.free [MiB], power.draw [W], "
                    "power.limit [W], temperature.gpu, clocks.current.graphics [MHz], clocks.max.sm [MHz], fan.speed [%], pstate, "
                    "utilization.memory [%], clocks_throttle_reasons.sw_power_cap, compute_mode")
    uuid = re.search(r"GPU-[-0-9a-f]+", row).group()
    assert row == ("Apple M5 Max, %s, 0, 100 %%, 110100 MiB, 29696 MiB, 80404 MiB, 39.99 W, 40.00 W, 27, 1238 MHz, 1620 MHz, 54 %%, "
                   "[N/A], [N/A], Active, Default" % uuid)


def test_query_gpu_formats():
    fields = "--query-gpu=name,memory.used,power.draw,power.limit"
    assert good(fields) == good(fields, "--format=csv") == (
        "name, memory.used [MiB], power.draw [W], power.limit [W]\nApple M4, 410 MiB, 1.20 W, [N/A]\n")
    assert good(fields, "--format=csv,noheader") == good(fields, "--format=noheader,csv") == "Apple M4, 410 MiB, 1.20 W, [N/A]\n"
    assert good(fields, "--format", "csv, noheader, nounits") == "Apple M4, 410, 1.20, [N/A]\n"
    assert good(fields, "--format=csv,nounits").splitlines()[0] == "name, memory.used [MiB], power.draw [W], power.limit [W]"
    assert good("--query-gpu= name , index ", "--format=csv,noheader") == "Apple M4, 0\n"


def test_query_gpu_timestamp_and_aliases():
    with environment(TZ="UTC"):
        if hasattr(time, "tzset"):
            time.tzset()
        try:
            out = good("--query-gpu=timestamp,gpu_name,gpu_uuid,clocks.sm,clocks.mem", "--format=csv", TZ="UTC")
        finally:
            os.environ.pop("TZ", None)
            if hasattr(time, "tzset"):
                time.tzset()
    head, row = out.splitlines()
    assert head == "timestamp, name, uuid, clocks.current.sm [MHz], clocks.current.memory [MHz]"
    assert re.match(r"2026/09/21 14:13:2\d\.500, Apple M4, GPU-.*, 723 MHz, \[N/A\]$", row)


def test_every_field_answers_everywhere():
    table = ag._query_table()
    assert len(table) > 230 and len([name for name in table if name.startswith("apple.")]) >= 40
    names = ",".join(table)
    for recording in NAMES:
        head, row = csv.reader(io.StringIO(good("--query-gpu=" + names, "--format=csv", recording=recording)), skipinitialspace=True)
        assert len(head) == len(row) == len(table) and all(row)
    plain = next(csv.reader(io.StringIO(good("--query-gpu=" + names, "--format=csv,noheader,nounits", recording="m4-macos27")),
                            skipinitialspace=True))
    for name, cell in zip(table, plain):
        if ag._unit(table[name][2]) and cell != "[N/A]":
            float(cell)


def test_fields_are_those_of_the_snapshot():
    fields = {field for row in ag._SNAPSHOT for field, _ in row[3]}
    for apps in (False, True):
        for name, (_, source, _, _) in ag._query_table(apps).items():
            start = source.split(".")[0]
            assert not source or source[0] in "!=" or start == "process" or start in fields or callable(getattr(ag, start)), name


def test_unknown_field():
    for option in ("--query-gpu", "--query-compute-apps"):
        code, out, err = cli(option + "=name,cuda_version", "--format=csv")
        assert (code, out, err) == (2, "", 'Field "cuda_version" is not a valid field to query.\n')
    assert cli("--query-gpu=")[0] == 2


def test_help_query():
    text = good("--help-query-gpu", recording=None)
    for name in list(ag._query_table()) + list(ag._query_table(True)):
        assert '"%s"' % name in text or "    %s\n" % name in text, name
    assert '"memory.used" [MiB]\n    in use by every process' in text


def test_query_compute_apps():
    out = good("--query-compute-apps=pid,process_name,used_gpu_memory,apple.gpu_percent,apple.gpu_time,apple.footprint", "--format=csv",
               recording="m5max-macos27")
    assert out.splitlines()[:2] == [
        "pid, process_name, used_gpu_memory [MiB], apple.gpu_percent [%], apple.gpu_time [s], apple.footprint [MiB]",
        "4100, python3.13, [N/A], 93.0 %, 5.930 s, 34816 MiB"]
    assert good("--query-compute-apps=pid,name", "--format=csv", recording="vm-macos15") == "pid, process_name\n"


def test_a_query_asks_only_for_its_parts():
    rows = [ag._query_table()[name] for name in ("memory.used", "name", "uuid")]
    assert ag._parts_of(row[1] for row in rows) == ("memory", "gpu")
    assert ag._parts_of(["process.pid"]) == ("processes",)


def test_id():
    uuid = good("--query-gpu=uuid", "--format=csv,noheader").strip()
    for chosen in ("0", uuid, uuid.upper().replace("GPU-", "gpu-")):
        assert good("-i", chosen, "--query-gpu=index", "--format=csv,noheader") == "0\n"
    assert good("--id=0,0", "--query-gpu=index", "--format=csv,noheader") == "0\n0\n"
    for chosen in ("1", "-1", "GPU-0", "", "99999999999"):
        code, out, err = cli("--id=" + chosen, "-L")
        assert code == 6 and out == "" and "No devices were found" in err


# ---- programs written for nvidia-smi, unchanged

GPUTIL = r"""
import subprocess
fields = "index,uuid,utilization.gpu,memory.total,memory.used,memory.free,driver_version,name,gpu_serial,display_active," \
         "display_mode,temperature.gpu"
text = subprocess.run(["nvidia-smi", "--query-gpu=" + fields, "--format=csv,noheader,nounits"], stdout=subprocess.PIPE,
                      check=True, text=True).stdout
def number(word):
    try:
        return float(word)
    except ValueError:
        return float("nan")
for line in text.split("\n")[:-1]:
    v = line.split(", ")
    assert len(v) == 12, v
    print(int(v[0]), v[1][:4], number(v[2]) / 100, number(v[3]), number(v[4]), number(v[5]), v[6], v[7], v[9], number(v[11]))
"""
SHELL = r"""
IFS=, read -r temp power used total name < <(nvidia-smi --id=0 --query-gpu=temperature.gpu,power.draw,memory.used,memory.total,name \
    --format=csv,noheader,nounits 2>/dev/null | head -1)
echo "t=${temp// /} p=${power// /} used=$(( ${used// /} * 100 / ${total// /} ))% name=${name# }"
nvidia-smi --query-gpu=utilization.gpu --format=csv,noheader -lms 20 | head -3 | awk '{s += $1} END {print "mean", s / NR}'
nvidia-smi -L | grep -c UUID
nvidia-smi --query-gpu=bogus --format=csv; echo "rc=$?"
"""


@pytest.fixture
def nvidia_smi(tmp_path):
    """An environment in which `nvidia-smi` is this program over the M4's recording."""
    if os.name == "nt":
        pytest.skip("a shell script")
    script = tmp_path / "nvidia-smi"
    script.write_text('#!/bin/sh\nexec "%s" "%s" --recording "%s" --speed 0 "$@"\n' % (sys.executable, MODULE, path_of("m4-macos27")))
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return dict(os.environ, PATH=str(tmp_path) + os.pathsep + os.environ["PATH"])


def test_a_python_script_for_nvidia_smi(nvidia_smi):
    out = subprocess.run([sys.executable, "-c", GPUTIL], env=nvidia_smi, stdout=subprocess.PIPE, check=True, text=True).stdout
    assert out == "0 GPU- 0.17 12124.0 410.0 11713.0 27.0 Apple M4 [N/A] 74.0\n"


def test_a_shell_script_for_nvidia_smi(nvidia_smi):
    if not os.path.exists("/bin/bash"):
        pytest.skip("no bash")
    done = subprocess.run(["/bin/bash", "-c", SHELL], env=nvidia_smi, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.stdout.splitlines() == ["t=74 p=1.20 used=3% name=Apple M4", "mean 17", "1",
                                        'Field "bogus" is not a valid field to query.', "rc=2"]


# ---- JSON: keys are only ever added

KEYS = """schema time_unix_s time_mono_s interval_s source parts reasons messages ages intervals sources estimated
gpu_name gpu_core_count gpu_utilization_percent gpu_device_percent gpu_renderer_percent gpu_tiler_percent gpu_active_ratio
gpu_scaled_ratio gpu_recovery_count gpu_clock_mhz gpu_max_clock_mhz gpu_states memory_total_bytes memory_used_bytes memory_free_bytes
memory_allocated_bytes memory_wired_limit_bytes memory_headroom_bytes memory_utilization_percent gpu_power_mw gpu_energy_mj
gpu_power_limit_mw gpu_sram_power_mw cpu_power_mw cpu_energy_mj ane_power_mw ane_energy_mj memory_power_mw memory_energy_mj
package_power_mw system_power_mw gpu_temperature_celsius gpu_temperature_max_celsius cpu_temperature_celsius gpu_throttle
thermal_pressure_level fans memory_read memory_write memory_gpu_read memory_gpu_write memory_cpu_read memory_cpu_write memory_ane_read
memory_ane_write memory_media_read memory_media_write memory_display_read memory_display_write memory_io_read memory_io_write
memory_max_bytes_per_s ane_utilization_percent ane_utilization_method ane_power_state cpu_utilization_percent cpu_clusters
encode_power_mw decode_power_mw encode_bandwidth decode_bandwidth prores_bandwidth processes system_model system_chip_name
system_os_version system_memory system_swap system_memory_pressure system_power_source""".split()
NESTED = {
    "gpu_states": "name mhz ratio", "gpu_throttle": "cltm_ratio ppm_percent thermal_pressure",
    "fans": "rpm min_rpm max_rpm percent", "memory_read": "bytes_per_s estimated saturated",
    "cpu_clusters": "name core_type cores clock_mhz max_clock_mhz active_ratio utilization_percent power_mw reasons",
    "processes": "pid name gpu_time_ns gpu_percent footprint_bytes is_self",
    "system_memory": "total_bytes used_bytes available_bytes available_psutil_bytes app_bytes wired_bytes active_bytes inactive_bytes "
                     "compressed_bytes cached_bytes free_bytes", "system_swap": "total_bytes used_bytes free_bytes",
    "system_memory_pressure": "level available_percent",
    "system_power_source": "source battery_percent charging battery_power_mw cycle_count battery_celsius"}


@pytest.mark.parametrize("name", NAMES)
def test_json_schema(name):
    data = json.loads(good("--json", recording=name))
    assert set(KEYS) <= set(data) and data["schema"] == 1
    for key in [k for k in KEYS[12:]]:
        assert (data[key] is None) == (key in data["reasons"]) == (key in data["messages"]), key
        assert data["reasons"].get(key, ag.REASON_FIRST) in {v for k, v in vars(ag).items() if k.startswith("REASON_")}
    for key, fields in NESTED.items():
        for item in data[key] if isinstance(data[key], list) else [data[key]]:
            assert item is None or set(fields.split()) <= set(item), key


def test_first_view_has_rates():
    """No `first` anywhere: the first view waits for the second sample, in real time."""
    began = time.monotonic()
    data = json.loads(good("--json", speed="1"))
    assert 0.5 < time.monotonic() - began < 8
    assert data["interval_s"] > 0.5 and data["gpu_utilization_percent"] == 17 and data["gpu_power_mw"] == 1200
    assert ag.REASON_FIRST not in data["reasons"].values()
    assert not any(c["reasons"] for c in data["cpu_clusters"])


def test_jsonl():
    line = good("--jsonl")
    assert line.count("\n") == 1 and json.loads(line)["gpu_device_percent"] == 17
    child = process("--jsonl", "-lms", "20", "--speed", "0")
    got = [json.loads(child.stdout.readline()) for _ in range(3)]
    child.stdout.close()
    assert child.wait(20) == 141 and child.stderr.read() == b""
    assert [b["time_unix_s"] - a["time_unix_s"] for a, b in zip(got, got[1:])] == [1.0, 1.0]


# ---- doctor, selftest, recorder

@pytest.mark.parametrize("name", NAMES)
def test_selftest(name):
    out = good("--selftest", recording=name)
    last = out.splitlines()[-1]
    assert re.fullmatch(r"\d+ functions: \d+ values, \d+ reasons, 0 failed", last)
    called = {line.split()[1] for line in out.splitlines()[:-1]}
    flat = {n for n in ag.__all__ if re.match(r"(Device|Memory|Ane|Cpu|Vpu|Process|System)(Get|Count)|Snapshot.", n)}
    assert flat <= called and {"LibraryDiagnose", "ErrorString", "SnapshotDelta"} <= called
    assert all(line.split()[0] in ("value", "reason") for line in out.splitlines()[:-1])


def test_selftest_finds_a_fault(monkeypatch):
    def broken(device):
        raise KeyError("surprise")
    monkeypatch.setattr(ag, "DeviceGetName", broken)
    code, out, err = cli("--selftest")
    assert code == 1 and re.search(r"^FAILED +DeviceGetName +KeyError\('surprise'\)$", out, re.M) and " 1 failed" in out


def test_doctor():
    out = good("--doctor", recording="m5max-macos27")
    assert out.startswith("```\npyapplegpu " + ag.__version__) and out.endswith("```\n")
    assert "Mac17,7, Apple M5 Max, macOS 27.0, driver 360.34.5\nrecording m5max-macos27.json\n" in out
    for source in ("registry", "ioreport:AMC Stats", "smc", "hid", "sysctl", "mach", "libproc", "notify", "power", "metal"):
        assert re.search(r"^%s +(ok|macos|chip) +\d" % source, out, re.M), source
    assert re.search(r"^ioreport:AMC Stats +macos .*refused", out, re.M) and "  AMC Stats: Not Supported: refused" in out
    assert "  PMP0 / DCS BW: " in out and "GPU-" not in out and RECORDINGS not in out
    assert re.search(r"^snapshot: \d+ figures, \d+ missing, \d+ ms", out, re.M)


def test_doctor_counts_native_calls():
    fakemac = os.path.join(HERE, "examples", "fakemac.py")
    done = subprocess.run([sys.executable, fakemac, "--recording", path_of("m4-macos27"), MODULE, "--doctor"], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^registry +ok +[\d.]+ +[1-9]\d*  AGXAcceleratorG16G", done.stdout, re.M)
    assert re.search(r"^snapshot: .* [1-9]\d{2,} calls", done.stdout, re.M) and "\nlive\n" in done.stdout


def test_record_and_replay(tmp_path):
    where = str(tmp_path / "mac.json")
    code, out, err = cli("--record", where, "--seconds", "2")
    assert code == 0 and err.startswith("recording for 2 s") and out.startswith(where) and "no UUID" in out
    assert "17 / 15 / 15 %" in good(recording=where)
    code, out, err = cli("--record", str(tmp_path / "none" / "x.json"), "--seconds", "1")
    assert code == 17 and err.count("\n") == 2 and "cannot write" in err


# ---- arguments, exit codes, pipes, signals

WRONG = (["--nonsense"], ["stray"], ["-l", "x"], ["-l", "0"], ["-l", "-1"], ["-l", "nan"], ["-l", "inf"], ["-lms", "0"], ["-lms"],
         ["-l", "1", "-lms", "5"], ["-L", "-q"], ["--json", "--jsonl"], ["--format=csv"], ["--query-gpu=name", "--format=xml"],
         ["--query-gpu=name", "--format=noheader"], ["--query-gpu"], ["--seconds", "3"], ["--names"], ["--record", "x", "--seconds", "0"],
         ["-l", "1", "--doctor"], ["-l", "1", "--record", "x"], ["--speed", "-1"], ["--speed", "nan"], ["--quer"], ["--query-gpu=,"])


@pytest.mark.parametrize("argv", WRONG, ids=" ".join)
def test_wrong_arguments(argv):
    named = {} if "--speed" in argv else {"recording": "m4-macos27"}
    out, err = io.StringIO(), io.StringIO()
    with environment(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = ag.main(argv + (["--recording", path_of("m4-macos27")] if named else []))
    assert code == 2 and out.getvalue() == "" and 0 < err.getvalue().count("\n") <= 3 and "Traceback" not in err.getvalue()


def test_version_and_help():
    assert good("--version", recording=None) == "pyapplegpu %s\n" % ag.__version__
    text = good("--help", recording=None)
    for option in ("-L", "-q", "--query-gpu", "--help-query-gpu", "-i", "-l", "-lms", "--json", "--jsonl", "--doctor", "--selftest",
                   "--record", "--seconds", "--names", "--recording", "--speed", "--version", "--format", "exit codes"):
        assert option in text, option


def test_loop_spellings():
    for argv in (["-l"], ["-l", "5"], ["-l=5"], ["-l5"], ["--loop=5"], ["--loop", "5"], ["-lms", "5000"], ["-lms=5000"], ["--loop-ms=5000"]):
        assert ag._arguments(argv).every == 5.0, argv
    assert ag._arguments([]).every is None


@pytest.mark.skipif(sys.platform == "darwin", reason="there is an Apple GPU here")
def test_off_a_mac():
    for argv in ([], ["-L"], ["--json"], ["--doctor"], ["--selftest"], ["--query-gpu=name"], ["--record", os.devnull]):
        code, out, err = cli(*argv, recording=None)
        assert code == 12 and out == "" and err.count("\n") == 1 and "--recording FILE" in err, argv


def test_bad_recordings(tmp_path):
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    newer = tmp_path / "newer.json"
    newer.write_text('{"format": 99}')
    for where in (tmp_path / "absent.json", broken, newer, tmp_path):
        code, out, err = cli(recording=str(where))
        assert code == 2 and out == "" and err.count("\n") == 1 and err.startswith("pyapplegpu: "), err


def test_the_environment_names_a_recording():
    code, out, err = cli("-L", recording=None, PYAPPLEGPU_RECORDING=path_of("m4-macos27"))
    assert code == 0 and "Apple M4" in out


def test_main_leaves_the_library_as_it_was():
    before = ag._library.count
    cli("-L"), cli("-i", "7"), cli("--query-gpu=bogus")
    assert ag._library.count == before


@pytest.mark.parametrize("argv", (["-lms", "20"], ["-lms", "20", "--jsonl"], ["-lms", "20", "--query-gpu=name", "--format=csv"], []),
                         ids=("view", "jsonl", "csv", "once"))
@pytest.mark.skipif(os.name == "nt", reason="no SIGPIPE")
def test_a_closed_pipe_ends_it_quietly(argv):
    child = process("--speed", "0", *argv)
    if argv:
        child.stdout.readline()
    child.stdout.close()
    assert child.wait(30) == 141 and child.stderr.read() == b""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_disk_is_one_line():
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, MODULE, "-L", "--recording", path_of("m4-macos27")], stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1 and b"Traceback" not in done.stderr and b"No space left" in done.stderr


@pytest.mark.skipif(os.name == "nt", reason="no SIGINT for a child")
@pytest.mark.parametrize("argv", (["-l", "30"], ["-lms", "30", "--jsonl"], ["--record", os.devnull, "--seconds", "60"]), ids=" ".join)
def test_ctrl_c_ends_it_quietly(argv):
    child = process(*argv)
    (child.stderr if "--record" in argv else child.stdout).readline()
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=30)
    assert child.returncode == 130 and err == b""


@pytest.mark.skipif(os.name == "nt", reason="no SIGTERM")
def test_sigterm_ends_it_quietly():
    child = process("-l", "30")
    child.stdout.readline()
    child.terminate()
    assert child.communicate(timeout=30)[1] == b"" and child.returncode == -signal.SIGTERM


def test_the_schedule_neither_drifts_nor_catches_up(monkeypatch):
    now, slept = [100.0], []

    def sleep(seconds):
        slept.append(seconds)
        now[0] += seconds
    monkeypatch.setattr(ag.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(ag.time, "sleep", sleep)
    stops = []
    for work in (0.3, 0.1, 0.0, 2.5, 600.2, 0.4):       # 600 s: the Mac slept, on a system where this clock goes on
        now[0] += work
        ag._sleep_until(100.0, 1.0)
        stops.append(round(now[0] - 100.0, 6))
    assert stops == [1, 2, 3, 6, 607, 608] and min(slept) > 0


def test_a_loop_survives_a_sleep(tmp_path):
    def slept(text):
        data = json.loads(text)
        data["time"]["slept"] = [0, 0, 0] + [3600 * 10 ** 9] * (len(data["time"]["ticks"]) - 3)
        return json.dumps(data)
    child = process("-lms", "15", "--query-gpu=utilization.gpu,memory.used,power.draw", "--format=csv,noheader", "--speed", "0",
                    recording=variant(tmp_path, slept))
    lines = [child.stdout.readline().decode().strip() for _ in range(7)]
    child.stdout.close()
    child.wait(20)
    assert child.stderr.read() == b"" and lines[0] == "17 %, 410 MiB, 1.20 W"
    assert [line.count("[N/A]") for line in lines] == [0, 0, 2, 0, 0, 0, 0]     # one interval is not known, then all is well
    assert all(re.fullmatch(r"(\d+ %|\[N/A\]), 410 MiB, (1\.20 W|\[N/A\])", line) for line in lines)


@pytest.mark.parametrize("fault", ("IORegistryEntryGetRegistryEntryID=error@9", "IORegistryEntryCreateCFProperty=null@40+",
                                   "IOReportCreateSamples=null@3"))
def test_a_loop_survives_a_gpu_restart(fault):
    """The accelerator's entry stops answering for once, its properties for ever, a sample fails: the loop goes on."""
    child = subprocess.Popen(
        [sys.executable, os.path.join(HERE, "examples", "fakemac.py"), "--recording", path_of("m4-macos27"), "--speed", "5",
         "--fault", fault, MODULE, "-lms", "100", "--query-gpu=utilization.gpu,memory.used,power.draw", "--format=csv,noheader"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    lines = [child.stdout.readline().decode().strip() for _ in range(6)]
    child.send_signal(signal.SIGINT)
    assert b"Traceback" not in child.communicate(timeout=30)[1]
    assert all(re.fullmatch(r"(\d+ %|\[N/A\]), (410 MiB|\[N/A\]), (1\.20 W|\[N/A\])", line) for line in lines), lines
    assert "1.20 W" in lines[-1]


def test_all_three_ways_to_start_are_one():
    outs = []
    for argv in ([MODULE], ["-m", "pyapplegpu"], ["-c", "import sys, pyapplegpu; sys.exit(pyapplegpu.main())"]):
        outs.append(subprocess.run([sys.executable, *argv, "--recording", path_of("m4-macos27"), "--speed", "0"], cwd=HERE,
                                   env={k: v for k, v in os.environ.items() if k not in COLOURS}, stdout=subprocess.PIPE).stdout)
    assert outs[0] == outs[1] == outs[2] and b"17 / 15 / 15 %" in outs[0]


# ---- README's picture: the default view, drawn; `python tests_cli.py` draws it anew

PICTURE = os.path.join(HERE, "examples", "pyapplegpu.svg")
INK = {"1": 'font-weight="bold"', "2": 'fill="#7d8590"', "31": 'fill="#ff7b72"', "32": 'fill="#56d364"', "33": 'fill="#e3b341"'}


def picture():
    """The view of the M5 Max in 80 columns, as SVG."""
    from xml.sax.saxutils import escape
    with environment(TZ="UTC", FORCE_COLOR=1, COLUMNS=80):
        lines = subprocess.run([sys.executable, MODULE, "--speed", "0", "--recording", path_of("m5max-macos27")], check=True,
                               stdout=subprocess.PIPE).stdout.decode().splitlines()
    high = 20 * len(lines) + 24
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 720 %d" width="720" height="%d">' % (high, high),
             '<rect width="720" height="%d" rx="6" fill="#0d1117"/>' % high,
             '<g font-family="ui-monospace,Menlo,Consolas,\'DejaVu Sans Mono\',monospace" font-size="14" fill="#e6edf3">']
    for n, line in enumerate(lines):
        pieces = re.split(r"\033\[(\d+)m(.*?)\033\[0m", line)
        text = escape(pieces[0])
        for style, inked, plain in zip(pieces[1::3], pieces[2::3], pieces[3::3]):
            text += "<tspan %s>%s</tspan>%s" % (INK[style], escape(inked), escape(plain))
        length = len(re.sub(r"\033\[\d+m", "", line))
        parts.append('<text x="12" y="%d" textLength="%d" xml:space="preserve">%s</text>' % (20 * n + 26, 8.7 * length, text))
    return "\n".join(parts + ["</g></svg>", ""])


def test_the_picture_is_what_is_printed():
    with open(PICTURE, encoding="utf-8") as file:
        drawn = file.read()
    assert drawn == picture(), "draw it anew: python %s" % os.path.basename(__file__)


if __name__ == "__main__":
    with open(PICTURE, "w", encoding="utf-8") as drawing:
        drawing.write(picture())
