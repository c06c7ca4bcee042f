//! Random masks whose numbers are addressed by entry rather than drawn in turn: they are the same for
//! any number of threads, any chunk size, any order of shards and any machine.
//!
//! The generator is Philox4x32-7 (Salmon et al. 2011, table 2: no test of BigCrush fails). **The format
//! below never changes**, since a merge must be reproducible from its seed:
//!
//! - The key is the seed: low word, high word.
//! - A stream is a 64-bit FNV-1a hash over the UTF-8 bytes of the tensor's name, then over the
//!   eight little-endian bytes of the model's index among the merged models (from 0).
//! - Block `b` of stream `s` is the four words of `philox([b_lo, b_hi, s_lo, s_hi])`. Word `i` of the
//!   stream is word `i % 4` of block `i / 4`.
//! - Every entry has a *byte*. Where all entries of a tensor have the same density, bit `7 - p` of the byte
//!   of entry `j` is bit `j % 32` of word `j / 32 % 4` of block `8 (j / 128) + p`. Where each has a
//!   density of its own, it is byte `j % 16` of block `j / 16` (four little-endian words).
//! - Entry `j` is kept with density `d` as follows. Let `D = round(d · 2⁴⁰)`, `h = D >> 32` and
//!   `l = D mod 2³²`. The byte of `j` is compared with `h`. If it is less, the entry is kept; if it is
//!   more, the entry is dropped; if it is equal, the entry is kept if word `j` of the *fine* stream
//!   `s XOR 0x9E3779B97F4A7C15` is less than `l`.
//!
//! A decision thus needs one random byte, and in one case of 256 a word more; its probability is
//! `D / 2⁴⁰` exactly. Where `l` and the last bits of `h` are 0, as for density 0.5, the last bits of bytes
//! decide nothing and are not drawn.

use std::cmp::Ordering;

use crate::processor::widest;

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const FINE: u64 = 0x9E37_79B9_7F4A_7C15;

/// Rounds of the generator.
const ROUNDS: usize = 7;

/// Entries that one block decides where each has a density of its own.
const PER_BLOCK: usize = 16;

/// Blocks computed side by side, for the compiler to vectorise.
const LANES: usize = 32;

/// Entries decided by that many blocks.
const GROUP: usize = PER_BLOCK * LANES;

/// Words of a mask, of 32 entries each, that are drawn at a time, and the runs of 128 entries in them.
const WORDS: usize = 32;
const RUNS: usize = WORDS / 4;

/// The Philox4x32 generator with 7 rounds.
#[must_use]
pub fn philox4x32(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let lanes = philox_lanes(counter.map(|word| [word]), key);
    lanes.map(|[word]| word)
}

