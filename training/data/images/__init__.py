"""One image file to one square uint8 image: decode, centre crop, downsample."""
