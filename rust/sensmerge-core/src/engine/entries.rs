//! The entries of a source, read in ranges as floats of the computing type.

use std::ops::Range;

use super::average::{mean_row, read_mean};
use super::columns::Columns;
use super::inputs::Inputs;
use super::low_rank::LowRank;
use super::scaled::Scaled;
use crate::dtype::{Float, Real};
use crate::error::{Error, Result};
use crate::manifest::{Run, Source};
use crate::processor;

/// A source with its bytes looked up.
pub(super) enum Entries<'i> {
    /// A stored tensor.
    Stored { bytes: &'i [u8], dtype: Float },
    /// A quantised tensor.
    Scaled(Scaled<'i>),
    /// The same number in every entry.
    Constant(f64),
    /// Rows of other sources.
    Rows {
        of: Vec<Entries<'i>>,
        /// Number of entries of a row.
        row_length: usize,
        /// Every run, and the index of its first row in the result.
        runs: Vec<(usize, Run)>,
    },
    /// The columns of another source in another order.
    Columns(Box<Columns<'i>>),
    /// A low-rank change to another source.
    LowRank(Box<LowRank<'i>>),
    /// The mean of other sources.
    Mean(Vec<Entries<'i>>),
    /// A single row, computed beforehand.
    Row(Vec<f64>),
}

impl<'i> Entries<'i> {
    /// Look up the bytes of a source.
    ///
    /// # Errors
    /// [`Error::Tensor`] for a tensor that the manifest describes otherwise, or whose dtype is not a
    /// [`Float`]; [`Error::Setting`] for rows that do not exist.
    pub(super) fn of(source: &Source, inputs: &'i Inputs) -> Result<Self> {
        match source {
            Source::Constant { value, .. } => Ok(Self::Constant(*value)),
            Source::Scaled(scaled) => Scaled::of(scaled, inputs).map(Self::Scaled),
            Source::Stored(stored) => {
                let bytes = inputs.bytes(stored)?;
                match stored.dtype.float() {
                    Some(dtype) => Ok(Self::Stored { bytes, dtype }),
                    None => Err(Error::tensor(
                        inputs.checkpoint(stored)?.path(),
                        &stored.name,
                        format!("{} is not computed with", stored.dtype.name()),
                    )),
                }
            }
            Source::Rows { of, runs } => {
                let row_length = source.shape().iter().skip(1).product();
                check_rows(of, runs)?;
                let mut first = 0;
                let placed = runs.iter().map(|&run| {
                    first += run.count;
                    (first - run.count, run)
                });
                let runs = placed.collect();
                let of = of.iter().map(|source| Self::of(source, inputs)).collect::<Result<_>>()?;
                Ok(Self::Rows { of, row_length, runs })
            }
            Source::Columns { of, runs } => {
                Ok(Self::Columns(Box::new(Columns::of(of, runs, inputs)?)))
            }
            Source::Mean { of } => {
                check_same(of)?;
                Ok(Self::Mean(of.iter().map(|one| Self::of(one, inputs)).collect::<Result<_>>()?))
            }
            Source::MeanRow { of } => {
                let length = source.shape().iter().skip(1).product();
                let rows = of.shape().first().copied().unwrap_or(0);
                Ok(Self::Row(mean_row(&Self::of(of, inputs)?, rows, length)))
            }
            Source::LowRank(change) => Ok(Self::LowRank(Box::new(LowRank::of(change, inputs)?))),
        }
    }

    /// Compute what is needed of a whole tensor to read its entries. To be called before they are
    /// read, where all threads are free.
    pub(super) fn prepare<T: Real>(&self) {
        match self {
            Self::Stored { .. } | Self::Scaled(_) | Self::Constant(_) | Self::Row(_) => {}
            Self::Rows { of, .. } | Self::Mean(of) => of.iter().for_each(Self::prepare::<T>),
            Self::Columns(columns) => columns.unordered().prepare::<T>(),
            Self::LowRank(change) => change.prepare::<T>(),
        }
    }

    /// Read entries, widened exactly. The computing type is never narrower than a source.
    pub(super) fn read<T: Real>(&self, entries: Range<usize>, out: &mut [T]) {
        match self {
            Self::Stored { bytes, dtype } => T::widen(*dtype, part(bytes, *dtype, &entries), out),
            Self::Scaled(scaled) => scaled.read(entries, out),
            Self::Constant(value) => out.fill(T::from_f64(*value)),
            Self::Mean(of) => read_mean(of, entries.start, out),
            Self::Row(values) => {
                for (out, value) in out.iter_mut().zip(&values[entries]) {
                    *out = T::from_f64(*value);
                }
            }
            Self::Rows { .. } => {
                let mut out = out;
                self.pieces(entries, &mut |source, entries| {
                    let (now, later) = std::mem::take(&mut out).split_at_mut(entries.len());
                    source.read(entries, now);
                    out = later;
                });
            }
            Self::Columns(columns) => columns.read(entries, out),
            Self::LowRank(change) => change.read(entries, out),
        }
    }

    /// The bytes of entries that are stored as floats, and their dtype.
    pub(super) fn stored(&self, entries: &Range<usize>) -> Option<(&'i [u8], Float)> {
        match self {
            Self::Stored { bytes, dtype } => Some((part(bytes, *dtype, entries), *dtype)),
            _ => None,
        }
    }

    /// Prefetch entries.
    pub(super) fn prefetch(&self, entries: Range<usize>) {
        match self {
            Self::Stored { bytes, dtype } => processor::prefetch(part(bytes, *dtype, &entries)),
            Self::Scaled(scaled) => scaled.prefetch(entries),
            Self::Constant(_) | Self::Row(_) => {}
            Self::Mean(of) => of.iter().for_each(|one| one.prefetch(entries.clone())),
            Self::Rows { .. } => {
                self.pieces(entries, &mut |source, entries| source.prefetch(entries));
            }
            Self::Columns(columns) => columns.unordered().prefetch(entries),
            Self::LowRank(change) => change.unchanged().prefetch(entries),
        }
    }

    /// Size in bytes of one stored entry, for reporting progress: the largest of its sources.
    pub(super) fn entry_bytes(&self) -> u64 {
        match self {
            Self::Stored { dtype, .. } => dtype.size() as u64,
            // Two codes of four bits count as one byte each: progress needs no more.
            Self::Scaled(_) => 1,
            Self::Constant(_) | Self::Row(_) => 0,
            Self::Rows { of, .. } | Self::Mean(of) => {
                of.iter().map(Self::entry_bytes).max().unwrap_or(0)
            }
            Self::Columns(columns) => columns.unordered().entry_bytes(),
            Self::LowRank(change) => change.unchanged().entry_bytes(),
        }
    }

    /// Call `take` with every source that holds some of `entries`, in order, and with its part of
    /// them.
    fn pieces(&self, entries: Range<usize>, take: &mut dyn FnMut(&Self, Range<usize>)) {
        let Self::Rows { of, row_length, runs } = self else { return take(self, entries) };
        let Range { mut start, end } = entries;
        let mut place = runs.partition_point(|(first, _)| first * row_length <= start);
        while start < end {
            let (first, run) = &runs[place.max(1) - 1];
            let stop = end.min((first + run.count) * row_length);
            // The index of the entry in the source.
            let shift = start - first * row_length + run.first * row_length;
            if stop > start {
                take(&of[run.of], shift..shift + stop - start);
            }
            start = stop.max(start);
            place = place.max(1) + 1;
        }
    }
}

fn part<'b>(bytes: &'b [u8], dtype: Float, entries: &Range<usize>) -> &'b [u8] {
    let size = dtype.size();
    &bytes[entries.start * size..entries.end * size]
}

/// Refuse runs beyond the rows of their source, and sources whose rows have different shapes.
fn check_rows(of: &[Source], runs: &[Run]) -> Result<()> {
    let shapes: Vec<Vec<usize>> = of.iter().map(Source::shape).collect();
    let same = shapes.windows(2).all(|pair| pair[0].get(1..) == pair[1].get(1..));
    let there = runs.iter().all(|run| {
        let rows = shapes.get(run.of).and_then(|shape| shape.first()).copied().unwrap_or(0);
        run.first.checked_add(run.count).is_some_and(|end| end <= rows)
    });
    if same && there && !of.is_empty() {
        return Ok(());
    }
    Err(Error::setting("manifest", format!("takes rows {runs:?} of tensors of shapes {shapes:?}")))
}

/// Refuse a mean of sources of different shapes, or of none.
fn check_same(of: &[Source]) -> Result<()> {
    let shapes: Vec<Vec<usize>> = of.iter().map(Source::shape).collect();
    if !of.is_empty() && shapes.windows(2).all(|pair| pair[0] == pair[1]) {
        return Ok(());
    }
    Err(Error::setting("manifest", format!("takes the mean of tensors of shapes {shapes:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::{Checkpoint, MemoryTensor};
    use crate::dtype::Dtype;
    use crate::manifest::Stored;
    use proptest::prelude::*;
    use std::sync::Arc;

    /// Two matrices of three columns in one model, and a constant one.
    fn sources() -> (Inputs, Vec<Source>, Vec<Vec<f32>>) {
        let rows = |count: usize, start: f32| -> Vec<f32> {
            (0..3 * count).map(|place| start + place as f32).collect()
        };
        let values = [rows(4, 0.0), rows(7, 100.0)];
        let tensors = values.iter().zip(["a", "b"]).map(|(values, name)| MemoryTensor {
            name: name.into(),
            dtype: Dtype::F32,
            shape: vec![values.len() / 3, 3],
            bytes: Box::new(
                values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>(),
            ),
        });
        let checkpoint = Checkpoint::from_memory("model", tensors.collect()).expect("fits");
        let stored = |name: &str| {
            let info = checkpoint.get(name).expect("is there");
            Source::Stored(Stored {
                model: 0,
                name: name.into(),
                dtype: info.dtype,
                shape: info.shape.clone(),
                file: info.shard,
                bytes: [info.start, info.end],
            })
        };
        let sources =
            vec![stored("a"), stored("b"), Source::Constant { value: 0.5, shape: vec![9, 3] }];
        let [a, b] = values;
        (Inputs::new(vec![Arc::new(checkpoint)]), sources, vec![a, b, vec![0.5; 27]])
    }

    proptest! {
        #[test]
        fn rows_are_those_of_their_sources(
            runs in prop::collection::vec((0..3_usize, 0..4_usize, 0..4_usize), 1..6),
            window in (0.0..1.0_f64, 0.0..1.0_f64),
        ) {
            let (inputs, of, values) = sources();
            let runs: Vec<Run> = runs
                .into_iter()
                .map(|(of, first, count)| Run { of, first, count: count.min(4 - first) })
                .collect();
            let expected: Vec<f32> = runs
                .iter()
                .flat_map(|run| values[run.of][3 * run.first..3 * (run.first + run.count)].to_vec())
                .collect();
            let source = Source::Rows { of, runs };
            prop_assert_eq!(source.shape(), vec![expected.len() / 3, 3]);
            let entries = Entries::of(&source, &inputs).expect("fits");
            let place = |share: f64| (share * (expected.len() + 1) as f64) as usize;
            let (a, b) = (place(window.0), place(window.1));
            let (start, end) = (a.min(b), a.max(b).min(expected.len()));
            let mut found = vec![9.0_f32; end - start.min(end)];
            entries.prefetch(start.min(end)..end);
            entries.read(start.min(end)..end, &mut found);
            prop_assert_eq!(&found, &expected[start.min(end)..end]);
        }
    }

    #[test]
    fn rows_that_there_are_not_are_refused() {
        let (inputs, of, _) = sources();
        for run in [Run { of: 0, first: 2, count: 3 }, Run { of: 3, first: 0, count: 1 }] {
            let source = Source::Rows { of: of.clone(), runs: vec![run] };
            assert!(Entries::of(&source, &inputs).is_err());
        }
    }
}
