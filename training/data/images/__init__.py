"""From one image file to square uint8 images: decode, centre crop, resize. For `training.data` only."""
