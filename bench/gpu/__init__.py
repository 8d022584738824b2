"""The kit: vLLM on an offline GPU machine, measured by loadgen in a stated time. See README.md beside this file.

Everything up to `install` runs on a bare Python 3.11 or newer; the rest needs loadgen's dependencies.
"""
