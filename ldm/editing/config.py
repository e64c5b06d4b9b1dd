"""Defaults of editing, which the command line, Python and the diffusers pipeline share."""

STRENGTH = 0.3  # of img2img and of variations: along a grid of many small noise levels it is about as much as it keeps
RESAMPLINGS = 3  # of inpainting: how often every few steps are gone
