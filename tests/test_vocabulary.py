"""Vocabulary pruning on tokenizers of the three kinds, trained on a few sentences: what stays exact, what follows."""

from __future__ import annotations

import copy
import json
import string
from typing import Any

import pytest
import torch
from project import WORDS, text_project
from tiny import make
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import nn
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertTokenizerFast,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
    RobertaTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    TrainingArguments,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
    XLMRobertaTokenizerFast,
)

from hfcompress import HFCompressTrainer, QuantizeWeightsConfig, VocabularyConfig, compress, run_recipe
from hfcompress.checkpoint import load_model, save_checkpoint
from hfcompress.core.errors import LifecycleError, TargetError
from hfcompress.core.lifecycle import Lifecycle
from hfcompress.core.method import Corpus
from hfcompress.core.registry import create
from hfcompress.measure.batches import read_batches
from hfcompress.measure.result import read_result
from hfcompress.modules.tokens import follow_tokenizer_, token_layers, tokens_of
from hfcompress.ops.tokens import Tokens
from hfcompress.recipe.load import load_recipe
from hfcompress.run.folder import RunFolder
from hfcompress.run.reporter import Reporter
from hfcompress.run.setup import open_recipe
from hfcompress.run.staging import run_stages
from hfcompress.run.state import Run

CORPUS = [
    "a warm and funny film about a quiet town",
    "the plot is thin , the acting is not",
    "funny , warm , and never too long !",
    "no film this year is warmer or funnier",
]
REST = [
    "an unbearable exercise in directionless misery",
    "spectacular spectacle of spectacularly wasted talents",
    "overlong undernourished underwritten overacted",
    "brightest brightness outshining shining lights",
    f"{string.ascii_lowercase} {string.ascii_uppercase} {string.digits}",
    " ".join(string.printable.strip()),
    "日本 語 über naïve",
]
OTHER = ["Brightest underwritten talents ?", "misery 42 & zebra's #1 %", "x_y-z~{q}", "wasted spectacle funny film"]
NETWORK: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 80,
    "num_labels": 3,
    "initializer_range": 0.2,
}


def _trained(model: Any, trainer: Any, pre: Any, normalizer: Any = None) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.train_from_iterator([*CORPUS, *REST] * 3, trainer)
    return tokenizer


def _state(tokenizer: Tokenizer) -> dict[str, Any]:
    return json.loads(tokenizer.to_str())["model"]


def wordpiece() -> tuple[Any, nn.Module]:
    special = ["[PAD]", "[unused]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    pre, lower = pre_tokenizers.BertPreTokenizer(), normalizers.BertNormalizer(lowercase=True)
    made = _trained(models.WordPiece(unk_token="[UNK]"), trainer, pre, lower)
    tokenizer = BertTokenizerFast(vocab=_state(made)["vocab"])
    return tokenizer, BertForSequenceClassification(_config(BertConfig, tokenizer)).eval()


def bpe() -> tuple[Any, nn.Module]:
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=480, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    made = _state(_trained(models.BPE(), trainer, pre_tokenizers.ByteLevel(add_prefix_space=False)))
    tokenizer = RobertaTokenizerFast(vocab=made["vocab"], merges=[tuple(m) for m in made["merges"]])
    return tokenizer, RobertaForSequenceClassification(_config(RobertaConfig, tokenizer)).eval()


def unigram() -> tuple[Any, nn.Module]:
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=250, special_tokens=special, unk_token="<unk>", show_progress=False, shrinking_factor=0.9
    )
    made = _state(_trained(models.Unigram(), trainer, pre_tokenizers.Metaspace()))
    tokenizer = XLMRobertaTokenizerFast(vocab=[(w, s) for w, s in made["vocab"]])
    return tokenizer, XLMRobertaForSequenceClassification(_config(XLMRobertaConfig, tokenizer)).eval()


