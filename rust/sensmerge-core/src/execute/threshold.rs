//! Exact magnitude thresholds over task vectors that are never held: a sample says about where a
//! threshold lies, and one sweep over the inputs says exactly.

use rayon::prelude::*;

use super::Run;
use super::sample::{bracket, sample};
use super::select::{Place, Search, Selected, locate, select};
use super::tensor::{Block, Cut, Tensor};
use super::window::{Chunk, Scratch, WINDOW_ENTRIES, all_chunks, chunk_entries, chunks_of, sweep};
use crate::dtype::Real;
use crate::error::Result;
use crate::kernel::bracket::{Bracket, Counts, count_and_collect};
use crate::kernel::trim::count_equal;

/// Tensors of up to this many entries are selected from in memory.
const SMALL: usize = 1 << 16;

/// Places of a tensor that are sampled, and the share of its entries that a bracket spans on both
/// sides of the guess: four standard deviations, with room for entries that resemble their neighbours.
const TENSOR_RUNS: usize = 1 << 11;
const TENSOR_MARGIN: f64 = 0.0125;

/// The same for a whole model.
const MODEL_RUNS: usize = 1 << 15;
const MODEL_MARGIN: f64 = 0.004;

/// What one sweep over a chunk tells of one expert.
struct Counted<M> {
    counts: Counts,
    inside: Vec<M>,
}

/// How far the threshold of one expert's part of one tensor is known.
enum Guess<T: Real> {
    Known(Cut<T>),
    Within(Bracket<T::Magnitude>),
}

/// How many entries of a tensor a trim to `density` keeps.
fn kept(elements: usize, density: f64) -> u64 {
    ((density * elements as f64).floor() as u64).max(1)
}

/// The trim of every expert's part of every tensor of a window, to exactly
/// `max(1, floor(density * n))` entries.
pub(super) fn cuts_by_tensor<T: Real>(
    run: &Run,
    scratch: &Scratch<T>,
    window: &[Tensor],
) -> Result<Vec<Vec<Cut<T>>>> {
    if run.plan.method.trim.is_none() {
        return Ok(window.iter().map(|tensor| vec![Cut::None; tensor.experts()]).collect());
    }
    let size = chunk_entries::<T>(run.options.chunk_bytes);
    let guess = |tensor: &Tensor| {
        run.monitor.check()?;
        Ok(scratch.lend(|block| guess::<T>(tensor, size, block)))
    };
    let guesses = window.par_iter().map(guess).collect::<Result<Vec<Vec<Guess<T>>>>>()?;

    // What a tensor larger than a window holds inside its brackets would be too much to keep.
    let is_counted = |chunk: &Chunk| {
        let open = guesses[chunk.tensor].iter().any(|guess| matches!(guess, Guess::Within(_)));
        open && window[chunk.tensor].step.elements <= WINDOW_ENTRIES
    };
    let chunks: Vec<Chunk> = all_chunks::<T>(run, window).into_iter().filter(is_counted).collect();
    let counted = sweep(run, scratch, window, &chunks, |tensor, chunk, block| {
        count_chunk(tensor, chunk, &guesses[chunk.tensor], block)
    })?;

    let mut by_tensor: Vec<Vec<Vec<Counted<T::Magnitude>>>> =
        window.iter().map(|_| Vec::new()).collect();
    for (chunk, counted) in chunks.iter().zip(counted) {
        by_tensor[chunk.tensor].push(counted);
    }
    let of_tensor = |((tensor, guesses), counted): ((&Tensor, Vec<Guess<T>>), Vec<Vec<_>>)| {
        let of_expert = |(expert, guess)| match guess {
            Guess::Known(cut) => Ok(cut),
            Guess::Within(bracket) => match resolve(tensor, expert, bracket, &counted) {
                Some(cut) => Ok(cut),
                None => search(run, scratch, tensor, expert, bracket),
            },
        };
        guesses.into_iter().enumerate().map(of_expert).collect()
    };
    window.par_iter().zip(guesses).zip(by_tensor).map(of_tensor).collect()
}

