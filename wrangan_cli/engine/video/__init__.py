"""Clips: follow a face over the frames, invert it, and put it back."""
