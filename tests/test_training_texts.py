"""The trainings on text: cleaning and parts, baselines, small trainings of both kinds, and what is refused."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from seqexport.archives import read_content
from seqexport.checkpoint import read_checkpoint
from seqexport.errors import InputError, SeqExportError, SpecError
from seqexport.networks import Network
from seqexport.pipelines import Classify
from seqexport.specs import NetworkSpec
from seqexport.text import Vocabulary
from training import chargen, data, ngrams, sentiment
from training.checklist import CHECKS, checked
from training.command import Options
from training.data import BLOCK, Review

OPINIONS = {"module": sentiment, "data": "opinions"}
SENTENCES = {"module": chargen, "data": "sentences"}
BOTH = pytest.mark.parametrize("kind", [OPINIONS, SENTENCES], ids=["sentiment", "chargen"])


def trained(kind: dict, path: Path, **options: object) -> dict:
    options = {"cell": "lstm", "preset": "tutorial", "steps": 2, "threads": 1, **options}
    return kind["module"].train(Options(data=kind["data"], out=path, **options))


def same_weights(first: Path, second: Path) -> bool:
    one, other = (read_checkpoint(path).weights for path in (first, second))
    return all(torch.equal(one[name], other[name]) for name in one)


# --- data


def test_no_text_is_in_two_parts():
    parts = data.opinions().parts
    texts = [{review.text for review in part} for part in parts.values()]
    assert len(set.union(*texts)) == sum(map(len, texts)) == sum(map(len, parts.values()))


def test_blocks_of_one_source_and_label_stay_together():
    reviews = [
        Review(f"{source} {label} {n}", label, source) for source in "ab" for label in (0, 1) for n in range(999)
    ]
    parts = data.in_blocks(reviews)
    assert sorted(review.text for part in parts.values() for review in part) == sorted(r.text for r in reviews)
    part_of = {review.text: part for part, texts in parts.items() for review in texts}
    for source in "ab":
        for label in (0, 1):
            found = [part_of[f"{source} {label} {n}"] for n in range(999)]
            blocks = [set(found[start : start + BLOCK]) for start in range(0, 999, BLOCK)]
            assert all(len(block) == 1 for block in blocks)
            names = [name for block in blocks for name in block]
            assert names[:10] == ["train"] * 4 + ["validation"] + ["train"] * 4 + ["test"] == names[10:]


def test_repeats_are_dropped_and_disputed_texts_altogether():
    texts = [("Good film", 1), ("good, film!", 1), ("so so", 0), ("So so.", 1), ("...", 0), ("bad film", 0)]
    kept = data.without_repeats(Review(text, label, "a") for text, label in texts)
    assert [review.text for review in kept] == ["Good film", "bad film"]


def test_english_reviews_are_cleaned(monkeypatch):
    rows = 'text,label,source\n"It was\n good.<br /><br />Really, good",1,imdb\nNot for me,0,rotten_tomatoes\n'
    monkeypatch.setattr(data, "fetch", lambda file: rows.encode())
    reviews = data.reviews_en()
    assert reviews.parts["train"] == [
        Review("It was good. Really, good", 1, "IMDB"),
        Review("Not for me", 0, "Rotten Tomatoes"),
    ]
    assert reviews.unit == "word"


def test_chinese_opinions_are_cleaned(monkeypatch):
    contents = {
        "neg": "我不喜欢这个房间\n短\n宾馆反馈 2001年1月1日 ： 谢谢您的光临\n缺点：\n",
        "pos": "补充点评 2001年2月3日 ： 窗外的风景很美&amp;静\n我不喜欢这个房间\n我很喜欢这房间！\n我很喜欢这房间\n",
    }
    monkeypatch.setattr(data, "fetch", lambda file: contents[file.name[:3]].encode())
    reviews = data.reviews_zh()
    assert [(review.text, review.label) for review in reviews.parts["train"]] == [
        ("窗外的风景很美&静", 1),
        ("我很喜欢这房间！", 1),
    ]


def test_the_plays_lose_their_marks_and_nothing_else(monkeypatch):
    page = "# A PLAY\n\n## ACT I\n\n\n\n_Enter \\[Two]_\n\n**FIRST**  \nThe rain, it rains - \nand * rains.\n"
    monkeypatch.setattr(data, "fetch", lambda file: page.encode())
    assert data.shakespeare().text == "A PLAY\n\nACT I\n\nEnter [Two]\n\nFIRST\nThe rain, it rains -\nand  rains.\n"


def test_the_novel_loses_a_watermark_tabs_and_empty_lines(monkeypatch):
    chapters = ["第一 早上\u3000晚上\n\n  \n\t天气很好www.example.com ，他来了。\n", "第二\n\t我们走吧。"]
    monkeypatch.setattr(data, "fetch", lambda file: json.dumps(chapters).encode())
    assert data.sanguo().text == "第一 早上 晚上\n天气很好，他来了。\n第二\n我们走吧。\n"


def test_the_parts_of_a_text_are_in_order_and_cover_it():
    text = data.sentences()
    assert "".join(text.parts.values()) == text.text
    assert [len(part) for part in text.parts.values()] == [16_000, 2_000, 2_000]


@pytest.mark.parametrize(("load", "names"), [(data.load_reviews, data.REVIEWS), (data.load_text, data.TEXTS)])
def test_an_unknown_data_set_is_refused(load, names):
    with pytest.raises(SpecError, match=f"There is no data set 'sine'; expected {' or '.join(names)}"):
        load("sine")


def test_generated_data_are_the_same_every_time():
    assert data.sentences().sha256 == data.sentences().sha256
    assert data.opinions().parts == data.opinions().parts


# --- baselines


def test_n_grams_equal_a_hand_computation():
    tokens = np.array([1, 2, 1, 2, 1, 1])  # of 3 kinds; after 1: 2, 2, 1; after 2: 1, 1
    counts = ngrams.NGrams(tokens, size=3, longest=2)
    single = (2 + 1 * 2 / 3) / (6 + 1 * 2)  # P(2): seen 2 of 6 times, 2 kinds seen, else 1/3 each
    pair = (2 + 1 * 2 * single) / (3 + 1 * 2)  # P(2 | 1)
    found = counts.probabilities(np.array([1, 2]), order=2, trust=1.0)
    assert found[1] == pytest.approx(pair)
    assert counts.probabilities(np.array([1, 2]), order=1, trust=1.0)[1] == pytest.approx(single)
    assert counts.bits(np.array([1, 2]), 2, 1.0) == pytest.approx(-np.log2(found).mean())


@pytest.mark.parametrize("trust", [0.5, 1.0, 8.0])
@pytest.mark.parametrize("order", [1, 2, 4])
def test_probabilities_of_n_grams_sum_to_one(order, trust):
    rng = np.random.default_rng(0)
    counts = ngrams.NGrams(rng.integers(0, 4, 500), size=5, longest=4)  # the token 4 is never seen
    for _ in range(20):
        context = rng.integers(0, 5, 3)
        following = [counts.probabilities(np.append(context, token), order, trust)[-1] for token in range(5)]
        assert sum(following) == pytest.approx(1)
        assert min(following) > 0


def test_n_grams_are_tuned_on_the_validation_part_and_stay_within_64_bits():
    tokens = np.tile([0, 1, 2], 200)
    _, setting = ngrams.tuned(tokens, tokens, size=3, longest=4)
    assert setting["order"] >= 2 and setting["validation"] < 0.2
    counts, _ = ngrams.tuned(tokens, tokens, size=10**6, longest=9)
    assert len(counts.grams) == 3
    with pytest.raises(InputError, match="do not fit into 64 bits"):
        ngrams.NGrams(tokens, size=10**6, longest=4)


def test_the_regression_and_the_majority_are_scored_by_source():
    found = sentiment.baselines(data.opinions())["baselines"]
    assert found["TF-IDF + logistic regression"]["opinions"] > 0.95
    assert found["majority"] == {"opinions": 0.5}


def test_scores_are_by_source_with_their_interval():
    texts = [Review("a", 1, "one")] * 4 + [Review("b", 0, "two")]
    positive = np.array([0.7, 0.7, 0.7, 0.1, 0.0], np.float32)
    found = sentiment.scores(texts, np.stack([1 - positive, positive], 1))
    # Three of four right at 0.7: the bin says 0.7 and holds 1; the fourth says 0.9 of what is wrong.
    error = pytest.approx(0.75 * 0.3 + 0.25 * 0.9, abs=1e-6)
    interval = pytest.approx(1.96 * math.sqrt(0.1875 / 4))
    assert found["one"] == {"accuracy": 0.75, "texts": 4, "interval": interval, "calibration_error": error}
    assert found["two"] == {"accuracy": 1.0, "texts": 1, "interval": 0.0, "calibration_error": 0.0}


def test_calibration_changes_probabilities_and_no_label():
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    classify = Classify(Network(NetworkSpec("gru", 4, 8, vocabulary=9, outputs=2, pooling="last"))).eval()
    rows = [rng.integers(1, 9, 1 + n % 7).tolist() for n in range(400)]
    with torch.no_grad():
        classify.network.head.weight *= 30  # far too sure
        classify.network.head.bias *= 30
    before = sentiment.answers(classify, rows)
    shares = sentiment.probabilities(before / 20)[:, 1]
    labels = (rng.random(400) < shares).astype(np.int64)  # what a twentieth of the answers says is the truth
    temperature = sentiment.calibrate(classify.network, before, labels)
    after = sentiment.answers(classify, rows)
    assert temperature > 3
    assert np.allclose(after * temperature, before, rtol=1e-4, atol=1e-4)
    assert (after.argmax(1) == before.argmax(1)).all()


def test_the_check_list_counts_by_kind_and_tells_what_was_wrong():
    for language, checks in CHECKS.items():
        assert len({check.text for check in checks}) == len(checks) > 20
        assert {check.label for check in checks} == {0, 1}
        always = checked(language, ("negative", "positive"), lambda texts: np.array([[0.2, 0.8]] * len(texts)))
        positive = [check for check in checks if check.label]
        assert sum(right for right, _ in always["kinds"].values()) == len(positive)
        assert sum(count for _, count in always["kinds"].values()) == len(checks)
        assert [entry[0] for entry in always["wrong"]] == [check.text for check in checks if not check.label]
        assert all(entry[1:] == ["negative", 0.8] for entry in always["wrong"])
    assert checked("en", ("sport", "trade"), None) is None
    assert checked(None, ("negative", "positive"), None) is None


# --- training


def test_every_text_is_in_one_batch_of_an_epoch():
    batches = sentiment.Batches(list(range(1, 101)), 8, seed=0)
    assert len(batches) == 13
    epoch = [batches[step] for step in range(13)]
    assert sorted(np.concatenate(epoch)) == list(range(100))
    assert all(np.ptp(batch) < 8 for batch in epoch)  # neighbours in length


def test_a_crop_is_a_window_of_the_text():
    rng = np.random.default_rng(0)
    crops = {tuple(sentiment.crop([1, 2, 3, 4], 3, rng)) for _ in range(50)}
    assert crops == {(1, 2, 3), (2, 3, 4)}
    assert sentiment.crop([1, 2], 3, rng) == [1, 2]


def test_predictions_do_not_depend_on_the_batch():
    torch.manual_seed(0)
    classify = Classify(Network(NetworkSpec("gru", 4, 8, vocabulary=9, outputs=2, pooling="last"), 0.5))
    torch.nn.init.zeros_(classify.network.head.bias)
    classify.eval()
    rows = [np.random.default_rng(n).integers(1, 9, 1 + n % 7).tolist() for n in range(30)]
    alone = np.concatenate([sentiment.answers(classify, [row]) for row in rows])
    assert np.allclose(sentiment.answers(classify, rows, batch=7), alone, atol=1e-6)
    assert 0 < alone.argmax(1).sum() < len(alone)


def test_bits_per_character_equal_a_direct_computation():
    torch.manual_seed(0)
    network = Network(NetworkSpec("lstm", 4, 8, vocabulary=5, outputs=5), 0.5)
    tokens = np.random.default_rng(0).integers(0, 5, 200)
    with torch.no_grad():
        nats = [
            torch.nn.functional.cross_entropy(network.eval()(row[None, :-1])[0][0], row[1:], reduction="none")
            for row in torch.from_numpy(tokens).reshape(2, 100)
        ]
    expected = torch.cat(nats).mean().item() / math.log(2)
    assert chargen.bits_per_character(network, tokens, count=2, window=7) == pytest.approx(expected, rel=1e-5)


def test_a_tied_network_has_one_matrix_and_is_written_once(tmp_path, monkeypatch):
    plan = chargen.Recipe(embedding=16, hidden_size=16, layers=1, tied=True, window=32)
    monkeypatch.setattr(chargen, "recipe", lambda data, preset: plan)
    metrics = trained(SENTENCES, tmp_path / "net.pt")
    weights = read_checkpoint(tmp_path / "net.pt").weights
    assert torch.equal(weights["embedding.weight"], weights["head.weight"])
    kept = read_content(tmp_path / "net.pt").tree["state_dict"]
    assert kept["embedding.weight"].data_ptr() == kept["head.weight"].data_ptr()
    assert metrics["parameters"] == sum(weight.numel() for weight in weights.values())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("sharper", [3.0, 0.5])
def test_a_generator_is_calibrated_and_otherwise_the_same(tied, sharper):
    torch.manual_seed(1)
    network = Network(NetworkSpec("gru", 8, 8, vocabulary=9, outputs=9, pooling="every")).eval().requires_grad_(False)
    if tied:
        chargen.tie(network)
    read = torch.from_numpy(np.random.default_rng(0).integers(0, 9, (16, 101)))
    # What the net itself would write: its best temperature is 1, until its head is made sharper or blunter.
    for step in range(100):
        y, *_ = network(read[:, : step + 1])
        read[:, step + 1] = torch.distributions.Categorical(logits=y[:, -1]).sample()
    tokens = read.flatten().numpy()
    assert chargen.bits_at(network, tokens, np.array([1.0, 2.0])).argmin() == 0
    spoilt = copy.deepcopy(network)
    for parameter in spoilt.head.parameters():
        parameter.mul_(sharper)
    if tied:
        for name, weight in spoilt.rnn.named_parameters():
            weight.div_(sharper if name.startswith("weight_ih") else 1)
    (before, state), bits = spoilt(read), chargen.bits_per_character(spoilt, tokens)
    temperature = chargen.calibrate(spoilt, tokens)
    after, state_after = spoilt(read)
    assert temperature == (1.5 if sharper == 3 else 0.8)  # the nearest of those that are tried
    torch.testing.assert_close(after * temperature, before)
    torch.testing.assert_close(state_after, state)
    assert chargen.bits_per_character(spoilt, tokens) < bits
    assert (spoilt.head.weight is spoilt.embedding.weight) is tied


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_rare_characters_stand_in_for_the_unknown_one(tmp_path, monkeypatch, share):
    rare = "".join(map(chr, range(0x4E00, 0x4E00 + 300)))
    train = "".join(f"abba{sign}ab" for sign in rare) + "ab" * 1500
    monkeypatch.setattr(data.Text, "parts", {"train": train, "validation": "ab" * 500, "test": "ba" * 500})
    plan = chargen.Recipe(8, 8, 1, window=32, batch=8, unknown=0.0, rare=share)
    monkeypatch.setattr(chargen, "recipe", lambda data, preset: plan)
    forward, windows = chargen.NextCharacter.forward, []

    def noted(self, read, following, *state):
        windows.append(torch.cat([read, following[:, -1:]], dim=1))
        assert torch.equal(read[:, 1:], following[:, :-1])
        return forward(self, read, following, *state)

    monkeypatch.setattr(chargen.NextCharacter, "forward", noted)
    trained(SENTENCES, tmp_path / "net.pt", steps=12)
    tokens = torch.cat([window.flatten() for window in windows])
    replaced, left = (tokens == 0).sum().item(), (tokens > 2).sum().item()  # a and b are 1 and 2
    assert replaced + left > 100
    assert abs(replaced / (replaced + left) - share) < 0.1 and (0 < share < 1 or replaced * left == 0)


def test_a_text_that_is_too_short_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(data.Text, "parts", {"train": "ab" * 100, "validation": "ab", "test": "ab"})
    with pytest.raises(InputError, match="too short for 32 streams of 128 characters"):
        trained(SENTENCES, tmp_path / "net.pt")
    assert list(tmp_path.iterdir()) == []


def test_a_classifier_and_its_documented_metrics(tmp_path):
    metrics = trained(OPINIONS, tmp_path / "net.pt")
    assert json.loads(json.dumps(metrics)) == metrics
    assert metrics["metric"] == "accuracy"
    assert set(metrics["test"]["opinions"]) == {"accuracy", "texts", "interval", "calibration_error"}
    assert metrics["checklist"] is None  # the generated sentences are of no language that has one
    assert metrics["pretraining"] == {} and 0.1 < metrics["temperature"] < 10
    assert metrics["test"]["opinions"]["texts"] == len(data.opinions().parts["test"])
    assert all(set(row) == {"opinions"} for row in metrics["baselines"].values())
    assert set(metrics["validation"]) == {"accuracy"}
    assert {"seconds", "steps", "seed", "parameters"} <= set(metrics)
    checkpoint = read_checkpoint(tmp_path / "net.pt")
    assert checkpoint.metrics == metrics and checkpoint.task == "classify"
    assert (checkpoint.spec.features, checkpoint.spec.hidden_size, checkpoint.spec.outputs) == (100, 128, 2)
    assert set(checkpoint.preprocessing) == {"vocabulary", "labels", "window"}
    assert checkpoint.preprocessing["labels"] == ["negative", "positive"]
    assert set(checkpoint.data) == {"name", "source", "licence", "texts", "split", "sha256", "language", "hub"}
    assert sum(checkpoint.data["split"].values()) == checkpoint.data["texts"]
    vocabulary = Vocabulary.from_dict(checkpoint.preprocessing["vocabulary"])
    rows = [vocabulary.encode(review.text) for review in data.opinions().parts["test"]]
    found = sentiment.probabilities(sentiment.answers(checkpoint.pipeline("classify"), rows))
    again = sentiment.scores(data.opinions().parts["test"], found)["opinions"]
    assert again == pytest.approx(metrics["test"]["opinions"], abs=1e-6)


def test_a_generator_and_its_documented_metrics(tmp_path):
    metrics = trained(SENTENCES, tmp_path / "net.pt")
    assert json.loads(json.dumps(metrics)) == metrics
    assert metrics["metric"] == "bits per character"
    assert set(metrics["test"]) == {"bits", "characters", "unknown"}
    assert metrics["test"]["characters"] == 2000 and metrics["test"]["unknown"] == 0
    assert all(0 < bits < 5 for bits in metrics["baselines"].values())
    assert set(metrics["validation"]) == {"bits"}
    assert {"seconds", "steps", "seed", "parameters"} <= set(metrics)
    checkpoint = read_checkpoint(tmp_path / "net.pt")
    assert checkpoint.metrics == metrics and checkpoint.task == "generate"
    assert (checkpoint.spec.hidden_size, checkpoint.spec.layers, checkpoint.spec.pooling) == (128, 2, "every")
    assert set(checkpoint.preprocessing) == {"vocabulary", "window"}
    assert set(checkpoint.data) == {"name", "source", "licence", "characters", "split", "sha256", "language"}
    assert sum(checkpoint.data["split"].values()) == checkpoint.data["characters"]
    vocabulary = Vocabulary.from_dict(checkpoint.preprocessing["vocabulary"])
    assert checkpoint.spec.vocabulary == checkpoint.spec.outputs == len(vocabulary)
    tokens = np.array(vocabulary.encode(data.sentences().parts["test"]))
    again = chargen.bits_per_character(checkpoint.network(), tokens)
    assert again == pytest.approx(metrics["test"]["bits"], rel=1e-5)


@BOTH
def test_the_same_seed_gives_the_same_weights(kind, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        trained(kind, tmp_path / name, seed=seed)
    assert same_weights(tmp_path / "a", tmp_path / "b")
    assert not same_weights(tmp_path / "a", tmp_path / "c")


def test_training_does_not_see_the_test_part(tmp_path, monkeypatch):
    trained(OPINIONS, tmp_path / "a")
    trained(SENTENCES, tmp_path / "b")
    reviews, text = data.opinions(), data.sentences()
    reviews.parts["test"][:] = [Review("zebra", 1, "opinions")]
    monkeypatch.setitem(data.REVIEWS, "opinions", lambda: reviews)
    monkeypatch.setattr(data.Text, "parts", text.parts | {"test": "zebra " * 99})
    trained(OPINIONS, tmp_path / "c")
    trained(SENTENCES, tmp_path / "d")
    assert same_weights(tmp_path / "a", tmp_path / "c")
    assert same_weights(tmp_path / "b", tmp_path / "d")


def test_some_steps_learn_something(tmp_path, monkeypatch):
    small = sentiment.Recipe(embedding=16, hidden_size=16, pooling="max", learning_rate=1e-2)
    monkeypatch.setattr(sentiment, "recipe", lambda data, preset: small)
    assert trained(OPINIONS, tmp_path / "a", steps=150)["test"]["opinions"]["accuracy"] > 0.9
    short = chargen.Recipe(embedding=16, hidden_size=32, layers=1, window=32, batch=16, learning_rate=1e-2)
    monkeypatch.setattr(chargen, "recipe", lambda data, preset: short)
    metrics = trained(SENTENCES, tmp_path / "b", steps=100)
    assert metrics["test"]["bits"] < metrics["baselines"]["frequencies of the characters"] / 2


@BOTH
def test_the_cap_on_minutes_stops_the_training(kind, tmp_path):
    assert trained(kind, tmp_path / "net.pt", steps=None, minutes=1e-6)["steps"] == 1


@BOTH
def test_a_loss_that_is_not_finite_stops_and_leaves_an_older_file(kind, tmp_path, monkeypatch):
    out = tmp_path / "net.pt"
    out.write_bytes(b"older")
    monkeypatch.setattr(torch.nn.functional, "cross_entropy", lambda y, *_: y.sum() * math.nan)
    with pytest.raises(SeqExportError, match=r"The loss is nan at step 1: try another seed"):
        trained(kind, out)
    assert out.read_bytes() == b"older"


# --- the command line


@BOTH
def test_the_command_writes_a_checkpoint_and_prints_a_table(kind, tmp_path, capsys):
    out = tmp_path / "net.pt"
    command = f"--cell gru --data {kind['data']} --out {out} --preset tutorial --steps 2 --threads 1"
    assert kind["module"].main(command.split()) == 0
    printed = capsys.readouterr()
    assert "GRU (this model)" in printed.out and f"Wrote {out}" in printed.out
    assert all(name in printed.out for name in read_checkpoint(out).metrics["baselines"])
    assert "100%" in printed.err


@BOTH
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("--steps 0", "The number of steps is 0"),
        ("--out missing/net.pt", "The folder missing does not exist"),
        ("--data sine", "invalid choice: 'sine'"),
        ("--cell transformer", "invalid choice: 'transformer'"),
    ],
)
def test_bad_options_are_refused_with_one_sentence(kind, options, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    try:
        code = kind["module"].main(["--cell", "gru", "--data", kind["data"], "--out", "net.pt", *options.split()])
    except SystemExit as exit:
        code = exit.code
    printed = capsys.readouterr()
    assert code == 2
    assert sentence in printed.err and printed.err.count("\n") == 1 and not printed.out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_parts_of_the_real_texts():
    counts = {
        name: {part: len(texts) for part, texts in data.load_reviews(name).parts.items()} for name in data.REVIEWS
    }
    assert counts["reviews-en"] == {"train": 26_809, "validation": 3_400, "test": 3_220}
    assert counts["reviews-zh"] == {"train": 13_584, "validation": 1_700, "test": 1_650}
    assert len(data.shakespeare().text) == 4_955_553
    assert len(data.sanguo().text) == 596_194
    assert not set("\t\u3000") & set(data.sanguo().text) and "www" not in data.sanguo().text
    assert not set("*_#\\") & set(data.shakespeare().text)