/// Where the thresholds of a tensor lie; exactly, if it is small.
fn guess<T: Real>(tensor: &Tensor, chunk_entries: usize, block: &mut Block<T>) -> Vec<Guess<T>> {
    let elements = tensor.step.elements;
    let density = |expert: usize| tensor.merge.terms[expert].trim_density;
    let is_trimmed = |expert: usize| elements > 0 && density(expert) < 1.0;
    if !(0..tensor.experts()).any(is_trimmed) {
        return (0..tensor.experts()).map(|_| Guess::Known(Cut::None)).collect();
    }
    let small = elements <= SMALL;
    let samples = sample(tensor, if small { elements } else { TENSOR_RUNS }, block);
    let of_expert = |(expert, mut sample): (usize, Vec<T::Magnitude>)| {
        if !is_trimmed(expert) {
            return Guess::Known(Cut::None);
        }
        let kept = kept(elements, density(expert));
        if small {
            return Guess::Known(cut_in_memory(&sample, kept, chunk_entries));
        }
        let share = 1.0 - kept as f64 / elements as f64;
        Guess::Within(bracket::<T>(&mut sample, share, TENSOR_MARGIN))
    };
    samples.into_iter().enumerate().map(of_expert).collect()
}

/// The trim of magnitudes that are all at hand, in index order.
fn cut_in_memory<T: Real>(magnitudes: &[T::Magnitude], kept: u64, chunk_entries: usize) -> Cut<T> {
    let mut order = magnitudes.to_vec();
    let rank = order.len() - kept as usize;
    let magnitude = *order.select_nth_unstable(rank).1;
    let above = magnitudes.iter().filter(|&&other| other > magnitude).count() as u64;
    let equal = magnitudes
        .chunks(chunk_entries)
        .map(|chunk| chunk.iter().filter(|&&other| other == magnitude).count() as u64);
    Cut::Exactly { magnitude, ties: ties_by_chunk(kept - above, equal) }
}

/// How many ties each chunk may still keep, `left` before the first, from how many it has.
fn ties_by_chunk(mut left: u64, equal: impl Iterator<Item = u64>) -> Vec<u64> {
    let of_chunk = |equal| {
        let ties = left;
        left = left.saturating_sub(equal);
        ties
    };
    equal.map(of_chunk).collect()
}

/// Count a chunk against the brackets of its experts.
fn count_chunk<T: Real>(
    tensor: &Tensor,
    chunk: &Chunk,
    guesses: &[Guess<T>],
    block: &mut Block<T>,
) -> Vec<Counted<T::Magnitude>> {
    let mut counted: Vec<Counted<T::Magnitude>> =
        guesses.iter().map(|_| Counted { counts: Counts::default(), inside: Vec::new() }).collect();
    let open = |&expert: &usize| matches!(guesses[expert], Guess::Within(_));
    let mut inside = std::mem::take(&mut block.inside);
    for entries in chunk.blocks() {
        tensor.prefetch_after(&entries);
        let experts = (0..guesses.len()).filter(open);
        tensor.each_dropped(experts, &entries, block, |expert, delta| {
            let (Guess::Within(bracket), counted) = (&guesses[expert], &mut counted[expert]) else {
                return;
            };
            let collected = count_and_collect(delta, *bracket, &mut counted.counts, &mut inside);
            counted.inside.extend_from_slice(&inside[..collected]);
        });
    }
    block.inside = inside;
    counted
}

/// The trim that the counts of all chunks of a tensor tell; `None` where the bracket missed.
fn resolve<T: Real>(
    tensor: &Tensor,
    expert: usize,
    bracket: Bracket<T::Magnitude>,
    chunks: &[Vec<Counted<T::Magnitude>>],
) -> Option<Cut<T>> {
    if chunks.is_empty() {
        return None;
    }
    let counted = || chunks.iter().map(|experts| &experts[expert]);
    let total = |part: fn(&Counts) -> u64| counted().map(|chunk| part(&chunk.counts)).sum::<u64>();
    let inside: u64 = counted().map(|chunk| chunk.inside.len() as u64).sum();
    let counts = Counts {
        above: total(|counts| counts.above),
        high: total(|counts| counts.high),
        low: total(|counts| counts.low),
    };
    let elements = tensor.step.elements;
    let kept = kept(elements, tensor.merge.terms[expert].trim_density);
    let left = |above: u64| kept - above;
    let elements = elements as u64;
    let (magnitude, ties) = match locate(elements, elements - kept, &counts, inside) {
        Place::Below | Place::Above => return None,
        Place::High => {
            let equal = counted().map(|chunk| chunk.counts.high);
            (bracket.high, ties_by_chunk(left(counts.above), equal))
        }
        Place::Low => {
            let above = counts.above + counts.high + inside;
            (bracket.low, ties_by_chunk(left(above), counted().map(|chunk| chunk.counts.low)))
        }
        Place::Inside(rank) => {
            let mut all: Vec<T::Magnitude> =
                counted().flat_map(|chunk| chunk.inside.iter().copied()).collect();
            let magnitude = *all.select_nth_unstable(rank as usize).1;
            let larger = all.iter().filter(|&&other| other > magnitude).count() as u64;
            let equal = counted().map(|chunk| {
                chunk.inside.iter().filter(|&&other| other == magnitude).count() as u64
            });
            (magnitude, ties_by_chunk(left(counts.above + counts.high + larger), equal))
        }
    };
    Some(Cut::Exactly { magnitude, ties })
}

