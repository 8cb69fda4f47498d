"""Archives of torch-model-archiver become archives of ours, without a change of the user's code.

Nothing of that code runs in this process: it is read here, and run by workers alone.
"""
