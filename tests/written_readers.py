"""What people do with a recurrence's output: last steps, pooling, attention; and packing."""

import math

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from written import LENGTHS, TIME_MAJOR, TOKENS, X, written

# The last step, the last hidden state


@written({"x": X}, "[batch,3]")
class LastStep(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(5, 6, 2, batch_first=True, dropout=0.2)
        self.fc = nn.Linear(6, 3)

    def forward(self, x):
        out, (hn, cn) = self.lstm(x)
        return self.fc(out[:, -1, :])


@written({"x": TIME_MAJOR}, "[batch,3]", last="output")
@written({"x": TIME_MAJOR}, "[batch,3]", last="hidden", slow=True)
@written({"x": TIME_MAJOR}, "[batch,3]", last="squeeze")
class TimeMajorLast(nn.Module):
    def __init__(self, last):
        super().__init__()
        self.rnn = nn.RNN(5, 6, nonlinearity="relu")
        self.fc = nn.Linear(6, 3)
        self.last = last

    def forward(self, x):
        output, hidden = self.rnn(x)
        last = {"output": lambda: output[-1], "hidden": lambda: hidden[-1], "squeeze": lambda: hidden.squeeze(0)}
        return F.log_softmax(self.fc(last[self.last]()), dim=1)


@written({"tokens": TOKENS}, "[batch,1]", how="cat")
@written({"tokens": TOKENS}, "[batch,1]", how="view")
@written({"tokens": TOKENS}, "[batch,1]", how="permute", slow=True)
@written({"tokens": TOKENS}, "[batch,1]", how="transpose", slow=True)
@written({"tokens": TOKENS}, "[batch,1]", how="halves")
@written({"tokens": TOKENS}, "[batch,1]", how="chunk", slow=True)
class BothEnds(nn.Module):
    """The last hidden states of both directions, put together in the ways that are around."""

    def __init__(self, how):
        super().__init__()
        self.embedding = nn.Embedding(20, 5, padding_idx=0)
        layers = 1 if how in ("permute", "transpose") else 2
        self.lstm = nn.LSTM(5, 6, num_layers=layers, bidirectional=True, batch_first=True)
        self.fc = nn.Linear(12, 1)
        self.dropout = nn.Dropout(0.5)
        self.how = how

    def forward(self, tokens):
        output, (hidden, cell) = self.lstm(self.dropout(self.embedding(tokens)))
        batch = tokens.size(0)
        if self.how == "cat":
            ends = torch.cat((hidden[-2, :, :], hidden[-1, :, :]), dim=1)
        elif self.how == "view":
            last = hidden.view(self.lstm.num_layers, 2, batch, self.lstm.hidden_size)[-1]
            ends = torch.cat([last[0], last[1]], dim=-1)
        elif self.how == "permute":
            ends = hidden.permute(1, 0, 2).reshape(batch, -1)
        elif self.how == "transpose":
            ends = hidden.transpose(0, 1).contiguous().view(-1, 2 * self.lstm.hidden_size)
        elif self.how == "halves":
            size = self.lstm.hidden_size
            ends = torch.cat((output[:, -1, :size], output[:, 0, size:]), dim=1)
        else:
            forward, backward = output.chunk(2, dim=-1)
            ends = torch.cat((forward[:, -1], backward[:, 0]), dim=1)
        return torch.sigmoid(self.fc(self.dropout(ends)))


@written({"tokens": TOKENS, "lengths": LENGTHS}, "[batch,1]", given="cpu")
@written({"tokens": TOKENS, "lengths": LENGTHS}, "[batch,1]", given="tolist")
@written({"tokens": TOKENS, "lengths": LENGTHS}, "[batch,1]", given="numpy", slow=True)
class PackedSentiment(nn.Module):
    def __init__(self, given):
        super().__init__()
        self.embedding = nn.Embedding(20, 5, padding_idx=0)
        self.rnn = nn.LSTM(5, 6, 2, bidirectional=True, batch_first=True, dropout=0.5)
        self.fc = nn.Linear(12, 1)
        self.given = given

    def forward(self, tokens, lengths):
        if self.given == "cpu":
            lengths = lengths.cpu()
        else:
            lengths = lengths.tolist() if self.given == "tolist" else lengths.cpu().numpy()
        packed = pack_padded_sequence(self.embedding(tokens), lengths, batch_first=True, enforce_sorted=False)
        packed_output, (hidden, cell) = self.rnn(packed)
        return self.fc(torch.cat((hidden[-2], hidden[-1]), dim=1))


@written({"x": X, "lengths": LENGTHS}, "[batch,6]")
class PackedHiddenOnly(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(5, 6, batch_first=True)

    def forward(self, x, lengths):
        return self.gru(pack_padded_sequence(x, lengths.cpu().to(torch.int64), True, False))[1].squeeze(0)


@written({"tokens": TOKENS}, "[batch,3]")
class LengthsFromPadding(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(20, 5, padding_idx=0)
        self.gru = nn.GRU(5, 6, bidirectional=True, batch_first=True)
        self.fc = nn.Linear(12, 3)

    def forward(self, tokens):
        lengths = (tokens != 0).sum(dim=1).clamp(min=1)
        packed = pack_padded_sequence(self.embedding(tokens), lengths.cpu(), batch_first=True, enforce_sorted=False)
        _, hidden = self.gru(packed)
        return self.fc(torch.cat([hidden[0], hidden[1]], dim=-1))


@written({"x": X, "lengths": LENGTHS}, "[batch,3]", how="arange")
@written({"x": X, "lengths": LENGTHS}, "[batch,3]", how="gather")
@written({"x": X, "lengths": LENGTHS}, "[batch,3]", how="view")
@written({"x": X, "lengths": LENGTHS}, "[batch,3]", how="flat", slow=True)
@written({"x": X, "lengths": LENGTHS}, "[batch,3]", how="mask", slow=True)
class LastValidStep(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.lstm = nn.LSTM(5, 6, batch_first=True)
        self.fc = nn.Linear(6, 3)
        self.how = how

    def forward(self, x, lengths):
        out, _ = self.lstm(x)
        batch, time, size = out.shape
        if self.how == "arange":
            last = out[torch.arange(batch), lengths - 1]
        elif self.how == "gather":
            last = out.gather(1, (lengths - 1).unsqueeze(1).unsqueeze(2).expand(-1, 1, size)).squeeze(1)
        elif self.how == "view":
            index = (lengths - 1).view(-1, 1).expand(len(lengths), out.size(2)).unsqueeze(1)
            last = torch.gather(out, 1, index).squeeze(1)
        elif self.how == "flat":
            last = out.contiguous().view(-1, size)[torch.arange(batch, device=x.device) * time + lengths - 1]
        else:
            mask = torch.arange(time)[None, :] == (lengths - 1)[:, None]
            last = (out * mask.unsqueeze(-1).float()).sum(dim=1)
        return self.fc(last)


# Pooling


@written({"x": X, "lengths": LENGTHS}, "[batch,12]", how="sum")
@written({"x": X, "lengths": LENGTHS}, "[batch,12]", how="float", slow=True)
@written({"x": X, "lengths": LENGTHS}, "[batch,12]", how="packed")
@written({"x": X, "lengths": LENGTHS}, "[batch,12]", how="longest")
class MaskedMean(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.gru = nn.GRU(5, 6, batch_first=True, bidirectional=True)
        self.how = how

    def forward(self, x, lengths):
        if self.how in ("packed", "longest"):
            packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
            out, sizes = pad_packed_sequence(self.gru(packed)[0], batch_first=True)
            if self.how == "packed":
                return out.sum(dim=1) / sizes.unsqueeze(1).float()
            mask = torch.arange(out.size(1), device=out.device).expand(len(lengths), -1) < lengths.unsqueeze(1)
            return (out * mask.unsqueeze(2)).sum(1) / mask.sum(1, keepdim=True)
        out, _ = self.gru(x)
        if self.how == "sum":
            mask = torch.arange(x.size(1), device=x.device)[None, :] < lengths[:, None]
            return out.masked_fill(~mask.unsqueeze(-1), 0.0).sum(dim=1) / lengths.unsqueeze(1)
        mask = (torch.arange(x.shape[1]).unsqueeze(0) < lengths.unsqueeze(1)).float().unsqueeze(-1)
        return torch.sum(out * mask, 1) / torch.clamp(mask.sum(1), min=1e-9)


@written({"x": X, "lengths": LENGTHS}, "[batch,6]", how="max")
@written({"x": X, "lengths": LENGTHS}, "[batch,6]", how="amax", slow=True)
@written({"x": X, "lengths": LENGTHS}, "[batch,6]", how="longest")
class MaskedMax(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.rnn = nn.RNN(5, 6, batch_first=True)
        self.how = how

    def forward(self, x, lengths):
        if self.how == "longest":
            packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            out, _ = pad_packed_sequence(self.rnn(packed)[0], batch_first=True, padding_value=-float("inf"))
            return out.max(dim=1)[0]
        out, _ = self.rnn(x)
        padding = torch.arange(x.size(1)) >= lengths.view(-1, 1)
        out = out.masked_fill(padding.unsqueeze(2), float("-inf"))
        return torch.max(out, 1)[0] if self.how == "max" else out.amax(dim=1)


@written({"x": X, "lengths": LENGTHS}, "[batch,6]", how="tensor")
@written({"x": X, "lengths": LENGTHS}, "[batch,6]", how="item", slow=True)
@written({"x": X, "lengths": LENGTHS}, "[batch,6]", how="slice")
class MaskToTheLongest(nn.Module):
    """A mask as long as the longest row, where the batch may be padded further."""

    def __init__(self, how):
        super().__init__()
        self.gru = nn.GRU(5, 6, batch_first=True)
        self.how = how

    def forward(self, x, lengths):
        longest = lengths.max() if self.how == "tensor" else lengths.max().item()
        if self.how == "slice":
            x = x[:, :longest]
        out, _ = self.gru(x)
        mask = torch.arange(longest, device=lengths.device)[None, :] < lengths[:, None]
        return (out[:, :longest] * mask.unsqueeze(-1)).sum(1)


@written({"x": X}, "[batch,12]", how="max_pool1d")
@written({"x": X}, "[batch,12]", how="avg_pool1d", slow=True)
@written({"x": X}, "[batch,12]", how="avg_pool2d", slow=True)
@written({"x": X}, "[batch,12]", how="adaptive")
@written({"x": X}, "[batch,12]", how="module", slow=True)
class PooledOverTime(nn.Module):
    """Pooling layers made for convolutions, over the steps."""

    def __init__(self, how):
        super().__init__()
        self.lstm = nn.LSTM(5, 12, batch_first=True)
        self.pool = nn.AdaptiveMaxPool1d(1)
        self.how = how

    def forward(self, x):
        out, _ = self.lstm(x)
        out = out.permute(0, 2, 1)
        if self.how == "max_pool1d":
            return F.max_pool1d(out, out.size(2)).squeeze(2)
        if self.how == "avg_pool1d":
            return F.avg_pool1d(out, kernel_size=out.shape[-1]).squeeze(-1)
        if self.how == "avg_pool2d":
            return F.avg_pool2d(out, (1, out.shape[2])).squeeze(2)
        if self.how == "adaptive":
            return F.adaptive_avg_pool1d(out, 1).view(out.size(0), -1)
        return self.pool(out).squeeze(-1)


@written({"x": X}, "[batch,2]")
class ConcatPooling(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(5, 6, batch_first=True, bidirectional=True)
        self.fc = nn.Sequential(nn.Linear(36, 8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 2))

    def forward(self, x):
        out, _ = self.gru(x)
        mean, (most, _) = out.mean(1), out.max(1)
        return self.fc(torch.cat([out[:, -1], most, mean], 1))


# Attention


class AdditiveAttention(nn.Module):
    def __init__(self, size, inner=8):
        super().__init__()
        self.proj = nn.Linear(size, inner)
        self.context = nn.Linear(inner, 1, bias=False)

    def forward(self, out, mask=None):
        scores = self.context(torch.tanh(self.proj(out))).squeeze(-1)
        if mask is not None:
            scores = scores.masked_fill(mask == 0, -1e9)
        weights = F.softmax(scores, dim=-1)
        return torch.bmm(weights.unsqueeze(1), out).squeeze(1), weights


@written({"x": X, "lengths": LENGTHS}, "[batch,3]", "[batch,time]", packed=False)
@written({"x": X, "lengths": LENGTHS}, "[batch,3]", "[batch,longest]", packed=True)
class AttentionClassifier(nn.Module):
    def __init__(self, packed):
        super().__init__()
        self.lstm = nn.LSTM(5, 6, batch_first=True, bidirectional=True)
        self.attention = AdditiveAttention(12)
        self.fc = nn.Linear(12, 3)
        self.packed = packed

    def forward(self, x, lengths):
        if self.packed:
            out, _ = self.lstm(pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False))
            out, lengths = pad_packed_sequence(out, batch_first=True)
        else:
            out, _ = self.lstm(x)
        mask = torch.arange(out.size(1), device=x.device).unsqueeze(0) < lengths.unsqueeze(1)
        context, weights = self.attention(out, mask)
        return self.fc(context), weights


@written({"x": X, "mask": "float32[batch,time]"}, "[batch,12]", kind="float32")
@written({"x": X, "mask": "bool[batch,time]"}, "[batch,12]", kind="bool", slow=True)
class AttentionByGivenMask(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.gru = nn.GRU(5, 6, batch_first=True, bidirectional=True)
        self.query = nn.Parameter(torch.randn(12))
        self.scale = math.sqrt(12)

    def forward(self, x, mask):
        out, _ = self.gru(x)
        scores = out.matmul(self.query) / self.scale
        scores = scores + (1.0 - mask.float()) * -3.0
        return torch.einsum("bt,bth->bh", scores.softmax(-1), out)


@written({"tokens": TOKENS}, "[batch,3]")
class DotAttention(nn.Module):
    """The last hidden state asks all steps."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(20, 5)
        self.lstm = nn.LSTM(5, 6, batch_first=True, bidirectional=True)
        self.fc = nn.Linear(12, 3)

    def forward(self, tokens):
        output, (hidden, _) = self.lstm(self.embedding(tokens))
        hidden = torch.cat([hidden[-2], hidden[-1]], dim=1)
        weights = torch.bmm(output, hidden.unsqueeze(2)).squeeze(2)
        weights = F.softmax(weights, 1)
        return self.fc(torch.bmm(output.transpose(1, 2), weights.unsqueeze(2)).squeeze(2))


@written({"tokens": TOKENS}, "[batch,3]", "[batch,4,time]")
class StructuredSelfAttention(nn.Module):
    """Several rows of attention, laid side by side."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(20, 5)
        self.lstm = nn.LSTM(5, 6, batch_first=True, bidirectional=True)
        self.first, self.second = nn.Linear(12, 8, bias=False), nn.Linear(8, 4, bias=False)
        self.fc = nn.Linear(4 * 12, 3)

    def forward(self, tokens):
        out, _ = self.lstm(self.embedding(tokens))
        rows = F.softmax(self.second(torch.tanh(self.first(out))), dim=1).transpose(1, 2)
        return self.fc(torch.bmm(rows, out).view(tokens.size(0), -1)), rows


@written({"x": X, "lengths": LENGTHS}, "[batch,time,12]", how="padding")
@written({"x": X, "lengths": LENGTHS}, "[batch,time,12]", how="causal", slow=True)
@written({"x": X, "lengths": LENGTHS}, "[batch,time,12]", how="product")
@written({"x": X, "lengths": LENGTHS}, "[batch,time,12]", how="transformer", slow=True)
class SelfAttentionOnTop(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.gru = nn.GRU(5, 6, batch_first=True, bidirectional=True)
        self.attention = nn.MultiheadAttention(12, 3, batch_first=True)
        self.norm = nn.LayerNorm(12)
        self.block = nn.TransformerEncoderLayer(12, 3, 16, batch_first=True)
        self.how = how

    def forward(self, x, lengths):
        out, _ = self.gru(x)
        time = x.size(1)
        padding = torch.arange(time)[None] >= lengths[:, None]
        later = torch.triu(torch.ones(time, time, dtype=torch.bool, device=x.device), diagonal=1)
        if self.how == "transformer":
            return self.block(out, src_key_padding_mask=padding)
        if self.how == "padding":
            attended, _ = self.attention(out, out, out, key_padding_mask=padding)
        elif self.how == "causal":
            attended = self.attention(out, out, out, attn_mask=later, need_weights=False)[0]
        else:
            attended = F.scaled_dot_product_attention(out, out, out, attn_mask=~padding.unsqueeze(1))
        return self.norm(out + attended)


# Packing


@written({"tokens": TOKENS, "lengths": LENGTHS}, "[batch,3]", "[batch,longest,6]", gather=False)
@written({"tokens": TOKENS, "lengths": LENGTHS}, "[batch,3]", "[batch,longest,6]", gather=True, slow=True)
class SortsItself(nn.Module):
    """Sorting, packing and unsorting by hand, as before enforce_sorted was there."""

    def __init__(self, gather):
        super().__init__()
        self.embedding = nn.Embedding(20, 5, padding_idx=0)
        self.lstm = nn.LSTM(5, 6, batch_first=True)
        self.fc = nn.Linear(6, 3)
        self.gather = gather

    def forward(self, tokens, lengths):
        lengths, order = lengths.sort(0, descending=True)
        _, unsort = torch.sort(order)
        x = self.embedding(tokens[order] if self.gather else tokens.index_select(0, order))
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True)
        output, (hidden, _) = self.lstm(packed)
        output, _ = pad_packed_sequence(output, batch_first=True)
        if self.gather:
            return self.fc(hidden[-1][unsort]), output[unsort]
        return self.fc(hidden[-1].index_select(0, unsort)), output.index_select(0, unsort)


@written(
    {"tokens": TOKENS, "lengths": f"{LENGTHS}, descending", "hidden": "(float32[2,batch,6],float32[2,batch,6])"},
    "[?,20]",
    "[2,batch,6]",
    "[2,batch,6]",
)
class PackedLanguageModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(20, 5)
        self.lstm = nn.LSTM(5, 6, 2, batch_first=True)
        self.linear = nn.Linear(6, 20)

    def forward(self, tokens, lengths, hidden):
        self.lstm.flatten_parameters()
        packed = pack_padded_sequence(self.embedding(tokens), lengths.cpu(), batch_first=True)
        output, hidden = self.lstm(packed, hidden)
        output, _ = pad_packed_sequence(output, batch_first=True)
        output = output.contiguous().view(-1, output.shape[2])
        return F.log_softmax(self.linear(output), dim=-1), hidden


@written({"tokens": TOKENS, "lengths": LENGTHS}, "[batch,time,7]")
class Emissions(nn.Module):
    """A tagger whose CRF, which decodes, is left to the caller."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(20, 5, padding_idx=0)
        self.dropout = nn.Dropout(0.3)
        self.lstm = nn.LSTM(5, 3, 2, bidirectional=True, batch_first=True)
        self.hidden2tag = nn.Linear(6, 7)
        self.transitions = nn.Parameter(torch.randn(7, 7))

    def forward(self, tokens, lengths):
        embeds = self.dropout(self.embedding(tokens))
        packed = pack_padded_sequence(embeds, lengths.cpu(), batch_first=True, enforce_sorted=False)
        out, _ = self.lstm(packed)
        out, _ = pad_packed_sequence(out, batch_first=True, total_length=tokens.size(1))
        return self.hidden2tag(self.dropout(out))


@written({"x": X, "lengths": LENGTHS}, "[batch,longest,6]")
class PackedStack(nn.Module):
    """Layers with dropout on a packed sequence's data between them."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.GRU(5, 6, batch_first=True), nn.GRU(6, 6, batch_first=True)])
        self.dropout = nn.Dropout(0.2)

    def forward(self, x, lengths):
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        for layer in self.layers:
            packed, _ = layer(packed)
            packed = packed._replace(data=self.dropout(packed.data))
        return pad_packed_sequence(packed, batch_first=True)[0]
