"""The native sources over a small Mac at the C ABI: ownership, bounds, refusals. To be folded into test_pyapplegpu.py."""
import ctypes
import os
import plistlib
import random
import struct
import sys
import time

import pytest

import pyapplegpu as ag

PLAIN = dict(ag._LETTERS, C=ctypes.c_void_p, O=ctypes.c_void_p, M=ctypes.c_void_p, E=ctypes.c_uint32)
KINDS = ("String", "Number", "Boolean", "Data", "Array", "Dictionary")
EPERM, ENOENT, ESRCH, ENOMEM, EINVAL = 1, 2, 3, 12, 22


class Object:
    def __init__(self, kind, value, held=()):
        self.kind, self.value, self.refs, self.held = kind, value, 1, list(held)


class Mac:
    """Counts every CF object, port and mapping; what a real Mac would crash on is a crime."""

    def __init__(self):
        self.heap, self.next, self.crimes, self.calls = {}, 0x7F0000001000, [], []
        self.ports, self.next_port, self.mapped, self.pools = {}, 0x1003, {}, 0
        self.missing, self.null, self.keep = set(), set(), []
        self.listing = []           # (driver, channel, group, subgroup, name, format, unit, states)
        self.order, self.gone, self.values, self.stamps = None, set(), {}, {}
        self.refuse, self.accessor_shift, self.listing_driver, self.listing_states = False, 0, True, True
        self.services = {"IOAccelerator": [("AGXAcceleratorG16G", {"model": "Apple M4", "gpu-core-count": 10,
                                            "PerformanceStatistics": {"Device Utilization %": 17, "x": -2}})],
                         "AppleSMCKeysEndpoint": [("AppleSMCKeysEndpoint", {})]}
        self.kids = [("AGXDeviceUserClient", {"IOUserClientCreator": "pid 357, WindowServer"})] * 3
        self.smc = {"#KEY": ("ui32", struct.pack(">I", 3)), "Tg05": ("flt ", struct.pack("<f", 46.5)), "F0Ac": ("flt ", bytes(4))}
        self.smc_result, self.kr, self.answer_size = None, {}, 80
        self.sysctls = {"hw.memsize": struct.pack("<Q", 16 << 30), "machdep.cpu.brand_string": b"Apple M4\0",
                        "hw.tbfrequency": struct.pack("<Q", 24000000)}
        self.grow, self.vm_count, self.words = 0, 40, 8
        self.sensors = [("PMU tdie1", 7, 46.68), ("als-temp", None, None)]
        self.errors, self.rusage_v6 = {}, True
        self.blocks = {}
        self.zero = ctypes.create_string_buffer(64)
        self.task = ctypes.c_uint32(0x103)

    # ---- loading

    def CDLL(self, path, use_errno=False):
        if path in self.missing:
            raise OSError("dlopen(%s): no such file" % path)
        mac = self

        class Library:
            def __getitem__(self, symbol):
                return mac.symbol(symbol)
        return Library()

    def symbol(self, name):
        if name in self.missing:
            raise AttributeError(name)
        if name == "mach_task_self_":
            return ctypes.CFUNCTYPE(None)(ctypes.addressof(self.task))
        if name.startswith("kCF"):
            return ctypes.CFUNCTYPE(None)(ctypes.addressof(self.zero))
        if name == "objc_msgSend":
            return Send(self)
        _, result, arguments, _ = ag._PROTOTYPES[name]
        kind = ctypes.CFUNCTYPE(PLAIN[result], *[PLAIN[a] for a in arguments], use_errno=True)

        def call(*args):
            self.calls.append(name)
            try:
                if name in self.null:
                    return self.nothing(name, args)
                return getattr(self, name)(*args)
            except Exception as error:
                self.crimes.append("%s%r: %r" % (name, args, error))
                return 0
        thunk = kind(call)
        self.keep.append(thunk)
        return kind(ctypes.cast(thunk, ctypes.c_void_p).value)

    def nothing(self, name, args):
        if name.startswith("IOServiceGetMatchingServices"):
            self.CFRelease(args[1])
        return -1 if ag._PROTOTYPES[name][1] == "i" else 0

    # ---- CoreFoundation

    def new(self, kind, value, held=()):
        self.next += 16
        self.heap[self.next] = Object(kind, value, held)
        for ref in self.heap[self.next].held:
            self.heap[ref].refs += 1
        return self.next

    def cf(self, value):
        """An object of a Python value, owned by whoever asked."""
        if isinstance(value, dict):
            pairs = [(self.cf(k), self.cf(v)) for k, v in value.items()]
            made = self.new("Dictionary", {self.heap[k].value: (k, v) for k, v in pairs}, [r for p in pairs for r in p])
            for pair in pairs:
                self.CFRelease(pair[0]), self.CFRelease(pair[1])
            return made
        if isinstance(value, list):
            items = [self.cf(v) for v in value]
            made = self.new("Array", items, items)
            for item in items:
                self.CFRelease(item)
            return made
        kinds = {str: "String", bool: "Boolean", int: "Number", float: "Number", bytes: "Data", object: "Date"}
        return self.new(kinds[type(value)], value)

    def get(self, ref, kind):
        found = self.heap[ref]
        if found.kind != kind:
            raise TypeError("%s is no %s" % (found.kind, kind))
        return found

    def CFRelease(self, ref):
        found = self.heap[ref]
        found.refs -= 1
        if not found.refs:
            del self.heap[ref]
            for held in found.held:
                self.CFRelease(held)

    def CFGetTypeID(self, ref):
        kind = self.heap[ref].kind
        return 20 + KINDS.index(kind) if kind in KINDS else 99

    CFStringGetTypeID, CFNumberGetTypeID, CFBooleanGetTypeID, CFDataGetTypeID, CFArrayGetTypeID, CFDictionaryGetTypeID = (
        (lambda n: lambda self: n)(20 + i) for i in range(6))

    def CFStringCreateWithCString(self, _, text, encoding):
        assert encoding == 0x08000100
        return self.new("String", text.decode())

    def CFStringGetLength(self, ref):
        return len(self.get(ref, "String").value.encode("utf-16-le")) // 2

    def CFStringGetMaximumSizeForEncoding(self, n, encoding):
        return n * 3

    def CFStringGetCString(self, ref, buffer, size, encoding):
        data = self.get(ref, "String").value.encode() + b"\0"
        if len(data) > size:
            return 0
        ctypes.memmove(buffer, data, len(data))
        return 1

    def CFNumberCreate(self, _, kind, where):
        assert kind == 4
        return self.new("Number", ctypes.c_int64.from_address(where).value)

    def CFNumberIsFloatType(self, ref):
        return isinstance(self.get(ref, "Number").value, float)

    def CFNumberGetValue(self, ref, kind, where):
        {4: ctypes.c_int64, 6: ctypes.c_double}[kind].from_address(where).value = self.get(ref, "Number").value
        return 1

    def CFBooleanGetValue(self, ref):
        return self.get(ref, "Boolean").value

    def CFDataGetLength(self, ref):
        return len(self.get(ref, "Data").value)

    def CFDataGetBytePtr(self, ref):
        found = self.get(ref, "Data")
        found.memory = ctypes.create_string_buffer(found.value, len(found.value))
        return ctypes.addressof(found.memory)

    def CFArrayGetCount(self, ref):
        return len(self.get(ref, "Array").value)

    def CFArrayGetValueAtIndex(self, ref, i):
        return self.get(ref, "Array").value[i]

    def CFArrayCreateMutable(self, _, capacity, callbacks):
        assert callbacks
        return self.new("Array", [])

    def CFArrayAppendValue(self, ref, item):
        self.heap[item].refs += 1
        self.get(ref, "Array").value.append(item)
        self.heap[ref].held.append(item)

    def CFDictionaryGetCount(self, ref):
        return len(self.get(ref, "Dictionary").value)

    def CFDictionaryGetValue(self, ref, key):
        return self.get(ref, "Dictionary").value.get(self.get(key, "String").value, (0, 0))[1]

    def CFDictionaryGetKeysAndValues(self, ref, keys, values):
        for i, (k, v) in enumerate(self.get(ref, "Dictionary").value.values()):
            ctypes.c_void_p.from_address(keys + 8 * i).value = k
            ctypes.c_void_p.from_address(values + 8 * i).value = v

    def CFDictionaryCreateMutable(self, _, capacity, keys, values):
        assert keys and values
        return self.new("Dictionary", {})

    def CFDictionarySetValue(self, ref, key, value):
        self.get(ref, "Dictionary").value[self.get(key, "String").value] = (key, value)
        for held in (key, value):
            self.heap[held].refs += 1
            self.heap[ref].held.append(held)

    def plain(self, ref):
        found = self.heap[ref]
        if found.kind == "Array":
            return [self.plain(item) for item in found.value]
        if found.kind == "Dictionary":
            return {name: self.plain(value) for name, (_, value) in found.value.items()}
        if found.kind not in KINDS:
            raise TypeError(found.kind)
        return found.value

    def CFPropertyListCreateData(self, _, ref, format, options, error):
        assert (format, options, error) == (200, 0, None)
        try:
            return self.new("Data", plistlib.dumps(self.plain(ref), fmt=plistlib.FMT_BINARY))
        except TypeError:
            return 0

    # ---- IOKit

    def port(self, thing):
        self.next_port += 4
        self.ports[self.next_port] = thing
        return self.next_port

    def IOObjectRelease(self, port):
        del self.ports[port]
        return 0

    def IOServiceMatching(self, name):
        return self.cf({"IOProviderClass": name.decode()})

    def IOServiceNameMatching(self, name):
        return self.cf({"IONameMatch": name.decode()})

    def IOServiceGetMatchingServices(self, port, matching, where):
        assert port == 0
        (_, name), = self.get(matching, "Dictionary").value.values()
        name = self.heap[name].value
        self.CFRelease(matching)
        if self.kr.get("match"):
            return self.kr["match"]
        ctypes.c_uint32.from_address(where).value = self.port(list(self.services.get(name, ())))
        return 0

    def IORegistryEntryGetChildIterator(self, port, plane, where):
        assert plane == b"IOService"
        ctypes.c_uint32.from_address(where).value = self.port(list(self.kids))
        return 0

    def IOIteratorNext(self, port):
        return self.port(self.ports[port].pop(0)) if self.ports[port] else 0

    def IOIteratorIsValid(self, port):
        return 1

    def IOIteratorReset(self, port):
        pass

    def IOObjectGetClass(self, port, where):
        name = self.ports[port][0].encode() + b"\0"
        ctypes.memmove(where, name, len(name))
        return 0

    def IORegistryEntryGetRegistryEntryID(self, port, where):
        if port not in self.ports:
            return 0x10000003
        ctypes.c_uint64.from_address(where).value = 0x100000000 + port
        return 0

    def IORegistryEntryCreateCFProperty(self, port, key, _, options):
        properties = self.ports[port][1]
        key = self.get(key, "String").value
        return self.cf(properties[key]) if key in properties else 0

    def IOServiceOpen(self, port, task, kind, where):
        assert self.ports[port][0].startswith("AppleSMC") and task == 0x103 and kind == 0
        if self.kr.get("open"):
            return self.kr["open"]
        ctypes.c_uint32.from_address(where).value = 0xBEEF
        return 0

    def IOServiceClose(self, connection):
        assert connection == 0xBEEF
        self.closed = True
        return 0

    def IOConnectCallStructMethod(self, connection, selector, request, size, answer, answer_size):
        assert (connection, selector, size) == (0xBEEF, 2, 80)
        if self.kr.get("smc"):
            return self.kr["smc"]
        data = ctypes.string_at(request, 80)
        key, = struct.unpack_from("=I", data)
        key, size = key.to_bytes(4, "big").decode(), struct.unpack_from("=I", data, 28)[0]
        command, index = data[42], struct.unpack_from("=I", data, 44)[0]
        out = bytearray(80)
        if command == 8 and index < len(self.smc):
            struct.pack_into("=I", out, 0, int.from_bytes(sorted(self.smc)[index].encode(), "big"))
        elif command == 8 or key not in self.smc:
            out[40] = 132
        elif command == 9:
            kind, value = self.smc[key]
            struct.pack_into("=II", out, 28, len(value), int.from_bytes(kind.encode(), "big"))
        elif command == 5:
            assert size == len(self.smc[key][1])
            out[48:48 + size] = self.smc[key][1]
        if self.smc_result is not None:
            out[40] = self.smc_result
        ctypes.memmove(answer, bytes(out), 80)
        ctypes.c_uint64.from_address(answer_size).value = self.answer_size
        return 0

    def IOHIDEventSystemClientCreate(self, _):
        return self.new("Client", None)

    def IOHIDEventSystemClientSetMatching(self, client, matching):
        self.matching = matching
        found = self.get(matching, "Dictionary").value
        assert {k: self.heap[v[1]].value for k, v in found.items()} == {"PrimaryUsagePage": 0xFF00, "PrimaryUsage": 5}

    def IOHIDEventSystemClientCopyServices(self, client):
        assert self.matching in self.heap
        services = [self.new("Service", sensor) for sensor in self.sensors]
        made = self.new("Array", services, services)
        for service in services:
            self.CFRelease(service)
        return made

    def IOHIDServiceClientCopyProperty(self, service, key):
        name, location, _ = self.get(service, "Service").value
        value = {"Product": name, "LocationID": location}[self.get(key, "String").value]
        return 0 if value is None else self.cf(value)

    def IOHIDServiceClientCopyEvent(self, service, kind, options, stamp):
        assert (kind, options, stamp) == (15, 0, 0)
        value = self.get(service, "Service").value[2]
        return 0 if value is None else self.new("Event", value)

    def IOHIDEventGetFloatValue(self, event, field):
        assert field == 15 << 16
        return self.get(event, "Event").value

    def IOPSCopyPowerSourcesInfo(self):
        return self.cf({"source": "AC Power"})

    def IOPSGetProvidingPowerSourceType(self, info):
        return self.get(info, "Dictionary").value["source"][1]

    # ---- IOReport

    def records(self, i):
        driver, channel, _, _, _, format, _, _ = self.listing[i]
        values = self.values.get(i, (1,))
        head = struct.pack("<QQHHHHq", driver, channel, format, 1, len(values), 0, self.stamps.get(i, 1000 + i))
        places = {1: "<q24x", 2: "<16xq8x", 3: "<q24x"}
        return b"".join(head + struct.pack(places[format], v) for v in values)

    def channel(self, i, sample):
        driver, channel, group, subgroup, name, format, unit, states = self.listing[i]
        made = {"IOReportGroupName": group, "n": i}
        if sample or self.listing_driver:
            made["DriverID"] = driver
        if sample:
            made["RawElements"] = self.records(i)
        return made

    def IOReportCopyChannelsInGroup(self, group, subgroup, *zeros):
        assert zeros == (0, 0, 0)
        group, subgroup = self.heap[group].value, subgroup and self.heap[subgroup].value
        rows = [i for i, c in enumerate(self.listing) if c[2] == group and (not subgroup or c[3] == subgroup)]
        return self.cf({"IOReportChannels": [self.channel(i, False) for i in rows]}) if rows else 0

    def IOReportCreateSubscription(self, _, wanted, where, zero, null):
        assert not (_ or zero or null)
        if self.refuse:
            return 0
        items = self.get(self.heap[wanted].value["IOReportChannels"][1], "Array").value
        self.wanted = [self.number(item) for item in items]
        ctypes.c_void_p.from_address(where).value = self.cf({"IOReportChannels": []})
        return self.new("Subscription", None)

    def IOReportCreateSamples(self, handle, wanted, null):
        self.get(handle, "Subscription"), self.get(wanted, "Dictionary")
        order = self.order or self.wanted
        return self.cf({"IOReportChannels": [self.channel(i, True) for i in order if i not in self.gone]})

    def number(self, item):
        return self.heap[self.heap[item].value["n"][1]].value

    def field(self, item, i):
        """A +0 string: owned by the channel."""
        value = self.listing[self.number(item)][i]
        if value is None:
            return 0
        made = self.new("String", value)
        self.heap[item].held.append(made)
        return made

    def IOReportChannelGetGroup(self, item):
        return self.field(item, 2)

    def IOReportChannelGetSubGroup(self, item):
        return self.field(item, 3)

    def IOReportChannelGetChannelName(self, item):
        return self.field(item, 4)

    def IOReportChannelGetUnitLabel(self, item):
        return self.field(item, 6)

    def IOReportChannelGetFormat(self, item):
        return self.listing[self.number(item)][5]

    def IOReportChannelGetChannelID(self, item):
        return self.listing[self.number(item)][1]

    def IOReportSimpleGetIntegerValue(self, item, null):
        return self.values.get(self.number(item), (1,))[0] + self.accessor_shift

    def IOReportStateGetCount(self, item):
        if not self.listing_states and "RawElements" not in self.heap[item].value:
            return 0
        return len(self.listing[self.number(item)][7])

    def IOReportStateGetNameForIndex(self, item, k):
        made = self.new("String", self.listing[self.number(item)][7][k])
        self.heap[item].held.append(made)
        return made

    def IOReportStateGetResidency(self, item, k):
        return self.values[self.number(item)][k] + self.accessor_shift

    def IOReportHistogramGetBucketCount(self, item):
        return len(self.values[self.number(item)])

    def IOReportHistogramGetBucketHits(self, item, k):
        return self.values[self.number(item)][k] + self.accessor_shift

    # ---- libSystem

    def mach_host_self(self):
        return 0x203

    def mach_timebase_info(self, where):
        ctypes.memmove(where, struct.pack("<II", 125, 3), 8)
        return 0

    def host_page_size(self, host, where):
        ctypes.c_uint64.from_address(where).value = 16384
        return 0

    def host_statistics64(self, host, flavor, where, count):
        count = ctypes.c_uint32.from_address(count)
        assert (host, flavor, count.value) == (0x203, 4, 256)
        ctypes.memmove(where, bytes(range(1, 153)), 152)
        count.value = self.vm_count
        return self.kr.get("vm", 0)

    def host_processor_info(self, host, flavor, cpus, where, count):
        data = ctypes.create_string_buffer(struct.pack("<8I", *range(8)), 32)
        self.mapped[ctypes.addressof(data)] = data
        ctypes.c_uint32.from_address(cpus).value = 2
        ctypes.c_void_p.from_address(where).value = ctypes.addressof(data)
        ctypes.c_uint32.from_address(count).value = self.words
        return 0

    def vm_deallocate(self, task, start, size):
        assert task == 0x103 and size == self.words * 4
        del self.mapped[start]
        return 0

    def sysctlbyname(self, name, where, size, new, new_size):
        assert not new and not new_size
        size, data = ctypes.c_uint64.from_address(size), self.sysctls.get(name.decode())
        if data is None or self.errors.get("sysctl"):
            ctypes.set_errno(self.errors.get("sysctl", ENOENT))
            return -1
        if where:
            if self.grow:
                self.grow -= 1
                ctypes.set_errno(ENOMEM)
                return -1
            if size.value < len(data):
                ctypes.set_errno(ENOMEM)
                return -1
            ctypes.memmove(where, data, len(data))
        size.value = len(data)
        return 0

    def proc_listallpids(self, where, size):
        if self.errors.get("list"):
            ctypes.set_errno(self.errors["list"])
            return 0
        ids = [0, 1, 357, 4242]
        if where:
            ctypes.memmove(where, struct.pack("<4i", *ids), 16)
        return len(ids)

    def proc_pidinfo(self, pid, flavor, zero, where, size):
        assert (flavor, size) in ((4, 96), (13, 64)) and not zero
        code = self.errors.get(pid, ESRCH if pid > 5000 else 0)
        if code and not (flavor == 13 and code == EPERM):
            ctypes.set_errno(code)
            return 0
        ctypes.memmove(where, b"i" * size, size)
        return size

    def proc_pidpath(self, pid, where, size):
        path = b"/System/WindowServer" if pid == 357 else b""
        ctypes.memmove(where, path, len(path))
        return len(path)

    def proc_pid_rusage(self, pid, flavor, where):
        code = self.errors.get(pid, EINVAL if flavor == 6 and not self.rusage_v6 else 0)
        if code:
            ctypes.set_errno(code)
            return -1
        size = {6: 464, 4: 296}[flavor]
        ctypes.memmove(where, b"r" * size, size)
        return 0

    def notify_register_check(self, name, where):
        ctypes.c_int32.from_address(where).value = 77
        return self.kr.get("register", 0)

    def notify_get_state(self, token, where):
        assert token == 77
        ctypes.c_uint64.from_address(where).value = 2
        return self.kr.get("notify", 0)

    def notify_cancel(self, token):
        assert token == 77
        return 0

    # ---- Objective-C

    def objc_autoreleasePoolPush(self):
        self.pools += 1
        return self.pools

    def objc_autoreleasePoolPop(self, token):
        assert token == self.pools
        self.pools -= 1

    def sel_registerName(self, name):
        buffer = ctypes.create_string_buffer(name)
        self.keep.append(buffer)
        return ctypes.addressof(buffer)

    def objc_release(self, ref):
        self.CFRelease(ref)

    def MTLCopyAllDevices(self):
        device = self.new("Device", 0x100001007)
        made = self.new("NSArray", [device], [device])
        self.CFRelease(device)
        return made

    def MTLCreateSystemDefaultDevice(self):
        return self.new("Device", 0x100001007)

    def message(self, receiver, selector, *args):
        assert self.pools
        name, kind = ctypes.string_at(selector).decode(), self.heap[receiver].kind
        if kind == "NSArray":
            return {"count": lambda: 1, "objectAtIndex:": lambda i: self.heap[receiver].value[i]}[name](*args)
        if kind == "NSString":
            return self.heap[receiver].value
        assert kind == "Device", kind
        if name in ("name", "architecture"):
            made = self.new("NSString" if name == "name" else "Device", b"Apple M4")
            self.heap[receiver].held.append(made)
            return made
        return {"registryID": 0x100001007, "recommendedMaxWorkingSetSize": 12713115648, "maxBufferLength": 9534832640,
                "maxThreadgroupMemoryLength": 32768, "hasUnifiedMemory": 1, "supportsFamily:": int(args[:1] in ((1009,), (3003,))),
                "respondsToSelector:": 1}[name]


