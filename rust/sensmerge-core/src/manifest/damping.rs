//! Activation-informed merging (Heyrani Nobari et al. 2025): merged task vectors are damped where the base's
//! activations are strong.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::source::Source;
use super::view::{Checkpoints, View};
use crate::checkpoint::{Checkpoint, TensorInfo};
use crate::dtype::Float;
use crate::error::{Error, Result};

/// Factors of a merged task vector: `1 − s (1 − ω)`, where `s` belongs to an entry's input channel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Damping {
    /// `s`, for every input channel of every matrix: the mean magnitude of the base's activations there,
    /// over the largest one of the layer; 0 to 1.
    pub activations: Source,
    /// `ω`: what is left of the task vector at the strongest channel, 0 to 1.
    pub omega: f64,
    /// Whether the tensor is stored as inputs × outputs, as in GPT-2.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub transposed: bool,
}

impl Damping {
    /// Why it does not fit a tensor of this shape; `None` if it does.
    pub(super) fn mismatch(&self, shape: &[usize]) -> Option<String> {
        if !(0.0..=1.0).contains(&self.omega) {
            return Some(format!("omega is {}, which is not at least 0 and at most 1", self.omega));
        }
        let (found, wanted) = (self.activations.shape(), channels(shape, self.transposed));
        (wanted.as_ref() != Some(&found)).then(|| {
            format!("has shape {shape:?}, and the activations that damp it have shape {found:?}")
        })
    }
}

/// The shape of what is measured of the input channels of a tensor of this shape: a number for each of
/// them, matrix by matrix. A vector's channels are its entries. `None` if it has none.
fn channels(shape: &[usize], transposed: bool) -> Option<Vec<usize>> {
    match shape {
        [] => None,
        [entries] => (!transposed).then(|| vec![*entries]),
        [leading @ .., rows, columns] => {
            Some([leading, &[if transposed { *rows } else { *columns }]].concat())
        }
    }
}

/// What was measured of a base's activations.
#[derive(Clone, Debug)]
pub struct Activations {
    /// The checkpoint that holds it, by the names of stored tensors.
    pub checkpoint: Arc<Checkpoint>,
    /// The stored tensors whose inputs are rows rather than columns.
    pub transposed: BTreeSet<String>,
}

/// The damping of the output tensor `name`, whose tensor in the base is `found`; `None` if nothing was
/// measured of it, as of embeddings.
///
/// # Errors
/// [`Error::Setting`] if nothing was measured of the base, [`Error::Tensor`] for activations that do not
/// fit.
pub(super) fn damping(
    base: &View,
    name: &str,
    found: &TensorInfo,
    omega: f64,
    checkpoints: &Checkpoints,
) -> Result<Option<Damping>> {
    let Some(measured) = base.measured_activations() else {
        let reason = format!("nothing was measured of {}; calibrate", base.path().display());
        return Err(Error::setting("aim", reason));
    };
    let Some(tensor) = measured.checkpoint.get(&found.name) else { return Ok(None) };
    if tensor.dtype.float() != Some(Float::F32) {
        let reason = format!("is {}; activations are F32", tensor.dtype.name());
        return Err(Error::tensor(measured.checkpoint.path(), &tensor.name, reason));
    }
    let transposed = measured.transposed.contains(&found.name);
    // Other rows have the same input channels, unless these are the rows.
    if base.order(name).is_some() || (transposed && base.selection(name).is_some()) {
        let reason = "its input channels are taken in another order, and what was measured of its \
                      activations is not; remove aim";
        return Err(Error::tensor(base.path(), name, reason));
    }
    let activations = Source::Stored(checkpoints.stored_in(&measured.checkpoint, tensor));
    Ok(Some(Damping { activations, omega, transposed }))
}
