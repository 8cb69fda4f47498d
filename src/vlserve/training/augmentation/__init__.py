"""Random changes of training images and texts; validation and serving never see them.

images   RandAugment, crops, flips, jitter and blur, by Pillow; boxes follow
texts    the four EDA operations, left and right swapped, a translator of the user's
presets  which changes the source systems make, by name
"""
