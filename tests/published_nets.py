"""The nets whose published weights tests/test_published.py exports, written anew around those weights' names."""

import torch
from torch import nn


class SpeakerEncoder(nn.Module):
    """mel (batch, time, 40) → a unit vector (batch, 256) of the voice."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(40, 256, num_layers=3, batch_first=True)
        self.linear = nn.Linear(256, 256)

    def forward(self, mel):
        _, (h, _) = self.lstm(mel)
        return nn.functional.normalize(torch.relu(self.linear(h[-1])), dim=1)


class BeatTracker(nn.Module):
    """Filtered spectra (batch, time, 272) → logits of beat, downbeat, neither (batch, 3, time), and the state."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv1d(1, 2, 10)
        self.linear0 = nn.Linear(262, 150)
        self.lstm = nn.LSTM(150, 150, 2, batch_first=True)
        self.linear = nn.Linear(150, 3)

    def forward(self, spectra, state):
        batch, time, width = spectra.shape
        x = torch.relu(self.conv1(spectra.reshape(-1, 1, width)))
        x = nn.functional.max_pool1d(x, 2).reshape(batch, time, -1)
        y, state = self.lstm(self.linear0(x), state)
        return self.linear(y).transpose(1, 2), state


class ColumnType(nn.Module):
    """Characters of a cell (time, batch) → log-probabilities (batch, 82) of what the column holds."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(89, 128)
        self.lstm = nn.LSTM(128, 32)
        self.hidden2out = nn.Linear(32, 82)

    def forward(self, characters, lengths):
        packed = nn.utils.rnn.pack_padded_sequence(self.embedding(characters), lengths, enforce_sorted=False)
        _, (h, _) = self.lstm(packed)
        return self.hidden2out(h[-1]).log_softmax(1)


class Side(nn.Module):
    def __init__(self, symbols, outputs=None):
        super().__init__()
        self.embedding = nn.Embedding(symbols, 40)
        self.rnn = nn.LSTM(40, 256, 2)
        if outputs:
            self.fc_out = nn.Linear(256, outputs)


class GraphemesToPhonemes(nn.Module):
    """Letters (time, batch) and the phonemes so far (steps, batch) → logits (steps, batch, 33) of the next."""

    def __init__(self):
        super().__init__()
        self.encoder = Side(41)
        self.decoder = Side(33, 33)

    def forward(self, letters, phonemes):
        _, state = self.encoder.rnn(self.encoder.embedding(letters))
        y, _ = self.decoder.rnn(self.decoder.embedding(phonemes), state)
        return self.decoder.fc_out(y)


class VoiceActivity(nn.Module):
    """A frame's features (batch, 128) and the state → the probability of speech (batch, 1), and the state."""

    def __init__(self):
        super().__init__()
        self.lstm_cell = nn.LSTMCell(128, 128)
        self.final_conv = nn.Conv1d(128, 1, 1)

    def forward(self, features, state):
        h, c = self.lstm_cell(features, state)
        return torch.sigmoid(self.final_conv(torch.relu(h)[:, :, None])).mean(2), h, c


class ScriptedActivity(nn.Module):
    """The same under the names of the TorchScript program."""

    def __init__(self):
        super().__init__()
        self.decoder = nn.Module()
        self.decoder.rnn = nn.LSTMCell(128, 128)
        self.decoder.decoder = nn.Sequential(nn.Dropout(0.1), nn.ReLU(), nn.Conv1d(128, 1, 1), nn.Sigmoid())

    def forward(self, features, state):
        h, c = self.decoder.rnn(features, state)
        return self.decoder.decoder(h[:, :, None]).mean(2), h, c


class ReadsLines(nn.Module):
    """Features of a line of print (batch, time, 192) → logits of characters (batch, time, 122)."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(192, 128, batch_first=True, bidirectional=True)
        self.head = nn.Linear(256, 122)

    def forward(self, features):
        return self.head(self.rnn(features)[0])
