//! Exact magnitude thresholds, without sorting and without holding a task vector.
//!
//! Within a tensor the threshold is the k-th largest magnitude of a row. In a small tensor all
//! magnitudes are read and it is selected among them. In others:
//!
//! ```text
//! sample 32,768 magnitudes, spread evenly: their quantiles give a bracket that should contain the
//!     threshold
//! in one sweep, for every chunk: count the entries above the bracket and on its two bounds, and
//!     collect the magnitudes inside it (2.5 % of the tensor)
//! the counts of all chunks say whether the threshold is one of the bounds or, if not, its rank among
//!     the collected magnitudes, from which it is then selected
//! if the bracket missed the threshold, or the tensor is so large that 2.5 % of it is too much to
//!     hold: search by narrowing the bracket instead (`select`)
//! ```
//!
//! The bounds are counted rather than collected because differences of bfloat16 numbers take few
//! values: a tenth of a tensor may lie on one bound. Exactly k entries stay: of the entries equal to
//! the threshold, those of the lowest indices. The number of ties that each chunk may keep follows
//! from its counts.
//!
//! Over the whole model there is one threshold for every model, found by narrowing. Narrowing needs
//! the same memory however many entries there are, but may need more sweeps than collecting, and for
//! a tensor always one more, which counts the ties of each chunk.

use std::sync::OnceLock;

use super::block::Block;
use super::cut::{Cut, Kept, Target};
use super::sample::{bracket, sample};
use super::select::{Place, Search, Selected, locate, select};
use super::sweep::{Chunk, Reader, Together, foreign_numbers, reduce_tensors};
use super::{Reduction, Subject, Sweep};
use crate::dtype::Real;
use crate::error::Result;
use crate::kernel::bracket::{Bracket, Counts, count_and_collect};
use crate::kernel::trim::count_equal;

/// Up to this many entries, all magnitudes of a tensor are read into memory.
const SMALL: usize = 1 << 16;

/// Above this many entries, no magnitudes of a tensor are collected.
const LARGE: usize = 1 << 26;

/// Thresholds of a tensor that are searched for in the same sweeps, at most: each needs bins of its own.
const TOGETHER: usize = 8;

/// Runs of entries that are sampled in a tensor, and the fraction of its entries that a bracket spans on
/// each side of the sample's quantile: over four standard deviations of that quantile, to allow for
/// entries that resemble their neighbours.
const TENSOR_RUNS: usize = 1 << 11;
const TENSOR_MARGIN: f64 = 0.0125;

/// The same for a whole model.
const MODEL_RUNS: usize = 1 << 15;
const MODEL_MARGIN: f64 = 0.004;

/// The knowledge about one target: the cut, or a bracket.
enum Guess<T: Real> {
    Known(Cut<T>),
    Within(Bracket<T::Magnitude>),
}

/// The cuts within tensors, by tensor and target; see the module's documentation.
pub(super) fn cuts_by_tensor<T: Real>(
    sweep: &dyn Sweep<T>,
    targets: &[Vec<Target>],
) -> Result<Vec<Vec<Cut<T>>>> {
    let subjects = sweep.subjects();
    let guesses: Vec<OnceLock<Vec<Guess<T>>>> = subjects.iter().map(|_| OnceLock::new()).collect();
    let mut sizes = vec![1; subjects.len()];
    for chunk in sweep.chunks().iter().filter(|chunk| chunk.place == 0) {
        sizes[chunk.tensor] = chunk.entries.len();
    }
    sweep.visit_tensors(&|tensor, reader| {
        let size = sizes[tensor];
        let _ = guesses[tensor].set(guess(&subjects[tensor], &targets[tensor], size, reader));
    })?;
    let guesses: Vec<Vec<Guess<T>>> =
        guesses.into_iter().map(|guess| guess.into_inner().unwrap_or_default()).collect();

    let counted = reduce_tensors(sweep, &Counting { subjects, targets, guesses: &guesses })?;
    let of_tensor = |(tensor, (guesses, counted)): (usize, (Vec<Guess<T>>, ByChunk<T>))| {
        let elements = subjects[tensor].elements() as u64;
        let mut cuts = vec![Cut::All; guesses.len()];
        let mut missed = Vec::new();
        for (place, guess) in guesses.into_iter().enumerate() {
            let target = targets[tensor][place];
            match guess {
                Guess::Known(cut) => cuts[place] = cut,
                Guess::Within(bracket) => {
                    match resolve(elements, target.kept, place, bracket, &counted) {
                        Some(cut) => cuts[place] = cut,
                        None => missed.push((place, target, bracket)),
                    }
                }
            }
        }
        for some in missed.chunks(TOGETHER) {
            for (cut, (place, ..)) in search(sweep, tensor, some)?.into_iter().zip(some) {
                cuts[*place] = cut;
            }
        }
        Ok(cuts)
    };
    guesses.into_iter().zip(counted).enumerate().map(of_tensor).collect()
}

