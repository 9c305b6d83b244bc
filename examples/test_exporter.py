"""Tests of exporter.py: figures, refusals, endurance, the page in headless Chromium, a rack under a real Prometheus.

Everything runs on loopback over the recordings. Needs pyapplegpu[examples]; the browser and rack tests also Debian's
chromium and prometheus packages, and skip with a reason where those are missing.
"""
from __future__ import annotations

import http.client
import json
import os
import plistlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Iterator

import pytest

pytest.importorskip("prometheus_client", reason="the exporter needs pyapplegpu[examples] (prometheus-client)")
pytest.importorskip("starlette", reason="the exporter needs pyapplegpu[examples] (starlette)")
pytest.importorskip("uvicorn", reason="the exporter needs pyapplegpu[examples] (uvicorn)")
pytest.importorskip("plotly", reason="the dashboard needs pyapplegpu[examples] (plotly)")

HERE = os.path.dirname(os.path.abspath(__file__))
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:       # a job in the background of a script: its children would ignore Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, HERE)

import _browser  # noqa: E402
import exporter  # noqa: E402

ag = exporter.ag
RECORDINGS = os.path.join(HERE, "recordings")
NAMES = ("m1-macos11", "m1max", "m1ultra-macos27", "m3max-macos27", "m4-macos27", "m4pro", "m5max-macos27",
         "vm-macos15")
ENERGY = "applegpu_energy_joules_total"


def path_of(name: str) -> str:
    return os.path.join(RECORDINGS, name + ".json")


# ---- helpers


class Server:
    """An exporter in a process of its own."""

    def __init__(self, *options: str, recording: str | None = "m5max-macos27",
                 env: dict[str, str] | None = None) -> None:
        self.options = list(options) if "--port" in options else ["--port", "0", *options]
        if recording:
            self.options += ["--recording", recording if os.path.sep in recording else path_of(recording)]
        self.env = {**os.environ, **(env or {})}
        self.launch()

    def start(self) -> None:
        self.launch()
        self.ready()

    def launch(self) -> None:
        self.process = subprocess.Popen([sys.executable, os.path.join(HERE, "exporter.py"), *self.options], text=True,
                                        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=self.env)

    def ready(self) -> None:
        """It listens, and says where."""
        assert self.process.stderr is not None
        line = self.process.stderr.readline()
        found = re.match(r"exporter: (https?)://\[?([^\]]+?)\]?:(\d+)/$", line)
        if not found:
            self.process.wait(10)
            raise AssertionError(line + self.process.stderr.read())
        self.host, self.port = found.group(2), int(found.group(3))
        self.url = "%s://%s:%d/" % (found.group(1), self.host, self.port)

    def get(self, path: str, headers: dict[str, str] | None = None,
            method: str = "GET") -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=20)
        try:
            connection.request(method, path, headers=headers or {})
            answer = connection.getresponse()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def begin(self, path: str = "/api/events", buffer: int | None = None) -> socket.socket:
        """A connection that has asked, and read nothing; `buffer`: the kernel's for what it does not read."""
        connection = socket.socket()
        if buffer:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        connection.settimeout(20)
        connection.connect((self.host, self.port))
        connection.sendall(b"GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" % path.encode())
        return connection

    def samples(self, path: str = "/metrics") -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        return parse(self.get(path)[2].decode())

    def rss(self) -> int:
        """Resident bytes."""
        with open("/proc/%d/statm" % self.process.pid) as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def cpu(self) -> float:
        with open("/proc/%d/stat" % self.process.pid) as file:
            fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self, how: int = signal.SIGTERM) -> str:
        if self.process.poll() is None:
            self.process.send_signal(how)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(5)
        assert self.process.stderr is not None
        if self.process.stderr.closed:      # stopped before
            return ""
        with self.process.stderr as pipe:
            return pipe.read()


@contextmanager
def serving(*options: str, **named: Any) -> Iterator[Server]:
    server = Server(*options, **named)
    try:
        server.ready()
        yield server
    finally:
        text = server.stop()
    assert "Traceback" not in text, text


@pytest.fixture(scope="module")
def plain() -> Iterator[Server]:
    """One exporter for the tests that only read."""
    with serving("--no-dashboard") as server:
        yield server


def parse(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    from prometheus_client.parser import text_string_to_metric_families
    return {(s.name, tuple(sorted(s.labels.items()))): s.value
            for f in text_string_to_metric_families(text) for s in f.samples}


def scrape_of(name: str, steps: int = 4, **named: Any) -> tuple[ag.Snapshot, dict[Any, float]]:
    """(snapshot, samples) of a recording, some instants after its start."""
    device = ag.LibraryOpen(path_of(name) if os.path.sep not in name else name, speed=0)
    parts = tuple(p for p in ag.PARTS if p != "processes" or named.get("processes"))
    for _ in range(steps):
        snapshot = ag.DeviceGetSnapshot(device, parts, timeout=0)
    sampled = exporter.Sampled(snapshot, "", 0.01, 0.0)
    found = exporter.families(sampled, exporter.facts_of(device, snapshot), **named)
    return snapshot, parse(exporter.render(found)[0].decode())


def run(*options: str, **named: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, os.path.join(HERE, "exporter.py"), *options], capture_output=True, text=True,
                          timeout=60, **named)


PROMETHEUS = os.path.join(HERE, "prometheus")
needs_prometheus = pytest.mark.skipif(not (shutil.which("prometheus") and shutil.which("promtool")),
                                      reason="prometheus is not installed (Debian: apt-get install prometheus)")
on_linux = pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="reads memory and CPU time from /proc")

# ---- figures


@pytest.mark.parametrize("name", NAMES)
def test_value_or_reason(name: str) -> None:
    """Each figure is a series with the snapshot's value, or an absent series with its reason; never 0 for nothing."""
    snapshot, samples = scrape_of(name)
    present = missing = 0
    for metric in exporter.METRICS:
        full = exporter.full_name(metric)
        for of, path, factor in metric.series:
            labels = ((metric.label, of),) if metric.label else ()
            value = exporter.figure(snapshot, path)
            why = "" if value is not None else exporter.reason(snapshot, path)
            said = [v for (n, ls), v in samples.items() if n == "applegpu_metric_available"
                    and dict(ls) == {"metric": full, "of": of, "reason": why}]
            assert said == [0 if why else 1], (full, of, why)
            if value is None:
                missing += 1
                assert (full, labels) not in samples
                assert why in vars(ag).values()
            else:
                present += 1
                assert samples[full, labels] == pytest.approx(value * factor)
    assert present >= 9
    assert samples["applegpu_up", ()] == 1
    print("%s: %d series of the table present, %d missing with a reason" % (name, present, missing))


def test_known_figures() -> None:
    """Some figures against what the recordings were made from."""
    _, m5 = scrape_of("m5max-macos27")
    assert m5["applegpu_power_watts", (("rail", "gpu"),)] == pytest.approx(39.99)
    assert m5["applegpu_power_limit_watts", ()] == 40
    assert m5[ENERGY, (("rail", "gpu"),)] == pytest.approx(91354.537)
    assert m5["applegpu_memory_used_bytes", ()] == 31138512896
    _, m4 = scrape_of("m4-macos27", 1)
    assert m4["applegpu_memory_used_bytes", ()] == 430571520
    _, m3 = scrape_of("m3max-macos27")
    assert ("applegpu_power_watts", (("rail", "cpu"),)) not in m3
    assert m3["applegpu_metric_available", (("metric", ENERGY), ("of", "cpu"), ("reason", "frozen"))] == 0


def test_counters_do_not_fall() -> None:
    device = ag.LibraryOpen(path_of("m5max-macos27"), speed=0)
    last: dict[Any, float] = {}
    for _ in range(30):      # more than two rounds of the recording
        found = exporter.families(exporter.Sampled(ag.DeviceGetSnapshot(device, timeout=0), "", 0, 0), {})
        now = {k: v for k, v in parse(exporter.render(found)[0].decode()).items() if k[0].endswith("_total")}
        assert all(now[k] >= v for k, v in last.items())
        last = now
    assert last["applegpu_active_seconds_total", ()] > 0


