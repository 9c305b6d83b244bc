"""Matrix multiplication three ways, with GFLOPS.        python matmul.py [size]

naive: a thread reads a row and a column. tiled: 16 x 16 tiles in threadgroup memory. optimised: each thread makes a 4 x 4
block from tiles of 64 x 16. Results are compared with NumPy where it is installed (else with a few sums in Python).
When NumPy is enough: on Apple silicon it calls Accelerate, whose AMX units beat all three for plain products; the GPU
pays off for what no library has, or when the data is there already.
"""
import array
import os
import random
import sys

sys.path.insert(1, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import pyapplegpu as ag

SOURCE = """
#include <metal_stdlib>
using namespace metal;
kernel void naive(device const float *a [[buffer(0)]], device const float *b [[buffer(1)]], device float *c [[buffer(2)]],
                  constant uint &n [[buffer(3)]], uint2 at [[thread_position_in_grid]])
{
    if (at.x >= n || at.y >= n) return;
    float sum = 0;
    for (uint k = 0; k < n; k++) sum += a[at.y * n + k] * b[k * n + at.x];
    c[at.y * n + at.x] = sum;
}
kernel void tiled(device const float *a [[buffer(0)]], device const float *b [[buffer(1)]], device float *c [[buffer(2)]],
                  constant uint &n [[buffer(3)]], uint2 at [[thread_position_in_grid]], uint2 in [[thread_position_in_threadgroup]])
{
    threadgroup float ta[16][17];
    threadgroup float tb[16][17];
    float sum = 0;
    for (uint t = 0; t < n; t += 16) {
        ta[in.y][in.x] = at.y < n && t + in.x < n ? a[at.y * n + t + in.x] : 0;
        tb[in.y][in.x] = at.x < n && t + in.y < n ? b[(t + in.y) * n + at.x] : 0;
        threadgroup_barrier(mem_flags::mem_threadgroup);
        for (uint k = 0; k < 16; k++) sum += ta[in.y][k] * tb[k][in.x];
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    if (at.x < n && at.y < n) c[at.y * n + at.x] = sum;
}
kernel void optimised(device const float *a [[buffer(0)]], device const float *b [[buffer(1)]], device float *c [[buffer(2)]],
                      constant uint &n [[buffer(3)]], uint2 group [[threadgroup_position_in_grid]], uint2 in [[thread_position_in_threadgroup]])
{
    threadgroup float ta[16][68];
    threadgroup float tb[16][68];
    float sum[4][4] = {{0}};
    uint row = group.y * 64, column = group.x * 64, me = in.y * 16 + in.x;
    for (uint t = 0; t < n; t += 16) {
        for (uint i = me; i < 1024; i += 256) {
            uint r = i / 16, k = i % 16, q = i / 64, s = i % 64;
            ta[k][r] = row + r < n && t + k < n ? a[(row + r) * n + t + k] : 0;
            tb[q][s] = column + s < n && t + q < n ? b[(t + q) * n + column + s] : 0;
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        for (uint k = 0; k < 16; k++)
            for (uint y = 0; y < 4; y++)
                for (uint x = 0; x < 4; x++) sum[y][x] += ta[k][in.y * 4 + y] * tb[k][in.x * 4 + x];
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    for (uint y = 0; y < 4; y++)
        for (uint x = 0; x < 4; x++)
            if (row + in.y * 4 + y < n && column + in.x * 4 + x < n) c[(row + in.y * 4 + y) * n + column + in.x * 4 + x] = sum[y][x];
}
"""


def check(n, a, b, c):
    """The largest difference from the true product."""
    try:
        import numpy as np
    except ImportError:
        spots = [(random.randrange(n), random.randrange(n)) for _ in range(50)]
        return max(abs(sum(a[i * n + k] * b[k * n + j] for k in range(n)) - c[i * n + j]) for i, j in spots), "50 sums in Python"
    x, y, z = (np.frombuffer(v, np.float32).reshape(n, n) for v in (a, b, c))
    return float(abs(x.astype(np.float64) @ y - z).max()), "NumPy"


def main():
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 128
    random.seed(1)
    a, b = (array.array("f", [random.randrange(-8, 9) for _ in range(n * n)]) for _ in range(2))     # exact in float
    buffers = ag.MetalBuffer(a), ag.MetalBuffer(b), ag.MetalBuffer(4 * n * n)
    library = ag.MetalCompile(SOURCE)
    for name, shape in (("naive", dict(threads=(n, n), group=(16, 16))), ("tiled", dict(threads=None, groups=(-(-n // 16),) * 2, group=(16, 16))),
                        ("optimised", dict(threads=None, groups=(-(-n // 64),) * 2, group=(16, 16)))):
        pipeline = ag.MetalPipeline(ag.MetalFunction(library, name), label=name)
        ag.MetalWrite(buffers[2], bytes(4 * n * n))
        times = []
        for _ in range(5):
            threads = shape["threads"]
            work = ag.MetalDispatch(pipeline, threads, *buffers, n, **{k: v for k, v in shape.items() if k != "threads"})
            times.append(ag.MetalTimes(work).gpu_s or 0)
        worst, judge = check(n, a, b, ag.MetalContents(buffers[2], "f"))
        best = min(times)
        print("%-10s %4d x %-4d %9.3f ms  %8.1f GFLOPS  largest difference %g (%s)" % (name, n, n, 1e3 * best, 2e-9 * n ** 3 / best if best else 0, worst, judge))
        if worst != 0:
            sys.exit("the product is wrong")


if __name__ == "__main__":
    main()
