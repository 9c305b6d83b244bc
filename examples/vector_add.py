"""Add two vectors on the GPU, in fifteen lines.        python vector_add.py"""
import array
import os
import sys

sys.path.insert(1, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))     # the copy beside the examples
import pyapplegpu as ag

kernel = ag.MetalKernel("""
    #include <metal_stdlib>
    using namespace metal;
    kernel void add(device const float *a [[buffer(0)]], device const float *b [[buffer(1)]],
                    device float *c [[buffer(2)]], uint i [[thread_position_in_grid]]) { c[i] = a[i] + b[i]; }""", "add")
n = 1 << 16
a = ag.MetalBuffer(array.array("f", range(n)))
b = ag.MetalBuffer(array.array("f", [0.5] * n))
c = ag.MetalBuffer(4 * n)
work = ag.MetalDispatch(kernel, n, a, b, c)
result = ag.MetalContents(c, "f")
assert list(result) == [i + 0.5 for i in range(n)]
print("%d sums right, %.1f us on the GPU: %s ..." % (n, 1e6 * (ag.MetalTimes(work).gpu_s or 0), list(result[:4])))
