//! Comparison of two checkpoints, tensor by tensor, and their differences as they are.
//!
//! Entries are widened to float64, in which their differences and products are computed. Chunks are
//! of one size whatever the number of threads; a tensor's sum is the sum of its chunks' sums in index
//! order, each the sum of its blocks' sums.

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use super::entries::Entries;
use super::inputs::Inputs;
use super::monitor::Monitor;
use super::pool;
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::kernel::{difference, distance};
use crate::manifest::Source;
use crate::program::block::BLOCK;

/// Entries of a chunk.
const CHUNK: usize = 256 * BLOCK;

/// Entry by entry comparison of a tensor `b` with a tensor `a`. With a base, `a − base` and `b − base`
/// stand for them in all but `largest` and `changed`, which no base changes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Difference {
    /// Number of entries.
    pub entries: u64,
    /// Number of entries that differ.
    pub changed: u64,
    /// Number of entries that are zero in neither.
    pub signed: u64,
    /// Number of those that have one sign in both.
    pub agreeing: u64,
    /// `max |b − a|`.
    pub largest: f64,
    /// `‖b − a‖²`.
    pub squared_difference: f64,
    /// `‖a‖²`.
    pub squared_a: f64,
    /// `‖b‖²`.
    pub squared_b: f64,
    /// `⟨a, b⟩`.
    pub product: f64,
}

impl Difference {
    fn add(&mut self, other: &Self) {
        self.entries += other.entries;
        self.changed += other.changed;
        self.signed += other.signed;
        self.agreeing += other.agreeing;
        self.largest = self.largest.max(other.largest);
        self.squared_difference += other.squared_difference;
        self.squared_a += other.squared_a;
        self.squared_b += other.squared_b;
        self.product += other.product;
    }
}

/// Compare tensors of `b` with those of the same name of `a`.
///
/// # Errors
/// [`Error::Tensor`] for a tensor that a checkpoint lacks, has in another shape or not as floats;
/// [`Error::Setting`] for threads that cannot be started; [`Error::Interrupted`].
pub fn differences(
    a: &Arc<Checkpoint>,
    b: &Arc<Checkpoint>,
    base: Option<&Arc<Checkpoint>>,
    tensors: &[String],
    threads: Option<usize>,
    monitor: &Monitor,
) -> Result<Vec<Difference>> {
    let checkpoints = [a, b].into_iter().chain(base).map(Arc::clone).collect();
    let inputs = Inputs::new(checkpoints);
    let rows = tensors.iter().map(|name| row(&inputs, name)).collect::<Result<Vec<_>>>()?;
    let bytes = |row: &Row| row.chunk_bytes(0..row.length);
    monitor.expect(rows.iter().map(bytes).sum());
    let chunks: Vec<(usize, Range<usize>)> = rows
        .iter()
        .enumerate()
        .flat_map(|(place, row)| pieces(row.length).map(move |chunk| (place, chunk)))
        .collect();
    let compared = pool(threads)?.install(|| {
        chunks
            .par_iter()
            .map(|(place, chunk)| {
                monitor.check()?;
                let found = rows[*place].compare(chunk.clone());
                monitor.advance(rows[*place].chunk_bytes(chunk.clone()));
                Ok(found)
            })
            .collect::<Result<Vec<Difference>>>()
    })?;
    let mut found = vec![Difference::default(); rows.len()];
    for ((place, _), of_chunk) in chunks.iter().zip(&compared) {
        found[*place].add(of_chunk);
    }
    Ok(found)
}

/// Write entries of `expert − base` of one tensor as float32, little-endian: as many as `output` holds,
/// from the one at index `first` on. Runs on the rayon pool of the caller.
///
/// # Errors
/// [`Error::Tensor`] for a tensor that a checkpoint lacks, has in another shape or not as floats;
/// [`Error::Setting`] for an output that is not a whole number of entries or reaches beyond the tensor.
pub fn task_vector(
    expert: &Arc<Checkpoint>,
    base: &Arc<Checkpoint>,
    tensor: &str,
    first: usize,
    output: &mut [u8],
) -> Result<()> {
    const SIZE: usize = size_of::<f32>();
    let inputs = Inputs::new(vec![Arc::clone(expert), Arc::clone(base)]);
    let row = row(&inputs, tensor)?;
    let (length, bytes) = (row.length, output.len());
    let end = first.checked_add(bytes / SIZE).filter(|_| bytes.is_multiple_of(SIZE));
    if end.is_none_or(|end| end > length) {
        let reason = format!(
            "an output of {bytes} bytes does not fit its {length} entries from the one at {first} on"
        );
        return Err(Error::setting(tensor, reason));
    }
    let blocks = output.par_chunks_mut(BLOCK * SIZE).enumerate().with_min_len(16);
    blocks.for_each(|(place, output)| {
        let start = first + place * BLOCK;
        let entries = start..start + output.len() / SIZE;
        let [mut expert, mut base] = [[0.0; BLOCK]; 2];
        row.read(0, entries.clone(), &mut expert);
        row.read(1, entries, &mut base);
        for ((output, expert), base) in
            output.as_chunks_mut::<SIZE>().0.iter_mut().zip(expert).zip(base)
        {
            *output = ((expert - base) as f32).to_le_bytes();
        }
    });
    Ok(())
}

/// One tensor of all the models.
struct Row<'i> {
    entries: Vec<Entries<'i>>,
    length: usize,
}

