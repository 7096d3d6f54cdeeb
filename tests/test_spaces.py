"""The demo on Hugging Face Spaces: the card at README's head, and a start with a Space's own environment."""

import re
import signal
import subprocess
from pathlib import Path

import pytest
from huggingface_hub import SpaceCard

from training import page_costs
from training.serving import free_port, memory_of, served

ROOT = Path(__file__).parents[1]
COLOURS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}  # that a Space's card may have
SPACE = {  # what a Space's container sets
    "SYSTEM": "spaces",
    "SPACE_ID": "somebody/seqexport",
    "SPACE_HOST": "somebody-seqexport.hf.space",
    "SPACE_AUTHOR_NAME": "somebody",
    "SPACE_REPO_NAME": "seqexport",
    "GRADIO_SERVER_NAME": "0.0.0.0",
    "GRADIO_ALLOW_FLAGGING": "never",
    "GRADIO_THEME": "huggingface",
    "PYTHONUNBUFFERED": "1",
}
# Gradio's own hot reload wants a package that a Space has and we have not.
NO_SPACES = "RuntimeError: `spaces` package is required to run hot-reloading in Spaces"
READ_BY_GIT = 10 * 2**20  # bytes of a file from which on a Space wants Git LFS


def card():
    return SpaceCard.load(ROOT / "README.md", ignore_metadata_errors=False).data.to_dict()


def test_the_card_is_complete():
    found = card()
    assert set(found) >= {"title", "emoji", "colorFrom", "colorTo", "sdk", "python_version", "short_description"}
    assert {found["colorFrom"], found["colorTo"]} <= COLOURS
    assert len(found["emoji"]) == 1
    assert 0 < len(found["short_description"]) <= 60
    assert found["sdk"] == "gradio"
    assert found["license"] == "mit"
    assert (ROOT / found["app_file"]).is_file()
    assert isinstance(found["python_version"], str)
    assert re.fullmatch(r"3\.\d+", found["python_version"])
    assert all(isinstance(tag, str) and tag == tag.lower() for tag in found["tags"])


def test_the_cards_versions_are_the_ones_that_are_tested():
    pinned = dict(re.findall(r"^([\w-]+)==(\S+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE))
    assert card()["sdk_version"] == pinned["gradio"]
    assert f'requires-python = ">={card()["python_version"]}"' in (ROOT / "pyproject.toml").read_text()


def test_every_file_is_small_enough_for_git():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("this is no clone of the repository, so what belongs to it is not known")
    files = [ROOT / name for name in listed.stdout.split("\0") if name]
    assert [str(path) for path in files if path.is_file() and path.stat().st_size > READ_BY_GIT] == []
    assert len(files) > 100


@pytest.mark.slow
@pytest.mark.parametrize("ssr", ["true", "false"])
def test_it_starts_and_answers_as_a_space(ssr):
    client = pytest.importorskip("gradio_client")
    port = str(free_port())
    with served(SPACE | {"GRADIO_SERVER_PORT": port, "GRADIO_SSR_MODE": ssr}) as demo:
        asked = client.Client(demo.url, verbose=False)
        answer = asked.predict(["A fine film."], api_name="/sentiment_values")
        asked.close()
        assert answer["labels"] == ["positive"]
        assert demo.memory() == memory_of(demo.process.pid) > 100 * 2**20
        errors = re.findall(r"^\w*(?:Error|Exception): .*", demo.log(), re.MULTILINE)
        assert set(errors) <= {NO_SPACES}
        # A Space is stopped by this signal.
        demo.process.send_signal(signal.SIGTERM)
        demo.process.wait(30)


@pytest.mark.slow
def test_what_an_opening_costs_is_measured():
    pytest.importorskip("playwright")
    if not page_costs.CHROMIUM.is_file():
        pytest.skip("there is no Chromium")
    table = page_costs.measure(1, page_costs.CHROMIUM)
    assert re.search(r"first paint \| \d+\.\d\d s \|", table)
    requests, size = re.search(r"empty cache \| (\d+) \|\n.* \| ([\d.]+) MB", table).groups()
    assert 10 < int(requests) < 300
    assert 0.1 < float(size) < 10


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--rounds", "0"], "The number of rounds is 0; expected a whole number from 1 to 100."),
        (["--chromium", "/no/such"], "There is no browser at /no/such"),
    ],
)
def test_a_measurement_that_can_not_be_is_told(arguments, sentence, capsys):
    assert page_costs.main(arguments) == 2
    assert sentence in capsys.readouterr().err
