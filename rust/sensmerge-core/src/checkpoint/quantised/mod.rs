//! Quantised checkpoints: tensors that are stored as codes of a few bits, with scales beside them.
//!
//! They are shown as what they stand for: `x.weight`, in the dtype that the model is run in, and not
//! `x.weight_packed` or `x.weight_scale_inv`. The config says how they are stored.

mod scheme;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Checkpoint, TensorInfo};
use crate::dtype::{Code, Dtype};
use crate::error::{Error, Result};
use scheme::Said;
pub use scheme::{Format, Scheme, Tile};

/// Dtypes of quantised weights, some of them of several in one entry.
const QUANTISED: [Dtype; 11] = [
    Dtype::U8,
    Dtype::I8,
    Dtype::I32,
    Dtype::U32,
    Dtype::F8E4M3,
    Dtype::F8E5M2,
    Dtype::F8E8M0,
    Dtype::F8E4M3Fnuz,
    Dtype::F6E2M3,
    Dtype::F6E3M2,
    Dtype::F4,
];

/// Scales of a layer's inputs and outputs, which were measured on the quantised model.
const OF_ACTIVATIONS: [&str; 3] = ["input_scale", "activation_scale", "output_scale"];

/// The quantisation of a checkpoint.
#[derive(Clone, Debug)]
pub struct Quantised {
    /// It in a few words, such as `fp8, a scale per 128 × 128`.
    pub words: String,
    /// The scheme, or what to do about one that is not read.
    pub scheme: std::result::Result<Scheme, String>,
}

/// How a quantised tensor is stored.
#[derive(Clone, Debug)]
pub struct Packed {
    /// The codes.
    pub values: Arc<TensorInfo>,
    /// The scales.
    pub scales: Arc<TensorInfo>,
    /// How the entries are computed from them.
    pub encoding: Encoding,
}

/// How entries are computed from codes and scales.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Encoding {
    /// The code.
    pub code: Code,
    /// The number of rows and columns of stored matrices that share a scale.
    pub tile: [usize; 2],
    /// Whether the tensor is made of the stored matrices' columns.
    pub transposed: bool,
}

impl Encoding {
    /// Shape of the scales of stored matrices of this shape: one for each tile.
    #[must_use]
    pub fn grid(&self, matrices: &[usize]) -> Vec<usize> {
        let axes = matrices.len().saturating_sub(2);
        let sizes = matrices[axes..].iter().zip(&self.tile[2 - (matrices.len() - axes)..]);
        let leading = matrices[..axes].iter().copied();
        leading.chain(sizes.map(|(size, tile)| size.div_ceil(*tile))).collect()
    }
}

/// The tensors of a checkpoint: as they are merged, and as they are stored where that differs.
pub(super) struct Shown {
    pub(super) quantised: Option<Quantised>,
    pub(super) tensors: BTreeMap<String, Arc<TensorInfo>>,
    pub(super) packed: BTreeMap<String, Packed>,
    pub(super) parts: BTreeMap<String, Arc<TensorInfo>>,
}

/// Show the quantised tensors of a checkpoint as what they stand for. `config` is the path of its
/// config.
///
/// # Errors
/// [`Error::Tensor`] for values and scales that do not fit together; [`Error::File`] for a config that
/// is not JSON; [`Error::Io`].
pub(super) fn show(checkpoint: &Checkpoint, config: &Path) -> Result<Option<Shown>> {
    let Some(Said { words, scheme, dtype }) = scheme::read(config)? else { return Ok(None) };
    let stored = &checkpoint.tensors;
    // A model that was converted back may still say that it is quantised.
    if !stored.values().any(|tensor| QUANTISED.contains(&tensor.dtype)) {
        return Ok(None);
    }
    let mut shown = Shown {
        quantised: None,
        tensors: stored.clone(),
        packed: BTreeMap::new(),
        parts: BTreeMap::new(),
    };
    if let Ok(scheme) = &scheme {
        for tensor in stored.values() {
            let pairing = Pairing { checkpoint, scheme: *scheme, tensor };
            if let Some(found) = pairing.packed()? {
                shown.replace(found, dtype);
            }
        }
    }
    shown.quantised = Some(Quantised { words, scheme });
    Ok(Some(shown))
}

