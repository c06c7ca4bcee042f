//! Merges in one pass, from stored bytes to stored bytes.
//!
//! ```text
//! for every strip of entries:
//!     widen the base's
//!     for every model: widen its entries, subtract the base's, drop, trim and rescale
//!     sum them by their weights, or elect a sign and sum those that have it; divide
//!     multiply by λ, add the base, round once
//! ```
//!
//! The arithmetic is that of the kernels that do one of these things each, in the same order, so that the
//! bytes are the same.

use super::disjoint::{Agreement, Divisor, SMALLEST_DIVISOR, agrees};
use super::elect::sign;
use super::strip::{Entry, with_entry};
use crate::dtype::{Float, Real};
use crate::processor::widest;

/// Entries of a strip whose sums stay in registers, and of one whose task vectors stay in the first-level
/// cache.
const LANES: usize = 32;
const ELECTED_LANES: usize = 16;

/// Models of an election, at most.
pub const MOST_ELECTED: usize = 8;

/// One model.
#[derive(Clone, Copy, Debug)]
pub struct Addend<'a> {
    /// The entries of its tensor, as they are stored.
    pub stored: &'a [u8],
    /// Its weight.
    pub weight: f32,
    /// The factor of the entries that its mask keeps, while the others are set to 0; without it there is no
    /// mask.
    pub masked: Option<f32>,
    /// Then, the bits of the smallest magnitude that is not set to 0.
    pub least: i32,
    /// Then, the factor of all entries.
    pub scale: f32,
}

/// The combination of the models' task vectors.
#[derive(Clone, Copy, Debug)]
pub enum Combination {
    /// `Σ_i w_i δ̂_i`, divided by a number.
    Sum {
        /// The number.
        divisor: Option<f32>,
    },
    /// The sum of those that have the sign of the sum of all votes, as
    /// [`elect_sign`](super::elect::elect_sign) and [`disjoint`](super::disjoint::disjoint) have it, for up to
    /// [`MOST_ELECTED`] models.
    Elected {
        /// Whether votes are weighted.
        agreement: Agreement,
        /// The divisor of the sum.
        divisor: Divisor,
        /// The sign where votes sum to 0.
        draw: f32,
    },
}

/// What is merged.
#[derive(Clone, Copy, Debug)]
pub struct Merge<'a> {
    /// The dtype in which models are stored.
    pub dtype: Float,
    /// The models.
    pub addends: &'a [Addend<'a>],
    /// The base, as it is stored, if task vectors are merged: it is subtracted from every model, and added to
    /// the combination.
    pub base: Option<&'a [u8]>,
    /// How they are combined.
    pub combination: Combination,
    /// The factor of the combination where it is added to the base.
    pub lambda: f32,
}

/// Merge the entries from `first` on into `out`, as dtype `to`.
///
/// Bit `j % 32` of word `j / 32` of a model's mask says whether entry `first + j` of its task vector is kept.
/// `masks` has room for a mask of every model, all of the same length.
///
/// # Returns
/// Whether `out` is right: all results are finite, and no entry that a mask sets to 0 is NaN. Otherwise `out`
/// holds anything.
///
/// # Panics
/// If a length does not match, without models or with too many, or for float64.
#[must_use]
pub fn merge(merge: &Merge, masks: &[u32], first: usize, to: Float, out: &mut [u8]) -> bool {
    let found =
        with_entry!(merge.dtype, I => with_entry!(to, O => whole::<I, O>(merge, masks, first, out)));
    found.flatten().expect("float64 is not merged in float32")
}

fn whole<I: Entry, O: Entry>(merge: &Merge, masks: &[u32], first: usize, out: &mut [u8]) -> bool {
    let words = masks.len() / merge.addends.len();
    assert!(out.len() % O::SIZE == 0 && out.len() / O::SIZE <= 32 * words);
    let block = Block { masks, words, first };
    match merge.combination {
        Combination::Sum { divisor } => summed::<I, O>(merge, block, divisor, out),
        Combination::Elected { agreement, divisor, draw } => {
            assert!(merge.addends.len() <= MOST_ELECTED);
            elected::<I, O>(merge, block, Vote { agreement, divisor, draw }, out)
        }
    }
}

/// The masks of all models, each of so many words, and the index of their first entry in the tensor.
#[derive(Clone, Copy)]
struct Block<'m> {
    masks: &'m [u32],
    words: usize,
    first: usize,
}

