"""What comes before training: videos and tables become data files, which are looked at and split.

Everything reads its input line by line, so memory does not grow with the number of lines.
"""