class Send:
    """objc_msgSend: complete prototypes only."""

    def __init__(self, mac):
        self.mac = mac

    def __call__(self, *args):
        assert len(args) == len(self.argtypes)
        return self.mac.message(*(getattr(a, "value", a) for a in args))


@pytest.fixture
def mac(monkeypatch):
    made = Mac()
    monkeypatch.setattr(ctypes, "CDLL", made.CDLL)
    monkeypatch.setattr(ctypes, "PyDLL", made.CDLL)
    monkeypatch.setattr(time, "CLOCK_UPTIME_RAW", time.CLOCK_MONOTONIC, raising=False)
    ag._c.forked()
    yield made
    ag._c.forked()
    assert made.crimes == []


def settle(mac):
    """Objects and ports alive, apart from the strings and handles that are kept on purpose."""
    return len(mac.heap), len(mac.ports), len(mac.mapped), mac.pools


# ---- pure parts

def test_every_row_of_the_prototype_table_is_complete():
    for name, (library, result, arguments, since) in ag._PROTOTYPES.items():
        assert library.rstrip("!") in ag._LIBRARIES, name
        assert result in set("vpsBiIqQd") | set(ag._OWNED) and set(arguments) <= set("psBiIqQdM"), name
        assert 10 <= since <= 27
        assert "Create" not in name and "Copy" not in name or result in "CO", "%s: who owns it?" % name


