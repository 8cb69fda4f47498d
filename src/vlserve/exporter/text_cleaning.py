"""Text as vision-language data sets are cleaned before training, as steps of a tokenizer.

Source: pre_caption and pre_question of salesforce/ALBEF, dataset/utils.py, and of salesforce/BLIP,
data/utils.py, which cut a text after so many words, too. A word is what stands between two single
spaces, as there.
"""

from collections.abc import Mapping
from typing import Literal

from tokenizers import Regex, Tokenizer, normalizers

Original = Literal["albef", "blip"]
Kind = Literal["caption", "question"]

_ALBEF = (
    normalizers.Replace(Regex(r"""[,.'!?"()*#:;~]"""), ""),
    normalizers.Replace(Regex("[-/]"), " "),
)
_BLIP = r"""[.!"()*#:;~]"""
"""Commas, apostrophes, question marks, hyphens and slashes stay."""
_PUNCTUATION: Mapping[tuple[Original, Kind], tuple[normalizers.Normalizer, ...]] = {
    ("albef", "caption"): (*_ALBEF, normalizers.Replace("<person>", "person")),
    ("albef", "question"): _ALBEF,
    ("blip", "caption"): (normalizers.Replace(Regex(_BLIP), " "),),
    ("blip", "question"): (normalizers.Replace(Regex(_BLIP), ""),),
}
_SPACES: Mapping[Kind, tuple[normalizers.Normalizer, ...]] = {
    "caption": (
        normalizers.Replace(Regex(r"\s{2,}"), " "),
        normalizers.Replace(Regex(r"(?<!\n)\n+\z"), ""),
        normalizers.Replace(Regex(r"\A +|(?<! ) +\z"), ""),
    ),
    "question": (normalizers.Replace(Regex(r"(?<! ) +\z"), ""),),
}


def cleaning(original: Original, kind: Kind) -> normalizers.Normalizer:
    """Return lower case, and punctuation and spaces as the original's data sets have them."""
    steps = (normalizers.Lowercase(), *_PUNCTUATION[original, kind], *_SPACES[kind])
    return normalizers.Sequence(list(steps))


def cut_after(words: int) -> normalizers.Normalizer:
    """Leave out what follows so many words."""
    pattern = rf"\A(?:[^ ]* ){{{words - 1}}}[^ ]*"
    return normalizers.Replace(Regex(rf"{pattern}\K [\s\S]*\z"), "")


def clean_first(tokenizer: Tokenizer, original: Original, kind: Kind, max_words: int) -> None:
    """Make a tokenizer clean every text, and cut it after ``max_words``, before anything else."""
    first = [cleaning(original, kind), cut_after(max_words)]
    tokenizer.normalizer = normalizers.Sequence([*first, tokenizer.normalizer])
