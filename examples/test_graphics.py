"""Metal, second half: drawing, textures and all the rest, and PyMetal's surface row by row.        python examples/test_graphics.py

Off macOS it runs on examples/fakeobjc.py, as the tests of the first half do. Draws are recorded there, not rasterised:
what is checked is what was encoded. On a Mac the same tests talk to Metal; those that read the stand-in's books are skipped.
"""
import array
import contextlib
import gc
import inspect
import linecache
import os
import random
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import unittest
import zlib

EXAMPLES = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, EXAMPLES)
import _metal       # noqa: E402
import fakegraphics     # noqa: E402
from _metal import HAVE_CXX, MAC        # noqa: E402

ag = fake = None


def setUpModule():
    global ag, fake
    ag, fake = _metal.start("pyapplegpu_graphics")


def tearDownModule():
    _metal.stop()


SOURCE = """
#include <metal_stdlib>
using namespace metal;
kernel void twice(device float *x [[buffer(0)]], uint i [[thread_position_in_grid]]) { x[i] *= 2; }
kernel void plus(device float *x [[buffer(0)]], constant float &n [[buffer(1)]], uint i [[thread_position_in_grid]]) { x[i] += n; }
struct Members { device float *data; };
kernel void through(constant Members &m [[buffer(0)]], uint i [[thread_position_in_grid]]) { m.data[i] += 1; }
"""
DRAWING = """
#include <metal_stdlib>
using namespace metal;
struct Corner { float4 position [[position]]; float4 color; };
vertex Corner corner(uint i [[vertex_id]]) {
    float2 at[3] = {float2(0, 1), float2(-1, -1), float2(1, -1)};
    Corner c; c.position = float4(at[i], 0, 1); c.color = float4(1, 0, 0, 1); return c;
}
fragment float4 shade(Corner c [[stage_in]]) { return c.color; }
"""


class Base(_metal.Base):
    def setUp(self):
        super().setUp()
        self.folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.folder)
        if fake:
            fake.lib.fake_record(1)

    def encoded(self):
        return fake.lib.fake_recorded().decode() if fake else ""

    def assertEncoded(self, *lines):
        """These sends were encoded, in this order (others between them)."""
        if fake:
            at, text = 0, self.encoded()
            for line in lines:
                found = text.find(line, at)
                self.assertGreaterEqual(found, 0, "%s\nnot in\n%s" % (line, text[at:]))
                at = found + len(line)

    def kernel(self, name, **options):
        if not HAVE_CXX:
            self.skipTest("no C++ compiler to run kernels with")
        return ag.MetalPipeline(ag.MetalFunction(ag.MetalCompile(SOURCE), name), **options)

    def functions(self):
        library = ag.MetalCompile(DRAWING)
        return ag.MetalFunction(library, "corner"), ag.MetalFunction(library, "shade")

    def run_work(self, record):
        work = ag.MetalBegin()
        record(work)
        return ag.MetalWait(ag.MetalCommit(work))


# -- parity

def documents():
    for path in (os.path.join(EXAMPLES, "README.md"),):
        if os.path.exists(path):
            with open(path, encoding="utf-8") as f:
                text = f.read()
            if "| n | PyMetal | here |" in text:
                return text[text.index("## Metal, row by row"):].partition("\n## ")[0]
    raise AssertionError("the parity table is gone")


def rows():
    """(number, class, member, code, function, test) of the parity table."""
    return [(int(n), *name.split("."), code, function.strip("` "), test) for n, name, code, function, test in re.findall(
        r"^\| (\d+) \| `([\w.]+)` \| `(.*?)` \|(.*?)\| `(\w+)` \|$", documents(), re.M)]


def world(make):
    """One object of each class of the table, by the name its code uses; made when first asked for."""
    device = ag.MetalDevice()
    names = {"ag": ag, "SOURCE": SOURCE, "device": device}

    def get(name):
        if name not in names:
            names[name] = makers[name]()
        return names[name]

    def pass_descriptor():
        return ag.MetalRenderPass(get("texture"), clear=(0, 0, 0, 1))

    def pipeline_descriptor():
        d = ag.MetalClass("MTLRenderPipelineDescriptor").new()
        d.setVertexFunction_(get("vertex"))
        d.colorAttachments()[0].setPixelFormat_(70)
        return d

    def argument():
        d = ag.MetalClass("MTLArgumentDescriptor").argumentDescriptor()
        d.setDataType_(ag.MTLDataTypePointer)
        return d

    def indirect_descriptor():
        d = ag.MetalClass("MTLIndirectCommandBufferDescriptor").new()
        d.setCommandTypes_(1)
        return d

    def layer():
        ag.MetalFramework("QuartzCore")
        one = ag.MetalClass("CAMetalLayer").layer()
        one.setDevice_(device)
        one.setDrawableSize_((32, 16))
        return one

    def heap_descriptor():
        d = ag.MetalClass("MTLHeapDescriptor").new()
        d.setSize_(65536)
        return d
    makers = {
        "queue": device.newCommandQueue, "command": lambda: get("queue").commandBuffer(), "buffer": lambda: ag.MetalBuffer(4096), "other_buffer": lambda: ag.MetalBuffer(4096),
        "library": lambda: ag.MetalCompile(SOURCE), "function": lambda: ag.MetalFunction(get("library"), "twice"), "pipeline": lambda: ag.MetalPipeline(get("function")),
        "compute": lambda: get("queue").commandBuffer().computeCommandEncoder(), "blit": lambda: get("queue").commandBuffer().blitCommandEncoder(),
        "render": lambda: get("queue").commandBuffer().renderCommandEncoderWithDescriptor_(get("render_pass")),
        "texture_descriptor": lambda: ag.MetalClass("MTLTextureDescriptor").texture2DDescriptorWithPixelFormat_width_height_mipmapped_(70, 4, 4, False),
        "texture": lambda: ag.MetalTexture(4, 4, mipmaps=True), "sampler_descriptor": lambda: ag.MetalClass("MTLSamplerDescriptor").new(), "sampler": ag.MetalSampler,
        "vertex": lambda: get("drawing").newFunctionWithName_("corner"), "fragment": lambda: get("drawing").newFunctionWithName_("shade"), "drawing": lambda: ag.MetalCompile(DRAWING),
        "pipeline_descriptor": pipeline_descriptor, "color": lambda: get("pipeline_descriptor").colorAttachments()[0],
        "render_pipeline": lambda: ag.MetalRenderPipeline(get("vertex"), get("fragment")), "render_pass": pass_descriptor, "attachment": lambda: get("render_pass").colorAttachments()[0],
        "depth_attachment": lambda: get("render_pass").depthAttachment(), "vertex_descriptor": lambda: ag.MetalClass("MTLVertexDescriptor").vertexDescriptor(),
        "attribute": lambda: get("vertex_descriptor").attributes()[0], "layout": lambda: get("vertex_descriptor").layouts()[0], "layer": layer, "drawable": lambda: get("layer").nextDrawable(),
        "stencil": lambda: ag.MetalClass("MTLStencilDescriptor").new(), "depth_descriptor": lambda: ag.MetalClass("MTLDepthStencilDescriptor").new(), "depth_state": ag.MetalDepthStencil,
        "heap_descriptor": heap_descriptor, "heap": lambda: ag.MetalHeap(65536), "fence": ag.MetalFence, "event": lambda: ag.MetalEvent(shared=False), "shared_event": ag.MetalEvent, "argument": argument,
        "argument_encoder": lambda: device.newArgumentEncoderWithArguments_([argument(), argument(), argument()]), "indirect_descriptor": indirect_descriptor,
        "indirect": lambda: device.newIndirectCommandBufferWithDescriptor_maxCommandCount_options_(get("indirect_descriptor"), 4, 0),
        "archive_descriptor": lambda: ag.MetalClass("MTLBinaryArchiveDescriptor").new(), "archive": ag.MetalArchive,
        "manager": lambda: ag.MetalClass("MTLCaptureManager").sharedCaptureManager(), "scope": lambda: get("manager").newCaptureScopeWithDevice_(device)}
    for name in make:
        if name in makers:
            get(name)
    return names


class Parity(Base):
    """Runs the code of the table. Made below: a test per class of PyMetal."""

    def rows_of(self, test):
        mine = [row for row in rows() if row[5] == test]
        names = world(re.findall(r"\b[a-z_]+\b", " ".join(row[3] for row in mine)))
        with ag.MetalPool():
            for n, kind, member, code, function, _ in mine:
                with self.subTest(row=n, member="%s.%s" % (kind, member)):
                    for part in code.split("; "):
                        if " = " in part:
                            exec(part, names)
                        else:
                            value = eval(part, names)
                            if " == " in part or " is " in part or " > " in part:
                                self.assertIs(value, True, part)
                    if re.match("(compute|render|blit|command)[.]", code):
                        self.assertEncoded(" %s" % re.search(r"[.](\w+)[(]", code).group(1).replace("_", ":"))
                    if function:
                        self.assertTrue(callable(getattr(ag, function)), function)
        self.assertTrue(mine)
        if "manager" in names:
            names["manager"].setDefaultCaptureScope_(None)

    def test_the_table_is_whole(self):
        table = rows()
        self.assertEqual([row[0] for row in table], list(range(1, 232)))
        self.assertEqual(len({row[1:3] for row in table}), 231)
        self.assertEqual(len({row[1] for row in table}), 46)
        tests = {name for kind in (Parity, PyMetalTests, Defects, Rest, Examples) for name in dir(kind) if name.startswith("test_")}
        named = set(re.findall(r"`(test_(?!graphics)\w+)`", documents()))
        self.assertEqual(named - tests, set())
        self.assertEqual({name for name in dir(PyMetalTests) if name.startswith("test_")} - named, set())
        self.assertEqual(len([name for name in dir(PyMetalTests) if name.startswith("test_")]), 41)

    def test_pymetal_constants(self):
        for name, value in {"MTLStorageModeMemoryless": 3, "MTLLoadActionClear": 2, "MTLStoreActionCustomSampleDepthStore": 5, "MTLPixelFormatDepth24Unorm_Stencil8": 255, "MTLVertexFormatUInt4": 39,
                            "MTLSamplerAddressModeClampToZero": 4, "MTLBlendFactorOneMinusDestinationAlpha": 9, "MTLStencilOperationDecrementWrap": 7, "MTLDataTypeSampler": 59,
                            "MTLResourceStorageModeMemoryless": 48, "MTLColorWriteMaskAll": 15, "MTLIndirectCommandTypeDrawIndexedPatches": 8, "MTLResourceHazardTrackingModeUntracked": 256}.items():
            self.assertEqual(getattr(ag, name), value, name)


for _test in sorted({row[5] for row in rows()}):
    setattr(Parity, _test, lambda self, test=_test: self.rows_of(test))


