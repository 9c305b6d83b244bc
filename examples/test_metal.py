"""Metal: the bridge to Objective-C and the functions on it.        python examples/test_metal.py

Off macOS it runs on examples/fakeobjc.py, which counts every object and every offence; there these tests need a C compiler,
and a C++ compiler where kernels run. On a Mac the same tests talk to Metal; those that read the stand-in's books are skipped.
"""
import array
import asyncio
import contextlib
import ctypes
import gc
import os
import random
import struct
import subprocess
import sys
import textwrap
import threading
import time
import unittest

EXAMPLES = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(EXAMPLES)
sys.path.insert(0, EXAMPLES)
import _metal       # noqa: E402
import fakeobjc     # noqa: E402
from _metal import HAVE_CXX, MAC        # noqa: E402

ag = fake = None


def setUpModule():
    global ag, fake
    ag, fake = _metal.start("pyapplegpu_metal")


def tearDownModule():
    _metal.stop()


SOURCE = """
#include <metal_stdlib>
using namespace metal;
constant int factor [[function_constant(0)]];
kernel void add(device const float *a [[buffer(0)]], device const float *b [[buffer(1)]], device float *c [[buffer(2)]],
                uint i [[thread_position_in_grid]]) { c[i] = a[i] + b[i]; }
kernel void square(device const float *a [[buffer(0)]], device float *c [[buffer(1)]], uint i [[thread_position_in_grid]]) { c[i] = a[i] * a[i]; }
kernel void ones(device float *c [[buffer(0)]], uint i [[thread_position_in_grid]]) { c[i] = 1.0; }
kernel void count(device atomic_uint *n [[buffer(0)]], uint i [[thread_position_in_grid]]) { atomic_fetch_add_explicit(n, 1u, memory_order_relaxed); }
kernel void multiply(device int *x [[buffer(0)]], uint i [[thread_position_in_grid]]) { x[i] *= factor; }
kernel void values(device float *out [[buffer(0)]], constant int &i [[buffer(1)]], constant uint &u [[buffer(2)]], constant float &f [[buffer(3)]],
                   constant bool &b [[buffer(4)]], constant uchar *s [[buffer(6)]]) { out[0] = i; out[1] = u; out[2] = f; out[3] = b; out[4] = s[1]; }
kernel void sums(device const float *x [[buffer(0)]], device float *out [[buffer(1)]], threadgroup float *part [[threadgroup(0)]],
                 uint t [[thread_index_in_threadgroup]], uint i [[thread_position_in_grid]], uint g [[threadgroup_position_in_grid]], uint n [[threads_per_threadgroup]])
{
    part[t] = x[i];
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint k = n / 2; k > 0; k /= 2) { if (t < k) part[t] += part[t + k]; threadgroup_barrier(mem_flags::mem_threadgroup); }
    if (t == 0) out[g] = part[0];
}
struct Members { device float *data; };
kernel void through(constant Members &m [[buffer(0)]], uint i [[thread_position_in_grid]]) { m.data[i] += 1; }
kernel void reversed(device float *x [[buffer(0)]], uint t [[thread_index_in_threadgroup]])
{ threadgroup float part[64]; part[t] = x[t]; threadgroup_barrier(mem_flags::mem_threadgroup); x[t] = part[63 - t]; }
kernel void place(device uint *out [[buffer(0)]], uint3 at [[thread_position_in_grid]], uint3 all [[threads_per_grid]])
{ out[(at.z * all.y + at.y) * all.x + at.x] = at.x + 10 * at.y + 100 * at.z; }
"""


class Base(_metal.Base):
    def kernel(self, name, constants=None):
        if not HAVE_CXX:
            self.skipTest("no C++ compiler to run kernels with")
        return ag.MetalKernel(SOURCE, name, constants=constants)


class Encodings(unittest.TestCase):
    def test_all_of_metal(self):
        classes, foundation, _ = fakeobjc.api()
        count, shapes = 0, set()
        for name, (_, _, _, methods) in classes.items():
            for selector, (types, _, _, _) in methods.items():
                plain, full = (ag._parse_method(fakeobjc.encode(types, p)) for p in (True, False))
                self.assertEqual(len(plain) - 1, selector.count(":"), (name, selector))
                self.assertEqual([t.code for t in plain], [t.code for t in full])
                self.assertEqual([t.layout() for t in plain], [t.layout() for t in full])
                shapes.add(tuple("P" if t.size == 8 and t.code not in "{d" else t.layout() or t.code for t in plain))
                count += 1
        self.assertEqual(count, 2515)
        self.assertLess(len(shapes), 140)
        for name, methods in foundation.items():
            for selector, encoding in methods.items():
                self.assertEqual(len(ag._parse_method(encoding)) - 1, selector.count(":"), (name, selector, encoding))

    def test_ownership_rule(self):
        for name, (_, _, _, methods) in fakeobjc.api()[0].items():
            for selector, (types, owned, _, _) in methods.items():
                if types[0][0] == "@" and types[0] != "@?":
                    self.assertEqual(ag._owns(selector[1:]), owned, (name, selector))
        for selector, owned in (("newBuffer", 1), ("news", 0), ("copy", 1), ("copying", 0), ("_initX", 1), ("allocation", 0), ("mutableCopy:", 1), ("init", 1), ("initialise", 0), ("new", 1)):
            self.assertEqual(ag._owns(selector), bool(owned), selector)

    def test_blocks_are_known(self):
        found = 0
        for name, (_, _, _, methods) in fakeobjc.api()[0].items():
            for selector, (types, _, _, _) in methods.items():
                for one in types[1:]:
                    if one.startswith("@?"):
                        found += 1
                        full = ag._parse_signature(one[3:-1])
                        table = next(s for s, names in ag._BLOCKS.items() if selector[1:] in names.split())
                        self.assertEqual([t.code for t in full], [t.code for t in ag._parse_signature(table)], selector)
        self.assertEqual(found, 30)

    def test_struct_names(self):
        structs = fakeobjc.api()[2]
        for name, row in ag._STRUCTS.items():
            _, *fields = row.split(" ")
            if name in structs and name != "MTLResourceID":
                self.assertEqual(structs[name][1], fields)
        for name, (_, _, _, methods) in fakeobjc.api()[0].items():
            for selector, (types, _, _, _) in methods.items():
                if types[0][0] == "{":
                    made = ag._struct_result(ag._parse_type(types[0]), selector[1:]) if ag._runtime or not MAC else None
                    self.assertIn(made.__name__ if made else "MTLSize", ag._STRUCTS)

    def test_shapes(self):
        parse = ag._parse_signature
        self.assertEqual([t.code for t in parse("v32@0:8^16Q24")], ["v", "@", ":", "^", "Q"])       # a pointer to a vector
        one = parse('v24@0:8@?<v@?@"<MTLLibrary>"@"NSError">16')[3]
        self.assertEqual((one.code, one.name), ("@?", 'v@?@"<MTLLibrary>"@"NSError"'))
        self.assertEqual(parse('@"<MTLBuffer>"16@0:8')[0].name, "<MTLBuffer>")
        named = parse('v40@0:8{MTLSize="width"Q"height"Q"depth"Q}16')[3]
        self.assertEqual((named.layout(), named.size), ("QQQ", 24))
        inner = parse('v32@0:8{x="a"@"NSString""b"@"c"i}16'.replace('"b"@"c"i', '"b"i'))[3]
        self.assertEqual(inner.layout(), "@i")
        self.assertEqual(parse("v28@0:8{a=[3i]}16")[3].layout(), "iii")
        held = parse("v32@0:8{a=@?i}16")[3]                     # a block inside a struct is one word
        self.assertEqual((held.layout(), held.size), ("@i", 16))
        self.assertEqual(parse('v40@0:8{x="a"@"b"^@"c"i}16')[3].size, 24)
        self.assertEqual(parse("Vv16@0:8")[0].code, "v")
        self.assertEqual(parse("v24@0:8r^{__IOSurface=}16")[3].code, "^")
        self.assertTrue(parse("v24@0:8r^@16")[3].const)
        self.assertEqual([t.code for t in parse("v@?@Q")], ["v", "@?", "@", "Q"])

    def test_refusals(self):
        for text in ("v32@0:816", "v32@0:8{?=[4]}16", "v24@0:8{x=b3}16", "v24@0:8(u=if)16", "v32@0:8D16", "v32@0:8t16", "v24@0:8{std::vector<int>=Q}16",
                     "v24@0:8{N::T=Q}16", "v24@0:8{opaque}16", "v24@0:8{opaque=}16", "v24@0:8A{x=i}16", "v32@0:8jf16", "v24@0:8?16", "v20@0:8Q16", "v24@0:8i16",
                     "v21@0:8{p=cI}16", "", "v", "@", "v24@0:8{x=Q16", "v24@0:8v16", "v24@0:8!Q16", "v32@0:8{x=[2@{y=Q}]}16"):
            with self.assertRaises(ValueError, msg=text):
                ag._parse_method(text)

    def test_random_text_never_escapes(self):
        random.seed(3)
        letters = "vcCsSiIlLqQfdBbD@#:*^?{}()[]<>=\"0123456789rnNoORVAj!~AZ_"
        for _ in range(20000):
            text = "".join(random.choice(letters) for _ in range(random.randrange(24)))
            try:
                ag._parse_signature(text)
            except ValueError:
                pass

    def test_names(self):
        self.assertEqual(ag._mangle("setBuffer:offset:atIndex:"), "setBuffer_offset_atIndex_")
        for selector in ("a:b:", "label", "_private:x:", "__x"):
            self.assertEqual(ag._demangle(ag._mangle(selector)), selector)
        seen = {}
        for name, (_, _, _, methods) in fakeobjc.api()[0].items():
            for selector in methods:
                self.assertEqual(seen.setdefault((name, ag._mangle(selector)), selector), selector)
                self.assertFalse(hasattr(ag.MetalObject, ag._mangle(selector[1:])), selector)

    def test_importing_loads_nothing(self):
        code = ("import sys; sys.path.insert(0, %r); import pyapplegpu as a; assert a._runtime is None and not a._constants and not a._shapes; "
                "assert not {'atexit', 'mmap', 'typing', 'json', 'ctypes.util'} & set(sys.modules) - before if (before := set()) else 1; "
                "assert not hasattr(a, 'MTLNoSuchThing') and not [n for n in vars(a) if n.startswith('MTL')]") % ROOT
        subprocess.run([sys.executable, "-S", "-c", code], check=True, cwd=ROOT)


