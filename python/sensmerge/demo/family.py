"""A family of Llama-shaped models, small enough to train while you wait.

The base learns all tasks a little. Each expert goes on from the base with one task, scored on
completions alone, as instruction tuning does. All are saved as transformers saves them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from sensmerge.calibration.surroundings import quiet_transformers, torch_threads
from sensmerge.demo.text import Amounts, Corpus, Sample

BEGIN, END = "<s>", "</s>"
SPECIAL = [BEGIN, END]  # a token's place here is its id
IGNORED = -100  # cross_entropy's default for targets that do not count


@dataclass(frozen=True)
class Size:
    """How large the models are and how long they learn.

    Attributes:
        amounts: Text a task.
        vocabulary: Tokens of the tokenizer.
        hidden: Width of the models.
        blocks: Decoder blocks.
        base_steps: Training steps of the base.
        expert_steps: Training steps of each expert.
        rows: Rows a step; a multiple of the number of tasks.
        length: Tokens a row.
    """

    amounts: Amounts
    vocabulary: int
    hidden: int
    blocks: int
    base_steps: int
    expert_steps: int
    rows: int
    length: int


FULL = Size(
    amounts=Amounts(training=600_000, calibration=30, development=40, held_back=60),
    vocabulary=2048,
    hidden=96,
    blocks=6,
    base_steps=200,
    expert_steps=90,
    rows=12,
    length=96,
)
QUICK = Size(
    amounts=Amounts(training=40_000, calibration=5, development=4, held_back=6),
    vocabulary=400,
    hidden=64,
    blocks=3,
    base_steps=12,
    expert_steps=6,
    rows=3,
    length=32,
)

BASE_LEARNING_RATE = 4e-3
EXPERT_LEARNING_RATE = 2e-3

Say = Callable[[str], None]


def build(folder: Path, corpora: dict[str, Corpus], size: Size, seed: int, say: Say) -> None:
    """Train the tokenizer, the base and one expert a task; save each in its own folder.

    Args:
        folder: Gets ``base/`` and a folder named after each task.
        corpora: Each task's text.
        size: How large, how long.
        seed: Of initialisation and of the order of the text.
        say: Told what is going on.
    """
    tokenizer = train_tokenizer(corpora, size.vocabulary)
    streams = {task: _stream(tokenizer, corpus.training) for task, corpus in corpora.items()}
    model = _untrained(tokenizer, size, seed)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    say(f"base: {parameters / 1e6:.1f} M parameters, {size.blocks} blocks, all tasks")
    everything = [torch.stack([ids, ids]) for ids, _ in streams.values()]
    batches = _batches(everything, size.rows // len(streams), size.length, seed)
    for _ in _steps(model, batches, size.base_steps, BASE_LEARNING_RATE, say, "base"):
        pass
    _save(model, tokenizer, folder / "base", shards=1)
    # Experts start from the base as it is stored, so that a task vector is what they learned.
    experts = {task: deepcopy(model) for task in streams}
    lessons = []
    for place, (task, (ids, scored)) in enumerate(streams.items()):
        say(f"expert {task}: from the base, on {task} alone")
        completions = torch.stack([ids, torch.where(scored == 1, ids, IGNORED)])
        batches = _batches([completions], size.rows, size.length, seed + 1 + place)
        lessons.append(
            _steps(experts[task], batches, size.expert_steps, EXPERT_LEARNING_RATE, say, task)
        )
    _side_by_side(lessons)
    for place, task in enumerate(streams):
        # One expert in several files, as large checkpoints are.
        shards = 3 if place == len(streams) - 1 else 1
        _save(experts[task], tokenizer, folder / task, shards)


def train_tokenizer(corpora: dict[str, Corpus], vocabulary: int) -> Tokenizer:
    """A byte-level BPE tokenizer that puts a begin token before every text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = [sample.text for corpus in corpora.values() for sample in corpus.training]
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", special_tokens=[(BEGIN, SPECIAL.index(BEGIN))]
    )
    return tokenizer


