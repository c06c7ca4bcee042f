//! A block: the same entries of one tensor in all models, one row per model, and scratch buffers.

use std::ops::Range;

use crate::dtype::Real;
use crate::kernel::bins::Bins;

/// Entries computed at a time, unless a program needs whole rows. The buffers of a block, 4 KiB of
/// float32 per model and for each of a few others, stay in the first-level cache of a core unless there
/// are many models.
pub(crate) const BLOCK: usize = 1024;

/// Buffers for a block, used by one thread at a time.
pub(crate) struct Block<T: Real> {
    entries: Range<usize>,
    active: Vec<bool>,
    base: Vec<T>,
    rows: Vec<T>,
    statistics: Vec<T>,
    signs: Vec<T>,
    out: Vec<T>,
    keep: Vec<u8>,
    inside: Vec<T::Magnitude>,
    order: Vec<(T::Magnitude, u32)>,
    spare: Vec<(T::Magnitude, u32)>,
    chances: Vec<u64>,
    bins: Bins,
    bytes: Vec<u8>,
    indices: Vec<u32>,
}

/// One model's row of a block, with buffers of its length for what is decided by ranks.
pub(crate) struct Ranked<'b, T: Real> {
    /// The model's entries.
    pub(crate) row: &'b mut [T],
    /// Room for their magnitudes and places, to be sorted.
    pub(crate) order: &'b mut [(T::Magnitude, u32)],
    /// Room for as many while they are sorted.
    pub(crate) spare: &'b mut [(T::Magnitude, u32)],
    /// Room for their chances to be kept.
    pub(crate) chances: &'b mut [u64],
    /// Room for a mask.
    pub(crate) keep: &'b mut [u8],
}

/// One model's row of a block, with buffers for what is decided by bounds of ranks.
pub(crate) struct Bounded<'b, T: Real> {
    /// The model's entries.
    pub(crate) row: &'b mut [T],
    /// Room for the counts of their magnitudes.
    pub(crate) bins: &'b mut Bins,
    /// Room for a random byte an entry.
    pub(crate) bytes: &'b mut [u8],
    /// Room for some of their indices.
    pub(crate) indices: &'b mut [u32],
    /// Room for a mask.
    pub(crate) keep: &'b mut [u8],
}

/// A block's buffers, each cut to the block's length.
pub(crate) struct Parts<'b, T: Real> {
    /// The base's entries.
    pub(crate) base: &'b mut [T],
    /// The models' entries, `[models, length]`.
    pub(crate) rows: &'b mut [T],
    /// The models' statistics, likewise, if the combination reads them.
    pub(crate) statistics: &'b mut [T],
    /// The elected signs; free for other use by combinations without an election.
    pub(crate) signs: &'b mut [T],
    /// The combined entries.
    pub(crate) out: &'b mut [T],
}

impl<T: Real> Block<T> {
    /// Buffers for this many models and up to `capacity` entries.
    #[must_use]
    pub(crate) fn new(models: usize, capacity: usize) -> Self {
        Self {
            entries: 0..0,
            active: vec![true; models],
            base: vec![T::ZERO; capacity],
            rows: vec![T::ZERO; capacity * models],
            statistics: Vec::new(),
            signs: vec![T::ZERO; capacity],
            out: vec![T::ZERO; capacity],
            keep: vec![0; capacity],
            inside: vec![T::Magnitude::default(); capacity],
            order: Vec::new(),
            spare: Vec::new(),
            chances: Vec::new(),
            bins: Bins::default(),
            bytes: Vec::new(),
            indices: Vec::new(),
        }
    }

    /// Choose the models whose rows are read: the active ones.
    pub(crate) fn activate(&mut self, active: impl Fn(usize) -> bool) {
        for (model, slot) in self.active.iter_mut().enumerate() {
            *slot = active(model);
        }
    }

    /// Set the range of the tensor's entries that the block holds.
    ///
    /// # Panics
    /// If there are more than it has room for.
    pub(crate) fn start(&mut self, entries: Range<usize>) {
        assert!(entries.len() <= self.base.len());
        self.entries = entries;
    }

    /// The range of the tensor's entries that the block holds.
    #[must_use]
    pub(crate) fn entries(&self) -> Range<usize> {
        self.entries.clone()
    }

    /// Number of entries that the block holds.
    #[must_use]
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Number of models.
    #[must_use]
    pub(crate) fn models(&self) -> usize {
        self.active.len()
    }

    /// Whether a model's row is read.
    #[must_use]
    pub(crate) fn is_active(&self, model: usize) -> bool {
        self.active[model]
    }

    /// A model's row.
    #[must_use]
    pub(crate) fn row(&self, model: usize) -> &[T] {
        let length = self.len();
        &self.rows[model * length..(model + 1) * length]
    }

    /// A model's row, to be changed.
    pub(crate) fn row_mut(&mut self, model: usize) -> &mut [T] {
        let length = self.len();
        &mut self.rows[model * length..(model + 1) * length]
    }

    /// A model's statistics, to be filled.
    pub(crate) fn statistic_mut(&mut self, model: usize) -> &mut [T] {
        let length = self.len();
        self.statistics.resize(length * self.models(), T::ZERO);
        &mut self.statistics[model * length..(model + 1) * length]
    }

    /// The base's row, and a model's to be changed.
    pub(crate) fn base_and_row(&mut self, model: usize) -> (&[T], &mut [T]) {
        let length = self.len();
        (&self.base[..length], &mut self.rows[model * length..(model + 1) * length])
    }

    /// A model's row to be changed, and a mask of the same length.
    pub(crate) fn row_and_keep(&mut self, model: usize) -> (&mut [T], &mut [u8]) {
        let length = self.len();
        (&mut self.rows[model * length..(model + 1) * length], &mut self.keep[..length])
    }

    /// A model's row to be changed, and buffers for what is decided by ranks.
    pub(crate) fn ranked(&mut self, model: usize) -> Ranked<'_, T> {
        let length = self.len();
        self.order.resize(length, Default::default());
        self.spare.resize(length, Default::default());
        self.chances.resize(length, 0);
        Ranked {
            row: &mut self.rows[model * length..(model + 1) * length],
            order: &mut self.order,
            spare: &mut self.spare,
            chances: &mut self.chances,
            keep: &mut self.keep[..length],
        }
    }

    /// A model's row to be changed, and buffers for what is decided by bounds of ranks.
    pub(crate) fn bounded(&mut self, model: usize) -> Bounded<'_, T> {
        let length = self.len();
        self.bytes.resize(length, 0);
        self.indices.resize(length, 0);
        Bounded {
            row: &mut self.rows[model * length..(model + 1) * length],
            bins: &mut self.bins,
            bytes: &mut self.bytes,
            indices: &mut self.indices,
            keep: &mut self.keep[..length],
        }
    }

    /// A model's row, and a buffer for as many magnitudes.
    pub(crate) fn row_and_inside(&mut self, model: usize) -> (&[T], &mut [T::Magnitude]) {
        let length = self.len();
        (&self.rows[model * length..(model + 1) * length], &mut self.inside[..length])
    }

    /// All buffers.
    pub(crate) fn parts(&mut self) -> Parts<'_, T> {
        let length = self.len();
        let models = self.active.len();
        Parts {
            base: &mut self.base[..length],
            rows: &mut self.rows[..length * models],
            statistics: &mut self.statistics,
            signs: &mut self.signs[..length],
            out: &mut self.out[..length],
        }
    }
}
