"""Ask a running demo for a forecast, as a stranger's program would."""

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

series = [float(10 + index % 12) for index in range(60)]
answer = {}
for runtime in ("torch", "onnxruntime"):
    answer[runtime] = Client(url, verbose=False).predict(series, "gru", 12, 50, 0, runtime, api_name="/forecast_values")
    print(runtime, answer[runtime])
central = [answer[runtime]["central"] for runtime in answer]
assert len(central[0]) == 12
assert all(abs(a - b) <= 1e-4 * max(1.0, *map(abs, central[0])) for a, b in zip(*central, strict=True))
print("both runtimes gave the same forecast")
