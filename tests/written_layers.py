"""What people put around a recurrence: embeddings, convolutions, norms, residuals, containers, reparametrisations."""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from written import LENGTHS, TOKENS, X, written

# Convolutions before the recurrence


@written({"x": X, "lengths": LENGTHS}, "[batch,?,4]", packed=False, slow=True)
@written({"x": X, "lengths": LENGTHS}, "[batch,?,4]", "[batch]", packed=True)
class StridedSpeech(nn.Module):
    """Every second step after a convolution over the features' steps; the lengths follow."""

    def __init__(self, packed):
        super().__init__()
        self.conv = nn.Sequential(nn.Conv1d(5, 8, 3, stride=2, padding=1), nn.BatchNorm1d(8), nn.ReLU())
        self.gru = nn.GRU(8, 6, 2, batch_first=True, bidirectional=True)
        self.fc = nn.Linear(12, 4)
        self.packed = packed

    def forward(self, x, lengths):
        x = self.conv(x.permute(0, 2, 1)).permute(0, 2, 1)
        if not self.packed:
            return self.fc(self.gru(x)[0]).log_softmax(-1)
        lengths = (lengths - 1) // 2 + 1
        x = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        x, lengths = pad_packed_sequence(self.gru(x)[0], batch_first=True)
        return F.log_softmax(self.fc(x), dim=-1), lengths


@written({"spectrogram": "float32[batch,16,time]"}, "[?,batch,6]", how="view")
@written({"spectrogram": "float32[batch,16,time]"}, "[batch,?,6]", how="flatten", slow=True)
class DeepSpeech(nn.Module):
    """Two-dimensional convolutions over frequency and time, whose channels and frequencies become features."""

    def __init__(self, how):
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(1, 4, (5, 3), stride=(2, 2), padding=(2, 1)),
            nn.BatchNorm2d(4),
            nn.Hardtanh(0, 20, inplace=True),
            nn.Conv2d(4, 4, (3, 3), stride=(2, 1), padding=(1, 1)),
        )
        self.rnn = nn.GRU(16, 6, bidirectional=True, batch_first=how == "flatten")
        self.how = how

    def forward(self, spectrogram):
        x = self.conv(spectrogram.unsqueeze(1))
        if self.how == "view":
            sizes = x.size()
            x = x.view(sizes[0], sizes[1] * sizes[2], sizes[3])
            x = x.transpose(1, 2).transpose(0, 1).contiguous()  # (T, B, C * F)
            x, _ = self.rnn(x)
            return x.view(x.size(0), x.size(1), 2, -1).sum(2).view(x.size(0), x.size(1), -1)
        x = x.permute(0, 3, 1, 2).flatten(2)  # (B, T, C * F)
        return self.rnn(x)[0][..., :6]


class ReadsColumns(nn.Sequential):
    """The convolutions of a text recogniser: the height collapses to 1, the width is left as time."""

    def __init__(self, pooled):
        super().__init__(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(True),
            nn.MaxPool2d(2, 2) if pooled else nn.MaxPool2d((2, 1)),
            nn.Conv2d(4, 6, 3, padding=1),
            nn.LeakyReLU(0.2),
            nn.MaxPool2d((2, 2), (2, 1), (0, 1)) if pooled else nn.MaxPool2d((2, 1)),
            nn.Conv2d(6, 8, (2, 1)),
        )


@written({"image": "float32[batch,1,8,width]"}, "[width,batch,11]", pooled=False)
@written({"image": "float32[batch,1,8,width]"}, "[?,batch,11]", pooled=True, least={"width": 2})
class TextRecogniser(nn.Module):
    """Columns of an image as time, log-probabilities for CTC with time first."""

    def __init__(self, pooled):
        super().__init__()
        self.cnn = ReadsColumns(pooled)
        self.rnn = nn.LSTM(8, 6, bidirectional=True)
        self.embedding = nn.Linear(12, 11)

    def forward(self, image):
        conv = self.cnn(image)
        b, c, h, w = conv.size()
        assert h == 1, "the height of conv must be 1"
        conv = conv.squeeze(2).permute(2, 0, 1)  # [w, b, c]
        recurrent, _ = self.rnn(conv)
        t, b, h = recurrent.size()
        output = self.embedding(recurrent.view(t * b, h)).view(t, b, -1)
        return F.log_softmax(output, dim=2)


