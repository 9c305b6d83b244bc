"""A matrix product with Metal Performance Shaders: any class of any framework is a send away.        python mps_matmul.py [n]"""
import array
import os
import random
import sys

sys.path.insert(1, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))     # the copy beside the examples
import pyapplegpu as ag

FLOAT32 = 0x10000000 | 32       # MPSDataTypeFloat32
n = int(sys.argv[1]) if len(sys.argv) > 1 else 64
ag.MetalFramework("MetalPerformanceShaders")
device = ag.MetalDevice()


def matrix(buffer):
    layout = ag.MetalClass("MPSMatrixDescriptor").matrixDescriptorWithRows_columns_rowBytes_dataType_(n, n, 4 * n, FLOAT32)
    return ag.MetalClass("MPSMatrix").alloc().initWithBuffer_descriptor_(buffer, layout)


left, right = (array.array("f", [random.randrange(-8, 8) for _ in range(n * n)]) for _ in range(2))
a, b, c = ag.MetalBuffer(left), ag.MetalBuffer(right), ag.MetalBuffer(4 * n * n)
product = ag.MetalClass("MPSMatrixMultiplication").alloc()
product = product.initWithDevice_transposeLeft_transposeRight_resultRows_resultColumns_interiorColumns_alpha_beta_(device, False, False, n, n, n, 1.0, 0.0)
matrices = matrix(a), matrix(b), matrix(c)
work = ag.MetalBegin(label="product")
ag.MetalEncode(work, "none", lambda command: product.encodeToCommandBuffer_leftMatrix_rightMatrix_resultMatrix_(command, *matrices))
ag.MetalWait(ag.MetalCommit(work))
result = ag.MetalContents(c, "f")
for i, j in ((0, 0), (n // 2, n // 3), (n - 1, n - 1), (1, n - 2)):
    assert result[i * n + j] == sum(left[i * n + k] * right[k * n + j] for k in range(n)), (i, j)
seconds = ag.MetalTimes(work).gpu_s
print("%d x %d right%s" % (n, n, ", %.1f GFLOPS" % (2e-9 * n ** 3 / seconds) if seconds else ""))
