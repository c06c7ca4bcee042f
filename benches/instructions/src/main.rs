//! Runs every kernel on the same made-up entries, so that `scripts/instructions.py` can count its
//! instructions. Prints the instruction set in use, then the name of every kernel before it runs.
//!
//! A new kernel needs one line in [`KERNELS`].

use std::hint::black_box;

use sensmerge_core::dtype::{Code, Float, Real};
use sensmerge_core::kernel::balance::{Bounds, parts_of_mean, positive_scores};
use sensmerge_core::kernel::bins::{Bins, collect_between, keep_below};
use sensmerge_core::kernel::bracket::{Bracket, Counts, count_and_collect};
use sensmerge_core::kernel::changed::{count_changed, mean_of_changed};
use sensmerge_core::kernel::claims::{claimed_sum, keep_claimed};
use sensmerge_core::kernel::columns::add_products;
use sensmerge_core::kernel::derivative::{disjoint_derivative, dot};
use sensmerge_core::kernel::disjoint::{Agreement, Divisor, disjoint};
use sensmerge_core::kernel::distance::{squared_distance, squared_distance_stored};
use sensmerge_core::kernel::divergence::{importance, keep_important, softmax_divergence};
use sensmerge_core::kernel::elect::{elect_sign, sum_of_signs};
use sensmerge_core::kernel::finite::{all_finite, has_infinite, has_nan};
use sensmerge_core::kernel::importance::{importance_mean, importance_slope};
use sensmerge_core::kernel::largest::{largest, largest_agreeing, largest_derivative};
use sensmerge_core::kernel::low_rank::{add_dots, add_rows, add_squares, multiply_each};
use sensmerge_core::kernel::near::near;
use sensmerge_core::kernel::one_pass::{Combination, Merge, Sparsity, merge};
use sensmerge_core::kernel::random_drop::{add_bits, drop_and_rescale, keep_nonzero};
use sensmerge_core::kernel::rank::{keep_ranks, sort_by_magnitude};
use sensmerge_core::kernel::scale::{divide_and_encode, multiply_runs, raise_to_largest};
use sensmerge_core::kernel::sensitivity::{
    sum_abs_product, sum_abs_product_stored, sum_squares, sum_squares_stored,
};
use sensmerge_core::kernel::softmax::calibrated_softmax;
use sensmerge_core::kernel::sum::{l1, l1_of_finite, l1_of_kept};
use sensmerge_core::kernel::task_vector::{subtract, subtract_stored};
use sensmerge_core::kernel::trim::{count_equal, drop_exact, trim, trim_exact};
use sensmerge_core::kernel::variance::{keep_scored, variance};
use sensmerge_core::kernel::weighted_sum::{
    add_product, divide, multiply, scale_and_add, scale_damp_and_add, weighted_sum,
};
use sensmerge_core::processor::level;
use sensmerge_core::random::{Stream, chance, spread};

/// Entries that every kernel processes: four blocks of a merge.
const ENTRIES: usize = 4096;

/// Experts, where a kernel combines several.
const EXPERTS: usize = 3;

/// What is known of an expert whose entries compete.
const COMPETING: Bounds = Bounds { low: 0.0, high: 0.02, threshold: 1e-6, top: 1e-4 };

type Kernel = fn(&mut Block);