def test_smc_questions_and_answers_have_the_layout_of_the_kernel():
    asked = ag._smc_request(5, "Tg05", 4)
    assert len(asked) == 80
    assert struct.unpack_from("=I", asked, 0)[0] == 0x54673035          # big-endian characters in a native word
    assert struct.unpack_from("=I", asked, 28)[0] == 4 and asked[42] == 5
    assert struct.unpack_from("=I", ag._smc_request(8, index=7), 44)[0] == 7
    answer = bytearray(80)
    struct.pack_into("=I", answer, 0, 0x54673035)
    struct.pack_into("=II", answer, 28, 4, 0x666C7420)
    answer[40], answer[48:52] = 132, b"abcd"
    assert ag._smc_answer(bytes(answer)) == ("Tg05", 4, "flt ", 132, b"abcd" + bytes(28))


def test_records_give_driver_channel_stamp_and_the_value_of_their_format():
    head = struct.pack("<QQQq", 0x100000321, 0x4750555048, 0, 1234)
    simple, state = head + struct.pack("<4q", 5, 6, 7, 8), head + struct.pack("<4q", 1, 2, -3, 4)
    assert ag._record_layout(1, 1).unpack(simple) == (0x100000321, 0x4750555048, 1234, 5)
    assert ag._record_layout(2, 3).unpack(state + state + state) == (0x100000321, 0x4750555048, 1234, -3, -3, -3)
    assert ag._record_layout(3, 2).unpack(simple + state)[3:] == (5, 1)
    for format in (1, 2, 3):
        assert ag._record_layout(format, 16).size == 1024


