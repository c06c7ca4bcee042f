//! DARE with task arithmetic: drop entries at random, rescale the survivors, sum.
//!
//! Each entry of a task vector is dropped with probability `1 - density`. Survivors are
//!
//! - original (Yu et al. 2024): divided by `density`, so that the expectation is what it was;
//! - mergekit: multiplied by the factor that restores the tensor's L1 norm.
//!
//! Then `θ = θ₀ + λ Σ w_i δ̂_i`. `rescale: false` leaves the survivors as they are.

use super::{Method, Operand, Rescale, Semantics, Switches, weights_divisor};

pub(super) fn compose(semantics: Semantics, switches: Switches) -> Method {
    Method {
        operand: Operand::TaskVectors,
        drop: true,
        trim: None,
        rescale: survivors(semantics, switches),
        consensus: None,
        divisor: weights_divisor(switches.normalize.unwrap_or(false)),
    }
}

/// What DARE's survivors are multiplied by.
pub(super) fn survivors(semantics: Semantics, switches: Switches) -> Rescale {
    match (switches.rescale.unwrap_or(true), semantics) {
        (false, _) => Rescale::None,
        (true, Semantics::Original) => Rescale::InverseDensity,
        (true, Semantics::Mergekit) => Rescale::PreserveL1,
    }
}
