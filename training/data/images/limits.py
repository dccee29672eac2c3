"""Limits and choices of decoding, without the libraries that decode."""

from typing import Literal

MAX_PIXELS = 89_478_485
"""Default limit of width times height; a larger image may be an attempt to exhaust the memory. It equals Pillow's own limit."""
LARGEST_MAX_PIXELS = 2**30
"""Largest limit that a user can set: OpenCV decodes no larger image."""
Background = Literal["white", "grey", "black"]
"""Colour behind transparent pixels."""
