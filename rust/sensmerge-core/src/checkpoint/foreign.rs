//! What stands in a model's place and is no safetensors: said by its name, with what to do.

use std::path::Path;

use super::mapping;

/// The settings of a PEFT adapter.
pub(super) const ADAPTER_CONFIG: &str = "adapter_config.json";

/// What to do about GGUF.
pub(super) const GGUF: &str = "GGUF is llama.cpp's format, mostly of quantized weights, and is not \
                               read; convert it to safetensors (transformers' from_pretrained with \
                               gguf_file, then save_pretrained), or name the model that it was \
                               made from";

/// What to do about files of `torch.save`.
pub(super) const PICKLE: &str = "a pickle can run code and is not read; convert it to safetensors \
                                 (transformers' from_pretrained, then save_pretrained)";

/// What a file is, told from its first bytes, where it is no safetensors file.
pub(super) fn kind(file: &[u8]) -> Option<String> {
    // Torch's older files start with a number of its own, pickled.
    let pickles: [&[u8]; 2] = [b"PK\x03\x04", b"\x80\x02\x8a\x0a"];
    if file.starts_with(b"GGUF") {
        Some(format!("is a GGUF file: {GGUF}"))
    } else if pickles.iter().any(|start| file.starts_with(start)) {
        Some(format!("is a file of torch.save: {PICKLE}"))
    } else if file.starts_with(b"version https://git-lfs") {
        Some("is a pointer of Git LFS, not the weights; run git lfs pull in its folder".into())
    } else {
        None
    }
}

/// Whether a file's name says that it holds weights, in any format.
pub(super) fn holds_weights(name: &str) -> bool {
    let ends = |end: &str| name.len() > end.len() && name.ends_with(end);
    let named = ["adapter_model.bin", "flax_model.msgpack", "tf_model.h5"];
    is_pickle(name)
        || named.contains(&name)
        || [".safetensors", ".safetensors.index.json", ".gguf"].into_iter().any(ends)
}

/// Whether a file's name is one that `torch.save` gave weights of a whole model.
///
/// Trainers leave other pickles beside the weights, such as `training_args.bin`.
pub(super) fn is_pickle(name: &str) -> bool {
    let of = |start: &str, end: &str| name.starts_with(start) && name.ends_with(end);
    of("pytorch_model", ".bin")
        || of("pytorch_model", ".bin.index.json")
        || of("consolidated", ".pth")
}

/// Whether a file's name is that of an adapter's weights.
pub(super) fn is_adapter(name: &str) -> bool {
    name.starts_with("adapter_model.") || name.starts_with("adapter_model-")
}

/// What to do about an adapter, whose settings may be at `config`.
pub(super) fn adapter(config: &Path) -> String {
    // It is refused whatever they say, and whether or not they can be read.
    let text = mapping::read(config).unwrap_or_default();
    let said: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
    let kind = match said["peft_type"].as_str() {
        None | Some("LORA") => "a LoRA adapter".to_owned(),
        Some(other) => format!("an adapter ({other})"),
    };
    let base = said["base_model_name_or_path"].as_str();
    let base = base.map_or_else(String::new, |base| format!(" for '{base}'"));
    format!(
        "is {kind}{base}, not a whole model; merge it into its base first (PEFT's \
         merge_and_unload) and name the result"
    )
}

/// Names in one line: the first few, and how many more there are.
pub(super) fn enumerate<'n>(names: impl IntoIterator<Item = &'n str>) -> String {
    const SHOWN: usize = 3;
    let names: Vec<&str> = names.into_iter().collect();
    match names.len().saturating_sub(SHOWN) {
        0 => names.join(", "),
        // As long as the name that it would leave out.
        1 => names.join(", "),
        more => format!("{} and {more} others", names[..SHOWN].join(", ")),
    }
}