/// The kernels' names, as in the record, and calls. Arguments that select a loop come from the block or
/// through `black_box`, so that no call is specialised for one choice.
const KERNELS: &[(&str, Kernel)] = &[
    ("widen float16", |b| f32::widen(Float::F16, &b.float16, &mut b.out)),
    ("widen bfloat16", |b| f32::widen(Float::Bf16, &b.bfloat16, &mut b.out)),
    ("widen float32", |b| f32::widen(Float::F32, &b.float32, &mut b.out)),
    ("narrow float16", |b| f32::narrow(&b.delta, Float::F16, &mut b.float16)),
    ("narrow bfloat16", |b| f32::narrow(&b.delta, Float::Bf16, &mut b.bfloat16)),
    ("narrow float32", |b| f32::narrow(&b.delta, Float::F32, &mut b.float32)),
    ("multiply_runs", |b| multiply_runs(&mut b.delta, black_box(64), 128, &b.base)),
    ("raise_to_largest", |b| raise_to_largest(&b.delta, black_box(128), &mut b.out)),
    ("divide_and_encode, float8", |b| {
        divide_and_encode(
            &b.delta,
            128,
            &b.signs[..ENTRIES / 128],
            Code::E4m3,
            &mut b.out,
            &mut b.keep,
        );
    }),
    ("subtract", |b| subtract(&mut b.delta, &b.base)),
    ("subtract_stored, bfloat16", |b| {
        subtract_stored(Float::Bf16, &b.bfloat16, &b.base, &mut b.out);
    }),
    ("merge in one pass, sum", |b| one_pass(b, Sparsity::Dense, false)),
    ("merge in one pass, masked and summed", |b| {
        one_pass(b, Sparsity::Masked { scales: &[2.0; EXPERTS] }, false);
    }),
    ("merge in one pass, trimmed and elected", |b| {
        let least = [b.threshold; EXPERTS];
        one_pass(b, Sparsity::Trimmed { least: &least, scales: &[1.0; EXPERTS] }, true);
    }),
    ("has_nan", |b| keep_result(has_nan(&b.delta))),
    ("all_finite", |b| keep_result(all_finite(&b.delta))),
    ("has_infinite", |b| keep_result(has_infinite(&b.delta))),
    ("keep, density 0.5", |b| Stream::new(1, 2, "w").keep(0, black_box(0.5), &mut b.keep)),
    ("keep, density 0.9", |b| Stream::new(1, 2, "w").keep(0, black_box(0.9), &mut b.keep)),
    ("keep_each", |b| Stream::new(1, 2, "w").keep_each(0, &b.chances, &mut b.keep)),
    ("drop_and_rescale", |b| drop_and_rescale(&mut b.delta, &b.keep, b.factor)),
    ("count_and_collect", |b| {
        keep_result(count_and_collect(&b.delta, b.bracket, &mut Counts::default(), &mut b.inside));
    }),
    ("count_equal", |b| keep_result(count_equal(&b.delta, b.threshold))),
    ("trim", |b| trim(&mut b.delta, b.threshold)),
    ("trim_exact", |b| trim_exact(&mut b.delta, b.threshold, &mut b.ties)),
    ("trim_exact, all ties stay", |b| {
        trim_exact(&mut b.delta, b.threshold, &mut black_box(ENTRIES as u64));
    }),
    ("trim_exact, no tie stays", |b| trim_exact(&mut b.delta, b.threshold, &mut black_box(0))),
    ("drop_exact", |b| drop_exact(&mut b.delta, b.threshold, &mut b.ties)),
    ("bytes", |b| Stream::new(1, 2, "w").bytes(0, &mut b.keep)),
    ("keep_nonzero", |b| keep_nonzero(&b.delta, &mut b.keep)),
    ("add_bits", |b| {
        b.bits.clear();
        add_bits(&b.keep, &mut b.bits);
    }),
    ("spread", |b| spread(&b.bits, black_box(0), &mut b.keep)),
    ("Bins::count", |b| b.bins.count(&b.delta)),
    ("Bins::count and a hundred ranks", |b| {
        b.bins.count(&b.delta);
        for entry in (0..ENTRIES).step_by(ENTRIES / 100) {
            keep_result(b.bins.rank(&b.delta, entry));
        }
    }),
    ("keep_below", |b| keep_below(&b.bytes, black_box(90), &mut b.keep)),
    ("collect_between", |b| {
        keep_result(collect_between(
            &b.bytes,
            black_box(90),
            black_box(166),
            &mut b.keep,
            &mut b.indices,
        ));
    }),
    ("sort_by_magnitude", |b| sort_by_magnitude(&b.delta, &mut b.order, &mut b.spare)),
    ("keep_ranks", |b| keep_ranks(&mut b.delta, &b.order, black_box(1000)..black_box(4000))),
    ("variance", |b| variance(&b.rows, &mut b.out)),
    ("keep_scored", |b| keep_scored(&mut b.delta, &b.signs)),
    ("softmax_divergence", |b| keep_result(softmax_divergence(&b.base, &b.delta))),
    ("importance", |b| importance(&mut b.delta, b.factor)),
    ("importance_mean", |b| {
        importance_mean(&b.rows, &b.rows, &b.weights, b.factor, &mut b.signs, &mut b.out);
    }),
    ("importance_slope", |b| {
        importance_slope(&mut b.delta, &b.base, b.factor, &b.signs, &b.out);
    }),
    ("keep_important", |b| keep_important(&mut b.delta, b.factor, black_box(0.01))),
    ("near", |b| near(&b.delta, black_box(0.01), &mut b.out)),
    ("mean_of_changed", |b| mean_of_changed(&b.rows, &b.least, &b.weights, &mut b.out)),
    ("count_changed", |b| {
        let (mut alone, mut shared) = ([0; EXPERTS], [0; EXPERTS]);
        count_changed(&b.rows, &b.least, ENTRIES, &mut alone, &mut shared);
        keep_result((alone, shared));
    }),
    ("claimed_sum", |b| {
        claimed_sum(&b.rows, &b.weights, &b.least, black_box(2.0), &mut b.out);
    }),
    ("keep_claimed", |b| keep_claimed(&mut b.rows, &b.weights, &b.least, black_box(2.0))),
    ("largest", |b| largest(&b.rows, &b.weights, &mut b.out)),
    ("largest_agreeing", |b| largest_agreeing(&b.rows, &b.weights, &b.signs, &mut b.out)),
    ("largest_derivative", |b| largest_derivative(&mut b.rows, &b.weights, Some(&b.signs))),
    ("positive_scores", |b| positive_scores(&mut b.rows, &[black_box(COMPETING); EXPERTS])),
    ("parts_of_mean", |b| parts_of_mean(&mut b.rows, &[black_box(COMPETING); EXPERTS])),
    ("calibrated_softmax", |b| {
        let (rows, mut scores) = (b.rows.len() / EXPERTS, b.rows.clone());
        calibrated_softmax(&b.rows, &b.least, black_box(1.0), rows, &mut scores);
        keep_result(scores);
    }),
    ("add_products", |b| add_products(&b.base, &b.delta, &mut b.squares)),
    ("l1", |b| keep_result(l1(&b.delta))),
    ("l1_of_finite", |b| keep_result(l1_of_finite(&b.delta, &b.keep))),
    ("l1_of_kept", |b| keep_result(l1_of_kept(&b.delta, &b.keep))),
    ("multiply", |b| multiply(&mut b.delta, b.factor)),
    ("add_product", |b| add_product(&b.base, &b.delta, &mut b.out)),
    ("divide", |b| divide(&mut b.delta, b.factor)),
    ("elect_sign", |b| elect_sign(&b.rows, &b.weights, b.zero_sign, &mut b.signs)),
    ("sum_of_signs", |b| keep_result(sum_of_signs(&b.rows, &b.weights, b.out.len()))),
    ("disjoint, weighted by weights", |b| {
        let (agreement, divisor) = black_box((Agreement::Weighted, Divisor::Weights));
        disjoint(&b.rows, &b.weights, &b.signs, agreement, divisor, &mut b.out);
    }),
    ("disjoint, unweighted by positive weights", |b| {
        let (agreement, divisor) = black_box((Agreement::Unweighted, Divisor::AtLeastSmallest));
        disjoint(&b.rows, &b.weights, &b.signs, agreement, divisor, &mut b.out);
    }),
    ("disjoint, unweighted by count", |b| {
        let (agreement, divisor) = black_box((Agreement::Unweighted, Divisor::Count));
        disjoint(&b.rows, &b.weights, &b.signs, agreement, divisor, &mut b.out);
    }),
    ("disjoint_derivative, weighted by weights", |b| {
        let (agreement, divisor) = black_box((Agreement::Weighted, Divisor::Weights));
        disjoint_derivative(&mut b.rows, &b.weights, &b.signs, agreement, divisor, &b.out);
    }),
    ("weighted_sum", |b| weighted_sum(&b.rows, &b.weights, &mut b.out)),
    ("scale_and_add", |b| scale_and_add(&b.base, b.factor, &mut b.delta)),
    ("scale_damp_and_add", |b| {
        scale_damp_and_add(&b.base, b.factor, &b.signs, &mut b.delta);
    }),
    ("sum_abs_product", |b| keep_result(sum_abs_product(&b.base, &b.delta))),
    ("sum_abs_product, bfloat16", |b| {
        keep_result(sum_abs_product_stored::<f32>(Float::Bf16, &b.bfloat16, &b.bfloat16));
    }),
    ("sum_abs_product, float16", |b| {
        keep_result(sum_abs_product_stored::<f32>(Float::F16, &b.float16, &b.float16));
    }),
    ("sum_squares", |b| keep_result(sum_squares(&b.delta))),
    ("sum_squares, bfloat16", |b| {
        keep_result(sum_squares_stored::<f32>(Float::Bf16, &b.bfloat16));
    }),
    // Matrices of 4,096 entries: four rows of 1,024, or 256 rows of 16.
    ("add_rows, float32", |b| {
        add_rows(Float::F32, &b.float32, 1024, 0, &b.delta[..4], &mut b.out[..1024]);
    }),
    ("add_rows, bfloat16", |b| {
        add_rows(Float::Bf16, &b.bfloat16, 1024, 0, &b.delta[..4], &mut b.out[..1024]);
    }),
    ("add_rows, float16", |b| {
        add_rows(Float::F16, &b.float16, 1024, 0, &b.delta[..4], &mut b.out[..1024]);
    }),
    ("add_dots, float32", |b| {
        add_dots(Float::F32, &b.float32, 16, 0, &b.delta[..16], &mut b.out[..256]);
    }),
    ("multiply_each", |b| multiply_each(&mut b.delta, &b.base)),
    ("add_squares", |b| add_squares(&b.delta, &mut b.squares)),
    ("dot", |b| keep_result(dot(&b.base, &b.delta))),
    ("squared_distance", |b| keep_result(squared_distance(&b.base, &b.delta))),
    ("squared_distance, bfloat16", |b| {
        keep_result(squared_distance_stored::<f32>(Float::Bf16, &b.bfloat16, &b.bfloat16));
    }),
];

