"""Put this folder on PYTHONPATH and an NVIDIA program finds the Mac's GPU:

    PYTHONPATH=examples/nvml_alias gpustat
    PYTHONPATH=examples/nvml_alias nvitop --once

Works for command-line programs and the processes they start. The module itself takes this one's place, so what a client
sets in pynvml is set in pyapplegpu; a program with a copy of the bindings of its own is reached by that copy's name, for
example sys.modules["clearml.utilities.gpu.pynvml"].

Only for programs that read NVML to show figures. A program that takes NVML for CUDA (vLLM, exo and sglang choose their
back-end by it), or that reads this Mac's power in another way as well (zeus, codecarbon), is misled: do not make it
global.
"""
import os
import sys

try:
    import pyapplegpu
except ImportError:     # run from a checkout
    sys.path.append(os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir, os.pardir))
    import pyapplegpu

sys.modules[__name__] = sys.modules[__name__ + ".nvml"] = pyapplegpu     # older clients import pynvml.nvml