/// The same for `N` counters at once. The layout is word by word, the `N` lanes of a word side by
/// side, so that the compiler can vectorise the loops over lanes.
#[inline(always)]
fn philox_lanes<const N: usize>(counter: [[u32; N]; 4], mut key: [u32; 2]) -> [[u32; N]; 4] {
    let [mut a, mut b, mut c, mut d] = counter;
    for _ in 0..ROUNDS {
        let (mut left, mut right) = ([0_u64; N], [0_u64; N]);
        for lane in 0..N {
            left[lane] = u64::from(a[lane]) * u64::from(MULTIPLIERS[0]);
            right[lane] = u64::from(c[lane]) * u64::from(MULTIPLIERS[1]);
        }
        for lane in 0..N {
            a[lane] = (right[lane] >> 32) as u32 ^ b[lane] ^ key[0];
            c[lane] = (left[lane] >> 32) as u32 ^ d[lane] ^ key[1];
            b[lane] = right[lane] as u32;
            d[lane] = left[lane] as u32;
        }
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    [a, b, c, d]
}

/// The random numbers for one tensor of one model.
#[derive(Clone, Copy, Debug)]
pub struct Stream {
    key: [u32; 2],
    stream: u64,
}

impl Stream {
    /// The stream for a tensor of the model at index `place` among the merged models.
    #[must_use]
    pub fn new(seed: u64, place: u64, tensor: &str) -> Self {
        let fnv = |hash: u64, &byte: &u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3);
        let named = tensor.as_bytes().iter().fold(0xCBF2_9CE4_8422_2325, fnv);
        let stream = place.to_le_bytes().iter().fold(named, fnv);
        Self { key: [seed as u32, (seed >> 32) as u32], stream }
    }

    /// Word `index` of the stream.
    #[must_use]
    pub fn word(&self, index: u64) -> u32 {
        let block = index / 4;
        let counter =
            [block as u32, (block >> 32) as u32, self.stream as u32, (self.stream >> 32) as u32];
        philox4x32(counter, self.key)[(index % 4) as usize]
    }

    /// Set `keep` to 1 for every entry of `first..first + keep.len()` that is kept, and to 0 for the
    /// others. Each is kept with probability `density`.
    pub fn keep(&self, first: u64, density: f64, keep: &mut [u8]) {
        let threshold = chance(density);
        if threshold >= 1 << 40 {
            return keep.fill(1);
        }
        let (coarse, fine) = ((threshold >> 32) as u8, threshold as u32);
        // Ties with what is drawn are dropped where all other bits of the threshold are 0.
        let planes = if fine == 0 { 8 - coarse.trailing_zeros().min(8) } else { 8 };
        let (mut kept, mut tied) = ([0; WORDS], [0; WORDS]);
        let mut entry = first;
        let mut rest = keep;
        while !rest.is_empty() {
            let skipped = (entry % 128) as usize;
            let start = entry - skipped as u64;
            compare_planes(*self, start / 128, (coarse, planes), &mut kept, &mut tied);
            if fine != 0 {
                self.draw_ties(start, fine, &mut kept, &tied);
            }
            let (now, later) = rest.split_at_mut(rest.len().min(32 * WORDS - skipped));
            spread(&kept, skipped, now);
            entry += now.len() as u64;
            rest = later;
        }
    }

    /// The same where every entry has a [`chance`] of its own.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn keep_each(&self, first: u64, chances: &[u64], keep: &mut [u8]) {
        assert_eq!(chances.len(), keep.len());
        self.bytes(first, keep);
        for (place, (keep, &chance)) in keep.iter_mut().zip(chances).enumerate() {
            *keep = u8::from(self.is_kept(first + place as u64, *keep, chance));
        }
    }

    /// The bytes of the entries from `first` on, where each has a density of its own.
    pub fn bytes(&self, first: u64, out: &mut [u8]) {
        let mut bytes = [0; GROUP];
        let mut entry = first;
        let mut rest = out;
        while !rest.is_empty() {
            let skipped = (entry % PER_BLOCK as u64) as usize;
            coarse_bytes(*self, entry / PER_BLOCK as u64, &mut bytes);
            let (now, later) = rest.split_at_mut(rest.len().min(GROUP - skipped));
            now.copy_from_slice(&bytes[skipped..skipped + now.len()]);
            entry += now.len() as u64;
            rest = later;
        }
    }

    /// Whether an entry is kept that has this byte and a [`chance`] of its own.
    #[must_use]
    pub fn is_kept(&self, entry: u64, byte: u8, chance: u64) -> bool {
        match u64::from(byte).cmp(&(chance >> 32)) {
            Ordering::Less => true,
            Ordering::Greater => false,
            Ordering::Equal => {
                let fine = Self { stream: self.stream ^ FINE, ..*self };
                fine.word(entry) < chance as u32
            }
        }
    }

    /// Decide by the fine stream the entries whose byte ties with the threshold.
    fn draw_ties(&self, first: u64, fine: u32, kept: &mut [u32], tied: &[u32]) {
        let stream = Self { stream: self.stream ^ FINE, ..*self };
        for (start, (kept, &tied)) in (first..).step_by(32).zip(kept.iter_mut().zip(tied)) {
            let mut left = tied;
            while left != 0 {
                let bit = left.trailing_zeros();
                *kept |= u32::from(stream.word(start + u64::from(bit)) < fine) << bit;
                left &= left - 1;
            }
        }
    }
}

widest! {
    /// Of the entries of `WORDS` words from run `first` on, those whose bytes are less than `coarse` as far as
    /// the first `planes` bits tell, and those whose bits there are equal to its.
    fn compare_planes(
        stream: Stream,
        first: u64,
        threshold: (u8, u32),
        kept: &mut [u32; WORDS],
        tied: &mut [u32; WORDS],
    ) {
        let (coarse, planes) = threshold;
        let mut found = Compared { less: [[0; RUNS]; 4], equal: [[!0; RUNS]; 4] };
        for plane in (1..planes).step_by(2) {
            found.compare::<{ 2 * RUNS }>(stream, first, coarse, plane - 1);
        }
        if planes % 2 == 1 {
            found.compare::<RUNS>(stream, first, coarse, planes - 1);
        }
        for word in 0..4 {
            for run in 0..RUNS {
                kept[4 * run + word] = found.less[word][run];
                tied[4 * run + word] = found.equal[word][run];
            }
        }
    }
}

