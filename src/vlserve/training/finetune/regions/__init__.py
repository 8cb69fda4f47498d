"""Networks that read features of image regions, trained on: ViLBERT and VisualBERT.

plans      what differs between the families: heads, logits, what pretraining guesses
data       features, boxes and detections of a line's files
inputs     a batch of texts and regions, as graphs read them
jobs       answer, tag, entail, reason, ground: one head's scores
matching   match: the right pair of four
pretrain   masked words, masked regions, alignment
"""
