"""Training on cached states gives the losses of training with the live prefix, for every kind of model."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from models import EOS, PAD, VOCAB, tiny, tiny_generator
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from torch import nn

from spafit_hf import get_spafit_model
from spafit_hf.shortcuts.border import NotCacheable, find_border
from spafit_hf.shortcuts.cache import CacheSettings, PrefixCache
from spafit_hf.strategy import Strategy, Stratum

# dropout under every name configurations have for it
NO_DROPOUT = {
    name: 0.0
    for name in (
        *(
            "hidden_dropout_prob",
            "attention_probs_dropout_prob",
            "dropout",
            "attention_dropout",
            "seq_classif_dropout",
        ),
        *("resid_pdrop", "embd_pdrop", "attn_pdrop", "dropout_rate", "classifier_dropout", "activation_dropout"),
    )
}
STRATEGY = Strategy.from_bounds(1, 2, r=4)

CACHEABLE = ("bert", "roberta", "distilbert", "electra", "modernbert", "gpt2", "opt", "llama", "qwen2", "t5", "bart")


def config_of(name: str) -> dict[str, float]:
    """No dropout, by the names this family knows."""
    known = tiny(name).config.to_dict()
    return {key: value for key, value in NO_DROPOUT.items() if key in known and known[key] is not None}


def batches(count: int = 3, rows: int = 4, *, side: str = "right", seed: int = 0) -> list[dict[str, torch.Tensor]]:
    """Batches of rows of 3 to 8 tokens, padded, with labels."""
    draw = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        texts = []
        for _ in range(rows):
            length = int(torch.randint(3, 9, (1,), generator=draw))
            texts.append([*torch.randint(5, VOCAB, (length - 1,), generator=draw).tolist(), EOS])
        width = max(map(len, texts))
        padded = [[PAD] * (width - len(text)) for text in texts]
        ids = [text + pad if side == "right" else pad + text for text, pad in zip(texts, padded, strict=True)]
        mask = torch.tensor([[int(token != PAD) for token in row] for row in ids])
        labels = torch.randint(0, 2, (rows,), generator=draw)
        found.append({"input_ids": torch.tensor(ids), "attention_mask": mask, "labels": labels})
    return found


def losses(model: nn.Module, data: list[dict[str, torch.Tensor]], epochs: int = 2) -> list[float]:
    """The losses of real steps of AdamW."""
    torch.manual_seed(1)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    model.train()
    found = []
    for batch in data * epochs:
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(float(loss))
    return found


def wrapped(model: nn.Module, strategy: Any = STRATEGY) -> nn.Module:
    torch.manual_seed(0)
    return get_spafit_model(model, strategy)


def cached(model: nn.Module, folder: Path, batch: dict[str, torch.Tensor], dtype: str = "float32") -> PrefixCache:
    cache = PrefixCache(model, CacheSettings(folder, dtype=dtype))
    cache.prepare(batch)
    return cache


@pytest.mark.parametrize("name", CACHEABLE)
def test_losses_are_those_of_the_live_prefix(name: str, tmp_path: Path) -> None:
    data = batches()
    config = config_of(name)
    live = losses(wrapped(tiny(name, **config)), data)
    model = wrapped(tiny(name, **config))
    cache = cached(model, tmp_path, data[0])
    assert cache.border is not None
    assert cache.border.length == 2
    with cache.attached():
        found = losses(model, data)
    assert found == pytest.approx(live, abs=1e-6)
    rows = sum(len(batch["labels"]) for batch in data)
    assert cache.use.computed == cache.use.stored == rows
    assert cache.use.read == rows
    # and again, with another seed of the head, from the same entries
    other = wrapped(tiny(name, **config), STRATEGY.with_lora(r=2))
    again = cached(other, tmp_path, data[0])
    with again.attached():
        losses(other, data, epochs=1)
    assert again.use.read == rows
    assert again.use.computed == 0


@pytest.mark.parametrize("name", ["bert", "distilbert", "llama"])
def test_dropout_above_the_border_draws_the_same_numbers(name: str, tmp_path: Path) -> None:
    data = batches()
    model = wrapped(tiny(name))
    cache = cached(model, tmp_path, data[0])
    live = wrapped(tiny(name))
    frozen = [live.get_base_model().get_submodule(part) for part in (*cache.border.before, *cache.border.layers)]
    for part in frozen:  # the live prefix with its dropout off, which train() would switch on
        part.train = lambda mode=True: None  # type: ignore[method-assign, assignment]
        for module in part.modules():
            module.training = False
    with cache.attached():
        found = losses(model, data)
    for module in live.modules():
        module.training = not any(module is inner for part in frozen for inner in part.modules())
    expected = losses(live, data)
    assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("dtype", "near"), [("float16", 2e-3), ("bfloat16", 2e-2)])
def test_sixteen_bits_are_near(dtype: str, near: float, tmp_path: Path) -> None:
    data = batches()
    config = config_of("bert")
    live = losses(wrapped(tiny("bert", **config)), data)
    model = wrapped(tiny("bert", **config))
    cache = cached(model, tmp_path, data[0], dtype)
    with cache.attached():
        assert losses(model, data) == pytest.approx(live, abs=near)
    sizes = [file.stat().st_size for file in tmp_path.rglob("*.states")]
    tokens = sum(int(batch["attention_mask"].sum()) for batch in data)
    assert sum(sizes) == tokens * 16 * 2  # no byte for padding


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_autocast_rounds_more_than_the_states_type_says(precision: str, tmp_path: Path) -> None:
    # Norms return fp32 under autocast, and what they norm comes from products in bf16.
    lengths = (5, 23, 41, 60)
    mask = (torch.arange(60) < torch.tensor(lengths)[:, None]).long()
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(5, VOCAB, mask.shape, generator=draw) * mask + PAD * (1 - mask)
    batch = {"input_ids": ids, "attention_mask": mask, "labels": torch.zeros(4, dtype=torch.long)}
    torch.manual_seed(0)
    config = hf.BertConfig(vocab_size=VOCAB, hidden_size=128, num_hidden_layers=4, num_attention_heads=4)
    cache = PrefixCache(wrapped(hf.BertForSequenceClassification(config)), CacheSettings(tmp_path), precision)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        cache.prepare(batch)
    assert cache.border is not None
    assert cache.probed is not None
    assert cache.border.dtype == torch.float32
    assert (cache.probed.exact > 1e-4) == (precision == "bf16")
    cache.close()


def test_a_whole_frozen_stack(tmp_path: Path) -> None:
    data = batches()
    for name in ("bert", "t5"):
        live = losses(wrapped(tiny(name, **config_of(name)), "linear-probe"), data)
        model = wrapped(tiny(name, **config_of(name)), "linear-probe")
        cache = cached(model, tmp_path, data[0])
        assert cache.border is not None
        assert cache.border.length == 4
        with cache.attached():
            assert losses(model, data) == pytest.approx(live, abs=1e-6)


@pytest.mark.parametrize("name", ["llama", "qwen2", "opt"])
def test_left_padding_where_positions_follow_the_mask(name: str, tmp_path: Path) -> None:
    data = batches(side="left")
    config = config_of(name)
    live = losses(wrapped(tiny(name, **config)), data)
    model = wrapped(tiny(name, **config))
    cache = cached(model, tmp_path, data[0])
    with cache.attached():
        assert losses(model, data) == pytest.approx(live, abs=2e-6)


@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_left_padding_where_positions_do_not_is_refused(name: str, tmp_path: Path) -> None:
    model = wrapped(tiny(name))
    with pytest.raises(NotCacheable, match="depend on padding"):
        cached(model, tmp_path, batches(side="left")[0])


def test_language_models(tmp_path: Path) -> None:
    for name in ("gpt2", "llama", "t5"):
        data = batches()
        for batch in data:
            batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        config = config_of(name)
        live = losses(wrapped(tiny_generator(name, **config)), data)
        model = wrapped(tiny_generator(name, **config))
        cache = cached(model, tmp_path, data[0])
        with cache.attached():
            assert losses(model, data) == pytest.approx(live, abs=1e-6)
            # Generation keeps keys and values of every layer, so it runs them.
            inputs = {key: data[0][key] for key in ("input_ids", "attention_mask")}
            with_cache = model.eval().generate(**inputs, max_new_tokens=3, do_sample=False)
        assert torch.equal(with_cache, model.generate(**inputs, max_new_tokens=3, do_sample=False))


def test_the_model_is_as_before_when_the_cache_is_detached(tmp_path: Path) -> None:
    data = batches()
    model = wrapped(tiny("bert")).eval()
    before = model(**data[0]).logits
    base = model.get_base_model()
    forwards = {name: vars(module).get("forward") for name, module in base.named_modules()}
    hooks = {
        name: (len(module._forward_hooks), len(module._forward_pre_hooks)) for name, module in base.named_modules()
    }
    cache = cached(model, tmp_path, data[0])
    with cache.attached():
        model(**data[0])
    assert {name: vars(module).get("forward") for name, module in base.named_modules()} == forwards
    assert {
        name: (len(module._forward_hooks), len(module._forward_pre_hooks)) for name, module in base.named_modules()
    } == hooks
    assert torch.equal(model(**data[0]).logits, before)
    assert not any(module.training for module in model.modules())


def test_a_copy_of_the_model_is_a_plain_one(tmp_path: Path) -> None:
    batch = batches(1)[0]
    model = wrapped(tiny("bert")).eval()
    cache = cached(model, tmp_path, batch)
    file = io.BytesIO()
    with cache.attached():
        model(**batch)
        copied = copy.deepcopy(model)
        torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    used = cache.use.read
    before = model(**batch).logits
    for other in (copied, loaded):
        assert torch.equal(other(**batch).logits, before)
        with torch.no_grad():
            other.get_base_model().bert.embeddings.LayerNorm.bias.add_(1)
            other.get_base_model().classifier.modules_to_save.default.bias.add_(1)
        assert not torch.allclose(other(**batch).logits, before + 1)
        assert other.get_base_model().bert is not model.get_base_model().bert
    with cache.attached():  # the copy has weights and layers of its own while the model reads states
        copied(**batch)
    assert torch.equal(model(**batch).logits, before)
    assert cache.use.read == used


# -- models that cannot be cached say why --


def test_cached_passes_look_up_one_row_of_the_embeddings(tmp_path: Path) -> None:
    model = wrapped(tiny("bert"))
    batch = batches(1)[0]
    cache = cached(model, tmp_path, batch)
    looked_up: list[torch.Tensor] = []
    table = cache.base.get_submodule("bert.embeddings.word_embeddings")
    look_up = table.forward

    def note(ids: torch.Tensor) -> torch.Tensor:
        looked_up.append(look_up(ids))
        return looked_up[-1]

    table.forward = note
    model.eval()
    with cache.attached():
        model(**batch)  # computed and stored
        read = model(**batch).logits
    assert looked_up[-1].shape[:2] == batch["input_ids"].shape
    assert torch.equal(looked_up[-1], table.weight[0].expand_as(looked_up[-1]))
    live = model(**batch).logits
    assert torch.equal(looked_up[-1], table.weight[batch["input_ids"]])
    torch.testing.assert_close(read, live, rtol=0, atol=1e-6)
    cache.close()


def refusal(model: nn.Module, tmp_path: Path, batch: dict[str, torch.Tensor] | None = None) -> str:
    with pytest.raises(NotCacheable) as caught:
        cached(model, tmp_path, batch or batches()[0])
    return str(caught.value)


def test_strategies_without_a_frozen_prefix(tmp_path: Path) -> None:
    assert "bert.encoder.layer.0 is not frozen" in refusal(wrapped(tiny("bert"), "bitfit"), tmp_path)
    assert "is not frozen" in refusal(tiny("bert"), tmp_path)
    embeddings_train = wrapped(tiny("bert"))
    embeddings_train.get_base_model().bert.embeddings.LayerNorm.bias.requires_grad = True
    assert "embeddings.LayerNorm.bias trains" in refusal(embeddings_train, tmp_path)


def test_deltas_of_the_embeddings() -> None:
    upper = Stratum(layers=(0.5, 1.0), lora=("query", "value"), r=4)
    model = wrapped(tiny("bert"), Strategy(name="mine", strata=(upper,), outer_biases=True))
    with pytest.raises(NotCacheable, match=r"embeddings\.LayerNorm\.lora_delta\.default trains"):
        find_border(model, batches()[0])


def peft_model(**config: Any) -> nn.Module:
    """Stock PEFT's LoRA in the upper layers, and what `config` adds to it."""
    torch.manual_seed(0)
    targets = [f"layer.{index}.attention.self.query" for index in (2, 3)] + config.pop("targets", [])
    given = LoraConfig(task_type="SEQ_CLS", target_modules=targets, init_lora_weights=False, **config)
    return get_peft_model(tiny("bert"), given)


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"targets": ["word_embeddings"]}, "word_embeddings.lora_embedding_A.default"),
        ({"trainable_token_indices": [5, 6]}, "word_embeddings.token_adapter.trainable_tokens_delta.default"),
        ({"modules_to_save": ["word_embeddings"]}, "word_embeddings.modules_to_save.default.weight"),
    ],
)
def test_adapters_of_the_embeddings(config: dict[str, Any], name: str, tmp_path: Path) -> None:
    assert f"{name} trains" in refusal(peft_model(**config), tmp_path)
    # and one that does not train: whether it is active is not seen in its weights
    assert "holds an adapter" in refusal(peft_model(**config, inference_mode=True), tmp_path)


