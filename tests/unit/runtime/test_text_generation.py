"""Texts out of beams, as the options of a manifest say."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vlserve.exporter.wordpiece import SPECIAL, wordpiece
from vlserve.runtime.body import parse_fields
from vlserve.runtime.decoding_options import MANNER, WritingFields
from vlserve.runtime.errors import ArchiveUnreadable, ErrorCode, ManifestInvalid, RequestError
from vlserve.runtime.manifest import Manifest
from vlserve.runtime.text_generation import Writer
from vlserve.runtime.types import Arrays

WORDS = (*SPECIAL, "a", "cat", "##s", "dog")
END = WORDS.index("[SEP]")
OPTIONS = {"prompt_ids": [2], "end_id": END, "beams": 2, "max_length": 7}


class Says:
    """A step whose memory (batch, length) is what it says, word by word, and then the end."""

    def run(self, inputs: Arrays) -> Arrays:
        ids, memory = inputs["token_ids"], inputs["memory_words"]
        place = inputs["past_place"].shape[2] + ids.shape[2] - 1
        logits = np.zeros((*ids.shape[:2], len(WORDS)), dtype=np.float32)
        for item, words in enumerate(memory):
            logits[item, :, int(words[place]) if place < len(words) else END] = 8
        new = np.zeros((*ids.shape, 1), dtype=np.float32)
        return {"logits": logits, "new_place": new}


def writer(root: Path, **options: Any) -> Writer:
    (root / "words.json").write_text(json.dumps(WORDS), encoding="utf-8")
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


def manner(write: Writer, **fields: Any) -> Any:
    return write.manners.sample(parse_fields(WritingFields, fields))[MANNER]


def text_of(write: Writer, memory: Arrays, *manners: Any) -> list[str]:
    outputs = write.write(memory, len(manners), np.stack(manners))
    return [write.texts(outputs, item)[0].text for item in range(len(manners))]


def test_each_item_of_a_batch_is_written_in_its_own_manner(tmp_path: Path) -> None:
    sampling = {"temperature_limits": [0.1, 9.0], "repetition_penalty_limits": [1.0, 9999.0]}
    write = writer(tmp_path, words="words.json", sampling=sampling)
    memory = ids("a a dog", "a a dog", "a a dog", "a a dog", "a a dog")
    wild = {"temperature": 9.0, "top_p": 1.0, "repetition_penalty": 1}
    manners = [
        manner(write),
        manner(write, repetition_penalty=9999),
        *(manner(write, seed=seed, **wild) for seed in (1, 1, 2)),
    ]
    together = text_of(write, memory, *manners)
    for item, choice in enumerate(manners):
        alone = {name: rows[item : item + 1] for name, rows in memory.items()}
        assert text_of(write, alone, choice) == [together[item]]
    beam_text, penalty_text, first, repeat, other = together
    assert beam_text == "a a dog" and penalty_text != beam_text
    assert first == repeat and first not in (other, beam_text)
    outputs = write.write(memory, 5, np.stack(manners))
    assert np.isfinite(outputs["score"]).sum(axis=1).tolist() == [2, 2, 1, 1, 1]


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"top_p": 0.0}, "top_p: must be from 0.01 to 1.0, not 0.0"),
        ({"top_p": 1.5}, "top_p: must be from"),
        ({"temperature": 0.01}, "temperature: must be from 0.1 to 2.0"),
        ({"temperature": b"7"}, "temperature: must be from"),
        ({"repetition_penalty": 0.5}, "repetition_penalty: must be from 1.0 to 2.0"),
        ({"seed": -1}, "seed: must be from 0 to 999999999"),
        ({"seed": 10**9}, "seed: must be from"),
        ({"seed": 1.5}, "seed: "),
        ({"seed": b"1234567890"}, "seed: "),
        ({"top_p": True}, "top_p: .*must be a number"),
        ({"top_p": "0.5"}, "top_p: "),
        ({"top_p": b"nan"}, "top_p: .*must be a number"),
        ({"top_p": float("nan")}, "top_p: "),
        ({"sample": 1}, "sample: "),
        ({"sample": False, "seed": 3}, "seed: says how a text is drawn, and sample is false"),
    ],
)
def test_what_is_not_on_offer_is_refused(tmp_path: Path, fields: dict[str, Any], why: str) -> None:
    write = writer(tmp_path, words="words.json", sampling={})
    with pytest.raises(RequestError, match=f"^{why}") as error:
        manner(write, **fields)
    assert error.value.code is ErrorCode.FIELD_INVALID


def test_wishes_come_as_json_and_in_a_form(tmp_path: Path) -> None:
    write = writer(tmp_path, words="words.json", sampling={})
    assert manner(write).tolist()[:2] == [1.0, 0.0]
    assert manner(write, sample=False).tolist()[:2] == [1.0, 0.0]
    for fields in (
        {"sample": True, "top_p": 0.5, "temperature": 2, "seed": 7, "repetition_penalty": 1.5},
        {
            **{"sample": b"true", "top_p": b"0.5", "temperature": b"2", "seed": b"7"},
            "repetition_penalty": b"1.5",
        },
    ):
        assert manner(write, **fields).tolist() == [1.5, 1.0, 0.5, 2.0, 7.0]
    assert manner(write, top_p=0.5).tolist() == [1.1, 1.0, 0.5, 1.0, 0.0]
    assert manner(write, sample=True).tolist() == [1.1, 1.0, 0.9, 1.0, 0.0]


@pytest.mark.parametrize("fields", [{"sample": True}, {"top_p": 0.9}, {"repetition_penalty": 1.2}])
def test_a_model_without_sampling_takes_no_wishes(tmp_path: Path, fields: dict[str, Any]) -> None:
    write = writer(tmp_path, words="words.json")
    assert text_of(write, ids("a cat"), manner(write)) == ["a cat"]
    (name,) = fields
    with pytest.raises(RequestError, match=f"{name}: this model takes no {name}"):
        manner(write, **fields)


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 0.0},
        {"sampling": {"top_p": 0}},
        {"sampling": {"temperature_limits": [2, 1]}},
        {"sampling": {"colour": "red"}},
    ],
)
def test_options_of_sampling_that_cannot_work(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ManifestInvalid, match="options of a model that writes"):
        writer(tmp_path, words="words.json", **options)


def ids(*rows: str) -> Arrays:
    """Memory that says these words."""
    return {"memory_words": np.array([[WORDS.index(word) for word in row.split()] for row in rows])}


def test_word_pieces_become_words(tmp_path: Path) -> None:
    write = writer(tmp_path, tokenizer="tokenizer.json")
    outputs = write.write(ids("a cat ##s dog", "dog [SEP] a a"), 2)
    assert [write.texts(outputs, item)[0].text for item in (0, 1)] == ["a cats dog", "dog"]
    best = write.texts(outputs, 0)
    assert len(best) == 2 and best[0].score > best[1].score
    chance = 8 - np.log(np.exp(8) + len(WORDS) - 1)  # of every word that is said
    assert best[0].log_prob == pytest.approx(5 * chance)


def test_a_list_of_words(tmp_path: Path) -> None:
    write = writer(tmp_path, words="words.json", finished="stay", length_penalty=0.0)
    outputs = write.write(ids("a a cat cat"), 1)
    assert write.texts(outputs, 0)[0].text == "a a cat cat"
    assert outputs["token_ids"].shape[:2] == (1, 2)


def test_words_that_follow_themselves_are_written_once(tmp_path: Path) -> None:
    write = writer(tmp_path, words="words.json", finished="stay", merge_repeats=True)
    assert write.texts(write.write(ids("a a cat cat"), 1), 0)[0].text == "a cat"


def test_the_prompt_is_no_part_of_the_text(tmp_path: Path) -> None:
    write = writer(tmp_path, tokenizer="tokenizer.json", prompt_ids=[2, 5, 6])
    assert write.texts(write.write(ids("a a dog dog"), 1), 0)[0].text == "dog dog"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ManifestInvalid, "neither tokenizer nor words"),
        ({"tokenizer": "none.json"}, ArchiveUnreadable, "none.json"),
        ({"words": "none.json"}, ArchiveUnreadable, "none.json"),
        ({"words": "tokenizer.json"}, ArchiveUnreadable, "not a JSON list"),
        ({"words": "deep.json"}, ArchiveUnreadable, "words deep.json cannot be read"),
        ({"beams": "many", "words": "words.json"}, ManifestInvalid, "beams"),
        ({"finished": "gone", "words": "words.json"}, ManifestInvalid, "finished"),
    ],
)
def test_options_that_cannot_be(
    options: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    (tmp_path / "deep.json").write_text("[" * 20_000, encoding="utf-8")
    with pytest.raises(error, match=message):
        writer(tmp_path, **options)
