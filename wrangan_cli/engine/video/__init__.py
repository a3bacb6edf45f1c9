"""Clips: decoding and encoding, a face followed over frames, its inversion, and the way back."""
