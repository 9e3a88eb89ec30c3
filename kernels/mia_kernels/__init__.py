"""The compiled core of mia-fast: arrays in, arrays out.

No frame, no file, no clock and no global state lives here. Everything is compiled by
:func:`mia_kernels.compile.kernel`, cached under a digest of all kernel sources.
"""
