"""One memory for the CPU and the GPU: a kernel works on NumPy's own array.        python zero_copy.py

MetalPages gives page-aligned memory; NumPy views it, Metal uses it (copy=False), nothing is ever copied. The other way
round, MetalContents shows a buffer of Metal's to NumPy. Without NumPy the same is done with memoryviews.
"""
import os
import sys

sys.path.insert(1, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import pyapplegpu as ag

try:
    import numpy as np
except ImportError:
    np = None

N = 1 << 16
SOURCE = """
#include <metal_stdlib>
using namespace metal;
kernel void scale(device float *x [[buffer(0)]], constant float &by [[buffer(1)]], uint i [[thread_position_in_grid]])
{ x[i] *= by; }"""


def main():
    pages = ag.MetalPages(4 * N)
    if np is not None:
        mine = np.frombuffer(pages, np.float32)
        mine[:] = np.arange(N)
    else:
        mine = pages.cast("f")
        for i in range(N):
            mine[i] = i
    buffer = ag.MetalBuffer(pages, copy=False)
    kernel = ag.MetalKernel(SOURCE, "scale")
    for _ in range(3):
        ag.MetalDispatch(kernel, N, buffer, 2.0)            # the GPU writes into `mine`
    right = mine[3] == 24.0 and mine[N - 1] == 8.0 * (N - 1)
    theirs = ag.MetalContents(buffer, "f")                  # the same bytes through Metal
    theirs[0] = 42.0
    assert right and mine[0] == 42.0 and ag.MetalAddress(buffer)
    print("three kernels on one array of %d floats, no copy: %s" % (N, mine[1:5].tolist()))


if __name__ == "__main__":
    main()