def test_names_follow_the_conventions() -> None:
    """Base units, no percent, no label on everything; the table in the code is what comes out."""
    for name in NAMES:
        _, samples = scrape_of(name, processes=True)
        known = {exporter.full_name(m) for m in exporter.METRICS} | {d[0] for d in exporter.DYNAMIC}
        assert {n for n, _ in samples} <= known
        assert not any(re.search("percent|mhz|_mw|_gb|milli", n) for n, _ in samples)
        assert not set.intersection(*({k for k, _ in labels} for _, labels in samples))
    assert "| `applegpu_energy_joules_total` | counter |" in exporter.metric_table()
    with open(os.path.join(HERE, "README.md"), encoding="utf-8") as file:
        readme = file.read()
    assert exporter.metric_table() in readme
    assert all("| `%s` |" % name in readme for name, *_ in exporter.TRITON)


def test_processes_only_on_request(plain: Server) -> None:
    _, without = scrape_of("m5max-macos27")
    assert not [n for n, _ in without if "process" in n and n != "applegpu_metric_available"]
    _, samples = scrape_of("m5max-macos27", processes=True)
    mine, others = (("name", "python3.13"), ("pid", "4100")), (("name", "WindowServer"), ("pid", "150"))
    assert samples["applegpu_process_gpu_seconds_total", mine] == pytest.approx(7.79)
    assert samples["applegpu_process_memory_bytes", mine] == 36507222016
    assert ("applegpu_process_memory_bytes", others) not in samples     # another user's
    for path in ("/metrics", "/api/snapshot", "/api/history?seconds=60"):
        assert b"WindowServer" not in plain.get(path)[2], path


def test_host_label_and_triton_names() -> None:
    _, samples = scrape_of("m5max-macos27", host_label="mini-1", triton=True)
    assert all(("host", "mini-1") in labels for _, labels in samples)
    triton = {n: v for (n, _), v in samples.items() if n.startswith("metal_")}
    assert set(triton) == {t[0] for t in exporter.TRITON}
    assert triton["metal_gpu_utilization_ratio"] == 1.0
    assert triton["metal_power_consumption_watts"] == pytest.approx(39.99)
    assert triton["metal_memory_bandwidth_gbps"] == pytest.approx(192.0) and triton["metal_thermal_state"] == 0
    assert not [n for n, _ in scrape_of("m5max-macos27")[1] if n.startswith("metal_")]


def test_a_lost_gpu_is_down_not_zero() -> None:
    found = exporter.families(exporter.Sampled(None, "GPU is lost", 0.1, 0.0), {})
    assert parse(exporter.render(found)[0].decode()) == {
        ("applegpu_up", ()): 0, ("applegpu_scrape_duration_seconds", ()): 0.1}


def test_openmetrics(plain: Server) -> None:
    from prometheus_client.openmetrics.parser import text_string_to_metric_families
    status, headers, body = plain.get("/metrics", {"Accept": "application/openmetrics-text; version=1.0.0"})
    assert status == 200 and headers["content-type"].startswith("application/openmetrics-text")
    found = {f.name: f for f in text_string_to_metric_families(body.decode())}
    assert found["applegpu_energy_joules"].type == "counter" and body.endswith(b"# EOF\n")


def sleeping_recording(tmp_path: Any) -> str:
    """The M5 Max, asleep for an hour after its fifth instant."""
    with open(path_of("m5max-macos27")) as file:
        data = json.load(file)
    data["time"]["slept"] = [0 if i < 5 else 3600 * 10 ** 9 for i in range(len(data["time"]["ticks"]))]
    target = tmp_path / "slept.json"
    target.write_text(json.dumps(data))
    return str(target)


def test_sleep_during_a_scrape(tmp_path: Any) -> None:
    """Rates over the sleep are missing with their reason; counters stay and do not fall; then all is there again."""
    recording = sleeping_recording(tmp_path)
    before, asleep, after = (scrape_of(recording, steps)[1] for steps in (5, 6, 8))
    assert ("applegpu_active_ratio", ()) in before and ("applegpu_active_ratio", ()) not in asleep
    why = (("metric", "applegpu_active_ratio"), ("of", ""), ("reason", "slept"))
    assert asleep["applegpu_metric_available", why] == 0
    for counter in ((ENERGY, (("rail", "gpu"),)), ("applegpu_active_seconds_total", ())):
        assert before[counter] <= asleep[counter] <= after[counter]
    assert after["applegpu_active_ratio", ()] == before["applegpu_active_ratio", ()]


def test_history_gaps() -> None:
    """Time nobody measured breaks the line; a missing figure is null with its reason."""
    device = ag.LibraryOpen(path_of("m3max-macos27"), speed=0)
    history = exporter.History()
    start = None
    for i in range(12):
        snapshot = ag.DeviceGetSnapshot(device, timeout=0)
        if start is None:
            start = snapshot.time_unix_s
        if i == 11:
            snapshot.time_unix_s += 100
        history.add(snapshot)
    answer = history.answer(600)
    power = answer["columns"]["gpu_power_mw"]
    assert power[0] is None and answer["gaps"]["gpu_power_mw"][0][2] == "first" and power[3] == 21500
    assert answer["gaps"]["cpu_power_mw"][-1][2] == "frozen" and set(answer["columns"]["cpu_power_mw"]) == {None}
    times = answer["time_unix_s"]
    assert len(times) == 13 and all(a < b for a, b in zip(times, times[1:]))
    assert answer["columns"]["memory_used_bytes"][-2] is None      # the break
    assert history.answer(600, points=4)["time_unix_s"][-1] == times[-1]
    window = history.answer(3, until=times[7])
    assert window["time_unix_s"] == [t for t in times if times[7] - 3 <= t <= times[7]] and len(window["time_unix_s"]) > 2
    assert "gpu_power_mw" in answer["gaps"] and "gpu_power_mw" not in window["gaps"] and window["gaps"]["cpu_power_mw"]
    assert history.answer(3, until=times[0] - 1)["time_unix_s"] == []
    coarse = history.answer(86400)
    assert coarse["step_s"] == 10 and coarse["time_unix_s"][-1] == times[-1]


def test_a_history_that_is_read_while_it_grows(monkeypatch: Any) -> None:
    """It is read in a thread: a sample that comes meanwhile takes the slot of the oldest, whose time it must not stand under."""
    history = exporter.History(((1.0, 4), (10.0, 4)))
    snapshot = ag.DeviceGetSnapshot(ag.LibraryOpen(path_of("m1max"), speed=0), timeout=0)

    def add(t: float) -> None:
        snapshot.time_unix_s, snapshot.memory_used_bytes = t, int(t)
        history.add(snapshot)
    for t in range(1000, 1004):
        add(float(t))
    choose = history._with_breaks

    def meanwhile(*given: Any) -> Any:
        add(1004.0)
        return choose(*given)
    monkeypatch.setattr(history, "_with_breaks", meanwhile)
    answer = history.answer(3.5)
    assert answer["columns"]["memory_used_bytes"] == answer["time_unix_s"] == [1000.0, 1001.0, 1002.0, 1003.0]


# ---- options and refusals


@pytest.mark.parametrize("options, sentence", [
    (["--port", "65536"], "'65536' is not a number"), (["--port", "-1"], "expected one argument|not a number"),
    (["--nonsense"], "unrecognized"), (["--speed", "fast"], "invalid float"),
    (["--interval", "soon"], "is not a time"), (["--live", "0"], "longer than 0"),
    (["--tls-cert", __file__], "go together"),
    (["--tls-cert", __file__, "--tls-key", __file__], "not a certificate with its unencrypted key"),
    (["--recording", "/nonexistent.json"], "no such file"),
    (["--token-file", "/nonexistent"], "no such file"), (["--token-file", os.devnull], "no such file|is empty"),
    (["--max-streams", "many"], "is not a number")])
def test_bad_options(options: list[str], sentence: str) -> None:
    done = run(*options)
    assert done.returncode == 2 and re.search(sentence, done.stderr), done.stderr
    assert "Traceback" not in done.stderr


def test_bad_recording(tmp_path: Any) -> None:
    bad = tmp_path / "bad.json"
    bad.write_text("{")
    done = run("--recording", str(bad))
    assert done.returncode == 1 and done.stderr.startswith("exporter: ") and "Traceback" not in done.stderr


