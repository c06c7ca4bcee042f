"""What transformers gets of a model's folder: no code, no other file, no bomb, and no panic."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from families import CHAT_TEMPLATE, Family, word_tokenizer
from hostile_files import EVIL
from sensmerge import InputError
from sensmerge.calibration import loading, rendering, vetted
from sensmerge.calibration.layout import tokens
from sensmerge.calibration.mapped import mapped
from sensmerge.calibration.rendering import TemplateError, render


@pytest.fixture
def model(family: Family, tmp_path: Path) -> Path:
    return family.copy(tmp_path).folder / "e0"


def change(folder: Path, name: str = "config.json", **keys: Any) -> None:
    path = folder / name
    data = json.loads(path.read_text()) | keys
    path.write_text(json.dumps(data))


def refused(folder: Path) -> str:
    with pytest.raises(InputError) as error:
        loading.load(loading.open_source("e0", folder, None), "stored")
    return str(error.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attn_implementation", "org/kernel"),
        ("attn_implementation", "org/kernel@v1:attend"),
        ("attn_implementation", "paged|org/kernel"),
        ("attn_implementation", {"": "sdpa", "text_config": "org/kernel"}),
        ("_attn_implementation", "org/kernel"),
        ("_attn_implementation_internal", "org/kernel"),
        ("experts_implementation", "org/kernel"),
        ("_experts_implementation", ["org/kernel"]),
        ("text_config", {"attn_implementation": "org/kernel"}),
        ("vision_config", {"inner": {"_attn_implementation_internal": "org/kernel"}}),
    ],
)
def test_kernels_are_refused_by_name(model: Path, key: str, value: Any) -> None:
    change(model, **{key: value})
    said = refused(model)
    assert said.startswith(f"{model / 'config.json'}: ")
    assert "org/kernel" in said
    assert "names code to download" in said


def test_what_a_config_asks_for_beside_a_model_is_left_out(model: Path) -> None:
    (model / "evil.py").write_text("raise SystemExit('code was run')")
    change(
        model,
        attn_implementation="flash_attention_2",
        experts_implementation="batched_mm",
        auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"},
        quantization_config={"quant_method": "awq", "bits": 4},
        use_kernels=True,
        num_labels=10**12,
        return_dict=False,
        output_attentions=True,
        to_dict="a",
        __class__="b",
        _name_or_path="/etc/hostname",
    )
    change(
        model,
        "tokenizer_config.json",
        auto_map={"AutoTokenizer": ["evil.T", None]},
        vocab_file="/dev/zero",
        special_tokens_map_file="/dev/zero",
    )
    source = loading.open_source("e0", model, None)
    assert source.tokenizer.name_or_path == str(model)
    loaded: Any = loading.load(source, "stored")
    assert loaded.config._attn_implementation == "sdpa"
    assert loaded.config._experts_implementation in (None, "eager", "grouped_mm")
    plain: Any = transformers.AutoModelForCausalLM.from_config
    assert type(loaded) is type(plain(vetted.config_of(model, mapped(model))))
    ids = torch.tensor([[1, 5, 9]])
    assert loaded(ids).logits.shape[:2] == (1, 3)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"num_hidden_layers": 10**6}, "num_hidden_layers: is 1000000, and the weights have 3"),
        ({"num_hidden_layers": 10**18}, "num_hidden_layers"),
        ({"vision_config": {"num_hidden_layers": 10**6}}, "num_hidden_layers"),
        ({"num_local_experts": 10**6}, "num_local_experts"),
        ({"vocab_size": 10**10}, "describes a model of"),
        ({"intermediate_size": 10**9}, "describes a model of"),
        ({"hidden_size": 2**40}, "e0"),
        ({"num_attention_heads": 0}, "e0"),
        ({"hidden_act": EVIL}, "e0"),
        ({"rope_parameters": [1]}, "e0"),
        ({"model_type": "of nobody"}, "e0"),
        ({"vocab_size": "many"}, "e0"),
    ],
)
def test_a_config_fits_the_weights(model: Path, keys: dict[str, Any], said: str) -> None:
    change(model, **keys)
    assert said in refused(model)


def edited(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "tokenizer.json"
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))


def of_no_length(data: dict[str, Any]) -> None:
    data["pre_tokenizer"] = {"type": "FixedLength", "length": 0}


def of_no_tokens(data: dict[str, Any]) -> None:
    data["post_processor"]["special_tokens"] = {}


def of_no_map(data: dict[str, Any]) -> None:
    data["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}


@pytest.mark.parametrize("edit", [of_no_length, of_no_tokens, of_no_map])
def test_panics_of_tokenizers_are_errors(
    model: Path, capfd: pytest.CaptureFixture[str], edit: Callable[[dict[str, Any]], object]
) -> None:
    edited(model, edit)
    with pytest.raises(InputError, match="gave up") as error:
        tokens(vetted.tokenizer_of(model), "w1 w2", special=True)
    assert str(error.value).startswith(f"{model}: its tokenizer ")
    assert capfd.readouterr().err == ""


TURNS = [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2 w3"}]
MARKED = (
    "{% for m in messages %}{{ m.role }}{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}{{ eos_token }}"
    "{% endfor %}"
)


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, MARKED, "{{ messages | tojson }}{{ tools }}"])
def test_templates_are_laid_out_as_by_transformers(template: str) -> None:
    tokenizer = word_tokenizer()
    tokenizer.chat_template = template
    variables = dict(tokenizer.special_tokens_map)
    for prompt in (False, True):
        theirs = tokenizer.apply_chat_template(TURNS, tokenize=False, add_generation_prompt=prompt)
        ours = render(template, TURNS, None, variables, add_generation_prompt=prompt)
        assert ours.text == theirs
    if template == MARKED:
        found = render(template, TURNS, None, variables, marks=True)
        assert [found.text[start:end] for start, end in found.marked] == ["w2 w3"]


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "took"),
        ("{{ 'a' * 10 ** 10 }}", "took"),
        ("{% set ns = namespace(a='a') %}{% for i in range(99) %}{% set ns.a = ns.a ~ ns.a %}"
         "{% endfor %}", "took"),
        ("{{ 'a' * 5 * 10 ** 6 }}", "characters"),
        ("{% for i in range(99999) %}{{ messages }}{% endfor %}", "characters"),
        ("{{ raise_exception('no') }}", "no"),
        ("{{ messages.__class__.__mro__ }}", "."),
        ("{% import 'os' as os %}", "."),
        ("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "."),
        ("{" * 50_000, "."),
        ("{{ " + "(" * 50_000, "."),
    ],
)  # fmt: skip
def test_templates_have_bounds(template: str, said: str) -> None:
    with pytest.raises(TemplateError, match=said):
        render(template, TURNS, None, {})
    assert render("{{ messages[0].content }}", TURNS, None, {}).text == "w1"


def test_a_process_of_templates_that_is_gone_is_replaced() -> None:
    assert render("a", TURNS, None, {}).text == "a"
    process = rendering._Process.current()
    process._child.kill()
    process._child.wait()
    assert render("b", TURNS, None, {}).text == "b"
