"""Our greedy decoding beside transformers' `generate`, and CTranslate2 where it can be imported, with the same weights,
the same texts and the same ends.

    taskset -c 0 python benchmarks/decoding.py    # GLUE-like: 20 to 120 tokens in, 8 out; and 256 in, 64 out
    taskset -c 0 python benchmarks/decoding.py --shapes glue --precision fp32 bf16 --profile

Run by hand on a quiet machine. Weights are random, with the attention over the inputs made so strong that answers
depend on them, and the token that ends an answer is one that comes up now and then: both stop there. transformers pads
batches of 32 in the order in which the texts come, as its users do; ours sorts. The two are timed in turn; ratios are
the median of the rounds' own. The ceiling is the time that the products of the tokens that are there take at the
measured rate of the core's own matrix product, in the same precision. CTranslate2, which sorts and batches
itself, is no dependency: `pip install --no-deps --target DIR ctranslate2`, then run with PYTHONPATH=DIR and with
`--vocabulary`, a SentencePiece model of T5's 32,000 pieces.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mixtura.models.t5 import SIZES, T5, T5Config, create_model, greedy_decode, hf_config, hf_state, initialize
from mixtura.platform.data.vocabulary import Vocabulary, write_tokenizer_files
from mixtura.platform.evaluation.evaluator import batches_by_length, padded

CROSS_ATTENTION_GAIN = 8.0
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Shape:
    """How many examples of which lengths, and most tokens of an answer."""

    examples: int
    inputs: tuple[int, int]
    answer: int


SHAPES = {"glue": Shape(256, (20, 120), 8), "long": Shape(64, (256, 256), 64)}
BATCH_ROWS, BATCH_TOKENS = 32, 16384


def weights(config: T5Config) -> T5:
    """A model whose answers differ."""
    model = create_model(config)
    initialize(model, 0)
    assert isinstance(model, T5)
    with torch.no_grad():
        for layer in model.decoder.layers:
            assert layer.cross_attention is not None
            layer.cross_attention.q.weight.mul_(CROSS_ATTENTION_GAIN)
            layer.cross_attention.o.weight.mul_(CROSS_ATTENTION_GAIN)
    return model.eval()


def texts(shape: Shape, config: T5Config) -> list[np.ndarray[Any, Any]]:
    """Rows of ids, each with its end, in no order."""
    chance = np.random.default_rng(0)
    lengths = chance.integers(shape.inputs[0], shape.inputs[1] + 1, shape.examples)
    return [
        np.append(chance.integers(3, config.vocab_size - 128, length - 1), 1).astype(np.int32) for length in lengths
    ]


def ours(model: T5, rows: list[np.ndarray[Any, Any]], most: int, end: int, rows_at_most: int) -> list[list[int]]:
    """Answers in the order of the texts."""
    answers: list[list[int]] = [[]] * len(rows)
    for batch in batches_by_length([len(row) for row in rows], BATCH_TOKENS):
        for first in range(0, len(batch), rows_at_most):
            part = batch[first : first + rows_at_most]
            ids = torch.from_numpy(padded([rows[place] for place in part])).long()
            for place, answer in zip(
                part, greedy_decode(model, ids, max_length=most, eos_id=end).tolist(), strict=True
            ):
                answers[place] = answer
    return [cut(answer, end) for answer in answers]


def theirs(model: Any, rows: list[np.ndarray[Any, Any]], most: int, end: int) -> list[list[int]]:
    """The same by transformers."""
    answers = []
    for first in range(0, len(rows), BATCH_ROWS):
        ids = torch.from_numpy(padded(rows[first : first + BATCH_ROWS])).long()
        with torch.no_grad():
            out = model.generate(
                input_ids=ids,
                attention_mask=(ids != 0).long(),
                max_new_tokens=most,
                min_new_tokens=None,
                do_sample=False,
                num_beams=1,
                use_cache=True,
                eos_token_id=end,
                pad_token_id=0,
                decoder_start_token_id=0,
            )
        answers += out[:, 1:].tolist()
    return [cut(answer, end) for answer in answers]


class CTranslate2:
    """The same by CTranslate2, of which fp32 has the same precision; int8 is its fastest here."""

    def __init__(self, model: Any, config: T5Config, vocabulary: str, kind: str, threads: int) -> None:
        import ctranslate2
        from transformers import T5Tokenizer

        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(f"{folder}/given")
            write_tokenizer_files(Vocabulary(vocabulary), f"{folder}/given")
            T5Tokenizer.from_pretrained(f"{folder}/given").save_pretrained(f"{folder}/given")
            ctranslate2.converters.TransformersConverter(f"{folder}/given").convert(f"{folder}/made")
            self._translator = ctranslate2.Translator(
                f"{folder}/made", compute_type=kind, inter_threads=1, intra_threads=threads
            )
            tokens = json.loads(Path(f"{folder}/made/shared_vocabulary.json").read_text())
        assert len(tokens) >= config.vocab_size - 28
        self._tokens, self._ids = tokens, {token: place for place, token in enumerate(tokens)}

    def __call__(self, rows: list[np.ndarray[Any, Any]], most: int, end: int) -> list[list[int]]:
        """Answers in the order of the texts."""
        found = self._translator.translate_batch(
            [[self._tokens[place] for place in row] for row in rows],
            beam_size=1,
            max_decoding_length=most,
            end_token=self._tokens[end],
            return_end_token=True,
            max_batch_size=BATCH_TOKENS,
            batch_type="tokens",
        )
        return [[self._ids[token] for token in one.hypotheses[0]] for one in found]


def cut(answer: list[int], end: int) -> list[int]:
    """Without what follows its end."""
    return answer[: answer.index(end) + 1] if end in answer else answer


def an_end(answers: list[list[int]]) -> int:
    """A token that some of the answers have in their middle."""
    counts = Counter(token for answer in answers for token in set(answer[1:-1]))
    wanted = len(answers) // 4
    return min(counts, key=lambda token: (abs(counts[token] - wanted), token))


def transformers_model(model: T5, config: T5Config, dtype: torch.dtype) -> Any:
    """transformers' T5 with the same weights."""
    from transformers import T5Config as TheirConfig
    from transformers import T5ForConditionalGeneration

    theirs = T5ForConditionalGeneration(TheirConfig(**hf_config(config)))
    theirs.load_state_dict(hf_state(model.state_dict(), config), strict=False)
    return theirs.to(dtype).eval()