/// What the first bits of bytes tell, by word of a block and by run.
struct Compared {
    less: [[u32; RUNS]; 4],
    equal: [[u32; RUNS]; 4],
}

impl Compared {
    /// Compare the next bits, from `plane` on: one, or two together, for as many `BLOCKS`.
    #[inline(always)]
    fn compare<const BLOCKS: usize>(&mut self, stream: Stream, first: u64, coarse: u8, plane: u32) {
        let mut blocks = [0_u64; BLOCKS];
        for (lane, block) in blocks.iter_mut().enumerate() {
            let run = first.wrapping_add((lane % RUNS) as u64);
            *block = run.wrapping_mul(8).wrapping_add(u64::from(plane) + (lane / RUNS) as u64);
        }
        let words = philox_lanes(
            [
                blocks.map(|block| block as u32),
                blocks.map(|block| (block >> 32) as u32),
                [stream.stream as u32; BLOCKS],
                [(stream.stream >> 32) as u32; BLOCKS],
            ],
            stream.key,
        );
        for (place, plane) in (plane..).take(BLOCKS / RUNS).enumerate() {
            let bit = 0_u32.wrapping_sub(u32::from(coarse >> (7 - plane)) & 1);
            for ((less, equal), drawn) in self.less.iter_mut().zip(&mut self.equal).zip(&words) {
                let drawn = &drawn[place * RUNS..][..RUNS];
                for ((less, equal), drawn) in less.iter_mut().zip(equal).zip(drawn) {
                    *less |= *equal & !drawn & bit;
                    *equal &= !(drawn ^ bit);
                }
            }
        }
    }
}

widest! {
    /// Write bit `skipped + j` of a mask as byte `j`, 0 or 1.
    ///
    /// # Panics
    /// If there are fewer bits.
    pub fn spread(mask: &[u32], skipped: usize, out: &mut [u8]) {
        let end = skipped + out.len();
        if skipped.is_multiple_of(32) && end.is_multiple_of(32) {
            let words = &mask[skipped / 32..end / 32];
            for (word, out) in words.iter().zip(out.as_chunks_mut::<32>().0) {
                for (byte, out) in word.to_le_bytes().into_iter().zip(out.as_chunks_mut::<8>().0) {
                    *out = spread_byte(byte);
                }
            }
        } else {
            for (place, out) in (skipped..).zip(out) {
                *out = (mask[place / 32] >> (place % 32) & 1) as u8;
            }
        }
    }
}

/// Every bit of a byte as a byte of its own.
#[inline(always)]
fn spread_byte(byte: u8) -> [u8; 8] {
    const ONES: u64 = 0x0101_0101_0101_0101;
    // Bit i of byte i.
    const BITS: u64 = 0x8040_2010_0804_0201;
    // A bit that is set carries into the highest of its byte.
    let carried = ((u64::from(byte) * ONES) & BITS) + 0x7f * ONES;
    (carried >> 7 & ONES).to_le_bytes()
}

widest! {
    /// The bytes of `LANES` blocks from `block` on.
    fn coarse_bytes(stream: Stream, block: u64, out: &mut [u8; GROUP]) {
        let blocks: [u64; LANES] = std::array::from_fn(|lane| block.wrapping_add(lane as u64));
        let words = philox_lanes(
            [
                blocks.map(|block| block as u32),
                blocks.map(|block| (block >> 32) as u32),
                [stream.stream as u32; LANES],
                [(stream.stream >> 32) as u32; LANES],
            ],
            stream.key,
        );
        for (lane, out) in out.chunks_exact_mut(PER_BLOCK).enumerate() {
            for (word, out) in words.iter().zip(out.chunks_exact_mut(4)) {
                out.copy_from_slice(&word[lane].to_le_bytes());
            }
        }
    }
}

