"""Kernels and state that several platforms share: one folder per array framework."""
