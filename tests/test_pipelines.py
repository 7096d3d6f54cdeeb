import numpy as np
import pytest
import torch
from conftest import characters, forecaster, text_network

from seqexport import SpecError, UnsupportedError
from seqexport.networks import Network
from seqexport.pipelines import Classify, Forecast, Generate, Scaling, distribution, make_pipeline
from seqexport.specs import CELLS, NetworkSpec


@pytest.mark.parametrize("transform", ["none", "root", "log"])
def test_scaling_is_fitted_applied_and_undone(transform):
    values = torch.rand(500, dtype=torch.float64) * 90 + 3
    scaling = Scaling.fitted(values, transform)
    z = scaling.apply(values)
    assert abs(float(z.mean())) < 1e-12
    assert abs(float(z.std(correction=0)) - 1) < 1e-12
    torch.testing.assert_close(scaling.undo(z), values)
    assert Scaling.from_dict(scaling.to_dict()) == scaling


@pytest.mark.parametrize("transform", ["root", "log"])
def test_values_below_zero_are_taken_as_zero_and_none_is_given(transform):
    scaling = Scaling(transform, 2.0, 1.0)
    assert torch.equal(scaling.apply(torch.tensor([-4.0, 0.0])), torch.tensor([-2.0, -2.0]))
    assert float(scaling.undo(torch.tensor(-9.0))) == 0.0


@pytest.mark.parametrize("fields", [("sine", 0, 1), ("none", 0, 0), ("none", float("nan"), 1), ("none", 0, -1)])
def test_a_scaling_that_makes_no_sense_is_refused(fields):
    with pytest.raises(SpecError, match="scaling"):
        Scaling(*fields)


def roll_out(network, scaling, history, noise):
    """One path by the book: the module is called on all values so far, again for every step."""
    values = scaling.apply(history)
    for step in range(noise.shape[0]):
        y, *_ = network(values[None, :, None])
        mean, spread = distribution(y[0, -1])
        values = torch.cat([values, mean + spread * noise[step]])
    return scaling.undo(values[len(history) :])


LAGS = {"no lags": {}, "lags": {"lags": (2, 5, 23)}, "lags past the cell": {"lags": (3, 7), "skip": True}}
WITH_LAGS = pytest.mark.parametrize("options", LAGS.values(), ids=LAGS)


@WITH_LAGS
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("layers", [1, 3])
@torch.no_grad()
def test_every_path_is_what_rereading_the_whole_series_at_each_step_gives(cell, layers, options):
    network, scaling = forecaster(cell, layers, **options), Scaling("root", 6.0, 3.0)
    history, noise = torch.rand(3, 20) * 90, torch.randn(3, 4, 7)
    path, *_ = Forecast(network, scaling)(history, noise)
    assert path.shape == (3, 4, 7)
    for row in range(3):
        for which in range(4):
            expected = roll_out(network, scaling, history[row], noise[row, which])
            torch.testing.assert_close(path[row, which], expected, rtol=1e-4, atol=1e-3)


@torch.no_grad()
def test_lags_are_counted_from_the_value_that_comes_next():
    """What a net with lags reads, by the book: at each step the value, and those so long before the next; zero before
    the beginning."""
    lags, values = (2, 4, 9), torch.randn(2, 12)
    network = forecaster("lstm", lags=lags, skip=True)
    rows = torch.zeros(2, 12, 4)
    for step in range(12):
        rows[:, step, 0] = values[:, step]
        for column, lag in enumerate(lags, 1):
            if step + 1 - lag >= 0:
                rows[:, step, column] = values[:, step + 1 - lag]
    hidden, (h, c) = network.rnn(rows)
    expected = network.head(torch.cat([hidden, rows], -1))
    y, hn, cn, zn = network(values[..., None])
    for found, right in ((y, expected), (hn, h), (cn, c), (zn, values[None, :, -8:])):
        torch.testing.assert_close(found, right)


@WITH_LAGS
@pytest.mark.parametrize("cell", CELLS)
@torch.no_grad()
def test_a_history_in_chunks_with_carried_state_gives_the_same_path(cell, options):
    pipeline = Forecast(forecaster(cell, **options), Scaling("none", 5.0, 2.0))
    history, noise = torch.randn(2, 30), torch.randn(2, 3, 5)
    whole, *after = pipeline(history, noise)
    _, *state = pipeline(history[:, :11], noise)
    _, *state = pipeline(history[:, 11:12], noise, *state)
    path, *carried = pipeline(history[:, 12:], noise, *state)
    torch.testing.assert_close(path, whole)
    for a, b in zip(after, carried, strict=True):
        torch.testing.assert_close(a, b)


