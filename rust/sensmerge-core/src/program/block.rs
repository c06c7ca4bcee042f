//! One block of one tensor: the rows of its models at the same entries, and room to work in.

use std::ops::Range;

use crate::dtype::Real;

/// Entries computed at a time. The buffers of a block (one a model, and a few more) stay in the
/// first-level cache of one core.
pub const BLOCK: usize = 1024;

/// Buffers for a block, owned by one thread at a time.
pub struct Block<T: Real> {
    entries: Range<usize>,
    active: Vec<bool>,
    base: Vec<T>,
    rows: Vec<T>,
    signs: Vec<T>,
    out: Vec<T>,
    keep: Vec<u8>,
    inside: Vec<T::Magnitude>,
}

/// A block's buffers, each cut to its length.
pub struct Parts<'b, T: Real> {
    /// The base's entries.
    pub base: &'b mut [T],
    /// The models' entries, a row each.
    pub rows: &'b mut [T],
    /// Elected signs.
    pub signs: &'b mut [T],
    /// The combined entries.
    pub out: &'b mut [T],
}

impl<T: Real> Block<T> {
    /// Buffers for this many models.
    #[must_use]
    pub fn new(models: usize) -> Self {
        Self {
            entries: 0..0,
            active: vec![true; models],
            base: vec![T::ZERO; BLOCK],
            rows: vec![T::ZERO; BLOCK * models],
            signs: vec![T::ZERO; BLOCK],
            out: vec![T::ZERO; BLOCK],
            keep: vec![0; BLOCK],
            inside: vec![T::Magnitude::default(); BLOCK],
        }
    }

    /// Set of which models rows are read.
    pub fn activate(&mut self, active: impl Fn(usize) -> bool) {
        for (model, slot) in self.active.iter_mut().enumerate() {
            *slot = active(model);
        }
    }

    /// Set which entries of the tensor the block holds.
    ///
    /// # Panics
    /// If there are more than [`BLOCK`] of them.
    pub fn start(&mut self, entries: Range<usize>) {
        assert!(entries.len() <= BLOCK);
        self.entries = entries;
    }

    /// The entries of the tensor that the block holds.
    #[must_use]
    pub fn entries(&self) -> Range<usize> {
        self.entries.clone()
    }

    /// How many these are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Number of models.
    #[must_use]
    pub fn models(&self) -> usize {
        self.active.len()
    }

    /// Whether a model's row was read.
    #[must_use]
    pub fn is_active(&self, model: usize) -> bool {
        self.active[model]
    }

    /// A model's row.
    #[must_use]
    pub fn row(&self, model: usize) -> &[T] {
        let length = self.len();
        &self.rows[model * length..(model + 1) * length]
    }

    /// A model's row, to be changed.
    pub fn row_mut(&mut self, model: usize) -> &mut [T] {
        let length = self.len();
        &mut self.rows[model * length..(model + 1) * length]
    }

    /// The base's row, and a model's to be changed.
    pub fn base_and_row(&mut self, model: usize) -> (&[T], &mut [T]) {
        let length = self.len();
        (&self.base[..length], &mut self.rows[model * length..(model + 1) * length])
    }

    /// A model's row to be changed, and as many bytes that say which entries stay.
    pub fn row_and_keep(&mut self, model: usize) -> (&mut [T], &mut [u8]) {
        let length = self.len();
        (&mut self.rows[model * length..(model + 1) * length], &mut self.keep[..length])
    }

    /// A model's row, and room for as many magnitudes.
    pub fn row_and_inside(&mut self, model: usize) -> (&[T], &mut [T::Magnitude]) {
        let length = self.len();
        (&self.rows[model * length..(model + 1) * length], &mut self.inside[..length])
    }

    /// All buffers.
    pub fn parts(&mut self) -> Parts<'_, T> {
        let length = self.len();
        let models = self.active.len();
        Parts {
            base: &mut self.base[..length],
            rows: &mut self.rows[..length * models],
            signs: &mut self.signs[..length],
            out: &mut self.out[..length],
        }
    }
}