#[derive(Clone, Copy)]
struct Vote {
    agreement: Agreement,
    divisor: Divisor,
    draw: f32,
}

widest! {
    fn summed<I: Entry, O: Entry>(
        merge: &Merge,
        block: Block,
        divisor: Option<f32>,
        out: &mut [u8],
    ) -> bool {
        let (strips, rest) = strips::<O, LANES>(out);
        let mut largest = [0; LANES];
        for (place, out) in strips.chunks_exact_mut(LANES * O::SIZE).enumerate() {
            sum_strip::<I, O, LANES>(merge, block, place * LANES, divisor, out, &mut largest);
        }
        let done = strips.len() / O::SIZE;
        let mut last = [0];
        for (place, out) in rest.chunks_exact_mut(O::SIZE).enumerate() {
            sum_strip::<I, O, 1>(merge, block, done + place, divisor, out, &mut last);
        }
        largest.iter().chain(&last).all(|&largest| largest < O::BEYOND)
    }
}

widest! {
    fn elected<I: Entry, O: Entry>(merge: &Merge, block: Block, vote: Vote, out: &mut [u8]) -> bool {
        const N: usize = ELECTED_LANES;
        let (strips, rest) = strips::<O, N>(out);
        let mut largest = [0; N];
        for (place, out) in strips.chunks_exact_mut(N * O::SIZE).enumerate() {
            elected_strip::<I, O, N>(merge, block, place * N, vote, out, &mut largest);
        }
        let done = strips.len() / O::SIZE;
        let mut last = [0];
        for (place, out) in rest.chunks_exact_mut(O::SIZE).enumerate() {
            elected_strip::<I, O, 1>(merge, block, done + place, vote, out, &mut last);
        }
        largest.iter().chain(&last).all(|&largest| largest < O::BEYOND)
    }
}

/// Cut `out` after its last whole strip of `N` entries.
#[inline(always)]
fn strips<O: Entry, const N: usize>(out: &mut [u8]) -> (&mut [u8], &mut [u8]) {
    let strip = N * O::SIZE;
    out.split_at_mut(out.len() / strip * strip)
}

/// Merge `N` entries from `start` of the block on. `largest` keeps the bits of the largest magnitudes.
#[inline(always)]
fn sum_strip<I: Entry, O: Entry, const N: usize>(
    merge: &Merge,
    block: Block,
    start: usize,
    divisor: Option<f32>,
    out: &mut [u8],
    largest: &mut [i32; N],
) {
    let base = merge.base.map(|base| stored::<I, N>(base, block.first + start));
    let mut sums = [0.0; N];
    for (model, addend) in merge.addends.iter().enumerate() {
        let row = row::<I, N>(addend, base.as_ref(), block, [model, start], largest);
        // A sum that starts at +0 would lose the sign of zeros.
        if model == 0 {
            for lane in 0..N {
                sums[lane] = addend.weight * row[lane];
            }
        } else {
            for lane in 0..N {
                sums[lane] += addend.weight * row[lane];
            }
        }
    }
    if let Some(divisor) = divisor {
        for sum in &mut sums {
            *sum /= divisor;
        }
    }
    finish::<O, N>(sums, base.as_ref(), merge.lambda, out, largest);
}

/// The same with an election.
#[inline(always)]
fn elected_strip<I: Entry, O: Entry, const N: usize>(
    merge: &Merge,
    block: Block,
    start: usize,
    vote: Vote,
    out: &mut [u8],
    largest: &mut [i32; N],
) {
    let base = merge.base.map(|base| stored::<I, N>(base, block.first + start));
    let mut rows = [[0.0; N]; MOST_ELECTED];
    let mut votes = [0.0; N];
    let weighted = vote.agreement == Agreement::Weighted;
    for (model, addend) in merge.addends.iter().enumerate() {
        let row = row::<I, N>(addend, base.as_ref(), block, [model, start], largest);
        let factor = if weighted { addend.weight } else { 1.0 };
        for lane in 0..N {
            votes[lane] += factor * row[lane];
        }
        rows[model] = row;
    }
    let signs = votes.map(|sum| sign(sum, vote.draw));
    let (mut sums, mut totals) = ([0.0; N], [0.0; N]);
    for (addend, row) in merge.addends.iter().zip(&rows) {
        let factor = if weighted { addend.weight } else { 1.0 };
        let share = if vote.divisor == Divisor::Count { 1.0 } else { addend.weight };
        for lane in 0..N {
            let takes_part = agrees(factor * row[lane], signs[lane]);
            sums[lane] += (addend.weight * row[lane]).only_if(takes_part);
            totals[lane] += share.only_if(takes_part);
        }
    }
    match vote.divisor {
        Divisor::One => {}
        Divisor::Weights | Divisor::Count => {
            for lane in 0..N {
                sums[lane] /= if totals[lane] == 0.0 { 1.0 } else { totals[lane] };
            }
        }
        Divisor::AtLeastSmallest => {
            let smallest = SMALLEST_DIVISOR as f32;
            for lane in 0..N {
                sums[lane] /= if totals[lane] < smallest { smallest } else { totals[lane] };
            }
        }
    }
    finish::<O, N>(sums, base.as_ref(), merge.lambda, out, largest);
}

