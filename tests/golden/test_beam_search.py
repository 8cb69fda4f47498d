"""Our beam search against transformers' generate, where texts end early and late.

Without length penalty: transformers counts no prompt since 4.39, BLIP (on 4.15) does.
"""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import BlipTextConfig
from transformers.models.blip.modeling_blip_text import BlipTextLMHeadModel

from vlserve.runtime.decoding import BeamSearch, Cache, Ids, beam_search

WORDS, END, BEAMS, LONGEST = 23, 3, 3, 9


def model(seed: int) -> BlipTextLMHeadModel:
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
    return network


@pytest.mark.parametrize("min_length", [0, 5])
@pytest.mark.parametrize("seed", range(5))
def test_texts_and_scores_are_those_of_generate(seed: int, min_length: int) -> None:
    network, states = model(seed), torch.randn(4, 5, 16)
    prompt = torch.tensor([[1, 7]] * 4)
    expected: Any = network.generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        encoder_hidden_states=states,
        max_length=LONGEST,
        min_length=min_length,
        num_beams=BEAMS,
        num_return_sequences=BEAMS,
        length_penalty=0.0,
        eos_token_id=END,
        pad_token_id=0,
        output_scores=True,
        return_dict_in_generate=True,
        use_cache=False,
    )

    def step(token_ids: Ids, cache: Cache) -> tuple[Any, Cache]:
        texts = np.concatenate([cache["texts"], token_ids], axis=2) if cache else token_ids
        batch, beams, length = texts.shape
        rows = torch.from_numpy(texts.reshape(-1, length))
        memory = states.repeat_interleave(beams, dim=0)
        logits = network(rows, encoder_hidden_states=memory).logits[:, -1]
        return logits.reshape(batch, beams, WORDS).numpy(), {"texts": texts}

    rules = BeamSearch(BEAMS, LONGEST, END, min_length, length_penalty=0.0)
    found = [text for texts in beam_search(step, prompt.numpy(), rules) for text in texts]
    for text, row, score in zip(found, expected.sequences, expected.sequences_scores, strict=True):
        length = len(text.token_ids)
        assert row[:length].tolist() == text.token_ids.tolist()
        assert set(row[length:].tolist()) <= {0, END}  # padding
        assert text.score == pytest.approx(float(score), abs=1e-4)
    assert min(len(text.token_ids) for text in found) < LONGEST
