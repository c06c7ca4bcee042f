//! TIES: trim small entries, elect a sign for each, average those that agree with it.
//!
//! Yadav et al. 2023. The two semantics:
//!
//! | | trim | elect | disjoint |
//! |---|---|---|---|
//! | original | one threshold for the whole task vector, ties stay | sign of `Σ δ̂_i`; a draw goes to the model-wide majority | `Σ w_i δ̂_i` over agreeing `δ̂_i`, divided by their number |
//! | mergekit | exactly `max(1, ⌊density·n⌋)` entries a tensor | sign of `Σ w_i δ̂_i`; a draw is + | `Σ w_i δ̂_i` over agreeing `w_i δ̂_i`, divided by `Σ` of their `w_i` |
//!
//! `normalize: false` leaves the division out. `rescale: true` (mergekit only) restores each
//! tensor's L1 norm after the trim.

use super::{
    Agreement, Consensus, Divisor, Method, Operand, Rescale, Scope, Semantics, Switches, Trim,
    TrimDensity, ZeroSign, refuse_rescale, weights_divisor,
};
use crate::error::Result;

pub(super) fn compose(semantics: Semantics, switches: Switches) -> Result<Method> {
    let normalize = switches.normalize.unwrap_or(true);
    if semantics == Semantics::Original {
        refuse_rescale(switches, "ties with semantics: original")?;
        return Ok(Method {
            operand: Operand::TaskVectors,
            drop: false,
            trim: Some(Trim { scope: Scope::Model, density: TrimDensity::Density }),
            rescale: Rescale::None,
            consensus: Some(ORIGINAL_ELECTION),
            divisor: count_divisor(normalize),
        });
    }
    let rescale = switches.rescale.unwrap_or(false);
    Ok(Method {
        operand: Operand::TaskVectors,
        drop: false,
        trim: Some(Trim { scope: Scope::Tensor, density: TrimDensity::Density }),
        rescale: if rescale { Rescale::PreserveL1 } else { Rescale::None },
        consensus: Some(MERGEKIT_ELECTION),
        divisor: weights_divisor(normalize),
    })
}

pub(super) const ORIGINAL_ELECTION: Consensus =
    Consensus { agreement: Agreement::Unweighted, zero_sign: ZeroSign::Majority };

pub(super) const MERGEKIT_ELECTION: Consensus =
    Consensus { agreement: Agreement::Weighted, zero_sign: ZeroSign::Positive };

/// The number of agreeing experts where `normalize` is on, 1 otherwise.
pub(super) fn count_divisor(normalize: bool) -> Divisor {
    if normalize { Divisor::Count } else { Divisor::One }
}