class Constants(unittest.TestCase):
    def test_values(self):
        for name, value in {"MTLPixelFormatRGBA8Unorm": 70, "MTLPixelFormatInvalid": 0, "MTLPixelFormatX24_Stencil8": 262, "MTLResourceStorageModePrivate": 32, "MTLGPUFamilyApple9": 1009,
                            "MTLLanguageVersion3_1": 0x30001, "MTLTextureType2D": 2, "MTLDeviceLocationUnspecified": (1 << 64) - 1, "MTLStageAll": (1 << 63) - 1,
                            "MTLCommandBufferStatusCompleted": 4, "MTLCounterSamplingPointAtStageBoundary": 0, "MTLFunctionTypeKernel": 3, "MTLDataTypeFloat4": 6,
                            "MTLIndirectCommandTypeConcurrentDispatch": 32, "MTLCompareFunctionAlways": 7, "MTLLoadActionClear": 2, "MTLFeatureSet_macOS_GPUFamily2_v1": 10005}.items():
            self.assertEqual(getattr(ag, name), value, name)
        self.assertEqual(len(ag._open_constants()), 904)

    def test_first_use_in_threads(self):
        """Nobody sees a table that another thread is still opening."""
        wrong, interval = [], sys.getswitchinterval()

        def look(barrier):
            barrier.wait()
            if "MTLWindingCounterClockwise" not in ag._open_constants():
                wrong.append(1)
        sys.setswitchinterval(1e-6)
        try:
            for _ in range(10):
                ag._constants.clear()
                barrier = threading.Barrier(4)
                threads = [threading.Thread(target=look, args=(barrier,)) for _ in range(4)]
                [t.start() for t in threads]
                [t.join() for t in threads]
        finally:
            sys.setswitchinterval(interval)
        self.assertEqual(wrong, [])

    def test_module_stays_clean(self):
        before = set(vars(ag))
        self.assertEqual(ag.MTLBlendFactorOne, 1)
        self.assertEqual(set(vars(ag)), before)
        self.assertIn("MTLBlendFactorOne", dir(ag))
        self.assertIn("MetalBuffer", dir(ag))
        for name in ("MTLNoSuch", "nvmlNoSuch", "CGNothing", "NSRangeX", "__wrapped__", "DeviceGetNothing"):
            with self.assertRaises(AttributeError):
                getattr(ag, name)
        self.assertNotIn("MTLBlendFactorOne", ag.__all__)
        self.assertIn("MetalDispatch", ag.__all__)

    def test_structs(self):
        size = ag.MTLSize(1, 2, 3)
        self.assertEqual((size.width, size.height, size.depth), (1, 2, 3))
        self.assertEqual(size, (1, 2, 3))
        self.assertEqual(tuple(size), (1, 2, 3))
        size.depth = 9
        self.assertEqual(repr(size), "MTLSize(width=1, height=2, depth=9)")
        region = ag.MTLRegion((1, 2, 3), (4, 5, 6))
        self.assertEqual((region.origin.y, region.size.depth), (2, 6))
        region.size.width = 40
        self.assertEqual(tuple(region.size), (40, 5, 6))
        self.assertEqual(tuple(ag.NSRange(3, 4)), (3, 4))
        self.assertEqual(ctypes.sizeof(ag.MTLViewport), 48)


@unittest.skipIf(MAC, "reads the stand-in's books")
class Sends(Base):
    """Each way a value can travel, compared with what C received."""

    def echo(self):
        return ag._wrap(fake.lib.fake_test_make(b"FakeEcho"), True)

    def got(self):
        return fake.lib.fake_echo().decode()

    def test_scalars(self):
        echo = self.echo()
        small = True if fakeobjc.INTEL else -128           # on Intel a signed char is BOOL
        values = ((1 << 64) - 1, -1 << 63, (1 << 32) - 1, -1 << 31, 65535, 255, -32768, small, 0.5, 1 / 3, -2.25)
        echo.a_b_c_d_e_f_g_h_i_j_k_(*values)
        self.assertEqual(self.got(), "%d %d %d %d %d %d %d %d 0.5 %.17g -2.25" % (*values[:8], 1 / 3))
        echo.a_b_c_d_e_f_g_h_i_j_k_(0, (1 << 63) - 1, 0, 1, 0, 0, 1, 1, 1, 2, 3)
        for place, bad in ((0, 1 << 64), (0, -1), (1, 1 << 63), (2, 1 << 32), (2, -1), (3, 1 << 31), (4, 65536), (5, 256), (6, 32768), (7, 128)):
            wrong = list(values)
            wrong[place] = bad
            with self.assertRaises((OverflowError, TypeError)):
                echo.a_b_c_d_e_f_g_h_i_j_k_(*wrong)
        for place, bad in ((0, 1.0), (0, "1"), (0, None), (3, 2.0), (9, "x"), (9, None), (8, b""), (9, 1j), (10, [1.0])):
            wrong = list(values)
            wrong[place] = bad
            with self.assertRaises(TypeError):
                echo.a_b_c_d_e_f_g_h_i_j_k_(*wrong)
        for count in (10, 12):
            with self.assertRaises(TypeError):
                echo.a_b_c_d_e_f_g_h_i_j_k_(*([0] * count))

    def test_many_and_bool(self):
        echo = self.echo()
        self.assertIs(echo.m_a_n_y_w_o_r_d_s_i_n_flag_(1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, True), True)
        self.assertEqual(self.got(), "%d 1" % sum(v * 10 ** i for i, v in enumerate((1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2))))
        self.assertIs(echo.m_a_n_y_w_o_r_d_s_i_n_flag_(*[0] * 11, 0), False)
        for bad in (2, 1.0, "yes", None):
            with self.assertRaises(TypeError):
                echo.m_a_n_y_w_o_r_d_s_i_n_flag_(*[0] * 11, bad)

    def test_structs_by_value(self):
        echo = self.echo()
        echo.copy_slice_level_origin_size_to_slice_level_origin_(echo, 1, 2, (3, 4, 5), ag.MTLSize(6, 7, 8), None, 9, 10, [11, 12, 13])
        self.assertEqual(self.got(), "1 1 2 3,4,5 6,7,8 1 9 10 11,12,13")
        echo.structs_b_c_d_e_f_g_h_i_((.1, .2, .3, 4), (1, 2.5), (1, 2, 3, 255), ((1, 2, 3), (4, 5, 6)), (7, 8), (1, 2, 3, 4, 5, 6), (9,), (1, 2, 3, 4), ag.CGSize(640, 480))
        self.assertEqual(self.got(), "0.1,0.2,0.3,4 1,2.5 1,2,3,255 1,2,3,4,5,6 7,8 1,2,3,4,5,6 9 1,2,3,4 640,480")
        for bad in ((1, 2), (1, 2, 3, 4), (1, 2, "3"), (1, 2, 3.0), (1, 2, -1), (1, 2, 1 << 64), 5, None, "abc"):
            with self.assertRaises((TypeError, OverflowError, AttributeError)):
                echo.copy_slice_level_origin_size_to_slice_level_origin_(echo, 1, 2, bad, (6, 7, 8), None, 9, 10, (11, 12, 13))
        self.assertEqual(self.got(), "0.1,0.2,0.3,4 1,2.5 1,2,3,255 1,2,3,4,5,6 7,8 1,2,3,4,5,6 9 1,2,3,4 640,480")

    def test_struct_results(self):
        echo = self.echo()
        for name, value in {"ff": (0.5, 2), "dd": (640, 480), "dddd": (.25, .5, .75, 1), "six": (1, 2, 3, 4, 5, 6), "range": (3, 4), "qqqq": (1, 2, 3, 1 << 63), "id": (5,), "swizzle": (2, 3, 4, 5)}.items():
            getattr(echo, "set%s_" % name.capitalize())(value)
            self.assertEqual(tuple(getattr(echo, name)()), value, name)
        echo.setRegion_(((1, 2, 3), (4, 5, 6)))
        region = echo.region()
        self.assertEqual((tuple(region.origin), tuple(region.size), type(region).__name__), ((1, 2, 3), (4, 5, 6), "MTLRegion"))
        self.assertEqual(echo.range().location, 3)
        self.assertEqual(echo.dd().width, 640)
        self.assertEqual(echo.swizzle().alpha, 5)
        echo.setFloating_(0.1)
        echo.setDouble_(0.1)
        self.assertEqual((echo.floating(), echo.double()), (struct.unpack("f", struct.pack("f", 0.1))[0], 0.1))
        self.assertTrue(hasattr(echo.accelerationStructureSizesWithDescriptor_(None), "refitScratchBufferSize"))

    def test_arrays_and_buffers(self):
        echo = self.echo()
        echo.arrays_b_c_d_range_([echo, None], [1, 2], (0.5, 2.0), [(1, 2, 3, 4), ag.MTLScissorRect(5, 6, 7, 8)], (0, 2))
        self.assertEqual(self.got(), "1 1 1,2 0.5,2 4,5 0,2")
        echo.arrays_b_c_d_range_([echo, None], array.array("Q", [3, 4]), array.array("f", [1, 2]), (ctypes.c_uint64 * 8)(*range(8)), (0, 2))
        self.assertEqual(self.got(), "1 1 3,4 1,2 3,4 0,2")
        for data in (b"hello", bytearray(b"hello"), memoryview(b"hello"), memoryview(bytearray(b"hello")), array.array("b", b"hello"),
                     ctypes.create_string_buffer(b"hello"), (ctypes.c_char * 5)(*b"hello"), ctypes.byref(ctypes.create_string_buffer(b"hello"))):
            echo.bytes_length_out_(data, 5, None)
            self.assertEqual(self.got(), "hello")
        keep = ctypes.create_string_buffer(b"hello")
        echo.bytes_length_out_(ctypes.addressof(keep), 5, None)
        out = bytearray(5)
        echo.bytes_length_out_(b"world", 5, out)
        self.assertEqual(out, b"world")
        out += b"!"        # the export is gone
        for bad in ("text", 1.5, memoryview(bytes(10))[::2], object(), -1, 1 << 64):
            with self.assertRaises(TypeError):
                echo.bytes_length_out_(bad, 5, None)
        for bad in (b"bytes", memoryview(b"read"), "x"):
            with self.assertRaises(TypeError):
                echo.bytes_length_out_(b"world", 5, bad)

    def test_out_selector_class(self):
        echo, out = self.echo(), ag.MetalOut()
        self.assertTrue(echo.out_name_kind_(out, "any:name:", ag.MetalClass("NSString")))
        self.assertIs(out.value, echo)
        self.assertEqual(self.got(), "any:name: NSString")
        self.assertFalse(echo.out_name_kind_(None, "x", ag.MetalClass("NSString")))
        for bad in (5, [], "x"):
            with self.assertRaises(TypeError):
                echo.out_name_kind_(bad, "x", ag.MetalClass("NSString"))
        for bad in (echo, "x", 5, ["x"]):           # not a class
            with self.assertRaises(TypeError):
                echo.out_name_kind_(None, "x", bad)

    def test_nothing_is_cut_or_dropped_in_silence(self):
        """What ctypes itself lets through: integers masked, short tuples filled with zeros, odd objects sent as nil."""
        echo, rects = self.echo(), [(1, 2, 3, 4), (5, 6, 7, 8)]
        for objects, words, floats, structs in (([object(), None], [1, 2], [1, 2], rects), ([echo, 1.5j], [1, 2], [1, 2], rects), ([echo, None], [1, -1], [1, 2], rects),
                                                ([echo, None], [1, 1 << 64], [1, 2], rects), ([echo, None], [1, 2.0], [1, 2], rects), ([echo, None], [1, 2], [1, "2"], rects),
                                                ([echo, None], [1, 2], [1, 2], [(1, 2, 3), (1, 2, 3, 4)]), ([echo, None], [1, 2], [1, 2], [(1, 2, 3, -4)] * 2), ([echo, None], [1, 2], [1, 2], [5, 6])):
            with self.assertRaises((TypeError, OverflowError)):
                echo.arrays_b_c_d_range_(objects, words, floats, structs, (0, 2))
        numbers = ag.MetalClass("NSArray").alloc().initWithObjects_count_([-1 << 63, (1 << 63) - 1], 2)
        self.assertEqual([one.longLongValue() for one in numbers], [-1 << 63, (1 << 63) - 1])
        for bad in (1 << 63, 1 << 64, -1 << 64):
            with self.assertRaises(OverflowError):
                ag.MetalClass("NSArray").alloc().initWithObjects_count_([bad], 1)
        echo.bytes_length_out_(ctypes.c_char_p(b"hello"), 5, None)
        self.assertEqual(self.got(), "hello")
        echo.setRegion_(([1, 2, 3], ag.MTLSize(4, 5, 6)))
        self.assertEqual(echo.region(), ((1, 2, 3), (4, 5, 6)))

    def test_what_cannot_be_described_is_not_sent(self):
        echo, sends = self.echo(), fake.counts()["sends"]
        for name in ("setVector_", "noSuchThing", "retain", "release", "autorelease", "dealloc", "performSelector_"):
            with self.assertRaises(AttributeError):
                getattr(echo, name)(*[1] * name.count("_"))
        with self.assertRaises(AttributeError):
            ag.MetalSend(echo, "noSuchThing:", 1)
        with self.assertRaises(AttributeError):
            ag.MetalClass("NSString").stringWithFormat_("%d")
        with self.assertRaises(AttributeError):
            ag.MetalClass("NSArray").arrayWithObjects_(echo)
        for name in ("initWithFormat:locale:", "stringByAppendingFormat:", "appendFormat:", "raise:format:", "filterWithName:keysAndValues:"):
            with self.assertRaisesRegex(AttributeError, "does not tell"):
                ag.MetalSend(echo, name, *["x"] * name.count(":"))
        self.assertLess(fake.counts()["sends"] - sends, 12)

    def test_every_property_of_every_class(self):
        """Set and read back: some 1,100 properties."""
        values = {"@": None, "B": True, "c": True, "Q": 77, "q": -5, "I": 9, "i": -9, "f": 0.5, "d": 0.25, "C": 200}
        done = 0
        for name, (kind, _, _, methods) in fake.classes.items():
            owner = name if kind == "c" else "AGX" + name[3:]
            one = None
            for selector, (types, _, _, _) in methods.items():
                if not selector.startswith("-set") or selector.count(":") != 1 or types[0] != "v" or "signaledValue" in selector.lower():
                    continue
                base = selector[4].lower() + selector[5:-1]
                getter = next((g for g in (base, selector[4:-1], "is" + selector[4:-1]) if "-" + g in methods), None)
                code = types[1][0]
                if getter is None or types[1] == "@?" or code not in values or methods["-" + getter][0][0][0] != code or owner.endswith("Encoder"):
                    continue
                if one is None:
                    one = ag._wrap(fake.lib.fake_test_make(owner.encode()), True)
                value = values[code]
                if types[1] == '@"NSString"':
                    value = "name of it"
                elif types[1] == '@"NSArray"':
                    value = ["a", "b"]
                getattr(one, ag._mangle(selector[1:]))(value)
                got = getattr(one, ag._mangle(getter))()
                self.assertEqual(list(got) if isinstance(value, list) else got, value, (name, selector))
                done += 1
            if one is not None and not owner.endswith(("CommandBuffer", "CommandQueue", "Buffer")):
                one = None
        self.assertGreater(done, 350)

    def test_every_method_compiles(self):
        done = 0
        for name, (kind, _, _, methods) in fake.classes.items():
            pointer = ag._c.objc_getClass((name if kind == "c" else "AGX" + name[3:]).encode())
            for selector in methods:
                where = ag._objc().class_of(pointer) if selector[0] == "+" else pointer
                self.assertTrue(callable(ag._method(where, selector[1:])))
                done += 1
        self.assertEqual(done, 2515)
        self.assertLess(len(ag._objc().prototypes), 180)

    def test_wrong_class_or_protocol(self):
        echo, queue = self.echo(), ag.MetalQueue()
        encoder = queue.commandBuffer().computeCommandEncoder()
        for call in (lambda: encoder.setComputePipelineState_(echo), lambda: encoder.setBuffer_offset_atIndex_(queue, 0, 0), lambda: encoder.setBuffer_offset_atIndex_("x", 0, 0),
                     lambda: queue.setLabel_(5), lambda: queue.setLabel_(echo)):
            with self.assertRaises(TypeError):
                call()
        encoder.endEncoding()

    def test_nil_struct_is_not_sent(self):
        with self.assertRaises(ag.AppleGPUError):
            ag.MetalSend(None, "maxThreadsPerThreadgroup")


    def test_a_framework_adds_methods_to_known_classes(self):
        """A category, which comes when its framework is loaded."""
        echo, other = self.echo(), ag.MetalClass("FakeEcho")
        self.assertFalse(hasattr(echo, "broughtLater") or hasattr(other, "madeLater"))
        self.addCleanup(ag._c.libraries.update, ag._c.libraries.copy())
        ag._c.libraries.pop("MetalPerformanceShaders", None)
        for selector, how in (("-broughtLater", "get u"), ("+madeLater", "")):
            fake._one_method("FakeEcho", "FakeEcho", selector, ["Q"], False, how)
        length = type(echo).bytes_length_out_
        ag.MetalFramework("MetalPerformanceShaders")
        self.assertEqual((echo.broughtLater(), callable(other.madeLater)), (0, True))
        self.assertIn("broughtLater", dir(echo))
        self.assertIs(type(echo).bytes_length_out_, length)      # what was compiled stays
        with self.assertRaises(AttributeError):
            echo.madeLater()