@pytest.mark.skipif(sys.platform == "darwin", reason="this is a Mac")
def test_no_mac_is_a_sentence() -> None:
    done = run("--once", env={k: v for k, v in os.environ.items() if k != "PYAPPLEGPU_RECORDING"})
    assert done.returncode == 1 and "Apple" in done.stderr and "Traceback" not in done.stderr


def test_port_in_use_and_bad_host(plain: Server) -> None:
    done = run("--no-dashboard", "--port", str(plain.port), "--recording", path_of("m4pro"))
    assert done.returncode == 1 and "in use" in done.stderr and "Traceback" not in done.stderr
    assert plain.get("/healthz")[0] == 200
    done = run("--no-dashboard", "--host", "192.0.2.1", "--recording", path_of("m4pro"))
    assert done.returncode == 1 and "cannot listen" in done.stderr


def test_two_exporters_on_one_machine(plain: Server) -> None:
    """The same Mac by two exporters: both answer, and agree on its counters."""
    with serving("--no-dashboard") as other:
        a, b, c = plain.samples(), other.samples(), plain.samples()
        key = (ENERGY, (("rail", "gpu"),))
        assert a[key] <= b[key] <= c[key] + 40 * 1.1 and b[key] > 91354


def test_token(tmp_path: Any) -> None:
    secret = tmp_path / "token"
    secret.write_text("open sesame\n")
    with serving("--no-dashboard", "--token-file", str(secret)) as server:
        basic = "Basic " + __import__("base64").b64encode(b"me:open sesame").decode()
        for header, status in (({}, 401), ({"Authorization": "Bearer open sesam"}, 401),
                               ({"Authorization": "Bearer "}, 401),
                               ({"Authorization": "Basic !!!"}, 401), ({"Authorization": "open sesame"}, 401),
                               ({"Authorization": "Bearer open sesame"}, 200), ({"Authorization": basic}, 200)):
            for path in ("/metrics", "/api/snapshot"):
                assert server.get(path, header)[0] == status, (path, header)
        assert server.get("/api/events")[0] == 401 and server.get("/healthz")[0] == 200
        assert "www-authenticate" in server.get("/metrics")[1]
    with serving("--no-dashboard", env={"APPLEGPU_TOKEN": "x"}) as server:
        assert server.get("/metrics")[0] == 401


def test_pages_and_headers() -> None:
    with serving() as server:
        for path, kind in (("/", "text/html"), ("/app.js", "text/javascript"), ("/style.css", "text/css"),
                           ("/plotly.min.js", "text/javascript"), ("/icon.svg", "image/svg+xml"),
                           ("/metrics", "text/plain"), ("/api/snapshot", "application/json"),
                           ("/api/history", "application/json"), ("/healthz", "application/json")):
            status, headers, body = server.get(path)
            assert status == 200 and headers["content-type"].startswith(kind) and body, path
            policy = headers["content-security-policy"]
            assert "default-src 'none'" in policy and "unsafe" not in policy
            assert headers["x-content-type-options"] == "nosniff" and "server" not in headers
        tag = server.get("/plotly.min.js", {"Accept-Encoding": "gzip"})[1]["etag"]
        assert server.get("/plotly.min.js", {"If-None-Match": tag})[0] == 304
        assert server.get("/api/snapshot", {"Host": "evil.example"})[0] == 421       # DNS rebinding
        assert server.get("/../exporter.py")[0] == 404 and server.get("/api/history?seconds=x")[0] == 400
        for wrong in ("seconds=nan", "seconds=0", "points=0", "points=1e3", "until=-1", "until=nan"):
            assert server.get("/api/history?" + wrong)[0] == 400, wrong
        for path in ("/metrics", "/api/events", "/"):
            status, headers, _ = server.get(path, method="POST")
            assert status == 405 and "GET" in headers["allow"], path
        for path in ("/", "/app.js", "/metrics", "/api/snapshot", "/api/history", "/api/events", "/healthz"):
            status, headers, body = server.get(path, method="HEAD")
            assert status == 200 and body == b"" and headers["content-type"] and "content-security-policy" in headers, path
            assert server.get(path, method="OPTIONS")[0] == 405
        snapshot = json.loads(server.get("/api/snapshot")[2])
        assert snapshot["schema"] == 1 and snapshot["source"] == "recording m5max-macos27"
        assert snapshot["processes"] is None and snapshot["reasons"]["processes"] == "not_asked"
        assert RECORDINGS.encode() not in b"".join(server.get(p)[2] for p in ("/metrics", "/api/snapshot", "/"))


def test_textfile_and_once(tmp_path: Any) -> None:
    target = tmp_path / "applegpu.prom"
    done = run("--once", "--textfile", str(target), "--recording", path_of("m4pro"))
    assert done.returncode == 0 and done.stdout == ""
    samples = parse(target.read_text())
    assert samples["applegpu_up", ()] == 1 and ("applegpu_active_ratio", ()) in samples
    assert [p.name for p in tmp_path.iterdir()] == ["applegpu.prom"] and target.stat().st_mode & 0o777 == 0o644
    done = run("--once", "--recording", path_of("m4pro"))
    assert parse(done.stdout).keys() == samples.keys()
    done = run("--once", "--textfile", str(tmp_path / "no" / "such.prom"), "--recording", path_of("m4pro"))
    assert done.returncode == 1 and "Traceback" not in done.stderr


def test_textfile_when_it_cannot_be_written(tmp_path: Any, monkeypatch: Any, capsys: Any) -> None:
    """At the start that ends it; later (a full disk) it is said once, and tried again."""
    folder = tmp_path / "node"
    options = ["--textfile", str(folder / "applegpu.prom"), "--interval", "7s", "--recording", path_of("m4pro")]
    said = "exporter: %s: No such file or directory\n" % options[1]
    assert exporter.main(options) == 1 and capsys.readouterr().err == said
    folder.mkdir()
    turns = []

    def sleep(seconds: float, really: Any = time.sleep) -> None:
        if seconds != 7:        # the library waits for a second sample
            return really(seconds)
        turns.append((folder / "applegpu.prom").exists())
        if len(turns) == 1:
            shutil.rmtree(folder)
        elif len(turns) == 3:
            folder.mkdir()
        elif len(turns) == 4:
            raise KeyboardInterrupt
        return None
    monkeypatch.setattr(exporter.time, "sleep", sleep)
    assert exporter.main(options) == 0 and turns == [True, False, False, True]
    assert capsys.readouterr().err == said


def test_textfile_of_a_lost_gpu_says_down(tmp_path: Any, monkeypatch: Any, capsys: Any) -> None:
    """A file that stays as it was would say that all is well: what is written is that the GPU is down, and why is said."""
    target = tmp_path / "applegpu.prom"

    def lost(*_: Any, **__: Any) -> Any:
        raise ag.AppleGPUError_GpuIsLost(detail="no accelerator answers")
    assert exporter.main(["--once", "--textfile", str(target), "--recording", path_of("m4pro")]) == 0
    monkeypatch.setattr(ag, "DeviceGetSnapshot", lost)
    assert exporter.main(["--once", "--textfile", str(target), "--recording", path_of("m4pro")]) == 1
    assert {name for name, _ in parse(target.read_text())} == {"applegpu_up", "applegpu_scrape_duration_seconds"}
    assert parse(target.read_text())["applegpu_up", ()] == 0 and "accelerator" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--once", "--list-metrics", "--launchd-plist"])