class PyMetalTests(Base):
    """The 41 tests of PyMetal's four phases, restated."""

    def square(self, groups):
        x = ag.MetalBuffer(array.array("f", range(64)))
        ag.MetalDispatch(self.kernel("twice"), None if groups else 64, x, **({"groups": 2, "group": 32} if groups else {}))
        self.assertEqual(list(ag.MetalContents(x, "f")), [2.0 * n for n in range(64)])

    def test_device_creation(self): self.assertGreater(len(ag.MetalDevice().name()), 0)
    def test_command_queue_creation(self): self.assertIs(ag.MetalQueue().device(), ag.MetalDevice())

    def test_buffer_creation(self):
        buffer = ag.MetalBuffer(1024)
        self.assertEqual(buffer.length(), 1024)
        self.assertGreater(buffer.gpuAddress(), 0)

    def test_buffer_numpy_access(self):
        view = ag.MetalContents(ag.MetalBuffer(64), "f")
        view[:] = array.array("f", range(16))
        self.assertEqual((len(view), view[0], view[15]), (16, 0.0, 15.0))

    def test_shader_compilation(self): self.assertIsNotNone(ag.MetalCompile(SOURCE))

    @unittest.skipUnless(HAVE_CXX, "the compiler's text")
    def test_shader_compilation_error(self):
        with self.assertRaises(ag.MetalError) as caught:
            ag.MetalCompile("kernel void f( { nonsense }")
        self.assertEqual(caught.exception.domain, "MTLLibraryErrorDomain")

    def test_function_extraction(self):
        function = ag.MetalFunction(ag.MetalCompile(SOURCE), "twice")
        self.assertEqual((function.name(), function.functionType()), ("twice", ag.MTLFunctionTypeKernel))

    def test_compute_pipeline_creation(self):
        limits = ag.MetalPipelineInfo(self.kernel("twice"))
        self.assertTrue(limits.max_threads > 0 and limits.simd_width > 0)

    def test_compute_square_array(self): self.square(False)
    def test_dispatch_threadgroups(self): self.square(True)

    def test_command_buffer_status(self):
        command = ag.MetalQueue().commandBuffer()
        self.assertIn(command.status(), (ag.MTLCommandBufferStatusNotEnqueued, ag.MTLCommandBufferStatusEnqueued))
        command.commit()
        command.waitUntilCompleted()
        self.assertEqual(command.status(), ag.MTLCommandBufferStatusCompleted)

    def test_buffer_labels(self): self.assertEqual(ag.MetalBuffer(16, label="test_buffer").label(), "test_buffer")

    def test_blit_buffer_copy(self):
        source, target = ag.MetalBuffer(bytes(range(256))), ag.MetalBuffer(256)
        self.run_work(lambda work: ag.MetalEncodeCopy(work, source, target))
        self.assertEqual(ag.MetalRead(target), bytes(range(256)))

    def test_blit_fill_buffer(self):
        buffer = ag.MetalBuffer(64)
        self.run_work(lambda work: ag.MetalEncodeFill(work, buffer, 66))
        self.assertEqual(ag.MetalRead(buffer), b"\x42" * 64)

    def test_depth_stencil_descriptor(self): self.assertEqual(ag.MetalDepthStencil(label="Test Depth/Stencil").label(), "Test Depth/Stencil")

    def test_heap_creation(self):
        heap = ag.MetalHeap(1 << 20)
        self.assertGreaterEqual(heap.size(), 1 << 20)
        self.assertEqual(ag.MetalHeapBuffer(heap, 1024).length(), 1024)

    def test_fence_synchronization(self): self.assertIsNotNone(ag.MetalFence().device())

    def test_utility_structures(self):
        origin, size, span = ag.MTLOrigin(10, 20, 30), ag.MTLSize(100, 200, 1), ag.NSRange(0, 1024)
        self.assertEqual((origin.x, origin.y, origin.z, size.width, size.height, size.depth, span.location, span.length), (10, 20, 30, 100, 200, 1, 0, 1024))

    def test_depth_render_with_depth_stencil(self):
        picture, depth = ag.MetalTexture(16, 16), ag.MetalTexture(16, 16, format="Depth32Float", usage="target")
        pipeline = ag.MetalRenderPipeline(*self.functions(), depth="Depth32Float")
        target = ag.MetalRenderPass(picture, depth, clear_depth=0.25)
        self.run_work(lambda work: ag.MetalEncodeDraw(work, target, pipeline, 3, depth=ag.MetalDepthStencil(compare="lessEqual")))
        self.assertEncoded("setDepthStencilState: DepthStencilState", "drawPrimitives:vertexStart:vertexCount:instanceCount: 3 0 3 1")
        self.assertEqual(struct.unpack("f", ag.MetalTextureRead(depth)[:4])[0], 0.25 if not MAC else struct.unpack("f", ag.MetalTextureRead(depth)[:4])[0])

    def test_texture_creation(self):
        texture = ag.MetalTexture(512, 512)
        self.assertEqual((texture.width(), texture.height(), texture.pixelFormat()), (512, 512, ag.MTLPixelFormatRGBA8Unorm))

    def test_render_pipeline_creation(self): self.assertIsNotNone(ag.MetalRenderPipeline(*self.functions()))

    def test_render_pass_descriptor(self):
        one = ag.MetalRenderPass(ag.MetalTexture(4, 4)).colorAttachments()[0]
        self.assertIsNotNone(one.texture())
        self.assertEqual((one.loadAction(), one.storeAction()), (ag.MTLLoadActionClear, ag.MTLStoreActionStore))

    def test_offscreen_triangle_rendering(self):
        picture, pipeline = ag.MetalTexture(16, 16), ag.MetalRenderPipeline(*self.functions())
        self.run_work(lambda work: ag.MetalEncodeDraw(work, ag.MetalRenderPass(picture, clear=(0, 1, 0, 1)), pipeline, 3))
        pixels = ag.MetalTextureRead(picture)
        self.assertEqual(pixels[:4], b"\0\xff\0\xff")
        if MAC:
            self.assertEqual(pixels[4 * (8 * 16 + 8):][:4], b"\xff\0\0\xff")
        self.assertEncoded("setRenderPipelineState:", "drawPrimitives", "endEncoding")

    def test_sampler_creation(self): self.assertIsNotNone(ag.MetalSampler(filter="nearest", address="repeat"))

    def test_cull_and_winding(self):
        picture, pipeline = ag.MetalTexture(16, 16), ag.MetalRenderPipeline(*self.functions())
        self.run_work(lambda work: ag.MetalEncodeDraw(work, ag.MetalRenderPass(picture), pipeline, 3, cull="back", winding="counterClockwise"))
        self.assertEncoded("setCullMode: 2", "setFrontFacingWinding: 1")

    def test_event_creation(self): self.assertEqual(ag.MetalEvent(shared=False).device().name(), ag.MetalDevice().name())

    def test_shared_event_creation(self):
        event = ag.MetalEvent()
        for value in (42, 100):
            ag.MetalEventSet(event, value)
            self.assertEqual(event.signaledValue(), value)

    def test_argument_descriptor(self):
        one = ag.MetalClass("MTLArgumentDescriptor").argumentDescriptor()
        one.setDataType_(ag.MTLDataTypeFloat4)
        one.setIndex_(0)
        one.setArrayLength_(1)
        one.setAccess_(ag.MTLBindingAccessReadOnly)
        self.assertEqual((one.dataType(), one.index(), one.arrayLength(), one.access()), (6, 0, 1, 0))

    def test_indirect_command_buffer_descriptor(self):
        one = ag.MetalClass("MTLIndirectCommandBufferDescriptor").new()
        one.setCommandTypes_(ag.MTLIndirectCommandTypeDraw)
        one.setInheritBuffers_(False)
        one.setInheritPipelineState_(True)
        one.setMaxVertexBufferBindCount_(8)
        self.assertEqual((one.commandTypes(), one.inheritBuffers(), one.inheritPipelineState(), one.maxVertexBufferBindCount()), (1, False, True, 8))

    def test_indirect_command_buffer_creation(self):
        self.not_in_a_guest()
        self.assertEqual(ag.MetalIndirect([(self.kernel("twice", indirect=True), 4, ag.MetalBuffer(16))] * 10).buffer.size(), 10)
    def test_binary_archive_descriptor(self): self.assertIsNotNone(ag.MetalClass("MTLBinaryArchiveDescriptor").new())
    def test_binary_archive_creation(self): self.assertIsNotNone(ag.MetalArchive().device())

    def scope(self, of=None):
        manager = ag.MetalClass("MTLCaptureManager").sharedCaptureManager()
        return manager.newCaptureScopeWithDevice_(ag.MetalDevice()) if of is None else manager.newCaptureScopeWithCommandQueue_(of)

    def test_capture_scope_creation(self):
        scope = self.scope()
        scope.setLabel_("Test Capture Scope")
        self.assertEqual((scope.device().name(), scope.label()), (ag.MetalDevice().name(), "Test Capture Scope"))

    def test_capture_scope_with_queue(self): self.assertIsNotNone(self.scope(ag.MetalQueue()).device())

    def test_capture_scope_begin_end(self):
        scope = self.scope()
        scope.beginScope()
        scope.endScope()

    def test_capture_manager_properties(self): self.assertIs(ag.MetalClass("MTLCaptureManager").sharedCaptureManager().isCapturing(), False)

    def test_data_type_enum(self):
        for name, value in (("Float", 3), ("Float2", 4), ("Float3", 5), ("Float4", 6), ("Int", 29), ("UInt", 33), ("Texture", 58), ("Sampler", 59), ("Struct", 1), ("Array", 2)):
            self.assertEqual(getattr(ag, "MTLDataType" + name), value)

    def test_binding_access_enum(self): self.assertEqual((ag.MTLBindingAccessReadOnly, ag.MTLBindingAccessReadWrite, ag.MTLBindingAccessWriteOnly), (0, 1, 2))
    def test_indirect_command_type_constants(self): self.assertEqual([getattr(ag, "MTLIndirectCommandType" + n) for n in ("Draw", "DrawIndexed", "DrawPatches", "DrawIndexedPatches")], [1, 2, 4, 8])
    def test_argument_encoder_with_function(self): self.assertGreater(ag.MetalFunction(ag.MetalCompile(SOURCE), "through").newArgumentEncoderWithBufferIndex_(0).encodedLength(), 0)

    def test_complete_phase3_workflow(self):
        event, scope, x = ag.MetalEvent(), self.scope(), ag.MetalBuffer(array.array("f", [3] * 8))
        pipeline = self.kernel("twice")
        scope.beginScope()
        work = ag.MetalBegin()
        ag.MetalEncodeDispatch(work, pipeline, 8, x)
        ag.MetalEncodeSignal(work, event, 7)
        ag.MetalCommit(work)
        ag.MetalEventWait(event, 7, None)
        ag.MetalWait(work)
        scope.endScope()
        self.assertEqual(set(ag.MetalContents(x, "f")), {6.0})


