"""A small convolutional classifier of synthetic images: a bright square in one of four corners, in noise."""

import torch
from torch import nn
from torch.nn.functional import cross_entropy


def images(seed, batches, rows=16):
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(batches):
        labels = torch.randint(4, (rows,), generator=generator)
        pixels = 0.5 * torch.randn(rows, 1, 12, 12, generator=generator)
        for image, label in zip(pixels, labels.tolist(), strict=True):
            top, left = 6 * (label // 2), 6 * (label % 2)
            image[0, top : top + 6, left : left + 6] += 1
        found.append((pixels, labels))
    return found


class SmallConvNet:
    def model(self, seed):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3, padding=1),
            nn.ReLU(),
            nn.AvgPool2d(3),
            nn.Flatten(),
            nn.Linear(64, 4),
        )

    def batches(self, seed):
        return images(seed, batches=8)

    def loss(self, model, batch):
        pixels, labels = batch
        logits = model(pixels)
        return cross_entropy(logits, labels), {"accuracy": (logits.argmax(1) == labels).float().mean()}

    def optimizer(self, parameters):
        return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)

    def schedule(self, optimizer, steps):
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    def evaluate(self, model, batches):
        del batches  # They are those of training.
        weight = next(model.parameters())
        # As a batch is: on the device, and in float64 where the module is.
        unseen = [(pixels.to(weight), labels.to(weight.device)) for pixels, labels in images(10**6, batches=4)]
        found = [self.loss(model, batch) for batch in unseen]
        losses, figures = zip(*found, strict=True)
        accuracies = [figure["accuracy"] for figure in figures]
        return {"loss": torch.stack(losses).mean().item(), "accuracy": torch.stack(accuracies).mean().item()}
