"""Vocabularies follow T5's conventions, give T5's own ids, and train to the same bytes every time."""

from __future__ import annotations

import builtins
import pickle
from pathlib import Path

import numpy as np
import pytest

from mixtura.platform.data.vocabulary import Vocabulary, train_vocabulary, write_tokenizer_files
from mixtura.platform.errors import ConfigError, DataError

# English that every Python carries, of many words.
SENTENCES = [line for thing in vars(builtins).values() for line in str(thing.__doc__).splitlines() if line.strip()]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    return train_vocabulary(SENTENCES, tmp_path_factory.mktemp("small") / "spiece.model", 256)


@pytest.fixture(scope="module")
def t5(shared: Path) -> Vocabulary:
    return Vocabulary(shared / "data/vocab/t5/spiece.model")


def test_t5_ids_are_those_of_the_released_model(t5: Vocabulary) -> None:
    ids = [13959, 1566, 12, 2968, 10, 466, 19, 207, 5]
    assert t5.encode("translate English to German: That is good.") == ids
    assert t5.decode(ids) == "translate English to German: That is good."
    assert (t5.size, t5.embedding_rows) == (32_100, 32_128)


def test_t5_sentinels_count_down_from_the_highest_usable_id(t5: Vocabulary) -> None:
    assert [t5.sentinel(number) for number in (0, 1, 99)] == [32_099, 32_098, 32_000]
    assert t5.decode([32_099, 8, 1782, 32_098, 1, 5]) == "<extra_id_0> the dog <extra_id_1>"


def test_size_counts_pieces_and_sentinels_and_rows_are_rounded_up_to_128(small: Vocabulary, tmp_path: Path) -> None:
    assert (small.pieces, small.size, small.embedding_rows) == (156, 256, 256)
    assert train_vocabulary(SENTENCES, tmp_path / "v.model", 257).embedding_rows == 384


def test_padding_eos_and_unknown_are_0_1_2_and_there_is_no_bos(small: Vocabulary) -> None:
    assert [small.piece(number) for number in range(3)] == ["<pad>", "</s>", "<unk>"]
    assert small.encode("中")[-1] == small.unk_id
    assert not {small.pad_id, small.eos_id, small.unk_id} & set(small.encode("Return the string."))


def test_training_gives_the_same_bytes_every_time(small: Vocabulary, tmp_path: Path) -> None:
    again = train_vocabulary(iter(SENTENCES), tmp_path / "again.model", 256)
    assert again.path.read_bytes() == small.path.read_bytes()
    assert again.fingerprint == small.fingerprint


def test_a_long_text_is_sampled_the_same_way_every_time(tmp_path: Path) -> None:
    made = [
        train_vocabulary(SENTENCES, tmp_path / name, 200, training_bytes=8000).path.read_bytes() for name in ("a", "b")
    ]
    assert made[0] == made[1]


def test_no_line_is_too_long_for_the_trainer(tmp_path: Path) -> None:
    long = "x" * 10_000 + " ".join(SENTENCES) + " 猫" * 3000
    vocabulary = train_vocabulary([long], tmp_path / "long.model", 256, character_coverage=1.0)
    assert vocabulary.unk_id not in vocabulary.encode("猫 x")


def test_decoding_stops_at_eos_skips_padding_and_survives_unusable_ids(small: Vocabulary) -> None:
    ids = small.encode("the cat")
    assert small.decode([0, *ids, 0, 1, *ids]) == "the cat"
    assert "cat" in small.decode([*ids, small.size, small.embedding_rows + 5])


def test_marks_in_text_are_plain_text_unless_asked_for(small: Vocabulary) -> None:
    text = "the <extra_id_0> cat"
    assert max(small.encode(text)) < small.pieces
    assert small.sentinel(0) in small.encode(text, marks=True)
    assert small.decode(small.encode(text, marks=True)) == text


def test_batches_give_the_same_ids_as_single_texts(small: Vocabulary) -> None:
    for texts in (SENTENCES[:5], [*SENTENCES[:5], "", " ".join(SENTENCES)], ["", ""], []):
        for threads in (1, 2):
            batch = small.encode_batch(texts, threads=threads)
            assert batch.to_lists() == [small.encode(text) for text in texts]
            assert batch.values.dtype == np.int32


def test_half_of_a_surrogate_pair_is_no_text(small: Vocabulary) -> None:
    with pytest.raises(UnicodeError, match="surrogates not allowed"):
        small.encode_batch(["the cat", "half \ud800"])