@torch.no_grad()
def test_zero_noise_is_the_central_path_and_noise_spreads_around_it():
    pipeline = Forecast(forecaster(), Scaling())
    history = torch.randn(1, 40)
    central, *_ = pipeline(history, torch.zeros(1, 1, 1))
    fan, *_ = pipeline(history, torch.randn(1, 4000, 1))
    y, *_ = pipeline.network(history[..., None])
    mean, spread = distribution(y[0, -1])
    assert np.isclose(float(central), float(mean), atol=1e-6)
    assert np.isclose(float(fan.mean()), float(mean), atol=4 * float(spread) / np.sqrt(4000))
    assert np.isclose(float(fan.std()), float(spread), rtol=0.05)


@pytest.mark.parametrize("change", [{"bidirectional": True}, {"outputs": 1}, {"features": 2}, {"pooling": "last"}])
def test_a_network_that_cannot_roll_on_is_refused(change):
    fields = {"cell": "gru", "features": 1, "hidden_size": 4, "outputs": 2} | change
    with pytest.raises(UnsupportedError, match="one-directional net from 1 number to 2"):
        Forecast(Network(NetworkSpec(**fields)), Scaling())


# --- classify

LENGTHS = (9, 1, 4)


def classify_alone(network, tokens):
    """The probabilities of one unpadded text (T,) by the book: the module itself, pooled by its own forward."""
    y, *_ = network(tokens[None])
    return torch.softmax(y, -1)[0]


