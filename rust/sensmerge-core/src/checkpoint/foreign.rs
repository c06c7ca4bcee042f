//! Files that are not safetensors but stand where a model is expected: refused by the name of their
//! format, with advice.

use std::path::Path;

use super::mapping;
use super::select::LARGEST_CONFIG;
use crate::error::Hint;

/// The settings of a PEFT adapter.
pub(super) const ADAPTER_CONFIG: &str = "adapter_config.json";

/// Advice on GGUF files.
pub(super) const GGUF: &str = "GGUF is llama.cpp's format, mostly of quantized weights, and is not \
                               read; convert it to safetensors (transformers' from_pretrained with \
                               gguf_file, then save_pretrained), or name the model that it was \
                               made from";

/// Advice on files written by `torch.save`.
pub(super) const PICKLE: &str = "a pickle can run code, and is read only where that is asked for; \
                                 convert it to safetensors once, or ask for it";

/// The format of a file that is not safetensors, as a refusal, recognised by its first bytes, and the
/// option that would have avoided it; `None` where they are not known.
pub(super) fn kind(file: &[u8]) -> Option<(String, Option<Hint>)> {
    // Zip archives, and torch's older format, which starts with a pickled magic number.
    let pickles: [&[u8]; 2] = [b"PK\x03\x04", b"\x80\x02\x8a\x0a"];
    if file.starts_with(b"GGUF") {
        Some((format!("is a GGUF file: {GGUF}"), None))
    } else if pickles.iter().any(|start| file.starts_with(start)) {
        Some((format!("is a file of torch.save: {PICKLE}"), Some(Hint::Unpickle)))
    } else if file.starts_with(b"version https://git-lfs") {
        let reason = "is a pointer of Git LFS, not the weights; run git lfs pull in its folder";
        Some((reason.into(), None))
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

/// Whether a file's name is one under which a whole model's weights are saved by `torch.save`.
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

/// The refusal of an adapter; `config` is the path of its settings, which need not exist.
pub(super) fn adapter(config: &Path) -> String {
    // The settings only make the message more specific, so that failing to read them is no error.
    let text = mapping::read(config, LARGEST_CONFIG).unwrap_or_default();
    let said: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
    let base = said["base_model_name_or_path"].as_str();
    let made_for = base.map_or_else(String::new, |base| format!(" for '{base}'"));
    match said["peft_type"].as_str() {
        None | Some("LORA") => {
            let folder = config.parent().and_then(Path::file_name).unwrap_or_default();
            format!(
                "is a LoRA adapter{made_for}, not a whole model; name it after the model that it is \
                 added to: {}+{}",
                base.unwrap_or("MODEL"),
                folder.display()
            )
        }
        Some(other) => format!(
            "is an adapter ({other}){made_for}, not a whole model; merge it into its base first \
             (PEFT's merge_and_unload) and name the result"
        ),
    }
}

/// Names in one line: the first few, and the number of the others.
pub(super) fn enumerate<'n>(names: impl IntoIterator<Item = &'n str>) -> String {
    const SHOWN: usize = 3;
    let names: Vec<&str> = names.into_iter().collect();
    match names.len().saturating_sub(SHOWN) {
        // "and 1 others" would save nothing over the name itself.
        0 | 1 => names.join(", "),
        more => format!("{} and {more} others", names[..SHOWN].join(", ")),
    }
}
