"""What the tests of Metal share: a copy of the library of each test file's own, on the stand-in off macOS, and its books."""
import gc
import importlib.util
import os
import shutil
import sys
import time
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
import fakeobjc     # noqa: E402

MAC = sys.platform == "darwin"
HAVE_CC = MAC or any(map(shutil.which, ("cc", "gcc", "clang")))
HAVE_CXX = MAC or bool(fakeobjc.cpp_compiler())
ag = fake = None


def start(name):
    """(the library as module `name`, the stand-in or None): its runtime must not meet another test's."""
    global ag, fake
    if not HAVE_CC:
        raise unittest.SkipTest("no C compiler for the stand-in runtime")
    fake = None if MAC else fakeobjc.install()
    spec = importlib.util.spec_from_file_location(name, os.path.join(os.path.dirname(HERE), "pyapplegpu.py"))
    ag = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(ag)
    gc.collect()
    gc.freeze()         # what stands by now, of other test files too, is not gone through at each collect of Base
    return ag, fake


def stop():
    gc.unfreeze()
    if not MAC:
        ag._disarm()
        fakeobjc.uninstall()


class Base(unittest.TestCase):
    """Every test leaves no offence, no open pool, no block and no object behind."""

    def setUp(self):
        gc.collect()
        self.settle()
        if fake:
            fake.forgive()
            fake.modes()
            self.serial, self.pools = fake.serial(), fake.counts()["pools"]

    def tearDown(self):
        gc.collect()
        if fake:
            fake.modes()
            self.settle()
            left, counts = (1, ""), {}
            for _ in range(100):        # handlers and queues end on threads of their own
                left, counts = fake.leaks(self.serial), fake.counts()
                if not left[0] and not counts["blocks"] and counts["pools"] == self.pools:
                    break
                gc.collect()
                time.sleep(0.01)
            self.assertEqual(fake.log(), "")
            self.assertEqual(left, (0, ""))
            self.assertEqual([counts[k] for k in ("errors", "no_pool", "blocks", "pools")], [0, 0, 0, self.pools])

    def settle(self):
        if ag._runtime is not None and ag._runtime.device is not None:
            ag._runtime.device._facts = None        # its own queue
            ag._runtime.device = None
        gc.collect()

    def not_in_a_guest(self):
        if MAC and "virtual" in ag.MetalDevice().name().lower():
            self.skipTest("a virtual machine's Metal ends the process over this")

    def assertBad(self, text, function, *args, **kw):
        with self.assertRaises(ag.AppleGPUError) as caught:
            function(*args, **kw)
        self.assertEqual(caught.exception.value, ag.ERROR_INVALID_ARGUMENT)
        self.assertRegex(str(caught.exception), text)