def test_a_reader_that_went_away_is_no_error(option: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as closed:
        done = subprocess.run([sys.executable, os.path.join(HERE, "exporter.py"), option, "--recording", path_of("m4pro")],
                              stdout=closed, stderr=subprocess.PIPE, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")


def test_launchd_plist_has_no_path_that_depends_on_the_folder() -> None:
    done = run("--launchd-plist", "--recording=" + os.path.relpath(path_of("m4pro")), "--textfile=x.prom", "--textfile", "y.prom")
    words = plistlib.loads(done.stdout.encode())["ProgramArguments"]
    assert words[2:] == ["--recording=" + path_of("m4pro"), "--textfile=" + os.path.abspath("x.prom"), "--textfile",
                         os.path.abspath("y.prom")]


def test_launchd_plist_refuses_what_would_be_lost() -> None:
    """A token that only this shell knows, and half an option's name."""
    done = run("--launchd-plist", "--host", "10.0.0.7", env={**os.environ, "APPLEGPU_TOKEN": "x"})
    assert done.returncode == 2 and "--token-file" in done.stderr and done.stdout == ""
    assert run("--launchd", "--port", "1").returncode == 2


def test_launchd_plist() -> None:
    done = run("--launchd-plist", "--port", "19900", "--recording", os.path.relpath(path_of("m4pro")))
    plist = plistlib.loads(done.stdout.encode())
    assert plist["ProgramArguments"][2:] == ["--port", "19900", "--recording", path_of("m4pro")]
    assert plist["KeepAlive"] and plist["RunAtLoad"] and os.path.isabs(plist["ProgramArguments"][0])


def test_tls(tmp_path: Any) -> None:
    if not shutil.which("openssl"):
        pytest.skip("openssl, which makes the test's certificate, is not installed")
    import ssl
    key, cert = str(tmp_path / "key.pem"), str(tmp_path / "cert.pem")
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", cert, "-days",
                    "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"], check=True,
                   capture_output=True)
    with serving("--no-dashboard", "--tls-cert", cert, "--tls-key", key) as server:
        assert server.url.startswith("https:")
        trust = ssl.create_default_context(cafile=cert)
        connection = http.client.HTTPSConnection(server.host, server.port, timeout=10, context=trust)
        connection.request("GET", "/metrics")
        assert connection.getresponse().status == 200
        connection.close()


# ---- clients that misbehave, and endurance


def drain(connection: socket.socket, patience: float) -> tuple[float, int]:
    """(seconds, bytes) until the other side ended the connection."""
    began, total = time.monotonic(), 0
    connection.settimeout(patience)
    try:
        while data := connection.recv(1 << 20):
            total += len(data)
    except ConnectionError:
        pass
    connection.close()
    return time.monotonic() - began, total