/// The cuts over the whole model, the same for every tensor: one magnitude per model, of which
/// `density` is the fraction of entries kept.
pub(super) fn cuts_by_model<T: Real>(
    sweep: &dyn Sweep<T>,
    density: &str,
) -> Result<Vec<Vec<Cut<T>>>> {
    let subjects = sweep.subjects();
    let Some(first) = subjects.first() else { return Ok(Vec::new()) };
    let together = sweep.together();
    let of_sweep = || subjects.iter().map(Subject::elements).sum();
    let entries: usize = together.map_or_else(of_sweep, Together::entries);
    let trimmed = |model: usize| {
        let density = first.numbers(density)[model];
        entries as u64 - (density * entries as f64).floor() as u64
    };
    let models: Vec<usize> = (0..first.models).filter(|&model| trimmed(model) > 0).collect();
    if models.is_empty() {
        return Ok(vec![vec![Cut::All; first.models]; subjects.len()]);
    }
    let samples = samples_of_model(sweep, entries, &models)?;
    let search = |(&model, mut sample): (&usize, Vec<T::Magnitude>)| {
        let rank = trimmed(model) - 1;
        let share = rank as f64 / entries as f64;
        Search::new(model, rank, bracket::<T>(&mut sample, share, MODEL_MARGIN))
    };
    let mut searches: Vec<Search<T>> = models.iter().zip(samples).map(search).collect();
    select(sweep, None, entries as u64, &mut searches)?;
    let mut cuts = vec![Cut::All; first.models];
    for search in searches {
        if let Some(Selected { magnitude, .. }) = search.found {
            cuts[search.model] = Cut::AtLeast(magnitude);
        }
    }
    Ok(subjects.iter().map(|_| cuts.clone()).collect())
}

/// Magnitudes of some models, of `entries` entries, spread evenly over the whole model; in any order.
fn samples_of_model<T: Real>(
    sweep: &dyn Sweep<T>,
    entries: usize,
    models: &[usize],
) -> Result<Vec<Vec<T::Magnitude>>> {
    let subjects = sweep.subjects();
    let together = sweep.together();
    let of_sweep = || {
        let samples: Vec<OnceLock<Vec<Vec<T::Magnitude>>>> =
            subjects.iter().map(|_| OnceLock::new()).collect();
        sweep.visit_tensors(&|tensor, reader| {
            if together.is_some_and(|together| !together.counts(tensor)) {
                return;
            }
            let elements = subjects[tensor].elements() as u128;
            let runs = (MODEL_RUNS as u128 * elements).div_ceil(entries as u128);
            let _ = samples[tensor].set(sample(&subjects[tensor], runs as usize, reader));
        })?;
        let of_model = |&model: &usize| {
            let found = samples.iter().filter_map(OnceLock::get);
            found.flat_map(|models| models[model].iter().copied()).collect()
        };
        Ok(models.iter().map(of_model).collect::<Vec<Vec<T::Magnitude>>>())
    };
    let Some(together) = together else { return of_sweep() };
    let mut all = vec![Vec::new(); models.len()];
    // As numbers: for every model how many, and the magnitudes.
    let mut find = || {
        let numbers = |sample: Vec<T::Magnitude>| {
            let length = (sample.len() as u64).cast_signed();
            std::iter::once(length).chain(sample.into_iter().map(Into::into))
        };
        Ok(of_sweep()?.into_iter().flat_map(numbers).collect())
    };
    together.exchange(&mut find, &mut |mut numbers| {
        for sample in &mut all {
            let (length, rest) = numbers.split_first().ok_or_else(foreign_numbers)?;
            let of_model = usize::try_from(*length).ok().and_then(|all| rest.split_at_checked(all));
            let (of_model, rest) = of_model.ok_or_else(foreign_numbers)?;
            for &magnitude in of_model {
                sample.push(T::Magnitude::try_from(magnitude).map_err(|_| foreign_numbers())?);
            }
            numbers = rest;
        }
        Ok(())
    })?;
    Ok(all)
}

