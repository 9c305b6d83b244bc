"""The parts of perfmon.py: engine (sampling), metal (kernels, command buffers, allocations), analyse, compare, report, page."""
