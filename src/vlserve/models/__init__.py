"""Networks and their parts that several recipes share; none knows a model family.

Our own rather than transformers' classes, where a recipe needs what those do not give: attention
maps that a gradient can be taken at, keys and values as plain tensors of an exported decoder step,
cross-attention in some layers only, and the parameter names of the original checkpoints.
"""
