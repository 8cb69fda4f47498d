"""Our beam search and sampling against transformers' generate, where texts end early and late.

Without length penalty: transformers counts no prompt since 4.39, BLIP (on 4.15) does.
"""

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from vlserve.runtime.decoding import BeamSearch, Cache, Ids, beam_search
from vlserve.runtime.sampling import Nucleus, probabilities, sample

if TYPE_CHECKING:
    from transformers.models.blip.modeling_blip_text import BlipTextLMHeadModel

WORDS, END, LONGEST = 23, 3, 9
PROMPT = (1, 7)


@cache
def drawn(seed: int, items: int) -> tuple["BlipTextLMHeadModel", torch.Tensor]:
    """A network, and what it reads beside the texts of so many items."""
    from transformers import BlipTextConfig
    from transformers.models.blip.modeling_blip_text import BlipTextLMHeadModel

    torch.manual_seed(seed)
    config = BlipTextConfig(
        vocab_size=WORDS,
        hidden_size=16,
        encoder_hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=40,
        bos_token_id=1,
        eos_token_id=END,
        sep_token_id=END,
    )
    network = BlipTextLMHeadModel(config).eval().requires_grad_(False)
    for parameter in network.parameters():
        if parameter.dim() > 1:
            parameter.mul_(8)
    network.cls.predictions.decoder.bias[END] = 2.0
    return network, torch.randn(items, 5, 16)


class Steps:
    """The network's logits for our searches, whose cache are the texts so far."""

    def __init__(self, network: "BlipTextLMHeadModel", states: torch.Tensor) -> None:
        self.network, self.states = network, states

    def __call__(self, token_ids: Ids, cache: Cache) -> tuple[Any, Cache]:
        texts = np.concatenate([cache["texts"], token_ids], axis=2) if cache else token_ids
        batch, beams, length = texts.shape
        rows = torch.from_numpy(texts.reshape(-1, length))
        memory = self.states.repeat_interleave(beams, dim=0)
        logits = self.network(rows, encoder_hidden_states=memory).logits[:, -1]
        return logits.reshape(batch, beams, WORDS).numpy(), {"texts": texts}


def generated(network: "BlipTextLMHeadModel", states: torch.Tensor, **rules: Any) -> Any:
    prompt = torch.tensor([PROMPT] * len(states))
    return network.generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        encoder_hidden_states=states,
        max_length=LONGEST,
        eos_token_id=END,
        pad_token_id=0,
        output_scores=True,
        return_dict_in_generate=True,
        use_cache=False,
        **rules,
    )


@pytest.mark.parametrize("penalty", [0.8, 1.0, 1.1, 1.5, 3.0])
@pytest.mark.parametrize("min_length", [0, 5, LONGEST])
@pytest.mark.parametrize("beams", [2, 3, 5])
def test_texts_and_scores_are_those_of_generate(
    beams: int, min_length: int, penalty: float
) -> None:
    lengths = set()
    for seed in range(4):
        network, states = drawn(seed, 4)
        expected = generated(
            *(network, states),
            min_length=min_length,
            num_beams=beams,
            num_return_sequences=beams,
            length_penalty=0.0,
            repetition_penalty=penalty,
        )
        rules = BeamSearch(beams, LONGEST, END, min_length, 0.0, repetition_penalty=penalty)
        prompt = np.array([PROMPT] * len(states))
        hypotheses = [
            text for texts in beam_search(Steps(network, states), prompt, rules) for text in texts
        ]
        for text, row, score in zip(
            hypotheses, expected.sequences, expected.sequences_scores, strict=True
        ):
            length = len(text.token_ids)
            assert row[:length].tolist() == text.token_ids.tolist()
            assert set(row[length:].tolist()) <= {0, END}  # padding
            assert text.score == pytest.approx(float(score), abs=1e-4)
            lengths.add(length)
    assert len(lengths) > 1 or min_length == LONGEST


@pytest.mark.parametrize("penalty", [0.8, 1.0, 1.1, 1.5, 3.0])
@pytest.mark.parametrize("min_length", [0, 5])
def test_one_beam_is_generates_greedy_search(min_length: int, penalty: float) -> None:
    for seed in range(4):
        network, states = drawn(seed, 4)
        expected = generated(
            network, states, min_length=min_length, repetition_penalty=penalty, do_sample=False
        )
        rules = BeamSearch(1, LONGEST, END, min_length, 0.0, repetition_penalty=penalty)
        hypotheses = beam_search(Steps(network, states), np.array([PROMPT] * len(states)), rules)
        for (text,), row in zip(hypotheses, expected.sequences, strict=True):
            length = len(text.token_ids)
            assert row[:length].tolist() == text.token_ids.tolist()


