"""Two queues that take turns by an event, a fence, and a capture for Xcode.        MTL_CAPTURE_ENABLED=1 python events_capture.py"""
import os
import sys
import tempfile

sys.path.insert(1, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))     # the copy beside the examples
import pyapplegpu as ag

add = ag.MetalKernel("""
    #include <metal_stdlib>
    using namespace metal;
    kernel void scale(device float *x [[buffer(0)]], constant float &by [[buffer(1)]], constant float &plus [[buffer(2)]],
                      uint i [[thread_position_in_grid]]) { x[i] = x[i] * by + plus; }""", "scale")


def take_turns():
    """x = ((0 + 3) * 2 + 1): the second queue's work is committed first, and waits."""
    first, second, event, x = ag.MetalQueue(label="first"), ag.MetalQueue(label="second"), ag.MetalEvent(), ag.MetalBuffer(4096)
    later = ag.MetalBegin(second, label="later")
    ag.MetalEncodeWait(later, event, 2)
    ag.MetalEncodeDispatch(later, add, 1024, x, 2.0, 1.0)
    ag.MetalEncodeSignal(later, event, 3)
    ag.MetalCommit(later)
    sooner = ag.MetalBegin(first, label="sooner")
    ag.MetalEncodeWait(sooner, event, 1)
    ag.MetalEncodeDispatch(sooner, add, 1024, x, 1.0, 3.0)
    ag.MetalEncodeSignal(sooner, event, 2)
    ag.MetalCommit(sooner)
    assert event.signaledValue() == 0 and x.contents() and ag.MetalContents(x, "f")[0] == 0, "somebody did not wait"
    ag.MetalEventSet(event, 1)          # from the CPU: now they may
    ag.MetalEventWait(event, 3, timeout=10)
    ag.MetalWait(sooner), ag.MetalWait(later)
    assert set(ag.MetalContents(x, "f")) == {7.0}


def fenced():
    """The same within one queue, for memory whose order Metal does not watch."""
    fence, work, x = ag.MetalFence(), ag.MetalBegin(label="fenced"), ag.MetalHeapBuffer(ag.MetalHeap(1 << 16), 4096)
    ag.MetalEncodeDispatch(work, add, 1024, x, 0.0, 5.0, update=fence, label="first")
    ag.MetalEncodeDispatch(work, add, 1024, x, 3.0, 0.0, wait=[fence], label="then")
    ag.MetalWait(ag.MetalCommit(work))
    assert set(ag.MetalContents(x, "f")) == {15.0}


path = sys.argv[1] if len(sys.argv) > 1 else os.path.join(tempfile.mkdtemp(), "turns.gputrace")
try:
    with ag.MetalCapture(path):
        take_turns()
        fenced()
    print("captured to %s: open it with Xcode" % path)
except ag.AppleGPUError as why:
    if why.value != ag.ERROR_NOT_SUPPORTED:
        raise
    print("no capture: %s" % why)
    take_turns()
    fenced()
print("7 and 15, in order")
