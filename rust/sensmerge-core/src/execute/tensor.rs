//! A tensor being merged: its inputs as bytes, read block by block as task vectors.

use std::ops::Range;

use crate::dtype::{Float, Real};
use crate::kernel::random_drop::drop_and_rescale;
use crate::kernel::task_vector::subtract;
use crate::kernel::trim::{trim, trim_exact};
use crate::kernel::weighted_sum::multiply;
use crate::plan::{Content, Merge, Plan, Source, Step};
use crate::processor::prefetch;
use crate::random::Stream;

/// Entries computed at a time. The buffers of a block (one a model, and three) stay in the
/// first-level cache of one core.
pub(super) const BLOCK: usize = 1024;

/// One input's entries.
struct Input<'a> {
    bytes: &'a [u8],
    dtype: Float,
}

impl<'a> Input<'a> {
    fn new(source: &'a Source) -> Self {
        Self { bytes: source.at.bytes(), dtype: source.dtype }
    }

    fn read<T: Real>(&self, entries: Range<usize>, out: &mut [T]) {
        let size = self.dtype.size();
        T::widen(self.dtype, &self.bytes[entries.start * size..entries.end * size], out);
    }
}

/// A tensor being merged.
pub(super) struct Tensor<'p> {
    /// The step's place in the plan.
    pub(super) place: usize,
    pub(super) step: &'p Step,
    pub(super) merge: &'p Merge,
    base: Option<Input<'p>>,
    experts: Vec<Input<'p>>,
    streams: Vec<Stream>,
    /// Bytes of all inputs for one entry: the unit of progress.
    pub(super) entry_bytes: u64,
}

impl<'p> Tensor<'p> {
    /// Every tensor of a plan that is computed.
    pub(super) fn all(plan: &'p Plan) -> Vec<Self> {
        (0..plan.steps.len()).filter_map(|place| Self::at(plan, place)).collect()
    }

    /// The tensor of the step at `place`; `None` where it is copied.
    pub(super) fn at(plan: &'p Plan, place: usize) -> Option<Self> {
        let step = &plan.steps[place];
        match &step.content {
            Content::Merge(merge) => Some(Self::new(place, step, merge, plan.seed)),
            Content::Copy(_) => None,
        }
    }

    fn new(place: usize, step: &'p Step, merge: &'p Merge, seed: u64) -> Self {
        let base = merge.base.as_ref().map(Input::new);
        let experts: Vec<Input> = merge.terms.iter().map(|term| Input::new(&term.source)).collect();
        let models = 0..merge.terms.len() as u64;
        let streams = models.map(|model| Stream::new(seed, model, &step.name)).collect();
        let sizes = base.iter().chain(&experts).map(|input| input.dtype.size() as u64);
        let entry_bytes = sizes.sum();
        Self { place, step, merge, base, experts, streams, entry_bytes }
    }

    /// Number of experts.
    pub(super) fn experts(&self) -> usize {
        self.experts.len()
    }

    /// The base's entries; nothing where parameters themselves are combined.
    pub(super) fn read_base<T: Real>(&self, entries: Range<usize>, out: &mut [T]) {
        if let Some(base) = &self.base {
            base.read(entries, out);
        }
    }

    /// Bring the block after this one near, of every input: memory then works while the processor
    /// does, which is worth a quarter of a merge's time.
    pub(super) fn prefetch_after(&self, entries: &Range<usize>) {
        let next = entries.end..self.step.elements.min(entries.end + BLOCK);
        for input in self.base.iter().chain(&self.experts) {
            let size = input.dtype.size();
            prefetch(&input.bytes[next.start * size..next.end * size]);
        }
    }

    /// An expert's entries as they are stored.
    pub(super) fn read_expert<T: Real>(&self, expert: usize, entries: Range<usize>, out: &mut [T]) {
        self.experts[expert].read(entries, out);
    }

    /// Turn an expert's entries into its task vector's.
    pub(super) fn subtract_base<T: Real>(&self, base: &[T], expert: &mut [T]) {
        if self.base.is_some() {
            subtract(expert, base);
        }
    }

    /// An expert's task vector.
    pub(super) fn read_delta<T: Real>(
        &self,
        expert: usize,
        entries: Range<usize>,
        base: &[T],
        delta: &mut [T],
    ) {
        self.read_expert(expert, entries, delta);
        self.subtract_base(base, delta);
    }

    /// Whether some of an expert's entries are dropped at random.
    pub(super) fn drops(&self, expert: usize) -> bool {
        self.merge.terms[expert].drop_density < 1.0
    }

