"""Ray-trace a pyramid over a floor with Metal's acceleration structures.        python raytrace.py [scene.png]

There is no function of this library for ray tracing: it is done with sends, as any part of Metal can be.
"""
import array
import math
import os
import sys

sys.path.insert(1, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))     # the copy beside the examples
import pyapplegpu as ag

SOURCE = """
#include <metal_stdlib>
#include <metal_raytracing>
using namespace metal;
using namespace metal::raytracing;
kernel void trace(primitive_acceleration_structure scene [[buffer(0)]], device uchar4 *out [[buffer(1)]],
                  uint2 at [[thread_position_in_grid]], uint2 size [[threads_per_grid]])
{
    float x = (at.x + 0.5f) / size.x * 2 - 1, y = 1 - (at.y + 0.5f) / size.y * 2;
    ray r = ray(float3(0, 1, 4), normalize(float3(x, y - 0.25f, -2)), 0.001f, 100.0f);
    intersector<triangle_data> meet;
    intersection_result<triangle_data> hit = meet.intersect(r, scene);
    uchar4 color = uchar4(100, 150, 255, 255);
    if (hit.type == intersection_type::triangle) {
        float3 point = r.origin + r.direction * hit.distance;
        meet.accept_any_intersection(true);
        bool shadow = meet.intersect(ray(point, normalize(float3(1, 2, 0.5f)), 0.001f, 100.0f), scene).type != intersection_type::none;
        uchar light = shadow ? 80 : 255;
        color = hit.primitive_id < 2 ? uchar4(light, light, light, 255) : uchar4(light, 0, uchar(hit.primitive_id * 40), 255);
    }
    out[at.y * size.x + at.x] = color;
}
"""
FLOOR = ((-5, -1, -5), (5, -1, -5), (5, -1, 5)), ((-5, -1, -5), (5, -1, 5), (-5, -1, 5))
BASE, TOP = ((-1, -1, -1), (1, -1, -1), (1, -1, 1), (-1, -1, 1)), (0, 0.8, 0)
SCENE = FLOOR + tuple((BASE[i], BASE[(i + 1) % 4], TOP) for i in range(4))
WIDTH, HEIGHT = 160, 120


def build(vertices, count):
    """A primitive acceleration structure of triangles: sizes, memory, build, wait."""
    device = ag.MetalDevice()
    geometry = ag.MetalClass("MTLAccelerationStructureTriangleGeometryDescriptor").descriptor()
    geometry.setVertexBuffer_(vertices)
    geometry.setVertexStride_(12)
    geometry.setTriangleCount_(count)
    descriptor = ag.MetalClass("MTLPrimitiveAccelerationStructureDescriptor").descriptor()
    descriptor.setGeometryDescriptors_([geometry])
    sizes = device.accelerationStructureSizesWithDescriptor_(descriptor)
    structure = device.newAccelerationStructureWithSize_(sizes.accelerationStructureSize)
    scratch = ag.MetalBuffer(max(sizes.buildScratchBufferSize, 16), mode="private")
    work = ag.MetalBegin(label="build")
    ag.MetalEncode(work, "acceleration", lambda encoder: encoder.buildAccelerationStructure_descriptor_scratchBuffer_scratchBufferOffset_(structure, descriptor, scratch, 0))
    ag.MetalWait(ag.MetalCommit(work))
    return structure


def hits(origin, way):
    """Which triangle a ray meets first, in Python: the judge."""
    def minus(a, b): return [p - q for p, q in zip(a, b)]
    def dot(a, b): return sum(p * q for p, q in zip(a, b))
    def cross(a, b): return [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]]
    best = (100.0, None)
    for n, (a, b, c) in enumerate(SCENE):
        e, f, t = minus(b, a), minus(c, a), minus(origin, a)
        p, q = cross(way, f), cross(t, e)
        d = dot(e, p)
        if d and dot(t, p) / d >= 0 and dot(way, q) / d >= 0 and (dot(t, p) + dot(way, q)) / d <= 1 and 0.001 < dot(f, q) / d < best[0]:
            best = dot(f, q) / d, n
    return best[1]


if not ag.MetalDeviceInfo().raytracing:
    sys.exit("this GPU does not trace rays")
scene = build(ag.MetalBuffer(array.array("f", [n for triangle in SCENE for corner in triangle for n in corner])), len(SCENE))
trace, out = ag.MetalKernel(SOURCE, "trace"), ag.MetalBuffer(4 * WIDTH * HEIGHT)


def run(encoder):
    encoder.setComputePipelineState_(trace)
    encoder.setAccelerationStructure_atBufferIndex_(scene, 0)
    encoder.setBuffer_offset_atIndex_(out, 0, 1)
    encoder.dispatchThreads_threadsPerThreadgroup_((WIDTH, HEIGHT, 1), (8, 8, 1))


work = ag.MetalBegin(label="trace")
ag.MetalEncode(work, "compute", run)
ag.MetalWait(ag.MetalCommit(work))
pixels, wrong = ag.MetalRead(out), 0
for y in range(0, HEIGHT, 7):
    for x in range(0, WIDTH, 7):
        way = ((x + 0.5) / WIDTH * 2 - 1, 1 - (y + 0.5) / HEIGHT * 2 - 0.25, -2)
        length = math.sqrt(sum(n * n for n in way))
        met, (r, g, b, _) = hits((0, 1, 4), [n / length for n in way]), pixels[4 * (y * WIDTH + x):][:4]
        seen = None if (r, g, b) == (100, 150, 255) else b // 40 if g == 0 else 0
        wrong += (met if met is None or met > 1 else 0) != seen
path = sys.argv[1] if len(sys.argv) > 1 else "scene.png"
with open(path, "wb") as file:
    file.write(ag.MetalPng(WIDTH, HEIGHT, pixels))
print("%s: %d triangles, %d rays not as Python has them" % (path, len(SCENE), wrong))
if wrong > 3:       # an edge may fall either way
    sys.exit("the picture is wrong")