/// A model's entries as they are combined.
#[inline(always)]
fn row<I: Entry, const N: usize>(
    addend: &Addend,
    base: Option<&[f32; N]>,
    block: Block,
    [model, start]: [usize; 2],
    largest: &mut [i32; N],
) -> [f32; N] {
    let mut row = stored::<I, N>(addend.stored, block.first + start);
    if let Some(base) = base {
        for lane in 0..N {
            row[lane] -= base[lane];
        }
    }
    if let Some(scale) = addend.masked {
        let word = block.masks[model * block.words + start / 32] >> (start % 32);
        for lane in 0..N {
            // Only NaN is above infinity. Entries that are kept are looked at when all are combined.
            let hidden = row[lane].magnitude() > f32::INFINITY.magnitude();
            largest[lane] |= 0_i32.wrapping_sub(i32::from(hidden)) & i32::MAX;
            row[lane] = (row[lane] * scale).only_if((word >> lane) & 1 != 0);
        }
    }
    if addend.least > 0 {
        for value in &mut row {
            *value = value.only_if(value.magnitude() >= addend.least);
        }
    }
    if addend.scale != 1.0 {
        for value in &mut row {
            *value *= addend.scale;
        }
    }
    row
}

/// Add the base and round.
#[inline(always)]
fn finish<O: Entry, const N: usize>(
    mut combined: [f32; N],
    base: Option<&[f32; N]>,
    lambda: f32,
    out: &mut [u8],
    largest: &mut [i32; N],
) {
    if let Some(base) = base {
        for lane in 0..N {
            combined[lane] = base[lane] + lambda * combined[lane];
        }
    }
    for lane in 0..N {
        largest[lane] = largest[lane].max(combined[lane].magnitude());
    }
    O::store(&combined, out);
}

