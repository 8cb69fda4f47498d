"""A BERT that writes text: one decoder step with a cache, and the score of whole answers.

A cached step costs one token however long the text before it. Beams (or candidate answers) have an
axis of their own, so that those of one item share its memory:

    token_ids (batch, beams, tokens)
    past_key, past_value, new_key, new_value (batch, beams, layers, heads, tokens, size)
    memory_key, memory_value (batch, layers, heads, memory, size)
    memory_mask (batch, memory)
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlserve.models.attention import causal_bias, mask_bias
from vlserve.models.bert import BertConfig, BertEncoder
from vlserve.models.keys import drop_alias


class Transform(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden, config.hidden)
        self.LayerNorm = nn.LayerNorm(config.hidden, config.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.LayerNorm(F.gelu(self.dense(x)))
        return output


class Predictions(nn.Module):
    """States -> logits, with the word embeddings as its weight."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.transform = Transform(config)
        self.bias = nn.Parameter(torch.zeros(config.vocabulary))

    def forward(self, x: Tensor, words: Tensor) -> Tensor:
        return F.linear(self.transform(x), words, self.bias)


class Head(nn.Module):
    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.predictions = Predictions(config)


class TextDecoder(nn.Module):
    """Every layer has cross-attention to the memory."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.bert = BertEncoder(config)
        self.cls = Head(config)

    def memory(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, memory, width) -> memory_key and memory_value, computed once an item."""
        pairs = [layer.crossattention.keys_values(states) for layer in self.bert.layers]
        keys, values = zip(*pairs, strict=True)
        return torch.stack(keys, 1), torch.stack(values, 1)

    def forward(
        self,
        token_ids: Tensor,
        memory: tuple[Tensor, Tensor, Tensor],
        past: tuple[Tensor, Tensor] | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """memory: key, value and mask; mask (batch, beams, tokens) where whole texts are padded ->
        states (batch, beams, tokens, hidden), new_key, new_value."""
        memory_key, memory_value, memory_mask = memory
        tokens = token_ids.shape[2]
        before = 0 if past is None else past[0].shape[-2]
        bias = causal_bias(tokens, before + tokens, token_ids.device)
        if mask is not None:
            bias = bias + mask_bias(mask)
        memory_bias = mask_bias(memory_mask)
        x = self.bert.embeddings(token_ids, before)  # (batch, beams, tokens, hidden)
        keys, values = [], []
        for index, layer in enumerate(self.bert.layers):
            key, value = layer.attention.keys_values(x)  # (batch, beams, heads, tokens, size)
            keys.append(key)
            values.append(value)
            if past is not None:
                key = torch.cat([past[0][:, :, index], key], dim=-2)
                value = torch.cat([past[1][:, :, index], value], dim=-2)
            x = layer.attention(x, key, value, bias)
            # beams as further queries of their item, so that its memory is not copied
            x = layer.crossattention(
                x.flatten(1, 2), memory_key[:, index], memory_value[:, index], memory_bias
            )
            x = layer.feed_forward(x).reshape(*token_ids.shape, -1)
        return x, torch.stack(keys, 2), torch.stack(values, 2)

    def logits(self, states: Tensor) -> Tensor:
        """(…, hidden) -> (…, vocabulary)."""
        words = self.bert.embeddings.word_embeddings.weight
        scores: Tensor = self.cls.predictions(states, words)
        return scores


class DecoderStep(nn.Module):
    """The next token's logits (batch, beams, vocabulary), and the new keys and values."""

    def __init__(self, decoder: TextDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(
        self,
        token_ids: Tensor,
        past_key: Tensor,
        past_value: Tensor,
        memory_key: Tensor,
        memory_value: Tensor,
        memory_mask: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        memory = (memory_key, memory_value, memory_mask)
        states, new_key, new_value = self.decoder(token_ids, memory, (past_key, past_value))
        return self.decoder.logits(states[:, :, -1]), new_key, new_value


class AnswerScore(nn.Module):
    """Log-probability (batch, answers) of whole answers, the first token of each given; with the
    label smoothing that the network was trained with, where the original ranks by its loss."""

    def __init__(self, decoder: TextDecoder, pad_id: int, label_smoothing: float) -> None:
        super().__init__()
        self.decoder = decoder
        self.pad_id = pad_id
        self.label_smoothing = label_smoothing

    def forward(
        self, answer_ids: Tensor, memory_key: Tensor, memory_value: Tensor, memory_mask: Tensor
    ) -> Tensor:
        """Score answer_ids (batch, answers, tokens), padded at the end."""
        memory = (memory_key, memory_value, memory_mask)
        states, _, _ = self.decoder(answer_ids, memory, mask=answer_ids != self.pad_id)
        log_probability = F.log_softmax(self.decoder.logits(states), dim=-1)
        after_the_last = torch.full_like(answer_ids[:, :, :1], self.pad_id)
        target = torch.cat([answer_ids[:, :, 1:], after_the_last], dim=2)
        per_token = log_probability.gather(3, target.unsqueeze(3)).squeeze(3)
        if self.label_smoothing:
            smooth = self.label_smoothing
            per_token = (1 - smooth) * per_token + smooth * log_probability.mean(dim=-1)
        return (per_token * (target != self.pad_id)).sum(dim=-1)


def drop_second_names(state: dict[str, Tensor], prefix: str) -> None:
    """Remove second names: checkpoints hold the head's weight and bias twice."""
    head = f"{prefix}cls.predictions."
    drop_alias(state, f"{head}decoder.weight", f"{prefix}bert.embeddings.word_embeddings.weight")
    drop_alias(state, f"{head}decoder.bias", f"{head}bias")
