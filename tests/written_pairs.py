"""Several recurrences and several sequences: encoders and decoders, pairs, groups, axes."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from written import LENGTHS, TIME_MAJOR, TOKENS, X, written
from written_readers import AdditiveAttention

SOURCE = {"source": "int64[batch,source]{0..19}", "target": "int64[batch,target]{0..19}"}
SOURCE_LENGTHS = {"source": SOURCE["source"], "lengths": "int64[batch]{1..source}", "target": SOURCE["target"]}


@written(SOURCE, "[batch,target,20]", cell="LSTM")
@written(SOURCE, "[batch,target,20]", cell="GRU", slow=True)
class EncoderDecoder(nn.Module):
    """The decoder reads the target that a teacher gives, from the encoder's last state on."""

    def __init__(self, cell):
        super().__init__()
        self.embed_source, self.embed_target = nn.Embedding(20, 5), nn.Embedding(20, 5)
        self.encoder = getattr(nn, cell)(5, 6, 2, batch_first=True)
        self.decoder = getattr(nn, cell)(5, 6, 2, batch_first=True)
        self.out = nn.Linear(6, 20)

    def forward(self, source, target):
        _, state = self.encoder(self.embed_source(source))
        output, _ = self.decoder(self.embed_target(target), state)
        return self.out(output)


@written(SOURCE_LENGTHS, "[batch,target,20]", attention="none", slow=True)
@written(SOURCE_LENGTHS, "[batch,target,20]", attention="dot")
@written(SOURCE_LENGTHS, "[batch,target,20]", attention="additive")
class Translator(nn.Module):
    """A packed encoder in both directions, a bridge to the decoder's state, attention over the encoder's outputs."""

    def __init__(self, attention):
        super().__init__()
        self.embedding = nn.Embedding(20, 5, padding_idx=0)
        self.encoder = nn.GRU(5, 6, bidirectional=True, batch_first=True)
        self.bridge = nn.Linear(12, 8)
        self.decoder = nn.GRU(5, 8, batch_first=True)
        self.memory = nn.Linear(12, 8, bias=False)
        self.query = nn.Linear(8, 8, bias=False)
        self.energy = nn.Linear(8, 1, bias=False)
        self.out = nn.Linear(8 if attention == "none" else 20, 20)
        self.attention = attention

    def forward(self, source, lengths, target):
        packed = pack_padded_sequence(self.embedding(source), lengths.cpu(), batch_first=True, enforce_sorted=False)
        outputs, hidden = self.encoder(packed)
        outputs, _ = pad_packed_sequence(outputs, batch_first=True, total_length=source.size(1))
        hidden = torch.tanh(self.bridge(torch.cat((hidden[0], hidden[1]), dim=1))).unsqueeze(0)
        decoded, _ = self.decoder(self.embedding(target), hidden)
        if self.attention == "none":
            return self.out(decoded)
        keys = self.memory(outputs)
        if self.attention == "dot":
            scores = torch.bmm(decoded, keys.transpose(1, 2))
        else:
            scores = self.energy(torch.tanh(self.query(decoded).unsqueeze(2) + keys.unsqueeze(1))).squeeze(-1)
        mask = torch.arange(source.size(1), device=source.device).unsqueeze(0) < lengths.unsqueeze(1)
        scores = scores.masked_fill(~mask.unsqueeze(1), float("-inf"))
        context = torch.bmm(scores.softmax(dim=-1), outputs)
        return self.out(torch.tanh(torch.cat([decoded, context], dim=-1)))


@written(SOURCE, "[batch,target,20]", cell="LSTM")
@written(SOURCE, "[batch,target,20]", cell="GRU", slow=True)
class DeepBridge(nn.Module):
    """A deep encoder in both directions, whose states are put side by side, layer by layer, for the decoder."""

    def __init__(self, cell):
        super().__init__()
        self.embedding = nn.Embedding(20, 5)
        self.encoder = getattr(nn, cell)(5, 3, 2, batch_first=True, bidirectional=True)
        self.decoder = getattr(nn, cell)(5, 6, 2, batch_first=True)
        self.out = nn.Linear(6, 20)

    def side_by_side(self, h):
        return torch.cat([h[0 : h.size(0) : 2], h[1 : h.size(0) : 2]], 2)

    def forward(self, source, target):
        _, hidden = self.encoder(self.embedding(source))
        if isinstance(hidden, tuple):
            hidden = tuple(self.side_by_side(h) for h in hidden)
        else:
            hidden = hidden.view(2, 2, -1, 3).transpose(1, 2).flatten(2).contiguous()
        return self.out(self.decoder(self.embedding(target), hidden)[0])


