"""A decoder language model on characters: a frozen transformer with random weights, trained by low-rank adapters."""

import torch
from torch import nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "sees", "six", "wild", "ducks"]
CHARACTERS = sorted(set(" ".join(WORDS)))
LENGTH, WIDTH, HEADS, RANK = 32, 32, 2, 4


class Adapted(nn.Linear):
    """A frozen linear layer plus a trained product of two thin ones (LoRA, Hu et al. 2021)."""

    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs)
        self.requires_grad_(False)
        self.down, self.up = nn.Linear(inputs, RANK, bias=False), nn.Linear(RANK, outputs, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, states):
        return super().forward(states) + self.up(self.down(states))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix, self.join = Adapted(WIDTH, 3 * WIDTH), Adapted(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.LayerNorm(WIDTH), Adapted(WIDTH, 4 * WIDTH), nn.GELU(), Adapted(4 * WIDTH, WIDTH))

    def forward(self, states):
        rows, length, _ = states.shape
        mixed = self.mix(states).view(rows, length, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        attended = scaled_dot_product_attention(mixed[0], mixed[1], mixed[2], is_causal=True)
        states = states + self.join(attended.transpose(1, 2).reshape(rows, length, WIDTH))
        return states + self.mlp(states)


class TinyGPT(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens, self.places = nn.Embedding(len(CHARACTERS), WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(WIDTH, len(CHARACTERS))

    def forward(self, tokens):
        states = self.tokens(tokens) + self.places.weight[: tokens.shape[1]]
        for block in self.blocks:
            states = block(states)
        return self.head(states)


class LoraGPT:
    def model(self, seed):
        torch.manual_seed(seed)
        return TinyGPT()

    def batches(self, seed):
        chosen = torch.randint(len(WORDS), (12, 4, LENGTH), generator=torch.Generator().manual_seed(seed)).tolist()
        texts = [[" ".join(WORDS[word] for word in row)[: LENGTH + 1] for row in rows] for rows in chosen]
        return [torch.tensor([[CHARACTERS.index(one) for one in text] for text in rows]) for rows in texts]

    def loss(self, model, batch):
        return cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
