"""Raw in, answer out: each pipeline is written once, in torch, its loop included.

The torch runtime runs these modules; every other runtime runs their export, in which the loop is an ONNX Scan.
Randomness and state are inputs, so that all runtimes draw the same paths and write the same text. What each takes and
gives is in seqexport.specs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._higher_order_ops.scan import scan as torch_scan

from seqexport.errors import SpecError, UnsupportedError
from seqexport.networks import Network
from seqexport.recurrent import State
from seqexport.specs import NetworkSpec, TensorSpec, pipeline_inputs, pipeline_outputs
from seqexport.text import Vocabulary

Carry = list[Tensor]
Transform = Literal["none", "root", "log"]
TRANSFORMS: tuple[Transform, ...] = ("none", "root", "log")


def scan(step: Callable[[Carry, Tensor], tuple[Carry, Tensor]], carry: Carry, xs: Tensor) -> tuple[Carry, Tensor]:
    """Call `step(carry, x) → (carry, y)` for every x of xs (N, …); the last carry, and the ys stacked (N, …).

    While exporting it is torch's scan, which becomes an ONNX Scan; otherwise a plain loop.
    """
    if torch.compiler.is_exporting():
        return torch_scan(step, carry, xs)
    ys = []
    for x in xs:
        carry, y = step(carry, x)
        ys.append(y)
    return carry, torch.stack(ys)


def choose(condition: Tensor, first: Callable[..., Any], second: Callable[..., Any], operands: tuple[Any, ...]) -> Any:
    """first(*operands) where the condition () holds, otherwise second(*operands), of which only the one is computed.

    While exporting it is torch's cond, which becomes an ONNX If.
    """
    if torch.compiler.is_exporting():
        return torch.cond(condition, first, second, operands)
    return first(*operands) if condition else second(*operands)


@dataclass(frozen=True)
class Scaling:
    """From a series' own units to the network's and back: z = (t(value) - mean) / spread.

    transform: t is the identity ("none"), the square root ("root", for counts, whose noise grows with their level), or
    log(1 + value) ("log", where it grows in proportion); these take values below zero as zero. mean and spread are
    those of t(value) on the training part.
    """

    transform: Transform = "none"
    mean: float = 0.0
    spread: float = 1.0

    def __post_init__(self) -> None:
        if self.transform not in TRANSFORMS:
            raise SpecError(f"The scaling's transform is {self.transform!r}; expected {', '.join(TRANSFORMS)}.")
        if not (math.isfinite(self.mean) and math.isfinite(self.spread) and self.spread > 0):
            raise SpecError(
                f"The scaling has mean {self.mean} and spread {self.spread}; expected a number and a positive number."
            )

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Scaling:
        """The `scaling` of a checkpoint's `preprocessing` entry. Raises SpecError if it does not fit."""
        try:
            return cls(fields["transform"], float(fields["mean"]), float(fields["spread"]))
        except (KeyError, TypeError, ValueError) as error:
            raise SpecError(f"The scaling {fields!r} lacks or garbles transform, mean or spread.") from error

    @classmethod
    def fitted(cls, values: Tensor, transform: Transform) -> Scaling:
        """The scaling whose mean and (uncorrected) standard deviation are those of t(values)."""
        transformed = cls(transform).apply(values.double())
        return cls(transform, float(transformed.mean()), float(transformed.std(correction=0)) or 1.0)

    def to_dict(self) -> dict[str, Any]:
        """The `scaling` of a checkpoint's `preprocessing` entry."""
        return asdict(self)

    def apply(self, values: Tensor) -> Tensor:
        """Values in the series' units → z, any shape."""
        if self.transform == "root":
            values = values.clamp(min=0.0).sqrt()
        elif self.transform == "log":
            values = values.clamp(min=0.0).log1p()
        return (values - self.mean) / self.spread

    def undo(self, z: Tensor) -> Tensor:
        """z → values in the series' units, any shape."""
        values = z * self.spread + self.mean
        if self.transform == "none":
            return values
        values = values.clamp(min=0.0)
        return values.square() if self.transform == "root" else values.expm1()