@written({"clip": "float32[batch,time,3,8,8]"}, "[batch,4]")
class Video(nn.Module):
    """A convolutional net on every frame, a recurrence over the frames."""

    def __init__(self):
        super().__init__()
        self.cnn = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.lstm = nn.LSTM(4, 6, batch_first=True)
        self.fc = nn.Linear(6, 4)

    def forward(self, clip):
        b, t, c, h, w = clip.shape
        features = self.cnn(clip.view(b * t, c, h, w)).view(b, t, -1)
        out, _ = self.lstm(features)
        return self.fc(out[:, -1])


@written({"x": X}, "[batch,time,6]")
class CausalConvolution(nn.Module):
    """Padding on the left alone, then a recurrence."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(5, 6, 3, dilation=2)
        self.gru = nn.GRU(6, 6, batch_first=True)

    def forward(self, x):
        x = F.relu(self.conv(F.pad(x.transpose(1, 2), (4, 0))))
        return self.gru(x.transpose(1, 2))[0]


@written({"wave": "float32[batch,1,samples]"}, "[batch,?,6]")
class Waveform(nn.Module):
    """Strides that leave one step of sixteen samples."""

    def __init__(self):
        super().__init__()
        self.convs = nn.Sequential(
            nn.Conv1d(1, 4, 8, stride=4, padding=4), nn.GELU(), nn.Conv1d(4, 6, 8, stride=4, padding=4), nn.GELU()
        )
        self.norm = nn.LayerNorm(6)
        self.lstm = nn.LSTM(6, 6, batch_first=True)

    def forward(self, wave):
        return self.lstm(self.norm(self.convs(wave).transpose(1, 2)))[0]


@written({"x": X}, "[batch,?,6]", least={"time": 7})
class WideWindow(nn.Module):
    """A convolution without padding, which takes no series shorter than its window."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(5, 6, 7)
        self.gru = nn.GRU(6, 6, batch_first=True)

    def forward(self, x):
        return self.gru(self.conv(x.permute(0, 2, 1)).permute(0, 2, 1))[0]