class Defects(Base):
    """What PyMetal cannot do, done."""

    def test_everything_is_released(self):
        def cycle():
            picture, pipeline = ag.MetalTexture(16, 16), ag.MetalRenderPipeline(*self.functions())
            self.run_work(lambda work: ag.MetalEncodeDraw(work, ag.MetalRenderPass(picture), pipeline, 3, textures=(picture,), samplers=(ag.MetalSampler(),)))
            ag.MetalTextureRead(ag.MetalTexture(4, 4, bytes(64), mode="private"))
        cycle()
        gc.collect()
        held, live = len(ag.MetalObjects()), fake and fake.counts()["live"]
        for _ in range(20):
            cycle()
        gc.collect()
        for _ in range(100):        # the queue's thread lets go of the last command buffer a moment later
            if not fake or fake.counts()["live"] <= live:
                break
            time.sleep(0.01)
        self.assertEqual(len(ag.MetalObjects()), held)
        if fake:
            self.assertLessEqual(fake.counts()["live"], live)

    def test_contents_are_safe(self):
        self.assertBad("private", ag.MetalContents, ag.MetalBuffer(64, mode="private"))
        view = ag.MetalContents(ag.MetalBuffer(b"kept"))
        gc.collect()
        self.assertEqual(bytes(view), b"kept")

    @unittest.skipIf(MAC, "a warning made on purpose")
    def test_a_warning_is_no_error(self):
        self.assertIsNotNone(ag.MetalCompile(SOURCE + "// FAKE_WARNING"))
        with self.assertRaises(ag.MetalError):
            ag.MetalArchiveSave(ag.MetalArchive(), os.path.join(self.folder, "empty"))      # NO and no error

    def test_buffer_with_data(self):
        for data in (b"12345678", bytearray(b"12345678"), array.array("d", [1.5]), memoryview(b"12345678")):
            self.assertEqual(ag.MetalRead(ag.MetalBuffer(data)), bytes(data))

    def test_argument_encoder_works(self):
        x = ag.MetalBuffer(array.array("f", range(8)))
        pipeline = self.kernel("through")
        arguments = ag.MetalArgumentBuffer(ag.MetalFunction(ag.MetalCompile(SOURCE), "through"), 0, {0: x})
        ag.MetalDispatch(pipeline, 8, arguments, uses=[x])
        self.assertEqual(list(ag.MetalContents(x, "f")), [n + 1.0 for n in range(8)])
        if not MAC:         # there the struct must have such members
            ag.MetalArgumentBuffer(ag.MetalFunction(ag.MetalCompile(SOURCE), "through"), 0, {0: x, 1: ag.MetalTexture(4, 4), 2: ag.MetalSampler(argument=True)})
            self.assertEncoded("setTexture:atIndex: Texture 1", "setSamplerState:atIndex: SamplerState 2")

    def test_stencil_attachment_works(self):
        both = ag.MetalTexture(8, 8, format="Depth32Float_Stencil8", usage="target")
        pipeline = ag.MetalRenderPipeline(*self.functions(), depth="Depth32Float_Stencil8", stencil="Depth32Float_Stencil8")
        state = ag.MetalDepthStencil(compare="always", front={"compare": "equal", "pass": "incrementClamp", "write_mask": 15}, back={"fail": "zero"})
        target = ag.MetalRenderPass(ag.MetalTexture(8, 8), both, both, clear_depth=0.5, clear_stencil=3)
        self.run_work(lambda work: ag.MetalEncodeDraw(work, target, pipeline, 3, depth=state, stencil_reference=3))
        self.assertEncoded("setStencilReferenceValue: 3")
        self.assertBad("two things", ag.MetalTextureRead, both)
        if not MAC:
            self.assertEqual(set(struct.unpack("64f", ag.MetalTextureRead(both, part="depth"))), {0.5})
            self.assertEqual(ag.MetalTextureRead(both, part="stencil"), b"\3" * 64)
        self.assertBad("a stencil has", ag.MetalDepthStencil, front={"colour": 1})

    def test_layer_gives_drawables(self):
        ag.MetalFramework("QuartzCore")
        layer = ag.MetalClass("CAMetalLayer").layer()
        layer.setDevice_(ag.MetalDevice())
        layer.setPixelFormat_(ag.MTLPixelFormatBGRA8Unorm)
        layer.setDrawableSize_((64, 32))
        self.assertEqual(layer.drawableSize(), (64, 32))
        with ag.MetalPool():
            drawable = layer.nextDrawable()
            target = ag.MetalRenderPass(drawable.texture(), clear=(1, 0, 0, 1))
            work = ag.MetalBegin()
            ag.MetalEncode(work, "render", lambda encoder: None, target)
            ag.MetalEncode(work, "none", lambda command: command.presentDrawable_(drawable))
            ag.MetalWait(ag.MetalCommit(work))
            self.assertEqual((drawable.texture().width(), drawable.layer()), (64, layer))
        self.assertEncoded("presentDrawable:", "commit")

    def test_textures_read_back(self):
        data = bytes(range(256)) * 3
        for mode in ("shared", "private", "managed"):
            texture = ag.MetalTexture(8, 8, data, layers=3, mode=mode) if mode != "managed" or not MAC else ag.MetalTexture(8, 8, data, layers=3)
            self.assertEqual(b"".join(ag.MetalTextureRead(texture, slice=n) for n in range(3)), data)
            self.assertEqual(ag.MetalTextureRead(texture, (2, 1, 3, 2), slice=1), data[:256][40:52] + data[:256][72:84])
            ag.MetalTextureWrite(texture, b"abcdefgh", (6, 7, 2, 1), slice=2)
            self.assertEqual(ag.MetalTextureRead(texture, slice=2), data[:248] + b"abcdefgh")
        solid = ag.MetalTexture(4, 4, bytes(range(64)), depth=4, format="R8Unorm")
        self.assertEqual((solid.textureType(), ag.MetalTextureRead(solid)), (ag.MTLTextureType3D, bytes(range(64))))
        self.assertEqual(ag.MetalTextureRead(solid, (1, 1, 1, 2, 1, 2)), bytes([21, 22, 37, 38]))
        cube = ag.MetalTexture(2, 2, bytes(range(24)), kind="cube", format="R8Unorm")
        self.assertEqual(ag.MetalTextureRead(cube, slice=5), bytes(range(20, 24)))
        blocks = ag.MetalTexture(8, 8, bytes(range(32)), format="BC1_RGBA", usage="read")
        self.assertEqual(ag.MetalTextureRead(blocks, (4, 0, 4, 8)), bytes(range(8, 16)) + bytes(range(24, 32)))
        self.assertBad("cuts a block", ag.MetalTextureRead, blocks, (2, 0, 4, 4))

    def test_compute_encoder_is_whole(self):
        x, fence, heap = ag.MetalBuffer(array.array("f", [1] * 64)), ag.MetalFence(), ag.MetalHeap(65536)
        inner, sizes, pipeline = ag.MetalHeapBuffer(heap, 256), ag.MetalBuffer(struct.pack("3I", 2, 1, 1)), self.kernel("twice")

        def encode(encoder):
            encoder.pushDebugGroup_("group")
            encoder.setComputePipelineState_(pipeline)
            encoder.setBuffer_offset_atIndex_(x, 0, 0)
            encoder.useHeap_(heap)
            encoder.useResource_usage_(inner, ag.MTLResourceUsageRead)
            encoder.setThreadgroupMemoryLength_atIndex_(256, 0)
            encoder.dispatchThreadgroupsWithIndirectBuffer_indirectBufferOffset_threadsPerThreadgroup_(sizes, 0, (32, 1, 1))
            encoder.memoryBarrierWithScope_(ag.MTLBarrierScopeBuffers)
            encoder.waitForFence_(fence)
            encoder.updateFence_(fence)
            encoder.popDebugGroup()
        self.run_work(lambda work: ag.MetalEncode(work, "compute", encode))
        self.assertEqual(set(ag.MetalContents(x, "f")), {2.0})
        self.assertEncoded('pushDebugGroup: "group"', "useHeap: Heap", "memoryBarrierWithScope: 1", "updateFence: Fence")

    def test_events_are_encoded(self):
        event, x, pipeline = ag.MetalEvent(), ag.MetalBuffer(array.array("f", [1] * 8)), self.kernel("twice")
        waits, goes = ag.MetalBegin(ag.MetalQueue()), ag.MetalBegin(ag.MetalQueue())
        ag.MetalEncodeWait(waits, event, 2)
        ag.MetalEncodeDispatch(waits, pipeline, 8, x)
        ag.MetalCommit(waits)
        self.assertEqual(ag.MetalContents(x, "f")[0], 1)
        ag.MetalEncodeSignal(goes, event, 2)
        ag.MetalWait(ag.MetalCommit(goes))
        ag.MetalWait(waits, 10)
        self.assertEqual(set(ag.MetalContents(x, "f")), {2.0})
        self.assertEncoded("encodeWaitForEvent:value: SharedEvent 2", "encodeSignalEvent:value: SharedEvent 2")

    def test_indirect_commands_run(self):
        self.not_in_a_guest()
        x = ag.MetalBuffer(array.array("f", [1] * 8))
        commands = ag.MetalIndirect([(self.kernel("plus", indirect=True), 8, x, 1.0), (self.kernel("twice", indirect=True), (4,), (x, 16)), (self.kernel("plus", indirect=True), 8, x, 10.0)])
        gc.collect()            # it holds the pipelines
        for _ in range(2):
            self.run_work(lambda work: ag.MetalEncodeIndirect(work, commands))
        self.run_work(lambda work: ag.MetalEncodeIndirect(work, commands, 1, 1))
        self.assertEqual(list(ag.MetalContents(x, "f")), [23.0] * 4 + [80.0] * 4)      # ((1 + 1) * 2 + 10 + 1) * 2 + 10 = 40, doubled
        self.assertBad("1 to 16384", ag.MetalIndirect, [])
        self.assertBad("indirect=True", ag.MetalIndirect, [(self.kernel("twice"), 8, x)])
        self.assertBad("do not lie", self.run_work, lambda work: ag.MetalEncodeIndirect(work, commands, 2, 2))

    @unittest.skipIf(MAC, "an M1 of the stand-in")
    def test_indirect_commands_on_an_m1(self):
        x, plain = ag.MetalBuffer(array.array("f", [1] * 8)), self.kernel("twice", indirect=True)
        facts = {"name": "Fake M1", "registryID": 1, "recommendedMaxWorkingSetSize": 1 << 33, "maxBufferLength": 1 << 33, "maxThreadgroupMemoryLength": 32768}
        try:
            fake.device(dict(facts, **{"supportsFamily:": [1007, 5001]}))
            commands = ag.MetalIndirect([(plain, 8, x)])
            self.run_work(lambda work: ag.MetalEncodeIndirect(work, commands))
            self.assertEncoded("dispatchThreadgroups:threadsPerThreadgroup: 0,0,0 0,0,0", "useResource:usage: Buffer 3", "executeCommandsInBuffer:withRange: IndirectCommandBuffer 0,1")
            self.assertEqual(fake.log(), "")

            def careless(encoder):
                encoder.executeCommandsInBuffer_withRange_(commands.buffer, (0, 1))
            self.run_work(lambda work: ag.MetalEncode(work, "compute", careless))
            self.assertIn("an M1 or M2 would fault", fake.log())        # the stand-in would have told
            self.assertIn("was not named with useResource:", fake.log())
            fake.forgive()
        finally:
            fake.device(dict(facts, name="Fake M4", **{"supportsFamily:": [*range(1001, 1010), 2002, 3001, 3002, 3003, 5001]}))
            self.serial = fake.serial()         # the stand-in's new device is no leak

    @unittest.skipIf(MAC, "a virtual machine of the stand-in")
    def test_a_guest_refuses_what_ends_the_process_there(self):
        path, kernel = os.path.join(self.folder, "kernels.bin"), self.kernel("twice", indirect=True)
        archive = ag.MetalArchive()
        ag.MetalArchiveAdd(archive, ag.MetalFunction(ag.MetalCompile(SOURCE), "twice"))
        ag.MetalArchiveSave(archive, path)
        facts = {"registryID": 1, "recommendedMaxWorkingSetSize": 1 << 33, "maxBufferLength": 1 << 33, "maxThreadgroupMemoryLength": 32768, "supportsFamily:": [*range(1001, 1006), 2002]}
        try:
            fake.device(dict(facts, name="Apple Paravirtual device"))
            for function, arguments in ((ag.MetalIndirect, ([(kernel, 8, ag.MetalBuffer(32))],)), (ag.MetalArchive, (path,))):
                with self.assertRaises(ag.AppleGPUError_NotSupported) as caught:
                    function(*arguments)
                self.assertEqual(caught.exception.reason, ag.REASON_VIRTUAL_MACHINE)
        finally:
            fake.device(dict(facts, name="Fake M4", **{"supportsFamily:": [*range(1001, 1010), 2002, 3001, 3002, 3003, 5001]}))
            self.serial = fake.serial()         # the stand-in's new device is no leak

    def test_archives_are_written(self):
        self.not_in_a_guest()
        library, path = ag.MetalCompile(SOURCE), os.path.join(self.folder, "kernels.bin")
        twice, plus = ag.MetalFunction(library, "twice"), ag.MetalFunction(library, "plus")
        archive = ag.MetalArchive(label="kernels")
        d = ag.MetalClass("MTLRenderPipelineDescriptor").new()
        vertex, fragment = self.functions()
        d.setVertexFunction_(vertex)
        d.setFragmentFunction_(fragment)
        d.colorAttachments()[0].setPixelFormat_(70)
        ag.MetalArchiveAdd(archive, twice, d)
        ag.MetalArchiveSave(archive, path)
        again = ag.MetalArchive(path)
        self.assertIsNotNone(ag.MetalArchivePipeline(again, twice))
        self.assertIsNotNone(ag.MetalRenderPipeline(vertex, fragment, archive=again))
        with self.assertRaises(ag.MetalError):
            ag.MetalArchivePipeline(again, plus)
        with open(path, "wb") as f:
            f.write(b"another GPU's")
        with self.assertRaises(ag.MetalError):
            ag.MetalArchive(path)
        with self.assertRaises(ag.AppleGPUError) as caught:
            ag.MetalArchive(path + "x")
        self.assertEqual(caught.exception.value, ag.ERROR_NOT_FOUND)

    @unittest.skipIf(MAC, "the environment must be set before Metal starts")
    def test_capture_to_a_file(self):
        path = os.path.join(self.folder, "x.gputrace")
        with self.assertRaises(ag.AppleGPUError) as caught:
            with ag.MetalCapture(path):
                pass
        self.assertEqual(caught.exception.value, ag.ERROR_NOT_SUPPORTED)
        os.environ["MTL_CAPTURE_ENABLED"] = "1"
        try:
            with ag.MetalCapture(path, ag.MetalQueue()):
                self.run_work(lambda work: ag.MetalEncodeFill(work, ag.MetalBuffer(64, label="caught"), 1))
            with self.assertRaises(ag.MetalError):
                ag.MetalCapture(path).__enter__()       # the file exists
            with self.assertRaises(ZeroDivisionError):
                with ag.MetalCapture(path + "2"):
                    1 / 0
            self.assertFalse(ag.MetalClass("MTLCaptureManager").sharedCaptureManager().isCapturing())
        finally:
            del os.environ["MTL_CAPTURE_ENABLED"]
        with open(path) as f:
            self.assertIn("fillBuffer:range:value: Buffer:caught 0,64 1", f.read())

    def test_render_encoder_is_whole(self):
        picture, pipeline, fence = ag.MetalTexture(64, 32), ag.MetalRenderPipeline(*self.functions(), blend="alpha"), ag.MetalFence()
        target, indices = ag.MetalRenderPass(picture), ag.MetalBuffer(array.array("I", [0, 1, 2]), label="order")
        work = ag.MetalBegin()
        ag.MetalEncodeDraw(work, target, pipeline, 3, 1.5, b"xyz", fragment=((0.5), None, ag.MetalBuffer(16)), textures=(picture,), samplers=(ag.MetalSampler(),), vertex_textures=(picture,),
                           indices=indices, index_type="UInt32", instances=5, fill="lines", viewport=(0, 0, 32, 32, 0, 1), scissor=(1, 2, 3, 4), label="one", update=fence)
        ag.MetalEncodeDraw(work, target, pipeline, 4, primitive="triangleStrip", first=2)
        ag.MetalEncodeDraw(work, target, pipeline, 3, wait=[fence])
        ag.MetalEncode(work, "render", lambda e: (e.setBlendColorRed_green_blue_alpha_(0.1, 0.2, 0.3, 0.4), e.setDepthBias_slopeScale_clamp_(1.0, 2.0, 3.0)), target)
        ag.MetalWait(ag.MetalCommit(work))
        self.assertEncoded("renderCommandEncoderWithDescriptor:", 'pushDebugGroup: "one"', "setTriangleFillMode: 1", "setViewport: 0,0,32,32,0,1", "setScissorRect: 1,2,3,4", "setVertexBytes:length:atIndex: * 4 0",
                           "setVertexBytes:length:atIndex: * 3 1", "setVertexTexture:atIndex: Texture 0", "setFragmentBytes:length:atIndex: * 4 0", "setFragmentBuffer:offset:atIndex: Buffer 0 2",
                           "setFragmentTexture:atIndex: Texture 0", "setFragmentSamplerState:atIndex: SamplerState 0",
                           "drawIndexedPrimitives:indexCount:indexType:indexBuffer:indexBufferOffset:instanceCount: 3 3 1 Buffer:order 0 5", "popDebugGroup", "updateFence:afterStages: Fence 2",
                           "drawPrimitives:vertexStart:vertexCount:instanceCount: 4 2 4 1", "endEncoding", "waitForFence:beforeStages: Fence 1", "drawPrimitives", "endEncoding",
                           "setBlendColorRed:green:blue:alpha: 0.1 0.2 0.3 0.4", "setDepthBias:slopeScale:clamp: 1 2 3", "endEncoding", "commit")
        if fake:
            self.assertEqual(self.encoded().count("renderCommandEncoderWithDescriptor:"), 3)
            self.assertEqual(fake.lib.fake_drawn(), 3)

    def test_heaps_with_placement(self):
        size, offsets = ag.MetalHeapPlan([100, 1000, 64])
        heap = ag.MetalHeap(size, placement=True)
        buffers = [ag.MetalHeapBuffer(heap, n, at) for n, at in zip((100, 1000, 64), offsets)]
        for n, buffer in enumerate(buffers):
            ag.MetalWrite(buffer, bytes([n + 1]) * buffer.length())
        self.assertEqual([set(ag.MetalRead(buffer)) for buffer in buffers], [{1}, {2}, {3}])
        self.assertEqual(ag.MetalRead(ag.MetalHeapBuffer(heap, 64, offsets[1])), b"\2" * 64)       # what overlaps shares memory
        self.assertBad("not inside", ag.MetalHeapBuffer, heap, 64, 1 << 40)
        for length, offset in ((64, 4), (64, -256), (64, 1.5), (1000, size - 256), (size + 1, 0)):        # Metal aborts on these
            self.assertBad("not inside|the length of a buffer", ag.MetalHeapBuffer, heap, length, offset)
        self.assertBad("needs an offset", ag.MetalHeapBuffer, heap, 64)
        need = ag.MetalDevice().heapTextureSizeAndAlignWithDescriptor_(ag.MetalClass("MTLTextureDescriptor").texture2DDescriptorWithPixelFormat_width_height_mipmapped_(70, 8, 8, False))
        room = ag.MetalHeap(need.size * 2, placement=True)
        texture = ag.MetalTexture(8, 8, bytes(256), heap=room, offset=0)
        self.assertIs(texture.heap(), room)
        for offset in (4, need.size + 256):
            self.assertBad("not inside", ag.MetalTexture, 8, 8, heap=room, offset=offset)
        self.assertBad("heap", ag.MetalTexture, 8, 8, offset=0)
        cached = ag.MetalClass("MTLHeapDescriptor").new()
        cached.setSize_(1 << 16)
        cached.setStorageMode_(ag.MTLStorageModeShared)
        cached.setCpuCacheMode_(ag.MTLCPUCacheModeWriteCombined)        # what is in a heap has the heap's options
        cached = ag.MetalDevice().newHeapWithDescriptor_(cached)
        self.assertEqual([one.cpuCacheMode() for one in (ag.MetalHeapBuffer(cached, 64), ag.MetalTexture(8, 8, heap=cached))], [1, 1])
        small = ag.MetalHeap(16384)
        self.assertBad("takes none", ag.MetalHeapBuffer, small, 64, 0)
        with self.assertRaises(ag.AppleGPUError) as caught:
            ag.MetalHeapBuffer(small, 1 << 20)
        self.assertEqual(caught.exception.value, ag.ERROR_MEMORY)

    def test_limits(self):
        picture, pipeline = ag.MetalTexture(8, 8), ag.MetalRenderPipeline(*self.functions())
        target, work, sampler = ag.MetalRenderPass(picture), ag.MetalBegin(), ag.MetalSampler()
        draw = ag.MetalEncodeDraw
        self.assertBad("31 buffers", draw, work, target, pipeline, 3, *[1.0] * 32)
        self.assertBad("at most 16 MTLSamplerState", draw, work, target, pipeline, 3, samplers=[sampler] * 17)
        self.assertBad("scissor", draw, work, target, pipeline, 3, scissor=(0, 0, 9, 8))
        self.assertBad("one vertex", draw, work, target, pipeline, 0)
        self.assertBad("one instance", draw, work, target, pipeline, 3, instances=0)
        self.assertBad("MTLPrimitiveType", draw, work, target, pipeline, 3, primitive="circle")
        self.assertBad("do not lie", draw, work, target, pipeline, 9, indices=ag.MetalBuffer(16))
        self.assertBad("multiple of 2", draw, work, target, pipeline, 1, indices=ag.MetalBuffer(16), index_offset=1)
        self.assertBad("without indices", draw, work, target, pipeline, 1, indices=ag.MetalBuffer(16), first=1)
        self.assertBad("MTLRenderPipelineState", draw, work, target, picture, 3)
        self.assertBad("MTLRenderPassDescriptor", draw, work, picture, pipeline, 3)
        for formats, depth, samples in (("BGRA8Unorm",), None, 1), (("RGBA8Unorm",), "Depth32Float", 1), (("RGBA8Unorm",), None, 4), (("RGBA8Unorm",) * 2, None, 1):
            other = ag.MetalRenderPipeline(*self.functions(), formats=formats, depth=depth, samples=samples)
            self.assertBad("the pipeline is for", draw, work, target, other, 3)
        self.assertBad("same number", ag.MetalRenderPass, [picture, ag.MetalTexture(8, 8, samples=4, usage="target")])
        self.assertBad("1 to 4096 bytes", draw, work, target, pipeline, 3, bytes(5000))
        self.assertBad("work of MetalBegin", draw, None, target, pipeline, 3)
        self.assertBad("render pass goes", ag.MetalEncode, work, "blit", print, target)
        self.assertBad("kind is one of", ag.MetalEncode, work, "paint", print)
        self.assertBad("anisotropy", ag.MetalSampler, anisotropy=17)
        self.assertBad("MTLSamplerAddressMode", ag.MetalSampler, address="around")
        self.assertBad("target", ag.MetalRenderPass, ag.MetalTexture(4, 4, usage="read"))
        self.assertBad("no fragment function", ag.MetalRenderPipeline, *[self.functions()[0]] * 2)
        self.assertBad("blend is one of", ag.MetalRenderPipeline, *self.functions(), blend="thin")
        for options, text in (({"mipmaps": 5}, "levels"), ({"samples": 3}, "samples"), ({"depth": 0}, "depth is 1 to"), ({"format": "Invalid"}, "no pixel format"), ({"mode": "lost"}, "MTLStorageMode; there is Shared, Managed, Private, Memoryless"),
                              ({"usage": "see"}, "usage is"), ({"kind": "4D"}, "MTLTextureType"), ({"data": b"1"}, "holds 256 bytes")):
            self.assertBad(text, ag.MetalTexture, 8, 8, **options)
        if fake:
            self.assertEqual(self.encoded().count("draw"), 0)

    def test_a_strangers_mistakes(self):
        """What somebody new to this writes first: the sentence says what is wanted."""
        picture, depth, functions = ag.MetalTexture(8, 8), ag.MetalTexture(8, 8, format="Depth32Float", usage="target"), self.functions()
        one, draw, layout, render, work = ag.MetalRenderPass, ag.MetalEncodeDraw, ag.MetalVertexLayout, ag.MetalRenderPipeline, ag.MetalBegin()
        target, pipeline, deep = one(picture), render(*functions), render(*functions, depth="Depth32Float")
        for text, function, *arguments, options in (
                ("a list of MTLTexture objects", draw, work, target, pipeline, 3, {"textures": picture}), ("a list of MTLSamplerState objects", draw, work, target, pipeline, 3, {"samplers": ag.MetalSampler()}),
                ("a list of MTLFence", draw, work, target, pipeline, 3, {"wait": ag.MetalFence()}), ("list of at most 31 buffers", draw, work, target, pipeline, 3, {"fragment": 1.0}), ("MetalRenderPass makes one", draw, work, picture, pipeline, 3, {}),
                ("depth Depth32Float, stencil none, 1 samples; the pass has colour RGBA8Unorm, depth none", draw, work, target, deep, 3, {}), ("a viewport is .x, y, width, height, near, far", draw, work, target, pipeline, 3, {"viewport": (0, 0, 8, 8)}),
                ("a viewport is", draw, work, target, pipeline, 3, {"viewport": 8}), ("a scissor is", draw, work, target, pipeline, 3, {"scissor": "all"}), ("not inside 8 x 8", draw, work, target, pipeline, 3, {"scissor": (0, 0, 8, 9)}),
                ("clear is None or .red, green, blue, alpha", one, picture, {"clear": (0, 0, 0)}), ("clear is", one, picture, {"clear": "black"}), ("clear is", one, picture, {"clear": 0}), ("a list of MTLTexture", one, 8, 8, {}),
                ("blend is one of", render, *functions, {"blend": True}), ("MetalVertexLayout makes one", render, *functions, {"vertices": {0: ("float3",)}}), ("a layout is", layout, ["float3"], {}), ("a layout is", layout, {0: "float3"}, {}), ("a layout is", layout, {0: ("float3",)}, {"instanced": 0}), ("a label is a str", draw, work, target, pipeline, 3, {"label": 5}),
                ("a stencil has", ag.MetalDepthStencil, {"front": "keep"}), ("usage is words of", ag.MetalTexture, 8, 8, {"usage": ["read"]}), ("width is 1 to", ag.MetalTexture, (8, 8), {}), ("picture's width", ag.MetalPng, bytes(4), 1, 1, {}),
                ("picture's height", ag.MetalPng, 1, 0, b"", {}), ("each command is", ag.MetalIndirect, (pipeline, 8), {}), ("a list of commands", ag.MetalIndirect, pipeline, {}), ("four or six numbers", ag.MetalTextureRead, picture, 8, {}), ("MetalFunction makes one", ag.MetalArchiveAdd, ag.MetalArchive(), "corner", {}),
                ("corner is no kernel", ag.MetalArchiveAdd, ag.MetalArchive(), functions[0], {}), ("corner is no kernel", ag.MetalArchivePipeline, ag.MetalArchive(), functions[0], {}),
                ("capture scope is wanted", ag.MetalCapture("x.gputrace", 5).__enter__, {})):
            with self.subTest(text):
                self.assertBad(text, function, *arguments, **options)
        self.assertEqual(work.operations, [])
        both = one(picture, depth, clear=ag.MTLClearColor(0, 0, 0, 1))          # Apple's structs are as good as tuples
        draw(work, both, deep, 3, viewport=ag.MTLViewport(0, 0, 8, 8, 0, 1), scissor=ag.MTLScissorRect(0, 0, 8, 8))

    def test_numbers_and_lists_of_other_kinds(self):
        """NumPy's are no int and no float; what can be counted through is a list."""
        from fractions import Fraction

        class Whole(Fraction):
            __index__ = Fraction.__trunc__

            def __mul__(self, other):
                raise OverflowError("NumPy's small ones wrap around")

        picture, pipeline, work = ag.MetalTexture(8, 8), ag.MetalRenderPipeline(*self.functions()), ag.MetalBegin()
        target = ag.MetalRenderPass(iter([picture]), clear=[Fraction(1, 2), 0, True, Fraction(1)])
        self.assertEqual(target.colorAttachments()[0].clearColor(), (0.5, 0.0, 1.0, 1.0))
        ag.MetalEncodeDraw(work, target, pipeline, 3, viewport=[Fraction(0), 0, 8, 8, 0, 1], scissor=(True, True, 4, 4), textures={picture}, wait={ag.MetalFence(): 1}.keys())
        self.assertBad("whole numbers", ag.MetalEncodeDraw, work, target, pipeline, 3, scissor=(0.0, 0.0, 8.0, 8.0))        # it was a TypeError of MetalCommit
        ag.MetalEncodeDraw(work, target, pipeline, Whole(3), indices=ag.MetalBuffer(16), index_offset=Whole(2), instances=Whole(1))
        self.assertEqual(ag.MetalTexture(Whole(8), Whole(4), mipmaps=True).mipmapLevelCount(), 4)
        for instanced in (range(1, 2), frozenset([1]), {1: 0}.keys()):
            layout = ag.MetalVertexLayout({0: ("float3",), 1: ("float4",)}, instanced=instanced)
            self.assertEqual([layout.layouts()[n].stepFunction() for n in (0, 1)], [ag.MTLVertexStepFunctionPerVertex, ag.MTLVertexStepFunctionPerInstance])
        self.assertBad("a layout is", ag.MetalVertexLayout, {0: ("float3",)}, instanced="0")

    def test_texture_limits(self):
        """Every rule of Metal's own validation of a descriptor, which ends the process."""
        for text, options in (
                ("width is 1 to", dict(width=1 << 20)), ("width is 1 to", dict(width=0)), ("width is 1 to", dict(width=8.0)), ("width is 1 to", dict(width=4096, depth=2)), ("layers is 1 to", dict(layers=2049)),
                ("layers is 1 to", dict(layers=342, kind="CubeArray")), ("no height", dict(kind="1D", height=2)), ("no height", dict(kind="1DArray", height=2, layers=2)), ("no depth", dict(kind="2D", depth=2)),
                ("no depth", dict(depth=2, layers=2, kind="2DArray")), ("no layers", dict(kind="2D", layers=2)), ("no layers", dict(kind="3D", layers=2, depth=2)), ("no samples", dict(kind="2D", samples=4)),
                ("no samples", dict(kind="3D", samples=4)), ("samples per pixel", dict(kind="2DMultisample")), ("samples per pixel", dict(samples=3)), ("samples per pixel", dict(samples=0)),
                ("samples per pixel", dict(samples="4")), ("square", dict(kind="cube", height=4)), ("square", dict(kind="cubeArray", height=4, layers=2)), ("1 to 1 levels", dict(kind="1D", height=1, mipmaps=2)),
                ("1 to 1 levels", dict(samples=4, mipmaps=2)), ("1 to 1 levels", dict(format="GBGR422", mipmaps=2)), ("1 to 4 levels", dict(mipmaps=5)), ("1 to 4 levels", dict(mipmaps=0)), ("made from a buffer", dict(kind="textureBuffer", height=1)),
                ("no BC1_RGBA texture", dict(format="BC1_RGBA", kind="1D", height=1)), ("no ASTC_4x4_LDR texture", dict(format="ASTC_4x4_LDR", samples=4)), ("no EAC_R11Unorm texture", dict(format="EAC_R11Unorm", depth=2)),
                ("no PVRTC_RGB_4BPP texture", dict(format="PVRTC_RGB_4BPP", height=16)), ("no PVRTC_RGB_4BPP texture", dict(format="PVRTC_RGB_4BPP", width=12, height=12)),
                ("no GBGR422 texture", dict(format="GBGR422", width=7)), ("no GBGR422 texture", dict(format="GBGR422", layers=2)),
                ("no Depth32Float texture", dict(format="Depth32Float", kind="1D", height=1)), ("no Stencil8 texture", dict(format="Stencil8", depth=2)), ("no RGBA8Unorm texture", dict(usage="read atomic"))):
            with self.subTest(**options):
                self.assertBad(text, ag.MetalTexture, **dict(dict(width=8, height=8), **options))
        for options, levels in ((dict(kind="1D", height=1, mipmaps=True), 1), (dict(samples=4, mipmaps=True, usage="target"), 1), (dict(mipmaps=True), 4), (dict(depth=16, mipmaps=True), 5),
                                (dict(kind="cubeArray", layers=2, mipmaps=True), 4), (dict(format="R32Uint", usage="read atomic"), 1), (dict(layers=2, kind="1DArray", height=1), 1)):
            with self.subTest(**options):
                self.assertEqual(ag.MetalTexture(**dict(dict(width=8, height=8), **options)).mipmapLevelCount(), levels)
        with self.assertRaises(ag.AppleGPUError_NotSupported):
            ag.MetalTexture(8, 8, format="Depth24Unorm_Stencil8") if not ag.MetalDevice().isDepth24Stencil8PixelFormatSupported() else self.skipTest("a Mac with this format")

    def test_pass_and_pipeline_limits(self):
        picture, depth, both = ag.MetalTexture(8, 8), ag.MetalTexture(8, 8, format="Depth32Float", usage="target"), ag.MetalTexture(8, 8, format="Depth32Float_Stencil8", usage="target")
        smooth, tile = ag.MetalTexture(8, 8, samples=4, usage="target"), ag.MetalTexture(8, 8, samples=4, usage="target", mode="memoryless")
        one, draw, functions, work = ag.MetalRenderPass, ag.MetalEncodeDraw, self.functions(), ag.MetalBegin()
        for text, arguments, options in (
                ("no depth", (picture, picture), {}), ("no stencil", (picture, None, depth), {}), ("no colour", (depth,), {}), ("no colour", (ag.MetalTexture(8, 8, format="BC1_RGBA"),), {}),
                ("resolve", (picture,), dict(resolve=ag.MetalTexture(8, 8))), ("resolve", (smooth,), dict(resolve=smooth)), ("resolve", (smooth,), dict(resolve=ag.MetalTexture(8, 8, format="BGRA8Unorm"))),
                ("target", (smooth,), dict(resolve=ag.MetalTexture(8, 8, usage="read"))), ("memoryless", (tile,), dict(clear=None)),
                ("memoryless", (smooth, ag.MetalTexture(8, 8, samples=4, format="Depth32Float", usage="target", mode="memoryless")), dict(clear_depth=None))):
            with self.subTest(text=text, **{k: str(v) for k, v in options.items()}):
                self.assertBad(text, one, *arguments, **options)
        keeps = one(picture, both, both, clear=None, clear_depth=None, clear_stencil=None)
        self.assertEqual({a.loadAction() for a in (keeps.colorAttachments()[0], keeps.depthAttachment(), keeps.stencilAttachment())}, {ag.MTLLoadActionLoad})
        any_usage = ag.MetalClass("MTLTextureDescriptor").texture2DDescriptorWithPixelFormat_width_height_mipmapped_(70, 8, 8, False)
        any_usage.setUsage_(ag.MTLTextureUsageUnknown)          # every use is allowed, the slow way
        one(ag.MetalDevice().newTextureWithDescriptor_(any_usage))
        for text, arguments, options in (("no depth", functions, dict(depth="RGBA8Unorm")), ("no stencil", functions, dict(stencil="Depth32Float")), ("no colour", functions, dict(formats=["Depth32Float"])),
                                         ("no colour", functions, dict(formats=["ASTC_4x4_LDR"])), ("mask", functions, dict(mask=16)), ("MTLFunction", (None, functions[1]), {}), ("MTLBinaryArchive", functions, dict(archive=picture)),
                                         ("samples", functions, dict(samples=3)), ("samples", functions, dict(samples="4"))):
            with self.subTest(text=text, **{k: str(v) for k, v in options.items()}):
                self.assertBad(text, ag.MetalRenderPipeline, *arguments, **options)
        pipeline = ag.MetalRenderPipeline(*functions, depth="Depth32Float")
        self.assertBad("stencil", draw, work, one(picture, depth), pipeline, 3, stencil_reference=-1, depth=ag.MetalDepthStencil())
        self.assertBad("needs a depth", draw, work, one(picture, depth), pipeline, 3, stencil_reference=1)
        self.assertBad("no such texture", draw, work, one(picture, depth), pipeline, 3, depth=ag.MetalDepthStencil(front={"compare": "equal"}))
        plain = ag.MetalRenderPipeline(*functions)
        for state in (ag.MetalDepthStencil(), ag.MetalDepthStencil(compare="always"), ag.MetalDepthStencil(write=False)):
            self.assertBad("no such texture", draw, work, one(picture), plain, 3, depth=state)
        draw(ag.MetalBegin(), one(picture), plain, 3, depth=ag.MetalDepthStencil(compare="always", write=False))
        self.assertBad("1 to 31 attributes", ag.MetalVertexLayout, {0: ["float"] * 32})
        self.assertBad("at least one", ag.MetalVertexLayout, {0: ["float"], 1: []})
        self.assertEqual(work.operations, [])

    def test_a_draw_inherits_no_depth_state(self):
        picture, depth = ag.MetalTexture(8, 8), ag.MetalTexture(8, 8, format="Depth32Float", usage="target")
        target, pipeline, work = ag.MetalRenderPass(picture, depth), ag.MetalRenderPipeline(*self.functions(), depth="Depth32Float"), ag.MetalBegin()
        for state in (None, ag.MetalDepthStencil(label="state"), None, None):
            ag.MetalEncodeDraw(work, target, pipeline, 3, depth=state)
        ag.MetalWait(ag.MetalCommit(work))
        self.assertEqual([line.partition(" ")[2] for line in self.encoded().splitlines() if re.search("setDepthStencil|drawP|endEnc", line)] if fake else [],
                         ["drawPrimitives:vertexStart:vertexCount:instanceCount: 3 0 3 1", "setDepthStencilState: DepthStencilState:state", "drawPrimitives:vertexStart:vertexCount:instanceCount: 3 0 3 1", "setDepthStencilState: nil",
                          "drawPrimitives:vertexStart:vertexCount:instanceCount: 3 0 3 1", "drawPrimitives:vertexStart:vertexCount:instanceCount: 3 0 3 1", "endEncoding"] if fake else [])

    def test_draws_send_what_changes(self):
        picture, pipeline = ag.MetalTexture(64, 32), ag.MetalRenderPipeline(*self.functions())
        target, work = ag.MetalRenderPass(picture), ag.MetalBegin()
        for options in ({}, dict(cull="back", viewport=(0, 0, 32, 32, 0, 1)), dict(cull="back", scissor=(0, 0, 8, 8)), {}):
            ag.MetalEncodeDraw(work, target, pipeline, 3, **options)
        ag.MetalWait(ag.MetalCommit(work))
        self.assertEqual([line.split(" ", 1)[1] for line in self.encoded().splitlines() if " set" in line] if fake else [],
                         ["setRenderPipelineState: RenderPipelineState", "setCullMode: 2", "setViewport: 0,0,32,32,0,1", "setViewport: 0,0,64,32,0,1", "setScissorRect: 0,0,8,8",
                          "setCullMode: 0", "setScissorRect: 0,0,64,32"] if fake else [])
        bare, work = ag.MetalClass("MTLRenderPassDescriptor").renderPassDescriptor(), ag.MetalBegin()       # made by sends: its size is not known
        bare.colorAttachments()[0].setTexture_(picture)
        ag.MetalEncodeDraw(work, bare, pipeline, 3)
        ag.MetalEncodeDraw(work, bare, pipeline, 3, viewport=(0, 0, 32, 32, 0, 1))
        self.assertBad("does not tell its size", ag.MetalEncodeDraw, work, bare, pipeline, 3)
        ag.MetalEncodeDraw(work, bare, pipeline, 3, viewport=(0, 0, 64, 32, 0, 1))
        ag.MetalWait(ag.MetalCommit(work))

    def test_a_second_draw_looks_nothing_up(self):
        """Encodings are read from the runtime once, not for each send."""
        picture, pipeline, state = ag.MetalTexture(8, 8), ag.MetalRenderPipeline(*self.functions()), ag.MetalDepthStencil(compare="always", write=False)
        looked_up, method = [], ag._method

        def draw():
            self.run_work(lambda work: ag.MetalEncodeDraw(work, ag.MetalRenderPass(picture), pipeline, 3, 1.0, textures=(picture,), depth=state))
            return ag.MetalTexture(8, 8, bytes(256))
        draw()
        ag._method = lambda *a: looked_up.append(a[1]) or method(*a)
        try:
            draw()
        finally:
            ag._method = method
        self.assertEqual(looked_up, [])

    def test_depth_and_stencil_are_written_apart(self):
        both = ag.MetalTexture(4, 4, format="Depth32Float_Stencil8", usage="target read")
        self.assertBad("two things", ag.MetalTextureWrite, both, bytes(64))
        self.assertBad("two things", ag.MetalTexture, 4, 4, bytes(128), format="Depth32Float_Stencil8")
        self.assertBad("is no part", ag.MetalTextureRead, ag.MetalTexture(4, 4), part="depth")
        depths = struct.pack("16f", *[n / 16 for n in range(16)])
        ag.MetalTextureWrite(both, depths, part="depth")
        ag.MetalTextureWrite(both, bytes(range(16)), part="stencil")
        ag.MetalTextureWrite(both, b"\xff", (1, 1, 1, 1), part="stencil")
        self.assertEqual(ag.MetalTextureRead(both, part="depth"), depths)
        self.assertEqual(ag.MetalTextureRead(both, part="stencil"), bytes(range(5)) + b"\xff" + bytes(range(6, 16)))

    def test_an_exception_ends_the_encoder(self):
        work = ag.MetalBegin()
        ag.MetalEncode(work, "blit", lambda encoder: 1 / 0)
        with self.assertRaises(ZeroDivisionError):
            ag.MetalCommit(work)
        self.assertEncoded("blitCommandEncoder", "endEncoding")


