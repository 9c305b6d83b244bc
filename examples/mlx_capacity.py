"""Will it fit? The check to make before MLX, vLLM or llama.cpp loads a model on a Mac.

    python mlx_capacity.py 12GiB                    # weights and KV cache together
    python mlx_capacity.py model.safetensors --cache 4GiB --fraction 0.9
    python mlx_capacity.py 40GiB --recording recordings/m4-macos27.json

Exit status 0 when it fits, 3 when it does not, 1 when that cannot be told. What counts is neither the RAM nor what one
process allocated: the GPU's limit, what all processes hold of it now, and the RAM that is really available.
"""
from __future__ import annotations

import argparse
import os
import sys
from typing import NamedTuple

try:
    import pyapplegpu as ag
except ImportError:     # run from a checkout
    sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir))
    import pyapplegpu as ag

GIB = 2 ** 30
UNITS = {"": 1, "B": 1, "KIB": 2 ** 10, "MIB": 2 ** 20, "GIB": GIB, "KB": 10 ** 3, "MB": 10 ** 6, "GB": 10 ** 9}


class Capacity(NamedTuple):
    fits: bool
    need_bytes: int
    budget_bytes: int           # fraction of the headroom
    limit_bytes: int            # what the GPU may use
    in_use_bytes: int           # by every process
    available_bytes: int        # RAM
    why: str


def capacity(gpu: ag.Device, need_bytes: int, fraction: float = 0.95) -> Capacity:
    """Compares a need with `fraction` of the headroom and says what stands in the way."""
    room = ag.MemoryGetHeadroom(gpu)
    budget = int(room.headroom_bytes * fraction)
    if need_bytes <= budget:
        why = "fits"
    elif need_bytes > room.limit_bytes:
        why = "larger than the GPU may use; sudo sysctl iogpu.wired_limit_mb raises the limit"
    elif room.available_bytes < room.limit_bytes - room.in_use_bytes:
        why = "other programs hold the RAM"
    else:
        why = "other programs hold the GPU's memory"
    return Capacity(need_bytes <= budget, need_bytes, budget, room.limit_bytes, room.in_use_bytes,
                    room.available_bytes, why)


def cache_bytes(gpu: ag.Device, weights_bytes: int, fraction: float = 0.95) -> int:
    """What is left for a KV cache once the weights are loaded; 0 when they do not fit."""
    return max(0, capacity(gpu, weights_bytes, fraction).budget_bytes - weights_bytes)


def parse_size(text: str) -> int:
    """Bytes of "12GiB", "4.5 GB", a number, or of a file or folder of weights."""
    if os.path.isfile(text):
        return os.path.getsize(text)
    if os.path.isdir(text):
        return sum(entry.stat().st_size for entry in os.scandir(text) if entry.is_file())
    number = text.rstrip("BKMGTibkmgt ")
    unit = text[len(number):].strip().upper()
    try:
        size = int(float(number) * UNITS[unit])
    except (KeyError, ValueError, OverflowError):
        size = -1
    if size < 0:
        raise argparse.ArgumentTypeError("not a size or a file: %r" % text)
    return size


def parse_share(text: str) -> float:
    """A number above 0 and up to 1."""
    share = float(text)
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError("not a share: %r" % text)
    return share


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("size", type=parse_size, help="12GiB, or a file or folder of weights")
    parser.add_argument("--cache", type=parse_size, default=0, help="KV cache and activations on top")
    parser.add_argument("--fraction", type=parse_share, default=0.95, help="share of the headroom to use (0.95)")
    parser.add_argument("--recording", help="answer for a recorded Mac")
    options = parser.parse_args(arguments)
    try:
        ag.LibraryInit(options.recording)
        gpu = ag.LibraryInitDeviceByIndex(0)
        found = capacity(gpu, options.size + options.cache, options.fraction)
    except ag.AppleGPUError as e:
        print(e, file=sys.stderr)
        return 1
    print("%s: %s" % (ag.DeviceGetName(gpu), found.why))
    for label, value in zip(("need", "budget", "GPU limit", "GPU in use", "RAM available"), found[1:6]):
        print("%-14s %8.2f GiB" % (label, value / GIB))
    ag.LibraryShutDown()
    return 0 if found.fits else 3


if __name__ == "__main__":
    sys.exit(main())