@written({"x": "float32[batch,12,5]"}, "[batch,1]")
class FixedWindow(nn.Module):
    """A window of one size, all of whose steps a linear layer reads."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(5, 6, batch_first=True)
        self.fc = nn.Linear(12 * 6, 1)

    def forward(self, x):
        out, _ = self.lstm(x)
        return self.fc(out.reshape(out.shape[0], -1))


@written({"x": X}, "[batch,?,12]")
class Pyramid(nn.Module):
    """Pairs of steps joined between the layers, an odd last one with zeros."""

    def __init__(self):
        super().__init__()
        self.first = nn.LSTM(5, 6, batch_first=True, bidirectional=True)
        self.second = nn.LSTM(24, 6, batch_first=True, bidirectional=True)

    def forward(self, x):
        x, _ = self.first(x)
        x = F.pad(x, (0, 0, 0, x.size(1) % 2))
        x = x.contiguous().view(x.size(0), x.size(1) // 2, x.size(2) * 2)
        return self.second(x)[0]


# Embeddings


@written({"words": TOKENS, "tags": "int64[batch,time]{0..6}", "caps": "int64[batch,time]{0..3}"}, "[batch,time,4]")
class SeveralEmbeddings(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.tags, self.caps = nn.Embedding(20, 5), nn.Embedding(7, 3), nn.Embedding(4, 2)
        self.lstm = nn.LSTM(10, 6, batch_first=True, bidirectional=True)
        self.fc = nn.Linear(12, 4)

    def forward(self, words, tags, caps):
        x = torch.cat((self.words(words), self.tags(tags), self.caps(caps)), dim=2)
        return self.fc(self.lstm(x)[0])


@written({"tokens": "int64[batch,time,4]{0..19}"}, "[batch,3]", how="mean")
@written({"tokens": "int64[batch,time,4]{0..19}"}, "[batch,3]", how="sum", slow=True)
@written({"tokens": "int64[batch,time,4]{0..19}"}, "[batch,3]", how="embedding")
class BagAtEveryStep(nn.Module):
    """Several features a step, whose embeddings are summed or averaged."""

    def __init__(self, how):
        super().__init__()
        self.bag = nn.Embedding(20, 5) if how == "embedding" else nn.EmbeddingBag(20, 5, mode=how)
        self.gru = nn.GRU(5, 6, batch_first=True)
        self.fc = nn.Linear(6, 3)
        self.how = how

    def forward(self, tokens):
        if self.how == "embedding":
            x = self.bag(tokens).sum(dim=2)
        else:
            batch, time, count = tokens.shape
            x = self.bag(tokens.view(-1, count)).view(batch, time, -1)
        return self.fc(self.gru(x)[1][-1])


@written({"tokens": TOKENS}, "[batch,time,20]", how="tied")
@written({"tokens": TOKENS}, "[batch,time,20]", how="functional", slow=True)
class TiedWeights(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.encoder = nn.Embedding(20, 6)
        self.rnn = nn.LSTM(6, 6, 2, batch_first=True)
        self.decoder = nn.Linear(6, 20)
        self.decoder.weight = self.encoder.weight
        self.how = how

    def forward(self, tokens):
        out, _ = self.rnn(self.encoder(tokens))
        return F.linear(out, self.encoder.weight) if self.how == "functional" else self.decoder(out)


@written({"tokens": TOKENS}, "[batch,time,20]")
class OneHot(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.RNN(20, 6, batch_first=True)
        self.fc = nn.Linear(6, 20)

    def forward(self, tokens):
        x = F.one_hot(tokens, num_classes=20).float()
        out, _ = self.rnn(x)
        return self.fc(out)


@written({"tokens": TOKENS}, "[batch,time,6]", longest=300)
@written({"tokens": TOKENS}, "[batch,time,6]", longest=50, most={"time": 50})
class Positions(nn.Module):
    """Two tables of positions, which end somewhere."""

    def __init__(self, longest):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(20, 6), nn.Embedding(longest, 6)
        steps = torch.arange(longest).unsqueeze(1)
        self.register_buffer("waves", torch.sin(steps / torch.arange(1.0, 7)).unsqueeze(0))
        self.gru = nn.GRU(6, 6, batch_first=True)

    def forward(self, tokens):
        positions = torch.arange(tokens.size(1), device=tokens.device).unsqueeze(0).expand_as(tokens)
        x = self.tokens(tokens) + self.positions(positions) + self.waves[:, : tokens.size(1)]
        return self.gru(x)[0]


# Norms, residuals, gates, dropout


@written({"x": X}, "[batch,time,12]")
class LayerNormBetween(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.GRU(5, 6, batch_first=True, bidirectional=True)
        self.second = nn.GRU(12, 6, batch_first=True, bidirectional=True)
        self.norms = nn.ModuleList([nn.LayerNorm(5), nn.LayerNorm(12), nn.LayerNorm([12])])

    def forward(self, x):
        x, _ = self.first(self.norms[0](x))
        x, _ = self.second(self.norms[1](x))
        return self.norms[2](x)


@written({"x": X}, "[batch,time,6]", how="permute")
@written({"x": X}, "[batch,time,6]", how="view", slow=True)
class BatchNormBetween(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.first, self.second = nn.LSTM(5, 6, batch_first=True), nn.LSTM(6, 6, batch_first=True)
        self.norm = nn.BatchNorm1d(6)
        self.how = how

    def forward(self, x):
        x, _ = self.first(x)
        if self.how == "permute":
            x = self.norm(x.permute(0, 2, 1)).permute(0, 2, 1)
        else:
            t, n = x.size(0), x.size(1)
            x = self.norm(x.contiguous().view(t * n, -1)).view(t, n, -1)
        return self.second(x)[0]


@written({"x": X}, "[batch,time,10]")
class ResidualStack(nn.Module):
    def __init__(self):
        super().__init__()
        self.inp = nn.Linear(5, 10)
        self.layers = nn.ModuleList([nn.LSTM(10, 5, batch_first=True, bidirectional=True) for _ in range(3)])
        self.dropout = nn.Dropout(0.1)

    def forward(self, x):
        x = self.inp(x)
        for i, layer in enumerate(self.layers):
            residual = x
            x, _ = layer(x)
            x = self.dropout(x)
            if i > 0:
                x = x + residual
        return x


@written({"x": X}, "[batch,time,17]")
class SkipConcatenation(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.GRU(5, 6, batch_first=True), nn.GRU(11, 6, batch_first=True)

    def forward(self, x):
        y, _ = self.first(x)
        y = torch.cat((x, y), -1)
        z, _ = self.second(y)
        return torch.cat([x, y[..., 5:], z], dim=-1)


class Highway(nn.Module):
    def __init__(self, size, layers):
        super().__init__()
        self.gates = nn.ModuleList([nn.Linear(size, size) for _ in range(layers)])
        self.transforms = nn.ModuleList([nn.Linear(size, size) for _ in range(layers)])

    def forward(self, x):
        for gate, transform in zip(self.gates, self.transforms, strict=True):
            g = torch.sigmoid(gate(x))
            x = g * F.relu(transform(x)) + (1 - g) * x
        return x


@written({"x": X}, "[batch,2]")
class HighwayNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.highway = Highway(5, 2)
        self.gru = nn.GRU(5, 6, batch_first=True)
        self.after = Highway(6, 1)
        self.fc = nn.Linear(6, 2)

    def forward(self, x):
        _, h = self.gru(self.highway(x))
        return self.fc(self.after(h.squeeze(0)))


class TimeDistributed(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        if x.dim() <= 2:
            return self.module(x)
        y = self.module(x.contiguous().view(-1, x.size(-1)))
        return y.contiguous().view(x.size(0), -1, y.size(-1))


@written({"tokens": TOKENS}, "[batch,time,3]")
class OverEveryStep(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(20, 5)
        self.spatial = nn.Dropout2d(0.2)
        self.gru = nn.GRU(5, 6, batch_first=True)
        self.head = TimeDistributed(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ELU(), nn.Linear(8, 3)))

    def forward(self, tokens):
        x = self.embedding(tokens)
        x = self.spatial(x.permute(0, 2, 1).unsqueeze(3)).squeeze(3).permute(0, 2, 1)
        return self.head(self.gru(x)[0])


class LockedDropout(nn.Module):
    def forward(self, x, dropout=0.5):
        if not self.training or not dropout:
            return x
        mask = x.new_empty(1, x.size(1), x.size(2)).bernoulli_(1 - dropout) / (1 - dropout)
        return mask.expand_as(x) * x


class WeightDrop(nn.Module):
    """Drops weights of the recurrence's own matrix while training; in eval it puts them in as they are."""

    def __init__(self, module, how, name="weight_hh_l0", dropout=0.5):
        super().__init__()
        self.module, self.how, self.name, self.dropout = module, how, name, dropout
        raw = getattr(module, name)
        del module._parameters[name]
        module.register_parameter(f"{name}_raw", nn.Parameter(raw.data))

    def forward(self, *args):
        raw = getattr(self.module, f"{self.name}_raw")
        clone = self.how == "clone" and not self.training
        setattr(self.module, self.name, raw.clone() if clone else F.dropout(raw, self.dropout, self.training))
        return self.module(*args)