impl Row<'_> {
    fn read(&self, model: usize, entries: Range<usize>, out: &mut [f64; BLOCK]) {
        let length = entries.len();
        self.entries[model].read(entries, &mut out[..length]);
    }

    /// Bytes of some entries, for reporting progress.
    fn chunk_bytes(&self, entries: Range<usize>) -> u64 {
        let entry_bytes: u64 = self.entries.iter().map(Entries::entry_bytes).sum();
        entry_bytes * entries.len() as u64
    }

    fn compare(&self, chunk: Range<usize>) -> Difference {
        let mut found = Difference::default();
        let (mut a, mut b, mut base) = ([0.0; BLOCK], [0.0; BLOCK], [0.0; BLOCK]);
        for block in blocks(chunk) {
            let length = block.len();
            self.read(0, block.clone(), &mut a);
            self.read(1, block.clone(), &mut b);
            let (a, b) = (&mut a[..length], &mut b[..length]);
            let changed = difference::changed(a, b);
            let largest = difference::largest(a, b);
            let squared_difference = distance::squared_distance(a, b);
            if self.entries.len() > 2 {
                self.read(2, block, &mut base);
                for ((a, b), base) in a.iter_mut().zip(b.iter_mut()).zip(&base) {
                    *a -= base;
                    *b -= base;
                }
            }
            found.add(&Difference {
                entries: length as u64,
                changed: changed as u64,
                signed: difference::signed(a, b) as u64,
                agreeing: difference::agreeing(a, b) as u64,
                largest,
                squared_difference,
                squared_a: difference::product(a, a),
                squared_b: difference::product(b, b),
                product: difference::product(a, b),
            });
        }
        found
    }
}

/// The entries of one tensor in every model.
fn row<'i>(inputs: &'i Inputs, name: &str) -> Result<Row<'i>> {
    let mut entries = Vec::with_capacity(inputs.checkpoints.len());
    let mut shape: Option<&Vec<usize>> = None;
    let mut length = 0;
    for (model, checkpoint) in inputs.checkpoints.iter().enumerate() {
        let found = checkpoint.get(name);
        let info = found.ok_or_else(|| Error::tensor(checkpoint.path(), name, "is missing"))?;
        let expected = *shape.get_or_insert(&info.shape);
        if info.shape != *expected {
            let reason = format!("has shape {:?} where {expected:?} is compared", info.shape);
            return Err(Error::tensor(checkpoint.path(), name, reason));
        }
        length = info.elements();
        entries.push(Entries::of(&Source::of(model, checkpoint, info), inputs)?);
    }
    Ok(Row { entries, length })
}

fn pieces(length: usize) -> impl Iterator<Item = Range<usize>> {
    (0..length).step_by(CHUNK).map(move |start| start..length.min(start + CHUNK))
}

fn blocks(chunk: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let end = chunk.end;
    chunk.step_by(BLOCK).map(move |start| start..end.min(start + BLOCK))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::MemoryTensor;
    use crate::dtype::Dtype;

    fn checkpoint(values: &[f32]) -> Arc<Checkpoint> {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let shape = vec![values.len()];
        let bytes = Box::new(bytes);
        let tensor = MemoryTensor { name: "w".into(), dtype: Dtype::F32, shape, bytes };
        Arc::new(Checkpoint::from_memory("model", vec![tensor]).expect("fits"))
    }

    fn compared(values: [&[f32]; 2], base: Option<&[f32]>, threads: usize) -> Difference {
        let [a, b] = values.map(checkpoint);
        let base = base.map(checkpoint);
        let monitor = Monitor::new();
        let tensors = ["w".to_owned()];
        let found = differences(&a, &b, base.as_ref(), &tensors, Some(threads), &monitor);
        found.expect("fits")[0]
    }

    #[test]
    fn of_a_few_entries() {
        let (a, b) = (&[1.0, 0.0, -2.0, 3.0], &[1.0, 5.0, 2.0, 1.0]);
        let plain = Difference {
            entries: 4,
            changed: 3,
            signed: 3,
            agreeing: 2,
            largest: 5.0,
            squared_difference: 45.0,
            squared_a: 14.0,
            squared_b: 31.0,
            product: 0.0,
        };
        assert_eq!(compared([a, b], None, 1), plain);
        let base = &[0.0, 1.0, 0.0, 2.0];
        // a − base = [1, −1, −2, 1], b − base = [1, 4, 2, −1].
        let with_base = Difference {
            signed: 4,
            agreeing: 1,
            squared_a: 7.0,
            squared_b: 22.0,
            product: -8.0,
            ..plain
        };
        assert_eq!(compared([a, b], Some(base), 1), with_base);
    }

    #[test]
    fn the_same_bits_for_any_number_of_threads() {
        let values = |step: f32| -> Vec<f32> {
            (0..3 * CHUNK + 77).map(|place| (place as f32 * step).sin()).collect()
        };
        let (a, b) = (values(0.37), values(0.11));
        let one = compared([&a, &b], None, 1);
        assert_eq!(one, compared([&a, &b], None, 3));
        assert_eq!(one.entries, a.len() as u64);
        let expected: f64 = a.iter().zip(&b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
        assert!((one.product - expected).abs() < 1e-6);
    }

    #[test]
    fn task_vectors_are_differences() {
        let length = 2 * BLOCK + 5;
        let expert: Vec<f32> = (0..length).map(|place| place as f32).collect();
        let (expert, base) = (checkpoint(&expert), checkpoint(&vec![0.5; length]));
        let mut output = vec![0; 4 * (length - 3)];
        task_vector(&expert, &base, "w", 3, &mut output).expect("fits");
        for (place, entry) in output.as_chunks::<4>().0.iter().enumerate() {
            assert_eq!(f32::from_le_bytes(*entry), (place + 3) as f32 - 0.5);
        }
        for (first, bytes) in [(4, output.len()), (usize::MAX, 8), (0, 7)] {
            let refused = task_vector(&expert, &base, "w", first, &mut output[..bytes]);
            assert!(refused.is_err_and(|error| error.to_string().contains("does not fit")));
        }
    }
}
