"""What an inference server's platform class asks, answered for a Mac: name, uuid, total, used and available memory.

The shape is sglang's (and vLLM's): class methods with its parameters, init and shutdown around each query, memory in bytes
but "available" in GiB, no torch and no MLX needed. Copy it together with pyapplegpu.py.

    python sglang_platform.py [recording.json]
"""
from __future__ import annotations

import functools
import os
import sys
from typing import Any, Callable, TypeVar

try:
    import pyapplegpu as ag
except ImportError:     # run from a checkout
    sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir))
    import pyapplegpu as ag

T = TypeVar("T")


def with_gpu(query: Callable[..., T]) -> Callable[..., T]:
    """Init and shutdown around one query: cheap, for handles and counters live as long as the process."""
    @functools.wraps(query)
    def wrapper(*args: Any, **named: Any) -> T:
        ag.LibraryInit()
        try:
            return query(*args, **named)
        finally:
            ag.LibraryShutDown()
    return wrapper


def is_available() -> bool:
    """Whether this process sees an Apple GPU; on other systems LibraryInit raises one error, LibraryNotFound."""
    try:
        ag.LibraryInit()
    except ag.AppleGPUError_LibraryNotFound:
        return False
    try:
        return ag.LibraryCountDevice() > 0
    finally:
        ag.LibraryShutDown()


class AppleGpuPlatform:
    """Every figure is of the whole Mac, not of this process: an MLX or torch allocator sees only its own share."""

    @classmethod
    @with_gpu
    def get_device_name(cls, device_id: int = 0) -> str:
        return ag.DeviceGetName(ag.LibraryInitDeviceByIndex(device_id))

    @classmethod
    @with_gpu
    def get_device_uuid(cls, device_id: int = 0) -> str:
        """Stable per Mac, so it can key a cache; without the GPU- prefix, as sglang keeps it."""
        return ag.DeviceGetUUID(ag.LibraryInitDeviceByIndex(device_id))[len("GPU-"):]

    @classmethod
    @with_gpu
    def get_device_total_memory(cls, device_id: int = 0) -> int:
        """What the GPU may use. Not the RAM: a cache sized by RAM ends in swapping or a killed server."""
        return ag.MemoryGetTotal(ag.LibraryInitDeviceByIndex(device_id))

    @classmethod
    @with_gpu
    def get_current_memory_usage(cls, device: Any = None) -> float:
        """In use by the GPU work of every process; `device` is torch's, and there is one."""
        return float(ag.MemoryGetUsed(ag.LibraryInitDeviceByIndex(0)))

    @classmethod
    @with_gpu
    def get_available_gpu_memory(cls, device_id: int | None = 0, distributed: bool = False, empty_cache: bool = True,
                                 cpu_group: Any = None) -> float:
        """GiB the GPU may still take: the smaller of free RAM and what is left below the limit.

        The least over all ranks when `distributed`: one Mac has one GPU, so every rank of it sees the same.
        """
        return ag.MemoryGetHeadroom(ag.LibraryInitDeviceByIndex(device_id or 0)).headroom_bytes / 2 ** 30

    @classmethod
    @with_gpu
    def is_fully_connected(cls, device_ids: list[int]) -> bool:
        """Whether all these GPUs reach each other; the dies of an Ultra are one device."""
        gpus = [ag.LibraryInitDeviceByIndex(i) for i in device_ids]
        return all(ag.DeviceGetP2PStatus(a, b, ag.NVML_P2P_CAPS_INDEX_READ) == ag.P2P_STATUS_OK
                   for a in gpus for b in gpus if a != b)


def main(arguments: list[str]) -> int:
    if arguments:
        os.environ["PYAPPLEGPU_RECORDING"] = arguments[0]
    try:
        found = is_available()
    except ag.AppleGPUError as e:
        print(e, file=sys.stderr)
        return 1
    if not found:
        print("no Apple GPU here; give a recording", file=sys.stderr)
        return 1
    platform = AppleGpuPlatform
    for label, form, query in (("name", "%s", platform.get_device_name), ("uuid", "%s", platform.get_device_uuid),
                               ("total", "%d bytes", platform.get_device_total_memory),
                               ("used", "%d bytes", platform.get_current_memory_usage),
                               ("available", "%.2f GiB", platform.get_available_gpu_memory)):
        try:
            text = form % query()
        except ag.AppleGPUError as e:       # a virtual machine knows its limit, not what is in use
            text = "- (%s)" % e
        print("%-10s %s" % (label, text))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
