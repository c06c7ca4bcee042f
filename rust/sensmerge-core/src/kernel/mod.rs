//! The arithmetic: slices in, slices out. No I/O, no threads, no allocation, and no method's name.
//!
//! Everything is generic over the computing type ([`Real`](crate::dtype::Real)), element by
//! element in index order, without fused multiply-add, so that the bits are the same on every
//! machine. Several task vectors are rows of one slice. Lengths that do not match are the caller's
//! mistake and panic.

pub mod bracket;
pub mod derivative;
pub mod disjoint;
pub mod distance;
pub mod elect;
pub mod finite;
pub mod random_drop;
pub mod sensitivity;
pub mod sum;
pub mod task_vector;
pub mod trim;
pub mod weighted_sum;

#[cfg(test)]
pub(crate) mod samples;
