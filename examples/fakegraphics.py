"""The tables of fakegraphics.h: pixel formats, who is recorded, classes of other frameworks. fakeobjc.py calls setup()."""
import atexit
import ctypes
import os
import sys

# MTLPixelFormat: bytes of a block, and its size where it is more than a pixel (Apple's Metal feature set tables)
FORMATS = """1:1 10-14:1 20:2 22-25:2 30-34:2 40-43:2 53-55:4 60:4 62-65:4 70-74:4 80-81:4 90-94:4 554-555:4 103-105:8 110:8
112-115:8 552-553:8 123-125:16 130-131:8:4x4 132-135:16:4x4 140-141:8:4x4 142-143:16:4x4 150-153:16:4x4 160-161:8:8x4 162-163:8:4x4
164-165:8:8x4 166-167:8:4x4 170:8:4x4 172:8:4x4 174:16:4x4 176:16:4x4 178-179:16:4x4 180-183:8:4x4 240-241:4:2x1 250:2 252:4 253:1
255:4 260:8 261:8 262:4"""
ASTC = "4x4 5x4 5x5 6x5 6x6 8x5 8x6 8x8 10x5 10x6 10x8 10x10 12x10 12x12".split()


def formats():
    """{MTLPixelFormat: (bytes, width, height) of a block}."""
    out = {}
    for row in FORMATS.split():
        values, size, *block = row.split(":")
        first, _, last = values.partition("-")
        width, height = map(int, (block or ["1x1"])[0].split("x"))
        for value in range(int(first), int(last or first) + 1):
            out[value] = int(size), width, height
    for start in (186, 204, 222):
        numbers = [n for n in range(start, start + 15) if n != start + 5]
        for value, block in zip(numbers, ASTC):
            width, height = map(int, block.split("x"))
            out[value] = 16, width, height
    return out


# How their headers declare them (selector, result and arguments, owned)
OTHERS = """MPSKernel NSObject -setLabel: v @"NSString";-label @"NSString";-device @"<MTLDevice>"
MPSMatrixDescriptor NSObject +matrixDescriptorWithRows:columns:rowBytes:dataType: @"MPSMatrixDescriptor" Q Q Q I;-rows Q;-columns Q;-rowBytes Q;-setRowBytes: v Q
MPSMatrix NSObject -initWithBuffer:descriptor: @ @"<MTLBuffer>" @"MPSMatrixDescriptor";-rows Q;-columns Q;-rowBytes Q;-data @"<MTLBuffer>"
MPSMatrixMultiplication MPSKernel -initWithDevice:transposeLeft:transposeRight:resultRows:resultColumns:interiorColumns:alpha:beta: @ @"<MTLDevice>" B B Q Q Q d d;-encodeToCommandBuffer:leftMatrix:rightMatrix:resultMatrix: v @"<MTLCommandBuffer>" @"MPSMatrix" @"MPSMatrix" @"MPSMatrix\""""
DEALLOC = {"AGXTexture": "texture", "AGXHeap": "heap", "AGXIndirectComputeCommand": "indirect", "AGXIndirectRenderCommand": "indirect", "AGXAccelerationStructure": "scene",
           "AGXParallelRenderCommandEncoder": "encoder", "AGXAccelerationStructureCommandEncoder": "encoder", "AGXResourceStateCommandEncoder": "encoder"}
RECORDED = ("BlitCommandEncoder ComputeCommandEncoder ParallelRenderCommandEncoder AccelerationStructureCommandEncoder ResourceStateCommandEncoder CommandBuffer "
            "IndirectComputeCommand IndirectRenderCommand IOCommandBuffer IntersectionFunctionTable VisibleFunctionTable 4CommandBuffer 4CommandQueue "
            "4ComputeCommandEncoder 4RenderCommandEncoder 4ArgumentTable ArgumentEncoder etalDrawable").split()


def setup(fake, shape):
    lib = fake.lib
    for value, (size, width, height) in formats().items():
        lib.fake_format(*map(ctypes.c_uint64, (value, size, width, height)))
    for row in OTHERS.split("\n"):
        name, parent, methods = row.split(" ", 2)
        lib.fake_class(name.encode(), parent.encode())
        for one in methods.split(";"):
            selector, *types = one.split(" ")
            fake._one_method(name, name, selector, types, "-init" in selector, shape(selector, types, "-init" in selector))
    for name, what in DEALLOC.items():
        lib.fake_dealloc(name.encode(), what.encode())
    for name in RECORDED:
        lib.fake_record_class(("AGX" + name).encode(), 1)
    lib.fake_record_class(b"AGXRenderCommandEncoder", 2)
    lib.fake_recorded.restype = ctypes.c_char_p
    lib.fake_drawn.restype = ctypes.c_uint64


def watch(fake):
    """For a program: say at its end what was not really drawn; FAKEOBJC_RECORD names a file for what was encoded."""
    path = os.environ.get("FAKEOBJC_RECORD")
    fake.lib.fake_record(int(bool(path)))

    def end():
        drawn = fake.lib.fake_drawn()
        if drawn:
            print("fakegraphics: %d draws were recorded, not rasterised" % drawn, file=sys.stderr)
        if path:
            with open(path, "wb") as f:
                f.write(fake.lib.fake_recorded())
    atexit.register(end)