def test_a_nameless_channel_is_called_by_the_characters_of_its_id():
    assert ag._channel_name(0x4750555048000000) == "GPUPH"
    assert ag._channel_name(0x4543505530202020) == "ECPU0   "


@pytest.mark.parametrize("value", [
    {"s": "p\u00e4 \U0001F600", "i": -5, "u": 200, "w": 70000, "big": (1 << 63) - 1, "min": -(1 << 63), "f": 2.5, "t": True,
     "n": False, "x": b"\0\1", "e": b"", "a": [1, "two", [3]], "d": {"k": {"deep": 1}}, "same": "two", "empty": [{}, []]},
    list(range(-300, 300)), "x" * 1000, b"y" * 70000, 17, -1, 0.25, True, {str(i): [i] for i in range(400)}])
def test_binary_property_lists_read_as_they_were_written(value):
    read = ag._plist(plistlib.dumps(value, fmt=plistlib.FMT_BINARY))
    assert read == value and type(read) is type(value)


def test_property_lists_of_noise_raise_our_error_only():
    noise, whole = random.Random(1), plistlib.dumps({"a": [1, {"b": "c" * 40}], "d": b"e"}, fmt=plistlib.FMT_BINARY)
    for _ in range(4000):
        data = bytearray(whole)
        for _ in range(noise.randrange(1, 6)):
            data[noise.randrange(8, len(data))] = noise.randrange(256)
        for broken in (bytes(data), bytes(data[:noise.randrange(len(data))]), b"bplist00" + noise.randbytes(60)):
            try:
                ag._plist(broken)
            except ag.AppleGPUError:
                pass


