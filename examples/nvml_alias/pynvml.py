"""Put this folder on PYTHONPATH and an NVIDIA program finds the Mac's GPU:

    PYTHONPATH=examples/nvml_alias gpustat            # pyapplegpu installed, or its folder on PYTHONPATH too
    PYTHONPATH=examples/nvml_alias nvitop --once

Works for command-line programs and the processes they start. The module itself takes this one's place, so what a client
sets in pynvml is set in pyapplegpu; a program with a copy of the bindings of its own is reached by that copy's name, for
example sys.modules["clearml.utilities.gpu.pynvml"].

Only for programs that read NVML to show figures. A program that takes NVML for CUDA (vLLM, exo and sglang choose their
back-end by it), or that reads this Mac's power in another way as well (zeus, codecarbon), is misled: do not make it
global.
"""
import sys

import pyapplegpu

sys.modules[__name__] = sys.modules[__name__ + ".nvml"] = pyapplegpu     # older clients import pynvml.nvml