/// The slices and parameters of the kernels.
#[derive(Clone)]
struct Block {
    base: Vec<f32>,
    delta: Vec<f32>,
    /// Task vectors of all experts.
    rows: Vec<f32>,
    weights: Vec<f32>,
    signs: Vec<f32>,
    out: Vec<f32>,
    /// The magnitude up to which an entry of an expert counts as unchanged.
    least: Vec<f32>,
    keep: Vec<u8>,
    /// The same for all experts.
    masks: Vec<u8>,
    chances: Vec<u64>,
    order: Vec<(i32, u32)>,
    spare: Vec<(i32, u32)>,
    bins: Bins,
    bytes: Vec<u8>,
    bits: Vec<u32>,
    indices: Vec<u32>,
    inside: Vec<i32>,
    float16: Vec<u8>,
    bfloat16: Vec<u8>,
    float32: Vec<u8>,
    squares: Vec<f64>,
    factor: f32,
    zero_sign: f32,
    /// The bits of a magnitude: about two entries in three are below it, and some equal it.
    threshold: i32,
    /// A bracket around the threshold, with one entry in a hundred inside.
    bracket: Bracket<i32>,
    ties: u64,
}

impl Block {
    /// Draw the entries with a generator of its own, so that counts do not change with a library's.
    fn new() -> Self {
        let mut state = 1_u64;
        let mut draw = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            // Of 100 magnitudes and both signs, so that some are equal.
            f32::from((state >> 48) as i16 / 328) / 4096.0
        };
        let mut entries = |count: usize| -> Vec<f32> { (0..count).map(|_| draw()).collect() };
        let (base, rows, signs) = (entries(ENTRIES), entries(EXPERTS * ENTRIES), entries(ENTRIES));
        let delta = rows[..ENTRIES].to_vec();
        let stored = |to: Float| {
            let mut bytes = vec![0; ENTRIES * to.size()];
            f32::narrow(&base, to, &mut bytes);
            bytes
        };
        let magnitude = |number: f32| (number / 4096.0).magnitude();
        Self {
            float16: stored(Float::F16),
            bfloat16: stored(Float::Bf16),
            float32: stored(Float::F32),
            squares: vec![0.0; ENTRIES],
            keep: delta.iter().map(|&delta| u8::from(delta > 0.0)).collect(),
            masks: rows.iter().map(|&delta| u8::from(delta > 0.0)).collect(),
            signs: signs.into_iter().map(f32::signum).collect(),
            base,
            delta,
            rows,
            weights: vec![1.0, 0.75, 0.5],
            least: vec![0.01; EXPERTS],
            chances: (0..ENTRIES).map(|place| chance(place as f64 / ENTRIES as f64)).collect(),
            spare: vec![(0, 0); ENTRIES],
            bins: Bins::default(),
            bytes: (0..ENTRIES).map(|entry| (entry * 167 % 256) as u8).collect(),
            bits: vec![0x5a5a_5a5a; ENTRIES / 32],
            indices: vec![0; ENTRIES],
            order: (0..ENTRIES as u32).map(|place| (0, place)).collect(),
            out: vec![0.0; ENTRIES],
            inside: vec![0; ENTRIES],
            factor: 1.25,
            zero_sign: 1.0,
            threshold: magnitude(66.0),
            bracket: Bracket { low: magnitude(65.0), high: magnitude(67.0) },
            ties: 20,
        }
    }
}

