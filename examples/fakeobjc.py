"""An Objective-C runtime with Foundation and Metal for any OS with a C compiler: fakeobjc.c fed with metal_api.json.

    python fakeobjc.py program.py [arguments]      # run a program with it (fakemac.py uses it for a whole Mac)

`install()` makes ctypes.CDLL and ctypes.PyDLL open it for the paths of libobjc, Foundation, Metal, CoreGraphics,
QuartzCore and libSystem. `Fake` reads its counters: live objects, sends, offences (over-releases, zombies, unknown
selectors, what Metal's validation would abort on) and leaks with the selector that made them.
"""
import atexit
import ctypes
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(1, HERE)
import fakegraphics     # noqa: E402
NAMES = ("libobjc.A.dylib", "Foundation", "Metal", "CoreGraphics", "QuartzCore", "MetalPerformanceShaders", "libSystem.B.dylib")
PATHS = {"/usr/lib/" + n if n.endswith("dylib") else "/System/Library/Frameworks/%s.framework/%s" % (n, n) for n in NAMES}
PLATFORM = sys.platform
INTEL = os.uname().machine == "x86_64" if hasattr(os, "uname") else True
REAL_CDLL, REAL_PYDLL, REAL_MONOTONIC = ctypes.CDLL, ctypes.PyDLL, time.monotonic_ns
while REAL_CDLL.__module__ != "ctypes":          # imported under fakemac: the loaders below its own
    REAL_CDLL, REAL_PYDLL = REAL_CDLL.__mro__[1], REAL_PYDLL.__mro__[1]


def api():
    """metal_api.json with its tables opened: {class: (kind, parents, since, {selector: (types, owned, optional, since)})}."""
    with open(os.path.join(HERE, "metal_api.json"), encoding="utf-8") as f:
        data = json.load(f)
    classes = {}
    for name, (kind, parents, since, packed) in data["classes"].items():
        methods = {}
        for row in filter(None, packed.split(";")):
            selector, number, *rest = row.split(" ")
            types = data["types"][int(number.rstrip("+?"))].split(" ")
            methods[selector] = types, "+" in number, "?" in number, rest[0] if rest else ""
        classes[name] = kind, parents.split(), since, methods
    return classes, data["foundation"], data["structs"]


SIZES = {"c": 1, "C": 1, "B": 1, "s": 2, "S": 2, "i": 4, "I": 4, "f": 4, "v": 0}