def generic() -> tuple[Any, nn.Module]:
    """A byte-level tokenizer without a class of its own, its special tokens last, and a tied language model."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=470, initial_alphabet=alphabet, show_progress=False)
    made = _trained(models.BPE(), trainer, pre_tokenizers.ByteLevel(add_prefix_space=False))
    made.add_special_tokens(["<|end|>"])
    end = made.token_to_id("<|end|>")
    made.post_processor = processors.Sequence(
        [
            processors.ByteLevel(),
            processors.TemplateProcessing(single="$A <|end|>", special_tokens=[("<|end|>", end)]),
        ]
    )
    made.decoder = decoders.ByteLevel()
    made.enable_padding(pad_id=end, pad_token="<|end|>")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="<|end|>", bos_token="<|end|>", pad_token="<|end|>"
    )
    ids = {"eos_token_id": end, "bos_token_id": end, "pad_token_id": end}
    config = GPT2Config(vocab_size=end + 5, n_embd=16, n_layer=2, n_head=2, n_positions=80, **ids)
    return tokenizer, GPT2LMHeadModel(config).eval()


def _config(cls: Any, tokenizer: Any) -> Any:
    return cls(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **NETWORK)


KINDS = {f.__name__: f for f in (wordpiece, bpe, unigram, generic)}


@pytest.fixture(params=KINDS, scope="module")
def kind(request) -> tuple[Any, nn.Module]:
    torch.manual_seed(0)
    tokenizer, model = KINDS[request.param]()
    return tokenizer, model.eval()


def pruned(kind: tuple[Any, nn.Module], **settings: Any) -> tuple[Any, nn.Module]:
    tokenizer, model = copy.deepcopy(kind)
    compress(model, VocabularyConfig(**settings), processor=tokenizer, texts=CORPUS)
    return tokenizer, model


@torch.no_grad()
def answers(kind: tuple[Any, nn.Module], texts: list[str]) -> torch.Tensor:
    tokenizer, model = kind
    return model(**tokenizer(texts, padding=True, return_tensors="pt")).logits


def words(tokenizer: Any, text: str) -> list[str]:
    return tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])


def test_text_of_the_corpus_gives_the_same_logits(kind):
    small = pruned(kind)
    assert len(small[0]) < 0.9 * len(kind[0])
    assert small[1].config.vocab_size == small[1].get_input_embeddings().num_embeddings == len(small[0])
    before, after = answers(kind, CORPUS), answers(small, CORPUS)
    if small[1].get_output_embeddings() is not None:  # a language model has a logit per token
        old = kind[0].get_vocab()
        before = before[..., [old[token] for token in small[0].convert_ids_to_tokens(range(len(small[0])))]]
    assert torch.equal(before, after)
    assert all(words(kind[0], text) == words(small[0], text) for text in CORPUS)


def test_other_text_still_tokenizes(kind):
    tokenizer, model = pruned(kind)
    for text in OTHER:
        before, after = words(kind[0], text), words(tokenizer, text)
        assert before.count(tokenizer.unk_token) >= after.count(tokenizer.unk_token), text
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == kind[0].decode(kind[0](text)["input_ids"])
    assert torch.isfinite(answers((tokenizer, model), OTHER)).all()


def test_saved_and_loaded_it_is_the_same(kind, tmp_path):
    tokenizer, model = pruned(kind)
    folder = save_checkpoint(model, tmp_path / "small", tokenizer)
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    loaded = load_model(folder, type(model).__name__)
    again = AutoTokenizer.from_pretrained(folder)
    assert again.get_vocab() == tokenizer.get_vocab()
    assert [again(t)["input_ids"] for t in CORPUS + OTHER] == [tokenizer(t)["input_ids"] for t in CORPUS + OTHER]
    assert torch.allclose(answers((again, loaded), CORPUS), answers((tokenizer, model), CORPUS), atol=1e-6)
    files = {"a": (kind[1], kind[0]), "b": (model, tokenizer)}
    sizes = {k: save_checkpoint(copy.deepcopy(m), tmp_path / k, t) for k, (m, t) in files.items()}
    for file in ("model.safetensors", "tokenizer.json"):
        assert (sizes["b"] / file).stat().st_size < (sizes["a"] / file).stat().st_size


def test_ids_in_the_configs_follow(kind):
    tokenizer, model = copy.deepcopy(kind)
    for name in ("pad", "eos", "bos"):
        for config in filter(None, (model.config, getattr(model, "generation_config", None))):
            setattr(config, f"{name}_token_id", getattr(tokenizer, f"{name}_token_id"))
    model.config.eos_token_id = [tokenizer.eos_token_id or 0]
    tokenizer, model = pruned((tokenizer, model))
    for config in filter(None, (model.config, getattr(model, "generation_config", None))):
        assert config.pad_token_id == tokenizer.pad_token_id and config.bos_token_id == tokenizer.bos_token_id
    assert model.config.eos_token_id == [tokenizer.eos_token_id or 0]
    assert model.get_input_embeddings().padding_idx in (None, tokenizer.pad_token_id)


@pytest.mark.parametrize("tied", [True, False])
def test_the_output_layer_shrinks_with_its_bias_and_stays_tied(tied, tmp_path):
    tokenizer, _ = wordpiece()
    torch.manual_seed(0)
    config = _config(BertConfig, tokenizer)
    config.tie_word_embeddings = tied
    model = BertForMaskedLM(config).eval()
    nn.init.normal_(model.cls.predictions.bias)
    small = pruned((tokenizer, model))
    head = small[1].cls.predictions
    old = tokenizer.get_vocab()
    columns = [old[token] for token in small[0].convert_ids_to_tokens(range(len(small[0])))]
    assert torch.equal(answers((tokenizer, model), CORPUS)[..., columns], answers(small, CORPUS))
    assert head.bias.shape == head.decoder.bias.shape == (len(small[0]),)
    assert (head.bias is head.decoder.bias) == tied
    assert (head.decoder.weight is small[1].get_input_embeddings().weight) == tied
    loaded = load_model(save_checkpoint(small[1], tmp_path / "m", small[0]), "AutoModelForMaskedLM")
    assert torch.allclose(answers((small[0], loaded), CORPUS), answers(small, CORPUS), atol=1e-6)


def test_an_encoder_decoder_keeps_its_ties_and_start_token():
    tokenizer, _ = unigram()
    torch.manual_seed(0)
    start = tokenizer.convert_tokens_to_ids("▁film") if "▁film" in tokenizer.get_vocab() else tokenizer.mask_token_id
    ids = {"pad_token_id": 1, "decoder_start_token_id": tokenizer.mask_token_id}
    assert start is not None
    config = T5Config(vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, **ids)
    model = T5ForConditionalGeneration(config).eval()
    small = pruned((tokenizer, model))
    shared = small[1].shared.weight
    assert small[1].encoder.embed_tokens.weight is shared and small[1].decoder.embed_tokens.weight is shared
    assert small[1].config.decoder_start_token_id == small[0].mask_token_id
    assert small[1].encoder.config.vocab_size == len(small[0])
    with torch.no_grad():
        before, after = (
            m.encoder(**t(CORPUS, padding=True, return_tensors="pt")).last_hidden_state
            for t, m in ((tokenizer, model), small)
        )
    assert torch.equal(before, after)


def test_an_unknown_word_stays_unknown():
    # Longest match first: "abx" begins with "ab" and then finds no "##x". Were "ab" gone, "a" and "##bx" would match.
    known = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "c", "ab", "##bx", "unused", "tokens"]
    tokenizer = BertTokenizerFast(vocab={word: i for i, word in enumerate(known)})
    model = BertForSequenceClassification(_config(BertConfig, tokenizer))
    assert words(tokenizer, "abx cbx") == ["[CLS]", "[UNK]", "c", "##bx", "[SEP]"]
    compress(model, VocabularyConfig(), processor=tokenizer, texts=["abx cbx"])
    assert words(tokenizer, "abx cbx") == ["[CLS]", "[UNK]", "c", "##bx", "[SEP]"]
    assert len(tokenizer) == len(known) - 2


def test_unigram_keeps_the_piece_that_sets_the_penalty_of_unknown_characters():
    vocab = [["<unk>", 0.0], ["a", -1.0], ["rare", -9.0], ["rarer", -8.0]]
    tokens = Tokens({"model": {"type": "Unigram", "unk_id": 0, "vocab": vocab}, "added_tokens": []})
    assert tokens.fixed() == {"<unk>", "rare"}


def test_every_merge_on_the_way_to_a_kept_token_is_kept():
    tokenizer, model = bpe()
    tokens = tokens_of(tokenizer)
    long = max(tokens.words, key=len)
    assert len(long) > 4 and all(tokens.parts(part) <= tokens.parts(long) for part in tokens.parts(long))
    small, _ = pruned((tokenizer, model), extra=["spectacular"])
    assert words(small, "spectacular") == words(tokenizer, "spectacular")
    assert len(small) > len(pruned((tokenizer, model))[0])


def test_settings_choose_how_many():
    kind = wordpiece()
    whole = len(pruned(kind)[0])
    rare, _ = pruned(kind, min_count=2)
    assert len(rare) < whole and "funny" in rare.get_vocab() and "quiet" not in rare.get_vocab()
    assert len(pruned(kind, keep=whole + 20)[0]) == whole + 20
    assert len(pruned(kind, keep=0.8)[0]) == int(0.8 * len(kind[0]))
    assert "日" not in pruned(kind)[0].get_vocab()
    assert {"日", "##b", "b"} <= pruned(kind, characters="all")[0].get_vocab().keys()


def test_ids_alone_are_a_corpus_and_so_is_a_file(tmp_path):
    tokenizer, model = wordpiece()
    batch = dict(tokenizer(CORPUS, padding=True, return_tensors="pt"))
    one = copy.deepcopy((tokenizer, model))
    compress(one[1], VocabularyConfig(), processor=one[0], calibration=[batch])
    assert one[0].get_vocab() == pruned((tokenizer, model))[0].get_vocab()
    (tmp_path / "corpus.txt").write_text("\n".join(CORPUS))
    two = copy.deepcopy((tokenizer, model))
    compress(two[1], VocabularyConfig(corpus=str(tmp_path / "corpus.txt")), processor=two[0])
    assert two[0].get_vocab() == one[0].get_vocab()


def test_it_shares_a_stage_with_quantization(tmp_path):
    tokenizer, model = wordpiece()
    compress(model, [VocabularyConfig(), QuantizeWeightsConfig()], processor=tokenizer, texts=CORPUS)
    assert model.get_input_embeddings().num_embeddings == len(tokenizer)
    loaded = load_model(save_checkpoint(model, tmp_path / "m", tokenizer), "AutoModelForSequenceClassification")
    assert torch.allclose(answers((tokenizer, loaded), CORPUS), answers((tokenizer, model), CORPUS), atol=1e-6)


def test_the_report_is_what_a_count_gives():
    tokenizer, model = wordpiece()
    lifecycle = Lifecycle([create("vocabulary", {"min_count": 2})], training=False)
    before = [i for row in tokenizer(CORPUS, add_special_tokens=False)["input_ids"] for i in row]
    texts = tokenizer.convert_ids_to_tokens(before)
    rows = len(tokenizer)
    lifecycle.prepare(model, processor=tokenizer, corpus=Corpus(lambda: CORPUS))
    (report,) = lifecycle.finalize(model).values()
    covered = sum(token in tokenizer.get_vocab() for token in texts) / len(texts)
    assert report == {"tokens_before": rows, "tokens_after": len(tokenizer), "corpus_covered": covered}


def test_a_model_with_the_old_tokenizer_follows():
    tokenizer, teacher = wordpiece()
    small, _ = pruned((tokenizer, teacher))
    before = answers((tokenizer, teacher), CORPUS)
    assert follow_tokenizer_(teacher, tokenizer, small)
    assert torch.equal(answers((small, teacher), CORPUS), before)
    assert not follow_tokenizer_(teacher, small, copy.deepcopy(small))


def _lifecycle(**given: Any) -> None:
    Lifecycle([create("vocabulary", {})], training=False).prepare(**given)


def test_what_cannot_be_is_refused(tmp_path):
    tokenizer, model = wordpiece()
    with pytest.raises(LifecycleError, match="pass processor="):
        compress(model, VocabularyConfig(), texts=CORPUS)
    with pytest.raises(LifecycleError, match="no corpus"):
        compress(model, VocabularyConfig(), processor=tokenizer)
    with pytest.raises(TargetError, match="takes images, not tokens"):
        compress(make("vit"), VocabularyConfig(), processor=object(), texts=CORPUS)
    with pytest.raises(TargetError, match="not a fast tokenizer"):
        compress(make("bert"), VocabularyConfig(), processor=object(), texts=CORPUS)
    with pytest.raises(TargetError, match="nothing would be removed"):
        compress(model, VocabularyConfig(keep=len(tokenizer)), processor=tokenizer, texts=CORPUS)
    model.bert.stray = nn.Linear(4, len(tokenizer))
    with pytest.raises(TargetError, match="stray"):
        token_layers(model)
    args = TrainingArguments(str(tmp_path), use_cpu=True)
    with pytest.raises(LifecycleError, match="read already"):
        HFCompressTrainer(make("bert"), args, recipe=VocabularyConfig(), processing_class=tokenizer)


STAGES = [
    {"methods": {"vocabulary": {}}},
    {"methods": {"distill": {}}, "train": {"max_steps": 2, "per_device_train_batch_size": 8}},
]
LEFT = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "fair", "a", "film"}


@pytest.fixture
def unused_first(monkeypatch):
    """Let the project's tokenizer have the words its data lack before the others, so that ids change."""
    monkeypatch.setattr("project.WORDS", [*WORDS[:5], "very", "not", *WORDS[5:-2]])


