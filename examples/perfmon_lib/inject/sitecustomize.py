"""`perfmon.py run --kernels` puts this folder on the command's PYTHONPATH: a Python program that imports pyapplegpu is then profiled
without being changed. What it did on Metal is saved to the folder PERFMON_KERNELS when it ends (and every few seconds), one file per
process. Without that variable, and in programs that never import pyapplegpu, nothing happens.
"""
import importlib.abc
import importlib.machinery
import os
import sys

_HERE = os.path.dirname(os.path.realpath(__file__))


def _next_sitecustomize():
    """The environment's own one, which this file hides."""
    paths = [p for p in sys.path if os.path.realpath(p or ".") != _HERE]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", paths)
    if spec is not None and spec.loader is not None:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)


class _Watch(importlib.abc.MetaPathFinder):
    """Waits for pyapplegpu to be imported, by whoever, and profiles from then on."""

    def find_spec(self, name, path=None, target=None):
        if name != "pyapplegpu":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            inner = spec.loader.exec_module

            def exec_module(module):
                inner(module)
                _profile()
            spec.loader.exec_module = exec_module
        return spec


def _profile():
    import atexit
    import json
    import time
    tools = os.path.dirname(os.path.dirname(_HERE))
    sys.path.insert(0, tools)
    theirs = sys.modules.pop("_common", None)
    try:
        from perfmon_lib import engine, metal
    finally:
        sys.path.remove(tools)
        sys.modules.pop("_common", None)        # the program may have a module of that name
        if theirs is not None:
            sys.modules["_common"] = theirs
    config = engine.PerformanceMonitorConfig.from_mapping(json.loads(os.environ.get("PERFMON_CONFIG") or "{}"))
    owner, folder = os.getpid(), os.environ["PERFMON_KERNELS"]

    class Saved(metal.MetalActivity):
        due = time.monotonic() + 2

        def save_here(self):
            if os.getpid() == owner and (self.kernels or self.buffer_count or self.allocations.count):
                try:
                    self.save(os.path.join(folder, "%d.json" % owner))
                except OSError as error:
                    sys.stderr.write("perfmon: the kernels' times were not saved: %s\n" % error)

        def _record(self, *entry, **named):
            metal.MetalActivity._record(self, *entry, **named)
            if time.monotonic() >= self.due:
                began = time.monotonic()
                self.save_here()
                self.due = time.monotonic() + max(2.0, 20 * (time.monotonic() - began))
    activity = Saved(config)
    activity.start(engine.uptime_s(), time.time())

    def ended():
        if os.getpid() == owner:
            activity.stop(engine.uptime_s())
            activity.save_here()
    atexit.register(ended)


import importlib.util       # noqa: E402

_next_sitecustomize()
if os.environ.get("PERFMON_KERNELS"):
    sys.meta_path.insert(0, _Watch())