@written(
    {"features": "float32[batch,8]", "tokens": TOKENS, "lengths": LENGTHS},
    "[batch,?,20]",
    start="first_step",
    slow=True,
)
@written(
    {"features": "float32[batch,8]", "tokens": TOKENS, "lengths": LENGTHS},
    "[batch,longest,20]",
    start="state",
)
class Captioner(nn.Module):
    """What is captioned comes in as the first step, or as the first state."""

    def __init__(self, start):
        super().__init__()
        self.embed = nn.Embedding(20, 5)
        self.project, self.first_h, self.first_c = nn.Linear(8, 5), nn.Linear(8, 12), nn.Linear(8, 12)
        self.lstm = nn.LSTM(5, 6, 2, batch_first=True)
        self.linear = nn.Linear(6, 20)
        self.start = start

    def forward(self, features, tokens, lengths):
        embeddings = self.embed(tokens)
        state = None
        if self.start == "first_step":
            embeddings = torch.cat((self.project(features).unsqueeze(1), embeddings), 1)
            lengths = lengths + 1
        else:
            h, c = (first(features).view(-1, 2, 6).transpose(0, 1) for first in (self.first_h, self.first_c))
            state = (h.contiguous(), c.contiguous())
        packed = pack_padded_sequence(embeddings, lengths.cpu(), batch_first=True, enforce_sorted=False)
        out, _ = pad_packed_sequence(self.lstm(packed, state)[0], batch_first=True)
        return self.linear(out)


@written({"x": X}, "[batch,time,5]", how="repeat")
@written({"x": X}, "[batch,time,5]", how="expand", slow=True)
class Autoencoder(nn.Module):
    """The whole series in one vector, and the series again from that vector, given at every step."""

    def __init__(self, how):
        super().__init__()
        self.encoder, self.decoder = nn.LSTM(5, 6, batch_first=True), nn.LSTM(6, 6, batch_first=True)
        self.head = nn.Linear(6, 5)
        self.how = how

    def forward(self, x):
        batch_size, seq_len, _ = x.shape
        _, (hidden, _) = self.encoder(x)
        z = hidden[-1].unsqueeze(1)
        z = z.repeat(1, seq_len, 1) if self.how == "repeat" else z.expand(-1, seq_len, -1)
        decoded, _ = self.decoder(z)
        return self.head(decoded)


@written({"x": X, "future": "float32[batch,horizon,2]"}, "[batch,horizon]", "[batch,horizon]")
class ProbabilisticForecaster(nn.Module):
    """A normalised window, the known future to a decoder, the parameters of a distribution."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.LSTM(5, 6, batch_first=True), nn.LSTM(2, 6, batch_first=True)
        self.mu, self.sigma = nn.Linear(6, 1), nn.Linear(6, 1)

    def forward(self, x, future):
        mean = x.mean(1, keepdim=True).detach()
        std = torch.sqrt(x.var(dim=1, keepdim=True, unbiased=False) + 1e-5).detach()
        _, state = self.encoder((x - mean) / std)
        out, _ = self.decoder(future, state)
        mu = self.mu(out).squeeze(-1) * std[:, :, 0] + mean[:, :, 0]
        return mu, F.softplus(self.sigma(out)).squeeze(-1) + 1e-6


@written({"x": X}, "[batch,4,2]")
class FeedsItselfAFewSteps(nn.Module):
    """A forecast of a fixed number of steps, each read again."""

    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(5, 6, batch_first=True)
        self.cell, self.fc = nn.GRUCell(2, 6), nn.Linear(6, 2)
        self.horizon = 4

    def forward(self, x):
        _, h = self.gru(x)
        h, last, steps = h[-1], x[:, -1, :2], []
        for _ in range(self.horizon):
            h = self.cell(last, h)
            last = self.fc(h)
            steps.append(last)
        return torch.stack(steps, dim=1)


# Several sequences


@written({"left": "int64[batch,left]{0..19}", "right": "int64[batch,right]{0..19}"}, "[batch]", how="manhattan")
@written({"left": "int64[batch,left]{0..19}", "right": "int64[batch,right]{0..19}"}, "[batch]", how="cosine", slow=True)
class Siamese(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.embedding = nn.Embedding(20, 5)
        self.lstm = nn.LSTM(5, 6, batch_first=True)
        self.how = how

    def encode(self, tokens):
        _, (hidden, _) = self.lstm(self.embedding(tokens))
        return hidden.squeeze(0)

    def forward(self, left, right):
        a, b = self.encode(left), self.encode(right)
        if self.how == "cosine":
            return F.cosine_similarity(a, b, dim=1)
        return torch.exp(-torch.norm(a - b, p=1, dim=1))


class WordAttention(nn.Module):
    def __init__(self, features):
        super().__init__()
        self.gru = nn.GRU(features, 4, bidirectional=True, batch_first=True)
        self.attention = AdditiveAttention(8)

    def forward(self, x):
        return self.attention(self.gru(x)[0])[0]


@written({"tokens": "int64[batch,sentences,words]{0..19}"}, "[batch,3]", how="view")
@written({"tokens": "int64[batch,sentences,words]{0..19}"}, "[batch,3]", how="flatten", slow=True)
class Hierarchical(nn.Module):
    """Words, then sentences: the groups are laid flat for the words' net."""

    def __init__(self, how):
        super().__init__()
        self.embedding = nn.Embedding(20, 5)
        self.words, self.sentences = WordAttention(5), WordAttention(8)
        self.fc = nn.Linear(8, 3)
        self.how = how

    def forward(self, tokens):
        batch_size, sentences, words = tokens.size()
        if self.how == "view":
            each = self.words(self.embedding(tokens.view(batch_size * sentences, words)))
            return self.fc(self.sentences(each.view(batch_size, sentences, -1)))
        each = self.words(self.embedding(tokens).flatten(0, 1))
        return self.fc(self.sentences(each.unflatten(0, (batch_size, sentences))))


