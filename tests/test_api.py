"""The demo for programs and agents: what it offers, README's examples run for real, and the tools over HTTP."""

import gc
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("gradio_client")
import demo
from training.serving import served  # noqa: E402

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
# Gradio leaves event loops and their sockets to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed (event loop|<socket):ResourceWarning")
OFFERED = {"forecast", "forecast_values", "sentiment", "sentiment_values", "characters_values"}  # at least
WORDS = re.compile(r"[a-z]+(_[a-z0-9]+)*")


@pytest.fixture(scope="module")
def page():
    yield demo.build()
    gc.collect()  # gradio's event loops, while their warnings are still ignored


@pytest.fixture(scope="module")
def offered(page):
    return page.get_api_info()


def example(name: str, url: str) -> str:
    """README's example of that name, asking the demo at `url`."""
    found = re.search(rf"<!-- example: {name} -->\n```\w+\n(.*?)```", README, re.DOTALL)
    assert found, name
    assert "http://127.0.0.1:7860" in found[1]
    return found[1].replace("http://127.0.0.1:7860", url.rstrip("/"))


def test_only_what_is_meant_is_offered(page, offered):
    named = offered["named_endpoints"]
    assert {name.strip("/") for name in named} >= OFFERED
    assert offered["unnamed_endpoints"] == {}
    assert all(WORDS.fullmatch(name.strip("/")) for name in named)
    private = [fn for fn in page.fns.values() if fn.api_visibility == "private"]
    assert private
    for fn in private:
        assert f"/{fn.api_name}" not in named or any(
            other.api_name == fn.api_name and other.api_visibility == "public" for other in page.fns.values()
        )


def test_what_is_offered_says_what_it_does(offered):
    for name, endpoint in offered["named_endpoints"].items():
        assert len(endpoint["description"]) > 20, name
        for parameter in endpoint["parameters"]:
            assert WORDS.fullmatch(parameter["parameter_name"]), (name, parameter)
            assert not parameter["parameter_name"].startswith("param"), (name, parameter)
            assert parameter["python_type"]["type"] not in ("", "Any"), (name, parameter)


def test_nothing_goes_past_the_queue(page):
    assert page.api_open is False
    assert page._queue.max_size == demo.WAITING


@pytest.mark.slow
def test_the_python_example(url):
    code = example("client", url)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    assert "['positive', 'negative']" in done.stdout
    assert done.stdout.count("[") >= 5


@pytest.mark.slow
def test_the_curl_example(url):
    done = subprocess.run(["bash", "-c", example("curl", url)], capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    assert "event: complete" in done.stdout
    assert json.loads(done.stdout.rsplit("data: ", 1)[1])[0]["labels"] == ["positive", "negative"]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mcp") is None, reason='the extra is not there: pip install "gradio[mcp]"')
def test_the_tools_over_http():
    import asyncio

    from mcp import ClientSession
    from mcp.client.streamable_http import streamable_http_client

    async def ask(url):
        async with (
            streamable_http_client(f"{url}gradio_api/mcp/") as (read, write, _),
            ClientSession(read, write) as session,
        ):
            await session.initialize()
            tools = (await session.list_tools()).tools
            good = await session.call_tool("sentiment_values", {"texts": ["A fine film."]})
            bad = await session.call_tool("forecast_values", {"values": [1.0, 2.0], "cell": "GRU", "horizon": 0})
            return tools, good, bad

    with served() as running:  # in a process of its own, where warnings of other libraries are none of a test's errors
        tools, good, bad = asyncio.run(ask(f"{running.url.rstrip('/')}/"))
    assert {tool.name for tool in tools} >= OFFERED
    for tool in tools:
        assert tool.description
        assert all(WORDS.fullmatch(name) for name in tool.inputSchema["properties"]), tool
    assert not good.isError
    assert "'positive'" in good.content[0].text or '"positive"' in good.content[0].text
    assert bad.isError
    assert "The horizon is 0; expected a whole number from 1 to 600." in bad.content[0].text
