"""From an fp32 archive to one in INT8: calibrate, try, time, gate, pack.

Above training, because the gate measures answers as `vlserve evaluate` does.
"""