def test_the_stages_after_it_read_the_data_anew_and_so_does_the_teacher(tmp_path, unused_first):
    loaded = load_recipe(text_project(tmp_path, stages=STAGES))
    setup = open_recipe(loaded)
    (tmp_path / "out").mkdir()
    run = Run(setup, RunFolder(tmp_path / "out"), Reporter())
    teacher = copy.deepcopy(setup.model)
    model, records, after = run_stages(run, copy.deepcopy(setup.model), teacher)
    assert records[0].report["vocabulary"] == {"tokens_before": 99, "tokens_after": 10, "corpus_covered": 1.0}
    assert set(after.setup.processor.get_vocab()) == LEFT and set(setup.processor.get_vocab()) > LEFT
    texts = ["a good film", "film a bad a", "fair"]
    before, now = (answers((s.processor, m), texts) for s, m in ((setup, setup.model), (after.setup, teacher)))
    assert torch.equal(before, now)  # the teacher
    assert max(map(max, after.setup.train["input_ids"])) < 10 < max(map(max, setup.train["input_ids"]))
    again, _, resumed = run_stages(run, copy.deepcopy(setup.model), copy.deepcopy(setup.model))
    assert resumed.setup.processor.get_vocab() == after.setup.processor.get_vocab()
    assert torch.allclose(
        answers((after.setup.processor, model), texts), answers((after.setup.processor, again), texts)
    )


