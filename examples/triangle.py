"""Draw a triangle into a picture.        python triangle.py [triangle.png]"""
import os
import sys

sys.path.insert(1, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))     # the copy beside the examples
import pyapplegpu as ag

SOURCE = """
#include <metal_stdlib>
using namespace metal;
struct Corner { float4 position [[position]]; float4 color; };
vertex Corner corner(uint i [[vertex_id]]) {
    float2 at[3] = {float2(0, 0.7), float2(-0.7, -0.7), float2(0.7, -0.7)};
    float4 colors[3] = {float4(1, 0, 0, 1), float4(0, 1, 0, 1), float4(0, 0, 1, 1)};
    Corner c;
    c.position = float4(at[i], 0, 1);
    c.color = colors[i];
    return c;
}
fragment float4 shade(Corner c [[stage_in]]) { return c.color; }
"""
library = ag.MetalCompile(SOURCE)
pipeline = ag.MetalRenderPipeline(ag.MetalFunction(library, "corner"), ag.MetalFunction(library, "shade"), label="triangle")
picture = ag.MetalTexture(256, 256, label="picture")
work = ag.MetalBegin(label="triangle")
ag.MetalEncodeDraw(work, ag.MetalRenderPass(picture, clear=(0.1, 0.1, 0.1, 1)), pipeline, 3)
ag.MetalWait(ag.MetalCommit(work))

path = sys.argv[1] if len(sys.argv) > 1 else "triangle.png"
ag.MetalTextureSave(picture, path)
with open(path, "rb") as file:
    image = ag.MetalPngRead(file.read())
corner, middle = (image.pixels[4 * (y * 256 + 128):][:4] for y in (2, 128))
assert corner == bytes((26, 26, 26, 255)), corner
if "fakeobjc" not in sys.modules:       # the stand-in records draws, it does not rasterise them
    assert middle != corner, "nothing was drawn"
print("%s: %d x %d, in the middle %s" % (path, image.width, image.height, tuple(middle)))