/// The trim of one expert's part of one tensor by sweeps of its own.
fn search<T: Real>(
    run: &Run,
    scratch: &Scratch<T>,
    tensor: &Tensor,
    expert: usize,
    bracket: Bracket<T::Magnitude>,
) -> Result<Cut<T>> {
    let tensors = std::slice::from_ref(tensor);
    let elements = tensor.step.elements;
    let chunks = chunks_of(0, elements, chunk_entries::<T>(run.options.chunk_bytes));
    let kept = kept(elements, tensor.merge.terms[expert].trim_density);
    let mut searches = [Search::new(expert, elements as u64 - kept, bracket)];
    select(run, scratch, tensors, &chunks, &mut searches)?;
    let [Search { found: Some(Selected { magnitude, above }), .. }] = searches else {
        return Ok(Cut::None);
    };
    let equal = sweep(run, scratch, tensors, &chunks, |tensor, chunk, block| {
        let mut equal = 0;
        for entries in chunk.blocks() {
            tensor.each_dropped(std::iter::once(expert), &entries, block, |_, delta| {
                equal += count_equal(delta, magnitude);
            });
        }
        equal
    })?;
    Ok(Cut::Exactly { magnitude, ties: ties_by_chunk(kept - above, equal.into_iter()) })
}

/// The trim of every expert's whole task vector: with `k = n - floor(density * n)`, entries at or
/// above the k-th smallest magnitude stay.
pub(super) fn cuts_by_model<T: Real>(
    run: &Run,
    scratch: &Scratch<T>,
    tensors: &[Tensor],
) -> Result<Vec<Cut<T>>> {
    let Some(first) = tensors.first() else { return Ok(Vec::new()) };
    let entries: usize = tensors.iter().map(|tensor| tensor.step.elements).sum();
    let trimmed = |expert: usize| {
        let density = first.merge.terms[expert].trim_density;
        entries as u64 - (density * entries as f64).floor() as u64
    };
    let experts: Vec<usize> = (0..first.experts()).filter(|&expert| trimmed(expert) > 0).collect();
    let samples = |tensor: &Tensor| {
        run.monitor.check()?;
        let runs = (MODEL_RUNS as u128 * tensor.step.elements as u128).div_ceil(entries as u128);
        Ok(scratch.lend(|block| sample::<T>(tensor, runs as usize, block)))
    };
    let samples = match experts.as_slice() {
        [] => Vec::new(),
        _ => tensors.par_iter().map(samples).collect::<Result<Vec<_>>>()?,
    };
    let search = |&expert: &usize| {
        let magnitudes = samples.iter().flat_map(|experts| experts[expert].iter().copied());
        let mut magnitudes: Vec<T::Magnitude> = magnitudes.collect();
        let rank = trimmed(expert) - 1;
        let share = rank as f64 / entries as f64;
        Search::new(expert, rank, bracket::<T>(&mut magnitudes, share, MODEL_MARGIN))
    };
    let mut searches: Vec<Search<T>> = experts.par_iter().map(search).collect();
    select(run, scratch, tensors, &all_chunks::<T>(run, tensors), &mut searches)?;
    let mut cuts = vec![Cut::None; first.experts()];
    for search in searches {
        if let Some(Selected { magnitude, .. }) = search.found {
            cuts[search.expert] = Cut::AtLeast(magnitude);
        }
    }
    Ok(cuts)
}