def test_a_run_measures_each_model_with_its_own_tokenizer(tmp_path, unused_first):
    stages = [{"methods": {"vocabulary": {}, "positions": {}}}, {"methods": {"quantize_weights": {}}}]
    benchmark = {"engines": ["pytorch"], "shapes": [{"length": 12}], "real_lengths": 7, "seconds": 0.05, "rounds": 1}
    result = run_recipe(load_recipe(text_project(tmp_path, stages=stages, benchmark=benchmark)), tmp_path / "out")
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert abs(plan["stages"][-1]["weight_bytes"] - result.compressed.size_bytes) < 20_000
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out" / "model")
    assert set(tokenizer.get_vocab()) == LEFT and tokenizer.model_max_length == 16
    stored = {
        name: next(read_batches(tmp_path / "out" / f"{name}.safetensors"))
        for name in ("evaluation", "evaluation-baseline", "real", "real-baseline")
    }
    for name in ("evaluation", "real"):
        assert stored[name]["input_ids"].max() < 10 <= stored[f"{name}-baseline"]["input_ids"].max()
    for model in (result.baseline, result.compressed):
        fixed, real = model.latency
        assert (fixed.key, fixed.examples, real.key, real.examples, real.kind) == ("1x12", None, "real-1", 7, "texts")
        assert (real.rounds, real.passes, real.p99_ms, real.tokens) == (1, 7, None, (5, 5, 5))
    assert [s.key for s in result.speedup] == ["1x12", "real-1"] and read_result(tmp_path / "out") == result
    card = (tmp_path / "out" / "model" / "README.md").read_text()
    assert "on 7 real texts, 1 at a time (PyTorch against the original in PyTorch)" in card


def test_room_the_corpus_leaves_goes_to_words_that_a_text_can_reach():
    vocab = ["[PAD]", "[unused0]", "[unused1]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "語", "word", "other", "##s", "an"]
    tokenizer = BertTokenizerFast(vocab={token: index for index, token in enumerate(vocab)})
    model = BertForSequenceClassification(_config(BertConfig, tokenizer)).eval()
    compress(model, VocabularyConfig(keep=9), processor=tokenizer, texts=["word"])
    kept = set(tokenizer.get_vocab())
    assert {"word", "other", "##s", "an"} <= kept and not {"[unused0]", "[unused1]", "語"} & kept
