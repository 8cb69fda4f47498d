"""Texts out of beams, as the options of a manifest say."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vlserve.exporter.wordpiece import SPECIAL, wordpiece
from vlserve.runtime.errors import ArchiveUnreadable, ManifestInvalid
from vlserve.runtime.manifest import Manifest
from vlserve.runtime.types import Arrays
from vlserve.runtime.writing import Writer

WORDS = (*SPECIAL, "a", "cat", "##s", "dog")
END = WORDS.index("[SEP]")
OPTIONS = {"prompt_ids": [2], "end_id": END, "beams": 2, "max_length": 7}


class Says:
    """A step whose memory (batch, length) is what it says, word by word, and then the end."""

    def run(self, inputs: Arrays) -> Arrays:
        ids, memory = inputs["token_ids"], inputs["memory_words"]
        place = inputs["past_place"].shape[2] + ids.shape[2] - 1
        logits = np.zeros((*ids.shape[:2], len(WORDS)), dtype=np.float32)
        for item, said in enumerate(memory):
            logits[item, :, int(said[place]) if place < len(said) else END] = 8
        new = np.zeros((*ids.shape, 1), dtype=np.float32)
        return {"logits": logits, "new_place": new}


def writer(root: Path, **options: Any) -> Writer:
    (root / "words.json").write_text(json.dumps(WORDS))
    wordpiece(WORDS).save(str(root / "tokenizer.json"))
    axes = {"token_ids": ["batch", "beams", "tokens"], "past_place": ["batch", "beams", "past", 1]}
    inputs = [
        {"name": name, "dtype": "int64" if name == "token_ids" else "float32", "dims": dims}
        for name, dims in axes.items()
    ]
    graph = {"file": "g", "format": "echo", "inputs": inputs, "outputs": []}
    files = ["g", "handlers/caption.py", "torchserve_handler.py", "MAR-INF/MANIFEST.json"]
    manifest = {"model": "m", "version": 1, "task": "caption", "family": "f"}
    manifest |= {"graphs": {"step": graph}, "options": {**OPTIONS, **options}}
    manifest |= {"files": dict.fromkeys(files, "0" * 64)}
    return Writer(Manifest.model_validate(manifest), root, {"step": Says()})


def ids(*rows: str) -> Arrays:
    """Memory that says these words."""
    return {"memory_words": np.array([[WORDS.index(word) for word in row.split()] for row in rows])}


def test_word_pieces_become_words(tmp_path: Path) -> None:
    write = writer(tmp_path, tokenizer="tokenizer.json")
    found = write.write(ids("a cat ##s dog", "dog [SEP] a a"), 2)
    assert [write.texts(found, item)[0].text for item in (0, 1)] == ["a cats dog", "dog"]
    best = write.texts(found, 0)
    assert len(best) == 2 and best[0].score > best[1].score
    chance = 8 - np.log(np.exp(8) + len(WORDS) - 1)  # of every word that is said
    assert best[0].log_prob == pytest.approx(5 * chance)


def test_a_list_of_words(tmp_path: Path) -> None:
    write = writer(tmp_path, words="words.json", finished="stay", length_penalty=0.0)
    found = write.write(ids("a a cat cat"), 1)
    assert write.texts(found, 0)[0].text == "a a cat cat"
    assert found["token_ids"].shape[:2] == (1, 2)


def test_words_that_follow_themselves_are_written_once(tmp_path: Path) -> None:
    write = writer(tmp_path, words="words.json", finished="stay", merge_repeats=True)
    assert write.texts(write.write(ids("a a cat cat"), 1), 0)[0].text == "a cat"


def test_the_prompt_is_no_part_of_the_text(tmp_path: Path) -> None:
    write = writer(tmp_path, tokenizer="tokenizer.json", prompt_ids=[2, 5, 6])
    assert write.texts(write.write(ids("a a dog dog"), 1), 0)[0].text == "dog dog"


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({}, ManifestInvalid, "neither tokenizer nor words"),
        ({"tokenizer": "none.json"}, ArchiveUnreadable, "none.json"),
        ({"words": "none.json"}, ArchiveUnreadable, "none.json"),
        ({"words": "tokenizer.json"}, ArchiveUnreadable, "not a JSON list"),
        ({"beams": "many", "words": "words.json"}, ManifestInvalid, "beams"),
        ({"finished": "gone", "words": "words.json"}, ManifestInvalid, "finished"),
    ],
)
def test_options_that_cannot_be(
    options: dict[str, Any], error: type[Exception], said: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=said):
        writer(tmp_path, **options)
