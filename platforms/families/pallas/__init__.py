"""Our kernels for TPUs in Pallas: before the JAX family's on a chip, or under Pallas' TPU interpreter.

Importing this package imports no JAX.
"""