class Strings(Base):
    def test_labels(self):
        buffer = ag.MetalBuffer(16)
        for text in ("", "a", "seven77", "eight888", "longer than a tagged string", "grün ☃ 🎉", "x" * 10000, "null\0inside", "七"):
            buffer.setLabel_(text)
            self.assertEqual(buffer.label(), text)
        buffer.setLabel_(None)
        self.assertIsNone(buffer.label())
        buffer.setLabel_("lone \ud800")
        self.assertEqual(buffer.label(), "lone ?")

    def test_clusters(self):
        for name, first, second in (("NSString", None, b"abc"), ("NSString", None, b"a longer one that is not tagged")):
            text = ag.MetalClass(name).alloc().initWithBytes_length_encoding_(second, len(second), 4)
            self.assertEqual(text, second.decode())
        things = ag.MetalClass("NSArray").alloc().initWithObjects_count_(["a", "bb", 3, 1.5, True], 5)
        self.assertEqual(len(things), 5)
        self.assertEqual(things[0], "a")
        self.assertEqual(things[-4], "bb")
        self.assertEqual([things[2].longLongValue(), things[3].doubleValue(), things[4].boolValue()], [3, 1.5, True])
        with self.assertRaises(IndexError):
            things[5]
        table = ag.MetalClass("NSDictionary").alloc().initWithObjects_forKeys_count_(["x", "y"], ["k", "l"], 2)
        self.assertEqual((table["k"], len(table), sorted(table)), ("x", 2, ["k", "l"]))
        with self.assertRaises(KeyError):
            table["none"]
        data = ag.MetalClass("NSData").dataWithBytes_length_(b"\0\1\2", 3)
        self.assertEqual(bytes(data), b"\0\1\2")