def test_slow_sender_and_idle_connection() -> None:
    with serving("--no-dashboard", "--request-timeout", "1s") as server:
        idle = socket.create_connection((server.host, server.port))
        slow = socket.create_connection((server.host, server.port))
        slow.sendall(b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: ")
        kept = socket.create_connection((server.host, server.port))
        for _ in range(2):
            kept.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            answer = b""
            while not answer.endswith(b"}"):
                answer += kept.recv(1000)
            assert answer.startswith(b"HTTP/1.1 200")
            time.sleep(1.3)     # a kept connection may rest, but not begin a request and stop
        kept.sendall(b"GET")
        assert server.get("/metrics")[0] == 200
        for connection in (idle, slow, kept):
            assert drain(connection, 5)[0] < 4


def test_a_reader_that_stops_reading() -> None:
    """Its connection is ended after --write-timeout; nobody waits for it meanwhile."""
    with serving("--write-timeout", "1s") as server:
        server.get("/metrics")      # the first one also opens the sources
        stuck = [server.begin("/plotly.min.js", 4096) for _ in range(5)]
        began = time.monotonic()
        assert server.get("/metrics")[0] == 200 and time.monotonic() - began < 1
        time.sleep(2.5)
        for connection in stuck:       # what is left in the kernel's buffers, then the end; not the whole file
            assert drain(connection, 5)[1] < 4_000_000


@pytest.mark.skipif(sys.platform == "darwin", reason="needs a second loopback address")
def test_one_address_cannot_take_every_connection() -> None:
    options = ("--no-dashboard", "--max-connections", "20", "--host", "0.0.0.0", "--allow-host", "127.0.0.1")
    with serving(*options) as server:
        taken = [socket.create_connection(("127.0.0.1", server.port), source_address=("127.0.0.2", 0))
                 for _ in range(40)]
        time.sleep(0.3)
        server.host = "127.0.0.1"
        for _ in range(5):
            assert server.get("/metrics")[0] == 200
        for connection in taken:
            connection.close()


def test_a_flood_of_connections_and_nonsense_leaves_no_word() -> None:
    """A burst beyond an address's share is cut off, the others are served; nobody can fill the log (launchd keeps it)."""
    with serving("--no-dashboard") as server:
        flood, answers = [], []
        for _ in range(200):
            with suppress(ConnectionError):      # cut off before it has asked
                flood.append(server.begin("/healthz"))
        for connection in flood:
            try:
                answers.append(connection.recv(12))
            except ConnectionError:
                answers.append(b"")
        for connection in flood:        # only now: each that goes makes room for another
            connection.close()
        assert answers.count(b"HTTP/1.1 200") == 64 and set(answers) <= {b"", b"HTTP/1.1 200"}
        for nonsense in (b"\x16\x03\x01\x02" * 9, b"GET /" + b"a" * 99999, b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"a" * 99999,
                         b"GET / HTTP/1.1\r\nHost: a\r\nHost: 127.0.0.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
                         b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade, close\r\n\r\n"):
            with socket.create_connection((server.host, server.port), timeout=20) as connection:
                with suppress(ConnectionError):
                    connection.sendall(nonsense)
                    assert connection.recv(9) == b"HTTP/1.1 "
        assert server.get("/metrics")[0] == 200 and server.stop() == ""


def read_event(server: Server) -> dict[str, Any]:
    """Open an event stream, take one event, go away."""
    with server.begin() as s:
        data = b""
        while not re.search(rb"data: .*\n\n", data):
            more = s.recv(65536)
            if not more:
                raise AssertionError(data[:200])
            data += more
    assert data.lower().count(b"\r\ncontent-security-policy:") == 1       # the thousandth stream too
    text = re.sub(rb"\r\n[0-9a-f]+\r\n", b"", data)
    return json.loads(re.search(rb"data: (.*)\n\n", text).group(1))     # type: ignore[union-attr]


@on_linux
def test_a_thousand_scrapes_and_streams() -> None:
    """Flat memory; a closed stream gives its place back (there are 32 places)."""
    with serving("--no-dashboard", "--interval", "0") as server:
        for _ in range(200):
            server.samples()
        for _ in range(50):
            read_event(server)
        before, cpu = server.rss(), server.cpu()
        began = time.monotonic()
        for _ in range(1000):
            assert server.get("/metrics")[0] == 200
        took, cpu = time.monotonic() - began, server.cpu() - cpu
        after_scrapes = server.rss()
        for _ in range(1000):
            assert read_event(server)["schema"] == 1
        after_streams = server.rss()
        fds = len(os.listdir("/proc/%d/fd" % server.process.pid))
    grown = after_scrapes - before, after_streams - after_scrapes
    print("1,000 scrapes: %.2f s, %.2f ms CPU each; memory %.1f MiB, %+.2f MiB; 1,000 streams: %+.2f MiB; %d files" % (
        took, cpu, before / 2 ** 20, grown[0] / 2 ** 20, grown[1] / 2 ** 20, fds))
    assert max(grown) < 2 << 20 and fds < 40


@on_linux
def test_cost_of_watching() -> None:
    """An open dashboard's event stream: share of a core (budget 1.5 %; shown, a shared machine cannot judge it)."""
    with serving("--no-dashboard") as server:
        with server.begin():
            time.sleep(1.5)
            cpu = server.cpu()
            time.sleep(5)
            share = (server.cpu() - cpu) / 5
    print("exporter with one event stream at 1 Hz: %.2f %% of a core" % (100 * share))
    assert share < 0.08


def test_too_many_streams_do_not_stop_scrapes() -> None:
    with serving("--no-dashboard", "--max-streams", "3") as server:
        held = [server.begin() for _ in range(3)]
        assert all(b"200" in s.recv(100) for s in held)
        assert server.get("/api/events")[0] == 503 and server.get("/metrics")[0] == 200
        for s in held:
            s.close()
        time.sleep(0.5)
        assert read_event(server)["schema"] == 1


def test_a_client_that_takes_nothing_delays_nobody() -> None:
    """The stream keeps no queue: a client whose send never returns costs one waiting task."""
    import asyncio

    async def scenario() -> int:
        options = ["--recording", path_of("m5max-macos27"), "--speed", "0", "--live", "50ms"]
        args = exporter._parser().parse_args(options)
        sampler = exporter.Sampler(exporter.open_device(args), args)
        sampler.FRESH = 0.01
        stream, got = exporter.EventStream(sampler, 9), []

        async def never(*_: Any) -> Any:
            await asyncio.sleep(1000)

        async def receiver(message: Any) -> None:
            got.append(message)
        scope = {"method": "GET", "type": "http"}
        tasks = [asyncio.create_task(stream(scope, never, send)) for send in (never, receiver)]
        pump = asyncio.create_task(sampler.pump())
        await asyncio.sleep(1)
        await sampler.close()
        for task in (*tasks, pump):
            task.cancel()
        await asyncio.gather(*tasks, pump, return_exceptions=True)
        assert sampler.watchers == 0
        return len(got)

    assert asyncio.run(scenario()) > 8


async def ask(app: Any, path: str) -> tuple[int, bytes]:
    """An answer of the application, without a server."""
    got: list[Any] = []

    async def send(message: Any) -> None:
        got.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}
    scope = {"type": "http", "method": "GET", "path": path, "query_string": b"",
             "headers": [(b"host", b"localhost")]}
    await app(scope, receive, send)
    return got[0]["status"], b"".join(m.get("body", b"") for m in got[1:])


def test_a_mac_that_does_not_answer() -> None:
    """A call that hangs: 503 with a sentence, and again an answer when it comes back."""
    import asyncio
    import threading

    async def scenario() -> None:
        args = exporter._parser().parse_args(["--recording", path_of("m4pro"), "--no-dashboard"])
        args.token, args.hosts = None, None
        sampler = exporter.Sampler(exporter.open_device(args), args)
        app, take, go = exporter.application(sampler, args), sampler.take, threading.Event()
        sampler.PATIENCE = 0.2
        sampler.take = lambda: (go.wait(10), take())[1]     # type: ignore[method-assign]
        for path, word in (("/api/snapshot", b"in time"), ("/healthz", b"stuck")):
            status, body = await ask(app, path)
            assert status == 503 and word in body
        status, body = await ask(app, "/metrics")       # as for a GPU that is lost, so that the alert says what is true
        assert status == 200 and parse(body.decode()).keys() == {("applegpu_up", ()), ("applegpu_scrape_duration_seconds", ())}
        assert parse(body.decode())["applegpu_up", ()] == 0
        pump = asyncio.create_task(sampler.pump())
        assert await sampler.next(0, 5) and b"in time" in sampler.event     # a page that is open is told, too
        pump.cancel()
        go.set()
        sampler.PATIENCE = 5
        assert (await ask(app, "/metrics"))[0] == 200 and (await ask(app, "/healthz"))[0] == 200

    asyncio.run(scenario())


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_mac_that_never_answers_does_not_hold_up_the_end(how: int) -> None:
    code = ("import sys, time; sys.path.insert(0, %r); import exporter; exporter.Sampler.take = lambda self: time.sleep(60); "
            "sys.exit(exporter.main(['--no-dashboard', '--port', '0', '--recording', %r]))" % (HERE, path_of("m4pro")))
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None and process.stderr.readline().startswith("exporter: http")
            time.sleep(0.5)
            process.send_signal(how)
            assert process.wait(10) in (0, -how) and "Traceback" not in process.stderr.read()
        finally:
            process.kill()


def test_history_does_not_hold_up_a_scrape() -> None:
    """A day of every column takes a while: it is put together beside the event loop, one at a time."""
    import asyncio
    import threading

    async def scenario() -> None:
        args = exporter._parser().parse_args(["--recording", path_of("m4pro"), "--no-dashboard"])
        args.token, args.hosts = None, None
        sampler = exporter.Sampler(exporter.open_device(args), args)
        app, go, busy = exporter.application(sampler, args), threading.Event(), []
        answer = sampler.history.answer

        def slow(*asked: Any) -> Any:
            busy.append(None)
            go.wait(10)
            return answer(*asked)
        sampler.history.answer = slow     # type: ignore[method-assign]
        asked = [asyncio.create_task(ask(app, "/api/history")) for _ in range(3)]
        while not busy:
            await asyncio.sleep(0.01)
        assert (await ask(app, "/metrics"))[0] == 200 and len(busy) == 1 and not any(task.done() for task in asked)
        go.set()
        for task in asked:
            status, body = await task
            assert status == 200 and json.loads(body)["columns"]

    asyncio.run(scenario())


def test_stop_is_prompt_with_streams_open() -> None:
    with serving("--no-dashboard") as server:
        s = server.begin()
        s.recv(100)
        began = time.monotonic()
        text = server.stop(signal.SIGINT)
        assert time.monotonic() - began < 5 and "Traceback" not in text
        s.close()
        server.start()


# ---- ten Macs under a real Prometheus: begun here, so that their counters have gone on when the last tests ask for rates

HOSTS = {name: name for name in NAMES} | {"rack-9": "m5max-macos27", "rack-10": "m4pro"}


class Rack:
    """Exporters over the eight recordings, two twice as other hosts, one host that never answers, and Prometheus over them."""

    def __init__(self, folder: Any, stack: ExitStack) -> None:
        self.servers = {}
        for host, name in HOSTS.items():
            port = str(_browser.free_port()) if host == "rack-9" else "0"       # the one that comes back at its own port
            self.servers[host] = Server("--no-dashboard", "--interval", "0", "--port", port, recording=name)
            stack.callback(self.servers[host].stop)
        for server in self.servers.values():
            server.ready()
        silent = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=500))
        ports = {**{host: server.port for host, server in self.servers.items()}, "silent": silent.getsockname()[1]}
        self.prometheus = Prometheus(folder, [{"targets": ["127.0.0.1:%d" % port], "labels": {"host": host}}
                                              for host, port in ports.items()])
        stack.callback(self.prometheus.stop)
        assert self.prometheus.until("sum(up)", lambda r: r and r[0][1] == 10, 40), (folder / "log").read_text()[-2000:]
        self.began = time.monotonic()
        self.truths: dict[str, dict[str, Any]] = {}

    def wait(self, seconds: float) -> None:
        """Until it has run so long."""
        time.sleep(max(0.0, seconds - (time.monotonic() - self.began)))

    def truth(self, name: str) -> dict[str, Any]:
        if name not in self.truths:
            self.truths[name] = over_a_round(name)
        return self.truths[name]


@pytest.fixture(scope="module")
def rack(tmp_path_factory: Any) -> Iterator[Rack]:
    with ExitStack() as stack:
        yield Rack(tmp_path_factory.mktemp("rack"), stack)


@needs_prometheus
@on_linux
def test_rack_is_up(rack: Rack) -> None:
    """Gauges and facts are the recordings'; what is frozen says so."""
    by_host = rack.prometheus.by_host
    used, limit = by_host("applegpu_memory_used_bytes"), by_host("applegpu_memory_limit_bytes")
    chips = {labels["host"]: labels["chip"] for labels, _ in rack.prometheus.query("applegpu_info")}
    for host, name in HOSTS.items():
        truth = rack.truth(name)
        assert used.get(host) in truth["used"], host
        assert limit.get(host) == truth["limit"], host
        assert chips[host] == truth["chip"], host
    frozen = by_host('applegpu_metric_available{metric="%s", of="cpu", reason="frozen"}' % ENERGY)
    assert frozen == {"m3max-macos27": 0}
    assert "vm-macos15" not in by_host(ENERGY)
    # a host that takes the connection and says nothing: counted as such, and it holds up nobody
    answering, not_answering = [expression for title, expression in panel_queries("20s", ".*") if title == "Macs"]
    assert (rack.prometheus.query(answering)[0][1], rack.prometheus.query(not_answering)[0][1]) == (10, 1)
    assert rack.prometheus.until('ALERTS{alertname="AppleGpuExporterDown", host="silent"}', bool, 10)


# ---- the page


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = _browser.find()
    if path is None:
        pytest.skip("Chromium is not installed (Debian: apt-get install chromium)")
    page = _browser.Browser(path)
    yield page
    page.close()


UPDATES = "Number(document.documentElement.dataset.updates || 0)"
FAST = ("--interval", "1", "--live", "500ms", "--speed", "2")       # a recorded second in half of one


