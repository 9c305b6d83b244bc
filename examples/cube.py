"""A turning cube: indexed, depth-tested, four samples per pixel.        python cube.py [cube.png]"""
import array
import math
import os
import sys

sys.path.insert(1, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))     # the copy beside the examples
import pyapplegpu as ag

SOURCE = """
#include <metal_stdlib>
using namespace metal;
struct In { float3 position [[attribute(0)]]; float3 color [[attribute(1)]]; };
struct Corner { float4 position [[position]]; float3 color; };
vertex Corner corner(In in [[stage_in]], constant float4x4 &view [[buffer(1)]]) {
    Corner c;
    c.position = view * float4(in.position, 1);
    c.color = in.color;
    return c;
}
fragment float4 shade(Corner c [[stage_in]]) { return float4(c.color, 1); }
"""
SIZE = 256


def view(turn, tilt, away):
    """Columns of the matrix: turn about y, tilt about x, push back, perspective (depth 0 to 1)."""
    s, c, u, v = math.sin(turn), math.cos(turn), math.sin(tilt), math.cos(tilt)
    rows = [[c, 0, s, 0], [u * s, v, -u * c, 0], [-v * s, u, v * c, -away], [0, 0, 0, 1]]
    f, near, far = 1 / math.tan(math.radians(45) / 2), 0.1, 10
    lens = [[f, 0, 0, 0], [0, f, 0, 0], [0, 0, far / (near - far), near * far / (near - far)], [0, 0, -1, 0]]
    product = [[sum(lens[i][k] * rows[k][j] for k in range(4)) for j in range(4)] for i in range(4)]
    return array.array("f", [product[i][j] for j in range(4) for i in range(4)])


corners = array.array("f", [n for x in (-1, 1) for y in (-1, 1) for z in (-1, 1) for n in (x * .6, y * .6, z * .6, x > 0, y > 0, z > 0)])
sides = ((0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3))
indices = array.array("H", [side[k] for side in sides for k in (0, 1, 2, 0, 2, 3)])
library = ag.MetalCompile(SOURCE)
pipeline = ag.MetalRenderPipeline(ag.MetalFunction(library, "corner"), ag.MetalFunction(library, "shade"), depth="Depth32Float", samples=4,
                                  vertices=ag.MetalVertexLayout({0: ("float3", "float3")}), label="cube")
smooth = ag.MetalTexture(SIZE, SIZE, samples=4, usage="target", mode="memoryless")
depth = ag.MetalTexture(SIZE, SIZE, samples=4, format="Depth32Float", usage="target", mode="memoryless")
picture = ag.MetalTexture(SIZE, SIZE, label="picture")
work = ag.MetalBegin(label="cube")
ag.MetalEncodeDraw(work, ag.MetalRenderPass(smooth, depth, clear=(1, 1, 1, 1), resolve=picture), pipeline, len(indices), ag.MetalBuffer(corners), view(0.6, 0.5, 3),
                   indices=ag.MetalBuffer(indices, label="indices"), depth=ag.MetalDepthStencil(compare="less"))
ag.MetalWait(ag.MetalCommit(work))

path = sys.argv[1] if len(sys.argv) > 1 else "cube.png"
ag.MetalTextureSave(picture, path)
pixels = ag.MetalTextureRead(picture)
assert pixels[:4] == b"\xff" * 4, "the corner is not the clear colour"
if "fakeobjc" not in sys.modules:       # the stand-in records draws, it does not rasterise them
    assert pixels[4 * (SIZE * SIZE // 2 + SIZE // 2):][:4] != b"\xff" * 4, "nothing was drawn"
print("%s: %d triangles" % (path, len(indices) // 3))
