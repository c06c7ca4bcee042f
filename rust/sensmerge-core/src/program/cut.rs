//! The entries of largest magnitude of a row: how many are sought, and those that were found.

use crate::dtype::Real;
use crate::kernel::trim::{drop_exact, trim, trim_exact};

/// What is sought in one row of a tensor: its entries of largest magnitude.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target {
    /// The row's index in a block: that of the model.
    pub(super) row: usize,
    /// The number of these entries.
    pub(super) kept: Kept,
}

/// A number of entries.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kept {
    /// This many.
    Count(u64),
    /// All but this many, at least one. The threshold is found even where these are all entries.
    UpToRank(u64),
    /// This fraction of the entries that are not 0, rounded down.
    OfNonzero(f64),
}

impl Kept {
    /// The number, of `elements` entries of which `zeros` are 0.
    pub(super) fn of(self, elements: u64, zeros: u64) -> u64 {
        match self {
            Self::Count(count) => count.min(elements),
            Self::UpToRank(rank) => elements - rank.min(elements - 1),
            Self::OfNonzero(share) => (share * (elements - zeros) as f64).floor() as u64,
        }
    }
}

/// The entries of largest magnitude of a row.
#[derive(Clone, Debug)]
pub(super) enum Cut<T: Real> {
    /// All entries.
    All,
    /// No entry.
    Nothing,
    /// Entries of at least this magnitude.
    AtLeast(T::Magnitude),
    /// Entries above this magnitude, and the first few in index order of those equal to it.
    Exactly {
        /// The threshold.
        magnitude: T::Magnitude,
        /// For every chunk of the tensor, the number of ties not yet kept at its start.
        ties: Vec<u64>,
    },
}

impl<T: Real> Cut<T> {
    /// The number of ties that are among the entries, at the start of a chunk.
    pub(super) fn carried(&self, chunk: usize) -> u64 {
        match self {
            Self::Exactly { ties, .. } => ties[chunk],
            Self::All | Self::Nothing | Self::AtLeast(_) => 0,
        }
    }

    /// The smallest magnitude of the entries in a chunk, unless only some of the ties there are among them.
    pub(super) fn least(&self, chunk: usize) -> Option<T::Magnitude> {
        match self {
            Self::All => Some(T::Magnitude::default()),
            Self::Nothing => None,
            Self::AtLeast(magnitude) => Some(*magnitude),
            Self::Exactly { magnitude, ties } => {
                let all = ties.get(chunk + 1).is_some_and(|&left| left > 0);
                let next = || T::Magnitude::try_from((*magnitude).into() + 1).ok();
                if all { Some(*magnitude) } else { next().filter(|_| ties[chunk] == 0) }
            }
        }
    }

    /// Set all other entries to 0. `ties` is the number of ties that are still among the entries.
    pub(super) fn keep(&self, row: &mut [T], ties: &mut u64) {
        match self {
            Self::All => {}
            Self::Nothing => row.fill(T::ZERO),
            Self::AtLeast(magnitude) => trim(row, *magnitude),
            Self::Exactly { magnitude, .. } => trim_exact(row, *magnitude, ties),
        }
    }

    /// Set these entries to 0 and keep the others. `ties` as above.
    pub(super) fn drop(&self, row: &mut [T], ties: &mut u64) {
        match self {
            Self::All => row.fill(T::ZERO),
            Self::Nothing => {}
            Self::AtLeast(magnitude) => {
                let mut all = u64::MAX;
                drop_exact(row, *magnitude, &mut all);
            }
            Self::Exactly { magnitude, .. } => drop_exact(row, *magnitude, ties),
        }
    }
}