def look(browser: Any, server: Server, updates: int = 3) -> None:
    browser.open("about:blank")     # the last page must not ask its ended exporter once more
    browser.events.clear()
    browser.size(1360, 900)
    browser.scheme("light")
    browser.open(server.url)
    assert browser.until("%s >= %d" % (UPDATES, updates)), browser.troubles()


def further(browser: Any, updates: int) -> None:
    """Wait for so many more live updates."""
    count = browser.run(UPDATES)
    assert browser.until("%s >= %d" % (UPDATES, count + updates), 4 * updates)


def tile(browser: Any, field: str) -> str:
    return str(browser.run("document.querySelector('[data-field=\"%s\"] .value').textContent" % field))


def possible(name: str, field: str) -> set[Any]:
    """The values of a field over whole rounds of the recording."""
    device = ag.LibraryOpen(path_of(name), speed=0)
    found = set()
    for _ in range(40):
        value = getattr(ag.DeviceGetSnapshot(device, timeout=0), field)
        if value is not None:
            found.add(value)
    return found


def test_page_shows_the_recording(browser: Any) -> None:
    with serving("--processes", *FAST) as server:
        look(browser, server)
        assert browser.run("document.querySelector('h1').textContent") == "Apple M5 Max, 40 GPU cores"
        assert "recording m5max-macos27" in browser.run("document.getElementById('about').textContent")
        forms = {
            "gpu_active_ratio": lambda v: "%.0f%%" % (100 * v), "gpu_clock_mhz": lambda v: "%dMHz" % v,
            "gpu_power_mw": lambda v: "%.1fW" % (v / 1000), "memory_used_bytes": lambda v: "%.1fGB" % (v / 2 ** 30),
            "gpu_temperature_celsius": lambda v: "%.0f\u00b0C" % v, "ane_utilization_percent": lambda v: "~%d%%" % v}
        for field, form in forms.items():
            assert tile(browser, field) in {form(v) for v in possible("m5max-macos27", field)}, field
        assert tile(browser, "memory_used_bytes") == "29.0GB"
        drawn = browser.run("document.getElementById('power').data.filter((d) => d.name === 'GPU').flatMap((d) => d.y)")
        watts = possible("m5max-macos27", "gpu_power_mw")
        assert drawn and all(round(v * 1000) in watts for v in drawn)
        row = browser.run("document.querySelector('#processes tbody tr').innerText.split('\\t')")
        assert row[:2] == ["python3.13", "4100"] and row[4] == "34.0 GB"
        # live
        points = browser.run("document.getElementById('clock').data[0].x.length")
        further(browser, 3)
        assert browser.run("document.getElementById('clock').data[0].x.length") > points
        assert browser.troubles() == []
        assert browser.requests() and all(url.startswith((server.url, "data:")) for url in browser.requests()), browser.requests()
        assert "Share" not in browser.run("document.body.innerHTML")        # plotly's button that sends a chart away
        assert browser.run("performance.getEntriesByName(location.href + 'plotly.min.js').length") == 1


def test_page_has_a_sentence_for_every_reason() -> None:
    with open(os.path.join(HERE, "dashboard", "app.js"), encoding="utf-8") as file:
        said = re.search(r"const REASONS = \{(.*?)\};", file.read(), re.S)
    assert said and set(re.findall(r"(\w+): \"", said.group(1))) == {v for k, v in vars(ag).items() if k.startswith("REASON_")}


def test_page_says_why(browser: Any) -> None:
    """A frozen rail: no trace, a reason under the chart and in the table; nothing is drawn as 0."""
    with serving(*FAST, recording="m3max-macos27") as server:
        look(browser, server)
        assert "frozen" in browser.run("document.querySelector('#power-card .note').textContent")
        assert "CPU" not in browser.run("document.getElementById('power').data.map((d) => d.name)")
        missing = browser.run("[...document.querySelectorAll('#missing tbody tr')].map((r) => r.innerText)")
        assert [row for row in missing if row.startswith("cpu_power_mw, cpu_energy_mj, package_power_mw") and "frozen" in row]
        assert "--processes" in browser.run("document.getElementById('processes').textContent")
        assert browser.run("document.getElementById('agents-card').hidden")
    with serving(*FAST, recording="vm-macos15") as server:
        look(browser, server)
        assert tile(browser, "gpu_power_mw") == "\u2013"
        hidden = "[...document.querySelectorAll('.chart')].filter((c) => c.hidden).map((c) => c.id).join()"
        assert browser.run(hidden) == "clock,states,power,bandwidth,agents,thermal,throttle"     # no axes without a figure
        assert "virtual machine" in browser.run("document.querySelector('#clock-card .note').textContent")
        order = "['memory', 'clock', 'cpu'].map((id) => getComputedStyle(document.getElementById(id + '-card')).order).join()"
        assert browser.run(order) == "0,1,2"            # what only says that it is missing stands below the charts
        assert "virtual machine" in browser.run("document.querySelector('[data-field=gpu_power_mw] .more').textContent")
        assert browser.troubles() == []


def test_page_shows_little_as_little(browser: Any) -> None:
    """6 MB, 1 mW and 2 ms of an idle M1 have their own units: only 0 reads as 0."""
    with serving("--processes", *FAST, recording="m1-macos11") as server:
        look(browser, server)
        assert tile(browser, "memory_used_bytes") == "6.1MB"
        assert browser.run("document.querySelector('#memory-card [data-column=memory_used_bytes] b').innerText") == "6.1\u00a0MB"
        cpu = {v / 1000 for v in possible("m1-macos11", "cpu_power_mw")}
        assert max(cpu) < 0.1 and browser.run("document.querySelector('#power-card [data-column=cpu_power_mw] b').innerText") in {
            "%d\u00a0mW" % (1000 * v) for v in cpu}
        assert not re.search(r"\b0\.0+\b", browser.run("document.querySelector('main').innerText"))
        assert browser.run("[0, 0.0004, 0.3, 6.5, 40].map((v) => say(v, 'W')).join()").replace("\u00a0", " ") == \
            "0 W,0.4 mW,300 mW,6.50 W,40.0 W"
        assert browser.troubles() == []


def test_page_does_not_show_old_figures_as_new(browser: Any) -> None:
    """An exporter that hangs, answers again, ends: said, and what stands on the page is dimmed."""
    with serving(*FAST) as server:
        look(browser, server)
        status, dim = "document.getElementById('status-text').textContent", "getComputedStyle(document.querySelector('main')).opacity"
        assert browser.run(status) == "live" and browser.run(dim) == "1"
        server.process.send_signal(signal.SIGSTOP)
        try:
            browser.run("state.heard -= 60000")       # a minute goes by
            assert browser.until(status + " === 'no new figures'") and float(browser.run(dim)) < 1
        finally:
            server.process.send_signal(signal.SIGCONT)
        assert browser.until(status + " === 'live'") and browser.run(dim) == "1"
        assert browser.troubles() == []
        server.stop()
        assert browser.until(status + ".includes('does not answer')") and float(browser.run(dim)) < 1


def test_page_gaps(browser: Any, tmp_path: Any) -> None:
    """Figures that are missing for a while: nothing is drawn there, the span is shaded, the hover label says why."""
    with open(path_of("m4pro")) as file:
        data = json.load(file)
    for channel in data["ioreport"]["channels"]:
        if len(channel["rows"]) == len(data["time"]["ticks"]):
            channel["rows"][3:6] = [None] * 3
    target = tmp_path / "gaps.json"
    target.write_text(json.dumps(data))
    with serving(*FAST, recording=str(target)) as server:
        look(browser, server, 16)       # two rounds of 7 s
        page = "document.getElementById('%s')"
        clock = browser.run(page % "clock" + ".data[0].y")
        assert None in clock and max(v for v in clock if v) > 400 and 0 not in clock
        filled = browser.run(page % "utilisation" + ".data.filter((d) => d.name === 'GPU active').map((d) => d.fill)")
        assert len(filled) > 1 and set(filled) == {"tozeroy"}       # drawn run by run: the fill stops at the gap
        stacks = browser.run(page % "power" + ".data.map((d) => d.stackgroup)")
        assert len(set(stacks) - {None}) > 1
        assert browser.run(page % "power" + ".layout.shapes.length") >= 1
        said = browser.run(page % "power" + ".data.find((d) => d.name === 'gap').text.join()")
        assert "GPU: not in this sample" in said and "Whole Mac" not in said
        assert browser.troubles() == []


