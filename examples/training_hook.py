"""GPU figures of a training loop: utilisation, power, memory per step, energy per epoch and per sample.

    with Meter() as meter:
        for batch in loader:
            train(batch)
            metrics = meter.step(samples=len(batch))    # None between reports, else a dict for mlflow, wandb ...
            if metrics:
                mlflow.log_metrics(metrics, step=step)
    print(meter.summary())

Nothing waits and no thread runs: a figure that is not ready is left out of the dict, it is never 0. Energy comes from
the driver's counter at both ends of the loop, so it does not depend on how often anything was sampled.

    python training_hook.py [recording.json]        # a pretended loop of 3 seconds
"""
from __future__ import annotations

import os
import sys
import time
from typing import Any

try:
    import pyapplegpu as ag
except ImportError:     # run from a checkout
    sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir))
    import pyapplegpu as ag

PARTS = ("gpu", "memory", "power")
FIGURES = (     # metric, function, factor into the metric's unit
    ("gpu/utilization_percent", ag.DeviceGetUtilization, 1),
    ("gpu/power_w", ag.DeviceGetPowerUsage, 1e-3),
    ("gpu/temperature_c", ag.DeviceGetTemperature, 1),
    ("gpu/memory_used_gib", ag.MemoryGetUsed, 2 ** -30),
)


class Meter:
    """Reports at most every `every` seconds; `gpu` is a device of an initialised library, or None to do that here."""

    def __init__(self, gpu: ag.Device | None = None, every: float = 1.0) -> None:
        self.every = every
        self.samples = 0
        self._gpu = gpu
        self._own = gpu is None
        self._sums: dict[str, list[float]] = {}
        self._delta: Any = None

    def __enter__(self) -> Meter:
        if self._own:
            ag.LibraryInit()
            self._gpu = ag.LibraryInitDeviceByIndex(0)
        self._start = ag.DeviceGetSnapshot(self._gpu, PARTS)
        self._next = time.monotonic() + self.every
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self._delta = ag.SnapshotDelta(self._start, ag.DeviceGetSnapshot(self._gpu, PARTS))
        except ag.AppleGPUError:        # no time has passed, or the GPU is lost: never hide the training's own error
            self._delta = None
        if self._own:
            ag.LibraryShutDown()

    def step(self, samples: int = 1) -> dict[str, float] | None:
        """Call once per batch; costs a clock reading between two reports."""
        self.samples += samples
        now = time.monotonic()
        if now < self._next:
            return None
        self._next = now + self.every
        return self.read()

    def read(self) -> dict[str, float]:
        """The figures that can be had now."""
        found = {}
        for name, function, factor in FIGURES:
            timeout = {} if function in (ag.DeviceGetTemperature, ag.MemoryGetUsed) else {"timeout": 0}
            reading = ag.Try(function, self._gpu, **timeout)
            if reading.value is not None:
                found[name] = reading.value * factor
                self._sums.setdefault(name, []).append(found[name])
        return found

    def summary(self) -> dict[str, float]:
        """Means, peak memory, and the energy of the GPU in joules, all and per sample."""
        result = {name + "_mean": sum(values) / len(values) for name, values in self._sums.items()}
        if "gpu/memory_used_gib" in self._sums:
            result["gpu/memory_used_gib_peak"] = max(self._sums["gpu/memory_used_gib"])
        if self._delta is None:
            return result
        result["seconds"] = self._delta.seconds
        joules = self._delta.joules["gpu"]
        if joules is not None:
            result["gpu/energy_j"] = joules
            result["gpu/energy_j_per_sample"] = joules / max(1, self.samples)
        return result


def main(arguments: list[str]) -> int:
    try:
        ag.LibraryInit(arguments[0] if arguments else None)
    except ag.AppleGPUError as e:
        print(e, file=sys.stderr)
        return 1
    with Meter(ag.LibraryInitDeviceByIndex(0)) as meter:
        for step in range(30):
            time.sleep(0.1)     # the training goes here
            metrics = meter.step(samples=8)
            if metrics:
                print("step %2d  %s" % (step, "  ".join("%s %.2f" % pair for pair in metrics.items())))
    for name, value in meter.summary().items():
        print("%-32s %.3f" % (name, value))
    ag.LibraryShutDown()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
