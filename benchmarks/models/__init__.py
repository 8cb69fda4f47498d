"""What the parts of a network cost: attention, INT8."""
