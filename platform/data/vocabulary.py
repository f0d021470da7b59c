"""SentencePiece vocabularies with T5's conventions.

    0        padding
    1        end of sequence, `</s>`
    2        unknown
    3 ...    pieces (unigram model)
    ...      sentinels, counting down: <extra_id_0> is the highest usable id

T5's own vocabulary has 32,000 pieces and 100 sentinels: 32,100 usable ids, <extra_id_0> = 32,099, and an embedding of
32,128 rows, because rows are rounded up to a multiple of 128 (Raffel et al. 2020, section 3.1.1; the released code).
mT5's has its sentinels among the pieces, in the same order: 250,100 ids, <extra_id_0> = 250,099 (Xue et al. 2021).
There is no BOS and no byte fallback: characters that were not covered in training become the unknown id, and the
`nmt_nfkc` normalisation turns newlines and tabs into spaces.
"""

from __future__ import annotations

import functools
import io
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from mixtura.platform.data.ragged import Int64, Ragged, offsets_of
from mixtura.platform.errors import ConfigError, DataError
from mixtura.platform.files import write_bytes_atomically, write_json_atomically, xxh3_128
from mixtura.platform.random_bits import key, order

PAD_ID, EOS_ID, UNK_ID = 0, 1, 2
EXTRA_IDS = 100
ROWS_MULTIPLE = 128
"""Embeddings are cut along the vocabulary by tensor parallelism and by matrix units: T5 rounds to this multiple."""

_MARK = re.compile(r"<extra_id_(\d+)>")
_MAX_LINE_BYTES = 4000  # SentencePiece's trainer silently leaves out sentences of more than 4192 bytes
_TRAINING_BYTES = 8_000_000
_LONG_TEXT_CHARACTERS = 120
_SPACE = "▁"
"""How pieces write a space."""


