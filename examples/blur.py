"""Gaussian blur of a PNG on the GPU.        python blur.py [in.png [out.png]]

Without a file it makes a test picture. Two kernels, along the rows and along the columns, four channels at a time. Checked
against the same sum in Python, and timed against SciPy where that is installed.
"""
import array
import math
import os
import struct
import sys
import time

sys.path.insert(1, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import pyapplegpu as ag

SOURCE = """
#include <metal_stdlib>
using namespace metal;
struct Shape { int width; int height; int radius; int step_x; int step_y; };
kernel void blur(device const float4 *in [[buffer(0)]], device float4 *out [[buffer(1)]], constant float *weight [[buffer(2)]],
                 constant Shape &s [[buffer(3)]], uint2 at [[thread_position_in_grid]])
{
    if (int(at.x) >= s.width || int(at.y) >= s.height) return;
    float4 sum = float4(0.0f, 0.0f, 0.0f, 0.0f);
    for (int k = -s.radius; k <= s.radius; k++) {
        int x = clamp(int(at.x) + k * s.step_x, 0, s.width - 1);
        int y = clamp(int(at.y) + k * s.step_y, 0, s.height - 1);
        sum = sum + in[y * s.width + x] * weight[k + s.radius];
    }
    out[at.y * s.width + at.x] = sum;
}
"""


def read(path):
    with open(path, "rb") as file:
        return ag.MetalPngRead(file.read())


def test_picture(width=96, height=64):
    return width, height, b"".join(bytes((255 if (x // 8 + y // 8) % 2 else 0, x * 255 // width, y * 255 // height, 255))
                                   for y in range(height) for x in range(width))


def blur(width, height, pixels, sigma=2.0):
    """(blurred RGBA bytes, GPU seconds, weights, radius)."""
    radius = int(3 * sigma + 0.5)
    weights = array.array("f", [math.exp(-k * k / (2 * sigma * sigma)) for k in range(-radius, radius + 1)])
    total = sum(weights)
    weights = array.array("f", [w / total for w in weights])
    picture = ag.MetalBuffer(array.array("f", list(pixels)), label="picture")
    between, result = ag.MetalBuffer(16 * width * height), ag.MetalBuffer(16 * width * height)
    kernel, work = ag.MetalKernel(SOURCE, "blur"), ag.MetalBegin(label="blur")
    for source, target, steps in ((picture, between, (1, 0)), (between, result, (0, 1))):
        ag.MetalEncodeDispatch(work, kernel, (width, height), source, target, weights, struct.pack("=5i", width, height, radius, *steps))
    ag.MetalWait(ag.MetalCommit(work))
    values = ag.MetalContents(result, "f")
    return bytes(min(max(int(v + 0.5), 0), 255) for v in values), ag.MetalTimes(work).gpu_s or 0.0, list(weights), radius


def in_python(width, height, pixels, weights, radius, x, y, channel):
    def row(yy):
        return sum(w * pixels[4 * (yy * width + min(max(x + k - radius, 0), width - 1)) + channel] for k, w in enumerate(weights))
    return sum(w * row(min(max(y + k - radius, 0), height - 1)) for k, w in enumerate(weights))


def main():
    width, height, pixels = read(sys.argv[1]) if len(sys.argv) > 1 else test_picture()
    out = sys.argv[2] if len(sys.argv) > 2 else "blurred.png"
    blurred, seconds, weights, radius = blur(width, height, pixels)
    worst = max(abs(in_python(width, height, pixels, weights, radius, x, y, c) - blurred[4 * (y * width + x) + c])
                for x, y, c in ((0, 0, 0), (width // 2, height // 3, 1), (width - 1, height - 1, 2), (width // 3, height // 2, 0)))
    with open(out, "wb") as file:
        file.write(ag.MetalPng(width, height, blurred))
    print("%d x %d blurred in %.3f ms of GPU time, largest difference %.2f of 255, written to %s" % (width, height, 1e3 * seconds, worst, out))
    try:
        import numpy as np
        from scipy.ndimage import gaussian_filter
    except ImportError:
        pass
    else:
        image = np.frombuffer(pixels, np.uint8).reshape(height, width, 4).astype(np.float32)
        start = time.perf_counter()
        gaussian_filter(image, (2.0, 2.0, 0), mode="nearest", truncate=3)
        theirs = time.perf_counter() - start
        print("SciPy: %.3f ms%s" % (1e3 * theirs, ", %.1f times as long" % (theirs / seconds) if seconds else ""))
    if worst > 0.6:
        sys.exit("the picture is wrong")


if __name__ == "__main__":
    main()