#[inline(always)]
fn stored<I: Entry, const N: usize>(bytes: &[u8], start: usize) -> [f32; N] {
    I::load(&bytes[start * I::SIZE..][..N * I::SIZE])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::disjoint::disjoint;
    use crate::kernel::elect::elect_sign;
    use crate::kernel::finite::all_finite;
    use crate::kernel::random_drop::drop_and_rescale;
    use crate::kernel::samples::{any, finite, rows};
    use crate::kernel::task_vector::subtract;
    use crate::kernel::trim::trim;
    use crate::kernel::weighted_sum::{divide, multiply, scale_and_add, weighted_sum};
    use proptest::prelude::*;

    const FLOATS: [Float; 3] = [Float::F16, Float::Bf16, Float::F32];
    const MASKED: f32 = 1.25;

    fn stored(values: &[f32], dtype: Float) -> Vec<u8> {
        let mut bytes = vec![0; values.len() * dtype.size()];
        f32::narrow(values, dtype, &mut bytes);
        bytes
    }

    fn widened(bytes: &[u8], dtype: Float) -> Vec<f32> {
        let mut values = vec![0.0; bytes.len() / dtype.size()];
        f32::widen(dtype, bytes, &mut values);
        values
    }

    /// The same by kernels that do one thing each; `None` where a result is not finite or NaN is dropped.
    fn by_steps(merge: &Merge, keep: &[u8], to: Float) -> Option<Vec<u8>> {
        let base = merge.base.map(|base| widened(base, merge.dtype));
        let mut dropped_nan = false;
        let mut rows = Vec::new();
        for addend in merge.addends {
            let mut row = widened(addend.stored, merge.dtype);
            if let Some(base) = &base {
                subtract(&mut row, base);
            }
            if let Some(scale) = addend.masked {
                dropped_nan |= row.iter().any(|value| value.is_nan());
                drop_and_rescale(&mut row, keep, scale);
            }
            trim(&mut row, addend.least);
            multiply(&mut row, addend.scale);
            rows.extend(row);
        }
        let weights: Vec<f32> = merge.addends.iter().map(|addend| addend.weight).collect();
        let mut out = vec![0.0; keep.len()];
        match merge.combination {
            Combination::Sum { divisor } => {
                weighted_sum(&rows, &weights, &mut out);
                if let Some(divisor) = divisor {
                    divide(&mut out, divisor);
                }
            }
            Combination::Elected { agreement, divisor, draw } => {
                let unweighted = vec![1.0; weights.len()];
                let votes = if agreement == Agreement::Weighted { &weights } else { &unweighted };
                let mut signs = vec![0.0; keep.len()];
                elect_sign(&rows, votes, draw, &mut signs);
                disjoint(&rows, &weights, &signs, agreement, divisor, &mut out);
            }
        }
        if let Some(base) = &base {
            scale_and_add(base, merge.lambda, &mut out);
        }
        let bytes = stored(&out, to);
        (all_finite(&out) && all_finite(&widened(&bytes, to)) && !dropped_nan).then_some(bytes)
    }

    /// A choice among as many settings as there are digits in `choice`.
    fn check(length: usize, rows: &[f32], weights: &[f32], choice: u32) {
        let pick = |place: u32, of: u32| choice / 7_u32.pow(place) % 7 % of;
        let (from, to) = (FLOATS[pick(0, 3) as usize], FLOATS[pick(1, 3) as usize]);
        let models: Vec<Vec<u8>> =
            (0..weights.len()).map(|i| stored(&rows[i * length..][..length], from)).collect();
        let base: Vec<f32> = rows[..length].iter().rev().map(|value| value * 0.5).collect();
        let base = stored(&base, from);
        let keep: Vec<u8> = (0..length).map(|j| u8::from((j * 7 + pick(2, 7) as usize) % 3 > 0)).collect();
        let bit = |(lane, &keep): (usize, &u8)| u32::from(keep) << lane;
        let mask: Vec<u32> =
            keep.chunks(32).map(|keep| keep.iter().enumerate().map(bit).sum()).collect();
        let addends: Vec<Addend> = (models.iter().zip(weights))
            .map(|(stored, &weight)| Addend {
                stored,
                weight,
                masked: (pick(2, 7) > 2).then_some(MASKED),
                least: [0, 0.5_f32.magnitude()][pick(3, 2) as usize],
                scale: [1.0, 1.5][pick(4, 2) as usize],
            })
            .collect();
        let divisors = [Divisor::One, Divisor::Weights, Divisor::AtLeastSmallest, Divisor::Count];
        let combination = match pick(5, 7) {
            0 => Combination::Sum { divisor: None },
            1 => Combination::Sum { divisor: Some(1.5) },
            other => Combination::Elected {
                agreement: [Agreement::Weighted, Agreement::Unweighted][other as usize % 2],
                divisor: divisors[pick(6, 4) as usize],
                draw: [1.0, -1.0, 0.0][pick(7, 3) as usize],
            },
        };
        let based = pick(8, 7) > 0;
        let base = based.then_some(&*base);
        let merged = Merge { dtype: from, addends: &addends, base, combination, lambda: 0.75 };
        let mut out = vec![0; length * to.size()];
        // Two calls, as for two blocks of a tensor.
        let cut = length.min(1024);
        let (front, back) = out.split_at_mut(cut * to.size());
        let masks = |of: &[u32]| of.repeat(addends.len());
        let mut right = merge(&merged, &masks(&mask), 0, to, front);
        right &= merge(&merged, &masks(&mask[(cut / 32).min(mask.len())..]), cut, to, back);
        let expected = by_steps(&merged, &keep, to);
        assert_eq!(right, expected.is_some(), "{merged:?} {to:?}");
        if let Some(expected) = expected {
            assert!(out == expected, "{combination:?} {from:?} {to:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn the_bytes_are_those_of_single_kernels(
            (length, rows, weights) in rows(finite()), choice in 0..7_u32.pow(9),
        ) {
            check(length, &rows, &weights, choice);
        }

        #[test]
        fn what_is_not_finite_is_seen(
            (length, rows, weights) in rows(any()), choice in 0..7_u32.pow(9),
        ) {
            check(length, &rows, &weights, choice);
        }
    }
}