class Vocabulary:
    """Text to ids and back.

    `size` counts the usable ids (pieces and sentinels); `embedding_rows` is what a model allocates for them.
    """

    pad_id, eos_id, unk_id = PAD_ID, EOS_ID, UNK_ID

    def __init__(self, path: str | Path, extra_ids: int = EXTRA_IDS) -> None:
        from sentencepiece import SentencePieceProcessor

        self.path = Path(path)
        if not self.path.is_file():
            raise DataError(f"no vocabulary at {self.path}: give the path of a SentencePiece model (spiece.model)")
        try:
            self._pieces = SentencePieceProcessor(model_file=str(self.path))
        except RuntimeError as error:
            raise DataError(f"{self.path} is not a SentencePiece model: {error}") from error
        self.own_sentinels = self._count_own_sentinels()
        self.extra_ids = self.own_sentinels or extra_ids
        self.pieces: int = self._pieces.get_piece_size() - self.own_sentinels
        self.size = self.pieces + self.extra_ids
        self.embedding_rows = -(-self.size // ROWS_MULTIPLE) * ROWS_MULTIPLE
        self._check_conventions()

    def __reduce__(self) -> tuple[Any, ...]:
        return Vocabulary, (str(self.path), self.extra_ids)

    def __len__(self) -> int:
        return self.size

    @property
    def fingerprint(self) -> str:
        """The xxh3-128 digest of the model file."""
        return xxh3_128(self.path)

    def encode(self, text: str, *, marks: bool = False) -> list[int]:
        """The ids of a text, without EOS.

        With `marks`, the text's `<extra_id_0>` ... become sentinels. It is off by default, so that text from outside
        cannot put sentinels into training data.
        """
        ids: list[int] = []
        for position, part in enumerate(_MARK.split(text) if marks else [text]):
            if position % 2:
                ids.append(self.sentinel(int(part)))
            else:
                ids += [number if number < self.pieces else self.unk_id for number in self._pieces.encode(part)]
        return ids

    def encode_batch(self, texts: Sequence[str], *, threads: int = 1) -> Ragged:
        """The ids of many texts, without EOS, in one call of the library.

        Raises UnicodeError where a text holds half of a surrogate pair, which no encoding of text can hold.
        """
        texts = list(texts)
        # The library gives a buffer for each text (1 us each) or a Python list (30 ns an id): what costs less.
        as_buffers = sum(map(len, texts)) > _LONG_TEXT_CHARACTERS * len(texts)
        try:
            ids = self._pieces.encode(texts, num_threads=threads, return_type="numpy" if as_buffers else int)
        except TypeError as error:
            "".join(texts).encode()
            raise error
        offsets = offsets_of(np.fromiter(map(len, ids), np.int64, len(ids)))
        if as_buffers:
            values = np.concatenate(ids)
        else:
            values = np.fromiter(chain.from_iterable(ids), np.int32, int(offsets[-1]))
        if self.own_sentinels:
            values = np.where(values < self.pieces, values, self.unk_id).astype(np.int32)
        return Ragged(values, offsets)

    def decode(self, ids: Iterable[int]) -> str:
        """Text up to the first EOS. Padding is skipped, sentinels print as `<extra_id_0>`, unusable ids as unknown."""
        words: list[str] = []
        run: list[int] = []
        for number in map(int, ids):
            if number == self.eos_id:
                break
            if self.pieces <= number < self.size:
                words += [self._pieces.decode(run), f"<extra_id_{self.size - 1 - number}>"]
                run = []
            elif number != self.pad_id:
                run.append(number if number < self.pieces else self.unk_id)
        return " ".join(word for word in (*words, self._pieces.decode(run)) if word)

    def piece(self, number: int) -> str:
        """How one id is written, for looking at token lists: `▁the`, `<extra_id_3>`, `</s>`."""
        if self.pieces <= number < self.size:
            return f"<extra_id_{self.size - 1 - number}>"
        return str(self._pieces.id_to_piece(number)) if number < self.pieces else f"<unused_{number}>"

    @functools.cached_property
    def piece_bytes(self) -> Int64:
        """The UTF-8 bytes of text that each id stands for, [size]: none for padding, EOS and sentinels, one for an
        unknown piece, of which nothing more is known."""
        table = np.zeros(self.size, dtype=np.int64)
        for number in range(self.pieces):
            if self._pieces.is_byte(number) or number == self.unk_id:
                table[number] = 1
            elif not self._pieces.is_control(number):
                table[number] = len(self._pieces.id_to_piece(number).replace(_SPACE, " ").encode())
        return table

    def sentinel(self, number: int) -> int:
        """The id of the mark of removed span `number`, from 0: they count down from the highest usable id."""
        if not 0 <= number < self.extra_ids:
            raise DataError(
                f"sentinel {number} was asked for, but {self.path.name} has {self.extra_ids}: "
                f"numbers 0 to {self.extra_ids - 1}; use shorter inputs or longer spans"
            )
        return self.size - 1 - number

    def _count_own_sentinels(self) -> int:
        """How many of the last pieces are sentinels: <extra_id_0> is the very last one then."""
        last = int(self._pieces.get_piece_size()) - 1
        return next(
            number
            for number in range(last + 2)
            if number > last or self._pieces.id_to_piece(last - number).lstrip("▁") != f"<extra_id_{number}>"
        )

    def _check_conventions(self) -> None:
        found = (self._pieces.pad_id(), self._pieces.eos_id(), self._pieces.unk_id())
        if found != (PAD_ID, EOS_ID, UNK_ID):
            raise DataError(
                f"{self.path} has pad, EOS and unknown at {found}, but T5 models have them at (0, 1, 2): "
                "train one with `mixtura vocabulary train`"
            )


def train_vocabulary(
    texts: Iterable[str],
    path: str | Path,
    size: int,
    *,
    extra_ids: int = EXTRA_IDS,
    character_coverage: float = 0.9995,
    training_bytes: int = _TRAINING_BYTES,
) -> Vocabulary:
    """Train a unigram model on texts and write it to `path`; the same texts always give the same bytes.

    `size` counts the usable ids: `size - extra_ids` pieces are trained. A size of 4096 needs 4096 embedding rows.
    Of more than `training_bytes` of text, lines are taken by a fixed pseudo-random order until that much is reached.
    """
    from sentencepiece import SentencePieceTrainer

    if size - extra_ids < 10:
        raise ConfigError(f"a vocabulary of {size} ids leaves {size - extra_ids} pieces beside {extra_ids} sentinels")
    lines = _chosen_lines(list(_lines(texts)), training_bytes)
    model = io.BytesIO()
    try:
        SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            model_type="unigram",
            vocab_size=size - extra_ids,
            pad_id=PAD_ID,
            eos_id=EOS_ID,
            unk_id=UNK_ID,
            bos_id=-1,
            pad_piece="<pad>",
            character_coverage=character_coverage,
            normalization_rule_name="nmt_nfkc",
            num_threads=1,  # EM adds floats in the order of threads: with one, the bytes are the same every time
            shuffle_input_sentence=False,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise DataError(
            f"no vocabulary of {size - extra_ids} pieces can be trained on {len(lines)} lines of text: {error}"
        ) from error
    write_bytes_atomically(Path(path), model.getvalue())
    return Vocabulary(path, extra_ids)


def write_tokenizer_files(vocabulary: Vocabulary, directory: str | Path) -> list[Path]:
    """Put a vocabulary beside a checkpoint as `transformers` expects it, and return what was written.

    `AutoTokenizer.from_pretrained(directory)` then gives the same ids, followed by EOS. Only where two ways to cut a
    word have exactly the same score (runs of one symbol: `********`) may the two libraries choose differently.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    model, config = directory / "spiece.model", directory / "tokenizer_config.json"
    if not (model.exists() and model.samefile(vocabulary.path)):
        shutil.copyfile(vocabulary.path, model)
    write_json_atomically(config, tokenizer_config(vocabulary))
    return [model, config]


def tokenizer_config(vocabulary: Vocabulary) -> dict[str, Any]:
    """What tokenizer_config.json says of a vocabulary: of its sentinels those that are not among the pieces."""
    added = vocabulary.extra_ids - vocabulary.own_sentinels
    return {
        "tokenizer_class": "T5Tokenizer",
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "extra_ids": added,
        "additional_special_tokens": [f"<extra_id_{number}>" for number in range(added)],
    }


def _lines(texts: Iterable[str]) -> Iterator[str]:
    """The non-empty lines of texts; a line too long for the trainer is cut between words where it can be."""
    for text in texts:
        for line in text.splitlines():
            yield from _cut(line.strip())


def _cut(line: str) -> Iterator[str]:
    characters = _MAX_LINE_BYTES // 4  # no character has more than four bytes
    while len(line.encode()) > _MAX_LINE_BYTES:
        at = line.rfind(" ", 1, characters)
        at = characters if at < 0 else at
        yield line[:at]
        line = line[at:].lstrip()
    if line:
        yield line


def _chosen_lines(lines: list[str], limit_bytes: int) -> list[str]:
    sizes = np.array([len(line.encode()) for line in lines], dtype=np.int64)
    if sizes.sum() <= limit_bytes:
        return lines
    by_chance = order(key("vocabulary", "lines"), len(lines))
    taken = by_chance[np.cumsum(sizes[by_chance]) <= limit_bytes]
    return [lines[position] for position in np.sort(taken)]
