"""Found by reading the engine and the API against SAMPLING and the facts."""
import json

import pytest

import pyapplegpu as ag
from test_pyapplegpu import CPU, CPU2, Channel, ask, batched, engine_of, gpuph, live, recording, steps  # noqa: F401

NS = ag._NS


@pytest.fixture(autouse=True)
def fresh_library(monkeypatch):
    monkeypatch.delenv("PYAPPLEGPU_RECORDING", raising=False)
    yield
    ag._library.count, ag._library.engine, ag._library.opened = 0, None, None


def changed(tmp_path, name, change, **more):
    with open(recording(name)) as file:
        data = json.load(file)
    change(data)
    path = tmp_path / "changed.json"
    path.write_text(json.dumps(data))
    return ag.LibraryOpen(str(path), speed=0, **more)


def test_a_caller_with_a_long_window_does_not_coarsen_the_others():
    engine, mac = engine_of(gpuph(0.5), (CPU, live(1)), (Channel("GPU Energy", unit="nJ"), live(3)))
    spans = []
    for second in range(200):
        for window in (NS, 60 * NS) if second % 5 == 0 else (NS,):
            try:
                power, active = engine.rail_power(window, "gpu"), engine.gpu_active(window)
            except ag.AppleGPUError:
                continue
            if second > 120:
                spans.append((window // NS, power.interval_s, active.interval_s))
        mac.t += 1000
    assert all(0.9 < s < 1.6 for w, *both in spans if w == 1 for s in both)
    assert all(40 < s < 90 for w, *both in spans if w == 60 for s in both)
    assert len(engine.main.series.points) <= 19


def test_a_long_window_once_does_not_make_an_old_baseline_new():
    engine, mac = engine_of(gpuph(0.5), (CPU, live(1)))
    with pytest.raises(ag.NVMLError_NotReady):
        engine.gpu_active(3600 * NS)
    mac.t += 1800 * 1000
    figure = engine.settle(engine.gpu_active, NS, engine.timeout)
    assert figure.interval_s < 3, "half an hour is not since the last poll"


def test_one_lane_without_data_does_not_end_all_byte_counters():
    """An agent's counter that is absent says nothing of the totals, nor for later."""
    read, write = Channel("DCS RD", "AMC Stats", "B", (), "Perf Counters"), Channel("DCS WR", "AMC Stats", "B", (), "Perf Counters")
    display = Channel("DISP0 DCS RD", "AMC Stats", "B", (), "Perf Counters")
    engine, mac = engine_of((read, lambda t: (t, t * 1000)), (write, lambda t: (t, t * 1000)), (display, lambda t: (t, ag.INT64_MIN)))
    for _ in range(3):
        for agent in ("display", None):
            try:
                figure = engine.traffic(NS, "RD", agent)
                assert agent is None and figure.value.bytes_per_s == pytest.approx(1e6)
            except ag.NVMLError_NotReady as error:
                assert error.reason in ((ag.REASON_ABSENT, ag.REASON_FIRST) if agent else (ag.REASON_FIRST,))
                assert mac.t < 101000 or agent, "the totals are there"
        mac.t += 1000
    assert "amc dead" not in engine.facts


def test_utilisation_without_residency_data_is_the_drivers(tmp_path):
    def gone(data):
        for c in data["ioreport"]["channels"]:
            if c["group"] == "GPU Stats":
                c["rows"] = [[row[0]] + [ag.INT64_MIN] * (len(row) - 1) for row in c["rows"]]
    device = changed(tmp_path, "m1max", gone)
    assert ag.DeviceGetUtilization(device) == ag.DeviceGetEngineUtilization(device).device_percent
    snapshot = ag.DeviceGetSnapshot(device, ["gpu"])
    assert snapshot.sources["gpu_utilization_percent"] == "registry"
    assert ag.DeviceGetThrottleState(device).thermal_pressure is not None       # known whatever GPU Stats says


def test_a_refused_energy_model_does_not_hide_what_pmp_counts():
    dram = Channel("DRAM", "PMP", "mJ", (), "Energy Counters")
    engine, mac = engine_of((dram, batched(2)), (Channel("CPU Energy"), batched(5)))
    real = mac.subscribe

    def subscribe(groups, want):
        if groups[0][0] == "Energy Model":
            raise ag._fail(ag.ERROR_NOT_SUPPORTED, ag.REASON_MACOS, "ioreport:Energy Model", "refused")
        return real(groups, want)
    mac.subscribe = subscribe
    assert ask(engine, engine.rail_power, "dram") == pytest.approx(2)
    with pytest.raises(ag.NVMLError_NotSupported) as caught:
        engine.rail_power(NS, "cpu")
    assert caught.value.reason == ag.REASON_MACOS and "refused" in str(caught.value.detail)


def test_a_delta_never_pairs_one_die_with_another():
    die0, die1 = steps((0, 99999, 1000)), steps((0, 99999, ag.INT64_MIN))
    engine, mac = engine_of((CPU, die0), (CPU2, die1))
    engine.rail("cpu")
    engine.main.refresh()
    assert engine.rail_points("cpu") == []
    die0, die1 = steps((0, 99999, 1000)), steps((0, 99999, 7000))
    engine, mac = engine_of((CPU, die0), (CPU2, die1))
    engine.rail("cpu")
    engine.main.refresh()
    assert [lane[-1][1] for lane in engine.rail_points("cpu")] == [1000, 7000]


def test_a_figure_that_went_missing_keeps_no_age():
    engine, mac = engine_of((CPU, live(1)))
    snapshot = ag.Snapshot(engine, ag.PARTS)
    row = next(r for r in ag._SNAPSHOT if r[3][0][0] == "cpu_power_mw")
    snapshot._take(row, ag._Figure(5, 0.1, 1.0, "x", True))
    snapshot._miss(row, ag.REASON_RESET, "fell")
    assert snapshot.cpu_power_mw is None and "cpu_power_mw" in snapshot.reasons
    for table in (snapshot.ages, snapshot.intervals, snapshot.sources, snapshot.estimated):
        assert "cpu_power_mw" not in table


@pytest.mark.parametrize("call", ["processes", "process_gpu_time", "process_utilization"])
def test_clients_forgotten_by_another_thread_are_not_an_index_error(call):
    device = ag.LibraryOpen(recording("m4-macos27"), speed=0)
    engine = device._engine
    real = engine.clients.refresh

    def refresh(window=None):
        real(window)
        engine._gpu_restarted()         # as another thread's statistics() does
    engine.clients.refresh = refresh
    with pytest.raises(ag.NVMLError_NotReady) as caught:
        getattr(engine, call)(NS, *(() if call == "processes" else (1,)))
    assert caught.value.reason == ag.REASON_RESET


def test_a_gpu_restart_is_only_the_gpus():
    engine, mac = engine_of((CPU, batched(5)), (Channel("GPU Energy", unit="nJ"), live(3)), gpuph(0.5))
    for _ in range(4):
        engine.main.refresh(NS)
        mac.t += 1000
    engine.main.refresh(NS)
    engine._gpu_restarted()
    assert ask(engine, engine.rail_power, "cpu", timeout=0) == pytest.approx(5)
    assert ask(engine, engine.rail_power, "gpu", timeout=0) == ag.REASON_RESET
    for _ in range(2):
        mac.t += 100
        engine.main.refresh()
    assert ask(engine, engine.rail_power, "gpu", timeout=0) == pytest.approx(3)


def test_a_nested_init_keeps_the_times_of_the_first():
    path = recording("m4-macos27")
    ag.LibraryInit(path, speed=0, window=5, timeout=0)
    ag.LibraryInit(path, speed=0)           # a library that came along, as nvmlInit does
    assert ag._library.engine.window == 5 * NS and ag._library.engine.timeout == 0
    with pytest.raises(ag.AppleGPUError):
        ag.LibraryInit(path, speed=0, window=0)
    assert ag._library.count == 2
    ag.LibraryShutDown(), ag.LibraryShutDown()
    with pytest.raises(ag.AppleGPUError):
        ag.LibraryInit(path, speed=0, window=9, timeout=-1)
    assert ag._library.engine.window == 5 * NS and not ag._library.count
    ag.LibraryInit(path, speed=0)
    assert ag._library.engine.window == NS


def test_parts_of_the_wrong_kind_are_wrong_arguments():
    device = ag.LibraryOpen(recording("m4-macos27"), speed=0)
    for parts in (5, [["gpu"]], [None], "nothing"):
        with pytest.raises(ag.NVMLError_InvalidArgument):
            ag.DeviceGetSnapshot(device, parts)
    assert ag.DeviceGetSnapshot(device, iter(["gpu"])).parts == ("gpu",)


def test_a_dead_way_to_ane_use_gives_way_to_the_next(tmp_path):
    def dead(data):
        for c in data["ioreport"]["channels"]:
            if c["name"] == "ANE-AF-BW":
                c["rows"] = [[row[0]] + [ag.INT64_MIN] * (len(row) - 1) for row in c["rows"]]
    for name in ("m1max", "m3max-macos27", "m5max-macos27", "m4pro"):
        device = changed(tmp_path, name, dead)
        assert ag.Try(ag.AneGetUtilization, device).reason != ag.REASON_ABSENT


def test_throttling_does_not_need_the_notification(tmp_path):
    device = changed(tmp_path, "m5max-macos27", lambda data: data.update(notify={}))
    state = ag.DeviceGetThrottleState(device)
    assert state.cltm_ratio is not None and state.thermal_pressure is None
