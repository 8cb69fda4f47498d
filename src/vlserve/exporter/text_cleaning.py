"""Text as vision-language data sets are cleaned before training, as steps of a tokenizer.

Source: pre_caption and pre_question of salesforce/ALBEF, dataset/utils.py, which cut a text after
so many words, too. A word is what stands between two single spaces, as there.
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


def cut_after(words: int) -> normalizers.Normalizer:
    """Leave out what follows so many words."""
    kept = rf"\A(?:[^ ]* ){{{words - 1}}}[^ ]*"
    return normalizers.Replace(Regex(rf"{kept}\K [\s\S]*\z"), "")


def clean_first(tokenizer: Tokenizer, kind: Kind, max_words: int) -> None:
    """Make a tokenizer clean every text, and cut it after ``max_words``, before anything else."""
    first = [cleaning(kind), cut_after(max_words)]
    tokenizer.normalizer = normalizers.Sequence([*first, tokenizer.normalizer])
