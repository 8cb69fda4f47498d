"""Open Inference Protocol (V2): requests of several items to plain ones, and their answers to one.

It lies outside of an archive's frozen code, so that archives which were packed before it answer V2
as well. https://github.com/kserve/open-inference-protocol
"""