/// Merge three experts of bfloat16: summed, or with an election.
fn one_pass(b: &mut Block, sparsity: Sparsity, elects: bool) {
    let models = [b.bfloat16.as_slice(); EXPERTS];
    let weights = b.weights.as_slice();
    let elected = Combination::Elected { votes: weights, shares: weights, draw: b.zero_sign };
    let what = Merge {
        dtype: black_box(Float::Bf16),
        models: black_box(&models),
        base: Some(&b.bfloat16),
        sparsity: black_box(sparsity),
        weights,
        combination: if black_box(elects) { elected } else { Combination::Sum { divisor: None } },
        lambda: b.factor,
    };
    keep_result(merge(&what, &b.masks, 0, &mut b.float16));
}

fn main() {
    println!("{:?}", level());
    let block = Block::new();
    for (name, kernel) in KERNELS {
        println!("{name}");
        // A first call, uncounted: some work (detecting the level) is done only once.
        kernel(&mut block.clone());
        let mut fresh = block.clone();
        counted(*kernel, &mut fresh);
        black_box(&fresh);
    }
}

/// Callgrind counts only within this function, which it finds by its name.
#[inline(never)]
fn counted(kernel: Kernel, block: &mut Block) {
    kernel(block);
}

/// Keep the compiler from removing the computation of an unused result.
fn keep_result<T>(result: T) {
    black_box(result);
}
