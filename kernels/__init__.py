"""The place of the fused CUDA extensions, installed as `wrangan_kernels`.

Nothing is compiled yet: the suite runs on the PyTorch reference in `wrangan_cli.engine.ops`.
"""