class Ownership(Base):
    def test_one_pointer_one_object(self):
        device = ag.MetalDevice()
        queue = device.newCommandQueue()
        self.assertIs(queue.device(), device)
        self.assertIs(ag.MetalWrap(ag.MetalAddress(queue)), queue)
        self.assertIs(ag.MetalClass("NSString"), ag.MetalClass("NSString"))
        self.assertEqual(len({queue, queue.device(), device, queue}), 2)

    @unittest.skipIf(MAC, "reads counts")
    def test_exact_counts(self):
        device = ag.MetalDevice()
        count = fake.lib.fake_count_of
        buffer = device.newBufferWithLength_options_(16, 0)
        self.assertEqual(count(buffer._pointer), 1)
        command = device.newCommandQueue().commandBuffer()
        self.assertEqual(count(command._pointer), 1)
        with ag.MetalPool():
            second = command.commandQueue().commandBuffer()
            self.assertEqual(count(second._pointer), 2)         # ours and the pool's
        self.assertEqual(count(second._pointer), 1)
        again = ag.MetalWrap(buffer._pointer)
        self.assertIs(again, buffer)
        self.assertEqual(count(buffer._pointer), 1)
        copied = ag.MetalClass("MTLTextureDescriptor").new().copy()
        self.assertEqual(count(copied._pointer), 1)
        blank = ag.MetalClass("MTLTextureDescriptor").alloc()
        self.assertIs(blank.init(), blank)          # init consumes one count and gives one
        self.assertEqual(count(blank._pointer), 1)

    def test_10000_dispatches(self):
        kernel, n = self.kernel("count"), ag.MetalBuffer(4)
        queue, objects = ag.MetalQueue(), len(ag.MetalObjects())
        for i in range(10000):
            work = ag.MetalBegin(queue)
            ag.MetalEncodeDispatch(work, kernel, 1, n)
            ag.MetalCommit(work)
        ag.MetalWait(work)
        work = None
        self.assertEqual(ag.MetalContents(n, "I")[0], 10000)
        self.assertLessEqual(len(ag.MetalObjects()), objects)
        if fake:
            self.assertLess(fake.leaks(self.serial)[0], 40)

    def test_8_threads(self):
        kernel = self.kernel("square")
        problems = []

        def job(seed):
            try:
                queue = ag.MetalQueue()
                for i in range(60):
                    a = ag.MetalBuffer(array.array("f", [seed + i] * 64), label="buffer %d of thread %d" % (i, seed))
                    c = ag.MetalBuffer(256)
                    work = ag.MetalDispatch(kernel, 64, a, c, queue=queue)
                    assert list(ag.MetalContents(c, "f")) == [float((seed + i) ** 2)] * 64
                    assert a.label() == "buffer %d of thread %d" % (i, seed) and a.device() is kernel.device() and work.command_buffers[0].commandQueue() is queue
                    if i % 3 == 0:
                        ag.MetalRelease(a)
            except BaseException as error:
                problems.append(error)
                raise
        before = sys.getswitchinterval()
        sys.setswitchinterval(1e-5)
        try:
            threads = [threading.Thread(target=job, args=(n,)) for n in range(8)]
            [t.start() for t in threads]
            [t.join() for t in threads]
        finally:
            sys.setswitchinterval(before)
        self.assertEqual(problems, [])

    def test_threads_on_one_singleton(self):
        queue = ag.MetalQueue()
        pointer, device = queue._pointer, None

        def job():
            for _ in range(3000):
                one = ag.MetalWrap(pointer).device()
                del one
        before = sys.getswitchinterval()
        sys.setswitchinterval(1e-5)
        try:
            threads = [threading.Thread(target=job) for _ in range(6)]
            [t.start() for t in threads]
            [t.join() for t in threads]
        finally:
            sys.setswitchinterval(before)
        self.assertIsNone(device)

    @unittest.skipIf(MAC, "needs addresses that come back")
    def test_reused_addresses(self):
        fake.lib.fake_quarantine(0)
        try:
            makers = [lambda: ag.MetalClass("MTLTextureDescriptor").new(), lambda: ag.MetalClass("MTLCompileOptions").new(), lambda: ag.MetalClass("MTLSamplerDescriptor").new()]
            addresses, changed, last = set(), 0, {}
            random.seed(9)
            for i in range(5000):
                which = random.randrange(3)
                one = makers[which]()
                self.assertEqual(type(one).__name__, ("MTLTextureDescriptor", "MTLCompileOptions", "MTLSamplerDescriptor")[which])
                changed += last.get(one._pointer) not in (None, type(one).__name__)
                last[one._pointer] = type(one).__name__
                addresses.add(one._pointer)
            self.assertLess(len(addresses), 500)
            self.assertGreater(changed, 500)
        finally:
            del one
            gc.collect()
            fake.lib.fake_quarantine(65536)

    def test_many_objects_and_sweep(self):
        keep = [ag.MetalClass("MTLSamplerDescriptor").new() for _ in range(5000)]
        self.assertGreaterEqual(len(ag.MetalObjects()), 5000)
        del keep
        for _ in range(3000):
            ag.MetalClass("MTLSamplerDescriptor").new()
        self.assertLess(len(ag._runtime.cache), 12000)

    def test_garbage_cycles(self):
        class Node:
            pass
        for _ in range(300):
            a, b = Node(), Node()
            a.other, b.other, a.held, b.held = b, a, ag.MetalClass("MTLSamplerDescriptor").new(), ag.MetalBuffer(16)
        del a, b
        gc.collect()

    def test_released_objects(self):
        device, buffer = ag.MetalDevice(), ag.MetalBuffer(16)
        kernel = ag.MetalClass("MTLComputePipelineDescriptor").new()
        ag.MetalRelease(buffer)
        for use in (lambda: buffer.length(), lambda: ag.MetalContents(buffer), lambda: ag.MetalRelease(buffer), lambda: ag.MetalAddress(buffer),
                    lambda: kernel.setLabel_(buffer), lambda: buffer.anything):
            with self.assertRaises(ag.AppleGPUError):
                use()
        self.assertEqual(repr(buffer), "<released Metal object>")
        for make in (lambda: ag.MetalClass("NSArray").alloc().initWithObjects_count_(["a"], 1), lambda: ag.MetalClass("NSData").dataWithBytes_length_(b"ab", 2),
                     lambda: ag.MetalClass("NSDictionary").alloc().initWithObjects_forKeys_count_(["x"], ["k"], 1), lambda: ag.MetalBuffer(16)):
            one = make()
            ag.MetalRelease(one)
            for use in (len, iter, bytes, bool, lambda o: o[0], lambda o: "a" in o, lambda o: o.__setitem__(0, None)):
                self.assertBad("was released", use, one)
        work = ag.MetalBegin()
        other = ag.MetalBuffer(16)
        ag.MetalEncodeFill(work, other, 1)
        ag.MetalRelease(other)
        self.assertBad("released", ag.MetalCommit, work)
        self.assertEqual(len({device}), 1)

    def test_released_while_others_send(self):
        buffers = [ag.MetalBuffer(16) for _ in range(200)]
        seen = []

        def job():
            for b in buffers:
                try:
                    seen.append(b.hash())
                except ag.AppleGPUError:
                    seen.append(None)
        threads = [threading.Thread(target=job) for _ in range(3)]
        [t.start() for t in threads]
        [t.join() for t in threads]
        for b in buffers:
            ag.MetalRelease(b)
        self.assertEqual(len(seen), 600)

    def test_pools(self):
        queue = ag.MetalQueue()

        def generator():
            with ag.MetalPool():
                yield queue.commandBuffer()
                yield queue.commandBuffer()
        a, b = generator(), generator()
        kept = [next(a), next(b), next(a)]
        a.close()
        self.assertEqual(kept[2].status(), 0)
        b.close()
        with ag.MetalPool():
            c = generator()
            next(c)
        c.close()
        d = generator()
        next(d)
        thread = threading.Thread(target=d.close)
        thread.start()
        thread.join()                               # a foreign thread's pool is left alone ...
        with ag.MetalPool():
            pass
        ag._runtime.thread.pools and ag._runtime.pop(ag._runtime.thread.pools.pop(0)[0])    # ... and ends with its own thread

    def test_asyncio(self):
        queue = ag.MetalQueue()

        async def one(i):
            with ag.MetalPool():
                command = queue.commandBuffer()
            await asyncio.sleep(0)
            return command.status() + i

        async def main():
            return await asyncio.gather(*[one(i) for i in range(50)])
        self.assertEqual(asyncio.run(main()), list(range(50)))

    @unittest.skipIf(MAC, "reads the stand-in's books")
    def test_interrupts(self):
        """Ctrl-C at hundreds of random places: nothing released twice, no open pool or encoder, next to no leak."""
        program = textwrap.dedent("""
            import sys, signal, random, gc, time
            sys.path[:0] = [%r, %r]
            import fakeobjc
            fake = fakeobjc.install()
            import pyapplegpu as ag
            queue, buffer = ag.MetalQueue(), ag.MetalBuffer(64)
            def work():
                for _ in range(40):
                    buffer.setLabel_("a label that is long enough"); buffer.label()
                    command = queue.commandBuffer(); command.addCompletedHandler_(lambda c: None); del command
                    one = ag.MetalBegin(queue); ag.MetalEncodeFill(one, buffer, 1); ag.MetalCommit(one)
                    ag.MetalBuffer(128)
            work()
            serial, count, end = fake.serial(), 0, time.time() + 2
            def interrupt(*_):
                if time.time() < end: raise KeyboardInterrupt
            signal.signal(signal.SIGALRM, interrupt)
            sys.unraisablehook = lambda u: None
            while time.time() < end:
                try:
                    signal.setitimer(signal.ITIMER_REAL, random.uniform(0.0005, 0.01), 0.02)
                    while time.time() < end: work()
                except KeyboardInterrupt: count += 1
                finally: signal.setitimer(signal.ITIMER_REAL, 0)
            time.sleep(0.3); gc.collect()
            assert count > 20 and fake.leaks(serial)[0] < count, (count, fake.leaks(serial))
            assert not ag._objc().thread.pools
            print(fake.log(), end="")
        """)
        run = subprocess.run([sys.executable, "-c", program % (ROOT, EXAMPLES)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60)
        said = run.stdout.splitlines()
        if sys.version_info < (3, 11):      # looks for signals before every instruction: a window of a few remains
            said = [line for line in said if "without endEncoding" not in line or len(said) > 5]
        self.assertEqual((run.returncode, said), (0, []))

    def test_no_pickle(self):
        import copy
        import pickle
        with self.assertRaises(TypeError):
            pickle.dumps(ag.MetalDevice())
        with self.assertRaises(TypeError):
            copy.copy(ag.MetalDevice())
        error = ag.MetalError("domain", 3, "text")
        self.assertEqual((error.domain, error.code, error.text, error.value), ("domain", 3, "text", 999))
        self.assertIsInstance(error, ag.NVMLError)
        self.assertEqual(str(error), "text [domain 3]")

    def test_dir_and_doc(self):
        names = dir(ag.MetalDevice())
        self.assertIn("newBufferWithLength_options_", names)
        self.assertIn("supportsFamily_", names)
        self.assertIn("newCommandQueue", dir(type(ag.MetalDevice())))


class Blocks(Base):
    def handlers(self):
        return ag.MetalQueue().commandBuffer()

    def test_completion(self):
        seen, done = [], threading.Event()
        command = self.handlers()

        def scheduled(c):
            seen.append(("scheduled", c is command))

        def completed(c):
            seen.append(("completed", c is command, threading.current_thread() is not threading.main_thread()))
            done.set()
        command.addScheduledHandler_(scheduled)
        command.addCompletedHandler_(completed)
        command.commit()
        self.assertTrue(done.wait(10))
        command.waitUntilCompleted()
        self.assertEqual(seen, [("scheduled", True), ("completed", True, True)])

    def test_exceptions_stay_inside(self):
        heard = []
        hook, sys.unraisablehook = sys.unraisablehook, lambda u: heard.append(u.exc_type.__name__)
        try:
            for error in (ValueError, KeyboardInterrupt, SystemExit, MemoryError):
                command = self.handlers()

                def fails(c, error=error):
                    raise error("in a handler")
                command.addCompletedHandler_(fails)
                command.commit()
                command.waitUntilCompleted()
            command = self.handlers()
            command.addCompletedHandler_(lambda: None)
            command.commit()
            command.waitUntilCompleted()
            time.sleep(0.05)
        finally:
            sys.unraisablehook = hook
        self.assertEqual(heard, ["ValueError", "KeyboardInterrupt", "SystemExit", "MemoryError", "TypeError"])

    def test_handler_that_holds_its_own_command_buffer(self):
        for _ in range(20):
            command = self.handlers()
            command.addCompletedHandler_(lambda c, mine=command: mine.status())
            command.commit()
            command.waitUntilCompleted()
        del command

    def test_never_called(self):
        command = self.handlers()
        keep = [ag.MetalBuffer(16)]
        command.addCompletedHandler_(lambda c: keep)
        del command, keep

    def test_asynchronous_compile(self):
        if not HAVE_CXX:
            self.skipTest("no C++ compiler")
        results, done = [], threading.Event()

        def ready(library, error):
            results.append((library and list(library.functionNames()), error and (error.code(), error.domain())))
            done.set()
        for source in (SOURCE, "no language"):
            done.clear()
            ag.MetalDevice().newLibraryWithSource_options_completionHandler_(source, None, ready)
            self.assertTrue(done.wait(30))
        self.assertEqual(results[0][1], None)
        self.assertIn("add", results[0][0])
        self.assertEqual(results[1], (None, (3, "MTLLibraryErrorDomain")))

    def test_shared_event_listener(self):
        event, heard, done = ag.MetalEvent(), [], threading.Event()
        listener = ag.MetalClass("MTLSharedEventListener").new()

        def told(which, value):
            heard.append((which is event, value))
            done.set()
        event.notifyListener_atValue_block_(listener, 5, told)
        ag.MetalEventSet(event, 5)
        self.assertTrue(done.wait(10))
        self.assertEqual(heard, [(True, 5)])

    def test_wrong_blocks(self):
        command = self.handlers()
        for bad in (5, "x", [], object()):
            with self.assertRaises(TypeError):
                command.addCompletedHandler_(bad)
        command.addCompletedHandler_(ag.MetalBlock(lambda c: None, "v@?@"))
        with self.assertRaises((TypeError, ValueError)):
            command.addCompletedHandler_(ag.MetalBlock(lambda c: None, "{x=QQQ}@?@"))
        for signature in ("v", "", "v@", "?"):
            with self.assertRaises((TypeError, ValueError)):
                command.addCompletedHandler_(ag.MetalBlock(lambda c: None, signature))

    @unittest.skipIf(MAC, "the stand-in's method")
    def test_a_wrong_argument_after_a_block(self):
        """The block is not left behind (tearDown counts)."""
        echo = ag._wrap(fake.lib.fake_test_make(b"FakeEcho"), True)
        for number in (-1, "x", 5):
            try:
                echo.handler_number_(ag.MetalBlock(print, "v@?Q"), number)
            except (OverflowError, TypeError):
                self.assertNotEqual(number, 5)

    @unittest.skipIf(MAC, "pretends")
    def test_signed_pointers(self):
        """In an arm64e process the address of a function has its signature in the bits over the 47th."""
        command, runtime = self.handlers(), ag._objc()
        harmless, runtime.harmless = runtime.harmless, runtime.harmless | 1 << 55
        try:
            with self.assertRaises(ag.AppleGPUError_NotSupported):
                command.addCompletedHandler_(lambda c: None)
        finally:
            runtime.harmless = harmless

    def test_exit(self):
        """The interpreter ends while handlers, threads, objects and pools are about: no crash, no word."""
        program = textwrap.dedent("""
            import sys, os, threading, time
            sys.path[:0] = [%r, %r]
            import fakeobjc
            if sys.platform != "darwin": fakeobjc.install()
            import pyapplegpu as ag
            queue = ag.MetalQueue(); keep = [ag.MetalBuffer(64) for _ in range(50)]
            event = ag.MetalEvent()
            for i in range(5):
                work = ag.MetalBegin(queue)
                ag.MetalEncodeWait(work, event, 1)
                ag.MetalCommit(work, then=lambda c: c.status())
            ring = []; ring.append((ring, ag.MetalBuffer(16)))
            def sends():
                while True:
                    try: queue.commandBuffer()
                    except ag.AppleGPUError: pass
            threading.Thread(target=sends, daemon=True).start()
            pool = ag.MetalPool(); pool.__enter__()
            class Late:
                def __del__(self): queue.label()
            late = Late()
            import ctypes
            class Timer(threading.Thread): pass
            ag.MetalEventSet(event, 1) if %d else None
            if %d: os._exit(0) if os.fork() == 0 else os.wait()
            if %d: fakeobjc.Fake().lib.fake_late(ctypes.c_void_p(event._pointer))
            sys.exit(0)
        """)
        for signal, fork, late in ((0, 0, 0), (1, 0, 0), (1, 1, 0)) + ((0, 0, 1),) * (not MAC):
            run = subprocess.run([sys.executable, "-W", "ignore", "-c", program % (ROOT, EXAMPLES, signal, fork, late)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120)
            self.assertEqual((run.returncode, run.stdout), (0, ""))

    def test_forked_child(self):
        if not hasattr(os, "fork"):
            self.skipTest("no fork here")
        program = textwrap.dedent("""
            import sys, os
            sys.path[:0] = [%r, %r]
            import fakeobjc
            if sys.platform != "darwin": fakeobjc.install()
            import pyapplegpu as ag
            buffer = ag.MetalBuffer(16); queue = buffer.device().newCommandQueue()
            child = os.fork()
            if not child:
                bad = 0
                for use in (lambda: buffer.length(), lambda: ag.MetalDevice(), lambda: ag.MetalBuffer(4), lambda: queue.commandBuffer(), lambda: ag.MetalContents(buffer)):
                    try: use(); bad += 1
                    except ag.AppleGPUError_NotReady as error: bad += error.reason != "forked_child"
                del buffer, queue
                os._exit(bad)
            status = os.waitpid(child, 0)[1]
            assert buffer.length() == 16
            sys.exit(status >> 8 or status)
        """)
        run = subprocess.run([sys.executable, "-W", "ignore", "-c", program % (ROOT, EXAMPLES)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60)
        self.assertEqual((run.returncode, run.stdout), (0, ""))


@unittest.skipIf(MAC, "these wrappers are the stand-in's")
class Wrappers(Base):
    def check(self, device, kind):
        self.assertEqual(type(device).__name__, kind)
        self.assertEqual(device.name(), "Fake M4")
        self.assertTrue(device.supportsFamily_(1007))
        self.assertEqual(tuple(device.maxThreadsPerThreadgroup()), (1024, 1024, 1024))
        buffer = device.newBufferWithLength_options_(64, 0)
        self.assertEqual(buffer.length(), 64)
        with self.assertRaises(AttributeError):
            device.noSuchThing()
        with self.assertRaises(TypeError):
            device.newBufferWithLength_options_(64)
        self.assertEqual(ag.MetalSend(device, "newCommandQueue").device().name(), "Fake M4")

    def test_debug_layer(self):
        fake.modes(device=1)
        self.check(ag.MetalDevice(), "MTLDebugDevice")
        self.assertEqual(ag.MetalDeviceInfo().name, "Fake M4")

    def test_capture(self):
        fake.modes(device=2)
        device = ag.MetalDevice()
        self.assertFalse(ag._c.class_getInstanceMethod(ag._objc().class_of(device._pointer), ag._selector_of(b"hasUnifiedMemory")))
        self.check(device, "CaptureMTLDevice")
        self.assertTrue(ag.MetalDeviceInfo(device).unified_memory)

    def test_proxy_root_class(self):
        fake.modes(device=3)
        owner = ag._c.MTLCreateSystemDefaultDevice()
        found = ag._wrap(owner.value)
        self.check(found, "FakeProxy")

    def test_without_the_private_function(self):
        """protocol_getMethodDescription alone: encodings without classes and block signatures, which a table has."""
        name, runtime = "_protocol_getMethodTypeEncoding", ag._objc()
        described, known = runtime.described, ag._c.__dict__.pop(name)
        row, ag._PROTOTYPES[name] = ag._PROTOTYPES[name], ("gone", "s", "ppBB", 10)
        ag._LIBRARIES["gone"] = "/nonexistent"
        try:
            runtime.described = runtime._description_of()
        finally:
            ag._PROTOTYPES[name], ag._c.__dict__[name] = row, known
            del ag._LIBRARIES["gone"]
        try:
            kind = ag._objc().class_of(ag.MetalQueue().commandBuffer()._pointer)
            found = ag._parse_method(next(ag._protocol_encodings(kind, ag._selector_of(b"addCompletedHandler:"))).decode())
            self.assertEqual([(one.code, one.name) for one in found], [("v", ""), ("@?", "")])
            done, command = threading.Event(), ag.MetalQueue().commandBuffer()
            ag._method(kind, "addCompletedHandler:")(command, lambda c: done.set())
            command.commit()
            self.assertTrue(done.wait(10))
        finally:
            runtime.described = described

    def test_no_device(self):
        fake.modes(device=4)
        for function in (ag.MetalDevices, ag.MetalDevice, ag.MetalDeviceInfo):
            with self.assertRaises(ag.AppleGPUError_NotSupported):
                function()


class Errors(Base):
    def test_compile_error(self):
        if not HAVE_CXX:
            self.skipTest("no C++ compiler")
        with self.assertRaises(ag.MetalError) as caught:
            ag.MetalCompile("kernel void broken(device float *x [[buffer(0)]]) { x[0] = nothing; }")
        self.assertEqual((caught.exception.domain, caught.exception.code), ("MTLLibraryErrorDomain", 3))
        self.assertIn("nothing", caught.exception.text)

    def test_warning_is_no_error(self):
        if not HAVE_CXX:
            self.skipTest("no C++ compiler")
        self.assertEqual(ag.MetalFunctions(ag.MetalCompile(SOURCE + "// FAKE_WARNING")).__len__(), 10)

    @unittest.skipIf(MAC, "a stand-in's archive")
    def test_failure_without_error(self):
        archive = ag._wrap(fake.lib.fake_test_make(b"AGXBinaryArchive"), True)
        with self.assertRaises(ag.MetalError) as caught:
            archive.serializeToURL_error_(ag._file_url("/tmp/x"))
        self.assertIn("without saying why", caught.exception.text)

    def test_missing_library(self):
        with self.assertRaises(ag.MetalError):
            ag.MetalDevice().newLibraryWithURL_error_(ag._file_url("/nonexistent.metallib"))
        with self.assertRaises(ag.AppleGPUError_NotFound):
            ag.MetalLoad("/nonexistent.metallib")

    @unittest.skipIf(MAC, "the GPU fails as asked")
    def test_gpu_failure(self):
        fake.modes(fail=1)
        work = ag.MetalBegin()
        ag.MetalEncodeFill(work, ag.MetalBuffer(16), 1)
        with self.assertRaises(ag.MetalError) as caught:
            ag.MetalWait(ag.MetalCommit(work))
        self.assertEqual((caught.exception.domain, caught.exception.code), ("MTLCommandBufferErrorDomain", 2))
        self.assertIn("Timeout", caught.exception.text)

    def test_timeout(self):
        event, work = ag.MetalEvent(), ag.MetalBegin()
        ag.MetalEncodeWait(work, event, 1)
        ag.MetalCommit(work)
        with self.assertRaises(ag.AppleGPUError_Timeout):
            ag.MetalWait(work, timeout=0.02)
        with self.assertRaises(ag.AppleGPUError_Timeout):
            ag.MetalEventWait(event, 1, timeout=0.02)
        with self.assertRaises(ag.AppleGPUError_NotReady):
            ag.MetalTimes(work)
        ag.MetalEventSet(event, 1)
        ag.MetalWait(work, timeout=10)

    def test_wrong_values(self):
        kernel, buffer, work = self.kernel("square"), ag.MetalBuffer(4096), ag.MetalBegin()
        encode, bad = ag.MetalEncodeDispatch, self.assertBad
        for grid in (0, -1, (), (1, 2, 3, 4), (4, 0), 1.5, "3", None, (1 << 32,), (1, 1.0)):
            bad("grid", encode, work, kernel, grid, buffer, buffer)
        bad("1024 threads", encode, work, kernel, 64, buffer, buffer, group=1025)
        bad("1024 threads", encode, work, kernel, 64, buffer, buffer, group=(32, 32, 2))
        bad("threadgroup is", encode, work, kernel, 64, buffer, buffer, group=0)
        bad("size of a group", encode, work, kernel, None, buffer, buffer, groups=4)
        bad("not both", encode, work, kernel, 64, buffer, buffer, groups=4, group=4)
        bad("31 buffers", encode, work, kernel, 64, *[buffer] * 32)
        bad("offset 4096", encode, work, kernel, 64, (buffer, 4096))
        bad("offset -4", encode, work, kernel, 64, (buffer, -4))
        bad("4096 bytes go by value", encode, work, kernel, 64, bytes(4097))
        bad("4096 bytes go by value", encode, work, kernel, 64, b"")
        bad("no buffer", encode, work, kernel, 64, "text")
        bad("32 bits", encode, work, kernel, 64, 1 << 32)
        bad("32 bits", encode, work, kernel, 64, -1 << 32)
        bad("MTLBuffer", encode, work, kernel, 64, kernel)
        bad("MTLComputePipelineState", encode, work, buffer, 64)
        bad("multiple of 16", encode, work, kernel, 64, buffer, buffer, memory=[20])
        bad("threadgroup memory", encode, work, kernel, 64, buffer, buffer, memory=[1 << 20])
        bad("MTLTexture", encode, work, kernel, 64, textures=[buffer])
        bad("MTLFence", encode, work, kernel, 64, wait=[buffer])
        bad("MTLFence", encode, work, kernel, 64, buffer, buffer, update=buffer)
        bad("MetalBegin is wanted", encode, None, kernel, 64, buffer, buffer, memory=[16])
        bad("at most 128 MTLTexture", encode, work, kernel, 64, textures=[None] * 129)
        bad("a label is a str", encode, work, kernel, 64, buffer, buffer, label=buffer)
        bad("do not lie", ag.MetalEncodeCopy, work, buffer, buffer, 4096, source_offset=4)
        bad("multiples of 4", ag.MetalEncodeCopy, work, buffer, buffer, 2)
        bad("do not lie", ag.MetalEncodeFill, work, buffer, 1, 0, 8192)
        for other in (kernel, ag.MetalDevice(), ag.MetalFence(), ag.MetalDepthStencil(), "text", None):      # also those that keep facts of their own
            for function in (ag.MetalContents, ag.MetalRead, lambda b: ag.MetalWrite(b, b"1"), lambda b: ag.MetalEncodeFill(work, b, 1), lambda b: ag.MetalEncodeCopy(work, buffer, b, 4)):
                bad("MTLBuffer", function, other)
        for value in (256, -1, 1.0, None):
            bad("0 to 255", ag.MetalEncodeFill, work, buffer, value)
        bad("64-bit", ag.MetalEncodeSignal, work, ag.MetalEvent(), -1)
        bad("MTLEvent", ag.MetalEncodeSignal, work, buffer, 1)
        self.assertEqual(work.operations, [])
        for size in (0, -1, 1 << 60):
            bad("the length of a buffer is 1 to", ag.MetalBuffer, size)
        bad("MTLStorageMode; there is Shared", ag.MetalBuffer, 16, mode="secret")
        bad("memoryless", ag.MetalBuffer, 16, mode="memoryless")
        bad("takes no data", ag.MetalBuffer, b"data", mode="private")
        bad("no buffer of bytes", ag.MetalBuffer, "text")
        bad("not contiguous", ag.MetalBuffer, memoryview(bytes(16))[::2])
        bad("writable", ag.MetalBuffer, bytes(16384), copy=False)
        bad("whole pages", ag.MetalBuffer, bytearray(100), copy=False)
        bad("shared", ag.MetalBuffer, ag.MetalPages(1), copy=False, mode="private")
        bad("private buffer", ag.MetalContents, ag.MetalBuffer(64, mode="private"))
        for form in ("zz", "ff", "", "<f"):
            bad("one letter", ag.MetalContents, buffer, form)
        for length in (0, -1, 1.5):
            bad("a length", ag.MetalPages, length)
        bad("do not lie", ag.MetalWrite, buffer, bytes(8), 4092)
        bad("do not lie", ag.MetalRead, buffer, -1, 4)
        bad("MTLDevice", ag.MetalBuffer, 16, buffer)
        for version in ("new", "", 3.1, "3.1.2", -1):
            bad("language version", ag.MetalCompile, SOURCE, version=version)
        bad("MTLMathMode; there is Safe, Relaxed, Fast", ag.MetalCompile, SOURCE, math="sloppy")
        bad("source is a str", ag.MetalCompile, b"bytes")
        library = ag.MetalCompile(SOURCE)
        for most in (0, -1, 1025, 1.5):
            bad("max_threads", ag.MetalPipeline, ag.MetalFunction(library, "add"), max_threads=most)
        through, buffer_of_arguments = ag.MetalFunction(library, "through"), ag.MetalArgumentBuffer
        bad("member 0", buffer_of_arguments, through, 0, {0: bytes(4096)})       # beyond the struct: it would write over other memory
        bad("member", buffer_of_arguments, through, 0, {-1: buffer})
        bad("0 to 30", buffer_of_arguments, through, 31, {})
        for constant in ({0: "text"}, {0: (1, "double")}, {0: (300, "uchar")}, {0: 1 << 40}):
            bad("is no|type is", ag.MetalFunction, library, "multiply", constant)
        with self.assertRaises(ag.AppleGPUError_NotFound):
            ag.MetalFunction(library, "absent")
        bad("not committed", ag.MetalWait, work)
        for function in (ag.MetalCommit, ag.MetalWait, ag.MetalTimes, ag.MetalDispatchTimes):
            bad("MetalBegin is wanted", function, None)
        ag.MetalWait(ag.MetalCommit(work))
        bad("committed already", ag.MetalCommit, work)
        bad("was committed", encode, work, kernel, 64, buffer, buffer)
        bad("MetalBegin is wanted", encode, None, kernel, 64, buffer, buffer)
        with self.assertRaises(ag.AppleGPUError_NotFound):
            ag.MetalClass("NoSuchClass")
        with self.assertRaises(ag.AppleGPUError_NotSupported):
            ag.MetalFramework("NoSuchFramework")


    def test_a_strangers_mistakes(self):
        """What somebody new to this writes first: the sentence says what is wanted, and where."""
        kernel, buffer, work = self.kernel("square"), ag.MetalBuffer(4096), ag.MetalBegin()
        texture, fence, library, event = ag.MetalTexture(8, 8), ag.MetalFence(), ag.MetalCompile(SOURCE), ag.MetalEvent(shared=False)
        swapped, objects = (ctypes.c_uint32.__ctype_be__ * 4)(), (ctypes.py_object * 2)(1, "x")
        encode, compare = ag.MetalEncodeDispatch, ag.MetalCompare
        for text, function, *arguments, options in (
                ("MetalKernel or MetalPipeline makes one", encode, work, "square", 64, buffer, {}), ("MetalFunction makes one", ag.MetalPipeline, library, {}), ("MetalQueue makes one", ag.MetalBegin, ag.MetalDevice(), {}),
                ("MetalBuffer makes one.*not \\[0, 1", ag.MetalEncodeCopy, work, [0, 1], buffer, {}), ("MTLSharedEvent is wanted .MetalEvent", ag.MetalEventWait, event, 1, {}), ("MetalFence makes one", encode, work, kernel, 8, buffer, {"wait": [event]}),
                ("argument 1: list has no buffer of bytes: give bytes, an array.array or a NumPy array", encode, work, kernel, 8, buffer, [1.0, 2.0], {}), ("argument 0: an MTLBuffer.*textures= takes textures", encode, work, kernel, 8, texture, {}),
                ("argument 1: this Metal object was released", encode, work, kernel, 8, buffer, self.released(), {}), ("argument 2: 1099511627776 does not fit", encode, work, kernel, 8, buffer, buffer, 1 << 40, {}),
                ("a list of MTLTexture objects", encode, work, kernel, 8, buffer, {"textures": texture}), ("a list of MTLFence objects", encode, work, kernel, 8, buffer, {"wait": fence}), ("a list of MTLResource objects", encode, work, kernel, 8, buffer, {"uses": buffer}),
                ("a list of bytes", encode, work, kernel, 8, buffer, {"memory": 1024}), ("group=", encode, work, kernel, None, buffer, {"groups": 4}), ("beside groups=", encode, work, kernel, 8, buffer, {"groups": 4, "group": 4}),
                ("three whole numbers", encode, work, kernel, memoryview(b"12"), buffer, {}), ("big-endian numbers: convert", ag.MetalBuffer, swapped, {}), ("big-endian numbers: convert", ag.MetalWrite, buffer, swapped, {}), ("argument 0: the data holds big-endian", encode, work, kernel, 8, swapped, {}),
                ("Python objects: convert", ag.MetalBuffer, objects, {}), ("ascontiguousarray", ag.MetalBuffer, memoryview(bytes(16))[::2], {}), ('"f" float', ag.MetalContents, buffer, "float32", {}), ('"f" float', ag.MetalContents, buffer, 4, {}), ("a Metal object is wanted", ag.MetalRelease, [buffer], {}),
                ("a list of MTLAllocation", ag.MetalResidencySet, buffer, {}), ("members are .id: value.", ag.MetalArgumentBuffer, ag.MetalFunction(library, "through"), 0, [buffer], {}), ("MetalCommit it first", ag.MetalWait, ag.MetalBegin(), {}),
                ("functions that return a new work", compare, work, work, {}), ("must return a work", compare, lambda: None, lambda: None, {}), ("fewer than 6 runs", compare, print, print, {"n": "30"}), ("warmup is", compare, print, print, {"warmup": -1}),
                ("there is RGBA8", ag.MetalTexture, 8, 8, {"format": "RGBA8"}), ("a label is a str", ag.MetalBegin, {"label": 5}), ("Label of .*Buffer: NSString is wanted", ag.MetalBuffer, 16, {"label": 5}),
                ("NormalizedCoordinates of", ag.MetalSampler, {"normalized": "x"}), ("constants are .index or name: value", ag.MetalFunction, library, "multiply", [1], {}), ("an index is", ag.MetalFunction, library, "multiply", {-1: 1}, {}),
                ("the bytes at '0' do not lie", ag.MetalRead, buffer, "0", {}), ("'4' bytes at 0 do not lie", ag.MetalRead, buffer, 0, "4", {}), ("an address is", ag.MetalWrap, "x", {}), ("list of lengths", ag.MetalHeapPlan, 100, {}),
                ("only a texture can be memoryless", ag.MetalBuffer, 16, {"mode": ag.MTLResourceStorageModeMemoryless})):
            with self.subTest(text):
                self.assertBad(text, function, *arguments, **options)
        self.assertEqual(work.operations, [])
        for mode in ("private", "Private", ag.MTLStorageModePrivate, ag.MTLResourceStorageModePrivate):     # either of Apple's constants
            self.assertEqual(ag.MetalBuffer(16, mode=mode).storageMode(), ag.MTLStorageModePrivate)
        self.assertIsNone(ag.MetalWrap(None))
        member = (ctypes.c_float * 4)(1, 2, 3, 4)
        self.assertEqual(ag.MetalRead(ag.MetalBuffer(member)), bytes(member))
        named = type("Of", (ctypes.LittleEndianStructure,), {"_fields_": [("O", ctypes.c_uint32)]})(7)      # a member of this name is no object
        self.assertEqual(ag.MetalRead(ag.MetalBuffer(named)), struct.pack("<I", 7))
        self.assertEqual(str(ag.MetalError("", 0, "it failed")), "it failed")
        with self.assertRaisesRegex(ag.MetalError, "^[^\\[]+$"):
            ag.MetalArchiveSave(ag.MetalArchive(), "/nonexistent/empty") if not MAC else self.skipTest("Metal's own words")

    def test_numbers_and_lists_of_other_kinds(self):
        """NumPy's numbers have __index__ and are no int; sets, generators and ranges are as good as lists."""
        class Whole:
            def __init__(self, number):
                self.number = number

            def __index__(self):
                return self.number

        data, x, out = array.array("f", range(64)), ag.MetalBuffer(512), ag.MetalBuffer(bytes(16))
        ag.MetalWrite(x, data, Whole(256))
        work = ag.MetalBegin()
        ag.MetalEncodeCopy(work, x, x, source_offset=Whole(256))
        ag.MetalEncodeCopy(work, x, x, Whole(256), source_offset=Whole(0), target_offset=Whole(256))
        ag.MetalEncodeFill(work, out, Whole(0), Whole(8), Whole(8))
        fence = ag.MetalFence()
        ag.MetalEncodeDispatch(work, self.kernel("sums"), Whole(64), (x, Whole(256)), (out, Whole(4)), group=Whole(64), memory=(Whole(n) for n in [1024]),
                               uses={x, out}, wait=iter([fence]), textures={}.values())
        self.assertEqual(work.operations[-1][6], (1024,))
        if not MAC:
            self.assertEqual(ag.MetalContents(ag.MetalWait(ag.MetalCommit(work)) and out, "f")[1], sum(range(64)))
        self.assertEqual(ag.MetalRead(x, Whole(508)), data[-1:].tobytes())
        self.assertEqual(ag.MetalHeapPlan(range(16, 64, 16)), ag.MetalHeapPlan([16, 32, 48]))
        for memory in (3, "16", [16.0], [0], ag.MetalBuffer(16)):
            self.assertBad("a list of bytes", ag.MetalEncodeDispatch, work, self.kernel("sums"), 64, x, out, memory=memory)

    @unittest.skipIf(MAC, "Metal's validation layer ends the process")
    def test_the_stand_in_survives_a_forgotten_argument(self):
        x, out = ag.MetalBuffer(array.array("f", [1] * 64)), ag.MetalBuffer(bytes(16))
        for arguments, memory in (((x, out), []), ((x,), [1024]), ((None, out), [1024])):
            ag.MetalDispatch(self.kernel("sums"), 64, *arguments, group=64, memory=memory)
            self.assertEqual(ag.MetalRead(out), bytes(16))
        ag.MetalDispatch(self.kernel("sums"), 64, x, out, group=64, memory=[1024])
        self.assertEqual(ag.MetalContents(out, "f")[0], 64)

    def released(self):
        one = ag.MetalBuffer(16)
        ag.MetalRelease(one)
        return one

    def test_released_after_recording(self):
        kernel, texture, fence = self.kernel("ones"), ag.MetalTexture, ag.MetalFence
        for option, make in (("textures", lambda: texture(4, 4)), ("uses", lambda: ag.MetalBuffer(16)), ("wait", fence), ("update", fence), (None, lambda: ag.MetalBuffer(16))):
            one, work = make(), ag.MetalBegin()
            if option is None:
                ag.MetalEncodeDispatch(work, kernel, 4, one)
            else:
                ag.MetalEncodeDispatch(work, kernel, 4, **{option: one if option == "update" else [one]})
            ag.MetalRelease(one)
            with self.subTest(option=option):
                self.assertBad("was released", ag.MetalCommit, work)
        for record in (lambda work, b: ag.MetalEncodeFill(work, b, 1), lambda work, b: ag.MetalEncodeCopy(work, ag.MetalBuffer(16), b)):
            one, work = ag.MetalBuffer(16), ag.MetalBegin()
            record(work, one)
            ag.MetalRelease(one)
            self.assertBad("was released", ag.MetalCommit, work)
        event, work = ag.MetalEvent(), ag.MetalBegin()
        ag.MetalEncodeSignal(work, event, 1)
        ag.MetalRelease(event)
        self.assertBad("was released", ag.MetalCommit, work)


    def test_what_is_kept_may_be_released(self):
        work = ag.MetalBegin()
        ag.MetalRelease(work.queue)
        ag.MetalWait(ag.MetalCommit(ag.MetalBegin()))
        ag.MetalRelease(ag.MetalDevice())
        self.assertTrue(ag.MetalDevice().name())
        self.assertBad("was released", ag.MetalCommit, work)


    @contextlib.contextmanager
    def without(self, one, *names):
        """As on a macOS that has not these methods yet."""
        hidden = [(kind, name, vars(kind)[name]) for name in names for kind in type(one).__mro__ if name in vars(kind)]
        self.assertEqual({name for _, name, _ in hidden}, set(names))
        for kind, name, _ in hidden:
            delattr(kind, name)
        try:
            yield
        finally:
            for kind, name, method in hidden:
                setattr(kind, name, method)

    @unittest.skipIf(MAC, "takes methods away from the stand-in")
    def test_on_an_older_macos(self):
        device, event, options = ag.MetalDevice(), ag.MetalEvent(), ag.MetalClass("MTLCompileOptions").new()
        self.assertEqual([ag._compile_options(None, name, None).mathMode() for name in ("safe", "relaxed", "fast")], [0, 1, 2])
        with self.without(options, "setMathMode_"):
            self.assertEqual([ag._compile_options(None, name, None).fastMathEnabled() for name in ("fast", "safe")], [True, False])
            with self.assertRaises(ag.AppleGPUError_NotSupported) as caught:
                ag.MetalCompile(SOURCE, math="relaxed")
            self.assertEqual(caught.exception.reason, ag.REASON_MACOS)
        with self.without(event, "waitUntilSignaledValue_timeoutMS_"):
            with self.assertRaises(ag.AppleGPUError_Timeout):
                ag.MetalEventWait(event, 1, timeout=0.01)
            ag.MetalEventSet(event, 1)
            ag.MetalEventWait(event, 1, timeout=0)
        with self.without(device, "newResidencySetWithDescriptor_error_", "architecture", "supportsRaytracing", "supportsCounterSampling_"):
            info = ag.MetalDeviceInfo()
            self.assertEqual((info.architecture, info.raytracing), (None, None))
            for function, options in ((ag.MetalResidencySet, dict(objects=[])), (ag.MetalTexture, dict(width=8, format="R32Uint", usage="atomic"))):
                with self.assertRaises(ag.AppleGPUError_NotSupported) as caught:
                    function(**options)
                self.assertEqual(caught.exception.reason, ag.REASON_MACOS)
            work = ag.MetalBegin(profile=True)
            ag.MetalEncodeDispatch(work, self.kernel("count"), 4, ag.MetalBuffer(4))
            self.assertEqual({one.method for one in ag.MetalDispatchTimes(ag.MetalWait(ag.MetalCommit(work)))}, {"command buffer"})


class Compute(Base):
    """What PyMetal's compute tests assert, restated, with exact results."""

    def floats(self, *values):
        return ag.MetalBuffer(array.array("f", values))

    def test_device(self):
        info = ag.MetalDeviceInfo()
        self.assertTrue(info.name)
        self.assertGreater(info.working_set_bytes, 0)
        self.assertIn("Metal3", info.families) if not MAC else None
        self.assertEqual(ag.MetalFamilies(), info.families)
        self.assertEqual(ag.MetalString("MTLCommonCounterSetTimestamp"), "timestamp")
        with self.assertRaisesRegex(ag.AppleGPUError, "MTLNoSuchString is missing (?!.*macOS)"):
            ag.MetalString("MTLNoSuchString")
        every = ag.MetalDevices()
        self.assertGreaterEqual(len(every), 1)
        self.assertIn(ag.MetalDevice(), every)
        self.assertIs(ag.MetalDevice(info.registry_id), ag.MetalDevice())
        with self.assertRaises(ag.AppleGPUError_NotFound):
            ag.MetalDevice(12345)

    def test_queue_and_buffer(self):
        device, queue = ag.MetalDevice(), ag.MetalQueue(label="my queue")
        self.assertIs(queue.device(), device)
        self.assertEqual(queue.label(), "my queue")
        for size in (1, 3, 4, 15, 16, 17, 1023, 1024, 4097):
            buffer = ag.MetalBuffer(size)
            self.assertEqual((buffer.length(), len(ag.MetalContents(buffer))), (size, size))
            self.assertGreater(buffer.gpuAddress(), 0)
        view = ag.MetalContents(buffer)
        view[0] = 42
        self.assertEqual((ag.MetalRead(buffer, 0, 1), view.readonly), (b"*", False))
        del buffer
        gc.collect()
        view[1] = 1         # the view keeps the buffer alive

    def test_data_in_and_out(self):
        for data in (b"bytes", bytearray(b"bytearray"), memoryview(b"view"), array.array("d", [1, 2]), (ctypes.c_int * 3)(1, 2, 3)):
            self.assertEqual(ag.MetalRead(ag.MetalBuffer(data)), bytes(data))
        class Length:       # what NumPy's integers are: a number, with the buffer protocol in NumPy's case
            def __index__(self): return 48
        self.assertEqual(ag.MetalBuffer(Length()).length(), 48)
        try:
            import numpy as np
        except ImportError:
            return
        self.assertEqual(ag.MetalBuffer(np.prod((3, 4)) * 4).length(), 48)
        self.assertEqual(ag.MetalBuffer(np.zeros(1, np.int64)).length(), 8)
        x = np.arange(12, dtype=np.float32).reshape(3, 4)
        buffer = ag.MetalBuffer(x)
        y = np.frombuffer(ag.MetalContents(buffer), np.float32).reshape(3, 4)
        self.assertTrue((x == y).all() and y.flags.writeable)
        y[2, 3] = 99
        self.assertEqual(ag.MetalContents(buffer, "f")[11], 99)
        self.assertBad("not contiguous", ag.MetalBuffer, x.T)

    def test_functions(self):
        if not HAVE_CXX:
            self.skipTest("no C++ compiler")
        library = ag.MetalCompile(SOURCE, version="3.0", math="safe", macros={"ONE": 1, "NAME": "x"})
        self.assertIn("add", ag.MetalFunctions(library))
        function = ag.MetalFunction(library, "add")
        self.assertEqual((function.name(), function.functionType()), ("add", ag.MTLFunctionTypeKernel))
        pipeline = ag.MetalPipeline(function, label="adds", max_threads=512)
        limits = ag.MetalPipelineInfo(pipeline)
        self.assertEqual((pipeline.label(), limits.max_threads, limits.simd_width), ("adds", 512, 32))

    def test_add_square_ones(self):
        a, b, c = self.floats(*range(1000)), self.floats(*[0.25] * 1000), ag.MetalBuffer(4000)
        ag.MetalDispatch(self.kernel("add"), 1000, a, b, c)
        self.assertEqual(list(ag.MetalContents(c, "f")), [i + 0.25 for i in range(1000)])
        ag.MetalDispatch(self.kernel("square"), 1000, a, c)
        self.assertEqual(list(ag.MetalContents(c, "f")), [float(i * i) for i in range(1000)])
        ag.MetalDispatch(self.kernel("ones"), None, c, groups=10, group=100)
        self.assertEqual(list(ag.MetalContents(c, "f")), [1.0] * 1000)

    def test_values_and_offsets(self):
        out = ag.MetalBuffer(64)
        ag.MetalDispatch(self.kernel("values"), 1, out, -5, 4000000000, 0.5, True, None, b"\1\7\3")
        self.assertEqual(list(ag.MetalContents(out, "f"))[:5], [-5.0, 4e9, 0.5, 1.0, 7.0])
        a, c = self.floats(*range(64)), ag.MetalBuffer(256)
        ag.MetalDispatch(self.kernel("square"), 8, (a, 32), (c, 64))
        self.assertEqual(list(ag.MetalContents(c, "f"))[16:24], [float(i * i) for i in range(8, 16)])

    def test_grids(self):
        kernel = self.kernel("place")
        for grid in ((7,), (5, 3), (5, 3, 2), (33, 9), 100):
            x, y, z = (list(grid) if isinstance(grid, tuple) else [grid]) + [1] * (3 - (len(grid) if isinstance(grid, tuple) else 1))
            out = ag.MetalBuffer(4 * x * y * z)
            ag.MetalDispatch(kernel, grid, out)
            self.assertEqual(list(ag.MetalContents(out, "I")), [i + 10 * j + 100 * k for k in range(z) for j in range(y) for i in range(x)])

    def test_threadgroup_memory(self):
        x, out = self.floats(*range(1024)), ag.MetalBuffer(16)
        ag.MetalDispatch(self.kernel("sums"), 1024, x, out, group=256, memory=[1024])
        self.assertEqual(list(ag.MetalContents(out, "f")), [float(sum(range(i, i + 256))) for i in range(0, 1024, 256)])

    def test_threadgroup_memory_is_not_inherited(self):
        """One dispatch's memory and the next one's own, static memory are more together than there is."""
        x, out, work = self.floats(*range(64)), ag.MetalBuffer(16), ag.MetalBegin()
        most = ag.MetalDevice().maxThreadgroupMemoryLength()
        ag.MetalEncodeDispatch(work, self.kernel("sums"), 64, x, out, group=64, memory=[most])
        ag.MetalEncodeDispatch(work, self.kernel("reversed"), 64, x, group=64)
        ag.MetalWait(ag.MetalCommit(work))
        self.assertEqual((ag.MetalContents(out, "f")[0], list(ag.MetalContents(x, "f"))), (2016.0, [63.0 - n for n in range(64)]))

    def test_constants(self):
        for constants, factor in (({0: 7}, 7), ({0: (-3, "int")}, -3)):
            x = ag.MetalBuffer(array.array("i", range(10)))
            ag.MetalDispatch(self.kernel("multiply", constants), 10, x)
            self.assertEqual(list(ag.MetalContents(x, "i")), [i * factor for i in range(10)])

    def test_library_from_file(self):
        if MAC or not HAVE_CXX:
            self.skipTest("the stand-in's own format")
        path = os.path.join(fake.folder, "test-%d.metallib" % os.getpid())
        with open(path, "wb") as file:
            file.write(b"MTLB" + SOURCE.encode())
        try:
            self.assertIn("add", ag.MetalFunctions(ag.MetalLoad(path)))
            with open(path, "wb") as file:
                file.write(b"rubbish")
            with self.assertRaises(ag.MetalError):
                ag.MetalLoad(path)
        finally:
            os.remove(path)

    def test_many_in_one_work(self):
        kernel, n, work = self.kernel("count"), ag.MetalBuffer(4), ag.MetalBegin(label="many")
        for i in range(100):
            ag.MetalEncodeDispatch(work, kernel, 10, n, label="count %d" % i if i % 10 == 0 else None)
        ag.MetalWait(ag.MetalCommit(work))
        self.assertEqual(ag.MetalContents(n, "I")[0], 1000)
        self.assertEqual((work.command_buffers[0].label(), work.command_buffers[0].status()), ("many", 4))

    def test_blit(self):
        source, hidden, target = ag.MetalBuffer(bytes(range(256))), ag.MetalBuffer(256, mode="private"), ag.MetalBuffer(256)
        work = ag.MetalBegin()
        ag.MetalEncodeFill(work, target, 66)
        ag.MetalEncodeCopy(work, source, hidden)
        ag.MetalEncodeCopy(work, hidden, target, 64, source_offset=128, target_offset=32)
        ag.MetalWait(ag.MetalCommit(work))
        self.assertEqual(ag.MetalRead(target), b"B" * 32 + bytes(range(128, 192)) + b"B" * 160)

    def test_empty(self):
        ag.MetalWait(ag.MetalCommit(ag.MetalBegin()))
        command = ag.MetalQueue().commandBuffer()
        self.assertIn(command.status(), (0, 1))
        for _ in range(3):
            command.computeCommandEncoder().endEncoding()
            command.blitCommandEncoder().endEncoding()
        command.commit()
        command.waitUntilCompleted()
        self.assertEqual(command.status(), ag.MTLCommandBufferStatusCompleted)
        ag.MetalBegin()         # dropped: costs nothing

    def test_no_copy(self):
        pages = ag.MetalPages(1000)
        self.assertEqual(len(pages), 16384)
        buffer = ag.MetalBuffer(pages, copy=False)
        self.assertEqual(buffer.contents(), ctypes.addressof(ctypes.c_char.from_buffer(pages)))
        ag.MetalDispatch(self.kernel("ones"), 10, buffer)
        self.assertEqual(list(pages.cast("f"))[:11], [1.0] * 10 + [0.0])

    def test_events_between_queues(self):
        event, first, second, buffer = ag.MetalEvent(), ag.MetalQueue(), ag.MetalQueue(), ag.MetalBuffer(16)
        late, early = ag.MetalBegin(second), ag.MetalBegin(first)
        ag.MetalEncodeWait(late, event, 7)
        ag.MetalEncodeFill(late, buffer, 2)
        ag.MetalCommit(late)
        ag.MetalEncodeFill(early, buffer, 1)
        ag.MetalEncodeSignal(early, event, 7)
        ag.MetalWait(ag.MetalCommit(early))
        ag.MetalEventWait(event, 7, 5)
        ag.MetalWait(late)
        self.assertEqual(ag.MetalRead(buffer), b"\2" * 16)
        ag.MetalEventSet(event, 42)
        ag.MetalEventSet(event, 5)          # only rises
        self.assertEqual(event.signaledValue(), 42)
        self.assertIs(event.device() if MAC else event.device(), ag.MetalDevice())
        self.assertIsNotNone(ag.MetalEvent(shared=False).device())

    def test_fences(self):
        fence, kernel, work, c = ag.MetalFence(), self.kernel("ones"), ag.MetalBegin(), ag.MetalBuffer(64)
        self.assertIsNotNone(fence.device())
        ag.MetalEncodeDispatch(work, kernel, 16, c, update=fence)
        ag.MetalEncodeDispatch(work, kernel, 16, c, wait=[fence])
        ag.MetalWait(ag.MetalCommit(work))

    def test_argument_buffer(self):
        data = self.floats(1, 2, 3, 4)
        library = ag.MetalCompile(SOURCE) if HAVE_CXX else self.skipTest("no C++ compiler")
        function = ag.MetalFunction(library, "through")
        arguments = ag.MetalArgumentBuffer(function, 0, {0: data})
        ag.MetalDispatch(ag.MetalPipeline(function), 4, arguments, uses=[data])
        self.assertEqual(list(ag.MetalContents(data, "f")), [2, 3, 4, 5])

    def test_heap(self):
        descriptor = ag.MetalClass("MTLHeapDescriptor").new()
        descriptor.setSize_(1 << 20)
        descriptor.setStorageMode_(ag.MTLStorageModeShared)
        heap = ag.MetalDevice().newHeapWithDescriptor_(descriptor)
        self.assertGreaterEqual(heap.size(), 1 << 20)
        before = heap.maxAvailableSizeWithAlignment_(256)
        buffer = heap.newBufferWithLength_options_(1024, 0)
        self.assertEqual(buffer.length(), 1024)
        self.assertLess(heap.maxAvailableSizeWithAlignment_(256), before)

    def test_residency(self):
        if not hasattr(ag.MetalDevice(), "newResidencySetWithDescriptor_error_"):
            self.skipTest("macOS 15")
        buffers, queue = [ag.MetalBuffer(64) for _ in range(3)], ag.MetalQueue()
        held = ag.MetalResidencySet(buffers, label="mine", queue=queue)
        self.assertEqual((held.allocationCount(), held.containsAllocation_(buffers[0])), (3, True))

    def test_send_budget(self):
        if MAC:
            self.skipTest("the stand-in counts sends")
        kernel, a, b, c, queue = self.kernel("add"), self.floats(*[1] * 64), self.floats(*[2] * 64), ag.MetalBuffer(256), ag.MetalQueue()
        for turn in range(2):
            before = fake.counts()["sends"]
            work = ag.MetalBegin(queue)
            ag.MetalEncodeDispatch(work, kernel, 64, a, b, c)
            ag.MetalCommit(work)
            sent = fake.counts()["sends"] - before
            ag.MetalWait(work)
        self.assertLessEqual(sent, 12)

    def test_memory_and_objects(self):
        before = ag.MetalMemory()
        buffer = ag.MetalBuffer(1 << 20)
        after = ag.MetalMemory()
        self.assertGreaterEqual(after.allocated_bytes - before.allocated_bytes, 1 << 20)
        self.assertEqual(after.objects - before.objects, 1)
        self.assertIn(buffer, ag.MetalObjects())
        self.assertGreaterEqual(after.tracked_bytes, 1 << 20)

    def test_descriptors(self):
        descriptor = ag.MetalClass("MTLTextureDescriptor").texture2DDescriptorWithPixelFormat_width_height_mipmapped_(ag.MTLPixelFormatRGBA8Unorm, 512, 256, False)
        self.assertEqual((descriptor.width(), descriptor.height(), descriptor.pixelFormat()), (512, 256, 70))
        texture = ag.MetalDevice().newTextureWithDescriptor_(descriptor)
        self.assertEqual((texture.width(), texture.pixelFormat()), (512, ag.MTLPixelFormatRGBA8Unorm))
        render = ag.MetalClass("MTLRenderPassDescriptor").renderPassDescriptor()
        render.colorAttachments()[0].setTexture_(texture)
        render.colorAttachments()[0].setClearColor_((0, 0.5, 1, 1))
        self.assertIs(render.colorAttachments()[0].texture(), texture)
        self.assertEqual(tuple(render.colorAttachments()[0].clearColor()), (0, 0.5, 1, 1))
        manager = ag.MetalClass("MTLCaptureManager").sharedCaptureManager()
        self.assertFalse(manager.isCapturing())
        with self.assertRaises(TypeError):
            list(descriptor)


class Timing(Base):
    def profile(self):
        kernel, c, work = self.kernel("ones"), ag.MetalBuffer(256), ag.MetalBegin(profile=True)
        for i in range(3):
            ag.MetalEncodeDispatch(work, kernel, 64, c, label="part %d" % i)
        return ag.MetalDispatchTimes(ag.MetalWait(ag.MetalCommit(work)))

    def test_times(self):
        c = ag.MetalBuffer(256)
        times = ag.MetalTimes(ag.MetalDispatch(self.kernel("ones"), 64, c))
        parts = [times.scheduling_s, times.kernel_s, times.queue_s, times.gpu_s, times.notice_s]
        self.assertGreater(times.gpu_s, 0)
        self.assertGreater(times.total_s, times.gpu_s)
        if None not in parts:
            self.assertAlmostEqual(sum(parts), times.total_s, places=5)

    def test_profile(self):
        times = self.profile()
        self.assertEqual([t.label for t in times], ["part 0", "part 1", "part 2"])
        self.assertTrue(all(t.seconds > 0 for t in times if t.seconds is not None))

    @unittest.skipIf(MAC, "a device without counters")
    def test_profile_of_more_dispatches_than_a_queue_has_command_buffers(self):
        fake.modes(counters=3)
        kernel, n, work, done = self.kernel("count"), ag.MetalBuffer(4), ag.MetalBegin(profile=True), []
        for _ in range(100):        # a queue has 64 command buffers: the 65th waits for one that was committed
            ag.MetalEncodeDispatch(work, kernel, 10, n)
        ag.MetalWait(ag.MetalCommit(work, done.append))
        self.assertEqual((ag.MetalContents(n, "I")[0], len(ag.MetalDispatchTimes(work)), len(done)), (1000, 100, 1))
        self.assertGreater(ag.MetalTimes(work).gpu_s, 0)
        work = ag.MetalBegin(profile=True)
        for number in range(4):
            ag.MetalEncode(work, "none", lambda command, number=number: 1 // (number - 2))
            ag.MetalEncodeDispatch(work, kernel, 10, n)
        with self.assertRaises(ZeroDivisionError):      # the first was committed by then, and is waited for
            ag.MetalCommit(work)
        self.assertBad("committed", ag.MetalCommit, work)
        ag.MetalWait(work)
        self.assertEqual(ag.MetalContents(n, "I")[0], 1010)

    @unittest.skipIf(MAC, "counters fail as asked")
    def test_counter_fall_backs(self):
        self.assertEqual({t.method for t in self.profile()}, {"counters"})
        for mode in (1, 2):
            fake.modes(counters=mode)
            ag._runtime.dead_counters = False
            first, second = self.profile(), self.profile()
            self.assertEqual({t.seconds for t in first}, {None})
            self.assertEqual({t.method for t in second}, {"command buffer"})
            self.assertTrue(all(t.seconds > 0 for t in second))
        ag._runtime.dead_counters = False
        fake.modes(counters=3)
        self.assertEqual({t.method for t in self.profile()}, {"command buffer"})
        fake.modes()
        keep = []
        for _ in range(32):         # the process has 32 sample buffers
            keep.append(ag._samples(ag.MetalDevice(), 2))
        self.assertEqual({t.method for t in self.profile()}, {"command buffer"})

    def test_statistics(self):
        random.seed(5)
        a = [1 + random.random() * 0.1 for _ in range(30)]
        self.assertEqual(ag._compare(a, [x * 1.3 for x in a], "gpu").verdict, "a is quicker")
        self.assertEqual(ag._compare([x * 1.3 for x in a], a, "gpu").verdict, "b is quicker")
        b = a[1:] + a[:1]
        result = ag._compare(a, b, "host")
        self.assertEqual(result.verdict, "no difference shown")
        self.assertTrue(result.ratio_low <= 1 <= result.ratio_high)
        self.assertGreaterEqual(result.confidence, 0.95)
        # how often the interval misses the true median of a lopsided law: at most 5 in 100, give or take
        missed = 0
        for _ in range(400):
            x = [random.expovariate(1) for _ in range(25)]
            k, _ = ag._rank(25)
            x.sort()
            missed += not x[k - 1] <= 0.6931 <= x[25 - k]
        self.assertLess(missed, 36)
        self.assertEqual([ag._rank(n)[0] for n in (6, 10, 20, 30, 100)], [1, 2, 6, 10, 40])
        for n, coverage in ((6, 0.96875), (10, 0.978515625)):       # 2 of 64 ways, 22 of 1024, on both sides
            self.assertEqual(ag._rank(n)[1], coverage)
        k, coverage = ag._rank(2000)
        self.assertTrue(953 <= k <= 958 and 0.95 <= coverage < 0.955, (k, coverage))       # 1000 - 1.96 * sqrt(2000) / 2 = 956

    def test_compare(self):
        kernel, small, c = self.kernel("ones"), 16, ag.MetalBuffer(1 << 20)

        def run(n):
            work = ag.MetalBegin()
            ag.MetalEncodeDispatch(work, kernel, n, c)
            return work
        result = ag.MetalCompare(lambda: run(small), lambda: run(1 << 18), n=10, warmup=1)
        self.assertEqual((result.n, result.verdict), (10, "a is quicker")) if not MAC else None
        self.assertBad("fewer than 6", ag.MetalCompare, None, None, 3)
        self.assertBad("must return a work", ag.MetalCompare, lambda: 1, lambda: 2, 6)
        same = run(small)
        self.assertBad("a new work each time", ag.MetalCompare, lambda: same, lambda: run(small), 6)


class Examples(unittest.TestCase):
    def test_they_run(self):
        if not HAVE_CXX:
            self.skipTest("no C++ compiler to run kernels with")
        import tempfile
        with tempfile.TemporaryDirectory() as folder:
            for name, arguments, says in (("vector_add.py", [], "65536 sums right"), ("zero_copy.py", [], "no copy"), ("matmul.py", ["48"], "optimised"),
                                          ("kernel_ab.py", ["6"], "quicker"), ("blur.py", [], "largest difference 0."), ("blur.py", ["blurred.png", "twice.png"], "twice.png")):
                command = [sys.executable, os.path.join(EXAMPLES, name), *arguments]
                if not MAC:
                    command[1:1] = [os.path.join(EXAMPLES, "fakemac.py"), "--metal"]
                run = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300)
                self.assertEqual(run.returncode, 0, run.stdout)
                self.assertIn(says, run.stdout)


if __name__ == "__main__":
    unittest.main()
