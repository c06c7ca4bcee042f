//! Schemes of quantisation, as a model's `config.json` names them. Nothing is inferred from tensors.

use std::path::Path;

use serde_json::Value;

use crate::checkpoint::mapping;
use crate::checkpoint::select::LARGEST_CONFIG;
use crate::dtype::{Dtype, Float};
use crate::error::{Error, Result};

/// The keys under which configs describe the quantisation.
const KEYS: [&str; 2] = ["quantization_config", "compression_config"];

/// What to do with a model whose quantisation is not read.
const CONVERT: &str = "convert it to bfloat16 first, or name the model that it was made from";

/// The scheme by which a model's tensors are quantised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scheme {
    /// How values and scales are stored.
    pub format: Format,
    /// What each scale belongs to.
    pub tile: Tile,
    /// Whether scales are powers of two.
    pub powers_of_two: bool,
}

/// How values and scales are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// transformers' `fp8`: `weight` and `weight_scale_inv`.
    Float8,
    /// compressed-tensors' `float-quantized`: `weight` and `weight_scale`.
    FloatQuantized,
    /// compressed-tensors' `pack-quantized` of four bits: `weight_packed`, `weight_scale` and
    /// `weight_shape`.
    PackQuantized,
    /// GPT-OSS' `mxfp4`: `_blocks` and `_scales`.
    Mxfp4,
}

/// The part of a matrix that one scale belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tile {
    /// The whole matrix.
    Matrix,
    /// A row.
    Row,
    /// This many rows and columns; fewer at the ends.
    Of([usize; 2]),
}

impl Tile {
    /// The number of rows and columns, in a matrix of this shape.
    pub(super) fn sizes(self, [rows, columns]: [usize; 2]) -> [usize; 2] {
        match self {
            Self::Matrix => [rows.max(1), columns.max(1)],
            Self::Row => [1, columns.max(1)],
            Self::Of(sizes) => sizes,
        }
    }
}

impl std::fmt::Display for Tile {
    fn fmt(&self, formatter: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Self::Matrix => write!(formatter, "a scale per tensor"),
            Self::Row => write!(formatter, "a scale per row"),
            Self::Of([1, columns]) => write!(formatter, "a scale per {columns} entries"),
            Self::Of([rows, columns]) => write!(formatter, "a scale per {rows} × {columns}"),
        }
    }
}

/// What a config says of a model's quantisation.
#[derive(Clone, Debug)]
pub(super) struct Said {
    /// The method in a few words, such as `gptq, 4 bit`.
    pub(super) words: String,
    /// The scheme, or what to do about one that is not read.
    pub(super) scheme: std::result::Result<Scheme, String>,
    /// The dtype that the tensors have when they are dequantised.
    pub(super) dtype: Dtype,
}

/// What the config at `path` says; `None` if it speaks of no quantisation.
///
/// # Errors
/// [`Error::File`] for a config that is not JSON, [`Error::Io`].
pub(super) fn read(path: &Path) -> Result<Option<Said>> {
    let text = mapping::read(path, LARGEST_CONFIG)?;
    // Python writes numbers into JSON (NaN, Infinity) that serde refuses: the config is parsed only
    // if it can hold a key.
    let holds = |key: &str| text.windows(key.len()).any(|window| window == key.as_bytes());
    if !KEYS.iter().any(|key| holds(key)) {
        return Ok(None);
    }
    let config: Value = serde_json::from_slice(&text)
        .map_err(|error| Error::file(path, format!("cannot be read as JSON: {error}")))?;
    // Models with a vision tower describe their language model in a part of their own.
    let parts = [&config, &config["text_config"]];
    let said = parts
        .iter()
        .find_map(|part| KEYS.iter().map(|key| &part[*key]).find(|said| said.is_object()));
    let dtype = parts.iter().find_map(|part| {
        let name = ["dtype", "torch_dtype"].iter().find_map(|key| part[*key].as_str())?;
        name.parse::<Float>().ok()
    });
    Ok(said.map(|said| {
        let (words, scheme) = scheme(said);
        Said { words, scheme, dtype: dtype.unwrap_or(Float::Bf16).dtype() }
    }))
}

fn scheme(said: &Value) -> (String, std::result::Result<Scheme, String>) {
    let method = said["quant_method"].as_str();
    match method {
        Some("fp8") => float8(said),
        Some("compressed-tensors") => compressed(said),
        Some("mxfp4") => {
            let tile = Tile::Of([1, 32]);
            let scheme = Scheme { format: Format::Mxfp4, tile, powers_of_two: true };
            ("mxfp4".to_owned(), Ok(scheme))
        }
        _ => {
            let flag = |key: &str| said[key].as_bool().unwrap_or(false);
            let bits = if flag("load_in_4bit") {
                Some(4)
            } else if flag("load_in_8bit") {
                Some(8)
            } else {
                said["bits"].as_u64()
            };
            let method = method.unwrap_or("by an unnamed method");
            let bits = bits.map_or_else(String::new, |bits| format!(", {bits} bit"));
            let advice = match method {
                "bitsandbytes" => format!(
                    "load it with transformers, call dequantize() and save_pretrained(), or {}",
                    "name the model that it was made from"
                ),
                _ => CONVERT.to_owned(),
            };
            (format!("{method}{bits}"), Err(advice))
        }
    }
}