def test_page_keyboard_ranges_and_zoom(browser: Any) -> None:
    with serving("--interval", "1") as server:
        look(browser, server, 4)
        live = "document.getElementById('live').getAttribute('aria-pressed')"
        reached = set()
        browser.run("document.activeElement.blur()")
        for _ in range(250):
            browser.key("Tab", number=9)
            reached.add(browser.run("document.activeElement.id || document.activeElement.textContent"))
            if "thermal" in reached:
                break
        assert {"live", "theme", "utilisation", "power", "memory", "thermal", "1 h"} <= reached, reached
        browser.run("document.getElementById('memory').focus()")
        browser.key("+", text="+", number=187)      # nearer: the newest stays in view
        assert browser.run("state.zoom[1] > local(newest()) - 2000 && state.zoom[1] - state.zoom[0] < 60000")
        browser.key("Escape", number=27)
        browser.key("ArrowLeft", number=37)
        assert browser.run(live) == "false"
        held, shown = browser.run("state.zoom.join()"), "document.getElementById('memory').layout.xaxis.range.join()"
        assert browser.until("%s === '%s'" % (shown, held))
        further(browser, 2)
        assert browser.run(shown) == held
        # a span in which nobody measured: empty charts that stay, and no word of what the chip had not
        for _ in range(9):
            browser.key("ArrowLeft", number=37)
        assert browser.until("state.t.length === 0")
        further(browser, 1)
        assert browser.run("document.activeElement.id") == "memory"
        assert browser.run("document.querySelectorAll('.chart[hidden]').length") == 0
        assert "In use" not in browser.run("document.querySelector('#memory-card .note').textContent")
        assert "nothing was measured" in browser.run("document.getElementById('memory').textContent")
        browser.key("Escape", number=27)
        assert browser.until(live + " === 'true'")
        browser.run("[...document.querySelectorAll('#ranges button')].find((b) => b.textContent === '1 h').click()")
        assert browser.until("document.querySelector('#ranges [aria-pressed=true]').textContent === '1 h'")
        # drag in a chart: every chart shows that span
        browser.run("scrollTo(0, 0)")
        box = browser.run("(() => { const r = document.querySelector('#utilisation .nsewdrag').getBoundingClientRect();"
                          " return [r.x, r.y, r.width, r.height]; })()")
        x, y = box[0] + box[2] * 0.45, box[1] + box[3] / 2
        browser.mouse("mouseMoved", x, y)
        browser.mouse("mousePressed", x, y, "left", 1)
        for i in range(1, 6):
            browser.mouse("mouseMoved", x + box[2] * 0.1 * i, y, "left", 1)
        browser.mouse("mouseReleased", x + box[2] * 0.5, y, "left", 0)
        assert browser.until(live + " === 'false'")
        same = ("['utilisation', 'clock', 'power'].map((i) => document.getElementById(i).layout.xaxis.range"
                ".map((v) => Math.round(new Date(v).getTime() / 1000)).join())")
        assert browser.until("new Set(%s).size === 1" % same)
        # and what is drawn was asked for anew: that span and a little more
        window = "(([a, b]) => state.t.every((t) => t >= a - (b - a) / 5 && t <= b + (b - a) / 5))(state.zoom.map(unixOf))"
        assert browser.until("performance.getEntriesByType('resource').some((e) => e.name.includes('until='))")
        assert browser.until("state.t.length > 1 && " + window), browser.run("[state.t, state.zoom.map(unixOf)]")
        # a legend button hides its line
        button = "document.querySelector('#utilisation-card .legend [data-column=cpu_utilization_percent]')"
        browser.run(button + ".click()")
        assert browser.until("!document.getElementById('utilisation').data.some((d) => d.name === 'CPU')")
        # hover
        browser.run("document.getElementById('utilisation').focus()")
        browser.key("Escape", number=27)
        assert browser.until(live + " === 'true'")
        further(browser, 2)
        browser.mouse("mouseMoved", box[0] + box[2] * 0.97, y)
        further(browser, 3)      # live values go on coming; the label stays
        browser.mouse("mouseMoved", box[0] + box[2] * 0.96, y)
        assert browser.until("document.querySelector('#utilisation .hoverlayer').textContent.includes('GPU active')")
        assert browser.troubles() == []


def test_page_widths_and_themes(browser: Any) -> None:
    with serving(*FAST) as server:
        look(browser, server)
        background = "getComputedStyle(document.body).backgroundColor"
        light = browser.run(background)
        browser.scheme("dark")
        assert browser.until(background + " !== %s" % json.dumps(light))
        for width in (390, 320):
            browser.size(width, 844, True)
            browser.open(server.url)
            assert browser.until(UPDATES + " >= 2")
            assert browser.run("document.documentElement.scrollWidth") <= width
        assert browser.troubles() == []


def test_names_are_text(browser: Any, tmp_path: Any) -> None:
    """A process and a GPU whose names are HTML stay names."""
    with open(path_of("m5max-macos27")) as file:
        text = file.read()
    text = text.replace("python3.13", "<img src=x>").replace('["s","Apple M5 Max"]', '["s","<b onclick=x>M5</b>"]')
    target = tmp_path / "names.json"
    target.write_text(text)
    with serving("--processes", *FAST, recording=str(target)) as server:
        look(browser, server)
        assert browser.run("document.querySelector('#processes tbody td').textContent") == "<img src=x>"
        assert browser.run("document.querySelector('h1').textContent").startswith("<b onclick=x>M5</b>")
        assert browser.run("document.querySelectorAll('img, h1 b').length") == 0
        assert parse(server.get("/metrics")[2].decode())       # escaped in the text format too
        assert browser.troubles() == []


# ---- a rack under Prometheus

def promtool(*arguments: str, **named: Any) -> str:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=60, cwd=PROMETHEUS, **named)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@needs_prometheus
def test_promtool_checks_the_files() -> None:
    promtool("check", "rules", "recording_rules.yml", "alert_rules.yml")
    promtool("check", "config", "prometheus.yml")
    assert "SUCCESS" in promtool("test", "rules", "rules_test.yml")


def test_every_alert_has_its_test() -> None:
    found = []
    for word, name in (("alert", "alert_rules.yml"), ("alertname", "rules_test.yml")):
        with open(os.path.join(PROMETHEUS, name)) as file:
            found.append(set(re.findall(word + r": (\w+)", file.read())))
    assert found[0] and found[0] == found[1]


@needs_prometheus
@pytest.mark.parametrize("name", NAMES)
def test_promtool_checks_the_metrics(name: str) -> None:
    device = ag.LibraryOpen(path_of(name), speed=0)
    for _ in range(3):
        snapshot = ag.DeviceGetSnapshot(device, timeout=0)
    sampled = exporter.Sampled(snapshot, "", 0.01, 0)
    text, _ = exporter.render(exporter.families(sampled, exporter.facts_of(device, snapshot), None, True))
    assert promtool("check", "metrics", input=text.decode()) == ""


def known_names() -> set[str]:
    known = {exporter.full_name(m) for m in exporter.METRICS} | {d[0] for d in exporter.DYNAMIC}
    with open(os.path.join(PROMETHEUS, "recording_rules.yml")) as file:
        return known | set(re.findall(r"record: (\S+)", file.read()))


def test_rules_and_grafana_name_what_there_is() -> None:
    for name in ("recording_rules.yml", "alert_rules.yml", "grafana-dashboard.json"):
        with open(os.path.join(PROMETHEUS, name)) as file:
            text = file.read()
        used = set(re.findall(r"\b(?:\w+:)?applegpu_\w+(?::\w+)?", text)) - {"applegpu_exporter"}
        assert used <= known_names(), used - known_names()
    dashboard = json.loads(text)
    assert [v["name"] for v in dashboard["templating"]["list"]] == ["datasource", "host"]
    assert all('host=~"$host"' in t["expr"] for p in dashboard["panels"] for t in p["targets"])
    assert len({p["id"] for p in dashboard["panels"]}) == len(dashboard["panels"])


