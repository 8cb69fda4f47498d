"""The offline service: an archive's answers to whole files of rows, one output row per input row.

The driver cuts the input into parts; workers (`vlserve_worker.batch`), one process a core with the
archive's frozen code, answer a part each and write it whole. All state is in the output's folder,
so that the same command goes on where an earlier run ended.
"""
