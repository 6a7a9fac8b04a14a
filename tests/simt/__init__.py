"""A developer tool: runs the LLVM IR of GPU kernels on the CPU, one fiber per GPU thread, and watches every access."""
