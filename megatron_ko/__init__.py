"""megatron_ko: raw Korean text in, a verified Korean language model out, on a laptop and on a cluster."""

__version__ = "0.1.0"