@written(
    {"tokens": TOKENS, "letters": "int64[batch,time,letters]{0..9}"},
    "[batch,time,4]",
)
class LettersAndWords(nn.Module):
    """A recurrence over each word's letters beside the word's embedding."""

    def __init__(self):
        super().__init__()
        self.word, self.letter = nn.Embedding(20, 5), nn.Embedding(10, 3)
        self.speller = nn.LSTM(3, 4, bidirectional=True, batch_first=True)
        self.tagger = nn.LSTM(13, 6, bidirectional=True, batch_first=True)
        self.fc = nn.Linear(12, 4)

    def forward(self, tokens, letters):
        batch, time, count = letters.shape
        _, (hidden, _) = self.speller(self.letter(letters.view(-1, count)))
        spelled = hidden.transpose(0, 1).reshape(batch, time, -1)
        out, _ = self.tagger(torch.cat([self.word(tokens), spelled], dim=2))
        return self.fc(out)


@written({"tokens": TOKENS, "lengths": LENGTHS}, "[batch,12]")
class ReversedByHand(nn.Module):
    """Two directions from two nets, of which the second reads each row backwards from its own end."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(20, 5)
        self.there, self.back = nn.GRU(5, 6, batch_first=True), nn.GRU(5, 6, batch_first=True)

    def forward(self, tokens, lengths):
        steps = torch.arange(tokens.size(1)).unsqueeze(0)
        index = torch.where(steps < lengths.unsqueeze(1), lengths.unsqueeze(1) - 1 - steps, steps)
        a, _ = self.there(self.embedding(tokens))
        b, _ = self.back(self.embedding(tokens.gather(1, index)))
        last = (lengths - 1)[:, None, None].expand(-1, 1, 6)
        return torch.cat([a.gather(1, last), b.gather(1, last)], dim=2).squeeze(1)


# Axes


@written({"x": TIME_MAJOR}, "[time,batch,12]", how="flip")
@written({"x": TIME_MAJOR}, "[time,batch,12]", how="index", slow=True)
class BothDirectionsByHand(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.there, self.back = nn.LSTM(5, 6), nn.LSTM(5, 6)
        self.how = how

    def forward(self, x):
        a, _ = self.there(x)
        if self.how == "flip":
            b, _ = self.back(torch.flip(x, dims=[0]))
            return torch.cat([a, b.flip(0)], dim=2)
        order = torch.arange(x.size(0) - 1, -1, -1, device=x.device)
        b, _ = self.back(x[order])
        return torch.cat([a, b[order]], dim=2)


class Path(nn.Module):
    """A recurrence along one axis of [batch, channels, length], with a residual."""

    def __init__(self, channels):
        super().__init__()
        self.rnn = nn.LSTM(channels, 4, batch_first=True, bidirectional=True)
        self.fc = nn.Linear(8, channels)
        self.norm = nn.GroupNorm(1, channels)

    def forward(self, x):
        out, _ = self.rnn(x.transpose(1, 2))
        return x + self.norm(self.fc(out).transpose(1, 2))


@written({"x": "float32[batch,4,time,bands]"}, "[batch,4,time,bands]", how="view")
@written({"x": "float32[batch,4,time,bands]"}, "[batch,4,time,bands]", how="reshape", slow=True)
class DualPath(nn.Module):
    """Along time within each band, then along the bands within each step."""

    def __init__(self, how):
        super().__init__()
        self.along_time, self.along_bands = Path(4), Path(4)
        self.how = how

    def forward(self, x):
        b, c, t, f = x.shape
        if self.how == "view":
            x = x.permute(0, 3, 1, 2).contiguous().view(b * f, c, t)
            x = self.along_time(x).view(b, f, c, t)
            x = x.permute(0, 3, 2, 1).contiguous().view(b * t, c, f)
            return self.along_bands(x).view(b, t, c, f).permute(0, 2, 1, 3).contiguous()
        x = self.along_time(x.permute(0, 3, 1, 2).reshape(-1, c, t)).reshape(b, -1, c, t)
        x = self.along_bands(x.permute(0, 3, 2, 1).reshape(-1, c, f)).reshape(b, -1, c, f)
        return x.permute(0, 2, 1, 3)
