#!/usr/bin/env python3
"""A Mac at the C ABI, on any OS: runs a Python program with stand-ins for Apple's libraries, served from a recording.

    python examples/fakemac.py [--recording R] [--speed S] [--fault F ...] program.py args...
    python examples/fakemac.py [...] -m module args...          python examples/fakemac.py [...] -c code

    import fakemac
    with fakemac.Mac("examples/recordings/m4-macos27.json", speed=0) as mac:
        ...                       # ctypes.CDLL("/System/Library/Frameworks/IOKit.framework/IOKit") now works here
        mac.calls["CFRelease"]    # Counter per symbol
        mac.live()                # what the program owns and who made it: [Live(kind, maker, count)]
        print(mac.report())

CoreFoundation, IOKit (registry, SMC, HID, power sources), libIOReport, libSystem (sysctl, mach, libproc, notify), libobjc and
Metal's device questions are C functions made with ctypes callbacks, so every call goes through libffi both ways. Exact account
is kept of everything that the program is given. The first broken rule raises fakemac.Violation (a BaseException) in the thread that
made the call, is written to stderr at exit, and makes the exit code 70.

Rules: declared argument and result types fit the true C signature (width, sign, pointer or not, complete, never variadic);
handles are live and of the right kind; +0 objects are not released and not used after their container; no over-release; no NULL
where Apple's code crashes; indices in range; selectors known; one subscription per IOReport channel; one HID client, whose matching
dictionary outlives it; a forked child leaves its parent's handles alone.

Faults (--fault, or faults=[...]; "@3" means the third call only, "@3+" from the third on, nothing means always):
    IOReportCreateSamples=null@3     SYMBOL=error[:0xE00002E2]     SYMBOL=int64min     SYMBOL=wrongtype     SYMBOL=short
    SYMBOL=interrupt     symbol:IOReportStateGetResidency=absent     library:IOReport=absent     group:AMC Stats=refuses
    clock=+5s@4 (the clock jumps at its fourth reading)     sleep=3600@4 (the Mac sleeps an hour then)
"""
from __future__ import annotations

import collections
import ctypes
import ctypes.util
import errno
import json
import os
import struct
import sys
import threading
import time
from _thread import get_ident

__all__ = ["Live", "Mac", "Replay", "Violation", "fault_kinds", "main"]

EXIT_CODE = 70
Live = collections.namedtuple("Live", "kind maker count")


class Violation(BaseException):
    """The program did what would crash, leak or corrupt on a Mac."""


# ======================================================================================================================
# C types: one letter each in the signatures below; "i/I" accepts either
# ======================================================================================================================


class CFRange(ctypes.Structure):
    _fields_ = [("location", ctypes.c_int64), ("length", ctypes.c_int64)]


LETTERS = {
    "v": None, "B": ctypes.c_uint8, "i": ctypes.c_int32, "I": ctypes.c_uint32, "q": ctypes.c_int64, "Q": ctypes.c_uint64,
    "d": ctypes.c_double, "f": ctypes.c_float, "p": ctypes.c_void_p, "R": CFRange,
}
_SHAPES = {"B": ("int", 1, False), "i": ("int", 4, True), "I": ("int", 4, False), "q": ("int", 8, True),
           "Q": ("int", 8, False), "d": ("float", 8, True), "f": ("float", 4, True), "p": ("pointer", 8, False),
           "R": ("struct", 16, False), "v": ("void", 0, False)}
_POINTERS = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_wchar_p, ctypes._Pointer, ctypes._CFuncPtr)


def shape(declared):
    """("int", 4, True) ... of a ctypes type, or None for what is none."""
    if declared is None:
        return ("void", 0, False)
    if not isinstance(declared, type):
        return None
    if issubclass(declared, _POINTERS):
        return ("pointer", 8, False)
    if issubclass(declared, (ctypes.Structure, ctypes.Union)):
        return ("struct", ctypes.sizeof(declared), False)
    if not issubclass(declared, ctypes._SimpleCData):
        return None
    code = declared._type_
    if code in "fd":
        return ("float", ctypes.sizeof(declared), True)
    if code in "bhilqBHILQ?":
        return ("int", ctypes.sizeof(declared), code in "bhilq")
    return None


def fits(letters, declared):
    found = shape(declared)
    if found is None and hasattr(declared, "from_param"):      # an adapter: what it makes is its own affair
        return "p" in letters
    return found is not None and any(_SHAPES[letter] == found for letter in letters.split("/"))


def spelled(letters):
    names = {"v": "void", "B": "Boolean (8 bit unsigned)", "i": "int32", "I": "uint32", "q": "int64", "Q": "uint64",
             "d": "double", "f": "float", "p": "pointer", "R": "CFRange by value"}
    return " or ".join(names[letter] for letter in letters.split("/"))


def c(signature, own=None, consumes=None):
    """Marks a method as a C function: "result argument argument ..."; own: "+1"/"+0" result or out object."""
    def mark(function):
        function.c, function.own, function.consumes = signature, own, consumes
        return function
    return mark


# ======================================================================================================================
# The recording: which step it is, and what is true at a step
# ======================================================================================================================