/// The cuts of a tensor if it is small, otherwise brackets from a sample. One per target.
fn guess<T: Real>(
    subject: &Subject,
    targets: &[Target],
    chunk_entries: usize,
    reader: &mut dyn Reader<T>,
) -> Vec<Guess<T>> {
    let elements = subject.elements() as u64;
    let known = |target: &Target| match target.kept {
        _ if elements == 0 => Some(Cut::All),
        Kept::Count(count) if count >= elements => Some(Cut::All),
        Kept::Count(0) => Some(Cut::Nothing),
        _ => None,
    };
    if targets.iter().all(|target| known(target).is_some()) {
        return targets.iter().filter_map(known).map(Guess::Known).collect();
    }
    let small = subject.elements() <= SMALL;
    let samples = sample(subject, if small { subject.elements() } else { TENSOR_RUNS }, reader);
    let of_target = |target: &Target| {
        if let Some(cut) = known(target) {
            return Guess::Known(cut);
        }
        let sample = &samples[target.row];
        let zeros = sample.iter().filter(|&&magnitude| magnitude == T::Magnitude::default());
        let zeros = zeros.count() as u64;
        if small {
            let kept = target.kept.of(elements, zeros);
            return Guess::Known(cut_in_memory(sample, kept, chunk_entries));
        }
        let zeros = (zeros as f64 / sample.len() as f64 * elements as f64) as u64;
        let share = 1.0 - target.kept.of(elements, zeros) as f64 / elements as f64;
        Guess::Within(bracket::<T>(&mut sample.clone(), share, TENSOR_MARGIN))
    };
    targets.iter().map(of_target).collect()
}

/// The cut for magnitudes that are all given, in index order.
fn cut_in_memory<T: Real>(magnitudes: &[T::Magnitude], kept: u64, chunk_entries: usize) -> Cut<T> {
    if kept == 0 {
        return Cut::Nothing;
    }
    let mut order = magnitudes.to_vec();
    let rank = order.len() - kept as usize;
    let magnitude = *order.select_nth_unstable(rank).1;
    let above = magnitudes.iter().filter(|&&other| other > magnitude).count() as u64;
    let equal = magnitudes
        .chunks(chunk_entries)
        .map(|chunk| chunk.iter().filter(|&&other| other == magnitude).count() as u64);
    Cut::Exactly { magnitude, ties: ties_by_chunk(kept - above, equal) }
}

/// For every chunk the number of ties not yet kept at its start: `left` at the first, less the `equal`
/// entries of the chunks before.
fn ties_by_chunk(mut left: u64, equal: impl Iterator<Item = u64>) -> Vec<u64> {
    let of_chunk = |equal| {
        let ties = left;
        left = left.saturating_sub(equal);
        ties
    };
    equal.map(of_chunk).collect()
}

/// Counts and collected magnitudes for one target in one chunk.
struct Counted<M> {
    counts: Counts,
    /// Number of entries that are 0, where it is needed.
    zeros: u64,
    inside: Vec<M>,
}

/// Results by chunk and target.
type ByChunk<T> = Vec<Vec<Counted<<T as Real>::Magnitude>>>;

/// The reduction that counts and collects, for the brackets of every tensor's targets, chunk by chunk.
struct Counting<'c, T: Real> {
    subjects: &'c [Subject<'c>],
    targets: &'c [Vec<Target>],
    guesses: &'c [Vec<Guess<T>>],
}

impl<T: Real> Reduction<T> for Counting<'_, T> {
    type Partial = ByChunk<T>;

    fn wants(&self, tensor: usize, model: usize) -> bool {
        let mut targets = self.targets[tensor].iter().zip(&self.guesses[tensor]);
        self.subjects[tensor].elements() <= LARGE
            && targets
                .any(|(target, guess)| target.row == model && matches!(guess, Guess::Within(_)))
    }

    fn identity(&self, chunk: Option<&Chunk>) -> ByChunk<T> {
        let nothing = |_| Counted { counts: Counts::default(), zeros: 0, inside: Vec::new() };
        let of_chunk = |chunk: &Chunk| self.guesses[chunk.tensor].iter().map(nothing).collect();
        chunk.map(of_chunk).into_iter().collect()
    }

    fn block(&self, tensor: usize, block: &mut Block<T>, partial: &mut ByChunk<T>) {
        let [counted] = partial.as_mut_slice() else { return };
        let targets = self.targets[tensor].iter().zip(&self.guesses[tensor]);
        for ((target, guess), counted) in targets.zip(counted) {
            if let Guess::Within(bracket) = guess {
                let (delta, inside) = block.row_and_inside(target.row);
                if matches!(target.kept, Kept::OfNonzero(_)) {
                    counted.zeros += count_equal(delta, T::Magnitude::default());
                }
                let found = count_and_collect(delta, *bracket, &mut counted.counts, inside);
                counted.inside.extend_from_slice(&inside[..found]);
            }
        }
    }

    fn merge(&self, partial: &mut ByChunk<T>, next: ByChunk<T>) {
        partial.extend(next);
    }
}

