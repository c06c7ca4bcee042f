//! How output tensors are quantised: which of them, and the tensors that each is written as.

use std::collections::BTreeSet;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Manifest;
use crate::checkpoint::layout::TensorSpec;
use crate::checkpoint::{Checkpoint, Encoding, Format, TensorInfo, Tile};
use crate::dtype::{Code, Dtype, Float, UnknownFloat};
use crate::error::{Error, Result};

/// Rows and columns that share a scale in new fp8 models, as in the published ones.
const FLOAT8_TILE: [usize; 2] = [128, 128];

/// Entries that share a scale in new int4 models, as in the published ones.
const INT4_GROUP: usize = 32;

/// Modules that choose among experts: their last names.
const ROUTERS: [&str; 3] = ["gate", "router", "shared_expert_gate"];

/// Parts of names of modules that are left as they are: those that are no matrix products, and
/// encoders of other things than text.
const LEFT: [&str; 9] =
    ["embed", "norm", "conv", "router", "visual", "vision", "audio", "lora_", "wte"];

/// How an output tensor is quantised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Packing {
    /// transformers' `fp8`: float8 (e4m3fn), with a float32 scale for every tile.
    Float8 {
        /// Rows and columns of a tile.
        tile: [usize; 2],
        /// Whether scales are rounded up to powers of two.
        powers_of_two: bool,
    },
    /// compressed-tensors' `pack-quantized`: integers of four bits, with a bfloat16 scale for every
    /// group of a row's entries.
    Int4 {
        /// Entries of a group.
        group: usize,
    },
}

impl Packing {
    /// The code of its values.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::Float8 { .. } => Code::E4m3,
            Self::Int4 { .. } => Code::Int4,
        }
    }

    /// Rows and columns that share a scale.
    #[must_use]
    pub fn tile(&self) -> [usize; 2] {
        match *self {
            Self::Float8 { tile, .. } => tile,
            Self::Int4 { group } => [1, group],
        }
    }

    /// The dtype of its scales.
    #[must_use]
    pub fn scales(&self) -> Float {
        match self {
            Self::Float8 { .. } => Float::F32,
            Self::Int4 { .. } => Float::Bf16,
        }
    }

    /// Bytes of the codes of a row, whole 32-bit words for int4.
    #[must_use]
    pub fn row_bytes(&self, columns: usize) -> usize {
        match self {
            Self::Float8 { .. } => columns,
            Self::Int4 { .. } => columns.div_ceil(8) * 4,
        }
    }

    /// The tensors that a matrix is written as: its codes, its scales and, for int4, its shape.
    #[must_use]
    pub fn specs(&self, name: &str, shape: &[usize]) -> Vec<TensorSpec> {
        let encoding = Encoding { code: self.code(), tile: self.tile(), transposed: false };
        let part = |ending: &str, dtype: Dtype, shape: Vec<usize>| TensorSpec {
            name: format!("{name}{ending}"),
            dtype,
            shape,
        };
        let scales = |ending: &str| part(ending, self.scales().dtype(), encoding.grid(shape));
        match self {
            Self::Float8 { .. } => {
                vec![part("", Dtype::F8E4M3, shape.to_vec()), scales("_scale_inv")]
            }
            Self::Int4 { .. } => {
                let mut words = shape.to_vec();
                if let Some(columns) = words.last_mut() {
                    *columns = columns.div_ceil(8);
                }
                vec![
                    part("_packed", Dtype::I32, words),
                    scales("_scale"),
                    part("_shape", Dtype::I64, vec![shape.len()]),
                ]
            }
        }
    }

    /// Refuse a tensor that is no matrix, and tiles of nothing.
    pub(super) fn check(&self, name: &str, shape: &[usize]) -> Result<()> {
        if shape.len() == 2 && !self.tile().contains(&0) {
            return Ok(());
        }
        let reason = format!("cannot be quantised in tiles of {:?}: shape {shape:?}", self.tile());
        Err(Error::setting(name, reason))
    }
}

impl std::fmt::Display for Packing {
    fn fmt(&self, formatter: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(formatter, "{}, {}", self.code().name(), Tile::Of(self.tile()))
    }
}

/// A dtype of the output that recipes can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum OutDtype {
    /// Every merged tensor is stored in this dtype.
    Float(Float),
    /// Matrices are quantised to float8 (e4m3fn).
    Float8,
    /// Matrices are quantised to integers of four bits.
    Int4,
}

impl From<Float> for OutDtype {
    fn from(float: Float) -> Self {
        Self::Float(float)
    }
}

impl FromStr for OutDtype {
    type Err = UnknownFloat;

    fn from_str(name: &str) -> std::result::Result<Self, UnknownFloat> {
        if name == Code::E4m3.name() {
            Ok(Self::Float8)
        } else if name == Code::Int4.name() {
            Ok(Self::Int4)
        } else {
            name.parse().map(Self::Float)
        }
    }
}

impl TryFrom<String> for OutDtype {
    type Error = String;

    fn try_from(name: String) -> std::result::Result<Self, String> {
        name.parse().map_err(|UnknownFloat| format!("out_dtype: '{name}' is not known"))
    }
}