def test_the_log_probability_is_the_models_own_whatever_texts_are_ranked_by() -> None:
    network, states = drawn(0, 1)
    rules = BeamSearch(3, LONGEST, END, LONGEST, 0.0, repetition_penalty=1.2)
    (texts,) = beam_search(Steps(network, states), np.array([PROMPT]), rules)
    for text in texts:
        ids = torch.from_numpy(text.token_ids)[None]
        logits = network(ids, encoder_hidden_states=states).logits[0]
        own = logits.log_softmax(dim=-1)[range(1, len(ids[0]) - 1), ids[0, 2:]]
        np.testing.assert_allclose(text.log_probs, own, atol=1e-5)
    assert any(text.score < text.log_probs.sum() - 0.1 for text in texts)


@pytest.mark.parametrize("min_length", [0, 6])
@pytest.mark.parametrize(
    "rules",
    [
        {},
        {"top_p": 0.9},
        {"top_p": 0.5, "temperature": 0.7},
        {"top_p": 0.05},
        {"top_k": 4},
        {"top_k": 6, "top_p": 0.8, "temperature": 1.7, "repetition_penalty": 1.1},
        {"top_p": 0.9, "repetition_penalty": 2.5},
    ],
    ids=str,
)
def test_the_distribution_before_a_draw_is_that_of_generate(
    rules: dict[str, Any], min_length: int
) -> None:
    settings = {"top_p": 1.0, "top_k": 0, "temperature": 1.0, "repetition_penalty": 1.0} | rules
    for seed in range(3):
        network, states = drawn(seed, 4)
        torch.manual_seed(seed)
        expected = generated(network, states, min_length=min_length, do_sample=True, **settings)
        ours = Nucleus(LONGEST, END, min_length, **settings)
        for step, scores in enumerate(expected.scores):
            for item, score in enumerate(scores):
                text = expected.sequences[item, : len(PROMPT) + step]
                if END in text:
                    continue
                memory = states[item : item + 1]
                logits = network(text[None], encoder_hidden_states=memory).logits[0, -1]
                distribution = probabilities(logits.numpy(), text.numpy(), ours)
                np.testing.assert_allclose(distribution, score.softmax(dim=-1), atol=1e-5)
                assert (distribution == 0).tolist() == score.isneginf().tolist()


def test_what_is_drawn_has_the_distribution_and_each_seed_its_text() -> None:
    network, states = drawn(1, 1)
    states = states.repeat(2000, 1, 1)
    prompt = np.array([PROMPT] * len(states))
    rules = [Nucleus(len(PROMPT) + 1, END, top_p=0.95, seed=seed) for seed in range(len(states))]
    texts = sample(Steps(network, states), prompt, rules)
    logits, _ = Steps(network, states[:1])(prompt[:1, None], {})
    expected = probabilities(logits[0, 0], prompt[0], rules[0])
    counts = np.bincount([text.token_ids[-1] for text in texts], minlength=WORDS)
    assert (counts[expected == 0] == 0).all()
    expected, counts = 2000 * expected[expected > 0], counts[expected > 0]
    assert ((counts - expected) ** 2 / expected).sum() < 3 * len(expected)


def test_a_text_depends_on_its_seed_and_on_no_neighbour() -> None:
    network, states = drawn(2, 4)
    prompt = np.array([PROMPT] * len(states))
    rules = [Nucleus(LONGEST, END, 4, top_p=0.9, seed=seed) for seed in (7, 7, 8, 2**63)]
    together = sample(Steps(network, states), prompt, rules)
    assert len({len(text.token_ids) for text in together}) > 1
    for item, text in enumerate(together):
        own = states[item : item + 1]
        (alone,) = sample(Steps(network, own), prompt[:1], rules[item : item + 1])
        assert alone.token_ids.tolist() == text.token_ids.tolist()
        ids = torch.from_numpy(text.token_ids)[None]
        logits = network(ids, encoder_hidden_states=own).logits[0].log_softmax(dim=-1)
        expected = logits[range(len(PROMPT) - 1, len(ids[0]) - 1), ids[0, len(PROMPT) :]]
        np.testing.assert_allclose(text.log_probs, expected, atol=1e-5)
    same = [states[:1].repeat(30, 1, 1), np.array([PROMPT] * 30)]
    several = sample(
        Steps(network, same[0]), same[1], [Nucleus(LONGEST, END, seed=seed) for seed in range(30)]
    )
    assert len({tuple(text.token_ids) for text in several}) > 3
