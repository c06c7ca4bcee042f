//! The arithmetic: functions from slices to slices, without I/O, threads or allocation. They do not
//! depend on the merge method.
//!
//! Everything is generic over the computing type ([`Real`](crate::dtype::Real)). Entries are computed
//! one by one, and sums over entries have a fixed shape ([`sum`]); there is no fused multiply-add. The
//! bits are therefore the same on every machine. Several task vectors are the rows of one slice, one
//! after the other. Lengths that do not match are a bug of the caller and panic.

pub mod balance;
pub mod bins;
pub mod bracket;
pub mod changed;
pub mod claims;
pub mod columns;
pub mod derivative;
pub mod difference;
pub mod disjoint;
pub mod distance;
pub mod divergence;
pub mod elect;
mod elementary;
pub mod finite;
pub mod importance;
pub mod largest;
pub mod low_rank;
pub mod near;
pub mod one_pass;
pub mod random_drop;
pub mod rank;
pub mod scale;
pub mod sensitivity;
pub mod softmax;
mod stored;
pub mod sum;
pub mod task_vector;
pub mod trim;
pub mod variance;
pub mod weighted_sum;

#[cfg(test)]
pub(crate) mod samples;

/// Stored entries of `N` bytes.
///
/// # Panics
/// If `bytes` is not a whole number of them.
fn entries<const N: usize>(bytes: &[u8]) -> &[[u8; N]] {
    let (entries, rest) = bytes.as_chunks();
    assert!(rest.is_empty(), "entries do not match their bytes");
    entries
}