def test_a_vocabulary_travels_to_another_process(small: Vocabulary) -> None:
    assert pickle.loads(pickle.dumps(small)).encode("the cat") == small.encode("the cat")


def test_bad_requests_are_answered(small: Vocabulary, tmp_path: Path, shared: Path) -> None:
    with pytest.raises(DataError, match="no vocabulary at"):
        Vocabulary(tmp_path / "absent.model")
    (tmp_path / "text.model").write_text("not a model")
    with pytest.raises(DataError, match="is not a SentencePiece model"):
        Vocabulary(tmp_path / "text.model")
    with pytest.raises(DataError, match="numbers 0 to 99"):
        small.sentinel(100)
    with pytest.raises(ConfigError, match="leaves 0 pieces"):
        train_vocabulary(SENTENCES, tmp_path / "v.model", 100)
    with pytest.raises(DataError, match="no vocabulary of 9900 pieces"):
        train_vocabulary(SENTENCES, tmp_path / "v.model", 10_000)
    with pytest.raises(DataError, match=r"T5 models have them at \(0, 1, 2\)"):
        Vocabulary(shared / "data/vocab/test_models/test_model.model")


@pytest.mark.parametrize("which", ["small", "t5"])
def test_transformers_reads_the_same_ids_from_the_files_beside_a_checkpoint(
    which: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    transformers = pytest.importorskip("transformers")
    vocabulary: Vocabulary = request.getfixturevalue(which)
    write_tokenizer_files(vocabulary, tmp_path)
    for reader in (transformers.AutoTokenizer, transformers.T5Tokenizer):
        tokenizer = reader.from_pretrained(tmp_path)
        assert len(tokenizer) == vocabulary.size
        for text in (*SENTENCES[:3], "Return the name.", "the <extra_id_0> cat <extra_id_7>", "  spaces\n and lines "):
            assert tokenizer(text).input_ids == [*vocabulary.encode(text, marks=True), vocabulary.eos_id]


def test_writing_beside_itself_keeps_the_model(small: Vocabulary) -> None:
    before = small.path.read_bytes()
    write_tokenizer_files(small, small.path.parent)
    assert small.path.read_bytes() == before


@pytest.fixture
def multilingual(small: Vocabulary, tmp_path: Path) -> Vocabulary:
    """A vocabulary of mT5's kind: its last hundred pieces are the sentinels."""
    protocol = pytest.importorskip("sentencepiece.sentencepiece_model_pb2")
    model = protocol.ModelProto()
    model.ParseFromString(small.path.read_bytes())
    for number in reversed(range(100)):
        model.pieces.add(piece=f"▁<extra_id_{number}>", score=0.0, type=protocol.ModelProto.SentencePiece.USER_DEFINED)
    (tmp_path / "spiece.model").write_bytes(model.SerializeToString())
    return Vocabulary(tmp_path / "spiece.model")


def test_sentinels_among_the_pieces_are_counted_once_and_never_come_from_text(
    multilingual: Vocabulary, small: Vocabulary
) -> None:
    assert (multilingual.pieces, multilingual.size, multilingual.extra_ids) == (small.pieces, small.size, 100)
    assert multilingual.sentinel(0) == multilingual.size - 1
    text = "Return the <extra_id_3> name."
    assert multilingual.encode(text, marks=True) == small.encode(text, marks=True)
    assert multilingual.decode(multilingual.encode(text, marks=True)) == small.decode(small.encode(text, marks=True))
    for ids in (multilingual.encode(text), *multilingual.encode_batch([text, text * 30]).to_lists()):
        assert max(ids) < multilingual.pieces
        assert multilingual.unk_id in ids
    assert multilingual.encode_batch(SENTENCES[:9]).to_lists() == small.encode_batch(SENTENCES[:9]).to_lists()


def test_transformers_adds_no_sentinels_to_those_among_the_pieces(multilingual: Vocabulary, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    write_tokenizer_files(multilingual, tmp_path)
    assert len(transformers.T5Tokenizer.from_pretrained(tmp_path)) == multilingual.size


def test_pieces_know_how_many_bytes_of_text_they_stand_for(t5: Vocabulary) -> None:
    text = "translate English to German: Das ist schön, für 3 €."
    ids = t5.encode(text)
    assert t5.unk_id not in ids
    assert t5.piece_bytes[ids].sum() == len(f" {text}".encode())  # pieces begin every text with a space
    assert t5.piece_bytes[[t5.pad_id, t5.eos_id, t5.sentinel(0), t5.sentinel(99)]].sum() == 0
    assert t5.piece_bytes[t5.unk_id] == 1
