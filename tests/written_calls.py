"""How people call and are called: states made and given, arguments, results, single steps, wrappers."""

import dataclasses
import typing

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from written import LENGTHS, TIME_MAJOR, TOKENS, X, written

STATE = "(float32[2,batch,6], float32[2,batch,6])"


# A state made inside forward


@written({"x": X}, "[batch,3]", how="zeros")
@written({"x": X}, "[batch,3]", how="to", slow=True)
@written({"x": X}, "[batch,3]", how="device", slow=True)
@written({"x": X}, "[batch,3]", how="new_zeros")
@written({"x": X}, "[batch,3]", how="zeros_like", slow=True)
@written({"x": X}, "[batch,3]", how="variable", slow=True)
@written({"x": X}, "[batch,3]", how="tensor", slow=True)
@written({"x": X}, "[batch,3]", how="of_a_parameter")
@written({"x": X}, "[batch,3]", how="learned")
@written({"x": X}, "[batch,3]", how="attribute")
class MakesItsState(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.num_layers, self.hidden_size = 2, 6
        self.lstm = nn.LSTM(5, 6, 2, batch_first=True)
        self.fc = nn.Linear(6, 3)
        self.h0, self.c0 = nn.Parameter(torch.zeros(2, 1, 6)), nn.Parameter(torch.zeros(2, 1, 6))
        self.how = how

    def init_hidden(self, batch_size):
        weight = next(self.parameters()).data
        shape = self.num_layers, batch_size, self.hidden_size
        return weight.new(*shape).zero_(), weight.new_zeros(*shape)

    def forward(self, x):
        shape = (self.num_layers, x.size(0), self.hidden_size)
        if self.how == "zeros":
            state = torch.zeros(self.num_layers, x.size(0), self.hidden_size), torch.zeros(shape)
        elif self.how == "to":
            state = torch.zeros(*shape).to(x.device), torch.zeros(*shape).requires_grad_().to(x.device)
        elif self.how == "device":
            state = (
                torch.zeros(shape, device=x.device, dtype=x.dtype).detach(),
                torch.zeros(shape, device=x.device, dtype=torch.float).detach(),
            )
        elif self.how == "new_zeros":
            state = x.new_zeros(shape), x.new_zeros(*shape)
        elif self.how == "zeros_like":
            zero = torch.zeros_like(x[:, 0, :1]).unsqueeze(0).repeat(self.num_layers, 1, self.hidden_size)
            state = zero, torch.zeros_like(zero)
        elif self.how == "variable":
            variable = torch.autograd.Variable
            state = variable(torch.zeros(*shape)), variable(x.data.new(*shape).zero_())
        elif self.how == "tensor":
            state = torch.FloatTensor(*shape).zero_(), torch.full(shape, 0.0)
        elif self.how == "of_a_parameter":
            state = self.init_hidden(x.shape[0])
        elif self.how == "learned":
            state = self.h0.expand(-1, x.size(0), -1).contiguous(), self.c0.repeat(1, x.size(0), 1)
        else:
            self.hidden = self.init_hidden(len(x))
            out, self.hidden = self.lstm(x, self.hidden)
            return self.fc(out[:, -1])
        out, _ = self.lstm(x, state)
        return self.fc(out[:, -1, :])


@written({"x": X}, "[batch,time,12]")
class StateOfBothDirections(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(5, 6, 2, batch_first=True, bidirectional=True)
        self.num_directions = 2 if self.gru.bidirectional else 1

    def forward(self, x):
        h0 = torch.zeros(self.gru.num_layers * self.num_directions, x.size(0), self.gru.hidden_size).to(x)
        out, _ = self.gru(x, h0)
        return out


# A state from the caller


@written({"tokens": TOKENS, "hidden": STATE}, "[batch,time,20]", "[2,batch,6]", "[2,batch,6]", how="contiguous")
@written({"tokens": TOKENS, "hidden": STATE}, "[?,20]", "[2,batch,6]", "[2,batch,6]", how="flat", slow=True)
@written({"tokens": TOKENS}, "[batch,time,20]", "[2,batch,6]", "[2,batch,6]", how="left_out")
class LanguageModel(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.embedding = nn.Embedding(20, 5)
        self.lstm = nn.LSTM(5, 6, 2, batch_first=True)
        self.fc = nn.Linear(6, 20)
        self.how = how

    def forward(self, tokens, hidden=None):
        if hidden is None:
            hidden = tuple(torch.zeros(2, tokens.size(0), 6) for _ in range(2))
        else:
            hidden = tuple(part.detach() for part in hidden)
        self.lstm.flatten_parameters()
        out, hidden = self.lstm(self.embedding(tokens), hidden)
        if self.how == "flat":
            return self.fc(out.contiguous().view(-1, self.lstm.hidden_size)), hidden
        decoded = self.fc(out.reshape(out.size(0) * out.size(1), out.size(2)))
        return decoded.view(out.size(0), out.size(1), decoded.size(1)), hidden


@written({"x": X, "hidden": "float32[2,batch,6]"}, "[batch,time,6]", "[2,batch,6]")
class StateOfTheBatchFirst(nn.Module):
    """A state with the batch first inside the net, as data-parallel code has it."""

    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(5, 6, 2, batch_first=True)

    def forward(self, x, hidden):
        hidden = hidden.permute(1, 0, 2).contiguous()
        out, hidden = self.gru(x, hidden.permute(1, 0, 2).contiguous())
        return out, hidden.data


# Arguments


@written({"x": X}, "[batch,3]", given=False)
@written({"x": X, "lengths": LENGTHS}, "[batch,3]", given=True)
class OptionalLengths(nn.Module):
    def __init__(self, given):
        super().__init__()
        self.gru = nn.GRU(5, 6, batch_first=True)
        self.fc = nn.Linear(6, 3)

    def forward(self, x, lengths=None, hidden=None):
        if x.dim() == 2:
            x = x.unsqueeze(-1)
        if lengths is not None:
            x = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        out, hidden = self.gru(x, hidden)
        return self.fc(hidden[-1])


@written({"tokens": TOKENS, "state": "float32[1,batch,6]"}, "[batch,time,6]", "[1,batch,6]", given=True)
@written({"tokens": TOKENS}, "[batch,time,6]", "[1,batch,6]", given=False, slow=True)
class KeywordOnly(nn.Module):
    def __init__(self, given):
        super().__init__()
        self.embedding = nn.Embedding(20, 5)
        self.rnn = nn.RNN(5, 6, batch_first=True)

    def forward(self, tokens, *, state=None, scale: float = 2.0):
        return self.rnn(self.embedding(tokens) * scale, state)


@written({"x": X}, "[batch,time,6]")
class MoreArguments(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(5, 6, batch_first=True)

    def forward(self, x, *args, **kwargs):
        out, _ = self.rnn(x, *args, **kwargs)
        return out


@written({"x": X, "state": STATE}, "[batch,time,6]", "[2,batch,6]", "[2,batch,6]")
class PassesAllOn(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.ModuleDict({"rnn": nn.LSTM(5, 6, 2, batch_first=True)})

    def forward(self, x, **kwargs):
        return self.inner["rnn"](x, kwargs["state"])


@written({"x": X, "h": "float32[1,batch,6]"}, "[batch,time,6]", "[1,batch,6]")
class CallsByKeyword(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.GRU(5, 6, batch_first=True), nn.GRU(input_size=6, hidden_size=6, batch_first=True)

    def forward(self, x, h):
        x, h = self.first(input=x, hx=h)
        return self.second.forward(x, hx=h)


@written({"tokens": "int32[batch,time]{0..19}", "lengths": "int32[batch]{1..time}"}, "[batch]")
class NarrowIntegers(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(20, 5)
        self.gru = nn.GRU(5, 6, batch_first=True)

    def forward(self, tokens, lengths):
        packed = pack_padded_sequence(
            self.embedding(tokens.long()), lengths.long().cpu(), batch_first=True, enforce_sorted=False
        )
        return self.gru(packed)[1].squeeze(0).argmax(dim=1)


@written({"x": "float32[batch,time]"}, "[batch]")
class OneSeries(nn.Module):
    """One value a step, differences taken, the last value added again."""

    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(1, 6, batch_first=True)
        self.fc = nn.Linear(6, 1)

    def forward(self, x):
        assert x.dim() == 2 and x.size(1) >= 1
        last = x[:, -1:]
        _, h = self.gru((x - last).unsqueeze(-1))
        return (self.fc(h[-1]) + last).squeeze(1)


@written({"x": "float32[time,5]"}, "[time,12]", "[2,6]", state=False)
@written({"x": "float32[time,5]", "state": "float32[2,6]"}, "[time,12]", "[2,6]", state=True)
class Unbatched(nn.Module):
    def __init__(self, state):
        super().__init__()
        self.gru = nn.GRU(5, 6, bidirectional=True)

    def forward(self, x, state=None):
        return self.gru(x, state)


@written({"x": "float32[time,5]"}, "[time,3]")
class UnbatchedTagger(nn.Module):
    """One sentence at a time, given a batch of 1 inside."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(5, 6)
        self.fc = nn.Linear(6, 3)

    def forward(self, x):
        out, _ = self.lstm(x.view(len(x), 1, -1))
        return F.log_softmax(self.fc(out.view(len(x), -1)), dim=1)


@written({"x": X}, "[batch,time,6]")
class FrozenEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.frozen, self.rnn = nn.GRU(5, 6, batch_first=True), nn.LSTM(6, 6, batch_first=True)

    def forward(self, x):
        with torch.no_grad():
            x, _ = self.frozen(x)
        return self.rnn(x.detach())[0]


@written({"x": X}, "[batch,time,6]")
class KeepsItsWeightsForAPlot(nn.Module):
    """Attributes that are written and never read do no harm."""

    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(5, 6, batch_first=True)
        self.score = nn.Linear(6, 1)
        self.attention_weights = None

    def forward(self, x):
        out, self.last_hidden = self.gru(x)
        weights = torch.softmax(self.score(out), dim=1)
        self.attention_weights = weights.detach()
        return out * weights


# Results


@dataclasses.dataclass
class Output:
    logits: torch.Tensor
    hidden: torch.Tensor | None = None
    states: tuple[torch.Tensor, ...] | None = None


class Named(typing.NamedTuple):
    logits: torch.Tensor
    state: tuple[torch.Tensor, torch.Tensor]


@written({"x": X}, "logits[batch,time,6]", "state_h[1,batch,6]", "state_c[1,batch,6]", how="dict")
@written({"x": X}, "logits[batch,time,6]", "states_0[1,batch,6]", "states_1[1,batch,6]", how="dataclass")
@written({"x": X}, "[batch,time,6]", "[1,batch,6]", "[1,batch,6]", how="named_tuple", slow=True)
@written({"x": X}, "[batch,time,6]", "[1,batch,6]", "[1,batch,6]", how="nested")
@written({"x": X}, "[batch,time,6]", "[1,batch,6]", "[1,batch,6]", how="list", slow=True)
@written({"x": X}, "[batch,time,6]", "[1,batch,6]", "[1,batch,6]", how="none")
class Results(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.lstm = nn.LSTM(5, 6, batch_first=True)
        self.how = how

    def forward(self, x):
        out, (h, c) = self.lstm(x)
        return {
            "dict": {"logits": out, "loss": None, "state": {"h": h, "c": c}},
            "dataclass": Output(logits=out, states=(h, c)),
            "named_tuple": Named(out, (h, c)),
            "nested": ((out,), ((h, c),)),
            "list": [out, [h], c],
            "none": (None, out, (h, None, c)),
        }[self.how]


# Single steps


@written({"x": "float32[batch,5]", "h": "float32[batch,6]"}, "[batch,3]", "[batch,6]", cell="GRUCell")
@written({"x": "float32[batch,5]", "h": "float32[batch,6]"}, "[batch,3]", "[batch,6]", cell="RNNCell", slow=True)
@written(
    {"x": "float32[batch,5]", "h": "(float32[batch,6],float32[batch,6])"},
    "[batch,3]",
    "[batch,6]",
    "[batch,6]",
    cell="LSTMCell",
)
class OneStep(nn.Module):
    def __init__(self, cell):
        super().__init__()
        self.cell = getattr(nn, cell)(5, 6)
        self.fc = nn.Linear(6, 3)

    def forward(self, x, h):
        h = self.cell(x, h)
        return self.fc(h[0] if isinstance(h, tuple) else h), h


@written(
    {"token": "int64[batch]{0..19}", "h": "float32[2,batch,6]", "c": "float32[2,batch,6]"},
    "[batch,20]",
    "[2,batch,6]",
    "[2,batch,6]",
)
class StackedCells(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(20, 5)
        self.cells = nn.ModuleList([nn.LSTMCell(5, 6), nn.LSTMCell(6, 6)])
        self.fc = nn.Linear(6, 20)

    def forward(self, token, h, c):
        x = self.embedding(token)
        hs, cs = [], []
        for i, cell in enumerate(self.cells):
            x, cx = cell(x, (h[i], c[i]))
            hs.append(x)
            cs.append(cx)
        return self.fc(x), torch.stack(hs), torch.stack(cs)


@written({"x": "float32[batch,5]", "h": "float32[batch,6]"}, "[batch,6]")
class Zoneout(nn.Module):
    """In eval the expected mix of the old state and the new."""

    def __init__(self, rate=0.1):
        super().__init__()
        self.cell, self.rate = nn.GRUCell(5, 6), rate

    def forward(self, x, h):
        new = self.cell(x, h)
        if self.training:
            mask = torch.bernoulli(torch.full_like(h, self.rate))
            return mask * h + (1 - mask) * new
        return self.rate * h + (1 - self.rate) * new


@written(
    {"token": "int64[batch,1]{0..19}", "hidden": "float32[1,batch,6]", "memory": "float32[batch,time,6]"},
    "[batch,20]",
    "[1,batch,6]",
    "[batch,1,time]",
)
class DecoderStep(nn.Module):
    """One step of a decoder with attention, as a caller's loop runs it."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(20, 5)
        self.gru = nn.GRU(11, 6, batch_first=True)
        self.query, self.key, self.energy = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 1)
        self.out = nn.Linear(6, 20)

    def forward(self, token, hidden, memory):
        query = hidden.permute(1, 0, 2)
        scores = self.energy(torch.tanh(self.query(query) + self.key(memory))).squeeze(2).unsqueeze(1)
        weights = F.softmax(scores, dim=-1)
        context = torch.bmm(weights, memory)
        output, hidden = self.gru(torch.cat((self.embedding(token), context), dim=2), hidden)
        return F.log_softmax(self.out(output[:, 0]), dim=1), hidden, weights


# Subclasses and wrappers


@written({"input": X}, "[batch,time,6]", "[1,batch,6]", "[1,batch,6]", kind="plain")
@written({"input": X, "hx": "(float32[1,batch,6],float32[1,batch,6])"}, "[batch,time,6]", "[1,batch,6]", "[1,batch,6]")
class OwnLSTM(nn.LSTM):
    def __init__(self, kind="state"):
        super().__init__(5, 6, batch_first=True)
        self.norm = nn.LayerNorm(6)

    def forward(self, input, hx=None):
        output, state = super().forward(input, hx)
        return self.norm(output), state


@written({"input": X}, "[batch,time,6]", "[1,batch,6]")
class OwnGRUWithoutForward(nn.GRU):
    def __init__(self):
        super().__init__(5, 6, batch_first=True)

    def reset_parameters(self):
        super().reset_parameters()
        for name, parameter in self.named_parameters():
            if "weight_hh" in name:
                nn.init.orthogonal_(parameter)


@written({"x": X, "lengths": LENGTHS}, "[batch,longest,6]")
class PackingRNN(nn.Module):
    """A wrapper that packs for the net within."""

    class Inner(nn.LSTM):
        def forward(self, x, lengths):
            packed = pack_padded_sequence(x, lengths.cpu(), batch_first=self.batch_first, enforce_sorted=False)
            out, _ = super().forward(packed)
            return pad_packed_sequence(out, batch_first=self.batch_first)[0]

    def __init__(self):
        super().__init__()
        self.inner = self.Inner(5, 6, batch_first=True)

    def forward(self, x, lengths):
        return self.inner(x, lengths)


class TwoResults(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(5, 6)

    def forward(self, x, h):
        return self.gru(x, h)


WRAPPED = {"x": TIME_MAJOR, "h": "float32[1,batch,6]"}


@written(WRAPPED, "[time,batch,6]", "[1,batch,6]")
def DataParallel():
    return nn.DataParallel(TwoResults())


@written(WRAPPED, "[time,batch,6]", "[1,batch,6]", backend="eager")
@written(
    WRAPPED,
    "[time,batch,6]",
    "[1,batch,6]",
    backend="inductor",
    slow=True,
    warns=".*torch.jit.script_method. is deprecated",
)
def Compiled(backend):
    return torch.compile(TwoResults(), backend=backend)


@written(WRAPPED, "[time,batch,6]", "[1,batch,6]")
def CompiledInPlace():
    module = TwoResults()
    module.compile(backend="eager")
    return module