fn float8(said: &Value) -> (String, std::result::Result<Scheme, String>) {
    let tile = match &said["weight_block_size"] {
        Value::Null => Some(Tile::Matrix),
        sizes => sizes_of(sizes).map(Tile::Of),
    };
    let Some(tile) = tile else {
        let reason = format!("its weight_block_size is not a pair of sizes; {CONVERT}");
        return ("fp8".to_owned(), Err(reason));
    };
    if said["expert_dtype"].as_str().is_some_and(|dtype| dtype != "fp8") {
        return ("fp8, with experts of four bits".to_owned(), Err(CONVERT.to_owned()));
    }
    let powers_of_two = said["scale_fmt"].as_str() == Some("ue8m0");
    let scheme = Scheme { format: Format::Float8, tile, powers_of_two };
    (format!("fp8, {tile}"), Ok(scheme))
}

/// The scheme of a compressed-tensors config, all of whose groups must store weights alike.
fn compressed(said: &Value) -> (String, std::result::Result<Scheme, String>) {
    let format = said["format"].as_str().unwrap_or("by an unnamed format");
    let words = format!("compressed-tensors, {format}");
    let refuse = |reason: &str| (words.clone(), Err(format!("{reason}; {CONVERT}")));
    let known = match format {
        "float-quantized" => (Format::FloatQuantized, "float", 8),
        "pack-quantized" => (Format::PackQuantized, "int", 4),
        _ => return (words, Err(CONVERT.to_owned())),
    };
    let groups = said["config_groups"].as_object();
    let mut schemes = Vec::new();
    for group in groups.into_iter().flat_map(|groups| groups.values()) {
        let weights = &group["weights"];
        let (format, kind, bits) = known;
        if group["format"].as_str().is_some_and(|own| Some(own) != said["format"].as_str()) {
            return refuse("its groups have different formats");
        }
        if weights["type"].as_str() != Some(kind) || weights["num_bits"].as_u64() != Some(bits) {
            return refuse(&format!("its weights are not {kind}s of {bits} bits"));
        }
        if weights["symmetric"].as_bool() == Some(false) {
            return refuse("its weights have zero points");
        }
        let strategy = weights["strategy"].as_str().unwrap_or("tensor");
        let size = || weights["group_size"].as_u64().filter(|size| *size > 0);
        let tile = match strategy {
            "tensor" => Some(Tile::Matrix),
            "channel" => Some(Tile::Row),
            "group" => size().map(|size| Tile::Of([1, size as usize])),
            "block" => sizes_of(&weights["block_structure"]).map(Tile::Of),
            _ => None,
        };
        let Some(tile) = tile else {
            return refuse(&format!("its scales are by '{strategy}', without a size"));
        };
        schemes.push(Scheme { format, tile, powers_of_two: false });
    }
    match schemes.as_slice() {
        [] => refuse("its config_groups say nothing of weights"),
        [first, others @ ..] if others.iter().all(|other| other == first) => {
            (format!("{words}, {} bit, {}", known.2, first.tile), Ok(*first))
        }
        _ => refuse("its groups store weights in different ways"),
    }
}

fn sizes_of(value: &Value) -> Option<[usize; 2]> {
    let sizes = value.as_array()?;
    let sizes: Vec<usize> = sizes.iter().filter_map(|size| Some(size.as_u64()? as usize)).collect();
    <[usize; 2]>::try_from(sizes).ok().filter(|sizes| !sizes.contains(&0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn tile(said: &Value) -> std::result::Result<Tile, String> {
        scheme(said).1.map(|scheme| scheme.tile)
    }

    #[test]
    fn a_config_says_what_each_scale_belongs_to() {
        let fp8 = json!({"quant_method": "fp8", "weight_block_size": [64, 128]});
        assert_eq!(tile(&fp8), Ok(Tile::Of([64, 128])));
        assert_eq!(tile(&json!({"quant_method": "fp8"})), Ok(Tile::Matrix));
        let odd = json!({"quant_method": "fp8", "weight_block_size": [0, 128]});
        assert!(tile(&odd).is_err());
        let compressed = |format: &str, weights: Value| {
            json!({"quant_method": "compressed-tensors", "format": format,
                   "config_groups": {"group_0": {"weights": weights}}})
        };
        let float = |strategy: &str| {
            compressed(
                "float-quantized",
                json!({"type": "float", "num_bits": 8, "strategy": strategy,
                       "block_structure": [128, 64]}),
            )
        };
        assert_eq!(tile(&float("tensor")), Ok(Tile::Matrix));
        assert_eq!(tile(&float("channel")), Ok(Tile::Row));
        assert_eq!(tile(&float("block")), Ok(Tile::Of([128, 64])));
        assert!(tile(&float("tensor_group")).is_err());
        let int = |bits: u64, symmetric: bool| {
            compressed(
                "pack-quantized",
                json!({"type": "int", "num_bits": bits, "symmetric": symmetric,
                       "strategy": "group", "group_size": 32}),
            )
        };
        assert_eq!(tile(&int(4, true)), Ok(Tile::Of([1, 32])));
        for unread in [int(8, true), int(4, false), float("group"), json!({"bits": 4})] {
            assert!(tile(&unread).is_err(), "{unread}");
        }
        let said = scheme(&json!({"quant_method": "gptq", "bits": 4}));
        assert_eq!(said, ("gptq, 4 bit".to_owned(), Err(CONVERT.to_owned())));
    }
}
