"""Kernels in C++ and CUDA, installed as `wrangan_kernels`: operators.py lists the operators,
build.py builds the libraries, loader.py tells whether they can be used.

Nothing is compiled or loaded at import.
"""
