//! Linear: the weighted mean of the experts' parameters.
//!
//! `θ = Σ w_i θ_i / Σ w_i`; with `normalize: false`, `θ = Σ w_i θ_i`.
//!
//! Model soups, Wortsman et al. 2022. Both semantics are the same; a base is not needed.

use super::{Method, Operand, Rescale, Switches, refuse_rescale, weights_divisor};
use crate::error::Result;

pub(super) fn compose(switches: Switches) -> Result<Method> {
    refuse_rescale(switches, "linear")?;
    Ok(Method {
        operand: Operand::Parameters,
        drop: false,
        trim: None,
        rescale: Rescale::None,
        consensus: None,
        divisor: weights_divisor(switches.normalize.unwrap_or(true)),
    })
}