@pytest.mark.parametrize("pooling", ["last", "mean", "max"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", CELLS)
@torch.no_grad()
def test_a_padded_text_is_classified_as_it_is_alone(cell, bidirectional, pooling):
    network = text_network(cell, outputs=3, pooling=pooling, bidirectional=bidirectional)
    tokens = torch.randint(0, 30, (3, 9))
    probabilities, *_ = Classify(network)(tokens, torch.tensor(LENGTHS))
    for row, length in enumerate(LENGTHS):
        torch.testing.assert_close(probabilities[row], classify_alone(network, tokens[row, :length]))


@pytest.mark.parametrize("pooling", ["last", "mean", "max"])
@pytest.mark.parametrize("bidirectional", [False, True])
@torch.no_grad()
def test_what_stands_after_a_text_changes_nothing(pooling, bidirectional):
    pipeline = Classify(text_network("lstm", outputs=2, pooling=pooling, bidirectional=bidirectional))
    tokens, lengths = torch.randint(0, 30, (3, 9)), torch.tensor(LENGTHS)
    other, longer = tokens.clone(), torch.randint(0, 30, (3, 14))
    for row, length in enumerate(LENGTHS):
        other[row, length:] = (tokens[row, length:] + 7) % 30
        longer[row, :9] = tokens[row]
    expected, *running = pipeline(tokens, lengths)
    for changed in (other, longer):
        found, *after = pipeline(changed, lengths)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
        for a, b in zip(running, after, strict=True):
            torch.testing.assert_close(b[:, :9], a, rtol=0, atol=1e-6)


@pytest.mark.parametrize("pooling", ["last", "mean", "max"])
@torch.no_grad()
def test_running_probabilities_are_those_of_the_text_so_far(pooling):
    pipeline = Classify(text_network("gru", outputs=3, pooling=pooling))
    tokens, lengths = torch.randint(0, 30, (3, 9)), torch.tensor(LENGTHS)
    probabilities, running = pipeline(tokens, lengths)
    assert running.shape == (3, 9, 3)
    for row, length in enumerate(LENGTHS):
        for step in range(9):
            seen = min(step + 1, length)
            expected = classify_alone(pipeline.network, tokens[row, :seen])
            torch.testing.assert_close(running[row, step], expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(probabilities[row], running[row, -1])


@pytest.mark.parametrize("pooling", ["last", "mean", "max"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_what_is_trained_is_what_answers(pooling, bidirectional):
    pipeline = Classify(text_network("lstm", outputs=2, pooling=pooling, bidirectional=bidirectional))
    tokens, lengths = torch.randint(0, 30, (3, 9)), torch.tensor(LENGTHS)
    logits = pipeline.logits(tokens, lengths)
    torch.testing.assert_close(torch.softmax(logits, -1), pipeline(tokens, lengths)[0], rtol=0, atol=1e-6)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in pipeline.parameters())


# --- generate


def write_on(network, prompt, uniforms, temperature=1.0, top_k=0, top_p=1.0):
    """One text by the book, in numpy: all tokens so far are read again for every step."""
    tokens = prompt.tolist()
    for u in uniforms.double().numpy():
        y, *_ = network(torch.tensor(tokens)[None])
        logits = y[0, -1].double().numpy()
        if temperature == 0:
            tokens.append(int(logits.argmax()))
            continue
        p = np.exp((logits - logits.max()) / temperature)
        p /= p.sum()
        order = np.argsort(-p)
        if top_k:
            p[order[top_k:]] = 0
            p /= p.sum()
        before = np.cumsum(p[order]) - p[order]
        p[order[(before >= top_p) & (np.arange(len(p)) > 0)]] = 0
        cumulative = np.cumsum(p) / p.sum()
        tokens.append(int(np.argmax(cumulative > u)))
    return tokens[len(prompt) :]


SETTINGS = [
    {},
    {"temperature": 0.6},
    {"temperature": 0.0},
    {"top_k": 1},
    {"top_k": 4},
    {"top_k": 500},
    {"top_p": 0.0},
    {"top_p": 0.7},
    {"temperature": 1.4, "top_k": 6, "top_p": 0.8},
]


def asked(temperature=1.0, top_k=0, top_p=1.0):
    return torch.tensor(temperature), torch.tensor(top_k), torch.tensor(top_p)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("cell", CELLS)
@torch.no_grad()
def test_every_token_is_what_rereading_the_whole_text_gives(cell, settings):
    pipeline = Generate(text_network(cell))
    prompt, uniforms = torch.randint(0, 30, (2, 4)), torch.rand(2, 40)
    tokens, *_ = pipeline(prompt, uniforms, *asked(**settings))
    assert tokens.dtype == torch.int64
    for row in range(2):
        assert tokens[row].tolist() == write_on(pipeline.network, prompt[row], uniforms[row], **settings)


@pytest.mark.parametrize("length", [1, 7])
@pytest.mark.parametrize("cell", CELLS)
@torch.no_grad()
def test_a_text_in_chunks_is_the_text_at_once(cell, length):
    pipeline, options = Generate(text_network(cell)), asked(temperature=0.9, top_p=0.9)
    prompt, uniforms = torch.randint(0, 30, (2, length)), torch.rand(2, 50)
    whole, *after = pipeline(prompt, uniforms, *options)
    state, parts = (), []
    for chunk in uniforms.split([1, 1, 20, 28], dim=1):
        tokens, *state = pipeline(prompt, chunk, *options, *state)
        prompt = tokens[:, -1:]
        parts.append(tokens)
    assert torch.equal(torch.cat(parts, 1), whole)
    for a, b in zip(after, state, strict=True):
        torch.testing.assert_close(a, b)


@torch.no_grad()
def test_the_state_is_from_before_the_last_token_is_read():
    pipeline = Generate(text_network("gru"))
    prompt = torch.randint(0, 30, (2, 5))
    tokens, hn = pipeline(prompt, torch.rand(2, 6), *asked())
    _, expected = pipeline.network(torch.cat([prompt, tokens[:, :-1]], 1))
    torch.testing.assert_close(hn, expected)


@pytest.mark.parametrize("u", [0.0, 1.0, 1 - 2**-24])
@torch.no_grad()
def test_the_ends_of_the_uniform_numbers_pick_tokens_that_are_left(u):
    pipeline = Generate(text_network("gru"))
    prompt = torch.randint(0, 30, (64, 3))
    for settings in SETTINGS:
        tokens, *_ = pipeline(prompt, torch.full((64, 1), u), *asked(**settings))
        for row in range(64):
            last = write_on(pipeline.network, prompt[row], torch.tensor([min(u, 1 - 2**-24)]), **settings)
            assert tokens[row].tolist() == last


@torch.no_grad()
def test_tokens_come_as_often_as_their_probability_says():
    pipeline = Generate(text_network("gru", vocabulary=6))
    prompt, draws = torch.tensor([[1, 2]]).expand(20_000, 2), torch.rand(20_000, 1)
    tokens, *_ = pipeline(prompt, draws, *asked(temperature=2.0))
    y, *_ = pipeline.network(torch.tensor([[1, 2]]))
    expected = torch.softmax(y[0, -1] / 2.0, -1)
    found = torch.bincount(tokens[:, 0], minlength=6) / 20_000
    assert (found - expected).abs().max() < 4 * 0.5 / np.sqrt(20_000)


@torch.no_grad()
def test_the_margin_tells_by_how_much_a_token_was_picked():
    pipeline = Generate(text_network("gru"))
    tokens = torch.randint(0, 30, (1, 6))
    y, *_ = pipeline.network(tokens)
    p = torch.softmax(y[0, -1].double(), -1)
    edge = float(p.cumsum(0)[12])
    assert pipeline.margin(tokens, torch.tensor(edge + 3e-4), *asked()) == pytest.approx(3e-4, rel=1e-2)
    for temperature in (0.5, 0.1):  # the log-odds of each sum, a logit's change counting twice
        q = torch.softmax(y[0, -1].double() / temperature, -1).cumsum(0)[:-1]
        odds = 0.5 * temperature * (torch.log(q / (1 - q)) - np.log(0.3 / 0.7)).abs()
        expected = float(torch.minimum((q - 0.3).abs(), odds).min())
        found = pipeline.margin(tokens, torch.tensor(0.3), *asked(temperature=temperature))
        assert found == pytest.approx(expected, rel=1e-3)
    # At a temperature of 0 it is half the distance of the two likeliest logits.
    first, second = y[0, -1].topk(2).values
    found = pipeline.margin(tokens, torch.tensor(0.3), *asked(temperature=0.0))
    assert found == pytest.approx(float(first - second) / 2, rel=1e-3)
    ordered = p.sort(descending=True).values
    assert pipeline.margin(tokens, torch.tensor(0.5), *asked(top_k=3)) <= float((ordered[2] / ordered[3]).log()) / 1.999
    near = float(ordered.cumsum(0)[4]) + 1e-5
    assert pipeline.margin(tokens, torch.tensor(0.5), *asked(top_p=near)) <= 1.1e-5


# --- what is refused


@pytest.mark.parametrize("change", [{"bidirectional": True}, {"outputs": 3}, {"pooling": "last"}, {"time_major": True}])
def test_a_network_that_cannot_write_is_refused(change):
    fields = {"cell": "gru", "features": 4, "hidden_size": 4, "vocabulary": 9, "outputs": 9} | change
    with pytest.raises(UnsupportedError, match="one-directional net from a vocabulary to itself"):
        Generate(Network(NetworkSpec(**fields)))


@pytest.mark.parametrize(
    "change", [{"vocabulary": None}, {"outputs": None}, {"pooling": "every"}, {"time_major": True}]
)
def test_a_network_that_cannot_classify_is_refused(change):
    fields = {"cell": "gru", "features": 4, "hidden_size": 4, "vocabulary": 9, "outputs": 2, "pooling": "mean"}
    with pytest.raises(UnsupportedError, match="a vocabulary and a head that pools"):
        Classify(Network(NetworkSpec(**fields | change)))


@pytest.mark.parametrize(
    ("task", "change", "reason"),
    [
        ("classify", {"labels": ["one"]}, "expected 3 names"),
        ("classify", {"labels": ["a", "b", 3]}, "expected 3 names"),
        (
            "classify",
            {"vocabulary": characters(20).to_dict()},
            "vocabulary has 20 tokens, but the network's embedding 30",
        ),
        (
            "generate",
            {"vocabulary": characters(20).to_dict()},
            "vocabulary has 20 tokens, but the network's embedding 30",
        ),
        ("generate", {"vocabulary": {"unit": "character"}}, "lacks or garbles"),
    ],
)
def test_preprocessing_that_does_not_fit_its_network_is_refused(task, change, reason):
    network = text_network(outputs=3, pooling="mean") if task == "classify" else text_network()
    preprocessing = {"vocabulary": characters().to_dict(), "labels": ["a", "b", "c"]} | change
    with pytest.raises(SpecError, match=reason):
        make_pipeline(task, network, preprocessing)
