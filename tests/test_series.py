"""The Forecast tab's series and its drawing: starts, truth, dates, ticks."""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest

from seqexport.errors import FileError, InputError
from seqexport.runtimes import onnx_metadata
from tabs import chart, racing, series
from tabs.languages import Words
from tabs.series import SHIPPED, Series
from training import data, publish

CELLS = ("rnn", "lstm", "gru")
pytestmark = pytest.mark.usefixtures("demand")
PATHS = np.stack([np.linspace(10, 20, 6)] * 3 + [np.full(6, 12.0)]).astype(np.float32)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_series_is_what_its_nets_were_not_trained_on(name: str) -> None:
    times, values = series.shipped(name)
    about = SHIPPED[name]
    assert len(times) == len(values)
    assert np.isfinite(values).all()
    assert len(np.unique(np.diff(times))) == 1
    for cell in CELLS:
        metadata = onnx_metadata(racing.EXPORTED / f"{name}-{cell}" / "checkpoint.forecast.onnx")
        settings = metadata["preprocessing"]
        assert about.tested == metadata["data"]["split"]["test"]
        assert about.step == settings["step"]
        assert len(values) - about.tested >= max(settings["context"], 2 * settings["season"])
        assert about.horizon % metadata["metrics"]["horizon"] == 0


@pytest.mark.parametrize("name", SHIPPED)
def test_starts_lie_in_the_test_part_and_the_truth_follows(name: str) -> None:
    times, values = series.shipped(name)
    starts = series.starts(name)
    assert starts[0] >= len(values) - SHIPPED[name].tested
    assert starts[0] < len(values) - SHIPPED[name].tested + SHIPPED[name].stride
    assert starts[-1] <= len(values) - 1
    assert set(np.diff(starts)) == {SHIPPED[name].stride}
    number = series.opening(name)
    assert number + SHIPPED[name].horizon / SHIPPED[name].stride <= len(starts)  # all of the truth is known
    cut = series.cut(name, number, SHIPPED[name].horizon, 144, "unit")
    begin = starts[number]
    np.testing.assert_array_equal(cut.history, values[begin - 144 : begin])
    np.testing.assert_array_equal(cut.truth, values[begin : begin + SHIPPED[name].horizon])
    assert cut.axis(144, 145)[0] == times[begin] == np.datetime64(SHIPPED[name].opening)
    assert len(series.cut(name, len(starts) - 1, 600, 144, "unit").truth) < 600


def test_times_are_said_in_both_languages() -> None:
    chinese = Words("zh")
    assert series.start_said("sunspots", 488) == "Jan 1998"
    assert series.start_said("sunspots", 488, chinese) == "1998年1月"
    assert series.start_said("electricity", 0) == "27 May 2014, 00:00"
    assert series.start_said("electricity", 0, chinese) == "2014年5月27日, 00:00"
    assert series.said(np.datetime64("2024-02-29"), "day") == "29 Feb 2024"


@pytest.mark.parametrize("unit", ["Y", "M", "D", "h", "m", "s"])
@pytest.mark.parametrize("length", [2, 7, 48, 600, 2_000])
def test_ticks_are_few_and_within(unit: str, length: int) -> None:
    axis = np.datetime64("1749-01-01T00:00:00").astype(f"datetime64[{unit}]") + np.arange(length)
    ticks = series.ticks(axis)
    assert len(ticks) <= 5
    assert length < 7 or len(ticks) >= 1 or unit in "ms"
    assert all(0 <= share <= 1 for share, _ in ticks)
    assert all(one[1] != other[1] for one, other in itertools.pairwise(ticks))


def test_counted_ticks_are_whole() -> None:
    assert [text for _, text in series.ticks(np.arange(1, 4))] == ["1", "2", "3"]
    assert [text for _, text in series.ticks(np.arange(1, 5001))] == ["1,000", "2,000", "3,000", "4,000", "5,000"]
    assert series.ticks(np.arange(1, 2)) == [(0.5, "1")]


@pytest.mark.parametrize(("step", "nice"), [(0.3, 0.5), (1, 1), (1.1, 2), (31, 50), (5, 5), (7e8, 1e9), (0, 1e-12)])
def test_nice_steps(step: float, nice: float) -> None:
    assert series.nice(step) == pytest.approx(nice)


