"""The corruption-aware diffusion teacher: noise levels, backbone, denoiser, objectives, samplers."""