/// A quantised tensor: its name and shape, how it is stored, and the names of its parts.
struct Found {
    name: String,
    shape: Vec<usize>,
    packed: Packed,
    parts: Vec<String>,
}

impl Shown {
    fn replace(&mut self, found: Found, dtype: Dtype) {
        let Found { name, shape, packed, parts } = found;
        for part in parts {
            if let Some(tensor) = self.tensors.remove(&part) {
                self.parts.insert(part, tensor);
            }
        }
        let TensorInfo { shard, start, end, .. } = *packed.values;
        let info = TensorInfo { name: name.clone(), dtype, shape, shard, start, end };
        self.tensors.insert(name.clone(), Arc::new(info));
        self.packed.insert(name, packed);
    }
}

/// A stored tensor that may be the codes of a quantised one.
struct Pairing<'c> {
    checkpoint: &'c Checkpoint,
    scheme: Scheme,
    tensor: &'c Arc<TensorInfo>,
}

impl Pairing<'_> {
    fn packed(&self) -> Result<Option<Found>> {
        match self.scheme.format {
            Format::Float8 => self.float8(&["_scale_inv", "_scale"]),
            Format::FloatQuantized => self.float8(&["_scale"]),
            Format::PackQuantized => self.int4(),
            Format::Mxfp4 => self.mxfp4(),
        }
    }

    fn get(&self, name: &str) -> Option<&Arc<TensorInfo>> {
        self.checkpoint.tensors.get(name)
    }

    fn refuse(&self, tensor: &TensorInfo, reason: impl Into<String>) -> Error {
        Error::tensor(self.checkpoint.file_of(tensor), &tensor.name, reason)
    }

    /// Codes of eight bits, with scales under the same name and one of the `endings`.
    fn float8(&self, endings: &[&str]) -> Result<Option<Found>> {
        let name = &self.tensor.name;
        let Some(code) = Code::of(self.tensor.dtype) else { return Ok(None) };
        let names = endings.iter().map(|ending| format!("{name}{ending}"));
        let Some(scales) = names.into_iter().find_map(|name| self.get(&name)) else {
            return Ok(None);
        };
        let mut parts = vec![name.clone(), scales.name.clone()];
        let layer = name.strip_suffix("weight").unwrap_or(name);
        parts.extend(OF_ACTIVATIONS.map(|other| format!("{layer}{other}")));
        let shape = self.tensor.shape.clone();
        let encoding = self.encoding(code, &shape, scales, false)?;
        let packed =
            Packed { values: Arc::clone(self.tensor), scales: Arc::clone(scales), encoding };
        Ok(Some(Found { name: name.clone(), shape, packed, parts }))
    }

    /// Eight integers in each `_packed` entry; the last ones of a row may be padding.
    fn int4(&self) -> Result<Option<Found>> {
        let Some(name) = self.tensor.name.strip_suffix("_packed") else { return Ok(None) };
        let part = |ending: &str| self.get(&format!("{name}{ending}"));
        if let Some(unread) = ["_zero_point", "_g_idx"].into_iter().find_map(part) {
            let reason = "is of a way to quantise that is not read; convert the model to bfloat16 \
                          first, or name the model that it was made from";
            return Err(self.refuse(unread, reason));
        }
        let (Some(scales), [.., words]) = (part("_scale"), self.tensor.shape.as_slice()) else {
            return Err(self.refuse(self.tensor, format!("lacks its scales, '{name}_scale'")));
        };
        let mut shape = self.tensor.shape.clone();
        let stored = part("_shape");
        let said = stored.map(|stored| self.integers(stored)).transpose()?;
        let columns = said.as_ref().and_then(|said| said.last().copied()).unwrap_or(words * 8);
        shape.pop();
        shape.push(columns);
        let fits = said.is_none_or(|said| said == shape) && columns.div_ceil(8) == *words;
        if self.tensor.dtype != Dtype::I32 || !fits {
            let (dtype, found) = (self.tensor.dtype.name(), &self.tensor.shape);
            let reason =
                format!("has shape {found:?} of {dtype}, which does not fit '{name}_shape'");
            return Err(self.refuse(self.tensor, reason));
        }
        let encoding = self.encoding(Code::Int4, &shape, scales, false)?;
        let packed =
            Packed { values: Arc::clone(self.tensor), scales: Arc::clone(scales), encoding };
        let parts = ["_packed", "_scale", "_shape"].map(|ending| format!("{name}{ending}"));
        Ok(Some(Found { name: name.to_owned(), shape, packed, parts: parts.to_vec() }))
    }

    /// Blocks of 32 numbers; the model has the matrices' columns as rows.
    fn mxfp4(&self) -> Result<Option<Found>> {
        let Some(name) = self.tensor.name.strip_suffix("_blocks") else { return Ok(None) };
        let scales = self.get(&format!("{name}_scales"));
        let (Some(scales), &[matrices, rows, blocks, 16]) = (scales, self.tensor.shape.as_slice())
        else {
            let found = &self.tensor.shape;
            let reason = format!(
                "has shape {found:?}; blocks of mxfp4 have one of four axes, the last of 16, and \
                 scales beside them, '{name}_scales'"
            );
            return Err(self.refuse(self.tensor, reason));
        };
        let columns = blocks * 32;
        let stored = [matrices, rows, columns];
        let encoding = self.encoding(Code::E2m1, &stored, scales, true)?;
        let packed =
            Packed { values: Arc::clone(self.tensor), scales: Arc::clone(scales), encoding };
        let parts = vec![self.tensor.name.clone(), scales.name.clone()];
        let shape = vec![matrices, columns, rows];
        Ok(Some(Found { name: name.to_owned(), shape, packed, parts }))
    }

    /// The encoding of matrices of the stored `shape`.
    fn encoding(
        &self,
        code: Code,
        shape: &[usize],
        scales: &TensorInfo,
        transposed: bool,
    ) -> Result<Encoding> {
        let sizes = match *shape {
            [.., rows, columns] => [rows, columns],
            [columns] => [1, columns],
            [] => [1, 1],
        };
        let encoding = Encoding { code, tile: self.scheme.tile.sizes(sizes), transposed };
        let (needed, found) = (encoding.grid(shape), &scales.shape);
        let entries = |shape: &[usize]| shape.iter().product::<usize>();
        // One scale may be a number, a list or a matrix of one; scales of rows a list.
        let squeezed = |shape: &[usize]| -> Vec<usize> {
            shape.iter().copied().filter(|size| *size != 1).collect()
        };
        let exponents = matches!(scales.dtype, Dtype::U8 | Dtype::F8E8M0);
        if squeezed(&needed) != squeezed(found) || entries(&needed) != entries(found) {
            let tile = self.scheme.tile;
            let reason = format!(
                "has shape {found:?}, and {tile} of the values' shape {shape:?} makes {needed:?}; \
                 config.json and weights do not belong together"
            );
            return Err(self.refuse(scales, reason));
        }
        if scales.dtype.float().is_none() && !exponents {
            let reason = format!("is {}, in which no scales are stored", scales.dtype.name());
            return Err(self.refuse(scales, reason));
        }
        Ok(encoding)
    }

    /// A small stored tensor of integers.
    fn integers(&self, tensor: &TensorInfo) -> Result<Vec<usize>> {
        let bytes = self.checkpoint.bytes(tensor);
        let found: Option<Vec<usize>> = match tensor.dtype {
            Dtype::I64 => bytes
                .as_chunks()
                .0
                .iter()
                .map(|entry| usize::try_from(i64::from_le_bytes(*entry)).ok())
                .collect(),
            Dtype::I32 => bytes
                .as_chunks()
                .0
                .iter()
                .map(|entry| usize::try_from(i32::from_le_bytes(*entry)).ok())
                .collect(),
            _ => None,
        };
        found.ok_or_else(|| self.refuse(tensor, "is not a shape"))
    }
}
