"""Nets that can't be exported, each for a reason of its own; the lines that a sentence must name end in `# here`."""

import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(3, 4, batch_first=True)
        self.cell = nn.GRUCell(3, 4)
        self.hidden = None
        self.register_buffer("kept", torch.zeros(1, 1, 4))
        self.register_buffer("position", torch.randn(5, 4))


class LoopsOverTime(Net):
    def forward(self, x):
        h = torch.zeros(x.size(0), 4)
        for t in range(x.size(1)):  # here
            h = self.cell(x[:, t], h)
        return h


class LoopsOverSteps(Net):
    def forward(self, x):
        h = torch.zeros(x.size(0), 4)
        for step in x.unbind(1):  # here
            h = self.cell(step, h)
        return h


class LoopsOverRows(Net):
    def forward(self, x):
        y = self.rnn(x)[0]
        return torch.stack([y[row].mean(0) for row in range(x.shape[0])])  # here


class CountsSteps(Net):
    def forward(self, x):
        weight = torch.linspace(0, 1, int(x.shape[1]))  # here
        return self.rnn(x)[0] * weight[None, :, None]


class BranchesNear(Net):
    def forward(self, x):
        if x.size(1) > 3:  # here
            x = x * 2
        return self.rnn(x)[0]


class BranchesFar(Net):
    def forward(self, x):
        if x.size(1) > 300:  # here
            x = x * 2
        return self.rnn(x)[0]


class BranchesByBatch(Net):
    def forward(self, x):
        return self.rnn(x)[0] * (1 if x.size(0) < 100 else 2)  # here


class DecidesByValue(Net):
    def forward(self, x):
        if x.sum() > 0:  # here
            x = x * 2
        return self.rnn(x)[0]


class TakesAnInteger(Net):
    def forward(self, x):
        steps = int((x[:, :, 0].abs() >= 0).sum(1).max())  # here
        return self.rnn(x[:, :steps])[0]


class GoesThroughNumpy(Net):
    def forward(self, x):
        return torch.from_numpy(self.rnn(x)[0].numpy() * 2)  # here


class UsesWhatOnnxHasNot(Net):
    def forward(self, x):
        y = self.rnn(x)[0]
        return torch.cummax(y, 1)[0]  # here


class AssignsABuffer(Net):
    def forward(self, x):
        y, h = self.rnn(x, self.kept.expand(1, x.size(0), 4).contiguous())
        self.kept = h[:, :1]  # here
        return y


class WritesIntoABuffer(Net):
    def forward(self, x):
        y, h = self.rnn(x, self.kept.expand(1, x.size(0), 4).contiguous())
        self.kept.copy_(h[:, :1])  # here
        return y


class KeepsAnAttribute(Net):
    def forward(self, x):
        y, self.hidden = self.rnn(x, self.hidden)  # here
        return y


class DropsAlways(Net):
    def forward(self, x):
        return nn.functional.dropout(self.rnn(x)[0], 0.5)  # here


class BeginsAtRandom(Net):
    def forward(self, x):
        h = torch.randn(1, x.size(0), 4)  # here
        return self.rnn(x, h)[0]


class KnowsOneLength(Net):
    def forward(self, x):
        return self.rnn(x)[0] + self.position  # here


class Fails(Net):
    def forward(self, x):
        return self.missing(x)  # here


class KeepsForAPlot(Net):
    """This one is fine: what it keeps is never read."""

    def forward(self, x):
        y = self.rnn(x)[0]
        self.attention = y.softmax(1)
        return (y * self.attention).sum(1)


class MakesItsStateEachTime(Net):
    """So is this one: what it keeps is made anew in every call."""

    def forward(self, x):
        self.hidden = torch.zeros(1, x.size(0), 4)
        y, self.hidden = self.rnn(x, self.hidden)
        return y


class NeedsLongInput(nn.Module):
    """And this one, from as many steps on as its kernel has."""

    def __init__(self):
        super().__init__()
        self.before = nn.Conv1d(3, 6, kernel_size=41, stride=2)
        self.rnn = nn.LSTM(6, 4, batch_first=True, bidirectional=True)

    def forward(self, x):
        return self.rnn(self.before(x.transpose(1, 2)).transpose(1, 2))[0]


class Sized(nn.Module):
    """A class as users write them, with arguments and a state in and out."""

    def __init__(self, vocabulary, size=8, *, layers=1):
        super().__init__()
        if size < 0:
            raise ValueError(f"a size of {size}")
        self.embedding = nn.Embedding(vocabulary, size)
        self.rnn = nn.LSTM(size, size, layers, batch_first=True)
        self.head = nn.Linear(size, vocabulary)

    def forward(self, tokens, hidden=None):
        y, hidden = self.rnn(self.embedding(tokens), hidden)
        return {"logits": self.head(y), "hidden": hidden}


NOT_A_MODULE = 3