@written({"tokens": "int64[time,batch]{0..19}"}, "[time,batch,20]", weight_drop="", slow=True)
@written({"tokens": "int64[time,batch]{0..19}"}, "[time,batch,20]", weight_drop="clone", slow=True)
@written({"tokens": "int64[time,batch]{0..19}"}, "[time,batch,20]", weight_drop="dropout")
class RegularisedLanguageModel(nn.Module):
    def __init__(self, weight_drop):
        super().__init__()
        self.encoder = nn.Embedding(20, 6)
        rnns = [nn.LSTM(6, 8), nn.LSTM(8, 6)]
        self.rnns = nn.ModuleList([WeightDrop(rnn, weight_drop) for rnn in rnns] if weight_drop else rnns)
        self.lockdrop = LockedDropout()
        self.decoder = nn.Linear(6, 20)
        self.decoder.weight = self.encoder.weight

    def forward(self, tokens):
        x = self.lockdrop(self.encoder(tokens), 0.4)
        for rnn in self.rnns:
            x, _ = rnn(x)
            x = self.lockdrop(x)
        return self.decoder(x.view(x.size(0) * x.size(1), x.size(2))).view(x.size(0), x.size(1), -1)


# Reparametrised weights


@written({"x": X}, "[batch,time,6]", norm="new")
@written({"x": X}, "[batch,time,6]", norm="old", warns=".*weight_norm.* is deprecated")
class WeightNorm(nn.Module):
    def __init__(self, norm):
        super().__init__()
        weight_norm = nn.utils.parametrizations.weight_norm if norm == "new" else nn.utils.weight_norm
        self.lstm = nn.LSTM(5, 6, batch_first=True)
        for name in ("weight_ih_l0", "weight_hh_l0"):
            self.lstm = weight_norm(self.lstm, name)

    def forward(self, x):
        return self.lstm(x)[0]