def library():
    """pyapplegpu itself, under a name of its own: its section `recording` says what is true at a step."""
    import importlib.util
    if "library" not in REAL:
        path = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "pyapplegpu.py")
        spec = importlib.util.spec_from_file_location("fakemac_pyapplegpu", path)
        REAL["library"] = sys.modules["fakemac_pyapplegpu"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(REAL["library"])
    return REAL["library"]


class Channel:
    """One IOReport channel of the recording."""

    def __init__(self, about, name, states, rows):
        self.rows, self.driver, self.id = rows, about.driver, about.channel
        self.group, self.subgroup, self.name = about.group, about.subgroup, name
        self.type, self.unit, self.label = about.type_word, about.unit_word, about.unit
        self.format, self.states, self.key = about.format, tuple(states), (about.driver, about.channel)
        self.parts, self.layout, self.entries = [], None, None

    def records(self, stamp, values):
        """RawElements: 64 bytes per element."""
        if len(self.parts) != len(values):
            head = struct.pack("<QQQ", self.driver & MASK64, self.id & MASK64, self.type & MASK64)
            self.parts = [(head, struct.pack("<QQ", index, 0) if self.format == 2 else b"") for index in range(len(values))]
            self.layout = struct.Struct("<" + ("24sq16sq8x" if self.format == 2 else "24sq0sq24x") * len(values))
        flat = []
        for (head, before), value in zip(self.parts, values):
            flat += (head, stamp, before, value)
        return self.layout.pack(*flat)


MASK64 = 0xFFFFFFFFFFFFFFFF
INT64_MIN = -(1 << 63)


class Replay:
    """The recording, step by step. It never changes: many Macs may be made of one."""

    def __init__(self, data):
        self.recording = recording = library()._Recording(data)
        self.said = recording.said
        self.rate = recording.ticks_per_second
        self.numer, self.denom = self.said["time"]["timebase"]
        self.ticks, self.slept, self.at = recording.ticks, recording.slept, recording.at
        self.channels = [Channel(**entry) for entry in self.said["ioreport"]["channels"]]

    def ns(self, step):
        return self.ticks(step) * 1000000000 // self.rate

    def row(self, channel, step):
        return channel.rows and channel.rows.at(*self.recording.place(step))


# ======================================================================================================================
# Objects and ports
# ======================================================================================================================


class Obj:
    """A CoreFoundation or Objective-C object. client: references of the program; held: of containers and the system."""
    __slots__ = ("addr", "kind", "value", "client", "held", "maker", "keys", "memory", "mutable", "info", "retains", "guard")

    def __init__(self, addr, kind, value, client, held, maker):
        self.addr, self.kind, self.value, self.client, self.held, self.maker = addr, kind, value, client, held, maker
        self.keys = self.memory = self.info = self.guard = None
        self.mutable, self.retains = False, True


class Port:
    __slots__ = ("name", "kind", "value", "refs", "maker")

    def __init__(self, name, kind, value, maker):
        self.name, self.kind, self.value, self.maker, self.refs = name, kind, value, maker, 1


def key_of(obj):
    return obj.value if obj.kind == "CFString" else (obj.kind, obj.value) if obj.kind == "CFNumber" else ("at", obj.addr)


def signed32(code):
    return code - (1 << 32) if code & 0x80000000 else code


BAD_ARGUMENT, NO_DEVICE, UNSUPPORTED, NOT_PERMITTED, IO_ERROR = (
    signed32(code) for code in (0xE00002C2, 0xE00002C0, 0xE00002C7, 0xE00002E2, 0xE00002BC))


# ======================================================================================================================
# Faults
# ======================================================================================================================

FAULTS = ("null", "error", "int64min", "wrongtype", "short", "interrupt", "moved", "newlayout")


class Fault:
    def __init__(self, text):
        self.text = text
        target, _, kind = text.rpartition("=")
        kind, _, when = kind.partition("@")
        self.kind, _, value = kind.partition(":")
        self.value = value
        scope, _, name = target.partition(":") if target.startswith(("symbol:", "library:", "group:")) else ("call", "", target)
        self.scope, self.name = scope, name
        self.first = int(when.rstrip("+") or 1) if when else 1
        self.last = None if not when or when.endswith("+") else self.first
        self.seen = 0
        if target in ("clock", "sleep"):
            self.scope, self.seconds, self.last = target, float(kind.rstrip("s")), self.first
        elif self.kind not in {"call": FAULTS, "group": ("refuses", "absent")}.get(scope, ("absent",)):
            raise ValueError("unknown fault %r" % text)

    def due(self):
        self.seen += 1
        return self.seen >= self.first and (self.last is None or self.seen <= self.last)


def fault_kinds(symbol):
    """The faults that mean something for a function: what Apple's own could do on a bad day."""
    function = SYMBOLS[symbol]
    result, kinds = function.c[0], []
    if result in "pI" and symbol not in NEVER_NULL and symbol not in FAILS or symbol in NULL_OUT:
        kinds.append("null")
    if symbol in FAILS:
        kinds.append("error")
    if result in "qQ" and symbol not in NEVER_NULL or symbol == "IOReportCreateSamples":
        kinds.append("int64min")
    if symbol in TYPE_DEPENDS:
        kinds.append("wrongtype")
    if symbol in SHORT:
        kinds.append("short")
    if symbol == "IOReportCreateSamples":
        kinds += ["moved", "newlayout"]
    return tuple(kinds)


# status functions -> what failure looks like: ("kr", code), or (result, errno)
FAILS = {}
# success, and nothing in the out parameter
NULL_OUT = {"IOServiceGetMatchingServices", "IORegistryEntryGetChildIterator", "IORegistryEntryGetParentEntry",
            "IORegistryEntryCreateCFProperties", "IOServiceOpen", "host_processor_info"}
# cannot fail on a Mac
NEVER_NULL = {"CFRetain", "CFGetTypeID", "CFHash", "CFStringGetTypeID", "CFNumberGetTypeID", "CFBooleanGetTypeID", "CFDataGetTypeID",
              "CFArrayGetTypeID", "CFDictionaryGetTypeID", "CFGetRetainCount", "objc_retain", "objc_autoreleasePoolPush",
              "objc_autorelease", "sel_registerName", "mach_absolute_time", "mach_continuous_time", "notify_cancel",
              "CFStringGetMaximumSizeForEncoding"}
# what comes out is whatever somebody put in
TYPE_DEPENDS = {"IORegistryEntryCreateCFProperty", "IORegistryEntryCreateCFProperties", "IORegistryEntrySearchCFProperty",
                "IOHIDServiceClientCopyProperty", "CFDictionaryGetValue", "CFArrayGetValueAtIndex", "IOReportCreateSamples",
                "IOReportCopyChannelsInGroup", "IOReportChannelGetGroup", "IOReportChannelGetSubGroup",
                "IOReportChannelGetChannelName", "IOReportChannelGetUnitLabel", "IOReportStateGetNameForIndex",
                "IOPSGetProvidingPowerSourceType", "IOHIDEventSystemClientCopyServices"}
SHORT = {"IORegistryEntryCreateCFProperty", "IORegistryEntryCreateCFProperties", "IORegistryEntrySearchCFProperty",
         "IOHIDServiceClientCopyProperty", "IOReportCreateSamples", "IOReportCopyChannelsInGroup", "MTLCopyAllDevices",
         "IOHIDEventSystemClientCopyServices", "CFPropertyListCreateData", "CFDataGetLength", "CFArrayGetCount", "CFStringGetLength",
         "sysctlbyname", "host_statistics64", "host_statistics", "host_processor_info", "proc_pidinfo", "proc_pidpath",
         "proc_listpids", "proc_listallpids", "proc_name", "IOConnectCallStructMethod"}


# ======================================================================================================================
# The Mac
# ======================================================================================================================


class Mac:
    """The machine: a context manager that puts the stand-ins in place and takes them away again."""

    active = None

    def __init__(self, recording=None, *, faults=(), speed=0.0, objc=None, allow=()):
        replay = recording if isinstance(recording, Replay) else Replay(recording if isinstance(recording, dict) else load(recording))
        self.recording, self.replay, self.speed = replay.said, replay, float(speed)
        self.calls, self.violations = collections.Counter(), []
        self.allow = set(allow)      # "second subscription", "second HID client"
        self.lock = threading.RLock()
        self.objects, self.dead, self.ports, self.dead_ports = {}, {}, {}, {}
        self.inherited, self.inherited_ports = {}, {}
        self.graves = collections.deque(maxlen=4096)
        self.bodies = collections.deque(maxlen=512)
        self.next_address, self.next_tag, self.next_port = 0x600000000000, 1, 0x1003
        self.pending, self.trouble_in_exit = {}, False
        self.faults, self.fault_list = {}, []
        self.clock_offset = self.slept_offset = 0
        self.clock_faults, self.sleep_faults = [], []
        self.steps, self.short, self.doing = 0, False, None
        self.loaded, self.handed_blocks = set(), {}
        self.data = Data()
        self.libraries = [kind(self) for kind in LIBRARIES]
        if objc is not None:
            self.libraries[-1] = objc
        self.objc = self.libraries[-1]
        self.table, self.thunks, self.memory = {}, {}, {}
        for library in self.libraries:
            for name in dir(library):
                function = getattr(library, name)
                if hasattr(function, "c"):
                    self.table[name] = (library, function)
        self.start_real = None
        for fault in faults:
            self.fault(fault)
        for library in self.libraries:
            getattr(library, "start", lambda: None)()

    # -- time ----------------------------------------------------------------------------------------------------------

    def step(self):
        """The step that it is now."""
        if not self.speed:
            return self.steps
        elapsed = (REAL["monotonic_ns"]() - self.start_real) * self.speed
        return self.replay.recording.steps_for(int(elapsed * self.replay.rate // 1000000000))

    def advance(self, steps=1):
        """With speed 0: the next recorded instant."""
        self.steps += steps

    def sleep(self, seconds):
        if seconds < 0:
            raise ValueError("sleep length must be non-negative")
        if self.speed:
            REAL["sleep"](seconds / self.speed)
        else:
            with self.lock:
                self.steps += 1
            REAL["sleep"](0)

    def look_at_clock(self):
        for faults, name in ((self.clock_faults, "clock_offset"), (self.sleep_faults, "slept_offset")):
            for fault in faults:
                if fault.due():
                    setattr(self, name, getattr(self, name) + int(fault.seconds * 1e9))

    def uptime_ns(self):
        self.look_at_clock()
        return self.replay.ns(self.step()) + self.clock_offset

    def continuous_ns(self):
        step = self.step()
        self.look_at_clock()
        return self.replay.ns(step) + self.clock_offset + self.replay.slept(step) + self.slept_offset

    def unix(self):
        step = self.step()
        passed = self.replay.ns(step) - self.replay.ns(0) + self.replay.slept(step) - self.replay.slept(0)
        return self.recording["time"]["unix"] + (passed + self.slept_offset + self.clock_offset) / 1e9

    def at(self, series):
        return self.replay.at(series, self.step())

    # -- objects -------------------------------------------------------------------------------------------------------

    def new(self, kind, value, maker, client=1, held=0):
        if kind == "CFNumber" or kind == "CFString" and len(value) < 8 and value.isascii():
            addr = 0x8000000000000003 | self.next_tag << 4      # a tagged pointer: the top bit set, no memory behind it
            self.next_tag += 1
        else:
            addr = self.next_address
            self.next_address += 0x20
        made = self.objects[addr] = Obj(addr, kind, value, client, held, maker)
        return made

    def wrap(self, item, maker):
        """An element of a container, made when first asked for: it belongs to the container (+0)."""
        if isinstance(item, Obj):
            return item
        return self.build(item, maker, 0, 1)

    def build(self, spec, maker, client=1, held=0):
        """The CF object of a recorded value ["s", text] ..."""
        if spec.__class__ is tuple:
            made = self.new("CFDictionary", None, maker, client, held)
            made.info = spec
            return made
        letter, value = spec
        if letter == "b":
            made = self.true if value else self.false
            made.client += client
            return made
        if self.short:
            value = shortened(letter, value)
        if letter == "s":
            return self.new("CFString", value, maker, client, held)
        if letter == "x":
            return self.new("CFData", value, maker, client, held)
        if letter == "a":
            return self.new("CFArray", list(value), maker, client, held)
        if letter == "d":
            return self.new("CFDictionary", dict(value), maker, client, held)
        made = self.new("CFNumber", value, maker, client, held)
        made.info = letter
        return made

    def obj(self, addr, kind=None, by=""):
        """The live object at an address, of the given kind."""
        found = self.objects.get(addr)
        if found is None:
            raise self.bad_handle(addr)
        if kind is not None and found.kind != kind:
            raise Violation("wrong CF type: %s, where a %s is needed" % (self.describe(found), kind))
        return found

    def bad_handle(self, addr):
        if not addr:
            return Violation("NULL where Apple's code crashes")
        if addr in self.inherited:
            return Violation("a forked child uses its parent's %s" % self.describe(self.inherited[addr]))
        if addr in self.dead:
            kind, maker, by = self.dead[addr]
            return Violation("use after release: %s from %s, which died at %s" % (kind, maker, by))
        if addr in self.ports:
            return Violation("a port (%s from %s) is used as a CF object" % (self.ports[addr].kind, self.ports[addr].maker))
        if addr in self.inherited_ports:
            return Violation("a forked child uses its parent's port %#x as an object" % addr)
        if 0x600000000000 <= addr < self.next_address or addr >> 63 and addr >> 4 & 0xFFFFFFFFFFF < self.next_tag:
            return Violation("use after release: an object that died long ago (%#x)" % addr)
        for known in self.objects:
            if known & 0xFFFFFFFF == addr & 0xFFFFFFFF:
                return Violation("a pointer cut to 32 bits: %#x of %s" % (addr, self.describe(self.objects[known])))
        return Violation("bad handle: %#x was never given out" % addr)

    def describe(self, obj):
        text = "%s from %s" % (obj.kind, obj.maker)
        return text + " (%.40r)" % obj.value if obj.kind in ("CFString", "CFNumber") else text

    def retain(self, addr):
        found = self.obj(addr)
        found.client += 1
        return addr

    def release(self, addr, by="CFRelease"):
        found = self.objects.get(addr)
        if found is None:
            raise Violation("%s(NULL) crashes" % by) if not addr else self.bad_handle(addr)
        if found.client <= 0:
            raise Violation("over-release: %s is not owned by the program (+0), but %s releases it" % (self.describe(found), by))
        found.client -= 1
        if not found.client and not found.held:
            self.die(found, by)

    def let_go(self, obj, by):
        obj.held -= 1
        if not obj.client and not obj.held:
            self.die(obj, by)

    def die(self, obj, by):
        if obj.guard is not None and obj.guard.addr in self.objects:
            raise Violation("the HID matching dictionary is released before its client")
        self.objects.pop(obj.addr, None)
        if len(self.graves) == self.graves.maxlen:
            self.dead.pop(self.graves[0], None)
        self.graves.append(obj.addr)
        self.dead[obj.addr] = (obj.kind, obj.maker, by)
        if obj.memory is not None:
            ctypes.memset(obj.memory, 0xDB, ctypes.sizeof(obj.memory))
            self.bodies.append(obj.memory)
        if obj.retains:
            by = "the end of its container"
            value = obj.value
            if value.__class__ is list:
                for kid in value:
                    if kid.__class__ is Obj:
                        self.let_go(kid, by)
            elif value.__class__ is dict:
                for kid in value.values():
                    if kid.__class__ is Obj:
                        self.let_go(kid, by)
            if obj.keys:
                for kid in obj.keys.values():
                    self.let_go(kid, by)

    def body(self, obj, data):
        """Real memory of an object, for as long as it lives."""
        if obj.memory is None:
            obj.memory = ctypes.create_string_buffer(data, max(1, len(data)))
        return ctypes.addressof(obj.memory)

    def element(self, array, index):
        value = array.value
        if not 0 <= index < len(value):
            raise Violation("array index %d out of range: %s has %d elements" % (index, self.describe(array), len(value)))
        kid = value[index]
        if kid.__class__ is not Obj:
            kid = value[index] = self.wrap(kid, array.maker)
        elif kid.addr not in self.objects:
            raise self.bad_handle(kid.addr)
        return kid

    def content(self, dictionary):
        """The entries of a dictionary; a channel dictionary is spelled out when first looked into."""
        if dictionary.value is None:
            dictionary.value = channel_entries(*dictionary.info)
        return dictionary.value

    def entry(self, dictionary, key):
        value = self.content(dictionary)
        kid = value.get(key)
        if kid is None:
            return None
        if kid.__class__ is not Obj:
            kid = value[key] = self.wrap(kid, dictionary.maker)
        elif kid.addr not in self.objects:
            raise self.bad_handle(kid.addr)
        return kid

    def key_object(self, dictionary, key):
        if dictionary.keys is None:
            dictionary.keys = {}
        found = dictionary.keys.get(key)
        if found is None:
            found = dictionary.keys[key] = self.new("CFString", key, dictionary.maker, 0, 1)
        return found

    def text(self, pointer, what="a C string"):
        if not pointer:
            raise Violation("NULL where Apple's code crashes: %s" % what)
        return ctypes.string_at(pointer)

    def put(self, pointer, data, what="an out parameter"):
        if not pointer:
            raise Violation("NULL where Apple's code crashes: %s" % what)
        ctypes.memmove(pointer, bytes(data), len(data))

    # -- ports ---------------------------------------------------------------------------------------------------------

    def new_port(self, kind, value, maker):
        name = self.next_port
        self.next_port += 0x100
        self.ports[name] = Port(name, kind, value, maker)
        return name

    def port(self, name, *kinds):
        found = self.ports.get(name)
        if found is None:
            raise self.bad_port(name)
        if kinds and found.kind not in kinds:
            raise Violation("wrong port: %s from %s, where %s is needed" % (found.kind, found.maker, " or ".join(kinds)))
        return found

    def bad_port(self, name):
        if name in self.inherited_ports:
            port = self.inherited_ports[name]
            return Violation("a forked child uses its parent's %s from %s" % (port.kind, port.maker))
        if name in self.dead_ports:
            return Violation("use after release: port %s from %s" % self.dead_ports[name])
        for known, obj in self.objects.items():
            if known & 0xFFFFFFFF == name:
                return Violation("a CF object (%s) is used as a port" % self.describe(obj))
        for known, (kind, maker, by) in self.dead.items():
            if known & 0xFFFFFFFF == name:
                return Violation("a CF object (%s from %s, dead since %s) is used as a port" % (kind, maker, by))
        return Violation("bad handle: port %#x was never given out" % name)

    def drop_port(self, name, *kinds):
        found = self.port(name, *kinds)
        found.refs -= 1
        if not found.refs:
            del self.ports[name]
            if len(self.dead_ports) == self.graves.maxlen:
                del self.dead_ports[next(iter(self.dead_ports))]
            self.dead_ports[name] = (found.kind, found.maker)

    # -- functions -----------------------------------------------------------------------------------------------------

    def fault(self, text):
        fault = text if isinstance(text, Fault) else Fault(text)
        self.fault_list.append(fault)
        if fault.scope == "call":
            if fault.name not in SYMBOLS:
                raise ValueError("unknown function %r" % fault.name)
            self.faults.setdefault(fault.name, []).append(fault)
        elif fault.scope == "clock":
            self.clock_faults.append(fault)
        elif fault.scope == "sleep":
            self.sleep_faults.append(fault)
        return fault

    def clear_faults(self):
        self.faults.clear()
        del self.fault_list[:], self.clock_faults[:], self.sleep_faults[:]

    def has_fault(self, scope, name):
        return any(fault.scope == scope and fault.name == name for fault in self.fault_list)

    def groups_refused(self):
        refused = {name for name, state in self.recording["ioreport"]["groups"].items() if state != "ok"}
        return refused | {fault.name for fault in self.fault_list if fault.scope == "group" and fault.kind == "refuses"}

    def address(self, symbol):
        """The address of a C function, made when first asked for."""
        thunk = self.thunks.get(symbol)
        if thunk is None:
            thunk = self.thunks[symbol] = self.make_thunk(symbol, *self.table[symbol])
        return ctypes.cast(thunk, ctypes.c_void_p).value

    def make_thunk(self, symbol, library, function):
        letters = [part.split("/")[0] for part in function.c.split()]
        prototype = ctypes.CFUNCTYPE(*(LETTERS[letter] for letter in letters), use_errno=True)
        return prototype(self.guarded(symbol, function, None if letters[0] == "v" else 0))

    def guarded(self, symbol, function, nothing):
        calls, faults, lock = self.calls, self.faults, self.lock

        def entry(*args):
            try:
                with lock:
                    calls[symbol] += 1
                    if symbol in faults:
                        return self.failing(symbol, function, args)
                    return function(*args)
            except BaseException as problem:
                self.trouble(symbol, problem)
                return nothing
        return entry

    def trouble(self, symbol, problem):
        """Nothing may leave a callback: it is raised again in the caller's thread when the C call has returned."""
        if not isinstance(problem, (Violation, KeyboardInterrupt, SystemExit, MemoryError)):
            import traceback
            problem = Violation("the stand-in failed in %s:\n%s" % (symbol, traceback.format_exc()))
        if isinstance(problem, Violation):
            problem.args = ("%s: %s" % (symbol, problem),) + problem.args[1:]
            self.violations.append(str(problem) + "\n" + where())
            if sys.is_finalizing() or self.trouble_in_exit:
                os.write(2, ("fakemac: %s\n" % self.violations[-1]).encode())
                os._exit(EXIT_CODE)
        if through_call():
            self.pending[get_ident()] = problem
        else:      # called through a bare address: the calling frame raises it at its next line
            interrupt_caller(problem)

    def failing(self, symbol, function, args):
        fault = next((fault for fault in self.faults[symbol] if fault.due()), None)
        if fault is None:
            return function(*args)
        result = function.c.split()[0]
        if fault.kind in ("short", "moved", "newlayout") or fault.kind == "int64min" and result[0] not in "qQ":
            self.doing, self.short = fault.kind, fault.kind == "short"
            try:
                return function(*args)
            finally:
                self.doing, self.short = None, False
        if fault.kind == "int64min":
            return INT64_MIN & MASK64 if result[0] == "Q" else INT64_MIN
        if fault.kind == "interrupt":
            value = function(*args)
            self.trouble(symbol, KeyboardInterrupt())
            return value
        if fault.kind == "wrongtype":
            return self.mistyped(symbol, function, args)
        return self.refused(symbol, function, args, fault)

    def refused(self, symbol, function, args, fault):
        if function.consumes is not None:      # Apple's code takes its reference also when it fails
            self.release(args[function.consumes], symbol)
        failure = FAILS.get(symbol)
        if fault.kind == "error" and failure is not None:
            code = int(fault.value, 0) if fault.value else failure[1]
            if failure[0] == "kr":
                return signed32(code & 0xFFFFFFFF)
            ctypes.set_errno(code)
            return failure[0]
        if symbol == "IOReportCreateSubscription":
            self.put(args[2], bytes(8))
        return None if function.c[0] in "pv" else 0

    def mistyped(self, symbol, function, args):
        """The right result given up for an object of another type, owned alike."""
        result = function(*args)
        if function.own == "out":
            slot = ctypes.c_void_p.from_address(next(arg for arg, letter in zip(args[1:], function.c.split()[2:]) if letter == "p" and arg))
            natural = self.objects.get(slot.value)
            if natural is not None:
                slot.value = self.swapped(natural, symbol).addr
            return result
        natural = self.objects.get(result)
        return result if natural is None else self.swapped(natural, symbol).addr

    def swapped(self, natural, symbol):
        kind, value = ("CFNumber", 7) if natural.kind == "CFString" else ("CFString", "a string where none belongs")
        owned = SYMBOLS[symbol].own != "+0"
        other = self.new(kind, value, symbol + " (wrong type)", 1 if owned else 0, 0 if owned else 1)
        if kind == "CFNumber":
            other.info = "i64"
        if owned:
            self.release(natural.addr, symbol)
        return other

    # -- report --------------------------------------------------------------------------------------------------------

    def live(self):
        """What the program owns at the moment: [Live(kind, maker, count)]; count is the number of references."""
        owned = collections.Counter()
        with self.lock:
            for obj in self.objects.values():
                if obj.client > 0:
                    owned[obj.kind, obj.maker] += obj.client
            for port in self.ports.values():
                owned["port: " + port.kind, port.maker] += port.refs
            for library in self.libraries:
                for kind, maker in getattr(library, "belongings", tuple)():
                    owned[kind, maker] += 1
        return [Live(kind, maker, count) for (kind, maker), count in sorted(owned.items())]

    def report(self):
        lines = ["fakemac: %d native calls of %d functions" % (sum(
            count for name, count in self.calls.items() if ":" not in name), len(self.calls))]
        lines += ["  live at the end: %s from %s, %d reference%s" % (kind, maker, count, "s" * (count != 1))
                  for kind, maker, count in self.live()] or ["  nothing is live at the end"]
        lines += ["  VIOLATION: " + text for text in self.violations]
        return "\n".join(lines)

    # -- in place ------------------------------------------------------------------------------------------------------

    def __enter__(self):
        if Mac.active is not None:
            raise RuntimeError("there is one Mac at a time")
        Mac.active = self
        self.start_real = time.monotonic_ns()
        self.patches = Patches(self)
        self.patches.apply()
        return self

    def __exit__(self, kind, value, trace):
        self.patches.undo()
        Mac.active = None
        if kind is None and self.violations:
            raise Violation(self.violations[0])
        return False

    def forked(self):
        """In a forked child: everything the parent opened is out of bounds."""
        eternal = {addr: obj for addr, obj in self.objects.items() if obj.kind == "CFBoolean" or obj.maker == "constant"}
        self.inherited.update((addr, obj) for addr, obj in self.objects.items() if addr not in eternal)
        self.inherited_ports.update(self.ports)
        self.objects, self.ports = eternal, {}
        for obj in eternal.values():
            obj.client = 0
        self.pending.clear()
        for library in self.libraries:
            getattr(library, "forked", lambda: None)()


def shortened(letter, value):
    if letter in ("s", "x") and value:
        return value[:len(value) // 2 | (len(value) > 1)][:len(value) - 1]
    if letter == "a":
        return list(value)[:len(value) // 2]
    if letter == "d":
        return dict(list(value.items())[:len(value) // 2])
    return value


def where():
    """The program's part of the stack."""
    import traceback
    frames = [frame for frame in traceback.extract_stack() if os.path.abspath(frame.filename) != os.path.abspath(__file__)]
    return "".join(traceback.format_list(frames[-6:])).rstrip()


def load(path):
    if path is None:
        folder = os.path.join(os.path.dirname(os.path.abspath(__file__)), "recordings")
        path = os.path.join(folder, "m4-macos27.json")
    with open(path, encoding="utf-8") as file:
        data = json.load(file)
    if data.get("format") != 1:
        raise ValueError("%s: recording format %r is not known" % (path, data.get("format")))
    return data


def channel_entries(tag, channel, stamp, values, spoilt=None):
    """The content of a channel dictionary: what does not change, and the records of this sample."""
    if channel.entries is None:
        legend = [["i64", channel.id], ["i64", channel.type]] + ([["s", channel.name]] if channel.name else [])
        channel.entries = {
            "DriverID": ["i64", channel.driver], "IOReportGroupName": ["s", channel.group],
            "IOReportChannelInfo": ["d", {"IOReportChannelUnit": ["i64", channel.unit]}],
            "LegendChannel": ["a", legend], "IOReportChannels": ["a", legend]}
        if channel.subgroup:
            channel.entries["IOReportSubGroupName"] = ["s", channel.subgroup]
        if channel.states:
            channel.entries["StateNames"] = ["a", [["s", name] for name in channel.states]]
    entries = dict(channel.entries)
    if values is not None:
        raw = channel.records(stamp, values)
        if spoilt == "short":
            raw = raw[:len(raw) // 2]
        elif spoilt == "newlayout":      # some future macOS: 72 bytes to a record
            raw = b"".join(bytes(8) + raw[at:at + 64] for at in range(0, len(raw), 64))
        entries["RawElements"] = ["x", raw]
    return entries


# ======================================================================================================================
# CoreFoundation
# ======================================================================================================================

_INTEGERS = {1: "<b", 2: "<h", 3: "<i", 4: "<q", 7: "<b", 8: "<h", 9: "<i", 10: "<q", 11: "<q", 14: "<q"}
_FLOATS = {5: "<f", 6: "<d", 12: "<f", 13: "<d"}
_NUMBER_TYPES = {"i8": 1, "i16": 2, "i32": 3, "i64": 4, "f32": 5, "f64": 6}
UTF8, ASCII = 0x08000100, 0x0600


class CoreFoundation:
    library = "CoreFoundation"

    def __init__(self, mac):
        self.mac = mac

    def start(self):
        mac = self.mac
        mac.true = mac.new("CFBoolean", True, "constant", 0, 1)
        mac.false = mac.new("CFBoolean", False, "constant", 0, 1)
        mac.data.pointer("kCFBooleanTrue", mac.true.addr)
        mac.data.pointer("kCFBooleanFalse", mac.false.addr)
        self.constants = {}
        self.cstring_turn = 0
        kinds = ("CFString", "CFNumber", "CFBoolean", "CFData", "CFArray", "CFDictionary")
        self.type_ids = {kind: 31 + 7 * index for index, kind in enumerate(kinds)}

    def constant(self, text):
        """A CFSTR("..."): lives for ever, +0."""
        found = self.constants.get(text)
        if found is None:
            found = self.constants[text] = self.mac.new("CFString", text, "constant", 0, 1)
        return found.addr

    # objects of any kind

    @c("p p")
    def CFRetain(self, ref):
        return self.mac.retain(ref)

    @c("v p")
    def CFRelease(self, ref):
        self.mac.release(ref)

    @c("q p")
    def CFGetRetainCount(self, ref):
        obj = self.mac.obj(ref)
        return obj.client + obj.held

    @c("Q p")
    def CFGetTypeID(self, ref):
        return self.type_ids.get(self.mac.obj(ref).kind, 777)

    @c("B p p")
    def CFEqual(self, one, other):
        one, other = self.mac.obj(one), self.mac.obj(other)
        return one is other or one.kind == other.kind and one.kind in ("CFString", "CFNumber", "CFData") and one.value == other.value

    @c("Q p")
    def CFHash(self, ref):
        return hash(key_of(self.mac.obj(ref))) & MASK64

    @c("p p", own="+1")
    def CFCopyDescription(self, ref):
        return self.mac.new("CFString", "<%s>" % self.mac.describe(self.mac.obj(ref)), "CFCopyDescription").addr

    @c("Q")
    def CFStringGetTypeID(self):
        return self.type_ids["CFString"]

    @c("Q")
    def CFNumberGetTypeID(self):
        return self.type_ids["CFNumber"]

    @c("Q")
    def CFBooleanGetTypeID(self):
        return self.type_ids["CFBoolean"]

    @c("Q")
    def CFDataGetTypeID(self):
        return self.type_ids["CFData"]

    @c("Q")
    def CFArrayGetTypeID(self):
        return self.type_ids["CFArray"]

    @c("Q")
    def CFDictionaryGetTypeID(self):
        return self.type_ids["CFDictionary"]

    # strings

    @c("p p p I", own="+1")
    def CFStringCreateWithCString(self, allocator, text, encoding):
        return self.string(self.mac.text(text), encoding, "CFStringCreateWithCString")

    @c("p p p q I B", own="+1")
    def CFStringCreateWithBytes(self, allocator, text, length, encoding, external):
        return self.string(ctypes.string_at(text, length) if length else b"", encoding, "CFStringCreateWithBytes")

    def string(self, raw, encoding, maker):
        try:
            text = raw.decode({UTF8: "utf-8", ASCII: "ascii"}[encoding])
        except (KeyError, UnicodeDecodeError):
            return None
        return self.mac.new("CFString", text, maker).addr

    @c("q p")
    def CFStringGetLength(self, ref):
        text = self.mac.obj(ref, "CFString").value
        if self.mac.short:
            return len(text) // 2
        return len(text) if text.isascii() else len(text.encode("utf-16-le")) // 2

    @c("q q I")
    def CFStringGetMaximumSizeForEncoding(self, length, encoding):
        return length * (3 if encoding == UTF8 else 1)

    @c("p p I")
    def CFStringGetCStringPtr(self, ref, encoding):
        text = self.mac.obj(ref, "CFString")
        self.cstring_turn += 1      # it "may return NULL at any time": every other time here
        if self.cstring_turn % 2 or not text.value.isascii():
            return None
        return self.mac.body(text, text.value.encode() + b"\0")

    @c("B p p q I")
    def CFStringGetCString(self, ref, buffer, size, encoding):
        text = self.mac.obj(ref, "CFString").value
        if encoding not in (UTF8, ASCII) or encoding == ASCII and not text.isascii():
            return 0
        raw = text.encode("utf-8", "surrogatepass") + b"\0"
        if len(raw) > size:
            return 0
        self.mac.put(buffer, raw)
        return 1

    # numbers, booleans, data

    @c("p p q p", own="+1")
    def CFNumberCreate(self, allocator, kind, pointer):
        layout = _INTEGERS.get(kind) or _FLOATS.get(kind)
        if layout is None:
            raise Violation("CFNumberCreate: no number type %d" % kind)
        if not pointer:
            raise Violation("NULL where Apple's code crashes: the number")
        made = self.mac.new("CFNumber", struct.unpack(layout, ctypes.string_at(pointer, struct.calcsize(layout)))[0], "CFNumberCreate")
        made.info = {"b": "i8", "h": "i16", "i": "i32", "q": "i64", "f": "f32", "d": "f64"}[layout[1]]
        return made.addr

    @c("B p q p")
    def CFNumberGetValue(self, ref, kind, pointer):
        value = self.mac.obj(ref, "CFNumber").value
        if kind in _INTEGERS:
            layout = _INTEGERS[kind]
            width = struct.calcsize(layout) * 8
            whole = int(value)
            kept = (whole + (1 << width - 1)) % (1 << width) - (1 << width - 1)
            self.mac.put(pointer, struct.pack(layout, kept))
            return kept == value
        if kind in _FLOATS:
            self.mac.put(pointer, struct.pack(_FLOATS[kind], value))
            return struct.unpack(_FLOATS[kind], struct.pack(_FLOATS[kind], value))[0] == value
        raise Violation("CFNumberGetValue: no number type %d" % kind)

    @c("q p")
    def CFNumberGetType(self, ref):
        return _NUMBER_TYPES[self.mac.obj(ref, "CFNumber").info]

    @c("q p")
    def CFNumberGetByteSize(self, ref):
        return int(self.mac.obj(ref, "CFNumber").info[1:]) // 8

    @c("B p")
    def CFNumberIsFloatType(self, ref):
        return self.mac.obj(ref, "CFNumber").info[0] == "f"

    @c("B p")
    def CFBooleanGetValue(self, ref):
        return self.mac.obj(ref, "CFBoolean").value

    @c("p p p q", own="+1")
    def CFDataCreate(self, allocator, pointer, length):
        return self.mac.new("CFData", ctypes.string_at(pointer, length), "CFDataCreate").addr

    @c("q p")
    def CFDataGetLength(self, ref):
        return len(self.mac.obj(ref, "CFData").value) // (2 if self.mac.short else 1)

    @c("p p")
    def CFDataGetBytePtr(self, ref):
        data = self.mac.obj(ref, "CFData")
        return self.mac.body(data, data.value)

    @c("v p R p")
    def CFDataGetBytes(self, ref, part, buffer):
        data = self.mac.obj(ref, "CFData").value
        if part.location < 0 or part.length < 0 or part.location + part.length > len(data):
            raise Violation("CFDataGetBytes: %d bytes from %d of %d" % (part.length, part.location, len(data)))
        self.mac.put(buffer, data[part.location:part.location + part.length])

    # arrays

    def callbacks(self, pointer, *names):
        """Whether a container retains: callbacks are NULL or the address of Apple's struct."""
        if not pointer:
            return False
        if pointer not in [self.mac.data.address(name) for name in names]:
            raise Violation("callbacks %#x are not the address of %s" % (pointer, " or ".join(names)))
        return True

    def keep(self, obj):
        obj.held += 1
        return obj

    def changeable(self, ref, kind):
        found = self.mac.obj(ref, kind)
        if not found.mutable:
            raise Violation("%s is not mutable" % self.mac.describe(found))
        return found

    @c("p p p q p", own="+1")
    def CFArrayCreate(self, allocator, values, count, callbacks):
        retains = self.callbacks(callbacks, "kCFTypeArrayCallBacks")
        words = (ctypes.c_uint64 * count).from_address(values) if count else ()
        items = [self.mac.obj(word) for word in words]
        made = self.mac.new("CFArray", [self.keep(item) if retains else item for item in items], "CFArrayCreate")
        made.retains = retains
        return made.addr

    @c("p p q p", own="+1")
    def CFArrayCreateMutable(self, allocator, capacity, callbacks):
        retains = self.callbacks(callbacks, "kCFTypeArrayCallBacks")
        made = self.mac.new("CFArray", [], "CFArrayCreateMutable")
        made.mutable, made.retains = True, retains
        return made.addr

    @c("v p p")
    def CFArrayAppendValue(self, ref, value):
        array = self.changeable(ref, "CFArray")
        item = self.mac.obj(value)
        array.value.append(self.keep(item) if array.retains else item)

    @c("q p")
    def CFArrayGetCount(self, ref):
        return len(self.mac.obj(ref, "CFArray").value) // (2 if self.mac.short else 1)

    @c("p p q", own="+0")
    def CFArrayGetValueAtIndex(self, ref, index):
        return self.mac.element(self.mac.obj(ref, "CFArray"), index).addr

    @c("v p R p")
    def CFArrayGetValues(self, ref, part, values):
        array = self.mac.obj(ref, "CFArray")
        for place in range(part.length):
            self.mac.put(values + 8 * place, struct.pack("<Q", self.mac.element(array, part.location + place).addr))

    # dictionaries

    @c("p p p p q p p", own="+1")
    def CFDictionaryCreate(self, allocator, keys, values, count, key_callbacks, value_callbacks):
        made = self.dictionary(key_callbacks, value_callbacks, "CFDictionaryCreate")
        for place in range(count):
            key = self.mac.obj(ctypes.c_uint64.from_address(keys + 8 * place).value)
            self.set(made, key, self.mac.obj(ctypes.c_uint64.from_address(values + 8 * place).value))
        return made.addr

    def dictionary(self, key_callbacks, value_callbacks, maker):
        self.callbacks(key_callbacks, "kCFTypeDictionaryKeyCallBacks", "kCFCopyStringDictionaryKeyCallBacks")
        retains = self.callbacks(value_callbacks, "kCFTypeDictionaryValueCallBacks")
        if bool(key_callbacks) != retains:
            raise Violation("%s: callbacks for keys but not for values, or the reverse" % maker)
        made = self.mac.new("CFDictionary", {}, maker)
        made.keys, made.retains = {}, retains
        return made

    def set(self, dictionary, key, value):
        name = key_of(key)
        old = dictionary.value.get(name)
        dictionary.value[name] = self.keep(value) if dictionary.retains else value
        if old is not None and old.__class__ is Obj and dictionary.retains:
            self.mac.let_go(old, "its replacement")
        if dictionary.keys is None:
            dictionary.keys = {}
        if name not in dictionary.keys:
            dictionary.keys[name] = self.keep(key) if dictionary.retains else key

    @c("p p q p p", own="+1")
    def CFDictionaryCreateMutable(self, allocator, capacity, key_callbacks, value_callbacks):
        made = self.dictionary(key_callbacks, value_callbacks, "CFDictionaryCreateMutable")
        made.mutable = True
        return made.addr

    @c("p p q p", own="+1")
    def CFDictionaryCreateMutableCopy(self, allocator, capacity, ref):
        return self.copied(ref, "CFDictionaryCreateMutableCopy", True)

    @c("p p p", own="+1")
    def CFDictionaryCreateCopy(self, allocator, ref):
        return self.copied(ref, "CFDictionaryCreateCopy", False)

    def copied(self, ref, maker, mutable):
        old = self.mac.obj(ref, "CFDictionary")
        made = self.mac.new("CFDictionary", {}, maker)
        made.keys, made.mutable = {}, mutable
        for key in list(self.mac.content(old)):
            value = self.mac.entry(old, key)
            made.value[key] = self.keep(value)
            if isinstance(key, str):
                made.keys[key] = self.keep(self.mac.key_object(old, key))
        return made.addr

    @c("v p p p")
    def CFDictionarySetValue(self, ref, key, value):
        self.set(self.changeable(ref, "CFDictionary"), self.mac.obj(key), self.mac.obj(value))

    @c("v p p p")
    def CFDictionaryAddValue(self, ref, key, value):
        dictionary = self.changeable(ref, "CFDictionary")
        if key_of(self.mac.obj(key)) not in dictionary.value:
            self.set(dictionary, self.mac.obj(key), self.mac.obj(value))

    @c("q p")
    def CFDictionaryGetCount(self, ref):
        return len(self.mac.content(self.mac.obj(ref, "CFDictionary")))

    @c("p p p", own="+0")
    def CFDictionaryGetValue(self, ref, key):
        found = self.mac.entry(self.mac.obj(ref, "CFDictionary"), key_of(self.mac.obj(key)))
        return found and found.addr

    @c("B p p p")
    def CFDictionaryGetValueIfPresent(self, ref, key, slot):
        found = self.mac.entry(self.mac.obj(ref, "CFDictionary"), key_of(self.mac.obj(key)))
        if found is not None and slot:
            self.mac.put(slot, struct.pack("<Q", found.addr))
        return found is not None

    @c("B p p")
    def CFDictionaryContainsKey(self, ref, key):
        return self.mac.entry(self.mac.obj(ref, "CFDictionary"), key_of(self.mac.obj(key))) is not None

    def plain(self, item):
        """A property list in Python, of an object or of what one would be made of; TypeError for what has no place in one."""
        if item.__class__ is Obj:
            if item.kind == "CFDictionary":
                return {name: self.plain(value) for name, value in self.mac.content(item).items()}
            if item.kind == "CFArray":
                return [self.plain(value) for value in item.value]
            if item.kind == "CFNumber":
                return float(item.value) if item.info[0] == "f" else item.value
            if item.kind not in ("CFString", "CFBoolean", "CFData"):
                raise TypeError(item.kind)
            return item.value
        if item.__class__ is tuple:
            return {name: self.plain(value) for name, value in channel_entries(*item).items()}
        letter, value = item
        if letter == "d":
            return {name: self.plain(inner) for name, inner in value.items()}
        if letter == "a":
            return [self.plain(inner) for inner in value]
        return value

    @c("p p p q Q p", own="+1")
    def CFPropertyListCreateData(self, allocator, plist, form, options, error):
        import plistlib
        if form != 200:
            raise Violation("CFPropertyListCreateData: only the binary form (200) is served")
        try:
            data = plistlib.dumps(self.plain(self.mac.obj(plist)), fmt=plistlib.FMT_BINARY)
        except TypeError:
            return None
        return self.mac.new("CFData", data[:len(data) // 2] if self.mac.short else data, "CFPropertyListCreateData").addr

    @c("v p p p")
    def CFDictionaryGetKeysAndValues(self, ref, keys, values):
        dictionary = self.mac.obj(ref, "CFDictionary")
        names = list(self.mac.content(dictionary))
        if keys:
            self.mac.put(keys, b"".join(struct.pack("<Q", self.mac.key_object(dictionary, name).addr) for name in names))
        if values:
            self.mac.put(values, b"".join(struct.pack("<Q", self.mac.entry(dictionary, name).addr) for name in names))


# ======================================================================================================================
# IOKit: registry, SMC, HID, power sources
# ======================================================================================================================


class Entry:
    def __init__(self, data):
        self.id, self.cls, self.name = data["id"], data["class"], data["name"] or data["class"]
        self.conforms, self.parent, self.properties = data["conforms"], data["parent"], data["properties"]

    def is_a(self, name):
        return name in (self.cls, "IOService", "IORegistryEntry", "OSObject") or name in self.conforms


class IOKit:
    library = "IOKit"

    def __init__(self, mac):
        self.mac = mac

    def start(self):
        self.entries = [Entry(data) for data in self.mac.recording["registry"]]
        self.smc = self.mac.recording["smc"]
        if self.smc and not any(entry.is_a("AppleSMC") for entry in self.entries):
            self.entries.append(Entry({"id": 0x1000001F0, "class": "AppleSMCKeysEndpoint", "conforms": ["AppleSMC"], "name": None,
                                       "parent": None, "properties": {}}))
        if self.smc:
            self.smc_info = {name: (kind, size) for name, kind, size in self.smc["keys"]}
            self.smc_order = [name for name, kind, size in self.smc["keys"]]

    def properties(self, entry):
        found = {name: self.property(entry, name) for name in entry.properties}
        return {name: value for name, value in found.items() if value is not None}

    def property(self, entry, name):
        return self.mac.at(entry.properties.get(name))

    def give(self, entry, maker):
        return self.mac.new_port("io_object_t", entry, "%s (%s)" % (maker, entry.cls))

    def iterator(self, entries, maker, slot):
        name = self.mac.new_port("io_iterator_t", [list(entries), 0], maker) if entries else 0
        self.mac.put(slot, struct.pack("<I", name))
        return 0

    def entry(self, name):
        return self.mac.port(name, "io_object_t").value

    def matching(self, maker, **pairs):
        made = self.mac.build(["d", {key: (["i64", value] if isinstance(value, int) else ["s", value])
                                     for key, value in pairs.items()}], maker)
        made.mutable = True
        return made.addr

    def matches(self, ref):
        dictionary = self.mac.obj(ref, "CFDictionary")
        found = [entry for entry in self.entries if not entry.cls.endswith("UserClient")]
        for key in self.mac.content(dictionary):
            value = self.mac.entry(dictionary, key).value
            if key == "IOProviderClass":
                found = [entry for entry in found if entry.is_a(value)]
            elif key == "IONameMatch":
                found = [entry for entry in found if entry.name == value]
            elif key == "IORegistryEntryID":
                found = [entry for entry in found if entry.id == value]
            else:
                found = [entry for entry in found if (self.property(entry, key) or [None, None])[1] == value]
        return found

    @c("p p", own="+1")
    def IOServiceMatching(self, name):
        return self.matching("IOServiceMatching", IOProviderClass=self.mac.text(name).decode())

    @c("p p", own="+1")
    def IOServiceNameMatching(self, name):
        return self.matching("IOServiceNameMatching", IONameMatch=self.mac.text(name).decode())

    @c("p Q", own="+1")
    def IORegistryEntryIDMatching(self, identity):
        return self.matching("IORegistryEntryIDMatching", IORegistryEntryID=identity)

    @c("I I p", consumes=1)
    def IOServiceGetMatchingService(self, port, matching):
        found = self.matches(matching)
        self.mac.release(matching, "IOServiceGetMatchingService")
        return self.give(found[0], "IOServiceGetMatchingService") if found else 0

    @c("i I p p", consumes=1)
    def IOServiceGetMatchingServices(self, port, matching, slot):
        found = self.matches(matching)
        self.mac.release(matching, "IOServiceGetMatchingServices")
        return self.iterator(found, "IOServiceGetMatchingServices", slot)

    @c("I I")
    def IOIteratorNext(self, name):
        if not name:
            return 0
        state = self.mac.port(name, "io_iterator_t").value
        if state[1] >= len(state[0]):
            return 0
        state[1] += 1
        return self.give(state[0][state[1] - 1], "IOIteratorNext")

    @c("i/I I")
    def IOIteratorIsValid(self, name):
        return 1 if name and self.mac.port(name, "io_iterator_t") else 0

    @c("v I")
    def IOIteratorReset(self, name):
        self.mac.port(name, "io_iterator_t").value[1] = 0

    @c("i I")
    def IOObjectRelease(self, name):
        if not name:
            return 0x10000003
        self.mac.drop_port(name, "io_object_t", "io_iterator_t")
        return 0

    @c("i I")
    def IOObjectRetain(self, name):
        self.mac.port(name, "io_object_t", "io_iterator_t").refs += 1
        return 0

    @c("i I p")
    def IOObjectGetClass(self, name, buffer):
        found = self.mac.port(name, "io_object_t", "io_iterator_t")
        self.mac.put(buffer, (found.value.cls if found.kind == "io_object_t" else "IOUserIterator").encode()[:127].ljust(128, b"\0"))
        return 0

    @c("i/I I p")
    def IOObjectConformsTo(self, name, cls):
        return 1 if self.entry(name).is_a(self.mac.text(cls).decode()) else 0

    @c("i/I I I")
    def IOObjectIsEqualTo(self, one, other):
        return 1 if self.entry(one) is self.entry(other) else 0

    @c("i I p")
    def IORegistryEntryGetName(self, name, buffer):
        self.mac.put(buffer, self.entry(name).name.encode()[:127].ljust(128, b"\0"))
        return 0

    @c("i I p")
    def IORegistryEntryGetRegistryEntryID(self, name, slot):
        self.mac.put(slot, struct.pack("<Q", self.entry(name).id & MASK64))
        return 0

    @c("I/i I p")
    def IORegistryEntryInPlane(self, name, plane):
        self.entry(name)
        return 0 if self.plane(plane) is None else 1

    @c("i I p p I", own="out")
    def IORegistryEntryCreateCFProperties(self, name, slot, allocator, options):
        made = self.mac.build(["d", self.properties(self.entry(name))], "IORegistryEntryCreateCFProperties")
        made.mutable = True
        self.mac.put(slot, struct.pack("<Q", made.addr))
        return 0

    @c("p I p p I", own="+1")
    def IORegistryEntryCreateCFProperty(self, name, key, allocator, options):
        value = self.property(self.entry(name), self.mac.obj(key, "CFString").value)
        return None if value is None else self.mac.build(value, "IORegistryEntryCreateCFProperty").addr

    @c("p I p p p I", own="+1")
    def IORegistryEntrySearchCFProperty(self, name, plane, key, allocator, options):
        entry, key = self.entry(name), self.mac.obj(key, "CFString").value
        self.plane(plane)
        queue = [entry]
        while queue:
            current = queue.pop(0)
            value = self.property(current, key)
            if value is not None:
                return self.mac.build(value, "IORegistryEntrySearchCFProperty").addr
            if options & 1:
                queue += self.parents(current) if options & 2 else self.kids(current)
        return None

    def plane(self, pointer):
        plane = self.mac.text(pointer).decode()
        if plane not in ("IOService", "IODeviceTree", "IOPower"):
            return None
        return plane

    def kids(self, entry):
        return [other for other in self.entries if other.parent == entry.id]

    def parents(self, entry):
        return [other for other in self.entries if other.id == entry.parent]

    @c("i I p p")
    def IORegistryEntryGetChildIterator(self, name, plane, slot):
        entry = self.entry(name)
        if self.plane(plane) is None:
            return BAD_ARGUMENT
        return self.iterator(self.kids(entry), "IORegistryEntryGetChildIterator", slot)

    @c("i I p p")
    def IORegistryEntryGetParentEntry(self, name, plane, slot):
        found = self.parents(self.entry(name))
        if self.plane(plane) is None or not found:
            return BAD_ARGUMENT if found else NO_DEVICE
        self.mac.put(slot, struct.pack("<I", self.give(found[0], "IORegistryEntryGetParentEntry")))
        return 0

    @c("I I p")
    def IORegistryEntryFromPath(self, port, path):
        last = self.mac.text(path).decode().rstrip("/").rpartition("/")[2].partition("@")[0].rpartition(":")[2]
        found = [entry for entry in self.entries if entry.name == last]
        return self.give(found[0], "IORegistryEntryFromPath") if found else 0

    # SMC

    @c("i I I I p")
    def IOServiceOpen(self, name, task, kind, slot):
        entry = self.entry(name)
        if task != self.mac.data.task:
            raise Violation("IOServiceOpen: %#x is not mach_task_self_" % task)
        if not self.smc or not entry.is_a("AppleSMC"):
            return UNSUPPORTED
        self.mac.put(slot, struct.pack("<I", self.mac.new_port("io_connect_t", entry, "IOServiceOpen")))
        return 0

    @c("i I")
    def IOServiceClose(self, name):
        self.mac.drop_port(name, "io_connect_t")
        return 0

    @c("i I I p Q p p")
    def IOConnectCallStructMethod(self, name, selector, request, size, answer, length):
        self.mac.port(name, "io_connect_t")
        if not request or not answer or not length:
            raise Violation("NULL where Apple's code crashes: a request without buffers")
        room = ctypes.c_uint64.from_address(length)
        if selector != 2 or size != 80 or room.value < 80:
            return BAD_ARGUMENT
        out = self.smc_answer(ctypes.string_at(request, 80))
        if self.mac.short:
            out = out[:40]
        self.mac.put(answer, out)
        room.value = len(out)
        return 0

    def smc_answer(self, request):
        key, index = struct.unpack_from("<I", request)[0], struct.unpack_from("<I", request, 44)[0]
        command, out = request[42], bytearray(80)
        name = struct.pack(">I", key).decode("latin-1")
        if command == 8:
            if index >= len(self.smc_order):
                out[40] = 0x84
            else:
                struct.pack_into("<I", out, 0, struct.unpack(">I", self.smc_order[index].encode("latin-1"))[0])
        elif name not in self.smc_info:
            out[40] = 0x84
        elif command == 9:
            kind, size = self.smc_info[name]
            struct.pack_into("<II", out, 28, size, struct.unpack(">I", kind.encode("latin-1").ljust(4))[0])
        elif command == 5:
            self.smc_read(name, struct.unpack_from("<I", request, 28)[0], out)
        else:
            out[40] = 0x82
        return bytes(out)

    def smc_read(self, name, asked, out):
        size = self.smc_info[name][1]
        if asked != size:
            out[40] = 0x87      # the size must be the key's own
            return
        series = self.smc["values"].get(name)
        value = self.mac.at(series) if series else None
        if value is None and name == "#KEY":
            value = struct.pack(">I", len(self.smc_order))
        if value is None:
            out[40] = 0x86      # listed, but not readable
            return
        out[48:48 + min(32, len(value))] = value[:32]


class HID:
    library = "IOKit"

    def __init__(self, mac):
        self.mac, self.clients = mac, []

    def forked(self):
        self.clients = []

    def client(self, maker):
        if any(client in self.mac.objects for client in self.clients) and "second HID client" not in self.mac.allow:
            raise Violation("a second HID client")
        self.clients.append(self.mac.new("IOHIDEventSystemClient", None, maker).addr)
        return self.clients[-1]

    @c("p p", own="+1")
    def IOHIDEventSystemClientCreate(self, allocator):
        return self.client("IOHIDEventSystemClientCreate")

    @c("p p", own="+1")
    def IOHIDEventSystemClientCreateSimpleClient(self, allocator):
        return self.client("IOHIDEventSystemClientCreateSimpleClient")

    @c("v/i p p")
    def IOHIDEventSystemClientSetMatching(self, ref, matching):
        client = self.mac.obj(ref, "IOHIDEventSystemClient")
        if client.info is not None:
            client.info.guard = None
        client.info = self.mac.obj(matching, "CFDictionary") if matching else None
        if client.info is not None:
            client.info.guard = client

    @c("p p", own="+1")
    def IOHIDEventSystemClientCopyServices(self, ref):
        client, mac = self.mac.obj(ref, "IOHIDEventSystemClient"), self.mac
        wanted = {}
        if client.info is not None:
            wanted = {key: mac.entry(client.info, key).value for key in mac.content(client.info)}
        found = []
        for service in mac.recording["hid"]["services"]:
            properties = service["properties"]
            if all(key in properties and properties[key][1] == value for key, value in wanted.items()):
                found.append(service)
        if not found:
            return None
        if mac.short:
            found = found[:len(found) // 2]
        made = mac.new("CFArray", [], "IOHIDEventSystemClientCopyServices")
        made.value = [mac.new("IOHIDServiceClient", None, made.maker, 0, 1) for service in found]
        for kid, service in zip(made.value, found):
            kid.info = service
        return made.addr

    @c("p p p", own="+1")
    def IOHIDServiceClientCopyProperty(self, ref, key):
        service = self.mac.obj(ref, "IOHIDServiceClient").info
        value = service["properties"].get(self.mac.obj(key, "CFString").value)
        return None if value is None else self.mac.build(value, "IOHIDServiceClientCopyProperty").addr

    @c("p p q i q", own="+1")
    def IOHIDServiceClientCopyEvent(self, ref, kind, options, stamp):
        service = self.mac.obj(ref, "IOHIDServiceClient").info
        own = 25 if service["properties"].get("PrimaryUsagePage", [0, 0])[1] == 0xFF08 else 15
        value = self.mac.at(service["value"]) if service["value"] else None
        if value is None or kind != own:
            return None
        made = self.mac.new("IOHIDEvent", None, "IOHIDServiceClientCopyEvent")
        made.info = (kind, value)
        return made.addr

    @c("d p i")
    def IOHIDEventGetFloatValue(self, ref, field):
        kind, value = self.mac.obj(ref, "IOHIDEvent").info
        return value if field == kind << 16 else 0.0


class PowerSources:
    library = "IOKit"

    def __init__(self, mac):
        self.mac = mac

    @c("p", own="+1")
    def IOPSCopyPowerSourcesInfo(self):
        if self.mac.recording["power"]["providing"] is None:
            return None
        return self.mac.new("IOPSBlob", None, "IOPSCopyPowerSourcesInfo").addr

    @c("p p", own="+1")
    def IOPSCopyPowerSourcesList(self, blob):
        self.mac.obj(blob, "IOPSBlob")
        return self.mac.new("CFArray", [], "IOPSCopyPowerSourcesList").addr

    @c("p p", own="+0")
    def IOPSGetProvidingPowerSourceType(self, blob):
        found = self.mac.obj(blob, "IOPSBlob") if blob else None
        text = self.mac.at(self.mac.recording["power"]["providing"])
        if found is None:
            return self.mac.libraries[0].constant(text)
        found.value = found.value or [self.mac.new("CFString", text, "IOPSGetProvidingPowerSourceType", 0, 1)]
        return found.value[0].addr


# ======================================================================================================================
# libIOReport
# ======================================================================================================================


class IOReport:
    library = "IOReport"

    def __init__(self, mac):
        self.mac, self.taken = mac, {}

    def start(self):
        self.groups = self.mac.recording["ioreport"]["groups"]
        self.everything = list(self.mac.replay.channels)
        listed = {channel.group for channel in self.everything}
        for group, state in self.groups.items():
            if state != "ok" and group not in listed:      # known to be refused, its channels not recorded
                about = library()._Channel(1, 0, group, "Perf Counters", "", 1, "B", (), 0x1000010001, 0x0900820000000000)
                self.everything += [Channel(about._replace(channel=number), name, (), None) for number, name in enumerate(("DCS RD", "DCS WR"))]
        self.items_at, self.items = None, {}

    def forked(self):
        self.taken = {}

    def listing(self, channels, maker):
        items = [("channel", channel, 0, None) for channel in channels]
        made = self.mac.new("CFDictionary", {"IOReportChannels": ["a", items]}, maker)
        made.mutable = True
        return made.addr

    @c("p Q Q", own="+1")
    def IOReportCopyAllChannels(self, first, second):
        return self.listing(self.everything, "IOReportCopyAllChannels")

    @c("p p p Q Q Q", own="+1")
    def IOReportCopyChannelsInGroup(self, group, subgroup, first, second, third):
        group = self.mac.obj(group, "CFString").value if group else None
        subgroup = self.mac.obj(subgroup, "CFString").value if subgroup else None
        if self.mac.has_fault("group", group) and group not in self.mac.groups_refused():
            return None
        found = [channel for channel in self.everything
                 if (group is None or channel.group == group) and (subgroup is None or channel.subgroup == subgroup)]
        if self.mac.short:
            found = found[:len(found) // 2]
        return self.listing(found, "IOReportCopyChannelsInGroup(%s)" % group) if found else None

    def array(self, dictionary):
        found = self.mac.entry(dictionary, "IOReportChannels")
        if found is not None and found.kind != "CFArray":
            raise Violation("wrong CF type: IOReportChannels is %s" % self.mac.describe(found))
        return found

    def channels(self, ref):
        """The channels a dictionary names, without spelling out an object for each."""
        array = self.array(self.mac.obj(ref, "CFDictionary"))
        if array is None:
            return []
        found = []
        for item in array.value:
            if item.__class__ is Obj:
                self.mac.obj(item.addr)
                item = item.info
            if item.__class__ is not tuple:
                raise Violation("not a channel dictionary in IOReportChannels")
            found.append(item[1])
        return found

    @c("v/i p p p")
    def IOReportMergeChannels(self, into, other, nothing):
        target, source = self.mac.obj(into, "CFDictionary"), self.mac.obj(other, "CFDictionary")
        if not target.mutable:
            raise Violation("%s is not mutable" % self.mac.describe(target))
        mine, theirs = self.array(target), self.array(source)
        mine.value += [("channel", channel, 0, None) for channel in self.channels(source.addr)] if theirs else []

    @c("p p p p Q p", own="+1")
    def IOReportCreateSubscription(self, allocator, desired, slot, options, nothing):
        if not slot:
            raise Violation("NULL where Apple's code crashes: the subscribed channels")
        refused = self.mac.groups_refused()
        asked = self.channels(desired)
        granted = [channel for channel in asked if channel.group not in refused]
        if not granted:
            self.mac.put(slot, bytes(8))
            return None
        keys = {channel.key + (channel.group, channel.subgroup) for channel in granted}
        self.once(keys)
        made = self.mac.new("IOReportSubscription", None, "IOReportCreateSubscription")
        made.info = {id(channel) for channel in granted}
        self.taken[made.addr] = keys
        self.mac.put(slot, struct.pack("<Q", self.listing(granted, "IOReportCreateSubscription (channels)")))
        return made.addr

    def once(self, keys):
        """One subscription at a time for a channel, and for a set of groups."""
        for addr in [addr for addr in self.taken if addr not in self.mac.objects]:
            del self.taken[addr]
        if "second subscription" in self.mac.allow:
            return
        for taken in self.taken.values():
            groups, others = {key[2] for key in keys}, {key[2] for key in taken}
            if keys & taken or groups == others:
                raise Violation("a second subscription for channels of %s" % ", ".join(sorted({key[2] for key in keys & taken} or groups)))

    @c("p p p p", own="+1")
    def IOReportCreateSamples(self, subscription, channels, nothing):
        granted = self.mac.obj(subscription, "IOReportSubscription").info
        if not channels:
            return None
        step = self.mac.step()
        if self.items_at != step:
            self.items_at, self.items = step, {}
        spoilt, self.mac.short = self.mac.short, False      # the sample, not what was subscribed to
        asked, self.mac.short = self.channels(channels), spoilt
        items = [self.item(channel, step) for channel in asked if id(channel) in granted]
        items = [item for item in items if item is not None]
        if self.mac.doing is not None:
            items = [self.spoilt(item, self.mac.doing) for item in items]
            items = items[1:] + items[:1] if self.mac.doing == "moved" else items
        return self.mac.new("CFDictionary", {"IOReportChannels": ["a", items]}, "IOReportCreateSamples").addr

    def item(self, channel, step):
        """A channel of a sample, made once per step: ("sample", channel, stamp, values, entries)."""
        if channel not in self.items:
            row = self.mac.replay.row(channel, step)
            self.items[channel] = None if row is None else ("sample", channel) + row
        return self.items[channel]

    def spoilt(self, item, how):
        tag, channel, stamp, values = item
        if how == "int64min":
            values = (INT64_MIN,) * len(values)
        return (tag, channel, stamp, values, how)

    @c("p p p p", own="+1")
    def IOReportCreateSamplesDelta(self, before, after, nothing):
        old = {}
        for item in self.sampled(before):
            old.setdefault(item[1].key, item)
        items = []
        for item in self.sampled(after):
            base = old.get(item[1].key)
            if base is not None:
                items.append(("sample", item[1], base[2], tuple(
                    INT64_MIN if INT64_MIN in (new, was) else new - was for new, was in zip(item[3], base[3]))))
        return self.mac.new("CFDictionary", {"IOReportChannels": ["a", items]}, "IOReportCreateSamplesDelta").addr

    def sampled(self, ref):
        array = self.array(self.mac.obj(ref, "CFDictionary"))
        return [item.info if item.__class__ is Obj else item for item in array.value]

    @c("v p p")
    def IOReportIterate(self, ref, block):
        array = self.array(self.mac.obj(ref, "CFDictionary"))
        if not block:
            raise Violation("NULL where Apple's code crashes: the block")
        invoke = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p)(ctypes.c_uint64.from_address(block + 16).value)
        for index in range(len(array.value)):
            if invoke(block, self.mac.element(array, index).addr) == 1:
                break

    # a channel

    def channel(self, ref):
        info = self.mac.obj(ref, "CFDictionary").info
        if info.__class__ is not tuple:
            raise Violation("wrong CF type: %s is not a channel" % self.mac.describe(self.mac.obj(ref)))
        return info

    def name(self, ref, key):
        found = self.mac.obj(ref, "CFDictionary")
        self.channel(ref)
        entry = self.mac.entry(found, key)
        return entry and entry.addr

    @c("p p", own="+0")
    def IOReportChannelGetGroup(self, ref):
        return self.name(ref, "IOReportGroupName")

    @c("p p", own="+0")
    def IOReportChannelGetSubGroup(self, ref):
        return self.name(ref, "IOReportSubGroupName")

    @c("p p", own="+0")
    def IOReportChannelGetDriverName(self, ref):
        return self.name(ref, "DriverName")

    @c("p p", own="+0")
    def IOReportChannelGetChannelName(self, ref):
        if not self.channel(ref)[1].name:
            return None
        return self.mac.element(self.mac.entry(self.mac.obj(ref), "LegendChannel"), 2).addr

    @c("p p", own="+0")
    def IOReportChannelGetUnitLabel(self, ref):
        return self.mac.libraries[0].constant("%6s" % self.channel(ref)[1].label)

    @c("i/I/B p")
    def IOReportChannelGetFormat(self, ref):
        return self.channel(ref)[1].format

    @c("Q p")
    def IOReportChannelGetChannelID(self, ref):
        return self.channel(ref)[1].id & MASK64

    @c("Q p")
    def IOReportChannelGetDriverID(self, ref):
        return self.channel(ref)[1].driver & MASK64

    @c("Q p")
    def IOReportChannelGetUnit(self, ref):
        return self.channel(ref)[1].unit & MASK64

    @c("q p i/p")
    def IOReportSimpleGetIntegerValue(self, ref, nothing):
        tag, channel, stamp, values = self.channel(ref)[:4]
        return values[0] if values and channel.format == 1 else INT64_MIN

    @c("i p")
    def IOReportStateGetCount(self, ref):
        tag, channel, stamp, values = self.channel(ref)[:4]
        return len(channel.states) if channel.format == 2 else -1

    def state(self, ref, index, formats=(2,)):
        tag, channel, stamp, values = self.channel(ref)[:4]
        if channel.format not in formats or not 0 <= index < len(channel.states):
            raise Violation("state index %d out of range: %s has %d" % (index, channel.name, len(channel.states)))
        return channel, values

    @c("p p i", own="+0")
    def IOReportStateGetNameForIndex(self, ref, index):
        self.state(ref, index)
        return self.mac.element(self.mac.entry(self.mac.obj(ref), "StateNames"), index).addr

    @c("q/Q p i")
    def IOReportStateGetResidency(self, ref, index):
        channel, values = self.state(ref, index)
        return values[index] if values else INT64_MIN

    @c("q/Q p i")
    def IOReportStateGetInTransitions(self, ref, index):
        self.state(ref, index)
        return 0

    @c("Q/q p i")
    def IOReportStateGetIDForIndex(self, ref, index):
        self.state(ref, index)
        return index

    @c("i p")
    def IOReportHistogramGetBucketCount(self, ref):
        tag, channel, stamp, values = self.channel(ref)[:4]
        return len(channel.states) if channel.format == 3 else -1

    @c("q/Q p i")
    def IOReportHistogramGetBucketHits(self, ref, index):
        channel, values = self.state(ref, index, (3,))
        return values[index] if values else INT64_MIN

    @c("Q p i")
    def IOReportArrayGetValueAtIndex(self, ref, index):
        tag, channel, stamp, values = self.channel(ref)[:4]
        if not values or not 0 <= index < len(values):
            raise Violation("array channel index %d out of range" % index)
        return values[index] & MASK64


# ======================================================================================================================
# libSystem: mach, sysctl, libproc, notify
# ======================================================================================================================


class System:
    library = "System"

    def __init__(self, mac):
        self.mac, self.host, self.blocks, self.tokens = mac, None, {}, {}

    def start(self):
        self.processes = {process["pid"]: process for process in self.mac.recording["libproc"]["processes"]}

    def forked(self):
        self.host, self.tokens = None, {}

    def belongings(self):
        return [("vm block", "host_processor_info")] * len(self.blocks) + [("notify token", "notify_register_check")] * len(self.tokens)

    def fail(self, code, result=-1):
        ctypes.set_errno(code)
        return result

    # sysctl

    @c("i p p p p Q")
    def sysctlbyname(self, name, old, length, new, new_length):
        if new:
            raise Violation("sysctlbyname writes %s" % self.mac.text(name))
        changes = self.mac.recording["sysctl"].get(self.mac.text(name).decode())
        if changes is None:
            return self.fail(errno.ENOENT)
        data = self.mac.at(changes)
        if self.mac.short:
            data = data[:len(data) // 2]
        if not length:
            return 0 if not old else self.fail(errno.EFAULT)
        room = ctypes.c_uint64.from_address(length)
        if not old:
            room.value = len(data)
            return 0
        if room.value < len(data):
            ctypes.memmove(old, data, room.value)
            return self.fail(errno.ENOMEM)
        ctypes.memmove(old, data, len(data))
        room.value = len(data)
        return 0

    # mach

    @c("I")
    def mach_host_self(self):
        if self.host is None or self.host not in self.mac.ports:
            self.host = self.mac.new_port("host port", None, "mach_host_self")
        else:
            self.mac.ports[self.host].refs += 1
        return self.host

    @c("i I I")
    def mach_port_deallocate(self, task, name):
        if task != self.mac.data.task:
            raise Violation("mach_port_deallocate: %#x is not mach_task_self_" % task)
        self.mac.drop_port(name)
        return 0

    @c("i I i p p")
    def host_statistics64(self, host, flavor, buffer, count):
        self.mac.port(host, "host port")
        if flavor != 4:
            return 4      # KERN_INVALID_ARGUMENT
        if not buffer or not count:
            raise Violation("NULL where Apple's code crashes: host_statistics64")
        data = self.mac.at(self.mac.recording["mach"]["vm_statistics64"])
        if self.mac.short:
            data = data[:len(data) // 8 * 4]
        room = ctypes.c_uint32.from_address(count)
        words = len(data) // 4
        if room.value < words and words > 38:
            return -307      # MIG_ARRAY_TOO_LARGE, macOS 27 (metrics.md 2.6)
        words = min(words, room.value)
        self.mac.put(buffer, data[:words * 4])
        room.value = words
        return 0

    @c("i I p")
    def host_page_size(self, host, slot):
        self.mac.port(host, "host port")
        self.mac.put(slot, struct.pack("<Q", self.mac.recording["mach"]["page_size"]))
        return 0

    @c("i I i p p p")
    def host_processor_info(self, host, flavor, cpus, info, count):
        self.mac.port(host, "host port")
        if flavor != 2:
            return 4
        data = self.mac.at(self.mac.recording["mach"]["cpu_load"])
        if self.mac.short:
            data = data[:len(data) // 2]
        block = ctypes.create_string_buffer(data, max(1, len(data)))
        self.blocks[ctypes.addressof(block)] = block
        self.mac.put(cpus, struct.pack("<I", len(data) // 16))
        self.mac.put(info, struct.pack("<Q", ctypes.addressof(block)))
        self.mac.put(count, struct.pack("<I", len(data) // 4))
        return 0

    @c("i I Q Q")
    def vm_deallocate(self, task, address, size):
        block = self.blocks.pop(address, None)
        if task != self.mac.data.task or block is None:
            raise Violation("vm_deallocate of %#x, which was not given out" % address)
        if size != ctypes.sizeof(block) and ctypes.sizeof(block) > 1:
            raise Violation("vm_deallocate of %d bytes, %d were given out" % (size, ctypes.sizeof(block)))
        ctypes.memset(block, 0xDB, ctypes.sizeof(block))
        self.mac.bodies.append(block)
        return 0

    @c("i p")
    def mach_timebase_info(self, slot):
        self.mac.put(slot, struct.pack("<II", self.mac.replay.numer, self.mac.replay.denom))
        return 0

    @c("Q")
    def mach_absolute_time(self):
        return self.mac.uptime_ns() * self.mac.replay.rate // 1000000000

    @c("Q")
    def mach_continuous_time(self):
        return self.mac.continuous_ns() * self.mac.replay.rate // 1000000000

    # libproc

    def fill(self, buffer, size, data):
        if self.mac.short:
            data = data[:len(data) // 2]
        self.mac.put(buffer, data[:size])
        return min(size, len(data))

    @c("i I I p i")
    def proc_listpids(self, kind, extra, buffer, size):
        if kind != 1:
            return self.fail(errno.EINVAL, 0)
        data = b"".join(struct.pack("<i", pid) for pid in self.processes)
        return self.fill(buffer, size // 4 * 4, data) if buffer else len(data) + 80

    @c("i p i")
    def proc_listallpids(self, buffer, size):
        data = b"".join(struct.pack("<i", pid) for pid in self.processes)
        return self.fill(buffer, size // 4 * 4, data) // 4 if buffer else len(data) // 4 + 20

    @c("i i i Q p i")
    def proc_pidinfo(self, pid, flavor, argument, buffer, size):
        process = self.processes.get(pid)
        name, length = {13: ("short_info", 64), 4: ("task_info", 96)}.get(flavor, (None, 0))
        if process is None:
            return self.fail(errno.ESRCH, 0)
        if name is None:
            return self.fail(errno.EINVAL, 0)
        if process[name] is None:
            return self.fail(errno.EPERM, 0)
        if size < length:
            return self.fail(errno.ENOMEM, 0)
        return self.fill(buffer, length, self.mac.at(process[name]))

    @c("i i p I")
    def proc_pidpath(self, pid, buffer, size):
        process = self.processes.get(pid)
        if process is None or not process["path"]:
            return self.fail(errno.ESRCH, 0)
        if size > 4096:
            return self.fail(errno.EOVERFLOW, 0)
        data = process["path"].encode()
        if len(data) + 1 > size:
            return self.fail(errno.ENOMEM, 0)
        self.mac.put(buffer, data + b"\0")
        return len(data)

    @c("i i p I")
    def proc_name(self, pid, buffer, size):
        process = self.processes.get(pid)
        if process is None:
            return self.fail(errno.ESRCH, 0)
        data = process["name"].encode()[:min(32, size - 1)]
        self.mac.put(buffer, data + b"\0")
        return len(data)

    @c("i i i p")
    def proc_pid_rusage(self, pid, flavor, buffer):
        process = self.processes.get(pid)
        if process is None:
            return self.fail(errno.ESRCH)
        if process["rusage"] is None:
            return self.fail(errno.EPERM)
        sizes = {0: 96, 1: 144, 2: 160, 3: 232, 4: 296, 5: 304, 6: 464}
        data = self.mac.at(process["rusage"])
        if flavor not in sizes or sizes[flavor] > max(len(data), 296):
            return self.fail(errno.EINVAL)
        self.fill(buffer, sizes[flavor], data)
        return 0

    # notify

    @c("I/i p p")
    def notify_register_check(self, name, slot):
        text = self.mac.text(name).decode()
        token = len(self.tokens) + 5
        while token in self.tokens:
            token += 1
        self.tokens[token] = text
        self.mac.put(slot, struct.pack("<i", token))
        return 0

    @c("I/i i p")
    def notify_get_state(self, token, slot):
        if token not in self.tokens:
            raise Violation("bad handle: notify token %d" % token)
        changes = self.mac.recording["notify"].get(self.tokens[token])
        self.mac.put(slot, struct.pack("<Q", self.mac.at(changes) if changes else 0))
        return 0

    @c("I/i i")
    def notify_cancel(self, token):
        if self.tokens.pop(token, None) is None:
            raise Violation("bad handle: notify token %d" % token)
        return 0


# ======================================================================================================================
# libobjc and Metal: the device questions. A fuller runtime can take this object's place: Mac(objc=...).
# ======================================================================================================================

ENCODINGS = {      # selector: (result, arguments...) in the letters above; "o" = object
    "name": "o", "registryID": "Q", "recommendedMaxWorkingSetSize": "Q", "maxBufferLength": "Q", "hasUnifiedMemory": "B",
    "maxThreadgroupMemoryLength": "Q", "architecture": "o", "supportsFamily:": "B q", "currentAllocatedSize": "Q",
    "isLowPower": "B", "isHeadless": "B", "isRemovable": "B", "location": "Q", "locationNumber": "Q", "maxTransferRate": "Q",
    "count": "Q", "objectAtIndex:": "o Q", "UTF8String": "p", "length": "Q", "respondsToSelector:": "B p", "retain": "o",
    "release": "v", "autorelease": "o", "retainCount": "Q", "description": "o", "class": "p", "hash": "Q", "isEqual:": "B p",
    "isKindOfClass:": "B p", "conformsToProtocol:": "B p", "stringWithUTF8String:": "o p",
}
OF_STRING = {"UTF8String", "length"}
OF_ARRAY = {"count", "objectAtIndex:"}
OF_ANY = {"respondsToSelector:", "retain", "release", "autorelease", "retainCount", "description", "class", "hash", "isEqual:",
          "isKindOfClass:", "conformsToProtocol:"}
DEFAULTS = {"currentAllocatedSize": 0, "isLowPower": False, "isHeadless": False, "isRemovable": False, "location": 0,
            "locationNumber": 0, "maxTransferRate": 0}


class ObjC:
    """A provider of the Objective-C side. symbols: `c`-marked methods; lookup(): the function of an objc_msgSend prototype."""
    library = "objc"

    def __init__(self, mac):
        self.mac = mac
        self.selectors, self.selector_names, self.classes, self.class_names = {}, {}, {}, {}
        self.pools, self.loose, self.tokens = {}, [], 0
        self.sends = {}

    def start(self):
        metal = self.mac.recording["metal"]
        self.devices, self.default = metal["devices"], metal["default"]
        for name in ("NSObject", "NSString", "NSArray", "NSAutoreleasePool", "NSProcessInfo", "MTLFakeDevice", "MTLArchitecture"):
            self.class_of(name)

    def class_of(self, name):
        if name not in self.classes:
            self.classes[name] = 0x1E0000000 + 0x40 * (len(self.classes) + 1)
            self.class_names[self.classes[name]] = name
        return self.classes[name]

    def forked(self):
        self.pools, self.loose = {}, []

    def belongings(self):
        return [("autorelease pool", "objc_autoreleasePoolPush") for pools in self.pools.values() for pool in pools]

    # runtime functions

    @c("p p")
    def sel_registerName(self, name):
        text = self.mac.text(name).decode()
        if text not in self.selectors:
            self.selectors[text] = 0x1F0000000 + 0x10 * (len(self.selectors) + 1)
            self.selector_names[self.selectors[text]] = text
        return self.selectors[text]

    @c("p p")
    def objc_getClass(self, name):
        return self.classes.get(self.mac.text(name).decode())

    @c("p p")
    def object_getClass(self, ref):
        return self.class_of(self.class_name(self.mac.obj(ref))) if ref else None

    def class_name(self, obj):
        return {"CFString": "NSString", "CFArray": "NSArray", "MTLDevice": "MTLFakeDevice"}.get(obj.kind, obj.kind)

    @c("p p")
    def objc_retain(self, ref):
        return self.mac.retain(ref) if ref else None

    @c("v p")
    def objc_release(self, ref):
        if ref:
            self.mac.release(ref, "objc_release")

    @c("p p")
    def objc_autorelease(self, ref):
        return self.autoreleased(self.mac.obj(ref), owned=True).addr if ref else None

    @c("p")
    def objc_autoreleasePoolPush(self):
        self.tokens += 1
        self.pools.setdefault(get_ident(), []).append((0x5F0000000000 + 0x10 * self.tokens, []))
        return self.pools[get_ident()][-1][0]

    @c("v p")
    def objc_autoreleasePoolPop(self, token):
        mine = self.pools.get(get_ident(), [])
        if token not in [pool[0] for pool in mine]:
            raise Violation("objc_autoreleasePoolPop: not an open pool of this thread")
        while mine:
            opened, objects = mine.pop()
            for obj in objects:
                self.mac.let_go(obj, "the end of its autorelease pool")
            if opened == token:
                break
        if not mine:
            self.pools.pop(get_ident(), None)

    def autoreleased(self, obj, owned=False):
        """+0: held by the innermost pool of the thread; without one, by nobody: it leaks, as on a Mac."""
        pools = self.pools.get(get_ident())
        if owned:
            if obj.client <= 0:
                raise Violation("over-release: autorelease of %s" % self.mac.describe(obj))
            obj.client -= 1
        if pools:
            obj.held += 1
            pools[-1][1].append(obj)
        else:
            obj.client += 1
            obj.maker += " (autoreleased without a pool)"
        return obj

    # Metal

    def device(self, index, maker, client=1, held=0):
        made = self.mac.new("MTLDevice", None, maker, client, held)
        made.info = self.devices[index]
        return made

    @c("p", own="+1")
    def MTLCreateSystemDefaultDevice(self):
        if self.default is None or not self.devices or "CoreGraphics" not in self.mac.loaded:
            return None
        return self.device(self.default, "MTLCreateSystemDefaultDevice").addr

    @c("p", own="+1")
    def MTLCopyAllDevices(self):
        made = self.mac.new("CFArray", [], "MTLCopyAllDevices")
        count = len(self.devices) // 2 if self.mac.short else len(self.devices)
        made.value = [self.device(index, "MTLCopyAllDevices", 0, 1) for index in range(count)]
        return made.addr

    @c("p p p")
    def objc_msgSend(self, receiver, selector):
        """Reached only through a bare address where no compiler made the real one."""
        return self.perform(receiver, selector)

    # sends

    def encoding(self, receiver, selector):
        """"result receiver selector argument ..." of a send, or Violation. nil answers 0 to whatever was declared."""
        name = self.selector_names.get(selector)
        if name is None:
            raise Violation("objc_msgSend: %#x is not a selector" % (selector or 0))
        if not receiver:
            return None
        if receiver in self.class_names:
            known = self.class_names[receiver] == "NSString" and name == "stringWithUTF8String:" or name in ("class", "respondsToSelector:")
        else:
            known = self.responds(self.mac.obj(receiver), name)
        if not known:
            raise Violation("unrecognised selector -[%s %s]" % (self.class_names.get(receiver) or self.mac.obj(receiver).kind, name))
        result, *arguments = ENCODINGS[name].split()
        return " ".join([result.replace("o", "p"), "p", "p"] + arguments)

    def responds(self, obj, name):
        if obj.kind == "CFString":
            return name in OF_ANY or name in OF_STRING
        if obj.kind == "CFArray":
            return name in OF_ANY or name in OF_ARRAY
        if obj.kind == "MTLArchitecture":
            return name in OF_ANY or name == "name"
        if obj.kind == "MTLDevice":
            return name in OF_ANY or name in DEFAULTS or obj.info.get(name) is not None
        return name in OF_ANY

    def target(self, encoding):
        """The address of the C function that serves every send of one encoding."""
        if encoding not in self.sends:
            letters = encoding.split()
            prototype = ctypes.CFUNCTYPE(*(LETTERS[letter] for letter in letters), use_errno=True)
            self.sends[encoding] = prototype(self.mac.guarded("objc_msgSend", self.perform_marked(encoding), None if letters[0] == "v" else 0))
        return ctypes.cast(self.sends[encoding], ctypes.c_void_p).value

    def perform_marked(self, encoding):
        def send(*args):
            return self.perform(*args)
        return c(encoding)(send)

    def perform(self, receiver, selector, *args):
        name = self.selector_names[selector]
        self.mac.calls["objc_msgSend:" + name] += 1
        if not receiver:
            return 0
        if receiver in self.class_names:
            return self.class_send(receiver, name, *args)
        obj = self.mac.obj(receiver)
        if name in OF_ANY:
            return self.any_send(obj, name, *args)
        if obj.kind == "CFString":
            text = obj.value.encode()
            return self.mac.body(obj, text + b"\0") if name == "UTF8String" else len(obj.value)
        if obj.kind == "CFArray":
            return len(obj.value) if name == "count" else self.mac.element(obj, args[0]).addr
        if name == "supportsFamily:":
            return args[0] in obj.info[name]
        return self.property(obj, name, obj.info.get(name, DEFAULTS.get(name)))

    def class_send(self, receiver, name, *args):
        if name == "stringWithUTF8String:":
            made = self.mac.new("CFString", self.mac.text(args[0]).decode(), "+[NSString stringWithUTF8String:]", 0, 0)
            return self.autoreleased(made).addr
        return receiver if name == "class" else self.selector_names.get(args[0]) in ("class", "respondsToSelector:")

    def property(self, obj, name, value):
        if name == "architecture":
            made = self.mac.new("MTLArchitecture", None, "-[MTLDevice architecture]", 0, 0)
            made.info = {"name": value}
            return self.autoreleased(made).addr
        if isinstance(value, str):
            return self.autoreleased(self.mac.new("CFString", value, "-[%s %s]" % (obj.kind, name), 0, 0)).addr
        return value

    def any_send(self, obj, name, *args):
        if name == "respondsToSelector:":
            return self.responds(obj, self.selector_names.get(args[0], ""))
        if name == "retain":
            return self.mac.retain(obj.addr)
        if name == "release":
            return self.mac.release(obj.addr, "-release")
        if name == "autorelease":
            return self.autoreleased(obj, owned=True).addr
        if name == "retainCount":
            return obj.client + obj.held
        if name == "description":
            return self.autoreleased(self.mac.new("CFString", "<%s>" % obj.kind, "-description", 0, 0)).addr
        if name == "class":
            return self.class_of(self.class_name(obj))
        if name == "hash":
            return obj.addr
        if name == "isEqual:":
            return args[0] == obj.addr
        return name == "isKindOfClass:" and args[0] == self.class_of(self.class_name(obj))


LIBRARIES = (CoreFoundation, IOKit, HID, PowerSources, IOReport, System, ObjC)
SYMBOLS = {name: function for kind in LIBRARIES for name, function in vars(kind).items() if hasattr(function, "c")}
for _name, _function in SYMBOLS.items():
    if _name.startswith(("IO", "host_", "mach_timebase", "vm_")) and _function.c[0] == "i" and _name not in (
            "IOObjectConformsTo", "IOIteratorIsValid", "IOObjectIsEqualTo") and not _name.startswith("IOReport"):
        FAILS[_name] = ("kr", 0xE00002BC if _name.startswith("IO") else 5)
FAILS.update(sysctlbyname=(-1, errno.EIO), proc_pid_rusage=(-1, errno.EPERM), proc_pidinfo=(0, errno.EPERM), proc_pidpath=(0, errno.EPERM),
             proc_name=(0, errno.EPERM), proc_listpids=(0, errno.EPERM), proc_listallpids=(0, errno.EPERM),
             notify_register_check=("kr", 1), notify_get_state=("kr", 1))
EXPORTS = {"CoreFoundation": {"CoreFoundation"}, "IOKit": {"IOKit", "CoreFoundation", "System"}, "IOReport": {"IOReport", "CoreFoundation", "IOKit", "System"},
           "System": {"System"}, "objc": {"objc", "System"}, "CoreGraphics": {"CoreGraphics", "CoreFoundation", "System"},
           "Foundation": {"Foundation", "CoreFoundation", "objc", "System"}, "Metal": {"Metal", "Foundation", "CoreFoundation", "objc", "System", "IOKit"},
           "QuartzCore": {"QuartzCore", "CoreFoundation", "objc", "System"}}


def home(symbol, library):
    return "Metal" if symbol.startswith("MTL") else library.library


# ======================================================================================================================
# Data symbols, and the compiled part
# ======================================================================================================================

DATA = {"kCFTypeDictionaryKeyCallBacks": ("CoreFoundation", 48), "kCFCopyStringDictionaryKeyCallBacks": ("CoreFoundation", 48),
        "kCFTypeDictionaryValueCallBacks": ("CoreFoundation", 40), "kCFTypeArrayCallBacks": ("CoreFoundation", 40),
        "kCFBooleanTrue": ("CoreFoundation", 8), "kCFBooleanFalse": ("CoreFoundation", 8), "kCFAllocatorDefault": ("CoreFoundation", 8),
        "kCFAllocatorNull": ("CoreFoundation", 8), "mach_task_self_": ("System", 4), "vm_page_size": ("System", 8),
        "vm_kernel_page_size": ("System", 8), "_NSConcreteStackBlock": ("System", 256), "_NSConcreteGlobalBlock": ("System", 256),
        "kIOMasterPortDefault": ("IOKit", 4), "kIOMainPortDefault": ("IOKit", 4)}


def compile_c():
    """fakemac.c as a loaded library, or (None, reason)."""
    import shutil
    import subprocess
    import tempfile
    source = os.path.join(os.path.dirname(os.path.abspath(__file__)), "fakemac.c")
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None or not os.path.exists(source):
        return None, "no C compiler" if compiler is None else "no fakemac.c"
    with tempfile.TemporaryDirectory(prefix="fakemac-") as folder:
        target = os.path.join(folder, "fakemac.so")
        done = subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", target, source], capture_output=True, text=True)
        if done.returncode:
            return None, "the C compiler refused fakemac.c: " + done.stderr[-400:]
        return REAL["CDLL"](target), ""


class Data:
    """Addresses of exported data. In a compiled library (then c_void_p.in_dll works too), else in plain memory."""
    compiled = None
    task = 0x203

    def __init__(self):
        if Data.compiled is None:
            Data.compiled = compile_c()
        self.dll, self.reason = Data.compiled
        self.plain = {}
        self.number("mach_task_self_", "<I", self.task)
        self.number("vm_page_size", "<Q", 16384)
        self.number("vm_kernel_page_size", "<Q", 16384)

    def address(self, name):
        if self.dll is not None:
            return ctypes.cast(self.dll[name], ctypes.c_void_p).value
        if name not in self.plain:
            self.plain[name] = ctypes.create_string_buffer(DATA[name][1])
        return ctypes.addressof(self.plain[name])

    def number(self, name, layout, value):
        ctypes.memmove(self.address(name), struct.pack(layout, value), struct.calcsize(layout))

    def pointer(self, name, value):
        self.number(name, "<Q", value)


# ======================================================================================================================
# What the program sees: ctypes.CDLL, function objects, time, sys.platform
# ======================================================================================================================

REAL = {"CDLL": ctypes.CDLL, "PyDLL": ctypes.PyDLL, "sleep": time.sleep, "monotonic_ns": time.monotonic_ns}
_call = ctypes._CFuncPtr.__call__


def make_function_class(flags):
    class Function(ctypes._CFuncPtr):
        _flags_, _restype_ = flags, ctypes.c_int
        _mac = _checked = _letters = _symbol = None
        __call__ = call
    return Function


def call(self, *args):
    """Every native call of the program: the declared prototype is checked, then the call goes through libffi."""
    mac = self._mac
    if mac is not None:
        argtypes, restype = self.argtypes, self.restype
        checked = self._checked
        if checked is None or checked[0] is not argtypes or checked[1] is not restype or checked[2] != len(args):
            check_prototype(self, argtypes, restype, args)
        if self._symbol == "objc_msgSend":
            return send(self, mac, argtypes, restype, args)
        try:
            return _call(self, *args)
        finally:
            if mac.pending:
                problem = mac.pending.pop(get_ident(), None)
                if problem is not None:
                    raise problem.with_traceback(None)
    return _call(self, *args)


CALL_CODE = call.__code__


def through_call():
    """Whether the native call on top of the stack was made by a function object of ours."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename == CALL_CODE.co_filename:
        if frame.f_code is CALL_CODE:
            return True
        frame = frame.f_back
    return False


def interrupt_caller(problem):
    frame = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename == CALL_CODE.co_filename:
        frame = frame.f_back
    if frame is None:
        return
    before, local = sys.gettrace(), frame.f_trace

    def tracer(where_it_is, event, argument):
        if where_it_is is frame:
            sys.settrace(before)
            frame.f_trace = local
            raise problem
    frame.f_trace = tracer
    sys.settrace(tracer)


def check_prototype(function, argtypes, restype, args):
    problem = prototype_problem(function._symbol, function._letters, argtypes, restype, args)
    if problem:
        violation = Violation("%s: %s" % (function._symbol, problem))
        function._mac.violations.append(str(violation) + "\n" + where())
        raise violation
    function._checked = (argtypes, restype, len(args))


def prototype_problem(symbol, letters, argtypes, restype, args):
    if letters is None:
        return "it is data, not a function"
    if argtypes is None and (args or letters[1:] and symbol != "objc_msgSend"):
        return "called with arguments, but argtypes are not declared"
    count = len(argtypes or ())
    if len(args) > count:
        return "%d arguments for %d declared: a variadic call, wrong on arm64" % (len(args), count)
    if symbol == "objc_msgSend":
        return "" if count >= 2 else "receiver and selector are not declared"
    if count != len(letters) - 1:
        return "%d argument types declared, %d in C" % (count, len(letters) - 1)
    if not fits(letters[0], restype):
        return "result declared %s, in C %s" % (getattr(restype, "__name__", restype), spelled(letters[0]))
    for place, (letter, declared) in enumerate(zip(letters[1:], argtypes or ()), 1):
        if not fits(letter, declared):
            return "argument %d declared %s, in C %s" % (place, getattr(declared, "__name__", declared), spelled(letter))
    return ""


def word(argument):
    """The integer behind an argument of a pointer type."""
    argument = getattr(argument, "_as_parameter_", argument)
    if isinstance(argument, ctypes.c_void_p):
        argument = argument.value
    return argument or 0 if isinstance(argument, (int, type(None))) else -1


def send(function, mac, argtypes, restype, args):
    """A message: the prototype declared on this function object must fit the method's own."""
    try:
        encoding = mac.objc.encoding(word(args[0]), word(args[1]))
        if encoding is None:
            mac.calls["objc_msgSend"] += 1
            return None if restype is None or fits("p", restype) else restype() if not hasattr(restype, "_type_") else restype().value
        name = mac.objc.selector_names[word(args[1])]
        problem = prototype_problem("-" + name, encoding.split(), argtypes, restype, args)
        if problem:
            raise Violation(problem)
    except Violation as violation:
        violation.args = ("objc_msgSend: %s" % violation,)
        mac.violations.append(str(violation) + "\n" + where())
        raise
    twins = function.__dict__.setdefault("_twins", {})
    key = (encoding, tuple(argtypes), restype)
    twin = twins.get(key)
    if twin is None:
        twin = twins[key] = type(function)(mac.objc.target(encoding))
        twin.restype, twin.argtypes, twin._mac, twin._symbol = restype, argtypes, mac, "objc_msgSend:" + name
        twin._checked, twin._letters = (twin.argtypes, twin.restype, len(args)), encoding.split()
    return twin(*args)


class Patches:
    """Puts the stand-ins in place, and everything back."""

    def __init__(self, mac):
        self.mac, self.saved, self.classes = mac, [], {}

    def set(self, owner, name, value):
        self.saved.append((owner, name, getattr(owner, name, self)))
        setattr(owner, name, value)

    def apply(self):
        import platform
        import sysconfig
        sysconfig.get_config_vars()     # read now: the file it reads is named after the real sys.platform
        mac = self.mac
        cdll, pydll = self.loader(REAL["CDLL"]), self.loader(REAL["PyDLL"])
        self.set(ctypes, "CDLL", cdll)
        self.set(ctypes, "PyDLL", pydll)
        self.set(ctypes.cdll, "_dlltype", cdll)
        self.set(ctypes.pydll, "_dlltype", pydll)
        self.set(ctypes.util, "find_library", find_library)
        self.set(sys, "platform", "darwin")
        self.set(platform, "machine", lambda: "arm64")
        self.set(platform, "system", lambda: "Darwin")
        self.set(platform, "processor", lambda: "arm")
        version = mac.recording["macos"] or "27.0"
        self.set(platform, "mac_ver", lambda release="", versioninfo=("", "", ""), machine="": (version, ("", "", ""), "arm64"))
        real_uname = os.uname()
        self.set(os, "uname", lambda: os.uname_result(("Darwin", real_uname.nodename, "25.0.0", "Darwin Kernel Version", "arm64")))
        self.clocks()
        if "_scproxy" not in sys.modules:
            self.proxy_stub()
        watch_forks()

    def clocks(self):
        mac = self.mac
        real_ns, real_s = time.clock_gettime_ns, time.clock_gettime
        readers = {8: mac.uptime_ns, 4: mac.continuous_ns}      # CLOCK_UPTIME_RAW, CLOCK_MONOTONIC_RAW of macOS

        def clock_gettime_ns(clock):
            return readers[clock]() if clock in readers else real_ns(clock)

        def clock_gettime(clock):
            return readers[clock]() / 1e9 if clock in readers else real_s(clock)
        self.set(time, "CLOCK_UPTIME_RAW", 8)
        self.set(time, "CLOCK_MONOTONIC_RAW", 4)
        self.set(time, "clock_gettime_ns", clock_gettime_ns)
        self.set(time, "clock_gettime", clock_gettime)
        self.set(time, "sleep", mac.sleep)
        self.set(time, "time", mac.unix)

    def proxy_stub(self):
        import types
        stub = types.ModuleType("_scproxy")      # urllib.request imports it on macOS
        stub._get_proxy_settings, stub._get_proxies = dict, dict
        sys.modules["_scproxy"] = stub
        self.stub = stub

    def undo(self):
        for owner, name, value in reversed(self.saved):
            if value is self:
                delattr(owner, name)
            else:
                setattr(owner, name, value)
        self.saved = []
        if getattr(self, "stub", None) is not None and sys.modules.get("_scproxy") is self.stub:
            del sys.modules["_scproxy"]

    def loader(self, real):
        mac, patches = self.mac, self

        class Library(real):
            def __init__(self, name, mode=ctypes.DEFAULT_MODE, handle=None, use_errno=False, use_last_error=False, winmode=None):
                self._fake = None if handle is not None else library_of(name, mac)
                if self._fake is None or name is None:
                    real.__init__(self, name, mode, handle, use_errno, use_last_error, winmode)
                    self._flags = self._FuncPtr._flags_
                else:
                    self._name, self._handle = name, mac.data.dll._handle if mac.data.dll is not None else 0
                    self._flags = real._func_flags_ | (8 if use_errno else 0)
                    self._FuncPtr = patches.function_class(self._flags)
                    mac.loaded.add(self._fake)

            def __getitem__(self, symbol):
                if self._fake is None or self._name is None and not exported(self._fake, symbol, mac):
                    return real.__getitem__(self, symbol)
                return patches.function(self, symbol)
        Library.__name__ = Library.__qualname__ = real.__name__
        return Library

    def function_class(self, flags):
        if flags not in self.classes:
            self.classes[flags] = make_function_class(flags)
        return self.classes[flags]

    def function(self, library, symbol):
        mac = self.mac
        if mac.has_fault("symbol", symbol) or not exported(library._fake, symbol, mac):
            raise AttributeError("dlsym(%#x, %s): symbol not found" % (id(library) & 0xFFFFFFFF, symbol))
        kind = self.function_class(library._flags)
        if symbol in DATA:
            made = kind(mac.data.address(symbol))
        elif symbol == "objc_msgSend" and mac.data.dll is not None and hasattr(mac.objc, "encoding"):
            made = kind(trampoline(mac))
            made._letters = ["p", "p", "p"]
        else:
            made = kind(mac.address(symbol))
            made._letters = mac.table[symbol][1].c.split()
        made._mac, made._symbol = mac, symbol
        made.__name__ = symbol
        return made


def trampoline(mac):
    """The one address of objc_msgSend: asks which function serves, then jumps there with all registers as they were."""
    dll = mac.data.dll
    if "resolver" not in mac.memory:
        zero = ctypes.cast(dll.fakemac_zero, ctypes.c_void_p).value

        def resolve(receiver, selector):
            try:
                with mac.lock:
                    encoding = mac.objc.encoding(receiver, selector)
                    return zero if encoding is None else mac.objc.target(encoding)
            except BaseException as problem:
                mac.trouble("objc_msgSend", problem)
                return zero
        mac.memory["resolver"] = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)(resolve)
        slot = ctypes.c_void_p.in_dll(dll, "fakemac_resolver")
        slot.value = ctypes.cast(mac.memory["resolver"], ctypes.c_void_p).value
    return ctypes.cast(dll.fakemac_msgSend, ctypes.c_void_p).value


def watch_forks():
    """Once per process: a fork of whatever Mac is there."""
    if not FORKS and hasattr(os, "register_at_fork"):
        FORKS.append(True)
        os.register_at_fork(before=lambda: Mac.active and Mac.active.lock.acquire(),
                            after_in_parent=lambda: Mac.active and Mac.active.lock.release(), after_in_child=in_child)


FORKS = []


def in_child():
    if Mac.active is not None:
        Mac.active.forked()
        Mac.active.lock.release()


def exported(library, symbol, mac):
    homes = EXPORTS.get(library, {library})
    if symbol in DATA:
        return DATA[symbol][0] in homes
    return symbol in mac.table and home(symbol, mac.table[symbol][0]) in homes


def library_of(path, mac):
    """The stand-in's name of a path; OSError as dlopen's for Apple's paths that do not exist; None for all others."""
    if path is None:
        return "System"
    path = os.fspath(path)
    path = path.decode() if isinstance(path, bytes) else path
    if not path.startswith(("/System/Library/", "/usr/lib/lib")) and path not in ("libSystem.dylib", "libobjc.dylib", "libc.dylib"):
        return None
    name = path.rpartition("/")[2]
    if path.startswith("/usr/lib/lib") or path.startswith("lib"):
        if not name.endswith(".dylib"):
            return None
        name = name[3:].partition(".")[0]
        name = {"c": "System", "proc": "System", "sysctl": "System"}.get(name, name)
        known = name in ("System", "objc", "IOReport")
    else:
        known = name in EXPORTS and name not in ("System", "objc", "IOReport") and "/Frameworks/%s.framework/" % name in path
    if not known or mac.has_fault("library", name):
        raise OSError("dlopen(%s, 0x0006): tried: '%s' (no such file)" % (path, path))
    return name


def find_library(name):
    if name in ("c", "System", "proc"):
        return "/usr/lib/libSystem.B.dylib"
    if name in ("objc", "objc.A"):
        return "/usr/lib/libobjc.A.dylib"
    if name in EXPORTS and name != "IOReport":
        return "/System/Library/Frameworks/%s.framework/%s" % (name, name)
    return "/usr/lib/libIOReport.dylib" if name == "IOReport" else None


# ======================================================================================================================
# Command line
# ======================================================================================================================

SITE = '''import importlib.util, os, sys
from importlib.machinery import PathFinder
_here = os.path.dirname(os.path.abspath(__file__))
sys.path[:] = [entry for entry in sys.path if entry != _here]
_spec = PathFinder.find_spec("sitecustomize", sys.path)      # the one we stand in front of
if _spec is not None:
    _spec.loader.exec_module(importlib.util.module_from_spec(_spec))
_spec = importlib.util.spec_from_file_location("fakemac", os.environ["FAKEMAC_FILE"])
fakemac = sys.modules["fakemac"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fakemac)
fakemac.join_family()
'''


def begin(options, parent=None):
    """The Mac of this process, from now to its end."""
    import atexit
    mac = Mac(options["recording"], faults=options["fault"], speed=options["speed"], allow=options["allow"])
    mac.__enter__()
    atexit.register(finish, mac, options)
    if options.get("metal"):
        sys.path.append(os.path.dirname(os.path.abspath(os.environ.get("FAKEMAC_FILE", __file__))))
        import fakeobjc
        sys.path.pop()
        fakeobjc.attach(mac)
    return mac


def join_family():
    """In a child process (sitecustomize): the same Mac as the parent's."""
    begin(json.loads(os.environ["FAKEMAC"]))


def finish(mac, options):
    """The last word of the process."""
    mac.trouble_in_exit = True
    for name in [name for name, module in list(sys.modules.items()) if getattr(module, "Mac", None) is Mac]:
        del sys.modules[name]      # or the interpreter would empty this module before the program's last release
    lost = options["leaks"] and mac.live()
    text = mac.report()
    if options["calls"]:
        text += "\n" + "\n".join("  %8d %s" % (count, name) for name, count in mac.calls.most_common())
    if options["report"]:
        with open(options["report"], "a", encoding="utf-8") as file:
            file.write(text + "\n")
    if mac.violations or lost or options["calls"]:
        sys.stderr.flush()
        os.write(2, (text + "\n").encode())
    if mac.violations or lost:
        try:
            sys.stdout.flush()
        finally:
            os._exit(EXIT_CODE)


def family(options):
    """Children started with sys.executable come up under the same Mac."""
    import atexit
    import shutil
    import tempfile
    folder = tempfile.mkdtemp(prefix="fakemac-")
    owner = os.getpid()
    atexit.register(lambda: os.getpid() == owner and shutil.rmtree(folder, ignore_errors=True))
    with open(os.path.join(folder, "sitecustomize.py"), "w", encoding="utf-8") as file:
        file.write(SITE)
    os.environ["FAKEMAC"], os.environ["FAKEMAC_FILE"] = json.dumps(options), os.path.abspath(__file__)
    rest = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = folder + (os.pathsep + rest if rest else "")


def run_program(arguments):
    """As python itself would: program.py, -m module, -c code."""
    import runpy
    import types
    first = arguments[0]
    if first == "-m":
        sys.argv = arguments[1:]
        sys.path.insert(0, os.getcwd())
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        return
    main_module = types.ModuleType("__main__")
    if first == "-c":
        sys.argv, source, name = ["-c"] + arguments[2:], arguments[1], "<string>"
        sys.path.insert(0, "")
    else:
        sys.argv, name = arguments, first
        sys.path.insert(0, os.path.dirname(os.path.abspath(first)))
        with open(first, "rb") as file:
            source = file.read()
        main_module.__file__ = first
    main_module.__builtins__ = __builtins__
    sys.modules["__main__"] = main_module
    exec(compile(source, name, "exec"), main_module.__dict__)


def split_arguments(arguments):
    """(our options, the program and its arguments)."""
    place = 0
    while place < len(arguments) and arguments[place].startswith("--"):
        alone = "=" in arguments[place].partition(" ")[0] or arguments[place] in ("--calls", "--leaks", "--metal", "--help")
        place += 1 if alone else 2
    if arguments[place:place + 1] == ["-h"]:
        place += 1
    return arguments[:place], arguments[place:]


def main(arguments=None):
    import argparse
    parser = argparse.ArgumentParser(prog="fakemac.py", description="Run a Python program on a Mac that is not there.")
    parser.add_argument("--recording", help="the recorded Mac (default: examples/recordings/m4-macos27.json)")
    parser.add_argument("--speed", type=float, default=1.0, help="1 = real time; 0 = each sleep moves one recorded instant")
    parser.add_argument("--fault", action="append", default=[], help="FUNCTION=null|error[:code]|int64min|wrongtype|short[@n[+]], ...")
    parser.add_argument("--metal", action="store_true", help="the whole of Metal (fakeobjc.py; needs a C compiler), kernels on the CPU")
    parser.add_argument("--allow", action="append", default=[], help="'second subscription' or 'second HID client'")
    parser.add_argument("--report", metavar="FILE", help="append the account to FILE")
    parser.add_argument("--calls", action="store_true", help="show how often each function was called")
    parser.add_argument("--leaks", action="store_true", help="exit code %d also when the program owns anything at its end" % EXIT_CODE)
    parser.usage = "fakemac.py [options] program.py args... | -m module args... | -c code args..."
    own, program = split_arguments(sys.argv[1:] if arguments is None else arguments)
    options = vars(parser.parse_args(own))
    if not program:
        parser.error("no program")
    if options["recording"]:
        options["recording"] = os.path.abspath(options["recording"])
    if options["report"]:
        options["report"] = os.path.abspath(options["report"])
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or ".") != os.path.dirname(os.path.abspath(__file__))]
    family(options)
    begin(options)
    run_program(program)


if __name__ == "__main__":
    sys.modules["fakemac"] = sys.modules["__main__"]
    main()