# ---- CoreFoundation

VALUE = {"s": "p\u00e4 \U0001F600", "i": -5, "big": (1 << 63) - 1, "f": 2.5, "t": True, "n": False, "x": b"\0\1", "e": b"",
         "a": [1, "two", [3]], "d": {"k": {"deep": 1}}}


def test_values_convert_with_their_types_and_leave_nothing(mac):
    ref = mac.cf(VALUE)
    read = ag._cf_value(ref)
    assert read == VALUE and type(read["t"]) is bool and type(read["i"]) is int and type(read["f"]) is float
    assert ag._cf_value(None) is None and ag._cf_text(None) is None and ag._cf_text(ref) is None
    mac.CFRelease(ref)
    assert not mac.heap


def test_a_reading_costs_the_same_whatever_its_size(mac):
    for value in ("Apple M4", VALUE, [VALUE] * 20):
        ref, mac.calls = mac.cf(value), []
        assert ag._cf_read(ref) == value and len(mac.calls) == 4
        mac.CFRelease(ref)
    assert not mac.heap


def test_an_unknown_type_is_none(mac):
    ref = mac.new("Date", 0)
    assert ag._cf_value(ref) is None and ag._cf_read(ref) is None
    held = mac.new("Array", [ref, ref], [ref, ref])
    assert ag._cf_read(held) == [None, None]


def test_dictionaries_own_what_they_hold(mac):
    made = ag._cf_dictionary({"PrimaryUsage": 5, "Name": "x"})
    assert ag._cf_value(made) == {"PrimaryUsage": 5, "Name": "x"}
    del made
    assert not mac.heap


def test_owners_release_once_and_never_null(mac):
    owner = ag._cf_string("x")
    assert len(mac.heap) == 1
    del owner
    assert not mac.heap
    del_null = ag._c.CFObject()
    del del_null


def test_a_missing_symbol_disables_its_own_figure_only(mac):
    mac.missing = {"IOReportCreateSamples", ag._LIBRARIES["Metal"]}
    machine = ag._LiveMachine()
    with pytest.raises(ag.AppleGPUError_NotSupported) as caught:
        machine.metal.device()
    assert caught.value.reason == ag.REASON_MACOS
    assert machine.sysctl.number("hw.memsize") == 16 << 30


# ---- registry

def test_registry(mac):
    registry = ag._LiveMachine().registry
    entry, = registry.services("IOAccelerator")
    assert registry.class_name(entry) == "AGXAcceleratorG16G" and registry.get(entry, "model") == "Apple M4"
    assert registry.get(entry, "PerformanceStatistics")["Device Utilization %"] == 17
    assert registry.get(entry, "nothing") is None and registry.alive(entry)
    assert registry.identity(entry) >> 32 == 1 and {entry: 1}[entry] == 1
    assert registry.services("Nothing") == [] and registry.named("pmgr") == []
    clients = registry.children(entry)
    assert [registry.get(c, "IOUserClientCreator") for c in clients] == ["pid 357, WindowServer"] * 3
    strings = len(ag._c.strings)
    del entry, clients
    assert not mac.ports and len(mac.heap) == strings


def test_registry_refusals_are_errors_and_the_dictionary_is_consumed(mac):
    mac.kr["match"] = 0xE00002E2 - (1 << 32)
    with pytest.raises(ag.AppleGPUError_NoPermission) as caught:
        ag._LiveMachine().registry.services("IOAccelerator")
    assert caught.value.reason == ag.REASON_SANDBOX and settle(mac) == (0, 0, 0, 0)


# ---- IOReport

GPU = 0x4750555048000000


def energy(mac, count=97):
    mac.listing = [(0x100000300, 0x4350000000 + i, "Energy Model", "", "rail %d" % i, 1, "mJ ", ()) for i in range(count)]
    mac.listing += [(0x100000321, GPU, "GPU Stats", "GPU Performance States", None, 2, "24Mticks", ("OFF", "P1", "P2")),
                    (0x100000322, 77, "PMP", "DCS BW", "AGX RD", 3, "", ())]
    mac.values = {count: (10, 20, 30), count + 1: (1, 2)}
    mac.stamps[count] = 555
    return [("Energy Model", None), ("GPU Stats", "GPU Performance States"), ("No Such Group", None), ("PMP", None)]


