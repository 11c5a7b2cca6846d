"""What tools/convert.py does: sources of images, splits, repair."""