def test_what_trains_outside_of_the_base(tmp_path: Path) -> None:
    prompt = get_peft_model(tiny("bert"), PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=4))
    assert "a learned prompt" in refusal(prompt, tmp_path)
    model = wrapped(tiny("bert"))
    model.register_parameter("scale", nn.Parameter(torch.ones(1)))
    assert "scale trains outside of the base model" in refusal(model, tmp_path)


def test_what_comes_to_train_while_the_cache_is_open(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = batches()
    config = config_of("bert")
    model = wrapped(tiny("bert", **config))
    weight = model.get_base_model().bert.encoder.layer[1].output.dense.weight
    cache = cached(model, tmp_path, data[0])
    with cache.attached():
        losses(model, data, epochs=1)
        assert weight.grad is None
        weight.requires_grad = True
        model(**data[0]).loss.backward()
    assert weight.grad is not None
    assert "trains now" in caplog.text


def test_inputs_that_train(tmp_path: Path) -> None:
    batch = batches()[0]
    model = wrapped(tiny("bert", **config_of("bert")))
    ids = batch.pop("input_ids")
    batch["inputs_embeds"] = model.get_base_model().bert.embeddings.word_embeddings(ids).detach()
    cache = cached(model, tmp_path, batch)
    batch["inputs_embeds"].requires_grad = True
    with cache.attached():
        model(**batch).loss.backward()
    assert batch["inputs_embeds"].grad is not None


def test_another_adapter_in_the_frozen_layers(tmp_path: Path) -> None:
    model = wrapped(tiny("bert"))
    model.add_adapter("all", wrapped(tiny("bert"), "lora-II").peft_config["default"])
    assert "is not frozen" in refusal(model, tmp_path)


def test_convbert_reads_padding(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = hf.ConvBertForSequenceClassification(
        hf.ConvBertConfig(
            vocab_size=VOCAB,
            hidden_size=16,
            embedding_size=16,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=32,
            max_position_embeddings=32,
            pad_token_id=PAD,
            initializer_range=0.5,
        )
    )
    for parameter in model.convbert.embeddings.parameters():
        parameter.requires_grad = False
    for layer in model.convbert.encoder.layer[:2]:
        layer.requires_grad_(False)
    assert "depend on padding" in refusal(model, tmp_path)


def test_a_loss_that_reads_padding(tmp_path: Path) -> None:
    """A question's answer is one of all tokens of the batch, so that what padding says has a part in the loss."""
    config = tiny("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).config
    model = wrapped(hf.BertForQuestionAnswering(config))
    batch = batches()[0]
    names = ("start_positions", "end_positions")
    batch |= dict.fromkeys(names, batch.pop("labels"))
    with pytest.raises(NotCacheable, match=r"\(loss\) differ by .* depend on padding"):
        PrefixCache(model, CacheSettings(tmp_path, dtype="float32"), ignored=names).prepare(batch)


def test_inputs_that_are_no_tensors(tmp_path: Path) -> None:
    """They may say what the states are, such as a task's number, and no row is filed under them."""
    batch: dict[str, Any] = {**batches()[0], "task": 1}
    assert "inputs that are no tensors" in refusal(wrapped(tiny("bert")), tmp_path, batch)


def test_albert_layerdrop_and_spec_augment(tmp_path: Path) -> None:
    albert = hf.AlbertForSequenceClassification(
        hf.AlbertConfig(
            vocab_size=VOCAB,
            hidden_size=16,
            embedding_size=16,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=32,
            max_position_embeddings=32,
        )
    )
    assert "one set of weights for all of its layers" in refusal(albert.requires_grad_(False), tmp_path)
    assert "encoder_layerdrop" in refusal(wrapped(tiny("bart", encoder_layerdrop=0.1)), tmp_path)
    masking = wrapped(tiny("bert", apply_spec_augment=True, mask_time_prob=0.1))  # fields of speech models
    assert "set apply_spec_augment to False" in refusal(masking, tmp_path)


def test_a_model_that_looks_back_at_an_early_layer(tmp_path: Path) -> None:
    model = wrapped(tiny("bert"))
    early, late = (model.get_base_model().bert.encoder.layer[index] for index in (0, 3))
    kept: list[torch.Tensor] = []
    both = early.forward, late.forward

    def keep(*args: Any, **kwargs: Any) -> torch.Tensor:
        kept.append(both[0](*args, **kwargs))
        return kept[-1]

    early.forward, late.forward = keep, lambda *args, **kwargs: both[1](*args, **kwargs) + kept.pop()[:1, :1]
    assert "differ by" in refusal(model, tmp_path)


def test_states_beyond_float16(tmp_path: Path) -> None:
    model = wrapped(tiny("gpt2"))
    with torch.no_grad():
        model.get_base_model().transformer.wte.weight *= 1e6
    with pytest.raises(NotCacheable, match="set prefix_cache_dtype to bfloat16"):
        cached(model, tmp_path, batches()[0], "float16")
    cached(model, tmp_path, batches()[0], "bfloat16")


def test_the_border_says_what_lies_before_it() -> None:
    border = find_border(wrapped(tiny("bert")), batches()[0])
    assert border.layers == ("bert.encoder.layer.0", "bert.encoder.layer.1")
    assert "bert.embeddings.dropout" in border.before
    assert "bert.encoder.layer.2" in border.after
    assert not any(name.startswith("bert.encoder.layer.1") for name in border.after)
    t5 = find_border(wrapped(tiny("t5")), batches()[0])
    assert "transformer.encoder.dropout" not in t5.before  # runs once more, after the last layer
