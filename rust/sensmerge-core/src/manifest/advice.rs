//! What is probably the matter with models whose tensors do not match, from their names alone, and what
//! to do.

use crate::checkpoint::{Checkpoint, Format, TensorInfo};
use crate::dtype::Code;

/// What wrappers of a training run put before all names of a model.
const WRAPPERS: [(&str, &str); 3] = [
    ("_orig_mod.", "torch.compile"),
    ("module.", "a data-parallel run"),
    ("base_model.model.", "PEFT"),
];

/// Parts of names that quantised layers have in place of a weight, the longer before the shorter.
const QUANTISED: [&str; 7] = [
    ".qweight",
    ".qzeros",
    ".weight_scale_inv",
    ".weight_scale",
    ".weight_packed",
    ".SCB",
    ".absmax",
];

/// Output heads, which may be tied to the input embedding.
const HEADS: [&str; 2] = ["lm_head.weight", "embed_out.weight"];

/// What rewrites a checkpoint as transformers writes it today.
const SAVE_AGAIN: &str = "AutoModelForCausalLM's from_pretrained and save_pretrained";

/// What is probably the matter where one model has a tensor and another has none, and what to do.
pub(super) fn advice(
    name: &str,
    holder: &Checkpoint,
    lacking: &Checkpoint,
    expert: &Checkpoint,
) -> String {
    let names = |checkpoint: &'_ Checkpoint, part: &str| {
        checkpoint.tensors().any(|tensor| tensor.name.contains(part))
    };
    for checkpoint in [holder, lacking] {
        let path = checkpoint.path().display();
        if names(checkpoint, ".lora_") {
            return format!(
                "; {path} holds tensors of a LoRA adapter: merge it into its base first (PEFT's \
                 merge_and_unload)"
            );
        }
        if let Some(part) = QUANTISED.iter().find(|part| names(checkpoint, part)) {
            return format!(
                "; {path} is quantised (it has tensors named '*{part}'): convert it to bfloat16 \
                 first, or name the model that it was made from"
            );
        }
    }
    for checkpoint in [holder, lacking] {
        if let Some((prefix, wrapper)) = wrapper(checkpoint) {
            return format!(
                "; names in {} start with '{prefix}', which {wrapper} left there: save the model \
                 inside the wrapper, or take the prefix off",
                checkpoint.path().display()
            );
        }
    }
    let path = holder.path().display();
    if let Some(layers) = predicting_layers(name, holder) {
        return format!(
            "; '{layers}' is for multi-token prediction, which transformers leaves out when it \
             loads a model, so that fine-tunes lack it: write missing: base to keep it as it is, or \
             missing: skip to leave it out"
        );
    }
    if is_causal_mask(name, holder) {
        return format!(
            "; it is a causal mask, which old checkpoints store and which is no parameter: save \
             {path} again ({SAVE_AGAIN}), which leaves it out, or write missing: skip"
        );
    }
    if HEADS.contains(&name) {
        return format!(
            "; it is the output head: if that of {0} is tied to its input embedding, as Gemma's is \
             without being said, write \"tie_word_embeddings\": true into {0}'s config.json; \
             otherwise one of the two was saved without its head",
            expert.path().display()
        );
    }
    "; the two are models of different architectures, or one was saved in part; missing: base or \
     missing: skip in the recipe merge what both have"
        .to_owned()
}

/// Whether a prefix starts with a wrapper's name: the output must not have it.
pub(super) fn is_wrapper(prefix: &str) -> bool {
    WRAPPERS.iter().any(|(wrapper, _)| prefix.starts_with(wrapper))
}

/// The wrapper whose name stands before all names of a model.
fn wrapper(checkpoint: &Checkpoint) -> Option<(&'static str, &'static str)> {
    let all = |prefix: &str| checkpoint.tensors().all(|tensor| tensor.name.starts_with(prefix));
    WRAPPERS.into_iter().find(|(prefix, _)| all(prefix))
}

/// The layers for multi-token prediction that a tensor is part of, by their names.
fn predicting_layers<'n>(name: &'n str, holder: &Checkpoint) -> Option<&'n str> {
    let mut parts = name.match_indices('.').map(|(dot, _)| &name[..dot]);
    parts.find(|part| {
        let last = part.rsplit('.').next().unwrap_or(part);
        // Qwen and MiMo give them a name; DeepSeek and GLM number them after the other layers, and
        // they alone have a projection of an embedding and a hidden state side by side.
        last == "mtp"
            || last.starts_with("mtp_")
            || last.parse::<u32>().is_ok()
                && holder.get(&format!("{part}.eh_proj.weight")).is_some()
    })
}

/// Whether a tensor is the triangle, or the number in place of what it hides, of GPT-2 and
/// GPT-NeoX.
fn is_causal_mask(name: &str, holder: &Checkpoint) -> bool {
    let shape = holder.get(name).map_or(&[][..], |tensor| &tensor.shape);
    let of_attention = |part: &str| {
        ["attn", "attention"].iter().any(|layer| name.ends_with(&format!(".{layer}.{part}")))
    };
    match shape {
        [1, 1, rows, columns] => of_attention("bias") && rows == columns,
        [] => of_attention("masked_bias"),
        _ => false,
    }
}

/// Why a tensor is not computed with, and what to do.
pub(super) fn not_floats(tensor: &TensorInfo, checkpoint: &Checkpoint) -> String {
    if let Some(Ok(scheme)) = checkpoint.quantised().map(|found| &found.scheme)
        && Code::of(tensor.dtype).is_some()
    {
        let ending = if scheme.format == Format::Float8 { "_scale_inv" } else { "_scale" };
        return format!(
            "its scale, '{}{ending}', is missing; the checkpoint was probably saved in part",
            tensor.name
        );
    }
    let quantised =
        QUANTISED.iter().any(|part| checkpoint.tensors().any(|tensor| tensor.name.contains(part)));
    if quantised || tensor.dtype.name().starts_with("F8") || tensor.dtype.name().starts_with("F4") {
        return format!(
            "{} is quantised: convert it to bfloat16 first, or name the model that it was made from",
            checkpoint.path().display()
        );
    }
    "only BF16, F16, F32 and F64 can be merged".to_owned()
}
