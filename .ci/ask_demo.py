"""Ask a running demo for a forecast, opinions and a text, as a stranger's program would."""

import sys
import time
from urllib.error import URLError
from urllib.request import urlopen

from gradio_client import Client

url = sys.argv[1]
start = time.monotonic()
while True:
    try:
        urlopen(url, timeout=5).close()
        break
    except (URLError, OSError):
        if time.monotonic() - start > 120:
            sys.exit("the demo did not answer within two minutes")
        time.sleep(0.2)
print(f"the page answered after {time.monotonic() - start:.1f} s")

client = Client(url, verbose=False)


def ask(endpoint: str, *question: object) -> list[dict]:
    """Both runtimes' answers to one question."""
    answers = [client.predict(*question, runtime, api_name=endpoint) for runtime in ("torch", "onnxruntime")]
    for answer in answers:
        print(endpoint, str(answer)[:300])
        assert answer["milliseconds"] > 0
    return answers


def apart(one: list, other: list) -> float:
    """The greatest difference between two lists of numbers, or of lists of them."""
    pairs = zip(one, other, strict=True)
    return max(apart(a, b) if isinstance(a, list) else abs(a - b) for a, b in pairs)


client = Client(url, verbose=False)


def both(endpoint: str, *question: object) -> list[dict]:
    """What torch and onnxruntime say to the same question."""
    return [client.predict(*question, runtime, api_name=endpoint) for runtime in ("torch", "onnxruntime")]


def near(one: list[float], other: list[float]) -> bool:
    """Whether two lists of numbers are the same, within 1e-4 of the largest."""
    return all(abs(a - b) <= 1e-4 * max(1.0, *map(abs, one)) for a, b in zip(one, other, strict=True))


one, other = both("/forecast_values", [float(10 + index % 12) for index in range(60)], "gru", 12, 50, 0)
assert len(one["central"]) == 12
assert near(one["central"], other["central"])
print("both runtimes gave the same forecast:", one["central"])

for language, texts in (
    ("English", ["A fine film.", "A dull script, and far too long."]),
    ("中文", ["还不错。", "非常失望。"]),
):
    one, other = both("/sentiment_values", texts, language)
    assert one["labels"] == other["labels"]
    assert all(near(a, b) for a, b in zip(one["running"], other["running"], strict=True))
    print("both runtimes thought the same:", one["labels"])
    listed = client.predict(texts * 500, language, "LSTM", api_name="/sentiment_list")
    assert listed["labels"] == one["labels"] * 500

one, other = both("/characters_values", "ROMEO\n", "Shakespeare (English)", 200, 0.8, 0, 1.0, 0)
assert len(one["text"]) == 200
assert one["text"] == other["text"]
print("both runtimes wrote the same text:", one["text"][:60].replace("\n", " / "))
