"""Put this folder on PYTHONPATH and an NVIDIA program finds the Mac's GPU:

    PYTHONPATH=examples/nvml_alias gpustat            # pyapplegpu installed, or its folder on PYTHONPATH too
    PYTHONPATH=examples/nvml_alias nvitop --once

Works for command-line programs and the processes they start. The module itself takes this one's place: a star import
would lose the names with a leading underscore that gpustat, nvitop and zeus look for.

Only for programs that read NVML to show figures. A program that takes NVML for CUDA (vLLM, exo and sglang choose their
back-end by it), or that reads this Mac's power in another way as well (zeus, codecarbon), is misled: do not make it
global.
"""
import sys

import pyapplegpu

sys.modules[__name__] = pyapplegpu