def matrix_rate(dtype: torch.dtype) -> float:
    """FLOP/s of a product of the sizes of a layer."""
    left, right = (torch.randn(1024, 1024).to(dtype) for _ in range(2))
    return 2 * 1024**3 / min(timed(lambda: left @ right)[0] for _ in range(10))


def flops(config: T5Config, inputs: int, answer: int) -> float:
    """Of one example: products with weights, without padding; attention is left out."""
    attention = 4 * config.d_model * config.inner
    feed_forward = (2 if config.feed_forward == "relu" else 3) * config.d_model * config.d_ff
    encoder = (
        config.num_layers * (attention + feed_forward) + config.num_decoder_layers * 2 * config.d_model * config.inner
    )
    decoder = config.num_decoder_layers * (attention + 2 * config.d_model * config.inner + feed_forward)
    return 2.0 * (inputs * encoder + answer * (decoder + config.vocab_size * config.d_model))


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what the work gave."""
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def compare(name: str, arguments: argparse.Namespace) -> None:
    """A table for one shape in each precision."""
    shape, config = SHAPES[name], SIZES[arguments.size]
    model, rows = weights(config), texts(shape, config)
    if arguments.examples:
        rows = rows[: arguments.examples]
    free = ours(model, rows, shape.answer, -1, arguments.rows)
    end = an_end(free)
    expected = [cut(answer, end) for answer in free]
    work = sum(flops(config, len(row), len(answer)) for row, answer in zip(rows, expected, strict=True))
    mean, different = statistics.mean(map(len, expected)), len(set(map(tuple, expected)))
    texts_of = f"{len(rows)} texts of {min(map(len, rows))} to {max(map(len, rows))} tokens"
    print(f"\n{name}: {texts_of}, at most {shape.answer} out (mean {mean:.1f}), {different} answers differ")
    print(f"{arguments.size}, {torch.get_num_threads()} thread(s)")
    print(f"{'':<24}{'examples/s':>12}{'of ceiling':>12}{'equal to fp32':>15}")
    seconds: dict[str, list[float]] = {}
    models = {
        precision: (model.to(DTYPES[precision]) if precision == "fp32" else _copy(model, config, DTYPES[precision]))
        for precision in arguments.precision
    }
    others = {precision: transformers_model(model, config, DTYPES[precision]) for precision in arguments.precision}
    peers: dict[str, Callable[[], list[list[int]]]] = {}
    if arguments.vocabulary:
        for precision, kind in (("fp32", "float32"), ("int8", "int8")):
            peer = CTranslate2(
                transformers_model(model, config, torch.float32), config, arguments.vocabulary, kind, arguments.threads
            )
            peers[f"CTranslate2 {precision}"] = lambda peer=peer: peer(rows, shape.answer, end)
    equal: dict[str, float] = {}
    for _ in range(arguments.rounds):
        for precision in arguments.precision:
            of_precision = {
                f"transformers {precision}": lambda p=precision: theirs(others[p], rows, shape.answer, end),
                f"ours {precision}": lambda p=precision: ours(models[p], rows, shape.answer, end, arguments.rows),
            }
            beside = peers if precision == arguments.precision[0] else {}
            for label, work_of in {**of_precision, **beside}.items():
                taken, answers = timed(work_of)
                seconds.setdefault(label, []).append(taken)
                equal[label] = statistics.mean(a == b for a, b in zip(answers, expected, strict=True))
    for label, values in seconds.items():
        rate = matrix_rate(DTYPES.get(label.split()[1], torch.float32))
        print(
            f"{label:<24}{len(rows) / statistics.median(values):>12.1f}{work / rate / statistics.median(values):>12.0%}"
            f"{equal[label]:>15.0%}"
        )
    for precision in arguments.precision:
        for base in dict.fromkeys((f"transformers {precision}", "transformers fp32", *peers)):
            if base in seconds:
                ratios = [b / a for a, b in zip(seconds[f"ours {precision}"], seconds[base], strict=True)]
                print(
                    f"ours {precision} over {base}: {statistics.median(ratios):.2f} "
                    f"[{min(ratios):.2f} ... {max(ratios):.2f}]"
                )
    if arguments.profile:
        profile(lambda: ours(models[arguments.precision[-1]], rows, shape.answer, end, arguments.rows))


def _copy(model: T5, config: T5Config, dtype: torch.dtype) -> T5:
    copy = create_model(config)
    copy.load_state_dict(model.state_dict())
    assert isinstance(copy, T5)
    return copy.to(dtype).eval()


def profile(work: Callable[[], Any]) -> None:
    """The operators that take most of the time."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        work()
    events = sorted(found.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    for event in events[:20]:
        share = event.self_cpu_time_total
        print(f"{share / 1e3:10.1f} ms {share / total:6.1%}  {event.count:6d} x {event.key[:80]}")


def main() -> None:
    """Parse the command line and print a table for each shape."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shapes", nargs="+", choices=sorted(SHAPES), default=list(SHAPES))
    parser.add_argument("--size", choices=sorted(SIZES), default="small")
    parser.add_argument("--precision", nargs="+", choices=list(DTYPES), default=["fp32", "bf16"])
    parser.add_argument("--examples", type=int, help="fewer than a shape has")
    parser.add_argument("--rows", type=int, default=256, help="most rows of a batch of ours")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--vocabulary", help="a SentencePiece model, to measure CTranslate2 as well")
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for name in arguments.shapes:
        compare(name, arguments)


if __name__ == "__main__":
    main()
