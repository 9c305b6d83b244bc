"""Encode many dispatches once, run them often.        python indirect.py"""
import os
import sys
import time

sys.path.insert(1, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))     # the copy beside the examples
import pyapplegpu as ag

library = ag.MetalCompile("""
    #include <metal_stdlib>
    using namespace metal;
    kernel void plus(device float *x [[buffer(0)]], constant float &n [[buffer(1)]], uint i [[thread_position_in_grid]]) { x[i] += n; }
    kernel void half_of(device float *x [[buffer(0)]], uint i [[thread_position_in_grid]]) { x[i] *= 0.5; }""")
plus, half_of = (ag.MetalPipeline(ag.MetalFunction(library, name), indirect=True, label=name) for name in ("plus", "half_of"))
COUNT, N, ROUNDS = 1024, 100, 5
x, y = ag.MetalBuffer(4 * COUNT), ag.MetalBuffer(4 * COUNT)
steps = [step for n in range(N) for step in ((plus, COUNT, x, float(n)), (half_of, COUNT, x))]
try:
    commands = ag.MetalIndirect(steps, label="steps")
except ag.AppleGPUError_NotSupported as why:
    sys.exit("no indirect commands here: %s" % why)

start = time.perf_counter()
for _ in range(ROUNDS):
    work = ag.MetalBegin()
    ag.MetalEncodeIndirect(work, commands)
    ag.MetalWait(ag.MetalCommit(work))
replayed = time.perf_counter() - start
start = time.perf_counter()
for _ in range(ROUNDS):
    work = ag.MetalBegin()
    for pipeline, threads, _, *rest in steps:
        ag.MetalEncodeDispatch(work, pipeline, threads, y, *rest)
    ag.MetalWait(ag.MetalCommit(work))
encoded = time.perf_counter() - start

wanted = 0.0
for _ in range(ROUNDS):
    for n in range(N):
        wanted = (wanted + n) * 0.5
assert all(abs(a - wanted) < 1e-3 for a in ag.MetalContents(x, "f")) and ag.MetalRead(x) == ag.MetalRead(y)
print("%d dispatches, %d times: %.2f ms replayed, %.2f ms encoded each time; same result %.3f"
      % (len(steps), ROUNDS, 1e3 * replayed, 1e3 * encoded, wanted))