    /// Drop entries at random, where the method does and the density asks for it, and multiply
    /// the others by `scale`.
    pub(super) fn drop<T: Real>(
        &self,
        expert: usize,
        first: usize,
        scale: T,
        keep: &mut [u8],
        delta: &mut [T],
    ) {
        if self.drops(expert) {
            let keep = &mut keep[..delta.len()];
            let density = self.merge.terms[expert].drop_density;
            self.streams[expert].keep(first as u64, density, keep);
            drop_and_rescale(delta, keep, scale);
        }
    }

    /// Sparsify one block of a task vector: drop, trim, rescale. `ties` is carried from block to
    /// block of a chunk.
    pub(super) fn sparsify<T: Real>(
        &self,
        expert: usize,
        first: usize,
        sparsity: &Sparsity<T>,
        ties: &mut u64,
        keep: &mut [u8],
        delta: &mut [T],
    ) {
        let Sparsity { cut, scale } = sparsity;
        if matches!(cut, Cut::None) {
            self.drop(expert, first, *scale, keep, delta);
            return;
        }
        self.drop(expert, first, T::ONE, keep, delta);
        cut.apply(delta, ties);
        if *scale != T::ONE {
            multiply(delta, *scale);
        }
    }

    /// Call `look` with the task vector of every expert in `experts` after the random drop,
    /// unscaled: what trimming looks at.
    pub(super) fn each_dropped<T: Real>(
        &self,
        experts: impl Iterator<Item = usize>,
        entries: &Range<usize>,
        block: &mut Block<T>,
        mut look: impl FnMut(usize, &[T]),
    ) {
        let Block { base, rows, keep, .. } = block;
        let (base, delta) = (&mut base[..entries.len()], &mut rows[..entries.len()]);
        self.read_base(entries.clone(), base);
        for expert in experts {
            self.read_delta(expert, entries.clone(), base, delta);
            self.drop(expert, entries.start, T::ONE, keep, delta);
            look(expert, delta);
        }
    }
}

/// Buffers for one block of one tensor, owned by one thread at a time.
pub(super) struct Block<T: Real> {
    /// The base's entries.
    pub(super) base: Vec<T>,
    /// The experts' entries, a row each.
    pub(super) rows: Vec<T>,
    /// Elected signs.
    pub(super) signs: Vec<T>,
    /// What is written.
    pub(super) out: Vec<T>,
    /// Which entries the random drop keeps.
    pub(super) keep: Vec<u8>,
    /// A chunk's output.
    pub(super) bytes: Vec<u8>,
    /// Magnitudes inside a bracket.
    pub(super) inside: Vec<T::Magnitude>,
}

impl<T: Real> Block<T> {
    pub(super) fn new(experts: usize) -> Self {
        Self {
            base: vec![T::ZERO; BLOCK],
            rows: vec![T::ZERO; BLOCK * experts],
            signs: vec![T::ZERO; BLOCK],
            out: vec![T::ZERO; BLOCK],
            keep: vec![0; BLOCK],
            bytes: Vec::new(),
            inside: vec![T::Magnitude::default(); BLOCK],
        }
    }
}

/// Which entries of a task vector a trim keeps.
#[derive(Clone, Debug)]
pub(super) enum Cut<T: Real> {
    /// All of them.
    None,
    /// Those of at least this magnitude.
    AtLeast(T::Magnitude),
    /// Those above this magnitude, and of those equal to it the first few in index order.
    Exactly {
        /// The threshold.
        magnitude: T::Magnitude,
        /// For every chunk of the tensor, how many equal entries it may still keep.
        ties: Vec<u64>,
    },
}

impl<T: Real> Cut<T> {
    /// What the cut leaves to keep at the start of `chunk`.
    pub(super) fn ties_at(&self, chunk: usize) -> u64 {
        match self {
            Self::Exactly { ties, .. } => ties[chunk],
            Self::None | Self::AtLeast(_) => 0,
        }
    }

    /// Trim one block; `ties` is carried from block to block of a chunk.
    pub(super) fn apply(&self, delta: &mut [T], ties: &mut u64) {
        match self {
            Self::None => {}
            Self::AtLeast(magnitude) => trim(delta, *magnitude),
            Self::Exactly { magnitude, .. } => trim_exact(delta, *magnitude, ties),
        }
    }
}

/// What sparsification does to one expert's part of one tensor, once it is known.
#[derive(Clone, Debug)]
pub(super) struct Sparsity<T: Real> {
    pub(super) cut: Cut<T>,
    pub(super) scale: T,
}