def test_a_subscription_reads_chosen_channels(mac):
    groups, seen = energy(mac), []
    report = ag._LiveMachine().ioreport
    def want(group, subgroup, name, unit):
        seen.append((group, subgroup, name, unit))
        return name in ("rail 3", "GPUPH", "AGX RD")
    made = report.subscribe(groups, want)
    assert ("Energy Model", "", "rail 0", "mJ") in seen and ("GPU Stats", "GPU Performance States", "GPUPH", "24Mticks") in seen
    assert [(c.driver, c.channel, c.name, c.format, c.unit) for c in made.channels] == [
        (0x100000300, 0x4350000003, "rail 3", 1, "mJ"), (0x100000321, GPU, "GPUPH", 2, "24Mticks"), (0x100000322, 77, "AGX RD", 3, "")]
    assert made.channels[1].states == ("OFF", "P1", "P2") and made.channels[0].states == ()
    mac.values[3] = (-(1 << 63),)
    assert made.sample() == [(1003, (-(1 << 63),)), (555, (10, 20, 30)), (1098, (1, 2))]
    assert made.note == ""
    assert report.subscribe(groups, lambda *a: False) is None
    assert report.subscribe([("Nope", None)], lambda *a: True) is None


@pytest.mark.parametrize("listed", [97, 364, 1500])
def test_a_sample_costs_four_calls_a_channel_and_leaves_nothing(mac, listed):
    made = ag._LiveMachine().ioreport.subscribe(energy(mac, listed), lambda g, s, name, u: name in ("rail 3", "rail 9", "GPUPH"))
    mac.order = list(range(len(mac.listing)))       # the driver lists more than was asked for
    made.sample()
    alive = len(mac.heap)
    for _ in range(5):
        mac.calls = []
        made.sample()
        assert len(mac.calls) <= 10 + 4 * 3 and not any("String" in c or "GetChannelName" in c for c in mac.calls)
    assert len(mac.heap) == alive


def test_a_moved_or_absent_channel_is_noticed(mac):
    made = ag._LiveMachine().ioreport.subscribe(energy(mac, 5), lambda g, s, n, u: True)
    first = made.sample()
    mac.order = list(reversed(range(7)))
    assert made.sample() == first
    mac.gone = {2, 5}
    rows = made.sample()
    assert rows[2] is None and rows[5] is None and rows[1] == first[1] and rows[6] == first[6]
    mac.calls = []
    assert made.sample() == rows and len(mac.calls) <= 10 + 4 * 7      # an absent channel is not searched again
    mac.gone = set()
    assert made.sample() == first
    mac.gone = {0, 1, 2, 3, 4, 5, 6}
    assert made.sample() == [None] * 7
    mac.gone = set()
    assert made.sample() == first


def test_a_channel_absent_from_the_first_sample_comes_later(mac):
    mac.gone = {1}
    made = ag._LiveMachine().ioreport.subscribe(energy(mac, 3), lambda g, s, n, u: True)
    assert made.sample()[1] is None
    mac.gone = set()
    assert made.sample()[1] == (1001, (1,))


def test_equal_names_and_equal_ids_stay_apart(mac):
    mac.listing = [(7, 1, "E", "", "DTL", 1, "mJ", ()), (8, 1, "E", "", "DTL", 1, "mJ", ()),
                   (9, 5, "E", "", "ECPU", 1, "mJ", ()), (9, 5, "E", "", "PCPU", 1, "mJ", ())]
    mac.values = {i: (i,) for i in range(4)}
    made = ag._LiveMachine().ioreport.subscribe([("E", None)], lambda *a: True)
    mac.order = [3, 1, 0, 2]
    assert [row[1] for row in made.sample()] == [(0,), (1,), (2,), (3,)]
    assert [row[1] for row in made.sample()] == [(0,), (1,), (2,), (3,)]


def test_a_listing_without_driver_or_states_is_completed_by_the_first_sample(mac):
    mac.listing_driver = mac.listing_states = False
    made = ag._LiveMachine().ioreport.subscribe(energy(mac, 2), lambda *a: True)
    assert made.channels[2].states == ("OFF", "P1", "P2") and made.channels[2].driver == 0x100000321
    assert [row[1] for row in made.sample()] == [(1,), (1,), (10, 20, 30), (1, 2)]


def test_accessors_serve_for_good_where_records_differ(mac):
    mac.accessor_shift = 1000
    made = ag._LiveMachine().ioreport.subscribe(energy(mac, 2), lambda *a: True)
    assert [row[1] for row in made.sample()] == [(1001,), (1001,), (1010, 1020, 1030), (1001, 1002)]
    assert "accessors" in made.note and made.sample()[2] == (555, (1010, 1020, 1030))


def test_refused_and_failed_subscriptions(mac):
    groups = energy(mac, 2)
    report = ag._LiveMachine().ioreport
    mac.refuse = True
    with pytest.raises(ag.AppleGPUError_NotSupported) as caught:
        report.subscribe(groups, lambda *a: True)
    assert caught.value.reason == ag.REASON_MACOS and caught.value.detail == "refused"
    del caught
    assert len(mac.heap) == len(ag._c.strings)
    mac.refuse = False
    made = report.subscribe(groups, lambda *a: True)
    mac.null = {"IOReportCreateSamples"}
    with pytest.raises(ag.AppleGPUError_OperatingSystem):
        made.sample()
    mac.null = set()
    assert made.sample()[0] == (1000, (1,))


def test_short_and_odd_records_are_no_data(mac):
    groups = energy(mac, 2)
    made = ag._LiveMachine().ioreport.subscribe(groups, lambda *a: True)
    first = made.sample()
    whole = mac.records
    mac.records = lambda i: whole(i)[:-1] if i == 0 else b"" if i == 1 else whole(i)
    mac.calls = []
    rows = made.sample()
    assert rows[0] is None and rows[1] is None and rows[2:] == first[2:] and len(mac.calls) <= 10 + 4 * 4
    mac.order = [1, 0, 3, 2]
    assert made.sample() == rows and made.sample() == rows
    mac.records = whole
    assert made.sample() == first


# ---- SMC

