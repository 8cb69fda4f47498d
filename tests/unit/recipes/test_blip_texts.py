"""What BLIP reads of a text: cleaned and cut as in the evaluations of its original."""

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.tiny_exports import tiny
from vlserve.exporter.recipe import load_recipe
from vlserve.exporter.text_cleaning import Kind, cleaning
from vlserve.runtime.text import Tokenizer, load_tokenizer

RECIPE: Any = load_recipe("blip", Path(__file__).parents[3] / "export")
PUNCTUATION = '.!"()*#:;~'
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "dog", "##s", ",", "?", "-", "'"]
BERT = {
    **{"hidden": 16, "layers": 1, "heads": 2, "intermediate": 24, "layer_norm_eps": 1e-12},
    **{"vocabulary": len(WORDS) + 2, "positions": 40, "token_types": 0, "first_cross_layer": 0},
    "memory_hidden": 16,
}
VISION = {
    **{"hidden": 16, "layers": 1, "heads": 2, "intermediate": 24, "layer_norm_eps": 1e-6},
    "patch": 8,
}
TASKS: dict[str, dict[str, Any]] = {
    "match": {"encoder": BERT, "embedding": 6},
    "embed": {"encoder": BERT, "embedding": 6},
    "answer": {"encoder": BERT, "decoder": BERT, "answers": ["a cat", "dogs"]},
}
LIMITS = {"match": 30, "embed": 30, "answer": 50}
"""Words that the original's evaluation of a task leaves of a text; then 35 tokens."""


def plainly(text: str, kind: Kind) -> str:
    """The original's rule, without a tokenizer."""
    replacements = dict.fromkeys(map(ord, PUNCTUATION), " " if kind == "caption" else None)
    bare = text.lower().translate(replacements)
    if kind == "question":
        return bare.rstrip(" ")
    return re.sub(r"\s{2,}", " ", bare).rstrip("\n").strip(" ")


@pytest.mark.parametrize("kind", ["caption", "question"])
@given(text=st.text(f"aB{PUNCTUATION} ,'?-/<>\n\té猫"))
def test_a_text_is_cleaned_as_by_the_original(kind: Kind, text: str) -> None:
    assert cleaning("blip", kind).normalize_str(text) == plainly(text, kind)


def kind_of(task: str) -> Kind:
    return "question" if task == "answer" else "caption"


def tokenizer_of(task: str, folder: Path, **options: Any) -> Tokenizer:
    """As an archive of the task turns texts into ids."""
    fields = {"vocabulary": WORDS, "vision_heads": 2, "text_heads": 2, "task": task}
    image = {"image": {"height": 16, "width": 16}}
    model = tiny(RECIPE, fields | image | TASKS[task] | {"vision": VISION, "max_length": 35})
    answers = {name: TASKS[task][name] for name in ("answers",) if name in TASKS[task]}
    config = RECIPE.complete_config(fields | answers | options, model.network.state_dict(), folder)
    (folder / "assets").mkdir()
    text = RECIPE.serve(config, folder / "assets").text
    assert text is not None
    return load_tokenizer(text, folder)


def original_ids(text: str, folder: Path) -> list[int]:
    """As the original's tokenizer cuts after 35 tokens."""
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    from transformers import BertTokenizer

    bert = BertTokenizer(str(folder / "vocab.txt"))
    ids: list[int] = bert(text, truncation=True, max_length=35)["input_ids"]
    return ids


TEXTS = (
    " ".join(["a", "cat", "dogs"] * 25),
    "a " * 28 + "cat. dog! cats",
    "(a) " * 29 + "cat; dogs",
    "Cat-dog, it's a dog?",
    "A CAT!!  a... dog",
    "a" + " " * 40 + "cat",
    "a cat",
)


@pytest.mark.parametrize("task", TASKS)
def test_texts_become_the_originals_ids(task: str, tmp_path: Path) -> None:
    tokenizer = tokenizer_of(task, tmp_path)
    for text in TEXTS:
        words = " ".join(plainly(text, kind_of(task)).split(" ")[: LIMITS[task]])
        assert tokenizer.ids(text).tolist() == original_ids(words, tmp_path), text
    singles = " ".join(["a"] * 60)
    assert len(tokenizer.ids(singles)) == min(LIMITS[task] + 2, 35)


def test_a_config_may_cut_elsewhere(tmp_path: Path) -> None:
    tokenizer = tokenizer_of("match", tmp_path, max_words=2)
    assert tokenizer.ids("A cat, dogs").tolist() == [2, 5, 6, 9, 3]


def test_a_caption_is_learnt_as_the_original_learns_it() -> None:
    clean = RECIPE.finetuning.caption
    assert clean('Two dogs: "a dog", and   a CAT!\n') == "two dogs a dog , and a cat"
    assert clean("a " * 40) == " ".join(["a"] * 30)
