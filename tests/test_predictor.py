"""Many adapters on one base answer as each of them does alone, whatever stands beside them in a batch."""

from __future__ import annotations

import copy
import functools
import json
import logging
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers as hf
from models import BUILDS, EOS, FAMILIES, PAD, VOCAB, Family, assert_equal, stir, tensors, tiny
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn
from torch.utils.data import Subset

from spafit_hf import Strategy, get_spafit_model, load_adapter, save_adapter
from spafit_hf.adapter import AdapterError
from spafit_hf.hub import Pulled
from spafit_hf.predictor import AdapterFacts, NoAnswer, Prediction, SpafitPredictor
from spafit_hf.predictor.base import load_base
from spafit_hf.predictor.patch import Patch, PatchStack
from spafit_hf.predictor.serving import PROBE_TEXTS
from spafit_hf.words import first_line

SENTENCE = "a fine film it rains is dull and short text which goes on for longer than the first one did another"
WORDS = SENTENCE.split()

#: name -> strategy, LoRA settings, outputs of the head; what differs between adapters of a batch
ADAPTERS: dict[str, tuple[str, dict[str, Any], int]] = {
    "spafit": ("spafit-4-9-II", {"r": 3, "lora_alpha": 7}, 2),
    "lora": ("lora-II", {"r": 5, "lora_alpha": 10, "use_rslora": True}, 3),
    "bitfit": ("bitfit", {}, 1),
    "dora": ("spafit-8-16-II", {"r": 2, "lora_alpha": 6, "use_dora": True}, 4),
    "head": ("linear-probe", {}, 2),
}
TEXTS = ["a fine film", "it rains", "a dull text which goes on for longer than the first one did"]
PAIR = ("it rains", "a film")


def make_tokenizer(*, pad: bool = True, **kwargs: Any) -> hf.PreTrainedTokenizerFast:
    """Words to ids, in the vocabulary of the tiny models."""
    vocabulary = {"<s>": 0, "<pad>": PAD, "</s>": EOS, "<unk>": 3} | {word: 5 + i for i, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=[("<s>", 0), ("</s>", EOS)]
    )
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"} | ({"pad_token": "<pad>"} if pad else {})
    return hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{"model_max_length": 32, **special, **kwargs})


def write_adapter(
    folder: Path,
    strategy: str,
    settings: dict[str, Any],
    outputs: int,
    *,
    family: str = "bert",
    seed: int = 0,
    problem_type: str | None = None,
    task: dict[str, Any] | None = None,
    base: Any = None,
) -> Path:
    """An adapter as if trained for long."""
    model = tiny(family, num_labels=outputs) if base is None else base
    if outputs > 1:
        model.config.id2label = {index: f"{folder.name}-{index}" for index in range(outputs)}
        model.config.label2id = {name: index for index, name in model.config.id2label.items()}
    model.config.problem_type = problem_type
    wrapped = get_spafit_model(model, Strategy.from_name(strategy).with_lora(**settings) if settings else strategy)
    stir(wrapped, seed=seed)
    save_adapter(wrapped, folder, task=task)
    return folder


def write_all(folder: Path, family: str = "bert", names: Sequence[str] = tuple(ADAPTERS)) -> dict[str, Path]:
    """The adapters of `ADAPTERS`, as folders."""
    return {
        name: write_adapter(folder / name, *ADAPTERS[name], family=family, seed=seed)
        for seed, name in enumerate(names)
    }


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_all(tmp_path_factory.mktemp("adapters"))


@pytest.fixture
def served(folders: dict[str, Path]) -> SpafitPredictor:
    """A predictor with all of them."""
    return serve(tiny("bert"), folders)


@pytest.fixture(scope="module")
def untouched(folders: dict[str, Path]) -> SpafitPredictor:
    """One that no test may change."""
    return serve(tiny("bert"), folders)


def serve(base: Any, folders: dict[str, Path], **kwargs: Any) -> SpafitPredictor:
    made = SpafitPredictor(base, **{"tokenizer": make_tokenizer(), **kwargs})
    for name, folder in folders.items():
        made.add(folder, name)
    return made


class Alone:
    """Each adapter by itself: PEFT's own path, a row at a time, without padding."""

    def __init__(self, family: str, folders: dict[str, Path], tokenizer: Any = None) -> None:
        self.tokenizer = tokenizer or make_tokenizer()
        self.models = {name: load_adapter(tiny(family), folder) for name, folder in folders.items()}
        self.numbers = functools.cache(self._numbers)

    @torch.no_grad()
    def _numbers(self, text: Any, name: str) -> torch.Tensor:
        batch = self.tokenizer(*([text] if isinstance(text, str) else text), return_tensors="pt")
        if self.models[name].config.model_type not in ("bert", "electra"):
            batch.pop("token_type_ids", None)
        logits = self.models[name](**batch).logits[0]
        return logits if len(logits) == 1 else logits.softmax(-1)


def numbers(answer: Prediction) -> torch.Tensor:
    return torch.tensor([answer.value] if answer.scores is None else list(answer.scores.values()))


def assert_close(answer: Prediction, expected: torch.Tensor) -> None:
    torch.testing.assert_close(numbers(answer), expected, atol=1e-5, rtol=0)


def assert_as_alone(served: SpafitPredictor, alone: Alone, texts: list[Any]) -> None:
    """Every adapter's answer to every text, in mixed batches, all at once, and adapter by adapter."""
    names = tuple(alone.models)
    rows = [(text, name) for text in texts for name in names]
    for (text, name), answer in zip(rows, served.predict(*map(list, zip(*rows, strict=True))), strict=True):
        assert answer.adapter == name
        assert_close(answer, alone.numbers(text, name))
    for text in texts:
        answers = served.predict_all(text)
        assert tuple(answers) == names
        for name, answer in answers.items():
            assert_close(answer, alone.numbers(text, name))
    for name in names:
        for text, answer in zip(texts, served.predict(texts, name), strict=True):
            assert_close(answer, alone.numbers(text, name))


