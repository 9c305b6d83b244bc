"""Runs an NVIDIA program, unmodified, on this Mac's GPU.

    python as_pynvml.py gpustat --json
    python as_pynvml.py nvitop --once
    python as_pynvml.py --recording recordings/m4-macos27.json gpustat     # on any OS
    python as_pynvml.py my_monitor.py --interval 5

In a program of your own, one line before the client is imported does it:

    import sys, pyapplegpu; sys.modules["pynvml"] = pyapplegpu

For programs that start others (and for those installed as commands) see nvml_alias/.
"""
from __future__ import annotations

import importlib.util
import os
import runpy
import sys

try:
    import pyapplegpu
except ImportError:     # run from a checkout
    sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir))
    import pyapplegpu


def run(program: str, arguments: list[str]) -> None:
    """Runs a script or a module with pyapplegpu in the place of pynvml."""
    sys.modules["pynvml"] = sys.modules["pynvml.nvml"] = pyapplegpu      # older clients import pynvml.nvml
    sys.argv = [program, *arguments]
    if os.path.isfile(program):       # not a folder that happens to have the module's name
        sys.path.insert(0, os.path.dirname(os.path.abspath(program)))
        runpy.run_path(program, run_name="__main__")
    else:
        runpy.run_module(program, run_name="__main__", alter_sys=True)


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["--recording"] and len(arguments) > 1:
        os.environ["PYAPPLEGPU_RECORDING"] = os.path.abspath(arguments[1])
        arguments = arguments[2:]
    if not arguments or arguments[0].startswith("-"):
        print((__doc__ or "").strip())
        return 0 if arguments[:1] in (["-h"], ["--help"]) else 2
    package = arguments[0].partition(".")[0]
    if not os.path.isfile(arguments[0]) and not (package and importlib.util.find_spec(package)):
        print("as_pynvml.py: %s is neither a file nor a module that is installed" % arguments[0], file=sys.stderr)
        return 1
    run(arguments[0], arguments[1:])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
