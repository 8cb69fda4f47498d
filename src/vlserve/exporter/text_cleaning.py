"""Text as vision-language data sets are cleaned before training, as steps of a tokenizer.

Source: pre_caption and pre_question of salesforce/ALBEF, dataset/utils.py. There a text is also cut
after so many words; the tokenizer's max_length cuts it here.
"""

from typing import Literal

from tokenizers import Regex, Tokenizer, normalizers

Kind = Literal["caption", "question"]

_BOTH = (
    normalizers.Lowercase(),
    normalizers.Replace(Regex(r"""[,.'!?"()*#:;~]"""), ""),
    normalizers.Replace(Regex("[-/]"), " "),
)
_QUESTION = (normalizers.Replace(Regex(r" +\z"), ""),)
_CAPTION = (
    normalizers.Replace("<person>", "person"),
    normalizers.Replace(Regex(r"\s{2,}"), " "),
    normalizers.Replace(Regex(r"\n+\z"), ""),
    normalizers.Replace(Regex(r"\A +| +\z"), ""),
)


def cleaning(kind: Kind) -> normalizers.Normalizer:
    """Lower case, without most punctuation; hyphens and slashes become spaces."""
    return normalizers.Sequence([*_BOTH, *(_CAPTION if kind == "caption" else _QUESTION)])


def clean_first(tokenizer: Tokenizer, kind: Kind) -> None:
    """Make a tokenizer clean every text before anything else."""
    tokenizer.normalizer = normalizers.Sequence([cleaning(kind), tokenizer.normalizer])