# ---- equal to each alone ----


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "vit"])
def test_mixed_batches_answer_as_each_adapter_alone(family: str, tmp_path: Path) -> None:
    folders = write_all(tmp_path, family, *([] if family in BUILDS else [("spafit", "bitfit", "head")]))
    base = tiny(family)
    before = tensors(base)
    served = serve(base, folders, batch_size=8)
    assert_as_alone(served, Alone(family, folders), [*TEXTS, PAIR])
    assert_equal(tensors(base), before)
    assert not any(module._forward_hooks or "forward" in vars(module) for module in base.modules())


def other_family(config: type[hf.PretrainedConfig], **kwargs: Any) -> Callable[..., hf.PretrainedConfig]:
    sizes = {"vocab_size": VOCAB, "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2}
    fixed = {**sizes, "intermediate_size": 32, "max_position_embeddings": 40, "pad_token_id": PAD, **kwargs}
    return lambda **more: config(**{**fixed, **more})


DEBERTA = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "share_att_key": True, "position_buckets": 8}
CANINE = {"num_hash_buckets": 32, "local_transformer_stride": 8, "downsampling_rate": 2}
CANINE |= {"bos_token_id": None, "eos_token_id": None}
OPENAI_GPT = {"n_embd": 16, "n_layer": 4, "n_head": 2, "n_positions": 40}
CONVBERT = {"embedding_size": 16, "head_ratio": 1, "conv_kernel_size": 3}