def panel_queries(interval: str, host: str) -> list[tuple[str, str]]:
    """(title, expression) of every panel of the Grafana dashboard, its variables filled in."""
    with open(os.path.join(PROMETHEUS, "grafana-dashboard.json")) as file:
        panels = json.load(file)["panels"]
    return [(panel["title"], target["expr"].replace("$__rate_interval", interval).replace("$host", host))
            for panel in panels for target in panel["targets"]]


class Prometheus:
    """A real one, with the shipped files; only the times are shorter."""

    def __init__(self, folder: Any, targets: list[dict[str, Any]]) -> None:
        for name in ("prometheus.yml", "recording_rules.yml", "alert_rules.yml"):
            with open(os.path.join(PROMETHEUS, name)) as file:
                text = file.read()
            for old, new in (("15s", "1s"), ("10s", "1s"), ("30s", "2s"), ("[5m]", "[20s]")):
                text = text.replace(old, new)
            (folder / name).write_text(text)
        (folder / "targets").mkdir()
        (folder / "targets" / "rack.json").write_text(json.dumps(targets))
        self.folder, self.port = folder, _browser.free_port()
        self.log = open(folder / "log", "wb")
        self.process = subprocess.Popen(
            ["prometheus", "--config.file=prometheus.yml", "--storage.tsdb.path=data",
             "--web.listen-address=127.0.0.1:%d" % self.port], stdout=self.log, stderr=self.log, cwd=str(folder))

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        from urllib.parse import quote
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", "/api/v1/query?query=" + quote(expression))
            answer = json.loads(connection.getresponse().read())
        finally:
            connection.close()
        assert answer["status"] == "success", answer
        return [(r["metric"], float(r["value"][1])) for r in answer["data"]["result"]]

    def by_host(self, expression: str) -> dict[str, float]:
        return {labels["host"]: value for labels, value in self.query(expression)}

    def until(self, expression: str, wanted: Any, seconds: float) -> Any:
        end = time.monotonic() + seconds
        while True:
            try:
                found = self.query(expression)
            except (OSError, ValueError):
                found = []
            if wanted(found) or time.monotonic() > end:
                return found
            time.sleep(0.5)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(20)
        self.log.close()


def over_a_round(name: str) -> dict[str, Any]:
    """What a recording says of itself over one round: the values a gauge may have, mean watts, use."""
    device = ag.LibraryOpen(path_of(name), speed=0)
    with open(path_of(name)) as file:
        instants = len(json.load(file)["time"]["ticks"]) - 1
    snapshots = [ag.DeviceGetSnapshot(device, timeout=0) for _ in range(3 * instants + 3)]
    first, last = snapshots[instants + 1], snapshots[2 * instants + 1]
    span = last.time_mono_s - first.time_mono_s
    energy = [(s.gpu_energy_mj or 0) / 1000 for s in (first, last)]
    active = [exporter.figure(s, "gpu_active_total_s") for s in (first, last)]
    return {"used": {s.memory_used_bytes for s in snapshots}, "limit": last.memory_total_bytes,
            "chip": last.system_chip_name,
            "watts": (energy[1] - energy[0]) / span if last.gpu_energy_mj is not None else None,
            "active": (active[1] - active[0]) / span if active[1] is not None else None, "round": span}


@needs_prometheus
@on_linux
def test_rack_counters(rack: Rack) -> None:
    """Watts and use over 20 s (of recordings whose round is 5 to 12 s), from the hardware's counters, and the fleet's sums."""
    query, by_host = rack.prometheus.query, rack.prometheus.by_host
    rack.wait(24)
    watts = by_host('host_rail:applegpu_power_watts:rate5m{rail="gpu"}')
    active = by_host("host:applegpu_active:ratio_rate5m")
    for host, name in HOSTS.items():
        truth = rack.truth(name)
        for found, wanted in ((watts.get(host), truth["watts"]), (active.get(host), truth["active"])):
            assert (found is None) == (wanted is None), (host, found, wanted)
            if wanted is not None:
                assert found == pytest.approx(wanted, rel=0.3, abs=0.05), host
    fleet = query("fleet:applegpu_power_watts:sum")[0][1]
    assert fleet == pytest.approx(sum(v for _, v in query("host:applegpu_power_watts:rate5m")), rel=0.2)
    assert query("fleet:applegpu_hosts:count")[0][1] == 10
    assert len(query("fleet:applegpu_active_ratio:quantile")) == 3
    assert by_host("host:applegpu_joules_per_gpu_second:rate5m")["m5max-macos27"] == pytest.approx(40, rel=0.2)


@needs_prometheus
@on_linux
def test_rack_answers_grafana(rack: Rack) -> None:
    """What the panels ask for is there, of all hosts and of the one that is selected."""
    rack.wait(4)
    for title, expression in panel_queries("20s", ".*"):
        assert rack.prometheus.query(expression), (title, expression)
    for title, expression in panel_queries("20s", "m4pro"):
        found = rack.prometheus.query(expression)
        assert found and {labels.get("host", "m4pro") for labels, _ in found} == {"m4pro"}, (title, expression)


@needs_prometheus
@on_linux
def test_rack_cost(rack: Rack, capsys: Any) -> None:
    """Scrape cost: shown, and linear in the number of hosts."""
    lines, costs = [], {}
    def cost(count: int) -> tuple[float, float]:
        """Seconds and CPU seconds of a round of scrapes."""
        some = list(rack.servers.values())[:count]
        cpu = sum(s.cpu() for s in some)
        start = time.monotonic()
        for _ in range(30):
            for server in some:
                server.get("/metrics")
        return (time.monotonic() - start) / 30, (sum(s.cpu() for s in some) - cpu) / 30

    for _ in range(5):      # the machine may have had something else to do meanwhile
        costs = {count: min(costs.get(count, (9.0, 9.0)), cost(count)) for count in (2, 5, 10)}
        if costs[10][0] / 10 < 2.5 * costs[2][0] / 2 + 0.005:
            break
    for count in costs:
        lines.append("%2d hosts: a round of scrapes %.1f ms, %.1f ms of CPU (%.1f ms a host)" % (
            count, 1e3 * costs[count][0], 1e3 * costs[count][1], 1e3 * costs[count][1] / count))
    lines.append("Prometheus: %.1f ms a scrape, %.0f samples a host, %d series" % (
        1e3 * rack.prometheus.query('avg(scrape_duration_seconds{host!="silent"})')[0][1],
        rack.prometheus.query('avg(scrape_samples_scraped{host!="silent"})')[0][1],
        rack.prometheus.query("count({job=\"applegpu\"})")[0][1]))
    with capsys.disabled():
        print("\n" + "\n".join(lines))
    assert costs[10][0] / 10 < 2.5 * costs[2][0] / 2 + 0.005


@needs_prometheus
@on_linux
def test_rack_loses_no_counter(rack: Rack, capsys: Any) -> None:
    """An exporter killed and started again: down is seen, and every counter goes on."""
    prometheus, victim, key = rack.prometheus, rack.servers["rack-9"], '{host="rack-9", rail="gpu"}'
    rack.wait(4)
    before = prometheus.query(ENERGY + key + " and on() vector(1)")[0][1]
    at = time.monotonic()
    victim.stop(signal.SIGKILL)
    assert prometheus.until('up{host="rack-9"} == 0', bool, 10) and prometheus.until(
        'ALERTS{alertname="AppleGpuExporterDown", host="rack-9"}', bool, 10)
    victim.start()
    prometheus.until('up{host="rack-9"} == 1', bool, 10)
    time.sleep(3)
    after = prometheus.query(ENERGY + key)[0][1]
    elapsed = time.monotonic() - at
    with capsys.disabled():
        print("\nexporter killed and back after %.1f s: %.0f J counted, %.0f J expected" % (
            elapsed, after - before, 39.99 * elapsed))
    assert after - before == pytest.approx(39.99 * elapsed, rel=0.35)
    for counter in (ENERGY, "applegpu_active_seconds_total", "applegpu_recoveries_total"):
        assert all(v == 0 for _, v in prometheus.query("resets(%s[5m])" % counter)), counter
    assert prometheus.until("sum(up)", lambda r: r and r[0][1] == 10, 10)[0][1] == 10
