//! DARE with TIES: drop entries at random, rescale the survivors, elect signs.
//!
//! Drop and rescale are those of `dare_linear`. Then
//!
//! - original (Yu et al. 2024): TIES with a trim of its own (`ties_density`, 1 by default), the
//!   unweighted election and the mean over agreeing experts;
//! - mergekit: the weighted election and the plain sum of agreeing `w_i δ̂_i`, no trim.

use super::dare_linear::survivors;
use super::ties::{MERGEKIT_ELECTION, ORIGINAL_ELECTION, count_divisor};
use super::{Method, Operand, Scope, Semantics, Switches, Trim, TrimDensity, weights_divisor};

pub(super) fn compose(semantics: Semantics, switches: Switches) -> Method {
    let (trim, consensus, divisor) = match semantics {
        Semantics::Original => (
            Some(Trim { scope: Scope::Model, density: TrimDensity::TiesDensity }),
            ORIGINAL_ELECTION,
            count_divisor(switches.normalize.unwrap_or(true)),
        ),
        Semantics::Mergekit => {
            (None, MERGEKIT_ELECTION, weights_divisor(switches.normalize.unwrap_or(false)))
        }
    };
    Method {
        operand: Operand::TaskVectors,
        drop: true,
        trim,
        rescale: survivors(semantics, switches),
        consensus: Some(consensus),
        divisor,
    }
}