/// How the output is stored, as it was asked for.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct OutFormat {
    /// The dtype; that of the template's tensors if there is none.
    pub(super) dtype: Option<OutDtype>,
    /// Whether tensors that are quantised in the template are not, without a dtype.
    pub(super) dequantised: bool,
}

impl OutFormat {
    /// The dtype of a tensor that is `float` in the template.
    pub(super) fn dtype(self, float: Float) -> Dtype {
        match self.dtype {
            Some(OutDtype::Float(asked)) => asked.dtype(),
            _ => float.dtype(),
        }
    }

    /// How the output tensor `name` is quantised, which is `tensor` in the template.
    pub(super) fn packing(
        self,
        template: &Checkpoint,
        name: &str,
        tensor: &TensorInfo,
    ) -> Option<Packing> {
        let kept = kept(template, tensor);
        match self.dtype {
            Some(OutDtype::Float(_)) => None,
            None if self.dequantised => None,
            None => kept,
            Some(_) if !is_quantised(template, name, tensor) => None,
            Some(OutDtype::Float8) => Some(match kept {
                Some(packing @ Packing::Float8 { .. }) => packing,
                _ => Packing::Float8 { tile: FLOAT8_TILE, powers_of_two: false },
            }),
            Some(OutDtype::Int4) => Some(match kept {
                Some(packing @ Packing::Int4 { .. }) => packing,
                _ => Packing::Int4 { group: INT4_GROUP },
            }),
        }
    }

    /// Notes for the user on what is quantised, and how.
    pub(super) fn notes(
        self,
        manifest: &Manifest,
        checkpoints: &[Arc<Checkpoint>],
    ) -> Result<Vec<String>> {
        let packings = manifest.tensors.iter().filter_map(|output| output.packing);
        let ways: BTreeSet<String> = packings.map(|packing| packing.to_string()).collect();
        let merged = manifest.merges().count();
        let packed = manifest.tensors.iter().filter(|output| output.packing.is_some()).count();
        let way = match (ways.into_iter().collect::<Vec<_>>().as_slice(), self.dtype) {
            ([], Some(OutDtype::Float8 | OutDtype::Int4)) => {
                let reason = "no tensor of the model is one that is quantised: those are the \
                              matrices of numbered layers";
                return Err(Error::setting("out_dtype", reason));
            }
            ([], _) => return Ok(self.unkept(checkpoints)),
            ([way], _) => way.clone(),
            _ => {
                let reason = "the output's parts come from models that are quantised in different \
                              ways; say how it is stored";
                return Err(Error::setting("out_dtype", reason));
            }
        };
        let why = if self.dtype.is_none() {
            ", as in the base; out_dtype: bfloat16 stores the model unquantised"
        } else {
            ""
        };
        Ok(vec![format!("{packed} of {merged} merged tensors are quantised ({way}){why}")])
    }

    /// Notes on models whose quantisation is read and not written.
    fn unkept(self, checkpoints: &[Arc<Checkpoint>]) -> Vec<String> {
        if self.dtype.is_some() || self.dequantised {
            return Vec::new();
        }
        let Some(template) = checkpoints.first() else { return Vec::new() };
        let packed = template.tensors().any(|tensor| template.packed(&tensor.name).is_some());
        let quantised = template.quantised().filter(|_| packed);
        let note = |path: &Path, words: &str| {
            format!(
                "{}: is quantised ({words}), which is read and not written: the merged model is \
                 stored in the dtype that its config names",
                path.display()
            )
        };
        quantised.map(|found| note(template.path(), &found.words)).into_iter().collect()
    }
}

/// How a tensor of the template is quantised, if the output can be quantised likewise.
fn kept(template: &Checkpoint, tensor: &TensorInfo) -> Option<Packing> {
    let packed = template.packed(&tensor.name).filter(|_| tensor.shape.len() == 2)?;
    let scheme = template.quantised()?.scheme.as_ref().ok()?;
    match (scheme.format, scheme.tile, packed.encoding.code) {
        (Format::Float8, Tile::Of(tile), Code::E4m3) => {
            Some(Packing::Float8 { tile, powers_of_two: scheme.powers_of_two })
        }
        (Format::PackQuantized, Tile::Of([1, group]), Code::Int4) => Some(Packing::Int4 { group }),
        _ => None,
    }
}

/// Whether a tensor is among those that are quantised: those of the template or, where it has none, the
/// matrices of numbered layers, without routers and norms.
fn is_quantised(template: &Checkpoint, name: &str, tensor: &TensorInfo) -> bool {
    if tensor.shape.len() != 2 {
        return false;
    }
    if template.tensors().any(|other| template.packed(&other.name).is_some()) {
        return template.packed(&tensor.name).is_some();
    }
    let Some(module) = name.strip_suffix(".weight") else { return false };
    let numbered = module.split('.').any(|part| part.parse::<u32>().is_ok());
    let last = module.rsplit('.').next().unwrap_or(module);
    numbered && !ROUTERS.contains(&last) && !LEFT.iter().any(|part| module.contains(part))
}