@pytest.mark.parametrize("text", ["1, 2.5, -3e1", "1 2.5\t-30", "1\n2.5\n-30\n", " 1;2.5 ,, -30 "])
def test_numbers_may_be_parted_by_anything(text: str) -> None:
    values = series.parse_numbers(text)
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, [1, 2.5, -30])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "has the length 0; expected 2 to 20,000 values"),
        ("7", "has the length 1; expected 2 to 20,000 values"),
        ("1 " * 20_001, "has the length 20,001; expected 2 to 20,000 values"),
        ("1, two, 3", "Value 2 of the series is “two”"),
        ("1, nan", "Value 2 of the series is “nan”"),
        ("inf 1", "Value 1 of the series is “inf”"),
        ("1 2 3e9", "Value 3 of the series is “3e9”; expected a number of at most 1,000,000,000"),
    ],
)
def test_what_is_no_series_of_numbers_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(InputError) as error:
        series.parse_numbers(text)
    assert sentence in str(error.value)


def test_the_most_numbers_are_taken() -> None:
    assert len(series.parse_numbers("1 " * series.MAX_VALUES)) == series.MAX_VALUES


def test_a_series_that_is_not_there_is_not_offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert series.offered() == list(SHIPPED)
    monkeypatch.setattr(racing, "EXPORTED", tmp_path)
    (tmp_path / "uk-demand.csv").write_text("half-hour,uk-demand\n")
    assert series.offered() == ["uk-demand"]
    (tmp_path / "uk-demand.csv").unlink()
    with pytest.raises(FileError, match="run python -m training.publish"):
        series.offered()


def shown(history: list[float], truth: list[float] = [], **more: object) -> Series:  # noqa: B006
    return Series(np.array(history, np.float32), np.array(truth, np.float32), **more)


def test_a_frame_holds_all_columns_and_zero_where_it_is_near() -> None:
    one = chart.frame(shown([5, 15], [30]), [PATHS])
    assert one.low == 0
    assert one.high > 30
    assert 3 <= len(one.ticks) <= 8
    far = chart.frame(shown([1000, 1010]), [PATHS + 995])
    assert 950 < far.low < 1000
    both = chart.frame(shown([5, 15], [30]), [PATHS, PATHS + 100])
    assert both.high > 120
    flat = chart.frame(shown([0, 0]), [np.zeros((3, 4), np.float32)])
    assert flat.low <= 0 < flat.high
    assert len(flat.ticks) >= 3


def test_the_drawing_has_every_line_and_is_told_in_words() -> None:
    drawn_of = shown([1, 2, 3, 4] * 3, [5, 6], unit="<kW>")
    framed = chart.frame(drawn_of, [PATHS])
    drawing = chart.draw(drawn_of, PATHS, 4, framed, 'a "chart" <b>')
    assert 'role="img" aria-label="a &quot;chart&quot; &lt;b&gt;"' in drawing
    assert "&lt;kW&gt;" in drawing
    points = {name: count.split() for name, count in re.findall(r'class="(\w+)" points="([^"]*)"', drawing)}
    assert {name: len(count) for name, count in points.items()} == {
        "outer": 12, "inner": 12, "observed": 14, "again": 6, "central": 6,
    }  # fmt: skip
    again = [float(point.split(",")[1]) for point in points["again"]]
    np.testing.assert_allclose(again, framed.down(np.array([1, 2, 3, 4, 1, 2])), atol=0.06)
    assert "观测值" in chart.draw(drawn_of, PATHS, 4, framed, "", Words("zh"))
    assert "nan" not in drawing


def test_a_series_is_given_on_only_with_a_licence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    about = {"start": "2000-01", "season": 2, "step": "month", "unit": "n", "source": "", "sha256": "",
             "transform": "none", "horizon": 2}  # fmt: skip
    licences = {"sunspots": "public domain", "electricity": "CC BY 4.0", "uk-demand": "none stated"}
    made = {name: data.Series(name, np.arange(2000.0) / 3, licence=found, **about) for name, found in licences.items()}
    monkeypatch.setattr(data, "load", made.get)
    for model in publish.MODELS:
        if model.data in made:
            (tmp_path / model.name).symlink_to(publish.ROOT / "exported" / model.name)
    publish.write_shown_series(tmp_path)
    assert sorted(path.name for path in tmp_path.glob("*.csv")) == ["electricity.csv", "sunspots.csv"]
    publish.write_shown_series(tmp_path, here_only=True)
    rows = {path.stem: path.read_text().split() for path in tmp_path.glob("*.csv")}
    assert rows["sunspots"][:2] == ["month,sunspots", "2000-01,0"]
    assert len(rows["sunspots"]) == 2001
    assert 1 + 400 < len(rows["uk-demand"]) < 2001


def test_what_is_not_given_on_is_not_kept_with_the_project() -> None:
    ignored = (publish.ROOT / ".gitignore").read_text().split()
    for name in SHIPPED:
        licence = onnx_metadata(racing.EXPORTED / f"{name}-gru" / "checkpoint.onnx")["data"]["licence"]
        assert (licence in publish.GIVEN_ON) is (f"/exported/{name}.csv" not in ignored), name
