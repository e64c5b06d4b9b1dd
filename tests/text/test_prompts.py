"""Prompts and other conditions as a person asks for them, and the frozen encoders behind texts."""

import importlib.util
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from ldm.batch import NULL, ClassAttribute, ConditionSchema, NumberAttribute, TextAttribute
from ldm.data.config import TextConditionConfig
from ldm.errors import CheckpointError, ConfigError, RequestError
from ldm.text.captions import attribute_of
from ldm.text.encoder import encoded, open_encoder
from ldm.text.prompts import PromptEncoders
from tests.support.word_vectors import WORDS, word_vectors

LABEL, ANGLE = ClassAttribute("label", ("cat", "dog")), NumberAttribute("angle", 0.0, 1.0, 0.0, 360.0, 360.0)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return word_vectors(tmp_path_factory.mktemp("words"))


@pytest.fixture(scope="module")
def text(words: Path) -> TextAttribute:
    config = TextConditionConfig(encoder=str(words), length=3, layers=1, channels=8)
    return replace(attribute_of("text", config, open_encoder(str(words))), encoder=str(words))


@pytest.fixture
def prompts(text: TextAttribute) -> PromptEncoders:
    return PromptEncoders(ConditionSchema((LABEL, ANGLE, text)))


def test_one_value_holds_for_all_and_what_is_not_asked_for_is_left_out(prompts: PromptEncoders) -> None:
    found = prompts.request(conditions={"angle": [0, 90.5, "180"]}, prompt="a red cat").values
    assert found["label"].tolist() == [NULL] * 3 and found["angle"].tolist() == [0.0, 90.5, 180.0]
    assert found["text"].shape == (3, 3, 6) and found["text"][0].equal(found["text"][2])
    only = prompts.request("dog", {"angle": torch.tensor(45.0)}).values
    assert only["label"].tolist() == [1] and only["angle"].tolist() == [45.0] and only["text"].isnan().all()


def test_a_request_for_nothing_takes_the_classes_in_turn_or_nothing_at_all(text: TextAttribute) -> None:
    assert PromptEncoders(ConditionSchema((LABEL, ANGLE))).request().values["label"].tolist() == [0, 1]
    nothing = PromptEncoders(ConditionSchema((ANGLE, text))).request().values
    assert nothing["angle"].isnan().all() and nothing["text"].isnan().all() and len(nothing["angle"]) == 1
    assert not PromptEncoders(ConditionSchema()).request().values


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"conditions": {"angle": math.nan}}, "angle nan must be a finite number"),
        ({"conditions": {"angle": 1e39}}, r"angle 1e\+39 must be a finite number, of at most 3.4e\+38"),
        ({"conditions": {"angle": 10**400}}, "angle inf must be a finite number"),
        ({"conditions": {"angle": "north"}}, "angle 'north' is not a number"),
        ({"conditions": {"label": "cow"}}, "label cow is not a class of this model: cat, dog"),
        ({"labels": "cow"}, "labels cow is not a class"),
        ({"labels": "cat", "conditions": {"label": "dog"}}, "labels and label are the same condition"),
        ({"conditions": {"tone": "dark"}}, "tone is no condition of this model; its conditions: label, angle, text"),
        ({"labels": ["cat", "dog"], "conditions": {"angle": [1, 2, 3]}}, "labels? has 2 values beside 3 of another"),
        ({"conditions": {"angle": []}}, "angle asks for nothing"),
        ({"prompt": 7}, "text 7 is not a text"),
        ({"prompt": "zebra"}, "prompt 'zebra' has no word that the text encoder .* knows"),
    ],
)
def test_an_impossible_request_is_refused_in_one_line(prompts: PromptEncoders, given: dict, message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        prompts.request(**given)
    assert "\n" not in str(caught.value)


def test_a_prompt_for_a_model_without_text_is_refused() -> None:
    with pytest.raises(RequestError, match=r"prompt needs a model trained on captions; its conditions: label"):
        PromptEncoders(ConditionSchema((LABEL,))).request(prompt="a cat")


def test_static_embeddings_are_the_rows_of_the_words_in_order_cut_and_closed_by_nan(words: Path) -> None:
    encoder = open_encoder(str(words))
    found = encoded(encoder, ["Red, CAT", "a red zebra left of a blue disc", " "], 4)
    assert found.dtype == torch.float16 and found.isnan().all(2).tolist() == [
        [False, False, True, True],
        [False] * 4,
        [True] * 4,
    ]
    table, order = encoder.table.half(), [0, 3, 7, 8]
    assert found[0, :2].equal(table[[3, 1]]) and found[1].equal(table[order])


def test_an_exported_encoder_is_the_same_and_another_one_is_refused(words, text, tmp_path: Path) -> None:
    schema = ConditionSchema((text,))
    PromptEncoders(schema).save(tmp_path)
    moved = PromptEncoders(ConditionSchema((replace(text, encoder="nowhere"),)), tmp_path)
    here, there = (each.request(prompt="a cat").values["text"] for each in (PromptEncoders(schema), moved))
    assert torch.allclose(here, there, rtol=0, atol=0, equal_nan=True)
    word_vectors(tmp_path / "other", seed=1)
    other = replace(text, encoder=str(tmp_path / "other"))
    with pytest.raises(CheckpointError, match="is another one than the model was trained with"):
        PromptEncoders(ConditionSchema((other,))).request(prompt="a cat")


def test_an_encoder_that_is_not_there_is_refused_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"wordllama is not installed: pip install '.*text"):
        open_encoder("wordllama")
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(ConfigError, match="pip install transformers; or use the encoder wordllama"):
        open_encoder(str(tmp_path / "nowhere"))