def _untrained(tokenizer: Tokenizer, size: Size, seed: int) -> transformers.LlamaForCausalLM:
    heads = size.hidden // 32
    config = transformers.LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=size.hidden,
        intermediate_size=size.hidden * 11 // 4 // 16 * 16,
        num_hidden_layers=size.blocks,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        bos_token_id=SPECIAL.index(BEGIN),
        eos_token_id=SPECIAL.index(END),
        initializer_range=0.07,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.LlamaForCausalLM(config)
        # The usual 0.02 is for wide models and long training: with it a narrow one learns slowly,
        # and its first block is nearly all of its sensitivity.
        torch.nn.init.normal_(model.model.embed_tokens.weight, std=0.6)
    return model


def _stream(tokenizer: Tokenizer, samples: list[Sample]) -> torch.Tensor:
    """Samples end to end, [2, tokens]: token ids, and 1 for each token of a completion."""
    end = SPECIAL.index(END)
    prompts = tokenizer.encode_batch([sample.prompt for sample in samples])
    completions = tokenizer.encode_batch(
        [sample.completion for sample in samples], add_special_tokens=False
    )
    ids: list[int] = []
    scored: list[int] = []
    for prompt, completion in zip(prompts, completions, strict=True):
        ids += [*prompt.ids, *completion.ids, end]
        scored += [0] * len(prompt.ids) + [1] * (len(completion.ids) + 1)
    return torch.tensor([ids, scored])


def _batches(
    streams: list[torch.Tensor], rows: int, length: int, seed: int
) -> Iterator[torch.Tensor]:
    """Windows drawn from every stream, [2, rows · streams, length]: inputs and targets."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        windows = []
        for stream in streams:
            starts = torch.randint(0, stream.shape[1] - length, (rows,), generator=generator)
            windows += [stream[:, start : start + length] for start in starts.tolist()]
        yield torch.stack(windows, dim=1)


def _side_by_side(lessons: list[Iterator[None]]) -> None:
    """Go through lessons step by step, as many at a time as torch has threads, each with one.

    On matrices as small as these, two threads are a third faster than one, not twice.
    """
    threads = torch.get_num_threads()
    with torch_threads(1), ThreadPoolExecutor(threads) as pool:
        # Steps are taken in turns, so that three lessons keep two threads busy to the end.
        left = {pool.submit(next, lesson, _END): lesson for lesson in lessons}
        while left:
            for done in wait(left, return_when=FIRST_COMPLETED).done:
                lesson = left.pop(done)
                if done.result() is not _END:
                    left[pool.submit(next, lesson, _END)] = lesson


_END = object()


def _steps(
    model: transformers.LlamaForCausalLM,
    batches: Iterator[torch.Tensor],
    steps: int,
    learning_rate: float,
    say: Say,
    name: str,
) -> Iterator[None]:
    """Train, one step at a time: AdamW with a short warm-up and a linear decay to zero."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.01, fused=True
    )
    warm = max(1, steps // 20)
    model.train()
    for step in range(steps):
        factor = min((step + 1) / warm, (steps - step) / (steps - warm + 1))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * factor
        inputs, targets = next(batches)
        logits, wanted = scored_logits(model, inputs, targets)
        loss = torch.nn.functional.cross_entropy(logits, wanted)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % 100 == 0 or step + 1 == steps:
            say(f"  {name}: step {step + 1} of {steps}, training loss {loss.item():.2f}")
        yield


def scored_logits(
    model: transformers.PreTrainedModel, inputs: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits where a token is to be predicted, and that token; no others are computed.

    Args:
        model: The model.
        inputs: Token ids, [rows, length].
        targets: The same, or ``IGNORED`` for tokens that are not to be predicted.
    """
    hidden = model.base_model(input_ids=inputs, use_cache=False).last_hidden_state[:, :-1]
    wanted = targets[:, 1:]
    scored = wanted != IGNORED
    head: Any = model.get_output_embeddings()
    return head(hidden[scored]), wanted[scored]


def _save(
    model: transformers.LlamaForCausalLM, tokenizer: Tokenizer, folder: Path, shards: int
) -> None:
    """Save as bfloat16; the model goes on in float32 with the values that were saved."""
    fast: Any = transformers.PreTrainedTokenizerFast
    with quiet_transformers():
        torch.nn.Module.to(model, torch.bfloat16)
        model.save_pretrained(folder, max_shard_size=-(-model.get_memory_footprint() // shards))
        torch.nn.Module.to(model, torch.float32)
        fast(tokenizer_object=tokenizer, bos_token=BEGIN, eos_token=END).save_pretrained(folder)