/// The cut that follows from the counts of all chunks of a tensor; `None` if the bracket missed the
/// threshold or nothing was counted.
fn resolve<T: Real>(
    elements: u64,
    kept: Kept,
    place: usize,
    bracket: Bracket<T::Magnitude>,
    chunks: &ByChunk<T>,
) -> Option<Cut<T>> {
    if chunks.is_empty() {
        return None;
    }
    let counted = || chunks.iter().map(|targets| &targets[place]);
    let kept = kept.of(elements, counted().map(|chunk| chunk.zeros).sum());
    if kept == 0 {
        return Some(Cut::Nothing);
    }
    let total = |part: fn(&Counts) -> u64| counted().map(|chunk| part(&chunk.counts)).sum::<u64>();
    let inside: u64 = counted().map(|chunk| chunk.inside.len() as u64).sum();
    let counts = Counts {
        above: total(|counts| counts.above),
        high: total(|counts| counts.high),
        low: total(|counts| counts.low),
    };
    let left = |above: u64| kept - above;
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

/// The cuts of some targets in one tensor, each with its place and bracket, by sweeps over that tensor.
fn search<T: Real>(
    sweep: &dyn Sweep<T>,
    tensor: usize,
    targets: &[(usize, Target, Bracket<T::Magnitude>)],
) -> Result<Vec<Cut<T>>> {
    let elements = sweep.subjects()[tensor].elements() as u64;
    let equal = |model: usize, magnitude| {
        let equal = reduce_tensors(sweep, &Equal { tensor, model, magnitude })?;
        Ok(equal.into_iter().nth(tensor).unwrap_or_default())
    };
    let (mut searches, mut kept) = (Vec::new(), Vec::new());
    for &(_, target, bracket) in targets {
        let zeros = match target.kept {
            Kept::Count(_) | Kept::UpToRank(_) => 0,
            Kept::OfNonzero(_) => equal(target.row, T::Magnitude::default())?.into_iter().sum(),
        };
        kept.push(target.kept.of(elements, zeros));
        // Where nothing is kept, the search is for the largest magnitude, and in vain.
        let rank = elements - kept[kept.len() - 1].max(1);
        searches.push(Search::new(target.row, rank, bracket));
    }
    select(sweep, Some(tensor), elements, &mut searches)?;
    let cut = |((search, &kept), &(_, target, _)): ((Search<T>, &u64), &(usize, Target, _))| {
        let Some(Selected { magnitude, above }) = search.found else { return Ok(Cut::All) };
        match target.kept {
            _ if kept == 0 => Ok(Cut::Nothing),
            // The number is all that is asked for.
            Kept::UpToRank(_) => Ok(Cut::AtLeast(magnitude)),
            Kept::Count(_) | Kept::OfNonzero(_) => {
                let ties = ties_by_chunk(kept - above, equal(target.row, magnitude)?.into_iter());
                Ok(Cut::Exactly { magnitude, ties })
            }
        }
    };
    searches.into_iter().zip(&kept).zip(targets).map(cut).collect()
}

/// The reduction that counts the entries of a given magnitude in each chunk of one tensor.
struct Equal<M> {
    tensor: usize,
    model: usize,
    magnitude: M,
}

impl<T: Real> Reduction<T> for Equal<T::Magnitude> {
    type Partial = Vec<u64>;

    fn wants(&self, tensor: usize, model: usize) -> bool {
        (tensor, model) == (self.tensor, self.model)
    }

    fn identity(&self, chunk: Option<&Chunk>) -> Vec<u64> {
        chunk.map(|_| 0).into_iter().collect()
    }

    fn block(&self, _: usize, block: &mut Block<T>, partial: &mut Vec<u64>) {
        if let [equal] = partial.as_mut_slice() {
            *equal += count_equal(block.row(self.model), self.magnitude);
        }
    }

    fn merge(&self, partial: &mut Vec<u64>, next: Vec<u64>) {
        partial.extend(next);
    }
}
