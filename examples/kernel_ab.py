"""Which of two kernels is quicker, and is the difference real?        python kernel_ab.py [n]

Sums a vector two ways: each thread adds one number to an atomic, or threadgroups add up in their own memory first. Both
are profiled dispatch by dispatch, then timed against each other in turn; the verdict comes with a 95 % interval, and is
"no difference shown" when the interval contains 1.
"""
import array
import os
import sys

sys.path.insert(1, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import pyapplegpu as ag

SOURCE = """
#include <metal_stdlib>
using namespace metal;
kernel void one_atomic(device const uint *x [[buffer(0)]], device atomic_uint *sum [[buffer(1)]], uint i [[thread_position_in_grid]])
{ atomic_fetch_add_explicit(sum, x[i], memory_order_relaxed); }
kernel void by_group(device const uint *x [[buffer(0)]], device atomic_uint *sum [[buffer(1)]], uint i [[thread_position_in_grid]],
                     uint t [[thread_index_in_threadgroup]], uint n [[threads_per_threadgroup]])
{
    threadgroup uint part[256];
    part[t] = x[i];
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint k = n / 2; k > 0; k /= 2) {
        if (t < k) part[t] += part[t + k];
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    if (t == 0) atomic_fetch_add_explicit(sum, part[0], memory_order_relaxed);
}
"""


def main():
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    count = 1 << 14
    data, total = ag.MetalBuffer(array.array("I", range(count))), ag.MetalBuffer(4)
    library = ag.MetalCompile(SOURCE)
    kernels = {name: ag.MetalPipeline(ag.MetalFunction(library, name), label=name) for name in ("one_atomic", "by_group")}

    def run(name, profile=False):
        work = ag.MetalBegin(label=name, profile=profile)
        ag.MetalEncodeFill(work, total, 0)
        ag.MetalEncodeDispatch(work, kernels[name], count, data, total, group=256)
        return ag.MetalCommit(work)

    for name in kernels:
        work = ag.MetalWait(run(name, profile=True))
        assert ag.MetalContents(total, "I")[0] == count * (count - 1) // 2 & 0xFFFFFFFF, "the sum is wrong"
        for one in ag.MetalDispatchTimes(work):
            print("%-12s %s  (%s)" % (one.label, "%8.1f us" % (1e6 * one.seconds) if one.seconds is not None else "no figure", one.method))
    result = ag.MetalCompare(lambda: run("one_atomic"), lambda: run("by_group"), n)
    print("a = one_atomic %.1f us, b = by_group %.1f us (medians of %d, %s clock)" % (1e6 * result.a_median_s, 1e6 * result.b_median_s, result.n, result.clock))
    print("b / a = %.3f, %.0f %% interval %.3f to %.3f: %s" % (result.ratio, 100 * result.confidence, result.ratio_low, result.ratio_high, result.verdict))


if __name__ == "__main__":
    main()
