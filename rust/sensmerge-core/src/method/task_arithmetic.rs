//! Task arithmetic: the weighted sum of the task vectors.
//!
//! `θ = θ₀ + λ Σ w_i δ_i`; with `normalize: true` the sum is divided by `Σ w_i`.
//!
//! Ilharco et al. 2023. Both semantics are the same.

use super::{Method, Operand, Rescale, Switches, refuse_rescale, weights_divisor};
use crate::error::Result;

pub(super) fn compose(switches: Switches) -> Result<Method> {
    refuse_rescale(switches, "task_arithmetic")?;
    Ok(Method {
        operand: Operand::TaskVectors,
        drop: false,
        trim: None,
        rescale: Rescale::None,
        consensus: None,
        divisor: weights_divisor(switches.normalize.unwrap_or(false)),
    })
}