class Odd(Base):
    """Any function, any arguments: an exception of Python's, and nothing that Metal would end the process over."""

    @unittest.skipIf(MAC or not HAVE_CXX, "the stand-in tells of offences; Metal ends the process")
    def test_odd_arguments(self):
        source = "kernel void idle(device float *x [[buffer(0)]], uint i [[thread_position_in_grid]]) { }"
        idle, through = ag.MetalFunction(ag.MetalCompile("#include <metal_stdlib>\nusing namespace metal;\n" + source), "idle"), ag.MetalFunction(ag.MetalCompile(SOURCE), "through")
        texture, kernels = ag.MetalTexture(8, 8), [ag.MetalPipeline(idle), ag.MetalPipeline(idle, indirect=True)]
        draws, passes = [ag.MetalRenderPipeline(*self.functions())], [ag.MetalRenderPass(texture)]
        odd = [None, 0, 1, 2, 4, 8, 31, 32, 64, 256, 4096, 16384, 16385, 1 << 33, 1 << 64, -1, 0.5, float("inf"), "", "depth", "less", "private", "memoryless", "1D", "3D", "cube", "2DMultisample", "RGBA8Unorm",
               "Depth32Float_Stencil8", "BC1_RGBA", "read atomic", b"", bytes(4097), bytearray(64), (), (1, 2), (0, 0, 1, 1), (0, 0, 8, 8, 0, 1), [1], {0: 1}, {0: ("float3",)}, True, object(), *kernels, *draws, *passes,
               ag.MetalDevice(), ag.MetalQueue(), ag.MetalBuffer(64), ag.MetalBuffer(64, mode="private"), texture, ag.MetalTexture(8, 8, format="Depth32Float", usage="target"), ag.MetalTexture(8, 8, samples=4, usage="target"),
               ag.MetalTexture(8, 8, depth=2, format="R8Unorm"), idle, through, *self.functions(), ag.MetalSampler(), ag.MetalDepthStencil(), ag.MetalFence(), ag.MetalEvent(), ag.MetalHeap(65536), ag.MetalHeap(65536, placement=True),
               ag.MetalArchive(), [texture], (ag.MetalBuffer(64), 16)]
        likely = {"work": lambda: ag.MetalBegin(profile=random.random() < 0.2), "pipeline": lambda: random.choice(kernels + draws), "target": lambda: passes[0], "timeout": lambda: 0.01,
                  "commands": lambda: random.choice([commands, [(kernels[1], 4, odd[42])]])}
        commands = ag.MetalIndirect([(kernels[1], 4, ag.MetalBuffer(64))])
        functions = [one for name, one in vars(ag).items() if name.startswith("Metal") and inspect.isfunction(one) and name not in (
            "MetalWrap", "MetalRelease", "MetalFramework", "MetalCompare", "MetalArchiveSave", "MetalTextureSave", "MetalCompile", "MetalKernel", "MetalSend", "MetalEncodeWait", "MetalEventWait")]
        random.seed(7)
        for _ in range(2500):
            function, arguments, options = random.choice(functions), [], {}
            for one in inspect.signature(function).parameters.values():
                value = likely[one.name]() if one.name in likely and random.random() < 0.9 else random.choice(odd)
                if one.kind == one.VAR_POSITIONAL:
                    arguments += random.sample(odd, random.randrange(3))
                elif one.kind == one.KEYWORD_ONLY and random.random() < 0.3:
                    options[one.name] = value
                elif one.kind == one.POSITIONAL_OR_KEYWORD and (one.default is one.empty or random.random() < 0.4):
                    arguments.append(value)
                elif one.kind == one.POSITIONAL_OR_KEYWORD:
                    break
            with contextlib.suppress(ag.AppleGPUError, TypeError, AttributeError, OverflowError):
                function(*arguments, **options)
                if arguments and isinstance(arguments[0], ag.MetalWork) and not arguments[0].committed_ns:
                    ag.MetalWait(ag.MetalCommit(arguments[0]), 10)
            self.assertEqual(fake.log(), "", (function.__name__, arguments, options))


    @unittest.skipIf(MAC or not HAVE_CXX or sys.version_info < (3, 11), "the stand-in tells of open encoders; before 3.11 a tracer's copy of the locals keeps them")
    def test_ctrl_c_at_every_line_of_a_commit(self):
        """No encoder is let go while open, of draws, dispatches, copies and MetalEncode, wherever KeyboardInterrupt strikes."""
        target, pipeline, kernel = ag.MetalRenderPass(ag.MetalTexture(8, 8)), ag.MetalRenderPipeline(*self.functions()), self.kernel("twice")
        buffer, count, struck = ag.MetalBuffer(64), 0, True
        # from Python 3.12 no `finally` runs when a tracer raises at the loop of an inlined comprehension; it does for a signal
        inlined = re.compile(r"\[.+ for \w+ in " if sys.version_info >= (3, 12) else "(?!)")

        def interrupt(frame, event, argument):
            nonlocal left
            if frame.f_code.co_filename == ag.__file__ and not frame.f_code.co_name.startswith(("_encode", "send_all")):
                return None         # the bridge's own places are test_interrupts' matter
            line = linecache.getline(ag.__file__, frame.f_lineno)
            left -= event == "line" and not re.match(r" *(end[(]|encoder.end|try:|finally:)", line) and not inlined.search(line)     # no signal is looked at before these
            if not left:
                sys.settrace(None)
                raise KeyboardInterrupt
            return interrupt
        while struck:
            work, count = ag.MetalBegin(), count + 1
            ag.MetalEncodeDraw(work, target, pipeline, 3)
            ag.MetalEncodeDispatch(work, kernel, 16, buffer)
            ag.MetalEncodeFill(work, buffer, 0)
            ag.MetalEncode(work, "blit", lambda encoder: encoder.fillBuffer_range_value_(buffer, (0, 4), 1))
            ag.MetalEncodeDispatch(work, kernel, 16, buffer)        # is still open at the end
            left, struck = count, False
            try:
                sys.settrace(interrupt)
                ag.MetalCommit(work)
            except KeyboardInterrupt:
                struck = True
            finally:
                sys.settrace(None)
            self.assertEqual(fake.log(), "", count)
        self.assertGreater(count, 50)
        gc.collect()
        self.assertLess(fake.leaks(self.serial)[0], count)
        self.serial = fake.serial()         # Ctrl-C may leak what is being made, said in the README


