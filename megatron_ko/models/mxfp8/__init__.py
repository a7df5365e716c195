"""Emulated MXFP8: number format, linear layers and experts."""