/// The number `D` of the module's documentation for a probability.
#[must_use]
pub fn chance(probability: f64) -> u64 {
    (probability * (1_u64 << 40) as f64).round() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An entry's byte where all have the same density.
    fn byte_of_planes(stream: Stream, entry: u64) -> u64 {
        let bit = |plane: u64| {
            let block = entry / 128 * 8 + plane;
            u64::from(stream.word(block * 4 + entry / 32 % 4) >> (entry % 32) & 1)
        };
        (0..8).fold(0, |byte, plane| 2 * byte + bit(plane))
    }

    /// An entry's byte where each has a density of its own.
    fn byte_of_block(stream: Stream, entry: u64) -> u64 {
        u64::from(stream.word(entry / 4).to_le_bytes()[(entry % 4) as usize])
    }

    /// The rule of the module's documentation, one entry at a time.
    fn kept(stream: Stream, byte: u64, entry: u64, density: f64) -> u8 {
        let threshold = (density * 1_099_511_627_776.0).round() as u64;
        let fine = Stream { stream: stream.stream ^ FINE, ..stream };
        let drawn = byte << 32 | u64::from(fine.word(entry));
        u8::from(drawn < threshold)
    }

    #[test]
    fn known_answers_of_random123() {
        let answers = [
            ([0; 4], [0; 2], [0x5f6f_b709, 0x0d89_3f64, 0x4f12_1f81, 0x4f73_0a48]),
            ([!0; 4], [!0; 2], [0x5207_ddc2, 0x4516_5e59, 0x4d8e_e751, 0x8c52_f662]),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0x4dfc_caba, 0x190a_87f0, 0xc473_62ba, 0xb6b5_242a],
            ),
        ];
        for (counter, key, expected) in answers {
            assert_eq!(philox4x32(counter, key), expected);
        }
    }

    #[test]
    fn a_mask_does_not_depend_on_how_it_is_cut() {
        let stream = Stream::new(7, 2, "model.layers.3.mlp.up_proj.weight");
        for density in [0.0, 0.003, 0.25, 0.3, 0.5, 0.625, 0.9, 1.0 - 1.0 / 256.0, 0.999_99] {
            let of_entry = |entry| kept(stream, byte_of_planes(stream, entry), entry, density);
            let expected: Vec<u8> = (0..3000).map(of_entry).collect();
            for (start, length) in [(0, 3000), (0, 1), (1, 15), (15, 2), (17, 1000), (2999, 1)] {
                let mut mask = vec![9; length];
                stream.keep(start as u64, density, &mut mask);
                assert_eq!(mask, expected[start..start + length], "{density} {start} {length}");
            }
        }
    }

    #[test]
    fn every_entry_can_have_a_chance_of_its_own() {
        let stream = Stream::new(9, 1, "w");
        let density = |entry: u64| (entry % 257) as f64 / 256.0;
        let chances: Vec<u64> = (0..3000).map(|entry| chance(density(entry))).collect();
        let of_entry = |entry| kept(stream, byte_of_block(stream, entry), entry, density(entry));
        let expected: Vec<u8> = (0..3000).map(of_entry).collect();
        for (start, length) in [(0, 3000), (0, 1), (1, 15), (17, 1000), (2999, 1)] {
            let mut mask = vec![9; length];
            stream.keep_each(start as u64, &chances[start..start + length], &mut mask);
            assert_eq!(mask, expected[start..start + length], "{start} {length}");
        }
    }

    #[test]
    fn masks_keep_the_density_and_differ_by_key() {
        let count = 1 << 18;
        let mask = |seed, place, tensor: &str, density| {
            let mut mask = vec![0; count];
            Stream::new(seed, place, tensor).keep(0, density, &mut mask);
            mask
        };
        for density in [0.1_f64, 0.5, 0.9] {
            let kept = mask(1, 0, "a", density).iter().map(|&kept| f64::from(kept)).sum::<f64>();
            let deviation = (density * (1.0 - density) * count as f64).sqrt();
            assert!((kept - density * count as f64).abs() < 5.0 * deviation);
        }
        let first = mask(1, 0, "a", 0.5);
        for other in [mask(2, 0, "a", 0.5), mask(1, 1, "a", 0.5), mask(1, 0, "b", 0.5)] {
            let same = first.iter().zip(&other).filter(|(a, b)| a == b).count() as f64;
            let half = count as f64 / 2.0;
            assert!((same - half).abs() < 5.0 * half.sqrt());
        }
        assert!(mask(1, 0, "a", 1.0).iter().all(|&kept| kept == 1));
    }
}
