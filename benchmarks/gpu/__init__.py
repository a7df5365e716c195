"""What `make gpu-check` is made of (docs/gpu.md): measurements and comparisons on one GPU, or a rehearsal on a CPU."""