def test_smc(mac):
    smc = ag._LiveMachine().smc
    assert smc.count() == 3 and [smc.key_at(i) for i in range(4)] == ["#KEY", "F0Ac", "Tg05", None]
    assert smc.info("Tg05") == (4, "flt ") and smc.read("Tg05") == struct.pack("<f", 46.5)
    assert smc.read("Nope") is None and smc.info("Nope") is None and smc.info("long key") is None
    mac.calls = []
    smc.read("Tg05")
    assert mac.calls == ["IOConnectCallStructMethod"]
    assert mac.ports == {}


@pytest.mark.parametrize("code, error, reason", [
    (0xE00002C1, ag.AppleGPUError_NoPermission, ag.REASON_PERMISSION), (0xE00002E2, ag.AppleGPUError_NoPermission, ag.REASON_SANDBOX),
    (0xE00002C7, ag.AppleGPUError_NotSupported, ag.REASON_MACOS), (0xE00002BC, ag.AppleGPUError_OperatingSystem, ag.REASON_SOURCE_FAILED)])
def test_smc_refusals(mac, code, error, reason):
    for call in ("open", "smc"):
        machine = ag._LiveMachine()
        mac.kr = {call: code - (1 << 32)}
        with pytest.raises(error) as caught:
            machine.smc.read("Tg05")
        assert caught.value.reason == reason and caught.value.source == "smc"
        mac.kr = {}
        assert machine.smc.read("Tg05") == struct.pack("<f", 46.5)      # nothing is latched


def test_smc_odd_answers(mac):
    machine = ag._LiveMachine()
    mac.smc_result = 0x85
    with pytest.raises(ag.AppleGPUError_OperatingSystem):
        machine.smc.read("Tg05")
    mac.smc_result, mac.answer_size = None, 40
    with pytest.raises(ag.AppleGPUError_OperatingSystem):
        machine.smc.read("Tg05")
    mac.answer_size, mac.smc["Big "] = 80, ("hex_", bytes(33))
    with pytest.raises(ag.AppleGPUError_OperatingSystem):
        machine.smc.read("Big ")


def test_no_smc_in_a_guest(mac):
    del mac.services["AppleSMCKeysEndpoint"]
    mac.sysctls["kern.hv_vmm_present"] = struct.pack("<I", 1)
    with pytest.raises(ag.AppleGPUError_NotSupported) as caught:
        ag._LiveMachine().smc.count()
    assert caught.value.reason == ag.REASON_VIRTUAL_MACHINE


# ---- HID, sysctl, mach, libproc, notify, power, Metal

def test_hid(mac):
    hid = ag._LiveMachine().hid
    assert hid.temperatures() == [("PMU tdie1", 7, 46.68), ("als-temp", 0, None)]
    alive, mac.calls = len(mac.heap), []
    for _ in range(20):
        hid.temperatures()
    assert len(mac.heap) == alive and "IOHIDEventSystemClientCopyServices" not in mac.calls
    hid.looked -= hid._REFRESH
    hid.temperatures()
    assert len(mac.heap) == alive and mac.calls.count("IOHIDEventSystemClientCopyServices") == 1
    assert "IOHIDEventSystemClientCreate" not in mac.calls
    mac.null = {"IOHIDEventSystemClientCopyServices"}
    hid.looked -= hid._REFRESH
    assert hid.temperatures() == []


def test_sysctl(mac):
    sysctl = ag._LiveMachine().sysctl
    assert sysctl.number("hw.memsize") == 16 << 30 and sysctl.text("machdep.cpu.brand_string") == "Apple M4"
    assert sysctl.raw("nothing") is None and sysctl.text("nothing") is None and sysctl.number("nothing") is None
    mac.calls = []
    sysctl.number("hw.memsize")
    assert mac.calls == ["sysctlbyname"]
    mac.grow = 2
    assert sysctl.number("hw.memsize") == 16 << 30
    mac.sysctls["long"] = bytes(range(256)) * 4
    assert sysctl.raw("long") == mac.sysctls["long"]
    mac.grow = 9
    with pytest.raises(ag.AppleGPUError_OperatingSystem):
        sysctl.raw("long")
    mac.grow = 0
    with pytest.raises(ag.AppleGPUError_OperatingSystem):
        sysctl.number("machdep.cpu.brand_string")
    mac.errors["sysctl"] = EPERM
    with pytest.raises(ag.AppleGPUError_NoPermission):
        sysctl.raw("hw.memsize")


def test_mach(mac):
    mach = ag._LiveMachine().mach
    assert mach.vm_statistics()[:152] == bytes(range(1, 153)) and len(mach.vm_statistics()) == 160
    assert mach.cpu_ticks() == struct.pack("<8I", *range(8)) and not mac.mapped
    assert mach.page_size() == 16384 and mach.timebase() == (125, 3)
    assert mac.calls.count("mach_host_self") == 1
    mac.vm_count = 37
    with pytest.raises(ag.AppleGPUError_OperatingSystem):
        mach.vm_statistics()
    mac.kr["vm"] = -307
    with pytest.raises(ag.AppleGPUError_OperatingSystem):
        mach.vm_statistics()
    mac.words = 7
    with pytest.raises(ag.AppleGPUError_OperatingSystem):
        mach.cpu_ticks()
    assert not mac.mapped


def test_libproc(mac):
    libproc = ag._LiveMachine().libproc
    assert libproc.pids() == [0, 1, 357, 4242] and libproc.own_pid() == os.getpid()
    assert libproc.path(357) == "/System/WindowServer" and libproc.path(1) is None
    assert len(libproc.short_info(1)) == 64 and libproc.short_info(9999) is None
    assert len(libproc.task_info(1)) == 96 and len(libproc.rusage(1)) == 464
    mac.errors[1] = EPERM
    assert len(libproc.short_info(1)) == 64
    for call in (libproc.task_info, libproc.rusage):
        with pytest.raises(ag.AppleGPUError_NoPermission) as caught:
            call(1)
        assert caught.value.reason == ag.REASON_PERMISSION
    with pytest.raises(ag.AppleGPUError_NotFound):
        libproc.task_info(9999)
    mac.rusage_v6 = False
    assert len(libproc.rusage(357)) == 296 and libproc.flavor == 4
    mac.errors["list"] = EPERM
    with pytest.raises(ag.AppleGPUError_NoPermission) as caught:
        libproc.pids()
    assert caught.value.reason == ag.REASON_SANDBOX


