"""VQA accuracy by the rules of the official evaluation script.

Antol et al., "VQA: Visual Question Answering" (ICCV 2015), and vqaEval.py of GT-Vision-Lab/VQA,
which ALBEF and others run for their published figures. Oddities of the script belong to the figure:

- An answer is normalised in full, those of the annotators lose their punctuation alone, and only
  where they are not all the same.
- A sign becomes a space, or nothing where it touches a space anywhere in the text, or where the
  text has a comma between digits.
- Points go, but for those before a digit, and no more than 32 of them.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

ENOUGH = 3
"""So many other annotators who say the same make an answer right."""

_SIGNS = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_POINT = re.compile(r"\.(?!\d)")
_MAX_POINTS = 32
_ARTICLES = frozenset({"a", "an", "the"})
_DIGITS = {
    "none": "0",
    "zero": "0",
    "one": "1",
    "two": "2",
    "three": "3",
    "four": "4",
    "five": "5",
    "six": "6",
    "seven": "7",
    "eight": "8",
    "nine": "9",
    "ten": "10",
}
_CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
    haven't he'd've he'd he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've
    might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
    shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
    someone's something'd something'd've something'll that's there'd there'd've there're there's
    they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're
    what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're
    why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're
    you've
"""


def _lacking_one_apostrophe() -> dict[str, str]:
    """Map each word as it is written by those who leave one of its apostrophes out -> the word."""
    return {
        word[:place] + word[place + 1 :]: word
        for word in _CONTRACTED.split()
        for place, letter in enumerate(word)
        if letter == "'"
    }


_CONTRACTIONS = {**_lacking_one_apostrophe(), "somebody'd": "somebodyd"}  # the script's own slip


@dataclass(frozen=True)
class Annotation:
    """What one annotator answered. ``annotator`` is None where a file does not tell them apart:
    then all who say the same count as one."""

    answer: str
    annotator: int | None = None


def annotations_of(answers: Sequence[str]) -> list[Annotation]:
    """Make annotations, of one annotator each."""
    return [Annotation(answer, number) for number, answer in enumerate(answers)]


def vqa_accuracy(answer: str, annotations: Sequence[Annotation]) -> float:
    """Return an accuracy from 0 to 1: for each annotator left out in turn, the number of others who
    say the same, over three, 1 at the most; the mean of those. ``annotations``: one or more,
    usually ten."""
    candidate, references = normalised(answer), list(annotations)
    if len({annotation.answer for annotation in references}) > 1:
        references = [
            replace(annotation, answer=without_punctuation(annotation.answer))
            for annotation in references
        ]
    shares = []
    for omission in references:
        agreement = sum(
            reference.answer == candidate for reference in references if reference != omission
        )
        shares.append(min(1.0, agreement / ENOUGH))
    return sum(shares) / len(shares)


def is_any_of(answer: str, references: Sequence[str]) -> bool:
    """Return whether the answer is one of those, all of them normalised."""
    return normalised(answer) in {normalised(text) for text in references}


def normalised(answer: str) -> str:
    """Return an answer in lower case, without articles and punctuation, numbers in digits,
    contractions written out."""
    text = answer.replace("\n", " ").replace("\t", " ").strip()
    return in_plain_words(without_punctuation(text))


def without_punctuation(text: str) -> str:
    """Do what the script's processPunctuation does."""
    commas_in_numbers = _COMMA_IN_NUMBER.search(text) is not None
    result = text
    for sign in _SIGNS:
        touches_space = f"{sign} " in text or f" {sign}" in text
        result = result.replace(sign, "" if touches_space or commas_in_numbers else " ")
    return _POINT.sub("", result, count=_MAX_POINTS)


def in_plain_words(text: str) -> str:
    """Do what the script's processDigitArticle does."""
    words = (_DIGITS.get(word, word) for word in text.lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)