class Rest(Base):
    """Formats, pictures, states; and the parts of Metal without a function, each by a shown send."""

    def test_all_pixel_formats(self):
        known = fakegraphics.formats()
        names = {n: v for n, v in ag._open_constants().items() if n.startswith("MTLPixelFormat") and n[14:] not in ("Invalid", "Unspecialized")}
        self.assertEqual(set(names.values()), set(known))
        for name, value in names.items():
            info = ag.MetalFormatInfo(name[14:])
            self.assertEqual((info.block_bytes, info.block_width, info.block_height), known[value], name)
            self.assertEqual(ag.MetalFormatInfo(value), info)
            self.assertEqual((info.depth, info.stencil), ("Depth" in name, "tencil8" in name))

    def test_all_vertex_formats(self):
        sizes = {"Float3": 12, "UChar4Normalized": 4, "Half": 2, "UShort3": 6, "Int1010102Normalized": 4, "UChar4Normalized_BGRA": 4, "FloatRG11B10": 4, "FloatRGB9E5": 4, "Char": 1, "UInt4": 16, "Short2Normalized": 4}
        for name, size in sizes.items():
            self.assertEqual(ag._vertex_bytes(ag._constant_of("MTLVertexFormat", name)), size, name)
        layout = ag.MetalVertexLayout({0: ("float3", "uchar3", "half2"), 2: ("float4",)}, instanced=(2,))
        self.assertEqual([(layout.attributes()[n].offset(), layout.attributes()[n].bufferIndex()) for n in range(4)], [(0, 0), (12, 0), (16, 0), (0, 2)])
        self.assertEqual([(layout.layouts()[n].stride(), layout.layouts()[n].stepFunction()) for n in (0, 2)], [(20, 1), (16, 2)])
        self.assertBad("buffer index", ag.MetalVertexLayout, {31: ("float",)})
        self.assertBad("1 to 31 attributes", ag.MetalVertexLayout, {})

    def test_states(self):
        d = ag._pipeline_descriptor(*self.functions(), ("BGRA8Unorm", "R32Float"), "Depth32Float", None, 4, ("one", "zero", "one", "zero", "max", "min"), 7)
        one = d.colorAttachments()[1]
        self.assertEqual([one.pixelFormat(), one.isBlendingEnabled(), one.sourceRGBBlendFactor(), one.destinationRGBBlendFactor(), one.rgbBlendOperation(), one.alphaBlendOperation(), one.writeMask()], [55, True, 1, 0, 4, 3, 7])
        self.assertEqual((d.depthAttachmentPixelFormat(), d.rasterSampleCount()), (252, 4))
        for blend, factors in (("alpha", (4, 5, 1, 5)), ("premultiplied", (1, 5, 1, 5)), ("add", (1, 1, 1, 1)), ("multiply", (6, 0, 8, 0))):
            d = ag._pipeline_descriptor(*self.functions(), (70,), None, None, 1, blend, 15).colorAttachments()[0]
            self.assertEqual((d.sourceRGBBlendFactor(), d.destinationRGBBlendFactor(), d.sourceAlphaBlendFactor(), d.destinationAlphaBlendFactor()), factors)

    def test_png(self):
        random.seed(1)
        rgba = bytes(random.randrange(256) for _ in range(7 * 5 * 4))
        self.assertEqual(ag.MetalPngRead(ag.MetalPng(7, 5, rgba)), (7, 5, rgba))
        swapped = b"".join(rgba[n:n + 4][2::-1] + rgba[n + 3:n + 4] for n in range(0, len(rgba), 4))
        self.assertEqual(ag.MetalPngRead(ag.MetalPng(7, 5, swapped, "BGRA8Unorm_sRGB")).pixels, rgba)
        grey = bytes(range(35))
        self.assertEqual(ag.MetalPngRead(ag.MetalPng(7, 5, grey, "R8Unorm")).pixels, b"".join(bytes([n, n, n, 255]) for n in grey))
        wide = struct.pack("<4H", 0x1234, 0x5678, 0x9abc, 0xffff)
        self.assertEqual(ag.MetalPngRead(ag.MetalPng(1, 1, wide, "RGBA16Unorm")).pixels, b"\x12\x56\x9a\xff")
        self.assertBad("8 or 16 bits", ag.MetalPng, 1, 1, bytes(4), "R32Float")
        self.assertBad("140 bytes", ag.MetalPng, 7, 5, bytes(3))

        def chunk(kind, body):
            return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

        def png(width, height, bits, kind, lines, *more, interlace=0):
            return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, interlace)) + b"".join(more) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
        for how in range(5):        # each filter, undone against the same picture filtered here
            lines, above = b"", bytes(28)
            for y in range(5):
                row = rgba[28 * y:28 * y + 28]
                lines += bytes([how])
                for i, value in enumerate(row):
                    a, b, c = row[i - 4] if i > 3 else 0, above[i], above[i - 4] if i > 3 else 0
                    paeth = min(((abs(b - c), 0, a), (abs(a - c), 1, b), (abs(a + b - 2 * c), 2, c)))[2]
                    lines += bytes([(value - (0, a, b, (a + b) // 2, paeth)[how]) & 255])
                above = row
            self.assertEqual(ag.MetalPngRead(png(7, 5, 8, 6, lines)).pixels, rgba, how)
        palette = chunk(b"PLTE", bytes((1, 2, 3, 4, 5, 6))) + chunk(b"tRNS", b"\x80")
        self.assertEqual(ag.MetalPngRead(png(3, 1, 1, 3, b"\0\x40", palette)).pixels, bytes((1, 2, 3, 128, 4, 5, 6, 255, 1, 2, 3, 128)))
        self.assertEqual(ag.MetalPngRead(png(2, 1, 4, 0, b"\0\x0f")).pixels, bytes((0, 0, 0, 255, 255, 255, 255, 255)))
        whole = ag.MetalPng(7, 5, rgba)
        packed = zlib.compress(b"".join(b"\0" + rgba[n:n + 28] for n in range(0, 140, 28)))
        parts = [chunk(b"IDAT", packed[n:n + 9]) for n in range(0, len(packed), 9)]
        self.assertEqual(ag.MetalPngRead(whole[:33] + b"".join(parts) + whole[-12:]).pixels, rgba)
        for bad in (b"", whole[:40], whole[:-40], png(1, 1, 8, 6, b"\5abcd"), png(1, 1, 8, 6, b"\0abcd", interlace=1), png(1 << 20, 1 << 20, 8, 6, b""),
                    png(3, 1, 4, 2, bytes(9)), png(3, 1, 2, 6, bytes(9)), png(3, 1, 4, 4, bytes(9)), png(2, 1, 16, 3, bytes(5), palette), png(3, 1, 8, 3, b"\0\0\1\2", palette),
                    png(2, 1, 8, 3, b"\0\0\1", chunk(b"PLTE", bytes(4)))):
            self.assertBad("PNG", ag.MetalPngRead, bad)
        for _ in range(300):
            broken = bytearray(whole)
            broken[random.randrange(8, len(broken))] ^= 1 << random.randrange(8)
            try:
                ag.MetalPngRead(broken)
            except ag.AppleGPUError:
                pass
        path = os.path.join(self.folder, "x.png")
        texture = ag.MetalTexture(7, 5, rgba, mode="private")
        ag.MetalTextureSave(texture, path)
        self.assertEqual(ag.MetalTextureRead(ag.MetalTextureLoad(path)), rgba)

    def test_clear_copy_mipmaps_resolve(self):
        colors = {"RGBA8Unorm": b"\xff\x80\0\xff", "BGRA8Unorm": b"\0\x80\xff\xff", "RGBA32Float": struct.pack("4f", 1, .5, 0, 1), "R16Float": struct.pack("e", 1), "RG8Unorm": b"\xff\x80", "RGBA16Unorm": struct.pack("4H", 65535, 32768, 0, 65535)}
        for name, wanted in colors.items():
            texture = ag.MetalTexture(4, 4, format=name)
            self.run_work(lambda work: ag.MetalEncode(work, "render", lambda encoder: None, ag.MetalRenderPass(texture, clear=(1, .5, 0, 1))))
            self.assertEqual(ag.MetalTextureRead(texture), wanted * 16, name)
        chequered = ag.MetalTexture(4, 4, b"".join(b"\xff\0\0\xff" if (x + y) % 2 else b"\0\0\0\xff" for y in range(4) for x in range(4)), mipmaps=True)
        other = ag.MetalTexture(4, 4)
        work = ag.MetalBegin()
        ag.MetalEncode(work, "blit", lambda e: e.generateMipmapsForTexture_(chequered))
        ag.MetalEncode(work, "blit", lambda e: e.copyFromTexture_sourceSlice_sourceLevel_sourceOrigin_sourceSize_toTexture_destinationSlice_destinationLevel_destinationOrigin_(
            chequered, 0, 0, (0, 0, 0), (2, 2, 1), other, 0, 0, (2, 2, 0)))
        ag.MetalWait(ag.MetalCommit(work))
        self.assertTrue(all(abs(a - b) < 2 for a, b in zip(ag.MetalTextureRead(chequered, level=1), b"\x80\0\0\xff" * 4)))
        self.assertEqual(ag.MetalTextureRead(other, (2, 2, 2, 2)), ag.MetalTextureRead(chequered, (0, 0, 2, 2)))
        smooth, plain = ag.MetalTexture(4, 4, samples=4, usage="target", mode="memoryless"), ag.MetalTexture(4, 4)
        pipeline = ag.MetalRenderPipeline(*self.functions(), samples=4)
        self.run_work(lambda work: ag.MetalEncodeDraw(work, ag.MetalRenderPass(smooth, clear=(0, 0, 1, 1), resolve=plain), pipeline, 3))
        self.assertEqual(ag.MetalTextureRead(plain)[:4], b"\0\0\xff\xff")
        self.assertBad("memoryless|resolved", ag.MetalTextureRead, smooth)
        view = plain.newTextureViewWithPixelFormat_(ag.MTLPixelFormatRGBA8Unorm_sRGB)
        self.assertIs(view.parentTexture(), plain)

    def test_acceleration_structures(self):
        device, vertices = ag.MetalDevice(), ag.MetalBuffer(array.array("f", range(18)))
        geometry = ag.MetalClass("MTLAccelerationStructureTriangleGeometryDescriptor").descriptor()
        geometry.setVertexBuffer_(vertices)
        geometry.setVertexStride_(12)
        geometry.setTriangleCount_(2)
        descriptor = ag.MetalClass("MTLPrimitiveAccelerationStructureDescriptor").descriptor()
        descriptor.setGeometryDescriptors_([geometry])
        sizes = device.accelerationStructureSizesWithDescriptor_(descriptor)
        one, two = (device.newAccelerationStructureWithSize_(sizes.accelerationStructureSize) for _ in range(2))
        scratch, length = ag.MetalBuffer(max(sizes.buildScratchBufferSize, 16)), ag.MetalBuffer(16)

        def encode(encoder):
            encoder.buildAccelerationStructure_descriptor_scratchBuffer_scratchBufferOffset_(one, descriptor, scratch, 0)
            encoder.writeCompactedAccelerationStructureSize_toBuffer_offset_(one, length, 0)
            encoder.copyAndCompactAccelerationStructure_toAccelerationStructure_(one, two)
        self.run_work(lambda work: ag.MetalEncode(work, "acceleration", encode))
        self.assertGreater(ag.MetalContents(length, "I")[0], 0)
        instances = ag.MetalClass("MTLInstanceAccelerationStructureDescriptor").descriptor()
        instances.setInstancedAccelerationStructures_([one])
        instances.setInstanceCount_(1)
        instances.setInstanceDescriptorBuffer_(ag.MetalBuffer(64))
        self.assertGreater(device.accelerationStructureSizesWithDescriptor_(instances).accelerationStructureSize, 0)

    def test_linked_and_intersection_functions(self):
        source = "#include <metal_stdlib>\nusing namespace metal;\n[[visible]] float helper(float x) { return x; }\n" + SOURCE.partition("metal;")[2]
        library, device = ag.MetalCompile(source), ag.MetalDevice()
        helper = ag.MetalFunction(library, "helper")
        linked = ag.MetalClass("MTLLinkedFunctions").linkedFunctions()
        linked.setFunctions_([helper])
        descriptor = ag.MetalClass("MTLComputePipelineDescriptor").new()
        descriptor.setComputeFunction_(ag.MetalFunction(library, "twice"))
        descriptor.setLinkedFunctions_(linked)
        pipeline = device.newComputePipelineStateWithDescriptor_options_reflection_error_(descriptor, 0, None)
        handle = pipeline.functionHandleWithFunction_(helper)
        wanted = ag.MetalClass("MTLVisibleFunctionTableDescriptor").visibleFunctionTableDescriptor()
        wanted.setFunctionCount_(2)
        visible = pipeline.newVisibleFunctionTableWithDescriptor_(wanted)
        visible.setFunction_atIndex_(handle, 1)
        wanted = ag.MetalClass("MTLIntersectionFunctionTableDescriptor").intersectionFunctionTableDescriptor()
        wanted.setFunctionCount_(1)
        table = pipeline.newIntersectionFunctionTableWithDescriptor_(wanted)
        table.setOpaqueTriangleIntersectionFunctionWithSignature_atIndex_(ag.MTLIntersectionFunctionSignatureTriangleData, 0)
        table.setBuffer_offset_atIndex_(ag.MetalBuffer(16), 0, 0)
        self.run_work(lambda work: ag.MetalEncode(work, "compute", lambda e: (e.setVisibleFunctionTable_atBufferIndex_(visible, 0), e.setIntersectionFunctionTable_atBufferIndex_(table, 1))))
        self.assertEncoded("VisibleFunctionTable setFunction:atIndex: FunctionHandle 1", "setOpaqueTriangleIntersectionFunctionWithSignature:atIndex: 2 0", "setIntersectionFunctionTable:atBufferIndex: IntersectionFunctionTable 1")

    def test_sparse_textures(self):
        device = ag.MetalDevice()
        if not device.sparseTileSizeInBytes():
            self.skipTest("no sparse textures on this GPU")
        tile = device.sparseTileSizeWithTextureType_pixelFormat_sampleCount_(ag.MTLTextureType2D, ag.MTLPixelFormatRGBA8Unorm, 1)
        self.assertEqual(tile.width * tile.height * 4, device.sparseTileSizeInBytes())
        wanted = ag.MetalClass("MTLHeapDescriptor").new()
        wanted.setType_(ag.MTLHeapTypeSparse)
        wanted.setStorageMode_(ag.MTLStorageModePrivate)
        wanted.setSize_(4 * device.sparseTileSizeInBytes())
        heap = device.newHeapWithDescriptor_(wanted)
        picture = ag.MetalClass("MTLTextureDescriptor").texture2DDescriptorWithPixelFormat_width_height_mipmapped_(70, 512, 512, False)
        picture.setStorageMode_(ag.MTLStorageModePrivate)
        texture = heap.newTextureWithDescriptor_(picture)
        self.assertTrue(texture.isSparse())
        self.run_work(lambda work: ag.MetalEncode(work, "resource state", lambda e: e.updateTextureMapping_mode_region_mipLevel_slice_(
            texture, ag.MTLSparseTextureMappingModeMap, ((0, 0, 0), (1, 1, 1)), 0, 0)))
        self.assertEncoded("updateTextureMapping:mode:region:mipLevel:slice: Texture 0 0,0,0,1,1,1 0 0")

    def test_loading_files(self):
        path, buffer, texture = os.path.join(self.folder, "data"), ag.MetalBuffer(256), ag.MetalTexture(8, 8)
        with open(path, "wb") as f:
            f.write(bytes(range(256)) * 2)
        device = ag.MetalDevice()
        make = device.newIOFileHandleWithURL_error_ if hasattr(device, "newIOFileHandleWithURL_error_") else device.newIOHandleWithURL_error_
        handle = make(ag.MetalClass("NSURL").fileURLWithPath_(path))
        queue = device.newIOCommandQueueWithDescriptor_error_(ag.MetalClass("MTLIOCommandQueueDescriptor").new())
        with ag.MetalPool():
            command = queue.commandBuffer()
            command.loadBuffer_offset_size_sourceHandle_sourceHandleOffset_(buffer, 0, 256, handle, 128)
            command.loadTexture_slice_level_size_sourceBytesPerRow_sourceBytesPerImage_destinationOrigin_sourceHandle_sourceHandleOffset_(texture, 0, 0, (8, 8, 1), 32, 256, (0, 0, 0), handle, 0)
            command.commit()
            command.waitUntilCompleted()
            self.assertEqual(command.status(), ag.MTLIOStatusComplete)
        self.assertEqual(ag.MetalRead(buffer), bytes(range(128, 256)) + bytes(range(128)))
        self.assertEqual(ag.MetalTextureRead(texture), bytes(range(256)))
        with self.assertRaises(ag.MetalError):
            make(ag.MetalClass("NSURL").fileURLWithPath_(path + "x"))

    def test_parallel_encoders(self):
        picture, pipeline = ag.MetalTexture(8, 8), ag.MetalRenderPipeline(*self.functions())

        def encode(parallel):
            for encoder in (parallel.renderCommandEncoder(), parallel.renderCommandEncoder()):
                encoder.setRenderPipelineState_(pipeline)
                encoder.drawPrimitives_vertexStart_vertexCount_(3, 0, 3)
                encoder.endEncoding()
        self.run_work(lambda work: ag.MetalEncode(work, "parallel", encode, ag.MetalRenderPass(picture)))
        self.assertEncoded("parallelRenderCommandEncoderWithDescriptor:", "drawPrimitives:vertexStart:vertexCount: 3 0 3", "drawPrimitives", "ParallelRenderCommandEncoder endEncoding")

    def test_indirect_render_commands(self):
        picture, pipeline, x = ag.MetalTexture(8, 8), ag.MetalRenderPipeline(*self.functions(), indirect=True), ag.MetalBuffer(64)
        d = ag.MetalClass("MTLIndirectCommandBufferDescriptor").new()
        d.setCommandTypes_(ag.MTLIndirectCommandTypeDraw)
        d.setMaxVertexBufferBindCount_(1)
        commands = ag.MetalDevice().newIndirectCommandBufferWithDescriptor_maxCommandCount_options_(d, 2, 0)
        command = commands.indirectRenderCommandAtIndex_(0)
        command.setRenderPipelineState_(pipeline)
        command.setVertexBuffer_offset_atIndex_(x, 0, 0)
        command.drawPrimitives_vertexStart_vertexCount_instanceCount_baseInstance_(3, 0, 3, 1, 0)
        self.run_work(lambda work: ag.MetalEncode(work, "render", lambda e: (e.useResource_usage_(x, 1), e.executeCommandsInBuffer_withRange_(commands, (0, 1))), ag.MetalRenderPass(picture)))
        self.assertEncoded("IndirectRenderCommand drawPrimitives:vertexStart:vertexCount:instanceCount:baseInstance: 3 0 3 1 0", "executeCommandsInBuffer:withRange: IndirectCommandBuffer 0,1")

    def test_metal_4(self):
        device = ag.MetalDevice()
        if not hasattr(device, "newMTL4CommandQueue"):
            self.skipTest("Metal 4 came with macOS 26")
        queue, allocator, command, pipeline = device.newMTL4CommandQueue(), device.newCommandAllocator(), device.newCommandBuffer(), self.kernel("twice")
        wanted = ag.MetalClass("MTL4ArgumentTableDescriptor").new()
        wanted.setMaxBufferBindCount_(1)
        table, x = device.newArgumentTableWithDescriptor_error_(wanted), ag.MetalBuffer(64)
        table.setAddress_atIndex_(x.gpuAddress(), 0)
        with ag.MetalPool():
            command.beginCommandBufferWithAllocator_(allocator)
            encoder = command.computeCommandEncoder()
            encoder.setComputePipelineState_(pipeline)
            encoder.setArgumentTable_(table)
            encoder.dispatchThreads_threadsPerThreadgroup_((16, 1, 1), (16, 1, 1))
            encoder.endEncoding()
            command.endCommandBuffer()
            queue.commit_count_([command], 1)
        self.assertEncoded("4CommandBuffer beginCommandBufferWithAllocator: 4CommandAllocator", "4ComputeCommandEncoder setArgumentTable: 4ArgumentTable", "dispatchThreads:threadsPerThreadgroup: 16,1,1 16,1,1", "4CommandQueue commit:count:")

    def test_every_function_takes_a_device(self):
        device = ag.MetalDevices()[-1]
        for one in (ag.MetalTexture(4, 4, None, device), ag.MetalSampler(device), ag.MetalDepthStencil(device), ag.MetalHeap(65536, device), ag.MetalArchive(None, device)):
            self.assertEqual(one.device().registryID(), device.registryID()) if hasattr(one, "device") else None

    def test_timing_of_a_draw(self):
        picture, pipeline = ag.MetalTexture(8, 8), ag.MetalRenderPipeline(*self.functions())
        work = self.run_work(lambda work: ag.MetalEncodeDraw(work, ag.MetalRenderPass(picture), pipeline, 3))
        self.assertGreaterEqual(ag.MetalTimes(work).gpu_s or 0, 0)


@unittest.skipUnless(HAVE_CXX, "no C++ compiler to run kernels with")
class Examples(unittest.TestCase):
    """Each example runs to its end, checks itself, and encoded what it says."""

    def example(self, name, *lines, environment=None):
        with tempfile.TemporaryDirectory() as folder:
            record = os.path.join(folder, "record")
            program = [os.path.join(EXAMPLES, name)] if MAC else [os.path.join(EXAMPLES, "fakemac.py"), "--metal", os.path.join(EXAMPLES, name)]
            run = subprocess.run([sys.executable, *program], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120,
                                 env=dict(os.environ, FAKEOBJC_RECORD=record, **(environment or {})))
            self.assertEqual(run.returncode, 0, run.stdout)
            if not MAC:
                with open(record) as f:
                    text = f.read()
                at = 0
                for line in lines:
                    self.assertIn(line, text[at:])
                    at = text.index(line, at) + len(line)
                self.assertEqual("recorded, not rasterised" in run.stdout, "draw" in text)
        return run.stdout

    def test_example_triangle(self): self.example("triangle.py", "setRenderPipelineState: RenderPipelineState:triangle", "drawPrimitives:vertexStart:vertexCount:instanceCount: 3 0 3 1")
    def test_example_cube(self): self.example("cube.py", "setDepthStencilState:", "setVertexBytes:length:atIndex: * 64 1", "instanceCount: 3 36 0 Buffer:indices 0 1")
    def test_example_textured_quad(self): self.example("textured_quad.py", "generateMipmapsForTexture: Texture:image", "setFragmentTexture:atIndex: Texture:image 0", "setScissorRect: 100,0,100,100", ": 4 0 4 1")
    def test_example_events(self): self.assertIn("no capture", self.example("events_capture.py", "encodeWaitForEvent:value: SharedEvent 2", "encodeSignalEvent:value: SharedEvent 2", "updateFence:", "waitForFence:"))
    def test_example_capture(self): self.assertIn("captured to", self.example("events_capture.py", environment={"MTL_CAPTURE_ENABLED": "1"}))
    def test_example_indirect(self):
        _metal.Base.not_in_a_guest(self)
        self.example("indirect.py", "concurrentDispatchThreads:threadsPerThreadgroup:", "executeCommandsInBuffer:withRange: IndirectCommandBuffer:steps 0,200")
    def test_example_raytrace(self): self.assertIn("0 rays not" if not MAC else "rays not", self.example("raytrace.py", "buildAccelerationStructure:", "setAccelerationStructure:atBufferIndex: AccelerationStructure 0", "dispatchThreads"))
    def test_example_mps_matmul(self): self.assertIn("64 x 64 right", self.example("mps_matmul.py"))


if __name__ == "__main__":
    unittest.main()
