"""What a network is trained to do: one file an objective, each a function or a small dataclass of
``(network, batch)`` that gives losses by name. None steps an optimiser, reads a file or keeps a
state of its own: what changes between steps (a teacher, a queue) is passed in and changed in the
open.

    classify         tag, entail, reason, match: one head's logits
    answer           VQA: soft targets over a list of answers, or weighted generation
    retrieve         image-text contrast with a teacher and a queue, matching on hard negatives
    caption          cross-entropy of the next word
    self_critical    captions by reward
    pretrain_align   ALBEF's pretraining: contrast, matching, masked words
    pretrain_regions ViLBERT's and VisualBERT's: masked words, masked regions, alignment

    momentum, encoders, hard_negatives, masking   what several of them are made of
"""
