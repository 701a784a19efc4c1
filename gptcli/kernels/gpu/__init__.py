"""Arithmetic for CUDA GPUs in Triton: tensors in, tensors out. Loaded only where Triton is there."""