@written({"x": X, "lengths": LENGTHS}, "[batch,longest,6]", norm="new")
@written(
    {"x": X, "lengths": LENGTHS}, "[batch,longest,6]", norm="old", warns=".*weight_norm.* is deprecated", slow=True
)
class PackedWeightNorm(WeightNorm):
    def forward(self, x, lengths):
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return pad_packed_sequence(self.lstm(packed)[0], batch_first=True)[0]


@written({"x": X}, "[batch,time,6]", norm="new", slow=True)
@written({"x": X}, "[batch,time,6]", norm="old", warns=".*spectral_norm.* is deprecated")
class SpectralNorm(nn.Module):
    def __init__(self, norm):
        super().__init__()
        spectral_norm = nn.utils.parametrizations.spectral_norm if norm == "new" else nn.utils.spectral_norm
        self.gru = spectral_norm(nn.GRU(5, 6, batch_first=True), "weight_hh_l0")
        self.fc = spectral_norm(nn.Linear(6, 6))

    def settle(self):
        """The norm is estimated while training, a little better with every call."""
        self.train()
        for _ in range(30):
            self(torch.randn(2, 3, 5))
        self.eval()

    def forward(self, x):
        return self.fc(self.gru(x)[0])


# Containers


class TakeOutput(nn.Module):
    def forward(self, pair):
        output, _ = pair
        return output


@written({"input": X}, "[batch,time,3]")
def Sequential():
    return nn.Sequential(
        OrderedDict(
            norm=nn.LayerNorm(5),
            rnn=nn.LSTM(5, 6, batch_first=True),
            take=TakeOutput(),
            act=nn.Tanh(),
            head=nn.Linear(6, 3),
        )
    )


class Block(nn.Module):
    def __init__(self, features, size):
        super().__init__()
        self.core = nn.ModuleDict({"rnn": nn.GRU(features, size, batch_first=True), "norm": nn.LayerNorm(size)})

    def forward(self, x):
        return self.core["norm"](self.core["rnn"](x)[0])


@written({"x": X}, "[batch,time,6]")
class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Block(5, 6), nn.Sequential(Block(6, 6), nn.ReLU())])

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


@written({"x": X}, "[batch,time,6]", chosen="lstm")
@written({"x": X}, "[batch,time,6]", chosen="gru", slow=True)
class Chosen(nn.Module):
    def __init__(self, chosen):
        super().__init__()
        self.cells = nn.ModuleDict({"lstm": nn.LSTM(5, 6, batch_first=True), "gru": nn.GRU(5, 6, batch_first=True)})
        self.chosen = chosen

    def forward(self, x):
        return self.cells[self.chosen](x)[0]


@written({"x": X}, "sentiment[batch,2]", "topic[batch,4]", "length[batch]")
class MultiTask(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(5, 6, batch_first=True)
        self.heads = nn.ModuleDict({"sentiment": nn.Linear(6, 2), "topic": nn.Linear(6, 4), "length": nn.Linear(6, 1)})

    def forward(self, x):
        h = self.lstm(x)[0][:, -1]
        results = {name: head(h) for name, head in self.heads.items()}
        results["length"] = results["length"].squeeze(-1)
        return results