class Pipeline(nn.Module):
    """A network with what goes before and after it, as a module of flat tensors."""

    name: str

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What forward takes, in its order."""
        return pipeline_inputs(self.name, self.network.spec)

    @property
    def output_names(self) -> tuple[str, ...]:
        """What forward gives, in its order."""
        return pipeline_outputs(self.name, self.network.spec)


class Forecast(Pipeline):
    """Roll a series on: history and noise in, paths out, all in the series' own units.

    At each step the network gives the distribution of the next scaled value, a normal one with a mean and a spread;
    the step's noise, a standard normal number, picks the value, which is then read in turn. Zero noise gives the
    central path, many noises the fan.
    """

    name = "forecast"

    def __init__(self, network: Network, scaling: Scaling) -> None:
        super().__init__(network)
        check_forecaster(network.spec)
        self.scaling = scaling

    def forward(self, history: Tensor, noise: Tensor, *state: Tensor) -> State:
        """history (B, T), noise (B, P, N), state (L, B, H) or none for zero → path (B, P, N), and the state after the
        history was read, from which a longer history can be gone on with."""
        batch, paths, horizon = noise.shape
        read, answer = self.network.as_functions()
        steps, read_one = self.network.as_steps()
        scaled = self.scaling.apply(history).transpose(0, 1).unsqueeze(-1)  # (T, B, 1)
        y, after = read(scaled, state or self.network.zero_state(history.shape[0]))
        # The history is read once; from here on every path is a row of its own, with its copy of the state.
        first = _per_path(answer(y[-1:]), paths)  # (1, B*P, 2)
        carry = [first, *steps.apart(tuple(_per_path(part, paths) for part in after))]

        def step(carry: Carry, noise: Tensor) -> tuple[Carry, Tensor]:
            mean, spread = distribution(carry[0])
            z = mean + spread * noise  # (1, B*P, 1)
            y, carried = read_one(z, carry[1:])
            return [answer(y), *carried], z.clone()

        _, z = scan(step, carry, noise.permute(2, 0, 1).reshape(horizon, 1, batch * paths, 1))  # (N, 1, B*P, 1)
        path = self.scaling.undo(z).reshape(horizon, batch, paths).permute(1, 2, 0)
        return path, *after


class Classify(Pipeline):
    """Tokens and lengths in, the probabilities of the classes out; what stands after a text's end changes nothing."""

    name = "classify"

    def __init__(self, network: Network) -> None:
        super().__init__(network)
        check_classifier(network.spec)

    def forward(self, tokens: Tensor, lengths: Tensor) -> State:
        """tokens (B, T), lengths (B) → probabilities (B, C), and, of a one-directional net, those after each step
        (B, T, C): what the answer would be if the text ended there, the last one repeated after its end."""
        if self.network.spec.bidirectional:
            return (torch.softmax(self.logits(tokens, lengths), -1),)
        read, answer = self.network.as_functions()
        y, _ = read(tokens.transpose(0, 1), self.network.zero_state(tokens.shape[0]))  # (T, B, H)
        steps = torch.arange(tokens.shape[1]).unsqueeze(1)  # (T, 1)
        if self.network.spec.pooling == "mean":
            # The head is linear: the mean of its answers is its answer to the mean, at far fewer sums.
            logits = answer(y).cumsum(0) / (steps + 1).unsqueeze(2)
        elif self.network.spec.pooling == "max":
            logits = answer(scan(_running_maximum, [y[0]], y)[1])
        else:
            logits = answer(y)
        last = torch.minimum(steps, lengths - 1).unsqueeze(2)  # (T, B, 1)
        running = torch.softmax(logits, -1).gather(0, last.expand(-1, -1, logits.shape[2]))  # (T, B, C)
        if self.network.spec.pooling != "max":
            return running[-1], running.transpose(0, 1)
        # On a path of its own, so that whoever wants no running maximum need not wait for its loop.
        return torch.softmax(answer(_highest(y, steps, lengths)), -1), running.transpose(0, 1)

    def logits(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """tokens (B, T), lengths (B) → the head's answers to the whole texts (B, C), with dropout while training."""
        read, answer = self.network.as_functions()
        rows = lengths if self.network.spec.bidirectional else None  # reading forward, no step sees what follows it
        y, _ = read(tokens.transpose(0, 1), self.network.zero_state(tokens.shape[0]), rows)  # (T, B, H)
        steps = torch.arange(tokens.shape[1], device=tokens.device).unsqueeze(1)
        if self.network.spec.pooling == "mean":
            pooled = (y * (steps < lengths).unsqueeze(2)).sum(0) / lengths.unsqueeze(1)
        elif self.network.spec.pooling == "max":
            pooled = _highest(y, steps, lengths)
        else:
            pooled = y.gather(0, (lengths - 1)[None, :, None].expand(-1, -1, y.shape[2]))[0]
        return answer(self.network.dropout(pooled))  # (B, C)


# The largest float32 below 1: numpy's float64 uniforms reach 1 when they are rounded to float32.
BELOW_ONE = 1 - 2**-24
# Stands for a temperature of 0, at which only the likeliest token is left.
COLDEST = 1e-6
# So many of the likeliest tokens are sorted first; only where they don't settle top-k and top-p, all are.
LIKELIEST = 128


class Generate(Pipeline):
    """Write a text on: a prompt and a uniform number for each step in, tokens out.

    At each step the last token is read, and the step's number u picks the next: the first one at which the cumulative
    distribution exceeds u (the inverse transform). Before that, top_k keeps the k likeliest tokens (0: all), and of
    these top_p keeps the likeliest that together have that share (1: all). A temperature of 0 picks the likeliest.
    """

    name = "generate"

    def __init__(self, network: Network) -> None:
        super().__init__(network)
        check_generator(network.spec)

    def forward(
        self, prompt: Tensor, uniforms: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, *state: Tensor
    ) -> State:
        """prompt (B, T), uniforms (B, N), temperature (), top_k (), top_p (), state (L, B, H) or none for zero →
        tokens (B, N), and the state before the last of them is read: go on with it and tokens[:, -1:] as prompt."""
        return self._write((prompt,), uniforms, temperature, top_k, top_p, state)

    def _write(
        self,
        prompt: tuple[Tensor, ...],
        uniforms: Tensor,
        temperature: Tensor,
        top_k: Tensor,
        top_p: Tensor,
        state: State,
    ) -> State:
        """What forward does, after a prompt that `_before_last` and `_last` read."""
        _, answer = self.network.as_functions()
        steps, read_one = self.network.as_steps()
        state = state or self.network.zero_state(prompt[0].shape[0])
        before = steps.apart(self._before_last(state, *prompt))
        size = self.network.spec.vocabulary or 0
        sharpness = 1 / temperature.to(_precision(size)).clamp(min=COLDEST)
        count = torch.where(top_k > 0, top_k.clamp(max=size), size)
        filtered = torch.logical_or(top_k > 0, top_p < 1)

        # The choice stays within the loop: a loop within a choice is two graphs deep, where onnxruntime no longer packs
        # the weights beforehand, but at every step.
        def step(carry: Carry, u: Tensor) -> tuple[Carry, Tensor]:
            y, carried = read_one(carry[0], carry[1:])
            p = torch.softmax(answer(y).to(sharpness.dtype) * sharpness, -1)  # (1, B, V)
            cumulative = choose(filtered, _cumulative_of_likeliest, _cumulative, (p, count, top_p))
            below = u if size <= LIKELIEST else u * cumulative[..., -1:]  # the sum of float32s may be less than u
            token = _count(cumulative <= below)  # (1, B), from 0 to V - 1
            return [token, *carried], token.clone()

        last = self._last(*prompt)
        us = uniforms.clamp(0.0, BELOW_ONE).double().transpose(0, 1)[:, None, :, None]  # (N, 1, B, 1)
        (_, *after), tokens = scan(step, [last.unsqueeze(0), *before], us)  # (N, 1, B)
        return tokens.squeeze(1).transpose(0, 1), *steps.together(after)

    def _last(self, prompt: Tensor) -> Tensor:
        """The prompt's last token (B)."""
        return prompt[:, -1].clone(memory_format=torch.contiguous_format)  # what a scan carries keeps its layout

    def _before_last(self, state: State, prompt: Tensor) -> State:
        """The state before the prompt's last token is read. A prompt of one token leaves nothing to read, which no
        recurrent operator can do, so there the state is passed on."""
        read, _ = self.network.as_functions()

        def read_all_but_last(prompt: Tensor, *state: Tensor) -> State:
            return read(prompt[:, :-1].transpose(0, 1), state)[1]

        def pass_on(prompt: Tensor, *state: Tensor) -> State:
            return tuple(part.clone() for part in state)

        # The number of tokens as a tensor, since torch.export would take a comparison of sizes for settled.
        several = torch.ones_like(prompt[0]).sum() > 1
        return tuple(choose(several, read_all_but_last, pass_on, (prompt, *state)))

    @torch.no_grad()
    def cumulative(self, prompt: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, *state: Tensor) -> Tensor:
        """prompt (B, T) and the settings → the cumulative distribution of the token after it (B, V), in float64."""
        read, answer = self.network.as_functions()
        y, _ = read(prompt.transpose(0, 1), state or self.network.zero_state(prompt.shape[0]))
        size = self.network.spec.vocabulary or 0
        p = torch.softmax(answer(y[-1]).to(_precision(size)) / temperature.clamp(min=COLDEST), -1)
        likeliest = _cumulative if top_k == 0 and top_p == 1 else _cumulative_of_likeliest
        return likeliest(p, top_k.clamp(max=size) if top_k > 0 else torch.tensor(size), top_p)

    @torch.no_grad()
    def margin(
        self,
        tokens: Tensor,
        u: Tensor,
        temperature: Tensor,
        top_k: Tensor,
        top_p: Tensor,
        *state: Tensor,
    ) -> float:
        """By how much the choice after `tokens` (1, T) was decided: the least change, of a logit or of a cumulative
        probability, from which on another token would be picked.

        If every logit changes by up to d, the log-odds of a sum of probabilities change by up to 2 d / temperature,
        which is turned around here.
        """
        read, answer = self.network.as_functions()
        y, _ = read(tokens.transpose(0, 1), state or self.network.zero_state(1))
        temperature = temperature.double().clamp(min=COLDEST)
        logits = answer(y[-1, 0]).double() / temperature  # (V,)
        ordered, size = logits.sort(descending=True).values, len(logits)
        count = min(int(top_k), size) or size

        def apart(logits: Tensor, edge: Tensor) -> Tensor:
            """The margin between the cumulative distribution and the number that it is held against."""
            odds, edge = _log_odds(logits), edge.double().clamp(1e-15, 1 - 1e-15)
            by_logits = temperature * (odds - edge.logit()).abs() / 2
            return torch.minimum(by_logits, (odds.sigmoid() - edge).abs()).min()

        margins, left = [], logits
        if count < size:
            margins.append(temperature * (ordered[count - 1] - ordered[count]) / 2)
        if top_p < 1 and count > 1:
            margins.append(apart(ordered[:count], top_p))
        if count < size or top_p < 1:
            p = torch.softmax(logits, -1)
            steps = _cumulative_of_likeliest(p, torch.tensor(count), top_p.double()).diff(prepend=p.new_zeros(1))
            left = torch.where(steps > 0, logits, -torch.inf)
        margins.append(apart(left, u))
        return float(torch.stack(margins).min())


class GenerateRows(Generate):
    """Generate for prompts of different lengths, each padded behind its end; the rows are written on side by side.

    It is what a graph that takes strings does with their numbers.
    """

    name = "generate.text"

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What forward takes, in its order."""
        prompt, *others = pipeline_inputs("generate", self.network.spec)
        return replace(prompt, name="numbers"), TensorSpec("lengths", "int64", ("batch",), 1, "time"), *others

    @property
    def output_names(self) -> tuple[str, ...]:
        """What forward gives, in its order."""
        return pipeline_outputs("generate", self.network.spec)

    def forward(  # type: ignore[override]
        self,
        numbers: Tensor,
        lengths: Tensor,
        uniforms: Tensor,
        temperature: Tensor,
        top_k: Tensor,
        top_p: Tensor,
        *state: Tensor,
    ) -> State:
        """numbers (B, T), lengths (B), and the rest as in Generate → the same as there, row by row."""
        return self._write((numbers, lengths), uniforms, temperature, top_k, top_p, state)

    def _last(self, numbers: Tensor, lengths: Tensor) -> Tensor:  # type: ignore[override]
        """Each row's last token (B)."""
        return numbers.gather(1, (lengths - 1).unsqueeze(1)).squeeze(1)

    def _before_last(self, state: State, numbers: Tensor, lengths: Tensor) -> State:  # type: ignore[override]
        """The state before each row's last token is read; where that is its only one, the state given."""
        read, _ = self.network.as_functions()

        def read_all_but_last(numbers: Tensor, lengths: Tensor, *state: Tensor) -> State:
            after = read(numbers[:, :-1].transpose(0, 1), state, (lengths - 1).clamp(min=1))[1]
            several = (lengths > 1)[None, :, None]
            return tuple(torch.where(several, new, old) for new, old in zip(after, state, strict=True))

        def pass_on(numbers: Tensor, lengths: Tensor, *state: Tensor) -> State:
            return tuple(part.clone() for part in state)

        several = torch.ones_like(numbers[0]).sum() > 1
        return tuple(choose(several, read_all_but_last, pass_on, (numbers, lengths, *state)))


def _log_odds(logits: Tensor) -> Tensor:
    """logits (V,) → the log-odds of the first 1, 2, … V - 1 of their probabilities together (V - 1,)."""
    before, after = logits.logcumsumexp(0), logits.flip(0).logcumsumexp(0).flip(0)
    return before[:-1] - after[1:]


def _precision(size: int) -> torch.dtype:
    """Of the probabilities of `size` tokens. They are always summed in float64: of thousands, the rounding of a float32
    sum picks another token ten times as often as the rounding of the logits does. That of each one, which is relative
    to it, does not, and thousands of exponentials in float64 would take as long as the network."""
    return torch.float64 if size <= LIKELIEST else torch.float32


def _count(flags: Tensor) -> Tensor:
    """How many along the last axis hold (…, K) → (…). Of many in float32, exact to 2**24 and several times as fast."""
    return flags.sum(-1) if flags.shape[-1] <= LIKELIEST else flags.float().sum(-1).long()


def _cumulative(p: Tensor, count: Tensor, top_p: Tensor) -> Tensor:
    """p (…, V) → its cumulative distribution, in float64."""
    return p.double().cumsum(-1)


def _cumulative_of_likeliest(p: Tensor, count: Tensor, top_p: Tensor) -> Tensor:
    """p (…, V) → the same of the tokens that top-k and top-p leave; equals of the last one stay."""
    if p.shape[-1] <= LIKELIEST:
        least = _least_of_all(p, p, count, top_p)
    else:
        first = p.topk(LIKELIEST, dim=-1).values
        # Where top-k cuts behind these, its share is not known without the others.
        whole = torch.logical_and(count >= p.shape[-1], _share(first) >= top_p * _share(p)).all()
        settled = torch.logical_or(count <= LIKELIEST, whole)
        least = choose(settled, _least_of_first, _least_of_all, (p, first, count, top_p))
    sums = torch.where(p >= least, p, 0.0).double().cumsum(-1)
    return sums / sums[..., -1:]


def _share(p: Tensor) -> Tensor:
    """p (…, K) → the sum (…), in float64."""
    return p.double().sum(-1)


def _least_of_first(p: Tensor, first: Tensor, count: Tensor, top_p: Tensor) -> Tensor:
    """p (…, V) and its likeliest in falling order (…, K) → the least probability that stays (…, 1)."""
    within = torch.where(torch.arange(first.shape[-1]) < count, first, 0.0).double()
    shares = within.cumsum(-1)
    share = shares[..., -1:]
    if first.shape[-1] < p.shape[-1]:
        share = torch.where(count < p.shape[-1], share, _share(p).unsqueeze(-1))
    # The first stays always; another one as long as those before it have less than the share asked for.
    stays = torch.logical_and(shares - within < top_p * share, within > 0)
    return torch.where(stays, first, first[..., :1]).amin(-1, keepdim=True)


def _least_of_all(p: Tensor, first: Tensor, count: Tensor, top_p: Tensor) -> Tensor:
    """The same of any number of tokens, which takes a sort of all of them."""
    return _least_of_first(p, p.sort(dim=-1, descending=True).values, count, top_p)


def _highest(y: Tensor, steps: Tensor, lengths: Tensor) -> Tensor:
    """y (T, B, H), steps (T, 1), lengths (B) → the maximum over each text's own steps (B, H)."""
    return y.masked_fill((steps >= lengths).unsqueeze(2), -torch.inf).amax(0)


def _running_maximum(carry: Carry, y: Tensor) -> tuple[Carry, Tensor]:
    highest = torch.maximum(carry[0], y)
    return [highest], highest.clone()


def distribution(y: Tensor) -> tuple[Tensor, Tensor]:
    """What a forecaster's head gives, (…, 2) → mean (…, 1) and spread (…, 1) of the next scaled value.

    The floor under the spread keeps the likelihood of a series that repeats itself finite.
    """
    mean, spread = y.split(1, -1)
    return mean, nn.functional.softplus(spread) + 1e-3


def check_forecaster(spec: NetworkSpec) -> None:
    """Raise UnsupportedError unless a network of this description can roll a series on."""
    one = spec.features == 1 + len(spec.lags)
    if spec.bidirectional or spec.vocabulary or not one or spec.outputs != 2 or spec.pooling != "every":
        raise UnsupportedError(
            "A forecast needs a one-directional net from 1 number to 2 (mean and spread) at every step; "
            f"this is {spec}."
        )


def check_classifier(spec: NetworkSpec) -> None:
    """Raise UnsupportedError unless a network of this description can tell classes of texts."""
    if spec.vocabulary is None or spec.outputs is None or spec.pooling == "every" or spec.time_major:
        raise UnsupportedError(
            f"A classifier needs a net with a vocabulary and a head that pools the steps, batch first; this is {spec}."
        )


def check_generator(spec: NetworkSpec) -> None:
    """Raise UnsupportedError unless a network of this description can write a text on."""
    fits = spec.vocabulary is not None and spec.outputs == spec.vocabulary and spec.pooling == "every"
    if not fits or spec.bidirectional or spec.time_major:
        raise UnsupportedError(
            "A generator needs a one-directional net from a vocabulary to itself at every step, batch first; "
            f"this is {spec}."
        )


def make_pipeline(name: str, network: Network, preprocessing: Mapping[str, Any]) -> Pipeline:
    """The pipeline `name` of a checkpoint's network. Raises SpecError, UnsupportedError, KeyError or TypeError where
    network and preprocessing do not fit it."""
    if name == "forecast":
        return Forecast(network, Scaling.from_dict(preprocessing["scaling"]))
    size = len(Vocabulary.from_dict(preprocessing["vocabulary"]))
    if size != network.spec.vocabulary:
        raise SpecError(f"The vocabulary has {size} tokens, but the network's embedding {network.spec.vocabulary}.")
    if name == "generate":
        return Generate(network)
    labels = preprocessing["labels"]
    if len(labels) != network.spec.outputs or not all(isinstance(label, str) for label in labels):
        raise SpecError(f"The labels are {labels!r:.80}; expected {network.spec.outputs} names, one a class.")
    return Classify(network)


def _per_path(rows: Tensor, paths: int) -> Tensor:
    """(K, B, H) → (K, B*P, H), each row repeated for its paths."""
    return rows.unsqueeze(2).expand(-1, -1, paths, -1).flatten(1, 2)
