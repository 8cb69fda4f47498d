"""Attention with fewer keys: what must hold of every variant."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vlserve.models.attention import AttentionMap
from vlserve.models.bert import LayersConfig
from vlserve.models.coattention import (
    CoAttention,
    JointEncoder,
    KeysConfig,
    first_of_chunks,
    mean_of_chunks,
)

SIZES = LayersConfig(hidden=8, layers=2, heads=2, intermediate=12)
REDUCED = [
    KeysConfig(variant=variant, chunk=chunk, text=text)
    for variant in ("chunk", "sparse")
    for chunk, text in ((2, False), (3, True), (5, False))
]
EVERY = [KeysConfig(), *REDUCED]
Streams = tuple[Tensor, Tensor, Tensor, Tensor]


def streams(text: int, regions: int, batch: int = 3) -> Streams:
    """Text, its mask, regions, their mask, padded: the first item is whole."""
    random = torch.Generator().manual_seed(100 * text + regions)

    def stream(tokens: int) -> tuple[Tensor, Tensor]:
        length = torch.randint(1, tokens + 1, (batch, 1), generator=random)
        length[0] = tokens
        mask = (torch.arange(tokens) < length).long()
        return torch.randn(batch, tokens, SIZES.hidden, generator=random), mask

    return *stream(text), *stream(regions)


def trained(kind: type[nn.Module], keys: KeysConfig) -> Any:
    torch.manual_seed(1)
    network: nn.Module = kind(SIZES, keys)
    for name, parameter in network.named_parameters():
        if "LayerNorm" not in name:
            nn.init.normal_(parameter, std=0.4)
    return network.eval().requires_grad_(False)


@contextmanager
def attention_maps(network: nn.Module) -> Iterator[list[Tensor]]:
    maps: list[Tensor] = []
    for module in network.modules():
        if isinstance(module, AttentionMap):
            module.register_forward_hook(lambda _, __, out: maps.append(out))
    yield maps


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("tokens", [1, 2, 3, 7, 8])
def test_a_chunks_mean_is_that_of_its_visible_tokens(tokens: int, size: int) -> None:
    _, _, states, mask = streams(2, tokens)
    means, chunk_mask = mean_of_chunks(states, mask, size)
    assert means.shape == (3, math.ceil(tokens / size), SIZES.hidden)
    for item in range(3):
        for chunk, start in enumerate(range(0, tokens, size)):
            visible = states[item, start : start + size][mask[item, start : start + size] == 1]
            assert chunk_mask[item, chunk] == (len(visible) > 0)
            if len(visible):
                torch.testing.assert_close(means[item, chunk], visible.mean(dim=0))


def test_chunks_with_holes_are_means_of_what_is_left() -> None:
    states = torch.arange(6.0).reshape(1, 6, 1)
    means, chunk_mask = mean_of_chunks(states, torch.tensor([[0, 1, 0, 0, 1, 1]]), 2)
    assert means.flatten().tolist() == [1.0, 0.0, 4.5]
    assert chunk_mask.tolist() == [[1, 0, 1]]


def test_sparse_keeps_the_first_of_each_chunk_and_no_other() -> None:
    states, mask = torch.arange(7.0).reshape(1, 7, 1), torch.tensor([[1, 1, 1, 1, 0, 0, 0]])
    firsts, chunk_mask = first_of_chunks(states, mask, 3)
    assert firsts.flatten().tolist() == [0.0, 3.0, 6.0]
    assert chunk_mask.tolist() == [[1, 1, 0]]


@pytest.mark.parametrize("kind", [CoAttention, JointEncoder])
@pytest.mark.parametrize("variant", ["chunk", "sparse"])
def test_chunks_of_one_token_are_full_attention(variant: str, kind: type[nn.Module]) -> None:
    inputs = streams(4, 9)
    keys = KeysConfig(variant=variant, chunk=1, text=True)
    expected, result = trained(kind, KeysConfig())(*inputs), trained(kind, keys)(*inputs)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("keys", REDUCED, ids=str)
def test_fewer_keys_make_a_difference(keys: KeysConfig) -> None:
    inputs = streams(6, 9)
    full, other = trained(JointEncoder, KeysConfig()), trained(JointEncoder, keys)
    assert not torch.allclose(full(*inputs), other(*inputs), atol=1e-3)


@pytest.mark.parametrize("keys", EVERY, ids=str)
@pytest.mark.parametrize(("text", "regions"), [(5, 7), (1, 1), (4, 10), (7, 1)])
def test_padding_and_neighbours_change_nothing(text: int, regions: int, keys: KeysConfig) -> None:
    words, words_mask, visual, visual_mask = streams(text, regions)
    exchange, joint = trained(CoAttention, keys), trained(JointEncoder, keys)
    together = exchange(words, words_mask, visual, visual_mask)
    joint_states = joint(words, words_mask, visual, visual_mask)
    for item in range(len(words)):
        n, m = int(words_mask[item].sum()), int(visual_mask[item].sum())
        row = slice(item, item + 1)
        alone = (words[row, :n], words_mask[row, :n], visual[row, :m], visual_mask[row, :m])
        text_alone, visual_alone = exchange(*alone)
        torch.testing.assert_close(together[0][row, :n], text_alone, rtol=0, atol=1e-5)
        torch.testing.assert_close(together[1][row, :m], visual_alone, rtol=0, atol=1e-5)
        real = torch.cat([joint_states[row, :n], joint_states[row, text : text + m]], dim=1)
        torch.testing.assert_close(real, joint(*alone), rtol=0, atol=1e-5)


@pytest.mark.parametrize("keys", EVERY, ids=str)
def test_rows_sum_to_one_over_the_keys_that_are_left_and_seen(keys: KeysConfig) -> None:
    words, words_mask, visual, visual_mask = streams(5, 11)

    def subset(mask: Tensor, reduced: bool) -> Tensor:
        if keys.variant == "full" or not reduced:
            return mask
        parts = mask.split(keys.chunk, dim=1)
        return torch.stack([part[:, 0] for part in parts], dim=1)  # padding is at the end

    key_mask = torch.cat([subset(words_mask, keys.text), subset(visual_mask, True)], dim=1)
    network = trained(JointEncoder, keys)
    with attention_maps(network) as maps:
        network(words, words_mask, visual, visual_mask)
    assert len(maps) == SIZES.layers
    for attention in maps:
        assert attention.shape == (3, SIZES.heads, 16, key_mask.shape[1])
        torch.testing.assert_close(attention.sum(dim=-1), torch.ones(3, SIZES.heads, 16))
        assert not attention[(key_mask == 0)[:, None, None].expand_as(attention)].any()


def test_keys_and_values_of_chunks_are_means_of_keys_and_values() -> None:
    words, words_mask, visual, visual_mask = streams(4, 9)
    visual_mask = torch.ones_like(visual_mask)
    network = trained(CoAttention, KeysConfig(variant="chunk", chunk=3))
    result, _ = network(words, words_mask, visual, visual_mask)
    key, value = network.text.keys_values(visual)  # (batch, heads, 9, size)
    pooled = (x.reshape(3, SIZES.heads, 3, 3, -1).mean(dim=3) for x in (key, value))
    torch.testing.assert_close(result, network.text(words, *pooled), rtol=0, atol=1e-6)


def test_what_text_reads_goes_back_to_text() -> None:
    """Plus what it was, normalised; and likewise for the visual stream."""
    words, words_mask, visual, visual_mask = streams(4, 9)
    network = trained(CoAttention, KeysConfig())
    text, regions = network(words, words_mask, visual, visual_mask)
    assert text.shape == words.shape and regions.shape == visual.shape
    other = network(words, words_mask, visual + 1, visual_mask)
    assert not torch.allclose(other[0], text, atol=1e-3)
    nn.init.zeros_(network.text.output.dense.weight)
    nn.init.zeros_(network.text.output.dense.bias)
    text, same_regions = network(words, words_mask, visual, visual_mask)
    torch.testing.assert_close(text, network.text.output.LayerNorm(words))
    assert torch.equal(same_regions, regions)


def test_the_same_network_answers_alike_twice() -> None:
    inputs = streams(4, 9)
    network = trained(CoAttention, KeysConfig(variant="chunk"))
    names = set(network.state_dict())
    first, second = network(*inputs), network(*inputs)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    parts = ("self.query", "self.key", "self.value", "output.dense", "output.LayerNorm")
    assert (
        names
        == set(network.state_dict())
        == {
            f"{stream}.{part}.{kind}"
            for stream in ("text", "visual")
            for part in parts
            for kind in ("weight", "bias")
        }
    )
