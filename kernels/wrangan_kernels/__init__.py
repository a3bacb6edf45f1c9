"""Kernels in C++ and CUDA, installed as `wrangan_kernels`: operators.py says what there is,
build.py makes the libraries, loader.py tells whether they can be used.

Nothing is compiled or loaded at import.
"""
