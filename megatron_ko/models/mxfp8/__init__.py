"""MXFP8 emulated: its numbers, linear layers and experts."""