@pytest.mark.parametrize(
    ("config", "classifier", "said"),
    [
        (other_family(hf.DebertaV2Config, **DEBERTA), hf.DebertaV2ForSequenceClassification, "adapters in one batch"),
        (other_family(hf.ConvBertConfig, **CONVBERT), hf.ConvBertForSequenceClassification, "different lengths"),
        (FAMILIES["t5"].config, hf.T5ForSequenceClassification, "first 1 layers once per text"),
    ],
    ids=["deberta-v2", "convbert", "t5"],
)
def test_what_a_model_does_not_allow_is_left_out_and_logged(
    config: Any, classifier: Any, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setitem(FAMILIES, "other", Family(config, classifier))
    folders = {
        "spafit": write_adapter(tmp_path / "a", "spafit-4-9-II", {"r": 2}, 2, family="other"),
        "late": write_adapter(tmp_path / "b", "spafit-4-9-I", {"r": 3}, 3, family="other", seed=1),
    }
    with caplog.at_level(logging.WARNING, "spafit_hf.predictor"):
        served = serve(tiny("other"), folders)
    assert said in caplog.text
    assert_as_alone(served, Alone("other", folders), TEXTS)


@pytest.mark.parametrize(
    ("config", "classifier"),
    [
        # Several stacks, no table of tokens, and no end of a text that its head looks for.
        (other_family(hf.CanineConfig, **CANINE), hf.CanineForSequenceClassification),
        # Its layers return a list.
        (other_family(hf.OpenAIGPTConfig, **OPENAI_GPT), hf.OpenAIGPTForSequenceClassification),
    ],
    ids=["canine", "openai-gpt"],
)
def test_models_that_are_built_otherwise(
    config: Any, classifier: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FAMILIES, "other", Family(config, classifier))
    folders = write_all(tmp_path, "other")
    assert_as_alone(serve(tiny("other"), folders), Alone("other", folders), TEXTS)


def test_a_base_that_its_own_head_refuses(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "adapter", "bitfit", {}, 2, family="bart")
    base = tiny("bart")
    base.config.eos_token_id = None  # by which its head finds the end of a text
    with pytest.raises(AdapterError, match="does not run on BartForSequenceClassification"):
        serve(base, {"adapter": folder})


def test_a_decoder_without_a_pad_token(tmp_path: Path) -> None:
    plain = {"pad_token_id": None}
    folders = {
        name: write_adapter(
            tmp_path / name, *ADAPTERS[name], base=tiny("gpt2", num_labels=ADAPTERS[name][2], **plain), seed=seed
        )
        for seed, name in enumerate(("spafit", "lora"))
    }
    tokenizer = make_tokenizer(pad=False, padding_side="left")
    served = serve(tiny("gpt2", **plain), folders, tokenizer=tokenizer)
    alone = Alone("gpt2", folders, tokenizer)
    for model in alone.models.values():
        model.config.pad_token_id = None
    rows = [(text, name) for text in TEXTS for name in folders]
    # These texts end with the token that stands for padding, which a padded classifier passes over.
    for model in alone.models.values():
        model.config.pad_token_id = EOS
    for (text, name), answer in zip(rows, served.predict(*map(list, zip(*rows, strict=True))), strict=True):
        assert_close(answer, alone.numbers(text, name))


@pytest.mark.parametrize("wrap", [torch.compile, torch.nn.DataParallel])
def test_a_wrapper_of_torch_is_taken_off(wrap: Any, folders: dict[str, Path]) -> None:
    base = tiny("bert")
    assert serve(wrap(base), {"spafit": folders["spafit"]}).model is base


def test_a_base_in_half_precision(folders: dict[str, Path]) -> None:
    exact = serve(tiny("bert"), folders).predict_all(TEXTS[0])
    half = {}
    base = tiny("bert").to(torch.bfloat16)
    for name, answer in serve(base, folders).predict_all(TEXTS[0]).items():
        half[name] = answer
        torch.testing.assert_close(numbers(answer), numbers(exact[name]), atol=0.1, rtol=0.1)
    assert tuple(half) == tuple(folders)


def test_plain_peft_adapters_are_served_too(tmp_path: Path) -> None:
    config = peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"], r=4, lora_alpha=8)
    wrapped = peft.get_peft_model(tiny("bert", num_labels=3), config)
    stir(wrapped)
    wrapped.save_pretrained(tmp_path)
    served = serve(tiny("bert"), {"plain": tmp_path})
    (answer,) = served.predict([TEXTS[0]])
    with torch.no_grad():
        expected = wrapped.eval()(**make_tokenizer()(TEXTS[0], return_tensors="pt")).logits[0].softmax(-1)
    assert_close(answer, expected)
    assert list(answer.scores) == ["LABEL_0", "LABEL_1", "LABEL_2"]
    assert served.facts("plain").texts is None


@pytest.mark.parametrize(
    ("family", "dora"),
    [("bert", False), ("bert", True), ("gpt2", False), ("gpt2", True), ("opt", False), ("bart", True)],
)
def test_adapters_of_one_shape_are_patched_together(
    family: str, dora: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"r": 2, "use_dora": True} if dora else {"r": 3}
    torch.manual_seed(1)  # LoRA A: with some values of it fp32 itself is off by 1e-5, in PEFT too
    names = ("one", "two", "three")
    folders = {
        name: write_adapter(tmp_path / name, "spafit-4-9-II", settings, 2, family=family, seed=seed)
        for seed, name in enumerate(names)
    }
    folders["other"] = write_adapter(tmp_path / "other", "spafit-4-9-II", {"r": 5}, 2, family=family, seed=3)
    served = serve(tiny(family), folders)
    alone = Alone(family, folders)
    together: list[int] = []
    stack = PatchStack.of.__func__

    def counted(cls: type[PatchStack], patches: Sequence[Patch]) -> PatchStack:
        together.append(len(patches))
        return stack(cls, patches)

    monkeypatch.setattr(PatchStack, "of", classmethod(counted))
    for text in TEXTS:
        for name, answer in served.predict_all(text).items():
            assert_close(answer, alone.numbers(text, name))
    assert max(together) >= 2  # "other" may stand between them
    as_many = [(text, name) for name in names for text in TEXTS]
    not_as_many = [(TEXTS[0], "one"), (TEXTS[1], "two"), (TEXTS[2], "two")]
    for rows, expected in ((as_many, {3}), (not_as_many, {1})):
        together.clear()
        for (text, name), answer in zip(rows, served.predict(*map(list, zip(*rows, strict=True))), strict=True):
            assert_close(answer, alone.numbers(text, name))
        assert set(together) == expected


def test_a_stack_patches_what_no_view_shows() -> None:
    torch.manual_seed(0)
    patches = [Patch(torch.randn(2, 4), torch.randn(6, 2), torch.randn(6), torch.randn(6)) for _ in range(3)]
    x, y = torch.randn(5, 6, 4).transpose(0, 1), torch.randn(5, 6, 6).transpose(0, 1)
    expected = torch.cat(
        [
            patch.gain * y[2 * index : 2 * index + 2]
            + x[2 * index : 2 * index + 2] @ patch.a.T @ patch.b.T
            + patch.shift
            for index, patch in enumerate(patches)
        ]
    )
    PatchStack.of(patches).apply(x, y)
    assert not y.is_contiguous()
    torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("count", [1, 3])
def test_a_stack_under_autocast(count: int) -> None:
    patches = [Patch(torch.randn(2, 4), torch.randn(6, 2), torch.randn(6)) for _ in range(count)]
    x, y = torch.randn(6, 5, 4), torch.randn(6, 5, 6)
    expected = y.clone()
    PatchStack.of(patches).apply(x, expected)
    with torch.autocast("cpu", torch.bfloat16):  # y is of a module that answers in fp32 even so
        PatchStack.of(patches).apply(x, y)
    torch.testing.assert_close(y, expected, atol=0.2, rtol=0.1)


# ---- once per text ----


@contextmanager
def rows_seen(module: nn.Module) -> Iterator[list[int]]:
    seen: list[int] = []
    handle = module.register_forward_hook(lambda _module, args, _output: seen.append(args[0].shape[0]))
    yield seen
    handle.remove()


def test_layers_that_no_adapter_changes_run_once_per_text(tmp_path: Path) -> None:
    folders = {
        "two": write_adapter(tmp_path / "two", "spafit-10-14-II", {"r": 2}, 2),
        "one": write_adapter(tmp_path / "one", "spafit-4-9-II", {"r": 2}, 3, seed=1),
    }
    base = tiny("bert")
    served = serve(base, folders)
    assert [served.facts(name).layers for name in folders] == [(2, 3), (1, 2, 3)]
    layers = base.bert.encoder.layer
    for names, expected in ((["two", "two"], [1, 1, 2]), (["two", "one"], [1, 2, 2])):
        texts = [TEXTS[0]] * 2
        with (
            rows_seen(layers[0].intermediate) as first,
            rows_seen(layers[1].intermediate) as second,
            rows_seen(layers[2].intermediate) as third,
        ):
            served.predict(texts, names)
        assert [sum(first), sum(second), sum(third)] == expected
    with rows_seen(layers[0].intermediate) as first:
        served.predict([*TEXTS, *TEXTS], ["two"] * 3 + ["one"] * 3)
    assert sum(first) == len(TEXTS)


def test_projections_of_the_border_run_once_per_text(served: SpafitPredictor) -> None:
    spafit = ["spafit", "head", "spafit"]
    with rows_seen(served.model.bert.encoder.layer[1].attention.self.query) as seen:
        served.predict([TEXTS[0]] * 3, spafit)
    assert seen == [3]  # hooks see the rows that come in and go out ...
    layer = served.model.bert.encoder.layer[1].attention.self.query
    calls: list[int] = []
    layer.forward = lambda x: calls.append(x.shape[0]) or type(layer).forward(layer, x)  # type: ignore[func-returns-value]
    served.predict([TEXTS[0]] * 3, spafit)
    assert calls == [1]  # ... and the matmul has the text's
    assert "forward" in vars(layer)  # what was there before a pass is there after it


def test_heads_alone_share_every_layer(tmp_path: Path) -> None:
    folders = {
        str(seed): write_adapter(tmp_path / str(seed), "linear-probe", {}, seed + 2, seed=seed) for seed in (0, 1)
    }
    served = serve(tiny("bert"), folders)
    alone = Alone("bert", folders)
    with rows_seen(served.model.bert.encoder.layer[3].intermediate) as seen:
        answers = served.predict_all(TEXTS[2])
    assert sum(seen) == 1
    for name, answer in answers.items():
        assert_close(answer, alone.numbers(TEXTS[2], name))


def test_an_error_in_a_pass_leaves_the_model_clean(served: SpafitPredictor) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory")

    handle = served.model.bert.encoder.layer[3].register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        served.predict_all(TEXTS[0])
    handle.remove()
    assert not any(module._forward_hooks or "forward" in vars(module) for module in served.model.modules())
    assert len(served.predict_all(TEXTS[0])) == len(ADAPTERS)


def test_the_base_is_put_back_into_eval_mode(served: SpafitPredictor) -> None:
    expected = served.predict_all(TEXTS[0])
    served.model.train()
    assert served.predict_all(TEXTS[0]) == expected


# ---- what comes out ----


def test_predictions(tmp_path: Path) -> None:
    folders = {
        "single": write_adapter(tmp_path / "single", "spafit-4-9-II", {"r": 2}, 3),
        "several": write_adapter(
            tmp_path / "several", "bitfit", {}, 3, problem_type="multi_label_classification", seed=1
        ),
        "number": write_adapter(tmp_path / "number", "spafit-4-9-I", {"r": 2}, 1, seed=2),
    }
    answers = serve(tiny("bert"), folders).predict_all(TEXTS[0])
    single, several, number = answers["single"], answers["several"], answers["number"]
    assert list(single.scores) == ["single-0", "single-1", "single-2"]
    assert sum(single.scores.values()) == pytest.approx(1)
    assert single.label == max(single.scores, key=single.scores.__getitem__)
    assert single.value is None
    with torch.no_grad():
        logits = load_adapter(tiny("bert"), folders["several"])(
            **make_tokenizer()(TEXTS[0], return_tensors="pt")
        ).logits[0]
    torch.testing.assert_close(numbers(several), logits.sigmoid(), atol=1e-5, rtol=0)
    assert (number.label, number.scores, type(number.value)) == (None, None, float)
    assert json.loads(json.dumps(single.to_dict()))["adapter"] == "single"


def test_long_texts_lose_their_end_and_say_so(folders: dict[str, Path]) -> None:
    served = serve(tiny("bert"), {"spafit": folders["spafit"]}, max_length=6)
    short, long, cut, pair = served.predict(
        ["a fine film", "a fine film it rains and rains", "a fine film it", (" ".join(WORDS), "it rains")]
    )
    assert [short.truncated, long.truncated, cut.truncated, pair.truncated] == [False, True, False, True]
    assert long.scores == pytest.approx(cut.scores, abs=1e-5)


@pytest.mark.parametrize(("family", "positions"), [("bert", 32), ("roberta", 30), ("gpt2", 32), ("distilbert", 32)])
def test_texts_are_cut_to_what_the_base_reads(family: str, positions: int, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", "spafit-4-9-II", {"r": 2}, 2, family=family)
    served = serve(tiny(family), {"a": folder}, tokenizer=make_tokenizer(model_max_length=10**30))
    fits, cut = served.predict([" ".join(WORDS[i % 9] for i in range(count)) for count in (positions - 2, 60)])
    assert (fits.truncated, cut.truncated) == (False, True)
    assert cut.scores == pytest.approx(fits.scores, abs=1e-5)


def test_a_tokenizer_in_python_tells_what_it_cut(folders: dict[str, Path], tmp_path: Path) -> None:
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join(["[UNK]", "[PAD]", "[SEP]", "[CLS]", "[MASK]", *WORDS]), encoding="utf-8")
    slow = hf.models.bert_japanese.tokenization_bert_japanese.BertJapaneseTokenizer(
        str(vocabulary), word_tokenizer_type="basic", subword_tokenizer_type="wordpiece"
    )
    assert not slow.is_fast
    served = serve(tiny("bert"), {"a": folders["spafit"]}, tokenizer=slow, max_length=5)
    answers = served.predict(["a fine film", "a fine film it", PAIR])
    assert [answer.truncated for answer in answers] == [False, True, True]


# ---- user errors ----


@pytest.mark.parametrize(
    ("texts", "adapter", "message"),
    [
        ("a fine film", "spafit", "texts is one text; give a list"),
        (PAIR, "spafit", "texts is one pair; give a list"),
        (["a", "  "], "spafit", "text 1 is empty"),
        ([("a", "")], "spafit", "the second part of text 0 is empty"),
        ([("a", "b", "c")], "spafit", "text 0 has 3 parts; it must be a string, or a pair"),
        ([7], "spafit", "text 0 has a int"),
        ([("a", None)], "spafit", "the second part of text 0 is a NoneType"),
        (["a \ud800 film"], "spafit", "text 0 is no valid Unicode"),
        (["a"], "spafi", r"no adapter 'spafi'; there are .*Did you mean 'spafit'\?"),
        (["a", "film"], ["spafit"], "there are 2 texts and 1 adapter names"),
        (["a"], ["spafit", "lora"], "there are 1 texts and 2 adapter names"),
        (["a"], None, "name an adapter: there are spafit, lora"),
        (5, "spafit", "texts is a int; give a list of strings"),
        (None, "spafit", "texts is a NoneType"),
        ({"text": ["a"]}, "spafit", "texts is a dict"),
        ({"a", "b"}, "spafit", "texts is a set"),
        (["a"], 5, "adapter is a int; give a name, or a list of names"),
        (["a"], b"spafit", "adapter is a bytes"),
        (["a", "b"], {"spafit", "lora"}, "adapter is a set"),
        (["a"], [["spafit"]], r"no adapter \['spafit'\]"),
    ],
)
def test_user_errors(untouched: SpafitPredictor, texts: Any, adapter: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        untouched.predict(texts, adapter)


def test_lists_of_any_kind_are_taken(untouched: SpafitPredictor) -> None:
    expected = untouched.predict(TEXTS, ["spafit", "lora", "spafit"])
    names = np.array(["spafit", "lora", "spafit"])
    for texts in (np.array(TEXTS), (text for text in TEXTS), Subset(TEXTS, range(3))):  # torch's has no __iter__
        assert untouched.predict(texts, names) == expected
    assert untouched.predict(TEXTS, Subset(names, range(3))) == expected


def test_a_text_without_a_known_token_is_an_error(folders: dict[str, Path]) -> None:
    served = serve(tiny("bert"), {"spafit": folders["spafit"]})
    with pytest.raises(ValueError, match="holds nothing that the tokenizer knows"):
        served.predict(["</s>"])


def test_a_tokenizer_of_another_base_is_found_out(folders: dict[str, Path]) -> None:
    small = tiny("bert", vocab_size=20)
    with pytest.raises(AdapterError, match="does not belong"):
        serve(small, {"spafit": folders["spafit"]})
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([f"word{index}" for index in range(VOCAB)])
    served = serve(tiny("bert"), {"spafit": folders["spafit"]}, tokenizer=tokenizer)
    assert served.predict(["a film"])
    with pytest.raises(ValueError, match=r"gives token \d+ .* and the base has 50 tokens"):
        served.predict(["a film word49"])


def test_no_texts_no_answers(untouched: SpafitPredictor) -> None:
    assert untouched.predict([], "spafit") == []


def test_predict_all_checks_its_text_and_names(served: SpafitPredictor) -> None:
    with pytest.raises(ValueError, match="the text is empty"):
        served.predict_all("")
    with pytest.raises(ValueError, match="no adapter 'nonsense'"):
        served.predict_all("a film", ["nonsense"])
    assert tuple(served.predict_all("a film", ["lora", "spafit"])) == ("lora", "spafit")
    assert tuple(served.predict_all("a film", "lora")) == ("lora",)
    assert tuple(served.predict_all("a film", ["lora", "lora"])) == ("lora",)
    assert tuple(served.predict_all("a film", {"lora": 1}.keys())) == ("lora",)
    with pytest.raises(ValueError, match="adapter is a int"):
        served.predict_all("a film", 5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="has no adapters"):
        SpafitPredictor(tiny("bert"), tokenizer=make_tokenizer()).predict_all("a film")


def test_the_number_of_texts_follows_from_the_task(tmp_path: Path) -> None:
    tasks = {"sst2": {"name": "sst2"}, "mrpc": {"name": "mrpc"}, "own": {"columns": ["question", "answer"]}, "any": {}}
    folders = {
        name: write_adapter(tmp_path / name, "spafit-4-9-II", {"r": 2}, 2, task=task, seed=seed)
        for seed, (name, task) in enumerate(tasks.items())
    }
    served = serve(tiny("bert"), folders)
    assert [served.facts(name).texts for name in folders] == [1, 2, 2, None]
    assert served.fitting("a film") == ("sst2", "any")
    assert served.fitting(PAIR) == ("mrpc", "own", "any")
    with pytest.raises(ValueError, match=r"text 0 is a pair; 'sst2' was trained on a single text"):
        served.predict([PAIR], "sst2")
    with pytest.raises(ValueError, match=r"text 1 is a single text; 'mrpc' was trained on a pair"):
        served.predict([PAIR, "a film"], "mrpc")
    served.predict(["a film", PAIR, PAIR, "a film", PAIR], ["sst2", "mrpc", "own", "any", "any"])
    assert tuple(served.predict_all("a film")) == tuple(folders)


@pytest.mark.parametrize("value", [0, "3", 1.5])
@pytest.mark.parametrize("name", ["max_length", "max_adapter_bytes", "batch_size"])
def test_limits_are_whole_numbers_from_1_on(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} is {value!r}; it must be a whole number of at least 1"):
        SpafitPredictor(tiny("bert"), **{name: value})


def test_whole_numbers_of_other_types_are_limits(folders: dict[str, Path]) -> None:
    limits = {"max_length": np.int64(5), "batch_size": 2.0, "max_adapter_bytes": 1e9}
    served = serve(tiny("bert"), {"spafit": folders["spafit"]}, **limits)
    assert [answer.truncated for answer in served.predict([PAIR, ("it", "rains"), "it rains"])] == [True, False, False]


def test_a_limit_leaves_room_for_a_token_of_each_text(folders: dict[str, Path], tmp_path: Path) -> None:
    needs = (
        r"cut to {} tokens, and at least 5 are needed: 3 special ones and one for each text of a pair; give a max_le"
    )
    for limit in (1, 2, 4):
        with pytest.raises(ValueError, match=needs.format(limit)):
            SpafitPredictor(tiny("bert"), tokenizer=make_tokenizer(), max_length=limit)
    with pytest.raises(ValueError, match="raise model_max_length"):
        SpafitPredictor(tiny("bert"), tokenizer=make_tokenizer(model_max_length=4))
    own = shutil.copytree(folders["spafit"], tmp_path / "own")
    make_tokenizer().save_pretrained(own)
    bare = SpafitPredictor(tiny("bert"), max_length=4)  # no tokenizer yet that could say what is needed
    with pytest.raises(AdapterError, match=f"{own} cannot be served: texts would be cut to 4 tokens"):
        bare.add(own, "own")
    served = serve(tiny("bert"), {"spafit": folders["spafit"]}, max_length=5)
    assert [answer.truncated for answer in served.predict([PAIR, ("it", "rains"), "it rains"])] == [True, False, False]


# ---- bases ----


def test_bases_that_cannot_serve(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has adapters on it already"):
        SpafitPredictor(get_spafit_model(tiny("bert"), "bitfit"))
    with pytest.raises(ValueError, match="serves models for text classification"):
        SpafitPredictor(tiny("bert").bert)
    with pytest.raises(ValueError, match="cannot be loaded"):
        SpafitPredictor(tmp_path / "nothing")
    with pytest.raises(ValueError, match="for a base by name"):
        SpafitPredictor(tiny("bert"), device="cpu")


@pytest.fixture
def base_folder(tmp_path: Path) -> Path:
    """A pretrained encoder without a head, and its tokenizer."""
    folder = tmp_path / "base"
    tiny("bert").bert.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def test_a_base_by_name(base_folder: Path, folders: dict[str, Path], tmp_path: Path, caplog: Any) -> None:
    loaded = load_base(base_folder, None, None, "cpu", None)
    assert loaded.untrained == {"classifier.weight", "classifier.bias"}
    made = SpafitPredictor(base_folder, device="cpu")
    for name, folder in folders.items():
        made.add(folder, name)
    alone = Alone("bert", folders)
    for name, answer in made.predict_all(PAIR).items():
        assert_close(answer, alone.numbers(PAIR, name))


def test_weights_that_neither_adapter_nor_base_brings(tmp_path: Path) -> None:
    """A checkpoint without a pooler: whoever loads it gets a random one, and each time another."""
    bare = hf.BertModel(tiny("bert").config, add_pooling_layer=False)
    bare.save_pretrained(tmp_path / "base")
    trained = hf.AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=3)
    whole = hf.BertForSequenceClassification(copy.deepcopy(trained.config))  # whose pooler counts as the base's
    whole.load_state_dict(trained.state_dict())
    folder = write_adapter(tmp_path / "adapter", "spafit-4-9-II", {"r": 2}, 3, base=whole)
    with pytest.raises(AdapterError, match=r"brings no bert\.pooler\.dense\.\w+, and neither does the base"):
        SpafitPredictor(tmp_path / "base", tokenizer=make_tokenizer(), device="cpu").add(folder, "a")
    answer = serve(trained, {"a": folder}).predict([TEXTS[0]])[0]
    with torch.no_grad():
        logits = load_adapter(trained, folder)(**make_tokenizer()(TEXTS[0], return_tensors="pt")).logits[0]
    assert_close(answer, logits.softmax(-1))


def test_token_types_of_one_adapters_tokenizer_stay_beside_another_without(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    types = ["input_ids", "token_type_ids", "attention_mask"]
    own = shutil.copytree(folders["head"], tmp_path / "own")
    without = make_tokenizer(model_input_names=["input_ids", "attention_mask"])
    without.backend_tokenizer.normalizer = normalizers.Lowercase()
    without.save_pretrained(own)
    with_types = make_tokenizer(model_input_names=types)
    served = serve(tiny("bert"), {"own": own, "spafit": folders["spafit"]}, tokenizer=with_types)
    (alone,) = served.predict([PAIR], "spafit")
    _, mixed = served.predict(["it", PAIR], ["own", "spafit"])
    assert_close(mixed, numbers(alone))
    assert_close(mixed, Alone("bert", {"spafit": folders["spafit"]}, with_types).numbers(PAIR, "spafit"))


def test_tokenizers(folders: dict[str, Path], tmp_path: Path) -> None:
    served = SpafitPredictor(tiny("bert"))
    with pytest.raises(AdapterError, match=r"neither .* nor the base comes with a tokenizer"):
        served.add(folders["spafit"], "bare")
    assert served.names == ()
    with_own = []
    for name, side in (("spafit", "right"), ("lora", "left")):
        with_own.append(shutil.copytree(folders[name], tmp_path / name))
        make_tokenizer(padding_side=side).save_pretrained(with_own[-1])
    for folder in with_own:
        served.add(folder, folder.name)
    first, second = (served._entries[folder.name].tokenizer for folder in with_own)
    assert first is second  # they do the same, so that a text is tokenized once
    alone = Alone("bert", {name: folders[name] for name in ("spafit", "lora")})
    for name, answer in served.predict_all(TEXTS[1]).items():
        assert_close(answer, alone.numbers(TEXTS[1], name))
    (with_own[0] / "tokenizer.json").write_text("{", encoding="utf-8")
    served.remove("spafit")
    with pytest.raises(AdapterError, match=r"the tokenizer in .* cannot be read"):
        served.add(with_own[0], "spafit")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ("[]", "cannot be read"),
        ({"model_max_length": "512"}, "its model_max_length is '512'; it must be a number of at least 1"),
        ({"model_max_length": -5}, "its model_max_length is -5; it must be"),
        ({"model_max_length": 0}, "its model_max_length is 0; it must be"),
        ({"model_max_length": True}, "its model_max_length is True; it must be"),
        ({"model_max_length": 4}, "texts would be cut to 4 tokens, and at least 5 .* raise model_max_length"),
    ],
)
def test_tokenizer_files_that_are_not_as_they_should_be(
    untouched: SpafitPredictor, folders: dict[str, Path], tmp_path: Path, changed: Any, message: str
) -> None:
    folder = shutil.copytree(folders["spafit"], tmp_path / "odd")
    make_tokenizer().save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    text = changed if isinstance(changed, str) else json.dumps(json.loads(file.read_text()) | changed)
    file.write_text(text, encoding="utf-8")
    with pytest.raises(AdapterError, match=message):
        untouched.add(folder, "odd")
    assert untouched.names == tuple(folders)


def test_an_error_without_words_is_named() -> None:
    assert first_line(AssertionError()) == "AssertionError"
    assert first_line(ValueError("\n one\ntwo")) == "one"


# ---- adding and removing ----


def test_names_and_facts(served: SpafitPredictor, folders: dict[str, Path]) -> None:
    assert served.names == tuple(ADAPTERS)
    facts = served.facts("spafit")
    assert isinstance(facts, AdapterFacts)
    assert (facts.labels, facts.problem_type) == (("spafit-0", "spafit-1"), "single_label_classification")
    assert (facts.layers, facts.depth, facts.strategy) == ((1, 2, 3), 4, "spafit-4-9-II")
    assert facts.source == str(folders["spafit"])
    assert facts.file_bytes == (folders["spafit"] / "adapter_model.safetensors").stat().st_size
    assert served.adapter_bytes == sum(served.facts(name).memory_bytes for name in served.names)
    served.remove("lora")
    assert "lora" not in served.names
    with pytest.raises(ValueError, match="no adapter 'lora'"):
        served.predict(["a film"], "lora")
    with pytest.raises(ValueError, match="no adapter 'lora'"):
        served.remove("lora")
    served.add(folders["lora"], "lora")
    assert served.names[-1] == "lora"


@pytest.mark.parametrize(
    ("name", "message"), [("spafit", "there is an adapter 'spafit' already"), (" ", "cannot name")]
)
def test_names_that_cannot_be_added(
    served: SpafitPredictor, folders: dict[str, Path], name: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        served.add(folders["spafit"], name)


def spoil(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    file = folder / "adapter_model.safetensors"
    content = load_file(file)
    change(content)
    save_file(content, file, metadata={"format": "pt"})


def test_refused_adapters_leave_the_predictor_as_it_was(
    served: SpafitPredictor, folders: dict[str, Path], tmp_path: Path
) -> None:
    expected = served.predict_all(TEXTS[0])
    state = (served.names, served.adapter_bytes)

    def copy_of(name: str) -> Path:
        return shutil.copytree(folders["spafit"], tmp_path / name)

    nan = copy_of("nan")
    spoil(nan, lambda content: next(iter(content.values())).view(-1)[:1].fill_(float("nan")))
    huge = copy_of("huge")
    spoil(huge, lambda content: content.update({key: torch.full_like(value, 1e30) for key, value in content.items()}))
    stranger = write_adapter(tmp_path / "stranger", "bitfit", {}, 2, base=tiny("bert", seed=5))
    twice = write_adapter(tmp_path / "twice", "bitfit", {}, 2)
    sidecar = json.loads((twice / "spafit_config.json").read_text())
    sidecar["labels"]["id2label"] = {"0": "same", "1": "same"}
    (twice / "spafit_config.json").write_text(json.dumps(sidecar), encoding="utf-8")
    numbers_ = write_adapter(tmp_path / "numbers", "bitfit", {}, 3, problem_type="regression")
    for folder, message in (
        (nan, "NaN or infinity"),
        (huge, "where 2 finite numbers were to come"),
        (stranger, "does not belong to this base"),
        (twice, "two of the adapter's labels are called 'same'"),
        (numbers_, "gives 3 numbers per text"),
        (tmp_path / "nothing", "is no folder here"),
    ):
        with pytest.raises(AdapterError, match=message):
            served.add(folder, "refused")
        assert (served.names, served.adapter_bytes) == state
    assert served.predict_all(TEXTS[0]) == expected


def overflowing(folder: Path, base: Any, tokenizer: Any, text: str, probe: str) -> None:
    """Make the first output of an adapter of a head alone overflow on one text, and not on another."""

    def pooled(words: str) -> torch.Tensor:
        with torch.no_grad():
            return base.bert(**tokenizer(words, return_tensors="pt")).pooler_output[0]

    other, own = pooled(probe), pooled(text)
    direction = own - other * (own @ other) / (other @ other)
    row = 3e38 * direction / direction.abs().max()
    spoil(folder, lambda content: content["base_model.model.classifier.weight"][0].copy_(row))


def test_an_adapter_that_overflows_on_a_text_takes_no_others_answer_away(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    bad = shutil.copytree(folders["head"], tmp_path / "bad")
    overflowing(bad, tiny("bert"), make_tokenizer(), TEXTS[0], PROBE_TEXTS[0])
    served = serve(tiny("bert"), {"bad": bad, "spafit": folders["spafit"]})
    with pytest.raises(NoAnswer, match="'bad' can give no finite number for 'a fine film'") as caught:
        served.predict_all(TEXTS[0])
    (answer,) = caught.value.answers
    assert_close(answer, numbers(served.predict([TEXTS[0]], "spafit")[0]))
    with pytest.raises(ValueError, match="'bad' can give no finite number") as caught:
        served.predict(TEXTS[1:2] + TEXTS[:2], ["bad", "bad", "spafit"])
    assert [answer.adapter for answer in caught.value.answers] == ["bad", "spafit"]


def test_an_adapter_that_cannot_be_read_again_takes_no_others_answer_away(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    own = {name: shutil.copytree(folders[name], tmp_path / name) for name in ("spafit", "lora")}
    free = serve(tiny("bert"), own)
    served = serve(tiny("bert"), own, max_adapter_bytes=max(free.facts(name).memory_bytes for name in own))
    shutil.rmtree(own["spafit"])  # which lora pushed out of memory
    with pytest.raises(NoAnswer, match="spafit is not a folder") as caught:
        served.predict_all(TEXTS[0])
    assert [answer.adapter for answer in caught.value.answers] == ["lora"]
    assert [*caught.value.problems] == ["spafit"]


def test_an_adapter_of_another_task_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["bitfit"], tmp_path / "tokens")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"task_type": "TOKEN_CLS"}), encoding="utf-8")
    with pytest.raises(AdapterError, match="the adapter's task is TOKEN_CLS"):
        serve(tiny("bert"), {"tokens": folder})


def test_an_adapter_from_the_hub(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fetch(repo_id: str, **kwargs: Any) -> Pulled:
        asked.append((repo_id, kwargs))
        return Pulled(folders["spafit"], repo_id, "main", "0" * 40, ())

    monkeypatch.setattr("spafit_hf.adapter.load.fetch_adapter", fetch)
    served = SpafitPredictor(tiny("bert"), tokenizer=make_tokenizer(), token="secret")
    facts = served.add("user/adapter", "far", revision="v1")
    assert asked == [("user/adapter", {"revision": "v1", "token": "secret"})]
    assert facts.source == "user/adapter"
    with pytest.raises(AdapterError, match="drop the revision"):
        served.add(folders["lora"], "near", revision="v1")


# ---- within a limit in bytes ----


def test_adapters_over_the_limit_wait_in_their_folders(folders: dict[str, Path]) -> None:
    free = serve(tiny("bert"), folders)
    sizes = {name: free.facts(name).memory_bytes for name in free.names}
    limit = max(sizes.values()) + min(sizes.values())
    tight = serve(tiny("bert"), folders, max_adapter_bytes=limit)
    assert tight.names == free.names
    assert tight.adapter_bytes <= limit
    for text in TEXTS:
        for name, answer in tight.predict_all(text).items():
            assert_close(answer, numbers(free.predict([text], name)[0]))
            assert tight.adapter_bytes <= limit
    rows = [(text, name) for text in TEXTS for name in folders]
    found = tight.predict(*map(list, zip(*rows, strict=True)))
    for answer, expected in zip(found, free.predict(*map(list, zip(*rows, strict=True))), strict=True):
        assert_close(answer, numbers(expected))


def test_what_was_not_used_for_longest_goes_first(folders: dict[str, Path]) -> None:
    sizes = {name: serve(tiny("bert"), {name: folder}).adapter_bytes for name, folder in folders.items()}
    three = {name: folders[name] for name in ("spafit", "bitfit", "head")}
    served = serve(tiny("bert"), three, max_adapter_bytes=sum(sizes[name] for name in three))
    served.predict(["a film"], "spafit")
    served.add(folders["head"], "more")
    loaded = {name for name in served.names if served._entries[name] in served._cache._loaded}
    assert loaded == {"spafit", "head", "more"}


def test_an_adapter_larger_than_the_limit_is_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(AdapterError, match="max_adapter_bytes is 100; raise the limit"):
        serve(tiny("bert"), folders, max_adapter_bytes=100)


def test_a_folder_that_changed_is_not_read_again(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["spafit"], tmp_path / "spafit")
    gone = shutil.copytree(folders["bitfit"], tmp_path / "gone")
    room = serve(tiny("bert"), {"lora": folders["lora"]}).adapter_bytes
    served = serve(tiny("bert"), {"changing": folder, "gone": gone}, max_adapter_bytes=room)
    served.add(folders["lora"], "lora")
    assert not any(served._entries[name] in served._cache._loaded for name in ("changing", "gone"))
    spoil(folder, lambda content: content.update({key: 2 * value for key, value in content.items()}))
    with pytest.raises(AdapterError, match="has changed since it was added; remove 'changing'"):
        served.predict(["a film"], "changing")
    shutil.rmtree(gone)
    with pytest.raises(AdapterError, match="is not a folder"):
        served.predict(["a film"], "gone")
    assert served.predict(["a film"], "lora")


# ---- many threads ----


def test_fifty_requests_at_a_time_over_mixed_adapters(served: SpafitPredictor, folders: dict[str, Path]) -> None:
    alone = Alone("bert", folders)
    texts = [*TEXTS, PAIR]
    expected = {(text, name): alone.numbers(text, name) for text in texts for name in folders}
    names = list(folders)
    start = threading.Barrier(50)

    def request(number: int) -> list[tuple[Any, Prediction]]:
        start.wait()
        if number % 5 == 0:
            text = texts[number % len(texts)]
            return [(text, answer) for answer in served.predict_all(text).values()]
        rows = [(texts[(number + i) % len(texts)], names[(number * i) % len(names)]) for i in range(1 + number % 4)]
        answers = served.predict([text for text, _ in rows], [name for _, name in rows])
        assert [answer.adapter for answer in answers] == [name for _, name in rows]
        return [(text, answer) for (text, _), answer in zip(rows, answers, strict=True)]

    with ThreadPoolExecutor(50) as pool:
        for answers in pool.map(request, range(50)):
            for text, answer in answers:
                assert_close(answer, expected[text, answer.adapter])


@pytest.mark.parametrize("limit", [None, 12_000])
def test_adding_and_removing_while_serving(folders: dict[str, Path], limit: int | None) -> None:
    served = serve(tiny("bert"), {name: folders[name] for name in ("spafit", "bitfit")}, max_adapter_bytes=limit)
    alone = Alone("bert", folders)
    expected = {(text, name): alone.numbers(text, name) for text in TEXTS for name in folders}
    stop = threading.Event()

    def come_and_go(name: str) -> int:
        turns = 0
        while not stop.is_set():
            served.add(folders[name], name)
            served.remove(name)
            turns += 1
        return turns

    def ask(number: int) -> None:
        for turn in range(6):
            text = TEXTS[(number + turn) % len(TEXTS)]
            answers = served.predict_all(text)
            assert {"spafit", "bitfit"} <= set(answers)
            for name, answer in answers.items():
                assert_close(answer, expected[text, name])
            guest = ("lora", "dora")[turn % 2]
            try:
                assert_close(served.predict([text, text], ["spafit", guest])[1], expected[text, guest])
            except ValueError as error:
                if f"no adapter {guest!r}" not in str(error):
                    raise

    with ThreadPoolExecutor(8) as pool:
        comers = [pool.submit(come_and_go, name) for name in ("lora", "dora")]
        askers = [pool.submit(ask, number) for number in range(6)]
        wait(askers)
        stop.set()  # before an asker's error is raised: the pool waits for the comers
        for asker in askers:
            asker.result()
        assert all(comer.result() > 0 for comer in comers)
    assert served.names == ("spafit", "bitfit")
    assert served.adapter_bytes <= sum(served.facts(name).memory_bytes for name in served.names)


def test_a_request_that_began_keeps_its_adapter(served: SpafitPredictor) -> None:
    removing: list[threading.Thread] = []

    def remove_once(*_: Any) -> None:
        if not removing:
            removing.append(threading.Thread(target=served.remove, args=("lora",)))
            removing[0].start()
            removing[0].join(0.2)  # it waits for the pass to end

    handle = served.model.bert.encoder.layer[2].register_forward_hook(remove_once)
    served._batch_size = 1
    answers = served.predict([TEXTS[0], TEXTS[1]], ["lora", "lora"])
    handle.remove()
    assert [answer.adapter for answer in answers] == ["lora", "lora"]
    removing[0].join()
    assert "lora" not in served.names
    assert served.adapter_bytes == sum(served.facts(name).memory_bytes for name in served.names)


# ---- the packaged encoder ----


@pytest.mark.slow
def test_nine_adapters_on_the_packaged_encoder(tmp_path: Path) -> None:
    from spafit_hf.data.glue import TASKS
    from spafit_hf.names import embedded_base
    from spafit_hf.pypi import EmbeddedError

    try:
        folder = embedded_base()
    except EmbeddedError as error:
        pytest.skip(str(error))
    auto = hf.AutoModelForSequenceClassification
    served = SpafitPredictor(folder, device="cpu")
    looped: Any = auto.from_pretrained(folder)
    for seed, task in enumerate(TASKS.values()):
        torch.manual_seed(seed)
        model = auto.from_pretrained(folder, num_labels=task.num_labels)
        wrapped = get_spafit_model(model, Strategy.from_name("spafit-4-9-II").with_lora(r=4 + seed % 3))
        stir(wrapped, seed=seed, std=0.03)
        save_adapter(wrapped, tmp_path / task.name, task={"name": task.name})
        looped = load_adapter(looped, tmp_path / task.name, adapter_name=task.name)
        served.add(tmp_path / task.name, task.name)
    for text in ("A quiet, generous film that earns every one of its tears.", ("It rains.", "The sky is blue.")):
        answers = served.predict_all(text)
        assert tuple(answers) == tuple(TASKS)
        batch = hf.AutoTokenizer.from_pretrained(folder)(
            *([text] if isinstance(text, str) else text), return_tensors="pt"
        )
        for name, answer in answers.items():
            looped.set_adapter(name)
            with torch.no_grad():
                logits = looped(**batch).logits[0]
            assert_close(answer, logits if len(logits) == 1 else logits.softmax(-1))