def test_notify_and_power(mac):
    machine = ag._LiveMachine()
    assert machine.notify.state("com.apple.system.thermalpressurelevel") == 2
    mac.kr["notify"] = 2
    with pytest.raises(ag.AppleGPUError_OperatingSystem):
        machine.notify.state("com.apple.system.thermalpressurelevel")
    assert machine.power.providing() == "AC Power" and not mac.heap
    mac.null = {"IOPSCopyPowerSourcesInfo"}
    assert machine.power.providing() is None
    mac.null = {"IOPSGetProvidingPowerSourceType"}
    assert machine.power.providing() is None and not mac.heap


@pytest.mark.parametrize("absent", [set(), {"MTLCopyAllDevices"}, {"MTLCreateSystemDefaultDevice"}])
def test_metal_device(mac, absent):
    mac.null = absent
    said = ag._LiveMachine().metal.device(0x100001007)
    assert said["name"] == "Apple M4" and said["recommendedMaxWorkingSetSize"] == 12713115648
    assert said["families"] == (1009, 3003) and said["hasUnifiedMemory"] is True and said["maxThreadgroupMemoryLength"] == 32768
    assert not mac.heap and mac.pools == 0


def test_no_metal_device(mac):
    mac.null = {"MTLCopyAllDevices", "MTLCreateSystemDefaultDevice"}
    with pytest.raises(ag.AppleGPUError_NotReady):
        ag._LiveMachine().metal.device()
    assert mac.pools == 0


# ---- everything at once

def tour(machine):
    """Every method of every source; what could not be had."""
    failed = []
    def attempt(call, *args):
        try:
            return call(*args)
        except ag.AppleGPUError as error:
            failed.append(error)
            assert str(error) and error.reason
    for entry in attempt(machine.registry.services, "IOAccelerator") or ():
        for call in (machine.registry.identity, machine.registry.class_name, machine.registry.alive, machine.registry.children):
            attempt(call, entry)
        attempt(machine.registry.get, entry, "PerformanceStatistics")
    attempt(machine.registry.named, "pmgr")
    subscription = attempt(machine.ioreport.subscribe, [("Energy Model", None), ("GPU Stats", None), ("PMP", None)], lambda *a: True)
    for _ in range(2 if subscription else 0):
        attempt(subscription.sample)
    for call in (machine.smc.count, machine.hid.temperatures, machine.mach.vm_statistics, machine.mach.cpu_ticks,
                 machine.mach.page_size, machine.mach.timebase, machine.libproc.pids, machine.power.providing, machine.metal.device,
                 machine.clock.ticks_per_second):
        attempt(call)
    attempt(machine.smc.key_at, 1), attempt(machine.smc.read, "Tg05"), attempt(machine.sysctl.raw, "hw.memsize")
    for call in (machine.libproc.short_info, machine.libproc.task_info, machine.libproc.rusage, machine.libproc.path):
        attempt(call, 1)
    attempt(machine.notify.state, "com.apple.system.thermalpressurelevel")
    return failed


OPTIONAL = {"CFBooleanGetValue", "CFDictionaryGetCount", "CFDictionaryGetKeysAndValues", "CFPropertyListCreateData",
            "IOIteratorReset", "IOReportSimpleGetIntegerValue", "IOReportHistogramGetBucketCount",
            "IOReportHistogramGetBucketHits", "IOReportStateGetResidency", "MTLCreateSystemDefaultDevice"}
USED = sorted(symbol for symbol in ag._PROTOTYPES if hasattr(Mac, symbol) and symbol not in (
    "CFRelease", "notify_cancel", "IOServiceClose", "IOObjectRelease", "objc_release", "vm_deallocate", "objc_autoreleasePoolPop"))


@pytest.mark.parametrize("symbol", USED)
def test_each_function_failing_is_a_typed_error_and_leaves_nothing(mac, symbol):
    energy(mac, 2)
    assert tour(ag._LiveMachine()) == []
    void = ag._PROTOTYPES[symbol][1] == "v" or symbol in ("notify_register_check", "objc_autoreleasePoolPush")
    for way in ("missing",) if void else ("missing", "null"):
        ag._c.forked()
        mac.heap.clear(), mac.ports.clear(), mac.mapped.clear()
        setattr(mac, way, {symbol})
        failed = tour(ag._LiveMachine())
        assert way == "null" or failed or symbol in OPTIONAL
        setattr(mac, way, set())
        failed.clear()
        ag._c.forked()
        assert not mac.mapped and not mac.pools and not mac.ports
    mac.crimes = [c for c in mac.crimes if "CFGetTypeID" not in c]


def test_many_rounds_leave_nothing(mac):
    energy(mac, 4)
    machine = ag._LiveMachine()
    tour(machine)
    subscription = machine.ioreport.subscribe([("Energy Model", None)], lambda *a: True)
    subscription.sample()
    before = settle(mac)
    for _ in range(200):
        subscription.sample(), machine.hid.temperatures(), machine.mach.cpu_ticks(), machine.power.providing()
        machine.registry.get(machine.registry.services("IOAccelerator")[0], "PerformanceStatistics")
        machine.metal.device()
    assert settle(mac) == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_forgets_without_releasing(mac):
    energy(mac, 2)
    machine = ag._LiveMachine()
    tour(machine)
    entry, = machine.registry.services("IOAccelerator")
    subscription = machine.ioreport.subscribe([("Energy Model", None)], lambda *a: True)
    kept = [entry, subscription, ag._cf_string("x"), ag._c.IOObject(mac.port(None))]
    pid = os.fork()
    if not pid:
        status = 1
        try:
            mac.calls = []
            machine.registry.lock.acquire()
            machine.forked()
            heap, ports = len(mac.heap), len(mac.ports)
            with pytest.raises(ag.AppleGPUError_NotReady):
                machine.registry.identity(entry)
            with pytest.raises(ag.AppleGPUError_NotReady):
                subscription.sample()
            with pytest.raises(ag.AppleGPUError_NotReady) as caught:
                machine.metal.device()
            assert caught.value.reason == ag.REASON_FORKED_CHILD and not machine.registry.alive(entry)
            del caught, entry, subscription
            kept.clear()
            assert (len(mac.heap), len(mac.ports)) == (heap, ports) and mac.calls == []
            assert all(e.source == "metal" for e in tour(machine))
            status = 0
        finally:
            if status:
                sys.excepthook(*sys.exc_info())
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