def type_size(one):
    one = one.lstrip("rnNoORV")
    if one[0] != "{":
        return SIZES.get(one[0], 8)
    body, size, align, i = one[one.index("=") + 1:-1], 0, 1, 0
    while i < len(body):
        j = i + 1
        if body[i] == "{":
            depth = 1
            while depth:
                depth += (body[j] == "{") - (body[j] == "}")
                j += 1
        part = body[i:j]
        n = type_size(part)
        step = 8 if part[0] == "{" else n
        size, align, i = -(-size // step) * step + n, max(align, step), j
    return -(-size // align) * align


def encode(types, plain):
    """A method's encoding with frame offsets, as clang writes it; plain drops class names and block signatures."""
    types = [types[0], "@", ":"] + types[1:]
    if plain:
        types = [re.sub(r'<.*>$|"[^"]*"', "", t) for t in types]
    if INTEL:
        types = [t.replace("B", "c") if t.lstrip("rV") == "B" else t for t in types]
    offset, out = 0, []
    for one in types[1:]:
        out.append(one + str(offset))
        offset += type_size(one) if one.lstrip("rV")[0] == "{" else max(type_size(one), 4)
    return types[0] + str(offset) + "".join(out)


LAYOUTS = {"QQ": "QQ", "QQQ": "QQQ", "QQQQ": "QQQQ", "dd": "dd", "dddd": "dddd", "dddddd": "d6", "ff": "ff", "CCCC": "CCCC",
           "Q": "Q1", "QQQQQQ": "Q6"}


# FakeEcho: every way a value can travel; what has no C function of its own is a property
ECHO = """-a:b:c:d:e:f:g:h:i:j:k: v Q q I i S C s c f d f;-copy:slice:level:origin:size:to:slice:level:origin: v @ Q Q {?=QQQ} {?=QQQ} @ Q Q {?=QQQ};
 -structs:b:c:d:e:f:g:h:i: v {?=dddd} {?=ff} {?=CCCC} {?={?=QQQ}{?=QQQ}} {_NSRange=QQ} {?=dddddd} {MTLResourceID=Q} {?=QQQQ} {CGSize=dd};
 -arrays:b:c:d:range: v r^@ r^Q r^f r^{?=QQQQ} {_NSRange=QQ};-bytes:length:out: v r^v Q ^v;-out:name:kind: B ^@ : #;-m:a:n:y:w:o:r:d:s:i:n:flag: B Q Q Q Q Q Q Q Q Q Q Q B;
 -setFf: v {?=ff};-ff {?=ff};-setDd: v {CGSize=dd};-dd {CGSize=dd};-setDddd: v {?=dddd};-dddd {?=dddd};-setSix: v {?=dddddd};-six {?=dddddd};-setRegion: v {?={?=QQQ}{?=QQQ}};
 -region {?={?=QQQ}{?=QQQ}};-setRange: v {_NSRange=QQ};-range {_NSRange=QQ};-setQqqq: v {?=QQQQ};-qqqq {?=QQQQ};-setId: v {MTLResourceID=Q};-id {MTLResourceID=Q};-setSwizzle: v {?=CCCC};
 -swizzle {?=CCCC};-setFloating: v f;-floating f;-setDouble: v d;-double d;-accelerationStructureSizesWithDescriptor: {?=QQQ} @"NSString";-setVector: v {?=[4]};-handler:number: v @? Q"""


def scalar(one):
    one = one.lstrip("rnNoORV")
    if one[0] == "{":
        return LAYOUTS.get(re.sub(r"[{}]|\w*\?*=", "", one), "")
    return {"@": "@", "d": "d", "f": "f", "B": "B", "C": "B", "c": "B", "I": "I", "i": "I", "v": ""}.get(one[0], "u")


def shape(selector, types, owned):
    """How a method without a native stand-in behaves: a property, a factory, an item, or nothing."""
    name, arguments = selector[1:], types[1:]
    if re.match(r"init([A-Z]|$)", name):
        return "self"
    if name == "objectAtIndexedSubscript:":
        return "item"
    if name == "setObject:atIndexedSubscript:":
        return "set item"
    if re.match(r"set[A-Z0-9]\w*:$", name) and types[0] == "v":
        return "set " + scalar(arguments[0])
    if types[0][0] == "@" and types[0] != "@?":
        if selector[0] == "+":
            return "factory"
        return "create" if owned else "create auto" if arguments else "get @"
    code = scalar(types[0])
    return "get " + {"B": "u", "I": "u"}.get(code, code) if not arguments and code else ""


# -- kernels on the CPU

BUILTINS = {"thread_position_in_grid": "fake_now.at", "thread_position_in_threadgroup": "fake_now.in_group",
            "threadgroup_position_in_grid": "fake_now.group_at", "threads_per_threadgroup": "l->group",
            "threads_per_grid": "l->grid", "threadgroups_per_grid": "l->groups", "dispatch_threads_per_threadgroup": "l->group"}
INDICES = {"thread_index_in_threadgroup": "fake_now.index", "thread_index_in_simdgroup": "fake_now.index % 32",
           "simdgroup_index_in_threadgroup": "fake_now.index / 32", "threads_per_simdgroup": "32",
           "simdgroups_per_threadgroup": "(fake_total + 31) / 32"}
ATTRIBUTE = re.compile(r"\[\[(.*?)\]\]", re.S)
HEAD = re.compile(r"(?:\[\[kernel\]\]|\bkernel)\s+void\s+(\w+)\s*\(")


def without_comments(source):
    return re.sub(r"//[^\n]*|/\*.*?\*/", lambda m: "\n" * m.group().count("\n"), source, flags=re.S)


def parameters(source, start):
    """The text of each parameter of the function whose parenthesis ends at start, and where the list ends."""
    depth, parts, at, i = 1, [], start, start
    while depth:
        c = source[i]
        if c in "([<{":
            depth += 1
        elif c in ")]>}":
            depth -= 1
        if (c == "," and depth == 1) or not depth:
            parts.append(source[at:i].strip())
            at = i + 1
        i += 1
    return [p for p in parts if p and p != "void"], i


def kernel_runner(name, parts, barriers):
    """C++ that calls a kernel for every thread of a launch."""
    call, unbound, stage = [], [], 0
    for part in parts:
        found = ATTRIBUTE.search(part)
        attribute = found.group(1).strip() if found else "buffer(%d)" % stage
        declared = ATTRIBUTE.sub("", part).strip()
        kind = re.sub(r"\b(device|constant|threadgroup|thread|const)\b", "", declared[:re.search(r"\w+$", declared).start()]).strip()
        number = re.search(r"\((\d+)\)", attribute)
        if attribute.startswith("threadgroup("):
            call.append("(%s)memory[%s]" % (kind, number.group(1)))
            unbound.append('!l->memory[%s] ? "%s"' % (number.group(1), attribute))
        elif attribute.startswith("buffer("):
            stage = int(number.group(1)) + 1
            target = "l->buffers[%s]" % number.group(1)
            unbound.append('!%s ? "%s"' % (target, attribute))
            call.append("*(%s*)%s" % (kind.rstrip("& "), target) if kind.endswith("&") else "(%s)%s" % (kind, target))
        elif attribute in BUILTINS:
            call.append("fake_pick<%s>(%s)" % (kind, BUILTINS[attribute]))
        elif attribute in INDICES:
            call.append(INDICES[attribute])
        else:
            raise ValueError("%s: the stand-in does not know [[%s]]" % (name, attribute))
    return ('extern "C" void fakemsl_run_%s(FakeLaunch *l)\n{\n if (fake_unbound("%s", %s)) return;\n fake_set_constants(l);\n fake_run(l, %s, [=](char **memory) '
            "{ (void)memory; %s(%s); });\n}\n" % (name, name, " : ".join([*unbound, "(const char *)0"]), "true" if barriers else "false", name, ", ".join(call)))


def to_cpp(source, macros=""):
    """(C++ text, [(kind, name)]) of an MSL source."""
    source = without_comments(source)
    found, runners = [], []
    barriers = bool(re.search(r"threadgroup_barrier|simd_\w+\s*\(|simdgroup_barrier", source))
    for head in HEAD.finditer(source):
        parts, end = parameters(source, head.end())
        found.append(("kernel", head.group(1)))
        size = 0
        body_end = source.find("\n}", end)
        for tile in re.finditer(r"threadgroup\s+(\w+)\s+\w+((?:\[[^\]]+\])+)", source[end:body_end]):
            size += 4 * eval_size(source, tile.group(2))
        most = re.search(r"max_total_threads_per_threadgroup\((\d+)\)", source[max(0, head.start() - 80):head.start()])
        runners.append(kernel_runner(head.group(1), parts, barriers))
        runners.append('extern "C" { uint64_t fakemsl_info_%s[2] = {%s, %d}; }\n' % (head.group(1), most.group(1) if most else "0", size))
    for kind in ("vertex", "fragment"):
        found += [(kind, m.group(1)) for m in re.finditer(r"\b%s\s+\w+\s+(\w+)\s*\(" % kind, source)]
    found += re.findall(r"\[\[\s*(visible|intersection)[^\]]*\]\]\s*\w+\s+(\w+)\s*\(", source)
    constants = re.findall(r"constant\s+(\w+)\s+(\w+)\s*\[\[function_constant\((\d+)\)\]\]", source)
    setter = "static void fake_set_constants(FakeLaunch *l) { (void)l; %s }\n" % " ".join(
        "if (l->constants[%s]) memcpy(&%s, l->constants[%s], sizeof %s);" % (n, name, n, name) for _, name, n in constants)
    text = re.sub(r"#include\s*<metal_\w+>|using\s+namespace\s+metal\s*;", "", source)
    text = re.sub(r"\[\[kernel\]\]", "kernel", text)
    text = ATTRIBUTE.sub("", text)
    text = re.sub(r"\bthreadgroup\s+(?=[^;(){}*&]+;)", "static ", text)
    if any(kind != "kernel" for kind, _ in found):
        text = "" if not runners else text
    return ('#include "fakemsl.h"\n%s#line 1 "program_source"\n%s\n%s%s' % (macros, text, setter, "".join(runners))), found


def eval_size(source, dimensions):
    total = 1
    for one in re.findall(r"\[([^\]]+)\]", dimensions):
        for name, value in re.findall(r"#define\s+(\w+)\s+(\d+)|", source):
            if name:
                one = re.sub(r"\b%s\b" % name, value, one)
        for name, value in re.findall(r"constexpr\s+\w+\s+(\w+)\s*=\s*(\d+)|", source):
            if name:
                one = re.sub(r"\b%s\b" % name, value, one)
        total *= eval(one, {}) if re.fullmatch(r"[\d\s+*/()-]+", one) else 1
    return total


def cpp_compiler():
    return os.environ.get("FAKEOBJC_CXX") or next((p for p in map(shutil.which, ("clang++", "g++", "c++")) if p), None)


class Fake:
    """The loaded runtime."""
    _one = None
    installed = False

    def __new__(cls):
        if cls._one is None:
            cls._one = object.__new__(cls)
            cls._one._start()
        return cls._one

    def _start(self):
        self.folder = os.path.join(tempfile.gettempdir(), "fakeobjc-%d" % os.getuid())
        os.makedirs(self.folder, mode=0o700, exist_ok=True)
        self.path = self._build()
        self.lib = lib = REAL_CDLL(self.path)
        self.classes, self.foundation, self.structs = api()
        lib.fake_log.restype = ctypes.c_char_p
        lib.fake_sent.restype = lib.fake_serial.restype = ctypes.c_uint64
        lib.fake_count_of.restype = ctypes.c_int64
        lib.fake_count_of.argtypes = [ctypes.c_void_p]
        lib.fake_leaks.restype = ctypes.c_size_t
        lib.fake_leaks.argtypes = [ctypes.c_uint64, ctypes.c_char_p, ctypes.c_size_t]
        lib.fake_test_make.restype = ctypes.c_void_p
        lib.fake_wrap.restype = ctypes.c_void_p
        lib.fake_wrap.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
        self._tables()
        kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p,
                                ctypes.c_void_p, ctypes.c_uint64)
        self._hook = kind(self._compile)
        lib.fake_compiler(self._hook)
        atexit.register(lib.fake_compiler, None)

    def _build(self):
        digest = hashlib.sha256()
        for name in ("fakeobjc.c", "fakemetal.h", "fakegraphics.h"):
            with open(os.path.join(HERE, name), "rb") as f:
                digest.update(f.read())
        path = os.path.join(self.folder, "objc-%s.so" % digest.hexdigest()[:16])
        if not os.path.exists(path):
            compiler = os.environ.get("CC") or next((p for p in map(shutil.which, ("cc", "gcc", "clang")) if p), None)
            if compiler is None:
                raise RuntimeError("fakeobjc needs a C compiler")
            part = path + ".%d" % os.getpid()
            subprocess.run([compiler, "-std=gnu11", "-O1", "-g", "-shared", "-fPIC", "-w", "-o", part, os.path.join(HERE, "fakeobjc.c"),
                            "-lpthread", "-ldl", "-lm"], check=True)
            os.replace(part, path)
        return path

    def _tables(self):
        text = str.encode
        lib, classes = self.lib, self.classes
        lib.fake_class(b"NSObject", b"")
        for name, parent in [("NSProxy", ""), ("NSString", "NSObject"), ("NSPlaceholderString", "NSString"), ("__NSCFString", "NSString"),
                             ("NSTaggedPointerString", "NSString"), ("NSArray", "NSObject"), ("__NSArrayI", "NSArray"),
                             ("NSDictionary", "NSObject"), ("__NSDictionaryI", "NSDictionary"), ("NSNumber", "NSObject"),
                             ("__NSCFNumber", "NSNumber"), ("NSData", "NSObject"), ("NSConcreteData", "NSData"), ("NSURL", "NSObject"),
                             ("NSError", "NSObject"), ("NSMethodSignature", "NSObject"), ("NSProcessInfo", "NSObject"),
                             ("MTLDebugDevice", "NSObject"), ("CaptureMTLDevice", "NSObject"), ("FakeProxy", "NSProxy")]:
            lib.fake_class(text(name), text(parent))
        protocols = [n for n, c in classes.items() if c[0] == "p"]
        for name in ["NSObject", "NSCopying"] + protocols:
            lib.fake_protocol(text(name))
        for name in protocols:
            for parent in classes[name][1]:
                lib.fake_protocol_parent(text(name), text(parent))
            for selector, (types, _, optional, _) in classes[name][3].items():
                lib.fake_protocol_method(text(name), text(selector), text(encode(types, True)), text(encode(types, False)), int(optional))
        lib.fake_adopt(b"NSObject", b"NSObject")
        for name, methods in self.foundation.items():
            for selector, encoding in methods.items():
                if INTEL:
                    encoding = re.sub(r"^B|(?<=\d)B", "c", encoding)
                result = '@"%s"' % name
                lib.fake_method(text(name), text(name), text(selector), text(encoding), text(encoding), text(result), 0, text(
                    "get @" if encoding[0] == "@" and encoding.endswith("@0:8") else "get u" if encoding.endswith("@0:8") else ""))
        done = {"NSObject"}

        def define(name):
            if name in done or name not in classes or classes[name][0] != "c":
                return
            done.add(name)
            parent = classes[name][1][0] if classes[name][1] else "NSObject"
            define(parent)
            lib.fake_class(text(name), text(parent if parent in done else "NSObject"))
        for name in classes:
            define(name)
            if classes[name][0] == "c":
                self._methods(name, name)
                for parent in classes[name][1]:
                    if parent in classes and classes[parent][0] == "p":
                        self._conform(name, parent)
        for name in protocols:
            concrete = name.replace("MTL", "AGX", 1) if name.startswith("MTL") else "AGX" + name[3:]      # CAMetalDrawable
            lib.fake_class(text(concrete), b"NSObject")
            self._conform(concrete, name)
        lib.fake_adopt(b"MTLDebugDevice", b"MTLDevice")
        for selector, (types, owned, _, _) in self.classes["MTLDevice"][3].items():
            self._one_method("MTLDebugDevice", "MTLDebugDevice", selector, types, owned, "forward")
        for selector in ("-forwardingTargetForSelector:", "-respondsToSelector:", "-conformsToProtocol:"):
            self._raw("CaptureMTLDevice", selector, self.foundation["NSObject"][selector])
        for selector in ("-methodSignatureForSelector:", "-forwardInvocation:"):
            self._raw("FakeProxy", selector, self.foundation["NSObject"][selector])
        lib.fake_class(b"FakeEcho", b"NSObject")
        lib.fake_echo.restype = ctypes.c_char_p
        for row in ECHO.split(";"):
            selector, types = row.strip().split(" ", 1)
            self._one_method("FakeEcho", "FakeEcho", selector, types.split(), False, shape(selector, types.split(), False))
        for name, what in {"__NSCFString": "text", "__NSArrayI": "array", "__NSDictionaryI": "array", "NSConcreteData": "text",
                           "NSMethodSignature": "text", "CaptureMTLDevice": "wrapper", "MTLDebugDevice": "wrapper", "FakeProxy": "wrapper",
                           "AGXBuffer": "buffer", "AGXLibrary": "library", "AGXFunction": "function", "AGXComputePipelineState": "pipeline",
                           "AGXCommandQueue": "queue", "AGXCommandBuffer": "commands", "AGXComputeCommandEncoder": "encoder",
                           "AGXBlitCommandEncoder": "encoder", "AGXRenderCommandEncoder": "encoder", "AGXCounterSampleBuffer": "counters",
                           "AGXArgumentEncoder": "arguments", "FakeEcho": "echo"}.items():
            lib.fake_dealloc(text(name), text(what))
        fakegraphics.setup(self, shape)
        lib.fake_ready()

    def _raw(self, name, selector, encoding):
        encoding = re.sub(r"^B|(?<=\d)B", "c", encoding) if INTEL else encoding
        self.lib.fake_method(name.encode(), name.encode(), selector.encode(), encoding.encode(), encoding.encode(), b"@", 0, b"")

    def _conform(self, name, protocol):
        self.lib.fake_adopt(name.encode(), protocol.encode())
        todo = [protocol]
        while todo:
            one = todo.pop(0)
            if one in self.classes:
                self._methods(name, one)
                todo += self.classes[one][1]

    def _methods(self, name, owner):
        for selector, (types, owned, _, _) in self.classes[owner][3].items():
            self._one_method(name, owner, selector, types, owned, shape(selector, types, owned))

    def _one_method(self, name, owner, selector, types, owned, how):
        result = types[0] if types[0] != "@" else '@"%s"' % name
        self.lib.fake_method(name.encode(), owner.encode(), selector.encode(), encode(types, True).encode(),
                             encode(types, False).encode(), result.encode(), int(owned), how.encode())

    def _compile(self, source, macros, path, names, error, size):
        try:
            found, result, why = self.compile(source.decode(), macros.decode())
        except Exception as problem:        # crosses C: must not escape
            found, result, why = [], None, "program_source: error: %s" % problem
        if why:
            ctypes.memmove(error, why.encode()[:size - 1] + b"\0", min(len(why.encode()), size - 1) + 1)
            return 0
        packed = "".join("%s %s;" % pair for pair in found).encode() + b"\0"
        ctypes.memmove(names, packed, len(packed))
        ctypes.memmove(path, (result or "").encode() + b"\0", len(result or "") + 1)
        return 1

    def compile(self, source, macros=""):
        """(functions, path of the compiled code or None, error text)."""
        text, found = to_cpp(source, macros)
        compiler = cpp_compiler()
        if compiler is None or (found and not any(kind == "kernel" for kind, _ in found)):
            return found, None, None
        with open(os.path.join(HERE, "fakemsl.h"), encoding="utf-8") as f:
            digest = hashlib.sha256((compiler + text + f.read()).encode()).hexdigest()
        path = os.path.join(self.folder, "msl-%s.so" % digest[:16])
        if not os.path.exists(path):
            part = "%s.%d" % (path, os.getpid())
            run = subprocess.run([compiler, "-std=gnu++17", "-O2", "-ffp-contract=off", "-shared", "-fPIC", "-w", "-fpermissive", "-I", HERE, "-x", "c++", "-",
                                  "-o", part], input=text, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            if run.returncode:
                return found, None, run.stdout
            os.replace(part, path)
        return found, path, None

    # -- counters

    def counts(self):
        out = (ctypes.c_uint64 * 7)()
        self.lib.fake_counts(out)
        return dict(zip(("live", "made", "sends", "errors", "no_pool", "pools", "blocks"), out))

    def sent(self, selector):
        return self.lib.fake_sent(selector.encode())

    def log(self):
        return self.lib.fake_log().decode()

    def forgive(self):
        self.lib.fake_forgive()

    def serial(self):
        return self.lib.fake_serial()

    def leaks(self, since=0):
        out = ctypes.create_string_buffer(1 << 16)
        return self.lib.fake_leaks(since, out, len(out)), out.value.decode()

    def modes(self, counters=0, device=0, fail=0):
        """counters: 1 zeros, 2 error values, 3 none; device: 1 debug wrapper, 2 capture wrapper, 3 proxy, 4 none."""
        self.lib.fake_modes(counters, device, fail)

    def device(self, facts):
        """The device of a recording's "metal" part."""
        families = [int(f) for f in facts.get("supportsFamily:") or ()]
        word = ctypes.c_uint64
        self.lib.fake_device((facts.get("name") or "").encode(), word(facts.get("registryID") or 0),
                             word(facts.get("recommendedMaxWorkingSetSize") or 0), word(facts.get("maxBufferLength") or 0),
                             word(facts.get("maxThreadgroupMemoryLength") or 0), (facts.get("architecture") or "").encode(),
                             (ctypes.c_int * len(families))(*families), len(families))

    def library(self, path, keep=False):
        """The ctypes library for one of PATHS."""
        return (REAL_PYDLL if keep else REAL_CDLL)(self.path)


BLOCKS = ("_Block_copy", "_Block_release", "_NSConcreteStackBlock", "_NSConcreteGlobalBlock", "free", "getpid")


def install(platform=True):
    """Serve PATHS from here in this process; on top of fakemac, if that is there: libSystem then gives only the block
    symbols from here."""
    fake = Fake()
    if fake.installed:
        return fake
    fake.installed = True
    below = ctypes.CDLL is not REAL_CDLL

    def opener(real, keep):
        class Library(real):
            def __new__(cls, name=None, *args, **kw):
                if name not in PATHS or below and "libSystem" in name:
                    return object.__new__(cls)
                return fake.library(name, keep)

            def __getitem__(self, symbol):
                if symbol in BLOCKS and "libSystem" in (self._name or ""):
                    return fake.library(self._name, keep)[symbol]
                return real.__getitem__(self, symbol)
        Library.__name__ = Library.__qualname__ = real.__name__
        return Library
    ctypes.CDLL, ctypes.PyDLL = opener(ctypes.CDLL, False), opener(ctypes.PyDLL, True)
    if platform:
        sys.platform = "darwin"
        for name in ("CLOCK_UPTIME_RAW", "CLOCK_MONOTONIC_RAW"):
            setattr(time, name, time.CLOCK_MONOTONIC)
    return fake


def uninstall():
    """Take it out again (the loaded runtime stays for whoever holds it)."""
    Fake().installed = False
    ctypes.CDLL, ctypes.PyDLL = REAL_CDLL, REAL_PYDLL
    sys.platform = PLATFORM


def attach(mac):
    """Give a running fakemac.Mac the whole of Metal, with the device of its recording."""
    fake = install(platform=False)
    devices = mac.recording["metal"]["devices"]
    if devices:
        fake.device(devices[0])
    else:
        fake.modes(device=4)
    fake.lib.fake_clock.argtypes = [ctypes.c_int64]
    fake.lib.fake_clock(time.clock_gettime_ns(time.CLOCK_UPTIME_RAW) - REAL_MONOTONIC())
    fakegraphics.watch(fake)
    return fake


if __name__ == "__main__":
    import runpy
    sys.modules["fakeobjc"] = sys.modules["__main__"]
    fakegraphics.watch(install())
    sys.argv = sys.argv[1:]
    sys.path.insert(0, os.path.dirname(os.path.abspath(sys.argv[0])))
    runpy.run_path(sys.argv[0], run_name="__main__")
