import gc
import sys
import warnings

import numpy as np
import pytest
import torch

from seqexport import write_checkpoint
from seqexport.networks import Network
from seqexport.pipelines import Scaling
from seqexport.specs import CELLS, NetworkSpec
from seqexport.text import UNKNOWN, Vocabulary

torch.set_num_threads(1)  # nets as small as these only wait for a second thread


@pytest.fixture(scope="module", autouse=True)
def collect_loops():
    """Gradio leaves event loops and their sockets to the garbage collector, whose warnings would be an error of
    whatever test runs then: they are collected at the end of a module."""
    yield
    if "gradio" in sys.modules:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()


def randomised(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Random, asymmetric weights, biases well away from zero: what is swapped, dropped or transposed must show."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            scale = 0.6 / np.sqrt(parameter.shape[-1]) if parameter.ndim > 1 else 0.4
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale + 0.05)
    return module.eval()


def forecaster(cell: str = "gru", layers: int = 2, hidden_size: int = 16, seed: int = 0, **options) -> Network:
    features = 1 + len(options.get("lags", ()))
    return randomised(Network(NetworkSpec(cell, features, hidden_size, layers=layers, outputs=2, **options)), seed)


PREPROCESSING = {
    "scaling": Scaling("root", 6.0, 3.0).to_dict(),
    "context": 48,
    "season": 12,
    "unit": "n",
    "step": "month",
}


def save_forecaster(path, cell="gru", seed=0, preprocessing=PREPROCESSING, **options):
    network = forecaster(cell, seed=seed, **options)
    about = {"preprocessing": preprocessing, "metrics": {"mae": 1.5}, "data": {"name": "test"}}
    write_checkpoint(path, network, task="forecast", **about)
    return path


@pytest.fixture
def baselines_once(monkeypatch):
    """The baselines of a forecast, computed once for the same series and not at every training."""
    from training import forecasting

    def once(series):
        key = series.values.tobytes()
        if key not in _BASELINES:
            _BASELINES[key] = baselines(series)
        return _BASELINES[key]

    baselines = forecasting.baselines
    monkeypatch.setattr(forecasting, "baselines", once)


_BASELINES: dict[bytes, dict] = {}


def text_network(
    cell: str = "lstm", vocabulary: int = 30, outputs: int | None = None, seed: int = 0, **options
) -> Network:
    """[embedding] → recurrence → head over a vocabulary: a generator, unless `outputs` says how many classes."""
    options = {"features": 12, "hidden_size": 16, "layers": 2} | options
    spec = NetworkSpec(cell, vocabulary=vocabulary, outputs=outputs or vocabulary, **options)
    return randomised(Network(spec), seed)


def characters(size: int = 30) -> Vocabulary:
    signs = "abcdefghijklmnopqrstuvwxyz .,!?" + "".join(chr(0x4E00 + place) for place in range(max(0, size - 31)))
    return Vocabulary("character", (UNKNOWN, *signs[: size - 1]))


def save_generator(path, cell="lstm", vocabulary=30, edit=lambda preprocessing: None, **options):
    network = text_network(cell, vocabulary, **options)
    preprocessing = {"vocabulary": characters(vocabulary).to_dict(), "window": 20}
    edit(preprocessing)
    write_checkpoint(path, network, task="generate", preprocessing=preprocessing, metrics={"m": 1}, data={"name": "t"})
    return path


def save_classifier(
    path, cell="gru", labels=("no", "yes", "both"), pooling="mean", edit=lambda preprocessing: None, **options
):
    network = text_network(cell, outputs=len(labels), pooling=pooling, **options)
    preprocessing = {"vocabulary": characters().to_dict(), "window": 20, "labels": list(labels)}
    edit(preprocessing)
    write_checkpoint(path, network, task="classify", preprocessing=preprocessing, metrics={"m": 1}, data={"name": "t"})
    return path


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """{cell: checkpoint}, each exported once, for the tests that only read."""
    from seqexport import export

    folder = tmp_path_factory.mktemp("exported")
    paths = {cell: save_forecaster(folder / f"{cell}.pt", cell) for cell in CELLS}
    for path in paths.values():
        export(path)
    return paths


@pytest.fixture(scope="session")
def exported_texts(tmp_path_factory):
    """A generator's and a classifier's checkpoint, each exported once, for the tests that only read."""
    from seqexport import export

    folder = tmp_path_factory.mktemp("texts")
    paths = {"generate": save_generator(folder / "g.pt"), "classify": save_classifier(folder / "c.pt")}
    for path in paths.values():
        export(path)
    return paths


@pytest.fixture(scope="session")
def browser():
    """Debian's Chromium, driven by Playwright."""
    sync_api = pytest.importorskip("playwright.sync_api")
    from visiting import ARGUMENTS, CHROMIUM

    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def url():
    """Where the demo is served, for the tests of a module."""
    import demo

    page = demo.build()
    _, url, _ = page.launch(prevent_thread_lock=True, quiet=True, **demo.launch_options())
    yield url
    page.close()
    gc.collect()


@pytest.fixture(scope="module")
def demand(tmp_path_factory):
    """The demo's files with the UK's demand among them, whose numbers are not given on: made up here."""
    import numpy as np

    from tabs import racing, series

    folder = tmp_path_factory.mktemp("demand")
    for path in racing.EXPORTED.iterdir():
        (folder / path.name).symlink_to(path)
    (folder / "uk-demand.csv").unlink(missing_ok=True)
    times = np.datetime64("2000-07-28T04:30") + np.arange(1479) * np.timedelta64(30, "m")
    values = 29_000 + 6_000 * np.sin(np.arange(1479) * 2 * np.pi / 48) + 900 * np.cos(np.arange(1479) / 7)
    rows = [f"{time},{value:.0f}" for time, value in zip(times, values, strict=True)]
    (folder / "uk-demand.csv").write_text("\n".join(["half-hour,uk-demand", *rows]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(racing, "EXPORTED", folder)
        for cached in (series.shipped, series.starts):
            cached.cache_clear()
        yield folder
    for cached in (series.shipped, series.starts):
        cached.cache_clear()