def test_wordllama_is_read_without_its_loader_and_knows_which_words_are_alike() -> None:
    pytest.importorskip("tokenizers", reason="wordllama needs tokenizers")
    if importlib.util.find_spec("wordllama") is None:
        pytest.skip("wordllama is not installed")
    encoder = open_encoder("wordllama")
    puppy, dog, flag = (each.nanmean(0) for each in encoded(encoder, ["a puppy", "a dog", "a flag"], 8).float())
    similar = torch.cosine_similarity
    assert encoder.width == 256 and similar(puppy, dog, dim=0) > similar(puppy, flag, dim=0) + 0.1


def tiny_clip(transformers: Any) -> Any:
    config = transformers.CLIPTextConfig(
        vocab_size=12, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    return transformers.CLIPTextModel(config)


def tiny_t5(transformers: Any) -> Any:
    config = transformers.T5Config(vocab_size=12, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    return transformers.T5EncoderModel(config)


def tiny_bert(transformers: Any) -> Any:
    config = transformers.BertConfig(
        vocab_size=12, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    return transformers.BertModel(config)


@pytest.mark.parametrize("tiny", [tiny_clip, tiny_t5, tiny_bert])
def test_a_random_text_encoder_of_transformers_embeds_and_moves(tiny: Callable[[Any], Any], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    vocabulary = {word: number for number, word in enumerate(["[UNK]", "[PAD]", "a", "cat", "dog", "red"])}
    model = tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]")
    whole = tokenizers.Tokenizer(model)
    whole.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=whole, unk_token="[UNK]", pad_token="[PAD]")
    tiny(transformers).save_pretrained(tmp_path / "first")
    fast.save_pretrained(tmp_path / "first")
    encoder = open_encoder(str(tmp_path / "first"))
    found = encoded(encoder, ["a red cat", "a dog"], 4)
    assert found.shape == (2, 4, 8) and found.isnan().all(2).sum(1).tolist() == [1, 2] and encoder.is_small
    encoder.save(tmp_path / "again")
    again = open_encoder(str(tmp_path / "again"))
    assert again.sha256 == encoder.sha256
    assert torch.allclose(encoded(again, ["a dog"], 4)[0], found[1], equal_nan=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("9 6\n" + "\n".join(WORDS), "words.txt has 10 lines, and the table .* 9 rows"),
        ("\n".join(WORDS[1:]), "words.txt has 8 lines, and the table .* 9 rows"),
        ("\n".join([*WORDS[1:], "b\u00e4r"]).encode("latin-1"), "words.txt is not in UTF-8"),
    ],
    ids=["a heading", "one word less", "not UTF-8"],
)
def test_words_beside_another_number_of_embeddings_are_no_traceback_and_no_other_words(
    tmp_path: Path, content: str | bytes, message: str
) -> None:
    folder = word_vectors(tmp_path)
    (folder / "words.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CheckpointError, match=message) as caught:
        open_encoder(str(folder))
    assert "\n" not in str(caught.value)


def test_a_line_separator_that_is_a_word_does_not_shift_all_words_behind_it(tmp_path: Path) -> None:
    folder = word_vectors(tmp_path)
    before = encoded(open_encoder(str(folder)), ["left"], 1)
    (folder / "words.txt").write_text("\n".join(["\u2028", "\x85", *WORDS[2:]]) + "\n", encoding="utf-8")
    assert encoded(open_encoder(str(folder)), ["left"], 1).equal(before)


def test_a_word_is_not_taken_for_the_same_one_in_capitals(tmp_path: Path) -> None:
    folder = word_vectors(tmp_path)
    before = encoded(open_encoder(str(folder)), ["Cat"], 1)
    (folder / "words.txt").write_text("\n".join([*WORDS[:-2], "CAT", "Cat"]) + "\n")
    assert encoded(open_encoder(str(folder)), ["Cat"], 1).equal(before)


@pytest.mark.parametrize("value", [math.nan, 1e6])
def test_an_embedding_that_float16_cannot_hold_does_not_become_an_infinite_or_a_missing_word(
    tmp_path: Path, value: float
) -> None:
    folder = word_vectors(tmp_path)
    safetensors.torch.save_file({"embedding": torch.full((len(WORDS), 6), value)}, folder / "vectors.safetensors")
    with pytest.raises(CheckpointError, match="gives numbers for 'a cat' that float16 cannot hold"):
        encoded(open_encoder(str(folder)), ["a cat"], 2)


def test_a_damaged_table_beside_a_tokenizer_is_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ConfigError, match="transformers"):
        open_encoder(str(tmp_path))
