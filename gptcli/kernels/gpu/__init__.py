"""Triton kernels for CUDA GPUs. All modules except launches and triton_support import triton."""
