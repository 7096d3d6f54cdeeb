"""A small hand-written list of sentences that classifiers of opinions get wrong, by what is hard about them.

In the manner of Ribeiro et al. 2020, "Beyond Accuracy: Behavioral Testing of NLP Models with CheckList". The list was
written before any model was held to it, no model is trained or chosen by it, and it is reported as it comes out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np


class Check(NamedTuple):
    """A sentence, the number of its label (0 negative, 1 positive), and what is hard about it."""

    text: str
    label: int
    kind: str


def _checks(**kinds: tuple[Sequence[str], Sequence[str]]) -> tuple[Check, ...]:
    """kind=(negative sentences, positive sentences), the kind's blanks as underscores."""
    return tuple(
        Check(text, label, kind.replace("_", " "))
        for kind, labelled in kinds.items()
        for label, texts in enumerate(labelled)
        for text in texts
    )


CHECKS: Mapping[str, tuple[Check, ...]] = {
    "en": _checks(
        plain=(
            ["A dull film with wooden acting.", "I hated every minute of it.", "The worst picture of the year."],
            ["A wonderful film with superb acting.", "I loved every minute of it.", "The best picture of the year."],
        ),
        negation=(
            [
                "This is not a good film.",
                "I did not like it at all.",
                "Nothing about this movie works.",
                "It is never funny.",
                "I can't recommend it to anyone.",
                "The jokes aren't clever and the ending isn't surprising.",
            ],
            [
                "This is not a bad film.",
                "I have no complaints about it.",
                "There is not a dull moment in it.",
                "It never gets boring.",
                "You won't regret seeing it.",
                "The plot isn't stupid and the acting isn't weak.",
            ],
        ),
        mixed=(
            [
                "The cast is excellent, but the story is a mess and I was bored.",
                "Beautiful pictures can't save this empty film.",
                "It starts well and then falls apart completely.",
                "I wanted to love it, and I was disappointed.",
                "Despite its great director, the film fails.",
            ],
            [
                "The story is thin, but the cast is so charming that I loved it.",
                "It starts slowly and then becomes a masterpiece.",
                "I expected to hate it, and I was delighted.",
                "Despite its silly title, the film is a joy.",
                "The critics called it awful; they are wrong, it is brilliant.",
            ],
        ),
        comparison=(
            ["The book is much better than this film.", "I have seen school plays with better acting."],
            ["This film is much better than the book.", "I have not seen better acting in years."],
        ),
    ),
    "zh": _checks(
        plain=(
            ["质量太差了，非常失望。", "房间又脏又吵，不会再来。", "这本书写得很糟糕。"],
            ["质量很好，非常满意。", "房间干净安静，下次还来。", "这本书写得很精彩。"],
        ),
        negation=(
            [
                "这本书不好看。",
                "服务一点也不热情。",
                "电脑没有想象的那么好。",
                "不推荐大家购买。",
                "没有什么值得称赞的地方。",
            ],
            [
                "这本书不错。",
                "服务没有什么可挑剔的。",
                "电脑用起来一点也不卡。",
                "买了绝对不会后悔。",
                "没有比这更好的酒店了。",
            ],
        ),
        mixed=(
            [
                "外观很漂亮，但是用了两天就坏了。",
                "位置不错，可惜房间太脏，服务也差。",
                "开头还行，后面越看越无聊。",
                "本来很期待，结果大失所望。",
            ],
            [
                "外观一般，但是性能非常好，很满意。",
                "位置偏了点，不过房间干净，服务热情。",
                "开头有点慢，后面越看越精彩。",
                "本来没抱希望，结果非常惊喜。",
            ],
        ),
        comparison=(
            ["比以前买的那本差多了。", "同样的价钱，别家好得多。"],
            ["比以前买的那本好多了。", "同样的价钱，这家最好。"],
        ),
    ),
}


def checked(language: str | None, labels: Sequence[str], found: Callable[[Sequence[str]], np.ndarray]) -> Any:
    """What `found`, which gives texts' probabilities [texts, 2], says to the language's list: by kind the right ones
    and all, and the wrong ones with what was thought positive. None where there is no list for it."""
    checks = CHECKS.get(language or "")
    if checks is None or tuple(labels) != ("negative", "positive"):
        return None
    positive = found([check.text for check in checks])[:, 1]
    kinds: dict[str, list[int]] = {}
    wrong = []
    for check, share in zip(checks, positive, strict=True):
        right = bool(share > 0.5) == bool(check.label)
        count = kinds.setdefault(check.kind, [0, 0])
        count[0], count[1] = count[0] + right, count[1] + 1
        if not right:
            wrong.append([check.text, labels[check.label], round(float(share), 3)])
    return {"kinds": kinds, "wrong": wrong}
